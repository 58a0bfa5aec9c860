//! What waits, carried out together.

use std::time::{Duration, Instant};

use deadpool_postgres::Object;
use tokio::sync::mpsc;

use super::{
    Database, Result,
    accept::{self, Arrival},
    lease,
    settle::{self, Ending},
};
use crate::inbox::ask::Command;

/// Commands that are taken at one time.
const MOST_AT_ONCE: usize = 512;
/// How often it is said that the store fails.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Carries out commands over one connection.
pub(super) struct Worker {
    database: Database,
    told: Option<Instant>,
}

impl Worker {
    pub(super) fn new(database: Database) -> Self {
        Self { database, told: None }
    }

    /// Takes commands until the last that can send any is gone, or says that it is done.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut group = Vec::with_capacity(MOST_AT_ONCE);
        while commands.recv_many(&mut group, MOST_AT_ONCE).await > 0 {
            if group.iter().any(|command| matches!(command, Command::Finish)) {
                commands.close();
            }
            let result = self.carry_out(&mut group).await;
            self.tell(&result);
            // What could not be done has no answer yet, and gets that it failed.
            for command in group.drain(..) {
                command.give(true);
            }
        }
    }

    /// Carries out all of them, as far as they can be: each kind together, what ended before what begins.
    async fn carry_out(&self, group: &mut [Command]) -> Result<()> {
        let (mut arrivals, mut endings, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for command in group {
            match command {
                Command::Accept(ask) if ask.is_abandoned() => {}
                Command::Accept(ask) => arrivals.push(ask),
                Command::Settle(ask) => endings.push(ask),
                Command::Lease(_) | Command::Acts(_) | Command::ForgetActs(_) | Command::Drop(_) => {
                    others.push(command);
                }
                Command::Finish => {}
            }
        }
        let mut result = self.accept(&mut arrivals).await;
        result = result.and(self.settle(&mut endings).await);
        for command in others {
            result = result.and(self.database.with(async |client| carry_out(client, command).await).await);
        }
        result
    }

    async fn accept(&self, arrivals: &mut [&mut Arrival]) -> Result<()> {
        if arrivals.is_empty() {
            return Ok(());
        }
        let mut result = self.accept_at_once(arrivals).await;
        if result.as_ref().is_err_and(super::Failure::is_conflict) {
            result = self.accept_at_once(arrivals).await;
        }
        if arrivals.len() > 1 && result.as_ref().is_err_and(super::Failure::is_ones_own) {
            for arrival in arrivals {
                result = result.and(self.accept_at_once(std::slice::from_mut(arrival)).await);
            }
        }
        result
    }

    async fn accept_at_once(&self, arrivals: &mut [&mut Arrival]) -> Result<()> {
        let identity = self.database.identity.get().map_or("", String::as_str);
        self.database.with(async |client| accept::accept(client, identity, arrivals).await).await
    }

    async fn settle(&self, endings: &mut [&mut Ending]) -> Result<()> {
        if endings.is_empty() {
            return Ok(());
        }
        let mut result = self.database.with(async |client| settle::settle(client, endings).await).await;
        if result.as_ref().is_err_and(super::Failure::is_conflict) {
            result = self.database.with(async |client| settle::settle(client, endings).await).await;
        }
        if endings.len() > 1 && result.as_ref().is_err_and(super::Failure::is_ones_own) {
            for ending in endings {
                let one = std::slice::from_mut(ending);
                result = result.and(self.database.with(async |client| settle::settle(client, one).await).await);
            }
        }
        result
    }

    fn tell(&mut self, result: &Result<()>) {
        match result {
            Ok(()) if self.told.take().is_some() => tracing::warn!("the inbox can be written again"),
            Ok(()) => {}
            Err(_) if self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) => {}
            Err(error) => {
                self.told = Some(Instant::now());
                let place = &self.database.place;
                tracing::error!(%error, place, "the inbox cannot be written; events are refused until it can");
            }
        }
    }
}

async fn carry_out(client: &mut Object, command: &mut Command) -> Result<()> {
    match command {
        // What nobody waits for any more would be counted as an attempt, and made by nobody.
        Command::Lease(ask) if ask.is_abandoned() => {}
        Command::Lease(ask) => ask.answer = Some(lease::lease(client, &ask.what).await?),
        Command::Acts(ask) => ask.answer = Some(settle::acts(client).await?),
        Command::ForgetActs(ask) => ask.answer = Some(settle::forget_acts(client, &ask.what).await?),
        Command::Drop(ask) => ask.answer = Some(settle::drop(client, &ask.what).await?),
        Command::Accept(_) | Command::Settle(_) | Command::Finish => {}
    }
    Ok(())
}
