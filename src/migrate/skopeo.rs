//! `skopeo sync --src yaml`: registries with their images. The destination stands on its command
//! line.

use super::Options;
use super::address;
use super::outline::Outline;
use super::pair;
use super::registry::Registry;
use super::remark::Remark;
use super::route::{Place, Route, Tags};
use super::rules;
use super::tree::{self, Map, Wrong};

/// Where the images go while the command line does not say it.
const NOWHERE: &str = "production.example";

/// Reads the file.
pub(super) fn read(
    root: &Map<'_>,
    options: Options<'_>,
    outline: &mut Outline,
) -> Result<(), Wrong> {
    if options.to.is_none() {
        outline.remark(
            1,
            format!(
                "the destination stands on skopeo's command line: put it in the place of {NOWHERE}, or say \
                 --to HOST/PATH, with --scoped as for skopeo"
            ),
        );
    }
    let platform = "without --all skopeo copies the platform of its own machine alone";
    outline.remarks.push(pair::platform_remark(1, platform));
    for (host, node) in root.entries() {
        source(host, &Map::of(node, host)?, options, outline)?;
    }
    Ok(())
}

fn source(
    host: &str,
    map: &Map<'_>,
    options: Options<'_>,
    outline: &mut Outline,
) -> Result<(), Wrong> {
    const KNOWN: [&str; 6] = [
        "images",
        "images-by-tag-regex",
        "images-by-semver",
        "credentials",
        "tls-verify",
        "cert-dir",
    ];
    let (host, path) = address::host_and_path(host);
    let side = Side {
        registry: outline.registry(host),
        host,
        path,
        options,
    };
    let registry = &mut outline.registries[side.registry];
    registry.remarks.extend(map.unmatched(&KNOWN, &[]));
    access(map, registry)?;
    side.by_name(map, outline)?;
    side.by_expression(map, outline)?;
    side.by_range(map, outline)
}

/// How the registry is spoken to.
fn access(map: &Map<'_>, registry: &mut Registry) -> Result<(), Wrong> {
    if map.truth("tls-verify")? == Some(false) {
        registry.is_plain = true;
        registry.remark(
            map.line_of("tls-verify"),
            "tls-verify: plain HTTP is assumed; with https a certificate is always checked, and `ca_file` adds an authority",
        );
    }
    if map.has("credentials") {
        registry.needs_password(map.line_of("credentials"), "credentials");
    }
    if map.has("cert-dir") {
        registry.remark(
            map.line_of("cert-dir"),
            "cert-dir: name its .crt with `ca_file`, its .cert and .key with `client_cert_file` and `client_key_file`",
        );
    }
    Ok(())
}

/// A registry of the file.
struct Side<'a> {
    registry: usize,
    host: &'a str,
    /// What stands behind the host, in front of each repository.
    path: &'a str,
    options: Options<'a>,
}

impl Side<'_> {
    fn by_name(&self, map: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
        let Some(images) = map.map("images")? else {
            return Ok(());
        };
        for (repository, _) in images.entries() {
            let tags = images.texts(repository)?;
            self.listed(repository, &tags, images.line_of(repository), outline);
        }
        Ok(())
    }

    fn by_expression(&self, map: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
        let Some(images) = map.map("images-by-tag-regex")? else {
            return Ok(());
        };
        for (repository, node) in images.entries() {
            let line = images.line_of(repository);
            let rule = rules::loose(tree::text(node, repository)?);
            let tags = rule.map(|rule| Tags::of([rule]));
            self.ruled(repository, tags, Vec::new(), line, outline);
        }
        Ok(())
    }

    fn by_range(&self, map: &Map<'_>, outline: &mut Outline) -> Result<(), Wrong> {
        let Some(images) = map.map("images-by-semver")? else {
            return Ok(());
        };
        for (repository, node) in images.entries() {
            let line = images.line_of(repository);
            let range = rules::range(tree::text(node, repository)?);
            let tags = range.map(|ranged| Tags {
                include: vec![ranged.include],
                exclude: ranged.exclude,
                ..Tags::default()
            });
            self.ruled(repository, tags, vec![rules::versions(line)], line, outline);
        }
        Ok(())
    }

    /// Tags one by one; none means all. A digest is no tag.
    fn listed(&self, repository: &str, tags: &[&str], line: u64, outline: &mut Outline) {
        let (digests, tags): (Vec<&str>, Vec<&str>) =
            tags.iter().partition(|tag| tag.contains(':'));
        for digest in &digests {
            outline.refuse(
                line,
                format!("{}/{repository}@{digest}", self.host),
                pair::OF_DIGEST,
            );
        }
        let rules = match (tags.is_empty(), digests.is_empty()) {
            (true, false) => return,
            (true, true) => Ok(Tags::all()),
            (false, _) => tags
                .iter()
                .map(|tag| rules::literal(tag).map_err(|reason| format!("a tag {reason}")))
                .collect::<Result<Vec<String>, String>>()
                .map(Tags::of),
        };
        self.ruled(repository, rules, Vec::new(), line, outline);
    }

    fn ruled(
        &self,
        repository: &str,
        tags: Result<Tags, String>,
        remarks: Vec<Remark>,
        line: u64,
        outline: &mut Outline,
    ) {
        let from = address::below(self.path, repository);
        let from = address::in_library(self.host, &from);
        let tags = match tags {
            Ok(tags) => tags,
            Err(reason) => {
                outline.refuse(line, format!("{}/{from}", self.host), reason);
                return;
            }
        };
        let (host, path) = address::host_and_path(self.options.to.unwrap_or(NOWHERE));
        let name = match self.options.scoped {
            true => format!("{}/{from}", self.host),
            false => from.rsplit('/').next().unwrap_or(&from).to_owned(),
        };
        let to = Place {
            registry: outline.registry(host),
            repository: address::below(path, &name),
        };
        outline.add(Route {
            line,
            from: Place {
                registry: self.registry,
                repository: from,
            },
            to: vec![to],
            tags,
            remarks,
        });
    }
}
