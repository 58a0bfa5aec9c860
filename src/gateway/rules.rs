//! The rules in force, as those see them who were let through by earlier ones.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use http::{Method, uri::PathAndQuery};
use tokio::sync::{Notify, futures::OwnedNotified};

use crate::{
    auth::{self, Principal},
    body::Lasting,
    path::CanonicalPath,
    rejection::Rejection,
    route::{Route, RouteTable},
};

/// The routes in force, shared by all workers. Whoever replaces them wakes what is still open, which judges itself again.
#[derive(Debug)]
pub struct Rules {
    /// Counts replacements.
    edition: AtomicU64,
    routes: ArcSwap<RouteTable>,
    replaced: Arc<Notify>,
}

/// Why an exchange was permitted, and under which edition of the rules that was last so.
#[derive(Debug)]
pub(super) struct Standing {
    rules: Arc<Rules>,
    edition: AtomicU64,
    principal: Principal,
    route: Arc<Route>,
    method: Method,
    target: PathAndQuery,
    has_body: bool,
    switches: bool,
    /// Why whoever watches over it gave it up.
    given_up: OnceLock<Rejection>,
}

/// Waits for the rules to change.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Ends at the next replacement; made when something first waits for it.
    replaced: Option<Pin<Box<OwnedNotified>>>,
}

/// What a request is, beside who sends it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner<'r> {
    pub(super) method: &'r Method,
    pub(super) target: &'r PathAndQuery,
    pub(super) has_body: bool,
    pub(super) switches: bool,
}

impl Rules {
    /// The first edition.
    pub fn new(routes: Arc<RouteTable>) -> Arc<Self> {
        Arc::new(Self { edition: AtomicU64::new(0), routes: ArcSwap::new(routes), replaced: Arc::default() })
    }

    /// Puts `routes` in force.
    pub fn replace(&self, routes: Arc<RouteTable>) {
        self.routes.store(routes);
        self.edition.fetch_add(1, Ordering::Release);
        self.replaced.notify_waiters();
    }

    /// The routes in force.
    pub fn routes(&self) -> Arc<RouteTable> {
        self.routes.load_full()
    }

    /// Which edition is in force.
    pub fn edition(&self) -> u64 {
        self.edition.load(Ordering::Acquire)
    }
}

impl Standing {
    /// Of whoever was permitted by the rules of `edition`, which others may have replaced meanwhile.
    pub(super) fn new(
        rules: &Arc<Rules>,
        edition: u64,
        principal: &Principal,
        route: &Arc<Route>,
        manner: Manner<'_>,
    ) -> Self {
        Self {
            rules: Arc::clone(rules),
            edition: AtomicU64::new(edition),
            principal: principal.clone(),
            route: Arc::clone(route),
            method: manner.method.clone(),
            target: manner.target.clone(),
            has_body: manner.has_body,
            switches: manner.switches,
            given_up: OnceLock::new(),
        }
    }

    /// Whether the rules in force still permit it; costs nothing while they are the same.
    ///
    /// # Errors
    /// The [`Rejection`] with which the request would be refused now.
    pub(super) fn check(&self) -> Result<(), Rejection> {
        let edition = self.rules.edition();
        if edition == self.edition.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.judge(&self.rules.routes.load())?;
        self.edition.store(edition, Ordering::Relaxed);
        Ok(())
    }

    /// Why it was given up by whoever watches over it, if it was.
    pub(super) fn given_up(&self) -> Option<&Rejection> {
        self.given_up.get()
    }

    fn judge(&self, routes: &RouteTable) -> Result<(), Rejection> {
        let path = CanonicalPath::parse(self.target.path())?;
        let route = routes.find(&path).filter(|route| routes.holds_without_parameters(&path, route));
        let route = route.filter(|route| route.app == self.route.app).ok_or_else(Rejection::route_unknown)?;
        if !route.methods.contains(&self.method) {
            return Err(Rejection::method_not_allowed(&route.methods));
        }
        if self.switches && !route.websocket {
            return Err(Rejection::upgrade_not_allowed(false));
        }
        if !route.scheme.holds(&self.principal) {
            return Err(auth::Failure::from(auth::Error::SignatureMismatch).into());
        }
        route.policy.permit(&self.principal, self.has_body)?;
        Ok(())
    }
}

impl Lasting for Standing {
    fn is_revoked(&self) -> bool {
        self.check().map_err(|rejection| self.given_up.set(rejection)).is_err()
    }
}

impl Watch {
    /// Ready with the reason once the rules in force no longer permit what `standing` says.
    pub(super) fn poll_revoked(&mut self, standing: &Standing, cx: &mut Context<'_>) -> Poll<Rejection> {
        loop {
            // Made before it is looked, so that no replacement is missed.
            let replaced =
                self.replaced.get_or_insert_with(|| Box::pin(Arc::clone(&standing.rules.replaced).notified_owned()));
            let is_replaced = replaced.as_mut().poll(cx).is_ready();
            if let Err(rejection) = standing.check() {
                return Poll::Ready(rejection);
            }
            if !is_replaced {
                return Poll::Pending;
            }
            self.replaced = None;
        }
    }
}
