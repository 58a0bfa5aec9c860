//! How fast a client takes what it asked for.

use std::{
    fmt,
    future::{Future as _, poll_fn},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use crate::limits::Limit;

/// How often it is looked whether a client that does not take what is there for it is still permitted to.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What a client was permitted, as far as it may end.
pub trait Lasting: fmt::Debug + Send + Sync {
    /// Whether it is permitted no longer.
    fn is_revoked(&self) -> bool;
}

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
    permitted: Option<Arc<dyn Lasting>>,
}

impl Pace {
    /// Of a client that has nothing to take yet, and whose exchange may last for `whole`.
    pub fn new(patience: Duration, rate: u64, whole: Duration) -> Arc<Self> {
        let ends = Instant::now() + whole;
        let taking = Taking { allowance: patience, since: None, permitted: None };
        Arc::new(Self { patience, rate, ends, taking: Mutex::new(taking) })
    }

    /// Ends when the client has kept us waiting for too long, or the exchange has lasted for too long; says which. `None`: it keeps us
    /// waiting with what it is no longer permitted to take.
    pub async fn exceeded(&self) -> Option<Limit> {
        let mut timer = std::pin::pin!(tokio::time::sleep_until(self.ends.min(Instant::now() + self.patience)));
        let mut is_looking = false;
        poll_fn(|cx| {
            if !is_looking && self.is_kept_waiting() {
                is_looking = true;
                let soon = timer.deadline().min(Instant::now() + LOOK_EVERY);
                timer.as_mut().reset(soon);
            }
            loop {
                ready!(timer.as_mut().poll(cx));
                if self.is_over() {
                    return Poll::Ready(Some(Limit::ExchangeTimeout));
                }
                let now = Instant::now();
                let taking = self.taking();
                let deadline = taking.since.map_or(now + self.patience, |since| since + taking.allowance);
                if deadline <= now {
                    return Poll::Ready(Some(Limit::WriteTimeout));
                }
                let waiting_with = taking.since.and(taking.permitted.clone());
                drop(taking);
                is_looking = waiting_with.is_some();
                if waiting_with.is_some_and(|permitted| permitted.is_revoked()) {
                    return Poll::Ready(None);
                }
                let next = deadline.min(self.ends);
                timer.as_mut().reset(if is_looking { next.min(now + LOOK_EVERY) } else { next });
            }
        })
        .await
    }

    /// What the client takes is what `permitted` says.
    pub fn watch(&self, permitted: Arc<dyn Lasting>) {
        self.taking().permitted = Some(permitted);
    }

    /// Whether the exchange has lasted for too long.
    pub fn is_over(&self) -> bool {
        self.ends <= Instant::now()
    }

    fn is_kept_waiting(&self) -> bool {
        let taking = self.taking();
        taking.since.is_some() && taking.permitted.is_some()
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
        assert_eq!(limit, Some(Limit::WriteTimeout));
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
        assert_eq!((limit, began.elapsed().as_secs()), (Some(Limit::ExchangeTimeout), 60));
    }
    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up_when_it_may_take_nothing() {
        #[derive(Debug, Default)]
        struct Permitted(std::sync::atomic::AtomicBool);
        impl Lasting for Permitted {
            fn is_revoked(&self) -> bool {
                self.0.load(std::sync::atomic::Ordering::Relaxed)
            }
        }

        let pace = Pace::new(Duration::from_secs(600), 100, Duration::from_secs(1000));
        let ended = tokio::spawn({
            let pace = Arc::clone(&pace);
            async move { (pace.exceeded().await, Instant::now()) }
        });
        let permitted = Arc::new(Permitted::default());
        pace.watch(Arc::clone(&permitted) as Arc<dyn Lasting>);
        pace.offer(1);
        pace.ask();
        permitted.0.store(true, std::sync::atomic::Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(500)).await;
        assert!(!ended.is_finished(), "nothing is there to take");
        permitted.0.store(false, std::sync::atomic::Ordering::Relaxed);
        pace.offer(1);
        tokio::time::sleep(Duration::from_secs(400)).await;
        assert!(!ended.is_finished(), "it may take its time");
        permitted.0.store(true, std::sync::atomic::Ordering::Relaxed);
        let revoked = Instant::now();
        let (limit, at) = ended.await.unwrap();
        assert!(limit.is_none() && at - revoked <= LOOK_EVERY, "{limit:?}, {:?}", at - revoked);
    }
}
