//! `countersign explain`: what the gateway thinks of a captured request, by the gateway's own code.

use std::{
    fmt::Write as _,
    io::Read as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use clap::{ArgGroup, Args, ValueEnum};
use http::{HeaderValue, Method};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncWriteExt as _, sync::mpsc};

use super::{FINE, NEGATIVE, SOFTWARE, TextOrJson, USAGE, loaded, say, say_error, sign::key_of_file};
use crate::{
    auth::{Scheme, StripeApp},
    body::Room,
    clock::{Clock, unix_seconds},
    gateway::{Activity, Arrival, Busy, Gateway, Verdict},
    identity::{RoleId, UserId},
    limits::Limits,
    policy::{Accounts, Demand, Policy},
    record::Log,
    rejection::{Code, Rejection},
    route::{HeaderEdits, Methods, Pattern, Route, RouteTable},
    server::wire::{Checked, Refusal},
    signature::SigningKey,
};

/// The longest capture that is looked at.
const CAPTURE_LIMIT_BYTES: u64 = 64 * 1024 * 1024;

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
    /// The raw HTTP request; left out or -, standard input.
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
    let (routes, names, limits) = match rules(options) {
        Ok(rules) => rules,
        Err(code) => return code,
    };
    let capture = match capture(options.file.as_ref()) {
        Ok(capture) => whole(&capture),
        Err(error) => {
            say_error(&format!("error: the request cannot be read: {error}\n"));
            return USAGE;
        }
    };
    let now = options.now.unwrap_or_else(|| unix_seconds(SystemTime::now()));
    let Some(judged) = judge(routes, names, limits, now, &capture) else {
        say_error("error: this is no HTTP request, or not all of one\n");
        return NEGATIVE;
    };
    match judged {
        Ok(verdict) => {
            say(&accepted(&verdict, options.format));
            FINE
        }
        Err(rejection) => {
            say(&refused(&rejection, options.format));
            NEGATIVE
        }
    }
}

type Rules = (RouteTable, Vec<String>, Limits);

/// The routes of the configuration, or one for every path and the secrets given.
fn rules(options: &Options) -> Result<Rules, u8> {
    if options.secret_file.is_empty() {
        let config = loaded(options.config.clone())?;
        return Ok((config.routes, config.listener.names, config.limits));
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
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
    };
    let routes = RouteTable::new(vec![Arc::new(route)]).map_err(|_| SOFTWARE)?;
    Ok((routes, Vec::new(), limits))
}

fn capture(file: Option<&PathBuf>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match file.filter(|path| path.as_os_str() != "-") {
        Some(path) => std::fs::File::open(path)?.take(CAPTURE_LIMIT_BYTES).read_to_end(&mut bytes)?,
        None => std::io::stdin().take(CAPTURE_LIMIT_BYTES).read_to_end(&mut bytes)?,
    };
    Ok(bytes)
}

/// A capture as it would have come over the wire: an editor may have taken its carriage returns, or a tool the length
/// of its body. What is changed is said.
fn whole(capture: &[u8]) -> Vec<u8> {
    let find = |what: &[u8]| capture.windows(what.len()).position(|part| part == what);
    let (head, body) = match (find(b"\r\n\r\n"), find(b"\n\n")) {
        (Some(at), _) => (capture.get(..at).unwrap_or_default().to_vec(), capture.get(at + 4..).unwrap_or_default()),
        (None, Some(at)) => (capture.get(..at).unwrap_or_default().to_vec(), capture.get(at + 2..).unwrap_or_default()),
        (None, None) => (capture.trim_ascii_end().to_vec(), &[][..]),
    };
    let mut head = String::from_utf8_lossy(&head).into_owned();
    if !head.contains('\r') && head.contains('\n') {
        say_error("note: the lines end in bare line feeds; taken as if they ended in CR LF\n");
        head = head.replace('\n', "\r\n");
    }
    let framed = head.lines().any(|line| {
        let name = line.split(':').next().unwrap_or_default();
        name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding")
    });
    if !framed && !body.is_empty() {
        say_error("note: the request has a body but no Content-Length; taken as if it had one\n");
        let _ = write!(head, "\r\nContent-Length: {}", body.len());
    }
    let mut whole = head.into_bytes();
    whole.extend_from_slice(b"\r\n\r\n");
    whole.extend_from_slice(body);
    whole
}

/// Has the gateway read the capture as from a connection. `None` if it holds no whole request.
fn judge(
    routes: RouteTable,
    names: Vec<String>,
    limits: Limits,
    now: i64,
    capture: &[u8],
) -> Option<Result<Verdict, Rejection>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let (log, _writer) = Log::start(Box::new(std::io::sink()), String::new()).ok()?;
    runtime.block_on(async {
        let room = Arc::new(Room::new(limits.buffered_bytes));
        let clock = Clock::Set(Arc::new(AtomicI64::new(now)));
        let gateway =
            Gateway { routes: Arc::new(routes), upstreams: Vec::new(), limits, names: names.into(), room, log, clock };
        let (mut client, connection) = tokio::io::duplex(64 * 1024);
        let refusal = Arc::new(Refusal::default());
        let io = TokioIo::new(Checked::new(connection, &gateway.limits, Arc::clone(&refusal)));
        let (verdicts, mut verdict) = mpsc::unbounded_channel();
        let (place, activity) = (AtomicU64::new(0), Activity::new());
        let service = service_fn(|request: Request<Incoming>| {
            let fault = refusal.of(place.fetch_add(1, Ordering::Relaxed));
            let arrival = Arrival { client: None, fault, busy: Busy::new(&activity) };
            let judging = gateway.judge(arrival, request);
            let verdicts = verdicts.clone();
            async move {
                let _ = verdicts.send(judging.await);
                Ok::<_, std::convert::Infallible>(Response::new(String::new()))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .half_close(true)
            .serve_connection(io, service);
        let sending = async {
            let _ = client.write_all(capture).await;
            // What has not come by now will not.
            let _ = client.shutdown().await;
            std::future::pending::<()>().await;
        };
        // The connection may end in the same moment as it is judged.
        tokio::select! {
            _ = connection => verdict.try_recv().ok(),
            () = sending => None,
        }
    })
}

fn accepted(verdict: &Verdict, format: TextOrJson) -> String {
    match (verdict, format) {
        (Verdict::Preflight, TextOrJson::Text) => "preflight: answered 204 without a signature\n".to_owned(),
        (Verdict::Preflight, TextOrJson::Json) => "{\"verdict\":\"preflight\"}\n".to_owned(),
        (Verdict::Accept(principal), TextOrJson::Json) => {
            let roles: Vec<_> = principal.roles().iter().map(RoleId::as_str).collect();
            let verdict = serde_json::json!({
                "verdict": "accept",
                "user": principal.user().map(UserId::as_str),
                "account": principal.account().as_str(),
                "roles": roles,
                "signed": principal.signed().as_str(),
            });
            format!("{verdict}\n")
        }
        (Verdict::Accept(principal), TextOrJson::Text) => {
            let user = principal.user().map_or("none", UserId::as_str);
            let roles: Vec<_> = principal.roles().iter().map(RoleId::as_str).collect();
            let roles = if roles.is_empty() { "none proven".to_owned() } else { roles.join(", ") };
            let (account, signed) = (principal.account(), principal.signed().as_str());
            format!("accept\n  user: {user}\n  account: {account}\n  roles: {roles}\n  signed: {signed}\n")
        }
    }
}

fn refused(rejection: &Rejection, format: TextOrJson) -> String {
    match format {
        TextOrJson::Json => {
            let verdict = serde_json::json!({
                "verdict": "refuse",
                "code": rejection.code.as_str(),
                "detail": rejection.detail,
            });
            format!("{verdict}\n")
        }
        TextOrJson::Text => {
            let mut text = format!(
                "refuse: {} ({})\n  {}\n",
                rejection.code.as_str(),
                rejection.code.status().as_u16(),
                rejection.detail
            );
            if rejection.code == Code::SignatureMismatch {
                text.push_str(MISTAKES);
            }
            text
        }
    }
}

/// What makes a signature not fit, most common first.
const MISTAKES: &str = "  Every secret was tried on: the raw body, the body as JavaScript prints it, the same with the ids last,\n  \
the roles with the ids, and the ids alone. What usually is the matter:\n  \
1. values were passed to fetchStripeSignature() that are not in the body, or in another order;\n  \
2. the body was parsed and printed again on its way (spaces, numbers, key order);\n  \
3. the secret is another app's, or a webhook endpoint's (whsec_);\n  \
4. the secret was copied with a space or line feed;\n  \
5. the request names another user or account than was signed.\n";
