//! Asking the few servers that the gateway needs for itself: who issues certificates, who collects traces. HTTP/1.1, a
//! connection for each request, within bounds; no redirect is followed.

use std::{fmt, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header, uri::Scheme};
use http_body::Body;
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use crate::tls;

/// The largest answer that is read; a chain of certificates has some kilobytes.
const LIMIT_BYTES: usize = 1024 * 1024;

/// A certificate of our own, and its key.
pub type Ours = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Asks servers, either by `https://` or by `http://`, and never by the other of the two.
#[derive(Clone)]
pub enum Agent {
    Tls(TlsConnector),
    Clear,
}

impl Agent {
    /// By `https://`: servers with a certificate of `roots`, or of the system's; `ours` is shown where they ask for one.
    ///
    /// # Errors
    /// Those of [`tls::client`].
    pub fn tls(roots: Option<Vec<CertificateDer<'static>>>, ours: Option<Ours>) -> Result<Self, tls::Error> {
        let mut config = tls::client(roots, ours)?;
        config.alpn_protocols = vec![tls::HTTP_1_1.to_vec()];
        Ok(Self::Tls(TlsConnector::from(Arc::new(config))))
    }

    /// The whole answer to `request`, whatever its status; connecting and reading may take `patience` together. What the URL
    /// has before its host, a user or a password, is not sent.
    ///
    /// # Errors
    /// The connection's, HTTP's, `TimedOut`; `InvalidInput` for a URL of the other scheme.
    pub async fn ask<B>(&self, request: Request<B>, patience: Duration) -> io::Result<Response<Bytes>>
    where
        B: Body<Data: Send, Error: Into<Fault>> + Send + Unpin + 'static,
    {
        let asked = tokio::time::timeout(patience, self.exchange(request)).await;
        asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn exchange<B>(&self, request: Request<B>) -> io::Result<Response<Bytes>>
    where
        B: Body<Data: Send, Error: Into<Fault>> + Send + Unpin + 'static,
    {
        let uri = request.uri();
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16();
        match self {
            Self::Tls(connector) if uri.scheme() == Some(&Scheme::HTTPS) && !host.is_empty() => {
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                let stream = TcpStream::connect((host, port.unwrap_or(443))).await?;
                send(connector.connect(name, stream).await?, request).await
            }
            Self::Clear if uri.scheme() == Some(&Scheme::HTTP) && !host.is_empty() => {
                send(TcpStream::connect((host, port.unwrap_or(80))).await?, request).await
            }
            Self::Tls(_) => Err(refused("the server names a URL that is not https://")),
            Self::Clear => Err(refused("the server names a URL that is not http://")),
        }
    }
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

async fn send<S, B>(stream: S, request: Request<B>) -> io::Result<Response<Bytes>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data: Send, Error: Into<Fault>> + Send + Unpin + 'static,
{
    let (mut parts, body) = request.into_parts();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // It ends with this request, whatever becomes of that.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let authority = parts.uri.authority().map_or("", http::uri::Authority::as_str);
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    parts.headers.insert(header::HOST, HeaderValue::from_str(place).map_err(io::Error::other)?);
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    parts.uri = target.parse::<Uri>().map_err(io::Error::other)?;
    let answer = sender.send_request(Request::from_parts(parts, body)).await.map_err(io::Error::other)?;
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, LIMIT_BYTES).collect().await.map_err(io::Error::other)?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Agent")
    }
}
