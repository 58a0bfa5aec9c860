//! Checking a body and printing it as JavaScript does, beside `serde_json`'s parse of the same bytes.
#![expect(clippy::expect_used, reason = "a bench that cannot be set up should stop")]

use std::hint::black_box;

use countersign::json::Document;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

#[path = "setup/json.rs"]
mod setup;
use setup::body;

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
