//! The store in PostgreSQL, which gateways may share.

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
