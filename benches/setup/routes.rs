//! A table of routes of one app.

use std::{sync::Arc, time::Duration};

use countersign::{
    auth::{Scheme, StripeApp},
    policy::{Accounts, Demand, Policy},
    route::{HeaderEdits, Methods, Pattern, Route, RouteTable},
};
use http::HeaderValue;

/// Has `count` routes: `/team00/r00000/` and so on.
pub(crate) fn table(count: usize) -> RouteTable {
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
            tally: arc_swap::ArcSwap::default(),
        })
    };
    RouteTable::new((0..count).map(route).collect()).expect("paths that differ")
}
