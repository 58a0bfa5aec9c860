//! What a certificate says of itself, read from its DER as far as the gateway asks.

use rustls_pki_types::CertificateDer;
use time::{Date, Month, Time};

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const ISSUER_UNIQUE_ID: u8 = 0x81;
const SUBJECT_UNIQUE_ID: u8 = 0x82;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const KEY_IDENTIFIER: u8 = 0x80;

/// 2.5.29.17 and 2.5.29.35.
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 0x23];

/// For whom a certificate is, from when until when, and how its authority calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// DNS names in lower case, in the order of the certificate; a wildcard as it is written.
    pub names: Vec<String>,
    /// Seconds since the epoch.
    pub not_before: i64,
    /// Seconds since the epoch; the last at which it is valid.
    pub not_after: i64,
    /// The bytes of the serial number.
    pub serial: Vec<u8>,
    /// The identifier of the authority's key.
    pub authority: Option<Vec<u8>>,
}

impl Leaf {
    /// What `certificate` says; `None` for what is no certificate. Who signed it is not looked at.
    ///
    /// Source: RFC 5280, section 4.1: `Certificate` and `TBSCertificate`.
    pub fn read(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (certificate, _) = element(certificate, SEQUENCE)?;
        let (fields, _) = element(certificate, SEQUENCE)?;
        let fields = skipped(fields, VERSION);
        let (serial, fields) = element(fields, INTEGER)?;
        let (_algorithm, fields) = element(fields, SEQUENCE)?;
        let (_issuer, fields) = element(fields, SEQUENCE)?;
        let (validity, fields) = element(fields, SEQUENCE)?;
        let (_subject, fields) = element(fields, SEQUENCE)?;
        let (_key, fields) = element(fields, SEQUENCE)?;
        let fields = skipped(skipped(fields, ISSUER_UNIQUE_ID), SUBJECT_UNIQUE_ID);
        let (not_before, rest) = instant(validity)?;
        let (not_after, _) = instant(rest)?;
        let mut leaf = Self { names: Vec::new(), not_before, not_after, serial: serial.to_vec(), authority: None };
        if let Some((extensions, _)) = element(fields, EXTENSIONS) {
            let (mut extensions, _) = element(extensions, SEQUENCE)?;
            while !extensions.is_empty() {
                let (extension, rest) = element(extensions, SEQUENCE)?;
                leaf.take(extension)?;
                extensions = rest;
            }
        }
        Some(leaf)
    }

    fn take(&mut self, extension: &[u8]) -> Option<()> {
        let (identifier, rest) = element(extension, OBJECT_IDENTIFIER)?;
        let (value, _) = element(skipped(rest, BOOLEAN), OCTET_STRING)?;
        if identifier == SUBJECT_ALTERNATIVE_NAME {
            let (mut names, _) = element(value, SEQUENCE)?;
            while let [tag, ..] = names {
                let (name, rest) = element(names, *tag)?;
                if *tag == DNS_NAME
                    && let Ok(name) = std::str::from_utf8(name)
                {
                    self.names.push(name.to_ascii_lowercase());
                }
                names = rest;
            }
        } else if identifier == AUTHORITY_KEY_IDENTIFIER {
            let (value, _) = element(value, SEQUENCE)?;
            self.authority = element(value, KEY_IDENTIFIER).map(|(identifier, _)| identifier.to_vec());
        }
        Some(())
    }
}

/// What follows the element of that tag, if `input` begins with one.
fn skipped(input: &[u8], tag: u8) -> &[u8] {
    element(input, tag).map_or(input, |(_, rest)| rest)
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
    fn names_validity_and_identifiers_are_read() {
        let authority = {
            let mut params = rcgen::CertificateParams::new([]).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![7, 8, 9]);
            rcgen::Issuer::new(params, rcgen::KeyPair::generate().unwrap())
        };
        for (year, seconds) in [(2031, 1_924_992_000), (2070, 3_155_760_000)] {
            let names = ["Localhost", "127.0.0.1", "*.example.com"].map(str::to_owned);
            let mut params = rcgen::CertificateParams::new(names).unwrap();
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            params.serial_number = Some(rcgen::SerialNumber::from_slice(&[5, 6]));
            params.use_authority_key_identifier_extension = true;
            let certificate = params.signed_by(&rcgen::KeyPair::generate().unwrap(), &authority).unwrap();
            let expected = Leaf {
                names: vec!["localhost".into(), "*.example.com".into()],
                not_before: 1_577_836_800,
                not_after: seconds,
                serial: vec![5, 6],
                authority: Some(vec![7, 8, 9]),
            };
            assert_eq!(Leaf::read(certificate.der()), Some(expected));
        }
    }

    #[test]
    fn a_certificate_without_names_has_none() {
        let params = rcgen::CertificateParams::new([]).unwrap();
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        assert_eq!(Leaf::read(certificate.der()).unwrap().names, [""; 0]);
    }

    #[test]
    fn what_is_no_certificate_says_nothing() {
        for bytes in [&b""[..], b"\x30", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x30\x03\x30\x01\x02"] {
            assert_eq!(Leaf::read(&bytes.into()), None);
        }
        let params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        for length in 0..certificate.der().len() {
            // Read as far as it goes, never beyond.
            let _ = Leaf::read(&certificate.der()[..length].into());
        }
    }
}
