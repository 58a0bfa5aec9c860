//! What this process may still write once it serves: Landlock, where the kernel has it.
//!
//! The gateway reads requests of strangers. Should one of them ever make it do what it is not meant to, it can write only
//! where it must, whatever its user might.

use std::{fs, io, path::Path};

use landlock::{
    ABI, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetStatus, make_bitflags,
};

/// Writing, making, removing, cutting and moving of files. What a later version knows beyond that is left alone:
/// connecting to a socket of an upstream is no writing.
const VERSION: ABI = ABI::V3;

/// How much of it the kernel enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    Whole,
    /// An older kernel (before 6.2), which lets files be cut to nothing everywhere.
    Part,
    /// A kernel without Landlock, or one where it is turned off.
    None,
}

/// Has this thread, and every one that it starts from now on, write nowhere but below `state_directory`, and make and
/// append to files in the folder of `access_log`, which is made again there after it was moved away. An access log that is
/// no plain file (`/dev/stderr`) is opened for writing itself, and nothing beside it.
///
/// Both must be there. Reading is left as it is, and so are files that are open already, and sockets. There is no way
/// back.
///
/// # Errors
/// The system's, of the folders or the kernel; then everything can be written as before. A kernel that lacks Landlock is no
/// error.
///
/// Source: Linux, "Landlock: unprivileged access control",
/// <https://docs.kernel.org/userspace-api/landlock.html>.
pub fn writes(state_directory: &Path, access_log: Option<&Path>) -> io::Result<Confinement> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_write(VERSION))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    allow(&mut rules, state_directory, kept())?;
    if let Some(log) = access_log {
        if fs::metadata(log)?.is_file() {
            let folder = log.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            allow(&mut rules, folder, appended())?;
        } else {
            // A pipe that only this process knows takes no rule, and needs none.
            let _ = allow(&mut rules, log, AccessFs::WriteFile.into());
        }
    }
    let enforced = rules.restrict_self().map_err(io::Error::other)?;
    Ok(match enforced.ruleset {
        RulesetStatus::FullyEnforced => Confinement::Whole,
        RulesetStatus::PartiallyEnforced => Confinement::Part,
        RulesetStatus::NotEnforced => Confinement::None,
    })
}

/// What the state needs: plain files and folders. Devices, links, pipes and sockets it does not.
fn kept() -> BitFlags<AccessFs> {
    make_bitflags!(AccessFs::{ WriteFile | Truncate | MakeReg | MakeDir | RemoveFile | RemoveDir | Refer })
}

/// What a log needs.
fn appended() -> BitFlags<AccessFs> {
    make_bitflags!(AccessFs::{ WriteFile | MakeReg })
}

fn allow(rules: &mut RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> io::Result<()> {
    let path = PathFd::new(path).map_err(io::Error::other)?;
    rules.add_rule(PathBeneath::new(path, access)).map(drop).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{File, OpenOptions},
        os::unix::fs::symlink,
    };

    use super::*;

    /// Has a thread of its own confine itself and go on with `then`; nothing is shown where the kernel lacks it.
    fn confined(state: &Path, log: Option<&Path>, then: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let confinement = writes(state, log).unwrap();
                let is_required = std::env::var_os("COUNTERSIGN_REQUIRE_LANDLOCK").is_some();
                assert!(confinement == Confinement::Whole || !is_required, "{confinement:?}");
                if confinement == Confinement::Whole {
                    then();
                }
            });
        });
    }

    /// A folder with `state/`, `log/access.jsonl` and `other/file`.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in ["state/audit", "log", "other"] {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        for name in ["log/access.jsonl", "other/file"] {
            fs::write(folder.path().join(name), "before").unwrap();
        }
        folder
    }

    fn denied<T: std::fmt::Debug>(result: io::Result<T>) {
        let kind = result.map_err(|error| error.kind());
        assert!(
            matches!(kind, Err(io::ErrorKind::PermissionDenied | io::ErrorKind::CrossesDevices)),
            "this was allowed: {kind:?}"
        );
    }

    #[test]
    fn the_state_can_be_changed_in_every_way() {
        let folder = folder();
        let state = folder.path().join("state");
        confined(&state, None, || {
            fs::create_dir(state.join("acme")).unwrap();
            fs::write(state.join("acme/new"), "a").unwrap();
            fs::rename(state.join("acme/new"), state.join("audit/new")).unwrap();
            File::create(state.join("audit/new")).unwrap();
            fs::remove_file(state.join("audit/new")).unwrap();
            fs::remove_dir(state.join("acme")).unwrap();
        });
    }

    #[test]
    fn nothing_else_can_be_written_made_removed_or_moved() {
        let folder = folder();
        let (state, other) = (folder.path().join("state"), folder.path().join("other"));
        confined(&state, Some(&folder.path().join("log/access.jsonl")), || {
            denied(fs::write(other.join("new"), "a"));
            denied(OpenOptions::new().append(true).open(other.join("file")));
            denied(fs::remove_file(other.join("file")));
            denied(fs::create_dir(other.join("sub")));
            denied(fs::remove_dir(&other));
            denied(fs::rename(other.join("file"), other.join("moved")));
            denied(fs::rename(other.join("file"), state.join("moved")));
            denied(symlink("file", other.join("link")));
            denied(fs::hard_link(other.join("file"), state.join("link")));
            fs::write(state.join("mine"), "a").unwrap();
            denied(fs::rename(state.join("mine"), other.join("mine")));
            assert_eq!(fs::read_to_string(other.join("file")).unwrap(), "before");
        });
    }

    #[test]
    fn a_link_out_of_the_state_leads_nowhere() {
        let folder = folder();
        let (state, other) = (folder.path().join("state"), folder.path().join("other"));
        symlink(&other, state.join("out")).unwrap();
        confined(&state, None, || {
            denied(fs::write(state.join("out/new"), "a"));
            denied(symlink("audit", state.join("link")));
        });
    }

    #[test]
    fn an_access_log_is_made_again_after_another_process_moved_it_away() {
        let folder = folder();
        let log = folder.path().join("log/access.jsonl");
        let (moved, rotated) = std::sync::mpsc::channel();
        let (ready, confinement) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let (folder, log) = (&folder, &log);
            // Not confined, as whoever rotates.
            scope.spawn(move || {
                if confinement.recv().is_ok() {
                    fs::rename(log, log.with_extension("old")).unwrap();
                    moved.send(()).unwrap();
                }
            });
            confined(&folder.path().join("state"), Some(log), move || {
                denied(fs::remove_file(log));
                denied(fs::rename(log, log.with_extension("old")));
                denied(File::create(log));
                ready.send(()).unwrap();
                rotated.recv().unwrap();
                OpenOptions::new().append(true).create(true).open(log).unwrap();
            });
        });
    }

    #[test]
    fn an_access_log_that_is_a_device_opens_no_folder() {
        let folder = folder();
        confined(&folder.path().join("state"), Some(Path::new("/dev/null")), || {
            OpenOptions::new().append(true).open("/dev/null").unwrap();
            denied(OpenOptions::new().append(true).open("/dev/full"));
            denied(File::create("/dev/shm/countersign-test"));
        });
    }

    #[test]
    fn a_thread_that_is_started_later_is_confined_too() {
        let folder = folder();
        let (state, other) = (folder.path().join("state"), folder.path().join("other"));
        confined(&state, None, || {
            std::thread::scope(|scope| {
                scope.spawn(|| denied(fs::write(other.join("new"), "a")));
            });
        });
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let folder = folder();
        assert!(writes(&folder.path().join("none"), None).is_err());
        assert!(writes(&folder.path().join("state"), Some(&folder.path().join("log/none"))).is_err());
    }
}
