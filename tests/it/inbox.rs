//! The inbox: what is kept, for whom, and what becomes of it, over either store.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use countersign::{
    inbox::{
        self, Acceptance, Arrived, Due, End, Inbox, Keeper, Leased, OpenError, Settings, Settled, State, Store, Want,
        desk::{Deed, Desk, Filter, Refusal},
    },
    webhook::{Event, EventId},
};

mod command;
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

/// Why an inbox cannot be opened.
fn fault(settings: &Settings) -> OpenError {
    inbox::open(settings).map(|_| "it was opened").unwrap_err()
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
        assert!(next > LONG * 2 / 3 && next <= LONG, "{next:?}");
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

    pub(super) fn what_is_more_than_wanted_is_due_at_once(opened: &Opened) {
        for number in 0..5 {
            opened.accept(arrived(&format!("evt_{number}"), Some("in_1"), &["a"]));
        }
        let leased = opened.lease(want("a", 2));
        assert_eq!((events(&leased), leased.next), (vec!["evt_0", "evt_1"], Some(Duration::ZERO)));
    }

    pub(super) fn what_is_done_by_hand_is_noted(opened: &Opened, settings: &Settings) {
        for id in ["evt_1", "evt_2"] {
            opened.accept(arrived(id, Some("in_1"), &["a", "b"]));
        }
        let mut desk = Desk::open(settings).unwrap();
        assert_eq!(desk.act(Deed::Retry, "evt_3", "op").unwrap(), []);
        let first = opened.lease(in_order("a", 1)).due.remove(0);
        // It is under way, and what is for another destination is taken up at once.
        let done = desk.act(Deed::Retry, "evt_1", "op").unwrap();
        let refusals: Vec<_> = done.iter().map(|done| (&*done.destination, done.refusal)).collect();
        assert_eq!(refusals, [("a", Some(Refusal::Delivering)), ("b", None)]);
        assert_eq!(events(&opened.lease(in_order("a", 9))), [""; 0]);
        // Nor is it discarded now; before its next attempt it is: an end counts no more, and the next one goes on.
        let done = desk.act(Deed::Discard, &first.delivery, "op").unwrap();
        assert_eq!(done[0].refusal, Some(Refusal::Delivering));
        assert!(opened.settle(&first, End::Again { after: DAY, error: String::new() }));
        assert_eq!(desk.act(Deed::Discard, &first.delivery, "op").unwrap()[0].refusal, None);
        assert!(!opened.settle(&first, End::Delivered));
        let second = opened.lease(in_order("a", 9)).due.remove(0);
        assert_eq!(&*second.event, "evt_2");
        assert!(opened.settle(&second, End::Dead { error: "status 410".into() }));
        // It is taken up again: the same delivery, whose attempts count on, and time counts from now.
        assert_eq!(desk.act(Deed::Retry, &second.delivery, "op").unwrap()[0].refusal, None);
        let again = opened.lease(in_order("a", 9)).due.remove(0);
        assert_eq!((&again.delivery, again.attempt), (&second.delivery, 2));
        assert!(again.since > second.since && again.received == second.received);
        assert!(opened.settle(&again, End::Delivered));
        // What is delivered is made again only where it is named itself.
        let done = desk.act(Deed::Retry, "evt_2", "op").unwrap();
        assert_eq!((done.len(), &*done[0].destination), (1, "b"));
        assert_eq!(desk.act(Deed::Discard, &second.delivery, "op").unwrap()[0].refusal, Some(Refusal::Delivered));
        assert_eq!(desk.act(Deed::Retry, &second.delivery, "op").unwrap()[0].refusal, None);
        let acts = opened.wait(opened.inbox.acts()).unwrap();
        let words: Vec<_> = acts.iter().map(|act| (&*act.act, &*act.event, &*act.destination)).collect();
        let expected = [
            ("retry", "evt_1", "b"),
            ("discard", "evt_1", "a"),
            ("retry", "evt_2", "a"),
            ("retry", "evt_2", "b"),
            ("retry", "evt_2", "a"),
        ];
        assert_eq!(words, expected);
        assert!(acts.iter().all(|act| act.by == "op") && acts[1].delivery == *first.delivery);
        opened.wait(opened.inbox.forget_acts(vec![acts[0].number, acts[2].number])).unwrap();
        let left = [1, 3, 4].map(|place| acts[place].clone());
        assert_eq!(opened.wait(opened.inbox.acts()).unwrap(), left, "what was not seen was forgotten");
    }

    pub(super) fn a_retried_one_waits_for_what_is_under_way(opened: &Opened, settings: &Settings) {
        for id in ["evt_1", "evt_2", "evt_3"] {
            opened.accept(arrived(id, Some("in_1"), &["a"]));
        }
        let mut desk = Desk::open(settings).unwrap();
        let first = opened.lease(in_order("a", 9)).due.remove(0);
        assert!(opened.settle(&first, End::Dead { error: String::new() }));
        let second = opened.lease(in_order("a", 9)).due.remove(0);
        assert_eq!(&*second.event, "evt_2");
        desk.act(Deed::Retry, "evt_1", "op").unwrap();
        assert_eq!(events(&opened.lease(in_order("a", 9))), [""; 0]);
        // It goes on when the other's attempt has ended, though that one is still to be delivered.
        assert!(opened.settle(&second, End::Again { after: DAY, error: String::new() }));
        let first = opened.lease(in_order("a", 9)).due.remove(0);
        assert_eq!((&*first.event, first.attempt), ("evt_1", 2));
        assert!(opened.settle(&first, End::Dead { error: String::new() }));
        // Or when its lease has ended.
        desk.act(Deed::Retry, "evt_2", "op").unwrap();
        let (begun, lease) = (Instant::now(), Duration::from_millis(500));
        assert_eq!(events(&opened.lease(Want { lease, ..in_order("a", 9) })), ["evt_2"]);
        desk.act(Deed::Retry, "evt_1", "op").unwrap();
        let first = loop {
            let leased = opened.lease(in_order("a", 9));
            if let Some(due) = leased.due.into_iter().next() {
                break due;
            }
            assert!(begun.elapsed() < LONG, "it was not found again");
            std::thread::sleep(leased.next.unwrap().min(Duration::from_millis(20)));
        };
        assert_eq!((&*first.event, begun.elapsed() >= lease), ("evt_1", true));
        assert!(opened.settle(&first, End::Delivered));
        for id in ["evt_2", "evt_3"] {
            let due = opened.lease(in_order("a", 9)).due.remove(0);
            assert_eq!(&*due.event, id);
            assert!(opened.settle(&due, End::Delivered));
        }
    }

    pub(super) fn lists_are_as_asked_for(opened: &Opened, settings: &Settings) {
        for id in ["evt_1", "evt_2", "evt_3"] {
            opened.accept(arrived(id, None, &["a", "gone"]));
        }
        let mut other = arrived("evt_4", None, &["a"]);
        other.event.kind = "invoiceitem.created".into();
        other.event.account = None;
        opened.accept(other);
        let leased = opened.lease(want("a", 2));
        opened.settle(&leased.due[0], End::Dead { error: "status 500".into() });
        let desk = Desk::open(settings).unwrap();
        let known = ["a"];
        let list = |filter: Filter| {
            let rows = desk.list(&Filter { limit: 100, ..filter }, &known).unwrap();
            rows.into_iter().map(|row| (row.event, row.state)).collect::<Vec<_>>()
        };
        let row = |event: &str, state| (event.to_owned(), state);
        let of = |state| Filter { state: Some(state), ..Filter::default() };
        assert_eq!(list(Filter::default()).len(), 7);
        assert_eq!(list(of(State::Dead)), [row("evt_1", State::Dead)]);
        assert_eq!(list(of(State::Delivering)), [row("evt_2", State::Delivering)]);
        assert_eq!(list(of(State::Pending)), [row("evt_4", State::Pending), row("evt_3", State::Pending)]);
        let orphaned = ["evt_3", "evt_2", "evt_1"].map(|event| row(event, State::Orphaned));
        assert_eq!(list(of(State::Orphaned)), orphaned);
        assert_eq!(list(Filter { destination: Some("gone".into()), ..Filter::default() }), orphaned);
        let kind = |kind: &str| Filter { kind: Some(kind.into()), ..Filter::default() };
        assert_eq!(list(Filter { destination: Some("a".into()), ..kind("invoice.*") }).len(), 3);
        assert_eq!(list(kind("invoiceitem.created")), [row("evt_4", State::Pending)]);
        assert_eq!(list(kind("invoice")), []);
        assert_eq!(list(Filter { account: Some("acct_1".into()), ..of(State::Pending) }).len(), 1);
        assert_eq!(desk.list(&Filter { limit: 2, ..Filter::default() }, &known).unwrap().len(), 2);
        let dead = desk.list(&Filter { limit: 1, ..of(State::Dead) }, &known).unwrap().remove(0);
        assert_eq!((dead.attempts, dead.next, dead.last_error.as_deref()), (1, None, Some("status 500")));
        assert_eq!(dead.delivery, *leased.due[0].delivery);
        let shown = desk.show("evt_1", &known).unwrap();
        assert_eq!((shown.len(), shown[0].deliveries.len()), (1, 2));
        assert_eq!(shown[0].body.as_deref(), Some(&b"{\"id\": \"evt_1\"}\n"[..]));
        let shown = desk.show(&dead.delivery, &known).unwrap();
        assert_eq!(shown[0].deliveries, [dead]);
        assert!(desk.show("evt_9", &known).unwrap().is_empty());
        let (events, figures) = desk.stats().unwrap();
        assert_eq!((events, figures.len(), figures[0].dead, figures[1].pending), (4, 2, 1, 3));
    }

    pub(super) fn old_ones_go(opened: &Opened, settings: &Settings, age: fn(&Settings)) {
        for id in ["evt_1", "evt_2", "evt_3", "evt_4"] {
            opened.accept(arrived(id, None, &["a", "b"]));
        }
        opened.accept(arrived("evt_5", None, &[]));
        let leased = [opened.lease(want("a", 4)), opened.lease(want("b", 2))];
        for due in leased
            .iter()
            .flat_map(|leased| &leased.due)
            .filter(|due| &*due.event != "evt_2" || &*due.destination == "a")
        {
            assert!(opened.settle(due, End::Delivered));
        }
        assert!(opened.settle(&leased[1].due[1], End::Dead { error: String::new() }));
        let mut desk = Desk::open(settings).unwrap();
        desk.act(Deed::Discard, "evt_3", "op").unwrap();
        let has_body = |desk: &Desk, id: &str| desk.show(id, &[]).unwrap()[0].body.is_some();
        let expire = |retention| opened.wait(opened.inbox.expire(retention)).unwrap();
        assert_eq!(expire(DAY), 0);
        // Delivered, or delivered and discarded: bodies go. Dead or pending: they stay. Ids stay all.
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(expire(Duration::ZERO), 3);
        let bodies = ["evt_1", "evt_2", "evt_3", "evt_4", "evt_5"].map(|id| has_body(&desk, id));
        assert_eq!(bodies, [false, true, false, true, false]);
        assert_eq!(opened.accept(arrived("evt_1", None, &["a"])), Acceptance::Duplicate);
        let done = desk.act(Deed::Retry, &leased[0].due[0].delivery, "op").unwrap();
        assert_eq!(done[0].refusal, Some(Refusal::Dropped));
        // After seven days they go themselves, but for what is left to be delivered or dead.
        age(settings);
        assert!(expire(Duration::ZERO) > 0);
        let left = ["evt_1", "evt_2", "evt_3", "evt_4", "evt_5"].map(|id| !desk.show(id, &[]).unwrap().is_empty());
        assert_eq!(left, [false, true, false, true, false]);
        assert_eq!(opened.accept(arrived("evt_1", None, &["a"])), Acceptance::New);
        assert_eq!(events(&opened.lease(want("b", 9))), ["evt_3", "evt_4"][1..]);
    }
}
