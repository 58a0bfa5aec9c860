//! The webhooks: which of Stripe's events are taken, and who gets them.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;

use super::{
    SourceKind, destinations,
    mask::quoted,
    reference,
    routes::body_limit,
    section::{Item, Section},
    upstreams::Upstreams,
};
use crate::{
    delivery::Destination,
    identity::AccountId,
    limits::Limits,
    path::Ambiguous,
    policy::Demand,
    route::{Pattern, RouteTable},
    secret::{Kind, SigningSecret},
    signature::SigningKey,
    webhook::{Accounts, Direct, Livemode, Mode, Webhook, Webhooks},
};

const EXAMPLE: &str = "a table `[[webhooks]]` with `path`, `secrets` and `[[webhooks.deliver]]`";
const DELIVER: &str = "[[webhooks.deliver]] with `name` and `to`";
const SECRETS: &str = "secrets = [{ file = \"secrets/NAME.whsec\" }]";
const ACCOUNTS: &str = "accounts = [\"acct_…\", \"self\"]";
const BODY_BYTES: u64 = 1 << 20;
/// The inbox holds twice as much of what waits to be written.
const EVENT: RangeInclusive<u64> = 1..=32 << 20;
/// The largest list of addresses that is read.
const SOURCES_LIMIT_BYTES: u64 = 1 << 20;

/// The webhooks, and where their inbox's events go.
pub(super) struct Read {
    pub webhooks: Webhooks,
    pub destinations: Vec<Destination>,
}

/// What must be told apart over all webhooks.
struct Seen<'u, 'c> {
    upstreams: &'u mut Upstreams<'c>,
    routes: Option<&'u RouteTable>,
    limits: Option<&'u Limits>,
    /// Lines of paths and of destinations' names.
    paths: HashMap<String, usize>,
    names: HashMap<String, usize>,
    destinations: Vec<Destination>,
}

/// All of them; `None` after a mistake in one. `routes` are those of the same listener.
pub(super) fn webhooks<'c>(
    root: &Section<'c>,
    upstreams: &mut Upstreams<'c>,
    routes: Option<&RouteTable>,
    limits: Option<&Limits>,
) -> Option<Read> {
    let mut seen =
        Seen { upstreams, routes, limits, paths: HashMap::new(), names: HashMap::new(), destinations: Vec::new() };
    let Some(list) = root.item("webhooks") else {
        return Some(Read { webhooks: Webhooks::default(), destinations: Vec::new() });
    };
    let mut complete = true;
    let mut webhooks = Vec::new();
    for item in list.list(EXAMPLE)? {
        let webhook = item.section("webhooks").and_then(|section| webhook(&section, &mut seen));
        complete &= webhook.is_some();
        webhooks.extend(webhook.map(Arc::new));
    }
    complete.then(|| Read { webhooks: Webhooks::new(webhooks), destinations: seen.destinations })
}

fn webhook<'c>(section: &Section<'c>, seen: &mut Seen<'_, 'c>) -> Option<Webhook> {
    let path = section.required("path", "path = \"/stripe/events\"").and_then(|item| path(&item, seen));
    let keys = section.required("secrets", SECRETS).and_then(|item| keys(&item));
    let livemode = section.item("livemode").map_or(Some(Livemode::Only(true)), |item| livemode(&item));
    let accounts = section.item("accounts").map_or(Some(None), |item| accounts(&item).map(Some));
    let body_limit_bytes = section.item("body_limit").map_or(Some(BODY_BYTES), |item| {
        item.size(EVENT).and_then(|_| body_limit(&item, Some(Demand::Body), seen.limits))
    });
    let sources = section.item("sources").map_or(Some(None), |item| sources(&item).map(Some));
    let direct = section.item("mode").map_or(Some(false), |item| is_direct(&item));
    let deliver = section.required("deliver", DELIVER).and_then(|item| item.list(DELIVER));
    let mode = match (direct?, deliver?) {
        (false, items) => inbox(&items, seen),
        (true, items) => direct_to(&items, seen),
    };
    Some(Webhook {
        path: path?,
        keys: keys?,
        livemode: livemode?,
        accounts: accounts?,
        body_limit_bytes: body_limit_bytes?,
        sources: sources?,
        mode: mode?,
        tally: ArcSwap::default(),
        outcomes: ArcSwap::default(),
    })
}

fn inbox<'c>(items: &[Item<'c>], seen: &mut Seen<'_, 'c>) -> Option<Mode> {
    let mut interests = Vec::new();
    let mut complete = true;
    for item in items {
        let read = item.section("webhooks.deliver").and_then(|section| {
            let read = destinations::destination(&section, seen.upstreams);
            let named = section.item("name").is_some_and(|item| is_new_name(&item, &mut seen.names));
            read.filter(|_| named)
        });
        complete &= read.is_some();
        if let Some((interest, destination)) = read {
            interests.push(interest);
            seen.destinations.push(destination);
        }
    }
    complete.then_some(Mode::Inbox(interests))
}

fn direct_to<'c>(items: &[Item<'c>], seen: &mut Seen<'_, 'c>) -> Option<Mode> {
    if let Some(second) = items.get(1) {
        let suggestion = "keep one; several destinations take mode = \"inbox\", where none waits for another";
        second.error("a direct webhook has one destination, whose answer is Stripe's", Some(suggestion));
    }
    let section = items.first()?.section("webhooks.deliver")?;
    for name in ["concurrency", "ordered", "retry"] {
        if let Some(item) = section.item(name) {
            item.key_error(
                &format!("`{name}` has no effect in direct mode, where Stripe itself tries again"),
                Some("remove it, or write mode = \"inbox\""),
            );
        }
    }
    let read = destinations::destination(&section, seen.upstreams);
    let item = section.item("name")?;
    let is_new = is_new_name(&item, &mut seen.names);
    let (interest, destination) = read.filter(|_| is_new && items.len() == 1)?;
    if seen.upstreams.list.iter().any(|upstream| upstream.name == destination.name) {
        let suggestion = "metrics and logs tell upstreams by their names; choose another";
        item.error(&format!("an upstream is called {} as well", quoted(&destination.name)), Some(suggestion));
        return None;
    }
    let Destination { upstream, target, key, timeout, .. } = destination;
    let upstream = seen.upstreams.push(upstream);
    Some(Mode::Direct(Box::new(Direct { interest, upstream, target, key, timeout })))
}

/// Refuses a second destination of the same name: what is kept for one hangs on it.
fn is_new_name(item: &Item<'_>, names: &mut HashMap<String, usize>) -> bool {
    let Some(name) = item.as_text() else { return false };
    let Some(first) = names.insert(name.to_owned(), item.line()) else { return true };
    item.error(
        &format!("the destination on line {first} is called {} as well", item.shown(name)),
        Some("what is still to be delivered hangs on the name; choose another"),
    );
    false
}

fn path(item: &Item<'_>, seen: &mut Seen<'_, '_>) -> Option<Pattern> {
    let text = item.text()?;
    let pattern = match Pattern::parse(text) {
        Ok(pattern) if !pattern.is_prefix() => pattern,
        Ok(_) => {
            item.error(
                &format!("{} ends with a slash", item.shown(text)),
                Some("a webhook is exactly one path: write it without the slash, as Stripe is given it"),
            );
            return None;
        }
        Err(error) => {
            let suggestion = match error {
                Ambiguous::NotAbsolute if text.contains("://") => {
                    "write the path alone, as it stands in the endpoint's URL"
                }
                Ambiguous::NotAbsolute => "begin it with `/`",
                _ => "write the path literally",
            };
            item.error(&format!("{} is not a path: {error}", item.shown(text)), Some(suggestion));
            return None;
        }
    };
    let decoded = pattern.decoded();
    if seen.routes.is_some_and(|routes| routes.iter().any(|route| route.pattern.decoded() == decoded)) {
        item.error(&format!("{} is the path of a route", item.shown(text)), Some("a path is either; choose another"));
        return None;
    }
    if let Some(first) = seen.paths.insert(decoded.to_owned(), item.line()) {
        item.error(
            &format!("{} is the path of the webhook on line {first}", item.shown(text)),
            Some("an endpoint of Stripe has a path of its own; several destinations stand in one webhook"),
        );
        return None;
    }
    Some(pattern)
}

fn keys(list: &Item<'_>) -> Option<Vec<SigningKey>> {
    if list.as_text().is_some() {
        reference::read(list, "webhooks.secrets");
        return None;
    }
    let items = list.list(SECRETS)?;
    if let Some(third) = items.get(2) {
        third.error(
            "a webhook has one secret, or two while it is being rolled",
            Some("remove those that Stripe no longer signs with"),
        );
    }
    let mut keys: Vec<SigningKey> = Vec::new();
    let mut complete = items.len() <= 2;
    for item in &items {
        let key = key(item, "webhooks.secrets").filter(|key| {
            let is_new = keys.iter().all(|other| other.id() != key.id());
            if !is_new {
                let suggestion = "while a secret is being rolled the second differs from the first; remove one";
                item.error("this is the secret that this webhook has already", Some(suggestion));
            }
            is_new
        });
        complete &= key.is_some();
        keys.extend(key);
    }
    complete.then_some(keys)
}

/// The key made of the secret that `item` refers to.
pub(super) fn key(item: &Item<'_>, pattern: &'static str) -> Option<SigningKey> {
    let secret = reference::read(item, pattern)?;
    match SigningSecret::parse_as(Kind::Webhook, secret.text) {
        Ok(parsed) => Some(SigningKey::new(&parsed)),
        Err(error) => {
            secret.item.error(&format!("{}: {error}", secret.origin), Some(error.suggestion()));
            None
        }
    }
}

fn livemode(item: &Item<'_>) -> Option<Livemode> {
    if item.is_flag() {
        return item.flag().map(Livemode::Only);
    }
    if item.as_text() == Some("any") {
        return Some(Livemode::Any);
    }
    item.error("this is neither true, false nor \"any\"", Some("write livemode = true, false, or \"any\" for both"));
    None
}

fn is_direct(item: &Item<'_>) -> Option<bool> {
    match item.text()? {
        "inbox" => Some(false),
        "direct" => Some(true),
        other => {
            let known = "write \"inbox\", where events are kept until they are delivered, or \"direct\", where the one \
                         destination's answer is Stripe's";
            item.error(&format!("{} is no mode", item.shown(other)), Some(known));
            None
        }
    }
}

/// Connected accounts, and `self`.
pub(super) fn accounts(list: &Item<'_>) -> Option<Accounts> {
    let mut accounts = Accounts { connected: HashSet::new(), own: false };
    let mut complete = true;
    for item in &list.list(ACCOUNTS)? {
        let Some(text) = item.text() else {
            complete = false;
            continue;
        };
        if text == "self" {
            accounts.own = true;
        } else if AccountId::parse(text).is_ok() {
            accounts.connected.insert(text.into());
        } else {
            let suggestion = "an account id is `acct_` and letters or digits; \"self\" is your own account";
            item.error(&format!("{} is not an account id", item.shown(text)), Some(suggestion));
            complete = false;
        }
    }
    complete.then_some(accounts)
}

/// The addresses in the file that `item` names, one range a line; empty lines and those that begin with `#` are passed over.
fn sources(item: &Item<'_>) -> Option<Vec<IpNet>> {
    use std::io::Read as _;
    const FORM: &str = "one address or range a line, such as 3.18.12.63 or 2a00:1450::/32";
    let section = item.section("webhooks.sources")?;
    let item = section.required("file", "sources = { file = \"stripe-addresses.txt\" }")?;
    let path = item.context.file(item.text()?);
    item.context.note_source(&item, SourceKind::Addresses, &path);
    let named = quoted(&path.to_string_lossy());
    let mut text = String::new();
    let read = std::fs::File::open(&path).and_then(|file| file.take(SOURCES_LIMIT_BYTES + 1).read_to_string(&mut text));
    match read {
        Ok(length) if u64::try_from(length).is_ok_and(|length| length <= SOURCES_LIMIT_BYTES) => {}
        Ok(_) => {
            item.error(&format!("{named} is larger than 1 MiB"), Some(FORM));
            return None;
        }
        Err(error) => {
            let reason = crate::tls::reason(error.kind());
            item.error(
                &format!("{named} cannot be read: {reason}"),
                Some("name a file with Stripe's addresses, one a line"),
            );
            return None;
        }
    }
    let mut ranges = Vec::new();
    for (number, line) in (1_usize..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let address = || line.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical()));
        let Some(range) = line.parse::<IpNet>().ok().or_else(address) else {
            item.error(&format!("{named} has no address on its line {number}"), Some(FORM));
            return None;
        };
        ranges.push(range.trunc());
    }
    if ranges.is_empty() {
        item.error(&format!("{named} lists no address: every event would be refused"), Some(FORM));
        return None;
    }
    Some(ranges)
}

/// How long an attempt may take.
pub(super) const ATTEMPT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(600);
