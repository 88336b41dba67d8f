//! What the index remembers of both sides.
//!
//! Where staging's listing shows no digests, a routine look asks only about moving tags, new tags,
//! and tags that are not up to date. A fixed tag that was equal counts as equal until its
//! round ([`VerifyRounds`]) ends. Then both sides are asked, and its referrers are looked for.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Compared, DestinationLook, Equal};
use crate::endpoint::{Repositories, Source};
use crate::index::TagHint;
use crate::job::{Cause, Outcome, Settled, TagState};
use crate::look::rounds::VerifyRounds;
use crate::oci::{Digest, Tag};

/// What a look was told about tags: for the index.
pub(super) struct Asked {
    /// When the next one was asked about, at the earliest.
    pub(super) at: Timestamp,
    source: Vec<(Tag, Option<TagHint>)>,
    destination: Vec<(Tag, Option<TagHint>)>,
}

impl Asked {
    pub(super) fn since(at: Timestamp) -> Asked {
        Asked {
            at,
            source: Vec::new(),
            destination: Vec::new(),
        }
    }

    fn hint(&self, digest: Digest) -> Option<TagHint> {
        let seen = self.at;
        Some(TagHint { digest, seen })
    }
}

impl<B: Repositories> DestinationLook<'_, B> {
    /// Staging's digest of a fixed tag, if it need not be asked for in this look.
    pub(super) fn remembered(&self, tag: &Tag) -> Option<Digest> {
        let remembered = self.listing.remembered.get(tag).copied();
        remembered.filter(|_| !self.troubled.contains(&self.there(tag)))
    }

    /// Production's digest by the index, if it is recent. It proves only that nothing is to be
    /// done. A tag that last differed gets no hint.
    pub(super) fn fresh_hint(&self, tag: &Tag) -> Option<Digest> {
        let called = self.there(tag);
        let known = self.known.get(&called);
        if known.is_some_and(|known| known.reported.is_some()) || self.troubled.contains(&called) {
            return None;
        }
        // A write that may arrive yet would not be seen.
        if known.is_some_and(|known| !known.intended.is_empty()) {
            return None;
        }
        let hint = self.hints.get(&called)?;
        let trusts_hints = self.look.request.trusts_hints;
        let is_fresh = if self.look.is_routine() && self.has_rounds(tag) {
            let is_due = !self.is_in_round(tag, hint.seen);
            !is_due && (trusts_hints || self.remembered(tag) == Some(hint.digest))
        } else {
            let age = self.began.duration_since(hint.seen).as_secs();
            trusts_hints && (0..self.trust()).contains(&age)
        };
        is_fresh.then_some(hint.digest)
    }

    /// Whether a look at an equal tag verifies it.
    pub(super) fn is_verified(&self, tag: &Tag, compared: &Compared) -> bool {
        let cause = self.look.request.cause;
        if self.has_rounds(tag) {
            cause.is_routine() && !compared.source_by_hint
        } else {
            cause == Cause::Verify
        }
    }

    /// For how many seconds production's answers count.
    pub(super) fn trust(&self) -> i64 {
        let trust = self.look.topology.engine.settings.trust.as_secs();
        i64::try_from(trust).unwrap_or(i64::MAX)
    }

    /// Whether the listing shows the tag without a digest, and the tag is fixed.
    fn has_rounds(&self, tag: &Tag) -> bool {
        let listed = self.listing.tags.get(tag);
        listed.is_some_and(|listed| self.look.has_rounds(tag, listed.digest))
    }

    fn is_in_round(&self, tag: &Tag, seen: Timestamp) -> bool {
        let rounds = VerifyRounds::of(&self.look.topology.intervals);
        rounds.are_together((&self.source.tags_id(), tag), seen, self.began)
    }

    pub(super) fn note_equal(&self, tag: &Tag, equal: &Equal, asked: &mut Asked) {
        if equal.source_by_hint {
            return;
        }
        // A hint does not confirm itself.
        if !equal.by_hint {
            let called = self.there(tag);
            let hint = asked.hint(equal.digest);
            asked.destination.push((called, hint));
        }
        if self.has_rounds(tag) {
            let hint = asked.hint(equal.digest);
            asked.source.push((tag.clone(), hint));
        }
    }

    pub(super) fn note_settled(&self, tag: &Tag, settled: &Settled, asked: &mut Asked) {
        let is_equal = matches!(settled.result, Outcome::Promoted | Outcome::UpToDate);
        let is_known = !self.look.is_routine() || self.listing.remembered.contains_key(tag);
        if self.has_rounds(tag) && (is_equal || is_known) {
            let digest = settled.digest.filter(|_| is_equal);
            let hint = digest.and_then(|digest| asked.hint(digest));
            asked.source.push((tag.clone(), hint));
        }
    }

    /// Keeps what staging names under tags that were left out, as far as they are still equal.
    pub(super) async fn remember_left_out(&self, answers: &BTreeMap<Tag, TagState>) {
        let mut asked = Asked::since(self.began);
        for (tag, answer) in answers {
            let before = self.listing.remembered.get(tag).copied();
            let equal = before.filter(|before| answer.digest() == Some(*before));
            let hint = equal.and_then(|digest| asked.hint(digest));
            asked.source.push((tag.clone(), hint));
        }
        self.remember(asked).await;
    }

    /// Keeps what was asked.
    pub(super) async fn remember(&self, asked: Asked) {
        if self.look.request.options.dry_run {
            return;
        }
        let index = &self.look.topology.engine.index;
        let sides = [
            (self.source.tags_id(), asked.source),
            (self.side.repository.id(), asked.destination),
        ];
        for (repository, tags) in sides {
            if !tags.is_empty() {
                index.remember_tags(&repository, tags).await;
            }
        }
    }
}
