//! The inbox as people look at it: lists, details, and what is done by hand, while a gateway runs or not.

use std::time::SystemTime;

use super::{Figures, OpenError, Settings, State, Store, postgres, sqlite};

/// An inbox that is looked at. It neither makes a store nor changes its schema.
#[derive(Debug)]
pub struct Desk(Kept);

#[derive(Debug)]
enum Kept {
    Sqlite(sqlite::Desk),
    Postgres(postgres::Desk),
}

/// Which deliveries are asked for. What is left out holds for all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub state: Option<State>,
    pub destination: Option<String>,
    /// The type of the event: as it is, or `prefix.*`.
    pub kind: Option<String>,
    pub account: Option<String>,
    pub limit: u32,
}

/// A delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub event: String,
    pub delivery: String,
    pub webhook: String,
    pub destination: String,
    pub kind: String,
    pub account: Option<String>,
    pub state: State,
    pub attempts: u32,
    /// When the next attempt is due, or when the lease of the one under way ends; `None` also where it waits for an earlier one
    /// of the same object.
    pub next: Option<SystemTime>,
    pub last_error: Option<String>,
    pub received: SystemTime,
}

/// An event with its deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    pub event: String,
    pub webhook: String,
    pub kind: String,
    pub account: Option<String>,
    pub object: Option<String>,
    pub livemode: bool,
    pub received: SystemTime,
    pub content_type: Option<String>,
    /// `None` after the retention.
    pub body: Option<Vec<u8>>,
    pub deliveries: Vec<Row>,
}

/// What is done by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// At once again, and time for giving up counts from now.
    Retry,
    /// Never again. Not while an attempt is under way.
    Discard,
}

/// What came of a deed for one delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    pub event: String,
    pub delivery: String,
    pub destination: String,
    /// Why nothing was done.
    pub refusal: Option<Refusal>,
}

/// Why nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An attempt is under way.
    Delivering,
    Delivered,
    Discarded,
    /// Its body is not there any more.
    Dropped,
}

/// Why the inbox did not answer.
#[derive(Debug)]
pub struct Failed(pub(super) Box<dyn std::error::Error + Send + Sync>);

/// How a delivery stands for whoever wants to do something to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) state: State,
    /// The lease of the attempt under way has ended.
    pub(super) is_due: bool,
    pub(super) has_body: bool,
    /// It was asked for by its own id, not by the event's.
    pub(super) is_named: bool,
}

impl Desk {
    /// Opens the inbox that is there.
    ///
    /// # Errors
    /// [`OpenError`], also where there is none yet.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        let kept = match &settings.store {
            Store::Sqlite => Kept::Sqlite(sqlite::Desk::open(&settings.state_directory)?),
            Store::Postgres(database) => Kept::Postgres(postgres::Desk::open(database, &settings.state_directory)?),
        };
        Ok(Self(kept))
    }

    /// Deliveries, the latest events' first. Destinations beyond `known` are orphaned.
    ///
    /// # Errors
    /// [`Failed`].
    pub fn list(&self, filter: &Filter, known: &[&str]) -> Result<Vec<Row>, Failed> {
        match &self.0 {
            Kept::Sqlite(desk) => desk.list(filter, known),
            Kept::Postgres(desk) => desk.list(filter, known),
        }
    }

    /// The events with this id, or the one that the delivery with this id is of, with only that one.
    ///
    /// # Errors
    /// [`Failed`].
    pub fn show(&self, id: &str, known: &[&str]) -> Result<Vec<Details>, Failed> {
        match &self.0 {
            Kept::Sqlite(desk) => desk.show(id, known),
            Kept::Postgres(desk) => desk.show(id, known),
        }
    }

    /// Does something to the delivery with this id, or to those of the event with it that are not delivered; `by` is who does
    /// it. What was done is noted with it, for the audit log. Nothing is answered for an id that is unknown.
    ///
    /// # Errors
    /// [`Failed`]; then nothing was done, unless only the answer of PostgreSQL was lost.
    pub fn act(&mut self, deed: Deed, id: &str, by: &str) -> Result<Vec<Done>, Failed> {
        match &mut self.0 {
            Kept::Sqlite(desk) => desk.act(deed, id, by),
            Kept::Postgres(desk) => desk.act(deed, id, by),
        }
    }

    /// How many events there are, and how many deliveries of each destination in which state.
    ///
    /// # Errors
    /// [`Failed`].
    pub fn stats(&self) -> Result<(u64, Vec<Figures>), Failed> {
        match &self.0 {
            Kept::Sqlite(desk) => desk.stats(),
            Kept::Postgres(desk) => desk.stats(),
        }
    }
}

impl Deed {
    /// The word in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Discard => "discard",
        }
    }

    /// What keeps it from being done; `None` also for what an event's id does not mean.
    pub(super) fn verdict(self, standing: Standing) -> Verdict {
        let Standing { state, is_due, has_body, is_named } = standing;
        let refused = match (self, state) {
            // What is delivered is meant only where it is named itself.
            (_, State::Delivered) if !is_named => return Verdict::NotMeant,
            (_, State::Delivering) if !is_due => Refusal::Delivering,
            (Self::Discard, State::Delivered) => Refusal::Delivered,
            (Self::Discard, State::Discarded) => Refusal::Discarded,
            (Self::Retry, _) if !has_body => Refusal::Dropped,
            (Self::Retry | Self::Discard, _) => return Verdict::Done,
        };
        Verdict::Refused(refused)
    }

    pub(super) fn state(self) -> State {
        match self {
            Self::Retry => State::Pending,
            Self::Discard => State::Discarded,
        }
    }
}

/// Whether something is done to a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Done,
    Refused(Refusal),
    NotMeant,
}

impl Verdict {
    /// What is answered for it, if anything is.
    pub(super) fn told(self, event: String, delivery: String, destination: String) -> Option<Done> {
        let refusal = match self {
            Self::NotMeant => return None,
            Self::Done => None,
            Self::Refused(refusal) => Some(refusal),
        };
        Some(Done { event, delivery, destination, refusal })
    }
}

/// The part before the star of `prefix.*`.
pub(super) fn prefix(kind: &str) -> Option<&str> {
    kind.strip_suffix('*').filter(|prefix| prefix.ends_with('.'))
}

impl Refusal {
    /// Why, in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivering => "an attempt is under way; wait for its end",
            Self::Delivered => "it is delivered",
            Self::Discarded => "it is discarded already",
            Self::Dropped => "its body is not there any more: the retention is over",
        }
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failed {}
