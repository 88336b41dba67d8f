//! dregsy: `tasks` with a source, a target and mappings.

use super::address;
use super::outline::Outline;
use super::pair;
use super::registry::Registry;
use super::remark;
use super::route::{Place, Route, Tags};
use super::rules::{self, Selected};
use super::tree::{Map, Wrong};

const KEEP_LATEST: &str = "tags: keep: latest";

const KEEPS_MATCHES: &str = "tags: `keep:` with an expression that all tags must match: write rules of `include` that say both";

/// Reads the file.
pub(super) fn read(root: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
    let unmatched = root.unmatched(&["tasks"],
        &[
            ("relay", "no engine and no other program is needed"),
            ("docker", "no engine is needed"),
            ("skopeo", "no other program is needed; its certs-dir: `ca_file`, `client_cert_file`, `client_key_file`"),
            ("lister", "repositories are listed as the registry allows"),
            ("dockerhost", "no engine is needed"),
            ("api-version", "no engine is needed"),
        ],
    );
    outline.remarks.extend(unmatched);
    for task in root.maps("tasks")? {
        self::task(&task, outline)?;
    }
    Ok(())
}

fn task(task: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
    const KNOWN: [&str; 5] = ["name", "interval", "source", "target", "mappings"];
    let unmatched = task.unmatched(
        &KNOWN,
        &[
            ("verbose", "`-v` logs more"),
            ("env", "the daemon's own environment counts"),
        ],
    );
    outline.remarks.extend(unmatched);
    if let Some(seconds) = task.number("interval")?.filter(|seconds| *seconds > 0) {
        outline.poll_every(seconds);
    }
    let source = side(task, "source", outline)?;
    let target = side(task, "target", outline)?;
    for mapping in task.maps("mappings")? {
        entry(&mapping, &source, &target, outline)?;
    }
    Ok(())
}

/// A registry, and the path in it below which the repositories of a task are.
struct Side<'a> {
    registry: usize,
    path: &'a str,
}

impl Side<'_> {
    fn place(&self, repository: &str) -> Place {
        Place {
            registry: self.registry,
            repository: address::below(self.path, repository),
        }
    }
}

/// A registry has one login here, a side of a task its own: one that is there beats `none`.
fn login(auth: &str, line: u64, registry: &mut Registry) {
    const OF_ONE: &str = "auth: none beside a login for the same registry: the login counts for both; a registry \
         of another name with the same url and `auth: anonymous` serves routes without";
    let has_login = !registry.later.is_empty();
    if auth != "none" {
        registry.needs_password(line, "auth");
        if registry.unset("auth", "anonymous") {
            registry.remark(line, OF_ONE);
        }
    } else if has_login {
        registry.remark(line, OF_ONE);
    } else {
        registry.set("auth", "anonymous");
    }
}

fn side<'a>(task: &Map<'a>, key: &str, outline: &mut Outline) -> Result<Side<'a>, Wrong> {
    let Some(map) = task.map(key)? else {
        return Err(Wrong::at(task.at, format!("has no `{key}`")));
    };
    const KNOWN: [&str; 4] = ["registry", "auth", "skip-tls-verify", "auth-refresh"];
    let unmatched = map.unmatched(&KNOWN, &[]);
    let (host, path) = address::host_and_path(map.needed("registry")?);
    let position = outline.registry(host);
    let registry = &mut outline.registries[position];
    registry.remarks.extend(unmatched);
    if let Some(auth) = map.text("auth")? {
        login(auth, map.line_of("auth"), registry);
    }
    if map.has("auth-refresh") {
        registry.remark(
            map.line_of("auth-refresh"),
            "auth-refresh: tokens of ECR are renewed unasked",
        );
    }
    if map.truth("skip-tls-verify")? == Some(true) {
        registry.remark(
            map.line_of("skip-tls-verify"),
            "skip-tls-verify: a certificate is always checked; `ca_file` adds an authority",
        );
    }
    Ok(Side {
        registry: position,
        path,
    })
}

fn entry(
    map: &Map<'_>,
    source: &Side<'_>,
    target: &Side<'_>,
    outline: &mut Outline,
) -> Result<(), Wrong> {
    const WITHOUT: [(&str, &str); 1] = [("preserve-digests", "a digest never changes")];
    let mut remarks = map.unmatched(&["from", "to", "tags", "platform", "digests"], &WITHOUT);
    let line = map.line();
    if map
        .text("platform")?
        .is_some_and(|platform| platform != "all")
    {
        remarks.push(pair::platform_remark(map.line_of("platform"), "platform"));
    }
    let from = map.needed("from")?;
    let to = map.text("to")?.map(str::trim).filter(|to| !to.is_empty());
    let rules = map.texts("tags")?;
    for _ in map.list("digests") {
        outline.refuse(map.line_of("digests"), from, pair::OF_DIGEST);
    }
    if rules.is_empty() && map.has("digests") {
        return Ok(());
    }
    let selected = tags(&rules, map.line_of("tags"), outline, from);
    let found = selected.and_then(|(tags, told)| {
        remarks.extend(told);
        if from.starts_with("regex:") && !source.path.is_empty() {
            return Err("from: an expression below a registry with a path: write the route with * or ** in `from`".into());
        }
        let (from, to) = repositories(from, to)?;
        Ok(Route {
            line,
            from: source.place(&from),
            to: vec![target.place(&to)],
            tags,
            remarks,
        })
    });
    outline.add_found(line, from, found);
    Ok(())
}

/// The two repositories. Expressions have a counterpart where they are plain wildcards.
fn repositories(from: &str, to: Option<&str>) -> Result<(String, String), String> {
    let expression = from.strip_prefix("regex:").map(str::trim);
    let is_replaced = to.is_some_and(|to| to.starts_with("regex:"));
    if is_replaced {
        return Err("to: an expression that rewrites names: write the route with * or ** in `from` and {1} in `to`".into());
    }
    let Some(expression) = expression else {
        let from = from.trim_start_matches('/');
        return Ok((
            from.to_owned(),
            to.unwrap_or(from).trim_start_matches('/').to_owned(),
        ));
    };
    let pattern = rules::repositories(expression)?;
    let path = rules::captured(&pattern);
    let to = match to.map(|to| to.trim_matches('/')) {
        Some(to) => format!("{to}/{path}"),
        None => path,
    };
    Ok((pattern, to))
}

/// The rules of a mapping: a tag needs one of them, and every `keep:`.
fn tags(texts: &[&str], line: u64, outline: &mut Outline, what: &str) -> Result<Selected, String> {
    let mut tags = Tags::default();
    let mut remarks = Vec::new();
    let mut is_only_digests = !texts.is_empty();
    let is_only_kept = texts.iter().all(|text| text.trim().starts_with("keep:"));
    for text in texts {
        let text = text.trim();
        if text.contains('@') {
            outline.refuse(line, what, pair::OF_DIGEST);
            continue;
        }
        is_only_digests = false;
        if let Some(range) = text.strip_prefix("semver:") {
            let ranged = rules::range(range).map_err(|reason| format!("tags: a range {reason}"))?;
            let is_alone = texts
                .iter()
                .filter(|text| !text.trim().starts_with("keep:"))
                .count()
                == 1;
            if !ranged.exclude.is_empty() && !is_alone {
                return Err("tags: a range that leaves a version out, beside other rules: `exclude` counts for all \
                            rules of a route, so write it out"
                    .into());
            }
            tags.include.push(ranged.include);
            tags.exclude.extend(ranged.exclude);
            remarks = vec![rules::versions(line)];
        } else if let Some(expression) = text.strip_prefix("regex:") {
            let inverted = expression
                .trim()
                .strip_prefix('!')
                .filter(|_| texts.len() == 1);
            if let Some(inverted) = inverted {
                keep(&format!("!{inverted}"), false, &mut tags)?;
                continue;
            }
            tags.include.push(expression_rule(expression)?);
        } else if let Some(kept) = text.strip_prefix("keep:") {
            keep(kept.trim(), is_only_kept, &mut tags)?;
        } else {
            tags.include
                .push(rules::literal(text).map_err(|reason| format!("tags: a tag {reason}"))?);
        }
    }
    if is_only_digests {
        return Err("has digests and no tag".into());
    }
    if tags.include.is_empty() {
        tags.include.push("*".into());
    }
    tags.check_newest(KEEP_LATEST)?;
    remarks.extend(tags.newest.map(|_| remark::of_newest(line, KEEP_LATEST)));
    Ok((tags, remarks))
}

/// `!` in front takes what does not match, which a rule of `include` cannot say.
fn expression_rule(expression: &str) -> Result<String, String> {
    let expression = expression.trim();
    if expression.starts_with('!') {
        return Err("tags: `regex: !…` takes all tags but some: say `include: [\"*\"]` and `exclude` with the expression, \
                    where no other rule stands beside it"
            .into());
    }
    rules::whole(expression).map_err(|reason| format!("tags: an expression {reason}"))
}

/// `keep: latest N`, or an expression that every tag must match: a rule of `include` where no other
/// one stands.
fn keep(kept: &str, is_only_kept: bool, tags: &mut Tags) -> Result<(), String> {
    if let Some(count) = kept.strip_prefix("latest") {
        let count: u64 = count
            .trim()
            .parse()
            .map_err(|_| "tags: `keep: latest` needs a number")?;
        tags.newest = Some(tags.newest.map_or(count, |known| known.min(count)));
        return Ok(());
    }
    let expression = kept.strip_prefix('!').unwrap_or(kept).trim();
    let rule =
        rules::whole(expression).map_err(|reason| format!("tags: an expression {reason}"))?;
    if kept.starts_with('!') {
        tags.exclude.push(rule);
    } else if is_only_kept && tags.include.is_empty() {
        tags.include.push(rule);
    } else {
        return Err(KEEPS_MATCHES.into());
    }
    Ok(())
}
