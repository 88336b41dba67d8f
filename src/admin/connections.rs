//! The connections of a listener: how many there are, of which client, and which one goes when
//! there are too many.
//!
//! A connection is *open* while no whole request has arrived on it: just made, silent, idle between
//! two requests, or with a body that is still arriving. One that is open can be closed at any time
//! without harm, since nothing was done for it; one that is *busy* cannot. So a new connection is
//! always taken: in the place of the oldest open one of its own client when that has too many of
//! them, or of the oldest open one at all when every place is taken. Connections on which no
//! request was ever answered go first. A client never has all places, only requests for health and
//! metrics may take the last ones, and stalled bodies keep no other request out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How many connections a listener has.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionLimits {
    /// All of them.
    pub(super) total: usize,
    /// Of these, so many only answer for health and metrics.
    pub(super) reserved_for_probes: usize,
    /// Of one client.
    pub(super) per_client: usize,
    /// Open ones of one client.
    pub(super) idle_per_client: usize,
}

/// A client, as far as connections are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ClientKey {
    /// An address, or the network of an IPv6 address.
    Network(IpAddr),
    /// A user of this machine.
    User(u32),
}

/// The connections of one listener. A handle: cheap to clone.
#[derive(Clone)]
pub(super) struct Connections(Arc<Shared>);

struct Shared {
    limits: ConnectionLimits,
    table: Mutex<Table>,
    changed: Notify,
}

#[derive(Default)]
struct Table {
    next: u64,
    /// By number, hence by age.
    entries: BTreeMap<u64, Entry>,
}

/// How far the newest request on a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Its head has not arrived.
    Idle,
    /// Its body has not arrived in full.
    Arriving { is_probe: bool },
    /// It is being answered.
    Busy { is_probe: bool },
}

struct Entry {
    client: ClientKey,
    phase: Phase,
    /// Whether a request on it has been answered: a client that keeps it may send the next one now.
    has_answered: bool,
    /// Since when it has been open, in the order of all connections.
    idle_since: u64,
    closed: CancellationToken,
}

impl Connections {
    pub(super) fn new(limits: ConnectionLimits) -> Connections {
        Connections(Arc::new(Shared {
            limits,
            table: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// Waits until a connection could be taken.
    pub(super) async fn wait_for_capacity(&self) {
        loop {
            let changed = self.0.changed.notified();
            let has_room = {
                let table = self.0.lock();
                table.entries.len() < self.0.limits.total || table.oldest_idle(|_| true).is_some()
            };
            if has_room {
                return;
            }
            changed.await;
        }
    }

    /// Takes a connection of `client`, in the place of another if it must be. `None`: the client
    /// has as many as it may, all busy.
    pub(super) fn admit(&self, client: ClientKey) -> Option<ConnectionSlot> {
        let ConnectionLimits {
            total,
            per_client,
            idle_per_client,
            ..
        } = self.0.limits;
        let mut table = self.0.lock();
        let of_client = table
            .entries
            .values()
            .filter(|entry| entry.client == client);
        let (count, open) = of_client.fold((0, 0), |(count, open), entry| {
            (count + 1, open + usize::from(entry.is_open()))
        });
        if count >= per_client || open >= idle_per_client {
            let oldest = table.oldest_idle(|entry| entry.client == client)?;
            table.close(oldest);
        }
        if table.entries.len() >= total {
            let oldest = table.oldest_idle(|_| true)?;
            table.close(oldest);
        }
        let (number, idle_since, closed) =
            (table.number(), table.number(), CancellationToken::new());
        let entry = Entry {
            client,
            phase: Phase::Idle,
            has_answered: false,
            idle_since,
            closed: closed.clone(),
        };
        table.entries.insert(number, entry);
        Some(ConnectionSlot {
            shared: self.0.clone(),
            number,
            closed,
        })
    }
}

impl Entry {
    fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::Busy { .. })
    }

    /// Whether it has a request, arriving or being answered, that is not for health or metrics.
    fn has_request(&self) -> bool {
        matches!(
            self.phase,
            Phase::Arriving { is_probe: false } | Phase::Busy { is_probe: false }
        )
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

    fn oldest_idle(&self, wanted: impl Fn(&Entry) -> bool) -> Option<u64> {
        let open = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.is_open() && wanted(entry));
        open.min_by_key(|(_, entry)| (entry.has_answered, entry.idle_since))
            .map(|(number, _)| *number)
    }

    fn requests(&self) -> usize {
        let entries = self.entries.values();
        entries.filter(|entry| entry.has_request()).count()
    }

    fn close(&mut self, number: u64) {
        if let Some(entry) = self.entries.remove(&number) {
            entry.closed.cancel();
        }
    }
}

/// A connection that was taken: its place is given back when this is dropped.
pub(super) struct ConnectionSlot {
    shared: Arc<Shared>,
    number: u64,
    /// Set when its place is given to another one.
    pub(super) closed: CancellationToken,
}

impl ConnectionSlot {
    /// The head of a request is complete. When every place that is not kept for probes is taken, the
    /// oldest request with a body that is still arriving makes room; `None`: there is none, and this
    /// is no probe.
    pub(super) fn start_request(&self, is_probe: bool) -> Option<ActiveRequest> {
        let mut table = self.shared.lock();
        let most = self.shared.limits.total - self.shared.limits.reserved_for_probes;
        if !is_probe && table.requests() >= most {
            let arriving = table.oldest_idle(Entry::has_request)?;
            table.close(arriving);
        }
        let idle_since = table.number();
        if let Some(entry) = table.entries.get_mut(&self.number) {
            entry.phase = Phase::Arriving { is_probe };
            entry.idle_since = idle_since;
        }
        Some(ActiveRequest {
            shared: self.shared.clone(),
            number: self.number,
        })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.shared.lock().entries.remove(&self.number);
        self.shared.changed.notify_one();
    }
}

/// A request that arrives and is answered: its connection is idle again when this is dropped.
pub(super) struct ActiveRequest {
    shared: Arc<Shared>,
    number: u64,
}

impl ActiveRequest {
    /// Tells when the request has arrived in full.
    pub(super) fn arrival(&self) -> Arrival {
        Arrival {
            shared: self.shared.clone(),
            number: self.number,
        }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let mut table = self.shared.lock();
        let idle_since = table.number();
        if let Some(entry) = table.entries.get_mut(&self.number) {
            entry.phase = Phase::Idle;
            entry.has_answered = true;
            entry.idle_since = idle_since;
        }
        self.shared.changed.notify_one();
    }
}

/// The arrival of a request.
pub(super) struct Arrival {
    shared: Arc<Shared>,
    number: u64,
}

impl Arrival {
    /// The request is there, with its body.
    pub(super) fn complete(&self) {
        let mut table = self.shared.lock();
        if let Some(entry) = table.entries.get_mut(&self.number)
            && let Phase::Arriving { is_probe } = entry.phase
        {
            entry.phase = Phase::Busy { is_probe };
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn client(last: u8) -> ClientKey {
        ClientKey::Network([192, 0, 2, last].into())
    }

    fn connections() -> Connections {
        Connections::new(ConnectionLimits {
            total: 6,
            reserved_for_probes: 2,
            per_client: 4,
            idle_per_client: 3,
        })
    }

    /// A request that has arrived in full.
    fn whole(slot: &ConnectionSlot, is_probe: bool) -> Option<ActiveRequest> {
        let request = slot.start_request(is_probe)?;
        request.arrival().complete();
        Some(request)
    }

    fn taken(connections: &Connections, last: u8, count: usize) -> Vec<ConnectionSlot> {
        (0..count)
            .map(|_| connections.admit(client(last)).expect("a place"))
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
        assert!(
            !other[0].closed.is_cancelled(),
            "of another client none goes"
        );
    }

    #[test]
    fn a_busy_connection_never_makes_room() {
        let connections = connections();
        let mine = taken(&connections, 1, 3);
        let _busy: Vec<ActiveRequest> = mine
            .iter()
            .map(|connection| whole(connection, true).unwrap())
            .collect();
        let fourth = connections.admit(client(1)).unwrap();
        let _fifth = connections.admit(client(1)).unwrap();
        assert!(
            fourth.closed.is_cancelled()
                && mine
                    .iter()
                    .all(|connection| !connection.closed.is_cancelled())
        );
        let _all = whole(&_fifth, true);
        assert!(
            connections.admit(client(1)).is_none(),
            "a client with all its connections busy gets no more"
        );
        assert!(connections.admit(client(2)).is_some(), "another one does");
    }

    #[test]
    fn an_answered_request_leaves_its_connection_open_again() {
        let connections = connections();
        let mine = taken(&connections, 1, 3);
        drop(whole(&mine[0], false));
        let _fourth = connections.admit(client(1)).unwrap();
        assert!(
            mine[1].closed.is_cancelled() && !mine[0].closed.is_cancelled(),
            "the one that was silent longest goes"
        );
    }

    #[test]
    fn silent_connections_go_before_those_that_were_used() {
        let connections = connections();
        let mine = taken(&connections, 1, 2);
        drop(whole(&mine[0], false));
        let _more = taken(&connections, 1, 5);
        assert!(mine[1].closed.is_cancelled() && !mine[0].closed.is_cancelled());
    }

    #[test]
    fn the_last_places_are_for_probes() {
        let connections = connections();
        let all: Vec<ConnectionSlot> = [1, 2, 3]
            .into_iter()
            .flat_map(|last| taken(&connections, last, 2))
            .collect();
        let busy: Vec<ActiveRequest> = all
            .iter()
            .take(4)
            .map(|connection| whole(connection, false).expect("a place"))
            .collect();
        assert!(whole(&all[4], false).is_none());
        assert!(whole(&all[4], true).is_some() && whole(&all[5], true).is_some());
        drop(busy);
        assert!(whole(&all[4], false).is_some());
    }

    #[test]
    fn a_full_listener_waits_until_a_connection_is_open() {
        let connections = connections();
        let all: Vec<ConnectionSlot> = [1, 2, 3]
            .into_iter()
            .flat_map(|last| taken(&connections, last, 2))
            .collect();
        let mut busy: Vec<ActiveRequest> = all
            .iter()
            .map(|connection| whole(connection, true).unwrap())
            .collect();
        assert!(connections.wait_for_capacity().now_or_never().is_none());
        busy.pop();
        assert!(connections.wait_for_capacity().now_or_never().is_some());
        let _seventh = connections.admit(client(4)).unwrap();
        assert!(all[5].closed.is_cancelled());
    }

    #[test]
    fn a_body_that_stalls_makes_room_for_the_next_connection_of_its_client() {
        let connections = connections();
        let stalled = taken(&connections, 1, 3);
        let requests: Vec<ActiveRequest> = stalled
            .iter()
            .map(|connection| connection.start_request(false).unwrap())
            .collect();
        let next = connections.admit(client(1)).unwrap();
        assert!(stalled[0].closed.is_cancelled() && !stalled[1].closed.is_cancelled());
        requests[1].arrival().complete();
        let _probe = whole(&next, true).unwrap();
        let _more = taken(&connections, 1, 3);
        assert!(
            stalled[2].closed.is_cancelled() && !stalled[1].closed.is_cancelled(),
            "a request that has arrived stays"
        );
    }

    #[test]
    fn bodies_that_stall_keep_no_request_out() {
        let connections = connections();
        let all: Vec<ConnectionSlot> = [1, 2, 3]
            .into_iter()
            .flat_map(|last| taken(&connections, last, 2))
            .collect();
        let _stalled: Vec<ActiveRequest> = all
            .iter()
            .take(4)
            .map(|connection| connection.start_request(false).unwrap())
            .collect();
        assert!(whole(&all[4], false).is_some());
        assert!(all[0].closed.is_cancelled() && !all[1].closed.is_cancelled());
    }
}
