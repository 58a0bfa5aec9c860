//! Checking a body and printing it as JavaScript does, beside `serde_json`'s parse of the same bytes.
#![expect(clippy::expect_used, reason = "a bench that cannot be set up should stop")]

use std::{fmt::Write as _, hint::black_box};

use countersign::json::Document;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// An object of about `bytes` bytes, as `JSON.stringify` prints it.
fn body(bytes: usize) -> String {
    let mut text = String::from(r#"{"user_id":"usr_BenchUser0000001","account_id":"acct_BenchAccount0001","items":["#);
    let mut place = 0;
    while text.len() + 100 < bytes || place == 0 {
        let comma = if place == 0 { "" } else { "," };
        let _ = write!(
            text,
            r#"{comma}{{"id":"ch_{place:08}","amount":{},"rate":0.{place}5,"note":"réf. \"{place}\"","paid":true}}"#,
            place * 37
        );
        place += 1;
    }
    text + "]}"
}

/// The same document as a person lays it out: nothing of it can be copied as it stands.
fn spaced(text: &str) -> String {
    text.replace(",\"", ", \"").replace("\":", "\": ")
}

fn print(c: &mut Criterion) {
    let mut group = c.benchmark_group("json");
    for (size, bytes) in [("200 B", 200), ("100 KiB", 100 * 1024)] {
        let compact = body(bytes);
        for (form, text) in [("compact", compact.clone()), ("spaced", spaced(&compact))] {
            let text = text.as_bytes();
            let mut out = Vec::with_capacity(text.len());
            Document::parse(text).expect("a document").print(&mut out);
            assert_eq!(out, compact.as_bytes());
            let parameter = format!("{size}, {form}");
            group.throughput(Throughput::Bytes(u64::try_from(text.len()).expect("a length")));
            group.bench_function(BenchmarkId::new("check", &parameter), |b| {
                b.iter(|| Document::parse(black_box(text)).is_ok());
            });
            group.bench_function(BenchmarkId::new("check and print", &parameter), |b| {
                b.iter(|| {
                    out.clear();
                    Document::parse(black_box(text)).expect("a document").print(&mut out);
                    out.len()
                });
            });
            group.bench_function(BenchmarkId::new("serde_json parse", &parameter), |b| {
                b.iter(|| serde_json::from_slice::<serde_json::Value>(black_box(text)).is_ok());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, print);
criterion_main!(benches);
