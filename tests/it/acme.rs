//! Certificates by ACME, against the test server of Let's Encrypt.
//!
//! Without `pebble` most of this is skipped, unless `COUNTERSIGN_REQUIRE_PEBBLE=1` makes that a failure.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::{
    acme::{Acme, Authorities, Keeper, Patience},
    clock::Clock,
    server,
    tls::Resolver,
};
use rustls::{ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    certificates::{Authority, shown},
    commands::{Running, countersign, free_port, wait_for},
    support::{Gateway, SECRET, Upstream, client_config, load, signed_head, write_files},
};

/// Waits until it is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "not so: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_left_out() -> bool {
    let is_there = Path::new("/usr/bin/pebble").exists();
    assert!(is_there || std::env::var_os("COUNTERSIGN_REQUIRE_PEBBLE").is_none(), "no pebble: run .ci/test");
    if !is_there {
        eprintln!("SKIPPED: no pebble; .ci/test installs it");
    }
    !is_there
}

/// A port and the authority of a server that may or may not run.
struct Directory {
    folder: tempfile::TempDir,
    port: u16,
}

impl Directory {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let (certificate, key) = authority.issue(&["localhost", "127.0.0.1"], (2020, 2090));
        fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        fs::write(folder.path().join("cert.pem"), certificate.pem()).unwrap();
        fs::write(folder.path().join("key.pem"), key.serialize_pem()).unwrap();
        Self { folder, port: free_port() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/dir", self.port)
    }

    /// The server, which validates names at these ports and issues certificates for so many seconds.
    fn run(&self, http: u16, tls: u16, seconds: u64) -> Pebble {
        self.run_with(http, tls, seconds, None)
    }

    /// The same, with a DNS server that every name is looked up at.
    fn run_with(&self, http: u16, tls: u16, seconds: u64, dns: Option<u16>) -> Pebble {
        let management = free_port();
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": self.file("cert.pem"),
            "privateKey": self.file("key.pem"),
            "httpPort": http,
            "tlsPort": tls,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": seconds,
        }});
        fs::write(self.file("pebble.json"), config.to_string()).unwrap();
        let child = Command::new("/usr/bin/pebble")
            .args(["-strict", "-config"])
            .arg(self.file("pebble.json"))
            .args(dns.map(|port| ["-dnsserver".to_owned(), format!("127.0.0.1:{port}")]).into_iter().flatten())
            .env("PEBBLE_VA_NOSLEEP", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pebble = Pebble { child, management };
        wait_for(self.port);
        wait_for(management);
        pebble
    }
}

/// A DNS server to which every name is this machine.
struct Names {
    child: Child,
    port: u16,
}

impl Names {
    fn run() -> Self {
        let (port, management) = (free_port(), free_port());
        let child = Command::new("/usr/bin/pebble-challtestsrv")
            .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", ""])
            .args(["-dns01", &format!("127.0.0.1:{port}"), "-management", &format!("127.0.0.1:{management}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let names = Self { child, port };
        // It answers over TCP too.
        wait_for(port);
        names
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server, until it is dropped.
struct Pebble {
    child: Child,
    management: u16,
}

impl Pebble {
    /// The root of what it issues, as a file.
    fn root(&self, directory: &Directory) -> PathBuf {
        let ran = Command::new("curl")
            .args(["-sS", "--fail", "--cacert"])
            .arg(directory.file("ca.pem"))
            .arg(format!("https://localhost:{}/roots/0", self.management))
            .output()
            .unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        let path = directory.file("root.pem");
        fs::write(&path, ran.stdout).unwrap();
        path
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const TLS_ALPN: &str = "challenge = \"tls-alpn-01\"";
const HTTP: &str = "challenge = \"http-01\"\nhttp_address = \"127.0.0.1:0\"";

/// The tables of a gateway that is to get a certificate for `localhost`.
fn tables(directory: &Directory, challenge: &str, upstream: &str) -> String {
    let acme = format!(
        "[acme]\ndirectory = \"{}\"\ndirectory_ca = \"{}\"\ncontact = [\"mailto:it@example.com\"]\naccept_terms = true\n{challenge}\n",
        directory.url(),
        directory.file("ca.pem").display(),
    );
    let route = format!("[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{upstream}\"\n");
    format!("{acme}{}", Gateway::tables(&route))
}

const NAME: &str = "names = [\"localhost\"]";

/// A gateway in this process that has [acme].
struct Kept {
    gateway: Gateway,
    resolver: Arc<Resolver>,
    acme: Option<Acme>,
    keeper: Option<Keeper>,
    stop: CancellationToken,
}

impl Kept {
    /// It stands in for its certificate, and asks nobody yet.
    fn new(directory: &Directory, challenge: &str, upstream: &Upstream) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_files(folder.path(), SECRET);
        Self::of(folder, directory, challenge, upstream)
    }

    /// The same with what is in `folder`.
    fn of(folder: tempfile::TempDir, directory: &Directory, challenge: &str, upstream: &Upstream) -> Self {
        Self::for_names(NAME, folder, directory, challenge, upstream)
    }

    /// The same for other names.
    fn for_names(
        names: &str,
        folder: tempfile::TempDir,
        directory: &Directory,
        challenge: &str,
        upstream: &Upstream,
    ) -> Self {
        let mut config = load(folder.path(), names, &tables(directory, challenge, &upstream.origin()));
        let mut acme = config.acme.take().unwrap();
        acme.patience = Patience { first: Duration::from_millis(200), longest: Duration::from_secs(1) };
        let settings = server::Settings { workers: Some(1), ..config.into() };
        let resolver = Arc::clone(&settings.resolver);
        let gateway = Gateway::start(settings, folder);
        let acme = Some(Acme::prepare(acme).unwrap());
        Self { gateway, resolver, acme, keeper: None, stop: CancellationToken::new() }
    }

    fn run(&self, directory: &Directory, seconds: u64) -> Pebble {
        self.run_with(directory, seconds, None)
    }

    fn run_with(&self, directory: &Directory, seconds: u64, dns: Option<u16>) -> Pebble {
        let http = self.acme.as_ref().and_then(Acme::address).map_or_else(free_port, |address| address.port());
        directory.run_with(http, self.gateway.address.port(), seconds, dns)
    }

    fn start(&mut self) -> &Keeper {
        let keeper =
            self.acme.take().unwrap().start(Arc::clone(&self.resolver), None, Clock::System, self.stop.clone());
        self.keeper.insert(keeper.unwrap())
    }

    fn fingerprint(&self) -> String {
        shown(self.gateway.address, Some("localhost"), &[b"http/1.1"]).unwrap()
    }

    fn last_error(&self) -> Option<String> {
        self.keeper.as_ref().unwrap().status().read().last_error
    }

    fn end(mut self) -> tempfile::TempDir {
        self.stop.cancel();
        self.keeper.take().unwrap().join();
        let empty = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.gateway.folder, empty)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

const YEAR: u64 = 365 * 86_400;

/// A client that trusts what the server issues is served, and the key is nobody else's to read.
fn assert_issued(kept: &Kept, root: &Path) {
    let status = kept.keeper.as_ref().unwrap().status().read();
    assert_eq!((status.standing_in_since, status.last_error), (None, None));
    let tls = Arc::new(client_config(root, &[b"http/1.1"]));
    let stream = TcpStream::connect(kept.gateway.address).unwrap();
    let connection = rustls::ClientConnection::new(tls, "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    let request = signed_head("GET", "/a", "Connection: close\r\n").replace("gw.test", "localhost");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));

    let folder = kept.gateway.folder.path().join("state/acme");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder), 0o700);
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["account.json", "certificate.pem"]);
    for name in names {
        assert_eq!(mode(&folder.join(name)), 0o600);
    }
}

#[test]
fn a_name_is_validated_by_a_handshake_and_the_certificate_put_in_force() {
    if is_left_out() {
        return;
    }
    let (directory, upstream) = (Directory::new(), Upstream::ok());
    let mut kept = Kept::new(&directory, TLS_ALPN, &upstream);
    let pebble = kept.run(&directory, YEAR);
    let stand_in = kept.fingerprint();
    kept.start();
    eventually("a certificate is obtained", || !kept.resolver.is_standing_in());
    assert_ne!(kept.fingerprint(), stand_in);
    eventually("the status tells", || kept.keeper.as_ref().unwrap().status().read().next_try.is_some());
    assert_issued(&kept, &pebble.root(&directory));
}

#[test]
fn a_name_is_validated_over_http_and_the_certificate_put_in_force() {
    if is_left_out() {
        return;
    }
    let (directory, upstream) = (Directory::new(), Upstream::ok());
    let mut kept = Kept::new(&directory, HTTP, &upstream);
    let pebble = kept.run(&directory, YEAR);
    kept.start();
    eventually("a certificate is obtained", || !kept.resolver.is_standing_in());
    eventually("the status tells", || kept.keeper.as_ref().unwrap().status().read().next_try.is_some());
    assert_issued(&kept, &pebble.root(&directory));
}

#[test]
fn one_certificate_has_all_names_and_stays_in_force_while_one_with_more_is_asked_for() {
    if is_left_out() {
        return;
    }
    let (directory, upstream, dns) = (Directory::new(), Upstream::ok(), Names::run());
    for (challenge, more) in [(TLS_ALPN, "a.test"), (HTTP, "b.test")] {
        let folder = tempfile::tempdir().unwrap();
        write_files(folder.path(), SECRET);
        let mut kept =
            Kept::for_names("names = [\"one.test\", \"Two.test\"]", folder, &directory, challenge, &upstream);
        let pebble = kept.run_with(&directory, YEAR, Some(dns.port));
        kept.start();
        eventually("a certificate is obtained", || !kept.resolver.is_standing_in());
        let first = Arc::clone(kept.resolver.current().own());
        let mut names = first.names().to_owned();
        names.sort();
        assert_eq!(names, ["one.test", "two.test"]);
        drop(pebble);

        let names = format!("names = [\"one.test\", \"two.test\", \"{more}\"]");
        let mut again = Kept::for_names(&names, kept.end(), &directory, challenge, &upstream);
        assert_eq!(again.fingerprint(), first.fingerprint());
        let status = again.start().status();
        eventually("one with more is asked for", || status.read().last_error.is_some());
        assert_eq!(again.fingerprint(), first.fingerprint());
    }
}

#[test]
fn a_certificate_is_renewed_at_two_thirds_of_its_life_and_kept_when_that_fails() {
    if is_left_out() {
        return;
    }
    let (directory, upstream) = (Directory::new(), Upstream::ok());
    let mut kept = Kept::new(&directory, TLS_ALPN, &upstream);
    let pebble = kept.run(&directory, 12);
    kept.start();
    eventually("a certificate is obtained", || !kept.resolver.is_standing_in());
    let first = Arc::clone(kept.resolver.current().own());
    assert_eq!(kept.fingerprint(), first.fingerprint());
    eventually("it is renewed", || kept.fingerprint() != first.fingerprint());
    let second = Arc::clone(kept.resolver.current().own());
    let life = first.leaf().not_after - first.leaf().not_before;
    let age = second.leaf().not_before - first.leaf().not_before;
    assert!((life * 2 / 3..life).contains(&age), "{age} of {life}");
    drop(pebble);
    eventually("the next renewal fails", || kept.last_error().is_some());
    assert_eq!(kept.fingerprint(), second.fingerprint());
    assert!(!kept.resolver.is_standing_in());
}

#[test]
fn a_restart_serves_what_was_kept_and_asks_for_nothing() {
    if is_left_out() {
        return;
    }
    let (directory, upstream) = (Directory::new(), Upstream::ok());
    let mut kept = Kept::new(&directory, TLS_ALPN, &upstream);
    let pebble = kept.run(&directory, YEAR);
    kept.start();
    eventually("a certificate is obtained", || !kept.resolver.is_standing_in());
    let before = kept.fingerprint();
    drop(pebble);
    let folder = kept.end();
    let mut again = Kept::of(folder, &directory, TLS_ALPN, &upstream);
    assert!(!again.resolver.is_standing_in());
    assert_eq!(again.fingerprint(), before);
    let status = again.start().status();
    eventually("the next renewal is known", || status.read().next_try.is_some());
    // Had it asked, it would have failed.
    assert_eq!((status.read().last_error, status.read().standing_in_since), (None, None));
    assert!(status.read().next_try.unwrap() > std::time::SystemTime::now() + Duration::from_secs(200 * 86_400));
    assert_eq!(again.fingerprint(), before);
    // What one server issued, a staging one for example, does not stand for another's.
    let other = Directory::new();
    let elsewhere = Kept::of(again.end(), &other, TLS_ALPN, &upstream);
    assert!(elsewhere.resolver.is_standing_in());
}

#[test]
fn a_certificate_that_cannot_be_kept_is_served_all_the_same() {
    if is_left_out() {
        return;
    }
    let (directory, upstream) = (Directory::new(), Upstream::ok());
    let mut kept = Kept::new(&directory, TLS_ALPN, &upstream);
    let _pebble = kept.run(&directory, YEAR);
    // Something is in the way that a file cannot be put in place of.
    let path = kept.gateway.folder.path().join("state/acme/certificate.pem");
    fs::create_dir_all(path.join("in the way")).unwrap();
    kept.start();
    eventually("a certificate is obtained", || !kept.resolver.is_standing_in());
    eventually("it is told", || kept.last_error().is_some_and(|error| error.contains("certificate.pem")));
    assert_eq!(kept.fingerprint(), kept.resolver.current().own().fingerprint());
}

#[test]
fn an_account_that_the_server_has_forgotten_is_made_anew() {
    if is_left_out() {
        return;
    }
    let (directory, upstream) = (Directory::new(), Upstream::ok());
    let mut kept = Kept::new(&directory, TLS_ALPN, &upstream);
    let pebble = kept.run(&directory, YEAR);
    kept.start();
    eventually("a certificate is obtained", || !kept.resolver.is_standing_in());
    drop(pebble);
    let folder = kept.end();
    fs::remove_file(folder.path().join("state/acme/certificate.pem")).unwrap();
    let account = fs::read(folder.path().join("state/acme/account.json")).unwrap();
    let mut again = Kept::of(folder, &directory, TLS_ALPN, &upstream);
    assert!(again.resolver.is_standing_in());
    let _pebble = again.run(&directory, YEAR);
    again.start();
    eventually("a certificate is obtained", || !again.resolver.is_standing_in());
    let path = again.gateway.folder.path().join("state/acme/account.json");
    assert_ne!(fs::read(path).unwrap(), account);
}

#[test]
fn while_the_directory_is_unreachable_a_stand_in_serves_and_it_is_tried_again() {
    let (directory, upstream) = (Directory::new(), Upstream::ok());
    let mut kept = Kept::new(&directory, TLS_ALPN, &upstream);
    let began = std::time::SystemTime::now();
    let stand_in = kept.fingerprint();
    let status = kept.start().status();
    eventually("the failure is told", || status.read().last_error.is_some());
    let report = status.read();
    assert!(report.standing_in_since.unwrap() >= began);
    assert!(report.last_error.unwrap().contains("refused"));
    assert_eq!(kept.fingerprint(), stand_in);
    assert!(kept.resolver.is_standing_in());
    let first = status.read().next_try;
    eventually("it is tried again", || status.read().next_try > first);
    if is_left_out() {
        return;
    }
    let _pebble = kept.run(&directory, YEAR);
    eventually("it succeeds at last", || !kept.resolver.is_standing_in());
    eventually("the error is past", || status.read().last_error.is_none());
}

#[test]
fn another_authority_of_the_server_is_taken_under_way() {
    if is_left_out() {
        return;
    }
    let (directory, upstream) = (Directory::new(), Upstream::ok());
    let real = fs::read(directory.file("ca.pem")).unwrap();
    fs::write(directory.file("ca.pem"), Authority::new().pem).unwrap();
    let mut kept = Kept::new(&directory, TLS_ALPN, &upstream);
    fs::write(directory.file("ca.pem"), real).unwrap();
    let _pebble = kept.run(&directory, YEAR);
    let (status, trust) = (kept.start().status(), kept.keeper.as_ref().unwrap().trust());
    eventually("the server is not believed", || status.read().last_error.is_some());
    let roots = countersign::tls::certificates(&directory.file("ca.pem")).unwrap();
    trust.change(Authorities::new(Some(roots)).unwrap());
    eventually("it is believed", || !kept.resolver.is_standing_in());
}

#[test]
fn what_the_server_could_not_validate_is_told() {
    if is_left_out() {
        return;
    }
    let (directory, upstream) = (Directory::new(), Upstream::ok());
    for challenge in [TLS_ALPN, HTTP] {
        let mut kept = Kept::new(&directory, challenge, &upstream);
        // It asks where nobody is.
        let _pebble = directory.run(free_port(), free_port(), YEAR);
        kept.start();
        eventually("the failure is told", || kept.last_error().is_some());
        let error = kept.last_error().unwrap();
        let told = ["Failed to connect to 127.0.0.1", "connection refused"];
        assert!(error.contains("the ACME server") && told.iter().any(|words| error.contains(words)), "{error}");
        assert!(kept.resolver.is_standing_in());
    }
}

/// The status line of what the listener for challenges answers.
fn asked_over_http(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

#[test]
fn the_listener_for_challenges_answers_nothing_else_and_cannot_be_kept_busy() {
    let (directory, upstream) = (Directory::new(), Upstream::ok());
    let mut kept = Kept::new(&directory, HTTP, &upstream);
    let address = kept.acme.as_ref().unwrap().address().unwrap();
    kept.start();
    // As many as nobody would open, all silent.
    let idle: Vec<_> = (0..300).map(|_| TcpStream::connect(address).unwrap()).collect();
    for (request, status) in [
        ("GET /.well-known/acme-challenge/none HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 404 Not Found"),
        ("HEAD /.well-known/acme-challenge/ HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (
            "POST /.well-known/acme-challenge/none HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 404 Not Found"),
        ("GET http://intranet.test/ HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 404 Not Found"),
    ] {
        assert_eq!(asked_over_http(address, request), status, "{request}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "a".repeat(20_000));
    assert!(asked_over_http(address, &long).contains(" 431 "));
    assert!(upstream.requests().is_empty());
    drop(idle);
}

/// A server that gives renewal information, takes orders down, and issues nothing.
struct Suggesting {
    orders: Arc<Mutex<Vec<Value>>>,
    is_over: Arc<AtomicBool>,
}

impl Suggesting {
    fn at(directory: &Directory) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", directory.port)).unwrap();
        let chain = countersign::tls::certificates(&directory.file("cert.pem")).unwrap();
        let key = countersign::tls::private_key(&directory.file("key.pem")).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(countersign::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let (config, base) = (Arc::new(config), format!("https://localhost:{}", directory.port));
        let (orders, is_over) = (Arc::<Mutex<Vec<Value>>>::default(), Arc::new(AtomicBool::new(false)));
        let serving = Self { orders: Arc::clone(&orders), is_over: Arc::clone(&is_over) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let _ = answer(StreamOwned::new(connection, stream), &base, &orders);
            }
        });
        serving
    }
}

impl Drop for Suggesting {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn answer(
    stream: StreamOwned<ServerConnection, TcpStream>,
    base: &str,
    orders: &Mutex<Vec<Value>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line == "\r\n" || line.is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head += &line;
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let (status, more, answer) = match head.split(' ').nth(1).unwrap_or_default() {
        "/dir" => {
            let names = ["newNonce", "newAccount", "newOrder", "revokeCert", "keyChange", "renewalInfo"];
            let directory: serde_json::Map<_, _> =
                names.iter().map(|name| ((*name).to_owned(), format!("{base}/{name}").into())).collect();
            ("200 OK", "", Value::from(directory))
        }
        "/newOrder" => {
            let body: Value = serde_json::from_slice(&body).unwrap();
            let payload = URL_SAFE_NO_PAD.decode(body["payload"].as_str().unwrap()).unwrap();
            orders.lock().unwrap().push(serde_json::from_slice(&payload).unwrap());
            let kind = "urn:ietf:params:acme:error:serverInternal";
            ("500 Internal Server Error", "", json!({ "type": kind, "detail": "issues nothing" }))
        }
        target if target.starts_with("/renewalInfo/") => {
            let window = json!({ "start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z" });
            ("200 OK", "Retry-After: 21600\r\n", json!({ "suggestedWindow": window }))
        }
        _ => ("200 OK", "Replay-Nonce: a\r\n", Value::Null),
    };
    let answer = if head.starts_with("HEAD") { String::new() } else { answer.to_string() };
    write!(
        stream.get_mut(),
        "HTTP/1.1 {status}\r\nConnection: close\r\n{more}Content-Length: {}\r\n\r\n{answer}",
        answer.len()
    )?;
    stream.get_mut().flush()
}

#[test]
fn a_certificate_is_renewed_early_when_the_authority_says_so() {
    let (directory, upstream) = (Directory::new(), Upstream::ok());
    let server = Suggesting::at(&directory);
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), SECRET);
    fs::create_dir_all(folder.path().join("state/acme")).unwrap();
    let (certificate, key) = Authority::new().issue(&["localhost"], (2026, 2090));
    let pem = format!("{}{}", key.serialize_pem(), certificate.pem());
    fs::write(folder.path().join("state/acme/certificate.pem"), pem).unwrap();
    let account = rcgen::KeyPair::generate().unwrap();
    let credentials = json!({
        "id": "https://localhost/account",
        "key_pkcs8": URL_SAFE_NO_PAD.encode(account.serialize_der()),
        "directory": directory.url(),
    });
    let account = json!({ "contact": ["mailto:it@example.com"], "credentials": credentials });
    fs::write(folder.path().join("state/acme/account.json"), account.to_string()).unwrap();

    let mut kept = Kept::of(folder, &directory, TLS_ALPN, &upstream);
    assert!(!kept.resolver.is_standing_in());
    let before = kept.fingerprint();
    kept.start();
    eventually("two orders are placed", || server.orders.lock().unwrap().len() >= 2);
    let orders = server.orders.lock().unwrap().clone();
    let identifiers = json!([{ "type": "dns", "value": "localhost" }]);
    assert_eq!((&orders[0]["identifiers"], &orders[1]["identifiers"]), (&identifiers, &identifiers));
    // It says once in whose place the new one comes; where that did not work, it asks as for a first one.
    assert!(orders[0]["replaces"].as_str().is_some_and(|name| name.split('.').count() == 2), "{orders:?}");
    assert_eq!(orders[1]["replaces"], Value::Null);
    assert!(kept.last_error().unwrap().contains("issues nothing"));
    assert_eq!(kept.fingerprint(), before);
}

#[test]
fn the_program_obtains_a_certificate_records_it_and_ends_with_the_drain() {
    if is_left_out() {
        return;
    }
    let (directory, upstream) = (Directory::new(), Upstream::ok());
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), SECRET);
    let (port, operations) = (free_port(), free_port());
    let path = folder.path().join("countersign.toml");
    let text = format!(
        "version = 1\n[listener]\naddress = \"127.0.0.1:{port}\"\n{NAME}\n[operations]\naddress = \"127.0.0.1:{operations}\"\n{}",
        tables(&directory, TLS_ALPN, &upstream.origin())
    );
    fs::write(&path, text).unwrap();
    let checked = |arguments: &[&str]| {
        let ran = countersign().args(["check", "--config"]).arg(&path).args(arguments).output().unwrap();
        assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    assert!(checked(&[]).contains("\nlocalhost    ACME, none yet  -"), "{}", checked(&[]));
    let readiness = || {
        let mut stream = TcpStream::connect(("127.0.0.1", operations)).unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let mut command = countersign();
    command.arg("run").arg("--config").arg(&path).stdout(Stdio::null()).stderr(Stdio::piped());
    let running = Running(command.spawn().unwrap());
    wait_for(port);
    eventually("it says that there is no certificate yet", || {
        let answer = readiness();
        answer.starts_with("HTTP/1.1 503")
            && answer.contains("\ncertificate: none yet, a self-signed one stands in since")
    });
    // The first attempt has failed, and the next is a minute away: a restart tries at once.
    running.drained();
    let pebble = directory.run(free_port(), port, YEAR);
    let running = Running(command.spawn().unwrap());
    wait_for(port);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let certificate = folder.path().join("state/acme/certificate.pem");
    eventually("a certificate is kept", || certificate.exists());
    let root = pebble.root(&directory);
    let json: Value = serde_json::from_str(&checked(&["--format", "json"])).unwrap();
    let listed = &json["certificates"][0];
    assert_eq!((&listed["from"], &listed["names"]), (&"acme".into(), &json!(["localhost"])));
    assert!((363..=365).contains(&listed["days_left"].as_i64().unwrap()), "{listed}");
    eventually("it is served", || {
        shown(address, Some("localhost"), &[b"http/1.1"]).unwrap() == listed["fingerprint"].as_str().unwrap()
    });
    assert!(root.exists());
    eventually("it is ready", || readiness().starts_with("HTTP/1.1 200"));
    assert!(readiness().contains("\ncertificate: valid until "), "{}", readiness());

    // Another name takes a restart, and the old configuration stays; what else changes does not touch the certificate.
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("names = [\"localhost\"]", "names = [\"localhost\", \"b.test\"]")).unwrap();
    eventually("the change is refused", || readiness().contains("config: refused"));
    fs::write(&path, format!("{text}\n# changed\n")).unwrap();
    eventually("the change is taken", || !readiness().contains("config: refused"));
    assert_eq!(shown(address, Some("localhost"), &[]).unwrap(), listed["fingerprint"].as_str().unwrap());
    // Nor does another authority of the server keep anything out.
    fs::write(directory.file("ca.pem"), Authority::new().pem).unwrap();
    let in_force = || {
        let log = fs::read_to_string(folder.path().join("state/audit/00000000000000000001.jsonl")).unwrap();
        log.contains("another certificate or key in acme.directory_ca, SHA-256 ")
    };
    eventually("it is in force", in_force);
    assert!(!readiness().contains("config: refused"), "{}", readiness());
    let said = running.drained();
    assert!(said.contains("certificate obtained"), "{said}");

    let records: Vec<Value> = fs::read_dir(folder.path().join("state/audit"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .flat_map(|path| {
            fs::read_to_string(path)
                .unwrap()
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect::<Vec<_>>()
        })
        .collect();
    let record = records.iter().find(|record| record["kind"] == "certificate").unwrap();
    assert_eq!((&record["names"], &record["event"]), (&json!(["localhost"]), &"obtained".into()));
    assert_eq!((&record["fingerprint"], &record["not_after"]), (&listed["fingerprint"], &listed["not_after"]));
    let verified = countersign().args(["audit", "verify"]).arg(folder.path().join("state/audit")).output().unwrap();
    assert_eq!(verified.status.code(), Some(0));
}
