//! Connections that break, at many bytes and in every phase, on either side: one `sync` always
//! finishes, and sends no more than the registry's kind makes necessary.

use serde_json::json;

use crate::support::*;

const MIB: u64 = 1024 * 1024;
const SIZE: u64 = 10 * MIB;
/// What may be lost between the proxy and the registry's disk when a connection ends.
const UNDER_WAY: u64 = MIB;

const KINDS: [(Program, &str); 2] = [
    (Program::Distribution3, "distribution3"),
    (Program::Distribution2, "distribution2"),
];

/// Where bodies are cut: at the start, within and between frames, at a checkpoint, before and after
/// the last byte.
const POINTS: [u64; 10] = [
    0,
    1,
    1000,
    65_536,
    MIB + 7,
    3 * MIB,
    8 * MIB,
    8 * MIB + 1,
    SIZE - 1,
    SIZE,
];

async fn stage(program: Program, kind: &str, threads: usize) -> Stage {
    let stage = Stage::new(program).await;
    let config = stage.config(|config| {
        config.registry_with("production", &stage.target.url(), json!({"kind": kind}))
    });
    let config = config.threads(threads);
    stage.ferry.write_config(&config.route("app", json!({})));
    stage
}

/// Every kind with every number of threads.
fn kinds_and_threads() -> impl Iterator<Item = ((Program, &'static str), usize)> {
    let each = |kind| THREADS.map(|threads| (kind, threads));
    KINDS.into_iter().flat_map(each)
}

/// An image for each point, its layer named by no other.
async fn images(stage: &Stage) -> Vec<(u64, String, Image)> {
    let mut images = Vec::new();
    for (number, point) in (1..).zip(POINTS) {
        let (tag, image) = (format!("v{number}"), Image::oci(number, &[SIZE as usize]));
        stage.push().push("app", &tag, &image).await;
        images.push((point, tag, image));
    }
    images
}

fn of_layer(proxy: &Proxy, kinds: &[Kind], image: &Image) -> Vec<proxy::Entry> {
    proxy
        .of(kinds)
        .into_iter()
        .filter(|entry| entry.path.contains(&image.blobs[1].digest))
        .collect()
}

#[tokio::test]
async fn a_destination_that_breaks_off_at_any_byte_is_gone_on_with() {
    for ((program, kind), threads) in kinds_and_threads() {
        for cut in [Cut::Fin, Cut::Reset] {
            let stage = stage(program, kind, threads).await;
            let images = images(&stage).await;
            for (point, _, image) in &images {
                let rule = Rule::on(&[Kind::UploadPut])
                    .path(&image.blobs[1].digest)
                    .times(1);
                stage.target.rule(rule.act(Act::CutRequest(*point, cut)));
            }
            let run = stage.sync().await.expect(0);
            assert_eq!(run.total("promoted"), images.len() as u64);
            for (point, tag, image) in &images {
                stage.there().assert_holds("app", tag, image).await;
                let puts = of_layer(&stage.target, &[Kind::UploadPut], image);
                let sent: u64 = puts.iter().map(proxy::Entry::bytes_sent).sum();
                let most = if kind == "distribution3" {
                    SIZE + UNDER_WAY
                } else {
                    SIZE + point
                };
                assert!(
                    sent <= most,
                    "{kind}, {threads} threads, {cut:?} at {point}: {sent} bytes were sent"
                );
                assert!(
                    puts.len() <= 2,
                    "{kind}, {threads} threads, {cut:?} at {point}: {puts:#?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_source_that_breaks_off_at_any_byte_never_restarts_the_upload() {
    for ((program, kind), threads) in kinds_and_threads() {
        for cut in [Cut::Fin, Cut::Reset] {
            let stage = stage(program, kind, threads).await;
            let images = images(&stage).await;
            for (point, _, image) in &images {
                let rule = Rule::on(&[Kind::BlobGet])
                    .path(&image.blobs[1].digest)
                    .times(2);
                stage.source.rule(rule.act(Act::CutAnswer(*point, cut)));
            }
            let run = stage.sync().await.expect(0);
            assert_eq!(run.total("promoted"), images.len() as u64);
            for (point, tag, image) in &images {
                stage.there().assert_holds("app", tag, image).await;
                let sent: u64 = of_layer(&stage.target, &[Kind::UploadPut], image)
                    .iter()
                    .map(proxy::Entry::bytes_sent)
                    .sum();
                assert_eq!(
                    sent, SIZE,
                    "{kind}, {threads} threads, {cut:?} at {point}: each byte is sent once"
                );
                let read: u64 = of_layer(&stage.source, &[Kind::BlobGet], image)
                    .iter()
                    .map(proxy::Entry::bytes_read)
                    .sum();
                // A reset throws away what waits in sockets.
                let lost = if cut == Cut::Reset { *point } else { UNDER_WAY };
                assert!(
                    read <= SIZE + 2 * lost + 1,
                    "{kind}, {threads} threads, {cut:?} at {point}: {read} bytes were read"
                );
                assert_eq!(
                    of_layer(&stage.target, &[Kind::UploadPut], image).len(),
                    1,
                    "{kind}, {threads} threads, {cut:?} at {point}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_break_in_any_phase_is_waited_out() {
    let target = [
        Kind::Tags,
        Kind::UploadPost,
        Kind::UploadPut,
        Kind::ManifestPut,
        Kind::ManifestHead,
        Kind::UploadStatus,
    ];
    let source = [
        Kind::Tags,
        Kind::ManifestGet,
        Kind::BlobGet,
        Kind::Referrers,
    ];
    for ((program, kind), threads) in kinds_and_threads() {
        let stage = stage(program, kind, threads).await;
        let image = Image::index(&[
            Image::oci(1, &[100_000]),
            Image::oci(2, &[9 * MIB as usize]),
        ]);
        stage.push().push("app", "v1", &image).await;
        for (proxy, kinds) in [(&stage.target, &target[..]), (&stage.source, &source[..])] {
            for kind in kinds {
                proxy.thrice(*kind);
            }
        }
        // The layer breaks in the middle as well, so that the state of its upload is asked for.
        let layer = Rule::on(&[Kind::UploadPut])
            .path(&image.blobs[3].digest)
            .from(1)
            .times(1);
        stage
            .target
            .rule(layer.act(Act::CutRequest(5 * MIB, Cut::Reset)));
        let run = stage.sync().await.expect(0);
        assert_eq!(run.total("promoted"), 1);
        stage.there().assert_holds("app", "v1", &image).await;
        let tag = stage
            .target
            .of(&[Kind::ManifestPut])
            .pop()
            .expect("the tag was written");
        assert!(
            tag.path.ends_with("/v1"),
            "the tag is the last write: {}",
            tag.path
        );
        let total: u64 = image
            .unique_blobs()
            .iter()
            .map(|blob| blob.bytes.len() as u64)
            .sum();
        assert_eq!(run.total("failed"), 0);
        assert!(run.job("v1")["bytes_sent"].as_u64().unwrap() <= 2 * total);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_again_and_again_still_brings_the_blob() {
    for threads in THREADS {
        let stage = stage(Program::Distribution3, "distribution3", threads).await;
        breaks_twelve_times(&stage).await;
    }
}

async fn breaks_twelve_times(stage: &Stage) {
    let image = Image::oci(1, &[SIZE as usize]);
    stage.push().push("app", "v1", &image).await;
    for attempt in 0..12 {
        let rule = Rule::on(&[Kind::UploadPut])
            .path(&image.blobs[1].digest)
            .from(attempt)
            .times(1);
        stage
            .target
            .rule(rule.act(Act::CutRequest(700_000, Cut::Reset)));
    }
    let run = stage.sync().await.expect(0);
    stage.there().assert_holds("app", "v1", &image).await;
    let puts = of_layer(&stage.target, &[Kind::UploadPut], &image);
    let sent: u64 = puts.iter().map(proxy::Entry::bytes_sent).sum();
    assert!(
        puts.len() == 13 && sent <= SIZE + 12 * UNDER_WAY / 2,
        "{} requests, {sent} bytes",
        puts.len()
    );
    assert_eq!(
        run.job("v1")["blobs"],
        json!({"present": 0, "mounted": 0, "copied": 2, "resumed": 1})
    );
}
