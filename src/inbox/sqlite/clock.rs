//! The time by which leases end and attempts are due.

use std::time::{Instant, SystemTime};

use super::{micros, span};

/// A clock that no step of the wall clock moves while the program runs, in microseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    base: i64,
    begun: Instant,
}

impl Clock {
    /// Begins with the time of the wall clock, or with the `latest` that the store knows of: a clock that was set back while
    /// the program did not run would otherwise delay what is in it.
    pub(super) fn new(wall: SystemTime, latest: i64, begun: Instant) -> Self {
        Self { base: micros(wall).max(latest), begun }
    }

    pub(super) fn now(&self) -> i64 {
        self.at(Instant::now())
    }

    fn at(&self, instant: Instant) -> i64 {
        self.base.saturating_add(span(instant.saturating_duration_since(self.begun)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn it_goes_on_from_the_later_of_both_as_time_passes() {
        let begun = Instant::now();
        let wall = UNIX_EPOCH + Duration::from_secs(100);
        let later = begun + Duration::from_secs(7);
        for (latest, base) in [(0, 100), (99_000_000, 100), (160_000_000, 160)] {
            let clock = Clock::new(wall, latest, begun);
            assert_eq!((clock.at(begun), clock.at(later)), (base * 1_000_000, (base + 7) * 1_000_000));
        }
    }
}
