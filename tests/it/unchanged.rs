//! Tags that did not change cost what they must.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::scripted::Answer;
use crate::support::*;

const TAGS: usize = 30;

/// How often each tag of staging was asked about.
fn asked(stage: &Stage) -> BTreeMap<String, usize> {
    let mut asked = BTreeMap::new();
    for entry in stage.source.of(&[Kind::ManifestHead, Kind::ManifestGet]) {
        let tag = entry.path.rsplit('/').next().unwrap().to_string();
        *asked.entry(tag).or_default() += 1;
    }
    asked
}

/// Thirty fixed tags and `latest` that are equal, and `old`, which production names otherwise.
async fn unchanged() -> Stage {
    let stage = Stage::build(Program::Distribution3, |config| {
        // So that the end of no tag's round falls into the test.
        config
            .daemon("poll", json!("1s"))
            .daemon("verify", json!("720h"))
            .route("app", json!({}))
    })
    .await;
    let image = Image::oci(1, &[1000]);
    for number in 0..TAGS {
        let tag = format!("v{number}");
        stage.push().push("app", &tag, &image).await;
    }
    stage.push().push("app", "latest", &image).await;
    stage.push().push("app", "old", &image).await;
    stage
        .there()
        .push("app", "old", &Image::oci(2, &[1000]))
        .await;
    stage
}

async fn assert_polls_cost_the_listing(stage: &Stage) {
    stage.reset();
    stage.source.seen(Kind::Tags, 4).await;
    let polls = stage.source.count(Kind::Tags);
    let asked = asked(stage);
    assert_eq!(
        asked.keys().collect::<Vec<_>>(),
        ["latest", "old"],
        "only what moves and what is not equal: {asked:?}"
    );
    let is_once = |count: &usize| (polls - 2..=polls + 1).contains(count);
    assert!(
        asked.values().all(is_once),
        "{asked:?} requests for {polls} polls"
    );
    let there = stage.target.of(&[Kind::ManifestHead, Kind::ManifestGet]);
    assert!(
        there.iter().all(|entry| entry.path.ends_with("/old")),
        "production is listed, and asked about what is not equal: {there:#?}"
    );
}

#[tokio::test]
async fn a_poll_costs_the_listing_and_what_moves_or_differs() {
    let stage = unchanged().await;
    let daemon = stage.ferry.start_ready().await;
    assert_polls_cost_the_listing(&stage).await;
    daemon.killed().await;

    stage.reset();
    let _daemon = stage.ferry.start_ready().await;
    let asked = asked(&stage);
    assert!(
        (0..TAGS).all(|number| asked.contains_key(&format!("v{number}"))),
        "a start asks about everything: {asked:?}"
    );
    assert_polls_cost_the_listing(&stage).await;
}

const CONFLICT: &str = "staging moved a fixed tag";

struct Pair {
    staging: Scripted,
    production: Scripted,
    ferry: Ferry,
}

impl Pair {
    /// `v1` and `latest` in staging.
    fn of(verify: &str) -> Pair {
        let (staging, production) = (Scripted::start(), Scripted::start());
        staging.push("app", "v1", &first());
        staging.push("app", "latest", &first());
        let config = Config::pair(&staging.url(), &production.url())
            .daemon("poll", json!("1s"))
            .daemon("verify", json!(verify));
        Pair {
            ferry: Ferry::new(&config),
            staging,
            production,
        }
    }

    async fn polls(&self, count: usize) {
        self.staging.forget_requests();
        self.staging.seen(Kind::Tags, count).await;
    }

    fn asked_about(&self, tag: &str) -> usize {
        let asked = self.staging.of(Kind::ManifestHead);
        let ending = format!("/manifests/{tag}");
        asked
            .iter()
            .filter(|one| one.path.ends_with(&ending))
            .count()
    }

    fn assert_names(&self, tag: &str, image: &Image) {
        let named = self.production.tagged("app", tag);
        assert_eq!(named.as_deref(), Some(image.digest()), "{tag}");
    }
}

fn first() -> Image {
    Image::oci(1, &[1000])
}

fn other() -> Image {
    Image::oci(2, &[1000])
}

#[tokio::test]
async fn a_fixed_tag_that_moved_in_staging_shows_within_verify() {
    let pair = Pair::of("3s");
    let daemon = pair.ferry.start_ready().await;
    pair.staging.push("app", "v1", &other());
    daemon.says(CONFLICT).await;
    pair.assert_names("v1", &first());
}

#[tokio::test]
async fn a_fixed_tag_that_moved_in_staging_shows_at_once_by_its_name() {
    let pair = Pair::of("720h");
    let daemon = pair.ferry.start_ready().await;
    pair.staging.push("app", "v1", &other());
    pair.polls(3).await;
    assert_eq!(pair.asked_about("v1"), 0, "no poll asks about it");
    let (status, report) = daemon.ping(json!({"wait": true, "tag": "v1"})).await;
    let conflicts = &report["totals"]["conflict"];
    assert_eq!((status, conflicts), (409, &json!(1)), "{report:#}");
    pair.assert_names("v1", &first());

    pair.polls(3).await;
    assert!(pair.asked_about("v1") >= 1, "each poll asks until it ends");
    pair.staging.push("app", "v1", &first());
    daemon.says("equal again").await;
    pair.polls(2).await;
    pair.polls(2).await;
    assert_eq!(pair.asked_about("v1"), 0, "it is equal, as before");
}

#[tokio::test]
async fn a_fixed_tag_that_moved_in_staging_shows_at_once_by_an_event() {
    for event in [
        json!({"repository": "app", "tag": "v1"}),
        json!({"repository": "app"}),
    ] {
        let pair = Pair::of("720h");
        let receiver = json!({"kind": "generic", "registry": "staging", "unauthenticated": true});
        let config = Config::pair(&pair.staging.url(), &pair.production.url())
            .daemon("poll", json!("1s"))
            .receiver("pushes", receiver);
        let ferry = Ferry::new(&config);
        let daemon = ferry.start_ready().await;
        pair.staging.push("app", "v1", &other());
        daemon.notify("pushes", &event).await;
        daemon.says(CONFLICT).await;
        pair.assert_names("v1", &first());
    }
}

/// A poll that took `v1` for equal promoted its new digest under `latest`.
#[tokio::test]
async fn a_digest_under_a_moved_fixed_tag_does_not_reach_a_moving_tag() {
    let pair = Pair::of("720h");
    let daemon = pair.ferry.start_ready().await;
    pair.polls(2).await;
    pair.staging.push("app", "v1", &other());
    pair.staging.push("app", "latest", &other());
    daemon.says("is in conflict under a fixed tag").await;
    daemon.says(CONFLICT).await;
    pair.assert_names("latest", &first());

    let third = Image::oci(3, &[1000]);
    pair.staging.push("app", "latest", &third);
    daemon.says(third.digest()).await;
    pair.polls(2).await;
    pair.assert_names("latest", &third);
    pair.assert_names("v1", &first());
}

#[tokio::test]
async fn a_fixed_tag_that_was_deleted_and_comes_back_is_new() {
    let pair = Pair::of("720h");
    let daemon = pair.ferry.start_ready().await;
    pair.staging.untag("app", "v1");
    pair.polls(3).await;
    pair.staging.push("app", "v1", &other());
    daemon.says(CONFLICT).await;
    pair.assert_names("v1", &first());
}

#[tokio::test]
async fn a_moving_tag_that_stays_as_it_is_asks_about_no_fixed_tag() {
    let pair = Pair::of("720h");
    pair.production.push("app", "latest", &other());
    let daemon = pair.ferry.start_ready().await;
    pair.polls(4).await;
    assert!(pair.asked_about("latest") > 1);
    assert_eq!(pair.asked_about("v1"), 0);
    let (_, report) = daemon.ping(json!({"wait": true, "tag": "latest"})).await;
    assert_eq!(report["totals"]["existing"], Value::from(1), "{report:#}");
    pair.assert_names("latest", &other());
}

#[tokio::test]
async fn referrers_of_a_fixed_tag_that_come_late_arrive_within_verify() {
    let pair = Pair::of("3s");
    let _daemon = pair.ferry.start_ready().await;
    pair.polls(2).await;
    let signature = Image::referrer(7, &first(), "application/vnd.example.signature");
    pair.staging.push_untagged("app", &signature);
    eventually("the signature arrives", async || {
        let has_arrived = pair.production.holds("app", signature.digest());
        has_arrived.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_poll_asks_for_referrers_only_when_a_tag_is_due() {
    let pair = Pair::of("720h");
    let _daemon = pair.ferry.start_ready().await;
    pair.polls(4).await;
    assert_eq!(pair.staging.count(Kind::Referrers), 0);
}

/// Within the time in which a list may be behind our own write, the tag counted as equal: no poll
/// asked about it.
#[tokio::test]
async fn a_fixed_tag_that_production_lost_comes_back_with_the_next_poll() {
    let pair = Pair::of("720h");
    let _daemon = pair.ferry.start_ready().await;
    pair.assert_names("v1", &first());
    pair.polls(2).await;
    pair.production.untag("app", "v1");
    pair.production.forget_requests();
    // The look of the second list has ended when the third is asked for.
    pair.production.seen(Kind::Tags, 3).await;
    pair.assert_names("v1", &first());
    // It costs no more than before from then on.
    pair.polls(2).await;
    pair.production.forget_requests();
    pair.polls(3).await;
    assert_eq!(pair.production.count(Kind::ManifestHead), 0);
}

fn lists_nothing(production: &Scripted) {
    production.on(|asked| match asked.kind {
        Kind::Tags => {
            let empty = json!({"name": "app", "tags": []}).to_string();
            Answer::Reply(Reply::status(200).body("application/json", empty))
        }
        _ => Answer::Pass,
    });
}

/// A registry that lists nothing, and holds its tags: each poll asked both sides about each of them,
/// and nothing said why.
#[tokio::test]
async fn an_empty_list_costs_one_question_a_tag_and_is_said_once() {
    let pair = Pair::of("720h");
    let daemon = pair.ferry.start_ready().await;
    pair.polls(2).await;
    lists_nothing(&pair.production);
    let said = "production lists no tags, but the ledger knows some";
    daemon.says(said).await;
    pair.polls(2).await;
    pair.production.forget_requests();
    pair.polls(3).await;
    assert_eq!(pair.production.count(Kind::ManifestHead), 0);
    assert_eq!(pair.asked_about("v1"), 0);
    assert_eq!(daemon.log().matches(said).count(), 1);
    // With the list it is seen again what production lost.
    pair.production.calm();
    pair.polls(2).await;
    pair.production.untag("app", "v1");
    let names = |tag: &str| pair.production.tagged("app", tag).is_some();
    eventually("v1 is back", async || names("v1").then_some(())).await;
}

/// Lists of these registries are current, but an answer may be wrong.
#[tokio::test]
async fn one_empty_list_moves_no_fixed_tag() {
    for kind in ["distribution2", "distribution3", "zot"] {
        let staging = Scripted::start();
        let production = Scripted::start();
        for tag in ["v1", "v2", "v3"] {
            staging.push("app", tag, &first());
        }
        let config = Config::new()
            .registry("staging", &staging.url())
            .registry_with("production", &production.url(), json!({"kind": kind}))
            .daemon("verify", json!("720h"))
            .route("app", json!({}));
        let ferry = Ferry::new(&config);
        ferry.sync(&[]).await.expect(0);
        staging.push("app", "v2", &other());
        lists_nothing(&production);
        production.forget_requests();
        let run = ferry.sync(&[]).await.expect(4);
        assert_eq!(run.total("conflict"), 1, "{kind}: {}", run.report());
        assert_eq!(production.count(Kind::ManifestPut), 0, "{kind}");
        let named = production.tagged("app", "v2");
        assert_eq!(named.as_deref(), Some(first().digest()), "{kind}");
    }
}
