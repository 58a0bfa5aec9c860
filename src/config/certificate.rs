//! When a certificate is valid, read from its DER as far as that takes.

use std::{
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use rustls_pki_types::CertificateDer;
use time::{Date, Month, OffsetDateTime, Time};

use super::{Scrutiny, section::Item};

/// How long before its end a certificate is warned of.
const SOON: Duration = Duration::from_secs(14 * 86_400);

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// From when until when a certificate is valid, in seconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Validity {
    not_before: i64,
    not_after: i64,
}

/// Warns if the first certificate of a chain is not valid now, or not for long.
/// An expired one is refused where it would take the place of another.
pub(super) fn warn_of_expiry(item: &Item<'_>, path: &Path, chain: &[CertificateDer<'static>]) {
    let Some(validity) = chain.first().and_then(|leaf| validity(leaf)) else { return };
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let now = item.context.now.duration_since(UNIX_EPOCH).map_or(0, seconds);
    let day =
        |at: i64| OffsetDateTime::from_unix_timestamp(at).map_or_else(|_| "?".to_owned(), |at| at.date().to_string());
    if now > validity.not_after {
        let text = format!("this certificate expired on {}: every client refuses it", day(validity.not_after));
        match item.context.scrutiny {
            Scrutiny::Reload(in_force) if !in_force.has(&item.path, path) => {
                item.error(&text, Some("name one that is valid; the one in force stays until then"));
            }
            Scrutiny::Reload(_) | Scrutiny::Files | Scrutiny::Names => item.warn(&text),
        }
    } else if now < validity.not_before {
        item.warn(&format!(
            "this certificate is not valid before {}: every client refuses it",
            day(validity.not_before)
        ));
    } else if validity.not_after - now < seconds(SOON) {
        item.warn(&format!("this certificate expires on {}: then every client refuses it", day(validity.not_after)));
    }
}

/// Source: RFC 5280, section 4.1: `Certificate` and `TBSCertificate`.
fn validity(certificate: &[u8]) -> Option<Validity> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (mut fields, _) = element(certificate, SEQUENCE)?;
    if let Some((_, rest)) = element(fields, VERSION) {
        fields = rest;
    }
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, fields) = element(fields, tag)?;
    }
    let (validity, _) = element(fields, SEQUENCE)?;
    let (not_before, rest) = instant(validity)?;
    let (not_after, _) = instant(rest)?;
    Some(Validity { not_before, not_after })
}

/// The contents of the element of that tag at the start of `input`, and what follows it.
fn element(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [first, length, rest @ ..] = input else { return None };
    if *first != tag {
        return None;
    }
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x0f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// A `Time`, in seconds since the epoch: two digits of a year from 50 are the last century's.
fn instant(input: &[u8]) -> Option<(i64, &[u8])> {
    let (digits, year_length, rest) = match (element(input, UTC_TIME), element(input, GENERALIZED_TIME)) {
        (Some((text, rest)), _) => (text, 2, rest),
        (None, Some((text, rest))) => (text, 4, rest),
        (None, None) => return None,
    };
    let digits = std::str::from_utf8(digits).ok()?.strip_suffix('Z')?;
    let (year, others) = digits.split_at_checked(year_length)?;
    let year: i32 = year.parse().ok()?;
    let year = match year_length {
        2 if year >= 50 => year + 1900,
        2 => year + 2000,
        _ => year,
    };
    let part = |place: usize| others.get(place * 2..place * 2 + 2)?.parse::<u8>().ok();
    let date = Date::from_calendar_date(year, Month::try_from(part(0)?).ok()?, part(1)?).ok()?;
    let time = Time::from_hms(part(2)?, part(3)?, part(4)?).ok()?;
    Some((date.with_time(time).assume_utc().unix_timestamp(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_validity_of_a_certificate_is_read() {
        for (year, seconds) in [(2031, 1_924_992_000), (2070, 3_155_760_000)] {
            let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            let validity = validity(certificate.der()).unwrap();
            assert_eq!(validity, Validity { not_before: 1_577_836_800, not_after: seconds });
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_validity() {
        for bytes in [&b""[..], b"\x30", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x30\x03\x30\x01\x02"] {
            assert_eq!(validity(bytes), None);
        }
    }
}
