//! Asking an ACME server.

use std::{io, pin::Pin, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls_pki_types::CertificateDer;

use crate::{agent::Agent, tls};

/// How long one request may take, connecting included.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks servers whose certificate is of one of its authorities.
#[derive(Clone, Debug)]
pub(super) struct HttpsClient(Agent);

impl HttpsClient {
    /// `roots` of a private authority, or the system's.
    pub(super) fn new(roots: Option<Vec<CertificateDer<'static>>>) -> Result<Self, tls::Error> {
        Agent::tls(roots, None).map(Self)
    }
}

impl HttpClient for HttpsClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let Self(agent) = self.clone();
        Box::pin(async move {
            let answer: io::Result<_> = agent.ask(request, PATIENCE).await;
            answer
                .map(|answer| BytesResponse::from(answer.map(Full::new)))
                .map_err(|error| Error::Other(Box::new(error)))
        })
    }
}
