//! Which certificate a client gets, and which one it must have itself.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use countersign::tls::{self, Certificate, Resolver};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, RootCertStore, SignatureScheme, StreamOwned,
    client::{
        ResolvesClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    sign::CertifiedKey,
    version,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};

use crate::support::{Gateway, Upstream, client_config, signed_head};

/// An authority of a test's own.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = rcgen::CertificateParams::new([]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "a test's authority");
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: rcgen::Issuer::new(params, key) }
    }

    /// A certificate for `names` from one year to the beginning of another, and its key.
    pub(crate) fn issue(&self, names: &[&str], years: (i32, i32)) -> (rcgen::Certificate, rcgen::KeyPair) {
        let mut params =
            rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        params.use_authority_key_identifier_extension = true;
        let key = rcgen::KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// Takes any certificate: these tests look at which one it is.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The fingerprint of the certificate that the gateway shows to a client which asks for this name.
pub(crate) fn shown(address: SocketAddr, sni: Option<&str>, protocols: &[&[u8]]) -> io::Result<String> {
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    config.enable_sni = sni.is_some();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(sni.unwrap_or("no.name").to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    let shown = &connection.peer_certificates().unwrap()[0];
    Ok(fingerprint(shown))
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

const ROUTE: &str = "[[routes]]\npath = \"/\"\napp = \"test\"\n";

fn tables(upstream: &Upstream) -> String {
    Gateway::tables(&format!("{ROUTE}upstream = \"{}\"\n", upstream.origin()))
}

#[test]
fn a_client_gets_the_certificate_for_the_name_it_asks_for() {
    let upstream = Upstream::ok();
    let authority = Authority::new();
    let (exact, exact_key) = authority.issue(&["Exact.test", "www.exact.test"], (2020, 2090));
    let (wild, wild_key) = authority.issue(&["*.wild.test"], (2020, 2090));
    let more = "[[listener.certificates]]\ncertificate = \"exact.pem\"\nprivate_key = \"exact.key\"\n\
                [[listener.certificates]]\ncertificate = \"wild.pem\"\nprivate_key = \"wild.key\"\n";
    let files = [
        ("exact.pem", exact.pem()),
        ("exact.key", exact_key.serialize_pem()),
        ("wild.pem", wild.pem()),
        ("wild.key", wild_key.serialize_pem()),
    ];
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let gateway = Gateway::with_files("", &format!("{more}{}", tables(&upstream)), &files);
    let own = tls::certificates(&gateway.folder.path().join("cert.pem")).unwrap();
    let (own, exact, wild) = (fingerprint(&own[0]), fingerprint(exact.der()), fingerprint(wild.der()));
    for (sni, expected) in [
        (None, &own),
        (Some("gw.test"), &own),
        (Some("unknown.test"), &own),
        (Some("exact.test"), &exact),
        (Some("EXACT.test"), &exact),
        (Some("www.exact.test"), &exact),
        (Some("other.exact.test"), &own),
        (Some("any.wild.test"), &wild),
        (Some("wild.test"), &own),
        (Some("a.b.wild.test"), &own),
    ] {
        assert_eq!(&shown(gateway.address, sni, &[b"h2", b"http/1.1"]).unwrap(), expected, "{sni:?}");
    }
    assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
}

#[test]
fn a_certificate_that_is_put_in_place_is_shown_from_the_next_handshake_on() {
    let upstream = Upstream::ok();
    let (settings, folder) = Gateway::settings("", &tables(&upstream), &[]);
    let resolver = Arc::clone(&settings.resolver);
    let gateway = Gateway::start(settings, folder);
    let mut before = gateway.connect();
    before.send(signed_head("GET", "/a", ""));
    assert_eq!(before.answer().status, 200);
    let new = Certificate::standing_in(&["gw.test".to_owned()], std::time::SystemTime::now()).unwrap();
    resolver.renew(new.clone());
    assert_eq!(shown(gateway.address, Some("gw.test"), &[]).unwrap(), new.fingerprint());
    // Who is connected stays so.
    before.send(signed_head("GET", "/b", ""));
    assert_eq!(before.answer().status, 200);
}

/// What a client with this certificate is answered; nothing if it gets no answer.
fn answered(gateway: &Gateway, config: &Arc<ClientConfig>) -> (Option<u16>, Option<HandshakeKind>) {
    let stream = TcpStream::connect(gateway.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let connection = ClientConnection::new(Arc::clone(config), "gw.test".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    let _ = stream.write_all(signed_head("GET", "/a", "Connection: close\r\n").as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).map(|status| status.parse().unwrap());
    (status, stream.conn.handshake_kind())
}

fn certified(certificate: &rcgen::Certificate, key: &rcgen::KeyPair) -> Arc<CertifiedKey> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Arc::new(tls::certified_key(vec![certificate.der().clone()], key).unwrap())
}

/// A client's certificate, which it can lose.
#[derive(Debug)]
struct Wallet {
    certificate: Option<Arc<CertifiedKey>>,
    is_lost: AtomicBool,
}

impl ResolvesClientCert for Wallet {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certificate.clone().filter(|_| !self.is_lost.load(Ordering::Relaxed))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn wallet(certificate: Option<Arc<CertifiedKey>>) -> Arc<Wallet> {
    Arc::new(Wallet { certificate, is_lost: AtomicBool::new(false) })
}

fn client_with(
    gateway: &Gateway,
    wallet: &Arc<Wallet>,
    version: &'static rustls::SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in tls::certificates(&gateway.folder.path().join("cert.pem")).unwrap() {
        roots.add(certificate).unwrap();
    }
    let wallet: Arc<dyn ResolvesClientCert> = Arc::<Wallet>::clone(wallet);
    let config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(wallet);
    Arc::new(config)
}

#[test]
fn with_a_client_ca_only_clients_with_a_valid_certificate_of_it_are_served() {
    let upstream = Upstream::ok();
    let (ours, foreign) = (Authority::new(), Authority::new());
    let gateway =
        Gateway::with_files("client_ca = \"clients.pem\"", &tables(&upstream), &[("clients.pem", ours.pem.as_str())]);
    let issued = |authority: &Authority, years| {
        let (certificate, key) = authority.issue(&["client.test"], years);
        Some(certified(&certificate, &key))
    };
    let (self_signed, key) = {
        let key = rcgen::KeyPair::generate().unwrap();
        (rcgen::CertificateParams::new(["client.test".to_owned()]).unwrap().self_signed(&key).unwrap(), key)
    };
    for version in [&version::TLS12, &version::TLS13] {
        for (who, certificate) in [
            ("none", None),
            ("foreign", issued(&foreign, (2020, 2090))),
            ("self-signed", Some(certified(&self_signed, &key))),
            ("expired", issued(&ours, (2020, 2021))),
            ("not yet valid", issued(&ours, (2080, 2090))),
        ] {
            let config = client_with(&gateway, &wallet(certificate), version);
            assert_eq!(answered(&gateway, &config).0, None, "{who} {version:?}");
        }
        assert!(upstream.requests().is_empty());
    }
    for (count, version) in [(1, &version::TLS12), (2, &version::TLS13)] {
        let config = client_with(&gateway, &wallet(issued(&ours, (2020, 2090))), version);
        assert_eq!(answered(&gateway, &config).0, Some(200), "{version:?}");
        assert_eq!(upstream.requests().len(), count);
    }
}

#[test]
fn a_session_of_a_client_with_a_certificate_does_not_outlive_the_certificate() {
    let upstream = Upstream::ok();
    let ours = Authority::new();
    let gateway =
        Gateway::with_files("client_ca = \"clients.pem\"", &tables(&upstream), &[("clients.pem", ours.pem.as_str())]);
    let (certificate, key) = ours.issue(&["client.test"], (2020, 2090));
    for version in [&version::TLS12, &version::TLS13] {
        let wallet = wallet(Some(certified(&certificate, &key)));
        let config = client_with(&gateway, &wallet, version);
        for _ in 0..2 {
            let (status, kind) = answered(&gateway, &config);
            assert_eq!(status, Some(200), "{version:?}");
            assert_ne!(kind, Some(HandshakeKind::Resumed), "{version:?}");
        }
        let before = upstream.requests().len();
        wallet.is_lost.store(true, Ordering::Relaxed);
        assert_eq!(answered(&gateway, &config).0, None, "{version:?}");
        assert_eq!(upstream.requests().len(), before);
    }
}

/// A gateway and its resolver, with or without the need for a client's certificate.
fn with_resolver(upstream: &Upstream, listener: &str) -> (Gateway, Arc<Resolver>) {
    let authority = Authority::new();
    let (settings, folder) = Gateway::settings(listener, &tables(upstream), &[("clients.pem", authority.pem.as_str())]);
    let resolver = Arc::clone(&settings.resolver);
    (Gateway::start(settings, folder), resolver)
}

#[test]
fn an_acme_server_is_answered_only_while_a_challenge_is_pending() {
    let upstream = Upstream::ok();
    for listener in ["", "client_ca = \"clients.pem\""] {
        let (gateway, resolver) = with_resolver(&upstream, listener);
        let asked = |sni, protocols: &[&[u8]]| shown(gateway.address, sni, protocols);
        assert!(asked(Some("gw.test"), &[tls::ACME_TLS]).is_err());
        let answer = tls::challenge("gw.test", &[7; 32]).unwrap();
        let presented = resolver.present("gw.test", Arc::clone(&answer));
        assert_eq!(asked(Some("gw.test"), &[tls::ACME_TLS]).unwrap(), fingerprint(&answer.cert[0]));
        assert!(asked(Some("other.test"), &[tls::ACME_TLS]).is_err());
        assert!(asked(None, &[tls::ACME_TLS]).is_err());
        // Whoever speaks anything else beside it is a client like any other.
        if listener.is_empty() {
            let own = resolver.current().own().fingerprint().to_owned();
            for protocols in [&[tls::ACME_TLS, b"http/1.1"][..], &[b"h2", tls::ACME_TLS], &[b"h2"], &[]] {
                assert_eq!(asked(Some("gw.test"), protocols).unwrap(), own);
            }
        }
        drop(presented);
        assert!(asked(Some("gw.test"), &[tls::ACME_TLS]).is_err());
    }
}

#[test]
fn what_an_acme_server_could_ask_never_reaches_http() {
    let upstream = Upstream::ok();
    let (gateway, resolver) = with_resolver(&upstream, "");
    let _presented = resolver.present("gw.test", tls::challenge("gw.test", &[7; 32]).unwrap());
    let mut config = client_config(&gateway.folder.path().join("cert.pem"), &[tls::ACME_TLS]);
    config.dangerous().set_certificate_verifier(Arc::new(Anyone));
    let connection = ClientConnection::new(Arc::new(config), "gw.test".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, TcpStream::connect(gateway.address).unwrap());
    stream.sock.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = stream.write_all(signed_head("GET", "/a", "").as_bytes());
    let mut came = Vec::new();
    let _ = stream.read_to_end(&mut came);
    assert_eq!(stream.conn.alpn_protocol(), Some(tls::ACME_TLS));
    assert_eq!(came, b"");
    // Whoever comes next is served, and of the one before nothing was seen.
    assert_eq!(gateway.ask(signed_head("GET", "/b", "")).status, 200);
    assert_eq!(gateway.records(1).len(), 1);
    assert!(upstream.only().0.starts_with("GET /b "));
}
