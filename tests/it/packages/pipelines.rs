//! What builds and takes releases: the workflows of a forge, and the stage of CodePipeline.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::docs::{files_in, read};
use crate::support::image::sha256;

/// The commands with which the shipped buildspec installs the program, in a file system where the
/// program is the only one in `/usr/local/bin`.
fn installed_by_pipeline(released: &Path, sum: &str, folder: &Path) -> Output {
    let spec = yaml(&read("config/codepipeline/buildspec.yml"));
    let commands: Vec<&str> = array(&spec, "/phases/install/commands")
        .iter()
        .map(|command| command.as_str().expect("a command"))
        .collect();
    let mut command = Command::new("bwrap");
    command.args(["--ro-bind", "/", "/", "--dev", "/dev", "--tmpfs", "/tmp"]);
    command.arg("--bind").arg(folder).arg("/usr/local/bin");
    command.arg("--ro-bind").arg(released).arg("/tmp/released");
    command
        .args(["--setenv", "BLOBFERRY_URL", "file:///tmp/released"])
        .args(["--setenv", "BLOBFERRY_SHA256", sum])
        .args(["--", "sh", "-e", "-c", &commands.join("\n")]);
    command.output().expect("bwrap is installed")
}

#[test]
fn the_pipeline_takes_the_released_program_by_its_sum_alone() {
    let scratch = TempDir::new().expect("a scratch directory");
    let released = scratch.path().join("released");
    let content = b"#!/bin/sh\necho blobferry\n";
    fs::write(&released, content).expect("a program");
    let folder = TempDir::new().expect("a scratch directory");
    let program = folder.path().join("blobferry");

    let other = "0".repeat(64);
    let refused = installed_by_pipeline(&released, &other, folder.path());
    assert!(!refused.status.success() && !program.exists());

    let sum = sha256(content);
    let sum = sum.trim_start_matches("sha256:");
    let taken = installed_by_pipeline(&released, sum, folder.path());
    let said = String::from_utf8_lossy(&taken.stderr);
    assert!(taken.status.success(), "{said}");
    assert_eq!(succeeded(&mut Command::new(&program)), "blobferry\n");
}

/// The commands of all steps of a workflow.
fn steps(workflow: &Value) -> Vec<String> {
    let jobs = workflow["jobs"].as_object().expect("jobs");
    let steps = jobs.values().flat_map(|job| array(job, "/steps"));
    steps
        .filter_map(|step| Some(step.get("run")?.as_str()?.to_owned()))
        .collect()
}

/// The permissions of the jobs that have their own.
fn own_permissions(workflow: &Value) -> Value {
    let jobs = workflow["jobs"].as_object().expect("jobs");
    jobs.iter()
        .filter_map(|(name, job)| Some((name.clone(), job.get("permissions")?.clone())))
        .collect()
}

#[test]
fn workflows_run_scripts_that_exist_and_only_publishing_may_write() {
    let workflows: BTreeMap<PathBuf, Value> = files_in(".github/workflows", ".yml")
        .into_iter()
        .map(|path| (path.clone(), yaml(&read(path))))
        .collect();
    for (path, workflow) in &workflows {
        let own = match path.ends_with("release.yml") {
            true => json!({"publish": {"contents": "write"}}),
            false => json!({}),
        };
        let path = path.display();
        assert_eq!(
            workflow["permissions"],
            json!({"contents": "read"}),
            "{path}"
        );
        assert_eq!(own_permissions(workflow), own, "{path}");
        let commands = steps(workflow);
        let scripts: Vec<&str> = commands
            .iter()
            .filter_map(|command| command.split_whitespace().next())
            .filter(|word| word.starts_with("packaging/") || word.starts_with(".ci/"))
            .collect();
        assert!(scripts.contains(&".ci/run"), "{path} runs no tests");
        for script in scripts {
            assert!(top().join(script).is_file(), "{path}: {script}");
        }
    }
    let release = &workflows[Path::new(".github/workflows/release.yml")];
    for part in ["portable", "sbom", "deb", "image", "chart"] {
        let folder = if part == "chart" { "helm" } else { part };
        let check = format!("packaging/{folder}/check");
        let commands = steps(release);
        assert!(commands.contains(&check), "a release skips {check}");
    }
}
