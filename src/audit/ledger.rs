//! The log as the writer knows it: what is written next, and when it is sealed, synced and continued in a new segment.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    Disk, Kind, Settings,
    batch::Batch,
    chain::{Beginning, Head},
    key::{Checkpoint, PublicKey, SealingKey},
    member,
    segments::{Opened, Segment, Torn},
};

/// How far the disk may be behind; with what gathering and syncing take, a second.
const SYNC_EVERY: Duration = Duration::from_millis(900);

/// A log that is continued.
pub(super) struct Ledger {
    pub(super) settings: Settings,
    /// Where the public key is to be written before anything else, and what a crash left, which is to be recorded then.
    owes_public: Option<PathBuf>,
    torn: Option<Torn>,
    /// A checkpoint is due before any record: the settings are others than the last one says, or a run before left something
    /// unsealed.
    pub(super) owes_checkpoint: bool,
    segment: Segment,
    pub(super) head: Head,
    pub(super) key: SealingKey,
    pub(super) fresh: Fresh,
    /// What the run before left unsigned, until a record tells of it, and a checkpoint covers that.
    late: Option<Late>,
    /// Requests that were refused before anything was proven, by reason, since the last checkpoint.
    pub(super) unproven: Vec<(&'static str, u64)>,
    /// Since when something was written that may not outlast the machine.
    pub(super) dirty: Option<Instant>,
    pub(super) disk: Arc<Disk>,
}

/// Records that an earlier run left behind its last checkpoint, so that only a later start signed them.
#[derive(Clone, Copy, Debug)]
struct Late {
    records: u64,
    /// The number of the first of them.
    first: u64,
}

/// What there is since the last checkpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fresh {
    lines: u64,
    pub(super) since: Option<Instant>,
    /// The time of the first of them.
    oldest: Option<SystemTime>,
}

impl Ledger {
    /// Opens the log to continue its chain. Nothing is written behind what is there yet.
    ///
    /// # Errors
    /// As [`Audit::start`](super::Audit::start).
    pub(super) fn open(settings: Settings) -> io::Result<Self> {
        let folder = settings.state_directory.join("audit");
        let Opened { segment, head, checkpoint, unsealed, torn } = Segment::open(&folder)?;
        let is_first = head == Head::default();
        let key = SealingKey::open(&settings.state_directory.join("audit.key"), is_first)?;
        let (public, file) = (key.public(), folder.join("public.pem"));
        if !is_first && PublicKey::read(&file).is_ok_and(|before| before != public) {
            let what =
                "audit.key is not the key that the log is signed with: restore that, or move the audit folder away";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let last = checkpoint.map(|line| check(&line, &public)).transpose()?;
        let late = (unsealed > 0).then(|| Late { records: unsealed, first: head.sequence + 1 - unsealed });
        if let Some(Late { records, first }) = late {
            tracing::warn!(
                records,
                first,
                "the audit log was left with records that nobody signed; they are signed now, and counted"
            );
        }
        if let Some(torn) = &torn {
            tracing::warn!(bytes = torn.bytes(), "the audit log's last line was torn by a crash and is cut off");
        }
        // What a crash left unsealed is sealed at once: runs that end early may follow each other.
        let owes_checkpoint =
            unsealed > 0 || torn.is_some() || last.is_some_and(|checkpoint| !checkpoint.promises(&settings));
        Ok(Self {
            settings,
            owes_public: Some(file),
            owes_checkpoint,
            torn,
            segment,
            head,
            key,
            fresh: Fresh { lines: unsealed, ..Fresh::default() },
            late,
            unproven: Vec::new(),
            dirty: None,
            disk: Arc::new(Disk::new()),
        })
    }

    /// When something is to be done though nothing is recorded.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.owes_checkpoint || self.owes_public.is_some() || self.torn.is_some() {
            return Some(Instant::now());
        }
        let seal = self.fresh.since.map(|since| since + self.settings.checkpoint_every);
        let sync = self.dirty.map(|since| since + SYNC_EVERY);
        seal.into_iter().chain(sync).min()
    }

    /// Writes all there is to write, and seals and syncs what is due, or everything at the end.
    pub(super) fn go_on(&mut self, batch: &mut Batch, lost: &mut u64, finished: bool) -> io::Result<()> {
        self.begin()?;
        self.record_loss(lost)?;
        self.write(batch)?;
        self.tend(finished)
    }

    /// Writes what is to stand there before any other record.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        if let Some(file) = &self.owes_public {
            self.key.public().write(file)?;
            self.owes_public = None;
        }
        if let Some(torn) = self.torn.take() {
            self.record_torn(&torn).inspect_err(|_| self.torn = Some(torn))?;
        }
        if let Some(Late { records, first }) = self.late {
            self.record_missing(&format!(",\"late\":{records},\"first\":{first}"))?;
            self.late = None;
        }
        // What a checkpoint promises holds until the next: a longer period begins with one.
        if self.owes_checkpoint || self.fresh.lines >= self.settings.checkpoint_lines {
            self.seal()?;
        }
        Ok(())
    }

    /// Records what a crash left, in its place and at once: the next one would take the memory of it.
    fn record_torn(&mut self, torn: &Torn) -> io::Result<()> {
        torn.keep()?;
        self.record_missing(&format!(",\"bytes\":{},\"sha256\":\"{}\"", torn.bytes(), torn.hash()))
    }

    /// Records how many records were lost.
    fn record_loss(&mut self, lost: &mut u64) -> io::Result<()> {
        if *lost == 0 {
            return Ok(());
        }
        self.record_missing(&format!(",\"lost\":{lost}"))?;
        *lost = 0;
        Ok(())
    }

    /// Records that something is not as it should be in the log.
    fn record_missing(&mut self, fields: &str) -> io::Result<()> {
        let (mut out, mut head, now) = (Vec::new(), self.head, SystemTime::now());
        head.append(now, Kind::Torn, fields.as_bytes(), &mut out);
        self.commit(&out, head, 1, now)
    }

    /// Writes what is left of `batch`, with checkpoints and new segments where they are due.
    fn write(&mut self, batch: &mut Batch) -> io::Result<()> {
        while let Some(first) = batch.records.get(batch.written).copied() {
            if self.is_overdue(first.time) {
                self.seal()?;
            }
            self.rotate_if_due()?;
            let (mut out, mut head, mut place) = (Vec::new(), self.head, batch.written);
            let room = self.settings.checkpoint_lines.saturating_sub(self.fresh.lines).max(1);
            let until = place.saturating_add(usize::try_from(room).unwrap_or(usize::MAX));
            let mut is_start = false;
            while let Some(record) = batch.records.get(place).filter(|_| place < until && !is_start) {
                let since = record.time.duration_since(self.fresh.oldest.unwrap_or(first.time)).unwrap_or_default();
                if since > self.settings.checkpoint_every
                    || self.segment.length() + out.len() as u64 >= self.settings.segment_bytes
                {
                    break;
                }
                head.append(record.time, record.kind, batch.fields(place), &mut out);
                is_start = record.kind == Kind::Start;
                place += 1;
            }
            self.commit(&out, head, (place - batch.written) as u64, first.time)?;
            batch.written = place;
            // What this run promises is known from its beginning.
            if is_start || self.fresh.lines >= self.settings.checkpoint_lines {
                self.seal()?;
            }
        }
        Ok(())
    }

    /// Whether a record of this time comes too late for the checkpoint that those before it wait for. What tells is the time
    /// in the records, which whoever verifies sees: the clock may have been set, or nothing could be written for long.
    fn is_overdue(&self, time: SystemTime) -> bool {
        let waited = self.fresh.oldest.and_then(|oldest| time.duration_since(oldest).ok());
        waited.is_some_and(|waited| waited > self.settings.checkpoint_every)
    }

    /// Seals and syncs what is due, or everything at the end.
    fn tend(&mut self, finished: bool) -> io::Result<()> {
        let now = Instant::now();
        let is_due =
            |since: Option<Instant>, every: Duration| since.is_some_and(|since| finished || now >= since + every);
        let is_full = self.fresh.lines >= self.settings.checkpoint_lines;
        if is_full || is_due(self.fresh.since, self.settings.checkpoint_every) {
            self.seal()?;
        }
        if is_due(self.dirty, SYNC_EVERY) {
            self.sync()?;
        }
        Ok(())
    }

    fn rotate_if_due(&mut self) -> io::Result<()> {
        let is_old =
            self.segment.begun.is_some_and(|begun| begun.elapsed().is_ok_and(|age| age >= self.settings.segment_every));
        if self.segment.length() < self.settings.segment_bytes && !is_old {
            return Ok(());
        }
        if self.fresh.lines > 0 {
            self.seal()?;
        }
        self.sync()?;
        self.disk.during(|| self.segment.rotate(self.head.sequence + 1))
    }

    fn seal(&mut self) -> io::Result<()> {
        let mut fields = Vec::new();
        member(&mut fields, "signature", &self.key.seal(self.head));
        member(&mut fields, "key", &self.key.public().fingerprint().to_string());
        let every = self.settings.checkpoint_every.as_secs_f64();
        fields.extend_from_slice(format!(",\"lines\":{},\"every\":{every}", self.settings.checkpoint_lines).as_bytes());
        if !self.unproven.is_empty() {
            let counts: Vec<_> = self.unproven.iter().map(|(reason, count)| format!("\"{reason}\":{count}")).collect();
            fields.extend_from_slice(format!(",\"unproven\":{{{}}}", counts.join(",")).as_bytes());
        }
        let (mut out, mut head, now) = (Vec::new(), self.head, SystemTime::now());
        head.append(now, Kind::Checkpoint, &fields, &mut out);
        self.commit(&out, head, 0, now)?;
        self.fresh = Fresh::default();
        self.owes_checkpoint = false;
        self.unproven.clear();
        Ok(())
    }

    /// Writes lines after which the chain stands at `head`; `lines` of them wait for a checkpoint.
    fn commit(&mut self, out: &[u8], head: Head, lines: u64, time: SystemTime) -> io::Result<()> {
        self.disk.during(|| self.segment.append(out, time))?;
        self.head = head;
        self.fresh.lines += lines;
        if lines > 0 {
            self.fresh.since.get_or_insert_with(Instant::now);
            self.fresh.oldest.get_or_insert(time);
        }
        self.dirty.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.during(|| self.segment.sync())?;
        self.dirty = None;
        Ok(())
    }
}

/// Refuses a log that somebody changed: what is written behind it would vouch for it.
fn check(checkpoint: &[u8], public: &PublicKey) -> io::Result<Checkpoint> {
    let checked = Beginning::read(checkpoint)
        .ok_or_else(|| "it cannot be read".to_owned())
        .and_then(|beginning| public.sealed(checkpoint, &beginning));
    checked.map_err(|what| {
        let what = format!(
            "its last checkpoint is not this gateway's, so that somebody changed it: {what}; look into it with `audit verify`, and \
             move the audit folder away to begin another log"
        );
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}
