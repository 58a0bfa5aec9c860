//! How many deliveries are in which state, counted no more often than that is worth.

use std::time::{Duration, Instant, SystemTime};

use super::State;

/// How many deliveries of one destination are in which state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub destination: String,
    pub pending: u64,
    pub delivering: u64,
    pub delivered: u64,
    pub dead: u64,
    pub discarded: u64,
    /// When the oldest event was received that is pending or being delivered.
    pub oldest_pending: Option<SystemTime>,
}

impl Figures {
    /// Sets the count of the state that stands in the store as `code`.
    pub(super) fn set(&mut self, code: i64, count: u64) {
        match State::of(code, true) {
            Some(State::Pending | State::Orphaned) => self.pending = count,
            Some(State::Delivering) => self.delivering = count,
            Some(State::Delivered) => self.delivered = count,
            Some(State::Dead) => self.dead = count,
            Some(State::Discarded) => self.discarded = count,
            None => {}
        }
    }
}

/// Counting may take a part in so many of the time.
const PART: u32 = 20;

/// What was counted last, and until when that will do.
#[derive(Debug, Default)]
pub(super) struct Counted {
    figures: Vec<Figures>,
    until: Option<Instant>,
}

impl Counted {
    /// What was counted, where it is so fresh that counting anew would take too much of the time.
    pub(super) fn fresh(&self) -> Option<Vec<Figures>> {
        self.until.filter(|until| Instant::now() < *until).map(|_| self.figures.clone())
    }

    /// Keeps what took so long to count.
    pub(super) fn keep(&mut self, figures: &[Figures], took: Duration) {
        self.figures = figures.to_vec();
        // What takes no time worth mentioning is counted whenever somebody asks.
        let takes_long = took > Duration::from_millis(20);
        self.until = takes_long.then(|| Instant::now() + took * PART);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_long_is_not_counted_again_soon() {
        let figures = [Figures { destination: "a".into(), pending: 1, ..Figures::default() }];
        let mut counted = Counted::default();
        assert_eq!(counted.fresh(), None);
        counted.keep(&figures, Duration::from_secs(1));
        assert_eq!(counted.fresh().as_deref(), Some(&figures[..]));
        counted.keep(&figures, Duration::from_millis(1));
        assert_eq!(counted.fresh(), None);
    }
}
