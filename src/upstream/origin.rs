//! Where a server is, and what is spoken there.

use std::{fmt, path::PathBuf};

use http::{
    HeaderValue,
    uri::{Authority, Scheme},
};

use crate::traces::Server;

/// One server of an upstream, as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub protocol: Protocol,
    pub place: Place,
}

/// What is spoken with a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 in the clear.
    Http,
    /// HTTP/2 or HTTP/1.1 over TLS, as the server chooses by ALPN.
    Https,
    /// HTTP/2 in the clear, known beforehand (RFC 9113, section 3.3).
    H2c,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A name or address, perhaps with a port.
    Host(Authority),
    /// A Unix socket.
    Socket(PathBuf),
}

impl Protocol {
    /// As a URL has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::H2c => "h2c",
        }
    }

    /// The scheme of the requests.
    pub(super) fn scheme(self) -> Scheme {
        match self {
            Self::Http | Self::H2c => Scheme::HTTP,
            Self::Https => Scheme::HTTPS,
        }
    }

    /// The port where none is given.
    pub fn port(self) -> u16 {
        match self {
            Self::Http | Self::H2c => 80,
            Self::Https => 443,
        }
    }
}

impl Origin {
    /// Whether it is the one at `host` and `port`, for which `None` is that of `scheme`; without a scheme any will do.
    pub(super) fn is_at(&self, scheme: Option<&str>, host: &str, port: Option<u16>) -> bool {
        let Place::Host(authority) = &self.place else { return false };
        let standard = self.protocol.port();
        let asked = match scheme {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => 443,
            Some(_) => 80,
            None => standard,
        };
        authority.host().trim_end_matches('.').eq_ignore_ascii_case(host.trim_end_matches('.'))
            && authority.port_u16().unwrap_or(standard) == port.unwrap_or(asked)
    }

    /// Where it is, as a trace has it.
    pub fn server(&self) -> Server {
        match &self.place {
            Place::Host(authority) => Server {
                scheme: Some(if self.protocol == Protocol::Https { "https" } else { "http" }),
                address: authority.host().to_owned(),
                port: Some(authority.port_u16().unwrap_or(self.protocol.port())),
            },
            Place::Socket(path) => Server { scheme: None, address: path.display().to_string(), port: None },
        }
    }

    /// What requests to it name as their host.
    pub(super) fn authority(&self) -> Authority {
        match &self.place {
            Place::Host(authority) => authority.clone(),
            Place::Socket(_) => Authority::from_static("localhost"),
        }
    }

    /// The same as a header.
    pub(super) fn host(&self) -> HeaderValue {
        HeaderValue::try_from(self.authority().as_str()).unwrap_or(HeaderValue::from_static("localhost"))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Host(authority) => write!(f, "{}://{authority}", self.protocol.as_str()),
            Place::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
