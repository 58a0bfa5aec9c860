//! The accepting side.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net, sync::mpsc};

use super::{BACKLOG, House, Stop, crowd::Place};

/// How long accepting pauses after it failed, for instance for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The least time between two reports that connections cannot be taken.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Takes connections and hands them out to the workers in turn.
pub(super) struct Door {
    pub(super) listener: std::net::TcpListener,
    pub(super) workers: Vec<mpsc::UnboundedSender<Accepted>>,
    pub(super) stop: Stop,
    pub(super) house: Arc<House>,
}

/// A connection and its place among those that may be open.
pub(super) struct Accepted {
    pub(super) stream: Stream,
    pub(super) peer: SocketAddr,
    pub(super) place: Place,
    /// It must begin with a header that says whom it is from.
    pub(super) is_proxied: bool,
}

/// An accepted connection.
pub(super) enum Stream {
    /// The runtime that accepted it, and goes on to serve it, watches it already.
    Watched(net::TcpStream),
    /// It goes to another.
    Loose(TcpStream),
}

impl Stream {
    /// The connection, watched by the runtime that this is called on.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn watched(self) -> io::Result<net::TcpStream> {
        match self {
            Self::Watched(stream) => Ok(stream),
            Self::Loose(stream) => {
                stream.set_nonblocking(true)?;
                net::TcpStream::from_std(stream)
            }
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

impl Door {
    pub(super) async fn run(self) {
        let listener = match self.listener.try_clone().and_then(net::TcpListener::from_std) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the listener cannot be watched");
                return;
            }
        };
        let closing = async {
            self.stop.drain.cancelled().await;
            let delay = self.house.desk(0).map(|desk| desk.gateway.load().limits.drain_delay);
            tokio::time::sleep(delay.unwrap_or_default()).await;
        };
        let mut closing = std::pin::pin!(closing);
        let mut turns = self.workers.iter().enumerate().cycle();
        let mut told = Told::default();
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut closing => break,
                () = self.stop.cut.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let turn = turns.next();
            let is_ours = turn.is_some_and(|(number, _)| number == 0);
            let handed = accepted.and_then(|(stream, peer)| {
                Ok((if is_ours { Stream::Watched(stream) } else { Stream::Loose(stream.into_std()?) }, peer))
            });
            match handed {
                Ok((stream, peer)) => self.hand_out(stream, peer, turn, &mut told),
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                }
                Err(error) => {
                    told.say(|| tracing::warn!(%error, "accepting paused"));
                    self.house.crowd.make_room();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // What the system has accepted already is ours to answer.
        let Ok(listener) = listener.into_std() else { return };
        for _ in 0..BACKLOG {
            let Ok((stream, peer)) = listener.accept() else { return };
            self.hand_out(Stream::Loose(stream), peer, turns.next(), &mut told);
        }
    }

    /// Gives a connection to a worker, or closes it.
    fn hand_out(
        &self,
        stream: Stream,
        peer: SocketAddr,
        turn: Option<(usize, &mpsc::UnboundedSender<Accepted>)>,
        told: &mut Told,
    ) {
        let is_proxied = self.house.proxies().contains(peer.ip());
        let place = self.house.crowd.enter((!is_proxied).then(|| peer.ip()), &self.stop.drain);
        if place.as_ref().is_none_or(Place::is_turned_away) {
            let open = self.house.crowd.len();
            told.say(|| tracing::warn!(open, "turned a connection away: too many are open, of all or of one address"));
        }
        if let (Some((_, worker)), Some(place)) = (turn, place) {
            // A worker that is gone drops the connection.
            let _ = worker.send(Accepted { stream, peer, place, is_proxied });
        }
    }
}
