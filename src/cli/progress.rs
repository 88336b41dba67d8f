//! How far a pass is, on stderr: bars on a terminal, else a heartbeat after ten seconds without a
//! word.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use tokio::time::Instant;
use tracing::Level;

use super::output::{bytes, clean, plural, seconds};
use crate::job::{BlobProgress, Progress};
use crate::telemetry;

/// How often the bars are drawn.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Longest silence without a terminal.
const SILENCE: Duration = Duration::from_secs(10);
/// Most blobs with a line of their own.
const MOST_BLOBS: usize = 8;
/// How long to wait until the terminal has cleared the bars.
const CLEARED: Duration = Duration::from_millis(100);
/// Columns that stay free for the echo of Ctrl-C, pressed a few times between two drawings.
const ECHO: u16 = 8;
/// The time over which the rate is taken.
const WINDOW: Duration = Duration::from_secs(5);

/// Shows how far a pass is.
pub(super) struct Display {
    progress: Arc<Progress>,
    rate: Rate,
    shape: Shape,
}

enum Shape {
    Bars(Box<Bars>),
    Heartbeat { spoken: Instant },
    Silent,
}

/// What a display may do.
#[derive(Clone, Debug)]
pub(super) enum ProgressMode {
    /// Draw bars on this screen.
    Bars(MultiProgress),
    /// Say a word from time to time.
    Heartbeat,
    /// Nothing.
    Silent,
}

impl ProgressMode {
    pub(super) fn of(quiet: bool, screen: Option<MultiProgress>) -> ProgressMode {
        match screen {
            Some(screen) if !quiet => ProgressMode::Bars(screen),
            _ if quiet => ProgressMode::Silent,
            _ => ProgressMode::Heartbeat,
        }
    }
}

impl Display {
    pub(super) fn new(mode: ProgressMode, unicode: bool) -> Display {
        let shape = match mode {
            ProgressMode::Bars(screen) => Shape::Bars(Box::new(Bars::new(screen, unicode))),
            ProgressMode::Heartbeat => Shape::Heartbeat {
                spoken: Instant::now(),
            },
            ProgressMode::Silent => Shape::Silent,
        };
        Display {
            progress: Arc::default(),
            rate: Rate::default(),
            shape,
        }
    }

    /// Where the engine writes.
    pub(super) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Draws what has changed.
    pub(super) fn tick(&mut self) {
        let now = Instant::now();
        self.rate.note(now, self.progress.bytes_done.load(Relaxed));
        let summary = summary(&Counts::of(&self.progress), self.rate.per_second());
        match &mut self.shape {
            Shape::Bars(bars) => bars.draw(&self.progress, &summary),
            Shape::Heartbeat { spoken } if now - *spoken >= SILENCE => {
                *spoken = now;
                say(&format!("at work: {summary}"));
            }
            Shape::Heartbeat { .. } | Shape::Silent => {}
        }
    }

    /// Shows what another process does.
    pub(super) fn note(&mut self, text: &str) {
        match &mut self.shape {
            Shape::Bars(bars) => bars.overall.set_message(text.to_owned()),
            Shape::Heartbeat { spoken } if spoken.elapsed() >= SILENCE => {
                *spoken = Instant::now();
                say(text);
            }
            Shape::Heartbeat { .. } | Shape::Silent => {}
        }
    }

    /// Lets `print` write to the screen without getting mixed up with the bars.
    pub(super) fn above(&mut self, print: impl FnOnce()) {
        match &mut self.shape {
            Shape::Bars(bars) => bars.screen.suspend(|| {
                // The bars are cleared by a thread of its own: stdout comes after that.
                telemetry::flush(CLEARED);
                print();
            }),
            Shape::Heartbeat { spoken } => {
                *spoken = Instant::now();
                print();
            }
            Shape::Silent => print(),
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Shape::Bars(bars) = &self.shape {
            // A closed terminal has no bars to clear. What comes next on stdout begins a line of
            // its own only once they are gone.
            let _ = bars.screen.clear();
            telemetry::flush(CLEARED);
        }
    }
}

/// A line on stderr, in the format of the logs.
pub(super) fn say(text: &str) {
    telemetry::say(Level::INFO, text);
}

/// The numbers of a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    bytes_done: u64,
    bytes_planned: u64,
    jobs_done: u64,
    jobs_planned: u64,
}

impl Counts {
    fn of(progress: &Progress) -> Counts {
        Counts {
            bytes_done: progress.bytes_done.load(Relaxed),
            bytes_planned: progress.bytes_planned.load(Relaxed),
            jobs_done: progress.jobs_done.load(Relaxed),
            jobs_planned: progress.jobs_planned.load(Relaxed),
        }
    }
}

/// `3 of 12 jobs, 120.0 MB of 1.2 GB, 30.0 MB/s, 36.0 s left`.
fn summary(counts: &Counts, rate: u64) -> String {
    if counts.jobs_planned == 0 {
        return "looking".into();
    }
    let mut facts = vec![format!(
        "{} of {}",
        counts.jobs_done,
        plural(counts.jobs_planned, "job")
    )];
    if counts.bytes_planned > 0 {
        facts.push(format!(
            "{} of {}",
            bytes(counts.bytes_done),
            bytes(counts.bytes_planned)
        ));
    }
    if rate > 0 {
        facts.push(format!("{}/s", bytes(rate)));
        let left = counts.bytes_planned.saturating_sub(counts.bytes_done);
        facts.extend((left > 0).then(|| format!("{} left", seconds(left.div_ceil(rate) as f64))));
    }
    facts.join(", ")
}

/// Bytes per second over the last moments.
#[derive(Debug, Default)]
struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    fn note(&mut self, now: Instant, total: u64) {
        self.samples.push_back((now, total));
        // One sample from before the window stays: the rate is taken over the whole of it.
        while self
            .samples
            .get(1)
            .is_some_and(|(at, _)| now - *at >= WINDOW)
        {
            self.samples.pop_front();
        }
    }

    fn per_second(&self) -> u64 {
        let (Some((start, before)), Some((end, after))) =
            (self.samples.front(), self.samples.back())
        else {
            return 0;
        };
        let length = (*end - *start).as_secs_f64();
        if length < 0.5 {
            0
        } else {
            (after.saturating_sub(*before) as f64 / length) as u64
        }
    }
}

struct Bars {
    screen: MultiProgress,
    overall: ProgressBar,
    /// One for each blob that is shown, and those that have none at the moment: taking a bar away
    /// for good draws at once.
    slots: Vec<ProgressBar>,
    spare: Vec<ProgressBar>,
    more: ProgressBar,
    style: ProgressStyle,
}

fn style(template: &str, characters: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the templates are constant");
    style.progress_chars(characters)
}

impl Bars {
    fn new(screen: MultiProgress, unicode: bool) -> Bars {
        let characters = if unicode { "━╸─" } else { "=>-" };
        screen.set_draw_target(ProgressDrawTarget::term_like_with_hz(
            Box::new(Terminal::stderr()),
            10,
        ));
        let overall =
            screen.add(ProgressBar::new(0).with_style(style("{bar:30} {wide_msg}", characters)));
        let more = screen.add(ProgressBar::new(0).with_style(style("  {wide_msg}", characters)));
        Bars {
            screen,
            overall,
            slots: Vec::new(),
            spare: Vec::new(),
            more,
            style: style("  {bar:20} {wide_msg}", characters),
        }
    }

    fn draw(&mut self, progress: &Progress, summary: &str) {
        let active = progress.active();
        let shown = &active[..active.len().min(MOST_BLOBS)];
        self.make_room(shown.len());
        for (slot, (_, blob)) in self.slots.iter().zip(shown) {
            slot.set_length(blob.size);
            slot.set_position(blob.done.load(Relaxed));
            slot.set_message(label(blob));
        }
        self.more.set_message(match active.len() - shown.len() {
            0 => String::new(),
            hidden => format!("and {hidden} more"),
        });
        self.overall
            .set_length(progress.bytes_planned.load(Relaxed));
        self.overall.set_position(progress.bytes_done.load(Relaxed));
        self.overall.set_message(summary.to_owned());
    }

    /// Exactly `count` slots.
    fn make_room(&mut self, count: usize) {
        while self.slots.len() > count
            && let Some(slot) = self.slots.pop()
        {
            self.screen.remove(&slot);
            self.spare.push(slot);
        }
        while self.slots.len() < count {
            let slot = self
                .spare
                .pop()
                .unwrap_or_else(|| ProgressBar::new(0).with_style(self.style.clone()));
            self.slots.push(self.screen.insert_before(&self.more, slot));
        }
    }
}

/// The terminal behind stderr: a drawing is gathered, and handed over when it is whole.
#[derive(Debug)]
struct Terminal {
    /// Asked for its size only.
    screen: console::Term,
    drawing: Mutex<String>,
}

impl Terminal {
    fn stderr() -> Terminal {
        Terminal {
            screen: console::Term::stderr(),
            drawing: Mutex::default(),
        }
    }

    fn add(&self, text: &str) -> io::Result<()> {
        self.drawing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_str(text);
        Ok(())
    }

    /// Moves the cursor, as ECMA-48 has it; 0 would mean 1.
    fn move_cursor(&self, count: usize, direction: char) -> io::Result<()> {
        if count == 0 {
            Ok(())
        } else {
            self.add(&format!("\u{1b}[{count}{direction}"))
        }
    }
}

impl TermLike for Terminal {
    /// Narrower than the screen: the terminal echoes `^C` behind the last line, and an echo that
    /// wraps would move the lines that are to be cleared.
    fn width(&self) -> u16 {
        self.screen.size().1.saturating_sub(ECHO).max(1)
    }

    fn height(&self) -> u16 {
        self.screen.size().0
    }

    fn move_cursor_up(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'A')
    }

    fn move_cursor_down(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'B')
    }

    fn move_cursor_right(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'C')
    }

    fn move_cursor_left(&self, count: usize) -> io::Result<()> {
        self.move_cursor(count, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.add(text)?;
        self.add("\n")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.add(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.add("\r\u{1b}[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let drawing =
            std::mem::take(&mut *self.drawing.lock().unwrap_or_else(PoisonError::into_inner));
        if !drawing.is_empty() {
            telemetry::draw(drawing.as_bytes());
        }
        Ok(())
    }
}

fn label(blob: &BlobProgress) -> String {
    let state = match blob.closing.load(Relaxed) {
        true => "waiting for the registry".into(),
        false => format!("{} of {}", bytes(blob.done.load(Relaxed)), bytes(blob.size)),
    };
    format!("{}  {state}", clean(&blob.label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_tells_what_is_known() {
        let mut counts = Counts::default();
        assert_eq!(summary(&counts, 0), "looking");
        counts.jobs_planned = 1;
        assert_eq!(summary(&counts, 0), "0 of 1 job");
        counts = Counts {
            bytes_done: 120_000_000,
            bytes_planned: 1_200_000_000,
            jobs_done: 3,
            jobs_planned: 12,
        };
        assert_eq!(
            summary(&counts, 30_000_000),
            "3 of 12 jobs, 120.0 MB of 1.2 GB, 30.0 MB/s, 36.0 s left"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_forgets_what_is_older_than_its_window() {
        let mut rate = Rate::default();
        let start = Instant::now();
        rate.note(start, 0);
        assert_eq!(rate.per_second(), 0, "one sample is no rate");
        for second in 1..=5 {
            rate.note(start + Duration::from_secs(second), second * 100);
        }
        assert_eq!(rate.per_second(), 100);
        for second in 6..=20 {
            rate.note(start + Duration::from_secs(second), 500);
        }
        assert_eq!(rate.per_second(), 0);
        assert!(rate.samples.len() < 10);
    }

    #[test]
    fn bars_follow_the_blobs_that_move() {
        let mut bars = Bars::new(MultiProgress::new(), true);
        bars.screen.set_draw_target(ProgressDrawTarget::hidden());
        let progress = Arc::new(Progress::default());
        let mut moving: Vec<_> = (0..11)
            .map(|number| progress.start_blob(format!("app {number}"), 10))
            .collect();
        moving[0].at(4);
        bars.draw(&progress, "");
        assert_eq!(
            (bars.slots.len(), bars.more.message().as_str()),
            (8, "and 3 more")
        );
        assert_eq!((bars.slots[0].position(), bars.overall.position()), (4, 4));
        moving.drain(..4);
        bars.draw(&progress, "");
        assert_eq!((bars.slots.len(), bars.more.message().as_str()), (7, ""));
    }
}
