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
pub(super) const PATIENCE: Duration = Duration::from_millis(600);

/// Watches the folders of files, for a file that is replaced is another file.
pub(super) struct Watcher {
    system: Option<RecommendedWatcher>,
    /// The folders that are watched, and which each of them was.
    folders: BTreeMap<PathBuf, (u64, u64)>,
    told: Arc<Mutex<Told>>,
}

/// What the thread that the system tells shares with us.
#[derive(Default)]
struct Told {
    /// The names in the folders that matter.
    names: BTreeSet<OsString>,
    /// What was removed. A folder among them is watched no longer, and one in its place may have its number.
    removed: BTreeSet<PathBuf>,
}

impl Watcher {
    pub(super) fn new(orders: Sender<Order>) -> Self {
        let told = Arc::new(Mutex::new(Told::default()));
        let shared = Arc::clone(&told);
        let tell = move |event: notify::Result<notify::Event>| {
            let matters = event.map_or(true, |event| {
                let mut told = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let is_wanted = |path: &PathBuf| path.file_name().is_some_and(|name| told.names.contains(name));
                let matters = event.paths.is_empty() || event.paths.iter().any(is_wanted);
                if matters && event.kind.is_remove() {
                    told.removed.extend(event.paths);
                }
                matters && is_change(event.kind)
            });
            if matters {
                let _ = orders.send(Order::Look);
            }
        };
        let system = notify::recommended_watcher(tell);
        if let Err(error) = &system {
            tracing::warn!(%error, "the system does not tell of changed files; they are looked at twice a second");
        }
        Self { system: system.ok(), folders: BTreeMap::new(), told }
    }

    /// Watches the folders of `sources`, and where links lead, in place of those of before; where one is missing, the one that
    /// it will be made in. Answers whether one of them was not watched yet.
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
                let found = folder.ancestors().find_map(|folder| {
                    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                    folder.metadata().ok().map(|metadata| (folder.to_owned(), (metadata.dev(), metadata.ino())))
                });
                folders.extend(found);
            }
        }
        let removed = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.names = names;
            std::mem::take(&mut told.removed)
        };
        self.folders.retain(|folder, _| !removed.contains(folder));
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

/// Waits until for a while nothing more is told and `look` sees nothing else than before: what is done then. Of what changes
/// where the system tells nothing, a look may see half.
pub(super) fn settled<T: PartialEq>(
    orders: &Receiver<Order>,
    patience: Duration,
    mut look: impl FnMut() -> T,
) -> Order {
    let deadline = Instant::now() + patience;
    let mut seen = look();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match orders.recv_timeout(QUIET.min(left)) {
            Ok(Order::Look) if !left.is_zero() => {}
            Ok(order) => return order,
            Err(RecvTimeoutError::Timeout) => {
                let now = look();
                if now == seen || left.is_zero() {
                    return Order::Look;
                }
                seen = now;
            }
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_is_still_being_written_is_waited_for() {
        let (_sender, orders) = mpsc::channel();
        let mut looks = ["", "ha", "half", "whole", "whole", "later"].iter();
        let order = settled(&orders, Duration::from_secs(60), || looks.next());
        assert_eq!((order, looks.next()), (Order::Look, Some(&"later")));
        let mut looks = 0..;
        let began = Instant::now();
        let order = settled(&orders, PATIENCE, || looks.next());
        assert_eq!(order, Order::Look, "what never rests is taken as it is");
        assert!(began.elapsed() >= PATIENCE);
    }

    #[test]
    fn a_folder_that_is_made_anew_in_place_of_another_is_watched() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("secrets");
        let file = folder.join("shop");
        let (sender, orders) = mpsc::channel();
        let mut watcher = Watcher::new(sender);
        let sources = Sources::of_file(&file);
        let told = |orders: &Receiver<Order>| {
            let order = orders.recv_timeout(Duration::from_secs(20));
            while orders.recv_timeout(Duration::from_millis(100)).is_ok() {}
            order
        };
        assert!(watcher.watch(&sources), "the folder above, while there is none");
        for turn in 0..3 {
            std::fs::create_dir(&folder).unwrap();
            assert_eq!(told(&orders), Ok(Order::Look), "made, {turn}");
            assert!(watcher.watch(&sources));
            assert!(!watcher.watch(&sources));
            std::fs::write(&file, "shh").unwrap();
            assert_eq!(told(&orders), Ok(Order::Look), "written, {turn}");
            // Most file systems give the number of one to the next.
            std::fs::remove_dir_all(&folder).unwrap();
            std::fs::create_dir(&folder).unwrap();
            assert_eq!(told(&orders), Ok(Order::Look), "another, {turn}");
            assert!(watcher.watch(&sources), "another, {turn}");
            std::fs::write(&file, "shh").unwrap();
            assert_eq!(told(&orders), Ok(Order::Look), "written into another, {turn}");
            std::fs::remove_dir_all(&folder).unwrap();
            assert_eq!(told(&orders), Ok(Order::Look), "removed, {turn}");
            assert!(watcher.watch(&sources), "the folder above again");
        }
    }
}
