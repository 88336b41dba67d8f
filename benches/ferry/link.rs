//! A link in front of a registry: every connection through it has its latency, shares its
//! bandwidth, and is counted.
//!
//! Bytes are paid for on a wire that all connections of a direction share, first come, first
//! served, and are handed on half a round trip later. Nothing spins: a wait is a sleep. In a storm
//! the link answers some requests by itself, after a round trip like any other.

use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use crate::http::{Requests, Storm};

/// Bytes that are paid for at once.
const PIECE: usize = 32 * 1024;
/// Pieces on their way in one direction of a connection.
const PIECES: usize = 64;
/// How far a wire that was idle may make up for late timers.
const SLACK: Duration = Duration::from_millis(4);

/// What a link is like.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    /// Time there and back.
    pub round_trip: Duration,
    /// Bytes per second, each way.
    pub bandwidth: Option<f64>,
    /// Bytes per second of one connection, each way.
    pub connection: Option<f64>,
    /// How long every other request is refused, from the first one on.
    pub storm: Duration,
}

impl Nature {
    /// Counts and does nothing else.
    pub const TRANSPARENT: Nature = Nature {
        round_trip: Duration::ZERO,
        bandwidth: None,
        connection: None,
        storm: Duration::ZERO,
    };

    /// Whether it only counts.
    pub fn is_transparent(&self) -> bool {
        let is_wide = self.bandwidth.is_none() && self.connection.is_none();
        self.round_trip.is_zero() && is_wide && self.storm.is_zero()
    }
}

/// What has passed.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    refused: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed {
    /// Requests of clients, the refused among them.
    pub requests: u64,
    /// Requests that the link answered with 429.
    pub refused: u64,
    /// Bytes to the registry.
    pub up: u64,
    /// Bytes from the registry.
    pub down: u64,
}

impl AddAssign for Passed {
    fn add_assign(&mut self, other: Passed) {
        self.requests += other.requests;
        self.refused += other.refused;
        self.up += other.up;
        self.down += other.down;
    }
}

/// A running link.
pub struct Link {
    address: String,
    counts: Arc<Counts>,
    server: JoinHandle<()>,
}

impl Link {
    /// A link to `upstream` (`host:port`).
    pub async fn before(upstream: &str, nature: Nature) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a loopback port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address")
            .to_string();
        let counts = Arc::new(Counts::default());
        let far = Arc::new(Far {
            upstream: upstream.to_owned(),
            round_trip: nature.round_trip,
            connection: nature.connection,
            up: Wire::new(nature.round_trip / 2, nature.bandwidth),
            down: Wire::new(nature.round_trip / 2, nature.bandwidth),
            storm: Storm::new(nature.storm),
            counts: counts.clone(),
        });
        Link {
            address,
            counts,
            server: tokio::spawn(serve(listener, far)),
        }
    }

    /// `host:port` of the near end.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Bytes that have gone to the registry since the last [`Link::take`].
    pub fn sent(&self) -> u64 {
        self.counts.up.load(Ordering::Relaxed)
    }

    /// What has passed since the last call.
    pub fn take(&self) -> Passed {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        let Counts {
            requests,
            refused,
            up,
            down,
        } = &*self.counts;
        Passed {
            requests: take(requests),
            refused: take(refused),
            up: take(up),
            down: take(down),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// What all connections of a link share.
struct Far {
    upstream: String,
    round_trip: Duration,
    connection: Option<f64>,
    up: Wire,
    down: Wire,
    storm: Storm,
    counts: Arc<Counts>,
}

/// One direction's wire.
struct Wire {
    delay: Duration,
    bandwidth: Option<f64>,
    free: Mutex<Instant>,
}

impl Wire {
    fn new(delay: Duration, bandwidth: Option<f64>) -> Wire {
        Wire {
            delay,
            bandwidth,
            free: Mutex::new(Instant::now()),
        }
    }

    /// Waits until `bytes` may enter; returns when they come out.
    async fn pay(&self, bytes: usize) -> Instant {
        let Some(bandwidth) = self.bandwidth else {
            return Instant::now() + self.delay;
        };
        // The lock is fair, so connections take turns.
        let mut free = self.free.lock().await;
        sleep_until(*free).await;
        let start = (*free).max(Instant::now() - SLACK);
        *free = start + Duration::from_secs_f64(bytes as f64 / bandwidth);
        (*free).max(Instant::now()) + self.delay
    }
}

/// Bytes and when they come out; none: the end.
type Piece = (Instant, Vec<u8>);

async fn serve(listener: TcpListener, far: Arc<Far>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(connect(client, far.clone()));
    }
}

async fn connect(client: TcpStream, far: Arc<Far>) {
    // The handshake goes there and back before the first byte.
    sleep(far.round_trip).await;
    let Ok(server) = TcpStream::connect(&far.upstream).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let (up, to_write_up) = mpsc::channel(PIECES);
    let (down, to_write_down) = mpsc::channel(PIECES);
    tokio::join!(
        upward(from_client, up, down.clone(), &far),
        writing(to_write_up, to_server),
        downward(from_server, down, &far),
        writing(to_write_down, to_client),
    );
}

/// Carries what the client sends; what the storm refuses is answered here.
async fn upward(
    mut from: OwnedReadHalf,
    up: mpsc::Sender<Piece>,
    down: mpsc::Sender<Piece>,
    far: &Far,
) {
    let counts = &far.counts;
    let mut requests = Requests::default();
    let own = Wire::new(Duration::ZERO, far.connection);
    while let Some(piece) = read(&mut from).await {
        counts.up.fetch_add(piece.len() as u64, Ordering::Relaxed);
        own.pay(piece.len()).await;
        let due = far.up.pay(piece.len()).await;
        let mut answers = Vec::new();
        let on = requests.pass(piece, |head| {
            counts.requests.fetch_add(1, Ordering::Relaxed);
            let refusal = far.storm.refusal(head);
            let refused = refusal.is_some();
            answers.extend(refusal);
            refused
        });
        for answer in answers {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            if down.send((due + far.round_trip / 2, answer)).await.is_err() {
                return;
            }
        }
        if !on.is_empty() && up.send((due, on)).await.is_err() {
            return;
        }
    }
}

async fn downward(mut from: OwnedReadHalf, down: mpsc::Sender<Piece>, far: &Far) {
    let own = Wire::new(Duration::ZERO, far.connection);
    while let Some(piece) = read(&mut from).await {
        far.counts
            .down
            .fetch_add(piece.len() as u64, Ordering::Relaxed);
        own.pay(piece.len()).await;
        let due = far.down.pay(piece.len()).await;
        if down.send((due, piece)).await.is_err() {
            return;
        }
    }
    // The other sender of this channel lives as long as the client does.
    let _ = down.send((Instant::now(), Vec::new())).await;
}

async fn read(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut piece = Vec::with_capacity(PIECE);
    let bytes = from.read_buf(&mut piece).await.unwrap_or(0);
    (bytes > 0).then_some(piece)
}

async fn writing(mut pieces: mpsc::Receiver<Piece>, mut to: OwnedWriteHalf) {
    while let Some((due, piece)) = pieces.recv().await {
        if due > Instant::now() {
            sleep_until(due).await;
        }
        if piece.is_empty() || to.write_all(&piece).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
