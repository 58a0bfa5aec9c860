//! The head of a request: where it ends, whether it has one reading, and what body follows.

use crate::gateway::Fault;

/// The body that a head announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    None,
    Length(u64),
    Chunked,
}

/// The length of the head that `bytes` begin with, its empty line included; `None` while that has not come. The first
/// `searched` bytes were looked at before. A line that ends in a bare line feed is found here, for it may keep the
/// end from ever coming.
pub(super) fn end(bytes: &[u8], searched: usize, limit_bytes: usize) -> Result<Option<usize>, Fault> {
    let mut from = searched;
    while let Some(at) = bytes.get(from..).and_then(|rest| memchr::memchr(b'\n', rest)).map(|at| from + at) {
        let before = |back: usize| at.checked_sub(back).and_then(|at| bytes.get(at)).copied();
        if before(1) != Some(b'\r') {
            return Err(Fault::Malformed("has a line that ends without a carriage return"));
        }
        let length = at + 1;
        if length > limit_bytes {
            return Err(Fault::TooLarge);
        }
        if length == 2 {
            return Err(Fault::Malformed("begins with an empty line"));
        }
        if before(2) == Some(b'\r') {
            return Err(Fault::Malformed("has a line that ends with two carriage returns"));
        }
        if before(2) == Some(b'\n') {
            return Ok(Some(length));
        }
        from = length;
    }
    if bytes.len() > limit_bytes { Err(Fault::TooLarge) } else { Ok(None) }
}

/// Reads the head of `length` bytes at the beginning of `bytes`.
///
/// # Errors
/// The [`Fault`] for which it has no reading, or more than one.
pub(super) fn read(bytes: &[u8], length: usize, headers: usize) -> Result<(usize, Body), Fault> {
    let head = bytes.get(..length.saturating_sub(4)).unwrap_or_default();
    let mut lines = Lines(Some(head));
    let target = request_line(lines.next().unwrap_or_default())?;
    let mut known = Known::default();
    for (count, line) in lines.enumerate() {
        if count >= headers {
            return Err(Fault::TooMany);
        }
        let (name, value) = field(line)?;
        known.take(name, value)?;
    }
    known.check_host(target)?;
    Ok((length, known.body()?))
}

/// A header or trailer line as name and value, the value without the white space around it.
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Fault> {
    if line.first().is_some_and(|b| matches!(b, b' ' | b'\t')) {
        return Err(Fault::Malformed("folds a header over more than one line"));
    }
    let colon = memchr::memchr(b':', line).ok_or(Fault::Malformed("has a header line without a colon"))?;
    let (name, rest) = line.split_at(colon);
    if name.is_empty() || !name.iter().all(|b| is_token(*b)) {
        return Err(Fault::Malformed("has a header name with a character that none has"));
    }
    let value = rest.get(1..).unwrap_or_default();
    // Counted, for that is done many bytes at a time.
    if value.iter().filter(|b| (**b < 0x20 && **b != b'\t') || **b == 0x7f).count() > 0 {
        return Err(Fault::Malformed("has a control character in a header"));
    }
    let is_space = |b: &u8| matches!(b, b' ' | b'\t');
    let start = value.iter().position(|b| !is_space(b)).unwrap_or(value.len());
    let end = value.iter().rposition(|b| !is_space(b)).map_or(start, |at| at + 1);
    Ok((name, value.get(start..end).unwrap_or_default()))
}

/// The lines of a head, split at CR LF. A carriage return elsewhere stays in its line, where no rule allows it.
struct Lines<'h>(Option<&'h [u8]>);

impl<'h> Iterator for Lines<'h> {
    type Item = &'h [u8];

    fn next(&mut self) -> Option<&'h [u8]> {
        let rest = self.0?;
        let Some(at) = memchr::memchr(b'\n', rest) else {
            self.0 = None;
            return Some(rest);
        };
        self.0 = rest.get(at + 1..);
        rest.get(..at.saturating_sub(1))
    }
}

/// What the fields of a head say of its host and its body.
#[derive(Debug, Default)]
struct Known<'h> {
    host: Option<&'h [u8]>,
    length: Option<u64>,
    chunked: bool,
}

impl<'h> Known<'h> {
    fn take(&mut self, name: &'h [u8], value: &'h [u8]) -> Result<(), Fault> {
        if name.eq_ignore_ascii_case(b"host") {
            if self.host.replace(value).is_some() {
                return Err(Fault::Malformed("has more than one Host"));
            }
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
            let length = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
            let length = length.ok_or(Fault::Malformed("has a Content-Length that is no plain number"))?;
            if self.length.replace(length).is_some() {
                return Err(Fault::Malformed("has more than one Content-Length"));
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Fault::Malformed("has a Transfer-Encoding other than one chunked"));
            }
            self.chunked = true;
        }
        Ok(())
    }

    fn check_host(&self, target: &[u8]) -> Result<(), Fault> {
        let host = self.host.ok_or(Fault::Malformed("has no Host"))?;
        let Some(rest) = absolute(target) else { return Ok(()) };
        let authority = rest.split(|b| matches!(b, b'/' | b'?')).next().unwrap_or_default();
        if authority.eq_ignore_ascii_case(host) {
            Ok(())
        } else {
            Err(Fault::Malformed("names one host in its target and another in Host"))
        }
    }

    fn body(&self) -> Result<Body, Fault> {
        match (self.length, self.chunked) {
            (Some(_), true) => Err(Fault::Malformed("has both Content-Length and Transfer-Encoding")),
            (None, true) => Ok(Body::Chunked),
            (None | Some(0), false) => Ok(Body::None),
            (Some(length), false) => Ok(Body::Length(length)),
        }
    }
}

/// Checks the request line and answers its target.
fn request_line(line: &[u8]) -> Result<&[u8], Fault> {
    let mut parts = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Fault::Malformed("has a first line that is not method, target and version"));
    };
    if method.is_empty() || !method.iter().all(|b| is_token(*b)) {
        return Err(Fault::Malformed("has a method with a character that none has"));
    }
    if version != b"HTTP/1.1" {
        return Err(Fault::Malformed("is not of HTTP/1.1 or HTTP/2"));
    }
    check_target(method, target)?;
    Ok(target)
}

/// Refuses a target that is of none of the four forms (RFC 9112, section 3.2), or has characters that none of them has.
fn check_target(method: &[u8], target: &[u8]) -> Result<(), Fault> {
    if target.is_empty() || target.iter().any(|b| *b <= 0x20 || *b == 0x7f) {
        return Err(Fault::Malformed("has no target, or a control character in it"));
    }
    if target.len() > TARGET_LIMIT_BYTES {
        return Err(Fault::TooLarge);
    }
    let path = match target.first() {
        Some(b'/') => target,
        Some(b'*') if target.len() == 1 => return Ok(()),
        Some(_) if method == b"CONNECT" => return Ok(()),
        Some(_) | None => {
            let rest = absolute(target).ok_or(Fault::Malformed("has a target that is neither a path nor a URL"))?;
            rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).and_then(|at| rest.get(at..)).unwrap_or_default()
        }
    };
    if !path.is_ascii() {
        return Err(Fault::Ambiguous("has a character that must be percent-encoded"));
    }
    if memchr::memchr(b'#', path).is_some() {
        return Err(Fault::Ambiguous("has a fragment (#)"));
    }
    let (path, query) = path.split_at(memchr::memchr(b'?', path).unwrap_or(path.len()));
    if path.iter().any(|b| matches!(b, b'\\' | b'"' | b'<' | b'>' | b'`' | b'{' | b'}'))
        || query.iter().any(|b| matches!(b, b'"' | b'<' | b'>'))
    {
        return Err(Fault::Ambiguous("has a backslash or another character that must be percent-encoded"));
    }
    Ok(())
}

/// What follows the scheme of a URL that a gateway can be asked for.
fn absolute(target: &[u8]) -> Option<&[u8]> {
    let colon = memchr::memchr(b':', target)?;
    let (scheme, rest) = target.split_at(colon);
    let known = scheme.eq_ignore_ascii_case(b"https") || scheme.eq_ignore_ascii_case(b"http");
    rest.strip_prefix(b"://").filter(|_| known)
}

/// The longest target that the library takes, and a little less.
const TARGET_LIMIT_BYTES: usize = 65_000;

/// Whether each byte may be in a token (RFC 9110, section 5.6.2): looked up, for half of a head's bytes are asked for it.
#[expect(clippy::indexing_slicing, reason = "the compiler evaluates it")]
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0_u8;
    while b < 0x7f {
        table[b as usize] = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        b += 1;
    }
    table
};

fn is_token(b: u8) -> bool {
    TOKEN.get(usize::from(b)).is_some_and(|is| *is)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> Result<(usize, Body), Fault> {
        let length = end(text.as_bytes(), 0, 1024)?.expect("a whole head");
        read(text.as_bytes(), length, 100)
    }

    fn body(fields: &str) -> Result<Body, Fault> {
        read_all(&format!("POST /a HTTP/1.1\r\nHost: h\r\n{fields}\r\n")).map(|(_, body)| body)
    }

    #[test]
    fn the_body_is_what_one_field_says() {
        assert_eq!(body(""), Ok(Body::None));
        assert_eq!(body("Content-Length: 0\r\n"), Ok(Body::None));
        assert_eq!(body("content-length:\t7 \r\n"), Ok(Body::Length(7)));
        assert_eq!(body("Transfer-Encoding: Chunked\r\n"), Ok(Body::Chunked));
        for bad in [
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 0x1\r\n",
            "Content-Length:\r\n",
            "Content-Length: 9223372036854775808\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Transfer-Encoding: chunked\u{b}\r\n",
            "X: a\r\n b\r\n",
            "X: a\0b\r\n",
            "X: a\rb\r\n",
            "X\r\n",
            ": a\r\n",
            "X Y: a\r\n",
            "Host: h\r\n",
        ] {
            assert!(matches!(body(bad), Err(Fault::Malformed(_))), "{bad:?}: {:?}", body(bad));
        }
    }

    #[test]
    fn the_first_line_has_three_parts_and_a_plain_target() {
        let line = |line: &str| read_all(&format!("{line}\r\nHost: h\r\n\r\n")).map(|(length, _)| length);
        assert!(line("GET /a?b=c HTTP/1.1").is_ok());
        assert!(line("GET http://h/a HTTP/1.1").is_ok());
        assert!(line("OPTIONS * HTTP/1.1").is_ok());
        for bad in [
            "GET /a",
            "GET  /a HTTP/1.1",
            "GET /a b HTTP/1.1",
            "GET /a HTTP/1.0",
            "GET /a HTTP/2.0",
            "GET /a http/1.1",
            "G(T /a HTTP/1.1",
            " GET /a HTTP/1.1",
            "GET http://other/a HTTP/1.1",
            "GET /a\tb HTTP/1.1",
            "GET /a HTTP/1.1 ",
            "GET h/a HTTP/1.1",
            "GET ftp://h/a HTTP/1.1",
            "GET ** HTTP/1.1",
        ] {
            assert!(matches!(line(bad), Err(Fault::Malformed(_))), "{bad}: {:?}", line(bad));
        }
        for bad in [
            "GET /a#b HTTP/1.1",
            "GET /é HTTP/1.1",
            "GET /a\\b HTTP/1.1",
            "GET /a<b HTTP/1.1",
            "GET http://h/a`b HTTP/1.1",
            "GET /?a=<b HTTP/1.1",
        ] {
            assert!(matches!(line(bad), Err(Fault::Ambiguous(_))), "{bad}: {:?}", line(bad));
        }
    }

    #[test]
    fn a_bare_line_feed_is_found_before_the_end() {
        assert!(matches!(end(b"GET / HTTP/1.1\nHost: h\n\n", 0, 1024), Err(Fault::Malformed(_))));
        assert_eq!(end(b"GET / HTTP/1.1\r\nHost: h\r\n\r", 0, 1024), Ok(None));
        assert_eq!(end(&[b'a'; 1025], 0, 1024), Err(Fault::TooLarge));
    }

    #[test]
    fn a_host_is_needed() {
        assert!(matches!(read_all("GET / HTTP/1.1\r\nX: y\r\n\r\n"), Err(Fault::Malformed(_))));
        assert!(matches!(read_all("GET / HTTP/1.1\r\n\r\n"), Err(Fault::Malformed(_))));
    }
}
