//! The simulator: the real engine over registries in memory that misbehave, with people beside it,
//! on a clock that leaps. Every seed is a world; an oracle reads its trace and says which promises
//! were broken.
//!
//! | variable | seeds that are played |
//! |---|---|
//! | none | the same few at every run, for at most [`USUAL`] |
//! | `SIMULATE_SECONDS=N` | new ones, for so long |
//! | the same and `SIMULATE_FROM=A` | those from A on, for so long |
//! | `SIMULATE_SEEDS=A..B` | these |
//!
//! A seed that fails prints its story and the command that repeats it. With `SIMULATE_ALL` the
//! others are played all the same, and a table says how often each promise was broken. With
//! `SIMULATE_TAG` the story is that of another tag than the one that it ends with, and with
//! `SIMULATE_BLOB` it tells of the uploads of a digest that begins so. `SIMULATE_LINES` says how long
//! a story may be.

mod chance;
mod found;
mod guards;
mod notices;
mod oracle;
mod people;
mod process;
mod progress;
mod registry;
mod story;
mod trace;
mod traits;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use world::Outcome;

/// Seeds that failed once, with what was wrong.
const ONCE_FAILED: &[u64] = &[
    // Two jobs wrote the tag of one signature.
    1256, // The oracle took a write that had been announced as one that had arrived.
    1322, // A list that lagged behind ended a conflict.
    1353,
    // A digest from a list of staging that lagged behind was named without a question.
    3007,
    3035,
    3036,
    3039,
    // The same; the oracle also gave a list the time of one that was given up before.
    3008,
    3027,
    // The oracle forgot the ledger at every start after one loss.
    179601328737364,
    // The oracle took a session that a drain keeps for one that was forgotten.
    179601328737108,
    179601328737168, // A job went by its own older answer of staging, though another look had a newer one.
    179601543474205, // A job wrote a tag again that another had just written.
    179601543474616, // A wait after staging's answer made the answer younger.
    179601543474012, // The oracle took the sessions of a look that panicked for forgotten ones.
    179601665319404, // The oracle took a row of a killed process for one of the next.
    700371,          // The oracle did not count what a list showed to be equal.
    700355, // A conflict that began after the look did counted as one that it could have noticed.
    179603070386699, // The oracle took what a moving tag was said to name for proven.
    // A push that never showed was looked for without end, and sent what had been refused each time.
    2000577,
    2000975,
    2001129,
    2001200, // A job went by its own older answer of staging, though a manifest was read since.
    2001676, // The oracle did not know that a killed process may have announced a name.
    1243,    // The oracle took the verdict on one question for that on another.
    3001264, // The oracle did not know that a clock that is set back makes hints void.
    3001202, // A look that took long ended a trouble that a newer answer had shown.
    801165,  // A tag came back to an image that had been signed again meanwhile.
    // A write of unknown outcome restored what a person had changed.
    7005278,
    // An upload session without bytes was left behind.
    7007117,
    7007800,
    // The oracle took no list for an answer about a tag.
    7008344,
    // The oracle did not know that a release may be answered before the decision that it ends.
    9018809,
    // The oracle took a slow answer for newer than one that was asked for after it.
    9017582,
    // The oracle let a list that is not always current say nothing about a tag that had been absent.
    9017807,
    9018195,
    9018317,
    // The oracle did not know that a look may end after a reload.
    9012035,
    // A job named a tag by its own answer of staging, though a list had shown a newer digest since.
    9016365,
    // Each look that repeated a notification sent again what had been refused.
    10038012,
    11003039, // The same under a clock that was set back.
    // The oracle took a write that had been refused for one that may have arrived.
    12000963,
    // The oracle did not know that a job for late signatures records its tag.
    12004944,
    // The oracle did not know that a decision may come after the release of all.
    16002721,
    // The oracle did not know that a naming goes on after a reload by which its tag may move.
    28134051010144,
    3861,     // The oracle took what a person had accepted for a conflict.
    10001963, // A corrupt upload was left behind where no other could be opened.
    10007192, // The oracle asked a way back for signatures that production never had.
    10001994, // The oracle took the first of two orders for the one that was carried out.
];
/// The seeds of a usual run.
const SEEDS: Range<u64> = 1000..1500;
/// How long a usual run may take.
const USUAL: Duration = Duration::from_secs(15);
/// Each so many-th seed is played twice.
const TWICE: u64 = 20;

#[test]
fn seeds_that_failed_once_keep_every_promise() {
    Run::new(None).keeps_every_promise(ONCE_FAILED.iter().copied());
}

#[test]
fn new_seeds_keep_every_promise() {
    if let Some(seeds) = seeds_asked_for() {
        return Run::new(None).keeps_every_promise(seeds);
    }
    match number_in("SIMULATE_SECONDS") {
        Some(seconds) => {
            let base = number_in("SIMULATE_FROM").unwrap_or_else(new_base);
            println!("seeds from {base}");
            Run::new(Some(Duration::from_secs(seconds))).keeps_every_promise(base..);
        }
        None => Run::new(Some(USUAL)).keeps_every_promise(SEEDS),
    }
}

/// A number that no run had before: the milliseconds since 1970, with room for the seeds of one
/// run.
fn new_base() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64 * 100)
}

fn number_in(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable} is a number")))
}

fn seeds_asked_for() -> Option<Range<u64>> {
    let text = std::env::var("SIMULATE_SEEDS").ok()?;
    let numbers = text.split_once("..").and_then(|(from, to)| {
        let from = from.parse().ok()?;
        Some(from..to.parse().ok()?)
    });
    Some(numbers.expect("SIMULATE_SEEDS is written A..B, with numbers"))
}

/// Plays seeds on all processors until one breaks a promise, the seeds end, or the time is over.
struct Run {
    began: Instant,
    most: Option<Duration>,
    /// Broken promises end nothing.
    all: bool,
    tally: Mutex<Tally>,
}

/// What came of the seeds that were played.
#[derive(Default)]
struct Tally {
    played: u64,
    entries: usize,
    /// Each broken promise with its seeds.
    broken: BTreeMap<String, Vec<u64>>,
    /// The first seed that failed, and its story.
    first: Option<(u64, String)>,
}

impl Run {
    fn new(most: Option<Duration>) -> Run {
        Run {
            began: Instant::now(),
            most,
            all: std::env::var_os("SIMULATE_ALL").is_some(),
            tally: Mutex::default(),
        }
    }

    #[track_caller]
    fn keeps_every_promise(self, seeds: impl Iterator<Item = u64> + Send) {
        let seeds = Mutex::new(seeds);
        let next = || seeds.lock().expect("it does not panic").next();
        let players = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..players {
                scope.spawn(|| {
                    while let Some(seed) = (!self.is_over()).then(next).flatten() {
                        let outcome = catch_unwind(AssertUnwindSafe(|| play(seed)));
                        self.add(seed, outcome.ok());
                    }
                });
            }
        });
        self.report();
    }

    fn is_over(&self) -> bool {
        let has_failed = self.tally().first.is_some() && !self.all;
        has_failed || self.most.is_some_and(|most| self.began.elapsed() >= most)
    }

    /// Adds what came of a seed; `None`: it panicked.
    fn add(&self, seed: u64, outcome: Option<Outcome>) {
        let mut tally = self.tally();
        tally.played += 1;
        let Some(outcome) = outcome else {
            let promise = "nothing panics or stands still".to_owned();
            tally.broken.entry(promise).or_default().push(seed);
            tally
                .first
                .get_or_insert((seed, "it panics or stands still, see above".into()));
            return;
        };
        tally.entries += outcome.entries.len();
        let findings = outcome.findings.iter();
        let promises: BTreeSet<&str> = findings.map(|finding| finding.promise).collect();
        for promise in promises {
            let seeds = tally.broken.entry(promise.to_owned()).or_default();
            seeds.push(seed);
            if self.all && seeds.len() == 1 {
                println!("{}", outcome.story_of(promise).unwrap_or_default());
            }
        }
        if let Some(story) = outcome.story() {
            tally.first.get_or_insert((seed, story));
        }
    }

    #[track_caller]
    fn report(&self) {
        let tally = self.tally();
        let Tally {
            played, entries, ..
        } = *tally;
        let seconds = self.began.elapsed().as_secs_f64();
        println!("{played} seeds with {entries} events in {seconds:.1} s");
        for (promise, seeds) in &tally.broken {
            let (count, first) = (seeds.len(), &seeds[..seeds.len().min(8)]);
            println!("{count:>6} of {played}: {promise}; seeds {first:?}");
        }
        if let Some((seed, story)) = &tally.first {
            let next = seed + 1;
            panic!(
                "seed {seed}: {story}\nSIMULATE_SEEDS={seed}..{next} cargo test --test it -- simulate::new"
            );
        }
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().expect("nothing panics while it counts")
    }
}

/// Plays a seed, some twice.
fn play(seed: u64) -> Outcome {
    let outcome = world::play(seed);
    if seed.is_multiple_of(TWICE) {
        let again = world::play(seed).hash;
        assert_eq!(
            again, outcome.hash,
            "seed {seed} played twice gives two traces"
        );
    }
    outcome
}
