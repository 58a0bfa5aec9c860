//! `countersign explain`: what the gateway thinks of a captured request, by the gateway's own code.

use std::{
    fmt::Write as _,
    path::PathBuf,
    sync::{Arc, atomic::AtomicI64},
    time::{Duration, SystemTime},
};

use clap::{ArgGroup, Args, ValueEnum};
use http::{HeaderValue, Method, request::Parts};
use http_body_util::BodyExt as _;

use super::{FINE, NEGATIVE, SOFTWARE, TextOrJson, USAGE, loaded, say, say_error, sign::key_of_file};
use crate::{
    auth::{BodyKind, Carried, Presented, Scheme, StripeApp},
    body::Room,
    clock::{Clock, unix_seconds},
    gateway::{self, Activity, Arrival, Busy, Gateway, Verdict},
    identity::{RoleId, UserId},
    limits::Limits,
    path::CanonicalPath,
    policy::{Accounts, Demand, Policy},
    record::{Log, Writer},
    rejection::{Code, Rejection},
    route::{HeaderEdits, Methods, Pattern, Route, RouteTable},
    signature::SigningKey,
    webhook::{Event, Outcome, Webhooks},
};

mod capture;
mod diagnosis;
mod replay;

use capture::Capture;
use diagnosis::Diagnosis;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("rules").required(true).multiple(true).args(["config", "secret_file"]))]
pub(super) struct Options {
    /// The configuration whose routes decide.
    #[arg(long, conflicts_with = "secret_file")]
    config: Option<PathBuf>,
    /// A file with the app's signing secret; twice while it is being rolled.
    #[arg(long)]
    secret_file: Vec<PathBuf>,
    /// Take a signature over an account alone.
    #[arg(long, requires = "secret_file")]
    allow_account_only: bool,
    /// What the signature must cover.
    #[arg(long, value_enum, default_value_t, requires = "secret_file")]
    signed: Signed,
    /// The time at which it came, in seconds since the epoch; left out, now.
    #[arg(long)]
    now: Option<i64>,
    #[arg(long, value_enum, default_value_t)]
    format: TextOrJson,
    /// The request as raw HTTP, as a browser copies it for curl, or in a HAR file; left out or -, standard input.
    file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Signed {
    #[default]
    Identity,
    Body,
}

pub(super) fn run(options: &Options) -> u8 {
    if options.secret_file.len() > 2 {
        say_error("error: --secret-file is given once, or twice while the secret is being rolled\n");
        return USAGE;
    }
    let rules = match rules(options) {
        Ok(rules) => rules,
        Err(code) => return code,
    };
    let read = capture::read(options.file.as_deref()).map_err(|error| {
        let file = options.file.as_ref().map_or_else(String::new, |file| format!("{}: ", file.display()));
        format!("{file}the request cannot be read: {error}")
    });
    let capture = match read.and_then(|bytes| Capture::of(&bytes)) {
        Ok(capture) => capture,
        Err(what) => {
            say_error(&format!("error: {what}\n"));
            return USAGE;
        }
    };
    for note in &capture.notes {
        say_error(&format!("note: {note}\n"));
    }
    let now = options.now.unwrap_or_else(|| unix_seconds(SystemTime::now()));
    let Some((gateway, _writer)) = gateway(rules, now) else { return SOFTWARE };
    let activity = Activity::new(&Arc::default());
    let judged = replay::replay(&gateway.limits, &capture.bytes, |request, fault| {
        gateway
            .judge(Arrival { client: None, fault, turned_away: false, busy: Busy::new(&activity), pace: None }, request)
    });
    let Some(judged) = judged else {
        say_error("error: this is no HTTP request, or not all of one\n");
        return NEGATIVE;
    };
    let diagnosis = match &judged {
        Ok(_) | Err(Rejection { code: Code::SignatureMismatch, .. }) => diagnosis(&gateway, &capture.bytes),
        Err(_) => None,
    };
    match judged {
        Ok(verdict) => {
            say(&accepted(&verdict, diagnosis, options.format));
            FINE
        }
        Err(rejection) => {
            say(&refused(&rejection, diagnosis, options.format));
            NEGATIVE
        }
    }
}

/// What decides.
struct Rules {
    routes: RouteTable,
    webhooks: Webhooks,
    names: Vec<String>,
    limits: Limits,
}

/// The routes of the configuration, or one for every path and the secrets given.
fn rules(options: &Options) -> Result<Rules, u8> {
    if options.secret_file.is_empty() {
        let config = loaded(options.config.clone())?;
        let (routes, webhooks) = (config.routes, config.webhooks);
        return Ok(Rules { routes, webhooks, names: config.listener.names, limits: config.limits });
    }
    let keys: Vec<SigningKey> = options.secret_file.iter().map(|path| key_of_file(path)).collect::<Result<_, _>>()?;
    let limits = Limits::default();
    let app = StripeApp { keys, tolerance: Duration::from_secs(300), allow_account_only: options.allow_account_only };
    let signed = match options.signed {
        Signed::Identity => Demand::Identity,
        Signed::Body => Demand::Body,
    };
    let pattern = Pattern::parse("/").map_err(|_| SOFTWARE)?;
    let route = Route {
        pattern,
        app: HeaderValue::from_static("app"),
        scheme: Arc::new(Scheme::StripeApp(app)),
        policy: Policy { accounts: Accounts::Any, users: None, roles: None, signed },
        methods: Methods::only(vec![
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ]),
        upstream: 0,
        upstream_path: None,
        body_limit_bytes: None,
        response_timeout: None,
        websocket: true,
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        tally: arc_swap::ArcSwap::default(),
    };
    let routes = RouteTable::new(vec![Arc::new(route)]).map_err(|_| SOFTWARE)?;
    Ok(Rules { routes, webhooks: Webhooks::default(), names: Vec::new(), limits })
}

/// A gateway that judges by these rules at that time, and forwards nothing.
fn gateway(rules: Rules, now: i64) -> Option<(Gateway, Writer)> {
    let Rules { routes, webhooks, names, limits } = rules;
    let (log, writer) = Log::start(Box::new(std::io::sink())).ok()?;
    let room = Arc::new(Room::new(limits.buffered_bytes, limits.buffered_bytes));
    let clock = Clock::Set(Arc::new(AtomicI64::new(now)));
    let (routes, names) = (Arc::new(routes), names.into());
    Some((
        Gateway {
            config: "".into(),
            rules: gateway::Rules::new(Arc::clone(&routes)),
            edition: 0,
            routes,
            webhooks: Arc::new(webhooks),
            intake: None,
            upstreams: Vec::new(),
            limits,
            names,
            trusted_proxies: Arc::default(),
            room,
            hits: Arc::default(),
            unrouted: Arc::default(),
            log,
            audit: None,
            clock,
        },
        writer,
    ))
}

/// What the signature of the capture was made over, as far as can be found out.
fn diagnosis(gateway: &Gateway, capture: &[u8]) -> Option<Diagnosis> {
    let (parts, body): (Parts, _) = replay::replay(&gateway.limits, capture, |request, _| async {
        let (parts, body) = request.into_parts();
        (parts, body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default())
    })?;
    let path = CanonicalPath::parse(parts.uri.path()).ok()?;
    if gateway.webhooks.find(&path).is_some() {
        return None;
    }
    let Scheme::StripeApp(app) = gateway.routes.find(&path)?.scheme.as_ref();
    let carried = match BodyKind::of(&parts.headers).ok()? {
        _ if body.is_empty() => Carried::Nothing,
        BodyKind::Json => Carried::Json(&body),
        BodyKind::Text => Carried::Text(&body),
        BodyKind::Opaque => Carried::Opaque,
    };
    let request = Presented { headers: &parts.headers, query: parts.uri.query(), body: carried };
    diagnosis::diagnose(app, &request, &body)
}

/// A verdict as programs read it, in the order in which people do.
#[derive(serde::Serialize)]
struct Accepted<'v> {
    verdict: &'v str,
    user: Option<&'v str>,
    account: &'v str,
    roles: Vec<&'v str>,
    signed: &'v str,
}

#[derive(serde::Serialize)]
struct Taken<'t> {
    verdict: &'static str,
    event: &'t str,
    event_type: &'t str,
    livemode: bool,
    account: Option<&'t str>,
    /// Why it is dropped.
    reason: Option<&'static str>,
}

#[derive(serde::Serialize)]
struct Refused<'v> {
    verdict: &'v str,
    code: &'v str,
    detail: &'v str,
}

fn json(verdict: &impl serde::Serialize) -> String {
    format!("{}\n", serde_json::to_string(verdict).unwrap_or_default())
}

fn accepted(verdict: &Verdict, diagnosis: Option<Diagnosis>, format: TextOrJson) -> String {
    match (verdict, format) {
        (Verdict::Preflight, TextOrJson::Text) => "preflight: answered 204 without a signature\n".to_owned(),
        (Verdict::Preflight, TextOrJson::Json) => "{\"verdict\":\"preflight\"}\n".to_owned(),
        (Verdict::Event(event, dropped), format) => taken(event, *dropped, format),
        (Verdict::Accept(principal), TextOrJson::Json) => {
            let roles: Vec<_> = principal.roles().iter().map(RoleId::as_str).collect();
            json(&Accepted {
                verdict: "accept",
                user: principal.user().map(UserId::as_str),
                account: principal.account().as_str(),
                roles,
                signed: principal.signed().as_str(),
            })
        }
        (Verdict::Accept(principal), TextOrJson::Text) => {
            let user = principal.user().map_or("none", UserId::as_str);
            let roles: Vec<_> = principal.roles().iter().map(RoleId::as_str).collect();
            let roles = if roles.is_empty() { "none proven".to_owned() } else { roles.join(", ") };
            let (account, signed) = (principal.account(), principal.signed().as_str());
            let matched = diagnosis.and_then(|diagnosis| diagnosis.matched);
            let matched =
                matched.map_or_else(String::new, |(what, secret)| format!("  fits: {what}, with secret {secret}\n"));
            format!("accept\n  user: {user}\n  account: {account}\n  roles: {roles}\n  signed: {signed}\n{matched}")
        }
    }
}

/// Of an event of Stripe's.
fn taken(event: &Event, dropped: Option<Outcome>, format: TextOrJson) -> String {
    let verdict = if dropped.is_some() { "drop" } else { "accept" };
    let reason = dropped.map(Outcome::as_str);
    let (id, kind, account) = (event.id.as_str(), &*event.kind, event.account.as_deref());
    match format {
        TextOrJson::Json => {
            json(&Taken { verdict, event: id, event_type: kind, livemode: event.livemode, account, reason })
        }
        TextOrJson::Text => {
            let account = account.unwrap_or("your own");
            let reason = reason.map_or_else(String::new, |reason| format!(" ({reason}), answered 200"));
            format!(
                "{verdict}{reason}\n  event: {id}\n  type: {kind}\n  livemode: {}\n  account: {account}\n",
                event.livemode
            )
        }
    }
}

fn refused(rejection: &Rejection, diagnosis: Option<Diagnosis>, format: TextOrJson) -> String {
    let detail = match diagnosis.as_ref().map(|diagnosis| diagnosis.mistake.as_deref()) {
        Some(Some(mistake)) => format!("no signature fits this request: {mistake}"),
        Some(None) => UNEXPLAINED.to_owned(),
        None => rejection.detail.clone(),
    };
    let code = rejection.code.as_str();
    match format {
        TextOrJson::Json => json(&Refused { verdict: "refuse", code, detail: &detail }),
        TextOrJson::Text => {
            let mut text = format!("refuse: {code} ({})\n  {detail}\n", rejection.status().as_u16());
            if let Some(Diagnosis { tried, .. }) = diagnosis {
                text.push_str("  Every secret was tried on these texts; what was signed is none of them:\n");
                for (what, tried) in tried {
                    let _ = writeln!(text, "    {what}: {}", shortened(&tried));
                }
            }
            text
        }
    }
}

/// `text` in one line, and not longer than is read.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 300;
    let mut short: String = text
        .chars()
        .take(SHOWN)
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        short.push('…');
    }
    short
}

const UNEXPLAINED: &str = "no signature fits this request, and none of the known mistakes explains it. What it can be: values were \
    signed that are not sent, or were changed on the way; the secret is another app's, or an old one; the signature is another \
    user's or another account's";
