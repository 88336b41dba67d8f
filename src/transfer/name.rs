//! Name: moves the tag. The last request of a promotion, sent only when the facts are fresh and the ledger knows what is
//! about to happen.

use std::time::Duration;

use tokio::time::Instant;

use super::Trip;
use super::retry::stoppable;
use super::survey::{Image, Sight, TagFacts};
use crate::endpoint::{Destination, Put, Source};
use crate::fault::Fault;
use crate::oci::{Digest, Target};

/// What came of naming.
pub(super) enum Named {
    /// The tag names the image now.
    Moved,
    /// It did before us.
    Equal,
    /// The registry keeps the tag at this digest and does not let it move.
    Immutable(Digest),
    /// One of the sides moved: these are the facts now, and nothing was named.
    Again(Box<TagFacts>),
}

impl<S: Source, D: Destination> Trip<'_, S, D> {
    /// Moves the tag to the image that has been carried, unless something moved meanwhile. Where a registry lets little be
    /// written, only so many jobs ask and write at a time as get their turn before what they have learnt is old.
    pub(super) async fn name(&self, image: &Image, facts: &TagFacts) -> Result<Named, Fault> {
        let lane = self.engine.limits.lane(self.destination.origin());
        let _place = stoppable(&self.stop.abort, lane.naming(self.job.rank, self.started)).await?;
        let fresh = self.engine.settings.fresh;
        // Where a turn has to be waited for, facts must last for longer.
        let asked = self.asked_again(facts, if lane.is_slow_to_write() { fresh / 2 } else { fresh }).await?;
        if asked.source != facts.source || asked.destination != facts.destination {
            return Ok(Named::Again(Box::new(asked)));
        }
        if self.stop.withdrawn.is_cancelled() {
            return Err(Fault::cancelled());
        }
        let place = &self.job.key.destination;
        self.engine.ledger.intend(place, &image.top.digest).await?;
        match self.put(image, &Target::Tag(place.tag.clone()), &image.top).await? {
            Put::Immutable => self.refused_as_immutable(image).await,
            Put::Accepted { .. } | Put::Missing(_) => {
                self.remember_manifests(image.subjects.clone()).await;
                self.remember_tag(Some(image.top.digest)).await;
                Ok(Named::Moved)
            }
        }
    }

    /// The facts, asked for again on the sides where they are older than `lasts`.
    async fn asked_again(&self, facts: &TagFacts, lasts: Duration) -> Result<TagFacts, Fault> {
        let is_old = |at: Instant| at.elapsed() > lasts;
        let now = Instant::now();
        let ask_source = async {
            if is_old(facts.source_at) { Ok((self.own_source_digest().await?, now)) } else { Ok((facts.source, facts.source_at)) }
        };
        let ask_destination = async {
            if !is_old(facts.destination_at) {
                return Ok((facts.destination, facts.destination_at));
            }
            let tag = &self.job.key.destination.tag;
            let listed = if facts.destination.is_none() { self.listed_absent(tag).await } else { None };
            match listed {
                Some(at) => Ok((None, at)),
                None => Ok((self.destination_digest(tag).await?, now)),
            }
        };
        let ((source, source_at), (destination, destination_at)) = futures::try_join!(ask_source, ask_destination)?;
        Ok(TagFacts { source, destination, source_at, destination_at, manifest: None })
    }

    /// The registry does not let the tag move, not even to where it is: its digest tells success from conflict.
    async fn refused_as_immutable(&self, image: &Image) -> Result<Named, Fault> {
        let facts = self.survey_tag(Sight::none()).await?;
        match facts.destination {
            Some(production) if production == image.top.digest => Ok(Named::Equal),
            Some(production) => Ok(Named::Immutable(production)),
            None => {
                Err(Fault::rejected(format!("{} is refused as immutable, but there is no such tag", self.destination_reference())))
            }
        }
    }

    pub(super) async fn remember_tag(&self, digest: Option<Digest>) {
        let place = &self.job.key.destination;
        self.engine.index.remember_tags(&place.origin, &place.repository, vec![(place.tag.clone(), digest)]).await;
    }
}
