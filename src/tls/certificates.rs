//! The certificates of a listener, and which of them a client gets.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use rustls::sign::CertifiedKey;

use super::certificate::{Certificate, Origin};

/// The listener's own certificate and those for further names. It does not change: another set is put in its place.
#[derive(Clone, Debug)]
pub struct Certificates {
    own: Arc<Certificate>,
    more: Vec<Arc<Certificate>>,
    by_name: HashMap<String, Arc<CertifiedKey>>,
}

/// Until when a certificate is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// Its first DNS name; empty if it has none.
    pub name: String,
    /// Seconds since the epoch.
    pub not_after: i64,
}

impl Certificates {
    /// `own` answers where nothing else fits. A name that several have is that of the first.
    pub fn new(own: Certificate, more: Vec<Certificate>) -> Self {
        Self::of(Arc::new(own), more.into_iter().map(Arc::new).collect())
    }

    fn of(own: Arc<Certificate>, more: Vec<Arc<Certificate>>) -> Self {
        let mut by_name = HashMap::new();
        for certificate in std::iter::once(&own).chain(&more) {
            for name in certificate.names() {
                by_name.entry(name.clone()).or_insert_with(|| Arc::clone(certificate.key()));
            }
        }
        Self { own, more, by_name }
    }

    /// The same with another certificate as the listener's own.
    #[must_use]
    pub fn with_own(&self, own: Arc<Certificate>) -> Self {
        Self::of(own, self.more.clone())
    }

    /// What a client gets that asks for this name: the certificate with the name, else the one with a wildcard in place of
    /// its first label, else the listener's own, which a client without a name gets too.
    pub fn select(&self, sni: Option<&str>) -> &Arc<CertifiedKey> {
        let named = sni.and_then(|name| {
            let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                Cow::Owned(name.to_ascii_lowercase())
            } else {
                Cow::Borrowed(name)
            };
            self.by_name.get(&*name).or_else(|| {
                let (_, parent) = name.split_once('.')?;
                self.by_name.get(&format!("*.{parent}"))
            })
        });
        named.unwrap_or_else(|| self.own.key())
    }

    /// The listener's own.
    pub fn own(&self) -> &Arc<Certificate> {
        &self.own
    }

    /// All of them, the listener's own first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Certificate>> {
        std::iter::once(&self.own).chain(&self.more)
    }

    /// Until when each is valid, in the order of [`Certificates::iter`].
    pub fn expiries(&self) -> Vec<Expiry> {
        let expiry = |certificate: &Arc<Certificate>| Expiry {
            name: certificate.names().first().cloned().unwrap_or_default(),
            not_after: certificate.leaf().not_after,
        };
        self.iter().map(expiry).collect()
    }

    /// SHA-256 of each leaf, in hex, in the order of [`Certificates::iter`].
    pub fn fingerprints(&self) -> Vec<&str> {
        self.iter().map(|certificate| certificate.fingerprint()).collect()
    }

    /// Whether the listener's own stands in for one that is still to be obtained.
    pub fn is_standing_in(&self) -> bool {
        self.own.origin() == Origin::StandIn
    }

    /// Whether the listener's own is ACME's to put in place.
    pub(super) fn is_of_acme(&self) -> bool {
        match self.own.origin() {
            Origin::Acme | Origin::StandIn => true,
            Origin::Files => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn certificate(names: &[&str]) -> Certificate {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        Certificate::standing_in(&names, SystemTime::now()).unwrap()
    }

    #[test]
    fn the_nearest_name_is_selected() {
        let own = certificate(&["gateway.test", "exact.wild.test"]);
        let wild = certificate(&["*.wild.test"]);
        let both = certificate(&["other.test", "gateway.test", "www.wild.test"]);
        let set = Certificates::new(own.clone(), vec![wild.clone(), both.clone()]);
        for (sni, expected) in [
            (None, &own),
            (Some("unknown.test"), &own),
            (Some("test"), &own),
            (Some(""), &own),
            (Some("gateway.test"), &own),
            (Some("GATEWAY.test"), &own),
            (Some("a.wild.test"), &wild),
            (Some("A.WILD.TEST"), &wild),
            // One label only, and not none.
            (Some("a.b.wild.test"), &own),
            (Some("wild.test"), &own),
            (Some("exact.wild.test"), &own),
            (Some("www.wild.test"), &both),
            (Some("other.test"), &both),
        ] {
            assert!(Arc::ptr_eq(set.select(sni), expected.key()), "{sni:?}");
        }
        let names: Vec<_> = set.expiries().into_iter().map(|expiry| expiry.name).collect();
        assert_eq!(names, ["gateway.test", "*.wild.test", "other.test"]);
        assert_eq!(set.fingerprints(), [own.fingerprint(), wild.fingerprint(), both.fingerprint()]);
    }
}
