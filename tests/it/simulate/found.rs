//! What was found once: each script plays the shortest story that led there.
//!
//! A script says what must be so in the end; the oracle reads its trace like that of any seed.

use std::time::Duration;

use blobferry::job::{Cause, Drift, Existing, Outcome};
use blobferry::oci::Digest;
use blobferry::registry::profile::Kind;
use blobferry::watch::Scope;
use blobferry::{clock, random};
use jiff::Timestamp;

use super::chance::Chance;
use super::oracle;
use super::people::{Image, Library, name, push, tag};
use super::process::{Nature, Process, Setting, Stores};
use super::registry::{Referrers, Registry, Settings, Sick, TroubleKind};
use super::story;
use super::trace::{About, Answer, Event, Operation, Place, Rules, Trace};
use super::world::on_a_fresh_clock;

/// Two registries, one route, and a process that polls.
struct Stage {
    trace: Trace,
    staging: Registry,
    production: Registry,
    routes: Vec<Rules>,
    library: Library,
    stores: Stores,
    nature: Nature,
    process: Option<Process>,
}

impl Stage {
    /// A well-behaved stage between registries of a kind.
    fn new(kind: Kind) -> Stage {
        random::seed(1);
        clock::simulate(Timestamp::from_second(1_795_000_000).expect("a time of these years"));
        let (chance, trace) = (Chance::new(1), Trace::begin());
        let registry = |name: &str| {
            Registry::new(
                name,
                Settings {
                    latency: (2, 4),
                    ..Settings::of(kind)
                },
                chance,
                &trace,
            )
        };
        let (staging, production) = (registry("staging"), registry("production"));
        let routes = vec![rules("app", "staging", "production")];
        let mut nature = Nature::usual();
        (nature.poll, nature.verify) = (Duration::from_secs(5), Duration::from_secs(60));
        let library = Library::new(chance, &trace, 100_000);
        let stores = Stores::new(chance, false);
        Stage {
            trace,
            staging,
            production,
            routes,
            library,
            stores,
            nature,
            process: None,
        }
    }

    /// Starts a process.
    fn start(&mut self) {
        for registry in [&self.staging, &self.production] {
            let settings = registry.settings();
            let current_lists = settings.lag.is_zero() && !settings.hides_list;
            let takes_artifacts = !settings.refuses_artifacts;
            self.trace.note(Event::Registry {
                name: registry.name().clone(),
                current_lists,
                takes_artifacts,
                is_steady: false,
            });
        }
        let registries = [self.staging.clone(), self.production.clone()];
        self.start_with(&registries);
    }

    fn start_with(&mut self, registries: &[Registry]) {
        let (stores, nature, routes, trace) =
            (&self.stores, self.nature, &self.routes, &self.trace);
        self.process = Some(Process::start(
            1,
            &Setting {
                stores,
                nature,
                registries,
                routes,
                trace,
                gate_service: None,
            },
        ));
    }

    async fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill().await;
        }
    }

    fn image(&mut self) -> Image {
        self.library.image()
    }

    /// An image with a layer of more than a megabyte.
    fn large_image(&mut self) -> Image {
        self.library = Library::new(Chance::new(5), &self.trace, 3_000_000);
        std::iter::repeat_with(|| self.library.image())
            .find(is_large)
            .expect("some are large")
    }

    /// Starts a process with an image in staging, and waits until all its tags have arrived.
    async fn starts_with(&mut self, image: &Image, tags: &[&str]) {
        self.push(image, tags);
        self.start();
        for called in tags {
            self.arrives(image, called, 20).await;
        }
    }

    /// Pushes an image to staging under some tags.
    fn push(&self, image: &Image, tags: &[&str]) {
        self.push_to(&self.staging, "app", image, tags);
    }

    /// Pushes an image to production by hand.
    fn push_by_hand(&self, image: &Image, tags: &[&str]) {
        self.push_to(&self.production, "prod-app", image, tags);
    }

    fn push_to(&self, registry: &Registry, repository: &str, image: &Image, tags: &[&str]) {
        push(registry, &name(repository), image);
        for called in tags {
            self.trace.note(Event::Person {
                text: format!("pushes {called} to {}/{repository}", registry.name()),
            });
            registry.tag(&name(repository), &tag(called), Some(image.top.digest));
        }
    }

    /// What production names.
    fn named(&self, called: &str) -> Option<Digest> {
        self.production.tagged(&name("prod-app"), &tag(called))
    }

    /// Lets so many seconds pass.
    async fn pass(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    /// Waits until production names an image.
    #[track_caller]
    fn arrives<'a>(
        &'a self,
        image: &'a Image,
        called: &'a str,
        seconds: u64,
    ) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let end = self.trace.now() + Duration::from_secs(seconds);
            while self.named(called) != Some(image.top.digest) {
                let late = self.trace.now() >= end;
                assert!(
                    !late,
                    "{caller}: {called} is not in production after {seconds} s\n{}",
                    self.story(called)
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    #[track_caller]
    fn assert_named(&self, called: &str, image: &Image, promise: &str) {
        assert_eq!(
            self.named(called),
            Some(image.top.digest),
            "{promise}\n{}",
            self.story(called)
        );
    }

    /// Asks by name.
    fn ask(&self, called: &str) {
        let scope = Scope {
            routes: vec!["app".into()],
            tags: vec![tag(called)],
            ..Scope::default()
        };
        self.process
            .as_ref()
            .expect("it runs")
            .ask(scope, Cause::Ping);
    }

    /// Asks for everything, as `sync` does.
    fn sync(&self) {
        self.process
            .as_ref()
            .expect("it runs")
            .ask(Scope::default(), Cause::Cli);
    }

    /// Requests of a kind that were sent since `from`.
    fn requests(&self, operation: Operation, from: Duration) -> usize {
        let sent = |entry: &super::trace::Entry| matches!(&entry.event, Event::Sent { call, .. } if call.operation == operation);
        self.trace
            .entries()
            .iter()
            .filter(|entry| entry.at >= from && sent(entry))
            .count()
    }

    /// What came of a tag, in order.
    fn results(&self, called: &str) -> Vec<Outcome> {
        let result = |entry: super::trace::Entry| match entry.event {
            Event::Settled {
                destination,
                result,
                ..
            } if &*destination.tag == called => Some(result),
            _ => None,
        };
        self.trace
            .entries()
            .into_iter()
            .filter_map(result)
            .collect()
    }

    fn story(&self, called: &str) -> String {
        let place = Place {
            registry: "production".into(),
            repository: "prod-app".into(),
            tag: called.into(),
        };
        let finding = oracle::Finding {
            at: self.trace.now(),
            promise: "the script's own",
            text: String::new(),
            place: Some(place),
        };
        story::tell(&self.trace.entries(), &self.trace.names(), &finding)
    }

    /// The oracle has found nothing.
    #[track_caller]
    fn assert_promises_kept(&self) {
        let (entries, names) = (self.trace.entries(), self.trace.names());
        if let Some(finding) = oracle::judge(&entries).first() {
            panic!("{}", story::tell(&entries, &names, finding));
        }
    }
}

fn rules(app: &str, staging: &str, production: &str) -> Rules {
    Rules {
        route: app.into(),
        source: (staging.into(), app.into()),
        destination: (production.into(), format!("prod-{app}").into()),
        include: vec!["*".into()],
        exclude: Vec::new(),
        moving: vec!["latest".into()],
        existing: Existing::Keep,
        drift: Drift::Keep,
        wild: false,
        gates: Default::default(),
        observes: false,
        forward_only: Vec::new(),
        set: None,
        backs_up: false,
    }
}

/// Plays a script.
fn play<F: Future<Output = ()>>(script: impl FnOnce() -> F + Send + 'static) {
    on_a_fresh_clock(script);
}

/// Every answer to the PUT of `latest` was lost, though it was applied. Later looks saw both sides
/// equal and recorded nothing. When a person rolled back, the older digest still counted as ours,
/// and the rollback was undone.
#[test]
fn a_rollback_after_lost_answers_stays() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        let (old, new) = (stage.image(), stage.image());
        stage.starts_with(&old, &["latest"]).await;
        stage.pass(10).await;
        stage
            .production
            .plan(Operation::PutManifest, TroubleKind::Lost, 50);
        stage.push(&new, &["latest"]);
        stage.arrives(&new, "latest", 20).await;
        stage.pass(60).await;
        stage.production.forget_plans();
        stage.pass(300).await;
        stage.push_by_hand(&old, &["latest"]);
        stage.pass(300).await;
        stage.assert_named("latest", &old, "a rollback by hand stays");
        assert!(
            stage.results("latest").contains(&Outcome::Drift),
            "it is reported"
        );
        stage.assert_promises_kept();
    });
}

/// The same, but the process was killed before the answer.
#[test]
fn a_rollback_after_a_kill_stays() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        let (old, new) = (stage.image(), stage.image());
        stage.starts_with(&old, &["latest"]).await;
        stage.pass(10).await;
        stage.push(&new, &["latest"]);
        stage
            .production
            .plan(Operation::PutManifest, TroubleKind::Slow, 5);
        stage.arrives(&new, "latest", 20).await;
        stage.kill().await;
        stage.production.forget_plans();
        stage.start();
        stage.pass(60).await;
        stage.push_by_hand(&old, &["latest"]);
        stage.pass(300).await;
        stage.assert_named("latest", &old, "a rollback by hand stays");
        stage.assert_promises_kept();
    });
}

/// The PUT was told to come back in 12 s. A person pushed the fixed tag to production meanwhile; it
/// was overwritten.
#[test]
fn a_put_that_is_sent_again_asks_production_again() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        let (ours, theirs) = (stage.image(), stage.image());
        stage.start();
        stage.pass(1).await;
        stage
            .production
            .plan(Operation::PutManifest, TroubleKind::BusyFor(12), 1);
        stage.push(&ours, &["v1"]);
        stage.pass(8).await;
        stage.push_by_hand(&theirs, &["v1"]);
        stage.pass(60).await;
        stage.assert_named("v1", &theirs, "what a person pushed stays");
        stage.assert_promises_kept();
    });
}

/// The fixed tag was in production, but not in its list: it was overwritten without a question.
#[test]
fn a_list_that_lags_says_nothing_about_absence() {
    for hides in [false, true] {
        for kind in [Kind::Generic, Kind::Ghcr, Kind::Quay, Kind::Harbor] {
            play(move || async move {
                let mut stage = Stage::new(kind);
                stage.production.set(|settings| {
                    settings.lag = Duration::from_secs(120);
                    settings.hides_list = hides;
                });
                let (theirs, ours) = (stage.image(), stage.image());
                stage.start();
                stage.pass(1).await;
                stage.push_by_hand(&theirs, &["v1"]);
                stage.push(&ours, &["v1"]);
                stage.pass(60).await;
                stage.assert_named("v1", &theirs, "what a person pushed stays");
                stage.assert_promises_kept();
            });
        }
    }
}

/// Staging said yes to any digest that it was asked about: production's own `latest` and its own
/// signature were replaced.
#[test]
fn a_source_that_says_yes_changes_nothing_of_what_was_there() {
    play(|| async {
        let mut stage = Stage::new(Kind::Generic);
        stage.staging.set(|settings| settings.agrees = true);
        let (theirs, ours) = (stage.image(), stage.image());
        let beside = format!("sha256-{}.sig", ours.top.digest.encoded());
        let (their_signature, our_signature) =
            (stage.library.signature(None), stage.library.signature(None));
        stage.push_by_hand(&theirs, &["latest"]);
        stage.push_by_hand(&their_signature, &[&beside]);
        stage.push(&our_signature, &[&beside]);
        stage.push(&ours, &["latest", "v1"]);
        stage.start();
        stage.arrives(&ours, "v1", 30).await;
        stage.pass(60).await;
        stage.assert_named("latest", &theirs, "what was there before stays");
        stage.assert_named(
            &beside,
            &their_signature,
            "a signature that was there before stays",
        );
        stage.assert_promises_kept();
    });
}

/// Drift was kept. Then the state was deleted, and the next look overwrote what the person had put
/// there.
#[test]
fn a_lost_state_makes_careful() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        let (ours, theirs, newer) = (stage.image(), stage.image(), stage.image());
        stage.starts_with(&ours, &["latest"]).await;
        stage.pass(10).await;
        // The person's image was once pushed to staging, too: staging still holds it.
        stage.push(&theirs, &["other"]);
        stage.push_by_hand(&theirs, &["latest"]);
        stage.pass(120).await;
        stage.kill().await;
        stage.stores.lose();
        stage.push(&newer, &["latest"]);
        stage.start();
        stage.sync();
        stage.pass(120).await;
        stage.assert_named("latest", &theirs, "what a person changed stays");
        stage.assert_promises_kept();
    });
}

/// `latest` was asked for by name while its digest was in conflict under a fixed tag of the same
/// push: it was promoted.
#[test]
fn a_digest_in_conflict_is_refused_by_name_as_well() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        stage.nature.poll = Duration::from_secs(600);
        let (first, second) = (stage.image(), stage.image());
        stage.starts_with(&first, &["v1", "latest"]).await;
        stage.pass(60).await;
        stage.push(&second, &["v1", "latest"]);
        stage.pass(60).await;
        stage.ask("latest");
        stage.pass(60).await;
        stage.assert_named("latest", &first, "its digest is in conflict");
        stage.assert_promises_kept();
    });
}

/// While `latest` was carried, a fixed tag came into conflict, and staging moved `latest` to the
/// digest of that conflict: it was promoted.
#[test]
fn a_digest_that_comes_into_conflict_while_its_tag_is_carried_is_refused() {
    for kind in [Kind::Distribution3, Kind::Generic, Kind::Ecr] {
        play(move || async move {
            let mut stage = Stage::new(kind);
            stage.nature.poll = Duration::from_secs(600);
            let (first, second) = (stage.image(), stage.large_image());
            let third = stage.image();
            stage.starts_with(&first, &["v1", "latest"]).await;
            stage.pass(5).await;
            stage
                .production
                .set(|settings| settings.rate = Some(20_000));
            stage.push(&second, &["latest"]);
            stage.ask("latest");
            stage.pass(5).await;
            stage.push(&third, &["v1", "latest"]);
            stage.pass(500).await;
            let uploads = stage.requests(Operation::FinishUpload, Duration::ZERO);
            assert!(uploads > first.blobs.len(), "nothing was carried meanwhile");
            stage.assert_named("latest", &first, "its digest is in conflict");
            stage.assert_promises_kept();
        });
    }
}

/// Uploads with a shared read and without one took permits in different orders: with few permits
/// and refused mounts everything stood still.
#[test]
fn many_tags_pass_through_few_permits() {
    for (concurrency, tags) in [(Some(2), 46), (Some(8), 90), (None, 90)] {
        play(move || async move {
            let mut stage = Stage::new(Kind::Ecr);
            stage.nature.concurrency = concurrency;
            stage.production.set(|settings| {
                settings.mounts_refused = 100;
                settings.rate = Some(400_000);
            });
            stage.routes = vec![
                rules("app", "staging", "production"),
                rules("web", "staging", "production"),
            ];
            let images: Vec<Image> = (0..tags).map(|_| stage.library.large_image()).collect();
            let (before, after) = images.split_at(tags / 2);
            let called = |number: usize| format!("v{number}");
            for (number, image) in before.iter().enumerate() {
                stage.push(image, &[&called(number)]);
            }
            stage.start();
            for (number, image) in before.iter().enumerate() {
                stage.arrives(image, &called(number), 900).await;
            }
            // From here on half of the uploads follow a refused mount, and the others share a read.
            stage
                .production
                .set(|settings| settings.busy_every = Some((Operation::BeginUpload, 9)));
            for (number, image) in before.iter().chain(after).enumerate() {
                stage.push_to(&stage.staging, "web", image, &[&called(number)]);
            }
            for (number, image) in after.iter().enumerate() {
                stage.push(image, &[&called(before.len() + number)]);
            }
            stage.sync();
            stage.pass(900).await;
            for (number, image) in images.iter().enumerate() {
                let tagged = |repository| {
                    stage
                        .production
                        .tagged(&name(repository), &tag(&called(number)))
                };
                for repository in ["prod-app", "prod-web"] {
                    let there = tagged(repository) == Some(image.top.digest);
                    assert!(
                        there,
                        "{concurrency:?}: {repository}:{} is not there\n{}",
                        called(number),
                        stage.story(&called(number))
                    );
                }
            }
        });
    }
}

/// One staging registry dripped, or asked for 700 s: it held all permits, and nothing came from any
/// other.
#[test]
fn a_sick_source_holds_up_no_other() {
    for sick in [Sick::Drip(15_000), Sick::Busy(700)] {
        play(move || async move {
            let mut stage = Stage::new(Kind::Distribution3);
            stage.nature.poll = Duration::from_secs(2);
            stage.library = Library::new(Chance::new(2), &stage.trace, 2_000_000);
            let other = Registry::new(
                "ailing",
                Settings::of(Kind::Distribution3),
                Chance::new(3),
                &stage.trace,
            );
            other.set(|settings| settings.sick = Some((sick, Duration::from_secs(3600))));
            stage.routes.push(rules("ill", "ailing", "production"));
            for number in 0..80 {
                let image = stage.image();
                stage.push_to(&other, "ill", &image, &[&format!("v{number}")]);
            }
            let healthy = stage.image();
            stage.start_with(&[
                stage.staging.clone(),
                stage.production.clone(),
                other.clone(),
            ]);
            stage.pass(60).await;
            stage.push(&healthy, &["v1"]);
            stage.arrives(&healthy, "v1", 5).await;
        });
    }
}

/// A hotfix that was asked for by name waited behind a backfill, also of its own repository.
#[test]
fn what_is_asked_for_by_name_overtakes_a_backfill() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        stage.nature.poll = Duration::from_secs(600);
        stage
            .production
            .set(|settings| settings.rate = Some(100_000));
        stage.routes = (0..8)
            .map(|number| rules(&format!("app{number}"), "staging", "production"))
            .collect();
        stage.routes.push(rules("app", "staging", "production"));
        for number in 0..40 {
            for app in 0..8 {
                let image = stage.library.large_image();
                stage.push_to(
                    &stage.staging,
                    &format!("app{app}"),
                    &image,
                    &[&format!("v{number}")],
                );
            }
            let image = stage.library.large_image();
            stage.push(&image, &[&format!("v{number}")]);
        }
        stage.start();
        stage.pass(3).await;
        let hotfix = stage.library.signature(None);
        stage.push(&hotfix, &["hotfix"]);
        stage.ask("hotfix");
        stage.arrives(&hotfix, "hotfix", 10).await;
    });
}

/// A repository of 80 tags with slow blobs, or with slow tag writes, held all permits of
/// the registries: a hotfix that was asked for by name waited for it.
#[test]
fn a_slow_repository_does_not_hold_up_what_is_asked_for_by_name() {
    for operation in [Operation::ReadBlob, Operation::PutManifest] {
        play(move || async move {
            let mut stage = Stage::new(Kind::Distribution3);
            stage.nature.poll = Duration::from_secs(600);
            stage.routes.push(rules("slow", "staging", "production"));
            for number in 0..80 {
                let image = stage.library.signature(None);
                stage.push_to(&stage.staging, "slow", &image, &[&format!("v{number}")]);
            }
            let registry = match operation {
                Operation::ReadBlob => stage.staging.clone(),
                _ => stage.production.clone(),
            };
            registry.plan(operation, TroubleKind::Slow, 80);
            stage.start();
            stage.pass(3).await;
            registry.forget_plans();
            let hotfix = stage.library.signature(None);
            stage.push(&hotfix, &["hotfix"]);
            stage.ask("hotfix");
            stage.arrives(&hotfix, "hotfix", 5).await;
        });
    }
}

/// An upload session was gone, or answered 500: every look resumed it again, for ever.
#[test]
fn a_dead_session_is_replaced() {
    for kind in [
        Kind::Ecr,
        Kind::EcrPublic,
        Kind::Distribution3,
        Kind::Generic,
    ] {
        for dead in [TroubleKind::Vanish, TroubleKind::Spoil] {
            play(move || async move {
                let mut stage = Stage::new(kind);
                stage.nature.bounds.checkpoint = 64 * 1024;
                let large = stage.large_image();
                stage
                    .production
                    .set(|settings| settings.rate = Some(500_000));
                stage.push(&large, &["v1"]);
                stage.start();
                stage.pass(3).await;
                stage.kill().await;
                stage.production.plan(Operation::UploadOffset, dead, 1);
                stage.production.plan(Operation::FinishUpload, dead, 1);
                stage.production.plan(Operation::SendChunk, dead, 1);
                stage.start();
                stage.arrives(&large, "v1", 120).await;
                stage.assert_promises_kept();
            });
        }
    }
}

fn is_large(image: &Image) -> bool {
    image.blobs.iter().any(|(_, bytes)| bytes.len() > 1_000_000)
}

/// One tag of a repository was refused at its PUT: from then on the repository was looked at every
/// few minutes only.
#[test]
fn a_refused_tag_slows_no_other() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        stage
            .production
            .set(|settings| settings.denied = ["v1".to_owned()].into());
        let (refused, other) = (stage.image(), stage.image());
        stage.push(&refused, &["v1"]);
        stage.start();
        stage.pass(300).await;
        stage.push(&other, &["v2"]);
        stage.arrives(&other, "v2", 10).await;
        assert_eq!(stage.named("v1"), None);
        stage.assert_promises_kept();
    });
}

/// A tag rested, and staging's list was refused: the end of the rest caused one look after another.
#[test]
fn a_list_that_is_refused_is_not_read_again_at_once_for_a_resting_tag() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        stage.nature.poll = Duration::from_secs(24 * 3600);
        stage.nature.verify = stage.nature.poll;
        stage
            .production
            .set(|settings| settings.denied = ["v1".to_owned()].into());
        let image = stage.image();
        stage.push(&image, &["v1"]);
        stage.start();
        stage.pass(30).await;
        let rests_since = stage.trace.now();
        assert!(!stage.results("v1").is_empty(), "it was tried");
        stage.staging.plan(Operation::Tags, TroubleKind::Odd, 1_000);
        stage.pass(600).await;
        let asked = stage.requests(Operation::Tags, rests_since);
        assert!(
            (2..=12).contains(&asked),
            "{asked} lists in ten minutes\n{}",
            stage.story("v1")
        );
        stage.staging.forget_plans();
        stage.production.set(|settings| settings.denied.clear());
        stage.arrives(&image, "v1", 900).await;
        stage.assert_promises_kept();
    });
}

/// A repository was deleted, and another that was asked for never was: both were looked at every
/// quarter of an hour for ever, and the route stayed down.
#[test]
fn a_source_that_is_gone_is_forgotten() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        stage.nature.poll = Duration::from_secs(60);
        stage.routes[0].source.1 = "*".into();
        stage.routes[0].destination.1 = "prod-{1}".into();
        let image = stage.image();
        for repository in ["app", "old"] {
            stage.push_to(&stage.staging, repository, &image, &["v1"]);
        }
        stage.start();
        stage.arrives(&image, "v1", 20).await;
        stage.staging.remove_repository(&name("old"));
        let process = stage.process.as_ref().expect("it runs");
        let is_up = || process.status().routes[0].up;
        let asked_for = Scope {
            repository: Some(name("never")),
            ..Scope::default()
        };
        process.ask(asked_for, Cause::Webhook);
        stage.pass(2).await;
        assert_eq!(is_up(), Some(false), "it was looked at");
        stage.pass(600).await;
        let from = stage.trace.now();
        stage.pass(4 * 3600).await;
        assert_eq!(is_up(), Some(true));
        let about_gone = |entry: &super::trace::Entry| matches!(&entry.event, Event::Sent { call, .. } if entry.at >= from && *call.repository != *"app" && *call.repository != *"prod-app");
        let asked = stage.trace.entries().into_iter().filter(about_gone);
        assert_eq!(asked.count(), 0, "requests about what is gone");
        stage.push_to(&stage.staging, "never", &image, &["v1"]);
        stage.pass(70).await;
        let there = stage.production.tagged(&name("prod-never"), &tag("v1"));
        assert_eq!(there, Some(image.top.digest), "the catalog lists it now");
    });
}

/// Neither side answered: staging was asked about a hundred tags, one after the other, each until
/// the retries ended.
#[test]
fn a_staging_that_answers_nothing_is_asked_about_one_tag() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        stage.routes[0].moving = vec!["m*".into()];
        let image = stage.image();
        let tags: Vec<String> = (0..60).map(|number| format!("m{number}")).collect();
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        stage.starts_with(&image, &tags).await;
        stage.pass(20).await;
        stage
            .production
            .plan(Operation::Tags, TroubleKind::Odd, 1_000);
        stage
            .staging
            .plan(Operation::Resolve, TroubleKind::Broken, 10_000);
        stage.pass(10).await;
        let from = stage.trace.now();
        stage.sync();
        stage.pass(600).await;
        let lists = stage.requests(Operation::Tags, from);
        let asked = stage.requests(Operation::Resolve, from);
        assert!(
            (1..=10 * lists).contains(&asked),
            "{asked} questions beside {lists} lists"
        );
    });
}

/// The ledger wrote what a thousand tags agreed on, and all other tags of the look stood still
/// until it had.
#[test]
fn a_slow_ledger_holds_up_no_comparison() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        let image = stage.image();
        let tags: Vec<String> = (0..1900).map(|number| format!("v{number}")).collect();
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        stage.push(&image, &tags);
        stage.push_by_hand(&image, &tags);
        stage.stores.slow_down(Duration::from_secs(60));
        stage.start();
        stage.pass(30).await;
        let asked = stage.requests(Operation::Resolve, Duration::ZERO);
        assert_eq!(asked, 2 * tags.len(), "each side is asked about each tag");
    });
}

/// The questions of a look by name waited behind those of a look at everything.
#[test]
fn the_questions_of_a_look_by_name_go_first() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        stage.nature.poll = Duration::from_secs(600);
        stage
            .production
            .set(|settings| settings.quotas.manifests = Some(8));
        let image = stage.image();
        let tags: Vec<String> = (0..300).map(|number| format!("v{number}")).collect();
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        stage.push(&image, &tags);
        stage.push_by_hand(&image, &tags);
        stage.start();
        stage.pass(5).await;
        let hotfix = stage.library.signature(None);
        stage.push(&hotfix, &["hotfix"]);
        stage.ask("hotfix");
        stage.arrives(&hotfix, "hotfix", 10).await;
    });
}

/// A signature that stayed as it was went on being kept in memory when its image was deleted.
#[test]
fn a_companion_that_is_gone_is_forgotten() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        let image = stage.image();
        let beside = format!("sha256-{}.sig", image.top.digest.encoded());
        let (ours, theirs) = (stage.library.signature(None), stage.library.signature(None));
        stage.push(&ours, &[&beside]);
        stage.push_by_hand(&theirs, &[&beside]);
        stage.starts_with(&image, &["v1"]).await;
        stage.pass(10).await;
        let engine = stage.process.as_ref().expect("it runs").engine();
        let repository = name("prod-app");
        let there = (stage.production.origin(), &repository);
        let kept = || {
            engine
                .kept_companions(&"app".into(), &name("app"), there)
                .len()
        };
        assert_eq!(kept(), 1, "it stays as it is");
        stage.staging.tag(&name("app"), &tag(&beside), None);
        stage.pass(20).await;
        assert_eq!(kept(), 0);
    });
}

/// A body that panicked while it was polled poisoned the read that it shared, and ended the
/// process.
#[test]
fn a_panic_ends_one_look_alone() {
    play(|| async {
        let mut stage = Stage::new(Kind::Gar);
        stage.routes.push(rules("web", "staging", "production"));
        let image = stage.library.large_image();
        stage.push(&image, &["v1"]);
        stage.push_to(&stage.staging, "web", &image, &["v1"]);
        stage.staging.set(|settings| settings.rate = Some(100_000));
        stage
            .staging
            .plan(Operation::ReadBlob, TroubleKind::Panic, 2);
        stage.start();
        stage.arrives(&image, "v1", 120).await;
        stage.assert_promises_kept();
    });
}

/// The quota refused a blob when all of it had been sent: it was sent again at every look, and for
/// every tag.
#[test]
fn what_a_quota_refuses_is_not_sent_again_at_every_look() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        stage
            .production
            .set(|settings| settings.quota = Some(1_000_000));
        let large = stage.large_image();
        let size: u64 = large
            .blobs
            .iter()
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        let tags: Vec<String> = (1..=12).map(|number| format!("v{number}")).collect();
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        stage.push(&large, &tags);
        stage.start();
        stage.pass(120).await;
        let sent: u64 = stage
            .trace
            .entries()
            .iter()
            .filter_map(|entry| match entry.event {
                Event::Answered {
                    answer: Answer::Done { bytes },
                    ..
                }
                | Event::Abandoned { bytes, .. } => Some(bytes),
                _ => None,
            })
            .sum();
        let refused = stage.requests(Operation::FinishUpload, Duration::ZERO);
        assert!(
            refused <= 2 * large.blobs.len(),
            "{refused} uploads were closed\n{}",
            stage.story("v1")
        );
        assert!(sent <= 2 * size, "{sent} bytes were sent for {size}");
        stage.assert_promises_kept();
    });
}

/// A corrupt layer was read twice at every look.
#[test]
fn a_corrupt_layer_is_not_read_at_every_look() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        let image = stage.image();
        stage.push(&image, &["v1"]);
        let (layer, _) = image.blobs.last().expect("an image has a config").clone();
        stage.staging.rot(&layer);
        stage.trace.note(Event::Hopeless {
            registry: None,
            digest: image.top.digest,
        });
        stage.start();
        stage.pass(120).await;
        let about_layer = |event: &Event| matches!(event, Event::Sent { call, .. } if call.operation == Operation::ReadBlob && call.about == About::Content(layer));
        let reads = stage
            .trace
            .entries()
            .iter()
            .filter(|entry| about_layer(&entry.event))
            .count();
        assert!(reads <= 4, "it was read {reads} times in two minutes");
        assert_eq!(stage.named("v1"), None);
        stage.assert_promises_kept();
    });
}

/// A second signature never arrived by `sync`, which said that all is up to date.
#[test]
fn late_signatures_arrive_by_sync() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        stage.nature.poll = Duration::from_secs(600);
        stage.nature.verify = Duration::from_secs(3600);
        let image = stage.image();
        let first = stage.library.signature(Some(&image.top));
        let beside = format!("sha256-{}.sig", image.top.digest.encoded());
        let (old, new) = (stage.library.signature(None), stage.library.signature(None));
        push(&stage.staging, &name("app"), &first);
        stage.push(&old, &[&beside]);
        stage.starts_with(&image, &["v1"]).await;
        stage.pass(60).await;
        let second = stage.library.signature(Some(&image.top));
        let of_signature = stage.library.signature(Some(&first.top));
        push(&stage.staging, &name("app"), &second);
        push(&stage.staging, &name("app"), &of_signature);
        stage.push(&new, &[&beside]);
        stage.sync();
        stage.pass(60).await;
        let held = |image: &Image| stage.production.holds(&name("prod-app"), &image.top.digest);
        assert!(held(&first), "the first signature travels with its image");
        assert!(
            held(&second),
            "the second signature comes later\n{}",
            stage.story("v1")
        );
        assert!(
            held(&of_signature),
            "a signature of a signature comes later"
        );
        stage.assert_named(&beside, &new, "a signature under a tag that moved arrives");
        stage.assert_promises_kept();
    });
}

/// A registry answered 404 for the referrers of a subject that it lacked: taken as "no such
/// endpoint", later images went out unsigned, and stray fallback tags appeared.
#[test]
fn a_subject_that_is_missing_says_nothing_about_the_endpoint() {
    play(|| async {
        let mut stage = Stage::new(Kind::Quay);
        stage
            .staging
            .set(|settings| settings.referrers = Referrers::MissingSubject);
        stage
            .production
            .set(|settings| settings.referrers = Referrers::MissingSubject);
        let images = [stage.image(), stage.image()];
        stage.start();
        for (number, image) in images.iter().enumerate() {
            let signature = stage.library.signature(Some(&image.top));
            push(&stage.staging, &name("app"), &signature);
            stage.push(image, &[&format!("v{number}")]);
            stage.arrives(image, &format!("v{number}"), 30).await;
            let signed = stage
                .production
                .holds(&name("prod-app"), &signature.top.digest);
            assert!(
                signed,
                "it went out unsigned\n{}",
                stage.story(&format!("v{number}"))
            );
        }
        let tags = stage.production.tags(&name("prod-app"));
        assert!(
            tags.iter().all(|tag| !tag.travels_with_subject()),
            "stray tags: {tags:?}"
        );
        stage.assert_promises_kept();
    });
}

/// A drift that had just been reported became "equal again" at the next poll, which believed a
/// hint.
#[test]
fn drift_stays_reported_until_it_is_over() {
    play(|| async {
        let mut stage = Stage::new(Kind::Distribution3);
        stage.nature.verify = Duration::from_secs(3600);
        let (ours, theirs) = (stage.image(), stage.image());
        stage.starts_with(&ours, &["latest"]).await;
        stage.pass(20).await;
        stage.push_by_hand(&theirs, &["latest"]);
        stage.sync();
        stage.pass(120).await;
        assert_eq!(
            stage.results("latest").last(),
            Some(&Outcome::Drift),
            "{}",
            stage.story("latest")
        );
        stage.assert_promises_kept();
    });
}

/// A list that lagged behind our own promotion alone decided that somebody had changed production.
#[test]
fn a_list_that_lags_behind_a_promotion_is_no_drift() {
    play(|| async {
        let mut stage = Stage::new(Kind::Ecr);
        stage
            .production
            .set(|settings| settings.lag = Duration::from_secs(6));
        let images: Vec<Image> = (0..5).map(|_| stage.image()).collect();
        stage.start();
        for image in &images {
            stage.push(image, &["latest"]);
            stage.sync();
            stage.arrives(image, "latest", 20).await;
            stage.sync();
            stage.pass(2).await;
            stage.sync();
            stage.pass(11).await;
        }
        let results = stage.results("latest");
        assert!(
            results.iter().all(|result| *result == Outcome::Promoted),
            "{results:?}\n{}",
            stage.story("latest")
        );
        stage.assert_promises_kept();
    });
}
