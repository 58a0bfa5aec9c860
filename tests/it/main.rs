//! What the gateway promises, over real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on fails"
)]

mod acme;
mod addresses;
mod audit;
mod balance;
mod browser;
mod certificates;
mod commands;
mod confinement;
mod delivery;
mod documents;
mod drain;
mod examples;
mod faults;
mod floods;
mod forwarding;
mod hostile;
mod http2;
mod inbox;
mod layers;
mod limits;
mod names;
mod operations;
mod packaging;
mod policy;
mod reload;
mod rest;
mod rules;
mod semantics;
mod service;
mod streams;
mod support;
mod tls;
mod upstreams;
mod upstreams_h2;
mod vectors;
mod webhooks;
mod websocket;
