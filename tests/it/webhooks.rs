//! Stripe's events as they come in, through the socket of the gateway that runs.

use std::{
    fs,
    io::Read as _,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use countersign::{
    clock::unix_seconds,
    secret::{Kind, SigningSecret},
    signature::{Signature, SigningKey},
};
use serde_json::Value;

use crate::{
    commands::{Folder, Running, countersign, curl, free_port},
    support::{Answer, Client, Upstream, client_config, header, headers},
};

mod vectors;

const STRIPES: &str = "whsec_of_stripe_0123456789abcdef";
const OURS: &str = "whsec_of_the_service_0123456789";

fn key(secret: &str) -> SigningKey {
    SigningKey::new(&SigningSecret::parse_as(Kind::Webhook, secret.to_owned().into()).unwrap())
}

/// An event of live mode.
fn event(id: &str, more: &str) -> String {
    format!(
        "{{\n  \"id\": \"{id}\", \"object\": \"event\", \"type\": \"invoice.paid\", \"livemode\": true{more},\n  \"data\": {{\"object\": {{\"id\": \"in_1\"}}}}\n}}"
    )
}

/// A gateway that runs, with webhooks.
struct Lab {
    folder: Folder,
    running: Running,
    operations: u16,
    tls: Arc<rustls::ClientConfig>,
}

impl Lab {
    /// With one webhook, `keys` in it, and what is delivered to `upstream`.
    fn new(upstream: &Upstream, keys: &str) -> Self {
        Self::with(upstream, &webhook(keys, &deliver("billing", upstream)))
    }

    fn with(upstream: &Upstream, tables: &str) -> Self {
        Self::prepared(upstream, tables, |_| ())
    }

    /// With what `prepare` puts into its folder.
    fn prepared(upstream: &Upstream, tables: &str, prepare: impl FnOnce(&Folder)) -> Self {
        let operations = free_port();
        let more =
            format!("{tables}\n[operations]\naddress = \"127.0.0.1:{operations}\"\n[log]\naccess = \"access.log\"\n");
        let folder = Folder::new(&upstream.origin(), &more);
        prepare(&folder);
        for (name, secret) in [("stripe.whsec", STRIPES), ("next.whsec", "whsec_next"), ("ours.whsec", OURS)] {
            fs::write(folder.file(name), secret).unwrap();
        }
        fs::write(folder.file("addresses"), "192.0.2.1\n").unwrap();
        let running = folder.run(Stdio::null());
        let tls = Arc::new(client_config(folder.folder.path().join("cert.pem").as_path(), &[b"http/1.1"]));
        Self { folder, running, operations, tls }
    }

    fn ask(&self, bytes: impl AsRef<[u8]>) -> Answer {
        let mut client = Client::to(([127, 0, 0, 1], self.folder.port).into(), &self.tls);
        client.send(bytes);
        client.answer()
    }

    /// What Stripe would be answered that posts `body` to `/stripe/events` now.
    fn post(&self, body: &str) -> Answer {
        self.ask(posted("/stripe/events", body, &key(STRIPES).header(now(), body.as_bytes())))
    }

    /// The lines of the access log for which `holds`, once there are `count` of them.
    fn records(&self, count: usize, holds: impl Fn(&Value) -> bool) -> Vec<Value> {
        lines(&self.folder.file("access.log"), count, holds)
    }

    /// Those of the audit log.
    fn audited(&self, count: usize, kind: &str) -> Vec<Value> {
        lines(&self.folder.file("state/audit/00000000000000000001.jsonl"), count, |line| line["kind"] == kind)
    }

    fn metrics(&self) -> String {
        self.operations("/metrics")
    }

    fn operations(&self, path: &str) -> String {
        let url = format!("http://127.0.0.1:{}{path}", self.operations);
        let output = Command::new("curl").args(["--silent", "--show-error", &url]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn until_metric(&self, line: &str) {
        until(line, || self.metrics().lines().any(|found| found == line));
    }
}

fn webhook(keys: &str, deliver: &str) -> String {
    format!("[[webhooks]]\npath = \"/stripe/events\"\nsecrets = [{{ file = \"stripe.whsec\" }}]\n{keys}\n{deliver}\n")
}

fn deliver(name: &str, upstream: &Upstream) -> String {
    format!(
        "[[webhooks.deliver]]\nname = \"{name}\"\nto = \"{}/in?from=stripe\"\nsecret = {{ file = \"ours.whsec\" }}\n",
        upstream.origin()
    )
}

fn now() -> i64 {
    unix_seconds(SystemTime::now())
}

fn posted(path: &str, body: &str, signature: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: gw.test\r\nUser-Agent: Stripe/1.0\r\nStripe-Signature: {signature}\r\n\
         Content-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn lines(file: &str, count: usize, holds: impl Fn(&Value) -> bool) -> Vec<Value> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut text = String::new();
        let _ = fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text));
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let found: Vec<Value> =
            whole.map(|line| serde_json::from_str(line).unwrap()).filter(|line| holds(line)).collect();
        if found.len() >= count {
            return found;
        }
        assert!(Instant::now() < deadline, "{} of {count} in {text}", found.len());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process that holds the store for itself until its input ends.
fn locked(file: &str) -> Child {
    let script = "import sqlite3,sys\nc=sqlite3.connect(sys.argv[1],isolation_level=None)\nc.execute('BEGIN EXCLUSIVE')\nprint('locked',flush=True)\nsys.stdin.read()\n";
    let mut holder = Command::new("python3")
        .args(["-c", script, file])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    holder.stdout.as_mut().unwrap().read_exact(&mut [0; 7]).unwrap();
    holder
}

/// No page may read what Stripe is answered.
fn assert_closed(answer: &Answer) {
    let head = answer.head.to_ascii_lowercase();
    assert!(!head.contains("access-control-") && !head.contains("vary:"), "{head}");
    assert_eq!(answer.count("x-request-id"), 1, "{head}");
}

/// Holds rule 13: the event is in the inbox when Stripe is told so, and what is delivered is what came.
#[test]
fn an_event_is_kept_acknowledged_and_delivered_byte_for_byte() {
    let service = Upstream::ok();
    let lab = Lab::new(&service, "");
    let body = event("evt_1", r#", "account": "acct_7""#);
    let answer = lab.post(&body);
    assert_eq!((answer.status, answer.json()["outcome"].as_str()), (200, Some("accepted")), "{answer:?}");
    assert_closed(&answer);
    until("a delivery", || service.requests().len() == 1);
    let (head, delivered) = service.only();
    assert_eq!(String::from_utf8(delivered).unwrap(), body);
    assert_eq!(head.lines().next(), Some("POST /in?from=stripe HTTP/1.1"));
    assert_eq!(headers(&head, "stripe-signature").count(), 1);
    let signature = Signature::parse(header(&head, "stripe-signature").unwrap().as_bytes()).unwrap();
    assert_eq!(signature.matching_key(&[key(OURS)], body.as_bytes()), Some(0));
    assert_eq!(signature.matching_key(&[key(STRIPES)], body.as_bytes()), None);

    let request = &lab.records(1, |line| line["http.request.method"] == "POST")[0];
    for (name, value) in [
        ("countersign.webhook", "/stripe/events"),
        ("countersign.event", "evt_1"),
        ("countersign.event_type", "invoice.paid"),
        ("countersign.account", "acct_7"),
        ("countersign.outcome", "accepted"),
        ("countersign.decision", "permitted"),
    ] {
        assert_eq!(request[name], value, "{request}");
    }
    let attempt = &lab.records(1, |line| line["countersign.attempt"] == 1)[0];
    assert_eq!(
        (&attempt["countersign.event"], &attempt["countersign.outcome"]),
        (&"evt_1".into(), &"delivered".into())
    );
    let audited = &lab.audited(1, "event")[0];
    for (name, value) in
        [("event", "evt_1"), ("outcome", "accepted"), ("webhook", "/stripe/events"), ("account", "acct_7")]
    {
        assert_eq!(audited[name], value, "{audited}");
    }
    lab.until_metric(r#"countersign_webhook_events_total{webhook="/stripe/events",outcome="accepted"} 1"#);
    lab.until_metric(r#"countersign_delivery_attempts_total{destination="billing",outcome="delivered"} 1"#);
    lab.until_metric(r#"countersign_deliveries{destination="billing",state="delivered"} 1"#);
    lab.until_metric(r#"countersign_webhook_secret_uses_total{webhook="/stripe/events",secret="1"} 1"#);
    assert!(lab.running.drained().contains("stopped"));
}

#[test]
fn an_event_that_came_before_is_acknowledged_and_delivered_to_nobody_again() {
    let service = Upstream::ok();
    let lab = Lab::new(&service, "");
    assert_eq!(lab.post(&event("evt_1", "")).json()["outcome"], "accepted");
    let again = lab.post(&event("evt_1", r#", "pending_webhooks": 2"#));
    assert_eq!((again.status, again.json()["outcome"].as_str()), (200, Some("duplicate")));
    assert_eq!(lab.post(&event("evt_2", "")).json()["outcome"], "accepted");
    lab.records(2, |line| line["countersign.attempt"] == 1);
    assert_eq!(service.requests().len(), 2);
    assert!(!service.requests().iter().any(|request| String::from_utf8_lossy(request).contains("pending_webhooks")));
}

/// Holds rule 6: what is not Stripe's is refused as Stripe's own libraries do it, and none of it is kept.
#[test]
fn what_is_not_stripe_s_is_refused_and_kept_nowhere() {
    let service = Upstream::ok();
    let lab = Lab::new(&service, "body_limit = \"64KiB\"");
    let body = event("evt_1", "");
    let good = key(STRIPES).header(now(), body.as_bytes());
    let v0 = good.replace("v1=", "v0=");
    let old = key(STRIPES).header(now() - 400, body.as_bytes());
    let early = key(STRIPES).header(now() + 400, body.as_bytes());
    let of_an_app = key(OURS).header(now(), body.as_bytes());
    let unusable = |text: &str| posted("/stripe/events", text, &key(STRIPES).header(now(), text.as_bytes()));
    let without = posted("/stripe/events", &body, "").replace("Stripe-Signature: \r\n", "");
    let long = event("evt_1", &format!(", \"x\": \"{}\"", "x".repeat(65_536)));
    for (request, status, code) in [
        (without, 400, "signature_missing"),
        (posted("/stripe/events", &body, "t=1"), 400, "signature_malformed"),
        (posted("/stripe/events", &body, &v0), 400, "signature_malformed"),
        (posted("/stripe/events", &body, &of_an_app), 400, "signature_mismatch"),
        (posted("/stripe/events", &body.replace("in_1", "in_2"), &good), 400, "signature_mismatch"),
        (posted("/stripe/events", &body, &old), 400, "timestamp_expired"),
        (posted("/stripe/events", &body, &early), 400, "timestamp_future"),
        (unusable("[]"), 400, "body_invalid"),
        (unusable("{"), 400, "body_invalid"),
        (unusable(r#"{"id":"evt_1","type":"a"}"#), 400, "body_invalid"),
        (unusable(&long), 413, "body_too_large"),
        (posted("/stripe/events", &body, &good).replace("POST", "GET"), 405, "method_not_allowed"),
        (posted("/stripe/events", &body, &good).replace("Host: gw.test", "Host: other.test"), 421, "misdirected"),
        (
            "OPTIONS /stripe/events HTTP/1.1\r\nHost: gw.test\r\nOrigin: null\r\nAccess-Control-Request-Method: POST\r\n\r\n"
                .to_owned(),
            405,
            "method_not_allowed",
        ),
    ] {
        let answer = lab.ask(&request);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{request}\n{answer:?}");
        assert_closed(&answer);
        if status == 405 {
            assert_eq!(answer.header("allow"), Some("POST"));
        }
        if code == "signature_missing" {
            assert_eq!(answer.json()["status"], 400);
        }
        assert!(answer.header("x-request-id").is_some());
    }
    // What Stripe signed is recorded, what it did not is counted.
    let audited = lab.audited(5, "event");
    let codes: Vec<_> = audited.iter().map(|record| record["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["timestamp_expired", "timestamp_future", "body_invalid", "body_invalid", "body_invalid"]);
    assert_eq!(lab.post(&body).json()["outcome"], "accepted");
    lab.records(1, |line| line["countersign.attempt"] == 1);
    assert_eq!(service.requests().len(), 1);
    lab.until_metric(r#"countersign_webhook_events_total{webhook="/stripe/events",outcome="refused"} 14"#);
}

#[test]
fn another_path_is_no_webhook() {
    let service = Upstream::ok();
    let lab = Lab::new(&service, "");
    let body = event("evt_1", "");
    for path in ["/stripe/events/", "/stripe/Events", "/stripe/event"] {
        let answer = lab.ask(posted(path, &body, &key(STRIPES).header(now(), body.as_bytes())));
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (401, Some("*")), "{path}");
    }
}

#[test]
fn what_a_filter_keeps_out_is_acknowledged_dropped_recorded_and_counted() {
    let service = Upstream::ok();
    let lab = Lab::new(&service, "accounts = [\"acct_1\"]");
    let test = event("evt_1", r#", "account": "acct_1""#).replace("\"livemode\": true", "\"livemode\": false");
    for (body, outcome) in [
        (test, "other_mode"),
        (event("evt_2", r#", "account": "acct_2""#), "other_account"),
        (event("evt_3", ""), "other_account"),
    ] {
        let answer = lab.post(&body);
        assert_eq!((answer.status, answer.json()["outcome"].as_str()), (200, Some(outcome)), "{answer:?}");
    }
    assert_eq!(lab.post(&event("evt_4", r#", "account": "acct_1""#)).json()["outcome"], "accepted");
    lab.records(1, |line| line["countersign.attempt"] == 1);
    assert_eq!(service.requests().len(), 1);
    let dropped = lab.records(3, |line| line["countersign.decision"] == "dropped");
    assert_eq!(dropped[2]["countersign.event"], "evt_3");
    assert_eq!(lab.audited(4, "event")[1]["outcome"], "other_account");
    lab.until_metric(r#"countersign_webhook_events_total{webhook="/stripe/events",outcome="other_account"} 2"#);
    lab.until_metric(r#"countersign_webhook_events_total{webhook="/stripe/events",outcome="other_mode"} 1"#);
}

#[test]
fn a_thin_event_passes_as_it_is_and_is_filtered_by_its_type() {
    let (orders, all) = (Upstream::ok(), Upstream::ok());
    let tables = webhook(
        "",
        &format!("{}types = [\"v1.billing.meter.*\"]\n{}", deliver("meters", &orders), deliver("all", &all)),
    );
    let lab = Lab::with(&orders, &tables);
    let thin = |id: &str, kind: &str| {
        format!(
            r#"{{"id":"{id}","object":"v2.core.event","type":"{kind}","livemode":true,"context":"acct_9","related_object":{{"id":"mtr_1","type":"billing.meter","url":"/v1"}},"reason":null}}"#
        )
    };
    let meter = thin("evt_1", "v1.billing.meter.error_report_triggered");
    assert_eq!(lab.post(&meter).json()["outcome"], "accepted");
    assert_eq!(lab.post(&thin("evt_2", "v2.core.account.created")).json()["outcome"], "accepted");
    lab.records(3, |line| line["countersign.attempt"] == 1);
    let (_, body) = orders.only();
    assert_eq!(String::from_utf8(body).unwrap(), meter);
    assert_eq!(all.requests().len(), 2);
    assert_eq!(lab.records(1, |line| line["countersign.event"] == "evt_1")[0]["countersign.account"], "acct_9");
}

#[test]
fn while_a_secret_is_rolled_both_are_good_and_then_one() {
    let service = Upstream::ok();
    let lab = Lab::with(
        &service,
        &webhook("", &deliver("billing", &service))
            .replace("{ file = \"stripe.whsec\" }", "{ file = \"stripe.whsec\" }, { file = \"next.whsec\" }"),
    );
    let with = |secret: &str, id: &str| {
        let body = event(id, "");
        lab.ask(posted("/stripe/events", &body, &key(secret).header(now(), body.as_bytes()))).status
    };
    assert_eq!((with(STRIPES, "evt_1"), with("whsec_next", "evt_2"), with("whsec_other", "evt_3")), (200, 200, 400));
    let file = lab.folder.file("countersign.toml");
    let text = fs::read_to_string(&file).unwrap().replace("{ file = \"stripe.whsec\" }, ", "");
    fs::write(&file, text).unwrap();
    until("the old secret to be refused", || with(STRIPES, "evt_4") == 400);
    assert_eq!(with("whsec_next", "evt_5"), 200);
}

#[test]
fn only_listed_addresses_are_looked_at_and_the_list_is_read_again() {
    let service = Upstream::ok();
    let lab = Lab::new(&service, "sources = { file = \"addresses\" }");
    let refused = lab.post(&event("evt_1", ""));
    assert_eq!((refused.status, refused.code().as_str()), (403, "source_not_allowed"));
    assert_closed(&refused);
    fs::write(lab.folder.file("addresses"), "192.0.2.1\n127.0.0.0/8\n").unwrap();
    until("the address to be taken", || lab.post(&event("evt_1", "")).status == 200);
}

#[test]
fn in_direct_mode_the_status_is_relayed_and_nothing_else() {
    let service = Upstream::answering(|request| {
        let text = String::from_utf8_lossy(request);
        if text.contains("evt_2") {
            return b"HTTP/1.1 307 Go\r\nLocation: http://intranet/\r\nContent-Length: 6\r\n\r\nsecret".to_vec();
        }
        b"HTTP/1.1 202 Yes\r\nX-Inside: secret\r\nContent-Length: 6\r\n\r\nsecret".to_vec()
    });
    let gone = free_port();
    let tables = webhook("mode = \"direct\"", &deliver("direct", &service))
        + &format!(
            "[[webhooks]]\npath = \"/gone\"\nsecrets = [{{ file = \"stripe.whsec\" }}]\nmode = \"direct\"\n\
             deliver = [{{ name = \"gone\", to = \"http://127.0.0.1:{gone}/\", types = [\"invoice.*\"] }}]\n"
        );
    let lab = Lab::with(&service, &tables);
    let body = event("evt_1", "");
    let stripes = key(STRIPES).header(now(), body.as_bytes());
    let answer = lab.ask(posted("/stripe/events", &body, &stripes));
    assert_eq!((answer.status, answer.body.len(), answer.header("x-inside")), (202, 0, None), "{answer:?}");
    assert_closed(&answer);
    let (head, passed) = service.only();
    assert_eq!(String::from_utf8(passed).unwrap(), body);
    assert_eq!(header(&head, "countersign-event"), Some("evt_1"));
    assert_eq!(headers(&head, "countersign-delivery").count() + headers(&head, "countersign-attempt").count(), 0);
    let signature = Signature::parse(header(&head, "stripe-signature").unwrap().as_bytes()).unwrap();
    assert_eq!(signature.matching_key(&[key(OURS)], body.as_bytes()), Some(0));
    assert!(!head.contains(&stripes));
    let moved = lab.post(&event("evt_2", ""));
    assert_eq!((moved.status, moved.header("location"), moved.body.len()), (307, None, 0));

    let to_gone = |body: &str| lab.ask(posted("/gone", body, &key(STRIPES).header(now(), body.as_bytes())));
    let unreachable = to_gone(&event("evt_3", ""));
    assert_eq!((unreachable.status, unreachable.code().as_str()), (502, "upstream_unreachable"));
    assert_closed(&unreachable);
    let unwanted = to_gone(&event("evt_4", "").replace("invoice.paid", "charge.failed"));
    assert_eq!((unwanted.status, unwanted.json()["outcome"].as_str()), (200, Some("unwanted")));
    let outcomes: Vec<_> =
        lab.audited(5, "event").iter().map(|record| (record["event"].clone(), record["outcome"].clone())).collect();
    assert!(outcomes.contains(&("evt_3".into(), "failed".into())), "{outcomes:?}");
    lab.until_metric(r#"countersign_webhook_events_total{webhook="/gone",outcome="failed"} 1"#);
    lab.until_metric(r#"countersign_webhook_events_total{webhook="/stripe/events",outcome="forwarded"} 2"#);
    assert!(!fs::exists(lab.folder.file("state/inbox")).unwrap(), "direct mode keeps nothing");
}

/// Holds rule 13: what cannot be made durable is not acknowledged, and the gateway takes up again by itself.
#[test]
fn a_store_that_is_locked_is_503_and_the_rest_goes_on() {
    let service = Upstream::ok();
    let lab = Lab::new(&service, "");
    let mut holder = locked(&lab.folder.file("state/inbox/inbox.sqlite"));
    let refused = lab.post(&event("evt_1", ""));
    assert_eq!((refused.status, refused.code().as_str()), (503, "store_unavailable"), "{refused:?}");
    assert!(refused.header("retry-after").is_some());
    assert_closed(&refused);
    lab.folder.ask("ok");
    let readiness = lab.operations("/readyz");
    assert!(readiness.contains("inbox: ") && !readiness.contains("inbox: open"), "{readiness}");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    let taken = lab.post(&event("evt_1", ""));
    assert_eq!(taken.status, 200, "{taken:?}");
    until("a delivery", || service.requests().iter().any(|request| String::from_utf8_lossy(request).contains("evt_1")));
    until("readiness", || lab.operations("/readyz").contains("inbox: open"));
}

#[test]
fn what_waits_for_a_destination_that_is_gone_is_listed_and_warned_of() {
    let service = Upstream::answering(|_| b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec());
    let lab = Lab::new(&service, "");
    assert_eq!(lab.post(&event("evt_1", "")).status, 200);
    lab.records(1, |line| line["countersign.outcome"] == "retry");
    let file = lab.folder.file("countersign.toml");
    let text = fs::read_to_string(&file).unwrap().replace("name = \"billing\"", "name = \"another\"");
    fs::write(&file, text).unwrap();
    lab.audited(1, "reload");
    let run = |arguments: &[&str]| {
        let output = countersign().args(arguments).args(["--config", &file]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&["check"]).contains("1 deliveries wait for the destination `billing`"));
    let listed: Value = serde_json::from_str(&run(&["inbox", "list", "--format", "json"])).unwrap();
    assert_eq!((&listed[0]["state"], &listed[0]["event"]), (&"orphaned".into(), &"evt_1".into()), "{listed}");
    run(&["inbox", "discard", "evt_1"]);
    let done = &lab.audited(1, "inbox")[0];
    assert!(done["act"] == "discard" && done["event"] == "evt_1", "{done}");
    assert!(!run(&["check"]).contains("deliveries wait"));
}

#[test]
fn an_event_whose_sender_leaves_is_kept_recorded_and_delivered() {
    let service = Upstream::ok();
    let lab = Lab::new(&service, "");
    let mut holder = locked(&lab.folder.file("state/inbox/inbox.sqlite"));
    let body = event("evt_1", "");
    let mut client = Client::to(([127, 0, 0, 1], lab.folder.port).into(), &lab.tls);
    client.send(posted("/stripe/events", &body, &key(STRIPES).header(now(), body.as_bytes())));
    // The gateway has read it and waits for the store when its sender leaves.
    std::thread::sleep(Duration::from_millis(500));
    drop(client);
    lab.records(1, |line| line["http.response.status_code"] == 499);
    drop(holder.stdin.take());
    holder.wait().unwrap();
    let audited = &lab.audited(1, "event")[0];
    assert_eq!((&audited["event"], &audited["outcome"]), (&"evt_1".into(), &"accepted".into()), "{audited}");
    lab.records(1, |line| line["countersign.attempt"] == 1);
}

#[test]
fn sign_makes_an_event_that_is_taken_and_explain_says_why_one_is_not() {
    let service = Upstream::ok();
    let lab = Lab::new(&service, "");
    fs::write(lab.folder.file("event.json"), event("evt_1", "")).unwrap();
    let url = format!("https://127.0.0.1:{}/stripe/events", lab.folder.port);
    let sign = |secret: &str, more: &[&str]| {
        let (secret, body) = (lab.folder.file(secret), lab.folder.file("event.json"));
        let options = ["sign", "--webhook", "--secret-file", &secret, "--body", &body];
        countersign().args(options).args(more).args(["POST", &url]).output().unwrap()
    };
    let line = String::from_utf8(sign("stripe.whsec", &[]).stdout).unwrap();
    let answer = curl(&line, &format!("--cacert {}", lab.folder.file("cert.pem")));
    assert!(answer.contains("accepted"), "{answer}");
    let wrong = sign("secret", &[]);
    assert_eq!(wrong.status.code(), Some(78));
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("an app's signing secret"));

    let explain = |line: &[u8], now: &str| {
        fs::write(lab.folder.file("captured"), line).unwrap();
        let (config, captured) = (lab.folder.file("countersign.toml"), lab.folder.file("captured"));
        let options = ["explain", "--config", &config, "--now", now, "--format", "json", &captured];
        let output = countersign().args(options).output().unwrap();
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let body = event("evt_2", "").replace("\"livemode\": true", "\"livemode\": false");
    let captured = posted("/stripe/events", &body, &key(STRIPES).header(1_790_000_000, body.as_bytes()));
    let (code, verdict) = explain(captured.as_bytes(), "1790000001");
    assert_eq!((code, &verdict["verdict"], &verdict["reason"]), (Some(0), &"drop".into(), &"other_mode".into()));
    let (code, verdict) = explain(captured.replace("evt_2", "evt_3").as_bytes(), "1790000001");
    assert_eq!((code, &verdict["code"]), (Some(1), &"signature_mismatch".into()), "{verdict}");
    assert!(verdict["detail"].as_str().unwrap().contains("another endpoint's"), "{verdict}");
    let (_, verdict) = explain(captured.as_bytes(), "1790000400");
    assert_eq!(verdict["code"], "timestamp_expired");
}

#[test]
fn an_inbox_that_was_there_and_is_gone_stops_the_start() {
    let service = Upstream::ok();
    let lab = Lab::new(&service, "");
    assert_eq!(lab.post(&event("evt_1", "")).status, 200);
    let Lab { folder, running, .. } = lab;
    running.drained();
    fs::remove_dir_all(folder.file("state/inbox")).unwrap();
    let output = countersign().args(["run", "--config", &folder.file("countersign.toml")]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("countersign inbox init --accept-loss"), "{said}");
}

#[test]
fn another_password_of_the_database_stands_in_no_reloads_way() {
    let Some(server) = crate::support::postgres::Server::start() else { return };
    let service = Upstream::ok();
    server.run("postgres", "CREATE ROLE first LOGIN SUPERUSER; CREATE ROLE second LOGIN SUPERUSER");
    server.run("postgres", "CREATE DATABASE rotated");
    let url = |role: &str| server.url("rotated").replace("//postgres@", &format!("//{role}@"));
    let tables = webhook("", &deliver("billing", &service));
    let lab = Lab::prepared(&service, &format!("{tables}\n[inbox]\npostgres = {{ file = \"url\" }}\n"), |folder| {
        fs::write(folder.file("url"), url("first")).unwrap();
    });
    assert_eq!(lab.post(&event("evt_1", "")).status, 200);
    fs::write(lab.folder.file("url"), url("second")).unwrap();
    let reload = &lab.audited(1, "reload")[0];
    assert_eq!(
        (&reload["outcome"], &reload["changes"][0]),
        (&"in_force".into(), &"another secret in inbox.postgres.file".into())
    );
    server.run("postgres", "ALTER ROLE first NOLOGIN");
    server.run("postgres", "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'first'");
    until("an event is taken over a new connection", || lab.post(&event("evt_2", "")).status == 200);
    let by = "SELECT count(*) > 0 FROM pg_stat_activity WHERE usename = 'second'";
    assert_eq!(server.run("postgres", by).as_deref(), Some("t"));
}

#[test]
fn destinations_come_and_go_with_a_reload_and_an_inbox_takes_a_restart() {
    let (service, other) = (Upstream::ok(), Upstream::ok());
    let lab = Lab::new(&service, "");
    assert_eq!(lab.post(&event("evt_1", "")).status, 200);
    lab.records(1, |line| line["countersign.attempt"] == 1);
    let file = lab.folder.file("countersign.toml");
    let text = fs::read_to_string(&file).unwrap();
    let more = text.replace("[operations]", &format!("{}[operations]", deliver("other", &other)));
    fs::write(&file, &more).unwrap();
    lab.audited(1, "reload");
    assert_eq!(lab.post(&event("evt_2", "")).status, 200);
    lab.records(3, |line| line["countersign.attempt"] == 1);
    assert_eq!((service.requests().len(), other.requests().len()), (2, 1));
    fs::write(lab.folder.file("url"), "postgres://u:p@127.0.0.1/c").unwrap();
    fs::write(&file, format!("{more}[inbox]\npostgres = {{ file = \"url\" }}\n")).unwrap();
    let refused = &lab.audited(2, "reload")[1];
    assert!(refused["outcome"] == "refused" && refused.to_string().contains("`inbox` cannot change"), "{refused}");
}
