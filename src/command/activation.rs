//! The listening socket that a service manager opened for this process (`LISTEN_FDS`).

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use listenfd::ListenFd;

use crate::server;

/// What was handed over to this process.
pub(super) struct Inherited(ListenFd);

impl Inherited {
    /// Takes it, so that nobody takes it again. To be called before a thread is started, for it changes the environment.
    pub(super) fn take() -> Self {
        Self(ListenFd::from_env())
    }

    /// As if nothing was handed over.
    pub(super) fn nothing() -> Self {
        Self(ListenFd::empty())
    }

    /// The listener, if one was handed over; it serves in place of one at `configured`.
    ///
    /// # Errors
    /// More than one socket, or something that is no TCP socket that listens.
    pub(super) fn listener(mut self, configured: SocketAddr) -> io::Result<Option<TcpListener>> {
        let count = self.0.len();
        if count > 1 {
            return Err(io::Error::other(format!("there are {count} of them, and one is expected")));
        }
        let Some(listener) = self.0.take_tcp_listener(0)? else { return Ok(None) };
        let listener = server::adopt(listener)?;
        let address = listener.local_addr()?;
        if address == configured {
            tracing::info!(%address, "the listening socket was handed over");
        } else {
            tracing::warn!(
                %address, %configured,
                "the listening socket that was handed over is not that of `address` under [listener], which is not bound"
            );
        }
        Ok(Some(listener))
    }
}
