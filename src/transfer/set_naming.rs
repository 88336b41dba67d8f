//! The naming of a set: its members one after the other, in the order of the config.
//!
//! | a job of a member | then |
//! |---|---|
//! | has passed all else, and the set is not complete | ends as waiting; the last one wakes it |
//! | makes the set complete | waits for its turn, at most as long as a job holds its permit |
//! | is the first | announces the naming in the ledger, names its tag, wakes the next |
//! | fails for good after others were named | the set is torn: held, and moving tags go back |
//!
//! What was announced outlives the process: the looks after a restart go on with the naming, or
//! report the set as torn.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::judged_set::JudgedSet;
use super::retry::{Stop, stoppable};
use super::sets::{GroupId, Ready, UnderWay};
use super::survey::TagFacts;
use super::torn::{ends_for_good, is_overdue};
use super::verdict::Contents;
use super::{Completion, Engine, Promotion, refusals};
use crate::clock;
use crate::decision::Verdict as DecisionVerdict;
use crate::endpoint::{Destination, Source};
use crate::fault::Fault;
use crate::job::{Job, Key, Outcome, TagId};
use crate::ledger::RunFacts;
use crate::oci::Digest;
use crate::set::{MemberTag, Naming, SetTag, Verdict};

/// How long a job with a waiting caller stays for members with jobs that have not begun.
const GRACE: Duration = Duration::from_secs(2);
/// As [`GRACE`], for a job that names nothing.
const DRY_GRACE: Duration = Duration::from_secs(1);

/// Why a job waits for its set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetWait {
    /// The reason, for the report.
    pub reason: String,
    /// Whether the set is complete: then only other members go first.
    pub is_complete: bool,
}

impl SetWait {
    fn incomplete(reason: String) -> SetWait {
        SetWait {
            reason,
            is_complete: false,
        }
    }
}

impl Engine {
    /// Counts a job as under way in its set.
    pub(super) fn enter_set(&self, job: &Job, stop: &Stop) -> Option<UnderWay> {
        let place = &job.key.destination;
        let set = stop.sets.of(place)?;
        Some(self.sets.begin(GroupId::of(&set, job.dry_run), place))
    }

    /// Waits, without a permit, until the set of a job may be complete: as long as jobs of other
    /// members are under way, and a little for those that have not begun. Returns why not, if so.
    pub(super) async fn still_waits(
        &self,
        job: &Job,
        stop: &Stop,
        most: Duration,
    ) -> Option<String> {
        let place = &job.key.destination;
        let began = Instant::now();
        loop {
            let set = stop.sets.of(place)?;
            let id = GroupId::of(&set, job.dry_run);
            let changes = self.sets.changes(&id);
            let mut changed = std::pin::pin!(changes.notified());
            changed.as_mut().enable();
            let reason = match self.judge_set(&id, &set).await.map(|judged| judged.verdict) {
                Ok(Verdict::Waits(reason)) => reason,
                Ok(Verdict::Anew(_) | Verdict::Next(_) | Verdict::Whole) => return None,
                Err(fault) => return Some(fault.chain()),
            };
            let grace = if job.dry_run { DRY_GRACE } else { GRACE };
            let patience = match self.sets.is_under_way(&id, place) {
                true => most,
                false => most.min(grace),
            };
            let waited = timeout_at(began + patience, stoppable(&stop.drain, changed));
            if !matches!(waited.await, Ok(Ok(()))) {
                return Some(reason);
            }
        }
    }

    /// Records what a settled job means for its set, and goes on with the set.
    pub(super) async fn settle_in_set(&self, job: &Job, completion: &Completion, facts: &RunFacts) {
        let Some(set) = completion.set.as_ref().filter(|_| job.rollback.is_none()) else {
            return;
        };
        let id = GroupId::of(set, job.dry_run);
        let place = &job.key.destination;
        match completion.outcome {
            Outcome::Waiting if completion.set_wait.is_some() => {}
            Outcome::Planned => {}
            Outcome::Promoted | Outcome::UpToDate | Outcome::Interrupted => {
                self.sets.forget(&id, place);
            }
            outcome => self.sets.note_kept_back(&id, place, outcome.name().into()),
        }
        if job.dry_run {
            return;
        }
        if completion.outcome == Outcome::Promoted {
            self.sets.note_first(&id);
        }
        if let Err(fault) = self.go_on(&id, set, job, completion, facts).await {
            let error = fault.chain();
            tracing::warn!(set = %set.name, error, "a set could not be gone on with");
        }
    }

    async fn go_on(
        &self,
        id: &GroupId,
        set: &SetTag,
        job: &Job,
        completion: &Completion,
        facts: &RunFacts,
    ) -> Result<(), Fault> {
        let judged = self.judge_set(id, set).await?;
        let Some(begun) = &judged.begun else {
            return Ok(());
        };
        if begun.is_over(set, &judged.named) {
            return self.end_set(id, set).await;
        }
        let next = match judged.verdict {
            Verdict::Whole => return self.end_set(id, set).await,
            Verdict::Next(next) => &set.members[next],
            Verdict::Waits(_) | Verdict::Anew(_) => return Ok(()),
        };
        let is_next = next.key.destination == job.key.destination;
        let is_over = is_next
            && ends_for_good(completion)
            && !self
                .may_lag(begun, &next.key.destination, completion)
                .await?;
        if is_over || is_overdue(begun, completion) {
            let how = completion.outcome.name();
            let why = match &completion.fault {
                Some(fault) if is_next => format!("{how}: {}", fault.chain()),
                _ if is_next => format!("{how}: {}", completion.reasons.join("; ")),
                _ => "its naming did not go on for five minutes".into(),
            };
            return self.tear(id, set, &judged, next, &why, facts).await;
        }
        // Its turn may have come while it ended as waiting: no other member wakes it then.
        let has_waited = completion.set_wait.is_some();
        if !is_next || has_waited || completion.outcome == Outcome::Promoted {
            self.sets.wake(id, &next.key);
        }
        Ok(())
    }

    /// Whether production may have shown what was there before our own write of this naming: the next
    /// look tells.
    async fn may_lag(
        &self,
        begun: &Naming,
        place: &TagId,
        completion: &Completion,
    ) -> Result<bool, Fault> {
        let is_by_reading = matches!(
            completion.outcome,
            Outcome::Drift | Outcome::Conflict | Outcome::Existing
        );
        let record = self.ledger.written(place).await?;
        let is_written = record.digest.is_some() && record.digest == begun.goal(place);
        Ok(is_by_reading && is_written && record.lags_for(clock::now()).is_some())
    }

    /// All members are named.
    async fn end_set(&self, id: &GroupId, set: &SetTag) -> Result<(), Fault> {
        self.ledger.end_set(&set.name).await?;
        let took = self.sets.end(id).map(|first| first.elapsed());
        if let Some(took) = took {
            self.metrics.sets.named(&set.name.set, took);
        }
        let seconds = took.map_or(0.0, |took| took.as_secs_f64());
        tracing::info!(set = %set.name, seconds, "a set was named");
        self.sets.wake_others(id);
        Ok(())
    }

    /// Has the other members of a set looked at.
    pub(super) fn wake_members(&self, set: &SetTag, but: &Key) {
        let id = GroupId::of(set, false);
        let others = set.members.iter().map(|one| &one.key);
        others
            .filter(|key| key.destination != but.destination)
            .for_each(|key| self.sets.wake(&id, key));
    }
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// The set that the job's tag is part of. A tag that goes back does so alone.
    pub(super) fn set(&self) -> Option<SetTag> {
        let set = self.stop.sets.of(&self.job.key.destination);
        set.filter(|_| self.job.rollback.is_none())
    }

    /// The job has passed all but its set. Returns why it waits, if it does.
    pub(super) async fn waits_for_set(
        &self,
        facts: &TagFacts,
        contents: Option<Contents>,
    ) -> Result<Option<SetWait>, Fault> {
        let Some((set, digest)) = self.set().zip(facts.source) else {
            return Ok(None);
        };
        // Known before the first tag moves, a refusal tears nothing.
        if let Some(fault) = self.refused_name(&digest) {
            return Err(fault);
        }
        let place = &self.job.key.destination;
        let id = GroupId::of(&set, self.job.dry_run);
        let ready = Ready {
            key: self.job.key.clone(),
            digest,
            previous: facts.destination,
            candidate: self.candidate(place, digest, contents),
            at: Instant::now(),
        };
        self.engine.sets.note_ready(&id, place, ready);
        let judged = self.engine.judge_set(&id, &set).await?;
        Ok(match judged.verdict {
            Verdict::Waits(reason) => Some(SetWait::incomplete(reason)),
            Verdict::Anew(_) | Verdict::Next(_) | Verdict::Whole => None,
        })
    }

    /// The refusal of an earlier job to name the image, where it still holds.
    fn refused_name(&self, digest: &Digest) -> Option<Fault> {
        let job = self.job;
        let subject = refusals::Subject::of_name(&job.key.destination, *digest);
        let refusals = &self.engine.refusals;
        refusals.held(&subject, job.news)
    }

    /// Waits for the job's turn in its set. Returns why it does not come, if so.
    pub(super) async fn turn_in_set(&self, digest: Digest) -> Result<Option<SetWait>, Fault> {
        let until = Instant::now() + self.engine.settings.retry.hold;
        let place = &self.job.key.destination;
        loop {
            let Some(set) = self.set() else {
                return Ok(None);
            };
            let id = GroupId::of(&set, self.job.dry_run);
            let members = &self.engine.sets;
            let _turn = members.wait_for_turn(&id, place);
            let changes = members.changes(&id);
            let mut changed = std::pin::pin!(changes.notified());
            changed.as_mut().enable();
            let judged = self.engine.judge_set(&id, &set).await?;
            let name = &set.name.set;
            let reason = match &judged.verdict {
                Verdict::Waits(reason) => return Ok(Some(SetWait::incomplete(reason.clone()))),
                Verdict::Whole => return Ok(None),
                Verdict::Anew(positions) => {
                    let anew: Vec<&MemberTag> =
                        positions.iter().map(|at| &set.members[*at]).collect();
                    anew.iter().for_each(|one| members.wake(&id, &one.key));
                    let shown: Vec<String> = anew.iter().map(|one| one.shown()).collect();
                    format!("set {name}: {} is judged again", shown.join(", "))
                }
                Verdict::Next(next) if set.members[*next].key.destination == *place => {
                    if self.begins_set(&id, &set, &judged, digest).await? {
                        return Ok(None);
                    }
                    continue;
                }
                Verdict::Next(next) => {
                    let next = &set.members[*next];
                    members.wake(&id, &next.key);
                    format!("set {name}: {} is named first", next.shown())
                }
            };
            match timeout_at(until, stoppable(&self.stop.drain, changed)).await {
                Ok(changed) => changed?,
                Err(_) => {
                    return Ok(Some(SetWait {
                        reason,
                        is_complete: true,
                    }));
                }
            }
        }
    }

    /// It is the job's turn: the first one announces the naming. `false`: something has changed, and
    /// the set is to be judged again.
    async fn begins_set(
        &self,
        id: &GroupId,
        set: &SetTag,
        judged: &JudgedSet,
        digest: Digest,
    ) -> Result<bool, Fault> {
        let engine = self.engine;
        let place = &self.job.key.destination;
        if let Some(begun) = &judged.begun {
            let is_as_announced = begun.goal(place).is_none_or(|goal| goal == digest);
            if is_as_announced || !set.is_moving {
                return Ok(true);
            }
            if let Some(own) = set.member(place) {
                let why = "staging moved it meanwhile";
                let facts = RunFacts::default();
                engine.tear(id, set, judged, own, why, &facts).await?;
            }
            return Ok(false);
        }
        if self.is_stopped_elsewhere(id, set) {
            return Ok(false);
        }
        let naming = Naming::of(set, &judged.facts, clock::now());
        engine.ledger.begin_set(&set.name, &naming).await?;
        Ok(true)
    }

    /// Whether a decision stops a member that was ready. Then it is ready no more.
    fn is_stopped_elsewhere(&self, id: &GroupId, set: &SetTag) -> bool {
        let engine = self.engine;
        let in_force = engine.ledger.known_decisions();
        let now: Timestamp = clock::now();
        let mut is_stopped = false;
        let own = &self.job.key.destination;
        for candidate in engine.sets.ready(id) {
            let place = &candidate.place;
            // Its own send asks again.
            if place == own {
                continue;
            }
            match in_force.judge(&candidate, now) {
                DecisionVerdict::Clear => continue,
                DecisionVerdict::Blocked(block) => {
                    let how = block.outcome.name().into();
                    engine.sets.note_kept_back(id, place, how);
                }
                DecisionVerdict::Unknown => {
                    engine.sets.forget(id, place);
                    if let Some(member) = set.member(place) {
                        engine.sets.wake(id, &member.key);
                    }
                }
            }
            is_stopped = true;
        }
        is_stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Actor;
    use crate::set::{Fact, State};
    use crate::transfer::completion::Cost;

    /// The first member was named while the second ended as waiting: nothing else wakes it.
    #[tokio::test]
    async fn a_member_that_ends_as_waiting_when_its_turn_has_come_is_woken() {
        let engine = Engine::in_memory();
        let set = SetTag::sample("v1");
        let digest = Digest::sha256(b"v1");
        let ready = Fact {
            state: State::Ready {
                digest,
                previous: None,
                is_fresh: true,
            },
            versions: Default::default(),
        };
        let naming = Naming::of(&set, &vec![ready; 3], clock::now());
        engine.ledger.begin_set(&set.name, &naming).await.unwrap();
        let [api, web, _] = [0, 1, 2].map(|at| set.members[at].key.clone());
        engine
            .ledger
            .found(&api.destination, &digest)
            .await
            .unwrap();
        let job = Job {
            rollback: None,
            ..Job::back(web.clone(), digest, digest, 0, Actor::daemon())
        };
        let completion = Completion {
            outcome: Outcome::Waiting,
            set: Some(set),
            set_wait: Some(SetWait::incomplete("set shop lacks api:v1".into())),
            ..Completion::empty(Cost::default())
        };
        let facts = RunFacts::default();
        engine.settle_in_set(&job, &completion, &facts).await;
        assert_eq!(engine.sets.take_woken(), [web].into());
    }
}
