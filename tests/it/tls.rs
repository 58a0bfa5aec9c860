//! TLS towards clients: versions, protocols, resumption.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
};

use rustls::{ClientConnection, HandshakeKind, ProtocolVersion, StreamOwned, SupportedProtocolVersion, version};

use crate::support::{Gateway, Upstream, signed_head};

/// What was agreed on with a client of these versions and protocols, after a request that was answered with 200.
fn agreed(gateway: &Gateway, config: &Arc<rustls::ClientConfig>) -> (ProtocolVersion, Option<Vec<u8>>, HandshakeKind) {
    let stream = TcpStream::connect(gateway.address).unwrap();
    let connection = ClientConnection::new(Arc::clone(config), "gw.test".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    stream.write_all(signed_head("GET", "/a", "Connection: close\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let connection = &stream.conn;
    if connection.alpn_protocol() != Some(b"h2") {
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&answer));
    }
    if connection.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
        // The client names that with SHA-384 first.
        let suite = connection.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    }
    let protocol = connection.alpn_protocol().map(<[u8]>::to_vec);
    (connection.protocol_version().unwrap(), protocol, connection.handshake_kind().unwrap())
}

fn client(
    gateway: &Gateway,
    versions: &[&'static SupportedProtocolVersion],
    protocols: &[&[u8]],
) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in countersign::tls::certificates(&gateway.folder.path().join("cert.pem")).unwrap() {
        roots.add(certificate).unwrap();
    }
    let mut config = rustls::ClientConfig::builder_with_provider(countersign::tls::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

#[test]
fn both_versions_and_both_protocols_are_spoken_and_sessions_resumed() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    for (versions, version) in [
        (&[&version::TLS12][..], ProtocolVersion::TLSv1_2),
        (&[&version::TLS13][..], ProtocolVersion::TLSv1_3),
        (rustls::ALL_VERSIONS, ProtocolVersion::TLSv1_3),
    ] {
        for (protocols, protocol) in [
            (&[&b"http/1.1"[..]][..], Some(&b"http/1.1"[..])),
            (&[b"h2", b"http/1.1"], Some(b"h2")),
            (&[b"http/1.1", b"h2"], Some(b"h2")),
            (&[], None),
        ] {
            let config = client(&gateway, versions, protocols);
            let (got, spoken, kind) = agreed(&gateway, &config);
            assert_eq!((got, spoken.as_deref()), (version, protocol));
            assert_ne!(kind, HandshakeKind::Resumed);
            assert_eq!(agreed(&gateway, &config).2, HandshakeKind::Resumed, "{version:?} {protocol:?}");
        }
    }
}

#[test]
fn a_client_that_speaks_neither_protocol_is_refused_in_the_handshake() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let config = client(&gateway, rustls::ALL_VERSIONS, &[b"spdy/3"]);
    let stream = TcpStream::connect(gateway.address).unwrap();
    let connection = ClientConnection::new(config, "gw.test".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    assert!(
        stream
            .write_all(signed_head("GET", "/a", "").as_bytes())
            .and_then(|()| stream.read(&mut [0; 1]).map(drop))
            .is_err()
    );
    assert!(upstream.requests().is_empty());
}
