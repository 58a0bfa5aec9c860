//! The inbox in a file of SQLite: `<state_directory>/inbox/inbox.sqlite`.
//!
//! One thread writes, and does in one transaction what has come together while it wrote the one before. What takes long is
//! looked for by a second thread over a connection that only reads, which holds up nobody.
//!
//! Source: SQLite, "Write-Ahead Logging", <https://www.sqlite.org/wal.html>.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior, ffi};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    Fault, Initialised, OpenError,
    ask::{Command, Inquiry},
    marker::{Kind, Marker},
};
use crate::files;

mod clock;
mod desk;
mod health;
mod queue;
mod reader;
mod writer;

use clock::Clock;
use health::{Health, Node, Whereabouts, log_of, node};

pub(super) use desk::Desk;

/// What leads from one version of the schema to the next.
const STEPS: [&str; 1] = [include_str!("sqlite/1.sql")];
/// "csin" in the file's header: whose file it is.
const APPLICATION: i64 = 0x6373_696e;
/// How long a lock that somebody else holds is waited for.
const BUSY: Duration = Duration::from_secs(5);
/// Pages that a connection keeps in memory, in KiB.
const CACHE_KIB: i64 = 16 * 1024;
/// Statements that a connection keeps prepared.
const STATEMENTS: usize = 64;
/// Nothing is due later than this after it was noted: the longest pause that can be configured, and a lease.
const LATEST_DUE: Duration = Duration::from_secs(31 * 24 * 3600);
/// What is due never: it waits for another delivery of the same object.
const PARKED: i64 = i64::MAX;
/// Deliveries that an event can have: they are numbered by its number times this.
const PLACES: i64 = 65536;

/// A file, and which store it must be.
#[derive(Clone, Debug)]
struct Place {
    file: PathBuf,
    identity: String,
    health: Arc<Health>,
}

/// A connection to the file that was there when it was opened.
#[derive(Debug)]
struct Opened {
    connection: Connection,
    file: PathBuf,
    node: Node,
    /// That of its log, once there is one.
    log: Option<Node>,
}

fn file_in(state_directory: &Path) -> PathBuf {
    state_directory.join("inbox/inbox.sqlite")
}

/// Opens the store, makes it if it never was, and starts its threads. What is to be dropped goes to `drops`.
pub(super) fn start(
    state_directory: &Path,
    (drops, commands): (mpsc::Sender<Command>, mpsc::Receiver<Command>),
    inquiries: mpsc::Receiver<Inquiry>,
) -> Result<Vec<JoinHandle<()>>, OpenError> {
    let (writing, place) = open(state_directory)?;
    let clock = writing.clock().map_err(|error| place.error(error))?;
    place.health.set_log(writing.log);
    let reading = place.reopen(Access::Reading).map_err(|error| place.error(error))?;
    let writer = writer::Writer::new(writing, place.clone(), clock);
    let reader = reader::Reader::new(reading, place.clone(), drops);
    let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .map_err(|error| OpenError::unavailable(place.file.display(), error))
    };
    let reading = start("inbox-reader", Box::new(move || reader.run(inquiries)))?;
    let writing = start("inbox", Box::new(move || writer.run(commands, reading)))?;
    Ok(vec![writing])
}

/// See [`super::init`].
pub(super) fn init(state_directory: &Path, accepts_loss: bool) -> Result<Initialised, OpenError> {
    let file = file_in(state_directory);
    let unavailable = |error: io::Error| OpenError::unavailable(file.display(), error);
    let before = Marker::read(state_directory).map_err(unavailable)?;
    let result = open(state_directory);
    let error = match result {
        Ok(_) if before.is_some() => return Ok(Initialised::Whole),
        Ok(_) => return Ok(Initialised::Made),
        Err(error) => error,
    };
    let replaces = match error.fault {
        Fault::Missing | Fault::Empty | Fault::Another(_) => false,
        Fault::Corrupt(_) => true,
        Fault::None | Fault::Newer(_) | Fault::Incomplete(_) | Fault::Unavailable(_) => return Err(error),
    };
    if !accepts_loss {
        return Err(error);
    }
    if replaces {
        set_aside(&file).map_err(unavailable)?;
    }
    fs::remove_file(Marker::path(state_directory)).map_err(unavailable)?;
    let is_there = file.exists() && !replaces;
    open(state_directory)?;
    Ok(if is_there && matches!(error.fault, Fault::Another(_)) { Initialised::Adopted } else { Initialised::Made })
}

/// Moves a file that cannot be used out of the way, with what belongs to it.
fn set_aside(file: &Path) -> io::Result<()> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for end in ["", "-wal", "-shm"] {
        let from = PathBuf::from(format!("{}{end}", file.display()));
        match fs::rename(&from, format!("{}.damaged-{since}{end}", file.display())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Opens the store for writing; makes it where there is neither a file nor a marker.
fn open(state_directory: &Path) -> Result<(Opened, Place), OpenError> {
    let file = file_in(state_directory);
    let fault = |fault| OpenError { place: file.display().to_string(), fault };
    let unavailable = |error: io::Error| OpenError::unavailable(file.display(), error);
    let marker = Marker::read(state_directory)
        .map_err(|error| OpenError::unavailable(Marker::path(state_directory).display(), error))?;
    if marker.as_ref().is_some_and(|marker| marker.kind != Kind::Sqlite) {
        return Err(fault(Fault::Another("in PostgreSQL")));
    }
    if !file.try_exists().map_err(unavailable)? {
        if marker.is_some() {
            return Err(fault(Fault::Missing));
        }
        make(&file).map_err(unavailable)?;
    }
    let mut opened = Opened::of(&file, Access::Writing).map_err(|error| found(&file, error))?;
    recognise(&opened, marker.is_some())?;
    let identity = opened
        .migrate()
        .and_then(|()| opened.check())
        .and_then(|()| opened.identity())
        .map_err(|error| found(&file, error))?;
    if is_cut(&file).map_err(unavailable)? {
        return Err(fault(Fault::Corrupt("its end is missing".to_owned())));
    }
    match marker {
        Some(marker) if marker.identity != identity => return Err(fault(Fault::Another("in another file of SQLite"))),
        Some(_) => {}
        None => Marker { kind: Kind::Sqlite, identity: identity.clone() }
            .write(state_directory)
            .map_err(|error| OpenError::unavailable(Marker::path(state_directory).display(), error))?,
    }
    opened.see_log();
    Ok((opened, Place { file, identity, health: Arc::default() }))
}

/// Refuses a file that is not an inbox of this version or an earlier one; an empty one only if there `was` something.
fn recognise(opened: &Opened, was: bool) -> Result<(), OpenError> {
    let fault = match opened.version().map_err(|error| found(&opened.file, error))? {
        Version::Nothing if was => Fault::Empty,
        Version::Nothing | Version::Ours(_) => return Ok(()),
        Version::Newer(number) => Fault::Newer(number),
        Version::Foreign => Fault::Corrupt("it is no inbox".to_owned()),
    };
    Err(OpenError { place: opened.file.display().to_string(), fault })
}

/// Makes the folder and the file, which nobody else may read.
fn make(file: &Path) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        files::private_folder(folder)?;
    }
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?.sync_all()
}

/// What an error at opening tells of the file.
fn found(file: &Path, error: rusqlite::Error) -> OpenError {
    let is_damage =
        matches!(code(&error), None | Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown));
    let fault = if is_damage { Fault::Corrupt(error.to_string()) } else { Fault::Unavailable(Box::new(error)) };
    OpenError { place: file.display().to_string(), fault }
}

fn code(error: &rusqlite::Error) -> Option<ErrorCode> {
    error.sqlite_error_code()
}

/// Whether the file is shorter than its head says. Where there is a log beside it, that may make up for it.
fn is_cut(file: &Path) -> io::Result<bool> {
    let log = fs::metadata(format!("{}-wal", file.display())).map_or(0, |log| log.len());
    let mut head = [0; 32];
    let mut reader = fs::File::open(file)?;
    if log > 0 || io::Read::read_exact(&mut reader, &mut head).is_err() {
        return Ok(false);
    }
    let [.., a, b, c, d] = head;
    let size = match u64::from(u16::from_be_bytes([head[16], head[17]])) {
        1 => 65536,
        size => size,
    };
    Ok(reader.metadata()?.len() < u64::from(u32::from_be_bytes([a, b, c, d])) * size)
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Writing,
    Reading,
}

/// What a file was made by.
enum Version {
    Nothing,
    Ours(i64),
    Newer(i64),
    Foreign,
}

impl Place {
    /// Opens the file once more, after it could not be used.
    fn reopen(&self, access: Access) -> rusqlite::Result<Opened> {
        let mut opened = Opened::of(&self.file, access)?;
        if opened.identity()? == self.identity {
            opened.see_log();
            return Ok(opened);
        }
        Err(rusqlite::Error::InvalidPath(self.file.clone()))
    }

    fn tell_broken(&self, error: &rusqlite::Error) {
        let file = self.file.display();
        tracing::error!(%error, %file, "the inbox cannot be relied on any more, and nothing is accepted or delivered: stop the \
            gateway; see docs/reference/inbox.md, When it is lost");
    }

    fn error(&self, error: rusqlite::Error) -> OpenError {
        found(&self.file, error)
    }
}

impl Opened {
    fn of(file: &Path, access: Access) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags)?;
        connection.busy_timeout(BUSY)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        // Nothing is written but in the folder, where confinement lets us.
        connection.pragma_update(None, "temp_store", "MEMORY")?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        // Not opened as read-only: whichever is closed last puts the log into the file.
        connection.pragma_update(None, "query_only", access == Access::Reading)?;
        let node = node(file).ok_or_else(|| rusqlite::Error::InvalidPath(file.to_owned()))?;
        Ok(Self { connection, file: file.to_owned(), node, log: None })
    }

    /// Whether the files are still where they were: what is written into one that was moved away is lost.
    fn whereabouts(&self) -> Whereabouts {
        if node(&self.file) != Some(self.node) {
            Whereabouts::Gone
        } else if self.log.is_some_and(|log| node(&log_of(&self.file)) != Some(log)) {
            Whereabouts::LogGone
        } else {
            Whereabouts::InPlace
        }
    }

    /// Takes note of the log, which there is when something was read or written.
    fn see_log(&mut self) {
        self.log = self.log.or_else(|| node(&log_of(&self.file)));
    }

    /// Puts what is in the log into the file.
    fn empty_log(&self) -> rusqlite::Result<()> {
        let is_busy = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get(0))?;
        if is_busy { Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), None)) } else { Ok(()) }
    }

    /// The clock for this store. What would be due later than anything can be was noted by a clock that was wrong, and is due now.
    fn clock(&self) -> rusqlite::Result<Clock> {
        let latest = self.connection.query_row(LATEST, (), |row| row.get(0))?;
        let clock = Clock::new(SystemTime::now(), latest, Instant::now());
        let never = clock.now().saturating_add(span(LATEST_DUE));
        self.connection
            .execute("UPDATE deliveries SET due = 0 WHERE state < 2 AND due > ? AND due < ?", (never, PARKED))?;
        Ok(clock)
    }

    fn version(&self) -> rusqlite::Result<Version> {
        let number: i64 = self.connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let application: i64 = self.connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let tables: i64 = self.connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))?;
        Ok(match (number, tables) {
            (0, 0) => Version::Nothing,
            _ if application != APPLICATION => Version::Foreign,
            (number, _) if number > latest() => Version::Newer(number),
            (number, _) => Version::Ours(number),
        })
    }

    /// Brings the schema up to date, in one transaction and behind a lock.
    fn migrate(&mut self) -> rusqlite::Result<()> {
        // It stands in the file from then on.
        self.connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
        if matches!(self.version()?, Version::Ours(number) if number == latest()) {
            return Ok(());
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let number: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        for step in STEPS.iter().skip(usize::try_from(number).unwrap_or_default()) {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", latest())?;
        if number == 0 {
            transaction.execute("INSERT INTO store (identity) VALUES (?)", [Uuid::now_v7().to_string()])?;
        }
        transaction.commit()
    }

    /// Reads a row of each table and index from either end, where damage is found most often. Reading everything would take minutes.
    fn check(&self) -> rusqlite::Result<()> {
        for (table, key) in [("events", "seq"), ("bodies", "event"), ("deliveries", "number"), ("acts", "number")] {
            for order in ["ASC", "DESC"] {
                let sql = format!("SELECT * FROM {table} ORDER BY {key} {order} LIMIT 1");
                self.connection.prepare(&sql)?.query(())?.next()?;
            }
        }
        Ok(())
    }

    fn identity(&self) -> rusqlite::Result<String> {
        self.connection.query_row("SELECT identity FROM store", (), |row| row.get(0))
    }
}

/// The latest time of the wall clock that the store knows of, as far as it is found without looking through all of it.
const LATEST: &str = "SELECT max(coalesce((SELECT received FROM events ORDER BY seq DESC LIMIT 1), 0), \
     coalesce((SELECT max(settled) FROM (SELECT settled FROM deliveries ORDER BY number DESC LIMIT 1000)), 0), \
     coalesce((SELECT at FROM acts ORDER BY number DESC LIMIT 1), 0))";

/// The version of the schema that this program has.
fn latest() -> i64 {
    i64::try_from(STEPS.len()).unwrap_or(i64::MAX)
}

/// Microseconds since 1970.
fn micros(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, span)
}

fn span(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(PARKED - 1)
}

/// The time that is so many microseconds after 1970.
fn time_of(micros: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_micros(micros.try_into().unwrap_or_default())
}
