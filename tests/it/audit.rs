//! The audit log: what is in it, what a crash leaves of it, and that no change to it goes unseen.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    commands::{Folder, countersign},
    streams::head_now,
    support::{ACCOUNT, Answer, Client, USER, Upstream, client_config},
};

const OFTEN: &str = "[audit]\ncheckpoint = { lines = 5, every = \"1s\" }\n";

fn asked(folder: &Folder, requests: &[String]) -> Vec<Answer> {
    let tls = Arc::new(client_config(&folder.folder.path().join("cert.pem"), &[b"http/1.1"]));
    let address = SocketAddr::from(([127, 0, 0, 1], folder.port));
    let each = |request: &String| {
        let mut client = Client::to(address, &tls);
        client.send(request);
        client.answer()
    };
    requests.iter().map(each).collect()
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    paths.sort();
    paths
}

fn segments_if_any(folder: &Path) -> Vec<PathBuf> {
    if folder.join("public.pem").exists() { segments(folder) } else { Vec::new() }
}

fn records(folder: &Path) -> Vec<Value> {
    let text: String = segments(folder).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What `audit verify` answers, and its exit code.
fn verified(path: &Path, more: &[&str]) -> (Option<i32>, String) {
    let output = countersign().args(["audit", "verify", path.to_str().unwrap()]).args(more).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

fn valid(path: &Path, more: &[&str]) -> Value {
    let output = countersign()
        .args(["audit", "verify", path.to_str().unwrap(), "--format", "json"])
        .args(more)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A log of a gateway that was asked, and has stopped.
fn made(requests: usize) -> (Folder, PathBuf) {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), OFTEN);
    let running = folder.run(Stdio::null());
    asked(&folder, &vec![head_now("GET", "/a", ""); requests]);
    running.drained();
    let log = folder.folder.path().join("state/audit");
    (folder, log)
}

#[test]
fn every_decision_behind_a_valid_mac_is_recorded_and_no_other() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), OFTEN);
    let running = folder.run(Stdio::null());
    let good = head_now("GET", "/a/b?secret=1", "");
    let unsigned = "GET /a HTTP/1.1\r\nHost: gw.test\r\n\r\n".to_owned();
    let forged = good.replace(USER, "usr_Another");
    let forbidden = head_now("POST", "/admin/x", "Content-Length: 0\r\n");
    let statuses: Vec<_> = asked(&folder, &[good, unsigned.clone(), unsigned, forged, forbidden])
        .iter()
        .map(|answer| answer.status)
        .collect();
    assert_eq!(statuses, [200, 401, 401, 401, 403]);
    let said = running.drained();
    let log = folder.folder.path().join("state/audit");
    let records = records(&log);
    let kinds: Vec<_> = records.iter().map(|record| record["kind"].as_str().unwrap()).collect();
    let kinds: Vec<_> = kinds.into_iter().filter(|kind| *kind != "checkpoint").collect();
    assert_eq!(kinds, ["start", "decision", "decision", "stop"]);
    let decisions: Vec<_> = records.iter().filter(|record| record["kind"] == "decision").collect();
    let expected = serde_json::json!({
        "route": "/", "app": "test", "account": ACCOUNT, "user": USER, "signed": "identity", "method": "GET", "path": "/a/b",
        "decision": "permitted", "upstream": upstream.origin(), "client": "127.0.0.1",
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&decisions[0][name], value, "{name}");
    }
    assert_eq!(decisions[0]["config"], records[0]["config"]);
    assert!(decisions[0].get("code").is_none() && decisions[0]["request_id"].is_string());
    assert_eq!(decisions[1]["decision"], "refused");
    assert_eq!(decisions[1]["code"], "role_missing");
    assert!(!records.iter().any(|record| record.to_string().contains("secret")));
    // Who proved nothing is counted in a checkpoint.
    let sum = |reason: &str| records.iter().filter_map(|record| record["unproven"][reason].as_u64()).sum::<u64>();
    assert_eq!((sum("signature_missing"), sum("signature_mismatch")), (2, 1));
    let report = valid(&log, &[]);
    for key in ["key", "public_key"] {
        assert!(said.contains(report[key].as_str().unwrap()), "the {key} is printed at start: {said}");
    }
    assert_eq!((report["ended"].clone(), report["unsigned"].clone()), (true.into(), 0.into()));
}

/// Each way to tamper with a log, and the word by which it is told.
#[test]
fn each_kind_of_tampering_is_found_and_its_line_named() {
    let (folder, log) = made(30);
    let file = segments(&log).pop().unwrap();
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let (other, other_log) = made(3);
    let head = valid(&log, &[])["head"].as_str().unwrap().to_owned();
    let public = log.join("public.pem");
    assert_eq!(valid(&log, &["--public-key", public.to_str().unwrap()])["key_given"], true);
    assert_eq!(verified(&log, &["--expect-head", &head]).0, Some(0));
    // As it was printed.
    let line = valid(&log, &[])["public_key"].as_str().unwrap().to_owned();
    assert_eq!(valid(&log, &["--public-key", &line])["key_given"], true);
    assert!(verified(&log, &["--public-key", &line]).1.contains(&line));
    assert_eq!(verified(&log, &["--public-key", &line[1..]]).0, Some(69));

    let joined = |lines: &[&str]| lines.join("\n") + "\n";
    let without = |place: usize| joined(&[&lines[..place], &lines[place + 1..]].concat());
    let with = |place: usize, line: &str| joined(&[&lines[..place], &[line], &lines[place..]].concat());
    let replaced = |place: usize, line: &str| joined(&[&lines[..place], &[line], &lines[place + 1..]].concat());
    let decision = lines.iter().position(|line| line.contains("\"decision\"")).unwrap();
    let sealed = lines.iter().rposition(|line| line.contains("\"checkpoint\"")).unwrap();
    let mut swapped = lines.clone();
    swapped.swap(decision, decision + 1);
    let foreign = fs::read_to_string(segments(&other_log).pop().unwrap()).unwrap();
    let flipped = |line: &str| {
        let place = line.find("\"signature\":\"").unwrap() + 20;
        let letter = if &line[place..=place] == "A" { "B" } else { "A" };
        format!("{}{letter}{}", &line[..place], &line[place + 1..])
    };
    // Everything behind it chained anew, as one would who has the log and not the key.
    let without_checkpoints: Vec<&str> =
        lines.iter().filter(|line| !line.contains("\"checkpoint\"")).copied().collect();
    for (what, changed, line, word) in [
        (
            "a changed value",
            replaced(decision, &lines[decision].replace(USER, "usr_Other001")),
            decision + 2,
            "changed",
        ),
        ("a changed method", replaced(decision, &lines[decision].replace("GET", "PUT")), decision + 2, "changed"),
        ("a missing line", without(decision), decision + 1, "missing"),
        ("a missing first line", without(0), 1, "missing"),
        ("a doubled line", with(decision + 1, lines[decision]), decision + 2, "doubled"),
        ("swapped lines", joined(&swapped), decision + 1, "missing"),
        (
            "an inserted line",
            with(decision + 1, &lines[decision].replacen("\"seq\":", "\"seq\":9", 1)),
            decision + 2,
            "missing",
        ),
        ("a line that is none", with(decision, "{}"), decision + 1, "no record"),
        ("rubbish behind the end", format!("{text}rubbish"), lines.len() + 1, "no line"),
        ("rubbish and a line feed", format!("{text}rubbish\n"), lines.len() + 1, "no record"),
        ("a signature", replaced(sealed, &flipped(lines[sealed])), sealed + 1, "signature"),
        ("another gateway's log", foreign, 0, "another key"),
        ("no checkpoint", rechained(&without_checkpoints), 0, "checkpoint"),
        ("few checkpoints", rechained(&[&lines[..7], &without_checkpoints[6..]].concat()), 0, "checkpoint is missing"),
        ("emptied", String::new(), 0, "no line"),
    ] {
        fs::write(&file, &changed).unwrap();
        let (code, said) = verified(&log, &[]);
        assert_eq!(code, Some(1), "{what}: {said}");
        assert!(said.contains(word), "{what}: {said}");
        let place = format!("{}:{line}:", file.display());
        assert!(line == 0 || said.contains(&place), "{what}, at {line}: {said}");
    }

    // A cut at a line's end shows only to who knows the head.
    fs::write(&file, joined(&lines[..lines.len() - 2])).unwrap();
    let (code, said) = verified(&log, &[]);
    assert!(code == Some(0) && said.contains("not ended"), "{said}");
    let (code, said) = verified(&log, &["--expect-head", &head]);
    assert!(code == Some(1) && said.contains("cut"), "{said}");
    // Half a line is what a crash leaves.
    fs::write(&file, &text[..text.len() - 30]).unwrap();
    let (code, said) = verified(&log, &[]);
    assert!(code == Some(0) && said.contains("torn"), "{said}");
    // Whoever signs everything anew is found by who knows the key.
    fs::write(&file, &text).unwrap();
    let foreign_key = other_log.join("public.pem");
    let (code, said) = verified(&log, &["--public-key", foreign_key.to_str().unwrap()]);
    assert!(code == Some(1) && said.contains("another key"), "{said}");
    let foreign_line = fs::read_to_string(&foreign_key).unwrap().lines().nth(1).unwrap().to_owned();
    let (code, said) = verified(&log, &["--public-key", &foreign_line]);
    assert!(code == Some(1) && said.contains("another key"), "{said}");
    assert_eq!(verified(&folder.folder.path().join("nowhere"), &[]).0, Some(69));
    drop(other);
}

/// The lines, numbered and chained anew.
fn rechained(lines: &[&str]) -> String {
    use countersign::audit::chain::Hash;
    let (mut out, mut hash) = (String::new(), Hash::default());
    for (place, line) in lines.iter().enumerate() {
        let rest = line.split_once(",\"time\"").unwrap().1;
        let (before, rest) = rest.split_once("\"prev\":\"").unwrap();
        let line = format!("{{\"seq\":{},\"time\"{before}\"prev\":\"{hash}\"{}", place + 1, &rest[65..]);
        hash = Hash::of(line.as_bytes());
        out += &line;
        out.push('\n');
    }
    out
}

#[test]
fn the_chain_crosses_segments_and_runs_and_a_missing_or_exchanged_segment_is_found() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "[audit]\nsegment = { size = \"64KiB\" }\n");
    for _ in 0..3 {
        let running = folder.run(Stdio::null());
        asked(&folder, &vec![head_now("GET", &format!("/{}", "a".repeat(2000)), ""); 25]);
        running.drained();
    }
    let log = folder.folder.path().join("state/audit");
    let files = segments(&log);
    assert!(files.len() >= 3, "{files:?}");
    let whole = valid(&log, &[]);
    assert_eq!(whole["segments"], files.len());
    for file in &files[..files.len() - 1] {
        let text = fs::read_to_string(file).unwrap();
        assert!(text.lines().last().unwrap().contains("\"kind\":\"checkpoint\""), "a segment is sealed at its end");
        assert!(text.len() < 70 * 1024);
    }
    // Old segments may be kept elsewhere, if one knows where they ended.
    let kept = files[0].with_extension("kept");
    let end =
        countersign::audit::chain::Hash::of(fs::read_to_string(&files[0]).unwrap().lines().last().unwrap().as_bytes());
    fs::rename(&files[0], &kept).unwrap();
    let (code, said) = verified(&log, &[]);
    assert!(code == Some(1) && said.contains("missing"), "{said}");
    assert_eq!(valid(&log, &["--after", &end.to_string()])["head"], whole["head"]);
    assert_eq!(verified(&log, &["--after", whole["head"].as_str().unwrap()]).0, Some(1));
    fs::rename(&kept, &files[0]).unwrap();
    assert_eq!(valid(&files[1], &[])["segments"], 1, "one segment by itself");
    fs::rename(&files[1], &kept).unwrap();
    assert!(verified(&log, &[]).1.contains("missing"));
    fs::copy(&files[0], &files[1]).unwrap();
    let (code, said) = verified(&log, &[]);
    assert!(code == Some(1) && said.contains(&files[1].display().to_string()), "{said}");
}

/// As often as `COUNTERSIGN_KILLS` says, else 200 times.
#[test]
fn after_a_kill_at_any_moment_the_chain_goes_on() {
    let kills: usize = std::env::var("COUNTERSIGN_KILLS").map_or(200, |kills| kills.parse().unwrap());
    let upstream = Upstream::ok();
    let folder = Folder::new(
        &upstream.origin(),
        "[audit]\ncheckpoint = { lines = 20, every = \"1s\" }\nsegment = { size = \"64KiB\" }\n",
    );
    let log = folder.folder.path().join("state/audit");
    let tls = Arc::new(client_config(&folder.folder.path().join("cert.pem"), &[b"http/1.1"]));
    let address = SocketAddr::from(([127, 0, 0, 1], folder.port));
    let (answered, torn) = (AtomicUsize::new(0), AtomicUsize::new(0));
    for kill in 0..kills {
        let mut running = folder.run(Stdio::null());
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let Ok(mut client) = Client::try_to(address, &tls) else { return };
                        let request = head_now("GET", "/a", "");
                        while client.stream.write_all(request.as_bytes()).is_ok() && client.try_answer().is_some() {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            // Every second one while it serves, however long its start takes; the others at whatever it does then.
            let (before, began) = (answered.load(Ordering::Relaxed), Instant::now());
            while kill % 2 == 1 && answered.load(Ordering::Relaxed) == before {
                assert!(began.elapsed() < Duration::from_secs(20), "it does not serve");
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_micros(fastrand::u64(1_000..60_000)));
            running.0.kill().unwrap();
            running.0.wait().unwrap();
            over.store(true, Ordering::Relaxed);
        });
        // It may have been killed before it opened its log for the first time.
        let Some(file) = segments_if_any(&log).pop() else { continue };
        // The gateway is killed between its writes more often than in one: half a line is put there now and then.
        let tears = kill % 4 == 0;
        if tears {
            let text: String = segments(&log).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
            let next = text.matches('\n').count() + 1;
            // What is torn already is torn further.
            let next = if text.is_empty() || text.ends_with('\n') { next } else { continue };
            write!(fs::OpenOptions::new().append(true).open(file).unwrap(), "{{\"seq\":{next},\"time\":\"20").unwrap();
            torn.fetch_add(1, Ordering::Relaxed);
        }
        let report = valid_so_far(&log);
        assert!(report["torn_bytes"].as_u64().unwrap() > 0 || !tears, "{report}");
    }
    folder.run(Stdio::null()).drained();
    let records = records(&log);
    let of = |kind: &str| records.iter().filter(|record| record["kind"] == kind).count();
    assert!(of("torn") >= torn.load(Ordering::Relaxed) && of("torn") <= kills, "{} torn", of("torn"));
    assert!(of("start") > kills / 2, "{} starts", of("start"));
    assert!(of("decision") > 0 && answered.load(Ordering::Relaxed) > 0);
    assert_eq!(valid(&log, &[])["ended"], true);
}

/// Records are written within some 20 ms; a kill takes nothing that is older.
#[test]
fn a_kill_takes_no_record_that_is_older_than_a_moment() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let log = folder.folder.path().join("state/audit");
    for run in 1..=5 {
        let mut running = folder.run(Stdio::null());
        asked(&folder, &vec![head_now("GET", "/a", ""); 20]);
        std::thread::sleep(Duration::from_millis(300));
        running.0.kill().unwrap();
        running.0.wait().unwrap();
        let decided = records(&log).iter().filter(|record| record["kind"] == "decision").count();
        assert_eq!(decided, run * 20);
    }
}

/// A log that was killed early may have no checkpoint yet, or no record; everything else must hold.
fn valid_so_far(log: &Path) -> Value {
    let output = countersign().args(["audit", "verify", log.to_str().unwrap(), "--format", "json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    if report["valid"] == true {
        return report;
    }
    let what = report["what"].as_str().unwrap();
    assert!(what.contains("no checkpoint in it") || what.contains("no line in it"), "{report}");
    serde_json::json!({ "torn_bytes": u64::from(ends_torn(log)) })
}

fn ends_torn(log: &Path) -> bool {
    !fs::read(segments(log).pop().unwrap()).unwrap().ends_with(b"\n")
}

/// The gateway, with files that can grow to 64 KiB and no further.
pub(crate) fn on_a_small_disk(folder: &Folder) -> crate::commands::Running {
    let script = "trap '' XFSZ; ulimit -S -f 64; exec \"$0\" run --config \"$1\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, env!("CARGO_BIN_EXE_countersign"), &folder.file("countersign.toml")]);
    folder.started(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()))
}

pub(crate) fn grow_disk(running: &crate::commands::Running) {
    let pid = running.0.id().to_string();
    let grown = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited:"]).status().unwrap();
    assert!(grown.success());
}

/// Asks until an answer has `status`.
fn until(folder: &Folder, status: u16) {
    let request = head_now("GET", &format!("/{}", "a".repeat(3000)), "");
    let deadline = Instant::now() + Duration::from_secs(20);
    while asked(folder, std::slice::from_ref(&request))[0].status != status {
        assert!(Instant::now() < deadline, "no {status}");
    }
}

#[test]
fn a_full_disk_closes_the_gate_until_there_is_room() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let running = on_a_small_disk(&folder);
    until(&folder, 503);
    let passed = upstream.requests().len();
    let answer = &asked(&folder, &[head_now("GET", "/a", "")])[0];
    let problem: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, problem["code"].as_str()), (503, Some("overloaded")));
    assert!(problem["detail"].as_str().unwrap().contains("audit log"));
    let unsigned = &asked(&folder, &["GET /a HTTP/1.1\r\nHost: gw.test\r\n\r\n".to_owned()])[0];
    assert_eq!(unsigned.status, 401, "who proves nothing is told so as ever");
    assert_eq!(upstream.requests().len(), passed, "nobody passed");
    grow_disk(&running);
    until(&folder, 200);
    let said = running.drained();
    assert!(said.contains("the audit log cannot be written") && said.contains("can be written again"), "{said}");
    let log = folder.folder.path().join("state/audit");
    valid(&log, &[]);
    let permitted = records(&log).iter().filter(|record| record["decision"] == "permitted").count();
    assert_eq!(permitted, upstream.requests().len(), "all who passed are recorded");
}

#[test]
fn a_gateway_that_serves_on_records_how_much_is_missing() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "[audit]\non_error = \"serve\"\n");
    let running = on_a_small_disk(&folder);
    let request = head_now("GET", &format!("/{}", "a".repeat(3000)), "");
    let sent = 60;
    for answer in asked(&folder, &vec![request; sent]) {
        assert_eq!(answer.status, 200);
    }
    std::thread::sleep(Duration::from_millis(500));
    grow_disk(&running);
    asked(&folder, &[head_now("GET", "/last", "")]);
    let said = running.drained();
    assert!(said.contains("served unrecorded"), "{said}");
    let log = folder.folder.path().join("state/audit");
    valid(&log, &[]);
    let records = records(&log);
    let lost: u64 = records.iter().filter_map(|record| record["lost"].as_u64()).sum();
    let permitted = records.iter().filter(|record| record["decision"] == "permitted").count();
    assert_eq!(permitted as u64 + lost, sent as u64 + 1);
    assert!(lost > 10, "{lost}");
}

#[test]
fn a_disk_that_is_full_at_start_is_no_reason_not_to_start() {
    for (on_error, status) in [("refuse", 503), ("serve", 200)] {
        let upstream = Upstream::ok();
        let folder = Folder::new(&upstream.origin(), &format!("[audit]\non_error = \"{on_error}\"\n"));
        let request = head_now("GET", &format!("/{}", "a".repeat(3000)), "");
        let running = folder.run(Stdio::null());
        asked(&folder, &vec![request.clone(); 30]);
        running.drained();
        let log = folder.folder.path().join("state/audit");
        let last = valid(&log, &[])["last"].as_u64().unwrap();
        // What a crash left is to be recorded before anything else.
        let mut file = fs::OpenOptions::new().append(true).open(segments(&log).pop().unwrap()).unwrap();
        write!(file, "{{\"seq\":{},\"time\":\"20", last + 1).unwrap();
        let running = on_a_small_disk(&folder);
        let answers = asked(&folder, &[request.clone(), request]);
        assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [status; 2], "{on_error}");
        grow_disk(&running);
        until(&folder, 200);
        let said = running.drained();
        assert!(said.contains("the audit log cannot be written"), "{said}");
        let report = valid(&log, &[]);
        assert_eq!((&report["cuts"], &report["ended"]), (&1.into(), &true.into()), "{report}");
        assert_eq!(report["lost"] == 0, on_error == "refuse", "{report}");
    }
}

/// An outage that lasts longer than checkpoints may keep out, a run that promises another period than the one before, and
/// strangers alone.
#[test]
fn an_honest_log_stays_valid_whatever_befell_it() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "[audit]\ncheckpoint = { lines = 3, every = \"1s\" }\n");
    let log = folder.folder.path().join("state/audit");
    let running = on_a_small_disk(&folder);
    until(&folder, 503);
    std::thread::sleep(Duration::from_secs(4));
    grow_disk(&running);
    until(&folder, 200);
    running.drained();
    valid(&log, &[]);
    let file = folder.file("countersign.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("lines = 3, every = \"1s\"", "lines = 1000, every = \"1h\"")).unwrap();
    let running = folder.run(Stdio::null());
    asked(&folder, &vec![head_now("GET", "/a", ""); 20]);
    std::thread::sleep(Duration::from_secs(4));
    asked(&folder, &[head_now("GET", "/a", "")]);
    running.drained();
    assert_eq!(valid(&log, &[])["ended"], true);
    // Where nobody proves anything, a checkpoint tells how many came.
    fs::write(&file, text).unwrap();
    let running = folder.run(Stdio::null());
    asked(&folder, &["GET /a HTTP/1.1\r\nHost: gw.test\r\n\r\n".to_owned()]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !records(&log).last().unwrap()["unproven"]["signature_missing"].is_u64() {
        assert!(Instant::now() < deadline, "strangers are not counted");
        std::thread::sleep(Duration::from_millis(50));
    }
    running.drained();
    valid(&log, &[]);
}

#[test]
fn a_log_whose_settings_are_changed_under_way_stays_valid() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), OFTEN);
    let log = folder.folder.path().join("state/audit");
    let file = folder.file("countersign.toml");
    let often = fs::read_to_string(&file).unwrap();
    let seldom = often.replace("lines = 5, every = \"1s\"", "lines = 1000, every = \"1h\"");
    assert_ne!(often, seldom);
    let running = folder.run(Stdio::null());
    for (reloads, text) in [(1, &seldom), (2, &often), (3, &seldom)] {
        asked(&folder, &vec![head_now("GET", "/a", ""); 7]);
        fs::write(&file, text).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let is_reload = |record: &&Value| record["kind"] == "reload";
        while records(&log).iter().filter(is_reload).count() < reloads {
            assert!(Instant::now() < deadline, "no reload {reloads}");
            std::thread::sleep(Duration::from_millis(50));
        }
        // Longer than the one waits for a checkpoint, and not so long as the other does.
        std::thread::sleep(Duration::from_millis(2500));
        asked(&folder, &vec![head_now("GET", "/a", ""); 7]);
    }
    valid_so_far(&log);
    running.drained();
    assert_eq!(valid(&log, &[])["ended"], true);
}

#[test]
fn a_segment_that_cannot_be_begun_closes_the_gate_until_it_can() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "[audit]\nsegment = { size = \"64KiB\" }\n");
    let log = folder.folder.path().join("state/audit");
    let running = folder.run(Stdio::null());
    until(&folder, 200);
    let in_the_way: Vec<_> = (2..400).map(|number| log.join(format!("{number:020}.jsonl"))).collect();
    for path in &in_the_way {
        fs::create_dir(path).unwrap();
    }
    until(&folder, 503);
    let passed = upstream.requests().len();
    assert_eq!(asked(&folder, &[head_now("GET", "/a", "")])[0].status, 503);
    assert_eq!(upstream.requests().len(), passed, "nobody passed");
    for path in &in_the_way {
        fs::remove_dir(path).unwrap();
    }
    until(&folder, 200);
    let said = running.drained();
    assert!(said.contains("the audit log cannot be written") && said.contains("can be written again"), "{said}");
    assert!(segments(&log).len() > 1);
    valid(&log, &[]);
    let permitted = records(&log).iter().filter(|record| record["decision"] == "permitted").count();
    assert_eq!(permitted, upstream.requests().len(), "all who passed are recorded");
}

#[test]
fn a_segment_that_is_taken_away_or_replaced_closes_the_gate_until_it_is_put_back() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let log = folder.folder.path().join("state/audit");
    let running = folder.run(Stdio::null());
    until(&folder, 200);
    let segment = segments(&log).pop().unwrap();
    let kept = log.join("kept");
    fs::rename(&segment, &kept).unwrap();
    until(&folder, 503);
    fs::rename(&kept, &segment).unwrap();
    until(&folder, 200);
    fs::rename(&segment, &kept).unwrap();
    fs::copy(&kept, &segment).unwrap();
    until(&folder, 503);
    fs::rename(&kept, &segment).unwrap();
    until(&folder, 200);
    let said = running.drained();
    assert!(said.contains("is gone") && said.contains("put it back"), "{said}");
    valid(&log, &[]);
    let permitted = records(&log).iter().filter(|record| record["decision"] == "permitted").count();
    assert_eq!(permitted, upstream.requests().len(), "all who passed are recorded");
}

/// Nobody asks while it hangs, so that nothing waits.
#[test]
fn a_disk_that_hangs_closes_the_gate_though_nothing_waits_for_it() {
    let upstream = Upstream::ok();
    let operations = crate::commands::free_port();
    let folder = Folder::new(&upstream.origin(), &format!("[operations]\naddress = \"127.0.0.1:{operations}\"\n"));
    let program = countersign();
    let mut command = Command::new("strace");
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).args(["-D", "-f", "-qq", "-o", "/dev/null"]);
    command.args(["-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=8000000:when=1"]);
    command.arg(program.get_program()).args(["run", "--config", &folder.file("countersign.toml")]);
    let running = folder.started(command.stdout(Stdio::null()).stderr(Stdio::piped()));
    let told = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", operations)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let ready = |is_ready: bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while told("/readyz").contains("audit: cannot be written, nobody passes") == is_ready {
            assert!(Instant::now() < deadline, "ready: {is_ready}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    ready(true);
    ready(false);
    assert!(told("/metrics").contains("countersign_audit_failing 1"));
    assert_eq!(asked(&folder, &[head_now("GET", "/a", "")])[0].status, 503);
    assert!(upstream.requests().is_empty(), "nobody passed");
    ready(true);
    assert_eq!(asked(&folder, &[head_now("GET", "/a", "")])[0].status, 200);
    running.drained();
    valid(&folder.folder.path().join("state/audit"), &[]);
}

#[test]
fn a_log_is_not_continued_with_another_key() {
    let (folder, _) = made(3);
    let key = folder.folder.path().join("state/audit.key");
    let kept = fs::read(&key).unwrap();
    let refused = |word: &str| {
        let output = countersign().args(["run", "--config", &folder.file("countersign.toml")]).output().unwrap();
        assert_eq!(output.status.code(), Some(69));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(word), "{said}");
    };
    fs::remove_file(&key).unwrap();
    refused("audit.key is gone");
    let (other, _) = made(1);
    fs::copy(other.folder.path().join("state/audit.key"), &key).unwrap();
    refused("not the key that the log is signed with");
    fs::write(&key, "no key").unwrap();
    refused("no PEM private key");
    fs::write(&key, kept).unwrap();
    folder.run(Stdio::null()).drained();
}

/// What is behind the end of a log when its machine lost its power, and files that are none of the log's.
#[test]
fn what_is_left_of_a_power_failure_is_cut_off_and_strange_files_are_left_alone() {
    for rest in [&b"\0\0\0\0"[..], b"\0\0\0\n\0\n", b"{\"seq\":"] {
        let (folder, log) = made(3);
        let file = segments(&log).pop().unwrap();
        let before = fs::read(&file).unwrap();
        fs::write(&file, [&before[..], rest].concat()).unwrap();
        fs::write(log.join("notes.txt"), "kept").unwrap();
        folder.run(Stdio::null()).drained();
        let torn: Vec<_> = records(&log).into_iter().filter(|record| record["kind"] == "torn").collect();
        assert_eq!((torn.len(), torn[0]["bytes"].as_u64().unwrap()), (1, rest.len() as u64));
        assert_eq!(valid(&log, &[])["torn_bytes"], 0);
        assert_eq!(fs::read_to_string(log.join("notes.txt")).unwrap(), "kept");
        let saved = fs::read_dir(&log)
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().to_string_lossy().contains("torn-"));
        assert_eq!(saved.count(), usize::from(rest.contains(&b'\n')));
    }
    // A segment that was begun when the power failed.
    let (folder, log) = made(3);
    fs::write(log.join("00000000000000000077.jsonl"), "").unwrap();
    folder.run(Stdio::null()).drained();
    valid(&log, &[]);
}

#[test]
fn two_gateways_do_not_write_one_log() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let running = folder.run(Stdio::null());
    let other = folder.file("other.toml");
    let text = fs::read_to_string(folder.file("countersign.toml")).unwrap();
    fs::write(&other, text.replace(&folder.port.to_string(), &crate::commands::free_port().to_string())).unwrap();
    let output = countersign().args(["run", "--config", &other]).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another gateway writes there"));
    running.drained();
}

/// The program in the documentation, on a real log and on one that was touched.
#[test]
fn the_python_of_the_documentation_verifies_a_log() {
    let page = crate::documents::repository("docs/reference/audit-log.md");
    let program = page.split_once("```python\n").unwrap().1.split_once("```").unwrap().0;
    let (_folder, log) = made(12);
    let run = || Command::new("python3").args(["-c", program, log.to_str().unwrap()]).output().unwrap();
    let output = run();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let head = valid(&log, &[])["head"].as_str().unwrap().to_owned();
    assert!(String::from_utf8_lossy(&output.stdout).contains(&head));
    let file = segments(&log).pop().unwrap();
    fs::write(&file, fs::read_to_string(&file).unwrap().replacen(USER, "usr_Other001", 1)).unwrap();
    assert!(!run().status.success());
}
