//! What the gateway promises, over real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod browser;
mod commands;
mod documents;
mod examples;
mod floods;
mod forwarding;
mod hostile;
mod http2;
mod layers;
mod policy;
mod support;
mod tls;
mod upstreams;
mod vectors;
