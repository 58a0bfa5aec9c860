//! The memory that bodies read whole may take.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::Error;
use crate::limits::Network;

/// Memory for bodies that are read whole: so much over all requests, and so much of it for those of one client, whom
/// nothing else keeps from taking all.
#[derive(Debug)]
pub struct Room {
    taken: AtomicUsize,
    bytes: AtomicUsize,
    share: AtomicUsize,
    /// What is taken by each client who takes anything.
    clients: Mutex<HashMap<Network, Arc<AtomicUsize>>>,
}

/// A part of a [`Room`] that is taken until this is dropped.
#[derive(Debug)]
pub struct Taken<'r> {
    room: &'r Room,
    client: Option<(Network, Arc<AtomicUsize>)>,
    bytes: usize,
}

impl Room {
    /// A room of `bytes`, of which one client may take `share`.
    pub fn new(bytes: usize, share: usize) -> Self {
        let (bytes, share) = (AtomicUsize::new(bytes), AtomicUsize::new(share));
        Self { taken: AtomicUsize::new(0), bytes, share, clients: Mutex::default() }
    }

    /// Another size. What is taken beyond it is not taken back.
    pub fn resize(&self, bytes: usize, share: usize) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.share.store(share, Ordering::Relaxed);
    }

    /// Nothing yet, for a body that `client` sends, if it is known who does.
    pub fn take(&self, client: Option<Network>) -> Taken<'_> {
        let client = client.map(|client| (client, Arc::clone(self.clients().entry(client).or_default())));
        Taken { room: self, client, bytes: 0 }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Network, Arc<AtomicUsize>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken<'_> {
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let (most, share) = (self.room.bytes.load(Ordering::Relaxed), self.room.share.load(Ordering::Relaxed));
        let of_client = self.client.as_ref().map(|(_, taken)| taken);
        if let Some(taken) = of_client {
            let add = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= share);
            taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).map_err(|_| Error::NoShare)?;
        }
        let take = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= most);
        if self.room.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            if let Some(taken) = of_client {
                taken.fetch_sub(bytes, Ordering::Relaxed);
            }
            return Err(Error::NoRoom);
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::Relaxed);
        let Some((client, taken)) = self.client.take() else { return };
        taken.fetch_sub(self.bytes, Ordering::Relaxed);
        // Whoever takes more has the lock while it counts itself in.
        let mut clients = self.room.clients();
        drop(taken);
        if clients.get(&client).is_some_and(|taken| Arc::strong_count(taken) == 1) {
            clients.remove(&client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8) -> Network {
        std::net::IpAddr::from([192, 0, 2, last]).into()
    }

    #[test]
    fn all_bodies_together_have_a_bound() {
        let room = Room::new(4, 4);
        let mut first = room.take(None);
        assert_eq!(first.grow(3), Ok(()));
        assert_eq!(room.take(None).grow(2), Err(Error::NoRoom));
        assert_eq!(room.take(Some(client(1))).grow(2), Err(Error::NoRoom));
        drop(first);
        assert_eq!(room.take(Some(client(1))).grow(4), Ok(()));
    }

    #[test]
    fn a_room_that_became_smaller_takes_nothing_more_until_there_is_room() {
        let room = Room::new(10, 10);
        let mut first = room.take(None);
        assert_eq!(first.grow(8), Ok(()));
        room.resize(4, 4);
        assert_eq!(room.take(None).grow(1), Err(Error::NoRoom));
        drop(first);
        assert_eq!(room.take(None).grow(4), Ok(()));
        assert_eq!(room.take(Some(client(1))).grow(5), Err(Error::NoShare));
    }

    #[test]
    fn a_client_has_a_share_and_everything_is_given_back() {
        let room = Room::new(10, 4);
        let mut bodies = [room.take(Some(client(1))), room.take(Some(client(1))), room.take(Some(client(2)))];
        assert_eq!(bodies.each_mut().map(|body| body.grow(2)), [Ok(()), Ok(()), Ok(())]);
        assert_eq!(bodies[0].grow(1), Err(Error::NoShare));
        assert_eq!(bodies[2].grow(2), Ok(()));
        assert_eq!(room.take(Some(client(3))).grow(3), Err(Error::NoRoom), "what is refused is not counted");
        assert_eq!(room.take(Some(client(3))).grow(2), Ok(()));
        let [first, second, third] = bodies;
        drop(first);
        assert_eq!(room.take(Some(client(1))).grow(2), Ok(()));
        drop((second, third));
        assert_eq!(room.taken.load(Ordering::Relaxed), 0);
        assert!(room.clients().is_empty());
    }
}
