//! Which headers pass, in which direction, and which are ours.

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, uri::Authority};

use crate::{
    auth::Principal,
    path::CanonicalPath,
    route::{HeaderEdits, Route},
};

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

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
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
pub fn outbound(inbound: &HeaderMap, edits: &HeaderEdits, ours: Statement<'_>) -> HeaderMap {
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
    put(REQUEST_ID, Some(ours.request_id));
    put(TRACEPARENT, Some(ours.traceparent));
    put(FORWARDED_FOR, Some(ours.client));
    put(FORWARDED_PROTO, Some(HTTPS));
    put(FORWARDED_HOST, ours.host);
    outbound
}

/// Makes the headers of an upstream's answer fit for the client: without those of its connection, its cookies, its
/// word on cross-origin access, and any that would pass for ours; a `Location` that names the upstream becomes the
/// gateway's own path. `keep_length` for answers to `HEAD`, which have a length but no body.
pub fn inbound(headers: &mut HeaderMap, route: &Route, upstream: &Authority, keep_length: bool) {
    let nominated = nominated(headers);
    let gone: Vec<HeaderName> = headers
        .keys()
        .filter(|name| nominated.contains(name) || !answer_passes(name.as_str(), keep_length))
        .cloned()
        .collect();
    for name in gone {
        headers.remove(name);
    }
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        if let Some(location) = headers.get(&name).and_then(|value| own_location(value, route, upstream)) {
            headers.insert(name, location);
        }
    }
    for name in &route.response_headers.remove {
        headers.remove(name);
    }
    for (name, value) in &route.response_headers.set {
        headers.insert(name, value.clone());
    }
}

/// Whether a name is set by the gateway alone, so that no configuration may touch it.
pub fn is_ours(name: &str) -> bool {
    let reserved = ["host", "content-length", "transfer-encoding", "stripe-signature", "x-request-id", "traceparent"];
    reserved.contains(&name)
        || hop_by_hop(name)
        || ["countersign-", "x-forwarded-", "access-control-"].iter().any(|prefix| name.starts_with(prefix))
}

/// The names that `Connection` fields declare to be of this connection only.
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    let mut names = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        for name in value.as_bytes().split(|b| *b == b',') {
            let name = name.trim_ascii();
            let dull = name.eq_ignore_ascii_case(b"keep-alive") || name.eq_ignore_ascii_case(b"close");
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
        | "remote-user"
        | "remote-addr"
        | "remote-host"
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
        | "x-email"
        | "x-groups"
        | "x-roles"
        | "x-account-id"
        | "x-scheme"
        | "x-url-scheme"
        | "x-protocol"
        | "front-end-https"
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
        | "x-method-override"
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
                || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                || names_stripe_identity(name.strip_prefix("x-").unwrap_or(name))
        }
    };
    !dropped
}

/// Beginnings of names by which other gateways hand on identity, address or routing.
const PREFIXES: [&str; 22] = [
    "countersign-",
    "x-countersign-",
    "x-forwarded",
    "x-original-forwarded",
    "x-remote-",
    "x-auth-request-",
    "x-authenticated-",
    "x-authentik-",
    "x-authelia-",
    "x-webauth-",
    "x-envoy-",
    "x-accel-",
    "x-middleware-",
    "x-consumer-",
    "x-amzn-oidc-",
    "x-goog-",
    "x-ms-client-principal",
    "x-ms-token-",
    "x-ssl-client-",
    "ssl-client-",
    "x-client-cert",
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
        "set-cookie" | "set-cookie2" | "alt-svc" | "stripe-signature" | "x-request-id" | "via" | "traceparent" => false,
        _ => {
            let ours = ["access-control-", "countersign-", "x-forwarded-", "x-accel-"];
            !hop_by_hop(name) && !ours.iter().any(|prefix| name.starts_with(prefix))
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

/// The gateway's own path for a location that names the upstream itself; `None` for one that names somebody else, or
/// is relative to the request's own path.
fn own_location(value: &HeaderValue, route: &Route, upstream: &Authority) -> Option<HeaderValue> {
    let text = value.to_str().ok()?;
    let path_and_rest = if text.starts_with('/') && !text.starts_with("//") {
        text
    } else {
        let uri: Uri = text.parse().ok()?;
        let authority = uri.authority()?;
        if !same_authority(authority, upstream) {
            return None;
        }
        let start = text.find(authority.as_str())? + authority.as_str().len();
        text.get(start..).filter(|rest| !rest.is_empty()).unwrap_or("/")
    };
    let own = match (&route.upstream_path, route.pattern.is_prefix()) {
        (Some(put), true) => {
            let below = path_and_rest.strip_prefix(put.as_str().trim_end_matches('/'));
            below.and_then(|rest| Some(format!("{}{}", route.pattern.as_str(), rest.strip_prefix('/')?)))
        }
        (Some(put), false) => {
            let rest = path_and_rest.strip_prefix(put.as_str());
            rest.filter(|rest| rest.is_empty() || rest.starts_with(['?', '#']))
                .map(|rest| format!("{}{rest}", route.pattern.as_str()))
        }
        (None, _) => None,
    };
    let own = own.unwrap_or_else(|| {
        if path_and_rest.starts_with('/') { path_and_rest.to_owned() } else { format!("/{path_and_rest}") }
    });
    HeaderValue::try_from(own).ok()
}

fn same_authority(one: &Authority, other: &Authority) -> bool {
    one.host().eq_ignore_ascii_case(other.host()) && one.port_u16().unwrap_or(80) == other.port_u16().unwrap_or(80)
        || one.as_str().eq_ignore_ascii_case(other.as_str())
}

/// The path and query of the request to the upstream.
pub fn outbound_target(route: &Route, path: &CanonicalPath<'_>, query: Option<&str>) -> String {
    let path = route.outbound_path(path);
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path.into_owned(),
    }
}
