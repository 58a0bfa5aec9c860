//! Which certificate a handshake gets, while certificates come and go.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{ACME_TLS, certificate::Certificate, certificates::Certificates};

/// The certificates in force. Whoever has it may put others in their place, from the next handshake on.
#[derive(Debug)]
pub struct Resolver {
    current: ArcSwap<Certificates>,
    /// By name, what answers an ACME server that validates it.
    challenges: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

/// A challenge that is answered until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Presented {
    resolver: Arc<Resolver>,
    name: String,
}

impl Resolver {
    /// Begins with these.
    pub fn new(certificates: Certificates) -> Self {
        Self { current: ArcSwap::from_pointee(certificates), challenges: Mutex::default() }
    }

    /// Those in force.
    pub fn current(&self) -> Arc<Certificates> {
        self.current.load_full()
    }

    /// Puts others in their place. Where both sets have an own certificate of ACME's, or what stands in for it, the one in
    /// force stays: it may be newer than what a configuration found on disk.
    pub fn replace(&self, certificates: Certificates) {
        let certificates = Arc::new(certificates);
        self.current.rcu(|current| {
            if current.is_of_acme() && certificates.is_of_acme() {
                Arc::new(certificates.with_own(Arc::clone(current.own())))
            } else {
                Arc::clone(&certificates)
            }
        });
    }

    /// Puts another certificate in place of the listener's own; those for further names stay.
    pub fn renew(&self, own: Certificate) {
        let own = Arc::new(own);
        self.current.rcu(|current| current.with_own(Arc::clone(&own)));
    }

    /// Whether the listener's own certificate stands in for one that is still to be obtained.
    pub fn is_standing_in(&self) -> bool {
        self.current.load().is_standing_in()
    }

    /// Gives `answer` to an ACME server that validates `name`, until what this returns is dropped.
    pub fn present(self: &Arc<Self>, name: &str, answer: Arc<CertifiedKey>) -> Presented {
        let name = name.to_ascii_lowercase();
        self.challenges().insert(name.clone(), answer);
        Presented { resolver: Arc::clone(self), name }
    }

    fn challenges(&self) -> MutexGuard<'_, HashMap<String, Arc<CertifiedKey>>> {
        self.challenges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Presented {
    fn drop(&mut self) {
        self.resolver.challenges().remove(&self.name);
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.current.load().select(hello.server_name())))
    }
}

/// The answers to ACME servers, and nothing else.
#[derive(Debug)]
pub(super) struct Challenges(pub(super) Arc<Resolver>);

impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if !is_challenge(&hello) {
            return None;
        }
        self.0.challenges().get(hello.server_name()?).cloned()
    }
}

/// Whether it is an ACME server that asks, to validate a name: it offers the challenge's protocol and no other.
///
/// Source: RFC 8737, section 3.
pub fn is_challenge(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut protocols| protocols.next() == Some(ACME_TLS) && protocols.next().is_none())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::tls::{Origin, challenge};

    fn stand_in() -> Certificate {
        Certificate::standing_in(&["a.test".to_owned()], SystemTime::now()).unwrap()
    }

    #[test]
    fn what_acme_put_in_place_outlives_a_set_that_was_read_before() {
        let resolver = Resolver::new(Certificates::new(stand_in(), Vec::new()));
        assert!(resolver.is_standing_in());
        let obtained = {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap().self_signed(&key).unwrap();
            let key = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
            Certificate::new(vec![certificate.der().clone()], key, Origin::Acme).unwrap()
        };
        resolver.renew(obtained.clone());
        assert!(!resolver.is_standing_in());
        let more = stand_in();
        resolver.replace(Certificates::new(stand_in(), vec![more.clone()]));
        assert_eq!(resolver.current().fingerprints(), [obtained.fingerprint(), more.fingerprint()]);
        resolver.renew(more.clone());
        assert_eq!(resolver.current().fingerprints(), [more.fingerprint(), more.fingerprint()]);
    }

    #[test]
    fn a_challenge_is_answered_while_its_answer_is_kept() {
        let resolver = Arc::new(Resolver::new(Certificates::new(stand_in(), Vec::new())));
        let presented = resolver.present("A.test", challenge("a.test", &[0; 32]).unwrap());
        assert!(resolver.challenges().contains_key("a.test"));
        drop(presented);
        assert!(resolver.challenges().is_empty());
    }
}
