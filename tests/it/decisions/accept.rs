//! What a person accepts moves once, and only from where it was.

use super::Scene;
use crate::support::*;

#[tokio::test]
async fn what_is_accepted_moves_once_and_only_from_where_it_was() {
    let scene = Scene::new();
    let (first, second, theirs) = (
        Image::oci(1, &[100]),
        Image::oci(2, &[200]),
        Image::oci(3, &[300]),
    );
    scene.staging.push("app", "v1", &first);
    let _daemon = scene.ferry.start_ready().await;
    scene.staging.push("app", "v1", &second);
    scene.ferry.sync(&[]).await.expect(4);
    let accept = [
        "accept",
        "production/app:v1",
        "--reason",
        "the rebuild is right",
    ];
    // Of another digest than the one that was seen it is refused.
    let other = [&accept[..], &["--digest", first.digest()]].concat();
    let refused = scene.run(&other).await.expect(4);
    assert!(refused.stderr.contains("look again"), "{}", refused.stderr);
    scene.run(&["hold", "app:v1"]).await.expect(0);
    let run = scene.run(&accept).await.expect(0);
    assert!(
        run.stdout.contains(second.digest()) && run.stdout.contains(first.digest()),
        "{}",
        run.stdout
    );
    assert_eq!(
        scene.ferry.sync(&["--tag", "v1"]).await.expect(4).job("v1")["result"],
        "held",
        "holds apply"
    );
    scene.run(&["release", "app:v1"]).await.expect(0);
    scene.named("v1", &second).await;
    eventually("it is over", async || {
        scene.in_force().await.is_empty().then_some(())
    })
    .await;
    // Once: the next change is a conflict again.
    scene.staging.push("app", "v1", &theirs);
    scene.ferry.sync(&[]).await.expect(4);
    assert_eq!(scene.there("v1").as_deref(), Some(second.digest()));

    // Production changed by hand to what staging names: a person agrees.
    scene.production.push("app", "v1", &theirs);
    let agreed = scene.run(&accept).await.expect(0);
    assert!(
        agreed.stdout.contains("both sides name"),
        "{}",
        agreed.stdout
    );
    assert_eq!(scene.in_force().await.len(), 0);
    scene.ferry.sync(&[]).await.expect(0);
    let nothing = ["accept", "production/app:v9", "--reason", "x"];
    scene.run(&nothing).await.expect(5);
    let wide = ["accept", "production/**", "--reason", "x"];
    scene.run(&wide).await.expect(2);
    let silent = ["accept", "production/app:v1"];
    scene.run(&silent).await.expect(2);
}

#[tokio::test]
async fn all_existing_tags_of_a_route_are_accepted_as_they_were_reported() {
    let scene = Scene::new();
    let theirs = Image::oci(9, &[900]);
    let ours: Vec<Image> = (1..=3).map(|seed| Image::oci(seed, &[100])).collect();
    for (tag, image) in ["v1", "v2", "latest"].into_iter().zip(&ours) {
        scene.staging.push("app", tag, image);
        scene.production.push("app", tag, &theirs);
    }
    let _daemon = scene.ferry.start_ready().await;
    let run = scene.ferry.sync(&[]).await;
    assert_eq!(run.total("existing"), 3);
    // One of them changes after the report.
    let newer = Image::oci(4, &[400]);
    scene.staging.push("app", "v2", &newer);
    let accept = ["accept", "route:app", "--all", "--reason", "first start"];
    scene.run(&accept).await.expect(0);
    scene.named("v1", &ours[0]).await;
    scene.named("latest", &ours[2]).await;
    let run = scene.ferry.sync(&["--tag", "v2"]).await;
    assert_eq!(run.job("v2")["result"], "existing");
    assert_eq!(scene.there("v2").as_deref(), Some(theirs.digest()));
    // Once: what is put back by hand stays.
    scene.production.push("app", "v1", &theirs);
    scene.ferry.sync(&["--tag", "v1"]).await;
    assert_eq!(scene.there("v1").as_deref(), Some(theirs.digest()));
    let narrow = ["accept", "app:v1", "--all", "--reason", "x"];
    scene.run(&narrow).await.expect(2);
}

#[tokio::test]
async fn accept_takes_a_daemon() {
    let scene = Scene::new();
    let accept = ["accept", "app:v1", "--reason", "x"];
    let run = scene.run(&accept).await.expect(1);
    assert!(
        run.stderr.contains("no daemon is running"),
        "{}",
        run.stderr
    );
}
