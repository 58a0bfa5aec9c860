//! How often a signing secret was used, so that an old one can be removed once nothing is signed with it any more.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Matches of one key so far.
#[derive(Debug, Default)]
pub struct Uses {
    /// 0: not known.
    since: AtomicI64,
    count: AtomicU64,
    last: AtomicI64,
}

impl Uses {
    /// The key is in force at `now` (seconds since the epoch); the first time counts. Answers that.
    pub fn in_force(&self, now: i64) -> i64 {
        let before = self.since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        before.err().unwrap_or(now)
    }

    /// One more, at `now` (seconds since the epoch).
    pub fn note(&self, now: i64) {
        self.count.fetch_add(1, Ordering::Relaxed);
        // Written only when it changes: workers would take the line from each other for nothing.
        if self.last.load(Ordering::Relaxed) != now {
            self.last.store(now, Ordering::Relaxed);
        }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// When the last one was, in seconds since the epoch; `None` before the first.
    pub fn last(&self) -> Option<i64> {
        (self.count() > 0).then(|| self.last.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_counted_and_the_last_is_known() {
        let uses = Uses::default();
        assert_eq!((uses.count(), uses.last()), (0, None));
        uses.note(10);
        uses.note(12);
        assert_eq!((uses.count(), uses.last()), (2, Some(12)));
    }
}
