//! Stripe's webhooks: which of them are taken, and for whom.
//!
//! Source: Stripe, "Receive Stripe events in your webhook endpoint", <https://docs.stripe.com/webhooks>.

use std::{net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{HeaderMap, uri::PathAndQuery};
use ipnet::IpNet;

use crate::{
    auth::{self, signature_of},
    route::Pattern,
    signature::{Age, SigningKey},
    tally::Tally,
};

mod event;
mod filter;
mod table;

pub use event::{Event, EventId, Unusable};
pub use filter::{Accounts, Livemode, TypeFilter};
pub use table::Webhooks;

/// How far the time of a signature may be from now, either way: that of Stripe's own libraries.
pub const TOLERANCE: Duration = Duration::from_secs(300);

/// A path that Stripe posts events to.
#[derive(Debug)]
pub struct Webhook {
    pub path: Pattern,
    /// One key, or two while the secret is being rolled.
    pub keys: Vec<SigningKey>,
    pub livemode: Livemode,
    /// The accounts whose events are taken; `None`: all.
    pub accounts: Option<Accounts>,
    pub body_limit_bytes: u64,
    /// Where requests may come from; `None`: from anywhere.
    pub sources: Option<Vec<IpNet>>,
    pub mode: Mode,
    /// Requests by what was decided; a later configuration's webhook with the same path counts on.
    pub tally: ArcSwap<Tally>,
    /// Events by what became of them, likewise.
    pub outcomes: ArcSwap<Outcomes>,
}

/// What is done with an event.
#[derive(Debug)]
pub enum Mode {
    /// It is kept, and delivered to each of these that takes it.
    Inbox(Vec<Interest>),
    /// It goes on at once, and the answer's status is relayed.
    Direct(Box<Direct>),
}

/// Which events a destination takes.
#[derive(Debug)]
pub struct Interest {
    /// The destination's name.
    pub destination: Arc<str>,
    /// `None`: all types.
    pub types: Option<Vec<TypeFilter>>,
    /// `None`: of all accounts.
    pub accounts: Option<Accounts>,
}

/// Where events go at once.
#[derive(Debug)]
pub struct Direct {
    pub interest: Interest,
    /// The place of its upstream in the configuration's list.
    pub upstream: usize,
    pub target: PathAndQuery,
    /// `None`: what goes on is not signed.
    pub key: Option<SigningKey>,
    pub timeout: Duration,
}

/// What becomes of an event that is Stripe's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is kept.
    Accepted,
    /// It was kept before.
    Duplicate,
    /// It is of the mode that is not taken.
    OtherMode,
    /// It is of an account that is not taken.
    OtherAccount,
    /// Of a direct webhook: the one destination does not take it.
    Unwanted,
    /// It went on at once, and an answer came.
    Forwarded,
    /// It could not be kept, or there was no answer.
    Failed,
    /// The request was no event of Stripe's.
    Refused,
}

/// How many events had which [`Outcome`].
#[derive(Debug, Default)]
pub struct Outcomes([std::sync::atomic::AtomicU64; Outcome::ALL.len()]);

/// Proof that bytes are an event that Stripe signed. Only [`Webhook::verify`] makes one.
///
/// ```compile_fail,E0451
/// fn forged(event: countersign::webhook::Event) -> countersign::webhook::Authentic {
///     countersign::webhook::Authentic { event }
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Authentic {
    event: Event,
}

/// Why a request brings no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    Signature(auth::Error),
    /// It is signed, and no event that can be used.
    Event(Unusable),
}

impl Webhook {
    /// Whether requests from `address` are looked at.
    pub fn takes_from(&self, address: Option<IpAddr>) -> bool {
        let Some(sources) = &self.sources else { return true };
        address
            .map(|address| address.to_canonical())
            .is_some_and(|address| sources.iter().any(|net| net.contains(&address)))
    }

    /// The reason for which `headers` alone suffice to refuse.
    ///
    /// # Errors
    /// The header form's.
    pub fn check_form(&self, headers: &HeaderMap) -> Result<(), Error> {
        signature_of(headers).map(|_| ()).map_err(Error::Signature)
    }

    /// Verifies `body`, byte for byte, and reads the event in it; `now` is in seconds since the epoch.
    ///
    /// # Errors
    /// [`Error`], the first of: header form, MAC, time, event.
    pub fn verify(&self, headers: &HeaderMap, body: &[u8], now: i64) -> Result<Authentic, Error> {
        let signature = signature_of(headers).map_err(Error::Signature)?;
        let matched = signature.matching_key(&self.keys, body).and_then(|place| self.keys.get(place));
        let key = matched.ok_or(Error::Signature(auth::Error::SignatureMismatch))?;
        key.note_use(now);
        match signature.age(now, TOLERANCE) {
            Age::Fresh => {}
            Age::Expired => return Err(Error::Signature(auth::Error::TimestampExpired)),
            Age::Future => return Err(Error::Signature(auth::Error::TimestampFuture)),
        }
        let event = Event::read(body).map_err(Error::Event)?;
        Ok(Authentic { event })
    }

    /// What keeps `event` out, if anything does.
    pub fn drops(&self, event: &Event) -> Option<Outcome> {
        if !self.livemode.takes(event.livemode) {
            return Some(Outcome::OtherMode);
        }
        let takes = self.accounts.as_ref().is_none_or(|accounts| accounts.take(event.account.as_deref()));
        if !takes {
            return Some(Outcome::OtherAccount);
        }
        match &self.mode {
            Mode::Direct(direct) if !direct.interest.takes(event) => Some(Outcome::Unwanted),
            Mode::Direct(_) | Mode::Inbox(_) => None,
        }
    }

    /// The names of those that take `event`; none of a direct webhook.
    pub fn destinations(&self, event: &Event) -> Vec<Arc<str>> {
        let Mode::Inbox(interests) = &self.mode else { return Vec::new() };
        interests
            .iter()
            .filter(|interest| interest.takes(event))
            .map(|interest| Arc::clone(&interest.destination))
            .collect()
    }
}

impl Interest {
    /// Whether the destination takes `event`.
    pub fn takes(&self, event: &Event) -> bool {
        self.types.as_ref().is_none_or(|types| types.iter().any(|filter| filter.takes(&event.kind)))
            && self.accounts.as_ref().is_none_or(|accounts| accounts.take(event.account.as_deref()))
    }
}

impl Authentic {
    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 8] = [
        Self::Accepted,
        Self::Duplicate,
        Self::OtherMode,
        Self::OtherAccount,
        Self::Unwanted,
        Self::Forwarded,
        Self::Failed,
        Self::Refused,
    ];

    /// The word in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::OtherMode => "other_mode",
            Self::OtherAccount => "other_account",
            Self::Unwanted => "unwanted",
            Self::Forwarded => "forwarded",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

impl Outcomes {
    /// One more.
    pub fn count(&self, outcome: Outcome) {
        if let Some(count) = self.0.get(outcome as usize) {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// How many there were of each.
    pub fn iter(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL
            .into_iter()
            .zip(&self.0)
            .map(|(outcome, count)| (outcome, count.load(std::sync::atomic::Ordering::Relaxed)))
    }
}

impl Error {
    /// Whether Stripe signed it nevertheless.
    pub fn is_signed(&self) -> bool {
        match self {
            Self::Event(_) | Self::Signature(auth::Error::TimestampExpired | auth::Error::TimestampFuture) => true,
            Self::Signature(_) => false,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Signature(error) => error.fmt(f),
            Self::Event(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}
