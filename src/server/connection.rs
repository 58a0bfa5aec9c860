//! One connection: TLS, then HTTP/1.1 or HTTP/2 as agreed, until it is idle for too long or the server drains.

use std::{
    convert::Infallible,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use http::{HeaderValue, Request, Response, Version, header};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    frames::Counted,
    stall::Stalling,
    wire::{Checked, Refusal},
};
use crate::{
    body::Pace,
    gateway::{Activity, Answer, Arrival, Busy, Gateway},
    tls,
};

/// How long a kept HTTP/1.1 connection may still bring a request after the drain began.
const LAST_CHANCE: Duration = Duration::from_millis(500);
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

/// Runs each HTTP/2 stream as a task, which is dropped, and the stream reset, when its client is too slow.
#[derive(Clone, Debug)]
struct Streams {
    patience: Duration,
    rate: u64,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let pace = Pace::new(self.patience, self.rate);
        // It ends with its connection, whose task is waited for.
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = PACE.scope(Arc::clone(&pace), stream) => {}
                () = pace.too_slow() => {}
            }
        });
    }
}

/// Serves the connection `stream` from `peer` to its end.
pub(super) async fn serve(
    stream: std::net::TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    gateway: Arc<Gateway>,
    drain: CancellationToken,
) {
    let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) else { return };
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(gateway.limits.handshake_timeout, acceptor.accept(stream)).await;
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "no TLS handshake");
            return;
        }
        Err(_) => {
            tracing::debug!(%peer, "TLS handshake timed out");
            return;
        }
    };
    let served = Arc::new(Served {
        peer,
        requests: AtomicU64::new(0),
        refusal: Arc::new(Refusal::default()),
        activity: Activity::new(),
        closing: AtomicBool::new(false),
        gateway,
    });
    if stream.get_ref().1.alpn_protocol() == Some(tls::H2) {
        serve_http2(stream, &served, drain).await;
    } else {
        serve_http1(stream, &served, drain).await;
    }
}

/// What the requests of one connection share.
struct Served {
    peer: SocketAddr,
    requests: AtomicU64,
    refusal: Arc<Refusal>,
    activity: Arc<Activity>,
    closing: AtomicBool,
    gateway: Arc<Gateway>,
}

impl Served {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
        let turn = self.requests.fetch_add(1, Ordering::Relaxed);
        let http1 = request.version() != Version::HTTP_2;
        let fault = if http1 { self.refusal.of(turn) } else { None };
        let pace = PACE.try_with(Arc::clone).ok();
        let arrival = Arrival { client: Some(self.peer), fault, busy: Busy::new(&self.activity), pace };
        let answering = AssertUnwindSafe(self.gateway.answer(arrival, request)).catch_unwind();
        let mut response = answering.await.unwrap_or_else(|_| self.gateway.internal_error());
        if http1 && (self.closing.load(Ordering::Relaxed) || fault.is_some()) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

async fn serve_http1(stream: TlsStream<TcpStream>, served: &Arc<Served>, drain: CancellationToken) {
    let limits = &served.gateway.limits;
    let stream = Stalling::new(stream, limits.write_timeout);
    let io = TokioIo::new(Checked::new(stream, limits, Arc::clone(&served.refusal), Arc::clone(&served.activity)));
    let service = service_fn(|request| Arc::clone(served).answer(request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(limits.headers + 16)
        .max_buf_size((limits.head_bytes + 16 * 1024).max(64 * 1024))
        .serve_connection(io, service);
    let mut connection = std::pin::pin!(connection);
    let mut idle = std::pin::pin!(tokio::time::sleep(limits.idle_timeout));
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(peer = %served.peer, %error, "connection ended");
                }
                return;
            }
            () = drain.cancelled(), if !draining => {
                draining = true;
                served.closing.store(true, Ordering::Relaxed);
                idle.as_mut().reset(Instant::now() + LAST_CHANCE);
            }
            () = idle.as_mut() => match served.activity.idle_until(limits.idle_timeout) {
                Some(later) if !draining => idle.as_mut().reset(later),
                Some(_) | None => {
                    connection.as_mut().graceful_shutdown();
                    idle.as_mut().reset(Instant::now() + limits.idle_timeout);
                }
            },
        }
    }
}

async fn serve_http2(stream: TlsStream<TcpStream>, served: &Arc<Served>, drain: CancellationToken) {
    let limits = &served.gateway.limits;
    let io = TokioIo::new(Counted::new(Stalling::new(stream, limits.write_timeout), limits));
    let service = service_fn(|request| Arc::clone(served).answer(request));
    let list_bytes = u32::try_from(limits.head_bytes.saturating_mul(2)).unwrap_or(u32::MAX);
    let streams = Streams { patience: limits.write_timeout, rate: limits.stream_rate };
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
                    tracing::debug!(peer = %served.peer, %error, "connection ended");
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
                    // It was told to leave and does not, or never spoke the protocol at all.
                    None if leaving || !asked => return,
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
