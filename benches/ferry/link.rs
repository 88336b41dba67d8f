//! A link in front of a registry: every connection through it has its latency, shares its bandwidth, and is counted.
//!
//! Bytes are paid for on a wire that all connections of a direction share, first come, first served, and are handed on
//! half a round trip later. Nobody spins: waiting is sleeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// Bytes that are paid for at once.
const PIECE: usize = 32 * 1024;
/// How far a wire that was idle may make up for late timers.
const SLACK: Duration = Duration::from_millis(4);

/// What a link is like.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    /// Time there and back.
    pub round_trip: Duration,
    /// Bytes per second, each way.
    pub bandwidth: Option<f64>,
}

impl Nature {
    /// Counts and does nothing else.
    pub const TRANSPARENT: Nature = Nature { round_trip: Duration::ZERO, bandwidth: None };
}

/// What has passed.
#[derive(Debug, Default)]
pub struct Counts {
    requests: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed {
    /// Requests of clients.
    pub requests: u64,
    /// Bytes to the registry.
    pub up: u64,
    /// Bytes from the registry.
    pub down: u64,
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
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let counts = Arc::new(Counts::default());
        let server = tokio::spawn(serve(listener, upstream.to_owned(), nature, counts.clone()));
        Link { address, counts, server }
    }

    /// `host:port` of the near end.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What has passed since the last call.
    pub fn take(&self) -> Passed {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        Passed { requests: take(&self.counts.requests), up: take(&self.counts.up), down: take(&self.counts.down) }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// One direction's wire.
struct Wire {
    delay: Duration,
    bandwidth: Option<f64>,
    free: Mutex<Instant>,
}

impl Wire {
    fn new(nature: Nature) -> Arc<Wire> {
        Arc::new(Wire { delay: nature.round_trip / 2, bandwidth: nature.bandwidth, free: Mutex::new(Instant::now()) })
    }

    /// Waits until `bytes` may enter; returns when they come out.
    async fn pay(&self, bytes: usize) -> Instant {
        let Some(bandwidth) = self.bandwidth else { return Instant::now() + self.delay };
        // The lock is fair, so connections take turns.
        let mut free = self.free.lock().await;
        sleep_until(*free).await;
        let start = (*free).max(Instant::now() - SLACK);
        *free = start + Duration::from_secs_f64(bytes as f64 / bandwidth);
        (*free).max(Instant::now()) + self.delay
    }
}

async fn serve(listener: TcpListener, upstream: String, nature: Nature, counts: Arc<Counts>) {
    let (up, down) = (Wire::new(nature), Wire::new(nature));
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (up, down, counts, upstream) = (up.clone(), down.clone(), counts.clone(), upstream.clone());
        connections.spawn(async move {
            // The handshake goes there and back before the first byte.
            tokio::time::sleep(nature.round_trip).await;
            let Ok(server) = TcpStream::connect(upstream).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            let mut requests = Requests::default();
            let upward = carry(from_client, to_server, up, |bytes| {
                counts.up.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                counts.requests.fetch_add(requests.count(bytes), Ordering::Relaxed);
            });
            let downward = carry(from_server, to_client, down, |bytes| {
                counts.down.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            });
            tokio::join!(upward, downward);
        });
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, wire: Arc<Wire>, mut count: impl FnMut(&[u8])) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let reading = async {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            if from.read_buf(&mut piece).await.unwrap_or(0) == 0 {
                break;
            }
            count(&piece);
            let due = wire.pay(piece.len()).await;
            if sender.send((due, piece)).await.is_err() {
                break;
            }
        }
        drop(sender);
    };
    let writing = async {
        while let Some((due, piece)) = receiver.recv().await {
            if due > Instant::now() {
                sleep_until(due).await;
            }
            if to.write_all(&piece).await.is_err() {
                break;
            }
        }
        receiver.close();
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}

/// Finds where requests begin in the bytes of an HTTP/1.1 client.
#[derive(Default)]
struct Requests {
    state: Part,
}

enum Part {
    Head(Vec<u8>),
    Body(u64),
    ChunkSize(Vec<u8>),
    Chunk(u64),
    Trailer(Vec<u8>),
}

impl Default for Part {
    fn default() -> Part {
        Part::Head(Vec::new())
    }
}

impl Requests {
    /// How many heads end in `bytes`.
    fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut heads = 0;
        while !bytes.is_empty() {
            let taken = match &mut self.state {
                Part::Body(left) | Part::Chunk(left) => {
                    let taken = (*left).min(bytes.len() as u64);
                    *left -= taken;
                    taken as usize
                }
                Part::Head(text) | Part::ChunkSize(text) | Part::Trailer(text) => {
                    let end = bytes.iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| at + 1);
                    text.extend_from_slice(&bytes[..end]);
                    end
                }
            };
            bytes = &bytes[taken..];
            if let Some(next) = self.state.next() {
                heads += u64::from(matches!(self.state, Part::Head(_)));
                self.state = next;
            }
        }
        heads
    }
}

impl Part {
    /// What comes after this part, once it has ended.
    fn next(&self) -> Option<Part> {
        match self {
            Part::Body(0) => Some(Part::default()),
            Part::Chunk(0) => Some(Part::ChunkSize(Vec::new())),
            Part::Head(text) if text.ends_with(b"\r\n\r\n") => Some(body_of(&String::from_utf8_lossy(text).to_ascii_lowercase())),
            Part::ChunkSize(text) if text.ends_with(b"\n") => {
                let line = String::from_utf8_lossy(text);
                let digits = line.trim().split(';').next().unwrap_or_default();
                match u64::from_str_radix(digits, 16).unwrap_or(0) {
                    0 => Some(Part::Trailer(Vec::new())),
                    size => Some(Part::Chunk(size + 2)),
                }
            }
            Part::Trailer(text) if text == b"\r\n" || text.ends_with(b"\r\n\r\n") => Some(Part::default()),
            _ => None,
        }
    }
}

fn body_of(head: &str) -> Part {
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if field("transfer-encoding:").is_some_and(|coding| coding.contains("chunked")) {
        return Part::ChunkSize(Vec::new());
    }
    match field("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0) {
        0 => Part::default(),
        length => Part::Body(length),
    }
}
