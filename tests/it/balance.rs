//! Several servers for one job: which is asked, which is left out, and what is sent a second time; HTTP/2 and Unix
//! sockets among them.

use std::{
    convert::Infallible,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::support::{Gateway, USER, Upstream, find, header, identity_payload, signed_body, signed_head, write_files};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const DOWN: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
const SOON: Duration = Duration::from_secs(10);

fn gateway(servers: &[String], keys: &str) -> Gateway {
    Gateway::with(&format!(
        "[upstreams.up]\nservers = {servers:?}\n{keys}\n[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"up\"\nmethods = [\"GET\", \"POST\", \"PUT\"]\n"
    ))
}

fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn path(request: &[u8]) -> String {
    String::from_utf8_lossy(request).split(' ').nth(1).unwrap_or_default().to_owned()
}

/// How often `path` was asked for.
fn times(upstream: &Upstream, asked: &str) -> usize {
    upstream.requests().iter().filter(|request| path(request) == asked).count()
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn one_of_two_servers_that_is_dead_is_noticed_by_nobody() {
    let live = Upstream::ok();
    let gateway = gateway(&[nobody(), live.origin()], "");
    for number in 0..10 {
        assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
        let post = format!("/post/{number}");
        assert_eq!(gateway.ask(signed_body("POST", &post, &identity_payload())).status, 200);
        assert_eq!(times(&live, &post), 1);
    }
}

#[test]
fn a_server_that_fails_its_health_checks_is_left_out_until_it_is_well() {
    let is_well = Arc::new(AtomicBool::new(false));
    let (well, checks) = (Arc::clone(&is_well), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&checks);
    let sick = Upstream::answering(move |request| {
        if path(request) != "/healthz" {
            return OK.to_vec();
        }
        counted.fetch_add(1, Ordering::SeqCst);
        if well.load(Ordering::SeqCst) { OK.to_vec() } else { DOWN.to_vec() }
    });
    let good = Upstream::ok();
    let health = "health = { path = \"/healthz\", every = \"50ms\", timeout = \"5s\", healthy = 2, unhealthy = 2 }";
    let gateway = gateway(&[sick.origin(), good.origin()], health);
    // The third check shows that the second was noted.
    until("it is checked", || checks.load(Ordering::SeqCst) >= 3);
    for _ in 0..10 {
        assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
    }
    assert_eq!((times(&sick, "/a"), times(&good, "/a")), (0, 10), "a server that is not well was asked");
    let check = sick.requests().into_iter().find(|request| path(request) == "/healthz").unwrap();
    let check = String::from_utf8(check).unwrap().to_ascii_lowercase();
    assert!(!check.contains("stripe") && !check.contains("countersign-user"), "{check}");
    is_well.store(true, Ordering::SeqCst);
    until("it is asked again", || {
        assert_eq!(gateway.ask(signed_head("GET", "/b", "")).status, 200);
        times(&sick, "/b") > 0
    });
}

#[test]
fn a_server_that_fails_several_times_is_left_out_and_then_tried_by_one_request() {
    let is_well = Arc::new(AtomicBool::new(false));
    let well = Arc::clone(&is_well);
    let flapping = Upstream::serving(move |stream, _| well.load(Ordering::SeqCst) && stream.write_all(OK).is_ok());
    let good = Upstream::ok();
    let servers = [flapping.origin(), good.origin()];
    let ejecting = gateway(&servers, "eject_after = 3\neject_for = \"1s\"");
    // A POST is lost with the server that loses it, and sent nowhere else.
    let ask = |gateway: &Gateway| gateway.ask(signed_body("POST", "/a", &identity_payload())).status;
    let mut lost = 0;
    until("it is left out", || {
        lost += usize::from(ask(&ejecting) == 502);
        lost == 3
    });
    let left_out = Instant::now();
    let before = flapping.requests().len();
    assert_eq!(before, 3);
    while left_out.elapsed() < Duration::from_millis(700) {
        assert_eq!(ask(&ejecting), 200, "a server that was left out was asked");
    }
    assert_eq!(flapping.requests().len(), before);
    // The trial fails, and leaves it out at once for twice as long.
    until("it is tried", || ask(&ejecting) == 502);
    let tried = Instant::now();
    assert_eq!(flapping.requests().len(), before + 1);
    while tried.elapsed() < Duration::from_millis(1500) {
        assert_eq!(ask(&ejecting), 200, "one trial that failed was not enough");
    }
    is_well.store(true, Ordering::SeqCst);
    until("it is itself again", || {
        assert_eq!(ask(&ejecting), 200);
        flapping.requests().len() >= before + 5
    });
    // Without ejection it goes on failing.
    is_well.store(false, Ordering::SeqCst);
    let patient = gateway(&servers, "eject_after = 0");
    assert!((0..20).filter(|_| ask(&patient) == 502).count() >= 5);
}

#[test]
fn where_all_servers_are_left_out_all_are_tried() {
    let upstreams =
        [(); 2].map(|()| Upstream::serving(|stream, request| path(request) != "/lost" && stream.write_all(OK).is_ok()));
    let servers = upstreams.each_ref().map(Upstream::origin);
    let gateway = gateway(&servers, "eject_after = 1\neject_for = \"1h\"");
    for _ in 0..6 {
        assert_eq!(gateway.ask(signed_body("POST", "/lost", &identity_payload())).status, 502);
    }
    for _ in 0..4 {
        assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
    }
}

/// An upstream whose every request waits for a word.
fn waiting() -> (Upstream, mpsc::Sender<()>) {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let upstream = Upstream::serving(move |stream, _| {
        let _ = wait.lock().unwrap().recv_timeout(SOON);
        stream.write_all(OK).is_ok()
    });
    (upstream, go)
}

#[test]
fn a_request_waits_for_a_place_and_gets_it() {
    let (upstream, go) = waiting();
    let gateway = gateway(&[upstream.origin()], "max_in_flight = 1\nmax_queued = 2\nqueue_timeout = \"60s\"");
    let mut clients: Vec<_> = (0..3).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(signed_head("GET", "/a", ""));
    }
    // The fourth is one too many, and is not kept waiting; until the others wait, it would itself.
    until("the queue is full", || {
        upstream.requests().len() == 1 && {
            let mut other = gateway.connect();
            other.send(signed_head("GET", "/b", ""));
            other.stream.sock.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            other.try_answer().is_some_and(|answer| answer.status == 503 && answer.code() == "overloaded")
        }
    });
    assert_eq!(upstream.requests().len(), 1, "more than may be in flight");
    for client in &mut clients {
        go.send(()).unwrap();
        let _ = client;
    }
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn who_waits_too_long_for_a_place_is_503_and_was_never_sent() {
    let (upstream, go) = waiting();
    let gateway = gateway(&[upstream.origin()], "max_in_flight = 1\nmax_queued = 5\nqueue_timeout = \"400ms\"");
    let mut first = gateway.connect();
    first.send(signed_head("GET", "/a", ""));
    until("it is under way", || upstream.requests().len() == 1);
    let began = Instant::now();
    let answer = gateway.ask(signed_body("POST", "/late", &identity_payload()));
    let took = began.elapsed();
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(took >= Duration::from_millis(400) && took < SOON, "{took:?}");
    let record = gateway.records(1).pop().unwrap();
    assert_eq!(
        (&record["countersign.decision"], &record["countersign.reason"]),
        (&"permitted".into(), &"overloaded".into())
    );
    assert!(record["countersign.upstream_ms"].as_f64().unwrap() >= 400.0, "its queue is counted: {record}");
    go.send(()).unwrap();
    assert_eq!(first.answer().status, 200);
    assert_eq!(times(&upstream, "/late"), 0);
}

#[test]
fn each_server_has_places_of_its_own_and_the_less_busy_one_is_asked() {
    let ((one, go_one), (two, go_two)) = (waiting(), waiting());
    let gateway = gateway(&[one.origin(), two.origin()], "max_in_flight = 2\nmax_queued = 0");
    let mut clients: Vec<_> = (0..4).map(|_| gateway.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(signed_head("GET", "/a", ""));
        until("it is under way", || one.requests().len() + two.requests().len() == number + 1);
    }
    assert_eq!((one.requests().len(), two.requests().len()), (2, 2));
    assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 503);
    for _ in 0..2 {
        go_one.send(()).unwrap();
        go_two.send(()).unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn a_slow_server_gets_less() {
    let (slow, _never) = waiting();
    let quick = Upstream::ok();
    let gateway = gateway(&[slow.origin(), quick.origin()], "");
    let mut clients: Vec<_> = (0..12).map(|_| gateway.connect()).collect();
    let mut answered = 0;
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(signed_head("GET", "/a", ""));
        until("it is under way", || slow.requests().len() + quick.requests().len() == number + 1);
        if quick.requests().len() > answered {
            assert_eq!(client.answer().status, 200);
            answered += 1;
        }
    }
    // With one request in its hands it is the busier of the two, whenever both are looked at.
    assert!(slow.requests().len() < quick.requests().len(), "{} {}", slow.requests().len(), quick.requests().len());
}

#[test]
fn a_budget_bounds_what_is_sent_twice() {
    let upstreams = [(); 2].map(|()| Upstream::serving(|_, _| false));
    let sent = || upstreams.iter().map(|upstream| upstream.requests().len()).sum::<usize>();
    let servers = upstreams.each_ref().map(Upstream::origin);
    let frugal = gateway(&servers, "eject_after = 0\nretry_budget = 1");
    let began = Instant::now();
    for _ in 0..60 {
        assert_eq!(frugal.ask(signed_head("GET", "/a", "")).code(), "upstream_unreachable");
    }
    // Ten to begin with, one a second, one of a hundred requests.
    let most = 10 + usize::try_from(began.elapsed().as_secs()).unwrap() + 2;
    let again = sent() - 60;
    assert!(again >= 10 && again <= most, "{again} of 60 were sent again, not {most}");
    let before = sent();
    let none = gateway(&servers, "eject_after = 0\nretry_budget = 0");
    for _ in 0..5 {
        assert_eq!(none.ask(signed_head("GET", "/a", "")).status, 502);
    }
    assert_eq!(sent() - before, 5, "sent again without a budget");
    // A POST is never sent twice, whatever the budget.
    let generous = gateway(&servers, "eject_after = 0\nretry_budget = 100");
    let before = sent();
    for _ in 0..10 {
        assert_eq!(generous.ask(signed_body("POST", "/a", &identity_payload())).status, 502);
    }
    assert_eq!(sent() - before, 10, "a POST was sent twice");
    assert_eq!(generous.ask(signed_body("PUT", "/a", &identity_payload())).status, 502);
    assert_eq!(sent() - before, 12, "a PUT is sent once more");
}

#[test]
fn a_get_that_one_server_lost_is_answered_by_the_other() {
    let losing = Upstream::serving(|_, _| false);
    let good = Upstream::ok();
    let gateway = gateway(&[losing.origin(), good.origin()], "eject_after = 0\nretry_budget = 100");
    for number in 0..10 {
        let asked = format!("/{number}");
        assert_eq!(gateway.ask(signed_head("GET", &asked, "")).status, 200);
        assert_eq!(times(&good, &asked), 1);
    }
    assert!(!losing.requests().is_empty());
}

/// What an HTTP/2 server was asked.
#[derive(Clone, Debug)]
struct Asked {
    version: Version,
    uri: String,
    host: Option<String>,
    user: Option<String>,
    body: Bytes,
    peer: SocketAddr,
}

/// A real HTTP/2 server, in the clear or behind TLS.
struct Http2 {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Http2 {
    fn start(tls: Option<(&Path, &Path)>) -> Self {
        let acceptor = tls.map(|(certificate, key)| {
            let chain = countersign::tls::certificates(certificate).unwrap();
            let key = countersign::tls::private_key(key).unwrap();
            let mut config = rustls::ServerConfig::builder_with_provider(countersign::tls::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .unwrap();
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            tokio_rustls::TlsAcceptor::from(Arc::new(config))
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&asked);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, peer) = listener.accept().await.unwrap();
                    let (kept, acceptor) = (Arc::clone(&kept), acceptor.clone());
                    tokio::spawn(async move {
                        let service = service_fn(move |request| answer(request, peer, Arc::clone(&kept)));
                        let builder = http2::Builder::new(TokioExecutor::new());
                        match acceptor {
                            None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                            Some(acceptor) => {
                                let stream = acceptor.accept(stream).await.unwrap();
                                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
                                drop(builder.serve_connection(TokioIo::new(stream), service).await);
                            }
                        }
                    });
                }
            });
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn answer(
    request: Request<Incoming>,
    peer: SocketAddr,
    kept: Arc<Mutex<Vec<Asked>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let text = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let (host, user) = (text("host"), text("countersign-user"));
    let body = body.collect().await.unwrap().to_bytes();
    let asked = Asked { version: parts.version, uri: parts.uri.to_string(), host, user, body, peer };
    kept.lock().unwrap().push(asked);
    Ok(Response::new(Full::new(Bytes::from("over two"))))
}

#[test]
fn a_server_is_spoken_to_over_http2_in_the_clear_where_its_scheme_says_so() {
    let server = Http2::start(None);
    let gateway = gateway(&[format!("h2c://{}", server.address)], "");
    let body = identity_payload();
    for _ in 0..3 {
        assert_eq!(gateway.ask(signed_head("GET", "/a?b=c", "")).body, b"over two");
        assert_eq!(gateway.ask(signed_body("POST", "/up", &body)).status, 200);
    }
    let chunked = "Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n";
    assert_eq!(gateway.ask(signed_head("POST", "/stream", chunked) + "4\r\nhalf\r\n0\r\n\r\n").status, 200);
    let asked = server.asked();
    assert_eq!(asked.len(), 7);
    assert!(asked.iter().all(|one| one.version == Version::HTTP_2 && one.user.as_deref() == Some(USER)), "{asked:?}");
    assert_eq!(asked[0].uri, format!("http://{}/a?b=c", server.address));
    assert_eq!(asked[0].host, None);
    assert_eq!((asked[1].body.as_ref(), asked[6].body.as_ref()), (body.as_bytes(), &b"half"[..]));
    assert!(asked.iter().all(|one| one.peer == asked[0].peer), "one connection is enough: {asked:?}");
}

#[test]
fn a_server_behind_tls_chooses_http2() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), "unused");
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let server = Http2::start(Some((&certificate, &key)));
    let gateway = gateway(&[format!("https://{}", server.address)], &format!("ca = {certificate:?}"));
    // The first tells what is spoken there.
    assert_eq!(gateway.ask(signed_head("GET", "/a", "")).body, b"over two");
    let mut clients: Vec<_> = (0..20).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(signed_head("GET", "/a", ""));
    }
    for client in &mut clients {
        assert_eq!(client.answer().body, b"over two");
    }
    let asked = server.asked();
    assert_eq!(asked.len(), 21);
    assert!(
        asked.iter().all(|one| one.version == Version::HTTP_2 && one.uri.starts_with("https://127.0.0.1:")),
        "{asked:?}"
    );
    assert!(asked.iter().all(|one| one.peer == asked[0].peer), "all at once, they share one connection");
}

#[test]
fn a_server_that_speaks_no_http2_where_it_should_is_an_error() {
    let upstream = Upstream::ok();
    let gateway = gateway(&[format!("h2c://{}", upstream.address)], "response_timeout = \"2s\"");
    let answer = gateway.ask(signed_body("POST", "/a", &identity_payload()));
    assert!([502, 504].contains(&answer.status), "{}", answer.head);
    assert!(upstream.requests().iter().all(|request| !request.starts_with(b"POST")), "it was spoken to all the same");
}

#[test]
fn a_server_behind_a_unix_socket_is_asked_as_any() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("service.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heard);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let kept = Arc::clone(&kept);
            std::thread::spawn(move || {
                let (mut bytes, mut space) = (Vec::new(), [0; 4096]);
                while let Ok(count @ 1..) = std::io::Read::read(&mut stream, &mut space) {
                    bytes.extend_from_slice(&space[..count]);
                    while let Some(at) = find(&bytes, b"\r\n\r\n") {
                        let request: Vec<u8> = bytes.drain(..at + 4).collect();
                        kept.lock().unwrap().push(String::from_utf8(request).unwrap());
                        let _ = stream.write_all(OK);
                    }
                }
            });
        }
    });
    let gateway = gateway(&[format!("unix:{}", socket.display())], "");
    for _ in 0..3 {
        assert_eq!(gateway.ask(signed_head("GET", "/a", "")).body, b"ok");
    }
    let heard = heard.lock().unwrap().clone();
    assert_eq!(heard.len(), 3);
    assert_eq!(header(&heard[0], "host"), Some("localhost"));
    assert_eq!(header(&heard[0], "countersign-user"), Some(USER));
}

#[test]
fn a_server_that_was_left_out_comes_back_while_a_stream_of_it_lasts() {
    let serve = || {
        Upstream::serving(|stream, request| match path(request).as_str() {
            "/events" => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n");
                while stream.write_all(b"2\r\nhi\r\n").is_ok() {
                    std::thread::sleep(Duration::from_millis(100));
                }
                false
            }
            "/lost" => false,
            _ => stream.write_all(OK).is_ok(),
        })
    };
    let servers = [serve(), serve()];
    let keys = "eject_after = 1\neject_for = \"500ms\"\nqueue_timeout = \"300ms\"";
    let gateway = gateway(&[servers[0].origin(), servers[1].origin()], keys);
    let mut open = Vec::new();
    while servers.iter().any(|server| times(server, "/events") == 0) {
        let mut client = gateway.connect();
        client.send(signed_head("GET", "/events", ""));
        client.head();
        open.push(client);
    }
    while servers.iter().any(|server| times(server, "/lost") == 0) {
        gateway.ask(signed_body("POST", "/lost", &identity_payload()));
    }
    std::thread::sleep(Duration::from_millis(700));
    until("both are asked again", || {
        assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
        servers.iter().all(|server| times(server, "/a") > 0)
    });
}

#[test]
fn a_client_that_stops_sending_is_not_its_server_s_failure() {
    let serve = || {
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let upstream = Upstream::raw(move |stream| {
            let mut got = Vec::new();
            while Upstream::read_until(stream, &mut got, b"\r\n\r\n") {
                if got.starts_with(b"POST") {
                    // A bound on how long a body may take.
                    std::thread::sleep(Duration::from_millis(200));
                    return;
                }
                counter.fetch_add(1, Ordering::SeqCst);
                got.clear();
                if stream.write_all(OK).is_err() {
                    return;
                }
            }
        });
        (upstream, asked)
    };
    let servers = [serve(), serve()];
    let gateway = gateway(&servers.each_ref().map(|(upstream, _)| upstream.origin()), "eject_after = 1");
    let chunked = "Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n";
    for _ in 0..4 {
        let mut client = gateway.connect();
        client.send(signed_head("POST", "/up", chunked) + "1\r\nx\r\n");
        assert_eq!(client.answer().code(), "upstream_unreachable");
    }
    for _ in 0..10 {
        gateway.ask(signed_head("GET", "/a", ""));
    }
    let asked = servers.each_ref().map(|(_, asked)| asked.load(Ordering::SeqCst));
    assert!(!asked.contains(&0), "{asked:?}");
}
