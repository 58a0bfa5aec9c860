//! No secret comes out, wherever somebody pasted it.

use std::io::Write as _;

use countersign::{
    command::check::{self, Format},
    config::{self, Scrutiny},
};
use proptest::prelude::*;

use super::{Folder, SECRET, changed, now, repository};

/// Everything that is ever printed about a file: errors, warnings, the table and the JSON.
fn printed(folder: &Folder, text: &str) -> String {
    let path = folder.put("countersign.toml", text);
    let mut all = Vec::new();
    for format in [Format::Text, Format::Json] {
        let mut errors = Vec::new();
        check::run(&path, false, format, &folder.environment(&[]), &mut all, &mut errors);
        all.extend(errors);
    }
    match config::load(&path, &folder.environment(&[]), now(), Scrutiny::Files) {
        Ok(config) => write!(all, "{:?}", config.warnings),
        Err(errors) => write!(all, "{errors}{errors:?}"),
    }
    .unwrap();
    String::from_utf8(all).unwrap()
}

/// Offsets in `text` at which something could be pasted: every border of a word.
fn borders(text: &str) -> Vec<usize> {
    let mut found = vec![0, text.len()];
    let inside = |c: char| c.is_alphanumeric() || c == '_';
    for (at, c) in text.char_indices() {
        let before = text[..at].chars().next_back().unwrap_or(' ');
        if inside(c) != inside(before) || c == '\n' {
            found.push(at);
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// A secret that was pasted anywhere, in place of anything, does not come out, and nor does its length: one of
    /// another length gives the same words.
    #[test]
    fn no_secret_and_no_length_of_one_is_shown_wherever_it_was_pasted(
        from in any::<prop::sample::Index>(),
        taken in 0_usize..3,
        prefix in prop::sample::select(vec!["absec_", "whsec_", "sk_live_", "rk_test_"]),
        before in prop::sample::select(vec!["", "\"", "'", "\"\"\"", " ", "# ", "\n", "x = \"", "secrets = [\""]),
        after in prop::sample::select(vec!["", "\"", "'", "\"\"\"", " ", "\n", " = 1\n", "\", 5, x = ]"]),
    ) {
        let folder = Folder::new();
        let base = repository("config/reference.toml").lines().filter(|line| !line.starts_with('#')).fold(String::new(), |t, l| t + l + "\n");
        let borders = borders(&base);
        let at = from.index(borders.len());
        let (from, to) = (borders[at], borders[(at + taken).min(borders.len() - 1)].max(borders[at]));
        let pasted = |secret: &str| format!("{}{before}{prefix}{secret}{after}{}", &base[..from], &base[to..]);
        let short = printed(&folder, &pasted("Qz7Xw"));
        let long = printed(&folder, &pasted(&"Qz7Xw".repeat(9)));
        prop_assert!(!short.to_lowercase().contains("qz7xw"), "{short}");
        prop_assert_eq!(short, long);
    }

    /// What stands under `secrets` is not shown either, whatever it looks like.
    #[test]
    fn a_literal_under_secrets_is_never_shown(
        place in 0_usize..8,
        quote in prop::sample::select(vec!["\"", "'", "\"\"\"", "'''", ""]),
        tail in prop::sample::select(vec!["", "\n", " # Qz7Xw", "]]", "\n]\n", ", 17"]),
        broken in any::<bool>(),
    ) {
        let folder = Folder::new();
        let shown = |secret: &str| {
            let value = format!("{quote}{secret}{quote}");
            let line = match place {
                0 => format!("secrets = [{value}{tail}]"),
                1 => format!("secrets = {value}{tail}"),
                2 => format!("secrets = [\n  {value},\n  5{tail}\n]"),
                3 => format!("secrets = [{{ file = \"a\" }}, {value}, 5{tail}]"),
                4 => format!("secrets = [{{ value = {value} }}, {value}{tail}]"),
                5 => format!("secret = {value}{tail}"),
                6 => format!("secrets = [{{ file = \"a\", key = {value}, nv = 1 }}{tail}]"),
                _ => format!("scerets = [{value}{tail}]"),
            };
            let text = changed("secrets = [{ file = \"secrets/shipping.absec\" }]", &line);
            printed(&folder, &if broken { text.replace("signed = ", "signed = = ") } else { text })
        };
        let (short, long) = (shown("Qz7Xw"), shown(&"Qz7Xw".repeat(9)));
        prop_assert!(!short.contains("Qz7Xw"), "{short}");
        prop_assert_eq!(short, long);
    }
}

/// A label of a host name has 63 characters at the most: a secret that fits into one would be taken, a longer one not.
#[test]
fn a_secret_in_place_of_a_host_name_is_refused_whatever_its_length() {
    let folder = Folder::new();
    let base = repository("config/reference.toml");
    for line in ["server_name = ", "names = [", "servers = ["] {
        let value = base.lines().find(|text| text.starts_with(line)).unwrap();
        let shown = |secret: &str| {
            let put = match line {
                "server_name = " => format!("server_name = \"{secret}\""),
                "names = [" => format!("names = [\"{secret}\"]"),
                _ => format!("servers = [\"https://{secret}\"]"),
            };
            printed(&folder, &base.replacen(value, &put, 1))
        };
        let (short, long) = (shown("absec_Qz7Xw"), shown(&format!("absec_{}", "Qz7Xw".repeat(20))));
        assert!(short.contains("error: ") && !short.to_lowercase().contains("qz7xw"), "{short}");
        assert_eq!(short, long);
    }
}

#[test]
fn a_loaded_configuration_prints_no_secret() {
    let folder = Folder::new();
    let config = folder.load(repository("config/reference.toml"), &[]).unwrap();
    let printed = format!("{config:?}");
    for secret in [SECRET, "absec_next", "absec_of_the_reports", "good news", "key of the orders"] {
        assert!(!printed.contains(secret), "{secret}");
    }
}
