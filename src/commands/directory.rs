//! What a config knows of the places that references name: which of its registries one is, and
//! whether a route leads there.

use std::path::PathBuf;

use regex::Regex;
use url::Url;

use super::reference::Named;
use crate::config::{Config, RegistryKind};
use crate::endpoint::Repositories as _;
use crate::layout;
use crate::look::topology::Topology;
use crate::oci::RepositoryName;
use crate::route::Route;

/// The registries and routes of a config, by address.
pub(super) struct Directory<'a> {
    registries: Vec<(&'a str, Address)>,
    routes: &'a [Route],
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Remote {
        scheme: String,
        host: String,
        port: u16,
    },
    Layout(PathBuf),
}

/// On which side of an act a reference stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

impl Address {
    /// Of an origin or a URL: `https://host:port`, `layout:/path`.
    fn parse(text: &str) -> Option<Address> {
        if let Some(path) = text.strip_prefix("layout:") {
            return Some(Address::Layout(path.into()));
        }
        let url: Url = text.parse().ok()?;
        let host = url.host_str()?.to_ascii_lowercase();
        let port = url.port_or_known_default()?;
        Some(Address::Remote {
            scheme: url.scheme().to_owned(),
            host,
            port,
        })
    }
}

impl<'a> Directory<'a> {
    pub(super) fn of_config(config: &'a Config) -> Directory<'a> {
        let registries = config.registries.iter().filter_map(|(name, registry)| {
            let address = match &registry.kind {
                RegistryKind::Remote(settings) => Address::parse(settings.url.as_str()),
                RegistryKind::Layout(path) => {
                    Address::parse(layout::Root::new("", path).origin().as_str())
                }
            };
            Some((name.as_str(), address?))
        });
        Directory {
            registries: registries.collect(),
            routes: &config.routes,
        }
    }

    pub(super) fn of_world(topology: &'a Topology) -> Directory<'a> {
        let registries = topology.backends.iter().filter_map(|(name, backend)| {
            Some((name.as_str(), Address::parse(backend.origin().as_str())?))
        });
        Directory {
            registries: registries.collect(),
            routes: &topology.routes.0,
        }
    }

    /// The registry's name in the config and the repository there. Where one address has several
    /// names, the one whose routes read or write that repository.
    pub(super) fn find(&self, named: &Named, side: Side) -> Option<(&'a str, RepositoryName)> {
        let found: Vec<_> = self
            .registries
            .iter()
            .filter_map(|(name, address)| Some((*name, repository_at(named, address)?)))
            .collect();
        let used = found
            .iter()
            .find(|(name, repository)| self.is_used(name, repository, side));
        used.or(found.first()).cloned()
    }

    /// Whether a route writes to the repository.
    pub(super) fn is_routed(&self, named: &Named) -> bool {
        self.routes_to(named).next().is_some()
    }

    /// The routes that write to the repository, in the order of the config.
    pub(super) fn routes_to(&self, named: &Named) -> impl Iterator<Item = &'a Route> {
        let places: Vec<(&str, RepositoryName)> = self
            .registries
            .iter()
            .filter_map(|(name, address)| Some((*name, repository_at(named, address)?)))
            .collect();
        self.routes.iter().filter(move |route| {
            places
                .iter()
                .any(|(registry, repository)| leads_to(route, registry, repository))
        })
    }

    fn is_used(&self, registry: &str, repository: &RepositoryName, side: Side) -> bool {
        self.routes.iter().any(|route| match side {
            Side::Source => {
                **route.from.registry() == *registry && route.from.captures(repository).is_some()
            }
            Side::Destination => leads_to(route, registry, repository),
        })
    }
}

/// Whether a route may write to a repository.
pub(crate) fn leads_to(route: &Route, registry: &str, repository: &RepositoryName) -> bool {
    route
        .to
        .iter()
        .any(|to| **to.registry() == *registry && may_name(to.repository(), repository.as_str()))
}

/// The repository that a reference names at this address, if it is one there.
fn repository_at(named: &Named, address: &Address) -> Option<RepositoryName> {
    match (named, address) {
        (
            Named::Registry {
                scheme,
                said,
                reference,
            },
            Address::Remote {
                scheme: theirs,
                host,
                port,
            },
        ) => {
            let default = if theirs == "http" { 80 } else { 443 };
            let suffix = reference
                .host
                .as_str()
                .strip_prefix(reference.host.name())
                .unwrap_or_default();
            let named_port = suffix
                .strip_prefix(':')
                .and_then(|port| port.parse().ok())
                .unwrap_or(default);
            let same =
                reference.host.name() == host && named_port == *port && (!said || scheme == theirs);
            same.then(|| reference.repository.clone())
        }
        (Named::Layout { path, .. }, Address::Layout(root)) => {
            let here = layout::Root::single("", path);
            let path = here.origin().as_str().strip_prefix("layout:")?.to_owned();
            PathBuf::from(path)
                .strip_prefix(root)
                .ok()?
                .to_str()?
                .parse()
                .ok()
        }
        _ => None,
    }
}

/// Whether a template gives this name for some captures.
pub(super) fn may_name(template: &str, name: &str) -> bool {
    let mut pattern = String::from(r"\A");
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        pattern.push_str(&regex::escape(before));
        pattern.push_str(".+");
        rest = after.split_once('}').map_or("", |(_, rest)| rest);
    }
    pattern.push_str(&regex::escape(rest));
    pattern.push_str(r"\z");
    Regex::new(&pattern).is_ok_and(|pattern| pattern.is_match(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let text = "registries:\n  staging: {url: 'https://s.example:8443'}\n  plain: {url: 'http://p.example'}\n  \
                    deploy: {url: 'https://s.example:8443'}\n  disk: {url: 'layout:/srv/images'}\nroutes:\n  \
                    - {name: a, from: staging/team/*, to: ['deploy/prod/{1}-x', disk/app], tags: {include: latest}}\n";
        Config::parse(text, std::path::Path::new("/etc/b.yaml"), &|name| {
            (name == "HOME").then(|| "/h".into())
        })
        .unwrap()
    }

    #[test]
    fn a_host_is_found_by_its_address_and_by_the_routes_that_use_it() {
        let config = config();
        let directory = Directory::of_config(&config);
        let find = |text: &str, side| {
            directory
                .find(&text.parse().unwrap(), side)
                .map(|(name, _)| name)
        };
        assert_eq!(
            find("s.example:8443/team/app:v1", Side::Source),
            Some("staging")
        );
        assert_eq!(
            find("s.example:8443/prod/app-x:v1", Side::Destination),
            Some("deploy")
        );
        assert_eq!(
            find("s.example/team/app:v1", Side::Source),
            None,
            "another port"
        );
        assert_eq!(
            find("p.example/team/app:v1", Side::Source),
            Some("plain"),
            "the config says the scheme"
        );
        assert_eq!(
            find("https://p.example/team/app:v1", Side::Source),
            None,
            "another scheme was said"
        );
        assert_eq!(
            find("layout:/srv/images/app:v1", Side::Destination),
            Some("disk")
        );
        assert_eq!(find("layout:/srv/images:v1", Side::Destination), None);
        let routed = |text: &str| directory.is_routed(&text.parse().unwrap());
        assert!(routed("s.example:8443/prod/app-x:v1") && routed("layout:/srv/images/app"));
        assert!(
            !routed("s.example:8443/prod/app:v1")
                && !routed("p.example/prod/app-x")
                && !routed("layout:/srv/images/other")
        );
    }
}
