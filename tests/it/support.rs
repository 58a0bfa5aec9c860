//! The one harness: a gateway in this process, an upstream that keeps exact bytes, and clients that send them.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use countersign::{
    clock::Clock,
    config::{self, Config, Environment, Scrutiny},
    limits::Limit,
    record::{Log, Writer},
    secret::{Kind, SigningSecret},
    server::{self, Server, Stop},
    signature::SigningKey,
};
use rustls::{ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

pub(crate) mod postgres;

pub(crate) const SECRET: &str = "absec_test_0123456789abcdef0123456789abcdef";
pub(crate) const WEBHOOK_SECRET: &str = "whsec_test_0123456789abcdef";
pub(crate) const USER: &str = "usr_Test0001";
pub(crate) const ACCOUNT: &str = "acct_Test0001";
/// The time at which the gateway under test believes to be.
pub(crate) const NOW: i64 = 1_790_000_000;

/// The head that most tests send, signed for [`USER`] and [`ACCOUNT`] by headers.
pub(crate) fn signed_head(method: &str, target: &str, more: &str) -> String {
    let identity = format!("Stripe-User-Id: {USER}\r\nStripe-Account-Id: {ACCOUNT}\r\n");
    let signature = signature(&identity_payload());
    format!("{method} {target} HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: {signature}\r\n{identity}{more}\r\n")
}

/// A request that carries `body`, signed whole.
pub(crate) fn signed_body(method: &str, target: &str, body: &str) -> String {
    let signature = signature(body);
    format!(
        "{method} {target} HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: {signature}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub(crate) fn identity_payload() -> String {
    format!(r#"{{"user_id":"{USER}","account_id":"{ACCOUNT}"}}"#)
}

pub(crate) fn signature(payload: &str) -> String {
    signature_at(payload, NOW)
}

pub(crate) fn signature_at(payload: &str, at: i64) -> String {
    sign(SECRET, payload, at)
}

pub(crate) fn sign(secret: &str, payload: &str, at: i64) -> String {
    let secret = SigningSecret::parse(secret.to_owned().into()).unwrap();
    SigningKey::new(&secret).header(at, payload.as_bytes())
}

/// What Stripe posts `body` to a webhook with, at `at`.
pub(crate) fn posted(path: &str, body: &str, at: i64) -> String {
    let secret = SigningSecret::parse_as(Kind::Webhook, WEBHOOK_SECRET.to_owned().into()).unwrap();
    let signature = SigningKey::new(&secret).header(at, body.as_bytes());
    format!(
        "POST {path} HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: {signature}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A gateway in this process.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    pub(crate) clock: Arc<AtomicI64>,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) stop: Stop,
    records: Arc<Mutex<Vec<u8>>>,
    tls: Arc<rustls::ClientConfig>,
    running: Option<(Server, Writer)>,
}

impl Gateway {
    /// A gateway with one route for everything, to `upstream`.
    pub(crate) fn to(upstream: &Upstream) -> Self {
        Self::with(&format!("[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n", upstream.origin()))
    }

    /// A gateway with these routes and further tables; the app `test` is there.
    pub(crate) fn with(tables: &str) -> Self {
        Self::of("", &Self::tables(tables))
    }

    /// `tables` behind that of the app `test`.
    pub(crate) fn tables(tables: &str) -> String {
        format!("[apps.test]\nsecrets = [{{ file = \"secret\" }}]\naccounts = [\"{ACCOUNT}\"]\n{tables}")
    }

    /// A gateway whose app has `keys` of its own, with further files, and `tables` for all else.
    pub(crate) fn of_app(keys: &str, files: &[(&str, &str)], tables: &str) -> Self {
        let tables = format!("[apps.test]\naccounts = [\"{ACCOUNT}\"]\n{keys}\n{tables}");
        Self::with_files("", &tables, files)
    }

    /// A gateway with `listener` among the listener's keys and `tables` for all else.
    pub(crate) fn of(listener: &str, tables: &str) -> Self {
        Self::with_files(listener, tables, &[])
    }

    /// The same with further files beside the configuration.
    pub(crate) fn with_files(listener: &str, tables: &str, files: &[(&str, &str)]) -> Self {
        let (settings, folder) = Self::settings(listener, tables, files);
        Self::start(settings, folder)
    }

    /// What a gateway of [`Gateway::with_files`] is started with.
    pub(crate) fn settings(
        listener: &str,
        tables: &str,
        files: &[(&str, &str)],
    ) -> (server::Settings, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        write_files(folder.path(), SECRET);
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let own = "certificate = \"cert.pem\"\nprivate_key = \"key.pem\"\n";
        let config = load(folder.path(), &format!("{own}{listener}"), tables);
        (server::Settings { workers: Some(1), ..config.into() }, folder)
    }

    pub(crate) fn start(settings: server::Settings, folder: tempfile::TempDir) -> Self {
        let clock = Arc::new(AtomicI64::new(NOW));
        let records = Arc::new(Mutex::new(Vec::new()));
        let (log, writer) = Log::start(Box::new(Records(Arc::clone(&records)))).unwrap();
        let listener = server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let stop = Stop::default();
        let running = Server::start(listener, settings, &log, &Clock::Set(Arc::clone(&clock)), &stop).unwrap();
        let tls = Arc::new(client_config(&folder.path().join("cert.pem"), &[b"http/1.1"]));
        Self { address: running.address(), clock, folder, stop, records, tls, running: Some((running, writer)) }
    }

    /// A TLS connection for HTTP/1.1.
    pub(crate) fn connect(&self) -> Client {
        Client::to(self.address, &self.tls)
    }

    /// A connection from an address of the loopback network, before TLS.
    pub(crate) fn stream_from(&self, address: [u8; 4]) -> TcpStream {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
        socket.connect(&self.address.into()).unwrap();
        TcpStream::from(socket)
    }

    /// A TLS connection for HTTP/1.1 on `stream`.
    pub(crate) fn connect_on(&self, stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        let connection = ClientConnection::new(Arc::clone(&self.tls), "gw.test".try_into().unwrap()).unwrap();
        Client { stream: StreamOwned::new(connection, stream), rest: Vec::new() }
    }

    /// The same, with `bytes` in front of it and in one packet with its beginning.
    pub(crate) fn connect_behind(&self, bytes: &[u8], stream: TcpStream) -> Client {
        let mut client = self.connect_on(stream);
        let mut first = bytes.to_vec();
        client.stream.conn.write_tls(&mut first).unwrap();
        client.stream.sock.write_all(&first).unwrap();
        client
    }

    /// Sends `bytes` on a connection of their own and reads one answer.
    pub(crate) fn ask(&self, bytes: impl AsRef<[u8]>) -> Answer {
        let mut client = self.connect();
        client.send(bytes);
        client.answer()
    }

    /// The access records, once there are `count` of them.
    pub(crate) fn records(&self, count: usize) -> Vec<Value> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let lines: Vec<Value> = {
                let bytes = self.records.lock().unwrap();
                let text = std::str::from_utf8(&bytes).unwrap();
                text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
            };
            if lines.len() >= count {
                return lines;
            }
            assert!(Instant::now() < deadline, "{} records instead of {count}", lines.len());
            std::thread::yield_now();
        }
    }

    pub(crate) fn raw_records(&self) -> String {
        String::from_utf8(self.records.lock().unwrap().clone()).unwrap()
    }

    /// How often `limit` was hit, once it was `least` times.
    pub(crate) fn hits(&self, limit: Limit, least: u64) -> u64 {
        let (server, _) = self.running.as_ref().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let hits = server.house().hits().of(limit);
            if hits >= least {
                return hits;
            }
            assert!(Instant::now() < deadline, "{} was hit {hits} times, not {least}", limit.name());
            std::thread::yield_now();
        }
    }

    pub(crate) fn set_time(&self, now: i64) {
        self.clock.store(now, Ordering::Relaxed);
    }

    /// Waits until it has stopped after a drain.
    pub(crate) fn join(mut self) {
        if let Some((server, writer)) = self.running.take() {
            server.join();
            writer.finish(Duration::from_secs(5));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cut();
        if let Some((server, writer)) = self.running.take() {
            server.join();
            writer.finish(Duration::from_secs(5));
        }
    }
}

pub(crate) struct Records(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Write for Records {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A configuration in `folder` with `listener` among the listener's keys and `tables` for all else.
pub(crate) fn load(folder: &Path, listener: &str, tables: &str) -> Config {
    let path = folder.join("countersign.toml");
    let text = format!("version = 1\n[listener]\naddress = \"127.0.0.1:0\"\n{listener}\n{tables}");
    std::fs::write(&path, text).unwrap();
    config::load(&path, &Environment::from_iter([]), std::time::SystemTime::now(), Scrutiny::Files)
        .unwrap_or_else(|errors| panic!("{errors}"))
}

/// A certificate for `gw.test` and a secret, as files.
pub(crate) fn write_files(folder: &Path, secret: &str) {
    let made = rcgen::generate_simple_self_signed(["gw.test".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("secret"), secret).unwrap();
    std::fs::write(folder.join("whsec"), WEBHOOK_SECRET).unwrap();
}

pub(crate) fn client_config(certificate: &Path, protocols: &[&[u8]]) -> rustls::ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in countersign::tls::certificates(certificate).unwrap() {
        roots.add(certificate).unwrap();
    }
    let mut config = rustls::ClientConfig::builder_with_provider(countersign::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config
}

/// A client that sends exactly what it is told.
pub(crate) struct Client {
    pub(crate) stream: StreamOwned<ClientConnection, TcpStream>,
    rest: Vec<u8>,
}

/// One answer as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// Whether the body came to its announced end.
    pub(crate) complete: bool,
}

impl Client {
    /// A connection to the gateway at `address`.
    pub(crate) fn to(address: SocketAddr, tls: &Arc<rustls::ClientConfig>) -> Self {
        Self::try_to(address, tls).unwrap()
    }

    /// The same, if there is one.
    pub(crate) fn try_to(address: SocketAddr, tls: &Arc<rustls::ClientConfig>) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_nodelay(true)?;
        let connection = ClientConnection::new(Arc::clone(tls), "gw.test".try_into().unwrap()).unwrap();
        Ok(Self { stream: StreamOwned::new(connection, stream), rest: Vec::new() })
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The gateway may have answered and closed already.
        let _ = self.stream.write_all(bytes.as_ref()).and_then(|()| self.stream.flush());
    }

    fn fill(&mut self) -> bool {
        let mut space = [0; 16 * 1024];
        match self.stream.read(&mut space) {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.rest.extend_from_slice(&space[..count]);
                true
            }
        }
    }

    /// Reads an interim answer and tells its status.
    pub(crate) fn interim(&mut self) -> u16 {
        let Answer { status, .. } = self.answer_to("HEAD");
        status
    }

    /// Reads on until `what` has come.
    pub(crate) fn read_until(&mut self, what: &[u8]) {
        while find(&self.rest, what).is_none() {
            assert!(
                self.fill(),
                "{:?} did not come, but {:?}",
                String::from_utf8_lossy(what),
                String::from_utf8_lossy(&self.rest)
            );
        }
    }

    /// Reads the head of an answer, and nothing behind it.
    pub(crate) fn head(&mut self) -> String {
        self.read_until(b"\r\n\r\n");
        let end = find(&self.rest, b"\r\n\r\n").unwrap() + 4;
        String::from_utf8(self.rest.drain(..end).collect()).unwrap()
    }

    /// Reads so many bytes.
    pub(crate) fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.rest.len() < length {
            assert!(self.fill(), "only {:?} came", self.rest);
        }
        self.rest.drain(..length).collect()
    }

    /// What has come and was not taken yet.
    pub(crate) fn seen(&self) -> Vec<u8> {
        self.rest.clone()
    }

    /// Reads one answer to its end; nothing if the connection ends before the answer's head has come.
    pub(crate) fn try_answer(&mut self) -> Option<Answer> {
        while find(&self.rest, b"\r\n\r\n").is_none() {
            if !self.fill() {
                return None;
            }
        }
        Some(self.answer())
    }

    /// Reads one answer to its end.
    pub(crate) fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    pub(crate) fn answer_to(&mut self, method: &str) -> Answer {
        let end = loop {
            if let Some(at) = find(&self.rest, b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.fill(), "no answer, but {:?}", String::from_utf8_lossy(&self.rest));
        };
        let head = String::from_utf8(self.rest.drain(..end).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let (body, complete) = self.body(&head, status, method);
        Answer { status, head, body, complete }
    }

    fn body(&mut self, head: &str, status: u16, method: &str) -> (Vec<u8>, bool) {
        if method == "HEAD" || status == 204 || status == 304 {
            return (Vec::new(), true);
        }
        if let Some(length) = header(head, "content-length") {
            let length: usize = length.parse().unwrap();
            while self.rest.len() < length && self.fill() {}
            let complete = self.rest.len() >= length;
            return (self.rest.drain(..length.min(self.rest.len())).collect(), complete);
        }
        if header(head, "transfer-encoding").is_some() {
            return self.chunks();
        }
        while self.fill() {}
        (std::mem::take(&mut self.rest), true)
    }

    fn chunks(&mut self) -> (Vec<u8>, bool) {
        let mut body = Vec::new();
        loop {
            let Some(line) = find(&self.rest, b"\r\n") else {
                if self.fill() {
                    continue;
                }
                return (body, false);
            };
            let size = usize::from_str_radix(std::str::from_utf8(&self.rest[..line]).unwrap(), 16).unwrap();
            while self.rest.len() < line + 2 + size + 2 {
                if !self.fill() {
                    return (body, false);
                }
            }
            body.extend_from_slice(&self.rest[line + 2..line + 2 + size]);
            self.rest.drain(..line + 2 + size + 2);
            if size == 0 {
                return (body, true);
            }
        }
    }

    /// Whether the gateway has closed, reading whatever still comes.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.stream.sock.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        let mut space = [0; 1024];
        loop {
            match self.stream.read(&mut space) {
                Ok(0) => return true,
                Ok(count) => self.rest.extend_from_slice(&space[..count]),
                Err(error) => return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
            }
        }
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    pub(crate) fn count(&self, name: &str) -> usize {
        headers(&self.head, name).count()
    }

    /// The refusal's code; empty for what is no refusal.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

pub(crate) fn headers<'h, 'n>(head: &'h str, name: &'n str) -> impl Iterator<Item = &'h str> + use<'h, 'n> {
    head.lines().skip(1).filter_map(move |line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

pub(crate) fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    headers(head, name).next()
}

pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|part| part == what)
}

/// An upstream that keeps the exact bytes of every request and answers as it is told.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Upstream {
    /// Answers every request with 200 and `ok`.
    pub(crate) fn ok() -> Self {
        Self::answering(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())
    }

    /// Answers a request's bytes with what `answer` makes of them, and closes after an answer that ends without a
    /// length.
    pub(crate) fn answering(answer: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::serving(move |stream, request| stream.write_all(&answer(request)).is_ok())
    }

    /// Has `serve` answer on the connection itself; it says whether the connection goes on.
    pub(crate) fn serving(serve: impl Fn(&mut TcpStream, &[u8]) -> bool + Send + Sync + 'static) -> Self {
        Self::accepting(move |mut stream, kept| serve_requests(&mut stream, kept, &serve))
    }

    /// Hands over each connection; no request is kept.
    pub(crate) fn raw(serve: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Self {
        Self::accepting(move |mut stream, _| serve(&mut stream))
    }

    /// Answers every request with 200 and `ok`, behind TLS.
    pub(crate) fn tls(certificate: &Path, key: &Path) -> Self {
        let chain = countersign::tls::certificates(certificate).unwrap();
        let key = countersign::tls::private_key(key).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(countersign::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Self::behind(config)
    }

    /// The same behind this TLS.
    pub(crate) fn behind(config: rustls::ServerConfig) -> Self {
        let config = Arc::new(config);
        Self::accepting(move |stream, kept| {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            serve_requests(&mut StreamOwned::new(connection, stream), kept, &|stream, _| {
                stream.write_all(answer).is_ok()
            });
        })
    }

    fn accepting(serve: impl Fn(TcpStream, &Mutex<Vec<Vec<u8>>>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (kept, serve) = (Arc::clone(&requests), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (kept, serve) = (Arc::clone(&kept), Arc::clone(&serve));
                std::thread::spawn(move || serve(stream, &kept));
            }
        });
        Self { address, requests }
    }

    /// Reads on until `what` has come; whether it has.
    pub(crate) fn read_until(stream: &mut TcpStream, got: &mut Vec<u8>, what: &[u8]) -> bool {
        let mut space = [0; 4096];
        while find(got, what).is_none() {
            match stream.read(&mut space) {
                Ok(0) | Err(_) => return false,
                Ok(count) => got.extend_from_slice(&space[..count]),
            }
        }
        true
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests that came so far.
    pub(crate) fn requests(&self) -> Vec<Vec<u8>> {
        self.requests.lock().unwrap().clone()
    }

    /// The one request that came, as head and body.
    pub(crate) fn only(&self) -> (String, Vec<u8>) {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "requests at the upstream");
        let end = find(&requests[0], b"\r\n\r\n").unwrap() + 4;
        (String::from_utf8(requests[0][..end].to_vec()).unwrap(), requests[0][end..].to_vec())
    }
}

fn serve_requests<S: Read + Write>(
    stream: &mut S,
    kept: &Mutex<Vec<Vec<u8>>>,
    serve: &(impl Fn(&mut S, &[u8]) -> bool + ?Sized),
) {
    let mut rest = Vec::new();
    while let Some(request) = read_request(stream, &mut rest) {
        kept.lock().unwrap().push(request.clone());
        if !serve(stream, &request) {
            return;
        }
    }
}

/// Reads a request by its framing; what is left of it when the connection ends early.
fn read_request(stream: &mut impl Read, rest: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut space = [0; 16 * 1024];
    let mut more = |rest: &mut Vec<u8>| match stream.read(&mut space) {
        Ok(0) | Err(_) => false,
        Ok(count) => {
            rest.extend_from_slice(&space[..count]);
            true
        }
    };
    let head = loop {
        if let Some(at) = find(rest, b"\r\n\r\n") {
            break at + 4;
        }
        if !more(rest) {
            return None;
        }
    };
    let text = String::from_utf8_lossy(&rest[..head]).into_owned();
    let end = if header(&text, "transfer-encoding").is_some() {
        loop {
            if let Some(at) = find(&rest[head..], b"0\r\n\r\n") {
                break head + at + 5;
            }
            if !more(rest) {
                break rest.len();
            }
        }
    } else {
        let length: usize = header(&text, "content-length").map_or(0, |length| length.parse().unwrap());
        while rest.len() < head + length && more(rest) {}
        (head + length).min(rest.len())
    };
    Some(rest.drain(..end).collect())
}
