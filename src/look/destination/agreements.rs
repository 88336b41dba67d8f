//! Agreements: equal tags that the ledger does not know yet.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Compared, DestinationLook};
use crate::endpoint::{Destination as _, Repositories, Source, Tally};
use crate::fault::{Class, Fault};
use crate::job::TagState;
use crate::ledger::{Agreement, EqualityUpdate};
use crate::oci::{Digest, Tag};
use crate::transfer::Found;
use crate::transfer::accepts::Seen;
use crate::transfer::limits::RequestClass;
use crate::transfer::moves::Sighting;

impl<B: Repositories> DestinationLook<'_, B> {
    /// Records in the ledger that both sides name `digest`. Returns an earlier write that is found
    /// this way.
    pub(super) async fn learn(
        &self,
        tag: &Tag,
        digest: Digest,
        compared: &Compared,
        tally: &Arc<Tally>,
    ) -> Option<Found> {
        // A hint does not confirm itself.
        if compared.is_by_hint() || self.look.request.options.dry_run {
            return None;
        }
        self.end_accepts(tag, digest, compared).await;
        let called = self.there(tag);
        let known = self.known.get(&called).cloned().unwrap_or_default();
        match known.on_equality(&digest) {
            EqualityUpdate::None => None,
            EqualityUpdate::Written => {
                let found = self
                    .look
                    .topology
                    .engine
                    .ledger
                    .found(&self.place(tag), &digest)
                    .await;
                self.noted(found).map(|()| Found {
                    digest,
                    previous: known.digest,
                })
            }
            EqualityUpdate::Agreed => {
                if !self.look.route.selection.is_moving(tag)
                    || self.proves(tag, digest, tally).await
                {
                    let agreement = Agreement {
                        tag: called,
                        digest,
                        known,
                    };
                    self.agreements
                        .lock()
                        .expect("nothing panics while it notes")
                        .push(agreement);
                }
                None
            }
        }
    }

    /// Ends what was accepted of a tag that is equal: it was named, or a side has moved.
    async fn end_accepts(&self, tag: &Tag, digest: Digest, compared: &Compared) {
        let abilities = self.side.repository.abilities();
        let is_answer = compared.destination_via.is_answer(abilities);
        let seen = Seen {
            staging: compared.source_at.map(|_| digest),
            production: is_answer.then_some(digest),
        };
        let engine = &self.look.topology.engine;
        let place = self.place(tag);
        let ended = engine.end_accepts(&place, seen, self.began).await;
        self.noted(ended);
    }

    /// What follows from what staging names, whatever becomes of the tag: the pushers of that digest
    /// are noted, and the rollbacks and approvals end that staging has moved on from. A list that
    /// lags tells nothing of that.
    pub(super) async fn seen_in_staging(
        &self,
        tag: &Tag,
        staging: TagState,
        asked: Option<Instant>,
    ) {
        let look = self.look;
        let Some(digest) = staging.digest().filter(|_| !look.request.options.dry_run) else {
            return;
        };
        let engine = &look.topology.engine;
        let gates = &look.route.gates;
        self.noted(engine.note_pushers(gates, self.source, tag, digest).await);
        if let Some(asked) = asked {
            let seen = Sighting {
                digest,
                asked,
                look_began: self.began,
            };
            self.noted(engine.end_outlived(&self.place(tag), seen).await);
        }
    }

    /// Whether the source proves by the bytes that its moving tag names `digest`. A registry's
    /// claim about a digest proves nothing. A source without proof is not asked again for that
    /// digest.
    pub(super) async fn proves(&self, tag: &Tag, digest: Digest, tally: &Arc<Tally>) -> bool {
        let engine = &self.look.topology.engine;
        let place = self.place(tag);
        if engine.is_unproven(&place, &digest) {
            return false;
        }
        let source = self.source.counted(tally);
        let priority = self.look.request.priority(RequestClass::Manifests);
        let proven = match engine
            .read_tag(&source, tag, priority, self.look.stop)
            .await
        {
            Ok(read) => read == Some(digest),
            Err(fault) if fault.class() == Class::Corrupt => {
                engine.metrics.mismatched(self.source.registry());
                false
            }
            Err(fault) => {
                tracing::debug!(
                    source = self.source_name(tag),
                    error = %fault.chain(),
                    "the manifest of an equal tag could not be read"
                );
                return false;
            }
        };
        if !proven {
            engine.note_unproven(&place, &digest);
        }
        proven
    }

    /// Writes the collected agreements once there are `least` of them.
    pub(super) async fn record_agreements(&self, least: usize) {
        let agreements = {
            let mut agreements = self
                .agreements
                .lock()
                .expect("nothing panics while it notes");
            if agreements.len() < least {
                Vec::new()
            } else {
                std::mem::take(&mut *agreements)
            }
        };
        if !agreements.is_empty() {
            let origin = self.side.repository.origin();
            let repository = self.side.repository.repository();
            self.noted(
                self.look
                    .topology
                    .engine
                    .ledger
                    .agree(origin, repository, agreements)
                    .await,
            );
        }
    }

    /// Logs a failed write. The next look tries again.
    pub(super) fn noted(&self, written: Result<(), Fault>) -> Option<()> {
        let fault = match written {
            Ok(()) => return Some(()),
            Err(fault) => fault,
        };
        let destination = self.side.repository.address();
        tracing::error!(
            %destination,
            error = %fault.chain(),
            "the ledger could not be written"
        );
        None
    }
}
