//! The listener, the workers behind it, and how they stop.
//!
//! One thread accepts and hands connections out in turn; each worker is a thread with a runtime of its own, so that a
//! request never changes threads.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustls::sign::CertifiedKey;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    body::Room,
    clock::Clock,
    gateway::Gateway,
    limits::Limits,
    record::Log,
    route::RouteTable,
    tls,
    upstream::{self, Upstream},
};

mod connection;
mod frames;
mod stall;
pub mod wire;

/// How long accepting pauses after it failed, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that the system may hold before they are accepted.
const BACKLOG: i32 = 4096;
/// The least time between two reports that connections cannot be taken.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What a server serves.
#[derive(Debug)]
pub struct Settings {
    pub certificate: Arc<CertifiedKey>,
    /// Lower-case host names; empty: any.
    pub names: Vec<String>,
    pub routes: RouteTable,
    pub upstreams: Vec<upstream::Settings>,
    pub limits: Limits,
    /// Worker threads; `None`: as many as the process may use cores.
    pub workers: Option<usize>,
}

/// A server that runs until it is told to stop.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

/// The two steps of stopping.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Accepting ends, what runs is finished.
    drain: CancellationToken,
    /// What still runs is cut.
    cut: CancellationToken,
}

/// Binds the listener's address.
///
/// # Errors
/// The system's, most often that the port is taken.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let domain = if address.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

impl Server {
    /// Starts serving on `listener`, until `stop` is told.
    ///
    /// # Errors
    /// The system's, if a thread or runtime cannot be started; TLS's, if its configuration cannot be made.
    pub fn start(
        listener: std::net::TcpListener,
        settings: Settings,
        log: &Log,
        clock: &Clock,
        stop: &Stop,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let tls = Arc::new(tls::server(Arc::clone(&settings.certificate)).map_err(io::Error::other)?);
        let routes = Arc::new(settings.routes);
        let names: Arc<[String]> = settings.names.into();
        let room = Arc::new(Room::new(settings.limits.buffered_bytes));
        let shared: Vec<_> = settings.upstreams.into_iter().map(upstream::Shared::new).collect();
        let open = Arc::new(AtomicUsize::new(0));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);

        let mut threads = Vec::new();
        let mut workers = Vec::new();
        for number in 0..settings.workers.unwrap_or(cores).max(1) {
            let (sender, receiver) = mpsc::unbounded_channel();
            workers.push(sender);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let worker = Worker {
                receiver,
                tls: TlsAcceptor::from(Arc::clone(&tls)),
                stop: stop.clone(),
                open: Arc::clone(&open),
            };
            let (routes, names, room, shared) =
                (Arc::clone(&routes), Arc::clone(&names), Arc::clone(&room), shared.clone());
            let (log, clock, limits) = (log.clone(), clock.clone(), settings.limits.clone());
            let serve = move || {
                runtime.block_on(async {
                    let upstreams = shared.iter().map(Upstream::new).collect();
                    worker.run(Gateway { routes, upstreams, limits, names, room, log, clock }).await;
                });
                runtime.shutdown_background();
            };
            threads.push(std::thread::Builder::new().name(format!("worker-{number}")).spawn(serve)?);
        }

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let door = Door { listener, workers, stop: stop.clone(), open, limits: settings.limits };
        let accept = move || runtime.block_on(door.run());
        threads.push(std::thread::Builder::new().name("accept".into()).spawn(accept)?);
        Ok(Self { address, threads })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until it has stopped.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the server panicked");
            }
        }
    }
}

impl Stop {
    /// Stops accepting and finishes what runs, within the limits' time.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Ends everything at once.
    pub fn cut(&self) {
        self.drain.cancel();
        self.cut.cancel();
    }
}

/// The accepting side.
struct Door {
    listener: std::net::TcpListener,
    workers: Vec<mpsc::UnboundedSender<Accepted>>,
    stop: Stop,
    open: Arc<AtomicUsize>,
    limits: Limits,
}

/// A connection and its place among those that may be open.
struct Accepted {
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
}

/// Counts as an open connection while it lives.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Door {
    async fn run(self) {
        let listener = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the listener cannot be watched");
                return;
            }
        };
        let delay = self.limits.drain_delay;
        let closing = async {
            self.stop.drain.cancelled().await;
            tokio::time::sleep(delay).await;
        };
        let mut closing = std::pin::pin!(closing);
        let mut turns = self.workers.iter().cycle();
        let mut told = Told::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut closing => break,
                () = self.stop.cut.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) {
                Ok((stream, peer)) => {
                    if !hand_out(stream, peer, &self.open, self.limits.connections, turns.next()) {
                        let limit = self.limits.connections;
                        told.say(|| tracing::warn!(limit, "closed a connection: too many are open"));
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                }
                Err(error) => {
                    told.say(|| tracing::warn!(%error, "accepting paused"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // What the system has accepted already is ours to answer.
        let Ok(listener) = listener.into_std() else { return };
        for _ in 0..BACKLOG {
            let Ok((stream, peer)) = listener.accept() else { return };
            hand_out(stream, peer, &self.open, self.limits.connections, turns.next());
        }
    }
}

/// What is said at most every [`TELL_EVERY`], for strangers can cause it.
#[derive(Default)]
struct Told(Option<Instant>);

impl Told {
    fn say(&mut self, say: impl FnOnce()) {
        if self.0.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.0 = Some(Instant::now());
            say();
        }
    }
}

/// Gives a connection to a worker; false if there are too many, and it is closed.
fn hand_out(
    stream: TcpStream,
    peer: SocketAddr,
    open: &Arc<AtomicUsize>,
    limit: usize,
    worker: Option<&mpsc::UnboundedSender<Accepted>>,
) -> bool {
    let place = Place(Arc::clone(open));
    if open.fetch_add(1, Ordering::Relaxed) >= limit {
        return false;
    }
    if let Some(worker) = worker {
        // A worker that is gone drops the connection.
        let _ = worker.send(Accepted { stream, peer, place });
    }
    true
}

/// One thread's share of the connections.
struct Worker {
    receiver: mpsc::UnboundedReceiver<Accepted>,
    tls: TlsAcceptor,
    stop: Stop,
    open: Arc<AtomicUsize>,
}

impl Worker {
    async fn run(mut self, gateway: Gateway) {
        let drain = gateway.limits.drain;
        let gateway = Arc::new(gateway);
        let connections = TaskTracker::new();
        while let Some(Accepted { stream, peer, place }) = self.receiver.recv().await {
            let (gateway, tls, stop) = (Arc::clone(&gateway), self.tls.clone(), self.stop.drain.clone());
            connections.spawn(async move {
                let _place = place;
                connection::serve(stream, peer, tls, gateway, stop).await;
            });
        }
        connections.close();
        tokio::select! {
            () = connections.wait() => {}
            () = self.stop.cut.cancelled() => {}
            () = tokio::time::sleep(drain) => {
                tracing::warn!(connections = self.open.load(Ordering::Relaxed), "cut what still ran at the end of the drain");
            }
        }
    }
}
