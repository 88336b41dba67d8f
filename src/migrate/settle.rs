//! The config is what `check` takes: a route that it refuses becomes a comment with its reason.

use std::collections::BTreeMap;
use std::path::Path;

use super::kind::Kind;
use super::outline::Outline;
use super::remark::Remark;
use super::writer;
use crate::config::Config;

/// Rounds until all that is left is left out.
const MOST_ROUNDS: usize = 100;

/// Writes the outline until it passes; without routes there is no text. Each round takes a route away, or a registry's key.
pub(super) fn settle(outline: &mut Outline, kind: Kind) -> String {
    outline.part_destinations();
    for round in 0.. {
        if outline.routes.is_empty() {
            break;
        }
        let text = writer::write(outline, kind);
        // Variables are those of the machine that will run it.
        let problems = match Config::parse(&text, Path::new("blobferry.yaml"), &|name| {
            Some(value_of(name))
        }) {
            Ok(_) => return text,
            Err(error) => error.problems,
        };
        let mut routes = BTreeMap::new();
        let mut has_changed = false;
        for problem in &problems {
            match named(&problem.key) {
                Some(Named::Route(position)) => {
                    routes
                        .entry(position)
                        .or_insert_with(|| problem.text.clone());
                }
                Some(Named::Registry(name)) => {
                    has_changed |= doubt(outline, &name, &problem.key, &problem.text);
                }
                None => {}
            }
        }
        let of_lost = outline
            .routes
            .iter()
            .enumerate()
            .filter_map(|(position, route)| {
                let places = route.to.iter().chain([&route.from]);
                let reason = places
                    .filter_map(|place| outline.registries.get(place.registry))
                    .find(|registry| registry.address.is_empty())?;
                let remark = reason.remarks.last()?;
                Some((position, remark.text.clone()))
            });
        let of_lost: Vec<(usize, String)> = of_lost.collect();
        routes.extend(of_lost);
        if round >= MOST_ROUNDS || (routes.is_empty() && !has_changed) {
            // Nothing that can be left out is to blame: without its routes the file is sound.
            routes.extend((0..outline.routes.len()).map(|position| (position, first(&problems))));
        }
        for (position, reason) in routes.into_iter().rev() {
            outline.give_up(position, &reason);
        }
    }
    String::new()
}

/// A value for a variable: each has its own, so that two of them never are one place.
fn value_of(name: &str) -> String {
    let letters = name.bytes().map(|byte| match byte {
        b'_' => "0x".to_owned(),
        other => char::from(other.to_ascii_lowercase()).to_string(),
    });
    format!("v{}", letters.collect::<String>())
}

fn first(problems: &[crate::config::Problem]) -> String {
    problems
        .first()
        .map(|problem| problem.text.clone())
        .unwrap_or_default()
}

enum Named {
    Route(usize),
    Registry(String),
}

/// What a key of the config belongs to.
fn named(key: &str) -> Option<Named> {
    if let Some(rest) = key.strip_prefix("routes[") {
        return rest.split(']').next()?.parse().ok().map(Named::Route);
    }
    let name = key.strip_prefix("registries.")?;
    Some(Named::Registry(name.to_owned()))
}

/// Whether it is the name of the registry, or that of a key in it.
fn is_in(named: &str, registry: &str) -> bool {
    let rest = named.strip_prefix(registry);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Takes a key that is refused away. Without its address a registry is lost, and so are its routes.
fn doubt(outline: &mut Outline, named: &str, key: &str, reason: &str) -> bool {
    let Some(registry) = outline
        .registries
        .iter_mut()
        .filter(|registry| is_in(named, &registry.name))
        .max_by_key(|registry| registry.name.len())
    else {
        return false;
    };
    let last = key.rsplit('.').next().unwrap_or_default();
    let keys = registry.keys.len();
    registry.keys.retain(|(known, _)| *known != last);
    registry
        .remarks
        .push(Remark::new(1, format!("{last}: {reason}")));
    if registry.keys.len() == keys {
        registry.address.clear();
    }
    true
}
