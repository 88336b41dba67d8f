//! Resolves a tag to its digest, for looks and jobs.

use tokio::time::Instant;

use super::limits::RequestPriority;
use super::{Engine, Stop};
use crate::endpoint::{Resolved, Source};
use crate::fault::Fault;
use crate::oci::{Digest, Manifest, Tag, Target};

/// How often the question about a tag is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempts {
    /// Without another try: the caller asks again by rules of its own.
    Once,
    /// Until the retry settings give up.
    Retried,
}

/// What a repository answers about a tag.
pub(super) struct TagAnswer {
    /// `None`: there is no such tag.
    pub(super) digest: Option<Digest>,
    /// The index from which the manifest was chosen for a platform.
    pub(super) index: Option<Digest>,
    /// When the answer about the tag came. The questions that follow do not make it younger.
    pub(super) at: Instant,
}

impl TagAnswer {
    fn now(digest: Option<Digest>, index: Option<Digest>) -> TagAnswer {
        let at = Instant::now();
        TagAnswer { digest, index, at }
    }
}

impl Engine {
    /// The digest that `tag` names in `repository`. `None`: there is no such tag.
    ///
    /// Where the registry claims no digest, the manifest is read: only the bytes tell, and only the
    /// registry knows whether it has converted them (see [`Source::pushed_digest`]). `attempts`
    /// counts for the first question. The questions that follow it are part of its answer and are
    /// always retried: a registry that refuses every other request would never answer else.
    ///
    /// # Errors
    /// As [`Engine::ask`].
    pub async fn resolve_tag<R: Source>(
        &self,
        repository: &R,
        tag: &Tag,
        priority: RequestPriority,
        attempts: Attempts,
        stop: &Stop,
    ) -> Result<Option<Digest>, Fault> {
        let answer = self.ask_tag(repository, tag, priority, attempts, stop);
        Ok(answer.await?.digest)
    }

    /// As [`Engine::resolve_tag`], with all that the answer tells.
    pub(super) async fn ask_tag<R: Source>(
        &self,
        repository: &R,
        tag: &Tag,
        priority: RequestPriority,
        attempts: Attempts,
        stop: &Stop,
    ) -> Result<TagAnswer, Fault> {
        let answer = self
            .answer(repository, tag, priority, attempts, stop)
            .await?;
        self.newest.note(repository, tag, answer.digest, answer.at);
        Ok(answer)
    }

    async fn answer<R: Source>(
        &self,
        repository: &R,
        tag: &Tag,
        priority: RequestPriority,
        attempts: Attempts,
        stop: &Stop,
    ) -> Result<TagAnswer, Fault> {
        let target = Target::Tag(tag.clone());
        if repository.tells_digest(tag) {
            let resolved = self
                .attempt(attempts, repository, priority, stop, || {
                    repository.resolve(&target)
                })
                .await?;
            match resolved {
                None => return Ok(TagAnswer::now(None, None)),
                Some(Resolved { digest: None, .. }) => {}
                Some(Resolved { digest, index, .. }) => return Ok(TagAnswer::now(digest, index)),
            }
        }
        let is_first = !repository.tells_digest(tag);
        let attempts = if is_first {
            attempts
        } else {
            Attempts::Retried
        };
        let read = self
            .attempt(attempts, repository, priority, stop, || {
                repository.manifest(&target)
            })
            .await?;
        let at = Instant::now();
        let pushed = self.as_pushed(repository, tag, read, priority, stop);
        let digest = pushed.await?;
        let index = None;
        Ok(TagAnswer { digest, index, at })
    }

    async fn attempt<R, T, F>(
        &self,
        attempts: Attempts,
        repository: &R,
        priority: RequestPriority,
        stop: &Stop,
        mut act: impl FnMut() -> F,
    ) -> Result<T, Fault>
    where
        R: Source,
        F: Future<Output = Result<T, Fault>>,
    {
        let origin = repository.origin();
        let registry = repository.registry();
        match attempts {
            Attempts::Once => self.ask_once(origin, registry, priority, stop, act()).await,
            Attempts::Retried => self.ask(origin, registry, priority, stop, act).await,
        }
    }

    /// The digest under which the manifest was pushed that was read by its tag.
    async fn as_pushed<R: Source>(
        &self,
        repository: &R,
        tag: &Tag,
        read: Option<Manifest>,
        priority: RequestPriority,
        stop: &Stop,
    ) -> Result<Option<Digest>, Fault> {
        let Some(read) = read.map(|manifest| manifest.digest) else {
            return Ok(None);
        };
        let origin = repository.origin();
        let registry = repository.registry();
        self.ask(origin, registry, priority, stop, || {
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
        priority: RequestPriority,
        stop: &Stop,
    ) -> Result<Option<Digest>, Fault> {
        let origin = repository.origin();
        let registry = repository.registry();
        let read = async |target: Target| {
            let manifest = self
                .ask(origin, registry, priority, stop, || {
                    repository.manifest(&target)
                })
                .await?;
            Ok::<_, Fault>(manifest.map(|manifest| manifest.digest))
        };
        let served = read(tag.clone().into()).await?;
        let at = Instant::now();
        let Some(served) = served else {
            self.newest.note(repository, tag, None, at);
            return Ok(None);
        };
        let pushed = self.ask(origin, registry, priority, stop, || {
            repository.pushed_digest(tag, &served)
        });
        let pushed = pushed.await?;
        if pushed.is_some() {
            self.newest.note(repository, tag, pushed, at);
        }
        match pushed {
            Some(pushed) if pushed != served => read(pushed.into()).await,
            pushed => Ok(pushed),
        }
    }
}
