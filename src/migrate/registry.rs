//! A registry of the config, with what is told of it.

use super::remark::{Remark, add_missing};
use crate::oci::Host;

/// A registry under the name that the config gives it.
#[derive(Debug)]
pub(super) struct Registry {
    pub(super) name: String,
    /// How references name it: `host` or `host:port`, perhaps with `${VARIABLES}`.
    pub(super) host: String,
    /// Where it is reached.
    pub(super) address: String,
    /// Plain HTTP.
    pub(super) is_plain: bool,
    /// Further keys with their values.
    pub(super) keys: Vec<(&'static str, String)>,
    /// Keys that stand behind a `#`: their files are not there yet.
    pub(super) later: Vec<(&'static str, String)>,
    pub(super) remarks: Vec<Remark>,
}

/// The remark on a registry with variables in its address.
const VARIABLES: &str = "the variables of the address must be set for the daemon, too";

impl Registry {
    pub(super) fn new(name: String, host: &str) -> Registry {
        Registry {
            name,
            host: host.to_owned(),
            address: host.to_owned(),
            is_plain: is_loopback(host),
            keys: Vec::new(),
            later: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// Sets a key, once.
    pub(super) fn set(&mut self, key: &'static str, value: impl Into<String>) {
        if !self.keys.iter().any(|(known, _)| *known == key) {
            self.keys.push((key, value.into()));
        }
    }

    /// Takes a key back. Whether it had this value.
    pub(super) fn unset(&mut self, key: &'static str, value: &str) -> bool {
        let count = self.keys.len();
        self.keys
            .retain(|(known, was)| *known != key || was != value);
        self.keys.len() < count
    }

    pub(super) fn remark(&mut self, line: u64, text: impl AsRef<str>) {
        add_missing(&mut self.remarks, &[Remark::new(line, text)]);
    }

    /// Told once, with the line of the first route.
    pub(super) fn tell_of_variables(&mut self, line: u64) {
        let is_told = self.remarks.iter().any(|remark| remark.text == VARIABLES);
        if self.address.contains("${") && !is_told {
            self.remark(line, VARIABLES);
        }
    }

    /// The old file has a user's name and a password, or where they are.
    pub(super) fn needs_password(&mut self, line: u64, found: &str) {
        self.needs_secret(line, found, "a password", "password_file");
        self.later_first("username", "NAME");
    }

    /// The old file has a token that the registry itself takes, or where it is.
    pub(super) fn needs_token(&mut self, line: u64, found: &str) {
        self.needs_secret(line, found, "a token", "token_file");
        self.later_first("auth", "bearer");
    }

    fn later_first(&mut self, key: &'static str, value: &str) {
        let pair = (key, value.to_owned());
        if !self.later.contains(&pair) {
            self.later.insert(0, pair);
        }
    }

    fn needs_secret(&mut self, line: u64, found: &str, what: &str, key: &'static str) {
        let text = format!(
            "{found}: no secret is written here. Put {what} into a file (mode 0600), name it with `{key}`, and take \
             the # away; else the Docker config and its helpers are asked"
        );
        self.remark(line, text);
        let name = self.name.replace('_', "-");
        let path = (key, format!("/etc/blobferry/{name}.secret"));
        if !self.later.contains(&path) {
            self.later.push(path);
        }
    }
}

/// The host as a name: letters, digits, `_ . -`.
pub(super) fn name_of(host: &str) -> String {
    let name: String = host
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "_.-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    let name = name.replace("--", "-");
    let name = name.get(..name.len().min(60)).unwrap_or_default();
    match name.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()) {
        "" => "registry".to_owned(),
        name => name.to_owned(),
    }
}

/// Docker speaks plain HTTP with this machine.
fn is_loopback(host: &str) -> bool {
    host.parse::<Host>().is_ok_and(|host| host.is_loopback())
}
