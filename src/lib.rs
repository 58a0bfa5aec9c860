//! Countersign: an HTTPS gateway between private Stripe Apps and a company's internal HTTP services.
//!
//! A request passes a row of stages, each of which turns one value into a stronger one:
//!
//! ```text
//! request -> (preflight answered) -> Route -> Principal -> Permit -> upstream response -> access record
//! ```
//!
//! The modules below stand in layers, from plain values to the assembled program; a module uses only those listed
//! above it.
#![forbid(unsafe_code)]

// Values: plain data and arithmetic; no sockets, files or clock.
pub mod version;
pub mod identity;
pub mod json;
pub mod limits;
pub mod path;
pub mod secret;
pub mod signature;
pub mod tally;

// Rules: decisions over values.
pub mod auth;
pub mod cors;
pub mod policy;
pub mod route;
pub mod headers;
pub mod webhook;

// Edges: the outside world.
pub mod body;
pub mod clock;
pub mod io;
pub mod files;
pub mod confine;
pub mod record;
pub mod audit;
pub mod tls;
pub mod acme;
pub mod inbox;
pub mod upstream;
pub mod delivery;

// Assembly.
pub mod rejection;
pub mod gateway;
pub mod mailroom;
pub mod server;
pub mod service;
pub mod config;
pub mod reload;
pub mod operations;
pub mod command;
