use super::*;

#[tokio::test(start_paused = true)]
async fn throughput_is_that_of_the_last_ten_seconds() {
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let meter = metrics.meter("production", "sent");
    let other = metrics.meter("production", "read");
    meter.add(1000);
    tokio::time::advance(Duration::from_secs(5)).await;
    metrics.meter("production", "sent").add(500);
    other.add(7);
    metrics.refresh();
    assert_eq!(
        metrics
            .throughput
            .with_label_values(&["production", "sent"])
            .get(),
        150.0
    );
    tokio::time::advance(Duration::from_secs(7)).await;
    metrics.refresh();
    assert_eq!(
        metrics
            .throughput
            .with_label_values(&["production", "sent"])
            .get(),
        50.0
    );
}

#[test]
fn what_the_config_no_longer_has_leaves_no_series_and_gets_none() {
    let registry = Registry::new();
    let metrics = Metrics::new(&registry).unwrap();
    let count = |label: &str| {
        let families = registry.gather();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        metrics
            .filter(|metric| metric.get_label().iter().any(|pair| pair.value() == label))
            .count()
    };
    metrics.prepare_route("r", ["p", "q"].into_iter());
    metrics.prepare_registry("p");
    let job = || {
        metrics.counted("r", "p", Outcome::Promoted);
        metrics.promoted(
            "r",
            "p",
            "app",
            Duration::from_secs(1),
            Some(Duration::from_secs(2)),
        );
        metrics.blob("r", "p", BlobOutcome::Mounted, 1);
        metrics.mismatched("p");
        metrics.retried("p", Class::Auth);
        metrics.stalled("p", "read");
        metrics.rate_limited("p", Duration::from_secs(1));
        metrics.meter("p", "sent").add(1);
        metrics.refresh();
    };
    job();
    metrics.retain(&HashSet::from([("r", "q")]), &HashSet::from(["q"]));
    job();
    assert_eq!((count("p"), count("app")), (0, 0));
    assert!(count("q") > 0 && count("r") > 0);
    metrics.retain(&HashSet::new(), &HashSet::new());
    job();
    assert_eq!(count("r"), 0);
}

#[test]
fn repositories_past_the_cap_share_a_series() {
    let metrics = Metrics::new(&Registry::new()).unwrap();
    for n in 0..REPOSITORIES + 5 {
        metrics.prepare_repository("r", "d", &format!("repo-{n}"));
    }
    assert_eq!(metrics.bounded("repo-1"), "repo-1");
    assert_eq!(metrics.bounded("one-more"), "other");
}
