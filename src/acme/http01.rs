//! What answers an ACME server over HTTP: the tokens of challenges under way, and nothing else.
//!
//! Source: RFC 8555, section 8.3.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{self, TcpStream},
    task::AbortHandle,
};

/// Connections at one time. The oldest gives way to a new one, so that idle ones keep nobody out.
const MOST_CONNECTIONS: usize = 64;
/// How long a connection may take in all, for its one request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 8 * 1024;
const MOST_HEADERS: usize = 32;
const PREFIX: &str = "/.well-known/acme-challenge/";
/// How long accepting pauses after it failed.
const PAUSE: Duration = Duration::from_millis(50);

/// By token, what the server expects to read.
#[derive(Clone, Debug, Default)]
pub(super) struct Tokens(Arc<Mutex<HashMap<String, String>>>);

/// A token that is answered until this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Presented {
    tokens: Tokens,
    token: String,
}

impl Tokens {
    /// Answers `token` with `authorization`, for as long as the answer is kept.
    pub(super) fn present(&self, token: &str, authorization: &str) -> Presented {
        self.all().insert(token.to_owned(), authorization.to_owned());
        Presented { tokens: self.clone(), token: token.to_owned() }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let token = request.uri().path().strip_prefix(PREFIX).filter(|_| is_read);
        let found = token.and_then(|token| self.all().get(token).cloned());
        let status = if found.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
        let mut response = Response::new(Full::from(found.unwrap_or_default()));
        *response.status_mut() = status;
        let kind = HeaderValue::from_static("application/octet-stream");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Presented {
    fn drop(&mut self) {
        self.tokens.all().remove(&self.token);
    }
}

/// Binds the address.
///
/// # Errors
/// The system's.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers whoever asks, for ever. What runs ends with the runtime.
pub(super) async fn serve(listener: TcpListener, tokens: Tokens) {
    let listener = match net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the listener for ACME challenges cannot be watched");
            return;
        }
    };
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
        connections.push_back(tokio::spawn(answer(stream, tokens.clone())).abort_handle());
    }
}

async fn answer(stream: TcpStream, tokens: Tokens) {
    let service = service_fn(move |request| {
        let response = tokens.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .header_read_timeout(PATIENCE)
        .max_headers(MOST_HEADERS)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // Who asks badly is no concern of anybody's.
    let _ = tokio::time::timeout(PATIENCE, connection).await;
}
