//! The `Stripe-Signature` header and the MACs in it.
//!
//! Source: Stripe, "Build a UI extension back end", <https://docs.stripe.com/stripe-apps/build-backend>; the grammar
//! is stricter than that of Stripe's own libraries, so that a header has one spelling only.

use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::secret::SigningSecret;

mod uses;

pub use uses::Uses;

/// The longest header value that is looked at, in bytes.
pub const HEADER_LIMIT_BYTES: usize = 4096;

/// HMAC-SHA256 output.
pub type Tag = [u8; 32];

/// A parsed `Stripe-Signature` value: one timestamp and at least one tag.
#[derive(Clone, Debug)]
pub struct Signature<'h> {
    timestamp_text: &'h str,
    timestamp: i64,
    tags: Vec<Tag>,
}

/// The header value is not of the form `t=UNIX,v1=HEX[,v1=HEX…]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    TooLong,
    NotText,
    NoTimestamp,
    SecondTimestamp,
    OddTimestamp,
    NoTag,
}

/// Where a timestamp lies relative to the window of tolerance, both of whose ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    Fresh,
    Expired,
    Future,
}

impl<'h> Signature<'h> {
    /// Parses a header value: at most [`HEADER_LIMIT_BYTES`], split at `,`, spaces and tabs trimmed around each item,
    /// split at the first `=`; exactly one `t` of the form `[1-9][0-9]{0,11}`; `v1` counts only as 64 lower-case hex
    /// digits; other keys are ignored.
    ///
    /// # Errors
    /// [`Malformed`] says which part of that does not hold.
    pub fn parse(value: &'h [u8]) -> Result<Self, Malformed> {
        if value.len() > HEADER_LIMIT_BYTES {
            return Err(Malformed::TooLong);
        }
        if std::str::from_utf8(value).is_err() {
            return Err(Malformed::NotText);
        }
        let mut timestamp = None;
        let mut tags = Vec::with_capacity(2);
        // As bytes: a split of text looks for its separator through a searcher, for half of the time that parsing took.
        for item in value.split(|b| *b == b',') {
            let item = trimmed(item);
            let Some((key, value)) = memchr::memchr(b'=', item).and_then(|at| item.split_at_checked(at)) else {
                continue;
            };
            let value = value.get(1..).unwrap_or_default();
            match key {
                b"t" if timestamp.is_some() => return Err(Malformed::SecondTimestamp),
                b"t" => timestamp = Some(unix_seconds(value).ok_or(Malformed::OddTimestamp)?),
                b"v1" => tags.extend(lower_hex(value)),
                _ => {}
            }
        }
        let (timestamp_text, timestamp) = timestamp.ok_or(Malformed::NoTimestamp)?;
        if tags.is_empty() {
            return Err(Malformed::NoTag);
        }
        Ok(Self { timestamp_text, timestamp, tags })
    }

    /// Whether it can be that of one text only.
    pub fn has_one_tag(&self) -> bool {
        self.tags.len() == 1
    }

    /// Seconds since the epoch at which Stripe says it signed.
    pub fn timestamp(&self) -> i64 {
        self.timestamp
    }

    /// Compares every tag with the MAC of `payload` under every key of `keys`, in constant time, without an early
    /// return, and answers the place of the key that matched (the first, should several).
    pub fn matching_key(&self, keys: &[SigningKey], payload: &[u8]) -> Option<usize> {
        let mut found = None;
        for (place, key) in keys.iter().enumerate().rev() {
            let expected = key.tag(self.timestamp_text, payload);
            let mut hit = Choice::from(0);
            for tag in &self.tags {
                hit |= tag.ct_eq(&expected);
            }
            if bool::from(hit) {
                found = Some(place);
            }
        }
        found
    }

    /// Where the timestamp lies at `now` (seconds since the epoch), `tolerance` allowed either way.
    pub fn age(&self, now: i64, tolerance: Duration) -> Age {
        let tolerance = i64::try_from(tolerance.as_secs()).unwrap_or(i64::MAX);
        let age = now.saturating_sub(self.timestamp);
        if age > tolerance {
            Age::Expired
        } else if age < tolerance.saturating_neg() {
            Age::Future
        } else {
            Age::Fresh
        }
    }
}

/// A secret made ready for MACs: the state after the key block, cloned for each message.
///
/// Preparing it costs two SHA-256 blocks, a third of what a short message costs in all.
#[derive(Clone)]
pub struct SigningKey {
    mac: Hmac<Sha256>,
    id: KeyId,
    uses: Arc<ArcSwap<Uses>>,
}

/// Tells keys apart, within this process only: it is made of the secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; 32]);

impl SigningKey {
    /// Prepares `secret`, the whole of whose text is the key.
    #[expect(clippy::expect_used, clippy::missing_panics_doc, reason = "HMAC takes a key of any length")]
    pub fn new(secret: &SigningSecret) -> Self {
        let secret = secret.expose().as_bytes();
        let mac = Hmac::new_from_slice(secret).expect("a key of any length");
        Self { mac, id: KeyId(Sha256::digest(secret).into()), uses: Arc::default() }
    }

    /// Which key it is.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// How often it matched, and when last; shared by all who hold the key.
    pub fn uses(&self) -> Arc<Uses> {
        self.uses.load_full()
    }

    /// One more use, at `now` (seconds since the epoch).
    pub fn note_use(&self, now: i64) {
        self.uses.load().note(now);
    }

    /// Counts together with `before`, the same key of a configuration that this one's replaces.
    pub fn go_on_from(&self, before: &Self) {
        if self.id == before.id {
            self.uses.store(before.uses());
        }
    }

    /// HMAC-SHA256 of `timestamp + "." + payload`.
    pub fn tag(&self, timestamp: &str, payload: &[u8]) -> Tag {
        let mut mac = self.mac.clone();
        mac.update(timestamp.as_bytes());
        mac.update(b".");
        mac.update(payload);
        mac.finalize().into_bytes().into()
    }

    /// The header value that Stripe would send for `payload`: `t=…,v1=…`.
    pub fn header(&self, timestamp: i64, payload: &[u8]) -> String {
        use std::fmt::Write as _;
        let mut header = format!("t={timestamp},v1=");
        for byte in self.tag(&timestamp.to_string(), payload) {
            let _ = write!(header, "{byte:02x}");
        }
        header
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyId(redacted)")
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(redacted)")
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLong => "it is longer than 4096 bytes",
            Self::NotText => "it is not ASCII text",
            Self::NoTimestamp => "it has no t=",
            Self::SecondTimestamp => "it has more than one t=",
            Self::OddTimestamp => "its t= is not a plain number of seconds",
            Self::NoTag => "it has no v1= of 64 lower-case hex digits",
        })
    }
}

impl std::error::Error for Malformed {}

fn trimmed(mut item: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = item {
        item = rest;
    }
    item
}

/// The timestamp as it is written, which is what is signed, and as a number.
fn unix_seconds(text: &[u8]) -> Option<(&str, i64)> {
    let plain = (1..=12).contains(&text.len()) && text.iter().all(u8::is_ascii_digit) && text.first() != Some(&b'0');
    let text = std::str::from_utf8(text).ok().filter(|_| plain)?;
    Some((text, text.parse().ok()?))
}

/// 64 lower-case hex digits as the 32 bytes they stand for.
pub(crate) fn lower_hex(text: &[u8]) -> Option<Tag> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    if text.len() != 64 {
        return None;
    }
    let mut tag = [0; 32];
    for (byte, pair) in tag.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(tag)
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;

    const TAG: &str = "c02ac67b7be89f0a4f875d1d19fda573d0ee7ab446918124355eca18c2548adb";

    fn malformed(value: &str) -> Option<Malformed> {
        Signature::parse(value.as_bytes()).err()
    }

    #[test]
    fn only_one_spelling_of_a_header_is_taken() {
        assert_eq!(malformed(&format!("t=1,v1={TAG}")), None);
        assert_eq!(malformed(&format!(" t=1 ,\tv0=x, v1={TAG},,foo")), None);
        for (value, error) in [
            (format!("v1={TAG}"), Malformed::NoTimestamp),
            (format!("t=1,t=1,v1={TAG}"), Malformed::SecondTimestamp),
            (format!("t=01,v1={TAG}"), Malformed::OddTimestamp),
            (format!("t=,v1={TAG}"), Malformed::OddTimestamp),
            (format!("t= 1,v1={TAG}"), Malformed::OddTimestamp),
            (format!("t=1234567890123,v1={TAG}"), Malformed::OddTimestamp),
            (format!("t=1,v1={}", TAG.to_uppercase()), Malformed::NoTag),
            (format!("t=1,v1={TAG}0"), Malformed::NoTag),
            (format!("t=1,v0={TAG}"), Malformed::NoTag),
            (format!("t=1,v1={TAG},{}", "x".repeat(4096)), Malformed::TooLong),
        ] {
            assert_eq!(malformed(&value), Some(error), "{value}");
        }
    }

    #[test]
    fn the_window_has_both_its_ends() {
        let header = format!("t=1000,v1={TAG}");
        let signature = Signature::parse(header.as_bytes()).unwrap();
        let tolerance = Duration::from_secs(300);
        assert_eq!(signature.age(1300, tolerance), Age::Fresh);
        assert_eq!(signature.age(1301, tolerance), Age::Expired);
        assert_eq!(signature.age(700, tolerance), Age::Fresh);
        assert_eq!(signature.age(699, tolerance), Age::Future);
    }

    #[test]
    fn a_tag_matches_under_its_own_key_only() {
        let key = |text: &str| SigningKey::new(&SigningSecret::parse(Zeroizing::new(text.to_owned())).unwrap());
        let keys = [key("absec_ld3nXUdy2fp2tdA7m6GGwB1ohjZnoq3Q"), key("absec_other")];
        let payload = br#"{"user_id":"usr_t6uiXp46ClLOux","account_id":"acct_1ceNvJrGWgpIsbte"}"#;
        let header = format!("t=1786007521,v1={TAG}");
        let signature = Signature::parse(header.as_bytes()).unwrap();
        assert_eq!(signature.matching_key(&keys, payload), Some(0));
        assert_eq!(signature.matching_key(&keys[1..], payload), None);
        assert_eq!(signature.matching_key(&keys, &payload[1..]), None);
        assert_eq!(keys[0].header(1_786_007_521, payload), header);
    }
}
