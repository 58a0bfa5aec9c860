//! Thinning out of a flood of refusals, so that a stranger cannot fill the log; what is left out is counted.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Access, Decision};
use crate::limits::Network;

/// Lines of one client for one reason in a window; more are left out.
pub(super) const MOST_LINES: u64 = 200;
/// How long a window lasts.
const WINDOW: Duration = Duration::from_secs(1);
/// Clients and reasons that are told apart in a window. All others count as one client.
const MOST_KEYS: usize = 4096;

/// Whose refusals, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    reason: &'static str,
    client: Option<Network>,
}

/// What was written and left out in the present window.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    began: Option<Instant>,
    counts: HashMap<Key, Count>,
    omitted: u64,
}

#[derive(Debug, Default)]
struct Count {
    lines: u64,
    /// The address as it is shown.
    address: String,
}

/// Whether it was refused before anything was proven.
fn is_of_nobody(access: &Access) -> bool {
    access.decision == Decision::Refused && access.account.is_none() && access.signed.is_none()
}

impl Sampling {
    /// Whether `access` is to be written: always, but for what nobody is proven to have asked and came too often.
    pub(super) fn admits(&mut self, access: &Access, now: Instant) -> bool {
        let Some(reason) = access.reason.filter(|_| is_of_nobody(access)) else {
            return true;
        };
        self.began.get_or_insert(now);
        let client = access.client.as_ref().map(|client| Network::from(client.address));
        let mut key = Key { reason, client };
        if self.counts.len() >= MOST_KEYS && !self.counts.contains_key(&key) {
            key.client = None;
        }
        let count = self.counts.entry(key).or_default();
        count.lines += 1;
        let is_admitted = count.lines <= MOST_LINES;
        if !is_admitted {
            self.omitted += 1;
            if count.address.is_empty()
                && let (Some(_), Some(client)) = (key.client, &access.client)
            {
                client.text().to_str().unwrap_or_default().clone_into(&mut count.address);
            }
        }
        is_admitted
    }

    /// When what was left out is to be said; `None` while nothing was.
    pub(super) fn due(&self) -> Option<Instant> {
        self.began.filter(|_| self.omitted > 0).map(|began| began + WINDOW)
    }

    /// Ends the window if it is over, or at the end of the log; appends a line for each key of which something was left out,
    /// and answers how many lines that were.
    pub(super) fn end_window(&mut self, now: Instant, finished: bool, out: &mut Vec<u8>) -> u64 {
        if !finished && self.began.is_none_or(|began| now < began + WINDOW) {
            return 0;
        }
        let mut lines = 0;
        for (key, count) in self.counts.drain() {
            let omitted = count.lines.saturating_sub(MOST_LINES);
            if omitted > 0 {
                print(key.reason, &count.address, omitted, out);
                lines += 1;
            }
        }
        (self.began, self.omitted) = (None, 0);
        lines
    }
}

fn print(reason: &str, address: &str, omitted: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"timestamp\":\"");
    // A time that has no such form is left empty.
    let _ = OffsetDateTime::from(SystemTime::now()).format_into(out, &Rfc3339);
    let address = if address.is_empty() { String::new() } else { format!(",\"client.address\":\"{address}\"") };
    let rest = format!(
        "\"{address},\"countersign.decision\":\"refused\",\"countersign.reason\":\"{reason}\",\"countersign.omitted\":{omitted}}}\n"
    );
    out.extend_from_slice(rest.as_bytes());
}
