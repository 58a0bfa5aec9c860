//! The inbox: events on disk before Stripe is told so, and what is still to be delivered of them.
//!
//! Whoever uses it hands commands over and waits for their answers; the store behind it carries out in one transaction what
//! has come together meanwhile. A store is SQLite in the state folder, or PostgreSQL where several gateways share one.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

use crate::webhook::Event;

mod ask;
mod condition;
pub mod desk;
mod figures;
mod keeper;
mod marker;
mod postgres;
mod sqlite;
mod state;

use ask::{Answer, Ask, Command, Inquiry, Waiting};

pub use condition::Condition;
pub use figures::Figures;
pub use keeper::{Fault, Initialised, Keeper, OpenError, init, open};
pub use state::State;

/// How long whoever accepts an event waits for the store.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Commands that may wait for the store; those beyond are refused at once.
const MOST_WAITING: usize = 4096;
/// The room for bodies that may wait for the store, in KiB; what goes beyond is refused at once.
const ROOM_KIB: usize = 64 * 1024;
/// How long the id of an event is remembered at least.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Where commands go. All who use one inbox have one, and all of them the same.
#[derive(Clone, Debug)]
pub struct Inbox {
    /// Where events go; what is delivered may go another way, so that neither waits for the other.
    arrivals: mpsc::Sender<Command>,
    commands: mpsc::Sender<Command>,
    inquiries: mpsc::Sender<Inquiry>,
    room: Arc<Semaphore>,
    condition: Arc<Condition>,
}

/// An event to be kept, with the destinations that are to have it.
#[derive(Clone, Debug)]
pub struct Arrived {
    /// The webhook's path; with the event's id it tells events apart.
    pub webhook: Arc<str>,
    pub event: Event,
    /// The `Content-Type` it came with.
    pub content_type: Option<Arc<str>>,
    pub body: Bytes,
    pub received: SystemTime,
    pub destinations: Vec<Arc<str>>,
}

/// What became of an [`Arrived`] event, once it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    New,
    /// It was there before; nothing was changed.
    Duplicate,
}

/// What of a destination's deliveries is asked for.
#[derive(Clone, Debug)]
pub struct Want {
    pub destination: Arc<str>,
    pub most: usize,
    /// How long nobody else gets them, by the store's clock.
    pub lease: Duration,
    /// One at a time for each object, in the order of acceptance.
    pub ordered: bool,
}

/// What is to be delivered now.
#[derive(Debug, Default)]
pub struct Leased {
    pub due: Vec<Due>,
    /// How long from now the destination's next delivery is due, where one waits for its time or for a lease to end.
    pub next: Option<Duration>,
}

/// One attempt that is to be made, by nobody else for as long as the lease lasts.
#[derive(Clone, Debug)]
pub struct Due {
    /// Stable over all attempts.
    pub delivery: Arc<str>,
    pub webhook: Arc<str>,
    pub event: Arc<str>,
    pub kind: Arc<str>,
    pub account: Option<Arc<str>>,
    pub object: Option<Arc<str>>,
    pub destination: Arc<str>,
    /// From 1; noted in the store before it is answered here.
    pub attempt: u32,
    /// Since when time for giving up counts: acceptance, or the last `retry` by hand.
    pub since: SystemTime,
    pub received: SystemTime,
    pub content_type: Option<Arc<str>>,
    pub body: Bytes,
    pub lease: Lease,
}

/// Tells the lease of a delivery from a later one of the same. Only the store makes one, and so only what was kept can be
/// [`Due`], which opens an upstream.
///
/// ```compile_fail,E0423
/// fn forged() -> countersign::inbox::Lease {
///     countersign::inbox::Lease(1)
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease(u64);

/// How an attempt ended.
#[derive(Clone, Debug)]
pub struct Settled {
    pub delivery: Arc<str>,
    pub lease: Lease,
    pub end: End,
}

/// What is to become of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Delivered,
    /// Once more, after this time.
    Again {
        after: Duration,
        error: String,
    },
    Dead {
        error: String,
    },
    /// The attempt was not made after all; it counts nevertheless. At once again for whoever asks.
    Released,
}

/// What somebody did to a delivery by hand, for the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// Its number, by which [`Inbox::forget_acts`] forgets it.
    pub number: i64,
    pub at: SystemTime,
    /// `retry` or `discard`.
    pub act: String,
    /// The name of the operating system's user.
    pub by: String,
    pub delivery: String,
    pub event: String,
    pub destination: String,
}

/// How an inbox is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    pub state_directory: PathBuf,
    pub store: Store,
    /// How long the bodies are kept of what was delivered or discarded.
    pub retention: Duration,
}

/// Where it is kept.
#[derive(Clone, Debug)]
pub enum Store {
    /// In `<state_directory>/inbox/`.
    Sqlite,
    Postgres(Postgres),
}

/// A PostgreSQL database, and how it is reached from now on: clones are one.
#[derive(Clone, Debug)]
pub struct Postgres(Arc<ArcSwap<Reach>>);

/// How a database is reached: where, as whom, by which authority.
pub struct Reach {
    pub config: tokio_postgres::Config,
    /// `None`: a plain connection.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// Why the store did not do what was asked of it. What was asked may have been done all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// Too much waits for it.
    Full,
    /// It took longer than [`PATIENCE`].
    Slow,
    /// It failed, or it is gone.
    Failed,
}

impl Inbox {
    /// Keeps an event: answers once it is durable.
    ///
    /// # Errors
    /// [`Unavailable`]; the event may have been kept nevertheless, and will then be a duplicate when it comes again.
    pub async fn accept(&self, arrived: Arrived) -> Result<Acceptance, Unavailable> {
        let kib = u32::try_from(arrived.body.len() / 1024).unwrap_or(u32::MAX).saturating_add(1);
        let room = Arc::clone(&self.room).try_acquire_many_owned(kib).map_err(|_| Unavailable::Full)?;
        let (ask, answer) = Ask::new(Box::new(Waiting { arrived, _room: room }));
        let began = Instant::now();
        let acceptance = self.condition.note(asked(&self.arrivals, Command::Accept(ask), answer).await)?;
        self.condition.note_time(began.elapsed());
        Ok(acceptance)
    }

    /// Takes what a destination is to have now.
    ///
    /// # Errors
    /// [`Unavailable`]; what was leased nevertheless is due again when its lease ends.
    pub async fn lease(&self, want: Want) -> Result<Leased, Unavailable> {
        let (ask, answer) = Ask::new(want);
        self.condition.note(asked(&self.commands, Command::Lease(ask), answer).await)
    }

    /// Notes how an attempt ended; `false` if its lease had ended and somebody else has it, so that nothing was noted.
    ///
    /// # Errors
    /// [`Unavailable`]; it can be asked again.
    pub async fn settle(&self, settled: Settled) -> Result<bool, Unavailable> {
        let (ask, answer) = Ask::new(settled);
        self.condition.note(asked(&self.commands, Command::Settle(ask), answer).await)
    }

    /// How the store does.
    pub fn condition(&self) -> &Arc<Condition> {
        &self.condition
    }

    /// What was done by hand and not forgotten yet, the oldest first, at most 100.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn acts(&self) -> Result<Vec<Act>, Unavailable> {
        let (ask, answer) = Ask::new(());
        asked(&self.commands, Command::Acts(ask), answer).await
    }

    /// Forgets the acts with these `numbers`, which were recorded, and no others: a store that was restored gives numbers again.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn forget_acts(&self, numbers: Vec<i64>) -> Result<(), Unavailable> {
        let (ask, answer) = Ask::new(numbers);
        asked(&self.commands, Command::ForgetActs(ask), answer).await
    }

    /// How many deliveries of each destination are in which state.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn figures(&self) -> Result<Vec<Figures>, Unavailable> {
        let (ask, answer) = Ask::new(());
        asked(&self.inquiries, Inquiry::Figures(ask), answer).await
    }

    /// Drops the bodies of what was delivered or discarded longer than `retention` ago, and the ids of events that are older
    /// than that and 7 days and have nothing left to deliver; how many rows went, at most some thousand at a time.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn expire(&self, retention: Duration) -> Result<u64, Unavailable> {
        let (ask, answer) = Ask::new(retention);
        asked(&self.inquiries, Inquiry::Expire(ask), answer).await
    }
}

/// Hands a question over and waits for its answer.
async fn asked<C, T>(to: &mpsc::Sender<C>, question: C, answer: Answer<T>) -> Result<T, Unavailable> {
    to.try_send(question).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => Unavailable::Full,
        mpsc::error::TrySendError::Closed(_) => Unavailable::Failed,
    })?;
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(Unavailable::Failed),
        Err(_) => Err(Unavailable::Slow),
    }
}

impl Store {
    /// Whether it is the same one, however it is reached.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Sqlite, Self::Sqlite) => true,
            (Self::Postgres(this), Self::Postgres(that)) => this.reach().leads_to(&that.reach()),
            _ => false,
        }
    }

    /// Is reached as `later` from now on, if that is the same one: with another password, by another authority.
    pub fn follow(&self, later: &Self) {
        if let (Self::Postgres(this), Self::Postgres(that)) = (self, later)
            && self.is(later)
        {
            this.0.store(that.reach());
        }
    }
}

impl Postgres {
    /// One that is reached so.
    pub fn new(reach: Reach) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(reach)))
    }

    /// How it is reached at the moment.
    pub fn reach(&self) -> Arc<Reach> {
        self.0.load_full()
    }
}

impl Reach {
    fn leads_to(&self, other: &Self) -> bool {
        let of = |config: &tokio_postgres::Config| {
            let (hosts, addresses) = (config.get_hosts().to_vec(), config.get_hostaddrs().to_vec());
            let database = (config.get_dbname().map(str::to_owned), config.get_options().map(str::to_owned));
            (hosts, addresses, config.get_ports().to_vec(), database, config.get_target_session_attrs())
        };
        of(&self.config) == of(&other.config)
    }
}

impl fmt::Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reach(redacted)")
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "too much waits for the inbox",
            Self::Slow => "the inbox took too long",
            Self::Failed => "the inbox failed",
        })
    }
}

impl std::error::Error for Unavailable {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_database_is_followed_wherever_its_password_goes_and_no_other() {
        let store = |url: &str| Store::Postgres(Postgres::new(Reach { config: url.parse().unwrap(), tls: None }));
        let user = |store: &Store| match store {
            Store::Postgres(postgres) => postgres.reach().config.get_user().map(str::to_owned),
            Store::Sqlite => None,
        };
        let kept = store("postgres://first:a@db.intranet/events");
        kept.follow(&store("postgres://second:b@db.intranet/events"));
        assert_eq!(user(&kept).as_deref(), Some("second"));
        for other in [
            "postgres://third@db.intranet/others",
            "postgres://third@other.intranet/events",
            "postgres://third@db.intranet:5433/events",
            "postgres://third@db.intranet/events?options=-c%20default_transaction_read_only%3Don",
            "postgres://third@db.intranet/events?target_session_attrs=read-only",
        ] {
            let other = store(other);
            assert!(!kept.is(&other));
            kept.follow(&other);
            assert_eq!(user(&kept).as_deref(), Some("second"));
        }
        assert!(!kept.is(&Store::Sqlite));
    }
}
