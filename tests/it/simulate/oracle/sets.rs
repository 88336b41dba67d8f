//! Sets, from their text: a fixed tag is named when each member that takes its name has it, a moving
//! tag when it names one common fixed tag in each. A set of which a part was named is torn: it is
//! reported and held, and moving tags go back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use blobferry::oci::Digest;

use super::super::guards::{Guarded, TornSet};
use super::super::trace::{By, Entry, Event, Place, Rules};
use super::{LATELY, Oracle, is_companion};

/// What members name may have been so this long ago: after five minutes a naming is torn, and what a
/// member has passed holds for another.
const NAMING: Duration = Duration::from_secs(420);

/// All sets that are torn at some time: the trace has it a moment after it was so.
pub(super) fn torn(entries: &[Entry]) -> Vec<(Duration, TornSet)> {
    let torn = entries.iter().filter_map(|entry| match &entry.event {
        Event::Guard(Guarded::Torn(torn)) => Some((entry.at, torn.clone())),
        _ => None,
    });
    torn.collect()
}

/// Where a member has a tag.
struct MemberTag {
    rules: Rules,
    source: Place,
    destination: Place,
}

/// The members of a set that take a tag; none where it has fewer than two routes.
fn members(all: &[Rules], set: &Arc<str>, tag: &Arc<str>) -> Vec<MemberTag> {
    let of_set = all.iter().filter(|rules| rules.set.as_ref() == Some(set));
    let routes: BTreeSet<&Arc<str>> = of_set.clone().map(|rules| &rules.route).collect();
    if routes.len() < 2 {
        return Vec::new();
    }
    let at = |(registry, repository): &(Arc<str>, Arc<str>)| Place {
        registry: registry.clone(),
        repository: repository.clone(),
        tag: tag.clone(),
    };
    let takes = of_set.filter(|rules| rules.takes(tag));
    takes
        .map(|rules| MemberTag {
            rules: rules.clone(),
            source: at(&rules.source),
            destination: at(&rules.destination),
        })
        .collect()
}

fn is_moving(members: &[MemberTag], tag: &str) -> bool {
    members.iter().any(|member| member.rules.is_moving(tag))
}

impl Oracle {
    /// A tag is written that may be part of a set.
    pub(super) fn judge_set(&mut self, process: u32, rules: &Rules, place: &Place, digest: Digest) {
        let Some(set) = &rules.set else { return };
        let in_force = self.rules.get(&process).map(Vec::as_slice);
        let mut members = members(in_force.unwrap_or_default(), set, &place.tag);
        if members.is_empty() {
            return;
        }
        if let Some(id) = self.holds_torn(set, &place.tag, &members) {
            let text = format!("decision {id} holds the set, which is torn");
            self.find("a torn set is held", Some(place), text);
        }
        // What was judged before a reload may still be named.
        let former = self.former.get(&process).into_iter().flatten();
        let former: Vec<Rules> = former.cloned().collect();
        let always_takes = |member: &MemberTag| {
            let mut same = former.iter().filter(|rules| {
                rules.source == member.rules.source && rules.destination == member.rules.destination
            });
            same.all(|rules| rules.takes(&place.tag) && rules.set.as_ref() == Some(set))
        };
        // A naming that began while the tag was fixed goes on after a reload.
        let was_fixed = former
            .iter()
            .any(|rules| rules.set.as_ref() == Some(set) && !rules.is_moving(&place.tag));
        let moving = is_moving(&members, &place.tag);
        members.retain(always_takes);
        if !moving {
            self.judge_presence(&members, place);
        } else if !was_fixed {
            self.judge_common_version(&members, place, digest);
        }
    }

    /// Each member has the fixed tag.
    fn judge_presence(&mut self, members: &[MemberTag], place: &Place) {
        let since = self.at.saturating_sub(NAMING);
        let is_there = |member: &&MemberTag| {
            let sides = [&member.source, &member.destination];
            let mut named = sides.into_iter().map(|side| self.named_since(side, since));
            named.any(|named| !named.is_empty())
        };
        let missing = members.iter().find(|member| !is_there(member));
        if let Some(missing) = missing {
            let text = format!("{} does not have it", missing.rules.route);
            self.find("a set is named when it is complete", Some(place), text);
        }
    }

    /// Each member names one common fixed tag.
    fn judge_common_version(&mut self, members: &[MemberTag], place: &Place, digest: Digest) {
        let since = self.at.saturating_sub(NAMING);
        let versions = members.iter().map(|member| {
            let mut named = match member.destination == *place {
                true => BTreeSet::from([digest]),
                false => self.named_since(&member.source, since),
            };
            if member.destination != *place {
                named.extend(self.named_since(&member.destination, since));
            }
            self.versions_of(member, &named, since)
        });
        let common = versions.reduce(|common, versions| &common & &versions);
        // Without a member that took the tag all along, nothing is known.
        if common.is_some_and(|common| common.is_empty()) {
            let text = "its members have no fixed tag in common".to_owned();
            self.find("a moving tag of a set names one version", Some(place), text);
        }
    }

    /// The fixed tags of production that have named one of these digests since.
    fn versions_of(
        &self,
        member: &MemberTag,
        digests: &BTreeSet<Digest>,
        since: Duration,
    ) -> BTreeSet<Arc<str>> {
        let rules = &member.rules;
        let here = self
            .truth
            .keys()
            .filter(|place| place.is_in(&rules.destination));
        let fixed = here.filter(|place| rules.takes(&place.tag) && !rules.is_moving(&place.tag));
        let fixed = fixed.filter(|place| !is_companion(&place.tag));
        let named = fixed.filter(|place| !self.named_since(place, since).is_disjoint(digests));
        named.map(|place| place.tag.clone()).collect()
    }

    /// What a tag has named since a time.
    pub(super) fn named_since(&self, place: &Place, since: Duration) -> BTreeSet<Digest> {
        let changes = self.truth.get(place).map(Vec::as_slice);
        let changes = changes.unwrap_or_default().iter();
        let later = changes.filter(|change| change.at > since);
        let later = later.filter_map(|change| change.to);
        later.chain(self.named_at(place, since)).collect()
    }

    /// The hold of a torn set, where it is surely in force.
    fn holds_torn(&self, set: &Arc<str>, tag: &Arc<str>, members: &[MemberTag]) -> Option<u64> {
        let torn = self.torn_of(set, tag).filter(|(at, _)| *at <= self.at);
        let mut firm = torn.filter(|(at, torn)| !self.may_be_mended(*at, torn, members));
        firm.next().map(|(_, torn)| torn.id)
    }

    fn torn_of<'o>(
        &'o self,
        set: &'o Arc<str>,
        tag: &'o Arc<str>,
    ) -> impl Iterator<Item = (Duration, &'o TornSet)> {
        let all = self.torn.iter().map(|(at, torn)| (*at, torn));
        all.filter(move |(_, torn)| torn.set == *set && torn.tag == *tag)
    }

    /// Whether the hold of a torn set may be over: by a release, with a lost ledger, or since staging
    /// names something else.
    fn may_be_mended(&self, at: Duration, torn: &TornSet, members: &[MemberTag]) -> bool {
        let since = at.saturating_sub(LATELY);
        let has_moved = |member: &MemberTag| {
            let named = self.named_since(&member.source, since);
            named.iter().any(|named| !torn.staging.contains(named))
        };
        self.guards.may_be_released(torn.id)
            || self.lost.is_some_and(|lost| lost >= since)
            || members.iter().any(has_moved)
    }

    /// Whether a tag may go back to a digest since its set is torn.
    pub(super) fn is_way_back(&self, place: &Place, digest: Digest) -> bool {
        self.ways_back(place)
            .any(|(_, previous)| previous == digest)
    }

    /// The ways back of a tag: from a digest to the one before.
    fn ways_back(&self, place: &Place) -> impl Iterator<Item = (Digest, Digest)> {
        let known = self.torn.iter();
        let known = known.filter(|(at, torn)| torn.goes_back && *at <= self.at + LATELY);
        let moves = known.flat_map(|(_, torn)| &torn.moves);
        moves.filter_map(move |(moved, digest, previous)| {
            (*moved == *place).then_some((*digest, (*previous)?))
        })
    }

    /// Whether a tag of the repository goes back: what travels with its image goes along.
    pub(super) fn goes_back_beside(&self, process: u32, place: &Place) -> bool {
        let known = self.torn.iter().filter(|(at, _)| *at <= self.at + LATELY);
        let mut moves = known.flat_map(|(_, torn)| &torn.moves);
        let is_beside = |moved: &Place| {
            (&moved.registry, &moved.repository) == (&place.registry, &place.repository)
        };
        moves.any(|(moved, ..)| is_beside(moved))
            || self.guards.is_rolling_back_beside(process, place)
    }

    /// A tag goes back: only what the set moved.
    pub(super) fn judge_way_back(&mut self, process: u32, place: &Place, digest: Digest) {
        let Some(view) = self.judge_production(process, place) else {
            return;
        };
        let is_its = self
            .ways_back(place)
            .any(|(from, to)| to == digest && view.digest == Some(from));
        let mut here = self.rules.get(&process).into_iter().flatten();
        let is_forward = here.any(|rules| {
            let leads_here = rules.leads_to(&place.registry, &place.repository);
            leads_here && self.is_staged(rules, place, digest)
        });
        if !is_its && !is_forward {
            let text = "production names something else than what the set moved it to".to_owned();
            self.find(
                "a torn set takes back what it moved alone",
                Some(place),
                text,
            );
        }
    }

    /// Whether staging has named the digest of late: then a look may promote it.
    fn is_staged(&self, rules: &Rules, place: &Place, digest: Digest) -> bool {
        let source = Place {
            registry: rules.source.0.clone(),
            repository: rules.source.1.clone(),
            tag: place.tag.clone(),
        };
        self.named_since(&source, self.at.saturating_sub(NAMING))
            .contains(&digest)
    }

    /// Whether all members of a tag's set are named in the end, or are due.
    pub(super) fn is_set_complete(&self, rules: &Rules, source: &Place) -> bool {
        let Some(set) = &rules.set else { return true };
        let members = members(self.last_rules(), set, &source.tag);
        if members.is_empty() {
            return true;
        }
        let mut torn = self.torn_of(set, &source.tag);
        if torn.any(|(at, torn)| !self.may_be_mended(at, torn, &members)) {
            return false;
        }
        let is_ready = |member: &MemberTag| {
            let staging = self.now(&member.source);
            let is_equal = staging.is_some() && staging == self.now(&member.destination);
            match is_equal {
                true => self.is_surely_known(&member.destination),
                false => self.why_due(&member.rules, &member.source).is_some(),
            }
        };
        let moving = is_moving(&members, &source.tag);
        members.iter().all(is_ready) && (!moving || self.has_common_version(&members))
    }

    /// Whether the ledger surely knows what production names.
    fn is_surely_known(&self, place: &Place) -> bool {
        let known = self.ledger.get(place);
        known.is_some_and(|known| {
            known.written.is_some() && known.written == self.now(place) && known.maybe.is_empty()
        })
    }

    fn has_common_version(&self, members: &[MemberTag]) -> bool {
        let versions = members.iter().map(|member| {
            let named = self.now(&member.source).into_iter().collect();
            let tags = self.versions_of(member, &named, self.at);
            let known = tags.into_iter().filter(|tag| {
                let place = Place {
                    tag: tag.clone(),
                    ..member.destination.clone()
                };
                self.is_surely_known(&place)
            });
            known.collect::<BTreeSet<_>>()
        });
        let common = versions.reduce(|common, versions| &common & &versions);
        common.is_some_and(|common| !common.is_empty())
    }

    /// What is left of sets after a calm time.
    pub(super) fn finish_sets(&mut self, all: &[Rules]) {
        let tags: BTreeSet<Arc<str>> = self.truth.keys().map(|place| place.tag.clone()).collect();
        let names: BTreeSet<&Arc<str>> =
            all.iter().filter_map(|rules| rules.set.as_ref()).collect();
        for set in names {
            for tag in tags.iter().filter(|tag| !is_companion(tag)) {
                let members = members(all, set, tag);
                self.finish_ways_back(set, tag, &members);
                self.finish_moves(set, tag, &members);
                self.finish_torn(set, tag, &members);
            }
        }
    }

    /// The moving tags of a torn set have gone back.
    fn finish_ways_back(&mut self, set: &Arc<str>, tag: &Arc<str>, members: &[MemberTag]) {
        let is_clean = self.lost.is_none();
        let torn = self.torn_of(set, tag).filter(|(_, torn)| torn.goes_back);
        let firm = torn.filter(|(at, torn)| is_clean && !self.may_be_mended(*at, torn, members));
        let moves = firm.flat_map(|(_, torn)| &torn.moves);
        let stays = moves.filter(|(place, digest, previous)| {
            let leads_here = members.iter().any(|member| member.destination == *place);
            // What was there before may be gone.
            let here = (place.registry.clone(), place.repository.clone());
            let is_kept = !self.collected.contains_key(&here);
            let may_go = previous.filter(|_| is_kept).is_some_and(|previous| {
                !self.guards.may_be_denied(previous) && !self.hopeless.contains(&(None, previous))
            });
            let is_ours = self.truth.get(place).is_some_and(|changes| {
                let person = changes.iter().filter(|change| change.by == By::Person);
                person.count() == 0
            });
            leads_here && may_go && is_ours && self.now(place) == Some(*digest)
        });
        let stays: Vec<Place> = stays.map(|(place, ..)| place.clone()).collect();
        for place in stays {
            let text = "it still names what the set moved it to".to_owned();
            self.find("moving tags of a torn set go back", Some(&place), text);
        }
    }

    /// A tag of a set moves as often as there is a reason to, not forward and back.
    fn finish_moves(&mut self, set: &Arc<str>, tag: &Arc<str>, members: &[MemberTag]) {
        let torn = self.torn_of(set, tag).count();
        let other = self.guards.asks + self.kills + self.reloads;
        let staged: usize = members
            .iter()
            .map(|member| self.truth.get(&member.source).map_or(0, Vec::len))
            .sum();
        if torn > staged + other {
            let text = format!("{torn} times, and staging moved {staged} times");
            self.find("a set is torn once for each reason", None, text);
        }
        let often: Vec<(Place, usize, usize)> = members
            .iter()
            .filter_map(|member| {
                let changes = self.truth.get(&member.destination)?;
                let ours = moves_by_processes(changes);
                let theirs = changes.iter().filter(|change| change.by == By::Person);
                let staged = self.truth.get(&member.source).map_or(0, Vec::len);
                let most = staged + theirs.count() + 2 * torn + other;
                (ours > most).then(|| (member.destination.clone(), ours, most))
            })
            .collect();
        for (place, ours, most) in often {
            let text = format!("it moved {ours} times, and {most} moves are explained");
            self.find("a tag of a set does not flap", Some(&place), text);
        }
    }

    /// A set is reported where one member was named and another is refused for good.
    fn finish_torn(&mut self, set: &Arc<str>, tag: &Arc<str>, members: &[MemberTag]) {
        let is_clean = self.lost.is_none() && self.guards.asks + self.reloads == 0;
        if !is_clean || self.torn_of(set, tag).next().is_some() || is_moving(members, tag) {
            return;
        }
        let named = members.iter().find(|member| {
            let changes = self.truth.get(&member.destination).map(Vec::as_slice);
            let changes = changes.unwrap_or_default();
            !changes.is_empty()
                && changes.iter().all(|change| change.by != By::Person)
                && self.now(&member.source) == self.now(&member.destination)
        });
        let refused = members.iter().find(|member| {
            let staging = self.now(&member.source);
            let is_other = staging.is_some() && staging != self.now(&member.destination);
            is_other && self.closed.contains(&member.destination)
        });
        if let Some((named, refused)) = named.zip(refused) {
            let text = format!("{} is refused at {}", tag, refused.rules.route);
            self.find("a torn set is reported", Some(&named.destination), text);
        }
    }
}

/// How often processes have let a tag name another digest.
fn moves_by_processes(changes: &[super::Change]) -> usize {
    let before = changes.iter().map(|change| change.to);
    let before = std::iter::once(None).chain(before);
    let moves = changes.iter().zip(before);
    moves
        .filter(|(change, before)| change.by != By::Person && change.to != *before)
        .count()
}
