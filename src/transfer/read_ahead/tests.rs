//! Reading ahead, from a source of which each connection is slow.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::task::ready;

use futures::FutureExt as _;
use tokio::time::{Instant, Sleep};

use super::*;

const FRAME: u64 = 64 * 1024;
const MIB: u64 = 1024 * 1024;
const SIZE: u64 = 256 * MIB;
/// Time that the first frame takes on a connection that is new, with 16 KiB in a round trip.
const FIRST_FRAME: Duration = Duration::from_millis(320);

/// A source that is far away: what its connections bring, and how many there were.
#[derive(Clone)]
struct Far {
    round_trip: Duration,
    /// Time that one frame takes on a connection.
    frame: Duration,
    /// So many connections are new: what they bring doubles with each round trip. The others are
    /// those, used again.
    new: usize,
    /// Extra connections that may be open at once.
    room: usize,
    /// Each part from this offset on fails.
    fails_from: u64,
    /// Time that one frame takes in a part.
    part_frame: Option<Duration>,
    /// The part that begins here, or holds this byte, hardly moves over a further connection.
    slow_part: u64,
    open: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    opened: Arc<AtomicUsize>,
    read: Arc<AtomicU64>,
}

/// One connection, until dropped.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct FarBody {
    far: Far,
    left: Range<u64>,
    pace: Duration,
    /// When it was opened, if it was new then.
    new_since: Option<Instant>,
    frame: Pin<Box<Sleep>>,
    _counted: Counted,
}

impl Body for FarBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        ready!(self.frame.as_mut().poll(cx));
        let due = Instant::now() + self.frame_time();
        self.frame.as_mut().reset(due);
        let at = self.left.start;
        let length = FRAME.min(self.left.end - at);
        self.left.start += length;
        self.far.read.fetch_add(length, Ordering::Relaxed);
        let bytes = Bytes::from(vec![byte(at); length as usize]);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

impl FarBody {
    fn frame_time(&self) -> Duration {
        let Some(since) = self.new_since else {
            return self.pace;
        };
        let round_trips = since.elapsed().div_duration_f64(self.far.round_trip);
        self.pace.max(FIRST_FRAME.div_f64(round_trips.exp2()))
    }
}

fn byte(offset: u64) -> u8 {
    (offset / FRAME % 251) as u8
}

impl Far {
    fn new() -> Far {
        Far {
            round_trip: Duration::from_millis(80),
            frame: Duration::from_millis(3),
            new: 0,
            room: 16,
            fails_from: u64::MAX,
            part_frame: None,
            slow_part: u64::MAX,
            open: Arc::default(),
            most: Arc::default(),
            opened: Arc::default(),
            read: Arc::default(),
        }
    }

    fn connection(&self, range: Range<u64>) -> BlobBody {
        self.connection_at(range, self.frame)
    }

    fn connection_at(&self, range: Range<u64>, frame: Duration) -> BlobBody {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(open, Ordering::Relaxed);
        let is_new = self.opened.fetch_add(1, Ordering::Relaxed) < self.new;
        let counted = Counted(self.open.clone());
        BlobBody::new(FarBody {
            far: self.clone(),
            left: range,
            pace: frame,
            new_since: is_new.then(Instant::now),
            frame: Box::pin(tokio::time::sleep(frame)),
            _counted: counted,
        })
    }

    fn open(&self) -> OpenPart {
        let far = self.clone();
        Box::new(move |range, connection| {
            if connection == Connection::Extra && far.open.load(Ordering::Relaxed) > far.room {
                return None;
            }
            let far = far.clone();
            let opening = async move {
                tokio::time::sleep(far.round_trip).await;
                if range.start >= far.fails_from && connection == Connection::Extra {
                    return Err(Fault::corrupt("another range came"));
                }
                let slow = range
                    .contains(&far.slow_part)
                    .then_some(Duration::from_secs(1));
                let own = (connection == Connection::Own).then_some(far.frame);
                let frame = own.or(slow).or(far.part_frame).unwrap_or(far.frame);
                Ok(far.connection_at(range, frame))
            };
            let opening: Opening = opening.boxed();
            Some(PartOpening {
                opening,
                permit: None,
            })
        })
    }
}

/// A body over `far`, and what all bodies may read ahead.
fn body(far: &Far) -> (BlobBody, AheadBudget, Arc<AtomicBool>) {
    bounded_body(far, bounds::ReadAhead::default())
}

fn bounded_body(far: &Far, bounds: bounds::ReadAhead) -> (BlobBody, AheadBudget, Arc<AtomicBool>) {
    let budget = AheadBudget::default();
    let may_be_parted = Arc::new(AtomicBool::new(true));
    let body = ReadAhead::new(
        far.connection(0..SIZE),
        0,
        SIZE,
        far.open(),
        budget.clone(),
        bounds,
        may_be_parted.clone(),
    );
    (body.body(), budget, may_be_parted)
}

/// Reads all of it, `pause` after each frame. Returns how much came in order.
async fn read(body: &mut BlobBody, pause: Duration) -> (u64, Option<Fault>) {
    let mut at = 0;
    while let Some(frame) = body.frame().await {
        let bytes = match frame {
            Ok(bytes) => bytes,
            Err(fault) => return (at, Some(fault)),
        };
        assert_eq!(bytes.first(), Some(&byte(at)), "at {at}");
        at += bytes.len() as u64;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    (at, None)
}

#[tokio::test(start_paused = true)]
async fn a_slow_source_is_read_over_several_connections() {
    let far = Far::new();
    let (mut body, budget, _) = body(&far);
    let began = Instant::now();
    let (at, fault) = read(&mut body, Duration::ZERO).await;
    assert_eq!((at, fault.is_none()), (SIZE, true));
    let alone = far.frame * u32::try_from(SIZE / FRAME).unwrap();
    assert!(began.elapsed() < alone * 2 / 5, "{:?}", began.elapsed());
    let most = far.most.load(Ordering::Relaxed);
    assert_eq!(most, bounds::ReadAhead::default().connections);
    let twice = far.read.load(Ordering::Relaxed) - SIZE;
    assert!(twice < 2 * FRAME, "{twice} bytes came in vain");
    drop(body);
    assert_eq!(far.open.load(Ordering::Relaxed), 0);
    assert_eq!(budget.0.load(Ordering::Relaxed), 0);
}

/// Over a link of 80 ms the first 8 MiB took most of a second: a connection that fills the link later
/// was taken for a slow one, and the layer came in parts, in twice the time.
#[tokio::test(start_paused = true)]
async fn a_connection_that_still_grows_gets_no_other_beside_it() {
    let far = Far {
        frame: Duration::from_millis(1),
        new: 1,
        ..Far::new()
    };
    let bounds = bounds::ReadAhead {
        slow: 48 * MIB,
        ..bounds::ReadAhead::default()
    };
    let (mut body, ..) = bounded_body(&far, bounds);
    let (at, _) = read(&mut body, Duration::ZERO).await;
    assert_eq!(at, SIZE);
    assert_eq!(far.opened.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn connections_that_still_grow_are_not_given_up() {
    let far = Far {
        new: bounds::ReadAhead::default().connections,
        ..Far::new()
    };
    let (mut body, ..) = body(&far);
    let began = Instant::now();
    let (at, _) = read(&mut body, Duration::ZERO).await;
    assert_eq!(at, SIZE);
    let most = far.most.load(Ordering::Relaxed);
    assert_eq!(most, bounds::ReadAhead::default().connections);
    let alone = far.frame * u32::try_from(SIZE / FRAME).unwrap();
    assert!(began.elapsed() < alone * 3 / 4, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn where_the_destination_is_the_bound_nothing_is_read_ahead() {
    let far = Far::new();
    let (mut body, ..) = body(&far);
    let (at, _) = read(&mut body, far.frame * 2).await;
    assert_eq!(at, SIZE);
    assert_eq!(far.opened.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_no_faster_with_more_connections_gets_one() {
    let far = Far {
        round_trip: Duration::from_secs(3),
        ..Far::new()
    };
    let (mut body, ..) = body(&far);
    let (at, _) = read(&mut body, Duration::ZERO).await;
    assert_eq!(at, SIZE);
    assert!(far.most.load(Ordering::Relaxed) <= 2);
    let opened = far.opened.load(Ordering::Relaxed);
    assert!(opened <= 7, "{opened} connections");
}

#[tokio::test(start_paused = true)]
async fn without_a_free_permit_nothing_is_read_ahead() {
    let far = Far {
        room: 0,
        ..Far::new()
    };
    let (mut body, budget, _) = body(&far);
    let (at, _) = read(&mut body, Duration::ZERO).await;
    assert_eq!(at, SIZE);
    assert_eq!(far.opened.load(Ordering::Relaxed), 1);
    assert_eq!(budget.0.load(Ordering::Relaxed), 0);
}

/// What a part answers proves nothing of the blob: it is read on over one connection.
#[tokio::test(start_paused = true)]
async fn where_a_part_fails_one_connection_goes_on() {
    let far = Far {
        fails_from: SIZE / 2,
        ..Far::new()
    };
    let (mut body, _, may_be_parted) = body(&far);
    let (at, fault) = read(&mut body, Duration::ZERO).await;
    assert_eq!((at, fault.is_none()), (SIZE, true));
    assert!(!may_be_parted.load(Ordering::Relaxed));
    let twice = far.read.load(Ordering::Relaxed) - SIZE;
    assert!(twice < 2 * FRAME, "{twice} bytes came in vain");
}

/// As a cache that is cold for ranges.
#[tokio::test(start_paused = true)]
async fn parts_that_are_slower_than_the_whole_are_given_up() {
    let far = Far {
        part_frame: Some(Duration::from_secs(1)),
        ..Far::new()
    };
    let (mut body, ..) = body(&far);
    let began = Instant::now();
    let (at, _) = read(&mut body, Duration::ZERO).await;
    assert_eq!(at, SIZE);
    let alone = far.frame * u32::try_from(SIZE / FRAME).unwrap();
    assert!(began.elapsed() < alone * 2, "{:?}", began.elapsed());
}

/// What the own connection brings is passed on as it comes: other blobs may read ahead meanwhile.
#[tokio::test(start_paused = true)]
async fn parts_that_were_given_up_hold_no_share_of_the_memory() {
    let far = Far {
        part_frame: Some(Duration::from_secs(1)),
        ..Far::new()
    };
    let (mut body, budget, _) = body(&far);
    let mut at = 0;
    while at < SIZE - FRAME {
        at += body.frame().await.unwrap().unwrap().len() as u64;
    }
    assert_eq!(budget.0.load(Ordering::Relaxed), 0);
}

/// One connection that hardly moves holds up the others for a short time only.
#[tokio::test(start_paused = true)]
async fn one_slow_part_is_asked_for_again() {
    let far = Far {
        slow_part: SIZE / 4 / (4 * MIB) * 4 * MIB,
        ..Far::new()
    };
    let (mut body, ..) = body(&far);
    let began = Instant::now();
    let (at, _) = read(&mut body, Duration::ZERO).await;
    assert_eq!(at, SIZE);
    let alone = far.frame * u32::try_from(SIZE / FRAME).unwrap();
    assert!(began.elapsed() < alone, "{:?}", began.elapsed());
}

/// A small frame may keep a large buffer: those of a part are gathered.
#[tokio::test(start_paused = true)]
async fn small_frames_of_a_part_are_gathered() {
    let opening = PartOpening {
        opening: std::future::pending().boxed(),
        permit: None,
    };
    let share = AheadBudget::default().take(1, 1);
    let mut part = Part::opened(0..200_000, opening, share);
    (0..200_000).for_each(|at| part.keep(Bytes::from(vec![byte(at)])));
    assert!(part.frames.len() <= 4, "{}", part.frames.len());
    assert_eq!(part.missing(), 0);
    let mut passed = Vec::new();
    let mut cx = Context::from_waker(std::task::Waker::noop());
    while let Poll::Ready(Some(Ok(bytes))) = part.poll_bytes(&mut cx) {
        passed.extend_from_slice(&bytes);
    }
    let expected: Vec<u8> = (0..200_000).map(byte).collect();
    assert!(passed == expected, "the bytes come in order");
}

#[tokio::test(start_paused = true)]
async fn all_bodies_together_read_no_more_ahead_than_the_bound() {
    let far = Far::new();
    let budget = AheadBudget::default();
    let bounds = bounds::ReadAhead {
        all: 8 * MIB as usize,
        ..bounds::ReadAhead::default()
    };
    let reads = (0..4).map(|_| {
        let (first, open) = (far.connection(0..SIZE), far.open());
        let parted = Arc::new(AtomicBool::new(true));
        let budget = budget.clone();
        async move {
            let body = ReadAhead::new(first, 0, SIZE, open, budget, bounds, parted);
            read(&mut body.body(), Duration::ZERO).await
        }
    });
    let read = futures::future::join_all(reads).await;
    assert!(read.iter().all(|(at, _)| *at == SIZE));
    // One connection each, and as many parts as fit.
    assert_eq!(far.most.load(Ordering::Relaxed), 4 + 2);
    assert_eq!(budget.0.load(Ordering::Relaxed), 0);
}
