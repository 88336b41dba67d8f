//! Whether the database works: said once when that changes, counted always.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::sqlite::Failure;

/// Reading and writing fail apart: a full disk still answers.
#[derive(Debug, Default)]
pub(super) struct Health {
    errors: AtomicU64,
    reading: Mutex<OperationHealth>,
    writing: Mutex<OperationHealth>,
}

#[derive(Debug, Default)]
struct OperationHealth {
    trouble: Option<String>,
    /// When a failure was last logged.
    reported_at: Option<Instant>,
}

/// A disk that is full for some requests and not for others would fill the log too.
const QUIET: Duration = Duration::from_secs(60);

impl Health {
    pub(super) fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    pub(super) fn of_read<T>(&self, outcome: Result<T, Failure>) -> Option<T> {
        self.note(&self.reading, outcome, "read")
    }

    pub(super) fn note_write(&self, outcome: Result<(), Failure>) {
        self.note(&self.writing, outcome, "write");
    }

    fn note<T>(
        &self,
        operation: &Mutex<OperationHealth>,
        outcome: Result<T, Failure>,
        doing: &'static str,
    ) -> Option<T> {
        let mut operation = operation
            .lock()
            .expect("nothing panics while it notes an outcome");
        match outcome {
            Ok(value) => {
                if operation.trouble.take().is_some() {
                    tracing::info!(doing, "index works again");
                }
                Some(value)
            }
            // A request after `close` is not a failure of the database.
            Err(failure) if failure.is_closed() => None,
            Err(failure) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                operation.fail(failure.to_string(), doing);
                None
            }
        }
    }
}

impl OperationHealth {
    fn fail(&mut self, trouble: String, doing: &'static str) {
        let changed = self.trouble.as_ref() != Some(&trouble);
        if changed
            && self
                .reported_at
                .is_none_or(|reported_at| reported_at.elapsed() >= QUIET)
        {
            tracing::warn!(
                doing,
                error = %trouble,
                "index fails: registries are asked instead"
            );
            self.reported_at = Some(Instant::now());
        }
        self.trouble = Some(trouble);
    }
}
