//! A repository that was created by a process that did not live to set it up.

use serde_json::json;

use crate::ecr::{one_account, with_identity};
use crate::kill::killed_at;
use crate::support::ecr::HOME;
use crate::support::*;

const POLICY: &str = "{\"Statement\": [2]}";
const LIFECYCLE: &str = "{\"rules\": [1]}";

/// Killed between creating the repository and each of the two calls that set it up, the daemon sets
/// it up at its next start, and then promotes.
#[tokio::test]
async fn a_kill_between_creating_a_repository_and_setting_it_up_leaves_nothing_undone() {
    for action in ["PutLifecyclePolicy", "SetRepositoryPolicy"] {
        let ecr = Ecr::start(HOME).await;
        ecr.create("staging-demo-app");
        let image = Image::oci(1, &[500]);
        ecr.client().push("staging-demo-app", "v1", &image).await;
        let ferry = with_identity(Ferry::bare(), &ecr);
        ferry.file("lifecycle.json", LIFECYCLE);
        ferry.file("policy.json", POLICY);
        let template = json!({"except": ["latest"], "lifecycle_policy_file": "lifecycle.json", "policy_file": "policy.json"});
        ferry.write_config(&one_account(
            &ecr,
            json!({"to": "production/made", "create": "template", "template": template}),
        ));
        let gate = Gate::closed();
        ecr.ways(|ways| ways.holds = Some((action, gate.clone())));
        killed_at(&ferry, &gate).await;
        ecr.ways(|ways| ways.holds = None);
        let half = ecr.settings("made").expect("it was created");
        assert_eq!(half["policy"], json!(null), "{action}");
        assert_eq!(ecr.count("PutImage"), 0, "{action}");

        let mut daemon = ferry.start_ready().await;
        let whole = ecr.settings("made").expect("it is there");
        assert_eq!(
            (whole["lifecycle"].as_str(), whole["policy"].as_str()),
            (Some(LIFECYCLE), Some(POLICY)),
            "{action}"
        );
        assert_eq!(ecr.count("CreateRepository"), 1, "{action}");
        ecr.client().assert_holds("made", "v1", &image).await;
        daemon.signal("TERM").await;
        assert_eq!(daemon.ended().await, 0);
    }
}
