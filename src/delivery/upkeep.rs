//! What is done beside delivering: what is old is dropped, what was done by hand recorded, what waits in vain told, and what
//! there is counted.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{Orders, Shared};
use crate::{
    audit::{Audit, ByHand, Fate, Receipt},
    inbox::{Act, Figures},
};

/// How often what is old is dropped, and the pause while there is more of it: what is accepted meanwhile goes first.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
const EXPIRE_PAUSE: Duration = Duration::from_millis(100);
/// How often it is asked what was done by hand, and how soon again while something of it is not on the audit log's disk,
/// which takes it a second.
const ACTS_EVERY: Duration = Duration::from_secs(3);
const ACTS_AGAIN: Duration = Duration::from_millis(1200);
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

/// Records what was done by hand, in the audit log and in the program's own. The inbox remembers it until the audit log has
/// it on its disk.
async fn record(shared: &Shared) {
    let mut told = Told::default();
    loop {
        // A store that does not answer is told of by those who deliver.
        if let Ok(acts) = shared.inbox.acts().await {
            told.compare(&acts, shared.audit.as_ref());
            told.tell(shared, acts);
            let kept = told.kept(shared.audit.as_ref());
            if !kept.is_empty() && shared.inbox.forget_acts(kept.clone()).await.is_ok() {
                told.0.retain(|number, _| !kept.contains(number));
            }
        }
        sleep(if told.0.is_empty() { ACTS_EVERY } else { ACTS_AGAIN }).await;
    }
}

/// The acts that were recorded and that the inbox has not forgotten yet, by their numbers. Without an audit log there is no
/// receipt.
#[derive(Debug, Default)]
struct Told(HashMap<i64, (Act, Option<Receipt>)>);

impl Told {
    /// Keeps those that the inbox still has and the audit log has not lost. After a store was restored numbers begin anew: an
    /// act that is another than the one told of its number is a new one.
    fn compare(&mut self, acts: &[Act], audit: Option<&Audit>) {
        self.0.retain(|_, (told, receipt)| acts.contains(told) && fate(audit, *receipt) != Fate::Lost);
    }

    /// Records those that are new, the oldest first, as long as there is room and the audit log can be written.
    fn tell(&mut self, shared: &Shared, acts: Vec<Act>) {
        for act in acts {
            if self.0.contains_key(&act.number) {
                continue;
            }
            let receipt = match &shared.audit {
                None => None,
                Some(audit) if audit.is_failing() => return,
                Some(audit) => match audit.done_by_hand(&by_hand(&act)) {
                    None => return,
                    receipt => receipt,
                },
            };
            let Act { act: deed, by, delivery, event, destination, .. } = &act;
            tracing::info!(act = deed, by, delivery, event, destination, "a delivery was changed by hand");
            self.0.insert(act.number, (act, receipt));
        }
    }

    /// Those that need not be remembered any more.
    fn kept(&self, audit: Option<&Audit>) -> Vec<i64> {
        let is_kept = |receipt: &Option<Receipt>| fate(audit, *receipt) == Fate::Kept;
        self.0.iter().filter(|(_, (_, receipt))| is_kept(receipt)).map(|(number, _)| *number).collect()
    }
}

fn fate(audit: Option<&Audit>, receipt: Option<Receipt>) -> Fate {
    audit.zip(receipt).map_or(Fate::Kept, |(audit, receipt)| audit.fate(receipt))
}

fn by_hand(act: &Act) -> ByHand<'_> {
    let Act { at, act, by, delivery, event, destination, .. } = act;
    ByHand { at: *at, act, by, delivery, event, destination }
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
