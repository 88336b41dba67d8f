//! Notifications of the registries: some are dropped, some are doubled, some come late and so out
//! of order. They are worked out from what a deed has changed.

use std::collections::BTreeMap;
use std::time::Duration;

use blobferry::oci::{Digest, RepositoryName, Tag};
use blobferry::watch::receiver::{Notifier, Push};

use super::chance::Draw;
use super::registry::Registry;

/// The longest delay of a notification.
const LATE: Duration = Duration::from_secs(30);

/// What the tags of some repositories name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named(BTreeMap<(String, RepositoryName, Tag), Digest>);

/// A notification on its way.
#[derive(Clone, Debug)]
pub struct Notice {
    pub notifier: Notifier,
    pub push: Push,
    pub delay: Duration,
}

impl Named {
    /// Reads these repositories.
    pub fn of<'a>(places: impl Iterator<Item = (&'a Registry, &'a RepositoryName)>) -> Named {
        let mut named = BTreeMap::new();
        for (registry, repository) in places {
            for tag in registry.tags(repository) {
                if let Some(digest) = registry.tagged(repository, &tag) {
                    let key = (registry.name().to_string(), repository.clone(), tag);
                    named.insert(key, digest);
                }
            }
        }
        Named(named)
    }

    /// The notifications of what names something else now, each as often as `copies` says.
    pub fn notices(&self, before: &Named, copies: &[u64], draw: &mut Draw) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (key, digest) in &self.0 {
            if before.0.get(key) == Some(digest) {
                continue;
            }
            let (registry, repository, tag) = key;
            for _ in 0..draw.pick(copies) {
                let delay = match draw.percent(30) {
                    true => draw.millis(0, LATE.as_millis() as u64),
                    false => Duration::ZERO,
                };
                notices.push(Notice {
                    notifier: Notifier {
                        registry: registry.as_str().into(),
                        ..Notifier::default()
                    },
                    push: Push {
                        repositories: vec![repository.clone()],
                        tags: vec![tag.clone()],
                        pushed: None,
                        pusher: None,
                        aws: None,
                        may_precede: draw.percent(20),
                        is_scan: draw.percent(5),
                    },
                    delay,
                });
            }
        }
        notices
    }
}
