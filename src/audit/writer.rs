//! The one thread that numbers, chains, seals and writes the records.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use super::{
    Audit, Disk, Kind, OnError, Pending, Settings, Shared, WAITING_LIMIT_BYTES, Waiting,
    chain::{Beginning, Head},
    key::{Checkpoint, Late, PublicKey, SealingKey},
    member,
    segments::{Opened, Segment, Torn},
};

/// How long records are gathered before they are written.
const GATHERING: Duration = Duration::from_millis(20);
/// Room for records that is kept from one group to the next.
const KEPT_BYTES: usize = 1024 * 1024;
/// How far the disk may be behind; with what gathering and syncing take, a second.
const SYNC_EVERY: Duration = Duration::from_millis(900);
/// How soon after a failure writing is tried again, and how often it is said.
const AGAIN: Duration = Duration::from_millis(200);
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The thread behind an [`Audit`]. Dropping this does not stop it, [`Scribe::finish`] does.
#[derive(Debug)]
pub struct Scribe {
    audit: Audit,
    thread: JoinHandle<()>,
    public: PublicKey,
}

pub(super) fn start(settings: Settings) -> io::Result<(Audit, Scribe)> {
    let folder = settings.state_directory.join("audit");
    let Opened { segment, head, checkpoint, unsealed, torn } = Segment::open(&folder)?;
    let (is_first, began_at) = (head == Head::default(), head.sequence);
    let key = SealingKey::open(&settings.state_directory.join("audit.key"), is_first)?;
    let (public, file) = (key.public(), folder.join("public.pem"));
    if !is_first && PublicKey::read(&file).is_ok_and(|before| before != public) {
        let what = "audit.key is not the key that the log is signed with: restore that, or move the audit folder away";
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
    let serves_unrecorded = AtomicBool::new(settings.on_error == OnError::Serve);
    let disk = Arc::new(Disk::new());
    let mut ledger = Ledger {
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
        disk: Arc::clone(&disk),
    };
    // The writer tries again, and tells what is in the way.
    let failing = AtomicBool::new(ledger.begin().is_err());
    let shared = Arc::new(Shared {
        serves_unrecorded,
        waiting: Mutex::new(Waiting::default()),
        wake: Condvar::new(),
        failing,
        disk,
        began_at,
        head: Mutex::new(ledger.head),
        progress: Mutex::default(),
    });
    let audit = Audit(Arc::clone(&shared));
    let thread = std::thread::Builder::new().name("audit-log".into()).spawn(move || write(&shared, ledger))?;
    Ok((audit.clone(), Scribe { audit, thread, public }))
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

impl Scribe {
    /// Whose signatures the log has.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Records that the gateway stops, seals the log and ends the thread, but waits for a disk that hangs no longer than
    /// `patience`.
    pub fn finish(self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let _ = self.audit.push(Kind::Stop, |_| ());
        self.audit.0.waiting().finished = Some(deadline);
        self.audit.0.wake.notify_one();
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if !self.thread.is_finished() || self.audit.is_failing() {
            tracing::error!("the end of the audit log could not be written");
        }
    }
}

/// What there is since the last checkpoint.
#[derive(Clone, Copy, Debug, Default)]
struct Fresh {
    lines: u64,
    since: Option<Instant>,
    /// The time of the first of them.
    oldest: Option<SystemTime>,
}

/// The log as the writer knows it.
struct Ledger {
    settings: Settings,
    /// Where the public key is to be written before anything else, and what a crash left, which is to be recorded then.
    owes_public: Option<PathBuf>,
    torn: Option<Torn>,
    /// A checkpoint is due before any record: the settings are others than the last one says, or a run before left something
    /// unsealed.
    owes_checkpoint: bool,
    segment: Segment,
    head: Head,
    key: SealingKey,
    fresh: Fresh,
    /// What the run before left unsigned, until a checkpoint tells of it.
    late: Option<Late>,
    /// Requests that were refused before anything was proven, by reason, since the last checkpoint.
    unproven: Vec<(&'static str, u64)>,
    /// Since when something was written that may not outlast the machine.
    dirty: Option<Instant>,
    disk: Arc<Disk>,
}

/// Records that were taken, as far as they are not written.
#[derive(Default)]
struct Batch {
    fields: Vec<u8>,
    records: Vec<Pending>,
    written: usize,
    /// How many records were ever taken.
    taken: u64,
}

impl Batch {
    /// Empties it; the room that an ordinary moment needs is kept.
    fn clear(&mut self) {
        self.fields.clear();
        self.records.clear();
        self.fields.shrink_to(KEPT_BYTES);
        self.records.shrink_to(KEPT_BYTES / 1024);
        self.written = 0;
    }

    /// Throws away what is not written; how many records that are.
    fn lose(&mut self) -> u64 {
        let lost = self.unwritten();
        *self = Self { taken: self.taken, ..Self::default() };
        lost
    }

    fn unwritten(&self) -> u64 {
        (self.records.len() - self.written) as u64
    }

    fn fields(&self, place: usize) -> &[u8] {
        let start = place.checked_sub(1).and_then(|before| self.records.get(before)).map_or(0, |record| record.end);
        self.records.get(place).and_then(|record| self.fields.get(start..record.end)).unwrap_or_default()
    }
}

/// Says, should the thread panic, that nothing can be recorded any more.
struct Alarm<'s>(&'s Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failing.store(true, Ordering::Relaxed);
        }
    }
}

fn write(shared: &Shared, mut ledger: Ledger) {
    let _alarm = Alarm(shared);
    let mut batch = Batch::default();
    let (mut lost, mut told) = (0, None::<Instant>);
    loop {
        let finished = take(shared, &mut batch, &mut ledger, &mut lost);
        let result = ledger.go_on(&mut batch, &mut lost, finished.is_some());
        *shared.head.lock().unwrap_or_else(PoisonError::into_inner) = ledger.head;
        if ledger.dirty.is_none() {
            shared.progress().synced = batch.taken - batch.unwritten();
        }
        let has_lost = shared.waiting().lost > 0;
        shared.failing.store(result.is_err() || has_lost, Ordering::Relaxed);
        let Err(error) = result else {
            if told.take().is_some() {
                tracing::warn!("the audit log can be written again");
            }
            batch.clear();
            // A batch that was full left something behind.
            if finished.is_some() && shared.waiting().records.is_empty() {
                return;
            }
            std::thread::sleep(GATHERING);
            continue;
        };
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            told = Some(Instant::now());
            let consequence = match ledger.settings.on_error {
                OnError::Refuse => "nobody passes until it can",
                OnError::Serve => "requests are served unrecorded",
            };
            tracing::error!(%error, consequence, "the audit log cannot be written");
        }
        if ledger.settings.on_error == OnError::Serve && finished.is_none() {
            lost += batch.lose();
            shared.progress().lost = batch.taken;
        }
        if finished.is_some_and(|deadline| deadline <= Instant::now()) {
            return;
        }
        std::thread::sleep(AGAIN);
    }
}

/// Adds what waits to `batch`, sleeping until there is something to do. If nothing more comes, until when it is tried to write
/// it.
fn take(shared: &Shared, batch: &mut Batch, ledger: &mut Ledger, lost: &mut u64) -> Option<Instant> {
    let mut waiting = shared.waiting();
    while waiting.records.is_empty()
        && waiting.unproven.is_empty()
        && waiting.lost + *lost == 0
        && batch.records.is_empty()
        && waiting.settings.is_none()
        && waiting.finished.is_none()
    {
        let due = ledger.due();
        if due.is_some_and(|due| due <= Instant::now()) {
            break;
        }
        waiting.writer_sleeps = true;
        waiting = match due {
            None => shared.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            Some(due) => {
                let patience = due.saturating_duration_since(Instant::now());
                shared.wake.wait_timeout(waiting, patience).unwrap_or_else(PoisonError::into_inner).0
            }
        };
    }
    waiting.writer_sleeps = false;
    if let Some(settings) = waiting.settings.take() {
        // What the last checkpoint said of the time to the next one holds until there is one that says something else.
        ledger.owes_checkpoint |= settings != ledger.settings;
        ledger.settings = settings;
    }
    let before = batch.records.len();
    if batch.records.is_empty() {
        // Not copied, for the workers wait for the lock.
        std::mem::swap(&mut batch.fields, &mut waiting.fields);
        std::mem::swap(&mut batch.records, &mut waiting.records);
    } else if batch.fields.len() < WAITING_LIMIT_BYTES {
        let before = batch.fields.len();
        batch.fields.append(&mut waiting.fields);
        batch.records.extend(waiting.records.drain(..).map(|record| Pending { end: before + record.end, ..record }));
    }
    batch.taken += (batch.records.len() - before) as u64;
    if !waiting.unproven.is_empty() {
        ledger.fresh.since.get_or_insert_with(Instant::now);
    }
    for (reason, count) in waiting.unproven.drain(..) {
        match ledger.unproven.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, sum)) => *sum += count,
            None => ledger.unproven.push((reason, count)),
        }
    }
    *lost += std::mem::take(&mut waiting.lost);
    waiting.finished
}

impl Ledger {
    /// When something is to be done though nothing is recorded.
    fn due(&self) -> Option<Instant> {
        if self.owes_checkpoint || self.owes_public.is_some() || self.torn.is_some() {
            return Some(Instant::now());
        }
        let seal = self.fresh.since.map(|since| since + self.settings.checkpoint_every);
        let sync = self.dirty.map(|since| since + SYNC_EVERY);
        seal.into_iter().chain(sync).min()
    }

    /// Writes all there is to write, and seals and syncs what is due, or everything at the end.
    fn go_on(&mut self, batch: &mut Batch, lost: &mut u64, finished: bool) -> io::Result<()> {
        self.begin()?;
        self.record_loss(lost)?;
        self.write(batch)?;
        self.tend(finished)
    }

    /// Writes what is to stand there before any other record.
    fn begin(&mut self) -> io::Result<()> {
        if let Some(file) = &self.owes_public {
            self.key.public().write(file)?;
            self.owes_public = None;
        }
        if let Some(torn) = self.torn.take() {
            self.record_torn(&torn).inspect_err(|_| self.torn = Some(torn))?;
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
        let mut fields = format!(",\"bytes\":{}", torn.bytes()).into_bytes();
        member(&mut fields, "sha256", &torn.hash().to_string());
        let (mut out, mut head, now) = (Vec::new(), self.head, SystemTime::now());
        head.append(now, Kind::Torn, &fields, &mut out);
        self.commit(&out, head, 1, now)
    }

    /// Records how many records were lost.
    fn record_loss(&mut self, lost: &mut u64) -> io::Result<()> {
        if *lost == 0 {
            return Ok(());
        }
        let (mut out, mut head, now) = (Vec::new(), self.head, SystemTime::now());
        head.append(now, Kind::Torn, format!(",\"lost\":{lost}").as_bytes(), &mut out);
        self.commit(&out, head, 1, now)?;
        *lost = 0;
        Ok(())
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
        if let Some(Late { records, first }) = self.late {
            fields.extend_from_slice(format!(",\"late\":{{\"records\":{records},\"first\":{first}}}").as_bytes());
        }
        let (mut out, mut head, now) = (Vec::new(), self.head, SystemTime::now());
        head.append(now, Kind::Checkpoint, &fields, &mut out);
        self.commit(&out, head, 0, now)?;
        self.fresh = Fresh::default();
        self.owes_checkpoint = false;
        self.late = None;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{
        Fate, Receipt,
        verify::{Demands, Report, verify},
    };

    fn shared(on_error: OnError) -> Shared {
        Shared {
            serves_unrecorded: AtomicBool::new(on_error == OnError::Serve),
            waiting: Mutex::default(),
            wake: Condvar::new(),
            failing: AtomicBool::new(false),
            disk: Arc::new(Disk::new()),
            began_at: 0,
            head: Mutex::default(),
            progress: Mutex::default(),
        }
    }

    fn ledger(folder: &std::path::Path, checkpoint_lines: u64) -> Ledger {
        let Opened { segment, head, .. } = Segment::open(&folder.join("audit")).unwrap();
        let key = SealingKey::open(&folder.join("audit.key"), true).unwrap();
        Ledger {
            settings: settings(folder, checkpoint_lines),
            owes_public: None,
            torn: None,
            owes_checkpoint: false,
            segment,
            head,
            key,
            fresh: Fresh::default(),
            late: None,
            unproven: Vec::new(),
            dirty: None,
            disk: Arc::new(Disk::new()),
        }
    }

    fn settings(folder: &std::path::Path, checkpoint_lines: u64) -> Settings {
        Settings {
            state_directory: folder.to_owned(),
            on_error: OnError::Refuse,
            checkpoint_lines,
            checkpoint_every: Duration::from_secs(10),
            segment_bytes: 64 << 20,
            segment_every: Duration::from_secs(86_400),
        }
    }

    #[test]
    fn a_longer_period_is_announced_before_any_record_is_written_under_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ledger, mut batch, mut lost) = (ledger(folder.path(), 2), Batch::default(), 0);
        ledger.key.public().write(&folder.path().join("audit/public.pem")).unwrap();
        let audit = Audit(Arc::new(shared(OnError::Refuse)));
        for longer in [None, Some(1000)] {
            for _ in 0..31 {
                assert!(audit.push(Kind::Decision, |_| ()));
            }
            if let Some(lines) = longer {
                audit.change(settings(folder.path(), lines));
            }
            take(&audit.0, &mut batch, &mut ledger, &mut lost);
            ledger.go_on(&mut batch, &mut lost, false).unwrap();
            batch.clear();
        }
        ledger.go_on(&mut batch, &mut lost, true).unwrap();
        let report = verify(&folder.path().join("audit"), &Demands::default()).unwrap();
        assert_eq!(report.sealed, report.head.sequence);
    }

    #[test]
    fn what_waits_for_a_disk_is_bounded_and_beyond_that_nobody_passes() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = ledger(folder.path(), 1000);
        let audit = Audit(Arc::new(shared(OnError::Refuse)));
        let fill = |bytes: usize| audit.push(Kind::Decision, |out| out.resize(out.len() + bytes, b' '));
        let (mut batch, mut lost) = (Batch::default(), 0);

        assert!(fill(10));
        take(&audit.0, &mut batch, &mut ledger, &mut lost);
        assert!(fill(WAITING_LIMIT_BYTES));
        take(&audit.0, &mut batch, &mut ledger, &mut lost);
        assert_eq!((batch.records.len(), batch.fields(0).len(), batch.fields(1).len()), (2, 10, WAITING_LIMIT_BYTES));
        // The batch is full and what comes then waits, until that is full too.
        assert!(fill(WAITING_LIMIT_BYTES));
        take(&audit.0, &mut batch, &mut ledger, &mut lost);
        assert_eq!((batch.records.len(), audit.0.waiting().records.len()), (2, 1));
        assert!(!audit.refuses());
        assert!(!fill(1) && audit.refuses() && audit.0.waiting().lost == 1);
        // What was held goes first, and the rest with the next group.
        batch.clear();
        take(&audit.0, &mut batch, &mut ledger, &mut lost);
        assert_eq!((batch.records.len(), lost), (1, 1));
        assert!(!Audit(Arc::new(shared(OnError::Serve))).refuses());
    }

    #[test]
    fn what_is_cut_off_at_the_beginning_of_a_segment_is_kept_too() {
        let folder = tempfile::tempdir().unwrap();
        let (audit, scribe) = start(settings(folder.path(), 1000)).unwrap();
        audit.started("");
        scribe.finish(Duration::from_secs(10));
        let next = audit.head().sequence + 1;
        let rest = b"no line\nand half a one";
        std::fs::write(folder.path().join(format!("audit/{next:020}.jsonl")), rest).unwrap();
        let (audit, scribe) = start(settings(folder.path(), 1000)).unwrap();
        audit.started("");
        scribe.finish(Duration::from_secs(10));
        assert_eq!(std::fs::read(folder.path().join(format!("audit/torn-{next:020}"))).unwrap(), rest);
        let report = verify(&folder.path().join("audit"), &Demands::default()).unwrap();
        assert_eq!(report.first, 1);
    }

    /// A run that records one decision, and what `audit verify` says of its log.
    fn run(folder: &std::path::Path) -> Report {
        let (audit, scribe) = start(settings(folder, 1000)).unwrap();
        audit.started("");
        assert!(audit.push(Kind::Decision, |_| ()));
        scribe.finish(Duration::from_secs(10));
        verify(&folder.join("audit"), &Demands::default()).unwrap()
    }

    #[test]
    fn what_is_found_unsigned_is_counted_in_the_log() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path());
        let report = run(folder.path());
        assert_eq!(report.late, 0);
        let file = folder.path().join("audit/00000000000000000001.jsonl");
        let (mut head, mut text) = (report.head, std::fs::read(&file).unwrap());
        let first = head.sequence + 1;
        for _ in 0..3 {
            head.append(SystemTime::now(), Kind::Decision, b",\"account\":\"acct_Never\"", &mut text);
        }
        std::fs::write(&file, text).unwrap();
        assert_eq!(run(folder.path()).late, 3);
        assert_eq!(run(folder.path()).late, 3, "once");
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text.matches(&format!("\"late\":{{\"records\":3,\"first\":{first}}}")).count(), 1);
    }

    #[test]
    fn what_is_found_unsigned_is_counted_over_the_end_of_a_segment() {
        let folder = tempfile::tempdir().unwrap();
        let mut head = run(folder.path()).head;
        let (first, mut text) = (head.sequence + 1, Vec::new());
        head.append(SystemTime::now(), Kind::Decision, b"", &mut text);
        std::fs::write(folder.path().join(format!("audit/{first:020}.jsonl")), text).unwrap();
        assert_eq!(run(folder.path()).late, 1);
    }

    #[test]
    fn a_log_whose_last_checkpoint_was_changed_is_not_continued() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path());
        let file = folder.path().join("audit/00000000000000000001.jsonl");
        let text = std::fs::read_to_string(&file).unwrap();
        let place = text.rfind("\"signature\":\"").unwrap() + 20;
        let letter = if &text[place..=place] == "A" { "B" } else { "A" };
        std::fs::write(&file, format!("{}{letter}{}", &text[..place], &text[place + 1..])).unwrap();
        let error = start(settings(folder.path(), 1000)).unwrap_err();
        assert!(error.kind() == io::ErrorKind::InvalidData && error.to_string().contains("last checkpoint"), "{error}");
        std::fs::write(&file, text).unwrap();
        run(folder.path());
    }

    #[test]
    fn a_log_that_cannot_be_written_at_start_fails_until_it_can() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path());
        let public = folder.path().join("audit/public.pem");
        std::fs::remove_file(&public).unwrap();
        std::fs::create_dir_all(public.join("in the way")).unwrap();
        let (audit, scribe) = start(settings(folder.path(), 1000)).unwrap();
        audit.started("");
        assert!(audit.is_failing() && audit.refuses());
        std::fs::remove_dir_all(&public).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while audit.is_failing() {
            assert!(Instant::now() < deadline, "it does not heal");
            std::thread::sleep(Duration::from_millis(10));
        }
        scribe.finish(Duration::from_secs(10));
        assert!(verify(&folder.path().join("audit"), &Demands::default()).unwrap().is_ended);
    }

    #[test]
    fn another_period_is_announced_though_the_record_of_the_start_was_lost() {
        let folder = tempfile::tempdir().unwrap();
        let (audit, scribe) = start(settings(folder.path(), 2)).unwrap();
        audit.started("");
        scribe.finish(Duration::from_secs(10));
        let public = folder.path().join("audit/public.pem");
        std::fs::remove_file(&public).unwrap();
        std::fs::create_dir_all(public.join("in the way")).unwrap();
        let serving = Settings { on_error: OnError::Serve, ..settings(folder.path(), 1000) };
        let (audit, scribe) = start(serving).unwrap();
        audit.started("");
        let deadline = Instant::now() + Duration::from_secs(20);
        while audit.fate(Receipt(1)) != Fate::Lost {
            assert!(Instant::now() < deadline, "it is not lost");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::fs::remove_dir_all(&public).unwrap();
        for _ in 0..31 {
            assert!(audit.push(Kind::Decision, |_| ()));
        }
        scribe.finish(Duration::from_secs(10));
        let report = verify(&folder.path().join("audit"), &Demands::default()).unwrap();
        assert!(report.is_ended && report.lost > 0, "{report:?}");
    }
}
