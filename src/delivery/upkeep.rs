//! What is done beside delivering: what is old is dropped, what was done by hand recorded, what waits in vain told, and what
//! there is counted.

use std::{
    collections::HashSet,
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
    tokio::join!(expire(&shared, orders.clone()), warn(&shared, orders), record(&shared), count(&shared));
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

/// Says at the start, and when other destinations are named, for which ones deliveries wait that nobody makes.
async fn warn(shared: &Shared, mut orders: watch::Receiver<Arc<Orders>>) {
    let mut told = HashSet::new();
    loop {
        let named = Arc::clone(&orders.borrow_and_update());
        if let Ok(figures) = shared.inbox.figures().await {
            let orphaned = orphaned(&figures, &named);
            told.retain(|name| orphaned.iter().any(|figures| figures.destination == *name));
            for Figures { destination, pending, .. } in orphaned {
                if told.insert(destination.clone()) {
                    tracing::warn!(
                        destination,
                        pending,
                        "deliveries wait for a destination that the configuration does not name; name it again, or discard them \
                         with `countersign inbox discard`"
                    );
                }
            }
        }
        if orders.changed().await.is_err() {
            return;
        }
    }
}

/// Those for which something waits and that are not named.
fn orphaned<'f>(figures: &'f [Figures], named: &Orders) -> Vec<&'f Figures> {
    let waits = |figures: &&Figures| figures.pending + figures.delivering > 0;
    let is_named = |figures: &&Figures| named.destinations.iter().any(|one| *one.name == *figures.destination);
    figures.iter().filter(waits).filter(|figures| !is_named(figures)).collect()
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
    shared.inbox.forget_acts(recorded).await
}

async fn count(shared: &Shared) {
    let mut ticks = interval(COUNT_EVERY);
    // A store that takes long to count is given time.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut left = 1_u32;
    loop {
        ticks.tick().await;
        if shared.is_asked.swap(false, Ordering::Relaxed) {
            left = COUNTS;
        }
        if left == 0 {
            continue;
        }
        left -= 1;
        if let Ok(figures) = shared.inbox.figures().await {
            shared.deliveries.store(Some(Arc::new(figures)));
        }
    }
}
