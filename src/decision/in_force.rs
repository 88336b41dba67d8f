//! The decisions in force, and what they say about naming a tag.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Decision, Kind, SetName, Target};
use crate::endpoint::Origin;
use crate::job::{Outcome, TagId};
use crate::oci::Digest;

/// A decision with its number in the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Shape")]
pub struct Numbered {
    /// The number of its row.
    pub id: u64,
    /// When it was recorded.
    pub at: Timestamp,
    /// What it orders.
    pub kind: Kind,
    /// What was recorded.
    #[serde(flatten)]
    pub decision: Decision,
    /// What it is about.
    #[serde(skip)]
    pub target: Target,
}

/// A decision as JSON.
#[derive(Deserialize)]
struct Shape {
    id: u64,
    at: Timestamp,
    kind: Kind,
    #[serde(flatten)]
    decision: Decision,
}

impl From<Shape> for Numbered {
    fn from(shape: Shape) -> Numbered {
        Numbered::new(shape.id, shape.at, shape.kind, shape.decision)
    }
}

impl Numbered {
    /// A recorded decision.
    pub fn new(id: u64, at: Timestamp, kind: Kind, decision: Decision) -> Numbered {
        // A target that a later version wrote is unknown here; covering everything is the safe side.
        let target = decision.target.parse().unwrap_or(Target::Everything);
        let origin = decision.origin.as_deref().map(Origin::new);
        Numbered {
            id,
            at,
            kind,
            target: target.at(origin),
            decision,
        }
    }

    fn is_rollback_of(&self, place: &TagId) -> bool {
        self.kind == Kind::Rollback && self.target.is_tag(place)
    }

    /// Whether it keeps a tag from being named.
    pub fn stops(&self, candidate: &Candidate) -> bool {
        match self.kind {
            Kind::Deny => candidate.is_covered(&self.target),
            Kind::Hold => candidate.rollback.is_none() && candidate.is_covered(&self.target),
            Kind::Rollback => {
                candidate.rollback.is_none() && self.keeps_out(&candidate.place, &candidate.digest)
            }
            // A release of the accept that it goes by.
            Kind::Release => candidate
                .accepted
                .is_some_and(|accept| self.decision.ends.contains(&accept)),
            Kind::Approve | Kind::Accept => false,
        }
    }

    /// Whether it is a rollback of this tag that keeps the digest out.
    fn keeps_out(&self, place: &TagId, digest: &Digest) -> bool {
        self.kind == Kind::Rollback
            && self.target.is_tag(place)
            && self.decision.keeps_out.contains(digest)
    }

    /// Whether it is in force. While our clock is off that of a registry that it is about, approvals
    /// alone end.
    pub fn holds(&self, is_clock_off: bool, now: Timestamp) -> bool {
        let is_clock_off = is_clock_off && self.kind != Kind::Approve;
        !self.decision.has_expired(expiry_time(is_clock_off, now))
    }

    /// Whether it is over once its tag names a digest by our hand.
    pub fn is_used_by(&self, named: &Digest) -> bool {
        match self.kind {
            Kind::Accept => true,
            Kind::Approve => {
                self.decision.despite.is_empty() && self.decision.digest == Some(*named)
            }
            Kind::Hold | Kind::Deny | Kind::Rollback | Kind::Release => false,
        }
    }

    /// Whether it is a rollback or an approval of a tag that is over once staging names this digest.
    /// A rollback outlives that staging goes back as well.
    pub fn is_outlived_by(&self, staging: &Digest) -> bool {
        let is_about = self.decision.digest == Some(*staging);
        match self.kind {
            Kind::Rollback => !is_about && !self.decision.keeps_out.contains(staging),
            Kind::Approve => !is_about,
            Kind::Hold | Kind::Deny | Kind::Accept | Kind::Release => false,
        }
    }

    /// Whether it may keep a tag from being named of which only the place is known.
    pub fn may_stop(&self, place: &TagId) -> bool {
        match (self.kind, &self.target) {
            (Kind::Hold | Kind::Deny, Target::Route(_) | Target::Set(..) | Target::Digest(_)) => {
                true
            }
            (Kind::Hold | Kind::Deny, target) => target.covers(&[], "", place),
            _ => false,
        }
    }

    /// `held by user:alice until …: reason (decision 12)`.
    pub fn reason(&self, verb: &str, now: Timestamp) -> String {
        let actor = &self.decision.actor;
        let until = self.decision.until;
        let until = until.map_or_else(String::new, |until| format!(" until {until}"));
        let said = actor.remarks.said();
        let about = self.decision.shown_target();
        let is_doubtful = now == expiry_time(true, now) && self.decision.until.is_some();
        let doubt = match is_doubtful {
            true => "; it does not end while our clock is more than 60 s off the destination's",
            false => "",
        };
        format!(
            "{about} is {verb} by {actor}{until}{said} (decision {}){doubt}",
            self.id
        )
    }
}

/// A tag that is about to be named.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The routes that lead to it.
    pub routes: Arc<[Arc<str>]>,
    /// The name of its registry in the config.
    pub registry: Arc<str>,
    /// The tag.
    pub place: TagId,
    /// The tag of a set that it is part of, or that its image is.
    pub set: Option<SetName>,
    /// The tag of the image that this one travels with.
    pub beside: Option<TagId>,
    /// What it is about to name.
    pub digest: Digest,
    /// The index from which it was chosen for a platform.
    pub index: Option<Digest>,
    /// The rollback that names it: holds do not stop that, its end does.
    pub rollback: Option<u64>,
    /// The accept without which it is not named.
    pub accepted: Option<u64>,
    /// The digests of all manifests, configs and layers of that. `None`: not known.
    pub contents: Option<Arc<HashSet<Digest>>>,
    /// Our clock is off the destination's: no decision about the tag expires.
    pub is_clock_off: bool,
}

impl Candidate {
    fn has(&self, digest: &Digest) -> bool {
        let contents = self.contents.as_ref();
        self.digest == *digest || contents.is_some_and(|contents| contents.contains(digest))
    }

    fn is_covered(&self, target: &Target) -> bool {
        match target {
            Target::Digest(digest) => self.has(digest),
            Target::Set(..) => self
                .set
                .as_ref()
                .is_some_and(|set| target.covers_in_set(set)),
            _ => [Some(&self.place), self.beside.as_ref()]
                .into_iter()
                .flatten()
                .any(|place| target.covers(&self.routes, &self.registry, place)),
        }
    }
}

/// Why a tag is not named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// What that comes to: refused or held.
    pub outcome: Outcome,
    /// All reasons, the deciding one first.
    pub reasons: Vec<String>,
}

impl Block {
    /// The same with the reasons of another block that it does not have. Its own decide the result.
    pub fn and(mut self, other: Block) -> Block {
        for reason in other.reasons {
            if !self.reasons.contains(&reason) {
                self.reasons.push(reason);
            }
        }
        self
    }
}

/// Whether a tag may be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Clear,
    /// It may not.
    Blocked(Block),
    /// The job plans again: what the image consists of has to be known first, or the accept that it
    /// goes by is over.
    Unknown,
}

/// The time by which decisions expire: while our clock is off, none does.
pub fn expiry_time(is_clock_off: bool, now: Timestamp) -> Timestamp {
    if is_clock_off { Timestamp::MIN } else { now }
}

/// The decisions in force at some time.
#[derive(Clone, Debug, Default)]
pub struct InForce {
    /// Rises with each change.
    pub version: i64,
    /// In the order of their numbers.
    pub decisions: Vec<Numbered>,
    /// Approvals that were used up last: moving tags of their digests go by them as well.
    pub used: Vec<Numbered>,
}

/// Tells whether other decisions are in force than at another time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    version: i64,
    /// Those that have expired since that version.
    expired: usize,
}

impl InForce {
    /// Changes with each decision and with each end of one.
    pub fn revision(&self, now: Timestamp) -> Revision {
        Revision {
            version: self.version,
            expired: self.decisions.len() - self.now(now).count(),
        }
    }

    /// Those that have not expired.
    pub fn now(&self, now: Timestamp) -> impl Iterator<Item = &Numbered> {
        self.decisions
            .iter()
            .filter(move |numbered| !numbered.decision.has_expired(now))
    }

    /// Whether any is about a digest: then what an image consists of matters.
    pub fn is_about_digests(&self, now: Timestamp) -> bool {
        self.now(now)
            .any(|numbered| matches!(numbered.target, Target::Digest(_)))
    }

    /// The denial of a digest.
    pub fn denial(&self, digest: &Digest, now: Timestamp) -> Option<&Numbered> {
        self.now(now).find(|numbered| {
            numbered.kind == Kind::Deny && numbered.target == Target::Digest(*digest)
        })
    }

    /// The digests that are denied.
    pub fn denials(&self, now: Timestamp) -> impl Iterator<Item = &Digest> {
        self.now(now).filter_map(|numbered| match &numbered.target {
            Target::Digest(digest) if numbered.kind == Kind::Deny => Some(digest),
            _ => None,
        })
    }

    /// Why a denial keeps content from being carried, if one does.
    pub fn denied<'d>(
        &self,
        digests: impl IntoIterator<Item = &'d Digest>,
        now: Timestamp,
    ) -> Option<Block> {
        let denials = digests
            .into_iter()
            .filter_map(|digest| self.denial(digest, now));
        let mut reasons: Vec<(u64, String)> = denials
            .map(|numbered| (numbered.id, numbered.reason("denied", now)))
            .collect();
        reasons.sort();
        reasons.dedup();
        let reasons: Vec<String> = reasons.into_iter().map(|(_, reason)| reason).collect();
        (!reasons.is_empty()).then_some(Block {
            outcome: Outcome::Refused,
            reasons,
        })
    }

    /// Whether the tag may be named now: denials, then holds. An accept acts until its end by our
    /// clock, whatever that is worth.
    pub fn judge(&self, candidate: &Candidate, now: Timestamp) -> Verdict {
        if candidate.accepted.is_some_and(|id| !self.acts(id, now)) {
            return Verdict::Unknown;
        }
        let now = expiry_time(candidate.is_clock_off, now);
        if candidate.contents.is_none() && self.is_about_digests(now) {
            return Verdict::Unknown;
        }
        let denials = self.reasons(Kind::Deny, "denied", candidate, now);
        let mut reasons: Vec<String> = denials.collect();
        let outcome = if reasons.is_empty() {
            Outcome::Held
        } else {
            Outcome::Refused
        };
        reasons.extend(self.reasons(Kind::Hold, "held", candidate, now));
        reasons.extend(self.reasons(Kind::Rollback, "rolled back", candidate, now));
        let ended = candidate.rollback.filter(|id| !self.acts(*id, now));
        reasons.extend(ended.map(|id| format!("the rollback (decision {id}) has ended meanwhile")));
        if reasons.is_empty() {
            return Verdict::Clear;
        }
        Verdict::Blocked(Block { outcome, reasons })
    }

    /// The decisions of a kind that stop a candidate, as reasons.
    fn reasons(
        &self,
        kind: Kind,
        verb: &str,
        candidate: &Candidate,
        now: Timestamp,
    ) -> impl Iterator<Item = String> {
        self.now(now)
            .filter(move |numbered| numbered.kind == kind && numbered.stops(candidate))
            .map(move |numbered| numbered.reason(verb, now))
    }

    /// Whether the decision of a number is in force.
    fn acts(&self, id: u64, now: Timestamp) -> bool {
        self.now(now).any(|one| one.id == id)
    }

    /// Why a rollback keeps a digest out of a tag, if one does.
    pub fn kept_out(&self, place: &TagId, digest: &Digest, now: Timestamp) -> Option<Block> {
        let keeping = self.now(now).filter(|one| one.keeps_out(place, digest));
        let reasons: Vec<String> = keeping.map(|one| one.reason("rolled back", now)).collect();
        (!reasons.is_empty()).then_some(Block {
            outcome: Outcome::Held,
            reasons,
        })
    }

    /// What a tag is to go back to with its torn set, while it still names what the set moved it to.
    pub fn way_back(
        &self,
        place: &TagId,
        production: &Digest,
        now: Timestamp,
    ) -> Option<(u64, Digest)> {
        self.torn(now).find_map(|hold| {
            let torn = hold.decision.torn.as_ref()?;
            Some((hold.id, torn.way_back(place, production)?))
        })
    }

    /// The way out of a rollback, while its tag still names what it replaces.
    pub fn unmoved(&self, place: &TagId, production: &Digest, now: Timestamp) -> Option<String> {
        let id = self
            .now(now)
            .filter(|one| one.is_rollback_of(place))
            .find(|one| one.decision.replaces == Some(*production))?
            .id;
        Some(format!(
            "production still names {production}, which decision {id} replaces: repeat the rollback, or release {id}"
        ))
    }

    /// The decisions about exactly this tag.
    pub fn of_tag(&self, place: &TagId) -> impl Iterator<Item = &Numbered> {
        self.decisions
            .iter()
            .filter(move |one| one.target.is_tag(place))
    }

    /// The holds of torn sets.
    pub fn torn(&self, now: Timestamp) -> impl Iterator<Item = &Numbered> {
        self.now(now)
            .filter(|one| one.kind == Kind::Hold && one.decision.torn.is_some())
    }

    /// The holds of a torn set that are over, because staging names something else for a member.
    pub fn mended(&self, set: &SetName, staging: &Digest, now: Timestamp) -> Vec<&Numbered> {
        self.torn(now)
            .filter(|one| one.target.covers_in_set(set))
            .filter(|one| {
                let torn = one.decision.torn.as_ref();
                torn.is_some_and(|torn| !torn.staging.contains(staging))
            })
            .collect()
    }

    /// The newest rollback of a tag that is in force.
    pub fn rollback_of(&self, place: &TagId, now: Timestamp) -> Option<&Numbered> {
        self.now(now).filter(|one| one.is_rollback_of(place)).last()
    }

    /// The rollbacks of a tag.
    pub fn rollbacks_of(&self, place: &TagId) -> Vec<&Numbered> {
        self.decisions
            .iter()
            .filter(|one| one.is_rollback_of(place))
            .collect()
    }

    /// The accepts of all existing tags of one of these routes.
    pub fn accepts_of_all(
        &self,
        routes: &[Arc<str>],
        now: Timestamp,
    ) -> impl Iterator<Item = &Numbered> {
        self.now(now).filter(move |one| {
            one.decision.all && matches!(&one.target, Target::Route(name) if routes.contains(name))
        })
    }

    /// The accepts of one tag.
    pub fn accepts_of(&self, place: &TagId) -> impl Iterator<Item = &Numbered> {
        self.decisions
            .iter()
            .filter(move |one| one.kind == Kind::Accept && one.target.is_tag(place))
    }

    /// The accept by which a tag goes from production's digest to staging's.
    pub fn accept(
        &self,
        place: &TagId,
        staging: &Digest,
        production: &Digest,
        now: Timestamp,
    ) -> Option<&Numbered> {
        self.accepts_of(place).find(|one| {
            !one.decision.has_expired(now)
                && one.decision.digest == Some(*staging)
                && one.decision.replaces == Some(*production)
        })
    }

    /// When the first of them ends by itself.
    pub fn next_end(&self, now: Timestamp) -> Option<Timestamp> {
        self.now(now)
            .filter_map(|numbered| numbered.decision.until)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Actor, Remarks};

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    fn candidate() -> Candidate {
        let place = TagId {
            origin: Origin::new("https://p.example"),
            repository: "prod-app".parse().unwrap(),
            tag: "v1".parse().unwrap(),
        };
        Candidate {
            routes: Arc::from(["app".into()]),
            registry: "production".into(),
            place,
            set: None,
            beside: None,
            digest: digest("image"),
            index: None,
            rollback: None,
            accepted: None,
            contents: Some(Arc::new([digest("layer")].into())),
            is_clock_off: false,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn in_force(decisions: &[(Kind, &str, Option<i64>)]) -> InForce {
        let numbered = |(n, (kind, text, until)): (usize, &(Kind, &str, Option<i64>))| {
            let remarks = Remarks {
                reason: Some("CVE".parse().unwrap()),
                claimed_actor: None,
            };
            let target = text.parse().unwrap();
            let decision = Decision {
                until: until.map(at),
                ..Decision::about(&target, Actor::named("user:alice").saying(remarks))
            };
            Numbered::new(n as u64 + 1, at(0), *kind, decision)
        };
        InForce {
            version: 1,
            decisions: decisions.iter().enumerate().map(numbered).collect(),
            used: Vec::new(),
        }
    }

    fn reasons(in_force: &InForce, candidate: &Candidate, second: i64) -> usize {
        match in_force.judge(candidate, at(second)) {
            Verdict::Blocked(block) => block.reasons.len(),
            Verdict::Clear => 0,
            Verdict::Unknown => panic!("what it consists of is known"),
        }
    }

    #[test]
    fn what_an_image_consists_of_matters_only_while_a_digest_is_denied() {
        let unknown = Candidate {
            contents: None,
            ..candidate()
        };
        let held = in_force(&[(Kind::Hold, "other", None)]);
        assert_eq!(held.judge(&unknown, at(1)), Verdict::Clear);
        let other = digest("other").to_string();
        let denied = in_force(&[(Kind::Deny, &other, Some(10))]);
        assert_eq!(denied.judge(&unknown, at(9)), Verdict::Unknown);
        assert_eq!(denied.judge(&candidate(), at(9)), Verdict::Clear);
        assert_eq!(denied.judge(&unknown, at(10)), Verdict::Clear);
    }

    #[test]
    fn a_denial_comes_before_a_hold_and_all_reasons_are_told() {
        let layer = digest("layer").to_string();
        let all = in_force(&[
            (Kind::Hold, "prod-app:v1", None),
            (Kind::Deny, &layer, None),
            (Kind::Hold, "route:other", None),
        ]);
        let Verdict::Blocked(block) = all.judge(&candidate(), at(1)) else {
            panic!("it is blocked");
        };
        assert_eq!(block.outcome, Outcome::Refused);
        assert_eq!(
            block.reasons,
            [
                format!("{layer} is denied by user:alice: CVE (decision 2)"),
                "prod-app:v1 is held by user:alice: CVE (decision 1)".to_owned()
            ]
        );
    }

    #[test]
    fn a_hold_covers_what_travels_beside_the_tag_that_it_names() {
        let own = candidate();
        let signature = Candidate {
            place: TagId {
                tag: "sha256-00.sig".parse().unwrap(),
                ..own.place.clone()
            },
            beside: Some(own.place.clone()),
            ..own
        };
        let held = in_force(&[(Kind::Hold, "production/prod-app:v1", None)]);
        assert_eq!(reasons(&held, &signature, 1), 1);
        let other = in_force(&[(Kind::Hold, "production/prod-app:v2", None)]);
        assert_eq!(other.judge(&signature, at(1)), Verdict::Clear);
    }

    #[test]
    fn a_rollback_keeps_digests_out_of_its_tag_and_passes_holds_itself() {
        let mut rolled_back = in_force(&[
            (Kind::Rollback, "prod-app:v1", None),
            (Kind::Hold, "route:app", None),
        ]);
        rolled_back.decisions[0].decision.keeps_out = vec![digest("image")];
        assert_eq!(reasons(&rolled_back, &candidate(), 1), 2);
        let back = Candidate {
            digest: digest("before"),
            rollback: Some(1),
            ..candidate()
        };
        assert_eq!(reasons(&rolled_back, &back, 1), 0);
        let other = TagId {
            tag: "v2".parse().unwrap(),
            ..candidate().place
        };
        let place = candidate().place;
        let kept =
            |place: &TagId, text: &str| rolled_back.kept_out(place, &digest(text), at(1)).is_some();
        assert!(kept(&place, "image") && !kept(&place, "newer") && !kept(&other, "image"));
        rolled_back.decisions[0].decision.digest = Some(digest("before"));
        let outlived = |text: &str| rolled_back.decisions[0].is_outlived_by(&digest(text));
        assert_eq!(
            ["image", "before", "newer"].map(outlived),
            [false, false, true]
        );
        let layer = digest("layer").to_string();
        let denied = in_force(&[
            (Kind::Deny, &layer, None),
            (Kind::Rollback, "prod-app:v1", None),
        ]);
        let bad = Candidate {
            rollback: Some(2),
            ..candidate()
        };
        assert_eq!(reasons(&denied, &bad, 1), 1, "a denial stops a rollback");
        let ended = Candidate {
            rollback: Some(3),
            ..candidate()
        };
        assert_eq!(reasons(&rolled_back, &ended, 1), 1, "its end stops it, too");
    }

    #[test]
    fn a_decision_with_an_end_is_over_then() {
        let held = in_force(&[
            (Kind::Hold, "", Some(10)),
            (Kind::Hold, "prod-app", Some(20)),
        ]);
        let count = |second| reasons(&held, &candidate(), second);
        assert_eq!([9, 10, 20].map(count), [2, 1, 0]);
        let unsure = Candidate {
            is_clock_off: true,
            ..candidate()
        };
        assert_eq!(
            reasons(&held, &unsure, 20),
            2,
            "nothing ends by a wrong clock"
        );
        assert_eq!(held.next_end(at(9)), Some(at(10)));
        assert_eq!(held.next_end(at(20)), None);
    }
}
