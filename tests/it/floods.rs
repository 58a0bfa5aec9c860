//! Clients that send too much, or too slowly, or leave: they are cut or bounded, and nobody else waits for them.

use std::{
    io::{Read as _, Write as _},
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

use crate::support::{Gateway, Upstream, identity_payload, signed_body, signed_head};

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
