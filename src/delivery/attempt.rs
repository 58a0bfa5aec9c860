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
    headers,
    inbox::{Due, End, Settled},
    record::{Attempt, AttemptOutcome},
    traces::Traceparent,
    upstream::{Answered, Cause, Held, Outgoing, Payload},
};

/// How much of an answer's body is read, to be thrown away, and for how long; behind that the connection is closed.
const ANSWER_LIMIT_BYTES: usize = 64 * 1024;
const ANSWER_PATIENCE: Duration = Duration::from_millis(500);
/// How much later than the upstream's own time for an answer the whole attempt ends: so the upstream notices, and trusts an
/// HTTP/2 connection no more on which nothing came.
const CLOSING: Duration = Duration::from_millis(50);
/// How long to wait before the store is asked again to note how an attempt ended.
const NOTE_AGAIN: Duration = Duration::from_millis(250);

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
    /// What comes behind the head of its answer.
    rest: Option<Rest>,
}

/// The body of an answer, which says nothing of how the attempt ended.
#[derive(Debug)]
struct Rest {
    body: Incoming,
    held: Held,
    /// What is left of the destination's time for the attempt.
    left: Duration,
}

/// Whether the end of an attempt is noted in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    Yes,
    No,
}

impl Met {
    /// There was no answer.
    fn failed(failure: String) -> Self {
        Self { failure: Some(failure), ..Self::default() }
    }

    fn cut() -> Self {
        Self { was_cut: true, ..Self::failed("cut short, for the gateway stopped".to_owned()) }
    }
}

impl Rest {
    /// Reads it to its end if that is near, so that the connection can be kept.
    async fn read_away(self) {
        let Self { mut body, held, left } = self;
        if tokio::time::timeout(left.min(ANSWER_PATIENCE), is_short(&mut body)).await == Ok(true) {
            held.settle();
        }
    }
}

impl Job {
    /// Makes the attempt, records it, and has the store note how it ended.
    pub(super) async fn run(mut self) -> After {
        let (began, started) = (self.shared.clock.now(), Instant::now());
        let cut = cut_short(&mut self.stage);
        let mut met = tokio::select! {
            met = made(&self.assignment, &self.due, began) => met,
            () = cut => Met::cut(),
        };
        let attempt = self.recorded(&met, began, started.elapsed());
        let (end, attempt) = self.judged(&met, attempt);
        self.shared.count(&self.due.destination, attempt.outcome);
        self.shared.log.push(&attempt);
        let rest = met.rest.take();
        let read_away = async {
            if let Some(rest) = rest {
                rest.read_away().await;
            }
        };
        let (noted, ()) = tokio::join!(self.noted(end.clone()), read_away);
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
        let (destination, event, delivery) = (&*last.destination, &*last.event, &*last.delivery);
        if self.shared.audit.as_ref().is_some_and(|audit| !audit.delivery_died(last)) {
            tracing::error!(destination, event, delivery, "a delivery is dead, and the audit log has no room for that");
        }
        if !self.shared.tells_of(&last.destination) {
            return;
        }
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

/// Makes the attempt within the destination's time for it, until the head of the answer is there.
async fn made(assignment: &Assignment, due: &Due, now: SystemTime) -> Met {
    let destination = &assignment.destination;
    let late = || format!("timed out after {:?}", destination.timeout);
    let (began, patience) = (Instant::now(), destination.timeout.saturating_add(CLOSING));
    let answered = tokio::time::timeout(patience, asked(assignment, due, now)).await;
    let Answered { response, held } = match answered {
        Ok(Ok(answered)) => answered,
        Ok(Err(Cause::Late)) | Err(_) => return Met::failed(late()),
        Ok(Err(cause)) => return Met::failed(cause.to_string()),
    };
    let (head, body) = response.into_parts();
    Met {
        status: Some(head.status),
        failure: failure_of(head.status),
        asked: wanted(&head.headers, now),
        was_cut: false,
        rest: Some(Rest { body, held, left: destination.timeout.saturating_sub(began.elapsed()) }),
    }
}

/// Sends the event.
async fn asked(assignment: &Assignment, due: &Due, now: SystemTime) -> Result<Answered, Cause> {
    let destination = &assignment.destination;
    let headers = told(destination, due, now);
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
fn told(destination: &Destination, due: &Due, now: SystemTime) -> HeaderMap {
    let mut told = HeaderMap::with_capacity(10);
    let mut put = |name: HeaderName, value: &str| {
        // What an event may hold was looked at when it was accepted.
        if let Ok(value) = HeaderValue::from_str(value) {
            told.insert(name, value);
        }
    };
    if let Some(content_type) = &due.content_type {
        put(header::CONTENT_TYPE, content_type);
    }
    put(headers::EVENT, &due.event);
    put(headers::DELIVERY, &due.delivery);
    put(headers::ATTEMPT, itoa::Buffer::new().format(due.attempt));
    if let Some(key) = &destination.key {
        put(headers::STRIPE_SIGNATURE, &key.header(unix_seconds(now), &due.body));
    }
    told.insert(header::USER_AGENT, headers::PRODUCT);
    told.insert(headers::TRACEPARENT, Traceparent::fresh().header());
    told
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

/// Reads a body; whether it came to its end within what is read of it.
async fn is_short(body: &mut Incoming) -> bool {
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += match frame {
            Ok(frame) => frame.data_ref().map_or(0, bytes::Bytes::len),
            Err(_) => return false,
        };
        if read > ANSWER_LIMIT_BYTES {
            return false;
        }
    }
    true
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
