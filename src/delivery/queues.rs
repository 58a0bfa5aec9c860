//! The queues of all destinations, as the configuration in force has them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use super::{Destination, Orders, Shared, Stage, queue::Queue};
use crate::upstream::{self, Upstream};

/// Requests that may be under way to one destination by the settings of its upstream; its concurrency is what counts.
const ANY_NUMBER: usize = usize::MAX / 2;

/// What a queue works by.
#[derive(Debug)]
pub(super) struct Assignment {
    pub(super) destination: Destination,
    pub(super) upstream: Arc<Upstream>,
    /// The hash of the configuration.
    pub(super) config: Arc<str>,
}

/// Every destination's queue, each a task of its own.
#[derive(Debug)]
pub(super) struct Queues {
    shared: Arc<Shared>,
    stage: watch::Receiver<Stage>,
    entries: HashMap<Arc<str>, Entry>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Entry {
    /// `None`: nothing more is begun, and the queue ends with what is under way.
    assignment: watch::Sender<Option<Arc<Assignment>>>,
    bell: Arc<Notify>,
    upstream: Arc<Upstream>,
}

impl Queues {
    pub(super) fn new(shared: Arc<Shared>, stage: watch::Receiver<Stage>) -> Self {
        Self { shared, stage, entries: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Gives each queue what it is to work by, begins those that are new, and lets those go that are not named.
    pub(super) fn follow(&mut self, orders: &Orders) {
        let names: HashSet<_> = orders.destinations.iter().map(|destination| &destination.name).collect();
        for (name, entry) in &self.entries {
            if !names.contains(name) {
                entry.assignment.send_replace(None);
            }
        }
        for destination in &orders.destinations {
            self.assign(destination, &orders.config);
        }
        // A queue that was let go and has ended has nobody at the other end.
        self.entries.retain(|_, entry| !entry.assignment.is_closed());
        let bells = self.entries.iter().map(|(name, entry)| (Arc::clone(name), Arc::clone(&entry.bell)));
        self.shared.bells.store(Arc::new(bells.collect()));
    }

    fn assign(&mut self, destination: &Destination, config: &Arc<str>) {
        let settings = asked_once(&destination.upstream);
        let known = self.entries.get_mut(&destination.name);
        let kept = known.as_ref().map(|entry| &entry.upstream).filter(|upstream| upstream.shared().is(&settings));
        let upstream = match kept {
            Some(upstream) => Arc::clone(upstream),
            None => Arc::new(Upstream::new(&upstream::Shared::new(settings))),
        };
        let assignment = Arc::new(Assignment {
            destination: destination.clone(),
            upstream: Arc::clone(&upstream),
            config: Arc::clone(config),
        });
        if let Some(entry) = known {
            entry.upstream = Arc::clone(&upstream);
            if entry.assignment.send(Some(Arc::clone(&assignment))).is_ok() {
                return;
            }
        }
        let (sender, receiver) = watch::channel(Some(assignment));
        let bell = Arc::new(Notify::new());
        let queue = Queue::new(Arc::clone(&self.shared), receiver, self.stage.clone(), Arc::clone(&bell));
        self.tasks.spawn(queue.run());
        self.entries.insert(Arc::clone(&destination.name), Entry { assignment: sender, bell, upstream });
    }

    /// Returns when a queue has panicked.
    pub(super) async fn failed(&mut self) {
        loop {
            match self.tasks.join_next().await {
                Some(Err(error)) if error.is_panic() => return,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Returns when all queues have ended.
    pub(super) async fn ended(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The settings of an upstream whose server is asked once for each attempt, whatever it did before.
fn asked_once(settings: &upstream::Settings) -> upstream::Settings {
    upstream::Settings {
        max_in_flight: ANY_NUMBER,
        max_queued: 0,
        health: None,
        eject_after: 0,
        retry_budget: 0,
        ..settings.clone()
    }
}
