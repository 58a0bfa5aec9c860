//! A real PostgreSQL server in a folder of its own, for as long as a test needs it.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use countersign::inbox;
use rustix::process::Signal;

/// Where Debian has the programs.
const INSTALLED: &str = "/usr/lib/postgresql";
/// Runs a server until nobody holds the other end of its input any more, and then removes its folder.
const GUARD: &str = r#"folder=$1; shift; "$@" & pid=$!; read -r _; kill -INT $pid; wait $pid; rm -rf "$folder""#;

/// A server. It listens on the loopback address and in its folder, and asks for no password.
pub(crate) struct Server {
    folder: PathBuf,
    pub(crate) port: u16,
    guard: Mutex<Child>,
}

impl Server {
    /// The one that tests share, each with a database of its own; `None` where none is installed and none is required.
    pub(crate) fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Server>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    /// A server for one test alone.
    pub(crate) fn start() -> Option<Self> {
        Self::prepared(|_| {})
    }

    /// A server for one test alone, whose user `countersign` comes over TLS and with a password, or not at all.
    pub(crate) fn with_tls(certificate: &str, key: &str) -> Option<Self> {
        const WHO: &str = "hostssl all countersign 127.0.0.1/32 scram-sha-256\n\
                           hostnossl all countersign 127.0.0.1/32 reject\nhost all postgres 127.0.0.1/32 trust\n";
        Self::prepared(|data| {
            let settings = "ssl=on\npassword_encryption=scram-sha-256\n";
            for (name, text) in [
                ("server.crt", certificate),
                ("server.key", key),
                ("pg_hba.conf", WHO),
                ("postgresql.auto.conf", settings),
            ] {
                let path = data.join(name);
                fs::write(&path, text).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                if let Some((user, group)) = owner() {
                    std::os::unix::fs::chown(&path, Some(user), Some(group)).unwrap();
                }
            }
        })
    }

    /// A server whose folder of data was prepared by `prepare`.
    fn prepared(prepare: impl FnOnce(&Path)) -> Option<Self> {
        let Some(programs) = programs() else {
            assert!(std::env::var_os("COUNTERSIGN_REQUIRE_POSTGRES").is_none(), "no PostgreSQL in {INSTALLED}");
            eprintln!("left out: no PostgreSQL in {INSTALLED}");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("pg").tempdir().unwrap().keep();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o711)).unwrap();
        let data = folder.join("data");
        fs::create_dir(&data).unwrap();
        let owner = owner();
        if let Some((user, group)) = owner {
            for path in [&folder, &data] {
                std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
            }
        }
        let mut made = unprivileged(owner, &programs.join("initdb"));
        made.args([
            "--no-sync",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--username=postgres",
            "--pgdata",
        ]);
        let made = made.arg(&data).current_dir(&folder).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        prepare(&data);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let guard = Mutex::new(serve(&programs, &folder, port));
        let server = Self { folder, port, guard };
        server.wait();
        Some(server)
    }

    /// An empty database of this name.
    pub(crate) fn database(&self, name: &str) -> inbox::Postgres {
        self.run("postgres", &format!("CREATE DATABASE {name}"));
        self.named(name)
    }

    /// The database of this name.
    pub(crate) fn named(&self, name: &str) -> inbox::Postgres {
        inbox::Postgres::new(inbox::Reach { config: self.url(name).parse().unwrap(), tls: None })
    }

    /// How the database of this name is reached.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{name}", self.port)
    }

    /// Runs statements in a database, and answers the first column of the first row of the last that has any.
    pub(crate) fn run(&self, database: &str, sql: &str) -> Option<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime
            .block_on(async {
                let (client, connection) = tokio_postgres::connect(&self.url(database), tokio_postgres::NoTls).await?;
                let connection = tokio::spawn(connection);
                let messages = client.simple_query(sql).await?;
                drop(client);
                let _ = connection.await;
                let values = messages.into_iter().filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                    _ => None,
                });
                Ok::<_, tokio_postgres::Error>(values.last())
            })
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// Ends the server at once, with all its processes, as a crash of the machine does.
    pub(crate) fn kill(&self) {
        let all = self.signal(Signal::KILL);
        let started = Instant::now();
        // Those that are gone but not waited for have no memory any more.
        let is_there = |id: &i32| fs::read_to_string(format!("/proc/{id}/maps")).is_ok_and(|maps| !maps.is_empty());
        while all.iter().any(is_there) {
            assert!(started.elapsed() < Duration::from_secs(20), "it is still there");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Nobody has waited for it yet, so its number is still taken.
        for lock in ["data/postmaster.pid".to_owned(), format!(".s.PGSQL.{}.lock", self.port)] {
            fs::remove_file(self.folder.join(lock)).unwrap();
        }
    }

    /// Stops all its processes where they are: it answers nothing until it goes on.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends a signal to each of its processes, and answers which they are.
    fn signal(&self, signal: Signal) -> Vec<i32> {
        let first = self.first_line("data/postmaster.pid");
        let others = fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap();
        let all: Vec<i32> =
            std::iter::once(&*first).chain(others.split_whitespace()).map(|id| id.parse().unwrap()).collect();
        for id in &all {
            let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(*id).unwrap(), signal);
        }
        all
    }

    /// Starts the server again on the same data and port.
    pub(crate) fn start_again(&self) {
        let programs = programs().unwrap();
        let mut guard = self.guard.lock().unwrap();
        // The one before must not take the folder with it.
        guard.kill().unwrap();
        guard.wait().unwrap();
        *guard = serve(&programs, &self.folder, self.port);
        drop(guard);
        self.wait();
    }

    fn first_line(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file)).unwrap().lines().next().unwrap().to_owned()
    }

    fn wait(&self) {
        let started = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let url = self.url("postgres");
        while runtime.block_on(tokio_postgres::connect(&url, tokio_postgres::NoTls)).is_err() {
            let log = || fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            assert!(started.elapsed() < Duration::from_secs(60), "{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let guard = self.guard.get_mut().unwrap();
        drop(guard.stdin.take());
        let _ = guard.wait();
    }
}

fn serve(programs: &Path, folder: &Path, port: u16) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
    let server = unprivileged(owner(), &programs.join("postgres"));
    let mut guard = Command::new("/bin/sh");
    guard.args(["-c", GUARD, "guard"]).arg(folder).arg(server.get_program()).args(server.get_args());
    guard.arg("-D").arg(folder.join("data")).arg("-k").arg(folder).args(["-p", &port.to_string()]);
    for setting in ["listen_addresses=127.0.0.1", "shared_buffers=64MB", "max_connections=200"] {
        guard.args(["-c", setting]);
    }
    guard.current_dir(folder).stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

/// A program run as somebody who may run a server: that is not root.
fn unprivileged(owner: Option<(u32, u32)>, program: &Path) -> Command {
    let Some((user, group)) = owner else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command.args(["--clear-groups", &format!("--reuid={user}"), &format!("--regid={group}")]).arg(program);
    command
}

/// Whom the server is run as, where this is root.
fn owner() -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let user = users.lines().find(|line| line.starts_with("postgres:")).map(|line| line.split(':').collect::<Vec<_>>());
    let is_root = rustix::process::geteuid().is_root();
    is_root.then(|| user.map(|user| (user[2].parse().unwrap(), user[3].parse().unwrap()))).flatten()
}

/// The folder of the programs of the latest version that is installed.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir(INSTALLED).ok()?.flatten().map(|entry| entry.path().join("bin"));
    versions.filter(|bin| bin.join("postgres").exists()).max()
}
