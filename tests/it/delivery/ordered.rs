//! One at a time for each object, in the order of acceptance.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use countersign::delivery::{Destination, Retry};

use super::bench::{Bench, answer, brought, destination};
use crate::support::Upstream;

fn ordered(service: &Upstream) -> Destination {
    Destination { ordered: true, ..destination("orders", service) }
}

/// The ids of the events that a service got, as they came.
fn events(service: &Upstream) -> Vec<String> {
    service.requests().iter().map(|request| brought(request).0).collect()
}

#[test]
fn events_of_one_object_wait_for_each_other_and_those_of_others_do_not() {
    let (now, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let highest = Arc::clone(&most);
    let service = Upstream::serving(move |stream, request| {
        let (event, _, attempt) = brought(request);
        highest.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(50));
        now.fetch_sub(1, Ordering::SeqCst);
        let status = if event == "evt_a1" && attempt < 4 { 500 } else { 200 };
        stream.write_all(&answer(status, "")).is_ok()
    });
    let mut bench = Bench::new();
    for id in ["a1", "a2", "b1", "a3", "b2"] {
        bench.accept(&format!("evt_{id}"), Some(&format!("in_{}", &id[..1])), &["orders"]);
    }
    for id in ["x", "y"] {
        bench.accept(&format!("evt_{id}"), None, &["orders"]);
    }
    bench.start(vec![ordered(&service)]);
    bench.until("orders", |figures| figures.delivered == 7);
    let events = events(&service);
    let of = |object: &str| -> Vec<&str> {
        events.iter().map(String::as_str).filter(|id| id.starts_with(&format!("evt_{object}"))).collect()
    };
    assert_eq!(of("a"), ["evt_a1", "evt_a1", "evt_a1", "evt_a1", "evt_a2", "evt_a3"]);
    assert_eq!(of("b"), ["evt_b1", "evt_b2"]);
    let place = |id: &str| events.iter().rposition(|other| other == id).unwrap();
    assert!(place("evt_b2") < place("evt_a1"), "another object was not held up: {events:?}");
    assert!(most.load(Ordering::SeqCst) > 1, "objects go beside each other");
}

#[test]
fn later_events_go_on_when_an_earlier_one_of_their_object_is_dead() {
    let service = Upstream::answering(|request| answer(if brought(request).0 == "evt_1" { 500 } else { 200 }, ""));
    let retry = Retry {
        first: Duration::from_millis(100),
        longest: Duration::from_millis(100),
        give_up: Duration::from_millis(700),
    };
    let mut bench = Bench::new();
    for number in 1..=3 {
        bench.accept(&format!("evt_{number}"), Some("in_1"), &["orders"]);
    }
    bench.start(vec![Destination { retry, ..ordered(&service) }]);
    let figures = bench.until("orders", |figures| figures.delivered == 2);
    assert_eq!(figures.dead, 1);
    let events = events(&service);
    let firsts = events.iter().take_while(|id| *id == "evt_1").count();
    assert!(firsts >= 2, "{events:?}");
    assert_eq!(events[firsts..], ["evt_2", "evt_3"]);
    let records = bench.seen("orders");
    let died = records.iter().position(|record| record["countersign.outcome"] == "dead").unwrap();
    assert_eq!(died + 1, firsts);
}
