//! What must hold of a request's head before anything else is asked of it.

use http::{
    HeaderMap, Method, Version, header,
    request::Parts,
    uri::{Authority, Scheme},
};

use crate::{
    body::End,
    limits::{Limit, Limits},
    rejection::{Code, Rejection},
};

/// Why bytes that came on a connection are not taken for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// What is wrong, as the end of a sentence that begins "the request".
    Malformed(&'static str),
    /// Its target cannot be read in one way only.
    Ambiguous(&'static str),
    /// Request line and headers together.
    TooLarge,
    /// The headers.
    TooMany,
}

impl From<Fault> for Rejection {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Malformed(what) => {
                Self::new(Code::RequestMalformed, format!("the request {what}; send it as RFC 9112 has it"))
            }
            Fault::Ambiguous(what) => {
                Self::new(Code::PathAmbiguous, format!("the request's target {what}; send it in its plain form"))
            }
            Fault::TooLarge => too_large().at(Limit::HeadBytes),
            Fault::TooMany => too_large().at(Limit::Headers),
        }
    }
}

fn too_large() -> Rejection {
    let detail = "the request line and headers are too large or too many; send fewer or shorter headers";
    Rejection::new(Code::HeadersTooLarge, detail)
}

/// Refuses what the connection found at fault, and what is a head over HTTP/2 or HTTP/1.1 but has no single reading.
pub(super) fn check(parts: &Parts, fault: Option<Fault>, limits: &Limits) -> Result<(), Rejection> {
    if let Some(fault) = fault {
        return Err(fault.into());
    }
    let size: usize = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let target = parts.uri.path().len() + parts.uri.query().map_or(0, |query| query.len() + 1);
    if size + target > limits.head_bytes {
        return Err(Fault::TooLarge.into());
    }
    if parts.headers.len() > limits.headers {
        return Err(Fault::TooMany.into());
    }
    let malformed = |what| Err(Fault::Malformed(what).into());
    if parts.headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return malformed("has more than one Content-Length");
    }
    if parts.version == Version::HTTP_2 && parts.method != Method::CONNECT {
        let known = [Some(&Scheme::HTTPS), Some(&Scheme::HTTP)].contains(&parts.uri.scheme());
        if !known {
            return malformed("has no scheme of HTTP");
        }
        if parts.uri.path_and_query().is_some_and(|target| target.as_str().starts_with('?')) {
            return malformed("has no path");
        }
    }
    if !parts.uri.query().unwrap_or_default().is_ascii() {
        return Err(Fault::Ambiguous("has a character that must be percent-encoded").into());
    }
    let authority = parts.uri.authority();
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (first, second) = (hosts.next(), hosts.next());
    let host = match (first.map(|host| host.to_str().ok().and_then(valid_host)), second) {
        (_, Some(_)) => return malformed("has more than one Host"),
        (Some(None), None) => return malformed("has a Host that is none"),
        (Some(Some(host)), None) => Some(host),
        (None, None) => None,
    };
    match (authority, host) {
        (None, None) => malformed("has no Host"),
        // Over HTTP/1.1 a target with an authority does not spare the Host.
        (Some(_), None) if parts.version != Version::HTTP_2 && parts.method != Method::CONNECT => {
            malformed("has no Host")
        }
        (Some(authority), _) if valid_host(authority.as_str()).is_none() => malformed("has an authority that is none"),
        (Some(authority), Some(host)) if !host.as_str().eq_ignore_ascii_case(authority.as_str()) => {
            malformed("names one host in its target and another in Host")
        }
        (None, Some(_)) | (Some(_), _) => Ok(()),
    }
}

/// Refuses a host that is none of `names`; without names every host will do.
pub(super) fn check_host(parts: &Parts, names: &[String]) -> Result<(), Rejection> {
    if names.is_empty() {
        return Ok(());
    }
    let host = host(parts).and_then(valid_host);
    let known =
        host.is_some_and(|host| names.iter().any(|name| name.eq_ignore_ascii_case(host.host().trim_end_matches('.'))));
    if known { Ok(()) } else { Err(Rejection::misdirected()) }
}

/// Whether a method is never forwarded: a tunnel is not ours to give, and an `OPTIONS` is the preflight's.
pub(super) fn is_never_forwarded(method: &Method) -> bool {
    matches!(*method, Method::OPTIONS | Method::CONNECT | Method::TRACE)
}

/// Host and port as the client asked for them.
pub(super) fn host(parts: &Parts) -> Option<&str> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()),
    }
}

/// Where the body ends.
pub(super) fn end(parts: &Parts) -> End {
    if parts.version == Version::HTTP_2 { End::Said } else { End::Framed }
}

/// The length that the head declares for the body.
pub(super) fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// `text` as a host with or without a port: no user, no wildcard, nothing that a name or address cannot have.
fn valid_host(text: &str) -> Option<Authority> {
    let authority: Authority = text.parse().ok()?;
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let fits = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)),
    };
    let rest = text.get(host.len()..)?;
    let port = rest.is_empty()
        || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok() && !port.starts_with('+'));
    (fits && port && text.starts_with(host)).then_some(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_address_with_or_without_a_port() {
        for good in ["a", "gateway.example.com", "gateway.example.com:8443", "127.0.0.1:1", "[::1]:8443", "[::1]"] {
            assert!(valid_host(good).is_some(), "{good}");
        }
        for bad in [
            "", "a b", "a@b", "a/b", "a,b", ":80", "a:", "a:99999", "a:+1", "[::1", "[x]", "*", "a:b", "é", "a\\b",
            "a%2eb",
        ] {
            assert!(valid_host(bad).is_none(), "{bad}");
        }
    }
}
