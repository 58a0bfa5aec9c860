//! Where events go: one `[[webhooks.deliver]]`.

use std::{sync::Arc, time::Duration};

use http::{Uri, uri::PathAndQuery};

use super::{
    app::check_name,
    mask::looks_secret,
    section::{Item, Section},
    upstreams::Upstreams,
    webhooks::{ATTEMPT, accounts, key},
};
use crate::{
    delivery::{Destination, Retry},
    upstream::Settings,
    webhook::{Interest, TypeFilter},
};

const TO: &str = "to = \"http://billing.intranet:3000/stripe\"";
const TYPES: &str = "types = [\"invoice.*\", \"customer.created\"]";
const DAY: Duration = Duration::from_secs(86_400);

/// Which events it takes, and how they get there; `None` after a mistake.
pub(super) fn destination<'c>(section: &Section<'c>, upstreams: &mut Upstreams<'c>) -> Option<(Interest, Destination)> {
    let name = section.required("name", "name = \"billing\"").and_then(|item| name(&item));
    let to = section.required("to", TO).and_then(|item| to(&item));
    let types = section.item("types").map_or(Some(None), |item| types(&item).map(Some));
    let accounts = section.item("accounts").map_or(Some(None), |item| accounts(&item).map(Some));
    let secret = section.item("secret");
    if let (None, Some(item)) = (&secret, section.item("to")) {
        item.warn(
            "deliveries are not signed: whoever reaches this service can pretend an event; write secret = { file = \"…\" } and \
             have the service verify it",
        );
    }
    let key = secret.map_or(Some(None), |item| key(&item, "webhooks.deliver.secret").map(Some));
    let wait = |name, range, default| section.item(name).map_or(Some(default), |item| item.duration(range));
    let timeout = wait("timeout", ATTEMPT, Duration::from_secs(10));
    let concurrency = section.item("concurrency").map_or(Some(4), |item| item.count(1..=1000));
    let ordered = section.item("ordered").map_or(Some(false), |item| item.flag());
    let retry = section.item("retry").map_or_else(|| Some(standard()), |item| retry(&item));
    let server = to.as_ref().map(|(origin, _)| origin.as_str());
    let reached = section.item("to").and_then(|item| upstreams.reached(section, &item, server?));
    let (name, (_, target), timeout) = (name?, to?, timeout?);
    let concurrency = concurrency.and_then(|count| usize::try_from(count).ok())?;
    let (server, tls, server_name) = reached?;
    let upstream = Settings {
        response_timeout: timeout,
        max_in_flight: concurrency.max(16),
        eject_after: 0,
        retry_budget: 0,
        tls,
        server_name,
        ..Settings::new(Arc::clone(&name), vec![server])
    };
    let interest = Interest { destination: Arc::clone(&name), types: types?, accounts: accounts? };
    let destination =
        Destination { name, upstream, target, key: key?, timeout, concurrency, ordered: ordered?, retry: retry? };
    Some((interest, destination))
}

fn name(item: &Item<'_>) -> Option<Arc<str>> {
    let text = item.text()?;
    let fits = looks_secret(text) || !check_name(text, item);
    (!fits).then(|| text.into())
}

/// The origin, and the path and query.
fn to(item: &Item<'_>) -> Option<(String, PathAndQuery)> {
    let text = item.text()?;
    let wrong = |what: &str| {
        let suggestion = format!("write the URL that the service takes events at: {TO}");
        item.error(&format!("{} {what}", item.shown(text)), Some(&suggestion));
        None
    };
    let Ok(uri) = text.parse::<Uri>() else { return wrong("is not a URL") };
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return wrong("is not a URL with a scheme and a host");
    };
    if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) {
        return wrong("is a URL of another scheme than http and https");
    }
    if text.contains('#') {
        return wrong("has a fragment in it");
    }
    let target = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    Some((format!("{scheme}://{authority}"), target))
}

fn types(list: &Item<'_>) -> Option<Vec<TypeFilter>> {
    let mut types = Vec::new();
    let mut complete = true;
    for item in &list.list(TYPES)? {
        let filter = item.text().and_then(|text| {
            let filter = TypeFilter::parse(text);
            if filter.is_none() {
                let suggestion = "write a type, \"invoice.paid\", or a prefix of whole words, \"invoice.*\"; leave `types` out for all";
                item.error(&format!("{} is no type of events", item.shown(text)), Some(suggestion));
            }
            filter
        });
        complete &= filter.is_some();
        types.extend(filter);
    }
    complete.then_some(types)
}

fn standard() -> Retry {
    Retry { first: Duration::from_secs(1), longest: Duration::from_secs(3600), give_up: 3 * DAY }
}

fn retry(item: &Item<'_>) -> Option<Retry> {
    let section = item.section("webhooks.deliver.retry")?;
    let standard = standard();
    let wait = |name, range, default| section.item(name).map_or(Some(default), |item| item.duration(range));
    let first = wait("first", Duration::from_millis(10)..=DAY, standard.first);
    let longest = wait("longest", Duration::from_millis(10)..=30 * DAY, standard.longest);
    let give_up = wait("give_up", Duration::from_millis(10)..=365 * DAY, standard.give_up);
    let (first, longest, give_up) = (first?, longest?, give_up?);
    if first > longest {
        let place = section.item("longest").or_else(|| section.item("first")).unwrap_or_else(|| item.clone());
        place.error("`longest` is shorter than `first`", Some("the pauses grow from `first` to `longest`"));
        return None;
    }
    Some(Retry { first, longest, give_up })
}
