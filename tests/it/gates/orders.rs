//! Gates of what is ordered by `copy` and `promote`.

use serde_json::{Value, json};

use super::{asks_for_time_before, verdicts};
use crate::support::daemon::end_of;
use crate::support::*;

const CLOSED: &str = "2000-01-01/2999-12-31";

/// The daemon carries a copy out that waits after a refusal; meanwhile its config is read again.
#[tokio::test]
async fn a_copy_that_waits_for_its_write_goes_by_the_rules_in_force() {
    let refuses = json!({"command": {"run": ["/bin/sh", "-c", "exit 1"]}});
    let window = json!({"window": {"closed": CLOSED}});
    for (repository, gates, code) in [
        ("app", refuses, 4),
        ("app", window, 4),
        ("other", json!({}), 130),
    ] {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let config = |repository: &str, gates: Value| {
            let pair = Config::new()
                .registry("staging", &staging.url())
                .registry("production", &production.url());
            let route = json!({"tags": {"include": ["none"]}, "gates": gates});
            pair.route(repository, route)
        };
        let ferry = Ferry::new(&config("app", json!({})));
        asks_for_time_before(&production, "v1");
        staging.push("app", "v1", &Image::oci(1, &[100]));
        let daemon = ferry.start_ready().await;
        let [from, to] = [&staging, &production].map(|one| format!("{}/app:v1", one.host()));
        let mut copy = ferry.spawn_command(&["copy", &from, &to]);
        production.seen(Kind::ManifestPut, 1).await;
        ferry.write_config(&config(repository, gates.clone()));
        daemon.signal("HUP").await;
        daemon.says("the config was read again").await;
        assert_eq!(end_of(&mut copy).await, code, "{repository} {gates}");
        assert_eq!(production.tagged("app", "v1"), None, "{repository} {gates}");
        assert_eq!(
            production.count(Kind::ManifestPut),
            1,
            "{repository} {gates}"
        );
    }
}

/// Two routes may write to one repository. The route that leads there from the source guards what
/// is ordered; where none does, all of them guard it.
#[tokio::test]
async fn what_is_ordered_obeys_the_route_from_its_source_or_all_that_lead_there() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let route = |name: &str, from: &str, to: &str, gates: Value| json!({"name": name, "from": from, "to": to, "tags": {"include": ["*"]}, "gates": gates});
    let spdx = json!({"referrers": ["application/spdx+json"]});
    let shut = json!({"window": {"closed": CLOSED}});
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url())
        .raw_route(route(
            "any",
            "staging/dev/**",
            "production/x/{1}",
            json!({}),
        ))
        .raw_route(route("rel", "staging/rel/app", "production/x/app", spdx))
        .raw_route(route("old", "staging/old/*", "production/x/{1}", shut));
    let ferry = Ferry::new(&config);
    for (repository, code, expected) in [
        ("rel/app", 4, json!({"referrers": "wait"})),
        ("old/app", 4, json!({"window": "wait"})),
        (
            "else/app",
            4,
            json!({"referrers": "wait", "window": "wait"}),
        ),
        ("dev/app", 0, json!({})),
    ] {
        staging.push(repository, "v1", &Image::oci(1, &[100]));
        let from = format!("{}/{repository}:v1", staging.host());
        let to = format!("{}/x/app:v1", production.host());
        for act in ["copy", "promote"] {
            let run = ferry.run(&[act, &from, &to, "--json"]).await.expect(code);
            assert_eq!(verdicts(&run.job("v1")), expected, "{act} {repository}");
        }
        let is_named = production.tagged("x/app", "v1").is_some();
        assert_eq!(is_named, code == 0, "{repository}");
    }
}
