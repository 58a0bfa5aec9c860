//! How kept events go to the services: over a real inbox, against real services.

use std::{collections::BTreeSet, time::Duration};

use countersign::{audit::OnError, signature::Signature, upstream::Settings};
use serde_json::json;

use crate::{
    documents::repository,
    support::{Upstream, find, header, headers},
};

mod apart;
mod bench;
mod failures;
mod libraries;
mod ordered;

use bench::{BODY, Bench, SECRET, answer, arrived, brought, destination, eventually, key, numbers};

#[test]
fn an_event_goes_out_byte_for_byte_with_the_headers_of_the_reference_and_no_others() {
    let service = Upstream::ok();
    let bench = Bench::to(vec![destination("orders", &service)]);
    bench.accept("evt_1", Some("in_1"), &["orders"]);
    let attempts = bench.attempts("orders", 1);
    let (head, body) = service.only();
    assert_eq!(body, BODY.as_bytes());
    assert_eq!(head.lines().next(), Some("POST /events?from=stripe HTTP/1.1"));
    let page = repository("docs/reference/headers.md");
    let section = page.split_once("## What a destination of webhooks gets").unwrap().1;
    let section = section.split("\n## ").next().unwrap();
    let documented: BTreeSet<String> = section
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split('`').next()?.to_ascii_lowercase()))
        .collect();
    let sent: Vec<String> =
        head.lines().skip(1).filter_map(|line| Some(line.split_once(':')?.0.to_ascii_lowercase())).collect();
    assert_eq!(sent.iter().cloned().collect::<BTreeSet<_>>(), documented);
    assert_eq!(sent.len(), documented.len(), "each of them once: {head}");
    for (name, value) in [
        ("content-type", "application/json; charset=utf-8"),
        ("user-agent", concat!("Countersign/", env!("CARGO_PKG_VERSION"))),
        ("countersign-event", "evt_1"),
        ("countersign-attempt", "1"),
    ] {
        assert_eq!(header(&head, name), Some(value), "{name}");
    }
    assert_eq!(header(&head, "countersign-delivery"), attempts[0]["countersign.delivery"].as_str());
    let trace: Vec<_> = header(&head, "traceparent").unwrap().split('-').map(str::len).collect();
    assert_eq!(trace, [2, 32, 16, 2]);
    let signature = Signature::parse(header(&head, "stripe-signature").unwrap().as_bytes()).unwrap();
    assert_eq!(signature.matching_key(&[key(SECRET)], &body), Some(0));
    assert_eq!(signature.matching_key(&[key("whsec_another")], &body), None);
}

#[test]
fn what_is_not_there_is_not_sent() {
    let service = Upstream::ok();
    let bench = Bench::to(vec![countersign::delivery::Destination { key: None, ..destination("orders", &service) }]);
    bench.accept_as(countersign::inbox::Arrived { content_type: None, ..arrived("evt_1", None, &["orders"]) });
    bench.attempts("orders", 1);
    let (head, _) = service.only();
    for name in ["content-type", "stripe-signature"] {
        assert_eq!(headers(&head, name).count(), 0, "{name}: {head}");
    }
}

#[test]
fn an_attempt_s_record_has_the_fields_of_the_reference() {
    let service = bench::failing_first(vec![answer(500, "")]);
    let bench = Bench::to(vec![destination("orders", &service)]);
    let mut event = arrived("evt_1", Some("in_1"), &["orders"]);
    event.event.account = Some("acct_1".into());
    bench.accept_as(event);
    let attempts = bench.attempts("orders", 2);
    let written: BTreeSet<String> =
        attempts.iter().flat_map(|record| record.as_object().unwrap().keys().cloned()).collect();
    let page = repository("docs/reference/access-log.md");
    let section = page.split_once("## An attempt to deliver an event").unwrap().1;
    let described: BTreeSet<String> = section
        .split("\n## ")
        .next()
        .unwrap()
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned()))
        .collect();
    assert_eq!(written, described);
    let [first, second] = &attempts[..] else { panic!("{attempts:?}") };
    for (record, number, status, outcome, reason) in
        [(first, 1, 500, "retry", json!("status 500")), (second, 2, 200, "delivered", json!(null))]
    {
        assert_eq!(record["countersign.attempt"], number);
        assert_eq!(record["http.response.status_code"], status);
        assert_eq!(record["countersign.outcome"], outcome);
        assert_eq!(record["countersign.reason"], reason);
        assert_eq!(record["countersign.webhook"], "/stripe");
        assert_eq!(record["countersign.event"], "evt_1");
        assert_eq!(record["countersign.event_type"], "invoice.paid");
        assert_eq!(record["countersign.account"], "acct_1");
        assert_eq!(record["countersign.config"], "of-the-configuration");
        assert_eq!(record["http.request.body.size"], BODY.len());
    }
    assert_eq!(first["countersign.delivery"], second["countersign.delivery"]);
    let counted = bench.deliverer().gauge().figures().attempts;
    let counted: Vec<_> = counted.iter().map(|(name, outcome, count)| (&**name, outcome.as_str(), *count)).collect();
    assert_eq!(counted, [("orders", "delivered", 1), ("orders", "retry", 1), ("orders", "dead", 0)]);
}

#[test]
fn an_attempt_that_was_answered_is_noted_within_a_second() {
    let service = Upstream::ok();
    let bench = Bench::to(vec![destination("orders", &service)]);
    bench.accept("evt_1", None, &["orders"]);
    eventually(|| (service.requests().len() == 1).then_some(()));
    let answered = std::time::Instant::now();
    bench.until("orders", |figures| figures.delivered == 1);
    assert!(answered.elapsed() < Duration::from_secs(1), "{:?}", answered.elapsed());
}

#[test]
fn whoever_is_told_of_an_event_looks_at_once_and_whoever_is_not_within_a_second_or_so() {
    let service = Upstream::ok();
    let bench = Bench::to(vec![destination("orders", &service)]);
    let began = std::time::Instant::now();
    for number in 1..=8 {
        bench.accept(&format!("evt_{number}"), None, &["orders"]);
        eventually(|| (service.requests().len() == number).then_some(()));
    }
    // Untold, each would wait for a second.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    // As another gateway would, which shares the inbox.
    let mut other = Bench::new();
    other.inbox = bench.inbox.clone();
    other.accept("evt_of_another", None, &["orders"]);
    eventually(|| (service.requests().len() == 9).then_some(()));
}

#[test]
fn numbers_go_on_over_a_restart_and_the_delivery_stays_the_same() {
    let service = bench::failing_first(vec![answer(500, ""), answer(500, ""), answer(500, "")]);
    let slowly = |first| countersign::delivery::Destination {
        retry: countersign::delivery::Retry {
            first: Duration::from_millis(first),
            longest: Duration::from_millis(first),
            give_up: Duration::from_secs(3600),
        },
        ..destination("orders", &service)
    };
    let mut bench = Bench::to(vec![slowly(700)]);
    bench.accept("evt_1", None, &["orders"]);
    for attempts in 1..=3 {
        bench.attempts("orders", attempts);
        bench.until("orders", |figures| figures.pending == 1);
        bench.crash();
        bench.start(vec![slowly(700)]);
    }
    bench.until("orders", |figures| figures.delivered == 1);
    assert_eq!(numbers(&service), [1, 2, 3, 4]);
    let deliveries: BTreeSet<_> = service.requests().iter().map(|request| brought(request).1).collect();
    assert_eq!(deliveries.len(), 1);
}

#[test]
fn what_a_drain_finds_under_way_may_finish_and_nothing_else_begins() {
    let service = Upstream::serving(|stream, _| {
        std::thread::sleep(Duration::from_millis(600));
        std::io::Write::write_all(stream, &answer(200, "")).is_ok()
    });
    let one = countersign::delivery::Destination { concurrency: 1, ..destination("orders", &service) };
    let mut bench = Bench::to(vec![one]);
    bench.accept("evt_1", None, &["orders"]);
    eventually(|| (service.requests().len() == 1).then_some(()));
    bench.accept("evt_2", None, &["orders"]);
    let took = bench.finish(Duration::from_secs(15));
    assert!(took < Duration::from_secs(10), "{took:?}");
    let figures = bench.figures("orders");
    assert_eq!((figures.delivered, figures.pending, figures.delivering), (1, 1, 0));
    assert_eq!(service.requests().len(), 1);
}

#[test]
fn what_outlasts_the_patience_of_a_drain_is_cut_short_and_made_again_soon() {
    let is_hanging = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let hangs = std::sync::Arc::clone(&is_hanging);
    let service = Upstream::serving(move |stream, _| {
        if hangs.load(std::sync::atomic::Ordering::Relaxed) {
            let _ = std::io::Read::read(stream, &mut [0; 1]);
            return false;
        }
        std::io::Write::write_all(stream, &answer(200, "")).is_ok()
    });
    let mut bench = Bench::to(vec![destination("orders", &service)]);
    bench.accept("evt_1", None, &["orders"]);
    eventually(|| (service.requests().len() == 1).then_some(()));
    let took = bench.finish(Duration::from_millis(300));
    assert!(took < Duration::from_secs(3), "{took:?}");
    let record = &bench.attempts("orders", 1)[0];
    assert_eq!(record["countersign.reason"], "cut short, for the gateway stopped");
    is_hanging.store(false, std::sync::atomic::Ordering::Relaxed);
    let again = std::time::Instant::now();
    bench.start(vec![destination("orders", &service)]);
    bench.until("orders", |figures| figures.delivered == 1);
    assert!(again.elapsed() < Duration::from_secs(5), "it waited for its lease: {:?}", again.elapsed());
    assert_eq!(numbers(&service), [1, 2]);
}

#[test]
fn a_reload_keeps_connections_and_attempts_lets_go_of_some_and_begins_others() {
    let connections = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (ports, counted) = (std::sync::Mutex::new(BTreeSet::new()), std::sync::Arc::clone(&connections));
    let kept = Upstream::serving(move |stream, _| {
        let is_new = ports.lock().unwrap().insert(stream.peer_addr().unwrap().port());
        counted.fetch_add(usize::from(is_new), std::sync::atomic::Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(300));
        std::io::Write::write_all(stream, &answer(200, "")).is_ok()
    });
    let (gone, new) = (Upstream::ok(), Upstream::ok());
    let bench = Bench::to(vec![destination("kept", &kept), destination("gone", &gone)]);
    bench.accept("evt_1", None, &["kept", "gone"]);
    eventually(|| (kept.requests().len() == 1 && gone.requests().len() == 1).then_some(()));
    let rolled = countersign::delivery::Destination { key: Some(key("whsec_rolled")), ..destination("kept", &kept) };
    bench.change(vec![rolled, destination("new", &new)]);
    bench.attempts("kept", 1);
    bench.accept("evt_2", None, &["kept", "gone", "new"]);
    let attempts = bench.attempts("kept", 2);
    bench.attempts("new", 1);
    assert_eq!(attempts[0]["countersign.outcome"], "delivered", "it was under way");
    assert_eq!(attempts[1]["countersign.config"], "of-another");
    assert_eq!(connections.load(std::sync::atomic::Ordering::Relaxed), 1, "the connection was kept");
    for (request, secret) in kept.requests().iter().zip([SECRET, "whsec_rolled"]) {
        let end = find(request, b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&request[..end]).into_owned();
        let signature = Signature::parse(header(&head, "stripe-signature").unwrap().as_bytes()).unwrap();
        assert_eq!(signature.matching_key(&[key(secret)], &request[end..]), Some(0), "{secret}");
    }
    // Longer than a look that nothing called for.
    std::thread::sleep(Duration::from_millis(1500));
    let figures = bench.figures("gone");
    assert_eq!((gone.requests().len(), figures.delivered, figures.pending), (1, 1, 1));
    // It comes back, and what waited for it is there.
    bench.change(vec![destination("gone", &gone)]);
    bench.until("gone", |figures| figures.delivered == 2);
}

#[test]
fn what_was_done_by_hand_is_recorded_and_forgotten_by_the_inbox() {
    let mut bench = Bench::new();
    let store = rusqlite::Connection::open(bench.folder.path().join("inbox/inbox.sqlite")).unwrap();
    let act = "INSERT INTO acts (at, act, by, delivery, event, destination) VALUES (1790000000000000, 'retry', 'ann', ?, 'evt_1', 'orders')";
    for number in 1..=120 {
        store.execute(act, [format!("dlv_{number}")]).unwrap();
    }
    bench.start(Vec::new());
    let left = || store.query_row("SELECT count(*) FROM acts", [], |row| row.get::<_, i64>(0)).unwrap();
    eventually(|| (left() == 0).then_some(()));
    let audited = bench.audited("inbox");
    let deliveries: Vec<_> = audited.iter().map(|record| record["delivery"].as_str().unwrap().to_owned()).collect();
    assert_eq!(deliveries, (1..=120).map(|number| format!("dlv_{number}")).collect::<Vec<_>>());
    for (name, value) in [("act", "retry"), ("by", "ann"), ("event", "evt_1"), ("destination", "orders")] {
        assert_eq!(audited[0][name], value, "{name}");
    }
    assert!(audited[0]["at"].as_str().unwrap().starts_with("2026-"), "{}", audited[0]);
}

/// Notes something done by hand.
fn act(store: &rusqlite::Connection, number: i64, delivery: &str) {
    let act = "INSERT INTO acts (number, at, act, by, delivery, event, destination) VALUES (?, 1790000000000000, 'retry', 'ann', ?, 'evt_1', 'orders')";
    store.execute(act, rusqlite::params![number, delivery]).unwrap();
}

#[test]
fn what_was_done_by_hand_is_remembered_until_the_audit_log_has_it() {
    for on_error in [OnError::Refuse, OnError::Serve] {
        let mut bench = Bench::new();
        let store = rusqlite::Connection::open(bench.folder.path().join("inbox/inbox.sqlite")).unwrap();
        let left = || store.query_row("SELECT count(*) FROM acts", [], |row| row.get::<_, i64>(0)).unwrap();
        act(&store, 1, "dlv_before");
        bench.start(Vec::new());
        eventually(|| (left() == 0).then_some(()));
        let in_the_way = bench.break_audit(on_error);
        act(&store, 1, "dlv_1");
        act(&store, 2, "dlv_2");
        // Longer than it takes to look, and to write what can be written.
        std::thread::sleep(Duration::from_secs(6));
        assert_eq!(left(), 2, "{on_error:?}");
        for path in in_the_way {
            std::fs::remove_file(path).unwrap();
        }
        eventually(|| (left() == 0).then_some(()));
        let audited = bench.audited("inbox");
        let deliveries: Vec<_> = audited.iter().map(|record| record["delivery"].as_str().unwrap().to_owned()).collect();
        let mut sorted = deliveries.clone();
        sorted.sort();
        assert_eq!(sorted, ["dlv_1", "dlv_2", "dlv_before"], "{on_error:?}: {deliveries:?}");
    }
}

#[test]
fn what_was_done_by_hand_is_new_where_numbers_begin_anew() {
    let mut bench = Bench::new();
    let store = rusqlite::Connection::open(bench.folder.path().join("inbox/inbox.sqlite")).unwrap();
    let left = || store.query_row("SELECT count(*) FROM acts", [], |row| row.get::<_, i64>(0)).unwrap();
    bench.start(Vec::new());
    for (number, delivery) in [(70, "dlv_1"), (3, "dlv_2"), (3, "dlv_3")] {
        act(&store, number, delivery);
        eventually(|| (left() == 0).then_some(()));
    }
    // Another one in the place of one that is recorded and not forgotten yet.
    let before = bench.recorded();
    act(&store, 3, "dlv_4");
    eventually(|| (bench.recorded() > before).then_some(()));
    store.execute("UPDATE acts SET delivery = 'dlv_5'", []).unwrap();
    eventually(|| (left() == 0).then_some(()));
    assert_eq!(bench.audited("inbox").len(), 5);
}

#[test]
fn more_deliveries_than_are_taken_at_once_are_begun_at_once() {
    let service = Upstream::serving(|stream, _| {
        let _ = std::io::Read::read(stream, &mut [0; 1]);
        false
    });
    let mut bench = Bench::new();
    for number in 1..=80 {
        bench.accept(&format!("evt_{number}"), None, &["orders"]);
    }
    let began = std::time::Instant::now();
    bench.start(vec![countersign::delivery::Destination { concurrency: 70, ..destination("orders", &service) }]);
    eventually(|| (service.requests().len() == 70).then_some(()));
    // Three looks without a pause between them.
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(service.requests().len(), 70);
}

#[test]
fn what_is_older_than_the_retention_is_dropped() {
    let service = Upstream::ok();
    let bench = Bench::to(vec![destination("orders", &service)]);
    bench.accept("evt_1", None, &["orders"]);
    bench.until("orders", |figures| figures.delivered == 1);
    let store = rusqlite::Connection::open(bench.folder.path().join("inbox/inbox.sqlite")).unwrap();
    let bodies = || store.query_row("SELECT count(*) FROM bodies", [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(bodies(), 1);
    bench.deliverer().change(vec![destination("orders", &service)], Duration::ZERO, "of-another".into());
    eventually(|| (bodies() == 0).then_some(()));
}

#[test]
fn whoever_runs_the_gateway_is_told_of_deliveries_that_wait_for_nobody() {
    let service = Upstream::ok();
    let webhook = "[[webhooks]]\npath = \"/stripe\"\nsecrets = [{ file = \"stripe.whsec\" }]\n";
    let to = format!("[[webhooks.deliver]]\nname = \"named\"\nto = \"{}/\"\n", service.origin());
    let folder = crate::commands::Folder::new(&service.origin(), &format!("{webhook}{to}"));
    std::fs::write(folder.file("stripe.whsec"), SECRET).unwrap();
    bench::keep_in(folder.file("state").as_ref(), arrived("evt_1", None, &["named", "not_named"]));
    let mut running = folder.run(std::process::Stdio::null());
    let said = std::io::BufReader::new(running.0.stderr.take().unwrap());
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        std::io::BufRead::lines(said).map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    let told = eventually(|| lines.try_recv().ok().filter(|line| line.contains("that is not in the configuration")));
    assert!(told.contains("destination=\"not_named\"") && told.contains("deliveries=1"), "{told}");
    eventually(|| (service.requests().len() == 1).then_some(()));
}

#[test]
fn figures_of_the_inbox_come_when_somebody_asks() {
    let service = Upstream::ok();
    let mut bench = Bench::new();
    bench.accept("evt_1", None, &["orders"]);
    bench.accept("evt_2", None, &["nobody"]);
    bench.start(vec![destination("orders", &service)]);
    let gauge = bench.deliverer().gauge();
    let told = eventually(|| gauge.figures().deliveries.filter(|all| all.iter().any(|one| one.delivered == 1)));
    let of = |name: &str| told.iter().find(|one| one.destination == name).cloned().unwrap();
    assert_eq!((of("orders").pending, of("nobody").pending), (0, 1));
    assert!(of("nobody").oldest_pending.is_some() && of("orders").oldest_pending.is_none());
}

#[test]
fn an_https_destination_is_verified_and_shown_our_certificate() {
    let (authority, stranger) = (crate::certificates::Authority::new(), crate::certificates::Authority::new());
    let service = Upstream::behind(libraries::demanding(&authority));
    let origin = |destination: &countersign::delivery::Destination| {
        let mut origin = destination.upstream.servers[0].clone();
        origin.protocol = countersign::upstream::Protocol::Https;
        vec![origin]
    };
    let with = |name: &str, roots: &crate::certificates::Authority, shows: bool| {
        let plain = destination(name, &service);
        let upstream = Settings {
            servers: origin(&plain),
            tls: Some(libraries::tls(roots, shows.then_some(&authority))),
            server_name: Some("orders.test".try_into().unwrap()),
            ..plain.upstream.clone()
        };
        countersign::delivery::Destination { upstream, ..plain }
    };
    let bench = Bench::to(vec![
        with("good", &authority, true),
        with("unknown", &authority, false),
        with("stranger", &stranger, true),
    ]);
    bench.accept("evt_1", None, &["good", "unknown", "stranger"]);
    assert_eq!(bench.attempts("good", 1)[0]["countersign.outcome"], "delivered");
    for name in ["unknown", "stranger"] {
        let record = &bench.attempts(name, 1)[0];
        assert_eq!(record["countersign.outcome"], "retry", "{record}");
    }
    let reason = |name: &str| bench.attempts(name, 1)[0]["countersign.reason"].as_str().unwrap().to_owned();
    assert!(reason("stranger").starts_with("connect: invalid peer certificate"), "{}", reason("stranger"));
    assert_eq!(reason("unknown"), "the connection was closed before an answer: TLS alert CertificateRequired");
    assert_eq!(service.requests().len(), 1, "the others were not heard");
}
