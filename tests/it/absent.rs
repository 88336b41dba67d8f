//! Tags that production lacks are asked about again before they are named: many at once by one
//! list, few one by one.

use std::time::Duration;

use blobferry::endpoint::Source as _;
use blobferry::job::{Job, ObservedVia, Outcome, TagState};
use blobferry::registry::profile::Quotas;
use blobferry::transfer::Completion;
use blobferry::transfer::limits::Settings as LaneSettings;

use crate::engine::{World, assert_promoted, manifest};
use crate::support::memory::Operation;

/// Promotes tags that a look saw missing in production a while ago.
async fn promote_late(world: &World, tags: &[String]) -> Vec<Completion> {
    let jobs: Vec<Job> = tags
        .iter()
        .map(|tag| Job {
            destination: TagState::Absent,
            destination_via: ObservedVia::List,
            fresh: true,
            ..world.job("app", tag)
        })
        .collect();
    tokio::time::advance(Duration::from_secs(3)).await;
    futures::future::join_all(jobs.iter().map(|job| world.run(job))).await
}

#[tokio::test(start_paused = true)]
async fn many_absent_tags_are_asked_about_again_by_one_list() {
    let world = World::new();
    let tags: Vec<String> = (0..40).map(|number| format!("v{number}")).collect();
    tags.iter()
        .for_each(|tag| drop(world.image("app", tag, &[])));
    promote_late(&world, &tags)
        .await
        .iter()
        .for_each(assert_promoted);
    assert_eq!(
        (
            world.production.count(Operation::Tags),
            world.production.count(Operation::Resolve)
        ),
        (1, 4)
    );
}

#[tokio::test(start_paused = true)]
async fn few_absent_tags_or_lists_of_the_past_are_asked_about_one_by_one() {
    for (count, current) in [(4, true), (40, false)] {
        let world = World::new();
        world
            .production
            .set(|settings| settings.abilities.current_lists = current);
        let tags: Vec<String> = (0..count).map(|number| format!("v{number}")).collect();
        tags.iter()
            .for_each(|tag| drop(world.image("app", tag, &[])));
        promote_late(&world, &tags)
            .await
            .iter()
            .for_each(assert_promoted);
        assert_eq!(
            (
                world.production.count(Operation::Tags),
                world.production.count(Operation::Resolve)
            ),
            (0, count)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_shows_a_tag_after_all_or_is_too_long_names_nothing_by_itself() {
    for page in [1000, 5] {
        let world = World::new();
        world.production.set(|settings| settings.page = page);
        let tags: Vec<String> = (0..40).map(|number| format!("v{number}")).collect();
        tags.iter()
            .for_each(|tag| drop(world.image("app", tag, &[])));
        let document = manifest(&world.production.store_blob("app", "theirs"), &[]);
        let theirs = world
            .production
            .store_manifest("app", Some("v20"), &document);
        let others: Vec<String> = (0..10).map(|number| format!("w{number}")).collect();
        others
            .iter()
            .for_each(|tag| drop(world.production.store_manifest("app", Some(tag), &document)));
        let endings = promote_late(&world, &tags).await;
        assert_eq!(
            endings
                .iter()
                .filter(|completion| completion.outcome == Outcome::Promoted)
                .count(),
            39
        );
        assert_eq!(endings[20].outcome, Outcome::Existing, "{:?}", endings[20]);
        assert_eq!(world.production.tagged("app", "v20"), Some(theirs.digest));
        assert_eq!(world.production.count(Operation::Tags), 1);
    }
}

/// A registry takes ten manifests a second, and forty tags come at once: each is asked about right
/// before it is named.
#[tokio::test(start_paused = true)]
async fn where_turns_to_write_are_rare_no_tag_is_named_by_old_facts() {
    let world = World::new();
    let origin = world.production.repository("app").origin().clone();
    let quotas = Quotas {
        writes: Some(10),
        ..Quotas::default()
    };
    world.engine.limits.set(
        &origin,
        LaneSettings {
            quotas,
            ..LaneSettings::default()
        },
    );
    world
        .production
        .set(|settings| settings.abilities.current_lists = false);
    let tags: Vec<String> = (0..40).map(|number| format!("v{number}")).collect();
    tags.iter()
        .for_each(|tag| drop(world.image("app", tag, &[])));
    promote_late(&world, &tags)
        .await
        .iter()
        .for_each(assert_promoted);
    let calls = world.production.calls();
    for tag in &tags {
        let of = |operation: Operation| {
            calls
                .iter()
                .filter(move |call| call.operation == operation && call.about == *tag)
        };
        let (asked, named) = (
            of(Operation::Resolve).next_back().unwrap().at,
            of(Operation::PutManifest).next().unwrap().at,
        );
        assert!(
            named - asked <= Duration::from_secs(2),
            "{tag} was named {:?} after it was asked about",
            named - asked
        );
    }
    assert_eq!(
        world.production.count(Operation::Resolve),
        40,
        "and once is enough"
    );
}
