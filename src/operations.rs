//! The operations listener: whether the gateway is alive and ready, and what it does, for those who run it.
//!
//! Plain HTTP on an address of its own, apart from the workers, so that it answers while they are busy. It knows three paths
//! and takes nothing but GET and HEAD.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, OnceLock},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net, task::AbortHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    acme,
    delivery::Gauge,
    inbox::Condition,
    reload::Status,
    server::{House, Stop},
};

mod metrics;
mod process;
mod readiness;

/// Connections at one time. The oldest gives way to a new one, so that slow ones keep nobody out.
const MOST_CONNECTIONS: usize = 64;
/// How long a request's head may take, and a whole connection may last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const AGE: Duration = Duration::from_secs(60);
/// How long accepting pauses after it failed.
const PAUSE: Duration = Duration::from_millis(50);

/// What is told of the gateway.
#[derive(Debug)]
pub struct Observed {
    pub house: Arc<House>,
    pub status: Arc<Status>,
    /// How obtaining the certificate goes; `None`: it is from files.
    pub acme: Option<acme::Status>,
    /// How the store of events does, and how delivering them goes; `None`: no events are kept.
    pub mail: Option<(Arc<Condition>, Gauge)>,
}

/// The listener's thread.
#[derive(Debug)]
pub struct Operations {
    address: SocketAddr,
    state: Arc<State>,
    end: CancellationToken,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    stop: Stop,
    /// Set once the gateway has started.
    observed: OnceLock<Observed>,
}

impl Operations {
    /// Starts answering on `listener`, at first that the gateway is starting; `stop` is the gateway's.
    ///
    /// # Errors
    /// The system's, if there is no thread or the listener cannot be watched.
    pub fn start(listener: TcpListener, stop: &Stop) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let state = Arc::new(State { stop: stop.clone(), observed: OnceLock::new() });
        let end = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let listener = net::TcpListener::from_std(listener)?;
        drop(guard);
        let (serving, ending) = (Arc::clone(&state), end.clone());
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, serving) => {}
                    () = ending.cancelled() => {}
                }
            });
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("operations".into()).spawn(serve)?;
        Ok(Self { address, state, end, thread })
    }

    /// Tells of `observed` from now on.
    pub fn observe(&self, observed: Observed) {
        // The first one stays: there is one gateway.
        let _ = self.state.observed.set(observed);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it.
    pub fn finish(self) {
        self.end.cancel();
        if self.thread.join().is_err() {
            tracing::error!("the operations listener panicked");
        }
    }
}

async fn accept(listener: net::TcpListener, state: Arc<State>) {
    let mut connections = VecDeque::<AbortHandle>::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= MOST_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let state = Arc::clone(&state);
        // It ends with the runtime.
        let serving = tokio::spawn(async move {
            let answer = |request: Request<Incoming>| {
                let response = state.answer(&request);
                async move { Ok::<_, Infallible>(response) }
            };
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            let _ = tokio::time::timeout(AGE, connection).await;
        });
        connections.push_back(serving.abort_handle());
    }
}

impl State {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n".to_owned());
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/livez" => plain(StatusCode::OK, "alive\n".to_owned()),
            "/readyz" => {
                let readiness = readiness::of(&self.stop, self.observed.get());
                let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                plain(status, readiness.to_string())
            }
            "/metrics" => match metrics::text(self.observed.get()) {
                Ok(text) => {
                    let mut response = plain(StatusCode::OK, text);
                    response.headers_mut().insert(header::CONTENT_TYPE, metrics::CONTENT_TYPE);
                    response
                }
                Err(error) => {
                    tracing::error!(%error, "the metrics cannot be written");
                    plain(StatusCode::INTERNAL_SERVER_ERROR, String::new())
                }
            },
            _ => plain(StatusCode::NOT_FOUND, "here are /livez, /readyz and /metrics\n".to_owned()),
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
