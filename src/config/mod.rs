//! The config file as typed settings.
//!
//! [`Config::load`] reads the YAML file, the secret files that it names and the variables that it
//! uses. No other module reads a file or the environment for settings. All mistakes are reported
//! together, each [`Problem`] with file, line, column and key. Problems never contain secrets.
//!
//! | file | what is there |
//! |---|---|
//! | `yaml` | the document as a tree in which everything knows its place |
//! | `substitute` | `${VAR}` in values |
//! | `section` | mappings, read key by key; unknown keys; files and secrets |
//! | `keys` | the keys of a mapping, written once for reader and schema |
//! | `units` | durations and amounts |
//! | `document` | the file's top level |
//! | `daemon`, `registries`, `limits`, `receivers`, `queues`, `routes` | the parts of the file; what a registry is spared |
//! | `gates`, `scan`, `signers` | what must be so before a tag moves |
//! | `sets` | routes with images that move together |
//! | `notify` | where changes of results are told |
//! | `tokens` | bearer tokens and their rights |
//! | `aws` | what registries and queues say about AWS |
//! | `state_path` | `daemon.state` alone, for commands that need nothing else |
//! | `shapes` | shapes that values of several keys have |
//! | `schema` | the file's shape as JSON schema, for editors |

mod aws;
mod daemon;
mod document;
mod gates;
mod keys;
mod limits;
mod notify;
mod problem;
mod queues;
mod receivers;
mod registries;
mod routes;
mod scan;
mod schema;
mod section;
mod service;
mod sets;
mod shapes;
mod signers;
mod state_path;
mod substitute;
#[cfg(test)]
mod tests;
mod tokens;
mod units;
pub(crate) mod yaml;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use daemon::Daemon;
pub use limits::Limits;
pub use problem::{Error, Position, Problem};
pub use registries::{Registry, RegistryKind};
pub use schema::schema;
pub use state_path::{StatePath, registry_names, state_path};

use crate::route::Route;
use crate::set::Set;
use crate::watch::{queue_consumer, receiver};
use problem::Problems;
use section::{Item, Reader};

/// Longest config file, in bytes.
const LONGEST: u64 = 1024 * 1024;

/// Looks a variable of the environment up.
pub type Env<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Everything that the user says.
#[derive(Debug)]
pub struct Config {
    /// The file, as it was named.
    pub path: PathBuf,
    /// The first 12 hexadecimal characters of the SHA-256 of the file's text: tells two configs
    /// apart in history.
    pub hash: String,
    /// The daemon's own settings.
    pub daemon: Daemon,
    /// Which registries may notify us.
    pub receivers: Vec<receiver::settings::Settings>,
    /// Queues of push events.
    pub queues: Vec<queue_consumer::Settings>,
    /// By name.
    pub registries: BTreeMap<String, Registry>,
    /// In the order of the file: the first that matches has a repository. Not empty.
    pub routes: Vec<Route>,
    /// Routes with images that move together, by the names of the sets.
    pub sets: Vec<Set>,
    /// What the file names and this machine does not have, where it may come later: programs.
    pub missing: Vec<Problem>,
    /// The files with secrets that every user of this machine can read.
    pub exposed: Vec<Problem>,
}

impl Config {
    /// Reads a config file of at most 1 MiB, and the files that it names.
    ///
    /// # Errors
    /// [`Error`], with everything that is wrong.
    pub fn load(path: &Path, env: &Env<'_>) -> Result<Config, Error> {
        let file: Arc<str> = path.display().to_string().into();
        let mut content = Vec::new();
        File::open(path)
            .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut content))
            .map_err(|error| {
                let way_out = match error.kind() {
                    ErrorKind::NotFound => "; name another with -c FILE or BLOBFERRY_CONFIG",
                    _ => "",
                };
                Error::whole(
                    &file,
                    format!("cannot read the config file: {error}{way_out}"),
                )
            })?;
        let text = String::from_utf8(content)
            .map_err(|_| Error::whole(&file, "the config file is not UTF-8 text"))?;
        Config::parse(&text, path, env)
    }

    /// Parses `text` as the content of the file `path`. Relative paths start in its folder.
    ///
    /// # Errors
    /// [`Error`], with everything that is wrong.
    pub fn parse(text: &str, path: &Path, env: &Env<'_>) -> Result<Config, Error> {
        let file: Arc<str> = path.display().to_string().into();
        if text.len() as u64 > LONGEST {
            return Err(Error::whole(&file, "the config file is longer than 1 MiB"));
        }
        let problems = Problems::new(file);
        let root = match yaml::parse(text) {
            Ok(root) => root,
            Err((at, reason)) => {
                problems.add(
                    at,
                    "",
                    format!("not valid YAML: {reason}{}", asterisk_hint(text, at)),
                );
                return problems.settle(None);
            }
        };
        let reader = Reader {
            problems: &problems,
            env,
            folder: path.parent().unwrap_or(Path::new("")),
        };
        let config = document::read(&Item::root(&reader, &root), path, text);
        let missing = problems.missing();
        let exposed = problems.exposed();
        problems.settle(config).map(|config| Config {
            missing,
            exposed,
            ..config
        })
    }
}

/// An asterisk without quotes is an alias in YAML: the most likely slip in a rule.
fn asterisk_hint(text: &str, at: Position) -> &'static str {
    let line = usize::try_from(at.line)
        .ok()
        .and_then(|line| text.lines().nth(line.saturating_sub(1)))
        .unwrap_or_default();
    let is_rule = ["include", "exclude", "moving", "except"]
        .iter()
        .any(|key| line.contains(key));
    if line.match_indices('*').any(|(start, _)| {
        begins_a_value(line, start) && (is_rule || !is_before_a_name(line, start))
    }) {
        " (a rule that starts with an asterisk needs quotes: [\"*\"])"
    } else {
        ""
    }
}

fn begins_a_value(line: &str, at: usize) -> bool {
    line[..at].trim_end().ends_with(['[', ',', ':', '-'])
}

fn is_before_a_name(line: &str, at: usize) -> bool {
    line[at + 1..].starts_with(|next: char| next.is_alphanumeric() || next == '_')
}
