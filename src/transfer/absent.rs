//! Tags that production lacks, asked about again before they are named: where many jobs of one repository ask at the same
//! time, one list answers them all.
//!
//! - A list is as good as a question for each tag: both are the registry's own word of now. It is used where registries make
//!   their lists from what they hold at that moment, and where one page holds all tags.
//! - The first few askers ask for their tag alone, so that a single promotion costs what it always did.
//! - A list that fails answers nobody: everybody asks for himself. So does one that is missing: a repository without a list
//!   may hold tags that it does not show.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::Promotion;
use super::limits::Traffic;
use crate::endpoint::{Destination, Origin, Source};
use crate::oci::{RepositoryName, Tag};

/// Askers within that time who ask for themselves before a list is worth it.
const ALONE: usize = 4;
/// How long a repository whose tags fill more than a page is not listed again.
const LONG: Duration = Duration::from_secs(300);
/// Repositories whose askers are counted before those that nobody asks about any more are forgotten.
const KEPT: usize = 64;

/// What the lists say. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Absent(Arc<Mutex<HashMap<RepositoryKey, Arc<Slot>>>>);

type RepositoryKey = (Origin, RepositoryName);

/// One repository. The lock is held while it is listed, so that everybody else waits for that list.
#[derive(Default)]
struct Slot(tokio::sync::Mutex<RepositoryTags>);

#[derive(Default)]
struct RepositoryTags {
    /// When the askers' count began, and how many have asked since.
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
    fn slot(&self, repository: RepositoryKey) -> Arc<Slot> {
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
    /// Counts an asker; whether there are enough for a list.
    fn is_worth_a_list(&mut self, fresh: Duration) -> bool {
        let now = Instant::now();
        let asked = self.asked.get_or_insert((now, 0));
        if asked.0.elapsed() > fresh {
            *asked = (now, 0);
        }
        asked.1 += 1;
        asked.1 > ALONE
    }

    /// The list that still says something, if there is one.
    fn current_list(&self, fresh: Duration) -> Option<&TagList> {
        let lasts = |list: &&TagList| {
            list.at.elapsed()
                <= if matches!(list.tags, Listed::Useless) {
                    LONG
                } else {
                    fresh
                }
        };
        self.list.as_ref().filter(lasts)
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// When a list showed that the destination lacks the tag, not longer ago than half the time for which facts are fresh.
    /// `None`: no list says so.
    pub(super) async fn listed_absent(&self, tag: &Tag) -> Option<Instant> {
        let destination = &self.destination;
        if !destination.abilities().current_lists {
            return None;
        }
        // Half of the time is left for the turn to write.
        let fresh = self.engine.settings.fresh / 2;
        let slot = self.engine.absent.slot((
            destination.origin().clone(),
            destination.repository().clone(),
        ));
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

    /// The destination's tags, if one page holds them all.
    async fn only_page(&self) -> Listed {
        let (destination, errand) = (&self.destination, self.naming_errand(Traffic::Listing));
        let page = destination.tags(None);
        match self
            .engine
            .ask_once(
                destination.origin(),
                destination.registry(),
                errand,
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
