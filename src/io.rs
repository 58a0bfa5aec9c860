//! Reading from a connection.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Reads at most `most` bytes at a time, whatever space there is.
///
/// The HTTP library doubles the space it reads into each time it is filled, and so a body in passing would hold hundreds of
/// kilobytes on each of its two connections.
pub fn poll_read_at_most<T: AsyncRead + Unpin>(
    io: &mut T,
    cx: &mut Context<'_>,
    out: &mut ReadBuf<'_>,
    most: usize,
) -> Poll<io::Result<()>> {
    if out.remaining() <= most {
        return Pin::new(io).poll_read(cx, out);
    }
    let mut part = ReadBuf::new(out.initialize_unfilled_to(most));
    let polled = Pin::new(io).poll_read(cx, &mut part);
    let length = part.filled().len();
    out.advance(length);
    polled
}
