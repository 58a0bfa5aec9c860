//! Bounds of time and size: each is counted where it is hit, answered as promised, and gives back what it took.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use countersign::limits::Limit;
use http_body_util::BodyExt as _;

use crate::{
    commands::{Folder, countersign},
    http2::{over_http2, request},
    support::{Answer, Client, Gateway, Upstream, find, signed_head},
};

/// A gateway with one route for everything to `upstream`, and these keys under `[limits]`.
fn limited(upstream: &Upstream, keys: &str) -> Gateway {
    Gateway::with(&format!(
        "[limits]\n{keys}\n[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{}\"\n",
        upstream.origin()
    ))
}

/// A signed head for a body of `length` bytes of this type.
fn upload(kind: &str, length: usize) -> String {
    signed_head("POST", "/a", &format!("Content-Type: {kind}\r\nContent-Length: {length}\r\n"))
}

/// What a client does to hit a limit.
type Act<'a> = &'a dyn Fn(&mut Client);

const JSON: &str = "application/json";
const BINARY: &str = "application/octet-stream";

#[test]
fn every_limit_that_is_hit_is_counted_once_under_its_key() {
    let upstream = Upstream::serving(|stream, request| {
        let length = if request.starts_with(b"GET /large") { 64 * 1024 * 1024 } else { 2 };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'x'; length])).is_ok()
    });
    let gateway = limited(
        &upstream,
        "handshake_timeout = \"300ms\"\nhead_timeout = \"300ms\"\nbody_bytes = \"64KiB\"\nbody_timeout = \"300ms\"\n\
         stream_bytes = \"128KiB\"\nstream_window = \"300ms\"\ndiscard_bytes = \"1MiB\"\ndiscard_timeout = \"300ms\"\n\
         write_timeout = \"300ms\"\nbuffered_bytes = \"64KiB\"\ndrain = \"10ms\"",
    );
    let send = |bytes: String| move |client: &mut Client| client.send(&bytes);
    let half_head = send("GET / HTTP/1.1\r\nHost".into());
    let long_head = send(signed_head("GET", "/a", &format!("X: {}\r\n", "y".repeat(33 * 1024))));
    let many = send(signed_head("GET", "/a", &"X: y\r\n".repeat(101)));
    let large = send(upload(JSON, 70_000));
    let late = send(upload(JSON, 100) + "{");
    let too_much = send(upload(BINARY, 200_000));
    let slow = send(upload(BINARY, 100) + "x");
    let refused = upload(JSON, 4_000_000).replace("v1=", "v1=00");
    let flood = |client: &mut Client| {
        client.send(&refused);
        client.send(vec![b'x'; 3_000_000]);
    };
    let trickle = |client: &mut Client| {
        client.send(&refused);
        assert_eq!(client.answer().status, 401);
    };
    let unread = send(signed_head("GET", "/large", ""));
    let cases: [(Limit, Act<'_>); 9] = [
        (Limit::HeadTimeout, &half_head),
        (Limit::HeadBytes, &long_head),
        (Limit::Headers, &many),
        (Limit::BodyBytes, &large),
        (Limit::BodyTimeout, &late),
        (Limit::StreamBytes, &too_much),
        (Limit::StreamRate, &slow),
        (Limit::DiscardBytes, &flood),
        (Limit::WriteTimeout, &unread),
    ];
    for (limit, act) in cases {
        let mut client = gateway.connect();
        act(&mut client);
        assert_eq!(gateway.hits(limit, 1), 1, "{}", limit.name());
    }
    let silent = TcpStream::connect(gateway.address).unwrap();
    assert_eq!(gateway.hits(Limit::HandshakeTimeout, 1), 1);
    drop(silent);
    // Over HTTP/2, a client that agreed on it and asks nothing.
    over_http2(&gateway, async |mut sender| {
        while sender.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(gateway.hits(Limit::HeadTimeout, 2), 2);
    let before = gateway.hits(Limit::DiscardTimeout, 0);
    let mut client = gateway.connect();
    trickle(&mut client);
    assert!(gateway.hits(Limit::DiscardTimeout, before + 1) > before);
}

/// Asks until the answer is as wanted.
fn until(wanted: &str, ask: impl Fn() -> Answer, is_so: impl Fn(&Answer) -> bool) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let answer = ask();
        if is_so(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "no answer that is {wanted}, but {answer:?}");
    }
}

fn is_overloaded(answer: &Answer) -> bool {
    answer.code() == "overloaded"
}

/// What a client in a browser needs to read that it should come again.
fn assert_overloaded(answer: &Answer) {
    assert_eq!((answer.status, answer.code().as_str()), (503, "overloaded"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
}

#[test]
fn one_address_cannot_take_the_room_for_the_bodies_of_another() {
    let upstream = Upstream::ok();
    let keys = "body_bytes = \"64KiB\"\nbuffered_bytes_per_address = \"64KiB\"\nbuffered_bytes = \"256KiB\"";
    let gateway = limited(&upstream, keys);
    let ask_from = |address: [u8; 4]| {
        let mut client = gateway.connect_on(gateway.stream_from(address));
        client.send(upload(JSON, 20_000));
        client.send("x".repeat(20_000));
        client.answer()
    };
    let (greedy, other) = ([127, 0, 0, 2], [127, 0, 0, 3]);
    let mut held = gateway.connect_on(gateway.stream_from(greedy));
    held.send(upload(JSON, 60_000) + &"x".repeat(59_999));
    assert_overloaded(&until("overloaded", || ask_from(greedy), is_overloaded));
    assert_ne!(ask_from(other).status, 503);
    assert!(gateway.hits(Limit::BufferedBytesPerAddress, 1) >= 1);
    assert_eq!(gateway.hits(Limit::BufferedBytes, 0), 0);
    // All of it is given back.
    drop(held);
    until("served", || ask_from(greedy), |answer| answer.status != 503);
    for _ in 0..10 {
        assert_ne!(ask_from(greedy).status, 503);
    }
    assert!(upstream.requests().is_empty());
}

#[test]
fn all_addresses_together_have_a_bound_for_bodies() {
    let upstream = Upstream::ok();
    let gateway = limited(&upstream, "body_bytes = \"64KiB\"\nbuffered_bytes = \"64KiB\"");
    let mut held = gateway.connect_on(gateway.stream_from([127, 0, 0, 2]));
    held.send(upload(JSON, 60_000) + &"x".repeat(59_999));
    let ask = || gateway.ask(upload(JSON, 20_000) + &"x".repeat(20_000));
    assert_overloaded(&until("overloaded", ask, is_overloaded));
    assert!(gateway.hits(Limit::BufferedBytes, 1) >= 1);
    drop(held);
    until("served", ask, |answer| answer.status != 503);
}

/// An upstream that answers `/drip` with a part every 50 ms, without end, and nothing else at all.
fn endless() -> Upstream {
    Upstream::serving(|stream, request| {
        if !request.starts_with(b"GET /drip") {
            let _ = std::io::Read::read(stream, &mut [0]);
            return false;
        }
        let mut part = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while part.is_ok() {
            part = stream.write_all(b"4\r\npart\r\n");
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    })
}

#[test]
fn an_exchange_that_lasts_too_long_is_broken_off_and_recorded_so() {
    let upstream = endless();
    let gateway = limited(&upstream, "exchange_timeout = \"700ms\"");
    let began = Instant::now();
    let answer = gateway.ask(signed_head("GET", "/drip", ""));
    assert!(began.elapsed() >= Duration::from_millis(700));
    assert_eq!((answer.status, answer.complete), (200, false));
    assert!(find(&answer.body, b"part").is_some());
    let mut client = gateway.connect();
    client.send(signed_head("GET", "/silent", ""));
    assert!(client.is_closed());
    assert_eq!(gateway.hits(Limit::ExchangeTimeout, 2), 2);
    let records = gateway.records(2);
    let told = |at: usize| {
        let record = &records[at];
        (
            record["http.response.status_code"].as_u64(),
            record["countersign.reason"].as_str(),
            &record["countersign.complete"],
        )
    };
    assert_eq!(told(0), (Some(200), None, &false.into()));
    assert_eq!(told(1), (Some(503), Some("overloaded"), &false.into()));
}

#[test]
fn a_stream_that_lasts_too_long_is_reset_and_the_others_go_on() {
    let upstream = endless();
    let gateway = limited(&upstream, "exchange_timeout = \"700ms\"");
    over_http2(&gateway, async |mut sender| {
        let long = sender.send_request(request("GET", "/drip", "")).await.unwrap();
        assert_eq!(long.status(), 200);
        assert!(long.into_body().collect().await.is_err(), "it is reset");
        // The connection lives, and so does what began later.
        let next = sender.send_request(request("GET", "/drip", "")).await.unwrap();
        assert_eq!(next.status(), 200);
        assert!(sender.send_request(request("GET", "/silent", "")).await.is_err());
    });
    assert!(gateway.hits(Limit::ExchangeTimeout, 2) >= 2);
    let records = gateway.records(2);
    assert!(records.iter().all(|record| record["countersign.complete"] == false), "{records:?}");
    let silent = gateway.records(3).into_iter().find(|record| record["url.path"] == "/silent").unwrap();
    assert_eq!(silent["http.response.status_code"], 503);
}

#[test]
fn requests_in_turn_on_one_connection_each_have_the_whole_time() {
    let pause = Duration::from_secs(2);
    let upstream = Upstream::answering(move |request| {
        if request.starts_with(b"GET /slow") {
            std::thread::sleep(pause);
        }
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()
    });
    let gateway = limited(&upstream, "exchange_timeout = \"3s\"");
    let mut client = gateway.connect();
    client.send(signed_head("GET", "/a", ""));
    assert_eq!(client.answer().status, 200);
    std::thread::sleep(pause);
    client.send(signed_head("GET", "/slow", ""));
    assert_eq!(client.answer().status, 200);
    assert_eq!(gateway.hits(Limit::ExchangeTimeout, 0), 0);
}

#[test]
fn what_a_drain_cuts_is_counted() {
    let upstream = endless();
    let gateway = limited(&upstream, "drain = \"100ms\"");
    let mut client = gateway.connect();
    client.send(signed_head("GET", "/drip", ""));
    client.read_until(b"part");
    gateway.stop.drain();
    assert_eq!(gateway.hits(Limit::Drain, 1), 1);
    assert!(client.is_closed());
}

/// Asks for what never ends, and goes on once it has begun.
fn occupy(gateway: &Gateway, stream: TcpStream) -> Client {
    let mut client = gateway.connect_on(stream);
    client.send(signed_head("GET", "/drip", ""));
    client.read_until(b"part");
    client
}

/// An upstream that drips on `/drip` and answers everything else.
fn dripping() -> Upstream {
    Upstream::serving(|stream, request| {
        if !request.starts_with(b"GET /drip") {
            return stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok();
        }
        let mut part = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while part.is_ok() {
            part = stream.write_all(b"4\r\npart\r\n");
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    })
}

#[test]
fn the_connection_that_is_idle_for_longest_gives_way_to_a_new_one() {
    let upstream = dripping();
    let gateway = limited(&upstream, "connections = 4");
    let ask = |client: &mut Client| {
        client.send(signed_head("GET", "/a", ""));
        assert_eq!(client.answer().status, 200);
    };
    let _busy = occupy(&gateway, gateway.stream_from([127, 0, 0, 1]));
    let [mut first, mut second, mut third] = [(); 3].map(|()| {
        let mut client = gateway.connect();
        ask(&mut client);
        client
    });
    ask(&mut first);
    let mut newcomer = gateway.connect();
    ask(&mut newcomer);
    assert!(second.is_closed());
    ask(&mut first);
    ask(&mut third);
    ask(&mut newcomer);
    assert_eq!(gateway.hits(Limit::Connections, 1), 1);
    assert_eq!(upstream.requests().len(), 9);
}

#[test]
fn beyond_the_connections_a_client_is_told_so_and_nothing_of_it_goes_on() {
    let upstream = dripping();
    let gateway = limited(&upstream, "connections = 2");
    let busy = [(); 2].map(|()| occupy(&gateway, gateway.stream_from([127, 0, 0, 1])));
    let mut client = gateway.connect();
    client.send("OPTIONS /a HTTP/1.1\r\nHost: gw.test\r\nOrigin: null\r\nAccess-Control-Request-Method: GET\r\n\r\n");
    assert_eq!(client.answer().status, 204, "or the browser would not let the page read what follows");
    client.send(signed_head("GET", "/a", ""));
    let answer = client.answer();
    assert_overloaded(&answer);
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(client.is_closed());
    over_http2(&gateway, async |mut sender| {
        let answer = sender.send_request(request("GET", "/a", "")).await.unwrap();
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["access-control-allow-origin"], "*");
        let _ = answer.into_body().collect().await;
        // It is told to go away, and not cut in the end.
        let began = Instant::now();
        while sender.ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    });
    assert_eq!(upstream.requests().len(), 2);
    let refused = gateway.records(3);
    assert!(refused.iter().filter(|record| record["countersign.reason"] == "overloaded").count() >= 2);
    drop(busy);
    until("served", || gateway.ask(signed_head("GET", "/a", "")), |answer| answer.status == 200);
}

#[test]
fn beyond_those_who_are_told_connections_are_closed_at_once_and_a_silent_one_soon() {
    let upstream = dripping();
    let gateway = limited(&upstream, "connections = 1\nhandshake_timeout = \"1h\"");
    let _busy = occupy(&gateway, gateway.stream_from([127, 0, 0, 1]));
    let connect = || {
        let stream = TcpStream::connect(gateway.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        stream
    };
    let silent: Vec<_> = (0..8).map(|_| connect()).collect();
    let began = Instant::now();
    assert!(matches!(connect().read(&mut [0]), Ok(0) | Err(_)));
    let refused_after = began.elapsed();
    for mut stream in silent {
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    }
    let cut_after = began.elapsed();
    assert!(cut_after < Duration::from_secs(12), "{cut_after:?}");
    assert!(refused_after < cut_after / 2, "{refused_after:?} and {cut_after:?}");
}

#[test]
fn an_address_has_its_share_of_connections_and_others_have_theirs() {
    let upstream = dripping();
    let gateway = limited(&upstream, "connections_per_address = 2");
    let (greedy, other) = ([127, 0, 0, 2], [127, 0, 0, 3]);
    let ask_from = |address: [u8; 4]| {
        let mut client = gateway.connect_on(gateway.stream_from(address));
        client.send(signed_head("GET", "/a", ""));
        client.answer()
    };
    let held = [(); 2].map(|()| {
        let mut client = gateway.connect_on(gateway.stream_from(greedy));
        client.send(signed_head("GET", "/a", ""));
        assert_eq!(client.answer().status, 200);
        client
    });
    assert_overloaded(&ask_from(greedy));
    assert_eq!(ask_from(other).status, 200);
    assert_eq!(gateway.hits(Limit::ConnectionsPerAddress, 1), 1);
    assert_eq!(gateway.hits(Limit::Connections, 0), 0);
    assert_eq!(upstream.requests().len(), 3);
    drop(held);
    until("served", || ask_from(greedy), |answer| answer.status == 200);
}

/// The `soft` and hard bound of a process's file descriptors.
fn descriptors(process: u32) -> Vec<String> {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().skip(3).take(2).map(str::to_owned).collect()
}

#[test]
fn descriptors_are_raised_and_connections_lowered_to_what_they_carry() {
    let folder = Folder::new("http://127.0.0.1:9", "[limits]\nconnections = 500\n");
    let program = countersign();
    let mut command = Command::new("prlimit");
    command.args(["--nofile=64:512"]).arg(program.get_program()).args([
        "run",
        "--config",
        &folder.file("countersign.toml"),
    ]);
    let running = folder.started(command.stdout(Stdio::null()).stderr(Stdio::piped()));
    assert_eq!(descriptors(running.0.id()), ["512", "512"]);
    let said = running.drained();
    assert!(said.contains("`connections` is lowered") && said.contains("wanted=500"), "{said}");
    let folder = Folder::new("http://127.0.0.1:9", "[limits]\nconnections = 10\n");
    let said = folder.run(Stdio::null()).drained();
    assert!(!said.contains("lowered"), "{said}");
}

/// The time that a process has computed, in hundredths of a second.
fn computed(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Bounds the descriptors of a process that runs.
fn bound_descriptors(process: u32, count: u64) {
    let bounded = Command::new("prlimit").args([format!("--pid={process}"), format!("--nofile={count}:")]).status();
    assert!(bounded.unwrap().success());
}

#[test]
fn without_descriptors_accepting_pauses_and_goes_on_when_there_are_some() {
    let upstream = dripping();
    let folder = Folder::new(&upstream.origin(), "");
    let running = folder.run(Stdio::null());
    // It has opened all it needs.
    folder.ask("ok");
    let process = running.0.id();
    let open = fs::read_dir(format!("/proc/{process}/fd")).unwrap().count() as u64;
    bound_descriptors(process, open);
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", folder.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        stream
    };
    let waiting: Vec<_> = (0..20).map(|_| connect()).collect();
    let before = computed(process);
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(2));
    let (used, waited) = (computed(process) - before, began.elapsed());
    assert!(u128::from(used) * 10 < waited.as_millis() / 4, "it computed for {used}0 ms of {waited:?}");
    drop(waiting);
    bound_descriptors(process, open + 50);
    folder.ask("ok");
    let said = running.drained();
    assert_eq!(said.matches("accepting paused").count(), 1, "{said}");
}

/// The median time of an answer, of `count` on a connection each.
fn median(gateway: &Gateway, count: usize) -> Duration {
    let mut times: Vec<_> = (0..count)
        .map(|_| {
            let began = Instant::now();
            assert_eq!(gateway.ask(signed_head("GET", "/a", "")).status, 200);
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[count / 2]
}

#[test]
fn a_crowd_of_idle_and_slow_clients_slows_nobody_else() {
    let upstream = Upstream::serving(|stream, request| {
        let length = if request.starts_with(b"GET /large") { 4 * 1024 * 1024 } else { 2 };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'x'; length])).is_ok()
    });
    let gateway = limited(&upstream, "head_timeout = \"5m\"\nbody_timeout = \"5m\"\nwrite_timeout = \"5m\"");
    let alone = median(&gateway, 40);
    let from = |number: usize| gateway.stream_from([127, 0, 0, 2 + u8::try_from(number % 8).unwrap()]);
    let mut idle: Vec<_> = (0..300)
        .map(|number| {
            let mut client = gateway.connect_on(from(number));
            client.send(signed_head("GET", "/a", ""));
            assert_eq!(client.answer().status, 200);
            client
        })
        .collect();
    let slow: Vec<_> = (0..50)
        .map(|number| {
            let mut client = gateway.connect_on(from(number));
            client.send(match number % 3 {
                0 => "GET / HTTP/1.1\r\nHos".to_owned(),
                1 => upload(JSON, 100_000) + &"x".repeat(50_000),
                _ => signed_head("GET", "/large", ""),
            });
            client
        })
        .collect();
    let crowded = median(&gateway, 40);
    assert!(crowded < alone * 5 + Duration::from_millis(50), "{crowded:?} instead of {alone:?}");
    for client in &mut idle {
        client.send(signed_head("GET", "/a", ""));
        assert_eq!(client.answer().status, 200);
    }
    assert!(gateway.hits(Limit::Connections, 0) == 0 && slow.len() == 50);
}
