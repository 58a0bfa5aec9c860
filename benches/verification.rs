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

/// What verifying a large body costs beside what nobody can do without: its MAC and one copy of it.
fn large(c: &mut Criterion) {
    let mut group = c.benchmark_group("100 KiB");
    let mut body = String::from(r#"{"user_id":"usr_BenchUser0000001","account_id":"acct_BenchAccount0001","items":["#);
    while body.len() < 100 * 1024 {
        body.push_str(r#"{"id":"ch_00000001","amount":1999,"note":"a line of an order","paid":true},"#);
    }
    body.push_str("0]}");
    let signed = key().header(NOW, body.as_bytes());
    let headers = headers(&[("stripe-signature", &signed)]);
    let tolerance = Duration::from_secs(300);
    let scheme = Scheme::StripeApp(StripeApp { keys: vec![key()], tolerance, allow_account_only: false });
    let request = Presented { headers: &headers, query: None, body: Carried::Json(body.as_bytes()) };
    assert!(scheme.verify(&request, NOW).is_ok());
    group.throughput(Throughput::Bytes(body.len() as u64));
    let key = key();
    group.bench_function("MAC and copy", |b| {
        b.iter(|| (key.tag("1750000000", black_box(body.as_bytes())), black_box(body.as_bytes()).to_vec()));
    });
    group.bench_function("verify, body signed", |b| b.iter(|| scheme.verify(black_box(&request), NOW).is_ok()));
    group.finish();
}

criterion_group!(benches, header, whole, large);
criterion_main!(benches);
