//! What is done beside delivering: what is old is dropped, what was done by hand recorded, what waits in vain told, and what
//! there is counted.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{Orders, Shared};
use crate::{
    audit::ByHand,
    inbox::{Act, Figures, Unavailable},
};

/// How often what is old is dropped, and the pause while there is more of it: what is accepted meanwhile goes first.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
const EXPIRE_PAUSE: Duration = Duration::from_millis(100);
/// How often it is asked what was done by hand.
const ACTS_EVERY: Duration = Duration::from_secs(3);
/// How often what there is is counted, and how often more after somebody asked.
const COUNT_EVERY: Duration = Duration::from_secs(5);
const COUNTS: u32 = 24;

/// Does it for as long as this is polled.
pub(super) async fn run(shared: Arc<Shared>, orders: watch::Receiver<Arc<Orders>>) {
    tokio::join!(expire(&shared, orders.clone()), record(&shared), count(&shared, orders));
}

async fn expire(shared: &Shared, mut orders: watch::Receiver<Arc<Orders>>) {
    loop {
        let retention = orders.borrow_and_update().retention;
        let pause = match shared.inbox.expire(retention).await {
            Ok(1..) => EXPIRE_PAUSE,
            Ok(0) => EXPIRE_EVERY,
            Err(reason) => {
                tracing::warn!(%reason, "what is older than the retention is not dropped now; it will be tried again");
                EXPIRE_EVERY
            }
        };
        // Sooner where another retention may be in force.
        let changed = timeout(pause, orders.changed()).await;
        if changed.is_ok_and(|changed| changed.is_err()) {
            return;
        }
    }
}

/// Records what was done by hand, in the audit log and in the program's own.
async fn record(shared: &Shared) {
    let mut recorded = i64::MIN;
    loop {
        // A store that does not answer is told of by those who deliver.
        if let Ok(acts) = shared.inbox.acts().await {
            let new = acts.iter().filter(|act| act.number > recorded);
            recorded = new.map_while(|act| tell(shared, act).then_some(act.number)).last().unwrap_or(recorded);
            let _ = forget(shared, &acts, recorded).await;
        }
        sleep(ACTS_EVERY).await;
    }
}

/// Whether it could be recorded.
fn tell(shared: &Shared, done: &Act) -> bool {
    let Act { act, by, delivery, event, destination, .. } = done;
    let by_hand = ByHand { at: done.at, act, by, delivery, event, destination };
    if !shared.audit.as_ref().is_none_or(|audit| audit.done_by_hand(&by_hand)) {
        return false;
    }
    tracing::info!(act, by, delivery, event, destination, "a delivery was changed by hand");
    true
}

async fn forget(shared: &Shared, acts: &[Act], recorded: i64) -> Result<(), Unavailable> {
    if acts.iter().all(|act| act.number > recorded) {
        return Ok(());
    }
    shared.inbox.forget_acts(acts.iter().map(|act| act.number).filter(|number| *number <= recorded).collect()).await
}

/// Counts, and tells of what is held for nobody whenever there are other orders.
async fn count(shared: &Shared, mut orders: watch::Receiver<Arc<Orders>>) {
    let mut ticks = interval(COUNT_EVERY);
    // A store that takes long to count is given time.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut left = 0;
    orders.mark_changed();
    loop {
        ticks.tick().await;
        if shared.is_asked.swap(false, Ordering::Relaxed) {
            left = COUNTS;
        }
        let is_new = orders.has_changed().unwrap_or(false);
        if left == 0 && !is_new {
            continue;
        }
        left = left.saturating_sub(1);
        if let Ok(figures) = shared.inbox.figures().await {
            if is_new {
                tell_of_orphans(&orders.borrow_and_update(), &figures);
            }
            shared.deliveries.store(Some(Arc::new(figures)));
        }
    }
}

/// Says what is held for destinations that are not in the configuration.
fn tell_of_orphans(orders: &Orders, held: &[Figures]) {
    let is_known = |name: &str| orders.destinations.iter().any(|destination| &*destination.name == name);
    for of in held.iter().filter(|of| of.pending + of.delivering > 0 && !is_known(&of.destination)) {
        tracing::warn!(
            destination = of.destination,
            deliveries = of.pending + of.delivering,
            "deliveries wait for a destination that is not in the configuration: put it back, or discard them"
        );
    }
}
