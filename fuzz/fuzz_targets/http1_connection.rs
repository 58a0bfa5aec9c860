//! A whole connection of HTTP/1.1: the input is what a client sends behind TLS, byte for byte. Whatever it is, nothing
//! reaches the service that no signature permitted, and what does reach it is written in one way.
#![no_main]

use countersign::tls;
use libfuzzer_sys::fuzz_target;

#[path = "../harness.rs"]
mod harness;

use harness::LAB;

fuzz_target!(|input: &[u8]| LAB.run(tls::HTTP_1_1, input));
