//! One destination's queue: takes what it can begin, and begins it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    Shared, Stage,
    attempt::{self, After, Job},
    queues::Assignment,
};
use crate::inbox::{Due, Want};

/// How much longer than an attempt its lease lasts: for noting how it ended.
const LEASE_BEYOND: Duration = Duration::from_secs(10);
/// Deliveries taken in one look, which is one transaction of the store: what is accepted meanwhile waits for it.
const MOST_TAKEN: usize = 32;
/// How often the inbox is looked into without a reason: another gateway may have accepted something.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The least time between two looks that nothing called for.
const LOOK_SELDOM: Duration = Duration::from_millis(10);

/// The queue of one destination.
#[derive(Debug)]
pub(super) struct Queue {
    shared: Arc<Shared>,
    assignment: watch::Receiver<Option<Arc<Assignment>>>,
    stage: watch::Receiver<Stage>,
    bell: Arc<Notify>,
    running: JoinSet<After>,
    /// When the inbox is looked into next.
    look_at: Instant,
}

impl Queue {
    pub(super) fn new(
        shared: Arc<Shared>,
        assignment: watch::Receiver<Option<Arc<Assignment>>>,
        stage: watch::Receiver<Stage>,
        bell: Arc<Notify>,
    ) -> Self {
        Self { shared, assignment, stage, bell, running: JoinSet::new(), look_at: Instant::now() }
    }

    /// Delivers until there is a drain, or nothing is assigned any more, and what is under way has ended.
    pub(super) async fn run(mut self) {
        loop {
            // All that have ended make room together, for each look is a transaction.
            while let Some(ended) = self.running.try_join_next() {
                self.go_on(ended);
            }
            let assignment = self.assigned();
            if assignment.is_none() && self.running.is_empty() {
                return;
            }
            let free = assignment
                .as_ref()
                .map_or(0, |assignment| assignment.destination.concurrency.max(1).saturating_sub(self.running.len()));
            if let Some(assignment) = assignment.filter(|_| free > 0 && self.look_at <= Instant::now()) {
                self.look(&assignment, free).await;
                continue;
            }
            tokio::select! {
                Some(ended) = self.running.join_next() => self.go_on(ended),
                changed = self.assignment.changed() => match changed {
                    Ok(()) => self.look_at = Instant::now(),
                    Err(_) => return,
                },
                changed = self.stage.changed() => if changed.is_err() { return },
                () = self.bell.notified(), if free > 0 => self.look_at = Instant::now(),
                () = tokio::time::sleep_until(self.look_at), if free > 0 => {}
            }
        }
    }

    /// What to work by; `None` if nothing is to be begun.
    fn assigned(&mut self) -> Option<Arc<Assignment>> {
        let assignment = self.assignment.borrow_and_update().clone();
        let is_on = *self.stage.borrow_and_update() == Stage::On;
        assignment.filter(|_| is_on)
    }

    /// Takes as many deliveries as are `free` to begin, or some of them, and begins them.
    async fn look(&mut self, assignment: &Arc<Assignment>, free: usize) {
        let destination = &assignment.destination;
        let lease = destination.timeout.saturating_add(LEASE_BEYOND);
        let most = free.min(MOST_TAKEN);
        let want = Want { destination: Arc::clone(&destination.name), most, lease, ordered: destination.ordered };
        let asked = Instant::now();
        let Ok(leased) = self.shared.noting(self.shared.inbox.lease(want).await) else {
            self.look_at = Instant::now() + LOOK_EVERY;
            return;
        };
        // Where as many came as were asked for there may be more, which are looked for as soon as there is a place.
        let rest = leased.next.unwrap_or(LOOK_EVERY).clamp(LOOK_SELDOM, LOOK_EVERY);
        self.look_at = Instant::now() + if leased.due.len() >= most { Duration::ZERO } else { rest };
        let is_wanted = self.assigned().is_some();
        for due in leased.due {
            if is_wanted {
                self.begin(assignment, due, asked + lease);
            } else {
                attempt::release(&self.shared, due).await;
            }
        }
    }

    fn begin(&mut self, assignment: &Arc<Assignment>, due: Due, lease_ends: Instant) {
        let job = Job {
            shared: Arc::clone(&self.shared),
            assignment: Arc::clone(assignment),
            due,
            lease_ends,
            stage: self.stage.clone(),
        };
        self.running.spawn(job.run());
    }

    /// An attempt has ended: decides when to look again.
    fn go_on(&mut self, ended: Result<After, tokio::task::JoinError>) {
        let now = Instant::now();
        let look_at = match ended {
            Ok(After::Next) => now,
            Ok(After::Again(delay)) => now + delay.min(LOOK_EVERY),
            Ok(After::Nothing) => return,
            Err(error) => {
                tracing::error!(%error, "an attempt panicked; the delivery is made again when its lease ends");
                return;
            }
        };
        self.look_at = self.look_at.min(look_at);
    }
}
