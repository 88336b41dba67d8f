//! The scenarios: what is copied over which link.

use std::time::Duration;

use crate::image::{Blob, Image};
use crate::link::Nature;
use crate::registry::Registry;

const MIB: usize = 1024 * 1024;

/// A scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// One layer of 2 GiB on loopback.
    Layer,
    /// Applications on a shared base over a link.
    Apps,
    /// Many small tags over a link, then the same again with nothing changed.
    Tags,
    /// Ten thousand tags of which none has changed, on loopback.
    Unchanged,
    /// Sixteen layers of 256 MiB at once on loopback.
    Layers,
}

/// What a scenario needs to know of what it has put into the source.
pub struct Stock {
    /// Repositories, in order.
    pub repositories: Vec<String>,
    /// Bytes of the unique blobs.
    pub unique: u64,
    /// Every tag with its digest.
    pub tags: Vec<(String, String, String)>,
}

impl Scenario {
    /// All of them, in the order of the report.
    pub const ALL: [Scenario; 5] = [Scenario::Layer, Scenario::Apps, Scenario::Tags, Scenario::Unchanged, Scenario::Layers];

    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Layer => "layer",
            Scenario::Apps => "apps",
            Scenario::Tags => "tags",
            Scenario::Unchanged => "unchanged",
            Scenario::Layers => "layers",
        }
    }

    /// The heading of its table.
    pub fn title(self, quick: bool) -> String {
        let size = |full: &str, small: &str| if quick { small.to_owned() } else { full.to_owned() };
        match self {
            Scenario::Layer => format!("One layer of {}, loopback", size("2 GiB", "64 MiB")),
            Scenario::Apps => {
                format!("{} applications × {} tags on a shared base, 20 ms and 50 MB/s", size("10", "2"), size("5", "2"))
            }
            Scenario::Tags => format!("{} small tags, 20 ms", size("1,000", "20")),
            Scenario::Unchanged => format!("{} unchanged tags, loopback", size("10,000", "200")),
            Scenario::Layers => format!("16 layers of {} at once, loopback", size("256 MiB", "4 MiB")),
        }
    }

    /// The link between the tools and either registry.
    pub fn link(self) -> Nature {
        let round_trip = Duration::from_millis(20);
        match self {
            Scenario::Apps => Nature { round_trip, bandwidth: Some(50e6) },
            Scenario::Tags => Nature { round_trip, bandwidth: None },
            _ => Nature::TRANSPARENT,
        }
    }

    /// Puts what is to be copied into the source.
    pub async fn stock(self, source: &Registry, quick: bool) -> Stock {
        let mut stock = Stock { repositories: Vec::new(), unique: 0, tags: Vec::new() };
        let client = source.client();
        let images: Vec<(String, String, Image)> = match self {
            Scenario::Layer => vec![one("app", "v1", Image::oci(1, &[if quick { 64 * MIB } else { 2048 * MIB }]))],
            Scenario::Apps if quick => applications(2, 2, MIB),
            Scenario::Apps => applications(10, 5, 33 * MIB / 10),
            Scenario::Tags => {
                let tag = |number: u64| one("app", &format!("t{number}"), Image::oci(number + 1, &[2000]));
                (0..if quick { 20 } else { 1000 }).map(tag).collect()
            }
            Scenario::Unchanged => vec![one("app", "t0", Image::oci(1, &[2000]))],
            Scenario::Layers => vec![one("app", "v1", Image::oci(1, &[if quick { 4 * MIB } else { 256 * MIB }; 16]))],
        };
        let mut seen = std::collections::HashSet::new();
        for (repository, tag, image) in &images {
            client.push(repository, tag, image).await;
            let new = image.unique_blobs().into_iter().filter(|blob| seen.insert(blob.digest.clone()));
            stock.unique += new.map(|blob| blob.bytes.len() as u64).sum::<u64>();
            stock.tags.push((repository.clone(), tag.clone(), image.digest().to_owned()));
            if stock.repositories.last() != Some(repository) {
                stock.repositories.push(repository.clone());
            }
        }
        if self == Scenario::Unchanged {
            source.copy_tag("app", "t0", (1..if quick { 200 } else { 10_000 }).map(|number| format!("t{number}")));
        }
        stock
    }
}

fn one(repository: &str, tag: &str, image: Image) -> (String, String, Image) {
    (repository.to_owned(), tag.to_owned(), image)
}

/// Applications on a shared base of 100 MiB, every other one for two platforms, each of which has a base.
fn applications(apps: u64, versions: u64, own: usize) -> Vec<(String, String, Image)> {
    let base = |platform: u64| -> Vec<Blob> {
        let share = if own < 2 * MIB { MIB / 4 } else { 10 * MIB };
        (0..3).zip([6, 3, 1]).map(|(number, size)| Blob::layer(1_000_000 * (platform + 1) + number, size * share)).collect()
    };
    let bases = [base(0), base(1)];
    let image = |app: u64, version: u64, platform: u64| {
        let id = (app * 100 + version) * 10 + platform + 1;
        let layers = bases[platform as usize].iter().cloned().chain([Blob::layer(id, own)]).collect();
        Image::of_layers(id, layers)
    };
    let tagged = |app: u64, version: u64| {
        let image = match app % 2 {
            0 => image(app, version, 0),
            _ => Image::index(&[image(app, version, 0), image(app, version, 1)]),
        };
        one(&format!("app-{app}"), &format!("v1.{version}.0"), image)
    };
    (0..apps).flat_map(|app| (0..versions).map(move |version| (app, version))).map(|(app, version)| tagged(app, version)).collect()
}
