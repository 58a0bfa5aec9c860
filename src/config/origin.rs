//! Origins of internal services: scheme, host and port, or a Unix socket, and nothing else.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use http::uri::Authority;
use rustls_pki_types::ServerName;

use super::mask::looks_secret;
use crate::upstream::{Origin, Place, Protocol, address};

/// Why a text is no origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Error {
    NoScheme,
    Scheme,
    User,
    Path,
    Query,
    Host,
    Numeric,
    Port,
    Socket,
}

/// The longest path that a Unix socket's address holds, and one byte.
const SOCKET_LIMIT_BYTES: usize = 108;

/// Names under which clouds hand credentials to their machines.
const METADATA_NAMES: [&str; 5] =
    ["metadata.google.internal", "metadata.goog", "metadata", "instance-data", "instance-data.ec2.internal"];

/// Reads `http://host`, `https://host:port`, `h2c://host`, the host in small letters; or `unix:/path`.
///
/// # Errors
/// [`Error`] names the first part that does not belong there.
pub(super) fn parse(text: &str) -> Result<Origin, Error> {
    if let Some(path) = text.strip_prefix("unix:") {
        let fits =
            path.len() > 1 && path.len() < SOCKET_LIMIT_BYTES && path.starts_with('/') && !path.starts_with("//");
        let place = Place::Socket(path.into());
        return if fits { Ok(Origin { protocol: Protocol::Http, place }) } else { Err(Error::Socket) };
    }
    let (scheme, rest) = text.split_once("://").ok_or(Error::NoScheme)?;
    let protocol = match scheme.to_ascii_lowercase().as_str() {
        "http" => Protocol::Http,
        "https" => Protocol::Https,
        "h2c" => Protocol::H2c,
        _ => return Err(Error::Scheme),
    };
    if rest.contains('@') {
        return Err(Error::User);
    }
    if let Some(at) = rest.find(['/', '?', '#', '\\']) {
        let path = rest.get(at..).is_some_and(|tail| tail.starts_with(['/', '\\']));
        return Err(if path { Error::Path } else { Error::Query });
    }
    let (host, port) = split(rest)?;
    if let Some(port) = port
        && !(port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0))
    {
        return Err(Error::Port);
    }
    check_host(host)?;
    let authority = Authority::try_from(rest.to_ascii_lowercase()).map_err(|_| Error::Host)?;
    Ok(Origin { protocol, place: Place::Host(authority) })
}

/// Whether a host is one where machines get their credentials, so that no route should lead there.
pub(super) fn is_link_local(host: &str) -> bool {
    let host = host.trim_end_matches('.');
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(address) => address::is_link_local(address),
        Err(_) => METADATA_NAMES.contains(&host.to_ascii_lowercase().as_str()),
    }
}

fn split(authority: &str) -> Result<(&str, Option<&str>), Error> {
    if authority.starts_with('[') {
        let (host, rest) = authority.split_once(']').ok_or(Error::Host)?;
        let host = host.get(1..).unwrap_or_default();
        host.parse::<Ipv6Addr>().map_err(|_| Error::Host)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(Error::Host),
        };
    }
    match authority.split_once(':') {
        Some((host, port)) if !port.contains(':') => Ok((host, Some(port))),
        Some(_) => Err(Error::Host),
        None => Ok((authority, None)),
    }
}

fn check_host(host: &str) -> Result<(), Error> {
    if host.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    // Resolvers read 0x7f.1 and 2852039166 as addresses, and not all as the same one.
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    let numeric =
        last.bytes().all(|b| b.is_ascii_digit()) || hex.is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    if !last.is_empty() && numeric {
        return Err(Error::Numeric);
    }
    // A secret would be a name or none by its length, which must not show.
    if looks_secret(host) {
        return Err(Error::Host);
    }
    ServerName::try_from(host).map(|_| ()).map_err(|_| Error::Host)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoScheme => "is not a URL",
            Self::Scheme => "is a URL of another scheme than http, https and h2c",
            Self::User => "has a user in it",
            Self::Path => "has a path in it",
            Self::Query => "has a query or a fragment in it",
            Self::Host => "has no usable host",
            Self::Numeric => "has a host that some read as an address, and not all as the same",
            Self::Port => "has no usable port",
            Self::Socket => "is not the absolute path of a Unix socket",
        })
    }
}

impl Error {
    /// What to write instead.
    pub(super) fn suggestion(self) -> &'static str {
        match self {
            Self::NoScheme | Self::Scheme => {
                "an origin is http://, https:// or h2c://, a host and perhaps a port, or unix: and the path of a socket: \
                 \"http://orders.intranet:8080\""
            }
            Self::User => {
                "remove it; credentials go into the route's `request_headers = { secret = { Authorization = … } }`"
            }
            Self::Path => "write the path, a single slash too, as the route's `upstream_path`",
            Self::Query => "remove it; a request's own query goes on as it came",
            Self::Host => "a host is a name, an IPv4 address, or an IPv6 address in brackets",
            Self::Numeric => "write four decimal numbers, as in 10.0.4.7",
            Self::Port => "a port is a number from 1 to 65535",
            Self::Socket => {
                "write unix: and a path of at most 107 bytes that begins with one slash: \"unix:/run/orders.sock\""
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_have_a_scheme_a_host_and_perhaps_a_port() {
        for (text, authority) in [
            ("http://orders", "orders"),
            ("HTTPS://Orders.intranet:8443", "orders.intranet:8443"),
            ("http://10.0.4.7:8080", "10.0.4.7:8080"),
            ("http://[fd12::1]:80", "[fd12::1]:80"),
            ("http://my_service:1", "my_service:1"),
            ("H2C://orders:50051", "orders:50051"),
        ] {
            assert_eq!(parse(text).unwrap().place, Place::Host(authority.parse().unwrap()));
        }
        assert_eq!(parse("unix:/run/orders.sock").unwrap().place, Place::Socket("/run/orders.sock".into()));
        assert_eq!(parse("h2c://a").unwrap().protocol, Protocol::H2c);
        for (text, error) in [
            ("orders", Error::NoScheme),
            ("orders:8080", Error::NoScheme),
            ("ftp://orders", Error::Scheme),
            ("http://a:b@orders", Error::User),
            ("http://orders/", Error::Path),
            ("http://orders:80/api", Error::Path),
            ("http://orders?x", Error::Query),
            ("http://", Error::Host),
            ("http://or ders", Error::Host),
            ("http://[::1", Error::Host),
            ("http://::1", Error::Host),
            ("http://[fe80::1%25eth0]", Error::Host),
            ("http://2852039166", Error::Numeric),
            ("http://0xa9.254.0xfe", Error::Numeric),
            ("http://10.0.4", Error::Numeric),
            ("http://010.0.0.1", Error::Numeric),
            ("http://orders:0", Error::Port),
            ("http://orders:", Error::Port),
            ("http://orders:+80", Error::Port),
            ("http://orders:65536", Error::Port),
            ("unix:run/orders.sock", Error::Socket),
            ("unix:/", Error::Socket),
            ("unix://run/orders.sock", Error::Socket),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn link_local_hosts_are_known_in_every_spelling() {
        for host in [
            "169.254.169.254",
            "169.254.0.1",
            "[fe80::1]",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "[::169.254.169.254]",
            "[fd00:ec2::254]",
            "metadata.google.internal",
            "Metadata.Google.Internal.",
            "100.100.100.200",
        ] {
            assert!(is_link_local(host), "{host}");
        }
        for host in ["10.0.0.1", "127.0.0.1", "[::1]", "[fd12::1]", "metadata.example.com", "169.253.0.1", "orders"] {
            assert!(!is_link_local(host), "{host}");
        }
    }
}
