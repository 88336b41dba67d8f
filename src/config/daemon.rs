//! `daemon`: where it listens, where its state is, how often it looks.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use super::Env;
use super::keys::keys;
use super::notify;
use super::problem::complaint;
use super::section::{Item, optional};
use super::shapes::{Number, OneOrMany};
use super::tokens::{self, TokenOfApi, of_secret_file};
use super::units::duration_within;
use crate::admin::Token;
use crate::byte_threads;
use crate::byte_threads::MOST as MOST_THREADS;
use crate::notify::Settings;
use crate::tls::{Identity, TlsFiles};

/// Longest time between two looks.
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(8760 * 3600);

keys! {
    DaemonSection, DaemonKeys {
        /// Address and port of metrics, health, status and triggers, or `off`. Default:
        /// 127.0.0.1:9464.
        listen: Option<String>,
        /// Folder of index.db, ledger.db and control.sock. Default: $STATE_DIRECTORY, else
        /// /var/lib/blobferry for root, else the user's XDG state folder.
        state: Option<String>,
        /// How often each route is looked at without being asked, or `off`. Default: 60s.
        poll: Option<String>,
        /// Within what time tags that were equal are asked about again. Default: 1h.
        verify: Option<String>,
        /// Time for running transfers to reach a checkpoint at shutdown. Default: 30s.
        grace: Option<String>,
        /// Threads that move bytes, 1 to 64; 1: no thread beside the main one. Default: as many as the
        /// machine has processors, at most 8.
        threads: Option<Number>,
        /// How long the ledger keeps the texts of rows that are no promotions. Default: 8760h.
        retention: Option<String>,
        /// File to which each row of the ledger is written as a line of JSON. Default: none.
        audit_file: Option<String>,
        /// File with a bearer token of the HTTP API that may look. Short for a token "secret".
        secret_file: Option<String>,
        /// Bearer tokens of the HTTP API, by names of your own: the name is the actor in the ledger.
        tokens: Option<BTreeMap<String, TokenOfApi>>,
        /// Where changes of results are told: one receiver, or a list of such.
        notify: Option<OneOrMany<notify::NotifySection>>,
        /// TLS of the TCP listener. Its files are read again when they change.
        tls: Option<ServerTls>,
    }
}

keys! {
    ServerTls, ServerTlsKeys {
        /// File with the certificate and its chain, in PEM.
        cert_file: String = "the certificate with its chain, in PEM",
        /// File with its private key, in PEM.
        key_file: String = "its private key, in PEM",
    }
}

/// The daemon's own settings.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// Where metrics, health, status and triggers are served over TCP; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// The folder of index, ledger and control socket.
    pub state: PathBuf,
    /// How often each route is looked at without being asked; `None`: only by the sweep of
    /// `verify`.
    pub poll: Option<Duration>,
    /// Within what time tags that were equal are asked about again.
    pub verify: Duration,
    /// Time for running transfers to reach a checkpoint at shutdown.
    pub grace: Duration,
    /// Threads that move bytes; one is the main thread itself.
    pub threads: NonZeroUsize,
    /// How long the ledger keeps the texts of rows that are no promotions.
    pub retention: Duration,
    /// Where each row of the ledger becomes a line.
    pub audit_file: Option<PathBuf>,
    /// Bearer tokens of the HTTP API.
    pub tokens: Vec<Token>,
    /// Where changes of results are told.
    pub notify: Vec<Settings>,
    /// The certificate of the TCP listener; `None`: plain HTTP.
    pub tls: Option<Identity>,
}

/// `None` after a complaint.
pub(super) fn read(item: Option<Item<'_>>, root: &Item<'_>) -> Option<Daemon> {
    let keys: DaemonKeys<'_> = match &item {
        Some(item) => item.keys()?,
        None => DaemonKeys::default(),
    };
    let listen = optional(&keys.listen, |item| item.parse(listen));
    let state = match keys.state {
        Some(item) => item.path(),
        None => standard_state(item.as_ref().unwrap_or(root)),
    };
    let poll = optional(&keys.poll, |item| item.parse(poll));
    let verify = optional(&keys.verify, |item| item.parse(interval));
    let grace = optional(&keys.grace, |item| item.parse(grace));
    let threads = optional(&keys.threads, |item| item.parse(threads));
    let retention = optional(&keys.retention, |item| item.parse(retention));
    let audit_file = optional(&keys.audit_file, Item::path);
    let tls = optional(&keys.tls, tls);
    let secret = optional(&keys.secret_file, Item::secret);
    let named = optional(&keys.tokens, tokens::read);
    let notify = optional(&keys.notify, notify::read);
    let standard_listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 9464));
    let secret = secret?.map(of_secret_file);
    Some(Daemon {
        listen: listen?.unwrap_or(Some(standard_listen)),
        state: state?,
        poll: poll?.unwrap_or(Some(Duration::from_secs(60))),
        verify: verify?.unwrap_or(Duration::from_secs(3600)),
        grace: grace?.unwrap_or(Duration::from_secs(30)),
        threads: threads?.unwrap_or_else(byte_threads::usual),
        retention: retention?.unwrap_or(YEAR),
        audit_file: audit_file?,
        tokens: secret
            .into_iter()
            .chain(named?.unwrap_or_default())
            .collect(),
        notify: notify?.unwrap_or_default(),
        tls: tls?,
    })
}

fn tls(item: &Item<'_>) -> Option<Identity> {
    let keys: ServerTlsKeys<'_> = item.keys()?;
    let certificate = keys.cert_file.and_then(|item| item.path());
    let key = keys.key_file.and_then(|item| item.path());
    let files = TlsFiles {
        certificate: certificate?,
        key: key?,
    };
    Identity::load(&files)
        .map_err(|error| item.wrong(error.to_string()))
        .ok()
}

fn listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        complaint(
            text,
            "is not an IP address with a port (127.0.0.1:9464, [::1]:9464) or off",
        )
    })
}

fn poll(text: &str) -> Result<Option<Duration>, String> {
    if text == "off" {
        Ok(None)
    } else {
        interval(text).map(Some)
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::from_millis(100), MONTH)
}

fn grace(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::ZERO, Duration::from_secs(3600))
}

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.trim().parse::<NonZeroUsize>();
    let number = number.ok().filter(|number| number.get() <= MOST_THREADS);
    number.ok_or_else(|| complaint(text, &format!("is not a number from 1 to {MOST_THREADS}")))
}

fn retention(text: &str) -> Result<Duration, String> {
    duration_within(text, DAY, 100 * YEAR)
}

fn standard_state(item: &Item<'_>) -> Option<PathBuf> {
    let state = standard_folder(item.reader().env);
    if state.is_none() {
        let key = if item.key().is_empty() {
            "daemon.state"
        } else {
            "state"
        };
        item.missing(
            key,
            "is missing, and none of STATE_DIRECTORY, XDG_STATE_HOME and HOME is set",
        );
    }
    state
}

/// The folder where the state is unless the file says otherwise.
pub(super) fn standard_folder(env: &Env<'_>) -> Option<PathBuf> {
    state_folder(env, is_root())
}

/// systemd's folder, else the system's for root, else the user's.
fn state_folder(env: &Env<'_>, root: bool) -> Option<PathBuf> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    if let Some(folders) = set("STATE_DIRECTORY") {
        return folders.split(':').next().map(PathBuf::from);
    }
    if root {
        return Some(PathBuf::from("/var/lib/blobferry"));
    }
    // The XDG specification says to ignore relative paths.
    let xdg = set("XDG_STATE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let base = xdg.or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".local/state")));
    base.map(|base| base.join("blobferry"))
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_goes_where_the_system_keeps_it() {
        type Row = (
            &'static [(&'static str, &'static str)],
            bool,
            Option<&'static str>,
        );
        let table: &[Row] = &[
            (
                &[("STATE_DIRECTORY", "/s/one:/s/two"), ("HOME", "/h")],
                true,
                Some("/s/one"),
            ),
            (&[("HOME", "/h")], true, Some("/var/lib/blobferry")),
            (
                &[("XDG_STATE_HOME", "/x"), ("HOME", "/h")],
                false,
                Some("/x/blobferry"),
            ),
            (
                &[("XDG_STATE_HOME", "x"), ("HOME", "/h")],
                false,
                Some("/h/.local/state/blobferry"),
            ),
            (&[("HOME", "")], false, None),
        ];
        for (variables, root, expected) in table {
            let env = |name: &str| {
                variables
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_owned())
            };
            assert_eq!(
                state_folder(&env, *root),
                expected.map(PathBuf::from),
                "{variables:?}"
            );
        }
    }
}
