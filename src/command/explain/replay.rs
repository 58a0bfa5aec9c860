//! A capture read as from a connection, by the reader that stands in front of the gateway.

use std::{
    convert::Infallible,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{io::AsyncWriteExt as _, sync::mpsc};

use crate::{
    gateway::{Activity, Fault},
    limits::Limits,
    server::wire::{Checked, Refusal},
};

/// What `answer` makes of the first request in `capture`. `None` if there is no whole one.
pub(super) fn replay<T, F: Future<Output = T>>(
    limits: &Limits,
    capture: &[u8],
    answer: impl Fn(Request<Incoming>, Option<Fault>) -> F,
) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        let (mut client, connection) = tokio::io::duplex(64 * 1024);
        let refusal = Arc::new(Refusal::default());
        let io = TokioIo::new(Checked::new(connection, limits, Arc::clone(&refusal), Activity::new(&Arc::default())));
        let (outcomes, mut outcome) = mpsc::unbounded_channel();
        let place = AtomicU64::new(0);
        let service = service_fn(|request: Request<Incoming>| {
            let answering = answer(request, refusal.of(place.fetch_add(1, Ordering::Relaxed)));
            let outcomes = outcomes.clone();
            async move {
                let _ = outcomes.send(answering.await);
                Ok::<_, Infallible>(Response::new(String::new()))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .half_close(true)
            .serve_connection(io, service);
        let sending = async {
            let _ = client.write_all(capture).await;
            // What has not come by now will not.
            let _ = client.shutdown().await;
            std::future::pending::<()>().await;
        };
        // The connection may end in the same moment as its request was answered.
        tokio::select! {
            _ = connection => outcome.try_recv().ok(),
            () = sending => None,
        }
    })
}
