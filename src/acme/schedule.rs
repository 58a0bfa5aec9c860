//! When a certificate is renewed, and how long it waits after a failure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use instant_acme::SuggestedWindow;

use crate::tls::Leaf;

/// How soon after a failure it is tried again: after the first that long, then twice as long each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    pub first: Duration,
    pub longest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { first: Duration::from_secs(60), longest: Duration::from_secs(3600) }
    }
}

/// How often the authority is asked when it would have a certificate renewed, if it does not say how often.
const ASK_EVERY: Duration = Duration::from_secs(6 * 3600);
/// The bounds of what it may say, of which the first keeps one that always says "now" from being asked all the time.
const ASK_AT_MOST_EVERY: Duration = Duration::from_secs(3600);
const ASK_AT_LEAST_EVERY: Duration = Duration::from_secs(86_400);
/// The parts that jitter is counted in.
const PARTS: i64 = 1000;

/// When a certificate is to be renewed.
#[derive(Debug)]
pub(super) struct Renewal {
    /// Where between the earliest and the latest moment, in [`PARTS`]; drawn once, or it would never stand still.
    draw: i64,
    /// What the authority suggests, in seconds since the epoch.
    window: Option<(i64, i64)>,
    /// When it is asked next; `None`: at once.
    asks_at: Option<SystemTime>,
    /// Not before this, for what was just issued may already look old.
    earliest: SystemTime,
}

impl Default for Renewal {
    fn default() -> Self {
        Self { draw: fastrand::i64(0..PARTS), window: None, asks_at: None, earliest: UNIX_EPOCH }
    }
}

impl Renewal {
    /// Of a certificate that was just issued; the next is not asked for within `rest`.
    pub(super) fn of_new(now: SystemTime, rest: Duration) -> Self {
        Self { asks_at: Some(now + ASK_AT_MOST_EVERY), earliest: now + rest, ..Self::default() }
    }

    /// Whether the authority is to be asked.
    pub(super) fn asks(&self, now: SystemTime) -> bool {
        self.asks_at.is_none_or(|at| at <= now)
    }

    /// What the authority said.
    pub(super) fn suggest(&mut self, window: &SuggestedWindow, now: SystemTime, again: Duration) {
        self.window = Some((window.start.unix_timestamp(), window.end.unix_timestamp()));
        self.asks_at = Some(now + again.clamp(ASK_AT_MOST_EVERY, ASK_AT_LEAST_EVERY));
    }

    /// The authority says nothing; what it said before still holds.
    pub(super) fn unknown(&mut self, now: SystemTime) {
        self.asks_at = Some(now + ASK_EVERY);
    }

    /// Whether the authority says when to renew.
    pub(super) fn is_suggested(&self) -> bool {
        self.window.is_some()
    }

    /// Within the window that the authority suggests, but before a tenth of its life is left; without one at two thirds of its
    /// life or up to a twenty-fourth later.
    pub(super) fn due(&self, leaf: &Leaf) -> SystemTime {
        let life = leaf.not_after.saturating_sub(leaf.not_before).max(0);
        let (start, end) = self.window.unwrap_or_else(|| {
            let start = leaf.not_before.saturating_add(life.saturating_mul(2) / 3);
            (start, start.saturating_add(life / 24))
        });
        let within = end.saturating_sub(start).max(0) / PARTS * self.draw;
        let last = leaf.not_after.saturating_sub(life / 10);
        time(start.saturating_add(within).min(last)).max(self.earliest)
    }
}

/// The wait after failures.
#[derive(Debug)]
pub(super) struct Backoff {
    patience: Patience,
    failures: u32,
    until: Option<SystemTime>,
}

impl Backoff {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, failures: 0, until: None }
    }

    /// When it is tried again; `None` if the last attempt did not fail, or there was none.
    pub(super) fn until(&self) -> Option<SystemTime> {
        self.until
    }

    /// When it is tried again after one more failure; the longest wait `if_limited`. A tenth of it is left to chance.
    pub(super) fn failed(&mut self, now: SystemTime, if_limited: bool) -> SystemTime {
        let Patience { first, longest } = self.patience;
        let doubled = first.saturating_mul(1 << self.failures.min(20)).min(longest);
        let wait = if if_limited { longest } else { doubled };
        self.failures += 1;
        let until = now + wait.mul_f64(0.95 + fastrand::f64() / 10.0);
        self.until = Some(until);
        until
    }

    pub(super) fn succeeded(&mut self) {
        (self.failures, self.until) = (0, None);
    }
}

/// The moment of so many seconds since the epoch; the epoch for those before.
pub(super) fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::unix_seconds;

    const DAY: i64 = 86_400;

    fn leaf(days: i64) -> Leaf {
        let names = vec!["a.test".to_owned()];
        Leaf { names, not_before: 1000 * DAY, not_after: (1000 + days) * DAY, serial: Vec::new(), authority: None }
    }

    fn drawn(draw: i64, window: Option<(i64, i64)>) -> Renewal {
        Renewal { draw, window, ..Renewal::default() }
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life_with_jitter() {
        let due = |draw| unix_seconds(drawn(draw, None).due(&leaf(90)));
        assert_eq!(due(0), 1060 * DAY);
        assert!(due(PARTS - 1) > 1063 * DAY && due(PARTS - 1) < 1064 * DAY);
        let draws: std::collections::HashSet<_> = (0..100).map(|_| Renewal::default().draw).collect();
        assert!(draws.len() > 10);
    }

    #[test]
    fn what_the_authority_suggests_comes_first_but_not_too_late() {
        let due = |draw, from, until| unix_seconds(drawn(draw, Some((from, until))).due(&leaf(90)));
        assert_eq!(due(0, 1002 * DAY, 1003 * DAY), 1002 * DAY);
        assert!(due(500, 1002 * DAY, 1003 * DAY) > 1002 * DAY);
        assert!(due(PARTS - 1, 1002 * DAY, 1003 * DAY) < 1003 * DAY);
        assert_eq!(due(0, 2000 * DAY, 2001 * DAY), 1081 * DAY);
        assert_eq!(due(500, 1003 * DAY, 1002 * DAY), 1003 * DAY);
        assert_eq!(due(500, i64::MIN, i64::MAX), 0);
    }

    #[test]
    fn the_authority_is_asked_again_when_it_says_so_within_bounds() {
        let now = time(1000 * DAY);
        let window = SuggestedWindow { start: now.into(), end: now.into() };
        for (said, expected) in
            [(0, ASK_AT_MOST_EVERY), (7200, Duration::from_secs(7200)), (u64::MAX / 4, ASK_AT_LEAST_EVERY)]
        {
            let mut renewal = Renewal::default();
            assert!(renewal.asks(now));
            renewal.suggest(&window, now, Duration::from_secs(said));
            assert!(!renewal.asks(now + expected - Duration::from_secs(1)) && renewal.asks(now + expected));
        }
    }

    #[test]
    fn after_one_certificate_the_next_is_not_asked_for_at_once() {
        let rest = Duration::from_secs(60);
        let now = time(5000 * DAY);
        let renewal = Renewal::of_new(now, rest);
        assert!(!renewal.asks(now));
        assert_eq!(renewal.due(&leaf(90)), now + rest);
    }

    #[test]
    fn the_wait_doubles_up_to_a_bound() {
        let mut backoff = Backoff::new(Patience::default());
        let now = time(1000 * DAY);
        let mut waits: Vec<_> =
            (0..40).map(|_| backoff.failed(now, false).duration_since(now).unwrap().as_secs_f64() / 60.0).collect();
        for (wait, minutes) in waits.drain(..).zip([1.0, 2.0, 4.0, 8.0, 16.0, 32.0].into_iter().chain([60.0; 34])) {
            assert!((wait / minutes - 1.0).abs() < 0.06, "{wait} {minutes}");
        }
        backoff.succeeded();
        assert_eq!(backoff.until(), None);
        assert!(backoff.failed(now, true) > now + Duration::from_secs(3400));
    }
}
