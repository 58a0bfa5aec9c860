//! A close that lets the client read what it was sent last: a connection that is closed while something comes in is reset,
//! and what was still on its way to the client is lost with it.
//!
//! Source: RFC 9112, section 9.6.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Sleep,
};

/// How much of what still comes is thrown away, and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) bytes: u64,
    pub(super) time: Duration,
}

/// A connection whose own side is closed.
#[derive(Debug)]
pub(super) struct Lingering {
    deadline: Pin<Box<Sleep>>,
    left: u64,
}

impl Lingering {
    /// From now on.
    pub(super) fn new(patience: Patience) -> Self {
        Self { deadline: Box::pin(tokio::time::sleep(patience.time)), left: patience.bytes }
    }

    /// Throws away what comes from `io`, until the client is done, or the patience is over.
    pub(super) fn poll<T: AsyncRead + Unpin>(&mut self, io: &mut T, cx: &mut Context<'_>) -> Poll<()> {
        let mut space = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut *io).poll_read(cx, &mut buf) {
                Poll::Pending => {
                    ready!(self.deadline.as_mut().poll(cx));
                    return Poll::Ready(());
                }
                Poll::Ready(Ok(())) if !buf.filled().is_empty() && self.left > 0 => {
                    self.left = self.left.saturating_sub(buf.filled().len() as u64);
                }
                Poll::Ready(_) => return Poll::Ready(()),
            }
        }
    }
}
