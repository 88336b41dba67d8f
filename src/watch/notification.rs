//! Notifications of registries as events: which registry they are about, and what comes of them.
//!
//! A notification names repositories and tags; the watch finds the routes. A repository that a
//! route reads is looked at under that route; one that a route writes to is looked at from its
//! source, so that drift is seen at once. Nothing is remembered of a sender: a repeated
//! notification is one more look at most, since the queue merges what waits.

use std::time::Duration;

use tokio::time::Instant;

use super::event::{Event, PushedTo, Reply, ReplyReceiver, Scope};
use super::handle::{Busy, Handle, run_id};
use super::receiver::{Notifier, Push};
use crate::job::{Actor, Cause, Look, Outcome, Remarks, Settled, TroubleClass, tag_of};
use crate::look::PassOptions;
use crate::oci::Tag;

/// How long a notification waits for room among the events: a sender gives up after some seconds,
/// and not every one sends again.
const ROOM: Duration = Duration::from_secs(1);

/// What became of a notification.
#[derive(Debug)]
pub struct Followed {
    /// The tags that were pushed; empty: none was named.
    tags: Vec<Tag>,
    answer: ReplyReceiver,
}

/// What the looks of a notification came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// No route has the repository.
    Ignored,
    /// Every look has ended, and what it found is done or waits for a rule or a person.
    Settled,
    /// A look failed, or its job for a tag that was pushed.
    Failed,
    /// The daemon stopped before a look had ended.
    Interrupted,
}

impl Followed {
    /// Waits until every look has ended that started after the notification arrived.
    pub async fn settled(mut self) -> Settlement {
        let Ok(queued) = self.answer.queued.await else {
            return Settlement::Interrupted;
        };
        let mut settlement = match queued {
            0 => Settlement::Ignored,
            _ => Settlement::Settled,
        };
        for _ in 0..queued {
            let Some(look) = self.answer.looks.recv().await else {
                return Settlement::Interrupted;
            };
            settlement = settlement.worse(&look, &self.tags);
        }
        settlement
    }
}

impl Settlement {
    /// This, or what the look came to for these tags if that is worse. A look may be shared with
    /// other notifications; the tags of those do not count.
    fn worse(self, look: &Look, tags: &[Tag]) -> Settlement {
        let mut troubles = look.trouble.iter();
        let is_interrupted = look.totals.interrupted > 0
            || troubles.any(|trouble| trouble.class == TroubleClass::Cancelled);
        let mut failed = look.jobs.iter().filter(|job| job.result == Outcome::Failed);
        let has_failed = !look.trouble.is_empty() || failed.any(|job| is_about(job, tags));
        match self {
            Settlement::Interrupted => self,
            _ if is_interrupted => Settlement::Interrupted,
            _ if has_failed => Settlement::Failed,
            _ => self,
        }
    }
}

/// Whether a job is about one of these tags, on either side.
fn is_about(job: &Settled, tags: &[Tag]) -> bool {
    let names = [&job.source, &job.destination].map(|reference| tag_of(reference));
    tags.is_empty() || tags.iter().any(|tag| names.contains(&Some(tag.as_str())))
}

impl Handle {
    /// Sends what a notification tells. Waits for room, but not for the watch to take it.
    ///
    /// # Errors
    /// [`Busy`], and then nothing was sent.
    pub async fn notify(
        &self,
        notifier: &Notifier,
        cause: Cause,
        principal: &str,
        push: Push,
    ) -> Result<(), Busy> {
        self.send_push(notifier, cause, principal, push, None).await
    }

    /// As [`Handle::notify`], for a caller that waits for the result.
    ///
    /// # Errors
    /// [`Busy`], and then nothing was sent.
    pub async fn follow(
        &self,
        notifier: &Notifier,
        cause: Cause,
        principal: &str,
        push: Push,
    ) -> Result<Followed, Busy> {
        let (reply, answer) = Reply::new();
        let tags = push.tags.clone();
        self.send_push(notifier, cause, principal, push, Some(reply))
            .await?;
        Ok(Followed { tags, answer })
    }

    async fn send_push(
        &self,
        notifier: &Notifier,
        cause: Cause,
        principal: &str,
        push: Push,
        reply: Option<Reply>,
    ) -> Result<(), Busy> {
        if !notifier.speaks_for(push.aws.as_ref()) {
            self.count(cause, "ignored");
            if let Some(reply) = reply {
                // The caller may be gone.
                let _ = reply.queued.send(0);
            }
            return Ok(());
        }
        let repositories = push.repositories.into_iter();
        let tags = push.tags.into_iter();
        let remarks = Remarks {
            reason: None,
            claimed_actor: push.pusher.and_then(|pusher| pusher.parse().ok()),
        };
        let event = Event {
            scope: Scope {
                // A signature is pushed under a tag of its own: the listing shows its subject.
                tags: tags.filter(|tag| !tag.travels_with_subject()).collect(),
                ..Scope::default()
            },
            pushed: Some(PushedTo {
                registry: notifier.registry.clone(),
                repositories: repositories.map(|name| notifier.rewritten(name)).collect(),
                at: push.pushed,
                may_precede: push.may_precede,
                is_scan: push.is_scan,
            }),
            cause,
            actor: Actor::named(principal).saying(remarks),
            run_id: run_id(),
            received: Instant::now(),
            options: PassOptions::default(),
            reply,
        };
        self.send_within(event, ROOM)
            .await
            .inspect_err(|_| self.count(cause, "limited"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;

    fn job(tag: &str, result: Outcome) -> Settled {
        Settled {
            source: format!("s.example:5000/app:{tag}"),
            destination: format!("p.example:5000/app:prod-{tag}"),
            ..Settled::sample(result)
        }
    }

    /// A burst becomes one look: a tag that is refused must not keep the messages of the others.
    #[test]
    fn a_shared_look_counts_for_the_tags_that_were_pushed() {
        let look = Look {
            jobs: vec![job("v1", Outcome::Promoted), job("v2", Outcome::Failed)],
            ..Look::default()
        };
        let of = |look: &Look, tags: &[&str]| {
            let tags: Vec<Tag> = tags.iter().map(|tag| tag.parse().unwrap()).collect();
            Settlement::Settled.worse(look, &tags)
        };
        assert_eq!(of(&look, &["v1"]), Settlement::Settled);
        assert_eq!(of(&look, &["2"]), Settlement::Settled);
        assert_eq!(of(&look, &["v2"]), Settlement::Failed);
        assert_eq!(of(&look, &["v1", "v2"]), Settlement::Failed);
        assert_eq!(
            of(&look, &["prod-v2"]),
            Settlement::Failed,
            "of the destination"
        );
        assert_eq!(of(&look, &[]), Settlement::Failed, "no tag was named");
        let blind = Look::failed(&Fault::retryable("down"));
        assert_eq!(of(&blind, &["v1"]), Settlement::Failed);
        let stopped = Look::interrupted();
        assert_eq!(of(&stopped, &["v1"]), Settlement::Interrupted);
    }
}
