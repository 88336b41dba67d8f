//! The Debian package holds what an operator needs, and its scripts spare the ledger.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::*;

#[test]
fn the_debian_package_holds_all_that_an_operator_needs() {
    let packages = Packages::built("deb");
    let root = packages.unpacked_deb();

    let control = fs::read_to_string(root.join("DEBIAN/control")).expect("a control file");
    assert!(
        control.contains(&format!("\nVersion: {VERSION}-1\n")),
        "{control}"
    );
    assert!(control.contains("\nDepends: libc6 (>= 2."), "{control}");
    let conffiles = fs::read_to_string(root.join("DEBIAN/conffiles")).expect("conffiles");
    assert_eq!(conffiles, "/etc/blobferry/blobferry.yaml\n");

    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/blobferry.service"))
        .expect("the unit");
    assert!(
        unit.contains("ExecStart=/usr/bin/blobferry run -c /etc/blobferry/blobferry.yaml"),
        "{unit}"
    );
    for path in [
        "usr/share/man/man1/blobferry.1.gz",
        "usr/share/man/man1/blobferry-promote.1.gz",
        "usr/share/bash-completion/completions/blobferry",
        "usr/share/zsh/vendor-completions/_blobferry",
        "usr/share/fish/vendor_completions.d/blobferry.fish",
        "usr/lib/sysusers.d/blobferry.conf",
        "usr/share/doc/blobferry/copyright",
        "usr/share/doc/blobferry/sbom.cdx.json.gz",
        "usr/share/doc/blobferry/licences.txt.gz",
    ] {
        assert!(root.join(path).is_file(), "the package has no {path}");
    }
    succeeded(
        Command::new("md5sum")
            .args(["--check", "--quiet", "DEBIAN/md5sums"])
            .current_dir(&root),
    );

    let listed = succeeded(
        Command::new("dpkg-deb")
            .arg("--contents")
            .arg(packages.made(".deb")),
    );
    let foreign: Vec<&str> = listed
        .lines()
        .filter(|line| !line.contains(" root/root ") || line.contains("rwxrwx"))
        .collect();
    assert!(foreign.is_empty(), "{foreign:#?}");
    let installed = root.join("usr/bin/blobferry");
    let said = succeeded(Command::new(installed).arg("--version"));
    assert!(said.starts_with(&format!("blobferry {VERSION} ")), "{said}");

    let first = fs::read(packages.made(".deb")).expect("the package");
    let output = packages.build("deb", &packages.path("program"));
    assert!(output.status.success());
    let second = fs::read(packages.made(".deb")).expect("the package");
    assert!(first == second, "the same input gave another package");
}

/// Runs a maintainer script that sees `var` as `/var` and can write nowhere else.
fn maintain(script: &Path, action: &str, var: &Path) {
    let mut command = Command::new("bwrap");
    command.args(["--ro-bind", "/", "/", "--dev", "/dev", "--tmpfs", "/run"]);
    command.arg("--ro-bind").arg(script).arg("/run/script");
    command.arg("--bind").arg(var).arg("/var");
    succeeded(command.args(["--", "sh", "/run/script", action]));
}

#[test]
fn only_a_purge_takes_the_ledger_away() {
    let script = top().join("packaging/deb/postrm");
    let var = TempDir::new().expect("a scratch directory");
    let state = var.path().join("lib/private/blobferry");
    let log = var.path().join("log/private/blobferry");
    let other = var.path().join("lib/private/other");
    for folder in [&state, &log, &other] {
        fs::create_dir_all(folder).expect("a state folder");
        fs::write(folder.join("ledger.db"), "rows").expect("a ledger");
    }
    let link = var.path().join("lib/blobferry");
    std::os::unix::fs::symlink("private/blobferry", &link).expect("a link as systemd makes it");

    maintain(&script, "remove", var.path());
    maintain(&script, "upgrade", var.path());
    assert!(link.join("ledger.db").exists() && log.exists());

    maintain(&script, "purge", var.path());
    assert!(!state.exists() && !link.is_symlink() && !log.exists());
    assert!(other.join("ledger.db").exists());
}
