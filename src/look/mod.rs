//! A look: lists one source repository and its destinations, selects tags by the rules, and runs a
//! job for each difference.
//!
//! Fixed tags go before moving tags. A digest in conflict is refused under the moving tags of that
//! destination. A tag that cannot be compared is a failed job; the others go on. Memory: a few
//! hundred bytes for each tag.

mod destination;
pub mod discover;
mod known_rules;
mod listing;
mod request;
mod rounds;
pub mod topology;
mod ways_back;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::Pin;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{MaybeDone, OptionFuture, maybe_done};
use jiff::Timestamp;
use tokio::time::Instant;

use self::destination::{DestinationLook, LeftOut, SourceDigests};
pub use self::known_rules::rules_in_force;
use self::listing::{DestinationList, Listing};
pub use self::request::{LookRequest, PassOptions};
use self::topology::{Side, Topology};
use crate::clock;
use crate::endpoint::{Repositories, RouteSource, Source};
use crate::fault::{Class, Fault};
use crate::job::{Look, NamedTag, SHORT_WAIT, Settled, Sight, Totals, Trouble, TroubleClass};
use crate::oci::{Digest, RepositoryName, Tag};
use crate::route::Route;
use crate::status::board::Board;
use crate::status::metrics::{Coverage, DestinationLabels, SeenTag, TagCounts};
use crate::transfer::limits::RegistryLimiter;
use crate::transfer::{Settle, Stop};

/// Failures that a poll reports again without a new attempt, by destination address.
pub type LeftAlone = BTreeMap<String, Settled>;

/// One look.
pub struct RepositoryLook<'a, B: Repositories> {
    /// The topology in which it began.
    pub topology: &'a Topology<B>,
    /// The route.
    pub route: &'a Route,
    /// The source repository.
    pub repository: &'a RepositoryName,
    /// The request.
    pub request: &'a LookRequest,
    /// Where outcomes are recorded.
    pub settle: &'a Settle,
    /// The board.
    pub board: &'a Board,
    /// The stop signals.
    pub stop: &'a Stop,
    /// Failures that are reported again without a new attempt, unless something changed.
    pub left_alone: &'a LeftAlone,
    /// When it began.
    pub began: Instant,
}

/// A destination's tags, with their digests where its listing shows them.
type DestinationTags = HashMap<Tag, Option<Digest>>;

/// The result of a future that may have completed already.
async fn ended<F: Future + Unpin>(mut future: MaybeDone<F>) -> F::Output {
    (&mut future).await;
    Pin::new(&mut future)
        .take_output()
        .expect("it has ended, and nobody else takes what came of it")
}

/// The result of a look at one destination.
#[derive(Default)]
struct DestinationResult {
    totals: Totals,
    jobs: Vec<Settled>,
    /// The ways back of torn sets.
    gone_back: Vec<Settled>,
    trouble: Vec<Trouble>,
    pending: Vec<Tag>,
    /// The tags that are neither up to date nor pending; in a look at named tags all of them.
    seen: Vec<SeenTag>,
    sight: Sight,
    /// For a destination that did not answer: the state by staging alone.
    estimate: Option<Estimate>,
}

impl DestinationResult {
    fn add_to(self, look: &mut Look) {
        look.totals.merge(&self.totals);
        for settled in &self.gone_back {
            look.totals.add(settled.result);
        }
        look.jobs.extend(self.gone_back);
        look.jobs.extend(self.jobs);
        look.trouble.extend(self.trouble);
        if self.sight == Sight::Blind {
            look.sight = Sight::Blind;
        }
    }
}

/// Whether the look met trouble with a registry. A resting tag with refused credentials was
/// not tried: the refusal holds.
fn has_trouble(look: &Look) -> bool {
    let mut errors = look.jobs.iter().filter_map(|job| job.error.as_ref());
    !look.trouble.is_empty() || errors.any(|error| error.class == TroubleClass::Auth)
}

/// The state of tags by staging's present digests and production's last known ones.
#[derive(Default)]
struct Estimate {
    totals: Totals,
    pending: Vec<Tag>,
    seen: Vec<SeenTag>,
}

impl<B: Repositories> RepositoryLook<'_, B> {
    /// Looks, and runs a job for each difference.
    pub async fn look(&self) -> Look {
        let began = clock::now();
        let source = self.topology.source(self.route, self.repository);
        let engine = &self.topology.engine;
        for (tag, names) in &self.request.pushers {
            engine.told_pushers(&self.route.gates, &source, tag, names);
        }
        let sides = match self.topology.destinations(self.route, self.repository) {
            Ok(sides) => sides,
            Err(fault) => return self.fruitless(fault),
        };
        let origins = sides.iter().map(|side| side.repository.origin());
        let limiters: Vec<Arc<RegistryLimiter>> = origins
            .chain([source.origin()])
            .map(|origin| engine.limits.of(origin))
            .collect();
        if self.request.is_asked_for() {
            limiters.iter().for_each(|limiter| limiter.probe());
        }
        let registries = sides
            .iter()
            .map(|side| &*side.registry)
            .chain([source.registry()]);
        let mark = engine.metrics.health.mark(registries);
        // Lists are read side by side: a destination that does not answer delays only itself.
        let mut lists: Vec<_> = sides
            .iter()
            .map(|side| maybe_done(self.list_destination(side).boxed()))
            .collect();
        let mut source_list = std::pin::pin!(self.list_source(&source, &sides, began));
        let listing = std::future::poll_fn(|cx| {
            for list in &mut lists {
                let _continues_later = list.poll_unpin(cx);
            }
            source_list.as_mut().poll(cx)
        });
        let listing = match listing.await {
            Ok(Some(listing)) => listing,
            Ok(None) => return self.fruitless(self.no_such_repository(&source)),
            Err(fault) => return self.fruitless(fault),
        };
        let shared = (sides.len() > 1).then(SourceDigests::default);
        let named = self
            .request
            .tags
            .iter()
            .map(|tag| self.named(&source, &listing, tag))
            .collect();
        let mut look = Look {
            found: self.is_found(&listing),
            named,
            ..Look::default()
        };
        let each = sides.iter().zip(lists).map(|(side, list)| {
            self.look_at(&source, side, &listing, ended(list), shared.as_ref(), began)
                .boxed()
        });
        // Excluded tags belong to the source: the first destination counts them.
        let mut excluded = listing.excluded;
        for (side, mut found) in sides.iter().zip(futures::future::join_all(each).await) {
            found.totals.excluded = std::mem::take(&mut excluded);
            let labels = self.labels(side);
            self.topology
                .metrics
                .looked(labels, self.repository, self.seen(&found));
            found.add_to(&mut look);
        }
        let takes_requests = limiters
            .iter()
            .all(|limiter| limiter.longest_closed() <= SHORT_WAIT);
        if takes_requests && !has_trouble(&look) {
            engine.metrics.health.clear(&mark);
        }
        look
    }

    /// Whether its jobs plan and write nothing.
    fn plans_alone(&self) -> bool {
        self.request.options.dry_run || self.route.observes()
    }

    /// Whether the look tells the state of the route: a look at all tags that is no dry run.
    fn is_whole(&self) -> bool {
        self.request.tags.is_empty() && !self.request.options.dry_run
    }

    fn seen<'f>(&self, found: &'f DestinationResult) -> Coverage<'f> {
        let interrupted = found
            .trouble
            .iter()
            .any(|trouble| trouble.class == TroubleClass::Cancelled);
        match &found.estimate {
            _ if self.request.options.dry_run || interrupted => Coverage::Tags(&[]),
            _ if !self.is_whole() => Coverage::Tags(&found.seen),
            _ if found.trouble.is_empty() => Coverage::Everything(TagCounts {
                totals: &found.totals,
                tags: &found.seen,
                pending: &found.pending,
            }),
            Some(estimate) => Coverage::StagingAlone(TagCounts {
                totals: &estimate.totals,
                tags: &estimate.seen,
                pending: &estimate.pending,
            }),
            None => Coverage::Nothing,
        }
    }

    /// The result for a tag that the request names.
    fn named(&self, source: &RouteSource<B::Repository>, listing: &Listing, tag: &Tag) -> NamedTag {
        let route = &self.route.name;
        let address = source.address();
        let missing = match (listing.chosen.contains(tag), listing.tags.contains_key(tag)) {
            (true, _) => None,
            (false, true) => Some(format!(
                "route {route}: the rules leave {address}:{tag} out (`tags.include`, `exclude` and `newest`; see `blobferry check`)"
            )),
            (false, false) => Some(format!("route {route}: {address} has no tag {tag}")),
        };
        NamedTag {
            name: tag.clone(),
            missing,
            is_absent: !listing.tags.contains_key(tag),
        }
    }

    fn is_found(&self, listing: &Listing) -> bool {
        self.request.tags.is_empty() || !listing.chosen.is_empty()
    }

    fn no_such_repository(&self, source: &RouteSource<B::Repository>) -> Fault {
        Fault::not_found(format!(
            "{} does not exist at {}; push to it, or mend `from` of route {}",
            source.address(),
            source.registry(),
            self.route.name
        ))
    }

    /// The result of a look that could not list its repositories.
    fn fruitless(&self, fault: Fault) -> Look {
        let interrupted = u64::from(fault.class() == Class::Cancelled);
        let totals = Totals {
            interrupted,
            ..Totals::default()
        };
        let seen = if self.is_whole() && interrupted == 0 {
            Coverage::Nothing
        } else {
            Coverage::Tags(&[])
        };
        for template in &self.route.to {
            let labels = DestinationLabels {
                route: &self.route.name,
                registry: template.registry(),
                to: &template.to_string().into(),
            };
            self.topology.metrics.looked(labels, self.repository, seen);
        }
        let text = format!("route {}: {}", self.route.name, fault.chain());
        Look {
            totals,
            trouble: vec![Trouble {
                class: fault.class().into(),
                text,
            }],
            sight: Sight::Blind,
            ..Look::default()
        }
    }

    /// Looks at one destination and runs a job for each difference.
    async fn look_at(
        &self,
        source: &RouteSource<B::Repository>,
        side: &Side<B::Repository>,
        listing: &Listing,
        list: impl Future<Output = DestinationList>,
        shared: Option<&SourceDigests>,
        began: Timestamp,
    ) -> DestinationResult {
        let known = async {
            let gone_back = self.go_back(side).await?;
            self.recall_trouble(side).await?;
            Ok((gone_back, self.known(side, listing).await?))
        };
        let (list, (gone_back, known)) = match (list.await, known.await) {
            (Ok(list), Ok(known)) => (list, known),
            (Err(fault), _) | (_, Err(fault)) => {
                let hints = self.topology.engine.index.tags(&side.repository.id()).await;
                let view = DestinationLook {
                    hints,
                    ..DestinationLook::of(self, source, side, listing, shared, began)
                };
                return DestinationResult {
                    estimate: OptionFuture::from(self.is_whole().then(|| view.estimate())).await,
                    ..self.blind(fault)
                };
            }
        };
        let has_list = matches!(list, Some(Some(_)));
        let view = DestinationLook {
            list: list.map(Option::unwrap_or_default),
            has_list,
            hints: self.hints(side, listing).await,
            troubled: self.troubled(side, listing),
            known,
            ..DestinationLook::of(self, source, side, listing, shared, began)
        };
        let mut found = DestinationResult {
            gone_back,
            ..DestinationResult::default()
        };
        view.note_list();
        if let Some(list) = &view.list {
            found.totals.only_in_destination = self.only_there(side, listing, list);
        }
        let unnamed = self.unnamed(side, listing);
        found.trouble.extend(unnamed.values().cloned());
        let (moving, fixed): (Vec<Tag>, Vec<Tag>) = listing
            .chosen
            .iter()
            .filter(|tag| !unnamed.contains_key(*tag))
            .cloned()
            .partition(|tag| self.route.selection.is_moving(tag));
        let fixed = view.reconcile(fixed, &mut found).await;
        let view = DestinationLook {
            refused: Arc::new(fixed.conflicts),
            left_out: LeftOut::of(fixed.left_out),
            ..view
        };
        view.reconcile(moving, &mut found).await;
        if self.is_whole() {
            view.report_kept_companions(&mut found);
        }
        found
    }

    /// How many tags a destination has that staging does not have.
    fn only_there(
        &self,
        side: &Side<B::Repository>,
        listing: &Listing,
        list: &DestinationTags,
    ) -> u64 {
        let naming = &side.naming;
        let tags = listing.tags.keys();
        let named: HashSet<Tag> = tags.filter_map(|tag| naming.name(tag)).collect();
        let alone = list
            .keys()
            .filter(|tag| naming.made(tag) && !tag.travels_with_subject())
            .filter(|tag| !named.contains(*tag))
            .filter(|tag| !self.route.is_backup(tag, naming));
        alone.count() as u64
    }

    /// The chosen tags that are not promoted because of their names, with the reasons.
    fn unnamed(&self, side: &Side<B::Repository>, listing: &Listing) -> BTreeMap<Tag, Trouble> {
        let name = &self.route.name;
        let unnamed = listing.chosen.iter().filter_map(|tag| {
            let why = self.why_unnamed(tag, side)?;
            let fault = Fault::rejected(format!("route {name}: {why}"));
            Some((tag.clone(), Trouble::from(&fault)))
        });
        unnamed.collect()
    }

    fn why_unnamed(&self, tag: &Tag, side: &Side<B::Repository>) -> Option<String> {
        let address = side.repository.address();
        let Some(there) = side.naming.name(tag) else {
            return Some(format!(
                "{tag} would be too long a tag under its name in {address}"
            ));
        };
        let backup = self.route.backup.as_ref();
        if backup.is_some_and(|backup| backup.name(&there).is_none())
            && self.route.selection.is_moving(tag)
        {
            return Some(format!(
                "the backup of {tag} would have too long a tag in {address}"
            ));
        }
        self.route.is_backup(&there, &side.naming).then(|| {
            format!(
                "{tag} is not promoted: {there} in {address} is the backup of a moving tag (leave it out by `exclude`)"
            )
        })
    }

    fn blind(&self, fault: Fault) -> DestinationResult {
        let text = format!("route {}: {}", self.route.name, fault.chain());
        let interrupted = u64::from(fault.class() == Class::Cancelled);
        DestinationResult {
            trouble: vec![Trouble {
                class: fault.class().into(),
                text,
            }],
            totals: Totals {
                interrupted,
                ..Totals::default()
            },
            sight: Sight::Blind,
            ..DestinationResult::default()
        }
    }

    /// The labels of a destination in metrics.
    fn labels<'s>(&'s self, side: &'s Side<B::Repository>) -> DestinationLabels<'s> {
        DestinationLabels {
            route: &self.route.name,
            registry: &side.registry,
            to: &side.to,
        }
    }
}
