//! Every bound of the gateway, with its name and its default.

use std::time::Duration;

mod hits;
mod network;

pub use hits::{Hits, Limit};
pub use network::Network;

/// What may grow, and how far; what may last, and how long. Each field is the key of the same name under `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Downstream connections at one time. Beyond, those give way on which nothing was asked for longest.
    pub connections: usize,
    /// Those of one client's address; `None`: as many as there may be.
    pub connections_per_address: Option<usize>,
    /// Request line and headers together.
    pub head_bytes: usize,
    /// Header fields of a request.
    pub headers: usize,
    /// The TLS handshake.
    pub handshake_timeout: Duration,
    /// From the first byte of a request's head to its last; on a new connection from its beginning.
    pub head_timeout: Duration,
    /// A body that is read whole for verification.
    pub body_bytes: u64,
    /// All of a body that is read whole.
    pub body_timeout: Duration,
    /// A body that is passed on as it comes.
    pub stream_bytes: u64,
    /// The least rate of a body that is passed on, in bytes a second, over `stream_window`.
    pub stream_rate: u64,
    pub stream_window: Duration,
    /// What is thrown away of a body that is not wanted, so that the client can read the answer.
    pub discard_bytes: u64,
    pub discard_timeout: Duration,
    /// A downstream connection on which nothing is asked.
    pub idle_timeout: Duration,
    /// A client that does not read what it is sent.
    pub write_timeout: Duration,
    /// HTTP/2 streams of a connection at one time.
    pub streams: u32,
    /// From the end of `drain_delay` until what still runs is cut.
    pub drain: Duration,
    /// From the signal to stop until nothing more is accepted.
    pub drain_delay: Duration,
    /// Time from a request's head to the end of its answer, however both move.
    pub exchange_timeout: Duration,
    /// Bytes of bodies that are read for verification, in all requests of one client's address together.
    pub buffered_bytes_per_address: usize,
    /// A WebSocket, from its request to its end, and the longest pause in it.
    pub websocket_age: Duration,
    pub websocket_idle_timeout: Duration,
    /// Bytes of bodies that are read for verification, in all requests together.
    pub buffered_bytes: usize,
}

impl Limits {
    /// What a body that is read whole can have at the most, and the key that bounds it.
    pub fn whole_bytes(&self) -> (usize, Limit) {
        let share = (self.buffered_bytes_per_address, Limit::BufferedBytesPerAddress);
        if share.0 < self.buffered_bytes { share } else { (self.buffered_bytes, Limit::BufferedBytes) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        const KIB: u64 = 1024;
        const MIB: u64 = 1024 * KIB;
        Self {
            connections: 20_000,
            connections_per_address: None,
            head_bytes: 32 * 1024,
            headers: 100,
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            body_bytes: MIB,
            body_timeout: Duration::from_secs(30),
            stream_bytes: 16 * MIB,
            stream_rate: KIB,
            stream_window: Duration::from_secs(30),
            discard_bytes: 16 * MIB,
            discard_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            streams: 100,
            drain: Duration::from_secs(30),
            drain_delay: Duration::ZERO,
            exchange_timeout: Duration::from_secs(86_400),
            buffered_bytes_per_address: 64 * 1024 * 1024,
            websocket_age: Duration::from_secs(3600),
            websocket_idle_timeout: Duration::from_secs(300),
            buffered_bytes: 256 * 1024 * 1024,
        }
    }
}
