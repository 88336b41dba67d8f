//! People: they push to staging, sign what they pushed, and do in production what only they may do.

use std::time::Duration;

use blobferry::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use blobferry::oci::{Algorithm, Digest, Manifest, RepositoryName, Tag};
use bytes::Bytes;
use serde_json::{Value, json};

use super::chance::{Chance, Draw};
use super::guards::{Accept, Covers};
use super::process::Rollback;
use super::registry::{Registry, references};
use super::trace::{Event, Place, Rules, Trace};
use super::traits;

/// What people do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deed {
    /// A new version, under a fixed tag and often under `latest` as well.
    PushVersion,
    /// Other content under a fixed tag that is there already.
    PushAgain,
    /// Something under a moving tag.
    PushMoving,
    /// A moving tag goes back to an older image.
    GoBack,
    /// A signature beside an image, through the referrers endpoint.
    Attach,
    /// A signature beside an image, under a tag.
    Sign,
    /// Content of their own under a production tag.
    PushToProduction,
    /// A production tag goes back to what it named before.
    RollBack,
    /// Staging's image is put into production by hand.
    Anticipate,
    /// A production tag is deleted.
    DeleteInProduction,
    /// A staging tag is deleted.
    DeleteInStaging,
    /// Production's registry forgets blobs that no tag needs.
    Collect,
    /// A layer in staging goes bad.
    Rot,
}

impl Deed {
    /// All of them.
    pub const ALL: [Deed; 13] = [
        Deed::PushVersion,
        Deed::PushAgain,
        Deed::PushMoving,
        Deed::GoBack,
        Deed::Attach,
        Deed::Sign,
        Deed::PushToProduction,
        Deed::RollBack,
        Deed::Anticipate,
        Deed::DeleteInProduction,
        Deed::DeleteInStaging,
        Deed::Collect,
        Deed::Rot,
    ];
}

/// An image with all that belongs to it.
#[derive(Clone)]
pub struct Image {
    pub top: Manifest,
    pub children: Vec<Manifest>,
    pub blobs: Vec<(Digest, Bytes)>,
}

/// Makes images, and remembers them.
pub struct Library {
    chance: Chance,
    trace: Trace,
    made: u64,
    bases: Vec<(Digest, Bytes)>,
    /// Largest layer in bytes.
    largest: u64,
    /// Every image, in the order in which they were made.
    pub images: Vec<Image>,
}

impl Library {
    /// An empty one.
    pub fn new(chance: Chance, trace: &Trace, largest: u64) -> Library {
        let bases = (0..2)
            .map(|number| content(&format!("base {number}"), largest / (number + 1)))
            .collect();
        Library {
            chance,
            trace: trace.clone(),
            made: 0,
            bases,
            largest,
            images: Vec::new(),
        }
    }

    /// A new image: sometimes an index over two platforms.
    pub fn image(&mut self) -> Image {
        self.made += 1;
        let name = format!("image {}", self.made);
        let mut draw = self.chance.of(("image", self.made));
        let image = if draw.percent(20) {
            self.index(&name, &mut draw)
        } else {
            self.single(&name, &mut draw)
        };
        self.trace.call(image.top.digest, name);
        self.images.push(image.clone());
        image
    }

    /// A new image with two layers of its own, each longer than what passes as small.
    pub fn large_image(&mut self) -> Image {
        self.made += 1;
        let name = format!("image {}", self.made);
        let mut blobs: Vec<_> = (0..2)
            .map(|number| content(&format!("{name} layer {number}"), 100_000))
            .collect();
        let entries: Vec<Value> = blobs
            .iter()
            .map(|(digest, bytes)| layer(digest, bytes.len()))
            .collect();
        let config = content(&format!("{name} config"), 100);
        let document = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": layer(&config.0, config.1.len()), "layers": entries});
        blobs.push(config);
        let image = Image {
            top: parsed(&document),
            children: Vec::new(),
            blobs,
        };
        self.trace.call(image.top.digest, name);
        self.images.push(image.clone());
        image
    }

    fn single(&mut self, name: &str, draw: &mut Draw) -> Image {
        let mut layers: Vec<(Digest, Bytes)> = Vec::new();
        if draw.percent(60) {
            layers.push(draw.pick(&self.bases));
        }
        for number in 0..draw.between(0, 2) {
            let most = if draw.percent(30) { self.largest } else { 2000 };
            layers.push(content(&format!("{name} layer {number}"), draw.below(most)));
        }
        let config = content(&format!("{name} config"), 100);
        let entries: Vec<Value> = layers
            .iter()
            .map(|(digest, bytes)| layer(digest, bytes.len()))
            .collect();
        let document = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": layer(&config.0, config.1.len()),
            "layers": entries, "annotations": {"name": name}});
        layers.push(config);
        Image {
            top: parsed(&document),
            children: Vec::new(),
            blobs: layers,
        }
    }

    fn index(&mut self, name: &str, draw: &mut Draw) -> Image {
        let parts = [
            self.single(&format!("{name} amd64"), draw),
            self.single(&format!("{name} arm64"), draw),
        ];
        let entries: Vec<Value> = parts.iter().map(|part| entry(&part.top)).collect();
        let document = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, "annotations": {"name": name}});
        let children = parts.iter().map(|part| part.top.clone()).collect();
        Image {
            top: parsed(&document),
            children,
            blobs: parts.into_iter().flat_map(|part| part.blobs).collect(),
        }
    }

    /// A signature of an image: with its subject, or without one, to be put under a tag.
    pub fn signature(&mut self, subject: Option<&Manifest>) -> Image {
        self.made += 1;
        let name = format!("signature {}", self.made);
        let payload = content(&name, 50);
        let mut document = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/x-signature",
            "config": layer(&payload.0, payload.1.len()), "layers": [], "annotations": {"name": name}});
        if let Some(subject) = subject {
            document["subject"] = entry(subject);
        }
        let top = parsed(&document);
        self.trace.call(top.digest, name);
        Image {
            top,
            children: Vec::new(),
            blobs: vec![payload],
        }
    }

    /// The image of that digest.
    pub fn find(&self, digest: &Digest) -> Option<&Image> {
        self.images.iter().find(|image| image.top.digest == *digest)
    }
}

/// Bytes of their own for each name.
fn content(name: &str, size: u64) -> (Digest, Bytes) {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(bytes.len() + size as usize, b'.');
    (Digest::of(Algorithm::Sha256, &bytes), bytes.into())
}

fn layer(digest: &Digest, size: usize) -> Value {
    json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size})
}

fn entry(manifest: &Manifest) -> Value {
    json!({"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.bytes.len()})
}

fn parsed(document: &Value) -> Manifest {
    Manifest::parse(Bytes::from(document.to_string()), None, Algorithm::Sha256)
        .expect("a library makes readable manifests")
}

/// Puts an image with all that belongs to it into a repository.
pub fn push(registry: &Registry, repository: &RepositoryName, image: &Image) {
    for (digest, bytes) in &image.blobs {
        registry.store_blob(repository, *digest, bytes.clone());
    }
    for manifest in image.children.iter().chain([&image.top]) {
        registry.store_manifest(repository, manifest);
    }
}

/// The people of one world.
pub struct People {
    pub library: Library,
    pub registries: Vec<Registry>,
    pub routes: Vec<Rules>,
    trace: Trace,
    versions: u64,
    /// What production tags named, the newest last.
    past: Vec<(Place, Digest)>,
    /// What was accepted.
    accepted: Vec<Accept>,
}

impl People {
    /// People who push along these routes.
    pub fn new(
        library: Library,
        registries: Vec<Registry>,
        routes: Vec<Rules>,
        trace: &Trace,
    ) -> People {
        People {
            library,
            registries,
            routes,
            trace: trace.clone(),
            versions: 0,
            past: Vec::new(),
            accepted: Vec::new(),
        }
    }

    fn registry(&self, name: &str) -> Registry {
        self.registries
            .iter()
            .find(|registry| **registry.name() == *name)
            .expect("routes name registries that are there")
            .clone()
    }

    fn say(&self, text: String) {
        self.trace.note(Event::Person { text });
    }

    /// Does something along any route, where there is an occasion for it.
    pub fn act(&mut self, deed: Deed, draw: &mut Draw) {
        let rules = draw.pick(&self.routes);
        self.act_along(&rules, deed, draw);
    }

    /// Pushes, or lets a moving tag go back, along a route that compares versions or keeps backups.
    pub fn move_along(&mut self, draw: &mut Draw) {
        let routes = self.routes.iter().filter(|rules| rules.follows_moves());
        let routes: Vec<Rules> = routes.cloned().collect();
        let deed = draw.pick(&[
            Deed::PushVersion,
            Deed::PushVersion,
            Deed::PushMoving,
            Deed::GoBack,
        ]);
        self.act_along(&draw.pick(&routes), deed, draw);
    }

    fn act_along(&mut self, rules: &Rules, deed: Deed, draw: &mut Draw) {
        let (staging, production) = (
            self.registry(&rules.source.0),
            self.registry(&rules.destination.0),
        );
        let (from, to) = (name(&rules.source.1), name(&rules.destination.1));
        self.remember(&production, &to);
        match deed {
            Deed::PushVersion => {
                let version = self.next_version(draw);
                let image = self.push_image(&staging, &from, draw);
                if draw.percent(40) {
                    self.sign(&staging, &from, &image, draw);
                }
                self.say(format!(
                    "pushes {version}{} to {}/{from}",
                    self.called(&image),
                    staging.name()
                ));
                staging.tag(&from, &version, Some(image.top.digest));
                if draw.percent(60) {
                    let moving = tag(&draw.pick(&rules.moving));
                    staging.tag(&from, &moving, Some(image.top.digest));
                }
            }
            Deed::PushAgain | Deed::PushMoving => {
                let moving = deed == Deed::PushMoving;
                let tags = staging
                    .tags(&from)
                    .into_iter()
                    .filter(|tag| rules.is_moving(tag.as_str()) == moving);
                let mut tags: Vec<Tag> = tags
                    .filter(|tag| !tag.as_str().starts_with("sha256-"))
                    .collect();
                if moving {
                    tags.push(tag(&draw.pick(&rules.moving)));
                }
                if tags.is_empty() {
                    return;
                }
                let moved = draw.pick(&tags);
                let image = self.push_image(&staging, &from, draw);
                self.say(format!(
                    "pushes {moved}{} to {}/{from}",
                    self.called(&image),
                    staging.name()
                ));
                staging.tag(&from, &moved, Some(image.top.digest));
            }
            Deed::GoBack => {
                let held = self
                    .library
                    .images
                    .iter()
                    .filter(|image| staging.holds(&from, &image.top.digest));
                let held: Vec<Image> = held.cloned().collect();
                if held.is_empty() {
                    return;
                }
                let (moving, image) = (tag(&draw.pick(&rules.moving)), draw.pick(&held));
                self.say(format!(
                    "lets {moving} of {}/{from} name an older one{}",
                    staging.name(),
                    self.called(&image)
                ));
                staging.tag(&from, &moving, Some(image.top.digest));
            }
            Deed::Attach | Deed::Sign => {
                let Some((_, image)) = self.pick_tagged(&staging, &from, draw) else {
                    return;
                };
                self.say(format!(
                    "signs{} in {}/{from}",
                    self.called(&image),
                    staging.name()
                ));
                if deed == Deed::Attach {
                    self.sign(&staging, &from, &image, draw);
                } else {
                    let signature = self.library.signature(None);
                    push(&staging, &from, &signature);
                    let beside = tag(&format!("sha256-{}.sig", image.top.digest.encoded()));
                    staging.tag(&from, &beside, Some(signature.top.digest));
                }
            }
            Deed::PushToProduction => {
                let tags = production.tags(&to).into_iter().chain(staging.tags(&from));
                let tags: Vec<Tag> = tags
                    .filter(|tag| !tag.as_str().starts_with("sha256-"))
                    .collect();
                if tags.is_empty() {
                    return;
                }
                let (pushed, image) = (draw.pick(&tags), self.library.image());
                push(&production, &to, &image);
                self.say(format!(
                    "pushes {pushed}{} to production {}/{to}",
                    self.called(&image),
                    production.name()
                ));
                production.tag(&to, &pushed, Some(image.top.digest));
            }
            Deed::RollBack => {
                let here = self.past.iter().filter(|(place, digest)| {
                    place.registry == *production.name()
                        && *place.repository == *to.as_str()
                        && production.holds(&to, digest)
                });
                let here: Vec<(Place, Digest)> = here.cloned().collect();
                if here.is_empty() {
                    return;
                }
                let (place, digest) = draw.pick(&here);
                let rolled = tag(&place.tag);
                if production.tagged(&to, &rolled) == Some(digest) {
                    return;
                }
                self.say(format!(
                    "rolls {rolled} of production {}/{to} back",
                    production.name()
                ));
                production.tag(&to, &rolled, Some(digest));
            }
            Deed::Anticipate => {
                let Some((moved, image)) = self.pick_tagged(&staging, &from, draw) else {
                    return;
                };
                push(&production, &to, &image);
                self.say(format!(
                    "copies {moved}{} to production {}/{to} by hand",
                    self.called(&image),
                    production.name()
                ));
                production.tag(&to, &moved, Some(image.top.digest));
            }
            Deed::DeleteInProduction | Deed::DeleteInStaging => {
                let (registry, repository) = if deed == Deed::DeleteInStaging {
                    (staging, from)
                } else {
                    (production, to)
                };
                let tags = registry.tags(&repository);
                if tags.is_empty() {
                    return;
                }
                let gone = draw.pick(&tags);
                self.say(format!(
                    "deletes {gone} of {}/{repository}",
                    registry.name()
                ));
                registry.tag(&repository, &gone, None);
            }
            Deed::Collect => {
                if production.settings().checks_content {
                    self.say(format!(
                        "production {}/{to} forgets what no tag needs",
                        production.name()
                    ));
                    production.collect(&to);
                    self.trace.note(Event::Collected {
                        registry: production.name().clone(),
                        repository: to.as_str().into(),
                    });
                }
            }
            Deed::Rot => {
                let Some((_, image)) = self.pick_tagged(&staging, &from, draw) else {
                    return;
                };
                let own: Vec<Digest> = image
                    .blobs
                    .iter()
                    .map(|(digest, _)| *digest)
                    .filter(|digest| self.is_own(digest))
                    .collect();
                if own.is_empty() {
                    return;
                }
                let layer = draw.pick(&own);
                self.say(format!(
                    "a layer of{} goes bad in {}",
                    self.called(&image),
                    staging.name()
                ));
                staging.rot(&layer);
                self.trace.note(Event::Hopeless {
                    registry: None,
                    digest: image.top.digest,
                });
            }
        }
    }

    /// Pushes to the members of a set: a new version, what one of them lacks of a version, or the
    /// moving tags go back to an older one.
    pub fn push_set(&mut self, draw: &mut Draw) {
        let members = self.members();
        let versions = self.versions_of(&members);
        let moves = draw.percent(70);
        let known = (!versions.is_empty()).then(|| draw.pick(&versions));
        match (draw.below(10), known) {
            (0..3, Some(version)) => self.push_missing(&members, &version, moves, draw),
            (3, Some(version)) => self.let_all_name(&members, &version),
            _ => {
                let version = self.next_version(draw);
                let come = members.into_iter().filter(|_| draw.percent(85));
                let come: Vec<Rules> = come.collect();
                self.push_missing(&come, &version, moves, draw);
            }
        }
    }

    /// Pushes a new version of all members of a set, under their moving tag as well.
    pub fn push_release(&mut self, draw: &mut Draw) {
        let version = self.next_version(draw);
        self.push_missing(&self.members(), &version, true, draw);
    }

    /// The routes of a set, one for each source.
    fn members(&self) -> Vec<Rules> {
        let members = self.routes.iter().filter(|rules| rules.set.is_some());
        let mut members: Vec<Rules> = members.cloned().collect();
        members.dedup_by(|one, other| one.source == other.source);
        members
    }

    /// The fixed tags in the members' repositories.
    fn versions_of(&self, members: &[Rules]) -> Vec<Tag> {
        let tags = members.iter().flat_map(|rules| {
            let tags = self.registry(&rules.source.0).tags(&name(&rules.source.1));
            let fixed = tags
                .into_iter()
                .filter(move |tag| !rules.is_moving(tag.as_str()));
            fixed.filter(|tag| !tag.as_str().starts_with("sha256-"))
        });
        let mut tags: Vec<Tag> = tags.collect();
        tags.sort();
        tags.dedup();
        tags
    }

    fn push_missing(&mut self, members: &[Rules], version: &Tag, moves: bool, draw: &mut Draw) {
        for rules in members {
            let staging = self.registry(&rules.source.0);
            let from = name(&rules.source.1);
            if staging.tagged(&from, version).is_some() {
                continue;
            }
            let image = self.push_image(&staging, &from, draw);
            self.say(format!(
                "pushes {version}{} to {}/{from}, as of a set",
                self.called(&image),
                staging.name()
            ));
            staging.tag(&from, version, Some(image.top.digest));
            if moves {
                staging.tag(&from, &tag("latest"), Some(image.top.digest));
            }
        }
    }

    fn let_all_name(&self, members: &[Rules], version: &Tag) {
        self.say(format!("lets latest of a set name {version}"));
        for rules in members {
            let staging = self.registry(&rules.source.0);
            let from = name(&rules.source.1);
            if let Some(digest) = staging.tagged(&from, version) {
                staging.tag(&from, &tag("latest"), Some(digest));
            }
        }
    }

    /// A new tag for a version: a number, or where versions are compared one of semantic
    /// versioning.
    pub fn next_version(&mut self, draw: &mut Draw) -> Tag {
        self.versions += 1;
        let compares = |rules: &Rules| !rules.forward_only.is_empty();
        match self.routes.iter().any(compares) {
            true => traits::version(self.versions, draw),
            false => tag(&format!("v{}", self.versions)),
        }
    }

    /// A tag in staging, and the route that leads on from there.
    pub fn pick_source(&self, draw: &mut Draw) -> Option<(Rules, Tag)> {
        let rules = draw.pick(&self.routes);
        let tags = self.registry(&rules.source.0).tags(&name(&rules.source.1));
        let tags: Vec<Tag> = tags
            .into_iter()
            .filter(|tag| rules.takes(tag.as_str()) && !tag.as_str().starts_with("sha256-"))
            .collect();
        (!tags.is_empty()).then(|| (rules, draw.pick(&tags)))
    }

    /// What a tag names in production.
    pub fn in_production(&self, rules: &Rules, called: &Tag) -> Option<Digest> {
        let production = self.registry(&rules.destination.0);
        production.tagged(&name(&rules.destination.1), called)
    }

    /// A tag that a person rolls back to something that it named before and that is still there.
    pub fn pick_rollback(&self, draw: &mut Draw) -> Option<Rollback> {
        let (rules, tag) = self.pick_source(draw)?;
        let production = self.in_production(&rules, &tag)?;
        let staging = self.registry(&rules.source.0);
        let named = staging.tagged(&name(&rules.source.1), &tag);
        let (registry, repository) = &rules.destination;
        let there = self.registry(registry);
        let before = self.past.iter().filter(|(place, digest)| {
            let is_here = place.registry == *registry && place.repository == *repository;
            let is_other = *digest != production && there.holds(&name(repository), digest);
            is_here && *place.tag == *tag.as_str() && is_other
        });
        let before: Vec<Digest> = before.map(|(_, digest)| *digest).collect();
        if before.is_empty() {
            return None;
        }
        let to = draw.pick(&before);
        let mut keeps_out = vec![production];
        keeps_out.extend(named.filter(|named| *named != to && *named != production));
        Some(Rollback {
            rules,
            tag,
            production,
            to,
            keeps_out,
        })
    }

    /// A tag with other digests on both sides, of which a person takes staging's.
    pub fn pick_accept(&mut self, draw: &mut Draw) -> Option<Accept> {
        // The daemon refuses one of a route that observes.
        let writing = self.routes.iter().filter(|rules| !rules.observes);
        let differing: Vec<Accept> = writing.flat_map(|rules| self.differing(rules)).collect();
        let accept = (!differing.is_empty()).then(|| draw.pick(&differing))?;
        self.accepted.push(accept.clone());
        Some(accept)
    }

    /// The tags of a route with other digests on both sides.
    fn differing(&self, rules: &Rules) -> Vec<Accept> {
        let (staging, from) = (self.registry(&rules.source.0), name(&rules.source.1));
        let tags = staging.tags(&from).into_iter();
        let taken =
            tags.filter(|tag| rules.takes(tag.as_str()) && !tag.as_str().starts_with("sha256-"));
        let differing = taken.filter_map(|tag| {
            let digest = staging.tagged(&from, &tag)?;
            let replaces = self.in_production(rules, &tag)?;
            let place = Place {
                registry: rules.destination.0.clone(),
                repository: rules.destination.1.clone(),
                tag: tag.as_str().into(),
            };
            (digest != replaces).then_some(Accept {
                place,
                digest,
                replaces,
            })
        });
        differing.collect()
    }

    /// Lets a production tag name again what an accept replaced.
    pub fn undo_accept(&mut self, draw: &mut Draw) {
        let done = self.accepted.iter().filter(|accept| {
            let place = &accept.place;
            let production = self.registry(&place.registry);
            let to = name(&place.repository);
            production.tagged(&to, &tag(&place.tag)) == Some(accept.digest)
                && production.holds(&to, &accept.replaces)
        });
        let done: Vec<Accept> = done.cloned().collect();
        if done.is_empty() {
            return;
        }
        let Accept {
            place, replaces, ..
        } = draw.pick(&done);
        self.say(format!(
            "lets {} of production {}/{} name again what an accept replaced",
            place.tag, place.registry, place.repository
        ));
        let production = self.registry(&place.registry);
        production.tag(&name(&place.repository), &tag(&place.tag), Some(replaces));
    }

    /// What a person holds or denies.
    pub fn pick_covered(&self, draw: &mut Draw) -> Option<Covers> {
        let (rules, tag) = self.pick_source(draw)?;
        let place = Place {
            registry: rules.destination.0.clone(),
            repository: rules.destination.1.clone(),
            tag: tag.as_str().into(),
        };
        let staging = self.registry(&rules.source.0);
        let named = staging.tagged(&name(&rules.source.1), &tag)?;
        Some(match draw.below(6) {
            0 => Covers::Everything,
            1 => Covers::Route(rules.route),
            2 | 3 => Covers::Tag(place),
            _ => Covers::Image(named),
        })
    }

    /// Only this image has the blob.
    fn is_own(&self, digest: &Digest) -> bool {
        self.library
            .images
            .iter()
            .filter(|image| image.blobs.iter().any(|(held, _)| held == digest))
            .count()
            == 1
    }

    fn remember(&mut self, production: &Registry, repository: &RepositoryName) {
        for tag in production.tags(repository) {
            let Some(digest) = production.tagged(repository, &tag) else {
                continue;
            };
            let place = Place {
                registry: production.name().clone(),
                repository: repository.as_str().into(),
                tag: tag.as_str().into(),
            };
            if !self.past.contains(&(place.clone(), digest)) {
                self.past.push((place, digest));
            }
        }
    }

    fn pick_tagged(
        &self,
        registry: &Registry,
        repository: &RepositoryName,
        draw: &mut Draw,
    ) -> Option<(Tag, Image)> {
        let tagged = registry.tags(repository).into_iter().filter_map(|tag| {
            let image = self.library.find(&registry.tagged(repository, &tag)?)?;
            Some((tag, image.clone()))
        });
        let tagged: Vec<(Tag, Image)> = tagged.collect();
        (!tagged.is_empty()).then(|| draw.pick(&tagged))
    }

    fn push_image(
        &mut self,
        registry: &Registry,
        repository: &RepositoryName,
        draw: &mut Draw,
    ) -> Image {
        let again = draw
            .percent(10)
            .then(|| draw.below(self.library.images.len() as u64) as usize);
        let image = match again.and_then(|number| self.library.images.get(number)) {
            Some(image) => image.clone(),
            None => self.library.image(),
        };
        push(registry, repository, &image);
        self.hopeless(&image);
        image
    }

    /// Says that an image is too large for a registry.
    fn hopeless(&self, image: &Image) {
        for registry in &self.registries {
            let quota = registry.settings().quota;
            if quota.is_some_and(|quota| {
                image
                    .blobs
                    .iter()
                    .any(|(_, bytes)| bytes.len() as u64 > quota)
            }) {
                let registry = Some(registry.name().clone());
                self.trace.note(Event::Hopeless {
                    registry,
                    digest: image.top.digest,
                });
            }
        }
    }

    fn sign(
        &mut self,
        registry: &Registry,
        repository: &RepositoryName,
        image: &Image,
        _draw: &mut Draw,
    ) {
        let signature = self.library.signature(Some(&image.top));
        push(registry, repository, &signature);
    }

    fn called(&self, image: &Image) -> String {
        let names = self.trace.names();
        format!(
            " ({})",
            names.get(&image.top.digest).cloned().unwrap_or_default()
        )
    }
}

impl Registry {
    /// Forgets the blobs and manifests that no tag of the repository needs.
    fn collect(&self, repository: &RepositoryName) {
        let tagged = self
            .tags(repository)
            .into_iter()
            .filter_map(|tag| self.tagged(repository, &tag));
        let mut needed: Vec<Digest> = tagged.collect();
        let mut number = 0;
        while let Some(digest) = needed.get(number).copied() {
            number += 1;
            needed.extend(
                self.document(repository, &digest)
                    .map(|bytes| references(&bytes))
                    .unwrap_or_default(),
            );
            needed.extend(self.attached_to(repository, &digest));
        }
        for digest in self.held(repository) {
            if !needed.contains(&digest) {
                self.remove(repository, &digest);
            }
        }
    }
}

/// A repository's name.
pub fn name(text: &str) -> RepositoryName {
    text.parse().expect("a world names its repositories well")
}

/// A tag.
pub fn tag(text: &str) -> Tag {
    text.parse().expect("a world names its tags well")
}

/// A moment for each of so many deeds, in order, within a time.
pub fn moments(draw: &mut Draw, count: u64, within: Duration) -> Vec<Duration> {
    let mut moments: Vec<Duration> = (0..count)
        .map(|_| draw.millis(0, within.as_millis() as u64))
        .collect();
    moments.sort_unstable();
    moments
}
