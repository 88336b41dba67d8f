//! Companion tags that stay as they are: reported like any other tag, beside the image that they
//! belong to.
//!
//! A job settles its image; what it finds of a companion (`sha256-<hex>.sig` and the like) is
//! settled under a name of its own. A look that does not ask about an image again hands out what
//! was found last, so that a report does not depend on how a look came to happen.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::settle::Names;
use super::{Completion, Engine, Promotion, Settle};
use crate::endpoint::{Destination, Origin, Source};
use crate::job::{Job, Key, Outcome, Settled, TagId};
use crate::oci::{Digest, RepositoryName, Tag};

/// Most companions that are remembered as kept.
const MOST: usize = 10_000;

/// What a job found of a companion tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompanionOutcome {
    /// The tag, the same on both sides.
    pub tag: Tag,
    /// What came of it: up to date, or why it stays.
    pub result: Outcome,
    /// What staging names.
    pub digest: Option<Digest>,
    /// What production names.
    pub there: Option<Digest>,
    /// Why, for people.
    pub reason: Option<String>,
}

/// The addresses of both sides of a job, and the destination registry's label.
#[derive(Clone, Copy, Debug)]
pub struct Addresses<'a> {
    /// `host/repository` of the source.
    pub source: &'a str,
    /// `host/repository` of the destination.
    pub destination: &'a str,
    /// The destination's name in the config.
    pub registry: &'a str,
}

/// Companions that stay as they are, by route and destination. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct KeptCompanions(Arc<Mutex<ByDestination>>);

/// By route, and by the destination as reports show it.
type ByDestination = BTreeMap<(Arc<str>, String), KeptCompanion>;

#[derive(Clone, Debug)]
struct KeptCompanion {
    key: Key,
    settled: Settled,
}

impl KeptCompanions {
    fn note(&self, key: &Key, settled: &Settled) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (key.route.clone(), settled.destination.clone());
        if settled.result == Outcome::UpToDate {
            kept.remove(&name);
        } else if kept.len() < MOST || kept.contains_key(&name) {
            let key = key.clone();
            let settled = settled.clone();
            kept.insert(name, KeptCompanion { key, settled });
        }
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Notes what came of a companion tag, once.
    pub(super) fn note_companion(&self, outcome: CompanionOutcome) {
        let mut noted = self
            .companions
            .lock()
            .expect("nothing panics while it notes");
        if noted.iter().all(|other| other.tag != outcome.tag) {
            noted.push(outcome);
        }
    }
}

impl Engine {
    /// Settles the companions that a job has looked at. Returns those that stay as they are; an end
    /// of trouble is recorded.
    pub async fn settle_companions(
        &self,
        settle: &Settle,
        job: &Job,
        addresses: Addresses<'_>,
        companions: Vec<CompanionOutcome>,
    ) -> Vec<Settled> {
        let mut kept = Vec::new();
        for companion in companions {
            let tag = companion.tag.clone();
            let destination = TagId {
                tag: tag.clone(),
                ..job.key.destination.clone()
            };
            let key = Key {
                tag: tag.clone(),
                destination,
                ..job.key.clone()
            };
            let is_well = companion.result == Outcome::UpToDate;
            if is_well && !self.is_in_trouble(&key) {
                continue;
            }
            let names = Names {
                source: format!("{}:{tag}", addresses.source),
                destination: format!("{}:{tag}", addresses.destination),
                registry: addresses.registry.into(),
            };
            let job = Job { key, ..job.clone() };
            settle.progress.jobs_planned.fetch_add(1, Ordering::Relaxed);
            let completion = Completion::of_companion(companion);
            let settled = self.settle(settle, &job, &names, completion).await;
            self.kept_companions.note(&job.key, &settled);
            if !is_well {
                kept.push(settled);
            }
        }
        kept
    }

    /// Keeps only those companions that are still of use.
    pub fn retain_companions(&self, is_of_use: impl Fn(&Key) -> bool) {
        self.kept_companions
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, kept| is_of_use(&kept.key));
    }

    /// The companions of a source repository that were found to stay as they are at a destination.
    pub fn kept_companions(
        &self,
        route: &Arc<str>,
        source: &RepositoryName,
        destination: (&Origin, &RepositoryName),
    ) -> Vec<(Tag, Settled)> {
        let kept = self
            .kept_companions
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        kept.range((route.clone(), String::new())..)
            .take_while(|((of, _), _)| of == route)
            .map(|(_, kept)| kept)
            .filter(|kept| kept.key.source == *source)
            .filter(|kept| {
                let there = &kept.key.destination;
                there.origin == *destination.0 && there.repository == *destination.1
            })
            .map(|kept| (kept.key.tag.clone(), kept.settled.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tag: &str) -> Key {
        let tag: Tag = tag.parse().unwrap();
        let repository: RepositoryName = "app".parse().unwrap();
        let destination = TagId {
            origin: Origin::new("http://p"),
            repository: repository.clone(),
            tag: tag.clone(),
        };
        Key {
            route: "app".into(),
            source: repository,
            tag,
            destination,
        }
    }

    fn settled(tag: &str, result: Outcome) -> Settled {
        Settled {
            source: format!("s/app:{tag}"),
            destination: format!("p/app:{tag}"),
            ..Settled::sample(result)
        }
    }

    #[test]
    fn a_full_table_still_updates_what_it_holds() {
        let kept = KeptCompanions::default();
        for number in 0..=MOST {
            let tag = format!("v{number}");
            kept.note(&key(&tag), &settled(&tag, Outcome::Drift));
        }
        let result = |tag: &str| {
            let name = ("app".into(), format!("p/app:{tag}"));
            let kept = kept.0.lock().unwrap();
            kept.get(&name).map(|companion| companion.settled.result)
        };
        assert_eq!(result("v0"), Some(Outcome::Drift));
        assert_eq!(result(&format!("v{MOST}")), None);
        kept.note(&key("v0"), &settled("v0", Outcome::Conflict));
        assert_eq!(result("v0"), Some(Outcome::Conflict));
        kept.note(&key("v0"), &settled("v0", Outcome::UpToDate));
        assert_eq!(result("v0"), None);
    }
}
