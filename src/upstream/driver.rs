//! Who moves an HTTP/1.1 connection on.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
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
/// An answer that comes whole with its head, as most do, is waited for by whoever asks: a task of the connection's own would
/// have to be woken for the request and to wake for the answer.
#[derive(Debug)]
pub(super) enum Driver {
    Asker(Box<Connection>),
    Task(Task),
    /// A task in which the connection may become another protocol's.
    Tunnel(Aborting),
    /// The connection has ended.
    Nobody,
}

/// A task, and the connection for as long as that is to move it.
#[derive(Debug)]
pub(super) struct Task {
    connection: Arc<Mutex<Option<Box<Connection>>>>,
    _task: Aborting,
}

/// A task that ends with this.
#[derive(Debug)]
pub(super) struct Aborting(Option<AbortHandle>);

impl Driver {
    /// Whoever asks.
    pub(super) fn asker(connection: Connection) -> Self {
        Self::Asker(Box::new(connection))
    }

    /// A task, in which the connection may become another protocol's.
    pub(super) fn tunnel(connection: Connection) -> Self {
        let task = tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Self::Tunnel(Aborting(Some(task.abort_handle())))
    }

    /// Has a task move the connection from here on.
    pub(super) fn hand_over(&mut self) {
        match std::mem::replace(self, Self::Nobody) {
            Self::Asker(connection) => *self = Self::Task(Task::new(connection)),
            other => *self = other,
        }
    }

    /// Has whoever asks move it again.
    pub(super) fn take_back(&mut self) {
        if let Self::Task(task) = self {
            *self = task.take().map_or(Self::Nobody, Self::Asker);
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
        if let Self::Tunnel(mut task) = self {
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

impl Task {
    fn new(connection: Box<Connection>) -> Self {
        let connection = Arc::new(Mutex::new(Some(connection)));
        let moved = Arc::clone(&connection);
        // It ends with the connection, or when that is taken.
        let task = tokio::spawn(poll_fn(move |cx| {
            let mut moved = moved.lock().unwrap_or_else(PoisonError::into_inner);
            let ended = moved.as_mut().is_none_or(|connection| Pin::new(&mut **connection).poll(cx).is_ready());
            if ended {
                *moved = None;
                return Poll::Ready(());
            }
            Poll::Pending
        }));
        Self { connection, _task: Aborting(Some(task.abort_handle())) }
    }

    fn take(&self) -> Option<Box<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // At once, and not when the task has its turn.
        drop(self.take());
    }
}

impl Drop for Aborting {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
