//! Names: registry host, repository, tag, and the references that people write.
//!
//! Each type is valid by construction. Grammar: OCI distribution specification, "Pulling
//! manifests"; the total length limit of 255 characters for host and repository is the convention
//! of all clients.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::digest::{self, Digest};
use crate::fault::shown;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` joined by slashes, or longer than 255 characters.
    #[error(
        "\"{0}\" is not a repository name (lower-case letters, digits, and single . _ __ - between them, in parts joined by /)"
    )]
    Repository(String),
    /// Not `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
    #[error("\"{0}\" is not a tag (1 to 128 of letters, digits, _ . -, not starting with . or -)")]
    Tag(String),
    /// Not `host` or `host:port`.
    #[error("\"{0}\" is not a registry host (host or host:port)")]
    Host(String),
    /// The reference has no registry in front.
    #[error("\"{0}\" names no registry (expected host/repository:tag or host/repository@digest)")]
    NoHost(String),
    /// The digest of the reference does not parse.
    #[error(transparent)]
    Digest(#[from] digest::ParseError),
}

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}

/// The path of a repository, without the host.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);
text_type!(RepositoryName);

impl FromStr for RepositoryName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let valid = text.len() <= 255 && text.split('/').all(is_path_part);
        if valid {
            Ok(RepositoryName(text.into()))
        } else {
            Err(ParseError::Repository(clip(text)))
        }
    }
}

fn is_path_part(part: &str) -> bool {
    let bytes = part.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    if !ends
        .into_iter()
        .all(|end| end.is_some_and(is_lower_alphanumeric))
    {
        return false;
    }
    bytes.split(is_lower_alphanumeric).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
    })
}

fn is_lower_alphanumeric(byte: &u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// A tag: a name that may point at another digest tomorrow.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);
text_type!(Tag);

/// What follows `sha256-<64 hex>` in the name of a tag that travels with its subject.
const COMPANION_ENDINGS: [&str; 4] = ["", ".sig", ".att", ".sbom"];

impl Tag {
    /// The referrers fallback tag of a subject: distribution specification, "Referrers Tag Schema".
    pub fn fallback(subject: &Digest) -> Tag {
        let encoded = subject.encoded();
        Tag(format!("{}-{}", subject.algorithm().name(), &encoded[..64]).into())
    }

    /// The digest of the manifest that this tag travels with, where the tag tells it whole.
    pub fn subject(&self) -> Option<Digest> {
        let encoded = self
            .0
            .strip_prefix("sha256-")
            .filter(|_| self.travels_with_subject())?;
        format!("sha256:{}", &encoded[..64]).parse().ok()
    }

    /// This fallback tag, and with the endings of cosign the tags of its subject's signatures,
    /// attestations and SBOMs.
    pub fn with_usual_endings(&self) -> Vec<Tag> {
        COMPANION_ENDINGS
            .iter()
            .map(|ending| Tag(format!("{self}{ending}").into()))
            .collect()
    }

    /// Whether this tag belongs to the content of another image: the referrers fallback, or a
    /// signature, attestation or SBOM by cosign's naming. The endings are a closed list, and so at
    /// most four tags travel with a subject: a tag with another ending is an ordinary one, which
    /// the rules of its route choose or leave out.
    pub fn travels_with_subject(&self) -> bool {
        let Some(rest) = self
            .0
            .strip_prefix("sha256-")
            .or_else(|| self.0.strip_prefix("sha512-"))
        else {
            return false;
        };
        let Some((encoded, ending)) = rest.split_at_checked(64) else {
            return false;
        };
        encoded
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            && COMPANION_ENDINGS.contains(&ending)
    }
}

impl FromStr for Tag {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let valid = (1..=128).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if valid {
            Ok(Tag(text.into()))
        } else {
            Err(ParseError::Tag(clip(text)))
        }
    }
}

/// A registry as it stands in a reference: `host` or `host:port`, lower case, no scheme.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Arc<str>);
text_type!(Host);

impl Host {
    /// The host without its port; brackets of an IPv6 address are kept.
    pub fn name(&self) -> &str {
        match self.0.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => &self.0,
        }
    }

    /// Whether the host is this machine by its very name: `localhost`, `127.…` or `[::1]`.
    pub fn is_loopback(&self) -> bool {
        let name = self.name();
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name == "localhost"
            || name.ends_with(".localhost")
            || address
                .parse::<std::net::IpAddr>()
                .is_ok_and(|ip| ip.is_loopback())
    }

    /// Whether the host is this machine by its very name, or an address of a private network.
    pub fn is_loopback_or_private(&self) -> bool {
        let address = self.name().trim_start_matches('[').trim_end_matches(']');
        let is_private = match address
            .parse::<IpAddr>()
            .map(|address| address.to_canonical())
        {
            Ok(IpAddr::V4(address)) => address.is_private(),
            Ok(IpAddr::V6(address)) => address.is_unique_local(),
            Err(_) => false,
        };
        self.is_loopback() || is_private
    }
}

impl FromStr for Host {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let lower = text.to_ascii_lowercase();
        let (name, port) = match lower.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
            _ => (lower.as_str(), None),
        };
        let is_port = port.is_none_or(|port| {
            port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit())
        });
        let is_name = match name
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => name.len() <= 253 && name.split('.').all(is_label),
        };
        if is_name && is_port {
            Ok(Host(lower.into()))
        } else {
            Err(ParseError::Host(clip(text)))
        }
    }
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= 63
        && label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// What a manifest is asked for by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// By name: what it points at is the registry's word.
    Tag(Tag),
    /// By content: what comes back can be verified.
    Digest(Digest),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tag(tag) => tag.fmt(f),
            Target::Digest(digest) => digest.fmt(f),
        }
    }
}

impl From<Tag> for Target {
    fn from(tag: Tag) -> Target {
        Target::Tag(tag)
    }
}

impl From<Digest> for Target {
    fn from(digest: Digest) -> Target {
        Target::Digest(digest)
    }
}

/// `host/repository[:tag][@digest]`. With both, the digest says which content and the tag which
/// name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// The registry.
    pub host: Host,
    /// The repository.
    pub repository: RepositoryName,
    /// The tag, when one is written.
    pub tag: Option<Tag>,
    /// The digest, when one is written.
    pub digest: Option<Digest>,
}

impl FromStr for Reference {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (host, path) = rest
            .split_once('/')
            .ok_or_else(|| ParseError::NoHost(clip(text)))?;
        let looks_like_host = host.contains(['.', ':']) || host == "localhost";
        if !looks_like_host {
            return Err(ParseError::NoHost(clip(text)));
        }
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag.parse()?)),
            None => (path, None),
        };
        Ok(Reference {
            host: host.parse()?,
            repository: repository.parse()?,
            tag,
            digest,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn clip(text: &str) -> String {
    shown(text, 300)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn repository_names_follow_the_grammar() {
        for good in ["a", "library/alpine", "a.b_c__d-e---f/0", "team/app/web"] {
            assert!(good.parse::<RepositoryName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "A",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "a._b",
            "a b",
            "../etc",
            "a/../b",
            "a:b",
            &"a".repeat(256),
        ] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tags_follow_the_grammar() {
        for good in ["latest", "v1.2.3", "_x", "1", "A-b.c_d", &"a".repeat(128)] {
            assert!(good.parse::<Tag>().is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a b", "a/b", "a:b", "ü", &"a".repeat(129)] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
    }

    #[test]
    fn references_keep_their_parts() {
        let reference: Reference = "localhost:5000/team/app:v1".parse().unwrap();
        assert_eq!(reference.host.as_str(), "localhost:5000");
        assert_eq!(reference.repository.as_str(), "team/app");
        assert_eq!(reference.tag.as_ref().map(Tag::as_str), Some("v1"));
        let digest = Digest::sha256(b"x");
        let both: Reference = format!("[::1]:5000/x:t@{digest}").parse().unwrap();
        assert_eq!(
            (both.host.as_str(), both.digest),
            ("[::1]:5000", Some(digest))
        );
        assert!(both.host.is_loopback());
        assert!("app:v1".parse::<Reference>().is_err());
        assert!(
            "team/app:v1".parse::<Reference>().is_err(),
            "no host: never guess a public registry"
        );
        assert!("host.example:99999/app".parse::<Reference>().is_err());
    }

    #[test]
    fn loopback_is_recognised_by_name_only() {
        for yes in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:80",
        ] {
            assert!(yes.parse::<Host>().unwrap().is_loopback(), "{yes}");
        }
        for no in [
            "registry.example",
            "10.0.0.1:5000",
            "127.0.0.1.example",
            "localhost.example",
        ] {
            assert!(!no.parse::<Host>().unwrap().is_loopback(), "{no}");
        }
    }

    #[test]
    fn tags_of_other_images_are_recognised() {
        let fallback = Tag::fallback(&Digest::sha256(b"x"));
        assert!(fallback.travels_with_subject());
        assert!(
            format!("{fallback}.sig")
                .parse::<Tag>()
                .unwrap()
                .travels_with_subject()
        );
        assert!(!"sha256-abc".parse::<Tag>().unwrap().travels_with_subject());
        for ending in [
            "-rc1",
            ".backdoor7",
            ".",
            ".sig.x",
            ".SIG",
            "0",
            ".sig2",
            ".cosign",
        ] {
            let tag = format!("{fallback}{ending}").parse::<Tag>().unwrap();
            assert!(!tag.travels_with_subject(), "{ending}");
        }
        assert!(!"latest".parse::<Tag>().unwrap().travels_with_subject());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_prints_back(text in "\\PC{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let printed = reference.to_string();
                prop_assert_eq!(printed.parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
