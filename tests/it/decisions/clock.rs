//! Ends of decisions while our clock is wrong.

use jiff::{SignedDuration, tz};

use super::{Scene, reasons};
use crate::support::scripted::Answer;
use crate::support::*;

/// The time of an hour ago, as answers say it.
fn an_hour_behind() -> String {
    let time = blobferry::clock::now() - SignedDuration::from_hours(1);
    let time = time.to_zoned(tz::TimeZone::UTC);
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// By production's clock the hold and the denial are in force for another hour; ours is ahead and
/// tells that they have ended.
#[tokio::test]
async fn nothing_ends_by_a_clock_that_is_off_the_destinations_date() {
    let scene = Scene::new();
    scene
        .production
        .on(|_| Answer::Header("date", an_hour_behind()));
    let daemon = scene.ferry.start_ready().await;
    let [held, denied] = [Image::oci(1, &[1000]), Image::oci(2, &[1000])];
    scene
        .run(&["hold", "app:v1", "--until", "2s"])
        .await
        .expect(0);
    let deny = ["deny", denied.digest(), "--until", "2s", "--reason", "CVE"];
    scene.run(&deny).await.expect(0);
    scene.staging.push("app", "v1", &held);
    scene.staging.push("app", "v2", &denied);
    for decision in ["decision=1", "decision=2"] {
        daemon
            .says(&format!("the decision has ended {decision}"))
            .await;
    }
    let run = scene
        .ferry
        .sync(&["--tag", "v1", "--tag", "v2"])
        .await
        .expect(4);
    for (tag, result) in [("v1", "held"), ("v2", "refused")] {
        let job = run.job(tag);
        assert_eq!(job["result"], result, "{job:#}");
        let why = reasons(&job);
        assert!(
            why.contains("while our clock is more than 60 s off"),
            "{why}"
        );
        assert_eq!(scene.there(tag), None, "{tag}");
    }
    // The clocks agree again: what was held moves, although nothing polls.
    scene.production.calm();
    scene.named("v1", &held).await;
    scene.named("v2", &denied).await;
}

/// It was written hours after its end, because nothing ends while the clocks differ.
#[tokio::test]
async fn an_accept_past_its_end_does_not_act_while_the_clock_is_off() {
    let scene = Scene::new();
    scene
        .production
        .on(|_| Answer::Header("date", an_hour_behind()));
    let (old, new) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    scene.production.push("app", "v1", &old);
    scene.staging.push("app", "v1", &new);
    let daemon = scene.ferry.start_ready().await;
    scene.run(&["hold", "app:v1"]).await.expect(0);
    let accept = ["accept", "app:v1", "--until", "2s", "--reason", "CHG-17"];
    scene.run(&accept).await.expect(0);
    let in_force = scene.in_force().await;
    let of_kind = |kind: &str| in_force.iter().find(|one| one["kind"] == kind);
    let number = |kind| of_kind(kind).expect("it is in force")["id"].to_string();
    let accept = number("accept");
    daemon
        .says(&format!("the decision has ended decision={accept} "))
        .await;
    scene.run(&["release", &number("hold")]).await.expect(0);
    let waits = &format!("the accept (decision {accept}) is past its end by our clock");
    let run = scene.ferry.sync(&["--tag", "v1"]).await;
    let job = run.job("v1");
    assert_eq!(job["result"], "existing", "{job:#}");
    assert!(reasons(&job).contains(waits.as_str()), "{job:#}");
    // Where the clocks agree, its end has come.
    scene.production.calm();
    let run = scene.ferry.sync(&["--tag", "v1"]).await;
    let job = run.job("v1");
    assert!(!reasons(&job).contains(waits.as_str()), "{job:#}");
    assert_eq!(scene.there("v1").as_deref(), Some(old.digest()));
}

/// It held, but no list had it, and no release ended it.
#[tokio::test]
async fn what_holds_past_its_end_is_listed_and_can_be_released() {
    let scene = Scene::new();
    scene
        .production
        .on(|_| Answer::Header("date", an_hour_behind()));
    let daemon = scene.ferry.start_ready().await;
    let image = Image::oci(1, &[1000]);
    scene
        .run(&["hold", "app:v1", "--until", "2s"])
        .await
        .expect(0);
    scene.staging.push("app", "v1", &image);
    daemon.says("the decision has ended decision=1").await;
    scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    let in_force = scene.in_force().await;
    assert_eq!(in_force.len(), 1, "{in_force:?}");
    let listed = daemon.get("/v1/decisions?in_force=true").await;
    let listed = listed.text().await.expect("a list");
    assert!(listed.contains("app:v1"), "{listed}");
    let why = scene.run(&["why", "production/app:v1"]).await.stdout;
    assert!(why.contains("decision 1"), "{why}");
    let holds = [("kind", "hold")];
    let metric = daemon.metric("blobferry_decisions_in_force", &holds).await;
    assert_eq!(metric, Some(1.0));
    scene.run(&["release", "app:v1"]).await.expect(0);
    scene.named("v1", &image).await;
    assert_eq!(scene.in_force().await.len(), 0);
}
