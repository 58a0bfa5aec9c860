//! The inbox: what is kept, for whom, and what becomes of it, over either store.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use countersign::{
    inbox::{self, Acceptance, Arrived, Due, End, Inbox, Keeper, Leased, Settings, Settled, Store, Want},
    webhook::{Event, EventId},
};

mod postgres;
mod sqlite;

/// How long a lease lasts where a test does not wait for its end.
const LONG: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// An inbox that is open, and what drives it.
pub(crate) struct Opened {
    pub(crate) inbox: Inbox,
    keeper: Keeper,
    runtime: tokio::runtime::Runtime,
}

impl Opened {
    pub(crate) fn of(settings: &Settings) -> Self {
        let (inbox, keeper) = inbox::open(settings).unwrap_or_else(|error| panic!("{error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { inbox, keeper, runtime }
    }

    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    fn accept(&self, arrived: Arrived) -> Acceptance {
        self.wait(self.inbox.accept(arrived)).unwrap()
    }

    fn lease(&self, want: Want) -> Leased {
        self.wait(self.inbox.lease(want)).unwrap()
    }

    fn settle(&self, due: &Due, end: End) -> bool {
        let settled = Settled { delivery: Arc::clone(&due.delivery), lease: due.lease, end };
        self.wait(self.inbox.settle(settled)).unwrap()
    }

    pub(crate) fn finish(self) {
        self.keeper.finish(Duration::from_secs(20));
    }
}

pub(crate) fn sqlite_in(folder: &std::path::Path) -> Settings {
    Settings { state_directory: folder.to_owned(), store: Store::Sqlite, retention: 30 * DAY }
}

/// An event about `object` for the destinations in `to`.
pub(crate) fn arrived(id: &str, object: Option<&str>, to: &[&str]) -> Arrived {
    Arrived {
        webhook: "/stripe".into(),
        event: Event {
            id: EventId::parse(id).unwrap(),
            kind: "invoice.paid".into(),
            livemode: true,
            account: Some("acct_1".into()),
            object: object.map(Arc::from),
        },
        content_type: Some("application/json; charset=utf-8".into()),
        body: format!("{{\"id\": \"{id}\"}}\n").into(),
        received: SystemTime::now(),
        destinations: to.iter().map(|name| Arc::from(*name)).collect(),
    }
}

pub(crate) fn want(destination: &str, most: usize) -> Want {
    Want { destination: destination.into(), most, lease: LONG, ordered: false }
}

fn in_order(destination: &str, most: usize) -> Want {
    Want { ordered: true, ..want(destination, most) }
}

fn events(leased: &Leased) -> Vec<&str> {
    leased.due.iter().map(|due| &*due.event).collect()
}

/// What every store does.
mod promises {
    use super::*;

    pub(super) fn one_of_many_at_once_is_new(opened: &Opened) {
        let all = (0..50).map(|_| opened.inbox.accept(arrived("evt_1", None, &["a", "b"])));
        let answers: Vec<_> = opened.wait(futures_util::future::join_all(all));
        let new = answers.iter().filter(|answer| **answer == Ok(Acceptance::New)).count();
        let duplicate = answers.iter().filter(|answer| **answer == Ok(Acceptance::Duplicate)).count();
        assert_eq!((new, duplicate), (1, 49), "{answers:?}");
        // The same id at another webhook is another event.
        let other = Arrived { webhook: "/other".into(), ..arrived("evt_1", None, &["a"]) };
        assert_eq!(opened.accept(other), Acceptance::New);
        assert_eq!(opened.lease(want("a", 10)).due.len(), 2);
        assert_eq!(opened.lease(want("b", 10)).due.len(), 1);
    }

    pub(super) fn what_is_leased_is_as_it_came(opened: &Opened) {
        let came = Arrived { body: vec![0, 255, b'\n', b'{'].into(), ..arrived("evt_1", Some("in_1"), &["a"]) };
        opened.accept(came.clone());
        opened.accept(Arrived { body: "other bytes".into(), ..came.clone() });
        let leased = opened.lease(want("a", 10));
        let [due] = &leased.due[..] else { panic!("{leased:?}") };
        assert_eq!((&due.body, &due.content_type, due.attempt), (&came.body, &came.content_type, 1));
        let texts = [&*due.webhook, &due.event, &due.kind, &due.destination];
        assert_eq!(texts, ["/stripe", "evt_1", "invoice.paid", "a"]);
        assert_eq!((due.account.as_deref(), due.object.as_deref()), (Some("acct_1"), Some("in_1")));
        let gap = came.received.duration_since(due.received).unwrap();
        assert!(gap < Duration::from_millis(1) && due.since == due.received, "{gap:?}");
        // Nobody else gets it, and it is looked at again when the lease ends.
        let again = opened.lease(want("a", 10));
        assert!(again.due.is_empty());
        let next = again.next.unwrap();
        assert!(next > LONG - Duration::from_secs(20) && next <= LONG, "{next:?}");
        assert!(opened.lease(want("b", 10)).next.is_none());
    }

    pub(super) fn an_attempt_ends_as_is_noted(opened: &Opened) {
        let ids = ["evt_1", "evt_2", "evt_3", "evt_4"];
        for id in ids {
            opened.accept(arrived(id, None, &["a"]));
        }
        let leased = opened.lease(want("a", 10));
        assert_eq!(events(&leased), ids);
        let [one, two, three, four] = &leased.due[..] else { panic!("{leased:?}") };
        assert!(opened.settle(one, End::Delivered));
        assert!(opened.settle(two, End::Again { after: DAY, error: "status 500".into() }));
        assert!(opened.settle(three, End::Dead { error: "status 410".into() }));
        assert!(opened.settle(four, End::Released));
        // Asked once more, the answer is the same; asked something else, it is no.
        assert!(opened.settle(one, End::Delivered) && opened.settle(three, End::Dead { error: "status 410".into() }));
        assert!(!opened.settle(one, End::Dead { error: "late".into() }));
        let again = opened.lease(want("a", 10));
        assert_eq!((events(&again), again.due[0].attempt), (vec!["evt_4"], 2));
        assert_eq!(again.due[0].delivery, four.delivery);
        let figures = opened.wait(opened.inbox.figures()).unwrap();
        let [figures] = &figures[..] else { panic!("{figures:?}") };
        assert_eq!((figures.pending, figures.delivering, figures.delivered, figures.dead), (1, 1, 1, 1));
        let oldest = figures.oldest_pending.unwrap();
        assert!(oldest == two.received, "{oldest:?}");
    }

    pub(super) fn a_lease_ends(opened: &Opened) {
        opened.accept(arrived("evt_1", None, &["a"]));
        let short = Want { lease: Duration::from_millis(50), ..want("a", 1) };
        let first = opened.lease(short).due.remove(0);
        let second = loop {
            let leased = opened.lease(want("a", 1));
            if let Some(due) = leased.due.into_iter().next() {
                break due;
            }
            std::thread::sleep(leased.next.unwrap());
        };
        assert_eq!((first.attempt, second.attempt), (1, 2));
        assert_eq!(first.delivery, second.delivery);
        assert!(!opened.settle(&first, End::Delivered), "the lease was no longer the first one's");
        assert!(opened.settle(&second, End::Delivered));
    }

    pub(super) fn an_object_has_one_at_a_time(opened: &Opened) {
        for (id, object) in [("evt_1", "in_1"), ("evt_2", "in_1"), ("evt_3", "in_2"), ("evt_4", "in_1")] {
            opened.accept(arrived(id, Some(object), &["a", "b"]));
        }
        opened.accept(arrived("evt_5", None, &["a"]));
        opened.accept(arrived("evt_6", None, &["a"]));
        let leased = opened.lease(in_order("a", 10));
        assert_eq!(events(&leased), ["evt_1", "evt_3", "evt_5", "evt_6"]);
        let next = opened.lease(in_order("a", 10));
        assert!(next.due.is_empty() && next.next.is_some_and(|next| next > Duration::from_secs(1)), "{next:?}");
        // The first backs off: those behind it wait.
        assert!(opened.settle(&leased.due[0], End::Again { after: Duration::from_millis(1), error: String::new() }));
        std::thread::sleep(Duration::from_millis(2));
        let again = opened.lease(in_order("a", 10));
        assert_eq!(events(&again), ["evt_1"]);
        // It is dead: the next one goes on, and then the last.
        assert!(opened.settle(&again.due[0], End::Dead { error: String::new() }));
        let second = opened.lease(in_order("a", 10));
        assert_eq!(events(&second), ["evt_2"]);
        assert!(opened.settle(&second.due[0], End::Delivered));
        assert_eq!(events(&opened.lease(in_order("a", 10))), ["evt_4"]);
        // Another destination has its own order; without one, what was put aside is due.
        assert_eq!(events(&opened.lease(in_order("b", 1))), ["evt_1"]);
        assert_eq!(events(&opened.lease(in_order("b", 10))), ["evt_3"]);
        assert_eq!(events(&opened.lease(want("b", 10))), ["evt_2", "evt_4"]);
    }
}
