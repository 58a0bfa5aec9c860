//! How mistakes are told.

use std::path::PathBuf;

use countersign::config::{self, Environment, Scrutiny};

use super::{Folder, GOOD, changed, now, place_of};

#[test]
fn an_error_is_shown_as_a_compiler_would() {
    let folder = Folder::new();
    let errors = folder.errors(changed("upstream = \"orders\"", "upstream = \"orders\"\nupstrem = \"orders\""));
    let file = folder.0.path().join("countersign.toml");
    let expected = format!(
        "error: unknown key `upstrem`\n  --> {}:19:1\n   |\n19 | upstrem = \"orders\"\n   | ^^^^^^^\n   = help: did you mean \
         `upstream`?\n",
        file.display()
    );
    assert_eq!(errors.to_string(), expected);
    assert_eq!(errors.len(), 1);
    let only = errors.iter().next().unwrap();
    assert_eq!((only.line(), only.column(), &*only.file), (Some(19), Some(1), &*file.to_string_lossy()));
    assert_eq!(only.suggestion.as_deref(), Some("did you mean `upstream`?"));
}

#[test]
fn all_errors_of_a_file_are_told_at_once() {
    let folder = Folder::new();
    let text = r#"version = 3
colour = "red"
[listener]
address = "nowhere"
certificate = "certs/none.pem"
[apps.shipping]
secrets = ["absec_0123456789abcdef"]
tolerance = "1h"
[upstreams.orders]
servers = ["orders"]
max_queued = -1
[[routes]]
path = "orders"
app = "shippin"
upstream = "order"
methods = ["get"]
[[routes]]
path = "/a"
upstream = 5
sign = "body"
[limits]
headers = "100"
"#;
    let errors = folder.errors(text);
    let lines: Vec<_> = errors.iter().filter_map(config::Problem::line).collect();
    assert_eq!(lines, [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 14, 15, 16, 17, 19, 20, 22], "{errors}");
    assert_eq!(errors.to_string().matches("error: ").count(), errors.len());
}

#[test]
fn mistakes_of_syntax_are_told_with_their_place() {
    let folder = Folder::new();
    for (from, to, part, message) in [
        ("version = 1", "version = = 1", "= 1", "extra `=`"),
        ("app = \"shipping\"", "app = shipping", "shipping\nupstream", "must be quoted"),
        ("version = 1", "version = 1\nversion = 1", "version = 1\n\n", "duplicate key"),
    ] {
        let text = changed(from, to);
        let errors = folder.errors(&text);
        let only = errors.iter().next().unwrap();
        assert_eq!(
            (errors.len(), only.line(), only.column()),
            (1, Some(place_of(&text, part).0), Some(place_of(&text, part).1)),
            "{errors}"
        );
        assert!(only.message.contains(message), "{errors}");
    }
    let two = changed("version = 1", "version = = 1").replace("app = \"shipping\"", "app = shipping");
    assert_eq!(folder.errors(two).len(), 2);
    assert_eq!(
        folder.errors(b"version = 1\na = \"\xff\"").iter().map(|p| (p.line(), p.column())).next(),
        Some((Some(2), Some(6)))
    );
    let deep = format!("{GOOD}x = {}", "[".repeat(100_000));
    assert!(folder.load(deep, &[]).is_err());
}

#[test]
fn columns_are_characters_and_line_ends_of_either_kind_are_understood() {
    let folder = Folder::new();
    let windows = format!("\u{feff}{}", GOOD.replace('\n', "\r\n"));
    folder.load(&windows, &[]).unwrap_or_else(|errors| panic!("{errors}"));
    let errors =
        folder.errors(windows.replace("version = 1", "versio = 1").replace("signed = ", "\t'größe' = 1\r\nsigned = "));
    let places: Vec<_> = errors.iter().map(|p| (p.line().unwrap(), p.column().unwrap())).collect();
    assert_eq!(places, [(1, 1), (1, 1), (19, 2)], "{errors}");
    assert!(errors.to_string().contains("19 |     'größe' = 1\n   |     ^^^^^^^\n"), "{errors}");
    let inline = changed("signed = \"body\"", "response_headers = { remove = [\"é\", \"Host\"] }");
    let columns: Vec<_> = folder.errors(inline).iter().map(|p| p.column().unwrap()).collect();
    assert_eq!(columns, [32, 37]);
}

#[test]
fn a_missing_file_is_one_clear_error() {
    let folder = Folder::new();
    let path = folder.0.path().join("none.toml");
    let errors = config::load(&path, &Environment::default(), now(), Scrutiny::Files).unwrap_err();
    let text = errors.to_string();
    assert_eq!(errors.len(), 1);
    assert!(text.starts_with("error: the configuration cannot be read: no such file\n  --> "), "{text}");
    assert!(text.contains("none.toml\n   = help: name the file with --config"), "{text}");
}

#[test]
fn the_file_is_searched_in_four_places() {
    let with = |value: &str| Environment::from_iter([("COUNTERSIGN_CONFIG".to_owned(), value.to_owned())]);
    assert_eq!(config::default_path(Some("a.toml".into()), &with("b.toml")), PathBuf::from("a.toml"));
    assert_eq!(config::default_path(None, &with("b.toml")), PathBuf::from("b.toml"));
    assert_eq!(config::default_path(None, &with("")), PathBuf::from("config/countersign.toml"));
}
