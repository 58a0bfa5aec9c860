//! When a delivery is tried again, and when no more.

use std::time::{Duration, SystemTime};

/// How long a delivery is tried, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The least time between an attempt that failed and the next.
    pub first: Duration,
    /// The most, whatever the destination asks for.
    pub longest: Duration,
    /// How long after acceptance, or after the last `retry` by hand, the last attempt may begin.
    pub give_up: Duration,
}

/// What follows a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next attempt, so long from now.
    After(Duration),
    /// None: it would begin later than [`Retry::give_up`] allows.
    GivenUp,
}

/// The time since which giving up counts, and now.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub since: SystemTime,
    pub now: SystemTime,
}

impl Retry {
    /// What follows attempt number `attempt` (from 1), which failed at `times.now`. `asked` is what the destination's
    /// `Retry-After` says, and `random` is in 0..1.
    pub fn next(&self, attempt: u32, asked: Option<Duration>, times: Times, random: f64) -> Next {
        let delay = self.delay(attempt, asked, random);
        let last = times.since.checked_add(self.give_up);
        let next = times.now.checked_add(delay);
        match (next, last) {
            (Some(next), Some(last)) if next > last => Next::GivenUp,
            (None, _) => Next::GivenUp,
            (Some(_), Some(_) | None) => Next::After(delay),
        }
    }

    /// A time between `first` and `first · 2^attempt`, each as likely as the other, but not more than `longest`: so many
    /// deliveries that failed together do not come again together. Later if the destination asks for it, up to `longest`.
    ///
    /// Source: AWS, "Exponential Backoff And Jitter",
    /// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>; with `first` in place of zero as the
    /// least, so that a destination has it for itself whatever the dice say.
    fn delay(&self, attempt: u32, asked: Option<Duration>, random: f64) -> Duration {
        let first = self.first.min(self.longest);
        let most = self.first.saturating_mul(2_u32.saturating_pow(attempt)).clamp(first, self.longest);
        let drawn = first + most.saturating_sub(first).mul_f64(random.clamp(0.0, 1.0));
        drawn.max(asked.unwrap_or_default()).min(self.longest)
    }
}

/// What a `Retry-After` asks for, in seconds or as a date, at `now`; `None` for anything else.
///
/// Source: RFC 9110, section 10.2.3.
pub fn retry_after(value: &[u8], now: SystemTime) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // A number that is too large to be held asks for longer than anybody waits.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RETRY: Retry = Retry {
        first: Duration::from_secs(1),
        longest: Duration::from_secs(3600),
        give_up: Duration::from_secs(3 * 86400),
    };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_range_doubles_with_each_attempt_up_to_the_longest() {
        for (attempt, most) in [(1, 2), (2, 4), (3, 8), (11, 2048), (12, 3600), (40, 3600), (u32::MAX, 3600)] {
            assert_eq!(RETRY.delay(attempt, None, 0.0), seconds(1), "{attempt}");
            assert_eq!(RETRY.delay(attempt, None, 1.0), seconds(most), "{attempt}");
        }
        assert_eq!(RETRY.delay(3, None, 0.5), Duration::from_millis(4500));
    }

    #[test]
    fn a_destination_may_ask_for_longer_up_to_the_longest_and_not_for_less() {
        assert_eq!(RETRY.delay(1, Some(seconds(60)), 0.5), seconds(60));
        assert_eq!(RETRY.delay(1, Some(seconds(86400)), 0.5), seconds(3600));
        assert_eq!(RETRY.delay(3, Some(seconds(0)), 1.0), seconds(8));
    }

    #[test]
    fn no_attempt_begins_after_giving_up() {
        let since = SystemTime::UNIX_EPOCH;
        let next = |after: u64| RETRY.next(1, None, Times { since, now: since + seconds(after) }, 1.0);
        assert_eq!(next(0), Next::After(seconds(2)));
        assert_eq!(next(3 * 86400 - 2), Next::After(seconds(2)));
        assert_eq!(next(3 * 86400 - 1), Next::GivenUp);
        // A clock that was set back, and one that is far ahead.
        assert_eq!(RETRY.next(1, None, Times { since: since + seconds(50), now: since }, 1.0), Next::After(seconds(2)));
        assert_eq!(next(1 << 40), Next::GivenUp);
        let forever = Retry { give_up: Duration::MAX, ..RETRY };
        assert_eq!(forever.next(1, None, Times { since, now: since + seconds(1 << 40) }, 1.0), Next::After(seconds(2)));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + seconds(784_111_777);
        for (value, asked) in [
            ("0", Some(0)),
            (" 120\t", Some(120)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:49:36 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("\u{ff11}", None),
        ] {
            assert_eq!(retry_after(value.as_bytes(), now), asked.map(seconds), "{value}");
        }
        assert_eq!(retry_after(b"\xff", now), None);
    }

    proptest! {
        #[test]
        fn a_delay_is_within_its_bounds(
            (first, longest) in (0_u64..100_000, 0_u64..100_000),
            attempt: u32,
            asked in proptest::option::of(0_u64..u64::MAX),
            random in 0.0..1.0,
            (after, give_up) in (0_u64..1_000_000, 0_u64..1_000_000),
        ) {
            let milliseconds = Duration::from_millis;
            let retry = Retry { first: milliseconds(first), longest: milliseconds(longest), give_up: milliseconds(give_up) };
            let delay = retry.delay(attempt, asked.map(milliseconds), random);
            prop_assert!(delay <= retry.longest);
            prop_assert!(delay >= retry.first.min(retry.longest));
            prop_assert!(delay >= asked.map(milliseconds).unwrap_or_default().min(retry.longest));
            let since = SystemTime::UNIX_EPOCH;
            let next = retry.next(attempt, asked.map(milliseconds), Times { since, now: since + milliseconds(after) }, random);
            let is_late = milliseconds(after) + delay > retry.give_up;
            prop_assert_eq!(next, if is_late { Next::GivenUp } else { Next::After(delay) });
        }

        #[test]
        fn whatever_a_destination_asks_for_is_read_without_a_fault(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = retry_after(&value, SystemTime::UNIX_EPOCH);
        }
    }
}
