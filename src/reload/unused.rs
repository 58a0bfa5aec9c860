//! Which of two secrets is not used any more, so that it can be removed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::signature::Uses;

/// How long a secret is not used before that is said, and how often it is.
const UNUSED_FOR: Duration = Duration::from_secs(6 * 3600);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Looks now and again, and remembers what was said.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    looked: Option<Instant>,
    said: BTreeMap<(String, usize), Instant>,
}

impl Lookout {
    /// Says which secrets of `owners`, apps by name and webhooks by path, are not used at `now` (in seconds since the epoch).
    pub(super) fn look(&mut self, owners: impl FnOnce() -> BTreeMap<String, Vec<Arc<Uses>>>, now: i64) {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        for (owner, uses) in owners() {
            for one in &uses {
                one.in_force(now);
            }
            let Some(place) = unused(&uses, now) else { continue };
            let key = (owner.clone(), place);
            if self.said.get(&key).is_none_or(|said| said.elapsed() >= UNUSED_FOR) {
                self.said.insert(key, Instant::now());
                let secret = place + 1;
                tracing::warn!(
                    owner,
                    secret,
                    "this secret has not been used for six hours, and the other one has: remove it"
                );
            }
        }
    }
}

/// The place of the one of two secrets that was not used for long, while the other was.
fn unused(uses: &[Arc<Uses>], now: i64) -> Option<usize> {
    let [first, second] = uses else { return None };
    let long = i64::try_from(UNUSED_FOR.as_secs()).unwrap_or(i64::MAX);
    // Nothing is to be said of one before the other could have been used for as long.
    let is_quiet = |uses: &Uses, other: &Uses| {
        let last = uses.last().unwrap_or_else(|| uses.in_force(now));
        now - last.max(other.in_force(now)) >= long
    };
    match (is_quiet(first, second), is_quiet(second, first)) {
        (true, false) if second.count() > 0 => Some(0),
        (false, true) if first.count() > 0 => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_unused_after_six_hours_in_which_the_other_was_used() {
        const HOUR: i64 = 3600;
        let used = |last: Option<i64>| {
            let uses = Uses::default();
            uses.in_force(1000 * HOUR);
            if let Some(last) = last {
                uses.note(last);
            }
            Arc::new(uses)
        };
        let of = |first, second, now| unused(&[used(first), used(second)], now);
        let at = |hours: i64| Some((1000 + hours) * HOUR);
        let now = 1010 * HOUR;
        assert_eq!(of(at(1), at(10), now), Some(0));
        assert_eq!(of(at(10), at(1), now), Some(1));
        assert_eq!(of(None, at(10), now), Some(0), "never, and in force for long");
        assert_eq!(of(at(5), at(10), now), None, "not for six hours yet");
        assert_eq!(of(at(1), at(2), now), None, "nobody asks at all");
        assert_eq!(of(None, at(2), 1003 * HOUR), None, "in force for three hours only");
        let fresh = Uses::default();
        fresh.note((1010 * HOUR) - 60);
        fresh.in_force((1010 * HOUR) - 120);
        assert_eq!(unused(&[used(at(1)), Arc::new(fresh)], now), None, "the other one came two minutes ago");
        assert_eq!(unused(&[used(None)], now), None);
    }
}
