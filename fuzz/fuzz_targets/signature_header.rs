//! The `Stripe-Signature` header: what is accepted is exactly what a second reading of the grammar accepts.
#![no_main]

use std::{fmt::Write as _, time::Duration};

use countersign::{
    secret::SigningSecret,
    signature::{Age, HEADER_LIMIT_BYTES, Malformed, Signature, SigningKey},
};
use hmac::{Hmac, KeyInit, Mac};
use libfuzzer_sys::fuzz_target;
use sha2::Sha256;
use zeroize::Zeroizing;

const SECRET: &str = "absec_fuzz";
const PAYLOAD: &[u8] = br#"{"user_id":"usr_1","account_id":"acct_1"}"#;

fuzz_target!(|value: &[u8]| {
    let parsed = Signature::parse(value);
    let expected = read(value);
    match (&parsed, &expected) {
        (Ok(parsed), Some(expected)) => is_what_was_read(value, parsed, expected),
        (Err(error), None) => is_rightly_named(*error, value),
        _ => panic!("parsed as {parsed:?}, expected {expected:?}"),
    }
});

/// What a header says, by the second reading.
#[derive(Debug)]
struct Header {
    timestamp: String,
    tags: Vec<String>,
}

/// The grammar, read a second time: over bytes, without the parser's helpers.
fn read(value: &[u8]) -> Option<Header> {
    if value.len() > HEADER_LIMIT_BYTES || std::str::from_utf8(value).is_err() {
        return None;
    }
    let (mut timestamps, mut tags) = (Vec::new(), Vec::new());
    for mut item in value.split(|b| *b == b',') {
        while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = item {
            item = rest;
        }
        match item {
            [b't', b'=', rest @ ..] => timestamps.push(rest),
            [b'v', b'1', b'=', rest @ ..]
                if rest.len() == 64 && rest.iter().all(|b| b"0123456789abcdef".contains(b)) =>
            {
                tags.push(String::from_utf8(rest.to_vec()).ok()?);
            }
            _ => {}
        }
    }
    let [timestamp] = timestamps[..] else { return None };
    let plain = matches!(timestamp, [b'1'..=b'9', rest @ ..] if rest.len() < 12 && rest.iter().all(u8::is_ascii_digit));
    (plain && !tags.is_empty()).then(|| Header { timestamp: String::from_utf8_lossy(timestamp).into_owned(), tags })
}

fn is_what_was_read(value: &[u8], parsed: &Signature<'_>, expected: &Header) {
    assert_eq!(parsed.timestamp().to_string(), expected.timestamp);

    // Written anew in its shortest form it is the same signature, as far as `Debug` tells, which tells all of it.
    let mut shortest = format!("t={}", expected.timestamp);
    for tag in &expected.tags {
        let _ = write!(shortest, ",v1={tag}");
    }
    let again = Signature::parse(shortest.as_bytes()).expect("the shortest form is accepted");
    assert_eq!(format!("{again:?}"), format!("{parsed:?}"));

    // A second timestamp is refused even if it is the same one.
    let twice = format!("{shortest},t={}", expected.timestamp);
    if twice.len() <= HEADER_LIMIT_BYTES {
        assert_eq!(Signature::parse(twice.as_bytes()).err(), Some(Malformed::SecondTimestamp));
    }

    // Its tags are MACs of the payload under the key exactly if one of them is.
    let keys = [SigningKey::new(&SigningSecret::parse(Zeroizing::new(SECRET.to_owned())).expect("a secret"))];
    let tag = tag(&expected.timestamp);
    let place = expected.tags.contains(&tag).then_some(0);
    assert_eq!(parsed.matching_key(&keys, PAYLOAD), place);
    let mut signed = value.to_vec();
    let _ = std::io::Write::write_all(&mut signed, format!(",v1={tag}").as_bytes());
    if signed.len() <= HEADER_LIMIT_BYTES {
        let signed = Signature::parse(&signed).expect("one more tag changes nothing about the others");
        assert_eq!(signed.matching_key(&keys, PAYLOAD), Some(0));
        assert_eq!(signed.matching_key(&keys, &PAYLOAD[1..]), None);
    }

    let at = parsed.timestamp();
    let tolerance = Duration::from_secs(300);
    for (now, age) in [
        (at - 301, Age::Future),
        (at - 300, Age::Fresh),
        (at + 300, Age::Fresh),
        (at + 301, Age::Expired),
        (i64::MAX, Age::Expired),
    ] {
        assert_eq!(parsed.age(now, tolerance), age);
    }
}

fn is_rightly_named(error: Malformed, value: &[u8]) {
    match error {
        Malformed::TooLong => assert!(value.len() > HEADER_LIMIT_BYTES),
        Malformed::NotText => assert!(!value.is_ascii()),
        Malformed::NoTimestamp | Malformed::SecondTimestamp | Malformed::OddTimestamp | Malformed::NoTag => {
            assert!(value.len() <= HEADER_LIMIT_BYTES);
        }
    }
}

fn tag(timestamp: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("a key of any length");
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(PAYLOAD);
    mac.finalize().into_bytes().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
