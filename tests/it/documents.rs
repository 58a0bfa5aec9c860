//! What the documentation says of refusals, headers and the log is what the gateway does.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use countersign::rejection::Code;

use crate::support::{Gateway, NOW, USER, Upstream, posted, signed_body, signed_head};

pub(crate) fn repository(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the tables of a page, each as its cells.
fn rows(page: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim_matches(['|', ' ']).to_owned()).collect()
    };
    page.lines().filter(|line| line.starts_with("| `")).map(cells).collect()
}

#[test]
fn the_reference_lists_every_code_with_its_status_and_meaning() {
    let described: Vec<_> = rows(&repository("docs/reference/refusals.md"))
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone(), row[2].clone()))
        .collect();
    let known: Vec<_> = Code::ALL
        .iter()
        .map(|code| (format!("`{}`", code.as_str()), code.status().as_u16().to_string(), code.meaning().to_owned()))
        .collect();
    assert_eq!(described, known);
}

#[test]
fn the_reference_lists_every_field_of_the_access_log() {
    let upstream = Upstream::ok();
    let to = upstream.origin();
    let gateway = Gateway::with(&format!(
        "[[routes]]\npath = \"/\"\napp = \"test\"\nupstream = \"{to}\"\n\
         [[webhooks]]\npath = \"/in\"\nmode = \"direct\"\nsecrets = [{{ file = \"whsec\" }}]\ndeliver = [{{ name = \"in\", to = \"{to}\" }}]\n"
    ));
    let event = r#"{"id":"evt_1","type":"invoice.paid","livemode":true}"#;
    assert_eq!(gateway.ask(posted("/in", event, NOW)).status, 200);
    let body = format!(
        r#"{{"stripe_roles":[{{"type":"builtIn","id":"admin","name":"N"}}],"user_id":"{USER}","account_id":"acct_Test0001"}}"#
    );
    gateway.ask(signed_body("POST", "/a", &body).replace("Host:", "User-Agent: x\r\nHost:"));
    gateway.ask("GET /a HTTP/1.1\r\nHost: gw.test\r\n\r\n");
    let written: BTreeSet<String> =
        gateway.records(3).iter().flat_map(|record| record.as_object().unwrap().keys().cloned()).collect();
    let described: BTreeSet<String> = rows(&repository("docs/reference/access-log.md"))
        .into_iter()
        .filter(|row| row.len() == 3)
        .map(|row| row[0].trim_matches('`').to_owned())
        .collect();
    assert_eq!(written, described);
}

#[test]
fn the_headers_that_are_said_to_be_removed_are() {
    let page = repository("docs/reference/headers.md");
    let (_, removed) = page.split_once("## What is removed").unwrap();
    let list = removed.split_once("- **").unwrap().1;
    let names: Vec<String> = list
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|name| name.replace('*', "-Any"))
        .filter(|name| {
            !["Host", "Content-Length", "Transfer-Encoding", "Expect", "Connection", "Stripe-Signature"]
                .contains(&name.as_str())
        })
        .filter(|name| name != "X-" && !name.starts_with("Stripe-User") && !name.starts_with("Stripe-Account"))
        .collect();
    assert!(names.len() > 80, "{names:?}");
    let upstream = Upstream::ok();
    let gateway = Gateway::to(&upstream);
    for chunk in names.chunks(60) {
        let forged = chunk.iter().fold(String::new(), |all, name| all + name + ": forged\r\n");
        let answer = gateway.ask(signed_head("GET", "/a", &forged));
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    }
    for request in upstream.requests() {
        let text = String::from_utf8(request).unwrap();
        let kept: Vec<_> = text.lines().filter(|line| line.contains("forged")).collect();
        assert!(kept.is_empty(), "{kept:?}");
    }
}

/// Every page of the repository.
fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md")];
    let mut folders: Vec<_> =
        ["docs", "examples", "benches", "fuzz", "certs"].iter().map(|name| root.join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir()
                && !["node_modules", "target", "corpus", "artifacts"].iter().any(|skipped| name == *skipped)
            {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

#[test]
fn links_lead_somewhere() {
    let mut links = 0;
    let mut dead = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap().replace("]\n(", "](");
        for part in text.split("](").skip(1) {
            let target = part.split(')').next().unwrap().split_whitespace().next().unwrap_or_default();
            let target = target.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            if !page.parent().unwrap().join(target).exists() {
                dead.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(links > 20, "{links}");
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}

#[test]
fn the_command_line_page_has_every_command_and_option() {
    let page = repository("docs/reference/command-line.md");
    let help = |arguments: &[&str]| {
        let ran = std::process::Command::new(env!("CARGO_BIN_EXE_countersign")).args(arguments).output().unwrap();
        String::from_utf8(ran.stdout).unwrap()
    };
    let commands: Vec<String> = help(&["--help"])
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .map(|line| line.split_whitespace().next().unwrap().to_owned())
        .filter(|name| name != "help")
        .collect();
    assert!(commands.len() >= 6, "{commands:?}");
    for command in &commands {
        let section =
            page.split_once(&format!("\n## {command}\n")).unwrap_or_else(|| panic!("no section on {command}")).1;
        let section = section.split("\n## ").next().unwrap();
        let text = help(&[command, "--help"]);
        let options =
            text.split(|c: char| c.is_whitespace() || ",=[]".contains(c)).filter(|word| word.starts_with("--"));
        for option in options.filter(|option| *option != "--help") {
            assert!(section.contains(option), "{command} {option} is not described");
        }
    }
}
