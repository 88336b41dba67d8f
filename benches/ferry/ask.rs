//! What is asked for on the command line.

use std::path::PathBuf;

use crate::scenario::Scenario;
use crate::scratch::Scratch;
use crate::tools::Tool;

/// How to use it.
pub const USAGE: &str = "cargo bench --bench ferry [-- [--quick] [--runs N] [--tools A,B] [--scratch DIR] [--out FILE] [SCENARIO…]]";

/// The command line, understood.
pub struct Ask {
    /// Small sizes.
    pub quick: bool,
    /// Runs of each tool that count.
    pub runs: usize,
    /// The tools that take part.
    pub tools: Vec<Tool>,
    /// Where registries keep their files.
    pub scratch: Scratch,
    /// Where the report goes as well.
    pub out: Option<PathBuf>,
    /// What is measured.
    pub scenarios: Vec<Scenario>,
}

impl Ask {
    /// Reads the arguments.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Ask, String> {
        let (mut quick, mut runs, mut tools) = (false, None, Tool::all());
        let (mut scratch, mut out, mut scenarios) = (Scratch { asked: None }, None, Vec::new());
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--quick" => quick = true,
                "--runs" => runs = Some(number(&value()?)?),
                "--tools" => tools = chosen(tools, &value()?)?,
                "--scratch" => scratch.asked = Some(folder(value()?)?),
                "--out" => out = Some(value()?.into()),
                name => scenarios.push(scenario(name)?),
            }
        }
        if scenarios.is_empty() {
            scenarios = Scenario::ALL.to_vec();
        }
        let runs = runs.unwrap_or(if quick { 1 } else { 3 });
        Ok(Ask {
            quick,
            runs,
            tools,
            scratch,
            out,
            scenarios,
        })
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|runs| *runs > 0)
        .ok_or(format!("--runs {text}: a number from 1 on is needed"))
}

fn folder(text: String) -> Result<PathBuf, String> {
    let folder = PathBuf::from(text);
    if folder.is_dir() {
        Ok(folder)
    } else {
        Err(format!(
            "--scratch {}: there is no such folder",
            folder.display()
        ))
    }
}

fn chosen(tools: Vec<Tool>, names: &str) -> Result<Vec<Tool>, String> {
    let one = |name| {
        tools
            .iter()
            .find(|tool| tool.name == name)
            .cloned()
            .ok_or(format!("--tools {name}: it is not installed"))
    };
    names.split(',').map(one).collect()
}

fn scenario(name: &str) -> Result<Scenario, String> {
    let names = Scenario::ALL.map(Scenario::name).join(", ");
    let found = Scenario::ALL
        .into_iter()
        .find(|scenario| scenario.name() == name);
    found.ok_or(format!("no scenario {name}; there are {names}\n{USAGE}"))
}
