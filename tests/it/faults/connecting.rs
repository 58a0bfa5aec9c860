//! Servers that cannot be reached, or not be trusted.

use super::*;

/// An address at which nothing listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Fault: upstream refused.
#[test]
fn a_server_that_refuses_is_502_at_once() {
    let ground = Ground::new(&[&nobody()], "");
    for method in ["GET", "POST"] {
        let met = ground.ask(method, "/a");
        met.is(502, "upstream_unreachable");
        met.came_soon();
    }
    // A socket that is not there, or has nobody behind it.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("left");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    for name in ["left", "never"] {
        let server = format!("unix:{}", folder.path().join(name).display());
        let met = Ground::new(&[&server], "").ask("POST", "/a");
        met.is(502, "upstream_unreachable");
        met.came_soon();
    }
}

/// Fault: upstream blackholed (SYN dropped). A listener whose queue is full drops them.
#[test]
fn a_server_that_drops_what_would_connect_is_504_at_its_timeout() {
    let (socket, _held) = full();
    let server = format!("http://{}", socket.local_addr().unwrap().as_socket().unwrap());
    let ground = Ground::new(&[&server], "connect_timeout = \"400ms\"");
    for method in ["GET", "POST"] {
        let met = ground.ask(method, "/a");
        met.is(504, "upstream_timeout");
        met.came_after(Duration::from_millis(400));
    }
}

/// A listener whose queue is full.
fn full() -> (socket2::Socket, Vec<TcpStream>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut held = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        held.push(stream);
    }
    (socket, held)
}

/// Fault: an upstream process that is stopped: the system accepts for it, and nobody answers.
#[test]
fn a_server_that_is_stopped_is_504_and_is_itself_again_when_it_goes_on() {
    const SERVER: &str = "const s = require('http').createServer((q, r) => r.end('ok')); s.listen(0, '127.0.0.1', () => console.log(s.address().port))";
    let mut server =
        Running(Command::new("node").args(["-e", SERVER]).stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap());
    let mut port = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let ground = Ground::new(&[&format!("http://127.0.0.1:{}", port.trim())], "response_timeout = \"2s\"");
    ground.ask("GET", "/a").is_answer(200, true);
    server.signal("STOP");
    let met = ground.ask("POST", "/a");
    met.is(504, "upstream_timeout");
    met.came_after(Duration::from_secs(2));
    server.signal("CONT");
    ground.ask("GET", "/a").is_answer(200, true);
}

/// Fault: DNS failure.
#[test]
fn a_name_that_is_gone_is_told_on_its_own_route_only() {
    let ground = Ground::new(&["http://no-such-host.invalid"], "connect_timeout = \"5s\"");
    let met = ground.ask("POST", "/a");
    assert!([502, 504].contains(&met.answer.status));
    let code = if met.answer.status == 502 { "upstream_unreachable" } else { "upstream_timeout" };
    met.is(met.answer.status, code);
    assert!(met.took < Duration::from_secs(5) + SOON);
}

/// Authority, certificate and key, as PEM, of a server named `name` until the year `until`.
fn certified(name: &str, until: i32) -> (String, String, String) {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    (authority, certificate, key.serialize_pem())
}

/// Fault: TLS error to an https upstream: wrong authority, expired, wrong name.
#[test]
fn a_server_that_does_not_prove_itself_is_502_and_is_told_nothing() {
    let (foreign, ..) = certified("127.0.0.1", 2400);
    for (name, until, known, keys, good) in [
        ("127.0.0.1", 2400, true, "", true),
        ("other.test", 2400, true, "server_name = \"other.test\"", true),
        ("127.0.0.1", 2400, false, "", false),
        ("127.0.0.1", 2020, true, "", false),
        ("other.test", 2400, true, "", false),
        ("127.0.0.1", 2400, true, "server_name = \"other.test\"", false),
    ] {
        let (authority, certificate, key) = certified(name, until);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cert.pem"), certificate).unwrap();
        std::fs::write(folder.path().join("key.pem"), key).unwrap();
        let upstream = Upstream::tls(&folder.path().join("cert.pem"), &folder.path().join("key.pem"));
        let files = [("ca.pem", if known { authority.as_str() } else { foreign.as_str() })];
        let server = format!("https://{}", upstream.address);
        let ground = Ground::with_files(&[&server], &format!("ca = \"ca.pem\"\n{keys}"), &files);
        for method in ["GET", "POST"] {
            let met = ground.ask(method, "/a");
            if good {
                met.is_answer(200, true);
            } else {
                met.is(502, "upstream_unreachable");
            }
            met.came_soon();
        }
        assert_eq!(upstream.requests().len(), if good { 2 } else { 0 }, "{name} {until} {known} {keys}");
    }
}

/// Fault: TLS error to an https upstream: no TLS there at all, or a handshake that is reset, garbled or stalls.
#[test]
fn a_server_that_fails_its_handshake_is_never_spoken_to_in_the_clear() {
    type How = fn(&mut TcpStream);
    let (authority, ..) = certified("127.0.0.1", 2400);
    let ways: [(How, u16, &str); 5] = [
        (
            |stream| drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")),
            502,
            "upstream_unreachable",
        ),
        (|stream| drop(stream.write_all(&[0x16, 3, 3, 0xff, 0xff, 1, 2, 3])), 502, "upstream_unreachable"),
        // An alert: handshake_failure.
        (|stream| drop(stream.write_all(&[0x15, 3, 3, 0, 2, 2, 40])), 502, "upstream_unreachable"),
        (|stream| reset(stream), 502, "upstream_unreachable"),
        (|stream| drop(stream.read_to_end(&mut Vec::new())), 504, "upstream_timeout"),
    ];
    for (how, status, code) in ways {
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let upstream = Upstream::raw(move |stream| {
            let mut space = [0; 4096];
            let count = stream.read(&mut space).unwrap_or_default();
            heard.lock().unwrap().extend_from_slice(&space[..count]);
            how(stream);
        });
        let server = format!("https://{}", upstream.address);
        let keys = "connect_timeout = \"2s\"\nca = \"ca.pem\"";
        let ground = Ground::with_files(&[&server], keys, &[("ca.pem", &authority)]);
        let met = ground.ask("POST", "/a");
        met.is(status, code);
        if status == 504 {
            met.came_after(Duration::from_secs(2));
        }
        let said = String::from_utf8_lossy(&said.lock().unwrap()).into_owned();
        assert!(!said.is_empty() && !said.contains("POST") && !said.contains("acct_"), "{said:?}");
    }
}

/// Fault: TLS where plain HTTP was expected.
#[test]
fn a_server_that_speaks_tls_where_http_is_expected_is_502() {
    let (_, certificate, key) = certified("127.0.0.1", 2400);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cert.pem"), certificate).unwrap();
    std::fs::write(folder.path().join("key.pem"), key).unwrap();
    let upstream = Upstream::raw({
        let chain = countersign::tls::certificates(&folder.path().join("cert.pem")).unwrap();
        let key = countersign::tls::private_key(&folder.path().join("key.pem")).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(countersign::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let config = Arc::new(config);
        move |stream| {
            let mut connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            // Its alert is what the gateway reads.
            let _ = connection.complete_io(stream);
        }
    });
    let ground = Ground::new(&[&upstream.origin()], "");
    let met = ground.ask("POST", "/a");
    assert_eq!(met.answer.status, 502);
    met.is(502, &met.answer.code());
    met.came_soon();
}
