//! Answers and uploads that are passed on as they come: at once, and in constant memory.

use std::{
    convert::Infallible,
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::{
    body::{Body, Frame},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::{
    commands::{Folder, Running},
    support::{
        ACCOUNT, Client, Gateway, NOW, USER, Upstream, client_config, find, header, identity_payload, signature_at,
        signed_head,
    },
};

const LARGE: usize = 64 * 1024 * 1024;
const PART: usize = 64 * 1024;
/// What the program may grow by while that passes through it.
const GROWTH_KIB: u64 = 6 * 1024;

/// Runs `ask` with an HTTP/2 connection to `gateway`.
pub(crate) fn over_http2<B, T>(gateway: &Gateway, ask: impl AsyncFnOnce(http2::SendRequest<B>) -> T) -> T
where
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    over_http2_to(gateway.address, &gateway.folder.path().join("cert.pem"), ask)
}

/// The same to a gateway at `address` with this certificate.
pub(crate) fn over_http2_to<B, T>(
    address: SocketAddr,
    certificate: &Path,
    ask: impl AsyncFnOnce(http2::SendRequest<B>) -> T,
) -> T
where
    B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = client_config(certificate, &[b"h2"]);
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = tls.connect("gw.test".try_into().unwrap(), stream).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        tokio::time::timeout(Duration::from_secs(120), ask(sender)).await.expect("an end in time")
    })
}

/// A request signed by headers at the gateway's time.
pub(crate) fn request<B>(method: &str, path: &str, body: B) -> Request<B> {
    request_at(method, path, body, NOW)
}

/// The same, signed at `at`.
pub(crate) fn request_at<B>(method: &str, path: &str, body: B, at: i64) -> Request<B> {
    Request::builder()
        .method(method)
        .uri(format!("https://gw.test{path}"))
        .header("stripe-signature", signature_at(&identity_payload(), at))
        .header("stripe-user-id", USER)
        .header("stripe-account-id", ACCOUNT)
        .header("content-type", "application/octet-stream")
        .body(body)
        .unwrap()
}

/// The head of such a request over HTTP/1.1, signed now.
pub(crate) fn head_now(method: &str, path: &str, more: &str) -> String {
    let signature = signature_at(&identity_payload(), now());
    format!(
        "{method} {path} HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: {signature}\r\nStripe-User-Id: {USER}\r\nStripe-Account-Id: {ACCOUNT}\r\n{more}\r\n"
    )
}

pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().try_into().unwrap()
}

/// An upstream of events, each of which is sent when it is asked for.
fn events() -> (Upstream, mpsc::Sender<String>) {
    let (say, said) = mpsc::channel::<String>();
    let said = Mutex::new(said);
    let upstream = Upstream::serving(move |stream, _| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        for event in said.lock().unwrap().iter() {
            let _ = write!(stream, "{:x}\r\n{event}\r\n", event.len());
        }
        stream.write_all(b"0\r\n\r\n").is_ok()
    });
    (upstream, say)
}

/// Rule: streams are unbuffered. Each event is read before the next one exists, and the head before the first.
#[test]
fn events_arrive_while_the_answer_is_open() {
    let (upstream, say) = events();
    let gateway = Gateway::to(&upstream);
    let mut client = gateway.connect();
    client.send(signed_head("GET", "/events", "Accept: text/event-stream\r\n"));
    let head = client.head();
    assert_eq!(header(&head, "content-type"), Some("text/event-stream"));
    for number in 0..50 {
        let event = format!("id: {number}\ndata: x\n\n");
        say.send(event.clone()).unwrap();
        client.read_until(event.as_bytes());
    }
    drop(say);
    client.read_until(b"\r\n0\r\n\r\n");
    assert_eq!(gateway.records(1)[0]["countersign.complete"], true);
}

/// The same over HTTP/2.
#[test]
fn events_arrive_over_http2_while_the_answer_is_open() {
    let (upstream, say) = events();
    let gateway = Gateway::to(&upstream);
    over_http2(&gateway, async |mut sender| {
        let answer = sender.send_request(request("GET", "/events", Empty::<Bytes>::new())).await.unwrap();
        let mut body = answer.into_body();
        for number in 0..50 {
            let event = format!("id: {number}\ndata: x\n\n");
            say.send(event.clone()).unwrap();
            // The whole of it, while the next is not sent.
            let mut came = Vec::new();
            while came.len() < event.len() {
                came.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
            }
            assert_eq!(came, event.as_bytes());
        }
        drop(say);
        assert!(body.collect().await.unwrap().to_bytes().is_empty());
    });
}

/// Rule: every wait has a bound, but that of a stream is between its parts, not of its whole.
#[test]
fn a_stream_outlives_its_idle_timeout_as_long_as_something_comes() {
    let upstream = Upstream::serving(|stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n");
        (0..30).all(|_| {
            std::thread::sleep(Duration::from_millis(100));
            stream.write_all(b"x").is_ok()
        })
    });
    let gateway = Gateway::with(&format!(
        "[upstreams.up]\nservers = [\"{}\"]\nresponse_timeout = \"1500ms\"\nidle_timeout = \"1500ms\"\n[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"up\"\n",
        upstream.origin()
    ));
    let answer = gateway.ask(signed_head("GET", "/a", ""));
    assert_eq!((answer.status, answer.body.len(), answer.complete), (200, 30, true));
}

/// An upstream that sends a large answer, and takes a large upload and tells its size.
fn large() -> Upstream {
    Upstream::raw(|stream| {
        let mut got = Vec::new();
        while Upstream::read_until(stream, &mut got, b"\r\n\r\n") {
            let end = find(&got, b"\r\n\r\n").unwrap() + 4;
            let head = String::from_utf8_lossy(&got[..end]).into_owned();
            got.drain(..end);
            let sent = if head.starts_with("GET /large") {
                let part = vec![b'x'; PART];
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n")
                    .and_then(|()| (0..LARGE / PART).try_for_each(|_| stream.write_all(&part)))
            } else {
                let length: usize = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
                let mut count = got.len();
                let mut space = vec![0; PART];
                while count < length {
                    match stream.read(&mut space) {
                        Ok(0) | Err(_) => return,
                        Ok(more) => count += more,
                    }
                }
                got.clear();
                let told = count.to_string();
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{told}", told.len())
            };
            if sent.is_err() {
                return;
            }
        }
    })
}

/// The most memory that the program has had, in KiB.
fn peak(program: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.0.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Rule: every buffer has a bound, and back-pressure.
#[test]
fn large_answers_and_uploads_pass_in_constant_memory() {
    let upstream = large();
    let folder = Folder::new(&upstream.origin(), "[limits]\nstream_bytes = \"1GiB\"\n");
    let program = folder.run(Stdio::null());
    let address = SocketAddr::from(([127, 0, 0, 1], folder.port));
    let certificate = folder.folder.path().join("cert.pem");
    let tls = Arc::new(client_config(&certificate, &[b"http/1.1"]));
    let mut client = Client::to(address, &tls);
    client.send(head_now("GET", "/small", ""));
    assert_eq!(client.answer().status, 200);
    let mut before = peak(&program);
    let mut grew = |what: &str| {
        let after = peak(&program);
        assert!(after.saturating_sub(before) < GROWTH_KIB, "{what}: from {before} KiB to {after} KiB");
        before = after;
    };

    client.send(head_now("GET", "/large", ""));
    let head = client.head();
    assert_eq!(header(&head, "content-length"), Some(LARGE.to_string().as_str()));
    for _ in 0..LARGE / PART {
        client.exactly(PART);
    }
    grew("a download over HTTP/1.1");

    let framing = format!("Content-Type: application/octet-stream\r\nContent-Length: {LARGE}\r\n");
    client.send(head_now("POST", "/up", &framing));
    let part = vec![b'x'; PART];
    for _ in 0..LARGE / PART {
        client.send(&part);
    }
    assert_eq!(client.answer().body, LARGE.to_string().as_bytes());
    grew("an upload over HTTP/1.1");

    over_http2_to(address, &certificate, async |mut sender| {
        let answer = sender.send_request(request_at("GET", "/large", Empty::<Bytes>::new(), now())).await.unwrap();
        let (mut body, mut count) = (answer.into_body(), 0);
        while let Some(frame) = body.frame().await {
            count += frame.unwrap().into_data().unwrap().len();
        }
        assert_eq!(count, LARGE);
    });
    grew("a download over HTTP/2");

    over_http2_to(address, &certificate, async |mut sender| {
        let part = Bytes::from(part);
        let parts = (0..LARGE / PART).map(move |_| Ok::<_, Infallible>(Frame::data(part.clone())));
        let mut upload = request_at("POST", "/up", StreamBody::new(futures_util::stream::iter(parts)), now());
        upload.headers_mut().insert("content-length", LARGE.into());
        let answer = sender.send_request(upload).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), LARGE.to_string());
    });
    grew("an upload over HTTP/2");
}
