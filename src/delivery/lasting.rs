//! What goes on after a panic, and tells that it happened.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{runtime::Runtime, task::JoinSet, time::sleep};

/// How long after a panic the work is begun again.
const PAUSE: Duration = Duration::from_secs(1);

/// Says, should what it is with panic, that it has stopped.
struct Alarm<'s>(&'s AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Does the work that `begin` gives, and from its beginning whenever it panicked, until it has ended. `is_stopped` tells that it
/// panicked and is not begun again yet.
pub(super) fn run<W: Future<Output = ()>>(runtime: &Runtime, is_stopped: &AtomicBool, begin: impl Fn() -> W) {
    loop {
        // What the work holds is dropped by the panic, and what outlives it is behind locks that do without poison.
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let _alarm = Alarm(is_stopped);
            runtime.block_on(begin());
        }));
        if ended.is_ok() {
            return;
        }
        tracing::error!("delivering panicked: attempts under way are cut, and made again when their leases end");
        std::thread::sleep(PAUSE);
        is_stopped.store(false, Ordering::Relaxed);
    }
}

/// The same for work beside other work, which a panic leaves alone. `what` it is, for the log.
pub(super) async fn beside<W: Future<Output = ()> + Send + 'static>(what: &str, begin: impl Fn() -> W) {
    loop {
        // A task of its own catches its panic; the set ends it with this.
        let mut task = JoinSet::new();
        task.spawn(begin());
        match task.join_next().await {
            Some(Err(error)) if error.is_panic() => tracing::error!(%error, what, "panicked; it is begun again"),
            Some(_) | None => return,
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, atomic::AtomicUsize};

    use super::*;

    fn runtime() -> Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn work_that_panics_is_begun_again_and_it_is_told_that_it_stopped() {
        let (is_stopped, turns) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (Arc::clone(&is_stopped), Arc::clone(&turns));
        let begin = move || {
            let turn = counted.fetch_add(1, Ordering::Relaxed);
            async move { assert!(turn > 0, "on purpose") }
        };
        let thread = std::thread::spawn(move || run(&runtime(), &stopped, begin));
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !is_stopped.load(Ordering::Relaxed) {
            assert!(std::time::Instant::now() < deadline, "nobody was told");
            std::thread::sleep(Duration::from_millis(1));
        }
        thread.join().unwrap();
        assert_eq!((turns.load(Ordering::Relaxed), is_stopped.load(Ordering::Relaxed)), (2, false));
    }

    #[test]
    fn work_beside_other_work_is_begun_again_by_itself() {
        let turns = Arc::new(AtomicUsize::new(0));
        let begin = || {
            let turn = turns.fetch_add(1, Ordering::Relaxed);
            async move { assert!(turn > 0, "on purpose") }
        };
        runtime().block_on(beside("a test", begin));
        assert_eq!(turns.load(Ordering::Relaxed), 2);
    }
}
