//! `iam`: the least that AWS must allow us, as policies for the registries of a config.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde_json::{Value, json};

use super::output::Lines;
use super::{Arguments, Failure};
use crate::config::{Config, RegistryKind};
use crate::ecr;
use crate::registry::Settings;
use crate::registry::auth::Credentials;
use crate::watch::route::Create;

/// Print the IAM policies that the config's ECR registries need
#[derive(Debug, Args)]
#[command(after_help = "Prints one JSON object: for each ECR registry of the config the policy for the
identity that we use there, and, where that identity may belong to another
account, the statement for the policy of each repository. The actions are the
least that watching and promoting need; nothing allows deletion.")]
pub(super) struct Iam {}

/// What reading an image needs.
const READ: [&str; 3] = ["BatchCheckLayerAvailability", "BatchGetImage", "GetDownloadUrlForLayer"];
/// What finding tags, repositories and signatures needs; a listing is a fallback for the other.
const WATCH: [&str; 3] = ["DescribeImages", "DescribeRepositories", "ListImages"];
/// What writing an image needs besides.
const WRITE: [&str; 4] = ["CompleteLayerUpload", "InitiateLayerUpload", "PutImage", "UploadLayerPart"];
/// What creating a repository from a template needs besides.
const CREATE: [&str; 4] = ["CreateRepository", "PutLifecyclePolicy", "SetRepositoryPolicy", "TagResource"];
/// What cloning a repository's settings needs at the source.
const MODEL: [&str; 2] = ["GetLifecyclePolicy", "GetRepositoryPolicy"];

/// What is done in one registry.
#[derive(Default)]
struct Use {
    read: BTreeSet<String>,
    write: BTreeSet<String>,
    creates: bool,
    cloned: bool,
}

impl Iam {
    pub(super) async fn run(&self, arguments: &Arguments, lines: &mut Lines) -> Result<u8, Failure> {
        let config = arguments.config()?;
        let policies = policies(&config);
        if policies.is_empty() {
            return Err(Failure::said(5, "the config has no private ECR registry: there is nothing to allow"));
        }
        lines.json(&policies);
        Ok(0)
    }
}

fn policies(config: &Config) -> BTreeMap<String, Value> {
    let uses = uses(config);
    let of = |(name, registry): (&String, &crate::config::Registry)| {
        let RegistryKind::Remote(Settings { credentials: Credentials::Ecr(login), .. }) = &registry.kind else { return None };
        let used = uses.get(name)?;
        (!login.is_public()).then(|| (name.clone(), policy(login, used)))
    };
    config.registries.iter().filter_map(of).collect()
}

fn uses(config: &Config) -> BTreeMap<String, Use> {
    let mut uses: BTreeMap<String, Use> = BTreeMap::new();
    for route in &config.routes {
        let source = uses.entry(route.from.registry().to_string()).or_default();
        source.read.insert(route.from.repository().replace("**", "*"));
        source.cloned |= matches!(route.create, Create::Clone);
        for to in &route.to {
            let there = uses.entry(to.registry().to_string()).or_default();
            there.write.insert(any_capture(to.repository()));
            there.creates |= !matches!(route.create, Create::Never);
        }
    }
    uses
}

/// A destination in which every capture is a wildcard.
fn any_capture(template: &str) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        text.push('*');
        rest = after.split_once('}').map_or("", |(_, rest)| rest);
    }
    text + rest
}

fn policy(login: &ecr::Login, used: &Use) -> Value {
    let arns = |names: &BTreeSet<String>| names.iter().map(|name| arn(login, name)).collect::<Vec<_>>();
    let mut statements =
        vec![statement("Token", &["GetAuthorizationToken"], json!("*")), statement("Settings", &["GetAccountSetting"], json!("*"))];
    let reading: Vec<&str> = READ.into_iter().chain(WATCH).chain(MODEL.into_iter().filter(|_| used.cloned)).collect();
    if !used.read.is_empty() {
        statements.push(statement("Read", &reading, json!(arns(&used.read))));
    }
    if used.read.iter().any(|name| name.contains('*')) {
        statements.push(statement("Discover", &["DescribeRepositories"], json!("*")));
    }
    if !used.write.is_empty() {
        statements.push(statement("Settings", &["GetAccountSetting"], json!("*")));
        let writing: Vec<&str> =
            READ.into_iter().chain(WATCH).chain(WRITE).chain(CREATE.into_iter().filter(|_| used.creates)).collect();
        statements.push(statement("Write", &writing, json!(arns(&used.write))));
    }
    let across: Vec<Value> =
        statements.iter().filter(|statement| statement["Resource"] != "*").map(|statement| shared(login, statement)).collect();
    json!({
        "identity_policy": {"Version": "2012-10-17", "Statement": statements},
        "repository_policy": {"Version": "2012-10-17", "Statement": across},
    })
}

/// The same rights, given by the repository to an identity of another account.
fn shared(login: &ecr::Login, statement: &Value) -> Value {
    let who = login.identity().unwrap_or("arn:aws:iam::ACCOUNT:role/ROLE");
    // Nobody of another account can be allowed to create repositories by a policy of the repository.
    let action: Vec<&Value> = statement["Action"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|action| !CREATE.iter().any(|create| **action == format!("ecr:{create}")))
        .collect();
    json!({"Sid": statement["Sid"], "Effect": "Allow", "Principal": {"AWS": who}, "Action": action})
}

fn statement(sid: &str, actions: &[&str], resource: Value) -> Value {
    let actions: BTreeSet<String> = actions.iter().map(|action| format!("ecr:{action}")).collect();
    json!({"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource})
}

fn arn(login: &ecr::Login, repository: &str) -> String {
    let host = ecr::host::recognise(login.host());
    let region = host.as_ref().map_or("*", |host| host.region.as_str());
    format!("arn:{}:ecr:{region}:{}:repository/{repository}", ecr::host::partition(region), login.account().unwrap_or("*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_become_wildcards() {
        for (template, pattern) in [("prod-{1}", "prod-*"), ("a/{1}/b{2}", "a/*/b*"), ("app", "app")] {
            assert_eq!(any_capture(template), pattern);
        }
    }

    #[test]
    fn resources_are_named_in_their_partition() {
        let arn = |host: &str| arn(&ecr::Login::new(ecr::Settings::default(), host), "app");
        assert_eq!(arn("123456789012.dkr.ecr.eu-west-1.amazonaws.com"), "arn:aws:ecr:eu-west-1:123456789012:repository/app");
        assert_eq!(
            arn("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"),
            "arn:aws-cn:ecr:cn-north-1:123456789012:repository/app"
        );
        assert_eq!(arn("127.0.0.1:5000"), "arn:aws:ecr:*:*:repository/app");
    }
}
