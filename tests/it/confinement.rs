//! A started gateway writes nowhere but where it must.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::symlink,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use countersign::confine::{self, Confinement};

use crate::{
    commands::{Folder, Running, countersign, wait_for},
    streams::head_now,
    support::{Client, Upstream, client_config},
};

/// Whether this kernel cannot show it. With `COUNTERSIGN_REQUIRE_LANDLOCK` it must.
fn is_left_out() -> bool {
    let state = tempfile::tempdir().unwrap();
    // The thread that asks cannot go back.
    let asked = std::thread::scope(|scope| scope.spawn(|| confine::writes(state.path(), None)).join());
    let confinement = asked.unwrap().unwrap();
    let is_required = std::env::var_os("COUNTERSIGN_REQUIRE_LANDLOCK").is_some();
    assert!(confinement == Confinement::Whole || !is_required, "{confinement:?}");
    confinement != Confinement::Whole
}

fn status(folder: &Folder) -> u16 {
    let tls = Arc::new(client_config(&folder.folder.path().join("cert.pem"), &[b"http/1.1"]));
    let mut client = Client::to(SocketAddr::from(([127, 0, 0, 1], folder.port)), &tls);
    client.send(head_now("GET", "/a", ""));
    client.answer().status
}

fn names(folder: &Path) -> Vec<std::ffi::OsString> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// A file of the audit log for each second, so that the next is soon made.
const SHORT: &str = "[audit]\nsegment = { every = \"1s\" }\n";

#[test]
fn a_gateway_that_is_led_out_of_its_state_writes_nothing_there() {
    if is_left_out() {
        return;
    }
    let upstream = Upstream::ok();
    for is_inside in [true, false] {
        let folder = Folder::new(&upstream.origin(), SHORT);
        let _gateway = folder.run(Stdio::null());
        // It has opened its files.
        assert_eq!(status(&folder), 200);
        let state = folder.folder.path().join("state");
        let target = if is_inside { state.join("moved") } else { folder.folder.path().join("elsewhere") };
        fs::create_dir(&target).unwrap();
        // The segment in use is found there, too, so that only a new one is to be made.
        let segment = names(&state.join("audit"))
            .into_iter()
            .filter(|name| name.to_string_lossy().ends_with(".jsonl"))
            .max()
            .unwrap();
        fs::hard_link(state.join("audit").join(&segment), target.join(&segment)).unwrap();
        fs::rename(state.join("audit"), state.join("before")).unwrap();
        symlink(&target, state.join("audit")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut refused = false;
        while names(&target).len() == 1 && !refused {
            assert!(Instant::now() < deadline, "no new segment was begun");
            refused = status(&folder) == 503;
        }
        // What cannot be recorded is refused, and nothing is where it must not be.
        assert_eq!((refused, names(&target).len() == 1), (!is_inside, !is_inside));
    }
}

#[test]
fn every_thread_of_a_gateway_is_confined() {
    if is_left_out() {
        return;
    }
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "[log]\naccess = \"access.jsonl\"\n");
    let gateway = folder.run(Stdio::null());
    folder.ask("ok");
    let tasks = format!("/proc/{}/task", gateway.0.id());
    let mut threads = 0;
    for thread in names(Path::new(&tasks)) {
        let status = fs::read_to_string(Path::new(&tasks).join(thread).join("status")).unwrap();
        // Who confines itself gives up new privileges as well, each thread for itself.
        assert!(status.lines().any(|line| line == "NoNewPrivs:\t1"), "{status}");
        threads += 1;
    }
    assert!(threads >= 5, "{threads}");
    let said = gateway.drained();
    assert!(said.contains(" confined: files are written below the state"), "{said}");
    assert!(fs::read_to_string(folder.file("access.jsonl")).unwrap().contains("permitted"));
}

#[test]
fn a_kernel_without_landlock_is_told_once_and_no_hindrance() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let program = countersign();
    let mut command = std::process::Command::new("strace");
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).args(["-D", "-f", "-qq", "-o", "/dev/null"]);
    command.args(["-e", "trace=landlock_create_ruleset", "-e", "inject=landlock_create_ruleset:error=ENOSYS"]);
    command.arg(program.get_program()).args(["run", "--config", &folder.file("countersign.toml")]);
    let gateway = Running(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    wait_for(folder.port);
    folder.ask("ok");
    let said = gateway.drained();
    assert_eq!(said.matches("not confined: this kernel has no Landlock").count(), 1, "{said}");
}
