//! Memory does not grow with the number of tags or the size of layers.

use serde_json::json;

use crate::support::*;

const MIB: u64 = 1024 * 1024;

#[tokio::test]
async fn a_look_at_ten_thousand_tags_stays_under_64_mib() {
    let (staging, production) = (Registry::distribution3(), Registry::distribution3());
    let image = Image::oci(1, &[100]);
    for registry in [&staging, &production] {
        registry.client().push("app", "t0", &image).await;
        registry.copy_tag("app", "t0", (1..10_000).map(|number| format!("t{number}")));
    }
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url())).released();
    let run = ferry
        .run_within(std::time::Duration::from_secs(300), &["sync", "--json"])
        .await
        .expect(0);
    assert_eq!(run.total("up_to_date"), 10_000);
    assert!(
        run.peak_memory < 64 * MIB,
        "{} MiB were resident",
        run.peak_memory / MIB
    );
}

#[tokio::test]
async fn a_layer_of_512_mib_passes_through_32_mib() {
    let (staging, production) = (Registry::distribution3(), Registry::distribution3());
    let image = Image::oci(1, &[512 * MIB as usize]);
    staging.client().push("app", "v1", &image).await;
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url())).released();
    let daemon = ferry.start_ready().await;
    assert_eq!(daemon.ping(json!({"wait": true})).await.0, 200);
    assert!(
        production
            .client()
            .has_blob("app", &image.blobs[1].digest)
            .await
    );
    assert_eq!(
        production.client().digest("app", "v1").await.as_deref(),
        Some(image.digest())
    );
    assert!(
        daemon.peak_memory() < 32 * MIB,
        "{} MiB were resident",
        daemon.peak_memory() / MIB
    );
}
