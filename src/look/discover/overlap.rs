//! Routes with sources that can share a destination.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::endpoint::{Origin, Repositories};
use crate::look::topology::Topology;
use crate::route::{Route, Template};

/// A route with the shapes of its destinations.
type Shaped<'a> = (&'a Route, Vec<Shape<'a>>);

/// For each route the registries of wildcard routes, itself or before it, whose sources can share a
/// destination with it, as far as the templates tell.
pub(super) fn awaits<B: Repositories>(topology: &Topology<B>) -> Vec<BTreeSet<Arc<str>>> {
    let routes: Vec<Shaped<'_>> = topology
        .routes
        .0
        .iter()
        .map(|route| {
            (
                route,
                route
                    .to
                    .iter()
                    .map(|to| Shape::of(topology.backend(to.registry()).origin(), to.repository()))
                    .collect(),
            )
        })
        .collect();
    routes
        .iter()
        .enumerate()
        .map(|(position, shaped)| awaited_by(shaped, &routes[..position]))
        .collect()
}

fn awaited_by((route, shapes): &Shaped<'_>, earlier: &[Shaped<'_>]) -> BTreeSet<Arc<str>> {
    let mut awaits = BTreeSet::new();
    if may_meet_itself(route) {
        awaits.insert(route.from.registry().clone());
    }
    for (earlier, theirs) in earlier {
        let registry = earlier.from.registry();
        if !earlier.from.is_literal()
            && !awaits.contains(registry)
            && Shape::any_meet(shapes, theirs)
        {
            awaits.insert(registry.clone());
        }
    }
    awaits
}

/// Whether two sources of one route can share a destination: a template leaves a capture unused.
pub(super) fn may_meet_itself(route: &Route) -> bool {
    let is_unused =
        |to: &Template, number: usize| !to.repository().contains(&format!("{{{number}}}"));
    route
        .to
        .iter()
        .any(|to| (1..=route.from.wildcards()).any(|number| is_unused(to, number)))
}

/// The literal start and end of a template.
pub(super) struct Shape<'a> {
    pub(super) origin: &'a Origin,
    pub(super) start: &'a str,
    pub(super) end: &'a str,
}

impl<'a> Shape<'a> {
    pub(super) fn of(origin: &'a Origin, template: &'a str) -> Shape<'a> {
        let start = template.split('{').next().unwrap_or_default();
        let end = template.rsplit('}').next().unwrap_or_default();
        Shape { origin, start, end }
    }

    pub(super) fn any_meet(ours: &[Shape<'_>], theirs: &[Shape<'_>]) -> bool {
        ours.iter()
            .any(|one| theirs.iter().any(|other| one.may_meet(other)))
    }

    /// Whether both literal starts and both literal ends are compatible.
    pub(super) fn may_meet(&self, other: &Shape<'_>) -> bool {
        (self.start.starts_with(other.start) || other.start.starts_with(self.start))
            && (self.end.ends_with(other.end) || other.end.ends_with(self.end))
            && self.origin == other.origin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_that_differ_in_what_is_written_out_do_not_meet() {
        let here = Origin::new("https://production.example");
        let elsewhere = Origin::new("https://other.example");
        for (one, other, meet) in [
            ("prod/{1}", "prod/{1}", true),
            ("prod/{1}", "prod/a-{1}", true),
            ("prod/{1}", "test/{1}", false),
            ("{1}-a", "{1}-b", false),
            ("prod/app", "prod/{1}", true),
            ("prod/app", "prod/web", false),
        ] {
            let meets = |one, other| Shape::of(&here, one).may_meet(&Shape::of(&here, other));
            assert_eq!(
                (meets(one, other), meets(other, one)),
                (meet, meet),
                "{one} {other}"
            );
            assert!(
                !Shape::of(&here, one).may_meet(&Shape::of(&elsewhere, other)),
                "another registry"
            );
        }
    }
}
