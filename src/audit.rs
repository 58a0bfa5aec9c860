//! The audit log: every decision behind a valid signature and every change, chained by hash and sealed at intervals.
//!
//! Records are handed over in memory, like those of the access log, and one thread numbers, chains and writes them in
//! groups. What is written when stands in [`ledger`], how a line is made and checked in [`chain`], where the lines are kept in
//! [`segments`], who signs in [`key`], and what proves that nothing was touched in [`verify`].

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    json::print_text,
    record::{Access, Attempt},
};

mod batch;
pub mod chain;
pub mod key;
mod ledger;
mod segments;
pub mod verify;
mod writer;

pub use writer::Scribe;

use chain::Head;

/// Bytes of records that may wait for the writer, and as many that it holds while it cannot write: each more than a second of
/// anything this process can decide.
const WAITING_LIMIT_BYTES: usize = 64 * 1024 * 1024;
/// Texts of one record.
const MOST_LISTED: usize = 100;
/// How long the disk may take to write or to sync something before it counts as hanging.
const HANGING: Duration = Duration::from_secs(2);

/// How an audit log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `<state_directory>`: segments and the public key are in its `audit/`, the private key beside that.
    pub state_directory: PathBuf,
    pub on_error: OnError,
    /// A checkpoint after so many records, and after so long where there are fewer.
    pub checkpoint_lines: u64,
    pub checkpoint_every: Duration,
    /// A new segment after so many bytes, and after so long.
    pub segment_bytes: u64,
    pub segment_every: Duration,
}

/// What happens to requests while nothing can be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// Nobody passes until it can.
    Refuse,
    /// They are served, and how many went unrecorded is recorded later.
    Serve,
}

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Decision,
    /// An event of Stripe's was taken, or refused behind its signature.
    Event,
    Start,
    Stop,
    /// Another configuration was put in force, or refused.
    Reload,
    /// A secret or a certificate was exchanged.
    Secret,
    Certificate,
    /// What was permitted was ended while it was under way, for a later configuration does not permit it.
    StreamEnded,
    /// A delivery of an event is given up.
    Delivery,
    /// Somebody changed a delivery by hand.
    Inbox,
    /// What a crash left of a line was cut off, or records were lost.
    Torn,
    Checkpoint,
}

/// How a certificate came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// There was none before, or one for other names.
    Obtained,
    /// In place of one for the same names.
    Renewed,
}

/// What somebody did to a delivery by hand.
#[derive(Clone, Copy, Debug)]
pub struct ByHand<'a> {
    pub at: SystemTime,
    /// `retry` or `discard`.
    pub act: &'a str,
    /// The name of the operating system's user.
    pub by: &'a str,
    pub delivery: &'a str,
    pub event: &'a str,
    pub destination: &'a str,
}

/// Tells a record that was handed over from all others of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt(u64);

/// What became of a record that was handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It may not be on the disk yet.
    Waits,
    /// It is there, and outlasts the machine.
    Kept,
    /// It was thrown away, or may have been, for nothing could be written: it is to be told again.
    Lost,
}

/// Takes records. All who decide have one, and all of them the same.
#[derive(Clone, Debug)]
pub struct Audit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    serves_unrecorded: AtomicBool,
    waiting: Mutex<Waiting>,
    wake: Condvar,
    /// Nothing can be written at the moment.
    failing: AtomicBool,
    disk: Arc<Disk>,
    /// The number of the last record before this process's first.
    began_at: u64,
    head: Mutex<Head>,
    progress: Mutex<Progress>,
}

/// Since when the writer waits for the disk.
#[derive(Debug)]
struct Disk {
    origin: Instant,
    /// Milliseconds behind `origin`, from 1; 0: it does not wait.
    since: AtomicU64,
}

/// How far the writer has come with what was handed over, in numbers of records since the start.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// Up to this one all are on the disk, but for those that were lost.
    synced: u64,
    /// The last one that was lost.
    lost: u64,
}

/// What was handed over and not taken yet.
#[derive(Debug, Default)]
struct Waiting {
    /// The records' own fields, one behind the other.
    fields: Vec<u8>,
    records: Vec<Pending>,
    /// How many records were ever handed over.
    handed: u64,
    /// Requests that were refused before anything was proven, by reason, since the writer last asked.
    unproven: Vec<(&'static str, u64)>,
    /// Records for which there was no room.
    lost: u64,
    writer_sleeps: bool,
    /// How the log is kept from now on, until the writer has taken it.
    settings: Option<Settings>,
    /// Nothing more comes, and until when writing it is tried.
    finished: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    time: SystemTime,
    kind: Kind,
    /// Where its fields end.
    end: usize,
}

impl Kind {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decision => "decision",
            Self::Event => "event",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Reload => "reload",
            Self::Secret => "secret",
            Self::Certificate => "certificate",
            Self::StreamEnded => "stream_ended",
            Self::Delivery => "delivery",
            Self::Inbox => "inbox",
            Self::Torn => "torn",
            Self::Checkpoint => "checkpoint",
        }
    }
}

impl Arrival {
    /// The word in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Obtained => "obtained",
            Self::Renewed => "renewed",
        }
    }
}

impl Audit {
    /// Opens the log, continues its chain, and starts the writer. A log that can be read and not written is failing until it can.
    ///
    /// # Errors
    /// The system's, of the folder, the key or the last segment; [`io::ErrorKind::ResourceBusy`] if another gateway writes
    /// there; [`io::ErrorKind::InvalidData`] for a key that is none, or is not the one that the log is signed with, and for a
    /// last checkpoint that was changed.
    pub fn start(settings: Settings) -> io::Result<(Self, Scribe)> {
        writer::start(settings)
    }

    /// Records the decision that `access` tells of. Never
    /// waits. Whether the request may go on: not where it could not be recorded and nobody may pass so.
    #[must_use]
    pub fn decision(&self, access: &Access) -> bool {
        self.push(Kind::Decision, |out| access.print_decision(out)) || self.serves_unrecorded()
    }

    /// Records what became of the event that `access` tells of. Never waits. Whether it may be acknowledged: not where it could
    /// not be recorded and nobody may pass so.
    #[must_use]
    pub fn event(&self, access: &Access) -> bool {
        self.push(Kind::Event, |out| access.print_event(out)) || self.serves_unrecorded()
    }

    /// Records that what `access` tells of was ended for the reason in it.
    pub fn stream_ended(&self, access: &Access) {
        let _ = self.push(Kind::StreamEnded, |out| access.print_ended(out));
    }

    /// Records that the gateway started to serve under the configuration with this hash.
    pub fn started(&self, config: &str) {
        let _ = self.push(Kind::Start, |out| {
            member(out, "version", env!("CARGO_PKG_VERSION"));
            member(out, "config", config);
        });
    }

    /// Records that a certificate was put in force: its names, SHA-256 in hex, and the last moment at which it is valid.
    pub fn certificate(&self, names: &[String], fingerprint: &str, not_after: SystemTime, arrival: Arrival) {
        let _ = self.push(Kind::Certificate, |out| {
            out.extend_from_slice(b",\"names\":[");
            for (place, name) in names.iter().enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                print_text(name, out);
            }
            out.extend_from_slice(b"],\"not_after\":\"");
            let _ = OffsetDateTime::from(not_after).format_into(out, &Rfc3339);
            out.push(b'"');
            member(out, "fingerprint", fingerprint);
            member(out, "event", arrival.as_str());
        });
    }

    /// Keeps the log in another way from now on; in the same folder.
    pub fn change(&self, settings: Settings) {
        self.0.serves_unrecorded.store(settings.on_error == OnError::Serve, Ordering::Relaxed);
        let mut waiting = self.0.waiting();
        waiting.settings = Some(settings);
        self.0.wake(waiting);
    }

    /// Records that the configuration with the hash `config` was put in force, and what is different in it.
    pub fn reloaded(&self, config: &str, changes: &[String]) {
        let _ = self.push(Kind::Reload, |out| {
            member(out, "outcome", "in_force");
            member(out, "config", config);
            list(out, "changes", changes);
        });
    }

    /// Records that a configuration was refused, and why, so that the one with the hash `config` stays in force.
    pub fn reload_refused(&self, config: &str, reasons: &[String]) {
        let _ = self.push(Kind::Reload, |out| {
            member(out, "outcome", "refused");
            member(out, "config", config);
            list(out, "reasons", reasons);
        });
    }

    /// Records that what `key` refers to holds another secret, or came or went, as `how` says.
    pub fn secret_exchanged(&self, how: &str, key: &str) {
        let _ = self.push(Kind::Secret, |out| {
            member(out, "event", how);
            member(out, "key", key);
        });
    }

    /// Records that what `key` refers to holds another certificate, key or authority, or came or went, as `how` says; `fingerprint`, its
    /// first certificate (hex SHA-256), where there is one.
    pub fn certificate_exchanged(&self, how: &str, key: &str, fingerprint: Option<&str>) {
        let _ = self.push(Kind::Certificate, |out| {
            member(out, "event", how);
            member(out, "key", key);
            if let Some(fingerprint) = fingerprint {
                member(out, "fingerprint", fingerprint);
            }
        });
    }

    /// Records that a delivery is given up after `last`, its last attempt. Whether there was room for it.
    #[must_use]
    pub fn delivery_died(&self, last: &Attempt) -> bool {
        self.push(Kind::Delivery, |out| last.print_death(out))
    }

    /// Records what somebody did to a delivery by hand. What [`Audit::fate`] tells of it by; `None` if there was no room for
    /// it: then it is to be told again.
    #[must_use]
    pub fn done_by_hand(&self, done: &ByHand<'_>) -> Option<Receipt> {
        self.hand_over(Kind::Inbox, |out| {
            member(out, "act", done.act);
            member(out, "by", done.by);
            out.extend_from_slice(b",\"at\":\"");
            let _ = OffsetDateTime::from(done.at).format_into(out, &Rfc3339);
            out.push(b'"');
            member(out, "delivery", done.delivery);
            member(out, "event", done.event);
            member(out, "destination", done.destination);
        })
    }

    /// Counts a request that was refused before anything was proven.
    pub fn count(&self, reason: &'static str) {
        let mut waiting = self.0.waiting();
        let is_first = waiting.unproven.is_empty();
        match waiting.unproven.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => waiting.unproven.push((reason, 1)),
        }
        if is_first {
            self.0.wake(waiting);
        }
    }

    fn serves_unrecorded(&self) -> bool {
        self.0.serves_unrecorded.load(Ordering::Relaxed)
    }

    /// Whether nobody may pass because nothing can be recorded.
    pub fn refuses(&self) -> bool {
        !self.serves_unrecorded() && self.is_failing()
    }

    /// Whether nothing can be recorded at the moment.
    pub fn is_failing(&self) -> bool {
        self.0.failing.load(Ordering::Relaxed) || self.0.disk.hangs()
    }

    /// The number of the last record that was there before this process wrote any.
    pub fn began_at(&self) -> u64 {
        self.0.began_at
    }

    /// The last record that was written.
    pub fn head(&self) -> Head {
        *self.0.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of a record until now.
    pub fn fate(&self, of: Receipt) -> Fate {
        let Progress { synced, lost } = *self.0.progress();
        if of.0 <= lost {
            Fate::Lost
        } else if of.0 <= synced {
            Fate::Kept
        } else {
            Fate::Waits
        }
    }

    /// Whether there was room for it.
    fn push(&self, kind: Kind, print: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.hand_over(kind, print).is_some()
    }

    /// `None`: there was no room for it.
    fn hand_over(&self, kind: Kind, print: impl FnOnce(&mut Vec<u8>)) -> Option<Receipt> {
        let time = SystemTime::now();
        let mut waiting = self.0.waiting();
        if waiting.fields.len() >= WAITING_LIMIT_BYTES {
            waiting.lost += 1;
            self.0.failing.store(true, Ordering::Relaxed);
            return None;
        }
        print(&mut waiting.fields);
        let end = waiting.fields.len();
        waiting.records.push(Pending { time, kind, end });
        waiting.handed += 1;
        let receipt = Receipt(waiting.handed);
        self.0.wake(waiting);
        Some(receipt)
    }
}

impl Disk {
    fn new() -> Self {
        Self { origin: Instant::now(), since: AtomicU64::new(0) }
    }

    /// Does what may take as long as the disk likes.
    fn during<T>(&self, act: impl FnOnce() -> T) -> T {
        self.since.store(self.now(), Ordering::Relaxed);
        let done = act();
        self.since.store(0, Ordering::Relaxed);
        done
    }

    fn hangs(&self) -> bool {
        let since = self.since.load(Ordering::Relaxed);
        since > 0 && Duration::from_millis(self.now().saturating_sub(since)) > HANGING
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }
}

impl Shared {
    /// Wakes the writer if it sleeps.
    fn wake(&self, mut waiting: MutexGuard<'_, Waiting>) {
        let asleep = std::mem::take(&mut waiting.writer_sleeps);
        drop(waiting);
        if asleep {
            self.wake.notify_one();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Appends `,"name":["value",…]`: the first [`MOST_LISTED`], and how many there are where there are more.
fn list(out: &mut Vec<u8>, name: &str, values: &[String]) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":[");
    for (place, value) in values.iter().take(MOST_LISTED).enumerate() {
        if place > 0 {
            out.push(b',');
        }
        print_text(value, out);
    }
    out.push(b']');
    if values.len() > MOST_LISTED {
        out.extend_from_slice(format!(",\"more_{name}\":{}", values.len() - MOST_LISTED).as_bytes());
    }
}

/// Appends `,"name":"value"`.
pub(crate) fn member(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    print_text(value, out);
}
