//! `sets`: routes with images that move together.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::keys::keys;
use super::problem::hint;
use super::section::Item;
use super::tokens::is_name;
use crate::fault::clip;
use crate::oci::Tag;
use crate::route::Route;
use crate::set::Set;

/// Most routes of one set.
const MOST: usize = 100;

keys! {
    SetSection, SetKeys {
        /// The names of its routes, in the order in which tags are named. Each has a literal `from`
        /// and takes fixed tags.
        #[schemars(length(min = 2, max = 100))]
        routes: Vec<String> = "name the routes that move together",
    }
}

/// The sets that could be read; `routes` are those of the config that could be.
pub(super) fn read(sets: Option<Item<'_>>, routes: &[Route]) -> Vec<Set> {
    let Some(section) = sets.and_then(|item| item.section()) else {
        return Vec::new();
    };
    let mut taken = BTreeMap::new();
    let entries = section.entries();
    entries
        .filter_map(|(name, item)| set(name, &item, routes, &mut taken))
        .collect()
}

fn set(
    name: &str,
    item: &Item<'_>,
    routes: &[Route],
    taken: &mut BTreeMap<Arc<str>, String>,
) -> Option<Set> {
    if !is_name(name) {
        let name = clip(name, 100);
        item.wrong(format!(
            "\"{name}\" is not a name for a set (letters, digits and . _ -, at most 64)"
        ));
    }
    let keys: SetKeys<'_> = item.keys()?;
    let listed = keys.routes?;
    let items = listed.items();
    if items.len() < 2 {
        listed.wrong("names fewer than two routes: what is to move together?");
    }
    if items.len() > MOST {
        listed.wrong(format!("names more than {MOST} routes"));
        return None;
    }
    let members = items
        .iter()
        .filter_map(|item| member(name, item, routes, taken));
    Some(Set {
        name: name.into(),
        routes: members.collect(),
    })
}

/// A route of a set.
fn member(
    set: &str,
    item: &Item<'_>,
    routes: &[Route],
    taken: &mut BTreeMap<Arc<str>, String>,
) -> Option<Arc<str>> {
    let name = item.word()?;
    let Some(route) = routes.iter().find(|route| *route.name == *name) else {
        let near = hint(&name, routes.iter().map(|route| &*route.name));
        let name = clip(&name, 150);
        item.wrong(format!("there is no route \"{name}\"{near}"));
        return None;
    };
    if let Some(other) = taken.insert(route.name.clone(), set.into()) {
        item.wrong(format!(
            "route {name} is in the set {other} already: a route belongs to one set"
        ));
        return None;
    }
    if !route.from.is_literal() {
        item.wrong(format!(
            "route {name} has wildcards in `from`: a member of a set is one repository"
        ));
        return None;
    }
    if route.observes() {
        item.wrong(format!(
            "route {name} only observes (`mode: observe`): the set would wait for it for ever"
        ));
        return None;
    }
    if !takes_fixed_tags(route) {
        item.wrong(format!(
            "route {name} takes no fixed tag: a moving tag of a set only moves to what a fixed tag of each member names"
        ));
        return None;
    }
    Some(route.name.clone())
}

/// Whether a route may take a fixed tag. Of a rule that is no tag itself that is assumed.
fn takes_fixed_tags(route: &Route) -> bool {
    let selection = &route.selection;
    selection.include.iter().any(|rule| {
        let text = rule.as_str();
        let is_moving_rule = selection.moving.contains(rule);
        let is_moving_tag = text
            .parse()
            .is_ok_and(|tag: Tag| selection.is_moving(&tag) || !selection.allows(&tag));
        !is_moving_rule && !is_moving_tag
    })
}
