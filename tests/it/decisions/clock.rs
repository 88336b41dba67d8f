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
