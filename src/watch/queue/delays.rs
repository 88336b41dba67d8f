//! Delays before another look at a repository in trouble.

use std::time::Duration;

use crate::backoff::Backoff;

/// Delays before another look at a repository in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryDelays {
    pub(super) backoff: Backoff,
    /// Whether they also delay polls. Requests and events are never delayed.
    pub(super) holds_polls: bool,
}

impl RetryDelays {
    /// Single tags are in trouble: the other tags must not wait long for their poll.
    pub const TAGS: RetryDelays = RetryDelays {
        backoff: Backoff::new(Duration::from_secs(15), Duration::from_secs(4 * 60)),
        holds_polls: true,
    };
    /// The repository could not be looked at.
    pub const WHOLE: RetryDelays = RetryDelays {
        backoff: Backoff::new(Duration::from_secs(15), Duration::from_secs(15 * 60)),
        holds_polls: true,
    };
    /// A registry refuses the credentials, which rarely passes by itself.
    pub const SLOW: RetryDelays = RetryDelays {
        backoff: Backoff::new(Duration::from_secs(60), Duration::from_secs(15 * 60)),
        holds_polls: true,
    };
    /// A list was refused in a way that rarely passes by itself. Polls go on; a tag that rests is
    /// no reason to look earlier.
    pub const REFUSED: RetryDelays = RetryDelays {
        backoff: Backoff::new(Duration::from_secs(15), Duration::from_secs(15 * 60)),
        holds_polls: false,
    };
    /// The repository does not exist yet: the next poll finds the first push.
    pub const ABSENT: RetryDelays = RetryDelays {
        backoff: Backoff::new(Duration::from_secs(15), Duration::from_secs(15 * 60)),
        holds_polls: false,
    };

    /// The delay after this number of failures, at least one; doubles each time.
    pub(super) fn wait(self, failures: u32) -> Duration {
        self.backoff.wait(failures)
    }
}
