//! A tag is named by what is true at that moment: whatever was lost, refused, hidden or changed on
//! the way, a person's tag stays, and a name that may move arrives in bounded time.

use std::sync::Arc;
use std::time::Duration;

use blobferry::fault::Class;
use blobferry::job::{
    Companions, Drift, Existing, Job, ObservedVia, Outcome, SHORT_WAIT, Settled, TagRules,
    TagState, TroubleClass,
};
use blobferry::ledger::{Query, RunFacts};
use blobferry::oci::{Digest, Manifest, Tag};
use blobferry::transfer::Settle;
use blobferry::transfer::retry::CurrentRules;
use blobferry::transfer::settle::Names;
use serde_json::json;
use tokio::time::{Instant, advance, sleep};

use crate::engine::{World, assert_failed, assert_promoted, entry, index, manifest};
use crate::support::memory::{Operation, Registry};

const SECOND: Duration = Duration::from_secs(1);
const FIXED: TagRules = TagRules {
    moving: false,
    existing: Existing::Keep,
    drift: Drift::Keep,
    forward_only: false,
};

fn busy(seconds: u64) -> Class {
    Class::Retryable {
        after: Some(Duration::from_secs(seconds)),
    }
}

impl World {
    /// Runs a job and settles it, as a look does.
    async fn settled(&self, job: &Job) -> Settled {
        let ending = self.run(job).await;
        let facts = Arc::new(RunFacts {
            run_id: "run".into(),
            ..RunFacts::default()
        });
        let settle = Settle {
            facts,
            progress: self.progress.clone(),
            listener: None,
        };
        let names = Names {
            source: "s/app".into(),
            destination: "p/app".into(),
            registry: "production".into(),
        };
        self.engine.settle(&settle, job, &names, ending).await
    }

    /// What history shows, oldest first.
    async fn history(&self) -> Vec<(Outcome, Option<Digest>)> {
        let rows = self
            .engine
            .ledger
            .page(Query {
                limit: 100,
                ..Query::default()
            })
            .await
            .unwrap();
        rows.into_iter()
            .filter_map(|row| row.settled().map(|job| (job.result, job.digest)))
            .collect()
    }

    fn fixed_job(&self, tag: &str) -> Job {
        Job {
            rules: FIXED,
            ..self.job("app", tag)
        }
    }

    /// A manifest that a person pushes to production by hand, with all that belongs to it.
    fn by_hand(&self, content: &str) -> Manifest {
        let config = self.production.store_blob("app", content.to_owned());
        self.production
            .store_manifest("app", None, &manifest(&config, &[]))
    }

    /// How often a tag was written.
    fn puts(&self, tag: &str) -> usize {
        let calls = self.production.calls();
        calls
            .iter()
            .filter(|call| call.operation == Operation::PutManifest && call.about == tag)
            .count()
    }
}

/// The next tag PUT is applied and its answer lost, and production does not answer for the tag
/// after that.
fn lose_the_next_write(world: &World) {
    world
        .production
        .lose_next_answer(Operation::PutManifest, Class::RETRYABLE);
    world.production.pass_next(Operation::Resolve);
    (0..20).for_each(|_| {
        world
            .production
            .fail_next(Operation::Resolve, Class::RETRYABLE)
    });
}

/// 1. `latest` is promoted at D1. 2. Staging moves to D2; the PUT is applied, and no answer comes
///    back, neither to it nor to any question after it. 3. A later pass finds both sides equal. 4.
///    A person goes back to D1 by hand. That was taken for what we wrote last, and moved to D2
///    again.
#[tokio::test(start_paused = true)]
async fn a_rollback_by_hand_stays_after_an_answer_was_lost() {
    let world = World::new();
    let first = world.image("app", "latest", &[]);
    assert_eq!(
        world.settled(&world.job("app", "latest")).await.result,
        Outcome::Promoted
    );
    let second = world.image("app", "latest", &[world.layer("app", 2, 10)]);
    lose_the_next_write(&world);
    let late = Job {
        look_began: blobferry::clock::now(),
        news: Some(Instant::now()),
        ..world.job("app", "latest")
    };
    advance(2 * SECOND).await;
    assert_eq!(world.settled(&late).await.result, Outcome::Failed);
    assert_eq!(
        world.production.tagged("app", "latest"),
        Some(second.digest),
        "it was applied"
    );

    let world = World {
        production: calm(&world.production),
        ..world.restarted()
    };
    assert_eq!(
        world.settled(&world.job("app", "latest")).await.result,
        Outcome::UpToDate
    );
    let promoted = |digest: &Manifest| (Outcome::Promoted, Some(digest.digest));
    let history = world.history().await;
    assert_eq!(
        (history[0], history[2]),
        (promoted(&first), promoted(&second)),
        "{history:?}"
    );

    world.production.tag("app", "latest", &first.digest);
    let before = world.puts("latest");
    for _ in 0..3 {
        assert_eq!(
            world.settled(&world.job("app", "latest")).await.result,
            Outcome::Drift
        );
    }
    assert_eq!(
        (
            world.production.tagged("app", "latest"),
            world.puts("latest")
        ),
        (Some(first.digest), before)
    );
}

/// 1. The PUT of D2 is applied, and no answer comes back. 2. The next pass finds it, while staging
///    has moved on to D3. 3. Its PUT is told to wait for a minute, so the job runs again. The row
///    of D2 got lost on the way.
#[tokio::test(start_paused = true)]
async fn a_write_found_before_a_long_wait_is_in_the_history() {
    let world = World::new();
    let second = world.image("app", "latest", &[world.layer("app", 2, 10)]);
    lose_the_next_write(&world);
    let lost = world.settled(&world.job("app", "latest")).await;
    assert_eq!(lost.result, Outcome::Failed);

    let world = World {
        production: calm(&world.production),
        ..world.restarted()
    };
    let third = world.image("app", "latest", &[world.layer("app", 3, 10)]);
    world.production.fail_next(Operation::PutManifest, busy(60));
    let promoted = world.settled(&world.job("app", "latest")).await;
    assert_eq!(promoted.result, Outcome::Promoted);
    let history = world.history().await;
    for image in [&second, &third] {
        let row = (Outcome::Promoted, Some(image.digest));
        assert!(history.contains(&row), "{history:?}");
    }
}

/// Staging does not answer while a tag is named: that is no trouble of production.
#[tokio::test(start_paused = true)]
async fn a_silent_staging_is_not_production_s_trouble() {
    let world = World::new();
    for registry in ["staging", "production"] {
        world.engine.metrics.health.prepare(registry);
    }
    world.image("app", "v1", &[]);
    (0..3).for_each(|_| world.production.fail_next(Operation::PutManifest, busy(4)));
    (0..100).for_each(|_| {
        world
            .staging
            .fail_next(Operation::Resolve, Class::RETRYABLE)
    });
    let ending = world.run(&world.fixed_job("v1")).await;
    assert_failed(&ending, Class::RETRYABLE);
    let is_up = |registry| {
        world
            .engine
            .metrics
            .health
            .of(registry)
            .and_then(|heard| heard.up)
    };
    assert_eq!(is_up("staging"), Some(false));
    assert_ne!(is_up("production"), Some(false));
}

/// The same registry, with nothing planned any more.
fn calm(registry: &Registry) -> Registry {
    registry.forget_plans();
    registry.clone()
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_found_out_by_asking_the_tag() {
    let world = World::new();
    let image = world.image("app", "v1", &[]);
    world
        .production
        .lose_next_answer(Operation::PutManifest, Class::RETRYABLE);
    assert_promoted(&world.run(&world.fixed_job("v1")).await);
    world.assert_arrived("app", "v1", &image);
    assert_eq!(world.puts("v1"), 1, "what is there is not written again");
}

/// The PUT is told to come back in 12 s; meanwhile a person pushes the tag.
#[tokio::test(start_paused = true)]
async fn a_fixed_tag_that_a_person_pushes_while_ours_is_told_to_wait_stays() {
    let world = World::new();
    world.image("app", "v1", &[]);
    let theirs = world.by_hand("theirs");
    world.production.fail_next(Operation::PutManifest, busy(12));
    let job = world.fixed_job("v1");
    let person = async {
        sleep(5 * SECOND).await;
        world.production.tag("app", "v1", &theirs.digest);
    };
    let (ending, ()) = tokio::join!(world.run(&job), person);
    assert_eq!(ending.outcome, Outcome::Existing, "{:?}", ending.fault);
    assert_eq!(
        (world.production.tagged("app", "v1"), world.puts("v1")),
        (Some(theirs.digest), 1)
    );
}

/// The registry misses a layer at the PUT, and bringing it again takes ten seconds; meanwhile a
/// person pushes the tag.
#[tokio::test(start_paused = true)]
async fn a_fixed_tag_that_a_person_pushes_while_content_is_repaired_stays() {
    let world = World::new();
    let layer = world.layer("app", 1, 1_000_000);
    world.image("app", "v1", std::slice::from_ref(&layer));
    let theirs = world.by_hand("theirs");
    let missing = layer.digest;
    world
        .production
        .before_next(Operation::PutManifest, move |production| {
            production.remove("app", &missing);
            production.set(|settings| settings.rate = Some(100_000));
        });
    let job = world.fixed_job("v1");
    let person = async {
        sleep(5 * SECOND).await;
        world.production.tag("app", "v1", &theirs.digest);
    };
    let (ending, ()) = tokio::join!(world.run(&job), person);
    assert_eq!(ending.outcome, Outcome::Existing, "{:?}", ending.fault);
    assert_eq!(
        (world.production.tagged("app", "v1"), world.puts("v1")),
        (Some(theirs.digest), 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_is_over_in_time_is_answered_with_the_same_put() {
    let world = World::new();
    world.image("app", "v1", &[]);
    world.production.fail_next(Operation::PutManifest, busy(1));
    let asked = world.production.count(Operation::Resolve);
    assert_promoted(&world.run(&world.fixed_job("v1")).await);
    assert_eq!(
        (
            world.puts("v1"),
            world.production.count(Operation::Resolve) - asked
        ),
        (2, 1),
        "asked once, written twice"
    );
}

/// A tag that HEAD shows, and no list does: because the list lags, or because there is none.
#[tokio::test(start_paused = true)]
async fn a_tag_that_is_missing_in_the_list_alone_is_never_overwritten() {
    for (destination_via, current_lists) in [
        (ObservedVia::List, false),
        (ObservedVia::MissingList, false),
        (ObservedVia::MissingList, true),
    ] {
        for rules in [
            FIXED,
            TagRules {
                moving: true,
                ..FIXED
            },
        ] {
            let world = World::new();
            world
                .production
                .set(|settings| settings.abilities.current_lists = current_lists);
            world.image("app", "v1", &[]);
            let theirs = world.by_hand("theirs");
            world.production.tag("app", "v1", &theirs.digest);
            let job = Job {
                rules,
                destination: TagState::Absent,
                destination_via,
                fresh: true,
                ..world.job("app", "v1")
            };
            let ending = world.run(&job).await;
            assert_eq!(
                ending.outcome,
                Outcome::Existing,
                "{destination_via:?}: {:?}",
                ending.fault
            );
            assert_eq!(
                (world.production.tagged("app", "v1"), world.puts("v1")),
                (Some(theirs.digest), 0)
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn where_lists_are_current_a_new_tag_costs_no_question() {
    let world = World::new();
    world.image("app", "v1", &[]);
    let job = Job {
        destination: TagState::Absent,
        destination_via: ObservedVia::List,
        fresh: true,
        ..world.fixed_job("v1")
    };
    assert_promoted(&world.run(&job).await);
    assert_eq!(world.production.count(Operation::Resolve), 0);
}

/// An image with a signature under cosign's tag.
fn signed(world: &World) -> (Manifest, Manifest, String) {
    let image = world.image("app", "v1", &[]);
    let tag = format!("{}.sig", Tag::fallback(&image.digest));
    let signature = world.image("app", &tag, &[world.layer("app", 77, 100)]);
    (image, signature, tag)
}

fn with_companion(job: Job, tag: &str) -> Job {
    let companions = [(tag.parse().unwrap(), None)].into_iter().collect();
    Job {
        companions: Companions::Listed(Arc::new(companions)),
        ..job
    }
}

/// A person puts a signature of their own there while ours is told to wait, and once more while it
/// is carried.
#[tokio::test(start_paused = true)]
async fn a_companion_that_a_person_pushes_meanwhile_stays() {
    let world = World::new();
    let (image, _, tag) = signed(&world);
    let theirs = world.by_hand("their signature");
    world.production.fail_next(Operation::PutManifest, busy(12));
    let job = with_companion(world.fixed_job("v1"), &tag);
    let person = async {
        sleep(5 * SECOND).await;
        world.production.tag("app", &tag, &theirs.digest);
    };
    let (ending, ()) = tokio::join!(world.run(&job), person);
    assert_promoted(&ending);
    world.assert_arrived("app", "v1", &image);
    assert_eq!(
        (world.production.tagged("app", &tag), world.puts(&tag)),
        (Some(theirs.digest), 1)
    );
}

/// We wrote the first signature, its successor's answer was lost, and a person went back.
#[tokio::test(start_paused = true)]
async fn a_companion_that_a_person_rolled_back_stays() {
    let world = World::new();
    let (_, first, tag) = signed(&world);
    let job = || with_companion(world.fixed_job("v1"), &tag);
    assert_promoted(&world.run(&job()).await);
    world.image("app", &tag, &[world.layer("app", 78, 100)]);
    world
        .production
        .lose_next_answer(Operation::PutManifest, Class::RETRYABLE);
    assert_eq!(world.run(&job()).await.outcome, Outcome::UpToDate);
    assert_ne!(
        world.production.tagged("app", &tag),
        Some(first.digest),
        "the new signature arrived"
    );
    world.production.tag("app", &tag, &first.digest);
    let before = world.puts(&tag);
    for _ in 0..2 {
        assert_eq!(world.run(&job()).await.outcome, Outcome::UpToDate);
    }
    assert_eq!(
        (world.production.tagged("app", &tag), world.puts(&tag)),
        (Some(first.digest), before)
    );
}

/// Another client adds to the fallback list while our write of it is told to wait: both entries are
/// there afterwards.
#[tokio::test(start_paused = true)]
async fn a_fallback_list_keeps_what_another_client_added_meanwhile() {
    let world = World::new();
    world.production.set(|settings| settings.referrers = false);
    let image = world.image("app", "v1", &[]);
    let subject = entry(&image.descriptor());
    let config = world.staging.store_blob("app", "{}");
    let document = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "x/y",
        "config": entry(&config), "layers": [], "subject": subject});
    let ours = world.staging.store_manifest("app", None, &document);
    let theirs = world.by_hand("their referrer");
    let list = Tag::fallback(&image.digest).to_string();
    // The referrer's own PUT passes, the one of the list is refused.
    world.production.pass_next(Operation::PutManifest);
    world.production.fail_next(Operation::PutManifest, busy(12));
    let job = world.fixed_job("v1");
    let client = async {
        sleep(5 * SECOND).await;
        world
            .production
            .store_manifest("app", Some(&list), &index(&[&theirs]));
    };
    let (ending, ()) = tokio::join!(world.run(&job), client);
    assert_promoted(&ending);
    let named = world
        .production
        .tagged("app", &list)
        .expect("the list is there");
    let children = world.production.children("app", &named);
    assert!(
        children.contains(&ours.digest) && children.contains(&theirs.digest),
        "{children:?}"
    );
}

/// Staging's HEAD says that its tag names what production names, and it never had that image. Then
/// it shows its own.
#[tokio::test(start_paused = true)]
async fn a_source_that_only_claims_a_digest_gets_nothing_replaced() {
    let world = World::new();
    let (_, _, signature) = signed(&world);
    let (latest, theirs) = (
        world.by_hand("production's latest"),
        world.by_hand("production's signature"),
    );
    for (tag, digest) in [
        ("latest", latest.digest),
        (signature.as_str(), theirs.digest),
    ] {
        world.production.tag("app", tag, &digest);
        world.staging.claim("app", tag, &digest);
    }
    let job = || with_companion(world.job("app", "latest"), &signature);
    let image = world.image("app", "latest", &[]);
    for _ in 0..3 {
        assert_eq!(world.settled(&job()).await.result, Outcome::UpToDate);
    }
    let by_tag = world.staging.calls();
    let read = by_tag
        .iter()
        .filter(|call| call.operation == Operation::Manifest && call.about == "latest")
        .count();
    assert_eq!(read, 1, "once for each digest, not at every look");
    world.staging.forget_claims();
    assert_eq!(world.settled(&job()).await.result, Outcome::Existing);
    assert_eq!(
        world
            .settled(&with_companion(world.fixed_job("v1"), &signature))
            .await
            .result,
        Outcome::Promoted
    );
    assert_eq!(
        world.production.tagged("app", "latest"),
        Some(latest.digest),
        "not {}",
        image.digest
    );
    assert_eq!(
        world.production.tagged("app", &signature),
        Some(theirs.digest)
    );
}

/// A config is read while a job runs: the registry's address was mended, or the tag is excluded
/// now.
#[tokio::test(start_paused = true)]
async fn a_running_job_names_nothing_that_the_config_in_force_does_not_allow() {
    let mut world = World::new();
    world.image("app", "v1", &[world.layer("app", 1, 1_000_000)]);
    world
        .production
        .set(|settings| settings.rate = Some(100_000));
    let reloaded = Instant::now() + 5 * SECOND;
    world.stop.rules = CurrentRules::new(move |_, _| (Instant::now() < reloaded).then_some(FIXED));
    let ending = world.run(&world.fixed_job("v1")).await;
    assert_eq!(ending.outcome, Outcome::Interrupted);
    assert_eq!(
        (world.production.tagged("app", "v1"), world.puts("v1")),
        (None, 0)
    );
}

/// The tag was listed under `moving` when the job began, and is not any more.
#[tokio::test(start_paused = true)]
async fn a_running_job_is_planned_again_when_its_rules_change() {
    let mut world = World::new();
    let first = world.image("app", "v1", &[]);
    assert_eq!(
        world.settled(&world.job("app", "v1")).await.result,
        Outcome::Promoted
    );
    world.image("app", "v1", &[world.layer("app", 1, 1_000_000)]);
    world
        .production
        .set(|settings| settings.rate = Some(100_000));
    let reloaded = Instant::now() + 5 * SECOND;
    let moving = TagRules {
        moving: true,
        ..FIXED
    };
    world.stop.rules = CurrentRules::new(move |_, _| {
        Some(if Instant::now() < reloaded {
            moving
        } else {
            FIXED
        })
    });
    assert_eq!(
        world.settled(&world.job("app", "v1")).await.result,
        Outcome::Conflict
    );
    assert_eq!(
        (world.production.tagged("app", "v1"), world.puts("v1")),
        (Some(first.digest), 1)
    );
}

/// Both sides refuse every other request for a while. Each name is written by what production
/// answered at most two seconds before, and all arrive in bounded time.
#[tokio::test(start_paused = true)]
async fn a_storm_on_both_sides_costs_time_and_no_name() {
    for wait in [1, 3] {
        let world = World::new();
        world
            .production
            .set(|settings| settings.abilities.current_lists = false);
        let tags: Vec<String> = (0..40).map(|number| format!("v{number}")).collect();
        tags.iter()
            .for_each(|tag| drop(world.image("app", tag, &[])));
        let jobs: Vec<Job> = tags.iter().map(|tag| world.fixed_job(tag)).collect();
        advance(11 * SECOND).await;
        let storm = |registry: &Registry, operation, count| {
            for _ in 0..count {
                registry.fail_next(operation, busy(wait));
                registry.pass_next(operation);
            }
        };
        storm(&world.staging, Operation::Resolve, 20);
        storm(&world.staging, Operation::Manifest, 20);
        storm(&world.production, Operation::Resolve, 30);
        storm(&world.production, Operation::PutManifest, 30);
        let began = Instant::now();
        let endings = futures::future::join_all(jobs.iter().map(|job| world.run(job))).await;
        endings.iter().for_each(assert_promoted);
        assert!(
            began.elapsed() < 300 * SECOND,
            "it took {:?}",
            began.elapsed()
        );
        let calls = world.production.calls();
        for tag in &tags {
            let last = |operation| {
                calls
                    .iter()
                    .rfind(|call| call.operation == operation && call.about == **tag)
                    .map(|call| call.at)
            };
            let (asked, named) = (
                last(Operation::Resolve).unwrap(),
                last(Operation::PutManifest).unwrap(),
            );
            assert!(
                named >= asked && named - asked <= 2 * SECOND,
                "{tag} was named {:?} after the answer",
                named - asked
            );
        }
    }
}

/// A registry that answers questions and refuses every write.
#[tokio::test(start_paused = true)]
async fn a_name_that_is_refused_again_and_again_is_given_up_for_now() {
    let world = World::new();
    world.image("app", "v1", &[]);
    (0..200).for_each(|_| world.production.fail_next(Operation::PutManifest, busy(3)));
    let began = Instant::now();
    let ending = world.run(&world.fixed_job("v1")).await;
    assert_failed(&ending, Class::RETRYABLE);
    assert!(
        matches!(
            ending.fault.unwrap().class(),
            Class::Retryable { after: Some(_) }
        ),
        "the hint is passed on"
    );
    assert!(
        began.elapsed() <= 300 * SECOND && world.puts("v1") <= 10,
        "{} PUTs in {:?}",
        world.puts("v1"),
        began.elapsed()
    );
    assert_eq!(world.production.tagged("app", "v1"), None);
}

/// Each PUT is refused for longer than a job holds its permits: the job ends, and the queue runs it
/// again at that time. The rounds once began anew with every run, so that such a name was never
/// given up.
#[tokio::test(start_paused = true)]
async fn a_name_that_waits_without_its_job_is_counted_on() {
    let world = World::new();
    world.image("app", "v1", &[]);
    (0..11).for_each(|_| world.production.fail_next(Operation::PutManifest, busy(20)));
    let job = Job {
        max_wait: SHORT_WAIT,
        ..world.fixed_job("v1")
    };
    let began = Instant::now();
    let mut runs = 0;
    loop {
        let asked = Instant::now();
        let ending = world.run(&job).await;
        runs += 1;
        assert_failed(&ending, Class::RETRYABLE);
        assert!(asked.elapsed() < 5 * SECOND, "it waited with its permits");
        let after = ending.retry_after().expect("it says when");
        assert!(after >= 19 * SECOND, "{after:?}");
        if ending.gave_up {
            break;
        }
        advance(after).await;
    }
    assert_eq!((runs, world.puts("v1")), (10, 10));
    assert!(began.elapsed() <= 300 * SECOND, "{:?}", began.elapsed());
    advance(30 * SECOND).await;
    assert!(!world.run(&job).await.gave_up, "a new count has begun");
    advance(30 * SECOND).await;
    assert_eq!(world.run(&job).await.outcome, Outcome::Promoted);
}

/// Nothing was sent: a person who pushes the same image later has pushed it, and another one is not
/// drift.
#[tokio::test(start_paused = true)]
async fn a_write_that_was_never_sent_leaves_no_intent() {
    let world = World::new();
    world.image("app", "v1", &[]);
    let theirs = world.by_hand("theirs");
    let digest = theirs.digest;
    world
        .production
        .before_next(Operation::Resolve, move |production| {
            production.tag("app", "v1", &digest)
        });
    let job = Job {
        destination: TagState::Absent,
        destination_via: ObservedVia::MissingList,
        fresh: true,
        ..world.fixed_job("v1")
    };
    assert_eq!(world.run(&job).await.outcome, Outcome::Existing);
    let known = world
        .engine
        .ledger
        .written(&job.key.destination)
        .await
        .unwrap();
    assert!(
        !known.is_known(None) && known.intended.is_empty(),
        "{known:?}"
    );
}

/// Agreement: both sides named it when it was first seen, so a change is drift, and staging's next
/// push is promoted.
#[tokio::test(start_paused = true)]
async fn equal_sides_are_agreed_on() {
    for rules in [
        FIXED,
        TagRules {
            moving: true,
            ..FIXED
        },
    ] {
        let world = World::new();
        let image = world.image("app", "v1", &[]);
        let config = world.production.store_blob("app", "{\"of\":\"app:v1\"}");
        world
            .production
            .store_manifest("app", Some("v1"), &manifest(&config, &[]));
        let job = || Job {
            rules,
            ..world.job("app", "v1")
        };
        assert_eq!(world.settled(&job()).await.result, Outcome::UpToDate);
        let known = world
            .engine
            .ledger
            .written(&job().key.destination)
            .await
            .unwrap();
        assert_eq!((known.digest, known.agreed), (Some(image.digest), true));
        assert_eq!(world.history().await, [], "agreement is no outcome");
        world.image("app", "v1", &[world.layer("app", 2, 10)]);
        let expected = if rules.moving {
            Outcome::Promoted
        } else {
            Outcome::Conflict
        };
        assert_eq!(world.settled(&job()).await.result, expected);
    }
}

/// `existing: adopt` takes over a moving tag, and the PUT fails: the intent alone made the tag
/// known, and the next look reported drift for ever.
#[tokio::test(start_paused = true)]
async fn a_failed_adoption_is_no_drift() {
    let world = World::new();
    let image = world.image("app", "latest", &[]);
    let theirs = world.by_hand("theirs");
    world.production.tag("app", "latest", &theirs.digest);
    (0..20).for_each(|_| {
        world
            .production
            .fail_next(Operation::PutManifest, Class::RETRYABLE)
    });
    let job = || Job {
        rules: TagRules {
            moving: true,
            existing: Existing::Adopt,
            ..FIXED
        },
        look_began: blobferry::clock::now(),
        news: Some(Instant::now()),
        ..world.job("app", "latest")
    };
    assert_eq!(world.settled(&job()).await.result, Outcome::Failed);
    assert_eq!(
        world.production.tagged("app", "latest"),
        Some(theirs.digest)
    );
    let production = calm(&world.production);
    let kept = Job {
        rules: TagRules {
            moving: true,
            ..FIXED
        },
        ..job()
    };
    assert_eq!(world.settled(&kept).await.result, Outcome::Existing);
    assert_eq!(world.settled(&job()).await.result, Outcome::Promoted);
    assert_eq!(production.tagged("app", "latest"), Some(image.digest));
}

/// A look has asked staging, and three seconds later another one of the same process is told a
/// newer digest.
#[tokio::test(start_paused = true)]
async fn a_newer_answer_of_another_look_counts() {
    let world = World::new();
    let old = world.image("app", "v1", &[]);
    let job = Job {
        source: TagState::At(old.digest),
        source_at: Some(Instant::now()),
        ..world.fixed_job("v1")
    };
    advance(3 * SECOND).await;
    let new = world.image("app", "v1", &[world.layer("app", 2, 10)]);
    let other = Job {
        dry_run: true,
        ..world.fixed_job("v1")
    };
    assert_eq!(world.run(&other).await.outcome, Outcome::Planned);
    assert_promoted(&world.run(&job).await);
    world.assert_arrived("app", "v1", &new);
    assert_eq!(world.puts("v1"), 1, "the older digest was never named");
}

/// 1. `v1` is promoted. 2. Production's replicas do not have it yet: each question, and the list,
///    is answered as before the write. 3. Staging moves `v1` meanwhile. It was written over.
#[tokio::test(start_paused = true)]
async fn a_fixed_tag_that_is_hidden_after_our_write_does_not_move() {
    blobferry::clock::simulate(blobferry::clock::now());
    let world = World::new();
    let first = world.image("app", "v1", &[]);
    let promoted = world.settled(&world.fixed_job("v1")).await;
    assert_eq!(promoted.result, Outcome::Promoted);
    world.image("app", "v1", &[world.layer("app", 2, 10)]);
    world.production.untag("app", "v1");
    advance(4 * SECOND).await;
    let poll = Job {
        max_wait: SHORT_WAIT,
        ..world.fixed_job("v1")
    };
    let waiting = world.settled(&poll).await;
    assert_eq!(waiting.result, Outcome::Failed);
    let error = waiting.error.expect("it says what is waited for");
    assert_eq!(error.class, TroubleClass::Retryable);
    assert!(error.text.contains("answered as missing"), "{}", error.text);
    assert_eq!(world.puts("v1"), 1);

    world.production.tag("app", "v1", &first.digest);
    let later = world.settled(&world.fixed_job("v1")).await;
    assert_eq!(later.result, Outcome::Conflict, "{later:?}");
    assert_eq!(world.puts("v1"), 1);
}

/// What was asked for by name waits for that, and goes by what production answers then.
#[tokio::test(start_paused = true)]
async fn a_fixed_tag_that_stays_missing_is_named_anew_a_minute_after_the_write() {
    blobferry::clock::simulate(blobferry::clock::now());
    let world = World::new();
    world.image("app", "v1", &[]);
    world.settled(&world.fixed_job("v1")).await;
    let second = world.image("app", "v1", &[world.layer("app", 2, 10)]);
    world.production.untag("app", "v1");
    let asked = Instant::now();
    assert_promoted(&world.run(&world.fixed_job("v1")).await);
    assert!(asked.elapsed() >= 60 * SECOND, "{:?}", asked.elapsed());
    world.assert_arrived("app", "v1", &second);
}

#[tokio::test(start_paused = true)]
async fn the_same_digest_and_a_moving_tag_come_back_at_once() {
    let world = World::new();
    for (tag, is_other) in [("v1", false), ("latest", true)] {
        let job = || Job {
            rules: TagRules {
                moving: is_other,
                ..FIXED
            },
            max_wait: SHORT_WAIT,
            ..world.job("app", tag)
        };
        let mut image = world.image("app", tag, &[]);
        assert_eq!(world.settled(&job()).await.result, Outcome::Promoted);
        if is_other {
            image = world.image("app", tag, &[world.layer("app", 2, 10)]);
        }
        world.production.untag("app", tag);
        assert_promoted(&world.run(&job()).await);
        assert_eq!(world.production.tagged("app", tag), Some(image.digest));
    }
}

/// 1. The PUT of D over C is answered with 504. 2. Staging goes back to C, and a pass finds both
///    sides equal. 3. The PUT acts after all. D was taken for a person's change, and the next image
///    did not come.
#[tokio::test(start_paused = true)]
async fn a_write_that_acts_late_is_ours_although_both_sides_were_equal_in_between() {
    let world = World::new();
    let third = world.image("app", "latest", &[]);
    world.settled(&world.job("app", "latest")).await;
    let late = world.image("app", "latest", &[world.layer("app", 2, 10)]);
    (0..40).for_each(|_| {
        world
            .production
            .fail_next(Operation::PutManifest, Class::RETRYABLE)
    });
    let lost = world.settled(&world.job("app", "latest")).await;
    assert_eq!(lost.result, Outcome::Failed);

    let world = World {
        production: calm(&world.production),
        ..world.restarted()
    };
    world.staging.tag("app", "latest", &third.digest);
    for _ in 0..2 {
        let equal = world.settled(&world.job("app", "latest")).await;
        assert_eq!(equal.result, Outcome::UpToDate, "{equal:?}");
    }

    let document: serde_json::Value = serde_json::from_slice(&late.bytes).unwrap();
    let acted = world
        .production
        .store_manifest("app", Some("latest"), &document);
    assert_eq!(acted.digest, late.digest);
    let next = world.image("app", "latest", &[world.layer("app", 3, 10)]);
    let promoted = world.settled(&world.job("app", "latest")).await;
    assert_eq!(promoted.result, Outcome::Promoted, "{promoted:?}");
    let history = world.history().await;
    for image in [&late, &next] {
        let row = (Outcome::Promoted, Some(image.digest));
        assert!(history.contains(&row), "{history:?}");
    }
    // A write that was confirmed ends it.
    world.production.tag("app", "latest", &late.digest);
    let drift = world.settled(&world.job("app", "latest")).await;
    assert_eq!(drift.result, Outcome::Drift, "{drift:?}");
}

/// 1. The tag moves from B to C, and production's reads still show B. 2. Staging names B again, so
///    both sides are equal for a moment. 3. Reads show C. It is what was written last, unless that
///    is so long ago that no read is that late.
#[tokio::test(start_paused = true)]
async fn a_write_that_reads_show_late_is_ours_although_both_sides_seemed_equal() {
    for (seconds, expected) in [(4, Outcome::Promoted), (600, Outcome::Drift)] {
        blobferry::clock::simulate(blobferry::clock::now());
        let world = World::new();
        let before = world.image("app", "latest", &[]);
        world.settled(&world.job("app", "latest")).await;
        let written = world.image("app", "latest", &[world.layer("app", 2, 10)]);
        world.settled(&world.job("app", "latest")).await;
        advance(seconds * SECOND).await;
        world.staging.tag("app", "latest", &before.digest);
        world.production.tag("app", "latest", &before.digest);
        let equal = world.settled(&world.job("app", "latest")).await;
        assert_eq!(equal.result, Outcome::UpToDate, "{equal:?}");

        world.production.tag("app", "latest", &written.digest);
        world.image("app", "latest", &[world.layer("app", 3, 10)]);
        let next = world.settled(&world.job("app", "latest")).await;
        assert_eq!(next.result, expected, "after {seconds} s: {next:?}");
    }
}
