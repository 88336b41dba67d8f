//! Resolves a tag to its digest, for looks and jobs.

use super::limits::Errand;
use super::{Engine, Stop};
use crate::endpoint::{Resolved, Source};
use crate::fault::Fault;
use crate::oci::{Digest, Manifest, Tag, Target};

impl Engine {
    /// The digest that `tag` names in `repository`. `None`: there is no such tag.
    ///
    /// Without a digest from the registry the manifest is read: the bytes tell the digest, and the
    /// registry tells whether it converted them (see [`Source::pushed_digest`]).
    ///
    /// # Errors
    /// As [`Engine::ask`].
    pub async fn resolve_tag<R: Source>(
        &self,
        repository: &R,
        tag: &Tag,
        errand: Errand,
        stop: &Stop,
    ) -> Result<Option<Digest>, Fault> {
        let target = Target::Tag(tag.clone());
        let (origin, registry) = (repository.origin(), repository.registry());
        if !repository.tells_digests() {
            return self.digest_of_bytes(repository, tag, errand, stop).await;
        }
        match self
            .ask(origin, registry, errand, stop, || {
                repository.resolve(&target)
            })
            .await?
        {
            None => Ok(None),
            Some(Resolved {
                digest: Some(digest),
                ..
            }) => Ok(Some(digest)),
            Some(Resolved { digest: None, .. }) => {
                self.digest_of_bytes(repository, tag, errand, stop).await
            }
        }
    }

    /// As [`resolve_tag`](Engine::resolve_tag), but the request for the tag is sent once. If only
    /// the bytes tell the digest, the requests that follow are repeated after a refusal: a registry
    /// that refuses every other request would never answer otherwise.
    ///
    /// # Errors
    /// The failure of the request, or as [`Engine::ask`].
    pub async fn resolve_tag_once<R: Source>(
        &self,
        repository: &R,
        tag: &Tag,
        errand: Errand,
        stop: &Stop,
    ) -> Result<Option<Digest>, Fault> {
        let target = Target::Tag(tag.clone());
        let (origin, registry) = (repository.origin(), repository.registry());
        if !repository.tells_digests() {
            let read = self
                .ask_once(origin, registry, errand, stop, repository.manifest(&target))
                .await?;
            return self.as_pushed(repository, tag, read, errand, stop).await;
        }
        match self
            .ask_once(origin, registry, errand, stop, repository.resolve(&target))
            .await?
        {
            None => Ok(None),
            Some(Resolved {
                digest: Some(digest),
                ..
            }) => Ok(Some(digest)),
            Some(Resolved { digest: None, .. }) => {
                self.digest_of_bytes(repository, tag, errand, stop).await
            }
        }
    }

    async fn digest_of_bytes<R: Source>(
        &self,
        repository: &R,
        tag: &Tag,
        errand: Errand,
        stop: &Stop,
    ) -> Result<Option<Digest>, Fault> {
        let target = Target::Tag(tag.clone());
        let (origin, registry) = (repository.origin(), repository.registry());
        let read = self
            .ask(origin, registry, errand, stop, || {
                repository.manifest(&target)
            })
            .await?;
        self.as_pushed(repository, tag, read, errand, stop).await
    }

    /// The digest under which a manifest that was read by tag had been pushed.
    async fn as_pushed<R: Source>(
        &self,
        repository: &R,
        tag: &Tag,
        read: Option<Manifest>,
        errand: Errand,
        stop: &Stop,
    ) -> Result<Option<Digest>, Fault> {
        let Some(read) = read.map(|manifest| manifest.digest) else {
            return Ok(None);
        };
        let (origin, registry) = (repository.origin(), repository.registry());
        self.ask(origin, registry, errand, stop, || {
            repository.pushed_digest(tag, &read)
        })
        .await
    }

    /// The digest that `tag` names in `repository`, proven by the bytes. `None`: there is no such
    /// tag, or the repository does not serve the pushed bytes.
    ///
    /// # Errors
    /// As [`Engine::ask`]; of class `Corrupt` where the bytes are not what the registry says.
    pub async fn read_tag<R: Source>(
        &self,
        repository: &R,
        tag: &Tag,
        errand: Errand,
        stop: &Stop,
    ) -> Result<Option<Digest>, Fault> {
        let (origin, registry) = (repository.origin(), repository.registry());
        let read = async |target: Target| {
            let manifest = self
                .ask(origin, registry, errand, stop, || {
                    repository.manifest(&target)
                })
                .await?;
            Ok::<_, Fault>(manifest.map(|manifest| manifest.digest))
        };
        let Some(served) = read(tag.clone().into()).await? else {
            return Ok(None);
        };
        match self
            .ask(origin, registry, errand, stop, || {
                repository.pushed_digest(tag, &served)
            })
            .await?
        {
            Some(pushed) if pushed != served => read(pushed.into()).await,
            pushed => Ok(pushed),
        }
    }
}
