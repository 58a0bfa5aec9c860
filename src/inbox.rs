//! The inbox: events on disk before Stripe is told so, and what is still to be delivered of them.
//!
//! Whoever uses it hands commands over and waits for their answers; the store behind it carries out in one transaction what
//! has come together meanwhile. A store is SQLite in the state folder, or PostgreSQL where several gateways share one.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::webhook::Event;

/// How long whoever accepts an event waits for the store.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Commands that may wait for the store; those beyond are refused at once.
const MOST_WAITING: usize = 4096;

/// Where commands go. All who use one inbox have one, and all of them the same.
#[derive(Clone, Debug)]
pub struct Inbox {
    commands: mpsc::Sender<Command>,
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
    /// Its number; the ones up to it are forgotten by [`Inbox::forget_acts`].
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

/// How many deliveries of one destination are in which state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub destination: String,
    pub pending: u64,
    pub delivering: u64,
    pub delivered: u64,
    pub dead: u64,
    pub discarded: u64,
    /// When the oldest event was received that is pending or being delivered.
    pub oldest_pending: Option<SystemTime>,
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

/// A PostgreSQL database.
#[derive(Clone)]
pub struct Postgres {
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

type Reply<T> = oneshot::Sender<Result<T, Unavailable>>;

/// What the store is asked to do.
#[derive(Debug)]
enum Command {
    Accept(Box<Arrived>, Reply<Acceptance>),
    Lease(Want, Reply<Leased>),
    Settle(Settled, Reply<bool>),
    Acts(Reply<Vec<Act>>),
    ForgetActs(i64, Reply<()>),
    Figures(Reply<Vec<Figures>>),
    /// Drops what is older than the retention.
    Expire(Duration, Reply<u64>),
}

impl Inbox {
    /// Keeps an event: answers once it is durable.
    ///
    /// # Errors
    /// [`Unavailable`]; the event may have been kept nevertheless, and will then be a duplicate when it comes again.
    pub async fn accept(&self, arrived: Arrived) -> Result<Acceptance, Unavailable> {
        self.ask(|reply| Command::Accept(Box::new(arrived), reply)).await
    }

    /// Takes what a destination is to have now.
    ///
    /// # Errors
    /// [`Unavailable`]; what was leased nevertheless is due again when its lease ends.
    pub async fn lease(&self, want: Want) -> Result<Leased, Unavailable> {
        self.ask(|reply| Command::Lease(want, reply)).await
    }

    /// Notes how an attempt ended; `false` if its lease had ended and somebody else has it, so that nothing was noted.
    ///
    /// # Errors
    /// [`Unavailable`]; it can be asked again.
    pub async fn settle(&self, settled: Settled) -> Result<bool, Unavailable> {
        self.ask(|reply| Command::Settle(settled, reply)).await
    }

    /// What was done by hand and not forgotten yet, the oldest first, at most 100.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn acts(&self) -> Result<Vec<Act>, Unavailable> {
        self.ask(Command::Acts).await
    }

    /// Forgets the acts up to number `last`, which were recorded.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn forget_acts(&self, last: i64) -> Result<(), Unavailable> {
        self.ask(|reply| Command::ForgetActs(last, reply)).await
    }

    /// How many deliveries of each destination are in which state.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn figures(&self) -> Result<Vec<Figures>, Unavailable> {
        self.ask(Command::Figures).await
    }

    /// Drops the bodies of what was delivered or discarded longer than `retention` ago, and the ids of events that are older
    /// than that and 7 days and have nothing left to deliver; how many rows went, at most some thousand at a time.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn expire(&self, retention: Duration) -> Result<u64, Unavailable> {
        self.ask(|reply| Command::Expire(retention, reply)).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Unavailable> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Unavailable::Full,
            mpsc::error::TrySendError::Closed(_) => Unavailable::Failed,
        })?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Unavailable::Failed),
            Err(_) => Err(Unavailable::Slow),
        }
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Postgres(redacted)")
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
