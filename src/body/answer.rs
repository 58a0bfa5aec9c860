//! The body of an answer on its way to a client.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::Pace;

/// The body of an answer to a client. `T` is held until the body was sent or given up, and told how it ended.
#[derive(Debug)]
pub struct Answer<T: Ending> {
    source: Source,
    sent_bytes: u64,
    ending: Option<T>,
    pace: Option<Arc<Pace>>,
    /// The last byte of what may be the end of a body whose pace is watched. The library hands over a part as soon as the client has room
    /// for one byte of it, and nobody watches what was handed over as the end: so that is one byte.
    last: Option<Bytes>,
}

/// Who wants to know how an answer ended.
pub trait Ending: Unpin {
    /// Whether the answer must not go on. Asked before each part of it.
    fn is_revoked(&mut self) -> bool;

    /// Ready once that is so. Asked while the next part is waited for.
    fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()>;

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
        Self { source, sent_bytes: 0, ending: Some(ending), pace: None, last: None }
    }

    /// An answer of our own, of which nobody wants to know how it ended.
    pub fn unrecorded(bytes: Bytes) -> Self {
        Self { source: Source::Whole(Some(bytes)), sent_bytes: 0, ending: None, pace: None, last: None }
    }

    /// An upstream's answer, which may pause for `idle_timeout` at the most.
    pub fn upstream(incoming: Incoming, idle_timeout: Duration, ending: T) -> Self {
        let source = Source::Upstream { incoming, idle_timeout, idle: None };
        Self { source, sent_bytes: 0, ending: Some(ending), pace: None, last: None }
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
        let (source, ending) = (&mut this.source, &mut this.ending);
        let next = loop {
            if let Some(last) = this.last.take() {
                break Some(Ok(last));
            }
            match source {
                Source::Whole(bytes) => break bytes.take().map(Ok),
                Source::Upstream { incoming, idle_timeout, idle } => {
                    // What is there at once is the end of what was permitted, not a stream.
                    if this.sent_bytes > 0 && ending.as_mut().is_some_and(Ending::is_revoked) {
                        break Some(Err(BrokenOff));
                    }
                    let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
                        if ending.as_mut().is_some_and(|ending| ending.poll_revoked(cx).is_ready()) {
                            break Some(Err(BrokenOff));
                        }
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
            Some(Ok(mut data)) => {
                let may_be_last = this.is_end_stream() || this.size_hint().exact().is_none();
                if this.pace.is_some() && data.len() > 1 && may_be_last {
                    this.last = Some(data.split_off(data.len() - 1));
                }
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
        self.last.is_none()
            && match &self.source {
                Source::Whole(bytes) => bytes.is_none(),
                Source::Upstream { incoming, .. } => incoming.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        if let Some(last) = &self.last {
            return SizeHint::with_exact(last.len() as u64);
        }
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
