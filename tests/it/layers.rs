//! A module uses only those that `lib.rs` lists above it.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The modules in the order of `lib.rs`.
fn modules(source: &Path) -> Vec<String> {
    let library = fs::read_to_string(source.join("lib.rs")).unwrap();
    library.lines().filter_map(|line| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned())).collect()
}

/// The files of a module: its own and those in its folder.
fn files(source: &Path, module: &str) -> Vec<PathBuf> {
    let mut files = vec![source.join(format!("{module}.rs"))];
    let mut folders = vec![source.join(module)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The modules of the library that `text` names behind `crate::`, alone or in a group.
fn used(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            used.push(first_word(rest));
            continue;
        };
        let mut depth = 0;
        let mut begins = true;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if begins && depth == 0 && c.is_alphabetic() => {
                    used.push(first_word(&group[at..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    used
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn a_module_uses_only_those_listed_above_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let modules = modules(&source);
    assert!(modules.len() > 15, "{modules:?}");
    let mut wrong = Vec::new();
    let mut uses = 0;
    for (place, module) in modules.iter().enumerate() {
        for file in files(&source, module) {
            for other in used(&fs::read_to_string(&file).unwrap()) {
                uses += 1;
                match modules.iter().position(|known| *known == other) {
                    Some(at) if at <= place => {}
                    Some(_) => wrong.push(format!("{module} uses {other}, which stands below it ({})", file.display())),
                    None => wrong.push(format!("{} names crate::{other}, which is no module", file.display())),
                }
            }
        }
    }
    assert!(uses > 50, "{uses}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn groups_and_single_names_are_found() {
    let text = "use crate::{\n    a::{B, c::D},\n    e,\n    f::{G},\n};\nfn x() { crate::h::y(); super::super::z }";
    assert_eq!(used(text), ["a", "e", "f", "h"]);
}
