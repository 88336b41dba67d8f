//! What one ECR registry's client has learnt: missing permissions, archived images, mounts,
//! existing repositories, and the caller.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, oneshot};
use tokio::time::Instant;

use super::control::{Answer, Control, Images};
use super::host;
use super::unfinished::Unfinished;
use crate::endpoint::Presence;
use crate::fault::{Class, Fault};
use crate::oci::{Digest, RepositoryName};
use crate::single_flight::SingleFlight;

/// How long a missing permission is not asked about again.
const REST: Duration = Duration::from_secs(15 * 60);

/// How long a repository that AWS refused to create is not asked for again: about as long as a look
/// takes.
const REFUSED: Duration = Duration::from_secs(30);
/// How long an error message waits for the caller's name.
const SOON: Duration = Duration::from_secs(5);
/// Archived images that are remembered.
const MOST_ARCHIVED: usize = 100_000;
/// How long the word of a listing that an image is archived is not doubted.
const ARCHIVED: Duration = Duration::from_secs(3600);
/// Manifests that are remembered as pushed.
const MOST_PUSHED: usize = 10_000;

pub(super) struct Shared {
    pub(super) control: Control,
    pub(super) admitted: OnceCell<()>,
    pub(super) known: Mutex<LearnedState>,
    pub(super) mounts: SingleFlight<Option<bool>>,
    /// Held while a repository is created: concurrent writers share one request.
    pub(super) creating: tokio::sync::Mutex<()>,
    /// Repositories that we created and that lack what belongs to them beside their own
    /// settings.
    pub(super) unfinished: Arc<dyn Unfinished>,
}

/// What has been learnt.
#[derive(Default)]
pub(super) struct LearnedState {
    /// Actions that we may not use, and since when.
    pub(super) denied: HashMap<&'static str, Instant>,
    /// Images that cannot be read until they are restored, and when a listing said so.
    pub(super) archived: HashMap<(RepositoryName, Digest), Instant>,
    /// Manifests that are there under these digests, as far as anybody has seen: nothing is
    /// converted into them.
    pub(super) pushed: HashSet<(RepositoryName, Digest)>,
    /// Whether mounts work, and since when that is known.
    pub(super) mounts: Option<(bool, Instant)>,
    /// The caller's ARN, and when it was read.
    pub(super) caller: Option<(String, Instant)>,
    /// Whether it was said that they do not.
    pub(super) hinted: bool,
    /// Repositories that are there, with the time of their creation where we created them.
    pub(super) there: HashMap<RepositoryName, Option<Instant>>,
    /// Repositories that AWS refused to create, why, and since when.
    pub(super) uncreatable: HashMap<RepositoryName, (String, Instant)>,
    /// Pending queries for blobs, by repository.
    pub(super) asked: HashMap<RepositoryName, Vec<LayerQuery>>,
}

impl LearnedState {
    /// Records which images a listing shows as archived or as restored.
    pub(super) fn note_archived(&mut self, repository: &RepositoryName, images: &Images) {
        for tag in &images.page.entries {
            let Some(digest) = tag.digest else { continue };
            let image = (repository.clone(), digest);
            if !images.archived.contains(&digest) {
                self.archived.remove(&image);
            } else if self.archived.len() < MOST_ARCHIVED {
                self.archived.insert(image, Instant::now());
            }
        }
    }

    /// Whether a listing has said so lately.
    pub(super) fn is_archived(&self, repository: &RepositoryName, digest: &Digest) -> bool {
        self.archived
            .get(&(repository.clone(), *digest))
            .is_some_and(|since| since.elapsed() < ARCHIVED)
    }
}

pub(super) type LayerQuery = (Digest, oneshot::Sender<Result<Presence, BatchError>>);

/// The question was not answered here.
pub(super) enum BatchError {
    /// Ask the registry.
    AskRegistry,
    /// AWS said something that is worth telling.
    Failed(Class, String),
}

impl Shared {
    /// Nothing is known yet.
    pub(super) fn new(control: Control, unfinished: Arc<dyn Unfinished>) -> Shared {
        Shared {
            control,
            admitted: OnceCell::new(),
            known: Mutex::default(),
            mounts: SingleFlight::new(),
            creating: Default::default(),
            unfinished,
        }
    }

    pub(super) fn known(&self) -> MutexGuard<'_, LearnedState> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why AWS refused to create a repository a short while ago: every tag of a look would be told
    /// the same.
    pub(super) fn refused_creation(&self, name: &RepositoryName) -> Option<String> {
        let known = self.known();
        let (text, since) = known.uncreatable.get(name)?;
        (since.elapsed() < REFUSED).then(|| text.clone())
    }

    /// Notes that AWS refused to create a repository.
    pub(super) fn note_refused_creation(&self, name: &RepositoryName, fault: &Fault) {
        self.known()
            .uncreatable
            .insert(name.clone(), (fault.chain(), Instant::now()));
    }

    /// Whether the repository is known to be there.
    pub(super) fn is_there(&self, name: &RepositoryName) -> bool {
        self.known().there.contains_key(name)
    }

    /// Notes that a manifest is there under its digest.
    pub(super) fn note_pushed(&self, repository: &RepositoryName, digest: &Digest) {
        let pushed = &mut self.known().pushed;
        if pushed.len() >= MOST_PUSHED {
            pushed.clear();
        }
        pushed.insert((repository.clone(), *digest));
    }

    pub(super) fn may(&self, action: &'static str) -> bool {
        self.known()
            .denied
            .get(action)
            .is_none_or(|since| since.elapsed() >= REST)
    }

    /// Notes that an action is not ours; says so the first time.
    pub(super) fn deny(&self, action: &'static str, fault: &Fault, instead: &str) {
        let first = self.known().denied.insert(action, Instant::now()).is_none();
        if first {
            tracing::warn!(
                action,
                registry = self.control.registry(),
                error = %fault.chain(),
                instead,
                "a permission of the control plane is missing"
            );
        }
    }

    /// Notes that an action that was not ours is again; says so.
    pub(super) fn allow(&self, action: &'static str) {
        if self.known().denied.remove(action).is_some() {
            tracing::info!(
                action,
                registry = self.control.registry(),
                "a permission of the control plane is there again"
            );
        }
    }

    /// Checks that the caller is the principal that the config requires, before any write.
    pub(super) async fn check_identity(&self) -> Result<(), Fault> {
        if self.control.login().required_identity().is_none() {
            return Ok(());
        }
        let admitted = self.admitted.get_or_try_init(|| async {
            let (arn, _) = self.control.login().caller().await?;
            self.check_caller(&arn)
        });
        admitted.await.map(drop)
    }

    /// The caller for messages: from GetCallerIdentity, else from the config.
    pub(super) async fn principal(&self) -> Option<String> {
        const ACTION: &str = "GetCallerIdentity";
        let login = self.control.login();
        if let Some((caller, since)) = self.known().caller.clone()
            && since.elapsed() < REST
        {
            return Some(caller);
        }
        if self.may(ACTION) {
            if let Ok(Ok((caller, _))) = tokio::time::timeout(SOON, login.caller()).await {
                self.known().caller = Some((caller.clone(), Instant::now()));
                return Some(caller);
            }
            self.known().denied.insert(ACTION, Instant::now());
        }
        login.identity().map(str::to_owned)
    }

    /// Adds the caller, the action and the resource to a refusal of the registry that lacks them.
    pub(super) async fn explain_refusal(
        &self,
        action: &str,
        repository: &RepositoryName,
        fault: Fault,
    ) -> Fault {
        const TELLING: [&str; 3] = ["authorized to perform", "ecr:GetAuthorizationToken", "sts:"];
        let said = fault.chain();
        let login = self.control.login();
        if TELLING.iter().any(|words| said.contains(words)) {
            return fault;
        }
        let Ok((_, region)) = login.plane().await else {
            return fault;
        };
        let who = self.principal().await;
        let account = login
            .account()
            .or(who.as_deref().and_then(|who| who.split(':').nth(4)))
            .unwrap_or("*");
        let resource = format!(
            "arn:{}:ecr:{region}:{account}:repository/{repository}",
            host::partition(&region)
        );
        let who = who.unwrap_or_else(|| "nobody that AWS knows".into());
        let token = format!("our token is one of {region}, and opens no other region's registry");
        Fault::new(
            Class::Auth,
            format!("ecr:{action} as {who} on {resource}: {fault}; {token}"),
        )
        .because(fault)
    }

    pub(super) fn check_caller(&self, arn: &str) -> Result<(), Fault> {
        match self.control.login().required_identity() {
            Some(required_identity) if !is_same_principal(required_identity, arn) => {
                let host = self.control.login().host();
                let text = format!(
                    "we are {arn} at {host}, but `identity` demands {required_identity}: nothing is written there; mend the credentials, role_arn or identity"
                );
                Err(Fault::new(Class::Auth, text))
            }
            _ => Ok(()),
        }
    }

    /// Whether the registry belongs to the caller's account, as far as that can be known: settings
    /// of the caller's account say nothing about another one's registry.
    pub(super) async fn is_ours(&self) -> bool {
        let Some(owner) = self.control.login().account() else {
            return true;
        };
        let caller = self.principal().await;
        caller
            .as_deref()
            .and_then(|arn| arn.split(':').nth(4))
            .is_none_or(|account| account == owner)
    }

    /// Whether blob mounting is enabled, from GetAccountSetting. `None`: unknown.
    pub(super) async fn mounting_enabled(self: &Arc<Self>) -> Option<bool> {
        const ACTION: &str = "GetAccountSetting";
        if let Some((mounts, since)) = self.known().mounts
            && since.elapsed() < REST
        {
            return Some(mounts);
        }
        if !self.may(ACTION) {
            return None;
        }
        if !self.is_ours().await {
            return None;
        }
        let shared = Arc::clone(self);
        self.mounts
            .join(|| async move {
                match shared.control.mounts_blobs().await {
                    Ok(Answer::Given(mounts)) => {
                        shared.known().mounts = Some((mounts, Instant::now()));
                        Ok(Some(mounts))
                    }
                    Ok(Answer::Denied(_)) | Err(_) => {
                        // Mounts are tried all the same: not knowing costs nothing.
                        shared.known().denied.insert(ACTION, Instant::now());
                        Ok(None)
                    }
                }
            })
            .await
            .ok()
            .flatten()
    }
}

/// Whether a caller's ARN is the principal that a config names: a role's session is its role.
fn is_same_principal(named: &str, caller: &str) -> bool {
    named == caller || role(named).is_some_and(|named| role(caller) == Some(named))
}

/// The account and the name of the role that an ARN names.
fn role(arn: &str) -> Option<(&str, &str)> {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let [_, _, service, _, account, resource] = parts[..] else {
        return None;
    };
    let name = match service {
        "sts" => resource.strip_prefix("assumed-role/")?.split('/').next()?,
        "iam" => resource.strip_prefix("role/")?.rsplit('/').next()?,
        _ => return None,
    };
    Some((account, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{Page, Tag};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_newest_listing_says_what_is_archived(
            listings in proptest::collection::vec(proptest::collection::vec((0u8..6, any::<bool>()), 0..6), 1..6),
        ) {
            let repository: RepositoryName = "app".parse().unwrap();
            let mut known = LearnedState::default();
            let mut expected = std::collections::BTreeMap::new();
            for listing in listings {
                // One image has one state in one listing.
                let listing: std::collections::BTreeMap<u8, bool> = listing.into_iter().collect();
                let digest = |number: u8| Digest::sha256(&[number]);
                let entries = listing.keys().map(|number| Tag {
                    name: format!("v{number}").parse().unwrap(),
                    digest: Some(digest(*number)),
                    pushed: None,
                });
                let page = Page { entries: entries.collect(), invalid: 0, next: None };
                let archived = listing.iter().filter(|(_, archived)| **archived).map(|(number, _)| digest(*number)).collect();
                known.note_archived(&repository, &Images { page, archived });
                expected.extend(listing);
                for (number, archived) in &expected {
                    prop_assert_eq!(known.is_archived(&repository, &digest(*number)), *archived);
                }
                prop_assert!(!known.is_archived(&"other".parse().unwrap(), &digest(0)));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_long_time_the_image_itself_is_asked_again() {
        let (repository, digest): (RepositoryName, _) =
            ("app".parse().unwrap(), Digest::sha256(b"x"));
        let mut known = LearnedState::default();
        known
            .archived
            .insert((repository.clone(), digest), Instant::now());
        assert!(known.is_archived(&repository, &digest));
        tokio::time::advance(ARCHIVED).await;
        assert!(!known.is_archived(&repository, &digest));
    }

    #[test]
    fn the_session_of_a_role_is_that_role() {
        let role = "arn:aws:iam::210987654321:role/ci/promoter";
        let table = [
            (
                role,
                "arn:aws:sts::210987654321:assumed-role/promoter/build-7",
                true,
            ),
            (
                role,
                "arn:aws:sts::123456789012:assumed-role/promoter/build-7",
                false,
            ),
            (
                role,
                "arn:aws:sts::210987654321:assumed-role/other/promoter",
                false,
            ),
            ("arn:aws:iam::1:user/joe", "arn:aws:iam::1:user/joe", true),
            ("arn:aws:iam::1:user/joe", "arn:aws:iam::1:user/jim", false),
            ("", "", true),
        ];
        for (named, caller, same) in table {
            assert_eq!(is_same_principal(named, caller), same, "{named} {caller}");
        }
    }
}
