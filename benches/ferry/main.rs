//! The end-to-end bench: blobferry and the peers that are installed, between real registries.
//!
//! `cargo bench --bench ferry [-- [--quick] [--large] [--runs N] [--tools A,B] [--beside PATH]
//! [--scratch DIR] [--out FILE] [SCENARIO…]]`. Every pass ends with a comparison of all digests. On loopback a first run goes
//! through links that only count and is not timed; the timed ones go without the links, which would
//! take part of the machine.

mod ahead;
mod ask;
mod cheap;
mod daemon;
mod events;
mod fleet;
mod http;
mod limits;
mod link;
mod machine;
mod process;
mod registry;
mod report;
mod scenario;
mod scratch;
mod served;
mod stage;
mod table;
mod threads;
mod tools;
mod watching;

#[path = "../../tests/it/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use more of it")]
mod support;

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use ask::Ask;
use events::Events;
use limits::{Limit, Verdict};
use link::Passed;
use registry::{Program, Registry};
use report::Report;
use scenario::{Scenario, Stock};
use scratch::Place;
use stage::{Run, Stage};
use support::{client, image};
use table::{Facts, Row};
use tools::Tool;
use watching::Watching;

fn main() -> ExitCode {
    let ask = match Ask::parse(std::env::args().skip(1)) {
        Ok(ask) => ask,
        Err(text) => {
            eprintln!("{text}");
            return ExitCode::from(2);
        }
    };
    let Some(program) = Program::all().into_iter().next() else {
        eprintln!(
            "no registry is installed: benches/peers installs one, or apt-get install docker-registry"
        );
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let ended = runtime.block_on(async {
        // Dropping a scenario kills its programs and removes its files, which may lie in
        // memory.
        tokio::select! {
            ended = measure(&ask, &program) => ended,
            () = asked_to_end() => Err("interrupted".into()),
        }
    });
    match ended {
        Ok(ours_failed) => ExitCode::from(u8::from(ours_failed)),
        Err(text) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
    }
}

async fn asked_to_end() {
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be heard");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// Runs what is asked for; whether ours failed anywhere.
async fn measure(ask: &Ask, program: &Program) -> Result<bool, String> {
    let mut report = Report::new(ask.out.clone());
    report.say(&report::heading(
        &ask.tools,
        program,
        &ask.scratch,
        ask.runs,
        ask.quick,
    ))?;
    let mut tally = Tally::default();
    for scenario in &ask.scenarios {
        let place = match ask.scratch.place(scenario.room(ask.quick)) {
            Ok(place) => place,
            Err(why) => {
                report.say(&format!(
                    "### {}\n\nNot measured: {why}.",
                    scenario.title(ask.quick)
                ))?;
                continue;
            }
        };
        let bench = Bench {
            ask,
            program,
            scenario: *scenario,
            place,
        };
        bench.run(&mut report, &mut tally).await?;
    }
    for watching in &ask.watching {
        report.say(&watched(*watching, ask, &mut tally).await)?;
    }
    for events in &ask.events {
        report.say(&told(*events, ask, program, &mut tally).await?)?;
    }
    report.say(&tally.to_string())?;
    Ok(tally.failed)
}

/// Runs a scenario of a daemon that watches; what came of it.
async fn watched(watching: Watching, ask: &Ask, tally: &mut Tally) -> String {
    let (figures, limits) = watching.measure(ask).await;
    tally.add(watching.name(), &limits);
    paragraph(&watching.title(ask), &figures, &limits)
}

/// Measures push events; what came of it.
async fn told(
    events: Events,
    ask: &Ask,
    program: &Program,
    tally: &mut Tally,
) -> Result<String, String> {
    let place = ask.scratch.place(events::ROOM)?;
    let (figures, limits) = events.measure(program, &place, ask.quick).await?;
    tally.add(events.name(), &limits);
    Ok(paragraph(&events.title(ask.quick), &figures, &limits))
}

fn paragraph(title: &str, figures: &str, limits: &[Limit]) -> String {
    let mut text = format!("### {title}\n\n{figures}\n");
    for limit in limits {
        text += &format!("{limit}\n");
    }
    text + &load()
}

fn load() -> String {
    format!("\nLoad average at the end: {}.", machine::load())
}

/// What came of all limits.
#[derive(Default)]
struct Tally {
    verdicts: Vec<(String, Verdict)>,
    failed: bool,
}

impl Tally {
    fn add(&mut self, scenario: &str, limits: &[Limit]) {
        let verdict = |limit: &Limit| {
            let name = format!("{scenario}: {}", limit.name());
            (name, limit.verdict())
        };
        self.verdicts.extend(limits.iter().map(verdict));
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Limits of all scenarios")?;
        for (verdict, joint) in Verdict::ALL.into_iter().zip([": ", ", ", ", "]) {
            let names: Vec<&str> = self
                .verdicts
                .iter()
                .filter(|(_, found)| *found == verdict)
                .map(|(name, _)| name.as_str())
                .collect();
            write!(formatter, "{joint}{} {}", names.len(), verdict.word())?;
            if verdict != Verdict::Met && !names.is_empty() {
                write!(formatter, " ({})", names.join("; "))?;
            }
        }
        write!(formatter, ".")
    }
}

/// One scenario under way.
struct Bench<'a> {
    ask: &'a Ask,
    program: &'a Program,
    scenario: Scenario,
    place: Place,
}

/// The runs of a tool so far: its first passes, and its second passes where there are any.
#[derive(Default)]
struct Account {
    passes: [Vec<Run>; 2],
    /// What passed when the tool last went through links: on loopback it is timed without them, and
    /// has one pass.
    counted: [Passed; 2],
    broken: Option<String>,
}

impl Bench<'_> {
    /// Runs all tools and reports.
    async fn run(&self, report: &mut Report, tally: &mut Tally) -> Result<(), String> {
        let source = self.program.start(&self.place.folder).await;
        let stock = self.scenario.stock(&source, self.ask.quick).await;
        let mut accounts: Vec<Account> =
            self.ask.tools.iter().map(|_| Account::default()).collect();
        let rehearsals = usize::from(self.is_on_loopback());
        for round in 0..self.ask.runs + rehearsals {
            for (tool, account) in self.ask.tools.iter().zip(&mut accounts) {
                if account.broken.is_none() {
                    account.broken = self
                        .once(tool, &source, &stock, round < rehearsals, account)
                        .await
                        .err();
                    if let Some(why) = &account.broken {
                        eprintln!("{} {}: {why}", self.scenario.name(), tool.name);
                    }
                }
            }
        }
        let rows = self.rows(&accounts);
        tally.failed |= rows
            .iter()
            .any(|row| row.name == "blobferry" && row.runs.is_err());
        report.say(&self.findings(&stock, &rows, tally))
    }

    fn is_on_loopback(&self) -> bool {
        self.scenario.link(self.ask.quick).is_transparent()
    }

    fn rows(&self, accounts: &[Account]) -> Vec<Row> {
        let mut rows = Vec::new();
        for (pass, suffix) in ["", ", again"]
            .iter()
            .enumerate()
            .take(self.scenario.passes())
        {
            for (tool, account) in self.ask.tools.iter().zip(accounts) {
                let runs = account
                    .broken
                    .clone()
                    .map_or_else(|| Ok(account.passes[pass].clone()), Err);
                if pass == 0 || runs.is_ok() {
                    rows.push(Row {
                        name: format!("{}{suffix}", tool.name),
                        runs,
                    });
                }
            }
        }
        rows
    }

    fn findings(&self, stock: &Stock, rows: &[Row], tally: &mut Tally) -> String {
        let link = self
            .scenario
            .link(self.ask.quick)
            .bandwidth
            .map(|bandwidth| stock.unique as f64 / bandwidth);
        let facts = Facts {
            scenario: self.scenario,
            unique: stock.unique,
            tags: stock.count,
            link,
        };
        let mut text = format!("### {}\n\n", self.scenario.title(self.ask.quick));
        let preferred = self.ask.scratch.preferred();
        if self.place != preferred {
            text += &format!(
                "The registries' files were on {}: there was not room enough on {preferred}. ",
                self.place
            );
        }
        text += &table::tables(&facts, rows);
        text += if self.ask.quick {
            "\nAgainst the limits of the full size, which a small one need not meet:\n\n"
        } else {
            "\n"
        };
        let limits = limits::limits(&facts, rows);
        tally.add(self.scenario.name(), &limits);
        for limit in limits {
            text += &format!("{limit}\n");
        }
        text + &load()
    }

    /// One run of one tool. A rehearsal is for the counts, the others are for the times.
    async fn once(
        &self,
        tool: &Tool,
        source: &Registry,
        stock: &Stock,
        rehearsal: bool,
        account: &mut Account,
    ) -> Result<(), String> {
        let links = rehearsal || !self.is_on_loopback();
        let stage = Stage::set(
            self.program,
            &self.place,
            self.scenario,
            self.ask.quick,
            source,
            stock,
            links,
        )
        .await?;
        for pass in 0..self.scenario.passes() {
            let mut run = stage.pass(tool).await?;
            let note = if rehearsal { " (counting)" } else { "" };
            eprintln!(
                "{} {} pass {pass}{note}: {run}",
                self.scenario.name(),
                tool.name
            );
            if links {
                account.counted = run.sides;
            }
            run.sides = account.counted;
            if !rehearsal {
                account.passes[pass].push(run);
            }
        }
        Ok(())
    }
}
