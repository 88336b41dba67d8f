//! sinker: one target, and sources with one tag each.

use super::address::{self, Address};
use super::outline::Outline;
use super::pair;
use super::tree::{Map, Wrong};

/// Reads the file.
pub(super) fn read(root: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
    let unmatched = root.unmatched(&["target", "sources", "images"], &[]);
    outline.remarks.extend(unmatched);
    let Some(target) = root.map("target")? else {
        return Err(Wrong::at(root.at, "has no `target`"));
    };
    let unmatched = target.unmatched(&["host", "repository", "auth"], &[]);
    outline.remarks.extend(unmatched);
    let (host, path) = host_of(&target)?;
    let prefix = target.text("repository")?.unwrap_or_default();
    let prefix = address::below(path, prefix.trim_matches('/'));
    login(&target, host, outline);
    for key in ["sources", "images"] {
        for source in root.maps(key)? {
            entry(&source, host, prefix.trim_end_matches('/'), outline)?;
        }
    }
    Ok(())
}

/// The host, and a path behind it.
fn host_of<'a>(map: &Map<'a>) -> Result<(&'a str, &'a str), Wrong> {
    let host = map
        .text("host")?
        .map(str::trim)
        .filter(|host| !host.is_empty());
    Ok(address::host_and_path(host.unwrap_or(address::HUB)))
}

/// `auth` names variables of the environment.
fn login(map: &Map<'_>, host: &str, outline: &mut Outline) {
    let position = outline.registry(host);
    if map.has("auth") {
        outline.registries[position].needs_password(map.line_of("auth"), "auth names variables");
    }
}

fn entry(source: &Map<'_>, host: &str, prefix: &str, outline: &mut Outline) -> Result<(), Wrong> {
    let remarks = source.unmatched(&["repository", "host", "tag", "digest", "auth"], &[]);
    let repository = source.needed("repository")?;
    let (own_host, path) = host_of(source)?;
    login(source, own_host, outline);
    let tag = source.text("tag")?.map(str::to_owned);
    let what = format!("{own_host}/{}", address::below(path, repository));
    let target = format!("{host}/{}", address::below(prefix, repository));
    let line = source.line();
    if source.has("digest") {
        outline.refuse(
            line,
            what,
            "names a digest, and a route names tags, which may move: `blobferry copy SRC@DIGEST DST:TAG` copies it once",
        );
        return Ok(());
    }
    let tagged = |text: &str| {
        address::parse(text).map(|address| Address {
            tag: tag.clone(),
            ..address
        })
    };
    let found = tagged(&what)
        .and_then(|from| pair::route(&from, &tagged(&target)?, line, outline))
        .map(|mut route| {
            route.remarks.extend(remarks);
            route
        });
    outline.add_found(line, what, found);
    Ok(())
}
