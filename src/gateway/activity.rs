//! What of a connection the requests on it have to do with: whether it rests, and what it becomes.

use std::{
    future::{Future as _, poll_fn},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Poll, Waker, ready},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::Tunnel;
use crate::{
    body::{LOOK_EVERY, Lasting},
    limits::{Hits, Limit},
};

/// Whether a connection has requests under way, and since when; whether its client was indulged enough.
#[derive(Debug)]
pub struct Activity {
    under_way: AtomicUsize,
    finished: AtomicU64,
    waiting: AtomicWaker,
    /// Whether all that was read was taken and the next request waited for; whether something is still to be written.
    rests: AtomicBool,
    unsent: AtomicBool,
    course: Mutex<Course>,
    indulged: AtomicBool,
    overdue: AtomicBool,
    hits: Arc<Hits>,
    switched: AtomicBool,
    tunnel: Mutex<Option<Box<Tunnel>>>,
}

/// How a connection goes.
#[derive(Debug)]
struct Course {
    /// When the first of the requests under way came, or the last of them ended.
    since: Instant,
    /// What the answer that is being written was permitted by, on a connection that has one at a time.
    permitted: Option<Arc<dyn Lasting>>,
}

/// A request under way on a connection, while it lives.
#[derive(Debug)]
pub struct Busy(Arc<Activity>);

impl Activity {
    /// A connection on which nothing was asked yet.
    pub fn new(hits: &Arc<Hits>) -> Arc<Self> {
        Arc::new(Self {
            under_way: AtomicUsize::new(0),
            finished: AtomicU64::new(0),
            waiting: AtomicWaker::new(),
            rests: AtomicBool::new(false),
            unsent: AtomicBool::new(false),
            course: Mutex::new(Course { since: Instant::now(), permitted: None }),
            indulged: AtomicBool::new(false),
            overdue: AtomicBool::new(false),
            switched: AtomicBool::new(false),
            tunnel: Mutex::new(None),
            hits: Arc::clone(hits),
        })
    }

    /// Counts that the connection hit `limit`.
    pub fn hit(&self, limit: Limit) {
        self.hits.hit(limit);
    }

    /// How many requests were answered, or given up, so far.
    pub fn finished(&self) -> u64 {
        self.finished.load(Ordering::Acquire)
    }

    /// Notes whether the next request is waited for, with nothing left of the one before.
    pub fn note_rest(&self, rests: bool) {
        self.rests.store(rests, Ordering::Relaxed);
    }

    /// Notes whether something could not be written yet.
    pub fn note_unsent(&self, unsent: bool) {
        self.unsent.store(unsent, Ordering::Relaxed);
    }

    /// Whether nothing of a request or an answer is left in the connection, and has not been for `patience`.
    pub fn rests(&self, patience: Duration) -> bool {
        let is_quiet = self.rests.load(Ordering::Relaxed) && !self.unsent.load(Ordering::Relaxed);
        is_quiet && self.finished() > 0 && self.idle_until(patience).is_none()
    }

    /// Wakes `waker` when the next one is.
    pub fn wake_when_finished(&self, waker: &Waker) {
        self.waiting.register(waker);
    }

    /// Whether as much of a refused body was thrown away as may be, so that nothing more of it is waited for.
    pub fn is_indulged(&self) -> bool {
        self.indulged.load(Ordering::Relaxed)
    }

    /// Whether the connection speaks another protocol from now on.
    pub fn is_switched(&self) -> bool {
        self.switched.load(Ordering::Relaxed)
    }

    /// What the connection has become, for the one who serves it to run.
    pub fn tunnel(&self) -> Option<Box<Tunnel>> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn switch(&self, tunnel: Tunnel) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(tunnel));
        self.switched.store(true, Ordering::Relaxed);
    }

    pub(super) fn indulge(&self) {
        self.indulged.store(true, Ordering::Relaxed);
    }

    /// Since when the connection is idle; `None` while a request is under way.
    pub fn idle_since(&self) -> Option<Instant> {
        (!self.is_busy()).then(|| self.since())
    }

    /// Ends when an exchange has lasted for `whole`, on a connection that has one at a time; answers that limit then, and what is
    /// recorded of the exchange says so. `None`: the client does not take an answer that it is no longer permitted.
    /// A WebSocket has an age of its own.
    pub async fn overdue(&self, whole: Duration) -> Option<Limit> {
        let mut timer = std::pin::pin!(tokio::time::sleep(whole));
        let mut is_looking = false;
        poll_fn(|cx| {
            if !is_looking && self.awaited().is_some() {
                is_looking = true;
                let soon = timer.deadline().min(Instant::now() + LOOK_EVERY);
                timer.as_mut().reset(soon);
            }
            loop {
                ready!(timer.as_mut().poll(cx));
                let now = Instant::now();
                let ends = if self.is_busy() && !self.is_switched() { self.since() + whole } else { now + whole };
                if ends <= now {
                    self.overdue.store(true, Ordering::Relaxed);
                    return Poll::Ready(Some(Limit::ExchangeTimeout));
                }
                let awaited = self.awaited();
                is_looking = awaited.is_some();
                if awaited.is_some_and(|permitted| permitted.is_revoked()) {
                    return Poll::Ready(None);
                }
                timer.as_mut().reset(if is_looking { ends.min(now + LOOK_EVERY) } else { ends });
            }
        })
        .await
    }

    /// When the connection will have been idle for `patience` if nothing more is asked; `None` if it has been.
    pub fn idle_until(&self, patience: Duration) -> Option<Instant> {
        let now = Instant::now();
        let Some(since) = self.idle_since() else { return Some(now + patience) };
        let until = since + patience;
        (until > now).then_some(until)
    }

    fn is_busy(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) > 0
    }

    fn since(&self) -> Instant {
        self.course().since
    }

    fn changed(&self) {
        *self.course() = Course { since: Instant::now(), permitted: None };
    }

    /// What the answer was permitted by of which something could not be written.
    fn awaited(&self) -> Option<Arc<dyn Lasting>> {
        if self.unsent.load(Ordering::Relaxed) { self.course().permitted.clone() } else { None }
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Busy {
    /// One more request.
    pub fn new(activity: &Arc<Activity>) -> Self {
        if activity.under_way.fetch_add(1, Ordering::Relaxed) == 0 {
            activity.changed();
        }
        Self(Arc::clone(activity))
    }
}

impl Busy {
    pub(super) fn hit(&self, limit: Limit) {
        self.0.hit(limit);
    }

    /// What is answered on a connection that has one answer at a time is what `permitted` says.
    pub(super) fn watch(&self, permitted: Arc<dyn Lasting>) {
        self.0.course().permitted = Some(permitted);
    }

    /// Whether the connection was given up for what was under way on it for too long.
    pub(super) fn is_overdue(&self) -> bool {
        self.0.overdue.load(Ordering::Relaxed)
    }

    pub(super) fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.0)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.under_way.load(Ordering::Relaxed) == 1 {
            self.0.changed();
        }
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
        self.0.finished.fetch_add(1, Ordering::Release);
        self.0.waiting.wake();
    }
}
