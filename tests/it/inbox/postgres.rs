//! The store in PostgreSQL, which gateways may share.

use std::{collections::HashMap, fs, sync::Mutex};

use countersign::inbox::{Fault, Initialised, Unavailable};

use super::*;
use crate::support::postgres::Server;

/// An inbox in a new database of the server that tests share, and the folder of its marker.
fn settings_in(server: &Server, name: &str) -> (Settings, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::Postgres(server.database(name));
    (Settings { store, ..sqlite_in(folder.path()) }, folder)
}

/// Runs a promise over a new database.
fn over_postgres(name: &str, promise: fn(&Opened)) {
    let Some(server) = Server::shared() else { return };
    let (settings, _folder) = settings_in(server, name);
    let opened = Opened::of(&settings);
    promise(&opened);
    opened.finish();
}

#[test]
fn one_of_many_at_once_is_new() {
    over_postgres("many_at_once", promises::one_of_many_at_once_is_new);
}

#[test]
fn what_is_leased_is_as_it_came() {
    over_postgres("as_it_came", promises::what_is_leased_is_as_it_came);
}

#[test]
fn an_attempt_ends_as_is_noted() {
    over_postgres("as_is_noted", promises::an_attempt_ends_as_is_noted);
}

#[test]
fn a_lease_ends() {
    over_postgres("lease_ends", promises::a_lease_ends);
}

#[test]
fn an_object_has_one_at_a_time() {
    over_postgres("one_at_a_time", promises::an_object_has_one_at_a_time);
}

#[test]
fn what_is_more_than_wanted_is_due_at_once() {
    over_postgres("more_than_wanted", promises::what_is_more_than_wanted_is_due_at_once);
}

/// Runs a promise that also looks from beside.
fn looked_at(name: &str, promise: fn(&Opened, &Settings)) {
    let Some(server) = Server::shared() else { return };
    let (settings, _folder) = settings_in(server, name);
    let opened = Opened::of(&settings);
    promise(&opened, &settings);
    opened.finish();
}

#[test]
fn what_is_done_by_hand_is_noted() {
    looked_at("by_hand", promises::what_is_done_by_hand_is_noted);
}

#[test]
fn a_retried_one_waits_for_what_is_under_way() {
    looked_at("retried_one", promises::a_retried_one_waits_for_what_is_under_way);
}

#[test]
fn what_is_committed_late_waits_for_what_is_under_way() {
    looked_at("committed_late", |opened, _| {
        opened.accept(arrived("evt_1", Some("in_1"), &["a"]));
        let first = opened.lease(in_order("a", 9)).due.remove(0);
        // As if a number before its own had been given to the other.
        let sql = "UPDATE countersign.events SET seq = seq + 100; UPDATE countersign.bodies SET event = event + 100; \
                   UPDATE countersign.deliveries SET number = number + 100 * 65536";
        Server::shared().unwrap().run("committed_late", sql);
        opened.accept(arrived("evt_2", Some("in_1"), &["a"]));
        assert_eq!(events(&opened.lease(in_order("a", 9))), [""; 0]);
        assert!(opened.settle(&first, End::Released));
        assert_eq!(events(&opened.lease(in_order("a", 9))), ["evt_2"]);
    });
}

#[test]
fn lists_are_as_asked_for() {
    looked_at("lists", promises::lists_are_as_asked_for);
}

#[test]
fn old_ones_go() {
    looked_at("old_ones", |opened, settings| {
        promises::old_ones_go(opened, settings, |_| {
            let sql = "UPDATE countersign.events SET received = received - interval '7 days'; \
                       UPDATE countersign.deliveries SET settled = settled - interval '7 days'";
            Server::shared().unwrap().run("old_ones", sql);
        });
    });
}

/// Two gateways that share a database.
fn two(server: &Server, name: &str) -> [(Opened, tempfile::TempDir); 2] {
    let (settings, folder) = settings_in(server, name);
    let other = tempfile::tempdir().unwrap();
    let beside = Settings { state_directory: other.path().to_owned(), ..settings.clone() };
    [(Opened::of(&settings), folder), (Opened::of(&beside), other)]
}

#[test]
fn two_gateways_never_have_the_same_attempt() {
    let Some(server) = Server::shared() else { return };
    let both = two(server, "same_attempt");
    for number in 0..300 {
        assert_eq!(both[number % 2].0.accept(arrived(&format!("evt_{number}"), None, &["a"])), Acceptance::New);
        assert_eq!(both[1].0.accept(arrived(&format!("evt_{number}"), None, &["a"])), Acceptance::Duplicate);
    }
    let had = Mutex::new(HashMap::<Arc<str>, u32>::new());
    std::thread::scope(|scope| {
        for (opened, _) in &both {
            scope.spawn(|| {
                loop {
                    let leased = opened.lease(want("a", 7));
                    if leased.due.is_empty() && leased.next.is_some_and(|next| next > Duration::from_secs(1)) {
                        return;
                    }
                    let mut had = had.lock().unwrap();
                    leased.due.iter().for_each(|due| *had.entry(Arc::clone(&due.delivery)).or_default() += 1);
                }
            });
        }
    });
    let had = had.into_inner().unwrap();
    assert_eq!((had.len(), had.values().max()), (300, Some(&1)));
    for (opened, _) in both {
        opened.finish();
    }
}

#[test]
fn two_gateways_keep_the_order_of_each_object() {
    const EVENTS: usize = 200;
    let Some(server) = Server::shared() else { return };
    let both = two(server, "both_in_order");
    for number in 0..EVENTS {
        let object = format!("in_{}", number % 3);
        both[0].0.accept(arrived(&format!("evt_{number}"), Some(&object), &["a"]));
    }
    let begun = Instant::now();
    let log = Mutex::new(Vec::<(Arc<str>, usize)>::new());
    std::thread::scope(|scope| {
        for (opened, _) in &both {
            scope.spawn(|| {
                while log.lock().unwrap().len() < EVENTS {
                    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", log.lock().unwrap());
                    for due in opened.lease(in_order("a", 2)).due {
                        let number = due.event.strip_prefix("evt_").unwrap().parse().unwrap();
                        log.lock().unwrap().push((due.object.clone().unwrap(), number));
                        assert!(opened.settle(&due, End::Delivered));
                    }
                }
            });
        }
    });
    let log = log.into_inner().unwrap();
    let mut last = HashMap::new();
    for (object, number) in &log {
        let before = last.insert(Arc::clone(object), *number);
        assert!(before.is_none_or(|before| before + 3 == *number), "{object}: {number} after {before:?}");
    }
    assert_eq!(log.len(), EVENTS);
    for (opened, _) in both {
        opened.finish();
    }
}

#[test]
fn a_server_that_is_gone_refuses_and_is_taken_up_again() {
    let Some(server) = Server::start() else { return };
    let (settings, _folder) = settings_in(&server, "gone");
    let opened = Opened::of(&settings);
    for number in 0..20 {
        assert_eq!(opened.accept(arrived(&format!("evt_{number}"), None, &["a"])), Acceptance::New);
    }
    server.kill();
    let refused = opened.wait(opened.inbox.accept(arrived("evt_20", None, &["a"])));
    assert_eq!(refused, Err(Unavailable::Failed));
    assert_eq!(opened.wait(opened.inbox.lease(want("a", 1))).unwrap_err(), Unavailable::Failed);
    let error = inbox::open(&settings).map(|_| ()).unwrap_err();
    assert!(matches!(error.fault, Fault::Unavailable(_)), "{error}");
    server.start_again();
    assert_eq!(opened.accept(arrived("evt_20", None, &["a"])), Acceptance::New);
    for number in 0..20 {
        assert_eq!(opened.accept(arrived(&format!("evt_{number}"), None, &["a"])), Acceptance::Duplicate);
    }
    assert_eq!(opened.lease(want("a", 100)).due.len(), 21);
    opened.finish();
}

#[test]
fn nothing_is_accepted_into_a_store_that_was_made_anew() {
    let Some(server) = Server::shared() else { return };
    let (settings, _folder) = settings_in(server, "anew");
    let opened = Opened::of(&settings);
    opened.accept(arrived("evt_1", None, &["a"]));
    let identity = server.run("anew", "SELECT identity FROM countersign.store").unwrap();
    server.run("anew", "UPDATE countersign.store SET identity = 'another'");
    // Over the connection that stands, and over new ones.
    let refused = opened.wait(opened.inbox.accept(arrived("evt_2", None, &["a"])));
    assert_eq!(refused, Err(Unavailable::Failed));
    let ends = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity \
                WHERE datname = 'anew' AND application_name = 'countersign'";
    server.run("anew", ends);
    for _ in 0..2 {
        let refused = opened.wait(opened.inbox.accept(arrived("evt_2", None, &["a"])));
        assert_eq!(refused, Err(Unavailable::Failed));
        assert_eq!(opened.wait(opened.inbox.lease(want("a", 9))).unwrap_err(), Unavailable::Failed);
    }
    assert_eq!(server.run("anew", "SELECT count(*) FROM countersign.events").as_deref(), Some("1"));
    server.run("anew", &format!("UPDATE countersign.store SET identity = '{identity}'"));
    assert_eq!(opened.accept(arrived("evt_2", None, &["a"])), Acceptance::New);
    assert_eq!(opened.lease(want("a", 9)).due.len(), 2);
    opened.finish();
}

#[test]
fn a_gateway_whose_store_is_dropped_and_made_anew_by_another_keeps_nothing_in_it() {
    let Some(server) = Server::shared() else { return };
    let (settings, _folder) = settings_in(server, "dropped");
    let opened = Opened::of(&settings);
    opened.accept(arrived("evt_1", None, &["a"]));
    server.run("dropped", "DROP SCHEMA countersign CASCADE");
    let other = tempfile::tempdir().unwrap();
    let another = Opened::of(&Settings { state_directory: other.path().to_owned(), ..settings.clone() });
    for _ in 0..2 {
        let refused = opened.wait(opened.inbox.accept(arrived("evt_2", None, &["a"])));
        assert_eq!(refused, Err(Unavailable::Failed));
    }
    assert_eq!(another.accept(arrived("evt_2", None, &["a"])), Acceptance::New);
    assert!(matches!(fault(&settings).fault, Fault::Another(_)));
    opened.finish();
    another.finish();
}

#[test]
fn a_connection_over_tls_is_to_the_server_that_was_meant() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    crate::support::write_files(folder.path(), "whsec_unused");
    let meant = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let another = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::create_dir(file("state")).unwrap();
    fs::write(file("meant.pem"), meant.cert.pem()).unwrap();
    fs::write(file("another.pem"), another.cert.pem()).unwrap();
    let Some(server) = Server::with_tls(&meant.cert.pem(), &meant.signing_key.serialize_pem()) else { return };
    server.run("postgres", "CREATE ROLE countersign LOGIN PASSWORD 'the-password'");
    server.run("postgres", "CREATE DATABASE events OWNER countersign");
    // As an administrator configures it.
    let settings = |host: &str, password: &str, more: &str, ca: &str| {
        let url = format!("postgres://countersign:{password}@{host}:{}/events?{more}", server.port);
        fs::write(file("inbox.url"), url).unwrap();
        let ca = if ca.is_empty() { String::new() } else { format!("postgres_ca = \"{ca}\"\n") };
        let tables = format!(
            "[inbox]\npostgres = {{ file = \"inbox.url\" }}\n{ca}\
             [[webhooks]]\npath = \"/stripe\"\nsecrets = [{{ file = \"whsec\" }}]\n\
             [[webhooks.deliver]]\nname = \"a\"\nto = \"http://127.0.0.1:1/\"\nsecret = {{ file = \"whsec\" }}\n"
        );
        let listener = "certificate = \"cert.pem\"\nprivate_key = \"key.pem\"\n";
        crate::support::load(folder.path(), listener, &tables).inbox
    };
    let meant = settings("127.0.0.1", "the-password", "sslmode=verify-full", "meant.pem");
    let opened = Opened::of(&meant);
    assert_eq!(opened.accept(arrived("evt_1", None, &["a"])), Acceptance::New);
    assert_eq!(opened.lease(want("a", 9)).due.len(), 1);
    let connections = "SELECT count(*) FILTER (WHERE ssl) || ' of ' || count(*) FROM pg_stat_ssl JOIN pg_stat_activity \
                       USING (pid) WHERE usename = 'countersign'";
    assert_eq!(server.run("events", connections).as_deref(), Some("2 of 2"));
    // It is reached with what is said later, from the next connection on.
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'countersign'";
    let accepts = |id: &str, follows: &inbox::Settings| {
        meant.store.follow(&follows.store);
        server.run("events", cut);
        let accept = || opened.wait(opened.inbox.accept(arrived(id, None, &["a"])));
        // The first may find that its connection is gone.
        accept().or_else(|_| accept()).is_ok()
    };
    assert!(!accepts("evt_2", &settings("127.0.0.1", "the-password", "sslmode=require", "another.pem")));
    assert!(accepts("evt_3", &settings("127.0.0.1", "the-password", "sslmode=require", "meant.pem")));
    server.run("postgres", "ALTER ROLE countersign PASSWORD 'the-next-one'");
    assert!(!accepts("evt_4", &settings("127.0.0.1", "the-password", "sslmode=require", "meant.pem")));
    assert!(accepts("evt_5", &settings("127.0.0.1", "the-next-one", "sslmode=require", "meant.pem")));
    server.run("postgres", "ALTER ROLE countersign PASSWORD 'the-password'");
    opened.finish();
    for (what, (host, password, more, ca), told) in [
        ("another authority", ("127.0.0.1", "the-password", "sslmode=require", "another.pem"), "certificate"),
        ("the system's authorities", ("127.0.0.1", "the-password", "sslmode=require", ""), "certificate"),
        ("another name", ("localhost", "the-password", "sslmode=require", "meant.pem"), "not valid for name"),
        (
            "another password",
            ("127.0.0.1", "wr0ng-one", "sslmode=require", "meant.pem"),
            "password authentication failed",
        ),
        ("in the clear", ("127.0.0.1", "the-password", "sslmode=disable", ""), "no encryption"),
    ] {
        let error = fault(&settings(host, password, more, ca));
        let text = error.to_string();
        assert!(matches!(error.fault, Fault::Unavailable(_)) && text.contains(told), "{what}: {text}");
        assert!(!text.contains(password), "{what}: {text}");
    }
}

#[test]
fn a_server_that_hangs_is_given_up_and_taken_up_again() {
    let Some(server) = Server::start() else { return };
    let (settings, _folder) = settings_in(&server, "hangs");
    let opened = Opened::of(&settings);
    opened.accept(arrived("evt_1", None, &["a"]));
    server.stop();
    // Over the connection that stands, and by a new one: within the 9 s that a statement may take, and the 5 s of connecting.
    for most in [12, 8] {
        let begun = Instant::now();
        let refused = opened.wait(opened.inbox.accept(arrived("evt_2", None, &["a"])));
        assert_eq!(refused, Err(Unavailable::Failed));
        assert!(begun.elapsed() < Duration::from_secs(most), "{:?}", begun.elapsed());
    }
    server.go_on();
    // What hung may have come to its end meanwhile.
    let begun = Instant::now();
    while opened.wait(opened.inbox.accept(arrived("evt_2", None, &["a"]))).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it is not taken up again");
    }
    assert_eq!(opened.accept(arrived("evt_2", None, &["a"])), Acceptance::Duplicate);
    let leased = opened.lease(want("a", 9));
    let mut all = events(&leased);
    all.sort_unstable();
    assert_eq!(all, ["evt_1", "evt_2"]);
    opened.finish();
}

#[test]
fn a_store_that_is_lost_or_later_is_not_used() {
    let Some(server) = Server::shared() else { return };
    let (settings, _folder) = settings_in(server, "lost");
    Opened::of(&settings).finish();
    server.run("lost", "UPDATE countersign.store SET version = 2");
    assert!(matches!(fault(&settings).fault, Fault::Newer(2)));
    assert!(matches!(inbox::init(&settings, true).unwrap_err().fault, Fault::Newer(2)));
    server.run("lost", "UPDATE countersign.store SET version = 1, identity = 'another'");
    assert!(matches!(fault(&settings).fault, Fault::Another(_)));
    assert!(matches!(inbox::init(&settings, false).unwrap_err().fault, Fault::Another(_)));
    assert_eq!(inbox::init(&settings, true).unwrap(), Initialised::Adopted);
    Opened::of(&settings).finish();
    server.run("lost", "DROP TABLE countersign.bodies");
    let error = fault(&settings);
    assert!(matches!(error.fault, Fault::Incomplete(_)), "{error}");
    // What it says is what is done next.
    assert!(error.to_string().contains("drop the schema `countersign`"), "{error}");
    assert!(matches!(inbox::init(&settings, true).unwrap_err().fault, Fault::Incomplete(_)));
    server.run("lost", "DROP SCHEMA countersign CASCADE");
    let error = fault(&settings);
    assert!(matches!(error.fault, Fault::Empty), "{error}");
    assert!(matches!(Desk::open(&settings).unwrap_err().fault, Fault::Empty));
    assert_eq!(inbox::init(&settings, true).unwrap(), Initialised::Made);
    Opened::of(&settings).finish();
    // The same state directory with the other kind of store.
    let error = fault(&Settings { store: Store::Sqlite, ..settings });
    assert!(matches!(error.fault, Fault::Another(_)), "{error}");
}
