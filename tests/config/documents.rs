//! The files and the page that come with the program say what the code does.

use countersign::{
    config::{
        self, AccessLog, Scrutiny,
        file::{Absent, KEYS, Kind},
    },
    limits::Limits,
    policy::Demand,
    route::Methods,
};

use super::{Folder, GOOD, changed, now, repository};

#[test]
fn the_file_of_a_first_run_loads() {
    let folder = Folder::new();
    let path = folder.put("config/countersign.toml", repository("config/countersign.toml"));
    let config =
        config::load(&path, &folder.environment(&[]), now(), Scrutiny::Files).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.listener.address, "0.0.0.0:8443".parse().unwrap());
    let route = config.routes.iter().next().unwrap();
    assert_eq!((route.pattern.as_str(), route.policy.signed), ("/shipping/orders/", Demand::Body));
}

#[test]
fn the_example_file_loads() {
    let folder = Folder::new();
    folder.load(repository("examples/countersign.toml"), &[]).unwrap_or_else(|errors| panic!("{errors}"));
}

#[test]
fn the_reference_file_loads_and_shows_the_defaults_of_the_code() {
    let folder = Folder::new();
    let reference = folder.load(repository("config/reference.toml"), &[]).unwrap_or_else(|errors| panic!("{errors}"));
    let bare = folder.load(GOOD, &[]).unwrap();
    let example = Limits { connections_per_address: Some(1000), ..Limits::default() };
    assert_eq!((&reference.limits, &bare.limits), (&example, &Limits::default()));
    assert_eq!(reference.listener.trusted_proxies, bare.listener.trusted_proxies);
    assert_eq!(reference.listener.proxy_protocol, bare.listener.proxy_protocol);
    assert_eq!(reference.state_directory, bare.state_directory);
    assert_eq!((&reference.access_log, &bare.access_log), (&AccessLog::Stdout, &AccessLog::Stdout));
    assert_eq!(reference.listener.names, bare.listener.names);
    let (one, other) = (&reference.upstreams[0], &bare.upstreams[0]);
    assert_eq!(one.connect_timeout, other.connect_timeout);
    assert_eq!(one.response_timeout, other.response_timeout);
    assert_eq!(one.idle_timeout, other.idle_timeout);
    assert_eq!((one.max_in_flight, one.max_queued), (other.max_in_flight, other.max_queued));
    let full = reference.routes.iter().next().unwrap();
    let plain = folder.load(changed("signed = \"body\"\n", ""), &[]).unwrap();
    let plain = plain.routes.iter().next().unwrap();
    assert_eq!((&full.methods, &plain.methods), (&Methods::standard(), &Methods::standard()));
    assert_eq!((full.policy.signed, plain.policy.signed), (Demand::Identity, Demand::Identity));
    assert_eq!(format!("{:?}", full.scheme).matches("300s").count(), 1);
    assert_eq!(format!("{:?}", plain.scheme).matches("300s").count(), 1);
    assert!(full.request_headers.set.iter().any(|(name, value)| name == "authorization" && value.is_sensitive()));
}

#[test]
fn the_reference_file_of_acme_loads_and_shows_the_defaults_of_the_code() {
    let folder = Folder::new();
    let text = repository("config/reference-acme.toml");
    let reference = folder.load(&text, &[]).unwrap_or_else(|errors| panic!("{errors}")).acme.unwrap();
    let bare: String =
        text.lines().filter(|line| !line.starts_with("directory = ")).map(|line| line.to_owned() + "\n").collect();
    assert_eq!(reference, folder.load(bare, &[]).unwrap().acme.unwrap());
}

/// Every key of a TOML file in the form of [`KEYS`], with its value.
fn written_keys(text: &str) -> Vec<(String, toml::Value)> {
    fn walk(path: &str, value: &toml::Value, found: &mut Vec<(String, toml::Value)>) {
        let names = KEYS.iter().any(|key| key.path == path && key.kind == Kind::Names);
        let tables: Vec<&toml::Table> = match value {
            toml::Value::Table(table) => vec![table],
            toml::Value::Array(items) => items.iter().filter_map(toml::Value::as_table).collect(),
            _ => Vec::new(),
        };
        for (name, value) in tables.into_iter().flatten() {
            let path = format!("{path}{}{}", if path.is_empty() { "" } else { "." }, if names { "NAME" } else { name });
            found.push((path.clone(), value.clone()));
            walk(&path, value, found);
        }
    }
    let mut found = Vec::new();
    walk("", &toml::Value::Table(text.parse().unwrap()), &mut found);
    found
}

#[test]
fn the_reference_files_have_exactly_the_keys_that_are_known_each_with_a_comment() {
    let texts = ["config/reference.toml", "config/reference-acme.toml"].map(repository);
    let written: Vec<_> = texts.iter().flat_map(|text| written_keys(text)).collect();
    for (path, _) in &written {
        assert!(KEYS.iter().any(|key| key.path == path), "{path} is not known");
    }
    for key in KEYS {
        // Of a reference to a secret that there is once, one form is shown.
        if let Some(reference) = key.path.strip_suffix(".env").or(key.path.strip_suffix(".credential"))
            && reference == "inbox.postgres"
        {
            continue;
        }
        let Some((_, value)) = written.iter().find(|(path, _)| path == key.path) else {
            panic!("{} is missing in config/reference.toml", key.path)
        };
        if let Absent::Value(default) = key.default {
            let default: toml::Table = format!("x = {default}").parse().unwrap();
            assert_eq!(*value, default["x"], "{}", key.path);
        }
    }
    let lines: Vec<&str> = texts.iter().flat_map(|text| text.lines()).collect();
    for pair in lines.windows(2) {
        let [before, line] = pair else { continue };
        assert!(line.is_empty() || line.starts_with('#') || before.starts_with("# "), "no comment: {line}");
    }
}

#[test]
fn the_documentation_has_exactly_the_keys_that_are_known() {
    let text = repository("docs/reference/configuration.md");
    let mut table = String::new();
    let mut described = Vec::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let name = heading.trim_matches(['`', '[', ']']);
            table = if heading.starts_with('`') { format!("{name}.") } else { String::new() };
        }
        let cells: Vec<&str> = line.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        if let [key, kind, default, meaning] = cells[..]
            && key.starts_with('`')
        {
            assert!(meaning.ends_with('.'), "{line}");
            described.push((
                format!("{table}{}", key.trim_matches('`')),
                kind.to_owned(),
                default.trim_matches('`').to_owned(),
            ));
        }
    }
    let kind = |kind| match kind {
        Kind::Table => "table",
        Kind::Names => "table of names",
        Kind::Tables => "list of tables",
        Kind::Text => "string",
        Kind::Texts => "list of strings",
        Kind::Count => "integer",
        Kind::Flag => "boolean",
        Kind::Duration => "duration",
        Kind::Size => "size",
    };
    let default = |absent| match absent {
        Absent::Required => "required",
        Absent::Nothing => "none",
        Absent::Value(value) => value,
    };
    let mut known: Vec<_> = KEYS
        .iter()
        .map(|key| (key.path.to_owned(), kind(key.kind).to_owned(), default(key.default).to_owned()))
        .collect();
    known.sort();
    described.sort();
    assert_eq!(described, known);
}

#[test]
fn sockets_whose_paths_differ_by_case_are_two_upstreams_and_such_hosts_one() {
    let folder = Folder::new();
    let route = |path: &str, upstream: &str| {
        format!("[[routes]]\npath = \"{path}\"\napp = \"shipping\"\nupstream = \"{upstream}\"\n")
    };
    let origins =
        ["unix:/run/Orders.sock", "unix:/run/orders.sock", "http://Orders.intranet", "http://orders.intranet"];
    let routes: String = origins.iter().zip('a'..).map(|(origin, name)| route(&format!("/{name}/"), origin)).collect();
    let config = folder.load(format!("{GOOD}{routes}"), &[]).unwrap_or_else(|errors| panic!("{errors}"));
    let servers: Vec<_> = config.upstreams.iter().map(|upstream| upstream.servers[0].to_string()).collect();
    assert_eq!(
        servers,
        ["http://10.0.4.7:8080", "unix:/run/Orders.sock", "unix:/run/orders.sock", "http://orders.intranet"]
    );
}
