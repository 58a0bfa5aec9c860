//! How fast a client takes what it asked for.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::limits::Limit;

/// How fast a client takes an answer, where that cannot be seen on the connection: over HTTP/2 a stream without window
/// stands still while the connection lives.
///
/// The client may keep us waiting for `patience` in all; what it takes earns that back at `rate` bytes a second. However
/// fast, its exchange ends in time.
#[derive(Debug)]
pub struct Pace {
    patience: Duration,
    rate: u64,
    ends: Instant,
    taking: Mutex<Taking>,
}

#[derive(Debug)]
struct Taking {
    allowance: Duration,
    /// Since when something was there for the client to take.
    since: Option<Instant>,
}

impl Pace {
    /// Of a client that has nothing to take yet, and whose exchange may last for `whole`.
    pub fn new(patience: Duration, rate: u64, whole: Duration) -> Arc<Self> {
        let ends = Instant::now() + whole;
        Arc::new(Self { patience, rate, ends, taking: Mutex::new(Taking { allowance: patience, since: None }) })
    }

    /// Ends when the client has kept us waiting for too long, or the exchange has lasted for too long; says which.
    pub async fn exceeded(&self) -> Limit {
        loop {
            let now = Instant::now();
            let deadline = {
                let taking = self.taking();
                taking.since.map_or(now + self.patience, |since| since + taking.allowance)
            };
            if self.is_over() {
                return Limit::ExchangeTimeout;
            }
            if deadline <= now {
                return Limit::WriteTimeout;
            }
            tokio::time::sleep_until(deadline.min(self.ends)).await;
        }
    }

    /// Whether the exchange has lasted for too long.
    pub fn is_over(&self) -> bool {
        self.ends <= Instant::now()
    }

    fn taking(&self) -> MutexGuard<'_, Taking> {
        self.taking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is there for the client to take, after it took `bytes`.
    pub(super) fn offer(&self, bytes: usize) {
        let earned = Duration::from_micros((bytes as u64).saturating_mul(1_000_000) / self.rate.max(1));
        let mut taking = self.taking();
        taking.allowance = (taking.allowance + earned).min(self.patience);
        taking.since = Some(Instant::now());
    }

    /// The client has room for more.
    pub(super) fn ask(&self) {
        let mut taking = self.taking();
        if let Some(since) = taking.since.take() {
            taking.allowance = taking.allowance.saturating_sub(since.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_too_little_is_too_slow() {
        let pace = Pace::new(Duration::from_secs(10), 100, Duration::from_secs(1000));
        let began = Instant::now();
        let slow = |pace: &Arc<Pace>| {
            let pace = Arc::clone(pace);
            tokio::spawn(async move { (pace.exceeded().await, Instant::now()) })
        };
        let ended = slow(&pace);
        // While the upstream is waited for the client owes nothing.
        tokio::time::sleep(Duration::from_secs(100)).await;
        for _ in 0..20 {
            pace.offer(100);
            tokio::time::sleep(Duration::from_secs(1)).await;
            pace.ask();
        }
        assert!(!ended.is_finished(), "it took as much as it must");
        pace.offer(0);
        let (limit, at) = ended.await.unwrap();
        assert_eq!(limit, Limit::WriteTimeout);
        assert!(at - began > Duration::from_secs(120));
        // A drip of single bytes does not help.
        let pace = Pace::new(Duration::from_secs(10), 100, Duration::from_secs(1000));
        let ended = slow(&pace);
        for _ in 0..12 {
            pace.offer(1);
            tokio::time::sleep(Duration::from_secs(1)).await;
            pace.ask();
        }
        pace.offer(1);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(ended.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_ends_however_fast_its_client_is() {
        let began = Instant::now();
        let pace = Pace::new(Duration::from_secs(10), 100, Duration::from_secs(60));
        let taking = async {
            loop {
                pace.offer(1_000_000);
                tokio::time::sleep(Duration::from_secs(1)).await;
                pace.ask();
            }
        };
        let limit = tokio::select! { limit = pace.exceeded() => limit, () = taking => unreachable!() };
        assert_eq!((limit, began.elapsed().as_secs()), (Limit::ExchangeTimeout, 60));
    }
}
