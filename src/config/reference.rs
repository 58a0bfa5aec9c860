//! References to secrets: the configuration says where one is, never what it is.

use std::{fs, path::PathBuf};

use zeroize::{Zeroize as _, Zeroizing};

use super::{
    SourceKind, file,
    mask::{looks_secret, quoted},
    section::Item,
};
use crate::tls;

/// The longest secret that is read.
const LIMIT_BYTES: u64 = 64 * 1024;
const FORM: &str = "write { file = \"…\" }, { env = \"…\" } or { credential = \"…\" }";

/// A secret that was read, and the value that says where it was.
pub(super) struct Secret<'c> {
    pub text: Zeroizing<String>,
    pub item: Item<'c>,
    /// The source in words, for messages.
    pub origin: String,
}

/// Reads the secret that `item` refers to, whole and as it is. `pattern` is the path of the reference in
/// [`file::KEYS`].
pub(super) fn read<'c>(item: &Item<'c>, pattern: &'static str) -> Option<Secret<'c>> {
    if let Some(text) = item.as_text() {
        let known = "whoever read this file knows it now: roll it, and ";
        let suggestion = format!("{}{FORM}", if looks_secret(text) { known } else { "" });
        item.error("a secret is not written into the configuration", Some(&suggestion));
        return None;
    }
    let section = item.section(pattern)?;
    let sources: Vec<_> = file::names_in(pattern).filter_map(|name| Some((name, section.item(name)?))).collect();
    match sources.as_slice() {
        [(name, source)] => {
            let (text, origin) = match *name {
                "file" => from_file(source)?,
                "env" => from_environment(source)?,
                _ => from_credential(source)?,
            };
            Some(Secret { text, item: source.clone(), origin })
        }
        // An unknown key was reported, and is probably one of them misspelled.
        [] if !section.is_empty() => None,
        [] => {
            item.error("this reference says not where the secret is", Some(FORM));
            None
        }
        [_, (_, second), ..] => {
            second.key_error("a secret has one source", Some("keep one of `file`, `env` and `credential`"));
            None
        }
    }
}

fn from_file(item: &Item<'_>) -> Option<(Zeroizing<String>, String)> {
    let path = item.context.file(item.text()?);
    let origin = format!("secret file {}", quoted(&path.to_string_lossy()));
    warn_of_readers(item, &path, &origin);
    let suggestion =
        "put the secret there, readable by this service only; the path starts at the configuration's folder";
    Some((contents(item, &path, &origin, suggestion)?, origin))
}

fn from_environment(item: &Item<'_>) -> Option<(Zeroizing<String>, String)> {
    let name = item.text()?;
    let origin = format!("environment variable {}", quoted(name));
    let Some(value) = item.context.environment.var(name) else {
        item.error(
            &format!("{origin} is not set"),
            Some("set it for this service, or name the variable that holds the secret"),
        );
        return None;
    };
    Some((Zeroizing::new(value.to_owned()), origin))
}

fn from_credential(item: &Item<'_>) -> Option<(Zeroizing<String>, String)> {
    let name = item.text()?;
    let origin = format!("credential {}", quoted(name));
    if name.contains('/') || name == ".." || name == "." {
        item.error(
            &format!("{origin} is not a name"),
            Some("a credential is named as in systemd's LoadCredential=, without a path"),
        );
        return None;
    }
    let Some(folder) = item.context.environment.var("CREDENTIALS_DIRECTORY").filter(|folder| !folder.is_empty()) else {
        item.error(
            &format!("{origin} is not there: CREDENTIALS_DIRECTORY is not set"),
            Some(
                "start the service by systemd with LoadCredential=, or write { file = \"…\" }; to check by hand, set \
                 CREDENTIALS_DIRECTORY to a folder with a file of that name",
            ),
        );
        return None;
    };
    let path = PathBuf::from(folder).join(name);
    Some((contents(item, &path, &origin, "add it to the unit: LoadCredential=NAME:PATH")?, origin))
}

fn contents(item: &Item<'_>, path: &std::path::Path, origin: &str, suggestion: &str) -> Option<Zeroizing<String>> {
    use std::io::Read as _;
    item.context.note_source(item, SourceKind::Secret, path);
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    let read = fs::File::open(path).and_then(|file| file.take(LIMIT_BYTES + 1).read_to_end(&mut bytes));
    if let Err(error) = read {
        item.error(&format!("{origin} cannot be read: {}", tls::reason(error.kind())), Some(suggestion));
        return None;
    }
    if u64::try_from(bytes.len()).is_ok_and(|length| length > LIMIT_BYTES) {
        item.error(&format!("{origin} is too large for a secret"), Some("name the file that holds the secret alone"));
        return None;
    }
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Some(Zeroizing::new(text)),
        Err(error) => {
            error.into_bytes().zeroize();
            item.error(
                &format!("{origin} is not text"),
                Some("write the secret as plain ASCII, without a byte order mark"),
            );
            None
        }
    }
}

/// Warns of a file with a secret that others than its owner may read.
#[cfg(unix)]
pub(super) fn warn_of_readers(item: &Item<'_>, path: &std::path::Path, origin: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let Ok(metadata) = fs::metadata(path) else { return };
    let mode = metadata.permissions().mode() & 0o777;
    if metadata.is_file() && mode & 0o077 != 0 {
        item.warn(&format!(
            "{origin} has mode {mode:03o}: other users of this machine may read it; chmod 600, owned by the service's user"
        ));
    }
}

/// Who may read a file is not known here.
#[cfg(not(unix))]
pub(super) fn warn_of_readers(_: &Item<'_>, _: &std::path::Path, _: &str) {}
