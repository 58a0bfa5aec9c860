//! The store in a file.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command};

use countersign::inbox::{Fault, Initialised, Unavailable};

use super::*;

/// Runs a promise over a new file.
fn over_sqlite(promise: fn(&Opened)) {
    let folder = tempfile::tempdir().unwrap();
    let opened = Opened::of(&sqlite_in(folder.path()));
    promise(&opened);
    opened.finish();
}

#[test]
fn one_of_many_at_once_is_new() {
    over_sqlite(promises::one_of_many_at_once_is_new);
}

#[test]
fn what_is_leased_is_as_it_came() {
    over_sqlite(promises::what_is_leased_is_as_it_came);
}

#[test]
fn an_attempt_ends_as_is_noted() {
    over_sqlite(promises::an_attempt_ends_as_is_noted);
}

#[test]
fn a_lease_ends() {
    over_sqlite(promises::a_lease_ends);
}

#[test]
fn an_object_has_one_at_a_time() {
    over_sqlite(promises::an_object_has_one_at_a_time);
}

#[test]
fn what_is_more_than_wanted_is_due_at_once() {
    over_sqlite(promises::what_is_more_than_wanted_is_due_at_once);
}

/// Runs a promise that also looks from beside.
fn looked_at(promise: fn(&Opened, &Settings)) {
    let folder = tempfile::tempdir().unwrap();
    let settings = sqlite_in(folder.path());
    let opened = Opened::of(&settings);
    promise(&opened, &settings);
    opened.finish();
}

#[test]
fn what_is_done_by_hand_is_noted() {
    looked_at(promises::what_is_done_by_hand_is_noted);
}

#[test]
fn a_retried_one_waits_for_what_is_under_way() {
    looked_at(promises::a_retried_one_waits_for_what_is_under_way);
}

#[test]
fn lists_are_as_asked_for() {
    looked_at(promises::lists_are_as_asked_for);
}

fn file(settings: &Settings) -> PathBuf {
    settings.state_directory.join("inbox/inbox.sqlite")
}

fn run(settings: &Settings, sql: &str) {
    rusqlite::Connection::open(file(settings)).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn old_ones_go() {
    looked_at(|opened, settings| {
        promises::old_ones_go(opened, settings, |settings| {
            let week = 7 * 24 * 3600 * 1_000_000_i64;
            let sql = "UPDATE events SET received = received - {}; UPDATE deliveries SET settled = settled - {}";
            run(settings, &sql.replace("{}", &week.to_string()));
        });
    });
}

/// An inbox with one event, which is closed.
fn used() -> (Settings, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let settings = sqlite_in(folder.path());
    let opened = Opened::of(&settings);
    opened.accept(arrived("evt_1", None, &["a"]));
    opened.finish();
    (settings, folder)
}

#[test]
fn what_was_accepted_is_there_after_a_restart_and_private() {
    let (settings, _folder) = used();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(file(&settings)), mode(settings.state_directory.join("inbox"))), (0o600, 0o700));
    let opened = Opened::of(&settings);
    assert_eq!(opened.accept(arrived("evt_1", None, &["a"])), Acceptance::Duplicate);
    let first = opened.lease(Want { lease: Duration::ZERO, ..want("a", 1) });
    opened.finish();
    let opened = Opened::of(&settings);
    let second = opened.lease(want("a", 1));
    assert_eq!((first.due[0].attempt, second.due[0].attempt), (1, 2));
    assert_eq!(first.due[0].delivery, second.due[0].delivery);
    opened.finish();
}

#[test]
fn a_store_that_is_gone_is_not_made_anew() {
    let (settings, _folder) = used();
    fs::remove_file(file(&settings)).unwrap();
    let error = fault(&settings);
    assert!(matches!(error.fault, Fault::Missing), "{error}");
    assert!(error.to_string().contains("inbox init --accept-loss"), "{error}");
    assert!(matches!(Desk::open(&settings).unwrap_err().fault, Fault::Missing));
    assert!(!file(&settings).exists());
    // Without the word for it nothing is done; with it there is a new one.
    assert!(matches!(inbox::init(&settings, false).unwrap_err().fault, Fault::Missing));
    assert_eq!(inbox::init(&settings, true).unwrap(), Initialised::Made);
    let opened = Opened::of(&settings);
    assert_eq!(opened.accept(arrived("evt_1", None, &["a"])), Acceptance::New);
    opened.finish();
    assert_eq!(inbox::init(&settings, true).unwrap(), Initialised::Whole);
    assert!(!Desk::open(&settings).unwrap().show("evt_1", &[]).unwrap().is_empty());
}

#[test]
fn a_store_that_is_empty_or_another_is_not_used() {
    let (settings, _folder) = used();
    let kept = fs::read(file(&settings)).unwrap();
    fs::write(file(&settings), "").unwrap();
    assert!(matches!(fault(&settings).fault, Fault::Empty));
    assert!(matches!(Desk::open(&settings).unwrap_err().fault, Fault::Empty));
    let (other, _other_folder) = used();
    fs::copy(file(&other), file(&settings)).unwrap();
    let error = fault(&settings);
    assert!(matches!(error.fault, Fault::Another(_)), "{error}");
    fs::write(file(&settings), kept).unwrap();
    Opened::of(&settings).finish();
    fs::copy(file(&other), file(&settings)).unwrap();
    assert_eq!(inbox::init(&settings, true).unwrap(), Initialised::Adopted);
    Opened::of(&settings).finish();
}

#[test]
fn a_store_of_a_later_version_is_left_alone() {
    let (settings, _folder) = used();
    run(&settings, "PRAGMA user_version = 2");
    let error = fault(&settings);
    assert!(matches!(error.fault, Fault::Newer(2)), "{error}");
    assert!(matches!(Desk::open(&settings).unwrap_err().fault, Fault::Newer(2)));
    assert!(matches!(inbox::init(&settings, true).unwrap_err().fault, Fault::Newer(2)));
    run(&settings, "PRAGMA user_version = 1");
    Opened::of(&settings).finish();
}

#[test]
fn a_store_that_is_damaged_is_not_used() {
    let (settings, _folder) = used();
    let kept = fs::read(file(&settings)).unwrap();
    let garbage = vec![b'x'; kept.len()];
    let pages = [&kept[..4096], &garbage[4096..]].concat();
    let foreign = {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("foreign");
        rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        fs::read(path).unwrap()
    };
    for damaged in [&garbage, &pages, &kept[..kept.len() - 4096], &foreign].map(<[u8]>::to_vec) {
        fs::write(file(&settings), &damaged).unwrap();
        let error = fault(&settings);
        assert!(matches!(error.fault, Fault::Corrupt(_)), "{error}");
        assert!(fs::read(file(&settings)).unwrap() == damaged, "it was touched");
    }
    // What is damaged is kept beside the new one.
    assert_eq!(inbox::init(&settings, true).unwrap(), Initialised::Made);
    Opened::of(&settings).finish();
    let names: Vec<_> =
        fs::read_dir(settings.state_directory.join("inbox")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().any(|name| name.to_string_lossy().contains("damaged")), "{names:?}");
}

#[test]
fn a_lock_that_somebody_else_holds_is_waited_out() {
    let folder = tempfile::tempdir().unwrap();
    let settings = sqlite_in(folder.path());
    let opened = Opened::of(&settings);
    let other = rusqlite::Connection::open(file(&settings)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = opened.wait(opened.inbox.accept(arrived("evt_1", None, &["a"])));
    assert_eq!(refused, Err(Unavailable::Failed));
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(opened.accept(arrived("evt_1", None, &["a"])), Acceptance::New);
    opened.finish();
}

#[test]
fn nothing_is_accepted_into_a_file_that_was_moved_away() {
    let folder = tempfile::tempdir().unwrap();
    let settings = sqlite_in(folder.path());
    let opened = Opened::of(&settings);
    opened.accept(arrived("evt_1", None, &["a"]));
    let away = folder.path().join("away");
    fs::rename(settings.state_directory.join("inbox"), &away).unwrap();
    let refused = opened.wait(opened.inbox.accept(arrived("evt_2", None, &["a"])));
    assert_eq!(refused, Err(Unavailable::Failed));
    fs::rename(&away, settings.state_directory.join("inbox")).unwrap();
    assert_eq!(opened.accept(arrived("evt_2", None, &["a"])), Acceptance::New);
    assert_eq!(opened.lease(want("a", 9)).due.len(), 2);
    opened.finish();
}

#[test]
fn what_is_in_a_log_that_was_removed_is_saved_before_more_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let settings = sqlite_in(folder.path());
    let opened = Opened::of(&settings);
    let log = settings.state_directory.join("inbox/inbox.sqlite-wal");
    opened.accept(arrived("evt_1", None, &["a"]));
    fs::remove_file(&log).unwrap();
    opened.accept(arrived("evt_2", None, &["a"]));
    // Another file in its place is not written by us either.
    fs::remove_file(&log).unwrap();
    fs::write(&log, "another").unwrap();
    opened.accept(arrived("evt_3", None, &["a"]));
    assert_eq!(opened.wait(opened.inbox.figures()).unwrap()[0].pending, 3);
    // As after a crash: what a restart would find.
    let found = tempfile::tempdir().unwrap();
    fs::create_dir(found.path().join("inbox")).unwrap();
    for name in ["inbox.marker", "inbox/inbox.sqlite", "inbox/inbox.sqlite-wal"] {
        fs::copy(settings.state_directory.join(name), found.path().join(name)).unwrap();
    }
    let restarted = Opened::of(&sqlite_in(found.path()));
    assert_eq!(events(&restarted.lease(want("a", 9))), ["evt_1", "evt_2", "evt_3"]);
    restarted.finish();
    assert_eq!(opened.lease(want("a", 9)).due.len(), 3);
    opened.finish();
}

#[test]
fn a_file_that_is_damaged_while_it_is_open_takes_nothing_until_a_restart() {
    let (settings, _folder) = used();
    let opened = Opened::of(&settings);
    opened.accept(arrived("evt_9", None, &["a"]));
    // Written by another, so that it is read anew from the file.
    run(&settings, "UPDATE deliveries SET last_error = 'x'; PRAGMA wal_checkpoint(TRUNCATE)");
    let kept = fs::read(file(&settings)).unwrap();
    fs::write(file(&settings), [&kept[..4096], &vec![b'x'; kept.len() - 4096]].concat()).unwrap();
    let accept = || opened.wait(opened.inbox.accept(arrived("evt_10", None, &["a"])));
    assert_eq!(accept(), Err(Unavailable::Failed));
    fs::write(file(&settings), &kept).unwrap();
    assert_eq!(accept(), Err(Unavailable::Failed));
    assert_eq!(opened.wait(opened.inbox.lease(want("a", 9))).unwrap_err(), Unavailable::Failed);
    assert_eq!(opened.wait(opened.inbox.figures()).unwrap_err(), Unavailable::Failed);
    opened.finish();
    let opened = Opened::of(&settings);
    assert_eq!(opened.accept(arrived("evt_9", None, &["a"])), Acceptance::Duplicate);
    assert_eq!(opened.accept(arrived("evt_10", None, &["a"])), Acceptance::New);
    opened.finish();
}

#[test]
fn a_clock_that_was_wrong_before_a_restart_delays_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let settings = sqlite_in(folder.path());
    let opened = Opened::of(&settings);
    opened.accept(arrived("evt_1", None, &["a"]));
    opened.finish();
    for hours in [1_u64, 24 * 365] {
        let micros = (hours * 3600 * 1_000_000).to_string();
        // It was ahead by so much when the event came; by a year only for the store.
        let came = if hours == 1 { "UPDATE events SET received = received + {};" } else { "" };
        run(&settings, &format!("{came} UPDATE deliveries SET due = due + {{}}").replace("{}", &micros));
        let opened = Opened::of(&settings);
        // It was noted a moment after the event had arrived, which is the latest time that the store knows of.
        let begun = Instant::now();
        let due = loop {
            if let Some(due) = opened.lease(want("a", 9)).due.pop() {
                break due;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "it is delayed");
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(opened.settle(&due, End::Again { after: DAY, error: String::new() }));
        // By hand it is due at once, whatever clock the gateway has.
        let mut desk = Desk::open(&settings).unwrap();
        desk.act(Deed::Retry, "evt_1", "op").unwrap();
        let next = desk.list(&Filter { limit: 1, ..Filter::default() }, &["a"]).unwrap()[0].next.unwrap();
        assert!(next.elapsed().unwrap() < LONG, "{next:?}");
        let due = opened.lease(want("a", 9)).due.remove(0);
        assert!(opened.settle(&due, End::Released));
        opened.finish();
    }
}

/// The name of the variable that tells a child of these tests that it is one.
const CHILD: &str = "COUNTERSIGN_TEST_FULL_DISK";

#[test]
fn a_full_disk_refuses_and_is_taken_up_again() {
    if std::env::var_os(CHILD).is_some() {
        return on_a_full_disk();
    }
    // A process of its own, for the limit holds for all that it writes: 512 KiB a file.
    let script =
        "trap '' XFSZ; ulimit -S -f 1024; exec \"$0\" --exact inbox::sqlite::a_full_disk_refuses_and_is_taken_up_again";
    let ran =
        Command::new("sh").args(["-c", script]).arg(std::env::current_exe().unwrap()).env(CHILD, "1").output().unwrap();
    let told = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && told.contains("1 passed"), "{told}");
}

fn on_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let settings = sqlite_in(folder.path());
    let opened = Opened::of(&settings);
    let big =
        |number: usize| Arrived { body: vec![b' '; 20_000].into(), ..arrived(&format!("evt_{number}"), None, &["a"]) };
    let accept = |number| opened.wait(opened.inbox.accept(big(number)));
    let kept = (0..1000).take_while(|number| accept(*number) == Ok(Acceptance::New)).count();
    assert!((5..1000).contains(&kept), "{kept}");
    // What is small may still find room; nothing that is told to be kept is lost either way.
    assert_eq!(accept(kept), Err(Unavailable::Failed));
    let this = std::process::id().to_string();
    let grown = Command::new("prlimit").args(["--pid", &this, "--fsize=unlimited:"]).status().unwrap();
    assert!(grown.success());
    assert_eq!(accept(kept), Ok(Acceptance::New));
    for number in 0..=kept {
        assert_eq!(accept(number), Ok(Acceptance::Duplicate));
    }
    assert_eq!(opened.lease(want("a", 2000)).due.len(), kept + 1);
    opened.finish();
}
