//! Notices that files may have changed: told by the system, and by looking now and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};

use super::Order;
use crate::config::Sources;

/// How often the files are looked at, for what the system does not tell: other machines' changes, folders that were replaced.
const POLL: Duration = Duration::from_secs(5);
/// How often where the system tells nothing.
const POLL_ALONE: Duration = Duration::from_millis(500);
/// How long nothing must have changed before what is there is taken, for it may be half of something.
const QUIET: Duration = Duration::from_millis(150);
/// How long that is waited for.
const PATIENCE: Duration = Duration::from_millis(600);

/// Watches the folders of files, for a file that is replaced is another file.
pub(super) struct Watcher {
    system: Option<RecommendedWatcher>,
    /// The folders that are watched, and which each of them was.
    folders: BTreeMap<PathBuf, (u64, u64)>,
    /// The names in them that matter.
    names: Arc<Mutex<BTreeSet<OsString>>>,
}

impl Watcher {
    pub(super) fn new(orders: Sender<Order>) -> Self {
        let names = Arc::new(Mutex::new(BTreeSet::new()));
        let wanted = Arc::clone(&names);
        let tell = move |event: notify::Result<notify::Event>| {
            let matters = event.map_or(true, |event| {
                let wanted: &BTreeSet<OsString> = &wanted.lock().unwrap_or_else(PoisonError::into_inner);
                is_change(event.kind)
                    && (event.paths.is_empty()
                        || event.paths.iter().any(|path| path.file_name().is_some_and(|name| wanted.contains(name))))
            });
            if matters {
                let _ = orders.send(Order::Look);
            }
        };
        let system = notify::recommended_watcher(tell);
        if let Err(error) = &system {
            tracing::warn!(%error, "the system does not tell of changed files; they are looked at twice a second");
        }
        Self { system: system.ok(), folders: BTreeMap::new(), names }
    }

    /// Watches the folders of `sources`, and where links lead, in place of those of before. Answers whether one of them was not
    /// watched yet.
    pub(super) fn watch(&mut self, sources: &Sources) -> bool {
        let mut folders = BTreeMap::new();
        let mut names = BTreeSet::new();
        for seen in sources.iter() {
            let real = seen.path.canonicalize().ok();
            for path in std::iter::once(seen.path.as_path()).chain(real.as_deref()) {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                // As Kubernetes keeps them: a link to a link to a folder that is replaced as a whole.
                names.insert(OsString::from("..data"));
                names.extend(path.components().map(|part| part.as_os_str().to_owned()));
                if let Ok(metadata) = folder.metadata() {
                    folders.insert(folder.to_owned(), (metadata.dev(), metadata.ino()));
                }
            }
        }
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
        let Some(system) = &mut self.system else { return false };
        let (mut is_whole, mut is_new) = (true, false);
        for (folder, identity) in &self.folders {
            if folders.get(folder) != Some(identity) {
                // One that is gone is watched no longer.
                let _ = system.unwatch(folder);
            }
        }
        for (folder, identity) in &folders {
            if self.folders.get(folder) == Some(identity) {
                continue;
            }
            is_new = true;
            if let Err(error) = system.watch(folder, RecursiveMode::NonRecursive) {
                tracing::warn!(folder = %folder.display(), %error, "this folder cannot be watched");
                is_whole = false;
            }
        }
        self.folders = folders;
        if !is_whole {
            self.system = None;
        }
        is_new
    }

    /// The next order, or to look because it is time.
    pub(super) fn wait(&self, orders: &Receiver<Order>) -> Order {
        let patience = if self.system.is_some() { POLL } else { POLL_ALONE };
        match orders.recv_timeout(patience) {
            Ok(order) => order,
            Err(RecvTimeoutError::Timeout) => Order::Look,
            Err(RecvTimeoutError::Disconnected) => Order::Stop,
        }
    }
}

/// Waits until nothing more is told for a while: what is done then.
pub(super) fn settled(orders: &Receiver<Order>) -> Order {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match orders.recv_timeout(QUIET.min(left)) {
            Ok(Order::Look) if !left.is_zero() => {}
            Ok(order) => return order,
            Err(RecvTimeoutError::Timeout) => return Order::Look,
            Err(RecvTimeoutError::Disconnected) => return Order::Stop,
        }
    }
}

/// Whether it changes what a file holds, or which file it is. We read them ourselves.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}
