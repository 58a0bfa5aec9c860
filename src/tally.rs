//! Counts and times of what passed, for metrics.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Requests of one route, by what was decided, by the answer's class, and how long the gateway itself took.
#[derive(Debug, Default)]
pub struct Tally {
    permitted: AtomicU64,
    /// Those with a reason, by decision and reason: the rare ones.
    others: Mutex<Vec<(Case, u64)>>,
    /// By the first digit of the status.
    classes: [AtomicU64; 6],
    /// Until the answer's head, less the upstream's share.
    pub own_time: Histogram,
}

/// A decision, and the code that goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    pub decision: &'static str,
    /// Empty where there is none.
    pub reason: &'static str,
}

/// The case that needs no looking up.
const PERMITTED: Case = Case { decision: "permitted", reason: "" };

/// Durations, in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    longer: AtomicU64,
    nanos: AtomicU64,
}

/// The upper bounds of the buckets.
const BOUNDS: [Duration; 16] = [
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
];

impl Tally {
    /// One more request: what was decided, and the status of its answer.
    pub fn count(&self, case: Case, status: u16) {
        if let Some(class) = self.classes.get(usize::from(status / 100)) {
            class.fetch_add(1, Ordering::Relaxed);
        }
        if case == PERMITTED {
            self.permitted.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        match others.iter_mut().find(|(known, _)| *known == case) {
            Some((_, count)) => *count += 1,
            None => others.push((case, 1)),
        }
    }

    /// How many there were of each case that there was.
    pub fn cases(&self) -> Vec<(Case, u64)> {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let permitted = self.permitted.load(Ordering::Relaxed);
        (permitted > 0).then_some((PERMITTED, permitted)).into_iter().chain(others).collect()
    }

    /// How many answers there were of each class of status from 1 to 5 of which there was one.
    pub fn classes(&self) -> impl Iterator<Item = (usize, u64)> {
        let counts = self.classes.iter().map(|count| count.load(Ordering::Relaxed)).enumerate();
        counts.filter(|(class, count)| *class > 0 && *count > 0)
    }
}

impl Histogram {
    /// One more.
    pub fn observe(&self, time: Duration) {
        let place = BOUNDS.iter().position(|bound| time <= *bound);
        place.and_then(|place| self.buckets.get(place)).unwrap_or(&self.longer).fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// All of them together, in seconds.
    pub fn sum(&self) -> f64 {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64()
    }

    /// Each bucket's bound in seconds and how many fell into it, the last without a bound.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
        let counts = self.buckets.iter().chain([&self.longer]).map(|count| count.load(Ordering::Relaxed));
        bounds.zip(counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_in_one_case_and_one_class() {
        let tally = Tally::default();
        let refused = Case { decision: "refused", reason: "role_missing" };
        for (case, status) in [(PERMITTED, 200), (refused, 403), (PERMITTED, 204), (refused, 403), (PERMITTED, 999)] {
            tally.count(case, status);
        }
        assert_eq!(tally.cases(), [(PERMITTED, 3), (refused, 2)]);
        assert_eq!(tally.classes().collect::<Vec<_>>(), [(2, 2), (4, 2)]);
    }

    #[test]
    fn a_time_falls_into_the_bucket_whose_bound_it_does_not_exceed() {
        let histogram = Histogram::default();
        for micros in [1, 50, 51, 30_000_000, 30_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let filled: Vec<_> = histogram.buckets().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.000_05, 2), (0.000_1, 1), (30.0, 1), (f64::INFINITY, 1)]);
        assert!((histogram.sum() - 60.000_103).abs() < 1e-9);
    }
}
