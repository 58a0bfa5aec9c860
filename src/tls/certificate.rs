//! One certificate of the listener's: its chain, its key, and what it says of itself.

use std::{
    fmt::Write as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{client::verify_server_name, server::ParsedCertificate, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::{Error, Leaf, certified_key, provider};

/// How long a certificate is valid that stands in for one to come. Nobody trusts it; the end only bounds its use elsewhere.
const STANDING_IN: Duration = Duration::from_secs(7 * 86_400);

/// A chain with its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    leaf: Leaf,
    fingerprint: String,
    origin: Origin,
}

/// Where a certificate is from, which says who may put another in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Files that the configuration names.
    Files,
    /// Obtained by ACME.
    Acme,
    /// Made here, until one is obtained by ACME.
    StandIn,
}

impl Certificate {
    /// A chain, leaf first, with the leaf's key.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if the key is another certificate's; [`Error::Unusable`] if its kind is not supported;
    /// [`Error::Unclear`] for a leaf that is not understood.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        origin: Origin,
    ) -> Result<Self, Error> {
        let leaf = chain.first().ok_or(Error::NoCertificate)?;
        let fingerprint = fingerprint(leaf);
        let leaf = Leaf::read(leaf).ok_or(Error::Unclear)?;
        let key = Arc::new(certified_key(chain, key)?);
        Ok(Self { key, leaf, fingerprint, origin })
    }

    /// One for these names that no client trusts, so that there is something to listen with.
    ///
    /// # Errors
    /// [`Error::Unclear`] for what is no name; [`Error::Unusable`] if the cryptography fails.
    pub fn standing_in(names: &[String], now: SystemTime) -> Result<Self, Error> {
        let now = OffsetDateTime::from(now);
        let mut params = rcgen::CertificateParams::new(names).map_err(|_| Error::Unclear)?;
        (params.not_before, params.not_after) = (now - Duration::from_secs(3600), now + STANDING_IN);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "countersign, until there is a certificate");
        let (certificate, key) = self_signed(&params)?;
        Self::new(vec![certificate], key, Origin::StandIn)
    }

    /// The chain and key as rustls takes them.
    pub fn key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// Its DNS names in lower case; wildcards as they are written.
    pub fn names(&self) -> &[String] {
        &self.leaf.names
    }

    /// What it says of itself.
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// SHA-256 of the leaf, in hex.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Where it is from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Whether a client that asks for `name`, a DNS name or an address, finds it there.
    pub fn covers(&self, name: &str) -> bool {
        let Some(leaf) = self.key.cert.first() else { return false };
        let (Ok(leaf), Ok(name)) = (ParsedCertificate::try_from(leaf), ServerName::try_from(name)) else {
            return false;
        };
        verify_server_name(&leaf, &name).is_ok()
    }
}

/// SHA-256 of a certificate, in hex.
pub fn fingerprint(leaf: &[u8]) -> String {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(leaf) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// What proves to an ACME server that whoever answers for `name` holds the account whose key authorization has this digest.
///
/// # Errors
/// [`Error::Unclear`] for what is no name; [`Error::Unusable`] if the cryptography fails.
///
/// Source: RFC 8737, section 3.
pub fn challenge(name: &str, digest: &[u8; 32]) -> Result<Arc<CertifiedKey>, Error> {
    let mut params = rcgen::CertificateParams::new([name.to_owned()]).map_err(|_| Error::Unclear)?;
    params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(digest)];
    let (certificate, key) = self_signed(&params)?;
    // What it has to say is marked critical, and unknown to whoever would check the pair.
    let key = provider().key_provider.load_private_key(key).map_err(Error::Unusable)?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate], key)))
}

fn self_signed(params: &rcgen::CertificateParams) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), Error> {
    let failed = |_| Error::Unusable(rustls::Error::General("no certificate could be made".to_owned()));
    let key = rcgen::KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok((certificate.der().clone(), PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stand_in_is_for_its_names_and_for_a_week() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_785_542_400);
        let certificate = Certificate::standing_in(&["a.test".to_owned(), "b.test".to_owned()], now).unwrap();
        assert_eq!(certificate.names(), ["a.test", "b.test"]);
        assert!(certificate.covers("b.test") && !certificate.covers("c.test"));
        assert_eq!(certificate.origin(), Origin::StandIn);
        assert_eq!(certificate.leaf().not_after, 1_785_542_400 + 7 * 86_400);
    }
}
