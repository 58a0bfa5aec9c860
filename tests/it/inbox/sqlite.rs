//! The store in a file.

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
