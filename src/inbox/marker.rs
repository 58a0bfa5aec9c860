//! The marker beside the inbox: which store it is in, so that one that is gone is missed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::files;

/// Which store an inbox is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    pub(super) kind: Kind,
    /// What the store calls itself.
    pub(super) identity: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
}

impl Marker {
    pub(super) fn path(state_directory: &Path) -> PathBuf {
        state_directory.join("inbox.marker")
    }

    /// The marker, if there is one.
    pub(super) fn read(state_directory: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(Self::path(state_directory)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "it is not as the gateway writes it");
        let (kind, identity) = text.trim_end().split_once(' ').ok_or_else(unreadable)?;
        let kind = [Kind::Sqlite, Kind::Postgres].into_iter().find(|known| known.as_str() == kind);
        Ok(Some(Self { kind: kind.ok_or_else(unreadable)?, identity: identity.to_owned() }))
    }

    /// Writes it, in place of one that is there.
    pub(super) fn write(&self, state_directory: &Path) -> io::Result<()> {
        let text = format!("{} {}\n", self.kind.as_str(), self.identity);
        files::put(&Self::path(state_directory), text.as_bytes(), 0o600)
    }
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}
