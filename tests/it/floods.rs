//! Clients that send too much, or too slowly, or leave: they are cut or bounded, and nobody else waits for them.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

use crate::{
    http2::{CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, RST_STREAM, SETTINGS, block, frame},
    support::{ACCOUNT, Gateway, USER, Upstream, identity_payload, signature, signed_body, signed_head},
};

const PRIORITY: u8 = 2;
const PUSH_PROMISE: u8 = 5;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// Frames of a flood at most.
const FRAMES: u32 = 20_000;
/// What an honest request may take on a busy machine of two cores; it is milliseconds on a quiet one.
const PATIENCE: Duration = Duration::from_secs(5);
/// By how much this process, whose other tests run meanwhile, may grow during all floods.
const MOST_GROWTH_KIB: u64 = 256 * 1024;

/// Rule 9: nobody waits for a client that is gone, and the upstream does not work for it.
#[test]
fn a_client_that_leaves_with_more_requests_in_the_pipe_ends_the_upstream_s_work() {
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
    let gateway = Gateway::to(&upstream);
    let partial = "GET /partial HTTP/1.1\r\nHost:";
    let unsigned = "GET /unsigned HTTP/1.1\r\nHost: gw.test\r\n\r\n";
    for first in [
        signed_head("GET", "/head", ""),
        signed_head("GET", "/body", ""),
        signed_body("POST", "/whole", &identity_payload()),
    ] {
        for second in [&signed_head("GET", "/second", ""), partial, unsigned, "\0"] {
            for together in [true, false] {
                let mut client = gateway.connect();
                client.send(if together { format!("{first}{second}") } else { first.clone() });
                under_way.recv_timeout(Duration::from_secs(10)).unwrap();
                if !together {
                    client.send(second);
                }
                client.stream.sock.shutdown(std::net::Shutdown::Both).unwrap();
                let left = Instant::now();
                let took = end.recv_timeout(Duration::from_secs(10)).expect("the upstream is told") - left;
                assert!(took < Duration::from_secs(2), "{first} {second}: {took:?}");
            }
        }
    }
    let forwarded = upstream.requests();
    assert_eq!(forwarded.len(), 24);
    let ahead =
        |request: &&Vec<u8>| [&b"GET /second"[..], b"GET /unsigned"].iter().any(|line| request.starts_with(line));
    assert_eq!(forwarded.iter().filter(ahead).count(), 0, "a request of a client that is gone was forwarded");
}

/// Rule 10: what is read ahead has a bound. Rule 9: the time for a head begins when it is its turn.
#[test]
fn what_comes_behind_a_request_waits_for_its_answer_within_a_bound() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let upstream = Upstream::serving(move |stream, request| {
        if request.starts_with(b"GET /slow") {
            gone.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok()
    });
    let gateway = Gateway::with(&format!(
        "[limits]\nhead_timeout = \"300ms\"\n[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n",
        upstream.origin()
    ));
    // The head behind it is not complete for longer than a head may take.
    let mut client = gateway.connect();
    let second = signed_head("GET", "/b", "");
    let (begun, rest) = second.split_at(20);
    client.send(format!("{}{begun}", signed_head("GET", "/slow", "")));
    std::thread::sleep(Duration::from_millis(900));
    client.send(rest);
    go.send(()).unwrap();
    assert_eq!([client.answer().status, client.answer().status], [200, 200]);

    // Far more than is read ahead comes behind it, and the client is held up, not the gateway's memory filled.
    let mut client = gateway.connect();
    client.send(signed_head("GET", "/slow", ""));
    let (patience, usual) = (Some(Duration::from_millis(500)), client.stream.sock.read_timeout().unwrap());
    client.stream.sock.set_write_timeout(patience).unwrap();
    client.stream.sock.set_read_timeout(patience).unwrap();
    let mut taken = 0;
    let part = second.repeat(64);
    while taken < 64 << 20 && client.stream.write_all(part.as_bytes()).is_ok() {
        taken += part.len();
    }
    assert!(taken < 32 << 20, "{taken} bytes were taken");
    go.send(()).unwrap();
    client.stream.sock.set_read_timeout(usual).unwrap();
    assert_eq!(client.answer().status, 200);
}

fn limited(limits: &str, upstream: &Upstream) -> Gateway {
    let origin = upstream.origin();
    Gateway::with(&format!("[limits]\n{limits}\n[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{origin}\"\n"))
}

fn honest(gateway: &Gateway, during: &str) {
    let began = Instant::now();
    assert_eq!(gateway.ask(signed_head("GET", "/honest", "")).status, 200, "during {during}");
    assert!(began.elapsed() < PATIENCE, "during {during}: {:?}", began.elapsed());
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Whether the gateway has ended the connection, reading whatever still comes.
fn has_ended(stream: &mut impl Read, within: Duration) -> bool {
    let mut space = [0; 16 * 1024];
    let began = Instant::now();
    while began.elapsed() < within {
        match stream.read(&mut space) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return true,
        }
    }
    false
}

/// What a flood sends first and then again and again.
struct Flood<'f> {
    name: &'f str,
    /// Whether its connection has to end; what is left open is bounded by itself.
    ends: bool,
    first: Vec<u8>,
    then: Box<dyn Fn(u32) -> Vec<u8> + 'f>,
}

fn flood<'f>(name: &'f str, ends: bool, first: Vec<u8>, then: impl Fn(u32) -> Vec<u8> + 'f) -> Flood<'f> {
    Flood { name, ends, first, then: Box::new(then) }
}

fn run(gateway: &Gateway, flood: &Flood<'_>) {
    let mut frames = Frames::connect(gateway);
    let patience = Some(Duration::from_millis(300));
    frames.0.sock.set_write_timeout(patience).unwrap();
    frames.0.sock.set_read_timeout(patience).unwrap();
    let mut open = frames.write(&flood.first);
    let (mut sent, began) = (0, Instant::now());
    while open && sent < FRAMES && began.elapsed() < Duration::from_secs(10) {
        if sent % 5000 == 0 {
            honest(gateway, flood.name);
        }
        let bytes: Vec<u8> = (sent..sent + 50).flat_map(&flood.then).collect();
        open = frames.write(&bytes);
        sent += 50;
    }
    honest(gateway, flood.name);
    if flood.ends {
        assert!(has_ended(&mut frames.0, Duration::from_secs(15)), "{}: still open after {sent} frames", flood.name);
    }
}

/// Rule 10: every flood of HTTP/2 is cut or bounded. Rule 11: nothing of it goes upstream.
#[test]
fn floods_of_frames_end_and_hold_up_nobody() {
    let upstream = Upstream::ok();
    let gateway = limited("write_timeout = \"500ms\"\ndiscard_timeout = \"500ms\"", &upstream);
    let get = block(&[(":method", "GET"), (":scheme", "https"), (":authority", "gw.test"), (":path", "/flood")]);
    let post = block(&[(":method", "POST"), (":scheme", "https"), (":authority", "gw.test"), (":path", "/flood")]);
    let open = frame(HEADERS, END_HEADERS, 1, &post);
    let cancel = 8_u32.to_be_bytes();
    let settings = |name: u8, value: u32| [&[0, name][..], &value.to_be_bytes()].concat();
    // One entry of the dynamic table, then references to it.
    let bomb = [&get[..], &[0x40, 1, b'x', 127, 0x81, 0x1e], &[b'y'; 4000], &[0xbe; 12_000]].concat();
    let large = block(&[("x", &"y".repeat(16_000))]);
    let own_parent = |n: u32| (2 * n + 1).to_be_bytes();
    let none = Vec::new;
    let floods = [
        flood("rapid reset", true, none(), |n| {
            let stream = 2 * n + 1;
            [frame(HEADERS, END_STREAM | END_HEADERS, stream, &get), frame(RST_STREAM, 0, stream, &cancel)].concat()
        }),
        flood("reset amid a head", true, none(), |n| {
            [frame(HEADERS, 0, 2 * n + 1, &get), frame(RST_STREAM, 0, 2 * n + 1, &cancel)].concat()
        }),
        flood("continuation without an end", true, frame(HEADERS, 0, 1, &get), |_| {
            frame(CONTINUATION, 0, 1, &block(&[("x", "y")]))
        }),
        flood("continuation with an end", true, none(), |n| {
            let stream = 2 * n + 1;
            let head = [frame(HEADERS, END_STREAM, stream, &get), frame(CONTINUATION, END_HEADERS, stream, &[])];
            [head.concat(), frame(RST_STREAM, 0, stream, &cancel)].concat()
        }),
        flood("continuation alone", true, none(), |_| frame(CONTINUATION, END_HEADERS, 1, &get)),
        flood("empty continuation", true, frame(HEADERS, 0, 1, &get), |_| frame(CONTINUATION, 0, 1, &[])),
        flood("empty data", true, open.clone(), |_| frame(DATA, 0, 1, &[])),
        flood("ping", true, none(), |_| frame(PING, 0, 0, &[0; 8])),
        flood("ping acknowledged", true, none(), |_| frame(PING, 1, 0, &[0; 8])),
        flood("settings", true, none(), |_| frame(SETTINGS, 0, 0, &settings(4, 1 << 16))),
        flood("settings acknowledged", true, none(), |_| frame(SETTINGS, 1, 0, &[])),
        flood("many settings", true, none(), |_| frame(SETTINGS, 0, 0, &settings(4, 1 << 16).repeat(1000))),
        flood("table size", true, none(), |n| frame(SETTINGS, 0, 0, &settings(1, n % 2 * 4096))),
        flood("priority", true, none(), |n| frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 9])),
        flood("own parent", true, none(), |n| frame(PRIORITY, 0, 2 * n + 1, &[&own_parent(n)[..], &[9]].concat())),
        flood("window update", true, none(), |_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        flood("window overflow", true, none(), |_| frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())),
        flood("unknown kinds", true, none(), |n| frame(u8::try_from(n % 200 + 20).unwrap(), 0, n, &[0; 32])),
        flood("table bomb", false, none(), |n| frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &bomb)),
        flood("large head", true, frame(HEADERS, 0, 1, &get), |_| frame(CONTINUATION, 0, 1, &large)),
        flood("no window", false, frame(SETTINGS, 0, 0, &settings(4, 0)), |n| {
            frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &get)
        }),
        flood("drops of data", false, open, |_| frame(DATA, 0, 1, b"x")),
        flood("open streams", false, none(), |n| frame(HEADERS, END_HEADERS, 2 * n + 1, &post)),
        flood("go away", true, none(), |_| frame(GOAWAY, 0, 0, &[0; 8])),
        flood("push promise", true, none(), |n| frame(PUSH_PROMISE, END_HEADERS, 1, &(2 * n + 2).to_be_bytes())),
        flood("large frames", true, none(), |_| frame(DATA, 0, 1, &vec![0; 20_000])),
    ];
    let before = resident_kib();
    for flood in &floods {
        run(&gateway, flood);
    }
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < MOST_GROWTH_KIB, "grew by {grown} KiB");
    assert!(upstream.requests().iter().all(|request| request.starts_with(b"GET /honest ")));
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A client's name, its connection, what it sends a byte of at a time, and whether it reads.
type Slow<'s> = (&'s str, Box<dyn Stream>, &'s [u8], bool);

/// Rule 9: a client that is slow, at whatever it does, is waited for within a bound, and nobody else is.
#[test]
#[allow(clippy::too_many_lines, reason = "it is a list")]
fn slow_clients_are_cut_and_hold_up_nobody() {
    const LARGE: usize = 64 << 20;
    let upstream = Upstream::serving(|stream, request| {
        let length = if request.starts_with(b"GET /large") { LARGE } else { 2 };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(&[head.into_bytes(), vec![b'x'; length]].concat()).is_ok()
    });
    let gateway = limited(
        "handshake_timeout = \"500ms\"\nhead_timeout = \"500ms\"\nbody_timeout = \"500ms\"\n\
         idle_timeout = \"1s\"\nwrite_timeout = \"500ms\"\ndiscard_timeout = \"500ms\"",
        &upstream,
    );
    let tick = Some(Duration::from_millis(50));
    let plain = || {
        let stream = TcpStream::connect(gateway.address).unwrap();
        stream.set_read_timeout(tick).unwrap();
        stream
    };
    let http1 = |bytes: &str| -> Box<dyn Stream> {
        let mut client = gateway.connect();
        client.send(bytes);
        client.stream.sock.set_read_timeout(tick).unwrap();
        Box::new(client.stream)
    };
    let http2 = |bytes: &[u8]| -> Box<dyn Stream> {
        let mut frames = Frames::connect(&gateway);
        frames.write(bytes);
        frames.0.sock.set_read_timeout(tick).unwrap();
        Box::new(frames.0)
    };
    let agreed = || -> Box<dyn Stream> {
        let config = crate::support::client_config(&gateway.folder.path().join("cert.pem"), &[b"h2"]);
        let name = "gw.test".try_into().unwrap();
        let connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, plain());
        while stream.conn.is_handshaking() {
            let _ = stream.conn.complete_io(&mut stream.sock);
        }
        Box::new(stream)
    };
    let upload = |more: &str| {
        format!("POST /slow HTTP/1.1\r\nHost: gw.test\r\nContent-Type: application/json\r\n{more}\r\n")
            + if more.contains("chunked") { "1\r\n{\r\n" } else { "{" }
    };
    let signed = block(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "gw.test"),
        (":path", "/large"),
        ("stripe-signature", &signature(&identity_payload())),
        ("stripe-user-id", USER),
        ("stripe-account-id", ACCOUNT),
    ]);
    let half_closed = || {
        let mut client = gateway.connect();
        client.send("GET /slow HTTP/1.1\r\nHost:");
        client.stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
        client.stream.sock.set_read_timeout(tick).unwrap();
        Box::new(client.stream)
    };
    let begun = frame(HEADERS, END_STREAM | END_HEADERS, 1, &signed);
    let wide = [
        frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 255, 255, 255]),
        frame(WINDOW_UPDATE, 0, 0, &0x7f00_0000_u32.to_be_bytes()),
        begun.clone(),
    ]
    .concat();
    let clients: Vec<Slow<'_>> = vec![
        ("slow handshake", Box::new(plain()), b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", true),
        ("silent before the handshake", Box::new(plain()), b"", true),
        ("silent after the handshake", http1(""), b"", true),
        ("silent after agreeing on HTTP/2", agreed(), b"", true),
        ("dripping preface", agreed(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true),
        ("dripping head", http1("GET /slow HTTP/1.1\r\n"), b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy", true),
        ("dripping body", http1(&upload("Content-Length: 1000\r\n")), b"                              ", true),
        ("dripping chunks", http1(&upload("Transfer-Encoding: chunked\r\n")), b"1\r\n \r\n1\r\n \r\n1\r\n \r\n", true),
        ("reading nothing", http1(&signed_head("GET", "/large", "")), b"", false),
        ("reading nothing of HTTP/2", http2(&wide), b"", false),
        ("idle", http1(&signed_head("GET", "/honest", "")), b"", true),
        ("half closed", half_closed(), b"", true),
        ("amid the head of a frame", http2(&begun[..5]), b"", true),
        ("amid a head", http2(&begun[..50]), b"", true),
    ];
    std::thread::scope(|scope| {
        let slow: Vec<_> = clients
            .into_iter()
            .map(|(name, mut stream, drops, reads)| {
                scope.spawn(move || {
                    let start = Instant::now();
                    if !reads {
                        // Its buffers fill, and the gateway waits for it no longer than it waits for any write.
                        std::thread::sleep(Duration::from_secs(3));
                        let (mut space, mut got, mut ended) = (vec![0; 1 << 16], 0, false);
                        while !ended && start.elapsed() < Duration::from_secs(40) {
                            match stream.read(&mut space) {
                                Ok(0) => ended = true,
                                Ok(count) => got += count,
                                Err(error) => {
                                    ended = !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                                }
                            }
                        }
                        assert!(ended, "{name}: still open");
                        assert!(got < LARGE, "{name}: was sent everything");
                        return;
                    }
                    let mut drops = drops.iter();
                    let mut ended = false;
                    while !ended && start.elapsed() < Duration::from_secs(20) {
                        let written = drops.next().is_none_or(|drop| stream.write_all(&[*drop]).is_ok());
                        ended = has_ended(&mut stream, Duration::from_millis(50)) || !written;
                    }
                    assert!(ended, "{name}: still open");
                })
            })
            .collect();
        while !slow.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            honest(&gateway, "slow clients");
        }
    });
    let allowed = |request: &Vec<u8>| request.starts_with(b"GET /honest ") || request.starts_with(b"GET /large ");
    assert!(upstream.requests().iter().all(allowed));
}
