//! How the inbox of events is kept.

use std::{path::Path, sync::Arc, time::Duration};

use tokio_postgres::config::{Host, SslMode};

use super::{
    listener::{path, report},
    reference,
    section::{Item, Section},
};
use crate::{
    inbox::{Postgres, Reach, Settings, Store},
    tls,
};

const DAY: Duration = Duration::from_secs(86_400);
const URL: &str = "postgres://countersign:PASSWORD@db.intranet/countersign?sslmode=require";

/// The settings, the defaults where nothing is said.
pub(super) fn inbox(root: &Section<'_>, state_directory: &Path) -> Option<Settings> {
    let standard = Settings { state_directory: state_directory.to_owned(), store: Store::Sqlite, retention: 30 * DAY };
    let Some(item) = root.item("inbox") else { return Some(standard) };
    let section = item.section("inbox")?;
    let retention =
        section.item("retention").map_or(Some(standard.retention), |item| item.duration(DAY / 24..=3650 * DAY));
    let unsafe_plain = section.item("unsafe_plain_postgres").map_or(Some(false), |item| {
        item.flag().inspect(|allowed| {
            if *allowed {
                item.warn("events and the database's password may cross the network in the clear");
            }
        })
    });
    let ca = section.item("postgres_ca");
    let store = match section.item("postgres") {
        None => {
            for (name, item) in
                [("postgres_ca", &ca), ("unsafe_plain_postgres", &section.item("unsafe_plain_postgres"))]
            {
                if let Some(item) = item {
                    let suggestion = "remove it, or write postgres = { file = \"secrets/inbox.url\" }";
                    item.key_error(&format!("`{name}` has no effect without `postgres`"), Some(suggestion));
                }
            }
            Some(Store::Sqlite)
        }
        Some(item) => postgres(&item, ca.as_ref(), unsafe_plain == Some(true)).map(Store::Postgres),
    };
    Some(Settings { store: store?, retention: retention?, ..standard })
}

/// Of the URL that `item` refers to.
fn postgres(item: &Item<'_>, ca: Option<&Item<'_>>, unsafe_plain: bool) -> Option<Postgres> {
    let secret = reference::read(item, "inbox.postgres")?;
    let wrong = |what: &str, suggestion: &str| {
        secret.item.error(&format!("{} {what}", secret.origin), Some(suggestion));
    };
    // Whoever is asked for over TLS is verified in full, whatever of it the URL wants.
    let text = zeroize::Zeroizing::new(requiring(secret.text.trim()));
    let Ok(mut config) = text.parse::<tokio_postgres::Config>() else {
        wrong("holds no URL of a PostgreSQL database", &format!("write one line: {URL}"));
        return None;
    };
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        wrong("names no host", &format!("write one line: {URL}"));
        return None;
    }
    if config.get_dbname().is_none() || config.get_user().is_none() {
        wrong("names no database or no user", &format!("write one line: {URL}"));
        return None;
    }
    let is_near =
        config.get_hosts().iter().all(is_near) && config.get_hostaddrs().iter().all(std::net::IpAddr::is_loopback);
    let is_plain = match config.get_ssl_mode() {
        SslMode::Disable => true,
        SslMode::Prefer => ca.is_none() && (is_near || unsafe_plain),
        _ => false,
    };
    if is_plain && !is_near && !unsafe_plain {
        wrong(
            "asks for a connection in the clear to another machine",
            "write sslmode=require, and `postgres_ca` where its authority is your own; if it must be: unsafe_plain_postgres = true",
        );
        return None;
    }
    if is_plain {
        if let Some(item) = ca {
            let suggestion = "write sslmode=require in the URL, or remove it";
            item.key_error("`postgres_ca` has no effect: the URL asks for a connection in the clear", Some(suggestion));
            return None;
        }
        config.ssl_mode(SslMode::Disable);
        return Some(Postgres::new(Reach { config, tls: None }));
    }
    config.ssl_mode(SslMode::Require);
    let roots = match ca {
        None => None,
        Some(item) => {
            Some(report(item, tls::certificates(&path(item)?), "name a PEM file with the authority's certificates")?)
        }
    };
    let anchor = ca.unwrap_or(item);
    match tls::client(roots, None) {
        Ok(client) => Some(Postgres::new(Reach { config, tls: Some(Arc::new(client)) })),
        Err(error) => {
            anchor.error(
                &format!("the certificate authorities of the database: {error}"),
                Some("name a PEM file with the authority's certificates as `postgres_ca`"),
            );
            None
        }
    }
}

/// The same, with the mode that the library knows in place of those that it does not; only behind user and password.
fn requiring(text: &str) -> String {
    let (user, rest) = text.rfind('@').and_then(|at| text.split_at_checked(at)).unwrap_or(("", text));
    let modes = ["sslmode=verify-ca", "sslmode=verify-full"];
    let rest = modes.iter().fold(rest.to_owned(), |rest, mode| rest.replace(mode, "sslmode=require"));
    format!("{user}{rest}")
}

/// Whether it is this machine.
fn is_near(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        Host::Unix(_) => true,
    }
}
