//! One destination does not wait for another, and none is asked more than it can take.

use std::{
    collections::{HashMap, HashSet},
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use countersign::{
    delivery::{Destination, Retry},
    inbox::Store,
    upstream::Place,
};

use super::bench::{Bench, answer, brought, destination, eventually};
use crate::support::{Upstream, postgres::Server};

#[test]
fn a_dead_and_a_hanging_destination_hold_up_nobody_else() {
    const EVENTS: usize = 60;
    let came = Arc::new(Mutex::new(HashMap::new()));
    let noted = Arc::clone(&came);
    let live = Upstream::answering(move |request| {
        noted.lock().unwrap().insert(brought(request).0, Instant::now());
        answer(200, "")
    });
    let hanging = Upstream::serving(|stream, _| stream.read(&mut [0; 1]).is_err());
    let dead = {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut dead = destination("dead", &live);
        dead.upstream.servers[0].place = Place::Host(address.to_string().parse().unwrap());
        dead
    };
    let hanging = Destination { timeout: Duration::from_secs(30), concurrency: 4, ..destination("hanging", &hanging) };
    let bench = Bench::to(vec![dead, hanging, destination("live", &live)]);
    let mut accepted = HashMap::new();
    for number in 0..EVENTS {
        let id = format!("evt_{number}");
        bench.accept(&id, Some("in_1"), &["dead", "hanging", "live"]);
        accepted.insert(id, Instant::now());
    }
    bench.until("live", |figures| figures.delivered == EVENTS as u64);
    let came = came.lock().unwrap();
    let slowest = accepted.iter().map(|(id, accepted)| came[id].saturating_duration_since(*accepted)).max().unwrap();
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    let hanging = bench.figures("hanging");
    assert_eq!((hanging.delivering, hanging.pending), (4, EVENTS as u64 - 4), "only what is under way was taken");
    assert!(bench.seen("dead").len() > EVENTS / 2, "it was tried meanwhile");
    assert_eq!(bench.figures("dead").delivered, 0);
}

#[test]
fn so_many_attempts_at_one_time_and_no_more() {
    const EVENTS: usize = 30;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, highest) = (Arc::clone(&now), Arc::clone(&most));
    let service = Upstream::answering(move |_| {
        highest.fetch_max(counted.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(40));
        counted.fetch_sub(1, Ordering::SeqCst);
        answer(200, "")
    });
    let mut bench = Bench::new();
    for number in 0..EVENTS {
        bench.accept(&format!("evt_{number}"), None, &["orders"]);
    }
    bench.start(vec![Destination { concurrency: 3, ..destination("orders", &service) }]);
    // It holds over a reload, for what is under way counts.
    eventually(|| (service.requests().len() > EVENTS / 2).then_some(()));
    bench.change(vec![Destination { concurrency: 3, ..destination("orders", &service) }]);
    bench.until("orders", |figures| figures.delivered == EVENTS as u64);
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert_eq!(service.requests().len(), EVENTS);
}

#[test]
fn what_failed_together_does_not_come_again_together() {
    const EVENTS: usize = 40;
    let times = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&times);
    let service = Upstream::serving(move |stream, request| {
        let is_first = brought(request).2 == 1;
        if !is_first {
            noted.lock().unwrap().push(Instant::now());
        }
        stream.write_all(&answer(if is_first { 500 } else { 200 }, "")).is_ok()
    });
    let retry =
        Retry { first: Duration::from_secs(1), longest: Duration::from_secs(4), give_up: Duration::from_secs(3600) };
    let mut bench = Bench::new();
    for number in 0..EVENTS {
        bench.accept(&format!("evt_{number}"), None, &["orders"]);
    }
    bench.start(vec![Destination { retry, concurrency: EVENTS, ..destination("orders", &service) }]);
    bench.until("orders", |figures| figures.delivered == EVENTS as u64);
    let mut times = times.lock().unwrap().clone();
    times.sort();
    let spread = times[EVENTS - 1] - times[0];
    assert!(spread > Duration::from_millis(500), "{spread:?}");
}

#[test]
fn two_that_share_an_inbox_never_make_an_attempt_both() {
    const EVENTS: usize = 200;
    let Some(server) = Server::shared() else { return };
    let store = Store::Postgres(server.database("two_that_deliver"));
    let under_way = Mutex::new(HashSet::new());
    let service = Upstream::serving(move |stream, request| {
        let (event, delivery, attempt) = brought(request);
        let is_alone = under_way.lock().unwrap().insert(delivery.clone());
        std::thread::sleep(Duration::from_millis(5));
        under_way.lock().unwrap().remove(&delivery);
        let fails = attempt == 1 && event.ends_with(['1', '4', '7']);
        // 400 is said of nothing else here.
        let status = if !is_alone {
            400
        } else if fails {
            500
        } else {
            200
        };
        stream.write_all(&answer(status, "")).is_ok()
    });
    let ordered = || Destination { ordered: true, ..destination("orders", &service) };
    let mut gateways = [Bench::of(store.clone()), Bench::of(store)];
    for gateway in &mut gateways {
        gateway.start(vec![ordered()]);
    }
    for number in 0..EVENTS {
        gateways[number % 2].accept(&format!("evt_{number}"), Some(&format!("in_{}", number % 20)), &["orders"]);
    }
    gateways[0].until("orders", |figures| figures.delivered == EVENTS as u64);
    let records: Vec<_> = gateways.iter().map(|gateway| gateway.seen("orders")).collect();
    assert!(records.iter().all(|records| records.len() > EVENTS / 10), "both of them delivered");
    assert!(records.iter().flatten().all(|record| record["http.response.status_code"] != 400), "two at one time");
    let requests = service.requests();
    let attempts: HashSet<_> = requests.iter().map(|request| brought(request)).collect();
    assert_eq!(attempts.len(), requests.len(), "an attempt was made twice");
    // In the order of acceptance, whoever made the attempts.
    let mut last = HashMap::new();
    for request in &requests {
        let number: usize = brought(request).0.strip_prefix("evt_").unwrap().parse().unwrap();
        let before = last.insert(number % 20, number).unwrap_or_default();
        assert!(before <= number, "{number} came after {before}");
    }
}

/// Each look into the inbox is a transaction. A store that is slow must not make it one for each delivery.
#[test]
fn attempts_that_have_ended_make_room_together() {
    const WIDE: usize = 16;
    let (is_open, asked) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
    let opens = Arc::clone(&is_open);
    // The first so many are answered together, those that follow never.
    let service = Upstream::serving(move |stream, _| {
        if asked.fetch_add(1, Ordering::Relaxed) >= WIDE {
            return stream.read(&mut [0; 1]).is_err();
        }
        while !opens.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        stream.write_all(&answer(200, "")).is_ok()
    });
    let mut bench = Bench::new();
    for number in 0..2 * WIDE {
        bench.accept(&format!("evt_{number}"), None, &["wide"]);
    }
    let wide = Destination { timeout: Duration::from_secs(30), concurrency: WIDE, ..destination("wide", &service) };
    bench.start(vec![wide]);
    eventually(|| (service.requests().len() == WIDE).then_some(()));
    let store = rusqlite::Connection::open(bench.folder.path().join("inbox/inbox.sqlite")).unwrap();
    store.execute_batch("BEGIN IMMEDIATE").unwrap();
    is_open.store(true, Ordering::Relaxed);
    // All have ended, and wait to be noted.
    bench.attempts("wide", WIDE);
    store.execute_batch("COMMIT").unwrap();
    eventually(|| (service.requests().len() == 2 * WIDE).then_some(()));
    // What is taken in one transaction has a lease that ends at one moment.
    let leases = "SELECT count(DISTINCT due) FROM deliveries WHERE state = 1";
    let leases: u32 = store.query_row(leases, [], |row| row.get(0)).unwrap();
    assert!((leases as usize) < WIDE / 2, "{leases} looks for {WIDE} deliveries");
}
