//! A WebSocket between a client and an upstream, from the upstream's 101 to its end.
//!
//! Source: RFC 6455; RFC 9110, section 7.8.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Version, header, request::Parts};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::Exchange;
use crate::{body::Ending as _, headers, limits::Limit, rejection::Rejection, upstream::Held};

/// Bytes that are read at once, in either direction.
const BUFFER_BYTES: usize = 16 * 1024;
/// How long the connections may take to be handed over after the 101, and to close.
const HAND_OVER: Duration = Duration::from_secs(10);
/// The close frame of a server that goes away (RFC 6455, sections 5.5.1 and 7.4.1).
const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const UPGRADE: HeaderValue = HeaderValue::from_static("Upgrade");

/// What a request asks its connection to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    Nothing,
    WebSocket,
    /// Another protocol, or a WebSocket in a form that none has.
    Other,
}

impl Asks {
    /// What the head of a request asks for. An `Upgrade` that `Connection` does not name is no question, and does not
    /// go on.
    pub(super) fn of(parts: &Parts) -> Self {
        if parts.version == Version::HTTP_2
            || !parts.headers.contains_key(header::UPGRADE)
            || !headers::lists(&parts.headers, header::CONNECTION, "upgrade")
        {
            return Self::Nothing;
        }
        let one = |name: header::HeaderName| {
            let mut values = parts.headers.get_all(name).iter();
            values.next().filter(|_| values.next().is_none())
        };
        let is_websocket =
            one(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let has_version = one(header::SEC_WEBSOCKET_VERSION).is_some_and(|value| value == "13");
        let has_key = one(header::SEC_WEBSOCKET_KEY).is_some_and(|value| value.len() == 24);
        let has_body =
            parts.headers.contains_key(header::CONTENT_LENGTH) || parts.headers.contains_key(header::TRANSFER_ENCODING);
        let is_whole = is_websocket && has_version && has_key && !has_body && parts.method == Method::GET;
        if is_whole { Self::WebSocket } else { Self::Other }
    }
}

/// Adds to the headers of a request or of an answer what makes its connection a WebSocket.
pub(super) fn upgrade(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, UPGRADE);
    headers.insert(header::UPGRADE, WEBSOCKET);
}

/// A WebSocket to which the upstream has agreed, until the client's connection is there for it.
#[derive(Debug)]
pub struct Tunnel {
    pub(super) upstream: OnUpgrade,
    /// The upstream's connection, which is not used again.
    pub(super) held: Held,
    pub(super) exchange: Exchange,
    /// The longest time it may last, and the longest pause.
    pub(super) age: Duration,
    pub(super) idle_timeout: Duration,
}

/// Bytes that passed, and when the last did.
#[derive(Debug)]
struct Passed {
    began: Instant,
    up: AtomicU64,
    down: AtomicU64,
    /// Milliseconds from `began`.
    moved: AtomicU64,
}

impl Tunnel {
    /// Passes bytes between `downstream`, from which `early` was read already, and the upstream until one side ends, it is
    /// too old or too quiet, or `drain` is told; records it then.
    pub async fn run<T: AsyncRead + AsyncWrite>(self, downstream: T, early: Bytes, drain: CancellationToken) {
        let Self { upstream, held, mut exchange, age, idle_timeout } = self;
        let passed = Passed::new();
        let mut left = None;
        let complete = match tokio::time::timeout(HAND_OVER, upstream).await {
            Ok(Ok(upstream)) => {
                let stopped = async {
                    tokio::select! {
                        () = drain.cancelled() => Broken::Drain,
                        rejection = exchange.revoked() => Broken::Revoked(rejection),
                    }
                };
                let (relayed, client) = relay(downstream, &early, upstream, &passed, age, idle_timeout, stopped).await;
                left = client;
                match &relayed {
                    Err(Broken::Limit(limit)) => exchange.hit(*limit),
                    Err(Broken::Revoked(rejection)) => exchange.note_revoked(rejection),
                    Ok(()) | Err(Broken::Connection | Broken::Drain) => {}
                }
                relayed.is_ok()
            }
            Ok(Err(_)) | Err(_) => false,
        };
        drop(held);
        exchange.note_received(passed.up.load(Ordering::Relaxed));
        exchange.ended(passed.down.load(Ordering::Relaxed), complete);
        // The service is done with, and it is recorded, however long the client takes to hear of it.
        if let Some(left) = left {
            let _ = tokio::time::timeout(HAND_OVER, left.leave()).await;
        }
    }
}

impl Passed {
    fn new() -> Self {
        let (up, down, moved) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self { began: Instant::now(), up, down, moved }
    }

    fn note(&self, counter: &AtomicU64, bytes: usize) {
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(since, Ordering::Relaxed);
    }

    /// Ends when nothing has passed for `patience`.
    async fn quiet(&self, patience: Duration) {
        loop {
            let until = self.began + Duration::from_millis(self.moved.load(Ordering::Relaxed)) + patience;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// What broke a WebSocket off.
#[derive(Debug)]
enum Broken {
    /// One of the connections.
    Connection,
    Limit(Limit),
    /// The client is no longer permitted.
    Revoked(Rejection),
    Drain,
}

/// The client of a WebSocket that was broken off.
#[derive(Debug)]
struct Left<T> {
    connection: WriteHalf<T>,
    frames: Frames,
}

impl<T: AsyncWrite> Left<T> {
    /// Tells the client, and ends its connection.
    async fn leave(mut self) {
        // Within a message of the service a frame of ours would be read as a part of it.
        if self.frames.is_between() {
            let _ = self.connection.write_all(&GOING_AWAY).await;
        }
        let _ = self.connection.shutdown().await;
    }
}

/// Passes bytes until both sides have ended, or something breaks it off: what, and whom is still to be told.
async fn relay<T: AsyncRead + AsyncWrite>(
    downstream: T,
    early: &[u8],
    upstream: Upgraded,
    passed: &Passed,
    age: Duration,
    idle_timeout: Duration,
    stopped: impl Future<Output = Broken>,
) -> (Result<(), Broken>, Option<Left<T>>) {
    let (mut from_client, mut to_client) = tokio::io::split(downstream);
    let (mut from_service, mut to_service) = tokio::io::split(TokioIo::new(upstream));
    let mut frames = Frames { is_whole: true, ..Frames::default() };
    let ended = {
        let up = async {
            passed.note(&passed.up, early.len());
            to_service.write_all(early).await?;
            pump(&mut from_client, &mut to_service, |step| {
                if let Step::Read(bytes) = step {
                    passed.note(&passed.up, bytes.len());
                }
            })
            .await
        };
        let down = pump(&mut from_service, &mut to_client, |step| match step {
            Step::Read(bytes) => {
                frames.read(bytes);
                passed.note(&passed.down, bytes.len());
            }
            Step::Written => frames.is_whole = true,
        });
        tokio::select! {
            ended = async { tokio::try_join!(up, down) } => ended.map(|_| ()).map_err(|_| Broken::Connection),
            () = tokio::time::sleep(age) => Err(Broken::Limit(Limit::WebsocketAge)),
            () = passed.quiet(idle_timeout) => Err(Broken::Limit(Limit::WebsocketIdleTimeout)),
            why = stopped => Err(why),
        }
    };
    let left = ended.is_err().then_some(Left { connection: to_client, frames });
    (ended, left)
}

/// What is told of bytes that pass.
#[derive(Debug)]
enum Step<'b> {
    Read(&'b [u8]),
    /// All that was read.
    Written,
}

/// Passes on what comes from `reader` until it ends, and then ends `writer`; each step is told.
async fn pump<T: AsyncRead + AsyncWrite, U: AsyncRead + AsyncWrite>(
    reader: &mut ReadHalf<T>,
    writer: &mut WriteHalf<U>,
    mut tell: impl FnMut(Step<'_>),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = reader.read(&mut buffer).await?;
        let bytes = buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            return writer.shutdown().await;
        }
        tell(Step::Read(bytes));
        writer.write_all(bytes).await?;
        writer.flush().await?;
        tell(Step::Written);
    }
}

/// Where in the frames of a WebSocket the bytes that passed have ended.
///
/// Source: RFC 6455, section 5.2.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; 14],
    filled: usize,
    payload_left: u64,
    /// Whether all of what was read is written.
    is_whole: bool,
}

impl Frames {
    fn is_between(&self) -> bool {
        self.is_whole && self.filled == 0 && self.payload_left == 0
    }

    fn read(&mut self, mut bytes: &[u8]) {
        self.is_whole = false;
        while !bytes.is_empty() {
            let skipped = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(bytes.len());
            self.payload_left -= skipped as u64;
            bytes = bytes.get(skipped..).unwrap_or_default();
            let Some((byte, rest)) = bytes.split_first().filter(|_| self.payload_left == 0) else { continue };
            bytes = rest;
            if let Some(place) = self.head.get_mut(self.filled) {
                *place = *byte;
            }
            self.filled += 1;
            if let Some(length) = self.payload() {
                (self.filled, self.payload_left) = (0, length);
            }
        }
    }

    /// The length of the payload, once the head is whole.
    fn payload(&self) -> Option<u64> {
        let [_, second, extended @ ..] = self.head;
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (bytes, length) = match second & 0x7f {
            126 => (2, extended.iter().take(2).fold(0, |length, byte| length << 8 | u64::from(*byte))),
            127 => (8, extended.iter().take(8).fold(0, |length, byte| length << 8 | u64::from(*byte))),
            length => (0, u64::from(length)),
        };
        (self.filled >= 2 && self.filled == 2 + bytes + mask).then_some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_followed_byte_by_byte() {
        let mut stream = vec![0x81, 2, b'h', b'i'];
        stream.extend([0x82, 126, 1, 0]);
        stream.extend([7; 256]);
        stream.extend([0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        stream.extend(vec![7; 65536]);
        stream.extend([0x89, 0x80, 1, 2, 3, 4, 0x8a, 0]);
        let ends = [4, 4 + 260, 264 + 65546, 65810 + 6, 65816 + 2];
        let mut frames = Frames::default();
        let mut between = Vec::new();
        for (at, byte) in stream.iter().enumerate() {
            frames.read(&[*byte]);
            frames.is_whole = true;
            if frames.is_between() {
                between.push(at + 1);
            }
        }
        assert_eq!(between, ends);
        let mut frames = Frames::default();
        frames.read(&stream);
        assert!(!frames.is_between(), "the end of it may not be written yet");
        frames.is_whole = true;
        assert!(frames.is_between());
        frames.read(&[0x81, 5, b'h']);
        frames.is_whole = true;
        assert!(!frames.is_between());
    }

    #[test]
    fn an_upgrade_is_asked_for_in_one_form() {
        let head = |more: &[(&str, &str)]| {
            let mut request = http::Request::get("/").version(Version::HTTP_11);
            for (name, value) in more {
                request = request.header(*name, *value);
            }
            Asks::of(&request.body(()).unwrap().into_parts().0)
        };
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let version = ("sec-websocket-version", "13");
        let (upgrade, connection) = (("upgrade", "WebSocket"), ("connection", "keep-alive, Upgrade"));
        assert_eq!(head(&[upgrade, connection, version, key]), Asks::WebSocket);
        assert_eq!(head(&[upgrade, version, key]), Asks::Nothing);
        assert_eq!(head(&[connection]), Asks::Nothing);
        assert_eq!(head(&[("upgrade", "h2c"), connection, version, key]), Asks::Other);
        assert_eq!(head(&[("upgrade", "websocket, h2c"), connection, version, key]), Asks::Other);
        assert_eq!(head(&[upgrade, upgrade, connection, version, key]), Asks::Other);
        assert_eq!(head(&[upgrade, connection, key]), Asks::Other);
        assert_eq!(head(&[upgrade, connection, version, ("sec-websocket-key", "short")]), Asks::Other);
        assert_eq!(head(&[upgrade, connection, version, key, ("content-length", "1")]), Asks::Other);
    }
}
