//! The files that the chain is kept in: `<number of its first line>.jsonl`, twenty digits, in the order of their names.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    Kind,
    chain::{Beginning, Hash, Head},
};

/// How a segment's file ends.
pub(super) const EXTENSION: &str = "jsonl";

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Segment {
    folder: PathBuf,
    file: File,
    /// Bytes that are known to be whole lines; what stands behind them is cut off again.
    length: u64,
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
    /// Whether its last line is a checkpoint, or there is none.
    pub(super) is_sealed: bool,
    /// What a crash left behind the last line. It is written over, and what is left of it to be cut off.
    pub(super) torn: Option<Torn>,
}

/// What a crash left of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Torn {
    pub(super) bytes: u64,
    pub(super) hash: Hash,
}

impl Segment {
    /// Opens the log in `folder`, which is made if it is not there.
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
        let mut head = Head::default();
        let (mut torn, mut is_sealed) = (None, true);
        // The last segment may have been made, and nothing written to it.
        let mut last = None;
        for path in listed(folder)?.into_iter().rev() {
            let found = last_line(&path)?;
            if last.is_none() {
                torn = found.torn;
                last = Some((path, found.length, found.begun));
            }
            if let Some(line) = found.head {
                (head, is_sealed) = (line, found.is_sealed);
                break;
            }
        }
        let (path, length, begun) = last.unwrap_or_else(|| (folder.join(name(1)), 0, None));
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path)?;
        file.seek(SeekFrom::Start(length))?;
        sync_folder(folder)?;
        let segment = Self { folder: folder.to_owned(), file, length, begun, _lock: lock };
        Ok(Opened { segment, head, is_sealed, torn })
    }

    /// Appends whole lines, of which the first has this time.
    ///
    /// # Errors
    /// The system's. Nothing of them is in the file then, as far as the system lets that be.
    pub(super) fn append(&mut self, lines: &[u8], time: SystemTime) -> io::Result<()> {
        self.file.write_all(lines).inspect_err(|_| {
            let cut = self.file.set_len(self.length);
            let _ = cut.and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
        })?;
        self.length += lines.len() as u64;
        self.begun.get_or_insert(time);
        Ok(())
    }

    /// Cuts off what stands behind the last line.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn cut(&self) -> io::Result<()> {
        self.file.set_len(self.length)
    }

    /// Bytes in it.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Sees to it that what was appended outlasts the machine.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Goes on in a new file, whose first line has the number `first`.
    ///
    /// # Errors
    /// The system's; the old one goes on then.
    pub(super) fn rotate(&mut self, first: u64) -> io::Result<()> {
        let path = self.folder.join(name(first));
        let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).mode(0o600).open(path)?;
        sync_folder(&self.folder)?;
        (self.file, self.length, self.begun) = (file, 0, None);
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

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// How far a segment can be read.
struct Found {
    /// Its last line that is one.
    head: Option<Head>,
    /// Where that ends.
    length: u64,
    torn: Option<Torn>,
    begun: Option<SystemTime>,
    is_sealed: bool,
}

fn last_line(path: &Path) -> io::Result<Found> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut found = Found { head: None, length: 0, torn: None, begun: None, is_sealed: true };
    let (mut line, mut at) = (Vec::new(), 0);
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        at += read as u64;
        if line.pop() == Some(b'\n')
            && let Some(beginning) = Beginning::read(&line)
        {
            found.head = Some(Head { sequence: beginning.sequence, hash: Hash::of(&line) });
            found.length = at;
            found.is_sealed = beginning.kind == Kind::Checkpoint.as_str();
            found.begun = found.begun.or_else(|| beginning.time());
        }
    }
    if at > found.length {
        let mut file = reader.into_inner();
        file.seek(SeekFrom::Start(found.length))?;
        let mut rest = Vec::new();
        io::Read::read_to_end(&mut file, &mut rest)?;
        found.torn = Some(Torn { bytes: at - found.length, hash: Hash::of(&rest) });
    }
    Ok(found)
}
