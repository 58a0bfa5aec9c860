//! `countersign sign`: a request that the gateway accepts, as a UI extension would send it, or an event as Stripe would.

use std::{fmt::Write as _, path::PathBuf, time::SystemTime};

use clap::{ArgGroup, Args, ValueEnum};
use http::{Method, Uri};
use zeroize::Zeroizing;

use super::{CONFIGURATION, FINE, NEGATIVE, USAGE, loaded, say, say_error};
use crate::{
    auth::Scheme,
    clock::unix_seconds,
    identity::{AccountId, RoleId, UserId},
    json::Document,
    secret::{Kind, SigningSecret},
    signature::SigningKey,
};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("key").required(true).args(["app", "secret_file"]))]
pub(super) struct Options {
    /// The app of the configuration whose secret signs (the first, where two are active).
    #[arg(long)]
    app: Option<String>,
    /// The configuration that has the app.
    #[arg(long, requires = "app")]
    config: Option<PathBuf>,
    /// A file with the signing secret.
    #[arg(long)]
    secret_file: Option<PathBuf>,
    /// The user, usr_…; left out, only the account is signed.
    #[arg(long)]
    user: Option<String>,
    /// The account, acct_…
    #[arg(long, required_unless_present = "webhook")]
    account: Option<String>,
    /// Sign the bytes of --body as Stripe signs an event, with the secret of a webhook, whsec_…, in --secret-file.
    #[arg(long, requires = "secret_file", requires = "body",
        conflicts_with_all = ["app", "user", "account", "payload", "role", "carrier"])]
    webhook: bool,
    /// A JSON object of further values to sign and send.
    #[arg(long, conflicts_with = "body")]
    payload: Option<String>,
    /// A role's id to sign and send; may be repeated.
    #[arg(long)]
    role: Vec<String>,
    /// The signature's time, in seconds since the epoch; left out, now.
    #[arg(long)]
    at: Option<i64>,
    /// Where the ids travel; left out, in the body where there is one, else in headers.
    #[arg(long, value_enum)]
    carrier: Option<Carrier>,
    /// A file sent as the body, as it is. A JSON object is signed whole, with the ids; of anything else a signature
    /// covers the identity only.
    #[arg(long)]
    body: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    method: String,
    url: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Carrier {
    Body,
    Headers,
    Query,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    #[default]
    Curl,
    Headers,
    Json,
}

/// A request ready to be sent.
#[derive(Debug)]
pub(super) struct Signed {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Option<Body>,
}

/// The bytes of a body, and the file they are from.
#[derive(Debug)]
pub(super) struct Body {
    bytes: Vec<u8>,
    file: Option<PathBuf>,
}

/// What is signed and how it is sent.
#[derive(Debug)]
pub(super) struct Request<'r> {
    pub(super) method: Method,
    pub(super) url: &'r str,
    pub(super) user: Option<UserId>,
    pub(super) account: AccountId,
    pub(super) payload: Option<&'r str>,
    pub(super) roles: Vec<RoleId>,
    pub(super) at: i64,
    pub(super) carrier: Option<Carrier>,
    pub(super) body: Option<Body>,
}

pub(super) fn run(options: &Options) -> u8 {
    let key = match key(options) {
        Ok(key) => key,
        Err(code) => return code,
    };
    let signed =
        if options.webhook { event(options, &key) } else { request(options).and_then(|request| signed(request, &key)) };
    match signed {
        Ok(signed) => {
            say(&match options.format {
                Format::Curl => format!("{}\n", signed.curl(&[])),
                Format::Headers => signed.lines(),
                Format::Json => format!("{:#}\n", signed.json()),
            });
            FINE
        }
        Err(what) => {
            say_error(&format!("error: {what}\n"));
            USAGE
        }
    }
}

fn key(options: &Options) -> Result<SigningKey, u8> {
    if let Some(path) = &options.secret_file {
        let kind = if options.webhook { Kind::Webhook } else { Kind::App };
        return key_in_file(path, kind);
    }
    let config = loaded(options.config.clone())?;
    let name = options.app.as_deref().unwrap_or_default();
    let route = config.routes.iter().find(|route| route.app.as_bytes() == name.as_bytes());
    let key = route.and_then(|route| match route.scheme.as_ref() {
        Scheme::StripeApp(app) => app.keys.first().cloned(),
    });
    key.ok_or_else(|| {
        say_error(&format!("error: no route of the configuration has the app `{name}`\n"));
        NEGATIVE
    })
}

/// The key that a file's secret makes, or the exit code after its error was told.
pub(super) fn key_of_file(path: &std::path::Path) -> Result<SigningKey, u8> {
    key_in_file(path, Kind::App)
}

fn key_in_file(path: &std::path::Path, kind: Kind) -> Result<SigningKey, u8> {
    let told = |what: String| {
        say_error(&format!("error: {}: {what}\n", path.display()));
        CONFIGURATION
    };
    let text = std::fs::read_to_string(path).map_err(|error| told(error.to_string()))?;
    let secret = SigningSecret::parse_as(kind, Zeroizing::new(text));
    secret.map(|secret| SigningKey::new(&secret)).map_err(|error| told(format!("{error}; {}", error.suggestion())))
}

fn request(options: &Options) -> Result<Request<'_>, String> {
    let id = |what: &str, text: &str| format!("`{text}` is not {what}");
    Ok(Request {
        method: method(options)?,
        url: &options.url,
        user: options
            .user
            .as_deref()
            .map(|text| UserId::parse(text).map_err(|_| id("a user id (usr_…)", text)))
            .transpose()?,
        account: {
            let account = options.account.as_deref().unwrap_or_default();
            AccountId::parse(account).map_err(|_| id("an account id (acct_…)", account))?
        },
        payload: options.payload.as_deref(),
        roles: options
            .role
            .iter()
            .map(|text| RoleId::parse(text).map_err(|_| id("a role id", text)))
            .collect::<Result<_, _>>()?,
        at: options.at.unwrap_or_else(|| unix_seconds(SystemTime::now())),
        carrier: options.carrier,
        body: body(options)?,
    })
}

fn method(options: &Options) -> Result<Method, String> {
    Method::from_bytes(options.method.as_bytes()).map_err(|_| format!("`{}` is not a method", options.method))
}

fn body(options: &Options) -> Result<Option<Body>, String> {
    let read = |file: &PathBuf| Ok(Body { bytes: std::fs::read(file)?, file: Some(file.clone()) });
    options
        .body
        .as_ref()
        .map(read)
        .transpose()
        .map_err(|error: std::io::Error| format!("the body cannot be read: {error}"))
}

/// An event as Stripe posts it: the bytes of its body signed, and nothing else.
fn event(options: &Options, key: &SigningKey) -> Result<Signed, String> {
    let body = body(options)?;
    let bytes = body.as_ref().map(|body| body.bytes.as_slice()).unwrap_or_default();
    let at = options.at.unwrap_or_else(|| unix_seconds(SystemTime::now()));
    let headers = vec![
        ("Stripe-Signature", key.header(at, bytes)),
        ("Content-Type", "application/json; charset=utf-8".to_owned()),
    ];
    let url = checked_url(&options.url)?;
    Ok(Signed { method: method(options)?, url, headers, body })
}

/// A URL that can be asked.
fn checked_url(text: &str) -> Result<String, String> {
    let url: Uri = text.parse().map_err(|_| format!("`{text}` is not a URL"))?;
    if url.scheme().is_none() || url.authority().is_none() {
        return Err(format!("`{text}` is not a URL with scheme and host"));
    }
    if text.contains('#') {
        return Err(format!("`{text}` has a fragment (#), which is never sent"));
    }
    Ok(text.to_owned())
}

/// Signs as Stripe does: the extra values first, in their order, then the roles, the ids last.
pub(super) fn signed(request: Request<'_>, key: &SigningKey) -> Result<Signed, String> {
    let mut url = checked_url(request.url)?;
    let extras = extras(request.payload, &request.roles)?;
    let bodyless = matches!(request.method, Method::GET | Method::HEAD);
    if bodyless && (extras.is_some() || request.carrier == Some(Carrier::Body)) {
        return Err(
            "a GET or HEAD has no body: it can carry no payload and no roles, and its ids go by --carrier headers or query"
                .to_owned()
        );
    }
    if request.body.is_some() && (extras.is_some() || request.carrier == Some(Carrier::Body)) {
        return Err(
            "a --body is sent as it is: put stripe_roles and other values into the file, and let the ids go by --carrier headers \
             or query"
                .to_owned(),
        );
    }
    let default = if bodyless || request.body.is_some() { Carrier::Headers } else { Carrier::Body };
    let carrier = request.carrier.unwrap_or(default);

    let user = request.user.as_ref().map(|user| ("user_id", user.as_str()));
    let ids: Vec<_> = user.into_iter().chain([("account_id", request.account.as_str())]).collect();
    let without = extras.unwrap_or_else(|| b"{}".to_vec());
    let document = match request.body.as_ref().map(|body| whole(&body.bytes, &ids)).transpose()?.flatten() {
        Some(document) => document,
        None => Document::parse(&without).map_err(|error| format!("the payload: {error}"))?,
    };
    let mut payload = Vec::new();
    document.print_with_last(&ids, &mut payload);

    let mut headers = vec![("Stripe-Signature", key.header(request.at, &payload))];
    match carrier {
        Carrier::Body => {}
        Carrier::Headers => {
            for (name, id) in &ids {
                let name = if *name == "user_id" { "Stripe-User-Id" } else { "Stripe-Account-Id" };
                headers.push((name, (*id).to_owned()));
            }
        }
        Carrier::Query => {
            for (name, id) in &ids {
                let joint = if url.contains('?') { '&' } else { '?' };
                let _ = write!(url, "{joint}{name}={id}");
            }
        }
    }
    let body = match carrier {
        Carrier::Body => Some(Body { bytes: payload, file: None }),
        Carrier::Headers | Carrier::Query if request.body.is_some() => request.body,
        Carrier::Headers | Carrier::Query => (without != b"{}").then_some(Body { bytes: without, file: None }),
    };
    let json = body.as_ref().is_some_and(|body| Document::parse(&body.bytes).is_ok());
    if body.is_some() {
        let kind = if json { "application/json" } else { "application/octet-stream" };
        headers.push(("Content-Type", kind.to_owned()));
    }
    Ok(Signed { method: request.method, url, headers, body })
}

/// A body that a signature can cover whole: a JSON object that names nobody else, and whose numbers JavaScript keeps.
fn whole<'b>(body: &'b [u8], ids: &[(&str, &str)]) -> Result<Option<Document<'b>>, String> {
    let Some(document) = Document::parse(body).ok().filter(|body| body.is_object() && !body.has_lossy_number()) else {
        return Ok(None);
    };
    for name in ["user_id", "account_id"] {
        let signed = ids.iter().find(|(known, _)| *known == name).map(|(_, id)| *id);
        let said = document.member(name).filter(|said| !said.is_null());
        if said.is_some_and(|said| said.as_str().as_deref() != signed) {
            return Err(format!("the body has another {name} than is signed"));
        }
    }
    Ok(Some(document))
}

/// The payload with the roles behind it, as JavaScript prints it; `None` for neither.
fn extras(payload: Option<&str>, roles: &[RoleId]) -> Result<Option<Vec<u8>>, String> {
    if payload.is_none() && roles.is_empty() {
        return Ok(None);
    }
    let document =
        Document::parse(payload.unwrap_or("{}").as_bytes()).map_err(|error| format!("the payload: {error}"))?;
    if !document.is_object() {
        return Err("the payload is not a JSON object".to_owned());
    }
    let mut printed = Vec::new();
    document.print(&mut printed);
    if !roles.is_empty() {
        if document.member("stripe_roles").is_some() {
            return Err("the roles are given by --role and in the payload".to_owned());
        }
        printed.pop();
        let joint = if printed.len() > 1 { "," } else { "" };
        let list: Vec<_> = roles.iter().map(role).collect();
        let list = list.join(",");
        printed.extend_from_slice(format!("{joint}\"stripe_roles\":[{list}]}}").as_bytes());
    }
    Ok(Some(printed))
}

fn role(id: &RoleId) -> String {
    const BUILT_IN: [&str; 7] =
        ["admin", "super_admin", "developer", "analyst", "support_specialist", "view_only", "refund_analyst"];
    let kind = if BUILT_IN.contains(&id.as_str()) { "builtIn" } else { "custom" };
    let id = serde_json::Value::from(id.as_str());
    format!("{{\"type\":\"{kind}\",\"id\":{id},\"name\":{id}}}")
}

impl Signed {
    /// A line for a POSIX shell; `options` come before everything else.
    pub(super) fn curl(&self, options: &[&str]) -> String {
        let mut line = "curl".to_owned();
        for option in options {
            let _ = write!(line, " {}", quoted(option));
        }
        if self.method == Method::HEAD {
            line.push_str(" --head");
        } else if self.method != Method::GET {
            let _ = write!(line, " --request {}", self.method);
        }
        for (name, value) in &self.headers {
            let _ = write!(line, " --header {}", quoted(&format!("{name}: {value}")));
        }
        if let Some(body) = &self.body {
            let data = match &body.file {
                Some(file) => format!("@{}", file.to_string_lossy()),
                None => String::from_utf8_lossy(&body.bytes).into_owned(),
            };
            let _ = write!(line, " --data-binary {}", quoted(&data));
        }
        let _ = write!(line, " {}", quoted(&self.url));
        line
    }

    fn lines(&self) -> String {
        let mut lines = String::new();
        for (name, value) in &self.headers {
            let _ = writeln!(lines, "{name}: {value}");
        }
        if let Some(body) = &self.body {
            let _ = writeln!(lines, "\n{}", String::from_utf8_lossy(&body.bytes));
        }
        lines
    }

    fn json(&self) -> serde_json::Value {
        let headers: serde_json::Map<_, _> =
            self.headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())).collect();
        serde_json::json!({
            "method": self.method.as_str(),
            "url": self.url,
            "headers": headers,
            "body": self.body.as_ref().map(|body| String::from_utf8_lossy(&body.bytes).into_owned()),
        })
    }
}

/// `text` as one word of a POSIX shell.
fn quoted(text: &str) -> String {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&b));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
