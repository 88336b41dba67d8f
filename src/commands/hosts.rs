//! The credentials of hosts that no config knows.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::reference::{Env, Known, known_by};
use crate::ecr;
use crate::oci::Host;
use crate::registry::profile::Kind;

/// The credentials at the hosts of one run: one login for each host, on either side.
pub(super) struct Hosts<'a> {
    env: Env<'a>,
    /// Where ECR's control plane is, if not where the region says: a private endpoint, or an
    /// emulator.
    endpoint: Option<String>,
    logins: Mutex<BTreeMap<String, ecr::Login>>,
}

impl<'a> Hosts<'a> {
    pub(super) fn new(env: Env<'a>) -> Hosts<'a> {
        Hosts {
            env,
            endpoint: env("AWS_ENDPOINT_URL_ECR").filter(|text| !text.trim().is_empty()),
            logins: Mutex::default(),
        }
    }

    pub(super) fn known(&self, host: &Host) -> Known {
        let is_emulated = self
            .endpoint
            .as_ref()
            .is_some_and(|endpoint| ecr::host::is_emulated(host, endpoint));
        let is_assumed = match ecr::host::recognise(host.name()) {
            // Reads are anonymous there; writes need a login as at any other registry.
            Some(ecr) if ecr.public => return known_by(host, self.env),
            Some(_) => false,
            None if is_emulated => true,
            None => return known_by(host, self.env),
        };
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        let login = logins.entry(host.to_string()).or_insert_with(|| {
            let settings = ecr::Settings {
                endpoint: self.endpoint.clone(),
                is_assumed,
                ..ecr::Settings::default()
            };
            ecr::Login::new(settings, host.as_ref())
        });
        Known {
            credentials: login.clone().into(),
            kind: Some(Kind::Ecr),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_of_ecr_is_for_ecr_and_emulators_alone() {
        let kind = |host: &str, endpoint: Option<&str>| {
            let env = |name: &str| {
                endpoint
                    .filter(|_| name == "AWS_ENDPOINT_URL_ECR")
                    .map(str::to_owned)
            };
            let hosts = Hosts::new(&env);
            let known = hosts.known(&host.parse().unwrap());
            match ecr::Login::of(&known.credentials) {
                Some(login) if login.is_assumed() => "assumed",
                Some(_) => "ecr",
                None => "other",
            }
        };
        let vpc = Some("https://vpce-0a1b.api.ecr.eu-west-1.vpce.amazonaws.com");
        let emulator = Some("http://127.0.0.1:4566");
        let private = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
        for endpoint in [None, vpc, emulator] {
            assert_eq!(kind("ghcr.io", endpoint), "other");
            assert_eq!(kind("registry.example", endpoint), "other");
            assert_eq!(kind("public.ecr.aws", endpoint), "other");
            assert_eq!(kind(private, endpoint), "ecr");
        }
        assert_eq!(kind("localhost:5000", None), "other");
        assert_eq!(kind("localhost:5000", vpc), "other");
        assert_eq!(kind("localhost:5000", emulator), "assumed");
    }
}
