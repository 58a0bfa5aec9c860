//! How the store does, as those see it who use it.

use std::{
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use super::Unavailable;
use crate::tally::Histogram;

/// Shared by all who use one inbox.
#[derive(Debug, Default)]
pub struct Condition {
    /// What the last that was to be written came to.
    last: AtomicU8,
    /// How long events took to be durable.
    pub commit_time: Histogram,
}

impl Condition {
    /// Why the last write failed, if it did.
    pub fn failure(&self) -> Option<Unavailable> {
        match self.last.load(Ordering::Relaxed) {
            1 => Some(Unavailable::Full),
            2 => Some(Unavailable::Slow),
            3 => Some(Unavailable::Failed),
            _ => None,
        }
    }

    /// Notes what a write came to.
    pub(super) fn note<T>(&self, outcome: Result<T, Unavailable>) -> Result<T, Unavailable> {
        let last = match &outcome {
            Ok(_) => 0,
            Err(Unavailable::Full) => 1,
            Err(Unavailable::Slow) => 2,
            Err(Unavailable::Failed) => 3,
        };
        self.last.store(last, Ordering::Relaxed);
        outcome
    }

    /// Notes how long an event took that is durable now.
    pub(super) fn note_time(&self, time: Duration) {
        self.commit_time.observe(time);
    }
}
