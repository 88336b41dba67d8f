//! The portable program: which glibc it asks for, and that it promotes. What `packaging/build
//! portable` left in `target/packages` is tried where it is there; nothing is built here.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::*;
use crate::support::*;

/// A function of `packaging/common.sh`.
fn shared(call: &str, program: &Path) -> Output {
    let script = format!(". packaging/common.sh; {call}");
    let mut command = Command::new("bash");
    command.args(["-euc", &script, "bash"]).arg(program);
    let output = command.current_dir(top()).output();
    output.expect("bash runs")
}

/// The portable programs of this version that were built, with their architectures.
fn built() -> Vec<(&'static str, PathBuf)> {
    let of = |architecture| {
        let name = format!("target/packages/blobferry-{VERSION}-linux-{architecture}");
        (architecture, top().join(name))
    };
    let programs = ["amd64", "arm64"].map(of);
    programs
        .into_iter()
        .filter(|(_, program)| program.exists())
        .collect()
}

#[test]
fn a_program_for_this_machines_own_glibc_is_not_portable() {
    let ours = Path::new(env!("CARGO_BIN_EXE_blobferry"));
    let newest = shared("glibc_of \"$1\"", ours);
    let newest = String::from_utf8(newest.stdout).expect("plain text");
    let minor = newest.trim().strip_prefix("2.").expect("glibc 2");
    let minor: u32 = minor.parse().expect("a number");
    assert!(minor > 17, "{newest}");

    let refused = shared("at_most_glibc \"$1\" \"$oldest_glibc\"", ours);
    let said = String::from_utf8_lossy(&refused.stderr);
    let words = format!("needs glibc {}, not 2.17", newest.trim());
    assert!(!refused.status.success() && said.contains(&words), "{said}");
    let taken = shared(&format!("at_most_glibc \"$1\" {}", newest.trim()), ours);
    assert!(taken.status.success());
}

#[test]
fn what_was_built_asks_for_no_glibc_after_2_17() {
    for (architecture, program) in built() {
        let taken = shared("at_most_glibc \"$1\" \"$oldest_glibc\"", &program);
        let said = String::from_utf8_lossy(&taken.stderr);
        assert!(taken.status.success(), "{said}");
        let found = shared("elf_arch \"$1\"", &program);
        let found = String::from_utf8_lossy(&found.stdout);
        assert_eq!(found.trim(), architecture);
    }
}

#[tokio::test]
async fn what_was_built_for_this_machine_promotes() {
    let ours = String::from_utf8(shared("machine_arch", Path::new("")).stdout);
    let ours = ours.expect("plain text");
    for (_, program) in built().into_iter().filter(|(name, _)| *name == ours.trim()) {
        let said = succeeded(Command::new(&program).arg("--version"));
        assert!(said.starts_with(&format!("blobferry {VERSION} ")), "{said}");
        let [staging, production] = [Registry::distribution2(), Registry::distribution2()];
        let image = Image::oci(1, &[100_000]);
        staging.client().push("app", "v1", &image).await;
        let from = format!("{}/app:v1", staging.address());
        let to = format!("{}/app:v1", production.address());
        let line = format!("{} promote {from} {to}", program.display());
        let code = Ferry::bare().shell(&line).await;
        assert_eq!(code, 0);
        production.client().assert_holds("app", "v1", &image).await;
    }
}

#[test]
fn a_program_for_another_architecture_says_what_is_missing() {
    let unknown = Command::new(top().join("packaging/portable/build"))
        .arg("riscv64")
        .output()
        .expect("packaging/portable/build starts");
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(
        !unknown.status.success() && said.contains("no portable program for riscv64"),
        "{said}"
    );
}
