//! Tells the compiler which commit it builds: git's where this folder is a repository, else `COUNTERSIGN_COMMIT`.

use std::{env, path::Path, process::Command};

/// As many digits as tell commits apart, and fit in a line.
const DIGITS: usize = 12;

fn main() {
    println!("cargo::rerun-if-changed=src/build.rs");
    println!("cargo::rerun-if-env-changed=COUNTERSIGN_COMMIT");
    let commit = of_git().or_else(of_environment).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=COUNTERSIGN_COMMIT={commit}");
}

/// The commit that is checked out, if this folder is the top of a repository and not a copy within another one's.
fn of_git() -> Option<String> {
    let top = git(&["rev-parse", "--show-toplevel"])?;
    let here = env::var_os("CARGO_MANIFEST_DIR")?;
    if Path::new(&top).canonicalize().ok()? != Path::new(&here).canonicalize().ok()? {
        return None;
    }
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        follow_commits()?;
    }
    shortened(&git(&["rev-parse", "HEAD"])?)
}

/// Has a later build look again once something was committed, checked out or reset. Debug builds go on with the commit they
/// began with: who commits while he works need not compile everything anew.
fn follow_commits() -> Option<()> {
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let path = git(&["rev-parse", "--git-path", name])?;
        // A file that is not there would have this run at every build.
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    Some(())
}

fn of_environment() -> Option<String> {
    shortened(&env::var("COUNTERSIGN_COMMIT").ok()?)
}

/// The beginning of `commit`, if that is what it is.
fn shortened(commit: &str) -> Option<String> {
    let is_commit = commit.len() >= 7 && commit.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_commit.then(|| commit.chars().take(DIGITS).collect())
}

/// What git answers; nothing where there is no git, or no repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    let answer = String::from_utf8(output.stdout).ok()?;
    Some(answer.trim().to_owned()).filter(|answer| !answer.is_empty())
}
