//! A simulated world makes progress: one that notes no event for a minute of the machine's time has
//! failed, instead of hanging all tests.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// How long a world may note no event. Its own clock leaps: a usual one is over within a second.
pub const STILL: Duration = Duration::from_secs(60);

thread_local! {
    /// The events of the world of this thread.
    static EVENTS: RefCell<Arc<AtomicU64>> = RefCell::default();
}

/// An event is noted.
pub fn made() {
    EVENTS.with_borrow(|events| events.fetch_add(1, Ordering::Relaxed));
}

/// Plays a world on a thread of its own. One that stands still is left behind with its thread.
///
/// # Panics
/// As the world does, and when it stands still for that long.
pub fn watched<T: Send + 'static>(
    still: Duration,
    world: impl FnOnce() -> T + Send + 'static,
) -> T {
    let events = Arc::new(AtomicU64::new(0));
    let (done, result) = mpsc::channel();
    let counted = events.clone();
    let thread = thread::spawn(move || {
        EVENTS.set(counted);
        // The receiver is gone if the world stood still in between.
        let _ = done.send(world());
    });
    let mut seen = 0;
    loop {
        match result.recv_timeout(still) {
            Ok(value) => return value,
            Err(RecvTimeoutError::Disconnected) => {
                let panic = thread.join().expect_err("it ended without a result");
                resume_unwind(panic);
            }
            Err(RecvTimeoutError::Timeout) => {
                let now = events.load(Ordering::Relaxed);
                assert!(now > seen, "no progress for {still:?}, after {now} events");
                seen = now;
            }
        }
    }
}

/// The world stands still until the test has seen it fail.
#[test]
fn a_world_that_stands_still_fails() {
    let (release, released) = mpsc::channel::<()>();
    let failed = catch_unwind(AssertUnwindSafe(|| {
        watched(Duration::from_millis(1), move || {
            made();
            released.recv().is_ok()
        })
    }));
    let panic = failed.expect_err("it stood still");
    let text = panic.downcast_ref::<String>().expect("a text");
    assert!(text.starts_with("no progress for 1ms"), "{text}");
    drop(release);
}

#[test]
fn a_world_that_panics_fails_as_it_does() {
    let failed = catch_unwind(|| watched::<()>(STILL, || resume_unwind(Box::new(7))));
    assert_eq!(failed.expect_err("it panicked").downcast_ref(), Some(&7));
}
