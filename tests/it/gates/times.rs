//! Time gates under clocks that are wrong or that jump.

use jiff::{SignedDuration, tz};
use serde_json::json;

use super::verdicts;
use crate::support::scripted::Answer;
use crate::support::*;

/// The time in an hour, as answers say it.
fn an_hour_ahead() -> String {
    let time = blobferry::clock::now() + SignedDuration::from_hours(1);
    let time = time.to_zoned(tz::TimeZone::UTC);
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// Production's clock is off ours.
#[tokio::test]
async fn a_clock_that_is_off_the_destinations_date_makes_the_time_gates_wait() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let gates = json!({"min_age": "1s", "window": {"open": "mon-sun"}});
    let config = Config::new()
        .registry("staging", &staging.url())
        .registry("production", &production.url())
        .route("app", json!({"gates": gates}));
    staging.push("app", "v1", &Image::oci(1, &[1000]));
    production.on(|_| Answer::Header("date", an_hour_ahead()));
    let ferry = Ferry::new(&config);
    let run = ferry.sync(&["--tag", "v1"]).await.expect(4);
    let expected = json!({"min_age": "wait", "window": "wait"});
    assert_eq!(verdicts(&run.job("v1")), expected);
    let said = run.job("v1")["reasons"].to_string();
    assert!(said.contains("60 s off the destination's"), "{said}");
    assert_eq!(production.tagged("app", "v1"), None);
}
