//! Upstreams that misbehave for real: what the client is told and how soon, what is recorded, what reaches the upstream,
//! and that nobody else notices. Each test names the fault of the list in its `Fault:` line.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use serde_json::Value;
use socket2::SockRef;

use crate::{
    commands::Running,
    support::{Answer, Client, Gateway, NOW, Upstream, header, headers, identity_payload, signed_body, signed_head},
};

mod clients;
mod connecting;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// What is not waited for is over by then; the waits that a test does not set are twelve times as long.
const SOON: Duration = Duration::from_secs(5);
const LONG: &str = "60s";

/// A gateway with a route to a bad upstream, and one to an honest upstream.
struct Ground {
    gateway: Gateway,
    _honest: Upstream,
    asked: AtomicUsize,
}

/// What a request met.
struct Met {
    answer: Answer,
    took: Duration,
    record: Value,
}

impl Ground {
    fn new(servers: &[&str], keys: &str) -> Self {
        Self::with_files(servers, keys, &[])
    }

    fn with_files(servers: &[&str], keys: &str, files: &[(&str, &str)]) -> Self {
        let honest = Upstream::ok();
        let mut waits = String::new();
        for wait in ["connect_timeout", "response_timeout", "idle_timeout"] {
            if !keys.contains(wait) {
                waits.extend([wait, " = \"", LONG, "\"\n"]);
            }
        }
        let route = "app = \"test\"\nmethods = [\"GET\", \"HEAD\", \"POST\", \"PUT\"]\n";
        let tables = format!(
            "[upstreams.bad]\nservers = {servers:?}\n{waits}{keys}\n\
             [[routes]]\npath = \"/\"\nupstream = \"bad\"\n{route}\
             [[routes]]\npath = \"/honest/\"\nupstream = \"{}\"\n{route}",
            honest.origin()
        );
        let gateway = Gateway::with_files("", &Gateway::tables(&tables), files);
        Self { gateway, _honest: honest, asked: AtomicUsize::new(0) }
    }

    /// Asks the bad upstream, while others ask the honest one and must not notice.
    fn ask(&self, method: &str, path: &str) -> Met {
        self.ask_by(method, path, Gateway::ask)
    }

    fn ask_by(&self, method: &str, path: &str, ask: impl FnOnce(&Gateway, String) -> Answer + Send) -> Met {
        let path = format!("{path}/{}", self.asked.fetch_add(1, Ordering::Relaxed));
        let request = match method {
            "POST" | "PUT" => signed_body(method, &path, &identity_payload()),
            _ => signed_head(method, &path, ""),
        };
        let began = Instant::now();
        let (answer, took) = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let answer = ask(&self.gateway, request);
                (answer, began.elapsed())
            });
            loop {
                let began = Instant::now();
                assert_eq!(self.gateway.ask(signed_head("GET", "/honest/", "")).status, 200);
                assert!(began.elapsed() < SOON, "others waited {:?}", began.elapsed());
                if asking.is_finished() {
                    break asking.join().unwrap();
                }
            }
        });
        Met { answer, took, record: self.record(&path) }
    }

    /// The record of the request for `path`.
    fn record(&self, path: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(record) = self.gateway.records(0).into_iter().find(|record| record["url.path"] == *path) {
                return record;
            }
            assert!(Instant::now() < deadline, "no record of {path}");
            std::thread::yield_now();
        }
    }
}

impl Met {
    /// That the client was told so in place of an answer, and that it is recorded with its reason and its times.
    #[track_caller]
    fn is(&self, status: u16, code: &str) {
        let Self { answer, record, .. } = self;
        assert_eq!((answer.status, answer.code().as_str(), answer.complete), (status, code, true), "{}", answer.head);
        assert_eq!(answer.count("access-control-allow-origin"), 1);
        assert!(!String::from_utf8_lossy(&answer.body).contains("127.0.0.1"), "an internal address is told");
        assert_eq!(record["countersign.reason"], code);
        self.is_recorded(status, true);
    }

    /// That the client got an answer of the upstream, to its end or seen to break off.
    #[track_caller]
    fn is_answer(&self, status: u16, complete: bool) {
        assert_eq!((self.answer.status, self.answer.complete), (status, complete), "{}", self.answer.head);
        assert_eq!(self.record["countersign.reason"], Value::Null);
        self.is_recorded(status, complete);
    }

    #[track_caller]
    fn is_recorded(&self, status: u16, complete: bool) {
        let record = &self.record;
        assert_eq!(record["countersign.decision"], "permitted");
        assert_eq!(record["countersign.upstream"], "bad");
        assert_eq!(record["http.response.status_code"], status);
        assert_eq!(record["countersign.complete"], complete, "{record}");
        let (all, upstream) = (&record["countersign.duration_ms"], &record["countersign.upstream_ms"]);
        let (all, upstream) = (all.as_f64().unwrap(), upstream.as_f64().unwrap());
        assert!(upstream <= all && all <= self.took.as_secs_f64() * 1000.0, "{record}, but {:?}", self.took);
    }

    #[track_caller]
    fn came_soon(&self) {
        assert!(self.took < SOON, "{:?}", self.took);
    }

    /// That it took as long as the bound says, and not much longer.
    #[track_caller]
    fn came_after(&self, bound: Duration) {
        assert!(self.took >= bound && self.took < bound + SOON, "{:?}", self.took);
    }
}

/// An upstream that does harm where `/harm` is asked for, and stays on the connection for more; all else it answers well.
struct Bad {
    upstream: Upstream,
    /// The connection of each request.
    peers: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Bad {
    fn doing(harm: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Self {
        let peers = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&peers);
        let upstream = Upstream::serving(move |stream, request| {
            seen.lock().unwrap().extend(stream.peer_addr());
            if find_path(request).starts_with("/harm") {
                harm(stream);
                return true;
            }
            stream.write_all(OK).is_ok()
        });
        Self { upstream, peers }
    }

    fn saying(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self::doing(move |stream| {
            let _ = stream.write_all(&bytes);
        })
    }

    fn ground(&self, keys: &str) -> Ground {
        Ground::new(&[&self.upstream.origin()], keys)
    }

    /// How often a request for `path` came.
    fn times(&self, path: &str) -> usize {
        self.upstream.requests().iter().filter(|request| find_path(request).starts_with(path)).count()
    }

    /// That the next request is answered well, on a connection of its own.
    #[track_caller]
    fn leaves_no_poison(&self, ground: &Ground) {
        for method in ["GET", "POST"] {
            let next = ground.ask(method, "/fine");
            next.is_answer(200, true);
            assert_eq!(next.answer.body, b"ok");
        }
        let peers = self.peers.lock().unwrap();
        assert!(!peers[1..].contains(&peers[0]), "a doubtful connection was used again");
    }
}

fn find_path(request: &[u8]) -> String {
    String::from_utf8_lossy(request).split(' ').nth(1).unwrap_or_default().to_owned()
}

/// Has the connection end with a reset, not with its end.
fn reset(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// A body's end that a close can never be taken for.
fn closing(bytes: &'static str, how: impl Fn(&TcpStream) + Send + Sync + 'static) -> Bad {
    let peers = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&peers);
    let upstream = Upstream::serving(move |stream, request| {
        seen.lock().unwrap().extend(stream.peer_addr());
        if !find_path(request).starts_with("/harm") {
            return stream.write_all(OK).is_ok();
        }
        let _ = stream.write_all(bytes.as_bytes());
        how(stream);
        false
    });
    Bad { upstream, peers }
}

/// Fault: garbage, HTTP/0.9, 99/600, bare LF, NUL; CL+TE, two CL; unasked 101; huge and many headers.
#[test]
fn an_answer_that_is_no_http_is_502_and_its_connection_is_done_for() {
    let huge = format!("HTTP/1.1 200 OK\r\nX-Huge: {}\r\nContent-Length: 2\r\n\r\nok", "x".repeat(1024 * 1024));
    let many = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nok", "X-Many: 1\r\n".repeat(1000));
    for answer in [
        "garbage\r\n\r\n",
        "\u{1}\u{2}\u{3}\u{0}\u{ff}\r\n\r\n",
        "<html>HTTP/0.9</html>\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 99 Low\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 600 High\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 999 Higher\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 1000 Long\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 20 Short\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 -20 Minus\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nX: a\nY: b\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\nok",
        "HTTP/1.1 200 OK\r\nX-Nul: a\0b\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX Space: a\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nNo colon\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        &huge,
        &many,
    ] {
        let bad = Bad::saying(answer);
        let ground = bad.ground("");
        let met = ground.ask("POST", "/harm");
        assert_eq!(met.answer.status, 502, "{:?}", answer.get(..60));
        met.is(502, "upstream_invalid");
        met.came_soon();
        assert_eq!(bad.times("/harm"), 1, "sent again: {:?}", answer.get(..60));
        bad.leaves_no_poison(&ground);
    }
}

/// Fault: CL+TE, two CL, body on 204/304, second answer; trailers with identity. What has one reading goes on
/// with a framing of ours.
#[test]
fn an_answer_with_an_odd_framing_is_framed_anew() {
    for (answer, status, body) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, "ok"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", 200, "ok"),
        (
            "HTTP/1.1 200 OK\r\nTrailer: Countersign-User\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nCountersign-User: usr_Forged\r\n\r\n",
            200,
            "ok",
        ),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: </forged>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            200,
            "ok",
        ),
    ] {
        let bad = Bad::saying(answer);
        let ground = bad.ground("");
        let met = ground.ask("POST", "/harm");
        if met.answer.status == 502 {
            met.is(502, "upstream_invalid");
            continue;
        }
        met.is_answer(status, true);
        assert_eq!(met.answer.body, body.as_bytes(), "{answer:?}");
        let framings = met.answer.count("content-length") + met.answer.count("transfer-encoding");
        assert_eq!(framings, 1, "{answer:?}: {}", met.answer.head);
        assert!(!met.answer.head.contains("orged") && met.answer.header("trailer").is_none(), "{}", met.answer.head);
        assert_eq!(bad.times("/harm"), 1);
    }
}

/// Fault: body on 204/304, second answer: the next request never gets the poison.
#[test]
fn what_comes_behind_an_answer_is_nobody_s_answer() {
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    for (answer, status) in [
        (format!("HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison{poison}"), 204),
        (format!("HTTP/1.1 204 No Content\r\n\r\n{poison}"), 204),
        (format!("HTTP/1.1 304 Not Modified\r\n\r\npoison{poison}"), 304),
        (format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{poison}"), 200),
        (format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{poison}"), 200),
    ] {
        let bad = Bad::saying(answer);
        let ground = bad.ground("");
        let mut client = ground.gateway.connect();
        client.send(signed_head("GET", "/harm", ""));
        assert_eq!(client.answer().status, status);
        // The same client, at once: the poison would be on its way.
        client.send(signed_head("GET", "/fine", ""));
        let next = client.answer();
        assert_eq!((next.status, next.body.as_slice()), (200, &b"ok"[..]));
        bad.leaves_no_poison(&ground);
    }
    // It says so when nothing was asked.
    let bad = Bad::doing(move |stream| {
        let _ = stream.write_all(OK);
        std::thread::sleep(Duration::from_millis(50));
        let _ = stream.write_all(poison.as_bytes());
    });
    let ground = bad.ground("");
    ground.ask("GET", "/harm").is_answer(200, true);
    std::thread::sleep(Duration::from_millis(100));
    bad.leaves_no_poison(&ground);
}

/// Fault: HEAD answered with a body: it is not the next answer.
#[test]
fn a_body_on_the_answer_to_head_is_nobody_s_answer() {
    let bad =
        Bad::saying("HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
    let ground = bad.ground("");
    let mut client = ground.gateway.connect();
    client.send(signed_head("HEAD", "/harm", ""));
    assert_eq!(client.answer_to("HEAD").status, 200);
    client.send(signed_head("GET", "/fine", ""));
    assert_eq!(client.answer().body, b"ok");
    bad.leaves_no_poison(&ground);
}

/// Fault: 1xx flood.
#[test]
fn a_flood_of_interim_answers_ends() {
    let bad = Bad::saying(format!("{}{}", "HTTP/1.1 100 Continue\r\n\r\n".repeat(50), String::from_utf8_lossy(OK)));
    let met = bad.ground("").ask("GET", "/harm");
    met.is_answer(200, true);
    assert_eq!(met.answer.body, b"ok");
    // Without an end, it is as good as none, and keeps nobody else from getting a turn.
    let endless = Bad::doing(|stream| while stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").is_ok() {});
    let ground = endless.ground("");
    let met = ground.ask("POST", "/harm");
    met.is(502, "upstream_invalid");
    assert_eq!(endless.times("/harm"), 1);
    endless.leaves_no_poison(&ground);
}

/// Fault: reset after request / before any byte.
#[test]
fn a_connection_that_is_lost_before_an_answer_is_502_and_a_post_was_sent_once() {
    type How = fn(&TcpStream);
    let ways: [(&str, How); 4] = [("", reset), ("", |_| ()), ("HTTP/1.1 200 OK\r\nX-Half", reset), ("HTTP/1.", |_| ())];
    for (part, how) in ways {
        let bad = closing(part, how);
        let ground = bad.ground("");
        let met = ground.ask("POST", "/harm");
        met.is(502, "upstream_unreachable");
        met.came_soon();
        assert_eq!(bad.times("/harm"), 1, "a POST was sent again after {part:?}");
        // What does no more harm twice may be sent once more, but only where nothing of an answer came.
        for (number, method) in ["GET", "PUT"].into_iter().enumerate() {
            let before = bad.times("/harm");
            let met = ground.ask(method, "/harm");
            met.is(502, "upstream_unreachable");
            met.came_soon();
            let times = bad.times("/harm") - before;
            assert_eq!(times, if part.is_empty() { 2 } else { 1 }, "{method} after {part:?}, {number}");
        }
        bad.leaves_no_poison(&ground);
    }
}

/// Fault: reset before any byte, of the request too.
#[test]
fn a_connection_that_is_reset_when_it_is_made_is_502() {
    let upstream = Upstream::raw(|stream| reset(stream));
    let ground = Ground::new(&[&upstream.origin()], "");
    for method in ["GET", "POST"] {
        let met = ground.ask(method, "/harm");
        met.is(502, "upstream_unreachable");
        met.came_soon();
    }
}

/// Fault: stale pooled connection closed.
#[test]
fn a_kept_connection_that_was_closed_or_reset_is_seen_by_no_client() {
    for resets in [false, true] {
        let (closed, close) = mpsc::channel::<()>();
        let closed = Mutex::new(closed);
        let upstream = Upstream::raw(move |stream| {
            let mut got = Vec::new();
            if Upstream::read_until(stream, &mut got, b"\r\n\r\n") {
                let _ = stream.write_all(OK);
                if resets {
                    reset(stream);
                }
                let _ = stream.shutdown(if resets { Shutdown::Read } else { Shutdown::Write });
                let _ = closed.lock().unwrap().send(());
            }
        });
        let ground = Ground::new(&[&upstream.origin()], "");
        for _ in 0..20 {
            ground.ask("GET", "/a").is_answer(200, true);
            close.recv_timeout(SOON).unwrap();
        }
    }
}

/// Fault: slow / never answers.
#[test]
fn an_upstream_that_never_answers_is_504_and_frees_its_place() {
    // It says nothing, or drips a head that never ends.
    for drips in [false, true] {
        let bad = Bad::doing(move |stream| {
            if drips {
                for byte in b"HTTP/1.1 200 OK\r\nX-Slow: ".iter().chain(std::iter::repeat(&b'x')) {
                    std::thread::sleep(Duration::from_millis(20));
                    if stream.write_all(&[*byte]).is_err() {
                        return;
                    }
                }
            }
            let _ = stream.read(&mut [0]);
        });
        let ground = bad.ground("response_timeout = \"400ms\"\nmax_in_flight = 1\nmax_queued = 0");
        for method in ["POST", "GET"] {
            let before = bad.times("/harm");
            let met = ground.ask(method, "/harm");
            met.is(504, "upstream_timeout");
            met.came_after(Duration::from_millis(400));
            assert_eq!(bad.times("/harm"), before + 1, "a request that timed out was sent again");
        }
        bad.leaves_no_poison(&ground);
    }
}

/// Fault: half-open mid-body.
#[test]
fn an_answer_that_stops_in_its_middle_is_cut_and_seen_to_be() {
    for head in ["Content-Length: 100\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "\r\nhalf"] {
        let bad = Bad::doing(move |stream| {
            let _ = write!(stream, "HTTP/1.1 200 OK\r\n{head}");
            let _ = stream.read(&mut [0]);
        });
        let ground = bad.ground("idle_timeout = \"300ms\"");
        let met = ground.ask("GET", "/harm");
        met.is_answer(200, false);
        assert_eq!(met.answer.body, b"half");
        met.came_after(Duration::from_millis(300));
        let body = over_http2(&ground.gateway, "/harm/2");
        assert!(body.is_err(), "over HTTP/2 it looked complete: {body:?}");
        bad.leaves_no_poison(&ground);
    }
}

/// Fault: close, reset, cut chunk mid-body.
#[test]
fn an_answer_that_breaks_off_is_never_a_whole_one() {
    type How = fn(&TcpStream);
    let ways: [(&str, How); 2] = [("closed", |_| ()), ("reset", reset)];
    for (name, how) in ways {
        for rest in [
            "Content-Length: 100\r\n\r\nhalf",
            "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "Transfer-Encoding: chunked\r\n\r\n8\r\nhalf",
            "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
            "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\nmore\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n4\r\nhalfmore\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nffffffffffffffffff\r\n",
        ] {
            let answer: &'static str = Box::leak(format!("HTTP/1.1 200 OK\r\n{rest}").into_boxed_str());
            let bad = closing(answer, how);
            let ground = bad.ground("");
            let met = ground.ask("GET", "/harm");
            // A reset may overtake what came before it.
            if met.answer.status == 502 && name == "reset" {
                continue;
            }
            met.is_answer(200, false);
            assert!(b"half".starts_with(&met.answer.body), "{rest:?}, {name}: {:?}", met.answer.body);
            met.came_soon();
            let body = over_http2(&ground.gateway, "/harm/2");
            assert!(body.is_err(), "{rest:?}, {name}, over HTTP/2: {body:?}");
            assert_eq!(ground.record("/harm/2")["countersign.complete"], false);
            bad.leaves_no_poison(&ground);
        }
    }
}

/// Fault: reset mid-body, where only a close ends the body.
#[test]
fn a_body_that_ends_with_its_connection_is_whole_only_if_that_was_closed() {
    let bad = closing("HTTP/1.1 200 OK\r\n\r\nall", |_| ());
    let met = bad.ground("").ask("GET", "/harm");
    met.is_answer(200, true);
    assert_eq!(met.answer.body, b"all");
    let bad = closing("HTTP/1.1 200 OK\r\n\r\nall", |stream| {
        // What came is read before the reset comes.
        std::thread::sleep(Duration::from_millis(300));
        reset(stream);
    });
    bad.ground("").ask("GET", "/harm").is_answer(200, false);
}

/// Fault: early response, early close.
#[test]
fn an_early_answer_reaches_the_client_and_ends_the_upload() {
    for closes in [true, false] {
        let (ended, end) = mpsc::channel();
        let ended = Mutex::new(ended);
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let upstream = Upstream::raw(move |stream| {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            let mut got = Vec::new();
            Upstream::read_until(stream, &mut got, b"\r\n\r\n");
            if number > 0 {
                let _ = stream.write_all(OK);
                return;
            }
            let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
            if !closes {
                let _ = stream.read_to_end(&mut got);
            }
            let _ = ended.lock().unwrap().send(got.len());
        });
        let ground = Ground::new(&[&upstream.origin()], "");
        let met = ground.ask_by("POST", "/harm", |gateway, _| {
            let mut client = gateway.connect();
            let framing = "Content-Type: application/octet-stream\r\nContent-Length: 10000000\r\n";
            client.send(signed_head("POST", "/harm/0", framing));
            client.send([b'x'; 1000]);
            client.answer()
        });
        met.is_answer(403, true);
        assert_eq!(met.answer.body, b"no");
        met.came_soon();
        let got = end.recv_timeout(SOON).expect("the upload ends with its answer");
        assert!(got < 5_000_000, "the upload went on: {got} bytes");
        ground.ask("GET", "/fine").is_answer(200, true);
        assert_eq!(connections.load(Ordering::SeqCst), 2, "the connection was used again");
    }
}

/// Fault: unasked trailers with identity, leaking headers.
#[test]
fn an_upstream_cannot_speak_for_the_gateway() {
    let bad = Bad::saying(
        "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: https://evil.test\r\nAccess-Control-Allow-Credentials: true\r\n\
         Countersign-User: usr_Forged\r\nStripe-User-Id: usr_Forged\r\nX-Request-Id: forged\r\nConnection: X-Hop\r\nX-Hop: hop\r\n\
         Keep-Alive: timeout=9\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok",
    );
    let met = bad.ground("").ask("GET", "/harm");
    met.is_answer(200, true);
    assert_eq!(headers(&met.answer.head, "access-control-allow-origin").collect::<Vec<_>>(), ["*"]);
    for name in
        ["access-control-allow-credentials", "countersign-user", "x-hop", "keep-alive", "proxy-authenticate", "upgrade"]
    {
        assert_eq!(header(&met.answer.head, name), None, "{name}");
    }
    assert_ne!(header(&met.answer.head, "x-request-id"), Some("forged"));
}

/// Fault: all slow at once.
#[test]
fn when_all_requests_hang_more_are_503_and_other_routes_do_not_notice() {
    let bad = Bad::doing(|stream| {
        let _ = stream.read(&mut [0]);
    });
    let ground = bad.ground("max_in_flight = 4\nmax_queued = 2\nqueue_timeout = \"300ms\"");
    let mut hanging: Vec<Client> = (0..4).map(|_| ground.gateway.connect()).collect();
    for (number, client) in hanging.iter_mut().enumerate() {
        client.send(signed_head("GET", &format!("/harm/h{number}"), ""));
    }
    let deadline = Instant::now() + SOON;
    while bad.times("/harm") < 4 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    for method in ["GET", "POST"] {
        let met = ground.ask(method, "/harm/more");
        met.is(503, "overloaded");
        met.came_after(Duration::from_millis(300));
        assert_eq!(met.answer.header("retry-after"), Some("1"));
    }
    assert_eq!(bad.times("/harm"), 4, "more than may be in flight were sent");
    drop(hanging);
    // The places are free again once their clients have left.
    ground.ask("GET", "/fine").is_answer(200, true);
}

/// Fault: clock steps: waits do not follow the clock on the wall, forwards or backwards.
#[test]
fn a_step_of_the_clock_neither_ends_nor_prolongs_a_wait() {
    let (begun, under_way) = mpsc::channel();
    let begun = Mutex::new(begun);
    let bad = Bad::doing(move |stream| {
        begun.lock().unwrap().send(()).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let ground = bad.ground("response_timeout = \"1s\"");
    let mut kept = ground.gateway.connect();
    for step in [3600, -3600, 86_400, -86_400] {
        let mut client = ground.gateway.connect();
        client.send(signed_head("GET", "/harm", ""));
        under_way.recv_timeout(SOON).unwrap();
        let stepped = Instant::now();
        ground.gateway.set_time(NOW + step);
        let answer = client.answer();
        let took = stepped.elapsed();
        ground.gateway.set_time(NOW);
        assert_eq!((answer.status, answer.code().as_str()), (504, "upstream_timeout"));
        assert!(took > Duration::from_millis(500) && took < SOON, "{step} s: {took:?}");
        kept.send(signed_head("GET", "/fine", ""));
        assert_eq!(kept.answer().status, 200, "a kept connection did not outlive a step of {step} s");
    }
}

/// Asks over HTTP/2 and reads the body to its end.
fn over_http2(gateway: &Gateway, path: &str) -> Result<Bytes, hyper::Error> {
    crate::streams::over_http2(gateway, async |mut sender| {
        let request = crate::streams::request("GET", path, Empty::<Bytes>::new());
        let answer = sender.send_request(request).await.unwrap();
        answer.into_body().collect().await.map(http_body_util::Collected::to_bytes)
    })
}
