//! What each kind of registry does differently, as data.
//!
//! A kind is recognised from the host name or said in the config. An unknown host is `generic`,
//! with settings that are safe for every registry that keeps to the distribution specification.

use std::fmt;
use std::str::FromStr;

use crate::endpoint::{Abilities, Mount, Resume, UploadStyle};
use crate::fault::clip;

/// A kind of registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// distribution (Docker registry) 2.x.
    Distribution2,
    /// distribution 3.x.
    Distribution3,
    /// Amazon ECR, private.
    Ecr,
    /// Amazon ECR Public.
    EcrPublic,
    /// Docker Hub.
    DockerHub,
    /// GitHub's container registry.
    Ghcr,
    /// Google Artifact Registry.
    Gar,
    /// Azure Container Registry.
    Acr,
    /// Quay.
    Quay,
    /// Harbor.
    Harbor,
    /// JFrog Artifactory.
    Artifactory,
    /// Sonatype Nexus.
    Nexus,
    /// zot.
    Zot,
    /// GitLab's registry.
    Gitlab,
    /// olareg.
    Olareg,
    /// Anything else.
    Generic,
}

impl Kind {
    /// All kinds, in the order of their documentation.
    pub const ALL: [Kind; 16] = [
        Kind::Distribution2,
        Kind::Distribution3,
        Kind::Ecr,
        Kind::EcrPublic,
        Kind::DockerHub,
        Kind::Ghcr,
        Kind::Gar,
        Kind::Acr,
        Kind::Quay,
        Kind::Harbor,
        Kind::Artifactory,
        Kind::Nexus,
        Kind::Zot,
        Kind::Gitlab,
        Kind::Olareg,
        Kind::Generic,
    ];

    /// The word in the config.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Distribution2 => "distribution2",
            Kind::Distribution3 => "distribution3",
            Kind::Ecr => "ecr",
            Kind::EcrPublic => "ecr-public",
            Kind::DockerHub => "dockerhub",
            Kind::Ghcr => "ghcr",
            Kind::Gar => "gar",
            Kind::Acr => "acr",
            Kind::Quay => "quay",
            Kind::Harbor => "harbor",
            Kind::Artifactory => "artifactory",
            Kind::Nexus => "nexus",
            Kind::Zot => "zot",
            Kind::Gitlab => "gitlab",
            Kind::Olareg => "olareg",
            Kind::Generic => "generic",
        }
    }

    /// The kind behind a host name (without port, any case). Hosts that people name themselves are
    /// `generic`.
    pub fn recognise(host: &str) -> Kind {
        let host = host.to_ascii_lowercase();
        match host.as_str() {
            _ if is_ecr(&host) => Kind::Ecr,
            "public.ecr.aws" | "ecr-public.aws.com" => Kind::EcrPublic,
            "docker.io" | "index.docker.io" | "registry-1.docker.io" => Kind::DockerHub,
            "ghcr.io" => Kind::Ghcr,
            "quay.io" => Kind::Quay,
            "registry.gitlab.com" => Kind::Gitlab,
            _ if is_under(&host, "pkg.dev") || is_under(&host, "gcr.io") => Kind::Gar,
            _ if is_under(&host, "azurecr.io")
                || is_under(&host, "azurecr.cn")
                || is_under(&host, "azurecr.us") =>
            {
                Kind::Acr
            }
            _ if is_under(&host, "jfrog.io") => Kind::Artifactory,
            _ => Kind::Generic,
        }
    }

    /// How a registry of this kind is treated.
    pub fn profile(self) -> Profile {
        let keeps_referrers = !matches!(self, Kind::Distribution2);
        Profile {
            kind: self,
            abilities: self.abilities(),
            keeps_referrers,
            quotas: self.quotas(),
        }
    }

    /// What Amazon documents for an account and region; others say nothing in numbers.
    fn quotas(self) -> Quotas {
        match self {
            Kind::Ecr => Quotas {
                listing: None,
                manifests: Some(2000),
                blobs: Some(1000),
                uploads: Some(100),
                writes: Some(10),
            },
            Kind::EcrPublic => Quotas {
                listing: None,
                manifests: Some(10),
                blobs: Some(10),
                uploads: Some(10),
                writes: Some(10),
            },
            _ => Quotas::default(),
        }
    }

    fn abilities(self) -> Abilities {
        Abilities {
            upload: self.upload(),
            resume: self.resume(),
            mount: self.mount(),
            mount_asks: matches!(
                self,
                Kind::Distribution2 | Kind::Distribution3 | Kind::Zot | Kind::Olareg
            ),
            current_lists: self.lists_what_is_there(),
            needs_fallback_lists: false,
        }
    }

    /// What runs as a service, keeps its lists in a database or a cache, or is not known, is asked
    /// for each tag.
    fn lists_what_is_there(self) -> bool {
        matches!(
            self,
            Kind::Distribution2 | Kind::Distribution3 | Kind::Zot | Kind::Olareg
        )
    }

    fn upload(self) -> UploadStyle {
        match self {
            // Artifactory used to refuse a whole blob in the closing request; Azure limits its
            // size. Both take the one PATCH that every Docker client sends.
            Kind::Artifactory | Kind::Acr => UploadStyle::Stream,
            _ => UploadStyle::Whole,
        }
    }

    fn resume(self) -> Resume {
        match self {
            // No status of a session is answered (the control plane of private ECR has another
            // way).
            Kind::Ecr | Kind::EcrPublic => Resume::Never,
            // distribution 2 and its descendants destroy a session when it is asked about after a
            // cut; GHCR overwrites earlier chunks; Azure, Google, Artifactory and Nexus do not take
            // a second piece.
            Kind::Distribution2 | Kind::Harbor | Kind::Gitlab | Kind::Ghcr => Resume::Never,
            Kind::Acr | Kind::Gar | Kind::Artifactory | Kind::Nexus => Resume::Never,
            _ => Resume::Status,
        }
    }

    fn mount(self) -> Mount {
        match self {
            Kind::Ecr | Kind::EcrPublic => Mount::Committed,
            // Google's registry was never seen to grant one.
            Kind::Gar => Mount::Off,
            _ => Mount::Held,
        }
    }
}

fn is_under(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The private registries of Amazon: twelve digits, `.dkr.ecr` or `.dkr-ecr`, with or without
/// `-fips`, a region and one of Amazon's domains.
fn is_ecr(host: &str) -> bool {
    const DOMAINS: [&str; 9] = [
        "amazonaws.com",
        "amazonaws.com.cn",
        "amazonaws.eu",
        "on.aws",
        "on.amazonwebservices.com.cn",
        "sc2s.sgov.gov",
        "c2s.ic.gov",
        "cloud.adc-e.uk",
        "csp.hci.ic.gov",
    ];
    let Some((account, rest)) = host.split_once('.') else {
        return false;
    };
    let account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    let rest = ["dkr.ecr-fips.", "dkr-ecr-fips.", "dkr.ecr.", "dkr-ecr."]
        .iter()
        .find_map(|prefix| rest.strip_prefix(prefix));
    let domain = rest
        .and_then(|rest| rest.split_once('.'))
        .map(|(_region, domain)| domain);
    account && domain.is_some_and(|domain| DOMAINS.contains(&domain))
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a kind of registry (one of {names})", names = Kind::ALL.map(Kind::name).join(", "))]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Kind, UnknownKind> {
        Kind::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| UnknownKind(clip(text, 60)))
    }
}

/// How a registry is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Which kind this is.
    pub kind: Kind,
    /// What the engine plans by.
    pub abilities: Abilities,
    /// Whether the registry may have the referrers endpoint. When false, it is not requested.
    pub keeps_referrers: bool,
    /// How often its operator lets us ask.
    pub quotas: Quotas,
}

/// Documented quotas in requests per second, by what registries limit apart from each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Lists of tags, repositories and referrers.
    pub listing: Option<u32>,
    /// Manifests that are read or asked for.
    pub manifests: Option<u32>,
    /// Blobs that are read or asked for.
    pub blobs: Option<u32>,
    /// Uploads that are opened.
    pub uploads: Option<u32>,
    /// Manifests that are written.
    pub writes: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_recognised() {
        let table = [
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", Kind::Ecr),
            (
                "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
                Kind::Ecr,
            ),
            ("123456789012.dkr-ecr.eu-central-1.on.aws", Kind::Ecr),
            ("123456789012.dkr-ecr-fips.us-east-1.on.aws", Kind::Ecr),
            (
                "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
                Kind::Ecr,
            ),
            (
                "123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
                Kind::Ecr,
            ),
            (
                "123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu",
                Kind::Ecr,
            ),
            ("12345678901.dkr.ecr.eu-west-1.amazonaws.com", Kind::Generic),
            (
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example",
                Kind::Generic,
            ),
            ("public.ecr.aws", Kind::EcrPublic),
            ("docker.io", Kind::DockerHub),
            ("Registry-1.Docker.IO", Kind::DockerHub),
            ("ghcr.io", Kind::Ghcr),
            ("europe-docker.pkg.dev", Kind::Gar),
            ("gcr.io", Kind::Gar),
            ("eu.gcr.io", Kind::Gar),
            ("notgcr.io", Kind::Generic),
            ("team.azurecr.io", Kind::Acr),
            ("quay.io", Kind::Quay),
            ("team.jfrog.io", Kind::Artifactory),
            ("registry.gitlab.com", Kind::Gitlab),
            ("registry.example", Kind::Generic),
            ("localhost", Kind::Generic),
            ("", Kind::Generic),
        ];
        for (host, kind) in table {
            assert_eq!(Kind::recognise(host), kind, "{host}");
        }
    }

    #[test]
    fn words_of_the_config_name_every_kind() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!(
            "zot2"
                .parse::<Kind>()
                .unwrap_err()
                .to_string()
                .contains("distribution2, distribution3")
        );
    }

    #[test]
    fn unknown_registries_are_treated_safely() {
        let abilities = Kind::Generic.profile().abilities;
        assert_eq!(
            (abilities.upload, abilities.resume),
            (UploadStyle::Whole, Resume::Status)
        );
        assert_eq!(
            (abilities.mount, abilities.mount_asks),
            (Mount::Held, false)
        );
    }

    #[test]
    fn only_registries_that_answer_for_themselves_are_asked_by_mount() {
        for kind in Kind::ALL {
            let asks = kind.profile().abilities.mount_asks;
            assert_eq!(
                asks,
                matches!(
                    kind,
                    Kind::Distribution2 | Kind::Distribution3 | Kind::Zot | Kind::Olareg
                ),
                "{kind}"
            );
        }
    }
}
