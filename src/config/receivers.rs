//! `receivers`: which registries may notify us, and how their notifications are authenticated.

use std::collections::BTreeMap;

use super::keys::{keys, word_schema};
use super::problem::complaint;
use super::registries::{self, Registry, RegistryKind, is_name};
use super::section::{Item, optional};
use super::shapes::Number;
use crate::ecr;
use crate::glob::Glob;
use crate::oci::RepositoryName;
use crate::oidc::{self, Issuer, Verifier};
use crate::watch::receiver::secret::Secrets;
use crate::watch::receiver::settings::{Authentication, Settings};
use crate::watch::receiver::{Kind, Notifier};

/// Deliveries in a second that a receiver may be limited to at most.
const HIGHEST_LIMIT: u32 = 100_000;

keys! {
    Receiver, ReceiverKeys {
        /// What sends.
        kind: Kind = "say what sends: distribution, harbor, ecr, …",
        /// Notifications in a second, 1 to 100000. Default: 2000.
        limit: Option<Number>,
        ..notifier: Sender, SenderKeys,
        ..authentication: Authenticated, AuthenticationKeys,
    }
}

keys! {
    Sender, SenderKeys {
        /// The registry that notifications are about.
        registry: String = "name the registry that notifications are about",
        /// Replaces the first part of a repository's name: `{docker-local: docker}`.
        rewrite: Option<BTreeMap<String, String>>,
    }
}

keys! {
    Authenticated, AuthenticationKeys {
        /// File with the secret of the sender; with two lines, both are valid.
        secret_file: Option<String>,
        /// Instead of a secret: tokens of an identity provider in `Authorization`.
        oidc: Option<Oidc>,
        /// Whether every client that reaches the listener may send. Default: false.
        unauthenticated: Option<bool>,
    }
}

/// Why an identity provider alone is not enough.
const CLAIMS_ARE_NEEDED: &str =
    "at least one: every account of a public issuer gets tokens for every audience";

keys! {
    Oidc, OidcKeys {
        /// The URL of the identity provider, as its tokens name it.
        issuer: String = "the URL of the identity provider",
        /// What the tokens are for.
        audience: String = "what the tokens are for",
        /// Claims that a token must have; `*` stands for any characters but `/`, `**` for any.
        claims: BTreeMap<String, String> = CLAIMS_ARE_NEEDED,
    }
}

word_schema!(Kind, "ReceiverKind", Kind::ALL.map(Kind::name));

pub(super) fn read(item: Option<Item<'_>>, registries: &registries::Read) -> Option<Vec<Settings>> {
    let Some(item) = item else {
        return Some(Vec::new());
    };
    let section = item.section()?;
    let mut receivers = Vec::new();
    for (name, item) in section.entries() {
        if !is_name(name) {
            section.wrong_key(name, "is not a name for a receiver (1 to 64 letters, digits, _ . -, starting with a letter or digit)");
        }
        receivers.push(receiver(name, &item, registries));
    }
    receivers.into_iter().collect()
}

fn receiver(name: &str, item: &Item<'_>, registries: &registries::Read) -> Option<Settings> {
    let keys: ReceiverKeys<'_> = item.keys()?;
    let kinds = Kind::ALL.map(|kind| (kind.name(), kind));
    let kind = keys.kind.and_then(|item| item.one_of(kinds));
    let notifier = notifier(keys.notifier, registries);
    let limit = optional(&keys.limit, |item| item.parse(limit));
    let authentication = authentication(&keys.authentication, item);
    Some(Settings {
        name: name.into(),
        kind: kind?,
        notifier: notifier?,
        authentication: authentication?,
        limit: limit?.unwrap_or(Settings::LIMIT),
    })
}

/// The registry that the keys `registry` and `rewrite` describe.
fn notifier(keys: SenderKeys<'_>, registries: &registries::Read) -> Option<Notifier> {
    let registry = keys.registry.and_then(|item| {
        let name = item.word()?;
        registries.check_name(&item, &name).then_some(name)
    });
    let rewrite = optional(&keys.rewrite, rewrite);
    let registry = registry?;
    Some(Notifier {
        rewrite: rewrite?.unwrap_or_default(),
        ..notifier_for(&registry, registries)
    })
}

/// A notifier that calls repositories as the registry does.
pub(super) fn notifier_for(registry: &str, registries: &registries::Read) -> Notifier {
    let origin = registries.registries.get(registry).and_then(aws_origin);
    let (account, region) = origin.unwrap_or_default();
    Notifier {
        registry: registry.into(),
        rewrite: BTreeMap::new(),
        account,
        region,
    }
}

/// The AWS account and region of a registry, as far as its host or its keys tell.
fn aws_origin(registry: &Registry) -> Option<(Option<String>, Option<String>)> {
    let RegistryKind::Remote(settings) = &registry.kind else {
        return None;
    };
    let login = ecr::Login::of(&settings.credentials)?;
    let account = login.account().map(str::to_owned);
    let region = login.region().map(str::to_owned);
    Some((account, region))
}

fn rewrite(item: &Item<'_>) -> Option<BTreeMap<String, String>> {
    let section = item.section()?;
    let mut rewrite = BTreeMap::new();
    for (from, item) in section.entries() {
        if from.contains('/') || from.parse::<RepositoryName>().is_err() {
            section.wrong_key(from, "is not the first part of a repository's name");
        }
        let to = item.parse(|text| match text {
            "" => Ok(String::new()),
            text => text
                .parse::<RepositoryName>()
                .map(|name| name.to_string())
                .map_err(|error| error.to_string()),
        })?;
        rewrite.insert(from.to_owned(), to);
    }
    Some(rewrite)
}

fn limit(text: &str) -> Result<u32, String> {
    text.parse::<u32>()
        .ok()
        .filter(|limit| (1..=HIGHEST_LIMIT).contains(limit))
        .ok_or_else(|| {
            complaint(
                text,
                &format!("is not a number of notifications in a second (1 to {HIGHEST_LIMIT})"),
            )
        })
}

/// Exactly one way: a receiver without a secret is one on purpose.
fn authentication(keys: &AuthenticationKeys<'_>, item: &Item<'_>) -> Option<Authentication> {
    let secrets = optional(&keys.secret_file, secrets);
    let verifier = optional(&keys.oidc, oidc);
    let is_open = optional(&keys.unauthenticated, Item::truth).map(Option::unwrap_or_default);
    let ways: Vec<(&Option<Item<'_>>, Authentication)> = [
        secrets?.map(|secrets| (&keys.secret_file, Authentication::Secrets(secrets))),
        verifier?.map(|verifier| (&keys.oidc, Authentication::Oidc(verifier))),
        is_open?.then_some((&keys.unauthenticated, Authentication::Nothing)),
    ]
    .into_iter()
    .flatten()
    .collect();
    match &ways[..] {
        [(_, only)] => Some(only.clone()),
        [] => {
            let text = "is missing: without it anyone may ask for looks (or say oidc, or unauthenticated: true)";
            item.missing("secret_file", text);
            None
        }
        [_, (second, _), ..] => {
            let text = "is a second way: keep one of secret_file, oidc and unauthenticated";
            second.as_ref()?.wrong(text);
            None
        }
    }
}

/// `oidc: {issuer, audience, claims}`.
pub(super) fn oidc(item: &Item<'_>) -> Option<Verifier> {
    let keys: OidcKeys<'_> = item.keys()?;
    let issuer = keys.issuer.and_then(|item| item.parse(Issuer::parse));
    let audience = keys.audience.and_then(|item| item.word());
    let claims = keys.claims.and_then(|item| claims(&item));
    Some(Verifier::new(oidc::Settings {
        issuer: issuer?,
        audience: audience?,
        claims: claims?,
    }))
}

fn claims(item: &Item<'_>) -> Option<BTreeMap<String, Glob>> {
    let section = item.section()?;
    let mut claims = BTreeMap::new();
    for (name, item) in section.entries() {
        claims.insert(name.to_owned(), item.parse(str::parse)?);
    }
    if claims.is_empty() {
        item.wrong(format!("is empty: {CLAIMS_ARE_NEEDED}"));
        return None;
    }
    Some(claims)
}

fn secrets(item: &Item<'_>) -> Option<Secrets> {
    let content = item.file()?;
    let Ok(text) = str::from_utf8(&content) else {
        item.wrong("the file holds no text");
        return None;
    };
    let holds_controls = text
        .lines()
        .any(|line| line.trim_end_matches('\r').contains(char::is_control));
    if holds_controls {
        item.wrong("the file holds control characters");
        return None;
    }
    Secrets::parse(text)
        .map_err(|error| item.wrong(error.to_string()))
        .ok()
}
