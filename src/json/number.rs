//! JSON numbers: their grammar, how JavaScript prints them, and whether the print keeps their value.

/// What the scan learns about a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    /// Offset behind its last byte.
    pub(super) end: usize,
    /// JavaScript prints it otherwise.
    pub(super) altered: bool,
    /// JavaScript prints it with another value.
    pub(super) lossy: bool,
}

/// Reads the number that starts at `start`; fails with the offset where a digit was expected, or none.
pub(super) fn scan(text: &str, start: usize) -> Result<Number, usize> {
    let bytes = text.as_bytes();
    let whole = start + usize::from(bytes.get(start) == Some(&b'-'));
    let mut end = skip_digits(bytes, whole)?;
    if end > whole + 1 && bytes.get(whole) == Some(&b'0') {
        return Err(whole + 1);
    }
    let is_integer = bytes.get(end) != Some(&b'.');
    if !is_integer {
        end = skip_digits(bytes, end + 1)?;
    }
    // The point may count as a digit here: only the fast way is shorter for it.
    let is_short = end - whole <= EXACT_DIGITS;
    if is_short && !matches!(bytes.get(end), Some(b'e' | b'E')) {
        let altered = if is_integer { &text[start..end] == "-0" } else { is_altered_fraction(&text[whole..end]) };
        return Ok(Number { end, altered, lossy: false });
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let is_signed = matches!(bytes.get(end + 1), Some(b'+' | b'-'));
        end = skip_digits(bytes, end + 1 + usize::from(is_signed))?;
    }
    let literal = &text[start..end];
    let value = value_of(literal);
    if !value.is_finite() {
        return Ok(Number { end, altered: true, lossy: true });
    }
    let mut buffer = ryu_js::Buffer::new();
    let printed = buffer.format_finite(value);
    let altered = printed != literal;
    Ok(Number { end, altered, lossy: altered && Decimal::of(printed) != Decimal::of(literal) })
}

/// Appends what JavaScript prints for `literal`.
pub(super) fn print(literal: &str, out: &mut Vec<u8>) {
    let value = value_of(literal);
    if value.is_finite() {
        out.extend_from_slice(ryu_js::Buffer::new().format_finite(value).as_bytes());
    } else {
        out.extend_from_slice(b"null");
    }
}

/// Offset behind the digits at `at`, of which there must be one.
fn skip_digits(bytes: &[u8], at: usize) -> Result<usize, usize> {
    let mut end = at;
    while bytes.get(end).is_some_and(u8::is_ascii_digit) {
        end += 1;
    }
    if end == at { Err(at) } else { Ok(end) }
}

/// Tells whether JavaScript prints a short literal with a point, but without sign and exponent, otherwise.
///
/// It drops zeros at the end, and uses an exponent below 0.000001.
fn is_altered_fraction(literal: &str) -> bool {
    literal.ends_with('0') || literal.starts_with("0.000000")
}

/// The number nearest to `literal`; infinite if there is none.
fn value_of(literal: &str) -> f64 {
    if literal.len() <= MAX_PLAIN_BYTES {
        return literal.parse().unwrap_or(f64::INFINITY);
    }
    // The standard library does not count exponents that far, which zeros in a long literal can make up for.
    let decimal = Decimal::of(literal);
    let magnitude = match decimal.point {
        _ if decimal.digits().next().is_none() => 0.0,
        ..-400 => 0.0,
        400.. => f64::INFINITY,
        point => {
            let mut digits: String = decimal.digits().take(MAX_SIGNIFICANT_DIGITS).map(|&it| char::from(it)).collect();
            // Whatever is cut off decides only whether the value lies above a midpoint or on it.
            if decimal.digits().nth(MAX_SIGNIFICANT_DIGITS).is_some() {
                digits.push('1');
            }
            format!("0.{digits}e{point}").parse().unwrap_or(f64::INFINITY)
        }
    };
    if literal.starts_with('-') { -magnitude } else { magnitude }
}

/// The exact value of a literal, without its sign: 0.DIGITS times ten to the power of `point`.
struct Decimal<'a> {
    /// The digits before the point and those behind it, without zeros at either end.
    whole: &'a [u8],
    fraction: &'a [u8],
    /// Saturates: no text is long enough to bring a saturated exponent back into the range of numbers.
    point: i64,
}

impl<'a> Decimal<'a> {
    fn of(literal: &'a str) -> Self {
        let unsigned = literal.trim_start_matches('-');
        let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let whole = whole.trim_start_matches('0');
        let fraction = fraction.trim_end_matches('0');
        if whole.is_empty() {
            let significant = fraction.trim_start_matches('0');
            let point = parse_exponent(exponent).saturating_sub_unsigned((fraction.len() - significant.len()) as u64);
            return Self { whole: &[], fraction: significant.as_bytes(), point };
        }
        let point = parse_exponent(exponent).saturating_add_unsigned(whole.len() as u64);
        let whole = if fraction.is_empty() { whole.trim_end_matches('0') } else { whole };
        Self { whole: whole.as_bytes(), fraction: fraction.as_bytes(), point }
    }

    fn digits(&self) -> impl Iterator<Item = &'a u8> + use<'a> {
        self.whole.iter().chain(self.fraction)
    }
}

impl PartialEq for Decimal<'_> {
    fn eq(&self, other: &Self) -> bool {
        let is_zero = self.digits().next().is_none();
        (is_zero || self.point == other.point) && self.digits().eq(other.digits())
    }
}

fn parse_exponent(exponent: &str) -> i64 {
    let digits = exponent.trim_start_matches(['+', '-']);
    let magnitude = digits
        .bytes()
        .fold(0_i64, |magnitude, digit| magnitude.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
    if exponent.starts_with('-') { -magnitude } else { magnitude }
}

/// Two decimals of so many digits are never the same binary number, so each is the shortest spelling of its own.
///
/// Source: ISO C, `DBL_DIG`.
const EXACT_DIGITS: usize = 15;

/// Literals up to this length go to the standard library as they are.
const MAX_PLAIN_BYTES: usize = 1024;

/// More digits than the midpoint between two neighbouring binary numbers can have, which is 767.
const MAX_SIGNIFICANT_DIGITS: usize = 800;

#[cfg(test)]
mod tests {
    use super::*;

    /// The number that fills all of `literal`.
    fn number(literal: &str) -> Number {
        let number = scan(literal, 0).unwrap();
        assert_eq!(number.end, literal.len(), "{literal}");
        number
    }

    fn printed(literal: &str) -> String {
        let mut out = Vec::new();
        print(literal, &mut out);
        assert_eq!(number(literal).altered, out != literal.as_bytes(), "{literal}");
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn number_is_printed_as_javascript_prints_it() {
        for (literal, expected) in [
            ("0", "0"),
            ("-0", "0"),
            ("-1", "-1"),
            ("1.0", "1"),
            ("10.50", "10.5"),
            ("-0.0", "0"),
            ("-0e3", "0"),
            ("1E5", "100000"),
            ("1e20", "100000000000000000000"),
            ("1e21", "1e+21"),
            ("123456789012345678901234", "1.2345678901234569e+23"),
            ("1e-7", "1e-7"),
            ("0.000001", "0.000001"),
            ("0.0000010", "0.000001"),
            ("0.0000001", "1e-7"),
            ("-0.0000001", "-1e-7"),
            ("0.00000012", "1.2e-7"),
            ("123456789012345", "123456789012345"),
            ("999999999999999", "999999999999999"),
            ("1234567890.12345", "1234567890.12345"),
            ("9007199254740993", "9007199254740992"),
            ("5e-324", "5e-324"),
            ("2e-324", "0"),
            ("3e-324", "5e-324"),
            ("1.7976931348623157e308", "1.7976931348623157e+308"),
            ("1.7976931348623159e308", "null"),
            ("-1e400", "null"),
            ("1e-400", "0"),
            ("1e23", "1e+23"),
            // Both ...12 and ...13 are read as ...125, and the even one is printed.
            ("88881888880116.119", "88881888880116.12"),
            ("88881888880116.13", "88881888880116.12"),
        ] {
            assert_eq!(printed(literal), expected, "{literal}");
        }
    }

    #[test]
    fn print_that_keeps_the_value_is_not_lossy() {
        for literal in [
            "0.1",
            "-0",
            "0.0",
            "0e999",
            "-0.000e-999999999999999999999",
            "1.0",
            "1.50",
            "1E+2",
            "1e21",
            "1e23",
            "100000000000000000000000",
            "0.0000001",
            "9007199254740992",
            "18014398509481984",
            "0.30000000000000004",
            "5e-324",
            "1.7976931348623157e308",
            "12300e-2",
            "0.000123e3",
        ] {
            assert!(!number(literal).lossy, "{literal}");
        }
    }

    #[test]
    fn print_with_another_value_is_lossy() {
        for literal in [
            "9007199254740993",
            "-9007199254740993",
            "0.10000000000000001",
            "1.0000000000000000000000000001",
            "1e400",
            "-1e400",
            "1e-400",
            "4e-324",
            "18014398509481985",
            "1.7976931348623157081e308",
            "1e99999999999999999999",
            "1e-99999999999999999999",
        ] {
            assert!(number(literal).lossy, "{literal}");
        }
    }

    #[test]
    fn decimals_are_equal_if_digits_and_point_are() {
        for (one, other) in [("10", "1e1"), ("-0.50e2", "50"), ("0", "0.00e7"), ("0.012", "12e-3"), ("1.0", "1")] {
            assert!(Decimal::of(one) == Decimal::of(other), "{one} {other}");
        }
        for (one, other) in [("10", "1"), ("0.5", "0.05"), ("0", "1e-9"), ("1.2", "1.20001"), ("1e1", "1e-1")] {
            assert!(Decimal::of(one) != Decimal::of(other), "{one} {other}");
        }
    }

    #[test]
    fn long_literal_has_the_value_that_its_digits_and_exponent_give() {
        let zeros = "0".repeat(700_000);
        for (literal, expected, lossy) in [
            (format!("0.{zeros}1e700001"), "1", false),
            (format!("0.{zeros}1e700000"), "0.1", false),
            (format!("-25{zeros}e-700001"), "-2.5", false),
            (format!("1{zeros}"), "null", true),
            (format!("0.{zeros}1"), "0", true),
            (format!("0.{zeros}"), "0", false),
            (format!("-{}.{}e5", "0", zeros), "0", false),
            (format!("1.{zeros}"), "1", false),
            (format!("1.{zeros}1"), "1", true),
            (format!("1e{zeros}5"), "100000", false),
            (format!("1e1{zeros}"), "null", true),
            (format!("1e-1{zeros}"), "0", true),
            // The midpoint of 2^53 and its neighbour goes to the even one; the least bit more goes up.
            (format!("9007199254740993.{zeros}"), "9007199254740992", true),
            (format!("9007199254740993.{zeros}1"), "9007199254740994", true),
        ] {
            let head: String = literal.chars().take(8).collect();
            assert_eq!(printed(&literal), expected, "{head}");
            assert_eq!(number(&literal).lossy, lossy, "{head}");
        }
    }

    #[test]
    fn number_ends_where_the_grammar_ends_it() {
        for (text, end) in [("12]", 2), ("1.5,", 3), ("0 ", 1), ("1e5}", 3), ("-0x", 2), ("1-", 1), ("1.2.3", 3)] {
            assert_eq!(scan(text, 0).map(|number| number.end), Ok(end), "{text}");
        }
    }

    #[test]
    fn number_without_an_expected_digit_is_refused() {
        for (text, offset) in [
            ("-", 1),
            ("-a", 1),
            ("--1", 1),
            ("01", 1),
            ("-01", 2),
            ("00", 1),
            ("1.", 2),
            ("1.e5", 2),
            ("1e", 2),
            ("1E+", 3),
            ("1e-x", 3),
        ] {
            assert_eq!(scan(text, 0), Err(offset), "{text}");
        }
    }
}
