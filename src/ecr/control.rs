//! The control plane of one ECR registry: one function for one action of the API, in our words.
//!
//! Calls are counted like requests, under the action's name. The SDK's retries are off: the caller
//! retries. Normal results are values; a missing permission is [`Denied`](Answer::Denied), because
//! the registry protocol can replace the call.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ecr::operation::describe_images::DescribeImagesOutput;
use aws_sdk_ecr::primitives::DateTime;
use aws_sdk_ecr::types::{
    DescribeImagesFilter, ImageDetail, ImageIdentifier, ImageStatus, ImageStatusFilter,
    ImageTagMutability, Layer, LayerAvailability, Repository, TagStatus,
};
use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::time::Instant;

use super::login::Login;
use crate::aws::Refusal;
use crate::endpoint::{Cursor, ListedManifest, Page, Presence, Tag, Tally};
use crate::fault::Fault;
use crate::oci::{self, Digest, RepositoryName};
use crate::registry::Metrics;

/// Entries of a page: the most that ECR gives.
pub(super) const PAGE: i32 = 1000;
/// Blobs that one call may ask about.
pub(super) const MOST_LAYERS: usize = 100;

/// What came of a call that the registry protocol could replace.
#[derive(Debug)]
pub(super) enum Answer<T> {
    /// The answer.
    Given(T),
    /// The caller may not do this, or this control plane does not know it.
    Denied(Fault),
}

/// A page of tags, and which of them name archived images.
pub(super) struct Images {
    pub(super) page: Page<Tag>,
    pub(super) archived: HashSet<Digest>,
}

/// The control plane, as one registry's client sees it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Control {
    login: Login,
    registry: Arc<str>,
    metrics: Metrics,
}

impl Control {
    pub(super) fn new(login: Login, registry: &str, metrics: &Metrics) -> Control {
        Control {
            login,
            registry: registry.into(),
            metrics: metrics.clone(),
        }
    }

    pub(super) fn login(&self) -> &Login {
        &self.login
    }

    /// The registry's name in the config.
    pub(super) fn registry(&self) -> &str {
        &self.registry
    }

    /// One page of the tags (DescribeImages). `None`: there is no such repository.
    pub(super) async fn images(
        &self,
        repository: &RepositoryName,
        cursor: Option<&str>,
        tally: Option<&Tally>,
    ) -> Result<Answer<Option<Images>>, Fault> {
        let answer = self
            .describe_images(repository, TagStatus::Tagged, cursor, tally)
            .await;
        or_denied(
            answer,
            "RepositoryNotFoundException",
            |answer| Some(images(answer.image_details(), answer.next_token.clone())),
            None,
        )
    }

    /// One page of all images with their subjects (DescribeImages). `None`: there is no such
    /// repository.
    pub(super) async fn manifests(
        &self,
        repository: &RepositoryName,
        cursor: Option<&str>,
        tally: Option<&Tally>,
    ) -> Result<Answer<Option<Page<ListedManifest>>>, Fault> {
        let answer = self
            .describe_images(repository, TagStatus::Any, cursor, tally)
            .await;
        or_denied(
            answer,
            "RepositoryNotFoundException",
            |answer| Some(manifests(answer.image_details(), answer.next_token.clone())),
            None,
        )
    }

    /// One page of the images, archived ones included.
    async fn describe_images(
        &self,
        repository: &RepositoryName,
        tagged: TagStatus,
        cursor: Option<&str>,
        tally: Option<&Tally>,
    ) -> Result<DescribeImagesOutput, Refusal> {
        let filter = DescribeImagesFilter::builder()
            .tag_status(tagged)
            .image_status(ImageStatusFilter::Any)
            .build();
        self.call("DescribeImages", repository.as_str(), tally, |client| {
            let request = client
                .describe_images()
                .repository_name(repository.as_str())
                .set_registry_id(self.account());
            request
                .filter(filter)
                .max_results(PAGE)
                .set_next_token(cursor.map(str::to_owned))
                .send()
        })
        .await
    }

    /// The digest of the manifest that a tag names (DescribeImages). `None`: there is no such tag.
    pub(super) async fn digest_of(
        &self,
        repository: &RepositoryName,
        tag: &oci::Tag,
        tally: Option<&Tally>,
    ) -> Result<Answer<Option<Digest>>, Fault> {
        let image = ImageIdentifier::builder().image_tag(tag.as_str()).build();
        let answer = self
            .call("DescribeImages", repository.as_str(), tally, |client| {
                let request = client
                    .describe_images()
                    .repository_name(repository.as_str())
                    .set_registry_id(self.account());
                request.image_ids(image).send()
            })
            .await;
        or_denied(
            answer,
            "ImageNotFoundException",
            |answer| {
                let image = answer.image_details().first()?;
                image.image_digest()?.parse().ok()
            },
            None,
        )
    }

    /// One page of the repositories (DescribeRepositories).
    pub(super) async fn repositories(
        &self,
        cursor: Option<&str>,
    ) -> Result<Answer<Page<RepositoryName>>, Fault> {
        let answer = self
            .call("DescribeRepositories", self.login.host(), None, |client| {
                let request = client
                    .describe_repositories()
                    .set_registry_id(self.account());
                request
                    .max_results(PAGE)
                    .set_next_token(cursor.map(str::to_owned))
                    .send()
            })
            .await;
        match answer {
            Ok(answer) => {
                let listed = answer.repositories();
                let entries: Vec<RepositoryName> = listed
                    .iter()
                    .filter_map(|repository| repository.repository_name()?.parse().ok())
                    .collect();
                Ok(Answer::Given(Page {
                    invalid: listed.len() - entries.len(),
                    entries,
                    next: next_cursor(answer.next_token.clone()),
                }))
            }
            Err(refusal) => denied(refusal),
        }
    }

    /// How a repository is set up (DescribeRepositories). `None`: there is no such repository.
    pub(super) async fn repository(
        &self,
        name: &RepositoryName,
        tally: Option<&Tally>,
    ) -> Result<Answer<Option<Repository>>, Fault> {
        let answer = self
            .call("DescribeRepositories", name.as_str(), tally, |client| {
                client
                    .describe_repositories()
                    .set_registry_id(self.account())
                    .repository_names(name.as_str())
                    .send()
            })
            .await;
        or_denied(
            answer,
            "RepositoryNotFoundException",
            |answer| answer.repositories().first().cloned(),
            None,
        )
    }

    /// Which of these blobs the repository holds (BatchCheckLayerAvailability), at most
    /// [`MOST_LAYERS`].
    pub(super) async fn layers(
        &self,
        repository: &RepositoryName,
        digests: &[Digest],
        tally: Option<&Tally>,
    ) -> Result<Answer<HashMap<Digest, Presence>>, Fault> {
        let answer = self
            .call(
                "BatchCheckLayerAvailability",
                repository.as_str(),
                tally,
                |client| {
                    let request = client
                        .batch_check_layer_availability()
                        .repository_name(repository.as_str());
                    let digests = digests.iter().map(ToString::to_string).collect();
                    request
                        .set_registry_id(self.account())
                        .set_layer_digests(Some(digests))
                        .send()
                },
            )
            .await;
        match answer {
            Ok(answer) => {
                let found = answer.layers().iter().filter_map(|layer| {
                    let digest = layer.layer_digest()?.parse().ok()?;
                    Some((digest, presence(layer)))
                });
                Ok(Answer::Given(found.collect()))
            }
            Err(refusal) if refusal.code == "RepositoryNotFoundException" => {
                Ok(Answer::Given(HashMap::new()))
            }
            Err(refusal) => denied(refusal),
        }
    }

    /// Whether blobs are mounted in this account and region (GetAccountSetting).
    pub(super) async fn mounts_blobs(&self) -> Result<Answer<bool>, Fault> {
        let answer = self
            .call("GetAccountSetting", "BLOB_MOUNTING", None, |client| {
                client.get_account_setting().name("BLOB_MOUNTING").send()
            })
            .await;
        match answer {
            Ok(answer) => Ok(Answer::Given(answer.value() == Some("ENABLED"))),
            Err(refusal) => denied(refusal),
        }
    }

    /// Creates a repository; one that is there already is as good.
    pub(super) async fn create(
        &self,
        fill: impl FnOnce(
            aws_sdk_ecr::operation::create_repository::builders::CreateRepositoryFluentBuilder,
        ) -> aws_sdk_ecr::operation::create_repository::builders::CreateRepositoryFluentBuilder,
        name: &RepositoryName,
        tally: Option<&Tally>,
    ) -> Result<bool, Fault> {
        let answer = self
            .call("CreateRepository", name.as_str(), tally, |client| {
                fill(
                    client
                        .create_repository()
                        .repository_name(name.as_str())
                        .set_registry_id(self.account()),
                )
                .send()
            })
            .await;
        match answer {
            Ok(_) => Ok(true),
            Err(refusal) if refusal.code == "RepositoryAlreadyExistsException" => Ok(false),
            Err(refusal) => Err(refusal.fault),
        }
    }

    /// Sets the lifecycle policy of a repository.
    pub(super) async fn set_lifecycle(
        &self,
        name: &RepositoryName,
        text: &str,
        tally: Option<&Tally>,
    ) -> Result<(), Fault> {
        let answer = self
            .call("PutLifecyclePolicy", name.as_str(), tally, |client| {
                let request = client.put_lifecycle_policy().repository_name(name.as_str());
                request
                    .set_registry_id(self.account())
                    .lifecycle_policy_text(text)
                    .send()
            })
            .await;
        answer.map(drop).map_err(|refusal| refusal.fault)
    }

    /// Sets the permissions of a repository.
    pub(super) async fn set_policy(
        &self,
        name: &RepositoryName,
        text: &str,
        tally: Option<&Tally>,
    ) -> Result<(), Fault> {
        let answer = self
            .call("SetRepositoryPolicy", name.as_str(), tally, |client| {
                let request = client
                    .set_repository_policy()
                    .repository_name(name.as_str());
                request
                    .set_registry_id(self.account())
                    .policy_text(text)
                    .send()
            })
            .await;
        answer.map(drop).map_err(|refusal| refusal.fault)
    }

    /// The lifecycle policy of a repository, if it has one.
    pub(super) async fn lifecycle(
        &self,
        name: &RepositoryName,
        tally: Option<&Tally>,
    ) -> Result<Option<String>, Fault> {
        let answer = self
            .call("GetLifecyclePolicy", name.as_str(), tally, |client| {
                client
                    .get_lifecycle_policy()
                    .repository_name(name.as_str())
                    .set_registry_id(self.account())
                    .send()
            })
            .await;
        match answer {
            Ok(answer) => Ok(answer.lifecycle_policy_text),
            Err(refusal) if refusal.code == "LifecyclePolicyNotFoundException" => Ok(None),
            Err(refusal) => Err(refusal.fault),
        }
    }

    /// The permissions of a repository, if it has any.
    pub(super) async fn policy(
        &self,
        name: &RepositoryName,
        tally: Option<&Tally>,
    ) -> Result<Option<String>, Fault> {
        let answer = self
            .call("GetRepositoryPolicy", name.as_str(), tally, |client| {
                client
                    .get_repository_policy()
                    .repository_name(name.as_str())
                    .set_registry_id(self.account())
                    .send()
            })
            .await;
        match answer {
            Ok(answer) => Ok(answer.policy_text),
            Err(refusal) if refusal.code == "RepositoryPolicyNotFoundException" => Ok(None),
            Err(refusal) => Err(refusal.fault),
        }
    }

    pub(super) fn account(&self) -> Option<String> {
        self.login.account().map(str::to_owned)
    }

    /// One call, counted, its failure put into words. `about` is the repository, or whatever else
    /// is acted on.
    pub(super) async fn call<T, E, F>(
        &self,
        action: &'static str,
        about: &str,
        tally: Option<&Tally>,
        send: impl FnOnce(aws_sdk_ecr::Client) -> F,
    ) -> Result<T, Refusal>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        F: Future<Output = Result<T, SdkError<E>>> + Send,
    {
        let (client, _) = self.login.plane().await.map_err(|fault| Refusal {
            code: String::new(),
            fault,
        })?;
        if let Some(tally) = tally {
            tally.add();
        }
        let started = Instant::now();
        let answer = send(client).boxed().await;
        let status = match &answer {
            Ok(_) => Some(200),
            Err(error) => error
                .raw_response()
                .map(|response| response.status().as_u16()),
        };
        self.metrics
            .action(&self.registry, action, status, started.elapsed());
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) => {
                let about = format!("{} ({about})", self.registry);
                Err(self
                    .login
                    .refusal(&format!("ecr:{action}"), &error, &about)
                    .boxed()
                    .await)
            }
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Control({})", self.registry)
    }
}

/// Whether the tags of a repository may move, and a word for it.
pub(super) fn is_mutable(repository: &Repository) -> bool {
    matches!(
        repository.image_tag_mutability(),
        None | Some(ImageTagMutability::Mutable | ImageTagMutability::MutableWithExclusion)
    )
}

fn or_denied<T, A>(
    answer: Result<A, Refusal>,
    missing: &str,
    read: impl FnOnce(A) -> T,
    absent: T,
) -> Result<Answer<T>, Fault> {
    match answer {
        Ok(answer) => Ok(Answer::Given(read(answer))),
        Err(refusal) if refusal.code == missing => Ok(Answer::Given(absent)),
        Err(refusal) => denied(refusal),
    }
}

/// What is not ours to do, and what this control plane does not know, is left to the registry
/// protocol.
fn denied<T>(refusal: Refusal) -> Result<Answer<T>, Fault> {
    const NOT_OURS: [&str; 5] = [
        "AccessDenied",
        "UnknownOperation",
        "InvalidAction",
        "NotImplemented",
        "UnrecognizedAction",
    ];
    match NOT_OURS.iter().any(|code| refusal.code.contains(code)) {
        true => Ok(Answer::Denied(refusal.fault)),
        false => Err(refusal.fault),
    }
}

fn images(details: &[ImageDetail], next: Option<String>) -> Images {
    let mut page = Page {
        entries: Vec::new(),
        invalid: 0,
        next: next_cursor(next),
    };
    let mut archived = HashSet::new();
    for detail in details {
        let digest: Option<Digest> = detail.image_digest().and_then(|digest| digest.parse().ok());
        let pushed = detail.image_pushed_at().and_then(timestamp);
        if detail
            .image_status()
            .is_some_and(|status| *status != ImageStatus::Active)
        {
            archived.extend(digest);
        }
        for name in detail.image_tags() {
            match name.parse() {
                Ok(name) => page.entries.push(Tag {
                    name,
                    digest,
                    pushed,
                }),
                Err(_) => page.invalid += 1,
            }
        }
    }
    Images { page, archived }
}

fn presence(layer: &Layer) -> Presence {
    match layer.layer_availability() {
        Some(LayerAvailability::Available) => Presence::Present {
            size: layer.layer_size().and_then(|size| u64::try_from(size).ok()),
        },
        _ => Presence::Absent,
    }
}

fn manifests(details: &[ImageDetail], next: Option<String>) -> Page<ListedManifest> {
    let entries: Vec<ListedManifest> = details
        .iter()
        .filter_map(|detail| {
            let digest = detail.image_digest()?.parse().ok()?;
            Some(ListedManifest {
                digest,
                subject: detail
                    .subject_manifest_digest()
                    .and_then(|subject| subject.parse().ok()),
            })
        })
        .collect();
    Page {
        invalid: details.len() - entries.len(),
        entries,
        next: next_cursor(next),
    }
}

pub(super) fn next_cursor(token: Option<String>) -> Option<Cursor> {
    token.filter(|token| !token.is_empty()).map(Cursor)
}

pub(super) fn timestamp(at: &DateTime) -> Option<Timestamp> {
    Timestamp::from_nanosecond(at.as_nanos()).ok()
}
