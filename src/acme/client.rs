//! Asking an ACME server: HTTP/1.1 over TLS, a connection for each request, within bounds.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header, uri::Scheme};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::TlsConnector;

use crate::tls;

/// How long one request may take, connecting included.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest answer that is read; a chain has some kilobytes.
const LIMIT_BYTES: usize = 1024 * 1024;

/// Asks servers whose certificate is of one of its authorities.
#[derive(Clone)]
pub(super) struct HttpsClient(TlsConnector);

impl HttpsClient {
    /// `roots` of a private authority, or the system's.
    pub(super) fn new(roots: Option<Vec<CertificateDer<'static>>>) -> Result<Self, tls::Error> {
        let mut config = tls::client(roots, None)?;
        config.alpn_protocols = vec![tls::HTTP_1_1.to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }
}

impl HttpClient for HttpsClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let connector = self.0.clone();
        Box::pin(async move {
            let asked = tokio::time::timeout(PATIENCE, ask(&connector, request)).await;
            let answer = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            answer.map(BytesResponse::from).map_err(|error| Error::Other(Box::new(error)))
        })
    }
}

async fn ask(connector: &TlsConnector, request: Request<BodyWrapper<Bytes>>) -> io::Result<Response<Full<Bytes>>> {
    let (mut parts, body) = request.into_parts();
    let host = parts.uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    if parts.uri.scheme() != Some(&Scheme::HTTPS) || host.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the server names a URL that is not https://"));
    }
    let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
    let stream = TcpStream::connect((host, parts.uri.port_u16().unwrap_or(443))).await?;
    let stream = connector.connect(name, stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // It ends with this request, whatever becomes of that.
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let authority = parts.uri.authority().map_or("", http::uri::Authority::as_str);
    parts.headers.insert(header::HOST, HeaderValue::from_str(authority).map_err(io::Error::other)?);
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    parts.uri = target.parse::<Uri>().map_err(io::Error::other)?;
    let answer = sender.send_request(Request::from_parts(parts, body)).await.map_err(io::Error::other)?;
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, LIMIT_BYTES).collect().await.map_err(io::Error::other)?;
    Ok(Response::from_parts(parts, Full::new(body.to_bytes())))
}

impl std::fmt::Debug for HttpsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HttpsClient")
    }
}
