//! What a delivery has come to.

use std::fmt;

/// What a delivery has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// It waits for its next attempt.
    Pending,
    /// An attempt is under way.
    Delivering,
    Delivered,
    /// Given up.
    Dead,
    /// Given up by hand.
    Discarded,
    /// It is to be delivered, but the configuration has no such destination any more.
    Orphaned,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Delivering, Self::Delivered, Self::Dead, Self::Discarded, Self::Orphaned];

    /// The word in lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivering => "delivering",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Discarded => "discarded",
            Self::Orphaned => "orphaned",
        }
    }

    /// The state that stands in the store as `code`, where the configuration knows the destination or not.
    pub(super) fn of(code: i64, is_known: bool) -> Option<Self> {
        let state = Self::ALL.into_iter().find(|state| state.code() == code)?;
        Some(if state.is_open() && !is_known { Self::Orphaned } else { state })
    }

    /// Whether it is still to be delivered.
    pub fn is_open(self) -> bool {
        match self {
            Self::Pending | Self::Delivering | Self::Orphaned => true,
            Self::Delivered | Self::Dead | Self::Discarded => false,
        }
    }

    /// The number in the store. An orphaned one stands there as pending or being delivered.
    pub(super) fn code(self) -> i64 {
        self.stored().into()
    }

    /// The same as the smallest integer that PostgreSQL has.
    pub(super) const fn stored(self) -> i16 {
        match self {
            Self::Pending | Self::Orphaned => 0,
            Self::Delivering => 1,
            Self::Delivered => 2,
            Self::Dead => 3,
            Self::Discarded => 4,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
