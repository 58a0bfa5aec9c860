//! A whole connection of HTTP/1.1: the input is what a client sends behind TLS, byte for byte. Whatever it is, nothing
//! reaches the service that no signature permitted, and what does reach it is written in one way.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../harness.rs"]
mod harness;

use harness::{LAB, Protocol};

fuzz_target!(|input: &[u8]| LAB.run(Protocol::Http1, input));
