//! Why a request got no answer.

use std::{fmt, io};

use crate::body;

/// Why there is no answer.
#[derive(Debug)]
pub enum Error {
    /// No server could be reached, or the one that was closed without an answer.
    Unreachable,
    /// Connecting, or the first byte of the answer, took too long.
    Timeout,
    /// It answered with what is no HTTP, or with what was not asked for.
    Invalid,
    /// As many requests are in flight and waiting as may be.
    Overloaded,
    /// The client's own body was at fault.
    Client(body::Error),
}

/// Why one server, asked once, did not answer.
#[derive(Debug)]
pub enum Cause {
    /// There is no connection to it; nothing was sent.
    Connect(io::Error),
    /// The connection was closed before any byte of an answer; with what TLS said at its end.
    Lost(Option<rustls::AlertDescription>),
    /// A part of the answer's head came.
    BrokenOff,
    /// It answered with what is no HTTP.
    Invalid,
    /// The answer's head did not come in time.
    Late,
    /// As many requests are in flight and waiting as may be.
    Busy,
    /// The client's own body was at fault.
    Client(body::Error),
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Connect(error) if error.kind() == io::ErrorKind::TimedOut => Self::Timeout,
            Cause::Connect(_) | Cause::Lost(_) | Cause::BrokenOff => Self::Unreachable,
            Cause::Late => Self::Timeout,
            Cause::Invalid => Self::Invalid,
            Cause::Busy => Self::Overloaded,
            Cause::Client(fault) => Self::Client(fault),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // In the words of the kind, where the system says no more than that.
            Self::Connect(error) => match root(error).downcast_ref::<io::Error>() {
                Some(error) if error.raw_os_error().is_some() => write!(f, "connect: {}", error.kind()),
                Some(_) | None => write!(f, "connect: {}", root(error)),
            },
            Self::Lost(None) => f.write_str("the connection was closed before an answer"),
            Self::Lost(Some(alert)) => write!(f, "the connection was closed before an answer: TLS alert {alert:?}"),
            Self::BrokenOff => f.write_str("the answer broke off"),
            Self::Invalid => f.write_str("the answer is not valid HTTP"),
            Self::Late => f.write_str("the answer took too long"),
            Self::Busy => f.write_str("too many requests are in flight"),
            Self::Client(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Cause {}

/// What is at the bottom of an error.
pub(super) fn root(error: &io::Error) -> &(dyn std::error::Error + 'static) {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("the upstream cannot be reached"),
            Self::Timeout => f.write_str("the upstream took too long"),
            Self::Invalid => f.write_str("the upstream's answer is not valid HTTP"),
            Self::Overloaded => f.write_str("too many requests to the upstream are in flight"),
            Self::Client(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}
