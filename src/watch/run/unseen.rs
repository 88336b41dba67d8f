//! Pushes that a look has not seen: distribution tells of a manifest before it writes the tag
//! (`manifestServiceListener.Put` runs before `tags.Tag`), so a quick look finds no tag, or what the
//! tag named before. Such a look is repeated a few times, soon.
//! <https://github.com/distribution/distribution/blob/v3.1.1/registry/handlers/manifests.go>

use std::collections::BTreeMap;
use std::time::Duration;

use crate::job::{Look, Outcome, TroubleClass, tag_of};
use crate::look::LookRequest;
use crate::oci::Tag;

/// Before each further look.
const DELAYS: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_secs(2),
    Duration::from_secs(10),
];
/// Further looks at a tag that still names what it named: another push of the same is no news.
const UNCHANGED: u8 = 2;

/// The next look for the pushed tags that a look has not seen, and how long it waits.
pub(super) fn unseen(request: &LookRequest, look: &Look) -> Option<(LookRequest, Duration)> {
    let delay = *DELAYS.get(usize::from(request.attempt))?;
    if !request.is_notified() {
        return None;
    }
    let tags: Vec<Tag> = request
        .tags
        .iter()
        .filter(|tag| is_unseen(request, look, tag))
        .cloned()
        .collect();
    if tags.is_empty() {
        return None;
    }
    let next = LookRequest {
        tags,
        attempt: request.attempt + 1,
        // The engine knows them.
        pushers: BTreeMap::new(),
        ..request.clone()
    };
    Some((next, delay))
}

fn is_unseen(request: &LookRequest, look: &Look, tag: &Tag) -> bool {
    if !look.trouble.is_empty() {
        // A repository without tags is not there yet. Other trouble has looks of its own.
        let mut troubles = look.trouble.iter();
        return troubles.all(|trouble| trouble.class == TroubleClass::NotFound);
    }
    if let Some(named) = look.named.iter().find(|named| named.name == *tag)
        && named.missing.is_some()
    {
        return named.is_absent;
    }
    let results = look
        .jobs
        .iter()
        .filter(|job| tag_of(&job.source) == Some(tag.as_str()))
        .map(|job| job.result);
    let mut is_listed = false;
    for result in results {
        match result {
            Outcome::Gone => return true,
            Outcome::UpToDate => {}
            _ => is_listed = true,
        }
    }
    !is_listed && request.may_precede && request.attempt < UNCHANGED
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Class;
    use crate::job::{Actor, Cause, NamedTag, Trouble};

    fn request(may_precede: bool, attempt: u8) -> LookRequest {
        let tags = vec!["v1".parse().unwrap()];
        LookRequest {
            may_precede,
            attempt,
            ..LookRequest::new(tags, Cause::Webhook, Actor::daemon())
        }
    }

    fn look(missing: Option<&str>, is_absent: bool) -> Look {
        Look {
            named: vec![NamedTag {
                name: "v1".parse().unwrap(),
                missing: missing.map(Into::into),
                is_absent,
            }],
            ..Look::default()
        }
    }

    #[test]
    fn a_look_is_repeated_where_the_pushed_tag_may_still_come() {
        let waits = |request: &LookRequest, look: &Look| {
            unseen(request, look).map(|(_, delay)| delay.as_millis())
        };
        let absent = look(Some("no tag"), true);
        let excluded = look(Some("the rules"), false);
        let unchanged = look(None, false);
        for (attempt, delay) in [
            (0, Some(250)),
            (1, Some(2000)),
            (2, Some(10_000)),
            (3, None),
        ] {
            assert_eq!(waits(&request(false, attempt), &absent), delay);
        }
        assert_eq!(waits(&request(true, 0), &excluded), None);
        assert_eq!(
            waits(&request(false, 0), &unchanged),
            None,
            "told afterwards"
        );
        assert_eq!(waits(&request(true, 1), &unchanged), Some(2000));
        assert_eq!(waits(&request(true, 2), &unchanged), None);
        let of_class = |class: Class| Look {
            trouble: vec![Trouble {
                class: class.into(),
                text: String::new(),
            }],
            ..Look::default()
        };
        assert_eq!(
            waits(&request(false, 0), &of_class(Class::NotFound)),
            Some(250)
        );
        assert_eq!(waits(&request(true, 0), &of_class(Class::Auth)), None);
    }
}
