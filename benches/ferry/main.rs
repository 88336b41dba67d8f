//! The end-to-end bench: blobferry and the peers that are installed, between two real registries.
//!
//! `cargo bench --bench ferry [-- [--quick] [--runs N] [--tools A,B] [SCENARIO…]]`. Each tool first copies once through links
//! that count, and every digest is compared; then it is timed, in turn with the others. On loopback the timed runs go
//! without the counting link, which would take part of the machine.

mod link;
mod process;
mod registry;
mod scenario;
mod table;
mod tools;

#[path = "../../tests/it/support/client.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod client;
#[path = "../../tests/it/support/image.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod image;

use std::process::ExitCode;

use tempfile::TempDir;

use link::{Link, Nature, Passed};
use registry::{Program, Registry};
use scenario::{Scenario, Stock};
use table::{Row, Run};
use tools::{Task, Tool};

/// What is asked for on the command line.
struct Ask {
    quick: bool,
    runs: usize,
    tools: Vec<Tool>,
    scenarios: Vec<Scenario>,
}

impl Ask {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Ask, String> {
        let mut ask = Ask { quick: false, runs: 0, tools: Tool::all(), scenarios: Vec::new() };
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--quick" => ask.quick = true,
                "--runs" => ask.runs = value()?.parse().map_err(|_| "--runs needs a number")?,
                "--tools" => {
                    let names = value()?;
                    ask.tools.retain(|tool| names.split(',').any(|name| name == tool.name));
                }
                name => {
                    let found = Scenario::ALL.into_iter().find(|scenario| scenario.name() == name);
                    let names = Scenario::ALL.map(Scenario::name).join(", ");
                    ask.scenarios.push(found.ok_or(format!("no scenario {name}; there are {names}"))?);
                }
            }
        }
        if ask.scenarios.is_empty() {
            ask.scenarios = Scenario::ALL.to_vec();
        }
        if ask.runs == 0 {
            ask.runs = if ask.quick { 1 } else { 3 };
        }
        Ok(ask)
    }
}

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
            "no registry is installed: apt-get install docker-registry, or go install github.com/distribution/distribution/v3/cmd/registry@v3.1.1"
        );
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let names: Vec<&str> = ask.tools.iter().map(|tool| tool.name).collect();
    println!("{}; registries: {}; tools: {}; {} runs", machine(), program.name, names.join(", "), ask.runs);
    let ours_failed = runtime.block_on(async {
        let mut failed = false;
        for scenario in &ask.scenarios {
            failed |= Bench { ask: &ask, program: &program, scenario: *scenario }.run().await;
        }
        failed
    });
    ExitCode::from(u8::from(ours_failed))
}

/// What the figures were made on.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field =
        |text: &str, name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.split_once(':')?.1.trim().to_owned()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown processor".into());
    let memory =
        field(&read("/proc/meminfo"), "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok()).unwrap_or(0);
    format!("{model}, {cores} cores, {} GiB, Linux {}", memory / 1024 / 1024, read("/proc/sys/kernel/osrelease").trim())
}

/// One scenario under way.
struct Bench<'a> {
    ask: &'a Ask,
    program: &'a Program,
    scenario: Scenario,
}

/// The runs of a tool so far: its first passes, and its second passes where there are any.
#[derive(Default)]
struct Account {
    passes: [Vec<Run>; 2],
    broken: Option<String>,
}

impl Bench<'_> {
    /// Runs all tools and prints the table; whether ours failed.
    async fn run(&self) -> bool {
        let source = self.program.start().await;
        let stock = self.scenario.stock(&source, self.ask.quick).await;
        let mut accounts: Vec<Account> = self.ask.tools.iter().map(|_| Account::default()).collect();
        for round in 0..=self.ask.runs {
            for (tool, account) in self.ask.tools.iter().zip(&mut accounts) {
                if account.broken.is_none() {
                    account.broken = self.once(tool, &source, &stock, round, account).await.err();
                }
            }
        }
        let mut rows = Vec::new();
        for (pass, suffix) in ["", ", again"].iter().enumerate() {
            for (tool, account) in self.ask.tools.iter().zip(&accounts) {
                let runs = account.broken.clone().map_or_else(|| Ok(account.passes[pass].clone()), Err);
                if pass == 0 || !account.passes[pass].is_empty() {
                    rows.push(Row { name: format!("{}{suffix}", tool.name), runs });
                }
            }
        }
        let link = self.scenario.link().bandwidth.map(|bandwidth| stock.unique as f64 / bandwidth);
        table::print(&self.scenario.title(self.ask.quick), stock.unique, link, &rows);
        let ours = self.ask.tools.iter().zip(&accounts).find(|(tool, _)| tool.name == "blobferry");
        ours.is_some_and(|(_, account)| account.broken.is_some())
    }

    /// One round of one tool: the first is for the digests and the counts, the others for the times.
    async fn once(&self, tool: &Tool, source: &Registry, stock: &Stock, round: usize, account: &mut Account) -> Result<(), String> {
        let destination = self.program.start().await;
        if self.scenario == Scenario::Unchanged {
            self.scenario.stock(&destination, self.ask.quick).await;
        }
        let nature = self.scenario.link();
        let linked = round == 0 || nature.round_trip != Nature::TRANSPARENT.round_trip;
        let links = [Link::before(source.address(), nature).await, Link::before(destination.address(), nature).await];
        let [from, to] = if linked { [links[0].address(), links[1].address()] } else { [source.address(), destination.address()] };
        let task = Task { source: from.into(), destination: to.into(), repositories: stock.repositories.clone() };
        let home = TempDir::with_prefix("blobferry-bench-").map_err(|error| error.to_string())?;
        let passes = if self.scenario == Scenario::Tags { 2 } else { 1 };
        for pass in 0..passes {
            let cost = tool.run(&task, &home).await?;
            let mut run = Run { cost, sides: links.each_ref().map(Link::take) };
            eprintln!(
                "{} {} round {round} pass {pass}: {:.2} s, {:.2} CPU s, {} MiB, {:?}",
                self.scenario.name(),
                tool.name,
                cost.wall,
                cost.cpu,
                cost.memory >> 20,
                run.sides
            );
            if round == 0 {
                check(&destination, stock).await?;
                account.passes[pass] = vec![run];
                continue;
            }
            if !linked {
                run.sides = counted(account, pass);
            }
            if round == 1 {
                account.passes[pass].clear();
            }
            account.passes[pass].push(run);
        }
        Ok(())
    }
}

/// What was counted when the tool ran through the links.
fn counted(account: &Account, pass: usize) -> [Passed; 2] {
    account.passes[pass].first().map(|run| run.sides).unwrap_or_default()
}

/// Every tag must have its digest.
async fn check(destination: &Registry, stock: &Stock) -> Result<(), String> {
    let client = destination.client();
    for (repository, tag, digest) in &stock.tags {
        let found = client.digest(repository, tag).await;
        if found.as_deref() != Some(digest) {
            return Err(format!("{repository}:{tag} is {} and not {digest}", found.as_deref().unwrap_or("missing")));
        }
    }
    Ok(())
}
