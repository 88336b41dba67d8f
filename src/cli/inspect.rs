//! `ls`, `tags`, `digest`: what registries hold.

use clap::Args;
use serde_json::json;

use super::lines::Lines;
use super::{Arguments, Failure, delegate, environment};
use crate::commands::{Inspect, InspectError};

/// Print the repositories of a registry
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry ls staging              a registry of the config
  blobferry ls registry.example     a host, with the credentials of the Docker config

Ends with 5 where the registry lists no repositories.")]
pub(super) struct Ls {
    /// A registry of the config, or a host
    #[arg(value_name = "REGISTRY")]
    registry: String,
    /// Print a JSON object on each line
    #[arg(long)]
    json: bool,
}

/// Print the tags of a repository, on either side
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry tags staging/team/app              staging is a registry of the config
  blobferry tags registry.example/app --json   with digests and times where the registry lists them

Signatures and other tags that belong to an image (sha256-….sig) are shown, too.
Ends with 5 where there is no such repository.")]
pub(super) struct Tags {
    /// REGISTRY/REPOSITORY with a registry of the config, host/repository, or layout:PATH
    #[arg(value_name = "SIDE/REPO")]
    repository: String,
    /// Print a JSON object on each line: tag, digest, pushed
    #[arg(long)]
    json: bool,
}

/// Print the digest that a reference names
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry digest production/app:v7
  blobferry digest registry.example/app:latest
  test \"$(blobferry digest staging/app:v7)\" = \"$(blobferry digest production/app:v7)\"

Ends with 5 where there is no such tag or digest.")]
pub(super) struct DigestOf {
    /// REGISTRY/REPOSITORY:TAG with a registry of the config, host/repository:tag, or
    /// layout:PATH:tag
    #[arg(value_name = "REF")]
    reference: String,
}

impl Ls {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let found = read(arguments, async |inspect| {
            inspect.repositories(&self.registry).await
        });
        for name in found.await? {
            if self.json {
                lines.json_line(&json!({"repository": name}));
            } else {
                lines.line(name.as_str());
            }
        }
        Ok(0)
    }
}

impl Tags {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let found = read(arguments, async |inspect| {
            inspect.tags(&self.repository).await
        });
        for (tag, listed) in found.await? {
            if self.json {
                lines.json_line(&json!({
                    "tag": tag,
                    "digest": listed.digest,
                    "pushed": listed.pushed,
                }));
            } else {
                lines.line(tag.as_str());
            }
        }
        Ok(0)
    }
}

impl DigestOf {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let found = read(arguments, async |inspect| {
            inspect.digest(&self.reference).await
        });
        lines.line(found.await?.to_string());
        Ok(0)
    }
}

/// Asks registries for something, with what the config knows of them.
async fn read<T>(
    arguments: &Arguments,
    ask: impl AsyncFnOnce(&Inspect<'_>) -> Result<T, InspectError>,
) -> Result<T, Failure> {
    let config = delegate::config(arguments)?;
    let inspect = Inspect::open(config.as_ref(), &environment).map_err(failure)?;
    let found = ask(&inspect).await;
    inspect.close().await;
    found.map_err(failure)
}

fn failure(error: InspectError) -> Failure {
    Failure::new(error.exit_code(), error)
}
