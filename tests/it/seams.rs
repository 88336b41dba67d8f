//! What the simulator needs of the code, where no lint sees to it.

use std::fs;
use std::path::{Path, PathBuf};

/// A random choice between branches is not repeatable.
#[test]
fn every_select_takes_its_branches_in_a_fixed_order() {
    let mut selects = 0;
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        for (before, after) in text
            .match_indices("select! {")
            .map(|(at, found)| text.split_at(at + found.len()))
        {
            selects += 1;
            let line = before.lines().count();
            assert!(
                after.trim_start().starts_with("biased;"),
                "{}:{line}: a select without `biased`",
                file.display()
            );
        }
    }
    assert!(
        selects > 10,
        "found {selects} only: do they look otherwise now?"
    );
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = entries.partition(|path| path.is_dir());
    folders
        .iter()
        .flat_map(|folder| sources(folder))
        .chain(files)
        .collect()
}
