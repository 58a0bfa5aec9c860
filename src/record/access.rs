//! What is recorded of one request, and how it is written down.

use std::{
    io::{self, Write as _},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderValue, Method, uri::PathAndQuery};
use opentelemetry::trace::TraceId;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::Line;
use crate::{
    headers::Client,
    identity::{AccountId, RoleId, UserId},
    json::print_text,
    route::Route,
    webhook::{Event, Outcome, Webhook},
};

/// Roles of one record of the audit log.
const MOST_ROLES: usize = 100;

/// What the gateway decided about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Permitted,
    Refused,
    Preflight,
    /// An event of Stripe's that is not taken, and answered as if it were.
    Dropped,
}

/// Everything the log says of one request. No secrets, tags, bodies or query values.
#[derive(Debug)]
pub struct Access {
    /// The hash of the configuration by which it is judged.
    pub config: Arc<str>,
    pub arrived: SystemTime,
    pub started: Instant,
    pub request_id: HeaderValue,
    /// `None` where no trace is recorded.
    pub trace_id: Option<TraceId>,
    /// `None` where the request has no reading.
    pub asked: Option<Asked>,
    pub protocol: &'static str,
    pub client: Option<Client>,
    pub user_agent: Option<HeaderValue>,
    pub status: u16,
    pub route: Option<Arc<Route>>,
    pub webhook: Option<Arc<Webhook>>,
    /// What Stripe signed, and what became of it.
    pub event: Option<Event>,
    pub outcome: Option<Outcome>,
    pub account: Option<AccountId>,
    pub user: Option<UserId>,
    pub roles: Vec<RoleId>,
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

/// The first line of a request.
#[derive(Debug)]
pub struct Asked {
    pub method: Method,
    /// `None` where it names an authority alone. Of its query nothing is written.
    pub target: Option<PathAndQuery>,
}

impl Decision {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permitted => "permitted",
            Self::Refused => "refused",
            Self::Preflight => "preflight",
            Self::Dropped => "dropped",
        }
    }
}

impl Line for Access {
    /// Names come with the punctuation around them, and what cannot need an escape is not looked at for one: 6,100
    /// instructions a line became 2,900.
    fn print(&self, out: &mut Vec<u8>) -> io::Result<()> {
        out.extend_from_slice(b"{\"timestamp\":\"");
        OffsetDateTime::from(self.arrived).format_into(out, &Rfc3339).map_err(io::Error::other)?;
        out.push(b'"');
        let (method, path) = self
            .asked
            .as_ref()
            .map_or(("", ""), |asked| (asked.method.as_str(), asked.target.as_ref().map_or("", PathAndQuery::path)));
        plain(out, ",\"http.request.method\":\"", method);
        escaped(out, ",\"url.path\":", path.as_bytes());
        number(out, ",\"http.response.status_code\":", self.status.into());
        if let Some(client) = &self.client {
            plain(out, ",\"client.address\":\"", client.text().to_str().unwrap_or_default());
            if let Some(port) = client.port {
                number(out, ",\"client.port\":", port.into());
            }
        }
        if let Some(agent) = &self.user_agent {
            escaped(out, ",\"user_agent.original\":", agent.as_bytes());
        }
        plain(out, ",\"network.protocol.version\":\"", self.protocol);
        number(out, ",\"http.request.body.size\":", self.received_bytes);
        number(out, ",\"http.response.body.size\":", self.sent_bytes);
        plain(out, ",\"countersign.request_id\":\"", self.request_id.to_str().unwrap_or_default());
        if let Some(trace) = self.trace_id {
            write!(out, ",\"countersign.trace_id\":\"{trace}\"")?;
        }
        if let Some(route) = &self.route {
            escaped(out, ",\"countersign.route\":", route.pattern.as_str().as_bytes());
            plain(out, ",\"countersign.app\":\"", route.app.to_str().unwrap_or_default());
        }
        if let Some(webhook) = &self.webhook {
            escaped(out, ",\"countersign.webhook\":", webhook.path.as_str().as_bytes());
        }
        if let Some(event) = &self.event {
            plain(out, ",\"countersign.event\":\"", event.id.as_str());
            plain(out, ",\"countersign.event_type\":\"", &event.kind);
            if let Some(account) = &event.account {
                plain(out, ",\"countersign.account\":\"", account);
            }
        }
        if let Some(outcome) = self.outcome {
            plain(out, ",\"countersign.outcome\":\"", outcome.as_str());
        }
        if let Some(account) = &self.account {
            plain(out, ",\"countersign.account\":\"", account.as_str());
        }
        if let Some(user) = &self.user {
            plain(out, ",\"countersign.user\":\"", user.as_str());
        }
        print_roles(&self.roles, ",\"countersign.roles\":[", out);
        if let Some(signed) = self.signed {
            plain(out, ",\"countersign.signed\":\"", signed);
        }
        plain(out, ",\"countersign.decision\":\"", self.decision.as_str());
        if let Some(reason) = self.reason {
            plain(out, ",\"countersign.reason\":\"", reason);
        }
        if let Some(upstream) = &self.upstream {
            escaped(out, ",\"countersign.upstream\":", upstream.as_bytes());
        }
        milliseconds(out, ",\"countersign.duration_ms\":", self.started.elapsed());
        if let Some(upstream) = self.upstream_time {
            milliseconds(out, ",\"countersign.upstream_ms\":", upstream);
        }
        out.extend_from_slice(b",\"countersign.complete\":");
        out.extend_from_slice(if self.complete { b"true" } else { b"false" });
        plain(out, ",\"countersign.config\":\"", &self.config);
        out.extend_from_slice(b"}\n");
        Ok(())
    }

    fn request(&self) -> Option<&Access> {
        Some(self)
    }
}

impl Access {
    /// Appends what the audit log says of the decision.
    pub(crate) fn print_decision(&self, out: &mut Vec<u8>) {
        let (method, path) = self.method_and_path();
        self.print_who(out);
        // A body can be signed with any number of them.
        let shown = self.roles.get(..MOST_ROLES).unwrap_or(&self.roles);
        print_roles(shown, ",\"roles\":[", out);
        if self.roles.len() > shown.len() {
            number(out, ",\"more_roles\":", (self.roles.len() - shown.len()) as u64);
        }
        if let Some(signed) = self.signed {
            plain(out, ",\"signed\":\"", signed);
        }
        plain(out, ",\"method\":\"", method);
        escaped(out, ",\"path\":", path.as_bytes());
        plain(out, ",\"decision\":\"", self.decision.as_str());
        if let Some(reason) = self.reason {
            plain(out, ",\"code\":\"", reason);
        }
        if let Some(upstream) = &self.upstream {
            escaped(out, ",\"upstream\":", upstream.as_bytes());
        }
        if let Some(client) = &self.client {
            plain(out, ",\"client\":\"", client.text().to_str().unwrap_or_default());
        }
        plain(out, ",\"config\":\"", &self.config);
    }

    /// What of it the audit log says of an event, to be recorded apart from the request.
    pub(crate) fn of_event(&self) -> Self {
        Self {
            config: Arc::clone(&self.config),
            arrived: self.arrived,
            started: self.started,
            request_id: self.request_id.clone(),
            asked: None,
            protocol: self.protocol,
            client: self.client.clone(),
            user_agent: None,
            status: 0,
            route: None,
            webhook: self.webhook.clone(),
            event: self.event.clone(),
            outcome: None,
            account: None,
            user: None,
            roles: Vec::new(),
            signed: self.signed,
            decision: Decision::Permitted,
            reason: None,
            upstream: None,
            upstream_time: None,
            trace_id: None,
            received_bytes: self.received_bytes,
            sent_bytes: 0,
            complete: false,
        }
    }

    /// Appends what the audit log says of an event, or of a refusal of what Stripe signed.
    pub(crate) fn print_event(&self, out: &mut Vec<u8>) {
        plain(out, ",\"request_id\":\"", self.request_id.to_str().unwrap_or_default());
        if let Some(webhook) = &self.webhook {
            escaped(out, ",\"webhook\":", webhook.path.as_str().as_bytes());
        }
        if let Some(event) = &self.event {
            plain(out, ",\"event\":\"", event.id.as_str());
            plain(out, ",\"event_type\":\"", &event.kind);
            if let Some(account) = &event.account {
                plain(out, ",\"account\":\"", account);
            }
            out.extend_from_slice(if event.livemode { b",\"livemode\":true" } else { b",\"livemode\":false" });
        }
        if let Some(outcome) = self.outcome {
            plain(out, ",\"outcome\":\"", outcome.as_str());
        }
        if let Some(reason) = self.reason {
            plain(out, ",\"code\":\"", reason);
        }
        if let Some(client) = &self.client {
            plain(out, ",\"client\":\"", client.text().to_str().unwrap_or_default());
        }
        plain(out, ",\"config\":\"", &self.config);
    }

    /// Appends what the audit log says of an exchange that was ended while it was under way.
    pub(crate) fn print_ended(&self, out: &mut Vec<u8>) {
        self.print_who(out);
        if let Some(reason) = self.reason {
            plain(out, ",\"code\":\"", reason);
        }
    }

    /// Which request, on which route, and who is proven to have sent it.
    fn print_who(&self, out: &mut Vec<u8>) {
        plain(out, ",\"request_id\":\"", self.request_id.to_str().unwrap_or_default());
        if let Some(route) = &self.route {
            escaped(out, ",\"route\":", route.pattern.as_str().as_bytes());
            plain(out, ",\"app\":\"", route.app.to_str().unwrap_or_default());
        }
        if let Some(account) = &self.account {
            plain(out, ",\"account\":\"", account.as_str());
        }
        if let Some(user) = &self.user {
            plain(out, ",\"user\":\"", user.as_str());
        }
    }

    fn method_and_path(&self) -> (&str, &str) {
        self.asked
            .as_ref()
            .map_or(("", ""), |asked| (asked.method.as_str(), asked.target.as_ref().map_or("", PathAndQuery::path)))
    }
}

fn print_roles(roles: &[RoleId], name: &str, out: &mut Vec<u8>) {
    if roles.is_empty() {
        return;
    }
    out.extend_from_slice(name.as_bytes());
    for (place, role) in roles.iter().enumerate() {
        plain(out, if place == 0 { "\"" } else { ",\"" }, role.as_str());
    }
    out.push(b']');
}

/// `name`, and `value`, which cannot need an escape: an id, a token, a word of ours. Its opening quote comes with `name`.
pub(super) fn plain(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(value.as_bytes());
    out.push(b'"');
}

/// `name`, and `value` in quotes, with escapes where it needs them.
pub(super) fn escaped(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    // Counted, for that is done many bytes at a time.
    let special = |b: &&u8| **b < 0x20 || **b >= 0x7f || **b == b'"' || **b == b'\\';
    if value.iter().filter(special).count() > 0 {
        return print_text(&String::from_utf8_lossy(value), out);
    }
    out.push(b'"');
    out.extend_from_slice(value);
    out.push(b'"');
}

pub(super) fn number(out: &mut Vec<u8>, name: &str, value: u64) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

pub(super) fn milliseconds(out: &mut Vec<u8>, name: &str, value: Duration) {
    let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    number(out, name, micros / 1000);
    out.push(b'.');
    // A leading 1 keeps the zeros behind it.
    let mut digits = itoa::Buffer::new();
    let thousandths = digits.format(1000 + micros % 1000).as_bytes();
    out.extend_from_slice(thousandths.get(1..).unwrap_or_default());
}
