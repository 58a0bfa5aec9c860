//! `countersign inbox`, beside a gateway's inbox that is open.

use serde_json::Value;

use super::*;
use crate::commands::{Folder, countersign};

/// What the command answers: its exit code, its answer, and what it says beside that.
fn ran(folder: &Folder, arguments: &[&str]) -> (Option<i32>, String, String) {
    let config = folder.file("countersign.toml");
    let ran = countersign().arg("inbox").args(arguments).args(["--config", &config]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (ran.status.code(), text(&ran.stdout), text(&ran.stderr))
}

fn json(folder: &Folder, arguments: &[&str]) -> (Option<i32>, Value) {
    let (code, stdout, stderr) = ran(folder, &[arguments, &["--format", "json"]].concat());
    (code, serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}")))
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn the_inbox_is_looked_at_and_changed_beside_the_gateway() {
    let folder = Folder::new("http://127.0.0.1:9", "");
    let (code, _, stderr) = ran(&folder, &["list"]);
    assert_eq!(code, Some(69), "{stderr}");
    assert!(stderr.contains("no inbox") && stderr.contains("when it starts"), "{stderr}");
    let opened = Opened::of(&sqlite_in(std::path::Path::new(&folder.file("state"))));
    opened.accept(Arrived { body: r#"{"id":"evt_1","amount":4711}"#.into(), ..arrived("evt_1", None, &["a"]) });
    opened.accept(arrived("evt_2", None, &["a"]));
    let leased = opened.lease(want("a", 1));
    assert!(opened.settle(&leased.due[0], End::Dead { error: "status 500".into() }));
    let delivery = &*leased.due[0].delivery;

    let (code, list) = json(&folder, &["list", "--state", "dead"]);
    assert_eq!((code, list.as_array().unwrap().len()), (Some(0), 1));
    let members = "account attempts delivery destination event last_error next received state type webhook";
    assert_eq!(keys(&list[0]), members.split(' ').collect::<Vec<_>>());
    assert_eq!((&list[0]["delivery"], &list[0]["next"]), (&delivery.into(), &Value::Null));
    assert!(list[0]["received"].as_str().unwrap().ends_with('Z'), "{list}");
    let (_, text, _) = ran(&folder, &["list"]);
    assert!(text.lines().count() == 3 && text.contains("status 500"), "{text}");

    // The body only where it is asked for.
    let (_, shown) = json(&folder, &["show", delivery]);
    assert_eq!((&shown[0]["keys"]["amount"], shown[0].get("body")), (&"number".into(), None));
    let (_, text, _) = ran(&folder, &["show", "evt_1"]);
    assert!(text.contains("amount") && !text.contains("4711"), "{text}");
    let (_, shown) = json(&folder, &["show", "evt_1", "--body"]);
    assert_eq!(shown[0]["body"], r#"{"id":"evt_1","amount":4711}"#);

    let (code, done) = json(&folder, &["retry", "evt_1"]);
    assert_eq!((code, &done[0]["outcome"], &done[0]["delivery"]), (Some(0), &"retry".into(), &delivery.into()));
    let again = opened.lease(want("a", 9));
    assert_eq!(events(&again), ["evt_1", "evt_2"]);
    assert_eq!((again.due[0].attempt, &*again.due[0].delivery), (2, delivery));
    let (code, done) = json(&folder, &["retry", delivery]);
    assert_eq!((code, &done[0]["outcome"]), (Some(1), &"refused".into()));
    let (code, _, _) = ran(&folder, &["discard", "evt_2"]);
    assert_eq!(code, Some(1));
    assert!(opened.settle(&again.due[1], End::Released));
    let (code, _, _) = ran(&folder, &["discard", "evt_2"]);
    assert_eq!(code, Some(0));
    assert!(opened.settle(&again.due[0], End::Delivered) && !opened.settle(&again.due[1], End::Delivered));

    let (_, stats) = json(&folder, &["stats"]);
    assert_eq!((&stats["events"], &stats["oldest_pending_seconds"]), (&2.into(), &Value::Null));
    let one = &stats["destinations"]["a"];
    assert_eq!((&one["delivered"], &one["dead"], &one["pending"]), (&1.into(), &0.into(), &0.into()));
    for task in ["show", "retry", "discard"] {
        let (code, stdout, stderr) = ran(&folder, &[task, "evt_3"]);
        assert_eq!((code, &*stdout), (Some(1), ""), "{stderr}");
        assert!(stderr.contains("evt_3"), "{stderr}");
    }
    let acts = opened.wait(opened.inbox.acts()).unwrap();
    let words: Vec<_> = acts.iter().map(|act| (&*act.act, &*act.event)).collect();
    assert_eq!(words, [("retry", "evt_1"), ("discard", "evt_2")]);
    assert!(!acts[0].by.is_empty());
    opened.finish();
}

#[test]
fn a_loss_is_accepted_only_by_its_word() {
    let folder = Folder::new("http://127.0.0.1:9", "");
    let settings = sqlite_in(std::path::Path::new(&folder.file("state")));
    assert_eq!(json(&folder, &["init"]), (Some(0), serde_json::json!({ "outcome": "made" })));
    std::fs::remove_dir_all(settings.state_directory.join("inbox")).unwrap();
    for task in [&["list"][..], &["stats"], &["init"]] {
        let (code, _, stderr) = ran(&folder, task);
        assert_eq!(code, Some(69), "{task:?}");
        assert!(stderr.contains("--accept-loss"), "{stderr}");
    }
    assert_eq!(json(&folder, &["init", "--accept-loss"]), (Some(0), serde_json::json!({ "outcome": "made" })));
    assert_eq!(json(&folder, &["init", "--accept-loss"]), (Some(0), serde_json::json!({ "outcome": "whole" })));
    assert_eq!(json(&folder, &["list"]), (Some(0), serde_json::json!([])));
    let (code, _, _) = ran(&folder, &["list", "--state", "lost"]);
    assert_eq!(code, Some(2));
    std::fs::write(folder.file("countersign.toml"), "version = 9").unwrap();
    assert_eq!(ran(&folder, &["list"]).0, Some(78));
}
