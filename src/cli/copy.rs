//! `copy`: one reference, with or without a config file.

use clap::Args;

use super::delegate;
use super::lines::Lines;
use super::pass::{Show, follow};
use super::progress::ProgressMode;
use super::remarks::Said;
use super::{Arguments, Failure, environment};
use crate::admin::CopyRequest;
use crate::commands;
use crate::oci::Digest;

/// Copy one reference, with what the config knows of its hosts
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry copy staging.example/app:v7 prod.example/app:v7
  blobferry copy staging.example/app@sha256:… prod.example/app:v7
  blobferry copy docker://staging.example/app:v7 layout:/srv/images/app:v7
  blobferry copy localhost:5000/app:v7 localhost:5001/app:v7 --dry-run

SRC is host/repository:tag or host/repository@digest, DST host/repository:tag or,
for the tag of SRC, host/repository; the same after docker://, http:// or https://,
or layout:PATH:tag for an OCI image layout.
A host that the config knows gets that registry's credentials, CA, scheme and
pace. Of others, loopback hosts speak http unless https:// is said, the rest https
unless http:// is, and credentials come from the Docker config and its helpers, for
ECR from AWS. Where a route leads to DST, or the config has both registries, a
running daemon makes the copy, else it goes into the state folder of the config:
the daemon then knows what was written, and its decisions hold. --state keeps
hints, checkpoints and history in another folder.
Where no route leads to DST, no gates are asked, and the output says unguarded.
An explicit act: a moving tag (latest) moves; any other tag that names another
digest is a conflict unless --replace names that digest.")]
pub(super) struct Copy {
    /// What to copy
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to
    #[arg(value_name = "DST")]
    destination: String,
    /// Copy only if SRC names this digest
    #[arg(long, value_name = "DIGEST")]
    expect: Option<Digest>,
    /// The digest that DST may lose
    #[arg(long, value_name = "DIGEST")]
    replace: Option<Digest>,
    /// Say what would be done, and touch nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    said: Said,
}

impl Copy {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
        mode: ProgressMode,
    ) -> Result<u8, Failure> {
        let request = commands::Copy {
            source: self.source.clone(),
            destination: self.destination.clone(),
            expect: self.expect,
            replace: self.replace,
            dry_run: self.dry_run,
            state: arguments.state.clone(),
            remarks: self.said.remarks(),
        };
        let options = arguments.repeated();
        // One reference was named: that it is up to date is the answer, not noise.
        let show = Show::new(self.json, true, &options);
        let delegated = CopyRequest {
            copy: true,
            images: vec![(self.source.clone(), self.destination.clone())],
            all_tags: false,
            expect: self.expect,
            replace: self.replace,
            dry_run: self.dry_run,
            remarks: self.said.remarks(),
        };
        if let Some(report) = delegate::by_daemon(arguments, &delegated, mode.clone(), show).await?
        {
            show.report(lines, &report);
            return Ok(report.exit_code);
        }
        let config = delegate::config(arguments)?;
        follow(show, mode, lines, |observer, stop| {
            commands::copy(request, config.as_ref(), &environment, observer, stop)
        })
        .await
        .map(|report| report.exit_code)
    }
}
