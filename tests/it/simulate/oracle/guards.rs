//! What the oracle knows of guards: which decisions are in force, what the service has said, and
//! which orders of people are under way.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use blobferry::oci::Digest;

use super::super::guards::{Accept, Covers, Guarded};
use super::super::trace::{Place, Rules};
use super::{Cell, Oracle, Repository, is_companion};

/// A verdict of the service holds for so long after its answer.
const VERDICT_LASTS: Duration = Duration::from_secs(60);

/// What stands between tags and their names.
#[derive(Default)]
pub(super) struct Guards {
    decisions: BTreeMap<u64, Decided>,
    /// The decisions that a release ends or has ended: its answer may come before theirs.
    released: BTreeSet<u64>,
    /// The newest verdict on each question that a process has asked directly before a tag.
    verdicts: BTreeMap<(u32, Place, Digest), Verdicts>,
    /// When a process was first told that staging names a digest, since the ledger began.
    first_told: BTreeMap<(Repository, Digest), Duration>,
    orders: BTreeMap<u64, Ordered>,
    rollbacks: BTreeMap<u64, RollingBack>,
    /// How often a person has asked for something by a decision or an order: then what was refused
    /// is tried again.
    pub(super) asks: usize,
}

/// By question: whether it passes, and when it was answered.
type Verdicts = BTreeMap<Digest, (bool, Duration)>;

struct Decided {
    covers: Covers,
    /// Its number in the ledger, once it is in force.
    id: Option<u64>,
    /// Nothing has begun to end it.
    is_firm: bool,
    /// It is a rollback, and staging has named something else since.
    is_over: bool,
    /// It is an accept, and production has taken its digest since.
    is_named: bool,
    /// The ledger has that as promoted, too.
    is_used: bool,
    /// When it began.
    began: Duration,
}

/// What a person has ordered.
#[derive(Clone)]
pub(super) struct Ordered {
    process: u32,
    pub(super) source: Place,
    place: Place,
    replace: Option<Digest>,
}

/// A tag that a person rolls back.
struct RollingBack {
    process: u32,
    place: Place,
    to: Digest,
}

impl Ordered {
    /// What an order by hand does to a tag.
    pub(super) fn cell(&self, digest: Digest, production: Option<Digest>) -> Cell {
        match production {
            None => Cell::Promote,
            Some(there) if there == digest => Cell::Equal,
            Some(_) if &*self.place.tag == "latest" => Cell::Promote,
            there if there == self.replace => Cell::Promote,
            Some(_) => Cell::Conflict,
        }
    }
}

impl Guards {
    pub(super) fn take(&mut self, event: &Guarded, at: Duration) {
        let is_asked = matches!(
            event,
            Guarded::Decided { .. }
                | Guarded::Released { .. }
                | Guarded::AllReleased
                | Guarded::Ordered { .. }
                | Guarded::RollingBack { .. }
        );
        self.asks += usize::from(is_asked);
        match event {
            Guarded::Deciding { number, covers } => {
                let decided = Decided {
                    covers: covers.clone(),
                    id: None,
                    is_firm: false,
                    is_over: false,
                    is_named: false,
                    is_used: false,
                    began: at,
                };
                self.decisions.insert(*number, decided);
            }
            Guarded::Decided { number, id } => {
                let is_over = self.released.contains(id);
                if let Some(decided) = self.decisions.get_mut(number) {
                    decided.id = Some(*id);
                    decided.is_firm = !decided.is_over && !is_over;
                }
            }
            Guarded::Releasing { ids } => {
                self.released.extend(ids);
                for decided in self.decisions.values_mut() {
                    decided.is_firm &= !decided.id.is_some_and(|id| ids.contains(&id));
                }
            }
            Guarded::Released { ids } => self
                .decisions
                .retain(|_, decided| !decided.id.is_some_and(|id| ids.contains(&id))),
            Guarded::AllReleased => {
                // What is being decided meanwhile may come before or after.
                self.decisions.retain(|_, decided| decided.id.is_none());
                let deciding = self.decisions.values_mut();
                deciding.for_each(|decided| decided.is_over = true);
            }
            Guarded::Judged {
                process,
                question,
                place,
                digest,
                at_name: true,
                passes,
            } => {
                let about = (*process, place.clone(), *digest);
                let verdicts = self.verdicts.entry(about).or_default();
                verdicts.insert(*question, (*passes, at));
            }
            Guarded::Judged { .. } => {}
            Guarded::Ordered {
                number,
                process,
                source,
                place,
                replace,
            } => {
                let ordered = Ordered {
                    process: *process,
                    source: source.clone(),
                    place: place.clone(),
                    replace: *replace,
                };
                self.orders.insert(*number, ordered);
            }
            Guarded::RollingBack {
                number,
                process,
                place,
                to,
            } => {
                let rolling = RollingBack {
                    process: *process,
                    place: place.clone(),
                    to: *to,
                };
                self.rollbacks.insert(*number, rolling);
            }
            Guarded::OrderEnded { number } => {
                self.orders.remove(number);
                self.rollbacks.remove(number);
            }
            // All of them are read ahead.
            Guarded::Torn(_) => {}
        }
    }

    /// The ledger is lost, and with it what was decided and when digests were first seen.
    pub(super) fn forget(&mut self) {
        self.decisions.clear();
        self.first_told.clear();
    }

    /// The process is gone, and its orders with it.
    pub(super) fn ended(&mut self, process: u32) {
        self.orders.retain(|_, ordered| ordered.process != process);
        self.rollbacks
            .retain(|_, rolling| rolling.process != process);
    }

    /// Staging names an image under a tag: a rollback that neither goes back to it nor keeps it out
    /// is over.
    pub(super) fn named_in_staging(&mut self, destination: &Place, digest: Digest) {
        for decided in self.decisions.values_mut() {
            if let Covers::Rollback(place, kept_out) = &decided.covers {
                decided.is_over |= place == destination && !kept_out.contains(&digest);
                decided.is_firm &= !decided.is_over;
            }
        }
    }

    /// Whether a process may be rolling a tag back to a digest.
    pub(super) fn is_rolling_back(&self, process: u32, place: &Place, digest: Digest) -> bool {
        self.rollbacks.values().any(|rolling| {
            rolling.process == process && rolling.place == *place && rolling.to == digest
        })
    }

    /// Whether a process may be rolling back a tag of the repository: what travels with the image
    /// goes along.
    pub(super) fn is_rolling_back_beside(&self, process: u32, place: &Place) -> bool {
        self.rollbacks.values().any(|rolling| {
            let beside = (&rolling.place.registry, &rolling.place.repository);
            rolling.process == process && beside == (&place.registry, &place.repository)
        })
    }

    /// Whether a person has ordered something of a process in that repository, or rolls a tag back
    /// there.
    pub(super) fn acts_in(&self, process: u32, registry: &str, repository: &str) -> bool {
        let orders = self.orders.values();
        let ordered = orders.map(|order| (order.process, &order.place));
        let rollbacks = self.rollbacks.values();
        let rolled = rollbacks.map(|rolling| (rolling.process, &rolling.place));
        let mut places = ordered.chain(rolled);
        places.any(|(by, place)| {
            by == process && (&*place.registry, &*place.repository) == (registry, repository)
        })
    }

    pub(super) fn told(&mut self, source: Repository, digest: Digest, at: Duration) {
        self.first_told.entry((source, digest)).or_insert(at);
    }

    /// The orders that a process may be carrying out on a tag.
    pub(super) fn orders(&self, process: u32, place: &Place) -> Vec<Ordered> {
        let orders = self.orders.values();
        let found = orders.filter(|order| order.process == process && order.place == *place);
        found.cloned().collect()
    }

    /// Whether a release has ended a decision, or may have.
    pub(super) fn may_be_released(&self, id: u64) -> bool {
        self.released.contains(&id)
    }

    /// Whether an image may be denied.
    pub(super) fn may_be_denied(&self, digest: Digest) -> bool {
        let denied = Covers::Image(digest);
        let mut decisions = self.decisions.values();
        decisions.any(|decided| decided.covers == denied)
    }

    /// Whether a decision may keep a digest from a tag.
    pub(super) fn may_be_held(&self, place: &Place, digest: Digest, route: &str) -> bool {
        let mut decisions = self.decisions.values();
        decisions.any(|decided| covers(&decided.covers, place, digest, Some(route)))
    }

    /// Whether an accept that was not used may be in force, by which a tag goes from one digest to
    /// another.
    pub(super) fn may_accept(&self, place: &Place, digest: Digest, replaces: Digest) -> bool {
        self.accepts(place, digest, replaces).next().is_some()
    }

    /// Since when such an accept is surely in force.
    pub(super) fn accepted_since(
        &self,
        place: &Place,
        digest: Digest,
        replaces: Digest,
    ) -> Option<Duration> {
        let mut firm = self.accepts(place, digest, replaces);
        let firm = firm.find(|decided| decided.is_firm);
        firm.map(|decided| decided.began)
    }

    fn accepts(
        &self,
        place: &Place,
        digest: Digest,
        replaces: Digest,
    ) -> impl Iterator<Item = &Decided> {
        let wanted = Covers::Accept(Accept {
            place: place.clone(),
            digest,
            replaces,
        });
        let unused = self.decisions.values().filter(|decided| !decided.is_used);
        unused.filter(move |decided| decided.covers == wanted)
    }

    /// Production has taken a digest under a tag, by a request that left at that time.
    pub(super) fn named(&mut self, place: &Place, digest: Digest, sent: Duration) {
        for decided in self.accepts_of(place, digest) {
            decided.is_named |= decided.id.is_some() && decided.began < sent;
        }
    }

    /// The ledger has a tag as promoted: what was accepted of it is over.
    pub(super) fn promoted(&mut self, place: &Place, digest: Digest) {
        for decided in self.accepts_of(place, digest) {
            decided.is_used |= decided.is_named;
        }
    }

    fn accepts_of(&mut self, place: &Place, digest: Digest) -> impl Iterator<Item = &mut Decided> {
        self.decisions.values_mut().filter(move |decided| {
            matches!(&decided.covers, Covers::Accept(accept) if accept.place == *place && accept.digest == digest)
        })
    }

    fn firm(&self) -> impl Iterator<Item = &Covers> {
        let firm = self.decisions.values().filter(|decided| decided.is_firm);
        firm.map(|decided| &decided.covers)
    }
}

fn covers(what: &Covers, place: &Place, digest: Digest, route: Option<&str>) -> bool {
    match what {
        Covers::Everything => true,
        Covers::Route(name) => route == Some(&**name),
        Covers::Tag(held) => held == place,
        Covers::Image(denied) => *denied == digest,
        Covers::Rollback(rolled, kept_out) => rolled == place && kept_out.contains(&digest),
        Covers::Accept(_) => false,
    }
}

impl Oracle {
    /// A manifest is written that a denial names.
    pub(super) fn judge_denial(&mut self, place: Option<&Place>, digest: Digest) {
        let denied = Covers::Image(digest);
        if self.guards.firm().any(|covers| *covers == denied) {
            let text = "a denial of it is in force".to_owned();
            self.find("what is denied is not written", place, text);
        }
    }

    /// A tag is written: no decision in force and no gate keeps it from being named.
    pub(super) fn judge_guards(
        &mut self,
        process: u32,
        place: &Place,
        digest: Digest,
        rules: Option<&Rules>,
    ) {
        let route = rules.map(|rules| &*rules.route);
        let is_rolled_back = self.guards.is_rolling_back(process, place, digest)
            || self.is_way_back(place, digest)
            || is_companion(&place.tag) && self.goes_back_beside(process, place);
        let mut firm = self.guards.firm();
        let held = firm.find(|what| {
            // Neither holds nor gates stop a rollback.
            let stops = matches!(what, Covers::Image(_)) || !is_rolled_back;
            stops && covers(what, place, digest, route)
        });
        let held = held.cloned();
        drop(firm);
        if let Some(held) = held {
            let text = format!("{held:?} is in force");
            self.find("what is held or denied is not named", Some(place), text);
        }
        if let Some(rules) = rules.filter(|_| !is_rolled_back && !is_companion(&place.tag)) {
            self.judge_gates(process, place, digest, rules);
        }
    }

    fn judge_gates(&mut self, process: u32, place: &Place, digest: Digest, rules: &Rules) {
        let gates = &rules.gates;
        if !gates.is_open(self.at) {
            let text = format!("its window is {:?}", gates.window);
            self.find("no tag moves while its window is closed", Some(place), text);
        }
        let seen = self.guards.first_told.get(&(rules.source.clone(), digest));
        let age = seen.map_or(Duration::ZERO, |seen| self.at - *seen);
        if gates.min_age.is_some_and(|least| age < least) {
            let text = format!("it was seen {} s ago", age.as_secs());
            self.find("what is too young is not named", Some(place), text);
        }
        if gates.asks {
            let verdicts = self.guards.verdicts.get(&(process, place.clone(), digest));
            let mut newest = verdicts.into_iter().flat_map(BTreeMap::values);
            let holds = |answered: Duration| self.at - answered <= VERDICT_LASTS;
            if !newest.any(|(passes, answered)| *passes && holds(*answered)) {
                let text = format!("the verdicts on it are {verdicts:?}");
                self.find(
                    "what the gate does not pass is not named",
                    Some(place),
                    text,
                );
            }
        }
    }
}
