//! What the writer took and has not written yet.

use super::Pending;

/// Room for records that is kept from one group to the next.
const KEPT_BYTES: usize = 1024 * 1024;

/// Records that were taken, as far as they are not written.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) fields: Vec<u8>,
    pub(super) records: Vec<Pending>,
    pub(super) written: usize,
    /// How many records were ever taken.
    pub(super) taken: u64,
}

impl Batch {
    /// Empties it; the room that an ordinary moment needs is kept.
    pub(super) fn clear(&mut self) {
        self.fields.clear();
        self.records.clear();
        self.fields.shrink_to(KEPT_BYTES);
        self.records.shrink_to(KEPT_BYTES / 1024);
        self.written = 0;
    }

    /// Throws away what is not written; how many records that are.
    pub(super) fn lose(&mut self) -> u64 {
        let lost = self.unwritten();
        *self = Self { taken: self.taken, ..Self::default() };
        lost
    }

    pub(super) fn unwritten(&self) -> u64 {
        (self.records.len() - self.written) as u64
    }

    pub(super) fn fields(&self, place: usize) -> &[u8] {
        let start = place.checked_sub(1).and_then(|before| self.records.get(before)).map_or(0, |record| record.end);
        self.records.get(place).and_then(|record| self.fields.get(start..record.end)).unwrap_or_default()
    }
}
