//! Upstreams that fail: what the client is told, how soon, and what is recorded.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use crate::support::{Answer, Gateway, Upstream, header, identity_payload, signed_body, signed_head, write_files};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn gateway(servers: &[String], keys: &str) -> Gateway {
    Gateway::with(&format!(
        "[upstreams.up]\nservers = {servers:?}\n{keys}\n[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"up\"\n"
    ))
}

/// An address at which nothing listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn told(gateway: &Gateway, answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{}", answer.head);
    assert_eq!(answer.count("access-control-allow-origin"), 1);
    let record = gateway.records(1).pop().unwrap();
    assert_eq!(record["countersign.decision"], "permitted");
    assert_eq!(record["countersign.reason"], code);
    assert_eq!(record["http.response.status_code"], status);
    assert!(!String::from_utf8_lossy(&answer.body).contains("127.0.0.1"), "an internal address is told");
}

#[test]
fn servers_take_turns_and_one_that_refuses_is_skipped() {
    let (one, two) = (Upstream::ok(), Upstream::ok());
    let gateway = gateway(&[one.origin(), nobody(), two.origin()], "");
    for _ in 0..12 {
        assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
    }
    let (first, second) = (one.requests().len(), two.requests().len());
    assert_eq!(first + second, 12);
    assert!(first >= 4 && second >= 4, "{first} {second}");
    // A POST that was not written to the one that refuses goes to the next as well.
    for _ in 0..3 {
        assert_eq!(gateway.ask(signed_body("POST", "/a", &identity_payload())).status, 200);
    }
}

#[test]
fn an_upstream_that_refuses_is_unreachable_at_once() {
    let gateway = gateway(&[nobody()], "");
    let began = Instant::now();
    let answer = gateway.ask(signed_head("GET", "/a", ""));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    told(&gateway, &answer, 502, "upstream_unreachable");
}

/// Holds rule 9.
#[test]
fn an_upstream_that_never_finishes_connecting_times_out() {
    // It accepts TCP and says nothing to the TLS handshake.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("https://{}", listener.local_addr().unwrap());
    let gateway = gateway(&[server], "connect_timeout = \"200ms\"");
    let answer = gateway.ask(signed_head("GET", "/a", ""));
    told(&gateway, &answer, 504, "upstream_timeout");
}

#[test]
fn a_server_that_never_connects_is_skipped_however_short_the_answer_s_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), "unused");
    let live = Upstream::tls(&folder.path().join("cert.pem"), &folder.path().join("key.pem"));
    let servers = [format!("https://{}", silent.local_addr().unwrap()), format!("https://{}", live.address)];
    let ca = folder.path().join("cert.pem");
    let keys = format!("connect_timeout = \"400ms\"\nresponse_timeout = \"200ms\"\nca = {ca:?}");
    let gateway = gateway(&servers, &keys);
    for _ in 0..4 {
        assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
    }
}

/// Holds rule 9.
#[test]
fn an_upstream_that_never_answers_times_out_and_frees_its_place() {
    let upstream = Upstream::serving(|stream, request| {
        if request.starts_with(b"GET /never") {
            let _ = stream.read(&mut [0]);
            return false;
        }
        stream.write_all(OK).is_ok()
    });
    let gateway = gateway(&[upstream.origin()], "response_timeout = \"300ms\"\nmax_in_flight = 1\nmax_queued = 0");
    let began = Instant::now();
    let answer = gateway.ask(signed_head("GET", "/never", ""));
    assert!(began.elapsed() >= Duration::from_millis(300));
    told(&gateway, &answer, 504, "upstream_timeout");
    assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
}

/// Holds rule 10.
#[test]
fn more_requests_than_places_are_told_to_come_again() {
    let (go, wait) = mpsc::channel::<()>();
    let (began, under_way) = mpsc::channel::<()>();
    let (wait, began) = (Mutex::new(wait), Mutex::new(began));
    let upstream = Upstream::serving(move |stream, _| {
        began.lock().unwrap().send(()).unwrap();
        let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(10));
        stream.write_all(OK).is_ok()
    });
    let gateway = gateway(&[upstream.origin()], "max_in_flight = 1\nmax_queued = 0");
    let mut first = gateway.connect();
    first.send(signed_head("GET", "/a", ""));
    under_way.recv_timeout(Duration::from_secs(10)).unwrap();
    let answer = gateway.ask(signed_head("GET", "/b", ""));
    told(&gateway, &answer, 503, "overloaded");
    assert_eq!(answer.header("retry-after"), Some("1"));
    go.send(()).unwrap();
    assert_eq!(first.answer().status, 200);
    assert_eq!(upstream.requests().len(), 1);
}

/// Holds rule 12.
#[test]
fn an_answer_that_is_not_http_is_invalid() {
    for answer in [
        "garbage",
        "HTTP/1.1 2x0 OK\r\n\r\n",
        "HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 2\r\n\r\nok",
        "<html>HTTP/0.9</html>\r\n\r\n",
    ] {
        let upstream = Upstream::serving(move |stream, _| {
            let _ = stream.write_all(answer.as_bytes());
            false
        });
        let gateway = gateway(&[upstream.origin()], "");
        let got = gateway.ask(signed_head("POST", "/a", "Content-Length: 0\r\n"));
        assert_eq!((got.status, got.code().as_str()), (502, "upstream_invalid"), "{answer:?}");
    }
}

/// Holds rule 12.
#[test]
fn poison_behind_an_answer_is_not_the_next_request_s() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let upstream = Upstream::raw(move |stream| {
        let number = counted.fetch_add(1, Ordering::SeqCst);
        let mut got = Vec::new();
        while Upstream::read_until(stream, &mut got, b"\r\n\r\n") {
            got.clear();
            let poison = if number == 0 { "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison" } else { "" };
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{poison}");
        }
    });
    let gateway = gateway(&[upstream.origin()], "");
    for _ in 0..3 {
        let answer = gateway.ask(signed_head("GET", "/a", ""));
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"ok"[..]));
    }
    assert!(connections.load(Ordering::SeqCst) >= 2, "the poisoned connection was used again");
}

#[test]
fn only_what_does_no_harm_is_sent_twice() {
    // Each connection takes one request and closes without an answer, but the first of all.
    let upstream = Upstream::serving(|_, _| false);
    let gateway = gateway(&[upstream.origin()], "");
    let answer = gateway.ask(signed_body("POST", "/a", &identity_payload()));
    told(&gateway, &answer, 502, "upstream_unreachable");
    assert_eq!(upstream.requests().len(), 1, "a POST was sent twice");
    assert_eq!(gateway.ask(signed_head("GET", "/a", "")).code(), "upstream_unreachable");
    assert_eq!(upstream.requests().len(), 3, "a GET is sent once more");
}

#[test]
fn a_request_that_was_answered_in_part_is_not_sent_again() {
    for part in ["HTTP/1.1 200 OK\r\nX-A: b", "HTTP/1.1 2", "H"] {
        let upstream = Upstream::serving(move |stream, _| {
            let _ = stream.write_all(part.as_bytes());
            false
        });
        let gateway = gateway(&[upstream.origin()], "");
        let answer = gateway.ask(signed_head("GET", "/a", ""));
        told(&gateway, &answer, 502, "upstream_unreachable");
        assert_eq!(upstream.requests().len(), 1, "{part:?}");
    }
}

#[test]
fn a_client_that_pauses_its_upload_is_not_the_upstream_s_fault() {
    let upstream = Upstream::ok();
    let gateway = gateway(&[upstream.origin()], "response_timeout = \"200ms\"");
    let mut client = gateway.connect();
    client.send(signed_head("POST", "/a", "Content-Type: application/octet-stream\r\nContent-Length: 10\r\n") + "half");
    std::thread::sleep(Duration::from_millis(600));
    client.send("whole.");
    assert_eq!(client.answer().status, 200);
    let slow = Gateway::with(&format!(
        "[limits]\nstream_window = \"200ms\"\n[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n",
        upstream.origin()
    ));
    let mut client = slow.connect();
    client.send(signed_head("POST", "/a", "Content-Type: application/octet-stream\r\nContent-Length: 10\r\n") + "half");
    let answer = client.answer();
    assert_eq!((answer.status, answer.code().as_str()), (400, "request_malformed"));
}

#[test]
fn a_kept_connection_that_the_upstream_closed_is_no_error() {
    let upstream = Upstream::serving(|stream, _| {
        let _ = stream.write_all(OK);
        false
    });
    let gateway = gateway(&[upstream.origin()], "");
    for _ in 0..30 {
        assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
    }
}

#[test]
fn a_kept_connection_that_the_upstream_closed_is_closed_in_turn() {
    let (closed, close) = mpsc::channel::<Duration>();
    let upstream = Upstream::serving(move |stream, _| {
        let _ = stream.write_all(OK);
        std::thread::sleep(Duration::from_millis(100));
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let began = Instant::now();
        let _ = stream.read(&mut [0]);
        closed.send(began.elapsed()).unwrap();
        false
    });
    let gateway = gateway(&[upstream.origin()], "");
    assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
    let after = close.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(after < Duration::from_secs(3), "after {after:?}, though nothing comes of it any more");
}

/// Holds rule 12.
#[test]
fn an_answer_that_breaks_off_is_seen_to_break_off() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
    ] {
        let upstream = Upstream::serving(move |stream, _| {
            let _ = stream.write_all(answer.as_bytes());
            false
        });
        let gateway = gateway(&[upstream.origin()], "");
        let got = gateway.ask(signed_head("GET", "/a", ""));
        assert_eq!((got.status, got.complete), (200, false), "{answer:?}: {:?}", got.body);
        assert_eq!(gateway.records(1)[0]["countersign.complete"], false);
    }
}

/// Holds rules 9 and 12.
#[test]
fn an_answer_that_pauses_too_long_is_broken_off() {
    let upstream = Upstream::serving(|stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        let _ = stream.read(&mut [0]);
        false
    });
    let gateway = gateway(&[upstream.origin()], "idle_timeout = \"200ms\"");
    let got = gateway.ask(signed_head("GET", "/a", ""));
    assert_eq!((got.status, got.complete), (200, false));
}

#[test]
fn an_early_answer_reaches_a_client_that_still_sends() {
    let upstream = Upstream::raw(|stream| {
        let mut got = Vec::new();
        Upstream::read_until(stream, &mut got, b"\r\n\r\n");
        let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
    });
    let gateway = gateway(&[upstream.origin()], "");
    let mut client = gateway.connect();
    client.send(signed_head("POST", "/a", "Content-Type: application/octet-stream\r\nContent-Length: 1000000\r\n"));
    client.send(vec![b'x'; 1000]);
    let answer = client.answer();
    assert_eq!((answer.status, answer.body.as_slice()), (403, &b"no"[..]));
}

#[test]
fn an_upload_that_breaks_off_never_looks_complete_to_the_upstream() {
    let (ended, end) = mpsc::channel::<Vec<u8>>();
    let upstream = Upstream::raw(move |stream| {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        ended.send(all).unwrap();
    });
    let gateway = gateway(&[upstream.origin()], "");
    let opaque = "Content-Type: application/octet-stream\r\n";
    for (framing, part) in [("Content-Length: 100\r\n", "half"), ("Transfer-Encoding: chunked\r\n", "4\r\nhalf\r\n")] {
        let mut client = gateway.connect();
        client.send(signed_head("POST", "/a", &format!("{opaque}{framing}")) + part);
        client.stream.sock.shutdown(std::net::Shutdown::Both).unwrap();
        drop(client);
        let all = end.recv_timeout(Duration::from_secs(10)).expect("the upstream's connection ends with the client's");
        assert!(
            !all.ends_with(b"0\r\n\r\n") && !all.windows(3).any(|w| w == b"\r\n0"),
            "{:?}",
            String::from_utf8_lossy(&all)
        );
    }
}

#[test]
fn a_client_that_goes_away_ends_the_upstream_s_work() {
    let (ended, end) = mpsc::channel::<Instant>();
    let (began, under_way) = mpsc::channel::<()>();
    let (ended, began) = (Mutex::new(ended), Mutex::new(began));
    let upstream = Upstream::serving(move |stream, request| {
        if request.starts_with(b"GET /body") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        }
        began.lock().unwrap().send(()).unwrap();
        let _ = stream.read(&mut [0]);
        ended.lock().unwrap().send(Instant::now()).unwrap();
        false
    });
    let gateway = gateway(&[upstream.origin()], "");
    for path in ["/head", "/body"] {
        let leave = || {
            let mut client = gateway.connect();
            client.send(signed_head("GET", path, ""));
            under_way.recv_timeout(Duration::from_secs(10)).unwrap();
            client.stream.sock.shutdown(std::net::Shutdown::Both).unwrap();
            let left = Instant::now();
            drop(client);
            end.recv_timeout(Duration::from_secs(10)).expect("the upstream is told").duration_since(left)
        };
        // However busy the machine is, one of several is not held up by it.
        let took: Vec<_> = (0..5).map(|_| leave()).collect();
        assert!(took.iter().min().unwrap() < &Duration::from_millis(100), "{path}: {took:?}");
        assert!(took.iter().max().unwrap() < &Duration::from_secs(2), "{path}: {took:?}");
    }
    let records = gateway.records(10);
    assert_eq!(records[0]["http.response.status_code"], 499);
    assert!(records.iter().all(|record| record["countersign.complete"] == false));
}

#[test]
fn an_https_upstream_is_verified_against_the_given_ca_and_never_taken_on_trust() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), "unused");
    let (pem, key) = (std::fs::read_to_string(folder.path().join("cert.pem")).unwrap(), folder.path().join("key.pem"));
    let upstream = Upstream::tls(&folder.path().join("cert.pem"), &key);
    let other = tempfile::tempdir().unwrap();
    write_files(other.path(), "unused");
    let foreign = std::fs::read_to_string(other.path().join("cert.pem")).unwrap();
    let server = format!("https://127.0.0.1:{}", upstream.address.port());
    let tables = |keys: &str| {
        Gateway::tables(&format!(
            "[upstreams.up]\nservers = [\"{server}\"]\n{keys}\n[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"up\"\n"
        ))
    };
    let files = [("right.pem", pem.as_str()), ("wrong.pem", foreign.as_str())];
    for (keys, status) in [
        ("ca = \"right.pem\"", 200),
        ("ca = \"right.pem\"\nserver_name = \"gw.test\"", 200),
        ("ca = \"right.pem\"\nserver_name = \"other.test\"", 502),
        ("ca = \"wrong.pem\"", 502),
        ("", 502),
    ] {
        let gateway = Gateway::with_files("", &tables(keys), &files);
        let answer = gateway.ask(signed_head("GET", "/a", ""));
        assert_eq!(answer.status, status, "{keys}");
        if status == 502 {
            told(&gateway, &answer, 502, "upstream_unreachable");
        }
    }
    assert_eq!(upstream.requests().len(), 2);
    let head = String::from_utf8(upstream.requests().remove(0)).unwrap();
    assert_eq!(header(&head, "host"), Some(upstream.address.to_string().as_str()));
}

#[test]
fn a_name_that_is_unknown_fails_its_own_route_only() {
    let upstream = Upstream::ok();
    let gateway = Gateway::with(&format!(
        "[[routes]]\npath = \"/gone/\"\napp = \"test\"\nupstream = \"http://no-such-host.invalid\"\n[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n",
        upstream.origin()
    ));
    let answer = gateway.ask(signed_head("GET", "/gone/", ""));
    assert!([502, 504].contains(&answer.status), "{}", answer.status);
    assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
}

#[test]
fn a_second_connection_is_not_held_up_by_a_slow_first() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let _silent = TcpStream::connect(gateway.address).unwrap();
    let mut half = gateway.connect();
    half.send("GET /a HTT");
    let began = Instant::now();
    assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
    assert!(began.elapsed() < Duration::from_secs(2));
}
