//! What is recorded of one request, and how it is written down.

use std::{
    io::{self, Write},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{headers::Client, route::Route};

/// What the gateway decided about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Permitted,
    Refused,
    Preflight,
}

/// Everything the log says of one request. No secrets, tags, bodies or query values.
#[derive(Debug)]
pub struct Access {
    pub arrived: SystemTime,
    pub started: Instant,
    pub request_id: String,
    pub method: String,
    pub path: String,
    pub protocol: &'static str,
    pub client: Option<Client>,
    pub user_agent: Option<String>,
    pub status: u16,
    pub route: Option<Arc<Route>>,
    pub account: Option<String>,
    pub user: Option<String>,
    pub roles: Vec<String>,
    pub signed: Option<&'static str>,
    pub decision: Decision,
    pub reason: Option<&'static str>,
    pub upstream: Option<Arc<str>>,
    pub upstream_time: Option<Duration>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// Whether the answer was handed over to its end.
    pub complete: bool,
}

impl Decision {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permitted => "permitted",
            Self::Refused => "refused",
            Self::Preflight => "preflight",
        }
    }
}

impl Access {
    /// Appends the record's line to `out`; `config` is the hash of the configuration in force.
    pub(super) fn print(&self, config: &str, out: &mut Vec<u8>) -> io::Result<()> {
        let arrived = OffsetDateTime::from(self.arrived);
        out.extend_from_slice(b"{\"timestamp\":\"");
        arrived.format_into(out, &Rfc3339).map_err(io::Error::other)?;
        out.push(b'"');
        text(out, "http.request.method", Some(&self.method))?;
        text(out, "url.path", Some(&self.path))?;
        number(out, "http.response.status_code", self.status.into());
        if let Some(client) = self.client {
            name(out, "client.address");
            write!(out, "\"{}\"", client.address)?;
            if let Some(port) = client.port {
                number(out, "client.port", port.into());
            }
        }
        text(out, "user_agent.original", self.user_agent.as_deref())?;
        text(out, "network.protocol.version", Some(self.protocol))?;
        number(out, "http.request.body.size", self.received_bytes);
        number(out, "http.response.body.size", self.sent_bytes);
        text(out, "countersign.request_id", Some(&self.request_id))?;
        if let Some(route) = &self.route {
            text(out, "countersign.route", Some(route.pattern.as_str()))?;
            text(out, "countersign.app", route.app.to_str().ok())?;
        }
        text(out, "countersign.account", self.account.as_deref())?;
        text(out, "countersign.user", self.user.as_deref())?;
        if !self.roles.is_empty() {
            name(out, "countersign.roles");
            serde_json::to_writer(&mut *out, &self.roles)?;
        }
        text(out, "countersign.signed", self.signed)?;
        text(out, "countersign.decision", Some(self.decision.as_str()))?;
        text(out, "countersign.reason", self.reason)?;
        text(out, "countersign.upstream", self.upstream.as_deref())?;
        milliseconds(out, "countersign.duration_ms", self.started.elapsed());
        if let Some(upstream) = self.upstream_time {
            milliseconds(out, "countersign.upstream_ms", upstream);
        }
        name(out, "countersign.complete");
        out.extend_from_slice(if self.complete { b"true" } else { b"false" });
        text(out, "countersign.config", Some(config))?;
        out.extend_from_slice(b"}\n");
        Ok(())
    }
}

fn name(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn text(out: &mut Vec<u8>, key: &str, value: Option<&str>) -> io::Result<()> {
    let Some(value) = value else { return Ok(()) };
    name(out, key);
    Ok(serde_json::to_writer(out, value)?)
}

fn number(out: &mut Vec<u8>, key: &str, value: u64) {
    name(out, key);
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn milliseconds(out: &mut Vec<u8>, key: &str, value: Duration) {
    let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    number(out, key, micros / 1000);
    out.push(b'.');
    // A leading 1 keeps the zeros behind it.
    let mut digits = itoa::Buffer::new();
    let thousandths = digits.format(1000 + micros % 1000).as_bytes();
    out.extend_from_slice(thousandths.get(1..).unwrap_or_default());
}
