//! Where an upstream's answer sends the client on to.

use http::HeaderValue;

use crate::route::Route;

/// Where a `Location` leads, as a browser reads it: a backslash counts as a slash.
pub(super) enum Location<'l> {
    /// To the upstream itself; the path, query and fragment there.
    Own(&'l str),
    /// To somebody else, or relative to the request's own path.
    Elsewhere,
    /// It cannot be told, and may name an internal address.
    Unreadable,
}

impl<'l> Location<'l> {
    /// Reads `value`; `is_upstream` knows the upstream's servers by scheme if given, host, port if given.
    pub(super) fn of(value: &'l [u8], is_upstream: impl Fn(Option<&str>, &str, Option<u16>) -> bool) -> Self {
        let Ok(text) = std::str::from_utf8(value) else { return Self::Unreadable };
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Self::Unreadable;
        }
        let is_slash = |c: char| matches!(c, '/' | '\\');
        let (scheme, rest) = match text.split_once(':') {
            Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) => {
                (Some(scheme), rest)
            }
            Some(_) | None => (None, text),
        };
        let Some(rest) = rest.strip_prefix(is_slash).and_then(|rest| rest.strip_prefix(is_slash)) else {
            return if scheme.is_none() && text.starts_with('/') { Self::Own(text) } else { Self::Elsewhere };
        };
        let end = rest.find(|c| is_slash(c) || matches!(c, '?' | '#')).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let address = authority.rsplit('@').next().unwrap_or_default();
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            Some(_) | None => (address, ""),
        };
        let port = if port.is_empty() { Some(None) } else { port.parse().ok().map(Some) };
        match port {
            Some(port) if is_upstream(scheme, host, port) => Self::Own(path),
            Some(_) | None => Self::Elsewhere,
        }
    }
}

/// The gateway's path for one of the upstream's. It begins with exactly one slash, or it would name another host.
pub(super) fn own_path(path_and_rest: &str, route: &Route) -> HeaderValue {
    let path_and_rest = path_and_rest.trim_start_matches(['/', '\\']);
    let path_and_rest = format!("/{path_and_rest}");
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
    let own = own.unwrap_or(path_and_rest);
    let own = format!("/{}", own.trim_start_matches(['/', '\\']));
    HeaderValue::try_from(own).unwrap_or(HeaderValue::from_static("/"))
}
