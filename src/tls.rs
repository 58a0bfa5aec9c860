//! TLS towards both sides: certificates and keys from PEM, rustls configurations from them.

use std::{fmt, path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::CryptoProvider, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// HTTP/2 as ALPN names it.
pub const H2: &[u8] = b"h2";
/// HTTP/1.1 as ALPN names it.
pub const HTTP_1_1: &[u8] = b"http/1.1";

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

/// The listener's side: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN, resumption by tickets.
///
/// # Errors
/// [`Error::Unusable`] if the cryptography cannot be set up.
pub fn server(certified: Arc<CertifiedKey>) -> Result<ServerConfig, Error> {
    let resolver = rustls::sign::SingleCertAndKey::from(certified);
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // As strong as anything asks for, and a quarter of a handshake's arithmetic less than with SHA-384.
    let cheapest = rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != cheapest);
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .map_err(Error::Unusable)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![H2.to_vec(), HTTP_1_1.to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(Error::Unusable)?;
    config.ignore_client_order = true;
    config.max_early_data_size = 0;
    // Each is sealed and sent in every full handshake, and a resumed connection brings the next.
    config.send_tls13_tickets = 1;
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
            | Self::NoRoots => None,
        }
    }
}
