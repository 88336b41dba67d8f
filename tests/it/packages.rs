//! `packaging/build` makes of the program what it promises: a Debian package, a container image and
//! a bill of materials, here without compression.

mod chart;
mod deb;
mod image;
mod materials;
mod pipelines;
mod portable;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn succeeded(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("plain text")
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn json_file(path: &Path) -> Value {
    let content = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&content).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no text at {pointer}: {value}"))
}

fn array<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .unwrap_or_else(|| panic!("no list at {pointer}: {value}"))
}

/// A folder with what `packaging/build` made of the program of this test run.
struct Packages {
    scratch: TempDir,
}

impl Packages {
    fn built(what: &str) -> Packages {
        let scratch = TempDir::with_prefix("blobferry-packages-").expect("a scratch directory");
        let packages = Packages { scratch };
        let program = packages.path("program");
        succeeded(
            Command::new("strip")
                .arg("-o")
                .arg(&program)
                .arg(env!("CARGO_BIN_EXE_blobferry")),
        );
        let output = packages.build(what, &program);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        packages
    }

    fn build(&self, what: &str, program: &Path) -> Output {
        Command::new(top().join("packaging/build"))
            .arg(what)
            .env("BLOBFERRY_BINARY", program)
            .env("PACKAGES_OUT", self.path("out"))
            .env("PACKAGE_COMPRESSION", "none")
            .env("SOURCE_DATE_EPOCH", "1790000000")
            .output()
            .expect("packaging/build starts")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The only file with this ending.
    fn made(&self, ending: &str) -> PathBuf {
        let entries = fs::read_dir(self.path("out")).expect("the folder of the packages");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let found: Vec<PathBuf> = paths
            .filter(|path| path.to_string_lossy().ends_with(ending))
            .collect();
        assert_eq!(found.len(), 1, "{ending}: {found:?}");
        found[0].clone()
    }

    /// The Debian package's files, with its control files in `DEBIAN`.
    fn unpacked_deb(&self) -> PathBuf {
        let folder = self.path("unpacked");
        succeeded(
            Command::new("dpkg-deb")
                .arg("--raw-extract")
                .arg(self.made(".deb"))
                .arg(&folder),
        );
        folder
    }
}

#[test]
fn what_cannot_be_built_says_why() {
    let scratch = TempDir::new().expect("a scratch directory");
    let packages = Packages { scratch };
    let unknown = packages.build("wheel", Path::new("/bin/true"));
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(
        !unknown.status.success() && said.contains("no part wheel"),
        "{said}"
    );

    let script = top().join("packaging/build");
    let foreign = packages.build("deb", &script);
    let said = String::from_utf8_lossy(&foreign.stderr);
    assert!(
        !foreign.status.success() && said.contains("is no program for amd64 or arm64"),
        "{said}"
    );
}
