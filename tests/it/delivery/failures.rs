//! What counts as a failure, what is said of it, and what follows.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use countersign::delivery::{Destination, Retry};

use super::bench::{Bench, answer, destination, eventually, failing_first, numbers};
use crate::support::Upstream;

const SHORT: Duration = Duration::from_millis(400);

/// What the first attempt is said to have failed of, at a service that answers it with these bytes.
#[track_caller]
fn failed(bytes: Vec<u8>, reason: &str, status: Option<u64>) {
    let service = failing_first(vec![bytes]);
    let bench = Bench::to(vec![Destination { timeout: SHORT, ..destination("orders", &service) }]);
    bench.accept("evt_1", None, &["orders"]);
    let attempts = bench.attempts("orders", 2);
    assert_eq!(attempts[0]["countersign.reason"], reason);
    assert_eq!(attempts[0]["http.response.status_code"].as_u64(), status, "{reason}");
    assert_eq!(attempts[0]["countersign.outcome"], "retry", "{reason}");
    assert_eq!(attempts[1]["countersign.outcome"], "delivered", "{reason}");
    bench.until("orders", |figures| figures.delivered == 1);
    assert_eq!(numbers(&service), [1, 2], "{reason}");
}

#[test]
fn whatever_is_no_2xx_is_tried_again() {
    for status in [300, 304, 400, 404, 410, 429, 500, 503, 599] {
        let redirect = if status < 400 { "; a redirect is not followed" } else { "" };
        failed(answer(status, ""), &format!("status {status}{redirect}"), Some(status.into()));
    }
}

#[test]
fn an_answer_whose_head_breaks_off_is_tried_again() {
    failed(Vec::new(), "the connection was closed before an answer", None);
    failed(b"HTTP/1.1 200 O".to_vec(), "the answer broke off", None);
    failed(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(), "the answer is not valid HTTP", None);
}

#[test]
fn a_2xx_is_a_success_whatever_it_is() {
    let answers = [201, 202, 204, 299].map(|status| answer(status, ""));
    let service = failing_first(answers.to_vec());
    let bench = Bench::to(vec![destination("orders", &service)]);
    for number in 1..=4 {
        bench.accept(&format!("evt_{number}"), None, &["orders"]);
        assert_eq!(bench.attempts("orders", number)[number - 1]["countersign.outcome"], "delivered");
    }
}

#[test]
fn a_redirect_is_not_followed() {
    let elsewhere = Upstream::ok();
    let location = format!("Location: {}/\r\n", elsewhere.origin());
    for status in [301, 302, 303, 307, 308] {
        let service = failing_first(vec![answer(status, &location)]);
        let bench = Bench::to(vec![destination("orders", &service)]);
        bench.accept("evt_1", None, &["orders"]);
        assert_eq!(bench.attempts("orders", 2)[0]["http.response.status_code"], status);
    }
    assert!(elsewhere.requests().is_empty());
}

/// A service that begins its first answer with these bytes and then says nothing more.
fn hanging_behind(begun: &'static [u8]) -> Upstream {
    let turn = AtomicUsize::new(0);
    Upstream::serving(move |stream, _| {
        if turn.fetch_add(1, Ordering::Relaxed) > 0 {
            return stream.write_all(&answer(200, "")).is_ok();
        }
        let _ = stream.write_all(begun);
        // Until the gateway gives up.
        let _ = stream.read(&mut [0; 1]);
        false
    })
}

#[test]
fn a_destination_that_hangs_before_its_answer_is_late() {
    for begun in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Len"] {
        let service = hanging_behind(begun);
        let bench = Bench::to(vec![Destination { timeout: SHORT, ..destination("orders", &service) }]);
        bench.accept("evt_1", None, &["orders"]);
        let first = &bench.attempts("orders", 2)[0];
        assert_eq!(first["countersign.reason"], "timed out after 400ms");
        let took = first["countersign.duration_ms"].as_f64().unwrap();
        assert!((400.0..1500.0).contains(&took), "{took}");
    }
}

#[test]
fn the_head_of_an_answer_decides_whatever_its_body_does() {
    const BEGUN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc";
    for service in [failing_first(vec![BEGUN.to_vec()]), hanging_behind(BEGUN)] {
        let bench = Bench::to(vec![destination("orders", &service)]);
        bench.accept("evt_1", None, &["orders"]);
        eventually(|| (service.requests().len() == 1).then_some(()));
        let answered = Instant::now();
        bench.until("orders", |figures| figures.delivered == 1);
        assert!(answered.elapsed() < Duration::from_secs(1), "{:?}", answered.elapsed());
        // The place is free again.
        bench.accept("evt_2", None, &["orders"]);
        bench.until("orders", |figures| figures.delivered == 2);
        assert_eq!(numbers(&service), [1, 1]);
        assert!(bench.attempts("orders", 2).iter().all(|record| record["countersign.outcome"] == "delivered"));
    }
    let busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 2\r\nContent-Length: 10\r\n\r\nabc";
    let service = hanging_behind(busy);
    let retry = Retry { longest: Duration::from_secs(60), ..destination("orders", &service).retry };
    let bench = Bench::to(vec![Destination { retry, timeout: SHORT, ..destination("orders", &service) }]);
    let began = Instant::now();
    bench.accept("evt_1", None, &["orders"]);
    assert_eq!(bench.attempts("orders", 2)[0]["countersign.reason"], "status 503");
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn an_answer_that_ends_soon_keeps_its_connection_and_one_that_does_not_closes_it() {
    for (pause, kept) in [(100, 1), (2000, 2)] {
        let ports = Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new()));
        let seen = Arc::clone(&ports);
        let service = Upstream::serving(move |stream, _| {
            seen.lock().unwrap().insert(stream.peer_addr().unwrap().port());
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc");
            std::thread::sleep(Duration::from_millis(pause));
            stream.write_all(b"def").is_ok()
        });
        let one = Destination { concurrency: 1, ..destination("orders", &service) };
        let bench = Bench::to(vec![one]);
        for event in ["evt_1", "evt_2"] {
            bench.accept(event, None, &["orders"]);
        }
        bench.until("orders", |figures| figures.delivered == 2);
        assert_eq!(ports.lock().unwrap().len(), kept, "{pause} ms");
    }
}

#[test]
fn a_destination_that_refuses_connections_is_tried_until_it_is_there() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let service = Upstream::ok();
    let mut refusing = destination("orders", &service);
    refusing.upstream.servers[0].place = countersign::upstream::Place::Host(address.to_string().parse().unwrap());
    let bench = Bench::to(vec![refusing]);
    bench.accept("evt_1", None, &["orders"]);
    let first = &bench.attempts("orders", 2)[0];
    assert_eq!(first["countersign.reason"], "connect: connection refused");
    assert!(first.get("http.response.status_code").is_none());
    let listener = TcpListener::bind(address).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut got = Vec::new();
    assert!(Upstream::read_until(&mut stream, &mut got, b"\r\n\r\n"));
    stream.write_all(&answer(200, "")).unwrap();
    bench.until("orders", |figures| figures.delivered == 1);
}

#[test]
fn an_answer_without_an_end_is_not_read_to_it() {
    let (written, counted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&written);
    let service = Upstream::serving(move |stream, _| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while stream.write_all(&[b'x'; 4096]).is_ok() {
            count.fetch_add(4096, Ordering::Relaxed);
        }
        false
    });
    let bench = Bench::to(vec![destination("orders", &service)]);
    bench.accept("evt_1", None, &["orders"]);
    assert_eq!(bench.attempts("orders", 1)[0]["countersign.outcome"], "delivered");
    // What the sockets hold comes on top of what is read.
    eventually(|| {
        let written = written.load(Ordering::Relaxed);
        (counted.swap(written, Ordering::Relaxed) == written).then_some(())
    });
    assert!(written.load(Ordering::Relaxed) < 16 * 1024 * 1024);
    assert_eq!(service.requests().len(), 1);
}

/// The time between the first and the second attempt at a service that asks for this pause.
fn pause(retry_after: &str, longest: Duration) -> Duration {
    let times = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = Arc::clone(&times);
    let asks = answer(503, &format!("Retry-After: {retry_after}\r\n"));
    let service = Upstream::answering(move |_| {
        let mut times = noted.lock().unwrap();
        times.push(Instant::now());
        if times.len() == 1 { asks.clone() } else { answer(200, "") }
    });
    let retry = Retry { first: Duration::from_millis(10), longest, give_up: Duration::from_secs(3600) };
    let bench = Bench::to(vec![Destination { retry, ..destination("orders", &service) }]);
    bench.accept("evt_1", None, &["orders"]);
    bench.until("orders", |figures| figures.delivered == 1);
    let times = times.lock().unwrap();
    times[1] - times[0]
}

#[test]
fn retry_after_is_honoured_up_to_the_longest_pause() {
    let longest = Duration::from_secs(60);
    assert!(pause("0", longest) < Duration::from_secs(1));
    let paused = pause("2", longest);
    assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&paused), "{paused:?}");
    let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(3));
    let paused = pause(&date, longest);
    assert!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&paused), "{paused:?}");
    let paused = pause("3600", Duration::from_secs(1));
    assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&paused), "{paused:?}");
}

#[test]
fn what_is_given_up_is_dead_with_its_reason_and_recorded() {
    let service = Upstream::answering(|_| answer(500, ""));
    let retry = Retry {
        first: Duration::from_millis(100),
        longest: Duration::from_millis(200),
        give_up: Duration::from_millis(900),
    };
    let mut bench = Bench::to(vec![Destination { retry, ..destination("orders", &service) }]);
    bench.accept("evt_1", None, &["orders"]);
    let figures = bench.until("orders", |figures| figures.dead == 1);
    assert_eq!((figures.pending, figures.delivering, figures.delivered), (0, 0, 0));
    let attempts = bench.seen("orders");
    let (last, before) = attempts.split_last().unwrap();
    assert!(before.len() >= 2 && before.iter().all(|record| record["countersign.outcome"] == "retry"), "{before:?}");
    let reason = "status 500; given up, for the next attempt would be later than give_up allows";
    assert_eq!((&last["countersign.outcome"], &last["countersign.reason"]), (&"dead".into(), &reason.into()));
    // Longer than a look that nothing called for.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(service.requests().len(), attempts.len(), "no attempt after death");
    let audited = bench.audited("delivery");
    assert_eq!(audited.len(), 1);
    for (name, value) in [
        ("outcome", "dead"),
        ("webhook", "/stripe"),
        ("event", "evt_1"),
        ("type", "invoice.paid"),
        ("destination", "orders"),
        ("reason", reason),
        ("config", "of-the-configuration"),
    ] {
        assert_eq!(audited[0][name], value, "{name}");
    }
    assert_eq!(audited[0]["attempts"], attempts.len());
    assert_eq!(audited[0]["delivery"], last["countersign.delivery"]);
}

#[test]
fn what_is_overdue_is_tried_once_more_and_an_attempt_under_way_may_finish() {
    let service = failing_first(Vec::new());
    let retry = Retry {
        first: Duration::from_millis(10),
        longest: Duration::from_millis(10),
        give_up: Duration::from_millis(50),
    };
    let mut bench = Bench::new();
    bench.accept("evt_1", None, &["orders"]);
    std::thread::sleep(Duration::from_millis(300));
    bench.start(vec![Destination { retry, ..destination("orders", &service) }]);
    bench.until("orders", |figures| figures.delivered == 1);
    assert_eq!(numbers(&service), [1]);
}

#[test]
fn an_end_that_the_store_cannot_note_is_noted_when_it_can_and_nothing_is_sent_twice() {
    let (answering, may_answer) = std::sync::mpsc::channel::<()>();
    let may_answer = std::sync::Mutex::new(may_answer);
    let service = Upstream::serving(move |stream, _| {
        let _ = may_answer.lock().unwrap().recv();
        stream.write_all(&answer(200, "")).is_ok()
    });
    let bench = Bench::to(vec![destination("orders", &service)]);
    bench.accept("evt_1", None, &["orders"]);
    eventually(|| (service.requests().len() == 1).then_some(()));
    let path = bench.folder.path().join("inbox/inbox.sqlite");
    let other = rusqlite::Connection::open(path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    answering.send(()).unwrap();
    bench.attempts("orders", 1);
    // Longer than the store waits for a lock.
    std::thread::sleep(Duration::from_secs(7));
    other.execute_batch("ROLLBACK").unwrap();
    bench.until("orders", |figures| figures.delivered == 1);
    assert_eq!(numbers(&service), [1]);
}
