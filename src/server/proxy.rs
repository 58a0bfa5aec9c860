//! The PROXY protocol, by which a proxy that does not read what it hands on says whom it is from.
//!
//! Source: `HAProxy`, "The PROXY protocol, versions 1 & 2",
//! <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>.

use std::{io, net::SocketAddr};

use proxy_header::{ParseConfig, Protocol, ProxyHeader};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// The longest header of version 1, its line end included.
const MOST_TEXT_BYTES: usize = 107;
/// Where a header of version 2 says how long it is, and the longest that is taken.
const PREFIX_BYTES: usize = 16;
const MOST_BINARY_BYTES: usize = 2048;

const CONFIG: ParseConfig = ParseConfig { include_tlvs: false, allow_v1: true, allow_v2: true };

/// Reads the header with which `stream` must begin, and not a byte more. Answers whom the connection is from: `peer`
/// itself, if it says that it hands on nothing.
pub(super) async fn read(stream: &mut TcpStream, peer: SocketAddr) -> io::Result<SocketAddr> {
    let mut header = Vec::new();
    let mut space = vec![0; MOST_BINARY_BYTES];
    loop {
        let missing = missing(&header)?;
        if missing == 0 {
            return source(&header, peer);
        }
        let seen = stream.peek(space.get_mut(..missing).unwrap_or_default()).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let part = space.get_mut(..seen).unwrap_or_default();
        let is_text = header.first().or(part.first()) == Some(&b'P');
        let end = memchr::memchr(b'\n', part).filter(|_| is_text).map_or(seen, |at| at + 1);
        let part = part.get_mut(..end).unwrap_or_default();
        stream.read_exact(part).await?;
        header.extend_from_slice(part);
    }
}

/// How many more bytes the header that begins so may have; nothing that is no part of it follows within them, but
/// behind the line end of a text.
fn missing(header: &[u8]) -> io::Result<usize> {
    match header.first() {
        None => Ok(PREFIX_BYTES),
        Some(b'P') if header.ends_with(b"\n") => Ok(0),
        Some(b'P') => MOST_TEXT_BYTES.checked_sub(header.len()).filter(|more| *more > 0).ok_or_else(invalid),
        Some(b'\r') => {
            let length = match header.get(PREFIX_BYTES - 2..PREFIX_BYTES) {
                Some([high, low]) => PREFIX_BYTES + usize::from(u16::from_be_bytes([*high, *low])),
                Some(_) | None => PREFIX_BYTES,
            };
            if length > MOST_BINARY_BYTES {
                return Err(invalid());
            }
            Ok(length - header.len())
        }
        Some(_) => Err(invalid()),
    }
}

fn source(header: &[u8], peer: SocketAddr) -> io::Result<SocketAddr> {
    let (parsed, length) = ProxyHeader::parse(header, CONFIG).map_err(|_| invalid())?;
    let is_text = header.starts_with(b"PROXY ");
    if length != header.len() || header.first() == Some(&b'P') && !is_text {
        return Err(invalid());
    }
    match parsed.proxied_address() {
        None => Ok(peer),
        Some(address) if address.protocol == Protocol::Stream => Ok(address.source),
        Some(_) => Err(invalid()),
    }
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
    }

    /// What is read of `bytes` that come in parts of `size`, and what is left of them.
    fn read_of(bytes: &[u8], size: usize) -> (Option<String>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let bytes = bytes.to_vec();
            let client = tokio::spawn(async move {
                let mut client = TcpStream::connect(address).await.unwrap();
                client.set_nodelay(true).unwrap();
                for part in bytes.chunks(size) {
                    use tokio::io::AsyncWriteExt as _;
                    let _ = client.write_all(part).await;
                    tokio::task::yield_now().await;
                }
            });
            let (mut stream, _) = listener.accept().await.unwrap();
            let read = read(&mut stream, "10.0.0.1:9".parse().unwrap()).await;
            let mut left = Vec::new();
            if read.is_ok() {
                stream.read_to_end(&mut left).await.unwrap();
            }
            drop(stream);
            client.await.unwrap();
            (read.ok().map(|address| address.to_string()), left)
        })
    }

    #[test]
    fn a_header_is_read_to_its_end_and_no_further_however_it_comes() {
        let v4 = [198, 51, 100, 1, 192, 0, 2, 1, 0x12, 0x67, 0x01, 0xbb];
        let v6 = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[9], &[0; 16], &[0x12, 0x67, 0x01, 0xbb]].concat();
        let extended = [&v4[..], &[0xea, 0, 3], b"abc"].concat();
        let cases: [(Vec<u8>, &str); 9] = [
            (b"PROXY TCP4 198.51.100.1 192.0.2.1 4711 443\r\n".to_vec(), "198.51.100.1:4711"),
            (b"PROXY TCP6 2001:db8::9 ::1 4711 443\r\n".to_vec(), "[2001:db8::9]:4711"),
            (b"PROXY UNKNOWN\r\n".to_vec(), "10.0.0.1:9"),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), "10.0.0.1:9"),
            (binary(0x21, 0x11, &v4), "198.51.100.1:4711"),
            (binary(0x21, 0x21, &v6), "[2001:db8::9]:4711"),
            (binary(0x21, 0x11, &extended), "198.51.100.1:4711"),
            (binary(0x20, 0x00, &[]), "10.0.0.1:9"),
            (binary(0x20, 0x11, &v4), "10.0.0.1:9"),
        ];
        for (header, expected) in cases {
            for size in [1, 5, 1000] {
                let next = b"\x16\x03\x01\n\r\nPROXY";
                let (read, left) = read_of(&[&header, &next[..]].concat(), size);
                assert_eq!(read.as_deref(), Some(expected), "{:?}", String::from_utf8_lossy(&header));
                assert_eq!(left, next);
            }
        }
    }

    #[test]
    fn what_is_no_header_is_none() {
        let v4 = [198, 51, 100, 1, 192, 0, 2, 1, 0x12, 0x67, 0x01, 0xbb];
        let cases: [Vec<u8>; 17] = [
            b"".to_vec(),
            b"PROXY TCP4 198.51.100.1".to_vec(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"POST / HTTP/1.1\r\n\r\n".to_vec(),
            b"PROXYxTCP4 198.51.100.1 192.0.2.1 4711 443\r\n".to_vec(),
            b"PROXY TCP4 198.51.100.1 192.0.2.1 4711 443\n".to_vec(),
            b"PROXY TCP4 198.51.100.999 192.0.2.1 4711 443\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::9 ::1 4711 443\r\n".to_vec(),
            b"PROXY TCP4 198.51.100.1 192.0.2.1 4711 99999\r\n".to_vec(),
            b"PROXY TCP4 198.51.100.1 192.0.2.1 4711 443 x\r\n".to_vec(),
            [&b"PROXY UNKNOWN "[..], &[b'x'; 200], b"\r\n"].concat(),
            binary(0x31, 0x11, &v4),
            binary(0x21, 0x12, &v4),
            binary(0x21, 0x11, &v4[..11]),
            binary(0x21, 0x11, &[0; 4000]),
            b"\r\n\r\n\0\r\nQUIT\r\x21\x11\0\x0c".iter().chain(&v4).copied().collect(),
        ];
        for header in cases {
            for size in [3, 1000] {
                assert_eq!(read_of(&header, size).0, None, "{:?}", String::from_utf8_lossy(&header));
            }
        }
    }
}
