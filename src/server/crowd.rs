//! The connections that are open, and which of them give way to newcomers.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    gateway::Activity,
    limits::{Hits, Limit, Limits, Network},
};

/// How long nobody is looked for after nobody was found who is idle: looking takes time, and whoever is turned away
/// would have it done again.
const NOBODY_IDLE: Duration = Duration::from_millis(10);

/// Everyone who is connected.
#[derive(Debug)]
pub(super) struct Crowd {
    hits: Arc<Hits>,
    inside: Mutex<Inside>,
}

#[derive(Debug)]
struct Inside {
    limit: usize,
    /// Of one address.
    share: Option<usize>,
    guests: HashMap<u64, Guest>,
    next: u64,
    turned_away: usize,
    /// How many gave way to others and are not gone yet: what they asked at the last moment is answered.
    leaving: usize,
    /// How many guests each address has.
    addresses: HashMap<Network, usize>,
    /// When nobody was idle.
    looked: Option<Instant>,
}

/// What the crowd and the connection both know of it.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) activity: Arc<Activity>,
    /// It is to end, for others or because the server drains.
    pub(super) leave: CancellationToken,
}

/// A connection's place, given back when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    standing: Standing,
    network: Option<Network>,
    guest: Guest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Under this number.
    Inside(u64),
    /// In the reserve: to be told why, and no more.
    TurnedAway,
}

/// How many connections beyond `limit` are told that there are too many, and how many have given way and still finish.
pub(super) fn reserve(limit: usize) -> usize {
    (limit / 64).clamp(8, 512)
}

impl Crowd {
    pub(super) fn new(limits: &Limits, hits: Arc<Hits>) -> Arc<Self> {
        let inside = Inside {
            limit: limits.connections,
            share: limits.connections_per_address,
            guests: HashMap::new(),
            next: 0,
            turned_away: 0,
            leaving: 0,
            addresses: HashMap::new(),
            looked: None,
        };
        Arc::new(Self { hits, inside: Mutex::new(inside) })
    }

    /// Goes on with other bounds. Those who are inside stay.
    pub(super) fn change(&self, limits: &Limits) {
        let mut inside = self.inside();
        (inside.limit, inside.share) = (limits.connections, limits.connections_per_address);
    }

    /// A place for a connection from `address`, if that is known already; `None` if not even an answer can be
    /// afforded. Where all places are taken, those who have been idle for longest lose theirs.
    pub(super) fn enter(self: &Arc<Self>, address: Option<IpAddr>, drain: &CancellationToken) -> Option<Place> {
        let guest = Guest { activity: Activity::new(&self.hits), leave: drain.child_token() };
        let mut network = address.map(Network::from);
        let mut inside = self.inside();
        let standing = if network.is_some_and(|network| self.has_its_share(&inside, network)) {
            None
        } else if self.has_room(&mut inside) {
            let number = inside.next;
            inside.next += 1;
            inside.guests.insert(number, guest.clone());
            Self::count(&mut inside, network);
            Some(Standing::Inside(number))
        } else {
            None
        };
        if standing.is_none() {
            network = None;
        }
        let standing = standing.or_else(|| Self::turn_away(&mut inside))?;
        drop(inside);
        Some(Place { crowd: Arc::clone(self), standing, network, guest })
    }

    /// Sends some of those away who have been idle for longest. Whether there was anybody.
    pub(super) fn make_room(&self) -> bool {
        Self::make_room_in(&mut self.inside())
    }

    /// How many are inside.
    pub(super) fn len(&self) -> usize {
        self.inside().guests.len()
    }

    fn has_room(&self, inside: &mut Inside) -> bool {
        if inside.guests.len() < inside.limit {
            return true;
        }
        self.hits.hit(Limit::Connections);
        inside.leaving < reserve(inside.limit) && Self::make_room_in(inside)
    }

    fn make_room_in(inside: &mut Inside) -> bool {
        if inside.looked.is_some_and(|looked| looked.elapsed() < NOBODY_IDLE) {
            return false;
        }
        let since = |(number, guest): (&u64, &Guest)| Some((guest.activity.idle_since()?, *number));
        let mut idle: Vec<_> = inside.guests.iter().filter_map(since).collect();
        // Not one by one, for all are looked at each time.
        let count = (inside.limit / 1000).max(1).min(idle.len());
        if count == 0 {
            inside.looked = Some(Instant::now());
            return false;
        }
        if count < idle.len() {
            idle.select_nth_unstable(count);
        }
        for (_, number) in idle.iter().take(count) {
            if let Some(guest) = inside.guests.remove(number) {
                inside.leaving += 1;
                guest.leave.cancel();
            }
        }
        true
    }

    /// One who was inside is gone, having given way before or not.
    fn leave(inside: &mut Inside, number: u64) {
        if inside.guests.remove(&number).is_none() {
            inside.leaving -= 1;
        }
    }

    /// Whether as many are inside from `network` as may be, which is counted.
    fn has_its_share(&self, inside: &Inside, network: Network) -> bool {
        let Some(share) = inside.share else { return false };
        let has = inside.addresses.get(&network).is_some_and(|count| *count >= share);
        if has {
            self.hits.hit(Limit::ConnectionsPerAddress);
        }
        has
    }

    fn count(inside: &mut Inside, network: Option<Network>) {
        if let Some(network) = network {
            *inside.addresses.entry(network).or_default() += 1;
        }
    }

    fn turn_away(inside: &mut Inside) -> Option<Standing> {
        if inside.turned_away >= reserve(inside.limit) {
            return None;
        }
        inside.turned_away += 1;
        Some(Standing::TurnedAway)
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The same, now that it is known to be that of a client at `address`; `None` as for [`Crowd::enter`].
    pub(super) fn of(mut self, address: IpAddr) -> Option<Self> {
        let Standing::Inside(number) = self.standing else { return Some(self) };
        let (crowd, network) = (Arc::clone(&self.crowd), Network::from(address));
        let mut inside = crowd.inside();
        if crowd.has_its_share(&inside, network) {
            self.standing = Crowd::turn_away(&mut inside)?;
            Crowd::leave(&mut inside, number);
        } else {
            Crowd::count(&mut inside, Some(network));
            self.network = Some(network);
        }
        drop(inside);
        Some(self)
    }

    /// Whether its client is only told that there are too many.
    pub(super) fn is_turned_away(&self) -> bool {
        self.standing == Standing::TurnedAway
    }

    pub(super) fn guest(&self) -> &Guest {
        &self.guest
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = self.crowd.inside();
        match self.standing {
            Standing::Inside(number) => Crowd::leave(&mut inside, number),
            Standing::TurnedAway => inside.turned_away -= 1,
        }
        let Some(network) = self.network else { return };
        if let Some(count) = inside.addresses.get_mut(&network) {
            *count -= 1;
            if *count == 0 {
                inside.addresses.remove(&network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Busy;

    fn crowd(connections: usize, connections_per_address: Option<usize>) -> Arc<Crowd> {
        Crowd::new(&Limits { connections, connections_per_address, ..Limits::default() }, Arc::default())
    }

    fn enter(crowd: &Arc<Crowd>, last: u8) -> Option<Place> {
        crowd.enter(Some([192, 0, 2, last].into()), &CancellationToken::new())
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_idle_for_longest_gives_way_and_who_is_busy_does_not() {
        let crowd = crowd(3, None);
        let mut places = Vec::new();
        for number in 0..3 {
            places.push(enter(&crowd, number).unwrap());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let _busy = Busy::new(&places[0].guest.activity);
        let fourth = enter(&crowd, 3).unwrap();
        assert!(!fourth.is_turned_away());
        let leaves: Vec<_> = places.iter().map(|place| place.guest.leave.is_cancelled()).collect();
        assert_eq!(leaves, [false, true, false]);
        assert_eq!((crowd.len(), crowd.hits.of(Limit::Connections)), (3, 1));
        drop(places);
        assert_eq!(crowd.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_all_who_are_busy_some_are_told_and_the_others_are_not() {
        let crowd = crowd(2, None);
        let inside = [enter(&crowd, 1).unwrap(), enter(&crowd, 2).unwrap()];
        let busy = inside.each_ref().map(|place| Busy::new(&place.guest.activity));
        let told: Vec<_> = (0..reserve(2)).map(|_| enter(&crowd, 3).unwrap()).collect();
        assert!(told.iter().all(Place::is_turned_away));
        assert!(enter(&crowd, 3).is_none());
        drop((told, busy));
        assert!(enter(&crowd, 3).unwrap().is_turned_away(), "nobody is looked for again at once");
        tokio::time::advance(NOBODY_IDLE).await;
        assert!(!enter(&crowd, 3).unwrap().is_turned_away());
    }

    #[tokio::test(start_paused = true)]
    async fn who_gave_way_and_does_not_go_takes_part_of_a_bounded_allowance() {
        let crowd = crowd(2, None);
        let mut places = vec![enter(&crowd, 0).unwrap(), enter(&crowd, 1).unwrap()];
        for _ in 0..reserve(2) {
            places.push(enter(&crowd, 2).unwrap());
        }
        assert!(!places.iter().any(Place::is_turned_away));
        assert_eq!((crowd.len(), crowd.inside().leaving), (2, reserve(2)));
        assert!(enter(&crowd, 3).unwrap().is_turned_away(), "nobody gives way while so many have not gone");
        drop(places.remove(0));
        assert!(!enter(&crowd, 3).unwrap().is_turned_away());
        drop(places);
        assert_eq!((crowd.len(), crowd.inside().leaving), (0, 0));
    }

    #[test]
    fn other_bounds_hold_for_those_who_come_later() {
        let crowd = crowd(100, None);
        let inside: Vec<_> = (0..3).map(|_| enter(&crowd, 1).unwrap()).collect();
        crowd.change(&Limits { connections: 100, connections_per_address: Some(3), ..Limits::default() });
        assert!(enter(&crowd, 1).unwrap().is_turned_away(), "those of before are counted");
        assert!(!enter(&crowd, 2).unwrap().is_turned_away());
        drop(inside);
        assert!(!enter(&crowd, 1).unwrap().is_turned_away());
    }

    #[test]
    fn an_address_has_its_share_and_no_more() {
        let crowd = crowd(100, Some(2));
        let inside = [enter(&crowd, 1).unwrap(), enter(&crowd, 1).unwrap()];
        assert!(!inside.iter().any(Place::is_turned_away));
        assert!(enter(&crowd, 1).unwrap().is_turned_away());
        assert!(!enter(&crowd, 2).unwrap().is_turned_away());
        // Behind a proxy the address comes later.
        let late = || crowd.enter(None, &CancellationToken::new()).unwrap();
        assert!(late().of([192, 0, 2, 1].into()).unwrap().is_turned_away());
        assert!(!late().of([192, 0, 2, 2].into()).unwrap().is_turned_away());
        assert_eq!(crowd.hits.of(Limit::ConnectionsPerAddress), 2);
        drop(inside);
        assert!(!enter(&crowd, 1).unwrap().is_turned_away());
        assert!(crowd.inside().addresses.is_empty() && crowd.inside().turned_away == 0 && crowd.len() == 0);
    }
}
