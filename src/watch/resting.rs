//! Failed tags, tags that gates or decisions keep back, and until when polls leave them alone.
//!
//! One refused tag must not delay the looks at its repository, nor be tried at every poll. A failed
//! tag rests, for each destination separately: longer after each failure, or until the registry's
//! `Retry-After`. A poll still compares a resting tag, and tries it earlier if a side changed. Only
//! the daemon's own polls respect the rest.
//!
//! A tag that gates keep back rests until the first of them may judge otherwise: until its time,
//! or, where evidence is missing, for an hour not at all and then for the interval of `verify`. A
//! tag that a decision or its missing backup keeps back rests for that interval. Any change of the
//! decisions in force ends these rests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::clock;
use crate::decision::Revision;
use crate::fault::Class;
use crate::job::{Cause, Failure, Gated, Look, NextJudgement, Outcome, Settled, Sight};
use crate::look::{LeftAlone, LookRequest};
use crate::oci::Tag;

/// Most resting tags of one repository. Beyond that the whole repository is looked at less often.
const MOST: usize = 256;
/// As [`MOST`], of tags that gates keep back. Nothing is tried again for them before its time.
const MOST_GATED: usize = 10_000;
/// For so long missing evidence is looked for at each poll.
const EVIDENCE: Duration = Duration::from_secs(3600);
/// After so long a program or a service that judges is asked again.
const SOON: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(30));
/// Shortest rest of a tag that waits for a time.
const SHORTEST: Duration = Duration::from_secs(1);
/// Most tags of a look that names them; more are looked at with the whole repository.
const MOST_NAMED: usize = 100;
/// Tags with times this close are looked at together.
const TOGETHER: Duration = Duration::from_secs(1);

/// The resting tags of one repository, by destination address.
#[derive(Debug, Default)]
pub struct RestingTags(BTreeMap<String, Resting>);

/// A job that failed, or that gates keep from its tag.
#[derive(Debug)]
struct Resting {
    tag: Tag,
    /// Its result.
    settled: Settled,
    /// Failures in a row.
    failures: u32,
    /// Since when this digest is kept back.
    since: Instant,
    until: Instant,
    /// Whether the tag is looked at when its rest is over; else the next poll does.
    wakes: bool,
    /// Whether gates or decisions keep it back, and which decisions were in force then.
    kept_back_under: Option<Revision>,
}

/// What a look went by.
#[derive(Clone, Copy, Debug)]
pub struct LookedUnder {
    /// The decisions in force when it began.
    pub decisions: Revision,
    /// The interval of `verify`: the longest rest of a tag that is kept back.
    pub verify: Duration,
}

/// Too many tags failed to keep each.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMany;

impl RestingTags {
    /// Whether none rests.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The failures that a look with this cause, under these decisions, reports without a new
    /// attempt.
    pub fn left_alone(&self, cause: Cause, decisions: Revision, now: Instant) -> LeftAlone {
        if !matches!(cause, Cause::Poll | Cause::Verify) {
            return LeftAlone::new();
        }
        let is_as_decided =
            |resting: &Resting| resting.kept_back_under.is_none_or(|then| then == decisions);
        self.0
            .iter()
            .filter(|(_, resting)| resting.until > now && is_as_decided(resting))
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
        under: LookedUnder,
        now: Instant,
    ) -> Result<(), TooMany> {
        let kept_back: BTreeMap<&str, &Settled> = look
            .jobs
            .iter()
            .filter(|job| is_kept_back(job.result))
            .map(|job| (job.destination.as_str(), job))
            .collect();
        // A tag that the look saw and does not report as failed is well or gone.
        let is_seen = |tag: &Tag| {
            look.sight == Sight::Full && (request.tags.is_empty() || request.tags.contains(tag))
        };
        self.0.retain(|destination, resting| {
            match kept_back.get(destination.as_str()) {
                // Refused for another reason than before.
                Some(job) if job.result != Outcome::Failed => {
                    job.gated.is_some() || resting.until > now
                }
                Some(_) => true,
                None => !is_seen(&resting.tag),
            }
        });
        for (destination, job) in kept_back {
            let before = self.0.get(destination);
            let resting = match (&job.failure, &job.gated) {
                (Some(failure), _) => Resting::failed(job, failure, before, now),
                (None, Some(gated)) => Resting::gated(job, gated, before, under, now),
                // A repeated report is no new failure.
                (None, None) => continue,
            };
            self.0.insert(destination.to_owned(), resting);
        }
        let gated = self
            .0
            .values()
            .filter(|resting| resting.kept_back_under.is_some())
            .count();
        if gated > MOST_GATED || self.0.len() - gated > MOST {
            self.0.clear();
            return Err(TooMany);
        }
        Ok(())
    }

    /// The rest of a tag that gates keep back is over: one of them has answered.
    pub fn wake(&mut self, tag: &Tag, now: Instant) {
        let resting = self.0.values_mut();
        for resting in
            resting.filter(|resting| resting.kept_back_under.is_some() && resting.tag == *tag)
        {
            resting.until = resting.until.min(now);
        }
    }

    /// The tags to try next, and when; none: all of the repository.
    pub fn next(&self) -> Option<(Vec<Tag>, Instant)> {
        let waking = || self.0.values().filter(|resting| resting.wakes);
        let first = waking().map(|resting| resting.until).min()?;
        let at = first + TOGETHER;
        let due = waking().filter(|resting| resting.until <= at);
        let mut tags = BTreeSet::new();
        let mut last = first;
        for resting in due {
            last = last.max(resting.until);
            tags.insert(resting.tag.clone());
        }
        if tags.len() > MOST_NAMED {
            tags.clear();
        }
        Some((tags.into_iter().collect(), last))
    }
}

impl Resting {
    fn failed(job: &Settled, failure: &Failure, before: Option<&Resting>, now: Instant) -> Resting {
        let failures = before.map_or(0, |before| before.failures) + 1;
        Resting {
            tag: failure.tag.clone(),
            settled: reported(job),
            failures,
            since: now,
            until: now + wait(failure.class, failures),
            wakes: true,
            kept_back_under: None,
        }
    }

    fn gated(
        job: &Settled,
        gated: &Gated,
        before: Option<&Resting>,
        under: LookedUnder,
        now: Instant,
    ) -> Resting {
        let verify = under.verify;
        let same = before.filter(|before| {
            before.kept_back_under.is_some() && before.settled.digest == job.digest
        });
        let since = same.map_or(now, |before| before.since);
        let failures = same.map_or(0, |before| before.failures) + 1;
        let rests = gated.next.iter().map(|next| match next {
            NextJudgement::Verify => verify,
            NextJudgement::Poll | NextJudgement::PollUntil(_) if now < since + EVIDENCE => {
                Duration::ZERO
            }
            NextJudgement::Soon if now < since + EVIDENCE => SOON.wait(failures),
            NextJudgement::Poll | NextJudgement::Soon => verify,
            NextJudgement::At(time) | NextJudgement::PollUntil(time) => {
                until(*time).clamp(SHORTEST.min(verify), verify)
            }
        });
        let rest = rests.min().unwrap_or(verify);
        Resting {
            tag: gated.tag.clone(),
            settled: reported(job),
            failures,
            since,
            until: now + rest,
            // The next poll is enough where only a decision keeps it back.
            wakes: !rest.is_zero() && !gated.next.is_empty(),
            kept_back_under: Some(under.decisions),
        }
    }
}

/// Whether jobs with this result may be left alone by polls.
fn is_kept_back(result: Outcome) -> bool {
    matches!(
        result,
        Outcome::Failed | Outcome::Waiting | Outcome::Held | Outcome::Refused
    )
}

/// The report of a job, for looks that do not try again.
fn reported(job: &Settled) -> Settled {
    Settled {
        failure: None,
        gated: None,
        ..job.clone()
    }
}

/// The time from now until a time of day.
fn until(time: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(clock::now())).unwrap_or_default()
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
    use crate::job::{Actor, Trouble};

    /// Without decisions.
    fn usual() -> LookedUnder {
        LookedUnder {
            decisions: Revision::default(),
            verify: Duration::from_secs(3600),
        }
    }

    fn alone(resting: &RestingTags, cause: Cause, now: Instant) -> LeftAlone {
        resting.left_alone(cause, Revision::default(), now)
    }

    fn ask(tags: &[&str]) -> LookRequest {
        let tags = tags.iter().map(|tag| tag.parse().unwrap()).collect();
        LookRequest::new(tags, Cause::Poll, Actor::daemon())
    }

    fn failed(tag: &str, class: Class) -> Settled {
        let failure = Failure {
            tag: tag.parse().unwrap(),
            class,
        };
        Settled {
            destination: format!("p/app:{tag}"),
            failure: Some(failure),
            ..Settled::sample(Outcome::Failed)
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
                .note(&ask(&["v1"]), &look(&[failed("v1", REFUSED)]), usual(), now)
                .unwrap();
            let (tags, until) = resting.next().unwrap();
            assert_eq!(tags, ["v1".parse().unwrap()]);
            waits.push((until - now).as_secs());
            // A poll in between leaves the tag alone and repeats its report.
            let left = alone(&resting, Cause::Poll, now);
            assert_eq!(left.keys().collect::<Vec<_>>(), ["p/app:v1"]);
            resting
                .note(&ask(&[]), &look(&[left["p/app:v1"].clone()]), usual(), now)
                .unwrap();
            assert_eq!(resting.next().unwrap().1, until);
            now = until;
            assert!(
                alone(&resting, Cause::Poll, now).is_empty(),
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
        resting.note(&ask(&[]), &look(&jobs), usual(), now).unwrap();
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
            .note(
                &ask(&[]),
                &look(&[failed("v1", Class::Rejected)]),
                usual(),
                now,
            )
            .unwrap();
        for cause in Cause::ALL {
            let polls = matches!(cause, Cause::Poll | Cause::Verify);
            assert_eq!(!alone(&resting, cause, now).is_empty(), polls, "{cause}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_well_again_is_forgotten_and_what_was_not_seen_is_not() {
        let mut resting = RestingTags::default();
        let now = Instant::now();
        let both = look(&[failed("v1", REFUSED), failed("v2", REFUSED)]);
        resting.note(&ask(&[]), &both, usual(), now).unwrap();
        resting
            .note(&ask(&["v2"]), &look(&[]), usual(), now)
            .unwrap();
        assert_eq!(resting.0.len(), 1, "v2 was looked at and is well");
        let blind = Look {
            trouble: vec![Trouble {
                class: crate::job::TroubleClass::Retryable,
                text: "down".into(),
            }],
            sight: Sight::Blind,
            ..Look::default()
        };
        resting.note(&ask(&[]), &blind, usual(), now).unwrap();
        assert_eq!(resting.0.len(), 1, "nothing was seen");
        resting.note(&ask(&[]), &look(&[]), usual(), now).unwrap();
        assert!(resting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let mut resting = RestingTags::default();
        let now = Instant::now();
        let jobs: Vec<_> = (0..=MOST)
            .map(|number| failed(&format!("v{number}"), REFUSED))
            .collect();
        assert_eq!(
            resting.note(&ask(&[]), &look(&jobs[..MOST]), usual(), now),
            Ok(())
        );
        assert_eq!(
            resting.note(&ask(&[]), &look(&jobs), usual(), now),
            Err(TooMany)
        );
        assert!(resting.is_empty());
    }

    fn kept_back(tag: &str, next: &[NextJudgement]) -> Settled {
        Settled {
            destination: format!("p/app:{tag}"),
            result: Outcome::Waiting,
            digest: Some(crate::oci::Digest::sha256(b"one")),
            gated: Some(Gated {
                tag: tag.parse().unwrap(),
                next: next.to_vec(),
            }),
            ..Settled::sample(Outcome::Failed)
        }
    }

    fn rest(resting: &RestingTags, now: Instant) -> Option<u64> {
        resting.next().map(|(_, at)| (at - now).as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_a_time_rests_until_the_first_time_and_at_most_for_verify() {
        clock::simulate("2026-11-30T12:00:00Z".parse().unwrap());
        let now = Instant::now();
        let at =
            |seconds| NextJudgement::At(clock::now() + jiff::SignedDuration::from_secs(seconds));
        for (next, expected) in [
            (vec![at(90)], 90),
            (vec![at(90), at(40)], 40),
            (vec![at(-5)], 1),
            (vec![at(86_400)], 3600),
            (vec![NextJudgement::Verify], 3600),
            (vec![NextJudgement::Verify, at(90)], 90),
        ] {
            let mut resting = RestingTags::default();
            let look = look(&[kept_back("v1", &next)]);
            resting.note(&ask(&[]), &look, usual(), now).unwrap();
            assert_eq!(rest(&resting, now), Some(expected), "{next:?}");
            assert_eq!(alone(&resting, Cause::Verify, now).len(), 1);
            assert!(alone(&resting, Cause::Webhook, now).is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn missing_evidence_is_looked_for_at_each_poll_for_an_hour_and_then_at_verify() {
        let mut resting = RestingTags::default();
        let mut now = Instant::now();
        let waits = look(&[kept_back("v1", &[NextJudgement::Poll])]);
        for _ in 0..60 {
            resting.note(&ask(&[]), &waits, usual(), now).unwrap();
            assert_eq!(rest(&resting, now), None, "the polls are enough");
            assert!(alone(&resting, Cause::Poll, now).is_empty());
            now += Duration::from_secs(60);
        }
        resting.note(&ask(&[]), &waits, usual(), now).unwrap();
        assert_eq!(rest(&resting, now), Some(3600));
        assert_eq!(alone(&resting, Cause::Poll, now).len(), 1);
        let other = Settled {
            digest: Some(crate::oci::Digest::sha256(b"other")),
            ..waits.jobs[0].clone()
        };
        resting
            .note(&ask(&[]), &look(&[other]), usual(), now)
            .unwrap();
        assert_eq!(rest(&resting, now), None, "another digest, another hour");
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_is_looked_for_at_each_poll_for_an_hour_and_then_when_its_wait_is_over() {
        clock::simulate("2026-11-30T12:00:00Z".parse().unwrap());
        let mut resting = RestingTags::default();
        let now = Instant::now();
        let over = clock::now() + jiff::SignedDuration::from_secs(90);
        let waits = look(&[kept_back("v1", &[NextJudgement::PollUntil(over)])]);
        resting.note(&ask(&[]), &waits, usual(), now).unwrap();
        assert_eq!(rest(&resting, now), None, "the polls are enough");
        assert!(alone(&resting, Cause::Poll, now).is_empty());
        let later = now + EVIDENCE;
        resting.note(&ask(&[]), &waits, usual(), later).unwrap();
        assert_eq!(rest(&resting, later), Some(90));
        assert_eq!(alone(&resting, Cause::Poll, later).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_program_judges_is_asked_again_after_seconds_and_later_at_verify() {
        let mut resting = RestingTags::default();
        let mut now = Instant::now();
        let waits = look(&[kept_back("v1", &[NextJudgement::Soon])]);
        let began = now;
        let mut rests = Vec::new();
        while now < began + EVIDENCE {
            resting.note(&ask(&[]), &waits, usual(), now).unwrap();
            let seconds = rest(&resting, now).unwrap();
            rests.push(seconds);
            now += Duration::from_secs(seconds);
        }
        assert_eq!(rests[..4], [5, 10, 20, 30]);
        assert!(rests[4..].iter().all(|seconds| *seconds == 30));
        resting.note(&ask(&[]), &waits, usual(), now).unwrap();
        assert_eq!(rest(&resting, now), Some(3600));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tag_that_another_rule_refuses_rests_no_more() {
        let mut resting = RestingTags::default();
        let now = Instant::now();
        let gated = kept_back("v1", &[NextJudgement::Verify]);
        let refused = Settled {
            result: Outcome::Refused,
            gated: None,
            ..gated.clone()
        };
        resting
            .note(&ask(&[]), &look(&[gated]), usual(), now)
            .unwrap();
        let repeated = look(&[refused]);
        resting.note(&ask(&[]), &repeated, usual(), now).unwrap();
        assert!(!resting.is_empty(), "a report without a new attempt");
        let later = now + usual().verify;
        resting.note(&ask(&[]), &repeated, usual(), later).unwrap();
        assert!(resting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn many_tags_that_wait_are_looked_at_with_the_whole_repository() {
        let mut resting = RestingTags::default();
        let now = Instant::now();
        let jobs: Vec<_> = (0..=MOST_GATED)
            .map(|number| kept_back(&format!("v{number}"), &[NextJudgement::Verify]))
            .collect();
        let most = look(&jobs[..MOST_GATED]);
        assert_eq!(resting.note(&ask(&[]), &most, usual(), now), Ok(()));
        assert_eq!(resting.next(), Some((Vec::new(), now + usual().verify)));
        let more = look(&jobs);
        assert_eq!(resting.note(&ask(&[]), &more, usual(), now), Err(TooMany));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_decision_keeps_back_rests_until_the_decisions_change() {
        let mut resting = RestingTags::default();
        let now = Instant::now();
        let held = Settled {
            result: Outcome::Held,
            ..kept_back("v1", &[])
        };
        resting
            .note(&ask(&[]), &look(&[held]), usual(), now)
            .unwrap();
        assert_eq!(rest(&resting, now), None, "the polls are enough");
        assert_eq!(alone(&resting, Cause::Poll, now).len(), 1);
        let later = now + usual().verify;
        assert!(alone(&resting, Cause::Poll, later).is_empty());
        let other = crate::decision::InForce {
            version: 1,
            ..crate::decision::InForce::default()
        };
        let other = other.revision(clock::now());
        assert!(resting.left_alone(Cause::Poll, other, now).is_empty());
        resting.note(&ask(&[]), &look(&[]), usual(), now).unwrap();
        assert!(resting.is_empty());
    }
}
