//! One request and its answer, and the record that is made of them however they end.

use std::{
    cell::RefCell,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{HeaderValue, Response, StatusCode, uri::PathAndQuery};

use super::{Activity, Answer, Busy, Content, Standing, Tunnel, Watch, common, text};
use crate::{
    audit::Audit,
    auth::Principal,
    body::{self, Ending, Lasting, Pace, Progress, Upload},
    headers,
    limits::{Limit, Limits},
    record::{Access, Decision, Log},
    rejection::{Code, Rejection},
    route::Route,
    tally::{Case, Tally},
    traces::{Trace, Traceparent},
    upstream::{self, Answered, Held, Origin, Upstream},
    webhook::{Event, Outcome, Webhook},
};

/// The status in the record of a request whose client went away before it was answered.
const CLIENT_GONE: u16 = 499;

/// A request under way. Its record is written when the answer was handed over to its end, or when it is dropped
/// before.
#[derive(Debug)]
pub struct Exchange {
    /// `None` once the record was written.
    record: Option<Box<Access>>,
    /// Where it is counted, but for what a route takes.
    unrouted: Arc<Tally>,
    log: Log,
    audit: Option<Audit>,
    request_id: HeaderValue,
    trace: Option<Box<Trace>>,
    /// Why it was permitted, once it is.
    standing: Option<Arc<Standing>>,
    watch: Watch,
    upload: Option<Arc<Progress>>,
    held: Option<Held>,
    pace: Option<Arc<Pace>>,
    busy: Busy,
    /// Whether pages of any origin may read the answer.
    is_open: bool,
}

impl Exchange {
    pub(super) fn open(
        log: &Log,
        unrouted: &Arc<Tally>,
        audit: Option<&Audit>,
        record: Box<Access>,
        busy: Busy,
        pace: Option<Arc<Pace>>,
    ) -> Self {
        let (request_id, record, log) = (record.request_id.clone(), Some(record), log.clone());
        let (unrouted, audit) = (Arc::clone(unrouted), audit.cloned());
        Self {
            record,
            unrouted,
            log,
            audit,
            request_id,
            trace: None,
            standing: None,
            watch: Watch::default(),
            upload: None,
            held: None,
            pace,
            busy,
            is_open: true,
        }
    }

    pub(super) fn request_id(&self) -> HeaderValue {
        self.request_id.clone()
    }

    /// Makes it a part of `trace`.
    pub(super) fn trace(&mut self, trace: Box<Trace>) {
        self.note(|record| record.trace_id = trace.recorded());
        self.trace = Some(trace);
    }

    /// What the service that is asked for `target` is told of the trace; without one, that there is a new one, which
    /// nobody records.
    pub(super) fn traceparent(&mut self, target: &PathAndQuery) -> HeaderValue {
        match &mut self.trace {
            Some(trace) => trace.ask(target.path()),
            None => Traceparent::fresh().header(),
        }
    }

    /// `upstream` answered, or will not.
    pub(super) fn note_traced_answer(&mut self, upstream: &Upstream, answered: Option<&Answered>) {
        if let Some(trace) = &mut self.trace {
            let server = || upstream.server(answered.map(|answered| &answered.held)).map(Origin::server);
            trace.answered(answered.map(|answered| answered.response.status()), server);
        }
    }

    pub(super) fn note_route(&mut self, route: &Arc<Route>) {
        self.note(|record| record.route = Some(Arc::clone(route)));
    }

    /// It is for one of Stripe's servers, and no page reads the answer.
    pub(super) fn note_webhook(&mut self, webhook: &Arc<Webhook>) {
        self.is_open = false;
        self.note(|record| record.webhook = Some(Arc::clone(webhook)));
    }

    /// Stripe signed it.
    pub(super) fn note_signed(&mut self) {
        self.note(|record| record.signed = Some("body"));
    }

    pub(super) fn note_event(&mut self, event: &Event) {
        self.note(|record| record.event = Some(event.clone()));
    }

    /// What became of the event, recorded in the audit log; `false` if it may not be acknowledged, for want of that.
    #[must_use]
    pub(super) fn note_outcome(&mut self, outcome: Outcome, decision: Decision) -> bool {
        self.note(|record| (record.outcome, record.decision) = (Some(outcome), decision));
        let (Some(audit), Some(record)) = (&self.audit, &self.record) else { return true };
        let may_pass = audit.event(record);
        if !may_pass {
            self.note(|record| (record.outcome, record.decision) = (Some(Outcome::Failed), Decision::Refused));
        }
        may_pass
    }

    /// What the audit log is to say of the event, for whoever records it apart from the request.
    pub(super) fn event_record(&self) -> Option<Box<Access>> {
        self.record.as_ref().map(|record| Box::new(record.of_event()))
    }

    /// What became of the event, which is recorded already.
    pub(super) fn note_kept(&mut self, outcome: Outcome) {
        self.note(|record| (record.outcome, record.decision) = (Some(outcome), Decision::Permitted));
    }

    /// Where the event goes.
    pub(super) fn note_server(&mut self, name: &Arc<str>) {
        self.note(|record| record.upstream = Some(Arc::clone(name)));
    }

    /// The event was not taken, through no fault of Stripe's.
    pub(super) fn note_failure(&mut self) {
        self.note(|record| record.outcome = Some(Outcome::Failed));
    }

    pub(super) fn note_principal(&mut self, principal: &Principal) {
        self.note(|record| {
            record.user = principal.user().cloned();
            record.account = Some(principal.account().clone());
            record.roles = principal.roles().to_vec();
            record.signed = Some(principal.signed().as_str());
        });
    }

    pub(super) fn note_standing(&mut self, standing: Standing) {
        self.standing = Some(Arc::new(standing));
    }

    /// Ends with the reason once the rules in force no longer permit what was permitted.
    pub(super) async fn revoked(&mut self) -> Rejection {
        let Some(standing) = &self.standing else { return std::future::pending().await };
        std::future::poll_fn(|cx| self.watch.poll_revoked(standing, cx)).await
    }

    /// What was permitted is ended while it is under way: recorded in both logs.
    pub(super) fn note_revoked(&mut self, rejection: &Rejection) {
        self.standing = None;
        self.note(|record| record.reason = Some(rejection.code.as_str()));
        if let (Some(audit), Some(record)) = (&self.audit, &self.record) {
            audit.stream_ended(record);
        }
    }

    pub(super) fn hit(&self, limit: Limit) {
        self.busy.hit(limit);
    }

    pub(super) fn note_received(&mut self, bytes: u64) {
        self.note(|record| record.received_bytes = bytes);
    }

    pub(super) fn note_upload(&mut self, upload: &Upload) {
        self.upload = Some(upload.progress());
    }

    /// From here on the request counts as permitted; `false` if it may not, for want of a record.
    #[must_use]
    pub(super) fn note_upstream(&mut self, name: &Arc<str>) -> bool {
        self.note(|record| {
            record.upstream = Some(Arc::clone(name));
            record.decision = Decision::Permitted;
        });
        let (Some(audit), Some(record)) = (&self.audit, &self.record) else { return true };
        let may_pass = audit.decision(record);
        if !may_pass {
            self.note(|record| {
                record.upstream = None;
                record.decision = Decision::Refused;
            });
        }
        may_pass
    }

    /// Refused: recorded if somebody is proven to have asked, else counted. What is permitted is recorded already, whatever
    /// its upstream answers; but of an event it is recorded as well that it did not get there.
    fn note_refusal(&self, code: Code) {
        let (Some(audit), Some(record)) = (&self.audit, &self.record) else { return };
        if record.webhook.is_some() && record.signed.is_some() {
            let _ = audit.event(record);
            return;
        }
        if record.decision == Decision::Permitted {
            return;
        }
        if record.account.is_some() {
            // What finds no room is counted as lost.
            let _ = audit.decision(record);
        } else {
            audit.count(code.as_str());
        }
    }

    pub(super) fn note_upstream_time(&mut self, time: Duration) {
        self.note(|record| record.upstream_time = Some(time));
    }

    pub(super) fn decide(&mut self, decision: Decision) {
        self.note(|record| record.decision = decision);
    }

    /// Keeps the upstream's connection until the answer has ended.
    pub(super) fn hold(&mut self, held: Held) {
        self.held = Some(held);
    }

    /// Binds the record to the answer that is to be sent.
    pub(super) fn answer(mut self, response: Response<Content>) -> Response<Answer> {
        let (mut parts, content) = response.into_parts();
        if self.is_open {
            common(&mut parts.headers, self.request_id());
        } else {
            parts.headers.insert(headers::REQUEST_ID, self.request_id());
        }
        self.note_head(parts.status);
        let pace = self.pace.take();
        let body = match content {
            Content::Ours(bytes) => body::Answer::whole(bytes, self),
            Content::Switched(_) => body::Answer::whole(bytes::Bytes::new(), self),
            Content::Upstream { body, idle_timeout } => {
                if let Some(permitted) = self.standing.as_ref().map(|standing| Arc::clone(standing) as Arc<dyn Lasting>)
                {
                    match &pace {
                        Some(pace) => pace.watch(permitted),
                        None => self.busy.watch(permitted),
                    }
                }
                body::Answer::upstream(body, idle_timeout, self)
            }
        };
        Response::from_parts(parts, body.paced(pace))
    }

    /// Makes the connection the upstream's, if its 101 agrees to what was asked for. The record is written when that ends.
    pub(super) fn switch(
        mut self,
        response: Response<Content>,
        activity: &Activity,
        limits: &Limits,
    ) -> Response<Answer> {
        let (mut parts, content) = response.into_parts();
        let (Content::Switched(upstream), Some(mut held)) = (content, self.held.take()) else {
            return self.refuse(&Rejection::from(upstream::Error::Invalid));
        };
        held.release();
        common(&mut parts.headers, self.request_id());
        self.note_head(parts.status);
        let (age, idle_timeout) = (limits.websocket_age, limits.websocket_idle_timeout);
        activity.switch(Tunnel { upstream, held, exchange: self, age, idle_timeout });
        Response::from_parts(parts, body::Answer::unrecorded(bytes::Bytes::new()))
    }

    /// Answers with `rejection`.
    pub(super) fn refuse(mut self, rejection: &Rejection) -> Response<Answer> {
        let mut problem = bytes::Bytes::new();
        self.note(|record| {
            record.reason = Some(rejection.code.as_str());
            if let Some(claims) = &rejection.proven {
                record.account = Some(claims.account.clone());
                record.user.clone_from(&claims.user);
            }
            problem = rejection.problem(text(&record.request_id));
        });
        self.note_refusal(rejection.code);
        let mut response = Response::new(Content::Ours(problem));
        *response.status_mut() = rejection.status();
        *response.headers_mut() = rejection.headers();
        self.answer(response)
    }

    /// The answer's head goes out: what it took until here, but for the upstream's part, was our own.
    fn note_head(&mut self, status: StatusCode) {
        let Some(record) = &mut self.record else { return };
        record.status = status.as_u16();
        let own = record.started.elapsed().saturating_sub(record.upstream_time.unwrap_or_default());
        match (&record.route, &record.webhook) {
            (Some(route), _) => route.tally.load().own_time.observe(own),
            (None, Some(webhook)) => webhook.tally.load().own_time.observe(own),
            (None, None) => self.unrouted.own_time.observe(own),
        }
    }

    fn note(&mut self, change: impl FnOnce(&mut Access)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }

    fn write(&mut self, sent_bytes: u64, complete: bool) {
        let Some(mut record) = self.record.take() else { return };
        if let Some(upload) = &self.upload {
            record.received_bytes = upload.bytes();
        }
        if record.status == 0 {
            let overdue = self.busy.is_overdue() || self.pace.as_ref().is_some_and(|p| p.is_over());
            let code = match (std::thread::panicking(), overdue) {
                (true, _) => Some(Code::InternalError),
                (false, true) => Some(Code::Overloaded),
                (false, false) => None,
            };
            record.status = code.map_or(CLIENT_GONE, |code| code.status().as_u16());
            record.reason = code.map(Code::as_str);
        }
        record.sent_bytes = sent_bytes;
        record.complete = complete;
        let case = Case { decision: record.decision.as_str(), reason: record.reason.unwrap_or_default() };
        match (&record.route, &record.webhook) {
            (Some(route), _) => route.tally.load().count(case, record.status),
            (None, Some(webhook)) => {
                webhook.tally.load().count(case, record.status);
                // Whose sender went away before it was known whether the event is kept.
                let is_lost = record.event.is_some() && record.reason.is_none();
                let otherwise = if is_lost { Outcome::Failed } else { Outcome::Refused };
                webhook.outcomes.load().count(record.outcome.unwrap_or(otherwise));
            }
            (None, None) => self.unrouted.count(case, record.status),
        }
        // A flood that is thinned out there fills nobody's traces either.
        let is_told = self.log.push(&record);
        if let Some(trace) = self.trace.take().filter(|_| is_told) {
            trace.end(&record);
        }
    }
}

impl Ending for Exchange {
    fn is_revoked(&mut self) -> bool {
        let revoked = self.standing.as_ref().and_then(|standing| standing.check().err());
        revoked.is_some_and(|rejection| {
            self.note_revoked(&rejection);
            true
        })
    }

    fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(standing) = &self.standing else { return Poll::Pending };
        self.watch.poll_revoked(standing, cx).map(|rejection| self.note_revoked(&rejection))
    }

    fn ended(mut self, bytes: u64, complete: bool) {
        if let Some(held) = self.held.take().filter(|_| complete) {
            held.settle();
        }
        if let Some(standing) = self.standing.take()
            && let Some(rejection) = standing.given_up()
        {
            self.note_revoked(rejection);
        }
        self.write(bytes, complete);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.write(0, false);
    }
}

thread_local! {
    /// Request ids tell requests apart; nothing rests on their being hard to guess.
    static RANDOM: RefCell<fastrand::Rng> = RefCell::new(fastrand::Rng::new());
}

/// A UUID of version 7 (RFC 9562) for a request that came at `arrived`.
pub(super) fn request_id(arrived: SystemTime) -> HeaderValue {
    let since = arrived.duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(since.as_millis()).unwrap_or_default();
    let mut random = [0; 10];
    RANDOM.with_borrow_mut(|rng| rng.fill(&mut random));
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let id = uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
    let id = id.hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(id).unwrap_or(HeaderValue::from_static("none"))
}
