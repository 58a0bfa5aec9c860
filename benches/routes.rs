//! Finding the route for a path, the path's own check included.
#![expect(clippy::expect_used, reason = "a bench that cannot be set up should stop")]

use std::hint::black_box;

use countersign::path::CanonicalPath;
use criterion::{Criterion, criterion_group, criterion_main};

#[path = "setup/routes.rs"]
mod setup;
use setup::table;

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
