//! The access log: one JSON line per request and per attempt to deliver an event, written off the request's path.
//!
//! Lines are collected in memory and written by one thread. A sink that is slow or gone never holds up a request: what
//! does not fit is dropped, counted, and the count is said.

use std::{
    fmt,
    io::{self, Write},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

mod access;
mod attempt;
mod sampling;

pub use access::{Access, Asked, Decision};
pub use attempt::{Attempt, AttemptOutcome};

use sampling::Sampling;

/// Bytes of lines that may wait for the writer.
const WAITING_LIMIT_BYTES: usize = 8 * 1024 * 1024;
/// How long the writer gathers lines before it writes them.
const GATHERING: Duration = Duration::from_millis(20);
/// The least time between two reports of dropped lines.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// What becomes a line of the log.
pub trait Line {
    /// Appends the line to `out`, with the line feed at its end.
    ///
    /// # Errors
    /// For a time that cannot be written.
    fn print(&self, out: &mut Vec<u8>) -> io::Result<()>;

    /// The request that it tells of, if it does: floods of refused ones are thinned out.
    fn request(&self) -> Option<&Access> {
        None
    }
}

impl<L: Line> Line for Box<L> {
    fn print(&self, out: &mut Vec<u8>) -> io::Result<()> {
        L::print(self, out)
    }

    fn request(&self) -> Option<&Access> {
        L::request(self)
    }
}

/// Where finished records go.
#[derive(Clone, Debug)]
pub struct Log {
    shared: Arc<Shared>,
}

/// The threads behind a [`Log`]: one writes, and one says what was lost, for the first may hang in its sink. Dropping
/// this does not stop them, [`Writer::finish`] does.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    wake: Condvar,
    dropped: AtomicU64,
    told: Mutex<Told>,
    loss: Condvar,
}

/// What was said of lost lines.
#[derive(Debug, Default)]
struct Told {
    dropped: u64,
    finished: bool,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    count: u64,
    sampling: Sampling,
    /// Lines that the writer has taken and not written yet.
    writing: u64,
    /// Why the sink last took less than it was given.
    fault: Option<io::ErrorKind>,
    writer_sleeps: bool,
    /// Where the lines go from now on, until the writer has taken it.
    sink: Option<Sink>,
    finished: bool,
}

/// What takes the lines.
struct Sink(Box<dyn Write + Send>);

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}

impl Log {
    /// Starts a log into `sink`.
    ///
    /// # Errors
    /// The system's, if no thread can be started.
    pub fn start(sink: Box<dyn Write + Send>) -> io::Result<(Self, Writer)> {
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Waiting::default()),
            wake: Condvar::new(),
            dropped: AtomicU64::new(0),
            told: Mutex::default(),
            loss: Condvar::new(),
        });
        let writing = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || writing.write_to(sink))?;
        let reporting = Arc::clone(&shared);
        std::thread::Builder::new().name("access-log-loss".into()).spawn(move || reporting.report_losses())?;
        Ok((Self { shared: Arc::clone(&shared) }, Writer { shared, thread }))
    }

    /// Hands over `record`, and answers whether it is one that is told: not of a flood that is thinned out. Never waits.
    pub fn push(&self, record: &impl Line) -> bool {
        let now = Instant::now();
        let mut guard = self.shared.waiting();
        let waiting = &mut *guard;
        waiting.count += waiting.sampling.end_window(now, false, &mut waiting.lines);
        let before = waiting.lines.len();
        if record.request().is_some_and(|request| !waiting.sampling.admits(request, now)) {
            return false;
        }
        if before >= WAITING_LIMIT_BYTES || record.print(&mut waiting.lines).is_err() {
            waiting.lines.truncate(before);
            drop(guard);
            self.shared.lose(1);
            return true;
        }
        waiting.count += 1;
        let asleep = std::mem::take(&mut waiting.writer_sleeps);
        drop(guard);
        if asleep {
            self.shared.wake.notify_one();
        }
        true
    }

    /// Goes on in `sink`, with the next line: the file was moved away, or another one is named.
    pub fn reopen(&self, sink: Box<dyn Write + Send>) {
        self.shared.waiting().sink = Some(Sink(sink));
        self.shared.wake.notify_one();
    }

    /// Lines that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl Writer {
    /// Writes what waits and ends the threads, but waits for a sink that hangs no longer than `patience`. What is lost
    /// with it is said.
    pub fn finish(self, patience: Duration) {
        self.shared.waiting().finished = true;
        self.shared.wake.notify_one();
        let deadline = Instant::now() + patience;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if !self.thread.is_finished() {
            let unwritten = {
                let waiting = self.shared.waiting();
                waiting.count + waiting.writing
            };
            self.shared.dropped.fetch_add(unwritten, Ordering::Relaxed);
        }
        let mut told = self.shared.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.finished = true;
        self.shared.tell(&mut told);
        self.shared.loss.notify_one();
    }
}

impl Waiting {
    /// Adds the lines that say what was left out of the last window.
    fn say_omitted(&mut self, finished: bool) {
        self.count += self.sampling.end_window(Instant::now(), finished, &mut self.lines);
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, mut sink: Box<dyn Write + Send>) {
        let mut lines = Vec::new();
        // The rest of a line whose beginning is in the sink already: it goes first, or the next line would be torn too.
        let mut torn = Vec::new();
        loop {
            let (finished, next) = self.take(&mut lines);
            if let Some(Sink(next)) = next {
                sink = next;
                // The beginning of that line is where it was.
                self.lose(u64::from(!torn.is_empty()));
                torn.clear();
            }
            let begun = !torn.is_empty();
            torn.append(&mut lines);
            let (length, fault) = write(&mut *sink, &torn);
            let lost = fault.map_or(0, |fault| {
                let end = end_of_torn(&torn, length, begun);
                let lost = torn.get(end..).unwrap_or_default().split(|b| *b == b'\n').count() - 1;
                torn.truncate(end);
                self.waiting().fault = Some(fault);
                lost as u64
            });
            torn.drain(..length.min(torn.len()));
            self.waiting().writing = 0;
            self.lose(lost + u64::from(finished && !torn.is_empty()));
            if finished {
                return;
            }
            std::thread::sleep(GATHERING);
        }
    }

    fn lose(&self, lines: u64) {
        if lines > 0 && self.dropped.fetch_add(lines, Ordering::Relaxed) == 0 {
            self.loss.notify_one();
        }
    }

    /// Says what was lost, the first time at once and then now and again.
    fn report_losses(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        while !told.finished {
            self.tell(&mut told);
            told = self.loss.wait_timeout(told, REPORT_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn tell(&self, told: &mut Told) {
        let total = self.dropped.load(Ordering::Relaxed);
        if total > told.dropped {
            let reason = self.waiting().fault.map_or_else(|| "it is too slow".to_owned(), |fault| fault.to_string());
            tracing::warn!(dropped = total - told.dropped, total, reason, "access log lines dropped");
            told.dropped = total;
        }
    }

    /// Moves what waits into `lines`, sleeping until there is something; whether it is the last, and where it goes if that
    /// is somewhere else.
    fn take(&self, lines: &mut Vec<u8>) -> (bool, Option<Sink>) {
        let mut waiting = self.waiting();
        while waiting.lines.is_empty() && !waiting.finished && waiting.sink.is_none() {
            waiting.writer_sleeps = true;
            waiting = match waiting.sampling.due() {
                None => self.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(due) => {
                    let patience = due.saturating_duration_since(Instant::now());
                    let mut waiting =
                        self.wake.wait_timeout(waiting, patience).unwrap_or_else(PoisonError::into_inner).0;
                    waiting.say_omitted(false);
                    waiting
                }
            };
        }
        let finished = waiting.finished;
        waiting.say_omitted(finished);
        waiting.writer_sleeps = false;
        std::mem::swap(&mut waiting.lines, lines);
        waiting.writing = std::mem::take(&mut waiting.count);
        (waiting.finished, waiting.sink.take())
    }
}

/// Writes `bytes` as far as `sink` takes them: how many, and why no more.
fn write(sink: &mut dyn Write, bytes: &[u8]) -> (usize, Option<io::ErrorKind>) {
    let mut length = 0;
    while let Some(rest) = bytes.get(length..).filter(|rest| !rest.is_empty()) {
        match sink.write(rest) {
            Ok(0) => return (length, Some(io::ErrorKind::WriteZero)),
            Ok(taken) => length += taken,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (length, Some(error.kind())),
        }
    }
    (length, sink.flush().err().map(|error| error.kind()))
}

/// Where the line ends of which only a part is among the first `length` bytes; `length` itself if there is none. `begun`
/// tells that `lines` begin within a line.
fn end_of_torn(lines: &[u8], length: usize, begun: bool) -> usize {
    let within = match length.checked_sub(1) {
        Some(last) => lines.get(last) != Some(&b'\n'),
        None => begun,
    };
    let rest = lines.get(length..).unwrap_or_default();
    let end = rest.iter().position(|b| *b == b'\n').filter(|_| within);
    end.map_or(length, |end| length + end + 1)
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::SystemTime};

    use super::*;

    fn record(path: &str) -> Access {
        Access {
            config: "c".into(),
            arrived: SystemTime::UNIX_EPOCH,
            started: Instant::now(),
            request_id: http::HeaderValue::from_static("r"),
            trace_id: None,
            asked: Some(Asked { method: http::Method::GET, target: Some(path.parse().unwrap()) }),
            protocol: "1.1",
            client: Some(crate::headers::Client::new([192, 0, 2, 1].into(), Some(5))),
            user_agent: Some(http::HeaderValue::from_bytes(b"a\"\t\\\xff").unwrap()),
            status: 200,
            route: None,
            webhook: None,
            event: None,
            outcome: None,
            account: None,
            user: None,
            roles: ["admin", "analyst"].map(|role| crate::identity::RoleId::parse(role).unwrap()).to_vec(),
            signed: Some("body"),
            decision: Decision::Permitted,
            reason: None,
            upstream: None,
            upstream_time: Some(Duration::from_micros(1500)),
            received_bytes: 0,
            sent_bytes: 7,
            complete: true,
        }
    }

    struct Channel(mpsc::Sender<Vec<u8>>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A sink that never takes anything.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_record_is_one_line_of_json_whatever_is_in_it() {
        let (sender, receiver) = mpsc::channel();
        let (log, writer) = Log::start(Box::new(Channel(sender))).unwrap();
        log.push(&record("/a{\"x\":1}?secret"));
        writer.finish(Duration::from_secs(5));
        let bytes: Vec<u8> = receiver.iter().flatten().collect();
        assert_eq!(bytes.split(|b| *b == b'\n').count(), 2);
        let line: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(line["timestamp"], "1970-01-01T00:00:00Z");
        assert_eq!(line["url.path"], "/a{\"x\":1}");
        assert_eq!(line["user_agent.original"], "a\"\t\\\u{fffd}");
        assert_eq!(line["countersign.upstream_ms"], 1.5);
        assert_eq!(line["countersign.roles"], serde_json::json!(["admin", "analyst"]));
        assert!(line["countersign.route"].is_null() && line["countersign.upstream"].is_null());
    }

    /// A sink that has room for some bytes, and later for more.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let room = disk.1.min(bytes.len());
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.1 -= room;
            disk.0.extend_from_slice(&bytes[..room]);
            Ok(room)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_tears_no_line_for_good_and_what_is_lost_is_counted() {
        for room in [0, 1, 100, 700, 1000] {
            let disk = Disk::default();
            disk.0.lock().unwrap().1 = room;
            let (log, writer) = Log::start(Box::new(disk.clone())).unwrap();
            for _ in 0..5 {
                log.push(&record("/before"));
            }
            while log.dropped() == 0 {
                std::thread::yield_now();
            }
            disk.0.lock().unwrap().1 = usize::MAX;
            log.push(&record("/after"));
            writer.finish(Duration::from_secs(5));
            let bytes = disk.0.lock().unwrap().0.clone();
            let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
            for line in &lines {
                let parsed: Result<serde_json::Value, _> = serde_json::from_slice(line);
                assert!(parsed.is_ok(), "{room}: {}", String::from_utf8_lossy(line));
            }
            assert_eq!(lines.len() as u64 + log.dropped(), 6, "{room}");
            assert!(lines.last().unwrap().windows(6).any(|part| part == b"/after"));
        }
    }

    #[test]
    fn a_flood_of_what_nobody_is_proven_to_ask_is_thinned_out_and_what_is_left_out_is_counted() {
        let disk = Disk::default();
        disk.0.lock().unwrap().1 = usize::MAX;
        let (log, writer) = Log::start(Box::new(disk.clone())).unwrap();
        let refused = |last: u8, reason: &'static str| Access {
            decision: Decision::Refused,
            signed: None,
            reason: Some(reason),
            client: Some(crate::headers::Client::new([192, 0, 2, last].into(), Some(5))),
            ..record("/a")
        };
        let flood = 20_000_u64;
        for _ in 0..flood {
            log.push(&refused(1, "signature_missing"));
        }
        log.push(&refused(2, "signature_missing"));
        log.push(&refused(1, "signature_mismatch"));
        let proven = Access { account: crate::identity::AccountId::parse("acct_1").ok(), ..refused(1, "role_missing") };
        for _ in 0..2 * sampling::MOST_LINES {
            log.push(&proven);
        }
        let preflight = Access { decision: Decision::Preflight, reason: None, ..refused(3, "") };
        let gone = Access { reason: None, ..refused(4, "") };
        let lengthy =
            Access { user_agent: http::HeaderValue::try_from("a".repeat(20 * 1024)).ok(), ..refused(5, "app_unknown") };
        for _ in 0..flood {
            log.push(&preflight);
            log.push(&gone);
            log.push(&lengthy);
        }
        writer.finish(Duration::from_secs(5));
        let bytes = disk.0.lock().unwrap().0.clone();
        let lines: Vec<serde_json::Value> = bytes
            .split(|b| *b == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        let of = |address: &str, reason: &str| {
            let is_for = |line: &serde_json::Value| line["countersign.reason"].as_str().unwrap_or_default() == reason;
            let those = lines.iter().filter(|line| line["client.address"] == address && is_for(line));
            let (told, written): (Vec<_>, Vec<_>) = those.partition(|line| !line["countersign.omitted"].is_null());
            (written.len() as u64, told.iter().filter_map(|line| line["countersign.omitted"].as_u64()).sum::<u64>())
        };
        let (written, omitted) = of("192.0.2.1", "signature_missing");
        assert_eq!((written + omitted, log.dropped()), (flood, 0));
        assert!(written >= sampling::MOST_LINES && written < flood / 10, "{written}");
        assert_eq!(of("192.0.2.2", "signature_missing"), (1, 0));
        assert_eq!(of("192.0.2.1", "signature_mismatch"), (1, 0));
        assert_eq!(
            of("192.0.2.1", "role_missing"),
            (2 * sampling::MOST_LINES, 0),
            "whoever is proven is written always"
        );
        for address in ["192.0.2.3", "192.0.2.4"] {
            let (written, omitted) = of(address, "");
            assert_eq!(written + omitted, flood, "{address}");
            assert!(written >= sampling::MOST_LINES && written < flood / 10, "{address}: {written}");
        }
        assert!(
            lines
                .iter()
                .any(|line| line["countersign.decision"] == "preflight" && line["countersign.omitted"].is_u64())
        );
        let (written, omitted) = of("192.0.2.5", "app_unknown");
        assert_eq!(written + omitted, flood);
        assert!(written < flood / 200, "{written} long lines");
    }

    #[test]
    fn another_sink_takes_what_comes_after_and_no_part_of_a_line() {
        let (old, new) = (Disk::default(), Disk::default());
        // There is room for a part of the second line.
        old.0.lock().unwrap().1 = 700;
        new.0.lock().unwrap().1 = usize::MAX;
        let (log, writer) = Log::start(Box::new(old.clone())).unwrap();
        log.push(&record("/before"));
        log.push(&record("/torn"));
        log.push(&record("/lost"));
        while log.dropped() == 0 {
            std::thread::yield_now();
        }
        log.reopen(Box::new(new.clone()));
        log.push(&record("/after"));
        writer.finish(Duration::from_secs(5));
        let bytes = new.0.lock().unwrap().0.clone();
        let line: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((line["url.path"].as_str(), log.dropped()), (Some("/after"), 2));
        assert!(old.0.lock().unwrap().0.starts_with(b"{"));
    }

    #[test]
    fn a_sink_that_hangs_holds_up_nobody_and_what_is_lost_is_counted() {
        let (release, hold) = mpsc::channel::<()>();
        let (log, writer) = Log::start(Box::new(Stuck(hold))).unwrap();
        let path = format!("/{}", "x".repeat(10_000));
        let began = Instant::now();
        let pushed = 2_000;
        for _ in 0..pushed {
            log.push(&record(&path));
        }
        assert!(began.elapsed() < Duration::from_secs(5));
        assert!(log.dropped() > pushed / 4, "{}", log.dropped());
        drop(release);
        writer.finish(Duration::from_secs(5));
        assert_eq!(log.dropped(), pushed);
    }
}
