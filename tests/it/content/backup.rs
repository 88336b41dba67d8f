//! `backup`: what a moving tag named keeps a name.

use serde_json::{Value, json};

use super::{asked_beyond_comparison, image, polled};
use crate::decisions::{Scene, reasons};
use crate::support::daemon::end_of;
use crate::support::rules::{Act, Cut, Gate, Rule};
use crate::support::scripted::Answer;
use crate::support::*;

const PREVIOUS: &str = "latest.previous";

fn rules() -> Value {
    json!({"backup": "{tag}.previous", "tags": {"include": ["*"], "exclude": ["*.previous"]}})
}

/// What production names under `latest` and under its backup.
fn there(scene: &Scene) -> [Option<u64>; 2] {
    ["latest", PREVIOUS].map(|tag| {
        let digest = scene.there(tag)?;
        let is_it = |number: &u64| image(*number).digest() == digest;
        Some((1..=9).find(is_it).expect("an image of this test"))
    })
}

async fn push_and_sync(scene: &Scene, number: u64, code: i32) -> Run {
    scene.staging.push("app", "latest", &image(number));
    scene.ferry.sync(&[]).await.expect(code)
}

#[tokio::test]
async fn what_latest_named_keeps_a_name_in_production() {
    for program in [Program::Distribution2, Program::Distribution3] {
        let stage = Stage::with_route(program, rules()).await;
        let there = stage.there();
        stage.push().push("app", "latest", &image(1)).await;
        stage.push().push("app", "v1", &image(1)).await;
        stage.sync().await.expect(0);
        assert_eq!(there.digest("app", PREVIOUS).await, None);
        for number in 2..=3 {
            stage.push().push("app", "latest", &image(number)).await;
            let run = stage.sync().await.expect(0);
            let said = reasons(&run.job("latest"));
            assert!(said.contains(PREVIOUS), "{said}");
            there.assert_holds("app", "latest", &image(number)).await;
            there
                .assert_holds("app", PREVIOUS, &image(number - 1))
                .await;
        }
        // Fixed tags have none, and the backup is no tag that only production has.
        stage.reset();
        let run = stage.sync().await.expect(0);
        assert_eq!(run.total("only_in_destination"), 0);
        assert_eq!(run.total("up_to_date"), 2);
        assert_eq!(there.tags("app").await, ["latest", PREVIOUS, "v1"]);
        let written = stage.target.of(&Kind::WRITES);
        assert!(written.is_empty(), "{written:#?}");

        // A rollback makes none.
        let back = ["rollback", "production/app:latest", "--reason", "INC-4"];
        stage.ferry.run(&back).await.expect(0);
        there.assert_holds("app", "latest", &image(2)).await;
        there.assert_holds("app", PREVIOUS, &image(2)).await;
        stage.ferry.run(&["history", "--verify"]).await.expect(0);
    }
}

#[tokio::test]
async fn a_tag_without_its_backup_does_not_move() {
    let scene = super::scene(rules());
    push_and_sync(&scene, 1, 0).await;
    scene
        .production
        .on(|asked| match asked.path.ends_with(PREVIOUS) {
            true if asked.kind == Kind::ManifestPut => Answer::Reply(Reply::status(400)),
            _ => Answer::Pass,
        });
    let run = push_and_sync(&scene, 2, 1).await;
    let job = run.job("latest");
    assert_eq!(job["result"], "failed");
    let said = job["error"]["text"].as_str().expect("a text");
    assert!(said.contains("the backup tag latest.previous: "), "{said}");
    assert_eq!(there(&scene), [Some(1), None]);
    scene.production.calm();
    scene.ferry.sync(&[]).await.expect(0);
    assert_eq!(there(&scene), [Some(2), Some(1)]);
}

#[tokio::test]
async fn the_tag_of_another_client_is_no_backup() {
    let scene = super::scene(rules());
    push_and_sync(&scene, 1, 0).await;
    scene.production.push("app", PREVIOUS, &image(9));
    let run = push_and_sync(&scene, 2, 4).await;
    let job = run.job("latest");
    assert_eq!(job["result"], "refused");
    let said = reasons(&job);
    let wanted =
        "in production, which is not in the ledger; so the tag that it is the backup of stays too";
    assert!(said.contains(wanted), "{said}");
    assert_eq!(there(&scene), [Some(1), Some(9)]);

    // Once it is gone, both move. What is changed there later is drift, and stays.
    scene.production.untag("app", PREVIOUS);
    scene.ferry.sync(&[]).await.expect(0);
    assert_eq!(there(&scene), [Some(2), Some(1)]);
    scene.production.tag("app", PREVIOUS, image(9).digest());
    let run = push_and_sync(&scene, 3, 4).await;
    let said = reasons(&run.job("latest"));
    assert!(
        said.contains("latest.previous was changed in production"),
        "{said}"
    );
    assert_eq!(there(&scene), [Some(2), Some(9)]);
    // What names the right image already is the backup.
    scene.production.tag("app", PREVIOUS, image(2).digest());
    scene.ferry.sync(&[]).await.expect(0);
    assert_eq!(there(&scene), [Some(3), Some(2)]);
    push_and_sync(&scene, 4, 0).await;
    assert_eq!(there(&scene), [Some(4), Some(3)]);
}

/// A dry run, and with it `why`, said of a tag that its backup holds back that it is about to move.
#[tokio::test]
async fn a_dry_run_says_what_the_backup_does_to_its_tag() {
    let scene = super::scene(rules());
    push_and_sync(&scene, 1, 0).await;
    let _daemon = scene.ferry.start_ready().await;
    push_and_sync(&scene, 2, 0).await;
    let same = async |code: i32| {
        let planned = scene.ferry.sync(&["--dry-run", "--tag", "latest"]).await;
        let planned = planned.expect(code).job("latest");
        let why = scene.run(&["why", "production/app:latest"]).await;
        let said = why.expect(0).stdout;
        let done = scene.ferry.sync(&["--tag", "latest"]).await;
        let done = done.expect(code).job("latest");
        assert_eq!(planned["result"], done["result"], "{planned:#}");
        assert_eq!(planned["reasons"], done["reasons"]);
        assert!(
            said.contains(PREVIOUS) && !said.contains("planned"),
            "{said}"
        );
        done["result"].clone()
    };
    scene.staging.push("app", "latest", &image(3));
    let hold = ["hold", "production/app:latest.previous"];
    scene.run(&hold).await.expect(0);
    assert_eq!(same(4).await, "held");
    scene
        .run(&["release", "production/app:latest.previous"])
        .await
        .expect(0);
    scene.ferry.sync(&[]).await.expect(0);
    assert_eq!(there(&scene), [Some(3), Some(2)]);

    scene.production.push("app", PREVIOUS, &image(9));
    scene.staging.push("app", "latest", &image(4));
    assert_eq!(same(4).await, "refused");
    assert_eq!(there(&scene), [Some(3), Some(9)]);
}

/// The registry keeps the backup tag immutable: a dry run said `planned` after each refusal.
#[tokio::test]
async fn a_dry_run_knows_that_the_registry_has_refused_to_move_the_backup() {
    let scene = super::scene(rules());
    push_and_sync(&scene, 1, 0).await;
    let _daemon = scene.ferry.start_ready().await;
    push_and_sync(&scene, 2, 0).await;
    scene.production.on(|asked| {
        match asked.kind == Kind::ManifestPut && asked.path.ends_with(PREVIOUS) {
            true => {
                let body =
                    r#"{"errors":[{"code":"TAG_INVALID","message":"the tag is immutable"}]}"#;
                Answer::Reply(Reply::status(400).body("application/json", body))
            }
            false => Answer::Pass,
        }
    });
    scene.staging.push("app", "latest", &image(3));
    let done = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    let planned = scene.ferry.sync(&["--dry-run", "--tag", "latest"]).await;
    let planned = planned.expect(4).job("latest");
    assert_eq!(done.job("latest")["result"], "refused");
    assert_eq!(planned["result"], "refused", "{planned:#}");
    assert!(reasons(&planned).contains("immutable"), "{planned:#}");
}

/// What a dry run says of a backup tag that cannot be asked about names that tag.
#[tokio::test]
async fn a_dry_run_names_the_backup_tag_that_it_cannot_ask_about() {
    let scene = super::scene(rules());
    push_and_sync(&scene, 1, 0).await;
    scene
        .production
        .on(|asked| match asked.path.ends_with(PREVIOUS) {
            true => Answer::Reply(Reply::status(403)),
            false => Answer::Pass,
        });
    scene.staging.push("app", "latest", &image(2));
    let run = scene.ferry.sync(&["--dry-run", "--tag", "latest"]).await;
    let text = run.job("latest")["error"]["text"].to_string();
    assert!(text.contains("the backup tag latest.previous: "), "{text}");
}

#[tokio::test]
async fn a_kill_between_backup_and_move_leaves_both_right() {
    let scene = super::scene(rules());
    push_and_sync(&scene, 1, 0).await;
    let gate = Gate::closed();
    let held = gate.clone();
    scene
        .production
        .on(move |asked| match asked.path.ends_with("/latest") {
            true if asked.kind == Kind::ManifestPut => Answer::Hold(held.clone()),
            _ => Answer::Pass,
        });
    scene.staging.push("app", "latest", &image(2));
    let mut command = scene.ferry.spawn_command(&["sync"]);
    gate.arrived(1).await;
    assert_eq!(there(&scene), [Some(1), Some(1)]);
    command.start_kill().expect("it runs");
    end_of(&mut command).await;
    scene.production.calm();
    scene.production.forget_requests();
    scene.ferry.sync(&[]).await.expect(0);
    assert_eq!(there(&scene), [Some(2), Some(1)]);
    let sent = scene.production.of(Kind::ManifestPut);
    let backups = sent.iter().filter(|put| put.path.ends_with(PREVIOUS));
    assert_eq!(backups.count(), 0, "it was there");
}

#[tokio::test]
async fn a_lost_answer_to_the_backup_is_found() {
    let stage = Stage::with_route(Program::Distribution3, rules()).await;
    stage.push().push("app", "latest", &image(1)).await;
    stage.sync().await.expect(0);
    stage.push().push("app", "latest", &image(2)).await;
    let lost = Rule::on(&[Kind::ManifestPut]).path(PREVIOUS).times(1);
    stage.target.rule(lost.act(Act::CutAnswer(0, Cut::Reset)));
    stage.sync().await.expect(0);
    stage.there().assert_holds("app", "latest", &image(2)).await;
    stage.there().assert_holds("app", PREVIOUS, &image(1)).await;
    // It is known as ours: the next move writes it.
    stage.push().push("app", "latest", &image(3)).await;
    stage.sync().await.expect(0);
    stage.there().assert_holds("app", PREVIOUS, &image(2)).await;
}

/// A denied image kept its tag, since its backup could not be made.
#[tokio::test]
async fn a_tag_moves_away_from_a_denied_image_without_a_backup() {
    let scene = super::scene(rules());
    push_and_sync(&scene, 1, 0).await;
    push_and_sync(&scene, 2, 0).await;
    let second = image(2);
    let deny = ["deny", second.digest(), "--reason", "CVE"];
    scene.run(&deny).await.expect(0);
    let run = push_and_sync(&scene, 3, 0).await;
    assert!(reasons(&run.job("latest")).contains("it gets no backup"));
    assert_eq!(there(&scene), [Some(3), Some(1)]);
}

#[tokio::test]
async fn a_hold_of_the_backup_holds_its_tag() {
    let scene = super::scene(rules());
    push_and_sync(&scene, 1, 0).await;
    let hold = ["hold", "production/app:latest.previous"];
    scene.run(&hold).await.expect(0);
    scene.staging.push("app", "latest", &image(2));
    let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(run.job("latest")["result"], "held", "{}", run.said());
    assert_eq!(there(&scene), [Some(1), None]);
}

/// The config cannot tell what an expression matches; a look sees it.
/// The release woke the backup tag alone, which staging does not have: its tag moved at a poll.
#[tokio::test]
async fn the_release_of_a_backup_moves_its_tag_at_once() {
    let scene = super::scene(rules());
    push_and_sync(&scene, 1, 0).await;
    let _daemon = scene.ferry.start_ready().await;
    let place = "production/app:latest.previous";
    scene.run(&["hold", place]).await.expect(0);
    scene.staging.push("app", "latest", &image(2));
    scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(there(&scene), [Some(1), None]);
    scene.run(&["release", place]).await.expect(0);
    scene.named("latest", &image(2)).await;
    assert_eq!(there(&scene), [Some(2), Some(1)]);
}

#[tokio::test]
async fn a_tag_of_staging_never_takes_the_name_of_a_backup() {
    let tags = json!({"include": ["*"], "moving": "/^latest$/"});
    let scene = super::scene(json!({"backup": "{tag}.previous", "tags": tags}));
    scene.staging.push("app", PREVIOUS, &image(8));
    for number in 1..=2 {
        let run = push_and_sync(&scene, number, 1).await;
        let trouble = run.report()["trouble"][0].to_string();
        assert!(
            trouble.contains("is the backup of a moving tag"),
            "{trouble}"
        );
    }
    assert_eq!(there(&scene), [Some(2), Some(1)]);
}

/// Under other names `{tag}` is the name in production.
#[tokio::test]
async fn a_renamed_tag_has_a_renamed_backup() {
    let scene = super::scene(json!({
        "to": "production/app:prod-{tag}",
        "backup": "{tag}.previous",
        "tags": {"include": ["*"], "exclude": ["*.previous"]},
    }));
    push_and_sync(&scene, 1, 0).await;
    push_and_sync(&scene, 2, 0).await;
    let there = ["prod-latest", "prod-latest.previous"].map(|tag| scene.there(tag));
    let wanted = [image(2), image(1)].map(|image| Some(image.digest().to_owned()));
    assert_eq!(there, wanted);
    let run = scene.ferry.sync(&[]).await.expect(0);
    assert_eq!(run.total("only_in_destination"), 0);
}

/// Each poll ran the whole job again, although its backup tag stayed as it was.
#[tokio::test]
async fn a_tag_without_its_backup_costs_a_poll_its_comparison_and_no_job() {
    let scene = super::scene(rules());
    let config = Config::new()
        .registry("staging", &scene.staging.url())
        .registry("production", &scene.production.url())
        .daemon("poll", json!("200ms"))
        .route("app", rules());
    scene.ferry.write_config(&config);
    push_and_sync(&scene, 1, 0).await;
    scene.production.push("app", PREVIOUS, &image(9));
    scene.staging.push("app", "latest", &image(2));
    let daemon = scene.ferry.start_ready().await;
    polled(&scene.staging, 2).await;
    scene.production.forget_requests();
    polled(&scene.staging, 4).await;
    for registry in [&scene.staging, &scene.production] {
        assert_eq!(asked_beyond_comparison(registry), [""; 0]);
    }
    let asked = scene.production.log().into_iter();
    let of_backup: Vec<_> = asked
        .filter(|record| record.path.ends_with(PREVIOUS))
        .collect();
    assert!(of_backup.is_empty(), "{of_backup:?}");
    let refused = [
        ("route", "app"),
        ("destination", "production"),
        ("state", "refused"),
    ];
    let count = daemon.metric("blobferry_tags", &refused).await;
    assert_eq!(count, Some(1.0));
    // A look that is asked for tries again.
    scene.production.untag("app", PREVIOUS);
    scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
    assert_eq!(there(&scene), [Some(2), Some(1)]);
}
