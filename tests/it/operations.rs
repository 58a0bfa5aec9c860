//! The operations listener: health, readiness and metrics, as those see them who run the gateway.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{
    audit::{grow_disk, on_a_small_disk},
    commands::{Folder, Running, countersign, free_port},
    streams::head_now,
    support::{ACCOUNT, Answer, Client, USER, Upstream, client_config, posted},
};

/// A gateway that runs with an operations listener.
struct Lab {
    folder: Folder,
    running: Running,
    operations: u16,
}

impl Lab {
    fn new(upstream: &str, more: &str) -> Self {
        let operations = free_port();
        let folder = Folder::new(upstream, &format!("{more}\n[operations]\naddress = \"127.0.0.1:{operations}\"\n"));
        let running = folder.run(Stdio::null());
        let lab = Self { folder, running, operations };
        lab.until_ready(true);
        lab
    }

    /// The status and body of an answer of the operations listener.
    fn get(&self, path: &str) -> (u16, String) {
        let (head, body) = self.asked(&format!("GET {path} HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n"));
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
    }

    fn asked(&self, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.operations)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    fn until_ready(&self, ready: bool) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let (status, body) = self.get("/readyz");
            if (status == 200) == ready {
                return body;
            }
            assert!(Instant::now() < deadline, "{status} {body}");
            std::thread::yield_now();
        }
    }

    fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let tls = client_config(&self.folder.folder.path().join("cert.pem"), &[b"http/1.1"]).into();
        let mut client = Client::to(([127, 0, 0, 1], self.folder.port).into(), &tls);
        client.send(request);
        client.answer()
    }

    /// Every sample, by its name and labels as they are written, once there is one that `is_there`.
    fn metrics_with(&self, is_there: impl Fn(&BTreeMap<String, f64>) -> bool) -> BTreeMap<String, f64> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let metrics = parsed(&self.get("/metrics").1);
            if is_there(&metrics) {
                return metrics;
            }
            assert!(Instant::now() < deadline, "{metrics:#?}");
            std::thread::yield_now();
        }
    }
}

/// The samples of an exposition, which must be well-formed as far as it is used.
fn parsed(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut samples = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(samples.insert(name.to_owned(), value.parse().unwrap()).is_none(), "twice: {line}");
    }
    samples
}

fn requests(metrics: &BTreeMap<String, f64>) -> BTreeMap<&str, f64> {
    let cases = metrics.iter().filter_map(|(name, value)| {
        Some((name.strip_prefix("countersign_requests_total{")?.strip_suffix('}')?, *value))
    });
    cases.collect()
}

#[test]
fn an_audit_log_that_cannot_be_written_is_seen_where_one_looks() {
    for (on_error, status, line) in [
        ("refuse", 503, "audit: cannot be written, nobody passes"),
        ("serve", 200, "audit: cannot be written, requests are served unrecorded"),
    ] {
        let upstream = Upstream::ok();
        let operations = free_port();
        let more = format!("[audit]\non_error = \"{on_error}\"\n[operations]\naddress = \"127.0.0.1:{operations}\"\n");
        let folder = Folder::new(&upstream.origin(), &more);
        let running = on_a_small_disk(&folder);
        let lab = Lab { folder, running, operations };
        lab.until_ready(true);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            lab.ask(head_now("GET", &format!("/{}", "a".repeat(3000)), ""));
            let (found, body) = lab.get("/readyz");
            let failing = lab.metrics_with(|_| true)["countersign_audit_failing"];
            if body.contains(line) && failing > 0.0 {
                assert_eq!(found, status, "{body}");
                break;
            }
            assert!(Instant::now() < deadline, "{found} {failing} {body}");
        }
        grow_disk(&lab.running);
        let healed = |metrics: &BTreeMap<String, f64>| metrics["countersign_audit_failing"] < 1.0;
        lab.metrics_with(healed);
        assert!(!lab.until_ready(true).contains("cannot be written"));
    }
}

#[test]
fn slow_clients_keep_nobody_from_asking_how_it_is() {
    let upstream = Upstream::ok();
    let lab = Lab::new(&upstream.origin(), "");
    let slow: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", lab.operations)).unwrap();
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: o").unwrap();
            stream
        })
        .collect();
    let asked = Instant::now();
    assert_eq!(lab.get("/livez").0, 200);
    assert!(asked.elapsed() < Duration::from_secs(3), "before the slow ones have used up their time");
    drop(slow);
}

#[expect(clippy::float_cmp, clippy::cast_precision_loss, reason = "small whole numbers")]
#[test]
fn every_request_is_counted_in_exactly_one_series_whose_labels_a_stranger_cannot_choose() {
    let upstream = Upstream::ok();
    let lab = Lab::new(
        &upstream.origin(),
        "[[routes]]\npath = \"/dead/\"\napp = \"test\"\nupstream = \"http://127.0.0.1:9\"\n",
    );
    let good = head_now("GET", "/a/b?secret=1", "");
    let preflight =
        "OPTIONS /strange HTTP/1.1\r\nHost: gw.test\r\nOrigin: null\r\nAccess-Control-Request-Method: POST\r\n\r\n";
    let asked = [
        (good.clone(), 200),
        (good.clone(), 200),
        (good.replace(USER, "usr_Another"), 401),
        (head_now("POST", "/admin/x", "Content-Length: 0\r\n"), 403),
        (head_now("GET", "/dead/x", ""), 502),
        (preflight.to_owned(), 204),
        (good.replace("gw.test", "other.test"), 421),
        ("GET /no-signature HTTP/1.1\r\nHost: gw.test\r\n\r\n".to_owned(), 401),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
    ];
    for (request, status) in &asked {
        assert_eq!(lab.ask(request).status, *status, "{request}");
    }
    let metrics = lab.metrics_with(|metrics| requests(metrics).values().sum::<f64>() >= 9.0);
    let expected = [
        ("route=\"\",decision=\"preflight\",reason=\"\"", 1.0),
        ("route=\"\",decision=\"refused\",reason=\"misdirected\"", 1.0),
        ("route=\"\",decision=\"refused\",reason=\"request_malformed\"", 1.0),
        ("route=\"/\",decision=\"permitted\",reason=\"\"", 2.0),
        ("route=\"/\",decision=\"refused\",reason=\"signature_mismatch\"", 1.0),
        ("route=\"/\",decision=\"refused\",reason=\"signature_missing\"", 1.0),
        ("route=\"/admin/\",decision=\"refused\",reason=\"role_missing\"", 1.0),
        ("route=\"/dead/\",decision=\"permitted\",reason=\"upstream_unreachable\"", 1.0),
    ];
    assert_eq!(requests(&metrics), BTreeMap::from(expected));
    let of = |name: &str| metrics.get(name).copied().unwrap_or_default();
    assert_eq!(of("countersign_responses_total{route=\"/\",class=\"2xx\"}"), 2.0);
    assert_eq!(of("countersign_responses_total{route=\"/\",class=\"4xx\"}"), 2.0);
    assert_eq!(of("countersign_gateway_seconds_count{route=\"/\"}"), 4.0);
    assert_eq!(of("countersign_gateway_seconds_bucket{le=\"+Inf\",route=\"/\"}"), 4.0);
    let origin = upstream.origin();
    assert_eq!(of(&format!("countersign_upstream_seconds_count{{upstream=\"{origin}\"}}")), 2.0);
    assert_eq!(of(&format!("countersign_upstream_up{{upstream=\"{origin}\",server=\"{origin}\"}}")), 1.0);
    assert_eq!(of(&format!("countersign_upstream_in_flight{{upstream=\"{origin}\",server=\"{origin}\"}}")), 0.0);
    assert_eq!(of("countersign_handshakes_total{outcome=\"completed\"}"), 9.0);
    // Those two, and the one to a dead upstream, and the one whose role is missing: a MAC held.
    assert_eq!(of("countersign_secret_uses_total{app=\"test\",secret=\"1\"}"), 4.0);
    let last = of("countersign_secret_last_use_timestamp_seconds{app=\"test\",secret=\"1\"}");
    assert!((last - crate::streams::now() as f64).abs() < 60.0, "{last}");
    assert_eq!(of("countersign_config_last_reload_successful"), 1.0);
    assert!(of("countersign_certificate_expiry_timestamp_seconds{name=\"gw.test\"}") > 1e9);
    assert_eq!(of("countersign_audit_failing"), 0.0);
    assert!(of("countersign_audit_sequence") >= 5.0 && of("countersign_audit_records_total") >= 5.0);
    assert!(of("process_resident_memory_bytes") > 1e6);
    let text = lab.get("/metrics").1;
    for strange in ["secret=1", "/a/b", "usr_", ACCOUNT, "strange"] {
        assert!(!text.contains(strange), "{strange}");
    }
}

#[expect(clippy::float_cmp, reason = "0 or 1")]
#[test]
fn readiness_names_each_part_and_says_when_one_is_not() {
    let upstream = Upstream::ok();
    let lab = Lab::new(&upstream.origin(), "[limits]\ndrain_delay = \"2s\"\n");
    assert_eq!(lab.get("/livez"), (200, "alive\n".to_owned()));
    let ready = lab.until_ready(true);
    let lines: Vec<_> = ready.lines().map(|line| line.split_once(": ").unwrap()).collect();
    assert_eq!(lines.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["listener", "config", "audit"]);
    assert_eq!((lines[0].1, lines[1].1.len()), ("accepting", 64));
    // A configuration that is refused is said, and the gateway does its work.
    let file = lab.folder.file("countersign.toml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{good}\nnonsense = 1\n")).unwrap();
    let metrics = lab.metrics_with(|metrics| metrics["countersign_config_last_reload_successful"] == 0.0);
    assert!(metrics.keys().any(|name| name.starts_with("countersign_config_info{hash=\"")));
    let (status, body) = lab.get("/readyz");
    assert!(status == 200 && body.contains("config: refused since ") && body.contains(lines[1].1), "{body}");
    fs::write(&file, &good).unwrap();
    lab.metrics_with(|metrics| metrics["countersign_config_last_reload_successful"] == 1.0);
    assert!(!lab.get("/readyz").1.contains("refused"));
    // While it drains it is alive, not ready, and still answers.
    lab.running.signal("TERM");
    let draining = lab.until_ready(false);
    assert!(draining.contains("listener: draining"), "{draining}");
    assert_eq!(lab.get("/livez").0, 200);
    assert_eq!(lab.ask(head_now("GET", "/a", "")).status, 200, "it accepts until the delay is over");
}

#[test]
fn what_is_told_there_is_told_nowhere_else_and_to_no_other_method() {
    let upstream = Upstream::ok();
    let lab = Lab::new(&upstream.origin(), "");
    for path in ["/livez", "/readyz", "/metrics"] {
        let answer = lab.ask(format!("GET {path} HTTP/1.1\r\nHost: gw.test\r\n\r\n"));
        assert_eq!((answer.status, answer.code().as_str()), (401, "signature_missing"), "as any path of the route");
    }
    assert_eq!(lab.get("/").0, 404);
    assert_eq!(lab.get("/metrics/").0, 404);
    let (head, _) = lab.asked("POST /metrics HTTP/1.1\r\nHost: ops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("allow: GET, HEAD"), "{head}");
    let (head, body) = lab.asked("HEAD /livez HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head}");
    let (head, _) = lab.asked("GET /metrics HTTP/1.1\r\nHost: ops\r\nConnection: close\r\n\r\n");
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(upstream.requests().is_empty());
}

#[test]
fn health_answers_by_its_exit_code() {
    let upstream = Upstream::ok();
    let lab = Lab::new(&upstream.origin(), "[limits]\ndrain_delay = \"5s\"\n");
    let health = || countersign().args(["health", "--config", &lab.folder.file("countersign.toml")]).output().unwrap();
    let output = health();
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("listener: accepting"));
    lab.running.signal("TERM");
    lab.until_ready(false);
    assert_eq!(health().status.code(), Some(1));
    lab.running.signal("TERM");
    let Lab { folder, mut running, .. } = lab;
    assert_eq!(running.exit_code(), Some(1));
    let health = |file: &str| countersign().args(["health", "--config", file]).output().unwrap();
    assert_eq!(health(&folder.file("countersign.toml")).status.code(), Some(69));
    let none = Folder::new(&upstream.origin(), "");
    let output = health(&none.file("countersign.toml"));
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("[operations]"));
}

#[test]
fn an_operations_port_that_is_taken_is_unavailable() {
    let upstream = Upstream::ok();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let folder = Folder::new(&upstream.origin(), &format!("[operations]\naddress = \"{address}\"\n"));
    let output = countersign().args(["run", "--config", &folder.file("countersign.toml")]).output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("for health and metrics"));
}

/// The families of an exposition: name, type and the names of the labels that were seen.
fn families(text: &str) -> BTreeMap<String, (String, Vec<String>)> {
    let mut families = BTreeMap::new();
    let mut family = (String::new(), String::new());
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            family = (name.to_owned(), kind.to_owned());
        } else if !line.starts_with('#') {
            let (sample, _) = line.rsplit_once(' ').unwrap();
            let (sample, labels) = sample.split_once('{').unwrap_or((sample, "}"));
            let name = match family.1.as_str() {
                "histogram" => family.0.clone(),
                _ => sample.to_owned(),
            };
            assert!(sample.starts_with(&family.0), "{line} is not of {}", family.0);
            let names =
                labels.trim_end_matches('}').split("\",").filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
            let names: Vec<_> = names.filter(|name| name != "le").collect();
            families.insert(name, (family.1.clone(), names));
        }
    }
    families
}

/// The table of the reference: name, type, labels.
fn documented() -> BTreeMap<String, (String, Vec<String>)> {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/metrics.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| `countersign_") || line.starts_with("| `process_"));
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').skip(1).map(str::trim).collect();
        let bare = |text: &str| text.trim_matches('`').to_owned();
        let labels = cells[2].split(", ").filter(|label| !label.is_empty()).map(bare).collect();
        (bare(cells[0]), (cells[1].to_owned(), labels))
    };
    rows.map(row).collect()
}

#[test]
fn the_reference_lists_every_metric_with_its_type_and_labels() {
    let upstream = Upstream::ok();
    let webhook = format!(
        "[[webhooks]]\npath = \"/in\"\nsecrets = [{{ file = \"whsec\" }}]\ndeliver = [{{ name = \"in\", to = \"{}\" }}]\n",
        upstream.origin()
    );
    let lab = Lab::new(&upstream.origin(), &webhook);
    assert_eq!(lab.ask(head_now("GET", "/a", "")).status, 200);
    let now = countersign::clock::unix_seconds(std::time::SystemTime::now());
    assert_eq!(lab.ask(posted("/in", r#"{"id":"evt_1","type":"a","livemode":true}"#, now)).status, 200);
    let is_told = |metrics: &BTreeMap<String, f64>| {
        let delivered = |name: &String| name.starts_with("countersign_deliveries{") && name.contains("delivered");
        !requests(metrics).is_empty() && metrics.keys().any(delivered)
    };
    lab.metrics_with(is_told);
    let told = families(&lab.get("/metrics").1);
    assert_eq!(told, documented());
}

#[test]
fn the_dashboard_and_the_alerts_use_metrics_that_there_are() {
    let documented = documented();
    let known = |name: &str| {
        let ends = ["_bucket", "_sum", "_count"];
        let bare = ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        documented.contains_key(name) || documented.get(bare).is_some_and(|(kind, _)| kind == "histogram")
    };
    for file in ["dashboard.json", "alerts.yaml"] {
        let path = format!("{}/examples/metrics/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(path).unwrap();
        if file == "dashboard.json" {
            let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert!(dashboard["panels"].as_array().unwrap().len() > 10);
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let names: Vec<_> = text
            .split(|c| !is_name(c))
            .filter(|word| word.starts_with("countersign_") || word.starts_with("process_"))
            .collect();
        assert!(names.len() > 10, "{file}");
        for name in names {
            assert!(known(name), "{file} uses {name}, which there is not");
        }
    }
}
