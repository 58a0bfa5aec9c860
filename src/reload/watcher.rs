//! Notices that files may have changed: told by the system, and by looking now and again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::Metadata,
    io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};

use super::Order;
use crate::config::Sources;

/// How often the files are looked at, for what the system does not tell: other machines' changes, folders that were replaced.
pub(super) const POLL: Duration = Duration::from_secs(5);
/// How often where the system does not tell of all of them; [`QUIET`] comes on top.
const POLL_ALONE: Duration = Duration::from_millis(350);
/// How long nothing must have changed before what is there is taken, for it may be half of something.
const QUIET: Duration = Duration::from_millis(150);
/// How long that is waited for.
pub(super) const PATIENCE: Duration = Duration::from_millis(600);

/// Watches the folders of files, for a file that is replaced is another file.
pub(super) struct Watcher {
    system: Option<RecommendedWatcher>,
    /// The folders that are watched, each by one of its names, and which of the system's it is.
    folders: BTreeMap<(u64, u64), PathBuf>,
    /// Those of them that hold a file and that the system does not watch.
    unwatched: BTreeSet<PathBuf>,
    told: Arc<Mutex<Told>>,
}

/// What the thread that the system tells shares with us.
#[derive(Default)]
struct Told {
    /// The names in the folders that matter.
    names: BTreeSet<OsString>,
    /// What was removed or renamed. A folder among them is watched no longer, nor are those in it; one in its place may have its number.
    gone: BTreeSet<PathBuf>,
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
                if matters && matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))) {
                    told.gone.extend(event.paths);
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
        Self { system: system.ok(), folders: BTreeMap::new(), unwatched: BTreeSet::new(), told }
    }

    /// Watches the folders of `sources`, and where links lead, in place of those of before; where one is missing, the one that
    /// it will be made in. Answers whether one of them was not watched yet.
    pub(super) fn watch(&mut self, sources: &Sources) -> bool {
        let mut folders = BTreeMap::new();
        let mut names = BTreeSet::new();
        let mut direct = BTreeSet::new();
        for seen in sources.iter() {
            let real = seen.path.canonicalize().ok();
            for path in std::path::absolute(&seen.path).ok().into_iter().chain(real) {
                // As Kubernetes keeps them: a link to a link to a folder that is replaced as a whole.
                names.insert(OsString::from("..data"));
                names.extend(path.components().map(|part| part.as_os_str().to_owned()));
                let Some(folder) = path.parent() else { continue };
                let found = folder.ancestors().map(|folder| (folder, folder.metadata()));
                let found = found.into_iter().find(|(_, found)| !is_missing(found));
                if let Some((found, Ok(metadata))) = found {
                    let identity = (metadata.dev(), metadata.ino());
                    if found == folder {
                        direct.insert(identity);
                    }
                    folders.entry(identity).or_insert_with(|| found.to_owned());
                }
            }
        }
        let gone = {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.names = names;
            std::mem::take(&mut told.gone)
        };
        self.folders.retain(|_, folder| !gone.iter().any(|gone| folder.starts_with(gone)));
        let Some(system) = &mut self.system else { return false };
        for (identity, folder) in &self.folders {
            if folders.get(identity) != Some(folder) {
                // One that is gone is watched no longer.
                let _ = system.unwatch(folder);
            }
        }
        let (mut unwatched, mut is_new) = (BTreeSet::new(), false);
        folders.retain(|identity, folder| {
            if self.folders.get(identity) == Some(folder) {
                return true;
            }
            let watched = system.watch(folder, RecursiveMode::NonRecursive);
            if let Err(error) = &watched
                && direct.contains(identity)
            {
                if !self.unwatched.contains(folder) {
                    tracing::warn!(folder = %folder.display(), %error, "this folder cannot be watched; all files are looked at twice a second");
                }
                unwatched.insert(folder.clone());
            }
            is_new |= watched.is_ok();
            watched.is_ok()
        });
        (self.folders, self.unwatched) = (folders, unwatched);
        is_new
    }

    /// The next order, or to look because it is time.
    pub(super) fn wait(&self, orders: &Receiver<Order>) -> Order {
        let patience = if self.system.is_some() && self.unwatched.is_empty() { POLL } else { POLL_ALONE };
        match orders.recv_timeout(patience) {
            Ok(order) => order,
            Err(RecvTimeoutError::Timeout) => Order::Look,
            Err(RecvTimeoutError::Disconnected) => Order::Stop,
        }
    }
}

fn is_missing(found: &io::Result<Metadata>) -> bool {
    found.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
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
    use std::{fs, os::unix::fs::symlink, sync::mpsc};

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

    /// Whether something is told, and nothing more.
    fn told(orders: &Receiver<Order>) -> bool {
        let order = orders.recv_timeout(Duration::from_secs(20));
        while orders.recv_timeout(Duration::from_millis(100)).is_ok() {}
        order == Ok(Order::Look)
    }

    /// Until a folder is watched that was not, for it may be told late.
    fn is_watched(watcher: &mut Watcher, sources: &Sources) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if watcher.watch(sources) {
                return !watcher.watch(sources);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    #[test]
    fn a_folder_that_is_made_anew_in_place_of_another_is_watched() {
        let base = tempfile::tempdir().unwrap();
        symlink(base.path(), base.path().join("link")).unwrap();
        for folder in [base.path().join("secrets"), base.path().join("link/secrets")] {
            let (file, aside) = (folder.join("shop"), base.path().join("aside"));
            let (sender, orders) = mpsc::channel();
            let mut watcher = Watcher::new(sender);
            let sources = Sources::of_files(&[&file]);
            assert!(is_watched(&mut watcher, &sources), "the folder above, while there is none");
            for turn in 0..3 {
                fs::create_dir(&folder).unwrap();
                assert!(told(&orders), "made, {turn}");
                assert!(is_watched(&mut watcher, &sources), "made, {turn}");
                fs::write(&file, "shh").unwrap();
                assert!(told(&orders), "written, {turn}");
                watcher.watch(&sources);
                fs::remove_file(&file).unwrap();
                assert!(told(&orders), "removed, {turn}");
                watcher.watch(&sources);
                fs::write(&file, "shh").unwrap();
                assert!(told(&orders), "written again, {turn}");
                // Most file systems give the number of one to the next.
                fs::remove_dir_all(&folder).unwrap();
                fs::create_dir(&folder).unwrap();
                assert!(told(&orders), "another, {turn}");
                assert!(is_watched(&mut watcher, &sources), "another, {turn}");
                fs::write(&file, "shh").unwrap();
                assert!(told(&orders), "written into another, {turn}");
                fs::remove_dir_all(&folder).unwrap();
                assert!(told(&orders), "the folder removed, {turn}");
                assert!(is_watched(&mut watcher, &sources), "the folder above again, {turn}");
            }
            fs::create_dir(&folder).unwrap();
            assert!(told(&orders) && is_watched(&mut watcher, &sources));
            // With the folder above watched, for a file there.
            let two = Sources::of_files(&[&file, &folder.with_file_name("config")]);
            assert!(is_watched(&mut watcher, &two));
            fs::rename(&folder, &aside).unwrap();
            fs::rename(&aside, &folder).unwrap();
            assert!(told(&orders), "renamed");
            assert!(is_watched(&mut watcher, &two), "renamed");
            fs::write(&file, "shh").unwrap();
            assert!(told(&orders), "written after it was renamed");
            fs::remove_dir_all(&folder).unwrap();
        }
    }
}
