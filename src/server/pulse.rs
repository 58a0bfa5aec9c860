//! Whether the workers still turn.

use std::sync::Arc;

use tokio::runtime::Handle;

/// Asks the workers of a server to show that they live.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<[Handle]>);

impl Pulse {
    pub(super) fn of(workers: Vec<Handle>) -> Self {
        Self(workers.into())
    }

    /// Waits until each worker has come round to a task of ours, which one that hangs never does. `false` if one is gone,
    /// as all are at the end of a drain.
    pub async fn beat(&self) -> bool {
        let asked: Vec<_> = self.0.iter().map(|worker| worker.spawn(async {})).collect();
        let mut all = true;
        for answer in asked {
            all &= answer.await.is_ok();
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn it_beats_while_all_workers_turn_and_not_once_one_hangs_or_is_gone() {
        let (turning, hanging, gone) = (runtime(), runtime(), runtime());
        let handle = |runtime: &Runtime| runtime.handle().clone();
        let (both, one, ended) = (
            Pulse::of(vec![handle(&turning), handle(&turning)]),
            Pulse::of(vec![handle(&turning), handle(&hanging)]),
            Pulse::of(vec![handle(&turning), handle(&gone)]),
        );
        drop(gone);
        turning.block_on(async {
            assert!(both.beat().await);
            assert!(!ended.beat().await);
            // Nothing runs the other one; its time is this one's to tell.
            let waited = tokio::time::timeout(Duration::from_millis(50), one.beat()).await;
            assert!(waited.is_err(), "{waited:?}");
        });
    }
}
