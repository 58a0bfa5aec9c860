//! HTTP/2 frames of any content, and what comes back for them.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConnection, StreamOwned};

use crate::support::{Gateway, client_config};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;

/// What became of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Answered(u16, Vec<u8>),
    Reset,
}

/// Sends `bytes` behind the preface and reads until the connection ends or `streams` have their outcomes.
/// Answers these, and whether the connection ended.
pub(super) fn exchange(gateway: &Gateway, bytes: &[u8], streams: &[u32]) -> (BTreeMap<u32, Outcome>, bool) {
    let config = client_config(&gateway.folder.path().join("cert.pem"), &[b"h2"]);
    let stream = TcpStream::connect(gateway.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_nodelay(true).unwrap();
    let connection = ClientConnection::new(Arc::new(config), "gw.test".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, 0, &[])[..]].concat();
    // The gateway may have closed already.
    let _ = stream.write_all(&[&preface, bytes].concat()).and_then(|()| stream.flush());
    let mut outcomes = BTreeMap::new();
    let mut answers: BTreeMap<u32, (u16, Vec<u8>)> = BTreeMap::new();
    while !streams.iter().all(|stream| outcomes.contains_key(stream)) {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).is_err() {
            return (outcomes, true);
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if stream.read_exact(&mut payload).is_err() {
            return (outcomes, true);
        }
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        match kind {
            HEADERS => drop(answers.insert(id, (status(&payload), Vec::new()))),
            DATA => answers.get_mut(&id).unwrap().1.extend_from_slice(&payload),
            RST_STREAM => drop(outcomes.entry(id).or_insert(Outcome::Reset)),
            GOAWAY => return (outcomes, true),
            _ => {}
        }
        if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
            let (status, body) = answers.remove(&id).unwrap();
            outcomes.insert(id, Outcome::Answered(status, body));
        }
    }
    (outcomes, false)
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Fields as HPACK literals that are not indexed (RFC 7541, section 6.2.2).
pub(super) fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: impl IntoIterator<Item = (N, V)>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            if text.len() < 127 {
                block.push(u8::try_from(text.len()).unwrap());
            } else {
                block.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    block.push(u8::try_from(rest % 128 + 128).unwrap());
                    rest /= 128;
                }
                block.push(u8::try_from(rest).unwrap());
            }
            block.extend_from_slice(text);
        }
    }
    block
}

/// The status that a block of the gateway's begins with: of the static table, or a literal under its name, whose
/// digits may be in Huffman's code (RFC 7541, sections 6.1 and 6.2, appendices A and B).
fn status(block: &[u8]) -> u16 {
    let block = match block.iter().position(|b| b & 0xe0 != 0x20) {
        Some(at) => &block[at..],
        None => panic!("a block without fields: {block:?}"),
    };
    let indexed = [200, 204, 206, 304, 400, 404, 500];
    if let 0x88..=0x8e = block[0] {
        return indexed[usize::from(block[0] - 0x88)];
    }
    assert_eq!(block[0] & 0x0f, 8, "{block:?} does not begin with a status");
    let length = usize::from(block[1] & 0x7f);
    let text = &block[2..2 + length];
    if block[1] & 0x80 == 0 {
        return std::str::from_utf8(text).unwrap().parse().unwrap();
    }
    let bits: Vec<u16> = text.iter().flat_map(|b| (0..8).rev().map(move |at| u16::from(b >> at & 1))).collect();
    let number = |bits: &[u16]| bits.iter().fold(0, |number, bit| number << 1 | bit);
    let (mut at, mut status) = (0, 0);
    for _ in 0..3 {
        let short = number(&bits[at..at + 5]);
        let (digit, length) = if short < 3 { (short, 5) } else { (number(&bits[at..at + 6]) - 0x19 + 3, 6) };
        status = status * 10 + digit;
        at += length;
    }
    status
}

#[test]
fn a_status_is_read_in_each_of_its_forms() {
    assert_eq!(status(&[0x88]), 200);
    assert_eq!(status(&[0x20, 0x8d]), 404);
    assert_eq!(status(&[0x48, 3, b'4', b'1', b'3']), 413);
    // RFC 7541, section C.6.1.
    assert_eq!(status(&[0x48, 0x82, 0x64, 0x02]), 302);
    assert_eq!(status(&[0x48, 0x83, 0x64, 0x0e, 0xff]), 307);
}
