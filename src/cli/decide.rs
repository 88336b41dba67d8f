//! `hold`, `release`, `deny`: what a person decides, by the daemon while one runs, else in the
//! ledger. What is common to all decisions is here as well.

use clap::Args;
use http::StatusCode;

use super::lines::Lines;
use super::output::{clean, plural};
use super::progress::say;
use super::remarks::Said;
use super::socket::{Ordered, Socket, not_running, refusal};
use super::sync::is_same_file;
use super::{Arguments, Failure, load};
use crate::admin::{DecisionAnswer, DecisionRequest};
use crate::commands::{Decide, DecideError, decide};
use crate::config::{Config, StatePath};
use crate::decision::Kind;
use crate::job::Remarks;
use crate::oci::Digest;
use crate::state;

/// Where a daemon takes decisions.
const DECISIONS: &str = "/v1/decisions";

/// Hold: looks and carrying go on, no tag is named
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry hold                                        nothing is named any more
  blobferry hold --until 2026-12-07T06:00:00+01:00      until Monday morning
  blobferry hold production/prod-demo-app:v7 --until 2h one tag, for two hours
  blobferry hold 'production/payments/**' --reason CHG-17
  blobferry hold route:demo-app
  blobferry hold set:shop                               what moves together

It is in force when this ends with 0: no tag that it covers is named after that,
until `blobferry release` with the same target, or its own end.")]
pub(super) struct Hold {
    /// What to hold: [REGISTRY/]REPOSITORY[:TAG] of a destination (* and ** are wildcards),
    /// route:NAME, set:NAME[:TAG], or sha256:…; absent: everything
    #[arg(value_name = "TARGET", default_value = "", hide_default_value = true)]
    target: String,
    #[command(flatten)]
    end: End,
    #[command(flatten)]
    common: Common,
}

/// Deny: this content is never carried, named or repaired, here or as part of anything
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry deny sha256:… --reason 'CVE-2026-1 in the base layer'

The digest may be that of a manifest, a config or a layer. Production tags that
name it already stay as they are; they are counted in
blobferry_denied_in_production and told in the log.")]
pub(super) struct Deny {
    /// The digest
    #[arg(value_name = "DIGEST")]
    digest: Digest,
    #[command(flatten)]
    end: End,
    #[command(flatten)]
    common: Common,
}

/// End decisions: all with this target, or the one with this number
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry release                                     ends `blobferry hold`
  blobferry release production/prod-demo-app:v7
  blobferry release 12                                  the decision of that number

`blobferry status` lists the decisions in force with their numbers and targets.")]
pub(super) struct Release {
    /// The target, with its registry or without, or the number of the decision; absent: what is about
    /// everything
    #[arg(
        value_name = "TARGET or ID",
        default_value = "",
        hide_default_value = true
    )]
    target: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct End {
    /// When it ends by itself: a time (RFC 3339) or a duration
    #[arg(long, value_name = "TIME")]
    pub(super) until: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Common {
    #[command(flatten)]
    said: Said,
    /// Print the row of the ledger as JSON
    #[arg(long)]
    json: bool,
}

impl Hold {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let request = Decide {
            kind: Kind::Hold,
            target: self.target.clone(),
            id: None,
            until: self.end.until.clone(),
            remarks: self.common.remarks(),
        };
        self.common.order(request, arguments, lines).await
    }
}

impl Deny {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let request = Decide {
            kind: Kind::Deny,
            target: self.digest.to_string(),
            id: None,
            until: self.end.until.clone(),
            remarks: self.common.remarks_for(Kind::Deny)?,
        };
        self.common.order(request, arguments, lines).await
    }
}

impl Release {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let id = self.target.parse().ok();
        let target = if id.is_some() { "" } else { &self.target };
        let request = Decide {
            kind: Kind::Release,
            target: target.into(),
            id,
            until: None,
            remarks: self.common.remarks(),
        };
        self.common.order(request, arguments, lines).await
    }
}

impl Common {
    /// What the caller says of itself and of the act.
    pub(super) fn remarks(&self) -> Remarks {
        self.said.remarks()
    }

    /// The same, with the reason that a kind of decision needs.
    fn remarks_for(&self, kind: Kind) -> Result<Remarks, Failure> {
        let remarks = self.remarks();
        if kind.needs_reason() && remarks.reason.is_none() {
            return Err(Failure::usage(format_args!(
                "`{kind}` needs a reason: give --reason TEXT"
            )));
        }
        Ok(remarks)
    }

    /// A decision about one tag.
    pub(super) fn request(&self, kind: Kind, target: &str) -> Result<DecisionRequest, Failure> {
        Ok(request(&Decide {
            kind,
            target: target.into(),
            id: None,
            until: None,
            remarks: self.remarks_for(kind)?,
        }))
    }

    /// Asks for a decision that takes a daemon.
    pub(super) async fn order_of_daemon(
        &self,
        request: &DecisionRequest,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        match self.ask_daemon(request, arguments).await? {
            Some(answer) => self.show(&answer, lines),
            None => return Err(not_running(&arguments.state_path()?)),
        }
        Ok(0)
    }

    /// The daemon's answer. `None`: no daemon runs.
    pub(super) async fn ask_daemon(
        &self,
        request: &DecisionRequest,
        arguments: &Arguments,
    ) -> Result<Option<DecisionAnswer>, Failure> {
        let socket = Socket::in_state(&arguments.state_path()?.folder);
        let answered = socket.order(DECISIONS, &body(request)).await?;
        answered
            .map(|(status, body)| answer(status, body))
            .transpose()
    }

    /// The answer of the daemon, else of this process, which comes to `None` where another one
    /// holds the state folder; and whether it is the daemon's.
    pub(super) async fn decided(
        &self,
        request: &DecisionRequest,
        arguments: &Arguments,
        alone: impl AsyncFn() -> Result<Option<DecisionAnswer>, Failure>,
    ) -> Result<(DecisionAnswer, bool), Failure> {
        let socket = Socket::in_state(&arguments.state_path()?.folder);
        let ordered = socket.order_or(DECISIONS, &body(request), alone).await?;
        match ordered {
            Ordered::ByDaemon(status, body) => Ok((answer(status, body)?, true)),
            Ordered::Alone(answer) => Ok((answer, false)),
        }
    }

    pub(super) fn show(&self, answer: &DecisionAnswer, lines: &mut Lines) {
        if self.json {
            lines.json_line(answer);
        } else {
            lines.line(shown(answer));
        }
    }

    async fn order(
        &self,
        request: Decide,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let state = arguments.state_path()?;
        let is_new = !crate::ledger::exists_in(&state.folder);
        let alone = async || recorded(&request, arguments, &state).await;
        let request = self::request(&request);
        let (answer, by_daemon) = self.decided(&request, arguments, alone).await?;
        self.show(&answer, lines);
        if !by_daemon && !self.json {
            let folder = state.folder.display();
            lines.line(match is_new {
                true => format!(
                    "no daemon has used {folder} so far: one that starts there goes by it; --state DIR or `daemon.state` names another folder"
                ),
                false => format!("no daemon runs on {folder}: the next one there goes by it"),
            });
        }
        Ok(0)
    }
}

/// Records a decision in this process. `None`: another one holds the state folder.
async fn recorded(
    request: &Decide,
    arguments: &Arguments,
    state: &StatePath,
) -> Result<Option<DecisionAnswer>, Failure> {
    let config = config_of(arguments, state);
    match decide(&state.folder, config.as_ref(), request.clone()).await {
        Ok(recorded) => Ok(Some(DecisionAnswer::recorded(recorded))),
        Err(DecideError::State(state::Error::Held { .. })) => Ok(None),
        Err(error) => Err(Failure::new(error.exit_code(), error)),
    }
}

/// The config of the daemon that uses the state folder, where there is one that can be read.
fn config_of(arguments: &Arguments, state: &StatePath) -> Option<Config> {
    let path = arguments.config_path();
    let unread = match load(&path) {
        _ if !path.exists() => state.doubt.clone()?,
        Ok(config) => {
            return Some(config).filter(|config| is_same_file(&config.daemon.state, &state.folder));
        }
        Err(failure) => failure.to_string(),
    };
    let first = unread.lines().next().unwrap_or_default();
    say(&format!(
        "the target is taken as it is written, since the config is not known: {first}"
    ));
    None
}

fn answer(status: StatusCode, body: serde_json::Value) -> Result<DecisionAnswer, Failure> {
    if status != StatusCode::CREATED {
        return Err(refused(status, &body));
    }
    serde_json::from_value(body).map_err(|error| {
        Failure::said(1, format_args!("the daemon is of another version: {error}"))
    })
}

fn request(decide: &Decide) -> DecisionRequest {
    DecisionRequest {
        kind: decide.kind,
        target: Some(decide.target.clone()).filter(|target| !target.is_empty()),
        id: decide.id,
        digest: None,
        replaces: None,
        to: None,
        despite: Vec::new(),
        all: false,
        until: decide.until.clone(),
        reason: decide.remarks.reason.clone(),
        actor: decide.remarks.claimed_actor.clone(),
    }
}

fn body(request: &DecisionRequest) -> serde_json::Value {
    serde_json::to_value(request).expect("plain data is JSON")
}

/// The daemon's refusal, with the exit code of a decision.
fn refused(status: StatusCode, body: &serde_json::Value) -> Failure {
    let code = match status {
        StatusCode::BAD_REQUEST => 2,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => 3,
        StatusCode::CONFLICT => 4,
        StatusCode::NOT_FOUND => 5,
        _ => 1,
    };
    let refusal = refusal(status, body);
    Failure { code, ..refusal }
}

fn shown(answer: &DecisionAnswer) -> String {
    let numbered = &answer.decision;
    let decision = &numbered.decision;
    let mut text = format!(
        "decision {}: {} {}",
        numbered.id,
        numbered.kind,
        clean(decision.shown_target())
    );
    match (decision.digest, decision.replaces) {
        (Some(digest), Some(replaces)) if digest == replaces => {
            text.push_str(&format!(": both sides name {digest}"));
        }
        (Some(digest), Some(replaces)) => {
            text.push_str(&format!(" to {digest}, replaces {replaces}"));
        }
        (Some(digest), None) if numbered.kind == Kind::Approve => {
            text.push_str(&format!(" to {digest}"));
        }
        _ => {}
    }
    if !decision.despite.is_empty() {
        let gates: Vec<&str> = decision.despite.iter().map(|gate| gate.name()).collect();
        text.push_str(&format!(" despite {}", gates.join(", ")));
    }
    if let Some(until) = decision.until {
        text.push_str(&format!(" until {until}"));
    }
    if !decision.ends.is_empty() {
        let ended: Vec<String> = decision.ends.iter().map(ToString::to_string).collect();
        text.push_str(&format!(", ends {}", ended.join(", ")));
    }
    if let Some(tags) = answer.tags {
        text.push_str(&format!(", {}", plural(tags, "tag")));
    }
    for reason in &answer.held_by {
        text.push_str(&format!("\nit waits: {}", clean(reason)));
    }
    for tag in &answer.on_their_way {
        text.push_str(&format!(
            "\n{} was sent before, and there is no answer yet: it may still be named",
            clean(tag)
        ));
    }
    for digest in &answer.carried {
        text.push_str(&format!(
            "\n{} was sent before, and there is no answer yet: it may still arrive",
            clean(digest)
        ));
    }
    text
}
