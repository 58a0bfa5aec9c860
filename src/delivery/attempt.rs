//! One attempt: what is sent, what counts as an answer, and how it is noted.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::{sync::watch, time::Instant};

use super::{
    Destination, Shared, Stage,
    queues::Assignment,
    retry::{Next, Times, retry_after},
};
use crate::{
    clock::unix_seconds,
    inbox::{Due, End, Settled},
    record::{Attempt, AttemptOutcome},
    upstream::{Answered, Cause, Outgoing, Payload},
};

/// Bytes of an answer's body that are read, to be thrown away; behind these the connection is closed.
const ANSWER_LIMIT_BYTES: usize = 64 * 1024;
/// How much later than the upstream's own time for an answer the whole attempt ends: so the upstream notices, and trusts an
/// HTTP/2 connection no more on which nothing came.
const CLOSING: Duration = Duration::from_millis(50);
/// How long to wait before the store is asked again to note how an attempt ended.
const NOTE_AGAIN: Duration = Duration::from_millis(250);

const AGENT: HeaderValue = HeaderValue::from_static(concat!("Countersign/", env!("CARGO_PKG_VERSION")));
/// The event's id.
const EVENT: HeaderName = HeaderName::from_static("countersign-event");
/// The delivery's id, the same in all attempts.
const DELIVERY: HeaderName = HeaderName::from_static("countersign-delivery");
/// The attempt's number, from 1.
const ATTEMPT: HeaderName = HeaderName::from_static("countersign-attempt");
/// What the event is signed with.
const SIGNATURE: HeaderName = HeaderName::from_static("stripe-signature");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// All that an attempt takes.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    pub(super) assignment: Arc<Assignment>,
    pub(super) due: Due,
    /// When somebody else may have the delivery, at the earliest.
    pub(super) lease_ends: Instant,
    pub(super) stage: watch::Receiver<Stage>,
}

/// What an attempt means for its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// The delivery is due again after this time.
    Again(Duration),
    /// It is done with, and may have kept others waiting.
    Next,
    /// It is done with.
    Nothing,
}

/// How a destination answered.
#[derive(Debug, Default)]
struct Met {
    /// `None`: there was no answer.
    status: Option<StatusCode>,
    /// Why it is no success, in words for the administrator.
    failure: Option<String>,
    /// When the destination wants to be asked again.
    asked: Option<Duration>,
    /// It was not the destination that failed.
    was_cut: bool,
}

/// Whether the end of an attempt is noted in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    Yes,
    No,
}

impl Met {
    /// No success, as far as is known.
    fn failed(status: Option<StatusCode>, failure: String) -> Self {
        Self { status, failure: Some(failure), ..Self::default() }
    }

    fn cut() -> Self {
        Self { was_cut: true, ..Self::failed(None, "cut short, for the gateway stopped".to_owned()) }
    }
}

impl Job {
    /// Makes the attempt, records it, and has the store note how it ended.
    pub(super) async fn run(mut self) -> After {
        let (began, started) = (self.shared.clock.now(), Instant::now());
        let cut = cut_short(&mut self.stage);
        let met = tokio::select! {
            met = made(&self.assignment, &self.due, began) => met,
            () = cut => Met::cut(),
        };
        let attempt = self.recorded(&met, began, started.elapsed());
        let (end, attempt) = self.judged(&met, attempt);
        self.shared.count(&self.due.destination, attempt.outcome);
        self.shared.log.push(&attempt);
        let noted = self.noted(end.clone()).await;
        if noted == Noted::Yes && attempt.outcome == AttemptOutcome::Dead {
            self.tell_of_death(&attempt);
        }
        match end {
            End::Again { after, .. } => After::Again(after),
            End::Delivered | End::Dead { .. } | End::Released if self.assignment.destination.ordered => After::Next,
            End::Delivered | End::Dead { .. } | End::Released => After::Nothing,
        }
    }

    fn recorded(&self, met: &Met, began: SystemTime, took: Duration) -> Attempt {
        let due = &self.due;
        Attempt {
            config: Arc::clone(&self.assignment.config),
            began,
            took,
            webhook: Arc::clone(&due.webhook),
            event: Arc::clone(&due.event),
            event_type: Arc::clone(&due.kind),
            account: due.account.clone(),
            delivery: Arc::clone(&due.delivery),
            destination: Arc::clone(&due.destination),
            number: due.attempt,
            sent_bytes: due.body.len() as u64,
            status: met.status.map(|status| status.as_u16()),
            outcome: AttemptOutcome::Delivered,
            reason: met.failure.clone(),
        }
    }

    /// What is to become of the delivery.
    fn judged(&self, met: &Met, mut attempt: Attempt) -> (End, Attempt) {
        let Some(error) = met.failure.clone() else { return (End::Delivered, attempt) };
        let times = Times { since: self.due.since, now: self.shared.clock.now() };
        let retry = &self.assignment.destination.retry;
        let next = if met.was_cut {
            Next::After(retry.first)
        } else {
            retry.next(self.due.attempt, met.asked, times, fastrand::f64())
        };
        match next {
            Next::After(after) => {
                attempt.outcome = AttemptOutcome::Retry;
                (End::Again { after, error }, attempt)
            }
            Next::GivenUp => {
                let error = format!("{error}; given up, for the next attempt would be later than give_up allows");
                attempt.outcome = AttemptOutcome::Dead;
                attempt.reason = Some(error.clone());
                (End::Dead { error }, attempt)
            }
        }
    }

    /// Has the store note the end, again and again while it does not answer, until the lease ends.
    async fn noted(&self, end: End) -> Noted {
        let (delivery, lease) = (Arc::clone(&self.due.delivery), self.due.lease);
        let settled = Settled { delivery, lease, end };
        let (destination, delivery) = (&*self.due.destination, &*self.due.delivery);
        loop {
            match self.shared.noting(self.shared.inbox.settle(settled.clone()).await) {
                Ok(true) => return Noted::Yes,
                Ok(false) => {
                    tracing::warn!(destination, delivery, "an attempt ended after its lease: it may be made again");
                    return Noted::No;
                }
                Err(_) if Instant::now() >= self.lease_ends => {
                    tracing::warn!(destination, delivery, "an attempt could not be noted: it may be made again");
                    return Noted::No;
                }
                Err(_) => tokio::time::sleep(NOTE_AGAIN).await,
            }
        }
    }

    fn tell_of_death(&self, last: &Attempt) {
        if let Some(audit) = &self.shared.audit {
            audit.delivery_died(last);
        }
        if !self.shared.tells_of(&last.destination) {
            return;
        }
        let (destination, event, delivery) = (&*last.destination, &*last.event, &*last.delivery);
        let (attempts, reason) = (last.number, last.reason.as_deref().unwrap_or_default());
        match &self.due.object {
            Some(object) if self.assignment.destination.ordered => tracing::warn!(
                destination,
                event,
                delivery,
                attempts,
                reason,
                %object,
                "a delivery is dead; later events of its object go on without it"
            ),
            Some(_) | None => {
                tracing::warn!(destination, event, delivery, attempts, reason, "a delivery is dead");
            }
        }
    }
}

/// Gives back what was taken and is not begun.
pub(super) async fn release(shared: &Shared, due: Due) {
    let settled = Settled { delivery: due.delivery, lease: due.lease, end: End::Released };
    // If the store does not answer, the lease ends by itself.
    let _ = shared.noting(shared.inbox.settle(settled).await);
}

/// Returns when a drain has run out of patience.
async fn cut_short(stage: &mut watch::Receiver<Stage>) {
    let drain = stage.wait_for(|stage| *stage != Stage::On).await.map(|stage| *stage);
    match drain {
        Ok(Stage::Drain { until }) => tokio::time::sleep_until(until).await,
        // The runtime ends.
        Ok(Stage::On) | Err(_) => std::future::pending().await,
    }
}

/// Makes the attempt within the destination's time for it.
async fn made(assignment: &Assignment, due: &Due, now: SystemTime) -> Met {
    let destination = &assignment.destination;
    let late = || format!("timed out after {:?}", destination.timeout);
    let asked = asked(assignment, due, now);
    let mut status = None;
    let met = tokio::time::timeout(destination.timeout.saturating_add(CLOSING), async {
        let Answered { response, held } = asked.await?;
        status = Some(response.status());
        let (head, mut body) = response.into_parts();
        let is_whole = read_away(&mut body).await?;
        if is_whole {
            held.settle();
        }
        let asked = wanted(&head.headers, now);
        Ok(Met { status, failure: failure_of(head.status), asked, was_cut: false })
    })
    .await;
    match met {
        Ok(Ok(met)) => met,
        Ok(Err(Cause::Late)) | Err(_) => Met::failed(status, late()),
        Ok(Err(cause)) => Met::failed(status, cause.to_string()),
    }
}

/// Sends the event.
async fn asked(assignment: &Assignment, due: &Due, now: SystemTime) -> Result<Answered, Cause> {
    let destination = &assignment.destination;
    let headers = headers(destination, due, now);
    let request = Outgoing {
        method: Method::POST,
        target: destination.target.clone(),
        headers: || headers.clone(),
        body: Payload::Whole(due.body.clone()),
        response_timeout: Some(destination.timeout),
        switches: false,
    };
    assignment.upstream.send_once(due, &request).await
}

/// What a destination is told of the event; `now` is when it is signed.
fn headers(destination: &Destination, due: &Due, now: SystemTime) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(10);
    let mut put = |name: HeaderName, value: &str| {
        // What an event may hold was looked at when it was accepted.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    if let Some(content_type) = &due.content_type {
        put(header::CONTENT_TYPE, content_type);
    }
    put(EVENT, &due.event);
    put(DELIVERY, &due.delivery);
    put(ATTEMPT, itoa::Buffer::new().format(due.attempt));
    put(TRACEPARENT, &format!("00-{:032x}-{:016x}-00", fastrand::u128(1..), fastrand::u64(1..)));
    if let Some(key) = &destination.key {
        put(SIGNATURE, &key.header(unix_seconds(now), &due.body));
    }
    headers.insert(header::USER_AGENT, AGENT);
    headers
}

/// Why an answer with this status is no success, if it is none.
fn failure_of(status: StatusCode) -> Option<String> {
    if status.is_success() {
        None
    } else if status.is_redirection() {
        Some(format!("status {}; a redirect is not followed", status.as_u16()))
    } else {
        Some(format!("status {}", status.as_u16()))
    }
}

/// When the destination wants to be asked again.
fn wanted(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    headers.get(header::RETRY_AFTER).and_then(|value| retry_after(value.as_bytes(), now))
}

/// Reads a body to its end, or as much as is read of it; whether that was all.
async fn read_away(body: &mut Incoming) -> Result<bool, Cause> {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Cause::BrokenOff)?;
        read += frame.data_ref().map_or(0, bytes::Bytes::len);
        if read > ANSWER_LIMIT_BYTES {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_2xx_is_a_success() {
        let failure = |status| failure_of(StatusCode::from_u16(status).unwrap());
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(failure(status), None, "{status}");
        }
        assert_eq!(failure(500).as_deref(), Some("status 500"));
        assert_eq!(failure(304).as_deref(), Some("status 304; a redirect is not followed"));
        assert!(failure(199).is_some() && failure(400).is_some());
    }
}
