//! References to images, as Docker reads them: without a host they are Docker Hub's, and there a
//! single name lies in `library`.

use crate::oci::{Digest, Host, RepositoryName, Tag};

/// Docker Hub.
pub(super) const HUB: &str = "docker.io";

/// A reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// `host` or `host:port`, perhaps with `${VARIABLES}`.
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) tag: Option<String>,
    pub(super) digest: Option<String>,
}

/// Reads `[host[:port]/]repository[:tag][@digest]`, also behind `docker://`.
///
/// # Errors
/// Why it is none; the text is not repeated, since a password may stand in it.
pub(super) fn parse(text: &str) -> Result<Address, String> {
    let text = text.trim();
    let text = text.strip_prefix("docker://").unwrap_or(text);
    let mask = masked(text);
    let (digest, end) = match mask.find('@') {
        Some(at) => (Some(text[at + 1..].to_owned()), at),
        None => (None, text.len()),
    };
    if digest
        .as_ref()
        .is_some_and(|digest| digest.parse::<Digest>().is_err())
    {
        return Err("holds an @ that no digest follows".into());
    }
    let slash = mask[..end].rfind('/').map_or(0, |at| at + 1);
    let (tag, end) = match mask[slash..end].find(':') {
        Some(at) => (Some(text[slash + at + 1..end].to_owned()), slash + at),
        None => (None, end),
    };
    let (host, repository) = split_host(&text[..end], &mask[..end]);
    check(host, repository, tag.as_deref())?;
    Ok(Address {
        host: host.to_owned(),
        repository: in_library(host, repository),
        tag,
        digest,
    })
}

/// Splits `host[:port]/path`, for formats in which the host always stands in front.
pub(super) fn host_and_path(text: &str) -> (&str, &str) {
    let text = text.trim().trim_end_matches('/');
    let text = ["https://", "http://", "docker://"]
        .into_iter()
        .find_map(|scheme| text.strip_prefix(scheme))
        .unwrap_or(text);
    let mask = masked(text);
    let behind_login = login_end(&mask).unwrap_or(0);
    match mask[behind_login..].find('/') {
        Some(at) => {
            let at = behind_login + at;
            (of_hub(&text[..at]), &text[at + 1..])
        }
        None => (of_hub(text), ""),
    }
}

/// A repository below a path; an empty path is none.
pub(super) fn below(path: &str, repository: &str) -> String {
    match path.is_empty() {
        true => repository.to_owned(),
        false => format!("{path}/{repository}"),
    }
}

/// A single name at Docker Hub lies in `library`.
pub(super) fn in_library(host: &str, repository: &str) -> String {
    match host == HUB && !repository.contains('/') {
        true => format!("library/{repository}"),
        false => repository.to_owned(),
    }
}

/// Where a login in front of a host ends: behind the last `@` that no digest follows.
fn login_end(text: &str) -> Option<usize> {
    let mut ends = text.match_indices('@').map(|(at, _)| at + 1);
    ends.rfind(|end| !starts_with_digest(&text[*end..]))
}

fn starts_with_digest(text: &str) -> bool {
    text.starts_with("sha256:") || text.starts_with("sha512:")
}

/// The text without what may be a secret: a login in front of a host, and a query.
pub(super) fn safe(text: &str) -> String {
    let shown = match login_end(text) {
        Some(end) => format!("***@{}", &text[end..]),
        None => text.to_owned(),
    };
    match shown.split_once('?') {
        Some((before, _)) => format!("{before}?***"),
        None => shown,
    }
}

/// Whether this names a registry, whatever its variables hold.
pub(super) fn is_host(text: &str) -> bool {
    let fixed = masked(text);
    fixed.parse::<Host>().is_ok()
}

fn split_host<'a>(text: &'a str, mask: &str) -> (&'a str, &'a str) {
    let Some(at) = mask.find('/') else {
        return (HUB, text);
    };
    let first = &text[..at];
    let is_host = first.contains(['.', ':']) || first == "localhost" || first.starts_with("${");
    match is_host {
        true => (of_hub(first), &text[at + 1..]),
        false => (HUB, text),
    }
}

fn of_hub(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => HUB,
        host => host,
    }
}

/// Whether no variable is part of it.
fn is_fixed(text: &str) -> bool {
    !text.contains("${")
}

fn check(host: &str, repository: &str, tag: Option<&str>) -> Result<(), String> {
    if is_fixed(host) && host.parse::<Host>().is_err() {
        return Err("has no host that is one".into());
    }
    if is_fixed(repository) && repository.parse::<RepositoryName>().is_err() {
        return Err(
            "has no repository name that is one (lower-case letters, digits, . _ - between them)"
                .into(),
        );
    }
    if tag.is_some_and(|tag| is_fixed(tag) && tag.parse::<Tag>().is_err()) {
        return Err("has a tag that is none".into());
    }
    Ok(())
}

/// The text with `x` in place of what stands in `${…}`: of the same length.
fn masked(text: &str) -> String {
    let mut mask = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let length = rest[at..].find('}').map_or(rest.len() - at, |end| end + 1);
        mask.push_str(&rest[..at]);
        mask.push_str(&"x".repeat(length));
        rest = &rest[at + length..];
    }
    mask + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_docker_reads_them() {
        let table = [
            ("nginx", "docker.io library/nginx - -"),
            ("docker.io/nginx:1.27", "docker.io library/nginx 1.27 -"),
            ("acme/app", "docker.io acme/app - -"),
            ("index.docker.io/acme/app:v1", "docker.io acme/app v1 -"),
            ("localhost/app", "localhost app - -"),
            ("docker://quay.io:443/a/b:c", "quay.io:443 a/b c -"),
            ("${REG}/app:v1", "${REG} app v1 -"),
            ("${A:-x/y:z}.example/app", "${A:-x/y:z}.example app - -"),
        ];
        for (text, expected) in table {
            let address = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let or_dash = |part: Option<String>| part.unwrap_or_else(|| "-".into());
            let shown = format!(
                "{} {} {} {}",
                address.host,
                address.repository,
                or_dash(address.tag),
                or_dash(address.digest)
            );
            assert_eq!(shown, expected, "{text}");
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        let address = parse(&format!("quay.io/a/b:v1@{digest}")).unwrap();
        assert_eq!(address.tag.as_deref(), Some("v1"));
        assert_eq!(address.digest, Some(digest));
    }

    #[test]
    fn a_login_is_never_part_of_a_path() {
        let table = [
            (
                "https://joe:1/2@quay.io/a",
                "joe:1/2@quay.io",
                "***@quay.io/a",
            ),
            ("token@quay.io/a", "token@quay.io", "***@quay.io/a"),
            (
                "joe:a, b(c \"d@quay.io/a",
                "joe:a, b(c \"d@quay.io",
                "***@quay.io/a",
            ),
            ("quay.io/a:v1?token=t", "quay.io", "quay.io/a:v1?***"),
            ("quay.io/a@sha256:0", "quay.io", "quay.io/a@sha256:0"),
        ];
        for (text, host, shown) in table {
            assert_eq!(host_and_path(text).0, host);
            assert_eq!(safe(text), shown);
        }
        for (host, expected) in [
            ("quay.io:443", true),
            ("${A:-x}.io", true),
            ("joe:x@a.io", false),
        ] {
            assert_eq!(is_host(host), expected, "{host}");
        }
    }

    #[test]
    fn a_password_in_a_reference_is_not_repeated() {
        for text in [
            "joe:hunter2@quay.io/app",
            "quay.io/Big",
            "quay.io/app:bad!",
            "a b/c",
        ] {
            let error = parse(text).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
