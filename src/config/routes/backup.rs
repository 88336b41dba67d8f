//! `backup` of a route: its name, and the tags that it would meet.

use crate::config::problem::complaint;
use crate::config::section::Item;
use crate::oci::Tag;
use crate::route::rules::TagRule;
use crate::route::{Naming, Route};

/// The name of backup tags.
pub(super) fn name(text: &str) -> Result<Naming, String> {
    let naming = Naming::parse(text).filter(|naming| !naming.keeps());
    naming.ok_or_else(|| {
        let what = "is no name for a backup tag: it has {tag} once and more beside it, as in \"{tag}.previous\"";
        complaint(text, what)
    })
}

/// A backup tag that is also the copy of a tag of staging would be written by both.
pub(super) fn check(item: &Item<'_>, route: &Route) {
    let Some(backup) = &route.backup else {
        return;
    };
    let moving = route.selection.moving.iter().filter_map(example);
    for tag in moving.filter(|tag| route.selection.allows(tag)) {
        for naming in route.to.iter().map(|to| to.naming()) {
            let there = naming.name(&tag).and_then(|there| backup.name(&there));
            let Some(there) = there else {
                let text = format!("makes too long a tag of {tag}");
                item.missing("backup", text);
                continue;
            };
            let meets = naming.original(&there);
            if meets.is_some_and(|meets| route.selection.allows(&meets)) {
                let exclude = backup.to_string().replace("{tag}", "*");
                item.missing(
                    "backup",
                    format!(
                        "{there} would be the backup of {tag}, and a tag that the rules choose: exclude it \
                         (`tags: {{exclude: [\"{exclude}\"]}}`)"
                    ),
                );
            }
        }
    }
}

/// A tag that a rule matches. Of a version range or a regular expression none is known; a look sees
/// what meets then.
fn example(rule: &TagRule) -> Option<Tag> {
    let tag: Tag = rule.as_str().replace(['*', '?'], "x").parse().ok()?;
    rule.matches(&tag).then_some(tag)
}
