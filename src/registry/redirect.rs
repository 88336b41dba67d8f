//! Where a request may go next, and whether our credentials may go with it.
//!
//! Credentials belong to one scheme, host and port. Redirects and upload locations elsewhere are
//! followed without them; refused are another scheme than http and https, a downgrade to http,
//! names and passwords in the address, metadata addresses, and other addresses inside (loopback,
//! link-local, private) unless the registry itself answers from there.
//!
//! Literal addresses are judged by [`AddressGuard::judge`], names when they are resolved, by
//! [`Resolver`]: the connection goes to the addresses that were judged. Where the registry is
//! counts by the address that an answer came from, after TLS, and the least inside one of all
//! answers: the registry's DNS may name any address, but cannot answer from it.
//!
//! Behind a proxy of the environment names are resolved at the proxy. They are resolved here before
//! ([`AddressGuard::admit`]), and refused where that gives an address inside; what does not resolve
//! here is the proxy's to judge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Most redirects of one request.
pub(super) const MOST_HOPS: usize = 5;

/// From where an address can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// Anywhere, as far as we know.
    Public = 0,
    /// A private network.
    Private = 1,
    /// This link: metadata services live here.
    LinkLocal = 2,
    /// This machine.
    Loopback = 3,
}

impl Reach {
    fn of(address: IpAddr) -> Reach {
        match address {
            IpAddr::V4(address) => Reach::of_v4(address),
            IpAddr::V6(address) => Reach::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Reach {
        let octets = address.octets();
        if address.is_loopback() || octets[0] == 0 {
            Reach::Loopback
        } else if address.is_link_local() || address.is_broadcast() || address.is_multicast() {
            Reach::LinkLocal
        } else if address.is_private() || is_special(octets) {
            Reach::Private
        } else {
            Reach::Public
        }
    }

    fn of_v6(address: Ipv6Addr) -> Reach {
        let segments = address.segments();
        match segments {
            [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Reach::Loopback,
            _ if embedded(address).is_some() => {
                embedded(address).map_or(Reach::Public, Reach::of_v4)
            }
            [first, ..] if first & 0xffc0 == 0xfe80 || first & 0xff00 == 0xff00 => Reach::LinkLocal,
            [first, ..] if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfec0 => Reach::Private,
            _ => Reach::Public,
        }
    }

    /// What the address itself says; names say nothing but `localhost`.
    fn of_literal(url: &Url) -> Reach {
        match url.host() {
            Some(Host::Ipv4(address)) => Reach::of_v4(address),
            Some(Host::Ipv6(address)) => Reach::of_v6(address),
            Some(Host::Domain(name)) if is_localhost(name) => Reach::Loopback,
            _ => Reach::Public,
        }
    }

    fn from_bits(bits: u8) -> Option<Reach> {
        [
            Reach::Public,
            Reach::Private,
            Reach::LinkLocal,
            Reach::Loopback,
        ]
        .into_iter()
        .find(|reach| *reach as u8 == bits)
    }

    /// Whether a registry that is here may send us `there`.
    fn may_lead_to(self, there: Reach) -> bool {
        there == Reach::Public
            || there == self
            || (self == Reach::Loopback && there == Reach::Private)
    }
}

/// Ranges that no public server has: shared by carriers, of protocols, of benchmarks, reserved (RFC
/// 6890).
fn is_special([first, second, third, _]: [u8; 4]) -> bool {
    (first == 100 && second & 0xc0 == 64)
        || (first, second, third) == (192, 0, 0)
        || (first == 198 && second & 0xfe == 18)
        || first >= 240
}

/// The IPv4 address that an IPv6 address leads to: mapped, compatible, behind a translator (RFC
/// 6052, RFC 8215), or of 6to4.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let (high, low) = match segments {
        [0, 0, 0, 0, 0, 0xffff | 0, high, low]
        | [0x64, 0xff9b, 0 | 1, _, _, _, high, low]
        | [0x2002, high, low, ..] => (high, low),
        _ => return None,
    };
    Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

/// Whether clouds answer there with what only the machine itself may know: its credentials, its
/// configuration, its DNS.
///
/// Amazon: 169.254.169.0/24, 169.254.170.0/24 (containers) and fd00:ec2::/32; Azure: 168.63.129.16;
/// Google: fd20:ce::254; Alibaba: 100.100.100.200; Oracle: 192.0.0.192; Scaleway: 169.254.42.42.
/// The others answer at 169.254.169.254.
pub fn is_metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let octets = address.octets();
            let is_link_local = matches!(octets, [169, 254, 169 | 170, _] | [169, 254, 42, 42]);
            is_link_local
                || matches!(
                    octets,
                    [168, 63, 129, 16] | [100, 100, 100, 200] | [192, 0, 0, 192]
                )
        }
        IpAddr::V6(address) => match address.segments() {
            [0xfd00, 0x0ec2, ..] | [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254] => true,
            _ => embedded(address).is_some_and(|embedded| is_metadata(embedded.into())),
        },
    }
}

fn is_metadata_literal(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => is_metadata(address.into()),
        Some(Host::Ipv6(address)) => is_metadata(address.into()),
        _ => false,
    }
}

fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

/// Why an address is not gone to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// No absolute address of http or https.
    #[error("the answer leads to an address that is none of http or https")]
    Scheme,
    /// https leads to http.
    #[error(
        "the answer leads from https to plain http ({0}); let the registry name itself by https"
    )]
    Downgrade(String),
    /// A name or password stands in the address.
    #[error("the answer leads to an address with a name or password in it")]
    Userinfo,
    /// The address is inside and the registry is not.
    #[error(
        "the answer leads to an address inside this network ({0}), where the registry itself is not"
    )]
    Inside(String),
    /// Metadata services of clouds answer at the address.
    #[error("the answer leads to the address of a metadata service ({0}), which is never followed")]
    Metadata(String),
    /// The same address came twice.
    #[error("the redirects go in a circle")]
    Circle,
    /// More than [`MOST_HOPS`].
    #[error("more than {MOST_HOPS} redirects")]
    TooMany,
    /// The address does not parse.
    #[error("the answer names no usable address")]
    Malformed,
}

/// HostKind address it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostKind {
    /// The registry's own scheme, host and port: credentials may go there.
    Own,
    /// Another scheme, host or port: credentials must not go there.
    Foreign,
}

/// What judges addresses for one registry, and what it has learnt of the registry's own.
pub(super) struct AddressGuard {
    base: Url,
    /// The least inside of the addresses that answers came from; [`UNKNOWN`] before the first.
    reach: AtomicU8,
    /// Names that the config trusts as token servers, wherever they are.
    listed: Vec<String>,
    /// The proxies of the environment, where requests take them.
    proxies: Option<Matcher>,
}

const UNKNOWN: u8 = u8::MAX;
/// How long a name that a proxy resolves may take to be resolved here.
const RESOLVING: Duration = Duration::from_secs(5);

impl AddressGuard {
    /// The guard of the registry at `base`, which no proxy stands in front of.
    pub(super) fn new(base: Url) -> AddressGuard {
        AddressGuard {
            base,
            reach: AtomicU8::new(UNKNOWN),
            listed: Vec::new(),
            proxies: None,
        }
    }

    /// The same with token servers that the config lists (`host` or `host:port`).
    pub(super) fn with_listed(self, realms: &[String]) -> AddressGuard {
        AddressGuard {
            listed: realms
                .iter()
                .map(|realm| {
                    realm
                        .split(':')
                        .next()
                        .unwrap_or_default()
                        .trim()
                        .to_ascii_lowercase()
                })
                .collect(),
            ..self
        }
    }

    /// The same with the proxies that the environment names.
    pub(super) fn with_proxies(self) -> AddressGuard {
        AddressGuard {
            proxies: Some(Matcher::from_env()),
            ..self
        }
    }

    /// Judges `to`, which an answer of `from` named.
    pub(super) fn judge(&self, from: &Url, to: &Url) -> Result<HostKind, Refused> {
        self.judge_from(self.reach(), from, to)
    }

    fn judge_from(&self, reach: Reach, from: &Url, to: &Url) -> Result<HostKind, Refused> {
        if !matches!(to.scheme(), "http" | "https") || to.host().is_none() {
            return Err(Refused::Scheme);
        }
        if !to.username().is_empty() || to.password().is_some() {
            return Err(Refused::Userinfo);
        }
        if from.scheme() == "https" && to.scheme() == "http" {
            return Err(Refused::Downgrade(host(to)));
        }
        if is_metadata_literal(to) {
            return Err(Refused::Metadata(host(to)));
        }
        if to.origin() == self.base.origin() {
            return Ok(HostKind::Own);
        }
        if to.host() != self.base.host() && !reach.may_lead_to(Reach::of_literal(to)) {
            return Err(Refused::Inside(host(to)));
        }
        Ok(HostKind::Foreign)
    }

    /// Judges an address that was written down earlier, perhaps by another process.
    pub(super) fn judge_stored(&self, to: &Url) -> Result<HostKind, Refused> {
        self.judge(&self.base, to)
    }

    /// Takes note of the address that an answer of the registry itself came from.
    pub(super) fn answered_from(&self, address: Option<SocketAddr>) {
        if let Some(address) = address.filter(|_| !self.is_proxied(&self.base)) {
            self.reach
                .fetch_min(Reach::of(address.ip()) as u8, Ordering::Relaxed);
        }
    }

    /// Judges the name in `to` before a request goes there, where a proxy resolves it and
    /// [`Resolver`] does not.
    pub(super) async fn admit(&self, to: &Url) -> Result<(), Refused> {
        let Some(Host::Domain(name)) = to.host() else {
            return Ok(());
        };
        if !self.is_proxied(to) {
            // The resolver lets the name of a proxy pass.
            return if self.is_proxy(name) {
                Err(Refused::Inside(name.into()))
            } else {
                Ok(())
            };
        }
        if self.is_trusted(name) {
            return Ok(());
        }
        match tokio::time::timeout(RESOLVING, tokio::net::lookup_host((name, 0))).await {
            Ok(Ok(addresses)) => self.resolved(name, &addresses.collect::<Vec<_>>()),
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }

    /// The least inside address that the registry has answered from; before any answer, what its
    /// name itself says.
    fn reach(&self) -> Reach {
        Reach::from_bits(self.reach.load(Ordering::Relaxed))
            .unwrap_or_else(|| Reach::of_literal(&self.base))
    }

    /// Judges what a name has resolved to: every address must be one that may be gone to.
    fn resolved(&self, name: &str, addresses: &[SocketAddr]) -> Result<(), Refused> {
        self.without_metadata(name, addresses)?;
        if addresses
            .iter()
            .any(|address| !self.reach().may_lead_to(Reach::of(address.ip())))
        {
            Err(Refused::Inside(name.to_string()))
        } else {
            Ok(())
        }
    }

    fn without_metadata(&self, name: &str, addresses: &[SocketAddr]) -> Result<(), Refused> {
        let is_metadata = addresses.iter().any(|address| is_metadata(address.ip()));
        if is_metadata {
            Err(Refused::Metadata(name.to_string()))
        } else {
            Ok(())
        }
    }

    /// The registry's own name, and the names that the config lists.
    fn is_trusted(&self, name: &str) -> bool {
        self.base.host_str() == Some(name) || self.listed.iter().any(|listed| listed == name)
    }

    fn is_proxied(&self, url: &Url) -> bool {
        self.proxy_of(url.as_str()).is_some()
    }

    fn is_proxy(&self, name: &str) -> bool {
        // Two names that exist nowhere: what is asked is which proxy each scheme has.
        let proxies = ["http://name.invalid/", "https://name.invalid/"]
            .into_iter()
            .filter_map(|url| self.proxy_of(url));
        proxies
            .into_iter()
            .any(|host| host.eq_ignore_ascii_case(name))
    }

    /// The host of the proxy that stands in front of `url`.
    fn proxy_of(&self, url: &str) -> Option<String> {
        let proxy = self.proxies.as_ref()?.intercept(&url.parse().ok()?)?;
        Some(proxy.uri().host().unwrap_or_default().to_string())
    }
}

/// Which names a client resolves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolves {
    /// The names of the registry and of its token servers.
    Own,
    /// The names that answers lead to. This includes the registry's own name: another port on it
    /// may be another service.
    Foreign,
}

/// Resolves names by the system's means and lets [`AddressGuard`] judge the outcome, which is what
/// is connected to.
pub(super) struct Resolver {
    pub(super) guard: Arc<AddressGuard>,
    pub(super) resolves: Resolves,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.guard.clone();
        let resolves = self.resolves;
        let name = name.as_str().to_ascii_lowercase();
        Box::pin(async move {
            let addresses: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let is_trusted = resolves == Resolves::Own && guard.is_trusted(&name);
            if is_trusted || guard.is_proxy(&name) {
                guard.without_metadata(&name, &addresses)?;
            } else {
                guard.resolved(&name, &addresses)?;
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// The redirects of one request.
pub(super) struct Hops {
    seen: Vec<Url>,
    /// The least inside of the addresses elsewhere that answers came from.
    reach: Reach,
}

impl Hops {
    /// A request that starts at `url`.
    pub(super) fn new(url: Url) -> Hops {
        Hops {
            seen: vec![url],
            reach: Reach::Loopback,
        }
    }

    /// Takes note of the address that the answer of a foreign host came from; behind a proxy that
    /// is not known.
    pub(super) fn answered_from(&mut self, address: Option<SocketAddr>, guard: &AddressGuard) {
        let known = address.filter(|_| !guard.is_proxied(self.at()));
        self.reach = self
            .reach
            .min(known.map_or(Reach::Public, |address| Reach::of(address.ip())));
    }

    /// Where the request is now.
    pub(super) fn at(&self) -> &Url {
        self.seen.last().expect("a request starts somewhere")
    }

    /// Whether it was redirected.
    pub(super) fn moved(&self) -> bool {
        self.seen.len() > 1
    }

    /// Goes on to where `location` leads.
    pub(super) fn follow(
        &mut self,
        location: &str,
        guard: &AddressGuard,
    ) -> Result<HostKind, Refused> {
        let mut next = self.at().join(location).map_err(|_| Refused::Malformed)?;
        next.set_fragment(None);
        let host_kind = guard.judge_from(guard.reach().min(self.reach), self.at(), &next)?;
        if self.seen.contains(&next) {
            return Err(Refused::Circle);
        }
        if self.seen.len() > MOST_HOPS {
            return Err(Refused::TooMany);
        }
        self.seen.push(next);
        Ok(host_kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn the_rules_of_redirects() {
        let public = "https://registry.example/v2/";
        let local = "http://127.0.0.1:5000/v2/";
        let private = "https://10.1.2.3/v2/";
        let table = [
            (
                public,
                "https://registry.example/v2/x?sig=1",
                Ok(HostKind::Own),
            ),
            (public, "https://registry.example:443/x", Ok(HostKind::Own)),
            (
                public,
                "https://registry.example:8443/x",
                Ok(HostKind::Foreign),
            ),
            (public, "https://storage.example/x", Ok(HostKind::Foreign)),
            (
                public,
                "http://registry.example/x",
                Err(Refused::Downgrade("registry.example".into())),
            ),
            (public, "ftp://storage.example/x", Err(Refused::Scheme)),
            (public, "file:///etc/passwd", Err(Refused::Scheme)),
            (
                public,
                "https://name:word@storage.example/x",
                Err(Refused::Userinfo),
            ),
            (
                public,
                "https://127.0.0.1/x",
                Err(Refused::Inside("127.0.0.1".into())),
            ),
            (
                public,
                "https://2130706433/x",
                Err(Refused::Inside("127.0.0.1".into())),
            ),
            (
                public,
                "https://169.254.169.254/latest",
                Err(Refused::Metadata("169.254.169.254".into())),
            ),
            (
                public,
                "https://[2002:7f00:1::]/x",
                Err(Refused::Inside("[2002:7f00:1::]".into())),
            ),
            (
                public,
                "https://198.18.0.1/x",
                Err(Refused::Inside("198.18.0.1".into())),
            ),
            (
                public,
                "https://10.0.0.1/x",
                Err(Refused::Inside("10.0.0.1".into())),
            ),
            (
                public,
                "https://100.64.0.1/x",
                Err(Refused::Inside("100.64.0.1".into())),
            ),
            (
                public,
                "https://[::1]/x",
                Err(Refused::Inside("[::1]".into())),
            ),
            (
                public,
                "https://[::ffff:10.0.0.1]/x",
                Err(Refused::Inside("[::ffff:a00:1]".into())),
            ),
            (
                public,
                "https://[fd00::1]/x",
                Err(Refused::Inside("[fd00::1]".into())),
            ),
            (
                public,
                "https://LOCALHOST/x",
                Err(Refused::Inside("localhost".into())),
            ),
            (
                public,
                "https://a.localhost./x",
                Err(Refused::Inside("a.localhost.".into())),
            ),
            (local, "http://127.0.0.1:5000/x", Ok(HostKind::Own)),
            (local, "http://127.0.0.1:5001/x", Ok(HostKind::Foreign)),
            (local, "http://10.0.0.1/x", Ok(HostKind::Foreign)),
            (
                local,
                "http://169.254.169.254/x",
                Err(Refused::Metadata("169.254.169.254".into())),
            ),
            (
                local,
                "http://169.254.9.9/x",
                Err(Refused::Inside("169.254.9.9".into())),
            ),
            (local, "https://storage.example/x", Ok(HostKind::Foreign)),
            (private, "https://10.9.9.9/x", Ok(HostKind::Foreign)),
            (
                private,
                "https://127.0.0.1/x",
                Err(Refused::Inside("127.0.0.1".into())),
            ),
        ];
        for (base, to, expected) in table {
            let base = url(base);
            assert_eq!(
                AddressGuard::new(base.clone()).judge(&base, &url(to)),
                expected,
                "{base} → {to}"
            );
        }
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts
            .iter()
            .map(|text| SocketAddr::new(text.parse().unwrap(), 443))
            .collect()
    }

    #[test]
    fn names_are_judged_by_what_they_resolve_to() {
        let guard = AddressGuard::new(url("https://registry.example/"));
        let inside = addresses(&["10.0.0.7"]);
        let mixed = addresses(&["192.0.2.1", "127.0.0.1"]);
        assert!(guard.resolved("storage.example", &inside).is_err());
        assert!(guard.resolved("storage.example", &mixed).is_err());
        assert!(
            guard.resolved("registry.example", &mixed).is_err(),
            "another port of the registry may be anything"
        );
        assert!(
            guard
                .resolved("storage.example", &addresses(&["192.0.2.1"]))
                .is_ok()
        );
        guard.answered_from(Some("10.0.0.1:443".parse().unwrap()));
        assert!(
            guard.resolved("storage.example", &inside).is_ok(),
            "the registry itself is inside"
        );
        assert!(
            guard.resolved("storage.example", &mixed).is_err(),
            "but not on this machine"
        );
    }

    /// A registry name that resolves to a public address and to 127.0.0.1 could redirect to
    /// this machine.
    #[test]
    fn a_registry_counts_as_inside_only_while_all_answers_come_from_there() {
        let guard = AddressGuard::new(url("https://registry.example/"));
        guard.answered_from(Some("127.0.0.1:443".parse().unwrap()));
        guard.answered_from(Some("192.0.2.1:443".parse().unwrap()));
        guard.answered_from(Some("127.0.0.1:443".parse().unwrap()));
        assert!(
            guard
                .resolved("storage.example", &addresses(&["127.0.0.1"]))
                .is_err()
        );
        assert!(
            guard
                .judge(&guard.base, &url("https://127.0.0.1/"))
                .is_err()
        );
    }

    #[test]
    fn a_redirect_from_outside_does_not_lead_inside_even_where_the_registry_is() {
        let guard = AddressGuard::new(url("http://10.0.0.1:5000/"));
        let mut hops = Hops::new(url("http://10.0.0.1:5000/v2/"));
        hops.follow("http://10.0.0.2/a", &guard).unwrap();
        hops.answered_from(Some("10.0.0.2:80".parse().unwrap()), &guard);
        hops.follow("http://storage.example/b", &guard).unwrap();
        hops.answered_from(Some("192.0.2.1:80".parse().unwrap()), &guard);
        assert_eq!(
            hops.follow("http://10.0.0.3/c", &guard),
            Err(Refused::Inside("10.0.0.3".into()))
        );
    }

    #[test]
    fn metadata_addresses_are_refused_wherever_the_registry_is() {
        let literals = [
            "169.254.169.254",
            "169.254.169.123",
            "169.254.170.2",
            "169.254.170.23",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "[fd00:ec2::254]",
            "[fd20:ce::254]",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "[2002:a9fe:a9fe::1]",
        ];
        for base in [
            "https://registry.example/",
            "http://127.0.0.1:5000/",
            "http://10.0.0.1/",
            "http://169.254.1.1/",
            "http://[fd12::1]/",
        ] {
            let guard = AddressGuard::new(url(base));
            for literal in literals {
                let to = url(&format!("https://{literal}/"));
                assert!(
                    matches!(guard.judge(&guard.base, &to), Err(Refused::Metadata(_))),
                    "{base} {literal}"
                );
                let bare = literal.trim_start_matches('[').trim_end_matches(']');
                let refused =
                    guard.without_metadata("registry.example", &addresses(&["192.0.2.1", bare]));
                assert!(matches!(refused, Err(Refused::Metadata(_))), "{literal}");
            }
        }
    }

    #[test]
    fn circles_and_long_ways_end() {
        let guard = AddressGuard::new(url("https://registry.example/"));
        let mut hops = Hops::new(url("https://registry.example/0"));
        assert_eq!(hops.follow("/0", &guard), Err(Refused::Circle));
        for hop in 1..=MOST_HOPS {
            assert_eq!(hops.follow(&format!("/{hop}"), &guard), Ok(HostKind::Own));
        }
        assert_eq!(hops.follow("/6", &guard), Err(Refused::TooMany));
        assert_eq!(hops.at().path(), "/5");
        let mut hops = Hops::new(url("https://registry.example/0"));
        assert_eq!(
            hops.follow("https://storage.example/x", &guard),
            Ok(HostKind::Foreign)
        );
        assert!(matches!(
            hops.follow("http://registry.example/", &guard),
            Err(Refused::Downgrade(_))
        ));
    }

    proptest! {
        #[test]
        fn credentials_stay_at_home(location in "\\PC{0,60}") {
            let base = url("https://registry.example/v2/");
            let guard = AddressGuard::new(base.clone());
            let mut hops = Hops::new(base);
            if hops.follow(&location, &guard) == Ok(HostKind::Own) {
                let at = hops.at();
                prop_assert_eq!((at.scheme(), at.host_str(), at.port()), ("https", Some("registry.example"), None));
            }
        }
    }
}
