//! The listener, the workers behind it, and how they stop.
//!
//! Each worker is a thread with a runtime of its own, so that a request never changes threads. The first of them accepts,
//! and hands connections out in turn, itself among them: a thread for that alone would cost each connection two changes of
//! threads, an eighth of its handshake.

use std::{io, net::SocketAddr, sync::Arc, thread::JoinHandle};

use rustls::RootCertStore;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    audit::Audit,
    clock::Clock,
    gateway::Intake,
    headers::Proxies,
    limits::{Limit, Limits},
    record::Log,
    route::RouteTable,
    tls,
    traces::Traces,
    upstream,
    webhook::Webhooks,
};

mod connection;
mod crowd;
mod descriptors;
mod door;
mod frames;
mod handshake;
mod house;
mod linger;
mod proxy;
mod pulse;
mod stall;
mod traffic;
pub mod wire;

use door::{Accepted, Door};

pub use house::House;
pub use pulse::Pulse;
pub use traffic::{Outcome, Spoken, Traffic};

/// Connections that the system may hold before they are accepted.
const BACKLOG: i32 = 4096;

/// What a server serves.
#[derive(Debug)]
pub struct Settings {
    /// The certificates; whoever has it may put others in their place while the server runs.
    pub resolver: Arc<tls::Resolver>,
    /// The authorities of whose certificates a client must have one; `None`: clients need none.
    pub client_ca: Option<Arc<RootCertStore>>,
    /// The hash of the configuration that these come from.
    pub config: Arc<str>,
    /// Lower-case host names; empty: any.
    pub names: Vec<String>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Proxies,
    /// Who begins each connection with a header of the PROXY protocol.
    pub proxy_protocol: Proxies,
    pub routes: RouteTable,
    pub webhooks: Webhooks,
    pub upstreams: Vec<upstream::Settings>,
    pub limits: Limits,
    /// Where decisions are recorded; `None`: nowhere. It stays when others of these are put in force.
    pub audit: Option<Audit>,
    /// What keeps the events of webhooks; `None`: nothing does. It stays likewise.
    pub intake: Option<Intake>,
    /// Where requests get their traces from; `None`: there are none. It stays likewise.
    pub traces: Option<Traces>,
    /// Worker threads; `None`: as many as the process may use cores. It stays likewise.
    pub workers: Option<usize>,
}

/// A server that runs until it is told to stop.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    house: Arc<House>,
    pulse: Pulse,
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

/// Makes ready a listener that somebody else bound.
///
/// # Errors
/// The system's, of a socket that cannot listen, such as one that is connected.
pub fn adopt(listener: std::net::TcpListener) -> io::Result<std::net::TcpListener> {
    socket2::SockRef::from(&listener).listen(BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
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
        let workers = settings.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let runtimes = (0..workers.max(1))
            .map(|_| tokio::runtime::Builder::new_current_thread().enable_all().build())
            .collect::<io::Result<Vec<_>>>()?;
        let first = runtimes.first().map(|runtime| runtime.handle().clone()).ok_or(io::ErrorKind::InvalidInput)?;
        let pulse = Pulse::of(runtimes.iter().map(|runtime| runtime.handle().clone()).collect());
        let house = Arc::new(House::open(settings, runtimes.len(), log, clock, first)?);
        let (senders, receivers): (Vec<_>, Vec<_>) = runtimes.iter().map(|_| mpsc::unbounded_channel()).unzip();
        let mut door = Some(Door { listener, workers: senders, stop: stop.clone(), house: Arc::clone(&house) });
        let mut threads = Vec::new();
        for ((number, receiver), runtime) in receivers.into_iter().enumerate().zip(runtimes) {
            let worker = Worker { number, receiver, stop: stop.clone(), house: Arc::clone(&house) };
            let door = door.take();
            let serve = move || {
                runtime.block_on(async {
                    if let Some(door) = door {
                        // It ends when nothing more is accepted, and with it the workers' work.
                        tokio::spawn(door.run());
                    }
                    worker.run().await;
                });
                runtime.shutdown_background();
            };
            threads.push(std::thread::Builder::new().name(format!("worker-{number}")).spawn(serve)?);
        }
        Ok(Self { address, house, pulse, threads })
    }

    /// What puts other settings in force while it runs.
    pub fn house(&self) -> &Arc<House> {
        &self.house
    }

    /// Tells whether its workers still turn.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
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

    /// Ends what waits for the drain.
    pub fn draining(&self) -> CancellationToken {
        self.drain.clone()
    }

    /// Whether that has begun.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Ends everything at once.
    pub fn cut(&self) {
        self.drain.cancel();
        self.cut.cancel();
    }
}

/// One thread's share of the connections.
struct Worker {
    number: usize,
    receiver: mpsc::UnboundedReceiver<Accepted>,
    stop: Stop,
    house: Arc<House>,
}

impl Worker {
    async fn run(mut self) {
        let Some(desk) = self.house.desk(self.number) else { return };
        let connections = TaskTracker::new();
        while let Some(accepted) = self.receiver.recv().await {
            let (desk, handshake, drain) = (Arc::clone(&desk), self.house.handshake(), self.stop.drain.clone());
            connections.spawn(connection::serve(accepted, handshake, desk, drain));
        }
        connections.close();
        let gateway = desk.gateway.load_full();
        tokio::select! {
            () = connections.wait() => {}
            () = self.stop.cut.cancelled() => {}
            () = tokio::time::sleep(gateway.limits.drain) => {
                gateway.hits.hit(Limit::Drain);
                tracing::warn!(connections = self.house.crowd.len(), "cut what still ran at the end of the drain");
            }
        }
    }
}
