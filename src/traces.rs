//! Traces: for each request a span of the gateway's own and, within it, one of asking the service, by OTLP over HTTP.
//!
//! Off unless the environment names a collector. A request hands over its spans when it has ended and waits for nothing; a
//! collector that is slow, gone or broken costs spans, which are counted.
//!
//! Source: OpenTelemetry, <https://opentelemetry.io/docs/specs/otlp/>.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, StatusCode};
use opentelemetry::trace::{SpanId, TraceId};

use crate::record::Access;

mod sampler;
mod sender;
mod settings;
mod span;
mod traceparent;

pub use sampler::Sampler;
pub use sender::Sender;
pub use settings::{Settings, Warning};
pub use traceparent::Traceparent;

use sender::Waiting;

/// Where requests get their traces from.
#[derive(Clone, Debug)]
pub struct Traces {
    sampler: Sampler,
    waiting: Arc<Waiting>,
}

/// The trace of one request, as far as the gateway records it.
#[derive(Debug)]
pub struct Trace {
    waiting: Arc<Waiting>,
    parent: Option<SpanId>,
    /// The gateway's own span.
    own: Traceparent,
    asked: Option<Asked>,
}

/// The span of asking a service.
#[derive(Debug)]
struct Asked {
    span: SpanId,
    began: Instant,
    answered: Option<Answered>,
    server: Option<Server>,
    /// The path that was asked for, without the query.
    path: String,
}

/// How a service answered: after how long, and with which status, if with any.
#[derive(Clone, Copy, Debug)]
struct Answered {
    after: Duration,
    status: Option<StatusCode>,
}

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `http` or `https`; `None` for a local socket.
    pub scheme: Option<&'static str>,
    /// A name, an address, or the path of a local socket.
    pub address: String,
    pub port: Option<u16>,
}

impl Traces {
    /// Starts sending to the collector that `settings` name.
    ///
    /// # Errors
    /// The system's, if there is no thread or runtime; the exporter's.
    pub fn start(settings: Settings) -> io::Result<(Self, Sender)> {
        let sampler = settings.sampler;
        let (waiting, sender) = Sender::start(settings)?;
        Ok((Self { sampler, waiting }, sender))
    }

    /// The trace of a request that begins: the one that `headers` name, where their word is taken, or a new one.
    pub fn begin(&self, headers: Option<&HeaderMap>) -> Box<Trace> {
        let parent = headers.and_then(Traceparent::of);
        let trace = parent.map_or_else(traceparent::new_trace, |parent| parent.trace);
        let is_sampled = self.sampler.takes(trace, parent.as_ref());
        let own = Traceparent { trace, span: traceparent::new_span(), is_sampled };
        Box::new(Trace {
            waiting: Arc::clone(&self.waiting),
            parent: parent.map(|parent| parent.span),
            own,
            asked: None,
        })
    }

    /// Spans that were lost so far: too many waited, or the collector did not take them.
    pub fn dropped(&self) -> u64 {
        self.waiting.dropped()
    }
}

impl Trace {
    /// The id of the trace, if the gateway records it.
    pub fn recorded(&self) -> Option<TraceId> {
        self.own.is_sampled.then_some(self.own.trace)
    }

    /// A service is asked for `path` from now on: answers what it is told of the trace.
    pub fn ask(&mut self, path: &str) -> HeaderValue {
        if !self.own.is_sampled {
            return self.own.header();
        }
        let span = traceparent::new_span();
        let path = span::bounded(path).to_owned();
        self.asked = Some(Asked { span, began: Instant::now(), answered: None, server: None, path });
        Traceparent { span, ..self.own }.header()
    }

    /// The head of the service's answer is there, or there will be none. `server` is where the service is, if that is known.
    pub fn answered(&mut self, status: Option<StatusCode>, server: impl FnOnce() -> Option<Server>) {
        if let Some(asked) = &mut self.asked {
            asked.answered = Some(Answered { after: asked.began.elapsed(), status });
            asked.server = server();
        }
    }

    /// The request has ended as `record` has it: hands over its spans.
    pub fn end(self, record: &Access) {
        if !self.own.is_sampled {
            return;
        }
        if let Some(asked) = &self.asked {
            self.waiting.push(span::of_asking(&self, asked, record));
        }
        self.waiting.push(span::of_request(&self, record));
    }
}
