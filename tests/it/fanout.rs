//! One route to several destinations: each byte is read once, and nobody is held back by another.

use serde_json::json;

use crate::support::*;

const MIB: usize = 1024 * 1024;

/// Staging behind a proxy, and three destinations behind one each.
struct Fan {
    staging: Registry,
    source: Proxy,
    registries: [Registry; 3],
    targets: [Proxy; 3],
    ferry: Ferry,
}

impl Fan {
    async fn new(threads: usize) -> Fan {
        let staging = Registry::distribution3();
        let registries = [
            Registry::distribution3(),
            Registry::distribution3(),
            Registry::distribution2(),
        ];
        let source = Proxy::before(&staging.url()).await;
        let mut targets = Vec::new();
        for registry in &registries {
            targets.push(Proxy::before(&registry.url()).await);
        }
        let targets: [Proxy; 3] = targets.try_into().ok().expect("three proxies");
        let mut config = Config::new()
            .threads(threads)
            .registry("staging", &source.url());
        for (name, target) in ["a", "b", "c"].iter().zip(&targets) {
            config = config.registry(name, &target.url());
        }
        let ferry = Ferry::new(&config.route("app", json!({"to": ["a/app", "b/app", "c/app"]})));
        Fan {
            staging,
            source,
            registries,
            targets,
            ferry,
        }
    }

    /// Bytes of blobs that were read from staging.
    fn read(&self) -> u64 {
        self.source.bytes(&[Kind::BlobGet]).1
    }
}

fn size(images: &[&Image]) -> u64 {
    image::unique(images.iter().flat_map(|image| &image.blobs))
        .iter()
        .map(|blob| blob.bytes.len() as u64)
        .sum()
}

#[tokio::test]
async fn each_byte_is_read_once_for_all_destinations() {
    for threads in THREADS {
        reads_each_byte_once(&Fan::new(threads).await).await;
    }
}

async fn reads_each_byte_once(fan: &Fan) {
    let images = [
        Image::oci(1, &[30 * MIB, 5 * MIB, 200_000, 17]),
        Image::index(&[Image::oci(2, &[MIB]), Image::oci(3, &[2 * MIB])]),
    ];
    for (tag, image) in ["v1", "v2"].iter().zip(&images) {
        fan.staging.client().push("app", tag, image).await;
    }
    let run = fan.ferry.sync(&[]).await.expect(0);
    assert_eq!(run.total("promoted"), 6);
    for registry in &fan.registries {
        for (tag, image) in ["v1", "v2"].iter().zip(&images) {
            registry.client().assert_holds("app", tag, image).await;
        }
    }
    let (read, unique) = (fan.read(), size(&[&images[0], &images[1]]));
    assert!(
        read * 100 <= unique * 101,
        "{read} bytes were read for {unique}"
    );
}

#[tokio::test]
async fn a_slow_and_a_dead_destination_do_not_hold_back_the_healthy_one() {
    for threads in THREADS {
        one_is_slow_and_one_is_dead(&Fan::new(threads).await).await;
    }
}

async fn one_is_slow_and_one_is_dead(fan: &Fan) {
    let image = Image::oci(1, &[40 * MIB, 1000]);
    fan.staging.client().push("app", "v1", &image).await;
    let [healthy, slow, dead] = &fan.targets;
    // One takes a part of the layer and then nothing until the healthy one is done; the other never
    // answers an upload.
    let gate = Gate::closed();
    let layer = image.blobs[1]
        .digest
        .strip_prefix("sha256:")
        .expect("a layer with sha256");
    slow.rule(
        Rule::on(&[Kind::UploadPut])
            .path(layer)
            .times(1)
            .act(Act::HoldRequest(3 * MIB as u64, gate.clone())),
    );
    dead.always(Kind::UploadPost, Reply::status(500).closing());
    let there = async {
        healthy.seen(Kind::ManifestPut, 1).await;
        assert_eq!(
            (slow.count(Kind::ManifestPut), dead.count(Kind::ManifestPut)),
            (0, 0),
            "nobody else is done yet"
        );
        gate.open();
    };
    let (run, ()) = tokio::join!(fan.ferry.sync(&[]), there);
    let run = run.expect(1);
    assert_eq!((run.total("promoted"), run.total("failed")), (2, 1));
    fan.registries[0]
        .client()
        .assert_holds("app", "v1", &image)
        .await;
    fan.registries[1]
        .client()
        .assert_holds("app", "v1", &image)
        .await;
    assert!(
        !fan.registries[2]
            .client()
            .has_blob("app", &image.blobs[1].digest)
            .await
    );
    let (read, unique) = (fan.read(), size(&[&image]));
    assert!(
        read <= unique * 2 + MIB as u64,
        "{read} bytes were read: the healthy one once, the slow one at most once more"
    );
}

#[tokio::test]
async fn a_destination_that_does_not_even_answer_holds_up_nobody() {
    let fan = Fan::new(8).await;
    let image = Image::oci(1, &[2 * MIB]);
    fan.staging.client().push("app", "v1", &image).await;
    let [healthy, other, dead] = &fan.targets;
    let gate = Gate::closed();
    dead.always(Kind::Tags, Act::Hold(gate.clone()));
    let there = async {
        healthy.seen(Kind::ManifestPut, 1).await;
        other.seen(Kind::ManifestPut, 1).await;
        gate.open();
    };
    let (run, ()) = tokio::join!(fan.ferry.sync(&[]), there);
    assert_eq!(run.expect(0).total("promoted"), 3);
}
