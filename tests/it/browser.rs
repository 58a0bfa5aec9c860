//! The page of `countersign dev` in a real browser, and the `curl` that it prints.
//!
//! Without Chromium or node the browser's part is skipped, unless `COUNTERSIGN_REQUIRE_BROWSER=1` makes that a failure.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::commands::{Running, countersign, curl, free_port, wait_for};

const CHROMIUM: &str = "/usr/bin/chromium";

/// `countersign dev` on ports of its own.
struct Dev {
    running: Running,
    folder: tempfile::TempDir,
    page: u16,
}

impl Dev {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (gateway, page) = (free_port(), free_port());
        let child = countersign()
            .args([
                "dev",
                "--address",
                &format!("127.0.0.1:{gateway}"),
                "--page",
                &format!("127.0.0.1:{page}"),
                "--folder",
            ])
            .arg(folder.path().join("certs"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let running = Running(child);
        wait_for(gateway);
        wait_for(page);
        Self { running, folder, page }
    }
}

#[test]
fn dev_prints_a_curl_that_works_when_pasted() {
    let mut dev = Dev::start();
    let mut lines = BufReader::new(dev.running.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let line = lines
        .find_map(|line| Some(line.trim().to_owned()).filter(|line| line.starts_with("curl ")))
        .expect("a curl line");
    let echo: Value = serde_json::from_str(&curl(&line, "")).unwrap();
    assert_eq!(echo["method"], "GET");
    let told = |name: &str| {
        let headers = echo["headers"].as_array().unwrap();
        headers.iter().find(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap().to_owned())
    };
    assert_eq!(told("countersign-user").as_deref(), Some("usr_DevUser0001"));
    assert_eq!(told("stripe-signature"), None);
    let record = lines.find(|line| line.starts_with('{')).expect("an access record");
    assert_eq!(serde_json::from_str::<Value>(&record).unwrap()["countersign.decision"], "permitted");
    // Its secret, key and certificate are nowhere but in the folder it was given.
    for name in ["dev.pem", "dev.key", "dev.absec", "dev.toml"] {
        assert!(dev.folder.path().join("certs").join(name).exists(), "{name}");
    }
    let refused = curl(&line.replace("usr_DevUser0001", "usr_Other"), "");
    assert_eq!(serde_json::from_str::<Value>(&refused).unwrap()["code"], "signature_mismatch");
    dev.running.signal("INT");
    assert_eq!(dev.running.exit_code(), Some(0));
}

#[test]
fn a_sandboxed_frame_signs_calls_and_reads_every_answer() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    let has_node =
        Command::new("node").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !(has_node && Path::new(CHROMIUM).exists() && tests.join("node_modules/playwright-core").exists()) {
        assert!(
            std::env::var_os("COUNTERSIGN_REQUIRE_BROWSER").is_none(),
            "no browser: run .ci/test, which installs one"
        );
        eprintln!("SKIPPED: no Chromium, node or playwright-core here; .ci/test installs them");
        return;
    }
    let dev = Dev::start();
    let output = Command::new("node")
        .arg(tests.join("dev.mjs"))
        .args([&format!("http://127.0.0.1:{}/", dev.page), CHROMIUM])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["origin"], "null");
    assert_eq!(shown["sandbox"], "allow-scripts");
    assert_eq!(shown["problems"], serde_json::json!([]));
    let part = |button: &str, part: &str| shown["outcomes"][button][part].as_str().unwrap().to_owned();
    for (button, status, decision, reason) in [
        ("get", "200", "permitted", None),
        ("post", "200", "permitted", None),
        ("admin", "200", "permitted", None),
        ("unsigned", "401", "refused", Some("signature_mismatch")),
        ("stranger", "401", "refused", Some("signature_missing")),
    ] {
        assert_eq!(part(button, "status"), status, "{button}: {shown:#}");
        let record: Value = serde_json::from_str(&part(button, "record")).unwrap();
        assert_eq!(record["countersign.decision"], decision, "{button}");
        assert_eq!(record["countersign.reason"].as_str(), reason, "{button}");
        assert_eq!(record["http.response.status_code"].to_string(), status);
        if let Some(reason) = reason {
            assert!(part(button, "answer").contains(&format!("\"code\": \"{reason}\"")), "{button}");
        }
    }
    assert!(part("get", "answer").contains("\"countersign-user\""));
    assert!(part("get", "request").contains("Stripe-Signature: t="));
    assert!(part("admin", "answer").contains("\"admin\""));
    let record: Value = serde_json::from_str(&part("post", "record")).unwrap();
    assert_eq!(record["countersign.signed"], "body");
}
