//! A whole connection of HTTP/2. Behind the client's preface, the input is frames: kind, flags, stream, length in two
//! octets and so much payload, which is framed as HTTP/2 has it. An input that begins with 0xff goes on as it is.
#![no_main]

use countersign::tls;
use libfuzzer_sys::fuzz_target;

#[path = "../harness.rs"]
mod harness;

use harness::LAB;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fuzz_target!(|input: &[u8]| {
    let mut sent = PREFACE.to_vec();
    match input.split_first() {
        Some((0xff, raw)) => sent.extend_from_slice(raw),
        _ => frames(input, &mut sent),
    }
    LAB.run(tls::H2, &sent);
});

fn frames(mut input: &[u8], sent: &mut Vec<u8>) {
    while let [kind, flags, stream, high, low, rest @ ..] = input {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(rest.len());
        let (payload, next) = rest.split_at(length);
        sent.extend(u32::try_from(length).unwrap_or(0).to_be_bytes().get(1..).unwrap_or_default());
        sent.extend([*kind, *flags, 0, 0, 0, *stream]);
        sent.extend_from_slice(payload);
        input = next;
    }
}
