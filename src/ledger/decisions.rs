//! Decisions in the ledger: rows of their own, and which of them are in force.
//!
//! What is in force is kept in memory, too: it is what a name is judged by directly before it is
//! sent. A decision is in memory when its call returns, even if the caller is gone by then, and no
//! name that it stops is on its way any more, as far as registries answer within [`SENDS_SETTLE`].

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, params};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::raw::json;
use super::raw::parsed;
use super::rows::{self, Content};
use super::{Ledger, RunFacts, tag_records, unwritable};
use crate::clock;
use crate::decision::{
    Candidate, Decision, InForce, Kind, Numbered, RefusedDecision, Target, Verdict,
};
use crate::endpoint::Origin;
use crate::fault::Fault;
use crate::job::{Actor, Remarks, TagId};
use crate::oci::{Digest, RepositoryName};

/// Most names that are remembered as sent without an answer.
const MOST_LOST: usize = 1000;
/// Approvals that were used up, and that are read with the decisions in force: so a moving tag that
/// is on its way misses none.
const MOST_USED: i64 = 100;
/// How long a decision waits for names that were sent before it.
const SENDS_SETTLE: Duration = Duration::from_secs(10);

/// A decision that was recorded.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The decision.
    pub decision: Numbered,
    /// Tag writes that were sent earlier and have no answer yet: these tags may still move.
    pub on_their_way: Vec<TagId>,
    /// Of a denial: content that was sent earlier and has no answer yet: it may still arrive.
    pub carried: Vec<Digest>,
}

/// Tells whether our clock is off that of a registry that a decision is about.
pub type ClockDoubt = Box<dyn Fn(&Numbered) -> bool + Send + Sync>;

/// The decisions in force, and the names on their way.
pub(super) struct Memory {
    state: Mutex<State>,
    /// Without it our clock is right.
    clock_doubt: OnceLock<ClockDoubt>,
    send_ended: Notify,
    version: watch::Sender<i64>,
}

#[derive(Debug, Default)]
struct State {
    /// `None`: not read yet.
    in_force: Option<Arc<InForce>>,
    sends: BTreeMap<u64, Candidate>,
    carries: BTreeMap<u64, Carry>,
    next: u64,
    /// Tag writes with a lost answer.
    lost: Vec<Candidate>,
    /// Intents that an earlier process left.
    left: Vec<(TagId, Digest)>,
}

/// A request that brings content, and the image that this is part of as far as that is known.
#[derive(Debug)]
struct Carry {
    digest: Digest,
    image: Option<Arc<HashSet<Digest>>>,
}

impl Carry {
    fn is_part_of(&self, denied: &Digest) -> bool {
        let image = self.image.as_ref();
        self.digest == *denied || image.is_some_and(|image| image.contains(denied))
    }
}

/// Content on its way, until it is dropped.
#[derive(Debug)]
pub struct Carrying {
    memory: Arc<Memory>,
    number: u64,
}

impl Drop for Carrying {
    fn drop(&mut self) {
        self.memory.lock().carries.remove(&self.number);
        self.memory.send_ended.notify_waiters();
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory {
            state: Mutex::default(),
            clock_doubt: OnceLock::new(),
            send_ended: Notify::new(),
            version: watch::Sender::new(-1),
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = &self.state;
        f.debug_struct("Memory")
            .field("state", state)
            .finish_non_exhaustive()
    }
}

impl Memory {
    /// Whether a decision is in force, by what its gates, lists and its release go by.
    fn holds(&self, decision: &Numbered, now: Timestamp) -> bool {
        let doubt = self.clock_doubt.get();
        let is_clock_off = doubt.is_some_and(|doubt| doubt(decision));
        decision.holds(is_clock_off, now)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn adopt(&self, in_force: InForce) {
        let version = in_force.version;
        let mut state = self.lock();
        let known = state.in_force.as_ref();
        if known.is_none_or(|known| known.version < version) {
            state.in_force = Some(Arc::new(in_force));
            self.version.send_replace(version);
        }
    }

    /// Those of `ids` that hold now.
    fn holding(&self, db: &Connection, ids: &[u64]) -> rusqlite::Result<Vec<u64>> {
        let now = clock::now();
        let acting = acting(db)?;
        let holding = acting.decisions.iter().filter(|one| self.holds(one, now));
        Ok(holding
            .map(|one| one.id)
            .filter(|id| ids.contains(id))
            .collect())
    }

    /// The decisions that were read first, and the intents that an earlier process left.
    fn begin(&self, in_force: InForce, left: Vec<(TagId, Digest)>) {
        let mut state = self.lock();
        if state.in_force.is_none() {
            state.left = left;
        }
        drop(state);
        self.adopt(in_force);
    }

    /// The tag writes with a lost answer that a decision covers. Of those of an earlier process the
    /// route and the content are not known.
    fn lost_under(&self, decision: &Numbered) -> Vec<(TagId, Digest)> {
        let state = self.lock();
        let lost = state.lost.iter().filter(|lost| decision.stops(lost));
        let lost = lost.map(|lost| (lost.place.clone(), lost.digest));
        let left = state
            .left
            .iter()
            .filter(|(place, _)| decision.may_stop(place));
        lost.chain(left.cloned()).collect()
    }

    /// Content on its way that a denial is about.
    fn carries_under(&self, decision: &Numbered) -> Vec<Digest> {
        let Target::Digest(denied) = &decision.target else {
            return Vec::new();
        };
        let state = self.lock();
        let stopped = state.carries.values();
        stopped
            .filter(|carry| decision.kind == Kind::Deny && carry.is_part_of(denied))
            .map(|carry| carry.digest)
            .collect()
    }

    /// The tags of names on their way that a decision stops.
    fn sends_under(&self, decision: &Numbered) -> Vec<TagId> {
        let state = self.lock();
        let stopped = state.sends.values().filter(|sent| decision.stops(sent));
        stopped.map(|sent| sent.place.clone()).collect()
    }
}

/// A name on its way. Dropped without [`Sending::answered`] it may still arrive.
#[derive(Debug)]
pub struct Sending {
    memory: Arc<Memory>,
    number: u64,
}

impl Sending {
    /// The registry has answered: the tag names the digest, or will not.
    pub fn answered(self) {
        self.memory.lock().sends.remove(&self.number);
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut state = self.memory.lock();
        if let Some(lost) = state.sends.remove(&self.number) {
            let is_same =
                |known: &Candidate| known.place == lost.place && known.digest == lost.digest;
            state.lost.retain(|known| !is_same(known));
            if state.lost.len() >= MOST_LOST {
                state.lost.remove(0);
            }
            state.lost.push(lost);
        }
        drop(state);
        self.memory.send_ended.notify_waiters();
    }
}

impl Ledger {
    /// The decisions in force.
    pub async fn in_force(&self) -> Result<Arc<InForce>, Fault> {
        if let Some(known) = self.decisions.lock().in_force.clone() {
            return Ok(known);
        }
        let (read, left) = self
            .read(|db| Ok((in_force(db)?, tag_records::intents(db, MOST_LOST)?)))
            .await?;
        self.decisions.begin(read, left);
        Ok(self.known_decisions())
    }

    /// The decisions in force as far as they have been read: none before [`Ledger::in_force`].
    pub fn known_decisions(&self) -> Arc<InForce> {
        self.decisions.lock().in_force.clone().unwrap_or_default()
    }

    /// The decisions that hold now, as far as they have been read: those past their end as well,
    /// while our clock is off that of a registry that they are about.
    pub fn holding(&self) -> Vec<Numbered> {
        let known = self.known_decisions();
        let now = clock::now();
        let decisions = known.decisions.iter();
        decisions
            .filter(|one| self.decisions.holds(one, now))
            .cloned()
            .collect()
    }

    /// What tells that our clock is off. The first counts.
    pub fn doubt_clock_by(&self, doubt: ClockDoubt) {
        let _another_is_set = self.decisions.clock_doubt.set(doubt);
    }

    /// Changes with each decision.
    pub fn decisions_version(&self) -> watch::Receiver<i64> {
        self.decisions.version.subscribe()
    }

    /// Whether a tag may be named at this moment; if so it counts as on its way until the guard is
    /// dropped. Reads memory alone.
    pub fn begin_send(&self, candidate: &Candidate) -> Result<Sending, Verdict> {
        let mut state = self.decisions.lock();
        // An intent was recorded before, and that reads them.
        let in_force = state.in_force.clone().ok_or(Verdict::Unknown)?;
        match in_force.judge(candidate, clock::now()) {
            Verdict::Clear => {}
            verdict => return Err(verdict),
        }
        let number = state.next;
        state.next += 1;
        state.sends.insert(number, candidate.clone());
        Ok(Sending {
            memory: self.decisions.clone(),
            number,
        })
    }

    /// Counts content as on its way until the guard is dropped. What stops it is asked after this.
    pub fn begin_carry(&self, digest: Digest, image: Option<Arc<HashSet<Digest>>>) -> Carrying {
        let mut state = self.decisions.lock();
        let number = state.next;
        state.next += 1;
        state.carries.insert(number, Carry { digest, image });
        Carrying {
            memory: self.decisions.clone(),
            number,
        }
    }

    /// Records a decision. It is in force when this returns.
    pub async fn decide(
        &self,
        kind: Kind,
        decision: Decision,
        facts: RunFacts,
    ) -> Result<Recorded, Fault> {
        // What an earlier process left is known before.
        self.in_force().await?;
        let recorded = self
            .change_decisions(move |db| add(db, kind, decision, &facts))
            .await?;
        let (mut on_their_way, carried) = self.settled_sends(&recorded).await;
        on_their_way.extend(self.lost_sends(&recorded).await?);
        on_their_way.sort();
        on_their_way.dedup();
        Ok(Recorded {
            decision: recorded,
            on_their_way,
            carried,
        })
    }

    /// Ends decisions: those of `ids` that are in force. `None`: none of them is.
    pub async fn release(
        &self,
        ids: Vec<u64>,
        decision: Decision,
        facts: RunFacts,
    ) -> Result<Option<Numbered>, Fault> {
        let memory = self.decisions.clone();
        let released = self
            .change_decisions(move |db| {
                let ends = memory.holding(db, &ids)?;
                if ends.is_empty() {
                    return Ok(None);
                }
                let decision = Decision { ends, ..decision };
                add(db, Kind::Release, decision, &facts).map(Some)
            })
            .await?;
        if let Some(released) = &released {
            // Names that go by an accept that it ends.
            self.settled_sends(released).await;
        }
        Ok(released)
    }

    /// Ends decisions that are over, in the daemon's name.
    pub async fn end_decisions(
        &self,
        ids: Vec<u64>,
        why: &str,
        facts: RunFacts,
    ) -> Result<(), Fault> {
        let in_force = self.in_force().await?;
        let mut over = in_force
            .decisions
            .iter()
            .filter(|one| ids.contains(&one.id));
        let Some(first) = over.next() else {
            return Ok(());
        };
        let remarks = Remarks {
            reason: why.parse().ok(),
            claimed_actor: None,
        };
        let decision = Decision::about(&first.target, Actor::daemon().saying(remarks));
        self.release(ids, decision, facts).await.map(drop)
    }

    /// Records that a decision was refused.
    pub async fn refuse_decision(
        &self,
        refused: RefusedDecision,
        facts: RunFacts,
    ) -> Result<(), Fault> {
        self.write(move |db| {
            if is_repeated(db, &refused)? {
                return Ok(());
            }
            let content = Content::RefusedDecision(Box::new(refused));
            rows::append(db, &content, None, &facts).map(drop)
        })
        .await?;
        self.audit.row_added();
        Ok(())
    }

    /// Runs a change and has memory follow once it is on disk, whether the caller waits or not.
    async fn change_decisions<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Fault> {
        let (reply, answer) = oneshot::channel();
        let act = move |db: &Connection| Ok((change(db)?, in_force(db)?));
        let memory = self.decisions.clone();
        let settle = move |outcome: Result<(T, InForce), _>| {
            let outcome = outcome.map(|(changed, in_force)| {
                memory.adopt(in_force);
                changed
            });
            // The caller may be gone.
            let _ = reply.send(outcome.map_err(unwritable));
        };
        self.store.queue(act, settle).await;
        let answer = answer.await;
        let changed = answer.map_err(|_| Fault::retryable("the ledger was closed"))??;
        self.audit.row_added();
        self.check_folder()
            .map_err(|gone| Fault::retryable(gone.to_string()))?;
        Ok(changed)
    }

    /// The tags of writes with a lost answer that a decision covers, until an answer shows what
    /// became of them.
    async fn lost_sends(&self, decision: &Numbered) -> Result<Vec<TagId>, Fault> {
        let lost = self.decisions.lost_under(decision);
        if lost.is_empty() {
            return Ok(Vec::new());
        }
        self.read(move |db| {
            let mut open = Vec::new();
            for (place, digest) in lost {
                if tag_records::of_place(db, &place)?
                    .intended
                    .contains(&digest)
                {
                    open.push(place);
                }
            }
            Ok(open)
        })
        .await
    }

    /// Waits for the names and the content on their way that a decision stops. Returns those that
    /// got no answer.
    async fn settled_sends(&self, decision: &Numbered) -> (Vec<TagId>, Vec<Digest>) {
        let until = Instant::now() + SENDS_SETTLE;
        loop {
            let ended = self.decisions.send_ended.notified();
            let names = self.decisions.sends_under(decision);
            let mut carried = self.decisions.carries_under(decision);
            let is_settled = names.is_empty() && carried.is_empty();
            if is_settled || timeout_at(until, ended).await.is_err() {
                carried.sort();
                carried.dedup();
                return (names, carried);
            }
        }
    }
}

/// The verdict of the decisions on disk, in the transaction that records an intent. Those in memory
/// are used where they are the same.
pub(super) fn judge(
    db: &Connection,
    known: &InForce,
    candidate: &Candidate,
) -> rusqlite::Result<Verdict> {
    let now = clock::now();
    if version(db)? == known.version {
        Ok(known.judge(candidate, now))
    } else {
        Ok(acting(db)?.judge(candidate, now))
    }
}

fn version(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT decisions FROM identity")?
        .query_row([], |row| row.get(0))
}

/// The decisions in force, and approvals that were used.
fn in_force(db: &Connection) -> rusqlite::Result<InForce> {
    Ok(InForce {
        used: newest_used_approvals(db)?,
        ..acting(db)?
    })
}

/// The decisions in force alone.
fn acting(db: &Connection) -> rusqlite::Result<InForce> {
    let mut rows = db.prepare_cached(
        "SELECT rows.id, rows.at, rows.kind, rows.content FROM decisions JOIN rows ON rows.id = decisions.row
        WHERE decisions.ended_by IS NULL ORDER BY decisions.row",
    )?;
    let decisions = rows.query_map([], numbered)?;
    Ok(InForce {
        version: version(db)?,
        decisions: decisions.collect::<rusqlite::Result<_>>()?,
        used: Vec::new(),
    })
}

fn damaged(text: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(3, rusqlite::types::Type::Text, text.into())
}

fn numbered(row: &rusqlite::Row<'_>) -> rusqlite::Result<Numbered> {
    let kind: String = row.get(2)?;
    let kind = Kind::of_name(&kind).ok_or_else(|| damaged(format!("no decision is a {kind}")))?;
    let decision: Decision = serde_json::from_str(row.get_ref(3)?.as_str()?)
        .map_err(|error| damaged(error.to_string()))?;
    let at =
        Timestamp::from_millisecond(row.get(1)?).map_err(|error| damaged(error.to_string()))?;
    Ok(Numbered::new(
        row.get::<_, i64>(0)?.unsigned_abs(),
        at,
        kind,
        decision,
    ))
}

fn add(
    db: &Connection,
    kind: Kind,
    decision: Decision,
    facts: &RunFacts,
) -> rusqlite::Result<Numbered> {
    let content = Content::Decision(kind, Box::new(decision.clone()));
    let id = rows::append(db, &content, None, facts)?;
    let row = i64::try_from(id).unwrap_or(i64::MAX);
    let ended_by = (kind == Kind::Release).then_some(row);
    db.prepare_cached(
        "INSERT INTO decisions (row, repository, tag, ended_by) VALUES (?1, ?2, ?3, ?4)",
    )?
    .execute(params![
        row,
        decision.repository.as_ref().map(|name| name.as_str()),
        decision.tag.as_ref().map(|tag| tag.as_str()),
        ended_by
    ])?;
    end(db, &decision.ends, row)?;
    Ok(Numbered::new(id, clock::now(), kind, decision))
}

/// Whether the same refusal is the newest row: a caller that tries again and again adds no rows.
fn is_repeated(db: &Connection, refused: &RefusedDecision) -> rusqlite::Result<bool> {
    let last = db
        .prepare_cached(
            "SELECT content FROM rows WHERE kind = 'refused_decision' ORDER BY id DESC LIMIT 1",
        )?
        .query_map([], |row| row.get::<_, String>(0))?
        .next()
        .transpose()?;
    Ok(last.is_some_and(|last| json(refused).is_ok_and(|now| now == last)))
}

/// Ends what was accepted of a tag, and the approvals of the digest: it has been named. Gates are
/// passed until their own end.
pub(super) fn used(
    db: &Connection,
    place: &TagId,
    digest: &Digest,
    row: i64,
) -> rusqlite::Result<bool> {
    let acting = acting(db)?;
    let over: Vec<u64> = acting
        .of_tag(place)
        .filter(|one| one.is_used_by(digest))
        .map(|one| one.id)
        .collect();
    if over.is_empty() {
        return Ok(false);
    }
    end(db, &over, row)?;
    Ok(true)
}

/// The approvals that ended when their tags were named, of tags that still name the digest.
const USED_APPROVALS: &str = "SELECT rows.id, rows.at, rows.kind, rows.content FROM decisions
    JOIN rows ON rows.id = decisions.row JOIN rows AS ended ON ended.id = decisions.ended_by
    WHERE rows.kind = 'approve' AND ended.kind = 'outcome' AND EXISTS (
        SELECT 1 FROM written WHERE written.repository = decisions.repository
            AND written.tag = decisions.tag AND written.digest = json_extract(rows.content, '$.digest'))";

/// The newest of them.
fn newest_used_approvals(db: &Connection) -> rusqlite::Result<Vec<Numbered>> {
    let newest = format!("{USED_APPROVALS} ORDER BY decisions.ended_by DESC LIMIT ?1");
    let mut rows = db.prepare_cached(&newest)?;
    let newest = rows.query_map([MOST_USED], numbered)?;
    newest.collect()
}

/// Those of a digest in a repository.
fn used_approvals(
    db: &Connection,
    repository: &RepositoryName,
    digest: &Digest,
) -> rusqlite::Result<Vec<Numbered>> {
    let of_digest = format!(
        "{USED_APPROVALS} AND decisions.repository = ?1
            AND json_extract(rows.content, '$.digest') = ?2 ORDER BY rows.id"
    );
    let mut rows = db.prepare_cached(&of_digest)?;
    let used = rows.query_map([repository.as_str(), &digest.to_string()], numbered)?;
    used.collect()
}

/// Ends decisions by a row. The decisions in force are others from then on.
fn end(db: &Connection, ids: &[u64], row: i64) -> rusqlite::Result<()> {
    for id in ids {
        let id = i64::try_from(*id).unwrap_or(i64::MAX);
        db.prepare_cached("UPDATE decisions SET ended_by = ?2 WHERE row = ?1")?
            .execute([id, row])?;
    }
    db.prepare_cached("UPDATE identity SET decisions = decisions + 1")?
        .execute([])
        .map(drop)
}

/// A production tag that names a denied digest or a part of a denied index, as far as looks have
/// seen it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedTag {
    /// The tag.
    pub place: TagId,
    /// What it names.
    pub digest: Digest,
}

impl Ledger {
    /// Reads the decisions in force again.
    pub(super) async fn refresh_decisions(&self) -> Result<(), Fault> {
        let read = self.read(in_force).await?;
        self.decisions.adopt(read);
        Ok(())
    }

    /// The approvals of a digest in a repository that ended when their tags were named, of tags
    /// that still name it: moving tags of the digest go by them as well.
    ///
    /// # Errors
    /// Where the ledger cannot be read.
    pub async fn used_approvals(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Vec<Numbered>, Fault> {
        let repository = repository.clone();
        let digest = *digest;
        self.read(move |db| used_approvals(db, &repository, &digest))
            .await
    }

    /// The production tags that are known to name one of the denied digests, or what was chosen for a
    /// platform from one.
    pub async fn denied_in_production(&self) -> Result<Vec<DeniedTag>, Fault> {
        let now = clock::now();
        let in_force = self.in_force().await?;
        let denied: Vec<String> = in_force
            .now(now)
            .filter(|numbered| numbered.kind == Kind::Deny)
            .filter_map(|numbered| numbered.target.digest())
            .map(|digest| digest.to_string())
            .collect();
        if denied.is_empty() {
            return Ok(Vec::new());
        }
        self.read(move |db| {
            let denied = json(&denied)?;
            db.prepare_cached(
                "WITH named AS (
                    SELECT origin, repository, tag, digest FROM reported
                    UNION ALL
                    SELECT origin, repository, tag, digest FROM written WHERE NOT EXISTS (
                        SELECT 1 FROM reported WHERE reported.origin = written.origin
                            AND reported.repository = written.repository AND reported.tag = written.tag))
                SELECT origin, repository, tag, digest FROM named
                    WHERE digest IN (SELECT value FROM json_each(?1))
                        OR (origin, repository, digest) IN (SELECT origin, repository, digest
                            FROM chosen WHERE whole IN (SELECT value FROM json_each(?1)))
                ORDER BY 1, 2, 3",
            )?
            .query_map([denied], |row| {
                Ok(DeniedTag {
                    place: TagId {
                        origin: Origin::new(row.get_ref(0)?.as_str()?),
                        repository: parsed(row, 1)?,
                        tag: parsed(row, 2)?,
                    },
                    digest: parsed(row, 3)?,
                })
            })?
            .collect()
        })
        .await
    }
}
