//! Dialling a server: name look-up, TCP or a Unix socket, and TLS, under one deadline.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use http::{HeaderValue, uri::Authority};
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::{
    Settings,
    address::Addresses,
    origin::{Origin, Place, Protocol},
    stream::{Io, Socket, Stream},
};
use crate::tls;

/// How long one address has to connect before the next is tried beside it (RFC 8305, section 8).
const HEAD_START: Duration = Duration::from_millis(250);

/// Dials one server.
#[derive(Debug)]
pub(super) struct Dialer {
    pub(super) origin: Origin,
    /// What requests name as their host.
    pub(super) authority: Authority,
    pub(super) host: HeaderValue,
    addresses: Option<Arc<Addresses>>,
    tls: Option<Tls>,
    timeout: Duration,
}

/// How a server proves itself, and what it is asked to speak.
struct Tls {
    any: TlsConnector,
    http1: TlsConnector,
    name: Option<ServerName<'static>>,
}

/// What may be spoken on a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaking {
    /// Whatever the server chooses.
    Any,
    /// HTTP/1.1, whose connections can be upgraded.
    Http1,
}

impl Dialer {
    pub(super) fn new(settings: &Settings, origin: &Origin) -> Self {
        let addresses = match &origin.place {
            Place::Host(authority) => {
                let host = authority.host().trim_start_matches('[').trim_end_matches(']');
                let port = authority.port_u16().unwrap_or(origin.protocol.port());
                Some(Addresses::new(host, port, settings.dns_ttl, settings.allows_link_local))
            }
            Place::Socket(_) => None,
        };
        let tls = settings.tls.as_ref().map(|tls| {
            let config = &tls.config;
            let mut http1 = (**config).clone();
            http1.alpn_protocols = vec![tls::HTTP_1_1.to_vec()];
            Tls { any: Arc::clone(config).into(), http1: Arc::new(http1).into(), name: settings.server_name.clone() }
        });
        let (authority, host) = (origin.authority(), origin.host());
        Self { origin: origin.clone(), authority, host, addresses, tls, timeout: settings.connect_timeout }
    }

    /// A new connection.
    ///
    /// # Errors
    /// `TimedOut` after the deadline; else the first cause on the last way that was tried.
    pub(super) async fn dial(&self, speaking: Speaking) -> io::Result<Stream> {
        tokio::time::timeout(self.timeout, self.connect(speaking)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
    }

    /// How long a connection may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether a kept connection to `address` still leads to the server.
    pub(super) fn holds(&self, address: Option<SocketAddr>) -> bool {
        match (&self.addresses, address) {
            (Some(addresses), Some(address)) => addresses.holds(address),
            (None, _) | (_, None) => true,
        }
    }

    async fn connect(&self, speaking: Speaking) -> io::Result<Stream> {
        let addresses = match (&self.origin.place, &self.addresses) {
            (Place::Socket(path), _) => {
                return Ok(Stream::new(Io::Unix(UnixStream::connect(path).await?), None, false));
            }
            (Place::Host(_), Some(addresses)) => addresses.find().await?,
            (Place::Host(_), None) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let socket = first_to_connect(&addresses).await?;
        socket.set_nodelay(true)?;
        let address = socket.peer_addr().ok();
        let socket = Socket::new(socket);
        if self.origin.protocol != Protocol::Https {
            return Ok(Stream::new(Io::Plain(socket), address, self.origin.protocol == Protocol::H2c));
        }
        let tls = self.tls.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let name = match &tls.name {
            Some(name) => name.clone(),
            None => self.server_name()?,
        };
        let connector = match speaking {
            Speaking::Any => &tls.any,
            Speaking::Http1 => &tls.http1,
        };
        let stream = connector.connect(name, socket).await?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(tls::H2);
        Ok(Stream::new(Io::Tls(Box::new(stream)), address, is_http2))
    }

    fn server_name(&self) -> io::Result<ServerName<'static>> {
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        ServerName::try_from(host.to_owned()).map_err(io::Error::other)
    }
}

/// The first of `addresses` that accepts: each gets a head start on the one after it, which is of the other family
/// where there is one.
///
/// Source: RFC 8305, sections 4 and 5.
async fn first_to_connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut waiting = interleaved(addresses).into_iter().peekable();
    let mut trying = FuturesUnordered::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        if let Some(address) = waiting.next() {
            trying.push(TcpStream::connect(address));
        } else if trying.is_empty() {
            return Err(last);
        }
        tokio::select! {
            Some(tried) = trying.next() => match tried {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            },
            () = tokio::time::sleep(HEAD_START), if waiting.peek().is_some() => {}
        }
    }
}

/// The addresses in turn of one family and the other, beginning with that of the first.
fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let Some(first) = addresses.first() else { return Vec::new() };
    let (same, other): (Vec<SocketAddr>, Vec<_>) =
        addresses.iter().partition(|address| address.is_ipv4() == first.is_ipv4());
    let mut other = other.into_iter();
    let mut order = Vec::with_capacity(addresses.len());
    for address in same {
        order.push(address);
        order.extend(other.next());
    }
    order.extend(other);
    order
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns() {
        let order = interleaved(&addresses(&["[::1]:1", "[::2]:1", "[::3]:1", "127.0.0.1:1"]));
        assert_eq!(order, addresses(&["[::1]:1", "127.0.0.1:1", "[::2]:1", "[::3]:1"]));
        let order = interleaved(&addresses(&["127.0.0.1:1", "[::1]:1", "[::2]:1"]));
        assert_eq!(order, addresses(&["127.0.0.1:1", "[::1]:1", "[::2]:1"]));
        assert!(interleaved(&[]).is_empty());
    }

    #[tokio::test]
    async fn an_address_that_refuses_or_hangs_does_not_keep_the_others_waiting() {
        let live = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refusing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let hanging = full();
        let began = std::time::Instant::now();
        let all = [refusing, hanging.0.local_addr().unwrap().as_socket().unwrap(), live.local_addr().unwrap()];
        let stream = first_to_connect(&all).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), live.local_addr().unwrap());
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert!(first_to_connect(&[refusing]).await.is_err());
    }

    /// A listener whose queue is full, so that connecting to it hangs.
    fn full() -> (socket2::Socket, Vec<std::net::TcpStream>) {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let mut held = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
            held.push(stream);
        }
        (socket, held)
    }
}
