//! The listener, the workers behind it, and how they stop.
//!
//! Each worker is a thread with a runtime of its own, so that a request never changes threads. The first of them accepts,
//! and hands connections out in turn, itself among them: a thread for that alone would cost each connection two changes of
//! threads, an eighth of its handshake.

use std::{io, net::SocketAddr, sync::Arc, thread::JoinHandle};

use rustls::sign::CertifiedKey;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    audit::Audit,
    body::Room,
    clock::Clock,
    gateway::Gateway,
    headers::Proxies,
    limits::{Hits, Limit, Limits},
    record::Log,
    route::RouteTable,
    tls,
    upstream::{self, Upstream},
};

mod connection;
mod crowd;
mod descriptors;
mod door;
mod frames;
mod proxy;
mod pulse;
mod stall;
pub mod wire;

use crowd::Crowd;
use door::{Accepted, Door};

pub use pulse::Pulse;

/// Connections that the system may hold before they are accepted.
const BACKLOG: i32 = 4096;

/// What a server serves.
#[derive(Debug)]
pub struct Settings {
    pub certificate: Arc<CertifiedKey>,
    /// Lower-case host names; empty: any.
    pub names: Vec<String>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Proxies,
    /// Who begins each connection with a header of the PROXY protocol.
    pub proxy_protocol: Proxies,
    pub routes: RouteTable,
    pub upstreams: Vec<upstream::Settings>,
    pub limits: Limits,
    /// Where decisions are recorded; `None`: nowhere.
    pub audit: Option<Audit>,
    /// Worker threads; `None`: as many as the process may use cores.
    pub workers: Option<usize>,
}

/// A server that runs until it is told to stop.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    hits: Arc<Hits>,
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
        let tls = Arc::new(tls::server(Arc::clone(&settings.certificate)).map_err(io::Error::other)?);
        let routes = Arc::new(settings.routes);
        let names: Arc<[String]> = settings.names.into();
        let trusted_proxies = Arc::new(settings.trusted_proxies);
        let room = Arc::new(Room::new(settings.limits.buffered_bytes, settings.limits.buffered_bytes_per_address));
        let hits = Arc::new(Hits::default());
        let shared: Vec<_> = settings.upstreams.into_iter().map(upstream::Shared::new).collect();
        let crowd = Crowd::new(&settings.limits, Arc::clone(&hits));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);

        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..settings.workers.unwrap_or(cores).max(1)).map(|_| mpsc::unbounded_channel()).unzip();
        let mut door = Some(Door {
            listener,
            workers: senders,
            stop: stop.clone(),
            crowd: Arc::clone(&crowd),
            proxies: settings.proxy_protocol,
            delay: settings.limits.drain_delay,
        });
        let (mut threads, mut handles) = (Vec::new(), Vec::new());
        for (number, receiver) in receivers.into_iter().enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            handles.push(runtime.handle().clone());
            let worker = Worker {
                receiver,
                tls: TlsAcceptor::from(Arc::clone(&tls)),
                stop: stop.clone(),
                crowd: Arc::clone(&crowd),
            };
            let (routes, names, room, hits, shared) =
                (Arc::clone(&routes), Arc::clone(&names), Arc::clone(&room), Arc::clone(&hits), shared.clone());
            let trusted_proxies = Arc::clone(&trusted_proxies);
            let (log, audit, clock) = (log.clone(), settings.audit.clone(), clock.clone());
            let limits = settings.limits.clone();
            let door = door.take();
            let serve = move || {
                runtime.block_on(async {
                    let upstreams = shared.iter().map(Upstream::new).collect();
                    if let Some(door) = door {
                        // They end with the runtime.
                        for upstream in shared {
                            tokio::spawn(upstream.watch());
                        }
                        // It ends when nothing more is accepted, and with it the workers' work.
                        tokio::spawn(door.run());
                    }
                    worker
                        .run(Gateway {
                            routes,
                            upstreams,
                            limits,
                            names,
                            trusted_proxies,
                            room,
                            hits,
                            log,
                            audit,
                            clock,
                        })
                        .await;
                });
                runtime.shutdown_background();
            };
            threads.push(std::thread::Builder::new().name(format!("worker-{number}")).spawn(serve)?);
        }
        Ok(Self { address, hits, pulse: Pulse::of(handles), threads })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often each limit was hit so far.
    pub fn hits(&self) -> &Hits {
        &self.hits
    }

    /// Tells whether its workers still turn.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
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

    /// Whether it has been told to stop.
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
    receiver: mpsc::UnboundedReceiver<Accepted>,
    tls: TlsAcceptor,
    stop: Stop,
    crowd: Arc<Crowd>,
}

impl Worker {
    async fn run(mut self, gateway: Gateway) {
        let (drain, hits) = (gateway.limits.drain, Arc::clone(&gateway.hits));
        let gateway = Arc::new(gateway);
        let connections = TaskTracker::new();
        while let Some(accepted) = self.receiver.recv().await {
            let (gateway, tls, drain) = (Arc::clone(&gateway), self.tls.clone(), self.stop.drain.clone());
            connections.spawn(connection::serve(accepted, tls, gateway, drain));
        }
        connections.close();
        tokio::select! {
            () = connections.wait() => {}
            () = self.stop.cut.cancelled() => {}
            () = tokio::time::sleep(drain) => {
                hits.hit(Limit::Drain);
                tracing::warn!(connections = self.crowd.len(), "cut what still ran at the end of the drain");
            }
        }
    }
}
