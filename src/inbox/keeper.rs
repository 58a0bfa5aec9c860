//! How an inbox is opened and ended.

use std::{
    error::Error,
    fmt, io,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, mpsc};

use super::{
    Inbox, MOST_WAITING, ROOM_KIB, Settings, Store,
    ask::{Command, Inquiry},
    postgres, sqlite,
};

/// The threads behind an [`Inbox`]. Dropping this does not end them, [`Keeper::finish`] does.
#[derive(Debug)]
pub struct Keeper {
    inbox: Inbox,
    threads: Vec<JoinHandle<()>>,
}

/// What [`init`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initialised {
    /// There is a new and empty store.
    Made,
    /// The store that is there is from now on the one that is expected.
    Adopted,
    /// Nothing was wrong, and nothing was done.
    Whole,
}

/// Why an inbox cannot be opened: the store, what is wrong with it, and what to do.
#[derive(Debug)]
pub struct OpenError {
    /// The file, or the database without its password.
    pub place: String,
    pub fault: Fault,
}

/// What is wrong with a store.
#[derive(Debug)]
pub enum Fault {
    /// There is none yet; a start of the gateway makes it.
    None,
    /// It existed, and is missing.
    Missing,
    /// It existed, and nothing is in it.
    Empty,
    /// It is another one than the marker tells of; this is how that one is kept.
    Another(&'static str),
    /// A later version of this program made its schema: this number.
    Newer(i64),
    /// It cannot be understood.
    Corrupt(String),
    /// Something of it is missing in a database, where nothing is moved aside.
    Incomplete(String),
    /// It cannot be had.
    Unavailable(Box<dyn Error + Send + Sync>),
}

/// Opens the inbox and starts its threads; a store that never was is made, an older one is brought up to date.
///
/// # Errors
/// [`OpenError`]. A store that is missing, empty or broken is never replaced.
pub fn open(settings: &Settings) -> Result<(Inbox, Keeper), OpenError> {
    let (commands, asked) = mpsc::channel(MOST_WAITING);
    let (inquiries, inquired) = mpsc::channel(MOST_WAITING);
    let state_directory = &settings.state_directory;
    let (arrivals, threads) = match &settings.store {
        Store::Sqlite => (commands.clone(), sqlite::start(state_directory, (commands.clone(), asked), inquired)?),
        Store::Postgres(database) => {
            let (arrivals, arriving) = mpsc::channel(MOST_WAITING);
            let channels = postgres::Channels {
                arrivals: arriving,
                commands: asked,
                inquiries: inquired,
                drops: commands.clone(),
            };
            (arrivals, postgres::start(database, state_directory, channels)?)
        }
    };
    let room = Arc::new(Semaphore::new(ROOM_KIB));
    let inbox = Inbox { arrivals, commands, inquiries, room, condition: Arc::default() };
    Ok((inbox.clone(), Keeper { inbox, threads }))
}

/// Makes a store where there is none. Where one was lost, or is another one, it is replaced or taken only if `accepts_loss`;
/// what is broken is moved aside first.
///
/// # Errors
/// [`OpenError`], that of [`open`] where the loss is not accepted.
pub fn init(settings: &Settings, accepts_loss: bool) -> Result<Initialised, OpenError> {
    match &settings.store {
        Store::Sqlite => sqlite::init(&settings.state_directory, accepts_loss),
        Store::Postgres(database) => postgres::init(database, &settings.state_directory, accepts_loss),
    }
}

impl Keeper {
    /// Has the threads do what waits, and ends them, but waits no longer than `patience`. What is asked later is refused.
    pub fn finish(self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let Inbox { arrivals, commands, inquiries, .. } = self.inbox;
        let mut is_told = [false; 3];
        while Instant::now() < deadline && self.threads.iter().any(|thread| !thread.is_finished()) {
            // Where there is no room, there is soon.
            let [first, second, third] = &mut is_told;
            *first = *first || told(&arrivals, Command::Finish);
            *second = *second || told(&commands, Command::Finish);
            *third = *third || told(&inquiries, Inquiry::Finish);
            std::thread::sleep(Duration::from_millis(2));
        }
        if self.threads.iter().any(|thread| !thread.is_finished()) {
            tracing::error!("the inbox did not do in time what it was asked to");
        }
    }
}

/// Whether the message has arrived, or nobody is there any more.
fn told<T>(to: &mpsc::Sender<T>, message: T) -> bool {
    !matches!(to.try_send(message), Err(mpsc::error::TrySendError::Full(_)))
}

impl OpenError {
    pub(super) fn unavailable(place: impl fmt::Display, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { place: place.to_string(), fault: Fault::Unavailable(error.into()) }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LOSS: &str = "bring it back from a backup; if it is truly lost, and the events in it, accept that with `countersign \
                            inbox init --accept-loss`";
        let place = &self.place;
        match &self.fault {
            Fault::None => write!(f, "there is no inbox {place} yet: the gateway makes it when it starts"),
            Fault::Missing => write!(f, "the inbox {place} was there and is missing: {LOSS}"),
            Fault::Empty => write!(f, "the inbox {place} was there and is empty: {LOSS}"),
            Fault::Another(kept) => write!(
                f,
                "the inbox {place} is not the one that was used before ({kept}): configure that one; if what is still to be \
                 delivered in it may be left there, take this one with `countersign inbox init --accept-loss`"
            ),
            Fault::Newer(version) => write!(
                f,
                "the inbox {place} was made by a later version of countersign (schema {version}): run that version or a later one"
            ),
            Fault::Corrupt(what) => write!(f, "the inbox {place} is damaged ({what}): {LOSS}"),
            Fault::Incomplete(what) => write!(
                f,
                "the inbox {place} is damaged ({what}): bring it back from a backup; if it is truly lost, and the events in it, drop the \
                 schema `countersign` and accept that with `countersign inbox init --accept-loss`"
            ),
            Fault::Unavailable(error) => {
                write!(f, "the inbox {place} cannot be opened: {error}")?;
                let mut source = error.source();
                while let Some(cause) = source {
                    write!(f, ": {cause}")?;
                    source = cause.source();
                }
                Ok(())
            }
        }
    }
}

impl Error for OpenError {}

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        Self::other(error)
    }
}
