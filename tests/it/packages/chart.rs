//! The Helm chart as it lies there; rendering it takes helm (`packaging/helm/check`).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use regex::Regex;
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::docs::{blobferry, files_in, read};

const CHART: &str = "packaging/helm/blobferry";

fn keys(value: &Value) -> BTreeSet<&str> {
    let map = value.as_object().expect("a map");
    map.keys().map(String::as_str).collect()
}

fn chart(file: &str) -> String {
    read(Path::new(CHART).join(file))
}

#[test]
fn the_chart_has_the_version_the_alerts_and_the_dashboard_of_the_program() {
    let about = yaml(&chart("Chart.yaml"));
    assert_eq!(text(&about, "/version"), VERSION);
    assert_eq!(text(&about, "/appVersion"), VERSION);
    assert_eq!(chart("files/alerts.yml"), read("docs/alerts.yml"));
    assert_eq!(
        chart("files/dashboard.json"),
        read("config/grafana/blobferry.json")
    );
}

#[test]
fn the_charts_values_have_a_schema_and_the_templates_use_no_others() {
    let values = yaml(&chart("values.yaml"));
    let schema: Value = serde_json::from_str(&chart("values.schema.json")).expect("JSON");
    let mut described = keys(&schema["properties"]);
    assert!(described.remove("global"), "helm sets it");
    assert_eq!(described, keys(&values));
    for (name, value) in values.as_object().expect("values") {
        let part = &schema["properties"][name];
        if part["additionalProperties"] == false {
            assert_eq!(keys(&part["properties"]), keys(value), "{name}");
        }
    }

    let used = Regex::new(r"\.Values((?:\.[a-zA-Z]+)+)").expect("an expression");
    let mut count = 0;
    for template in files_in(&format!("{CHART}/templates"), "") {
        for found in used.captures_iter(&read(&template)) {
            let pointer = found[1].replace('.', "/");
            let value = values.pointer(&pointer);
            assert!(value.is_some(), "{}: {pointer}", template.display());
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}

#[test]
fn the_charts_least_config_is_right() {
    let folder = TempDir::new().expect("a scratch directory");
    let values = yaml(&chart("ci/least.yaml"));
    let path = folder.path().join("blobferry.yaml");
    fs::write(&path, values["config"].to_string()).expect("a config");
    let path = path.to_str().expect("a plain path");
    let output = blobferry(&["check", "-c", path], folder.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn the_pod_has_no_rights_and_there_is_never_a_second_one() {
    let pod = chart("templates/statefulset.yaml");
    for line in [
        "kind: StatefulSet",
        "  replicas: 1",
        "automountServiceAccountToken: false",
        "runAsNonRoot: true",
        "fsGroupChangePolicy: OnRootMismatch",
        "type: RuntimeDefault",
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
        "drop: [ALL]",
        "path: /healthz",
        "path: /readyz",
    ] {
        let there = pod.lines().any(|found| found.trim_end().ends_with(line));
        assert!(there, "the pod has no line {line}");
    }
}
