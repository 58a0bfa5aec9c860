//! Each rule that the gateway promises is held by a test that says so, and the page of rules names no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

const RULES: u8 = 15;
/// Replay is for later.
const NOT_IN_FORCE: [u8; 1] = [7];

/// Every test of this folder by its name, and the rules that it says to hold.
fn tests() -> BTreeMap<String, BTreeSet<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let mut tests = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let module = path.strip_prefix(&root).unwrap().with_extension("");
                let module = module.to_str().unwrap().replace('/', "::");
                let text = fs::read_to_string(&path).unwrap();
                tests.extend(tests_of(&text).into_iter().map(|(name, rules)| (format!("{module}::{name}"), rules)));
            }
        }
    }
    tests
}

fn tests_of(text: &str) -> Vec<(String, BTreeSet<u8>)> {
    let (mut tests, mut words, mut is_test) = (Vec::new(), String::new(), false);
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("///") {
            words.push_str(comment);
        } else if line == "#[test]" {
            is_test = true;
        } else if !line.starts_with("#[") {
            if let Some(name) = line.strip_prefix("fn ").filter(|_| is_test) {
                tests.push((name.split('(').next().unwrap().to_owned(), cited(&words)));
            }
            (words, is_test) = (String::new(), false);
        }
    }
    tests
}

/// The numbers in a sentence that begins `Holds rule`.
fn cited(words: &str) -> BTreeSet<u8> {
    let sentence = words.split("Holds rule").nth(1).unwrap_or_default();
    let sentence = sentence.split(['.', ':', ';']).next().unwrap_or_default();
    sentence.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// The rows of the page under `heading`: what stands in the first cell, and the tests named in the last.
fn rows(heading: &str) -> Vec<(String, Vec<String>)> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/rules.md")).unwrap();
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).expect("the section is there");
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let named = cells[cells.len() - 1].split('`').skip(1).step_by(2).map(str::to_owned).collect();
        (cells[0].to_owned(), named)
    })
    .collect()
}

#[test]
fn each_rule_in_force_is_held_by_tests_that_say_so() {
    let tests = tests();
    assert!(tests.len() > 100, "{}", tests.len());
    for (name, rules) in &tests {
        assert!(rules.iter().all(|rule| (1..=RULES).contains(rule)), "{name} holds a rule that is none: {rules:?}");
    }
    let rows = rows("Rules");
    let numbers: Vec<u8> = rows.iter().map(|(number, _)| number.parse().unwrap()).collect();
    assert_eq!(numbers, (1..=RULES).collect::<Vec<_>>());
    for ((_, named), rule) in rows.iter().zip(numbers) {
        assert_eq!(named.is_empty(), NOT_IN_FORCE.contains(&rule), "rule {rule} is in force if tests hold it");
        for name in named {
            let rules = tests.get(name).unwrap_or_else(|| panic!("rule {rule} names {name}, which is no test"));
            assert!(rules.contains(&rule), "{name} does not say that it holds rule {rule}");
        }
    }
}

#[test]
fn each_fault_is_survived_in_a_test_that_exists() {
    let tests = tests();
    let rows = rows("Faults");
    assert!(rows.len() > 10, "{}", rows.len());
    for (fault, named) in rows {
        assert!(!named.is_empty(), "{fault}");
        for name in named {
            assert!(tests.contains_key(&name), "{fault} names {name}, which is no test");
        }
    }
}

#[test]
fn citations_are_read_from_the_comment_of_a_test() {
    let text = "/// Holds rules 1, 12\n/// and 3: so it is.\n#[test]\nfn a() {\n}\n/// Holds rule 4.\nfn b() {}\n#[test]\nfn c() {}\n";
    let read = tests_of(text);
    assert_eq!(read, [("a".to_owned(), BTreeSet::from([1, 3, 12])), ("c".to_owned(), BTreeSet::new())]);
}
