//! A client's body on its way to an upstream.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::{End, Error};

/// The body of a request to an upstream.
#[derive(Debug)]
pub enum Outbound {
    /// Bytes that are here; empty for none.
    Whole(Option<Bytes>),
    /// Bytes that come as the client sends them.
    Streamed(Streamed),
}

/// A client's body on its way to an upstream, with the bounds of what is passed on.
///
/// It can be offered to several servers, one after the other, until the first has begun to take it.
#[derive(Clone, Debug)]
pub struct Upload {
    source: Arc<Mutex<Option<Incoming>>>,
    progress: Arc<Progress>,
    end: End,
    limit_bytes: u64,
    rate: u64,
    window: Duration,
    hint: SizeHint,
}

/// What became of an [`Upload`], for those who watch it.
#[derive(Debug)]
pub struct Progress {
    bytes: AtomicU64,
    begun: AtomicBool,
    abandoned: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    moved: Instant,
    waits_for_client: bool,
    fault: Option<Error>,
}

/// The [`Upload`] as the one server that takes it reads it.
#[derive(Debug)]
pub struct Streamed {
    upload: Upload,
    incoming: Option<Incoming>,
    allowance: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Upload {
    /// Wraps `incoming`, of which at most `limit_bytes` are passed on, at no less than `rate` bytes a second over
    /// `window` of waiting for the client.
    pub fn new(incoming: Incoming, end: End, limit_bytes: u64, rate: u64, window: Duration) -> Self {
        let hint = incoming.size_hint();
        let state = State { moved: Instant::now(), waits_for_client: false, fault: None };
        let (bytes, begun, abandoned) = (AtomicU64::new(0), AtomicBool::new(false), AtomicBool::new(false));
        let progress = Progress { bytes, begun, abandoned, state: Mutex::new(state) };
        Self {
            source: Arc::new(Mutex::new(Some(incoming))),
            progress: Arc::new(progress),
            end,
            limit_bytes,
            rate,
            window,
            hint,
        }
    }

    /// The body for one try.
    pub fn offer(&self) -> Streamed {
        Streamed { upload: self.clone(), incoming: None, allowance: self.window, waiting: None }
    }

    /// Its progress.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// What is left of it, once nobody reads it any more.
    pub fn into_unread(self) -> Option<Incoming> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Progress {
    /// Bytes that came from the client so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether a server has begun to take it.
    pub fn begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed)
    }

    /// Why it was broken off by the client's fault.
    pub fn fault(&self) -> Option<Error> {
        self.state().fault
    }

    /// Has nothing more of it passed on: the answer has ended.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// When it last moved; `None` while it is the client that is waited for.
    pub fn moved(&self) -> Option<Instant> {
        let state = self.state();
        (!state.waits_for_client).then_some(state.moved)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self) {
        self.state().waits_for_client = true;
    }

    fn step(&self) {
        let mut state = self.state();
        (state.moved, state.waits_for_client) = (Instant::now(), false);
    }

    fn fail(&self, error: Error) -> Error {
        let mut state = self.state();
        (state.fault, state.waits_for_client) = (Some(error), false);
        error
    }
}

impl Streamed {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let progress = Arc::clone(&self.upload.progress);
        if self.incoming.is_none() {
            self.incoming = self.upload.source.lock().unwrap_or_else(PoisonError::into_inner).take();
            progress.begun.store(true, Ordering::Relaxed);
        }
        if progress.abandoned.load(Ordering::Relaxed) {
            return Poll::Ready(Some(Err(Error::Broken)));
        }
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(Some(Err(progress.fail(Error::Broken)))) };
        loop {
            let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
                progress.wait();
                let (_, timer) =
                    self.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(tokio::time::sleep(self.allowance))));
                ready!(timer.as_mut().poll(cx));
                return Poll::Ready(Some(Err(progress.fail(Error::TooSlow))));
            };
            if let Some((since, _)) = self.waiting.take() {
                self.allowance = self.allowance.saturating_sub(since.elapsed());
            }
            match frame {
                None if self.upload.end.holds(incoming) => {
                    progress.step();
                    return Poll::Ready(None);
                }
                None | Some(Err(_)) => return Poll::Ready(Some(Err(progress.fail(Error::Broken)))),
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let length = data.len() as u64;
                    let earned = Duration::from_micros(length.saturating_mul(1_000_000) / self.upload.rate.max(1));
                    self.allowance = (self.allowance + earned).min(self.upload.window);
                    progress.step();
                    let total = progress.bytes.fetch_add(length, Ordering::Relaxed) + length;
                    if total > self.upload.limit_bytes {
                        return Poll::Ready(Some(Err(progress.fail(Error::TooLarge))));
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
            }
        }
    }
}

impl Drop for Streamed {
    /// Puts back what was not read, for whoever sees to it that the client can read its answer.
    fn drop(&mut self) {
        if let Some(incoming) = self.incoming.take() {
            *self.upload.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(incoming);
        }
    }
}

impl Body for Outbound {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed(streamed) => streamed.poll_data(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Streamed(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Streamed(streamed) => streamed.upload.hint,
        }
    }
}
