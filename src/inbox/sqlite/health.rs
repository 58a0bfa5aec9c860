//! Whether the files are those that are written, and whether they can be relied on.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use rusqlite::{Error, ErrorCode, Result, ffi};

use super::code;

/// Device and number of a file.
pub(super) type Node = (u64, u64);

/// What the threads of one store tell each other.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// What it broke by, once it has.
    broken: OnceLock<String>,
    /// The log that is written.
    log: Mutex<Option<Node>>,
}

/// Where the files of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whereabouts {
    InPlace,
    /// The log was removed or replaced: what stands in it is had by this connection alone.
    LogGone,
    /// The file was moved away or replaced.
    Gone,
}

impl Health {
    /// That nothing has broken the store.
    pub(super) fn check(&self) -> Result<()> {
        match self.broken.get() {
            None => Ok(()),
            Some(what) => Err(Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(what.clone()))),
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.get().is_some()
    }

    /// Notes an error that breaks the store until a restart; whether it does, and is the first.
    pub(super) fn note(&self, error: &Error) -> bool {
        is_damage(error) && self.broken.set(error.to_string()).is_ok()
    }

    pub(super) fn log(&self) -> Option<Node> {
        *self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_log(&self, log: Option<Node>) {
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = log;
    }
}

/// Whether the file is damaged, or may lack what was told to be on the disk: after a sync that failed, another one succeeds
/// though the data are lost.
fn is_damage(error: &Error) -> bool {
    let extended = error.sqlite_error().map(|error| error.extended_code);
    matches!(code(error), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
        || matches!(extended, Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC))
}

pub(super) fn node(file: &Path) -> Option<Node> {
    fs::metadata(file).ok().map(|file| (file.dev(), file.ino()))
}

/// The log of a file.
pub(super) fn log_of(file: &Path) -> PathBuf {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_and_failed_syncs_break_it_and_nothing_else() {
        let of = |code| Error::SqliteFailure(ffi::Error::new(code), None);
        for code in [ffi::SQLITE_FULL, ffi::SQLITE_BUSY, ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_CANTOPEN] {
            let health = Health::default();
            assert!(!health.note(&of(code)) && health.check().is_ok(), "{code}");
        }
        for code in [ffi::SQLITE_CORRUPT, ffi::SQLITE_NOTADB, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_DIR_FSYNC] {
            let health = Health::default();
            assert!(health.note(&of(code)) && !health.note(&of(code)), "{code}");
            assert!(health.is_broken() && health.check().is_err(), "{code}");
        }
    }
}
