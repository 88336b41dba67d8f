//! `GET /v1/tags`: everything that bears on one tag, or without a tag a list.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::App;
use super::access::AuthContext;
use super::answer::Refusal;
use super::sync::acquire_wait_permit;
use super::tag_list::{ListQuery, ListedTag};
use crate::decision::Numbered;
use crate::job::{Judgement, Outcome, Trouble};
use crate::ledger::Row;
use crate::oci::{Digest, Tag};

/// Which tag.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagQuery {
    /// A repository of either side; the registry's name or host may stand in front.
    pub repository: String,
    /// The tag there.
    pub tag: Tag,
}

/// Everything that bears on one tag of a route at one destination.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TagView {
    /// The route.
    pub route: String,
    /// `host/repository:tag` of the source.
    pub source: String,
    /// `host/repository:tag` of the destination.
    pub destination: String,
    /// What staging names.
    pub digest: Option<Digest>,
    /// What production names.
    pub production: Option<Digest>,
    /// What the ledger knows of the production tag.
    pub known: Option<KnownTag>,
    /// Whether the route lets the tag move.
    pub moving: Option<bool>,
    /// What a look would come to now, or without a daemon what the last one came to; absent: none
    /// takes the tag.
    pub result: Option<Outcome>,
    /// Since when it comes to that for what staging names, as far as looks have recorded it.
    #[serde(default)]
    pub result_since: Option<Timestamp>,
    /// Why, the deciding reason first.
    pub reasons: Vec<String>,
    /// The failure, if it failed.
    pub error: Option<Trouble>,
    /// The verdicts of gates. Gates that only a look asks have the verdict of the last one.
    pub gates: Vec<Judgement>,
    /// The decisions in force that cover it.
    pub decisions: Vec<Numbered>,
    /// The newest row of the ledger about it.
    pub last: Option<Row>,
    /// When the route is looked at without being asked.
    pub next_look: Option<Timestamp>,
}

impl TagView {
    /// Notes since when looks come to its result. `rows`: those about it, the newest first.
    pub fn note_result_since(&mut self, rows: &[Row]) {
        let looks = rows.iter().filter_map(|row| {
            let settled = row.settled()?;
            let is_own = settled.route == self.route && settled.destination == self.destination;
            is_own.then_some((row.at, settled))
        });
        let as_now = looks.take_while(|(_, settled)| {
            Some(settled.result) == self.result && settled.digest == self.digest
        });
        let first = as_now.last();
        self.result_since = first.map(|(at, _)| at);
    }
}

/// What the ledger knows of a production tag.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KnownTag {
    /// What we wrote or both sides agreed on.
    pub digest: Option<Digest>,
    /// Whether it was agreed on.
    pub agreed: bool,
    /// Since when.
    pub at: Option<Timestamp>,
    /// What was reported as drift or existing, and not decided on.
    pub reported: Option<Digest>,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TagViews {
    /// One for each route and destination.
    pub tags: Vec<TagView>,
}

/// Answers what bears on a tag.
pub type TagsHandler =
    Arc<dyn Fn(TagQuery) -> BoxFuture<'static, Result<Vec<TagView>, Refusal>> + Send + Sync>;

/// `GET /v1/tags`: one tag where `repository` or `tag` is given, else a list.
pub(super) async fn tags(
    state: State<Arc<App>>,
    context: Extension<AuthContext>,
    uri: Uri,
) -> Result<Response, Refusal> {
    let query = uri.query().unwrap_or_default();
    let is_one = query
        .split('&')
        .any(|pair| pair.starts_with("repository=") || pair.starts_with("tag="));
    if is_one {
        one(state, context, &uri).await
    } else {
        list(state, &uri).await
    }
}

async fn list(State(app): State<Arc<App>>, uri: &Uri) -> Result<Response, Refusal> {
    let Query(query) = Query::<ListQuery>::try_from_uri(uri)
        .map_err(|error| Refusal::bad_request(error.body_text()))?;
    let routes = app.services.watch.board().route_names();
    let tags = app.services.ledger.tags(query.within(routes)?).await?;
    let tags: Vec<ListedTag> = tags.into_iter().map(ListedTag::from).collect();
    Ok(Json(json!({"tags": tags})).into_response())
}

async fn one(
    State(app): State<Arc<App>>,
    Extension(context): Extension<AuthContext>,
    uri: &Uri,
) -> Result<Response, Refusal> {
    let Query(query) = Query::<TagQuery>::try_from_uri(uri)
        .map_err(|error| Refusal::bad_request(error.body_text()))?;
    let _permit = acquire_wait_permit(&app, context.peer)?;
    let tags = (app.services.tags)(query).await?;
    Ok(Json(TagViews { tags }).into_response())
}
