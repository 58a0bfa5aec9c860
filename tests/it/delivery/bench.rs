//! An inbox in a folder of its own, what delivers from it, and what both record.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use countersign::{
    audit::{self, Audit, OnError, Scribe},
    clock::Clock,
    delivery::{Deliverer, Destination, Retry},
    inbox::{self, Acceptance, Arrived, Inbox, Keeper, Store},
    record::{Log, Writer},
    secret::{Kind, SigningSecret},
    signature::SigningKey,
    upstream::{Origin, Place, Protocol, Settings},
    webhook::{Event, EventId},
};
use serde_json::Value;

use crate::support::{Records, Upstream, header};

/// How long something may take that takes no time.
const SOON: Duration = Duration::from_secs(20);
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// What destinations sign with here.
pub(crate) const SECRET: &str = "whsec_test_of_a_destination_0123456789";
pub(crate) const BODY: &str =
    "{\n  \"id\": \"evt_1\",\r\n  \"type\": \"invoice.paid\", \"note\": \"\u{fc}\\u00e9 \"  }\n";

pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) inbox: Inbox,
    store: Store,
    runtime: tokio::runtime::Runtime,
    keeper: Option<Keeper>,
    deliverer: Option<Deliverer>,
    records: Arc<Mutex<Vec<u8>>>,
    log: Option<(Log, Writer)>,
    audit: Option<(Audit, Scribe)>,
}

impl Bench {
    /// An empty inbox, from which nothing is delivered yet.
    pub(crate) fn new() -> Self {
        Self::of(Store::Sqlite)
    }

    /// The same kept in `store`.
    pub(crate) fn of(store: Store) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (inbox, keeper) = open(&folder, store.clone());
        let records = Arc::new(Mutex::new(Vec::new()));
        let log = Log::start(Box::new(Records(Arc::clone(&records)))).unwrap();
        let audit = Audit::start(audited_in(folder.path()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self {
            folder,
            store,
            inbox,
            runtime,
            keeper: Some(keeper),
            deliverer: None,
            records,
            log: Some(log),
            audit: Some(audit.unwrap()),
        }
    }

    /// The same, delivering to these.
    pub(crate) fn to(destinations: Vec<Destination>) -> Self {
        let mut bench = Self::new();
        bench.start(destinations);
        bench
    }

    pub(crate) fn start(&mut self, destinations: Vec<Destination>) {
        let log = self.log.as_ref().unwrap().0.clone();
        let audit = self.audit.as_ref().map(|(audit, _)| audit.clone());
        let started = Deliverer::start(
            self.inbox.clone(),
            destinations,
            RETENTION,
            (log, audit),
            "of-the-configuration".into(),
            Clock::System,
        );
        self.deliverer = Some(started.unwrap());
    }

    pub(crate) fn deliverer(&self) -> &Deliverer {
        self.deliverer.as_ref().unwrap()
    }

    pub(crate) fn change(&self, destinations: Vec<Destination>) {
        self.deliverer().change(destinations, RETENTION, "of-another".into());
    }

    /// Ends delivering as a drain does; how long that took.
    pub(crate) fn finish(&mut self, patience: Duration) -> Duration {
        let began = Instant::now();
        self.deliverer.take().unwrap().finish(patience);
        began.elapsed()
    }

    /// Ends everything but the files, delivering as a crash does, and opens the inbox again.
    pub(crate) fn crash(&mut self) {
        drop(self.deliverer.take());
        self.keeper.take().unwrap().finish(SOON);
        let (inbox, keeper) = open(&self.folder, self.store.clone());
        (self.inbox, self.keeper) = (inbox, Some(keeper));
    }

    /// Keeps an event about `object` for these destinations, and tells them.
    pub(crate) fn accept(&self, id: &str, object: Option<&str>, destinations: &[&str]) {
        self.accept_as(arrived(id, object, destinations));
    }

    pub(crate) fn accept_as(&self, arrived: Arrived) {
        let destinations = arrived.destinations.clone();
        let accepted = self.runtime.block_on(self.inbox.accept(arrived));
        assert_eq!(accepted, Ok(Acceptance::New));
        if let Some(deliverer) = &self.deliverer {
            deliverer.post().wake(&destinations);
        }
    }

    /// What the inbox holds for a destination.
    pub(crate) fn figures(&self, destination: &str) -> inbox::Figures {
        let all = self.runtime.block_on(self.inbox.figures()).unwrap();
        all.into_iter().find(|figures| figures.destination == destination).unwrap_or_default()
    }

    /// Waits until what the inbox holds for a destination is as it should be.
    pub(crate) fn until(&self, destination: &str, holds: impl Fn(&inbox::Figures) -> bool) -> inbox::Figures {
        eventually(|| Some(self.figures(destination)).filter(&holds))
    }

    /// The records of attempts for a destination, once there are `count` of them.
    pub(crate) fn attempts(&self, destination: &str, count: usize) -> Vec<Value> {
        eventually(|| Some(self.seen(destination)).filter(|seen| seen.len() >= count))
    }

    /// Those there are.
    pub(crate) fn seen(&self, destination: &str) -> Vec<Value> {
        let text = String::from_utf8(self.records.lock().unwrap().clone()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["countersign.destination"] == destination).collect()
    }

    /// How many records the audit log has.
    pub(crate) fn recorded(&self) -> u64 {
        self.audit.as_ref().unwrap().0.head().sequence
    }

    /// Has the audit log fail from now on: it is to go on in a new segment, and there is another file at each place for one.
    pub(crate) fn break_audit(&self, on_error: OnError) -> Vec<PathBuf> {
        let audit = &self.audit.as_ref().unwrap().0;
        let next = audit.head().sequence + 1;
        let path = |number| self.folder.path().join(format!("audit/{number:020}.jsonl"));
        let in_the_way: Vec<_> = (next..next + 50).map(path).collect();
        for path in &in_the_way {
            fs::write(path, "").unwrap();
        }
        audit.change(audit::Settings { on_error, segment_bytes: 1, ..audited_in(self.folder.path()) });
        in_the_way
    }

    /// The records of the audit log of this kind, at the end of everything.
    pub(crate) fn audited(&mut self, kind: &str) -> Vec<Value> {
        drop(self.deliverer.take());
        self.audit.take().unwrap().1.finish(SOON);
        let folder = fs::read_dir(self.folder.path().join("audit")).unwrap();
        let segments =
            folder.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "jsonl"));
        let text: String = segments.map(|path| fs::read_to_string(path).unwrap()).collect();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["kind"] == kind).collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(self.deliverer.take());
        if let Some(keeper) = self.keeper.take() {
            keeper.finish(SOON);
        }
        if let Some((_, writer)) = self.log.take() {
            writer.finish(SOON);
        }
    }
}

fn audited_in(folder: &Path) -> audit::Settings {
    audit::Settings {
        state_directory: folder.to_owned(),
        on_error: OnError::Refuse,
        checkpoint_lines: 1000,
        checkpoint_every: Duration::from_secs(3600),
        segment_bytes: 1 << 30,
        segment_every: Duration::from_secs(3600),
    }
}

fn open(folder: &tempfile::TempDir, store: Store) -> (Inbox, Keeper) {
    open_in(folder.path(), store)
}

fn open_in(folder: &Path, store: Store) -> (Inbox, Keeper) {
    let state_directory = folder.to_owned();
    inbox::open(&inbox::Settings { state_directory, store, retention: RETENTION }).unwrap()
}

/// Keeps an event in the inbox of a state folder of which nobody has it open.
pub(crate) fn keep_in(folder: &Path, arrived: Arrived) {
    fs::create_dir_all(folder).unwrap();
    let (inbox, keeper) = open_in(folder, Store::Sqlite);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(inbox.accept(arrived)), Ok(Acceptance::New));
    keeper.finish(SOON);
}

/// Asks again and again until there is an answer.
#[track_caller]
pub(crate) fn eventually<T>(answer: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// An event as it is handed to the inbox.
pub(crate) fn arrived(id: &str, object: Option<&str>, destinations: &[&str]) -> Arrived {
    Arrived {
        webhook: "/stripe".into(),
        event: Event {
            id: EventId::parse(id).unwrap(),
            kind: "invoice.paid".into(),
            livemode: true,
            account: None,
            object: object.map(Into::into),
        },
        content_type: Some("application/json; charset=utf-8".into()),
        body: Bytes::from_static(BODY.as_bytes()),
        received: SystemTime::now(),
        destinations: destinations.iter().map(|name| (*name).into()).collect(),
    }
}

/// A destination at `address` that is asked again soon and for ever.
pub(crate) fn destination(name: &str, service: &Upstream) -> Destination {
    let authority = service.address.to_string().parse().unwrap();
    let origin = Origin { protocol: Protocol::Http, place: Place::Host(authority) };
    Destination {
        name: name.into(),
        upstream: Settings::new(name.into(), vec![origin]),
        target: "/events?from=stripe".parse().unwrap(),
        key: Some(key(SECRET)),
        timeout: Duration::from_secs(10),
        concurrency: 8,
        ordered: false,
        retry: Retry {
            first: Duration::from_millis(20),
            longest: Duration::from_millis(40),
            give_up: Duration::from_secs(3600),
        },
    }
}

pub(crate) fn key(secret: &str) -> SigningKey {
    SigningKey::new(&SigningSecret::parse_as(Kind::Webhook, secret.to_owned().into()).unwrap())
}

/// An answer of this status.
pub(crate) fn answer(status: u16, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} Whatever\r\n{headers}Content-Length: 0\r\n\r\n").into_bytes()
}

/// Which event, which delivery and which attempt a request brings.
pub(crate) fn brought(request: &[u8]) -> (String, String, u32) {
    let text = String::from_utf8_lossy(request);
    let told = |name: &str| header(&text, name).unwrap_or_else(|| panic!("{name} is missing in {text}")).to_owned();
    (told("countersign-event"), told("countersign-delivery"), told("countersign-attempt").parse().unwrap())
}

/// The numbers of the attempts that a service got, as they came.
pub(crate) fn numbers(service: &Upstream) -> Vec<u32> {
    service.requests().iter().map(|request| brought(request).2).collect()
}

/// A service that answers the first requests with these bytes, one after the other, and all others with 200.
pub(crate) fn failing_first(answers: Vec<Vec<u8>>) -> Upstream {
    let turn = std::sync::atomic::AtomicUsize::new(0);
    Upstream::serving(move |stream, _| {
        let turn = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let Some(bytes) = answers.get(turn) else {
            return std::io::Write::write_all(stream, &answer(200, "")).is_ok();
        };
        let is_whole = bytes.ends_with(b"\r\n\r\n");
        let _ = std::io::Write::write_all(stream, bytes);
        is_whole
    })
}
