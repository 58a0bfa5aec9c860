//! Bodies on their way through: read whole where they are verified, passed on piece by piece where they are not.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

/// Why a client's body cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    TooLarge,
    /// It did not come in time.
    TooSlow,
    /// It broke off, or its framing is malformed.
    Broken,
    /// All bodies together hold as much memory as they may.
    NoRoom,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "the body is larger than allowed",
            Self::TooSlow => "the body came too slowly",
            Self::Broken => "the body broke off or is malformed",
            Self::NoRoom => "too many bodies are being read",
        })
    }
}

impl std::error::Error for Error {}

/// Memory that bodies read whole may take, over all requests.
#[derive(Debug)]
pub struct Room {
    free: AtomicUsize,
}

/// A part of a [`Room`] that is taken until this is dropped.
#[derive(Debug)]
pub struct Taken<'r> {
    room: &'r Room,
    bytes: usize,
}

impl Room {
    /// A room of `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self { free: AtomicUsize::new(bytes) }
    }

    fn take(&self) -> Taken<'_> {
        Taken { room: self, bytes: 0 }
    }
}

impl Taken<'_> {
    fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let take = |free: usize| free.checked_sub(bytes);
        self.room.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_err(|_| Error::NoRoom)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.room.free.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// Where a body may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where the library says so, as over HTTP/1.1, whose framing shows what broke off.
    Framed,
    /// Only where the client said so: over HTTP/2 the library takes a reset without an error for an end (RFC 9113,
    /// section 8.1, which means answers).
    Said,
}

impl End {
    fn holds(self, body: &impl Body) -> bool {
        match self {
            Self::Framed => true,
            Self::Said => body.is_end_stream(),
        }
    }
}

/// Reads all of `body`, at most `limit_bytes`, within `timeout`. `declared` is what its `Content-Length` said, which
/// it must be: a browser that gives up can end a short body cleanly over HTTP/2.
///
/// # Errors
/// [`Error`]; the body is not read further then, and its rest is in the connection.
pub async fn read_whole<'r, B: Body<Data = Bytes> + Unpin>(
    body: &mut B,
    declared: Option<u64>,
    end: End,
    limit_bytes: u64,
    timeout: Duration,
    room: &'r Room,
) -> Result<(Bytes, Taken<'r>), Error> {
    if declared.is_some_and(|length| length > limit_bytes) {
        return Err(Error::TooLarge);
    }
    let mut taken = room.take();
    let reading = async {
        let mut first = Bytes::new();
        let mut whole = BytesMut::new();
        let mut length = 0_u64;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Error::Broken)?.into_data() else { continue };
            length += data.len() as u64;
            if length > limit_bytes {
                return Err(Error::TooLarge);
            }
            taken.grow(data.len())?;
            if first.is_empty() && whole.is_empty() {
                first = data;
            } else {
                if whole.is_empty() {
                    whole.extend_from_slice(&std::mem::take(&mut first));
                }
                whole.extend_from_slice(&data);
            }
        }
        if declared.is_some_and(|declared| declared != length) || !end.holds(body) {
            return Err(Error::Broken);
        }
        Ok(if whole.is_empty() { first } else { whole.freeze() })
    };
    let whole = tokio::time::timeout(timeout, reading).await.map_err(|_| Error::TooSlow)??;
    Ok((whole, taken))
}

/// Throws away what comes of `body`, at most `limit_bytes` within `timeout`, so that a client that is still sending
/// gets to read its answer.
///
/// Source: RFC 9112, section 9.6; over HTTP/1.1 browsers lose an answer that is followed by a reset.
pub async fn discard(mut body: Incoming, limit_bytes: u64, timeout: Duration) {
    let reading = async {
        let mut length = 0_u64;
        while let Some(Ok(frame)) = body.frame().await {
            length += frame.data_ref().map_or(0, |data| data.len() as u64);
            if length > limit_bytes {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(timeout, reading).await;
}

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
        let progress = Progress { bytes: AtomicU64::new(0), begun: AtomicBool::new(false), state: Mutex::new(state) };
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

/// How fast a client takes an answer, where that cannot be seen on the connection: over HTTP/2 a stream without window
/// stands still while the connection lives.
///
/// The client may keep us waiting for `patience` in all; what it takes earns that back at `rate` bytes a second.
#[derive(Debug)]
pub struct Pace {
    patience: Duration,
    rate: u64,
    taking: Mutex<Taking>,
}

#[derive(Debug)]
struct Taking {
    allowance: Duration,
    /// Since when something was there for the client to take.
    since: Option<Instant>,
}

impl Pace {
    /// Of a client that has nothing to take yet.
    pub fn new(patience: Duration, rate: u64) -> Arc<Self> {
        Arc::new(Self { patience, rate, taking: Mutex::new(Taking { allowance: patience, since: None }) })
    }

    /// Ends when the client has kept us waiting for too long.
    pub async fn too_slow(&self) {
        loop {
            let now = Instant::now();
            let deadline = {
                let taking = self.taking();
                taking.since.map_or(now + self.patience, |since| since + taking.allowance)
            };
            if deadline <= now {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }

    fn taking(&self) -> MutexGuard<'_, Taking> {
        self.taking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is there for the client to take, after it took `bytes`.
    fn offer(&self, bytes: usize) {
        let earned = Duration::from_micros((bytes as u64).saturating_mul(1_000_000) / self.rate.max(1));
        let mut taking = self.taking();
        taking.allowance = (taking.allowance + earned).min(self.patience);
        taking.since = Some(Instant::now());
    }

    /// The client has room for more.
    fn ask(&self) {
        let mut taking = self.taking();
        if let Some(since) = taking.since.take() {
            taking.allowance = taking.allowance.saturating_sub(since.elapsed());
        }
    }
}

/// The body of an answer to a client. `T` is held until the body was sent or given up, and told how it ended.
#[derive(Debug)]
pub struct Answer<T: Ending> {
    source: Source,
    sent_bytes: u64,
    ending: Option<T>,
    pace: Option<Arc<Pace>>,
}

/// Who wants to know how an answer ended.
pub trait Ending: Unpin {
    /// Called once: `bytes` of the body were handed to the connection; `complete` unless it broke off.
    fn ended(self, bytes: u64, complete: bool);
}

#[derive(Debug)]
enum Source {
    Whole(Option<Bytes>),
    Upstream { incoming: Incoming, idle_timeout: Duration, idle: Option<Pin<Box<Sleep>>> },
}

/// The upstream's answer broke off; the client must see that it did.
#[derive(Debug)]
pub struct BrokenOff;

impl fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the upstream's answer broke off")
    }
}

impl std::error::Error for BrokenOff {}

impl<T: Ending> Answer<T> {
    /// An answer of our own.
    pub fn whole(bytes: Bytes, ending: T) -> Self {
        let source = Source::Whole(if bytes.is_empty() { None } else { Some(bytes) });
        Self { source, sent_bytes: 0, ending: Some(ending), pace: None }
    }

    /// An answer of our own, of which nobody wants to know how it ended.
    pub fn unrecorded(bytes: Bytes) -> Self {
        Self { source: Source::Whole(Some(bytes)), sent_bytes: 0, ending: None, pace: None }
    }

    /// An upstream's answer, which may pause for `idle_timeout` at the most.
    pub fn upstream(incoming: Incoming, idle_timeout: Duration, ending: T) -> Self {
        let source = Source::Upstream { incoming, idle_timeout, idle: None };
        Self { source, sent_bytes: 0, ending: Some(ending), pace: None }
    }

    /// The same, with `pace` told what the client takes.
    #[must_use]
    pub fn paced(mut self, pace: Option<Arc<Pace>>) -> Self {
        if let Some(pace) = &pace {
            pace.offer(0);
        }
        self.pace = pace;
        self
    }

    fn end(&mut self, complete: bool) {
        if let Some(ending) = self.ending.take() {
            ending.ended(self.sent_bytes, complete);
        }
    }
}

impl<T: Ending> Body for Answer<T> {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let this = self.get_mut();
        if let Some(pace) = &this.pace {
            pace.ask();
        }
        let next = loop {
            match &mut this.source {
                Source::Whole(bytes) => break bytes.take().map(Ok),
                Source::Upstream { incoming, idle_timeout, idle } => {
                    let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
                        let timer = idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(*idle_timeout)));
                        ready!(timer.as_mut().poll(cx));
                        break Some(Err(BrokenOff));
                    };
                    *idle = None;
                    match frame {
                        None => break None,
                        Some(Err(_)) => break Some(Err(BrokenOff)),
                        // Trailers could name an identity; none are passed on.
                        Some(Ok(frame)) => {
                            if let Ok(data) = frame.into_data() {
                                break Some(Ok(data));
                            }
                        }
                    }
                }
            }
        };
        match next {
            Some(Ok(data)) => {
                this.sent_bytes += data.len() as u64;
                if let Some(pace) = &this.pace {
                    pace.offer(data.len());
                }
                if this.is_end_stream() {
                    this.end(true);
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => {
                this.end(false);
                Poll::Ready(Some(Err(error)))
            }
            None => {
                this.end(true);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(bytes) => bytes.is_none(),
            Source::Upstream { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Upstream { incoming, .. } => incoming.size_hint(),
        }
    }
}

impl<T: Ending> Drop for Answer<T> {
    fn drop(&mut self) {
        let complete = self.is_end_stream();
        self.end(complete);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body of these frames, which then stops, ended by its client or not.
    struct Frames {
        frames: Vec<&'static str>,
        is_ended: bool,
    }

    impl Body for Frames {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            let frames = &mut self.get_mut().frames;
            let next = (!frames.is_empty()).then(|| Ok(Frame::data(Bytes::from(frames.remove(0)))));
            Poll::Ready(next)
        }

        fn is_end_stream(&self) -> bool {
            self.is_ended
        }
    }

    fn read(frames: &[&'static str], is_ended: bool, declared: Option<u64>, end: End) -> Result<Bytes, Error> {
        let room = Room::new(10);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut body = Frames { frames: frames.to_vec(), is_ended };
        let reading = read_whole(&mut body, declared, end, 8, Duration::from_secs(5), &room);
        let whole = runtime.block_on(reading).map(|(whole, _)| whole);
        assert_eq!(room.free.load(Ordering::Relaxed), 10, "what was taken is given back");
        whole
    }

    #[test]
    fn a_body_is_whole_only_with_all_of_its_declared_length() {
        assert_eq!(read(&["ab", "cd"], true, Some(4), End::Framed).unwrap(), "abcd");
        assert_eq!(read(&["ab", "cd"], true, None, End::Framed).unwrap(), "abcd");
        assert_eq!(read(&["ab"], true, Some(4), End::Framed), Err(Error::Broken));
        assert_eq!(read(&["ab", "cd", "e"], true, Some(4), End::Framed), Err(Error::Broken));
        assert_eq!(read(&["ab", "cdefghi"], true, None, End::Framed), Err(Error::TooLarge));
        assert_eq!(read(&[], true, Some(9), End::Framed), Err(Error::TooLarge));
    }

    #[test]
    fn over_http2_only_the_client_ends_a_body() {
        assert_eq!(read(&["ab"], true, None, End::Said).unwrap(), "ab");
        assert_eq!(read(&["ab"], false, None, End::Said), Err(Error::Broken));
        assert_eq!(read(&["ab"], false, None, End::Framed).unwrap(), "ab");
    }

    #[test]
    fn all_bodies_together_have_a_bound() {
        let room = Room::new(4);
        let mut first = room.take();
        assert_eq!(first.grow(3), Ok(()));
        assert_eq!(room.take().grow(2), Err(Error::NoRoom));
        drop(first);
        assert_eq!(room.take().grow(4), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_too_little_is_too_slow() {
        let pace = Pace::new(Duration::from_secs(10), 100);
        let began = Instant::now();
        let slow = |pace: &Arc<Pace>| {
            let pace = Arc::clone(pace);
            tokio::spawn(async move {
                pace.too_slow().await;
                Instant::now()
            })
        };
        let ended = slow(&pace);
        // While the upstream is waited for the client owes nothing.
        tokio::time::sleep(Duration::from_secs(100)).await;
        for _ in 0..20 {
            pace.offer(100);
            tokio::time::sleep(Duration::from_secs(1)).await;
            pace.ask();
        }
        assert!(!ended.is_finished(), "it took as much as it must");
        pace.offer(0);
        assert!(ended.await.unwrap() - began > Duration::from_secs(120));
        // A drip of single bytes does not help.
        let pace = Pace::new(Duration::from_secs(10), 100);
        let ended = slow(&pace);
        for _ in 0..12 {
            pace.offer(1);
            tokio::time::sleep(Duration::from_secs(1)).await;
            pace.ask();
        }
        pace.offer(1);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(ended.is_finished());
    }
}
