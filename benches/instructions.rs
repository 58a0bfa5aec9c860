//! How many instructions the steps of verifying and deciding take, counted by callgrind and so the same on every machine
//! but for a few hundredths. One that takes a tenth more than it did fails: raise its limit only with a reason, and lower
//! it when it has become cheaper.
#![expect(clippy::expect_used, reason = "a bench that cannot be set up should stop")]

use std::{hint::black_box, time::Duration};

use countersign::{
    auth::{Carried, Presented, Scheme, StripeApp},
    json::Document,
    path::CanonicalPath,
    route::RouteTable,
    secret::SigningSecret,
    signature::{Signature, SigningKey},
};
use gungraun::{Callgrind, EventKind, LibraryBenchmarkConfig, library_benchmark, library_benchmark_group, main};
use http::{HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

#[path = "setup/json.rs"]
mod json;
#[path = "setup/routes.rs"]
mod routes;
use json::body;
use routes::table;

const NOW: i64 = 1_750_000_000;
const IDENTITY: &[u8] = br#"{"user_id":"usr_BenchUser0000001","account_id":"acct_BenchAccount0001"}"#;
const BODY: &[u8] = br#"{"action":"refund","charge":"ch_3Nxyz0123456789abc","amount":1999,"currency":"eur","note":"small JSON body of two hundred bytes.","user_id":"usr_BenchUser0000001","account_id":"acct_BenchAccount0001"}"#;

/// Fails above `instructions` and a tenth.
fn limited(instructions: u64) -> LibraryBenchmarkConfig {
    let limit = instructions + instructions / 10;
    LibraryBenchmarkConfig::default().tool(Callgrind::default().hard_limits([(EventKind::Ir, limit)])).clone()
}

fn key() -> SigningKey {
    let secret = Zeroizing::new("absec_bench_0123456789abcdef0123456789abcdef".to_owned());
    SigningKey::new(&SigningSecret::parse(secret).expect("a secret"))
}

fn signed(payload: &[u8]) -> String {
    key().header(NOW, payload)
}

#[library_benchmark]
#[bench::one_tag(args = (IDENTITY), setup = signed, config = limited(2_400))]
fn header(value: String) -> bool {
    Signature::parse(black_box(value.as_bytes())).is_ok()
}

struct Asked {
    scheme: Scheme,
    headers: HeaderMap,
    body: Option<&'static [u8]>,
    accepted: bool,
}

fn asked(signed_over: &[u8], body: Option<&'static [u8]>, accepted: bool) -> Asked {
    let mut headers = HeaderMap::new();
    let mut put = |name, value: &str| {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header value"))
    };
    put("accept", "*/*");
    put("user-agent", "a browser");
    put("stripe-signature", &signed(signed_over));
    if body.is_none() {
        put("stripe-user-id", "usr_BenchUser0000001");
        put("stripe-account-id", "acct_BenchAccount0001");
    }
    let tolerance = Duration::from_secs(300);
    let scheme = Scheme::StripeApp(StripeApp { keys: vec![key()], tolerance, allow_account_only: false });
    Asked { scheme, headers, body, accepted }
}

#[library_benchmark]
#[bench::get(args = (IDENTITY, None, true), setup = asked, config = limited(17_700))]
// The ids alone are tried first, for most are signed so: 11,500 more here, 25,000 less there.
#[bench::post_signed_whole(args = (BODY, Some(BODY), true), setup = asked, config = limited(43_200))]
#[bench::post_ids_signed(args = (IDENTITY, Some(BODY), true), setup = asked, config = limited(24_000))]
#[bench::post_refused(args = (b"{}", Some(BODY), false), setup = asked, config = limited(48_600))]
fn verify(asked: Asked) {
    let body = asked.body.map_or(Carried::Nothing, Carried::Json);
    let request = Presented { headers: &asked.headers, query: None, body };
    assert_eq!(asked.scheme.verify(black_box(&request), NOW).is_ok(), asked.accepted);
}

#[library_benchmark]
#[bench::small(args = (200), setup = body, config = limited(5_700))]
#[bench::large(args = (100 * 1024), setup = body, config = limited(3_330_000))]
fn check_and_print(text: String) -> usize {
    let mut out = Vec::with_capacity(text.len());
    Document::parse(black_box(text.as_bytes())).expect("a document").print(&mut out);
    out.len()
}

fn asked_of(count: usize) -> (RouteTable, String) {
    let last = count - 1;
    (table(count), format!("/team{}/r{last:05}/orders/17/items", last % 50))
}

#[library_benchmark]
#[bench::of_10(args = (10), setup = asked_of, config = limited(3_300))]
#[bench::of_1000(args = (1_000), setup = asked_of, config = limited(3_300))]
#[bench::of_10000(args = (10_000), setup = asked_of, config = limited(3_300))]
fn route((table, path): (RouteTable, String)) -> (RouteTable, bool) {
    let found = CanonicalPath::parse(black_box(&path)).is_ok_and(|path| table.find(&path).is_some());
    // Handed out, so that freeing it is not counted.
    (table, found)
}

library_benchmark_group!(name = steps; benchmarks = header, verify, check_and_print, route);
main!(library_benchmark_groups = steps);
