//! A real gateway before a service that reads strictly what reaches it, for the targets that fuzz whole connections.

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use countersign::{
    clock::Clock,
    config::{self, Environment, Scrutiny},
    record::Log,
    secret::SigningSecret,
    server::{self, Server, Stop},
    signature::SigningKey,
    tls,
};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

const SECRET: &str = "absec_fuzz";
const USER: &str = "usr_Fuzz";
const ACCOUNT: &str = "acct_Fuzz";
const NOW: i64 = 1_790_000_000;
/// What a signature of the identity covers, and with it a body of just that.
const IDENTITY: &str = r#"{"user_id":"usr_Fuzz","account_id":"acct_Fuzz"}"#;
/// The one other body that is signed whole.
const BODY: &str = r#"{"a":1,"user_id":"usr_Fuzz","account_id":"acct_Fuzz"}"#;
/// How long nothing comes from the gateway before an input counts as answered.
const QUIET: Duration = Duration::from_millis(4);

/// The last inputs: a service finds its fault after the input that made it, sometimes some inputs later.
static RECENT: Mutex<VecDeque<Vec<u8>>> = Mutex::new(VecDeque::new());
const KEPT: usize = 8;

pub struct Lab {
    address: SocketAddr,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    /// The MACs with which a request may pass: what holds them may reach the service, what does not must not.
    tags: [String; 2],
    seen: Arc<AtomicU64>,
    /// How many MACs were sent so far, and how many inputs came since the last that held one.
    permits: AtomicU64,
    since: AtomicU64,
    _server: Server,
    _folder: tempfile::TempDir,
}

pub static LAB: LazyLock<Lab> = LazyLock::new(Lab::new);

impl Lab {
    fn new() -> Self {
        // A Rust program starts with SIGPIPE ignored, and the fuzzer is a C++ program: a write to a client that left
        // would end it. What is caught once stays so, without the runtime too.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let entered = runtime.enter();
        drop(tokio::signal::unix::signal(tokio::signal::unix::SignalKind::pipe()).unwrap());
        drop(entered);
        let (upstream, seen) = service();
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["gw.test".to_owned()]).unwrap();
        std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        std::fs::write(folder.path().join("secret"), SECRET).unwrap();
        let text = format!(
            "version = 1\n[listener]\naddress = \"127.0.0.1:0\"\ncertificate = \"cert.pem\"\nprivate_key = \"key.pem\"\n\
             [limits]\ndiscard_timeout = \"100ms\"\nbody_timeout = \"100ms\"\nstream_window = \"100ms\"\nhead_timeout = \"500ms\"\n\
             [apps.fuzz]\nsecrets = [{{ file = \"secret\" }}]\naccounts = [\"{ACCOUNT}\"]\n\
             [[routes]]\npath = \"/\"\napp = \"fuzz\"\nupstream = \"http://{upstream}\"\n\
             [[routes]]\npath = \"/signed/\"\napp = \"fuzz\"\nupstream = \"http://{upstream}\"\nsigned = \"body\"\n"
        );
        let file = folder.path().join("countersign.toml");
        std::fs::write(&file, text).unwrap();
        let now = std::time::SystemTime::now();
        let config = config::load(&file, &Environment::from_iter([]), now, Scrutiny::Files).unwrap();
        let settings = server::Settings { workers: Some(1), ..config.into() };
        let (log, _) = Log::start(Box::new(std::io::sink())).unwrap();
        let listener = server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let clock = Clock::Set(Arc::new(AtomicI64::new(NOW)));
        let server = Server::start(listener, settings, &log, &clock, &Stop::default()).unwrap();
        let client = |protocol: &[u8]| {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(tls::certificates(&folder.path().join("cert.pem")).unwrap().remove(0)).unwrap();
            let mut config = ClientConfig::builder_with_provider(tls::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        };
        let key = SigningKey::new(&SigningSecret::parse(SECRET.to_owned().into()).unwrap());
        let tag = |payload: &str| key.header(NOW, payload.as_bytes()).split_once("v1=").unwrap().1.to_owned();
        let tags = [tag(IDENTITY), tag(BODY)];
        if std::env::var_os("FUZZ_SHOW_TAGS").is_some() {
            eprintln!("{tags:?}");
        }
        Self {
            address: server.address(),
            http1: client(tls::HTTP_1_1),
            http2: client(tls::H2),
            tags,
            seen,
            permits: AtomicU64::new(0),
            since: AtomicU64::new(0),
            _server: server,
            _folder: folder,
        }
    }

    /// Sends `bytes` on a connection of their own with the protocol of that ALPN name, and takes what comes back until it
    /// is quiet. Nothing may have reached the service that no signature permitted; how it is written the service checks
    /// itself.
    pub fn run(&self, protocol: &[u8], bytes: &[u8]) {
        let mut recent = RECENT.lock().unwrap();
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back(bytes.to_owned());
        drop(recent);
        let found = self.tags.iter().map(|tag| count(bytes, tag.as_bytes())).sum::<u64>();
        self.permits.fetch_add(found, Ordering::SeqCst);
        let before = self.seen.load(Ordering::SeqCst);
        self.exchange(protocol, bytes);
        let after = self.seen.load(Ordering::SeqCst);
        if found > 0 {
            self.since.store(0, Ordering::SeqCst);
        } else if self.since.fetch_add(1, Ordering::SeqCst) > 20 {
            assert_eq!(before, after, "a request without a signature reached the service");
        }
        // Over HTTP/2 one text can be referred to by many requests.
        if protocol == tls::HTTP_1_1 {
            let permits = self.permits.load(Ordering::SeqCst);
            assert!(after <= permits, "{after} requests reached the service with {permits} signatures");
        }
    }

    fn exchange(&self, protocol: &[u8], bytes: &[u8]) {
        let tls = if protocol == tls::HTTP_1_1 { &self.http1 } else { &self.http2 };
        let socket = TcpStream::connect(self.address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let connection = ClientConnection::new(Arc::clone(tls), "gw.test".try_into().unwrap()).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        stream.sock.set_read_timeout(Some(QUIET)).unwrap();
        stream.sock.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        if stream.write_all(bytes).and_then(|()| stream.flush()).is_err() {
            return;
        }
        let mut space = [0; 4096];
        while let Ok(1..) = stream.read(&mut space) {}
    }
}

fn count(bytes: &[u8], what: &[u8]) -> u64 {
    bytes.windows(what.len()).filter(|part| *part == what).count() as u64
}

/// A service that ends the process at the first byte that should not have reached it, and counts the requests.
fn service() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counter = Arc::clone(&counter);
            std::thread::spawn(move || serve(stream, address, &counter));
        }
    });
    (address, seen)
}

fn serve(mut stream: TcpStream, address: SocketAddr, counter: &AtomicU64) {
    let mut rest = Vec::new();
    while let Some(end) = until(&mut stream, &mut rest, b"\r\n\r\n") {
        let head: Vec<u8> = rest.drain(..end).collect();
        // A head that is whole is a request that was let through, however its body ends.
        counter.fetch_add(1, Ordering::SeqCst);
        let framing = checked(&head, &address.to_string()).unwrap_or_else(|what| wrong(what, &head));
        let Some(body) = body(&mut stream, &mut rest, framing.length) else { return };
        if framing.is_body_signed && ![IDENTITY, BODY].map(str::as_bytes).map(parsed).contains(&parsed(&body)) {
            wrong("a body that nobody signed", &body);
        }
        if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
            return;
        }
    }
}

fn parsed(json: &[u8]) -> Option<serde_json::Value> {
    serde_json::from_slice(json).ok()
}

/// Panics in a thread are lost; the fuzzer takes this for a crash. The input it keeps for it is the one after, so the last
/// ones are printed.
fn wrong(what: &str, bytes: &[u8]) -> ! {
    eprintln!("FOUND {what}: {}", bytes.escape_ascii());
    for input in RECENT.lock().unwrap().iter() {
        eprintln!("INPUT {}", input.escape_ascii());
    }
    std::process::abort();
}

fn more(stream: &mut TcpStream, rest: &mut Vec<u8>) -> bool {
    let mut space = [0; 4096];
    match stream.read(&mut space) {
        Ok(length @ 1..) => {
            rest.extend_from_slice(&space[..length]);
            true
        }
        Ok(_) | Err(_) => false,
    }
}

fn until(stream: &mut TcpStream, rest: &mut Vec<u8>, what: &[u8]) -> Option<usize> {
    loop {
        if let Some(at) = rest.windows(what.len()).position(|part| part == what) {
            return Some(at + what.len());
        }
        if !more(stream, rest) {
            return None;
        }
    }
}

enum Length {
    Fixed(usize),
    Chunked,
}

struct Framing {
    length: Length,
    is_body_signed: bool,
}

/// The fields that stand in every request exactly once.
const ONCE: [&str; 10] = [
    "host",
    "countersign-user",
    "countersign-account",
    "countersign-app",
    "countersign-signed",
    "x-request-id",
    "traceparent",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
];
/// Those that never do.
const NEVER: [&str; 17] = [
    "stripe-signature",
    "stripe-user-id",
    "stripe-account-id",
    "x-stripe-user-id",
    "x-stripe-account-id",
    "cookie",
    "authorization",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "forwarded",
    "via",
    "proxy",
    "x-real-ip",
];

fn checked(head: &[u8], host: &str) -> Result<Framing, &'static str> {
    // Values may hold octets beyond ASCII (RFC 9110, section 5.5); nothing else may.
    let text: String = head.iter().copied().map(char::from).collect();
    let mut lines = text.strip_suffix("\r\n\r\n").ok_or("no end")?.split("\r\n");
    let parts: Vec<_> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts.as_slice() else { return Err("a first line") };
    if !["GET", "HEAD", "POST"].contains(method) {
        return Err("a method that no route takes");
    }
    let path = target.split('?').next().unwrap_or_default();
    let dots = |segment: &str| segment.split(';').next().is_some_and(|name| name == "." || name == "..");
    if !path.starts_with('/') || path.contains("//") || path.contains('\\') || path.split('/').any(dots) {
        return Err("a path with more than one reading");
    }
    if !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("a target with a character that none has");
    }
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or("a line that is no field")?;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || !name.bytes().all(plain) {
            return Err("a field's name");
        }
        if value.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
            return Err("a control character");
        }
        fields.push((name, value));
    }
    let all =
        |name: &str| fields.iter().filter(|(found, _)| *found == name).map(|(_, value)| *value).collect::<Vec<_>>();
    if ONCE.iter().any(|name| all(name).len() != 1) {
        return Err("a field of the gateway's that is not there once");
    }
    if NEVER.iter().any(|name| !all(name).is_empty()) {
        return Err("a field that must not go on");
    }
    let known = |name: &str| ONCE.contains(&name) || name == "countersign-roles";
    if fields
        .iter()
        .any(|(name, _)| (name.starts_with("countersign") || name.starts_with("x-forwarded")) && !known(name))
    {
        return Err("a field that looks like the gateway's");
    }
    let only = |name: &str, value: &str| all(name) == [value];
    if !(only("host", host) && only("countersign-user", USER) && only("countersign-account", ACCOUNT)) {
        return Err("another host, user or account");
    }
    if !(only("countersign-app", "fuzz") && only("x-forwarded-proto", "https") && only("x-forwarded-for", "127.0.0.1"))
    {
        return Err("another app, scheme or address");
    }
    let is_body_signed = only("countersign-signed", "body");
    if path.starts_with("/signed/") && *method == "POST" && !is_body_signed && !all("content-type").is_empty() {
        let empty = all("content-length").first().is_none_or(|length| *length == "0");
        if !empty || !all("transfer-encoding").is_empty() {
            return Err("a body that the route wants signed");
        }
    }
    let length = match (all("content-length").as_slice(), all("transfer-encoding").as_slice()) {
        ([], []) => Length::Fixed(0),
        ([length], []) if length.bytes().all(|b| b.is_ascii_digit()) => {
            Length::Fixed(length.parse().map_err(|_| "a length")?)
        }
        ([], ["chunked"]) => Length::Chunked,
        _ => return Err("a framing that is not one"),
    };
    Ok(Framing { length, is_body_signed })
}

/// The body; `None` if it breaks off, as it does when its client's does.
fn body(stream: &mut TcpStream, rest: &mut Vec<u8>, length: Length) -> Option<Vec<u8>> {
    let mut take = |rest: &mut Vec<u8>, length: usize| {
        while rest.len() < length {
            if !more(stream, rest) {
                return None;
            }
        }
        Some(rest.drain(..length).collect::<Vec<u8>>())
    };
    let Length::Fixed(length) = length else {
        let mut whole = Vec::new();
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.extend(take(rest, 1)?);
            }
            let digits = std::str::from_utf8(&line).unwrap_or_default().trim_end();
            let size = usize::from_str_radix(digits, 16).unwrap_or_else(|_| wrong("a chunk's size", &line));
            whole.extend(take(rest, size)?);
            let end = take(rest, 2)?;
            if end != b"\r\n" {
                wrong("a chunk's end", &end);
            }
            if size == 0 {
                return Some(whole);
            }
        }
    };
    take(rest, length)
}
