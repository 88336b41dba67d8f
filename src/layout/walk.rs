//! Which repositories a folder of layouts holds.
//!
//! Every folder with an `oci-layout` file is one, at most 16 folders deep. Hidden folders, the
//! `blobs` of a layout and symbolic links are not entered.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::endpoint::{Cursor, Page};
use crate::fault::Fault;
use crate::oci::RepositoryName;

use super::store::{BLOBS, MARK, fault};

/// Most parts of a name that is found.
const MAX_DEPTH: usize = 16;
/// Most folders that are entered for one page.
const MAX_FOLDERS: usize = 100_000;
/// Names on one page.
const PAGE: usize = 1000;

/// The repositories after `cursor`, in the order of their names. `None`: there is no such folder.
pub(super) fn repositories(
    root: &Path,
    cursor: Option<&Cursor>,
) -> Result<Option<Page<RepositoryName>>, Fault> {
    let after: Option<RepositoryName> = match cursor.map(|cursor| cursor.0.parse()).transpose() {
        Ok(after) => after,
        Err(_) => {
            return Err(Fault::rejected(format!(
                "{}: the list of repositories has no such page",
                root.display()
            )));
        }
    };
    if !is_folder(root)? {
        return Ok(None);
    }
    if is_layout(root) {
        return Err(Fault::rejected(format!(
            "{} is one image layout, not a folder of layouts: name its parent folder, or copy from layout:PATH:TAG",
            root.display()
        )));
    }
    let (mut names, invalid) = walk(root)?;
    names.retain(|name| after.as_ref().is_none_or(|after| name > after));
    names.sort_unstable();
    let more = names.len() > PAGE;
    names.truncate(PAGE);
    let next = names
        .last()
        .filter(|_| more)
        .map(|last| Cursor(last.to_string()));
    // What has no valid name is counted once, on the first page.
    let invalid = if after.is_none() { invalid } else { 0 };
    Ok(Some(Page {
        entries: names,
        invalid,
        next,
    }))
}

fn walk(root: &Path) -> Result<(Vec<RepositoryName>, usize), Fault> {
    let mut names = Vec::new();
    let mut invalid = 0;
    let mut entered = 0;
    let mut ahead: Vec<(PathBuf, Option<RepositoryName>)> = vec![(root.into(), None)];
    while let Some((folder, above)) = ahead.pop() {
        entered += 1;
        if entered > MAX_FOLDERS {
            return Err(Fault::rejected(format!(
                "{} holds more than {MAX_FOLDERS} folders: too many to list",
                root.display()
            )));
        }
        for path in folders_in(&folder)? {
            let Some(name) = child_name(above.as_ref(), &path) else {
                invalid += usize::from(is_layout(&path));
                continue;
            };
            if is_layout(&path) {
                names.push(name.clone());
            }
            if name.as_str().split('/').count() < MAX_DEPTH {
                ahead.push((path, Some(name)));
            }
        }
    }
    Ok((names, invalid))
}

fn child_name(above: Option<&RepositoryName>, path: &Path) -> Option<RepositoryName> {
    let part = path.file_name()?.to_str()?;
    match above {
        Some(above) => format!("{above}/{part}").parse().ok(),
        None => part.parse().ok(),
    }
}

fn folders_in(folder: &Path) -> Result<Vec<PathBuf>, Fault> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fault("list", folder, error)),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| fault("list", folder, error))?;
        let name = entry.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".");
        if !hidden && name != BLOBS && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn is_folder(path: &Path) -> Result<bool, Fault> {
    match fs::metadata(path) {
        Ok(facts) if facts.is_dir() => Ok(true),
        Ok(_) => Err(Fault::rejected(format!(
            "{} is not a folder",
            path.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(fault("look at", path, error)),
    }
}

fn is_layout(folder: &Path) -> bool {
    fs::symlink_metadata(folder.join(MARK)).is_ok_and(|facts| facts.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(root: &Path, path: &str) {
        fs::create_dir_all(root.join(path)).unwrap();
        fs::write(root.join(path).join(MARK), "{}").unwrap();
    }

    fn names(page: &Page<RepositoryName>) -> Vec<&str> {
        page.entries.iter().map(RepositoryName::as_str).collect()
    }

    #[test]
    fn layouts_are_found_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        for path in [
            "team/app",
            "team/app/web",
            "base",
            "Wrong",
            ".hidden",
            "base/blobs/x",
        ] {
            layout(root.path(), path);
        }
        layout(outside.path(), "secret");
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        std::os::unix::fs::symlink(root.path(), root.path().join("loop")).unwrap();
        fs::create_dir(root.path().join("empty")).unwrap();
        let page = repositories(root.path(), None).unwrap().unwrap();
        assert_eq!(names(&page), ["base", "team/app", "team/app/web"]);
        assert_eq!((page.invalid, page.next), (1, None));
    }

    #[test]
    fn pages_follow_one_another() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..=PAGE {
            layout(root.path(), &format!("app{number:04}"));
        }
        let first = repositories(root.path(), None).unwrap().unwrap();
        let second = repositories(root.path(), first.next.as_ref())
            .unwrap()
            .unwrap();
        assert_eq!(
            (first.entries.len(), names(&second)),
            (PAGE, vec!["app1000"])
        );
        assert_eq!(second.next, None);
    }

    #[test]
    fn a_missing_folder_is_a_value_and_a_wrong_one_an_error() {
        let root = tempfile::tempdir().unwrap();
        assert!(
            repositories(&root.path().join("none"), None)
                .unwrap()
                .is_none()
        );
        assert!(repositories(root.path(), Some(&Cursor("../x".into()))).is_err());
        layout(root.path(), "");
        assert!(
            repositories(root.path(), None)
                .unwrap_err()
                .to_string()
                .contains("one image layout")
        );
    }
}
