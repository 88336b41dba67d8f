//! The commands of a buildspec and of a workflow.

use super::{Open, Shell, Word, split};
use crate::config::yaml::{Node, Value};
use crate::migrate::tree::{self, Map, Wrong};

impl Shell {
    /// A buildspec or a workflow.
    pub(super) fn pipeline(&mut self, root: &Map<'_>, node: &Node) -> Result<(), Wrong> {
        tree::check_keys(node)?;
        match root.has("phases") {
            true => self.buildspec(root),
            false => self.workflow(root),
        }
    }

    /// The phases of a buildspec: they share their variables.
    fn buildspec(&mut self, root: &Map<'_>) -> Result<(), Wrong> {
        if let Some(env) = root.map("env")?
            && let Some(variables) = env.map("variables")?
        {
            for (name, node) in variables.entries() {
                let value = Word::Known(tree::text(node, name)?.to_owned());
                self.variables.insert(name.to_owned(), value);
            }
        }
        for (name, node) in root.map("phases")?.iter().flat_map(Map::entries) {
            let phase = Map::of(node, name)?;
            for key in ["commands", "finally"] {
                self.read_nodes(&phase.list(key));
            }
        }
        Ok(())
    }

    /// The steps of a workflow: each is a shell of its own.
    fn workflow(&mut self, root: &Map<'_>) -> Result<(), Wrong> {
        let Some(jobs) = root.map("jobs")? else {
            return Ok(());
        };
        for (name, node) in jobs.entries() {
            let job = Map::of(node, name)?;
            for step in job.list("steps") {
                let step = Map::of(step, "steps")?;
                self.step(&[root, &job, &step])?;
            }
        }
        Ok(())
    }

    /// The last of the levels is the step.
    fn step(&mut self, levels: &[&Map<'_>]) -> Result<(), Wrong> {
        let Some(node) = levels.last().and_then(|step| step.get("run")) else {
            return Ok(());
        };
        self.variables.clear();
        for level in levels {
            let Some(Value::Map(_)) = level.get("env").map(|node| &node.value) else {
                continue;
            };
            for (name, node) in level.map("env")?.iter().flat_map(Map::entries) {
                let value = tree::text(node, name)?;
                self.charge(name.len() + value.len())?;
                let value = match value.contains("${{") {
                    true => Word::Unknown(format!("${name}")),
                    false => Word::Known(value.to_owned()),
                };
                self.variables.insert(name.to_owned(), value);
            }
        }
        let is_conditional = levels.iter().any(|level| level.has("if"));
        self.open = vec![Open {
            end: "",
            is_conditional,
        }];
        self.read_nodes(&[node]);
        let parts = std::mem::take(&mut self.parts);
        self.run(&parts)
    }

    fn read_nodes(&mut self, nodes: &[&Node]) {
        for node in nodes {
            if let Value::Text(text) = &node.value {
                self.parts.extend(split::parts(text, node.at.line));
            }
        }
    }
}
