//! What the store is asked to do, each with the place for its answer.

use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Acceptance, Act, Arrived, Figures, Leased, Settled, Unavailable, Want};

/// A question whose answer is found first and given later: once it is durable.
#[derive(Debug)]
pub(super) struct Ask<Q, T> {
    pub(super) what: Q,
    pub(super) answer: Option<T>,
    reply: oneshot::Sender<Result<T, Unavailable>>,
}

/// What whoever asked waits for.
pub(super) type Answer<T> = oneshot::Receiver<Result<T, Unavailable>>;

/// An event that waits, and the room that it takes meanwhile.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) arrived: Arrived,
    pub(super) _room: OwnedSemaphorePermit,
}

/// What changes the store, and what comes along with it.
#[derive(Debug)]
pub(super) enum Command {
    Accept(Ask<Box<Waiting>, Acceptance>),
    Lease(Ask<Want, Leased>),
    Settle(Ask<Settled, bool>),
    Acts(Ask<(), Vec<Act>>),
    ForgetActs(Ask<Vec<i64>, ()>),
    Drop(Ask<Doomed, u64>),
    /// Nothing more is taken after this.
    Finish,
}

/// Events that were found to be older than the retention; how many rows went is the answer.
#[derive(Debug)]
pub(super) struct Doomed {
    /// Whose bodies go.
    pub(super) bodies: Vec<i64>,
    /// That go themselves, with all that belongs to them.
    pub(super) events: Vec<i64>,
}

/// What takes long.
#[derive(Debug)]
pub(super) enum Inquiry {
    Figures(Ask<(), Vec<Figures>>),
    /// Drops what is older than the retention.
    Expire(Ask<Duration, u64>),
    Finish,
}

impl<Q, T> Ask<Q, T> {
    pub(super) fn new(what: Q) -> (Self, Answer<T>) {
        let (reply, answer) = oneshot::channel();
        (Self { what, answer: None, reply }, answer)
    }

    /// Whether nobody waits for the answer any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Gives the answer that was found, where what it rests on is `kept`.
    pub(super) fn give(self, kept: bool) {
        let answer = if kept { self.answer.ok_or(Unavailable::Failed) } else { Err(Unavailable::Failed) };
        let _ = self.reply.send(answer);
    }
}

impl Command {
    pub(super) fn give(self, kept: bool) {
        match self {
            Self::Accept(ask) => ask.give(kept),
            Self::Lease(ask) => ask.give(kept),
            Self::Settle(ask) => ask.give(kept),
            Self::Acts(ask) => ask.give(kept),
            Self::ForgetActs(ask) => ask.give(kept),
            Self::Drop(ask) => ask.give(kept),
            Self::Finish => {}
        }
    }
}
