//! What cannot be right between routes, or between a route and the registries.

use std::collections::{BTreeMap, BTreeSet};

use super::{Origins, Written};
use crate::endpoint::Origin;
use crate::fault::clip;
use crate::job::ScanSide;
use crate::route::{Pattern, Template};

/// `unscanned`: the registries without a scanner of images.
pub(super) fn check(routes: &[Written<'_>], origins: &Origins, unscanned: &BTreeSet<String>) {
    check_names(routes);
    check_order(routes);
    check_meetings(routes, origins);
    check_circles(routes, origins);
    check_scanners(routes, unscanned);
}

fn check_names(routes: &[Written<'_>]) {
    let mut seen: BTreeMap<&str, &Written<'_>> = BTreeMap::new();
    for written in routes {
        if let Some(first) = seen.get(&*written.route.name) {
            written.name.wrong(format!(
                "\"{}\" already is the name of routes[{}]",
                written.route.name, first.number
            ));
        } else {
            seen.insert(&written.route.name, written);
        }
    }
}

/// The first route that matches has a repository: one that stands behind it would never be asked.
fn check_order(routes: &[Written<'_>]) {
    for (index, written) in routes.iter().enumerate() {
        let from = &written.route.from;
        let mut earlier = routes[..index].iter();
        if let Some(first) = earlier.find(|other| claims(&other.route.from, from)) {
            let way_out = if first.route.from == *from {
                "let one route have both destinations"
            } else {
                "put this route first"
            };
            let number = first.number;
            let name = &first.route.name;
            written.from.wrong(format!(
                "never matches: routes[{number}] (\"{name}\") already claims this repository; {way_out}"
            ));
        }
    }
}

/// Whether a pattern matches all that another one does, as far as that is decided here: they are
/// equal, or the other one is a literal.
fn claims(pattern: &Pattern, other: &Pattern) -> bool {
    let literal = other
        .literal()
        .filter(|_| pattern.registry() == other.registry());
    pattern == other || literal.is_some_and(|literal| pattern.captures(&literal).is_some())
}

/// A place that a route writes to: the origin where it is known, so that two names of one registry
/// are one place.
fn place(registry: &str, origins: &Origins) -> Origin {
    origins
        .get(registry)
        .cloned()
        .flatten()
        .unwrap_or_else(|| Origin::new(registry))
}

fn check_meetings(routes: &[Written<'_>], origins: &Origins) {
    let mut seen: BTreeMap<(Origin, &str), &Written<'_>> = BTreeMap::new();
    for written in routes
        .iter()
        .filter(|written| written.route.from.is_literal())
    {
        for (template, item) in written.route.to.iter().zip(&written.to) {
            let place = (place(template.registry(), origins), template.repository());
            match seen.get(&place) {
                Some(first) if first.number == written.number => {
                    item.wrong("is named twice in this route")
                }
                Some(first) => {
                    let number = first.number;
                    let name = &first.route.name;
                    item.wrong(format!(
                        "already is a destination of routes[{number}] (\"{name}\")"
                    ));
                }
                None => drop(seen.insert(place, written)),
            }
        }
    }
}

/// The gate `scan` asks the scanner of a registry, which must have one.
fn check_scanners(routes: &[Written<'_>], unscanned: &BTreeSet<String>) {
    for written in routes {
        let Some(scan) = &written.route.gates.scan else {
            continue;
        };
        let source = (written.route.from.registry(), &written.from);
        let destinations = written.route.to.iter().map(Template::registry);
        let destinations: Vec<_> = destinations.zip(&written.to).collect();
        let scanned = match scan.side() {
            Some(ScanSide::Source) => vec![source],
            Some(ScanSide::Destination) => destinations,
            None => Vec::new(),
        };
        for (registry, item) in scanned {
            if unscanned.contains(&**registry) {
                item.wrong(format!(
                    "cannot be scanned: the gate `scan` says `from: ecr`, and \"{}\" is no private registry of ECR with `auth: ecr`",
                    clip(registry, 100)
                ));
            }
        }
    }
}

/// A route may read what another one writes (dev → staging → production), but no chain may lead
/// back to one of its routes.
fn check_circles(routes: &[Written<'_>], origins: &Origins) {
    let feeds: Vec<Vec<Feed>> = routes
        .iter()
        .map(|written| feeds(written, routes, origins))
        .collect();
    for (position, written) in routes.iter().enumerate() {
        for (number, item) in written.to.iter().enumerate() {
            let of_template = feeds[position].iter().filter(|feed| feed.to == number);
            let back = of_template
                .map(|feed| feed.reader)
                .find(|reader| leads_to(&feeds, *reader, position));
            if let Some(reader) = back {
                let Written { number, route, .. } = &routes[reader];
                let name = &route.name;
                item.wrong(format!(
                    "is read by routes[{number}] (\"{name}\"), which leads back to this route: copies would be copied again"
                ));
            }
        }
    }
}

/// A destination of a route that another route may read.
struct Feed {
    /// The position in the route's `to`.
    to: usize,
    /// The position of the route that reads it.
    reader: usize,
}

fn feeds(written: &Written<'_>, routes: &[Written<'_>], origins: &Origins) -> Vec<Feed> {
    let mut feeds = Vec::new();
    for (to, template) in written.route.to.iter().enumerate() {
        let here = place(template.registry(), origins);
        for (reader, other) in routes.iter().enumerate() {
            // Under other names the copies of a repository may lie in it: they are never sources of
            // their own route.
            let is_itself = !template.naming().keeps() && other.number == written.number;
            let from = &other.route.from;
            let reads = place(from.registry(), origins) == here && template.may_feed(from);
            if reads && !is_itself {
                feeds.push(Feed { to, reader });
            }
        }
    }
    feeds
}

/// Whether a chain of routes leads from one position to another.
fn leads_to(feeds: &[Vec<Feed>], from: usize, to: usize) -> bool {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(position) = open.pop() {
        if position == to {
            return true;
        }
        if reached.insert(position) {
            open.extend(feeds[position].iter().map(|feed| feed.reader));
        }
    }
    false
}
