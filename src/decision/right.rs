//! Rights: what a principal may order.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// What a principal may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Right {
    /// Read, and ask for looks.
    Look,
    /// Hold.
    Hold,
    /// Approve.
    Approve,
    /// Deny.
    Deny,
    /// Accept.
    Accept,
    /// Roll back.
    Rollback,
    /// Pass gates that are not met.
    Override,
}

impl Right {
    /// All of them.
    pub const ALL: [Right; 7] = [
        Right::Look,
        Right::Hold,
        Right::Approve,
        Right::Deny,
        Right::Accept,
        Right::Rollback,
        Right::Override,
    ];

    /// The word of the config.
    pub fn name(self) -> &'static str {
        match self {
            Right::Look => "look",
            Right::Hold => "hold",
            Right::Approve => "approve",
            Right::Deny => "deny",
            Right::Accept => "accept",
            Right::Rollback => "rollback",
            Right::Override => "override",
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of rights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights(BTreeSet<Right>);

impl Rights {
    /// Every right: that of the control socket.
    pub fn all() -> Rights {
        Rights(Right::ALL.into())
    }

    /// Looking alone.
    pub fn look() -> Rights {
        Rights([Right::Look].into())
    }

    /// The rights of these words; `decide` stands for hold, approve, deny, accept and rollback.
    /// Whatever is allowed, looking is.
    ///
    /// # Errors
    /// The first word that names no right.
    pub fn of_words<'w>(words: impl IntoIterator<Item = &'w str>) -> Result<Rights, String> {
        let mut rights = BTreeSet::from([Right::Look]);
        for word in words {
            match Right::ALL.into_iter().find(|right| right.name() == word) {
                Some(right) => drop(rights.insert(right)),
                None if word == "decide" => rights.extend([
                    Right::Hold,
                    Right::Approve,
                    Right::Deny,
                    Right::Accept,
                    Right::Rollback,
                ]),
                None => return Err(word.to_owned()),
            }
        }
        Ok(Rights(rights))
    }

    /// Their words, each right by itself.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|right| right.name()).collect()
    }

    /// Whether a right is among them.
    pub fn has(&self, right: Right) -> bool {
        self.0.contains(&right)
    }
}

/// Names of routes, with `*` for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(Arc<str>);

impl NamePattern {
    /// A pattern as the config writes it.
    pub fn new(text: &str) -> NamePattern {
        NamePattern(text.into())
    }

    /// The pattern as the config writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a name fits.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else {
            return false;
        };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else {
            return rest.is_empty();
        };
        for part in parts {
            let Some((_, after)) = rest.split_once(part) else {
                return false;
            };
            rest = after;
        }
        rest.ends_with(last)
    }
}

/// A principal that was established, and what it may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Its name: that of a token, of a user, of an address.
    pub name: Arc<str>,
    /// Its rights.
    pub rights: Rights,
    /// The routes that its decisions may be about. `None`: all of them.
    pub routes: Option<Arc<[NamePattern]>>,
}

impl Principal {
    /// One with these rights on all routes.
    pub fn new(name: impl Into<Arc<str>>, rights: Rights) -> Principal {
        Principal {
            name: name.into(),
            rights,
            routes: None,
        }
    }

    /// Whether it may decide about all of these routes. One that is bound to routes may not decide
    /// about none.
    pub fn may_decide_on(&self, routes: &[Arc<str>]) -> bool {
        let Some(patterns) = &self.routes else {
            return true;
        };
        !routes.is_empty()
            && routes
                .iter()
                .all(|route| patterns.iter().any(|pattern| pattern.matches(route)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_of_names_takes_any_characters_for_an_asterisk() {
        for (pattern, name, expected) in [
            ("shop", "shop", true),
            ("shop", "shops", false),
            ("shop-*", "shop-api", true),
            ("shop-*", "shop-", true),
            ("shop-*", "workshop-api", false),
            ("*-api", "shop-api", true),
            ("*a*b*", "xaxbx", true),
            ("*a*b*", "ba", false),
            ("a*a", "a", false),
            ("*", "", true),
        ] {
            let found = NamePattern::new(pattern).matches(name);
            assert_eq!(found, expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_principal_bound_to_routes_decides_about_them_alone() {
        let bound = Principal {
            routes: Some([NamePattern::new("shop-*")].into()),
            ..Principal::new("oncall", Rights::all())
        };
        let routes = |names: &[&str]| -> Vec<Arc<str>> {
            names.iter().map(|name| Arc::from(*name)).collect()
        };
        assert!(bound.may_decide_on(&routes(&["shop-api", "shop-web"])));
        assert!(!bound.may_decide_on(&routes(&["shop-api", "pay"])));
        assert!(!bound.may_decide_on(&[]), "everything, or a digest");
        assert!(Principal::new("root", Rights::all()).may_decide_on(&[]));
    }

    #[test]
    fn decide_stands_for_five_rights_and_override_is_never_implied() {
        let rights = Rights::of_words(["decide"]).unwrap();
        let missing: Vec<Right> = Right::ALL
            .into_iter()
            .filter(|right| !rights.has(*right))
            .collect();
        assert_eq!(missing, [Right::Override]);
        assert_eq!(Rights::of_words(["look"]), Ok(Rights::look()));
        assert!(Rights::of_words(["hold"]).unwrap().has(Right::Look));
        assert_eq!(Rights::of_words(["hold", "release"]), Err("release".into()));
    }
}
