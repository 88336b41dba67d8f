//! The runs of a scenario as tables in markdown.

use std::fmt::Write as _;

use crate::scenario::Scenario;
use crate::stage::Run;

const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

/// All runs of a tool in a scenario.
pub struct Row {
    /// The tool, and which pass it is.
    pub name: String,
    /// Its runs, or why there are none.
    pub runs: Result<Vec<Run>, String>,
}

/// What the runs of a scenario are set against.
pub struct Facts {
    /// Which one it is.
    pub scenario: Scenario,
    /// Bytes of the unique blobs.
    pub unique: u64,
    /// Tags to copy.
    pub tags: usize,
    /// Seconds that the link alone needs for them.
    pub link: Option<f64>,
}

/// Least, median and most.
fn spread(runs: &[Run], value: impl Fn(&Run) -> f64) -> [f64; 3] {
    let mut values: Vec<f64> = runs.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let at = |place: usize| values.get(place).copied().unwrap_or(0.0);
    let median = (at(values.len().saturating_sub(1) / 2) + at(values.len() / 2)) / 2.0;
    [at(0), median, at(values.len().saturating_sub(1))]
}

/// The median of some value.
pub fn median(runs: &[Run], value: impl Fn(&Run) -> f64) -> f64 {
    spread(runs, value)[1]
}

/// The most of some value.
pub fn most(runs: &[Run], value: impl Fn(&Run) -> f64) -> f64 {
    spread(runs, value)[2]
}

/// The value below which this share of all lies. Sorts.
pub fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let at = (values.len() as f64 * share).ceil() as usize;
    values
        .get(at.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}

impl Facts {
    fn gib(&self) -> f64 {
        self.unique as f64 / GIB
    }

    /// MiB read at the source beyond each unique byte once.
    pub fn read_again(&self, run: &Run) -> f64 {
        (run.sides[0].down.saturating_sub(self.unique)) as f64 / MIB
    }

    /// MiB sent beyond each unique byte once.
    pub fn sent_again(&self, run: &Run) -> f64 {
        (run.sides[1]
            .up
            .saturating_sub(self.unique * self.scenario.destinations() as u64)) as f64
            / MIB
    }

    /// Bytes read at the source for each unique byte.
    pub fn read_ratio(&self, run: &Run) -> f64 {
        run.sides[0].down as f64 / self.unique as f64
    }

    /// Bytes sent for each unique byte and destination.
    pub fn sent_ratio(&self, run: &Run) -> f64 {
        run.sides[1].up as f64 / (self.unique as f64 * self.scenario.destinations() as f64)
    }

    /// Requests on both sides for each tag.
    pub fn requests_a_tag(&self, run: &Run) -> f64 {
        (run.sides[0].requests + run.sides[1].requests) as f64 / self.tags as f64
    }

    /// CPU seconds of the tool for each unique GiB.
    pub fn cpu_a_gib(&self, run: &Run) -> f64 {
        run.shares.tool / self.gib()
    }
}

/// A heading and what stands below it.
type Column<'a> = (&'static str, Box<dyn Fn(&[Run]) -> String + 'a>);

fn number<'a>(
    heading: &'static str,
    digits: usize,
    value: impl Fn(&Run) -> f64 + 'a,
) -> Column<'a> {
    (
        heading,
        Box::new(move |runs| format!("{:.digits$}", median(runs, &value))),
    )
}

fn range<'a>(heading: &'static str, value: impl Fn(&Run) -> f64 + 'a) -> Column<'a> {
    let cell = move |runs: &[Run]| {
        let [least, median, most] = spread(runs, &value);
        if runs.len() < 2 {
            format!("{median:.2}")
        } else {
            format!("{median:.2} ({least:.2}–{most:.2})")
        }
    };
    (heading, Box::new(cell))
}

fn columns(facts: &Facts) -> Vec<Column<'_>> {
    let mut columns = vec![range("wall s", |run| run.wall)];
    if let Some(link) = facts.link {
        columns.push(number("× link", 2, move |run| run.wall / link));
    }
    columns.push(range("CPU s", |run| run.shares.tool));
    if facts.gib() > 1.0 / 128.0 {
        columns.push(number("CPU s/GiB", 2, |run| facts.cpu_a_gib(run)));
    }
    columns.push((
        "peak MiB",
        Box::new(|runs| format!("{:.1}", most(runs, |run| run.memory as f64 / MIB))),
    ));
    columns.push((
        "requests source + destination",
        Box::new(|runs| {
            let side = |side: usize| median(runs, |run| run.sides[side].requests as f64);
            format!("{:.0} + {:.0}", side(0), side(1))
        }),
    ));
    if facts.tags >= 20 {
        columns.push(number("requests a tag", 2, |run| facts.requests_a_tag(run)));
    }
    columns.push(number("MiB read", 1, |run| run.sides[0].down as f64 / MIB));
    columns.push(number("MiB sent", 1, |run| run.sides[1].up as f64 / MIB));
    match facts.scenario {
        Scenario::Interrupted => {
            columns.push(number("MiB read again", 1, |run| facts.read_again(run)));
            columns.push(number("MiB sent again", 1, |run| facts.sent_again(run)));
        }
        Scenario::Storm => {
            columns.push(number("refused", 0, |run| {
                run.sides.iter().map(|side| side.refused).sum::<u64>() as f64
            }));
            columns.push(("ended", Box::new(ending)));
            columns.push(number("tags right", 0, |run| run.right as f64));
        }
        Scenario::Fanout => columns.push(number("read × unique", 2, |run| facts.read_ratio(run))),
        _ => {}
    }
    columns
}

fn ending(runs: &[Run]) -> String {
    match runs.iter().map(|run| run.code).max().unwrap_or(0) {
        0 => "done".into(),
        code => format!("failed, exit code {code}"),
    }
}

fn shares<'a>() -> Vec<Column<'a>> {
    vec![
        number("tool", 2, |run| run.shares.tool),
        number("source", 2, |run| run.shares.source),
        number("destination", 2, |run| run.shares.destinations),
        number("link", 2, |run| run.shares.link),
        number("elsewhere", 2, |run| run.shares.elsewhere),
        (
            "machine idle",
            Box::new(|runs| format!("{:.0} %", 100.0 * median(runs, |run| run.shares.idle))),
        ),
    ]
}

/// The table of a scenario, and who had the CPU meanwhile.
pub fn tables(facts: &Facts, rows: &[Row]) -> String {
    let mut text = format!("{:.1} MiB unique", facts.unique as f64 / MIB);
    if let Some(seconds) = facts.link {
        let _ = write!(text, "; the link itself needs {seconds:.1} s");
    }
    text.push_str(".\n\n");
    write_table(&mut text, "tool", &columns(facts), rows);
    let done: Vec<&Row> = rows.iter().filter(|row| row.runs.is_ok()).collect();
    if !done.is_empty() {
        text.push_str("\nCPU seconds during the pass:\n\n");
        write_table(&mut text, "while it runs", &shares(), done);
    }
    text
}

fn write_table<'r>(
    text: &mut String,
    corner: &str,
    columns: &[Column<'_>],
    rows: impl IntoIterator<Item = &'r Row>,
) {
    let headings: Vec<&str> = columns.iter().map(|(heading, _)| *heading).collect();
    let _ = writeln!(
        text,
        "| {corner} | {} |\n|---|{}",
        headings.join(" | "),
        "---|".repeat(columns.len())
    );
    for Row { name, runs } in rows {
        let cells: Vec<String> = match runs {
            Ok(runs) => columns.iter().map(|(_, cell)| cell(runs)).collect(),
            Err(why) => {
                let why = why.replace('|', "/").replace('\n', " ");
                std::iter::once(why)
                    .chain(std::iter::repeat_n(String::new(), columns.len() - 1))
                    .collect()
            }
        };
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
}
