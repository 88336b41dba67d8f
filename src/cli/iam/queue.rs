//! What AWS must allow the consumer of a queue.

use serde_json::{Value, json};

use crate::ecr::host::partition;
use crate::sqs::ACTIONS;
use crate::watch::queue_consumer::Settings;

/// The key of a queue's policies; no registry can have it.
pub(super) fn key(queue: &Settings) -> String {
    format!("queue:{}", queue.name)
}

/// The policy for the identity that reads the queue, and the statement for the queue's own policy
/// where that identity belongs to another account.
pub(super) fn policies(settings: &Settings) -> Value {
    let queue = &settings.queue;
    let region = queue.region().unwrap_or("*");
    let account = queue.address.account().unwrap_or("*");
    let name = queue.address.name();
    let arn = format!("arn:{}:sqs:{region}:{account}:{name}", partition(region));
    let actions: Vec<String> = ACTIONS
        .iter()
        .map(|action| format!("sqs:{action}"))
        .collect();
    let role = queue.identity.role_arn.as_deref();
    let principal = role.unwrap_or("arn:aws:iam::ACCOUNT:role/ROLE");
    let own = json!({
        "Sid": "Queue",
        "Effect": "Allow",
        "Action": actions,
        "Resource": arn,
    });
    let across = json!({
        "Sid": "Consumer",
        "Effect": "Allow",
        "Principal": {"AWS": principal},
        "Action": actions,
        "Resource": arn,
    });
    let mut policies = json!({
        "identity_policy": {"Version": "2012-10-17", "Statement": [own]},
        "queue_policy": {"Version": "2012-10-17", "Statement": [across]},
    });
    if let Some(role) = role {
        policies["assuming_policy"] = super::assuming(role);
    }
    policies
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::Identity;
    use crate::sqs;
    use crate::watch::receiver::Notifier;

    fn settings(url: &str, role: Option<&str>) -> Settings {
        Settings {
            name: "pushes".into(),
            notifier: Notifier::default(),
            queue: sqs::Settings {
                address: url.parse().unwrap(),
                region: None,
                endpoint: None,
                identity: Identity {
                    role_arn: role.map(str::to_owned),
                    ..Identity::default()
                },
            },
        }
    }

    #[test]
    fn a_queue_is_named_in_its_partition() {
        let url = "https://sqs.us-gov-west-1.amazonaws.com/123456789012/pushes";
        let policies = policies(&settings(url, None));
        let statement = &policies["identity_policy"]["Statement"][0];
        let arn = "arn:aws-us-gov:sqs:us-gov-west-1:123456789012:pushes";
        assert_eq!(statement["Resource"], arn);
        let actions = [
            "sqs:ChangeMessageVisibility",
            "sqs:DeleteMessage",
            "sqs:GetQueueAttributes",
            "sqs:ReceiveMessage",
        ];
        assert_eq!(statement["Action"], json!(actions));
        assert!(policies.get("assuming_policy").is_none());
    }

    #[test]
    fn a_role_is_assumed_and_let_in_by_the_queue() {
        let role = "arn:aws:iam::210987654321:role/reader";
        let url = "https://sqs.eu-west-1.amazonaws.com/123456789012/pushes";
        let policies = policies(&settings(url, Some(role)));
        let across = &policies["queue_policy"]["Statement"][0];
        assert_eq!(across["Principal"]["AWS"], role);
        let assume = &policies["assuming_policy"]["Statement"][0];
        assert_eq!(assume["Resource"], role);
    }
}
