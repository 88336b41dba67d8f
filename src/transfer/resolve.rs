//! What a tag names: the one way to find out, for looks and for jobs.

use super::limits::Errand;
use super::{Engine, Stop};
use crate::endpoint::{Resolved, Source};
use crate::fault::Fault;
use crate::oci::{Digest, Tag, Target};

impl Engine {
    /// The digest that `tag` names in `repository`. `None`: there is no such tag.
    ///
    /// Where the registry claims no digest, the manifest is read: only the bytes tell, and only the registry knows whether it
    /// has converted them (see [`Source::pushed_digest`]).
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
        match self.ask(origin, registry, errand, stop, || repository.resolve(&target)).await? {
            None => return Ok(None),
            Some(Resolved { digest: Some(digest), .. }) => return Ok(Some(digest)),
            Some(Resolved { digest: None, .. }) => {}
        }
        let read = self.ask(origin, registry, errand, stop, || repository.manifest(&target)).await?;
        let Some(read) = read.map(|manifest| manifest.digest) else { return Ok(None) };
        self.ask(origin, registry, errand, stop, || repository.pushed_digest(tag, &read)).await
    }
}
