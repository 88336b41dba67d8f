//! What is asked for on the command line.

use std::path::PathBuf;

use crate::events::Events;
use crate::scenario::Scenario;
use crate::scratch::Scratch;
use crate::tools::Tool;
use crate::watching::Watching;

/// How to use it.
pub const USAGE: &str = "cargo bench --bench ferry [-- [--quick] [--large] [--runs N] [--tools A,B] [--beside PATH] [--scratch DIR] [--out FILE] [SCENARIO…]]";

/// The command line, understood.
pub struct Ask {
    /// Small sizes.
    pub quick: bool,
    /// `fleet` with ten times as many repositories.
    pub large: bool,
    /// Another build of the program, for `fleet` to compare with.
    pub beside: Option<PathBuf>,
    /// Runs of each tool that count.
    pub runs: usize,
    /// The tools that take part.
    pub tools: Vec<Tool>,
    /// Where registries keep their files.
    pub scratch: Scratch,
    /// Where the report goes as well.
    pub out: Option<PathBuf>,
    /// What the tools copy.
    pub scenarios: Vec<Scenario>,
    /// What a daemon that watches is measured at.
    pub watching: Vec<Watching>,
    /// What of push events is measured.
    pub events: Vec<Events>,
}

impl Ask {
    /// Reads the arguments.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Ask, String> {
        let (mut quick, mut runs, mut tools) = (false, None, Tool::all());
        let mut large = false;
        let mut beside = None;
        let (mut scratch, mut out, mut scenarios) = (Scratch { asked: None }, None, Vec::new());
        let mut watching = Vec::new();
        let mut events = Vec::new();
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--quick" => quick = true,
                "--large" => large = true,
                "--beside" => beside = Some(value()?.into()),
                "--runs" => runs = Some(number(&value()?)?),
                "--tools" => tools = chosen(tools, &value()?)?,
                "--scratch" => scratch.asked = Some(folder(value()?)?),
                "--out" => out = Some(value()?.into()),
                name => match (
                    named(Watching::ALL, Watching::name, name),
                    named(Events::ALL, Events::name, name),
                ) {
                    (Some(one), _) => watching.push(one),
                    (None, Some(one)) => events.push(one),
                    (None, None) => scenarios.push(scenario(name)?),
                },
            }
        }
        if scenarios.is_empty() && watching.is_empty() && events.is_empty() {
            scenarios = Scenario::ALL.to_vec();
            watching = Watching::ALL.to_vec();
            events = Events::ALL.to_vec();
        }
        let runs = runs.unwrap_or(if quick { 1 } else { 3 });
        Ok(Ask {
            quick,
            large,
            beside,
            runs,
            tools,
            scratch,
            out,
            scenarios,
            watching,
            events,
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
    named(Scenario::ALL, Scenario::name, name).ok_or_else(|| {
        let copies = Scenario::ALL.map(Scenario::name).join(", ");
        let watched = Watching::ALL.map(Watching::name).join(", ");
        let told = Events::ALL.map(Events::name).join(", ");
        format!("no scenario {name}; there are {copies}, {watched}, {told}\n{USAGE}")
    })
}

/// The one of that name.
fn named<T: Copy, const N: usize>(
    all: [T; N],
    name_of: fn(T) -> &'static str,
    name: &str,
) -> Option<T> {
    all.into_iter().find(|one| name_of(*one) == name)
}
