//! Where the registries keep their files: in memory when there is room, since else it is the disk's
//! journal that is measured.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine;

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
/// Where Linux has a file system in memory.
const MEMORY: &str = "/dev/shm";

/// The choice of folders.
pub struct Scratch {
    /// What the command line says.
    pub asked: Option<PathBuf>,
}

/// A folder and what it lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The folder.
    pub folder: PathBuf,
    kind: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} ({})", self.kind, self.folder.display())
    }
}

impl Place {
    /// The folder `folder`, whatever file system has it.
    pub fn at(folder: PathBuf) -> Place {
        let whole = std::fs::canonicalize(&folder).unwrap_or_else(|_| folder.clone());
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let mut best = (0, "an unknown file system");
        for fields in mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
        {
            if let [_, point, kind, ..] = fields[..]
                && whole.starts_with(point)
                && point.len() >= best.0
            {
                best = (point.len(), kind);
            }
        }
        Place {
            folder,
            kind: best.1.to_owned(),
        }
    }

    fn is_memory(&self) -> bool {
        self.kind == "tmpfs" || self.kind == "ramfs"
    }

    /// Bytes that fit; in memory programs need room as well.
    fn free(&self) -> u64 {
        let disk = free_on_disk(&self.folder);
        if self.is_memory() {
            disk.min(machine::memory_available() / 4 * 3)
        } else {
            disk
        }
    }
}

impl Scratch {
    /// The folders that may be used, the best one first.
    fn places(&self) -> Vec<Place> {
        let memory = Some(Place::at(MEMORY.into())).filter(Place::is_memory);
        let first = self.asked.clone().map(Place::at).or(memory);
        first
            .into_iter()
            .chain([Place::at(std::env::temp_dir())])
            .collect()
    }

    /// Where everything goes that fits.
    pub fn preferred(&self) -> Place {
        self.places().remove(0)
    }

    /// A place with room for `bytes`.
    ///
    /// # Errors
    /// There is none.
    pub fn place(&self, bytes: u64) -> Result<Place, String> {
        let places = self.places();
        let tried: Vec<String> = places.iter().map(Place::to_string).collect();
        let none = format!(
            "{:.1} GiB fit nowhere: neither {}",
            bytes as f64 / GIB,
            tried.join(" nor ")
        );
        places
            .into_iter()
            .find(|place| place.free() >= bytes)
            .ok_or(none)
    }
}

fn free_on_disk(folder: &Path) -> u64 {
    let output = Command::new("df").arg("-Pk").arg(folder).output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let kib = text
        .lines()
        .nth(1)
        .and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
