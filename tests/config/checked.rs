//! `countersign check`.

use std::{io::Write, time::SystemTime};

use countersign::{
    clock,
    command::check::{self, Format},
};

use super::{Folder, GOOD, changed};

#[test]
fn check_shows_a_table_of_routes_and_the_warnings() {
    let folder = Folder::new();
    let more = "methods = [\"POST\"]\nroles = [\"admin\"]\nusers = [\"usr_1\"]\nupstream_path = \"/api/\"\n\n[[routes]]\npath = \"/\"\napp = \"shipping\"\n\
                upstream = \"http://b:1\"\n";
    let path = folder.put("countersign.toml", format!("{GOOD}{more}"));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = check::run(&path, false, Format::Text, &folder.environment(&[]), &mut out, &mut err);
    let out = String::from_utf8(out).unwrap();
    assert_eq!((code, err.as_slice()), (0, &b""[..]));
    let lines: Vec<Vec<&str>> =
        out.lines().map(|line| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect()).collect();
    assert_eq!(lines[0], ["PATH", "METHODS", "APP", "ACCOUNTS", "WHO", "SIGNED", "UPSTREAM", "UPSTREAM PATH"]);
    assert_eq!(
        lines[1],
        [
            "/shipping/orders/",
            "POST",
            "shipping",
            "1",
            "roles admin; users usr_1",
            "body",
            "orders -> http://10.0.4.7:8080, http://10.0.4.8:8080",
            "/api/",
        ]
    );
    assert_eq!(lines[2], ["/", "GET, HEAD, POST", "shipping", "1", "any user", "identity", "http://b:1", "as it came"]);
    assert!(out.contains("warning: this route takes every path"), "{out}");
    assert!(out.contains("countersign.toml:26: routes.1.path\n"), "{out}");

    let mut out = Vec::new();
    assert_eq!(check::run(&path, false, Format::Json, &folder.environment(&[]), &mut out, &mut Vec::new()), 0);
    let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(json["routes"][0]["servers"][1], "http://10.0.4.8:8080");
    assert_eq!(
        (&json["routes"][0]["accounts"], &json["routes"][1]["upstream_path"]),
        (&1.into(), &serde_json::Value::Null)
    );
    assert_eq!((&json["warnings"][0]["key"], &json["warnings"][0]["line"]), (&"routes.1.path".into(), &26.into()));
}

#[test]
fn check_shows_each_certificate_and_how_long_it_is_good() {
    let folder = Folder::new();
    let more = "[[listener.certificates]]\ncertificate = \"certs/other.pem\"\nprivate_key = \"certs/other.key\"\n\
                [[listener.certificates]]\ncertificate = \"certs/old.pem\"\nprivate_key = \"certs/foreign.key\"\n";
    let path = folder.put("countersign.toml", changed("[apps", &format!("{more}[apps")));
    let run = |format| {
        let mut out = Vec::new();
        assert_eq!(check::run(&path, false, format, &folder.environment(&[]), &mut out, &mut Vec::new()), 0);
        String::from_utf8(out).unwrap()
    };
    let days = |until: i64| (until - clock::unix_seconds(SystemTime::now())).div_euclid(86_400);
    let (late, past) = (days(3_786_912_000), days(1_609_459_200));
    let text = run(Format::Text);
    let (_, text) = text.split_once("\n\n").unwrap();
    let lines: Vec<_> =
        text.lines().take(4).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        lines,
        [
            "CERTIFICATE FROM UNTIL DAYS LEFT".to_owned(),
            format!("gateway.example.com files 2090-01-01 {late}"),
            format!("other.example.com, *.apps.example.com files 2090-01-01 {late}"),
            format!("gateway.example.com files 2021-01-01 {past}"),
        ]
    );
    let json: serde_json::Value = serde_json::from_str(&run(Format::Json)).unwrap();
    let other = &json["certificates"][1];
    assert_eq!(other["names"], serde_json::json!(["other.example.com", "*.apps.example.com"]));
    assert_eq!((&other["from"], &other["not_after"]), (&"files".into(), &"2090-01-01T00:00:00Z".into()));
    assert_eq!(other["fingerprint"].as_str().map(str::len), Some(64));
    assert_eq!((&other["days_left"], &json["certificates"][2]["days_left"]), (&late.into(), &past.into()));
}

#[test]
fn check_tells_what_the_loader_tells_and_ends_with_78() {
    let folder = Folder::new();
    let text = changed("app = \"shipping\"", "app = \"shiping\"");
    let errors = folder.errors(&text).to_string();
    let path = folder.put("countersign.toml", text);
    let run = |format| {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert_eq!(check::run(&path, false, format, &folder.environment(&[]), &mut out, &mut err), 78);
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    };
    assert_eq!(run(Format::Text), (String::new(), errors));
    let (json, nothing) = run(Format::Json);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(nothing, "");
    assert_eq!((&json["errors"][0]["line"], &json["errors"][0]["column"]), (&17.into(), &7.into()));
    assert_eq!(json["errors"][0]["message"], "no app is called `shiping`");
    assert_eq!(json["errors"][0]["suggestion"], "did you mean `shipping`?");
}

#[test]
fn a_strict_check_resolves_the_names_of_upstreams() {
    let folder = Folder::new();
    let run = |text: &str, strict| {
        let path = folder.put("countersign.toml", text);
        let mut err = Vec::new();
        let code = check::run(&path, strict, Format::Text, &folder.environment(&[]), &mut Vec::new(), &mut err);
        (code, String::from_utf8(err).unwrap())
    };
    assert_eq!(run(GOOD, true).0, 0);
    let unknown = changed("http://10.0.4.8:8080", "http://nowhere.invalid");
    assert_eq!(run(&unknown, false).0, 0);
    let (code, told) = run(&unknown, true);
    assert_eq!(code, 78);
    assert!(told.contains("`http://nowhere.invalid` cannot be resolved") && told.contains(":13:36\n"), "{told}");
}

/// Somebody who stopped reading.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let folder = Folder::new();
    for (text, code) in [(GOOD, 0), ("", 78)] {
        let path = folder.put("countersign.toml", text);
        for format in [Format::Text, Format::Json] {
            assert_eq!(check::run(&path, false, format, &folder.environment(&[]), &mut Closed, &mut Closed), code);
        }
    }
}
