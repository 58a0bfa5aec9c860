//! What is in force, on every worker, and how something else is put in force without a request being lost.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use tokio::{runtime::Handle, task::AbortHandle};

use super::{Settings, crowd::Crowd, handshake::Handshake, traffic::Traffic};
use crate::{
    audit::Audit,
    auth::Scheme,
    body::Room,
    clock::Clock,
    gateway::{Gateway, Intake, Rules},
    headers::Proxies,
    limits::Hits,
    record::Log,
    route::{Route, RouteTable},
    signature::{SigningKey, Uses},
    tally::Tally,
    tls::Resolver,
    upstream::{Shared, Upstream},
    webhook::{Webhook, Webhooks},
};

/// Where a worker finds the gateway that is in force.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) gateway: ArcSwap<Gateway>,
    pub(super) traffic: Arc<Traffic>,
}

/// What a server's workers share, and what is in force on each of them.
#[derive(Debug)]
pub struct House {
    desks: Vec<Arc<Desk>>,
    rules: Arc<Rules>,
    resolver: Arc<Resolver>,
    handshake: ArcSwap<Handshake>,
    proxies: ArcSwap<Proxies>,
    pub(super) crowd: Arc<Crowd>,
    room: Arc<Room>,
    hits: Arc<Hits>,
    traffic: Arc<Traffic>,
    /// Requests that no route took.
    unrouted: Arc<Tally>,
    log: Log,
    audit: Option<Audit>,
    intake: Option<Intake>,
    /// Those in force.
    webhooks: ArcSwap<Webhooks>,
    clock: Clock,
    /// The runtime that asks servers whether they are well.
    first: Handle,
    /// Held by whoever puts something in force.
    in_force: Mutex<InForce>,
}

#[derive(Debug)]
struct InForce {
    client_ca: Option<Arc<RootCertStore>>,
    watches: Vec<Watch>,
}

/// Asks an upstream's servers whether they are well, for as long as this lives.
#[derive(Debug)]
struct Watch {
    upstream: Arc<Shared>,
    task: AbortHandle,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl House {
    pub(super) fn open(
        settings: Settings,
        workers: usize,
        log: &Log,
        clock: &Clock,
        first: Handle,
    ) -> io::Result<Self> {
        let hits = Arc::new(Hits::default());
        let limits = &settings.limits;
        let Settings { resolver, client_ca, .. } = &settings;
        let handshake = Handshake::new(Arc::clone(resolver), client_ca.clone()).map_err(io::Error::other)?;
        let routes = Arc::new(settings.routes);
        let watches: Vec<_> =
            settings.upstreams.into_iter().map(|upstream| watch(Shared::new(upstream), &first)).collect();
        let house = Self {
            desks: Vec::new(),
            rules: Rules::new(Arc::clone(&routes)),
            resolver: settings.resolver,
            handshake: ArcSwap::from_pointee(handshake),
            proxies: ArcSwap::from_pointee(settings.proxy_protocol),
            crowd: Crowd::new(limits, Arc::clone(&hits)),
            room: Arc::new(Room::new(limits.buffered_bytes, limits.buffered_bytes_per_address)),
            hits,
            traffic: Arc::default(),
            unrouted: Arc::default(),
            log: log.clone(),
            audit: settings.audit,
            intake: settings.intake,
            webhooks: ArcSwap::from_pointee(settings.webhooks),
            clock: clock.clone(),
            first,
            in_force: Mutex::new(InForce { client_ca: settings.client_ca, watches: Vec::new() }),
        };
        let outline = Outline {
            config: settings.config,
            routes,
            webhooks: house.webhooks.load_full(),
            limits: settings.limits,
            names: settings.names.into(),
            trusted_proxies: Arc::new(settings.trusted_proxies),
        };
        let desks = (0..workers)
            .map(|_| {
                let upstreams = watches.iter().map(|watch| Arc::new(Upstream::new(&watch.upstream))).collect();
                let gateway = ArcSwap::from_pointee(house.gateway(&outline, upstreams));
                Arc::new(Desk { gateway, traffic: Arc::clone(&house.traffic) })
            })
            .collect();
        house.in_force.lock().unwrap_or_else(PoisonError::into_inner).watches = watches;
        Ok(Self { desks, ..house })
    }

    /// Puts `settings` in force, all of them at once for whatever is asked from now on: a request keeps what it began with.
    /// Connections live on, and so do the upstreams whose settings are the same, with theirs. What is under way and no longer
    /// permitted is ended. `audit` and `workers` are not looked at.
    ///
    /// # Errors
    /// TLS's, if its configuration cannot be made; nothing has changed then.
    pub fn replace(&self, settings: Settings) -> io::Result<()> {
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        // Where the authorities of clients are the same, the tickets that clients resume with stay good.
        let roots = |store: &Option<Arc<RootCertStore>>| store.as_ref().map(|store| store.roots.clone());
        let handshake = if roots(&settings.client_ca) == roots(&in_force.client_ca) {
            None
        } else {
            let handshake = Handshake::new(Arc::clone(&self.resolver), settings.client_ca.clone());
            Some(handshake.map_err(io::Error::other)?)
        };
        let watches: Vec<_> = settings
            .upstreams
            .into_iter()
            .map(|upstream| {
                let place = in_force.watches.iter().position(|watch| watch.upstream.is(&upstream));
                place.map_or_else(
                    || watch(Shared::new(upstream), &self.first),
                    |place| in_force.watches.swap_remove(place),
                )
            })
            .collect();
        let outline = Outline {
            config: settings.config,
            routes: Arc::new(settings.routes),
            webhooks: Arc::new(settings.webhooks),
            limits: settings.limits,
            names: settings.names.into(),
            trusted_proxies: Arc::new(settings.trusted_proxies),
        };
        outline.routes.go_on_from(&self.routes());
        outline.webhooks.go_on_from(&self.webhooks.load());
        self.webhooks.store(Arc::clone(&outline.webhooks));
        let (crowd, room) = (&outline.limits, &outline.limits);
        self.crowd.change(crowd);
        self.room.resize(room.buffered_bytes, room.buffered_bytes_per_address);
        self.proxies.store(Arc::new(settings.proxy_protocol));
        self.resolver.replace(settings.resolver.current().as_ref().clone());
        if let Some(handshake) = handshake {
            self.handshake.store(Arc::new(handshake));
            in_force.client_ca = settings.client_ca;
        }
        // The rules first: whoever is let through by the old gateway from here on is judged by the new ones as well.
        self.rules.replace(Arc::clone(&outline.routes));
        for desk in &self.desks {
            let before = desk.gateway.load();
            let upstreams = watches.iter().map(|watch| {
                let same = before.upstreams.iter().find(|upstream| Arc::ptr_eq(upstream.shared(), &watch.upstream));
                same.map_or_else(|| Arc::new(Upstream::new(&watch.upstream)), Arc::clone)
            });
            let upstreams = upstreams.collect();
            desk.gateway.store(Arc::new(self.gateway(&outline, upstreams)));
        }
        in_force.watches = watches;
        Ok(())
    }

    /// How often each limit was hit so far.
    pub fn hits(&self) -> &Hits {
        &self.hits
    }

    /// Connections and handshakes so far.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// The routes in force, with what passed on each.
    pub fn routes(&self) -> Arc<RouteTable> {
        self.rules.routes()
    }

    /// The webhooks in force, with what came on each.
    pub fn webhooks(&self) -> Arc<Webhooks> {
        self.webhooks.load_full()
    }

    /// What came and no route took.
    pub fn unrouted(&self) -> &Arc<Tally> {
        &self.unrouted
    }

    /// The apps that routes name, and how often each of their secrets was used, in the order of the configuration.
    pub fn apps(&self) -> BTreeMap<String, Vec<Arc<Uses>>> {
        let uses = |route: &Arc<Route>| {
            let Scheme::StripeApp(app) = &*route.scheme;
            let name = route.app.to_str().unwrap_or_default().to_owned();
            (name, app.keys.iter().map(SigningKey::uses).collect())
        };
        self.routes().iter().map(uses).collect()
    }

    /// The webhooks' paths, and how often each of their secrets was used, in the order of the configuration.
    pub fn webhook_secrets(&self) -> BTreeMap<String, Vec<Arc<Uses>>> {
        let uses = |webhook: &Arc<Webhook>| {
            (webhook.path.as_str().to_owned(), webhook.keys.iter().map(SigningKey::uses).collect())
        };
        self.webhooks().iter().map(uses).collect()
    }

    /// The upstreams in force.
    pub fn upstreams(&self) -> Vec<Arc<Shared>> {
        let in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        in_force.watches.iter().map(|watch| Arc::clone(&watch.upstream)).collect()
    }

    /// Lines of the access log that were lost.
    pub fn dropped_lines(&self) -> u64 {
        self.log.dropped()
    }

    /// Where decisions are recorded.
    pub fn audit(&self) -> Option<&Audit> {
        self.audit.as_ref()
    }

    pub(super) fn desk(&self, worker: usize) -> Option<Arc<Desk>> {
        self.desks.get(worker).map(Arc::clone)
    }

    /// The certificates, which may be exchanged.
    pub fn resolver(&self) -> &Arc<Resolver> {
        &self.resolver
    }

    pub(super) fn handshake(&self) -> Handshake {
        Handshake::clone(&self.handshake.load())
    }

    /// Who begins each connection with a header of the PROXY protocol.
    pub(super) fn proxies(&self) -> Arc<Proxies> {
        self.proxies.load_full()
    }

    fn gateway(&self, outline: &Outline, upstreams: Vec<Arc<Upstream>>) -> Gateway {
        Gateway {
            config: Arc::clone(&outline.config),
            routes: Arc::clone(&outline.routes),
            webhooks: Arc::clone(&outline.webhooks),
            intake: self.intake.clone(),
            edition: self.rules.edition(),
            rules: Arc::clone(&self.rules),
            upstreams,
            limits: outline.limits.clone(),
            names: Arc::clone(&outline.names),
            trusted_proxies: Arc::clone(&outline.trusted_proxies),
            room: Arc::clone(&self.room),
            hits: Arc::clone(&self.hits),
            unrouted: Arc::clone(&self.unrouted),
            log: self.log.clone(),
            audit: self.audit.clone(),
            clock: self.clock.clone(),
        }
    }
}

/// What of the settings every worker's gateway shares.
struct Outline {
    config: Arc<str>,
    routes: Arc<RouteTable>,
    webhooks: Arc<Webhooks>,
    limits: crate::limits::Limits,
    names: Arc<[String]>,
    trusted_proxies: Arc<Proxies>,
}

fn watch(upstream: Arc<Shared>, runtime: &Handle) -> Watch {
    let task = runtime.spawn(Arc::clone(&upstream).watch()).abort_handle();
    Watch { upstream, task }
}
