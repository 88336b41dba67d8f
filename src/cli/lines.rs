//! stdout: a thread of its own writes it. A reader that does not read holds up nothing else: no
//! lock, no signal, no transfer.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::Builder;
use std::time::Duration;

use tokio::sync::oneshot;

/// A terminal gets each line before what is drawn next to it, unless it is stopped.
const TERMINAL: Duration = Duration::from_millis(100);
/// Another writer than stdout is memory.
const MEMORY: Duration = Duration::from_secs(60);

type Output = Box<dyn Write + Send>;

/// stdout, or what stands in for it. A reader that goes away is no failure: the rest is not
/// written, the work goes on.
pub struct Lines {
    output: Option<Output>,
    writer: Option<Writer>,
    /// How long a line is waited for.
    wait: Duration,
    /// A document that could not be made.
    error: Option<io::Error>,
}

/// The thread that writes, as seen from here.
struct Writer {
    queue: mpsc::Sender<Vec<u8>>,
    pending: Arc<Pending>,
    ended: oneshot::Receiver<io::Result<()>>,
}

/// How much has not been written yet.
#[derive(Default)]
struct Pending {
    writes: Mutex<usize>,
    fell: Condvar,
}

impl Lines {
    /// The program's stdout.
    pub fn stdout() -> Lines {
        let wait = if io::stdout().is_terminal() {
            TERMINAL
        } else {
            Duration::ZERO
        };
        Lines {
            wait,
            ..Lines::to(io::stdout())
        }
    }

    /// Another writer.
    pub fn to(output: impl Write + Send + 'static) -> Lines {
        Lines {
            output: Some(Box::new(output)),
            writer: None,
            wait: MEMORY,
            error: None,
        }
    }

    /// Writes a line.
    pub fn line(&mut self, text: impl AsRef<str>) {
        self.write(format!("{}\n", text.as_ref()).as_bytes());
    }

    /// Writes a JSON document.
    pub fn json(&mut self, value: &impl serde::Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.line(text),
            Err(error) => self.error = Some(error.into()),
        }
    }

    /// Writes a JSON document on one line.
    pub fn json_line(&mut self, value: &impl serde::Serialize) {
        match serde_json::to_string(value) {
            Ok(text) => self.line(text),
            Err(error) => self.error = Some(error.into()),
        }
    }

    /// Writes bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) {
        if let Some(output) = self.output.take() {
            self.start(output);
        }
        let Some(writer) = &self.writer else {
            return;
        };
        *writer.pending.lock() += 1;
        if writer.queue.send(bytes.to_vec()).is_ok() && !writer.pending.fell_within(self.wait) {
            self.wait = Duration::ZERO;
        }
    }

    fn start(&mut self, output: Output) {
        let (queue, bytes) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        let pending = Arc::new(Pending::default());
        let shared = pending.clone();
        match Builder::new().name("stdout".into()).spawn(move || {
            // The command may have ended without waiting for this.
            let _ = end.send(write_all(output, &bytes, &shared));
        }) {
            Ok(_) => {
                self.writer = Some(Writer {
                    queue,
                    pending,
                    ended,
                });
            }
            Err(error) => self.error = Some(error),
        }
    }

    /// Waits until everything is written that the reader wants to read.
    ///
    /// # Errors
    /// The first failure but a reader that went away.
    pub async fn close(self) -> io::Result<()> {
        if let Some(Writer { queue, ended, .. }) = self.writer {
            drop(queue);
            ended
                .await
                .unwrap_or_else(|_| Err(io::Error::other("the thread that writes has panicked")))?;
        }
        self.error.map_or(Ok(()), Err)
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrote(&self) {
        *self.lock() -= 1;
        self.fell.notify_all();
    }

    /// Whether everything is written in time.
    fn fell_within(&self, wait: Duration) -> bool {
        if wait.is_zero() {
            return true;
        }
        let (guard, waited) = self
            .fell
            .wait_timeout_while(self.lock(), wait, |writes| *writes > 0)
            .unwrap_or_else(PoisonError::into_inner);
        drop(guard);
        !waited.timed_out()
    }
}

fn write_all(
    mut output: Output,
    queue: &mpsc::Receiver<Vec<u8>>,
    pending: &Pending,
) -> io::Result<()> {
    let mut result = Ok(());
    for bytes in queue {
        if result.is_ok() {
            result = output.write_all(&bytes).and_then(|()| output.flush());
        }
        pending.wrote();
    }
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer that fails.
    struct Closed(io::ErrorKind);

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_reader_that_goes_away_is_no_failure() {
        for (kind, is_failure) in [
            (io::ErrorKind::BrokenPipe, false),
            (io::ErrorKind::StorageFull, true),
        ] {
            let mut lines = Lines::to(Closed(kind));
            lines.line("one");
            lines.line("two");
            assert_eq!(lines.close().await.is_err(), is_failure, "{kind:?}");
        }
    }

    /// A reader that begins to read when it is told to.
    struct Late(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Late {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Once it is open the other end is gone.
            let _ = self.0.recv();
            self.1.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_holds_up_nothing_and_gets_all_of_it() {
        let (open, opened) = mpsc::channel();
        let page = Arc::default();
        let mut lines = Lines {
            wait: Duration::from_millis(1),
            ..Lines::to(Late(opened, Arc::clone(&page)))
        };
        for number in 0..100 {
            lines.line(number.to_string());
        }
        assert!(page.lock().unwrap().is_empty());
        drop(open);
        lines.close().await.unwrap();
        let text = String::from_utf8(page.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 100);
    }
}
