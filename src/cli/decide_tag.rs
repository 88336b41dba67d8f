//! `approve`, `accept`, `rollback`: decisions about what one tag names.

use std::pin::pin;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::decide::{Common, End};
use super::lines::Lines;
use super::pass::Signals;
use super::socket::not_running;
use super::{Arguments, Failure};
use crate::admin::{DecisionAnswer, DecisionRequest};
use crate::clock;
use crate::commands;
use crate::decision::{Kind, until};
use crate::job::GateKind;
use crate::oci::Digest;
use crate::state;

/// Approve: agree that a tag goes to the digest that staging names
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry approve production/prod-demo-app:v7
  blobferry approve prod-demo-app:v7 --digest sha256:… --reason CHG-17
  blobferry approve prod-demo-app:v7 --despite window,command --until 2h --reason INC-4

It counts for the gate `approval` while staging names that digest, for its own
tag and for moving tags of the same digest, and ends when staging moves. The
digests are printed. --despite passes gates that are not met, for that digest,
for 24 hours at most; it takes the right `override` and a reason. It takes a
daemon.")]
pub(super) struct Approve {
    /// The destination tag: [REGISTRY/]REPOSITORY:TAG
    #[arg(value_name = "TARGET")]
    target: String,
    #[command(flatten)]
    named: NamedDigests,
    /// Gates that are passed although they are not met
    #[arg(long, value_name = "GATES", value_delimiter = ',', value_parser = gate)]
    despite: Vec<GateKind>,
    #[command(flatten)]
    end: End,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct NamedDigests {
    /// What staging names; another digest is refused
    #[arg(long, value_name = "DIGEST")]
    digest: Option<Digest>,
    /// What production names; another digest is refused
    #[arg(long, value_name = "DIGEST")]
    replaces: Option<Digest>,
}

/// Accept: staging's digest is named once, over what production names
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry accept production/prod-demo-app:v7 --reason 'the rebuild is right'
  blobferry accept prod-demo-app:v7 --digest sha256:… --replaces sha256:… --reason CHG-17
  blobferry accept route:demo-app --all --reason 'first start: staging is right'

For a tag in conflict, drift or existing. Both digests are those of this moment
unless they are given, and they are printed; if either side names another one
when the tag is to move, nothing happens. Where both sides name the same digest
it only records that they agree. Gates, holds and denials apply. --all is about
the tags of a route that were reported as existing by now, each with the digests
of that report. It takes a daemon.")]
pub(super) struct Accept {
    /// The destination tag: [REGISTRY/]REPOSITORY:TAG; with --all route:NAME
    #[arg(value_name = "TARGET")]
    target: String,
    /// All tags of the route that were reported as existing
    #[arg(long, conflicts_with_all = ["digest", "replaces"])]
    all: bool,
    #[command(flatten)]
    end: End,
    #[command(flatten)]
    named: NamedDigests,
    #[command(flatten)]
    common: Common,
}

/// Roll back: move a tag to what it named before, and keep what was replaced out of it
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry rollback production/prod-demo-app:latest --reason INC-4
  blobferry rollback prod-demo-app:latest --to sha256:… --reason INC-4

Ends with 0 when the tag has moved. What it named, and what staging names now,
are kept out of it (`held`) until staging names another digest, or `release`.
Gates and holds do not stop it; a denial does. Without a daemon it acts by
itself, with the config.")]
pub(super) struct Rollback {
    /// The destination tag: [REGISTRY/]REPOSITORY:TAG
    #[arg(value_name = "TARGET")]
    target: String,
    /// The digest to go back to: one that the ledger shows in this repository
    #[arg(long, value_name = "DIGEST")]
    to: Option<Digest>,
    /// When what was replaced is no longer kept out: a time (RFC 3339) or a duration
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    #[command(flatten)]
    common: Common,
}

fn gate(text: &str) -> Result<GateKind, String> {
    let kinds = GateKind::ALL.into_iter();
    kinds
        .clone()
        .find(|kind| kind.name() == text)
        .ok_or_else(|| {
            let names: Vec<&str> = kinds.map(GateKind::name).collect();
            format!("no such gate (there are {})", names.join(", "))
        })
}

impl Approve {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        if !self.despite.is_empty() && self.common.remarks().reason.is_none() {
            return Err(Failure::usage(
                "--despite needs a reason: give --reason TEXT",
            ));
        }
        let request = DecisionRequest {
            digest: self.named.digest,
            replaces: self.named.replaces,
            despite: self.despite.clone(),
            until: self.end.until.clone(),
            ..self.common.request(Kind::Approve, &self.target)?
        };
        self.common
            .order_of_daemon(&request, arguments, lines)
            .await
    }
}

impl Accept {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let request = DecisionRequest {
            digest: self.named.digest,
            replaces: self.named.replaces,
            all: self.all,
            until: self.end.until.clone(),
            ..self.common.request(Kind::Accept, &self.target)?
        };
        let Some(answer) = self.common.ask_daemon(&request, arguments).await? else {
            let failure = not_running(&arguments.state_path()?);
            let way_out = "without one, `blobferry copy … --replace DIGEST` moves a tag once";
            return Err(Failure::said(
                failure.code,
                format_args!("{failure}; {way_out}"),
            ));
        };
        self.common.show(&answer, lines);
        Ok(0)
    }
}

impl Rollback {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let request = DecisionRequest {
            to: self.to,
            until: self.until.clone(),
            ..self.common.request(Kind::Rollback, &self.target)?
        };
        let alone = async || self.act(arguments).await;
        let decided = self.common.decided(&request, arguments, alone);
        let (answer, _by_daemon) = decided.await?;
        self.common.show(&answer, lines);
        Ok(0)
    }

    /// Moves the tag in this process. `None`: another one holds the state folder.
    async fn act(&self, arguments: &Arguments) -> Result<Option<DecisionAnswer>, Failure> {
        let target = self.target.parse().map_err(Failure::usage)?;
        let end = self.until.as_deref();
        let end = end.map(|text| until(text, clock::now())).transpose();
        let rollback = commands::Rollback {
            target,
            to: self.to,
            until: end.map_err(|error| Failure::usage(format_args!("--until: {error}")))?,
            remarks: self.common.remarks(),
        };
        let config = arguments.config()?;
        let mut signals = Signals::listen()?;
        let stop = CancellationToken::new();
        let moved = commands::roll_back(&config, rollback, stop.clone());
        let mut moved = pin!(moved);
        let moved = tokio::select! {
            biased;
            moved = &mut moved => moved,
            () = signals.next() => {
                stop.cancel();
                moved.await
            }
        };
        match moved {
            Ok(Ok(moved)) => Ok(Some(DecisionAnswer::of(moved))),
            Ok(Err(error)) => Err(Failure::new(error.exit_code(), error)),
            Err(commands::Error::State(state::Error::Held { .. })) => Ok(None),
            Err(error) => Err(Failure::new(error.exit_code(), error)),
        }
    }
}
