//! An event's way: from Stripe into the inbox, or straight on.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, header, request::Parts};
use hyper::body::Incoming;

use super::{Content, Exchange, Gateway, head, tunnel::Asks};
use crate::{
    audit::Audit,
    body::{self, Taken},
    clock::unix_seconds,
    delivery::Post,
    headers::{self, Client},
    inbox::{Acceptance, Arrived, Inbox},
    limits::Network,
    record::{Access, Decision},
    rejection::Rejection,
    route::Methods,
    upstream::{self, Outgoing, Payload},
    webhook::{Authentic, Direct, Mode, Outcome, Webhook},
};

/// How much is read of the answer of a service that events go to at once; none of it goes further.
const ANSWER_LIMIT_BYTES: u64 = 64 * 1024;
/// The longest content type that is passed on, in bytes.
const CONTENT_TYPE_LIMIT_BYTES: usize = 255;

/// What keeps events.
#[derive(Clone, Debug)]
pub struct Intake {
    pub inbox: Inbox,
    pub post: Post,
}

/// An event that Stripe signed, and its bytes with the room that they take.
pub(super) struct Read<'g> {
    pub(super) authentic: Authentic,
    bytes: Bytes,
    _room: Taken<'g>,
}

impl Gateway {
    /// Answers a request for `webhook`: 200 for an event that is safe or not wanted.
    pub(super) async fn take_event(
        &self,
        webhook: &Arc<Webhook>,
        parts: &Parts,
        body: &mut Option<Incoming>,
        now: SystemTime,
        client: Option<&Client>,
        exchange: &mut Exchange,
    ) -> Result<Response<Content>, Rejection> {
        let address = client.map(|client| client.address);
        if !webhook.takes_from(address) {
            return Err(Rejection::source_not_allowed());
        }
        let Read { authentic, bytes, _room } = self.read_event(webhook, parts, body, now, address, exchange).await?;
        if self.audit.as_ref().is_some_and(Audit::refuses) {
            exchange.note_failure();
            return Err(Rejection::store_unavailable());
        }
        if let Some(outcome) = webhook.drops(authentic.event()) {
            if !exchange.note_outcome(outcome, Decision::Dropped) {
                return Err(Rejection::store_unavailable());
            }
            return Ok(acknowledgement(outcome));
        }
        match &webhook.mode {
            Mode::Inbox(_) => {
                let kept = self.keep(webhook, parts, &authentic, (bytes, now), exchange).await;
                let Some((outcome, true)) = kept else {
                    exchange.note_failure();
                    return Err(Rejection::store_unavailable());
                };
                exchange.note_kept(outcome);
                Ok(acknowledgement(outcome))
            }
            Mode::Direct(direct) => self.hand_on(direct, parts, &authentic, bytes, now, exchange).await,
        }
    }

    /// From a well-formed head to an event that Stripe signed.
    pub(super) async fn read_event(
        &self,
        webhook: &Webhook,
        parts: &Parts,
        body: &mut Option<Incoming>,
        now: SystemTime,
        address: Option<IpAddr>,
        exchange: &mut Exchange,
    ) -> Result<Read<'_>, Rejection> {
        head::check_host(parts, &self.names)?;
        if parts.method != Method::POST {
            return Err(Rejection::method_not_allowed(&Methods::only(vec![Method::POST])));
        }
        if Asks::of(parts) != Asks::Nothing {
            return Err(Rejection::upgrade_not_allowed(false));
        }
        webhook.check_form(&parts.headers)?;
        let room = self.room.take(address.map(Network::from));
        let (bytes, room) = match body.as_mut() {
            None => (Bytes::new(), room),
            Some(incoming) => {
                let (declared, end) = (head::declared_length(&parts.headers), head::end(parts));
                let (limit_bytes, timeout) = (webhook.body_limit_bytes, self.limits.body_timeout);
                body::read_whole(incoming, declared, end, limit_bytes, timeout, room).await?
            }
        };
        exchange.note_received(bytes.len() as u64);
        let authentic = webhook.verify(&parts.headers, &bytes, unix_seconds(now)).inspect_err(|error| {
            if error.is_signed() {
                exchange.note_signed();
            }
        })?;
        exchange.note_signed();
        exchange.note_event(authentic.event());
        Ok(Read { authentic, bytes, _room: room })
    }

    /// Answers once the event is durable, and whether it may be acknowledged. It is kept and recorded to the end, whether the
    /// client stays or not.
    async fn keep(
        &self,
        webhook: &Webhook,
        parts: &Parts,
        authentic: &Authentic,
        (body, received): (Bytes, SystemTime),
        exchange: &Exchange,
    ) -> Option<(Outcome, bool)> {
        let Intake { inbox, post } = self.intake.clone()?;
        let event = authentic.event();
        let destinations = webhook.destinations(event);
        let content_type = content_type(parts).and_then(|value| value.to_str().ok());
        let arrived = Arrived {
            webhook: webhook.path.as_str().into(),
            event: event.clone(),
            content_type: content_type.map(Arc::from),
            body,
            received,
            destinations: destinations.clone(),
        };
        let (audit, record) = (self.audit.clone(), exchange.event_record());
        let keeping = tokio::spawn(async move {
            let outcome = match inbox.accept(arrived).await {
                Ok(Acceptance::New) => Outcome::Accepted,
                Ok(Acceptance::Duplicate) => Outcome::Duplicate,
                Err(reason) => {
                    tracing::debug!(%reason, "an event was not kept; Stripe sends it again");
                    return None;
                }
            };
            if outcome == Outcome::Accepted {
                post.wake(&destinations);
            }
            let recorded = audit
                .zip(record)
                .is_none_or(|(audit, record)| audit.event(&Access { outcome: Some(outcome), ..*record }));
            Some((outcome, recorded))
        });
        keeping.await.ok().flatten()
    }
}

impl Gateway {
    /// Sends the event on, and answers with the status of the answer.
    async fn hand_on(
        &self,
        direct: &Direct,
        parts: &Parts,
        authentic: &Authentic,
        body: Bytes,
        now: SystemTime,
        exchange: &mut Exchange,
    ) -> Result<Response<Content>, Rejection> {
        let upstream = self.upstreams.get(direct.upstream).ok_or_else(Rejection::internal)?;
        exchange.note_server(upstream.name());
        // Recorded before it goes on, like what is permitted.
        if !exchange.note_outcome(Outcome::Forwarded, Decision::Permitted) {
            return Err(Rejection::store_unavailable());
        }
        let signature = direct.key.as_ref().map(|key| key.header(unix_seconds(now), &body));
        let content_type = content_type(parts).cloned();
        let (request_id, traceparent) = (exchange.request_id(), exchange.traceparent(&direct.target));
        let told = Told { authentic, content_type, signature, request_id, traceparent };
        let outgoing = Outgoing {
            method: Method::POST,
            target: direct.target.clone(),
            headers: || told.headers(),
            switches: false,
            body: Payload::Whole(body),
            response_timeout: Some(direct.timeout),
        };
        let began = Instant::now();
        let answered = tokio::time::timeout(direct.timeout, upstream.send(authentic, outgoing)).await;
        let time = began.elapsed();
        upstream.note_time(time);
        exchange.note_upstream_time(time);
        let answered = answered.unwrap_or(Err(upstream::Error::Timeout));
        exchange.note_traced_answer(upstream, answered.as_ref().ok());
        let answered = answered.inspect_err(|_| exchange.note_failure())?;
        let (head, body) = answered.response.into_parts();
        // The connection is kept where its answer is short.
        let rest = direct.timeout.saturating_sub(time).max(Duration::from_millis(10));
        if body::discard(body, ANSWER_LIMIT_BYTES, rest).await.is_ok() {
            answered.held.settle();
        }
        let mut response = Response::new(Content::Ours(Bytes::new()));
        *response.status_mut() = head.status;
        Ok(response)
    }
}

/// What a service is told beside the event itself.
struct Told<'e> {
    authentic: &'e Authentic,
    content_type: Option<HeaderValue>,
    signature: Option<String>,
    request_id: HeaderValue,
    traceparent: HeaderValue,
}

impl Told<'_> {
    fn headers(&self) -> HeaderMap {
        let text = |text: &str| HeaderValue::try_from(text).ok();
        let headers = [
            (header::CONTENT_TYPE, self.content_type.clone()),
            (header::USER_AGENT, Some(headers::PRODUCT)),
            (headers::EVENT, text(self.authentic.event().id.as_str())),
            (headers::STRIPE_SIGNATURE, self.signature.as_deref().and_then(text)),
            (headers::REQUEST_ID, Some(self.request_id.clone())),
            (headers::TRACEPARENT, Some(self.traceparent.clone())),
        ];
        headers.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// The one content type of the request, if it is short enough to be kept.
fn content_type(parts: &Parts) -> Option<&HeaderValue> {
    let mut values = parts.headers.get_all(header::CONTENT_TYPE).iter();
    let value = values.next().filter(|value| value.len() <= CONTENT_TYPE_LIMIT_BYTES && value.to_str().is_ok());
    value.filter(|_| values.next().is_none())
}

/// Stripe is told that the event is in good hands.
fn acknowledgement(outcome: Outcome) -> Response<Content> {
    let text = format!("{{\"received\":true,\"outcome\":\"{}\"}}\n", outcome.as_str());
    let mut response = Response::new(Content::Ours(text.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
