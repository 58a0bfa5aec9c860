//! The framing of a chunked body, checked byte by byte where the library would be lenient.
//!
//! Source: RFC 9112, section 7.1.

use super::head;

/// The longest chunk extension, and the longest line and sum of trailers, in bytes.
const EXTENSION_LIMIT_BYTES: usize = 256;
const TRAILERS_LIMIT_BYTES: usize = 4096;

/// Where in a chunked body the reader stands.
#[derive(Debug)]
pub(super) struct Chunks {
    at: At,
    size: u64,
    digits: u8,
    extension: usize,
    line: Vec<u8>,
    trailers: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Size,
    Extension,
    SizeEnd,
    Data,
    DataCarriageReturn,
    DataLineFeed,
    Trailer,
    TrailerEnd,
}

impl Default for Chunks {
    fn default() -> Self {
        Self { at: At::Size, size: 0, digits: 0, extension: 0, line: Vec::new(), trailers: 0 }
    }
}

impl Chunks {
    /// Reads on, and answers how many of `bytes` belong to the body and whether it has ended with them.
    ///
    /// # Errors
    /// `()` at the first byte that cannot stand there.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(usize, bool), ()> {
        let mut place = 0;
        while let Some(byte) = bytes.get(place).copied() {
            if self.at == At::Data {
                let now = usize::try_from(self.size).unwrap_or(usize::MAX).min(bytes.len() - place);
                place += now;
                self.size -= now as u64;
                if self.size == 0 {
                    self.at = At::DataCarriageReturn;
                }
                continue;
            }
            place += 1;
            if self.step(byte)? {
                return Ok((place, true));
            }
        }
        Ok((place, false))
    }

    /// One byte of framing; whether it was the last.
    fn step(&mut self, byte: u8) -> Result<bool, ()> {
        self.at = match (self.at, byte) {
            (At::Size, b'\r') if self.digits > 0 => At::SizeEnd,
            (At::Size, b';') if self.digits > 0 => At::Extension,
            (At::Size, _) => {
                let digit = char::from(byte).to_digit(16).ok_or(())?;
                self.digits += 1;
                if self.digits > 15 {
                    return Err(());
                }
                self.size = self.size << 4 | u64::from(digit);
                At::Size
            }
            (At::Extension, b'\r') => At::SizeEnd,
            (At::Extension, _) => {
                self.extension += 1;
                let plain = byte == b'\t' || (0x20..0x7f).contains(&byte);
                if !plain || self.extension > EXTENSION_LIMIT_BYTES {
                    return Err(());
                }
                At::Extension
            }
            (At::SizeEnd, b'\n') => {
                self.digits = 0;
                self.extension = 0;
                if self.size == 0 { At::Trailer } else { At::Data }
            }
            (At::DataCarriageReturn, b'\r') => At::DataLineFeed,
            (At::DataLineFeed, b'\n') => At::Size,
            (At::Trailer, b'\r') => At::TrailerEnd,
            (At::Trailer, b'\n') => return Err(()),
            (At::Trailer, _) => {
                self.trailers += 1;
                if self.trailers > TRAILERS_LIMIT_BYTES {
                    return Err(());
                }
                self.line.push(byte);
                At::Trailer
            }
            (At::TrailerEnd, b'\n') if self.line.is_empty() => return Ok(true),
            (At::TrailerEnd, b'\n') => {
                head::field(&self.line).map_err(|_| ())?;
                self.line.clear();
                At::Trailer
            }
            (At::SizeEnd | At::DataCarriageReturn | At::DataLineFeed | At::TrailerEnd | At::Data, _) => return Err(()),
        };
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(usize, bool), ()> {
        Chunks::default().read(text.as_bytes())
    }

    #[test]
    fn a_body_ends_with_its_last_chunk_and_trailers() {
        assert_eq!(read("3\r\nabc\r\n0\r\n\r\nGET"), Ok((13, true)));
        assert_eq!(read("A;x=y\r\n0123456789\r\n0\r\nX: y\r\n\r\n"), Ok((30, true)));
        assert_eq!(read("3\r\nab"), Ok((5, false)));
    }

    #[test]
    fn one_byte_at_a_time_reads_the_same() {
        let mut chunks = Chunks::default();
        let text = b"3\r\nabc\r\n0\r\nX: y\r\n\r\n";
        let ends: Vec<bool> = text.iter().map(|b| chunks.read(&[*b]).unwrap().1).collect();
        assert_eq!(ends.iter().position(|end| *end), Some(text.len() - 1));
    }

    #[test]
    fn malformed_framing_is_refused() {
        let long = format!("1;{}\r\n", "x".repeat(257));
        for bad in [
            "\r\n",
            "3\nabc",
            "3\r\nabcd",
            "3\r\nabc\n0",
            "g\r\n",
            " 3\r\n",
            "3 \r\n",
            "+3\r\n",
            "0x3\r\n",
            "-1\r\n",
            "1;\0\r\n",
            "1;a\n",
            "10000000000000000\r\n",
            "0\r\nX y\r\n\r\n",
            "0\r\n X: y\r\n\r\n",
            "0\r\n\n",
            &long,
        ] {
            assert!(read(bad).is_err(), "{bad:?}: {:?}", read(bad));
        }
    }
}
