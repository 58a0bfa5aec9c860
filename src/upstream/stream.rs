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
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

use crate::io::poll_read_at_most;

/// The most that is read at a time: two records of TLS, and not so much that the library takes more space for the next.
const MOST_READ: usize = 32 * 1024 - 1;

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Stream {
    io: Io,
    /// Whether anything of an answer has come since the connection was last written to.
    pub(super) answering: Answering,
    /// What may come before the head of an answer is whole.
    pub(super) patience: Patience,
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
#[derive(Clone, Debug)]
pub(super) struct Socket(pub(super) Arc<TcpStream>);

/// Whether anything of an answer has come since a connection was last written to.
#[derive(Clone, Debug, Default)]
pub(super) struct Answering(Arc<AtomicBool>);

/// How many bytes may still come before the head of an answer is whole: interim answers have no other bound, and a flood
/// of them would be read without anyone else getting a turn.
#[derive(Clone, Debug)]
pub(super) struct Patience(Arc<AtomicUsize>);

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

    pub(super) fn is_exhausted(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    fn spend(&self, bytes: usize) -> io::Result<()> {
        let left = self.0.load(Ordering::Relaxed);
        if left == Self::ENDLESS {
            return Ok(());
        }
        self.0.store(left.saturating_sub(bytes), Ordering::Relaxed);
        if bytes < left { Ok(()) } else { Err(io::Error::other("too many bytes before an answer")) }
    }
}

impl Socket {
    /// Whether the server has said or closed something that nobody has read yet.
    fn is_stirred(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let looked = socket2::SockRef::from(&*self.0).peek(&mut byte);
        !looked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl Stream {
    pub(super) fn new(io: Io, address: Option<SocketAddr>, is_http2: bool) -> Self {
        let left = if is_http2 { Patience::ENDLESS } else { Patience::MOST };
        let patience = Patience(Arc::new(AtomicUsize::new(left)));
        Self { io, answering: Answering::default(), patience, address, is_http2 }
    }

    /// A look at the connection while another reads it, where it is plain TCP.
    pub(super) fn watcher(&self) -> Option<Watcher> {
        match &self.io {
            Io::Plain(socket) => Some(Watcher(socket.clone())),
            Io::Unix(_) | Io::Tls(_) => None,
        }
    }
}

/// Looks at a plain connection that is kept.
#[derive(Debug)]
pub(super) struct Watcher(Socket);

impl Watcher {
    /// Whether the server has said or closed something while nothing was asked of it.
    pub(super) fn is_stirred(&self) -> bool {
        self.0.is_stirred()
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            std::task::ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read_buf(buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Socket {
    fn poll_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            std::task::ready!(self.0.poll_write_ready(cx))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
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
        Poll::Ready(socket2::SockRef::from(&*self.0).shutdown(std::net::Shutdown::Write))
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
