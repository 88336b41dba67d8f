//! `promote`: the step of a release pipeline that takes images from staging to production, without
//! a config file.
//!
//! An explicit act of a person or a build, like `copy`: a moving tag (`latest`) moves, any other
//! tag that names another digest is a conflict unless the act names what it replaces. Fixed tags go
//! before moving ones; a digest in conflict is refused under the moving tags of that repository.
//! Every tag: both sides are listed, and what the listings show to be equal costs no request of its
//! own. One tag: it and what belongs to its image are asked for by name, and nothing is listed.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::copy::{gone, names_another};
use super::directory::Side;
use super::reference::{Env, Known, Named, known_by};
use super::{Error, Observer, caller, stop_of};
use crate::backend::Repository;
use crate::clock;
use crate::config::Config;
use crate::ecr;
use crate::endpoint::{Destination as _, Source as _};
use crate::fault::{Fault, shown};
use crate::job::{
    Actor, Cause, Companions, Gates, Job, Key, Look, NamedTag, ObservedVia, Outcome, Remarks,
    Report, Settled, TagId, TagRules, TagState, Trouble,
};
use crate::oci::{Digest, Host, Tag};
use crate::parts::Parts;
use crate::registry::profile::Kind;
use crate::transfer::companions::Addresses;
use crate::transfer::pages::{ListedTags, Reading};
use crate::transfer::settle::Names;
use crate::transfer::{Completion, Settle, Stop, limits};

/// What is to be promoted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promote {
    /// Sources and destinations, as `copy` takes them; without a tag `latest` is meant.
    pub images: Vec<(String, String)>,
    /// Every tag of each source.
    pub all_tags: bool,
    /// Only this digest may be promoted.
    pub expect: Option<Digest>,
    /// The digest that a fixed tag of the destination may lose.
    pub replace: Option<Digest>,
    /// Plan, but touch nothing.
    pub dry_run: bool,
    /// A state folder, for hints and the ledger.
    pub state: Option<PathBuf>,
    /// What the caller says of itself and of the act.
    pub remarks: Remarks,
}

impl Promote {
    /// Adds what the environment of a build asks for: `DOCKER_REG` (or `STAGING_REG` and
    /// `PROD_REG`), `STAGING_IMAGE_NAME` and `PROD_IMAGE_NAME` (comma-separated pairs), `IMAGE_TAG`
    /// (absent: `latest`; `*`: every tag), `IMAGE_DIGEST`.
    ///
    /// # Errors
    /// Names every variable that is missing, or says what is wrong with one.
    pub fn of_environment(mut self, env: Env<'_>) -> Result<Promote, Error> {
        let registry = value(env, "DOCKER_REG");
        let staging = value(env, "STAGING_REG").or(registry.clone());
        let production = value(env, "PROD_REG").or(registry);
        let found = [
            ("STAGING_REG (or DOCKER_REG)", staging),
            ("PROD_REG (or DOCKER_REG)", production),
            ("STAGING_IMAGE_NAME", value(env, "STAGING_IMAGE_NAME")),
            ("PROD_IMAGE_NAME", value(env, "PROD_IMAGE_NAME")),
        ];
        let missing: Vec<&str> = found
            .iter()
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| *name)
            .collect();
        let [Some(staging), Some(production), Some(from), Some(to)] = found.map(|(_, value)| value)
        else {
            let text = format!(
                "nothing is named: give SRC and DST, or set {} in the environment",
                missing.join(", ")
            );
            return Err(Error::Usage(text));
        };
        let tag = value(env, "IMAGE_TAG").unwrap_or_else(|| "latest".into());
        self.all_tags |= tag == "*";
        let end = if self.all_tags {
            String::new()
        } else {
            format!(":{}", named_tag(&tag)?)
        };
        let pairs = pairs(&from, &to)?;
        let staging = staging.trim_end_matches('/');
        let production = production.trim_end_matches('/');
        self.images = pairs
            .map(|(from, to)| {
                (
                    format!("{staging}/{from}{end}"),
                    format!("{production}/{to}{end}"),
                )
            })
            .collect();
        if self.expect.is_none() {
            self.expect = value(env, "IMAGE_DIGEST")
                .map(|text| expected(&text))
                .transpose()?;
        }
        Ok(self)
    }

    /// The ways, as they can be gone.
    fn ways(&self) -> Result<Vec<Way>, Error> {
        let ways: Vec<Way> = self
            .images
            .iter()
            .map(|(source, destination)| self.way(source, destination))
            .collect::<Result<_, _>>()?;
        let one = ways.len() == 1 && !self.all_tags;
        match self {
            _ if ways.is_empty() => Err(Error::Usage("nothing is named: give SRC and DST".into())),
            Promote {
                expect: Some(_), ..
            } if !one => Err(Error::Usage(
                "an expected digest names one image: give one SRC and DST, and one tag".into(),
            )),
            Promote {
                replace: Some(_), ..
            } if !one => Err(Error::Usage(
                "--replace names one image: give one SRC and DST, and one tag".into(),
            )),
            _ => Ok(ways),
        }
    }

    fn way(&self, source: &str, destination: &str) -> Result<Way, Error> {
        let (from, to): (Named, Named) = (
            source.parse().map_err(Error::Usage)?,
            destination.parse().map_err(Error::Usage)?,
        );
        let named = from.tag().is_some()
            || to.tag().is_some()
            || from.digest().is_some()
            || to.digest().is_some();
        if self.all_tags && named {
            return Err(Error::Usage(format!(
                "every tag is asked for: name \"{}\" and \"{}\" without tag and digest",
                shown(source, 300),
                shown(destination, 300)
            )));
        }
        let tag = from
            .tag()
            .or(to.tag())
            .cloned()
            .unwrap_or_else(|| "latest".parse::<Tag>().expect("a constant tag"));
        let tags = (!self.all_tags).then(|| (tag.clone(), to.tag().cloned().unwrap_or(tag)));
        Ok(Way {
            pinned: from.digest(),
            expect: self.expect.or(to.digest()),
            from,
            to,
            tags,
        })
    }
}

fn named_tag(text: &str) -> Result<Tag, Error> {
    text.parse()
        .map_err(|error| Error::Usage(format!("IMAGE_TAG: {error}")))
}

fn expected(text: &str) -> Result<Digest, Error> {
    text.parse()
        .map_err(|error| Error::Usage(format!("IMAGE_DIGEST: {error}")))
}

/// Two comma-separated lists of one length.
/// A variable of the environment that is set and not blank.
fn value(env: Env<'_>, name: &str) -> Option<String> {
    let text = env(name)?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn pairs<'a>(
    from: &'a str,
    to: &'a str,
) -> Result<impl Iterator<Item = (&'a str, &'a str)>, Error> {
    let from: Vec<&str> = from.split(',').map(str::trim).collect();
    let to: Vec<&str> = to.split(',').map(str::trim).collect();
    if let Some(bad) = from
        .iter()
        .chain(&to)
        .find(|name| name.parse::<crate::oci::RepositoryName>().is_err())
    {
        return Err(Error::Usage(format!(
            "\"{}\" in STAGING_IMAGE_NAME or PROD_IMAGE_NAME is no repository name",
            shown(bad, 100)
        )));
    }
    if from.len() != to.len() {
        let text = format!(
            "STAGING_IMAGE_NAME names {} and PROD_IMAGE_NAME {}: they go in pairs",
            from.len(),
            to.len()
        );
        return Err(Error::Usage(text));
    }
    Ok(from.into_iter().zip(to))
}

/// From one repository to another.
struct Way {
    from: Named,
    to: Named,
    /// The tag there and here; `None`: every tag keeps its name.
    tags: Option<(Tag, Tag)>,
    pinned: Option<Digest>,
    expect: Option<Digest>,
}

/// Promotes.
///
/// # Errors
/// When a reference, the environment or the state folder is unusable; what goes wrong on the way is
/// in the report.
pub async fn promote(
    request: Promote,
    config: Option<&Config>,
    env: Env<'_>,
    observer: Observer,
    stop: CancellationToken,
) -> Result<Report, Error> {
    let ways = request.ways()?;
    let context = Context::open(
        request.state.as_deref(),
        request.dry_run,
        config,
        ways.iter().map(|way| &way.to),
    )?;
    let settle = context.settle(observer.progress, Some(observer.settled));
    let report = promoted(
        &context,
        &request,
        &ways,
        &settle,
        &caller(request.remarks.clone()),
        env,
        &stop_of(stop),
    )
    .await;
    context.close().await;
    report
}

/// Promotes as the daemon. `None`: no route of its config leads to any of the destinations.
pub(crate) async fn promote_as_daemon(
    context: &Context,
    request: Promote,
    actor: Actor,
    stop: &Stop,
) -> Result<Option<Report>, Error> {
    let ways = request.ways()?;
    if !ways.iter().any(|way| context.is_routed(&way.to)) {
        return Ok(None);
    }
    let settle = context.settle(Arc::default(), None);
    promoted(context, &request, &ways, &settle, &actor, &|_| None, stop)
        .await
        .map(Some)
}

async fn promoted(
    context: &Context,
    request: &Promote,
    ways: &[Way],
    settle: &Settle,
    actor: &Actor,
    env: Env<'_>,
    stop: &Stop,
) -> Result<Report, Error> {
    let parts = &context.parts;
    let hosts = Hosts {
        env,
        endpoint: env("AWS_ENDPOINT_URL_ECR").filter(|text| !text.trim().is_empty()),
        logins: Mutex::default(),
    };
    let mut open = Vec::new();
    for way in ways {
        let from = context.repository(&way.from, Side::Source, |parts| {
            way.from
                .open_with("source", parts, |host| hosts.known(host))
        })?;
        let to = context.repository(&way.to, Side::Destination, |parts| {
            way.to
                .open_with("destination", parts, |host| hosts.known(host))
        })?;
        open.push((way, from, to));
    }
    let started = clock::now();
    let clock = Instant::now();
    let steps = open.iter().map(|(way, from, to)| {
        let step = Step {
            parts,
            request,
            way,
            from,
            to,
            settle,
            stop,
            actor,
            routes: context.routes_to(&way.to),
            began: started,
            kept: Mutex::default(),
            gates: context.gates(&way.to),
        };
        let unguarded = step.routes.is_empty();
        async move {
            let mut look = step.take().await;
            look.jobs
                .iter_mut()
                .for_each(|job| job.unguarded = unguarded);
            look
        }
        .boxed()
    });
    let looks = futures::future::join_all(steps).await;
    Ok(Report::new(
        &settle.facts.run_id,
        started,
        clock.elapsed(),
        looks,
    ))
}

/// The credentials at the hosts of one run: one login for each host, on either side.
struct Hosts<'a> {
    env: Env<'a>,
    /// Where ECR's control plane is, if not where the region says: a private endpoint, or an
    /// emulator.
    endpoint: Option<String>,
    logins: Mutex<BTreeMap<String, ecr::Login>>,
}

impl Hosts<'_> {
    fn known(&self, host: &Host) -> Known {
        let is_emulated = self
            .endpoint
            .as_ref()
            .is_some_and(|endpoint| ecr::host::is_emulated(host, endpoint));
        let is_assumed = match ecr::host::recognise(host.name()) {
            // Reads are anonymous there; writes need a login as at any other registry.
            Some(ecr) if ecr.public => return known_by(host, self.env),
            Some(_) => false,
            None if is_emulated => true,
            None => return known_by(host, self.env),
        };
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        let login = logins.entry(host.to_string()).or_insert_with(|| {
            let settings = ecr::Settings {
                endpoint: self.endpoint.clone(),
                is_assumed,
                ..ecr::Settings::default()
            };
            ecr::Login::new(settings, host.as_ref())
        });
        Known {
            credentials: login.clone().into(),
            kind: Some(Kind::Ecr),
        }
    }
}

/// One way on its way.
struct Step<'a> {
    parts: &'a Parts,
    request: &'a Promote,
    way: &'a Way,
    from: &'a Repository,
    to: &'a Repository,
    settle: &'a Settle,
    stop: &'a Stop,
    actor: &'a Actor,
    /// The routes that lead to the destination.
    routes: Arc<[Arc<str>]>,
    began: Timestamp,
    /// Companion tags that stay as they are.
    kept: Mutex<Vec<Settled>>,
    /// Of the route that leads there.
    gates: Arc<Gates>,
}

/// What the listings show.
struct Listed {
    source: ListedTags,
    /// `None`: not listed.
    destination: Option<ListedTags>,
    destination_via: ObservedVia,
    companions: Companions,
    at: Instant,
}

impl Step<'_> {
    async fn take(&self) -> Look {
        match &self.way.tags {
            Some((tag, there)) => self.one(tag, there).await,
            None => self.every().await,
        }
    }

    async fn list(&self, repository: &Repository) -> Result<Option<ListedTags>, Fault> {
        self.parts
            .engine()
            .tags(repository, Reading::by_name(), self.stop)
            .await
    }

    /// One tag, by name.
    async fn one(&self, tag: &Tag, there: &Tag) -> Look {
        let listed = Listed::of(
            ListedTags::new(),
            None,
            ObservedVia::Tag,
            Companions::Unlisted,
        );
        let elsewhere = match names_another(self.parts, &self.way.from, self.from, self.stop).await
        {
            Ok(None) => {
                return self.named(
                    tag,
                    [self.carry(tag, there, &listed, &Arc::default()).await],
                );
            }
            Ok(Some(reason)) => gone(reason),
            Err(fault) => Completion::failed(fault, 0),
        };
        let job = self.job(tag, there, &listed, &Arc::default());
        self.named(tag, [self.settled(&job, tag, there, elsewhere).await])
    }

    /// Every tag, fixed ones first.
    async fn every(&self) -> Look {
        let (source, destination) = futures::join!(self.list(self.from), self.list(self.to));
        let (source, destination) = match (source, destination) {
            (Ok(Some(source)), Ok(destination)) => (source, destination),
            (Ok(None), _) => {
                return Look::failed(&Fault::not_found(format!(
                    "{} does not exist",
                    self.from.address()
                )));
            }
            (Err(fault), _) | (_, Err(fault)) => return Look::failed(&fault),
        };
        let companions = companions(&source);
        let destination_via = if destination.is_some() {
            ObservedVia::List
        } else {
            ObservedVia::MissingList
        };
        let listed = Listed::of(
            source,
            Some(destination.unwrap_or_default()),
            destination_via,
            companions,
        );
        let tags = listed
            .source
            .keys()
            .filter(|tag| !tag.travels_with_subject())
            .cloned();
        let (moving, fixed): (Vec<Tag>, Vec<Tag>) = tags.partition(is_moving);
        let mut settled = self.carry_all(fixed, &listed, HashSet::new()).await;
        let conflicts = settled
            .iter()
            .filter(|job| job.result == Outcome::Conflict)
            .filter_map(|job| job.digest)
            .collect();
        settled.extend(self.carry_all(moving, &listed, conflicts).await);
        let mut look = self.look(settled);
        look.found = listed.source.keys().any(|tag| !tag.travels_with_subject());
        if !look.found {
            let text = format!("{} has no tags", self.from.address());
            look.trouble.push(Trouble::not_found(text));
        }
        look.totals.only_in_destination = listed
            .destination
            .iter()
            .flat_map(ListedTags::keys)
            .filter(|tag| !listed.source.contains_key(*tag) && !tag.travels_with_subject())
            .count() as u64;
        look.jobs.retain(|job| job.result != Outcome::UpToDate);
        look
    }

    async fn carry_all(
        &self,
        tags: Vec<Tag>,
        listed: &Listed,
        refused: HashSet<Digest>,
    ) -> Vec<Settled> {
        let refused = Arc::new(refused);
        stream::iter(tags)
            .map(|tag| {
                let refused = refused.clone();
                async move { self.carry(&tag, &tag, listed, &refused).await }.boxed()
            })
            .buffered(limits::JOBS)
            .collect()
            .await
    }

    async fn carry(
        &self,
        tag: &Tag,
        there: &Tag,
        listed: &Listed,
        refused: &Arc<HashSet<Digest>>,
    ) -> Settled {
        let mut job = self.job(tag, there, listed, refused);
        let engine = self.parts.engine();
        self.settle
            .progress
            .jobs_planned
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut completion = match self.equal_by_lists(&mut job, listed).await {
            Ok(Some(digest)) => Completion::equal(digest, 0),
            Ok(None) => {
                engine
                    .run(&job, self.from, self.to, &self.settle.progress, self.stop)
                    .await
            }
            Err(fault) => Completion::failed(fault, 0),
        };
        let addresses = Addresses {
            source: &self.from.address(),
            destination: &self.to.address(),
            registry: "destination",
        };
        let companions = std::mem::take(&mut completion.companions);
        let kept = engine
            .settle_companions(self.settle, &job, addresses, companions)
            .await;
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(kept);
        self.settled(&job, tag, there, completion).await
    }

    async fn settled(&self, job: &Job, tag: &Tag, there: &Tag, completion: Completion) -> Settled {
        let source = match self.way.pinned {
            Some(digest) => format!("{}@{digest}", self.from.address()),
            None => format!("{}:{tag}", self.from.address()),
        };
        let names = Names {
            source,
            destination: format!("{}:{there}", self.to.address()),
            registry: "destination".into(),
        };
        self.parts
            .engine()
            .settle(self.settle, job, &names, completion)
            .await
    }

    /// What both listings name, if nothing travels with it. A listing that may be behind our own
    /// write says nothing.
    async fn equal_by_lists(
        &self,
        job: &mut Job,
        listed: &Listed,
    ) -> Result<Option<Digest>, Fault> {
        let (TagState::At(source), TagState::At(there)) = (job.source, job.destination) else {
            return Ok(None);
        };
        if !self.to.abilities().current_lists {
            let known = self
                .parts
                .engine()
                .ledger
                .written(&job.key.destination)
                .await?;
            if known.may_be_behind(Some(there), clock::now()) {
                job.destination = TagState::Unknown;
                return Ok(None);
            }
        }
        Ok(Some(source).filter(|source| *source == there && !listed.has_companions(source)))
    }

    fn job(&self, tag: &Tag, there: &Tag, listed: &Listed, refused: &Arc<HashSet<Digest>>) -> Job {
        let place = TagId {
            origin: self.to.origin().clone(),
            repository: self.to.repository().clone(),
            tag: there.clone(),
        };
        let source = listed.source.get(tag);
        Job {
            key: Key {
                route: "".into(),
                source: self.from.repository().clone(),
                tag: tag.clone(),
                destination: place,
            },
            routes: self.routes.clone(),
            rules: TagRules {
                moving: is_moving(there),
                ..TagRules::default()
            },
            gates: self.gates.clone(),
            source: source
                .and_then(|tag| tag.digest)
                .map_or(TagState::Unknown, TagState::At),
            destination: listed.seen_there(there),
            destination_via: listed.destination_via,
            source_at: self.from.abilities().current_lists.then_some(listed.at),
            destination_at: listed.at,
            look_began: self.began,
            fresh: listed
                .destination
                .as_ref()
                .is_some_and(ListedTags::is_empty),
            cause: Cause::Cli,
            actor: self.actor.clone(),
            explicit: true,
            pinned: self.way.pinned,
            expect: self.way.expect,
            replace: self.request.replace,
            dry_run: self.request.dry_run,
            refused: refused.clone(),
            pushed: source.and_then(|tag| tag.pushed),
            companions: listed.companions.clone(),
            rank: crate::job::Rank::Named,
            max_wait: crate::job::LONG_WAIT,
        }
    }

    /// A look at a tag that was asked for by its name.
    fn named(&self, tag: &Tag, settled: [Settled; 1]) -> Look {
        let named = NamedTag {
            name: tag.clone(),
            missing: None,
        };
        Look {
            named: vec![named],
            ..self.look(settled)
        }
    }

    fn look(&self, settled: impl IntoIterator<Item = Settled>) -> Look {
        let mut kept =
            std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        // Several tags may name one image.
        kept.sort_by(|one, other| one.destination.cmp(&other.destination));
        kept.dedup_by(|one, other| one.destination == other.destination);
        let mut look = Look {
            jobs: settled.into_iter().chain(kept).collect(),
            ..Look::default()
        };
        look.jobs.iter().for_each(|job| look.totals.add(job.result));
        look.found = look.totals.gone == 0;
        look
    }
}

impl Listed {
    fn of(
        source: ListedTags,
        destination: Option<ListedTags>,
        destination_via: ObservedVia,
        companions: Companions,
    ) -> Listed {
        Listed {
            source,
            destination,
            destination_via,
            companions,
            at: Instant::now(),
        }
    }

    fn seen_there(&self, tag: &Tag) -> TagState {
        match self.destination.as_ref().map(|tags| tags.get(tag)) {
            None => TagState::Unknown,
            Some(None) => TagState::Absent,
            Some(Some(tag)) => tag.digest.map_or(TagState::Unknown, TagState::At),
        }
    }

    fn has_companions(&self, digest: &Digest) -> bool {
        !self.companions.of(digest).is_empty()
    }
}

fn companions(tags: &ListedTags) -> Companions {
    let companions = tags
        .iter()
        .filter(|(tag, _)| tag.travels_with_subject())
        .map(|(tag, listed)| (tag.clone(), listed.digest));
    Companions::Listed(Arc::new(companions.collect()))
}

fn is_moving(tag: &Tag) -> bool {
    tag.as_str() == "latest"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Promote, String> {
        let variables: BTreeMap<String, String> = variables
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        Promote::default()
            .of_environment(&|name| variables.get(name).cloned())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_password_of_ecr_is_for_ecr_and_emulators_alone() {
        let kind = |host: &str, endpoint: Option<&str>| {
            let hosts = Hosts {
                env: &|_| None,
                endpoint: endpoint.map(str::to_owned),
                logins: Mutex::default(),
            };
            let known = hosts.known(&host.parse().unwrap());
            match ecr::Login::of(&known.credentials) {
                Some(login) if login.is_assumed() => "assumed",
                Some(_) => "ecr",
                None => "other",
            }
        };
        let vpc = Some("https://vpce-0a1b.api.ecr.eu-west-1.vpce.amazonaws.com");
        let emulator = Some("http://127.0.0.1:4566");
        let private = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
        for endpoint in [None, vpc, emulator] {
            assert_eq!(kind("ghcr.io", endpoint), "other");
            assert_eq!(kind("registry.example", endpoint), "other");
            assert_eq!(kind("public.ecr.aws", endpoint), "other");
            assert_eq!(kind(private, endpoint), "ecr");
        }
        assert_eq!(kind("localhost:5000", None), "other");
        assert_eq!(kind("localhost:5000", vpc), "other");
        assert_eq!(kind("localhost:5000", emulator), "assumed");
    }

    const USUAL: [(&str, &str); 3] = [
        ("DOCKER_REG", "reg.example/"),
        ("STAGING_IMAGE_NAME", "staging-demo-app"),
        ("PROD_IMAGE_NAME", "prod-demo-app"),
    ];

    fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        USUAL.into_iter().chain(more.iter().copied()).collect()
    }

    #[test]
    fn the_variables_of_the_pipeline_step_are_enough() {
        let images = |more: &[(&str, &str)]| of(&with(more)).unwrap().images;
        let pair = |from: &str, to: &str| vec![(from.to_owned(), to.to_owned())];
        assert_eq!(
            images(&[]),
            pair(
                "reg.example/staging-demo-app:latest",
                "reg.example/prod-demo-app:latest"
            )
        );
        assert_eq!(
            images(&[("IMAGE_TAG", "v7"), ("PROD_REG", "prod.example")]),
            pair(
                "reg.example/staging-demo-app:v7",
                "prod.example/prod-demo-app:v7"
            )
        );
        let every = of(&with(&[("IMAGE_TAG", "*")])).unwrap();
        assert!(
            every.all_tags
                && every.images
                    == pair("reg.example/staging-demo-app", "reg.example/prod-demo-app")
        );
        let several = of(&with(&[
            ("STAGING_IMAGE_NAME", "a, b"),
            ("PROD_IMAGE_NAME", "c,d"),
        ]))
        .unwrap();
        assert_eq!(several.images.len(), 2);
        assert!(several.ways().is_ok());
    }

    #[test]
    fn what_is_missing_or_wrong_in_the_environment_is_named() {
        let text = of(&[("DOCKER_REG", "reg.example"), ("STAGING_IMAGE_NAME", " ")]).unwrap_err();
        assert!(
            text.contains("STAGING_IMAGE_NAME, PROD_IMAGE_NAME") && !text.contains("DOCKER_REG"),
            "{text}"
        );
        for (more, words) in [
            ([("STAGING_IMAGE_NAME", "a,b")], "pairs"),
            ([("STAGING_IMAGE_NAME", "A")], "\"A\""),
            ([("IMAGE_TAG", "not a tag")], "IMAGE_TAG"),
            ([("IMAGE_DIGEST", "sha256:1")], "IMAGE_DIGEST"),
        ] {
            let text = of(&with(&more)).unwrap_err();
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn an_expected_digest_names_one_image() {
        let digest = Digest::sha256(b"");
        let request = |count: usize, all_tags: bool| Promote {
            images: vec![("reg.example/a".into(), "reg.example/b".into()); count],
            all_tags,
            expect: Some(digest),
            ..Promote::default()
        };
        assert!(request(1, false).ways().is_ok());
        assert!(request(2, false).ways().is_err());
        assert!(request(1, true).ways().is_err());
        let tagged = Promote {
            images: vec![("reg.example/a:v1".into(), "reg.example/b".into())],
            all_tags: true,
            ..Promote::default()
        };
        assert!(tagged.ways().is_err());
    }
}
