//! The oracle: reads a trace and says which promises were broken.
//!
//! It knows what the design promises and nothing of how the product keeps it: the table of what
//! happens to a tag, agreement, intents and the rules of naming are written here a second time,
//! from the text. What a process may know of a tag is what answers told it and what its ledger kept
//! over kills.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use blobferry::job::{Drift, Existing, Outcome};
use blobferry::oci::Digest;

mod accepts;
mod backup;
mod forward;
mod guards;
mod observe;
mod sets;

use guards::{Guards, Ordered};

use super::guards::TornSet;
use super::trace::{About, Answer, By, Call, Entry, Event, Operation, Place, Rules};

/// A tag is named by an answer of production that is at most so old.
const PRODUCTION_LASTS: Duration = Duration::from_secs(2);
/// A tag is named by an answer of staging that is at most so old.
const STAGING_LASTS: Duration = Duration::from_secs(10);
/// An answer that took longer says nothing.
const ANSWER_TAKES: Duration = Duration::from_secs(10);
/// So long after a write an answer may show what was there before.
const READS_LAG: Duration = Duration::from_secs(60);
/// What is in the ledger's queue reaches the disk in this time.
const DURABLE: Duration = Duration::from_secs(5);
/// A list that was asked for so long after an answer about a tag is newer than that answer.
const LISTS_LAG: Duration = Duration::from_secs(60);
/// What was told so long ago may still be what a row speaks of.
const LATELY: Duration = Duration::from_secs(5);
/// What was so for this time could have been noticed.
const NOTICED: Duration = Duration::from_secs(30);

/// How long a look searches for a pushed tag that does not show.
const PUSH_SHOWS: Duration = Duration::from_secs(15);
/// A blob is refused for good at most so often in a calm time of less than two hours.
const REFUSED: usize = 4;

/// The promises of a calm time: they are broken until enough of it has passed.
const ARRIVES: &str = "what may be equal is equal in the end";
const FOLLOWS: &str = "referrers that come later arrive";

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub at: Duration,
    /// The promise, in a few words that do not change: mutants and scripts are recognised by it.
    pub promise: &'static str,
    /// What happened instead.
    pub text: String,
    /// The tag that it is about.
    pub place: Option<Place>,
}

/// Reads a trace.
pub fn judge(entries: &[Entry]) -> Vec<Finding> {
    let mut oracle = Oracle {
        torn: sets::torn(entries),
        ..Oracle::default()
    };
    for entry in entries {
        oracle.at = entry.at;
        oracle.take(&entry.event);
    }
    oracle.finish();
    oracle.findings
}

/// Whether a calm world needs no more time.
pub fn is_settled(entries: &[Entry]) -> bool {
    judge(entries)
        .iter()
        .all(|finding| ![ARRIVES, FOLLOWS].contains(&finding.promise))
}

#[derive(Default)]
struct Oracle {
    at: Duration,
    requests: BTreeMap<u64, (Duration, Call)>,
    /// Each registry: whether its lists are always current.
    current_lists: BTreeMap<Arc<str>, bool>,
    rules: BTreeMap<u32, Vec<Rules>>,
    /// The rules before a reload: a look by them may still end.
    former: BTreeMap<u32, Vec<Rules>>,
    alive: BTreeSet<u32>,
    truth: BTreeMap<Place, Vec<Change>>,
    views: BTreeMap<(u32, Place), View>,
    /// What a process was told of a tag before, the newest last.
    told: BTreeMap<(u32, Place), Vec<Told>>,
    /// What was accepted by production under a tag.
    accepted: BTreeSet<(Place, Digest)>,
    lists: BTreeMap<(u32, Repository), List>,
    ledger: BTreeMap<Place, Known>,
    attached: BTreeMap<(Repository, Digest), BTreeMap<Digest, Duration>>,
    hopeless: BTreeSet<(Option<Arc<str>>, Digest)>,
    closed: BTreeSet<Place>,
    /// Registries that take no manifest with a subject.
    plain: BTreeSet<Arc<str>>,
    calm: Option<Duration>,
    uploads: BTreeMap<(Repository, Digest), Uploads>,
    /// How often a repository has forgotten what no tag needs.
    collected: BTreeMap<Repository, usize>,
    guards: Guards,
    /// When a process was told of a push: then what was refused is tried again.
    notices: Vec<Duration>,
    kills: usize,
    /// How often a process was given other rules.
    reloads: usize,
    /// When the ledger was lost last.
    lost: Option<Duration>,
    /// All sets that are torn at some time, and when the ledger said so.
    torn: Vec<(Duration, TornSet)>,
    /// How often the clock was set back.
    set_back: usize,
    /// A registry is sick, or fails at random.
    has_trouble: bool,
    findings: Vec<Finding>,
}

type Repository = (Arc<str>, Arc<str>);

struct Change {
    at: Duration,
    to: Option<Digest>,
    by: By,
}

/// What a tag named by an answer, and when that arrived.
type Told = (Duration, Option<Digest>);

/// Announced writes, and what the tag named then.
type Intents = BTreeSet<(Digest, Option<Digest>)>;

/// What a process was told of a tag.
#[derive(Clone, Copy)]
struct View {
    digest: Option<Digest>,
    sent: Duration,
    arrived: Duration,
}

impl View {
    /// Whether the answer took too long to count, and `known` was asked for after it.
    fn is_discarded_beside(&self, known: &View) -> bool {
        self.arrived - self.sent > ANSWER_TAKES && known.sent >= self.sent
    }
}

/// What a process was told of all tags of a repository.
#[derive(Default)]
struct List {
    sent: Duration,
    arrived: Duration,
    complete: bool,
    tags: BTreeMap<Arc<str>, Option<Digest>>,
}

/// What the ledger may say of a production tag: L.
#[derive(Clone, Default)]
struct Known {
    written: Option<Digest>,
    intents: Intents,
    /// Intents that were sent more than once: an answer is about the last one alone.
    sent_again: BTreeSet<Digest>,
    /// What a kill leaves open.
    maybe: BTreeSet<Digest>,
    /// Production's digest that was reported as drift or existing.
    reported: Option<Digest>,
    /// What both sides named by a list of production, or before the manifest was read: agreed, if
    /// the process went by that.
    uncertain: BTreeSet<Digest>,
    /// Something is agreed, if a look by the rules before a reload still ended.
    may_be_agreed: bool,
    changed: Duration,
    before: Option<(Option<Digest>, Intents)>,
}

impl Known {
    fn is_ours(&self, digest: &Digest) -> bool {
        let may_be = self.maybe.contains(digest) || self.uncertain.contains(digest);
        self.written == Some(*digest) || self.is_intended(digest) || may_be
    }

    fn is_intended(&self, digest: &Digest) -> bool {
        self.intents.iter().any(|(intended, _)| intended == digest)
    }

    /// Whether there is an L. A write that was announced is none while the tag names what it named
    /// before.
    fn is_known_over(&self, production: Option<Digest>) -> bool {
        let may_have_arrived = self.intents.iter().any(|(_, over)| *over != production);
        self.written.is_some() || may_have_arrived || !self.maybe.is_empty()
    }

    fn intends(&mut self, digest: Digest, over: Option<Digest>) {
        if self.is_intended(&digest) {
            self.sent_again.insert(digest);
        }
        self.intents.insert((digest, over));
    }

    /// The registry has refused what was announced: it was not written. A process that is killed
    /// before it keeps that may think otherwise.
    fn refused(&mut self, digest: Digest) {
        if !self.sent_again.contains(&digest) {
            self.intents.retain(|(intended, _)| *intended != digest);
            self.uncertain.insert(digest);
        }
    }

    fn may_be_known(&self) -> bool {
        self.written.is_some() || !self.intents.is_empty() || !self.maybe.is_empty()
    }

    /// Both sides name `digest`. What was to replace it may still arrive, and so may a write of the
    /// last minute.
    fn agreed(&mut self, at: Duration, digest: Digest) {
        let hidden = self.written.filter(|_| at < self.changed + READS_LAG);
        let hidden = hidden.map(|written| (written, Some(digest)));
        let earlier = self.before.iter().flat_map(|(_, intents)| intents);
        let hidden = earlier.copied().find(|intent| Some(*intent) == hidden);
        let open = self.intents.iter().copied();
        let open: Intents = open
            .filter(|(_, over)| *over == Some(digest))
            .chain(hidden)
            .collect();
        self.wrote(at, digest);
        self.intents = open;
    }

    fn wrote(&mut self, at: Duration, digest: Digest) {
        self.before = Some((self.written, std::mem::take(&mut self.intents)));
        self.changed = at;
        self.written = Some(digest);
        self.sent_again.clear();
        self.maybe.clear();
        self.uncertain.clear();
        self.may_be_agreed = false;
        self.reported = None;
    }
}

/// Whether a failure says that nothing was written: the registry asks for time, or will not.
fn is_refusal(class: &str, after: Option<u64>) -> bool {
    after.is_some() || ["auth", "rejected", "not_found"].contains(&class)
}

/// What came of the uploads of one blob to one repository.
#[derive(Default)]
struct Uploads {
    /// Refusals that another try does not mend, with their times.
    refused: Vec<Duration>,
    /// How often it was accepted as a whole.
    accepted: usize,
}

impl Uploads {
    fn refused_since(&self, from: Duration) -> usize {
        self.refused.iter().filter(|at| **at > from).count()
    }
}

/// What the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    Promote,
    Equal,
    Conflict,
    Drift,
    Existing,
}

/// The table of what happens to a tag whose source exists. `ours`: P = L; `known`: there is an L.
pub fn cell(
    moving: bool,
    existing: Existing,
    drift: Drift,
    source: Digest,
    production: Option<Digest>,
    ours: bool,
    known: bool,
) -> Cell {
    let Some(production) = production else {
        return Cell::Promote;
    };
    let over = if moving {
        Cell::Promote
    } else {
        Cell::Conflict
    };
    if production == source {
        Cell::Equal
    } else if ours {
        over
    } else if known {
        if drift == Drift::Restore {
            over
        } else {
            Cell::Drift
        }
    } else if existing == Existing::Adopt {
        over
    } else {
        Cell::Existing
    }
}

/// Whether a tag belongs to another image, by its name.
fn is_companion(tag: &str) -> bool {
    let hex =
        |text: &str| text.len() >= 64 && text.as_bytes()[..64].iter().all(u8::is_ascii_hexdigit);
    tag.strip_prefix("sha256-").is_some_and(hex)
}

impl Oracle {
    fn find(&mut self, promise: &'static str, place: Option<&Place>, text: String) {
        self.findings.push(Finding {
            at: self.at,
            promise,
            text,
            place: place.cloned(),
        });
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::Registry {
                name,
                current_lists,
                takes_artifacts,
                is_steady,
            } => {
                self.has_trouble |= !is_steady;
                self.current_lists.insert(name.clone(), *current_lists);
                if !takes_artifacts {
                    self.plain.insert(name.clone());
                }
            }
            Event::Started { process, ledger } => {
                self.alive.insert(*process);
                if !ledger {
                    self.lost = Some(self.at);
                    self.ledger.clear();
                    self.guards.forget();
                }
            }
            Event::Configured { process, rules } => {
                let former = self.rules.insert(*process, rules.clone());
                self.reloads += usize::from(former.is_some());
                let kept = self.former.entry(*process).or_default();
                kept.extend(former.into_iter().flatten());
            }
            Event::Killed { process } => self.killed(*process),
            Event::Stopped { process } => {
                self.alive.remove(process);
                self.guards.ended(*process);
            }
            Event::Guard(guarded) => self.guards.take(guarded, self.at),
            Event::SetBack => self.set_back += 1,
            Event::Notified => self.notices.push(self.at),
            Event::Collected {
                registry,
                repository,
            } => {
                let of = (registry.clone(), repository.clone());
                *self.collected.entry(of).or_default() += 1;
            }
            Event::Sent { request, call } => {
                self.requests.insert(*request, (self.at, call.clone()));
                self.sent(call);
            }
            Event::Answered { request, answer } => self.answered(*request, answer),
            Event::Moved { place, to, by, .. } => self.moved(place, *to, *by),
            Event::Attached {
                registry,
                repository,
                subject,
                referrer,
            } => {
                let at = self.at;
                let of = (registry.clone(), repository.clone());
                self.attached
                    .entry((of, *subject))
                    .or_default()
                    .entry(*referrer)
                    .or_insert(at);
            }
            Event::Incomplete { request, missing } => self.incomplete(*request, missing),
            Event::Settled {
                process,
                source,
                destination,
                result,
                digest,
                ..
            } => self.settled(*process, source, destination, *result, *digest),
            Event::Hopeless { registry, digest } => {
                self.hopeless.insert((registry.clone(), *digest));
            }
            Event::Closed { place } => {
                self.closed.insert(place.clone());
            }
            Event::Calm => self.calm = Some(self.at),
            Event::Left { registry, sessions } => {
                let text = format!("{sessions} at {registry}");
                self.find("no upload session is left", None, text);
            }
            Event::Held { process } => {
                let text = format!("process {process} has ended with some");
                self.find("no permit and no claim is left", None, text);
            }
            Event::Restless {
                requests,
                explained,
            } => {
                let text = format!("{requests} were sent, and polls explain {explained}");
                self.find("requests in a calm time are bounded", None, text);
            }
            Event::Abandoned { .. } | Event::BodyEnded { .. } | Event::Person { .. } => {}
        }
    }

    /// What the ledger learnt in the last moment may be lost with the process.
    fn killed(&mut self, process: u32) {
        self.leave_intents(process);
        self.alive.remove(&process);
        self.guards.ended(process);
        self.kills += 1;
        let at = self.at;
        for known in self
            .ledger
            .values_mut()
            .filter(|known| known.changed + DURABLE > at)
        {
            if let Some((written, intents)) = known.before.take() {
                known.maybe.extend(written);
                known
                    .maybe
                    .extend(intents.into_iter().map(|(intended, _)| intended));
            }
        }
    }

    /// What a process was about to name may stand in its ledger as announced.
    fn leave_intents(&mut self, process: u32) {
        let rules = self.rules.get(&process).into_iter().flatten();
        for rules in rules {
            let of_process = self.views.iter().filter(|((of, _), _)| *of == process);
            for ((_, place), view) in of_process {
                let pair = pair_of_source(rules, place).zip(view.digest);
                if let Some(((_, destination), digest)) = pair {
                    let known = self.ledger.entry(destination).or_default();
                    if known.written != Some(digest) {
                        known.uncertain.insert(digest);
                    }
                }
            }
        }
    }

    fn sent(&mut self, call: &Call) {
        self.judge_observing(call);
        if let (Operation::PutManifest, Some(digest)) = (call.operation, call.content) {
            self.judge_denial(None, digest);
        }
        let (Operation::PutManifest, About::Tag(tag), Some(digest)) =
            (call.operation, &call.about, call.content)
        else {
            return;
        };
        let place = call.place(tag);
        if !self.alive.contains(&call.process) {
            self.find(
                "a process that is gone sends nothing",
                Some(&place),
                format!("process {} names it", call.process),
            );
        }
        let rules = self.rules_of(call.process, &place);
        self.judge_guards(call.process, &place, digest, rules.as_ref());
        if is_companion(tag) {
            self.judge_companion(call.process, &place, digest)
        } else {
            self.judge_name(call.process, &place, digest)
        }
        let over = self
            .evidence(call.process, &place)
            .and_then(|view| view.digest);
        self.ledger.entry(place).or_default().intends(digest, over);
    }

    /// The newest that a process was told of a production tag.
    fn evidence(&self, process: u32, place: &Place) -> Option<View> {
        let told = self.views.get(&(process, place.clone())).copied();
        let lists = self
            .current_lists
            .get(&place.registry)
            .copied()
            .unwrap_or(false);
        let list = self
            .lists
            .get(&(process, (place.registry.clone(), place.repository.clone())));
        let absent = list
            .filter(|list| lists && list.complete && !list.tags.contains_key(&place.tag))
            .map(|list| View {
                digest: None,
                sent: list.sent,
                arrived: list.arrived,
            });
        [told, absent]
            .into_iter()
            .flatten()
            .max_by_key(|view| view.arrived)
    }

    /// The newest that a process was told of a staging tag; a current list that names digests will
    /// do.
    fn source_evidence(&self, process: u32, place: &Place) -> Option<View> {
        let told = self.views.get(&(process, place.clone())).copied();
        let lists = self
            .current_lists
            .get(&place.registry)
            .copied()
            .unwrap_or(false);
        let list = self
            .lists
            .get(&(process, (place.registry.clone(), place.repository.clone())));
        let listed = list.filter(|list| lists && list.complete).and_then(|list| {
            let digest = (*list.tags.get(&place.tag)?)?;
            Some(View {
                digest: Some(digest),
                sent: list.sent,
                arrived: list.arrived,
            })
        });
        [told, listed]
            .into_iter()
            .flatten()
            .max_by_key(|view| view.arrived)
    }

    fn rules_of(&self, process: u32, place: &Place) -> Option<Rules> {
        let rules = self.rules.get(&process)?.iter();
        let leads_here = |rules: &&Rules| rules.leads_to(&place.registry, &place.repository);
        rules
            .filter(leads_here)
            .find(|rules| is_companion(&place.tag) || rules.takes(&place.tag))
            .cloned()
    }

    fn judge_production(&mut self, process: u32, place: &Place) -> Option<View> {
        let Some(view) = self.evidence(process, place) else {
            self.find(
                "production is asked before a tag is named",
                Some(place),
                "it was never asked about this tag".into(),
            );
            return None;
        };
        let age = self.at - view.arrived;
        if age > PRODUCTION_LASTS {
            let text = format!("production's answer was {} ms old", age.as_millis());
            self.find(
                "production's answer is at most 2 s old when a tag is named",
                Some(place),
                text,
            );
        }
        if view.arrived - view.sent > ANSWER_TAKES {
            let text = format!(
                "production's answer took {} ms",
                (view.arrived - view.sent).as_millis()
            );
            self.find(
                "an answer that took over 10 s names nothing",
                Some(place),
                text,
            );
        }
        Some(view)
    }

    fn judge_name(&mut self, process: u32, place: &Place, digest: Digest) {
        if self.guards.is_rolling_back(process, place, digest) {
            self.judge_production(process, place);
            return;
        }
        if self.is_way_back(place, digest) {
            self.judge_way_back(process, place, digest);
            return;
        }
        if let Some(rules) = self.rules_of_backup(process, place) {
            self.judge_backup(process, &rules, place, digest);
            return;
        }
        let orders = self.guards.orders(process, place);
        if !orders.is_empty() {
            return self.judge_orders(process, place, digest, &orders);
        }
        let Some(rules) = self.rules_of(process, place) else {
            self.find(
                "only tags that the rules take are named",
                Some(place),
                "no rule in force takes it".into(),
            );
            return;
        };
        let source = Place {
            registry: rules.source.0.clone(),
            repository: rules.source.1.clone(),
            tag: place.tag.clone(),
        };
        self.judge_source(process, place, &source, digest);
        if let Some(view) = self.judge_production(process, place) {
            let moving = rules.is_moving(&place.tag);
            let cell = self.cell_by_rules(&rules, moving, place, digest, view);
            self.judge_versions(&rules, place, digest, view.digest);
            self.judge_set(process, &rules, place, digest);
            self.judge_backed_up(&rules, place, digest, view.digest);
            if self.is_accepted(place, digest, view.digest) {
                return;
            }
            self.judge_cell(place, rules.is_moving(&place.tag), cell);
        }
        if rules.is_moving(&place.tag) {
            self.judge_conflicts(process, &rules, place, digest);
        }
    }

    /// People have ordered it, and the rules may let it happen by themselves.
    fn judge_orders(&mut self, process: u32, place: &Place, digest: Digest, orders: &[Ordered]) {
        let Some(view) = self.judge_production(process, place) else {
            return;
        };
        let cells = orders
            .iter()
            .map(|order| (order.cell(digest, view.digest), order));
        let ordered = cells.min_by_key(|(cell, _)| *cell != Cell::Promote);
        let Some((cell, order)) = ordered else { return };
        self.judge_source(process, place, &order.source, digest);
        let rules = self.rules_of(process, place);
        if let Some(rules) = &rules {
            self.judge_versions(rules, place, digest, view.digest);
            self.judge_set(process, rules, place, digest);
            if &*place.tag == "latest" {
                self.judge_backed_up(rules, place, digest, view.digest);
            }
        }
        let by_rules = rules.map(|rules| {
            let moving = rules.is_moving(&place.tag);
            self.cell_by_rules(&rules, moving, place, digest, view)
        });
        let is_accepted = self.is_accepted(place, digest, view.digest);
        if by_rules != Some(Cell::Promote) && !is_accepted {
            self.judge_cell(place, &*place.tag == "latest", cell);
        }
    }

    fn cell_by_rules(
        &self,
        rules: &Rules,
        moving: bool,
        place: &Place,
        digest: Digest,
        view: View,
    ) -> Cell {
        let known = self.ledger.get(place).cloned().unwrap_or_default();
        let ours = view
            .digest
            .is_some_and(|production| known.is_ours(&production));
        let cell_if = |is_known| {
            let (existing, drift) = (rules.existing, rules.drift);
            cell(moving, existing, drift, digest, view.digest, ours, is_known)
        };
        match cell_if(known.is_known_over(view.digest)) {
            Cell::Existing if known.may_be_agreed => cell_if(true),
            cell => cell,
        }
    }

    fn judge_source(&mut self, process: u32, place: &Place, source: &Place, digest: Digest) {
        match self.source_evidence(process, source) {
            None => self.find(
                "staging is asked before a tag is named",
                Some(place),
                "staging was never asked".into(),
            ),
            Some(view) if view.digest != Some(digest) => self.find(
                "the tag names what staging named last",
                Some(place),
                "staging's last answer was another digest".into(),
            ),
            Some(view) if self.at - view.arrived > STAGING_LASTS => {
                let text = format!(
                    "staging's answer was {} ms old",
                    (self.at - view.arrived).as_millis()
                );
                self.find(
                    "staging's answer is at most 10 s old when a tag is named",
                    Some(place),
                    text,
                );
            }
            Some(_) => {}
        }
    }

    fn judge_cell(&mut self, place: &Place, moving: bool, cell: Cell) {
        let promise = match cell {
            Cell::Promote => return,
            Cell::Equal => "what is equal is not written again",
            Cell::Conflict => "a fixed tag never moves",
            Cell::Drift if !moving => "a fixed tag never moves",
            Cell::Existing if !moving => "a fixed tag never moves",
            Cell::Drift => "what a person changed in production stays",
            Cell::Existing => "what was in production before stays",
        };
        self.find(
            promise,
            Some(place),
            format!("the table says {cell:?}, but it was written"),
        );
    }

    /// A digest that is in conflict under a fixed tag gets no moving tag there.
    fn judge_conflicts(&mut self, process: u32, rules: &Rules, place: &Place, digest: Digest) {
        let repository = |pair: &Repository, place: &Place| {
            pair.0 == place.registry && pair.1 == place.repository
        };
        let fixed: Vec<Place> = self
            .truth
            .keys()
            .filter(|source| repository(&rules.source, source))
            .cloned()
            .collect();
        for source in fixed
            .into_iter()
            .filter(|source| rules.takes(&source.tag) && !rules.is_moving(&source.tag))
        {
            let there = Place {
                tag: source.tag.clone(),
                ..place.clone()
            };
            let learnt = self.learnt(process, rules, place, digest);
            let (Some(staging), Some(production)) =
                (self.noticed(&source, learnt), self.noticed(&there, learnt))
            else {
                continue;
            };
            let ours = self
                .ledger
                .get(&there)
                .is_some_and(|known| known.written == Some(production));
            let is_accepted = self.is_accepted(&there, digest, Some(production));
            if staging == digest && production != digest && ours && !is_accepted {
                let text = format!("the digest is in conflict under {}", source.tag);
                self.find("a digest in conflict gets no moving tag", Some(place), text);
            }
        }
    }

    /// Since when a process has to know the conflicts over the digest of a moving tag: since its
    /// newest look at the source began, or since it saw staging move the tag during that look.
    fn learnt(&self, process: u32, rules: &Rules, place: &Place, digest: Digest) -> Duration {
        let look = self.lists.get(&(process, rules.source.clone()));
        let began = look.map(|look| look.sent).unwrap_or_default();
        let source = Place {
            registry: rules.source.0.clone(),
            repository: rules.source.1.clone(),
            tag: place.tag.clone(),
        };
        let told = self.told.get(&(process, source)).map(Vec::as_slice);
        let told = told.unwrap_or_default();
        let other = told.iter().rposition(|(_, other)| *other != Some(digest));
        let moved = other.filter(|other| told[*other].0 >= began);
        let moved = moved.and_then(|other| told.get(other + 1));
        moved.map_or(began, |(at, _)| *at)
    }

    /// What a tag has named for so long that a process that has learnt it then must know it.
    fn noticed(&self, place: &Place, learnt: Duration) -> Option<Digest> {
        let change = self.truth.get(place)?.last()?;
        let is_long_ago = self.at.saturating_sub(change.at) > NOTICED;
        change.to.filter(|_| is_long_ago && learnt > change.at)
    }

    /// A tag beside an image follows the rules of a moving tag. A list of referrers is made here,
    /// not copied.
    fn judge_companion(&mut self, process: u32, place: &Place, digest: Digest) {
        let Some(view) = self.judge_production(process, place) else {
            return;
        };
        if place.tag.len() == "sha256-".len() + 64 {
            return;
        }
        let known = self.ledger.get(place).cloned().unwrap_or_default();
        let ours = view
            .digest
            .is_some_and(|production| known.is_ours(&production));
        let cell = cell(
            true,
            Existing::Keep,
            Drift::Keep,
            digest,
            view.digest,
            ours,
            known.is_known_over(view.digest),
        );
        self.judge_cell(place, true, cell);
    }

    fn answered(&mut self, request: u64, answer: &Answer) {
        let Some((sent, call)) = self.requests.get(&request).cloned() else {
            return;
        };
        let at = self.at;
        match (call.operation, &call.about, answer) {
            (Operation::Resolve | Operation::Manifest, About::Tag(tag), Answer::Names(digest)) => {
                let place = call.place(tag);
                self.told(
                    call.process,
                    &place,
                    View {
                        digest: *digest,
                        sent,
                        arrived: at,
                    },
                );
                self.compare(call.process, &place, call.operation == Operation::Manifest);
            }
            (Operation::PutManifest, About::Tag(tag), Answer::Accepted) => {
                let place = call.place(tag);
                let digest = call
                    .content
                    .expect("a manifest that is written has a digest");
                self.told(
                    call.process,
                    &place,
                    View {
                        digest: Some(digest),
                        sent,
                        arrived: at,
                    },
                );
                self.accepted.insert((place.clone(), digest));
                self.guards.named(&place, digest, sent);
                self.ledger.entry(place).or_default().wrote(at, digest);
            }
            (Operation::PutManifest, About::Tag(tag), Answer::Missing) => {
                let place = call.place(tag);
                // It is known not to have been written.
                if let (Some(known), Some(digest)) = (self.ledger.get_mut(&place), call.content) {
                    known.intents.retain(|(intended, _)| *intended != digest);
                }
            }
            (Operation::PutManifest, About::Tag(tag), Answer::Failed { class, after })
                if is_refusal(class, *after) =>
            {
                let place = call.place(tag);
                if let (Some(known), Some(digest)) = (self.ledger.get_mut(&place), call.content) {
                    known.refused(digest);
                }
            }
            (Operation::Tags, _, Answer::Listed { tags, first, last }) => {
                let list = self
                    .lists
                    .entry((
                        call.process,
                        (call.registry.clone(), call.repository.clone()),
                    ))
                    .or_default();
                if *first {
                    *list = List {
                        sent,
                        ..List::default()
                    };
                }
                list.tags.extend(tags.iter().flatten().cloned());
                (list.arrived, list.complete) = (at, *last && tags.is_some());
                for (tag, digest) in tags.iter().flatten() {
                    if let Some(digest) = digest {
                        let of = (call.registry.clone(), call.repository.clone());
                        self.guards.told(of, *digest, at);
                        let place = call.place(tag);
                        self.compare_lists(call.process, &place);
                    }
                }
            }
            (
                Operation::FinishUpload,
                About::Content(digest),
                Answer::Failed {
                    class: "rejected", ..
                },
            ) => {
                let of = (call.registry.clone(), call.repository.clone());
                self.uploads
                    .entry((of, *digest))
                    .or_default()
                    .refused
                    .push(at);
            }
            (Operation::FinishUpload, About::Content(digest), Answer::Done { .. }) => {
                let of = (call.registry.clone(), call.repository.clone());
                self.uploads.entry((of, *digest)).or_default().accepted += 1;
            }
            _ => {}
        }
    }

    fn told(&mut self, process: u32, place: &Place, view: View) {
        if let Some(digest) = view.digest {
            let of = (place.registry.clone(), place.repository.clone());
            self.guards.told(of, digest, self.at);
        }
        self.views
            .entry((process, place.clone()))
            .and_modify(|known| {
                if !view.is_discarded_beside(known) {
                    *known = view;
                }
            })
            .or_insert(view);
        self.told
            .entry((process, place.clone()))
            .or_default()
            .push((self.at, view.digest));
    }

    /// A process sees both sides of a tag: an intent that is found there was ours, and what is
    /// equal is agreed.
    ///
    /// `by_bytes`: the answer was a manifest. Only that proves what a moving tag of staging names.
    fn compare(&mut self, process: u32, place: &Place, by_bytes: bool) {
        let at = self.at;
        let pairs = compared(self.rules.get(&process), place, by_bytes);
        self.compare_lists(process, place);
        self.compare_by_former_rules(process, place, by_bytes);
        self.compare_backup(process, place);
        for (source, destination, is_proven) in pairs {
            let Some(there) = self
                .views
                .get(&(process, destination.clone()))
                .and_then(|view| view.digest)
            else {
                continue;
            };
            let staging = self
                .views
                .get(&(process, source))
                .and_then(|view| view.digest);
            let known = self.ledger.entry(destination).or_default();
            if known.reported.is_some_and(|reported| reported != there) {
                known.reported = None;
            }
            let is_intent = known.is_intended(&there) && known.written != Some(there);
            let is_agreed = staging == Some(there)
                && known.reported != Some(there)
                && known.written != Some(there);
            if is_intent {
                known.wrote(at, there);
            } else if is_agreed && is_proven {
                known.agreed(at, there);
            } else if is_agreed {
                known.uncertain.insert(there);
            }
        }
    }

    /// A look that a reload stopped may have agreed to what it was told.
    fn compare_by_former_rules(&mut self, process: u32, place: &Place, by_bytes: bool) {
        let pairs = compared(self.former.get(&process), place, by_bytes);
        for (source, destination, _) in pairs.into_iter().filter(|(_, _, is_proven)| *is_proven) {
            let named = |place: Place| self.views.get(&(process, place))?.digest;
            let there = named(destination.clone()).filter(|there| named(source) == Some(*there));
            if let Some(there) = there {
                let known = self.ledger.entry(destination).or_default();
                known.uncertain.insert(there);
                known.may_be_agreed = true;
            }
        }
    }

    /// A process sees both sides of a tag, production by a list.
    fn compare_lists(&mut self, process: u32, place: &Place) {
        let pairs: Vec<(Place, Place)> = self
            .rules
            .get(&process)
            .into_iter()
            .flatten()
            .filter_map(|rules| pair(rules, place))
            .collect();
        for (source, destination) in pairs {
            let Some(there) = self.listed(process, &destination) else {
                continue;
            };
            let told = self.views.get(&(process, source.clone()));
            let told = told.and_then(|view| view.digest);
            if told == Some(there) || self.listed(process, &source) == Some(there) {
                let known = self.ledger.entry(destination).or_default();
                known.uncertain.insert(there);
            }
        }
    }

    /// What the newest list of a process shows of a tag.
    fn listed(&self, process: u32, place: &Place) -> Option<Digest> {
        let repository = (place.registry.clone(), place.repository.clone());
        *self
            .lists
            .get(&(process, repository))?
            .tags
            .get(&place.tag)?
    }

    fn settled(
        &mut self,
        process: u32,
        _source: &Place,
        destination: &Place,
        result: Outcome,
        digest: Option<Digest>,
    ) {
        let view = self.views.get(&(process, destination.clone())).copied();
        if matches!(result, Outcome::Drift | Outcome::Existing) {
            self.ledger.entry(destination.clone()).or_default().reported =
                view.and_then(|view| view.digest);
        }
        let was_told = self.was_told_lately(process, destination, digest);
        let was_listed = self.was_listed_since(process, destination, digest);
        let was_asked = self.told.contains_key(&(process, destination.clone()));
        if result == Outcome::UpToDate && was_asked && !was_told && !was_listed {
            let text = "production's last answer was another digest".into();
            self.find(
                "what is reported as equal was seen to be equal",
                Some(destination),
                text,
            );
        }
        if let Some(digest) = digest.filter(|_| result == Outcome::Promoted) {
            self.guards.promoted(destination, digest);
        }
        let accepted =
            digest.is_some_and(|digest| self.accepted.contains(&(destination.clone(), digest)));
        // A job that brings what belongs to an equal tag records the tag as well, though staging's
        // digest may come from a list.
        if let Some(digest) = digest.filter(|_| result == Outcome::Promoted && !accepted) {
            let known = self.ledger.entry(destination.clone()).or_default();
            known.uncertain.insert(digest);
            known.may_be_agreed = true;
        }
        if result == Outcome::Promoted && !accepted && !was_told {
            let text = "production did not accept it, nor was it seen there".into();
            self.find(
                "what is reported as promoted was promoted",
                Some(destination),
                text,
            );
        }
    }

    /// Whether an answer lately told `digest` to the process, or to one before it: a row is read a
    /// moment after it was written, and a row of a killed process at the start of the next.
    fn was_told_lately(&self, process: u32, place: &Place, digest: Option<Digest>) -> bool {
        (0..=process).any(|process| {
            let told = self
                .told
                .get(&(process, place.clone()))
                .map(Vec::as_slice)
                .unwrap_or_default();
            let lately = told
                .iter()
                .rposition(|(at, _)| *at + LATELY < self.at)
                .unwrap_or(0);
            told[lately..].iter().any(|(_, told)| *told == digest)
        })
    }

    /// Whether a list that is newer than all answers about the tag shows `digest`. A list that lags
    /// does not deny another digest, but a tag that was not there has come.
    fn was_listed_since(&self, process: u32, place: &Place, digest: Option<Digest>) -> bool {
        let repository = (place.registry.clone(), place.repository.clone());
        let list = self.lists.get(&(process, repository));
        let told = self.told.get(&(process, place.clone()));
        let last = told.and_then(|told| told.last());
        let is_newer = list.is_some_and(|list| {
            last.is_none_or(|(answered, digest)| {
                let lag = digest.map(|_| LISTS_LAG).unwrap_or_default();
                *answered + lag <= list.sent
            })
        });
        is_newer && digest.is_some() && self.listed(process, place) == digest
    }

    fn moved(&mut self, place: &Place, to: Option<Digest>, by: By) {
        let at = self.at;
        self.truth
            .entry(place.clone())
            .or_default()
            .push(Change { at, to, by });
        self.outlive_rollbacks(place, to);
        let (By::Process(process), Some(digest), false) = (by, to, is_companion(&place.tag)) else {
            return;
        };
        self.judge_referrers(process, place, digest);
    }

    /// A rollback ends where staging names something new.
    fn outlive_rollbacks(&mut self, place: &Place, to: Option<Digest>) {
        let Some(digest) = to else { return };
        let rules = self.rules.values().flatten();
        let places = rules.filter_map(|rules| pair_of_source(rules, place));
        let destinations: Vec<Place> = places.map(|(_, destination)| destination).collect();
        for destination in &destinations {
            self.guards.named_in_staging(destination, digest);
        }
    }

    /// What was attached to the image before it was pushed is there before its tag. A way back names
    /// what production has.
    fn judge_referrers(&mut self, process: u32, place: &Place, digest: Digest) {
        let Some(rules) = self.rules_of(process, place) else {
            return;
        };
        let is_way_back =
            self.guards.is_rolling_back(process, place, digest) || self.is_way_back(place, digest);
        if self.plain.contains(&place.registry) || is_way_back {
            return;
        }
        let source = Place {
            registry: rules.source.0.clone(),
            repository: rules.source.1.clone(),
            tag: place.tag.clone(),
        };
        // The tag may have named it before and come back: what was attached in between follows.
        let Some(pushed) = self
            .truth
            .get(&source)
            .and_then(|changes| changes.iter().find(|change| change.to == Some(digest)))
        else {
            return;
        };
        let pushed = pushed.at;
        let there = self
            .attached
            .get(&((place.registry.clone(), place.repository.clone()), digest))
            .cloned()
            .unwrap_or_default();
        let attached = self
            .attached
            .get(&(rules.source.clone(), digest))
            .cloned()
            .unwrap_or_default();
        let late = attached
            .into_iter()
            .filter(|(referrer, at)| *at <= pushed && !there.contains_key(referrer))
            .count();
        if late > 0 {
            self.find(
                "referrers arrive before the tag",
                Some(place),
                format!("{late} of the referrers are not there"),
            );
        }
    }

    fn incomplete(&mut self, request: u64, missing: &[Digest]) {
        let place = self.requests.get(&request).and_then(|(_, call)| {
            let About::Tag(tag) = &call.about else {
                return None;
            };
            Some(call.place(tag))
        });
        let text = format!(
            "{} of what belongs to it are missing or wrong",
            missing.len()
        );
        self.find("everything that is named is complete", place.as_ref(), text);
    }

    /// After a calm time everything that may be equal is equal.
    fn finish(&mut self) {
        let Some(calm) = self.calm else {
            return;
        };
        let told = self.notices.iter();
        let told = told.filter(|at| **at + PUSH_SHOWS >= calm).count();
        let again: Vec<String> = self
            .uploads
            .iter()
            .map(|(of, uploads)| (of, uploads.refused_since(calm)))
            .filter(|(_, refused)| *refused > REFUSED + self.guards.asks + told)
            .map(|((repository, digest), refused)| {
                let (registry, name) = repository;
                let short = digest.short();
                format!("{short} was refused {refused} times by {registry}/{name}")
            })
            .collect();
        for text in again {
            self.find("what is refused for good is not sent again", None, text);
        }
        self.finish_uploads();
        let rules = self.last_rules().to_vec();
        self.finish_sets(&rules);
        for rules in rules.iter().filter(|rules| !rules.observes) {
            let sources: Vec<Place> = self
                .truth
                .keys()
                .filter(|place| pair_of_source(rules, place).is_some())
                .cloned()
                .collect();
            for source in sources
                .iter()
                .filter(|source| !is_companion(&source.tag) && rules.takes(&source.tag))
            {
                self.finish_tag(rules, source);
            }
        }
    }

    /// The rules of the last process.
    fn last_rules(&self) -> &[Rules] {
        let last = self.alive.iter().next_back();
        let rules = last.and_then(|process| self.rules.get(process));
        rules.map(Vec::as_slice).unwrap_or_default()
    }

    /// A blob is sent once to a repository, and once more when the registry has forgotten it, or a
    /// kill the hint that it is there, or when that hint is from a time that has yet to come.
    /// Beside a sick registry nothing waits for a slow upload.
    fn finish_uploads(&mut self) {
        if self.has_trouble {
            return;
        }
        let hints_lost = self.kills + self.set_back;
        let accepted = self.uploads.iter().map(|((repository, digest), uploads)| {
            let collected = self.collected.get(repository).copied();
            (repository, digest, uploads.accepted, collected.unwrap_or(0))
        });
        let often: Vec<String> = accepted
            .filter(|(_, _, accepted, collected)| *accepted > 1 + collected + hints_lost)
            .map(|(repository, digest, accepted, _)| {
                let short = digest.short();
                format!("{short} was accepted {accepted} times by {repository:?}")
            })
            .collect();
        for text in often {
            self.find("a blob that is there is not sent again", None, text);
        }
    }

    fn finish_tag(&mut self, rules: &Rules, source: &Place) {
        let Some((_, destination)) = pair_of_source(rules, source) else {
            return;
        };
        let Some(staging) = self.now(source) else {
            return;
        };
        if self.guards.may_be_held(&destination, staging, &rules.route) {
            return;
        }
        if self.now(&destination) == Some(staging) {
            self.finish_referrers(rules, &destination, staging);
        } else if let Some(why) = self.why_due(rules, source)
            && self.is_set_complete(rules, source)
        {
            self.find(ARRIVES, Some(&destination), why);
        }
    }

    /// What a tag names.
    fn now(&self, place: &Place) -> Option<Digest> {
        self.truth.get(place)?.last()?.to
    }

    /// Why a tag that differs is to be promoted, if nothing may keep it. Its set is left out.
    fn why_due(&self, rules: &Rules, source: &Place) -> Option<String> {
        let (_, destination) = pair_of_source(rules, source)?;
        let staging = self.now(source)?;
        let production = self.now(&destination);
        let hopeless_there = (Some(destination.registry.clone()), staging);
        let is_kept = self.guards.may_be_held(&destination, staging, &rules.route)
            || self.hopeless.contains(&(None, staging))
            || self.hopeless.contains(&hopeless_there)
            || self.closed.contains(&destination)
            || !self.goes_forward(rules, &destination, staging, production)
            || !self.may_be_backed_up(rules, &destination, production);
        if is_kept {
            return None;
        }
        if self.is_surely_accepted(source, &destination, staging, production) {
            return Some("an accept is in force, and neither side has moved since".into());
        }
        if self.is_in_conflict(rules, &destination, staging) {
            return None;
        }
        let moving = rules.is_moving(&source.tag);
        let is_due = self.is_due_by_table(rules, moving, &destination, staging);
        is_due.then(|| {
            let known = self
                .ledger
                .get(&destination)
                .is_some_and(Known::may_be_known);
            format!("staging and production still differ (L is known: {known})")
        })
    }

    /// Whether the table says promote, whatever a process may know.
    fn is_due_by_table(
        &self,
        rules: &Rules,
        moving: bool,
        destination: &Place,
        staging: Digest,
    ) -> bool {
        let production = self.now(destination);
        let known = self.ledger.get(destination).cloned().unwrap_or_default();
        let surely_ours = production.is_some_and(|production| known.written == Some(production))
            && known.maybe.is_empty();
        let may_be_known = if known.uncertain.is_empty() {
            vec![known.may_be_known()]
        } else {
            vec![true, false]
        };
        may_be_known.into_iter().all(|is_known| {
            let cell = cell(
                moving,
                rules.existing,
                rules.drift,
                staging,
                production,
                surely_ours,
                is_known,
            );
            cell == Cell::Promote
        })
    }

    fn is_in_conflict(&self, rules: &Rules, destination: &Place, digest: Digest) -> bool {
        let last = |place: &Place| self.now(place);
        rules.is_moving(&destination.tag)
            && self
                .truth
                .keys()
                .filter_map(|place| pair_of_source(rules, place))
                .any(|(source, there)| {
                    !rules.is_moving(&source.tag)
                        && last(&source) == Some(digest)
                        && last(&there).is_some_and(|there| there != digest)
                })
    }

    /// Referrers that came later are there in the end.
    fn finish_referrers(&mut self, rules: &Rules, destination: &Place, digest: Digest) {
        if self.plain.contains(&destination.registry) {
            return;
        }
        let there = self
            .attached
            .get(&(rules.destination.clone(), digest))
            .cloned()
            .unwrap_or_default();
        let attached = self
            .attached
            .get(&(rules.source.clone(), digest))
            .cloned()
            .unwrap_or_default();
        let missing = attached
            .into_keys()
            .filter(|referrer| !there.contains_key(referrer))
            .count();
        if missing > 0 {
            self.find(
                FOLLOWS,
                Some(destination),
                format!("{missing} are not there"),
            );
        }
    }
}

/// Both sides of a tag, when `place` is one of them.
fn pair(rules: &Rules, place: &Place) -> Option<(Place, Place)> {
    let is = |pair: &Repository| pair.0 == place.registry && pair.1 == place.repository;
    let at = |pair: &Repository| Place {
        registry: pair.0.clone(),
        repository: pair.1.clone(),
        tag: place.tag.clone(),
    };
    (is(&rules.source) || is(&rules.destination))
        .then(|| (at(&rules.source), at(&rules.destination)))
}

/// Both sides of a tag by each of the rules, and whether an answer about `place` proves what staging
/// names: of a moving tag only the manifest does.
fn compared(
    rules: Option<&Vec<Rules>>,
    place: &Place,
    by_bytes: bool,
) -> Vec<(Place, Place, bool)> {
    let of_rules = |rules: &Rules| {
        let (source, destination) = pair(rules, place)?;
        let moves = rules.is_moving(&place.tag) || is_companion(&place.tag);
        let is_proven = !moves || (by_bytes && source == *place);
        Some((source, destination, is_proven))
    };
    rules.into_iter().flatten().filter_map(of_rules).collect()
}

fn pair_of_source(rules: &Rules, place: &Place) -> Option<(Place, Place)> {
    pair(rules, place).filter(|(source, _)| source == place)
}
