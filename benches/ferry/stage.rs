//! One run of one tool: fresh destinations behind links, the passes, and what they came to.

use tempfile::TempDir;

use crate::link::{Link, Nature, Passed};
use crate::machine::{Clocks, Shares};
use crate::process::{End, Ran};
use crate::registry::{Program, Registry};
use crate::scenario::{Scenario, Stock};
use crate::scratch::Place;
use crate::tools::{Task, Tool};

/// How often an interrupted tool is started again.
const RESTARTS: usize = 4;

/// What a pass came to.
#[derive(Clone, Debug)]
pub struct Run {
    /// Seconds from start to end.
    pub wall: f64,
    /// Most resident bytes; of tools side by side, the sum.
    pub memory: u64,
    /// Who had the CPU.
    pub shares: Shares,
    /// What passed at the source and, together, at the destinations.
    pub sides: [Passed; 2],
    /// The tool's exit code.
    pub code: i32,
    /// Tags that were right afterwards, over all destinations.
    pub right: usize,
}

impl std::fmt::Display for Run {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Run {
            wall,
            memory,
            shares,
            sides: [source, destination],
            code,
            ..
        } = self;
        write!(
            formatter,
            "{wall:.2} s, {:.2} CPU s, {} MiB, ",
            shares.tool,
            memory >> 20
        )?;
        write!(
            formatter,
            "{} + {} requests, exit code {code}",
            source.requests, destination.requests
        )
    }
}

/// The registries of a run and the links to them.
pub struct Stage<'a> {
    scenario: Scenario,
    source: &'a Registry,
    stock: &'a Stock,
    destinations: Vec<Registry>,
    links: [Vec<Link>; 2],
    task: Task,
    home: TempDir,
}

impl<'a> Stage<'a> {
    /// Starts the destinations of `scenario` in `place`. Without `links` the tools reach the
    /// registries directly.
    pub async fn set(
        program: &Program,
        place: &Place,
        scenario: Scenario,
        quick: bool,
        source: &'a Registry,
        stock: &'a Stock,
        links: bool,
    ) -> Result<Stage<'a>, String> {
        let mut destinations = Vec::new();
        for _ in 0..scenario.destinations() {
            let destination = program.start(&place.folder).await;
            if scenario == Scenario::Unchanged {
                scenario.stock(&destination, quick).await;
            }
            destinations.push(destination);
        }
        let nature = scenario.link(quick);
        let near = connect(std::slice::from_ref(source), nature).await;
        let far = connect(&destinations, nature).await;
        let address = |registry: &Registry, link: &Link| {
            if links {
                link.address().to_owned()
            } else {
                registry.address().to_owned()
            }
        };
        let task = Task {
            source: address(source, &near[0]),
            destinations: destinations
                .iter()
                .zip(&far)
                .map(|(registry, link)| address(registry, link))
                .collect(),
            repositories: stock.repositories.clone(),
        };
        let home = TempDir::with_prefix("blobferry-bench-").map_err(|error| error.to_string())?;
        Ok(Stage {
            scenario,
            source,
            stock,
            destinations,
            links: [near, far],
            task,
            home,
        })
    }

    /// Lets the tool copy once, or until it is done where it is killed on the way.
    ///
    /// # Errors
    /// It failed where it must not, took too long, or left a tag that is not right.
    pub async fn pass(&self, tool: &Tool) -> Result<Run, String> {
        let pids: Vec<u32> = self.destinations.iter().map(Registry::pid).collect();
        self.passed();
        let before = Clocks::now(self.source.pid(), &pids);
        let ran = if self.scenario == Scenario::Interrupted {
            self.interrupted(tool).await?
        } else {
            self.whole(tool).await?
        };
        let shares = Clocks::now(self.source.pid(), &pids).since(&before);
        let sides = self.passed();
        let code = match ran.end {
            End::Failed { code, words } if self.scenario != Scenario::Storm => {
                return Err(format!("exit code {code}: {words}"));
            }
            End::Failed { code, words } => {
                eprintln!("{} ended with {code}: {words}", tool.name);
                code
            }
            End::Done | End::Killed => 0,
        };
        let (right, wrong) = self.check().await;
        match wrong {
            Some(wrong) if code == 0 => Err(wrong),
            _ => Ok(Run {
                wall: ran.wall.as_secs_f64(),
                memory: ran.memory,
                shares,
                sides,
                code,
                right,
            }),
        }
    }

    async fn whole(&self, tool: &Tool) -> Result<Ran, String> {
        tool.run(&self.task, self.home.path(), &|| false).await
    }

    /// Kills the tool when half of the bytes are over, and starts it again until it is done.
    async fn interrupted(&self, tool: &Tool) -> Result<Ran, String> {
        let half = self.stock.unique / 2;
        let over = || self.links[1].iter().map(Link::sent).sum::<u64>() >= half;
        let mut ran = tool.run(&self.task, self.home.path(), &over).await?;
        for _ in 0..RESTARTS {
            if ran.end == End::Done {
                break;
            }
            let first = Ran {
                end: End::Done,
                ..ran
            };
            ran = first.then(self.whole(tool).await?);
        }
        Ok(ran)
    }

    /// What has passed since the last time, at the source and at the destinations.
    fn passed(&self) -> [Passed; 2] {
        self.links.each_ref().map(|links| {
            let mut sum = Passed::default();
            links.iter().for_each(|link| sum += link.take());
            sum
        })
    }

    /// How many tags are right, and the first that is not.
    async fn check(&self) -> (usize, Option<String>) {
        let (mut right, mut wrong) = (0, None);
        for client in self.destinations.iter().map(Registry::client) {
            for (repository, tag, digest) in &self.stock.tags {
                match client.digest(repository, tag).await {
                    Some(found) if found == *digest => right += 1,
                    found => {
                        let found = found.as_deref().unwrap_or("missing").to_owned();
                        wrong.get_or_insert(format!(
                            "{repository}:{tag} is {found} and not {digest}"
                        ));
                    }
                }
            }
        }
        (right, wrong)
    }
}

async fn connect(registries: &[Registry], nature: Nature) -> Vec<Link> {
    let mut links = Vec::new();
    for registry in registries {
        links.push(Link::before(registry.address(), nature).await);
    }
    links
}
