use std::time::Duration;

use super::*;
use crate::job::{Drift, Existing};
use crate::watch::route::{Pattern, Template};

const WHOLE: Seen = Seen { everything: true, whole: true };
const BLIND: Seen = Seen { everything: false, whole: true };

fn route(name: &str, to: &[&str]) -> Route {
    let from = Pattern::parse("s/*").unwrap();
    let to = to.iter().map(|to| Template::parse(to, &from).unwrap()).collect();
    Route {
        name: name.into(),
        from,
        to,
        selection: Default::default(),
        existing: Existing::Adopt,
        drift: Drift::Keep,
        create: Default::default(),
    }
}

fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

fn tags(names: &[&str]) -> Vec<Tag> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

struct Bench {
    metrics: Metrics,
    registry: Registry,
    route: Arc<str>,
    place: Arc<str>,
    to: Arc<str>,
}

impl Bench {
    fn new() -> Bench {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let route = route("r", &["p/{1}"]);
        metrics.prepare(&route);
        Bench { metrics, registry, route: route.name, place: "p".into(), to: "p/{1}".into() }
    }

    fn spot(&self) -> Spot<'_> {
        Spot { route: &self.route, registry: &self.place, to: &self.to }
    }

    fn looked(&self, repository: &str, totals: Totals, seen: Seen, waiting: &[&str]) {
        self.metrics.looked(self.spot(), &name(repository), &totals, seen, &tags(waiting));
    }

    fn succeeded(&self) -> bool {
        let gauge = self.metrics.last_success.with_label_values(&["r", "p"]);
        let moved = gauge.get() != 0.0;
        gauge.set(0.0);
        assert!(!moved || self.metrics.is_equal("r"));
        moved
    }

    fn tags(&self, state: &str) -> i64 {
        self.metrics.tags.with_label_values(&["r", "p", state]).get()
    }

    fn oldest(&self) -> f64 {
        self.metrics.refresh();
        self.metrics.oldest_pending.with_label_values(&["r"]).get()
    }

    fn series_with(&self, label: &str) -> usize {
        let families = self.registry.gather();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        metrics.filter(|metric| metric.get_label().iter().any(|pair| pair.value() == label)).count()
    }
}

fn equal(count: u64) -> Totals {
    Totals { up_to_date: count, ..Totals::default() }
}

#[test]
fn success_is_that_of_all_repositories_of_the_destination() {
    let bench = Bench::new();
    bench.looked("a", equal(1), WHOLE, &[]);
    assert!(bench.succeeded());
    bench.looked("b", Totals { conflict: 1, ..equal(2) }, WHOLE, &[]);
    bench.looked("a", equal(1), WHOLE, &[]);
    assert!(!bench.succeeded(), "b has a conflict");
    assert_eq!((bench.tags("up_to_date"), bench.tags("conflict")), (3, 1));
    bench.looked("b", equal(3), WHOLE, &[]);
    assert!(bench.succeeded());
}

#[test]
fn two_destinations_in_one_registry_are_both_counted() {
    let bench = Bench::new();
    let both = route("r", &["p/{1}", "p/copy-{1}"]);
    bench.metrics.prepare(&both);
    let copy: Arc<str> = "p/copy-{1}".into();
    let looked = |totals: Totals, seen| {
        bench.metrics.looked(Spot { to: &copy, ..bench.spot() }, &name("a"), &totals, seen, &[]);
    };
    bench.metrics.retain_repositories(&"r".into(), &BTreeSet::from([name("a")]));
    bench.looked("a", equal(2), WHOLE, &[]);
    assert!(!bench.succeeded(), "nobody has looked at the copy");
    looked(Totals { conflict: 1, ..equal(1) }, WHOLE);
    bench.looked("a", equal(2), WHOLE, &[]);
    assert!(!bench.succeeded(), "the copy has a conflict");
    assert_eq!((bench.tags("up_to_date"), bench.tags("conflict")), (3, 1));
    bench.metrics.retain_routes(&Routes(vec![route("r", &["p/{1}"])]));
    assert_eq!((bench.tags("up_to_date"), bench.tags("conflict")), (2, 0));
    looked(equal(1), WHOLE);
    assert_eq!(bench.tags("up_to_date"), 2, "a look that still ran brings nothing back");
    assert!(bench.metrics.is_equal("r"));
}

#[test]
fn a_repository_that_could_not_be_seen_is_no_success() {
    let bench = Bench::new();
    bench.metrics.retain_repositories(&"r".into(), &BTreeSet::from([name("a"), name("b")]));
    bench.looked("a", equal(1), WHOLE, &[]);
    assert!(!bench.succeeded(), "nobody has looked at b");
    bench.looked("b", equal(1), WHOLE, &[]);
    assert!(bench.succeeded());
    bench.looked("b", Totals::default(), BLIND, &[]);
    bench.looked("a", equal(1), WHOLE, &[]);
    assert!(!bench.succeeded(), "b cannot be seen");
    assert_eq!(bench.tags("up_to_date"), 2, "what was known of b stays");
}

#[tokio::test(start_paused = true)]
async fn waiting_starts_when_the_difference_is_known_and_outlasts_an_outage() {
    let bench = Bench::new();
    let (repository, tag) = (name("a"), tags(&["v1"]).remove(0));
    bench.metrics.differs(bench.spot(), &repository, &tag);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!((bench.oldest(), bench.tags("pending")), (10.0, 1), "it is carried and has not arrived");
    bench.looked("a", Totals { failed: 1, ..Totals::default() }, WHOLE, &["v1"]);
    assert_eq!((bench.tags("pending"), bench.tags("failed")), (0, 1), "each tag has one state");
    bench.looked("a", Totals::default(), BLIND, &[]);
    bench.metrics.differs(bench.spot(), &repository, &tag);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(bench.oldest(), 20.0);
    bench.metrics.waits_no_more(bench.spot(), &repository, &tag);
    assert_eq!(bench.oldest(), 0.0);
    bench.looked("a", equal(1), WHOLE, &[]);
    assert_eq!((bench.tags("pending"), bench.tags("failed"), bench.metrics.lock().pending), (0, 0, 0));
}

#[test]
fn a_repository_that_is_no_more_leaves_no_numbers() {
    let bench = Bench::new();
    bench.looked("a", equal(1), WHOLE, &[]);
    bench.looked("b", Totals { failed: 2, ..equal(1) }, WHOLE, &["v1", "v2"]);
    bench.metrics.retain_repositories(&"r".into(), &BTreeSet::from([name("a")]));
    assert_eq!((bench.tags("up_to_date"), bench.tags("failed"), bench.metrics.lock().pending), (1, 0, 0));
    assert_eq!(bench.metrics.totals("r"), equal(1));
    assert!(bench.metrics.is_equal("r"));
}

#[test]
fn what_the_config_no_longer_has_leaves_no_series_and_gets_none() {
    let bench = Bench::new();
    let moved = route("r", &["q/{1}"]);
    bench.looked("a", Totals { failed: 1, ..equal(1) }, WHOLE, &["v1"]);
    bench.metrics.prepare(&moved);
    bench.metrics.retain_routes(&Routes(vec![moved]));
    assert_eq!((bench.series_with("p"), bench.metrics.lock().pending), (0, 0));
    assert!(bench.series_with("q") > 0);
    bench.metrics.retain_routes(&Routes::default());
    bench.looked("a", equal(1), WHOLE, &[]);
    bench.metrics.look_begins("r", Cause::Poll);
    bench.metrics.differs(bench.spot(), &name("a"), &tags(&["v1"])[0]);
    bench.metrics.retain_repositories(&"r".into(), &BTreeSet::from([name("a")]));
    bench.metrics.refresh();
    assert_eq!(bench.series_with("r"), 0, "a look that still ran brings nothing back");
}

#[test]
fn pending_tags_are_bounded_over_all_repositories() {
    let bench = Bench::new();
    let many: Vec<String> = (0..PENDING).map(|n| format!("v{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    bench.looked("a", Totals::default(), WHOLE, &many[1..]);
    bench.looked("b", Totals::default(), WHOLE, &many[..10]);
    assert_eq!(bench.metrics.lock().pending, PENDING);
    bench.looked("a", Totals::default(), WHOLE, &many[..1]);
    bench.looked("b", Totals::default(), WHOLE, &many[..10]);
    assert_eq!(bench.metrics.lock().pending, 11);
}
