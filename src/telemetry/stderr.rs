//! stderr, written by a thread of its own.
//!
//! What reads stderr may stop reading: a pipe holds 64 KiB, a journal may hang, a terminal may be
//! stopped. The program never waits for it: texts go into a queue that is bounded in bytes. When
//! the queue is full, lines are dropped and counted, and the place where they are missing says how
//! many there were. At exit, [`Stderr::flush`] gives the reader a bounded time.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use prometheus::IntCounter;

/// Bytes that wait to be written, at most.
const MOST_WAITING: usize = 1 << 20;
/// Dropping goes on until no more than this is left: a slow reader gets whole stretches of lines.
const RESUMES_AT: usize = MOST_WAITING / 2;
/// What a text costs beside its bytes.
const OVERHEAD: usize = 64;
/// How long to wait before a descriptor that does not block is tried again.
const NOT_READY: Duration = Duration::from_millis(20);

/// Writes the line that says how many are missing.
type Note = Box<dyn Fn(u64) -> Vec<u8> + Send>;

/// The queue in front of stderr. Cheap to clone.
#[derive(Clone)]
pub(super) struct Stderr(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    dropped_total: IntCounter,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Entry>,
    bytes: usize,
    is_writing: bool,
    /// Lines that were dropped since the last one that was taken.
    dropped: u64,
}

enum Entry {
    Text(Vec<u8>),
    /// So many lines are missing here.
    Missing(u64),
}

impl Stderr {
    /// Starts the thread that writes to `out`. Without a thread, which the system may refuse, every
    /// text is dropped.
    pub(super) fn start(
        out: impl Write + Send + 'static,
        dropped_total: IntCounter,
        note: Note,
    ) -> Stderr {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            dropped_total,
        });
        let of_thread = shared.clone();
        // An error leaves the queue without a writer: it fills up, and lines are counted as
        // dropped.
        let _ = thread::Builder::new()
            .name("stderr".into())
            .spawn(move || of_thread.write_all(out, &note));
        Stderr(shared)
    }

    /// Queues a line, or drops and counts it.
    pub(super) fn line(&self, line: &[u8]) {
        if !self.0.push(line, true) {
            self.0.dropped_total.inc();
        }
    }

    /// Queues what is drawn on a terminal, or leaves it out: the next drawing shows what is new.
    pub(super) fn drawing(&self, text: &[u8]) {
        self.0.push(text, false);
    }

    /// Waits until everything is written, for so long at most. Returns whether it is.
    pub(super) fn flush(&self, at_most: Duration) -> bool {
        let queue = self.0.lock();
        let waited = self
            .0
            .changed
            .wait_timeout_while(queue, at_most, |queue| !queue.is_idle());
        let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.is_idle()
    }
}

impl Shared {
    /// Returns whether the text was taken.
    fn push(&self, text: &[u8], is_line: bool) -> bool {
        let mut queue = self.lock();
        let most = if queue.dropped > 0 {
            RESUMES_AT
        } else {
            MOST_WAITING
        };
        if queue.bytes + text.len() + OVERHEAD > most {
            queue.dropped += u64::from(is_line);
            return false;
        }
        queue.note_missing();
        queue.push(Entry::Text(text.to_vec()));
        drop(queue);
        self.changed.notify_all();
        true
    }

    /// The thread: writes for as long as the process lives.
    fn write_all(&self, mut out: impl Write, note: &Note) {
        loop {
            let (text, lines) = match self.next() {
                Entry::Text(text) => (text, 1),
                Entry::Missing(lines) => (note(lines), 0),
            };
            if write(&mut out, &text).is_err() {
                self.dropped_total.inc_by(lines);
            }
        }
    }

    /// The next entry. The one before it has been written.
    fn next(&self) -> Entry {
        let mut queue = self.lock();
        queue.is_writing = false;
        loop {
            if queue.waiting.is_empty() {
                queue.note_missing();
            }
            if let Some(entry) = queue.pop() {
                queue.is_writing = true;
                return entry;
            }
            self.changed.notify_all();
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lines come from panics as well: the queue is whole whatever happened.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.is_writing && self.dropped == 0
    }

    /// Marks the place where lines are missing.
    fn note_missing(&mut self) {
        let missing = std::mem::take(&mut self.dropped);
        if missing > 0 {
            self.push(Entry::Missing(missing));
        }
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.cost();
        self.waiting.push_back(entry);
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.waiting.pop_front()?;
        self.bytes -= entry.cost();
        Some(entry)
    }
}

impl Entry {
    fn cost(&self) -> usize {
        match self {
            Entry::Text(text) => text.len() + OVERHEAD,
            Entry::Missing(_) => OVERHEAD,
        }
    }
}

/// As `write_all`, and goes on when the descriptor was made non-blocking by another process that
/// shares it.
fn write(out: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::park_timeout(NOT_READY)
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn over_a_pipe() -> (Stderr, io::PipeReader, IntCounter) {
        let (reader, writer) = io::pipe().unwrap();
        let dropped = IntCounter::new("dropped", "-").unwrap();
        let note: Note = Box::new(|lines| format!("{lines} missing\n").into_bytes());
        (
            Stderr::start(writer, dropped.clone(), note),
            reader,
            dropped,
        )
    }

    #[test]
    fn lines_arrive_whole_and_in_order() {
        let (stderr, mut reader, dropped) = over_a_pipe();
        for number in 0..1000 {
            stderr.line(format!("line {number}\n").as_bytes());
        }
        assert!(stderr.flush(LONG));
        let expected: String = (0..1000).map(|number| format!("line {number}\n")).collect();
        let mut text = vec![0; expected.len()];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(
            (String::from_utf8(text).unwrap(), dropped.get()),
            (expected, 0)
        );
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_never_time() {
        let (stderr, mut reader, dropped) = over_a_pipe();
        let line = |number: usize| format!("{number:>1023}\n");
        // Twice what the pipe and the queue hold together.
        let count = 2 * MOST_WAITING / 1024;
        for number in 0..count {
            stderr.line(line(number).as_bytes());
        }
        assert!(!stderr.flush(Duration::ZERO), "nothing has been read");
        let missing = dropped.get();
        assert!((1..count as u64).contains(&missing), "{missing}");

        // The reader comes back: what was queued arrives, and where the rest is missing it says so.
        let kept = count - missing as usize;
        let mut expected: String = (0..kept).map(line).collect();
        expected.push_str(&format!("{missing} missing\nlast\n"));
        let gathered = thread::spawn(move || {
            let mut text = vec![0; expected.len()];
            reader.read_exact(&mut text).unwrap();
            assert_eq!(String::from_utf8(text).unwrap(), expected);
            reader
        });
        assert!(stderr.flush(LONG));
        stderr.line(b"last\n");
        let reader = gathered.join().unwrap();
        assert!(stderr.flush(LONG));
        drop(reader);
    }

    #[test]
    fn a_reader_that_is_gone_is_not_waited_for() {
        let (stderr, reader, dropped) = over_a_pipe();
        drop(reader);
        stderr.line(b"unheard\n");
        assert!(stderr.flush(LONG));
        assert_eq!(dropped.get(), 1);
    }
}
