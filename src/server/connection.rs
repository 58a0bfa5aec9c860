//! One connection: TLS, then HTTP/1.1 or HTTP/2 as agreed, until it is idle for too long or the server drains.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::{
    crowd::Guest,
    door::Accepted,
    frames::Counted,
    handshake::Handshake,
    house::Desk,
    proxy,
    stall::Stalling,
    traffic::{Outcome, Spoken},
    wire::{Checked, Refusal},
};
use crate::{
    body::Pace,
    gateway::{Activity, Answer, Arrival, Busy},
    headers::Client,
    limits::{Hits, Limit, Limits},
    tls,
};

/// How long a kept HTTP/1.1 connection may still bring a request after the drain began.
const LAST_CHANCE: Duration = Duration::from_millis(500);
/// How long a connection that gives way to others must have been idle, for what it was sent last may still be on its way.
const LAST_BYTES: Duration = Duration::from_secs(1);
/// How long it may take to tell a client that there are too many.
const TURNING_AWAY: Duration = Duration::from_secs(5);
/// How long nothing is asked on a kept HTTP/1.1 connection before it rests.
const REST: Duration = Duration::from_secs(1);
/// How often an HTTP/2 client is asked whether it is there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(20);
/// HTTP/2 streams that a client reset before they were taken, and streams reset for its mistakes: more end the connection.
const MOST_PENDING_RESETS: usize = 20;
const MOST_ERROR_RESETS: usize = 1024;
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

tokio::task_local! {
    /// The pace at which the client of an HTTP/2 stream takes its answer.
    static PACE: Arc<Pace>;
}

/// Runs each HTTP/2 stream as a task, which is dropped, and the stream reset, when its client is too slow, or does not take what it is no
/// longer permitted.
#[derive(Clone, Debug)]
struct Streams {
    patience: Duration,
    rate: u64,
    whole: Duration,
    hits: Arc<Hits>,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let pace = Pace::new(self.patience, self.rate, self.whole);
        let hits = Arc::clone(&self.hits);
        // It ends with its connection, whose task is waited for.
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = PACE.scope(Arc::clone(&pace), stream) => {}
                limit = pace.exceeded() => {
                    if let Some(limit) = limit {
                        hits.hit(limit);
                    }
                }
            }
        });
    }
}

/// Serves a connection to its end: its own, that of the drain, or that of its place.
pub(super) async fn serve(accepted: Accepted, handshake: Handshake, desk: Arc<Desk>, drain: CancellationToken) {
    let Guest { activity, leave } = accepted.place.guest().clone();
    let mut serving = std::pin::pin!(greet(accepted, handshake, desk));
    tokio::select! {
        biased;
        () = serving.as_mut() => return,
        () = leave.cancelled() => {}
    }
    // It gives way to others, unless something was asked in the meantime.
    while !drain.is_cancelled()
        && let Some(since) = activity.idle_since()
    {
        if tokio::time::timeout_at(since + LAST_BYTES, serving.as_mut()).await.is_ok() {
            return;
        }
        if activity.idle_since() == Some(since) {
            return;
        }
    }
    serving.await;
}

/// Agrees with the client on how to speak, and serves it. Who is turned away is served for a moment.
async fn greet(accepted: Accepted, handshake: Handshake, desk: Arc<Desk>) {
    let Accepted { stream, mut peer, mut place, is_proxied } = accepted;
    let Ok(mut stream) = stream.watched() else { return };
    // The limits of a connection are those of its beginning.
    let gateway = desk.gateway.load_full();
    let _ = stream.set_nodelay(true);
    let deadline = Instant::now() + gateway.limits.handshake_timeout;
    if is_proxied {
        peer = match tokio::time::timeout_at(deadline, proxy::read(&mut stream, peer)).await {
            Ok(Ok(peer)) => peer,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "no header of the PROXY protocol");
                return;
            }
            Err(_) => {
                gateway.hits.hit(Limit::HandshakeTimeout);
                tracing::debug!(%peer, "header of the PROXY protocol timed out");
                return;
            }
        };
        let Some(same) = place.of(peer.ip()) else { return };
        place = same;
    }
    let is_turned_away = place.is_turned_away();
    let mut served = std::pin::pin!(async {
        // On the heap by itself, as is what follows: this task is as large as the largest of its parts together.
        let handshake = Box::pin(handshake.of(stream));
        let stream = match tokio::time::timeout_at(deadline, handshake).await {
            Ok(Ok(Some(stream))) => stream,
            Ok(Ok(None)) => {
                tracing::debug!(%peer, "answered the challenge of an ACME server");
                return;
            }
            Ok(Err(error)) => {
                desk.traffic.shook_hands(Outcome::Failed);
                tracing::debug!(%peer, %error, "no TLS handshake");
                return;
            }
            Err(_) => {
                desk.traffic.shook_hands(Outcome::TimedOut);
                gateway.hits.hit(Limit::HandshakeTimeout);
                tracing::debug!(%peer, "TLS handshake timed out");
                return;
            }
        };
        desk.traffic.shook_hands(Outcome::Completed);
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(tls::H2);
        let _open = desk.traffic.opened(if is_http2 { Spoken::Http2 } else { Spoken::Http1 });
        let Guest { activity, leave } = place.guest().clone();
        let served = Arc::new(Served {
            client: Client::from(peer),
            requests: AtomicU64::new(0),
            refusal: Arc::new(Refusal::default()),
            activity,
            closing: AtomicBool::new(false),
            turned_away: is_turned_away.then(|| leave.clone()),
            desk,
            limits: gateway.limits.clone(),
            hits: Arc::clone(&gateway.hits),
        });
        drop(gateway);
        if is_http2 {
            Box::pin(serve_http2(stream, &served, leave)).await;
        } else {
            let overdue = served.activity.overdue(served.limits.exchange_timeout);
            tokio::select! {
                biased;
                () = Box::pin(serve_http1(stream, &served, leave)) => {}
                limit = overdue => {
                    if let Some(limit) = limit {
                        served.activity.hit(limit);
                    }
                }
            }
        }
    });
    if is_turned_away {
        let _ = tokio::time::timeout(TURNING_AWAY, served.as_mut()).await;
    } else {
        served.await;
    }
}

/// What the requests of one connection share.
struct Served {
    client: Client,
    requests: AtomicU64,
    refusal: Arc<Refusal>,
    activity: Arc<Activity>,
    closing: AtomicBool,
    /// There are too many: everything is refused, and by this the connection is ended.
    turned_away: Option<CancellationToken>,
    /// What is in force when something is asked.
    desk: Arc<Desk>,
    limits: Limits,
    hits: Arc<Hits>,
}

impl Served {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
        let turn = self.requests.fetch_add(1, Ordering::Relaxed);
        let http1 = request.version() != Version::HTTP_2;
        let fault = if http1 { self.refusal.of(turn) } else { None };
        let pace = PACE.try_with(Arc::clone).ok();
        let turned_away = self.turned_away.is_some();
        let arrival =
            Arrival { client: Some(self.client.clone()), fault, turned_away, busy: Busy::new(&self.activity), pace };
        let gateway = self.desk.gateway.load_full();
        let answering = AssertUnwindSafe(gateway.answer(arrival, request)).catch_unwind();
        let mut response = answering.await.unwrap_or_else(|_| gateway.internal_error());
        // A preflight is answered as ever, so that the browser asks what it may then read the answer to.
        if let Some(leave) = self.turned_away.as_ref().filter(|_| response.status() != StatusCode::NO_CONTENT) {
            self.closing.store(true, Ordering::Relaxed);
            leave.cancel();
        }
        let stays = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if http1 && !stays && (self.closing.load(Ordering::Relaxed) || fault.is_some()) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

async fn serve_http1(stream: Box<TlsStream<TcpStream>>, served: &Arc<Served>, drain: CancellationToken) {
    let limits = &served.limits;
    let stream = Stalling::new(stream, limits.write_timeout, Arc::clone(&served.hits));
    let mut io = Checked::new(stream, limits, Arc::clone(&served.refusal), Arc::clone(&served.activity));
    let _untaken = Untaken(Arc::clone(&served.activity));
    loop {
        let (stays, early) = match Box::pin(serve_for_a_while(io, served, &drain)).await {
            Ended::Closed => return,
            Ended::Rests(stays) => (stays, Bytes::new()),
            Ended::Switched(stays, early) => (stays, early),
        };
        io = stays;
        if let Some(tunnel) = served.activity.tunnel() {
            Box::pin(tunnel.run(io, early, drain)).await;
            return;
        }
        let draining = served.closing.load(Ordering::Relaxed) || drain.is_cancelled();
        let until = served.activity.idle_until(limits.idle_timeout).filter(|_| !draining);
        let stirred = tokio::select! {
            biased;
            stirred = io.stirred() => stirred,
            () = tokio::time::sleep_until(until.unwrap_or_else(|| Instant::now() + LAST_CHANCE)) => false,
            () = drain.cancelled(), if !draining => {
                served.closing.store(true, Ordering::Relaxed);
                tokio::time::timeout(LAST_CHANCE, io.stirred()).await.unwrap_or(false)
            }
        };
        if !stirred {
            let _ = io.shutdown().await;
            return;
        }
    }
}

/// Ends a WebSocket whose client left before the connection was its: it holds a place at the upstream, and through the
/// request's record the connection's own state, which would keep both for ever.
struct Untaken(Arc<Activity>);

impl Drop for Untaken {
    fn drop(&mut self) {
        drop(self.0.tunnel());
    }
}

/// How it goes on with an HTTP/1.1 connection.
enum Ended<T> {
    Closed,
    /// Nothing is asked on it for the moment.
    Rests(T),
    /// It is another protocol's from here on, of which the bytes were read already.
    Switched(T, Bytes),
}

/// Serves requests until the connection ends, becomes another protocol's, or rests. The library's part of a connection,
/// with its buffers, is most of what one takes; it is made anew when a resting one stirs.
async fn serve_for_a_while<T: AsyncRead + AsyncWrite + Unpin>(
    io: Checked<T>,
    served: &Arc<Served>,
    drain: &CancellationToken,
) -> Ended<Checked<T>> {
    let limits = &served.limits;
    // The library keeps the place for a request's work for as long as the connection lasts.
    let service = service_fn(|request| Box::pin(Arc::clone(served).answer(request)));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(limits.headers + 16)
        .max_buf_size((limits.head_bytes + 16 * 1024).max(64 * 1024))
        .serve_connection(TokioIo::new(io), service);
    let mut draining = served.closing.load(Ordering::Relaxed);
    let first = if draining { LAST_CHANCE } else { REST.min(limits.idle_timeout) };
    let mut idle = std::pin::pin!(tokio::time::sleep(first));
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(peer = ?served.client, %error, "connection ended");
                    return Ended::Closed;
                }
                if !served.activity.is_switched() {
                    return Ended::Closed;
                }
                let parts = connection.into_parts();
                return Ended::Switched(parts.io.into_inner(), parts.read_buf);
            }
            () = drain.cancelled(), if !draining => {
                draining = true;
                served.closing.store(true, Ordering::Relaxed);
                idle.as_mut().reset(Instant::now() + LAST_CHANCE);
            }
            () = idle.as_mut() => match served.activity.idle_until(limits.idle_timeout) {
                Some(_) if !draining && served.activity.rests(REST) => {
                    let parts = connection.into_parts();
                    let io = parts.io.into_inner();
                    let is_clean = io.is_at_rest() && parts.read_buf.is_empty();
                    return if is_clean { Ended::Rests(io) } else { Ended::Closed };
                }
                Some(later) if !draining => idle.as_mut().reset(later.min(Instant::now() + REST)),
                Some(_) | None => {
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                    idle.as_mut().reset(Instant::now() + limits.idle_timeout);
                }
            },
        }
    }
}

async fn serve_http2(stream: Box<TlsStream<TcpStream>>, served: &Arc<Served>, drain: CancellationToken) {
    let limits = &served.limits;
    let stream = Stalling::new(stream, limits.write_timeout, Arc::clone(&served.hits));
    let io = TokioIo::new(Counted::new(stream, limits));
    let service = service_fn(|request| Arc::clone(served).answer(request));
    let list_bytes = u32::try_from(limits.head_bytes.saturating_mul(2)).unwrap_or(u32::MAX);
    let streams = Streams {
        patience: limits.write_timeout,
        rate: limits.stream_rate,
        whole: limits.exchange_timeout,
        hits: Arc::clone(&served.hits),
    };
    let connection = http2::Builder::new(streams)
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(list_bytes)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_WINDOW as usize)
        .max_pending_accept_reset_streams(MOST_PENDING_RESETS)
        .max_local_error_reset_streams(MOST_ERROR_RESETS)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY)
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    // A client that agreed on HTTP/2 and then says nothing has as long as for a head.
    let mut idle = std::pin::pin!(tokio::time::sleep(limits.head_timeout));
    let mut leaving = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(peer = ?served.client, %error, "connection ended");
                }
                return;
            }
            () = drain.cancelled(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
                idle.as_mut().reset(Instant::now() + limits.idle_timeout);
            }
            () = idle.as_mut() => {
                let asked = served.requests.load(Ordering::Relaxed) > 0;
                match served.activity.idle_until(limits.idle_timeout).filter(|_| asked) {
                    Some(later) => idle.as_mut().reset(later),
                    // It never spoke the protocol at all, or was told to leave and does not.
                    None if !asked => return served.activity.hit(Limit::HeadTimeout),
                    None if leaving => return,
                    None => {
                        leaving = true;
                        connection.as_mut().graceful_shutdown();
                        idle.as_mut().reset(Instant::now() + LAST_CHANCE);
                    }
                }
            }
        }
    }
}
