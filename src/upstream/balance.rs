//! Which server a request goes to: the less busy of two that are well, and how that is known.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use super::Settings;

/// The longest time for which a server is left out after failures.
const LONGEST_EJECTION: Duration = Duration::from_secs(300);

/// The servers of an upstream as all workers see them: how busy each is, and whether it is well.
///
/// At most `max_in_flight` requests are with each server; more wait, at most `max_queued` of them, each for at most
/// `queue_timeout`. A server is left out while its health checks fail, and for a while after `eject_after` failures in a
/// row; then one request tries it. Where every server is left out, all are tried, for a request that fails is no worse
/// than one that is not sent.
#[derive(Debug)]
pub(super) struct Servers {
    standings: Mutex<Vec<Standing>>,
    turn: AtomicUsize,
    queued: AtomicUsize,
    left: Notify,
    max_in_flight: usize,
    max_queued: usize,
    queue_timeout: Duration,
    eject_after: u32,
    eject_for: Duration,
}

/// How one server does.
#[derive(Clone, Copy, Debug)]
struct Standing {
    in_flight: usize,
    /// What its health checks say; without any it is well.
    is_healthy: bool,
    /// Failures since it last answered.
    failures: u32,
    /// How often it was left out since it last answered, and until when.
    ejections: u32,
    ejected_until: Option<Instant>,
    /// Whether a request is on its way that shows how it does.
    is_tried: bool,
}

/// A server's state, for metrics and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    pub in_flight: usize,
    /// Whether requests go to it.
    pub is_up: bool,
}

/// A request's place among those in flight at one server, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    servers: Arc<Servers>,
    server: usize,
    /// Whether it is the one request that tries a server which was left out, and has shown nothing yet.
    is_trial: AtomicBool,
}

/// What a request showed of its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Showed {
    /// It answers.
    Answer,
    /// It cannot be reached, breaks off, answers nonsense or too late.
    Failure,
}

/// No place came free in time, or too many wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Servers {
    pub(super) fn new(settings: &Settings) -> Arc<Self> {
        let standing = Standing {
            in_flight: 0,
            is_healthy: true,
            failures: 0,
            ejections: 0,
            ejected_until: None,
            is_tried: false,
        };
        Arc::new(Self {
            standings: Mutex::new(vec![standing; settings.servers.len()]),
            turn: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            left: Notify::new(),
            max_in_flight: settings.max_in_flight,
            max_queued: settings.max_queued,
            queue_timeout: settings.queue_timeout,
            eject_after: settings.eject_after,
            eject_for: settings.eject_for,
        })
    }

    /// A place at some server, at once or as soon as one comes free.
    pub(super) async fn place(self: &Arc<Self>) -> Result<Place, Full> {
        if self.queued.load(Ordering::Relaxed) == 0
            && let Some(place) = self.try_place(None)
        {
            return Ok(place);
        }
        let join = |queued: usize| (queued < self.max_queued).then_some(queued + 1);
        self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, join).map_err(|_| Full)?;
        let _leave = Leave(&self.queued);
        let waiting = async {
            loop {
                // It is told of every place that comes free from here on.
                let mut left = std::pin::pin!(self.left.notified());
                left.as_mut().enable();
                if let Some(place) = self.try_place(None) {
                    return place;
                }
                left.await;
            }
        };
        tokio::time::timeout(self.queue_timeout, waiting).await.map_err(|_| Full)
    }

    /// A place at a server other than `but`, if one is free now.
    pub(super) fn try_place(self: &Arc<Self>, but: Option<usize>) -> Option<Place> {
        // A second try takes nobody's turn.
        let turn = if but.is_none() { self.turn.fetch_add(1, Ordering::Relaxed) } else { fastrand::usize(..) };
        let mut standings = self.standings();
        let now = Instant::now();
        let server = chosen(&standings, turn, but, self.max_in_flight, now)?;
        let standing = standings.get_mut(server)?;
        standing.in_flight += 1;
        let is_trial = standing.is_back(now) && !standing.is_tried;
        standing.is_tried |= is_trial;
        Some(Place { servers: Arc::clone(self), server, is_trial: AtomicBool::new(is_trial) })
    }

    /// Notes what the health checks say of `server`; whether that is new.
    pub(super) fn note_health(&self, server: usize, is_healthy: bool) -> bool {
        let mut standings = self.standings();
        let Some(standing) = standings.get_mut(server) else { return false };
        let changed = standing.is_healthy != is_healthy;
        standing.is_healthy = is_healthy;
        if changed && is_healthy {
            (standing.failures, standing.ejections, standing.ejected_until) = (0, 0, None);
        }
        changed
    }

    /// The state of each server, in the order of the configuration.
    pub(super) fn figures(&self) -> Vec<Figures> {
        let now = Instant::now();
        let figures = |standing: &Standing| Figures { in_flight: standing.in_flight, is_up: standing.is_up(now) };
        self.standings().iter().map(figures).collect()
    }

    /// How many requests wait for a place.
    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    fn standings(&self) -> MutexGuard<'_, Vec<Standing>> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Standing {
    fn is_up(&self, now: Instant) -> bool {
        self.is_healthy && self.ejected_until.is_none_or(|until| until <= now)
    }

    /// Whether it was left out and may be tried.
    fn is_back(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| until <= now)
    }

    /// Whether a request may go there: to one that is back from being left out only one, until that has shown something.
    fn takes(&self, now: Instant) -> bool {
        self.is_up(now) && !(self.is_back(now) && self.is_tried)
    }
}

/// The server for the request of this `turn`: of the next in turn and another at random the one with fewer requests.
///
/// Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing"; the first in turn, so that servers
/// that are equally busy are asked evenly.
fn chosen(standings: &[Standing], turn: usize, but: Option<usize>, most: usize, now: Instant) -> Option<usize> {
    let free = |at: usize, standing: &Standing| Some(at) != but && standing.in_flight < most;
    let candidates = |is_fit: &dyn Fn(&Standing) -> bool| -> Vec<(usize, usize)> {
        let fit = standings.iter().enumerate().filter(|(at, standing)| free(*at, standing) && is_fit(standing));
        fit.map(|(at, standing)| (at, standing.in_flight)).collect()
    };
    let mut fit = match standings {
        [only] => return (free(0, only)).then_some(0),
        _ => candidates(&|standing| standing.takes(now)),
    };
    let is_any_up = standings.iter().enumerate().any(|(at, standing)| Some(at) != but && standing.takes(now));
    if fit.is_empty() && !is_any_up {
        fit = candidates(&|_| true);
    }
    let first = *fit.get(turn.checked_rem(fit.len())?)?;
    let second = *fit.get(fastrand::usize(..fit.len()))?;
    Some(if second.1 < first.1 { second.0 } else { first.0 })
}

impl Place {
    /// The server's number.
    pub(super) fn server(&self) -> usize {
        self.server
    }

    /// Notes what the request showed of the server; whether it is left out from now on.
    pub(super) fn note(&self, showed: Showed) -> bool {
        let servers = &self.servers;
        let mut standings = servers.standings();
        // The only server is asked however it does.
        let is_only = standings.len() == 1;
        let Some(standing) = standings.get_mut(self.server) else { return false };
        if self.is_trial.swap(false, Ordering::Relaxed) {
            standing.is_tried = false;
        }
        match showed {
            Showed::Answer => {
                (standing.failures, standing.ejections, standing.ejected_until) = (0, 0, None);
                false
            }
            Showed::Failure => {
                standing.failures = standing.failures.saturating_add(1);
                let is_on_trial = standing.ejected_until.is_some();
                if is_only || servers.eject_after == 0 || !(is_on_trial || standing.failures >= servers.eject_after) {
                    return false;
                }
                let now = Instant::now();
                if standing.ejected_until.is_some_and(|until| until > now) {
                    return false;
                }
                let longer = 2_u32.saturating_pow(standing.ejections.min(16));
                let time = servers.eject_for.saturating_mul(longer).min(LONGEST_EJECTION.max(servers.eject_for));
                // Servers that failed together do not come back together.
                standing.ejected_until = Some(now + time.mul_f64(0.9 + 0.2 * fastrand::f64()));
                standing.ejections = standing.ejections.saturating_add(1);
                true
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(standing) = self.servers.standings().get_mut(self.server) {
            standing.in_flight = standing.in_flight.saturating_sub(1);
            if *self.is_trial.get_mut() {
                standing.is_tried = false;
            }
        }
        if self.servers.queued() > 0 {
            self.servers.left.notify_one();
        }
    }
}

/// Leaves the queue when dropped.
struct Leave<'q>(&'q AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(servers: usize) -> Settings {
        let origin = super::super::Origin {
            protocol: super::super::Protocol::Http,
            place: super::super::origin::Place::Host("a".parse().unwrap()),
        };
        Settings {
            max_in_flight: 2,
            max_queued: 1,
            queue_timeout: Duration::from_millis(500),
            eject_after: 3,
            eject_for: Duration::from_secs(10),
            ..Settings::new("up".into(), vec![origin; servers])
        }
    }

    fn served(servers: &Arc<Servers>) -> usize {
        servers.try_place(None).unwrap().server()
    }

    #[test]
    fn servers_that_are_equally_busy_take_turns() {
        let servers = Servers::new(&settings(3));
        let mut counts = [0; 3];
        for _ in 0..30 {
            counts[served(&servers)] += 1;
        }
        assert_eq!(counts, [10; 3]);
    }

    #[test]
    fn the_less_busy_of_two_is_asked() {
        let servers = Servers::new(&settings(2));
        let held: Vec<_> = (0..4).map(|_| servers.try_place(None).unwrap()).collect();
        assert_eq!(servers.figures().iter().map(|figures| figures.in_flight).collect::<Vec<_>>(), [2, 2]);
        assert!(servers.try_place(None).is_none(), "both are full");
        drop(held);
        assert_eq!(servers.figures(), [Figures { in_flight: 0, is_up: true }; 2]);
        // With places at one of a hundred servers held it is hardly chosen, though it has its turn.
        let servers = Servers::new(&Settings { max_in_flight: 1000, ..settings(2) });
        let first = servers.try_place(Some(1)).unwrap();
        let busy: Vec<_> = (0..20).map(|_| servers.try_place(Some(1)).unwrap()).collect();
        let to_busy = (0..200).filter(|_| served(&servers) == first.server()).count();
        assert!(to_busy < 80, "{to_busy}");
        drop(busy);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_fails_is_left_out_and_tried_by_one_request_after_a_while() {
        let servers = Servers::new(&settings(2));
        let fail = || {
            let place = loop {
                let place = servers.try_place(None).unwrap();
                if place.server() == 0 {
                    break place;
                }
            };
            place.note(Showed::Failure)
        };
        assert!(!fail() && !fail());
        assert!(fail(), "the third in a row");
        assert!(!servers.figures()[0].is_up);
        assert!((0..50).all(|_| served(&servers) == 1));
        tokio::time::advance(Duration::from_secs(12)).await;
        let trial = loop {
            let place = servers.try_place(None).unwrap();
            if place.server() == 0 {
                break place;
            }
        };
        assert!((0..50).all(|_| served(&servers) == 1), "one request tries it");
        assert!(trial.note(Showed::Failure), "left out again at the first failure");
        drop(trial);
        tokio::time::advance(Duration::from_secs(12)).await;
        assert!((0..50).all(|_| served(&servers) == 1), "for longer than before");
        tokio::time::advance(Duration::from_secs(12)).await;
        let trial = loop {
            let place = servers.try_place(None).unwrap();
            if place.server() == 0 {
                break place;
            }
        };
        assert!(!trial.note(Showed::Answer));
        // Held, it would make its server the busier one.
        drop(trial);
        assert!((0..50).any(|_| served(&servers) == 0));
    }

    #[tokio::test(start_paused = true)]
    async fn where_every_server_is_left_out_all_are_tried() {
        let servers = Servers::new(&settings(2));
        assert!(servers.note_health(0, false) && servers.note_health(1, false));
        assert!(!servers.note_health(1, false), "that is known");
        assert!((0..20).any(|_| served(&servers) == 0));
        assert!(servers.note_health(1, true));
        assert!((0..20).all(|_| served(&servers) == 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_has_a_length_and_a_time() {
        let servers = Servers::new(&settings(1));
        let held = (servers.try_place(None).unwrap(), servers.try_place(None).unwrap());
        let waiting = tokio::spawn({
            let servers = Arc::clone(&servers);
            async move { servers.place().await.map(|place| place.server()) }
        });
        tokio::task::yield_now().await;
        assert_eq!(servers.queued(), 1);
        assert_eq!(servers.place().await.err(), Some(Full), "the queue is full");
        drop(held.0);
        assert_eq!(waiting.await.unwrap(), Ok(0));
        let place = servers.place().await.unwrap();
        let began = Instant::now();
        assert_eq!(servers.place().await.err(), Some(Full));
        assert!(began.elapsed() >= Duration::from_millis(500));
        assert_eq!(servers.queued(), 0);
        drop((place, held.1));
    }
}
