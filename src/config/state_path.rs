//! Where the daemon of a config keeps its state and what its registries are called, for commands
//! that need nothing else of the file.
//!
//! `status`, `history` and `sync` beside a daemon run in shells that lack the daemon's variables
//! and secrets, and while an edit of the file is half done. So only `daemon.state` and the keys of
//! `registries` are read here: other keys may be wrong and variables of other values unset. A syntax
//! error outside of `daemon` does no harm to the former.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::problem::Problems;
use super::section::{Item, Reader, Section};
use super::{Env, LONGEST, daemon, yaml};

/// The state folder, as far as the config tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePath {
    /// `daemon.state`, else the default of this user.
    pub folder: PathBuf,
    /// Why the file does not say what `daemon.state` is, where it should.
    pub doubt: Option<String>,
}

/// Reads `daemon.state` of the config file at `path`. `None`: the file does not say it and there is
/// no default, because none of `STATE_DIRECTORY`, `XDG_STATE_HOME` and `HOME` is set.
pub fn state_path(path: &Path, env: &Env<'_>) -> Option<StatePath> {
    let (written, doubt) = match read(path).and_then(|text| written(&text, path, env)) {
        Ok(written) => (written, None),
        Err(doubt) => (None, Some(doubt)),
    };
    let folder = written.or_else(|| daemon::standard_folder(env))?;
    Some(StatePath { folder, doubt })
}

/// The names of `registries`, as far as the file can be read.
pub fn registry_names(path: &Path, env: &Env<'_>) -> Vec<String> {
    let root = read(path).ok().and_then(|text| yaml::parse(&text).ok());
    let Some(root) = root else { return Vec::new() };
    let problems = Problems::new(path.display().to_string().into());
    let reader = Reader {
        problems: &problems,
        env,
        folder: Path::new(""),
    };
    let registries = Item::root(&reader, &root)
        .section()
        .and_then(|mut keys| keys.item("registries")?.section());
    let registries = registries.iter().flat_map(Section::entries);
    registries.map(|(name, _)| name.to_owned()).collect()
}

fn read(path: &Path) -> Result<String, String> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST).read_to_end(&mut content))
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// The value of `daemon.state`, if the text has one.
fn written(text: &str, path: &Path, env: &Env<'_>) -> Result<Option<PathBuf>, String> {
    let unusable = |reason: &str| {
        format!(
            "daemon.state in {} cannot be read: {reason}",
            path.display()
        )
    };
    let root = match yaml::parse(text) {
        Ok(root) => root,
        Err(_) => yaml::parse(&daemon_block(text)).map_err(|(_, reason)| unusable(&reason))?,
    };
    let problems = Problems::new(path.display().to_string().into());
    let reader = Reader {
        problems: &problems,
        env,
        folder: path.parent().unwrap_or(Path::new("")),
    };
    let state = Item::root(&reader, &root)
        .section()
        .and_then(|mut keys| keys.item("daemon")?.section())
        .and_then(|mut daemon| daemon.item("state"));
    let Some(state) = state else { return Ok(None) };
    if let Some(folder) = state.path() {
        return Ok(Some(folder));
    }
    let found = problems
        .settle::<()>(None)
        .err()
        .into_iter()
        .flat_map(|error| error.problems);
    Err(unusable(
        &found
            .map(|problem| problem.text)
            .collect::<Vec<_>>()
            .join("; "),
    ))
}

/// The lines of the top-level key `daemon`: enough of a file whose rest is not YAML.
fn daemon_block(text: &str) -> String {
    let is_top =
        |line: &str| line.starts_with(|first: char| !first.is_whitespace() && first != '#');
    let mut block = String::new();
    for line in text.lines() {
        let belongs = match is_top(line) {
            true => line.starts_with("daemon:"),
            false => !block.is_empty(),
        };
        if belongs {
            block.extend([line, "\n"]);
        } else if !block.is_empty() {
            break;
        }
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        (name == "STATE_DIRECTORY").then(|| "/default".into())
    }

    fn found(text: &str) -> (String, bool) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blobferry.yaml");
        std::fs::write(&path, text).unwrap();
        let found = state_path(&path, &env).unwrap();
        (
            found
                .folder
                .strip_prefix(folder.path())
                .unwrap_or(&found.folder)
                .display()
                .to_string(),
            found.doubt.is_some(),
        )
    }

    #[test]
    fn the_state_is_found_whatever_else_is_wrong_with_the_file() {
        for (text, folder, doubt) in [
            (
                "daemon: {state: /s}\nregistries: {a: {password_file: '${CREDENTIALS_DIRECTORY}/x'}}\n",
                "/s",
                false,
            ),
            (
                "daemon:\n  secret_file: ${UNSET}/secret\n  state: /s\n",
                "/s",
                false,
            ),
            ("daemon:\n  state: here\n", "here", false),
            (
                "daemon: {state: /s, no_such_key: 1}\nroutes: nonsense\n",
                "/s",
                false,
            ),
            ("daemon:\n  state: /s\nroutes:\n  - {from: [\n", "/s", false),
            (
                "# daemon: x\nroutes:\n  - }\n\ndaemon:\n  # here\n  state: /s\n\nregistries: }\n",
                "/s",
                false,
            ),
            ("routes: []\n", "/default", false),
            ("", "/default", false),
            ("daemon: {poll: 1s}\n", "/default", false),
            ("daemon:\n  state: ${UNSET}/s\n", "/default", true),
            ("daemon:\n  state: {\n", "/default", true),
        ] {
            assert_eq!(found(text), (folder.to_owned(), doubt), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_leaves_the_default_and_a_doubt() {
        let found = state_path(Path::new("/no/such/file"), &env).unwrap();
        assert_eq!(found.folder, Path::new("/default"));
        assert!(found.doubt.unwrap().contains("/no/such/file"));
    }
}
