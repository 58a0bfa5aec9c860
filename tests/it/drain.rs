//! Stopping, under load and against what hangs; signals and sinks that must not disturb what runs.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};

use crate::{
    commands::{Folder, Running, countersign},
    streams::{head_now, now, over_http2_to, request_at},
    support::{Client, SECRET, Upstream, client_config},
};

/// A request under load: when it was sent, and whether its whole answer came.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    sent: Instant,
    is_whole: bool,
}

/// Those who ask until they are told to leave.
struct Load {
    address: SocketAddr,
    certificate: std::path::PathBuf,
    over: AtomicBool,
    whole: AtomicUsize,
    outcomes: Mutex<Vec<Outcome>>,
}

impl Load {
    fn note(&self, sent: Instant, is_whole: bool) {
        self.whole.fetch_add(usize::from(is_whole), Ordering::Relaxed);
        self.outcomes.lock().unwrap().push(Outcome { sent, is_whole });
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Asks on connections that are kept for `most` requests.
    fn over_http1(&self, most: usize) {
        let tls = Arc::new(client_config(&self.certificate, &[b"http/1.1"]));
        while !self.is_over() {
            let Ok(mut client) = Client::try_to(self.address, &tls) else { return };
            for _ in 0..most {
                let request = head_now("GET", "/a", "");
                let written = client.stream.write_all(request.as_bytes()).and_then(|()| client.stream.flush());
                let sent = Instant::now();
                if written.is_err() {
                    break;
                }
                let Some(answer) = client.try_answer() else {
                    self.note(sent, false);
                    break;
                };
                self.note(sent, answer.status == 200 && answer.complete && answer.body == b"in two parts");
                if answer.header("connection") == Some("close") {
                    break;
                }
            }
        }
    }

    fn over_http2(&self) {
        over_http2_to(self.address, &self.certificate, async |sender| {
            let asking = (0..4).map(|_| async {
                let mut sender = sender.clone();
                while !self.is_over() && sender.ready().await.is_ok() {
                    let answer = sender.send_request(request_at("GET", "/a", Empty::<Bytes>::new(), now()));
                    let sent = Instant::now();
                    let body = match answer.await {
                        Ok(answer) if answer.status() == 200 => answer.into_body().collect().await.ok(),
                        Ok(_) | Err(_) => None,
                    };
                    let is_whole = body.is_some_and(|body| body.to_bytes() == "in two parts");
                    self.note(sent, is_whole);
                    if !is_whole {
                        return;
                    }
                }
            });
            futures_util::future::join_all(asking).await;
        });
    }
}

/// Fault: graceful drain: no request that was sent before the signal is lost, nor one that reached the upstream.
#[test]
fn no_request_is_lost_when_a_signal_comes_under_load() {
    let upstream = Upstream::serving(|stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nin two");
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(b" parts").is_ok()
    });
    let folder = Folder::new(&upstream.origin(), "");
    let mut gateway = folder.run(Stdio::null());
    let load = Load {
        address: SocketAddr::from(([127, 0, 0, 1], folder.port)),
        certificate: folder.folder.path().join("cert.pem"),
        over: AtomicBool::new(false),
        whole: AtomicUsize::new(0),
        outcomes: Mutex::default(),
    };
    let signalled = std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| load.over_http1(usize::MAX));
            scope.spawn(|| load.over_http1(1));
        }
        scope.spawn(|| load.over_http2());
        let deadline = Instant::now() + Duration::from_secs(30);
        while load.whole.load(Ordering::Relaxed) < 200 {
            assert!(Instant::now() < deadline, "the load does not come about");
            std::thread::yield_now();
        }
        let signalled = Instant::now();
        gateway.signal("TERM");
        let code = gateway.exit_code();
        load.over.store(true, Ordering::Relaxed);
        assert_eq!(code, Some(0));
        signalled
    });
    let outcomes = load.outcomes.into_inner().unwrap();
    let lost = outcomes.iter().filter(|outcome| outcome.sent < signalled && !outcome.is_whole).count();
    assert_eq!(lost, 0, "of {} requests", outcomes.len());
    let whole = outcomes.iter().filter(|outcome| outcome.is_whole).count();
    assert_eq!(upstream.requests().len(), whole, "the upstream worked for someone who got no answer");
}

/// Fault: graceful drain, with what never ends: the deadline cuts it.
#[test]
fn what_hangs_is_cut_at_the_end_of_the_drain() {
    let upstream = Upstream::serving(|stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nin two");
        let _ = stream.read(&mut [0]);
        false
    });
    let folder = Folder::new(&upstream.origin(), "[limits]\ndrain = \"700ms\"\n");
    let mut gateway = folder.run(Stdio::null());
    let address = SocketAddr::from(([127, 0, 0, 1], folder.port));
    let tls = Arc::new(client_config(&folder.folder.path().join("cert.pem"), &[b"http/1.1"]));
    let mut client = Client::to(address, &tls);
    client.send(head_now("GET", "/a", ""));
    client.read_until(b"in two");
    let began = Instant::now();
    gateway.signal("TERM");
    assert_eq!(gateway.exit_code(), Some(0));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(700) && took < Duration::from_secs(10), "{took:?}");
    let answer = client.answer();
    assert!(!answer.complete, "what was cut looks whole");
}

/// Fault: SIGHUP/SIGUSR/SIGPIPE storms.
#[test]
fn a_storm_of_signals_ends_nothing() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let mut gateway = folder.run(Stdio::null());
    let mut stderr = gateway.0.stderr.take().unwrap();
    let listening = std::thread::spawn(move || {
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        said
    });
    let tls = Arc::new(client_config(&folder.folder.path().join("cert.pem"), &[b"http/1.1"]));
    let mut client = Client::to(SocketAddr::from(([127, 0, 0, 1], folder.port)), &tls);
    let script = "while kill -HUP $0 && kill -USR1 $0 && kill -USR2 $0 && kill -PIPE $0; do :; done";
    let mut storm = Running(Command::new("sh").args(["-c", script, &gateway.0.id().to_string()]).spawn().unwrap());
    for _ in 0..30 {
        client.send(head_now("GET", "/a", ""));
        assert_eq!(client.answer().status, 200);
    }
    assert!(storm.0.try_wait().unwrap().is_none(), "the storm was over");
    drop(storm);
    drop(client);
    gateway.signal("TERM");
    assert_eq!(gateway.exit_code(), Some(0));
    let said = listening.join().unwrap();
    assert!(!said.contains("panic"), "{said}");
}

/// Fault: log sink blocked (full disk): requests do not notice, and the loss is said.
#[test]
fn a_full_disk_under_the_access_log_disturbs_no_request() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "[log]\naccess = \"/dev/full\"\n");
    let gateway = folder.run(Stdio::null());
    let tls = Arc::new(client_config(&folder.folder.path().join("cert.pem"), &[b"http/1.1"]));
    let mut client = Client::to(SocketAddr::from(([127, 0, 0, 1], folder.port)), &tls);
    let began = Instant::now();
    for _ in 0..20 {
        client.send(head_now("GET", "/a", ""));
        assert_eq!(client.answer().status, 200);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    drop(client);
    let said = gateway.drained();
    assert!(said.contains("access log lines dropped"), "{said}");
}

#[test]
fn at_no_level_is_there_a_secret_a_tag_a_body_or_the_value_of_a_query() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let mut command = countersign();
    command.args(["run", "--config", &folder.file("countersign.toml")]).env("COUNTERSIGN_LOG", "trace");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut gateway = folder.started(&mut command);
    let address = SocketAddr::from(([127, 0, 0, 1], folder.port));
    let certificate = folder.folder.path().join("cert.pem");
    let tls = Arc::new(client_config(&certificate, &[b"http/1.1"]));
    let body = r#"{"note":"body-4711"}"#;
    let more =
        format!("Authorization: Bearer token-4711\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n", body.len());
    let head = head_now("POST", "/a?q=query-4711", &more);
    let tag = head.split_once("v1=").unwrap().1[..64].to_owned();
    for request in [format!("{head}{body}"), format!("{}{body}", head.replace(&tag, &"0".repeat(64)))] {
        let mut client = Client::to(address, &tls);
        client.send(request);
        client.answer();
    }
    over_http2_to(address, &certificate, async |mut sender| {
        let mut request = request_at("GET", "/a?q=query-4711", http_body_util::Empty::<bytes::Bytes>::new(), now());
        request.headers_mut().insert("authorization", "Bearer token-4711".parse().unwrap());
        sender.send_request(request).await.unwrap();
    });
    let mut lines = gateway.0.stdout.take().unwrap();
    let mut output = gateway.drained();
    assert!(output.contains(" DEBUG "), "{output}");
    lines.read_to_string(&mut output).unwrap();
    assert_eq!(output.matches("countersign.decision").count(), 3, "{output}");
    for secret in [SECRET, &tag, "4711"] {
        assert!(!output.contains(secret), "{secret}: {output}");
    }
}

/// Fault: log sink blocked (full pipe): neither requests nor the drain wait for the program's own log.
#[test]
fn a_full_pipe_under_the_own_log_holds_up_neither_requests_nor_the_drain() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    // Nobody reads it, and what the program says finds no room.
    let (_unread, mut pipe) = std::io::pipe().unwrap();
    let mut command = countersign();
    command.args(["run", "--config", &folder.file("countersign.toml")]).env("COUNTERSIGN_LOG", "trace");
    command.stdout(Stdio::null()).stderr(pipe.try_clone().unwrap());
    std::thread::spawn(move || while pipe.write_all(&[b'.'; 4096]).is_ok() {});
    let mut gateway = folder.started(&mut command);
    let tls = Arc::new(client_config(&folder.folder.path().join("cert.pem"), &[b"http/1.1"]));
    let mut client = Client::to(SocketAddr::from(([127, 0, 0, 1], folder.port)), &tls);
    for _ in 0..20 {
        gateway.signal("HUP");
        client.send(head_now("GET", "/a", ""));
        assert_eq!(client.answer().status, 200);
    }
    drop(client);
    gateway.signal("TERM");
    assert_eq!(gateway.exit_code(), Some(0));
}
