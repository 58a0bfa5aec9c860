//! Finding the route for a path, the path's own check included.
#![expect(clippy::expect_used, reason = "a bench that cannot be set up should stop")]

use std::{hint::black_box, sync::Arc, time::Duration};

use countersign::{
    auth::{Scheme, StripeApp},
    path::CanonicalPath,
    policy::{Accounts, Demand, Policy},
    route::{HeaderEdits, Methods, Pattern, Route, RouteTable},
};
use criterion::{Criterion, criterion_group, criterion_main};
use http::HeaderValue;

fn table(count: usize) -> RouteTable {
    let scheme = Arc::new(Scheme::StripeApp(StripeApp {
        keys: Vec::new(),
        tolerance: Duration::from_secs(300),
        allow_account_only: false,
    }));
    let route = |place: usize| {
        Arc::new(Route {
            pattern: Pattern::parse(&format!("/team{}/r{place:05}/", place % 50)).expect("a pattern"),
            app: HeaderValue::from_static("bench"),
            scheme: Arc::clone(&scheme),
            policy: Policy { accounts: Accounts::Any, users: None, roles: None, signed: Demand::Identity },
            methods: Methods::standard(),
            upstream: 0,
            upstream_path: None,
            body_limit_bytes: None,
            response_timeout: None,
            websocket: false,
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
        })
    };
    RouteTable::new((0..count).map(route).collect()).expect("paths that differ")
}

fn find(c: &mut Criterion) {
    let mut group = c.benchmark_group("route");
    for count in [10, 1_000, 10_000] {
        let table = table(count);
        let last = count - 1;
        let below = format!("/team{}/r{last:05}/orders/17/items", last % 50);
        for (name, path, found) in
            [("below the last", below.as_str(), true), ("none", "/team0/r99999/orders/17/items", false)]
        {
            let find = |path| CanonicalPath::parse(path).is_ok_and(|path| table.find(&path).is_some());
            assert_eq!(find(path), found);
            group.bench_function(format!("{count} routes, {name}"), |b| b.iter(|| find(black_box(path))));
        }
    }
    group.finish();
}

criterion_group!(benches, find);
criterion_main!(benches);
