//! How many requests an upstream may be sent a second time.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// How many requests may be sent a second time: a share of all, so that a failing upstream is not asked twice as much.
#[derive(Debug)]
pub(super) struct Budget {
    percent: u32,
    state: Mutex<(Instant, u32)>,
}

/// A hundredth of a repetition is what the budget is counted in; it starts with ten, and gains one a second.
const REPETITION: u32 = 100;
const MOST_SAVED: u32 = 100 * REPETITION;

impl Budget {
    pub(super) fn new(percent: u32) -> Self {
        Self { percent, state: Mutex::new((Instant::now(), 10 * REPETITION)) }
    }

    /// A request is sent for the first time.
    pub(super) fn earn(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 = state.1.saturating_add(self.percent).min(MOST_SAVED);
    }

    /// Whether one may be sent a second time.
    pub(super) fn spend(&self) -> bool {
        if self.percent == 0 {
            return false;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let gained = u32::try_from((now - state.0).as_millis() / 10).unwrap_or(MOST_SAVED);
        let saved = state.1.saturating_add(gained).min(MOST_SAVED);
        *state = (now, saved.saturating_sub(REPETITION));
        if saved < REPETITION {
            state.1 = saved;
        }
        saved >= REPETITION
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn repetitions_are_a_share_of_all_requests() {
        let budget = Budget::new(20);
        let spent = (0..1000).filter(|_| budget.spend()).count();
        assert_eq!(spent, 10, "what it starts with");
        let spent = (0..1000)
            .filter(|_| {
                budget.earn();
                budget.spend()
            })
            .count();
        assert!((190..=210).contains(&spent), "{spent}");
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!((0..10).filter(|_| budget.spend()).count(), 3);
        assert!(!Budget::new(0).spend());
    }
}
