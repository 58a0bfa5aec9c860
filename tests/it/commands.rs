//! The built program: its commands, its answers and its exit codes.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStdin, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{ACCOUNT, SECRET, USER, Upstream, header, write_files};

/// The program with nothing of this process's environment but the path.
pub(crate) fn countersign() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).stdin(Stdio::null());
    command
}

fn ran(arguments: &[&str]) -> Output {
    countersign().args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A folder with a configuration for `upstream`, on a port of its own.
pub(crate) struct Folder {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) port: u16,
}

impl Folder {
    pub(crate) fn new(upstream: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_files(folder.path(), SECRET);
        let port = free_port();
        let text = format!(
            "version = 1\n[listener]\naddress = \"127.0.0.1:{port}\"\ncertificate = \"cert.pem\"\nprivate_key = \"key.pem\"\nnames = [\"gw.test\", \"127.0.0.1\"]\n\
             [apps.test]\nsecrets = [{{ file = \"secret\" }}]\naccounts = [\"{ACCOUNT}\"]\n\
             [[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{upstream}\"\nmethods = [\"GET\", \"POST\"]\n\
             [[routes]]\npath = \"/signed/\"\napp = \"test\"\nupstream = \"{upstream}\"\nmethods = [\"POST\"]\nsigned = \"body\"\n\
             [[routes]]\npath = \"/admin/\"\napp = \"test\"\nupstream = \"{upstream}\"\nmethods = [\"POST\"]\nsigned = \"body\"\nroles = [\"admin\"]\n{more}"
        );
        fs::write(folder.path().join("countersign.toml"), text).unwrap();
        Self { folder, port }
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// The gateway, once it listens.
    pub(crate) fn run(&self, stdout: Stdio) -> Running {
        let mut command = countersign();
        command.args(["run", "--config", &self.file("countersign.toml")]).stdout(stdout).stderr(Stdio::piped());
        self.started(&mut command)
    }

    /// What `command` runs, once it listens.
    pub(crate) fn started(&self, command: &mut Command) -> Running {
        let running = Running(command.spawn().unwrap());
        wait_for(self.port);
        running
    }

    /// Asks the gateway that runs with it, and expects `answer`.
    pub(crate) fn ask(&self, answer: &str) {
        let line = stdout(&signed(self, &["GET", &format!("https://127.0.0.1:{}/a", self.port)]));
        assert_eq!(curl(&line, &format!("--cacert {}", self.file("cert.pem"))), answer);
    }
}

/// A process that ends with the test.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([&format!("-{signal}"), &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            std::thread::yield_now();
        }
        panic!("it did not end");
    }
}

impl Running {
    /// Has it drain and end, and answers what it said on stderr.
    pub(crate) fn drained(mut self) -> String {
        self.signal("TERM");
        assert_eq!(self.exit_code(), Some(0));
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn wait_for(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "nothing listens on {port}");
        std::thread::yield_now();
    }
}

/// What a shell makes of a `curl` line, with `options` put behind the first word.
pub(crate) fn curl(line: &str, options: &str) -> String {
    let line = line.replacen("curl", &format!("curl --silent --show-error {options}"), 1);
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(output.status.success(), "{line}\n{}", stderr(&output));
    stdout(&output)
}

fn signed(folder: &Folder, arguments: &[&str]) -> Output {
    let config = folder.file("countersign.toml");
    let mut all = vec!["sign", "--app", "test", "--config", &config, "--user", USER, "--account", ACCOUNT];
    all.extend(arguments);
    ran(&all)
}

#[test]
fn what_sign_prints_is_accepted_for_every_carrier() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let _gateway = folder.run(Stdio::null());
    let url = |path: &str| format!("https://127.0.0.1:{}{path}", folder.port);
    fs::write(folder.file("body.json"), "{ \"amount\": 1.50,\n \"note\": \"it's\" }").unwrap();
    fs::write(folder.file("body.bin"), "just text").unwrap();
    let (json, bin) = (folder.file("body.json"), folder.file("body.bin"));
    let whole = format!("{{\"user_id\":\"{USER}\",\"amount\":1,\"account_id\":\"{ACCOUNT}\"}}");
    fs::write(folder.file("whole.json"), &whole).unwrap();
    let own = folder.file("whole.json");
    let cases: [(&[&str], &str, &str, &str); 14] = [
        (&[], "GET", "/a", "identity"),
        (&["--carrier", "headers"], "GET", "/a?x=1", "identity"),
        (&["--carrier", "query"], "GET", "/a?x=1", "identity"),
        (&["--carrier", "query"], "GET", "/a", "identity"),
        (&[], "POST", "/signed/a", "body"),
        (&["--carrier", "body"], "POST", "/signed/a", "body"),
        (&["--payload", "{\"a\": \"it's\", \"1\": 1.0}"], "POST", "/signed/a", "body"),
        (&["--payload", "{\"a\":1}", "--carrier", "headers"], "POST", "/signed/a", "body"),
        (&["--payload", "{\"a\":1}", "--carrier", "query"], "POST", "/signed/a", "body"),
        (&["--role", "admin", "--role", "ops"], "POST", "/admin/a", "body"),
        (&["--role", "admin", "--payload", "{\"a\":1}"], "POST", "/admin/a", "body"),
        (&["--body", &json], "POST", "/signed/a", "body"),
        (&["--body", &own], "POST", "/signed/a", "body"),
        (&["--body", &bin], "POST", "/a", "identity"),
    ];
    for (place, (options, method, path, covers)) in cases.into_iter().enumerate() {
        let output = signed(&folder, &[options, &[method, &url(path)]].concat());
        assert_eq!(output.status.code(), Some(0), "{options:?}: {}", stderr(&output));
        let answer = curl(&stdout(&output), &format!("--cacert {}", folder.file("cert.pem")));
        assert_eq!(answer, "ok", "{options:?} {method} {path}");
        let requests = upstream.requests();
        assert_eq!(requests.len(), place + 1);
        let head = String::from_utf8(requests[place].clone()).unwrap();
        assert_eq!(header(&head, "countersign-signed"), Some(covers), "{options:?}");
        assert_eq!(header(&head, "countersign-user"), Some(USER));
        if options.contains(&"--role") {
            assert_eq!(header(&head, "countersign-roles").map(|roles| roles.contains("admin")), Some(true));
        }
    }
    let sent = upstream.requests();
    assert!(String::from_utf8_lossy(&sent[11]).ends_with("{ \"amount\": 1.50,\n \"note\": \"it's\" }"));
    assert!(String::from_utf8_lossy(&sent[12]).ends_with(&whole));
}

#[test]
fn sign_prints_headers_and_json() {
    let folder = Folder::new("http://127.0.0.1:9", "");
    let headers = stdout(&signed(&folder, &["--at", "1790000000", "--format", "headers", "GET", "https://gw.test/a"]));
    assert!(headers.starts_with("Stripe-Signature: t=1790000000,v1="), "{headers}");
    assert!(headers.contains(&format!("Stripe-User-Id: {USER}\n")));
    let json = signed(&folder, &["--payload", "{\"b\":1.0}", "--format", "json", "POST", "https://gw.test/a"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["method"], "POST");
    assert_eq!(json["url"], "https://gw.test/a");
    assert_eq!(json["body"], format!("{{\"b\":1,\"user_id\":\"{USER}\",\"account_id\":\"{ACCOUNT}\"}}"));
    assert!(json["headers"]["Stripe-Signature"].is_string());
}

#[test]
fn sign_tells_what_cannot_be_signed() {
    let folder = Folder::new("http://127.0.0.1:9", "");
    for (arguments, said) in [
        (&["GET", "gw.test/a"][..], "not a URL"),
        (&["--payload", "[1]", "POST", "https://gw.test/a"], "not a JSON object"),
        (&["--payload", "{\"a\":1}", "GET", "https://gw.test/a"], "no body"),
        (&["--body", "/none", "POST", "https://gw.test/a"], "cannot be read"),
        (&["G ET", "https://gw.test/a"], "not a method"),
    ] {
        let output = signed(&folder, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
    let output = ran(&[
        "sign",
        "--secret-file",
        &folder.file("secret"),
        "--user",
        "bob",
        "--account",
        ACCOUNT,
        "GET",
        "https://gw.test/",
    ]);
    assert!(stderr(&output).contains("not a user id"), "{}", stderr(&output));
    fs::write(folder.file("wrong"), "whsec_0123456789").unwrap();
    let output =
        ran(&["sign", "--secret-file", &folder.file("wrong"), "--account", ACCOUNT, "GET", "https://gw.test/"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("webhook endpoint's secret") && !stderr(&output).contains("0123456789"));
}

fn explained(arguments: &[&str], capture: &[u8]) -> (Option<i32>, Value, String) {
    let mut command = countersign();
    command.arg("explain").args(arguments).args(["--format", "json"]).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin: ChildStdin = child.stdin.take().unwrap();
    // It may have refused to read on.
    let _ = stdin.write_all(capture);
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let verdict = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), verdict, stderr(&output))
}

#[test]
fn explain_judges_every_vector_as_it_expects() {
    let vectors: Value = serde_json::from_str(crate::vectors::VECTORS).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    let vectors = vectors["vectors"].as_array().unwrap();
    for vector in vectors {
        let mut arguments = vec!["--now".to_owned(), vector["now"].to_string()];
        for (place, secret) in vector["secrets"].as_array().unwrap().iter().enumerate() {
            let path = folder.path().join(place.to_string());
            fs::write(&path, secret.as_str().unwrap()).unwrap();
            arguments.extend(["--secret-file".to_owned(), path.to_string_lossy().into_owned()]);
        }
        if vector["config"]["allow_account_only"] == true {
            arguments.push("--allow-account-only".to_owned());
        }
        if vector["config"]["require_body_binding"] == true {
            arguments.extend(["--signed".to_owned(), "body".to_owned()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (code, verdict, said) = explained(&arguments, &crate::vectors::request(vector));
        let mut fitting = vec![&vector["expect"]];
        fitting.extend(vector["also_ok"].as_array().into_iter().flatten());
        if !fitting.iter().any(|expected| fits(expected, &verdict, code)) {
            wrong.push(format!("{}: {verdict} {said}", vector["name"]));
        }
    }
    assert_eq!(vectors.len(), 173);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn fits(expected: &Value, verdict: &Value, code: Option<i32>) -> bool {
    if expected["outcome"] == "reject" {
        let other = expected["reason_also_ok"].as_array().into_iter().flatten();
        return code == Some(1)
            && verdict["verdict"] == "refuse"
            && std::iter::once(&expected["reason"]).chain(other).any(|reason| *reason == verdict["code"]);
    }
    let roles: Vec<_> = expected["roles"].as_array().unwrap().iter().map(|role| role["id"].clone()).collect();
    code == Some(0)
        && verdict["verdict"] == "accept"
        && verdict["user"] == expected["user"]
        && verdict["account"] == expected["account"]
        && verdict["roles"] == Value::from(roles)
        && verdict["signed"] == expected["binding"]
}

#[test]
fn explain_tells_what_it_cannot_read() {
    let folder = Folder::new("http://127.0.0.1:9", "");
    let secret = folder.file("secret");
    for (capture, said) in [
        (&b"hello"[..], "neither raw HTTP"),
        (b"", "neither raw HTTP"),
        (b"{\"a\":1}", "no HAR file"),
        (b"curl -H x", "no URL"),
        (b"GET /a HTTP/1.1\r\nHost: gw.test", "signature_missing"),
    ] {
        let (code, verdict, error) = explained(&["--secret-file", &secret], capture);
        assert!((verdict.to_string() + &error).contains(said), "{verdict} {error}");
        assert_eq!(code, Some(if error.is_empty() { 1 } else { 2 }), "{error}");
    }
    let output = ran(&["explain", "--secret-file", &secret, "/none/request.http"]);
    assert!(stderr(&output).contains("/none/request.http"), "{}", stderr(&output));
}

#[test]
fn explain_judges_by_the_route_of_a_configuration() {
    let folder = Folder::new("http://127.0.0.1:9", "");
    let config = folder.file("countersign.toml");
    let request = |path: &str, host: &str| {
        let headers = signed(&folder, &["--at", "1790000000", "--format", "headers", "GET", "https://gw.test/"]);
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{}\r\n", stdout(&headers).replace('\n', "\r\n"))
    };
    let judged = |capture: &str, now: &str| explained(&["--config", &config, "--now", now], capture.as_bytes()).1;
    assert_eq!(judged(&request("/a", "gw.test"), "1790000000")["verdict"], "accept");
    assert_eq!(judged(&request("/a", "gw.test"), "1790000301")["code"], "timestamp_expired");
    assert_eq!(judged(&request("/a", "other.test"), "1790000000")["code"], "misdirected");
    assert_eq!(judged(&request("/a/../b", "gw.test"), "1790000000")["code"], "path_ambiguous");
    assert_eq!(judged(&request("/signed/a", "gw.test"), "1790000000")["code"], "method_not_allowed");
    // Editors take carriage returns away.
    let (_, verdict, said) =
        explained(&["--config", &config, "--now", "1790000000"], request("/a", "gw.test").replace('\r', "").as_bytes());
    assert_eq!(verdict["verdict"], "accept");
    assert!(said.contains("line feeds"), "{said}");
}

#[test]
fn a_configuration_that_is_wrong_is_told_whole_and_nothing_listens() {
    let more = "colour = \"red\"\n[limits]\nheaders = \"many\"\n[log]\naccess = \"/none/access.log\"\n";
    let folder = Folder::new("http://127.0.0.1:9", more);
    for command in ["run", "check", "manifest"] {
        let began = Instant::now();
        let output = ran(&[command, "--config", &folder.file("countersign.toml")]);
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(output.status.code(), Some(78), "{command}");
        assert!(output.stdout.is_empty());
        let said = stderr(&output);
        assert_eq!(said.matches("error: ").count(), 3, "{said}");
        assert!(said.contains("unknown key `colour`") && said.contains("countersign.toml:"), "{said}");
        assert!(!said.contains(SECRET));
    }
    assert!(TcpStream::connect(("127.0.0.1", folder.port)).is_err());
    assert_eq!(ran(&["run", "--config", "/none.toml"]).status.code(), Some(78));
}

#[test]
fn a_port_that_is_taken_is_unavailable() {
    let folder = Folder::new("http://127.0.0.1:9", "");
    let _taken = TcpListener::bind(("127.0.0.1", folder.port)).unwrap();
    let output = ran(&["run", "--config", &folder.file("countersign.toml")]);
    assert_eq!(output.status.code(), Some(69));
    assert!(stderr(&output).contains(&format!("cannot listen on 127.0.0.1:{}", folder.port)), "{}", stderr(&output));
}

#[test]
fn usage_is_exit_code_2_and_help_and_version_are_0() {
    for arguments in [&["nonsense"][..], &[], &["run", "--colour"], &["explain"], &["sign", "GET", "https://gw.test/"]]
    {
        assert_eq!(ran(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(ran(&["--help"]).status.code(), Some(0));
    assert!(stdout(&ran(&["--version"])).starts_with("countersign 0."));
}

#[test]
fn check_shows_routes_and_risks() {
    let folder = Folder::new("http://127.0.0.1:9", "");
    let output = ran(&["check", "--config", &folder.file("countersign.toml")]);
    assert_eq!(output.status.code(), Some(0));
    let said = stdout(&output);
    for part in [
        "/admin/",
        "roles admin",
        "GET, POST",
        "warning: ",
        "Local Network Access",
        "signed = \"identity\"",
        "one server",
    ] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
    let json = ran(&["check", "--format", "json", "--config", &folder.file("countersign.toml")]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["routes"].as_array().unwrap().len(), 3);
    assert!(!json["warnings"].as_array().unwrap().is_empty());
}

#[test]
fn manifest_prints_a_source_for_each_name_and_route() {
    let folder = Folder::new("http://127.0.0.1:9", "");
    let output = ran(&["manifest", "--config", &folder.file("countersign.toml")]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sources = json["ui_extension"]["content_security_policy"]["connect-src"].as_array().unwrap();
    assert!(sources.contains(&format!("https://gw.test:{}/signed/", folder.port).into()), "{sources:?}");
}

#[test]
fn a_signal_drains_and_a_second_one_ends_at_once() {
    let upstream = Upstream::serving(|stream, _| {
        let _ = stream.read(&mut [0]);
        false
    });
    let folder = Folder::new(&upstream.origin(), "");
    for signal in ["TERM", "INT"] {
        let mut gateway = folder.run(Stdio::null());
        gateway.signal(signal);
        assert_eq!(gateway.exit_code(), Some(0), "{signal}");
    }
    let mut gateway = folder.run(Stdio::null());
    let line = stdout(&signed(&folder, &["GET", &format!("https://127.0.0.1:{}/a", folder.port)]));
    let line = line.replacen("curl", &format!("exec curl --silent --cacert {}", folder.file("cert.pem")), 1);
    let _asking =
        Running(Command::new("sh").args(["-c", &line]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(10);
    while upstream.requests().is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    gateway.signal("TERM");
    // It drains, for a request runs; said before the second signal is sent.
    let mut said = BufReader::new(gateway.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line.contains("draining")));
    assert!(gateway.0.try_wait().unwrap().is_none());
    gateway.signal("TERM");
    assert_eq!(gateway.exit_code(), Some(1));
}

#[test]
fn a_closed_stdout_neither_stops_nor_slows_requests() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let mut gateway = folder.run(Stdio::piped());
    drop(gateway.0.stdout.take());
    let ask = || {
        let line = stdout(&signed(&folder, &["GET", &format!("https://127.0.0.1:{}/a", folder.port)]));
        assert_eq!(curl(&line, &format!("--cacert {}", folder.file("cert.pem"))), "ok");
    };
    let began = Instant::now();
    for _ in 0..10 {
        ask();
    }
    assert!(began.elapsed() < Duration::from_secs(20));
    let said = gateway.drained();
    assert!(said.contains("access log lines dropped"), "{said}");
}

#[test]
fn a_blocked_stdout_slows_nobody_and_what_is_lost_is_said() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let mut gateway = folder.run(Stdio::piped());
    // Nobody reads the pipe: it takes 64 KiB, and then the writer hangs in it.
    let _unread = gateway.0.stdout.take();
    let agent = "x".repeat(20_000);
    let line = stdout(&signed(&folder, &["GET", &format!("https://127.0.0.1:{}/a", folder.port)]));
    let url = format!("https://127.0.0.1:{}/a", folder.port);
    let many = line.trim_end().replace(&url, &format!("'{url}#[1-20]'"));
    let began = Instant::now();
    let answers = curl(&many, &format!("--cacert {} --user-agent {agent}", folder.file("cert.pem")));
    assert_eq!(answers.matches("ok").count(), 20);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let said = gateway.drained();
    assert!(said.contains("access log lines dropped"), "{said}");
}

#[test]
fn why_a_server_cannot_be_reached_is_told_to_the_administrator_only() {
    let folder = Folder::new(&format!("http://127.0.0.1:{}", free_port()), "");
    let gateway = folder.run(Stdio::null());
    for _ in 0..3 {
        let line = stdout(&signed(&folder, &["GET", &format!("https://127.0.0.1:{}/a", folder.port)]));
        let answer = curl(&line, &format!("--cacert {}", folder.file("cert.pem")));
        assert!(answer.contains("upstream_unreachable") && !answer.contains("refused"), "{answer}");
    }
    let said = gateway.drained();
    assert_eq!(said.matches("a server cannot be reached").count(), 1, "{said}");
    assert!(said.contains("onnection refused"), "{said}");
}

#[test]
fn an_https_upstream_is_verified_by_the_system_s_authorities_where_none_is_given() {
    let folder = tempfile::tempdir().unwrap();
    write_files(folder.path(), "unused");
    let certificate = folder.path().join("cert.pem");
    let upstream = Upstream::tls(&certificate, &folder.path().join("key.pem"));
    let served = Folder::new(&format!("https://127.0.0.1:{}", upstream.address.port()), "");
    let line = stdout(&signed(&served, &["GET", &format!("https://127.0.0.1:{}/a", served.port)]));
    for (known, expected) in [(true, "ok"), (false, "upstream_unreachable")] {
        let mut command = countersign();
        command.args(["run", "--config", &served.file("countersign.toml")]).stdout(Stdio::null()).stderr(Stdio::null());
        // The system's store, as OpenSSL's users move it.
        let store = if known { certificate.clone() } else { served.folder.path().join("cert.pem") };
        let _running = Running(command.env("SSL_CERT_FILE", store).spawn().unwrap());
        wait_for(served.port);
        let answer = curl(&line, &format!("--cacert {}", served.file("cert.pem")));
        assert!(answer.contains(expected), "{answer}");
    }
}

#[test]
fn a_signal_that_means_nothing_here_ends_nothing() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let gateway = folder.run(Stdio::null());
    gateway.signal("USR2");
    let line = stdout(&signed(&folder, &["GET", &format!("https://127.0.0.1:{}/a", folder.port)]));
    assert_eq!(curl(&line, &format!("--cacert {}", folder.file("cert.pem"))), "ok");
    let said = gateway.drained();
    assert!(said.contains("ignored a signal"), "{said}");
}

/// Holds rule 15.
#[test]
fn a_pipe_that_nobody_reads_is_no_panic() {
    let folder = Folder::new("http://127.0.0.1:9", "");
    for command in ["check", "manifest"] {
        let mut child = countersign()
            .args([command, "--config", &folder.file("countersign.toml")])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn the_access_log_goes_to_a_file() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "[log]\naccess = \"access.jsonl\"\n");
    let mut gateway = folder.run(Stdio::null());
    let line = stdout(&signed(&folder, &["GET", &format!("https://127.0.0.1:{}/a", folder.port)]));
    curl(&line, &format!("--cacert {}", folder.file("cert.pem")));
    gateway.signal("TERM");
    assert_eq!(gateway.exit_code(), Some(0));
    let log = fs::read_to_string(Path::new(&folder.file("access.jsonl"))).unwrap();
    let record: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert_eq!(record["countersign.decision"], "permitted");
    assert_eq!(record["countersign.config"].as_str().unwrap().len(), 64);
}
