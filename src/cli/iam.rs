//! `iam`: the least that AWS must allow us, as policies for the registries and queues of a config.

mod queue;

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde_json::{Value, json};

use super::lines::Lines;
use super::{Arguments, Failure};
use crate::config::{Config, RegistryKind};
use crate::ecr;
use crate::job::ScanSide;
use crate::route::Create;

/// Print the IAM policies that the config's ECR registries and queues need
#[derive(Debug, Args)]
#[command(
    after_help = "Prints one JSON object: for each ECR registry of the config the policy for the
identity that we use there, and, where that identity may belong to another
account, the statement for the policy of each repository. The actions are the
least that watching and promoting need; nothing allows deletion. Where the
config has a `role_arn`, `assuming_policy` is for the identity that assumes it,
and the others are for the role. A queue stands under queue:NAME, with the
statement for the policy of the queue."
)]
pub(super) struct Iam {}

/// What reading images needs: tags with their digests, manifests and referrers, blobs.
const READ: [&str; 3] = ["BatchGetImage", "DescribeImages", "GetDownloadUrlForLayer"];
/// What writing images needs: to see what is there, and to bring what is not.
const WRITE: [&str; 7] = [
    "BatchCheckLayerAvailability",
    "BatchGetImage",
    "CompleteLayerUpload",
    "DescribeImages",
    "InitiateLayerUpload",
    "PutImage",
    "UploadLayerPart",
];
/// What reading the findings of scans needs.
const SCAN: &str = "DescribeImageScanFindings";
/// What creating a repository needs; with resource tags, [`TAG`] as well.
const CREATE: [&str; 2] = ["CreateRepository", "DescribeRepositories"];
/// What creating it with a KMS key needs on that key.
const KEY: [&str; 3] = ["kms:CreateGrant", "kms:DescribeKey", "kms:RetireGrant"];
/// What giving it resource tags needs.
const TAG: &str = "TagResource";
/// What furnishing it needs.
const FURNISH: [&str; 2] = ["PutLifecyclePolicy", "SetRepositoryPolicy"];
/// What cloning a repository's settings needs at the source.
const MODEL: [&str; 3] = [
    "DescribeRepositories",
    "GetLifecyclePolicy",
    "GetRepositoryPolicy",
];
/// What a repository's own policy does not give to others: it is not there yet, or would hand
/// itself over.
const OWN: [&str; 4] = [
    "CreateRepository",
    "PutLifecyclePolicy",
    "SetRepositoryPolicy",
    TAG,
];

/// Everything, where an action knows no resources.
const ANY: &str = "*";

type Actions = BTreeSet<&'static str>;

/// What is done in one registry: the actions on each pattern of repositories.
#[derive(Default)]
struct Use {
    reads: BTreeSet<String>,
    writes: BTreeSet<String>,
    rights: BTreeMap<String, Actions>,
    /// KMS keys with which repositories are created.
    keys: BTreeSet<String>,
}

impl Use {
    fn allow(&mut self, repositories: &str, actions: impl IntoIterator<Item = &'static str>) {
        self.rights
            .entry(repositories.to_owned())
            .or_default()
            .extend(actions);
    }

    fn read(&mut self, repositories: String, cloned: bool) {
        self.allow(
            &repositories,
            READ.into_iter().chain(MODEL.into_iter().filter(|_| cloned)),
        );
        if repositories.contains('*') {
            self.allow(ANY, ["DescribeRepositories"]);
        }
        self.reads.insert(repositories);
    }

    fn write(&mut self, repositories: String, create: &Create) {
        self.allow(&repositories, WRITE.into_iter().chain(creating(create)));
        if let Create::Template(template) = create {
            self.keys
                .extend(template.kms_key.clone().filter(|key| !key.is_empty()));
        }
        self.writes.insert(repositories);
    }

    /// Blobs are mounted from every other repository of the account and region that is known.
    fn mount(&mut self, known: &BTreeSet<String>) {
        for to in std::mem::take(&mut self.writes) {
            for from in known
                .iter()
                .filter(|from| **from != to || from.contains('*'))
            {
                self.allow(from, ["GetDownloadUrlForLayer"]);
                self.allow(ANY, ["GetAccountSetting"]);
            }
        }
    }
}

fn creating(create: &Create) -> Actions {
    let template = match create {
        Create::Never => return Actions::new(),
        Create::Clone => return CREATE.into_iter().chain(FURNISH).collect(),
        Create::Template(template) => template,
    };
    let furnish = FURNISH
        .into_iter()
        .zip([template.lifecycle.is_some(), template.policy.is_some()]);
    let furnish = furnish
        .filter(|(_, needed)| *needed)
        .map(|(action, _)| action);
    CREATE
        .into_iter()
        .chain(furnish)
        .chain((!template.tags.is_empty()).then_some(TAG))
        .collect()
}

impl Iam {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let config = arguments.config()?;
        let policies = policies(&config);
        if policies.is_empty() {
            return Err(Failure::said(
                5,
                "the config has no private ECR registry and no queue: there is nothing to allow",
            ));
        }
        lines.json(&policies);
        Ok(0)
    }
}

fn policies(config: &Config) -> BTreeMap<String, Value> {
    let queues = config.queues.iter();
    let of_queues = queues.map(|queue| (queue::key(queue), queue::policies(queue)));
    uses(config)
        .iter()
        .filter_map(|(name, used)| Some((String::clone(name), policy(login(config, name)?, used))))
        .chain(of_queues)
        .collect()
}

/// What is done in each registry of the config that is ECR's.
fn uses(config: &Config) -> BTreeMap<String, Use> {
    let mut uses: BTreeMap<String, Use> = BTreeMap::new();
    for route in &config.routes {
        let source = uses.entry(route.from.registry().to_string()).or_default();
        let from = route.from.repository().replace("**", "*");
        if route.gates.is_scanned_at(ScanSide::Source) {
            source.allow(&from, [SCAN]);
        }
        source.read(from, matches!(route.create, Create::Clone));
        for to in &route.to {
            let destination = uses.entry(to.registry().to_string()).or_default();
            let to = any_capture(to.repository());
            if route.gates.is_scanned_at(ScanSide::Destination) {
                destination.allow(&to, [SCAN]);
            }
            destination.write(to, &route.create);
        }
    }
    // One account and region may stand under several names in the config.
    let mut known: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (name, used) in &uses {
        let Some(login) = login(config, name) else {
            continue;
        };
        known
            .entry(login.host())
            .or_default()
            .extend(used.reads.union(&used.writes).cloned());
    }
    for (name, used) in &mut uses {
        if let Some(known) = login(config, name).and_then(|login| known.get(login.host())) {
            used.mount(known);
        }
    }
    uses
}

fn login<'a>(config: &'a Config, name: &str) -> Option<&'a ecr::Login> {
    match &config.registries.get(name)?.kind {
        RegistryKind::Remote(settings) => {
            ecr::Login::of(&settings.credentials).filter(|login| !login.is_public())
        }
        RegistryKind::Layout(_) => None,
    }
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

/// One statement for all repositories with the same rights.
fn policy(login: &ecr::Login, used: &Use) -> Value {
    let mut statements = Vec::new();
    let mut groups: BTreeMap<&Actions, Vec<&str>> = BTreeMap::new();
    for (repositories, actions) in used
        .rights
        .iter()
        .filter(|(repositories, _)| *repositories != ANY)
    {
        groups.entry(actions).or_default().push(repositories);
    }
    let own = used
        .rights
        .get(ANY)
        .into_iter()
        .flatten()
        .copied()
        .chain(["GetAuthorizationToken"])
        .collect();
    statements.push(statement("Registry", &own, json!(ANY)));
    let in_registry = statements.len();
    for (number, (actions, repositories)) in groups.into_iter().enumerate() {
        let arns: Vec<String> = repositories
            .iter()
            .map(|repositories| arn(login, repositories))
            .collect();
        let what = if actions.contains("PutImage") {
            "Write"
        } else {
            "Read"
        };
        statements.push(statement(
            &format!("{what}{}", number + 1),
            actions,
            json!(arns),
        ));
    }
    let across: Vec<Value> = statements[in_registry..]
        .iter()
        .map(|statement| shared(login, statement))
        .collect();
    for key in &used.keys {
        statements.push(json!({
            "Sid": "Encrypt",
            "Effect": "Allow",
            "Action": KEY,
            "Resource": key,
        }));
    }
    let mut policies = json!({
        "identity_policy": {"Version": "2012-10-17", "Statement": statements},
        "repository_policy": {"Version": "2012-10-17", "Statement": across},
    });
    if let Some(role) = login.role() {
        policies["assuming_policy"] = assuming(role);
    }
    policies
}

/// For the identity that assumes a role.
fn assuming(role: &str) -> Value {
    let assume = json!({
        "Sid": "Assume",
        "Effect": "Allow",
        "Action": ["sts:AssumeRole"],
        "Resource": role,
    });
    json!({"Version": "2012-10-17", "Statement": [assume]})
}

/// The same rights, given by the repository to an identity of another account.
fn shared(login: &ecr::Login, statement: &Value) -> Value {
    let who = login.identity().unwrap_or("arn:aws:iam::ACCOUNT:role/ROLE");
    let actions: Vec<&Value> = statement["Action"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|action| !OWN.iter().any(|own| **action == format!("ecr:{own}")))
        .collect();
    json!({
        "Sid": statement["Sid"],
        "Effect": "Allow",
        "Principal": {"AWS": who},
        "Action": actions,
    })
}

fn statement(sid: &str, actions: &Actions, resource: Value) -> Value {
    let actions: Vec<String> = actions
        .iter()
        .map(|action| format!("ecr:{action}"))
        .collect();
    json!({
        "Sid": sid,
        "Effect": "Allow",
        "Action": actions,
        "Resource": resource,
    })
}

fn arn(login: &ecr::Login, repository: &str) -> String {
    let region = login.region().unwrap_or("*");
    format!(
        "arn:{}:ecr:{region}:{}:repository/{repository}",
        ecr::host::partition(region),
        login.account().unwrap_or("*")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_become_wildcards() {
        for (template, pattern) in [
            ("prod-{1}", "prod-*"),
            ("a/{1}/b{2}", "a/*/b*"),
            ("app", "app"),
        ] {
            assert_eq!(any_capture(template), pattern);
        }
    }

    #[test]
    fn resources_are_named_in_their_partition() {
        let arn = |host: &str| arn(&ecr::Login::new(ecr::Settings::default(), host), "app");
        assert_eq!(
            arn("123456789012.dkr.ecr.eu-west-1.amazonaws.com"),
            "arn:aws:ecr:eu-west-1:123456789012:repository/app"
        );
        assert_eq!(
            arn("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"),
            "arn:aws-cn:ecr:cn-north-1:123456789012:repository/app"
        );
        assert_eq!(
            arn("123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov"),
            "arn:aws-iso:ecr:us-iso-east-1:123456789012:repository/app"
        );
        assert_eq!(arn("127.0.0.1:5000"), "arn:aws:ecr:*:*:repository/app");
    }

    #[test]
    fn the_settings_name_region_account_role_and_key_where_the_host_does_not() {
        let settings = ecr::Settings {
            region: Some("us-gov-west-1".into()),
            account: Some("210987654321".into()),
            role_arn: Some("arn:aws-us-gov:iam::210987654321:role/promoter".into()),
            ..ecr::Settings::default()
        };
        let login = ecr::Login::new(settings, "registry.example:443");
        let mut used = Use::default();
        let template = ecr::Template {
            kms_key: Some("arn:aws-us-gov:kms:us-gov-west-1:210987654321:key/k".into()),
            ..Default::default()
        };
        used.write("app".into(), &Create::Template(template.into()));
        let policies = policy(&login, &used);
        let statements = policies["identity_policy"]["Statement"].as_array().unwrap();
        let resources: Vec<&Value> = statements
            .iter()
            .map(|statement| &statement["Resource"])
            .collect();
        assert_eq!(
            resources[1],
            &json!(["arn:aws-us-gov:ecr:us-gov-west-1:210987654321:repository/app"])
        );
        assert_eq!(
            resources[2],
            &json!("arn:aws-us-gov:kms:us-gov-west-1:210987654321:key/k")
        );
        assert_eq!(
            policies["repository_policy"]["Statement"]
                .as_array()
                .unwrap()
                .len(),
            1,
            "KMS is no matter of the repository"
        );
        let assume = &policies["assuming_policy"]["Statement"][0];
        assert_eq!(
            (&assume["Action"][0], &assume["Resource"]),
            (
                &json!("sts:AssumeRole"),
                &json!("arn:aws-us-gov:iam::210987654321:role/promoter")
            )
        );
    }
}
