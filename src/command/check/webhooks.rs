//! The webhooks, as `countersign check` shows them.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::{shortened, table};
use crate::{
    config::{Config, Warning, masked},
    inbox::{Fault, OpenError, Store, desk::Desk},
    webhook::{Accounts, Interest, Livemode, Mode, Webhook},
};

/// What is warned of of the inbox itself, which no line of the configuration is about.
pub(super) const INBOX: &str = "the inbox";

/// Warns of what the inbox holds for destinations that are not in the configuration. A database is asked only if `strict`.
pub(in crate::command) fn warn_of_orphans(config: &mut Config, strict: bool) {
    let is_near = matches!(config.inbox.store, Store::Sqlite);
    let is_asked = is_near || strict && config.keeps_events();
    if !is_asked {
        return;
    }
    let held = match Desk::open(&config.inbox) {
        Ok(desk) => desk.stats().map(|(_, held)| held).map_err(|error| error.to_string()),
        // A gateway that has not started yet has none.
        Err(OpenError { fault: Fault::None, .. }) => return,
        Err(error) => Err(error.to_string()),
    };
    let mut warn = |text: String| {
        config.warnings.push(Warning { key: INBOX.to_owned(), line: None, text: masked(&text) });
    };
    let held = match held {
        Ok(held) => held,
        Err(error) => return warn(error),
    };
    let names: Vec<_> = config.destinations.iter().map(|destination| &*destination.name).collect();
    for of in held.iter().filter(|of| !names.contains(&of.destination.as_str())) {
        let count = of.pending + of.delivering;
        if count > 0 {
            warn(format!(
                "{count} deliveries wait for the destination `{}`, which is not in the configuration: put it back, or discard them",
                of.destination
            ));
        }
    }
}

/// A row for each destination.
struct Row<'c> {
    webhook: &'c Webhook,
    interest: &'c Interest,
    /// Where it goes.
    to: String,
    /// Whether what goes there is signed.
    is_signed: bool,
}

/// A table with a line for each destination.
pub(super) fn text(config: &Config, out: &mut dyn Write) -> io::Result<()> {
    const HEAD: [&str; 8] = ["WEBHOOK", "LIVEMODE", "ACCOUNTS", "MODE", "DESTINATION", "TYPES", "SIGNED", "TO"];
    let line = |row: Row<'_>| {
        let accounts = row.interest.accounts.as_ref().or(row.webhook.accounts.as_ref());
        [
            row.webhook.path.as_str().to_owned(),
            livemode(row.webhook).to_owned(),
            accounts.map_or_else(|| "any".to_owned(), counted),
            mode(row.webhook).to_owned(),
            row.interest.destination.to_string(),
            types(row.interest).map_or_else(|| "all".to_owned(), |types| shortened(&types)),
            if row.is_signed { "yes" } else { "no" }.to_owned(),
            row.to,
        ]
        .map(|cell: String| masked(&cell))
    };
    table(std::iter::once(HEAD.map(str::to_owned)).chain(rows(config).map(line)).collect(), out)
}

/// The same as JSON.
pub(super) fn json(config: &Config) -> Value {
    let row = |row: Row<'_>| {
        json!({
            "path": masked(row.webhook.path.as_str()),
            "livemode": livemode(row.webhook),
            "accounts": row.webhook.accounts.as_ref().map(listed),
            "mode": mode(row.webhook),
            "destination": &*row.interest.destination,
            "types": types(row.interest),
            "destination_accounts": row.interest.accounts.as_ref().map(listed),
            "signed": row.is_signed,
            "to": masked(&row.to),
        })
    };
    rows(config).map(row).collect()
}

fn rows(config: &Config) -> impl Iterator<Item = Row<'_>> {
    config.webhooks.iter().flat_map(move |webhook| {
        let of = move |interest| row(config, webhook, interest);
        let interests = match &webhook.mode {
            Mode::Inbox(interests) => interests.as_slice(),
            Mode::Direct(direct) => std::slice::from_ref(&direct.interest),
        };
        interests.iter().map(of)
    })
}

fn row<'c>(config: &'c Config, webhook: &'c Webhook, interest: &'c Interest) -> Row<'c> {
    let (servers, target, is_signed) = match &webhook.mode {
        Mode::Inbox(_) => {
            let found = config.destinations.iter().find(|destination| destination.name == interest.destination);
            found.map_or((None, None, false), |found| {
                (found.upstream.servers.first(), Some(&found.target), found.key.is_some())
            })
        }
        Mode::Direct(direct) => {
            let upstream = config.upstreams.get(direct.upstream);
            (upstream.and_then(|upstream| upstream.servers.first()), Some(&direct.target), direct.key.is_some())
        }
    };
    // Of the query nothing is shown: it may be a password.
    let to = servers.zip(target).map(|(server, target)| format!("{server}{}", target.path())).unwrap_or_default();
    Row { webhook, interest, to, is_signed }
}

fn livemode(webhook: &Webhook) -> &'static str {
    match webhook.livemode {
        Livemode::Only(true) => "true",
        Livemode::Only(false) => "false",
        Livemode::Any => "any",
    }
}

fn mode(webhook: &Webhook) -> &'static str {
    match webhook.mode {
        Mode::Inbox(_) => "inbox",
        Mode::Direct(_) => "direct",
    }
}

fn types(interest: &Interest) -> Option<Vec<String>> {
    interest.types.as_ref().map(|types| types.iter().map(ToString::to_string).collect())
}

fn counted(accounts: &Accounts) -> String {
    (accounts.connected.len() + usize::from(accounts.own)).to_string()
}

fn listed(accounts: &Accounts) -> Vec<String> {
    let mut listed: Vec<_> = accounts.connected.iter().map(ToString::to_string).collect();
    listed.extend(accounts.own.then(|| "self".to_owned()));
    listed.sort();
    listed
}
