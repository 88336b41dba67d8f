//! Where a token may be asked for.
//!
//! A challenge comes from the registry or from a proxy in front of it, and our credentials go where
//! it points. So a realm must be https (http only if the registry itself is plain http), carry no
//! user information, and be the registry's own host, a host of the same registrable domain, or a
//! host that the config lists. An IP address has no domain: only the registry's own address or a
//! listed one is accepted. Link-local addresses are never accepted, since cloud metadata services
//! answer there.

use std::net::IpAddr;

use url::{Host, Url};

use crate::fault::{Class, Fault, clip};
use crate::registry::redirect::is_metadata;

/// Domains of clouds under which strangers have names and that the public suffix list
/// (<https://publicsuffix.org>) does not know as such, or only in part: a host there is related to
/// itself only.
const SHARED: [&str; 18] = [
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "amazonwebservices.com.cn",
    "on.aws",
    "api.aws",
    "azurecr.io",
    "azurecr.cn",
    "azurecr.us",
    "azurecontainerapps.io",
    "azure.com",
    "windows.net",
    "googleusercontent.com",
    "github.dev",
    "jfrog.io",
    "myhuaweicloud.com",
    "nip.io",
    "sslip.io",
];

/// The realm of a challenge of the registry `registry` at `origin`, when a token may be asked for
/// there.
///
/// # Errors
/// `Auth`, saying which rule it breaks and what to set.
pub(super) fn accept(
    realm: &str,
    registry: &str,
    origin: &Url,
    listed: &[String],
) -> Result<Url, Fault> {
    judge(registry, realm, origin, listed).map_err(|reason| {
        let realm = shown(realm);
        let text = format!("registry {registry} sends us to the token realm \"{realm}\", {reason}");
        Fault::new(Class::Auth, text)
    })
}

/// The realm as an address, or why it is not used.
fn judge(registry: &str, realm: &str, origin: &Url, listed: &[String]) -> Result<Url, String> {
    let url = Url::parse(realm).map_err(|error| format!("which is no URL ({error})"))?;
    let downgrade = url.scheme() == "http" && origin.scheme() != "http";
    if downgrade || !matches!(url.scheme(), "http" | "https") {
        return Err("which is not https".into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("which holds a user name".into());
    }
    let (Some(host), Some(own)) = (url.host(), origin.host()) else {
        return Err("which has no host".into());
    };
    let host = host.to_owned();
    if same(&host, &own.to_owned())
        || related(&host, &own.to_owned())
        || is_listed(&url, &host, listed)
    {
        let mut url = url;
        url.set_fragment(None);
        return Ok(url);
    }
    Err(format!(
        "which is not of its domain; if it is right, add \"{host}\" to token_realms of {registry}"
    ))
}

/// A realm as messages show it: a query may hold anything.
fn shown(realm: &str) -> String {
    let end = realm.find(['?', '#']).unwrap_or(realm.len());
    let bare = &realm[..end];
    let authority = bare.find("://").map_or(0, |at| at + 3);
    let host_end = bare[authority..]
        .find('/')
        .map_or(bare.len(), |at| authority + at);
    match bare[authority..host_end].rfind('@') {
        Some(at) => clip(
            &format!("{}[hidden]{}", &bare[..authority], &bare[authority + at..]),
            200,
        ),
        None => clip(bare, 200),
    }
}

fn same(host: &Host, own: &Host) -> bool {
    host == own || matches!((name(host), name(own)), (Some(a), Some(b)) if a == b)
}

/// Whether this is the machine we run on, by its very name.
pub(super) fn is_loopback(host: &Host) -> bool {
    match host {
        Host::Domain(_) => {
            name(host).is_some_and(|name| name == "localhost" || name.ends_with(".localhost"))
        }
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.to_canonical().is_loopback(),
    }
}

fn name(host: &Host) -> Option<&str> {
    match host {
        Host::Domain(name) => Some(name.strip_suffix('.').unwrap_or(name)),
        _ => None,
    }
}

fn related(host: &Host, own: &Host) -> bool {
    let (Some(host), Some(own)) = (name(host), name(own)) else {
        return false;
    };
    registrable(own).is_some_and(|domain| registrable(host) == Some(domain))
}

/// The part of a name that one owner holds, by the public suffix list. `None` where nothing but the
/// name itself is sure.
fn registrable(host: &str) -> Option<&str> {
    if SHARED.iter().any(|domain| {
        host.strip_suffix(*domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }) || host.split('.').any(str::is_empty)
    {
        return None;
    }
    // One service's hosts differ in the label before the region there, and strangers' buckets live
    // beside it.
    if let Some(rest) = host.strip_suffix(".aliyuncs.com") {
        let start = rest.rfind('.').map_or(0, |dot| dot + 1);
        return Some(&host[start..]);
    }
    psl::domain_str(host)
}

fn is_listed(url: &Url, host: &Host, listed: &[String]) -> bool {
    if is_out_of_bounds(host) {
        return false;
    }
    let bare = host.to_string();
    let bare = bare.strip_suffix('.').unwrap_or(&bare);
    let with_port = url
        .port_or_known_default()
        .map(|port| format!("{bare}:{port}"));
    listed
        .iter()
        .map(|entry| entry.trim().to_ascii_lowercase())
        .any(|entry| entry == bare || Some(entry) == with_port)
}

fn is_out_of_bounds(host: &Host) -> bool {
    let address = match host {
        Host::Domain(_) => return false,
        Host::Ipv4(address) => IpAddr::V4(*address),
        Host::Ipv6(address) => address.to_canonical(),
    };
    is_metadata(address)
        || match address {
            IpAddr::V4(address) => {
                address.is_link_local() || address.is_unspecified() || address.is_multicast()
            }
            IpAddr::V6(address) => {
                address.is_unicast_link_local()
                    || address.is_unspecified()
                    || address.is_multicast()
            }
        }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepted(origin: &str, realm: &str, listed: &[&str]) -> bool {
        let listed: Vec<String> = listed.iter().map(|entry| (*entry).to_owned()).collect();
        let verdict = accept(realm, "staging", &Url::parse(origin).unwrap(), &listed);
        if let Err(fault) = &verdict {
            assert_eq!(fault.class(), Class::Auth);
            assert!(fault.to_string().contains("staging"), "{fault}");
        }
        verdict.is_ok()
    }

    #[test]
    fn realms_of_the_registrys_own_domain_are_taken() {
        let rows = [
            (
                "https://registry-1.docker.io",
                "https://auth.docker.io/token",
            ),
            ("https://docker.io", "https://auth.docker.io/token"),
            ("https://ghcr.io", "https://ghcr.io/token"),
            ("https://GHCR.io", "https://ghcr.IO./token?x=1#frag"),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"),
            (
                "https://registry.example.com:5000",
                "https://registry.example.com:5001/auth",
            ),
            (
                "https://harbor.example.co.uk",
                "https://auth.example.co.uk/token",
            ),
            (
                "https://r.example.com.cn",
                "https://auth.example.com.cn/token",
            ),
            (
                "https://myreg.azurecr.io",
                "https://myreg.azurecr.io/oauth2/token",
            ),
            (
                "https://registry.cn-hangzhou.aliyuncs.com",
                "https://dockerauth.cn-hangzhou.aliyuncs.com/auth",
            ),
            ("https://public.ecr.aws", "https://public.ecr.aws/token/"),
            ("https://registry", "https://registry/token"),
            ("https://registry:5000", "https://registry:5001/token"),
            (
                "http://registry.example.com",
                "http://auth.example.com/token",
            ),
            (
                "http://registry.example.com",
                "https://auth.example.com/token",
            ),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token"),
            ("https://10.1.2.3", "https://10.1.2.3:8443/token"),
            ("https://[fd00::5]:5000", "https://[fd00::5]/token"),
        ];
        for (origin, realm) in rows {
            assert!(accepted(origin, realm, &[]), "{origin} {realm}");
        }
    }

    #[test]
    fn realms_elsewhere_are_refused() {
        let rows = [
            (
                "https://registry.example.com",
                "https://auth.attacker.example/token",
            ),
            (
                "https://registry.example.com",
                "https://attackerexample.com/token",
            ),
            (
                "https://registry.example.com",
                "https://example.com.attacker.net/token",
            ),
            (
                "https://registry.example.com",
                "http://registry.example.com/token",
            ),
            (
                "https://registry.example.com",
                "ftp://registry.example.com/token",
            ),
            ("https://registry.example.com", "file:///etc/passwd"),
            (
                "https://registry.example.com",
                "https://user@registry.example.com/token",
            ),
            (
                "https://registry.example.com",
                "https://user:word@registry.example.com/token",
            ),
            (
                "https://registry.example.com",
                "https://registry.example.com@attacker.net/token",
            ),
            ("https://registry.example.com", "/token"),
            ("https://registry.example.com", "https://"),
            ("https://registry.example.com", "https://com/token"),
            (
                "https://registry.example.com",
                "https://169.254.169.254/latest/meta-data",
            ),
            ("https://registry.example.com", "https://127.0.0.1/token"),
            ("http://localhost:5000", "http://127.0.0.1:5001/token"),
            ("http://127.0.0.1:5000", "http://localhost:5001/token"),
            ("https://registry.example.com", "https://localhost/token"),
            ("https://registry.example.com", "https://0x7f.1/token"),
            ("https://registry.example.com", "https://2130706433/token"),
            ("https://registry.example.com", "https://10.0.0.1/token"),
            ("https://registry.example.com", "https://[::1]/token"),
            (
                "https://registry.example.com",
                "https://[::ffff:10.0.0.1]/token",
            ),
            ("https://registry.example.com", "https://8.8.8.8/token"),
            ("https://10.1.2.3", "https://10.1.2.4/token"),
            ("https://10.1.2.3", "https://auth.example.com/token"),
            ("http://127.0.0.1:5000", "http://169.254.169.254/token"),
            ("http://127.0.0.1:5000", "http://192.168.0.1/token"),
            ("https://registry.one.co.uk", "https://auth.two.co.uk/token"),
            ("https://co.uk", "https://two.co.uk/token"),
            ("https://a.azurecr.io", "https://b.azurecr.io/oauth2/token"),
            (
                "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com",
                "https://bucket.s3.amazonaws.com/token",
            ),
            (
                "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com",
                "https://x.elb.eu-west-1.amazonaws.com/token",
            ),
            ("https://me.github.io", "https://you.github.io/token"),
            ("https://me.workers.dev", "https://you.workers.dev/token"),
            (
                "https://me.s3.amazonaws.com",
                "https://you.s3.amazonaws.com/token",
            ),
            ("https://one.jfrog.io", "https://two.jfrog.io/token"),
            (
                "https://r.city.kawasaki.jp",
                "https://auth.other.kawasaki.jp/token",
            ),
            (
                "https://registry.cn-hangzhou.aliyuncs.com",
                "https://bucket.oss-cn-hangzhou.aliyuncs.com/auth",
            ),
            ("https://registry", "https://auth/token"),
            ("https://registry", "https://auth.registry/token"),
        ];
        for (origin, realm) in rows {
            assert!(!accepted(origin, realm, &[]), "{origin} {realm}");
        }
    }

    #[test]
    fn only_what_the_public_suffix_list_lacks_is_listed_here() {
        for domain in SHARED {
            let host = format!("a.{domain}");
            assert_ne!(
                psl::domain_str(&host),
                Some(host.as_str()),
                "{domain} is on the public suffix list now"
            );
        }
    }

    #[test]
    fn a_listed_realm_is_taken_but_never_a_metadata_address() {
        let origin = "https://lscr.example";
        assert!(accepted(origin, "https://ghcr.io/token", &["GHCR.io"]));
        assert!(accepted(origin, "https://ghcr.io/token", &["ghcr.io:443"]));
        assert!(accepted(
            origin,
            "https://auth.corp:8443/token",
            &["x", "auth.corp:8443"]
        ));
        assert!(accepted(origin, "https://10.0.0.1/token", &["10.0.0.1"]));
        assert!(!accepted(
            origin,
            "https://auth.corp:8444/token",
            &["auth.corp:8443"]
        ));
        assert!(!accepted(origin, "https://sub.ghcr.io/token", &["ghcr.io"]));
        assert!(!accepted(origin, "http://ghcr.io/token", &["ghcr.io"]));
        for address in [
            "169.254.169.254",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "0.0.0.0",
            "168.63.129.16",
            "[fd20:ce::254]",
            "[::ffff:169.254.169.254]",
        ] {
            assert!(
                !accepted(
                    origin,
                    &format!("https://{address}/token"),
                    &[address, "[::ffff:a9fe:a9fe]"]
                ),
                "{address}"
            );
        }
    }

    #[test]
    fn a_refused_realm_is_shown_without_its_secrets() {
        let origin = Url::parse("https://r.example.com").unwrap();
        for realm in [
            "https://joe:hush@a.net/t?k=hush",
            "https://a.net/t?k=hush",
            "joe:hush://x@y/hush@z",
        ] {
            let text = accept(realm, "staging", &origin, &[])
                .unwrap_err()
                .to_string();
            assert!(
                !text.contains("k=hush") && !text.contains("joe:hush@"),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_realm_that_is_taken_never_leaves_the_domain(realm in "https://[a-z0-9.@:/?#\\\\-]{0,40}(example\\.com)?[a-z.:/]{0,10}") {
            let origin = Url::parse("https://registry.example.com").unwrap();
            if let Ok(url) = accept(&realm, "r", &origin, &[]) {
                let host = url.host_str().unwrap().trim_end_matches('.').to_owned();
                prop_assert!(host == "example.com" || host.ends_with(".example.com"), "{}", host);
            }
        }
    }
}
