//! sinker: one target, and sources with one tag each.

use super::address::{self, Address};
use super::outline::Outline;
use super::pair;
use super::tree::{Map, Wrong};

/// Hosts below which sinker nests no repositories.
const FLAT: [&str; 3] = ["gcr.io", "quay.io", address::HUB];

/// Reads the file.
pub(super) fn read(root: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
    let unmatched = root.unmatched(&["target", "sources", "images"], &[]);
    outline.remarks.extend(unmatched);
    let Some(target) = root.map("target")? else {
        return Err(Wrong::at(root.at, "has no `target`"));
    };
    let target = Target::read(&target, outline)?;
    for key in ["sources", "images"] {
        for source in root.maps(key)? {
            entry(&source, &target, outline)?;
        }
    }
    Ok(())
}

/// Where images go.
struct Target<'a> {
    host: &'a str,
    /// In front of each repository.
    prefix: String,
    /// Whether sinker keeps the last part of a repository alone.
    is_flat: bool,
}

impl<'a> Target<'a> {
    fn read(map: &Map<'a>, outline: &mut Outline) -> Result<Target<'a>, Wrong> {
        let unmatched = map.unmatched(&["host", "repository", "auth"], &[]);
        outline.remarks.extend(unmatched);
        let (host, path) = host_of(map)?;
        let prefix = map.text("repository")?.unwrap_or_default();
        let prefix = address::below(path, prefix.trim_matches('/'));
        login(map, host, outline);
        Ok(Target {
            host,
            prefix: prefix.trim_end_matches('/').to_owned(),
            is_flat: FLAT.iter().any(|known| host.contains(known)),
        })
    }

    /// The repository that a source has there.
    fn place(&self, repository: &str) -> String {
        let kept = match self.is_flat {
            true => repository.rsplit('/').next().unwrap_or_default(),
            false => repository,
        };
        format!("{}/{}", self.host, address::below(&self.prefix, kept))
    }
}

/// A target of the source's own counts where it names a host.
fn own_target<'a>(source: &Map<'a>, outline: &mut Outline) -> Result<Option<Target<'a>>, Wrong> {
    let Some(target) = source.map("target")? else {
        return Ok(None);
    };
    let names_host = target
        .text("host")?
        .is_some_and(|host| !host.trim().is_empty());
    match names_host {
        true => Target::read(&target, outline).map(Some),
        false => Ok(None),
    }
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

fn entry(source: &Map<'_>, target: &Target<'_>, outline: &mut Outline) -> Result<(), Wrong> {
    const KNOWN: [&str; 6] = ["repository", "host", "tag", "digest", "auth", "target"];
    let remarks = source.unmatched(&KNOWN, &[]);
    let own = own_target(source, outline)?;
    let target = own.as_ref().unwrap_or(target);
    let repository = source.needed("repository")?;
    let (own_host, path) = host_of(source)?;
    login(source, own_host, outline);
    let tag = source.text("tag")?.map(str::to_owned);
    let what = format!("{own_host}/{}", address::below(path, repository));
    let target = target.place(repository);
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
