//! Who moves an HTTP/1.1 connection on.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Waker},
};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;

use super::stream::Stream;
use crate::body::Outbound;

/// A connection as the library has it: nothing of it moves unless it is polled.
pub(super) type Connection = http1::Connection<TokioIo<Stream>, Outbound>;

/// Who moves a connection on. Dropped, it closes the connection.
///
/// A request that is here whole and an answer that comes whole with its head, as most do, are moved by whoever asks: a task
/// of the connection's own would have to be woken for the one and to wake for the other.
#[derive(Debug)]
pub(super) enum Driver {
    Asker(Box<Connection>),
    Task(Task),
    /// The connection has ended.
    Nobody,
}

/// A task that ends with its connection, which ends with what sends on it, or with this.
#[derive(Debug)]
pub(super) struct Task(Option<AbortHandle>);

impl Driver {
    /// Whoever asks.
    pub(super) fn asker(connection: Connection) -> Self {
        Self::Asker(Box::new(connection))
    }

    /// A task of its own, in which it may become another protocol's.
    pub(super) fn task(connection: Connection) -> Self {
        let task = tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Self::Task(Task(Some(task.abort_handle())))
    }

    /// Has a task of its own move it from here on.
    pub(super) fn hand_over(&mut self) {
        match std::mem::replace(self, Self::Nobody) {
            Self::Asker(connection) => {
                let task = tokio::spawn(async move {
                    let _ = connection.await;
                });
                *self = Self::Task(Task(Some(task.abort_handle())));
            }
            other => *self = other,
        }
    }

    /// Waits for `answered`, which the connection brings.
    pub(super) async fn drive<T>(&mut self, answered: impl Future<Output = T>) -> T {
        let mut answered = pin!(answered);
        poll_fn(|cx| {
            if self.is_pending(cx) {
                // What the connection brings comes while it is polled, just now: nobody need be woken for it.
                answered.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            } else {
                answered.as_mut().poll(cx)
            }
        })
        .await
    }

    /// Has a connection that nobody moves meanwhile notice what its server did.
    pub(super) fn look(&mut self) {
        self.is_pending(&mut Context::from_waker(Waker::noop()));
    }

    /// The connection no longer ends with this.
    pub(super) fn release(self) {
        if let Self::Task(mut task) = self {
            task.0 = None;
        }
    }

    /// Moves it on; whether whoever asks has to do that again.
    fn is_pending(&mut self, cx: &mut Context<'_>) -> bool {
        let Self::Asker(connection) = self else { return false };
        let is_pending = Pin::new(&mut **connection).poll(cx).is_pending();
        if !is_pending {
            *self = Self::Nobody;
        }
        is_pending
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
