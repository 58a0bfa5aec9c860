//! The one thread that writes.

use std::{
    slice,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, Result};
use tokio::sync::mpsc;

use super::{Access, Clock, Opened, Place, Whereabouts, code, queue};
use crate::inbox::ask::Command;

/// Commands that are carried out in one transaction.
const MOST_AT_ONCE: usize = 512;
/// How often it is said that the store fails.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Writes into the store, for as long as somebody can ask for it.
pub(super) struct Writer {
    place: Place,
    /// `None` after it failed in a way that a new one may not.
    opened: Option<Opened>,
    clock: Clock,
    told: Option<Instant>,
}

impl Writer {
    pub(super) fn new(opened: Opened, place: Place, clock: Clock) -> Self {
        Self { place, opened: Some(opened), clock, told: None }
    }

    /// Takes commands until the last that can send any is gone, or says that it is done. Its connection is closed after the
    /// `reader`'s: of two that are closed at once neither puts the log into the file.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>, reader: JoinHandle<()>) {
        let mut group = Vec::with_capacity(MOST_AT_ONCE);
        while commands.blocking_recv_many(&mut group, MOST_AT_ONCE) > 0 {
            if group.iter().any(|command| matches!(command, Command::Finish)) {
                commands.close();
            }
            let kept = self.carry_out(&mut group);
            let failed = kept.as_ref().err();
            if group.len() > 1 && failed.is_some_and(is_ones_own) {
                for mut command in group.drain(..) {
                    let kept = self.carry_out(slice::from_mut(&mut command));
                    self.tell(&kept);
                    command.give(kept.is_ok());
                }
                continue;
            }
            self.tell(&kept);
            for command in group.drain(..) {
                command.give(kept.is_ok());
            }
        }
        if reader.join().is_err() {
            tracing::error!("the inbox's reader ended in a panic");
        }
    }

    /// Carries out all of them in one transaction, or none.
    fn carry_out(&mut self, group: &mut [Command]) -> Result<()> {
        self.place.health.check()?;
        let mut opened = self.opened()?;
        let result = transact(&opened.connection, group, self.clock.now());
        if result.as_ref().is_err_and(|error| self.place.health.note(error)) {
            self.told = None;
        }
        let whereabouts = opened.whereabouts();
        match (&result, whereabouts) {
            (Ok(()), Whereabouts::InPlace) => {
                opened.see_log();
                self.place.health.set_log(opened.log);
                self.opened = Some(opened);
            }
            // It was removed meanwhile: what was committed is in the file first, and then it may be told.
            (Ok(()), Whereabouts::LogGone) => self.opened = Some(self.rescue(opened)?),
            (Ok(()), Whereabouts::Gone) => return Err(rusqlite::Error::InvalidPath(opened.file)),
            (Err(error), _) if is_the_connections(error) && whereabouts != Whereabouts::LogGone => {}
            (Err(_), _) => self.opened = Some(opened),
        }
        result
    }

    /// The connection to the files that are there.
    fn opened(&mut self) -> Result<Opened> {
        match self.opened.take().map(|opened| (opened.whereabouts(), opened)) {
            Some((Whereabouts::InPlace, opened)) => Ok(opened),
            Some((Whereabouts::LogGone, opened)) => self.rescue(opened),
            Some((Whereabouts::Gone, _)) | None => self.reopen(),
        }
    }

    /// Saves what is in a log that nobody else finds, and begins another one.
    fn rescue(&mut self, opened: Opened) -> Result<Opened> {
        if let Err(error) = opened.empty_log() {
            self.opened = Some(opened);
            return Err(error);
        }
        drop(opened);
        let file = self.place.file.display();
        tracing::warn!(%file, "the inbox's log was removed or replaced; what was in it is in the file");
        self.reopen()
    }

    fn reopen(&self) -> Result<Opened> {
        let opened = self.place.reopen(Access::Writing)?;
        self.place.health.set_log(opened.log);
        Ok(opened)
    }

    fn tell(&mut self, result: &Result<()>) {
        match result {
            Ok(()) if self.told.take().is_some() => tracing::warn!("the inbox can be written again"),
            Ok(()) => {}
            Err(_) if self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) => {}
            Err(error) if self.place.health.is_broken() => {
                self.told = Some(Instant::now());
                self.place.tell_broken(error);
            }
            Err(error) => {
                self.told = Some(Instant::now());
                let file = self.place.file.display();
                tracing::error!(%error, %file, "the inbox cannot be written; events are refused until it can");
            }
        }
    }
}

fn transact(store: &Connection, group: &mut [Command], now: i64) -> Result<()> {
    store.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
    let result = group
        .iter_mut()
        .try_for_each(|command| carry_out(store, command, now))
        .and_then(|()| store.prepare_cached("COMMIT")?.execute(()).map(drop));
    if result.is_err() && !store.is_autocommit() {
        // Where that fails too, the connection is given up with what was begun on it.
        store.execute_batch("ROLLBACK")?;
    }
    result
}

fn carry_out(store: &Connection, command: &mut Command, now: i64) -> Result<()> {
    match command {
        Command::Accept(ask) if !ask.is_abandoned() => ask.answer = Some(queue::accept(store, &ask.what.arrived, now)?),
        // What nobody waits for any more would be counted as an attempt, and made by nobody.
        Command::Lease(ask) if !ask.is_abandoned() => ask.answer = Some(queue::lease(store, &ask.what, now)?),
        Command::Accept(_) | Command::Lease(_) | Command::Finish => {}
        Command::Settle(ask) => ask.answer = Some(queue::settle(store, &ask.what, now)?),
        Command::Acts(ask) => ask.answer = Some(queue::acts(store)?),
        Command::ForgetActs(ask) => ask.answer = Some(queue::forget_acts(store, &ask.what)?),
        Command::Drop(ask) => ask.answer = Some(queue::drop(store, &ask.what)?),
    }
    Ok(())
}

/// Whether an error may be the fault of what was asked, and not the store's.
fn is_ones_own(error: &rusqlite::Error) -> bool {
    matches!(
        code(error),
        None | Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig | ErrorCode::Unknown)
    )
}

/// Whether an error may be over with another connection.
fn is_the_connections(error: &rusqlite::Error) -> bool {
    !is_ones_own(error) && !matches!(code(error), Some(ErrorCode::DatabaseBusy | ErrorCode::DiskFull))
}
