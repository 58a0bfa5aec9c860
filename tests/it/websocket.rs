//! WebSockets: opened for whoever is permitted, only where a route allows it, and only after the upstream agreed.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use countersign::limits::Limit;

use crate::support::{ACCOUNT, Client, Gateway, USER, Upstream, find, header, signed_head};

const ASK: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const AGREED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSet-Cookie: a=b\r\n\r\n";
/// The close frame of a server that goes away.
const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];

/// A service that agrees and then says back what it hears.
fn echoing() -> Upstream {
    Upstream::serving(|stream, _| {
        let _ = stream.write_all(AGREED);
        let mut space = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut space) {
            if stream.write_all(&space[..count]).is_err() {
                return false;
            }
        }
        false
    })
}

fn gateway(upstream: &Upstream, limits: &str) -> Gateway {
    Gateway::with(&format!(
        "[limits]\n{limits}\n[[routes]]\npath = \"/socket\"\napp = \"test\"\nupstream = \"{0}\"\nwebsocket = true\n\
         [[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{0}\"\n",
        upstream.origin()
    ))
}

fn opened(gateway: &Gateway) -> Client {
    let mut client = gateway.connect();
    client.send(signed_head("GET", "/socket", ASK));
    let head = client.head();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client
}

fn frame(text: &str) -> Vec<u8> {
    [&[0x81, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

/// Rule 4, rule 12: an upgrade that was asked for and agreed to, with our identity headers and no one else's.
#[test]
fn bytes_pass_both_ways_once_the_upstream_agreed() {
    let upstream = echoing();
    let gateway = gateway(&upstream, "");
    let mut client = gateway.connect();
    client.send(signed_head("GET", "/socket", &format!("{ASK}Countersign-User: usr_Forged\r\nCookie: a=b\r\n")));
    let head = client.head();
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    assert_eq!(header(&head, "connection"), Some("Upgrade"));
    assert_eq!(header(&head, "sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(header(&head, "set-cookie"), None);
    assert_eq!(header(&head, "content-length"), None);
    assert!(header(&head, "x-request-id").is_some());
    let long = vec![7; 100_000];
    for message in [b"hello".as_slice(), b"GET / HTTP/1.1\r\n\r\n", &long] {
        client.send(message);
        assert_eq!(client.exactly(message.len()), message);
    }
    let (asked, _) = upstream.only();
    assert!(asked.starts_with("GET /socket HTTP/1.1\r\n"), "{asked}");
    assert_eq!(header(&asked, "connection"), Some("Upgrade"));
    assert_eq!(header(&asked, "upgrade"), Some("websocket"));
    assert_eq!(header(&asked, "sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    assert_eq!(header(&asked, "countersign-user"), Some(USER));
    assert_eq!(header(&asked, "countersign-account"), Some(ACCOUNT));
    assert_eq!((header(&asked, "cookie"), header(&asked, "stripe-signature")), (None, None));
    assert!(!asked.contains("Forged"));
    assert!(gateway.raw_records().is_empty(), "it is recorded at its end");
    client.stream.conn.send_close_notify();
    let _ = client.stream.flush();
    assert!(client.is_closed(), "the service's end is passed on");
    let record = gateway.records(1).pop().unwrap();
    assert_eq!(record["http.response.status_code"], 101);
    assert_eq!(record["countersign.decision"], "permitted");
    assert_eq!(record["countersign.user"], USER);
    assert_eq!(record["http.request.body.size"], 100_000 + 5 + 18);
    assert_eq!(record["http.response.body.size"], 100_000 + 5 + 18);
}

/// Rule 5, rule 11: upgrades that are not allowed, not WebSockets, or not signed.
#[test]
fn an_upgrade_that_is_not_allowed_reaches_no_upstream() {
    let upstream = echoing();
    let gateway = gateway(&upstream, "");
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    for (target, more) in [
        ("/other", ASK.to_owned()),
        ("/socket", h2c.to_owned()),
        ("/other", h2c.to_owned()),
        ("/socket", ASK.replace("websocket", "websocket, h2c")),
        ("/socket", ASK.replace("Version: 13", "Version: 8")),
        ("/socket", ASK.replace("dGhlIHNhbXBsZSBub25jZQ==", "short")),
        ("/socket", format!("{ASK}Upgrade: h2c\r\n")),
        ("/socket", format!("{ASK}Content-Length: 0\r\n")),
        ("/socket", ASK.replace("websocket", "TLS/1.0")),
    ] {
        let answer = gateway.ask(signed_head("GET", target, &more));
        assert_eq!((answer.status, answer.code().as_str()), (400, "request_malformed"), "{target} {more}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    }
    let answer = gateway.ask(signed_head("POST", "/socket", ASK));
    assert_eq!((answer.status, answer.code().as_str()), (400, "request_malformed"));
    let unsigned = signed_head("GET", "/socket", ASK).replace("v1=", "v0=");
    assert_eq!(gateway.ask(unsigned).code(), "signature_malformed");
    let forged = signed_head("GET", "/socket", ASK).replace(USER, "usr_Other");
    assert_eq!(gateway.ask(forged).code(), "signature_mismatch");
    assert!(upstream.requests().is_empty(), "{:?}", upstream.requests());
    // An Upgrade that `Connection` does not name is no question; it does not go on.
    let plain = Upstream::ok();
    let other = self::gateway(&plain, "");
    assert_eq!(other.ask(signed_head("GET", "/socket", "Upgrade: websocket\r\n")).status, 200);
    assert_eq!(header(&plain.only().0, "upgrade"), None);
}

/// Rule 1, rule 3: nothing that was sent before the 101 is taken for the tunnel's, or for a request of whoever is
/// permitted.
#[test]
fn nothing_goes_on_before_the_upstream_agreed_or_after_it_refused() {
    let (said, hears) = mpsc::channel();
    let said = Mutex::new(said);
    let (go, wait) = mpsc::channel::<&[u8]>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::serving(move |stream, _| {
        let answer = wait.lock().unwrap().recv_timeout(Duration::from_secs(10)).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut space = [0; 100];
        let early = stream.read(&mut space).unwrap_or(0);
        said.lock().unwrap().send(space[..early].to_vec()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let _ = stream.write_all(answer);
        let late = stream.read(&mut space).unwrap_or(0);
        said.lock().unwrap().send(space[..late].to_vec()).unwrap();
        false
    });
    let gateway = gateway(&upstream, "");
    let mut client = gateway.connect();
    client.send([signed_head("GET", "/socket", ASK).as_bytes(), b"early bytes"].concat());
    go.send(AGREED).unwrap();
    assert_eq!(hears.recv_timeout(Duration::from_secs(10)).unwrap(), b"", "before the 101");
    assert_eq!(hears.recv_timeout(Duration::from_secs(10)).unwrap(), b"early bytes", "after it");

    let mut client = gateway.connect();
    let smuggled = "GET /admin HTTP/1.1\r\nHost: gw.test\r\nCountersign-User: usr_Forged\r\n\r\n";
    client.send(signed_head("GET", "/socket", ASK) + smuggled);
    go.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").unwrap();
    assert_eq!(client.answer().status, 403);
    assert_eq!(client.answer().code(), "signature_missing", "what follows is another request");
    assert_eq!(hears.recv_timeout(Duration::from_secs(10)).unwrap(), b"");
    assert_eq!(hears.recv_timeout(Duration::from_secs(10)).unwrap(), b"");
    assert_eq!(upstream.requests().len(), 2);
}

/// Rule 12.
#[test]
fn a_101_that_does_not_agree_is_no_answer() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
    ] {
        let upstream = Upstream::answering(move |_| answer.into());
        let gateway = gateway(&upstream, "");
        let answer = gateway.ask(signed_head("GET", "/socket", ASK));
        assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_invalid"));
    }
}

#[test]
fn an_end_on_one_side_is_an_end_on_the_other() {
    let (ended, end) = mpsc::channel();
    let ended = Mutex::new(ended);
    let upstream = Upstream::serving(move |stream: &mut TcpStream, _| {
        let _ = stream.write_all(AGREED);
        let mut space = [0; 100];
        while let Ok(count @ 1..) = stream.read(&mut space) {
            if space[..count] == *b"leave" {
                return false;
            }
        }
        let _ = ended.lock().unwrap().send(());
        false
    });
    let gateway = gateway(&upstream, "");
    let mut client = opened(&gateway);
    client.send("leave");
    assert!(client.is_closed());
    let client = opened(&gateway);
    let began = Instant::now();
    drop(client);
    end.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// Rule 9: a WebSocket has an age and a longest pause, and is told that the gateway goes away between two messages.
#[test]
fn a_websocket_ends_when_it_is_old_or_quiet() {
    let upstream = echoing();
    for limit in [Limit::WebsocketAge, Limit::WebsocketIdleTimeout] {
        let limits = format!("{} = \"400ms\"", limit.name());
        let gateway = gateway(&upstream, &limits);
        let mut client = opened(&gateway);
        let began = Instant::now();
        client.send(frame("hello"));
        assert_eq!(client.exactly(7), frame("hello"));
        assert_eq!(client.exactly(4), GOING_AWAY, "{limits}");
        assert!(client.is_closed());
        assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
        // Within a message nothing is said that could be read as part of it.
        let mut client = opened(&gateway);
        client.send(&frame("hello")[..4]);
        assert_eq!(client.exactly(4), &frame("hello")[..4]);
        assert!(client.is_closed());
        assert!(find(&client.seen(), &GOING_AWAY).is_none());
        assert_eq!(gateway.hits(limit, 2), 2, "{limits}");
    }
    // Bytes keep it from being quiet, not from being old; how long another exchange may last does not touch it.
    let limits = "websocket_age = \"900ms\"\nwebsocket_idle_timeout = \"500ms\"\nexchange_timeout = \"300ms\"";
    let gateway = gateway(&upstream, limits);
    let mut client = opened(&gateway);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(750) {
        client.send(frame("a"));
        assert_eq!(client.exactly(3), frame("a"));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(client.exactly(4), GOING_AWAY);
    assert_eq!((gateway.hits(Limit::WebsocketAge, 1), gateway.hits(Limit::ExchangeTimeout, 0)), (1, 0));
}

#[test]
fn a_drain_closes_websockets() {
    let upstream = echoing();
    let gateway = gateway(&upstream, "drain = \"20s\"");
    let mut client = opened(&gateway);
    let began = Instant::now();
    gateway.stop.drain();
    assert_eq!(client.exactly(4), GOING_AWAY);
    assert!(client.is_closed());
    gateway.join();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn a_websocket_counts_among_the_requests_in_flight() {
    let upstream = echoing();
    let gateway = Gateway::with(&format!(
        "[upstreams.up]\nservers = [\"{}\"]\nmax_in_flight = 1\nmax_queued = 0\n\
         [[routes]]\npath = \"/socket\"\napp = \"test\"\nupstream = \"up\"\nwebsocket = true\n",
        upstream.origin()
    ));
    let client = opened(&gateway);
    assert_eq!(gateway.ask(signed_head("GET", "/socket", ASK)).code(), "overloaded");
    drop(client);
    gateway.records(2);
    let again = Arc::new(opened(&gateway));
    drop(again);
}

#[test]
fn a_client_that_leaves_before_the_upstream_agrees_gives_up_its_place() {
    let upstream = Upstream::serving(|stream, request| {
        if request.starts_with(b"GET /socket") {
            std::thread::sleep(Duration::from_millis(500));
            let _ = stream.write_all(AGREED);
            let _ = stream.read(&mut [0; 16]);
            return false;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok()
    });
    let gateway = Gateway::with(&format!(
        "[upstreams.up]\nservers = [\"{}\"]\nmax_in_flight = 1\nmax_queued = 0\n\
         [[routes]]\npath = \"/socket\"\napp = \"test\"\nupstream = \"up\"\nwebsocket = true\n\
         [[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"up\"\n",
        upstream.origin()
    ));
    // With more behind its request than is read ahead, so that the 101 is the first thing that finds it gone.
    for early in [0, 40_000] {
        let mut client = gateway.connect();
        client.send([signed_head("GET", "/socket", ASK).as_bytes(), &vec![b'x'; early]].concat());
        std::thread::sleep(Duration::from_millis(200));
        socket2::SockRef::from(&client.stream.sock).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200, "{early}");
    }
    assert_eq!(gateway.records(4).iter().filter(|record| record["url.path"] == "/socket").count(), 2);
}
