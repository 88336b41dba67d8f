//! Sets: images that move together, whole. Pure: facts in, verdict out.
//!
//! A member is a destination of a route of the set. A fixed tag is named when each member with
//! rules that take its name has passed; a moving tag when it names in each member the digest of one
//! common fixed tag. Then the members are named in the order of the config. What was announced
//! before the first of them is a [`Naming`]; it ends with the last one, or the set is torn.

mod fact;
mod judge;
mod naming;

use std::sync::Arc;

pub use self::fact::{Fact, State};
pub use self::judge::{Verdict, judge};
pub use self::naming::Naming;
use crate::decision::SetName;
use crate::endpoint::Origin;
use crate::job::{Key, TagId};
use crate::oci::{RepositoryName, Tag};
use crate::route::Naming as TagNaming;
use crate::route::rules::Selection;

/// One entry of the config's `sets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: Arc<str>,
    /// The names of its routes, in the order in which tags are named.
    pub routes: Vec<Arc<str>>,
}

/// A destination of a route that belongs to a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name of the set.
    pub set: Arc<str>,
    /// The name of the route.
    pub route: Arc<str>,
    /// The source repository.
    pub source: RepositoryName,
    /// Which tags the route takes.
    pub selection: Selection,
    /// The destination's registry.
    pub origin: Origin,
    /// The destination repository.
    pub repository: RepositoryName,
    /// How tags are renamed there.
    pub naming: TagNaming,
    /// The destination as reports show it, where the route has more than one.
    pub shown: Option<String>,
}

/// The members of all sets of a config, set by set.
#[derive(Clone, Debug, Default)]
pub struct Sets(pub Vec<Member>);

/// One tag of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetTag {
    /// The set, and the tag's name at staging.
    pub name: SetName,
    /// Whether it moves at some member.
    pub is_moving: bool,
    /// The members that take it, in the order in which they are named.
    pub members: Vec<MemberTag>,
}

/// A tag of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberTag {
    /// The member.
    pub member: Member,
    /// Its tag.
    pub key: Key,
}

impl Member {
    /// The source tag behind a tag of the destination, where the route takes it.
    fn source_tag(&self, place: &TagId) -> Option<Tag> {
        let is_here = self.origin == place.origin && self.repository == place.repository;
        let tag = self.naming.original(&place.tag).filter(|_| is_here)?;
        self.selection.allows(&tag).then_some(tag)
    }

    /// The fixed tag of staging behind a tag of the destination.
    pub fn version(&self, tag: &Tag) -> Option<Tag> {
        let original = self.naming.original(tag)?;
        let is_fixed = self.selection.allows(&original) && !self.selection.is_moving(&original);
        is_fixed.then_some(original)
    }

    fn tagged(&self, tag: &Tag) -> Option<MemberTag> {
        if !self.selection.allows(tag) {
            return None;
        }
        let destination = TagId {
            origin: self.origin.clone(),
            repository: self.repository.clone(),
            tag: self.naming.name(tag)?,
        };
        let key = Key {
            route: self.route.clone(),
            source: self.source.clone(),
            tag: tag.clone(),
            destination,
        };
        Some(MemberTag {
            member: self.clone(),
            key,
        })
    }
}

impl Sets {
    /// The name of the set that a route belongs to.
    pub fn set_of(&self, route: &str) -> Option<&Arc<str>> {
        let member = self.0.iter().find(|member| *member.route == *route)?;
        Some(&member.set)
    }

    /// How many members the largest set has.
    pub fn largest(&self) -> usize {
        let sizes = self.0.iter().map(|one| self.members_of(&one.set).count());
        sizes.max().unwrap_or_default()
    }

    fn members_of(&self, set: &str) -> impl Iterator<Item = &Member> {
        self.0.iter().filter(move |member| *member.set == *set)
    }

    /// The name of the tag of a set that a tag of a destination is part of.
    pub fn name_of(&self, place: &TagId) -> Option<SetName> {
        self.0.iter().find_map(|member| {
            Some(SetName {
                tag: member.source_tag(place)?,
                set: member.set.clone(),
            })
        })
    }

    /// The tag of a set that a tag of a destination is part of.
    pub fn of(&self, place: &TagId) -> Option<SetTag> {
        let SetName { set, tag } = self.name_of(place)?;
        let of_set = self.members_of(&set);
        let members: Vec<MemberTag> = of_set.filter_map(|member| member.tagged(&tag)).collect();
        Some(SetTag {
            is_moving: members
                .iter()
                .any(|one| one.member.selection.is_moving(&tag)),
            members,
            name: SetName { set, tag },
        })
    }
}

impl SetTag {
    /// The member with a tag of a destination.
    pub fn member(&self, place: &TagId) -> Option<&MemberTag> {
        self.members
            .iter()
            .find(|member| member.key.destination == *place)
    }
}

impl MemberTag {
    /// `worker:v1.4.0`, with the destination where the route has more than one.
    pub fn shown(&self) -> String {
        let Key { route, tag, .. } = &self.key;
        match &self.member.shown {
            Some(destination) => format!("{route}:{tag} in {destination}"),
            None => format!("{route}:{tag}"),
        }
    }
}

#[cfg(test)]
impl SetTag {
    /// A tag of the set `shop`: of api, web and worker. `latest` moves.
    pub(crate) fn sample(tag: &str) -> SetTag {
        let selection = Selection {
            include: vec!["*".parse().unwrap()],
            moving: vec!["latest".parse().unwrap()],
            ..Selection::default()
        };
        let member = |name: &str| Member {
            set: "shop".into(),
            route: name.into(),
            source: name.parse().unwrap(),
            selection: selection.clone(),
            origin: Origin::new("https://p.example"),
            repository: format!("prod-{name}").parse().unwrap(),
            naming: Default::default(),
            shown: None,
        };
        let sets = Sets(["api", "web", "worker"].map(member).to_vec());
        let place = TagId {
            origin: Origin::new("https://p.example"),
            repository: "prod-web".parse().unwrap(),
            tag: tag.parse().unwrap(),
        };
        let set = sets.of(&place).expect("a tag of the set");
        assert_eq!(
            set.name,
            SetName {
                set: "shop".into(),
                tag: place.tag
            }
        );
        set
    }
}
