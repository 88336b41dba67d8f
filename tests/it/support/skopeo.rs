//! skopeo, the second opinion: another program reads what blobferry wrote.

use std::process::Output;

use tempfile::TempDir;
use tokio::process::Command;

use super::image::sha256;
use super::registry::installed;

/// `skopeo inspect --raw` of `address/repository:tag` in a registry that speaks plain HTTP: the
/// digest of what it says.
pub async fn raw_digest(reference: &str) -> String {
    let inspected = run(&[
        "inspect",
        "--raw",
        "--tls-verify=false",
        &format!("docker://{reference}"),
    ])
    .await;
    assert!(
        inspected.status.success(),
        "skopeo inspect {reference}: {}",
        String::from_utf8_lossy(&inspected.stderr)
    );
    sha256(&inspected.stdout)
}

/// `skopeo copy --all` between two references with their transports (`docker://…`, `oci:…`,
/// `dir:…`).
pub async fn copy(source: &str, destination: &str) {
    let copied = run(&[
        "copy",
        "--all",
        "--preserve-digests",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        source,
        destination,
    ])
    .await;
    assert!(
        copied.status.success(),
        "skopeo copy {source} {destination}: {}",
        String::from_utf8_lossy(&copied.stderr)
    );
}

async fn run(arguments: &[&str]) -> Output {
    let home = TempDir::with_prefix("blobferry-skopeo-").expect("a scratch directory");
    let mut command = Command::new(installed(&["skopeo"], "apt-get install skopeo"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home.path())
        .env("TMPDIR", home.path());
    command
        .arg("--insecure-policy")
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .expect("skopeo runs")
}

/// `skopeo sync --src yaml` of the file to a registry that speaks plain HTTP.
pub async fn sync(file: &str, destination: &str, more: &[&str]) {
    let fixed = ["sync", "--all", "--src", "yaml", "--dest", "docker"];
    let insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let arguments = [&fixed[..], &insecure, more, &[file, destination]].concat();
    let synced = run(&arguments).await;
    assert!(
        synced.status.success(),
        "skopeo sync {file} {destination}: {}",
        String::from_utf8_lossy(&synced.stderr)
    );
}
