//! A way back that stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{Scene, reasons};
use crate::support::daemon::end_of;
use crate::support::rules::Gate;
use crate::support::scripted::Answer;
use crate::support::*;

/// `latest` went from the first image to the second.
async fn moved_on() -> (Scene, Daemon, Image, Image) {
    let scene = Scene::new();
    let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    scene.staging.push("app", "latest", &first);
    let daemon = scene.ferry.start_ready().await;
    scene.staging.push("app", "latest", &second);
    scene.ferry.sync(&[]).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(second.digest()));
    (scene, daemon, first, second)
}

#[tokio::test]
async fn yesterdays_image_is_back_and_stays() {
    let (scene, daemon, first, second) = moved_on().await;
    // In a freeze, too.
    scene.run(&["hold"]).await.expect(0);
    let back = ["rollback", "production/app:latest", "--reason", "INC-4"];
    let run = scene.run(&back).await.expect(0);
    assert!(
        run.stdout.contains(first.digest()) && run.stdout.contains(second.digest()),
        "{}",
        run.stdout
    );
    assert_eq!(scene.there("latest").as_deref(), Some(first.digest()));
    scene.run(&["release"]).await.expect(0);
    for _ in 0..2 {
        let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
        let job = run.job("latest");
        assert_eq!(job["result"], "held");
        assert!(reasons(&job).contains("INC-4"), "{job:#}");
    }
    // After a restart, too.
    daemon.killed().await;
    let _daemon = scene.ferry.start_ready().await;
    scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(scene.there("latest").as_deref(), Some(first.digest()));

    // It does not keep out the next push. One look is not enough to end it.
    let third = Image::oci(3, &[300]);
    scene.staging.push("app", "latest", &third);
    scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(third.digest()));
    assert_eq!(scene.in_force().await.len(), 1);
    scene.run(&["history", "--verify"]).await.expect(0);
}

/// The rollback alone was told, and the tag seemed to be free once that was released.
#[tokio::test]
async fn a_hold_and_a_denial_beside_a_rollback_are_told_too() {
    let (scene, _daemon, _first, second) = moved_on().await;
    let back = ["rollback", "app:latest", "--reason", "INC-4"];
    scene.run(&back).await.expect(0);
    let hold = ["hold", "production/app", "--reason", "CHG-17"];
    scene.run(&hold).await.expect(0);
    let look = async || scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    let job = look().await.job("latest");
    assert_eq!(job["result"], "held");
    let told = reasons(&job);
    assert!(told.contains("CHG-17") && told.contains("INC-4"), "{told}");
    assert_eq!(told.matches("INC-4").count(), 1, "{told}");
    let why = scene.run(&["why", "app:latest"]).await.expect(0).stdout;
    assert!(
        why.contains("because     production/app is held by"),
        "{why}"
    );
    assert!(
        why.contains("because     app:latest is rolled back by"),
        "{why}"
    );

    let layer = &second.unique_blobs()[0].digest;
    let deny = ["deny", layer, "--reason", "CVE-2026-1"];
    scene.run(&deny).await.expect(0);
    let job = look().await.job("latest");
    assert_eq!(job["result"], "refused");
    let told = reasons(&job);
    for said in ["CVE-2026-1", "CHG-17", "INC-4"] {
        assert!(told.contains(said), "{said}: {told}");
    }
}

#[tokio::test]
async fn a_rollback_of_a_fixed_tag_goes_where_it_is_told() {
    let scene = Scene::new();
    for seed in 1..=2 {
        let tag = format!("v{seed}");
        scene.staging.push("app", &tag, &Image::oci(seed, &[100]));
    }
    let _daemon = scene.ferry.start_ready().await;
    let (one, two) = (Image::oci(1, &[100]), Image::oci(2, &[100]));
    let before = ["rollback", "app:v2", "--reason", "INC-4"];
    let nothing = scene.run(&before).await.expect(5);
    assert!(nothing.stderr.contains("say `to`"), "{}", nothing.stderr);
    let to = |digest: &str| -> Vec<String> {
        let words = ["rollback", "app:v2", "--reason", "INC-4", "--to", digest];
        words.map(str::to_owned).to_vec()
    };
    let run = async |digest: &str| {
        let words = to(digest);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        scene.run(&words).await
    };
    run(&format!("sha256:{}", "0".repeat(64))).await.expect(5);
    run(two.digest()).await.expect(4);
    run(one.digest()).await.expect(0);
    assert_eq!(scene.there("v2").as_deref(), Some(one.digest()));
    let held = scene.ferry.sync(&["--tag", "v2"]).await.expect(4);
    assert_eq!(held.job("v2")["result"], "held");
    // What is denied is not gone back to.
    let deny = ["deny", two.digest(), "--reason", "CVE"];
    scene.run(&deny).await.expect(0);
    run(two.digest()).await.expect(4);
    assert_eq!(scene.there("v2").as_deref(), Some(one.digest()));
}

#[tokio::test]
async fn lost_content_is_completed_from_staging_or_nothing_changes() {
    let (scene, _daemon, first, second) = moved_on().await;
    let back = ["rollback", "app:latest", "--reason", "INC-4"];
    scene.production.remove("app", first.digest());
    scene.run(&back).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(first.digest()));
    scene.run(&["release", "app:latest"]).await.expect(0);
    scene.named("latest", &second).await;

    // Both sides have lost it.
    scene.production.remove("app", first.digest());
    scene.staging.remove("app", first.digest());
    let lost = scene.run(&back).await;
    assert_ne!(lost.code, 0, "{}", lost.stdout);
    assert!(lost.stderr.contains("was not moved"), "{}", lost.stderr);
    assert_eq!(scene.there("latest").as_deref(), Some(second.digest()));
    assert_eq!(scene.in_force().await.len(), 0, "nothing is kept out");
}

#[tokio::test]
async fn a_rollback_that_the_registry_refuses_leaves_nothing_behind() {
    let (scene, _daemon, _first, second) = moved_on().await;
    scene.production.on(|asked| match asked.kind {
        Kind::ManifestPut => Answer::Reply(
            Reply::status(403).body("application/json", r#"{"errors":[{"code":"DENIED"}]}"#),
        ),
        _ => Answer::Pass,
    });
    let back = ["rollback", "app:latest", "--reason", "INC-4"];
    scene.run(&back).await.expect(1);
    scene.production.calm();
    assert_eq!(scene.in_force().await.len(), 0);
    assert_eq!(scene.there("latest").as_deref(), Some(second.digest()));
}

/// The rows of the ledger, the newest last.
async fn rows(scene: &Scene) -> Vec<Value> {
    let history = scene.run(&["history", "--json"]).await;
    let lines = history.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("a row is JSON"))
        .collect()
}

#[tokio::test]
async fn a_rollback_at_night_in_a_freeze_with_a_failing_gate() {
    let (scene, daemon, first, _second) = moved_on().await;
    let gates = json!({
        "window": {"open": "mon-sun", "closed": ["2000-01-01/2999-12-31"]},
        "command": {"run": ["/bin/sh", "-c", "echo the scan has failed; exit 1"]},
    });
    let config = Config::new()
        .registry("staging", &scene.staging.url())
        .registry("production", &scene.production.url())
        .route("app", json!({"gates": gates}));
    scene.ferry.write_config(&config);
    daemon.signal("HUP").await;
    daemon.says("the config was read again").await;
    scene.run(&["hold"]).await.expect(0);
    let back = ["rollback", "app:latest", "--reason", "INC-4"];
    scene.run(&back).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(first.digest()));
    let rows = rows(&scene).await;
    let is_promotion = |row: &&Value| row["result"] == "promoted" && row["cause"] == "decision";
    let promoted = rows.iter().find(is_promotion).expect("it is a promotion");
    let verdicts: Vec<Value> = promoted["gates"]
        .as_array()
        .expect("gates")
        .iter()
        .map(|judged| json!([judged["gate"], judged["verdict"]]))
        .collect();
    assert_eq!(
        verdicts,
        [json!(["window", "wait"]), json!(["command", "refuse"])]
    );
    assert!(
        promoted["gates"]
            .to_string()
            .contains("the scan has failed")
    );
    assert_eq!(promoted["reason"], "INC-4");
}

#[tokio::test]
async fn a_second_rollback_goes_further_back_and_takes_the_place_of_the_first() {
    let (scene, _daemon, first, second) = moved_on().await;
    let third = Image::oci(3, &[300]);
    scene.staging.push("app", "latest", &third);
    scene.ferry.sync(&[]).await.expect(0);
    let back = ["rollback", "app:latest", "--reason", "INC-4"];
    scene.run(&back).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(second.digest()));
    scene.run(&back).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(first.digest()));
    let in_force = scene.in_force().await;
    assert_eq!(in_force.len(), 1);
    let kept_out = in_force[0]["keeps_out"].to_string();
    assert!(kept_out.contains(second.digest()) && kept_out.contains(third.digest()));
    // A person may go forward again, by the digest.
    let forward = [&back[..], &["--to", second.digest()]].concat();
    scene.run(&forward).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(second.digest()));
    scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(scene.there("latest").as_deref(), Some(second.digest()));
}

#[tokio::test]
async fn a_copy_of_something_else_ends_no_rollback() {
    let (scene, _daemon, _first, second) = moved_on().await;
    let other = Image::oci(9, &[900]);
    scene.staging.push("other", "hotfix", &other);
    let back = ["rollback", "app:latest", "--reason", "INC-4"];
    scene.run(&back).await.expect(0);
    let (from, to) = (
        format!("{}/other:hotfix", scene.staging.host()),
        format!("{}/app:latest", scene.production.host()),
    );
    scene.run(&["copy", &from, &to]).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(other.digest()));
    scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_ne!(scene.there("latest").as_deref(), Some(second.digest()));
    assert_eq!(scene.in_force().await.len(), 1);
}

#[tokio::test]
async fn what_is_complete_is_listed_where_the_goal_is_not() {
    let scene = Scene::new();
    let images: Vec<Image> = (1..=5).map(|seed| Image::oci(seed, &[100])).collect();
    scene.staging.push("app", "latest", &images[0]);
    let _daemon = scene.ferry.start_ready().await;
    for image in &images[1..] {
        scene.staging.push("app", "latest", image);
        scene.ferry.sync(&[]).await.expect(0);
    }
    for registry in [&scene.staging, &scene.production] {
        for lost in &images[2..4] {
            registry.remove("app", lost.digest());
        }
    }
    let denied = ["deny", images[1].digest(), "--reason", "CVE"];
    scene.run(&denied).await.expect(0);
    let back = ["rollback", "app:latest", "--reason", "INC-4"];
    let run = scene.run(&back).await.expect(1);
    let (_, listed) = run
        .stderr
        .split_once("complete, and named before")
        .expect("a list");
    assert!(listed.contains(images[0].digest()), "{listed}");
    assert!(!listed.contains(images[1].digest()), "{listed}");
    assert_eq!(scene.there("latest").as_deref(), Some(images[4].digest()));
    let to = [&back[..], &["--to", images[0].digest()]].concat();
    scene.run(&to).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(images[0].digest()));
}

#[tokio::test]
async fn without_a_daemon_a_rollback_acts_by_itself() {
    let (scene, daemon, first, second) = moved_on().await;
    daemon.killed().await;
    let nothing = ["rollback", "app:v9", "--reason", "INC-4"];
    scene.run(&nothing).await.expect(5);
    let back = ["rollback", "app:latest", "--reason", "INC-4"];
    let run = scene.run(&back).await.expect(0);
    assert!(run.stdout.contains(first.digest()), "{}", run.stdout);
    assert_eq!(scene.there("latest").as_deref(), Some(first.digest()));
    let held = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(held.job("latest")["result"], "held");
    let _daemon = scene.ferry.start_ready().await;
    assert_eq!(scene.in_force().await.len(), 1);
    scene.run(&["release", "app:latest"]).await.expect(0);
    scene.named("latest", &second).await;
}

pub const BACK: [&str; 4] = ["rollback", "app:latest", "--reason", "INC-4"];

/// `latest` went from image to image.
pub async fn moved_through(images: &[&Image]) -> (Scene, Daemon) {
    let scene = Scene::new();
    scene.staging.push("app", "latest", images[0]);
    let daemon = scene.ferry.start_ready().await;
    for image in &images[1..] {
        scene.staging.push("app", "latest", image);
        scene.ferry.sync(&[]).await.expect(0);
    }
    (scene, daemon)
}

#[tokio::test]
async fn a_layer_below_an_index_is_asked_for_and_completed() {
    let child = Image::oci(1, &[100]);
    let (index, second) = (
        Image::index(std::slice::from_ref(&child)),
        Image::oci(2, &[200]),
    );
    let (scene, _daemon) = moved_through(&[&index, &second]).await;
    let blobs = child.unique_blobs();
    for blob in &blobs {
        scene.production.remove("app", &blob.digest);
    }
    scene.run(&BACK).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(index.digest()));
    for blob in &blobs {
        assert!(scene.production.holds("app", &blob.digest), "{blob:?}");
    }
    scene.run(&["release", "app:latest"]).await.expect(0);
    scene.named("latest", &second).await;

    // Both sides have lost it.
    scene.production.remove("app", &blobs[0].digest);
    scene.staging.remove("app", &blobs[0].digest);
    let lost = scene.run(&BACK).await.expect(1);
    assert!(lost.stderr.contains("was not moved"), "{}", lost.stderr);
    assert_eq!(scene.there("latest").as_deref(), Some(second.digest()));
    assert_eq!(scene.in_force().await.len(), 0);
}

#[tokio::test]
async fn a_signature_that_production_has_lost_is_completed() {
    let (first, second) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    let signature = Image::referrer(3, &first, "application/x.signature");
    let scene = Scene::new();
    scene.staging.push("app", "latest", &first);
    scene.staging.push_untagged("app", &signature);
    let _daemon = scene.ferry.start_ready().await;
    scene.staging.push("app", "latest", &second);
    scene.ferry.sync(&[]).await.expect(0);
    assert!(scene.production.holds("app", signature.digest()));
    scene.production.remove("app", signature.digest());
    scene.run(&BACK).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(first.digest()));
    assert!(scene.production.holds("app", signature.digest()));
}

#[tokio::test]
async fn a_lost_answer_keeps_the_block_and_a_repetition_goes_no_further_back() {
    let images: Vec<Image> = (1..=3).map(|seed| Image::oci(seed, &[100])).collect();
    let all: Vec<&Image> = images.iter().collect();
    let (scene, _daemon) = moved_through(&all).await;
    let is_out = Arc::new(AtomicBool::new(false));
    scene.production.on(move |asked| {
        if asked.kind == Kind::ManifestPut && !is_out.swap(true, Ordering::SeqCst) {
            return Answer::Lose;
        }
        match is_out.load(Ordering::SeqCst) {
            true => Answer::Reply(Reply::status(403)),
            false => Answer::Pass,
        }
    });
    let run = scene.run(&BACK).await.expect(1);
    assert!(run.stderr.contains("may have moved"), "{}", run.stderr);
    scene.production.calm();
    assert_eq!(scene.there("latest").as_deref(), Some(images[1].digest()));
    assert_eq!(scene.in_force().await.len(), 1);
    let held = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(held.job("latest")["result"], "held");
    scene.run(&BACK).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(images[1].digest()));
    assert_eq!(scene.in_force().await.len(), 1);
}

#[tokio::test]
async fn without_staging_a_rollback_works_and_keeps_out_what_was_last_seen_there() {
    let (scene, _daemon, first, second) = moved_on().await;
    let third = Image::oci(3, &[300]);
    scene.run(&["hold", "app:latest"]).await.expect(0);
    scene.staging.push("app", "latest", &third);
    // The look that the hold wakes may have seen it first.
    scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    scene.staging.on(|_| Answer::Reply(Reply::status(401)));
    scene.run(&BACK).await.expect(0);
    scene.staging.calm();
    assert_eq!(scene.there("latest").as_deref(), Some(first.digest()));
    let in_force = scene.in_force().await;
    let rollback = in_force.iter().find(|one| one["kind"] == "rollback");
    let kept_out = rollback.expect("it is in force")["keeps_out"].to_string();
    assert!(kept_out.contains(second.digest()), "{kept_out}");
    assert!(kept_out.contains(third.digest()), "{kept_out}");
}

#[tokio::test]
async fn a_release_stops_a_rollback_that_waits_for_its_turn() {
    let (scene, _daemon, _first, second) = moved_on().await;
    scene.production.on(|asked| match asked.kind {
        Kind::ManifestPut => Answer::Reply(Reply::status(429).header("retry-after", "2")),
        _ => Answer::Pass,
    });
    let before = scene.production.count(Kind::ManifestPut);
    let mut back = scene.ferry.spawn_command(&BACK);
    scene.production.seen(Kind::ManifestPut, before + 1).await;
    scene.run(&["release", "app:latest"]).await.expect(0);
    scene.production.calm();
    assert_eq!(end_of(&mut back).await, 4);
    assert_eq!(scene.there("latest").as_deref(), Some(second.digest()));
    assert_eq!(scene.in_force().await.len(), 0);
}

#[tokio::test]
async fn a_rollback_does_not_wait_for_what_is_carried_to_its_tag() {
    let (scene, daemon, first, _second) = moved_on().await;
    let gate = Gate::closed();
    let at_gate = gate.clone();
    scene.staging.on(move |asked| match asked.kind {
        Kind::BlobGet => Answer::Hold(at_gate.clone()),
        _ => Answer::Pass,
    });
    let before = scene.staging.count(Kind::BlobGet);
    scene.staging.push("app", "latest", &Image::oci(3, &[300]));
    daemon.ping(json!({})).await;
    scene.staging.seen(Kind::BlobGet, before + 1).await;
    scene.run(&BACK).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(first.digest()));
    gate.open();
    scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(scene.there("latest").as_deref(), Some(first.digest()));
}

/// The image is whole in production; only what may belong to it cannot be asked for.
#[tokio::test]
async fn a_list_of_referrers_that_fails_stops_no_rollback() {
    let (scene, _daemon, first, _second) = moved_on().await;
    for registry in [&scene.staging, &scene.production] {
        registry.on(|asked| match asked.kind {
            Kind::Referrers => Answer::Reply(Reply::status(403)),
            _ => Answer::Pass,
        });
    }
    scene.run(&BACK).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(first.digest()));
    let rows = rows(&scene).await;
    let is_promotion = |row: &&Value| row["result"] == "promoted" && row["cause"] == "decision";
    let promoted = rows.iter().find(is_promotion).expect("it is a promotion");
    assert!(
        reasons(promoted).contains("the image is whole"),
        "{promoted:#}"
    );
}

/// The daemon is killed before the rollback's request acts. Starts another one.
async fn killed_before_it_moved(scene: &Scene, daemon: Daemon) -> Daemon {
    scene.production.on(|asked| match asked.kind {
        Kind::ManifestPut => Answer::Hang,
        _ => Answer::Pass,
    });
    let before = scene.production.count(Kind::ManifestPut);
    let mut back = scene.ferry.spawn_command(&BACK);
    scene.production.seen(Kind::ManifestPut, before + 1).await;
    daemon.killed().await;
    assert_eq!(end_of(&mut back).await, 1);
    scene.production.calm();
    scene.ferry.start_ready().await
}

/// Production and staging both name what the rollback replaces: all seemed well.
#[tokio::test]
async fn an_unfinished_rollback_is_told_of_a_tag_that_is_up_to_date() {
    let (scene, daemon, first, second) = moved_on().await;
    let _daemon = killed_before_it_moved(&scene, daemon).await;
    let unmoved = format!("production still names {}", second.digest());
    for named in [&["--all", "--tag", "latest"][..], &["--all"]] {
        let equal = scene.ferry.sync(named).await.expect(0);
        let job = equal.job("latest");
        assert_eq!(job["result"], "up_to_date");
        assert!(reasons(&job).contains(&unmoved), "{job:#}");
    }
    let why = scene.run(&["why", "app:latest"]).await.expect(0);
    assert!(why.stdout.contains(&unmoved), "{}", why.stdout);
    scene.run(&BACK).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(first.digest()));
    let held = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert!(!reasons(&held.job("latest")).contains("still names"));
}

#[tokio::test]
async fn a_rollback_that_was_killed_before_its_request_is_told_and_repeated() {
    let (scene, daemon, first, second) = moved_on().await;
    let third = Image::oci(3, &[300]);
    scene.staging.push("app", "latest", &third);
    let _daemon = killed_before_it_moved(&scene, daemon).await;
    let held = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    let told = reasons(&held.job("latest"));
    let unmoved = format!("production still names {}", second.digest());
    assert!(told.contains(&unmoved), "{told}");
    scene.run(&BACK).await.expect(0);
    assert_eq!(scene.there("latest").as_deref(), Some(first.digest()));
    assert_eq!(scene.in_force().await.len(), 1);
}
