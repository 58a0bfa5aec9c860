//! The inbox and the one who delivers what it holds, as one: opened at start, ended last.

use std::{io, sync::Arc, time::Duration};

use crate::{
    audit::Audit,
    clock::Clock,
    delivery::{Deliverer, Destination, Gauge},
    gateway::Intake,
    inbox::{self, Condition, Inbox, Keeper},
    record::Log,
};

/// How long attempts under way may take at the end, and then what the store was asked to do.
const LAST_ATTEMPTS: Duration = Duration::from_secs(5);
const LAST_COMMITS: Duration = Duration::from_secs(5);

/// An inbox that is open, before anything is delivered.
#[derive(Debug)]
pub struct Opened {
    settings: inbox::Settings,
    inbox: Inbox,
    keeper: Keeper,
}

/// An inbox, and who delivers.
#[derive(Debug)]
pub struct Mailroom {
    settings: inbox::Settings,
    deliverer: Deliverer,
    inbox: Inbox,
    keeper: Keeper,
}

impl Opened {
    /// Opens the inbox.
    ///
    /// # Errors
    /// The inbox's.
    pub fn new(settings: inbox::Settings) -> Result<Self, inbox::OpenError> {
        let (inbox, keeper) = inbox::open(&settings)?;
        Ok(Self { settings, inbox, keeper })
    }

    /// Starts delivering to `destinations` under the configuration with the hash `config`.
    ///
    /// # Errors
    /// The system's, if no thread can be started; the inbox is closed then.
    pub fn deliver(
        self,
        destinations: Vec<Destination>,
        (log, audit): (Log, Option<Audit>),
        config: Arc<str>,
        clock: Clock,
    ) -> io::Result<Mailroom> {
        let Self { settings, inbox, keeper } = self;
        let started = Deliverer::start(inbox.clone(), destinations, settings.retention, (log, audit), config, clock);
        match started {
            Ok(deliverer) => Ok(Mailroom { settings, deliverer, inbox, keeper }),
            Err(error) => {
                keeper.finish(LAST_COMMITS);
                Err(error)
            }
        }
    }

    /// Closes it.
    pub fn close(self) {
        self.keeper.finish(LAST_COMMITS);
    }
}

impl Mailroom {
    /// What takes events in.
    pub fn intake(&self) -> Intake {
        Intake { inbox: self.inbox.clone(), post: self.deliverer.post() }
    }

    /// What tells how the store does.
    pub fn condition(&self) -> Arc<Condition> {
        Arc::clone(self.inbox.condition())
    }

    /// What tells how delivering goes.
    pub fn gauge(&self) -> Gauge {
        self.deliverer.gauge()
    }

    /// Whether it is kept where `settings` say, however the store is reached.
    pub fn is_kept_so(&self, settings: &inbox::Settings) -> bool {
        self.settings.state_directory == settings.state_directory && self.settings.store.is(&settings.store)
    }

    /// Delivers to these from now on, and reaches the store as `settings` say.
    pub fn change(&self, destinations: Vec<Destination>, settings: &inbox::Settings, config: Arc<str>) {
        self.settings.store.follow(&settings.store);
        self.deliverer.change(destinations, settings.retention, config);
    }

    /// Ends the attempts under way, then the inbox.
    pub fn finish(self) {
        self.deliverer.finish(LAST_ATTEMPTS);
        self.keeper.finish(LAST_COMMITS);
    }
}
