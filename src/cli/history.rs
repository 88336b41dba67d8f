//! `history`: the ledger, from the daemon while one runs, else from its file.

use clap::Args;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::lines::Lines;
use super::output::{clean, plural, screen_width, short, table};
use super::progress::say;
use super::socket::Socket;
use super::{Arguments, Failure};
use crate::clock;
use crate::config::StatePath;
use crate::decision::{Decision, Kind, RefusedDecision};
use crate::job::{Actor, Outcome, Settled};
use crate::ledger::{Content, Ledger, Query, Reload, Row, Verified};
use crate::oci::{Digest, Reference};

/// Show what was promoted, and what was not and why
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry history                      the newest rows, the last one newest
  blobferry history prod-demo-app:v7     what happened to one tag
  blobferry history --json --limit 1000  a JSON object on each line, every fact
  blobferry history --since 24h --csv    the last day, for a spreadsheet
  blobferry history --verify             is every row as it was recorded

A row stands for each change of a tag's result, not for each look, and for each
reading of the config. --verify checks the hashes that chain all rows, from the
file; it ends with 1 and names the first row that is not as it was recorded.")]
pub(super) struct History {
    /// Only this source or destination repository, or one tag of it; its host or its registry's name
    /// may stand in front; a layout is named as layout:PATH
    #[arg(value_name = "REPO[:TAG]")]
    repository: Option<String>,
    /// Print a JSON object on each line
    #[arg(long)]
    json: bool,
    /// Print comma-separated values with a line of names (RFC 4180)
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Only what was recorded since then: RFC 3339 (2026-11-21T19:45:00Z), or a duration back from
    /// now (24h; a week is 168h)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
    /// At most so many rows, the newest [default: 50; with --since 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: Option<u32>,
    /// Check that no row was changed or removed since it was recorded
    #[arg(long, conflicts_with_all = ["repository", "json", "csv", "since", "limit"])]
    verify: bool,
}

/// Rows of one answer.
const MOST_ROWS: u32 = 1000;

/// A time, or a duration back from now.
fn since(text: &str) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let duration: Option<SignedDuration> = text.parse().ok();
    duration
        .filter(|duration| !duration.is_negative())
        .and_then(|duration| clock::now().checked_sub(duration).ok())
        .ok_or_else(|| "neither a time (2026-12-07T06:00:00+01:00) nor a duration (24h)".to_owned())
}

impl History {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let state = arguments.state_path()?;
        if self.verify {
            return verify(&state, lines).await;
        }
        let mut rows = Vec::new();
        // The config is read only where a name of it may stand in front.
        let may_be_behind_one = self
            .repository
            .as_ref()
            .is_some_and(|text| text.contains('/'));
        let registries = match may_be_behind_one {
            true => arguments.registry_names(),
            false => Vec::new(),
        };
        for place in self.places(&registries) {
            rows = self.rows(&place, &state).await?;
            if !rows.is_empty() {
                break;
            }
        }
        rows.reverse();
        if self.json {
            rows.iter().for_each(|row| lines.json_line(row));
        } else if self.csv {
            lines.write(&comma_separated(&rows)?);
        } else if rows.is_empty() {
            lines.line(match &self.repository {
                Some(named) => format!("no history of {}", clean(named)),
                None => "no history yet".into(),
            });
        } else {
            lines.line(page(&rows, screen_width(), &TimeZone::system()));
        }
        Ok(if rows.is_empty() && self.repository.is_some() {
            5
        } else {
            0
        })
    }

    /// Newest first.
    async fn rows(&self, place: &HistoryFilter, state: &StatePath) -> Result<Vec<Row>, Failure> {
        match Socket::in_state(&state.folder)
            .read(&self.path(place))
            .await?
        {
            Some(body) => told(body),
            None => self.read(place, state).await,
        }
    }

    async fn read(&self, place: &HistoryFilter, state: &StatePath) -> Result<Vec<Row>, Failure> {
        let Some(ledger) = open(state)? else {
            return Ok(Vec::new());
        };
        let rows = ledger
            .page(self.query(place))
            .await
            .map_err(|error| Failure::new(1, error));
        ledger.close().await;
        rows
    }

    fn limit(&self) -> u32 {
        match (self.limit, self.since) {
            (Some(limit), _) => limit,
            (None, None) => 50,
            (None, Some(_)) => MOST_ROWS,
        }
    }

    fn query(&self, place: &HistoryFilter) -> Query {
        Query {
            after: 0,
            limit: self.limit(),
            repository: place.repository.clone(),
            tag: place.tag.clone(),
            since: self.since,
            newest_first: true,
            only_decisions: false,
        }
    }

    fn path(&self, place: &HistoryFilter) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query
            .append_pair("newest", "true")
            .append_pair("limit", &self.limit().to_string());
        let since = self.since.map(|since| since.to_string());
        let filters = [
            ("repository", &place.repository),
            ("tag", &place.tag),
            ("since", &since),
        ];
        for (name, value) in filters {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        format!("/v1/promotions?{}", query.finish())
    }

    /// What the repository may name, in the order in which it is looked for: all of it, or what
    /// follows the name of a registry.
    fn places(&self, registries: &[String]) -> Vec<HistoryFilter> {
        let Some(text) = &self.repository else {
            return vec![HistoryFilter::default()];
        };
        let (first, rest) = text.split_once('/').unwrap_or_default();
        let is_registry = registries.iter().any(|name| name == first);
        let texts = [Some(&**text), is_registry.then_some(rest)];
        texts.into_iter().flatten().map(HistoryFilter::of).collect()
    }
}

/// Which rows are asked for.
#[derive(Clone, Debug, Default, PartialEq)]
struct HistoryFilter {
    repository: Option<String>,
    tag: Option<String>,
}

impl HistoryFilter {
    fn of(text: &str) -> HistoryFilter {
        let (repository, tag) = repository_and_tag(text);
        HistoryFilter {
            repository: Some(repository),
            tag,
        }
    }
}

/// The repository without its host, and the tag. A colon before a slash is that of a port.
pub(super) fn repository_and_tag(text: &str) -> (String, Option<String>) {
    if let Ok(reference) = text.parse::<Reference>() {
        let tag = reference.tag.map(|tag| tag.to_string());
        return (reference.repository.to_string(), tag);
    }
    match text.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => {
            (repository.to_owned(), Some(tag.to_owned()))
        }
        _ => (text.to_owned(), None),
    }
}

/// The ledger of the state folder, to read it. `None`: there is none.
pub(super) fn open(state: &StatePath) -> Result<Option<Ledger>, Failure> {
    let ledger = Ledger::open_to_read(&state.folder).map_err(|error| Failure::new(2, error))?;
    if let (None, Some(doubt)) = (&ledger, &state.doubt) {
        say(&format!(
            "there is no ledger in {} (name another folder with --state DIR); {doubt}",
            state.folder.display()
        ));
    }
    Ok(ledger)
}

/// Checks the chain of rows in the file, whether a daemon runs or not.
async fn verify(state: &StatePath, lines: &mut Lines) -> Result<u8, Failure> {
    let Some(ledger) = open(state)? else {
        let folder = state.folder.display();
        return Err(Failure::said(
            5,
            format_args!("there is no ledger in {folder}"),
        ));
    };
    let verified = ledger.verify().await;
    ledger.close().await;
    match verified.map_err(|error| Failure::new(1, error))? {
        Verified::Whole { rows, ledger, last } => {
            let rows = plural(rows, "row");
            lines.line(format!(
                "{rows}, all as recorded; ledger {ledger}, last row {last}"
            ));
            Ok(0)
        }
        Verified::Broken { row, reason } => Err(Failure::said(
            1,
            format_args!("row {row} is not as it was recorded: {reason}"),
        )),
    }
}

fn told(mut body: Value) -> Result<Vec<Row>, Failure> {
    serde_json::from_value(body["promotions"].take()).map_err(|error| {
        Failure::said(1, format_args!("the daemon is of another version: {error}"))
    })
}

fn page(rows: &[Row], width: Option<usize>, zone: &TimeZone) -> String {
    let cells = rows.iter().map(|row| {
        let at = row.at.to_zoned(zone.clone());
        let at = at.strftime("%Y-%m-%d %H:%M:%S %Z").to_string();
        let [result, destination, digests, cause, why] = cells(row);
        [at, result, destination, digests, cause, why]
    });
    table(
        width,
        ["WHEN", "RESULT", "DESTINATION", "DIGEST", "CAUSE", "WHY"],
        cells,
    )
}

/// The names of the fields, and a record for each row, as RFC 4180 describes them.
fn comma_separated(rows: &[Row]) -> Result<Vec<u8>, Failure> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer
        .write_record(CSV_FIELDS)
        .map_err(|error| Failure::new(1, error))?;
    for row in rows {
        writer
            .write_record(record(row))
            .map_err(|error| Failure::new(1, error))?;
    }
    writer
        .into_inner()
        .map_err(|error| Failure::said(1, error.error()))
}

const CSV_FIELDS: [&str; 12] = [
    "id",
    "at",
    "result",
    "route",
    "source",
    "destination",
    "digest",
    "previous_digest",
    "cause",
    "actor",
    "run_id",
    "why",
];

fn digest_cell(digest: Option<Digest>) -> String {
    digest.map(|digest| digest.to_string()).unwrap_or_default()
}

fn record(row: &Row) -> [String; 12] {
    let job = row.settled();
    let [result, destination, _, _, why] = cells(row);
    let named = match &row.content {
        Content::Decision(_, decision) => decision.digest,
        _ => job.and_then(|job| job.digest),
    };
    let (cause, actor) = cause_and_actor(row);
    let texts = [
        row.id.to_string(),
        row.at.to_string(),
        result,
        job.map(|job| job.route.to_string()).unwrap_or_default(),
        job.map(|job| job.source.clone()).unwrap_or_default(),
        destination,
        digest_cell(named),
        digest_cell(job.and_then(|job| job.previous_digest)),
        cause,
        actor.to_string(),
        row.run_id.clone(),
        why,
    ];
    texts.map(|text| clean(&text))
}

/// Result, destination, digests, cause and reason of a row.
fn cells(row: &Row) -> [String; 5] {
    let [result, destination, digests, why] = match &row.content {
        Content::Outcome(job) => of_job(job),
        Content::Reload(reload) => of_reload(reload, &row.config_hash),
        Content::Decision(kind, decision) => of_decision(*kind, decision),
        Content::RefusedDecision(refused) => of_refused(refused),
    };
    let (cause, actor) = cause_and_actor(row);
    [
        result,
        destination,
        digests,
        format!("{cause} by {actor}"),
        why,
    ]
}

fn cause_and_actor(row: &Row) -> (String, &Actor) {
    match &row.content {
        Content::Outcome(job) => (job.cause.to_string(), &job.actor),
        Content::Reload(reload) => ("reload".into(), &reload.actor),
        Content::Decision(_, decision) => (format!("decision {}", row.id), &decision.actor),
        Content::RefusedDecision(refused) => ("decision".into(), &refused.actor),
    }
}

/// The cells of what came of a job, without the cause.
fn of_job(job: &Settled) -> [String; 4] {
    let error = job.error.iter().map(|error| error.text.clone());
    let reasons = job.reasons.iter().cloned();
    let why = error.chain(reasons).chain(said(&job.actor, job.expired));
    [
        job.result.name().replace('_', " "),
        job.destination.clone(),
        digests(job),
        why.collect::<Vec<_>>().join("; "),
    ]
}

/// The same of a reading of the config.
fn of_reload(reload: &Reload, in_force: &str) -> [String; 4] {
    let result = if reload.accepted {
        "config read"
    } else {
        "config refused"
    };
    let in_force = format!("config {in_force} is in force");
    let why = reload.error.iter().cloned().chain([in_force]);
    let why = why.chain(said(&reload.actor, reload.expired));
    [
        result.into(),
        String::new(),
        String::new(),
        why.collect::<Vec<_>>().join("; "),
    ]
}

/// The same of a decision.
fn of_decision(kind: Kind, decision: &Decision) -> [String; 4] {
    let ends = decision.ends.iter().map(|id| format!("ends decision {id}"));
    let until = decision.until.map(|until| format!("until {until}"));
    let why = ends.chain(until).chain(said(&decision.actor, false));
    let digest = decision.digest.as_ref().map(short).unwrap_or_default();
    [
        kind.to_string(),
        decision.shown_target().to_owned(),
        digest,
        why.collect::<Vec<_>>().join("; "),
    ]
}

/// The same of a decision that was refused.
fn of_refused(refused: &RefusedDecision) -> [String; 4] {
    let why = [refused.text.clone()]
        .into_iter()
        .chain(said(&refused.actor, false));
    [
        format!("{} refused", refused.decision),
        refused.target.clone(),
        String::new(),
        why.collect::<Vec<_>>().join("; "),
    ]
}

/// The claimed actor and reason, marked as claimed; or a note that the text was dropped.
fn said(actor: &Actor, is_expired: bool) -> impl Iterator<Item = String> {
    let remarks = &actor.remarks;
    let claim = remarks.claimed_actor.as_ref();
    let reason = remarks.reason.as_ref();
    claim
        .map(|name| format!("says to be {name}"))
        .into_iter()
        .chain(reason.map(|reason| format!("says: {reason}")))
        .chain(is_expired.then(|| "text expired".to_owned()))
}

/// What production names now, and what it named or what staging names where that is another digest.
fn digests(job: &Settled) -> String {
    let has_moved = matches!(
        job.result,
        Outcome::Promoted | Outcome::UpToDate | Outcome::Planned
    );
    match (&job.digest, &job.previous_digest) {
        (Some(now), Some(before)) if now != before && has_moved => {
            format!("{} (was {})", short(now), short(before))
        }
        (Some(staging), Some(there)) if staging != there => {
            format!("{} (staging: {})", short(there), short(staging))
        }
        (Some(digest), None) if !has_moved => format!("staging: {}", short(digest)),
        (Some(digest), _) | (None, Some(digest)) => short(digest),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::tests::job;

    fn asked(text: &str) -> History {
        History {
            repository: Some(text.into()),
            json: false,
            csv: false,
            since: None,
            limit: Some(7),
            verify: false,
        }
    }

    #[test]
    fn the_tag_is_what_follows_the_last_colon_unless_that_is_a_port() {
        let place = |repository: &str, tag: Option<&str>| HistoryFilter {
            repository: Some(repository.into()),
            tag: tag.map(str::to_owned),
        };
        assert_eq!(HistoryFilter::of("app:v1"), place("app", Some("v1")));
        assert_eq!(HistoryFilter::of("team/app"), place("team/app", None));
        assert_eq!(HistoryFilter::of("localhost:5000/app"), place("app", None));
        assert_eq!(
            HistoryFilter::of("prod.example/team/app:v1"),
            place("team/app", Some("v1"))
        );
        assert_eq!(
            asked("a/b:v1").path(&HistoryFilter::of("a/b:v1")),
            "/v1/promotions?newest=true&limit=7&repository=a%2Fb&tag=v1"
        );
    }

    #[test]
    fn a_registry_may_stand_in_front_by_its_name() {
        let registries = ["staging".to_owned(), "production".to_owned()];
        let places = asked("production/team/app:v1").places(&registries);
        let [whole, rest] = ["production/team/app:v1", "team/app:v1"].map(HistoryFilter::of);
        assert_eq!(places, [whole, rest]);
        assert_eq!(
            asked("team/app").places(&registries),
            [HistoryFilter::of("team/app")]
        );
    }

    #[test]
    fn a_row_tells_when_what_and_why() {
        let mut settled = job(Outcome::Failed);
        settled.reasons = vec!["because".into()];
        let words = || "x".to_owned();
        let at = jiff::Timestamp::UNIX_EPOCH;
        let row = Row {
            id: 1,
            at,
            run_id: words(),
            host: words(),
            config_hash: words(),
            version: words(),
            hash: crate::oci::Digest::sha256(b"x"),
            content: Content::Outcome(Box::new(settled)),
        };
        let page = page(&[row], None, &TimeZone::UTC);
        let line = page.lines().nth(1).unwrap();
        assert!(
            line.starts_with("1970-01-01 00:00:00 UTC  failed  prod.example/prod-demo-app:v7  staging: sha256:121212121212"),
            "{line}"
        );
        assert!(line.ends_with("cli by user:alice  because"), "{line}");
    }

    #[test]
    fn a_row_says_what_production_names_and_not_what_it_never_named() {
        let digest = |fill: u8| Some(crate::oci::Digest::Sha256([fill; 32]));
        let row = |result, digest, previous_digest| {
            digests(&Settled {
                digest,
                previous_digest,
                ..job(result)
            })
        };
        assert_eq!(
            row(Outcome::Promoted, digest(0x12), digest(0x34)),
            "sha256:121212121212 (was sha256:343434343434)"
        );
        assert_eq!(
            row(Outcome::Conflict, digest(0x12), digest(0x34)),
            "sha256:343434343434 (staging: sha256:121212121212)"
        );
        assert_eq!(
            row(Outcome::Drift, digest(0x12), digest(0x34)),
            "sha256:343434343434 (staging: sha256:121212121212)"
        );
        assert_eq!(
            row(Outcome::UpToDate, digest(0x12), digest(0x12)),
            "sha256:121212121212"
        );
        assert_eq!(
            row(Outcome::Gone, None, digest(0x34)),
            "sha256:343434343434"
        );
    }

    #[test]
    fn reasons_are_never_cut() {
        let mut settled = job(Outcome::Conflict);
        settled.reasons = vec!["x".repeat(5000)];
        let words = || "x".to_owned();
        let at = jiff::Timestamp::UNIX_EPOCH;
        let row = Row {
            id: 1,
            at,
            run_id: words(),
            host: words(),
            config_hash: words(),
            version: words(),
            hash: crate::oci::Digest::sha256(b"x"),
            content: Content::Outcome(Box::new(settled)),
        };
        assert!(page(&[row], None, &TimeZone::UTC).contains(&"x".repeat(5000)));
    }
}
