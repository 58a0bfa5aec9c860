//! The TLS handshake with a client, or with an ACME server that validates a name.

use std::{io, sync::Arc};

use rustls::{RootCertStore, ServerConfig, server::Acceptor};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::tls;

/// How handshakes are done.
#[derive(Clone, Debug)]
pub(super) struct Handshake {
    clients: Arc<ServerConfig>,
    challenges: Arc<ServerConfig>,
}

impl Handshake {
    pub(super) fn new(resolver: Arc<tls::Resolver>, client_ca: Option<Arc<RootCertStore>>) -> Result<Self, tls::Error> {
        let challenges = tls::challenges(Arc::clone(&resolver))?;
        Ok(Self { clients: Arc::new(tls::server(resolver, client_ca)?), challenges: Arc::new(challenges) })
    }

    /// The client's stream; `None` if it was an ACME server, which has seen all it asked for, and whose connection has ended.
    ///
    /// # Errors
    /// The system's, and those of TLS, of which the other side was told.
    pub(super) async fn of(self, stream: TcpStream) -> io::Result<Option<Box<TlsStream<TcpStream>>>> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        if tls::is_challenge(&start.client_hello()) {
            // It speaks no HTTP, and is never asked for a client's certificate.
            start.into_stream(self.challenges).await?.shutdown().await?;
            return Ok(None);
        }
        Ok(Some(Box::new(start.into_stream(self.clients).await?)))
    }
}
