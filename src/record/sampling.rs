//! Thinning out of a flood of what nobody is proven to have asked, so that a stranger cannot fill the log; what is left out is counted.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::Access;
use crate::limits::Network;

/// Lines of one client for one reason in a window; more are left out.
pub(super) const MOST_LINES: u64 = 200;
/// How many bytes of the client's own choice count as a line.
const LINE_BYTES: usize = 1024;
/// How long a window lasts.
const WINDOW: Duration = Duration::from_secs(1);
/// Clients and reasons that are told apart in a window. All others count as one client.
const MOST_KEYS: usize = 4096;

/// Whose requests, and what became of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    decision: &'static str,
    reason: Option<&'static str>,
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
    /// What was written, in lines of ordinary length.
    written: u64,
    omitted: u64,
    /// The address as it is shown.
    address: String,
}

/// Whether nothing was proven: neither who asks nor an event.
fn is_of_nobody(access: &Access) -> bool {
    access.account.is_none() && access.signed.is_none() && access.event.is_none()
}

/// How many lines of ordinary length `access` takes the room of.
fn weight(access: &Access) -> u64 {
    let target = access.asked.as_ref().and_then(|asked| asked.target.as_ref()).map_or(0, |target| target.path().len());
    let agent = access.user_agent.as_ref().map_or(0, http::HeaderValue::len);
    1 + ((target + agent) / LINE_BYTES) as u64
}

impl Sampling {
    /// Whether `access` is to be written: always, but for what nobody is proven to have asked and came too often.
    pub(super) fn admits(&mut self, access: &Access, now: Instant) -> bool {
        if !is_of_nobody(access) {
            return true;
        }
        self.began.get_or_insert(now);
        let client = access.client.as_ref().map(|client| Network::from(client.address));
        let mut key = Key { decision: access.decision.as_str(), reason: access.reason, client };
        if self.counts.len() >= MOST_KEYS && !self.counts.contains_key(&key) {
            key.client = None;
        }
        let count = self.counts.entry(key).or_default();
        count.written += weight(access);
        let is_admitted = count.written <= MOST_LINES;
        if !is_admitted {
            count.omitted += 1;
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
            if count.omitted > 0 {
                print(key, &count, out);
                lines += 1;
            }
        }
        (self.began, self.omitted) = (None, 0);
        lines
    }
}

fn print(key: Key, count: &Count, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"timestamp\":\"");
    // A time that has no such form is left empty.
    let _ = OffsetDateTime::from(SystemTime::now()).format_into(out, &Rfc3339);
    let Count { omitted, address, .. } = count;
    let address = if address.is_empty() { String::new() } else { format!(",\"client.address\":\"{address}\"") };
    let reason = key.reason.map(|reason| format!(",\"countersign.reason\":\"{reason}\"")).unwrap_or_default();
    let rest = format!(
        "\"{address},\"countersign.decision\":\"{}\"{reason},\"countersign.omitted\":{omitted}}}\n",
        key.decision
    );
    out.extend_from_slice(rest.as_bytes());
}
