//! An image as a command line names it: a reference at a registry, or a folder of an image layout.

use std::path::PathBuf;
use std::str::FromStr;

use url::Url;

use super::Error;
use crate::backend::{Backend, Repository};
use crate::ecr;
use crate::endpoint::Repositories as _;
use crate::fault::{clip, shown};
use crate::layout;
use crate::oci::{Digest, Host, Reference, RepositoryName, Tag};
use crate::parts::{self, Parts};
use crate::registry::profile::Kind;
use crate::registry::{self, auth};

/// Reads the environment.
pub(super) type Env<'a> = &'a (dyn Fn(&str) -> Option<String> + Sync);

/// A place as a command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Registry {
        scheme: &'static str,
        /// The scheme was written.
        said: bool,
        reference: Reference,
    },
    Layout {
        path: PathBuf,
        tag: Option<Tag>,
        digest: Option<Digest>,
    },
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("layout:") {
            return layout_reference(rest);
        }
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some("http"), rest),
            Some(("https", rest)) => (Some("https"), rest),
            Some(("docker", rest)) => (None, rest),
            Some((other, _)) => {
                let text = shown(text, 300);
                let other = clip(other, 20);
                return Err(format!(
                    "\"{text}\": {other}:// is not known (http://, https://, docker://, or layout:PATH:tag)"
                ));
            }
            None => (None, text),
        };
        let reference: Reference = rest
            .parse()
            .map_err(|error| format!("\"{}\": {error}", shown(text, 300)))?;
        let usual = if reference.host.is_loopback() {
            "http"
        } else {
            "https"
        };
        Ok(Named::Registry {
            scheme: scheme.unwrap_or(usual),
            said: scheme.is_some(),
            reference,
        })
    }
}

fn layout_reference(text: &str) -> Result<Named, String> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (
            rest,
            Some(
                digest
                    .parse()
                    .map_err(|error| format!("\"layout:{}\": {error}", clip(text, 300)))?,
            ),
        ),
        None => (text, None),
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (
            path,
            Some(
                tag.parse()
                    .map_err(|error| format!("\"layout:{}\": {error}", clip(text, 300)))?,
            ),
        ),
        _ => (rest, None),
    };
    if path.is_empty() {
        return Err(format!(
            "\"layout:{}\" names no folder (expected layout:PATH:tag)",
            clip(text, 300)
        ));
    }
    Ok(Named::Layout {
        path: path.into(),
        tag,
        digest,
    })
}

impl Named {
    pub(super) fn tag(&self) -> Option<&Tag> {
        match self {
            Named::Registry { reference, .. } => reference.tag.as_ref(),
            Named::Layout { tag, .. } => tag.as_ref(),
        }
    }

    pub(super) fn digest(&self) -> Option<Digest> {
        match self {
            Named::Registry { reference, .. } => reference.digest,
            Named::Layout { digest, .. } => *digest,
        }
    }

    /// The host, or the folder.
    pub(super) fn home(&self) -> String {
        match self {
            Named::Registry { reference, .. } => reference.host.to_string(),
            Named::Layout { path, .. } => format!("layout:{}", path.display()),
        }
    }

    /// The repository, with what `known` says of its host.
    pub(super) fn open_with(
        &self,
        label: &str,
        parts: &Parts,
        known: impl FnOnce(&Host) -> Known,
    ) -> Result<Repository, Error> {
        match self {
            Named::Layout { path, .. } => {
                let name = RepositoryName::from_str("layout").expect("a constant name");
                Ok(Backend::Layout(layout::Root::single(label, path)).repository(name))
            }
            Named::Registry { reference, .. } => {
                let registry = self.registry_with(label, parts, known)?;
                Ok(registry.repository(reference.repository.clone()))
            }
        }
    }

    /// The registry, with what `known` says of its host.
    pub(super) fn registry_with(
        &self,
        label: &str,
        parts: &Parts,
        known: impl FnOnce(&Host) -> Known,
    ) -> Result<Backend, Error> {
        match self {
            Named::Layout { path, .. } => Ok(Backend::Layout(layout::Root::single(label, path))),
            Named::Registry {
                scheme, reference, ..
            } => {
                let settings = settings(label, scheme, &reference.host, known(&reference.host))?;
                Ok(parts.remote(settings).map_err(parts::Error::Registry)?)
            }
        }
    }
}

/// What is to be known of a host before it is asked anything.
pub(super) struct Known {
    pub(super) credentials: auth::Credentials,
    pub(super) kind: Option<Kind>,
}

/// The credentials of a host are found by its name.
pub(super) fn known_by(host: &Host, env: &dyn Fn(&str) -> Option<String>) -> Known {
    let credentials = match ecr::host::recognise(host.name()) {
        // Anybody may read the public registry, and writes to it with the Docker config.
        Some(ecr) if !ecr.public => ecr::Login::new(ecr::Settings::default(), host.name()).into(),
        _ => auth::Credentials::DockerConfig(auth::docker::Store::standard(env)),
    };
    Known {
        credentials,
        kind: None,
    }
}

/// A registry of which only the host is known.
fn settings(
    label: &str,
    scheme: &str,
    host: &Host,
    known: Known,
) -> Result<registry::Settings, Error> {
    let url: Url = format!("{scheme}://{host}").parse().map_err(|_| {
        Error::Usage(format!(
            "\"{host}\" is not a registry host (examples: registry.example, localhost:5000)"
        ))
    })?;
    Ok(registry::Settings {
        name: label.into(),
        url,
        credentials: known.credentials,
        kind: known.kind,
        tls: registry::Tls::default(),
        token_realms: Vec::new(),
        insecure: false,
        deadlines: registry::Deadlines::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_people_write_them() {
        let scheme = |text: &str| match text.parse::<Named>().unwrap() {
            Named::Registry {
                scheme, reference, ..
            } => format!("{scheme} {reference}"),
            Named::Layout { path, tag, .. } => {
                format!(
                    "layout {} {}",
                    path.display(),
                    tag.map(|tag| tag.to_string()).unwrap_or_default()
                )
            }
        };
        assert_eq!(
            scheme("registry.example/app:v1"),
            "https registry.example/app:v1"
        );
        assert_eq!(
            scheme("docker://registry.example/app:v1"),
            "https registry.example/app:v1"
        );
        assert_eq!(
            scheme("localhost:5000/app:v1"),
            "http localhost:5000/app:v1"
        );
        assert_eq!(
            scheme("https://127.0.0.1:5000/app:v1"),
            "https 127.0.0.1:5000/app:v1"
        );
        assert_eq!(
            scheme("http://registry.example/app:v1"),
            "http registry.example/app:v1"
        );
        assert_eq!(scheme("layout:/a/b:v1"), "layout /a/b v1");
        assert_eq!(scheme("layout:a/b"), "layout a/b ");
        for bad in [
            "app:v1",
            "ftp://registry.example/app",
            "layout::v1",
            "registry.example/App:v1",
        ] {
            assert!(bad.parse::<Named>().is_err(), "{bad}");
        }
    }
}
