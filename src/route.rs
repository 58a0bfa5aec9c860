//! Routes and the table that finds the one for a path.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use http::{HeaderName, HeaderValue, Method};

use crate::{
    auth::Scheme,
    path::{Ambiguous, CanonicalPath},
    policy::Policy,
    tally::Tally,
};

/// What happens to the requests for one path of the configuration.
#[derive(Debug)]
pub struct Route {
    pub pattern: Pattern,
    /// The name of the app that vouches, and how its signatures are verified.
    pub app: HeaderValue,
    pub scheme: Arc<Scheme>,
    pub policy: Policy,
    pub methods: Methods,
    /// The place of the upstream in the configuration's list.
    pub upstream: usize,
    pub upstream_path: Option<Pattern>,
    /// `None`: the limits' own, which differ for bodies that are read and bodies that are streamed.
    pub body_limit_bytes: Option<u64>,
    pub response_timeout: Option<Duration>,
    /// Whether a request may ask for a WebSocket.
    pub websocket: bool,
    pub request_headers: HeaderEdits,
    pub response_headers: HeaderEdits,
    /// What passed; a later configuration's route for the same path counts on.
    pub tally: ArcSwap<Tally>,
}

/// Headers set and removed on the way, after everything that is ours was decided.
#[derive(Clone, Debug, Default)]
pub struct HeaderEdits {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

/// A path of the configuration: with a trailing slash everything below it, without one exactly it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    text: Box<str>,
    decoded: Box<str>,
}

/// The methods a route takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Methods(Vec<Method>);

/// All routes of a configuration.
///
/// Finding one costs a hash look-up for each segment of the request's path, at most as many as the longest route has,
/// however many routes there are.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: Vec<Arc<Route>>,
    by_path: HashMap<Box<str>, usize>,
    most_slashes: usize,
}

/// Two routes have the same path; the places of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EqualPaths {
    pub first: usize,
    pub second: usize,
}

impl Pattern {
    /// Takes a path of the configuration, which must be as unambiguous as a request's.
    ///
    /// # Errors
    /// [`Ambiguous`] says why it has more than one reading.
    pub fn parse(text: &str) -> Result<Self, Ambiguous> {
        let path = CanonicalPath::parse(text)?;
        Ok(Self { text: text.into(), decoded: path.decoded().into() })
    }

    /// The path as configured.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The path without its escapes, as it is matched.
    pub fn decoded(&self) -> &str {
        &self.decoded
    }

    /// Whether it stands for everything below it.
    pub fn is_prefix(&self) -> bool {
        self.text.ends_with('/')
    }

    fn slashes(&self) -> usize {
        self.text.bytes().filter(|b| *b == b'/').count()
    }
}

impl Methods {
    /// The methods a route takes where it says nothing: those that most panels need.
    pub fn standard() -> Self {
        Self(vec![Method::GET, Method::HEAD, Method::POST])
    }

    /// Exactly `methods`.
    pub fn only(methods: Vec<Method>) -> Self {
        Self(methods)
    }

    /// Whether `method` is one of them.
    pub fn contains(&self, method: &Method) -> bool {
        self.0.contains(method)
    }

    /// The methods, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Method> {
        self.0.iter()
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, method) in self.0.iter().enumerate() {
            write!(f, "{}{method}", if place == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Route {
    /// The path towards the upstream: the request's own, or the configured one in place of what the route matched.
    pub fn outbound_path<'p>(&'p self, path: &CanonicalPath<'p>) -> std::borrow::Cow<'p, str> {
        match &self.upstream_path {
            None => path.as_str().into(),
            Some(put) if self.pattern.is_prefix() => {
                let rest = path.behind_slashes(self.pattern.slashes());
                let joint = if put.is_prefix() { "" } else { "/" };
                if rest.is_empty() { put.as_str().into() } else { format!("{}{joint}{rest}", put.as_str()).into() }
            }
            Some(put) => put.as_str().into(),
        }
    }
}

impl RouteTable {
    /// Builds the table.
    ///
    /// # Errors
    /// [`EqualPaths`] for the first two routes that no request could tell apart.
    pub fn new(routes: Vec<Arc<Route>>) -> Result<Self, EqualPaths> {
        let mut by_path = HashMap::with_capacity(routes.len());
        let mut most_slashes = 0;
        for (second, route) in routes.iter().enumerate() {
            if let Some(first) = by_path.insert(route.pattern.decoded.clone(), second) {
                return Err(EqualPaths { first, second });
            }
            most_slashes = most_slashes.max(route.pattern.slashes());
        }
        Ok(Self { routes, by_path, most_slashes })
    }

    /// The route for `path`: the exact one, else the longest prefix that ends at a slash.
    pub fn find(&self, path: &CanonicalPath<'_>) -> Option<&Arc<Route>> {
        self.longest(path.decoded())
    }

    /// Whether `route`, the one for `path`, is also the one for servers that strip parameters (`;…`) from segments, so
    /// that no request gets past the policy of one route under another's. A route that has parameters itself means
    /// them.
    pub fn holds_without_parameters(&self, path: &CanonicalPath<'_>, route: &Arc<Route>) -> bool {
        let decoded = path.decoded();
        if !decoded.contains(';') || route.pattern.as_str().contains(';') {
            return true;
        }
        let names: Vec<_> = decoded.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
        self.longest(&names.join("/")).is_some_and(|other| Arc::ptr_eq(other, route))
    }

    fn longest(&self, decoded: &str) -> Option<&Arc<Route>> {
        let found = |part: &str| self.by_path.get(part).and_then(|place| self.routes.get(*place));
        if let Some(route) = found(decoded) {
            return Some(route);
        }
        let mut borders = [0_usize; 32];
        let mut deep = Vec::new();
        let mut count = 0;
        for (at, _) in decoded.match_indices('/').take(self.most_slashes) {
            match borders.get_mut(count) {
                Some(border) => *border = at,
                None => deep.push(at),
            }
            count += 1;
        }
        let shallow = borders.get(..count.min(borders.len())).unwrap_or_default();
        deep.iter().rev().chain(shallow.iter().rev()).find_map(|at| found(decoded.get(..=*at)?))
    }

    /// Counts on where `before` is, whose place this table takes: routes by their path, secrets by their app.
    pub fn go_on_from(&self, before: &Self) {
        let mut apps = HashMap::new();
        for route in &before.routes {
            apps.insert(&route.app, &route.scheme);
        }
        for route in &self.routes {
            if let Some(same) = before.by_path.get(&route.pattern.decoded).and_then(|place| before.routes.get(*place)) {
                route.tally.store(same.tally.load_full());
            }
            match (&*route.scheme, apps.get(&route.app).map(|scheme| &***scheme)) {
                (Scheme::StripeApp(app), Some(Scheme::StripeApp(before))) => app.go_on_from(before),
                (Scheme::StripeApp(_), None) => {}
            }
        }
    }

    /// All routes in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        auth::StripeApp,
        policy::{Accounts, Demand},
    };

    fn route(pattern: &str, upstream_path: Option<&str>) -> Arc<Route> {
        Arc::new(Route {
            pattern: Pattern::parse(pattern).unwrap(),
            app: HeaderValue::from_static("app"),
            scheme: Arc::new(Scheme::StripeApp(StripeApp::for_tests())),
            policy: Policy { accounts: Accounts::Any, users: None, roles: None, signed: Demand::Identity },
            methods: Methods::standard(),
            upstream: 0,
            upstream_path: upstream_path.map(|p| Pattern::parse(p).unwrap()),
            body_limit_bytes: None,
            response_timeout: None,
            websocket: false,
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
            tally: ArcSwap::default(),
        })
    }

    #[test]
    fn a_parameter_does_not_lead_around_a_route() {
        let table = table(&["/", "/admin/", "/exact", "/v;1/"]);
        let holds = |text: &str| {
            let path = CanonicalPath::parse(text).unwrap();
            table.holds_without_parameters(&path, table.find(&path).unwrap())
        };
        for good in ["/a;x/b", "/admin/a;x", "/admin/a;x=1/b;y", "/a", "/v;1/a", "/v;1/a;b"] {
            assert!(holds(good), "{good}");
        }
        for bad in ["/admin;x/y", "/admin;/y", "/exact;x", "/exact%3bx", "/admin%3Bx/y"] {
            assert!(!holds(bad), "{bad}");
        }
    }

    fn table(patterns: &[&str]) -> RouteTable {
        RouteTable::new(patterns.iter().map(|p| route(p, None)).collect()).unwrap()
    }

    fn found(table: &RouteTable, path: &str) -> Option<String> {
        table.find(&CanonicalPath::parse(path).unwrap()).map(|r| r.pattern.as_str().to_owned())
    }

    #[test]
    fn the_longest_route_on_a_segment_border_wins() {
        let table = table(&["/a/", "/a/b/", "/a/b", "/exact"]);
        for (path, route) in [
            ("/a/", Some("/a/")),
            ("/a/x", Some("/a/")),
            ("/a/b", Some("/a/b")),
            ("/a/b/", Some("/a/b/")),
            ("/a/b/c/d", Some("/a/b/")),
            ("/a/bc", Some("/a/")),
            ("/a", None),
            ("/ab", None),
            ("/", None),
            ("/exact", Some("/exact")),
            ("/exact/", None),
            ("/exactly", None),
        ] {
            assert_eq!(found(&table, path).as_deref(), route, "{path}");
        }
    }

    #[test]
    fn an_escape_does_not_lead_around_a_stricter_route() {
        let table = table(&["/", "/joe@x/"]);
        assert_eq!(found(&table, "/joe%40x/a").as_deref(), Some("/joe@x/"));
        assert_eq!(found(&table, "/joe/a").as_deref(), Some("/"));
    }

    #[test]
    fn equal_paths_are_an_error() {
        let both = vec![route("/a@", None), route("/b", None), route("/a%40", None)];
        assert_eq!(RouteTable::new(both).unwrap_err(), EqualPaths { first: 0, second: 2 });
    }

    #[test]
    fn the_upstream_path_is_put_in_place_of_the_route() {
        for (pattern, put, path, out) in [
            ("/s/o/", Some("/api/"), "/s/o/1/2", "/api/1/2"),
            ("/s/o/", Some("/api"), "/s/o/1", "/api/1"),
            ("/s/o/", Some("/api/"), "/s/o/", "/api/"),
            ("/s/o/", Some("/"), "/s/o/a%20b", "/a%20b"),
            ("/s@/", Some("/api/"), "/s%40/x", "/api/x"),
            ("/s", Some("/api/x"), "/s", "/api/x"),
            ("/s/", None, "/s/x", "/s/x"),
        ] {
            let path = CanonicalPath::parse(path).unwrap();
            assert_eq!(route(pattern, put).outbound_path(&path), out, "{pattern} {put:?}");
        }
    }

    #[test]
    fn a_path_of_many_segments_costs_no_more_than_the_deepest_route() {
        let table = table(&["/", "/a/"]);
        assert_eq!(found(&table, &"/x".repeat(10_000)).as_deref(), Some("/"));
        assert_eq!(table.most_slashes, 2);
        let deep = format!("{}/", "/y".repeat(50));
        let table = self::table(&["/", &deep]);
        assert_eq!(found(&table, &format!("{deep}x")).as_deref(), Some(deep.as_str()));
    }
}
