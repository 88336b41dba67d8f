//! `GET /v1/tags` without a tag: the tags of the routes as they were last seen, a page at a time.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::answer::Refusal;
use crate::fault::shown;
use crate::job::{Judgement, Outcome, Trouble};
use crate::ledger::{CurrentTag, TagsQuery};
use crate::oci::Digest;

/// Tags in one page at most.
const MOST: u32 = 1000;
/// Bytes of a searched text at most.
const MOST_TEXT: usize = 300;

/// Which tags.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ListQuery {
    after: u64,
    limit: u32,
    route: Option<String>,
    result: Option<String>,
    text: Option<String>,
}

impl Default for ListQuery {
    fn default() -> ListQuery {
        ListQuery {
            after: 0,
            limit: 100,
            route: None,
            result: None,
            text: None,
        }
    }
}

impl ListQuery {
    /// The same for the ledger; `routes` are those of the config in force.
    pub(super) fn within(self, routes: Vec<String>) -> Result<TagsQuery, Refusal> {
        if !(1..=MOST).contains(&self.limit) {
            return Err(Refusal::bad_request(format!("limit is from 1 to {MOST}")));
        }
        if self
            .text
            .as_ref()
            .is_some_and(|text| text.len() > MOST_TEXT)
        {
            let text = format!("text has at most {MOST_TEXT} bytes");
            return Err(Refusal::bad_request(text));
        }
        let routes = match self.route {
            Some(route) => routes.into_iter().filter(|name| *name == route).collect(),
            None => routes,
        };
        Ok(TagsQuery {
            after: self.after,
            limit: self.limit,
            routes,
            results: results(self.result.as_deref().unwrap_or_default())?,
            text: self.text,
        })
    }
}

/// The results of a list with commas; none for an empty text.
fn results(words: &str) -> Result<Vec<Outcome>, Refusal> {
    let words = words.split(',').filter(|word| !word.is_empty());
    let results: BTreeSet<Outcome> = words.map(outcome).collect::<Result<_, Refusal>>()?;
    Ok(results.into_iter().collect())
}

fn outcome(word: &str) -> Result<Outcome, Refusal> {
    let found = Outcome::ALL.into_iter().find(|known| known.name() == word);
    found.ok_or_else(|| {
        let names = Outcome::ALL.map(Outcome::name).join(", ");
        let text = format!("there is no result {}; there are {names}", shown(word, 50));
        Refusal::bad_request(text)
    })
}

/// A tag of the list.
#[derive(Serialize)]
pub(super) struct ListedTag {
    /// The number of its newest row.
    id: u64,
    /// When that was recorded.
    at: Timestamp,
    route: String,
    source: String,
    destination: String,
    /// What staging named.
    digest: Option<Digest>,
    /// What production named.
    production: Option<Digest>,
    /// Since when production names it, as far as that is known.
    since: Option<Timestamp>,
    result: Outcome,
    reasons: Vec<String>,
    error: Option<Trouble>,
    gates: Vec<Judgement>,
}

impl From<CurrentTag> for ListedTag {
    fn from(tag: CurrentTag) -> ListedTag {
        let settled = tag.settled;
        let production = settled.production();
        let is_known = production.is_some() && production == tag.written;
        ListedTag {
            id: tag.id,
            at: tag.at,
            route: settled.route,
            source: settled.source,
            destination: settled.destination,
            digest: settled.digest,
            production,
            since: tag.written_at.filter(|_| is_known),
            result: settled.result,
            reasons: settled.reasons,
            error: settled.error,
            gates: settled.gates,
        }
    }
}
