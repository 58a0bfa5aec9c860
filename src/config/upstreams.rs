//! The internal services: those with a name, and those that a route gives as an origin.

use std::{collections::HashMap, net::ToSocketAddrs as _, sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use rustls_pki_types::{CertificateDer, ServerName};
use sha2::{Digest as _, Sha256};

use super::{
    Scrutiny,
    app::check_name,
    file,
    limits::{WAIT, wide},
    listener::{Pair, pair, path, report},
    mask::{looks_secret, quoted},
    origin,
    section::{Item, Section},
};
use crate::{
    tls,
    upstream::{Check, Origin, Place, Protocol, Settings, Tls, address},
};

/// How often servers are asked whether they are well, how long they may take, and how many answers decide.
const CHECK_EVERY: Duration = Duration::from_secs(10);
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
const CHECK_HEALTHY: u32 = 2;
const CHECK_UNHEALTHY: u32 = 3;
const MOST: u64 = 1_000_000;
const SERVERS: &str = "servers = [\"http://orders.intranet:8080\"]";

/// All upstreams, in the order in which routes refer to them.
#[derive(Default)]
pub(super) struct Upstreams<'c> {
    pub list: Vec<Settings>,
    named: HashMap<String, Named<'c>>,
    /// The places of those that routes gave as an origin, by its text in small letters.
    origins: HashMap<String, Option<usize>>,
    plain_tls: Option<Tls>,
    resolved: HashMap<String, Option<String>>,
}

struct Named<'c> {
    /// `None` after a mistake in it.
    place: Option<usize>,
    item: Item<'c>,
    used: bool,
}

impl<'c> Upstreams<'c> {
    /// Reads the named ones.
    pub(super) fn read(root: &Section<'c>) -> Self {
        let mut upstreams = Self::default();
        let Some(section) = root.item("upstreams").and_then(|item| item.section("upstreams")) else { return upstreams };
        for (name, item) in section.names() {
            let fits = check_name(&name, &item);
            let settings = item.section("upstreams.NAME").and_then(|section| upstreams.settings(&name, &section));
            let place = settings.filter(|_| fits).map(|settings| upstreams.push(settings));
            upstreams.named.insert(name, Named { place, item, used: false });
        }
        upstreams
    }

    /// The place of the upstream that a route's `item` names, or gives as an origin.
    pub(super) fn place_of(&mut self, item: &Item<'c>) -> Option<usize> {
        let text = item.text()?;
        if let Some(named) = self.named.get_mut(text) {
            named.used = true;
            return named.place;
        }
        if text.contains("://") || text.starts_with("unix:") {
            // Paths of sockets differ by case, schemes and hosts do not.
            let key = if text.starts_with("unix:") { text.to_owned() } else { text.to_ascii_lowercase() };
            if let Some(Some(place)) = self.origins.get(&key) {
                return Some(*place);
            }
            let settings = self.unnamed(item, text);
            let place = settings.map(|settings| self.push(settings));
            self.origins.insert(key, place);
            return place;
        }
        let names = || self.named.keys().map(String::as_str);
        let suggestion = match file::nearest(text, names()) {
            Some(known) => format!("did you mean {}?", quoted(known)),
            None if text.contains(['.', ':', '/']) => origin::Error::NoScheme.suggestion().to_owned(),
            None if self.named.is_empty() => {
                format!("write a table `[upstreams.NAME]` with `{SERVERS}`, or an origin here")
            }
            None => {
                let mut known: Vec<_> = names().map(quoted).collect();
                known.sort();
                format!("known upstreams: {}", known.join(", "))
            }
        };
        item.error(&format!("no upstream is called {}", item.shown(text)), Some(&suggestion));
        None
    }

    /// Warns of those that no route uses.
    pub(super) fn warn_of_unused(&self) {
        for (name, named) in &self.named {
            if !named.used && named.place.is_some() {
                named.item.warn(&format!("no route uses the upstream {}", quoted(name)));
            }
        }
    }

    pub(super) fn push(&mut self, settings: Settings) -> usize {
        self.list.push(settings);
        self.list.len() - 1
    }

    fn settings(&mut self, name: &str, section: &Section<'c>) -> Option<Settings> {
        let unsafe_link_local = section.item("unsafe_link_local").map_or(Some(false), |item| {
            item.flag().inspect(|allowed| {
                if *allowed {
                    item.warn("link-local and metadata addresses are allowed: a route may lead to this machine's cloud credentials");
                }
            })
        });
        let servers = section.required("servers", SERVERS).and_then(|item| {
            let items = item.list(SERVERS)?;
            let parsed: Vec<_> = items.iter().map(|item| self.server(item, unsafe_link_local != Some(false))).collect();
            if let [only] = items.as_slice() {
                only.warn("this upstream has one server: while it restarts, its routes answer 502");
            }
            parsed.into_iter().collect::<Option<Vec<_>>>()
        });
        let standard = Settings::new(name.into(), Vec::new());
        let wait = |name, default| section.item(name).map_or(Some(default), |item| item.duration(WAIT));
        let count = |name, range, default: usize| {
            let count = section.item(name).map_or(Some(wide(default)), |item| item.count(range));
            count.and_then(|count| usize::try_from(count).ok())
        };
        let few = |name, most, default: u32| {
            let count = section.item(name).map_or(Some(u64::from(default)), |item| item.count(0..=most));
            count.and_then(|count| u32::try_from(count).ok())
        };
        // Each is read before any is missed, so that all mistakes are told.
        let connect_timeout = wait("connect_timeout", standard.connect_timeout);
        let response_timeout = wait("response_timeout", standard.response_timeout);
        let idle_timeout = wait("idle_timeout", standard.idle_timeout);
        let max_in_flight = count("max_in_flight", 1..=MOST, standard.max_in_flight);
        let max_queued = count("max_queued", 0..=MOST, standard.max_queued);
        let queue_timeout = wait("queue_timeout", standard.queue_timeout);
        let dns_ttl = wait("dns_ttl", standard.dns_ttl);
        let health = match section.item("health") {
            None => Some(None),
            Some(item) => health(&item).map(Some),
        };
        let eject_after = few("eject_after", 1000, standard.eject_after);
        let eject_for = wait("eject_for", standard.eject_for);
        let retry_budget = few("retry_budget", 100, standard.retry_budget);
        let secure = servers.as_ref().map(|servers| servers.iter().any(is_secure));
        let tls = section.item("servers").and_then(|servers| self.tls(section, &servers, secure));
        let server_name = match section.item("server_name") {
            None => Some(None),
            Some(item) => server_name(&item).map(Some),
        };
        Some(Settings {
            servers: servers?,
            connect_timeout: connect_timeout?,
            response_timeout: response_timeout?,
            idle_timeout: idle_timeout?,
            max_in_flight: max_in_flight?,
            max_queued: max_queued?,
            queue_timeout: queue_timeout?,
            dns_ttl: dns_ttl?,
            health: health?,
            eject_after: eject_after?,
            eject_for: eject_for?,
            retry_budget: retry_budget?,
            tls: tls?,
            server_name: server_name?,
            allows_link_local: unsafe_link_local?,
            ..standard
        })
    }

    fn unnamed(&mut self, item: &Item<'c>, text: &str) -> Option<Settings> {
        let server = self.server(item, false)?;
        let tls = if is_secure(&server) { Some(self.plain_tls(item)?) } else { None };
        item.warn("this upstream has one server: while it restarts, its routes answer 502");
        Some(Settings { tls, ..Settings::new(text.into(), vec![server]) })
    }

    /// How the one server of a destination is reached whose `origin` was read from `item`.
    pub(super) fn reached(
        &mut self,
        section: &Section<'c>,
        item: &Item<'c>,
        origin: &str,
    ) -> Option<(Origin, Option<Tls>, Option<ServerName<'static>>)> {
        let server = self.server_at(item, origin, false);
        let tls = self.tls(section, item, server.as_ref().map(is_secure));
        let server_name = section.item("server_name").map_or(Some(None), |item| server_name(&item).map(Some));
        Some((server?, tls?, server_name?))
    }

    fn server(&mut self, item: &Item<'c>, link_local: bool) -> Option<Origin> {
        self.server_at(item, item.text()?, link_local)
    }

    fn server_at(&mut self, item: &Item<'_>, text: &str, link_local: bool) -> Option<Origin> {
        let server = match origin::parse(text) {
            Ok(server) => server,
            Err(error) => {
                item.error(&format!("{} {error}", item.shown(text)), Some(error.suggestion()));
                return None;
            }
        };
        if let Place::Host(authority) = &server.place
            && !link_local
            && origin::is_link_local(authority.host())
        {
            item.error(
                &format!("{} is a link-local or metadata address", item.shown(text)),
                Some(if item.path.starts_with("webhooks.") {
                    "machines get their credentials there: events are not delivered to such an address"
                } else {
                    "machines get their credentials there; if it must be: `[upstreams.NAME]` with `unsafe_link_local = true`"
                }),
            );
            return None;
        }
        if matches!(item.context.scrutiny, Scrutiny::Names)
            && let Some(failure) = self.resolve(&server, link_local)
        {
            item.error(
                &format!("{} {failure}", item.shown(text)),
                Some("check the name, and the resolver of this machine"),
            );
            return None;
        }
        Some(server)
    }

    /// Why the name of a server leads nowhere it should.
    fn resolve(&mut self, server: &Origin, link_local: bool) -> Option<String> {
        let Place::Host(authority) = &server.place else { return None };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(server.protocol.port());
        let find = || match (host, port).to_socket_addrs() {
            Err(_) => Some("cannot be resolved".to_owned()),
            Ok(mut found) => {
                let forbidden = !link_local && found.any(|address| address::is_link_local(address.ip()));
                forbidden.then(|| "resolves to a link-local or metadata address".to_owned())
            }
        };
        self.resolved.entry(format!("{link_local} {host}")).or_insert_with(find).clone()
    }

    /// How `https://` servers, which `servers` names, are trusted; `secure` tells whether there are any, where that is known.
    #[expect(clippy::option_option, reason = "not needed, wrong and right are three things")]
    fn tls(&mut self, section: &Section<'c>, servers: &Item<'c>, secure: Option<bool>) -> Option<Option<Tls>> {
        let (ca, server_name) = (section.item("ca"), section.item("server_name"));
        let (certificate, key) = (section.item("client_certificate"), section.item("client_key"));
        if secure == Some(false) {
            let given = [&ca, &certificate, &key, &server_name];
            for item in given.into_iter().flatten() {
                let suggestion = "write the server as https://, or remove it";
                item.key_error("this has no effect: no server here is https://", Some(suggestion));
            }
            return given.iter().all(|item| item.is_none()).then_some(None);
        }
        match (&certificate, &key) {
            (Some(half), None) => {
                half.key_error("`client_certificate` has no `client_key`", Some("write both, or none"));
            }
            (None, Some(half)) => {
                half.key_error("`client_key` has no `client_certificate`", Some("write both, or none"));
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        let roots = match &ca {
            None => Some(None),
            Some(item) => path(item).and_then(|path| {
                report(item, tls::certificates(&path), "name a PEM file with the authority's certificates").map(Some)
            }),
        };
        let ours = match (&certificate, &key) {
            (None, None) => Some(None),
            (Some(_), Some(key)) => pair(certificate.as_ref(), Some(key)).and_then(|(chain, private)| {
                let checked = tls::certified_key(chain.clone(), private.clone_key());
                report(key, checked, "write the key that the certificate was issued for")?;
                Some(Some((chain, private)))
            }),
            (Some(_), None) | (None, Some(_)) => None,
        };
        let (roots, ours) = (roots?, ours?);
        let anchor = ca.unwrap_or_else(|| servers.clone());
        if roots.is_none() && ours.is_none() {
            return self.plain_tls(&anchor).map(Some);
        }
        let digest = digest(roots.as_deref(), ours.as_ref());
        let config = report(
            &anchor,
            tls::client(roots, ours),
            "name the authority that signed the servers' certificates as `ca`",
        )?;
        Some(Some(Tls { config: Arc::new(config), digest }))
    }

    /// The trust of this system, made once.
    fn plain_tls(&mut self, item: &Item<'c>) -> Option<Tls> {
        if self.plain_tls.is_none() {
            match tls::client(None, None) {
                Ok(config) => self.plain_tls = Some(Tls { config: Arc::new(config), digest: [0; 32] }),
                Err(error) => item.error(
                    &format!("the certificate authorities of this system: {error}"),
                    Some("install the system's ca-certificates, or name an authority as `ca` of an upstream"),
                ),
            }
        }
        self.plain_tls.clone()
    }
}

/// What a TLS configuration is made of, in short.
fn digest(roots: Option<&[CertificateDer<'static>]>, ours: Option<&Pair>) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut add = |part: &[u8]| {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    };
    add(if roots.is_some() { b"roots" } else { b"system" });
    for certificate in roots.unwrap_or_default() {
        add(certificate);
    }
    if let Some((chain, key)) = ours {
        add(b"ours");
        for certificate in chain {
            add(certificate);
        }
        add(key.secret_der());
    }
    hash.finalize().into()
}

fn is_secure(server: &Origin) -> bool {
    server.protocol == Protocol::Https
}

/// How the servers are asked whether they are well.
fn health(item: &Item<'_>) -> Option<Check> {
    if item.as_text().is_some() {
        item.error("expected a table, found a string", Some("write health = { path = \"/healthz\" }"));
        return None;
    }
    let section = item.section("upstreams.NAME.health")?;
    let path = section.required("path", "health = { path = \"/healthz\" }").and_then(|item| {
        let text = item.text()?;
        let path = text.parse::<PathAndQuery>().ok().filter(|_| text.starts_with('/') && !text.contains('#'));
        if path.is_none() {
            let suggestion = "a path begins with a slash: health = { path = \"/healthz\" }";
            item.error(&format!("{} is not a path", item.shown(text)), Some(suggestion));
        }
        path
    });
    let wait = |name, default| section.item(name).map_or(Some(default), |item| item.duration(WAIT));
    let few = |name, default: u32| {
        let count = section.item(name).map_or(Some(u64::from(default)), |item| item.count(1..=100));
        count.and_then(|count| u32::try_from(count).ok())
    };
    let (every, timeout) = (wait("every", CHECK_EVERY), wait("timeout", CHECK_TIMEOUT));
    let (healthy, unhealthy) = (few("healthy", CHECK_HEALTHY), few("unhealthy", CHECK_UNHEALTHY));
    Some(Check { path: path?, every: every?, timeout: timeout?, healthy: healthy?, unhealthy: unhealthy? })
}

fn server_name(item: &Item<'_>) -> Option<ServerName<'static>> {
    let text = item.text()?;
    // A secret would be a name or none by its length, which must not show.
    let name = ServerName::try_from(text.to_owned()).ok().filter(|_| !looks_secret(text));
    if name.is_none() {
        item.error(
            &format!("{} is not a host name", item.shown(text)),
            Some("write the name in the servers' certificate"),
        );
    }
    name
}
