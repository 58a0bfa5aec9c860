//! A kept connection on which nothing is asked for a while rests, and nobody notices.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use crate::support::{Gateway, Upstream, header, signed_head};

/// Longer than a connection must be quiet to rest.
const QUIET: Duration = Duration::from_millis(1500);

#[test]
fn a_connection_that_rested_serves_on() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    for turn in 0..3 {
        client.send(signed_head("GET", &format!("/{turn}"), ""));
        assert_eq!(client.answer().status, 200);
        std::thread::sleep(QUIET);
    }
    // A request in pieces, the first of one byte, and two in one packet.
    let request = signed_head("GET", "/pieces", "");
    client.send(&request[..1]);
    std::thread::sleep(Duration::from_millis(50));
    client.send(&request[1..]);
    assert_eq!(client.answer().status, 200);
    std::thread::sleep(QUIET);
    client.send(signed_head("GET", "/one", "") + &signed_head("GET", "/two", ""));
    assert_eq!((client.answer().status, client.answer().status), (200, 200));
    assert_eq!(upstream.requests().len(), 6);
    assert_eq!(gateway.records(6).len(), 6);
}

/// Holds rules 2 and 9: what comes after a rest is read as strictly, and as soon, as ever.
#[test]
fn after_a_rest_a_request_is_read_as_strictly() {
    let upstream = Upstream::ok();
    let limits = "[limits]\nhead_timeout = \"400ms\"\nidle_timeout = \"4s\"\n";
    let gateway = Gateway::with(&format!(
        "{limits}[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n",
        upstream.origin()
    ));
    let rested = || {
        let mut client = gateway.connect();
        client.send(signed_head("GET", "/a", ""));
        assert_eq!(client.answer().status, 200);
        std::thread::sleep(QUIET);
        client
    };
    let mut client = rested();
    client.send(signed_head("GET", "/b", "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n");
    assert_eq!(client.answer().code(), "request_malformed");
    assert!(client.is_closed());
    let mut client = rested();
    let began = Instant::now();
    client.send("GET /slow HTTP/1.1\r\nHost: gw");
    assert!(client.is_closed());
    assert!(began.elapsed() < Duration::from_secs(3), "a head after a rest has its time: {:?}", began.elapsed());
    let mut client = rested();
    let began = Instant::now();
    assert!(client.is_closed(), "an idle connection ends");
    let waited = began.elapsed();
    assert!(Duration::from_secs(1) < waited && waited < Duration::from_secs(9), "{waited:?}");
    assert_eq!(upstream.requests().len(), 3);
}

#[test]
fn what_a_client_has_not_read_yet_keeps_a_connection_from_resting() {
    const LENGTH: usize = 8 * 1024 * 1024;
    let upstream = Upstream::serving(|stream, _| {
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        stream.write_all(&vec![7; LENGTH]).is_ok()
    });
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send(signed_head("GET", "/a", ""));
    std::thread::sleep(QUIET);
    let mut whole = client.answer();
    assert!(whole.complete && whole.body.len() == LENGTH);
    // A refused upload that is still thrown away is not at rest either.
    client.send(signed_head("POST", "/b", "Content-Length: 30\r\n").replace("v1=", "v0=") + "half of what is");
    assert_eq!(client.answer().status, 401);
    std::thread::sleep(QUIET);
    client.send(" announced here");
    client.send(signed_head("GET", "/c", ""));
    whole = client.answer();
    assert!(whole.complete && whole.body.len() == LENGTH);
    assert_eq!(upstream.requests().len(), 2);
}

#[test]
fn a_connection_that_rests_when_a_drain_begins_has_its_last_chance() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let ask = signed_head("GET", "/a", "");
    let (mut quiet, mut late) = (gateway.connect(), gateway.connect());
    for client in [&mut quiet, &mut late] {
        client.send(&ask);
        assert_eq!(client.answer().status, 200);
    }
    std::thread::sleep(QUIET);
    gateway.stop.drain();
    late.send(&ask);
    let answer = late.answer();
    assert_eq!((answer.status, header(&answer.head, "connection")), (200, Some("close")));
    assert!(late.is_closed() && quiet.is_closed());
    gateway.join();
}

/// Holds rules 2 and 3: a refused body is not the next request, also where its connection rested before and lingers.
#[test]
fn a_connection_that_lingers_does_not_rest() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send(signed_head("GET", "/a", ""));
    assert_eq!(client.answer().status, 200);
    std::thread::sleep(QUIET + Duration::from_secs(1));
    client.send("POST /b HTTP/1.1\r\nHost: gw.test\r\nExpect: 100-continue\r\nContent-Length: 999999999999\r\n\r\nA");
    assert_eq!(client.answer().status, 401);
    std::thread::sleep(QUIET + Duration::from_secs(2));
    // Within the body, and in a form that only the library takes.
    let smuggled = signed_head("GET", "/smuggled", "").replace("\r\n", "\n");
    let _ = client.stream.write_all(smuggled.as_bytes()).and_then(|()| client.stream.flush());
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(upstream.requests().len(), 1);
}
