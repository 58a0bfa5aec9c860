//! HTTP/2 to the gateway, by a client that keeps the rules and by frames that do not.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConnection, StreamOwned};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::support::{ACCOUNT, Gateway, USER, Upstream, client_config, header, headers, identity_payload, signature};

pub(crate) type Sender = http2::SendRequest<Full<Bytes>>;

/// Runs `ask` with a connection to `gateway`.
pub(crate) fn over_http2<T>(gateway: &Gateway, ask: impl AsyncFnOnce(Sender) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = client_config(&gateway.folder.path().join("cert.pem"), &[b"h2"]);
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = tls.connect("gw.test".try_into().unwrap(), stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        tokio::time::timeout(Duration::from_secs(20), ask(sender)).await.expect("an answer in time")
    })
}

pub(crate) fn request(method: &str, path: &str, body: &str) -> Request<Full<Bytes>> {
    let signed = if body.is_empty() { identity_payload() } else { body.to_owned() };
    let mut request = Request::builder()
        .method(method)
        .uri(format!("https://gw.test{path}"))
        .header("stripe-signature", signature(&signed))
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap();
    if body.is_empty() {
        request.headers_mut().insert("stripe-user-id", USER.parse().unwrap());
        request.headers_mut().insert("stripe-account-id", ACCOUNT.parse().unwrap());
    } else {
        request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    }
    request
}

async fn ask(
    sender: &mut Sender,
    request: Request<Full<Bytes>>,
) -> (StatusCode, HeaderMap, Result<Bytes, hyper::Error>) {
    let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
    (parts.status, parts.headers, body.collect().await.map(http_body_util::Collected::to_bytes))
}

#[test]
fn requests_are_verified_and_forwarded_as_over_http1() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let body = format!("{{\"a\":1,{}", &identity_payload()[1..]);
    over_http2(&gateway, async |mut sender: Sender| {
        let (status, headers, answer) = ask(&mut sender, request("POST", "/a?b=c", &body)).await;
        assert_eq!((status, answer.unwrap()), (StatusCode::OK, Bytes::from("ok")));
        assert_eq!(headers.get_all("access-control-allow-origin").iter().collect::<Vec<_>>(), ["*"]);
        let mut forged = request("GET", "/a", "");
        for name in ["cookie", "countersign-user", "countersign_user", "x-forwarded-for", "authorization"] {
            forged.headers_mut().insert(name, "forged".parse().unwrap());
        }
        forged.headers_mut().append("cookie", "forged=too".parse().unwrap());
        assert_eq!(ask(&mut sender, forged).await.0, StatusCode::OK);
    });
    let requests = upstream.requests();
    let head = String::from_utf8(requests[0].clone()).unwrap();
    assert!(head.starts_with("POST /a?b=c HTTP/1.1\r\n"), "{head}");
    assert!(head.ends_with(&body));
    assert_eq!(headers(&head, "host").collect::<Vec<_>>(), [upstream.address.to_string()]);
    assert_eq!(header(&head, "x-forwarded-host"), Some("gw.test"));
    assert_eq!(header(&head, "countersign-signed"), Some("body"));
    let second = String::from_utf8(requests[1].clone()).unwrap();
    assert!(!second.contains("forged"), "{second}");
    assert_eq!(header(&second, "countersign-user"), Some(USER));
    assert_eq!(gateway.records(2)[0]["network.protocol.version"], "2");
}

#[test]
fn refusals_are_readable() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    over_http2(&gateway, async |mut sender: Sender| {
        let large = format!("{{\"a\":\"{}\",{}", "x".repeat(3 * 1024 * 1024), &identity_payload()[1..]);
        let mut unsigned = request("GET", "/a", "");
        unsigned.headers_mut().remove("stripe-signature");
        let mut two_hosts = request("GET", "/a", "");
        two_hosts.headers_mut().insert("host", "other.test".parse().unwrap());
        for (request, status, code) in [
            (request("POST", "/a", &large), 413, "body_too_large"),
            (unsigned, 401, "signature_missing"),
            (two_hosts, 400, "request_malformed"),
            (request("GET", "/a/../b", ""), 400, "path_ambiguous"),
            (request("TRACE", "/a", ""), 405, "method_not_allowed"),
        ] {
            let (got, headers, body) = ask(&mut sender, request).await;
            let problem: serde_json::Value = serde_json::from_slice(&body.unwrap()).unwrap();
            assert_eq!((got.as_u16(), problem["code"].as_str()), (status, Some(code)));
            assert_eq!(headers["access-control-allow-origin"], "*");
        }
    });
    assert!(upstream.requests().is_empty());
}

/// Holds rule 12.
#[test]
fn an_answer_that_breaks_off_is_reset() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let upstream = Upstream::serving(move |stream, _| {
            let _ = stream.write_all(answer.as_bytes());
            false
        });
        let gateway = Gateway::to(&upstream);
        let body = over_http2(&gateway, async |mut sender: Sender| ask(&mut sender, request("GET", "/a", "")).await.2);
        assert!(body.is_err(), "{answer:?} looked complete: {body:?}");
    }
}

#[test]
fn many_streams_are_served_at_once() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    over_http2(&gateway, async |sender: Sender| {
        let asked: Vec<_> = (0..90)
            .map(|n| {
                let mut sender = sender.clone();
                tokio::spawn(async move { ask(&mut sender, request("GET", &format!("/{n}"), "")).await.0 })
            })
            .collect();
        for one in asked {
            assert_eq!(one.await.unwrap(), StatusCode::OK);
        }
    });
    assert_eq!(upstream.requests().len(), 90);
}

#[test]
fn a_drain_finishes_what_runs() {
    let (began, under_way) = std::sync::mpsc::channel::<()>();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (began, wait) = (std::sync::Mutex::new(began), std::sync::Mutex::new(wait));
    let upstream = Upstream::serving(move |stream, _| {
        began.lock().unwrap().send(()).unwrap();
        let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(10));
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok()
    });
    let gateway = Gateway::to(&upstream);
    let stop = gateway.stop.clone();
    let (status, again) = over_http2(&gateway, async |mut sender: Sender| {
        let mut other = sender.clone();
        let running = tokio::spawn(async move { ask(&mut other, request("GET", "/a", "")).await.0 });
        tokio::task::spawn_blocking(move || under_way.recv_timeout(Duration::from_secs(10)).unwrap()).await.unwrap();
        stop.drain();
        go.send(()).unwrap();
        let status = running.await.unwrap();
        // The connection was told to go away.
        let again = async {
            while sender.ready().await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        (status, tokio::time::timeout(Duration::from_secs(10), again).await.is_ok())
    });
    assert_eq!((status, again), (StatusCode::OK, true));
    gateway.join();
}

/// A stream of which little is read at a time.
struct Slow<T> {
    io: T,
    pause: Pin<Box<tokio::time::Sleep>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Slow<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        ready!(self.pause.as_mut().poll(cx));
        let mut space = [0; 4096];
        let most = out.remaining().min(space.len());
        let mut part = ReadBuf::new(&mut space[..most]);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
        out.put_slice(part.filled());
        self.pause = Box::pin(tokio::time::sleep(Duration::from_millis(1)));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Slow<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[test]
fn a_drain_cuts_no_answer_that_is_still_on_its_way() {
    const FIRST: usize = 64 * 1024;
    const LENGTH: usize = FIRST + (1 << 20);
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::serving(move |stream, _| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &vec![b'x'; FIRST]].concat()).unwrap();
        let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(10));
        stream.write_all(&vec![b'x'; LENGTH - FIRST]).is_ok()
    });
    let gateway = Gateway::to(&upstream);
    let stop = gateway.stop.clone();
    let config = client_config(&gateway.folder.path().join("cert.pem"), &[b"h2"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let read = runtime.block_on(async {
        // Little room for what comes, so that it waits at the gateway's end; and windows that let all of it go there, of
        // which the client tells when half was read.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(8192).unwrap();
        let stream = socket.connect(gateway.address).await.unwrap();
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
        let io = tls.connect("gw.test".try_into().unwrap(), stream).await.unwrap();
        let slow = Slow { io, pause: Box::pin(tokio::time::sleep(Duration::ZERO)) };
        let mut client = http2::Builder::new(TokioExecutor::new());
        let window = u32::try_from(LENGTH + FIRST).unwrap();
        client.initial_stream_window_size(window).initial_connection_window_size(window);
        let (mut sender, connection) = client.handshake(TokioIo::new(slow)).await.unwrap();
        tokio::spawn(connection);
        let mut body = sender.send_request(request("GET", "/a", "")).await.unwrap().into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap().len();
        stop.drain();
        // The farewell has been said and answered when the rest comes.
        tokio::time::sleep(Duration::from_millis(500)).await;
        go.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(20), body.collect())
            .await
            .unwrap()
            .map(|rest| first + rest.to_bytes().len())
    });
    assert_eq!(read.unwrap(), LENGTH);
    drop(runtime);
    gateway.join();
}

/// A connection on which frames of any content are sent.
pub(crate) struct Frames(pub(crate) StreamOwned<ClientConnection, TcpStream>);

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

impl Frames {
    pub(crate) fn connect(gateway: &Gateway) -> Self {
        let config = client_config(&gateway.folder.path().join("cert.pem"), &[b"h2"]);
        let stream = TcpStream::connect(gateway.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        let connection = ClientConnection::new(Arc::new(config), "gw.test".try_into().unwrap()).unwrap();
        let mut frames = Self(StreamOwned::new(connection, stream));
        frames.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        frames.send(SETTINGS, 0, 0, &[]);
        frames
    }

    /// Whether the bytes could be written.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).and_then(|()| self.0.flush()).is_ok()
    }

    pub(crate) fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.write(&frame(kind, flags, stream, payload))
    }

    /// Reads on until a ping was answered, by which the gateway has read all that was sent before.
    fn await_ping(&mut self) {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.0.read_exact(&mut payload).unwrap();
            if head[3] == PING && head[4] == 1 {
                return;
            }
        }
    }

    /// What becomes of the stream 1: the kind of the first frame that ends it, or `None` if the connection is closed.
    fn outcome(&mut self) -> Option<u8> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            self.0.read_exact(&mut payload).ok()?;
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            match head[3] {
                HEADERS | RST_STREAM if stream == 1 => return Some(head[3]),
                // GOAWAY.
                7 => return None,
                _ => {}
            }
        }
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Fields as HPACK literals that are not indexed (RFC 7541, section 6.2.2).
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            let length = text.len();
            if length < 127 {
                block.push(u8::try_from(length).unwrap());
            } else {
                block.push(127);
                let mut rest = length - 127;
                while rest >= 128 {
                    block.push(u8::try_from(rest % 128 + 128).unwrap());
                    rest /= 128;
                }
                block.push(u8::try_from(rest).unwrap());
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// Holds rule 11.
#[test]
fn fields_that_http2_does_not_allow_reach_no_upstream() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let tag = signature(&identity_payload());
    let good = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "gw.test"),
        (":path", "/a"),
        ("stripe-signature", tag.as_str()),
        ("stripe-user-id", USER),
        ("stripe-account-id", ACCOUNT),
    ];
    let with = |more: &[(&'static str, &'static str)]| [&good[..], more].concat();
    let instead = |name: &str, value: &'static str| -> Vec<(&str, &str)> {
        good.iter().map(|(n, v)| (*n, if *n == name { value } else { *v })).collect()
    };
    let without = |name: &str| -> Vec<(&str, &str)> { good.iter().copied().filter(|(n, _)| *n != name).collect() };

    let mut frames = Frames::connect(&gateway);
    assert!(frames.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&good)));
    assert_eq!(frames.outcome(), Some(HEADERS));
    assert_eq!(upstream.requests().len(), 1);

    let cases = [
        with(&[("connection", "keep-alive")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "h2c")]),
        with(&[("keep-alive", "1")]),
        with(&[("proxy-connection", "x")]),
        with(&[("te", "gzip")]),
        with(&[("X-Upper", "x")]),
        with(&[("x y", "x")]),
        with(&[("x", "a\r\nb: c")]),
        with(&[("x", "a\nb")]),
        with(&[("x", "a\0b")]),
        with(&[(":path", "/b")]),
        with(&[(":unknown", "x")]),
        with(&[(":status", "200")]),
        with(&[("host", "other.test")]),
        with(&[("host", "gw.test"), ("host", "gw.test")]),
        with(&[("content-length", "5")]),
        with(&[("content-length", "0"), ("content-length", "0")]),
        with(&[("stripe-signature", "t=1,v1=x")]),
        instead(":path", ""),
        instead(":path", "a"),
        instead(":path", "*"),
        instead(":path", "/a/../b"),
        instead(":path", "/a%2fb"),
        instead(":path", "//a"),
        instead(":path", "/a b"),
        instead(":path", "/a\r\nx: y"),
        instead(":path", "http://gw.test/a"),
        instead(":method", "CONNECT"),
        instead(":method", "G ET"),
        instead(":method", "TRACE"),
        instead(":method", ""),
        instead(":scheme", ""),
        instead(":scheme", "ftp"),
        instead(":path", "/a?\u{e9}"),
        instead(":authority", "user@gw.test"),
        instead(":authority", "gw.test/x"),
        instead(":authority", ""),
        without(":method"),
        without(":path"),
        without(":scheme"),
        without(":authority"),
        without("stripe-signature"),
        [&good[4..], &good[..4]].concat(),
    ];
    for case in &cases {
        let mut frames = Frames::connect(&gateway);
        frames.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(case));
        frames.outcome();
        let requests = upstream.requests();
        assert_eq!(requests.len(), 1, "{case:?} arrived as {:?}", String::from_utf8_lossy(requests.last().unwrap()));
    }
}

/// Holds rule 11.
#[test]
fn a_body_of_another_length_than_declared_reaches_no_upstream() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let body = identity_payload();
    let tag = signature(&body);
    for (declared, sent) in [(body.len() + 1, body.len()), (body.len() - 1, body.len()), (0, body.len())] {
        let declared = declared.to_string();
        let fields = block(&[
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "gw.test"),
            (":path", "/a"),
            ("stripe-signature", &tag),
            ("content-type", "application/json"),
            ("content-length", &declared),
        ]);
        let mut frames = Frames::connect(&gateway);
        frames.send(HEADERS, END_HEADERS, 1, &fields);
        frames.send(DATA, END_STREAM, 1, &body.as_bytes()[..sent]);
        frames.outcome();
        assert!(upstream.requests().is_empty(), "{declared} declared, {sent} sent");
    }
}

/// The name of a flood, and the bytes of its nth part.
type Flood<'f> = (&'static str, &'f dyn Fn(u32) -> Vec<u8>);

/// Holds rule 11.
#[test]
fn an_upload_that_is_reset_without_an_error_is_not_complete() {
    let (ended, end) = std::sync::mpsc::channel::<Vec<u8>>();
    let (began, under_way) = std::sync::mpsc::channel::<()>();
    let (ended, began) = (std::sync::Mutex::new(ended), std::sync::Mutex::new(began));
    let upstream = Upstream::raw(move |stream| {
        // The first request is answered, so that the upload comes on a connection that is there already.
        let mut all = Vec::new();
        Upstream::read_until(stream, &mut all, b"\r\n\r\n");
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        all.clear();
        Upstream::read_until(stream, &mut all, b"\r\n\r\n");
        began.lock().unwrap().send(()).unwrap();
        let _ = stream.read_to_end(&mut all);
        ended.lock().unwrap().send(all).unwrap();
    });
    let gateway = Gateway::to(&upstream);
    let tag = signature(&identity_payload());
    let fields = |kind| {
        block(&[
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "gw.test"),
            (":path", "/a"),
            ("stripe-signature", &tag),
            ("stripe-user-id", USER),
            ("stripe-account-id", ACCOUNT),
            ("content-type", kind),
        ])
    };
    for reason in [0_u32, 8, 0, 0, 0] {
        let mut frames = Frames::connect(&gateway);
        let get = block(&[
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "gw.test"),
            (":path", "/a"),
            ("stripe-signature", &tag),
            ("stripe-user-id", USER),
            ("stripe-account-id", ACCOUNT),
        ]);
        frames.send(HEADERS, END_STREAM | END_HEADERS, 1, &get);
        assert_eq!(frames.outcome(), Some(HEADERS));
        frames.send(HEADERS, END_HEADERS, 3, &fields("application/octet-stream"));
        under_way.recv_timeout(Duration::from_secs(10)).unwrap();
        let rest = [frame(DATA, 0, 3, b"part"), frame(RST_STREAM, 0, 3, &reason.to_be_bytes())];
        assert!(frames.write(&rest.concat()));
        let all = end.recv_timeout(Duration::from_secs(10)).expect("the upstream's connection ends");
        assert!(!all.ends_with(b"0\r\n\r\n"), "reset by {reason}: {:?}", String::from_utf8_lossy(&all));
    }
    // One that is read whole goes no further either.
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    for _ in 0..20 {
        let mut frames = Frames::connect(&gateway);
        let upload = [
            frame(HEADERS, END_HEADERS, 1, &fields("application/json")),
            frame(DATA, 0, 1, identity_payload().as_bytes()),
        ];
        assert!(frames.write(&[upload.concat(), frame(RST_STREAM, 0, 1, &0_u32.to_be_bytes())].concat()));
        frames.send(PING, 0, 0, &[0; 8]);
        frames.await_ping();
    }
    assert!(upstream.requests().is_empty());
}

/// Holds rules 9 and 10.
#[test]
fn a_client_without_window_frees_its_place_in_time() {
    let upstream = Upstream::answering(|request| {
        let length = if request.starts_with(b"GET /large") { 1_000_000 } else { 2 };
        [format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes(), vec![b'x'; length]].concat()
    });
    let gateway = Gateway::with(&format!(
        "[limits]\nwrite_timeout = \"500ms\"\n[upstreams.up]\nservers = [\"{}\"]\nmax_in_flight = 1\nmax_queued = 0\n\
         [[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"up\"\n",
        upstream.origin()
    ));
    let tag = signature(&identity_payload());
    let fields = block(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "gw.test"),
        (":path", "/large"),
        ("stripe-signature", &tag),
        ("stripe-user-id", USER),
        ("stripe-account-id", ACCOUNT),
    ]);
    let mut frames = Frames::connect(&gateway);
    // SETTINGS_INITIAL_WINDOW_SIZE is 0: no byte of the answer may be sent.
    assert!(frames.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
    assert!(frames.send(HEADERS, END_STREAM | END_HEADERS, 1, &fields));
    assert_eq!(frames.outcome(), Some(HEADERS));
    assert_eq!(gateway.ask(crate::support::signed_head("GET", "/b", "")).code(), "overloaded");
    assert_eq!(frames.outcome(), Some(RST_STREAM), "the stream is reset");
    assert_eq!(gateway.ask(crate::support::signed_head("GET", "/b", "")).status, 200);
    assert_eq!(gateway.records(3).iter().filter(|record| record["countersign.complete"] == false).count(), 1);
}

/// Holds rules 9 and 10.
#[test]
fn a_client_with_room_for_one_byte_is_given_up_in_time() {
    let upstream = Upstream::answering(|request| {
        if request.starts_with(b"GET /chunked") {
            let chunk = [b"7d0\r\n".to_vec(), vec![b'x'; 2000], b"\r\n0\r\n\r\n".to_vec()].concat();
            return [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), chunk].concat();
        }
        [b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n".to_vec(), vec![b'x'; 2000]].concat()
    });
    let gateway = Gateway::with(&format!(
        "[limits]\nwrite_timeout = \"500ms\"\n[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n",
        upstream.origin()
    ));
    let tag = signature(&identity_payload());
    let asked = |path| [(":method", "GET"), (":scheme", "https"), (":authority", "gw.test"), (":path", path)];
    let proof = [("stripe-signature", &*tag), ("stripe-user-id", USER), ("stripe-account-id", ACCOUNT)];
    // Answers of the service's, and a refusal, which is an answer of our own.
    let verified = |path| [&asked(path)[..], &proof[..]].concat();
    for fields in [verified("/length"), verified("/chunked"), asked("/a").to_vec()] {
        let mut frames = Frames::connect(&gateway);
        // SETTINGS_INITIAL_WINDOW_SIZE is 1.
        assert!(frames.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1]));
        assert!(frames.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields)));
        assert_eq!(frames.outcome(), Some(HEADERS));
        assert_eq!(frames.outcome(), Some(RST_STREAM), "the stream is reset: {fields:?}");
    }
}

/// Holds rule 10.
#[test]
fn floods_are_cut_and_hold_up_nobody() {
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    let fields = block(&[(":method", "GET"), (":scheme", "https"), (":authority", "gw.test"), (":path", "/a")]);
    let reset_at_once = |n: u32| {
        let stream = 2 * n + 1;
        [frame(HEADERS, END_STREAM | END_HEADERS, stream, &fields), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())]
            .concat()
    };
    let floods: [Flood<'_>; 4] = [
        ("rapid reset", &reset_at_once),
        ("continuation", &|n| {
            frame(if n == 0 { HEADERS } else { CONTINUATION }, 0, 1, &block(&[("x", &"y".repeat(100))]))
        }),
        ("settings", &|_| frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
        ("ping", &|_| frame(PING, 0, 0, &[0; 8])),
    ];
    for (name, flood) in floods {
        let mut frames = Frames::connect(&gateway);
        let mut sent = 0;
        for round in 0..200 {
            let bytes: Vec<u8> = (0..100).flat_map(|n| flood(round * 100 + n)).collect();
            if !frames.write(&bytes) {
                break;
            }
            sent += 100;
        }
        println!("{name}: {sent} frames were taken");
        let began = Instant::now();
        assert_eq!(gateway.ask(crate::support::signed_head("GET", "/b", "")).status, 200, "after {name}");
        assert!(began.elapsed() < Duration::from_secs(5), "{name}: {:?}", began.elapsed());
    }
}
