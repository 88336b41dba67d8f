//! A gate that does not answer holds up its own tags alone.

use std::sync::Arc;

use serde_json::json;

use crate::support::*;

/// A service that takes connections and answers none until it is opened; then each with a pass.
async fn silent(opened: Arc<tokio::sync::Semaphore>) -> String {
    let answers = move || {
        let opened = opened.clone();
        async move {
            let _turn = opened.acquire().await;
            json!({"verdict": "pass"}).to_string()
        }
    };
    format!("{}/", serve(axum::Router::new().fallback(answers)).await)
}

/// Thirty repositories wait for a gate that does not answer: more than looks run at once. A push of
/// another route between the same registries is promoted meanwhile; what waits moves when its
/// answers come, although nothing polls.
#[tokio::test]
async fn a_gate_that_hangs_holds_up_no_other_route() {
    const WAITING: usize = 30;
    let opened = Arc::new(tokio::sync::Semaphore::new(0));
    let url = silent(opened.clone()).await;
    let (staging, production) = (Scripted::start(), Scripted::start());
    let config = Config::pair(&staging.url(), &production.url()).raw_route(json!({
        "name": "gated",
        "from": "staging/gated/*",
        "to": "production/gated/{1}",
        "tags": {"include": ["*"]},
        "gates": {"http": {"url": url, "timeout": "5m"}},
    }));
    let image = Image::oci(1, &[100]);
    let repositories: Vec<String> = (0..WAITING)
        .map(|number| format!("gated/r{number}"))
        .collect();
    for repository in &repositories {
        staging.push(repository, "v1", &image);
    }
    let ferry = Ferry::new(&config);
    let daemon = ferry.start().await;
    let waiting = [("route", "gated"), ("state", "waiting")];
    eventually("all looks have ended", async || {
        let count = daemon.metric("blobferry_tags", &waiting).await;
        count.filter(|count| *count == WAITING as f64)
    })
    .await;
    staging.push("app", "v1", &image);
    daemon
        .ping(json!({"repository": "app", "wait": true}))
        .await;
    assert_eq!(
        production.tagged("app", "v1").as_deref(),
        Some(image.digest())
    );
    for repository in &repositories {
        assert_eq!(production.tagged(repository, "v1"), None, "{repository}");
    }
    opened.close();
    eventually("the tags move by themselves", async || {
        let is_there = |repository: &String| production.tagged(repository, "v1").is_some();
        repositories.iter().all(is_there).then_some(())
    })
    .await;
}
