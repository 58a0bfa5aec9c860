//! A request's way, stage by stage.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use http_body::Body as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};

use crate::{
    audit::Audit,
    auth::{self, BodyKind, Carried, Presented, Principal},
    body::{self, Pace, Room, Upload},
    clock::{Clock, unix_seconds},
    cors,
    headers::{self, Client, Proxies},
    limits::{Hits, Limits, Network},
    path::{Ambiguous, CanonicalPath},
    policy::{self, Permit},
    record::{Access, Asked, Decision, Log},
    rejection::Rejection,
    route::{Route, RouteTable},
    tally::Tally,
    traces::Traces,
    upstream::{Answered, Outgoing, Payload, Upstream},
    webhook::{Event, Outcome, Webhook, Webhooks},
};

mod activity;
mod events;
mod exchange;
mod head;
mod rules;
mod tunnel;

pub use activity::{Activity, Busy};
pub use events::Intake;
pub use exchange::Exchange;
pub use head::Fault;
pub use rules::Rules;
pub use tunnel::Tunnel;

use rules::{Manner, Standing, Watch};
use tunnel::Asks;

/// The body of every answer.
pub type Answer = body::Answer<Exchange>;

/// One worker's gateway: what is configured, and connections of its own to the upstreams. A reload makes another; a request
/// keeps the one that it began with.
#[derive(Debug)]
pub struct Gateway {
    /// The hash of the configuration.
    pub config: Arc<str>,
    pub routes: Arc<RouteTable>,
    pub webhooks: Arc<Webhooks>,
    /// What keeps their events; `None`: there are none to keep.
    pub intake: Option<Intake>,
    /// Which edition of [`Rules`] its routes are, and the rules in force, which may be later ones.
    pub edition: u64,
    pub rules: Arc<Rules>,
    /// In the order of the configuration, which routes point into.
    pub upstreams: Vec<Arc<Upstream>>,
    pub limits: Limits,
    /// Lower-case host names; empty: any.
    pub names: Arc<[String]>,
    /// Whose word on the client's address is taken.
    pub trusted_proxies: Arc<Proxies>,
    pub room: Arc<Room>,
    pub hits: Arc<Hits>,
    /// What no route took.
    pub unrouted: Arc<Tally>,
    pub log: Log,
    /// `None` where nothing is kept of decisions.
    pub audit: Option<Audit>,
    /// `None` where no traces are sent.
    pub traces: Option<Traces>,
    pub clock: Clock,
}

/// What a connection tells of a request that it brings.
#[derive(Debug)]
pub struct Arrival {
    /// Who is at the other end of it.
    pub client: Option<Client>,
    /// Why the bytes that came cannot be taken for a request; the request itself is a stand-in then.
    pub fault: Option<Fault>,
    /// There are more connections than may be, and this one is only told so.
    pub turned_away: bool,
    /// Keeps the connection from being idle.
    pub busy: Busy,
    /// Told what the client takes of the answer, where the connection does not show it.
    pub pace: Option<Arc<Pace>>,
}

/// What is decided of a request.
#[derive(Debug)]
pub enum Verdict {
    Accept(Box<Principal>),
    Preflight,
    /// An event of Stripe's, and why it would be dropped, if it would.
    Event(Event, Option<Outcome>),
}

/// A request of which it is known who sends it.
struct Admitted<'r> {
    route: &'r Arc<Route>,
    path: CanonicalPath<'r>,
    limited: Limited<'r>,
    principal: Principal,
    asks: Asks,
}

impl Admitted<'_> {
    fn permit(&self) -> Result<Permit<'_>, policy::Error> {
        self.route.policy.permit(&self.principal, self.limited.is_there())
    }
}

impl Gateway {
    /// Answers `request`: with a preflight's answer, with the upstream's for whoever is permitted, or with a refusal.
    pub async fn answer(&self, arrival: Arrival, request: Request<Incoming>) -> Response<Answer> {
        let (mut parts, body) = request.into_parts();
        headers::hide(&mut parts.headers);
        let mut body = Some(body);
        let now = self.clock.now();
        let client = arrival.client.as_ref().map(|peer| self.trusted_proxies.client(peer, &parts.headers));
        let record = access(&self.config, arrival.fault, client.clone(), &parts, now);
        let activity = arrival.busy.activity();
        let (log, unrouted, audit) = (&self.log, &self.unrouted, self.audit.as_ref());
        let mut exchange = Exchange::open(log, unrouted, audit, record, arrival.busy, arrival.pace);
        if let Some(traces) = &self.traces {
            // A stranger has no word on our traces.
            let is_trusted = arrival.client.is_some_and(|peer| self.trusted_proxies.contains(peer.address));
            exchange.trace(traces.begin(is_trusted.then_some(&parts.headers)));
        }

        let checked = head::check(&parts, arrival.fault, &self.limits);
        // Nothing behind a head without one reading is taken for another request.
        let is_unclear = checked.is_err() && parts.version != Version::HTTP_2;
        // Of bytes that are no request nothing is looked at.
        let webhook = if arrival.fault.is_none() { self.webhook(&parts) } else { None };
        if let Some(webhook) = webhook {
            exchange.note_webhook(webhook);
        }
        let outcome = match checked {
            Ok(()) if arrival.turned_away && webhook.is_some() => Err(Rejection::overloaded()),
            Ok(()) if let Some(webhook) = webhook => {
                self.take_event(webhook, &parts, &mut body, now, client.as_ref(), &mut exchange).await
            }
            Ok(()) if cors::is_preflight(&parts.method, &parts.headers) => Ok(preflight(&mut exchange)),
            Ok(()) if arrival.turned_away => Err(Rejection::overloaded()),
            Ok(()) => self.forward(&parts, &mut body, now, client.as_ref(), &mut exchange).await,
            Err(rejection) => Err(rejection),
        };
        let unread = body.filter(|body| !body.is_end_stream());
        let closes = unread.is_some_and(|body| leave_unread(&parts, body, &self.limits, Arc::clone(&activity)));
        let mut response = match outcome {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                exchange.switch(response, &activity, &self.limits)
            }
            Ok(response) => exchange.answer(response),
            Err(rejection) => {
                if let Some(limit) = rejection.limit {
                    self.hits.hit(limit);
                }
                exchange.refuse(&rejection)
            }
        };
        if closes || is_unclear {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The answer where answering itself failed.
    pub fn internal_error(&self) -> Response<Answer> {
        let request_id = exchange::request_id(self.clock.now());
        tracing::error!(request_id = text(&request_id), "answering a request panicked");
        let rejection = Rejection::internal();
        let mut response = Response::new(body::Answer::unrecorded(rejection.problem(text(&request_id))));
        *response.status_mut() = rejection.code.status();
        *response.headers_mut() = rejection.headers();
        common(response.headers_mut(), request_id);
        response
    }

    /// What [`Gateway::answer`] would decide of `request`, without asking an upstream.
    ///
    /// # Errors
    /// The [`Rejection`] that the client would be told.
    pub async fn judge(&self, arrival: Arrival, request: Request<Incoming>) -> Result<Verdict, Rejection> {
        let (parts, body) = request.into_parts();
        let mut body = Some(body);
        let now = self.clock.now();
        let record = access(&self.config, arrival.fault, None, &parts, now);
        let mut exchange = Exchange::open(&self.log, &self.unrouted, None, record, arrival.busy, None);
        head::check(&parts, arrival.fault, &self.limits)?;
        if let Some(webhook) = self.webhook(&parts) {
            let read = self.read_event(webhook, &parts, &mut body, now, None, &mut exchange).await?;
            let event = read.authentic.event().clone();
            let dropped = webhook.drops(&event);
            return Ok(Verdict::Event(event, dropped));
        }
        if cors::is_preflight(&parts.method, &parts.headers) {
            return Ok(Verdict::Preflight);
        }
        let admitted = self.admit(&parts, &mut body, now, None, &mut exchange).await?;
        let permit = admitted.permit()?;
        Ok(Verdict::Accept(Box::new(permit.principal().clone())))
    }

    /// The webhook whose path the request's is, whatever its method.
    fn webhook(&self, parts: &Parts) -> Option<&Arc<Webhook>> {
        if self.webhooks.is_empty() {
            return None;
        }
        self.webhooks.find(&CanonicalPath::parse(parts.uri.path()).ok()?)
    }

    /// From a well-formed head to the upstream's answer: route, principal, permit, upstream.
    async fn forward(
        &self,
        parts: &Parts,
        body: &mut Option<Incoming>,
        now: SystemTime,
        client: Option<&Client>,
        exchange: &mut Exchange,
    ) -> Result<Response<Content>, Rejection> {
        let address = client.map(|client| client.address);
        let admitted = self.admit(parts, body, now, address, exchange).await;
        let is_closed = self.audit.as_ref().is_some_and(Audit::refuses);
        let admitted = match admitted {
            Ok(_) if is_closed => return Err(Rejection::unrecorded(None)),
            Err(rejection) if is_closed && rejection.proven.is_some() => {
                return Err(Rejection::unrecorded(rejection.proven));
            }
            other => other?,
        };
        let permit = admitted.permit()?;
        if let Some(target) = parts.uri.path_and_query() {
            let (has_body, switches) = (admitted.limited.is_there(), admitted.asks == Asks::WebSocket);
            let manner = Manner { method: &parts.method, target, has_body, switches };
            exchange.note_standing(Standing::new(
                &self.rules,
                self.edition,
                permit.principal(),
                admitted.route,
                manner,
            ));
        }
        let answered = self.ask(&permit, parts, &admitted, client, body, exchange).await?;
        Ok(self.passable(answered, parts, admitted.route, exchange))
    }

    /// From a well-formed head to a proven principal.
    async fn admit<'r>(
        &'r self,
        parts: &'r Parts,
        body: &mut Option<Incoming>,
        now: SystemTime,
        address: Option<IpAddr>,
        exchange: &mut Exchange,
    ) -> Result<Admitted<'r>, Rejection> {
        head::check_host(parts, &self.names)?;
        let path = CanonicalPath::parse(parts.uri.path());
        if head::is_never_forwarded(&parts.method) {
            let route = path.ok().and_then(|path| self.routes.find(&path));
            return Err(Rejection::never_forwarded(&parts.method, route.map(|route| &route.methods)));
        }
        let path = path?;
        let route = self.routes.find(&path).ok_or_else(Rejection::route_unknown)?;
        exchange.note_route(route);
        if !self.routes.holds_without_parameters(&path, route) {
            return Err(Ambiguous::Parameter.into());
        }
        if !route.methods.contains(&parts.method) {
            return Err(Rejection::method_not_allowed(&route.methods));
        }
        let asks = Asks::of(parts);
        if !(asks == Asks::Nothing || asks == Asks::WebSocket && route.websocket) {
            return Err(Rejection::upgrade_not_allowed(route.websocket));
        }

        let limited = self.read_body(parts, body, route, address, exchange).await?;
        let presented = Presented { headers: &parts.headers, query: parts.uri.query(), body: limited.carried() };
        let principal = route.scheme.verify(&presented, unix_seconds(now))?;
        exchange.note_principal(&principal);
        Ok(Admitted { route, path, limited, principal, asks })
    }

    /// Reads the body if verification may need it, within the route's limit. One that no signature can cover stays
    /// where it is.
    async fn read_body(
        &self,
        parts: &Parts,
        body: &mut Option<Incoming>,
        route: &Route,
        address: Option<IpAddr>,
        exchange: &mut Exchange,
    ) -> Result<Limited<'_>, Rejection> {
        let Some(incoming) = body.as_mut().filter(|body| !body.is_end_stream()) else { return Ok(Limited::Nothing) };
        // Without a signature that could hold, nothing is read.
        route.scheme.check_form(&parts.headers)?;
        let declared = head::declared_length(&parts.headers);
        match BodyKind::of(&parts.headers).map_err(auth::Error::BodyInvalid)? {
            kind @ (BodyKind::Json | BodyKind::Text) => {
                let limit_bytes = route.body_limit_bytes.unwrap_or(self.limits.body_bytes);
                let timeout = self.limits.body_timeout;
                let taken = self.room.take(address.map(Network::from));
                let (whole, taken) =
                    body::read_whole(incoming, declared, head::end(parts), limit_bytes, timeout, taken).await?;
                exchange.note_received(whole.len() as u64);
                Ok(if whole.is_empty() { Limited::Nothing } else { Limited::Read { whole, kind, _taken: taken } })
            }
            BodyKind::Opaque => {
                let limit_bytes = route.body_limit_bytes.unwrap_or(self.limits.stream_bytes);
                if declared.is_some_and(|length| length > limit_bytes) {
                    return Err(Rejection::streamed(body::Error::TooLarge));
                }
                Ok(Limited::Unread { limit_bytes })
            }
        }
    }

    async fn ask(
        &self,
        permit: &Permit<'_>,
        parts: &Parts,
        admitted: &Admitted<'_>,
        client: Option<&Client>,
        body: &mut Option<Incoming>,
        exchange: &mut Exchange,
    ) -> Result<Answered, Rejection> {
        let Admitted { route, path, limited, asks, .. } = admitted;
        let switches = *asks == Asks::WebSocket;
        let upstream = self.upstreams.get(route.upstream).ok_or_else(Rejection::internal)?;
        if !exchange.note_upstream(upstream.name()) {
            return Err(Rejection::unrecorded(None));
        }
        let target = headers::outbound_target(route, path, parts.uri.query()).ok_or_else(Rejection::internal)?;
        let told = headers::Statement {
            principal: permit.principal(),
            app: &route.app,
            request_id: exchange.request_id(),
            traceparent: exchange.traceparent(&target),
            client: client.map_or(HeaderValue::from_static("unknown"), |client| client.text().clone()),
            host: head::host(parts).and_then(|host| HeaderValue::try_from(host).ok()),
        };
        let upload = match (limited, body.take()) {
            (Limited::Unread { limit_bytes }, Some(body)) => {
                let (rate, window) = (self.limits.stream_rate, self.limits.stream_window);
                let upload = Upload::new(body, head::end(parts), *limit_bytes, rate, window);
                exchange.note_upload(&upload);
                Some(upload)
            }
            (Limited::Nothing | Limited::Read { .. } | Limited::Unread { .. }, _) => None,
        };
        let outgoing = Outgoing {
            method: parts.method.clone(),
            target,
            headers: || {
                let mut headers = headers::outbound(&parts.headers, &route.request_headers, &told);
                if switches {
                    tunnel::upgrade(&mut headers);
                }
                headers
            },
            switches,
            body: match (limited, &upload) {
                (_, Some(upload)) => Payload::Upload(upload.clone()),
                (Limited::Read { whole, kind: BodyKind::Json, .. }, None) => Payload::Whole(whole.clone()),
                (Limited::Read { whole, kind: BodyKind::Text | BodyKind::Opaque, .. }, None) => {
                    Payload::Text(whole.clone())
                }
                (Limited::Nothing | Limited::Unread { .. }, None) => Payload::Whole(Bytes::new()),
            },
            response_timeout: route.response_timeout,
        };
        let began = Instant::now();
        let answered = if upload.is_none() {
            upstream.send(permit, outgoing).await
        } else {
            // It may last; whoever sends it may lose the right to meanwhile.
            tokio::select! {
                biased;
                answered = upstream.send(permit, outgoing) => answered,
                revoked = exchange.revoked() => {
                    exchange.note_revoked(&revoked);
                    *body = upload.and_then(Upload::into_unread);
                    return Err(revoked);
                }
            }
        };
        let time = began.elapsed();
        upstream.note_time(time);
        exchange.note_upstream_time(time);
        exchange.note_traced_answer(upstream, answered.as_ref().ok());
        answered.map_err(|error| {
            *body = upload.and_then(Upload::into_unread);
            error.into()
        })
    }

    /// The upstream's answer as the client may see it.
    fn passable(&self, answered: Answered, asked: &Parts, route: &Route, exchange: &mut Exchange) -> Response<Content> {
        let (mut parts, body) = answered.response.into_parts();
        let upgrading = parts.extensions.remove::<OnUpgrade>();
        let length_only = asked.method == Method::HEAD;
        let upstream = self.upstreams.get(route.upstream).map(Arc::as_ref);
        let is_upstream = |scheme: Option<&str>, host: &str, port| {
            upstream.is_some_and(|upstream| upstream.has_server(scheme, host, port))
        };
        headers::inbound(&mut parts.headers, route, is_upstream, length_only);
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        exchange.hold(answered.held);
        if let Some(upstream) = upgrading.filter(|_| parts.status == StatusCode::SWITCHING_PROTOCOLS) {
            tunnel::upgrade(&mut parts.headers);
            return Response::from_parts(parts, Content::Switched(upstream));
        }
        let idle_timeout = upstream.map_or(self.limits.idle_timeout, Upstream::idle_timeout);
        Response::from_parts(parts, Content::Upstream { body, idle_timeout })
    }
}

/// The body of an answer before it is bound to its record.
#[derive(Debug)]
pub(crate) enum Content {
    Ours(Bytes),
    /// The connection is the upstream's from here on.
    Switched(OnUpgrade),
    Upstream {
        body: Incoming,
        idle_timeout: std::time::Duration,
    },
}

/// A request's body after the limits were applied.
enum Limited<'g> {
    Nothing,
    Read { whole: Bytes, kind: BodyKind, _taken: body::Taken<'g> },
    Unread { limit_bytes: u64 },
}

impl Limited<'_> {
    fn carried(&self) -> Carried<'_> {
        match self {
            Self::Nothing => Carried::Nothing,
            Self::Read { whole, kind: BodyKind::Json, .. } => Carried::Json(whole),
            Self::Read { whole, kind: BodyKind::Text | BodyKind::Opaque, .. } => Carried::Text(whole),
            Self::Unread { .. } => Carried::Opaque,
        }
    }

    fn is_there(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Read { .. } | Self::Unread { .. } => true,
        }
    }
}

fn preflight(exchange: &mut Exchange) -> Response<Content> {
    exchange.decide(Decision::Preflight);
    let mut response = Response::new(Content::Ours(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    cors::answer_preflight(response.headers_mut());
    response
}

/// Sees to it that a client that is still sending gets to read its answer: over HTTP/1.1 what it sends is thrown away,
/// within limits. HTTP/2 has a stream of its own for that. A client that waits for a go-ahead is not given one, and its
/// connection must close, for what it sends next may be that body or another request: answers whether it must.
fn leave_unread(parts: &Parts, body: Incoming, limits: &Limits, activity: Arc<Activity>) -> bool {
    let waits = parts.headers.contains_key(header::EXPECT);
    let http1 = parts.version != Version::HTTP_2;
    if http1 && !waits {
        // It ends with its connection, whose task is waited for.
        let discarding = body::discard(body, limits.discard_bytes, limits.discard_timeout);
        tokio::spawn(async move {
            if let Err(limit) = discarding.await {
                activity.hit(limit);
                activity.indulge();
            }
        });
    }
    http1 && waits
}

/// The record of a request as it begins; of one at fault, the stand-in's head is not told.
fn access(
    config: &Arc<str>,
    fault: Option<Fault>,
    client: Option<Client>,
    parts: &Parts,
    arrived: SystemTime,
) -> Box<Access> {
    let asked =
        fault.is_none().then(|| Asked { method: parts.method.clone(), target: parts.uri.path_and_query().cloned() });
    Box::new(Access {
        config: Arc::clone(config),
        arrived,
        started: Instant::now(),
        request_id: exchange::request_id(arrived),
        trace_id: None,
        asked,
        protocol: if parts.version == Version::HTTP_2 { "2" } else { "1.1" },
        client,
        user_agent: parts.headers.get(header::USER_AGENT).cloned(),
        status: 0,
        route: None,
        webhook: None,
        event: None,
        outcome: None,
        account: None,
        user: None,
        roles: Vec::new(),
        signed: None,
        decision: Decision::Refused,
        reason: None,
        upstream: None,
        upstream_time: None,
        received_bytes: 0,
        sent_bytes: 0,
        complete: false,
    })
}

/// The text of one of our own ids.
fn text(id: &HeaderValue) -> &str {
    id.to_str().unwrap_or_default()
}

/// The headers that every answer has.
pub(crate) fn common(headers: &mut HeaderMap, request_id: HeaderValue) {
    cors::open(headers);
    headers.insert(headers::REQUEST_ID, request_id);
}
