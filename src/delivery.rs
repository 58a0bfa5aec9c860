//! The way of kept events to the services that are to have them: at least once, each destination on its own.
//!
//! One thread has a queue for each destination. A queue takes from the inbox what it can begin at once, makes the attempts,
//! and notes how they ended. So a destination that is slow or gone holds up nobody else, and bodies are in memory only for
//! attempts that are under way. How an attempt is made stands in [`attempt`], when the next one is in [`retry`].

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::uri::PathAndQuery;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    audit::Audit,
    clock::Clock,
    inbox::{self, Inbox, Unavailable},
    record::{AttemptOutcome, Log},
    signature::SigningKey,
    upstream,
};

mod attempt;
mod lasting;
mod queue;
mod queues;
pub mod retry;
mod upkeep;

pub use retry::Retry;

use queues::Queues;

/// What is left after the patience of a drain for noting what was cut short.
const LAST_NOTES: Duration = Duration::from_secs(2);

/// The least time between two warnings that a delivery to one destination is dead.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Where events go.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Its state in the inbox hangs on it.
    pub name: Arc<str>,
    /// Its one server; how often it is asked is told by what follows, and not by these settings.
    pub upstream: upstream::Settings,
    pub target: PathAndQuery,
    /// What deliveries are signed with; `None`: nothing.
    pub key: Option<SigningKey>,
    /// From the beginning of an attempt to the head of its answer.
    pub timeout: Duration,
    /// Attempts at one time, at least one.
    pub concurrency: usize,
    /// The events of one object one after the other, as they were accepted.
    pub ordered: bool,
    pub retry: Retry,
}

/// The thread that delivers. Dropping this ends it in the midst of what it does, as a crash would; [`Deliverer::finish`]
/// ends it well.
#[derive(Debug)]
pub struct Deliverer {
    shared: Arc<Shared>,
    orders: watch::Sender<Arc<Orders>>,
    stage: watch::Sender<Stage>,
    thread: JoinHandle<()>,
}

/// Tells the queues that there is something new.
#[derive(Clone, Debug)]
pub struct Post(Arc<Shared>);

/// Tells how delivering goes, from any thread.
#[derive(Clone, Debug)]
pub struct Gauge(Arc<Shared>);

/// How delivering goes.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// How many attempts ended how since the start, by destination.
    pub attempts: Vec<(Arc<str>, AttemptOutcome, u64)>,
    /// What the inbox holds, as of some seconds ago; `None` as long as the store has not told.
    pub deliveries: Option<Arc<Vec<inbox::Figures>>>,
}

/// What is to be done.
#[derive(Debug)]
struct Orders {
    destinations: Vec<Destination>,
    retention: Duration,
    /// The hash of the configuration.
    config: Arc<str>,
}

/// Whether attempts are begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    On,
    /// None any more; those under way may end until then.
    Drain {
        until: Instant,
    },
}

/// What all queues have in common.
#[derive(Debug)]
struct Shared {
    inbox: Inbox,
    log: Log,
    audit: Option<Audit>,
    clock: Clock,
    /// Delivering panicked, and is not begun again yet.
    is_stopped: AtomicBool,
    /// The store did not answer when it was last asked.
    is_store_gone: AtomicBool,
    /// What wakes each queue.
    bells: ArcSwap<HashMap<Arc<str>, Arc<Notify>>>,
    counts: Mutex<BTreeMap<Arc<str>, [u64; AttemptOutcome::ALL.len()]>>,
    /// When a death was last told of each destination.
    told: Mutex<HashMap<Arc<str>, Instant>>,
    deliveries: ArcSwapOption<Vec<inbox::Figures>>,
    /// Somebody wants to know them.
    is_asked: AtomicBool,
}

impl Deliverer {
    /// Starts delivering what `inbox` holds for these destinations. What was delivered is dropped after `retention`.
    /// `config` is the hash of the configuration, for the records.
    ///
    /// # Errors
    /// The system's, if no thread can be started.
    pub fn start(
        inbox: Inbox,
        destinations: Vec<Destination>,
        retention: Duration,
        (log, audit): (Log, Option<Audit>),
        config: Arc<str>,
        clock: Clock,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::new(Shared {
            inbox,
            log,
            audit,
            clock,
            is_stopped: AtomicBool::new(false),
            is_store_gone: AtomicBool::new(false),
            bells: ArcSwap::default(),
            counts: Mutex::default(),
            told: Mutex::default(),
            deliveries: ArcSwapOption::empty(),
            is_asked: AtomicBool::new(false),
        });
        let orders = watch::Sender::new(Arc::new(Orders { destinations, retention, config }));
        let stage = watch::Sender::new(Stage::On);
        let (own, ordered, staged) = (Arc::clone(&shared), orders.subscribe(), stage.subscribe());
        let run = move || {
            lasting::run(&runtime, &own.is_stopped, || work(Arc::clone(&own), ordered.clone(), staged.clone()));
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("delivery".into()).spawn(run)?;
        Ok(Self { shared, orders, stage, thread })
    }

    /// What whoever accepts an event tells the queues with.
    pub fn post(&self) -> Post {
        Post(Arc::clone(&self.shared))
    }

    /// What tells others how delivering goes.
    pub fn gauge(&self) -> Gauge {
        Gauge(Arc::clone(&self.shared))
    }

    /// Delivers to these destinations from now on. One whose upstream is the same keeps its connections; attempts under way
    /// end by what they began with. What the inbox holds for one that is not named any more stays there.
    pub fn change(&self, destinations: Vec<Destination>, retention: Duration, config: Arc<str>) {
        self.orders.send_replace(Arc::new(Orders { destinations, retention, config }));
    }

    /// Begins no more attempts and waits for those under way, but no longer than `patience`; what is left then is cut short
    /// and noted as failed, to be tried again soon.
    pub fn finish(self, patience: Duration) {
        let Self { orders, stage, thread, .. } = self;
        stage.send_replace(Stage::Drain { until: Instant::now() + patience });
        if thread.join().is_err() {
            tracing::error!("the thread that delivers panicked");
        }
        drop(orders);
    }
}

impl Post {
    /// Has the queues of these destinations look into the inbox at once.
    pub fn wake(&self, destinations: &[Arc<str>]) {
        let bells = self.0.bells.load();
        for bell in destinations.iter().filter_map(|name| bells.get(name)) {
            bell.notify_one();
        }
    }
}

impl Gauge {
    /// Whether nothing is delivered, for the thread panicked. It is begun again within a second or so.
    pub fn is_stopped(&self) -> bool {
        self.0.is_stopped.load(Ordering::Relaxed)
    }

    /// How delivering goes. What the inbox holds is asked for every five seconds as long as somebody wants to know.
    pub fn figures(&self) -> Figures {
        let shared = &self.0;
        shared.is_asked.store(true, Ordering::Relaxed);
        let counts = shared.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |(name, counts): (&Arc<str>, &[u64; AttemptOutcome::ALL.len()])| {
            let name = Arc::clone(name);
            let counts = AttemptOutcome::ALL.into_iter().zip(*counts);
            counts.map(move |(outcome, count)| (Arc::clone(&name), outcome, count)).collect::<Vec<_>>()
        };
        Figures { attempts: counts.iter().flat_map(of).collect(), deliveries: shared.deliveries.load_full() }
    }
}

/// Delivers until the drain has ended, or nobody holds the [`Deliverer`] any more.
async fn work(shared: Arc<Shared>, mut orders: watch::Receiver<Arc<Orders>>, mut stage: watch::Receiver<Stage>) {
    let mut queues = Queues::new(Arc::clone(&shared), stage.clone());
    let (kept, ordered) = (Arc::clone(&shared), orders.clone());
    let keep_up = || upkeep::run(Arc::clone(&kept), ordered.clone());
    let mut upkeep = Box::pin(lasting::beside("upkeep of the inbox", keep_up));
    let until = loop {
        let now = Arc::clone(&orders.borrow_and_update());
        queues.follow(&now);
        tokio::select! {
            changed = orders.changed() => if changed.is_err() { return },
            () = queues.failed() => tracing::error!("a queue of deliveries panicked; it is begun again"),
            draining = stage.wait_for(|stage| *stage != Stage::On) => match draining.as_deref() {
                Ok(Stage::Drain { until }) => break *until,
                Ok(Stage::On) | Err(_) => return,
            },
            () = &mut upkeep => return,
        }
    };
    drop(upkeep);
    if tokio::time::timeout_at(until + LAST_NOTES, queues.ended()).await.is_err() {
        tracing::warn!("not all attempts could be noted before the end; they will be made again");
    }
}

impl Shared {
    fn count(&self, destination: &Arc<str>, outcome: AttemptOutcome) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = counts.entry(Arc::clone(destination)).or_default();
        if let Some(count) = counts.get_mut(outcome as usize) {
            *count += 1;
        }
    }

    /// Whether a death at `destination` is told in the program's own log: now and again, for when a service is gone for long
    /// there is one for each event. The records have them all.
    fn tells_of(&self, destination: &Arc<str>) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if told.get(destination).is_some_and(|told| now - *told < TELL_EVERY) {
            return false;
        }
        told.insert(Arc::clone(destination), now);
        true
    }

    /// Hands on what the store answered, and says when it is gone and when it is back.
    fn noting<T>(&self, answer: Result<T, Unavailable>) -> Result<T, Unavailable> {
        let was_gone = self.is_store_gone.swap(answer.is_err(), Ordering::Relaxed);
        match &answer {
            Err(reason) if !was_gone => tracing::error!(%reason, "nothing can be delivered: the inbox does not answer"),
            Ok(_) if was_gone => tracing::info!("the inbox answers again"),
            Ok(_) | Err(_) => {}
        }
        answer
    }
}
