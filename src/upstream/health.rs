//! Asking servers now and again whether they are well.

use std::{io, sync::Arc, time::Duration};

use http::{HeaderValue, Request, header};
use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::Instant;

use super::{
    Shared,
    dial::{Dialer, Speaking},
};

/// How servers are asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The path of the question, which an answer of 200 to 399 says yes to.
    pub path: http::uri::PathAndQuery,
    /// How often, give or take a tenth, so that many gateways do not ask at once.
    pub every: Duration,
    /// How long an answer may take, connecting included.
    pub timeout: Duration,
    /// Answers in a row that make a server well again.
    pub healthy: u32,
    /// Failures in a row that make it unwell.
    pub unhealthy: u32,
}

const AGENT: HeaderValue = HeaderValue::from_static("countersign-health");

/// Asks every server of `shared` for ever, if it has a [`Check`].
pub(super) async fn watch(shared: Arc<Shared>) {
    let Some(check) = &shared.settings.health else { return };
    let watching = shared.dialers.iter().enumerate().map(|(server, dialer)| watch_one(&shared, check, server, dialer));
    futures_util::future::join_all(watching).await;
}

async fn watch_one(shared: &Shared, check: &Check, server: usize, dialer: &Dialer) {
    let mut row = Row::default();
    // The first question comes soon, but not of all servers at once.
    tokio::time::sleep(check.every.min(Duration::from_secs(1)).mul_f64(0.1 * fastrand::f64())).await;
    loop {
        let began = Instant::now();
        let asked = tokio::time::timeout(check.timeout, ask(check, dialer)).await;
        let asked = asked.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        if let Some(is_healthy) = row.add(asked.is_ok(), check)
            && shared.servers.note_health(server, is_healthy)
        {
            let (upstream, server) = (&*shared.settings.name, &dialer.origin);
            match asked {
                Ok(()) => tracing::info!(upstream, %server, "a server is well again"),
                Err(reason) => {
                    tracing::warn!(upstream, %server, %reason, "a server is left out: it fails its health checks");
                }
            }
        }
        let every = check.every.mul_f64(0.9 + 0.2 * fastrand::f64());
        tokio::time::sleep_until(began + every).await;
    }
}

/// How many checks in a row ended alike.
#[derive(Debug, Default)]
struct Row {
    is_good: bool,
    length: u32,
}

impl Row {
    /// What is known of the server after one more check, if the row is long enough to say.
    fn add(&mut self, is_good: bool, check: &Check) -> Option<bool> {
        self.length = if self.is_good == is_good { self.length.saturating_add(1) } else { 1 };
        self.is_good = is_good;
        let enough = if is_good { check.healthy } else { check.unhealthy };
        (self.length >= enough).then_some(is_good)
    }
}

async fn ask(check: &Check, dialer: &Dialer) -> io::Result<()> {
    let stream = dialer.dial(Speaking::Any).await?;
    let is_http2 = stream.is_http2;
    let mut request = Request::get(check.path.as_str()).header(header::USER_AGENT, AGENT);
    if is_http2 {
        let scheme = dialer.origin.protocol.scheme();
        request = request.uri(format!("{scheme}://{}{}", dialer.authority, check.path));
    } else {
        request = request.header(header::HOST, &dialer.host);
    }
    let request = request.body(Empty::<bytes::Bytes>::new()).map_err(io::Error::other)?;
    let io = TokioIo::new(stream);
    let status = if is_http2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(io::Error::other)?;
        // It ends with its sender.
        tokio::spawn(connection);
        sender.send_request(request).await
    } else {
        let (mut sender, connection) = http1::handshake(io).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    let status = status.map_err(io::Error::other)?.status();
    if (200..400).contains(&status.as_u16()) { Ok(()) } else { Err(io::Error::other(format!("it answered {status}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_checks_decides() {
        let check = Check {
            path: "/".parse().unwrap(),
            every: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            healthy: 2,
            unhealthy: 3,
        };
        let mut row = Row::default();
        let said: Vec<_> =
            [false, false, false, true, false, true, true, true].map(|good| row.add(good, &check)).into();
        assert_eq!(said, [None, None, Some(false), None, None, None, Some(true), Some(true)]);
    }
}
