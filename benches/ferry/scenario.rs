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
    /// One layer over a link, the tool killed half-way and started again.
    Interrupted,
    /// Small tags over a link that refuses every other request for a while.
    Storm,
    /// Images on a shared base to three destinations, each behind a link.
    Fanout,
}

/// What a scenario needs to know of what it has put into the source.
pub struct Stock {
    /// Repositories, each once, in order.
    pub repositories: Vec<String>,
    /// Bytes of the unique blobs.
    pub unique: u64,
    /// How many tags there are to copy.
    pub count: usize,
    /// The tags that are looked at afterwards, with their digests: all that were pushed.
    pub tags: Vec<(String, String, String)>,
}

impl Scenario {
    /// All of them, in the order of the report.
    pub const ALL: [Scenario; 8] = [
        Scenario::Apps,
        Scenario::Tags,
        Scenario::Unchanged,
        Scenario::Layer,
        Scenario::Layers,
        Scenario::Fanout,
        Scenario::Interrupted,
        Scenario::Storm,
    ];

    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Layer => "layer",
            Scenario::Apps => "apps",
            Scenario::Tags => "tags",
            Scenario::Unchanged => "unchanged",
            Scenario::Layers => "layers",
            Scenario::Interrupted => "interrupted",
            Scenario::Storm => "storm",
            Scenario::Fanout => "fanout",
        }
    }

    /// The heading of its table.
    pub fn title(self, quick: bool) -> String {
        let size = |full: &'static str, small: &'static str| if quick { small } else { full };
        match self {
            Scenario::Layer => format!("One layer of {}, loopback", size("2 GiB", "64 MiB")),
            Scenario::Apps => {
                let (apps, tags) = (size("10", "2"), size("5", "2"));
                format!("{apps} applications × {tags} tags on a shared base, 20 ms and 50 MB/s")
            }
            Scenario::Tags => format!("{} small tags, 20 ms", size("1,000", "20")),
            Scenario::Unchanged => format!("{} unchanged tags, loopback", size("10,000", "200")),
            Scenario::Layers => format!(
                "16 layers of {} at once, loopback",
                size("256 MiB", "4 MiB")
            ),
            Scenario::Interrupted => {
                format!(
                    "One layer of {}, killed half-way and started again, 20 ms and 50 MB/s",
                    size("512 MiB", "32 MiB")
                )
            }
            Scenario::Storm => {
                format!(
                    "{} small tags, 20 ms, every other request refused for {} s",
                    size("200", "20"),
                    size("10", "2")
                )
            }
            Scenario::Fanout => {
                "5 images on a shared base to 3 destinations, 20 ms and 50 MB/s to each registry"
                    .into()
            }
        }
    }

    /// The link between the tools and each registry.
    pub fn link(self, quick: bool) -> Nature {
        let far = Nature {
            round_trip: Duration::from_millis(20),
            ..Nature::TRANSPARENT
        };
        match self {
            Scenario::Apps | Scenario::Interrupted | Scenario::Fanout => Nature {
                bandwidth: Some(50e6),
                ..far
            },
            Scenario::Tags => far,
            Scenario::Storm => Nature {
                storm: Duration::from_secs(if quick { 2 } else { 10 }),
                ..far
            },
            Scenario::Layer | Scenario::Layers | Scenario::Unchanged => Nature::TRANSPARENT,
        }
    }

    /// How many registries are written to.
    pub fn destinations(self) -> usize {
        if self == Scenario::Fanout { 3 } else { 1 }
    }

    /// How often the same is copied, one after the other.
    pub fn passes(self) -> usize {
        if self == Scenario::Tags { 2 } else { 1 }
    }

    /// Bytes that all registries of a run need, with what the most wasteful tool sends twice.
    pub fn room(self, quick: bool) -> u64 {
        let mib = match self {
            _ if quick => 256,
            Scenario::Layer => 2 * 2048,
            Scenario::Layers => 2 * 16 * 256,
            Scenario::Apps => 450 + 1800,
            Scenario::Interrupted => 4 * 512,
            Scenario::Fanout => 150 + 3 * 500,
            Scenario::Tags | Scenario::Unchanged | Scenario::Storm => 256,
        };
        (mib + 512) * MIB as u64
    }

    /// Puts what is to be copied into the source.
    pub async fn stock(self, source: &Registry, quick: bool) -> Stock {
        let mut stock = Stock {
            repositories: Vec::new(),
            unique: 0,
            count: 0,
            tags: Vec::new(),
        };
        let client = source.client();
        let images: Vec<(String, String, Image)> = match self {
            Scenario::Layer => vec![one(
                "app",
                "v1",
                Image::oci(1, &[if quick { 64 * MIB } else { 2048 * MIB }]),
            )],
            Scenario::Apps if quick => applications(2, 2, MIB),
            Scenario::Apps => applications(10, 5, 33 * MIB / 10),
            Scenario::Tags => small(if quick { 20 } else { 1000 }),
            Scenario::Storm => small(if quick { 20 } else { 200 }),
            Scenario::Unchanged => vec![one("app", "t0", Image::oci(1, &[2000]))],
            Scenario::Interrupted => vec![one(
                "app",
                "v1",
                Image::oci(1, &[if quick { 32 * MIB } else { 512 * MIB }]),
            )],
            Scenario::Fanout => images(if quick { MIB } else { 10 * MIB }),
            Scenario::Layers => vec![one(
                "app",
                "v1",
                Image::oci(1, &[if quick { 4 * MIB } else { 256 * MIB }; 16]),
            )],
        };
        let mut seen = std::collections::HashSet::new();
        for (repository, tag, image) in &images {
            client.push(repository, tag, image).await;
            let new = image
                .unique_blobs()
                .into_iter()
                .filter(|blob| seen.insert(blob.digest.clone()));
            stock.unique += new.map(|blob| blob.bytes.len() as u64).sum::<u64>();
            stock
                .tags
                .push((repository.clone(), tag.clone(), image.digest().to_owned()));
            if !stock.repositories.contains(repository) {
                stock.repositories.push(repository.clone());
            }
        }
        stock.count = stock.tags.len();
        if self == Scenario::Unchanged {
            stock.count = if quick { 200 } else { 10_000 };
            source.copy_tag(
                "app",
                "t0",
                (1..stock.count).map(|number| format!("t{number}")),
            );
        }
        stock
    }
}

fn one(repository: &str, tag: &str, image: Image) -> (String, String, Image) {
    (repository.to_owned(), tag.to_owned(), image)
}

/// So many tags of one repository, each an image of its own of 2,000 bytes.
fn small(tags: u64) -> Vec<(String, String, Image)> {
    (0..tags)
        .map(|number| {
            one(
                "app",
                &format!("t{number}"),
                Image::oci(number + 1, &[2000]),
            )
        })
        .collect()
}

/// Five applications of one tag each on a base of six times their `own` layer.
fn images(own: usize) -> Vec<(String, String, Image)> {
    let base: Vec<Blob> = (0..3)
        .zip([3, 2, 1])
        .map(|(number, share)| Blob::layer(1_000_000 + number, share * own))
        .collect();
    let layers = |app: u64| {
        base.iter()
            .cloned()
            .chain([Blob::layer(app + 1, own)])
            .collect()
    };
    (0..5)
        .map(|app| {
            one(
                &format!("app-{app}"),
                "v1",
                Image::of_layers(app + 1, layers(app)),
            )
        })
        .collect()
}

/// Applications on a shared base of 100 MiB, every other one for two platforms, each of which has a
/// base.
fn applications(apps: u64, versions: u64, own: usize) -> Vec<(String, String, Image)> {
    let base = |platform: u64| -> Vec<Blob> {
        let share = if own < 2 * MIB { MIB / 4 } else { 10 * MIB };
        (0..3)
            .zip([6, 3, 1])
            .map(|(number, size)| Blob::layer(1_000_000 * (platform + 1) + number, size * share))
            .collect()
    };
    let bases = [base(0), base(1)];
    let image = |app: u64, version: u64, platform: u64| {
        let id = (app * 100 + version) * 10 + platform + 1;
        let layers = bases[platform as usize]
            .iter()
            .cloned()
            .chain([Blob::layer(id, own)])
            .collect();
        Image::of_layers(id, layers)
    };
    let tagged = |app: u64, version: u64| {
        let image = match app % 2 {
            0 => image(app, version, 0),
            _ => Image::index(&[image(app, version, 0), image(app, version, 1)]),
        };
        one(&format!("app-{app}"), &format!("v1.{version}.0"), image)
    };
    (0..apps)
        .flat_map(|app| (0..versions).map(move |version| (app, version)))
        .map(|(app, version)| tagged(app, version))
        .collect()
}
