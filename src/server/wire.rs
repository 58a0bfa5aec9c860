//! One strict reading of HTTP/1.1 in front of the HTTP library's.
//!
//! The library is lenient where two readers could differ (a `Content-Length` beside `Transfer-Encoding`, a bare line
//! feed, a fragment in the target) and decides before anyone is asked. So bytes from a client are framed here first,
//! and only heads with one reading go on. In place of one without, the library is given a stand-in request, for which
//! the gateway answers with the fault.
//!
//! Source: RFC 9112, sections 2 to 7.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use crate::{
    gateway::{Activity, Fault},
    io::poll_read_at_most,
    limits::{Limit, Limits},
};

mod chunks;
mod head;

use super::linger::{Lingering, Patience};
use chunks::Chunks;

/// What the library reads in place of a request that cannot be taken.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused.invalid\r\nconnection: close\r\n\r\n";

/// How much of the requests after the one under way is read ahead, so that a client that leaves is noticed; one read
/// more at most.
const READ_AHEAD_BYTES: usize = 16 * 1024;

/// What is read of a request that ends a rest.
const FIRST_READ: usize = 4096;

/// The most that is read at a time: a record of TLS, and not so much that the library takes more space for the next.
const MOST_READ: usize = 16 * 1024 - 1;

/// The same while a body comes: several records, for what is read at a time is sent to the upstream by itself.
const MOST_READ_OF_A_BODY: usize = 3 * 16 * 1024;

/// What the reader of a connection tells the one who answers on it.
#[derive(Debug, Default)]
pub struct Refusal(OnceLock<(u64, Fault)>);

/// A connection whose incoming bytes are checked before they go on.
#[derive(Debug)]
pub struct Checked<T> {
    io: T,
    refusal: Arc<Refusal>,
    activity: Arc<Activity>,
    bounds: Bounds,
    framing: Framing,
    /// Bytes that came and did not go on yet.
    held: BytesMut,
    /// How many of them may.
    ready: usize,
    /// How many of the others were looked through for the end of a head.
    searched: usize,
    heads: u64,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Once our side is closed: what the client still sends is thrown away, so that it reads the answer and not a reset.
    closing: Option<Lingering>,
}

#[derive(Clone, Copy, Debug)]
struct Bounds {
    head_bytes: usize,
    headers: usize,
    head_timeout: Duration,
    patience: Patience,
}

#[derive(Debug)]
enum Framing {
    Head,
    Body {
        left: u64,
    },
    Chunked(Chunks),
    /// A body is malformed; the library is told once it has read what came before.
    Broken,
    /// Nothing that comes is of interest any more.
    Refused,
}

impl Refusal {
    /// Why the request at `place`, counted from 0, is a stand-in, if it is one.
    pub fn of(&self, place: u64) -> Option<Fault> {
        self.0.get().filter(|(at, _)| *at == place).map(|(_, fault)| *fault)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Checked<T> {
    /// Checks what comes from `io` and tells `refusal`; `activity` tells when its client was indulged enough.
    pub fn new(io: T, limits: &Limits, refusal: Arc<Refusal>, activity: Arc<Activity>) -> Self {
        let bounds = Bounds {
            head_bytes: limits.head_bytes,
            headers: limits.headers,
            head_timeout: limits.head_timeout,
            patience: Patience { bytes: limits.discard_bytes, time: limits.discard_timeout },
        };
        Self {
            io,
            refusal,
            activity,
            bounds,
            framing: Framing::Head,
            held: BytesMut::new(),
            ready: 0,
            searched: 0,
            heads: 0,
            deadline: Some(Box::pin(tokio::time::sleep(bounds.head_timeout))),
            closing: None,
        }
    }

    /// Looks at what is held and not ready, and makes ready what has one reading.
    fn check(&mut self) {
        while let Some(rest) = self.held.get(self.ready..).filter(|rest| !rest.is_empty()) {
            match &mut self.framing {
                Framing::Head if self.activity.finished() < self.heads => return,
                Framing::Head => {
                    let found = head::end(rest, self.searched, self.bounds.head_bytes);
                    match found.and_then(|end| end.map(|end| head::read(rest, end, self.bounds.headers)).transpose()) {
                        Ok(None) => {
                            self.searched = rest.len();
                            return;
                        }
                        Ok(Some((length, body))) => {
                            self.ready += length;
                            self.searched = 0;
                            self.heads += 1;
                            self.deadline = None;
                            self.framing = match body {
                                head::Body::None => Framing::Head,
                                head::Body::Length(left) => Framing::Body { left },
                                head::Body::Chunked => Framing::Chunked(Chunks::default()),
                            };
                        }
                        Err(fault) => return self.refuse(fault),
                    }
                }
                Framing::Body { left } => {
                    let now = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    self.ready += now;
                    *left -= now as u64;
                    if *left == 0 {
                        self.framing = Framing::Head;
                    }
                }
                Framing::Chunked(chunks) => {
                    let Ok((now, ended)) = chunks.read(rest) else {
                        self.framing = Framing::Broken;
                        return;
                    };
                    self.ready += now;
                    if ended {
                        self.framing = Framing::Head;
                    }
                }
                Framing::Broken | Framing::Refused => return,
            }
        }
    }

    fn refuse(&mut self, fault: Fault) {
        let _ = self.refusal.0.set((self.heads, fault));
        self.framing = Framing::Refused;
        self.deadline = None;
        self.held.truncate(self.ready);
        self.held.extend_from_slice(STAND_IN);
        self.ready = self.held.len();
    }

    /// Whether what comes now belongs to a later request than the one that is being answered.
    ///
    /// The library reads on during an answer, and so sees that its client left, only while it holds nothing of the
    /// next request.
    fn is_ahead(&self) -> bool {
        matches!(self.framing, Framing::Head) && self.activity.finished() < self.heads
    }

    /// Waits until the client sends something, which is kept for the next reader, or ends; whether it was the first. To be
    /// called between two requests.
    pub fn stirred(&mut self) -> impl Future<Output = bool> + '_ {
        if self.held.is_empty() {
            self.held = BytesMut::new();
        }
        std::future::poll_fn(|cx| {
            let mut space = [0; FIRST_READ];
            let mut first = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut self.io).poll_read(cx, &mut first));
            self.held.extend_from_slice(first.filled());
            self.activity.note_rest(false);
            Poll::Ready(read.is_ok() && !first.filled().is_empty())
        })
    }

    /// Whether nothing of a request is left here and none is refused, so that another reader may go on from here.
    pub fn is_at_rest(&self) -> bool {
        self.is_between_requests() && self.closing.is_none()
    }

    fn is_between_requests(&self) -> bool {
        matches!(self.framing, Framing::Head) && self.held.is_empty()
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Checked<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.ready > 0 {
                let now = this.ready.min(out.remaining());
                out.put_slice(this.held.get(..now).unwrap_or_default());
                this.held.advance(now);
                this.ready -= now;
                return Poll::Ready(Ok(()));
            }
            if this.activity.is_switched() {
                // What comes is no longer HTTP.
                this.deadline = None;
                if this.held.is_empty() {
                    return Pin::new(&mut this.io).poll_read(cx, out);
                }
                this.ready = this.held.len();
                continue;
            }
            match this.framing {
                Framing::Broken => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Framing::Refused => return Poll::Pending,
                Framing::Head | Framing::Body { .. } | Framing::Chunked(_) => {}
            }
            if !this.held.is_empty() {
                this.check();
                if this.ready > 0 || matches!(this.framing, Framing::Broken) {
                    continue;
                }
                if this.is_ahead() {
                    this.activity.wake_when_finished(cx.waker());
                    // It may have ended meanwhile.
                    if !this.is_ahead() {
                        continue;
                    }
                    if this.held.len() >= READ_AHEAD_BYTES {
                        return Poll::Pending;
                    }
                } else if this.deadline.is_none() && matches!(this.framing, Framing::Head) {
                    this.deadline = Some(Box::pin(tokio::time::sleep(this.bounds.head_timeout)));
                }
            }
            let before = out.filled().len();
            let most = if matches!(this.framing, Framing::Body { .. }) { MOST_READ_OF_A_BODY } else { MOST_READ };
            let Poll::Ready(read) = poll_read_at_most(&mut this.io, cx, out, most) else {
                this.activity.note_rest(this.is_between_requests());
                if let Some(deadline) = &mut this.deadline {
                    ready!(deadline.as_mut().poll(cx));
                    this.activity.hit(Limit::HeadTimeout);
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                return Poll::Pending;
            };
            this.activity.note_rest(false);
            read?;
            let came = out.filled().get(before..).unwrap_or_default();
            if came.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Framing::Body { left } = &mut this.framing
                && this.held.is_empty()
                && came.len() as u64 <= *left
            {
                *left -= came.len() as u64;
                if *left == 0 {
                    this.framing = Framing::Head;
                }
                return Poll::Ready(Ok(()));
            }
            this.held.extend_from_slice(came);
            out.set_filled(before);
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Checked<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        if written.is_pending() {
            this.activity.note_unsent(true);
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, parts);
        if written.is_pending() {
            this.activity.note_unsent(true);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        this.activity.note_unsent(flushed.is_pending());
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.activity.note_rest(false);
        if this.closing.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            if this.is_between_requests() || this.activity.is_indulged() {
                return Poll::Ready(Ok(()));
            }
        }
        let lingering = this.closing.get_or_insert_with(|| Lingering::new(this.bounds.patience));
        lingering.poll(&mut this.io, cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::limits::Hits;

    #[tokio::test]
    async fn a_connection_rests_only_when_all_is_read_and_written() {
        let (mut client, server) = tokio::io::duplex(16);
        let activity = Activity::new(&Arc::new(Hits::default()));
        let mut checked = Checked::new(server, &Limits::default(), Arc::default(), Arc::clone(&activity));
        drop(crate::gateway::Busy::new(&activity));
        let mut space = [0; 64];
        assert!(poll!(std::pin::pin!(checked.read(&mut space))).is_pending());
        assert!(activity.rests(Duration::ZERO), "nothing is left");
        assert!(!activity.rests(Duration::from_secs(5)), "not for long");
        assert!(poll!(std::pin::pin!(checked.write_all(&[7; 40]))).is_pending());
        assert!(!activity.rests(Duration::ZERO), "something is still to be written");
        client.read_exact(&mut space[..16]).await.unwrap();
        checked.flush().await.unwrap();
        assert!(activity.rests(Duration::ZERO));
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        assert!(poll!(std::pin::pin!(checked.read(&mut space))).is_pending());
        assert!(!activity.rests(Duration::ZERO), "a request has begun");
    }
}
