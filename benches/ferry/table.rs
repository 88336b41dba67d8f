//! Runs as a table in markdown.

use crate::link::Passed;
use crate::process::Cost;

const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

/// One run of a tool.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// What the kernel says.
    pub cost: Cost,
    /// What passed at the source and at the destination.
    pub sides: [Passed; 2],
}

/// All runs of a tool in a scenario.
pub struct Row {
    /// The tool, and which pass it is.
    pub name: String,
    /// Its runs, or why there are none.
    pub runs: Result<Vec<Run>, String>,
}

/// Least, median and most.
fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let (least, most) = (values.first().copied().unwrap_or(0.0), values.last().copied().unwrap_or(0.0));
    let at = |place: usize| values.get(place).copied().unwrap_or(0.0);
    let median = (at(values.len().saturating_sub(1) / 2) + at(values.len() / 2)) / 2.0;
    (least, median, most)
}

/// Prints the table of a scenario of `unique` bytes that the link alone needs `link` seconds for.
pub fn print(title: &str, unique: u64, link: Option<f64>, rows: &[Row]) {
    println!("\n### {title}\n");
    match link {
        Some(seconds) => println!("{:.0} MiB unique; the link itself needs {seconds:.1} s.\n", unique as f64 / MIB),
        None => println!("{:.1} MiB unique.\n", unique as f64 / MIB),
    }
    println!(
        "| tool | wall s: median (min–max) | × link | CPU s: median (min–max) | CPU s/GiB | peak MiB | requests source + destination | MiB read | MiB sent |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for Row { name, runs } in rows {
        match runs {
            Ok(runs) => println!("| {name} | {} |", columns(runs, unique, link).join(" | ")),
            Err(why) => println!("| {name} | {} | | | | | | | |", why.replace('|', "/").replace('\n', " ")),
        }
    }
}

fn columns(runs: &[Run], unique: u64, link: Option<f64>) -> [String; 8] {
    let of = |value: fn(&Run) -> f64| spread(runs.iter().map(value).collect());
    let (wall, cpu) = (of(|run| run.cost.wall), of(|run| run.cost.cpu));
    let memory = of(|run| run.cost.memory as f64 / MIB);
    let (read, sent) = (of(|run| run.sides[0].down as f64 / MIB), of(|run| run.sides[1].up as f64 / MIB));
    let requests = [of(|run| run.sides[0].requests as f64).1, of(|run| run.sides[1].requests as f64).1];
    let big = unique as f64 > GIB / 64.0;
    [
        format!("{:.2} ({:.2}–{:.2})", wall.1, wall.0, wall.2),
        link.map_or("–".into(), |link| format!("{:.2}", wall.1 / link)),
        format!("{:.2} ({:.2}–{:.2})", cpu.1, cpu.0, cpu.2),
        if big { format!("{:.2}", cpu.1 / (unique as f64 / GIB)) } else { "–".into() },
        format!("{:.1}", memory.2),
        format!("{:.0} + {:.0}", requests[0], requests[1]),
        format!("{:.1}", read.1),
        format!("{:.1}", sent.1),
    ]
}
