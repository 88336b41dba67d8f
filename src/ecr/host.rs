//! Which registry hosts belong to Amazon ECR, and what their names say.

use std::sync::LazyLock;

use regex::Regex;
use url::Url;

use crate::oci::Host;
use crate::registry::profile::Kind;

/// The host of a private registry: the pattern that AWS's own credential helper recognises.
static PRIVATE: LazyLock<Regex> = LazyLock::new(|| {
    let domains = r"amazonaws\.(com(\.cn)?|eu)|on\.(aws|amazonwebservices\.com\.cn)|sc2s\.sgov\.gov|c2s\.ic\.gov|cloud\.adc-e\.uk|csp\.hci\.ic\.gov";
    Regex::new(&format!(
        r"^([0-9]{{12}})\.dkr[.-]ecr(-fips)?\.([a-z0-9][a-z0-9-]*)\.({domains})$"
    ))
    .expect("the pattern is constant")
});

/// What the name of an ECR host says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EcrHost {
    /// The account that owns the registry; `None` for the public registry.
    pub account: Option<String>,
    /// The region of the registry; for the public registry the one its control plane lives in.
    pub region: String,
    /// A FIPS endpoint: the control plane is asked at its FIPS endpoint as well.
    pub fips: bool,
    /// A dual-stack host, reachable over IPv6: so is the control plane that is asked.
    pub dual_stack: bool,
    /// The public registry: another control plane, ordinary Bearer tokens, anonymous reading.
    pub public: bool,
}

/// The partition of AWS that a region belongs to.
pub fn partition(region: &str) -> &'static str {
    match region {
        _ if region.starts_with("cn-") => "aws-cn",
        _ if region.starts_with("us-gov-") => "aws-us-gov",
        _ if region.starts_with("eusc-") => "aws-eusc",
        _ if region.starts_with("us-iso-") => "aws-iso",
        _ if region.starts_with("us-isob-") => "aws-iso-b",
        _ if region.starts_with("eu-isoe-") => "aws-iso-e",
        _ if region.starts_with("us-isof-") => "aws-iso-f",
        _ => "aws",
    }
}

/// What `host` says when it is an ECR host; a port of 443 may follow it. `None` for every other
/// registry.
pub fn recognise(host: &str) -> Option<EcrHost> {
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(":443").unwrap_or(&host);
    if matches!(host, "public.ecr.aws" | "ecr-public.aws.com") {
        return Some(EcrHost {
            account: None,
            region: "us-east-1".to_owned(),
            fips: false,
            dual_stack: false,
            public: true,
        });
    }
    let parts = PRIVATE.captures(host)?;
    Some(EcrHost {
        account: Some(parts[1].to_owned()),
        region: parts[3].to_owned(),
        fips: parts.get(2).is_some(),
        dual_stack: parts[4].starts_with("on."),
        public: false,
    })
}

/// Whether `host` counts as ECR because the control plane at `endpoint` is an emulator's: both are
/// loopback or private by their very names. An endpoint of that kind in a VPC has a public name,
/// and says nothing of other registries.
pub fn is_emulated(host: &Host, endpoint: &str) -> bool {
    let of_endpoint = Url::parse(endpoint)
        .ok()
        .and_then(|url| url.host_str()?.parse::<Host>().ok());
    let is_emulator = of_endpoint.is_some_and(|host| host.is_loopback_or_private());
    is_emulator && host.is_loopback_or_private() && Kind::recognise(host.name()) == Kind::Generic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_beside_an_emulator_is_taken_for_ecr() {
        let table = [
            ("localhost:5000", "http://localhost:4566", true),
            ("127.0.0.1:5000", "http://127.0.0.1:4566", true),
            ("[::1]:5000", "http://10.0.0.9:4566", true),
            ("192.168.1.2", "http://[fd12::1]:4566", true),
            ("ghcr.io", "http://localhost:4566", false),
            ("docker.io", "http://10.0.0.9:4566", false),
            ("registry.example:5000", "http://localhost:4566", false),
            ("172.15.0.1:5000", "http://localhost:4566", false),
            (
                "ghcr.io",
                "https://vpce-0a1b.api.ecr.eu-west-1.vpce.amazonaws.com",
                false,
            ),
            (
                "localhost:5000",
                "https://vpce-0a1b.api.ecr.eu-west-1.vpce.amazonaws.com",
                false,
            ),
            (
                "localhost:5000",
                "https://api.ecr.eu-west-1.amazonaws.com",
                false,
            ),
            ("localhost:5000", "nonsense", false),
        ];
        for (host, endpoint, expected) in table {
            assert_eq!(
                is_emulated(&host.parse().unwrap(), endpoint),
                expected,
                "{host} {endpoint}"
            );
        }
    }

    #[test]
    fn every_shape_of_an_ecr_host_is_recognised_and_nothing_else() {
        let private = [
            (
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
                "eu-west-1",
                false,
            ),
            (
                "123456789012.DKR.ECR.eu-west-1.amazonaws.com:443",
                "eu-west-1",
                false,
            ),
            (
                "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
                "us-gov-west-1",
                true,
            ),
            (
                "123456789012.dkr-ecr.eu-central-1.on.aws",
                "eu-central-1",
                false,
            ),
            (
                "123456789012.dkr-ecr-fips.us-east-2.on.aws",
                "us-east-2",
                true,
            ),
            (
                "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
                false,
            ),
            (
                "123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
                "cn-north-1",
                false,
            ),
            (
                "123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu",
                "eusc-de-east-1",
                false,
            ),
            (
                "123456789012.dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
                "us-isob-east-1",
                false,
            ),
            (
                "123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov",
                "us-iso-east-1",
                false,
            ),
            (
                "123456789012.dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
                "eu-isoe-west-1",
                false,
            ),
            (
                "123456789012.dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
                "us-isof-south-1",
                false,
            ),
        ];
        for (host, region, fips) in private {
            let account = Some("123456789012".to_owned());
            let dual_stack = host.contains(".on.");
            let expected = EcrHost {
                account,
                region: region.to_owned(),
                fips,
                dual_stack,
                public: false,
            };
            assert_eq!(recognise(host), Some(expected), "{host}");
        }
        for host in ["public.ecr.aws", "ecr-public.aws.com", "PUBLIC.ecr.aws"] {
            let public = recognise(host).expect(host);
            assert!(
                public.public && public.account.is_none() && public.region == "us-east-1",
                "{host}"
            );
        }
        let others = [
            "12345678901.dkr.ecr.eu-west-1.amazonaws.com",
            "1234567890123.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.attacker.example",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:5000",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.community",
            "123456789012.dkr.ecr..amazonaws.com",
            "123456789012.dkr.ecr.a.b.amazonaws.com",
            "123456789012.dkrxecr.eu-west-1.amazonaws.com",
            "x.123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            "api.ecr.eu-west-1.amazonaws.com",
            "notpublic.ecr.aws",
            "public.ecr.aws.example",
            "localhost:5000",
            "",
        ];
        for host in others {
            assert_eq!(recognise(host), None, "{host}");
        }
    }

    #[test]
    fn every_region_has_its_partition() {
        for (region, expected) in [
            ("eu-west-1", "aws"),
            ("cn-north-1", "aws-cn"),
            ("us-gov-west-1", "aws-us-gov"),
            ("eusc-de-east-1", "aws-eusc"),
            ("us-iso-east-1", "aws-iso"),
            ("us-isob-east-1", "aws-iso-b"),
            ("eu-isoe-west-1", "aws-iso-e"),
            ("us-isof-south-1", "aws-iso-f"),
        ] {
            assert_eq!(partition(region), expected, "{region}");
        }
    }
}
