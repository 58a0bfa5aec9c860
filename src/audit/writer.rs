//! The one thread that numbers, chains, seals and writes the records.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    Audit, Kind, OnError, Pending, Settings, Shared, WAITING_LIMIT_BYTES, Waiting, batch::Batch, key::PublicKey,
    ledger::Ledger,
};

/// How long records are gathered before they are written.
const GATHERING: Duration = Duration::from_millis(20);
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
    let serves_unrecorded = AtomicBool::new(settings.on_error == OnError::Serve);
    let mut ledger = Ledger::open(settings)?;
    let (began_at, public, disk) = (ledger.head.sequence, ledger.key.public(), Arc::clone(&ledger.disk));
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::audit::{
        Disk, Fate, Receipt,
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
        let (mut ledger, mut batch, mut lost) =
            (Ledger::open(settings(folder.path(), 2)).unwrap(), Batch::default(), 0);
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
        let mut ledger = Ledger::open(settings(folder.path(), 1000)).unwrap();
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
        assert_eq!(text.matches(&format!("\"late\":3,\"first\":{first}}}")).count(), 1);
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
    fn a_segment_without_a_line_is_not_begun_as_if_it_were_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let next = run(folder.path()).head.sequence + 1;
        let segment = |first: u64| folder.path().join(format!("audit/{first:020}.jsonl"));
        for rest in ["", "{\"seq\":"] {
            std::fs::write(segment(next), rest).unwrap();
            std::fs::rename(segment(1), folder.path().join("archived")).unwrap();
            let error = start(settings(folder.path(), 1000)).unwrap_err();
            assert!(error.kind() == io::ErrorKind::InvalidData && error.to_string().contains("put it back"), "{error}");
            std::fs::rename(folder.path().join("archived"), segment(1)).unwrap();
        }
        assert_eq!(run(folder.path()).first, 1);
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
