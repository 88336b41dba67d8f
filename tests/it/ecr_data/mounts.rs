//! Mounts on ECR need a committed manifest: of jobs that share a base one sends it, the others wait
//! for its manifest.

use serde_json::json;

use super::{Accounts, MIB};
use crate::ecr::{OTHER, keys, merged};
use crate::support::ecr::HOME;
use crate::support::*;

const TAGS: [(&str, &str); 5] = [
    ("a", "v1"),
    ("a", "v2"),
    ("b", "v1"),
    ("b", "v2"),
    ("c", "v1"),
];

/// Five tags in three repositories on one base of 6 MiB.
async fn stage(mounting: bool) -> (Accounts, Vec<Image>) {
    let accounts = Accounts::new().await;
    let mut config = Config::new()
        .registry_with(
            "staging",
            &accounts.source.url(),
            keys(&accounts.staging, HOME),
        )
        .registry_with(
            "production",
            &accounts.target.url(),
            // Settings of an account are only shown to an identity of that account.
            merged(
                keys(&accounts.production, OTHER),
                json!({"role_arn": format!("arn:aws:iam::{OTHER}:role/promoter")}),
            ),
        );
    for repository in ["a", "b", "c"] {
        accounts.staging.create(repository);
        accounts.production.create(repository);
        config = config.route(repository, json!({}));
    }
    accounts.ferry.write_config(&config);
    accounts.production.ways(|ways| ways.mounting = mounting);
    let base = Blob::layer(1, 6 * MIB as usize);
    let mut images = Vec::new();
    for (seed, (repository, tag)) in (10..).zip(TAGS) {
        let image = Image::of_layers(seed, vec![base.clone(), Blob::layer(seed, MIB as usize)]);
        accounts
            .staging
            .client()
            .push(repository, tag, &image)
            .await;
        images.push(image);
    }
    (accounts, images)
}

#[tokio::test]
async fn a_shared_base_crosses_once_and_is_mounted_into_the_other_repositories() {
    let (accounts, images) = stage(true).await;
    let run = accounts.ferry.sync(&[]).await.expect(0);
    for ((repository, tag), image) in TAGS.iter().zip(&images) {
        accounts.there().assert_holds(repository, tag, image).await;
    }
    let base = &images[0].blobs[1].digest;
    let puts: Vec<_> = accounts
        .target
        .of(&[Kind::UploadPut])
        .into_iter()
        .filter(|put| put.path.contains(base))
        .collect();
    assert_eq!(puts.len(), 1, "the base is sent once: {puts:#?}");
    let reads = accounts
        .source
        .of(&[Kind::BlobGet])
        .into_iter()
        .filter(|read| read.path.contains(base))
        .count();
    assert_eq!(reads, 1, "and read once");
    let mounted: u64 = run.report()["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|job| job["blobs"]["mounted"].as_u64())
        .sum();
    assert_eq!(mounted, 2, "once into each other repository");
    assert!(
        accounts.sent() < 12 * MIB,
        "{} bytes were sent",
        accounts.sent()
    );
}

#[tokio::test]
async fn where_mounting_is_off_nobody_waits_for_a_manifest() {
    let (accounts, images) = stage(false).await;
    // The first manifests stand still until the base is on its way into every repository.
    let gate = Gate::closed();
    accounts
        .target
        .rule(Rule::on(&[Kind::ManifestPut]).act(Act::Hold(gate.clone())));
    let base = images[0].blobs[1].digest.clone();
    let (run, ()) = tokio::join!(accounts.ferry.sync(&[]), async {
        eventually("each repository gets the base", async || {
            let puts = accounts.target.of(&[Kind::UploadPut]);
            let into = |repository: &str| {
                puts.iter().any(|put| {
                    put.path.contains(&base) && put.path.contains(&format!("/v2/{repository}/"))
                })
            };
            ["a", "b", "c"].into_iter().all(into).then_some(())
        })
        .await;
        gate.open();
    });
    assert_eq!(run.expect(0).total("promoted"), 5);
    for ((repository, tag), image) in TAGS.iter().zip(&images) {
        accounts.there().assert_holds(repository, tag, image).await;
    }
}
