//! Creating a repository that production lacks: from a template, or after the staging repository.

use std::sync::Arc;

use aws_sdk_ecr::types::Repository as Described;
use aws_sdk_ecr::types::{
    EncryptionConfiguration, EncryptionType, ImageScanningConfiguration, ImageTagMutability,
    ImageTagMutabilityExclusionFilter, ImageTagMutabilityExclusionFilterType, Tag,
};

use super::control::Answer;
use super::handle::RepositoryHandle;
pub use crate::endpoint::RepositoryTemplate as Template;
use crate::fault::{Class, Fault};

/// How a missing repository comes to be.
pub enum Creation {
    /// From a template.
    Template(Arc<Template>),
    /// Set up as this repository is.
    Clone(RepositoryHandle),
}

impl Creation {
    /// Creates the repository if it is missing; whether we did, now or in an earlier attempt that
    /// left something to do.
    pub(super) async fn ensure(&self, repository: &RepositoryHandle) -> Result<bool, Fault> {
        let id = repository.id();
        let name = repository.name();
        if let Some(text) = repository.shared().refused_creation(name) {
            return Err(Fault::rejected(text));
        }
        let unfinished = &repository.shared().unfinished;
        let is_noted = unfinished.is_noted(id).await;
        let is_there = match repository
            .control()
            .repository(name, repository.tally())
            .await?
        {
            Answer::Given(Some(_)) if is_noted => true,
            Answer::Given(Some(_)) => return Ok(false),
            // DescribeRepositories may be denied where CreateRepository is allowed.
            Answer::Given(None) | Answer::Denied(_) => false,
        };
        let template = match self {
            Creation::Template(template) => Template::clone(template),
            Creation::Clone(model) => template_of(model).await?,
        };
        let mut is_new = false;
        if !is_there {
            unfinished.note(id).await;
            is_new = match repository
                .control()
                .create(
                    |request| filled(request, &template),
                    name,
                    repository.tally(),
                )
                .await
            {
                Ok(is_new) => is_new,
                // Where no answer tells, it may have been created.
                Err(fault) if fault.class().is_retryable() || is_noted => {
                    return Err(creating(repository, fault));
                }
                Err(fault) => {
                    unfinished.clear(id).await;
                    let fault = creating(repository, fault);
                    if fault.class() == Class::Rejected {
                        repository.shared().note_refused_creation(name, &fault);
                    }
                    return Err(fault);
                }
            };
            if !is_new && !is_noted {
                unfinished.clear(id).await;
                return Ok(false);
            }
        }
        apply_policies(repository, &template, is_new).await?;
        unfinished.clear(id).await;
        tracing::info!(
            repository = %repository.address(),
            immutable = template.immutable,
            "created a repository"
        );
        Ok(true)
    }
}

fn creating(repository: &RepositoryHandle, fault: Fault) -> Fault {
    fault.while_doing(format!("create {}", repository.address()))
}

type Request = aws_sdk_ecr::operation::create_repository::builders::CreateRepositoryFluentBuilder;

fn filled(request: Request, template: &Template) -> Request {
    let mutability = match (template.immutable, template.except.is_empty()) {
        (true, true) => ImageTagMutability::Immutable,
        (true, false) => ImageTagMutability::ImmutableWithExclusion,
        (false, true) => ImageTagMutability::Mutable,
        (false, false) => ImageTagMutability::MutableWithExclusion,
    };
    let filters: Vec<_> = template
        .except
        .iter()
        .filter_map(|text| {
            let filter = ImageTagMutabilityExclusionFilter::builder().filter(text);
            filter
                .filter_type(ImageTagMutabilityExclusionFilterType::Wildcard)
                .build()
                .ok()
        })
        .collect();
    let tags: Vec<_> = template
        .tags
        .iter()
        .filter_map(|(key, value)| Tag::builder().key(key).value(value).build().ok())
        .collect();
    let scanning = ImageScanningConfiguration::builder()
        .scan_on_push(template.scan_on_push)
        .build();
    request
        .image_tag_mutability(mutability)
        .set_image_tag_mutability_exclusion_filters((!filters.is_empty()).then_some(filters))
        .image_scanning_configuration(scanning)
        .set_encryption_configuration(template.kms_key.as_deref().and_then(encryption))
        .set_tags((!tags.is_empty()).then_some(tags))
}

fn encryption(key: &str) -> Option<EncryptionConfiguration> {
    let key = (!key.is_empty()).then(|| key.to_owned());
    EncryptionConfiguration::builder()
        .encryption_type(EncryptionType::Kms)
        .set_kms_key(key)
        .build()
        .ok()
}

/// What a repository has beside its own settings. In one that an earlier attempt created,
/// what is there by now stays: a person may have set it.
async fn apply_policies(
    repository: &RepositoryHandle,
    template: &Template,
    is_new: bool,
) -> Result<(), Fault> {
    let control = repository.control();
    let name = repository.name();
    let tally = repository.tally();
    let doing = |fault: Fault| {
        fault.while_doing(format!(
            "set up {}, which was created for us",
            repository.address()
        ))
    };
    if let Some(text) = &template.lifecycle
        && (is_new || is_absent(control.lifecycle(name, tally).await).map_err(doing)?)
    {
        control
            .set_lifecycle(name, text, tally)
            .await
            .map_err(doing)?;
    }
    if let Some(text) = &template.policy
        && (is_new || is_absent(control.policy(name, tally).await).map_err(doing)?)
    {
        control.set_policy(name, text, tally).await.map_err(doing)?;
    }
    Ok(())
}

/// Whether there is no such policy. Without the right to look there is none: the repository was
/// created for us.
fn is_absent(policy: Result<Option<String>, Fault>) -> Result<bool, Fault> {
    match policy {
        Ok(policy) => Ok(policy.is_none()),
        Err(fault) if fault.class() == Class::Auth => Ok(true),
        Err(fault) => Err(fault),
    }
}

/// The settings of a repository. Its key is left out: another account or region has another one.
async fn template_of(model: &RepositoryHandle) -> Result<Template, Fault> {
    let control = model.control();
    let name = model.name();
    let tally = model.tally();
    let described = match control.repository(name, tally).await? {
        Answer::Given(Some(described)) => described,
        Answer::Given(None) => {
            return Err(Fault::not_found(format!(
                "{} does not exist and cannot be cloned",
                model.address()
            )));
        }
        Answer::Denied(fault) => {
            return Err(fault
                .with_class(Class::Auth)
                .while_doing(format!("clone the settings of {}", model.address())));
        }
    };
    Ok(Template {
        lifecycle: control.lifecycle(name, tally).await?,
        policy: control.policy(name, tally).await?,
        ..read(&described)
    })
}

fn read(described: &Described) -> Template {
    use ImageTagMutability::{Immutable, ImmutableWithExclusion};
    let filters = described.image_tag_mutability_exclusion_filters();
    let kms = described
        .encryption_configuration()
        .filter(|encryption| *encryption.encryption_type() == EncryptionType::Kms);
    Template {
        immutable: matches!(
            described.image_tag_mutability(),
            Some(Immutable | ImmutableWithExclusion)
        ),
        except: filters
            .iter()
            .map(|filter| filter.filter().to_owned())
            .collect(),
        scan_on_push: described
            .image_scanning_configuration()
            .is_some_and(|scanning| scanning.scan_on_push()),
        kms_key: kms.map(|_| String::new()),
        ..Template::default()
    }
}
