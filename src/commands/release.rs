//! The decisions that a release ends: by their number, by exactly their target, or by what their
//! targets mean. One target may be written with its registry or without.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::resolve::{may_meet, resolve};
use crate::decision::{InForce, Numbered, Target};
use crate::endpoint::{Origin, Repositories as _};
use crate::look::topology::Topology;
use crate::oci::Tag;
use crate::route::Pattern;

/// Decisions that a refusal names at most.
const MOST_NAMED: usize = 5;

/// What a release is about. Without a topology targets are compared as they are written.
pub(crate) struct Released<'a> {
    pub(crate) id: Option<u64>,
    pub(crate) target: &'a Target,
    pub(crate) topology: Option<&'a Topology>,
}

/// What the target of destinations means under a config.
#[derive(PartialEq, Eq)]
struct Meaning {
    registries: BTreeSet<Origin>,
    repository: String,
    tag: Option<Tag>,
}

impl Released<'_> {
    /// The decisions that it ends: those with exactly its target, and where there are none, those
    /// with a target of the same meaning.
    pub(crate) fn of<'d>(&self, in_force: &'d InForce) -> Vec<&'d Numbered> {
        let all = in_force.decisions.iter();
        if let Some(id) = self.id {
            return all.filter(|one| one.id == id).collect();
        }
        let text = self.target.to_string();
        let exactly = all.clone().filter(|one| one.target.to_string() == text);
        let exactly: Vec<&Numbered> = exactly.collect();
        if !exactly.is_empty() {
            return exactly;
        }
        all.filter(|one| self.means(&one.target)).collect()
    }

    fn means(&self, other: &Target) -> bool {
        let own = self.meaning(self.target);
        own.is_some() && own == self.meaning(other)
    }

    fn meaning(&self, target: &Target) -> Option<Meaning> {
        Meaning::of(target, self.topology?)
    }

    /// Why it ends nothing, with the decisions that are in force there.
    pub(crate) fn ends_nothing(&self, in_force: &InForce) -> String {
        let lists = "`blobferry status` lists those that are";
        let target = match self.id {
            Some(id) => return format!("no decision {id} is in force ({lists})"),
            None if *self.target == Target::Everything => "everything".to_owned(),
            None => self.target.to_string(),
        };
        let near = self.near(in_force);
        if near.is_empty() {
            return format!("no decision about {target} is in force ({lists})");
        }
        let near = near.join(", ");
        format!("no decision about {target} is in force; what is in force there: {near}")
    }

    /// The decisions about the same routes, as a release names them.
    fn near(&self, in_force: &InForce) -> Vec<String> {
        let own = self.routes(self.target);
        in_force
            .decisions
            .iter()
            .filter(|one| {
                self.routes(&one.target)
                    .iter()
                    .any(|name| own.contains(name))
            })
            .take(MOST_NAMED)
            .map(|one| format!("{} {} (decision {})", one.kind, one.target, one.id))
            .collect()
    }

    fn routes(&self, target: &Target) -> Vec<Arc<str>> {
        let resolved = self.topology.map(|known| resolve(target.clone(), known));
        let resolved = resolved.and_then(Result::ok);
        resolved.map(|one| one.routes).unwrap_or_default()
    }
}

impl Meaning {
    /// `None`: it is about no destination, or means nothing that is clear.
    fn of(target: &Target, topology: &Topology) -> Option<Meaning> {
        let target = match target.origin() {
            Some(_) => target.clone(),
            None => resolve(target.clone(), topology).ok()?.target,
        };
        let destination = target.destination()?;
        let (registries, pattern) = match target.origin() {
            Some(origin) => ([origin.clone()].into(), destination.split()?),
            None => {
                let whole = destination.whole()?;
                (registries(whole, topology), whole)
            }
        };
        Some(Meaning {
            registries,
            repository: pattern.repository().to_owned(),
            tag: destination.tag().cloned(),
        })
    }
}

/// The registries in which routes lead to what a pattern names.
fn registries(pattern: &Pattern, topology: &Topology) -> BTreeSet<Origin> {
    let routes = topology.routes.0.iter();
    routes
        .flat_map(|route| &route.to)
        .filter(|to| may_meet(pattern, to))
        .map(|to| topology.backend(to.registry()).origin().clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::config::Config;
    use crate::decision::{Decision, Kind};
    use crate::job::Actor;
    use crate::parts::Parts;

    fn topology() -> Topology {
        let text = "registries:\n  staging: {url: 'https://s.example'}\n  production: {url: 'https://p.example'}\n  \
                    spare: {url: 'https://q.example'}\nroutes:\n  \
                    - {name: ap, from: staging/ap, to: production/ap, tags: {include: latest}}\n  \
                    - {name: web, from: staging/web, to: [production/web, spare/web], tags: {include: latest}}\n  \
                    - {name: pay, from: 'staging/pay/*', to: 'production/pay/{1}', tags: {include: latest}}\n";
        let config = Config::parse(text, std::path::Path::new("/etc/b.yaml"), &|name| {
            (name == "HOME").then(|| "/h".into())
        });
        Parts::in_memory()
            .unwrap()
            .topology(&config.unwrap(), None)
            .unwrap()
    }

    fn release<'a>(target: &'a Target, topology: &'a Topology) -> Released<'a> {
        Released {
            id: None,
            target,
            topology: Some(topology),
        }
    }

    fn hold(target: &str, topology: &Topology) -> InForce {
        let target = resolve(target.parse().unwrap(), topology).unwrap().target;
        let decision = Decision::about(&target, Actor::named("user:alice"));
        InForce {
            version: 1,
            decisions: vec![Numbered::new(
                1,
                Timestamp::UNIX_EPOCH,
                Kind::Hold,
                decision,
            )],
            used: Vec::new(),
        }
    }

    #[tokio::test]
    async fn another_spelling_of_a_target_ends_what_it_means_and_nothing_else() {
        let topology = topology();
        for (held, released, is_ended) in [
            ("production/ap", "ap", true),
            ("ap", "production/ap", true),
            ("production/ap:v1", "ap:v1", true),
            ("production/ap:v1", "ap", false),
            ("production/ap", "ap:v1", false),
            ("production/pay/*", "pay/*", true),
            ("production/pay/*", "pay/x", false),
            // It is in two registries.
            ("production/web", "web", false),
            ("web", "production/web", false),
            ("web", "web", true),
            ("route:ap", "ap", false),
            ("", "ap", false),
        ] {
            let in_force = hold(held, &topology);
            let target = released.parse().unwrap();
            let release = release(&target, &topology);
            let ended = release.of(&in_force).len();
            assert_eq!(ended, usize::from(is_ended), "{held} {released}");
            let by_text = Released {
                topology: None,
                ..release
            };
            let ended = by_text.of(&in_force).len();
            assert_eq!(ended, usize::from(held == released), "{held} {released}");
        }
    }

    /// The release of a hold would take along an approval of the same tag in another spelling.
    #[tokio::test]
    async fn exactly_its_target_comes_before_what_it_means() {
        let topology = topology();
        let mut in_force = hold("production/ap:v1", &topology);
        in_force
            .decisions
            .extend(hold("ap:v1", &topology).decisions);
        let ends = |target: &str| {
            let target = target.parse().unwrap();
            let release = release(&target, &topology);
            let ended = release.of(&in_force).into_iter();
            ended.map(|one| one.target.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(ends("production/ap:v1"), ["production/ap:v1"]);
        assert_eq!(ends("ap:v1"), ["ap:v1"]);
    }

    #[tokio::test]
    async fn a_release_of_nothing_names_what_is_in_force_there() {
        let topology = topology();
        let in_force = hold("production/web", &topology);
        let says = |target: &str| {
            let target = target.parse().unwrap();
            let release = release(&target, &topology);
            release.ends_nothing(&in_force)
        };
        assert!(says("web:v1").ends_with("there: hold production/web (decision 1)"));
        assert!(says("ap").ends_with("(`blobferry status` lists those that are)"));
    }
}
