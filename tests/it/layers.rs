//! The table of layers in `src/lib.rs` is what the code does: a module uses lower layers alone, and
//! no two rooms, nor two files of one room, use each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// The modules that stand beside the layers, each with the layer that it may use.
const BESIDE: [(&str, u8); 16] = [
    ("backoff", 0),
    ("body", 0),
    ("byte_threads", 0),
    ("clock", 0),
    ("glob", 0),
    ("metrics", 0),
    ("random", 0),
    ("service", 0),
    ("single_flight", 0),
    ("sqlite", 0),
    ("state", 0),
    ("telemetry", 0),
    ("tls", 0),
    ("token_bucket", 0),
    ("user", 0),
    ("week", 0),
];

/// One source file without its comments and tests.
struct Source {
    /// The path below `src`, such as `look/destination.rs`.
    path: PathBuf,
    code: String,
}

impl Source {
    /// The folder or file right below `src`.
    fn room(&self) -> String {
        let first = self.path.components().next().expect("a path has a part");
        stem(Path::new(first.as_os_str()))
    }
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .expect("a file has a name")
        .to_string_lossy()
        .into_owned()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All sources but tests.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    collect(&root(), &mut found);
    found
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        let name = stem(&path);
        if path.is_dir() {
            if name != "tests" {
                collect(&path, found);
            }
        } else if name != "tests" && name != "main" && name != "lib" {
            let text = fs::read_to_string(&path).expect("UTF-8");
            found.push(Source {
                path: path.strip_prefix(root()).expect("below src").to_owned(),
                code: code_of(&text),
            });
        }
    }
}

/// The text without comments and without its test module, which stands last in a file.
fn code_of(text: &str) -> String {
    let end = Regex::new(r"(?m)^#\[cfg\(test\)\]\n(pub(\(\w+\))? )?mod \w+ \{").expect("a pattern");
    let code = end.find(text).map_or(text, |found| &text[..found.start()]);
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |code, line| code + line + "\n")
}

/// The layer of each module, from the table in `src/lib.rs`.
fn layers() -> BTreeMap<String, u8> {
    let text = fs::read_to_string(root().join("lib.rs")).expect("UTF-8");
    let row = Regex::new(r"(?m)^//! \| (\d) \| ([^|]*) \|").expect("a pattern");
    let name = Regex::new(r"\[`(\w+)`\]").expect("a pattern");
    let mut layers = BTreeMap::new();
    for found in row.captures_iter(&text) {
        let layer = found[1].parse().expect("a digit");
        for module in name.captures_iter(&found[2]) {
            layers.insert(module[1].to_owned(), layer);
        }
    }
    layers
}

#[test]
fn every_module_is_in_the_table_or_beside_it() {
    let text = fs::read_to_string(root().join("lib.rs")).expect("UTF-8");
    let declared = Regex::new(r"(?m)^pub mod (\w+);").expect("a pattern");
    let mut known: BTreeSet<String> = layers().into_keys().collect();
    known.extend(BESIDE.iter().map(|(name, _)| (*name).to_owned()));
    let modules: BTreeSet<String> = declared
        .captures_iter(&text)
        .map(|found| found[1].to_owned())
        .collect();
    assert_eq!(modules, known);
}

#[test]
fn a_module_uses_only_lower_layers() {
    let layers = layers();
    let mut edges = BTreeSet::new();
    for source in sources() {
        assert!(
            !source.code.contains("crate::{"),
            "{}: one path on each `use` line",
            source.path.display()
        );
        for other in references(&module(&source.path), &source.code) {
            let (from, to) = diverge(Path::new(&source.room()), &other);
            edges.insert((stem(&from), stem(&to)));
        }
    }
    let wrong: BTreeSet<&(String, String)> = edges
        .iter()
        .filter(|(from, to)| from != to && !is_lower(&layers, from, to))
        .collect();
    assert!(wrong.is_empty(), "the first uses the second: {wrong:#?}");
}

/// Whether a module may use another. What is in no layer is beside them, or an item of the crate's
/// root.
fn is_lower(layers: &BTreeMap<String, u8>, from: &str, to: &str) -> bool {
    let Some(theirs) = layers.get(to) else {
        return true;
    };
    match layers.get(from) {
        Some(ours) => theirs <= ours,
        None => BESIDE.contains(&(from, *theirs)),
    }
}

/// A folder and the files in it: a parent may use its children and a child what its parent
/// declares; siblings that use each other are one topic in two places.
#[test]
fn no_two_modules_use_each_other() {
    let sources = sources();
    let modules: BTreeSet<PathBuf> = sources
        .iter()
        .flat_map(|source| {
            module(&source.path)
                .ancestors()
                .map(Path::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    let mut edges: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
    for source in &sources {
        let own = module(&source.path);
        for other in references(&own, &source.code) {
            let (from, to) = diverge(&own, &other);
            if from != to && modules.contains(&from) && modules.contains(&to) {
                edges.entry(from).or_default().insert(to);
            }
        }
    }
    assert!(
        edges.len() > 50,
        "found {} only: do the paths look otherwise now?",
        edges.len()
    );
    let circles: BTreeSet<String> = edges
        .keys()
        .filter(|start| reaches(&edges, start, start))
        .map(|start| start.display().to_string())
        .collect();
    assert!(
        circles.is_empty(),
        "these modules are in circles: {circles:#?}"
    );
}

/// The paths that code of the module `own` names, as folders below `src`.
fn references(own: &Path, code: &str) -> Vec<PathBuf> {
    let code = without_groups(code);
    let path = Regex::new(r"\b(crate|super|self)((?:::\w+)+)").expect("a pattern");
    path.captures_iter(&code)
        .map(|found| {
            let start = match &found[1] {
                "crate" => PathBuf::new(),
                "super" => own.parent().unwrap_or(Path::new("")).to_owned(),
                _ => own.to_owned(),
            };
            found[2].split("::").filter(|part| !part.is_empty()).fold(
                start,
                |at, part| match part {
                    "super" => at.parent().unwrap_or(Path::new("")).to_owned(),
                    part => at.join(part),
                },
            )
        })
        .collect()
}

/// `super::{one, two::Three}` as `super::one super::two::Three`.
fn without_groups(code: &str) -> String {
    let group = Regex::new(r"\b((?:crate|super|self)(?:::\w+)*)::\{([^{}]*)\}").expect("a pattern");
    let expanded = group.replace_all(code, |found: &regex::Captures<'_>| {
        found[2]
            .split(',')
            .map(|name| format!("{}::{} ", &found[1], name.trim()))
            .collect::<String>()
    });
    expanded.into_owned()
}

/// The two paths up to where they part; equal where one lies within the other.
fn diverge(one: &Path, other: &Path) -> (PathBuf, PathBuf) {
    let mut at = PathBuf::new();
    for (a, b) in one.components().zip(other.components()) {
        if a != b {
            return (at.join(a), at.join(b));
        }
        at.push(a);
    }
    (at.clone(), at)
}

/// `look/destination.rs` and `look/destination/mod.rs` are the module `look/destination`.
fn module(path: &Path) -> PathBuf {
    let path = path.with_extension("");
    if path.ends_with("mod") {
        return path.parent().expect("a folder").to_owned();
    }
    path
}

fn reaches(edges: &BTreeMap<PathBuf, BTreeSet<PathBuf>>, from: &Path, to: &Path) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![from.to_owned()];
    while let Some(next) = open.pop() {
        for other in edges.get(&next).into_iter().flatten() {
            if other == to {
                return true;
            }
            if seen.insert(other.clone()) {
                open.push(other.clone());
            }
        }
    }
    false
}
