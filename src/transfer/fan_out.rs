//! Fan-out: one read of a blob feeds all destinations that need it now.
//!
//! - Jobs for the same source tag are a [`Party`]. Who reads a blob first opens a shared read; the others of the party take a
//!   seat in it, also a little later: its window holds the start of the blob until nobody is expected any more.
//! - Nobody is held back for long: who goes ahead waits for the slower ones for a bounded time, then they are left behind
//!   and go on by themselves. Who fails or leaves is not waited for.
//! - Memory is bounded: by a window for each read, and by a sum over all of them.
//!
//! Each seat is a body like any other: every destination's own road counts, hashes and judges it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{OnceCell, OwnedSemaphorePermit};
use tokio::time::{Instant, Sleep};

use super::verify::{Open, Opening};
use crate::endpoint::{BlobBody, Origin};
use crate::fault::{Class, Fault};
use crate::oci::{Digest, RepositoryName, Tag};

/// Bytes that one read keeps for those who are behind.
const WINDOW: usize = 8 * 1024 * 1024;
/// Bytes that all reads together keep.
const ALL_WINDOWS: usize = 32 * 1024 * 1024;
/// How long one read waits for those who are behind, beyond a twentieth of its time.
const GRACE: Duration = Duration::from_secs(1);

/// All shared reads. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct FanOut(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    parties: HashMap<PartyKey, Arc<Party>>,
    reads: HashMap<ReadKey, Arc<Read>>,
    kept: Arc<AtomicUsize>,
    next: u64,
}

type PartyKey = (Origin, RepositoryName, Tag);
type ReadKey = (Origin, RepositoryName, Digest);

/// The jobs that bring one source tag to several destinations at the same time.
#[derive(Default)]
struct Party {
    /// One right to run for all of them: they come and go together.
    right: OnceCell<OwnedSemaphorePermit>,
    state: Mutex<Guests>,
}

#[derive(Default)]
struct Guests {
    members: BTreeMap<u64, Origin>,
    /// Blobs that a destination needs no more, or reads already.
    settled: HashSet<(Origin, Digest)>,
    /// Destinations that were left behind: they are not waited for again.
    slow: HashSet<Origin>,
}

/// A job's place in its party, until dropped.
pub(super) struct Member {
    fan_out: FanOut,
    party: Arc<Party>,
    key: PartyKey,
    number: u64,
    destination: Origin,
}

impl FanOut {
    /// Joins the jobs for the same source tag.
    pub(super) fn enter(&self, source: &Origin, repository: &RepositoryName, tag: &Tag, destination: &Origin) -> Member {
        let key = (source.clone(), repository.clone(), tag.clone());
        let mut table = self.lock();
        table.next += 1;
        let (number, party) = (table.next, table.parties.entry(key.clone()).or_default().clone());
        party.lock().members.insert(number, destination.clone());
        Member { fan_out: self.clone(), party, key, number, destination: destination.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().expect("nothing panics while it holds the table")
    }

    /// Nobody needs to wait for this destination any more.
    fn excuse(&self, party: &Arc<Party>, destination: &Origin, digest: Option<&Digest>) {
        let concerns = |read: &Read| Arc::ptr_eq(&read.party, party) && digest.is_none_or(|digest| read.key.2 == *digest);
        self.lock().reads.retain(|_, read| !concerns(read) || read.excuse(destination));
    }
}

impl Party {
    fn lock(&self) -> MutexGuard<'_, Guests> {
        self.state.lock().expect("nothing panics while it holds the guests")
    }
}

impl Member {
    /// Waits for the right to run, which `right` gives once for all of the party.
    pub(super) async fn admitted(&self, right: impl Future<Output = OwnedSemaphorePermit>) {
        self.party.right.get_or_init(|| right).await;
    }

    /// A seat in a shared read of the blob from its start. `None`: nobody else needs it now.
    pub(super) fn seat(&self, digest: &Digest, size: u64, open: impl FnOnce() -> Open) -> Option<Seat> {
        let key = (self.key.0.clone(), self.key.1.clone(), *digest);
        let mut table = self.fan_out.lock();
        let expected = self.expected(digest);
        if let Some(seat) = table.reads.get(&key).and_then(|read| read.join(&self.destination, size)) {
            return Some(seat);
        }
        if expected.is_empty() {
            return None;
        }
        table.shed();
        let read = Read::new(self.fan_out.clone(), key.clone(), self.party.clone(), expected, table.kept.clone(), open());
        table.reads.insert(key, read.clone());
        read.join(&self.destination, size)
    }

    /// The other destinations of the party that may still need the blob; this one needs no more waiting for.
    fn expected(&self, digest: &Digest) -> HashSet<Origin> {
        let mut guests = self.party.lock();
        if guests.members.len() < 2 {
            return HashSet::new();
        }
        guests.settled.insert((self.destination.clone(), *digest));
        let waits = |origin: &&Origin| !guests.slow.contains(*origin) && !guests.settled.contains(&((*origin).clone(), *digest));
        guests.members.values().filter(waits).cloned().collect()
    }

    /// The destination needs no more of the blob, whatever came of it.
    pub(super) fn settled(&self, digest: &Digest) {
        let mut guests = self.party.lock();
        if guests.members.len() > 1 {
            guests.settled.insert((self.destination.clone(), *digest));
            drop(guests);
            self.fan_out.excuse(&self.party, &self.destination, Some(digest));
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut table = self.fan_out.lock();
        let mut guests = self.party.lock();
        guests.members.remove(&self.number);
        let is_last = guests.members.is_empty();
        drop(guests);
        if is_last {
            table.parties.remove(&self.key);
        }
        drop(table);
        self.fan_out.excuse(&self.party, &self.destination, None);
    }
}

impl Table {
    /// Forgets what ended reads keep for those who never came, where memory is short.
    fn shed(&mut self) {
        if self.kept.load(Ordering::Relaxed) >= ALL_WINDOWS {
            self.reads.retain(|_, read| !read.lock().is_over());
        }
    }
}

/// A read that several destinations share.
pub(super) struct Read {
    fan_out: FanOut,
    key: ReadKey,
    party: Arc<Party>,
    right: OnceCell<()>,
    bell: Arc<Bell>,
    state: Mutex<State>,
}

struct State {
    open: Open,
    source: Source,
    /// What keeps the right to read until the source has ended.
    right: Option<Box<dyn Send>>,
    frames: VecDeque<Bytes>,
    /// The number of the first frame that is kept, and the bytes of all that are.
    first: u64,
    bytes: usize,
    kept: Arc<AtomicUsize>,
    /// Bytes that came from the source.
    read: u64,
    size: u64,
    /// The next frame of each seat.
    seats: HashMap<u64, u64>,
    next_seat: u64,
    /// Destinations that may still come for the start.
    expected: HashSet<Origin>,
    began: Instant,
    waited: Duration,
    waiting_since: Option<Instant>,
}

enum Source {
    Closed,
    Opening(Opening),
    Open(BlobBody),
    Ended,
    Failed(Class, String),
}

/// Wakes everybody who waits for the read.
#[derive(Default)]
struct Bell(Mutex<Vec<Waker>>);

impl Bell {
    fn listen(&self, waker: &Waker) {
        let mut waiting = self.0.lock().expect("nothing panics while it holds the wakers");
        if !waiting.iter().any(|other| other.will_wake(waker)) {
            waiting.push(waker.clone());
        }
    }

    fn ring(&self) {
        let waiting = std::mem::take(&mut *self.0.lock().expect("nothing panics while it holds the wakers"));
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Bell>) {
        self.ring();
    }
}

impl Read {
    fn new(
        fan_out: FanOut,
        key: ReadKey,
        party: Arc<Party>,
        expected: HashSet<Origin>,
        kept: Arc<AtomicUsize>,
        open: Open,
    ) -> Arc<Read> {
        let state = State {
            open,
            source: Source::Closed,
            right: None,
            frames: VecDeque::new(),
            first: 0,
            bytes: 0,
            kept,
            read: 0,
            size: 0,
            seats: HashMap::new(),
            next_seat: 0,
            expected,
            began: Instant::now(),
            waited: Duration::ZERO,
            waiting_since: None,
        };
        Arc::new(Read { fan_out, key, party, right: OnceCell::new(), bell: Arc::default(), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a poll that panicked has ended its request")
    }

    /// A seat at the start, if that is still there.
    fn join(self: &Arc<Read>, destination: &Origin, size: u64) -> Option<Seat> {
        let mut state = self.lock();
        if state.first > 0 || matches!(state.source, Source::Failed(..)) || (state.size != size && state.next_seat > 0) {
            return None;
        }
        state.size = size;
        state.expected.remove(destination);
        let number = state.next_seat;
        state.next_seat += 1;
        state.seats.insert(number, 0);
        Some(Seat { read: self.clone(), number, left: size, timer: None, is_first: number == 0 })
    }

    /// A destination does not come any more. Returns whether the read is still needed.
    fn excuse(&self, destination: &Origin) -> bool {
        let mut state = self.lock();
        if state.expected.remove(destination) {
            state.trim();
            self.bell.ring();
        }
        !(state.seats.is_empty() && (state.expected.is_empty() || !state.is_over()))
    }
}

impl State {
    fn is_over(&self) -> bool {
        self.seats.is_empty() && matches!(self.source, Source::Ended | Source::Failed(..))
    }

    fn is_full(&self) -> bool {
        self.bytes >= WINDOW || self.kept.load(Ordering::Relaxed) >= ALL_WINDOWS
    }

    fn push(&mut self, bytes: Bytes) {
        self.read += bytes.len() as u64;
        self.bytes += bytes.len();
        self.kept.fetch_add(bytes.len(), Ordering::Relaxed);
        self.frames.push_back(bytes);
    }

    /// Lets go what everybody has.
    fn trim(&mut self) {
        if !self.expected.is_empty() && self.first == 0 {
            return;
        }
        let end = self.first + self.frames.len() as u64;
        let needed = self.seats.values().copied().min().unwrap_or(end);
        while self.first < needed {
            let Some(bytes) = self.frames.pop_front() else { break };
            self.first += 1;
            self.bytes -= bytes.len();
            self.kept.fetch_sub(bytes.len(), Ordering::Relaxed);
            if let Some(since) = self.waiting_since.take() {
                self.waited += since.elapsed();
            }
        }
    }

    /// How much longer the ones ahead wait for the ones behind.
    fn patience(&mut self) -> Duration {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let allowed = GRACE + self.began.elapsed() / 20;
        allowed.saturating_sub(self.waited + since.elapsed())
    }

    /// Goes on without the slowest; returns the destinations that did not come at all.
    fn leave_behind(&mut self) -> HashSet<Origin> {
        let missing = std::mem::take(&mut self.expected);
        if missing.is_empty() {
            let first = self.first;
            self.seats.retain(|_, next| *next > first);
        }
        self.trim();
        missing
    }

    /// Asks the source for one more frame; opens it again where it broke off.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.source {
            Source::Closed => self.source = Source::Opening((self.open)(self.read)),
            Source::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                Ok(body) => self.source = Source::Open(body),
                Err(fault) => self.fail(fault),
            },
            Source::Open(body) => match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if self.read + bytes.len() as u64 > self.size => {
                        self.fail(Fault::corrupt("it is longer than its manifest says"))
                    }
                    Ok(bytes) if !bytes.is_empty() => self.push(bytes),
                    _ => {}
                },
                Some(Err(fault)) if !fault.class().is_retryable() => self.fail(fault),
                _ if self.read < self.size => self.source = Source::Opening((self.open)(self.read)),
                _ => {
                    self.source = Source::Ended;
                    self.right = None;
                }
            },
            Source::Ended | Source::Failed(..) => {}
        }
        Poll::Ready(())
    }

    fn fail(&mut self, fault: Fault) {
        self.source = Source::Failed(fault.class(), fault.chain());
        self.right = None;
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.kept.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One destination's place in a shared read: a body from the start of the blob.
pub(super) struct Seat {
    read: Arc<Read>,
    number: u64,
    left: u64,
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether it opened the read: what is counted once is counted for it.
    pub(super) is_first: bool,
}

impl Seat {
    /// Waits for the right to read, which `right` gives once for all seats.
    pub(super) async fn admitted<T: Send + 'static>(&self, right: impl Future<Output = T>) {
        let keep = async {
            let right = right.await;
            self.read.lock().right = Some(Box::new(right));
        };
        self.read.right.get_or_init(|| keep).await;
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        let read = self.read.clone();
        let mut state = read.lock();
        loop {
            let Some(next) = state.seats.get(&self.number).copied() else {
                return Poll::Ready(Some(Err(Fault::retryable("left behind by the other destinations"))));
            };
            if let Some(bytes) = state.frames.get((next - state.first) as usize).cloned() {
                state.seats.insert(self.number, next + 1);
                state.trim();
                drop(state);
                read.bell.ring();
                return Poll::Ready(Some(Ok(bytes)));
            }
            match &state.source {
                Source::Ended => return Poll::Ready(None),
                Source::Failed(class, text) => return Poll::Ready(Some(Err(Fault::new(*class, text.clone())))),
                _ => {}
            }
            read.bell.listen(cx.waker());
            if state.is_full() && !state.frames.is_empty() {
                ready!(self.poll_patience(&mut state, cx));
                let missing = state.leave_behind();
                read.party.lock().slow.extend(missing);
            } else {
                let waker = Waker::from(read.bell.clone());
                ready!(state.poll_source(&mut Context::from_waker(&waker)));
            }
            self.timer = None;
            read.bell.ring();
            read.bell.listen(cx.waker());
        }
    }

    /// Waits for those behind. Whoever comes on meanwhile rings the bell.
    fn poll_patience(&mut self, state: &mut State, cx: &mut Context<'_>) -> Poll<()> {
        let patience = state.patience();
        let due = Instant::now() + patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        timer.as_mut().reset(due);
        if patience.is_zero() { Poll::Ready(()) } else { timer.as_mut().poll(cx) }
    }
}

impl Body for Seat {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let next = ready!(self.poll_next(cx));
        if let Some(Ok(bytes)) = &next {
            self.left = self.left.saturating_sub(bytes.len() as u64);
        }
        Poll::Ready(next.map(|bytes| bytes.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let is_over = {
            let mut state = self.read.lock();
            state.seats.remove(&self.number);
            state.trim();
            state.seats.is_empty()
        };
        self.read.bell.ring();
        if is_over {
            let mut table = self.read.fan_out.lock();
            let is_this = table.reads.get(&self.read.key).is_some_and(|read| Arc::ptr_eq(read, &self.read));
            let is_needed = {
                let state = self.read.lock();
                !state.seats.is_empty() || (!state.expected.is_empty() && state.is_over())
            };
            let forgotten = if is_this && !is_needed { table.reads.remove(&self.read.key) } else { None };
            drop(table);
            drop(forgotten);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;

    const MIB: usize = 1024 * 1024;

    fn origin(name: &str) -> Origin {
        Origin::new(&format!("http://{name}"))
    }

    fn enter(fan_out: &FanOut, destination: &str) -> Member {
        fan_out.enter(&origin("staging"), &"app".parse().unwrap(), &"v1".parse().unwrap(), &origin(destination))
    }

    /// A source of so many MiB that counts what is read from it.
    fn source(mebibytes: usize, count: &Arc<AtomicUsize>) -> Open {
        let count = count.clone();
        Box::new(move |offset| {
            let count = count.clone();
            let frames = (offset as usize / MIB..mebibytes).map(move |number| {
                count.fetch_add(MIB, Ordering::Relaxed);
                Ok(Frame::data(Bytes::from(vec![number as u8; MIB])))
            });
            Box::pin(async move { Ok(BlobBody::new(StreamBody::new(futures::stream::iter(frames)))) })
        })
    }

    async fn drain(seat: Seat) -> Result<usize, Fault> {
        let mut body = BlobBody::new(seat);
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame?.len();
            tokio::task::yield_now().await;
        }
        Ok(bytes)
    }

    #[tokio::test(start_paused = true)]
    async fn each_byte_is_read_once_for_all() {
        let (fan_out, count) = (FanOut::default(), Arc::default());
        let digest = Digest::sha256(b"x");
        let members = ["a", "b", "c"].map(|name| enter(&fan_out, name));
        let seats = members.each_ref().map(|member| member.seat(&digest, 40 << 20, || source(40, &count)).unwrap());
        let all = futures::future::join_all(seats.map(drain)).await;
        assert!(all.into_iter().all(|bytes| bytes.unwrap() == 40 * MIB));
        assert_eq!(count.load(Ordering::Relaxed), 40 * MIB);
        assert!(fan_out.lock().reads.is_empty());
        assert_eq!(fan_out.lock().kept.load(Ordering::Relaxed), 0);
        drop(members);
        assert!(fan_out.lock().parties.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_alone_reads_alone() {
        let (fan_out, count) = (FanOut::default(), Arc::default());
        let digest = Digest::sha256(b"x");
        let only = enter(&fan_out, "a");
        assert!(only.seat(&digest, 1 << 20, || source(1, &count)).is_none());
        let other = enter(&fan_out, "b");
        other.settled(&digest);
        assert!(only.seat(&digest, 1 << 20, || source(1, &count)).is_none(), "the other one has it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_blob_waits_for_those_who_come_later() {
        let (fan_out, count) = (FanOut::default(), Arc::default());
        let digest = Digest::sha256(b"x");
        let (early, late, never) = (enter(&fan_out, "a"), enter(&fan_out, "b"), enter(&fan_out, "c"));
        assert_eq!(drain(early.seat(&digest, 3 << 20, || source(3, &count)).unwrap()).await.unwrap(), 3 * MIB);
        assert_eq!(drain(late.seat(&digest, 3 << 20, || source(3, &count)).unwrap()).await.unwrap(), 3 * MIB);
        assert_eq!(count.load(Ordering::Relaxed), 3 * MIB);
        assert_eq!(fan_out.lock().reads.len(), 1);
        drop(never);
        assert!(fan_out.lock().reads.is_empty());
        assert_eq!(fan_out.lock().kept.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_lags_is_left_behind_after_a_while() {
        let (fan_out, count) = (FanOut::default(), Arc::default());
        let digest = Digest::sha256(b"x");
        let (fast, stuck, missing) = (enter(&fan_out, "a"), enter(&fan_out, "b"), enter(&fan_out, "c"));
        let seat = fast.seat(&digest, 100 << 20, || source(100, &count)).unwrap();
        let stands = stuck.seat(&digest, 100 << 20, || source(100, &count)).unwrap();
        let start = Instant::now();
        assert_eq!(drain(seat).await.unwrap(), 100 * MIB);
        assert!(start.elapsed() <= GRACE * 2, "held back for {:?}", start.elapsed());
        assert_eq!(count.load(Ordering::Relaxed), 100 * MIB);
        assert_eq!(drain(stands).await.unwrap_err().class(), Class::RETRYABLE);
        assert!(missing.seat(&digest, 100 << 20, || source(100, &count)).is_none_or(|seat| seat.is_first));
        assert!(missing.party.lock().slow.contains(&origin("c")), "it is not waited for again");
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_is_not_waited_for() {
        let (fan_out, count) = (FanOut::default(), Arc::default());
        let digest = Digest::sha256(b"x");
        let (fast, gone) = (enter(&fan_out, "a"), enter(&fan_out, "b"));
        let seat = fast.seat(&digest, 30 << 20, || source(30, &count)).unwrap();
        let left = gone.seat(&digest, 30 << 20, || source(30, &count)).unwrap();
        let start = Instant::now();
        let (read, ()) = tokio::join!(drain(seat), async { drop(left) });
        assert_eq!(read.unwrap(), 30 * MIB);
        assert!(start.elapsed().is_zero());
    }
}
