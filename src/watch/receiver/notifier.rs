//! The registry that a sender tells of.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::AwsOrigin;
use crate::oci::RepositoryName;

/// The registry that notifications of one sender are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notifier {
    /// The registry's name in the config.
    pub registry: Arc<str>,
    /// What the start of a repository's name is replaced by: Artifactory names the local repository
    /// where clients use a virtual one.
    pub rewrite: BTreeMap<String, String>,
    /// The registry's AWS account, where it is known.
    pub account: Option<String>,
    /// The registry's AWS region, where it is known.
    pub region: Option<String>,
}

impl Notifier {
    /// Whether the notification is about this registry, as far as both tell their AWS account and
    /// region.
    pub fn speaks_for(&self, aws: Option<&AwsOrigin>) -> bool {
        let agrees =
            |known: &Option<String>, told: &str| known.as_deref().is_none_or(|known| known == told);
        aws.is_none_or(|aws| {
            agrees(&self.account, &aws.account) && agrees(&self.region, &aws.region)
        })
    }

    /// The name under which routes know a repository.
    pub fn rewritten(&self, name: RepositoryName) -> RepositoryName {
        let (first, rest) = match name.as_str().split_once('/') {
            Some((first, rest)) => (first, Some(rest)),
            None => (name.as_str(), None),
        };
        let Some(to) = self.rewrite.get(first) else {
            return name;
        };
        let text = match rest {
            Some(rest) if !to.is_empty() => format!("{to}/{rest}"),
            Some(rest) => rest.to_owned(),
            None => to.clone(),
        };
        text.parse().unwrap_or(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifactory(rewrite: &[(&str, &str)]) -> Notifier {
        let rewrite = rewrite
            .iter()
            .map(|(from, to)| ((*from).to_owned(), (*to).to_owned()));
        Notifier {
            registry: "staging".into(),
            rewrite: rewrite.collect(),
            ..Notifier::default()
        }
    }

    #[test]
    fn rewrite_replaces_the_first_part_of_a_name() {
        let notifier = artifactory(&[("docker-local", "docker"), ("bare", "")]);
        for (told, known) in [
            ("docker-local/team/app", "docker/team/app"),
            ("docker-local", "docker"),
            ("bare/app", "app"),
            ("bare", "bare"),
            ("docker-local-2/app", "docker-local-2/app"),
        ] {
            let rewritten = notifier.rewritten(told.parse().unwrap());
            assert_eq!(rewritten.as_str(), known, "{told}");
        }
    }

    #[test]
    fn account_and_region_are_compared_where_both_are_known() {
        let told = AwsOrigin {
            account: "123456789012".into(),
            region: "eu-west-1".into(),
        };
        let known = |account: Option<&str>, region: Option<&str>| Notifier {
            account: account.map(Into::into),
            region: region.map(Into::into),
            ..Notifier::default()
        };
        for (account, region, expected) in [
            (Some("123456789012"), Some("eu-west-1"), true),
            (Some("123456789012"), None, true),
            (None, Some("eu-west-1"), true),
            (Some("210987654321"), Some("eu-west-1"), false),
            (Some("123456789012"), Some("us-east-1"), false),
        ] {
            let notifier = known(account, region);
            assert_eq!(notifier.speaks_for(Some(&told)), expected, "{notifier:?}");
            assert!(notifier.speaks_for(None), "the event says nothing");
        }
    }
}
