//! The programmable registry does what a registry does, and breaks as it is told.

use crate::support::scripted::{Answer, Settings};
use crate::support::*;

fn pair(staging: &Scripted, production: &Scripted) -> Ferry {
    Ferry::new(&Config::pair(&staging.url(), &production.url()))
}

#[tokio::test]
async fn a_scripted_registry_is_promoted_from_and_to() {
    let staging = Scripted::start();
    let production = Scripted::with(Settings {
        page: 2,
        ..Settings::default()
    });
    let image = Image::index(&[Image::oci(1, &[100_000]), Image::oci(2, &[10])]);
    let signature = Image::referrer(9, &image, "application/vnd.example.signature");
    for tag in ["v1", "v2", "v3"] {
        staging.push("app", tag, &image);
    }
    staging.push_untagged("app", &signature);
    let run = pair(&staging, &production).sync(&[]).await.expect(0);
    assert_eq!(run.total("promoted"), 3);
    Client::new(&production.url())
        .assert_holds("app", "v3", &image)
        .await;
    assert!(production.holds("app", signature.digest()));
    assert_eq!(
        Client::new(&production.url()).tags("app").await,
        ["v1", "v2", "v3"]
    );
}

#[tokio::test]
async fn a_script_decides_before_the_registry_and_every_request_is_recorded() {
    let staging = Scripted::start();
    let production = Scripted::start();
    let image = Image::oci(1, &[300_000]);
    staging.push("app", "v1", &image);
    staging.on(|asked| match asked.kind {
        Kind::BlobGet if asked.nth_here == 1 => Answer::CutBody(100),
        _ => Answer::Pass,
    });
    production.on(|asked| match (asked.kind, asked.nth) {
        (Kind::ManifestPut, 1) => Answer::Reply(Reply::status(503).header("retry-after", "0")),
        (Kind::ManifestPut, 2) => Answer::Lose,
        (Kind::UploadPatch | Kind::UploadPut, 1) => Answer::CutRequest(10),
        _ => Answer::Pass,
    });
    pair(&staging, &production).sync(&[]).await.expect(0);
    Client::new(&production.url())
        .assert_holds("app", "v1", &image)
        .await;
    let puts: Vec<_> = production
        .of(Kind::ManifestPut)
        .into_iter()
        .map(|put| put.status)
        .collect();
    assert_eq!(puts[..2], [Some(503), None], "a lost answer has no status");
    assert!(
        staging.of(Kind::BlobGet).len() >= 4,
        "two blobs, each once more"
    );
    assert!(production.received(Kind::ManifestPut) >= 2 * image.root().bytes.len() as u64);
}

#[tokio::test]
async fn what_a_scripted_registry_refuses_is_not_promoted() {
    let staging = Scripted::start();
    let production = Scripted::start();
    staging.push("app", "v1", &Image::oci(1, &[1000]));
    production.on(|asked| match asked.kind {
        Kind::ManifestPut => Answer::Reply(Reply::status(403)),
        _ => Answer::Pass,
    });
    let run = pair(&staging, &production).sync(&[]).await;
    assert_ne!(run.code, 0);
    assert_eq!(production.tagged("app", "v1"), None);
}
