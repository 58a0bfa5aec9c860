//! Which headers pass, in which direction, and which are ours.

use std::borrow::Cow;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, Entry},
    uri::PathAndQuery,
};

use crate::{
    auth::Principal,
    path::CanonicalPath,
    route::{HeaderEdits, Route},
};

mod forwarded;
mod location;

use location::{Location, own_path};

/// Stripe's signature, or ours in Stripe's form on what is delivered.
pub use crate::auth::STRIPE_SIGNATURE;
pub use forwarded::{Client, Proxies};

/// The proven user, for the upstream.
pub const USER: HeaderName = HeaderName::from_static("countersign-user");
/// The proven account.
pub const ACCOUNT: HeaderName = HeaderName::from_static("countersign-account");
/// The app whose signature it was.
pub const APP: HeaderName = HeaderName::from_static("countersign-app");
/// The proven roles' ids, separated by commas.
pub const ROLES: HeaderName = HeaderName::from_static("countersign-roles");
/// What the signature covers.
pub const SIGNED: HeaderName = HeaderName::from_static("countersign-signed");
/// The request's id, towards both sides.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of the event that is delivered.
pub const EVENT: HeaderName = HeaderName::from_static("countersign-event");
/// The id of the delivery, the same over all its attempts.
pub const DELIVERY: HeaderName = HeaderName::from_static("countersign-delivery");
/// Which attempt it is, from 1.
pub const ATTEMPT: HeaderName = HeaderName::from_static("countersign-attempt");
/// As which program events are delivered.
pub const PRODUCT: HeaderValue = HeaderValue::from_static(concat!("Countersign/", env!("CARGO_PKG_VERSION")));

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The trace that a request belongs to.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const HTTPS: HeaderValue = HeaderValue::from_static("https");

/// What the upstream is told beside the client's own headers.
#[derive(Debug)]
pub struct Statement<'s> {
    pub principal: &'s Principal,
    pub app: &'s HeaderValue,
    pub request_id: HeaderValue,
    pub traceparent: HeaderValue,
    pub client: HeaderValue,
    /// The name the client asked for.
    pub host: Option<HeaderValue>,
}

/// The headers of the request to the upstream: the client's own less those that belong to its connection, to its
/// identity or to other gateways, the route's edits, and last ours, so that nothing can stand in their place.
pub fn outbound(inbound: &HeaderMap, edits: &HeaderEdits, ours: &Statement<'_>) -> HeaderMap {
    let nominated = nominated(inbound);
    let mut outbound = HeaderMap::with_capacity(inbound.len() + 12);
    for (name, value) in inbound {
        if passes(name.as_str()) && !nominated.iter().any(|other| other == name) {
            outbound.append(name, value.clone());
        }
    }
    for name in &edits.remove {
        outbound.remove(name);
    }
    for (name, value) in &edits.set {
        outbound.insert(name, value.clone());
    }
    let id = |text: &str| HeaderValue::try_from(text).ok();
    let mut put = |name: HeaderName, value: Option<HeaderValue>| match value {
        Some(value) => drop(outbound.insert(name, value)),
        None => drop(outbound.remove(name)),
    };
    put(USER, ours.principal.user().and_then(|user| id(user.as_str())));
    put(ACCOUNT, id(ours.principal.account().as_str()));
    put(APP, Some(ours.app.clone()));
    put(ROLES, roles(ours.principal));
    put(SIGNED, Some(HeaderValue::from_static(ours.principal.signed().as_str())));
    put(REQUEST_ID, Some(ours.request_id.clone()));
    put(TRACEPARENT, Some(ours.traceparent.clone()));
    put(FORWARDED_FOR, Some(ours.client.clone()));
    put(FORWARDED_PROTO, Some(HTTPS));
    put(FORWARDED_HOST, ours.host.clone());
    outbound
}

/// Makes the headers of an upstream's answer fit for the client: without those of its connection, its cookies, its
/// word on cross-origin access and on identities; a `Location` that names a server for which `is_upstream` holds
/// (scheme if given, host, port if given) becomes the gateway's own path. `keep_length` for answers to `HEAD`, which have
/// a length but no body.
pub fn inbound(
    headers: &mut HeaderMap,
    route: &Route,
    is_upstream: impl Fn(Option<&str>, &str, Option<u16>) -> bool,
    keep_length: bool,
) {
    let nominated = nominated(headers);
    let keep_length = keep_length && has_one_length(headers);
    let gone: Vec<HeaderName> = headers
        .keys()
        .filter(|name| nominated.contains(name) || !answer_passes(name.as_str(), keep_length))
        .cloned()
        .collect();
    for name in gone {
        headers.remove(name);
    }
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let mut values = headers.get_all(&name).iter();
        let Some(value) = values.next() else { continue };
        if values.next().is_some() {
            // Which of them a client follows is anyone's guess.
            headers.remove(name);
            continue;
        }
        match Location::of(value.as_bytes(), &is_upstream) {
            Location::Elsewhere => {}
            Location::Own(path) => drop(headers.insert(name, own_path(path, route))),
            Location::Unreadable => drop(headers.remove(name)),
        }
    }
    for name in &route.response_headers.remove {
        headers.remove(name);
    }
    for (name, value) in &route.response_headers.set {
        headers.insert(name, value.clone());
    }
}

fn has_one_length(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let plain = |length: &HeaderValue| !length.is_empty() && length.as_bytes().iter().all(u8::is_ascii_digit);
    lengths.next().is_some_and(plain) && lengths.next().is_none()
}

/// Marks what proves somebody's right, so that nobody prints it, and HTTP/2 to an upstream keeps it in no table (RFC 7541, section 7.1.3).
pub fn hide(headers: &mut HeaderMap) {
    for name in [STRIPE_SIGNATURE, header::AUTHORIZATION] {
        if let Entry::Occupied(mut values) = headers.entry(name) {
            for value in values.iter_mut() {
                value.set_sensitive(true);
            }
        }
    }
}

/// Whether a header that is a list has `token` among its elements.
pub fn lists(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let mut tokens = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    tokens.any(|found| found.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// Whether a name is set by the gateway alone, so that no configuration may touch it.
pub fn is_ours(name: &str) -> bool {
    let reserved = ["host", "content-length", "transfer-encoding", "stripe-signature", "x-request-id", "traceparent"];
    reserved.contains(&name)
        || hop_by_hop(name)
        || ["countersign-", "x-forwarded-", "access-control-"].iter().any(|prefix| name.starts_with(prefix))
}

/// The names that `Connection` fields declare to be of this connection only. What says how the body is to be read is none,
/// for by that it was verified.
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let mut names = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        for name in value.as_bytes().split(|b| *b == b',') {
            let name = name.trim_ascii();
            let dull = name.eq_ignore_ascii_case(b"keep-alive") || name.eq_ignore_ascii_case(b"close");
            let dull = dull || name.get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"content-"));
            if !dull && let Ok(name) = HeaderName::from_bytes(name) {
                names.push(name);
            }
        }
    }
    names
}

/// Whether a client's header goes on, by its lower-case name.
fn passes(name: &str) -> bool {
    // A name with other characters reads as one of ours to servers that fold them (CGI, WSGI, PHP).
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return false;
    }
    // Of 40 comparisons of text for each header that goes on, one or two are left.
    let begins = |prefix: &str| name.as_bytes().first() == prefix.as_bytes().first() && name.starts_with(prefix);
    let dropped = match name {
        // Of framing and credentials.
        "host"
        | "content-length"
        | "expect"
        | "cookie"
        | "cookie2"
        | "authorization"
        | "stripe-signature"
        // Of identity and address.
        | "forwarded"
        | "via"
        | "proxy"
        | "proxy-user"
        | "sm-user"
        | "client-ip"
        | "x-client-ip"
        | "x-real-ip"
        | "true-client-ip"
        | "x-true-client-ip"
        | "x-cluster-client-ip"
        | "x-originating-ip"
        | "x-proxyuser-ip"
        | "fastly-client-ip"
        | "x-azure-clientip"
        | "x-azure-socketip"
        | "x-appengine-user-ip"
        | "x-host"
        | "x-forward-for"
        | "x-forwarder-for"
        | "x-forward-host"
        | "x-user"
        | "x-username"
        | "x-user-id"
        | "x-userid"
        | "x-user-name"
        | "x-user-email"
        | "x-user-role"
        | "x-user-roles"
        | "x-user-groups"
        | "x-userinfo"
        | "x-email"
        | "x-groups"
        | "x-roles"
        | "x-account-id"
        | "x-proxy-user"
        | "x-id-token"
        | "x-jwt-assertion"
        | "x-credential-identifier"
        | "x-scheme"
        | "x-url-scheme"
        | "x-protocol"
        | "front-end-https"
        | "fly-client-ip"
        | "wl-proxy-client-ip"
        | "x-nf-client-connection-ip"
        | "x-arr-clientcert"
        // Of routing.
        | "x-original-url"
        | "x-original-uri"
        | "x-original-host"
        | "x-original-method"
        | "x-original-path"
        | "x-rewrite-url"
        | "x-rewrite-uri"
        | "x-rewrite-path"
        | "x-override-url"
        | "x-request-uri"
        | "x-http-host-override"
        | "x-http-method-override"
        | "x-http-method"
        | "x-http-verb-override"
        | "x-method-override"
        | "x-script-name"
        | "x-replaced-path"
        | "request-uri"
        | "x-http-path-override"
        | "x-http-destinationurl"
        | "x-sendfile-type"
        | "x-envoy"
        // Of tracing.
        | "traceparent"
        | "tracestate"
        | "baggage"
        | "x-request-id"
        | "x-correlation-id"
        | "x-b3-traceid" => true,
        _ => {
            hop_by_hop(name)
                || PREFIXES.iter().any(|prefix| begins(prefix))
                || names_stripe_identity(name.strip_prefix("x-").unwrap_or(name))
        }
    };
    !dropped
}

/// Beginnings of names by which other gateways hand on identity, address or routing.
const PREFIXES: [&str; 40] = [
    "countersign-",
    "x-countersign-",
    "x-forwarded",
    "x-original-forwarded",
    "forwarded-",
    "remote-",
    "x-remote-",
    "x-auth-",
    "x-authenticated-",
    "x-authentik-",
    "x-authelia-",
    "x-webauth-",
    "x-pomerium-",
    "x-vouch-",
    "oidc-",
    "oam-",
    "iv-",
    "sm-",
    "tailscale-",
    "impersonate-",
    "x-envoy-",
    "x-accel-",
    "x-middleware-",
    "x-consumer-",
    "x-amzn-oidc-",
    "x-amzn-mtls-",
    "x-apigateway-api-",
    "x-endpoint-api-",
    "x-sso-",
    "x-ssl-cert",
    "x-goog-",
    "x-appengine-",
    "x-ms-client-principal",
    "x-ms-token-",
    "x-ssl-client-",
    "ssl-client-",
    "x-client-cert",
    "x-client-dn",
    "client-cert",
    "cf-",
];

fn names_stripe_identity(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("stripe") else { return false };
    ["-user", "-account", "-role", "-context", "user", "account", "role"].iter().any(|part| rest.starts_with(part))
}

fn hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "te"
            | "trailer"
            | "trailers"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    ) || name.starts_with("proxy-")
}

fn answer_passes(name: &str, keep_length: bool) -> bool {
    match name {
        "content-length" => keep_length,
        "set-cookie" | "set-cookie2" | "alt-svc" | "stripe-signature" | "x-request-id" | "via" | "traceparent"
        | "forwarded" | "x-real-ip" => false,
        _ => {
            let folds = name.contains(['_', '.', '~']);
            let folded = if folds { Cow::Owned(name.replace(['_', '.', '~'], "-")) } else { Cow::Borrowed(name) };
            let ours = ["access-control-", "countersign-", "x-countersign-", "x-forwarded-", "x-accel-", "x-envoy-"];
            !hop_by_hop(name)
                && !ours.iter().any(|prefix| folded.starts_with(prefix))
                && !names_stripe_identity(folded.strip_prefix("x-").unwrap_or(&folded))
        }
    }
}

fn roles(principal: &Principal) -> Option<HeaderValue> {
    let mut list = String::new();
    for role in principal.roles() {
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(role.as_str());
    }
    if list.is_empty() { None } else { HeaderValue::try_from(list).ok() }
}

/// The path and query of the request to the upstream; `None` if they make no target, though each is canonical.
pub fn outbound_target(route: &Route, path: &CanonicalPath<'_>, query: Option<&str>) -> Option<PathAndQuery> {
    let path = route.outbound_path(path);
    let target = match query {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    };
    PathAndQuery::try_from(target).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proves_a_right_is_marked_and_nothing_else() {
        let mut headers = HeaderMap::new();
        for name in ["stripe-signature", "authorization", "authorization", "stripe-user-id"] {
            headers.append(name, HeaderValue::from_static("value-4711"));
        }
        hide(&mut headers);
        let marked = headers.iter().filter(|(_, value)| value.is_sensitive()).map(|(name, _)| name.as_str());
        assert_eq!(marked.collect::<Vec<_>>(), ["stripe-signature", "authorization", "authorization"]);
        assert_eq!(format!("{headers:?}").matches("4711").count(), 1);
    }
}
