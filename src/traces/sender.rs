//! Sending finished spans to their collector, by a thread of its own, for which nothing waits.
//!
//! The SDK's batch processor is not used: its thread has no runtime for a client, and tells nobody what it drops.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::runtime::Runtime;

use super::settings::{Queue, Settings};
use crate::agent::Agent;

/// The least time between two reports that spans are lost.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Spans that wait to be sent.
#[derive(Debug)]
pub(super) struct Waiting {
    queue: Queue,
    state: Mutex<State>,
    wake: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    spans: VecDeque<SpanData>,
    finished: bool,
}

/// The thread that sends. Dropping this does not stop it, [`Sender::finish`] does.
#[derive(Debug)]
pub struct Sender {
    waiting: Arc<Waiting>,
    thread: JoinHandle<()>,
}

impl Waiting {
    /// Hands over `span`, or drops it where too many wait. Never waits.
    pub(super) fn push(&self, span: SpanData) {
        let mut state = self.state();
        if state.spans.len() >= self.queue.spans || state.finished {
            drop(state);
            self.lose(1);
            return;
        }
        state.spans.push_back(span);
        let is_full = state.spans.len() == self.queue.batch;
        drop(state);
        if is_full {
            self.wake.notify_one();
        }
    }

    /// Spans that were lost so far: dropped here, or not taken by the collector.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn lose(&self, spans: usize) {
        self.dropped.fetch_add(spans as u64, Ordering::Relaxed);
    }

    /// The next batch, once it is whole or was waited for; an empty one is the end.
    fn batch(&self) -> Vec<SpanData> {
        let mut state = self.state();
        while !state.finished {
            let due = |state: &mut State| !state.finished && state.spans.len() < self.queue.batch;
            let waited = self.wake.wait_timeout_while(state, self.queue.delay, due);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if !state.spans.is_empty() {
                break;
            }
        }
        let length = self.queue.batch.min(state.spans.len());
        state.spans.drain(..length).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
    /// Starts sending what is pushed, as `settings` say.
    ///
    /// # Errors
    /// The system's, if there is no thread or runtime; the exporter's.
    pub(super) fn start(settings: Settings) -> io::Result<(Arc<Waiting>, Self)> {
        let Settings { endpoint, agent, timeout, resource, queue, .. } = settings;
        let client = Client(Arc::new(Asked { agent, timeout, failure: Mutex::default() }));
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client.clone())
            .with_endpoint(endpoint.to_string())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(timeout)
            .build()
            .map_err(io::Error::other)?;
        exporter.set_resource(&resource);
        let waiting =
            Arc::new(Waiting { queue, state: Mutex::default(), wake: Condvar::new(), dropped: AtomicU64::new(0) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sending = Sending { waiting: Arc::clone(&waiting), exporter, client, timeout, told: None };
        let thread = std::thread::Builder::new().name("traces".into()).spawn(move || sending.run(&runtime))?;
        Ok((Arc::clone(&waiting), Self { waiting, thread }))
    }

    /// Sends what waits and ends the thread, but waits for the collector no longer than `patience`.
    pub fn finish(self, patience: Duration) {
        self.waiting.state().finished = true;
        self.waiting.wake.notify_one();
        let deadline = Instant::now() + patience;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        if !self.thread.is_finished() {
            tracing::warn!("the last spans were not sent: the collector of traces took too long");
        }
    }
}

/// What the thread works with.
struct Sending {
    waiting: Arc<Waiting>,
    exporter: SpanExporter,
    client: Client,
    timeout: Duration,
    /// When it was last said that spans are lost, and how many were by then.
    told: Option<(Instant, u64)>,
}

impl Sending {
    fn run(mut self, runtime: &Runtime) {
        loop {
            let batch = self.waiting.batch();
            if batch.is_empty() {
                break;
            }
            let spans = batch.len();
            let sent = async { tokio::time::timeout(self.timeout, self.exporter.export(batch)).await };
            let reason = match runtime.block_on(sent) {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(self.client.failure().unwrap_or_else(|| error.to_string())),
                Err(_) => Some("it took too long".to_owned()),
            };
            if reason.is_some() {
                self.waiting.lose(spans);
            }
            self.tell(reason.as_deref());
        }
    }

    /// Says that spans are lost, the first time at once and then now and again.
    fn tell(&mut self, reason: Option<&str>) {
        let dropped = self.waiting.dropped();
        let is_due = self.told.is_none_or(|(at, told)| dropped > told && at.elapsed() >= TELL_EVERY);
        if dropped == 0 || !is_due {
            return;
        }
        self.told = Some((Instant::now(), dropped));
        let reason = reason.unwrap_or("more were made than could be sent");
        tracing::warn!(
            dropped,
            reason,
            "spans are lost; check OTEL_EXPORTER_OTLP_ENDPOINT and the collector of traces"
        );
    }
}

/// How the exporter asks the collector. What is asked here is not traced.
#[derive(Clone, Debug)]
struct Client(Arc<Asked>);

#[derive(Debug)]
struct Asked {
    agent: Agent,
    timeout: Duration,
    /// Why there was no answer last, which the exporter does not tell.
    failure: Mutex<Option<String>>,
}

impl Client {
    fn failure(&self) -> Option<String> {
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn ask(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let Asked { agent, timeout, failure } = &*self.0;
        let asked = agent.ask(request.map(Full::new), *timeout).await;
        *failure.lock().unwrap_or_else(PoisonError::into_inner) = asked.as_ref().err().map(ToString::to_string);
        Ok(asked?)
    }
}

impl HttpClient for Client {
    fn send_bytes<'s, 'f>(
        &'s self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(self.ask(request))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::span, *};

    fn waiting(spans: usize, batch: usize, delay: Duration) -> Waiting {
        let queue = Queue { spans, batch, delay };
        Waiting { queue, state: Mutex::default(), wake: Condvar::new(), dropped: AtomicU64::new(0) }
    }

    #[test]
    fn no_more_spans_wait_than_may_and_the_others_are_counted() {
        let waiting = waiting(5, 2, Duration::from_secs(600));
        for _ in 0..7 {
            waiting.push(span::empty());
        }
        assert_eq!((waiting.state().spans.len(), waiting.dropped()), (5, 2));
        assert_eq!((waiting.batch().len(), waiting.batch().len()), (2, 2), "whole batches are not waited for");
        waiting.state().finished = true;
        waiting.push(span::empty());
        assert_eq!((waiting.batch().len(), waiting.batch().len()), (1, 0), "the rest, and the end");
        assert_eq!(waiting.dropped(), 3, "what comes after the end is lost");
    }

    #[test]
    fn a_part_of_a_batch_is_sent_after_a_while() {
        let waiting = waiting(5, 5, Duration::from_millis(1));
        waiting.push(span::empty());
        assert_eq!(waiting.batch().len(), 1);
    }
}
