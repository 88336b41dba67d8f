use std::time::Duration;

use super::*;
use crate::job::{Drift, Existing};
use crate::route::{Pattern, Template};

/// How a look ended.
#[derive(Clone, Copy)]
enum Kind {
    Whole,
    StagingAlone,
    Blind,
}

use Kind::{Blind as BLIND, StagingAlone as STAGING_ALONE, Whole as WHOLE};

fn seen<'a>(kind: Kind, totals: &'a Totals, pending: &'a [Tag]) -> Coverage<'a> {
    let known = TagCounts {
        totals,
        tags: &[],
        pending,
    };
    match kind {
        WHOLE => Coverage::Everything(known),
        STAGING_ALONE => Coverage::StagingAlone(known),
        BLIND => Coverage::Nothing,
    }
}

fn route(name: &str, to: &[&str]) -> Route {
    let from = Pattern::parse("s/*").unwrap();
    let to = to
        .iter()
        .map(|to| Template::parse(to, &from).unwrap())
        .collect();
    Route {
        name: name.into(),
        from,
        to,
        selection: Default::default(),
        existing: Existing::Adopt,
        drift: Drift::Keep,
        create: Default::default(),
        backup: None,
        mode: Default::default(),
        platform: None,
        gates: Default::default(),
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
        Bench {
            metrics,
            registry,
            route: route.name,
            place: "p".into(),
            to: "p/{1}".into(),
        }
    }

    fn labels(&self) -> DestinationLabels<'_> {
        DestinationLabels {
            route: &self.route,
            registry: &self.place,
            to: &self.to,
        }
    }

    fn looked(&self, repository: &str, totals: Totals, kind: Kind, waiting: &[&str]) {
        self.metrics.looked(
            self.labels(),
            &name(repository),
            seen(kind, &totals, &tags(waiting)),
        );
    }

    fn discovered(&self, repositories: &[&str], refused: bool) {
        let found = repositories
            .iter()
            .map(|repository| name(repository))
            .collect();
        self.metrics
            .retain_repositories(&self.route, &found, refused);
    }

    fn up(&self) -> i64 {
        self.metrics.route_up.with_label_values(&["r", "p"]).get()
    }

    fn last_look(&self) -> f64 {
        self.metrics.last_look.with_label_values(&["r", "p"]).get()
    }

    fn succeeded(&self) -> bool {
        let gauge = self.metrics.last_success.with_label_values(&["r", "p"]);
        let moved = gauge.get() != 0.0;
        gauge.set(0.0);
        assert!(!moved || self.metrics.has_success("r"));
        moved
    }

    fn tags(&self, state: &str) -> i64 {
        self.metrics
            .tags
            .with_label_values(&["r", "p", state])
            .get()
    }

    fn oldest(&self) -> f64 {
        self.metrics.refresh();
        self.metrics.oldest_pending.with_label_values(&["r"]).get()
    }

    fn series_with(&self, label: &str) -> usize {
        let families = self.registry.gather();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        metrics
            .filter(|metric| metric.get_label().iter().any(|pair| pair.value() == label))
            .count()
    }
}

fn equal(count: u64) -> Totals {
    Totals {
        up_to_date: count,
        ..Totals::default()
    }
}

#[test]
fn success_is_that_of_all_repositories_of_the_destination() {
    let bench = Bench::new();
    bench.looked("a", equal(1), WHOLE, &[]);
    assert!(bench.succeeded());
    bench.looked(
        "b",
        Totals {
            conflict: 1,
            ..equal(2)
        },
        WHOLE,
        &[],
    );
    bench.looked("a", equal(1), WHOLE, &[]);
    assert!(!bench.succeeded(), "b has a conflict");
    assert_eq!((bench.tags("up_to_date"), bench.tags("conflict")), (3, 1));
    bench.looked("b", equal(3), WHOLE, &[]);
    assert!(bench.succeeded());
}

#[test]
fn a_tag_that_is_looked_at_alone_changes_its_state_and_no_other() {
    let bench = Bench::new();
    let seen = |tag: &str, outcome: Outcome, is_known: bool| SeenTag {
        tag: tags(&[tag]).remove(0),
        outcome,
        is_known,
    };
    let alone = |tag: &str, outcome: Outcome, is_known: bool| {
        let coverage = [seen(tag, outcome, is_known)];
        let repository = name("a");
        let coverage = Coverage::Tags(&coverage);
        bench.metrics.looked(bench.labels(), &repository, coverage);
        let states = ["up_to_date", "conflict", "drift", "failed"];
        states.map(|state| bench.tags(state))
    };
    let totals = Totals {
        conflict: 1,
        promoted: 2,
        ..Totals::default()
    };
    let counts = TagCounts {
        totals: &totals,
        tags: &[seen("v3", Outcome::Conflict, true)],
        pending: &[],
    };
    let whole = Coverage::Everything(counts);
    bench.metrics.looked(bench.labels(), &name("a"), whole);
    assert_eq!(alone("v1", Outcome::Drift, true), [1, 1, 1, 0]);
    assert_eq!(alone("v1", Outcome::Drift, true), [1, 1, 1, 0]);
    assert_eq!(alone("v2", Outcome::UpToDate, true), [1, 1, 1, 0]);
    assert_eq!(alone("v4", Outcome::Failed, false), [1, 1, 1, 1]);
    assert_eq!(alone("v4", Outcome::Promoted, false), [2, 1, 1, 0]);
    assert_eq!(alone("v4", Outcome::UpToDate, true), [2, 1, 1, 0]);
    assert_eq!(alone("v3", Outcome::Gone, true), [2, 0, 1, 0]);
    assert_eq!(alone("v1", Outcome::Interrupted, true), [2, 0, 1, 0]);
    assert!(!bench.metrics.has_success("r"));
    assert_eq!(alone("v1", Outcome::UpToDate, true), [3, 0, 0, 0]);
    assert!(bench.metrics.has_success("r"));
    bench.discovered(&[], false);
    assert_eq!(bench.tags("up_to_date"), 0);
}

#[test]
fn two_destinations_in_one_registry_are_both_counted() {
    let bench = Bench::new();
    let both = route("r", &["p/{1}", "p/copy-{1}"]);
    bench.metrics.prepare(&both);
    let copy: Arc<str> = "p/copy-{1}".into();
    let looked = |totals: Totals, kind| {
        bench.metrics.looked(
            DestinationLabels {
                to: &copy,
                ..bench.labels()
            },
            &name("a"),
            seen(kind, &totals, &[]),
        );
    };
    bench.discovered(&["a"], false);
    bench.looked("a", equal(2), WHOLE, &[]);
    assert!(!bench.succeeded(), "nobody has looked at the copy");
    looked(
        Totals {
            conflict: 1,
            ..equal(1)
        },
        WHOLE,
    );
    bench.looked("a", equal(2), WHOLE, &[]);
    assert!(!bench.succeeded(), "the copy has a conflict");
    assert_eq!((bench.tags("up_to_date"), bench.tags("conflict")), (3, 1));
    bench
        .metrics
        .retain_routes(&Routes::new(vec![route("r", &["p/{1}"])]));
    assert_eq!((bench.tags("up_to_date"), bench.tags("conflict")), (2, 0));
    looked(equal(1), WHOLE);
    assert_eq!(
        bench.tags("up_to_date"),
        2,
        "a look that still ran brings nothing back"
    );
    assert!(bench.metrics.has_success("r"));
}

#[test]
fn a_repository_that_could_not_be_seen_is_no_success() {
    let bench = Bench::new();
    bench.discovered(&["a", "b"], false);
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
    let repository = name("a");
    let tag = tags(&["v1"]).remove(0);
    bench.metrics.differs(bench.labels(), &repository, &tag);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(
        (bench.oldest(), bench.tags("pending")),
        (10.0, 1),
        "it is carried and has not arrived"
    );
    bench.looked(
        "a",
        Totals {
            failed: 1,
            ..Totals::default()
        },
        WHOLE,
        &["v1"],
    );
    assert_eq!(
        (bench.tags("pending"), bench.tags("failed")),
        (0, 1),
        "each tag has one state"
    );
    bench.looked("a", Totals::default(), BLIND, &[]);
    bench.metrics.differs(bench.labels(), &repository, &tag);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(bench.oldest(), 20.0);
    bench
        .metrics
        .waits_no_more(bench.labels(), &repository, &tag);
    assert_eq!(bench.oldest(), 0.0);
    bench.looked("a", equal(1), WHOLE, &[]);
    assert_eq!(
        (
            bench.tags("pending"),
            bench.tags("failed"),
            bench.metrics.lock().pending
        ),
        (0, 0, 0)
    );
}

#[test]
fn a_repository_that_is_no_more_leaves_no_numbers() {
    let bench = Bench::new();
    bench.looked("a", equal(1), WHOLE, &[]);
    bench.looked(
        "b",
        Totals {
            failed: 2,
            ..equal(1)
        },
        WHOLE,
        &["v1", "v2"],
    );
    bench.discovered(&["a"], false);
    assert_eq!(
        (
            bench.tags("up_to_date"),
            bench.tags("failed"),
            bench.metrics.lock().pending
        ),
        (1, 0, 0)
    );
    assert_eq!(bench.metrics.totals("r"), equal(1));
    assert!(bench.metrics.has_success("r"));
}

#[test]
fn what_the_config_no_longer_has_leaves_no_series_and_gets_none() {
    let bench = Bench::new();
    let moved = route("r", &["q/{1}"]);
    bench.looked(
        "a",
        Totals {
            failed: 1,
            ..equal(1)
        },
        WHOLE,
        &["v1"],
    );
    bench.metrics.prepare(&moved);
    bench.metrics.retain_routes(&Routes::new(vec![moved]));
    assert_eq!(
        (bench.series_with("p"), bench.metrics.lock().pending),
        (0, 0)
    );
    assert!(bench.series_with("q") > 0);
    bench.metrics.retain_routes(&Routes::default());
    bench.looked("a", equal(1), WHOLE, &[]);
    bench.metrics.look_ended("r", Cause::Poll, &[]);
    bench
        .metrics
        .differs(bench.labels(), &name("a"), &tags(&["v1"])[0]);
    bench.discovered(&["a"], false);
    bench.metrics.refresh();
    assert_eq!(
        bench.series_with("r"),
        0,
        "a look that still ran brings nothing back"
    );
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

#[test]
fn a_route_is_up_while_its_newest_looks_are_complete() {
    let bench = Bench::new();
    assert_eq!(bench.up(), 0, "there was no look");
    bench.discovered(&["a", "b"], false);
    assert_eq!(bench.up(), 0, "there was no look");
    bench.looked("a", equal(1), WHOLE, &[]);
    assert_eq!(bench.up(), 1);
    bench.looked("b", Totals::default(), BLIND, &[]);
    bench.looked("a", equal(1), WHOLE, &[]);
    assert_eq!(bench.up(), 0, "b cannot be looked at");
    bench.discovered(&["a"], false);
    assert_eq!(bench.up(), 1, "b is no more");
    bench.discovered(&["a"], true);
    assert_eq!(bench.up(), 0, "a repository was refused");
    bench.discovered(&["a"], false);
    bench.metrics.undiscovered(&bench.route);
    bench.looked("a", equal(1), WHOLE, &[]);
    assert_eq!(
        (bench.up(), bench.succeeded()),
        (0, false),
        "new repositories cannot be found"
    );
    bench.discovered(&["a"], false);
    assert_eq!(bench.up(), 1);
}

#[test]
fn a_wildcard_without_a_match_is_looked_at_and_well() {
    let bench = Bench::new();
    bench.discovered(&[], false);
    assert!(bench.last_look() > 0.0);
    assert_eq!((bench.up(), bench.succeeded()), (1, true));
    bench.metrics.look_ended("r", Cause::Poll, &[]);
    assert_eq!(
        bench
            .metrics
            .looks
            .with_label_values(&["r", "poll", "done"])
            .get(),
        1
    );
}

#[test]
fn looks_are_counted_by_how_they_ended() {
    let bench = Bench::new();
    let trouble = |class: TroubleClass| {
        [Trouble {
            class,
            text: String::new(),
        }]
    };
    bench
        .metrics
        .look_ended("r", Cause::Poll, &trouble(TroubleClass::Retryable));
    bench
        .metrics
        .look_ended("r", Cause::Poll, &trouble(TroubleClass::Cancelled));
    bench.metrics.look_ended("r", Cause::Ping, &[]);
    let count = |cause: &str, result: &str| {
        bench
            .metrics
            .looks
            .with_label_values(&["r", cause, result])
            .get()
    };
    assert_eq!(
        (
            count("poll", "failed"),
            count("poll", "done"),
            count("ping", "done")
        ),
        (1, 0, 1)
    );
}

/// With production down and a new version pending, the metrics reported 3 up to date, 0 pending.
#[tokio::test(start_paused = true)]
async fn what_staging_gained_in_an_outage_of_production_is_pending_from_then_on() {
    let bench = Bench::new();
    bench.looked("a", equal(3), WHOLE, &[]);
    assert!(bench.succeeded());
    bench.looked("a", equal(3), STAGING_ALONE, &["v4"]);
    tokio::time::advance(Duration::from_secs(60)).await;
    bench.looked("a", Totals::default(), BLIND, &[]);
    bench.looked("a", equal(3), STAGING_ALONE, &["v4"]);
    assert_eq!(
        (bench.tags("up_to_date"), bench.tags("pending"), bench.up()),
        (3, 1, 0)
    );
    assert_eq!(
        bench.oldest(),
        60.0,
        "an outage of staging in between changes nothing"
    );
    let standing = bench.metrics.standing("r");
    assert_eq!(
        (standing.up, standing.pending, standing.oldest_pending),
        (false, 1, Some(Duration::from_secs(60)))
    );
    assert!(!bench.succeeded());
    bench
        .metrics
        .arrived(bench.labels(), &name("a"), &tags(&["v4"])[0]);
    assert_eq!(
        bench
            .metrics
            .seen_to_production
            .with_label_values(&["r"])
            .get_sample_sum(),
        60.0
    );
    bench.looked(
        "a",
        Totals {
            promoted: 1,
            ..equal(3)
        },
        WHOLE,
        &[],
    );
    assert_eq!(
        (
            bench.tags("up_to_date"),
            bench.tags("pending"),
            bench.up(),
            bench.oldest()
        ),
        (4, 0, 1, 0.0)
    );
}

#[test]
fn what_the_rules_leave_alone_is_no_lack_of_success() {
    let bench = Bench::new();
    bench.looked(
        "a",
        Totals {
            existing: 2,
            ..equal(1)
        },
        WHOLE,
        &[],
    );
    assert!(bench.succeeded());
    bench.looked(
        "a",
        Totals {
            drift: 1,
            ..equal(1)
        },
        WHOLE,
        &[],
    );
    assert!(!bench.succeeded());
}
