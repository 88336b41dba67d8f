//! Wrong gates in the config, and what `check` says of right ones.

use serde_json::{Value, json};

use crate::support::*;

fn config(defaults: Value, gates: Value) -> Config {
    let text = json!({
        "registries": {"s": {"url": "https://s.example"}, "p": {"url": "https://p.example"}},
        "defaults": {"gates": defaults},
        "routes": [{"name": "app", "from": "s/app", "to": "p/app", "tags": {"include": "*"}, "gates": gates}],
    });
    Config::text(&text.to_string())
}

#[tokio::test]
async fn a_wrong_gate_is_named_with_its_key() {
    for (gates, key, text) in [
        (
            json!({"min_ages": "1h"}),
            "gates.min_ages",
            "did you mean \"min_age\"",
        ),
        (
            json!({"min_age": "soon"}),
            "gates.min_age",
            "is not a duration",
        ),
        (
            json!({"min_age": "0s"}),
            "gates.min_age",
            "is not between 1s and",
        ),
        (
            json!({"min_age": "9000h"}),
            "gates.min_age",
            "is not between 1s and",
        ),
        (json!({"referrers": []}), "gates.referrers", "give 1 to 100"),
        (
            json!({"referrers": "spdx"}),
            "gates.referrers",
            "is no artifact type",
        ),
        (
            json!({"window": {}}),
            "gates.window",
            "neither `open` nor `closed`",
        ),
        (
            json!({"window": {"zone": "Mars/Base", "open": "mon"}}),
            "gates.window.zone",
            "is no time zone",
        ),
        (
            json!({"window": {"open": "mon 09:00"}}),
            "gates.window.open",
            "is no part of the week",
        ),
        (
            json!({"window": {"open": ["mon", "xyz"]}}),
            "gates.window.open[1]",
            "no day",
        ),
        (
            json!({"window": {"closed": "2026-13-01"}}),
            "gates.window.closed",
            "is no day",
        ),
        (
            json!({"window": {"closed": "2026-12-02/2026-12-01"}}),
            "gates.window.closed",
            "is no day",
        ),
        (
            json!({"window": {"opens": "mon"}}),
            "gates.window.opens",
            "did you mean \"open\"",
        ),
        (
            json!({"signature": [{"cosign": {"issuer": "https://i.example"}}]}),
            "gates.signature[0].cosign",
            "needs either `key_file`, or `issuer` and `identity`",
        ),
        (
            json!({"signature": [{"cosign": {"key_file": "/dev/null"}}]}),
            "gates.signature[0].cosign.key_file",
            "not a regular file",
        ),
        (
            json!({"signature": [{"notation": {}}]}),
            "gates.signature[0].notation",
            "unknown key",
        ),
        (
            json!({"attestation": {"predicate": "p", "issuer": "i", "identity": "**"}}),
            "gates.attestation.identity",
            "every user of the issuer could sign",
        ),
        (
            json!({"attestation": {"issuer": "i", "identity": "a"}}),
            "gates.attestation.predicate",
            "is missing",
        ),
        (
            json!({"attestation": {"predicate": "p", "issuer": "i", "identity": "a", "root": "/nowhere"}}),
            "gates.attestation.root",
            "cannot read",
        ),
        (json!("off"), "gates", "expected a mapping"),
    ] {
        let ferry = Ferry::new(&config(json!({}), gates.clone()));
        let run = ferry.run(&["check"]).await.expect(2);
        let said = run.said();
        let place = format!("routes[0].{key}");
        assert!(
            said.contains(&place) && said.contains(text),
            "{gates}: {said}"
        );
    }
}

#[tokio::test]
async fn a_wrong_gate_on_scans_is_named_with_its_key() {
    let usual = json!({"from": "ecr", "refuse": ["critical", "high"]});
    let entry = |id: &str, until: &str| json!({"id": id, "until": until, "reason": "unreachable"});
    for (more, key, text) in [
        (json!({"from": "inspector"}), "from", "ecr"),
        (json!({"from": null}), "from", "ecr or attestation"),
        (json!({"refuse": []}), "refuse", "give 1 to 100"),
        (json!({"refuse": ["CRITICAL"]}), "refuse[0]", "critical"),
        (json!({"at": "production"}), "at", "destination"),
        (
            json!({"grace": {"low": "1h"}}),
            "grace.low",
            "`refuse` does not name",
        ),
        (
            json!({"grace": {"high": "30"}}),
            "grace.high",
            "is not a duration",
        ),
        (json!({"wait": "0s"}), "wait", "is not between 1s and"),
        (
            json!({"ignore": [{"id": "CVE-1"}]}),
            "ignore[0].until",
            "is missing",
        ),
        (
            json!({"ignore": [entry("CVE-1", "2026-02-30")]}),
            "ignore[0].until",
            "is no day",
        ),
        (
            json!({"ignore": [entry("", "2026-12-31")]}),
            "ignore[0].id",
            "1 to 200 characters",
        ),
        (
            json!({"ignore": [entry("CVE-1", "2026-12-31"), entry("CVE-1", "2026-12-30")]}),
            "ignore[1]",
            "an entry before it names",
        ),
        (
            json!({"key_file": "/dev/null"}),
            "key_file",
            "is not signed",
        ),
        (
            json!({"from": "attestation", "at": "destination"}),
            "at",
            "read from staging",
        ),
        (
            json!({"from": "attestation"}),
            "scan",
            "needs either `key_file`",
        ),
    ] {
        let mut gate = usual.clone();
        gate.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let ferry = Ferry::new(&config(json!({}), json!({"scan": gate})));
        let said = ferry.run(&["check"]).await.expect(2).said();
        let place = match key {
            "scan" => "routes[0].gates.scan:".to_owned(),
            key => format!("routes[0].gates.scan.{key}"),
        };
        assert!(
            said.contains(&place) && said.contains(text),
            "{more}: {said}"
        );
    }
}

#[tokio::test]
async fn check_warns_of_gates_that_a_route_replaces_or_drops() {
    let defaults = json!({"min_age": "24h", "referrers": "application/spdx+json", "window": {"open": "mon-fri"}});
    let gates = json!({"min_age": "off", "window": {"open": "sat"}});
    let ferry = Ferry::new(&config(defaults, gates));
    let said = ferry.run(&["check"]).await.expect(0).said();
    for text in [
        "gates window, referrers",
        "gates.min_age: off drops the gate of defaults",
        "gates.window replaces the gate of defaults",
    ] {
        assert!(said.contains(text), "{said}");
    }
    assert!(!said.contains("gates.referrers"), "{said}");
}

/// `check` passed a gate that could only wait.
#[tokio::test]
async fn a_program_that_cannot_run_is_named_with_its_place() {
    let ferry = Ferry::bare();
    let plain = ferry.file("plain", "#!/bin/sh\n");
    for (program, text) in [
        ("/nowhere/gate", "install it"),
        (&*plain, "chmod +x"),
        ("no-such-gate", "is in PATH"),
    ] {
        ferry.write_config(&config(json!({}), json!({"command": {"run": [program]}})));
        let failed = ferry.run(&["check"]).await.expect(2);
        let said = failed.said();
        for text in [
            "blobferry.yaml:1:",
            "routes[0].gates.command.run",
            program,
            text,
        ] {
            assert!(said.contains(text), "{said}");
        }
    }
    ferry.write_config(&config(json!({}), json!({"command": {"run": ["true"]}})));
    ferry.run(&["check"]).await.expect(0);
}
