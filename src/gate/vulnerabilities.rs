//! The findings that a statement of a scanner holds: the predicates of cosign
//! (<https://github.com/sigstore/cosign/blob/main/specs/COSIGN_VULN_ATTESTATION_SPEC.md>) and of
//! in-toto (<https://github.com/in-toto/attestation/tree/main/spec/predicates>, vulns).
//!
//! | result | known by | a finding is |
//! |---|---|---|
//! | of in-toto | a list | `id` with `severity[].score` |
//! | SARIF | `runs` | a result, with the severity of its rule |
//! | Grype | `matches` | a match |
//! | Trivy | `SchemaVersion` | a vulnerability of a result |
//!
//! What cannot be read is no scan without findings: it is told in words.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::endpoint::{Finding, FindingsPage, Severity};
use crate::fault::clip;

/// The predicates that hold a scan.
pub const PREDICATES: [&str; 3] = [
    "https://cosign.sigstore.dev/attestation/vuln/v1",
    "https://in-toto.io/attestation/vulns/v0.1",
    "https://in-toto.io/attestation/vulns/v0.2",
];

#[derive(Deserialize)]
struct Statement {
    predicate: Predicate,
}

/// The specification of cosign has a list of scanners, its program writes one.
#[derive(Deserialize)]
struct Predicate {
    scanner: Option<Scanner>,
    #[serde(default)]
    scanners: Vec<Scanner>,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Scanner {
    result: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    scan_finished_on: Timestamp,
}

/// Reads the scan that an in-toto statement holds. A result that cannot be read is told in the page.
///
/// # Errors
/// Why not even the time of the scan can be read.
pub fn read(statement: &[u8]) -> Result<FindingsPage, String> {
    let statement: Statement = serde_json::from_slice(statement).map_err(unreadable)?;
    let Predicate {
        scanner,
        scanners,
        metadata,
    } = statement.predicate;
    let scanned = metadata.scan_finished_on;
    // A time that was left out: year 1 where Go writes it.
    if scanned <= Timestamp::UNIX_EPOCH {
        return Err("it does not say when its scan has ended".into());
    }
    let scanners: Vec<Scanner> = scanner.into_iter().chain(scanners).collect();
    let found = match scanners.is_empty() {
        true => Err("it names no scanner".to_owned()),
        false => found_by(scanners, scanned),
    };
    Ok(FindingsPage {
        scanned: Some(scanned),
        unreadable: found.as_ref().err().cloned(),
        findings: found.unwrap_or_default(),
        ..FindingsPage::default()
    })
}

fn found_by(scanners: Vec<Scanner>, scanned: Timestamp) -> Result<Vec<Finding>, String> {
    let mut findings = Vec::new();
    for scanner in scanners {
        for found in found_in(scanner.result)? {
            findings.push(found.finding(scanned)?);
        }
    }
    Ok(findings)
}

fn found_in(result: Value) -> Result<Vec<Found>, String> {
    let has = |key: &str| result.get(key).is_some();
    // `results` is Trivy's key in the wrong case.
    let known = ["runs", "matches", "SchemaVersion", "results"];
    if known.into_iter().filter(|key| has(key)).count() > 1 {
        return Err("its result is of two scanners at once".into());
    }
    if result.is_array() {
        let listed: Vec<Listed> = parsed(result)?;
        return listed.into_iter().map(Listed::found).collect();
    }
    if has("runs") {
        return parsed(result).and_then(Sarif::found);
    }
    if has("matches") {
        return parsed(result).map(Grype::found);
    }
    if has("SchemaVersion") {
        return parsed(result).map(Trivy::found);
    }
    Err("its result is of no scanner that is known".into())
}

fn parsed<T: for<'de> Deserialize<'de>>(result: Value) -> Result<T, String> {
    serde_json::from_value(result).map_err(unreadable)
}

fn unreadable(error: serde_json::Error) -> String {
    format!("its scan cannot be read: {}", clip(&error.to_string(), 200))
}

/// A finding as its scanner says it.
struct Found {
    id: String,
    /// A word, or a score of CVSS.
    severity: Option<String>,
    since: Option<Timestamp>,
}

impl Found {
    /// A finding without a date of its own counts from the end of the scan.
    fn finding(self, scanned: Timestamp) -> Result<Finding, String> {
        let since = self.since.or(Some(scanned));
        Finding::read(Some(&self.id), self.severity.as_deref(), since, severity)
    }
}

/// The severity of a scanner's word or of a score.
fn severity(text: &str) -> Option<Severity> {
    let word = text.trim().to_ascii_lowercase();
    match &*word {
        "unknown" | "" => Some(Severity::Undefined),
        "negligible" | "none" => Some(Severity::Informational),
        "moderate" => Some(Severity::Medium),
        _ => Severity::of(&word).or_else(|| scored(word.parse().ok()?)),
    }
}

/// <https://www.first.org/cvss/v3-1/specification-document>, section 5.
fn scored(score: f64) -> Option<Severity> {
    match score {
        9.0..=10.0 => Some(Severity::Critical),
        7.0..9.0 => Some(Severity::High),
        4.0..7.0 => Some(Severity::Medium),
        0.1..4.0 => Some(Severity::Low),
        0.0..0.1 => Some(Severity::Informational),
        _ => None,
    }
}

/// A finding in a result of in-toto. The text of version 0.1 has it in `vulnerability`, the example
/// of it has not.
#[derive(Deserialize)]
struct Listed {
    vulnerability: Option<Scored>,
    #[serde(flatten)]
    itself: Option<Scored>,
}

#[derive(Deserialize)]
struct Scored {
    id: String,
    #[serde(default)]
    severity: Vec<Score>,
}

#[derive(Deserialize)]
struct Score {
    score: Value,
}

impl Listed {
    /// Several methods may have scored it: the worst counts.
    fn found(self) -> Result<Found, String> {
        let scored = self.vulnerability.or(self.itself);
        let scored = scored.ok_or("a finding of it has no id")?;
        let scores = scored.severity.iter().map(|one| match &one.score {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        Ok(Found {
            severity: scores.min_by_key(|text| severity(text)),
            id: scored.id,
            since: None,
        })
    }
}

#[derive(Deserialize)]
struct Grype {
    matches: Vec<Match>,
}

#[derive(Deserialize)]
struct Match {
    vulnerability: Matched,
}

#[derive(Deserialize)]
struct Matched {
    id: String,
    severity: Option<String>,
}

impl Grype {
    fn found(self) -> Vec<Found> {
        let matched = self.matches.into_iter().map(|one| Found {
            id: one.vulnerability.id,
            severity: one.vulnerability.severity,
            since: None,
        });
        matched.collect()
    }
}

/// A scan without findings has no results.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Trivy {
    results: Option<Vec<TrivyResult>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TrivyResult {
    vulnerabilities: Option<Vec<Vulnerability>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Vulnerability {
    #[serde(rename = "VulnerabilityID")]
    id: String,
    severity: Option<String>,
    published_date: Option<Timestamp>,
}

impl Trivy {
    fn found(self) -> Vec<Found> {
        let results = self.results.into_iter().flatten();
        let all = results.flat_map(|one| one.vulnerabilities.into_iter().flatten());
        let found = all.map(|one| Found {
            id: one.id,
            severity: one.severity,
            since: one.published_date,
        });
        found.collect()
    }
}

/// <https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html>. A run without `results` has
/// not looked for any.
#[derive(Deserialize)]
struct Sarif {
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Run {
    tool: Tool,
    results: Vec<SarifResult>,
}

#[derive(Deserialize)]
struct Tool {
    driver: Component,
    #[serde(default)]
    extensions: Vec<Component>,
}

#[derive(Deserialize)]
struct Component {
    #[serde(default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    id: String,
    #[serde(default)]
    default_configuration: DefaultConfiguration,
    #[serde(default)]
    properties: BTreeMap<String, Value>,
}

impl Rule {
    /// Whether a result with this id may mean it.
    fn is_meant_by(&self, id: &str) -> bool {
        let below = id.strip_prefix(&*self.id);
        below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
    }
}

#[derive(Default, Deserialize)]
struct DefaultConfiguration {
    level: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SarifResult {
    rule_id: Option<String>,
    rule_index: Option<usize>,
    rule: Option<RuleReference>,
    level: Option<String>,
}

/// Where the rule of a result stands (section 3.52).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleReference {
    id: Option<String>,
    index: Option<usize>,
    tool_component: Option<ComponentReference>,
}

#[derive(Deserialize)]
struct ComponentReference {
    index: Option<usize>,
}

impl Sarif {
    fn found(self) -> Result<Vec<Found>, String> {
        let found: Result<Vec<_>, _> = self.runs.into_iter().map(Run::found).collect();
        Ok(found?.into_iter().flatten().collect())
    }
}

impl Run {
    fn found(self) -> Result<Vec<Found>, String> {
        let Run { tool, results } = self;
        let found = results.iter().map(|result| tool.found(result));
        found.collect()
    }
}

impl Tool {
    fn found(&self, result: &SarifResult) -> Result<Found, String> {
        let rules = self.rules_of(result);
        let id = result.id().or(rules.first().map(|rule| &*rule.id));
        let id = id.unwrap_or("a finding without a name").to_owned();
        if rules.is_empty() && self.has_rules() {
            return Err(format!("the rule of {} is not in it", clip(&id, 100)));
        }
        let level = result.level.as_deref();
        let severities = rules
            .into_iter()
            .map(|rule| sarif_severity(Some(rule), level));
        let worst = severities.min_by_key(|word| severity(word));
        Ok(Found {
            id,
            severity: Some(worst.unwrap_or_else(|| sarif_severity(None, level))),
            since: None,
        })
    }

    fn components(&self) -> impl Iterator<Item = &Component> {
        std::iter::once(&self.driver).chain(&self.extensions)
    }

    fn has_rules(&self) -> bool {
        self.components().any(|one| !one.rules.is_empty())
    }

    /// The rules that a result may mean: by its id, or one above that (section 3.27.5), in any
    /// component; without an id by its place.
    fn rules_of(&self, result: &SarifResult) -> Vec<&Rule> {
        if let Some(id) = result.id() {
            let rules = self.components().flat_map(|one| &one.rules);
            return rules.filter(|rule| rule.is_meant_by(id)).collect();
        }
        let reference = result.rule.as_ref();
        let index = result.rule_index.or(reference.and_then(|rule| rule.index));
        let component = reference.and_then(|rule| rule.tool_component.as_ref()?.index);
        let component = match component {
            Some(number) => self.extensions.get(number),
            None => Some(&self.driver),
        };
        let rule = component
            .zip(index)
            .and_then(|(one, index)| one.rules.get(index));
        rule.into_iter().collect()
    }
}

impl SarifResult {
    fn id(&self) -> Option<&str> {
        let referred = self.rule.as_ref().and_then(|rule| rule.id.as_deref());
        self.rule_id.as_deref().or(referred)
    }
}

/// By the score of the rule, else by the worse of its level and that of the result: the result's
/// stands over the rule's (SARIF 2.1.0, section 3.27.10), and tools put their own into either.
fn sarif_severity(rule: Option<&Rule>, level: Option<&str>) -> String {
    let score = rule.and_then(|rule| match rule.properties.get("security-severity")? {
        Value::String(score) => Some(score.clone()),
        score => Some(score.to_string()),
    });
    let default = rule.and_then(|rule| rule.default_configuration.level.as_deref());
    score.unwrap_or_else(|| {
        let levels = [default, level].into_iter().flatten().map(leveled);
        let worst = levels.min_by_key(|word| severity(word));
        // The default of the format is a warning.
        worst.unwrap_or("medium").into()
    })
}

/// A level as the word for a severity; one that is not known stays as it is.
fn leveled(level: &str) -> &str {
    match level {
        "error" => "high",
        "warning" => "medium",
        "note" => "low",
        "none" => "informational",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FINISHED: &str = "2026-11-01T00:00:00Z";

    fn page(result: Value) -> FindingsPage {
        let predicate =
            json!({"scanner": {"result": result}, "metadata": {"scanFinishedOn": FINISHED}});
        read(json!({"predicate": predicate}).to_string().as_bytes()).unwrap()
    }

    fn found(result: Value) -> Vec<(String, Severity)> {
        let page = page(result);
        assert_eq!(page.unreadable, None);
        let findings = page.findings.into_iter();
        findings.map(|one| (one.id, one.severity)).collect()
    }

    fn sarif(rules: Value, results: Value) -> Value {
        json!({"runs": [{"tool": {"driver": {"rules": rules}}, "results": results}]})
    }

    #[test]
    fn the_words_and_scores_of_each_scanner_are_severities() {
        let trivy = |severity: Value| {
            let one = json!({"VulnerabilityID": "CVE-1", "Severity": severity});
            json!({"SchemaVersion": 2, "Results": [{"Vulnerabilities": null}, {"Vulnerabilities": [one]}]})
        };
        let grype = |severity: &str| json!({"matches": [{"vulnerability": {"id": "CVE-1", "severity": severity}}]});
        let listed = |scores: &[&str]| {
            let scores: Vec<Value> = scores.iter().map(|score| json!({"score": score})).collect();
            json!([{"id": "CVE-1", "severity": scores}])
        };
        let rule = |level: &str, score: Value| {
            json!({"id": "CVE-1", "defaultConfiguration": {"level": level},
                "properties": {"security-severity": score}})
        };
        let result = json!([{"ruleId": "CVE-1", "level": "error"}]);
        let unscored = json!([{"id": "CVE-1", "defaultConfiguration": {"level": "note"}}]);
        for (document, expected) in [
            (trivy(json!("CRITICAL")), Severity::Critical),
            (trivy(json!("UNKNOWN")), Severity::Undefined),
            (trivy(Value::Null), Severity::Undefined),
            (grype("High"), Severity::High),
            (grype("Negligible"), Severity::Informational),
            (listed(&["medium", "5.2"]), Severity::Medium),
            (listed(&["low", "9.8"]), Severity::Critical),
            (listed(&["0.0"]), Severity::Informational),
            (listed(&[]), Severity::Undefined),
            (
                json!([{"vulnerability": {"id": "CVE-1", "severity": [{"score": "high"}]}}]),
                Severity::High,
            ),
            (
                sarif(json!([rule("note", json!("9.0"))]), result.clone()),
                Severity::Critical,
            ),
            (
                sarif(json!([rule("note", json!(7.1))]), result.clone()),
                Severity::High,
            ),
            (sarif(unscored.clone(), result.clone()), Severity::High),
            (
                sarif(unscored, json!([{"ruleId": "CVE-1", "level": "none"}])),
                Severity::Low,
            ),
            (sarif(json!([]), result), Severity::High),
            (
                sarif(
                    json!([rule("none", json!("4.0"))]),
                    json!([{"ruleIndex": 0}]),
                ),
                Severity::Medium,
            ),
        ] {
            let shown = document.to_string();
            assert_eq!(found(document), [("CVE-1".to_owned(), expected)], "{shown}");
        }
    }

    #[test]
    fn the_rule_of_a_result_is_found_wherever_it_stands() {
        let scored = json!({"id": "C", "properties": {"security-severity": "9.8"}});
        let beside = |rules: Value, result: Value| {
            json!({"runs": [{"tool": {"driver": {"rules": rules}, "extensions": [{"rules": [scored]}]},
                "results": [result]}]})
        };
        for (document, id) in [
            (
                beside(json!([]), json!({"ruleId": "C", "level": "note"})),
                "C",
            ),
            (
                beside(
                    json!([{"id": "A"}]),
                    json!({"rule": {"index": 0, "toolComponent": {"index": 0}}}),
                ),
                "C",
            ),
            (
                beside(json!([]), json!({"rule": {"id": "C"}, "level": "none"})),
                "C",
            ),
            (
                sarif(
                    json!([scored]),
                    json!([{"ruleId": "C/sub", "level": "note"}]),
                ),
                "C/sub",
            ),
            (beside(json!([{"id": "C"}]), json!({"ruleId": "C"})), "C"),
        ] {
            let shown = document.to_string();
            let expected = [(id.to_owned(), Severity::Critical)];
            assert_eq!(found(document), expected, "{shown}");
        }
    }

    #[test]
    fn a_scan_that_found_nothing_is_told_from_one_that_cannot_be_read() {
        for empty in [
            json!([]),
            json!({"matches": []}),
            json!({"SchemaVersion": 2, "ArtifactName": "app"}),
            sarif(json!([]), json!([])),
        ] {
            assert_eq!(found(empty), []);
        }
        for bad in [
            json!({}),
            json!("clean"),
            Value::Null,
            json!({"runs": [{"tool": {"driver": {}}}]}),
            json!({"runs": [{"tool": {"driver": {}}, "results": null}]}),
            json!({"matches": [{"vulnerability": {"id": "CVE-1", "severity": "Awful"}}]}),
            json!([{"severity": []}]),
            json!([{"id": "CVE-1", "severity": [{"score": "low"}, {"score": "CVSS:3.1/AV:N"}]}]),
            json!([{"id": "CVE-1", "severity": [{"score": "11"}]}]),
            json!({"SchemaVersion": 2, "Results": [], "matches": []}),
            json!({"runs": [], "matches": []}),
            json!({"SchemaVersion": 2, "results": []}),
            sarif(
                json!([{"id": "A"}]),
                json!([{"ruleId": "B", "level": "note"}]),
            ),
            sarif(
                json!([{"id": "A"}]),
                json!([{"ruleIndex": 1, "level": "note"}]),
            ),
        ] {
            let shown = bad.to_string();
            assert!(page(bad).unreadable.is_some(), "{shown}");
        }
    }

    #[test]
    fn a_scan_of_no_time_is_no_scan() {
        for bad in [
            json!({"predicate": {"scanner": {"result": []}}}),
            json!({"predicate": {"scanner": {"result": []}, "metadata": {"scanFinishedOn": "today"}}}),
            json!({"predicate": {"scanner": {"result": []}, "metadata": {"scanFinishedOn": "0001-01-01T00:00:00Z"}}}),
            json!({}),
        ] {
            assert!(read(bad.to_string().as_bytes()).is_err(), "{bad}");
        }
        let unscanned = json!({"predicate": {"metadata": {"scanFinishedOn": FINISHED}}});
        let page = read(unscanned.to_string().as_bytes()).unwrap();
        assert!(page.unreadable.is_some(), "it names no scanner");
    }

    #[test]
    fn a_finding_is_as_old_as_its_publication_or_its_scan() {
        let one = json!({"VulnerabilityID": "CVE-1", "Severity": "LOW", "PublishedDate": "2026-01-01T00:00:00Z"});
        let two = json!({"VulnerabilityID": "CVE-2", "Severity": "LOW"});
        let trivy = json!({"SchemaVersion": 2, "Results": [{"Vulnerabilities": [one, two]}]});
        let findings = page(trivy).findings;
        let since = findings.iter().map(|one| one.since.unwrap().to_string());
        assert_eq!(
            since.collect::<Vec<_>>(),
            ["2026-01-01T00:00:00Z", FINISHED]
        );
    }
}
