//! What AWS must allow: the policies that are printed and those of the pipeline name the actions
//! and repositories that ECR has seen used, each of them and no other. Nothing deletes.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::ecr::{OTHER, demo, keys, merged, one_account, pipeline, platforms, with_identity};
use crate::support::ecr::{HOME, Scanned};
use crate::support::*;

/// An action and a pattern of the repositories that it is allowed on; none where it knows none.
type Right = (String, Option<String>);

/// The rights of a policy, one for each pair of an action and a resource.
fn rights(policy: &Value) -> Vec<Right> {
    let list = |value: &Value| {
        value
            .as_array()
            .cloned()
            .unwrap_or_else(|| vec![value.clone()])
    };
    let text = |value: Value| value.as_str().expect("a text").to_owned();
    let mut rights = Vec::new();
    // A statement under a condition stands in a list with the condition.
    let statements = policy["Statement"].as_array().expect("statements").iter();
    let statements = statements.flat_map(|statement| {
        statement
            .as_array()
            .map_or(vec![statement], |parts| parts.iter().collect())
    });
    for statement in statements.filter(|statement| statement.is_object()) {
        for action in list(&statement["Action"]).into_iter().map(text) {
            for resource in list(&statement["Resource"]).into_iter().map(text) {
                let repositories = resource
                    .split_once(":repository/")
                    .map(|(_, repositories)| repositories.to_owned());
                rights.extend(
                    action
                        .strip_prefix("ecr:")
                        .map(|action| (action.to_owned(), repositories)),
                );
            }
        }
    }
    rights
}

/// Whether a right covers what was done. What is done to no repository needs the right to do it
/// anywhere.
fn covers((action, pattern): &Right, (used, repository): &(String, String)) -> bool {
    let matches = |pattern: &str| match pattern.split_once('*') {
        None => pattern == repository,
        Some((before, after)) => repository
            .strip_prefix(before)
            .is_some_and(|rest| rest.ends_with(after)),
    };
    action == used && pattern.as_deref().map_or(repository.is_empty(), matches)
}

/// What was used. An account that only the config names is compared with the registry's own list
/// where a repository is missing: hosts of ECR name theirs, and a refusal changes nothing.
fn used(ecr: &Ecr) -> BTreeSet<(String, String)> {
    ecr.used()
        .into_iter()
        .filter(|(action, _)| action != "ListImages")
        .collect()
}

/// Asserts that the rights cover all that was used and that each of them was.
fn assert_exact(rights: &[Right], used: &BTreeSet<(String, String)>) {
    let missing: Vec<_> = used
        .iter()
        .filter(|used| !rights.iter().any(|right| covers(right, used)))
        .collect();
    let idle: Vec<_> = rights
        .iter()
        .filter(|right| !used.iter().any(|used| covers(right, used)))
        .collect();
    assert!(
        missing.is_empty() && idle.is_empty(),
        "missing: {missing:?}, idle: {idle:?}"
    );
    let deletes = |action: &str| action.contains("Delete") || action.contains('*');
    assert!(
        !rights.iter().any(|(action, _)| deletes(action))
            && !used.iter().any(|(action, _)| deletes(action))
    );
}

async fn printed(ferry: &Ferry) -> Value {
    let run = ferry.run(&["iam"]).await.expect(0);
    let policies: Value = serde_json::from_str(&run.stdout).expect("policies are JSON");
    for policy in policies
        .as_object()
        .expect("one for each registry")
        .values()
    {
        let statements = policy["identity_policy"]["Statement"]
            .as_array()
            .expect("statements");
        let ids: BTreeSet<&str> = statements
            .iter()
            .map(|statement| statement["Sid"].as_str().expect("a text"))
            .collect();
        assert_eq!(
            ids.len(),
            statements.len(),
            "AWS takes no two statements of one name"
        );
    }
    policies
}

/// The identity may do what was used, and the repositories let it in from another account with the
/// same, except for what only their own account gives.
fn assert_policy_is_exact(policies: &Value, registry: &str, ecr: &Ecr) {
    const OWN: [&str; 4] = [
        "CreateRepository",
        "PutLifecyclePolicy",
        "SetRepositoryPolicy",
        "TagResource",
    ];
    assert_exact(&rights(&policies[registry]["identity_policy"]), &used(ecr));
    let statements = policies[registry]["repository_policy"]["Statement"]
        .as_array()
        .expect("statements");
    let given = statements
        .iter()
        .flat_map(|statement| statement["Action"].as_array().expect("actions"));
    let given: BTreeSet<&str> = given
        .filter_map(|action| action.as_str()?.strip_prefix("ecr:"))
        .collect();
    let seen = used(ecr);
    let of_repositories = seen
        .iter()
        .filter(|(action, repository)| !repository.is_empty() && !OWN.contains(&&**action));
    assert_eq!(
        given,
        of_repositories.map(|(action, _)| &**action).collect()
    );
}

fn two_accounts(staging: &Ecr, production: &Ecr, route: Value) -> Config {
    let somebody = json!({"role_arn": format!("arn:aws:iam::{OTHER}:role/promoter")});
    let config = Config::new()
        .registry_with("staging", &staging.url(), keys(staging, HOME))
        .registry_with(
            "production",
            &production.url(),
            merged(keys(production, OTHER), somebody),
        );
    config.raw_route(merged(
        json!({"name": "all", "tags": {"include": ["*"]}}),
        route,
    ))
}

#[tokio::test]
async fn in_one_account_the_policies_allow_what_is_used_and_no_more() {
    let ecr = demo().await;
    let ferry = with_identity(Ferry::new(&one_account(&ecr, json!({}))), &ecr);
    for (tag, mounting) in [("v1", false), ("v2", false), ("v3", true)] {
        ecr.ways(|ways| ways.mounting = mounting);
        ecr.client()
            .push(
                "staging-demo-app",
                tag,
                &Image::oci(u64::from(tag.as_bytes()[1]), &[500]),
            )
            .await;
        ferry.sync(&[]).await.expect(0);
    }
    ferry.sync(&["--tag", "v3"]).await.expect(0);
    let policies = printed(&ferry).await;
    let of = |registry: &str| rights(&policies[registry]["identity_policy"]);
    assert_exact(&[of("staging"), of("production")].concat(), &used(&ecr));
}

#[tokio::test]
async fn between_accounts_the_policies_allow_what_is_used_and_no_more() {
    let template = json!({"immutable": false, "lifecycle_policy_file": "lifecycle.json", "policy_file": "policy.json",
        "resource_tags": {"team": "demo"}});
    for creation in [
        json!({"create": "never"}),
        json!({"create": "template", "template": template}),
        json!({"create": "clone"}),
    ] {
        let (staging, production) = (Ecr::start(HOME).await, Ecr::start(OTHER).await);
        staging.create("app");
        staging.set_policies("app", "{}", "{}");
        if creation["create"] == "never" {
            production.create("prod");
        }
        let ferry = with_identity(Ferry::bare(), &staging);
        ferry.file("lifecycle.json", "{}");
        ferry.file("policy.json", "{}");
        let route = merged(
            json!({"from": "staging/app", "to": "production/prod"}),
            creation,
        );
        ferry.write_config(&two_accounts(&staging, &production, route));
        for (tag, seed) in [("v1", 1), ("v2", 2)] {
            staging
                .client()
                .push("app", tag, &Image::oci(seed, &[500]))
                .await;
            ferry.sync(&[]).await.expect(0);
        }
        ferry.sync(&["--tag", "v2"]).await.expect(0);
        let policies = printed(&ferry).await;
        assert_policy_is_exact(&policies, "staging", &staging);
        assert_policy_is_exact(&policies, "production", &production);
    }
}

#[tokio::test]
async fn a_gate_on_scans_needs_the_right_to_read_their_findings() {
    for at in ["source", "destination"] {
        let (staging, production) = (Ecr::start(HOME).await, Ecr::start(OTHER).await);
        staging.create("app");
        production.create("prod");
        let scan = json!({"from": "ecr", "at": at, "refuse": "critical"});
        let route =
            json!({"from": "staging/app", "to": "production/prod", "gates": {"scan": scan}});
        let config = two_accounts(&staging, &production, route);
        let ferry = with_identity(Ferry::new(&config), &staging);
        for (tag, seed) in [("v1", 1), ("v2", 2)] {
            let image = Image::oci(seed, &[500]);
            staging.client().push("app", tag, &image).await;
            staging.scan("app", image.digest(), Scanned::basic(&[]));
            production.scan("prod", image.digest(), Scanned::basic(&[]));
            ferry.sync(&[]).await.expect(0);
        }
        ferry.sync(&["--tag", "v2"]).await.expect(0);
        let policies = printed(&ferry).await;
        assert_policy_is_exact(&policies, "staging", &staging);
        assert_policy_is_exact(&policies, "production", &production);
    }
}

#[tokio::test]
async fn with_wildcards_the_policies_allow_what_is_used_and_no_more() {
    let (staging, production) = (Ecr::start(HOME).await, Ecr::start(OTHER).await);
    let image = platforms();
    for repository in ["team/a", "team/b"] {
        staging.create(repository);
        staging.set_policies(repository, "{}", "{}");
    }
    staging.client().push("team/a", "v1", &image).await;
    let route = json!({"from": "staging/team/**", "to": "production/prod/{1}", "create": "clone"});
    let ferry = with_identity(
        Ferry::new(&two_accounts(&staging, &production, route)),
        &staging,
    );
    production.ways(|ways| ways.mounting = true);
    ferry.sync(&[]).await.expect(0);
    staging.client().push("team/b", "v1", &image).await;
    ferry.sync(&[]).await.expect(0);
    // What production holds is asked when nobody remembers it.
    ferry.delete_index();
    staging
        .client()
        .push(
            "team/a",
            "v3",
            &Image::of_layers(6, vec![image.blobs[1].clone()]),
        )
        .await;
    ferry.sync(&[]).await.expect(0);
    ferry.sync(&["--tag", "v3"]).await.expect(0);
    let policies = printed(&ferry).await;
    assert_policy_is_exact(&policies, "staging", &staging);
    assert_policy_is_exact(&policies, "production", &production);
}

/// A template of CloudFormation; its functions are left out, their arguments stay.
fn template(name: &str) -> Value {
    let path = format!("{}/config/codepipeline/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).expect("the template is there");
    let plain = ["!Sub ", "!Ref ", "!GetAtt ", "!If", "!Not ", "!Equals "]
        .iter()
        .fold(text, |text, function| text.replace(function, ""));
    serde_saphyr::from_str(&plain).expect("the template is YAML")
}

#[tokio::test]
async fn the_policies_of_the_pipeline_allow_what_a_build_uses_and_no_more() {
    let ecr = demo().await;
    for (tag, mounting, asked) in [
        ("latest", false, "latest"),
        ("v2", false, "*"),
        ("v3", true, "v3"),
    ] {
        ecr.ways(|ways| ways.mounting = mounting);
        ecr.client()
            .push(
                "staging-demo-app",
                tag,
                &Image::oci(u64::from(tag.as_bytes()[1]), &[500]),
            )
            .await;
        pipeline(&ecr)
            .with_env("IMAGE_TAG", asked)
            .run(&["promote"])
            .await
            .expect(0);
    }
    let stage = template("promote-to-production.yaml");
    let policy = &stage["Resources"]["PromoteRole"]["Properties"]["Policies"][0]["PolicyDocument"];
    let names = [
        ("${StagingImageName}", "staging-demo-app"),
        ("${ProductionImageName}", "prod-demo-app"),
    ];
    let named = |text: String| {
        names.iter().fold(text, |text, (parameter, name)| {
            text.replace(parameter, name)
        })
    };
    let allowed: Vec<Right> = rights(policy)
        .into_iter()
        .map(|(action, pattern)| (action, pattern.map(named)))
        .collect();
    let of_ecr: BTreeSet<&str> = allowed.iter().map(|(action, _)| &**action).collect();
    assert!(of_ecr.contains("PutImage"), "{of_ecr:?}");
    assert_exact(&allowed, &used(&ecr));

    let repository = template("production-repository.yaml");
    let statement = &repository["Resources"]["Repository"]["Properties"]["RepositoryPolicyText"]["Statement"]
        [0];
    let given: BTreeSet<&str> = statement["Action"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|action| action.as_str())
        .collect();
    let there: BTreeSet<String> = allowed
        .iter()
        .filter(|(_, pattern)| pattern.as_deref() == Some("prod-demo-app"))
        .map(|(action, _)| format!("ecr:{action}"))
        .collect();
    assert_eq!(
        given,
        there.iter().map(String::as_str).collect(),
        "what the role may do there, the repository lets it do"
    );
}
