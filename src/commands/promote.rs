//! `promote`: the step of a release pipeline that takes images from staging to production, without
//! a config file.
//!
//! The act itself is an `order`.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::order::{Order, Pair};
use super::reference::{Env, Named};
use super::{Error, Observer};
use crate::config::Config;
use crate::fault::shown;
use crate::job::{Actor, Remarks, Report};
use crate::oci::{Digest, RepositoryName, Tag};
use crate::transfer::Stop;

/// What is to be promoted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promote {
    /// Sources and destinations, as `copy` takes them; without a tag `latest` is meant.
    pub images: Vec<(String, String)>,
    /// Every tag of each source.
    pub all_tags: bool,
    /// Only this digest may be promoted.
    pub expect: Option<Digest>,
    /// The digest that a fixed tag of the destination may lose.
    pub replace: Option<Digest>,
    /// Plan, but touch nothing.
    pub dry_run: bool,
    /// A state folder, for hints and the ledger.
    pub state: Option<PathBuf>,
    /// What the caller says of itself and of the act.
    pub remarks: Remarks,
}

impl Promote {
    /// Adds what the environment of a build asks for: `DOCKER_REG` (or `STAGING_REG` and
    /// `PROD_REG`), `STAGING_IMAGE_NAME` and `PROD_IMAGE_NAME` (comma-separated pairs), `IMAGE_TAG`
    /// (absent: `latest`; `*`: every tag), `IMAGE_DIGEST`.
    ///
    /// # Errors
    /// Names every variable that is missing, or says what is wrong with one.
    pub fn of_environment(mut self, env: Env<'_>) -> Result<Promote, Error> {
        let registry = value(env, "DOCKER_REG");
        let staging = value(env, "STAGING_REG").or(registry.clone());
        let production = value(env, "PROD_REG").or(registry);
        let found = [
            ("STAGING_REG (or DOCKER_REG)", staging),
            ("PROD_REG (or DOCKER_REG)", production),
            ("STAGING_IMAGE_NAME", value(env, "STAGING_IMAGE_NAME")),
            ("PROD_IMAGE_NAME", value(env, "PROD_IMAGE_NAME")),
        ];
        let missing: Vec<&str> = found
            .iter()
            .filter(|(_, value)| value.is_none())
            .map(|(name, _)| *name)
            .collect();
        let [Some(staging), Some(production), Some(from), Some(to)] = found.map(|(_, value)| value)
        else {
            let text = format!(
                "nothing is named: give SRC and DST, or set {} in the environment",
                missing.join(", ")
            );
            return Err(Error::Usage(text));
        };
        let tag = value(env, "IMAGE_TAG").unwrap_or_else(|| "latest".into());
        self.all_tags |= tag == "*";
        let end = if self.all_tags {
            String::new()
        } else {
            format!(":{}", named_tag(&tag)?)
        };
        let pairs = pairs(&from, &to)?;
        let staging = staging.trim_end_matches('/');
        let production = production.trim_end_matches('/');
        self.images = pairs
            .map(|(from, to)| {
                (
                    format!("{staging}/{from}{end}"),
                    format!("{production}/{to}{end}"),
                )
            })
            .collect();
        if self.expect.is_none() {
            self.expect = value(env, "IMAGE_DIGEST")
                .map(|text| expected(&text))
                .transpose()?;
        }
        Ok(self)
    }

    fn order(self) -> Result<Order, Error> {
        let pairs: Vec<Pair> = self
            .images
            .iter()
            .map(|(source, destination)| self.pair(source, destination))
            .collect::<Result<_, _>>()?;
        let one = pairs.len() == 1 && !self.all_tags;
        match self {
            _ if pairs.is_empty() => Err(Error::Usage("nothing is named: give SRC and DST".into())),
            Promote {
                expect: Some(_), ..
            } if !one => Err(Error::Usage(
                "an expected digest names one image: give one SRC and DST, and one tag".into(),
            )),
            Promote {
                replace: Some(_), ..
            } if !one => Err(Error::Usage(
                "--replace names one image: give one SRC and DST, and one tag".into(),
            )),
            Promote {
                replace,
                dry_run,
                state,
                remarks,
                ..
            } => Ok(Order {
                pairs,
                replace,
                dry_run,
                state,
                remarks,
            }),
        }
    }

    fn pair(&self, source: &str, destination: &str) -> Result<Pair, Error> {
        let (from, to): (Named, Named) = (
            source.parse().map_err(Error::Usage)?,
            destination.parse().map_err(Error::Usage)?,
        );
        let named = from.tag().is_some()
            || to.tag().is_some()
            || from.digest().is_some()
            || to.digest().is_some();
        if self.all_tags && named {
            return Err(Error::Usage(format!(
                "every tag is asked for: name \"{}\" and \"{}\" without tag and digest",
                shown(source, 300),
                shown(destination, 300)
            )));
        }
        let tag = from
            .tag()
            .or(to.tag())
            .cloned()
            .unwrap_or_else(|| "latest".parse::<Tag>().expect("a constant tag"));
        let tags = (!self.all_tags).then(|| (tag.clone(), to.tag().cloned().unwrap_or(tag)));
        Ok(Pair {
            pinned: from.digest(),
            expect: self.expect.or(to.digest()),
            from,
            to,
            tags,
        })
    }
}

fn named_tag(text: &str) -> Result<Tag, Error> {
    text.parse()
        .map_err(|error| Error::Usage(format!("IMAGE_TAG: {error}")))
}

fn expected(text: &str) -> Result<Digest, Error> {
    text.parse()
        .map_err(|error| Error::Usage(format!("IMAGE_DIGEST: {error}")))
}

/// A variable of the environment that is set and not blank.
fn value(env: Env<'_>, name: &str) -> Option<String> {
    let text = env(name)?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Two comma-separated lists of one length.
fn pairs<'a>(
    from: &'a str,
    to: &'a str,
) -> Result<impl Iterator<Item = (&'a str, &'a str)>, Error> {
    let from: Vec<&str> = from.split(',').map(str::trim).collect();
    let to: Vec<&str> = to.split(',').map(str::trim).collect();
    if let Some(bad) = from
        .iter()
        .chain(&to)
        .find(|name| name.parse::<RepositoryName>().is_err())
    {
        return Err(Error::Usage(format!(
            "\"{}\" in STAGING_IMAGE_NAME or PROD_IMAGE_NAME is no repository name (lower-case letters, digits, and . _ - / between them)",
            shown(bad, 100)
        )));
    }
    if from.len() != to.len() {
        let text = format!(
            "STAGING_IMAGE_NAME names {} and PROD_IMAGE_NAME {}: they go in pairs",
            from.len(),
            to.len()
        );
        return Err(Error::Usage(text));
    }
    Ok(from.into_iter().zip(to))
}

/// Promotes.
///
/// # Errors
/// When a reference, the environment or the state folder is unusable; what goes wrong on the way is
/// in the report.
pub async fn promote(
    request: Promote,
    config: Option<&Config>,
    env: Env<'_>,
    observer: Observer,
    stop: CancellationToken,
) -> Result<Report, Error> {
    request.order()?.run(config, env, observer, stop).await
}

/// Promotes as the daemon. `None`: no route of its config leads to any of the destinations.
pub(crate) async fn promote_as_daemon(
    context: &Context,
    request: Promote,
    actor: Actor,
    stop: &Stop,
) -> Result<Option<Report>, Error> {
    request.order()?.run_as_daemon(context, actor, stop).await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Promote, String> {
        let variables: BTreeMap<String, String> = variables
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        Promote::default()
            .of_environment(&|name| variables.get(name).cloned())
            .map_err(|error| error.to_string())
    }

    const USUAL: [(&str, &str); 3] = [
        ("DOCKER_REG", "reg.example/"),
        ("STAGING_IMAGE_NAME", "staging-demo-app"),
        ("PROD_IMAGE_NAME", "prod-demo-app"),
    ];

    fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        USUAL.into_iter().chain(more.iter().copied()).collect()
    }

    #[test]
    fn the_variables_of_the_pipeline_step_are_enough() {
        let images = |more: &[(&str, &str)]| of(&with(more)).unwrap().images;
        let pair = |from: &str, to: &str| vec![(from.to_owned(), to.to_owned())];
        assert_eq!(
            images(&[]),
            pair(
                "reg.example/staging-demo-app:latest",
                "reg.example/prod-demo-app:latest"
            )
        );
        assert_eq!(
            images(&[("IMAGE_TAG", "v7"), ("PROD_REG", "prod.example")]),
            pair(
                "reg.example/staging-demo-app:v7",
                "prod.example/prod-demo-app:v7"
            )
        );
        let every = of(&with(&[("IMAGE_TAG", "*")])).unwrap();
        assert!(
            every.all_tags
                && every.images
                    == pair("reg.example/staging-demo-app", "reg.example/prod-demo-app")
        );
        let several = of(&with(&[
            ("STAGING_IMAGE_NAME", "a, b"),
            ("PROD_IMAGE_NAME", "c,d"),
        ]))
        .unwrap();
        assert_eq!(several.images.len(), 2);
        assert!(several.order().is_ok());
    }

    #[test]
    fn what_is_missing_or_wrong_in_the_environment_is_named() {
        let text = of(&[("DOCKER_REG", "reg.example"), ("STAGING_IMAGE_NAME", " ")]).unwrap_err();
        assert!(
            text.contains("STAGING_IMAGE_NAME, PROD_IMAGE_NAME") && !text.contains("DOCKER_REG"),
            "{text}"
        );
        for (more, words) in [
            ([("STAGING_IMAGE_NAME", "a,b")], "pairs"),
            ([("STAGING_IMAGE_NAME", "A")], "\"A\""),
            ([("IMAGE_TAG", "not a tag")], "IMAGE_TAG"),
            ([("IMAGE_DIGEST", "sha256:1")], "IMAGE_DIGEST"),
        ] {
            let text = of(&with(&more)).unwrap_err();
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn an_expected_digest_names_one_image() {
        let digest = Digest::sha256(b"");
        let request = |count: usize, all_tags: bool| Promote {
            images: vec![("reg.example/a".into(), "reg.example/b".into()); count],
            all_tags,
            expect: Some(digest),
            ..Promote::default()
        };
        assert!(request(1, false).order().is_ok());
        assert!(request(2, false).order().is_err());
        assert!(request(1, true).order().is_err());
        let tagged = Promote {
            images: vec![("reg.example/a:v1".into(), "reg.example/b".into())],
            all_tags: true,
            ..Promote::default()
        };
        assert!(tagged.order().is_err());
    }
}
