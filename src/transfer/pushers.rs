//! Pushers: the names that events gave for pushes of a tag, and the digests that they are noted
//! for, whatever becomes of these.
//!
//! A registry may tell of a push before all its replicas show it, and what was pushed shows before
//! its event comes at times. So a name counts for each digest that the tag names in the minute
//! after the event was looked at. What a later event tells of is not its own any more, once the tag
//! has moved.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::survey::TagFacts;
use super::{Engine, Promotion};
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::job::{Gates, Remark, TagId};
use crate::oci::{Digest, Tag};

/// How long what staging shows may lag behind an event.
const LAG: Duration = Duration::from_secs(60);
/// Most tags of which the last digest is kept.
const MOST: usize = 16_384;

/// The names that events told. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct ToldPushers(Arc<Mutex<BTreeMap<TagId, Told>>>);

#[derive(Default)]
struct Told {
    names: BTreeSet<Remark>,
    /// When the names count no more, once staging was read after their event.
    until: Option<Instant>,
    /// What staging was last found to name.
    digest: Option<Digest>,
    /// Whether the tag has moved since the event.
    has_moved: bool,
}

impl Told {
    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }
}

impl ToldPushers {
    /// An event named pushers of a tag.
    fn tell(&self, place: TagId, names: BTreeSet<Remark>) {
        let mut told = self.lock();
        make_room(&mut told, &place);
        let told = told.entry(place).or_default();
        if told.has_moved || told.is_over() {
            told.names.clear();
        }
        told.names.extend(names);
        told.until = None;
        told.has_moved = false;
    }

    /// The names that count for what staging names now.
    fn names(&self, place: &TagId) -> BTreeSet<Remark> {
        let told = self.lock();
        let told = told.get(place).filter(|told| !told.is_over());
        told.map(|told| told.names.clone()).unwrap_or_default()
    }

    /// Staging was found to name a digest.
    fn found(&self, place: TagId, digest: Digest) {
        let mut told = self.lock();
        make_room(&mut told, &place);
        let told = told.entry(place).or_default();
        told.until.get_or_insert_with(|| Instant::now() + LAG);
        let before = told.digest.replace(digest);
        told.has_moved |= before.is_some_and(|before| before != digest);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TagId, Told>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets the last digests of tags without names, where a further tag has no room.
fn make_room(told: &mut BTreeMap<TagId, Told>, place: &TagId) {
    if told.len() >= MOST && !told.contains_key(place) {
        told.retain(|_, told| !told.names.is_empty() && !told.is_over());
    }
    if told.len() >= MOST && !told.contains_key(place) {
        told.pop_first();
    }
}

/// Whether pushers matter.
fn has_approval(gates: &Gates) -> bool {
    gates.all().any(|gates| gates.approval.is_some())
}

impl Engine {
    /// An event named pushers of a source tag.
    pub fn told_pushers<R: Source>(
        &self,
        gates: &Gates,
        source: &R,
        tag: &Tag,
        names: &BTreeSet<Remark>,
    ) {
        if has_approval(gates) {
            self.pushers.tell(place(source, tag), names.clone());
        }
    }

    /// Notes the pushers of the digest that a source tag was found to name, where the gates ask for
    /// approvals.
    ///
    /// # Errors
    /// Where the ledger cannot be written.
    pub async fn note_pushers<R: Source>(
        &self,
        gates: &Gates,
        source: &R,
        tag: &Tag,
        digest: Digest,
    ) -> Result<(), Fault> {
        if !has_approval(gates) {
            return Ok(());
        }
        let place = place(source, tag);
        let names = self.pushers.names(&place);
        if !names.is_empty() {
            let names = names.iter().map(ToString::to_string).collect();
            let (origin, repository) = (&place.origin, &place.repository);
            let noted = self.ledger.note_pushers(origin, repository, &digest, names);
            noted.await?;
        }
        self.pushers.found(place, digest);
        Ok(())
    }
}

fn place<R: Source>(source: &R, tag: &Tag) -> TagId {
    TagId {
        origin: source.origin().clone(),
        repository: source.repository().clone(),
        tag: tag.clone(),
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Notes the pushers of what staging was found to name.
    pub(super) async fn note_own_pushers(&self, facts: &TagFacts) -> Result<(), Fault> {
        let job = self.job;
        let Some(digest) = facts
            .source
            .filter(|_| !job.dry_run && job.rollback.is_none())
        else {
            return Ok(());
        };
        let gates = &job.gates;
        let noted = self
            .engine
            .note_pushers(gates, &self.source, &job.key.tag, digest);
        noted.await
    }

    /// The names of the pushers of a digest.
    pub(super) async fn pushers(
        &self,
        gates: &Gates,
        digest: Digest,
    ) -> Result<Vec<String>, Fault> {
        if !has_approval(gates) {
            return Ok(Vec::new());
        }
        let (origin, repository) = (self.source.origin(), self.source.repository());
        let ledger = &self.engine.ledger;
        ledger.pushers(origin, repository, &digest).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Origin;

    fn tag() -> TagId {
        TagId {
            origin: Origin::new("https://s.example"),
            repository: "app".parse().unwrap(),
            tag: "latest".parse().unwrap(),
        }
    }

    /// A source tag, and what events tell of it.
    #[derive(Default)]
    struct Story(ToldPushers);

    impl Story {
        fn pushed_by(&self, name: &str) {
            let names = BTreeSet::from([name.parse::<Remark>().unwrap()]);
            self.0.tell(tag(), names);
        }

        /// The names that count for a digest that a look finds.
        fn found(&self, digest: &str) -> Vec<String> {
            let names = self.0.names(&tag());
            self.0.found(tag(), Digest::sha256(digest.as_bytes()));
            names.iter().map(ToString::to_string).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_counts_for_what_shows_after_its_event() {
        let story = Story::default();
        assert!(story.found("old").is_empty());
        story.pushed_by("alice");
        assert_eq!(
            story.found("old"),
            ["alice"],
            "it may have been pushed again"
        );
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(story.found("new"), ["alice"]);
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(story.found("newer").is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_later_event_tells_of_is_not_by_the_pusher_before() {
        let story = Story::default();
        assert!(story.found("old").is_empty());
        story.pushed_by("alice");
        assert_eq!(story.found("new"), ["alice"]);
        story.pushed_by("bob");
        assert_eq!(story.found("newer"), ["bob"]);
        // Two pushes before a look: both may have pushed what it finds.
        story.pushed_by("carol");
        story.pushed_by("dave");
        assert_eq!(story.found("newest"), ["carol", "dave"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_waits_for_staging_keeps_its_name() {
        let story = Story::default();
        story.pushed_by("alice");
        tokio::time::advance(LAG * 10).await;
        assert_eq!(story.found("new"), ["alice"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_tags_that_are_kept_are_bounded() {
        let told = ToldPushers::default();
        for number in 0..MOST + 10 {
            let place = TagId {
                tag: format!("v{number}").parse().unwrap(),
                ..tag()
            };
            let names = BTreeSet::from(["alice".parse::<Remark>().unwrap()]);
            told.tell(place, names);
        }
        assert_eq!(told.lock().len(), MOST);
    }
}
