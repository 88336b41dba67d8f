//! `promote`: the step of a release pipeline, with or without a config file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::delegate;
use super::lines::Lines;
use super::pass::{Show, follow};
use super::progress::ProgressMode;
use super::remarks::Said;
use super::{Arguments, Failure, environment, files, junit};
use crate::admin::CopyRequest;
use crate::commands;
use crate::fault::shown;
use crate::job::{Outcome, Report, Settled};
use crate::oci::Digest;

/// Promote images: the pipeline step, which needs no config file
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry promote staging.example/app:v7 prod.example/app:v7
  blobferry promote staging.example/app prod.example/app --all-tags
  DOCKER_REG=… STAGING_IMAGE_NAME=staging-demo-app PROD_IMAGE_NAME=prod-demo-app \\
    blobferry promote --report report.json --imagedefinitions imagedefinitions.json

Without SRC and DST the environment says what to promote: DOCKER_REG (or
STAGING_REG and PROD_REG), STAGING_IMAGE_NAME and PROD_IMAGE_NAME
(comma-separated, in pairs), IMAGE_TAG (absent: latest; *: every tag),
IMAGE_DIGEST (the digest that is expected), AWS_REGION. With
AWS_ENDPOINT_URL_ECR that control plane is asked; where it is a loopback or
private address (an emulator), registries at such addresses count as ECR.
References are written as for copy, and the config and a running daemon are used
in the same way. An explicit act: latest moves; any other tag
that names another digest is a conflict unless --replace names that digest.")]
pub(super) struct Promote {
    /// What to promote, and where to, in pairs
    #[arg(value_name = "SRC DST")]
    images: Vec<String>,
    /// Promote every tag
    #[arg(long)]
    all_tags: bool,
    /// Promote only if SRC names this digest
    #[arg(long, value_name = "DIGEST")]
    expect: Option<Digest>,
    /// The digest that DST may lose
    #[arg(long, value_name = "DIGEST")]
    replace: Option<Digest>,
    /// Write the report to this file, whatever came of it
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the report as JUnit XML for a build server, whatever came of it
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write imagedefinitions.json for a deploy stage, by digest, if all went well
    #[arg(long, value_name = "FILE", conflicts_with_all = ["all_tags", "dry_run"])]
    imagedefinitions: Option<PathBuf>,
    /// The container that takes the image of a production repository; default: the last part of its
    /// name
    #[arg(long, value_name = "REPOSITORY=NAME", value_parser = container, requires = "imagedefinitions")]
    container: Vec<(String, String)>,
    /// Print what would be done, and touch nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    said: Said,
}

fn container(text: &str) -> Result<(String, String), String> {
    let (repository, name) = text.split_once('=').ok_or("is not REPOSITORY=NAME")?;
    if repository.is_empty() || name.is_empty() {
        return Err("is not REPOSITORY=NAME".into());
    }
    Ok((repository.into(), name.into()))
}

impl Promote {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
        mode: ProgressMode,
    ) -> Result<u8, Failure> {
        let request = self.request(arguments)?;
        if self.imagedefinitions.is_some() && request.all_tags {
            return Err(Failure::usage(
                "imagedefinitions names one image for each container: promote one tag, not all",
            ));
        }
        if self.imagedefinitions.is_some() {
            self.containers(
                request
                    .images
                    .iter()
                    .map(|(_, destination)| destination.as_str()),
            )?;
        }
        let options = arguments.repeated();
        let show = Show::new(self.json, !request.all_tags, &options);
        let commands::Promote {
            images,
            all_tags,
            expect,
            replace,
            dry_run,
            ..
        } = request.clone();
        let delegated = CopyRequest {
            copy: false,
            images,
            all_tags,
            expect,
            replace,
            dry_run,
            remarks: self.said.remarks(),
        };
        let report = match delegate::by_daemon(arguments, &delegated, mode.clone(), show).await? {
            Some(report) => {
                show.report(lines, &report);
                report
            }
            None => {
                let config = delegate::config(arguments)?;
                follow(show, mode, lines, |observer, stop| {
                    commands::promote(request, config.as_ref(), &environment, observer, stop)
                })
                .await?
            }
        };
        if let Some(path) = &self.report {
            write_json(path, &report)?;
        }
        if let Some(path) = &self.junit {
            files::write(path, junit::document(&report).as_bytes())?;
        }
        if let Some(path) = self
            .imagedefinitions
            .as_ref()
            .filter(|_| report.exit_code == 0)
        {
            write_json(path, &self.definitions(&report))?;
        }
        Ok(report.exit_code)
    }

    fn request(&self, arguments: &Arguments) -> Result<commands::Promote, Failure> {
        let request = commands::Promote {
            images: self
                .images
                .chunks_exact(2)
                .map(|pair| (pair[0].clone(), pair[1].clone()))
                .collect(),
            all_tags: self.all_tags,
            expect: self.expect,
            replace: self.replace,
            dry_run: self.dry_run,
            state: arguments.state.clone(),
            remarks: self.said.remarks(),
        };
        match self.images.len() {
            0 => request
                .of_environment(&environment)
                .map_err(|error| Failure::new(2, error)),
            odd if odd % 2 == 1 => Err(Failure::usage(format!(
                "\"{}\" has no destination: SRC and DST go in pairs",
                shown(&self.images[odd - 1], 300)
            ))),
            _ => Ok(request),
        }
    }

    /// What production holds now, by digest, under the names of containers.
    fn definitions(&self, report: &Report) -> Vec<Definition> {
        report
            .jobs
            .iter()
            .filter(|job| matches!(job.result, Outcome::Promoted | Outcome::UpToDate))
            .filter_map(|job| self.definition(job))
            .collect()
    }

    fn definition(&self, job: &Settled) -> Option<Definition> {
        let repository = repository_of(&job.destination);
        let digest = job.digest?;
        Some(Definition {
            name: self.container_of(repository).into(),
            image_uri: format!("{repository}@{digest}"),
        })
    }

    /// Before anything moves: each container gets one image, and each one that is named gets any.
    fn containers<'a>(&self, destinations: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
        let repositories: Vec<&str> = destinations.map(repository_of).collect();
        let mut names = BTreeSet::new();
        if let Some(twice) = repositories
            .iter()
            .map(|repository| self.container_of(repository))
            .find(|name| !names.insert(*name))
        {
            return Err(Failure::usage(format!(
                "the container {twice} would get two images: give them names of their own (--container REPOSITORY=NAME)"
            )));
        }
        let unknown = self.container.iter().find(|(key, _)| {
            !repositories
                .iter()
                .any(|repository| is_named(repository, key))
        });
        match unknown {
            Some((key, _)) => Err(Failure::usage(format!(
                "--container names {key}, to which nothing is promoted"
            ))),
            None => Ok(()),
        }
    }

    fn container_of<'a>(&'a self, repository: &'a str) -> &'a str {
        let named = self
            .container
            .iter()
            .find(|(key, _)| is_named(repository, key))
            .map(|(_, name)| name.as_str());
        named.unwrap_or_else(|| {
            repository
                .rsplit_once('/')
                .map_or(repository, |(_, last)| last)
        })
    }
}

/// A reference without scheme, tag and digest.
fn repository_of(reference: &str) -> &str {
    let bare = reference
        .split_once("://")
        .map_or(reference, |(_, rest)| rest);
    let bare = bare.split_once('@').map_or(bare, |(bare, _)| bare);
    match bare.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => bare,
    }
}

/// Whether `key` is the repository, with its registry or without.
fn is_named(repository: &str, key: &str) -> bool {
    repository == key
        || repository
            .split_once('/')
            .is_some_and(|(_, path)| path == key)
}

/// One entry of `imagedefinitions.json`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Definition {
    name: String,
    #[serde(rename = "imageUri")]
    image_uri: String,
}

/// Writes `content` as JSON for people and programs.
fn write_json(path: &Path, content: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(content).expect("plain data is JSON");
    text.push(b'\n');
    files::write(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output;

    fn with_containers(container: &[(&str, &str)]) -> Promote {
        Promote {
            images: vec![],
            all_tags: false,
            expect: None,
            replace: None,
            report: None,
            junit: None,
            imagedefinitions: None,
            container: container
                .iter()
                .map(|(key, name)| (key.to_string(), name.to_string()))
                .collect(),
            dry_run: false,
            json: false,
            said: Said::default(),
        }
    }

    #[test]
    fn each_container_gets_one_image() {
        let check = |container: &[(&str, &str)], destinations: &[&str]| {
            with_containers(container)
                .containers(destinations.iter().copied())
                .is_ok()
        };
        let a = "prod.example:5000/a/app:v1";
        let b = "https://prod.example:5000/b/app@sha256:00";
        assert!(check(&[], &[a, "prod.example/other"]));
        assert!(!check(&[], &[a, b]));
        assert!(check(&[("b/app", "second")], &[a, b]));
        assert!(check(&[("prod.example:5000/a/app", "first")], &[a, b]));
        assert!(!check(&[("b/app", "app")], &[a, b]));
        assert!(
            !check(&[("c/app", "web")], &[a]),
            "a name that nothing has is a slip"
        );
    }

    #[test]
    fn containers_take_images_by_digest() {
        let named = |container: &[(&str, &str)]| {
            let promote = with_containers(container);
            let mut job = output::tests::job(Outcome::Promoted);
            job.destination = "prod.example:5000/team/prod-app:v7".into();
            job.digest = Some(Digest::sha256(b"image"));
            promote.definition(&job).unwrap()
        };
        assert_eq!(named(&[]).name, "prod-app");
        assert_eq!(named(&[("team/prod-app", "web")]).name, "web");
        assert_eq!(
            named(&[]).image_uri,
            format!(
                "prod.example:5000/team/prod-app@{}",
                Digest::sha256(b"image")
            )
        );
    }
}
