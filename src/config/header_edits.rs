//! The headers that a route sets and removes.

use std::collections::HashSet;

use http::{HeaderName, HeaderValue};

use super::{
    mask::{looks_secret, quoted},
    reference,
    section::{Item, Section},
};
use crate::{headers, route::HeaderEdits};

/// Which way the headers go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Request,
    Response,
}

impl Direction {
    fn key(self) -> &'static str {
        match self {
            Self::Request => "request_headers",
            Self::Response => "response_headers",
        }
    }

    fn pattern(self) -> &'static str {
        match self {
            Self::Request => "routes.request_headers",
            Self::Response => "routes.response_headers",
        }
    }

    fn set_pattern(self) -> &'static str {
        match self {
            Self::Request => "routes.request_headers.set",
            Self::Response => "routes.response_headers.set",
        }
    }
}

/// The edits of `route` in one direction.
pub(super) fn edits(route: &Section<'_>, direction: Direction) -> Option<HeaderEdits> {
    let mut edits = HeaderEdits::default();
    let Some(item) = route.item(direction.key()) else { return Some(edits) };
    let section = item.section(direction.pattern())?;
    let mut seen = HashSet::new();
    let mut complete = true;
    if let Some(set) = section.item("set") {
        let names = set.section(direction.set_pattern()).map(|set| set.names());
        complete &= names.is_some();
        for (name, item) in names.unwrap_or_default() {
            let name = fresh(&name, &item, &mut seen, Place::Key);
            let value = name.as_ref().and_then(|name| literal(name, &item));
            complete &= value.is_some();
            edits.set.extend(name.zip(value));
        }
    }
    if let Some(secret) = section.item("secret").filter(|_| direction == Direction::Request) {
        let names = secret.section("routes.request_headers.secret").map(|secret| secret.names());
        complete &= names.is_some();
        for (name, item) in names.unwrap_or_default() {
            let name = fresh(&name, &item, &mut seen, Place::Key);
            let value = secret_value(&item);
            complete &= value.is_some() && name.is_some();
            edits.set.extend(name.zip(value));
        }
    }
    if let Some(remove) = section.item("remove") {
        let items = remove.list("remove = [\"X-Debug\"]");
        complete &= items.is_some();
        for item in items.unwrap_or_default() {
            let name = item.text().and_then(|name| fresh(name, &item, &mut seen, Place::Value));
            complete &= name.is_some();
            edits.remove.extend(name);
        }
    }
    complete.then_some(edits)
}

/// Where a header's name stands.
#[derive(Clone, Copy)]
enum Place {
    Key,
    Value,
}

/// A header name that a route may touch and has not touched yet.
fn fresh(text: &str, item: &Item<'_>, seen: &mut HashSet<HeaderName>, place: Place) -> Option<HeaderName> {
    let error = |message: &str, suggestion| match place {
        Place::Key => item.key_error(message, Some(suggestion)),
        Place::Value => item.error(message, Some(suggestion)),
    };
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        error(&format!("{} is not a header name", quoted(text)), "a header name has letters, digits and hyphens");
        return None;
    };
    if let Some(reason) = reserved(&name) {
        error(&format!("{} is not for a route to edit", quoted(text)), reason);
        return None;
    }
    if !seen.insert(name.clone()) {
        error(
            &format!("{} is edited twice", quoted(text)),
            "keep one; upper and lower case are the same in header names",
        );
        return None;
    }
    Some(name)
}

/// Why a header is the gateway's own, if it is. Many servers read `_` and `.` in a name as `-`.
fn reserved(name: &HeaderName) -> Option<&'static str> {
    let folded = name.as_str().replace(['_', '.', '~'], "-");
    let reason = match folded.as_str() {
        "host" => "it is the upstream's own; see the upstream's `servers`",
        "content-length" | "transfer-encoding" => "framing is the gateway's own, or requests could be smuggled",
        "stripe-signature" => "the signature ends here; the upstream gets `Countersign-*` headers in its place",
        "x-request-id" | "traceparent" => "the gateway sets it, so that both sides' logs agree",
        _ if folded.starts_with("countersign-") => {
            "it tells the upstream who is proven to ask; nothing else may set it"
        }
        _ if folded.starts_with("x-forwarded-") || folded == "forwarded" => "the gateway sets it from the connection",
        _ if folded.starts_with("access-control-") => {
            "cross-origin access is the gateway's own; see the docs on browsers"
        }
        "set-cookie" => "a UI extension's requests carry no cookies, and answers set none",
        _ if headers::is_ours(&folded) => "it belongs to one connection, or to the gateway, and does not go on",
        _ => return None,
    };
    Some(reason)
}

fn literal(name: &HeaderName, item: &Item<'_>) -> Option<HeaderValue> {
    let Some(text) = item.as_text() else {
        item.error(&format!("expected a string, found {}", item.kind()), Some("put the value in quotes"));
        return None;
    };
    if [http::header::AUTHORIZATION, http::header::COOKIE].contains(name) || looks_secret(text) {
        item.error(
            &format!("{} holds a secret, which is not written into the configuration", quoted(name.as_str())),
            Some("write it as `secret` in place of `set`: secret = { Authorization = { file = \"…\" } }"),
        );
        return None;
    }
    value(text)
        .map_err(|message| item.error(&format!("the header's value {message}"), Some("write printable ASCII")))
        .ok()
}

fn secret_value(item: &Item<'_>) -> Option<HeaderValue> {
    let secret = reference::read(item, "routes.request_headers.secret.NAME")?;
    let mut value = match value(&secret.text) {
        Ok(value) if !value.is_empty() => value,
        Ok(_) => {
            secret
                .item
                .error(&format!("{} is empty", secret.origin), Some("write the whole value of the header there"));
            return None;
        }
        Err(message) => {
            let suggestion = "write it without a line feed: printf %s \"$VALUE\" > FILE";
            secret.item.error(&format!("{} {message}", secret.origin), Some(suggestion));
            return None;
        }
    };
    value.set_sensitive(true);
    Some(value)
}

/// A header value: printable ASCII, with white space only inside.
fn value(text: &str) -> Result<HeaderValue, &'static str> {
    if text.ends_with(['\n', '\r']) {
        return Err("ends with a line feed");
    }
    if text.trim() != text {
        return Err("begins or ends with white space");
    }
    if !text.bytes().all(|b| b == b' ' || b == b'\t' || b.is_ascii_graphic()) {
        return Err("holds a character that a header must not");
    }
    HeaderValue::from_str(text).map_err(|_| "holds a character that a header must not")
}
