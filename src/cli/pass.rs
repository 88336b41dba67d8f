//! One pass in this process, as `sync` and `copy` make it: outcomes as they come, progress,
//! signals, the closing line.

use std::future::Future;
use std::pin::pin;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::lines::Lines;
use super::output::{self, Style};
use super::progress::{Display, ProgressMode, TICK, say};
use crate::commands::{self, Observer};
use crate::job::{Outcome, Report, Settled};

/// How a pass is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Show<'a> {
    /// The report alone goes to stdout.
    pub(super) json: bool,
    /// What is up to date as well.
    pub(super) all: bool,
    pub(super) style: Style,
    /// The options of this command line that a command must repeat which is printed as a way out;
    /// with a space in front.
    pub(super) options: &'a str,
}

impl<'a> Show<'a> {
    pub(super) fn new(json: bool, all: bool, options: &'a str) -> Show<'a> {
        Show {
            json,
            all,
            style: Style::of(&std::io::stdout()),
            options,
        }
    }

    /// Prints a settled job, unless the options leave it out.
    fn settled(&self, lines: &mut Lines, job: &Settled) {
        let is_news = job.result != Outcome::UpToDate || job.referrers.copied > 0;
        if !self.json && (self.all || is_news) {
            lines.line(output::settled(self.style, self.options, job));
        }
    }

    /// Prints what is said at the end: all of the report, or what the settled jobs did not say.
    pub(super) fn ending(&self, lines: &mut Lines, report: &Report) {
        if self.json {
            return lines.json(report);
        }
        for trouble in &report.trouble {
            lines.line(output::trouble(self.style, trouble));
        }
        lines.line(output::closing(report, self.all));
    }

    /// Prints a report of another process.
    pub(super) fn report(&self, lines: &mut Lines, report: &Report) {
        for job in &report.jobs {
            self.settled(lines, job);
        }
        self.ending(lines, report);
    }
}

/// Runs the pass that `work` makes; its report comes back.
///
/// The first signal cancels `stop`: blobs finish their chunk, the rest is reported as interrupted.
/// The second one drops the work.
///
/// # Errors
/// The pass could not be made, or a second signal ended it.
pub(super) async fn follow<W, F>(
    show: Show<'_>,
    mode: ProgressMode,
    lines: &mut Lines,
    work: W,
) -> Result<Report, Failure>
where
    W: FnOnce(Observer, CancellationToken) -> F,
    F: Future<Output = Result<Report, commands::Error>>,
{
    let mut signals = Signals::listen()?;
    let mut display = Display::new(mode, show.style.unicode);
    let stop = CancellationToken::new();
    let (settled, mut jobs) = mpsc::unbounded_channel();
    let mut work = pin!(work(
        Observer {
            progress: display.progress(),
            settled
        },
        stop.clone()
    ));
    let mut tick = tokio::time::interval(TICK);
    let report = loop {
        tokio::select! {
            biased;
            report = &mut work => break report,
            () = signals.next() => match stop.is_cancelled() {
                true => return Err(Failure::interrupted("aborted; the next pass goes on with what the registries have kept of it")),
                false => {
                    stop.cancel();
                    display.above(|| say("stopping: running transfers end where they can be resumed, if the registry can; once more to abort"));
                }
            },
            _ = tick.tick() => display.tick(),
            Some(job) = jobs.recv() => display.above(|| show.settled(lines, &job)),
        }
    };
    while let Ok(job) = jobs.try_recv() {
        display.above(|| show.settled(lines, &job));
    }
    drop(display);
    let report = report.map_err(|error| Failure::new(error.exit_code(), error))?;
    show.ending(lines, &report);
    Ok(report)
}

/// SIGINT and SIGTERM.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Signals, Failure> {
        Signals::of_kernel().map_err(|error| Failure::new(1, error))
    }

    fn of_kernel() -> std::io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next of them.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::job::{Look, Totals};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    async fn pass(json: bool, all: bool) -> (u8, String) {
        let page = Page::default();
        let mut lines = Lines::to(page.clone());
        let show = Show {
            json,
            all,
            style: Style::default(),
            options: "",
        };
        let code = follow(
            show,
            ProgressMode::Silent,
            &mut lines,
            |observer, _| async move {
                let jobs = vec![
                    output::tests::job(Outcome::Conflict),
                    output::tests::job(Outcome::UpToDate),
                ];
                for job in &jobs {
                    observer.settled.send(job.clone()).unwrap();
                }
                let totals = Totals {
                    conflict: 1,
                    up_to_date: 1,
                    ..Totals::default()
                };
                let look = Look {
                    jobs,
                    totals,
                    found: true,
                    ..Look::default()
                };
                Ok(Report::new(
                    "run",
                    Timestamp::UNIX_EPOCH,
                    Duration::from_secs(1),
                    [look],
                ))
            },
        );
        let code = code
            .await
            .map_err(|failure| failure.to_string())
            .unwrap()
            .exit_code;
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        (code, text)
    }

    #[tokio::test]
    async fn trouble_is_printed_and_what_is_up_to_date_only_on_request() {
        let (code, text) = pass(false, false).await;
        let words = |text: &str| {
            let lines = text.lines().filter(|line| !line.starts_with(' '));
            lines
                .map(|line| line.split(' ').next().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (code, words(&text)),
            (4, vec!["conflict".to_owned(), "1".into()])
        );
        let (_, text) = pass(false, true).await;
        assert_eq!(words(&text), ["conflict", "up", "1"]);
        assert!(
            text.ends_with(
                "1 up to date, 1 conflict (1.0 s, 18.9 MB sent, 146.8 MB spared, 22 requests)\n"
            ),
            "{text}"
        );
    }

    #[tokio::test]
    async fn json_is_the_report_and_nothing_else() {
        let (code, text) = pass(true, false).await;
        let report: Report = serde_json::from_str(&text).unwrap();
        assert_eq!((code, report.exit_code, report.jobs.len()), (4, 4, 2));
    }
}
