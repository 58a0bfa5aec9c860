//! Bodies on their way through: read whole where they are verified, passed on piece by piece where they are not.

use std::{fmt, time::Duration};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::limits::Limit;

mod answer;
mod pace;
mod room;
mod upload;

pub use answer::{Answer, BrokenOff, Ending};
pub use pace::{LOOK_EVERY, Lasting, Pace};
pub use room::{Room, Taken};
pub use upload::{Outbound, Progress, Streamed, Upload};

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
    /// Those of one client do.
    NoShare,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooLarge => "the body is larger than allowed",
            Self::TooSlow => "the body came too slowly",
            Self::Broken => "the body broke off or is malformed",
            Self::NoRoom => "too many bodies are being read",
            Self::NoShare => "too many bodies of one client are being read",
        })
    }
}

impl std::error::Error for Error {}

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
/// it must be: a browser that gives up can end a short body cleanly over HTTP/2. `taken` grows with what comes.
///
/// # Errors
/// [`Error`]; the body is not read further then, and its rest is in the connection.
pub async fn read_whole<'r, B: Body<Data = Bytes> + Unpin>(
    body: &mut B,
    declared: Option<u64>,
    end: End,
    limit_bytes: u64,
    timeout: Duration,
    mut taken: Taken<'r>,
) -> Result<(Bytes, Taken<'r>), Error> {
    if declared.is_some_and(|length| length > limit_bytes) {
        return Err(Error::TooLarge);
    }
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
/// # Errors
/// The limit that ended it before the client did.
///
/// Source: RFC 9112, section 9.6; over HTTP/1.1 browsers lose an answer that is followed by a reset.
pub async fn discard(mut body: Incoming, limit_bytes: u64, timeout: Duration) -> Result<(), Limit> {
    let reading = async {
        let mut length = 0_u64;
        while let Some(Ok(frame)) = body.frame().await {
            length += frame.data_ref().map_or(0, |data| data.len() as u64);
            if length > limit_bytes {
                return Err(Limit::DiscardBytes);
            }
        }
        Ok(())
    };
    tokio::time::timeout(timeout, reading).await.unwrap_or(Err(Limit::DiscardTimeout))
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use http_body::Frame;

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
        let room = Room::new(10, 10);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut body = Frames { frames: frames.to_vec(), is_ended };
        let reading = read_whole(&mut body, declared, end, 8, Duration::from_secs(5), room.take(None));
        runtime.block_on(reading).map(|(whole, _)| whole)
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
}
