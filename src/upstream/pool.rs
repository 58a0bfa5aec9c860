//! One worker's connections to one server: kept where they can be used again, dropped on any doubt.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, Method, Request, Response, Uri, Version, header, uri::PathAndQuery};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{task::AbortHandle, time::Instant};

use super::{
    dial::{Dialer, Speaking},
    stream::{Answering, Patience, Stream, Watcher},
};
use crate::body::Outbound;

/// How long an unused HTTP/1.1 connection is kept: less than the five seconds after which Node's servers close theirs.
const HTTP1_IDLE: Duration = Duration::from_secs(4);
/// How long an unused HTTP/2 connection is kept.
const HTTP2_IDLE: Duration = Duration::from_secs(60);
/// Streams at one time on an HTTP/2 connection; for more there is another. So few that all of them together fit into the
/// connection's window: clients who do not read their answers take nobody else's.
const MOST_STREAMS: u32 = CONNECTION_WINDOW / STREAM_WINDOW;
/// A kept connection that rested for this long is looked at before it is used, for what its server did meanwhile.
const RESTED: Duration = Duration::from_millis(2);
/// How long a connection whose answer has ended may take to be ready again.
const SETTLING: Duration = Duration::from_millis(5);
/// How often an HTTP/2 server is asked whether it is there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(20);
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Header fields of an answer, and bytes of its head.
const MOST_HEADERS: usize = 256;
const MOST_HEAD_BYTES: u32 = 256 * 1024;

/// The connections to one server.
#[derive(Debug)]
pub(super) struct Pool {
    dialer: Arc<Dialer>,
    /// The most recently used last.
    kept: Mutex<Vec<Kept>>,
    http2: Mutex<Vec<Http2>>,
    /// Whether the server has chosen HTTP/2, so that a second connection is not dialled while the first is.
    speaks_http2: AtomicBool,
    dialling: tokio::sync::Mutex<()>,
    /// Whether someone looks after connections that rest.
    is_tended: AtomicBool,
}

/// An HTTP/1.1 connection.
#[derive(Debug)]
struct Http1 {
    sender: http1::SendRequest<Outbound>,
    address: Option<SocketAddr>,
    answering: Answering,
    patience: Patience,
    watcher: Option<Watcher>,
    task: AbortHandle,
}

/// One that rests.
#[derive(Debug)]
struct Kept {
    connection: Http1,
    since: Instant,
}

/// An HTTP/2 connection, for as many requests as it may have streams.
#[derive(Clone, Debug)]
struct Http2 {
    sender: http2::SendRequest<Outbound>,
    address: Option<SocketAddr>,
    streams: Arc<AtomicU32>,
    used: Arc<Mutex<Instant>>,
}

/// A connection that a request has until its answer has ended. Dropped before, an HTTP/1.1 connection is closed, so that
/// the server learns at once that nobody waits.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    held: Option<Held>,
    /// Whether a request went over the connection before.
    is_used: bool,
}

#[derive(Debug)]
enum Held {
    Http1(Http1),
    Http2(Http2),
}

/// What is sent: everything of a request but what depends on the connection.
#[derive(Debug)]
pub(super) struct Message<'m> {
    pub(super) method: &'m Method,
    pub(super) target: &'m PathAndQuery,
    pub(super) headers: HeaderMap,
    pub(super) body: Outbound,
}

/// How sending ended without an answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// Nothing was sent; another connection may be tried.
    NotSent,
    /// The connection was lost before any byte of an answer, or the request was refused unseen; with what TLS said at its
    /// end.
    Lost(Option<rustls::AlertDescription>),
    /// Part of an answer came.
    BrokenOff,
    /// What came is not HTTP.
    Invalid,
}

impl Pool {
    pub(super) fn new(dialer: Arc<Dialer>) -> Arc<Self> {
        Arc::new(Self {
            dialer,
            kept: Mutex::default(),
            http2: Mutex::default(),
            speaks_http2: AtomicBool::new(false),
            dialling: tokio::sync::Mutex::new(()),
            is_tended: AtomicBool::new(false),
        })
    }

    /// How its server is dialled.
    pub(super) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// A connection for one request: a kept one, or a new one if `fresh` asks for it or none is kept. `careful` has a
    /// kept one looked at first.
    ///
    /// # Errors
    /// Why there is no new one.
    pub(super) async fn lease(self: &Arc<Self>, fresh: bool, careful: bool) -> io::Result<Lease> {
        if !fresh {
            if let Some(lease) = self.kept_one(careful).await {
                return Ok(lease);
            }
            if self.speaks_http2.load(Ordering::Relaxed) {
                let turn = tokio::time::timeout(self.dialer.timeout(), self.dialling.lock());
                let _one = turn.await.map_err(|_| io::ErrorKind::TimedOut)?;
                return match self.http2_one() {
                    Some(lease) => Ok(lease),
                    None => Box::pin(self.dialled()).await,
                };
            }
        }
        // On the heap, for it is rare: what waits for a request's answer is as large as the largest of its parts.
        Box::pin(self.dialled()).await
    }

    /// A new HTTP/1.1 connection that will be upgraded.
    ///
    /// # Errors
    /// As [`Pool::lease`].
    pub(super) async fn lease_for_upgrade(self: &Arc<Self>) -> io::Result<Lease> {
        let stream = self.dialer.dial(Speaking::Http1).await?;
        if stream.is_http2 {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the server speaks HTTP/2 only"));
        }
        self.http1(stream).await
    }

    async fn kept_one(self: &Arc<Self>, careful: bool) -> Option<Lease> {
        if let Some(lease) = self.http2_one() {
            return Some(lease);
        }
        loop {
            let Kept { mut connection, since } = self.kept().pop()?;
            let rested = since.elapsed();
            if rested >= HTTP1_IDLE || connection.sender.is_closed() || !self.dialer.holds(connection.address) {
                continue;
            }
            if careful && rested >= RESTED && connection.watcher.as_ref().is_some_and(Watcher::is_stirred) {
                continue;
            }
            if connection.sender.is_ready() {
                return Some(Lease { pool: Arc::clone(self), held: Some(Held::Http1(connection)), is_used: true });
            }
            // Its task has not yet had its turn since the answer ended.
            if let Ok(Ok(())) = tokio::time::timeout(SETTLING, connection.sender.ready()).await {
                return Some(Lease { pool: Arc::clone(self), held: Some(Held::Http1(connection)), is_used: true });
            }
            connection.task.abort();
        }
    }

    fn http2_one(self: &Arc<Self>) -> Option<Lease> {
        let mut connections = self.http2();
        if connections.is_empty() {
            return None;
        }
        connections.retain(|connection| !connection.sender.is_closed() && self.dialer.holds(connection.address));
        let free = connections.iter().find(|connection| connection.streams.load(Ordering::Relaxed) < MOST_STREAMS)?;
        let connection = free.clone();
        connection.streams.fetch_add(1, Ordering::Relaxed);
        Some(Lease { pool: Arc::clone(self), held: Some(Held::Http2(connection)), is_used: true })
    }

    async fn dialled(self: &Arc<Self>) -> io::Result<Lease> {
        let stream = self.dialer.dial(Speaking::Any).await?;
        self.speaks_http2.store(stream.is_http2, Ordering::Relaxed);
        if stream.is_http2 { self.http2_over(stream).await } else { self.http1(stream).await }
    }

    async fn http1(self: &Arc<Self>, stream: Stream) -> io::Result<Lease> {
        let (address, answering, watcher) = (stream.address, stream.answering.clone(), stream.watcher());
        let patience = stream.patience.clone();
        let (sender, connection) = http1::Builder::new()
            .max_headers(MOST_HEADERS)
            .max_buf_size(MOST_HEAD_BYTES as usize)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // It ends with its connection, which ends with its sender.
        let task = tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        let connection = Http1 { sender, address, answering, patience, watcher, task: task.abort_handle() };
        Ok(Lease { pool: Arc::clone(self), held: Some(Held::Http1(connection)), is_used: false })
    }

    async fn http2_over(self: &Arc<Self>, stream: Stream) -> io::Result<Lease> {
        let address = stream.address;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MOST_HEAD_BYTES)
            .max_send_buf_size(STREAM_WINDOW as usize)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_EVERY)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // It ends with its connection, which ends with its senders.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let (streams, used) = (Arc::new(AtomicU32::new(1)), Arc::new(Mutex::new(Instant::now())));
        let connection = Http2 { sender, address, streams, used };
        self.http2().push(connection.clone());
        self.tend();
        Ok(Lease { pool: Arc::clone(self), held: Some(Held::Http2(connection)), is_used: false })
    }

    fn keep(self: &Arc<Self>, connection: Http1) {
        self.kept().push(Kept { connection, since: Instant::now() });
        self.tend();
    }

    /// Has connections closed that rest for too long, as long as there are any.
    fn tend(self: &Arc<Self>) {
        if self.is_tended.swap(true, Ordering::Relaxed) {
            return;
        }
        let pool = Arc::downgrade(self);
        // It ends when nothing is kept.
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(HTTP1_IDLE / 4).await;
                let Some(pool) = pool.upgrade() else { return };
                pool.kept().retain(|kept| kept.since.elapsed() < HTTP1_IDLE && !kept.connection.sender.is_closed());
                pool.http2().retain(Http2::is_wanted);
                if pool.kept().is_empty() && pool.http2().is_empty() {
                    pool.is_tended.store(false, Ordering::Relaxed);
                    return;
                }
            }
        });
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn http2(&self) -> MutexGuard<'_, Vec<Http2>> {
        self.http2.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Http2 {
    fn is_wanted(&self) -> bool {
        let rests = self.streams.load(Ordering::Relaxed) == 0
            && self.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= HTTP2_IDLE;
        !rests && !self.sender.is_closed()
    }

    fn leave(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease {
    /// Whether a request went over the connection before, so that its server may have closed it meanwhile.
    pub(super) fn is_used(&self) -> bool {
        self.is_used
    }

    /// Sends `message` and waits for the head of its answer.
    ///
    /// # Errors
    /// [`Failed`]; the connection is not kept then.
    pub(super) async fn ask(&mut self, message: Message<'_>) -> Result<Response<Incoming>, Failed> {
        let Message { method, target, mut headers, body } = message;
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        let dialer = &self.pool.dialer;
        let (answered, has_begun) = match &mut self.held {
            Some(Held::Http1(connection)) => {
                headers.insert(header::HOST, dialer.host.clone());
                *request.uri_mut() = uri(http::uri::Parts::default(), target)?;
                *request.headers_mut() = headers;
                connection.patience.begin();
                let answered = connection.sender.try_send_request(request).await;
                if connection.patience.is_exhausted() {
                    return Err(Failed::Invalid);
                }
                connection.patience.end();
                (answered, connection.answering.has_begun())
            }
            Some(Held::Http2(connection)) => {
                let mut parts = http::uri::Parts::default();
                parts.scheme = Some(dialer.origin.protocol.scheme());
                parts.authority = Some(dialer.authority.clone());
                *request.uri_mut() = uri(parts, target)?;
                *request.version_mut() = Version::HTTP_2;
                *request.headers_mut() = headers;
                (connection.sender.try_send_request(request).await, false)
            }
            None => return Err(Failed::NotSent),
        };
        answered.map_err(|mut error| {
            if error.take_message().is_some() {
                return Failed::NotSent;
            }
            Failed::of(error.error(), has_begun)
        })
    }

    /// No answer has come in time: an HTTP/2 connection on which there may be no room for one gets no more requests. What
    /// runs on it goes on.
    pub(super) fn distrust(&self) {
        if let Some(Held::Http2(connection)) = &self.held {
            self.pool.http2().retain(|other| !Arc::ptr_eq(&other.streams, &connection.streams));
        }
    }

    /// The answer has ended as it should: the connection may be used again.
    pub(super) fn settle(mut self) {
        match self.held.take() {
            Some(Held::Http1(connection)) => self.pool.keep(connection),
            Some(Held::Http2(connection)) => connection.leave(),
            None => {}
        }
    }

    /// The connection has become another protocol's, and no longer ends with this.
    pub(super) fn release(&mut self) {
        self.held = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        match self.held.take() {
            Some(Held::Http1(connection)) => connection.task.abort(),
            // Dropping the answer has reset its stream.
            Some(Held::Http2(connection)) => connection.leave(),
            None => {}
        }
    }
}

fn uri(parts: http::uri::Parts, target: &PathAndQuery) -> Result<Uri, Failed> {
    let mut parts = parts;
    parts.path_and_query = Some(target.clone());
    Uri::from_parts(parts).map_err(|_| Failed::Invalid)
}

impl Failed {
    fn of(error: &hyper::Error, has_begun: bool) -> Self {
        if error.is_parse() || error.is_parse_status() || error.is_parse_too_large() {
            return Self::Invalid;
        }
        if has_begun {
            return Self::BrokenOff;
        }
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            if let Some(h2) = cause.downcast_ref::<h2::Error>() {
                return if h2.reason() == Some(h2::Reason::REFUSED_STREAM) && h2.is_remote() {
                    // The server says that it has not looked at it (RFC 9113, section 8.7).
                    Self::NotSent
                } else if h2.is_io() || h2.is_go_away() || h2.is_reset() && h2.is_remote() {
                    Self::Lost(h2.get_io().and_then(alert_in))
                } else {
                    Self::Invalid
                };
            }
            if let Some(alert) = cause.downcast_ref().and_then(alert_in) {
                return Self::Lost(Some(alert));
            }
            source = cause.source();
        }
        Self::Lost(None)
    }
}

/// What TLS said when it ended a connection: under TLS 1.3 a server looks at our certificate when we hold the handshake to be
/// over.
fn alert_in(error: &io::Error) -> Option<rustls::AlertDescription> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}
