//! Connections, as metrics tell of them.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Counts of connections, shared by all workers.
#[derive(Debug, Default)]
pub struct Traffic {
    open: [AtomicU64; 2],
    handshakes: [AtomicU64; Outcome::ALL.len()],
}

/// What an open connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    Http1,
    Http2,
}

/// How a TLS handshake ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Completed,
    /// The client went away, speaks something else, or does not agree.
    Failed,
    TimedOut,
}

/// A connection that is open, until this is dropped.
#[derive(Debug)]
pub(super) struct Open(Arc<Traffic>, Spoken);

impl Spoken {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Http1, Self::Http2];

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "h2",
        }
    }
}

impl Outcome {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Completed, Self::Failed, Self::TimedOut];

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
        }
    }
}

#[expect(clippy::indexing_slicing, reason = "there is a count for each variant")]
impl Traffic {
    /// How many connections that speak it are open.
    pub fn open(&self, spoken: Spoken) -> u64 {
        self.open[spoken as usize].load(Ordering::Relaxed)
    }

    /// How many handshakes ended so.
    pub fn handshakes(&self, outcome: Outcome) -> u64 {
        self.handshakes[outcome as usize].load(Ordering::Relaxed)
    }

    pub(super) fn shook_hands(&self, outcome: Outcome) {
        self.handshakes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn opened(self: &Arc<Self>, spoken: Spoken) -> Open {
        self.open[spoken as usize].fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(self), spoken)
    }
}

#[expect(clippy::indexing_slicing, reason = "there is a count for each variant")]
impl Drop for Open {
    fn drop(&mut self) {
        self.0.open[self.1 as usize].fetch_sub(1, Ordering::Relaxed);
    }
}
