//! Failed tags, and until when polls leave them alone.
//!
//! One refused tag must not delay the looks at its repository, nor be tried at every poll. A failed
//! tag rests, for each destination separately: longer after each failure, or until the registry's
//! `Retry-After`. A poll still compares a resting tag, and tries it earlier if a side changed. Only
//! the daemon's own polls respect the rest.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::fault::Class;
use crate::job::{Cause, Look, Outcome, Settled, Sight};
use crate::look::{LeftAlone, LookRequest};
use crate::oci::Tag;

/// Most resting tags of one repository. Beyond that the whole repository is looked at less often.
const MOST: usize = 256;
/// Tags with times this close are looked at together.
const TOGETHER: Duration = Duration::from_secs(1);

/// The resting tags of one repository, by destination address.
#[derive(Debug, Default)]
pub struct RestingTags(BTreeMap<String, Resting>);

/// A job that failed.
#[derive(Debug)]
struct Resting {
    tag: Tag,
    /// Its result.
    settled: Settled,
    /// Failures in a row.
    failures: u32,
    until: Instant,
}

/// Too many tags failed to keep each.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMany;

impl RestingTags {
    /// Whether none rests.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The failures that a look with this cause reports without a new attempt.
    pub fn left_alone(&self, cause: Cause, now: Instant) -> LeftAlone {
        if !matches!(cause, Cause::Poll | Cause::Verify) {
            return LeftAlone::new();
        }
        let resting = self.0.iter().filter(|(_, resting)| resting.until > now);
        resting
            .map(|(destination, resting)| (destination.clone(), resting.settled.clone()))
            .collect()
    }

    /// Records the result of a look.
    ///
    /// # Errors
    /// [`TooMany`], and then nothing rests.
    pub fn note(
        &mut self,
        request: &LookRequest,
        look: &Look,
        now: Instant,
    ) -> Result<(), TooMany> {
        let failed: BTreeMap<&str, &Settled> = look
            .jobs
            .iter()
            .filter(|job| job.result == Outcome::Failed)
            .map(|job| (job.destination.as_str(), job))
            .collect();
        // A tag that the look saw and does not report as failed is well or gone.
        let is_seen = |tag: &Tag| {
            look.sight == Sight::Full && (request.tags.is_empty() || request.tags.contains(tag))
        };
        self.0.retain(|destination, resting| {
            failed.contains_key(destination.as_str()) || !is_seen(&resting.tag)
        });
        for (destination, job) in failed {
            let Some(failure) = &job.failure else {
                continue;
            };
            let failures = self
                .0
                .get(destination)
                .map_or(0, |resting| resting.failures)
                + 1;
            let until = now + wait(failure.class, failures);
            // A repeated report is no new failure.
            let settled = Settled {
                failure: None,
                ..job.clone()
            };
            self.0.insert(
                destination.to_owned(),
                Resting {
                    tag: failure.tag.clone(),
                    settled,
                    failures,
                    until,
                },
            );
        }
        if self.0.len() > MOST {
            self.0.clear();
            return Err(TooMany);
        }
        Ok(())
    }

    /// The tags to try next, and when.
    pub fn next(&self) -> Option<(Vec<Tag>, Instant)> {
        let first = self.0.values().map(|resting| resting.until).min()?;
        let at = first + TOGETHER;
        let due = self.0.values().filter(|resting| resting.until <= at);
        let mut tags = Vec::new();
        let mut last = first;
        for resting in due {
            last = last.max(resting.until);
            if !tags.contains(&resting.tag) {
                tags.push(resting.tag.clone());
            }
        }
        Some((tags, last))
    }
}

/// How long a tag rests after this number of failures, at least one.
fn wait(class: Class, failures: u32) -> Duration {
    let (first, longest) = match class {
        // The registry names the time itself.
        Class::Retryable { after: Some(after) } => return after.max(Duration::from_secs(1)),
        Class::Retryable { after: None } | Class::NotFound | Class::Cancelled => (15, 4 * 60),
        // A retry reads the bytes again, which is expensive.
        Class::Corrupt => (60, 15 * 60),
        Class::Auth => (60, 15 * 60),
        // A permanent refusal: only a change helps, and polls notice changes.
        Class::Rejected => (5 * 60, 60 * 60),
    };
    Backoff::new(Duration::from_secs(first), Duration::from_secs(longest)).wait(failures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Actor, Failure, Trouble};
    use crate::look::PassOptions;

    fn ask(tags: &[&str]) -> LookRequest {
        let tags = tags.iter().map(|tag| tag.parse().unwrap()).collect();
        let actor = Actor::daemon();
        let options = PassOptions::default();
        LookRequest {
            tags,
            digest: None,
            cause: Cause::Poll,
            actor,
            options,
            run_id: String::new(),
            trusts_hints: true,
            pushed: BTreeMap::new(),
        }
    }

    fn failed(tag: &str, class: Class) -> Settled {
        let failure = Failure {
            tag: tag.parse().unwrap(),
            class,
        };
        Settled {
            destination: format!("p/app:{tag}"),
            result: Outcome::Failed,
            failure: Some(failure),
            ..settled()
        }
    }

    fn settled() -> Settled {
        Settled {
            route: "app".into(),
            source: "s/app:v1".into(),
            destination: "p/app:v1".into(),
            digest: None,
            previous_digest: None,
            cause: Cause::Poll,
            actor: Actor::daemon(),
            result: Outcome::Failed,
            reasons: Vec::new(),
            error: None,
            failure: None,
            unguarded: false,
            expired: false,
            gates: Vec::new(),
            blobs: Default::default(),
            referrers: Default::default(),
            bytes_sent: 0,
            bytes_spared: 0,
            requests: 0,
            duration_seconds: 0.0,
        }
    }

    fn look(jobs: &[Settled]) -> Look {
        Look {
            jobs: jobs.to_vec(),
            ..Look::default()
        }
    }

    const REFUSED: Class = Class::Auth;

    #[tokio::test(start_paused = true)]
    async fn a_tag_rests_longer_each_time_and_no_poll_shortens_it() {
        let (mut resting, mut now, mut waits) =
            (RestingTags::default(), Instant::now(), Vec::new());
        for _ in 0..6 {
            resting
                .note(&ask(&["v1"]), &look(&[failed("v1", REFUSED)]), now)
                .unwrap();
            let (tags, until) = resting.next().unwrap();
            assert_eq!(tags, ["v1".parse().unwrap()]);
            waits.push((until - now).as_secs());
            // A poll in between leaves the tag alone and repeats its report.
            let alone = resting.left_alone(Cause::Poll, now);
            assert_eq!(alone.keys().collect::<Vec<_>>(), ["p/app:v1"]);
            resting
                .note(&ask(&[]), &look(&[alone["p/app:v1"].clone()]), now)
                .unwrap();
            assert_eq!(resting.next().unwrap().1, until);
            now = until;
            assert!(
                resting.left_alone(Cause::Poll, now).is_empty(),
                "its time has come"
            );
        }
        assert_eq!(waits, [60, 120, 240, 480, 900, 900]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_names_its_time_is_asked_at_that_time() {
        let mut resting = RestingTags::default();
        let now = Instant::now();
        let after = |seconds| Class::Retryable {
            after: Some(Duration::from_secs(seconds)),
        };
        let jobs = [
            failed("v1", after(42)),
            failed("v2", after(42)),
            failed("v3", after(90)),
        ];
        resting.note(&ask(&[]), &look(&jobs), now).unwrap();
        let (tags, at) = resting.next().unwrap();
        assert_eq!(
            (tags.len(), (at - now).as_secs()),
            (2, 42),
            "those that are due together, and not the third"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn people_and_events_try_at_once() {
        let mut resting = RestingTags::default();
        let now = Instant::now();
        resting
            .note(&ask(&[]), &look(&[failed("v1", Class::Rejected)]), now)
            .unwrap();
        for cause in Cause::ALL {
            let polls = matches!(cause, Cause::Poll | Cause::Verify);
            assert_eq!(!resting.left_alone(cause, now).is_empty(), polls, "{cause}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_well_again_is_forgotten_and_what_was_not_seen_is_not() {
        let mut resting = RestingTags::default();
        let now = Instant::now();
        let both = look(&[failed("v1", REFUSED), failed("v2", REFUSED)]);
        resting.note(&ask(&[]), &both, now).unwrap();
        resting.note(&ask(&["v2"]), &look(&[]), now).unwrap();
        assert_eq!(resting.0.len(), 1, "v2 was looked at and is well");
        let blind = Look {
            trouble: vec![Trouble {
                class: "retryable".into(),
                text: "down".into(),
            }],
            sight: Sight::Blind,
            ..Look::default()
        };
        resting.note(&ask(&[]), &blind, now).unwrap();
        assert_eq!(resting.0.len(), 1, "nothing was seen");
        resting.note(&ask(&[]), &look(&[]), now).unwrap();
        assert!(resting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let mut resting = RestingTags::default();
        let now = Instant::now();
        let jobs: Vec<_> = (0..=MOST)
            .map(|number| failed(&format!("v{number}"), REFUSED))
            .collect();
        assert_eq!(resting.note(&ask(&[]), &look(&jobs[..MOST]), now), Ok(()));
        assert_eq!(resting.note(&ask(&[]), &look(&jobs), now), Err(TooMany));
        assert!(resting.is_empty());
    }
}
