//! Rounds: when staging is asked again about a fixed tag that was equal.
//!
//! A round of a tag is as long as `verify` less one poll, and each tag has its own beginning of
//! rounds. An answer counts until its round ends, so it is at most `verify` old when the next poll
//! asks again, and each poll asks about an even share of the tags.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use jiff::Timestamp;

use super::topology::Intervals;
use crate::endpoint::RepositoryId;
use crate::oci::Tag;

/// A poll comes up to a tenth late.
const LATEST_POLL: f64 = 1.1;

/// The rounds of all tags.
pub(super) struct VerifyRounds {
    /// In milliseconds. Zero: each answer counts for its own look only.
    length: i64,
}

impl VerifyRounds {
    pub(super) fn of(intervals: &Intervals) -> VerifyRounds {
        let poll = intervals.poll.unwrap_or(intervals.verify);
        let late = poll.mul_f64(LATEST_POLL);
        let length = intervals.verify.saturating_sub(late);
        VerifyRounds {
            length: milliseconds(length),
        }
    }

    /// Whether both times are in one round of the tag.
    pub(super) fn are_together(
        &self,
        (repository, tag): (&RepositoryId, &Tag),
        one: Timestamp,
        other: Timestamp,
    ) -> bool {
        if self.length == 0 {
            return false;
        }
        let shift = shift(repository, tag, self.length);
        self.round(one, shift) == self.round(other, shift)
    }

    fn round(&self, time: Timestamp, shift: i64) -> i64 {
        (time.as_millisecond() + shift).div_euclid(self.length)
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// How far the rounds of a tag are ahead of others.
fn shift(repository: &RepositoryId, tag: &Tag, length: i64) -> i64 {
    let mut hasher = DefaultHasher::new();
    repository.origin.as_str().hash(&mut hasher);
    repository.repository.as_str().hash(&mut hasher);
    tag.as_str().hash(&mut hasher);
    let hash = hasher.finish() % length.unsigned_abs();
    i64::try_from(hash).expect("less than a positive i64")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Origin;
    use jiff::SignedDuration;

    const POLL: Duration = Duration::from_secs(60);
    const VERIFY: Duration = Duration::from_secs(3600);

    fn rounds(poll: Option<Duration>) -> VerifyRounds {
        VerifyRounds::of(&Intervals {
            poll,
            verify: VERIFY,
        })
    }

    fn repository() -> RepositoryId {
        RepositoryId {
            origin: Origin::new("https://staging.example"),
            repository: "app".parse().unwrap(),
        }
    }

    fn tag(number: usize) -> Tag {
        format!("v{number}").parse().unwrap()
    }

    #[test]
    fn each_tag_is_due_within_verify_and_each_poll_carries_its_share() {
        const TAGS: usize = 6000;
        let rounds = rounds(Some(POLL));
        let began: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let late = SignedDuration::from_secs(66);
        let repository = repository();
        let mut asked = vec![began; TAGS];
        let mut shares = Vec::new();
        for poll in 1..=120 {
            let now = began + late * poll;
            let mut share = 0;
            for (number, asked) in asked.iter_mut().enumerate() {
                if rounds.are_together((&repository, &tag(number)), *asked, now) {
                    continue;
                }
                assert!(now.duration_since(*asked) <= SignedDuration::from_secs(3600));
                *asked = now;
                share += 1;
            }
            shares.push(share);
        }
        let even = TAGS * 66 / 3534;
        let is_even = |share: &usize| (even / 2..even * 2).contains(share);
        assert!(shares.iter().all(is_even), "{even}: {shares:?}");
    }

    #[test]
    fn without_polls_every_look_asks() {
        let now: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        for poll in [None, Some(VERIFY), Some(VERIFY * 2)] {
            let together = rounds(poll).are_together((&repository(), &tag(1)), now, now);
            assert!(!together, "{poll:?}");
        }
    }

    #[test]
    fn an_answer_from_another_time_of_the_clock_does_not_count() {
        let now: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let rounds = rounds(Some(POLL));
        for hours in [-48, -1, 1, 48] {
            let seen = now + SignedDuration::from_hours(hours);
            assert!(!rounds.are_together((&repository(), &tag(1)), seen, now));
        }
    }
}
