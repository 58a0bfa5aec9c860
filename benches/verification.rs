//! What a signature costs: reading the header, and verification as a whole.
#![expect(clippy::expect_used, reason = "a bench that cannot be set up should stop")]

use std::{hint::black_box, time::Duration};

use countersign::{
    auth::{Carried, Presented, Scheme, StripeApp},
    secret::SigningSecret,
    signature::{Signature, SigningKey},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

const NOW: i64 = 1_750_000_000;
const IDENTITY: &[u8] = br#"{"user_id":"usr_BenchUser0000001","account_id":"acct_BenchAccount0001"}"#;

/// 200 bytes. What is signed is the body itself, as `JSON.stringify` made it.
const BODY: &[u8] = br#"{"action":"refund","charge":"ch_3Nxyz0123456789abc","amount":1999,"currency":"eur","note":"small JSON body of two hundred bytes.","user_id":"usr_BenchUser0000001","account_id":"acct_BenchAccount0001"}"#;

fn key() -> SigningKey {
    let secret = Zeroizing::new("absec_bench_0123456789abcdef0123456789abcdef".to_owned());
    SigningKey::new(&SigningSecret::parse(secret).expect("a secret"))
}

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &str)| {
        (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header value"))
    };
    fields.iter().map(field).collect()
}

fn header(c: &mut Criterion) {
    let mut group = c.benchmark_group("header");
    let one = key().header(NOW, IDENTITY);
    let rolling = format!("{one},v1={},v0={}", "0".repeat(64), "0".repeat(64));
    for (name, value) in [("one tag", one), ("two tags and a v0", rolling)] {
        group.bench_function(name, |b| b.iter(|| Signature::parse(black_box(value.as_bytes())).is_ok()));
    }
    group.finish();
}

fn whole(c: &mut Criterion) {
    let mut group = c.benchmark_group("verify");
    let scheme =
        |keys| Scheme::StripeApp(StripeApp { keys, tolerance: Duration::from_secs(300), allow_account_only: false });
    let ids = [("stripe-user-id", "usr_BenchUser0000001"), ("stripe-account-id", "acct_BenchAccount0001")];
    let over_identity = key().header(NOW, IDENTITY);
    let over_body = key().header(NOW, BODY);
    let get = headers(&[("stripe-signature", &over_identity), ids[0], ids[1]]);
    let post = headers(&[("stripe-signature", &over_body)]);
    let post_identity = headers(&[("stripe-signature", &over_identity)]);
    let post_wrong = headers(&[("stripe-signature", &key().header(NOW, b"{}"))]);
    for (name, headers, body, accepted) in [
        ("GET, ids in headers", &get, Carried::Nothing, true),
        ("POST 200 B, body signed", &post, Carried::Json(BODY), true),
        ("POST 200 B, ids signed", &post_identity, Carried::Json(BODY), true),
        ("POST 200 B, refused", &post_wrong, Carried::Json(BODY), false),
    ] {
        let scheme = scheme(vec![key()]);
        let request = Presented { headers, query: None, body };
        assert_eq!(scheme.verify(&request, NOW).is_ok(), accepted, "{name}");
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |b| b.iter(|| scheme.verify(black_box(&request), NOW).is_ok()));
    }
    group.finish();
}

criterion_group!(benches, header, whole);
criterion_main!(benches);
