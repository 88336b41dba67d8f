//! Where a request may go next, and whether our credentials may go with it.
//!
//! Credentials belong to one scheme, host and port. Redirects and upload locations elsewhere are followed without them;
//! refused are another scheme than http and https, a downgrade to http, names and passwords in the address, and addresses
//! inside (loopback, link-local, private) unless the registry itself is there. Literal addresses are judged here; names
//! are judged when they are resolved, by [`Guard`].

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
        } else if address.is_private() || (octets[0] == 100 && octets[1] & 0xc0 == 64) {
            Reach::Private
        } else {
            Reach::Public
        }
    }

    fn of_v6(address: Ipv6Addr) -> Reach {
        let segments = address.segments();
        // An IPv4 address in other clothes: mapped, compatible, or behind a translator.
        let embedded = Ipv4Addr::from(((u32::from(segments[6])) << 16) | u32::from(segments[7]));
        match segments {
            [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Reach::Loopback,
            [0, 0, 0, 0, 0, 0xffff | 0, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Reach::of_v4(embedded),
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

    fn from_bits(bits: u8) -> Reach {
        match bits {
            0 => Reach::Public,
            1 => Reach::Private,
            2 => Reach::LinkLocal,
            _ => Reach::Loopback,
        }
    }

    /// Whether a registry that is here may send us `there`.
    fn may_lead_to(self, there: Reach) -> bool {
        there == Reach::Public || there == self || (self == Reach::Loopback && there == Reach::Private)
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
    #[error("the answer leads from https to plain http ({0}); let the registry name itself by https")]
    Downgrade(String),
    /// A name or password stands in the address.
    #[error("the answer leads to an address with a name or password in it")]
    Userinfo,
    /// The address is inside and the registry is not.
    #[error("the answer leads to an address inside this network ({0}), where the registry itself is not")]
    Inside(String),
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

/// Whose address it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The registry's own scheme, host and port: credentials may go there.
    Own,
    /// Somebody else's.
    Foreign,
}

/// What judges addresses for one registry, and what it has learnt of the registry's own.
pub(super) struct Guard {
    base: Url,
    reach: AtomicU8,
    followed: Mutex<HashMap<String, usize>>,
}

impl Guard {
    /// The guard of the registry at `base`.
    pub(super) fn new(base: Url) -> Guard {
        let reach = AtomicU8::new(Reach::of_literal(&base) as u8);
        Guard { base, reach, followed: Mutex::default() }
    }

    /// Judges `to`, which an answer of `from` named.
    pub(super) fn judge(&self, from: &Url, to: &Url) -> Result<Whose, Refused> {
        if !matches!(to.scheme(), "http" | "https") || to.host().is_none() {
            return Err(Refused::Scheme);
        }
        if !to.username().is_empty() || to.password().is_some() {
            return Err(Refused::Userinfo);
        }
        let host = || to.host_str().unwrap_or_default().to_string();
        if from.scheme() == "https" && to.scheme() == "http" {
            return Err(Refused::Downgrade(host()));
        }
        if to.origin() == self.base.origin() {
            return Ok(Whose::Own);
        }
        if to.host() != self.base.host() && !self.reach().may_lead_to(Reach::of_literal(to)) {
            return Err(Refused::Inside(host()));
        }
        Ok(Whose::Foreign)
    }

    /// Judges an address that was written down earlier, perhaps by another process.
    pub(super) fn judge_stored(&self, to: &Url) -> Result<Whose, Refused> {
        self.judge(&self.base, to)
    }

    /// From here until the value is dropped the name in `to` is judged when it is resolved.
    pub(super) fn follow(self: &Arc<Guard>, to: &Url) -> Followed {
        let name = to.host_str().unwrap_or_default().to_string();
        *self.followed().entry(name.clone()).or_default() += 1;
        Followed { guard: self.clone(), name }
    }

    fn followed(&self) -> std::sync::MutexGuard<'_, HashMap<String, usize>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reach(&self) -> Reach {
        Reach::from_bits(self.reach.load(Ordering::Relaxed))
    }

    /// Judges what a name has resolved to.
    fn resolved(&self, name: &str, foreign: bool, addresses: &[SocketAddr]) -> Result<(), Refused> {
        let farthest = addresses.iter().map(|address| Reach::of(address.ip())).max().unwrap_or(Reach::Public);
        if self.base.host_str() == Some(name) {
            self.reach.fetch_max(farthest as u8, Ordering::Relaxed);
        }
        let refused = foreign && addresses.iter().any(|address| !self.reach().may_lead_to(Reach::of(address.ip())));
        if refused { Err(Refused::Inside(name.to_string())) } else { Ok(()) }
    }
}

/// A name that is judged when it is resolved, as long as this lives.
pub(super) struct Followed {
    guard: Arc<Guard>,
    name: String,
}

impl Drop for Followed {
    fn drop(&mut self) {
        let mut followed = self.guard.followed();
        if let Some(count) = followed.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                followed.remove(&self.name);
            }
        }
    }
}

/// Resolves names by the system's means and lets [`Guard`] judge the outcome. Only names that an answer led to are
/// judged: proxies of the environment pass through here too.
pub(super) struct Resolver(pub(super) Arc<Guard>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.0.clone();
        let name = name.as_str().to_ascii_lowercase();
        let foreign = guard.followed().contains_key(&name);
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            guard.resolved(&name, foreign, &addresses)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// The redirects of one request.
pub(super) struct Hops {
    seen: Vec<Url>,
}

impl Hops {
    /// A request that starts at `url`.
    pub(super) fn new(url: Url) -> Hops {
        Hops { seen: vec![url] }
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
    pub(super) fn follow(&mut self, location: &str, guard: &Guard) -> Result<Whose, Refused> {
        let mut next = self.at().join(location).map_err(|_| Refused::Malformed)?;
        next.set_fragment(None);
        let whose = guard.judge(self.at(), &next)?;
        if self.seen.contains(&next) {
            return Err(Refused::Circle);
        }
        if self.seen.len() > MOST_HOPS {
            return Err(Refused::TooMany);
        }
        self.seen.push(next);
        Ok(whose)
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
            (public, "https://registry.example/v2/x?sig=1", Ok(Whose::Own)),
            (public, "https://registry.example:443/x", Ok(Whose::Own)),
            (public, "https://registry.example:8443/x", Ok(Whose::Foreign)),
            (public, "https://storage.example/x", Ok(Whose::Foreign)),
            (public, "http://registry.example/x", Err(Refused::Downgrade("registry.example".into()))),
            (public, "ftp://storage.example/x", Err(Refused::Scheme)),
            (public, "file:///etc/passwd", Err(Refused::Scheme)),
            (public, "https://name:word@storage.example/x", Err(Refused::Userinfo)),
            (public, "https://127.0.0.1/x", Err(Refused::Inside("127.0.0.1".into()))),
            (public, "https://2130706433/x", Err(Refused::Inside("127.0.0.1".into()))),
            (public, "https://169.254.169.254/latest", Err(Refused::Inside("169.254.169.254".into()))),
            (public, "https://10.0.0.1/x", Err(Refused::Inside("10.0.0.1".into()))),
            (public, "https://100.64.0.1/x", Err(Refused::Inside("100.64.0.1".into()))),
            (public, "https://[::1]/x", Err(Refused::Inside("[::1]".into()))),
            (public, "https://[::ffff:10.0.0.1]/x", Err(Refused::Inside("[::ffff:a00:1]".into()))),
            (public, "https://[fd00::1]/x", Err(Refused::Inside("[fd00::1]".into()))),
            (public, "https://LOCALHOST/x", Err(Refused::Inside("localhost".into()))),
            (public, "https://a.localhost./x", Err(Refused::Inside("a.localhost.".into()))),
            (local, "http://127.0.0.1:5000/x", Ok(Whose::Own)),
            (local, "http://127.0.0.1:5001/x", Ok(Whose::Foreign)),
            (local, "http://10.0.0.1/x", Ok(Whose::Foreign)),
            (local, "http://169.254.169.254/x", Err(Refused::Inside("169.254.169.254".into()))),
            (local, "https://storage.example/x", Ok(Whose::Foreign)),
            (private, "https://10.9.9.9/x", Ok(Whose::Foreign)),
            (private, "https://127.0.0.1/x", Err(Refused::Inside("127.0.0.1".into()))),
        ];
        for (base, to, expected) in table {
            let base = url(base);
            assert_eq!(Guard::new(base.clone()).judge(&base, &url(to)), expected, "{base} → {to}");
        }
    }

    #[test]
    fn names_are_judged_by_what_they_resolve_to() {
        let guard = Arc::new(Guard::new(url("https://registry.example/")));
        let inside: Vec<SocketAddr> = vec!["10.0.0.7:0".parse().unwrap()];
        let mixed: Vec<SocketAddr> = vec!["192.0.2.1:0".parse().unwrap(), "127.0.0.1:0".parse().unwrap()];
        assert!(guard.resolved("storage.example", true, &inside).is_err());
        assert!(guard.resolved("proxy.example", false, &inside).is_ok(), "a proxy was not named by an answer");
        assert!(guard.resolved("storage.example", true, &mixed).is_err());
        guard.resolved("registry.example", false, &inside).unwrap();
        assert!(guard.resolved("storage.example", true, &inside).is_ok(), "the registry itself is inside");
        assert!(guard.resolved("storage.example", true, &mixed).is_err(), "but not on this machine");
    }

    #[test]
    fn names_are_followed_as_long_as_someone_does() {
        let guard = Arc::new(Guard::new(url("https://registry.example/")));
        let first = guard.follow(&url("https://storage.example/a"));
        let second = guard.follow(&url("https://storage.example/b"));
        drop(first);
        assert!(guard.followed().contains_key("storage.example"));
        drop(second);
        assert!(guard.followed().is_empty());
    }

    #[test]
    fn circles_and_long_ways_end() {
        let guard = Guard::new(url("https://registry.example/"));
        let mut hops = Hops::new(url("https://registry.example/0"));
        assert_eq!(hops.follow("/0", &guard), Err(Refused::Circle));
        for hop in 1..=MOST_HOPS {
            assert_eq!(hops.follow(&format!("/{hop}"), &guard), Ok(Whose::Own));
        }
        assert_eq!(hops.follow("/6", &guard), Err(Refused::TooMany));
        assert_eq!(hops.at().path(), "/5");
        let mut hops = Hops::new(url("https://registry.example/0"));
        assert_eq!(hops.follow("https://storage.example/x", &guard), Ok(Whose::Foreign));
        assert!(matches!(hops.follow("http://registry.example/", &guard), Err(Refused::Downgrade(_))));
    }

    proptest! {
        #[test]
        fn credentials_stay_at_home(location in "\\PC{0,60}") {
            let base = url("https://registry.example/v2/");
            let guard = Guard::new(base.clone());
            let mut hops = Hops::new(base);
            if hops.follow(&location, &guard) == Ok(Whose::Own) {
                let at = hops.at();
                prop_assert_eq!((at.scheme(), at.host_str(), at.port()), ("https", Some("registry.example"), None));
            }
        }
    }
}
