//! The internal services: chosen, dialled, asked. Only a [`Permit`] opens them.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Uri, Version,
    uri::{Authority, PathAndQuery, Scheme},
};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{
        Client,
        connect::{CaptureConnection, capture_connection},
    },
    rt::{TokioExecutor, TokioTimer},
};
use rustls_pki_types::ServerName;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{
    body::{self, Outbound, Progress, Upload},
    policy::Permit,
};

mod connect;

use connect::Connector;

/// How long an unused connection to an upstream is kept: less than the five seconds after which Node's servers close
/// theirs.
const POOL_IDLE: Duration = Duration::from_secs(4);

/// Header fields of an upstream's answer, and bytes of its head.
const MOST_HEADERS: usize = 256;
const MOST_HEAD_BYTES: usize = 256 * 1024;
/// The least time between two reports that an upstream's servers cannot be reached.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The servers that do one job, and how they are reached.
#[derive(Clone, Debug)]
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
    /// Requests at one time to all servers together; more wait, at most `max_queued` of them.
    pub max_in_flight: usize,
    pub max_queued: usize,
    /// For `https://` servers: how they prove themselves, and we ourselves.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The name asked for and checked in their certificate, in place of the host.
    pub server_name: Option<ServerName<'static>>,
}

/// Scheme, host and port of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub scheme: Scheme,
    pub authority: Authority,
}

/// What all workers share of an upstream.
#[derive(Debug)]
pub struct Shared {
    settings: Settings,
    hosts: Vec<HeaderValue>,
    next: AtomicUsize,
    in_flight: Arc<Semaphore>,
    queued: AtomicUsize,
    /// When it was last said that a server cannot be reached.
    told: Mutex<Option<Instant>>,
}

/// One worker's way to an upstream, with connections of its own.
#[derive(Debug)]
pub struct Upstream {
    shared: Arc<Shared>,
    client: Client<Connector, Outbound>,
}

/// A request as it goes to an upstream, but for the server, which is chosen here.
#[derive(Debug)]
pub struct Outgoing {
    pub method: Method,
    /// Path and query.
    pub target: String,
    pub headers: HeaderMap,
    pub body: Payload,
    pub response_timeout: Option<Duration>,
}

/// The body of an [`Outgoing`] request.
#[derive(Debug)]
pub enum Payload {
    Whole(bytes::Bytes),
    Upload(Upload),
}

/// An upstream's answer, and what it holds until its body has ended.
#[derive(Debug)]
pub struct Answered {
    pub response: Response<Incoming>,
    /// Counts as in flight until dropped.
    pub place: OwnedSemaphorePermit,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Error {
    /// No server could be reached, or the one that was closed without an answer.
    Unreachable,
    /// Connecting, or the first byte of the answer, took too long.
    Timeout,
    /// It answered with what is no HTTP, or with what was not asked for.
    Invalid,
    /// As many requests are in flight and waiting as may be.
    Overloaded,
    /// The client's own body was at fault.
    Client(body::Error),
}

impl Shared {
    /// What is shared of the upstream that `settings` describe.
    pub fn new(settings: Settings) -> Arc<Self> {
        let hosts = settings.servers.iter().map(Origin::host).collect();
        let in_flight = Arc::new(Semaphore::new(settings.max_in_flight.min(Semaphore::MAX_PERMITS)));
        let (next, queued, told) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(None));
        Arc::new(Self { settings, hosts, next, in_flight, queued, told })
    }

    /// Says why `server` cannot be reached, which the client is not told; now and again, for each request would say it.
    fn tell(&self, server: &Origin, error: &(dyn std::error::Error + 'static)) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        *told = Some(Instant::now());
        drop(told);
        let mut cause = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        tracing::warn!(upstream = &*self.settings.name, %server, reason = %cause, "a server cannot be reached");
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(place) = Arc::clone(&self.in_flight).try_acquire_owned() {
            return Ok(place);
        }
        let join = |queued: usize| (queued < self.settings.max_queued).then_some(queued + 1);
        self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, join).map_err(|_| Error::Overloaded)?;
        let _leave = Leave(&self.queued);
        let waiting = Arc::clone(&self.in_flight).acquire_owned();
        match tokio::time::timeout(self.settings.connect_timeout, waiting).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(Error::Overloaded),
        }
    }
}

/// Leaves the queue when dropped.
struct Leave<'q>(&'q AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Origin {
    fn host(&self) -> HeaderValue {
        HeaderValue::try_from(self.authority.as_str()).unwrap_or(HeaderValue::from_static("upstream"))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

impl Upstream {
    /// A worker's own connections to `shared`.
    pub fn new(shared: &Arc<Shared>) -> Self {
        let settings = &shared.settings;
        let connector = Connector::new(settings.connect_timeout, settings.tls.clone(), settings.server_name.clone());
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http1_max_headers(MOST_HEADERS)
            .http1_max_buf_size(MOST_HEAD_BYTES)
            .set_host(false)
            .build(connector);
        Self { shared: Arc::clone(shared), client }
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.shared.settings.name
    }

    /// Whether one of its servers is the one at `host` and `port`, for which `None` is that of `scheme`; without a
    /// scheme any server's will do.
    pub fn has_server(&self, scheme: Option<&str>, host: &str, port: Option<u16>) -> bool {
        self.shared.settings.servers.iter().any(|server| {
            let standard = if server.scheme == Scheme::HTTPS { 443 } else { 80 };
            let asked = match scheme {
                Some(scheme) if scheme.eq_ignore_ascii_case("https") => 443,
                Some(_) => 80,
                None => standard,
            };
            server.authority.host().trim_end_matches('.').eq_ignore_ascii_case(host.trim_end_matches('.'))
                && server.authority.port_u16().unwrap_or(standard) == port.unwrap_or(asked)
        })
    }

    /// The longest pause within an answer.
    pub fn idle_timeout(&self) -> Duration {
        self.shared.settings.idle_timeout
    }

    /// Asks a server, the next in turn; one that cannot be reached is skipped for the one after it. A request that was
    /// lost with a kept connection before anything was answered is sent once more where sending twice is harmless.
    ///
    /// # Errors
    /// [`Error`], after each server had its turn.
    pub async fn send(&self, permit: &Permit<'_>, request: Outgoing) -> Result<Answered, Error> {
        let _ = permit;
        let place = self.shared.place().await?;
        let servers = &self.shared.settings.servers;
        let first = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let mut last = Error::Unreachable;
        let mut lost_once = false;
        let mut turn = 0;
        while turn < servers.len() {
            let at = first.wrapping_add(turn) % servers.len();
            let (Some(server), Some(host)) = (servers.get(at), self.shared.hosts.get(at)) else { break };
            match self.ask(server, host, &request).await {
                Ok(response) => return Ok(Answered { response, place }),
                Err(Failed::NotConnected(error)) => {
                    last = error;
                    turn += 1;
                }
                Err(Failed::Lost) if !lost_once && request.may_be_repeated() => lost_once = true,
                Err(Failed::Lost) => return Err(Error::Unreachable),
                Err(Failed::Finally(error)) => return Err(error),
            }
        }
        Err(last)
    }

    async fn ask(&self, server: &Origin, host: &HeaderValue, request: &Outgoing) -> Result<Response<Incoming>, Failed> {
        let (body, progress) = match &request.body {
            Payload::Whole(bytes) if bytes.is_empty() => (Outbound::Whole(None), None),
            Payload::Whole(bytes) => (Outbound::Whole(Some(bytes.clone())), None),
            Payload::Upload(upload) => (Outbound::Streamed(upload.offer()), Some(upload.progress())),
        };
        let mut asked = Request::new(body);
        *asked.method_mut() = request.method.clone();
        *asked.uri_mut() = uri(server, &request.target).ok_or(Failed::Finally(Error::Invalid))?;
        *asked.version_mut() = Version::HTTP_11;
        *asked.headers_mut() = request.headers.clone();
        asked.headers_mut().insert(http::header::HOST, host.clone());

        let patience = request.response_timeout.unwrap_or(self.shared.settings.response_timeout);
        let connection = capture_connection(&mut asked);
        let answered = within(patience, connection, progress.as_deref(), self.client.request(asked)).await;
        if let Some(fault) = progress.as_ref().and_then(|progress| progress.fault()) {
            return Err(Failed::Finally(Error::Client(fault)));
        }
        let response = answered.ok_or(Failed::Finally(Error::Timeout))?.map_err(|error| {
            if error.is_connect() {
                self.shared.tell(server, &error);
            }
            Failed::from(&error)
        })?;
        if is_usable(&response) { Ok(response) } else { Err(Failed::Finally(Error::Invalid)) }
    }
}

impl Outgoing {
    /// Whether sending it twice does no more than sending it once (RFC 9110, section 9.2.2), and is possible.
    fn may_be_repeated(&self) -> bool {
        let idempotent = matches!(self.method, Method::GET | Method::HEAD | Method::PUT | Method::DELETE);
        match &self.body {
            Payload::Whole(_) => idempotent,
            Payload::Upload(upload) => !upload.progress().begun(),
        }
    }
}

/// How one try ended without an answer.
enum Failed {
    /// Nothing was sent.
    NotConnected(Error),
    /// The connection was closed before any byte of an answer.
    Lost,
    Finally(Error),
}

impl From<&hyper_util::client::legacy::Error> for Failed {
    fn from(error: &hyper_util::client::legacy::Error) -> Self {
        if error.is_connect() {
            return Self::NotConnected(if connect::timed_out(error) { Error::Timeout } else { Error::Unreachable });
        }
        // A part of an answer says that the server has worked on the request.
        let lost = if connect::Answering::on(error) { Self::Finally(Error::Unreachable) } else { Self::Lost };
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            if let Some(hyper) = cause.downcast_ref::<hyper::Error>() {
                if hyper.is_parse() || hyper.is_parse_status() || hyper.is_parse_too_large() {
                    return Self::Finally(Error::Invalid);
                }
                if hyper.is_incomplete_message() || hyper.is_canceled() || hyper.is_closed() {
                    return lost;
                }
            }
            if cause.is::<std::io::Error>() {
                return lost;
            }
            source = cause.source();
        }
        Self::Finally(Error::Unreachable)
    }
}

/// Waits for `answer` for `patience`, counted from when there is a `connection`, for which the connector has a deadline of
/// its own, and anew whenever the client's body moves on. `None` if it took longer.
async fn within<T>(
    patience: Duration,
    mut connection: CaptureConnection,
    progress: Option<&Progress>,
    answer: impl Future<Output = T>,
) -> Option<T> {
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        answered = &mut answer => return Some(answered),
        _ = connection.wait_for_connection_metadata() => {}
    }
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

fn uri(server: &Origin, target: &str) -> Option<Uri> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(server.scheme.clone());
    parts.authority = Some(server.authority.clone());
    parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    Uri::from_parts(parts).ok()
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("the upstream cannot be reached"),
            Self::Timeout => f.write_str("the upstream took too long"),
            Self::Invalid => f.write_str("the upstream's answer is not valid HTTP"),
            Self::Overloaded => f.write_str("too many requests to the upstream are in flight"),
            Self::Client(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}
