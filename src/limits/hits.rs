//! How often each limit was hit.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! limits {
    ($($variant:ident $name:literal;)*) => {
        /// A limit that a client or a moment can hit. Ends that belong to every connection, such as that of an idle
        /// one, are none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Limit { $(#[doc = concat!("`", $name, "` of `[limits]`.")] $variant,)* }

        impl Limit {
            /// Every one, in the order of the configuration.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The key that sets it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

limits! {
    Connections "connections";
    ConnectionsPerAddress "connections_per_address";
    HeadBytes "head_bytes";
    Headers "headers";
    HandshakeTimeout "handshake_timeout";
    HeadTimeout "head_timeout";
    BodyBytes "body_bytes";
    BodyTimeout "body_timeout";
    StreamBytes "stream_bytes";
    StreamRate "stream_rate";
    DiscardBytes "discard_bytes";
    DiscardTimeout "discard_timeout";
    WriteTimeout "write_timeout";
    Drain "drain";
    ExchangeTimeout "exchange_timeout";
    WebsocketAge "websocket_age";
    WebsocketIdleTimeout "websocket_idle_timeout";
    BufferedBytesPerAddress "buffered_bytes_per_address";
    BufferedBytes "buffered_bytes";
}

/// Counts of all limits, shared by all workers.
#[derive(Debug, Default)]
pub struct Hits([AtomicU64; Limit::ALL.len()]);

impl Hits {
    /// One more time.
    pub fn hit(&self, limit: Limit) {
        self.count(limit).fetch_add(1, Ordering::Relaxed);
    }

    /// How often `limit` was hit.
    pub fn of(&self, limit: Limit) -> u64 {
        self.count(limit).load(Ordering::Relaxed)
    }

    /// Every limit's name and how often it was hit.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Limit::ALL.iter().map(|limit| (limit.name(), self.of(*limit)))
    }

    #[expect(clippy::indexing_slicing, reason = "there is a count for each variant")]
    fn count(&self, limit: Limit) -> &AtomicU64 {
        &self.0[limit as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_a_count_of_its_own() {
        let hits = Hits::default();
        for (times, limit) in Limit::ALL.iter().enumerate() {
            for _ in 0..times {
                hits.hit(*limit);
            }
        }
        let read: Vec<_> = hits.iter().collect();
        let expected: Vec<_> = Limit::ALL.iter().zip(0..).map(|(limit, times)| (limit.name(), times)).collect();
        assert_eq!(read, expected);
    }
}
