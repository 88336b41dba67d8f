//! What people read: how outcomes, totals, sizes and times are written. Pure functions.

use std::io::IsTerminal;

use comfy_table::{Table, presets};
use jiff::Timestamp;

use crate::job::{BlobCounts, Outcome, Report, Settled, Totals, Trouble};
use crate::oci::Digest;

/// What the reader's screen can show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Colours.
    pub color: bool,
    /// Characters beyond ASCII.
    pub unicode: bool,
}

impl Style {
    /// The style of a stream, from what it is and what the environment says.
    pub fn of(stream: &impl IsTerminal) -> Style {
        Style {
            color: color(stream),
            unicode: unicode(),
        }
    }

    /// `text` in the colour that goes with `outcome`.
    fn paint(self, outcome: Outcome, text: &str) -> String {
        let code = match outcome {
            Outcome::Promoted => 32,
            Outcome::Failed | Outcome::Conflict => 31,
            Outcome::Drift
            | Outcome::Refused
            | Outcome::Interrupted
            | Outcome::Waiting
            | Outcome::Held => 33,
            Outcome::Planned => 36,
            Outcome::UpToDate | Outcome::Existing | Outcome::Gone => 2,
        };
        self.escape(code, text)
    }

    /// `text` in one of the terminal's colours.
    pub fn escape(self, code: u8, text: &str) -> String {
        if self.color {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    /// An arrow.
    pub fn arrow(self) -> &'static str {
        if self.unicode { "→" } else { "->" }
    }
}

/// Whether a stream shows colours: a terminal that is not dumb, without `NO_COLOR`
/// (<https://no-color.org>).
pub(super) fn color(stream: &impl IsTerminal) -> bool {
    let said_no = super::environment("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !said_no && super::environment("TERM").is_none_or(|term| term != "dumb")
}

fn unicode() -> bool {
    let named = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .filter_map(|name| super::environment(name))
        .find(|value| !value.is_empty());
    named.is_some_and(|locale| {
        locale
            .to_ascii_uppercase()
            .replace('-', "")
            .contains("UTF8")
    })
}

/// Width of the word that a line starts with.
const WORD: usize = 11;

/// A settled job, in one line and what must be said below it.
pub(super) fn settled(style: Style, options: &str, job: &Settled) -> String {
    let word = job.result.name().replace('_', " ");
    let word = style.paint(job.result, &format!("{word:<WORD$}"));
    let mut text = format!("{word} {}  {}", clean(&job.destination), facts(job))
        .trim_end()
        .to_owned();
    if job.unguarded && matches!(job.result, Outcome::Promoted | Outcome::Planned) {
        text.push_str("  unguarded");
    }
    for reason in job
        .reasons
        .iter()
        .map(|reason| clean(reason))
        .chain(way_out(options, job))
    {
        text.push_str(&format!("\n{:WORD$} {} {reason}", "", style.arrow()));
    }
    text
}

fn facts(job: &Settled) -> String {
    let digest = job.digest.as_ref().map(short).unwrap_or_default();
    let there = job
        .previous_digest
        .as_ref()
        .map(short)
        .unwrap_or_else(|| "another digest".into());
    match job.result {
        Outcome::Promoted => {
            let before = job
                .previous_digest
                .as_ref()
                .map(|before| format!(" (was {})", short(before)))
                .unwrap_or_default();
            let sent = bytes(job.bytes_sent);
            let time = seconds(job.duration_seconds);
            format!(
                "{digest}{before}  ({}; {sent} in {time})",
                blobs(&job.blobs)
            )
        }
        Outcome::Planned => match &job.previous_digest {
            Some(before) => format!("{digest} (moves from {})", short(before)),
            None => format!("{digest} (new)"),
        },
        Outcome::Conflict | Outcome::Drift | Outcome::Existing => {
            format!("holds {there}, {} names {digest}", clean(&job.source))
        }
        Outcome::Failed => trouble_text(job.error.as_ref()),
        Outcome::UpToDate if job.referrers.copied > 0 => {
            let carried = plural(job.referrers.copied, "referrer");
            format!("{digest}  ({carried} carried later)")
        }
        Outcome::UpToDate | Outcome::Refused | Outcome::Waiting | Outcome::Held => digest,
        Outcome::Gone if job.reasons.is_empty() => {
            format!(
                "{} is not there; what the destination has stays",
                clean(&job.source)
            )
        }
        Outcome::Gone => String::new(),
        Outcome::Interrupted => {
            "stopped; the next pass goes on with what the registry has kept of it".into()
        }
    }
}

/// What a person can do about it.
fn way_out(options: &str, job: &Settled) -> Option<String> {
    let replace = job
        .previous_digest
        .map(|digest| format!(" --replace {digest}"))
        .unwrap_or_default();
    let copy = format!(
        "blobferry copy{options} {} {}{replace}",
        clean(&job.source),
        clean(&job.destination)
    );
    match job.result {
        Outcome::Conflict => Some(format!(
            "push under a new tag and put the old tag back in staging, or exclude it; or replace it: {copy}"
        )),
        Outcome::Drift | Outcome::Existing => Some(format!("to put staging's image there: {copy}")),
        _ => None,
    }
}

/// What kept a whole repository or route from being looked at.
pub(super) fn trouble(style: Style, trouble: &str) -> String {
    let word = style.paint(Outcome::Failed, &format!("{:<WORD$}", "trouble"));
    format!("{word} {}", clean(trouble))
}

fn trouble_text(trouble: Option<&Trouble>) -> String {
    match trouble {
        Some(trouble) => format!(
            "{}: {}",
            trouble.class.name().replace('_', " "),
            clean(&trouble.text)
        ),
        None => "no reason was given".into(),
    }
}

fn blobs(counts: &BlobCounts) -> String {
    let resumed = match counts.resumed {
        0 => String::new(),
        count => format!(" ({count} resumed)"),
    };
    let parts: Vec<String> = [
        (counts.copied, "copied", resumed.as_str()),
        (counts.mounted, "mounted", ""),
        (counts.present, "present", ""),
    ]
    .into_iter()
    .filter(|(count, ..)| *count > 0)
    .map(|(count, word, more)| format!("{count} {word}{more}"))
    .collect();
    if parts.is_empty() {
        "no blobs".into()
    } else {
        parts.join(", ")
    }
}

/// The last line of a pass.
pub(super) fn closing(report: &Report, all: bool) -> String {
    let mut facts = vec![seconds(report.duration_seconds)];
    let sent: u64 = report.jobs.iter().map(|job| job.bytes_sent).sum();
    let spared: u64 = report.jobs.iter().map(|job| job.bytes_spared).sum();
    let requests: u64 = report.jobs.iter().map(|job| job.requests).sum();
    facts.extend((sent > 0).then(|| format!("{} sent", bytes(sent))));
    facts.extend((spared > 0).then(|| format!("{} spared", bytes(spared))));
    facts.extend((requests > 0).then(|| plural(requests, "request")));
    let counts = totals(&report.totals, all);
    let counts = match (counts.is_empty(), report.exit_code) {
        (false, _) => counts,
        (true, 5) if report.trouble.is_empty() => {
            "no source repository matches `from` of a route; see `blobferry check --online`".into()
        }
        (true, 5) => "nothing there that was named, or the rules leave it out".into(),
        (true, 0) if report.totals.excluded > 0 => format!(
            "no tags: the rules leave {} out; see `blobferry check`",
            report.totals.excluded
        ),
        (true, 0) => "no tags".into(),
        (true, _) => "nothing done".into(),
    };
    format!("{counts} ({})", facts.join(", "))
}

/// The counts that are not zero; with `all` also what the rules leave out and what only the
/// destination has.
pub(super) fn totals(totals: &Totals, all: bool) -> String {
    let count =
        |count: u64, word: &str| (count > 0).then(|| format!("{count} {}", word.replace('_', " ")));
    let outcomes = Outcome::ALL
        .into_iter()
        .filter_map(|outcome| count(totals.of(outcome), outcome.name()));
    let rest = [
        count(totals.excluded, "excluded"),
        count(totals.only_in_destination, "only in the destination"),
    ];
    outcomes
        .chain(rest.into_iter().flatten().filter(|_| all))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Columns without borders; on a screen that they do not fit, a paragraph for each row. An empty
/// table is no text.
pub(super) fn table<const N: usize>(
    width: Option<usize>,
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let rows: Vec<[String; N]> = rows
        .into_iter()
        .map(|row| row.map(|cell| clean(&cell)))
        .collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table.add_rows(rows.clone());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    if table.is_empty() {
        return String::new();
    }
    let text = table.trim_fmt();
    let widest = text
        .lines()
        .map(|line| line.chars().count())
        .max()
        .unwrap_or_default();
    if width.is_none_or(|width| widest <= width) {
        text
    } else {
        paragraphs(header, &rows)
    }
}

/// The first cell as a heading, the others below it with the names of their columns.
fn paragraphs<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    rows.iter()
        .map(|row| {
            let mut text = row[0].clone();
            for (name, cell) in header
                .iter()
                .zip(row)
                .skip(1)
                .filter(|(_, cell)| !cell.is_empty())
            {
                text.push_str(&format!("\n  {}: {cell}", name.to_lowercase()));
            }
            text
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Columns of the screen on stdout; `None` when it is no screen.
pub(super) fn screen_width() -> Option<usize> {
    let screen = console::Term::stdout();
    screen
        .is_term()
        .then(|| screen.size_checked())
        .flatten()
        .map(|(_, columns)| usize::from(columns))
}

/// A digest as people compare it.
pub(super) fn short(digest: &Digest) -> String {
    format!("{}:{}", digest.algorithm().name(), digest.short())
}

/// `1 request`, `2 requests`.
pub(super) fn plural(count: u64, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

/// A size in decimal units.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    // 999.95 and more would be shown as 1000.0.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A length of time: two digits that matter.
pub(super) fn seconds(seconds: f64) -> String {
    let seconds = if seconds.is_finite() {
        seconds.max(0.0)
    } else {
        0.0
    };
    let whole = seconds.round() as u64;
    match whole {
        0..60 if seconds < 0.995 => format!("{seconds:.2} s"),
        0..60 if seconds < 59.95 => format!("{seconds:.1} s"),
        0..3600 => two(whole / 60, "min", whole % 60, "s"),
        3600..86_400 => two(whole / 3600, "h", whole % 3600 / 60, "min"),
        _ => two(whole / 86_400, "d", whole % 86_400 / 3600, "h"),
    }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    match small {
        0 => format!("{large} {large_unit}"),
        _ => format!("{large} {large_unit} {small} {small_unit}"),
    }
}

/// A point in time as seen from `now`: `12 s ago`, `in 48 s`.
pub(super) fn relative(at: Option<Timestamp>, now: Timestamp) -> String {
    let Some(at) = at else { return "never".into() };
    let span = at.duration_since(now).unsigned_abs().as_secs().max(1);
    let span = seconds(span as f64).replace(".0 s", " s");
    if at <= now {
        format!("{span} ago")
    } else {
        format!("in {span}")
    }
}

/// Peers and people write these texts: nothing in them may move the cursor.
pub(super) fn clean(text: &str) -> String {
    text.chars()
        .map(|char| match char {
            '\n' | '\r' | '\t' => ' ',
            // Marks that reorder what is shown are as good as control characters.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => char::REPLACEMENT_CHARACTER,
            char if char.is_control() => char::REPLACEMENT_CHARACTER,
            char => char,
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::job::{Actor, Cause};
    use std::time::Duration;

    pub(in crate::cli) fn job(result: Outcome) -> Settled {
        Settled {
            route: "demo-app".into(),
            source: "staging.example/staging-demo-app:v7".into(),
            destination: "prod.example/prod-demo-app:v7".into(),
            digest: Some(Digest::Sha256([0x12; 32])),
            cause: Cause::Cli,
            actor: Actor::named("user:alice"),
            blobs: BlobCounts {
                present: 3,
                mounted: 1,
                copied: 2,
                resumed: 0,
            },
            bytes_sent: 9_437_184,
            bytes_spared: 73_400_320,
            requests: 11,
            duration_seconds: 0.84,
            ..Settled::sample(result)
        }
    }

    const PLAIN: Style = Style {
        color: false,
        unicode: false,
    };

    #[test]
    fn a_promotion_is_one_line_with_its_cost() {
        assert_eq!(
            settled(PLAIN, "", &job(Outcome::Promoted)),
            "promoted    prod.example/prod-demo-app:v7  sha256:121212121212  (2 copied, 1 mounted, 3 present; 9.4 MB in 0.84 s)"
        );
        let mut moved = job(Outcome::Promoted);
        moved.previous_digest = Some(Digest::Sha256([0x34; 32]));
        moved.blobs = BlobCounts {
            copied: 1,
            resumed: 1,
            ..BlobCounts::default()
        };
        assert!(
            settled(PLAIN, "", &moved)
                .contains("sha256:121212121212 (was sha256:343434343434)  (1 copied (1 resumed); ")
        );
    }

    #[test]
    fn a_conflict_says_what_is_there_why_and_the_way_out() {
        let mut conflict = job(Outcome::Conflict);
        conflict.previous_digest = Some(Digest::Sha256([0x34; 32]));
        conflict.reasons = vec!["the tag is fixed".into()];
        let text = settled(
            Style {
                unicode: true,
                ..PLAIN
            },
            "",
            &conflict,
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "conflict    prod.example/prod-demo-app:v7  holds sha256:343434343434, \
             staging.example/staging-demo-app:v7 names sha256:121212121212"
        );
        assert_eq!(lines[1], "            → the tag is fixed");
        let old = "34".repeat(32);
        assert!(
            settled(PLAIN, " --state /s", &conflict)
                .contains("replace it: blobferry copy --state /s staging.example/")
        );
        assert!(
            lines[2].ends_with(&format!(
                "prod.example/prod-demo-app:v7 --replace sha256:{old}"
            )),
            "{}",
            lines[2]
        );
    }

    #[test]
    fn every_outcome_starts_with_its_word_and_names_the_destination() {
        for outcome in Outcome::ALL {
            let text = settled(PLAIN, "", &job(outcome));
            assert!(
                text.starts_with(&format!(
                    "{:<11} prod.example",
                    outcome.name().replace('_', " ")
                )),
                "{text}"
            );
        }
    }

    #[test]
    fn a_failure_shows_its_class_and_text_and_nothing_moves_the_cursor() {
        let mut failed = job(Outcome::Failed);
        failed.error = Some(Trouble {
            class: crate::job::TroubleClass::NotFound,
            text: "gone\u{1b}[2J\r\nfake line\u{202e}".into(),
        });
        let text = settled(PLAIN, "", &failed);
        assert_eq!(text.lines().count(), 1);
        assert!(
            text.ends_with("not found: gone\u{fffd}[2J  fake line\u{fffd}"),
            "{text}"
        );
        assert!(
            settled(
                Style {
                    color: true,
                    ..PLAIN
                },
                "",
                &failed
            )
            .starts_with("\u{1b}[31mfailed")
        );
    }

    #[test]
    fn the_closing_line_counts_what_is_not_zero() {
        let totals = Totals {
            promoted: 3,
            up_to_date: 412,
            conflict: 1,
            excluded: 37,
            ..Totals::default()
        };
        let mut report = Report::new("r", Timestamp::UNIX_EPOCH, Duration::from_millis(4210), []);
        report.totals = totals;
        report.jobs = vec![job(Outcome::Promoted)];
        assert_eq!(
            closing(&report, false),
            "3 promoted, 412 up to date, 1 conflict (4.2 s, 9.4 MB sent, 73.4 MB spared, 11 requests)"
        );
        assert!(
            closing(&report, true)
                .starts_with("3 promoted, 412 up to date, 1 conflict, 37 excluded (")
        );
        report.totals = Totals::default();
        report.jobs.clear();
        report.exit_code = 0;
        assert_eq!(closing(&report, false), "no tags (4.2 s)");
        report.totals.excluded = 37;
        assert_eq!(
            closing(&report, false),
            "no tags: the rules leave 37 out; see `blobferry check` (4.2 s)"
        );
        report.exit_code = 5;
        assert_eq!(
            closing(&report, false),
            "no source repository matches `from` of a route; see `blobferry check --online` (4.2 s)"
        );
        report.trouble = vec!["route app: x has no tag v1".into()];
        assert_eq!(
            closing(&report, false),
            "nothing there that was named, or the rules leave it out (4.2 s)"
        );
    }

    #[test]
    fn sizes_and_times_are_short() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (length, text) in [
            (0.0, "0.00 s"),
            (0.84, "0.84 s"),
            (0.999, "1.0 s"),
            (4.21, "4.2 s"),
            (59.99, "1 min"),
            (61.0, "1 min 1 s"),
            (3600.0, "1 h"),
            (3725.0, "1 h 2 min"),
            (90_000.0, "1 d 1 h"),
            (f64::NAN, "0.00 s"),
        ] {
            assert_eq!(seconds(length), text, "{length}");
        }
    }

    #[test]
    fn times_are_seen_from_now() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let at = |second| Some(Timestamp::from_second(second).unwrap());
        assert_eq!(relative(None, now), "never");
        assert_eq!(relative(at(999_988), now), "12 s ago");
        assert_eq!(relative(at(1_000_125), now), "in 2 min 5 s");
    }

    #[test]
    fn a_table_that_does_not_fit_the_screen_becomes_paragraphs() {
        let rows = || {
            [[
                "demo-app".to_owned(),
                "1 up to date".to_owned(),
                String::new(),
            ]]
        };
        let header = ["ROUTE", "TAGS", "WHY"];
        assert_eq!(
            table(None, header, rows()),
            "ROUTE     TAGS          WHY\ndemo-app  1 up to date"
        );
        assert_eq!(table(Some(40), header, rows()), table(None, header, rows()));
        assert_eq!(
            table(Some(20), header, rows()),
            "demo-app\n  tags: 1 up to date"
        );
    }
}
