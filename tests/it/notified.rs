//! Real registries that notify the daemon of pushes by other programs.

use serde_json::json;

use crate::support::*;

const SECRET: &str = "a-long-random-word";

/// A registry that notifies, a production registry, and a daemon that no poll wakes.
async fn notified(program: Program) -> (Registry, Registry, Ferry, Daemon) {
    let production = program.setup().start();
    let ferry = Ferry::new(&Config::new());
    let events = format!("http://127.0.0.1:{}/v1/events/staging", ferry.port());
    let staging = program.setup().notifying(&events, SECRET).start();
    let secret = ferry.file("secret", SECRET);
    let config = Config::pair(&staging.url(), &production.url()).receiver(
        "staging",
        json!({"kind": "distribution", "secret_file": secret}),
    );
    ferry.write_config(&config);
    let daemon = ferry.start_ready().await;
    (staging, production, ferry, daemon)
}

async fn pushes_arrive(program: Program) {
    let (staging, production, ferry, daemon) = notified(program).await;
    let elsewhere = Program::Distribution3.start();
    let image = Image::index(&[Image::oci(1, &[1000]), Image::oci(2, &[1000])]);
    elsewhere.client().push("app", "v1", &image).await;
    skopeo::copy(
        &format!("docker://{}/app:v1", elsewhere.address()),
        &format!("docker://{}/app:v1", staging.address()),
    )
    .await;
    eventually("the push has arrived", async || {
        production.client().digest("app", "v1").await
    })
    .await;
    production.client().assert_holds("app", "v1", &image).await;
    let single = Image::oci(3, &[1000]);
    staging.client().push("app", "v2", &single).await;
    eventually("the second push has arrived", async || {
        production.client().digest("app", "v2").await
    })
    .await;
    let counted = "blobferry_push_to_production_seconds_count";
    eventually("both are timed by the sender's clock", async || {
        (daemon.metric(counted, &[]).await == Some(2.0)).then_some(())
    })
    .await;
    let status = ferry.run(&["status", "--json"]).await.expect(0);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
    let event = &status["routes"][0]["events"][0];
    assert_eq!(
        (&event["repository"], &event["cause"], &event["actor"]),
        (&json!("app"), &json!("webhook"), &json!("receiver:staging")),
        "{status:#}"
    );
    let shown = ferry.run(&["status"]).await.expect(0).stdout;
    assert!(shown.contains("app: last event "), "{shown}");
}

#[tokio::test]
async fn pushes_to_distribution_2_arrive_by_its_notifications() {
    pushes_arrive(Program::Distribution2).await;
}

#[tokio::test]
async fn pushes_to_distribution_3_arrive_by_its_notifications() {
    pushes_arrive(Program::Distribution3).await;
}

/// An image from elsewhere, or a file, pushed by each client in its own way.
async fn pushes_of_each_client_arrive(program: Program) {
    let (staging, production, _ferry, _daemon) = notified(program).await;
    let elsewhere = Program::Distribution3.start();
    let image = Image::oci(1, &[1000]);
    elsewhere.client().push("app", "v1", &image).await;
    let folder = tempfile::tempdir().expect("a scratch directory");
    std::fs::write(folder.path().join("notes.txt"), "for oras").expect("a file");
    let from = format!("{}/app:v1", elsewhere.address());
    let to = |client: &str| format!("{}/app:{client}", staging.address());
    let plain = |registry: &Registry| format!("reg={},tls=disabled", registry.address());
    let (there, here) = (plain(&elsewhere), plain(&staging));
    let (crane, regctl, oras) = (to("crane"), to("regctl"), to("oras"));
    let hosts = ["--host", &*there, "--host", &*here];
    let copy = ["image", "copy", &*from, &*regctl];
    let run = async |client: &str, arguments: &[&str]| {
        peer::run(folder.path(), client, "benches/peers clients", arguments).await;
    };
    run("crane", &["copy", "--insecure", &from, &crane]).await;
    run("regctl", &[&hosts[..], &copy].concat()).await;
    let push = ["push", "--plain-http", &*oras, "notes.txt"];
    run("oras", &push).await;
    for tag in ["crane", "regctl", "oras"] {
        let pushed = staging.client().digest("app", tag).await;
        assert!(pushed.is_some(), "{tag} has pushed");
        eventually(&format!("the push of {tag} has arrived"), async || {
            (production.client().digest("app", tag).await == pushed).then_some(())
        })
        .await;
    }
}

/// Needs three clients: `benches/peers clients`, then
/// `cargo test --test it -- --ignored notified`.
#[tokio::test]
#[ignore = "needs crane, regctl and oras"]
async fn pushes_of_crane_regctl_and_oras_arrive_by_notifications() {
    pushes_of_each_client_arrive(Program::Distribution2).await;
    pushes_of_each_client_arrive(Program::Distribution3).await;
}
