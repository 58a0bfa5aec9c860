//! Ordering one certificate: the names are validated, a key is made, and what is issued is looked at.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeHandle, ChallengeType, Identifier, NewOrder, Order,
    OrderStatus, RetryPolicy,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

use super::{Challenge, Error, Settings, http01, schedule};
use crate::tls::{self, Certificate, Origin, Resolver};

/// How the server is asked how far it is.
const POLLING: RetryPolicy = RetryPolicy::new().backoff(1.5).timeout(Duration::from_secs(120));

/// A certificate that fits, and how it is kept.
pub(super) struct Ordered {
    pub(super) certificate: Certificate,
    /// The key, then the chain.
    pub(super) pem: Zeroizing<String>,
}

/// Orders a certificate for the names of `settings`; `replaced` is the one in whose place it comes.
pub(super) async fn place(
    account: &Account,
    settings: &Settings,
    replaced: Option<CertificateIdentifier<'_>>,
    resolver: &Arc<Resolver>,
    tokens: &http01::Tokens,
    now: SystemTime,
) -> Result<Ordered, Error> {
    let names: Vec<_> = settings.names.iter().cloned().map(Identifier::Dns).collect();
    let mut new = NewOrder::new(&names);
    if let Some(replaced) = replaced {
        new = new.replaces(replaced);
    }
    let mut order = account.new_order(&new).await.map_err(Error::Server)?;
    // They are answered for as long as these are kept.
    let mut answers = Answers { resolver, tokens, handshakes: Vec::new(), pages: Vec::new() };
    validate(&mut order, settings.challenge, &mut answers).await?;
    drop(answers);

    let key = rcgen::KeyPair::generate().map_err(|_| Error::Request)?;
    order.finalize_csr(&request(&settings.names, &key)?).await.map_err(Error::Server)?;
    let chain = order.poll_certificate(&POLLING).await.map_err(Error::Server)?;
    let private = Zeroizing::new(key.serialize_pem());
    let pem = Zeroizing::new(format!("{}{chain}", *private));
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let certificate = checked(&chain, der, &settings.names, now)?;
    Ok(Ordered { certificate, pem })
}

/// What answers the server's questions.
struct Answers<'a> {
    resolver: &'a Arc<Resolver>,
    tokens: &'a http01::Tokens,
    handshakes: Vec<tls::Presented>,
    pages: Vec<http01::Presented>,
}

impl Answers<'_> {
    fn present(&mut self, kind: Challenge, name: &str, challenge: &ChallengeHandle<'_>) -> Result<(), Error> {
        let authorization = challenge.key_authorization();
        match kind {
            Challenge::TlsAlpn01 => {
                let digest = authorization.digest().as_ref().try_into().map_err(|_| Error::Request)?;
                let answer = tls::challenge(name, &digest).map_err(|_| Error::Request)?;
                self.handshakes.push(self.resolver.present(name, answer));
            }
            Challenge::Http01 { .. } => {
                self.pages.push(self.tokens.present(&challenge.token, authorization.as_str()));
            }
        }
        Ok(())
    }
}

/// Shows the server that the names are ours.
async fn validate(order: &mut Order, kind: Challenge, answers: &mut Answers<'_>) -> Result<(), Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.map_err(Error::Server)?;
        let name = authorization.identifier().to_string();
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            AuthorizationStatus::Invalid
            | AuthorizationStatus::Revoked
            | AuthorizationStatus::Expired
            | AuthorizationStatus::Deactivated => return Err(Error::Refused(name)),
        }
        let wanted = match kind {
            Challenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
            Challenge::Http01 { .. } => ChallengeType::Http01,
        };
        let Some(mut challenge) = authorization.challenge(wanted) else { return Err(Error::NoChallenge(name)) };
        answers.present(kind, &name, &challenge)?;
        challenge.set_ready().await.map_err(Error::Server)?;
    }
    match order.poll_ready(&POLLING).await {
        Ok(OrderStatus::Ready) => Ok(()),
        Ok(_) | Err(instant_acme::Error::Api(_)) => Err(Error::Refused(faults(order).await)),
        Err(error) => Err(Error::Server(error)),
    }
}

/// What the server found, name by name.
async fn faults(order: &mut Order) -> String {
    let mut faults = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(authorization)) = authorizations.next().await {
        for challenge in &authorization.challenges {
            if let Some(detail) = challenge.error.as_ref().and_then(|problem| problem.detail.as_ref()) {
                faults.push(format!("{}: {detail}", authorization.identifier()));
            }
        }
    }
    faults.join("; ")
}

fn request(names: &[String], key: &rcgen::KeyPair) -> Result<Vec<u8>, Error> {
    let mut params = rcgen::CertificateParams::new(names).map_err(|_| Error::Request)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(key).map_err(|_| Error::Request)?;
    Ok(request.der().to_vec())
}

/// What was issued, if it is of use.
fn checked(chain: &str, key: PrivateKeyDer<'static>, names: &[String], now: SystemTime) -> Result<Certificate, Error> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
    let chain = chain.map_err(|_| Error::Issued(tls::Error::Syntax))?;
    let certificate = Certificate::new(chain, key, Origin::Acme).map_err(Error::Issued)?;
    if let Some(name) = names.iter().find(|name| !certificate.covers(name)) {
        return Err(Error::Unfit(format!("is not for {name}")));
    }
    if schedule::time(certificate.leaf().not_after) <= now {
        return Err(Error::Unfit("has expired".to_owned()));
    }
    Ok(certificate)
}
