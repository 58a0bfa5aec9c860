//! The internal services: chosen, dialled, asked. Only a [`Proof`] opens them.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, Method, Response, StatusCode, header, uri::PathAndQuery};
use hyper::body::Incoming;
use rustls_pki_types::ServerName;
use tokio::time::Instant;

use crate::{
    body::{Outbound, Progress, Upload},
    headers,
    tally::Histogram,
};

pub mod address;
mod balance;
mod budget;
mod dial;
mod error;
mod health;
mod origin;
mod pool;
mod proof;
mod stream;

pub use balance::Figures;
pub use error::{Cause, Error};
pub use health::Check;
pub use origin::{Origin, Place, Protocol};
pub use proof::Proof;

use balance::{Full, Servers, Showed};
use budget::Budget;
use dial::Dialer;
use error::root;
use pool::{Failed, Lease, Message, Pool};

/// The least time between two reports that an upstream's servers cannot be reached.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The servers that do one job, and how they are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name in the configuration, or the origin that a route gave.
    pub name: Arc<str>,
    pub servers: Vec<Origin>,
    /// Name look-up, TCP and TLS together.
    pub connect_timeout: Duration,
    /// From the last byte of the request to the first of the answer, where a route says nothing else.
    pub response_timeout: Duration,
    /// The longest pause within an answer.
    pub idle_timeout: Duration,
    /// Requests at one time to each server; more wait, at most `max_queued` of them in all, for `queue_timeout`.
    pub max_in_flight: usize,
    pub max_queued: usize,
    pub queue_timeout: Duration,
    /// How long the addresses of a name are good.
    pub dns_ttl: Duration,
    /// How servers are asked whether they are well, if they are.
    pub health: Option<Check>,
    /// Failures in a row after which a server is left out for `eject_for`; 0 for never.
    pub eject_after: u32,
    pub eject_for: Duration,
    /// How many requests may be sent a second time, of a hundred.
    pub retry_budget: u32,
    /// For `https://` servers: how they prove themselves, and we ourselves.
    pub tls: Option<Tls>,
    /// The name asked for and checked in their certificate, in place of the host.
    pub server_name: Option<ServerName<'static>>,
    /// Whether a name may lead to link-local and metadata addresses.
    pub allows_link_local: bool,
}

/// TLS towards servers, and what it was made of.
#[derive(Clone, Debug)]
pub struct Tls {
    pub config: Arc<rustls::ClientConfig>,
    /// SHA-256 over the authorities, the certificate and its key; zeros for the trust of this system.
    pub digest: [u8; 32],
}

/// What all workers share of an upstream.
#[derive(Debug)]
pub struct Shared {
    settings: Settings,
    dialers: Vec<Arc<Dialer>>,
    servers: Arc<Servers>,
    budget: Budget,
    answer_time: Histogram,
    /// When it was last said that a server cannot be reached.
    told: Mutex<Option<Instant>>,
}

/// One worker's way to an upstream, with connections of its own.
#[derive(Debug)]
pub struct Upstream {
    shared: Arc<Shared>,
    pools: Vec<Arc<Pool>>,
}

/// A request as it goes to an upstream, but for the server, which is chosen here.
#[derive(Debug)]
pub struct Outgoing<H> {
    pub method: Method,
    pub target: PathAndQuery,
    /// Makes its headers, once for each time it is sent.
    pub headers: H,
    pub body: Payload,
    pub response_timeout: Option<Duration>,
    /// Whether its connection is to become another protocol's, to which a 101 agrees.
    pub switches: bool,
}

/// The body of an [`Outgoing`] request.
#[derive(Debug)]
pub enum Payload {
    /// JSON, or nothing: no request begins as that does.
    Whole(bytes::Bytes),
    /// All of what may be anything.
    Text(bytes::Bytes),
    Upload(Upload),
}

/// An upstream's answer, and what it holds until its body has ended.
#[derive(Debug)]
pub struct Answered {
    pub response: Response<Incoming>,
    pub held: Held,
}

/// What an answer holds: its connection, and its place among the requests in flight. Dropped before [`Held::settle`] it
/// gives up the connection, and with it the upstream's work.
#[derive(Debug)]
pub struct Held {
    lease: Lease,
    upload: Option<Arc<Progress>>,
    /// Whether what was sent could be read as another request.
    is_ambiguous: bool,
    place: balance::Place,
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Tls {}

impl Settings {
    /// These servers, with the defaults for all else.
    pub fn new(name: Arc<str>, servers: Vec<Origin>) -> Self {
        Self {
            name,
            servers,
            connect_timeout: Duration::from_secs(3),
            response_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            max_in_flight: 1024,
            max_queued: 1024,
            queue_timeout: Duration::from_secs(3),
            dns_ttl: Duration::from_secs(30),
            health: None,
            eject_after: 5,
            eject_for: Duration::from_secs(10),
            retry_budget: 20,
            tls: None,
            server_name: None,
            allows_link_local: false,
        }
    }
}

impl Shared {
    /// What is shared of the upstream that `settings` describe.
    pub fn new(settings: Settings) -> Arc<Self> {
        let dialers = settings.servers.iter().map(|origin| Arc::new(Dialer::new(&settings, origin))).collect();
        let (servers, budget) = (Servers::new(&settings), Budget::new(settings.retry_budget));
        let answer_time = Histogram::default();
        Arc::new(Self { settings, dialers, servers, budget, answer_time, told: Mutex::new(None) })
    }

    /// Whether `settings` describe this very upstream, so that it can go on.
    pub fn is(&self, settings: &Settings) -> bool {
        self.settings == *settings
    }

    /// Asks the servers whether they are well, if the configuration has it so, for as long as this is polled.
    pub async fn watch(self: Arc<Self>) {
        health::watch(self).await;
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    /// How long its answers took, to their first byte, waiting for a place included.
    pub fn answer_time(&self) -> &Histogram {
        &self.answer_time
    }

    /// How each server does, in the order of the configuration, and how many requests wait for a place.
    pub fn figures(&self) -> (Vec<(&Origin, Figures)>, usize) {
        (self.settings.servers.iter().zip(self.servers.figures()).collect(), self.servers.queued())
    }

    /// Says why `server` cannot be reached, which the client is not told; now and again, for each request would say it.
    fn tell(&self, server: &Origin, error: &io::Error) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        *told = Some(Instant::now());
        drop(told);
        let reason = root(error);
        tracing::warn!(upstream = &*self.settings.name, %server, %reason, "a server cannot be reached");
    }
}

impl Upstream {
    /// A worker's own connections to `shared`.
    pub fn new(shared: &Arc<Shared>) -> Self {
        let pools = shared.dialers.iter().map(|dialer| Pool::new(Arc::clone(dialer))).collect();
        Self { shared: Arc::clone(shared), pools }
    }

    /// What all workers share of it.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.shared.settings.name
    }

    /// Whether one of its servers is the one at `host` and `port`, for which `None` is that of `scheme`; without a
    /// scheme any server's will do.
    pub fn has_server(&self, scheme: Option<&str>, host: &str, port: Option<u16>) -> bool {
        self.shared.settings.servers.iter().any(|server| server.is_at(scheme, host, port))
    }

    /// The server whose answer is `held`; of an upstream with one server that, answer or not.
    pub fn server(&self, held: Option<&Held>) -> Option<&Origin> {
        let servers = &self.shared.settings.servers;
        match held {
            Some(held) => servers.get(held.place.server()),
            None => servers.first().filter(|_| servers.len() == 1),
        }
    }

    /// The longest pause within an answer.
    pub fn idle_timeout(&self) -> Duration {
        self.shared.settings.idle_timeout
    }

    /// Counts an answer that took so long.
    pub fn note_time(&self, time: Duration) {
        self.shared.answer_time.observe(time);
    }

    /// Asks a server. A request of which nothing was sent, or that was lost before anything was answered and does no more
    /// harm when it is sent twice, is sent to another server, where there is one and the budget for that allows it.
    ///
    /// # Errors
    /// [`Error`], of the last server that was asked.
    pub async fn send<H: Fn() -> HeaderMap>(
        &self,
        proof: &impl Proof,
        request: Outgoing<H>,
    ) -> Result<Answered, Error> {
        let _ = proof;
        let servers = &self.shared.servers;
        let place = servers.place().await.map_err(|Full| Error::Overloaded)?;
        self.shared.budget.earn();
        let failure = match self.ask(place, &request, false).await {
            Ok(answered) => return Ok(answered),
            Err(failure) => failure,
        };
        let (is_repeatable, is_lost) = match failure.how {
            How::NotSent => (request.is_whole(), false),
            How::Lost => (request.may_be_repeated(), true),
            How::Finally => (false, false),
        };
        if !is_repeatable {
            return Err(failure.cause.into());
        }
        // A server that lost a kept connection may be well; one that cannot be reached is not asked again.
        let another = servers.try_place(Some(failure.server));
        let another = another.or_else(|| servers.try_place(None).filter(|_| is_lost && self.pools.len() == 1));
        match another {
            Some(place) if self.shared.budget.spend() => {
                self.ask(place, &request, true).await.map_err(|failure| failure.cause.into())
            }
            Some(_) | None => Err(failure.cause.into()),
        }
    }

    /// Asks one server, and no other after it: once any of the request was sent it is not sent again, but where the server
    /// says that it has not looked at it. A kept connection that turns out to be closed before that is replaced.
    ///
    /// # Errors
    /// [`Cause`].
    pub async fn send_once<H: Fn() -> HeaderMap>(
        &self,
        proof: &impl Proof,
        request: &Outgoing<H>,
    ) -> Result<Answered, Cause> {
        let _ = proof;
        let place = self.shared.servers.place().await.map_err(|Full| Cause::Busy)?;
        self.ask(place, request, false).await.map_err(|failure| failure.cause)
    }

    async fn ask<H: Fn() -> HeaderMap>(
        &self,
        place: balance::Place,
        request: &Outgoing<H>,
        is_second: bool,
    ) -> Result<Answered, Failure> {
        let server = place.server();
        let failed = |cause, how| Failure { cause, how, server };
        let pool = self.pools.get(server).ok_or_else(|| failed(Cause::Lost(None), How::Finally))?;
        let careful = !request.may_be_repeated();
        // Lost with a kept connection, it is sent on a new one.
        let mut fresh = is_second;
        loop {
            let leased = if request.switches {
                Box::pin(pool.lease_for_upgrade()).await
            } else {
                pool.lease(fresh, careful).await
            };
            let mut lease = match leased {
                Ok(lease) => lease,
                Err(error) => {
                    // One that does not open WebSockets is well.
                    if error.kind() != io::ErrorKind::Unsupported {
                        self.note(&place, Showed::Failure);
                    }
                    self.shared.tell(&pool.dialer().origin, &error);
                    return Err(failed(Cause::Connect(error), How::NotSent));
                }
            };
            let (body, progress) = request.body.offer();
            let is_ambiguous = !matches!(request.body, Payload::Whole(_));
            let (method, target) = (&request.method, &request.target);
            let message = Message { method, target, headers: (request.headers)(), body };
            let patience = request.response_timeout.unwrap_or(self.shared.settings.response_timeout);
            let answered = within(patience, progress.as_deref(), std::pin::pin!(lease.ask(message))).await;
            if let Some(fault) = progress.as_ref().and_then(|progress| progress.fault()) {
                return Err(failed(Cause::Client(fault), How::Finally));
            }
            let (cause, how) = match answered {
                Some(Ok(response)) if is_usable(&response) || request.switches && is_switch(&response) => {
                    self.note(&place, Showed::Answer);
                    return Ok(Answered { response, held: Held { lease, upload: progress, is_ambiguous, place } });
                }
                Some(Err(Failed::NotSent)) if lease.is_used() && request.is_whole() => {
                    fresh = true;
                    continue;
                }
                Some(Err(Failed::NotSent)) => (Cause::Lost(None), How::NotSent),
                Some(Err(Failed::Lost(alert))) => (Cause::Lost(alert), How::Lost),
                Some(Err(Failed::BrokenOff)) => (Cause::BrokenOff, How::Finally),
                Some(Err(Failed::Invalid) | Ok(_)) => (Cause::Invalid, How::Finally),
                None => {
                    lease.distrust();
                    (Cause::Late, How::Finally)
                }
            };
            // A server that gives up on a client which stopped sending is well.
            if progress.is_none_or(|progress| progress.moved().is_some()) {
                self.note(&place, Showed::Failure);
            }
            return Err(failed(cause, how));
        }
    }

    fn note(&self, place: &balance::Place, showed: Showed) {
        if place.note(showed)
            && let Some(pool) = self.pools.get(place.server())
        {
            let (upstream, server) = (&*self.shared.settings.name, &pool.dialer().origin);
            tracing::warn!(upstream, %server, "a server is left out for a while: it failed several times in a row");
        }
    }
}

impl Held {
    /// The connection has become another protocol's: it ends with that, but the place is held until then.
    pub fn release(&mut self) {
        self.lease.release();
    }

    /// The answer has ended as it should.
    pub fn settle(self) {
        if let Some(upload) = &self.upload {
            upload.abandon();
        }
        // A server that answers without having read a body may read it as another request, and nobody sees which it does:
        // what it answers to that is not to be anyone's answer.
        if !self.is_ambiguous {
            self.lease.settle();
        }
    }
}

impl<H> Outgoing<H> {
    /// Whether all of it is here to be sent: no server has taken a part of its body.
    fn is_whole(&self) -> bool {
        match &self.body {
            Payload::Whole(_) | Payload::Text(_) => true,
            Payload::Upload(upload) => !upload.progress().begun(),
        }
    }

    /// Whether sending it twice does no more than sending it once (RFC 9110, section 9.2.2), and is possible.
    fn may_be_repeated(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD | Method::PUT | Method::DELETE) && self.is_whole()
    }
}

impl Payload {
    /// The body for one try, and what tells how far it has come.
    fn offer(&self) -> (Outbound, Option<Arc<Progress>>) {
        match self {
            Self::Whole(bytes) if bytes.is_empty() => (Outbound::Whole(None), None),
            Self::Whole(bytes) | Self::Text(bytes) => (Outbound::Whole(Some(bytes.clone())), None),
            Self::Upload(upload) => (Outbound::Streamed(upload.offer()), Some(upload.progress())),
        }
    }
}

/// How one server did not answer.
struct Failure {
    cause: Cause,
    how: How,
    server: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Nothing was sent.
    NotSent,
    /// The connection was closed before any byte of an answer.
    Lost,
    Finally,
}

/// Waits for `answer` for `patience`, counted anew whenever the client's body moves on. `None` if it took longer.
async fn within<T>(
    patience: Duration,
    progress: Option<&Progress>,
    mut answer: Pin<&mut impl Future<Output = T>>,
) -> Option<T> {
    let mut deadline = Instant::now() + patience;
    loop {
        tokio::select! {
            biased;
            answered = &mut answer => return Some(answered),
            () = tokio::time::sleep_until(deadline) => {
                let progress = progress?;
                // Whom the client keeps waiting is not late; the upload has bounds of its own for that.
                let later = progress.moved().unwrap_or_else(Instant::now) + patience;
                if later <= deadline {
                    return None;
                }
                deadline = later;
            }
        }
    }
}

/// Whether an answer is a final one whose body has one framing that can be undone.
fn is_usable(response: &Response<Incoming>) -> bool {
    let mut codings = response.headers().get_all(http::header::TRANSFER_ENCODING).iter();
    let framed = match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    };
    framed && (200..600).contains(&response.status().as_u16())
}

/// Whether an answer agrees to a WebSocket (RFC 6455, section 4.1).
fn is_switch(response: &Response<Incoming>) -> bool {
    let fields = response.headers();
    response.status() == StatusCode::SWITCHING_PROTOCOLS
        && headers::lists(fields, header::UPGRADE, "websocket")
        && headers::lists(fields, header::CONNECTION, "upgrade")
        && fields.contains_key(header::SEC_WEBSOCKET_ACCEPT)
}
