//! What the spans of a request say.
//!
//! Who asks is not in them, nor are a query, a header or a body: they leave for a system whose readers are others than those
//! of the logs, where the request's id leads.
//!
//! Source: OpenTelemetry, "Semantic conventions for HTTP spans", <https://opentelemetry.io/docs/specs/semconv/http/http-spans/>.

use std::{
    borrow::Cow,
    sync::{Arc, LazyLock},
};

use http::{Method, uri::PathAndQuery};
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::{Answered, Asked, Server, Trace};
use crate::{record::Access, version};

/// The longest text of a span, in bytes, so that those that wait have a bound.
const LONGEST: usize = 1024;
/// The method where it is none that the conventions know, and whoever asks could choose it.
const OTHER: &str = "_OTHER";

static SCOPE: LazyLock<InstrumentationScope> =
    LazyLock::new(|| InstrumentationScope::builder("countersign").with_version(version::RELEASE).build());

/// The gateway's own span: from the arrival to the end of the answer.
pub(super) fn of_request(trace: &Trace, record: &Access) -> SpanData {
    let (method, path) = record
        .asked
        .as_ref()
        .map_or((OTHER, ""), |asked| (known(&asked.method), asked.target.as_ref().map_or("", PathAndQuery::path)));
    let word = if method == OTHER { "HTTP" } else { method };
    let route = record.route.as_ref().map(|route| bounded(route.pattern.as_str()));
    let name = route.map_or(Cow::Borrowed(word), |route| Cow::Owned(format!("{word} {route}")));
    let mut attributes = vec![
        KeyValue::new("http.request.method", method),
        KeyValue::new("url.scheme", "https"),
        KeyValue::new("url.path", bounded(path).to_owned()),
        KeyValue::new("http.response.status_code", i64::from(record.status)),
        KeyValue::new("network.protocol.version", record.protocol),
        KeyValue::new("http.request.body.size", number(record.received_bytes)),
        KeyValue::new("http.response.body.size", number(record.sent_bytes)),
        KeyValue::new("countersign.request_id", record.request_id.to_str().unwrap_or_default().to_owned()),
        KeyValue::new("countersign.decision", record.decision.as_str()),
        KeyValue::new("countersign.complete", record.complete),
    ];
    attributes.extend(route.map(|route| KeyValue::new("http.route", route.to_owned())));
    let app = record.route.as_ref().and_then(|route| route.app.to_str().ok());
    attributes.extend(app.map(|app| KeyValue::new("countersign.app", app.to_owned())));
    attributes.extend(record.reason.map(|reason| KeyValue::new("countersign.reason", reason)));
    // A refusal is no error of the gateway's.
    let failed =
        (record.status >= 500).then(|| record.reason.map_or(Cow::Owned(record.status.to_string()), Cow::Borrowed));
    let status = mark(failed, &mut attributes);
    SpanData {
        span_context: context(trace, trace.own.span),
        parent_span_id: trace.parent.unwrap_or(SpanId::INVALID),
        parent_span_is_remote: trace.parent.is_some(),
        span_kind: SpanKind::Server,
        name,
        start_time: record.arrived,
        end_time: record.arrived + record.started.elapsed(),
        attributes,
        status,
        ..empty()
    }
}

/// The span of asking the service: to the head of its answer.
pub(super) fn of_asking(trace: &Trace, asked: &Asked, record: &Access) -> SpanData {
    let method = record.asked.as_ref().map_or(OTHER, |asked| known(&asked.method));
    let mut attributes = vec![KeyValue::new("http.request.method", method)];
    attributes.extend(record.upstream.as_ref().map(|name| KeyValue::new("countersign.upstream", Arc::clone(name))));
    if let Some(Server { scheme, address, port }) = &asked.server {
        attributes.push(KeyValue::new("server.address", address.clone()));
        attributes.extend(port.map(|port| KeyValue::new("server.port", i64::from(port))));
        if let (Some(scheme), Some(port)) = (scheme, port) {
            attributes.push(KeyValue::new("url.full", format!("{scheme}://{address}:{port}{}", asked.path)));
        }
    }
    let answer = asked.answered.and_then(|answered| answered.status);
    attributes.extend(answer.map(|status| KeyValue::new("http.response.status_code", i64::from(status.as_u16()))));
    let failed = match answer {
        Some(status) if status.is_client_error() || status.is_server_error() => {
            Some(Cow::Owned(status.as_str().to_owned()))
        }
        Some(_) => None,
        None => Some(Cow::Borrowed(record.reason.unwrap_or("client_gone"))),
    };
    let status = mark(failed, &mut attributes);
    let start_time = record.arrived + asked.began.saturating_duration_since(record.started);
    let lasted = asked.answered.map_or_else(|| asked.began.elapsed(), |Answered { after, .. }| after);
    SpanData {
        span_context: context(trace, asked.span),
        parent_span_id: trace.own.span,
        span_kind: SpanKind::Client,
        name: Cow::Borrowed(if method == OTHER { "HTTP" } else { method }),
        start_time,
        end_time: start_time + lasted,
        attributes,
        status,
        ..empty()
    }
}

/// As much of `text` as a span has room for.
pub(super) fn bounded(text: &str) -> &str {
    let longest = text.len().min(LONGEST);
    (0..=longest).rev().find_map(|end| text.get(..end)).unwrap_or_default()
}

/// Says what failed, if something did.
fn mark(failed: Option<Cow<'static, str>>, attributes: &mut Vec<KeyValue>) -> Status {
    let Some(failed) = failed else { return Status::Unset };
    attributes.push(KeyValue::new("error.type", failed));
    Status::error("")
}

fn context(trace: &Trace, span: SpanId) -> SpanContext {
    SpanContext::new(trace.own.trace, span, TraceFlags::SAMPLED, false, TraceState::NONE)
}

/// A span that says nothing.
pub(super) fn empty() -> SpanData {
    SpanData {
        span_context: SpanContext::NONE,
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: Cow::Borrowed(""),
        start_time: std::time::UNIX_EPOCH,
        end_time: std::time::UNIX_EPOCH,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: SCOPE.clone(),
    }
}

/// A method that the conventions know.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => OTHER,
    }
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(bounded("/short"), "/short");
        let long = format!("{}é", "x".repeat(LONGEST - 1));
        assert_eq!(bounded(&long).len(), LONGEST - 1);
        assert_eq!(bounded(&"x".repeat(5000)).len(), LONGEST);
    }
}
