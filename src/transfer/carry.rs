//! Carry: copies blobs, child manifests and referrers to the destination, addressed by digest. No
//! tag changes.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};

use super::Promotion;
use super::limits::RequestClass;
use super::refusals;
use super::survey::Image;
use crate::endpoint::{Destination, Put, Source};
use crate::fault::{Class, Fault};
use crate::job::BlobOutcome;
use crate::oci::{Descriptor, Digest, Manifest, Target};

/// Does work side by side, at most so much at once. After a failure nothing further starts, but what
/// runs comes to its end: its bytes are not sent again, its upload sessions are not left open, and
/// other jobs may wait for it.
pub(super) async fn side_by_side<T: Send>(
    work: Vec<BoxFuture<'_, Result<T, Fault>>>,
    at_once: usize,
) -> Result<Vec<T>, Fault> {
    let failed = AtomicBool::new(false);
    let mut started = Vec::with_capacity(work.len());
    for one in work {
        started.push(unless_failed(&failed, one).boxed());
    }
    let ended = stream::iter(started).buffer_unordered(at_once);
    let ended: Vec<Result<Option<T>, Fault>> = ended.collect().await;
    let done: Result<Vec<Option<T>>, Fault> = ended.into_iter().collect();
    Ok(done?.into_iter().flatten().collect())
}

async fn unless_failed<T>(
    failed: &AtomicBool,
    work: BoxFuture<'_, Result<T, Fault>>,
) -> Result<Option<T>, Fault> {
    if failed.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let done = work.await;
    failed.fetch_or(done.is_err(), Ordering::Relaxed);
    done.map(Some)
}

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Copies the image without its top manifest: the blobs, then the manifests, each after its
    /// children.
    pub(super) async fn carry_content(&self, image: &Image) -> Result<(), Fault> {
        self.carry_blobs(&image.blobs).await?;
        let mut left: Vec<Manifest> = image.levels.iter().flatten().cloned().collect();
        while !left.is_empty() {
            let waiting: HashSet<Digest> = left.iter().map(|manifest| manifest.digest).collect();
            let (ready, rest): (Vec<_>, Vec<_>) = left.into_iter().partition(|manifest| {
                !manifest
                    .children
                    .iter()
                    .any(|child| waiting.contains(&child.digest))
            });
            let digests = ready.iter().map(|manifest| manifest.digest).collect();
            let puts = ready
                .into_iter()
                .map(|manifest| async move { self.put_by_digest(image, &manifest).await }.boxed())
                .collect();
            side_by_side(puts, self.engine.settings.bounds.manifests).await?;
            self.remember_manifests(digests).await;
            left = rest;
        }
        Ok(())
    }

    /// Writes the top manifest under its digest, where it is not there: a scanner of the destination
    /// sees what has a manifest.
    pub(super) async fn carry_top(&self, image: &Image) -> Result<(), Fault> {
        let digest = image.top.digest;
        if self.is_complete(&digest).await {
            return Ok(());
        }
        // Boxed to keep the job's future small.
        self.put_by_digest(image, &image.top).boxed().await?;
        self.remember_manifests(vec![digest]).await;
        Ok(())
    }

    /// Copies blobs side by side. Those that are held by a trusted hint are looked up at once.
    async fn carry_blobs(&self, blobs: &[Descriptor]) -> Result<(), Fault> {
        let mut copies = Vec::new();
        let hints = self.blob_hints(blobs).await;
        for blob in blobs {
            let is_held = !self.is_journalled(blob)
                && hints
                    .get(&blob.digest)
                    .is_some_and(|hint| self.shows_held(hint, blob));
            match is_held {
                true => {
                    let present = self.is_not_denied(&blob.digest);
                    self.settle_blob(blob, present.map(|()| BlobOutcome::Present))?;
                }
                false => copies.push(self.blob(blob).boxed()),
            }
        }
        side_by_side(copies, self.engine.settings.bounds.blobs)
            .await
            .map(drop)
    }

    async fn put_by_digest(&self, image: &Image, manifest: &Manifest) -> Result<(), Fault> {
        match self.put(image, manifest).await? {
            Put::Accepted { .. } => Ok(()),
            Put::Immutable | Put::Missing(_) => {
                let address = self.destination.address();
                Err(Fault::rejected(format!(
                    "{address} does not take manifest {}",
                    manifest.digest
                )))
            }
        }
    }

    /// Writes a manifest under its digest. Content that the registry reports missing is copied
    /// again; foreign layers only if it insists on them. Tags are written by
    /// [`Promotion::move_tag`] alone.
    pub(super) async fn put(&self, image: &Image, manifest: &Manifest) -> Result<Put, Fault> {
        self.is_not_denied(&manifest.digest)?;
        let refusal = self.refusal_of(&manifest.digest);
        if let Some(fault) = self.engine.refusals.held(&refusal, self.job.news) {
            return Err(fault);
        }
        for _ in 0..self.engine.settings.bounds.repairs {
            match self.write_by_digest(manifest, &refusal).await? {
                Put::Missing(named) => self.repair(image, manifest, &named).await?,
                put => return Ok(self.noted(manifest, put).await),
            }
        }
        match self.write_by_digest(manifest, &refusal).await? {
            Put::Missing(named) => Err(self.misses(manifest, &named)),
            put => Ok(self.noted(manifest, put).await),
        }
    }

    /// Notes a rejection as a refusal, unless a denial is the reason.
    async fn write_by_digest(
        &self,
        manifest: &Manifest,
        refusal: &refusals::Subject,
    ) -> Result<Put, Fault> {
        let written = self.ask_destination(RequestClass::Writes, |destination| {
            let manifest = manifest.clone();
            async move {
                let _carrying = self.begin_carry(&manifest.digest)?;
                destination
                    .put_manifest(&Target::Digest(manifest.digest), &manifest)
                    .await
            }
        });
        written.await.inspect_err(|fault| {
            let is_denied = self.is_not_denied(&manifest.digest).is_err();
            if fault.class() == Class::Rejected && !is_denied {
                self.engine.refusals.note(refusal.clone(), fault);
            }
        })
    }

    async fn noted(&self, manifest: &Manifest, put: Put) -> Put {
        if matches!(put, Put::Accepted { .. }) {
            self.committed(manifest).await;
        }
        put
    }

    /// Notes that a manifest refers to its blobs: some registries mount only such blobs.
    pub(super) async fn committed(&self, manifest: &Manifest) {
        let blobs = own_blobs(manifest);
        if !blobs.is_empty() {
            self.engine
                .index
                .remember_blobs(&self.destination.id(), blobs, true)
                .await;
        }
        self.end_leads(manifest);
    }

    /// Lets other jobs mount the blobs of a manifest that is there.
    pub(super) fn end_leads(&self, manifest: &Manifest) {
        let mut leads = self
            .leads
            .lock()
            .expect("nothing panics while it holds the leads");
        leads.retain(|lead| {
            !manifest
                .blobs
                .iter()
                .any(|blob| blob.digest == *lead.digest())
        });
    }

    /// Copies again the content that the registry reports missing, or all content if it names none.
    pub(super) async fn repair(
        &self,
        image: &Image,
        manifest: &Manifest,
        named: &[Digest],
    ) -> Result<(), Fault> {
        let own = manifest
            .blobs
            .iter()
            .filter(|blob| is_meant(&blob.digest, named));
        let blobs: Vec<Descriptor> = own.cloned().collect();
        let there = self.destination.id();
        tracing::debug!(
            destination = %self.destination.address(),
            manifest = %manifest.digest,
            blobs = blobs.len(),
            "the registry misses content; bringing it again"
        );
        self.engine
            .index
            .forget_blobs(&there, blobs.iter().map(|blob| blob.digest).collect())
            .await;
        for child in manifest
            .children
            .iter()
            .filter(|child| is_meant(&child.digest, named))
        {
            self.engine
                .index
                .forget_manifest(&there, &child.digest)
                .await;
            self.copy_child(image, child).await?;
        }
        for blob in &blobs {
            // The registry reports this blob missing: no hint or answer that it is present counts.
            if named.is_empty() {
                self.blob(blob).await?
            } else {
                self.resend_blob(blob).await?
            }
        }
        Ok(())
    }

    /// Copies a child that the destination was believed to hold.
    fn copy_child<'a>(
        &'a self,
        image: &'a Image,
        child: &'a Descriptor,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        async move {
            let Some(manifest) = self.source_manifest(child.digest.into()).await? else {
                return self.blob(child).await;
            };
            let below = self.walk(manifest).await?;
            self.carry_content(&below).await?;
            self.put_by_digest(image, &below.top).await
        }
        .boxed()
    }

    pub(super) fn misses(&self, manifest: &Manifest, named: &[Digest]) -> Fault {
        let address = self.destination.address();
        let foreign = manifest
            .blobs
            .iter()
            .any(|blob| blob.media_type.is_foreign_layer());
        let hint = if foreign {
            "; it wants the foreign layers, which staging does not serve"
        } else {
            ""
        };
        let what = named
            .iter()
            .take(3)
            .map(Digest::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        Fault::rejected(format!(
            "{address} refuses manifest {} because it misses content {what}{hint}",
            manifest.digest
        ))
    }
}

/// The blobs of a manifest that the repository holds with it, each with its length.
pub(super) fn own_blobs(manifest: &Manifest) -> Vec<(Digest, u64)> {
    let own = manifest
        .blobs
        .iter()
        .filter(|blob| !blob.media_type.is_foreign_layer());
    own.map(|blob| (blob.digest, blob.size)).collect()
}

/// Whether a registry that misses `named` may miss this: one that names nothing may miss all.
fn is_meant(digest: &Digest, named: &[Digest]) -> bool {
    named.is_empty() || named.contains(digest)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    /// A manifest that failed dropped the upload of another one's blob: its session stayed open.
    #[tokio::test(start_paused = true)]
    async fn what_runs_ends_after_a_failure_and_nothing_further_starts() {
        let ended = AtomicUsize::new(0);
        let last = async |seconds: u64, result: Result<u64, Fault>| {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            ended.fetch_add(1, Ordering::Relaxed);
            result
        };
        let fails = last(1, Err(Fault::rejected("no")));
        let work = vec![
            fails.boxed(),
            last(2, Ok(2)).boxed(),
            last(3, Ok(3)).boxed(),
        ];
        assert!(side_by_side(work, 2).await.is_err());
        assert_eq!(ended.load(Ordering::Relaxed), 2);

        let work = vec![last(1, Ok(1)).boxed(), last(2, Ok(2)).boxed()];
        assert_eq!(side_by_side(work, 2).await.unwrap(), [1, 2]);
    }
}
