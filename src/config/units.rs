//! Durations and sizes as they are written: a number and a unit.

use std::{ops::RangeInclusive, time::Duration};

/// Why a text is no duration or size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Error {
    NoNumber,
    /// A number alone, where it takes a unit.
    NoUnit,
    Unit,
    TooLarge,
}

const DURATIONS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: [(&str, u64); 5] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Reads `"500ms"`, `"30s"`, `"5m"`, `"1h"`, `"1d"`.
pub(super) fn duration(text: &str) -> Result<Duration, Error> {
    let (number, unit) = split(text)?;
    if unit.is_empty() {
        return Err(Error::NoUnit);
    }
    scaled(number, unit, &DURATIONS).map(Duration::from_millis)
}

/// Reads `"512B"`, `"32KiB"`, `"1MiB"`, `"1GiB"`, `"1TiB"` or a number of bytes.
pub(super) fn size(text: &str) -> Result<u64, Error> {
    let (number, unit) = split(text)?;
    scaled(number, if unit.is_empty() { "B" } else { unit }, &SIZES)
}

/// A duration as it is written, in the largest unit that divides it.
pub(super) fn written_duration(duration: Duration) -> String {
    written(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), "0s", &DURATIONS)
}

/// A size as it is written, in the largest unit that divides it.
pub(super) fn written_size(bytes: u64) -> String {
    written(bytes, "0B", &SIZES)
}

/// Both ends of a range of numbers, in words.
pub(super) fn between<T>(range: &RangeInclusive<T>, write: impl Fn(&T) -> String) -> String {
    format!("{} to {}", write(range.start()), write(range.end()))
}

fn split(text: &str) -> Result<(u64, &str), Error> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.is_empty() {
        return Err(Error::NoNumber);
    }
    Ok((digits.parse().map_err(|_| Error::TooLarge)?, unit))
}

fn scaled(number: u64, unit: &str, units: &[(&str, u64)]) -> Result<u64, Error> {
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or(Error::Unit)?;
    number.checked_mul(*factor).ok_or(Error::TooLarge)
}

fn written(amount: u64, zero: &str, units: &[(&str, u64)]) -> String {
    let fits = |(_, factor): &&(&str, u64)| amount >= *factor && amount.is_multiple_of(*factor);
    match units.iter().rev().find(fits) {
        Some((unit, factor)) => format!("{}{unit}", amount / factor),
        None => zero.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, millis) in
            [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000), ("2d", 172_800_000), ("0s", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(written_duration(Duration::from_millis(millis)), text);
        }
        for (text, error) in [
            ("", Error::NoNumber),
            ("s", Error::NoNumber),
            ("-1s", Error::NoNumber),
            ("30", Error::NoUnit),
            ("30 s", Error::Unit),
            ("1h30m", Error::Unit),
            ("1.5s", Error::Unit),
            ("30S", Error::Unit),
            ("99999999999999999999s", Error::TooLarge),
            ("18446744073709551615d", Error::TooLarge),
        ] {
            assert_eq!(duration(text), Err(error), "{text}");
        }
    }

    #[test]
    fn sizes_are_powers_of_two_or_bytes() {
        for (text, bytes) in [("0", 0), ("17", 17), ("17B", 17), ("1KiB", 1024), ("16MiB", 16 << 20), ("1TiB", 1 << 40)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        assert_eq!(size("1MB"), Err(Error::Unit));
        assert_eq!(size("99999999TiB"), Err(Error::TooLarge));
        assert_eq!(written_size(32 * 1024), "32KiB");
        assert_eq!(written_size(1025), "1025B");
    }
}
