//! The routes: each with its app, its upstream and its policy.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use arc_swap::ArcSwap;
use http::{HeaderValue, Method};

use super::{
    app::App,
    file,
    header_edits::{self, Direction},
    limits::{BODY, WAIT, wide},
    mask::quoted,
    section::{Item, Section},
    upstreams::Upstreams,
};
use crate::{
    identity::{RoleId, UserId},
    limits::Limits,
    path::{Ambiguous, CanonicalPath},
    policy::{Demand, Policy},
    route::{Methods, Pattern, Route},
    upstream::{Protocol, Settings},
};

const EXAMPLE: &str = "a table `[[routes]]` with `path`, `app` and `upstream`";
const METHODS: &str = "methods = [\"GET\", \"POST\"]";

/// What routes refer to.
pub(super) struct Known<'k, 'c> {
    pub apps: &'k BTreeMap<String, App>,
    pub upstreams: &'k mut Upstreams<'c>,
    /// `None` after a mistake in them.
    pub limits: Option<&'k Limits>,
}

/// All routes that are right. Whatever is wrong with the others was reported.
pub(super) fn routes<'c>(root: &Section<'c>, mut known: Known<'_, 'c>) -> Vec<Arc<Route>> {
    let list = if root.item("webhooks").is_some() { root.item("routes") } else { root.required("routes", EXAMPLE) };
    let Some(list) = list else {
        known.upstreams.warn_of_unused();
        return Vec::new();
    };
    let Some(items) = list.list_or_empty(EXAMPLE) else { return Vec::new() };
    if items.is_empty() {
        list.error("there is no route", Some(&format!("write {EXAMPLE}")));
    }
    let mut routes = Vec::with_capacity(items.len());
    let mut lines = HashMap::new();
    let mut used = HashSet::new();
    let mut paths = Vec::with_capacity(items.len());
    for item in items {
        let Some(section) = item.section("routes") else { continue };
        if let Some(route) = route(&section, &mut known, &mut lines, &mut used).map(Arc::new) {
            paths.extend(section.item("path").map(|item| (item, Arc::clone(&route))));
            routes.push(route);
        }
    }
    warn_of_slashes(&paths);
    for (name, app) in known.apps {
        if !used.contains(name)
            && app.made.is_some()
            && let Some(item) = root.item("apps").and_then(|item| item.child(name))
        {
            item.warn(&format!("no route uses the app {}", quoted(name)));
        }
    }
    known.upstreams.warn_of_unused();
    routes
}

fn route<'c>(
    section: &Section<'c>,
    known: &mut Known<'_, 'c>,
    lines: &mut HashMap<String, usize>,
    used: &mut HashSet<String>,
) -> Option<Route> {
    let pattern = section.required("path", "path = \"/orders/\"").and_then(|item| path(&item, lines));
    let app = section.required("app", "app = \"NAME\", a name of [apps]").and_then(|item| app(&item, known.apps, used));
    let example = "upstream = \"NAME\", a name of [upstreams], or an origin such as \"http://orders.intranet:8080\"";
    let upstream = section.required("upstream", example).and_then(|item| known.upstreams.place_of(&item));
    let upstream_path = or_left_out(section.item("upstream_path"), |item| parsed_path(item));
    let methods = match section.item("methods") {
        None => Some(Methods::standard()),
        Some(item) => methods(&item),
    };
    let roles = or_left_out(section.item("roles"), |item| {
        ids(item, "roles = [\"admin\"]", "a role id, such as `admin`, without spaces and commas", |text| {
            RoleId::parse(text).ok()
        })
    });
    let users = or_left_out(section.item("users"), |item| {
        ids(item, "users = [\"usr_…\"]", "a user id: `usr_` and letters or digits", |text| UserId::parse(text).ok())
    });
    let signed = match section.item("signed") {
        None => Some(Demand::Identity),
        Some(item) => demand(&item),
    };
    let body_limit = or_left_out(section.item("body_limit"), |item| body_limit(item, signed, known.limits));
    let response_timeout = or_left_out(section.item("response_timeout"), |item| item.duration(WAIT));
    let websocket = match section.item("websocket") {
        None => Some(false),
        Some(item) => websocket(&item, upstream.and_then(|place| known.upstreams.list.get(place))),
    };
    let request_headers = header_edits::edits(section, Direction::Request);
    let response_headers = header_edits::edits(section, Direction::Response);
    let (methods, signed) = (methods?, signed?);
    warn_of_methods(section, &methods, signed, matches!(roles, Some(Some(_))));
    let (name, scheme, accounts) = app?;
    Some(Route {
        pattern: pattern?,
        app: name,
        scheme,
        policy: Policy { accounts, users: users?, roles: roles?, signed },
        methods,
        upstream: upstream?,
        upstream_path: upstream_path?,
        body_limit_bytes: body_limit?,
        response_timeout: response_timeout?,
        websocket: websocket?,
        request_headers: request_headers?,
        response_headers: response_headers?,
        tally: ArcSwap::default(),
    })
}

/// Warns of routes for exactly one path where the same with a slash behind it is under another's policy: many services
/// answer both alike.
fn warn_of_slashes(paths: &[(Item<'_>, Arc<Route>)]) {
    let by_path: HashMap<_, _> = paths.iter().map(|(_, route)| (route.pattern.decoded(), route)).collect();
    for (item, route) in paths {
        let path = route.pattern.decoded();
        if path.ends_with('/') || by_path.contains_key(format!("{path}/").as_str()) {
            continue;
        }
        let wider = path.rmatch_indices('/').find_map(|(at, _)| by_path.get(path.get(..=at)?));
        if let Some(wider) = wider.filter(|wider| wider.app != route.app || wider.policy != route.policy) {
            item.warn(&format!(
                "with a slash behind it this path belongs to the route {} and its policy: a service that answers both alike wants a route for each",
                quoted(wider.pattern.as_str())
            ));
        }
    }
}

/// Whether a request of a route may ask for a WebSocket, which begins as HTTP/1.1.
fn websocket(item: &Item<'_>, upstream: Option<&Settings>) -> Option<bool> {
    let allowed = item.flag()?;
    if allowed
        && upstream.is_some_and(|upstream| upstream.servers.iter().any(|server| server.protocol == Protocol::H2c))
    {
        item.error(
            "a WebSocket cannot be opened over h2c://",
            Some("write the upstream's servers as http:// or https://"),
        );
        return None;
    }
    Some(allowed)
}

/// What `read` makes of a value, `Some(None)` where it was left out, `None` after a mistake.
#[expect(clippy::option_option, reason = "left out, wrong and right are three things")]
fn or_left_out<'c, T>(item: Option<Item<'c>>, read: impl FnOnce(&Item<'c>) -> Option<T>) -> Option<Option<T>> {
    match item {
        None => Some(None),
        Some(item) => read(&item).map(Some),
    }
}

fn path(item: &Item<'_>, lines: &mut HashMap<String, usize>) -> Option<Pattern> {
    let pattern = parsed_path(item)?;
    let decoded = CanonicalPath::parse(pattern.as_str()).ok()?.decoded().to_owned();
    if decoded == "/" {
        item.warn("this route takes every path that no other takes: what is new on the upstream is reachable at once");
    }
    if decoded.contains('*') {
        item.warn("`*` stands for itself; a path with a slash at its end covers everything below it");
    }
    if let Some(first) = lines.get(&decoded) {
        item.error(
            &format!("the route {} is the same as the one on line {first}", item.shown(pattern.as_str())),
            Some("a path has one route; remove one, or tell them apart by their paths"),
        );
        return None;
    }
    lines.insert(decoded, item.line());
    Some(pattern)
}

fn parsed_path(item: &Item<'_>) -> Option<Pattern> {
    let text = item.text()?;
    match Pattern::parse(text) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            let suggestion = match error {
                Ambiguous::NotAbsolute if text.contains("://") => {
                    "write the path alone; the server goes into `upstream`"
                }
                Ambiguous::NotAbsolute => "begin it with `/`",
                _ => {
                    "write the path literally; with a slash at its end it covers everything below it, without one exactly it"
                }
            };
            item.error(&format!("{} is not a path: {error}", item.shown(text)), Some(suggestion));
            None
        }
    }
}

type Granted = (HeaderValue, Arc<crate::auth::Scheme>, crate::policy::Accounts);

fn app(item: &Item<'_>, apps: &BTreeMap<String, App>, used: &mut HashSet<String>) -> Option<Granted> {
    let text = item.text()?;
    let Some(app) = apps.get(text) else {
        let suggestion = match file::nearest(text, apps.keys().map(String::as_str)) {
            Some(known) => format!("did you mean {}?", quoted(known)),
            None if apps.is_empty() => {
                format!("write a table `[apps.{}]`", if text.contains(' ') { "NAME" } else { "…" })
            }
            None => format!("known apps: {}", apps.keys().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")),
        };
        item.error(&format!("no app is called {}", item.shown(text)), Some(&suggestion));
        return None;
    };
    used.insert(text.to_owned());
    let made = app.made.as_ref()?;
    Some((made.name.clone(), made.scheme.clone(), made.accounts.clone()))
}

fn methods(item: &Item<'_>) -> Option<Methods> {
    let items = item.list(METHODS)?;
    let mut methods = Vec::new();
    let mut complete = true;
    for item in &items {
        let method = item.text().and_then(|text| method(item, text));
        complete &= method.is_some();
        methods.extend(method.filter(|method| !methods.contains(method)));
    }
    complete.then(|| Methods::only(methods))
}

fn method(item: &Item<'_>, text: &str) -> Option<Method> {
    let upper = text.to_ascii_uppercase();
    let refused = match upper.as_str() {
        "OPTIONS" => Some("the gateway answers preflights itself and forwards no OPTIONS"),
        "CONNECT" => Some("it asks for a tunnel, which would lead past every rule"),
        "TRACE" => Some("it echoes the headers that the gateway adds, secrets too"),
        _ => None,
    };
    if let Some(reason) = refused {
        item.error(&format!("{} cannot be a route's method", item.shown(text)), Some(reason));
        return None;
    }
    let method = Method::from_bytes(text.as_bytes()).ok();
    match method.filter(|_| upper == text) {
        Some(method) => Some(method),
        None if Method::from_bytes(upper.as_bytes()).is_ok() => {
            item.error(
                &format!("{} is not in capitals", item.shown(text)),
                Some("methods differ by case: write \"GET\", \"POST\""),
            );
            None
        }
        None => {
            item.error(&format!("{} is not a method", item.shown(text)), Some(&format!("write {METHODS}")));
            None
        }
    }
}

fn ids<T: Eq + Hash>(
    item: &Item<'_>,
    example: &str,
    form: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Option<HashSet<T>> {
    let items = item.list(example)?;
    let mut ids = HashSet::new();
    let mut complete = true;
    for item in &items {
        let id = item.text().and_then(|text| {
            let id = parse(text);
            if id.is_none() {
                item.error(&format!("{} is not an id", item.shown(text)), Some(&format!("write {form}")));
            }
            id
        });
        complete &= id.is_some();
        ids.extend(id);
    }
    complete.then_some(ids)
}

fn demand(item: &Item<'_>) -> Option<Demand> {
    match item.text()? {
        "identity" => Some(Demand::Identity),
        "body" => Some(Demand::Body),
        text => {
            let known = "it is \"identity\" (who asks) or \"body\" (also what is sent)";
            item.error(&format!("{} is not what a signature can cover", item.shown(text)), Some(known));
            None
        }
    }
}

pub(super) fn body_limit(item: &Item<'_>, signed: Option<Demand>, limits: Option<&Limits>) -> Option<u64> {
    let size = item.size(BODY)?;
    if signed == Some(Demand::Body)
        && let Some((whole_bytes, bound)) = limits.map(Limits::whole_bytes)
        && size > wide(whole_bytes)
    {
        let bound = bound.name();
        let suggestion = format!("a body that is verified is read whole; raise `{bound}` in [limits], or lower this");
        item.error(&format!("a body of this size does not fit into `{bound}`"), Some(&suggestion));
        return None;
    }
    Some(size)
}

fn warn_of_methods(section: &Section<'_>, methods: &Methods, signed: Demand, wants_roles: bool) {
    let listed = |chosen: &dyn Fn(&Method) -> bool| {
        methods.iter().filter(|method| chosen(method)).map(Method::as_str).collect::<Vec<_>>().join(", ")
    };
    let warn = |key, text: &str| {
        if let Some(item) = section.item(key).or_else(|| section.item("methods")).or_else(|| section.item("path")) {
            item.warn(text);
        }
    };
    let is_read = |method: &Method| *method == Method::GET || *method == Method::HEAD;
    let (reads, writes) = (listed(&is_read), listed(&|method| !is_read(method)));
    match signed {
        Demand::Body if methods.contains(&Method::DELETE) => {
            let text = "DELETE with signed = \"body\": one without a body satisfies it, and then nothing but the ids is covered; an \
                overheard signature serves for any path of this route until it expires";
            warn("methods", text);
        }
        Demand::Identity if !writes.is_empty() => {
            let text = format!(
                "{writes} with signed = \"identity\": who asks is proven, what is sent is not; an overheard signature serves for \
                 any body until it expires. Where the body matters: signed = \"body\""
            );
            warn("signed", &text);
        }
        Demand::Body | Demand::Identity => {}
    }
    if wants_roles && !reads.is_empty() {
        let text = format!(
            "{reads} on a route with `roles`: such a request has no body to carry stripe_roles, so it proves none and is always \
             refused; give it a route of its own, or leave it out of `methods`"
        );
        warn("methods", &text);
    }
}
