//! The Grafana dashboard in `config/grafana` asks for metrics and labels that exist, in queries
//! that Prometheus reads.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::docs::{read, rows};
use crate::support::prometheus::assert_read;

/// What Prometheus adds to each series.
const TARGET_LABELS: [&str; 2] = ["instance", "job"];

fn dashboard() -> Value {
    serde_json::from_str(&read("config/grafana/blobferry.json")).expect("a dashboard is JSON")
}

/// The panels that show something, and not the rows between them.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let panels = dashboard["panels"].as_array().expect("panels");
    panels.iter().filter(|panel| panel["type"] != "row")
}

/// Each query with its variables filled in as Grafana does for "All".
fn queries(dashboard: &Value) -> Vec<String> {
    let of_panels = panels(dashboard)
        .flat_map(|panel| panel["targets"].as_array().expect("a panel has queries"));
    let of_annotations = dashboard["annotations"]["list"]
        .as_array()
        .into_iter()
        .flatten();
    of_panels
        .chain(of_annotations)
        .map(|target| filled_in(target["expr"].as_str().expect("an expression")))
        .collect()
}

fn filled_in(query: &str) -> String {
    let query = query
        .replace("$__rate_interval", "5m")
        .replace("$instance", ".*")
        .replace("$route", ".*")
        .replace("$job", "blobferry");
    assert!(!query.contains('$'), "an unknown variable: {query}");
    query
}

/// The metrics of docs/metrics.md with their labels.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let page = read("docs/metrics.md");
    rows(&page)
        .filter(|row| row[0].starts_with("`blobferry_"))
        .map(|row| {
            let labels = row[2].split_whitespace().filter(|label| *label != "·");
            let labels = labels.chain(TARGET_LABELS).map(str::to_owned).collect();
            (row[0].trim_matches('`').to_owned(), labels)
        })
        .collect()
}

fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| !word.is_empty())
}

/// The metric of a series: a histogram has series for its buckets, its sum and its count.
fn metric<'a>(name: &'a str, known: &BTreeMap<String, BTreeSet<String>>) -> &'a str {
    if known.contains_key(name) {
        return name;
    }
    ["_bucket", "_sum", "_count"]
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .unwrap_or(name)
}

/// What stands in the parentheses behind each `by`.
fn groupings(query: &str) -> Vec<&str> {
    query
        .split("by (")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .flat_map(|inside| inside.split(','))
        .map(str::trim)
        .collect()
}

/// The labels that select series: what stands before `=` and `!` in braces.
fn selectors(query: &str) -> Vec<&str> {
    query
        .split('{')
        .skip(1)
        .filter_map(|rest| rest.split('}').next())
        .flat_map(|inside| inside.split("\","))
        .filter_map(|pair| pair.split(['=', '!']).next())
        .collect()
}

#[test]
fn the_dashboard_asks_for_metrics_and_labels_that_exist() {
    let known = documented();
    let queries = queries(&dashboard());
    assert!(queries.len() > 40, "{}", queries.len());
    for query in &queries {
        let metrics: Vec<&str> = names(query)
            .filter(|name| name.starts_with("blobferry_"))
            .map(|name| metric(name, &known))
            .collect();
        for metric in &metrics {
            assert!(known.contains_key(*metric), "there is no {metric}: {query}");
        }
        let labels = metrics.iter().filter_map(|metric| known.get(*metric));
        let mut labels: BTreeSet<&str> = labels.flatten().map(String::as_str).collect();
        labels.extend(TARGET_LABELS);
        labels.insert("le");
        for label in groupings(query).into_iter().chain(selectors(query)) {
            assert!(labels.contains(label), "no label {label}: {query}");
        }
    }
}

#[test]
fn prometheus_reads_every_query_of_the_dashboard() {
    assert_read(&queries(&dashboard()));
}

#[test]
fn panels_have_a_name_a_place_and_a_number_of_their_own() {
    let dashboard = dashboard();
    let all = dashboard["panels"].as_array().expect("panels");
    let numbers: BTreeSet<u64> = all
        .iter()
        .filter_map(|panel| panel["id"].as_u64())
        .collect();
    assert_eq!(numbers.len(), all.len());
    let mut taken = BTreeSet::new();
    for panel in panels(&dashboard) {
        assert!(
            panel["title"]
                .as_str()
                .is_some_and(|title| !title.is_empty())
        );
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a place");
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for cell in (at("x")..at("x") + at("w"))
            .flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(taken.insert(cell), "{} covers another", panel["title"]);
        }
    }
}
