//! A count of HTTP/2 frames in front of the HTTP library's reading of them.
//!
//! Many frames cost work and move nothing, and the library bounds few of them. Only the nine octets at the head of each
//! frame are looked at here; what a frame means is the library's to say.
//!
//! Source: RFC 9113, sections 4.1, 6 and 10.5.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::linger::{Lingering, Patience};
use crate::limits::Limits;

/// Frames that move nothing which a client may send at once, and how many more each second.
const IDLE_FRAMES: u32 = 1000;
const IDLE_FRAMES_A_SECOND: u32 = 100;
/// How much of what it was sent explains a `WINDOW_UPDATE`, and how much of that is remembered.
const EXPLAINING_BYTES: u64 = 512;
const MOST_EXPLAINING_BYTES: u64 = 1024 * 1024;
/// `CONTINUATION` frames of one head.
const MOST_CONTINUATIONS: u32 = 16;
/// A frame of settings, six octets each.
const MOST_SETTINGS_BYTES: u32 = 6 * 32;

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HTTP/2 connection that fails when its client sends too many frames that move nothing, or a head that is too long
/// or takes too long.
#[derive(Debug)]
pub(super) struct Counted<T> {
    io: T,
    count: Count,
    head_timeout: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    patience: Patience,
    /// Once our side is closed: a client that is still reading answers what it reads with frames.
    closing: Option<Lingering>,
}

/// Where in its frames a connection is, and what its client may still send.
#[derive(Debug)]
struct Count {
    /// Octets of the preface or of a payload that come before the next frame.
    skip: usize,
    head: [u8; HEAD_BYTES],
    /// How many octets of `head` came.
    have: usize,
    block: Option<Block>,
    most_block_bytes: u64,
    spare: u32,
    since: Instant,
    explaining: u64,
}

/// The field block of a request that came in part.
#[derive(Clone, Copy, Debug)]
struct Block {
    bytes: u64,
    continuations: u32,
    /// Whether the frame that is being read is its last.
    ends: bool,
}

/// Why a connection is not read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Excess {
    IdleFrames,
    Head,
    Settings,
}

impl Excess {
    fn as_str(self) -> &'static str {
        match self {
            Self::IdleFrames => "too many frames that move nothing",
            Self::Head => "a head in too many frames or bytes",
            Self::Settings => "too many settings in a frame",
        }
    }
}

impl Count {
    fn new(most_block_bytes: u64) -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            have: 0,
            block: None,
            most_block_bytes,
            spare: IDLE_FRAMES,
            since: Instant::now(),
            explaining: 0,
        }
    }

    /// Takes account of `bytes`, which came next.
    fn read(&mut self, mut bytes: &[u8]) -> Result<(), Excess> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if self.skip > 0 {
                return Ok(());
            }
            if self.have == 0 && self.block.is_some_and(|block| block.ends) {
                self.block = None;
            }
            let space = self.head.get_mut(self.have..).unwrap_or_default();
            let came = space.len().min(bytes.len());
            for (to, from) in space.iter_mut().zip(bytes) {
                *to = *from;
            }
            self.have += came;
            bytes = bytes.get(came..).unwrap_or_default();
            if self.have == HEAD_BYTES {
                self.have = 0;
                self.frame()?;
            }
        }
        if self.skip == 0 && self.have == 0 && self.block.is_some_and(|block| block.ends) {
            self.block = None;
        }
        Ok(())
    }

    /// Takes account of the frame whose head has come.
    fn frame(&mut self) -> Result<(), Excess> {
        let [high, middle, low, kind, flags, ..] = self.head;
        let length = u32::from_be_bytes([0, high, middle, low]);
        self.skip = usize::try_from(length).unwrap_or(usize::MAX);
        let ends = flags & END_HEADERS != 0;
        match kind {
            DATA if length > 0 || flags & END_STREAM != 0 => Ok(()),
            HEADERS => {
                self.block = Some(Block { bytes: u64::from(length), continuations: 0, ends });
                self.check_block()
            }
            CONTINUATION => {
                if let Some(block) = &mut self.block {
                    block.bytes += u64::from(length);
                    block.continuations += 1;
                    block.ends = ends;
                }
                if length == 0 {
                    self.spend()?;
                }
                self.check_block()
            }
            SETTINGS if length > MOST_SETTINGS_BYTES => Err(Excess::Settings),
            WINDOW_UPDATE if self.explaining >= EXPLAINING_BYTES => {
                self.explaining -= EXPLAINING_BYTES;
                Ok(())
            }
            _ => self.spend(),
        }
    }

    fn check_block(&self) -> Result<(), Excess> {
        let fits = |block: &Block| block.bytes <= self.most_block_bytes && block.continuations <= MOST_CONTINUATIONS;
        if self.block.as_ref().is_none_or(fits) { Ok(()) } else { Err(Excess::Head) }
    }

    /// One more frame that moves nothing.
    fn spend(&mut self) -> Result<(), Excess> {
        if self.spare == 0 {
            let earned = self.since.elapsed().as_millis() * u128::from(IDLE_FRAMES_A_SECOND) / 1000;
            self.spare = u32::try_from(earned).unwrap_or(u32::MAX).min(IDLE_FRAMES);
            self.since = Instant::now();
        }
        self.spare = self.spare.checked_sub(1).ok_or(Excess::IdleFrames)?;
        Ok(())
    }

    /// `bytes` more were sent to the client.
    fn sent(&mut self, bytes: usize) {
        self.explaining = self.explaining.saturating_add(bytes as u64).min(MOST_EXPLAINING_BYTES);
    }

    /// Whether a head, or what may become one, came in part.
    fn is_amid_head(&self) -> bool {
        self.have > 0 || self.block.is_some()
    }
}

impl<T> Counted<T> {
    /// Counts what comes from `io`.
    pub(super) fn new(io: T, limits: &Limits) -> Self {
        // The library answers a head somewhat over its bound.
        let count = Count::new((limits.head_bytes as u64).saturating_mul(4));
        let patience = Patience { bytes: limits.discard_bytes, time: limits.discard_timeout };
        Self { io, count, head_timeout: limits.head_timeout, deadline: None, patience, closing: None }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, out) else {
            if let Some(deadline) = &mut this.deadline {
                ready!(deadline.as_mut().poll(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            return Poll::Pending;
        };
        read?;
        let came = out.filled().get(before..).unwrap_or_default();
        if let Err(excess) = this.count.read(came) {
            out.set_filled(before);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, excess.as_str())));
        }
        if !this.count.is_amid_head() {
            this.deadline = None;
        } else if this.deadline.is_none() {
            this.deadline = Some(Box::pin(tokio::time::sleep(this.head_timeout)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = ready!(Pin::new(&mut this.io).poll_write(cx, bytes))?;
        this.count.sent(sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, parts))?;
        this.count.sent(sent);
        Poll::Ready(Ok(sent))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        }
        this.closing.get_or_insert_with(|| Lingering::new(this.patience)).poll(&mut this.io, cx).map(Ok)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    const PING: u8 = 6;
    const RST_STREAM: u8 = 3;

    fn frame(kind: u8, flags: u8, length: u16) -> Vec<u8> {
        let [middle, low] = length.to_be_bytes();
        [&[0, middle, low, kind, flags, 0, 0, 0, 1][..], &vec![0; usize::from(length)]].concat()
    }

    fn after_preface() -> Count {
        let mut count = Count::new(128 * 1024);
        count.read(&[0; PREFACE_BYTES]).unwrap();
        count
    }

    /// How many of `frame` are taken, however the bytes are cut.
    fn taken(frame: &[u8], most: usize) -> usize {
        let counts = [1, 7, 9, 4096].map(|cut| {
            let mut count = after_preface();
            (0..most).take_while(|_| frame.chunks(cut).all(|part| count.read(part).is_ok())).count()
        });
        let [first, rest @ ..] = counts;
        assert!(rest.iter().all(|taken| taken.abs_diff(first) < 200), "{counts:?}");
        first
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_move_nothing_have_a_bound() {
        for frame in [
            frame(DATA, 0, 0),
            frame(2, 0, 5),
            frame(RST_STREAM, 0, 4),
            frame(SETTINGS, 0, 6),
            frame(SETTINGS, 1, 0),
            frame(PING, 0, 8),
            frame(PING, 1, 8),
            frame(WINDOW_UPDATE, 0, 4),
            frame(99, 0, 3),
        ] {
            assert_eq!(taken(&frame, 5000), IDLE_FRAMES as usize, "{frame:?}");
        }
        assert_eq!(taken(&frame(DATA, 0, 1000), 5000), 5000);
        assert_eq!(taken(&frame(HEADERS, END_HEADERS, 100), 5000), 5000);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_be_sent_grows_with_time_and_with_what_was_received() {
        let mut count = after_preface();
        let ping = frame(PING, 0, 8);
        for _ in 0..IDLE_FRAMES {
            count.read(&ping).unwrap();
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..IDLE_FRAMES_A_SECOND {
            count.read(&ping).unwrap();
        }
        count.sent(10 * 512);
        for _ in 0..10 {
            count.read(&frame(WINDOW_UPDATE, 0, 4)).unwrap();
        }
        assert_eq!(count.read(&frame(WINDOW_UPDATE, 0, 4)), Err(Excess::IdleFrames));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_a_bound_in_frames_and_in_bytes() {
        let mut count = after_preface();
        count.read(&frame(HEADERS, 0, 10)).unwrap();
        for _ in 0..MOST_CONTINUATIONS {
            count.read(&frame(CONTINUATION, 0, 1)).unwrap();
        }
        assert!(count.is_amid_head());
        assert_eq!(count.read(&frame(CONTINUATION, 0, 1)), Err(Excess::Head));

        let mut count = after_preface();
        count.read(&frame(HEADERS, 0, 60_000)).unwrap();
        count.read(&frame(CONTINUATION, 0, 60_000)).unwrap();
        assert_eq!(count.read(&frame(CONTINUATION, END_HEADERS, 60_000)), Err(Excess::Head));

        let mut count = after_preface();
        count.read(&frame(HEADERS, 0, 60_000)).unwrap();
        count.read(&frame(CONTINUATION, END_HEADERS, 60_000)).unwrap();
        assert!(!count.is_amid_head());
        assert_eq!(count.read(&frame(SETTINGS, 0, 6 * 33)), Err(Excess::Settings));
    }
}
