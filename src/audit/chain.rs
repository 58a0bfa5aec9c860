//! A line of the audit log: how it is made from the one before, and how it is read back.
//!
//! `{"seq":N,"time":"…","kind":"…","prev":"…", …}` in this order, where `prev` is the hex SHA-256 of the bytes of the line
//! before without its line feed, and 64 zeros in the first. Nothing can be changed without changing every `prev` behind
//! it.

use std::{fmt, time::SystemTime};

use sha2::{Digest as _, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::Kind;
use crate::signature::lower_hex;

/// SHA-256 of a line without its line feed; zeros stand for the line before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hash([u8; 32]);

/// The last line of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Its number, from 1; 0 of a chain without lines.
    pub sequence: u64,
    pub hash: Hash,
}

/// What every line begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beginning<'l> {
    pub sequence: u64,
    pub time: &'l str,
    pub kind: &'l str,
    pub previous: Hash,
}

impl Hash {
    /// Of a line without its line feed.
    pub fn of(line: &[u8]) -> Self {
        Self(Sha256::digest(line).into())
    }

    /// Reads 64 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        lower_hex(text.as_bytes()).map(Self)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Appends it in lower-case hex.
    pub fn print(&self, out: &mut Vec<u8>) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for byte in self.0 {
            out.extend([byte >> 4, byte & 15].map(|half| DIGITS.get(usize::from(half)).copied().unwrap_or_default()));
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Head {
    /// Appends the line that follows this one, with its line feed: `fields` are its own, each with a comma before it.
    /// This becomes that line.
    pub(super) fn append(&mut self, time: SystemTime, kind: Kind, fields: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(b"{\"seq\":");
        out.extend_from_slice(itoa::Buffer::new().format(self.sequence + 1).as_bytes());
        out.extend_from_slice(b",\"time\":\"");
        // A time that has no such form, of a year beyond 9999, is left empty.
        let _ = OffsetDateTime::from(time).format_into(out, &Rfc3339);
        out.extend_from_slice(b"\",\"kind\":\"");
        out.extend_from_slice(kind.as_str().as_bytes());
        out.extend_from_slice(b"\",\"prev\":\"");
        self.hash.print(out);
        out.push(b'"');
        out.extend_from_slice(fields);
        out.push(b'}');
        *self = Self { sequence: self.sequence + 1, hash: Hash::of(out.get(start..).unwrap_or_default()) };
        out.push(b'\n');
    }

    /// Whether `tail` may be what a crash left of the line that follows this one.
    pub(super) fn could_begin(&self, tail: &[u8]) -> bool {
        let expected = format!("{{\"seq\":{},\"time\":\"", self.sequence + 1);
        let common = expected.len().min(tail.len());
        // A machine that lost its power may leave zeros where the bytes had not come yet.
        tail.iter().all(|b| *b == 0)
            || tail.get(..common) == expected.as_bytes().get(..common)
                && Beginning::read(tail).is_none_or(|beginning| beginning.previous == self.hash)
    }
}

impl<'l> Beginning<'l> {
    /// Reads what `line` begins with; `None` if it begins otherwise. What follows is not looked at.
    pub fn read(line: &'l [u8]) -> Option<Self> {
        let rest = line.strip_prefix(b"{\"seq\":")?;
        let digits = rest.iter().position(|b| !b.is_ascii_digit())?;
        let number = std::str::from_utf8(rest.get(..digits)?).ok()?;
        // Half of all numbers are never reached, and so there is always a next one.
        let sequence = number.parse().ok().filter(|n| *n < u64::MAX / 2 && !number.starts_with('0'))?;
        let (time, rest) = text(rest.get(digits..)?.strip_prefix(b",\"time\":\"")?)?;
        let (kind, rest) = text(rest.strip_prefix(b",\"kind\":\"")?)?;
        let (previous, rest) = text(rest.strip_prefix(b",\"prev\":\"")?)?;
        let previous = Hash::parse(previous)?;
        matches!(rest.first(), Some(b',' | b'}')).then_some(Self { sequence, time, kind, previous })
    }

    /// The time that it tells.
    pub fn time(&self) -> Option<SystemTime> {
        OffsetDateTime::parse(self.time, &Rfc3339).ok().map(SystemTime::from)
    }
}

/// What stands before the next quote, and what behind it. None of these values has an escape.
fn text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = memchr::memchr(b'"', bytes)?;
    Some((std::str::from_utf8(bytes.get(..end)?).ok()?, bytes.get(end + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_back_and_carries_the_hash_of_the_one_before() {
        let (mut head, mut out) = (Head::default(), Vec::new());
        head.append(SystemTime::UNIX_EPOCH, Kind::Start, b",\"a\":1", &mut out);
        head.append(SystemTime::UNIX_EPOCH, Kind::Stop, b"", &mut out);
        let lines: Vec<_> = out.split(|b| *b == b'\n').collect();
        assert_eq!(
            std::str::from_utf8(lines[0]).unwrap(),
            format!(
                "{{\"seq\":1,\"time\":\"1970-01-01T00:00:00Z\",\"kind\":\"start\",\"prev\":\"{}\",\"a\":1}}",
                "0".repeat(64)
            )
        );
        let second = Beginning::read(lines[1]).unwrap();
        assert_eq!((second.sequence, second.kind, second.previous), (2, "stop", Hash::of(lines[0])));
        assert_eq!(second.time(), Some(SystemTime::UNIX_EPOCH));
        assert_eq!(head, Head { sequence: 2, hash: Hash::of(lines[1]) });
        assert_eq!(Hash::parse(&head.hash.to_string()), Some(head.hash));
    }

    #[test]
    fn what_a_crash_left_is_told_from_what_somebody_put_there() {
        let mut head = Head::default();
        head.append(SystemTime::UNIX_EPOCH, Kind::Start, b"", &mut Vec::new());
        let mut next = Vec::new();
        head.clone().append(SystemTime::UNIX_EPOCH, Kind::Stop, b",\"a\":1", &mut next);
        next.pop();
        for length in 1..next.len() {
            assert!(head.could_begin(&next[..length]), "{length}");
        }
        for foreign in [&b"x"[..], b"{\"seq\":3,", b"{\"seq\":20,", b"\0\0x", b"{\"sex\""] {
            assert!(!head.could_begin(foreign), "{foreign:?}");
        }
        let other = String::from_utf8(next).unwrap().replace(&head.hash.to_string(), &"1".repeat(64));
        assert!(!head.could_begin(other.as_bytes()));
    }
}
