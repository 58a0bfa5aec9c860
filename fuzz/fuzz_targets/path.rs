//! Paths and routes. The first line of the input is a request's path, each further line a route's.
#![no_main]

use std::{collections::HashSet, sync::Arc, time::Duration};

use countersign::{
    auth::{Scheme, StripeApp},
    path::CanonicalPath,
    policy::{Accounts, Demand, Policy},
    route::{HeaderEdits, Methods, Pattern, Route, RouteTable},
};
use http::{HeaderValue, uri::PathAndQuery};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let first = lines.next().unwrap_or_default();
    let Ok(path) = CanonicalPath::parse(first) else { return };
    has_one_reading(first, &path);
    is_cut_at_slashes(first, &path);
    is_found_as_by_a_plain_search(&path, lines.take(64));
});

fn has_one_reading(text: &str, path: &CanonicalPath<'_>) {
    assert_eq!(path.as_str(), text);
    let decoded = decoded(text.as_bytes());
    assert_eq!(path.decoded().as_bytes(), decoded);
    assert!(!decoded.iter().any(|b| matches!(b, b'\\' | b'%' | 0x7f) || *b < 0x20));
    let slashes = |bytes: &[u8]| bytes.iter().filter(|b| **b == b'/').count();
    assert_eq!(slashes(&decoded), slashes(text.as_bytes()));

    let segments: Vec<_> = decoded.split(|b| *b == b'/').collect();
    let [before, inner @ .., last] = &segments[..] else { panic!("no slash in {text:?}") };
    assert!(before.is_empty());
    assert!(inner.iter().all(|segment| !segment.is_empty()));
    for segment in inner.iter().chain([last]) {
        let name = segment.split(|b| *b == b';').next().unwrap_or_default();
        assert!(name != b"." && name != b"..");
    }

    // A second parser takes all of it for the path.
    if let Ok(target) = text.parse::<PathAndQuery>() {
        assert_eq!(target.path(), text);
        assert_eq!(target.query(), None);
    }
}

fn is_cut_at_slashes(text: &str, path: &CanonicalPath<'_>) {
    let count = text.matches('/').count();
    for slashes in 0..count + 2 {
        let rest = text.splitn(slashes + 1, '/').nth(slashes).unwrap_or_default();
        assert_eq!(path.behind_slashes(slashes), rest);
    }
}

fn is_found_as_by_a_plain_search<'t>(path: &CanonicalPath<'_>, patterns: impl Iterator<Item = &'t str>) {
    let scheme = Arc::new(Scheme::StripeApp(StripeApp {
        keys: Vec::new(),
        tolerance: Duration::from_secs(300),
        allow_account_only: false,
    }));
    let routes: Vec<_> =
        patterns.filter_map(|text| Pattern::parse(text).ok()).map(|pattern| route(pattern, &scheme)).collect();
    let decoded: Vec<_> = routes.iter().map(|route| decoded(route.pattern.as_str().as_bytes())).collect();
    let distinct: HashSet<_> = decoded.iter().collect();
    let Ok(table) = RouteTable::new(routes) else {
        assert!(distinct.len() < decoded.len());
        return;
    };
    assert_eq!(distinct.len(), decoded.len());

    let wanted = path.decoded().as_bytes();
    let expected = decoded
        .iter()
        .enumerate()
        .filter(|(_, pattern)| *pattern == wanted || pattern.ends_with(b"/") && wanted.starts_with(pattern))
        .max_by_key(|(_, pattern)| pattern.len())
        .and_then(|(place, _)| table.iter().nth(place));
    let found = table.find(path);
    assert_eq!(found.map(|route| &route.pattern), expected.map(|route| &route.pattern));
    if let Some(found) = found {
        assert_eq!(found.outbound_path(path), path.as_str());
    }
}

fn route(pattern: Pattern, scheme: &Arc<Scheme>) -> Arc<Route> {
    Arc::new(Route {
        pattern,
        app: HeaderValue::from_static("app"),
        scheme: Arc::clone(scheme),
        policy: Policy { accounts: Accounts::Any, users: None, roles: None, signed: Demand::Identity },
        methods: Methods::standard(),
        upstream: 0,
        upstream_path: None,
        body_limit_bytes: None,
        response_timeout: None,
        websocket: false,
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        tally: Default::default(),
    })
}

/// Percent-decoding that leaves alone whatever is not an escape.
fn decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(byte) = rest.first() {
        let escape = rest.get(1..3).filter(|_| *byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match escape
            .filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
        {
            Some(value) => {
                out.push(value);
                rest = &rest[3..];
            }
            None => {
                out.push(*byte);
                rest = &rest[1..];
            }
        }
    }
    out
}
