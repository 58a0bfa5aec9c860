//! The bounds of the gateway, each key with the range it takes.

use std::{ops::RangeInclusive, time::Duration};

use super::section::Section;
use crate::limits::Limits;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// The least time that is waited for anything, and the longest.
pub(super) const WAIT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);
/// The body limit of a route.
pub(super) const BODY: RangeInclusive<u64> = 1..=TIB;

/// The limits, the defaults where nothing is said.
pub(super) fn limits(root: &Section<'_>) -> Option<Limits> {
    let standard = Limits::default();
    let Some(item) = root.item("limits") else { return Some(standard) };
    let section = item.section("limits")?;
    let count = |name, range, default| match section.item(name) {
        None => Some(default),
        Some(item) => item.count(range),
    };
    let size = |name, range, default| match section.item(name) {
        None => Some(default),
        Some(item) => item.size(range),
    };
    let wait = |name, range, default| match section.item(name) {
        None => Some(default),
        Some(item) => item.duration(range),
    };
    // Each is read before any is missed, so that all mistakes are told.
    let connections = count("connections", 1..=1_000_000, wide(standard.connections));
    let per_address = section.item("connections_per_address").map(|item| item.count(1..=1_000_000));
    // hyper takes no less than 8 KiB.
    let head_bytes = size("head_bytes", 8 * KIB..=MIB, wide(standard.head_bytes));
    let headers = count("headers", 1..=10_000, wide(standard.headers));
    let handshake_timeout = wait("handshake_timeout", WAIT, standard.handshake_timeout);
    let head_timeout = wait("head_timeout", WAIT, standard.head_timeout);
    let body_bytes = size("body_bytes", 1..=GIB, standard.body_bytes);
    let body_timeout = wait("body_timeout", WAIT, standard.body_timeout);
    let stream_bytes = size("stream_bytes", BODY, standard.stream_bytes);
    let stream_rate = size("stream_rate", 1..=GIB, standard.stream_rate);
    let stream_window = wait("stream_window", WAIT, standard.stream_window);
    let discard_bytes = size("discard_bytes", BODY, standard.discard_bytes);
    let discard_timeout = wait("discard_timeout", WAIT, standard.discard_timeout);
    let idle_timeout = wait("idle_timeout", WAIT, standard.idle_timeout);
    let write_timeout = wait("write_timeout", WAIT, standard.write_timeout);
    let streams = count("streams", 1..=100_000, u64::from(standard.streams));
    let drain = wait("drain", WAIT, standard.drain);
    let drain_delay = wait("drain_delay", Duration::ZERO..=*WAIT.end(), standard.drain_delay);
    let exchange_timeout = wait("exchange_timeout", WAIT, standard.exchange_timeout);
    let share = wide(standard.buffered_bytes_per_address);
    let buffered_bytes_per_address = size("buffered_bytes_per_address", 64 * KIB..=TIB, share);
    let websocket_age = wait("websocket_age", WAIT, standard.websocket_age);
    let websocket_idle_timeout = wait("websocket_idle_timeout", WAIT, standard.websocket_idle_timeout);
    let buffered_bytes = size("buffered_bytes", 64 * KIB..=TIB, wide(standard.buffered_bytes));
    let limits = Limits {
        connections: narrow(connections?),
        connections_per_address: match per_address {
            None => None,
            Some(count) => Some(narrow(count?)),
        },
        head_bytes: narrow(head_bytes?),
        headers: narrow(headers?),
        handshake_timeout: handshake_timeout?,
        head_timeout: head_timeout?,
        body_bytes: body_bytes?,
        body_timeout: body_timeout?,
        stream_bytes: stream_bytes?,
        stream_rate: stream_rate?,
        stream_window: stream_window?,
        discard_bytes: discard_bytes?,
        discard_timeout: discard_timeout?,
        idle_timeout: idle_timeout?,
        write_timeout: write_timeout?,
        streams: u32::try_from(streams?).unwrap_or(u32::MAX),
        drain: drain?,
        drain_delay: drain_delay?,
        exchange_timeout: exchange_timeout?,
        buffered_bytes_per_address: narrow(buffered_bytes_per_address?),
        websocket_age: websocket_age?,
        websocket_idle_timeout: websocket_idle_timeout?,
        buffered_bytes: narrow(buffered_bytes?),
    };
    let (whole_bytes, bound) = limits.whole_bytes();
    if limits.body_bytes > wide(whole_bytes)
        && let Some(item) = section.item("body_bytes").or_else(|| section.item(bound.name()))
    {
        let bound = bound.name();
        let suggestion = format!("`{bound}` is for many requests together; make it several times `body_bytes`");
        item.error(&format!("a body of `body_bytes` does not fit into `{bound}`"), Some(&suggestion));
        return None;
    }
    Some(limits)
}

/// Ranges keep counts far below what either type holds.
fn narrow(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// The same, the other way.
pub(super) fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
