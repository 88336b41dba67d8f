//! `queues`: queues of push events, read with the credentials of AWS.

use super::aws::{CredentialsKeys, CredentialsSection, endpoint, region};
use super::keys::keys;
use super::receivers::notifier_for;
use super::registries::{Read, RegistryKind, is_name};
use super::section::{Item, optional};
use crate::sqs;
use crate::watch::queue_consumer::Settings;

keys! {
    Queue, QueueKeys {
        /// The URL of the queue: `https://sqs.REGION.amazonaws.com/ACCOUNT/NAME`.
        sqs: String = "the URL of the queue",
        /// The registry that its events are about.
        registry: String = "the registry that its events are about",
        /// AWS region, where the URL does not tell it.
        region: Option<String>,
        /// Address of SQS, for emulators and private endpoints. Default: the host of the URL.
        endpoint: Option<String>,
        ..credentials: CredentialsSection, CredentialsKeys,
    }
}

/// `None` after a complaint.
pub(super) fn read(item: Option<Item<'_>>, registries: &Read) -> Option<Vec<Settings>> {
    let Some(item) = item else {
        return Some(Vec::new());
    };
    let section = item.section()?;
    let mut queues: Vec<Settings> = Vec::new();
    let mut is_right = true;
    for (name, item) in section.entries() {
        if !is_name(name) {
            let text = "is not a name for a queue (1 to 64 letters, digits, _ . -, starting with a letter or digit)";
            section.wrong_key(name, text);
            is_right = false;
        }
        match queue(name, &item, registries) {
            Some(queue) => {
                is_right &= is_alone(&queue, &item, &queues);
                queues.push(queue);
            }
            None => is_right = false,
        }
    }
    is_right.then_some(queues)
}

/// Whether no other entry reads the queue: each would take messages of the other.
fn is_alone(queue: &Settings, item: &Item<'_>, others: &[Settings]) -> bool {
    let address = &queue.queue.address;
    let same = others.iter().find(|other| other.queue.address == *address);
    if let Some(other) = same {
        item.missing(
            "sqs",
            format!("is the URL of the queue {}, too", other.name),
        );
    }
    same.is_none()
}

fn queue(name: &str, item: &Item<'_>, registries: &Read) -> Option<Settings> {
    let keys: QueueKeys<'_> = item.keys()?;
    let identity = keys.credentials.read(item);
    let address: Option<sqs::Address> = keys.sqs.and_then(|item| item.parse(str::parse));
    let registry = keys
        .registry
        .and_then(|item| sending_registry(&item, registries));
    let region = optional(&keys.region, |item| item.parse(region));
    let endpoint = optional(&keys.endpoint, |item| item.parse(endpoint));
    let address = address?;
    let region = region?;
    if region.is_none() && address.region().is_none() {
        item.missing("region", "is missing: the URL does not tell it");
        return None;
    }
    Some(Settings {
        name: name.into(),
        notifier: notifier_for(&registry?, registries),
        queue: sqs::Settings {
            address,
            region,
            endpoint: endpoint?,
            identity: identity?,
        },
    })
}

fn sending_registry(item: &Item<'_>, registries: &Read) -> Option<String> {
    let name = item.word()?;
    if !registries.check_name(item, &name) {
        return None;
    }
    let registry = registries.registries.get(&name);
    if registry.is_some_and(|registry| matches!(registry.kind, RegistryKind::Layout(_))) {
        item.wrong("is a folder of layouts, which sends no events");
        return None;
    }
    Some(name)
}
