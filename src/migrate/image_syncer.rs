//! image-syncer: pairs of references, logins by registry, or both in one file.

use super::Options;
use super::address::{self, Address};
use super::outline::Outline;
use super::pair;
use super::route::{Route, Tags};
use super::rules;
use super::tree::{self, Map, Wrong};
use crate::config::yaml::{Node, Value};

const LOGINS_ALONE: &str = "has logins and no images: put the content of auth.yaml below `auth:` and that of \
     images.yaml below `images:` into one file, each indented";

/// Reads the file.
pub(super) fn read(
    root: &Map<'_>,
    options: Options<'_>,
    outline: &mut Outline,
) -> Result<(), Wrong> {
    let parts = [root.map("auth")?, root.map("images")?];
    let is_one = parts.iter().all(Option::is_none);
    if is_one {
        entries(root, options, outline)?;
    } else {
        outline
            .remarks
            .extend(root.unmatched(&["auth", "images"], &[]));
    }
    for part in parts.iter().flatten() {
        entries(part, options, outline)?;
    }
    match outline.routes.is_empty() && outline.refused.is_empty() {
        true => Err(Wrong::whole(LOGINS_ALONE)),
        false => Ok(()),
    }
}

fn entries(map: &Map<'_>, options: Options<'_>, outline: &mut Outline) -> Result<(), Wrong> {
    for (key, node) in map.entries() {
        let line = map.line_of(key);
        match &node.value {
            Value::Map(_) => login(key, &Map::of(node, key)?, outline)?,
            _ => pairs(key, node, line, options, outline)?,
        }
    }
    Ok(())
}

fn login(key: &str, map: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
    let unmatched = map.unmatched(&["username", "password", "insecure"], &[]);
    let (host, path) = address::host_and_path(key);
    let position = outline.registry(host);
    let registry = &mut outline.registries[position];
    registry.remarks.extend(unmatched);
    if map.has("username") || map.has("password") {
        registry.needs_password(map.line(), "username and password");
        if !path.is_empty() {
            registry.remark(
                map.line(),
                "a login for a part of the registry: a registry has one login; write a second one with the same url \
                 for routes that need another",
            );
        }
    }
    let is_insecure = map.truth("insecure")? == Some(true);
    if is_insecure && !path.is_empty() {
        registry.remark(
            map.line_of("insecure"),
            "insecure: for a part of the registry; all of it stays with https, and a second registry with `url: http://…` \
             serves routes that need it",
        );
    } else if is_insecure {
        registry.is_plain = true;
        registry.remark(
            map.line_of("insecure"),
            "insecure: credentials go over plain HTTP beyond this machine with `insecure: true` only",
        );
    }
    Ok(())
}

fn pairs(
    source: &str,
    node: &Node,
    line: u64,
    options: Options<'_>,
    outline: &mut Outline,
) -> Result<(), Wrong> {
    for target in tree::items(node) {
        let target = tree::text(target, source)?;
        let found = routes(source, target, line, options, outline);
        match found {
            Ok(routes) => routes.into_iter().for_each(|route| outline.add(route)),
            Err(reason) => outline.refuse(line, format!("{source} -> {target}"), reason),
        }
    }
    Ok(())
}

/// What stands behind the repository of a reference.
enum Chosen<'a> {
    All,
    Tags(Vec<&'a str>),
    Expression(&'a str),
    Digest,
}

/// A repository, and what stands behind it.
fn split(text: &str) -> Result<(Address, Chosen<'_>), String> {
    if let Some((repository, rest)) = text.split_once(":/")
        && let Some(expression) = rest.strip_suffix('/')
    {
        return Ok((address::parse(repository)?, Chosen::Expression(expression)));
    }
    let (first, more) = text.split_once(',').unwrap_or((text, ""));
    let mut address = address::parse(first)?;
    if address.digest.is_some() {
        return Ok((address, Chosen::Digest));
    }
    if address.tag.take().is_none() {
        return Ok((address, Chosen::All));
    }
    let tag = first.rsplit(':').next().unwrap_or_default();
    let more = more.split(',').filter(|tag| !tag.is_empty());
    Ok((
        address,
        Chosen::Tags(std::iter::once(tag).chain(more).collect()),
    ))
}

fn routes(
    source: &str,
    target: &str,
    line: u64,
    options: Options<'_>,
    outline: &mut Outline,
) -> Result<Vec<Route>, String> {
    let (from, chosen) = split(source)?;
    let named = match target.trim() {
        "" => default_target(&from, options)?,
        target => target.to_owned(),
    };
    let (to, wanted) = split(&named)?;
    let tags = match (chosen, wanted) {
        (Chosen::Digest, _) | (_, Chosen::Digest) => {
            return Err(pair::OF_DIGEST.into());
        }
        (Chosen::All, Chosen::All) => Tags::all(),
        (Chosen::Expression(expression), Chosen::All) => {
            Tags::of(
                [rules::loose(expression).map_err(|reason| format!("an expression {reason}"))?],
            )
        }
        (Chosen::Tags(tags), Chosen::All) => Tags::of(literals(&tags)?),
        (Chosen::Tags(tags), Chosen::Tags(wanted)) if tags.len() == wanted.len() => {
            let pairs = tags.iter().zip(wanted);
            return pairs
                .map(|(tag, wanted)| renamed(&from, tag, &to, wanted, line, outline))
                .collect();
        }
        _ => {
            return Err(
                "has tags at the destination that do not pair with those of the source".into(),
            );
        }
    };
    Ok(vec![Route {
        line,
        from: pair::place(&from, outline),
        to: vec![pair::place(&to, outline)],
        tags,
        remarks: Vec::new(),
    }])
}

fn renamed(
    from: &Address,
    tag: &str,
    to: &Address,
    wanted: &str,
    line: u64,
    outline: &mut Outline,
) -> Result<Route, String> {
    let tagged = |address: &Address, tag: &str| Address {
        tag: Some(tag.to_owned()),
        ..address.clone()
    };
    literals(&[tag, wanted])?;
    pair::route(&tagged(from, tag), &tagged(to, wanted), line, outline)
}

fn literals(tags: &[&str]) -> Result<Vec<String>, String> {
    let tags = tags.iter().map(|tag| rules::literal(tag));
    tags.collect::<Result<_, _>>()
        .map_err(|reason| format!("a tag {reason}"))
}

fn default_target(from: &Address, options: Options<'_>) -> Result<String, String> {
    let to = options.to.ok_or(
        "goes to the default registry of image-syncer's command line: say --to HOST/NAMESPACE",
    )?;
    let name = from.repository.rsplit('/').next().unwrap_or_default();
    Ok(format!("{}/{name}", to.trim_end_matches('/')))
}
