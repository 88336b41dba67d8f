//! Second checks of tags that production lacks, just before they are named. Many jobs of one
//! repository share one list.
//!
//! - A list counts as an answer for each tag only where registries build it from their present
//!   state and where one page holds all tags.
//! - The first few jobs resolve their tag alone, so a single promotion costs no more.
//! - A tag that the ledger knows is looked for in the list as well: one wrong answer that it is not
//!   there would move a fixed tag.
//! - If the list fails, each job resolves its tag alone. Likewise if it is missing: a repository
//!   without a list may hold tags that it does not show.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::Promotion;
use super::limits::{RequestClass, RequestPriority};
use super::pages::Reading;
use crate::endpoint::{Destination, RepositoryId, Source};
use crate::fault::{Class, Fault};
use crate::oci::Tag;

/// Jobs within that time that resolve their tag alone before a list is worth its request.
const ALONE: usize = 4;
/// How long a repository with more tags than one page holds is not listed again.
const LONG: Duration = Duration::from_secs(300);
/// Repositories beyond which unused entries are removed.
const KEPT: usize = 64;

/// The newest lists. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Absent(Arc<Mutex<HashMap<RepositoryId, Arc<Slot>>>>);

/// One repository. The lock is held during a listing, so that the other jobs wait for its result.
#[derive(Default)]
struct Slot(tokio::sync::Mutex<RepositoryTags>);

#[derive(Default)]
struct RepositoryTags {
    /// When the count of jobs began, and the jobs since then.
    asked: Option<(Instant, usize)>,
    list: Option<TagList>,
}

struct TagList {
    at: Instant,
    tags: Listed,
}

enum Listed {
    /// All of them.
    All(HashSet<Tag>),
    /// There is no list yet.
    Missing,
    /// It failed, or does not fit one page.
    Useless,
}

impl Absent {
    fn slot(&self, repository: RepositoryId) -> Arc<Slot> {
        let mut slots = self
            .0
            .lock()
            .expect("nothing panics while it holds the slots");
        if slots.len() >= KEPT {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        slots.entry(repository).or_default().clone()
    }
}

impl RepositoryTags {
    /// Counts a job. Returns whether a list is worth its request.
    fn is_worth_a_list(&mut self, fresh: Duration) -> bool {
        let now = Instant::now();
        let asked = self.asked.get_or_insert((now, 0));
        if asked.0.elapsed() > fresh {
            *asked = (now, 0);
        }
        asked.1 += 1;
        asked.1 > ALONE
    }

    /// The list, if it is still valid.
    fn current_list(&self, fresh: Duration) -> Option<&TagList> {
        self.list.as_ref().filter(|list| {
            list.at.elapsed()
                <= if matches!(list.tags, Listed::Useless) {
                    LONG
                } else {
                    fresh
                }
        })
    }
}

/// The list shows the tag, and its manifest is answered with 404: it was deleted between the two
/// questions, or what it names cannot be served. Nothing is written over what is not known; the next
/// look asks both again.
pub fn contradiction(address: &str, tag: &Tag) -> Fault {
    Fault::retryable(format!(
        "{address} lists the tag {tag}, but answers that its manifest does not exist: what the tag names is not known, so \
         it is left alone. If this stays, the registry has lost the manifest or cannot serve it: repair or delete the tag \
         there"
    ))
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// When a list showed that the destination lacks the tag, if that is at most half of
    /// [`Settings::fresh`](super::Settings::fresh) ago. `None`: no list shows it.
    pub(super) async fn listed_absent(&self, tag: &Tag) -> Option<Instant> {
        let destination = &self.destination;
        if !destination.abilities().current_lists {
            return None;
        }
        // Half of the time is left for the wait for the PUT.
        let fresh = self.engine.settings.fresh / 2;
        let slot = self.engine.absent.slot(destination.id());
        let mut known = slot.0.lock().await;
        if known.current_list(fresh).is_none() {
            if !known.is_worth_a_list(fresh) {
                return None;
            }
            let at = Instant::now();
            known.list = Some(TagList {
                at,
                tags: self.only_page().await,
            });
        }
        let TagList { at, tags } = known.current_list(fresh)?;
        matches!(tags, Listed::All(tags) if !tags.contains(tag)).then_some(*at)
    }

    /// The destination answered that a tag which the ledger knows is not there.
    ///
    /// # Errors
    /// When its list shows the tag, or cannot be had now. A list that may not be read proves
    /// nothing.
    pub(super) async fn confirm_absent(&self, tag: &Tag) -> Result<(), Fault> {
        let priority = RequestPriority::from(RequestClass::Listing).of_job(&self.ticket);
        let engine = self.engine;
        let listed = engine.tags(&self.destination, Reading::of(priority), self.stop);
        match listed.await {
            Ok(Some(tags)) if tags.contains_key(tag) => {
                Err(contradiction(&self.destination.address(), tag))
            }
            Ok(_) => Ok(()),
            Err(fault) => match fault.class() {
                Class::Auth | Class::NotFound | Class::Rejected => Ok(()),
                Class::Retryable { .. } | Class::Corrupt | Class::Cancelled => Err(fault),
            },
        }
    }

    /// The destination's tags, if one page holds them all.
    async fn only_page(&self) -> Listed {
        let destination = &self.destination;
        let priority = self.naming_priority(RequestClass::Listing);
        let page = destination.tags(None);
        match self
            .engine
            .ask_once(
                destination.origin(),
                destination.registry(),
                priority,
                self.stop,
                page,
            )
            .await
        {
            Ok(Some(page)) if page.next.is_none() && page.invalid == 0 => {
                Listed::All(page.entries.into_iter().map(|tag| tag.name).collect())
            }
            Ok(None) => Listed::Missing,
            Ok(Some(_)) | Err(_) => Listed::Useless,
        }
    }
}
