//! What refers to an image (signatures, lists of parts) is in production before its tag, is written
//! once, and never takes the place of what another job or a person has put there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use blobferry::decision::{self, Decision, Target};
use blobferry::fault::Class;
use blobferry::job::{Actor, Companions, Job, Outcome, TagId, TagRules, TagState};
use blobferry::ledger::RunFacts;
use blobferry::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use blobferry::oci::{Digest, Manifest, Tag};
use blobferry::transfer::Settings;
use serde_json::json;

use crate::engine::{World, assert_failed, assert_promoted, entry};
use crate::support::memory::{Operation, Registry};

/// Something said about `subject`.
fn said(registry: &Registry, subject: &Manifest, words: &str) -> Manifest {
    let config = registry.store_blob("app", "{}");
    let layer = registry.store_blob("app", words.to_owned());
    let document = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example.signature",
        "config": entry(&config), "layers": [entry(&layer)], "subject": entry(&subject.descriptor())});
    registry.store_manifest("app", None, &document)
}

/// A job that has seen these tags beside the image.
fn beside(world: &World, tags: &[&str]) -> Job {
    let companions: BTreeMap<Tag, Option<Digest>> = tags
        .iter()
        .map(|tag| (tag.parse().unwrap(), None))
        .collect();
    Job {
        companions: Companions::Listed(Arc::new(companions)),
        ..world.job("app", "v1")
    }
}

fn fallback(subject: &Manifest) -> String {
    Tag::fallback(&subject.digest).to_string()
}

fn written(world: &World) -> Vec<String> {
    let calls = world.production.calls().into_iter();
    calls
        .filter(|call| call.operation == Operation::PutManifest)
        .map(|call| call.about)
        .collect()
}

fn listed(world: &World, subject: &Manifest) -> Vec<Digest> {
    let list = world
        .production
        .tagged("app", &fallback(subject))
        .expect("there is a list");
    world.production.children("app", &list)
}

#[tokio::test(start_paused = true)]
async fn what_refers_to_an_image_and_to_that_comes_before_the_tag() {
    let world = World::new();
    let image = world.image("app", "v1", &[]);
    let signature = said(&world.staging, &image, "signed");
    let about_it = said(&world.staging, &signature, "signed, too");
    assert_promoted(&world.promote("app", "v1").await);
    let written = written(&world);
    assert_eq!(
        written,
        [
            signature.digest.to_string(),
            about_it.digest.to_string(),
            "v1".into()
        ]
    );
    assert!(
        world.production.tagged("app", &fallback(&image)).is_none(),
        "a registry that keeps lists needs no list of ours"
    );
}

#[tokio::test(start_paused = true)]
async fn where_no_lists_are_kept_ours_gains_what_is_new_and_keeps_what_it_had() {
    let world = World::new();
    world.production.set(|settings| settings.referrers = false);
    let image = world.image("app", "v1", &[]);
    let signature = said(&world.staging, &image, "signed");
    let theirs = said(&world.production, &image, "signed in production");
    let list = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry(&theirs.descriptor())]});
    world
        .production
        .store_manifest("app", Some(&fallback(&image)), &list);
    assert_promoted(&world.promote("app", "v1").await);
    assert_eq!(listed(&world, &image), [theirs.digest, signature.digest]);
    assert_eq!(written(&world).last().unwrap(), "v1");
}

#[tokio::test(start_paused = true)]
async fn what_is_listed_there_is_neither_read_nor_written_again() {
    for keeps_lists in [true, false] {
        let mut world = World::new();
        world
            .production
            .set(|settings| settings.referrers = keeps_lists);
        world.engine = world.engine.with(Settings {
            trust: Duration::ZERO,
            ..Settings::default()
        });
        let image = world.image("app", "v1", &[]);
        said(&world.staging, &image, "signed");
        assert_promoted(&world.promote("app", "v1").await);
        world.production.clear_calls();
        world.staging.clear_calls();
        assert_eq!(world.promote("app", "v1").await.outcome, Outcome::UpToDate);
        assert!(written(&world).is_empty(), "{:?}", written(&world));
        assert_eq!(
            world.staging.count(Operation::Manifest),
            1,
            "the image, to know its children"
        );
        assert_eq!(world.production.count(Operation::BeginUpload), 0);
        let later = said(&world.staging, &image, "signed once more");
        assert_eq!(world.promote("app", "v1").await.outcome, Outcome::UpToDate);
        assert_eq!(
            written(&world)[0],
            later.digest.to_string(),
            "what came later is brought later"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_names_what_is_not_there_is_not_believed() {
    let world = World::new();
    world.production.set(|settings| {
        settings.referrers = false;
        settings.checks_content = false;
    });
    let image = world.image("app", "v1", &[]);
    let signature = said(&world.staging, &image, "signed");
    let list = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry(&signature.descriptor())]});
    world
        .production
        .store_manifest("app", Some(&fallback(&image)), &list);
    assert_promoted(&world.promote("app", "v1").await);
    assert!(world.production.held("app").contains(&signature.digest));
}

#[tokio::test(start_paused = true)]
async fn two_jobs_of_one_image_write_one_list() {
    let world = World::new();
    world.production.set(|settings| settings.referrers = false);
    let image = world.image("app", "v1", &[]);
    world.staging.tag("app", "v2", &image.digest);
    let signatures = [
        said(&world.staging, &image, "first"),
        said(&world.staging, &image, "second"),
    ];
    let (v1, v2) = (world.job("app", "v1"), world.job("app", "v2"));
    let (v1, v2) = futures::future::join(world.run(&v1), world.run(&v2)).await;
    assert_promoted(&v1);
    assert_promoted(&v2);
    let mut listed = listed(&world, &image);
    let mut expected = signatures.map(|signature| signature.digest);
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
}

#[tokio::test(start_paused = true)]
async fn another_writer_of_the_list_loses_nothing() {
    let world = World::new();
    world.production.set(|settings| settings.referrers = false);
    let image = world.image("app", "v1", &[]);
    let signature = said(&world.staging, &image, "signed");
    let theirs = said(&world.production, &image, "signed in production");
    let (tag, list) = (
        fallback(&image),
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry(&theirs.descriptor())]}),
    );
    // After our list was written somebody else writes one that was made before.
    world.production.pass_next(Operation::Manifest);
    world.production.pass_next(Operation::Manifest);
    world
        .production
        .before_next(Operation::Manifest, move |production| {
            drop(production.store_manifest("app", Some(&tag), &list))
        });
    assert_promoted(&world.promote("app", "v1").await);
    assert_eq!(listed(&world, &image), [theirs.digest, signature.digest]);
}

#[tokio::test(start_paused = true)]
async fn a_look_up_that_fails_is_a_failure_and_names_nothing() {
    let world = World::new();
    let image = world.image("app", "v1", &[]);
    said(&world.staging, &image, "signed");
    world
        .staging
        .fail_next(Operation::Referrers, Class::Rejected);
    assert_failed(&world.promote("app", "v1").await, Class::Rejected);
    assert_eq!(world.production.tagged("app", "v1"), None);
}

#[tokio::test(start_paused = true)]
async fn a_signature_tag_follows_staging_until_somebody_changes_it_in_production() {
    let world = World::new();
    let image = world.image("app", "v1", &[]);
    let tag = format!("{}.sig", fallback(&image));
    let sign = |registry: &Registry, words: &str| {
        let layer = registry.store_blob("app", words.to_owned());
        let config = registry.store_blob("app", "{}");
        registry.store_manifest(
            "app",
            Some(&tag),
            &crate::engine::manifest(&config, &[layer]),
        )
    };
    let first = sign(&world.staging, "first");
    assert_promoted(&world.run(&beside(&world, &[&tag])).await);
    assert_eq!(world.production.tagged("app", &tag), Some(first.digest));
    assert_eq!(written(&world), [tag.clone(), "v1".into()]);

    let second = sign(&world.staging, "first and second");
    assert_eq!(
        world.run(&beside(&world, &[&tag])).await.outcome,
        Outcome::UpToDate
    );
    assert_eq!(world.production.tagged("app", &tag), Some(second.digest));

    let theirs = sign(&world.production, "of production");
    sign(&world.staging, "third");
    assert_eq!(
        world.run(&beside(&world, &[&tag])).await.outcome,
        Outcome::UpToDate
    );
    assert_eq!(
        world.production.tagged("app", &tag),
        Some(theirs.digest),
        "what a person put there stays"
    );
}

#[tokio::test(start_paused = true)]
async fn a_signature_tag_that_the_registry_keeps_does_not_stop_its_image() {
    let world = World::new();
    world
        .production
        .set(|settings| settings.immutable_tags = true);
    let image = world.image("app", "v1", &[]);
    let tag = format!("{}.sig", fallback(&image));
    let config = world.staging.store_blob("app", "{}");
    let old =
        world
            .staging
            .store_manifest("app", Some(&tag), &crate::engine::manifest(&config, &[]));
    world.run(&beside(&world, &[&tag])).await;
    let layer = world.staging.store_blob("app", "more");
    world.staging.store_manifest(
        "app",
        Some(&tag),
        &crate::engine::manifest(&config, &[layer]),
    );
    assert_eq!(
        world.run(&beside(&world, &[&tag])).await.outcome,
        Outcome::UpToDate
    );
    assert_eq!(world.production.tagged("app", &tag), Some(old.digest));
}

/// A registry takes the question about referrers and never answers: the rollback of an image that
/// is whole does not wait for it, unless production lacks a signature that the ledger knows.
#[tokio::test(start_paused = true)]
async fn a_rollback_waits_for_referrers_only_so_long() {
    for (is_signed, is_there) in [(false, false), (true, false), (true, true)] {
        let world = World::new();
        let first = world.image("app", "latest", &[]);
        assert_promoted(&world.promote("app", "latest").await);
        let second = world.image("app", "latest", &[world.layer("app", 2, 10)]);
        assert_promoted(&world.promote("app", "latest").await);
        let ledger = &world.engine.ledger;
        let place = world.job("app", "latest").key.destination;
        if is_signed {
            let signature = TagId {
                tag: format!("{}.sig", Tag::fallback(&first.digest))
                    .parse()
                    .unwrap(),
                ..place.clone()
            };
            ledger.found(&signature, &second.digest).await.unwrap();
            if is_there {
                world
                    .production
                    .tag("app", signature.tag.as_str(), &second.digest);
            }
        }
        let target: Target = "production/app:latest".parse().unwrap();
        let decision = Decision::about(&target, Actor::daemon());
        let recorded = ledger.decide(decision::Kind::Rollback, decision, RunFacts::default());
        let recorded = recorded.await.unwrap();
        let _held = world.staging.hold_next(Operation::Referrers);
        let job = Job {
            rules: TagRules::default(),
            source: TagState::At(first.digest),
            pinned: Some(first.digest),
            explicit: true,
            replace: Some(second.digest),
            rollback: Some(recorded.decision.id),
            ..world.job("app", "latest")
        };
        let completion = world.run(&job).await;
        if is_signed && !is_there {
            assert_failed(&completion, Class::RETRYABLE);
            assert_eq!(
                world.production.tagged("app", "latest"),
                Some(second.digest)
            );
        } else {
            assert_promoted(&completion);
            let told = completion.reasons.join("; ");
            assert!(told.contains("not known after 15 s"), "{told}");
        }
    }
}
