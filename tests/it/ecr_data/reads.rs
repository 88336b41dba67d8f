//! What ECR gives to read: blobs by signed addresses of a storage that end, manifests that are
//! converted when they are asked for by tag; and passwords that end while a large layer is under
//! way.

use std::collections::BTreeSet;

use super::{Accounts, MIB, PART};
use crate::ecr::{demo, pipeline};
use crate::support::image::unique;
use crate::support::*;

/// What S3 answers when an address has run out: the token of the address stands in it.
const RUN_OUT: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message><Token-0>storage-token</Token-0><RequestId>1</RequestId></Error>";

fn signature(entry: &proxy::Entry) -> String {
    entry
        .path
        .split("X-Amz-Signature=")
        .nth(1)
        .expect("every read is signed")
        .to_owned()
}

#[tokio::test]
async fn a_signed_address_that_runs_out_is_asked_for_anew_and_the_read_goes_on() {
    let accounts = Accounts::new().await;
    let storage = Proxy::before(&accounts.staging.registry().url()).await;
    accounts
        .staging
        .ways(|ways| ways.storage = Some(storage.url()));
    let size = 12 * MIB;
    let image = Image::oci(1, &[size as usize]);
    let layer = &image.blobs[1].digest;
    accounts.push("v1", &image).await;
    // The read breaks off three times; between them two fresh addresses have run out before they
    // are used.
    let expired = || Reply::status(403).body("application/xml", RUN_OUT);
    let on = |number| Rule::on(&[Kind::BlobGet]).path(layer).from(number).times(1);
    storage.rule(on(0).act(Act::CutAnswer(5 * MIB, Cut::Fin)));
    storage.rule(on(1).act(expired()));
    storage.rule(on(2).act(Act::CutAnswer(MIB, Cut::Fin)));
    storage.rule(on(3).act(Reply::status(400).body("application/xml", RUN_OUT)));
    storage.rule(on(4).act(Act::CutAnswer(MIB, Cut::Fin)));
    let run = accounts
        .ferry
        .run(&["sync", "--json", "-vv"])
        .await
        .expect(0);
    accounts.there().assert_holds("app", "v1", &image).await;

    let reads = storage.of(&[Kind::BlobGet]);
    assert!(
        reads.iter().all(|read| !read.authorization),
        "no credential leaves the registry: {reads:#?}"
    );
    assert_eq!(
        reads.iter().map(signature).collect::<BTreeSet<_>>().len(),
        reads.len(),
        "no address is used twice"
    );
    let asked = accounts.source.of(&[Kind::BlobGet]);
    assert_eq!(
        asked.len(),
        reads.len(),
        "each address comes from the registry"
    );
    assert!(asked.iter().all(|read| read.authorization));
    let read: u64 = reads
        .iter()
        .filter(|read| read.path.contains(layer))
        .map(proxy::Entry::bytes_read)
        .sum();
    assert!(read <= size + 2 * MIB, "{read} bytes were read of {size}");
    assert_eq!(
        accounts.target.bytes(&[Kind::UploadPut]).0,
        image
            .unique_blobs()
            .iter()
            .map(|blob| blob.bytes.len() as u64)
            .sum::<u64>()
    );
    let said = run.said();
    assert!(
        !said.contains("X-Amz") && !said.contains("storage-token"),
        "{said}"
    );
    assert!(
        !reads.iter().any(|read| said.contains(&signature(read))),
        "{said}"
    );
}

#[tokio::test]
async fn a_storage_that_always_refuses_is_named_without_its_address() {
    let accounts = Accounts::new().await;
    let storage = Proxy::alone().await;
    storage.always(
        Kind::BlobGet,
        Reply::status(403).body("application/xml", RUN_OUT),
    );
    accounts
        .staging
        .ways(|ways| ways.storage = Some(storage.url()));
    accounts.push("v1", &Image::oci(1, &[1000])).await;
    let run = accounts
        .ferry
        .run(&["sync", "--json", "-vv"])
        .await
        .expect(1);
    let text = run.job("v1")["error"]["text"].as_str().unwrap().to_owned();
    assert!(
        text.contains(&storage.address()) && text.contains("ExpiredToken"),
        "{text}"
    );
    let said = run.said();
    assert!(
        !said.contains("X-Amz") && !said.contains("storage-token"),
        "{said}"
    );
    assert_eq!(accounts.production.count("PutImage"), 0);
}

#[tokio::test]
async fn production_gets_the_bytes_that_were_pushed_even_where_tags_are_converted() {
    let accounts = Accounts::new().await;
    let image = Image::oci(1, &[500]);
    accounts.push("v1", &image).await;
    accounts.staging.ways(|ways| ways.converts = true);
    accounts.ferry.sync(&[]).await.expect(0);
    accounts.there().assert_holds("app", "v1", &image).await;

    // Without a listing that tells digests the tag has to be read: then its digest is asked for,
    // and nothing is guessed.
    let second = Image::oci(2, &[600]);
    accounts.push("v2", &second).await;
    accounts
        .staging
        .ways(|ways| ways.denied = ["DescribeImages"].into());
    let run = accounts.ferry.sync(&[]).await.expect(1);
    let text = run.job("v2")["error"]["text"].as_str().unwrap().to_owned();
    assert!(
        text.contains("another document by tag") && text.contains("ecr:DescribeImages"),
        "{text}"
    );
    assert_eq!(
        accounts.there().digest("app", "v2").await,
        None,
        "a converted manifest never reaches production"
    );
    accounts.staging.ways(|ways| ways.denied.clear());
    accounts.ferry.sync(&[]).await.expect(0);
    accounts.there().assert_holds("app", "v2", &second).await;
}

#[tokio::test]
async fn a_pipeline_step_promotes_what_was_pushed_even_where_tags_are_converted() {
    let ecr = demo().await;
    let image = Image::oci(1, &[500]);
    ecr.client()
        .push("staging-demo-app", "latest", &image)
        .await;
    ecr.ways(|ways| ways.converts = true);
    let ferry = pipeline(&ecr).with_env("IMAGE_DIGEST", image.digest());
    for _ in 0..2 {
        ferry.run(&["promote"]).await.expect(0);
        ecr.client()
            .assert_holds("prod-demo-app", "latest", &image)
            .await;
    }
    assert_eq!(ecr.count("PutImage"), 1);
}

/// The password ends at a first request for a layer, at one in the middle, at a question where ECR
/// stands, and when the rest is sent.
#[tokio::test]
async fn a_password_that_ends_while_layers_are_under_way_fails_no_job() {
    for uses in [4, 7, 10, 14] {
        let accounts = Accounts::new().await;
        let image = Image::oci(
            uses as u64,
            &[4 * MIB as usize, 5 * MIB as usize, 6 * MIB as usize],
        );
        accounts.push("v1", &image).await;
        for blob in unique(image.blobs.iter()) {
            let rule = Rule::on(&[Kind::UploadPut]).path(&blob.digest).times(1);
            accounts
                .target
                .rule(rule.act(Act::CutRequest(PART + MIB, Cut::Reset)));
        }
        accounts
            .production
            .ways(|ways| (ways.uses, ways.ends_once) = (Some(uses), true));
        let run = accounts.ferry.sync(&[]).await.expect(0);
        accounts.there().assert_holds("app", "v1", &image).await;
        assert_eq!((run.total("promoted"), run.total("failed")), (1, 0));
        assert_eq!(
            accounts.production.count("GetAuthorizationToken"),
            2,
            "the password that ended after {uses} requests"
        );
        assert!(
            accounts.sent() <= 15 * MIB + 3 * (PART + MIB),
            "{uses}: {} bytes were sent",
            accounts.sent()
        );
    }
}
