//! What the routes of some worlds have besides: they observe, a moving tag goes to no lower version,
//! their images move together, or what a moving tag named is kept. Each is drawn for itself: the
//! other worlds stay as they were.

use std::collections::BTreeSet;
use std::sync::Arc;

use blobferry::oci::Tag;

use super::chance::{Chance, Draw};
use super::people::tag;
use super::registry::Registry;
use super::trace::{BACKUP, Rules};

/// Draws what the routes of a world have.
pub fn draw(chance: Chance, routes: &mut [Rules]) {
    observe(chance.of("observe"), routes);
    go_forward(chance.of("forward only"), routes);
    form_a_set(chance.of("set"), routes);
    back_up(chance.of("backup"), routes);
}

fn observe(mut draw: Draw, routes: &mut [Rules]) {
    if draw.percent(10) {
        let observing = draw.pick(routes).route;
        let of_it = routes.iter_mut().filter(|rules| rules.route == observing);
        of_it.for_each(|rules| rules.observes = true);
    }
}

/// A reload may let a route observe, or promote from then on.
pub fn switch_mode(mut draw: Draw, routes: &mut [Rules]) {
    if draw.percent(15) {
        let switched = draw.pick(routes).route;
        let of_it = routes
            .iter_mut()
            .filter(|rules| rules.route == switched && rules.set.is_none());
        of_it.for_each(|rules| rules.observes = !rules.observes);
    }
}

fn go_forward(mut draw: Draw, routes: &mut [Rules]) {
    if !draw.percent(12) {
        return;
    }
    let chosen = draw.pick(routes).route;
    let is_for_all = draw.percent(30);
    let of_it = routes
        .iter_mut()
        .filter(|rules| is_for_all || rules.route == chosen);
    of_it.for_each(|rules| rules.forward_only = rules.moving.clone());
}

/// A member of a set has one source, and writes.
fn form_a_set(mut draw: Draw, routes: &mut [Rules]) {
    if !draw.percent(40) {
        return;
    }
    let may_join = |rules: &Rules| !rules.wild && !rules.observes;
    let joining = routes.iter().filter(|rules| may_join(rules));
    let names: BTreeSet<Arc<str>> = joining.map(|rules| rules.route.clone()).collect();
    if names.len() > 1 {
        let members = routes.iter_mut().filter(|rules| may_join(rules));
        members.for_each(|rules| rules.set = Some("shop".into()));
    }
}

/// The registry of a set's member refuses one of its tags from now on.
pub fn refuse_a_member(mut draw: Draw, routes: &[Rules], registries: &[Registry]) {
    let members = routes.iter().filter(|rules| rules.set.is_some());
    let members: Vec<&Rules> = members.collect();
    let (registry, repository) = draw.pick(&members).destination.clone();
    let tag = draw.pick(&["latest", "latest", "latest", "v1", "v2", "v3"]);
    let at = registries.iter().filter(|known| *known.name() == registry);
    at.for_each(|known| {
        let refused = (repository.to_string(), tag.to_owned());
        known.set(|settings| settings.refused.extend([refused]));
    });
}

fn back_up(mut draw: Draw, routes: &mut [Rules]) {
    if !draw.percent(12) {
        return;
    }
    let chosen = draw.pick(routes).route;
    for rules in routes.iter_mut().filter(|rules| rules.route == chosen) {
        rules.backs_up = true;
        rules.exclude.push(format!("{BACKUP}*").into());
    }
}

/// The tag of the version with that number: a higher one has a higher version, though not always
/// by its text.
pub fn version(number: u64, draw: &mut Draw) -> Tag {
    let prefix = if draw.percent(15) { "" } else { "v" };
    let candidate = if draw.percent(10) { "-rc.1" } else { "" };
    let major = 1 + number / 7;
    let minor = number % 7 * 2;
    tag(&format!("{prefix}{major}.{minor}.0{candidate}"))
}
