//! regsync: `creds`, `defaults` and `sync`.

use jiff::SignedDuration;

use super::address;
use super::outline::{Outline, Stop};
use super::pair;
use super::registry::Registry;
use super::remark::Remark;
use super::route::{Place, Route, Tags};
use super::rules::{self, Selected};
use super::tree::{Map, Wrong};

/// Keys of `defaults` and of `sync` that have no counterpart.
const WITHOUT: [(&str, &str); 22] = [
    (
        "backup",
        "`backup: \"{tag}.previous\"` of a route keeps what a moving tag named; all else is not overwritten unasked",
    ),
    (
        "schedule",
        "no cron here: one `daemon.poll` for all routes, and push events",
    ),
    (
        "ratelimit",
        "RateLimit headers and Retry-After are obeyed without a setting",
    ),
    (
        "parallel",
        "transfers run side by side within `concurrency` of a registry",
    ),
    (
        "digestTags",
        "signatures and other companions always travel",
    ),
    ("referrers", "referrers always travel"),
    (
        "referrerFilters",
        "all referrers travel; `gates.referrers` requires types",
    ),
    ("referrerSource", "referrers are read beside their image"),
    ("referrerTarget", "referrers are written beside their image"),
    ("referrerSlow", "referrers always travel"),
    ("fastCheck", "what is in production is asked for as a whole"),
    ("forceRecursive", "`sync` asks both sides"),
    (
        "includeExternal",
        "layers elsewhere stay where their descriptor says",
    ),
    ("mediaTypes", "manifests of every type travel as they are"),
    (
        "hooks",
        "a program that must agree is the gate `command`; `notify` tells of promotions",
    ),
    ("blobLimit", "blobs have no limit of their own"),
    ("cacheCount", "the index remembers what is there"),
    ("cacheTime", "the index remembers what is there"),
    (
        "skipDockerConfig",
        "say `auth: anonymous` at a registry that must not ask the Docker config",
    ),
    ("userAgent", "the user agent is blobferry's"),
    (
        "tagSets",
        "see the routes: each set is a rule of its own there",
    ),
    ("type", "is read"),
];

/// Keys that cut an index down.
const PLATFORMS: [&str; 2] = ["platform", "platforms"];

const SYNC: [&str; 7] = [
    "source", "target", "type", "tags", "tagSets", "repos", "interval",
];

/// Reads the file.
pub(super) fn read(root: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
    let unknown = root.unmatched(&["version", "creds", "defaults", "sync"], &[]);
    outline.remarks.extend(unknown);
    if root.text("version")?.is_some_and(|version| version != "1") {
        return Err(Wrong::at(root.at, "is no file of version 1"));
    }
    for creds in root.maps("creds")? {
        login(&creds, outline)?;
    }
    if let Some(defaults) = root.map("defaults")? {
        let remarks = unmatched(&defaults, &["interval"]);
        outline.remarks.extend(remarks);
        interval(&defaults, outline)?;
    }
    for sync in root.maps("sync")? {
        entry(&sync, outline)?;
    }
    Ok(())
}

/// Remarks on what has no counterpart in `defaults` and in `sync`.
fn unmatched(map: &Map<'_>, known: &[&str]) -> Vec<Remark> {
    let known = [known, &PLATFORMS].concat();
    let mut remarks = map.unmatched(&known, &WITHOUT);
    let platforms = PLATFORMS.into_iter().filter(|key| map.has(key));
    remarks.extend(platforms.map(|key| pair::platform_remark(map.line_of(key), key)));
    remarks
}

fn interval(map: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
    let Some(text) = map.text("interval")? else {
        return Ok(());
    };
    let parsed = text
        .trim()
        .parse::<SignedDuration>()
        .map(|interval| interval.as_secs());
    match parsed.map(u64::try_from) {
        Ok(Ok(seconds)) => outline.poll_every(seconds),
        _ => outline.remark(
            map.line_of("interval"),
            "interval: is no duration; daemon.poll is 60s",
        ),
    }
    Ok(())
}

/// A login, and how the registry is spoken to.
fn login(creds: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
    const WITHOUT: [(&str, &str); 10] = [
        (
            "credExpire",
            "helpers of the Docker config are asked when a login ends",
        ),
        (
            "credHost",
            "the Docker config names the helper for each host",
        ),
        (
            "repoAuth",
            "tokens are asked for each repository as the registry wants them",
        ),
        (
            "mirrors",
            "there are no mirrors: name the one that counts in `registries`",
        ),
        ("priority", "there are no mirrors"),
        ("pathPrefix", "write the prefix out in `from` and `to`"),
        ("blobChunk", "the size of chunks follows the registry"),
        ("blobMax", "the size of chunks follows the registry"),
        ("apiOpts", "the kind of registry is recognised, or `kind`"),
        ("api", "the kind of registry is recognised, or `kind`"),
    ];
    const KNOWN: [&str; 13] = [
        "registry",
        "hostname",
        "user",
        "pass",
        "token",
        "credHelper",
        "tls",
        "regcert",
        "clientCert",
        "clientKey",
        "reqPerSec",
        "reqConcurrent",
        "scheme",
    ];
    let position = place(creds, outline)?;
    let registry = &mut outline.registries[position];
    registry.remarks.extend(creds.unmatched(&KNOWN, &WITHOUT));
    transport(creds, registry)?;
    credentials(creds, registry)?;
    certificates(creds, registry);
    limits(creds, registry)
}

/// The registry that is meant, with where it is reached.
fn place(creds: &Map<'_>, outline: &mut Outline) -> Result<usize, Wrong> {
    let filled = |text: &str, key: &str| {
        template(text).map_err(|reason| Wrong::at(creds.at, format!("`{key}`: {reason}")))
    };
    let name = filled(creds.needed("registry")?, "registry")?;
    let host = match creds.text("hostname")? {
        Some(host) => filled(host, "hostname")?,
        None => name.clone(),
    };
    let position = outline.registry_named(&name, address::host_and_path(&name).0);
    let registry = &mut outline.registries[position];
    // All that are no hosts are one registry, which stays without an address.
    if !registry.host.is_empty() {
        registry.address = address::host_and_path(&host).0.to_owned();
    }
    Ok(position)
}

fn transport(creds: &Map<'_>, registry: &mut Registry) -> Result<(), Wrong> {
    let line = creds.line_of("tls");
    match creds.text("tls")? {
        Some("disabled") => {
            registry.is_plain = true;
            registry.remark(
                line,
                "tls: disabled: credentials go over plain HTTP beyond this machine with `insecure: true` only",
            );
        }
        Some("insecure") => registry.remark(
            line,
            "tls: insecure: a certificate is always checked; `ca_file` adds an authority",
        ),
        _ => {}
    }
    registry.is_plain |= creds.text("scheme")? == Some("http");
    Ok(())
}

fn credentials(creds: &Map<'_>, registry: &mut Registry) -> Result<(), Wrong> {
    if creds.has("user") || creds.has("pass") {
        registry.needs_password(creds.line_of("user"), &source_of_password(creds)?);
    }
    if creds.has("token") {
        registry.remark(
            creds.line_of("token"),
            "token: an identity token: name it as `identitytoken` in the Docker config, which is asked",
        );
    }
    if creds.has("credHelper") {
        registry.remark(
            creds.line_of("credHelper"),
            "credHelper: name the helper below `credHelpers` of the Docker config, which is asked",
        );
    }
    Ok(())
}

fn certificates(creds: &Map<'_>, registry: &mut Registry) {
    let files = [
        ("regcert", "ca_file"),
        ("clientCert", "client_cert_file"),
        ("clientKey", "client_key_file"),
    ];
    for (key, ours) in files.into_iter().filter(|(key, _)| creds.has(key)) {
        registry.remark(
            creds.line_of(key),
            format!("{key}: put it into a file and name it with `{ours}`"),
        );
    }
}

fn limits(creds: &Map<'_>, registry: &mut Registry) -> Result<(), Wrong> {
    if let Some(number) = creds.number("reqConcurrent")?.filter(|number| *number > 0) {
        registry.set("concurrency", number.to_string());
    }
    if let Some(rate) = creds.text("reqPerSec")? {
        registry.set("requests_per_second", rate);
    }
    Ok(())
}

/// What is told of a password: the name of its variable or file, never itself.
fn source_of_password(creds: &Map<'_>) -> Result<String, Wrong> {
    let text = creds.text("pass")?.unwrap_or_default();
    let of_template = ["env", "file"].into_iter().find_map(|function| {
        let argument = argument(text.trim(), function)?;
        let what = function.replace("env", "variable");
        Some(format!("the password came from the {what} {argument}"))
    });
    Ok(of_template.unwrap_or_else(|| "user and pass".to_owned()))
}

/// The argument of `{{env "X"}}`, where it is all of the text.
fn argument<'a>(text: &'a str, function: &str) -> Option<&'a str> {
    let inner = text.strip_prefix("{{")?.strip_suffix("}}")?.trim();
    let argument = inner.strip_prefix(function)?.trim();
    let argument = argument.trim_matches(['"', '`', '\'']);
    let is_name = argument
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "_./-".contains(c));
    (!argument.is_empty() && is_name).then_some(argument)
}

/// The text with `{{env "X"}}` as `${X}`.
fn template(text: &str) -> Result<String, String> {
    if text.contains("${") {
        return Err("holds ${…}, which regsync does not fill in: write its value out".into());
    }
    let mut filled = String::new();
    let mut rest = text.trim();
    while let Some(at) = rest.find("{{") {
        let end = rest[at..].find("}}").ok_or("a {{ without its }}")? + at + 2;
        let name = argument(&rest[at..end], "env").ok_or(
            "only the template {{env \"NAME\"}} has a counterpart: ${NAME}; write the value out",
        )?;
        filled.push_str(&format!("{}${{{name}}}", &rest[..at]));
        rest = &rest[end..];
    }
    Ok(filled + rest)
}

fn entry(sync: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
    let line = sync.line();
    let remarks = unmatched(sync, &SYNC);
    interval(sync, outline)?;
    let source = sync.needed("source")?;
    let target = sync.needed("target")?;
    match routes(sync, source, target, outline) {
        Ok(mut routes) => {
            if let Some(first) = routes.first_mut() {
                first.remarks.extend(remarks);
            }
            routes.into_iter().for_each(|route| outline.add(route));
        }
        Err(stop) => outline.refuse(line, format!("{source} -> {target}"), stop.reason()?),
    }
    Ok(())
}

fn routes(
    sync: &Map<'_>,
    source: &str,
    target: &str,
    outline: &mut Outline,
) -> Result<Vec<Route>, Stop> {
    let source = template(source)?;
    let target = template(target)?;
    match sync.text("type")?.unwrap_or("repository") {
        "image" => Ok(vec![image(sync.line(), &source, &target, outline)?]),
        "repository" => Ok(vec![repository(sync, &source, &target, outline)?]),
        "registry" => registry(sync, &source, &target, outline),
        _ => Err(Stop::Wrong(Wrong::at(
            sync.at,
            "`type` is none of image, repository, registry",
        ))),
    }
}

fn image(line: u64, source: &str, target: &str, outline: &mut Outline) -> Result<Route, String> {
    let source = address::parse(source)?;
    let target = address::parse(target)?;
    pair::route(&source, &target, line, outline)
}

fn repository(
    sync: &Map<'_>,
    source: &str,
    target: &str,
    outline: &mut Outline,
) -> Result<Route, Stop> {
    let (tags, remarks) = tags_of(sync)?;
    let source = address::parse(source)?;
    let target = address::parse(target)?;
    Ok(Route {
        line: sync.line(),
        from: pair::place(&source, outline),
        to: vec![pair::place(&target, outline)],
        tags,
        remarks,
    })
}

/// All repositories of a registry. Which of them is said by expressions, routes have wildcards.
fn registry(
    sync: &Map<'_>,
    source: &str,
    target: &str,
    outline: &mut Outline,
) -> Result<Vec<Route>, Stop> {
    let patterns = patterns(sync)?;
    let (tags, remarks) = tags_of(sync)?;
    let (from, below_source) = address::host_and_path(source);
    if !below_source.is_empty() {
        return Err("source: a registry with a path: write the route with ** in `from`".into());
    }
    let (host, path) = address::host_and_path(target);
    let routes = patterns.into_iter().map(|pattern| Route {
        line: sync.line(),
        from: Place {
            registry: outline.registry(from),
            repository: pattern.clone(),
        },
        to: vec![Place {
            registry: outline.registry(host),
            repository: address::below(path, &rules::captured(&pattern)),
        }],
        tags: tags.clone(),
        remarks: remarks.clone(),
    });
    Ok(routes.collect())
}

/// The repositories of a registry that are meant.
fn patterns(sync: &Map<'_>) -> Result<Vec<String>, Stop> {
    let Some(repos) = sync.map("repos")? else {
        return Ok(vec!["**".to_owned()]);
    };
    let allow = repos.texts("allow")?;
    if !repos.texts("deny")?.is_empty() {
        return Err(
            "repos.deny: a route has no such rule: put a route for these repositories, to where they \
                    may go, before one with a wildcard"
                .into(),
        );
    }
    if allow.is_empty() {
        return Ok(vec!["**".to_owned()]);
    }
    let patterns = allow.into_iter().map(rules::repositories);
    Ok(patterns.collect::<Result<_, _>>()?)
}

/// The rules of `tags` and of `tagSets`, which add up.
fn tags_of(sync: &Map<'_>) -> Result<Selected, Stop> {
    let mut sets = sync.maps("tagSets")?;
    if sync.has("tags") || sets.is_empty() {
        sets.extend(sync.map("tags")?);
    }
    let mut sets = sets.iter().map(one_set);
    let Some(first) = sets.next() else {
        return Ok((Tags::all(), Vec::new()));
    };
    let (mut tags, mut remarks) = first?;
    for set in sets {
        let (more, told) = set?;
        if more.exclude != tags.exclude {
            return Err(
                "tagSets: sets with different rules of `deny`: `exclude` counts for all rules \
                        of a route, so write it out"
                    .into(),
            );
        }
        tags.include.extend(more.include);
        remarks.extend(told);
    }
    Ok((tags, remarks))
}

/// A tag must pass the ranges, then `allow`, then `deny`.
fn one_set(set: &Map<'_>) -> Result<Selected, Stop> {
    let allow = set.texts("allow")?;
    let deny = set.texts("deny")?;
    let ranges = set.texts("semverRange")?;
    Ok(selected(&allow, &deny, &ranges, set.line())?)
}

fn selected(allow: &[&str], deny: &[&str], ranges: &[&str], line: u64) -> Result<Selected, String> {
    let mut tags = Tags::default();
    let mut remarks = Vec::new();
    let allowed: Vec<String> = allow
        .iter()
        .map(|expression| {
            rules::whole(expression).map_err(|reason| format!("tags.allow: an expression {reason}"))
        })
        .collect::<Result<_, _>>()?;
    let is_everything = allowed.is_empty() || allowed.iter().any(|rule| rule == "*");
    for range in ranges {
        let ranged = rules::zero_filled_range(range)
            .map_err(|reason| format!("tags.semverRange: {reason}"))?;
        tags.include.push(ranged.include);
        tags.exclude.extend(ranged.exclude);
        remarks = vec![rules::versions(line)];
    }
    match (ranges.is_empty(), is_everything) {
        (true, true) => tags.include = vec!["*".to_owned()],
        (true, false) => tags.include = allowed,
        (false, true) => {}
        (false, false) => {
            return Err("tags: a tag must pass both semverRange and allow; here it needs one rule of `include`: \
                        write one rule that says both"
                .into());
        }
    }
    for expression in deny {
        let rule = rules::whole(expression)
            .map_err(|reason| format!("tags.deny: an expression {reason}"))?;
        tags.exclude.push(rule);
    }
    Ok((tags, remarks))
}
