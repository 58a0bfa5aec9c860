//! Bounds of time and size: each is counted where it is hit, answered as promised, and gives back what it took.

use std::{io::Write as _, net::TcpStream};

use countersign::limits::Limit;

use crate::support::{Client, Gateway, Upstream, signed_head};

/// A gateway with one route for everything to `upstream`, and these keys under `[limits]`.
fn limited(upstream: &Upstream, keys: &str) -> Gateway {
    Gateway::with(&format!(
        "[limits]\n{keys}\n[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n",
        upstream.origin()
    ))
}

/// A signed head for a body of `length` bytes of this type.
fn upload(kind: &str, length: usize) -> String {
    signed_head("POST", "/a", &format!("Content-Type: {kind}\r\nContent-Length: {length}\r\n"))
}

const JSON: &str = "application/json";
const BINARY: &str = "application/octet-stream";

#[test]
fn every_limit_that_is_hit_is_counted_once_under_its_key() {
    let upstream = Upstream::serving(|stream, request| {
        let length = if request.starts_with(b"GET /large") { 64 * 1024 * 1024 } else { 2 };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'x'; length])).is_ok()
    });
    let gateway = limited(
        &upstream,
        "handshake_timeout = \"300ms\"\nhead_timeout = \"300ms\"\nbody_bytes = \"64KiB\"\nbody_timeout = \"300ms\"\n\
         stream_bytes = \"128KiB\"\nstream_window = \"300ms\"\ndiscard_bytes = \"1MiB\"\ndiscard_timeout = \"300ms\"\n\
         write_timeout = \"300ms\"\nbuffered_bytes = \"64KiB\"\ndrain = \"10ms\"",
    );
    type Act<'a> = &'a dyn Fn(&mut Client);
    let send = |bytes: String| move |client: &mut Client| client.send(&bytes);
    let half_head = send("GET / HTTP/1.1\r\nHost".into());
    let long_head = send(signed_head("GET", "/a", &format!("X: {}\r\n", "y".repeat(33 * 1024))));
    let many = send(signed_head("GET", "/a", &"X: y\r\n".repeat(101)));
    let large = send(upload(JSON, 70_000));
    let late = send(upload(JSON, 100) + "{");
    let too_much = send(upload(BINARY, 200_000));
    let slow = send(upload(BINARY, 100) + "x");
    let refused = upload(JSON, 4_000_000).replace("v1=", "v1=00");
    let flood = |client: &mut Client| {
        client.send(&refused);
        client.send(vec![b'x'; 3_000_000]);
    };
    let trickle = |client: &mut Client| {
        client.send(&refused);
        assert_eq!(client.answer().status, 401);
    };
    let unread = send(signed_head("GET", "/large", ""));
    let cases: [(Limit, Act<'_>); 9] = [
        (Limit::HeadTimeout, &half_head),
        (Limit::HeadBytes, &long_head),
        (Limit::Headers, &many),
        (Limit::BodyBytes, &large),
        (Limit::BodyTimeout, &late),
        (Limit::StreamBytes, &too_much),
        (Limit::StreamRate, &slow),
        (Limit::DiscardBytes, &flood),
        (Limit::WriteTimeout, &unread),
    ];
    for (limit, act) in cases {
        let mut client = gateway.connect();
        act(&mut client);
        assert_eq!(gateway.hits(limit, 1), 1, "{}", limit.name());
    }
    let silent = TcpStream::connect(gateway.address).unwrap();
    assert_eq!(gateway.hits(Limit::HandshakeTimeout, 1), 1);
    drop(silent);
    let before = gateway.hits(Limit::DiscardTimeout, 0);
    let mut client = gateway.connect();
    trickle(&mut client);
    assert!(gateway.hits(Limit::DiscardTimeout, before + 1) > before);
}
