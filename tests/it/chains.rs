//! Chains of routes: a promotion into a repository that another route reads is looked at there.

use serde_json::json;

use crate::support::*;

fn config(dev: &str, staging: &str, production: &str) -> Config {
    Config::new()
        .registry("dev", dev)
        .registry("staging", staging)
        .registry("production", production)
        .raw_route(
            json!({"name": "to-staging", "from": "dev/app", "to": "staging/app:rc-{tag}",
            "tags": {"include": ["v*"]}}),
        )
        .raw_route(
            json!({"name": "to-production", "from": "staging/app", "to": "production/app",
            "tags": {"include": ["rc-*"]}}),
        )
}

#[tokio::test]
async fn what_one_route_promotes_the_next_one_looks_at() {
    let (dev, staging) = (Scripted::start(), Scripted::start());
    let production = Scripted::start();
    let ferry = Ferry::new(&config(&dev.url(), &staging.url(), &production.url()));
    let daemon = ferry.start_ready().await;
    let image = Image::oci(1, &[1000]);
    dev.push("app", "v1", &image);
    staging.push("app", "rc-other", &Image::oci(2, &[1000]));
    let (status, report) = daemon
        .ping(json!({"wait": true, "route": "to-staging"}))
        .await;
    assert_eq!(status, 200, "{report:#}");
    eventually("production has it", async || {
        production.tagged("app", "rc-v1")
    })
    .await;
    let labels = [("cause", "chain"), ("route", "to-production")];
    eventually("the look of the chain has ended", async || {
        let looks = daemon.metric("blobferry_looks_total", &labels).await;
        (looks == Some(1.0)).then_some(())
    })
    .await;
    let tags = production.tags("app");
    assert_eq!(tags, ["rc-v1"], "the tag that was promoted alone");
    assert_eq!(
        production.tagged("app", "rc-v1").as_deref(),
        Some(image.digest())
    );
    let history = ferry.run(&["history", "--json"]).await;
    assert!(history.stdout.contains("\"chain\""), "{}", history.stdout);
}

#[tokio::test]
async fn a_chain_of_wildcards_that_comes_back_is_refused() {
    let registry = Scripted::start();
    registry.push("dev-dev-x", "v1", &Image::oci(1, &[1000]));
    registry.push("dev-y", "v1", &Image::oci(2, &[1000]));
    // By its pattern alone this route is no circle; `dev-dev-x` would go round.
    let config = Config::new()
        .registry("one", &registry.url())
        .raw_route(json!({"name": "dev", "from": "one/dev-*", "to": "one/{1}",
            "tags": {"include": ["*"]}}));
    let ferry = Ferry::new(&config);
    let run = ferry.sync(&[]).await;
    assert!(
        run.stdout.contains("which route dev reads again"),
        "{}{}",
        run.stdout,
        run.stderr
    );
    assert!(registry.tags("dev-x").is_empty(), "left out");
    assert_eq!(registry.tags("y"), ["v1"]);
}
