//! `migrate`: the configs of other tools, and the commands of a pipeline, as a config of ours.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use tracing::Level;

use super::Failure;
use super::lines::Lines;
use super::output::{clean, plural};
use crate::migrate::{self, Kind, LONGEST, Migrated, Options};
use crate::telemetry;

/// Turn the config of another tool, or the commands of a pipeline, into a config of blobferry
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry migrate regsync.yml > blobferry.yaml
  blobferry check -c blobferry.yaml
  blobferry migrate --to registry.example/team skopeo-sync.yml
  blobferry migrate --from script - < buildspec.yml

Prints YAML that `check` takes. What has no counterpart is a comment in it, with
the reason and the way out, and is summed up on stderr. No secret of the old file
is printed: put it into a file and name that with `password_file`.

Ends with 0 when there is at least one route. Ends with 2 and prints no YAML when
the file is of no known format, is not well-formed, or holds nothing that can be a
route.")]
pub(super) struct Migrate {
    /// The format of the file, where its content does not tell it
    #[arg(
        long,
        value_name = "KIND",
        value_parser = PossibleValuesParser::new(Kind::ALL.map(Kind::name)).try_map(|name| name.parse::<Kind>())
    )]
    from: Option<Kind>,
    /// The destination of formats that do not name it (skopeo; image-syncer's default)
    #[arg(long, value_name = "HOST[/PATH]")]
    to: Option<String>,
    /// Keep the source's host and path at the destination, as --scoped of skopeo
    #[arg(long)]
    scoped: bool,
    /// The file; - reads from stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Migrate {
    pub(super) fn run(&self, lines: &mut Lines) -> Result<u8, Failure> {
        let shown = self.shown();
        let text = self.text().map_err(|error| Failure::new(2, error))?;
        let options = Options {
            kind: self.from,
            to: self.to.as_deref(),
            scoped: self.scoped,
        };
        let migrated = migrate::migrate(&text, options)
            .map_err(|wrong| Failure::usage(format!("{shown}:{wrong}")))?;
        sum_up(&shown, &migrated);
        if migrated.routes == 0 {
            return Err(Failure::usage(format!(
                "{shown}: nothing in it can be a route"
            )));
        }
        lines.write(migrated.config.as_bytes());
        Ok(0)
    }

    fn shown(&self) -> String {
        match self.is_stdin() {
            true => "stdin".into(),
            false => clean(&self.file.display().to_string()),
        }
    }

    fn is_stdin(&self) -> bool {
        self.file == Path::new("-")
    }

    fn text(&self) -> anyhow::Result<String> {
        let shown = self.shown();
        let read = match self.is_stdin() {
            true => bounded(io::stdin()),
            false => File::open(&self.file).and_then(bounded),
        };
        let content = read.with_context(|| format!("cannot read {shown}"))?;
        String::from_utf8(content).map_err(|_| anyhow::anyhow!("{shown} is not UTF-8 text"))
    }
}

/// One byte more than is allowed shows that there is too much.
fn bounded(input: impl Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    input.take(LONGEST + 1).read_to_end(&mut content)?;
    Ok(content)
}

/// What came out, and what has no counterpart, for the terminal.
fn sum_up(shown: &str, migrated: &Migrated) {
    let routes = plural(migrated.routes as u64, "route");
    let remarks = plural(migrated.remarks.len() as u64, "remark");
    telemetry::say(
        Level::INFO,
        &format!("{shown}: read as {}: {routes}, {remarks}", migrated.kind),
    );
    for remark in &migrated.remarks {
        telemetry::say(
            Level::WARN,
            &format!("{shown}:{}: {}", remark.line, remark.text),
        );
    }
}
