//! The files that the chain is kept in: `<number of its first line>.jsonl`, twenty digits, in the order of their names.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead as _, BufReader},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    Kind,
    chain::{Beginning, Hash, Head},
};
use crate::files::put;

/// How a segment's file ends.
const EXTENSION: &str = "jsonl";

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Segment {
    folder: PathBuf,
    path: PathBuf,
    file: File,
    /// Bytes that are whole lines.
    length: u64,
    /// Something that is no whole line may stand behind them.
    is_ragged: bool,
    /// Bytes that outlast the machine, and whether those behind them may have been lost on their way to the disk.
    synced: u64,
    is_suspect: bool,
    /// The time of its first line.
    pub(super) begun: Option<SystemTime>,
    /// Held as long as this is written to, so that nobody else writes there.
    _lock: File,
}

/// A log that was opened to be continued.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) segment: Segment,
    pub(super) head: Head,
    /// Its last checkpoint, as far as that is in the last segment or the one before.
    pub(super) checkpoint: Option<Vec<u8>>,
    /// How many lines stand behind that.
    pub(super) unsealed: u64,
    /// What a crash left behind the last line. It is written over.
    pub(super) torn: Option<Torn>,
}

/// What a crash left of a line, or of several.
#[derive(Debug)]
pub(super) struct Torn {
    rest: Vec<u8>,
    /// Where it is kept if somebody may want to look at it.
    copy: PathBuf,
}

impl Torn {
    pub(super) fn bytes(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn hash(&self) -> Hash {
        Hash::of(&self.rest)
    }

    /// Keeps a copy of what is more than half a line; it is on the disk when this returns. One that is there already was made
    /// before anything was written over.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn keep(&self) -> io::Result<()> {
        if !self.rest.contains(&b'\n') || self.copy.exists() {
            return Ok(());
        }
        put(&self.copy, &self.rest, 0o600)
    }
}

impl Segment {
    /// Opens the log in `folder`, which is made if it is not there. Files of other names are left alone.
    ///
    /// # Errors
    /// The system's; [`io::ErrorKind::ResourceBusy`] if somebody else has it open.
    pub(super) fn open(folder: &Path) -> io::Result<Opened> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(folder.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(io::ErrorKind::ResourceBusy, "another gateway writes there"),
            TryLockError::Error(error) => error,
        })?;
        let mut paths = listed(folder)?;
        paths.retain(|path| first_of(path).is_some());
        let (mut tail, mut last) = (Tail::nothing(), None);
        while let Some(path) = paths.pop() {
            tail = Tail::read(&path)?;
            if tail.head.is_some() || tail.rest.is_some() || paths.is_empty() {
                last = Some(path);
                break;
            }
            // It was made, and nothing was written to it.
            fs::remove_file(&path)?;
        }
        if tail.checkpoint.is_none()
            && let Some(path) = paths.last()
        {
            let before = Tail::read(path)?;
            tail.head = tail.head.or(before.head);
            tail.checkpoint = before.checkpoint;
            tail.unsealed += before.unsealed;
        }
        let head = tail.head.unwrap_or_default();
        // Where it has no line of its own, the one before says where the chain stands.
        if let Some(first) = last.as_deref().and_then(first_of).filter(|_| tail.length == 0)
            && first != head.sequence + 1
        {
            let what = format!("the segment before {} is not there: put it back", name(first));
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let path = last.unwrap_or_else(|| folder.join(name(head.sequence + 1)));
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path)?;
        sync_folder(folder)?;
        let segment = Self {
            folder: folder.to_owned(),
            path,
            file,
            length: tail.length,
            is_ragged: tail.rest.is_some(),
            synced: tail.length,
            is_suspect: false,
            begun: tail.begun,
            _lock: lock,
        };
        let copy = folder.join(format!("torn-{:020}", head.sequence + 1));
        let torn = tail.rest.map(|rest| Torn { rest, copy });
        Ok(Opened { segment, head, checkpoint: tail.checkpoint, unsealed: tail.unsealed, torn })
    }

    /// Appends whole lines, of which the first has this time. What stood behind the last line is written over, and its rest cut
    /// off.
    ///
    /// # Errors
    /// The system's. What it may have left of them is written over by the next.
    pub(super) fn append(&mut self, lines: &[u8], time: SystemTime) -> io::Result<()> {
        let was_ragged = std::mem::replace(&mut self.is_ragged, true);
        self.file.write_all_at(lines, self.length)?;
        let length = self.length + lines.len() as u64;
        if was_ragged {
            self.file.set_len(length)?;
        }
        (self.length, self.is_ragged) = (length, false);
        self.begun.get_or_insert(time);
        Ok(())
    }

    /// Bytes in it.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Sees to it that what was appended, and nothing else, outlasts the machine, where the segment is to be found.
    ///
    /// # Errors
    /// The system's; and that the segment was taken away, or another file put in its place.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.is_ragged {
            self.file.set_len(self.length)?;
            self.is_ragged = false;
        }
        if self.is_suspect {
            // The system forgets what it could not write once it has said so.
            let mut bytes = vec![0; usize::try_from(self.length - self.synced).unwrap_or_default()];
            self.file.read_exact_at(&mut bytes, self.synced)?;
            self.file.write_all_at(&bytes, self.synced)?;
        }
        self.is_suspect = true;
        self.file.sync_data()?;
        (self.synced, self.is_suspect) = (self.length, false);
        self.check_place()
    }

    /// What is written to a file that has no name any more, or another, is lost when it is closed.
    fn check_place(&self) -> io::Result<()> {
        let written = self.file.metadata()?;
        let found = match fs::metadata(&self.path) {
            Ok(there) if (there.dev(), there.ino()) == (written.dev(), written.ino()) => return Ok(()),
            Ok(_) => "is another file than the one that is written to",
            Err(error) if error.kind() == io::ErrorKind::NotFound => "is gone",
            Err(error) => return Err(error),
        };
        let path = self.path.display();
        Err(io::Error::other(format!(
            "{path} {found}: put it back, or, if there is nothing to put back, restart the gateway, which goes on behind what is left"
        )))
    }

    /// Goes on in a new file, whose first line has the number `first`.
    ///
    /// # Errors
    /// The system's; the old one goes on then.
    pub(super) fn rotate(&mut self, first: u64) -> io::Result<()> {
        let path = self.folder.join(name(first));
        let file = OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(&path)?;
        if let Err(error) = sync_folder(&self.folder) {
            fs::remove_file(&path)?;
            return Err(error);
        }
        (self.path, self.file, self.length, self.synced, self.begun) = (path, file, 0, 0, None);
        Ok(())
    }
}

/// The segments in `folder`, in their order.
///
/// # Errors
/// The system's.
pub(super) fn listed(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The file of the segment whose first line has this number.
pub(super) fn name(first: u64) -> String {
    format!("{first:020}.{EXTENSION}")
}

/// The number of the first line, as the file's name has it.
fn first_of(path: &Path) -> Option<u64> {
    let text = path.file_name()?.to_str()?;
    let first = text.strip_suffix(EXTENSION)?.strip_suffix('.')?.parse().ok()?;
    (name(first) == text).then_some(first)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// How far a segment can be read.
#[derive(Debug)]
struct Tail {
    /// Its last line; `None` if there is none.
    head: Option<Head>,
    /// Its last checkpoint, and how many lines stand behind that.
    checkpoint: Option<Vec<u8>>,
    unsealed: u64,
    /// Where that ends.
    length: u64,
    /// What stands behind that.
    rest: Option<Vec<u8>>,
    begun: Option<SystemTime>,
}

impl Tail {
    /// Of no segment, or of an empty one.
    fn nothing() -> Self {
        Self { head: None, checkpoint: None, unsealed: 0, length: 0, rest: None, begun: None }
    }

    /// Reads the lines that follow each other. What a crash left behind them is torn; what a checkpoint behind it vouches for is
    /// no crash's doing, so that then the last line counts, and whoever verifies the log is told where it is broken.
    fn read(path: &Path) -> io::Result<Self> {
        let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut tail = Self::nothing();
        let (mut line, mut at, mut is_broken, mut goes_on) = (Vec::new(), 0, false, false);
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line)?;
            if read == 0 {
                break;
            }
            at += read as u64;
            let is_whole = line.pop_if(|last| *last == b'\n').is_some();
            let Some(beginning) = Beginning::read(&line).filter(|_| is_whole) else {
                is_broken = true;
                continue;
            };
            let follows = |head: Head| head.sequence + 1 == beginning.sequence && head.hash == beginning.previous;
            is_broken |= !tail.head.is_none_or(follows);
            let is_checkpoint = beginning.kind == Kind::Checkpoint.as_str();
            if is_broken && !is_checkpoint && !goes_on {
                continue;
            }
            goes_on = is_broken;
            tail.head = Some(Head { sequence: beginning.sequence, hash: Hash::of(&line) });
            tail.length = at;
            tail.begun = tail.begun.or_else(|| beginning.time());
            tail.unsealed += 1;
            if is_checkpoint {
                (tail.checkpoint, tail.unsealed) = (Some(std::mem::take(&mut line)), 0);
            }
        }
        if at > tail.length {
            let mut rest = vec![0; usize::try_from(at - tail.length).unwrap_or_default()];
            reader.get_ref().read_exact_at(&mut rest, tail.length)?;
            tail.rest = Some(rest);
        }
        Ok(tail)
    }
}
