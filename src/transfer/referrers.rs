//! Referrers: signatures, SBOMs and attestations travel with their subject and arrive before its
//! tag.
//!
//! They are found through the referrers API, else through the fallback tag, and through cosign's
//! tags: in the source's listing, or by name without one. Referrers of referrers and of companions
//! are found likewise, to a bounded depth. A failed look-up is a failure, never "no referrers".
//!
//! Whether a registry lists referrers is learnt from its answers, for each side separately. If the
//! destination does, no fallback tag is written there. If it does not, and in layouts, the fallback
//! tag is updated by one writer at a time, with staging's own list if that is equal. A referrer
//! that the destination refuses is reported and does not fail its subject.

mod companion;
mod fallback;
mod listing;

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::timeout;

use super::Promotion;
use super::carry::side_by_side;
use super::survey::{Image, TagFacts};
use crate::decision::Block;
use crate::endpoint::{Destination, Put, Source};
use crate::fault::{Class, Fault};
use crate::job::ReferrerOutcome;
use crate::job::gates::GateKind;
use crate::oci::{Descriptor, Digest, Kind, Manifest, Tag};

/// How far referrers of referrers are followed, and indexes in indexes.
const DEPTH: usize = 4;
/// Most referrers of one image.
const MOST: usize = 1000;
/// How long a rollback waits for what belongs to its image.
const ROLLBACK_WAITS: Duration = Duration::from_secs(15);
/// Most refused referrers of a job that are reported one by one.
const REFUSALS_TOLD: u64 = 8;

impl<S: Source, D: Destination> Promotion<'_, S, D> {
    /// Copies the referrers of an image before its tag moves. A rollback of an image that is whole
    /// does without them where they cannot be had, unless production lacks one that the ledger knows
    /// under a tag.
    pub(super) async fn bring_referrers(&self, subjects: &[Digest]) -> Result<(), Fault> {
        // Boxed to keep the job's future small.
        let copied = self.copy_referrers(subjects).boxed();
        if self.job.rollback.is_none() {
            return copied.await;
        }
        let fault = match timeout(ROLLBACK_WAITS, copied).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(fault)) if fault.class() == Class::Cancelled => return Err(fault),
            Ok(Err(fault)) => fault,
            Err(_) => {
                let seconds = ROLLBACK_WAITS.as_secs();
                Fault::retryable(format!("its referrers are not known after {seconds} s"))
            }
        };
        if self.lacks_known_companion(subjects).await? {
            return Err(fault);
        }
        let text = fault.chain();
        tracing::warn!(
            destination = self.destination_reference(),
            error = text,
            "a rollback goes on without what may belong to its image"
        );
        self.note_reason(format!(
            "the image is whole, and what may belong to it (signatures and other referrers) was not asked for to the end: \
             {text}"
        ));
        Ok(())
    }

    /// Whether the destination does not show a companion tag of one of `subjects` that the ledger
    /// knows there.
    async fn lacks_known_companion(&self, subjects: &[Digest]) -> Result<bool, Fault> {
        let ledger = &self.engine.ledger;
        let destination = &self.destination;
        let known = ledger.written_in(destination.origin(), destination.repository());
        let known = known.await?;
        let companions = subjects
            .iter()
            .flat_map(|subject| Tag::fallback(subject).with_usual_endings());
        for tag in companions {
            let written = known.get(&tag).and_then(|record| record.digest);
            let Some(written) = written else {
                continue;
            };
            let there = timeout(ROLLBACK_WAITS, self.destination_digest(&tag));
            if !matches!(there.await, Ok(Ok(Some(digest))) if digest == written) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Copies the referrers of `subjects`, and their referrers.
    pub(super) async fn copy_referrers(&self, subjects: &[Digest]) -> Result<(), Fault> {
        let mut seen: HashSet<Digest> = subjects.iter().copied().collect();
        let mut level = subjects.to_vec();
        for depth in 0..DEPTH {
            let copies = level
                .into_iter()
                .map(|subject| self.copy_referrers_of(subject, depth > 0).boxed())
                .collect();
            let found = side_by_side(copies, self.engine.settings.bounds.referrers).await?;
            level = found
                .into_iter()
                .flatten()
                .filter(|digest| seen.insert(*digest))
                .collect();
            if seen.len() > subjects.len() + MOST {
                return Err(Fault::rejected(format!(
                    "{} has more than {MOST} referrers",
                    self.source_reference()
                )));
            }
            if level.is_empty() {
                return Ok(());
            }
        }
        tracing::warn!(
            source = self.source_reference(),
            "referrers of referrers are followed {DEPTH} levels deep, and there are more"
        );
        Ok(())
    }

    /// Copies referrers of a tag that is up to date: signatures often come after the image. The
    /// look found that a check is due.
    pub(super) async fn copy_late_referrers(&self, facts: &TagFacts) -> Result<(), Fault> {
        let Some(top) = facts.source else {
            return Ok(());
        };
        if self.job.companions.is_empty() && !self.source_lists_referrers(&top).await? {
            self.mark_checked(&top).await;
            return Ok(());
        }
        let Some(manifest) = self.source_manifest(top.into()).await? else {
            return Ok(());
        };
        self.copy_referrers(&self.manifests_below(manifest).await?)
            .await
    }

    /// The possible subjects of an image's referrers: its manifest, and for an index all manifests
    /// below it.
    pub(super) async fn manifests_below(&self, top: Manifest) -> Result<Vec<Digest>, Fault> {
        let mut subjects = vec![top.digest];
        let mut indexes = vec![top];
        for _ in 0..DEPTH {
            let mut below = Vec::new();
            for child in indexes.iter().flat_map(|index| &index.children) {
                if child.media_type.is_surely_blob() || subjects.contains(&child.digest) {
                    continue;
                }
                subjects.push(child.digest);
                if child.media_type.kind() == Kind::Index {
                    below.extend(self.source_manifest(child.digest.into()).await?);
                }
            }
            if below.is_empty() {
                break;
            }
            indexes = below;
        }
        Ok(subjects)
    }

    async fn mark_checked(&self, subject: &Digest) {
        self.engine
            .index
            .mark_checked(&self.destination.id(), subject)
            .await;
    }

    /// Copies the referrers and companions of one subject. Returns them.
    async fn copy_referrers_of(
        &self,
        subject: Digest,
        is_referrer: bool,
    ) -> Result<Vec<Digest>, Fault> {
        let listed = self.list_referrers(&subject).await?;
        if !listed.is_empty() {
            self.copy_listed(&subject, &listed).await?;
        }
        let all = &self.job.companions;
        let companions = if is_referrer {
            all.of_referrer(&subject)
        } else {
            all.of(&subject)
        };
        let besides = companions
            .iter()
            .filter(|tag| **tag != Tag::fallback(&subject));
        let bring = besides
            .map(|tag| self.copy_companion(tag).boxed())
            .collect();
        let brought = side_by_side(bring, self.engine.settings.bounds.referrers).await?;
        self.mark_checked(&subject).await;
        let origin = self.destination.origin();
        let repository = self.destination.repository();
        self.engine.note_tried(origin, repository, companions);
        Ok(listed
            .into_iter()
            .map(|descriptor| descriptor.digest)
            .chain(brought.into_iter().flatten())
            .collect())
    }

    /// Copies the referrers that the destination does not list under their subject.
    async fn copy_listed(&self, subject: &Digest, listed: &[Descriptor]) -> Result<(), Fault> {
        let mut unknown = Vec::new();
        for descriptor in listed {
            if self.is_complete(&descriptor.digest).await {
                self.count_referrer(&descriptor.digest, ReferrerOutcome::Present);
            } else {
                unknown.push(descriptor);
            }
        }
        if unknown.is_empty() {
            return Ok(());
        }
        let there = self.listed_there(subject, &unknown).await?;
        let mut brought = Vec::new();
        let mut unlisted = Vec::new();
        for descriptor in unknown {
            // The list says where to look; the manifest itself is asked for, once.
            if there.has(&descriptor.digest) && self.destination_has(&descriptor.digest).await? {
                self.count_referrer(&descriptor.digest, ReferrerOutcome::Present);
                continue;
            }
            let Some(manifest) = self.source_manifest(descriptor.digest.into()).await? else {
                self.is_missing(&format!("the referrer {}", descriptor.digest));
                if let Some(gate) = self.gate_passed_by([descriptor.digest]) {
                    let needed = needs_referrer(gate, &descriptor.digest);
                    let text = format!("{needed}, which staging lists and does not have");
                    return Err(Fault::retryable(text));
                }
                continue;
            };
            if manifest
                .subject
                .as_ref()
                .is_none_or(|named| named.digest != *subject)
            {
                // Some registries list manifests that do not name the subject.
                continue;
            }
            let image = self.walk(manifest).await?;
            let contents = self.contents(image.top.digest, None, Some(&image)).await?;
            if let Some(block) = self.denial(contents.as_ref()) {
                self.referrer_is_denied(&image.top, block)?;
                continue;
            }
            let says_listed = match self.copy_by_digest(&image).await {
                Ok(says_listed) => says_listed,
                // ECR has refused some with 405 or 400:
                // https://github.com/aws/containers-roadmap/issues/2783
                Err(fault) if fault.class() == Class::Rejected => {
                    self.referrer_is_refused(&image.top, fault)?;
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            self.count_referrer(&image.top.digest, ReferrerOutcome::Copied);
            brought.push(image.top.digest);
            if !self
                .is_listed_now(subject, &image.top.digest, &there, says_listed)
                .await?
            {
                unlisted.push(image.top);
            }
        }
        if !unlisted.is_empty() {
            self.list_under_fallback(subject, &unlisted).await?;
        }
        self.remember_manifests(brought).await;
        Ok(())
    }

    /// Reports a referrer that the destination does not take.
    ///
    /// # Errors
    /// A gate passed by it: without it the image would not pass at the destination.
    fn referrer_is_refused(&self, referrer: &Manifest, fault: Fault) -> Result<(), Fault> {
        let told = self.counts.referrers_refused.load(Ordering::Relaxed);
        self.count_referrer(&referrer.digest, ReferrerOutcome::Refused);
        if told < REFUSALS_TOLD {
            let registry = self.destination.registry();
            self.note_reason(format!(
                "{registry} refuses the referrer {}: {}",
                referrer.digest,
                fault.chain()
            ));
        }
        tracing::debug!(
            destination = %self.destination.address(),
            referrer = %referrer.digest,
            error = %fault.chain(),
            "a referrer is refused"
        );
        match self.gate_passed_by(evidence_of(referrer)) {
            Some(gate) => Err(fault.while_doing(needs_referrer(gate, &referrer.digest))),
            None => Ok(()),
        }
    }

    /// Reports a referrer that is denied.
    ///
    /// # Errors
    /// A gate passed by it.
    fn referrer_is_denied(&self, referrer: &Manifest, block: Block) -> Result<(), Fault> {
        self.count_referrer(&referrer.digest, ReferrerOutcome::Refused);
        let denied = block.reasons.join("; ");
        block
            .reasons
            .into_iter()
            .for_each(|reason| self.note_reason(reason));
        match self.gate_passed_by(evidence_of(referrer)) {
            Some(gate) => {
                let needed = needs_referrer(gate, &referrer.digest);
                Err(Fault::rejected(format!("{needed}: {denied}")))
            }
            None => Ok(()),
        }
    }

    /// Reports a referrer or a companion tag that staging lists and does not have. The image is
    /// promoted all the same.
    fn is_missing(&self, what: &str) {
        let address = self.source.address();
        let told = self
            .counts
            .referrers_missing
            .fetch_add(1, Ordering::Relaxed);
        if told < REFUSALS_TOLD {
            self.note_reason(format!(
                "{address} lists {what} but does not have it: it is not carried; push it again"
            ));
        }
        tracing::warn!(
            source = self.source_reference(),
            %what,
            "staging lists it but does not have it; it is not carried"
        );
    }

    fn count_referrer(&self, referrer: &Digest, outcome: ReferrerOutcome) {
        if !self
            .counts
            .referrers
            .lock()
            .expect("nothing panics while it counts")
            .insert(*referrer)
        {
            return;
        }
        let counter = match outcome {
            ReferrerOutcome::Present => &self.counts.referrers_present,
            ReferrerOutcome::Copied => &self.counts.referrers_copied,
            ReferrerOutcome::Refused => &self.counts.referrers_refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.engine
            .metrics
            .referrer(&self.job.key.route, self.destination.registry(), outcome);
    }

    /// Carries a referrer under its digest. Returns whether the registry confirmed its subject.
    async fn copy_by_digest(&self, image: &Image) -> Result<bool, Fault> {
        self.carry_content(image).await?;
        match self.put(image, &image.top).await? {
            Put::Accepted { subject } => Ok(subject),
            Put::Immutable | Put::Missing(_) => {
                let address = self.destination.address();
                Err(Fault::rejected(format!(
                    "{address} does not take {}, which belongs to the image",
                    image.top.digest
                )))
            }
        }
    }
}

/// The digests by which a verdict may name a referrer.
fn evidence_of(referrer: &Manifest) -> impl Iterator<Item = Digest> + '_ {
    let layers = referrer.blobs.iter().map(|blob| blob.digest);
    std::iter::once(referrer.digest).chain(layers)
}

fn needs_referrer(gate: GateKind, referrer: &Digest) -> String {
    format!("the gate {gate} needs the referrer {referrer}")
}
