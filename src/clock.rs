//! The time of day, read once per request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where the time comes from.
#[derive(Clone, Debug)]
pub enum Clock {
    System,
    /// Seconds since the epoch, as somebody sets them: a test, or a tool that looks at an old request.
    Set(Arc<AtomicI64>),
}

impl Clock {
    /// Now.
    pub fn now(&self) -> SystemTime {
        match self {
            Self::System => SystemTime::now(),
            Self::Set(seconds) => {
                let seconds = u64::try_from(seconds.load(Ordering::Relaxed)).unwrap_or_default();
                UNIX_EPOCH + Duration::from_secs(seconds)
            }
        }
    }
}

/// Whole seconds since the epoch; zero before it.
pub fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or_default()
}
