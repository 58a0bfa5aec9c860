//! Another configuration put in force while the built gateway runs: what changes, what stays, and what is refused.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{ChildStderr, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use countersign::tls;
use http_body_util::BodyExt as _;
use serde_json::Value;

use crate::{
    commands::{Folder, Running},
    streams::{head_now, now, over_http2_to, request_at},
    support::{ACCOUNT, Answer, Client, SECRET, USER, Upstream, client_config, identity_payload, sign, write_files},
};

/// Within what time a change must be in force.
const SOON: Duration = Duration::from_secs(1);

/// A gateway that runs, and what it says.
struct Lab {
    folder: Folder,
    running: Running,
    said: mpsc::Receiver<String>,
    tls: Arc<rustls::ClientConfig>,
}

impl Lab {
    fn new(upstream: &Upstream, more: &str) -> Self {
        Self::of(Folder::new(&upstream.origin(), more))
    }

    fn of(folder: Folder) -> Self {
        let mut running = folder.run(Stdio::null());
        let said = lines(running.0.stderr.take().unwrap());
        let tls = Arc::new(client_config(&folder.folder.path().join("cert.pem"), &[b"http/1.1"]));
        Self { folder, running, said, tls }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.folder.path().join(name)
    }

    fn config(&self) -> String {
        fs::read_to_string(self.path("countersign.toml")).unwrap()
    }

    /// Puts `text` in the place of a file, as one does: by a rename.
    fn replace(&self, name: &str, text: &str) {
        let beside = self.path(&format!("{name}.new"));
        fs::write(&beside, text).unwrap();
        fs::rename(beside, self.path(name)).unwrap();
    }

    /// Changes the configuration and waits until it was taken or refused; what was said up to then.
    fn change(&mut self, from: &str, to: &str) -> String {
        let text = self.config();
        assert!(text.contains(from), "{from}");
        self.replace("countersign.toml", &text.replacen(from, to, 1));
        self.told("the configuration was read anew")
    }

    /// Reads what the gateway says up to a line with `what`, and that too.
    fn told(&mut self, what: &str) -> String {
        let mut said = String::new();
        while !said.contains(what) {
            let line = self.said.recv_timeout(Duration::from_secs(20));
            let line = line.unwrap_or_else(|_| panic!("{what:?} was not told, but {said}"));
            assert!(!line.contains("panicked"), "{line}");
            said += &line;
        }
        said
    }

    fn connect(&self) -> Client {
        Client::to(SocketAddr::from(([127, 0, 0, 1], self.folder.port)), &self.tls)
    }

    fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut client = self.connect();
        client.send(request);
        client.answer()
    }

    fn status(&self, path: &str) -> u16 {
        self.ask(head_now("GET", path, "")).status
    }

    /// The audit log as it is.
    fn audit_log(&self) -> String {
        let mut segments: Vec<_> = fs::read_dir(self.path("state/audit"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
            .collect();
        segments.sort();
        segments.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
    }

    /// The records of the audit log of these kinds, when it has stopped.
    fn audited(mut self, kinds: &[&str]) -> Vec<Value> {
        self.running.signal("TERM");
        assert_eq!(self.running.exit_code(), Some(0));
        let rest: String = self.said.iter().collect();
        assert!(!rest.contains("panicked"), "{rest}");
        let text = self.audit_log();
        let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        records.filter(|record| kinds.contains(&record["kind"].as_str().unwrap())).collect()
    }
}

/// The lines of a process's stderr, as they come.
fn lines(stderr: ChildStderr) -> mpsc::Receiver<String> {
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if say.send(line + "\n").is_err() {
                return;
            }
        }
    });
    said
}

fn head_with(secret: &str, path: &str) -> String {
    let signature = sign(secret, &identity_payload(), now());
    format!(
        "GET {path} HTTP/1.1\r\nHost: gw.test\r\nStripe-Signature: {signature}\r\nStripe-User-Id: {USER}\r\nStripe-Account-Id: {ACCOUNT}\r\n\r\n"
    )
}

const METHODS: &str = "methods = [\"GET\", \"POST\"]";

/// Holds rule 14.
#[test]
fn a_changed_route_is_in_force_soon_on_connections_that_stay() {
    let upstream = Upstream::ok();
    let mut lab = Lab::new(&upstream, "");
    let mut client = lab.connect();
    client.send(head_now("GET", "/a", ""));
    let first = client.answer();
    assert_eq!(first.status, 200);
    let began = Instant::now();
    let said = lab.change(METHODS, &format!("{METHODS}\nusers = [\"usr_Another\"]"));
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert!(said.contains(r#"added routes.\"/\".users"#), "{said}");
    client.send(head_now("GET", "/a", ""));
    let refused = client.answer();
    assert_eq!((refused.status, refused.code().as_str()), (403, "user_not_allowed"));
    assert_eq!(refused.header("connection"), None, "the connection stays");
    assert_eq!(upstream.requests().len(), 1);
    lab.change("users = [\"usr_Another\"]", &format!("users = [\"{USER}\"]"));
    client.send(head_now("GET", "/a", ""));
    assert_eq!(client.answer().status, 200);
    let records = lab.audited(&["start", "decision", "reload"]);
    let hashes: Vec<_> = records.iter().map(|record| record["config"].as_str().unwrap()).collect();
    let kinds: Vec<_> = records.iter().map(|record| record["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["start", "decision", "reload", "decision", "reload", "decision"]);
    assert!(hashes[0] == hashes[1] && hashes[2] == hashes[3] && hashes[4] == hashes[5] && hashes[0] != hashes[2]);
    assert_eq!(records[2]["changes"], serde_json::json!([r#"added routes."/".users"#]));
    assert_eq!(records[2]["outcome"], "in_force");
}

#[test]
fn connections_to_an_upstream_that_did_not_change_live_on() {
    let counted = Arc::new(AtomicUsize::new(0));
    let connections = Arc::clone(&counted);
    let upstream = Upstream::raw(move |stream| {
        connections.fetch_add(1, Ordering::SeqCst);
        let mut got = Vec::new();
        while Upstream::read_until(stream, &mut got, b"\r\n\r\n") {
            got.clear();
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
    });
    let more = format!(
        "[upstreams.kept]\nservers = [\"{0}\"]\n[upstreams.changed]\nservers = [\"{0}\"]\n\
         [[routes]]\npath = \"/kept\"\napp = \"test\"\nupstream = \"kept\"\n\
         [[routes]]\npath = \"/changed\"\napp = \"test\"\nupstream = \"changed\"\n[limits]\nheaders = 99\n",
        upstream.origin()
    );
    let mut lab = Lab::new(&upstream, &more);
    let mut client = lab.connect();
    let mut ask = |path: &str| {
        client.send(head_now("GET", path, ""));
        assert_eq!(client.answer().status, 200);
        counted.load(Ordering::SeqCst)
    };
    assert_eq!((ask("/kept"), ask("/changed")), (1, 2));
    lab.change("[upstreams.changed]", "[upstreams.changed]\nmax_in_flight = 7");
    assert_eq!((ask("/kept"), ask("/changed")), (2, 3), "one was kept, the other was made anew");
    assert_eq!((ask("/kept"), ask("/changed")), (3, 3));
}

#[test]
fn a_bad_file_changes_nothing_and_is_told_until_a_good_one_heals_it() {
    let upstream = Upstream::ok();
    let mut lab = Lab::new(&upstream, "");
    let good = lab.config();
    let said = lab.change(METHODS, "methods = [\"GET\"]\nuser = [\"usr_1\"]");
    assert!(said.contains("refused"), "{said}");
    let text = said + &lab.told("did you mean `users`?");
    assert!(text.contains("countersign.toml:") && text.contains("unknown key `user`"), "{text}");
    assert_eq!(lab.status("/a"), 200);
    // What takes a restart is refused as a whole, with what else is in it.
    let other = format!("127.0.0.1:{}", crate::commands::free_port());
    let moved =
        good.replace(&format!("127.0.0.1:{}", lab.folder.port), &other).replace(METHODS, "methods = [\"POST\"]");
    lab.replace("countersign.toml", &moved);
    let said = lab.told("restart it, or put the old value back");
    assert!(said.contains("listener.address"), "{said}");
    assert_eq!(lab.status("/a"), 200);
    for (table, key) in [
        (format!("[operations]\naddress = \"{other}\"\n"), "`operations.address` cannot change"),
        ("state_directory = \"elsewhere\"\n".to_owned(), "`state_directory` cannot change"),
    ] {
        let more = if table.starts_with('[') { format!("{good}\n{table}") } else { format!("{table}{good}") };
        lab.replace("countersign.toml", &more.replace(METHODS, "methods = [\"POST\"]"));
        lab.told(key);
        assert_eq!(lab.status("/a"), 200, "{key}");
    }
    fs::remove_file(lab.path("countersign.toml")).unwrap();
    lab.told("no such file");
    assert_eq!(lab.status("/a"), 200);
    lab.replace("countersign.toml", &good.replace(METHODS, "methods = [\"POST\"]"));
    lab.told("is in force");
    assert_eq!(lab.status("/a"), 405);
    let records = lab.audited(&["reload"]);
    let outcomes: Vec<_> = records.iter().map(|record| record["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["refused", "refused", "refused", "refused", "refused", "in_force"]);
    assert_eq!(records[1]["config"], records[0]["config"], "the hash of the one in force");
    assert!(records[0]["reasons"][0].as_str().unwrap().contains("unknown key"));
}

#[test]
fn a_secret_is_exchanged_in_its_file_and_an_empty_or_missing_one_keeps_the_old() {
    let upstream = Upstream::ok();
    let mut lab = Lab::new(&upstream, "");
    for broken in ["", "absec_line\n"] {
        fs::write(lab.path("secret"), broken).unwrap();
        lab.told("refused");
        assert_eq!(lab.ask(head_with(SECRET, "/a")).status, 200, "{broken:?}");
    }
    fs::remove_file(lab.path("secret")).unwrap();
    lab.told("no such file");
    assert_eq!(lab.ask(head_with(SECRET, "/a")).status, 200);
    let began = Instant::now();
    lab.replace("secret", "absec_another");
    let said = lab.told("is in force");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert!(said.contains("another secret in apps.test.secrets.0.file"), "{said}");
    assert!(!said.contains("absec_"), "{said}");
    assert_eq!(lab.ask(head_with(SECRET, "/a")).code(), "signature_mismatch");
    assert_eq!(lab.ask(head_with("absec_another", "/a")).status, 200);
    // Both are good while it rolls.
    fs::write(lab.path("next"), "absec_next").unwrap();
    lab.change("[{ file = \"secret\" }]", "[{ file = \"secret\" }, { file = \"next\" }]");
    assert_eq!(lab.ask(head_with("absec_another", "/a")).status, 200);
    assert_eq!(lab.ask(head_with("absec_next", "/a")).status, 200);
    lab.change("[{ file = \"secret\" }, { file = \"next\" }]", "[{ file = \"next\" }]");
    assert_eq!(lab.ask(head_with("absec_another", "/a")).code(), "signature_mismatch");
    assert_eq!(lab.ask(head_with("absec_next", "/a")).status, 200);
    let records = lab.audited(&["secret"]);
    let of = |place: usize, member: &str| records[place][member].as_str().unwrap();
    let changes: Vec<_> = (0..records.len()).map(|place| (of(place, "event"), of(place, "key"))).collect();
    let [first, second] = ["apps.test.secrets.0.file", "apps.test.secrets.1.file"];
    assert_eq!(changes, [("exchanged", first), ("added", second), ("removed", first)]);
}

/// As Kubernetes mounts a Secret: `secret` is a link to `..data/secret`, and `..data` one to a folder that is replaced.
#[test]
fn a_mounted_secret_that_is_swapped_by_its_link_is_taken() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let mount = folder.folder.path().join("mount");
    let version = |name: &str, secret: &str| {
        let path = mount.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("secret"), secret).unwrap();
    };
    version("..1", SECRET);
    symlink("..1", mount.join("..data")).unwrap();
    symlink("..data/secret", mount.join("secret")).unwrap();
    let config = folder.folder.path().join("countersign.toml");
    let text = fs::read_to_string(&config).unwrap().replace("file = \"secret\"", "file = \"mount/secret\"");
    fs::write(&config, text).unwrap();
    let mut lab = Lab::of(folder);
    assert_eq!(lab.ask(head_with(SECRET, "/a")).status, 200);
    version("..2", "absec_second");
    symlink("..2", mount.join("..new")).unwrap();
    let began = Instant::now();
    fs::rename(mount.join("..new"), mount.join("..data")).unwrap();
    fs::remove_dir_all(mount.join("..1")).unwrap();
    lab.told("is in force");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(lab.ask(head_with("absec_second", "/a")).status, 200);
    assert_eq!(lab.ask(head_with(SECRET, "/a")).code(), "signature_mismatch");
}

#[test]
fn a_hangup_reloads_at_once_and_a_storm_of_changes_ends_with_the_last() {
    let upstream = Upstream::ok();
    let mut lab = Lab::new(&upstream, "");
    lab.running.signal("HUP");
    let said = lab.told("is in force");
    assert!(said.contains("changes=0"), "{said}");
    let text = lab.config();
    for number in 1..=40 {
        lab.replace("countersign.toml", &text.replace(METHODS, &format!("{METHODS}\nusers = [\"usr_{number}\"]")));
    }
    lab.replace("countersign.toml", &text.replace(METHODS, &format!("{METHODS}\nusers = [\"usr_Last\"]")));
    let written = Instant::now();
    while lab.status("/a") == 200 {
        assert!(written.elapsed() < SOON);
    }
    lab.replace("countersign.toml", &text);
    let written = Instant::now();
    while lab.status("/a") != 200 {
        assert!(written.elapsed() < SOON);
    }
    let reloads = lab.audited(&["reload"]).len();
    assert!((3..20).contains(&reloads), "{reloads} reloads for 43 changes");
}

/// An upstream whose answers have a head and go on until they are ended from outside.
fn endless() -> (Upstream, Arc<AtomicUsize>) {
    let open = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&open);
    let upstream = Upstream::serving(move |stream, head| {
        let text = String::from_utf8_lossy(head).to_ascii_lowercase();
        let answer: &[u8] = if text.contains("upgrade: websocket") {
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
        };
        let _ = stream.write_all(answer);
        counter.fetch_add(1, Ordering::SeqCst);
        // Until the gateway gives it up.
        let mut space = [0; 64];
        while let Ok(1..) = stream.read(&mut space) {}
        counter.fetch_sub(1, Ordering::SeqCst);
        false
    });
    (upstream, open)
}

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Holds rule 14.
#[test]
fn streams_of_whoever_is_no_longer_permitted_end_and_those_of_others_live_on() {
    let (upstream, open) = endless();
    let route = |path: &str| {
        format!(
            "[[routes]]\npath = \"{path}\"\napp = \"test\"\nupstream = \"{}\"\nwebsocket = true\n",
            upstream.origin()
        )
    };
    let mut lab = Lab::new(&upstream, &format!("{}{}", route("/kept"), route("/lost")));
    let mut clients: Vec<_> = [("/kept", ""), ("/kept", WEBSOCKET), ("/lost", ""), ("/lost", WEBSOCKET)]
        .into_iter()
        .map(|(path, more)| {
            let mut client = lab.connect();
            client.send(head_now("GET", path, more));
            assert!(!client.head().is_empty());
            client
        })
        .collect();
    let until = |count: usize| {
        let deadline = Instant::now() + Duration::from_secs(5);
        while open.load(Ordering::SeqCst) != count {
            assert!(Instant::now() < deadline, "{} are open", open.load(Ordering::SeqCst));
            std::thread::yield_now();
        }
    };
    until(4);
    let began = Instant::now();
    lab.change("path = \"/lost\"\n", "path = \"/lost\"\nusers = [\"usr_Another\"]\n");
    assert!(clients[2].is_closed(), "a broken answer, not a whole one");
    let close_frame = clients[3].exactly(4);
    assert_eq!(close_frame, [0x88, 2, 0x03, 0xe9]);
    assert!(clients[3].is_closed());
    until(2);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // Those of the other route are there still; a removed secret ends them.
    fs::write(lab.path("next"), "absec_next").unwrap();
    lab.change("[{ file = \"secret\" }]", "[{ file = \"secret\" }, { file = \"next\" }]");
    assert_eq!(open.load(Ordering::SeqCst), 2);
    lab.change("[{ file = \"secret\" }, { file = \"next\" }]", "[{ file = \"next\" }]");
    assert!(clients[0].is_closed());
    until(0);
    let ended = lab.audited(&["stream_ended"]);
    let mut said: Vec<_> =
        ended.iter().map(|record| (record["route"].as_str().unwrap(), record["code"].as_str().unwrap())).collect();
    said.sort_unstable();
    assert_eq!(
        said,
        [
            ("/kept", "signature_mismatch"),
            ("/kept", "signature_mismatch"),
            ("/lost", "user_not_allowed"),
            ("/lost", "user_not_allowed")
        ]
    );
    assert!(ended.iter().all(|record| record["user"] == USER && record["request_id"].is_string()));
}

/// An upstream that sends as much as is taken, and how many bytes of it were and how many of its connections are open.
fn flood() -> (Upstream, Arc<[AtomicUsize; 2]>) {
    let counters = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let shared = Arc::clone(&counters);
    let upstream = Upstream::serving(move |stream, head| {
        let [sent, open] = &*shared;
        let is_websocket = String::from_utf8_lossy(head).to_ascii_lowercase().contains("upgrade: websocket");
        let (head, before, behind): (&[u8], &[u8], &[u8]) = if is_websocket {
            let head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
            (head, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0], b"")
        } else {
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n", b"\r\n")
        };
        open.fetch_add(1, Ordering::SeqCst);
        let part = [before, &vec![b'x'; 0x10000], behind].concat();
        let mut written = stream.write_all(head);
        while written.is_ok() {
            written = stream.write_all(&part);
            sent.fetch_add(part.len(), Ordering::SeqCst);
        }
        open.fetch_sub(1, Ordering::SeqCst);
        false
    });
    (upstream, counters)
}

/// Holds rule 14.
#[test]
fn streams_end_whose_clients_take_nothing_of_what_they_may_no_longer_have() {
    let (upstream, counters) = flood();
    let [sent, open] = &*counters;
    let mut lab = Lab::new(&upstream, "");
    lab.change(METHODS, &format!("{METHODS}\nwebsocket = true"));
    let address = SocketAddr::from(([127, 0, 0, 1], lab.folder.port));
    let certificate = lab.path("cert.pem");
    let (leave, stays) = tokio::sync::oneshot::channel::<()>();
    let over_http2 = std::thread::spawn(move || {
        over_http2_to(address, &certificate, async |mut sender| {
            let empty = http_body_util::Empty::<bytes::Bytes>::new();
            let answer = sender.send_request(request_at("GET", "/a", empty, now())).await.unwrap();
            let _ = stays.await;
            assert!(answer.into_body().collect().await.is_err(), "a broken answer, not a whole one");
        });
    });
    let mut clients = [lab.connect(), lab.connect()];
    for (client, more) in clients.iter_mut().zip(["", WEBSOCKET]) {
        client.send(head_now("GET", "/a", more));
    }
    // Until nobody takes anything any more.
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut before = None;
    while open.load(Ordering::SeqCst) != 3 || before != Some(sent.load(Ordering::SeqCst)) {
        assert!(Instant::now() < deadline);
        before = Some(sent.load(Ordering::SeqCst));
        std::thread::sleep(Duration::from_millis(300));
    }
    let began = Instant::now();
    lab.change(METHODS, &format!("{METHODS}\nusers = [\"usr_Another\"]"));
    while open.load(Ordering::SeqCst) > 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "{} are open", open.load(Ordering::SeqCst));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // The clients are there still.
    while lab.audit_log().matches("stream_ended").count() < 3 {
        assert!(began.elapsed() < 2 * SOON, "{}", lab.audit_log());
        std::thread::sleep(Duration::from_millis(20));
    }
    leave.send(()).unwrap();
    over_http2.join().unwrap();
    drop(clients);
    let ended = lab.audited(&["stream_ended"]);
    let codes: Vec<_> = ended.iter().map(|record| record["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["user_not_allowed"; 3]);
}

#[test]
fn what_was_refused_for_a_reason_outside_the_files_is_tried_again_and_told_once() {
    let upstream = Upstream::ok();
    let mut lab = Lab::new(&upstream, "");
    let log = lab.path("state/later/access.log");
    let text = lab.config();
    lab.replace("countersign.toml", &format!("{text}[log]\naccess = \"{}\"\n", log.display()));
    lab.told("its folder does not exist");
    // It is looked at every five seconds.
    std::thread::sleep(Duration::from_secs(6));
    fs::create_dir(log.parent().unwrap()).unwrap();
    let said = lab.told("is in force");
    assert!(!said.contains("refused"), "{said}");
    assert_eq!(lab.status("/a"), 200);
    until_written(&lab, "state/later/access.log", "\"/a\"");
    let records = lab.audited(&["reload"]);
    let outcomes: Vec<_> = records.iter().map(|record| record["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["refused", "in_force"]);
}

#[test]
fn an_upload_of_whoever_is_no_longer_permitted_ends() {
    let upstream = Upstream::raw(|stream| {
        let mut space = [0; 4096];
        while let Ok(1..) = stream.read(&mut space) {}
    });
    let mut lab = Lab::new(&upstream, "");
    let mut client = lab.connect();
    client.send(head_now("POST", "/a", "Content-Type: application/octet-stream\r\nContent-Length: 1000000\r\n"));
    client.send(vec![b'x'; 1000]);
    // The service has its head: only then it is on its way.
    let deadline = Instant::now() + Duration::from_secs(5);
    while upstream_connections(&lab) == 0 {
        assert!(Instant::now() < deadline);
    }
    lab.change(METHODS, &format!("{METHODS}\nusers = [\"usr_Another\"]"));
    let answer = client.answer();
    assert_eq!((answer.status, answer.code().as_str()), (403, "user_not_allowed"));
    let ended = lab.audited(&["stream_ended"]);
    let codes: Vec<_> = ended.iter().map(|record| record["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["user_not_allowed"]);
}

#[test]
fn what_ends_for_another_reason_after_the_rules_changed_is_not_called_revoked() {
    let upstream = Upstream::raw(|stream| {
        let mut space = [0; 4096];
        while let Ok(1..) = stream.read(&mut space) {}
    });
    let mut lab = Lab::new(&upstream, "");
    let methods = "methods = [\"GET\", \"HEAD\"]";
    lab.change(METHODS, &format!("{methods}\nresponse_timeout = \"3s\""));
    let mut client = lab.connect();
    client.send(head_now("HEAD", "/a", ""));
    let deadline = Instant::now() + Duration::from_secs(5);
    while upstream_connections(&lab) == 0 {
        assert!(Instant::now() < deadline);
    }
    lab.change(methods, &format!("{methods}\nusers = [\"usr_Another\"]"));
    assert_eq!(client.answer_to("HEAD").status, 504);
    assert!(lab.audited(&["stream_ended"]).is_empty());
}

/// Decisions that the gateway has recorded so far: permitted before the upstream is asked.
fn upstream_connections(lab: &Lab) -> usize {
    let folder = lab.path("state/audit");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let text: String = entries.filter_map(|path| fs::read_to_string(path).ok()).collect();
    text.matches("\"decision\":\"permitted\"").count()
}

/// A client that shows which certificate it got, and takes any of `gw.test`.
fn certificate_of(lab: &Lab) -> Vec<u8> {
    let mut config = client_config(&lab.path("cert.pem"), &[b"http/1.1"]);
    config.resumption = rustls::client::Resumption::disabled();
    let mut client = Client::to(SocketAddr::from(([127, 0, 0, 1], lab.folder.port)), &Arc::new(config));
    client.send(head_now("GET", "/a", ""));
    assert_eq!(client.answer().status, 200);
    client.stream.conn.peer_certificates().unwrap()[0].to_vec()
}

fn another_certificate(lab: &Lab, not_after: i32) {
    let mut params = rcgen::CertificateParams::new(["gw.test".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(not_after, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    lab.replace("key.pem", &key.serialize_pem());
    lab.replace("cert.pem", &certificate.pem());
}

#[test]
fn a_certificate_is_exchanged_for_new_connections_and_a_bad_one_is_not() {
    let upstream = Upstream::ok();
    let mut lab = Lab::new(&upstream, "");
    let first = certificate_of(&lab);
    let mut old = lab.connect();
    old.send(head_now("GET", "/a", ""));
    assert_eq!(old.answer().status, 200);
    another_certificate(&lab, 2090);
    lab.told("is in force");
    let second = certificate_of(&lab);
    assert_ne!(first, second);
    old.send(head_now("GET", "/a", ""));
    assert_eq!(old.answer().status, 200);
    let good = [fs::read_to_string(lab.path("cert.pem")).unwrap(), fs::read_to_string(lab.path("key.pem")).unwrap()];
    // Half a pair, and one that has expired.
    lab.replace("key.pem", &rcgen::KeyPair::generate().unwrap().serialize_pem());
    let said = lab.told("is not the private key of the certificate");
    assert!(said.contains("refused"), "{said}");
    another_certificate(&lab, 2020);
    lab.told("this certificate expired on 2020-01-01");
    lab.replace("cert.pem", &good[0]);
    lab.replace("key.pem", &good[1]);
    lab.told("is in force");
    assert_eq!(certificate_of(&lab), second);
    // Another file, and one more certificate, for another name.
    fs::copy(lab.path("cert.pem"), lab.path("copy.pem")).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let other = rcgen::CertificateParams::new(["other.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    fs::write(lab.path("other.pem"), other.pem()).unwrap();
    fs::write(lab.path("other.key"), key.serialize_pem()).unwrap();
    lab.change("certificate = \"cert.pem\"", "certificate = \"copy.pem\"");
    let pair = "[[listener.certificates]]\ncertificate = \"other.pem\"\nprivate_key = \"other.key\"\n";
    let said = lab.change("[apps.", &format!("{pair}[apps."));
    let (own, others) = (tls::fingerprint(&second), tls::fingerprint(other.der()));
    assert!(said.contains(&others) && !said.contains(&own), "{said}");
    let records = lab.audited(&["certificate"]);
    let found: Vec<_> = records
        .iter()
        .map(|record| {
            (record["event"].as_str().unwrap(), record["key"].as_str().unwrap(), record["fingerprint"].as_str())
        })
        .collect();
    assert_eq!(
        found,
        [
            ("exchanged", "listener.certificate", Some(own.as_str())),
            ("exchanged", "listener.private_key", None),
            ("added", "listener.certificates.0.certificate", Some(others.as_str())),
            ("added", "listener.certificates.0.private_key", None),
        ]
    );
}

#[test]
fn a_client_ca_that_comes_changes_and_goes_holds_for_the_next_connection() {
    let upstream = Upstream::ok();
    let mut lab = Lab::new(&upstream, "");
    let authority = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), rcgen::Issuer::new(params, key))
    };
    let [(ours, our_issuer), (theirs, _)] = [authority(), authority()];
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["client.test".to_owned()]).unwrap();
    let client = params.signed_by(&key, &our_issuer).unwrap();
    let serves = |lab: &Lab, shows: bool| {
        let mut config = client_config(&lab.path("cert.pem"), &[b"http/1.1"]);
        if shows {
            let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let chain = vec![client.der().clone()];
            let signer = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
            let certified = rustls::sign::CertifiedKey::new(chain, signer);
            config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(certified));
        }
        let address = SocketAddr::from(([127, 0, 0, 1], lab.folder.port));
        let Ok(mut client) = Client::try_to(address, &Arc::new(config)) else { return false };
        client.stream.write_all(head_now("GET", "/a", "").as_bytes()).is_ok()
            && client.try_answer().is_some_and(|answer| answer.status == 200)
    };
    assert_eq!((serves(&lab, false), serves(&lab, true)), (true, true));
    fs::write(lab.path("clients.pem"), &ours).unwrap();
    lab.change("[listener]\n", "[listener]\nclient_ca = \"clients.pem\"\n");
    assert_eq!((serves(&lab, false), serves(&lab, true)), (false, true));
    lab.replace("clients.pem", &theirs);
    lab.told("is in force");
    assert_eq!((serves(&lab, false), serves(&lab, true)), (false, false));
    lab.change("client_ca = \"clients.pem\"\n", "");
    assert_eq!((serves(&lab, false), serves(&lab, true)), (true, true));
}

#[test]
fn a_connection_over_http2_outlives_a_reload() {
    let upstream = Upstream::ok();
    let mut lab = Lab::new(&upstream, "");
    let (address, certificate) = (SocketAddr::from(([127, 0, 0, 1], lab.folder.port)), lab.path("cert.pem"));
    over_http2_to(address, &certificate, async |mut sender| {
        let empty = http_body_util::Empty::<bytes::Bytes>::new;
        let first = sender.send_request(request_at("GET", "/a", empty(), now())).await.unwrap();
        assert_eq!(first.status(), 200);
        lab.change(METHODS, "methods = [\"POST\"]");
        // A GOAWAY would have come by then.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let second = sender.send_request(request_at("GET", "/a", empty(), now())).await.unwrap();
        assert_eq!(second.status(), 405, "over the same connection, by the new rules");
    });
}

#[test]
fn an_expired_certificate_stays_refused_however_often_it_is_looked_at() {
    let upstream = Upstream::ok();
    let mut lab = Lab::new(&upstream, "");
    another_certificate(&lab, 2020);
    lab.told("this certificate expired on 2020-01-01");
    lab.running.signal("HUP");
    lab.told("this certificate expired on 2020-01-01");
    // Half of it first, the rest when that was looked at.
    let key = fs::read_to_string(lab.path("key.pem")).unwrap();
    lab.replace("key.pem", &rcgen::KeyPair::generate().unwrap().serialize_pem());
    lab.told("is not the private key of the certificate");
    lab.replace("key.pem", &key);
    lab.told("this certificate expired on 2020-01-01");
    assert_eq!(lab.status("/a"), 200, "who knows the first one is served");
    assert_eq!(lab.audited(&["reload"]).iter().filter(|record| record["outcome"] != "refused").count(), 0);
}

#[test]
fn a_secret_that_was_exchanged_while_another_file_was_bad_is_recorded() {
    let upstream = Upstream::ok();
    let mut lab = Lab::new(&upstream, "");
    let good = lab.config();
    lab.change("version = 1", "version = 1\nversoin = 1");
    lab.replace("secret", "absec_another_0123456789abcdef");
    lab.told("is refused");
    lab.replace("countersign.toml", &good);
    let said = lab.told("is in force");
    assert!(said.contains("another secret in"), "{said}");
    assert_eq!(lab.ask(head_with("absec_another_0123456789abcdef", "/a")).status, 200);
    assert_eq!(lab.audited(&["secret"]).len(), 1);
}

#[test]
fn the_access_log_is_opened_anew_at_a_signal() {
    let upstream = Upstream::ok();
    let mut lab = Lab::new(&upstream, "[log]\naccess = \"access.jsonl\"\n");
    assert_eq!(lab.status("/first"), 200);
    until_written(&lab, "access.jsonl", "/first");
    fs::rename(lab.path("access.jsonl"), lab.path("access.jsonl.1")).unwrap();
    assert_eq!(lab.status("/between"), 200);
    until_written(&lab, "access.jsonl.1", "/between");
    lab.running.signal("USR1");
    lab.told("opened anew");
    assert_eq!(lab.status("/after"), 200);
    until_written(&lab, "access.jsonl", "/after");
    assert!(!fs::read_to_string(lab.path("access.jsonl.1")).unwrap().contains("/after"));
    // Another file is named.
    lab.change("access.jsonl", "other.jsonl");
    assert_eq!(lab.status("/moved"), 200);
    until_written(&lab, "other.jsonl", "/moved");
}

#[test]
fn a_change_is_in_force_soon_behind_the_start_and_beside_a_signal_to_open_the_access_log() {
    let upstream = Upstream::ok();
    let lab = Lab::new(&upstream, "");
    let text = lab.config();
    // The first of them comes while what is to be watched may not be watched yet.
    for (users, status) in [("\nusers = [\"usr_Other\"]", 403), ("", 200), ("\nusers = [\"usr_Third\"]", 403)] {
        lab.replace("countersign.toml", &text.replace(METHODS, &format!("{METHODS}{users}")));
        lab.running.signal("USR1");
        let written = Instant::now();
        while lab.status("/a") != status {
            assert!(written.elapsed() < SOON, "{users}");
        }
    }
}

fn until_written(lab: &Lab, name: &str, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !fs::read_to_string(lab.path(name)).is_ok_and(|text| text.contains(what)) {
        assert!(Instant::now() < deadline, "no {what} in {name}");
        std::thread::yield_now();
    }
}

/// Holds rule 14: 50 changes of the configuration and 20 of the certificate beside clients who never stop asking.
#[test]
fn no_request_is_lost_to_reloads_and_new_certificates_under_load() {
    let upstream = Upstream::ok();
    let mut lab = Lab::new(&upstream, "[limits]\nheaders = 100\n");
    let stop = Arc::new(AtomicBool::new(false));
    let (report, reports) = mpsc::channel::<Result<usize, String>>();
    let address = SocketAddr::from(([127, 0, 0, 1], lab.folder.port));
    let clients: Vec<_> = (0..6)
        .map(|number| {
            let (stop, report) = (Arc::clone(&stop), report.clone());
            let roots = [lab.path("cert.pem")];
            let tls = client_that_takes_any(&roots[0]);
            std::thread::spawn(move || {
                let mut client = Client::to(address, &tls);
                let mut answered = 0;
                while !stop.load(Ordering::Relaxed) {
                    // Some keep their connection, some make a new one each time.
                    if number % 2 == 1 {
                        client = Client::to(address, &tls);
                    }
                    client.send(head_now("GET", "/a", ""));
                    let Some(answer) = client.try_answer() else {
                        let _ = report.send(Err("no answer".to_owned()));
                        return;
                    };
                    if answer.status != 200 {
                        let _ = report.send(Err(answer.status.to_string()));
                        return;
                    }
                    answered += 1;
                }
                let _ = report.send(Ok(answered));
            })
        })
        .collect();
    let mut certificates = 0;
    for number in 0..50 {
        let (from, to) = (format!("headers = {}", 100 + number), format!("headers = {}", 101 + number));
        let said = lab.change(&from, &to);
        assert!(said.contains("is in force"), "{said}");
        if number % 5 < 2 {
            certificates += 1;
            another_certificate(&lab, 2090);
            while !lab.told("the configuration was read anew").contains("is in force") {}
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().unwrap();
    }
    drop(report);
    let answered: Vec<_> = reports.iter().collect();
    let failed: Vec<_> = answered.iter().filter_map(|report| report.as_ref().err()).collect();
    let total: usize = answered.iter().flatten().sum();
    println!("{total} requests beside 50 reloads and {certificates} certificates");
    assert!(failed.is_empty(), "{failed:?}");
    assert!(certificates == 20 && total > 500, "{total}");
}

/// The certificate is not what is tested: it changes under the client's feet.
fn client_that_takes_any(certificate: &std::path::Path) -> Arc<rustls::ClientConfig> {
    let mut config = client_config(certificate, &[b"http/1.1"]);
    config.dangerous().set_certificate_verifier(Arc::new(Any(countersign::tls::provider())));
    Arc::new(config)
}

#[derive(Debug)]
struct Any(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[test]
fn beside_the_files_that_matter_nothing_is_read_anew() {
    let upstream = Upstream::ok();
    let mut lab = Lab::new(&upstream, "");
    let folder = lab.folder.folder.path().to_owned();
    write_files(&folder.join("."), SECRET);
    for number in 0..20 {
        fs::write(folder.join(format!("other.{number}")), "x").unwrap();
    }
    lab.running.signal("HUP");
    // The files that were written anew hold another certificate.
    lab.told("is in force");
    assert!(lab.audited(&["reload"]).len() <= 2);
}
