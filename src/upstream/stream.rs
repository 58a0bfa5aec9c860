//! A connection to a server, and what can be known of it while another reads it.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream, UnixStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_rustls::client::TlsStream;

use crate::io::poll_read_at_most;

/// The most that is read at a time: four records of TLS, which are sent on in one call, and not so much that the library takes
/// more space for the next.
const MOST_READ: usize = 64 * 1024 - 1;

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Stream {
    io: Io,
    /// Whether anything of an answer has come since the connection was last written to.
    pub(super) answering: Answering,
    /// What may come before the head of an answer is whole, and how far it has come.
    pub(super) patience: Patience,
    lines: Lines,
    /// The address that was dialled.
    pub(super) address: Option<SocketAddr>,
    /// Whether HTTP/2 is spoken.
    pub(super) is_http2: bool,
}

/// What it runs over.
#[derive(Debug)]
pub(super) enum Io {
    Plain(Socket),
    Unix(UnixStream),
    Tls(Box<TlsStream<Socket>>),
}

/// A TCP connection that can be looked at while another reads it.
///
/// The halves are the library's, for its reader knows from a short read that nothing is left, and does without the
/// system call that says so: one of five for a request.
#[derive(Debug)]
pub(super) struct Socket {
    reader: OwnedReadHalf,
    writer: Arc<OwnedWriteHalf>,
}

/// Whether anything of an answer has come since a connection was last written to.
#[derive(Clone, Debug, Default)]
pub(super) struct Answering(Arc<AtomicBool>);

/// How many bytes may still come before the head of an answer is whole: interim answers have no other bound, and a flood
/// of them would be read without anyone else getting a turn.
#[derive(Clone, Debug)]
pub(super) struct Patience(Arc<AtomicUsize>);

/// The lines of a head as they come. The library takes a line feed alone for the end of one, where others read on.
#[derive(Debug, Default)]
struct Lines {
    /// The beginning of the first line, as far as to its status.
    first: [u8; 12],
    /// Bytes of the head so far, and of its last line.
    head: usize,
    line: usize,
    last: u8,
    /// Behind it comes a body.
    is_whole: bool,
}

impl Lines {
    /// Reads on; a head ends with an empty line, and behind one of an interim answer (1xx but 101) comes another.
    ///
    /// # Errors
    /// A line feed without a carriage return before it.
    fn read(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !self.is_whole && !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes).map(|at| at + 1);
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            for (place, byte) in self.first.iter_mut().skip(self.head).zip(part) {
                *place = *byte;
            }
            let before = part.len().checked_sub(2).and_then(|at| part.get(at)).unwrap_or(&self.last);
            if end.is_some() && *before != b'\r' {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line feed alone in an answer's head"));
            }
            self.head += part.len();
            self.line += part.len();
            self.last = part.last().copied().unwrap_or_default();
            bytes = rest;
            if end.is_some() && std::mem::take(&mut self.line) == 2 {
                let is_interim = matches!(self.first, [.., b' ', b'1', tens, ones] if (tens, ones) != (b'0', b'1'));
                *self = Self { is_whole: !is_interim, ..Self::default() };
            }
        }
        Ok(())
    }
}

impl Answering {
    /// Whether it has.
    pub(super) fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Patience {
    /// Four times the largest head: what is read at once may be part of the body.
    const MOST: usize = 1024 * 1024;
    const ENDLESS: usize = usize::MAX;

    /// An answer is waited for.
    pub(super) fn begin(&self) {
        self.0.store(Self::MOST, Ordering::Relaxed);
    }

    /// Its head has come.
    pub(super) fn end(&self) {
        self.0.store(Self::ENDLESS, Ordering::Relaxed);
    }

    /// What came is no head, and no more is waited for.
    fn lose(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Whether what came is no head, or too much.
    pub(super) fn is_exhausted(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// Whether nothing of an answer has come, since it is waited for.
    fn is_fresh(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::MOST
    }

    fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::ENDLESS
    }

    fn spend(&self, bytes: usize) -> io::Result<()> {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(bytes), Ordering::Relaxed);
        if bytes < left { Ok(()) } else { Err(io::Error::other("too many bytes before an answer")) }
    }
}

impl Stream {
    pub(super) fn new(io: Io, address: Option<SocketAddr>, is_http2: bool) -> Self {
        let left = if is_http2 { Patience::ENDLESS } else { Patience::MOST };
        let patience = Patience(Arc::new(AtomicUsize::new(left)));
        Self { io, answering: Answering::default(), patience, lines: Lines::default(), address, is_http2 }
    }

    /// A look at the connection while another reads it, where it is plain TCP.
    pub(super) fn watcher(&self) -> Option<Watcher> {
        match &self.io {
            Io::Plain(socket) => Some(Watcher(Arc::clone(&socket.writer))),
            Io::Unix(_) | Io::Tls(_) => None,
        }
    }
}

/// Looks at a plain connection that is kept.
#[derive(Debug)]
pub(super) struct Watcher(Arc<OwnedWriteHalf>);

impl Watcher {
    /// Whether the server has said or closed something while nothing was asked of it.
    pub(super) fn is_stirred(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let looked = socket2::SockRef::from((*self.0).as_ref()).peek(&mut byte);
        !looked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader, writer: Arc::new(writer) }
    }

    fn stream(&self) -> &TcpStream {
        (*self.writer).as_ref()
    }

    fn poll_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let stream = self.stream();
        loop {
            std::task::ready!(stream.poll_write_ready(cx))?;
            match write(stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().reader).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |stream| stream.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(self.stream()).shutdown(std::net::Shutdown::Write))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = match &mut this.io {
            Io::Plain(stream) => poll_read_at_most(stream, cx, buf, MOST_READ),
            Io::Unix(stream) => poll_read_at_most(stream, cx, buf, MOST_READ),
            Io::Tls(stream) => poll_read_at_most(stream.as_mut(), cx, buf, MOST_READ),
        };
        let count = buf.filled().len() - before;
        if count > 0 {
            this.answering.0.store(true, Ordering::Relaxed);
        }
        if count > 0 && !this.patience.is_over() {
            if this.patience.is_fresh() {
                this.lines = Lines::default();
            }
            let came = buf.filled().get(before..).unwrap_or_default();
            this.lines.read(came).inspect_err(|_| this.patience.lose())?;
            this.patience.spend(count)?;
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.answering.0.store(false, Ordering::Relaxed);
        match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.answering.0.store(false, Ordering::Relaxed);
        match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Io::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Unix(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Io::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_feed_alone_is_found_in_a_head_and_nowhere_else() {
        let good = [
            "HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody\nwith\n\nlines",
            "HTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n\n",
            "HTTP/1.1 101 Switching\r\n\r\na\nb",
        ];
        let bad = [
            "HTTP/1.1 200 OK\nA: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\nB: c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n\n",
            "HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\n\r\n",
            "\n",
        ];
        for step in [1, 2, 3, 7, 1000] {
            let reads = |text: &str| {
                let mut lines = Lines::default();
                text.as_bytes().chunks(step).try_for_each(|part| lines.read(part)).is_ok()
            };
            assert_eq!(good.map(reads), [true; 3], "{step}");
            assert_eq!(bad.map(reads), [false; 5], "{step}");
        }
    }
}
