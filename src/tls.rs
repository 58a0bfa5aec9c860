//! TLS towards both sides: certificates and keys from PEM, rustls configurations from them.

use std::{fmt, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

mod certificate;
mod certificates;
mod leaf;
mod resolver;

pub use certificate::{Certificate, Origin, challenge, fingerprint};
pub use certificates::{Certificates, Expiry};
pub use leaf::Leaf;
pub use resolver::{Presented, Resolver, is_challenge};

/// HTTP/2 as ALPN names it.
pub const H2: &[u8] = b"h2";
/// HTTP/1.1 as ALPN names it.
pub const HTTP_1_1: &[u8] = b"http/1.1";
/// What an ACME server speaks that validates a name (RFC 8737, section 4).
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// Why a certificate, key or authority cannot be used. The file's path is the caller's to say.
#[derive(Debug)]
pub enum Error {
    Unreadable(std::io::ErrorKind),
    NoCertificate,
    NoKey,
    EncryptedKey,
    Syntax,
    /// The key is not the one of the certificate.
    Mismatch,
    /// It is PEM, but no certificate that is understood.
    Unclear,
    Unusable(rustls::Error),
    NoRoots,
}

/// The one cryptography of the program.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Reads a PEM chain, leaf first.
///
/// # Errors
/// [`Error::Unreadable`], [`Error::Syntax`], or [`Error::NoCertificate`] for a file without one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = std::fs::read(path).map_err(|error| Error::Unreadable(error.kind()))?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| Error::Syntax)?;
    if chain.is_empty() { Err(Error::NoCertificate) } else { Ok(chain) }
}

/// Reads the first private key of a PEM file: PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
/// [`Error::Unreadable`], [`Error::NoKey`] for a file without one, or [`Error::EncryptedKey`].
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let pem = zeroize::Zeroizing::new(std::fs::read(path).map_err(|error| Error::Unreadable(error.kind()))?);
    let is_encrypted = pem.windows(9).any(|part| part == b"ENCRYPTED");
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| if is_encrypted { Error::EncryptedKey } else { Error::NoKey })
}

/// Joins a chain and its key.
///
/// # Errors
/// [`Error::Mismatch`] if the key is another certificate's; [`Error::Unusable`] if its kind is not supported.
pub fn certified_key(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, Error> {
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => Error::Mismatch,
        other => Error::Unusable(other),
    })
}

/// Reads the certificates of authorities.
///
/// # Errors
/// Those of [`certificates`]; [`Error::Unclear`] if one of them is none, for what was meant must not be guessed.
pub fn authorities(path: &Path) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|_| Error::Unclear)?;
    }
    Ok(store)
}

/// The listener's side: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN, resumption by tickets.
///
/// With `client_ca` a client must prove itself with a certificate of one of these authorities, and sessions are not
/// resumed: a resumed one is not asked again, and would outlive the certificate by which it began.
///
/// # Errors
/// [`Error::Unusable`] if the cryptography cannot be set up; [`Error::NoRoots`] for no authority.
pub fn server(resolver: Arc<Resolver>, client_ca: Option<Arc<RootCertStore>>) -> Result<ServerConfig, Error> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // As strong as anything asks for, and a quarter of a handshake's arithmetic less than with SHA-384.
    let cheapest = rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != cheapest);
    let provider = Arc::new(provider);
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(Error::Unusable)?;
    let is_resumed = client_ca.is_none();
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|_| Error::NoRoots)?)
        }
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = vec![H2.to_vec(), HTTP_1_1.to_vec()];
    config.ignore_client_order = true;
    config.max_early_data_size = 0;
    if is_resumed {
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(Error::Unusable)?;
        // Each is sealed and sent in every full handshake, and a resumed connection brings the next.
        config.send_tls13_tickets = 1;
    } else {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

/// What answers an ACME server that validates a name: the challenge's certificate and protocol, and no other. Whoever
/// asks for a name that is not being validated is refused.
///
/// # Errors
/// [`Error::Unusable`] if the cryptography cannot be set up.
pub fn challenges(resolver: Arc<Resolver>) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Unusable)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver::Challenges(resolver)));
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The side towards upstreams: `roots` of a private authority, or the system's; a certificate of our own where given.
///
/// # Errors
/// [`Error::NoRoots`] if no root certificate could be used; [`Error::Unusable`] for a certificate that cannot be.
pub fn client(
    roots: Option<Vec<CertificateDer<'static>>>,
    ours: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(Error::Unusable)?;
    let builder = if let Some(roots) = roots {
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(roots);
        if added == 0 {
            return Err(Error::NoRoots);
        }
        builder.with_root_certificates(store)
    } else {
        use rustls_platform_verifier::BuilderVerifierExt as _;
        builder.with_platform_verifier().map_err(Error::Unusable)?
    };
    let mut config = match ours {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(Error::Unusable)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![H2.to_vec(), HTTP_1_1.to_vec()];
    Ok(config)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(kind) => write!(f, "cannot be read: {}", reason(*kind)),
            Self::NoCertificate => f.write_str("holds no PEM certificate"),
            Self::NoKey => f.write_str("holds no PEM private key"),
            Self::EncryptedKey => f.write_str("holds a private key that is encrypted; store it without a passphrase"),
            Self::Syntax => f.write_str("is not valid PEM"),
            Self::Mismatch => f.write_str("is not the private key of the certificate"),
            Self::Unclear => f.write_str("holds what is no certificate of a known form"),
            Self::Unusable(_) => f.write_str("cannot be used"),
            Self::NoRoots => f.write_str("holds no usable root certificate"),
        }
    }
}

/// Why a file cannot be read, in the words of a shell.
pub fn reason(kind: std::io::ErrorKind) -> String {
    match kind {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        other => other.to_string(),
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unusable(error) => Some(error),
            Self::Unreadable(_)
            | Self::NoCertificate
            | Self::NoKey
            | Self::EncryptedKey
            | Self::Syntax
            | Self::Mismatch
            | Self::Unclear
            | Self::NoRoots => None,
        }
    }
}
