//! Names of upstreams whose addresses are bad, with a hosts file of our own for the built program.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    commands::{Folder, Running},
    streams::head_now,
    support::{Client, Upstream, client_config},
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

/// A service at `address` that answers with `name`, on every connection for as long as it lasts.
fn named(address: [u8; 4], port: u16, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((std::net::Ipv4Addr::from(address), port)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut got = Vec::new();
                while Upstream::read_until(&mut stream, &mut got, b"\r\n\r\n") {
                    got.clear();
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
        }
    });
    address
}

/// Fault: address change, DNS failure: both are followed while requests keep coming, and hurt no other route.
#[test]
fn a_change_of_a_name_s_address_is_followed_and_its_end_is_told_on_its_own_route_only() {
    let first = named([127, 0, 0, 2], 0, "first");
    let second = named([127, 0, 0, 3], first.port(), "second");
    let more = format!(
        "[upstreams.moving]\nservers = [\"http://moving.test:{}\"]\ndns_ttl = \"400ms\"\n\
         [[routes]]\npath = \"/moving\"\napp = \"test\"\nupstream = \"moving\"\n",
        first.port()
    );
    let folder = Folder::new(&format!("http://{second}"), &more);
    let _gateway = run_with_hosts(&folder, "127.0.0.2 moving.test\n");
    let tls = Arc::new(client_config(&folder.folder.path().join("cert.pem"), &[b"http/1.1"]));
    let mut client = Client::to(SocketAddr::from(([127, 0, 0, 1], folder.port)), &tls);
    let mut ask = |path: &str| {
        client.send(head_now("GET", path, ""));
        let answer = client.answer();
        (answer.status, String::from_utf8(answer.body).unwrap())
    };
    for _ in 0..5 {
        assert_eq!(ask("/moving"), (200, "first".to_owned()));
    }
    fs::write(folder.file("hosts"), "127.0.0.3 moving.test\n").unwrap();
    let began = Instant::now();
    let mut moved = ask("/moving");
    while moved.1 == "first" && began.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(20));
        moved = ask("/moving");
    }
    assert_eq!(moved, (200, "second".to_owned()), "no request fails for it");
    assert!((0..20).all(|_| ask("/moving").1 == "second"), "and it stays so");
    fs::write(folder.file("hosts"), "127.0.0.1 other.test\n").unwrap();
    let began = Instant::now();
    while ask("/moving").0 == 200 {
        assert!(began.elapsed() < Duration::from_secs(10), "a name that is gone is dialled for ever");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(ask("/moving").0, 502);
    assert_eq!(ask("/other"), (200, "second".to_owned()));
}
