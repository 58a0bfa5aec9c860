//! `countersign check`: loads as `run` does, shows the routes and certificates, and names the risks.

use std::{
    collections::HashSet,
    io::{self, Write},
    path::Path,
    time::SystemTime,
};

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    clock::unix_seconds,
    config::{self, Config, Environment, Errors, Problem, Scrutiny, Warning, masked},
    policy::{Accounts, Demand},
    route::{Pattern, Route},
    tls::{Certificate, Origin},
};

mod webhooks;

pub(super) use webhooks::warn_of_orphans;

/// The configuration can be used.
const FINE: u8 = 0;
/// The configuration cannot be used.
const CONFIGURATION: u8 = 78;

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// Checks the configuration at `config_path`: tables of routes, webhooks and certificates and the warnings on `out`, or all errors on `err`;
/// errors as JSON are an answer too and go to `out`. Answers the exit code. With `strict` the names of upstreams must resolve. Nobody reading is no mistake.
pub fn run(
    config_path: &Path,
    strict: bool,
    format: Format,
    environment: &Environment,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let scrutiny = if strict { Scrutiny::Names } else { Scrutiny::Files };
    let now = SystemTime::now();
    let mut config = match config::load(config_path, environment, now, scrutiny) {
        Ok(config) => config,
        Err(errors) => {
            // Where nobody reads, the exit code still tells.
            let _ = match format {
                Format::Text => write!(err, "{errors}").and_then(|()| err.flush()),
                Format::Json => writeln!(out, "{}", json_errors(&errors)).and_then(|()| out.flush()),
            };
            return CONFIGURATION;
        }
    };
    warn_of_orphans(&mut config, strict);
    let written = match format {
        Format::Text => text(&config, config_path, now, out),
        Format::Json => writeln!(out, "{}", json(&config, now)),
    };
    let _ = written.and_then(|()| out.flush());
    FINE
}

fn text(config: &Config, path: &Path, now: SystemTime, out: &mut dyn Write) -> io::Result<()> {
    const ROUTES: [&str; 8] = ["PATH", "METHODS", "APP", "ACCOUNTS", "WHO", "SIGNED", "UPSTREAM", "UPSTREAM PATH"];
    const CERTIFICATES: [&str; 4] = ["CERTIFICATE", "FROM", "UNTIL", "DAYS LEFT"];
    let routes = config.routes.iter().map(|route| row(config, route));
    if config.routes.iter().next().is_some() {
        table(std::iter::once(ROUTES.map(str::to_owned)).chain(routes).collect(), out)?;
        writeln!(out)?;
    }
    if !config.webhooks.is_empty() {
        webhooks::text(config, out)?;
        writeln!(out)?;
    }
    let certificates = config.listener.certificates.iter().map(|certificate| certificate_row(certificate, now));
    table(std::iter::once(CERTIFICATES.map(str::to_owned)).chain(certificates).collect(), out)?;
    let file = masked(&path.to_string_lossy());
    for Warning { key, line, text } in &config.warnings {
        writeln!(out, "\nwarning: {text}")?;
        match line {
            Some(line) => writeln!(out, "  --> {file}:{line}: {key}")?,
            None if key == webhooks::INBOX => writeln!(out, "  --> {key}")?,
            None => writeln!(out, "  --> environment: {key}")?,
        }
    }
    Ok(())
}

/// Writes rows whose cells are as wide as the widest of their column.
fn table<const COLUMNS: usize>(rows: Vec<[String; COLUMNS]>, out: &mut dyn Write) -> io::Result<()> {
    use std::fmt::Write as _;
    let mut widths = [0; COLUMNS];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// What stands in for a certificate has an end that concerns nobody.
fn certificate_row(certificate: &Certificate, now: SystemTime) -> [String; 4] {
    let names = if certificate.names().is_empty() { "no name".to_owned() } else { shortened(certificate.names()) };
    let (from, until, left) = match certificate.origin() {
        Origin::Files => ("files", until(certificate).date().to_string(), days_left(certificate, now).to_string()),
        Origin::Acme => ("ACME", until(certificate).date().to_string(), days_left(certificate, now).to_string()),
        Origin::StandIn => ("ACME, none yet", "-".to_owned(), "-".to_owned()),
    };
    [masked(&names), from.to_owned(), until, left]
}

fn json_certificate(certificate: &Certificate, now: SystemTime) -> Value {
    let (from, is_real) = match certificate.origin() {
        Origin::Files => ("files", true),
        Origin::Acme => ("acme", true),
        Origin::StandIn => ("stand_in", false),
    };
    json!({
        "names": certificate.names().iter().map(|name| masked(name)).collect::<Vec<_>>(),
        "from": from,
        "fingerprint": is_real.then(|| certificate.fingerprint()),
        "not_after": is_real.then(|| until(certificate).format(&Rfc3339).ok()),
        "days_left": is_real.then(|| days_left(certificate, now)),
    })
}

fn until(certificate: &Certificate) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(certificate.leaf().not_after).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Whole days; less than none for a certificate that has expired.
fn days_left(certificate: &Certificate, now: SystemTime) -> i64 {
    (certificate.leaf().not_after - unix_seconds(now)).div_euclid(86_400)
}

fn row(config: &Config, route: &Route) -> [String; 8] {
    let upstream = config.upstreams.get(route.upstream);
    let servers: Vec<_> = servers(config, route);
    let upstream = match upstream {
        Some(upstream) if servers == [upstream.name.to_string()] => upstream.name.to_string(),
        Some(upstream) => format!("{} -> {}", upstream.name, servers.join(", ")),
        None => String::new(),
    };
    let who = [("roles", roles(route)), ("users", users(route))];
    let who: Vec<_> = who.into_iter().filter_map(|(what, ids)| Some(format!("{what} {}", shortened(&ids?)))).collect();
    [
        route.pattern.as_str().to_owned(),
        route.methods.to_string(),
        app(route).to_owned(),
        accounts(route).map_or_else(|| "any".to_owned(), |count| count.to_string()),
        if who.is_empty() { "any user".to_owned() } else { who.join("; ") },
        signed(route).to_owned(),
        upstream,
        route.upstream_path.as_ref().map_or("as it came", Pattern::as_str).to_owned(),
    ]
    .map(|cell: String| masked(&cell))
}

fn json(config: &Config, now: SystemTime) -> Value {
    let route = |route: &std::sync::Arc<Route>| {
        json!({
            "path": masked(route.pattern.as_str()),
            "methods": route.methods.iter().map(http::Method::as_str).collect::<Vec<_>>(),
            "app": masked(app(route)),
            "accounts": accounts(route).map_or_else(|| json!("any"), |count| json!(count)),
            "roles": roles(route),
            "users": users(route),
            "signed": signed(route),
            "upstream": config.upstreams.get(route.upstream).map(|upstream| masked(&upstream.name)),
            "servers": servers(config, route),
            "upstream_path": route.upstream_path.as_ref().map(|path| masked(path.as_str())),
        })
    };
    let certificates = config.listener.certificates.iter().map(|certificate| json_certificate(certificate, now));
    let warning = |warning: &Warning| json!({ "key": warning.key, "line": warning.line, "text": warning.text });
    json!({
        "routes": config.routes.iter().map(route).collect::<Vec<_>>(),
        "webhooks": webhooks::json(config),
        "certificates": certificates.collect::<Vec<_>>(),
        "warnings": config.warnings.iter().map(warning).collect::<Vec<_>>(),
    })
}

fn json_errors(errors: &Errors) -> Value {
    let error = |problem: &Problem| {
        json!({
            "file": &*problem.file,
            "line": problem.line(),
            "column": problem.column(),
            "variable": problem.variable(),
            "message": problem.message,
            "suggestion": problem.suggestion,
        })
    };
    json!({ "errors": errors.iter().map(error).collect::<Vec<_>>() })
}

fn app(route: &Route) -> &str {
    route.app.to_str().unwrap_or_default()
}

/// How many accounts may pass; `None`: any.
fn accounts(route: &Route) -> Option<usize> {
    match &route.policy.accounts {
        Accounts::Only(accounts) => Some(accounts.len()),
        Accounts::Any => None,
    }
}

fn roles(route: &Route) -> Option<Vec<String>> {
    route.policy.roles.as_ref().map(sorted)
}

fn users(route: &Route) -> Option<Vec<String>> {
    route.policy.users.as_ref().map(sorted)
}

fn sorted<T: ToString>(ids: &HashSet<T>) -> Vec<String> {
    let mut ids: Vec<_> = ids.iter().map(|id| masked(&id.to_string())).collect();
    ids.sort();
    ids
}

fn shortened(ids: &[String]) -> String {
    const SHOWN: usize = 3;
    let first = ids.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match ids.len().checked_sub(SHOWN) {
        None | Some(0) => first,
        Some(more) => format!("{first} and {more} more"),
    }
}

fn signed(route: &Route) -> &'static str {
    match route.policy.signed {
        Demand::Identity => "identity",
        Demand::Body => "body",
    }
}

fn servers(config: &Config, route: &Route) -> Vec<String> {
    let servers = config.upstreams.get(route.upstream).map(|upstream| upstream.servers.as_slice()).unwrap_or_default();
    servers.iter().map(|server| masked(&server.to_string())).collect()
}
