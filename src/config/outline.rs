//! A configuration in short, to say what another one changes in it, and which files it was made of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{BufReader, Read as _},
    path::{Path, PathBuf},
};

use figment::value::{Dict, Value};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};

use super::{
    file::{self, Kind},
    mask::masked,
    source::joined,
};
use crate::tls;

/// The largest file that is looked at.
const LIMIT_BYTES: u64 = super::LIMIT_BYTES;

/// The keys of a configuration with a digest of each value. It holds no value.
#[derive(Debug, Default)]
pub struct Outline(BTreeMap<String, u64>);

/// The files that a configuration was read from, with what they held just before.
#[derive(Clone, Debug, Default)]
pub struct Sources(Vec<Seen>);

/// A secret, certificate or list of addresses that came, went or became another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    pub how: How,
    pub kind: SourceKind,
    /// The key that names its file.
    pub key: String,
    /// SHA-256 of the first certificate that the file holds, or held if it went, in hex.
    pub fingerprint: Option<String>,
}

/// A file as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The key that names it, such as `apps.shipping.secrets.0.file`; empty for the configuration itself.
    pub key: String,
    pub kind: SourceKind,
    pub path: PathBuf,
    /// `None`: it could not be read.
    digest: Option<[u8; 32]>,
    /// Of a certificate.
    fingerprint: Option<String>,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    Configuration,
    Secret,
    /// Certificates or a private key.
    Certificate,
    /// Addresses that requests may come from.
    Addresses,
}

/// One difference between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub how: How,
    /// A key, such as `limits.connections`, or a table that came or went as a whole, such as `routes."/orders/"`.
    pub key: String,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Added,
    Removed,
    Changed,
}

impl Outline {
    /// Of a whole configuration.
    pub(super) fn of(merged: &Dict) -> Self {
        let mut keys = BTreeMap::new();
        flatten(merged, "", "", &mut keys);
        Self(keys)
    }

    /// What `later` changes, in the order of the keys. A table of the administrator's naming that comes or goes is one
    /// change.
    pub fn changes(&self, later: &Self) -> Vec<Change> {
        let keys: BTreeSet<&String> = self.0.keys().chain(later.0.keys()).collect();
        let mut changes: Vec<Change> = Vec::new();
        for key in keys {
            let (how, table) = match (self.0.get(key), later.0.get(key)) {
                (Some(before), Some(after)) if before == after => continue,
                (Some(_), Some(_)) => (How::Changed, None),
                (None, _) => (How::Added, whole(key, &self.0)),
                (Some(_), None) => (How::Removed, whole(key, &later.0)),
            };
            let change = Change { how, key: masked(table.unwrap_or(key)) };
            if changes.last() != Some(&change) {
                changes.push(change);
            }
        }
        changes
    }
}

impl Sources {
    /// Notes the file at `path`, which `key` names, as it is now.
    pub(super) fn note(&mut self, key: &str, kind: SourceKind, path: &Path) {
        let fingerprint = if kind == SourceKind::Certificate { fingerprint(path) } else { None };
        self.0.push(Seen { key: key.to_owned(), kind, path: path.to_owned(), digest: digest(path), fingerprint });
    }

    #[cfg(test)]
    pub(crate) fn of_files(paths: &[&Path]) -> Self {
        let mut sources = Self::default();
        for path in paths {
            sources.note("", SourceKind::Configuration, path);
        }
        sources
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Seen> {
        self.0.iter()
    }

    /// Whether any of them holds something else by now.
    pub fn are_changed(&self) -> bool {
        let contents = self.contents();
        self.0.iter().any(|seen| contents.get(&seen.path) != Some(&seen.digest))
    }

    /// What each of the files holds by now: a digest, or nothing where it cannot be read.
    pub fn contents(&self) -> BTreeMap<PathBuf, Option<[u8; 32]>> {
        let paths: BTreeSet<_> = self.0.iter().map(|seen| &seen.path).collect();
        paths.into_iter().map(|path| (path.clone(), digest(path))).collect()
    }

    /// The files of `later`, and of these where it does not say anything: one that fails early has not looked at all.
    #[must_use]
    pub fn followed_by(&self, later: &Self) -> Self {
        let old = self.0.iter().filter(|seen| later.0.iter().all(|new| new.path != seen.path));
        Self(later.0.iter().chain(old).cloned().collect())
    }

    /// What else `later` holds: what came, what went, and what is another under the same key. What only moved within a list, or
    /// to another file, is none of these.
    pub fn exchanged(&self, later: &Self) -> Vec<Exchange> {
        let held = |sources: &Self| -> Vec<Seen> {
            sources.0.iter().filter(|seen| seen.kind != SourceKind::Configuration).cloned().collect()
        };
        let (mut before, mut after) = (held(self), held(later));
        let stays = |old: &Seen, new: &Seen| new.key == old.key && new.digest == old.digest;
        // The same file, or a secret of the same owner: what two owners exchange is news.
        let moved = |old: &Seen, new: &Seen| {
            let is_ones_own = owner(&new.key).is_some_and(|name| owner(&old.key) == Some(name));
            let is_known = new.path == old.path || is_ones_own;
            is_known && list_of(&new.key) == list_of(&old.key) && new.digest == old.digest
        };
        drop_pairs(&mut before, &mut after, stays);
        drop_pairs(&mut before, &mut after, moved);
        let (before, after): (BTreeMap<_, _>, BTreeMap<_, _>) = (
            before.into_iter().map(|seen| (seen.key.clone(), seen)).collect(),
            after.into_iter().map(|seen| (seen.key.clone(), seen)).collect(),
        );
        let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        let exchange = |key: &String| {
            let (how, seen) = match (before.get(key), after.get(key)) {
                (Some(_), Some(new)) => (How::Changed, new),
                (None, Some(new)) => (How::Added, new),
                (Some(old), None) => (How::Removed, old),
                (None, None) => return None,
            };
            Some(Exchange { how, kind: seen.kind, key: masked(key), fingerprint: seen.fingerprint.clone() })
        };
        keys.into_iter().filter_map(exchange).collect()
    }

    /// Whether `key` names the same file with the same contents as in `later`.
    pub(super) fn has(&self, key: &str, path: &Path) -> bool {
        let held = |seen: &Seen| seen.digest.is_some() && seen.digest == digest(path);
        self.0.iter().any(|seen| seen.key == key && seen.path == path && held(seen))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.how {
            How::Added => "added",
            How::Removed => "removed",
            How::Changed => "changed",
        };
        write!(f, "{how} {}", self.key)
    }
}

impl How {
    /// The word in the audit log.
    pub fn of_a_file(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "exchanged",
        }
    }
}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.how, self.kind) {
            (How::Added, SourceKind::Certificate) => "a new certificate or key in",
            (How::Added, _) => "something new in",
            (How::Removed, SourceKind::Certificate) => "no more certificate or key in",
            (How::Removed, _) => "nothing more in",
            (How::Changed, SourceKind::Secret) => "another secret in",
            (How::Changed, SourceKind::Certificate) => "another certificate or key in",
            (How::Changed, SourceKind::Addresses) => "other addresses in",
            (How::Changed, SourceKind::Configuration) => "another file in",
        };
        write!(f, "{what} {}", self.key)?;
        self.fingerprint.as_ref().map_or(Ok(()), |fingerprint| write!(f, ", SHA-256 {fingerprint}"))
    }
}

/// The table of the administrator's naming around `key`, if there is nothing of it in `other`.
fn whole<'k>(key: &'k str, other: &BTreeMap<String, u64>) -> Option<&'k str> {
    let (top, rest) = key.split_once('.')?;
    if !["routes", "apps", "upstreams", "webhooks"].contains(&top) {
        return None;
    }
    // A name that has dots stands in quotes.
    let name = match rest.strip_prefix('"') {
        Some(quoted) => quoted.find("\".").map_or(rest.len(), |end| end + 2),
        None => rest.find('.').unwrap_or(rest.len()),
    };
    let table = key.get(..top.len() + 1 + name)?;
    let inside = format!("{table}.");
    let is_there = other.range(inside.clone()..).next().is_some_and(|(key, _)| key.starts_with(&inside));
    (!is_there).then_some(table)
}

/// Adds every value below `dict`. A route or a webhook is known by its path, not by its place, and a destination by its name.
fn flatten(dict: &Dict, path: &str, pattern: &str, keys: &mut BTreeMap<String, u64>) {
    for (name, value) in dict {
        let is_named = file::find(pattern).is_some_and(|key| key.kind == Kind::Names);
        let pattern = joined(pattern, if is_named { "NAME" } else { name });
        let path = joined(path, name);
        match value {
            Value::Dict(_, inner) => flatten(inner, &path, &pattern, keys),
            Value::Array(_, items) if file::find(&pattern).is_some_and(|key| key.kind == Kind::Tables) => {
                for (place, item) in items.iter().enumerate() {
                    let place = place.to_string();
                    let named = |key| item.as_dict().and_then(|table| table.get(key)).and_then(Value::as_str);
                    let known = named("path").or_else(|| named("name"));
                    let item_path = joined(&path, known.unwrap_or(&place));
                    match item {
                        Value::Dict(_, inner) => flatten(inner, &item_path, &pattern, keys),
                        other => add(item_path, other, keys),
                    }
                }
            }
            other => add(path, other, keys),
        }
    }
}

fn add(key: String, value: &Value, keys: &mut BTreeMap<String, u64>) {
    let mut hasher = DefaultHasher::new();
    text(value).hash(&mut hasher);
    keys.insert(key, hasher.finish());
}

/// The value without the tag that says where it is from.
fn text(value: &Value) -> String {
    match value {
        Value::String(_, text) => text.clone(),
        Value::Char(_, char) => char.to_string(),
        Value::Bool(_, flag) => flag.to_string(),
        Value::Num(_, number) => format!("{number:?}"),
        Value::Empty(..) => String::new(),
        Value::Dict(_, dict) => {
            format!("{:?}", dict.iter().map(|(name, value)| (name, text(value))).collect::<Vec<_>>())
        }
        Value::Array(_, items) => format!("{:?}", items.iter().map(text).collect::<Vec<_>>()),
    }
}

/// Removes one of `before` and one of `after` wherever two are a pair.
fn drop_pairs(before: &mut Vec<Seen>, after: &mut Vec<Seen>, is_pair: impl Fn(&Seen, &Seen) -> bool) {
    before.retain(|old| match after.iter().position(|new| is_pair(old, new)) {
        Some(place) => {
            after.swap_remove(place);
            false
        }
        None => true,
    });
}

/// Whose secret a key refers to.
fn owner(key: &str) -> Option<&str> {
    key.rsplit_once(".secrets.").map(|(owner, _)| owner)
}

/// A key without the places in lists. An app's or an upstream's name may be a number too.
fn list_of(key: &str) -> Vec<&str> {
    let parts: Vec<&str> = key.split('.').collect();
    let is_place = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let is_named = |place: usize| place == 1 && matches!(parts.first(), Some(&("apps" | "upstreams")));
    let kept = parts.iter().enumerate().filter(|(place, part)| is_named(*place) || !is_place(part));
    kept.map(|(_, part)| *part).collect()
}

/// SHA-256 of the first certificate in the file at `path`, in hex; `None` if there is none.
fn fingerprint(path: &Path) -> Option<String> {
    let file = File::open(path).ok()?.take(LIMIT_BYTES);
    let first = CertificateDer::pem_reader_iter(BufReader::new(file)).next()?.ok()?;
    Some(tls::fingerprint(&first))
}

fn digest(path: &Path) -> Option<[u8; 32]> {
    let mut file = File::open(path).ok()?.take(LIMIT_BYTES + 1);
    let mut hash = Sha256::new();
    let mut part = zeroize::Zeroizing::new(vec![0; 16 * 1024]);
    loop {
        let length = file.read(&mut part).ok()?;
        if length == 0 {
            return Some(hash.finalize().into());
        }
        hash.update(part.get(..length)?);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::Source;

    fn outline(text: &str) -> Outline {
        let (_, dict) = Source::parse("test".into(), text.to_owned()).unwrap();
        Outline::of(&dict)
    }

    fn changes(before: &str, after: &str) -> Vec<String> {
        outline(before).changes(&outline(after)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_changes_is_said_by_its_key() {
        let before = "[limits]\nconnections = 1\n[apps.a]\naccounts = [\"x\"]\nsecrets = [{ file = \"s\" }]\n\
                      [[routes]]\npath = \"/a.b/\"\nroles = [\"x\"]\n[[routes]]\npath = \"/c\"\napp = \"a\"\n";
        assert!(changes(before, before).is_empty());
        // The order of routes says nothing.
        let after = "[limits]\nconnections = 2\nheaders = 3\n[apps.a]\naccounts = [\"x\", \"y\"]\n\
                     secrets = [{ file = \"s\" }, { file = \"t\" }]\n\
                     [[routes]]\npath = \"/d.e\"\napp = \"a\"\nroles = [\"y\"]\n[[routes]]\npath = \"/a.b/\"\n";
        assert_eq!(
            changes(before, after),
            [
                "changed apps.a.accounts",
                "added apps.a.secrets.1.file",
                "changed limits.connections",
                "added limits.headers",
                "removed routes.\"/a.b/\".roles",
                "removed routes.\"/c\"",
                "added routes.\"/d.e\"",
            ]
        );
        assert_eq!(changes("[apps.a]\nx = 1\ny = 2\n", "[apps.b]\nx = 1\n"), ["removed apps.a", "added apps.b"]);
    }

    #[test]
    fn a_file_that_holds_something_else_is_seen_and_named_by_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let seen = || {
            let mut sources = Sources::default();
            sources.note("apps.a.secrets.0.file", SourceKind::Secret, &path);
            sources
        };
        let missing = seen();
        assert!(!missing.are_changed());
        std::fs::write(&path, "one").unwrap();
        let one = seen();
        assert!(missing.are_changed() && !one.are_changed());
        std::fs::write(&path, "two").unwrap();
        assert!(one.are_changed());
        let said: Vec<_> = one.exchanged(&seen()).iter().map(ToString::to_string).collect();
        assert_eq!(said, ["another secret in apps.a.secrets.0.file"]);
        assert!(one.exchanged(&one).is_empty());
        // What a list loses, and what only moves up in it.
        let of = |names: &[&str]| {
            let mut sources = Sources::default();
            for (place, name) in names.iter().enumerate() {
                let path = folder.path().join(name);
                std::fs::write(&path, name).unwrap();
                sources.note(&format!("webhooks.{place}.secrets.0.file"), SourceKind::Secret, &path);
            }
            sources
        };
        let exchanged = |before: &[&str], after: &[&str]| {
            let exchanges = of(before).exchanged(&of(after));
            exchanges.into_iter().map(|exchange| (exchange.how, exchange.key)).collect::<Vec<_>>()
        };
        let key = |place: usize| format!("webhooks.{place}.secrets.0.file");
        assert_eq!(exchanged(&["a", "b", "c"], &["b", "c"]), [(How::Removed, key(0))]);
        assert_eq!(exchanged(&["a", "b"], &["c", "b", "a"]), [(How::Added, key(0))]);
        assert_eq!(exchanged(&["a", "b"], &["b", "d"]), [(How::Removed, key(0)), (How::Added, key(1))]);
        assert_eq!(exchanged(&["a", "b"], &["a", "d"]), [(How::Changed, key(1))]);
        // Two owners' files exchange what they hold.
        let before = of(&["a", "b"]);
        for (name, held) in [("a", "b"), ("b", "a")] {
            std::fs::write(folder.path().join(name), held).unwrap();
        }
        let mut after = Sources::default();
        for (place, name) in ["a", "b"].iter().enumerate() {
            after.note(&key(place), SourceKind::Secret, &folder.path().join(name));
        }
        let swapped: Vec<_> = before.exchanged(&after).into_iter().map(|exchange| exchange.key).collect();
        assert_eq!(swapped, [key(0), key(1)]);
        assert_ne!(list_of("apps.1.secrets.0.file"), list_of("apps.2.secrets.0.file"));
    }
}
