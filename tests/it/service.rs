//! What a service manager is told, and the socket that it hands over.

use std::{
    fs::File,
    io::Read as _,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener},
    },
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    commands::{Folder, Running, countersign},
    streams::head_now,
    support::{Client, Upstream, client_config},
};

/// A service manager, as far as it listens.
struct Manager {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { folder, socket }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("notify")
    }

    /// The next message.
    fn told(&self) -> String {
        let mut space = [0; 4096];
        let length = self.socket.recv(&mut space).expect("nothing was told");
        String::from_utf8(space[..length].to_vec()).unwrap()
    }

    /// The messages up to the first with this line.
    fn told_until(&self, line: &str) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut told: Vec<String> = Vec::new();
        while !told.iter().any(|message| has(message, line)) {
            assert!(Instant::now() < deadline, "{line} was not told, but {told:?}");
            told.push(self.told());
        }
        told
    }

    fn is_silent(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        self.socket.recv(&mut [0; 4096]).is_err()
    }

    /// The gateway under it.
    fn gateway(&self, folder: &Folder) -> Command {
        let mut command = countersign();
        command.args(["run", "--config", &folder.file("countersign.toml")]).env("NOTIFY_SOCKET", self.path());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

fn has(message: &str, line: &str) -> bool {
    message.lines().any(|said| said == line)
}

#[test]
fn a_service_manager_hears_that_the_gateway_serves_and_that_it_stops() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let manager = Manager::new();
    let mut gateway = Running(manager.gateway(&folder).spawn().unwrap());
    let ready = manager.told();
    // Not a moment before it does.
    let connected = TcpStream::connect(("127.0.0.1", folder.port));
    assert!(has(&ready, "READY=1") && connected.is_ok(), "{ready} {connected:?}");
    assert!(has(&ready, &format!("STATUS=serving on 127.0.0.1:{}", folder.port)), "{ready}");
    drop(connected);
    folder.ask("ok");
    gateway.signal("TERM");
    let stopping = manager.told();
    assert!(has(&stopping, "STOPPING=1") && has(&stopping, "STATUS=draining"), "{stopping}");
    assert_eq!(gateway.exit_code(), Some(0));
    assert!(manager.is_silent());
}

#[test]
fn a_gateway_that_cannot_start_never_says_that_it_is_ready() {
    let folder = Folder::new("http://127.0.0.1:9", "");
    let _taken = TcpListener::bind(("127.0.0.1", folder.port)).unwrap();
    let manager = Manager::new();
    let mut gateway = Running(manager.gateway(&folder).spawn().unwrap());
    assert_eq!(gateway.exit_code(), Some(69));
    assert!(manager.is_silent());
}

#[test]
fn a_watchdog_is_fed_while_the_gateway_serves_and_while_it_drains() {
    let upstream = Upstream::raw(|stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let folder = Folder::new(&upstream.origin(), "");
    let manager = Manager::new();
    let gateway = Running(manager.gateway(&folder).env("WATCHDOG_USEC", "100000").spawn().unwrap());
    manager.told_until("READY=1");
    for _ in 0..3 {
        manager.told_until("WATCHDOG=1");
    }
    let tls = Arc::new(client_config(&folder.folder.path().join("cert.pem"), &[b"http/1.1"]));
    let mut client = Client::to(SocketAddr::from(([127, 0, 0, 1], folder.port)), &tls);
    // Nobody answers it, so the drain does not end.
    client.send(head_now("GET", "/a", ""));
    gateway.signal("TERM");
    manager.told_until("STOPPING=1");
    for _ in 0..3 {
        manager.told_until("WATCHDOG=1");
    }
}

#[test]
fn a_watchdog_of_another_process_is_not_fed() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let manager = Manager::new();
    let mut command = manager.gateway(&folder);
    command.env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    let gateway = Running(command.spawn().unwrap());
    manager.told_until("READY=1");
    folder.ask("ok");
    gateway.signal("TERM");
    assert_eq!(manager.told_until("STOPPING=1").len(), 1);
}

#[test]
fn a_reload_is_told_with_its_time_and_its_end() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let manager = Manager::new();
    let gateway = Running(manager.gateway(&folder).spawn().unwrap());
    manager.told_until("READY=1");
    let expect = |outcome: &str| {
        let reloading = manager.told();
        let time = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        assert!(has(&reloading, "RELOADING=1"), "{reloading}");
        assert!(time.is_some_and(|time| time.parse::<u64>().is_ok()), "{reloading}");
        let reloaded = manager.told();
        assert!(has(&reloaded, "READY=1") && reloaded.contains(outcome), "{reloaded}");
    };
    gateway.signal("HUP");
    expect("is in force");
    std::fs::write(folder.file("countersign.toml"), "nonsense").unwrap();
    expect("is refused");
}

/// The gateway, with `sockets` as what was handed over; the first of them is there, if there is one.
fn handed_over(folder: &Folder, sockets: usize, socket: Option<OwnedFd>) -> Command {
    let count = sockets.to_string();
    // The standard input becomes what a manager puts behind it.
    let script = "exec 3<&0 4<&0; exec env LISTEN_PID=$$ LISTEN_FDS=\"$0\" \"$@\" </dev/null";
    let script = if socket.is_some() { script } else { &script["exec 3<&0 4<&0; ".len()..] };
    let program = countersign();
    let mut command = Command::new("sh");
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).args(["-c", script, &count]);
    command.arg(program.get_program()).args(["run", "--config", &folder.file("countersign.toml")]);
    command.stdin(socket.map_or_else(Stdio::null, Stdio::from)).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn a_listener_that_is_handed_over_serves_in_place_of_one_of_our_own() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let listener = TcpListener::bind(("127.0.0.1", folder.port)).unwrap();
    // Who came before the gateway was there is served as well.
    let tls = Arc::new(client_config(&folder.folder.path().join("cert.pem"), &[b"http/1.1"]));
    let mut early = Client::to(SocketAddr::from(([127, 0, 0, 1], folder.port)), &tls);
    let gateway = Running(handed_over(&folder, 1, Some(listener.into())).spawn().unwrap());
    early.send(head_now("GET", "/a", ""));
    assert_eq!(early.answer().status, 200);
    drop(early);
    folder.ask("ok");
    let said = gateway.drained();
    assert!(said.contains("the listening socket was handed over"), "{said}");
}

#[test]
fn a_listener_at_another_address_than_configured_is_warned_of() {
    let folder = Folder::new("http://127.0.0.1:9", "");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = Running(handed_over(&folder, 1, Some(listener.into())).spawn().unwrap());
    let tls = Arc::new(client_config(&folder.folder.path().join("cert.pem"), &[b"http/1.1"]));
    let mut client = Client::to(address, &tls);
    client.send("GET /a HTTP/1.1\r\nHost: gw.test\r\n\r\n");
    assert_eq!(client.answer().status, 401);
    drop(client);
    assert!(TcpStream::connect(("127.0.0.1", folder.port)).is_err(), "the configured address is bound too");
    let said = gateway.drained();
    assert!(said.contains(&format!("address={address}")) && said.contains("is not that of `address`"), "{said}");
}

#[test]
fn anything_but_one_tcp_listener_is_refused() {
    let folder = Folder::new("http://127.0.0.1:9", "");
    let listener = || TcpListener::bind("127.0.0.1:0").unwrap();
    let served = listener();
    let connected = TcpStream::connect(served.local_addr().unwrap()).unwrap();
    let cases: [(&str, usize, Option<OwnedFd>); 6] = [
        ("two", 2, Some(listener().into())),
        ("a UDP socket", 1, Some(UdpSocket::bind("127.0.0.1:0").unwrap().into())),
        ("a local socket", 1, Some(UnixListener::bind(folder.file("socket")).unwrap().into())),
        ("a connection", 1, Some(connected.into())),
        ("a file", 1, Some(File::open("/dev/null").unwrap().into())),
        ("nothing", 1, None),
    ];
    for (what, count, socket) in cases {
        let mut gateway = Running(handed_over(&folder, count, socket).spawn().unwrap());
        assert_eq!(gateway.exit_code(), Some(69), "{what}");
        let mut said = String::new();
        gateway.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains("handed over") && said.contains("ListenStream="), "{what}: {said}");
    }
}

#[test]
fn what_is_handed_over_to_another_process_is_not_taken() {
    let upstream = Upstream::ok();
    let folder = Folder::new(&upstream.origin(), "");
    let mut command = countersign();
    command.args(["run", "--config", &folder.file("countersign.toml")]).env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let gateway = folder.started(&mut command);
    folder.ask("ok");
    assert!(!gateway.drained().contains("handed over"));
}
