//! The connections of a listener: how many there are, of which peer, and which one goes when there are too many.
//!
//! A connection is *open* while no head of a request is complete on it: just made, silent, or idle between two requests. One
//! that is open can be closed at any time without harm; one that is *busy* cannot. So a new connection is always taken: in
//! the place of the oldest open one of its own peer when that has too many of them, or of the oldest open one at all when
//! every place is taken. Connections on which no request was ever answered go first. A peer never has all places, and only
//! requests for health and metrics may take the last ones.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How many connections a listener has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// All of them.
    pub(super) most: usize,
    /// Of these, so many only answer for health and metrics.
    pub(super) kept_for_probes: usize,
    /// Of one peer.
    pub(super) most_of_a_peer: usize,
    /// Open ones of one peer.
    pub(super) most_open_of_a_peer: usize,
}

/// A client, as far as connections are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Peer {
    /// An address, or the network of an IPv6 address.
    Network(IpAddr),
    /// A user of this machine.
    User(u32),
}

/// The connections of one listener. A handle: cheap to clone.
#[derive(Clone)]
pub(super) struct Connections(Arc<Shared>);

struct Shared {
    places: Places,
    table: Mutex<Table>,
    changed: Notify,
}

#[derive(Default)]
struct Table {
    next: u64,
    /// By number, hence by age.
    entries: BTreeMap<u64, Entry>,
    /// Requests that are answered and are not for health or metrics.
    requests: usize,
}

struct Entry {
    peer: Peer,
    is_open: bool,
    /// Whether a request on it has been answered: a client that keeps it may send the next one now.
    has_answered: bool,
    /// Since when it has been open, in the order of all connections.
    open_since: u64,
    closed: CancellationToken,
}

impl Connections {
    pub(super) fn new(places: Places) -> Connections {
        Connections(Arc::new(Shared {
            places,
            table: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// Waits until a connection could be taken.
    pub(super) async fn room(&self) {
        loop {
            let changed = self.0.changed.notified();
            let has_room = {
                let table = self.0.lock();
                table.entries.len() < self.0.places.most || table.oldest_open(|_| true).is_some()
            };
            if has_room {
                return;
            }
            changed.await;
        }
    }

    /// Takes a connection of `peer`, in the place of another if it must be. `None`: the peer has as many as it may, all busy.
    pub(super) fn take(&self, peer: Peer) -> Option<Connection> {
        let Places {
            most,
            most_of_a_peer,
            most_open_of_a_peer,
            ..
        } = self.0.places;
        let mut table = self.0.lock();
        let of_peer = table.entries.values().filter(|entry| entry.peer == peer);
        let (count, open) = of_peer.fold((0, 0), |(count, open), entry| {
            (count + 1, open + usize::from(entry.is_open))
        });
        if count >= most_of_a_peer || open >= most_open_of_a_peer {
            let oldest = table.oldest_open(|entry| entry.peer == peer)?;
            table.close(oldest);
        }
        if table.entries.len() >= most {
            let oldest = table.oldest_open(|_| true)?;
            table.close(oldest);
        }
        let (number, open_since, closed) =
            (table.number(), table.number(), CancellationToken::new());
        let entry = Entry {
            peer,
            is_open: true,
            has_answered: false,
            open_since,
            closed: closed.clone(),
        };
        table.entries.insert(number, entry);
        Some(Connection {
            shared: self.0.clone(),
            number,
            closed,
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn oldest_open(&self, wanted: impl Fn(&Entry) -> bool) -> Option<u64> {
        let open = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.is_open && wanted(entry));
        open.min_by_key(|(_, entry)| (entry.has_answered, entry.open_since))
            .map(|(number, _)| *number)
    }

    fn close(&mut self, number: u64) {
        if let Some(entry) = self.entries.remove(&number) {
            entry.closed.cancel();
        }
    }
}

/// A connection that was taken: its place is given back when this is dropped.
pub(super) struct Connection {
    shared: Arc<Shared>,
    number: u64,
    /// Set when its place is given to another one.
    pub(super) closed: CancellationToken,
}

impl Connection {
    /// The head of a request is complete. `None`: every place that is not kept for probes is taken, and it is no probe.
    pub(super) fn busy(&self, is_probe: bool) -> Option<Busy> {
        let mut table = self.shared.lock();
        let most = self.shared.places.most - self.shared.places.kept_for_probes;
        if !is_probe && table.requests >= most {
            return None;
        }
        table.requests += usize::from(!is_probe);
        if let Some(entry) = table.entries.get_mut(&self.number) {
            entry.is_open = false;
        }
        Some(Busy {
            shared: self.shared.clone(),
            number: self.number,
            is_probe,
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.lock().entries.remove(&self.number);
        self.shared.changed.notify_one();
    }
}

/// A request that is being answered: its connection is open again when this is dropped.
pub(super) struct Busy {
    shared: Arc<Shared>,
    number: u64,
    is_probe: bool,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut table = self.shared.lock();
        let open_since = table.number();
        table.requests -= usize::from(!self.is_probe);
        if let Some(entry) = table.entries.get_mut(&self.number) {
            entry.is_open = true;
            entry.has_answered = true;
            entry.open_since = open_since;
        }
        self.shared.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn peer(last: u8) -> Peer {
        Peer::Network([192, 0, 2, last].into())
    }

    fn connections() -> Connections {
        Connections::new(Places {
            most: 6,
            kept_for_probes: 2,
            most_of_a_peer: 4,
            most_open_of_a_peer: 3,
        })
    }

    fn taken(connections: &Connections, last: u8, count: usize) -> Vec<Connection> {
        (0..count)
            .map(|_| connections.take(peer(last)).expect("a place"))
            .collect()
    }

    #[test]
    fn the_oldest_open_connection_of_a_peer_makes_room_for_its_next() {
        let connections = connections();
        let other = taken(&connections, 2, 1);
        let mine = taken(&connections, 1, 5);
        let closed: Vec<bool> = mine
            .iter()
            .map(|connection| connection.closed.is_cancelled())
            .collect();
        assert_eq!(closed, [true, true, false, false, false]);
        assert!(!other[0].closed.is_cancelled(), "of another peer none goes");
    }

    #[test]
    fn a_busy_connection_never_makes_room() {
        let connections = connections();
        let mine = taken(&connections, 1, 3);
        let _busy: Vec<Busy> = mine
            .iter()
            .map(|connection| connection.busy(true).unwrap())
            .collect();
        let fourth = connections.take(peer(1)).unwrap();
        let _fifth = connections.take(peer(1)).unwrap();
        assert!(
            fourth.closed.is_cancelled()
                && mine
                    .iter()
                    .all(|connection| !connection.closed.is_cancelled())
        );
        let _all = _fifth.busy(true);
        assert!(
            connections.take(peer(1)).is_none(),
            "a peer with all its connections busy gets no more"
        );
        assert!(connections.take(peer(2)).is_some(), "another one does");
    }

    #[test]
    fn an_answered_request_leaves_its_connection_open_again() {
        let connections = connections();
        let mine = taken(&connections, 1, 3);
        drop(mine[0].busy(false));
        let _fourth = connections.take(peer(1)).unwrap();
        assert!(
            mine[1].closed.is_cancelled() && !mine[0].closed.is_cancelled(),
            "the one that was silent longest goes"
        );
    }

    #[test]
    fn silent_connections_go_before_those_that_were_used() {
        let connections = connections();
        let mine = taken(&connections, 1, 2);
        drop(mine[0].busy(false));
        let _more = taken(&connections, 1, 5);
        assert!(mine[1].closed.is_cancelled() && !mine[0].closed.is_cancelled());
    }

    #[test]
    fn the_last_places_are_for_probes() {
        let connections = connections();
        let all: Vec<Connection> = [1, 2, 3]
            .into_iter()
            .flat_map(|last| taken(&connections, last, 2))
            .collect();
        let busy: Vec<Busy> = all
            .iter()
            .take(4)
            .map(|connection| connection.busy(false).expect("a place"))
            .collect();
        assert!(all[4].busy(false).is_none());
        assert!(all[4].busy(true).is_some() && all[5].busy(true).is_some());
        drop(busy);
        assert!(all[4].busy(false).is_some());
    }

    #[test]
    fn a_full_listener_waits_until_a_connection_is_open() {
        let connections = connections();
        let all: Vec<Connection> = [1, 2, 3]
            .into_iter()
            .flat_map(|last| taken(&connections, last, 2))
            .collect();
        let mut busy: Vec<Busy> = all
            .iter()
            .map(|connection| connection.busy(true).unwrap())
            .collect();
        assert!(connections.room().now_or_never().is_none());
        busy.pop();
        assert!(connections.room().now_or_never().is_some());
        let _seventh = connections.take(peer(4)).unwrap();
        assert!(all[5].closed.is_cancelled());
    }
}
