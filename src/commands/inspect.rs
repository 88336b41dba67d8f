//! What registries hold, read with the credentials of the config: repositories, tags, digests.
//! Nothing is written, neither there nor here.

use std::collections::BTreeSet;

use super::Error;
use super::context::Context;
use super::directory::Side;
use super::hosts::Hosts;
use super::reference::{Env, Named};
use crate::backend::{Backend, Repository};
use crate::config::Config;
use crate::endpoint::{Repositories, Source as _};
use crate::fault::{Class, Fault, shown};
use crate::job::{LONG_WAIT, Rank};
use crate::oci::{Digest, Reference, RepositoryName, Tag, Target};
use crate::transfer::limits::{RequestClass, RequestPriority};
use crate::transfer::pages::{List, ListedTags, Reading};
use crate::transfer::resolve::Attempts;
use crate::transfer::{Engine, Stop};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The arguments or the config are unusable.
    #[error(transparent)]
    Unusable(#[from] Error),
    /// What was named is not there.
    #[error("{0}")]
    NotThere(String),
    /// The registry did not answer, or refused.
    #[error("{}", .0.chain())]
    Failed(Fault),
}

impl InspectError {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            InspectError::Unusable(error) => error.exit_code(),
            InspectError::NotThere(_) => 5,
            InspectError::Failed(fault) => match fault.class() {
                Class::Auth => 3,
                Class::NotFound => 5,
                Class::Cancelled => 130,
                Class::Retryable { .. } | Class::Corrupt | Class::Rejected => 1,
            },
        }
    }
}

impl From<Fault> for InspectError {
    fn from(fault: Fault) -> InspectError {
        InspectError::Failed(fault)
    }
}

fn by_name() -> RequestPriority {
    let priority = RequestPriority::from(RequestClass::Manifests);
    priority.ranked(Rank::Named).within(LONG_WAIT)
}

/// Reads registries for one command.
pub struct Inspect<'a> {
    context: Context,
    hosts: Hosts<'a>,
    stop: Stop,
}

impl<'a> Inspect<'a> {
    /// With what a config knows of its registries, where there is one.
    ///
    /// # Errors
    /// When a registry's settings do not work.
    pub fn open(config: Option<&Config>, env: Env<'a>) -> Result<Inspect<'a>, InspectError> {
        Ok(Inspect {
            context: Context::to_inspect(config)?,
            hosts: Hosts::new(env),
            stop: Stop::default(),
        })
    }

    fn engine(&self) -> &Engine {
        self.context.parts.engine()
    }

    /// The repositories of a registry: a name of the config, or a host.
    ///
    /// # Errors
    /// [`InspectError::NotThere`] where the registry lists no repositories.
    pub async fn repositories(
        &self,
        registry: &str,
    ) -> Result<BTreeSet<RepositoryName>, InspectError> {
        let backend = self.registry(registry)?;
        let mut names = BTreeSet::new();
        let list = List {
            what: "the catalog".into(),
            origin: backend.origin(),
            registry: backend.name(),
            stop: &self.stop,
        };
        let is_listed = self
            .engine()
            .pages_read(
                Reading::by_name(),
                list,
                |cursor| {
                    let backend: &Backend = &backend;
                    async move { backend.repositories(cursor.as_ref()).await }
                },
                |name| names.insert(name),
            )
            .await?;
        if is_listed {
            Ok(names)
        } else {
            let name = shown(registry, 300);
            Err(InspectError::NotThere(format!(
                "{name} lists no repositories for us; name one: blobferry tags {name}/REPOSITORY"
            )))
        }
    }

    fn registry(&self, text: &str) -> Result<Backend, InspectError> {
        if let Some(backend) = self.context.backend(text) {
            return Ok(backend.clone());
        }
        let is_layout = text.starts_with("layout:");
        // A reference has a repository; which one makes no difference.
        let named: Result<Named, _> = format!("{text}/any").parse();
        let Some(named) = named.ok().filter(|_| !is_layout) else {
            let text = shown(text, 300);
            let text = format!("\"{text}\" is neither a registry of the config nor a host");
            return Err(Error::Usage(text).into());
        };
        if let Some(backend) = self.context.backend_of(&named) {
            return Ok(backend.clone());
        }
        let parts = &self.context.parts;
        Ok(named.registry_with("registry", parts, |host| self.hosts.known(host))?)
    }

    /// The tags of a repository: `REGISTRY/REPOSITORY` with a registry of the config, or
    /// `host/repository`, or `layout:PATH`.
    ///
    /// # Errors
    /// [`InspectError::NotThere`] where there is no such repository.
    pub async fn tags(&self, place: &str) -> Result<ListedTags, InspectError> {
        let (repository, target) = self.find(place)?;
        if target.is_some() {
            let text = shown(place, 300);
            let way_out = "name the repository alone, or ask for a digest with `blobferry digest`";
            return Err(
                Error::Usage(format!("\"{text}\" names a tag or a digest; {way_out}")).into(),
            );
        }
        let tags = self
            .engine()
            .tags(&repository, Reading::by_name(), &self.stop)
            .await?;
        tags.ok_or_else(|| {
            InspectError::NotThere(format!("there is no repository {}", repository.address()))
        })
    }

    /// The digest that a reference names.
    ///
    /// # Errors
    /// [`InspectError::NotThere`] where there is no such tag or manifest.
    pub async fn digest(&self, reference: &str) -> Result<Digest, InspectError> {
        let (repository, target) = self.find(reference)?;
        let address = repository.address();
        let found = match &target {
            None => {
                let text = shown(reference, 300);
                let text = format!("\"{text}\" names neither a tag nor a digest");
                return Err(Error::Usage(text).into());
            }
            Some(Target::Tag(tag)) => self.digest_of_tag(&repository, tag).await?,
            Some(Target::Digest(digest)) => self.digest_if_there(&repository, digest).await?,
        };
        found.ok_or_else(|| {
            let name = match &target {
                Some(Target::Digest(digest)) => format!("{address}@{digest}"),
                Some(Target::Tag(tag)) => format!("{address}:{tag}"),
                None => address,
            };
            InspectError::NotThere(format!("{name} is not there"))
        })
    }

    async fn digest_of_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Option<Digest>, Fault> {
        let priority = by_name();
        let attempts = Attempts::Retried;
        self.engine()
            .resolve_tag(repository, tag, priority, attempts, &self.stop)
            .await
    }

    async fn digest_if_there(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<Digest>, Fault> {
        let target = Target::Digest(*digest);
        let priority = by_name();
        let found = self
            .engine()
            .ask(
                repository.origin(),
                repository.registry(),
                priority,
                &self.stop,
                || repository.resolve(&target),
            )
            .await?;
        Ok(found.map(|_| *digest))
    }

    /// The repository that a text names, and the tag or digest there.
    fn find(&self, text: &str) -> Result<(Repository, Option<Target>), InspectError> {
        if let Some(found) = self.in_registry_of_config(text) {
            return found;
        }
        let named: Named = text.parse().map_err(Error::Usage)?;
        let repository = self.context.repository(&named, Side::Source, |parts| {
            named.open_with("registry", parts, |host| self.hosts.known(host))
        })?;
        let target = named
            .digest()
            .map(Target::Digest)
            .or_else(|| named.tag().cloned().map(Target::Tag));
        Ok((repository, target))
    }

    /// The same where the text begins with a name that the config gives to a registry.
    fn in_registry_of_config(
        &self,
        text: &str,
    ) -> Option<Result<(Repository, Option<Target>), InspectError>> {
        let (registry, rest) = text.split_once('/')?;
        let backend = self.context.backend(registry)?;
        // A reference without its host.
        let reference: Result<Reference, _> = format!("localhost/{rest}").parse();
        Some(match reference {
            Ok(reference) => {
                let digest = reference.digest.map(Target::Digest);
                let target = digest.or_else(|| reference.tag.map(Target::Tag));
                Ok((backend.repository(reference.repository), target))
            }
            Err(error) => {
                let text = format!("\"{}\": {error}", shown(text, 300));
                Err(Error::Usage(text).into())
            }
        })
    }

    /// Ends the connections and tasks of the command.
    pub async fn close(self) {
        self.context.close().await;
    }
}
