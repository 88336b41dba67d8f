//! The container image: an OCI image layout that other tools read, and that runs without rights.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::*;
use crate::support::image::sha256;
use crate::support::*;

/// The blob of a layout that a descriptor names.
fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    layout
        .join("blobs")
        .join(text(descriptor, "/digest").replace(':', "/"))
}

/// The layers of the only image of a layout, unpacked in their order.
fn root_of(layout: &Path, manifest: &Value, root: &Path) {
    fs::create_dir(root).expect("a folder");
    for layer in array(manifest, "/layers") {
        succeeded(
            Command::new("tar")
                .arg("--extract")
                .arg("--gzip")
                .arg("--no-same-owner")
                .arg("--file")
                .arg(blob(layout, layer))
                .arg("--directory")
                .arg(root),
        );
    }
}

/// The words that run the image's program in its root file system, which cannot be written, with
/// the variables of the image and the configs of a folder.
fn inside(root: &Path, configs: &Path, variables: &[Value]) -> Command {
    let mut command = Command::new("bwrap");
    command.arg("--ro-bind").arg(root).arg("/");
    command.arg("--ro-bind").arg(configs).arg("/etc/blobferry");
    command.args(["--tmpfs", "/var/lib/blobferry"]);
    command.args(["--proc", "/proc", "--dev", "/dev"]);
    command.args(["--unshare-user", "--uid", "65532", "--gid", "65532"]);
    command.args(["--unshare-net", "--cap-drop", "ALL", "--clearenv"]);
    for variable in variables {
        let (name, value) = variable
            .as_str()
            .and_then(|variable| variable.split_once('='))
            .expect("a variable");
        command.args(["--setenv", name, value]);
    }
    command.args(["--", "/usr/bin/blobferry"]);
    command
}

#[tokio::test]
async fn the_image_runs_without_rights_and_is_pushed_by_its_own_program() {
    let packages = Packages::built("image");
    let layout = packages.path("out/image");
    let index = json_file(&layout.join("index.json"));
    let descriptor = &index["manifests"][0];
    let manifest = json_file(&blob(&layout, descriptor));
    let config = json_file(&blob(&layout, &manifest["config"]));
    for part in array(&manifest, "/layers").iter().chain([descriptor]) {
        let content = fs::read(blob(&layout, part)).expect("a blob");
        assert_eq!(sha256(&content), text(part, "/digest"));
        assert_eq!(part["size"], content.len());
    }
    assert_eq!(text(&config, "/config/User"), "65532:65532");
    assert_eq!(array(&config, "/config/Entrypoint"), ["/usr/bin/blobferry"]);
    assert_eq!(array(&config, "/config/Cmd"), ["run"]);

    let root = packages.path("root");
    root_of(&layout, &manifest, &root);
    let variables = array(&config, "/config/Env");
    let said = succeeded(inside(&root, &top().join("config"), variables).arg("check"));
    assert!(said.contains("the config is right"), "{said}");
    for shell in ["usr/bin/sh", "usr/bin/bash"] {
        assert!(!root.join(shell).exists(), "the image has {shell}");
    }
    let authorities =
        fs::read_to_string(root.join("etc/ssl/certs/ca-certificates.crt")).expect("certificates");
    assert!(authorities.matches("BEGIN CERTIFICATE").count() > 50);

    let registry = Registry::distribution3();
    let reference = format!("{}/tools/blobferry:{VERSION}", registry.address());
    let source = format!("layout:{}:{VERSION}", layout.display());
    Ferry::bare()
        .run(&["copy", &source, &reference])
        .await
        .expect(0);
    assert_eq!(
        skopeo::raw_digest(&reference).await,
        text(descriptor, "/digest")
    );
}

/// An archive as another machine would have made it.
fn as_arm64(archive: &Path, folder: &Path) -> PathBuf {
    fs::create_dir(folder).expect("a folder");
    let mut unpack = Command::new("tar");
    succeeded(unpack.arg("-xf").arg(archive).arg("-C").arg(folder));
    let path = folder.join("index.json");
    let index = fs::read_to_string(&path).expect("an index");
    fs::write(&path, index.replace("\"amd64\"", "\"arm64\"")).expect("an index");
    let other = folder.with_extension("tar");
    let mut pack = Command::new("tar");
    succeeded(pack.arg("-cf").arg(&other).arg("-C").arg(folder).arg("."));
    other
}

/// The platforms of the image index in an archive.
fn platforms(archive: &Path) -> Vec<String> {
    let inspected = succeeded(
        Command::new("skopeo")
            .args(["inspect", "--raw"])
            .arg(format!("oci-archive:{}", archive.display())),
    );
    let index: Value = serde_json::from_str(&inspected).expect("JSON");
    array(&index, "/manifests")
        .iter()
        .map(|image| text(image, "/platform/architecture").to_owned())
        .collect()
}

#[test]
fn images_of_two_architectures_become_one() {
    let packages = Packages::built("image");
    let ours = packages.made(".oci.tar");
    let theirs = as_arm64(&ours, &packages.path("other"));
    let both = packages.path("both.oci.tar");
    let merge = |archives: &[&Path]| {
        Command::new(top().join("packaging/image/merge"))
            .arg(&both)
            .args(archives)
            .env("SOURCE_DATE_EPOCH", "1790000000")
            .output()
            .expect("packaging/image/merge starts")
    };
    assert!(!merge(&[&ours, &ours]).status.success());
    assert!(!both.exists());
    assert!(merge(&[&ours, &theirs]).status.success());
    assert_eq!(platforms(&both), ["amd64", "arm64"]);
}
