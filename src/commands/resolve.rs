//! What a target means under a config: the registry that it names, and the routes that lead there.

use std::sync::Arc;

use super::directory::may_name;
use crate::decision::{Destination, Numbered, Target};
use crate::endpoint::Repositories as _;
use crate::look::topology::Topology;
use crate::oci::RepositoryName;
use crate::route::{Pattern, Template};

/// A target, and the routes that lead to what it covers. No routes: it is about all of them.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) target: Target,
    pub(crate) routes: Vec<Arc<str>>,
}

/// Why a target means nothing under a config.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// It can be read in two ways.
    #[error(
        "\"{target}\" is ambiguous: routes lead to {target} in some registry, and to that repository in the registry {registry}; put the registry's name in front"
    )]
    Ambiguous {
        /// The target as it was given.
        target: String,
        /// The registry that its first part names.
        registry: String,
    },
    /// No route leads there.
    #[error("{what} (`blobferry status` lists the routes)")]
    NotThere {
        /// What is not there.
        what: String,
    },
}

/// What a target means.
pub(crate) fn resolve(target: Target, topology: &Topology) -> Result<Resolved, Unresolved> {
    let destination = match &target {
        Target::Everything | Target::Digest(_) => {
            return Ok(Resolved {
                target,
                routes: Vec::new(),
            });
        }
        Target::Route(name) => {
            let routes = vec![name.clone()];
            if topology.route(name).is_none() {
                let what = format!("the config has no route \"{name}\"");
                return Err(Unresolved::NotThere { what });
            }
            return Ok(Resolved { target, routes });
        }
        Target::Set(name, _) => {
            let routes = routes_of_set(name, topology);
            if routes.is_empty() {
                let what = format!("the config has no set \"{name}\"");
                return Err(Unresolved::NotThere { what });
            }
            return Ok(Resolved { target, routes });
        }
        Target::Destination(destination) => destination,
    };
    let in_registry = routes_in_registry(destination, topology);
    let anywhere = routes_anywhere(destination, topology);
    match (in_registry.is_empty(), anywhere.is_empty()) {
        (false, false) => Err(Unresolved::Ambiguous {
            target: target.to_string(),
            registry: destination.registry().unwrap_or_default().into(),
        }),
        (false, true) => {
            let registry = destination.registry().unwrap_or_default();
            let origin = topology.backends.get(registry);
            let origin = origin.map(|backend| backend.origin().clone());
            Ok(Resolved {
                target: target.at(origin),
                routes: in_registry,
            })
        }
        (true, false) => Ok(Resolved {
            target,
            routes: anywhere,
        }),
        (true, true) => {
            let what = format!("no route leads to a destination {target}");
            Err(Unresolved::NotThere { what })
        }
    }
}

/// The routes of a set.
fn routes_of_set(name: &str, topology: &Topology) -> Vec<Arc<str>> {
    let members = topology.sets.0.iter();
    let members = members.filter(|member| *member.set == *name);
    let mut routes: Vec<Arc<str>> = members.map(|member| member.route.clone()).collect();
    routes.dedup();
    routes
}

/// The decisions with a target that means nothing under a config, in words.
pub(crate) fn idle_decisions<'d>(
    decisions: impl Iterator<Item = &'d Numbered>,
    topology: &Topology,
) -> Vec<String> {
    let idle = decisions.filter_map(
        |numbered| match resolve(numbered.target.clone(), topology) {
            Err(Unresolved::NotThere { what }) => {
                let (id, kind) = (numbered.id, numbered.kind);
                Some(format!("decision {id} ({kind}) covers nothing: {what}"))
            }
            Ok(_) | Err(Unresolved::Ambiguous { .. }) => None,
        },
    );
    idle.collect()
}

/// The routes to what the target names in the registry that its first part names.
fn routes_in_registry(destination: &Destination, topology: &Topology) -> Vec<Arc<str>> {
    let Some(split) = destination.split() else {
        return Vec::new();
    };
    leading(topology, |to| {
        to.registry() == split.registry() && may_meet(split, to)
    })
}

/// The routes to what the target names in any registry.
fn routes_anywhere(destination: &Destination, topology: &Topology) -> Vec<Arc<str>> {
    let Some(whole) = destination.whole() else {
        return Vec::new();
    };
    leading(topology, |to| may_meet(whole, to))
}

fn leading(topology: &Topology, is_meant: impl Fn(&Template) -> bool) -> Vec<Arc<str>> {
    let routes = topology.routes.0.iter();
    routes
        .filter(|route| route.to.iter().any(&is_meant))
        .map(|route| route.name.clone())
        .collect()
}

/// Whether a template may yield a repository.
pub(crate) fn may_yield(template: &Template, repository: &RepositoryName) -> bool {
    may_name(template.repository(), repository.as_str())
}

/// Whether some repository may fit both. Of two with wildcards only the ends are compared.
pub(super) fn may_meet(pattern: &Pattern, template: &Template) -> bool {
    let template = template.repository();
    if let Some(name) = pattern.literal() {
        return may_name(template, name.as_str());
    }
    if let Ok(name) = template.parse() {
        return pattern.matches(&name);
    }
    let (before, behind) = pattern.ends();
    let start = template.split('{').next().unwrap_or_default();
    let end = template.rsplit('}').next().unwrap_or_default();
    (before.starts_with(start) || start.starts_with(before))
        && (behind.ends_with(end) || end.ends_with(behind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::parts::Parts;

    fn topology() -> Topology {
        let text = "registries:\n  staging: {url: 'https://s.example'}\n  production: {url: 'https://p.example'}\nroutes:\n  \
                    - {name: api, from: staging/api, to: production/pay/api, tags: {include: latest}}\n  \
                    - {name: web, from: staging/web, to: production/web, tags: {include: latest}}\n  \
                    - {name: odd, from: staging/odd, to: production/production/web, tags: {include: latest}}\n  \
                    - {name: teams, from: 'staging/team/**', to: 'production/teams/{1}-x', tags: {include: latest}}\n";
        let config = Config::parse(text, std::path::Path::new("/etc/b.yaml"), &|name| {
            (name == "HOME").then(|| "/h".into())
        });
        Parts::in_memory()
            .unwrap()
            .topology(&config.unwrap(), None)
            .unwrap()
    }

    #[tokio::test]
    async fn a_target_means_the_routes_that_lead_to_it() {
        let topology = topology();
        let routes = |text: &str| -> Result<Vec<String>, Unresolved> {
            let resolved = resolve(text.parse().unwrap(), &topology)?;
            Ok(resolved.routes.iter().map(ToString::to_string).collect())
        };
        for (text, expected) in [
            ("", &[][..]),
            ("route:api", &["api"]),
            ("pay/api", &["api"]),
            ("pay/api:v1", &["api"]),
            ("production/pay/api", &["api"]),
            ("production/pay/**", &["api"]),
            ("web", &["web"]),
            ("production/production/web", &["odd"]),
            ("teams/a/b-x", &["teams"]),
            ("production/teams/**", &["teams"]),
            ("production/teams/*-x:v1", &["teams"]),
        ] {
            assert_eq!(
                routes(text).as_deref(),
                Ok(&*expected.iter().map(ToString::to_string).collect::<Vec<_>>()),
                "{text}"
            );
        }
        for text in [
            "route:x",
            "teams/a-y",
            "staging/api",
            "pay",
            "production/teem/**",
        ] {
            assert!(
                matches!(routes(text), Err(Unresolved::NotThere { .. })),
                "{text}"
            );
        }
        for text in ["production/web", "production/**"] {
            let ambiguous = routes(text);
            assert!(
                matches!(ambiguous, Err(Unresolved::Ambiguous { .. })),
                "{ambiguous:?}"
            );
        }
    }
}
