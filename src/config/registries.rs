//! `registries`: where images live, our credentials there, and limits of requests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use secrecy::SecretSlice;
use url::Url;

use super::aws::{CredentialsKeys, CredentialsSection, account, arn, endpoint, region};
use super::keys::{keys, word_schema};
use super::limits::{Limits, LimitsKeys, Spared, limits};
use super::problem::hint;
use super::section::{Item, optional};
use super::shapes::Number;
use super::units::is_made_of;
use crate::ecr;
use crate::endpoint::Origin;
use crate::fault::clip;
use crate::oci::Host;
use crate::registry::auth::{Credentials, docker};
use crate::registry::profile::Kind;
use crate::registry::{self, Deadlines, Tls};

/// A registry under the name that the user gave it.
#[derive(Debug)]
pub struct Registry {
    /// The name: label in metrics, word in messages.
    pub name: String,
    /// What it is.
    pub kind: RegistryKind,
    /// How much is asked of it at once.
    pub limits: Limits,
}

/// A registry over HTTP, or a folder.
#[expect(
    clippy::large_enum_variant,
    reason = "a handful exists, each moved once"
)]
pub enum RegistryKind {
    /// Speaks the distribution protocol.
    Remote(registry::Settings),
    /// A folder of OCI image layouts.
    Layout(PathBuf),
}

impl fmt::Debug for RegistryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        origin(self).fmt(f)
    }
}

/// The registries that could be read, and the names of all.
pub(super) struct Read {
    pub(super) registries: BTreeMap<String, Registry>,
    names: Vec<String>,
}

impl Read {
    /// Whether the config has a registry of that name; complains otherwise.
    pub(super) fn check_name(&self, item: &Item<'_>, name: &str) -> bool {
        let is_known = self.names.iter().any(|known| known == name);
        if !is_known {
            let near = hint(name, self.names.iter().map(String::as_str));
            item.wrong(format!(
                "there is no registry \"{}\"{near}",
                clip(name, 100)
            ));
        }
        is_known
    }

    /// Every name, with the origin where it could be read: two names of one origin are one place.
    pub(super) fn origins(&self) -> BTreeMap<String, Option<Origin>> {
        self.names
            .iter()
            .map(|name| {
                (
                    name.clone(),
                    self.registries
                        .get(name)
                        .map(|registry| origin(&registry.kind)),
                )
            })
            .collect()
    }

    /// The registries that are known to have no scanner of their own.
    pub(super) fn without_scanner(&self) -> BTreeSet<String> {
        let registries = self.registries.iter();
        let unscanned = registries.filter(|(_, registry)| !has_scanner(&registry.kind));
        unscanned.map(|(name, _)| name.clone()).collect()
    }
}

/// ECR's private registries have one.
fn has_scanner(kind: &RegistryKind) -> bool {
    match kind {
        RegistryKind::Remote(settings) => {
            let login = ecr::Login::of(&settings.credentials);
            login.is_some_and(|login| !login.is_public())
        }
        RegistryKind::Layout(_) => false,
    }
}

fn origin(kind: &RegistryKind) -> Origin {
    match kind {
        RegistryKind::Remote(settings) => Origin::new(&settings.url.origin().ascii_serialization()),
        RegistryKind::Layout(path) => Origin::new(&format!("layout:{}", path.display())),
    }
}

pub(super) fn read(item: Item<'_>) -> Read {
    let mut read = Read {
        registries: BTreeMap::new(),
        names: Vec::new(),
    };
    let mut logins = Vec::new();
    let Some(section) = item.section() else {
        return read;
    };
    for (name, item) in section.entries() {
        if !is_name(name) {
            section
                .wrong_key(name, "is not a name for a registry (1 to 64 letters, digits, _ . -, starting with a letter or digit)");
        }
        read.names.push(name.to_owned());
        if let Some(registry) = registry(name, &item, &mut logins) {
            read.registries.insert(name.to_owned(), registry);
        }
    }
    if read.names.is_empty() {
        item.wrong("is empty: name at least one registry");
    }
    read
}

pub(super) fn is_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && is_made_of(name, "_.-")
}

keys! {
    RegistrySection, RegistryKeys {
        /// `https://host[:port]`, `http://host[:port]`, or `layout:/path` for a folder of OCI image
        /// layouts.
        url: String = "https://host, http://host or layout:/path",
        ..remote: RemoteSection, Keys,
        ..limits: Spared, LimitsKeys,
    }
}

keys! {
    /// Keys that only a registry over HTTP has.
    RemoteSection, Keys {
        /// The identity there. Default: basic or bearer when their keys are given; ecr for the hosts
        /// of private ECR registries; else the Docker config and its credential helpers, else
        /// anonymous.
        auth: Option<Auth>,
        /// For `auth: basic`.
        username: Option<String>,
        /// File with the password, for `auth: basic`.
        password_file: Option<String>,
        /// File with the token, for `auth: bearer`.
        token_file: Option<String>,
        /// File with the certificates of authorities to trust besides the system's, in PEM.
        ca_file: Option<String>,
        /// File with our certificate for mutual TLS, in PEM.
        client_cert_file: Option<String>,
        /// File with its private key, in PEM.
        client_key_file: Option<String>,
        /// Hosts besides the registry's own domain to which credentials may go for a token.
        token_realms: Option<Vec<String>>,
        /// Whether credentials may travel over plain http beyond this machine. Default: false.
        insecure: Option<bool>,
        /// Overrides the recognised kind of registry.
        kind: Option<Kind>,
        /// AWS region, where the host does not tell it.
        region: Option<String>,
        /// AWS account of the registry, where the host does not tell it.
        account: Option<Number>,
        /// The ARN that we must turn out to be.
        identity: Option<String>,
        /// Address of ECR's control plane, for emulators and private endpoints.
        ecr_endpoint: Option<String>,
        ..credentials: CredentialsSection, CredentialsKeys,
    }
}

word_schema!(Kind, "Kind", Kind::ALL.map(Kind::name));

impl<'a> Keys<'a> {
    fn basic(&self) -> [&Option<Item<'a>>; 2] {
        [&self.username, &self.password_file]
    }

    fn aws(&self) -> [&Option<Item<'a>>; 8] {
        let Keys {
            region,
            account,
            identity,
            ecr_endpoint,
            ..
        } = self;
        let CredentialsKeys {
            role_arn,
            external_id,
            role_session_name,
            aws_profile,
        } = &self.credentials;
        [
            region,
            role_arn,
            external_id,
            role_session_name,
            aws_profile,
            account,
            identity,
            ecr_endpoint,
        ]
    }

    fn rest(&self) -> [&Option<Item<'a>>; 8] {
        let Keys {
            auth,
            token_file,
            ca_file,
            client_cert_file,
            client_key_file,
            token_realms,
            insecure,
            kind,
            ..
        } = self;
        [
            auth,
            token_file,
            ca_file,
            client_cert_file,
            client_key_file,
            token_realms,
            insecure,
            kind,
        ]
    }
}

enum Address {
    Remote(Url),
    Layout(PathBuf),
}

/// How the user wants to be known there.
#[derive(Clone, Copy, PartialEq)]
enum Auth {
    Ecr,
    DockerConfig,
    Basic,
    Bearer,
    Anonymous,
}

const AUTH: [(&str, Auth); 5] = [
    ("ecr", Auth::Ecr),
    ("docker-config", Auth::DockerConfig),
    ("basic", Auth::Basic),
    ("bearer", Auth::Bearer),
    ("anonymous", Auth::Anonymous),
];

word_schema!(Auth, "Auth", AUTH.map(|(word, _)| word));

fn registry(name: &str, item: &Item<'_>, logins: &mut Vec<ecr::Login>) -> Option<Registry> {
    let keys: RegistryKeys<'_> = item.keys()?;
    let limits = limits(&keys.limits);
    let url_item = keys.url.as_ref();
    let kind = match url_item.and_then(address) {
        Some(Address::Remote(url)) => {
            remote(name, url, url_item?, &keys.remote, item, logins).map(RegistryKind::Remote)
        }
        Some(Address::Layout(path)) => layout(path, &keys.remote),
        None => None,
    };
    Some(Registry {
        name: name.to_owned(),
        kind: kind?,
        limits: limits?,
    })
}

fn layout(path: PathBuf, keys: &Keys<'_>) -> Option<RegistryKind> {
    let foreign: Vec<_> = keys
        .basic()
        .into_iter()
        .chain(keys.aws())
        .chain(keys.rest())
        .flatten()
        .collect();
    foreign
        .iter()
        .for_each(|item| item.wrong("means nothing for a folder of layouts"));
    foreign.is_empty().then_some(RegistryKind::Layout(path))
}

fn address(item: &Item<'_>) -> Option<Address> {
    let text = item.word()?;
    if let Some(path) = text.strip_prefix("layout:") {
        if path.is_empty() {
            item.wrong("names no folder (layout:/path)");
            return None;
        }
        return Some(Address::Layout(item.reader().folder.join(path)));
    }
    match web_address(&text) {
        Ok(url) => Some(Address::Remote(url)),
        Err(reason) => {
            item.wrong(reason);
            None
        }
    }
}

/// A URL of host and port and nothing else. The text is not repeated in complaints where it may
/// hold a password.
fn web_address(text: &str) -> Result<Url, &'static str> {
    const EXPECTED: &str = "is not https://host[:port], http://host[:port] or layout:/path";
    let url = Url::parse(text).map_err(|_| EXPECTED)?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(EXPECTED);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user name or password: use username and password_file");
    }
    if url.path() != "/" {
        return Err("holds a path: the repository belongs into the routes");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("holds a query or a fragment: only scheme, host and port belong here");
    }
    Ok(url)
}

fn remote(
    name: &str,
    url: Url,
    url_item: &Item<'_>,
    keys: &Keys<'_>,
    itself: &Item<'_>,
    logins: &mut Vec<ecr::Login>,
) -> Option<registry::Settings> {
    let credentials = credentials(&url, keys, itself, logins);
    let tls = tls(keys, itself);
    let kinds = || Kind::ALL.into_iter().map(|kind| (kind.name(), kind));
    let kind = optional(&keys.kind, |item| item.one_of(kinds()));
    let token_realms = optional(&keys.token_realms, realms).map(Option::unwrap_or_default);
    let insecure = optional(&keys.insecure, Item::truth).map(Option::unwrap_or_default);
    let credentials = credentials?;
    let insecure = insecure?;
    if travels_in_plain_text(&url, &credentials) && !insecure {
        url_item.wrong("would carry credentials in plain text: use https, or say insecure: true");
        return None;
    }
    let kind = kind?;
    let tls = tls?;
    let token_realms = token_realms?;
    Some(registry::Settings {
        name: name.to_owned(),
        url,
        credentials,
        kind,
        tls,
        token_realms,
        insecure,
        deadlines: Deadlines::default(),
    })
}

fn travels_in_plain_text(url: &Url, credentials: &Credentials) -> bool {
    // The Docker config may hold nothing for this host: the request that would send something is
    // refused instead.
    let sends = matches!(
        credentials,
        Credentials::Basic { .. } | Credentials::Bearer(_) | Credentials::Issued(_)
    );
    sends && url.scheme() == "http" && !host_of(url).is_some_and(|host| host.is_loopback())
}

pub(super) fn host_of(url: &Url) -> Option<Host> {
    url.host_str()?.parse().ok()
}

fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port()
        .map_or(host.to_owned(), |port| format!("{host}:{port}"))
}

fn credentials(
    url: &Url,
    keys: &Keys<'_>,
    itself: &Item<'_>,
    logins: &mut Vec<ecr::Login>,
) -> Option<Credentials> {
    let host = &host_and_port(url);
    let auth = match &keys.auth {
        Some(item) => item.one_of(AUTH)?,
        None => found_auth(host, keys, itself)?,
    };
    let basic = auth != Auth::Basic && refuse(&keys.basic(), "auth: basic");
    let bearer = auth != Auth::Bearer && refuse(&[&keys.token_file], "auth: bearer");
    let aws = auth != Auth::Ecr && refuse(&keys.aws(), "auth: ecr");
    let credentials = match auth {
        Auth::Anonymous => Some(Credentials::Anonymous),
        Auth::DockerConfig => Some(Credentials::DockerConfig(docker::Store::standard(
            itself.reader().env,
        ))),
        Auth::Basic => basic_credentials(keys, itself),
        Auth::Bearer => {
            let item = needed(&keys.token_file, "token_file", "auth: bearer", itself);
            item.and_then(Item::secret).map(Credentials::Bearer)
        }
        Auth::Ecr => {
            ecr_settings(host, keys, itself).map(|settings| login_of(settings, host, logins).into())
        }
    };
    if basic || bearer || aws {
        None
    } else {
        credentials
    }
}

/// One identity in one region has one token, however many registries it is for.
fn login_of(settings: ecr::Settings, host: &str, logins: &mut Vec<ecr::Login>) -> ecr::Login {
    let login = logins
        .iter()
        .find_map(|login| login.sharing_token(&settings, host))
        .unwrap_or_else(|| ecr::Login::new(settings, host));
    logins.push(login.clone());
    login
}

/// What the companions or else the host say when `auth` does not.
fn found_auth(host: &str, keys: &Keys<'_>, itself: &Item<'_>) -> Option<Auth> {
    let basic = keys.basic().into_iter().any(Option::is_some);
    match (basic, keys.token_file.is_some()) {
        (true, true) => {
            itself.missing(
                "auth",
                "is missing: both a user name or password and a token are given",
            );
            None
        }
        (true, false) => Some(Auth::Basic),
        (false, true) => Some(Auth::Bearer),
        (false, false) => {
            // The public ECR allows anonymous reads; writes need a login as at any other registry.
            let ecr = ecr::host::recognise(host).is_some_and(|host| !host.public);
            Some(if ecr { Auth::Ecr } else { Auth::DockerConfig })
        }
    }
}

/// Whether there was something to complain about.
fn refuse(keys: &[&Option<Item<'_>>], owner: &str) -> bool {
    let foreign = keys.iter().filter_map(|key| key.as_ref());
    foreign
        .map(|item| item.wrong(format!("only means something with {owner}")))
        .count()
        > 0
}

fn needed<'k, 'a>(
    key: &'k Option<Item<'a>>,
    name: &str,
    owner: &str,
    itself: &Item<'_>,
) -> Option<&'k Item<'a>> {
    if key.is_none() {
        itself.missing(name, format!("is missing: {owner} needs it"));
    }
    key.as_ref()
}

fn basic_credentials(keys: &Keys<'_>, itself: &Item<'_>) -> Option<Credentials> {
    let username = needed(&keys.username, "username", "auth: basic", itself).and_then(username);
    let password =
        needed(&keys.password_file, "password_file", "auth: basic", itself).and_then(Item::secret);
    Some(Credentials::Basic {
        username: username?,
        password: password?,
    })
}

fn username(item: &Item<'_>) -> Option<String> {
    let username = item.word()?;
    if username.contains(':') || username.contains(char::is_control) {
        item.wrong("holds a colon or a control character, which no user name can");
        return None;
    }
    Some(username)
}

fn ecr_settings(host: &str, keys: &Keys<'_>, itself: &Item<'_>) -> Option<ecr::Settings> {
    let recognised = ecr::host::recognise(host);
    if let (Some(auth), true) = (
        &keys.auth,
        recognised.as_ref().is_some_and(|host| host.public),
    ) {
        auth.wrong("is for private registries: the public one is read by anybody, and written with the Docker config (aws ecr-public get-login-password | docker login)");
        return None;
    }
    if keys.region.is_none() && recognised.is_none() {
        itself.missing("region", "is missing: the host does not tell it");
    }
    let credentials = keys.credentials.read(itself);
    let region = optional(&keys.region, |item| {
        let region = item.parse(region)?;
        let there = recognised.as_ref().map(|host| &host.region);
        if let Some(there) = there.filter(|there| **there != region) {
            item.wrong(format!("is {region}, but the registry at `url` is in {there}, and takes no tokens of other regions"));
            return None;
        }
        Some(region)
    });
    let account = optional(&keys.account, |item| {
        let account = item.parse(account)?;
        let owner = recognised.as_ref().and_then(|host| host.account.as_ref());
        if let Some(owner) = owner.filter(|owner| **owner != account) {
            item.wrong(format!(
                "is {account}, but the registry at `url` belongs to account {owner}"
            ));
            return None;
        }
        Some(account)
    });
    let identity = optional(&keys.identity, |item| item.parse(arn));
    let endpoint = optional(&keys.ecr_endpoint, |item| item.parse(endpoint));
    let credentials = credentials?;
    Some(ecr::Settings {
        region: region?,
        role_arn: credentials.role_arn,
        external_id: credentials.external_id,
        session_name: credentials.session_name,
        profile: credentials.profile,
        account: account?,
        identity: identity?,
        endpoint: endpoint?,
        is_assumed: false,
    })
}

fn tls(keys: &Keys<'_>, itself: &Item<'_>) -> Option<Tls> {
    let ca_pem = optional(&keys.ca_file, |item| pem(item, "CERTIFICATE"));
    let certificate = optional(&keys.client_cert_file, |item| pem(item, "CERTIFICATE"));
    let key = optional(&keys.client_key_file, |item| {
        item.note_exposed();
        pem(item, "PRIVATE KEY")
    });
    match (&keys.client_cert_file, &keys.client_key_file) {
        (Some(_), None) => {
            itself.missing("client_key_file", "is missing: client_cert_file needs it")
        }
        (None, Some(_)) => {
            itself.missing("client_cert_file", "is missing: client_key_file needs it")
        }
        _ => {}
    }
    let identity = certificate?
        .zip(key?)
        .map(|(certificate, key)| [certificate, key].join(&b'\n'));
    Some(Tls {
        ca_pem: ca_pem?,
        identity_pem: identity.map(SecretSlice::from),
    })
}

fn pem(item: &Item<'_>, label: &str) -> Option<Vec<u8>> {
    let content = item.file()?;
    let found = str::from_utf8(&content).is_ok_and(|text| {
        text.lines().any(|line| {
            line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{label}-----"))
        })
    });
    if !found {
        item.wrong(format!("the file holds no PEM block \"{label}\""));
    }
    found.then_some(content)
}

fn realms(item: &Item<'_>) -> Option<Vec<String>> {
    item.list()?
        .iter()
        .map(|realm| realm.parse(str::parse::<Host>).map(|host| host.to_string()))
        .collect()
}
