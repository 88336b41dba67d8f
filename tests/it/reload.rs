//! A config that is refused while the daemon runs.

use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn a_refused_config_changes_nothing_of_what_runs() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
    let daemon = ferry.start_ready().await;

    // The registries are built in the order of their names: the third one is no good, when the
    // others have been built.
    let broken = ferry.file(
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let config = Config::new()
        .registry_with(
            "staging",
            &staging.url(),
            json!({"requests_per_second": 0.01}),
        )
        .registry_with(
            "production",
            &production.url(),
            json!({"requests_per_second": 0.01}),
        )
        .registry("another", &staging.url())
        .registry_with(
            "zoo",
            "https://registry.example",
            json!({"ca_file": broken}),
        )
        .route("app", json!({}));
    ferry.write_config(&config);
    daemon.signal("HUP").await;
    eventually("the config is refused", async || {
        (daemon
            .metric("blobferry_config_last_reload_successful", &[])
            .await
            == Some(0.0))
        .then_some(())
    })
    .await;
    daemon.says("zoo").await;
    for registry in ["another", "zoo"] {
        for metric in [
            "blobferry_transfer_bytes_total",
            "blobferry_http_requests_total",
            "blobferry_registry_up",
        ] {
            assert_eq!(
                daemon.metric(metric, &[("registry", registry)]).await,
                None,
                "{metric} of {registry}"
            );
        }
    }

    // At one request in a hundred seconds this would take minutes.
    for number in 0..3 {
        staging.push("app", &format!("v{number}"), &Image::oci(number, &[1000]));
    }
    let (status, report) = daemon.ping(json!({"wait": true})).await;
    assert_eq!(
        (status, &report["totals"]["promoted"]),
        (200, &json!(3)),
        "{report:#}"
    );
}
