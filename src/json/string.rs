//! What stands between the quotes of a JSON string: where it ends, what it says, how JavaScript prints it.
//!
//! The functions that take `raw` expect text that the scan has checked.

use std::borrow::Cow;
use std::io::Write;

/// Offset, at or after `from`, of the first byte that does not stand for itself: quote, backslash, control character.
///
/// Looks at eight bytes at a time; a byte beyond ASCII always stands for itself.
pub(super) fn find_special(text: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(word) = text.get(at..).and_then(<[u8]>::first_chunk) {
        let special = special_bytes(u64::from_le_bytes(*word));
        if special != 0 {
            return Some(at + special.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let is_special = |&byte: &u8| byte == b'"' || byte == b'\\' || byte < b' ';
    text.get(at..)?.iter().position(is_special).map(|found| at + found)
}

/// Has the high bit of each special byte set, where only the lowest one that is set can be relied on.
///
/// A subtraction borrows from the byte above only out of a byte that is itself special.
/// Source: Bit Twiddling Hacks, "Determine if a word has a byte less than n".
fn special_bytes(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let quote = word ^ (EACH * u64::from(b'"'));
    let backslash = word ^ (EACH * u64::from(b'\\'));
    let below_space = word.wrapping_sub(EACH * u64::from(b' ')) & !word;
    let is_quote = quote.wrapping_sub(EACH) & !quote;
    let is_backslash = backslash.wrapping_sub(EACH) & !backslash;
    (below_space | is_quote | is_backslash) & (EACH * 0x80)
}

/// The string that `raw` spells; `None` if it has a lone surrogate.
pub(super) fn unescape(raw: &str) -> Option<String> {
    let mut text = String::with_capacity(raw.len());
    for piece in pieces(raw) {
        match piece {
            Piece::Plain(plain) => text.push_str(plain),
            Piece::Escaped(character) => text.push(character),
            Piece::Lone(_) => return None,
        }
    }
    Some(text)
}

/// What JavaScript prints for `raw` between the quotes; `altered` tells that it may differ from `raw`.
///
/// Equal strings, and only they, have equal prints.
pub(super) fn printed(raw: &str, altered: bool) -> Cow<'_, str> {
    if !altered {
        return Cow::Borrowed(raw);
    }
    let mut out = Vec::with_capacity(raw.len());
    print(raw, &mut out);
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// Appends what JavaScript prints for `raw` between the quotes.
pub(super) fn print(raw: &str, out: &mut Vec<u8>) {
    for piece in pieces(raw) {
        match piece {
            Piece::Plain(plain) => out.extend_from_slice(plain.as_bytes()),
            Piece::Escaped(character) => print_character(character, out),
            Piece::Lone(surrogate) => print_unit(surrogate, out),
        }
    }
}

/// Appends `text`, which has no escapes yet, as a JSON string.
pub(crate) fn print_quoted(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    text.chars().for_each(|character| print_character(character, out));
    out.push(b'"');
}

/// The number if `key` is one that JavaScript takes for the index of an array, as it prints indices: `7`, not `07`.
///
/// Source: ECMA-262, "array index": from 0 to 2^32 - 2.
pub(super) fn array_index(key: &str) -> Option<u32> {
    let is_canonical = match key.as_bytes() {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.len() < 10 && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !is_canonical {
        return None;
    }
    key.parse().ok().filter(|&index| index < u32::MAX)
}

enum Piece<'a> {
    /// Text that stands for itself and is printed as it is.
    Plain(&'a str),
    /// The character that an escape, or a pair of them, stands for.
    Escaped(char),
    /// Half of a surrogate pair without the other half.
    Lone(u16),
}

fn pieces(raw: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = raw;
    std::iter::from_fn(move || {
        // Of the special bytes only the backslash comes between the quotes.
        let plain = find_special(rest.as_bytes(), 0).unwrap_or(rest.len());
        if plain > 0 {
            let (piece, after) = rest.split_at(plain);
            rest = after;
            return Some(Piece::Plain(piece));
        }
        let (piece, length) = first_escape(rest)?;
        rest = &rest[length..];
        Some(piece)
    })
}

/// What the escape at the start of `rest` stands for, and its length; `None` at the end of the text.
fn first_escape(rest: &str) -> Option<(Piece<'_>, usize)> {
    let character = match rest.as_bytes().get(1)? {
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return first_unit_escape(rest),
        itself => char::from(*itself),
    };
    Some((Piece::Escaped(character), 2))
}

fn first_unit_escape(rest: &str) -> Option<(Piece<'_>, usize)> {
    let unit = first_unit(rest)?;
    let next = rest.get(6..).and_then(first_unit);
    // Decoding takes the second unit only where it completes a pair with the first.
    Some(match char::decode_utf16([unit].into_iter().chain(next)).next()? {
        Ok(character) => (Piece::Escaped(character), if character > '\u{ffff}' { 12 } else { 6 }),
        Err(lone) => (Piece::Lone(lone.unpaired_surrogate()), 6),
    })
}

fn first_unit(rest: &str) -> Option<u16> {
    u16::from_str_radix(rest.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

/// Source: ECMA-262, `QuoteJSONString`.
fn print_character(character: char, out: &mut Vec<u8>) {
    match character {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        '\u{8}' => out.extend_from_slice(b"\\b"),
        '\u{c}' => out.extend_from_slice(b"\\f"),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        '\t' => out.extend_from_slice(b"\\t"),
        control @ '\0'..' ' => print_unit(control as u16, out),
        other => out.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

#[expect(clippy::expect_used, reason = "a vector takes whatever is written to it")]
fn print_unit(unit: u16, out: &mut Vec<u8>) {
    write!(out, "\\u{unit:04x}").expect("a vector takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_byte_is_found_at_every_place_in_and_behind_a_word() {
        for special in [b'"', b'\\', 0, b'\n', 0x1f] {
            for length in 1..40 {
                for at in 0..length {
                    for filler in [b'a', b' ', b'!', b'#', b'[', b']', 0x7f, 0x80, 0xa2, 0xdc, 0xff] {
                        let mut text = vec![filler; length];
                        assert_eq!(find_special(&text, 0), None);
                        text[at] = special;
                        assert_eq!(find_special(&text, 0), Some(at));
                        assert_eq!(find_special(&text, at), Some(at));
                        assert_eq!(find_special(&text, at + 1), None);
                    }
                }
            }
        }
    }

    #[test]
    fn first_of_two_special_bytes_is_found() {
        assert_eq!(find_special(b"ab\"#\"\\\x1f!", 0), Some(2));
        assert_eq!(find_special(b"ab\"#\"\\\x1f!", 3), Some(4));
    }

    #[test]
    fn array_index_is_a_canonical_integer_below_two_to_the_32_minus_1() {
        for (key, index) in [("0", 0), ("7", 7), ("10", 10), ("4294967294", u32::MAX - 1)] {
            assert_eq!(array_index(key), Some(index));
        }
        for key in
            ["", "00", "07", "-0", "-1", "+1", "1.0", "1e1", " 1", "1 ", "4294967295", "4294967296", "42949672940"]
        {
            assert_eq!(array_index(key), None, "{key}");
        }
    }
}
