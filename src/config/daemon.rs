//! `daemon`: where it listens, where its state is, how often it looks.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use super::Env;
use super::section::{Item, Section, optional};
use super::tokens::{self, of_secret_file};
use super::units::duration_within;
use crate::decision::Token;
use crate::fault::clip;
use crate::tls::{Identity, TlsFiles};

/// Longest time between two looks.
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(8760 * 3600);

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
    /// How often production itself is asked instead of the index.
    pub verify: Duration,
    /// Time for running transfers to reach a checkpoint at shutdown.
    pub grace: Duration,
    /// How long the ledger keeps the texts of rows that are no promotions.
    pub retention: Duration,
    /// Where each row of the ledger becomes a line.
    pub audit_file: Option<PathBuf>,
    /// Bearer tokens of the HTTP API.
    pub tokens: Vec<Token>,
    /// The certificate of the TCP listener; `None`: plain HTTP.
    pub tls: Option<Identity>,
}

/// `None` after a complaint.
pub(super) fn read(item: Option<Item<'_>>, root: &Item<'_>) -> Option<Daemon> {
    let mut keys = match &item {
        Some(item) => Some(item.section()?),
        None => None,
    };
    let mut key = |name: &'static str| keys.as_mut().and_then(|keys| keys.item(name));
    let standard_listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)));
    let listen = key("listen").map_or(Some(standard_listen), |item| item.parse(listen));
    let state = match key("state") {
        Some(item) => item.path(),
        None => standard_state(item.as_ref().unwrap_or(root)),
    };
    let poll = key("poll").map_or(Some(Some(Duration::from_secs(60))), |item| item.parse(poll));
    let verify = key("verify").map_or(Some(Duration::from_secs(3600)), |item| item.parse(interval));
    let grace = key("grace").map_or(Some(Duration::from_secs(30)), |item| item.parse(grace));
    let retention = key("retention").map_or(Some(YEAR), |item| item.parse(retention));
    let audit_file = key("audit_file").map_or(Some(None), |item| item.path().map(Some));
    let tls = optional(&key("tls"), tls);
    let secret = key("secret_file").map_or(Some(None), |item| item.secret().map(Some));
    let named = key("tokens").map_or(Some(Vec::new()), |item| tokens::read(&item));
    if let Some(keys) = keys {
        Section::finish(keys, |_| false);
    }
    Some(Daemon {
        listen: listen?,
        state: state?,
        poll: poll?,
        verify: verify?,
        grace: grace?,
        retention: retention?,
        audit_file: audit_file?,
        tokens: secret?
            .map(of_secret_file)
            .into_iter()
            .chain(named?)
            .collect(),
        tls: tls?,
    })
}

fn tls(item: &Item<'_>) -> Option<Identity> {
    let mut keys = item.section()?;
    let certificate = keys
        .required("cert_file", "the certificate with its chain, in PEM")
        .and_then(|item| item.path());
    let key = keys
        .required("key_file", "its private key, in PEM")
        .and_then(|item| item.path());
    keys.finish(|_| false);
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
        format!(
            "\"{}\" is not an IP address with a port (127.0.0.1:9464, [::1]:9464) or off",
            clip(text, 100)
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
