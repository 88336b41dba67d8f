//! Connections to ECR that break, at many bytes and in every phase, on either side: one `sync`
//! always finishes, and of what ECR has kept nothing is sent again.

use serde_json::json;

use super::{Accounts, MIB, PART};
use crate::support::*;

const SIZE: u64 = 9 * MIB;
/// Where and how bodies are cut: at the start, within and between parts, at a checkpoint, before
/// and after the last byte.
const POINTS: [(u64, Cut); 10] = [
    (0, Cut::Fin),
    (1, Cut::Reset),
    (65_536, Cut::Fin),
    (PART - 1, Cut::Reset),
    (PART + 1, Cut::Fin),
    (8 * MIB, Cut::Reset),
    (8 * MIB + 1, Cut::Fin),
    (SIZE - 1, Cut::Reset),
    (SIZE, Cut::Fin),
    (SIZE, Cut::Reset),
];

/// An image for each point, its layer named by no other.
async fn images(accounts: &Accounts) -> Vec<(u64, Cut, String, Image)> {
    let mut images = Vec::new();
    for (number, (point, cut)) in (1..).zip(POINTS) {
        let (tag, image) = (format!("v{number}"), Image::oci(number, &[SIZE as usize]));
        accounts.push(&tag, &image).await;
        images.push((point, cut, tag, image));
    }
    images
}

fn of_layer(proxy: &Proxy, kind: Kind, image: &Image) -> Vec<proxy::Entry> {
    proxy
        .of(&[kind])
        .into_iter()
        .filter(|entry| entry.path.contains(&image.blobs[1].digest))
        .collect()
}

#[tokio::test]
async fn an_upload_that_breaks_off_at_any_byte_is_gone_on_with() {
    let accounts = Accounts::new().await;
    let images = images(&accounts).await;
    for (point, cut, _, image) in &images {
        let rule = Rule::on(&[Kind::UploadPut])
            .path(&image.blobs[1].digest)
            .times(1);
        accounts
            .target
            .rule(rule.act(Act::CutRequest(*point, *cut)));
    }
    let run = accounts.ferry.sync(&[]).await.expect(0);
    assert_eq!(run.total("promoted"), images.len() as u64);
    for (point, cut, tag, image) in &images {
        accounts.there().assert_holds("app", tag, image).await;
        let puts = of_layer(&accounts.target, Kind::UploadPut, image);
        let sent: u64 = puts.iter().map(proxy::Entry::bytes_sent).sum();
        // The rest of a part, and what was lost between the proxy and ECR.
        assert!(
            sent <= SIZE + PART + MIB,
            "{cut:?} at {point}: {sent} bytes were sent"
        );
        assert!(puts.len() <= 2, "{cut:?} at {point}: {puts:#?}");
    }
}

#[tokio::test]
async fn a_source_that_breaks_off_at_any_byte_never_restarts_the_upload() {
    let accounts = Accounts::new().await;
    let images = images(&accounts).await;
    for (point, cut, _, image) in &images {
        let rule = Rule::on(&[Kind::BlobGet])
            .path(&image.blobs[1].digest)
            .times(2);
        accounts.source.rule(rule.act(Act::CutAnswer(*point, *cut)));
    }
    let run = accounts.ferry.sync(&[]).await.expect(0);
    assert_eq!(run.total("promoted"), images.len() as u64);
    for (point, cut, tag, image) in &images {
        accounts.there().assert_holds("app", tag, image).await;
        let puts = of_layer(&accounts.target, Kind::UploadPut, image);
        let sent: u64 = puts.iter().map(proxy::Entry::bytes_sent).sum();
        assert_eq!(
            (puts.len(), sent),
            (1, SIZE),
            "{cut:?} at {point}: each byte is sent once"
        );
        let read: u64 = of_layer(&accounts.source, Kind::BlobGet, image)
            .iter()
            .map(proxy::Entry::bytes_read)
            .sum();
        // A reset throws away what waits in sockets.
        let lost = if *cut == Cut::Reset { *point } else { MIB };
        assert!(
            read <= SIZE + 2 * lost + 1,
            "{cut:?} at {point}: {read} bytes were read"
        );
    }
}

#[tokio::test]
async fn a_break_in_any_phase_is_waited_out() {
    let target = [
        Kind::UploadPost,
        Kind::UploadPut,
        Kind::UploadPatch,
        Kind::ManifestPut,
    ];
    let source = [Kind::ManifestGet, Kind::BlobGet];
    let accounts = Accounts::new().await;
    let image = Image::index(&[
        Image::oci(1, &[100_000]),
        Image::oci(2, &[9 * MIB as usize]),
    ]);
    accounts.push("v1", &image).await;
    for (proxy, kinds) in [
        (&accounts.target, &target[..]),
        (&accounts.source, &source[..]),
    ] {
        for kind in kinds {
            proxy.thrice(*kind);
        }
    }
    // The layer breaks in the middle as well, so that ECR is asked where it stands.
    let layer = Rule::on(&[Kind::UploadPut])
        .path(&image.blobs[3].digest)
        .from(1)
        .times(1);
    accounts
        .target
        .rule(layer.act(Act::CutRequest(5 * MIB, Cut::Reset)));
    let run = accounts.ferry.sync(&[]).await.expect(0);
    assert_eq!((run.total("promoted"), run.total("failed")), (1, 0));
    accounts.there().assert_holds("app", "v1", &image).await;
    let last = accounts
        .target
        .of(&[Kind::ManifestPut])
        .pop()
        .expect("the tag was written");
    assert!(
        last.path.ends_with("/v1"),
        "the tag is the last write: {}",
        last.path
    );
    let total: u64 = image
        .unique_blobs()
        .iter()
        .map(|blob| blob.bytes.len() as u64)
        .sum();
    assert!(run.job("v1")["bytes_sent"].as_u64().unwrap() <= 2 * total);
}

#[tokio::test]
async fn a_connection_that_breaks_again_and_again_still_brings_the_blob() {
    let accounts = Accounts::new().await;
    let image = Image::oci(1, &[16 * MIB as usize]);
    accounts.push("v1", &image).await;
    for attempt in 0..6 {
        let rule = Rule::on(&[Kind::UploadPut])
            .path(&image.blobs[1].digest)
            .from(attempt)
            .times(1);
        accounts
            .target
            .rule(rule.act(Act::CutRequest(PART + MIB, Cut::Reset)));
    }
    let run = accounts.ferry.sync(&[]).await.expect(0);
    accounts.there().assert_holds("app", "v1", &image).await;
    let sent: u64 = of_layer(&accounts.target, Kind::UploadPut, &image)
        .iter()
        .map(proxy::Entry::bytes_sent)
        .sum();
    assert!(sent <= (16 + 6 * 3) * MIB, "{sent} bytes were sent");
    assert_eq!(
        run.job("v1")["blobs"],
        json!({"present": 0, "mounted": 0, "copied": 2, "resumed": 1})
    );
}
