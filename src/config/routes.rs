//! `routes` and their `defaults`: what goes where, under which rules.

mod backup;
mod between;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use super::gates;
use super::keys::{Keys as _, keys, word_schema};
use super::problem::{complaint, hint};
use super::section::Item;
use super::shapes::{Number, OneOrMany, Word};
use super::units::is_made_of;
use crate::ecr;
use crate::endpoint::Origin;
use crate::fault::clip;
use crate::job::{Drift, Existing};
use crate::oci::platform::NotAPlatform;
use crate::oci::{Platform, Tag};
use crate::route::rules::{Selection, TagRule};
use crate::route::{Create, Mode, Naming, OnlyPlatform, Pattern, Route, Template};

/// Most routes: they are compared with each other.
const MOST_ROUTES: usize = 2000;

/// The registries' names, with their origins as far as they are known.
type Origins = BTreeMap<String, Option<Origin>>;

keys! {
    Defaults, DefaultsKeys {
        ..rules: RulesSection, RulesKeys,
    }
}

keys! {
    RouteSection, RouteKeys {
        /// Label in metrics, logs and history; unique. Default: `from` without the registry's name.
        name: Option<String>,
        /// Registry, slash, source repository. `*` captures within one path part, `**` across parts.
        from: String = "registry/repository",
        /// Registry, slash, destination repository, or a list of such. `{1}` is the first capture.
        to: OneOrMany = "registry/repository, or a list of such",
        ..rules: RulesSection, RulesKeys,
    }
}

keys! {
    RulesSection, RulesKeys {
        /// Which tags.
        tags: Option<Tags>,
        /// What happens to a production tag with another digest that we never wrote. Default: keep.
        existing: Option<Existing>,
        /// What happens to a production tag that we wrote and a person changed. Default: keep.
        drift: Option<Drift>,
        /// `os/architecture`, or `os/architecture/variant`: this manifest of an index is promoted
        /// instead of the index. Default: everything.
        platform: Option<String>,
        /// `observe`: nothing is written, what differs is reported. Default: promote.
        mode: Option<Mode>,
        /// The tag that gets what a moving tag named, before that moves: `{tag}` is the tag in
        /// production.
        backup: Option<String>,
        /// What happens when a destination repository is missing (ECR). Default: never.
        create: Option<Creates>,
        /// How repositories are set up that `create: template` makes.
        template: Option<TemplateSection>,
        /// What must be so before a tag moves. Those of defaults and of a route merge gate by gate.
        gates: Option<gates::GatesSection>,
    }
}

keys! {
    Tags, TagsKeys {
        /// A tag passes when one of these matches: a tag, a glob, `semver:>=1.2 <3`, or `/regular
        /// expression/`. Required, here or in defaults.
        include: Option<OneOrMany>,
        /// A tag that one of these matches does not pass: always wins.
        exclude: Option<OneOrMany>,
        /// Of the tags that parse as versions, the highest so many.
        newest: Option<Number>,
        /// Tags that may name another digest later. Default: latest.
        moving: Option<OneOrMany>,
        /// Moving tags that never go to an image with a lower version. Default: none.
        forward_only: Option<OneOrMany>,
        /// Fewer chosen tags fail the look: nothing of that repository is promoted. Default: 0.
        at_least: Option<Number>,
    }
}

keys! {
    TemplateSection, TemplateKeys {
        /// Whether tags never move. Default: true.
        immutable: Option<bool>,
        /// At most five wildcards for tags that are exempt from that.
        except: Option<OneOrMany>,
        /// Whether images are scanned when they are pushed. Default: false.
        scan_on_push: Option<bool>,
        /// Whether KMS encrypts, with the account's key. Default: false, AES-256.
        kms: Option<bool>,
        /// The KMS key that encrypts.
        kms_key: Option<String>,
        /// File with the lifecycle policy, JSON.
        lifecycle_policy_file: Option<String>,
        /// File with the repository policy, JSON.
        policy_file: Option<String>,
        /// Tags of the repository as an AWS resource.
        resource_tags: Option<BTreeMap<String, Word>>,
    }
}

/// What a route says, or leaves to the defaults.
#[derive(Clone, Default)]
struct Rules {
    include: Option<Vec<TagRule>>,
    exclude: Option<Vec<TagRule>>,
    newest: Option<NonZeroU32>,
    moving: Option<Vec<TagRule>>,
    forward_only: Option<Vec<TagRule>>,
    at_least: Option<usize>,
    existing: Option<Existing>,
    drift: Option<Drift>,
    platform: Option<Platform>,
    mode: Option<Mode>,
    backup: Option<Naming>,
    create: Option<Creates>,
    template: Option<Arc<ecr::Template>>,
    gates: gates::Written,
}

/// How a missing repository comes to be, as it is written.
#[derive(Clone, Copy, PartialEq)]
enum Creates {
    Never,
    Template,
    Clone,
}

/// As it is written.
const CREATES: [(&str, Creates); 3] = [
    ("never", Creates::Never),
    ("template", Creates::Template),
    ("clone", Creates::Clone),
];

/// As it is written.
const EXISTING: [(&str, Existing); 2] = [("keep", Existing::Keep), ("adopt", Existing::Adopt)];

word_schema!(Existing, "Existing", EXISTING.map(|(word, _)| word));

/// As it is written.
const DRIFT: [(&str, Drift); 2] = [("keep", Drift::Keep), ("restore", Drift::Restore)];

word_schema!(Drift, "Drift", DRIFT.map(|(word, _)| word));

/// As it is written.
const MODES: [(&str, Mode); 2] = [("promote", Mode::Promote), ("observe", Mode::Observe)];

word_schema!(Mode, "Mode", MODES.map(|(word, _)| word));

word_schema!(Creates, "Create", CREATES.map(|(word, _)| word));

/// A route with the places of its parts.
struct Written<'a> {
    route: Route,
    name: Item<'a>,
    from: Item<'a>,
    /// As many as the route has destinations.
    to: Vec<Item<'a>>,
    number: usize,
}

/// The routes that could be read.
pub(super) fn read(
    routes: Option<Item<'_>>,
    defaults: Option<Item<'_>>,
    origins: &Origins,
    unscanned: &BTreeSet<String>,
) -> Vec<Route> {
    let defaults = defaults.map(|item| defaults_of(&item)).unwrap_or_default();
    let Some(item) = routes else {
        return Vec::new();
    };
    let Some(items) = item.list() else {
        return Vec::new();
    };
    if items.is_empty() {
        item.wrong("is empty: say what goes where");
    }
    if items.len() > MOST_ROUTES {
        item.wrong(format!("has more than {MOST_ROUTES} routes: use wildcards"));
        return Vec::new();
    }
    let written: Vec<Written<'_>> = items
        .iter()
        .enumerate()
        .filter_map(|(number, item)| route(number, item, &defaults, origins))
        .collect();
    between::check(&written, origins, unscanned);
    written.into_iter().map(|written| written.route).collect()
}

fn defaults_of(item: &Item<'_>) -> Rules {
    let Some(mut section) = item.section() else {
        return Rules::default();
    };
    let keys = DefaultsKeys::take(&mut section);
    for key in ["name", "from", "to"] {
        if let Some(item) = section.item(key) {
            item.wrong("belongs to one route and has no default");
        }
    }
    section.finish(|_| false);
    rules(keys.rules)
}

fn rules(keys: RulesKeys<'_>) -> Rules {
    let tags: TagsKeys<'_> = keys.tags.and_then(|item| item.keys()).unwrap_or_default();
    Rules {
        include: tags.include.map(|item| included(&item)),
        exclude: tags.exclude.map(|item| tag_rules(&item)),
        newest: tags.newest.and_then(|item| item.parse(newest)),
        moving: tags.moving.map(|item| tag_rules(&item)),
        forward_only: tags.forward_only.map(|item| tag_rules(&item)),
        at_least: tags.at_least.and_then(|item| item.parse(at_least)),
        existing: keys.existing.and_then(|item| item.one_of(EXISTING)),
        drift: keys.drift.and_then(|item| item.one_of(DRIFT)),
        platform: keys.platform.and_then(|item| item.parse(platform)),
        mode: keys.mode.and_then(|item| item.one_of(MODES)),
        backup: keys.backup.and_then(|item| item.parse(backup::name)),
        create: keys.create.and_then(|item| item.one_of(CREATES)),
        template: keys.template.and_then(|item| template(&item)).map(Arc::new),
        gates: keys
            .gates
            .map(|item| gates::read(&item))
            .unwrap_or_default(),
    }
}

fn included(item: &Item<'_>) -> Vec<TagRule> {
    if item.items().is_empty() {
        item.wrong("is empty: without a tag to include the route carries nothing (\"*\" includes every tag)");
    }
    tag_rules(item)
}

fn tag_rules(item: &Item<'_>) -> Vec<TagRule> {
    item.items()
        .iter()
        .filter_map(|item| item.parse(str::parse))
        .collect()
}

/// How a repository is set up that the route creates.
fn template(item: &Item<'_>) -> Option<ecr::Template> {
    let keys: TemplateKeys<'_> = item.keys()?;
    let immutable = keys.immutable.and_then(|item| item.truth()).unwrap_or(true);
    let except = keys.except.map(|item| {
        item.items()
            .iter()
            .filter_map(|item| item.parse(exemption))
            .collect::<Vec<_>>()
    });
    let scan_on_push = keys
        .scan_on_push
        .and_then(|item| item.truth())
        .unwrap_or_default();
    let kms = keys.kms.and_then(|item| item.truth()).unwrap_or_default();
    let kms_key = keys.kms_key.and_then(|item| item.word());
    let lifecycle = keys.lifecycle_policy_file.and_then(|item| json_file(&item));
    let policy = keys.policy_file.and_then(|item| json_file(&item));
    let tags = keys
        .resource_tags
        .and_then(|item| resource_tags(&item))
        .unwrap_or_default();
    let except = except.unwrap_or_default();
    if except.len() > 5 {
        item.wrong("has more than five exceptions, which is the most that ECR takes");
    }
    let kms_key = kms_key.or_else(|| kms.then(String::new));
    Some(ecr::Template {
        immutable,
        except,
        scan_on_push,
        kms_key,
        lifecycle,
        policy,
        tags,
    })
}

fn exemption(text: &str) -> Result<String, String> {
    let valid = (1..=128).contains(&text.len()) && is_made_of(text, "._*-");
    valid
        .then(|| text.to_owned())
        .ok_or_else(|| complaint(text, "is no wildcard of ECR (letters, digits and . _ * -)"))
}

fn json_file(item: &Item<'_>) -> Option<String> {
    let text = String::from_utf8(item.file()?)
        .ok()
        .filter(|text| serde_json::from_str::<serde_json::Value>(text).is_ok());
    if text.is_none() {
        item.wrong("the file holds no JSON");
    }
    text
}

fn resource_tags(item: &Item<'_>) -> Option<Vec<(String, String)>> {
    let section = item.section()?;
    Some(
        section
            .entries()
            .filter_map(|(key, value)| Some((key.to_owned(), value.word()?)))
            .collect(),
    )
}

fn newest(text: &str) -> Result<NonZeroU32, String> {
    text.trim()
        .parse()
        .map_err(|_| complaint(text, "is not a number of versions, 1 or more"))
}

fn platform(text: &str) -> Result<Platform, String> {
    let platform: Platform = text
        .parse()
        .map_err(|error: NotAPlatform| complaint(text, &error.to_string()))?;
    let lower = text.to_lowercase();
    if lower != text {
        let way_out = format!("is no platform: their names are in lower case; write {lower}");
        return Err(complaint(text, &way_out));
    }
    Ok(platform)
}

fn at_least(text: &str) -> Result<usize, String> {
    text.trim()
        .parse()
        .map_err(|_| complaint(text, "is not a number of tags"))
}

fn route<'a>(
    number: usize,
    item: &Item<'a>,
    defaults: &Rules,
    origins: &Origins,
) -> Option<Written<'a>> {
    let keys: RouteKeys<'_> = item.keys()?;
    let name_item = keys.name;
    let own = rules(keys.rules);
    if own.include.is_none() && defaults.include.is_none() {
        item.missing(
            "tags.include",
            "is missing: say which tags this route takes, here or in defaults",
        );
    }
    let from = keys
        .from
        .as_ref()
        .and_then(|item| item.parse(Pattern::parse));
    let name = match &name_item {
        Some(item) => item.parse(name),
        None => from.as_ref().map(|from| from.repository().to_owned()),
    };
    let (from, from_item) = from.zip(keys.from)?;
    let known = is_known(from.registry(), &from_item, origins);
    let to = keys.to.and_then(|item| destinations(&item, &from, origins));
    let ((to, to_items), name) = to.filter(|_| known).zip(name)?;
    check_creation(
        item,
        own.create.or(defaults.create),
        own.template.is_some() || defaults.template.is_some(),
    );
    let route = merged(&name, from, to, own, defaults);
    check_exemptions(item, &route);
    backup::check(item, &route);
    Some(Written {
        route,
        name: name_item.unwrap_or_else(|| from_item.clone()),
        from: from_item,
        to: to_items,
        number,
    })
}

fn check_creation(item: &Item<'_>, create: Option<Creates>, template: bool) {
    if create == Some(Creates::Template) && !template {
        item.missing("template", "is missing: `create: template` needs to know how repositories are set up, here or in defaults");
    }
}

/// A moving tag that ECR keeps from moving would be promoted once and refused from then on.
fn check_exemptions(item: &Item<'_>, route: &Route) {
    let Create::Template(template) = &route.create else {
        return;
    };
    if !template.immutable {
        return;
    }
    for rule in &route.selection.moving {
        let text = rule.as_str();
        let is_taken = match text.parse::<Tag>() {
            Ok(tag) => !route
                .selection
                .choose(std::iter::once(&tag))
                .chosen
                .is_empty(),
            // Of a pattern only its own text can be compared; of a range or an expression nothing
            // can.
            Err(_) => !text.starts_with("semver:") && !text.starts_with('/'),
        };
        let mut exemptions = template.except.iter();
        let is_exempt = exemptions.any(|exemption| ecr_wildcard(exemption, text));
        if is_taken && !is_exempt {
            item.missing(
                "template.except",
                format!(
                    "lacks \"{text}\": it is a moving tag, and ECR refuses to move a tag of an immutable repository (add it to \
                     `except`, or take it out of `tags.moving`)"
                ),
            );
        }
    }
}

/// Whether a wildcard of ECR, in which `*` is any characters, matches the whole text.
fn ecr_wildcard(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|left| {
            (0..=left.len())
                .filter(|at| left.is_char_boundary(*at))
                .any(|at| ecr_wildcard(rest, &left[at..]))
        }),
    }
}

fn latest() -> Vec<TagRule> {
    "latest".parse().map(|rule| vec![rule]).unwrap_or_default()
}

fn merged(name: &str, from: Pattern, to: Vec<Template>, own: Rules, defaults: &Rules) -> Route {
    let defaults = defaults.clone();
    let selection = Selection {
        include: own.include.or(defaults.include).unwrap_or_default(),
        exclude: own.exclude.or(defaults.exclude).unwrap_or_default(),
        newest: own.newest.or(defaults.newest),
        moving: own.moving.or(defaults.moving).unwrap_or_else(latest),
        forward_only: own
            .forward_only
            .or(defaults.forward_only)
            .unwrap_or_default(),
        at_least: own.at_least.or(defaults.at_least).unwrap_or_default(),
    };
    let existing = own.existing.or(defaults.existing).unwrap_or_default();
    let drift = own.drift.or(defaults.drift).unwrap_or_default();
    let create = match own.create.or(defaults.create) {
        Some(Creates::Template) => own
            .template
            .or(defaults.template)
            .map_or(Create::Never, Create::Template),
        Some(Creates::Clone) => Create::Clone,
        Some(Creates::Never) | None => Create::Never,
    };
    Route {
        name: name.into(),
        from,
        to,
        selection,
        existing,
        drift,
        platform: own
            .platform
            .or(defaults.platform)
            .map(|platform| Arc::new(OnlyPlatform::new(platform))),
        mode: own.mode.or(defaults.mode).unwrap_or_default(),
        backup: own.backup.or(defaults.backup),
        create,
        gates: gates::merged(own.gates, &defaults.gates),
    }
}

fn name(text: &str) -> Result<String, String> {
    let valid = (1..=128).contains(&text.chars().count())
        && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    valid.then(|| text.to_owned()).ok_or_else(|| {
        complaint(
            text,
            "is not a name for a route (1 to 128 characters without spaces)",
        )
    })
}

fn is_known(registry: &str, item: &Item<'_>, origins: &Origins) -> bool {
    if origins.contains_key(registry) {
        return true;
    }
    let near = hint(registry, origins.keys().map(String::as_str));
    let known: Vec<&str> = origins.keys().map(String::as_str).collect();
    item.wrong(format!(
        "there is no registry \"{}\" (`registries` has: {}){near}",
        clip(registry, 100),
        clip(&known.join(", "), 300)
    ));
    false
}

/// `None` when there is none or any is wrong.
fn destinations<'a>(
    item: &Item<'a>,
    from: &Pattern,
    origins: &Origins,
) -> Option<(Vec<Template>, Vec<Item<'a>>)> {
    let items = item.items();
    if items.is_empty() {
        item.wrong("is empty: name at least one destination");
    }
    let templates: Vec<Option<Template>> = items
        .iter()
        .map(|item| {
            let template = item.parse(|text| Template::parse(text, from))?;
            is_known(template.registry(), item, origins).then_some(template)
        })
        .collect();
    let templates: Vec<Template> = templates.into_iter().collect::<Option<_>>()?;
    (!templates.is_empty()).then_some((templates, items))
}
