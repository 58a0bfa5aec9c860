//! Proof that an audit log is as it was written: its numbers, its chain and its signatures, in one pass and constant memory.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::Deserialize;

use super::{
    chain::{Beginning, Hash, Head},
    key::PublicKey,
    segments,
};
use crate::json::Document;

/// The longest line that is read as one.
const LINE_LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// The longest period that a configuration takes.
const MOST_LINES: u64 = 1_000_000;
const MOST_EVERY: Duration = Duration::from_secs(3600);

/// What is asked of a log.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// Whose signatures it must have; `None`: those of the key that is beside it.
    pub public: Option<PublicKey>,
    /// The hash of a line that must be in it.
    pub expected: Option<Hash>,
    /// The hash of the line before its first, where what came before is kept elsewhere.
    pub after: Option<Hash>,
}

/// What holds of a log in which nothing is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub segments: usize,
    pub lines: u64,
    /// The number of its first line.
    pub first: u64,
    pub head: Head,
    /// The number of its last checkpoint.
    pub sealed: u64,
    /// How many records an earlier run left unsigned, so that only a later start signed them.
    pub late: u64,
    /// Bytes that a crash left behind the last line.
    pub torn: usize,
    /// How often it is recorded that such bytes were cut off, and how many in all.
    pub cuts: u64,
    pub cut_bytes: u64,
    /// How many records could not be written, as the log tells.
    pub lost: u64,
    /// Whether its last record, but for a checkpoint that vouches for it, says that the gateway stopped.
    pub is_ended: bool,
    pub key: PublicKey,
    /// Whether the key was given, and not merely found beside the log.
    pub is_key_given: bool,
}

/// Where and how a log is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub file: PathBuf,
    /// From 1; `None` where it is the file as a whole.
    pub line: Option<u64>,
    pub what: String,
}

/// Why there is no report.
#[derive(Debug)]
pub enum Error {
    Broken(Broken),
    Unreadable(PathBuf, io::Error),
}

/// Checks the segment or the folder of segments at `path`.
///
/// # Errors
/// [`Error::Broken`] at the first line that is not what it must be, [`Error::Unreadable`] for a file that cannot be read.
pub fn verify(path: &Path, demands: &Demands) -> Result<Report, Error> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |error| Error::Unreadable(path, error)
    };
    let is_folder = std::fs::metadata(path).map_err(unreadable(path))?.is_dir();
    let files = if is_folder { segments::listed(path).map_err(unreadable(path))? } else { vec![path.to_owned()] };
    let key = if let Some(key) = demands.public {
        key
    } else {
        let folder = if is_folder { path } else { path.parent().unwrap_or(Path::new(".")) };
        let file = folder.join("public.pem");
        PublicKey::read(&file).map_err(unreadable(&file))?
    };
    let mut check = Check {
        key,
        after: demands.after,
        expected: demands.expected,
        is_whole: is_folder,
        chain: None,
        checkpoint: None,
        unsealed: Unsealed::default(),
        stopped: false,
        ended: false,
        first: 0,
        lines: 0,
        late: 0,
        cuts: 0,
        cut_bytes: 0,
        lost: 0,
    };
    let mut torn = 0;
    for (place, file) in files.iter().enumerate() {
        torn = check.segment(file, place + 1 == files.len()).map_err(|fault| match fault {
            Fault::Line(line, what) => Error::Broken(Broken { file: file.clone(), line: Some(line), what }),
            Fault::File(what) => Error::Broken(Broken { file: file.clone(), line: None, what }),
            Fault::Unreadable(error) => Error::Unreadable(file.clone(), error),
        })?;
    }
    let broken = |what: &str| Err(Error::Broken(Broken { file: path.to_owned(), line: None, what: what.to_owned() }));
    let Some(head) = check.chain else { return broken("there is no line in it") };
    let Some(checkpoint) = check.checkpoint else {
        return broken("there is no checkpoint in it, so that nobody vouches for it");
    };
    if check.expected.is_some() {
        return broken("cut: no line has the hash that was expected");
    }
    Ok(Report {
        segments: files.len(),
        lines: check.lines,
        first: check.first,
        head,
        sealed: checkpoint.sequence,
        late: check.late,
        torn,
        cuts: check.cuts,
        cut_bytes: check.cut_bytes,
        lost: check.lost,
        is_ended: check.ended,
        key,
        is_key_given: demands.public.is_some(),
    })
}

enum Fault {
    Line(u64, String),
    File(String),
    Unreadable(io::Error),
}

/// The last checkpoint.
#[derive(Clone, Copy)]
struct Sealed {
    sequence: u64,
    lines: u64,
    every: Duration,
}

/// What no checkpoint vouches for so far.
#[derive(Clone, Copy, Default)]
struct Unsealed {
    lines: u64,
    since: Option<SystemTime>,
}

struct Check {
    key: PublicKey,
    after: Option<Hash>,
    /// Still to be found.
    expected: Option<Hash>,
    /// Whether the log must begin at its beginning.
    is_whole: bool,
    chain: Option<Head>,
    checkpoint: Option<Sealed>,
    unsealed: Unsealed,
    /// The last record says that the gateway stopped.
    stopped: bool,
    ended: bool,
    first: u64,
    lines: u64,
    late: u64,
    cuts: u64,
    cut_bytes: u64,
    lost: u64,
}

/// What a record of kind `torn` tells: one of these.
#[derive(Deserialize)]
struct Missing {
    bytes: Option<u64>,
    lost: Option<u64>,
    late: Option<u64>,
}

impl Check {
    /// Reads a segment to its end; how many bytes are torn there.
    fn segment(&mut self, file: &Path, is_last: bool) -> Result<usize, Fault> {
        let mut reader = BufReader::with_capacity(1 << 20, File::open(file).map_err(Fault::Unreadable)?);
        let mut line = Vec::new();
        let mut number = 0;
        loop {
            line.clear();
            let mut limited = (&mut reader).take(LINE_LIMIT_BYTES);
            if limited.read_until(b'\n', &mut line).map_err(Fault::Unreadable)? == 0 {
                break;
            }
            number += 1;
            let next = self.chain.map(|head| head.sequence + 1);
            if line.pop_if(|last| *last == b'\n').is_none() {
                // What goes on behind the limit is longer than any line, so that no crash left it of one.
                let is_end = reader.fill_buf().map_err(Fault::Unreadable)?.is_empty();
                return if is_last && is_end && self.chain.unwrap_or_default().could_begin(&line) {
                    // Without a line of its own, its name alone says where it belongs.
                    if number == 1 {
                        next.map_or(Ok(()), |next| self.check_name(file, next))?;
                    }
                    Ok(line.len())
                } else {
                    Err(Fault::Line(number, "what stands here is no line".to_owned()))
                };
            }
            let beginning = Beginning::read(&line).filter(|_| line.ends_with(b"}"));
            let beginning = beginning.ok_or_else(|| Fault::Line(number, "what stands here is no record".to_owned()))?;
            self.line(&line, &beginning).map_err(|what| Fault::Line(number, what))?;
            if number == 1 {
                self.check_name(file, beginning.sequence)?;
            }
        }
        match self.chain {
            _ if number > 0 => {}
            Some(head) if is_last => self.check_name(file, head.sequence + 1)?,
            None if is_last => {}
            Some(_) | None => return Err(Fault::File("this segment is empty, and not the last".to_owned())),
        }
        Ok(0)
    }

    fn check_name(&self, file: &Path, first: u64) -> Result<(), Fault> {
        let expected = segments::name(first);
        if self.is_whole && file.file_name().is_none_or(|name| name != expected.as_str()) {
            return Err(Fault::File(format!("its first record is {first}, so that its name should be {expected}")));
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8], beginning: &Beginning<'_>) -> Result<(), String> {
        let found = beginning.sequence;
        match (self.chain, self.after) {
            (Some(before), _) => {
                let expected = before.sequence + 1;
                if found > expected {
                    return Err(format!("missing: record {expected} should stand here, not {found}"));
                }
                if found < expected {
                    return Err(format!("doubled or moved: record {expected} should stand here, not {found}"));
                }
                if beginning.previous != before.hash {
                    return Err(format!("changed: record {} is not the one that {found} follows", before.sequence));
                }
            }
            (None, Some(after)) if beginning.previous != after => {
                return Err(format!("missing: record {found} does not follow the one with the hash of --after"));
            }
            (None, None) if self.is_whole && (found != 1 || beginning.previous != Hash::default()) => {
                return Err(format!(
                    "missing: the log begins with record {found}, not 1; if what came before is kept elsewhere, give the hash \
                     of its last line with --after"
                ));
            }
            (None, _) => self.first = found,
        }
        if Document::parse(line).is_err() {
            return Err("what stands here is no valid JSON".to_owned());
        }
        let time = beginning.time().ok_or("its time is none")?;
        match beginning.kind {
            "checkpoint" => self.seal(line, beginning)?,
            // Between two runs nobody seals.
            "start" | "torn" => {
                self.unsealed.lines += 1;
                self.unsealed.since = Some(time);
                self.check_unsealed(time)?;
            }
            _ => {
                self.unsealed.lines += 1;
                self.unsealed.since.get_or_insert(time);
                self.check_unsealed(time)?;
            }
        }
        if beginning.kind == "torn" {
            self.count_missing(line)?;
        }
        // Nobody but the gateway can say that it stopped.
        self.ended = beginning.kind == "checkpoint" && (self.stopped || self.ended);
        self.stopped = beginning.kind == "stop";
        let hash = Hash::of(line);
        if self.expected == Some(hash) {
            self.expected = None;
        }
        self.chain = Some(Head { sequence: found, hash });
        self.lines += 1;
        Ok(())
    }

    fn count_missing(&mut self, line: &[u8]) -> Result<(), String> {
        let Missing { bytes, lost, late } =
            serde_json::from_slice(line).map_err(|_| "this record has not the fields of its kind".to_owned())?;
        self.cuts += u64::from(bytes.is_some());
        self.cut_bytes = self.cut_bytes.saturating_add(bytes.unwrap_or_default());
        self.lost = self.lost.saturating_add(lost.unwrap_or_default());
        self.late = self.late.saturating_add(late.unwrap_or_default());
        Ok(())
    }

    fn seal(&mut self, line: &[u8], beginning: &Beginning<'_>) -> Result<(), String> {
        let checkpoint = self.key.sealed(line, beginning)?;
        let every = Duration::try_from_secs_f64(checkpoint.every).ok().filter(|every| *every <= MOST_EVERY);
        let every =
            every.filter(|_| checkpoint.lines <= MOST_LINES).ok_or("this checkpoint promises what none does")?;
        self.checkpoint = Some(Sealed { sequence: beginning.sequence, lines: checkpoint.lines, every });
        self.unsealed = Unsealed::default();
        Ok(())
    }

    /// Refuses when no checkpoint has come for three times the period that the one before stated.
    fn check_unsealed(&self, now: SystemTime) -> Result<(), String> {
        let Some(last) = self.checkpoint else { return Ok(()) };
        let waited = self.unsealed.since.and_then(|since| now.duration_since(since).ok()).unwrap_or_default();
        if self.unsealed.lines > last.lines.saturating_mul(3) || waited > last.every.saturating_mul(3) {
            return Err(format!(
                "a checkpoint is missing: the last one, {}, promised one after {} records or {} s",
                last.sequence,
                last.lines,
                last.every.as_secs_f64()
            ));
        }
        Ok(())
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(broken) => broken.fmt(f),
            Self::Unreadable(path, error) => write!(f, "{} cannot be read: {error}", path.display()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Kind, key::SealingKey};

    /// A log that is written by hand.
    struct Written {
        folder: tempfile::TempDir,
        key: SealingKey,
        head: Head,
        bytes: Vec<u8>,
    }

    impl Written {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let key = SealingKey::open(&folder.path().join("audit.key"), true).unwrap();
            key.public().write(&folder.path().join("public.pem")).unwrap();
            Self { folder, key, head: Head::default(), bytes: Vec::new() }
        }

        fn record(&mut self, kind: Kind, fields: &str) {
            self.head.append(SystemTime::UNIX_EPOCH, kind, fields.as_bytes(), &mut self.bytes);
        }

        fn checkpoint(&mut self) {
            let (signature, key) = (self.key.seal(self.head), self.key.public().fingerprint());
            let fields = format!(",\"signature\":\"{signature}\",\"key\":\"{key}\",\"lines\":5,\"every\":10");
            self.record(Kind::Checkpoint, &fields);
        }

        fn verified(&self) -> Result<Report, Error> {
            std::fs::write(self.folder.path().join(segments::name(1)), &self.bytes).unwrap();
            verify(self.folder.path(), &Demands::default())
        }
    }

    #[test]
    fn what_follows_a_torn_tail_of_whatever_length_is_no_crash() {
        let limit = usize::try_from(LINE_LIMIT_BYTES).unwrap();
        let mut log = Written::new();
        log.record(Kind::Start, "");
        log.checkpoint();
        let length = log.bytes.len();
        log.bytes.resize(length + limit, 0);
        assert_eq!(log.verified().unwrap().torn, limit);
        log.bytes.extend_from_slice(b"anything\n");
        let Err(Error::Broken(broken)) = log.verified() else { panic!("it is not told") };
        assert_eq!(broken.line, Some(3), "{broken}");
    }

    #[test]
    fn a_stop_ends_a_log_only_where_a_checkpoint_vouches_for_it() {
        let mut log = Written::new();
        log.record(Kind::Start, "");
        log.checkpoint();
        log.record(Kind::Stop, "");
        assert!(!log.verified().unwrap().is_ended);
        log.checkpoint();
        assert!(log.verified().unwrap().is_ended);
        log.record(Kind::Start, "");
        log.checkpoint();
        assert!(!log.verified().unwrap().is_ended);
    }

    #[test]
    fn what_is_missing_is_summed_up() {
        let mut log = Written::new();
        log.record(Kind::Start, "");
        log.record(Kind::Torn, ",\"bytes\":7,\"sha256\":\"00\"");
        log.record(Kind::Torn, ",\"bytes\":30,\"sha256\":\"00\"");
        log.record(Kind::Torn, ",\"lost\":5");
        log.checkpoint();
        let report = log.verified().unwrap();
        assert_eq!((report.cuts, report.cut_bytes, report.lost), (2, 37, 5));
    }
}
