//! `why`: everything that bears on one tag, by the daemon while one runs, else by the ledger.

use clap::Args;
use jiff::{Timestamp, Unit};

use super::history::{open, repository_and_tag};
use super::lines::Lines;
use super::output::{clean, relative};
use super::socket::Socket;
use super::{Arguments, Failure};
use crate::admin::{TagView, TagViews};
use crate::clock;
use crate::config::StatePath;
use crate::decision::{Numbered, Target};
use crate::job::{Judgement, Outcome, Verdict};
use crate::ledger::{Ledger, Query, Row};
use crate::oci::Digest;

/// Rows of the ledger that are read without a daemon.
const ROWS: u32 = 100;

/// Why a tag is in production, or not
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry why prod-demo-app:v1.4.0
  blobferry why staging/staging-demo-app:v1.4.0 --json

The repository may be that of either side, with or without its registry. The
daemon asks both sides and plans, and changes nothing. Programs and services
that judge are not asked for it: what they said last is shown. Without a daemon
it is what the ledger knows. Ends with 5 where no route takes the tag.")]
pub(super) struct Why {
    /// The tag: [REGISTRY/]REPOSITORY:TAG
    #[arg(value_name = "REPO:TAG")]
    tag: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Why {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let state = arguments.state_path()?;
        let found = Socket::in_state(&state.folder)
            .find_out(&self.path()?)
            .await?;
        let is_told = found.is_some();
        let views = match found {
            Some(body) => serde_json::from_value(body).map_err(|error| {
                Failure::said(1, format_args!("the daemon is of another version: {error}"))
            })?,
            None => self.by_ledger(&state).await?,
        };
        self.show(&views, is_told, lines);
        let is_taken = views.tags.iter().any(|view| view.result.is_some());
        Ok(if is_taken { 0 } else { 5 })
    }

    fn show(&self, views: &TagViews, is_told: bool, lines: &mut Lines) {
        if self.json {
            lines.json_line(views);
            return;
        }
        if !is_told {
            lines.line("no daemon runs: this is what the ledger knows");
        }
        if views.tags.is_empty() {
            lines.line(format!("nothing is known of {}", clean(&self.tag)));
        }
        for view in &views.tags {
            lines.line(shown(view, clock::now()));
        }
    }

    fn path(&self) -> Result<String, Failure> {
        let Some((repository, tag)) = self
            .tag
            .rsplit_once(':')
            .filter(|(_, tag)| !tag.contains('/'))
        else {
            return Err(Failure::usage("name a tag: [REGISTRY/]REPOSITORY:TAG"));
        };
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query
            .append_pair("repository", repository)
            .append_pair("tag", tag);
        Ok(format!("/v1/tags?{}", query.finish()))
    }

    /// What the ledger knows of the tag, by its newest rows.
    async fn by_ledger(&self, state: &StatePath) -> Result<TagViews, Failure> {
        let Some(ledger) = open(state)? else {
            return Ok(TagViews { tags: Vec::new() });
        };
        let read = self.rows(&ledger).await;
        ledger.close().await;
        let (rows, in_force) = read?;
        let mut views: Vec<TagView> = Vec::new();
        for row in &rows {
            let Some(mut view) = view_of(row.clone(), &in_force) else {
                continue;
            };
            view.note_result_since(&rows);
            if !views
                .iter()
                .any(|known| known.route == view.route && known.destination == view.destination)
            {
                views.push(view);
            }
        }
        Ok(TagViews { tags: views })
    }

    async fn rows(&self, ledger: &Ledger) -> Result<(Vec<Row>, Vec<Numbered>), Failure> {
        let failed = |fault| Failure::new(1, fault);
        let (repository, tag) = repository_and_tag(&self.tag);
        let in_force = ledger.in_force().await.map_err(failed)?;
        let in_force = in_force.now(clock::now()).cloned().collect();
        let without_registry = repository.split_once('/').map(|(_, rest)| rest.to_owned());
        for repository in [Some(repository), without_registry].into_iter().flatten() {
            let query = Query {
                limit: ROWS,
                repository: Some(repository),
                tag: tag.clone(),
                newest_first: true,
                ..Query::default()
            };
            let rows = ledger.page(query).await.map_err(failed)?;
            if rows.iter().any(|row| row.settled().is_some()) {
                return Ok((rows, in_force));
            }
        }
        Ok((Vec::new(), in_force))
    }
}

/// Whether a reason begins with a target.
fn is_named_in(reasons: &[String], target: &Target) -> bool {
    let target = target.to_string();
    reasons.iter().any(|reason| reason.starts_with(&target))
}

/// What a row of the ledger tells of its tag.
fn view_of(row: Row, in_force: &[Numbered]) -> Option<TagView> {
    let settled = row.settled()?;
    let production = settled.production();
    let (destination, tag) = settled.destination.rsplit_once(':')?;
    let covers = |target: &Target| match target {
        Target::Everything => true,
        Target::Digest(digest) => [settled.digest, production].contains(&Some(*digest)),
        Target::Route(name) => **name == *settled.route,
        // Without a config its reasons alone tell that the tag is part of the set.
        Target::Set(..) => is_named_in(&settled.reasons, target),
        Target::Destination(_) => {
            let is_tag = target.tag().is_none_or(|named| named.as_str() == tag);
            let repository = target.repository().map(|name| name.to_string());
            is_tag
                && repository.is_none_or(|repository| {
                    destination == repository || destination.ends_with(&format!("/{repository}"))
                })
        }
    };
    let decisions = in_force.iter().filter(|one| covers(&one.target));
    Some(TagView {
        route: settled.route.clone(),
        source: settled.source.clone(),
        destination: settled.destination.clone(),
        digest: settled.digest,
        production,
        known: None,
        moving: None,
        result: Some(settled.result),
        result_since: None,
        reasons: settled.reasons.clone(),
        error: settled.error.clone(),
        gates: settled.gates.clone(),
        decisions: decisions.cloned().collect(),
        last: Some(row),
        next_look: None,
    })
}

fn shown(view: &TagView, now: Timestamp) -> String {
    let mut lines = vec![headline(view, now)];
    let mut add = |name: &str, text: String| lines.push(format!("  {name:<11} {}", clean(&text)));
    if !view.route.is_empty() {
        let kind = match view.moving {
            Some(true) => " (a moving tag)",
            Some(false) => " (a fixed tag)",
            None => "",
        };
        add("route", format!("{}{kind}", view.route));
    }
    add(
        "staging",
        format!("{}  {}", view.source, named(view.digest)),
    );
    add(
        "production",
        format!("{}  {}", view.destination, named(view.production)),
    );
    if let Some(known) = &view.known {
        let text = match (known.digest, known.agreed) {
            (Some(digest), false) => format!("wrote {digest} {}", relative(known.at, now)),
            (Some(digest), true) => {
                format!("both sides named {digest} {}", relative(known.at, now))
            }
            (None, _) => "knows nothing of the production tag".into(),
        };
        add("ledger", text);
        if let Some(reported) = known.reported {
            add(
                "",
                format!("{reported} was reported there, and no decision was made"),
            );
        }
    }
    for reason in &view.reasons {
        add("because", reason.clone());
    }
    if let Some(error) = &view.error {
        add("error", format!("{}: {}", error.class.name(), error.text));
    }
    for judged in &view.gates {
        add("gate", gate(judged));
    }
    for decision in &view.decisions {
        add("decision", decided(decision, now));
    }
    if let Some(row) = &view.last
        && let Some(settled) = row.settled()
    {
        let at = relative(Some(row.at), now);
        let cause = settled.cause;
        let text = format!("{} {at} by {} ({cause})", settled.result, settled.actor);
        add("last", text);
        let error = settled.error.iter().map(|error| error.text.clone());
        error.for_each(|text| add("", text));
    }
    if let Some(next) = view.next_look {
        add("next look", relative(Some(next), now));
    }
    lines.join("\n")
}

fn headline(view: &TagView, now: Timestamp) -> String {
    let state = match view.result {
        Some(result) => result.to_string(),
        None => "no look takes it".into(),
    };
    let kept = kept(view, now);
    let is_there = view.production.is_some() && view.production == view.digest;
    let is = if is_there { "is" } else { "is not" };
    clean(&format!(
        "{} {is} in production as staging names it: {state}{kept}",
        view.destination
    ))
}

/// At which gates a tag is kept, and since when.
fn kept(view: &TagView, now: Timestamp) -> String {
    let verdict = match view.result {
        Some(Outcome::Waiting) => Some(Verdict::Wait),
        Some(Outcome::Refused) => Some(Verdict::Refuse),
        Some(Outcome::Held) => None,
        _ => return String::new(),
    };
    let unmet = view.gates.iter();
    let unmet = unmet.filter(|judged| Some(judged.verdict) == verdict);
    let unmet: Vec<&str> = unmet.map(|judged| judged.gate.name()).collect();
    let at = match unmet.as_slice() {
        [] => String::new(),
        [gate] => format!(" at the gate {gate}"),
        gates => format!(" at the gates {}", gates.join(", ")),
    };
    let since = view.result_since.map(|since| {
        let shown = since.round(Unit::Second).unwrap_or(since);
        format!(" since {shown} ({})", relative(Some(since), now))
    });
    format!("{at}{}", since.unwrap_or_default())
}

fn named(digest: Option<Digest>) -> String {
    digest.map_or_else(|| "not there".into(), |digest| digest.to_string())
}

fn gate(judged: &Judgement) -> String {
    format!(
        "{}: {}: {}",
        judged.gate,
        judged.verdict.name(),
        judged.reason
    )
}

fn decided(numbered: &Numbered, now: Timestamp) -> String {
    let decision = &numbered.decision;
    let until = decision.until;
    let until = until.map_or_else(String::new, |until| {
        format!(", ends {}", relative(Some(until), now))
    });
    let reason = decision.actor.remarks.reason.as_ref();
    let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
    let target = decision.shown_target();
    let by = &decision.actor;
    format!(
        "{}: {} {target} by {by}{until}{reason}",
        numbered.id, numbered.kind
    )
}
