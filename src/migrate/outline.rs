//! What all formats come to: registries and routes, each with comments on what has no counterpart.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::address;
use super::registry::{self, Registry};
use super::remark::{Remark, VERSIONS, add_missing};
use super::route::{Place, Route, Tags};
use super::tree::Wrong;
use crate::route::Pattern;

/// Most routes of a config.
const MOST_ROUTES: usize = 2000;

/// Most registries that are told apart.
const MOST_REGISTRIES: usize = 500;

/// The longest time between two looks that a config takes: 30 days.
const LONGEST_POLL: u64 = 30 * 24 * 3600;

/// What the old tool copies and the config does not.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) line: u64,
    /// The two sides, as far as they are known.
    pub(super) what: String,
    /// Why, and what to do.
    pub(super) reason: String,
}

/// Why an entry becomes no route.
#[derive(Debug)]
pub(super) enum Stop {
    /// The file as a whole is not well-formed.
    Wrong(Wrong),
    /// This entry has no counterpart: the reason.
    Refused(String),
}

impl Stop {
    /// The reason, where the rest of the file is read on.
    pub(super) fn reason(self) -> Result<String, Wrong> {
        match self {
            Stop::Wrong(wrong) => Err(wrong),
            Stop::Refused(reason) => Ok(reason),
        }
    }
}

impl From<Wrong> for Stop {
    fn from(wrong: Wrong) -> Stop {
        Stop::Wrong(wrong)
    }
}

impl From<String> for Stop {
    fn from(reason: String) -> Stop {
        Stop::Refused(reason)
    }
}

impl From<&str> for Stop {
    fn from(reason: &str) -> Stop {
        Stop::Refused(reason.to_owned())
    }
}

/// Everything.
#[derive(Debug, Default)]
pub(super) struct Outline {
    /// In the order of their first use.
    pub(super) registries: Vec<Registry>,
    pub(super) routes: Vec<Route>,
    pub(super) refused: Vec<Refused>,
    /// About the file as a whole.
    pub(super) remarks: Vec<Remark>,
    /// Seconds between two looks.
    pub(super) poll: Option<u64>,
    /// Whether `${NAME}` is a variable in the old file, too.
    pub(super) has_variables: bool,
}

impl Outline {
    /// The registry with this host; made where it is new.
    pub(super) fn registry(&mut self, host: &str) -> usize {
        self.registry_named(host, host)
    }

    /// As [`Outline::registry`], with the name that a new one gets.
    pub(super) fn registry_named(&mut self, name: &str, host: &str) -> usize {
        let has_room = self.registries.len() < MOST_REGISTRIES;
        let is_host = address::is_host(host);
        // What is no host may hold a password: nothing of it is kept.
        let (name, host) = match is_host {
            true => (name, host),
            false => ("registry", ""),
        };
        if let Some(at) = self.registries.iter().position(|known| known.host == host) {
            return at;
        }
        if !has_room && is_host {
            return self.registry_named("", "");
        }
        let name = self.free_name(&registry::name_of(&address::safe(name)));
        self.registries.push(Registry::new(name, host));
        self.registries.len() - 1
    }

    fn has_registry(&self, name: &str) -> bool {
        self.registries.iter().any(|known| known.name == name)
    }

    fn free_name(&self, wanted: &str) -> String {
        if !self.has_registry(wanted) {
            return wanted.to_owned();
        }
        (2..)
            .map(|number| format!("{wanted}-{number}"))
            .find(|name| !self.has_registry(name))
            .unwrap_or_default()
    }

    pub(super) fn remark(&mut self, line: u64, text: impl AsRef<str>) {
        add_missing(&mut self.remarks, &[Remark::new(line, text)]);
    }

    pub(super) fn refuse(&mut self, line: u64, what: impl AsRef<str>, reason: impl AsRef<str>) {
        self.refused.push(Refused {
            line,
            what: Remark::new(line, address::safe(what.as_ref())).text,
            reason: Remark::new(line, reason).text,
        });
    }

    /// The shortest interval that is named counts for all routes.
    pub(super) fn poll_every(&mut self, seconds: u64) {
        let seconds = seconds.clamp(1, LONGEST_POLL);
        self.poll = Some(self.poll.map_or(seconds, |known| known.min(seconds)));
    }

    /// Adds the route that an entry is, or says why it is none.
    pub(super) fn add_found(
        &mut self,
        line: u64,
        what: impl AsRef<str>,
        found: Result<Route, String>,
    ) {
        match found {
            Ok(route) => self.add(route),
            Err(reason) => self.refuse(line, what, reason),
        }
    }

    /// Adds a route, or joins it with that of the same source: a source repository has one route.
    pub(super) fn add(&mut self, route: Route) {
        if let Err(reason) = self.check(&route) {
            let what = self.shown(&route);
            self.refuse(route.line, what, reason);
            return;
        }
        let Some(known) = self
            .routes
            .iter_mut()
            .find(|known| known.from == route.from)
        else {
            self.routes.push(route);
            return;
        };
        let is_same = known.to == route.to;
        if is_same && known.tags.join(&route.tags) {
            add_missing(&mut known.remarks, &route.remarks);
        } else if known.tags == route.tags {
            add_missing(&mut known.to, &route.to);
            add_missing(&mut known.remarks, &route.remarks);
        } else {
            let line = known.line;
            let what = self.shown(&route);
            let reason = format!(
                "the source repository already has the route of line {line}, and can have one only: give that \
                 route both destinations, or both sets of rules"
            );
            self.refuse(route.line, what, reason);
        }
    }

    /// Whether the route can be written down at all.
    fn check(&self, route: &Route) -> Result<(), String> {
        if self.routes.len() >= MOST_ROUTES {
            return Err(format!(
                "a config has at most {MOST_ROUTES} routes: one with a wildcard stands for many, or write a second config"
            ));
        }
        for place in route.to.iter().chain([&route.from]) {
            let registry = self.registries.get(place.registry);
            let address = registry.map_or("", |registry| registry.address.as_str());
            if !address::is_host(address) {
                return Err("names no registry that is one (HOST or HOST:PORT, without a login), or is beyond \
                            the 500 registries that are read"
                    .into());
            }
            if !place.repository.chars().all(is_of_repository) {
                return Err("has no repository name that is one".into());
            }
            self.check_variables(address)?;
            self.check_variables(&place.repository)?;
        }
        let mut rules = route.tags.include.iter().chain(&route.tags.exclude);
        rules.try_for_each(|rule| self.check_variables(rule))
    }

    /// A config fills variables in. Where the old tool does not, nothing may turn into one.
    fn check_variables(&self, text: &str) -> Result<(), String> {
        match !self.has_variables && text.replace("$$", "").contains("${") {
            true => {
                Err("holds ${…}, which the old tool does not fill in: write its value out".into())
            }
            false => Ok(()),
        }
    }

    /// Leaves out what goes where another route already goes.
    pub(super) fn part_destinations(&mut self) {
        let mut taken: BTreeMap<Place, u64> = BTreeMap::new();
        for route in std::mem::take(&mut self.routes) {
            let other = route.to.iter().find_map(|place| taken.get(place));
            if let Some(line) = other {
                let reason = format!("its destination is that of the route of line {line} already");
                let what = self.shown(&route);
                self.refuse(route.line, what, reason);
                continue;
            }
            let places = route.to.iter().cloned();
            taken.extend(places.map(|place| (place, route.line)));
            self.routes.push(route);
        }
    }

    /// The two sides of a route.
    pub(super) fn shown(&self, route: &Route) -> String {
        let to: Vec<String> = route.to.iter().map(|place| self.path(place)).collect();
        format!("{} -> {}", self.path(&route.from), to.join(", "))
    }

    /// A place as the config names it.
    pub(super) fn path(&self, place: &Place) -> String {
        let name = self.registries.get(place.registry);
        format!(
            "{}/{}",
            name.map_or("?", |registry| registry.name.as_str()),
            place.repository
        )
    }

    /// Puts literal sources before wildcards, and long wildcards before short ones: the first route
    /// that matches has a repository. What all routes share is told once.
    pub(super) fn arrange(&mut self) {
        self.routes
            .sort_by_key(|route| match route.from.repository.find('*') {
                None => (false, Reverse(0)),
                Some(at) => (true, Reverse(at)),
            });
        self.tell_of_versions();
        self.tell_of_variables();
        self.tell_of_wildcards();
    }

    fn tell_of_versions(&mut self) {
        let mut first: Option<u64> = None;
        for route in &mut self.routes {
            let of_versions = route.remarks.iter().find(|remark| remark.text == VERSIONS);
            let line = of_versions.map(|remark| remark.line);
            first = [first, line].into_iter().flatten().min();
            route.remarks.retain(|remark| remark.text != VERSIONS);
        }
        if let Some(line) = first {
            self.remark(line, VERSIONS);
        }
    }

    fn tell_of_variables(&mut self) {
        for route in &self.routes {
            for place in route.to.iter().chain([&route.from]) {
                self.registries[place.registry].tell_of_variables(route.line);
            }
        }
    }

    /// What a later route with a wildcard matches as well goes where its own route says, and nowhere
    /// else.
    fn tell_of_wildcards(&mut self) {
        let wild: Vec<(usize, Wild)> = self
            .routes
            .iter()
            .enumerate()
            .filter_map(|(position, route)| Some((position, Wild::of(route)?)))
            .collect();
        for (position, route) in self.routes.iter_mut().enumerate() {
            let later = wild.iter().filter(|(at, _)| *at > position);
            let text = later
                .map(|(_, wild)| wild)
                .find_map(|wild| wild.tells(route));
            let line = route.line;
            route
                .remarks
                .extend(text.map(|text| Remark::new(line, text)));
        }
    }

    /// Leaves a route out, and says why.
    pub(super) fn give_up(&mut self, position: usize, reason: &str) {
        if position < self.routes.len() {
            let route = self.routes.remove(position);
            let what = self.shown(&route);
            self.refuse(route.line, what, reason);
        }
    }

    /// The registries that a route uses.
    pub(super) fn used(&self) -> BTreeSet<usize> {
        let places = self
            .routes
            .iter()
            .flat_map(|route| route.to.iter().chain([&route.from]));
        places.map(|place| place.registry).collect()
    }

    /// What is to be read on the terminal.
    pub(super) fn all_remarks(&self) -> Vec<Remark> {
        let used = self.used();
        let of_registries = self
            .registries
            .iter()
            .enumerate()
            .filter(|(position, _)| used.contains(position))
            .flat_map(|(_, registry)| &registry.remarks);
        let of_routes = self.routes.iter().flat_map(|route| &route.remarks);
        let told = self.remarks.iter().chain(of_registries).chain(of_routes);
        let refused = self.refused.iter().map(|refused| Remark {
            line: refused.line,
            text: format!("left out: {}: {}", refused.what, refused.reason),
        });
        told.cloned().chain(refused).collect()
    }
}

/// A route with a wildcard.
struct Wild {
    line: u64,
    registry: usize,
    pattern: Pattern,
    tags: Tags,
}

impl Wild {
    fn of(route: &Route) -> Option<Wild> {
        let repository = &route.from.repository;
        if !repository.contains('*') {
            return None;
        }
        Some(Wild {
            line: route.line,
            registry: route.from.registry,
            pattern: Pattern::parse(&format!("x/{repository}")).ok()?,
            tags: route.tags.clone(),
        })
    }

    /// What an earlier route has of these repositories.
    fn tells(&self, earlier: &Route) -> Option<String> {
        let (what, has) = match earlier.from.repository.contains('*') {
            true => ("repositories of this route", "them"),
            false => ("this repository", "it"),
        };
        // One repository stands for all that a wildcard matches.
        let name = earlier.from.repository.replace("**", "x").replace('*', "x");
        let matches = self.pattern.matches(&name.parse().ok()?);
        if !matches || self.registry != earlier.from.registry {
            return None;
        }
        let line = self.line;
        let advice = match self.tags == earlier.tags {
            true => "add its destination to `to` if both are meant",
            false => {
                "its rules for tags are others, and do not count for this repository: what they alone take \
                 needs a config of its own"
            }
        };
        Some(format!(
            "line {line} matches {what} too: here the first route alone has {has}; {advice}"
        ))
    }
}

/// Letters of a repository, of patterns, captures and variables.
fn is_of_repository(character: char) -> bool {
    character.is_ascii_alphanumeric() || "/._-*{}$:".contains(character)
}
