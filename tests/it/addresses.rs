//! Whose address a request has, with and without proxies in between.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use countersign::limits::Limit;
use serde_json::Value;

use crate::{
    http2::{over_http2, request},
    support::{ACCOUNT, Answer, Client, Gateway, Upstream, header, headers, signed_head},
};

const PROXY: [u8; 4] = [127, 0, 0, 2];
const STRANGER: [u8; 4] = [127, 0, 0, 3];

/// A gateway with one route for everything to `upstream`, these keys of the listener and these limits.
fn gateway(upstream: &Upstream, listener: &str, limits: &str) -> Gateway {
    Gateway::of(
        listener,
        &format!(
            "[apps.test]\nsecrets = [{{ file = \"secret\" }}]\naccounts = [\"{ACCOUNT}\"]\n[limits]\n{limits}\n\
             [[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n",
            upstream.origin()
        ),
    )
}

/// What the upstream was told of the client's address in the last request, byte for byte.
fn told(upstream: &Upstream) -> String {
    let requests = upstream.requests();
    let head = String::from_utf8(requests.last().unwrap().clone()).unwrap();
    let lines: Vec<_> = headers(&head, "x-forwarded-for").collect();
    assert_eq!(lines.len(), 1, "{head}");
    assert!(header(&head, "forwarded").is_none() && header(&head, "x-real-ip").is_none(), "{head}");
    assert_eq!(header(&head, "x-forwarded-proto"), Some("https"));
    assert_eq!(header(&head, "x-forwarded-host"), Some("gw.test"));
    lines[0].to_owned()
}

/// The client's address and port in the record `at`.
fn recorded(gateway: &Gateway, at: usize) -> (String, Value) {
    let record = gateway.records(at + 1).swap_remove(at);
    (record["client.address"].as_str().unwrap().to_owned(), record["client.port"].clone())
}

fn ask(mut client: Client, more: &str) -> Answer {
    client.send(signed_head("GET", "/a", more));
    client.answer()
}

const FORGED: &str = "X-Forwarded-For: 198.51.100.1\r\nForwarded: for=198.51.100.1\r\nX-Real-IP: 198.51.100.1\r\n\
    X-Forwarded-Proto: http\r\nX-Forwarded-Host: other.test\r\n";

#[test]
fn nobody_is_believed_about_an_address_unless_listed() {
    let upstream = Upstream::ok();
    for listener in ["", "trusted_proxies = [\"127.0.0.2\", \"198.51.100.0/24\"]"] {
        let gateway = gateway(&upstream, listener, "");
        let stream = gateway.stream_from(STRANGER);
        let port = stream.local_addr().unwrap().port();
        assert_eq!(ask(gateway.connect_on(stream), FORGED).status, 200);
        assert_eq!(told(&upstream), "127.0.0.3");
        assert_eq!(recorded(&gateway, 0), ("127.0.0.3".into(), port.into()));
    }
}

#[test]
fn behind_proxies_the_client_is_the_last_address_that_is_none_of_theirs() {
    let upstream = Upstream::ok();
    let gateway = gateway(&upstream, "trusted_proxies = [\"127.0.0.2\", \"10.0.0.0/8\", \"2001:db8:1::/48\"]", "");
    let long = format!("X-Forwarded-For: 198.51.100.1{}\r\n", ", 10.0.0.9".repeat(100));
    let cases = [
        (FORGED, "198.51.100.1"),
        ("X-Forwarded-For: 6.6.6.6, 198.51.100.1\r\n", "198.51.100.1"),
        (
            "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 198.51.100.1, 10.1.1.1\r\nX-Forwarded-For: 10.2.2.2\r\n",
            "198.51.100.1",
        ),
        ("X-Forwarded-For: 2001:db8::9, 2001:db8:1::1\r\n", "2001:db8::9"),
        ("X-Forwarded-For: ::ffff:198.51.100.1\r\n", "198.51.100.1"),
        ("X-Forwarded-For: 10.1.1.1, 10.2.2.2\r\n", "10.1.1.1"),
        ("X-Forwarded-For: 198.51.100.1, rubbish, 10.2.2.2\r\n", "10.2.2.2"),
        ("X-Forwarded-For: \"; drop\r\n", "127.0.0.2"),
        ("X-Forwarded-For:\r\n", "127.0.0.2"),
        ("X_Forwarded_For: 198.51.100.1\r\nForwarded: for=198.51.100.1\r\n", "127.0.0.2"),
        ("", "127.0.0.2"),
        (&long, "10.0.0.9"),
    ];
    for (at, (more, expected)) in cases.into_iter().enumerate() {
        assert_eq!(ask(gateway.connect_on(gateway.stream_from(PROXY)), more).status, 200, "{more}");
        assert_eq!(told(&upstream), expected, "{more}");
        let (address, port) = recorded(&gateway, at);
        assert_eq!((address.as_str(), port.is_null()), (expected, expected != "127.0.0.2"), "{more}");
    }
    // A `Connection` field cannot take the gateway's own away.
    let more = "Connection: X-Forwarded-For\r\nX-Forwarded-For: 198.51.100.1\r\n";
    ask(gateway.connect_on(gateway.stream_from(PROXY)), more);
    assert_eq!(told(&upstream), "198.51.100.1");
}

#[test]
fn over_http2_a_proxy_is_believed_likewise() {
    let upstream = Upstream::ok();
    let gateway = gateway(&upstream, "trusted_proxies = [\"127.0.0.1\"]", "");
    over_http2(&gateway, async |mut sender| {
        let mut request = request("GET", "/a", "");
        request.headers_mut().append("x-forwarded-for", "6.6.6.6".parse().unwrap());
        request.headers_mut().append("x-forwarded-for", "198.51.100.1".parse().unwrap());
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    });
    assert_eq!(told(&upstream), "198.51.100.1");
}

#[test]
fn clients_behind_one_proxy_each_have_their_share() {
    let upstream = Upstream::ok();
    let limits = "body_bytes = \"64KiB\"\nbuffered_bytes_per_address = \"64KiB\"\nbuffered_bytes = \"256KiB\"";
    let gateway = gateway(&upstream, "trusted_proxies = [\"127.0.0.2\"]", limits);
    let upload = |address: &str, length: usize| {
        let mut client = gateway.connect_on(gateway.stream_from(PROXY));
        let more =
            format!("X-Forwarded-For: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n");
        client.send(signed_head("POST", "/a", &more));
        client
    };
    let status_of = |address: &str| {
        let mut client = upload(address, 20_000);
        client.send("x".repeat(20_000));
        client.answer().status
    };
    let mut held = upload("2001:db8::1", 60_000);
    held.send("x".repeat(59_999));
    let deadline = Instant::now() + Duration::from_secs(15);
    // Another address of the same host.
    while status_of("2001:db8::2") != 503 {
        assert!(Instant::now() < deadline);
    }
    assert_ne!(status_of("2001:db8:0:1::1"), 503);
    assert!(gateway.hits(Limit::BufferedBytesPerAddress, 1) >= 1);
    assert!(upstream.requests().is_empty());
}

/// A connection from the proxy that begins with these parts, each sent by itself.
fn proxied(gateway: &Gateway, parts: &[&[u8]]) -> TcpStream {
    let mut stream = gateway.stream_from(PROXY);
    stream.set_nodelay(true).unwrap();
    for part in parts {
        let _ = stream.write_all(part);
    }
    stream
}

fn text(address: &str) -> Vec<u8> {
    let version = if address.contains(':') { 6 } else { 4 };
    format!("PROXY TCP{version} {address} {address} 4711 443\r\n").into_bytes()
}

fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
}

const V4: [u8; 12] = [198, 51, 100, 1, 192, 0, 2, 1, 0x12, 0x67, 0x01, 0xbb];
const LISTED: &str = "proxy_protocol = [\"127.0.0.2/32\"]";

#[test]
fn the_header_of_a_listed_proxy_says_whom_the_connection_is_from() {
    let upstream = Upstream::ok();
    let gateway = gateway(&upstream, LISTED, "");
    let v6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[9], &[0; 16], &[0x12, 0x67, 0x01, 0xbb]].concat();
    let mapped = [&[0; 10][..], &[0xff, 0xff, 198, 51, 100, 1], &[0; 16], &[0x12, 0x67, 0x01, 0xbb]].concat();
    let extended = [&V4[..], &[0x02, 0, 7], b"gw.test"].concat();
    let cases = [
        (text("198.51.100.1"), "198.51.100.1"),
        (text("2001:db8::9"), "2001:db8::9"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.2"),
        (binary(0x21, 0x11, &V4), "198.51.100.1"),
        (binary(0x21, 0x21, &v6), "2001:db8::9"),
        (binary(0x21, 0x21, &mapped), "198.51.100.1"),
        (binary(0x21, 0x11, &extended), "198.51.100.1"),
        (binary(0x20, 0x00, &[]), "127.0.0.2"),
    ];
    for (at, (bytes, expected)) in cases.into_iter().enumerate() {
        let client = gateway.connect_on(proxied(&gateway, &[&bytes]));
        // The peer is no trusted proxy: what its headers say is nothing.
        assert_eq!(ask(client, "X-Forwarded-For: 6.6.6.6\r\n").status, 200, "{expected}");
        assert_eq!(told(&upstream), expected);
        let (address, port) = recorded(&gateway, at);
        assert_eq!((address.as_str(), port == 4711), (expected, expected != "127.0.0.2"));
    }
}

#[test]
fn a_header_may_come_in_parts_or_in_one_packet_with_the_handshake() {
    let upstream = Upstream::ok();
    let gateway = gateway(&upstream, LISTED, "");
    for bytes in [text("198.51.100.1"), binary(0x21, 0x11, &V4)] {
        let parts: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(ask(gateway.connect_on(proxied(&gateway, &parts)), "").status, 200);
        assert_eq!(told(&upstream), "198.51.100.1");
        for cut in [1, 6, 15, 16, 17, bytes.len() - 1] {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(ask(gateway.connect_on(proxied(&gateway, &[first, second])), "").status, 200, "{cut}");
        }
        let client = gateway.connect_behind(&bytes, gateway.stream_from(PROXY));
        assert_eq!(ask(client, "").status, 200);
    }
}

/// Reads to the end what the gateway sends on `stream`.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let mut rest = Vec::new();
    loop {
        let mut space = [0; 256];
        match stream.read(&mut space) {
            Ok(0) => return rest,
            Ok(count) => rest.extend_from_slice(&space[..count]),
            Err(error) => {
                assert!(!matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut));
                return rest;
            }
        }
    }
}

#[test]
fn a_listed_proxy_without_a_good_header_is_closed_unanswered() {
    let upstream = Upstream::ok();
    let gateway = gateway(&upstream, LISTED, "");
    let hello = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), vec![0; 506]].concat();
    let bad: [Vec<u8>; 8] = [
        hello,
        b"GET / HTTP/1.1\r\nHost: gw.test\r\n\r\n".to_vec(),
        b"PROXY TCP4 198.51.100.1 192.0.2.1 4711\r\n".to_vec(),
        b"PROXY TCP4 198.51.100.1 192.0.2.1 4711 443\n\n".to_vec(),
        [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat(),
        binary(0x22, 0x11, &V4),
        binary(0x21, 0x11, &V4[..4]),
        binary(0x21, 0x11, &vec![0; 60_000]),
    ];
    for bytes in bad {
        let answer = rest(proxied(&gateway, &[&bytes]));
        assert!(answer.is_empty(), "{:?}: {answer:?}", String::from_utf8_lossy(&bytes[..20]));
    }
    assert!(upstream.requests().is_empty());
    assert!(gateway.raw_records().is_empty());
    // It serves whoever keeps to it, and those who are not listed.
    assert_eq!(ask(gateway.connect_on(proxied(&gateway, &[&text("198.51.100.1")])), "").status, 200);
    assert_eq!(ask(gateway.connect(), "").status, 200);
}

#[test]
fn a_header_that_trickles_is_given_up_in_time() {
    let upstream = Upstream::ok();
    let gateway = gateway(&upstream, LISTED, "handshake_timeout = \"500ms\"");
    for bytes in [text("198.51.100.1"), binary(0x21, 0x11, &V4), Vec::new()] {
        let mut stream = gateway.stream_from(PROXY);
        let began = Instant::now();
        let mut parts = bytes.chunks(1);
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        // A byte each 100 ms, never to its end in time.
        while !matches!(stream.read(&mut [0]), Ok(0)) {
            assert!(began.elapsed() < Duration::from_secs(15));
            if let Some(part) = parts.next()
                && stream.write_all(part).is_err()
            {
                break;
            }
        }
        assert!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    }
    assert_eq!(gateway.hits(Limit::HandshakeTimeout, 3), 3);
}

#[test]
fn the_header_of_a_proxy_that_is_not_listed_is_never_read() {
    let upstream = Upstream::ok();
    for listener in ["", LISTED, "trusted_proxies = [\"127.0.0.3\"]"] {
        let gateway = gateway(&upstream, listener, "");
        for bytes in [text("198.51.100.1"), binary(0x21, 0x11, &V4)] {
            // It is the beginning of a handshake that is none; what follows would be one.
            let mut client = gateway.connect_behind(&bytes, gateway.stream_from(STRANGER));
            client.send(signed_head("GET", "/a", ""));
            assert!(client.is_closed());
        }
    }
    assert!(upstream.requests().is_empty());
}

#[test]
fn the_address_of_the_header_is_the_peer_of_all_that_follows() {
    let upstream = Upstream::ok();
    let listener = format!("{LISTED}\ntrusted_proxies = [\"10.0.0.0/8\"]");
    let gateway = gateway(&upstream, &listener, "connections_per_address = 1");
    let connect = |address: &str| gateway.connect_on(proxied(&gateway, &[&text(address)]));
    assert_eq!(ask(connect("10.0.0.7"), "X-Forwarded-For: 6.6.6.6, 198.51.100.1\r\n").status, 200);
    assert_eq!(told(&upstream), "198.51.100.1");
    // The proxy itself has no share: those behind it do.
    let mut held = connect("198.51.100.1");
    held.send(signed_head("GET", "/a", ""));
    assert_eq!(held.answer().status, 200);
    let second = ask(connect("198.51.100.1"), "");
    assert_eq!((second.status, second.code().as_str()), (503, "overloaded"));
    assert_eq!(second.header("retry-after"), Some("1"));
    assert_eq!(ask(connect("198.51.100.2"), "").status, 200);
    assert_eq!(gateway.hits(Limit::ConnectionsPerAddress, 1), 1);
    assert_eq!(upstream.requests().len(), 3);
}
