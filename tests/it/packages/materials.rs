//! The bill of materials names the crates of the binary.

use std::collections::BTreeSet;
use std::fs;

use regex::Regex;

use super::*;
use crate::docs::read;

/// The packages of Cargo.lock.
fn locked() -> BTreeSet<String> {
    let lock = read("Cargo.lock");
    let entry = Regex::new("name = \"(.+)\"\nversion = \"(.+)\"").expect("an expression");
    entry
        .captures_iter(&lock)
        .map(|found| format!("pkg:cargo/{}@{}", &found[1], &found[2]))
        .collect()
}

#[test]
fn the_bill_of_materials_names_what_is_linked_and_nothing_else() {
    let packages = Packages::built("sbom");
    let bill = json_file(&packages.made(".cdx.json"));
    assert_eq!(text(&bill, "/bomFormat"), "CycloneDX");
    assert_eq!(text(&bill, "/metadata/component/version"), VERSION);

    let components = array(&bill, "/components");
    let named: BTreeSet<String> = components
        .iter()
        .map(|component| text(component, "/bom-ref").to_owned())
        .collect();
    assert_eq!(named.len(), components.len(), "one is named twice");
    let locked = locked();
    let unknown: Vec<&String> = named.difference(&locked).collect();
    assert!(unknown.is_empty(), "not in Cargo.lock: {unknown:?}");
    let names: BTreeSet<&str> = components
        .iter()
        .map(|component| text(component, "/name"))
        .collect();
    for linked in ["tokio", "rustls", "libsqlite3-sys", "aws-sdk-ecr"] {
        assert!(names.contains(linked), "{linked} is missing");
    }
    for other in ["proptest", "divan", "rcgen", "windows-sys"] {
        assert!(!names.contains(other), "{other} is in no binary for Linux");
    }
    for component in components {
        let name = text(component, "/name");
        assert_eq!(text(component, "/hashes/0/content").len(), 64, "{name}");
        assert!(!text(component, "/licenses/0/expression").is_empty());
    }

    let program = text(&bill, "/metadata/component/bom-ref");
    for dependency in array(&bill, "/dependencies") {
        let source = text(dependency, "/ref");
        assert!(source == program || named.contains(source), "{source}");
        for target in array(dependency, "/dependsOn") {
            let target = target.as_str().expect("a reference");
            assert!(named.contains(target), "{source} needs {target}");
        }
    }

    let licences = fs::read_to_string(packages.made("-licences.txt")).expect("licence texts");
    for component in components {
        let name = format!(
            "{} {}",
            text(component, "/name"),
            text(component, "/version")
        );
        assert!(licences.contains(&name), "no licence of {name}");
    }
}
