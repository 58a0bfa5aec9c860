//! Names of upstreams whose addresses are bad, with a hosts file of our own for the built program.

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
};

use crate::{
    commands::{Folder, Running},
    streams::head_now,
    support::{Client, client_config},
};

/// The gateway of `folder`, for which `hosts` is /etc/hosts.
fn run_with_hosts(folder: &Folder, hosts: &str) -> Running {
    fs::write(folder.file("hosts"), hosts).unwrap();
    let script = "mount --bind \"$1\" /etc/hosts && exec \"$2\" run --config \"$3\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", &folder.file("hosts"), env!("CARGO_BIN_EXE_countersign")]);
    command.arg(folder.file("countersign.toml")).stdout(Stdio::null()).stderr(Stdio::piped());
    folder.started(&mut command)
}

/// Fault: a name that comes to lead where machines get their credentials.
#[test]
fn a_name_that_leads_to_a_link_local_address_is_refused_when_it_is_dialled() {
    let folder = Folder::new("http://internal.test:8080", "");
    let gateway = run_with_hosts(&folder, "169.254.169.254 internal.test\n");
    let tls = Arc::new(client_config(&folder.folder.path().join("cert.pem"), &[b"http/1.1"]));
    let mut client = Client::to(SocketAddr::from(([127, 0, 0, 1], folder.port)), &tls);
    client.send(head_now("GET", "/a", ""));
    assert_eq!(client.answer().status, 502);
    drop(client);
    let said = gateway.drained();
    assert!(said.contains("the name leads to a link-local or metadata address"), "{said}");
}
