//! ocync: `registries`, `target_groups`, `defaults` and `mappings`.

use std::collections::BTreeMap;

use super::address;
use super::outline::{Outline, Stop};
use super::pair;
use super::registry::Registry;
use super::remark::{self, Remark};
use super::route::{Place, Route, Tags};
use super::rules::{self, Selected};
use super::tree::{Map, Wrong};

/// What ocync leaves out unasked.
const PRE_RELEASES: &str = "/(?i)-(rc|alpha|beta|pre|snapshot|nightly)/";

const NARROWED: &str = "tags.include: here `exclude` counts for these tags too: what it takes of them needs another rule";

const TAKES_PRE_RELEASES: &str = "tags.include: names pre-releases. ocync leaves -rc, -alpha, -beta, -pre, -snapshot \
     and -nightly out of its other rules; here `exclude` takes them from this one too: copy the ones that are meant \
     with `blobferry copy`";

const COUNTED: &str = "tags.include: here `newest` counts the versions among these tags too";

/// Names of the file with what they stand for.
#[derive(Default)]
struct Names {
    registries: BTreeMap<String, usize>,
    groups: BTreeMap<String, Vec<String>>,
}

/// Reads the file.
pub(super) fn read(root: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
    const KNOWN: [&str; 5] = [
        "registries",
        "target_groups",
        "defaults",
        "mappings",
        "global",
    ];
    let unknown = root.unmatched(&KNOWN, &[]);
    outline.remarks.extend(unknown);
    let mut names = Names::default();
    if let Some(registries) = root.map("registries")? {
        for (name, node) in registries.entries() {
            registry(name, &Map::of(node, name)?, &mut names, outline)?;
        }
    }
    if let Some(groups) = root.map("target_groups")? {
        for (name, _) in groups.entries() {
            let members = groups.texts(name)?.into_iter().map(str::to_owned).collect();
            names.groups.insert(name.to_owned(), members);
        }
    }
    if let Some(global) = root.map("global")? {
        let unmatched = global.unmatched(
            &[],
            &[
                (
                    "max_concurrent_transfers",
                    "`concurrency` of a registry limits what is asked of it",
                ),
                ("cache_dir", "`daemon.state` is the folder of the index"),
                (
                    "cache_ttl",
                    "`daemon.verify` says how often production is asked again",
                ),
                ("staging_size_limit", "no blob is on disk"),
            ],
        );
        outline.remarks.extend(unmatched);
    }
    let defaults = root.map("defaults")?;
    if let Some(defaults) = &defaults {
        let unmatched = defaults.unmatched(
            &["source", "targets", "tags", "artifacts", "platforms"],
            &[],
        );
        outline.remarks.extend(unmatched);
        outline.remarks.extend(platforms(defaults));
        artifacts(defaults, outline)?;
    }
    for mapping in root.maps("mappings")? {
        entry(&mapping, defaults.as_ref(), &names, outline)?;
    }
    Ok(())
}

fn registry(
    name: &str,
    map: &Map<'_>,
    names: &mut Names,
    outline: &mut Outline,
) -> Result<(), Wrong> {
    const KNOWN: [&str; 6] = [
        "url",
        "auth_type",
        "max_concurrent",
        "credentials",
        "token",
        "aws_profile",
    ];
    const WITHOUT: [(&str, &str); 1] = [(
        "head_first",
        "a poll costs the listings, not a request for each tag",
    )];
    let unmatched = map.unmatched(&KNOWN, &WITHOUT);
    let url = map.needed("url")?;
    let (host, path) = address::host_and_path(url);
    let position = outline.registry_named(name, host);
    names.registries.insert(name.to_owned(), position);
    let registry = &mut outline.registries[position];
    registry.remarks.extend(unmatched);
    registry.is_plain |= url.starts_with("http://");
    if !path.is_empty() {
        registry.remark(
            map.line_of("url"),
            "url: a path belongs into `from` and `to` of the routes",
        );
    }
    identity(map, registry)?;
    if let Some(profile) = map.text("aws_profile")? {
        registry.set("aws_profile", profile);
    }
    if let Some(number) = map.number("max_concurrent")?.filter(|number| *number > 0) {
        registry.set("concurrency", number.to_string());
    }
    Ok(())
}

/// ocync reads `token` with `static_token` alone.
fn identity(map: &Map<'_>, registry: &mut Registry) -> Result<(), Wrong> {
    let line = map.line_of("auth_type");
    let auth_type = map.text("auth_type")?;
    let is_token = matches!(auth_type, Some("static_token" | "token"));
    match auth_type {
        Some("ecr") => registry.set("auth", "ecr"),
        Some("anonymous") => registry.set("auth", "anonymous"),
        Some("docker_config" | "ghcr") => registry.set("auth", "docker-config"),
        Some("gar" | "gcr" | "acr") => registry.remark(
            line,
            "auth_type: name the cloud's credential helper in the Docker config, which is asked",
        ),
        Some("static_token" | "token") => {
            registry.needs_token(line, "auth_type: static_token is `auth: bearer`");
        }
        Some("basic") | None => {}
        Some(_) => registry.remark(
            line,
            "auth_type: is not known; the identity follows the host",
        ),
    }
    if map.has("token") && !is_token {
        registry.remark(
            map.line_of("token"),
            "token: counts with `auth_type: static_token` alone, and is left out",
        );
    }
    if let Some(credentials) = map.map("credentials")? {
        let line = map.line_of("credentials");
        self::credentials(line, &credentials, is_token, registry);
    }
    Ok(())
}

fn credentials(line: u64, map: &Map<'_>, is_token: bool, registry: &mut Registry) {
    registry
        .remarks
        .extend(map.unmatched(&["username", "password", "token"], &[]));
    let has_password = map.has("username") || map.has("password");
    if has_password && is_token {
        registry.remark(
            line,
            "credentials: do not count with `auth_type: static_token`, and are left out",
        );
    } else if has_password {
        registry.needs_password(line, "credentials");
    }
    if map.has("token") {
        registry.remark(
            map.line_of("token"),
            "credentials.token: is left out, ocync has no such key: a token that the registry itself takes is \
             `auth: bearer` with `token_file`, one in the place of a password `username` with `password_file`",
        );
    }
}

fn platforms(map: &Map<'_>) -> Option<Remark> {
    let line = map.line_of("platforms");
    map.has("platforms")
        .then(|| pair::platform_remark(line, "platforms"))
}

fn artifacts(map: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
    let Some(artifacts) = map.map("artifacts")? else {
        return Ok(());
    };
    let unmatched = artifacts.unmatched(
        &[],
        &[
            ("enabled", "referrers always travel"),
            (
                "include",
                "all referrers travel; `gates.referrers` requires types",
            ),
            ("exclude", "all referrers travel"),
            (
                "require_artifacts",
                "`gates.referrers` lists the artifact types that an image must have",
            ),
        ],
    );
    outline.remarks.extend(unmatched);
    Ok(())
}

fn entry(
    map: &Map<'_>,
    defaults: Option<&Map<'_>>,
    names: &Names,
    outline: &mut Outline,
) -> Result<(), Wrong> {
    const KNOWN: [&str; 7] = [
        "from",
        "to",
        "source",
        "targets",
        "tags",
        "artifacts",
        "platforms",
    ];
    let mut remarks = map.unmatched(&KNOWN, &[]);
    remarks.extend(platforms(map));
    artifacts(map, outline)?;
    let from = map.needed("from")?;
    let to = map.text("to")?.unwrap_or(from);
    match route(map, defaults, names, (from, to)) {
        Ok(mut route) => {
            remarks.append(&mut route.remarks);
            outline.add(Route { remarks, ..route });
        }
        Err(stop) => outline.refuse(map.line(), format!("{from} -> {to}"), stop.reason()?),
    }
    Ok(())
}

fn route(
    map: &Map<'_>,
    defaults: Option<&Map<'_>>,
    names: &Names,
    (from, to): (&str, &str),
) -> Result<Route, Stop> {
    let own_or_default = |key: &str| match map.has(key) {
        true => Some(map),
        false => defaults.filter(|defaults| defaults.has(key)),
    };
    let source = own_or_default("source").map_or(Ok(None), |map| map.text("source"))?;
    let targets = own_or_default("targets").map_or(Ok(Vec::new()), |map| map.texts("targets"))?;
    let layers = Layers {
        own: map.map("tags")?,
        defaults: defaults.map_or(Ok(None), |defaults| defaults.map("tags"))?,
    };
    let (tags, remarks) = tags_of(&layers, map.line())?;
    let registry = source.and_then(|name| names.registries.get(name));
    let from = Place {
        registry: *registry.ok_or("source: names no registry of the file")?,
        repository: from.to_owned(),
    };
    let to = targets_of(&targets, names)?
        .into_iter()
        .map(|registry| Place {
            registry,
            repository: to.to_owned(),
        });
    Ok(Route {
        line: map.line(),
        from,
        to: to.collect(),
        tags,
        remarks,
    })
}

fn targets_of(targets: &[&str], names: &Names) -> Result<Vec<usize>, String> {
    let mut positions = Vec::new();
    for target in targets {
        let one = vec![(*target).to_owned()];
        for name in names.groups.get(*target).unwrap_or(&one) {
            let position = names.registries.get(name);
            positions.push(*position.ok_or("targets: names no registry and no group of the file")?);
        }
    }
    match positions.is_empty() {
        true => Err("targets: there is none".into()),
        false => Ok(positions),
    }
}

/// The rules of a mapping above those of `defaults`: each key on its own, `exclude` from both.
struct Layers<'a> {
    own: Option<Map<'a>>,
    defaults: Option<Map<'a>>,
}

impl<'a> Layers<'a> {
    fn all(&self) -> impl Iterator<Item = &Map<'a>> {
        self.own.iter().chain(&self.defaults)
    }

    /// What a key is read from.
    fn with(&self, key: &str) -> Option<&Map<'a>> {
        self.all().find(|map| map.has(key))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, Wrong> {
        self.with(key).map_or(Ok(None), |map| map.text(key))
    }

    fn number(&self, key: &str) -> Result<Option<u64>, Wrong> {
        self.with(key).map_or(Ok(None), |map| map.number(key))
    }

    fn texts(&self, key: &str) -> Result<Vec<&'a str>, Wrong> {
        self.with(key).map_or(Ok(Vec::new()), |map| map.texts(key))
    }
}

/// What a mapping says of its tags.
struct Given<'a> {
    globs: Vec<&'a str>,
    range: Option<&'a str>,
    include: Vec<&'a str>,
    exclude: Vec<&'a str>,
    /// Of `defaults`: a tag of `include` passes them.
    soft_exclude: Vec<&'a str>,
    sort: Option<&'a str>,
    newest: Option<u64>,
    at_least: Option<u64>,
}

impl<'a> Given<'a> {
    fn of(layers: &Layers<'a>) -> Result<Given<'a>, Wrong> {
        let excluded = |layer: &Option<Map<'a>>| match layer {
            Some(map) => map.texts("exclude"),
            None => Ok(Vec::new()),
        };
        Ok(Given {
            globs: layers.texts("glob")?,
            range: layers.text("semver")?,
            include: layers.texts("include")?,
            exclude: excluded(&layers.own)?,
            soft_exclude: excluded(&layers.defaults)?,
            sort: layers.text("sort")?,
            newest: layers.number("latest")?,
            at_least: layers.number("min_tags")?,
        })
    }

    fn has_variables(&self) -> bool {
        let lists = self.globs.iter().chain(&self.include).chain(&self.exclude);
        let mut lists = lists.chain(&self.soft_exclude).chain(&self.range);
        lists.any(|text| text.contains("${"))
    }

    /// A tag must match `glob` and lie within `semver`; `include` adds tags that need neither.
    fn selected(&self, line: u64) -> Result<Selected, String> {
        let (mut tags, mut remarks) = pool(&self.globs, self.range, line)?;
        tags.at_least = self.at_least;
        tags.newest = self.newest;
        tags.check_newest("tags.latest")?;
        let included = all(&self.include, "include")?;
        let soft = self.soft_rules()?;
        let excludes = !tags.exclude.is_empty() || !soft.is_empty();
        if excludes && !included.is_empty() {
            remarks.push(Remark::new(line, NARROWED));
        }
        tags.exclude.extend(all(&self.exclude, "exclude")?);
        tags.exclude.extend(soft);
        let of_pre_releases = self.leave_pre_releases_out(&included, &mut tags);
        remarks.extend(of_pre_releases.map(|text| Remark::new(line, text)));
        if !tags.include.iter().any(|rule| rule == "*") {
            tags.include.extend(included);
        }
        if self.newest.is_some() {
            if self.sort != Some("semver") {
                return Err(
                    "tags.latest: `newest` counts versions only, not tags in another order".into(),
                );
            }
            remarks.push(remark::of_newest(line, "tags.latest"));
            if !self.include.is_empty() {
                remarks.push(Remark::new(line, COUNTED));
            }
        }
        Ok((tags, remarks))
    }

    /// The `exclude` of `defaults`, which tags of `include` pass in ocync. Beside a range of releases a pattern with a
    /// dash excludes nothing but such tags, and is left out.
    fn soft_rules(&self) -> Result<Vec<String>, String> {
        let is_beside_range = self.takes_releases_alone() && !self.include.is_empty();
        let globs = self.soft_exclude.iter().copied();
        let needed: Vec<&str> = globs
            .filter(|glob| !(is_beside_range && needs_dash(glob)))
            .collect();
        all(&needed, "exclude")
    }

    /// A range without a pre-release matches none by itself.
    fn takes_releases_alone(&self) -> bool {
        self.range.is_some_and(|range| !range.contains('-'))
    }

    /// Excludes what ocync leaves out unasked. Returns a remark where that costs tags of `include`.
    fn leave_pre_releases_out(&self, included: &[String], tags: &mut Tags) -> Option<&'static str> {
        let names_some = included.iter().any(|rule| is_pre_release(rule));
        if names_some && self.takes_releases_alone() {
            return None;
        }
        tags.exclude.push(PRE_RELEASES.to_owned());
        names_some.then_some(TAKES_PRE_RELEASES)
    }
}

fn tags_of(layers: &Layers<'_>, of_mapping: u64) -> Result<Selected, Stop> {
    const KNOWN: [&str; 8] = [
        "glob",
        "semver",
        "exclude",
        "include",
        "sort",
        "latest",
        "semver_prerelease",
        "min_tags",
    ];
    const WITHOUT: [(&str, &str); 1] = [(
        "immutable_tags",
        "every tag is fixed here but those of `moving`: list the ones that move",
    )];
    let given = Given::of(layers)?;
    if layers.all().next().is_none() {
        return Err(
            "has no `tags`, which ocync refuses: for all tags write `include: [\"*\"]`".into(),
        );
    }
    if given.has_variables() {
        return Err(
            "tags: a rule with a variable, which is filled in before the rule is read: write its value out".into(),
        );
    }
    let line = layers.own.as_ref().map_or(of_mapping, Map::line);
    let (tags, told) = given.selected(line)?;
    let unmatched = layers.all().flat_map(|map| map.unmatched(&KNOWN, &WITHOUT));
    Ok((tags, unmatched.chain(told).collect()))
}

/// Whether all that the pattern matches has a dash.
fn needs_dash(glob: &str) -> bool {
    glob.split(['[', '{'])
        .next()
        .is_some_and(|fixed| fixed.contains('-'))
}

fn is_pre_release(rule: &str) -> bool {
    let rule = rule.to_ascii_lowercase();
    ["-rc", "-alpha", "-beta", "-pre", "-snapshot", "-nightly"]
        .iter()
        .any(|mark| rule.contains(mark))
        || rule == "*"
}

fn all(globs: &[&str], key: &str) -> Result<Vec<String>, String> {
    let rules = globs.iter().map(|glob| rules::glob(glob));
    rules
        .collect::<Result<_, _>>()
        .map_err(|reason| format!("tags.{key}: a pattern {reason}"))
}

/// The tags that match `glob` and lie within `semver`.
fn pool(globs: &[&str], range: Option<&str>, line: u64) -> Result<Selected, String> {
    let Some(range) = range else {
        let include = match globs.is_empty() {
            true => vec!["*".to_owned()],
            false => all(globs, "glob")?,
        };
        return Ok((Tags::of(include), Vec::new()));
    };
    // Cargo's ranges, which ocync once read, are the ones with ^ and ~.
    let ranged = match range.contains(['^', '~']) {
        true => rules::range(range),
        false => rules::zero_filled_range(range),
    };
    let ranged = ranged.map_err(|reason| format!("tags.semver: {reason}"))?;
    let mut tags = Tags::of([ranged.include]);
    tags.exclude = ranged.exclude;
    match globs {
        [] => {}
        [glob] => {
            let prefix = rules::prefix_of(glob).ok_or(
                "tags: a tag must pass both glob and semver; here it needs one rule of `include`: write one rule that says both",
            )?;
            if !prefix.is_empty() {
                tags.exclude.push(rules::not_before(prefix)?);
            }
        }
        _ => return Err("tags: a tag must pass both semver and one of several globs: write one rule that says both".into()),
    }
    Ok((tags, vec![rules::versions(line)]))
}
