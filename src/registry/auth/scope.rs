//! What a token is to allow: a list of scopes, as the token specification writes them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::oci::RepositoryName;

/// How many scopes of a registry's own wording are taken over, and how long one may be.
const MOST_DEMANDED: usize = 4;
const LONGEST_DEMANDED: usize = 400;
/// The one scope that ECR Public demands; it names no repository.
const PUBLIC_ECR: &str = "aws";

/// A set of `repository:<name>:<actions>` and `registry:catalog:*`, without duplicates. The order
/// is part of it, since some token servers look at the first scope only; it is sorted but for a
/// mount: its target comes first.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Scopes(Arc<[String]>);

impl Scopes {
    /// Nothing in particular: the version check.
    pub fn none() -> Scopes {
        Scopes(Arc::new([]))
    }

    /// Reading one repository.
    pub fn pull(repository: &RepositoryName) -> Scopes {
        Scopes(Arc::new([format!("repository:{repository}:pull")]))
    }

    /// Reading and writing one repository.
    pub fn push(repository: &RepositoryName) -> Scopes {
        Scopes(Arc::new([format!("repository:{repository}:pull,push")]))
    }

    /// Writing `target`, reading `from`: both in one token, or the registry refuses every mount.
    pub fn mount(target: &RepositoryName, from: &RepositoryName) -> Scopes {
        if target == from {
            return Scopes::push(target);
        }
        Scopes(Arc::new([
            format!("repository:{target}:pull,push"),
            format!("repository:{from}:pull"),
        ]))
    }

    /// Listing the registry's repositories.
    pub fn catalog() -> Scopes {
        Scopes(Arc::new(["registry:catalog:*".to_owned()]))
    }

    /// The scopes in their order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The first repository that is named.
    pub(super) fn repository(&self) -> Option<&str> {
        self.iter()
            .find_map(|scope| Some(scope.strip_prefix("repository:")?.rsplit_once(':')?.0))
    }

    /// The scopes to ask for when the registry's challenge demands `demanded`: what it wants beyond
    /// ours comes first, as long as it allows no action that ours does not. Proxies that rewrite
    /// paths know their repositories by other names.
    pub(super) fn with_demanded(&self, demanded: &str) -> Vec<String> {
        let allowed: Vec<&str> = self.iter().flat_map(actions).collect();
        let extra = demanded
            .split_ascii_whitespace()
            .filter(|scope| scope.len() <= LONGEST_DEMANDED)
            .filter(|scope| {
                let ours = scope.starts_with("repository:")
                    && actions(scope).all(|action| allowed.contains(&action));
                *scope == PUBLIC_ECR || ours && !self.covers(scope)
            });
        let mut scopes: Vec<String> = Vec::new();
        for scope in extra.take(MOST_DEMANDED).chain(self.iter()) {
            if !scopes.iter().any(|known| known == scope) {
                scopes.push(scope.to_owned());
            }
        }
        scopes
    }

    fn covers(&self, scope: &str) -> bool {
        let ours: BTreeMap<&str, Vec<&str>> = self
            .iter()
            .map(|ours| (name(ours), actions(ours).collect()))
            .collect();
        ours.get(name(scope))
            .is_some_and(|ours| actions(scope).all(|action| ours.contains(&action)))
    }
}

fn name(scope: &str) -> &str {
    scope.rsplit_once(':').map_or(scope, |(name, _)| name)
}

fn actions(scope: &str) -> impl Iterator<Item = &str> {
    scope
        .rsplit_once(':')
        .map_or("", |(_, actions)| actions)
        .split(',')
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            f.write_str("the registry itself")
        } else {
            f.write_str(&self.0.join(" "))
        }
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    #[test]
    fn a_mount_names_its_target_first() {
        let scopes = Scopes::mount(&name("z/prod"), &name("a/staging"));
        assert_eq!(
            scopes.iter().collect::<Vec<_>>(),
            ["repository:z/prod:pull,push", "repository:a/staging:pull"]
        );
        assert_eq!(scopes.repository(), Some("z/prod"));
        assert_eq!(
            Scopes::mount(&name("a"), &name("a")),
            Scopes::push(&name("a"))
        );
    }

    #[test]
    fn a_registry_may_rename_but_not_widen_what_is_asked() {
        let pull = Scopes::pull(&name("app"));
        let ours = vec!["repository:app:pull".to_owned()];
        assert_eq!(pull.with_demanded("repository:app:pull"), ours);
        assert_eq!(
            pull.with_demanded(
                "repository:app:pull,push repository:secret:*  registry:catalog:* x"
            ),
            ours
        );
        assert_eq!(pull.with_demanded("aws"), ["aws", "repository:app:pull"]);
        assert_eq!(
            pull.with_demanded("repository:inner/app:pull"),
            ["repository:inner/app:pull", "repository:app:pull"]
        );
        assert_eq!(
            pull.with_demanded(&format!("repository:{}:pull", "a".repeat(500))),
            ours
        );
        assert_eq!(
            Scopes::push(&name("app")).with_demanded("repository:app:pull"),
            ["repository:app:pull,push"]
        );
        let many: String = (0..50).map(|n| format!("repository:r{n}:pull ")).collect();
        assert_eq!(pull.with_demanded(&many).len(), MOST_DEMANDED + 1);
        assert!(Scopes::none().with_demanded("repository:x:pull").is_empty());
    }
}
