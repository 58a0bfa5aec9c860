//! The one canonical path of a request: what is matched, logged and forwarded.
//!
//! A path that two readers could understand differently is refused, never repaired: what one server takes for
//! `/reports/%2e%2e/admin` another takes for `/admin`.

use std::{borrow::Cow, fmt};

/// A path that has one reading only, as it came.
///
/// It begins with `/`, has no empty segment but perhaps the last, no dot segment, and each percent escape in it is a
/// character that must or may be escaped and is neither a separator nor a dot. Two spellings remain, `%40` for `@` and
/// `%c3` for `%C3`: routes are matched on [`CanonicalPath::decoded`], which is the same for both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalPath<'p> {
    text: &'p str,
    decoded: Cow<'p, str>,
}

/// Why a path has more than one reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambiguous {
    NotAbsolute,
    EmptySegment,
    DotSegment,
    Separator,
    Escape,
    NeedlessEscape,
    Control,
    Character,
    Utf8,
    LookAlike,
    Parameter,
}

impl<'p> CanonicalPath<'p> {
    /// Checks the path of a request target, without its query.
    ///
    /// # Errors
    /// [`Ambiguous`] names the first thing that has more than one reading.
    pub fn parse(path: &'p str) -> Result<Self, Ambiguous> {
        if !path.starts_with('/') {
            return Err(Ambiguous::NotAbsolute);
        }
        let decoded = decode(path)?;
        let mut segments = decoded.split('/').skip(1).peekable();
        while let Some(segment) = segments.next() {
            if segment.is_empty() && segments.peek().is_some() {
                return Err(Ambiguous::EmptySegment);
            }
            // Servers that strip parameters read `/;x/a` as `//a` or as `/a`.
            let name = segment.split(';').next().unwrap_or_default();
            if name.is_empty() && !segment.is_empty() {
                return Err(Ambiguous::EmptySegment);
            }
            if name == "." || name == ".." {
                return Err(Ambiguous::DotSegment);
            }
        }
        if !decoded.is_ascii() && decoded.chars().any(reads_as_separator_or_dot) {
            return Err(Ambiguous::LookAlike);
        }
        Ok(Self { text: path, decoded })
    }

    /// The path as it came, which is what goes on.
    pub fn as_str(&self) -> &'p str {
        self.text
    }

    /// The path with its escapes read, which is what routes are matched on. Escaped separators were refused, so it
    /// has the same segments as [`CanonicalPath::as_str`].
    pub fn decoded(&self) -> &str {
        &self.decoded
    }

    /// What stands behind the first `slashes` slashes of the path as it came; empty if it has fewer.
    pub fn behind_slashes(&self, slashes: usize) -> &'p str {
        let Some(last) = slashes.checked_sub(1) else { return self.text };
        self.text.match_indices('/').nth(last).and_then(|(at, _)| self.text.get(at + 1..)).unwrap_or_default()
    }
}

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAbsolute => "it does not begin with a slash",
            Self::EmptySegment => "it has an empty segment (//)",
            Self::DotSegment => "it has a dot segment (. or ..)",
            Self::Separator => "it has an escaped slash or a backslash",
            Self::Escape => "it has an incomplete percent escape, or an escaped percent sign",
            Self::NeedlessEscape => "it escapes a letter, digit, dot, hyphen, underscore or tilde",
            Self::Control => "it has a control character",
            Self::Character => "it has a character that must be percent-encoded",
            Self::Utf8 => "its percent escapes are not UTF-8",
            Self::Parameter => "servers that strip path parameters (;…) read it as a path of another route",
            Self::LookAlike => "it has a character that some servers read as a dot, slash or percent sign",
        })
    }
}

impl std::error::Error for Ambiguous {}

fn decode(path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    if path.bytes().all(plain) {
        return Ok(Cow::Borrowed(path));
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
                let (high, low) = (hex(bytes.next()), hex(bytes.next()));
                let value = high.zip(low).and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
                decoded.push(escaped(value.ok_or(Ambiguous::Escape)?)?);
            }
            b'\\' => return Err(Ambiguous::Separator),
            0..0x20 | 0x7f => return Err(Ambiguous::Control),
            _ if plain(byte) => decoded.push(byte),
            _ => return Err(Ambiguous::Character),
        }
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| Ambiguous::Utf8)
}

/// What an escape may stand for.
fn escaped(value: u8) -> Result<u8, Ambiguous> {
    match value {
        b'/' | b'\\' => Err(Ambiguous::Separator),
        b'%' => Err(Ambiguous::Escape),
        0..0x20 | 0x7f => Err(Ambiguous::Control),
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => Err(Ambiguous::NeedlessEscape),
        _ => Ok(value),
    }
}

/// Characters that stand for themselves: RFC 3986's `pchar` and `/`, and those that browsers leave as they are.
fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@[]|^".contains(&byte)
}

/// Characters whose compatibility form (Unicode NFKC) has a dot, a slash, a backslash or a percent sign in it.
fn reads_as_separator_or_dot(c: char) -> bool {
    matches!(
        c,
        '\u{2024}'
            ..='\u{2026}'
                | '\u{fe19}'
                | '\u{fe30}'
                | '\u{fe52}'
                | '\u{ff0e}'
                | '\u{3002}'
                | '\u{ff61}'
                | '\u{2044}'
                | '\u{2215}'
                | '\u{ff0f}'
                | '\u{ff3c}'
                | '\u{fe68}'
                | '\u{29f8}'
                | '\u{2100}'
                | '\u{2101}'
                | '\u{2105}'
                | '\u{2106}'
                | '\u{ff05}'
                | '\u{fe6a}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_one_reading_pass_as_they_came() {
        for path in
            ["/", "/a", "/a/", "/a.b/..c/...", "/a;x=1/b", "/caf%C3%A9", "/joe%40x", "/a%20b", "/[1]|^", "/%E2%82%AC"]
        {
            assert_eq!(CanonicalPath::parse(path).unwrap().as_str(), path);
        }
    }

    #[test]
    fn paths_with_two_readings_are_refused() {
        for (path, why) in [
            ("", Ambiguous::NotAbsolute),
            ("*", Ambiguous::NotAbsolute),
            ("a/b", Ambiguous::NotAbsolute),
            ("//a", Ambiguous::EmptySegment),
            ("/a//b", Ambiguous::EmptySegment),
            ("/a//", Ambiguous::EmptySegment),
            ("/;x/a", Ambiguous::EmptySegment),
            ("/a/;", Ambiguous::EmptySegment),
            ("/a/%3bx/b", Ambiguous::EmptySegment),
            ("/.", Ambiguous::DotSegment),
            ("/a/..", Ambiguous::DotSegment),
            ("/a/../b", Ambiguous::DotSegment),
            ("/a/..;x/b", Ambiguous::DotSegment),
            ("/a/.;/b", Ambiguous::DotSegment),
            ("/a/..%3bx/b", Ambiguous::DotSegment),
            ("/a/%2e%2e/b", Ambiguous::NeedlessEscape),
            ("/a/.%2E/b", Ambiguous::NeedlessEscape),
            ("/%61dmin", Ambiguous::NeedlessEscape),
            ("/a%2fb", Ambiguous::Separator),
            ("/a%5Cb", Ambiguous::Separator),
            ("/a\\b", Ambiguous::Separator),
            ("/a%00", Ambiguous::Control),
            ("/a%0d%0ab", Ambiguous::Control),
            ("/a%7f", Ambiguous::Control),
            ("/a%", Ambiguous::Escape),
            ("/a%2", Ambiguous::Escape),
            ("/a%zz", Ambiguous::Escape),
            ("/a%252e", Ambiguous::Escape),
            ("/a%+1", Ambiguous::Escape),
            ("/a#b", Ambiguous::Character),
            ("/a b", Ambiguous::Character),
            ("/é", Ambiguous::Character),
            ("/a%c3", Ambiguous::Utf8),
            ("/a%c0%ae", Ambiguous::Utf8),
            ("/a%ed%a0%80", Ambiguous::Utf8),
            ("/%ef%bc%8e%ef%bc%8e/b", Ambiguous::LookAlike),
            ("/a%e2%88%95b", Ambiguous::LookAlike),
        ] {
            assert_eq!(CanonicalPath::parse(path).err(), Some(why), "{path}");
        }
    }

    #[test]
    fn spellings_of_one_path_decode_alike() {
        let decoded = |path| CanonicalPath::parse(path).unwrap().decoded().to_owned();
        assert_eq!(decoded("/joe%40x"), decoded("/joe@x"));
        assert_eq!(decoded("/%c3%a9"), decoded("/%C3%A9"));
        assert_ne!(decoded("/a%3fb"), decoded("/a"));
    }

    #[test]
    fn the_rest_is_cut_at_slashes_of_the_text_that_came() {
        let path = CanonicalPath::parse("/a%40b/c/d").unwrap();
        assert_eq!(path.behind_slashes(2), "c/d");
        assert_eq!(path.behind_slashes(1), "a%40b/c/d");
        assert_eq!(path.behind_slashes(9), "");
    }
}
