//! Many routes with wildcards over one catalog.

use serde_json::json;

use crate::support::scripted::{Answer, Settings};
use crate::support::*;

const ROUTES: usize = 60;
const PAGE: usize = 100;
/// Readings take so many requests.
const PAGES: usize = 3;

/// Sixty routes `staging/team-N/**`, five repositories for each of them, in three pages of a
/// catalog.
fn teams() -> (Scripted, Scripted, Config) {
    let staging = Scripted::with(Settings {
        page: PAGE,
        ..Settings::default()
    });
    let production = Scripted::start();
    let image = Image::oci(1, &[1000]);
    let mut config = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url());
    for team in 0..ROUTES {
        for repository in 0..PAGES * PAGE / ROUTES {
            staging.push(&format!("team-{team}/app-{repository}"), "v1", &image);
        }
        config = config.raw_route(
            json!({"name": format!("team-{team}"), "from": format!("staging/team-{team}/**"),
            "to": format!("production/team-{team}/{{1}}"), "tags": {"include": ["*"]}}),
        );
    }
    (staging, production, config)
}

#[tokio::test]
async fn a_catalog_is_read_once_for_all_routes_and_each_name_goes_to_its_own() {
    let (staging, production, config) = teams();
    let ferry = Ferry::new(&config);
    let daemon = ferry.start_ready().await;
    assert_eq!(
        staging.count(Kind::Catalog),
        PAGES,
        "one reading for sixty routes"
    );
    assert_eq!(production.tags("team-59/app-4"), ["v1"]);
    assert_eq!(
        daemon.metric("blobferry_promotions_total", &[]).await,
        Some((PAGES * PAGE) as f64)
    );

    staging.push("team-9/tools/new", "v2", &Image::oci(2, &[10]));
    staging.push("elsewhere/app", "v1", &Image::oci(3, &[10]));
    let (status, report) = daemon.ping(json!({"wait": true})).await;
    assert_eq!(
        (status, &report["totals"]["promoted"]),
        (200, &json!(1)),
        "{report:#}"
    );
    assert_eq!(
        staging.count(Kind::Catalog),
        PAGES * 2 + 1,
        "one more reading, which has a page more"
    );
    assert_eq!(production.tags("team-9/tools/new"), ["v2"]);
    assert!(
        production.tags("elsewhere/app").is_empty(),
        "no route reads it"
    );
}

#[tokio::test]
async fn polls_of_sixty_routes_share_one_reading_a_round() {
    let (staging, _production, config) = teams();
    let ferry = Ferry::new(&config.daemon("poll", json!("1s")));
    let daemon = ferry.start_ready().await;
    staging.seen(Kind::Catalog, 5 * PAGES).await;
    let readings = staging.count(Kind::Catalog).div_ceil(PAGES);
    let rounds = daemon
        .metric("blobferry_events_total", &[("result", "queued")])
        .await
        .unwrap();
    assert!(
        (4.0..=rounds + 1.0).contains(&(readings as f64)),
        "{readings} readings for {rounds} rounds"
    );
    let looks = daemon.metric("blobferry_looks_total", &[]).await.unwrap();
    assert!(
        looks >= (PAGES * PAGE) as f64,
        "{looks} looks: every route has its own"
    );
}

#[tokio::test]
async fn of_two_sources_that_meet_the_second_waits_until_the_first_is_gone() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let (first, second) = (Image::oci(1, &[10]), Image::oci(2, &[10]));
    // The second one is there first.
    staging.push("b/app", "v2", &second);
    let route = |name: &str| json!({"name": name, "from": format!("staging/{name}/*"), "to": "production/{1}", "tags": {"include": ["*"]}});
    let pair = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url());
    let ferry = Ferry::new(&pair.raw_route(route("a")).raw_route(route("b")));
    let daemon = ferry.start_ready().await;
    assert_eq!(
        production.tagged("app", "v2").as_deref(),
        Some(second.digest())
    );

    staging.push("a/app", "v1", &first);
    staging.push("b/app", "v3", &second);
    let (status, report) = daemon.ping(json!({"wait": true})).await;
    assert_eq!(status, 409, "{report:#}");
    let text = report["trouble"][0].as_str().unwrap_or_default();
    assert!(
        text.contains("app and a/app (route a) would both be promoted to production/app"),
        "{report:#}"
    );
    assert_eq!(production.tags("app"), ["v1", "v2"]);

    staging.on(|asked| match asked.kind {
        Kind::Catalog => Answer::Reply(
            Reply::status(200).body("application/json", r#"{"repositories":["b/app"]}"#),
        ),
        _ => Answer::Pass,
    });
    assert_eq!(daemon.ping(json!({"wait": true})).await.0, 200);
    assert_eq!(production.tags("app"), ["v1", "v2", "v3"]);
}
