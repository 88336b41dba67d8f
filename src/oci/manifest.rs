//! Manifests and indexes: raw bytes kept verbatim, and what they refer to, read tolerantly.
//!
//! The bytes are never written again from a parsed form: what goes to production is what staging
//! sent. Parsing only answers which content belongs to the manifest. Unknown fields and media types
//! pass; a digest that cannot be verified, a document that says two different things of itself, and
//! schema 1 do not. Image specification, `manifest.md` and `image-index.md`.
//!
//! A document that tools read differently is refused: one with both manifests and layers, or with a
//! field name that differs from a known one only in case (CVE-2021-41190,
//! <https://github.com/opencontainers/image-spec/security/advisories/GHSA-77vh-xpmg-72qh>; Go's
//! JSON decoder ignores case). Otherwise one tool could verify content that another tool does not
//! pull.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::descriptor::Descriptor;
use super::digest::{self, Algorithm, Digest};
use super::media_type::{Kind, MediaType, OCI_INDEX, OCI_MANIFEST};
use crate::fault::clip;

/// Largest manifest that is read, in bytes: what registries accept (distribution and ECR: 4 MiB).
pub const MAX_SIZE: u64 = 4 * 1024 * 1024;
/// Most entries (children, layers, blobs) that one manifest may list.
pub const MAX_ENTRIES: usize = 10_000;

/// A manifest or index as it was read.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The bytes, verbatim.
    pub bytes: Bytes,
    /// What it is sent as.
    pub media_type: MediaType,
    /// The digest of `bytes`.
    pub digest: Digest,
    /// Index, image or artifact.
    pub kind: Kind,
    /// Children of an index, in order, duplicates removed. Some may turn out to be blobs.
    pub children: Vec<Descriptor>,
    /// Config, layers and blobs, in order, duplicates removed.
    pub blobs: Vec<Descriptor>,
    /// The manifest that this one says something about.
    pub subject: Option<Descriptor>,
}

/// Why bytes are not a manifest that can be mirrored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Larger than [`MAX_SIZE`].
    #[error("the manifest is larger than {} MiB", MAX_SIZE / 1024 / 1024)]
    TooLarge,
    /// Not JSON, or not of the shape of a manifest.
    #[error("the manifest is not valid JSON of a manifest: {0}")]
    Malformed(String),
    /// Docker schema 1.
    #[error(
        "the manifest is of Docker schema 1, whose content cannot be verified; push the image again with a current tool"
    )]
    Schema1,
    /// The `Content-Type` and the document's own `mediaType` differ.
    #[error("the registry serves the manifest as {served}, the manifest calls itself {own}")]
    TypesDiffer {
        /// The `Content-Type` of the answer.
        served: String,
        /// The `mediaType` in the document.
        own: String,
    },
    /// Neither the answer nor the document says what it is, and its shape does not either.
    #[error("the media type {0:?} is not that of a manifest")]
    UnknownType(String),
    /// A document that lacks what makes it one of its type.
    #[error(
        "the document is served as {media_type} but has no `{lacks}`: it is not an image; push the image again"
    )]
    NotOfItsType {
        /// What it is said to be.
        media_type: String,
        /// The field that is missing.
        lacks: &'static str,
    },
    /// Two kinds of document in one.
    #[error(
        "the document is of the type {media_type} and has `{field}` too: tools disagree on what it is (CVE-2021-41190); push the image again"
    )]
    TwoInOne {
        /// What it is said to be.
        media_type: String,
        /// The field that does not belong there.
        field: &'static str,
    },
    /// `schemaVersion` is not 2.
    #[error("the manifest has the schemaVersion {0}, not 2")]
    SchemaVersion(String),
    /// A field that some tools read as another.
    #[error(
        "the manifest has a field {0:?}, which some tools read as {1:?}: they disagree on what it is; push the image again"
    )]
    AmbiguousField(String, &'static str),
    /// More than [`MAX_ENTRIES`] entries.
    #[error("the manifest lists more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    /// A digest in it cannot be verified.
    #[error("the manifest refers to content that cannot be verified: {0}")]
    Digest(#[from] digest::ParseError),
    /// It names itself as its own child or subject.
    #[error("the manifest refers to itself")]
    RefersToItself,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: Option<serde_json::Value>,
    #[serde(default)]
    media_type: Option<String>,
    /// `Some(None)`: the field is there and null, as Go writes an empty list.
    #[serde(default, deserialize_with = "present")]
    manifests: Option<Option<Vec<Entry>>>,
    #[serde(default)]
    config: Option<Entry>,
    #[serde(default)]
    layers: Option<Vec<Entry>>,
    #[serde(default)]
    blobs: Option<Vec<Entry>>,
    #[serde(default)]
    subject: Option<Entry>,
    #[serde(default)]
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    media_type: Option<String>,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    variant: Option<String>,
}

impl Manifest {
    /// Reads a manifest. `served` is the `Content-Type` it came with, `algorithm` the one to name
    /// its bytes by.
    ///
    /// # Errors
    /// See [`Error`]; each says what is wrong with the document, not where it came from.
    pub fn parse(
        bytes: Bytes,
        served: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Manifest, Error> {
        if bytes.len() as u64 > MAX_SIZE {
            return Err(Error::TooLarge);
        }
        let document: Document =
            serde_json::from_slice(&bytes).map_err(|error| Error::Malformed(error.to_string()))?;
        let media_type = agree_on_type(served, &document)?;
        let kind = match media_type.kind() {
            Kind::Schema1 => return Err(Error::Schema1),
            Kind::Other => return Err(Error::UnknownType(media_type.to_string())),
            kind => kind,
        };
        is_of_its_type(&media_type, kind, &document)?;
        fields_are_clear(&bytes)?;
        let digest = Digest::of(algorithm, &bytes);
        let (children, blobs) = match kind {
            Kind::Index => (entries([document.manifests.flatten()])?, Vec::new()),
            _ => (
                Vec::new(),
                entries([
                    document.config.map(|config| vec![config]),
                    document.layers,
                    document.blobs,
                ])?,
            ),
        };
        let subject = document.subject.map(Entry::read).transpose()?;
        if children
            .iter()
            .chain(&subject)
            .any(|entry| entry.digest == digest)
        {
            return Err(Error::RefersToItself);
        }
        Ok(Manifest {
            bytes,
            media_type,
            digest,
            kind,
            children,
            blobs,
            subject,
        })
    }

    /// The descriptor of the manifest itself.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(
            self.media_type.clone(),
            self.digest,
            self.bytes.len() as u64,
        )
    }
}

/// The one media type that the answer and the document agree on.
fn agree_on_type(served: Option<&str>, document: &Document) -> Result<MediaType, Error> {
    let served = served
        .map(MediaType::new)
        .filter(|served| !served.is_empty());
    let own = document
        .media_type
        .as_deref()
        .map(MediaType::new)
        .filter(|own| !own.is_empty());
    match (served, own) {
        // Static file servers and some gateways send a generic type: the document knows better.
        (Some(served), Some(own)) if served.kind() == Kind::Other && is_generic(&served) => Ok(own),
        (Some(served), Some(own)) if served != own => Err(Error::TypesDiffer {
            served: served.to_string(),
            own: own.to_string(),
        }),
        (Some(served), None) if is_generic(&served) => by_shape(document),
        (Some(served), _) => Ok(served),
        (None, Some(own)) => Ok(own),
        (None, None) => by_shape(document),
    }
}

fn is_generic(media_type: &MediaType) -> bool {
    matches!(
        media_type.as_str(),
        "application/json" | "text/plain" | "application/octet-stream" | "binary/octet-stream"
    )
}

/// Without any word on the type the shape decides (distribution specification, section on content
/// negotiation). Artifact manifests name their type always: a document with `blobs` alone is none.
fn by_shape(document: &Document) -> Result<MediaType, Error> {
    let text = match document {
        Document {
            fs_layers: Some(_), ..
        } => return Err(Error::Schema1),
        Document {
            schema_version: Some(version),
            ..
        } if version == &serde_json::json!(1) => return Err(Error::Schema1),
        Document {
            manifests: Some(Some(_)),
            ..
        } => OCI_INDEX,
        Document {
            config: Some(_),
            layers: Some(_),
            ..
        } => OCI_MANIFEST,
        _ => return Err(Error::UnknownType(String::new())),
    };
    Ok(MediaType::new(text))
}

fn present<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<Vec<Entry>>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Whether a document has what its type demands and nothing of another one.
fn is_of_its_type(media_type: &MediaType, kind: Kind, document: &Document) -> Result<(), Error> {
    if let Some(version) = document
        .schema_version
        .as_ref()
        .filter(|version| **version != serde_json::json!(2))
    {
        return Err(Error::SchemaVersion(clip(&version.to_string(), 40)));
    }
    let lacks = match kind {
        Kind::Index if document.manifests.is_none() => Some("manifests"),
        Kind::Image if document.config.is_none() => Some("config"),
        _ => None,
    };
    if let Some(lacks) = lacks {
        return Err(Error::NotOfItsType {
            media_type: media_type.to_string(),
            lacks,
        });
    }
    let lists = matches!(document.manifests, Some(Some(_)));
    let foreign = match kind {
        Kind::Index => [
            ("config", document.config.is_some()),
            ("layers", document.layers.is_some()),
            ("blobs", document.blobs.is_some()),
            ("fsLayers", document.fs_layers.is_some()),
        ],
        Kind::Image => [
            ("manifests", lists),
            ("blobs", document.blobs.is_some()),
            ("fsLayers", document.fs_layers.is_some()),
            ("", false),
        ],
        _ => [
            ("manifests", lists),
            ("config", document.config.is_some()),
            ("layers", document.layers.is_some()),
            ("fsLayers", document.fs_layers.is_some()),
        ],
    };
    match foreign.into_iter().find(|(_, there)| *there) {
        Some((field, _)) => Err(Error::TwoInOne {
            media_type: media_type.to_string(),
            field,
        }),
        None => Ok(()),
    }
}

/// Refuses a document with a field, of its own or of one of its descriptors, that differs from a
/// known one only in case.
fn fields_are_clear(bytes: &[u8]) -> Result<(), Error> {
    let mut ambiguous = None;
    let fields = Fields {
        level: Level::Document,
        ambiguous: &mut ambiguous,
    };
    let read = fields.deserialize(&mut serde_json::Deserializer::from_slice(bytes));
    read.map_err(|error| Error::Malformed(error.to_string()))?;
    match ambiguous {
        Some((field, known)) => Err(Error::AmbiguousField(clip(&field, 60), known)),
        None => Ok(()),
    }
}

/// The fields that refer to content, and the fields of descriptors.
const KNOWN_FIELDS: [&str; 14] = [
    "schemaVersion",
    "mediaType",
    "artifactType",
    "manifests",
    "config",
    "layers",
    "blobs",
    "subject",
    "fsLayers",
    "digest",
    "size",
    "urls",
    "data",
    "platform",
];

/// Where in a document a value stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Document,
    /// The value of a field that holds descriptors: one, or a list of them.
    Descriptors,
    Inside,
}

/// Looks at the names of fields, and keeps the first one that is ambiguous.
struct Fields<'a> {
    level: Level,
    ambiguous: &'a mut Option<(String, &'static str)>,
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.level {
            Level::Inside => IgnoredAny::deserialize(deserializer).map(drop),
            Level::Document | Level::Descriptors => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key::<Cow<'de, str>>()? {
            if let Some(known) = looks_like(&field) {
                self.ambiguous
                    .get_or_insert_with(|| (field.to_string(), known));
            }
            let holds_descriptors = matches!(
                &*field,
                "manifests" | "config" | "layers" | "blobs" | "subject"
            );
            let level = match self.level {
                Level::Document if holds_descriptors => Level::Descriptors,
                _ => Level::Inside,
            };
            map.next_value_seed(Fields {
                level,
                ambiguous: self.ambiguous,
            })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list
            .next_element_seed(Fields {
                level: self.level,
                ambiguous: self.ambiguous,
            })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

/// The known field as which a decoder that ignores case reads this one. Go folds two more letters:
/// `ſ` is an s, `K` a k.
fn looks_like(field: &str) -> Option<&'static str> {
    let folded = field.replace('ſ', "s").to_lowercase();
    KNOWN_FIELDS
        .into_iter()
        .find(|known| field != *known && folded == known.to_lowercase())
}

fn entries<const N: usize>(lists: [Option<Vec<Entry>>; N]) -> Result<Vec<Descriptor>, Error> {
    let mut seen = HashSet::new();
    let mut descriptors = Vec::new();
    for entry in lists.into_iter().flatten().flatten() {
        let descriptor = entry.read()?;
        if seen.insert((descriptor.digest, descriptor.size)) {
            descriptors.push(descriptor);
        }
        if descriptors.len() > MAX_ENTRIES {
            return Err(Error::TooManyEntries);
        }
    }
    Ok(descriptors)
}

impl Entry {
    fn read(self) -> Result<Descriptor, Error> {
        Ok(Descriptor {
            media_type: MediaType::new(self.media_type.as_deref().unwrap_or_default()),
            digest: self.digest.parse()?,
            size: self.size,
            platform: self.platform.and_then(Platform::read),
        })
    }
}

impl Platform {
    fn read(self) -> Option<String> {
        let parts = [Some(self.os?), Some(self.architecture?), self.variant];
        let text = parts.into_iter().flatten().collect::<Vec<_>>().join("/");
        Some(text.chars().take(64).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::media_type::{DOCKER_MANIFEST, DOCKER_SCHEMA1_SIGNED, OCI_ARTIFACT};
    use proptest::prelude::*;
    use serde_json::json;

    fn parse(value: serde_json::Value, served: Option<&str>) -> Result<Manifest, Error> {
        Manifest::parse(
            value.to_string().into_bytes().into(),
            served,
            Algorithm::Sha256,
        )
    }

    fn entry(content: &str) -> serde_json::Value {
        json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::sha256(content.as_bytes()), "size": content.len()})
    }

    #[test]
    fn bytes_are_kept_and_named() {
        let text = r#"{ "schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[] , "x":null}"#;
        let manifest =
            Manifest::parse(Bytes::from_static(text.as_bytes()), None, Algorithm::Sha256).unwrap();
        assert_eq!(manifest.bytes, text);
        assert_eq!(manifest.digest, Digest::sha256(text.as_bytes()));
    }

    #[test]
    fn lists_what_belongs_to_it_once() {
        let image = json!({"config": entry("c"), "layers": [entry("a"), entry("b"), entry("a")], "annotations": null});
        let manifest = parse(image, None).unwrap();
        assert_eq!(manifest.kind, Kind::Image);
        assert_eq!(manifest.blobs.len(), 3);
        let empty = json!({"mediaType": OCI_MANIFEST, "config": entry("{}"), "layers": [entry("{}")], "subject": entry("s")});
        let manifest = parse(empty, Some(OCI_MANIFEST)).unwrap();
        assert_eq!(
            manifest.blobs.len(),
            1,
            "the empty config is often config and layer at once"
        );
        assert_eq!(manifest.subject.unwrap().digest, Digest::sha256(b"s"));
        let artifact = json!({"mediaType": OCI_ARTIFACT, "blobs": [entry("a")]});
        assert_eq!(parse(artifact, None).unwrap().kind, Kind::Artifact);
        let nulls = json!({"mediaType": OCI_MANIFEST, "config": entry("c"), "layers": null, "subject": null});
        assert_eq!(parse(nulls, None).unwrap().blobs.len(), 1);
    }

    #[test]
    fn platforms_are_read_tolerantly() {
        let mut child = entry("a");
        child["platform"] =
            json!({"os": "windows", "architecture": "amd64", "os.version": "10.0.1"});
        let mut bare = entry("b");
        bare["platform"] = json!({});
        let index = parse(
            json!({"manifests": [child, bare]}),
            Some("application/json"),
        )
        .unwrap();
        assert_eq!(index.children[0].platform.as_deref(), Some("windows/amd64"));
        assert_eq!(index.children[1].platform, None);
    }

    #[test]
    fn refuses_with_a_reason() {
        let blake = json!({"mediaType": "x", "digest": "blake3:00", "size": 1});
        assert!(matches!(
            parse(json!({"manifests": [blake]}), None),
            Err(Error::Digest(_))
        ));
        assert_eq!(
            parse(json!({"schemaVersion": 1, "fsLayers": []}), None).unwrap_err(),
            Error::Schema1
        );
        assert_eq!(
            parse(json!({}), Some(DOCKER_SCHEMA1_SIGNED)).unwrap_err(),
            Error::Schema1
        );
        assert!(matches!(
            parse(
                json!({"mediaType": OCI_INDEX, "manifests": []}),
                Some(OCI_MANIFEST)
            ),
            Err(Error::TypesDiffer { .. })
        ));
        assert!(matches!(
            parse(json!({"hello": 1}), None),
            Err(Error::UnknownType(_))
        ));
        assert!(matches!(
            parse(json!({"blobs": [], "tags": ["v1"]}), None),
            Err(Error::UnknownType(_))
        ));
        assert!(matches!(
            parse(json!({"hello": 1}), Some("text/html")),
            Err(Error::UnknownType(_))
        ));
        assert!(matches!(
            parse(json!({"manifests": [{"digest": "sha256:x"}]}), None),
            Err(Error::Malformed(_))
        ));
        let version = parse(
            json!({"schemaVersion": 3, "mediaType": OCI_INDEX, "manifests": []}),
            None,
        );
        assert_eq!(version.unwrap_err(), Error::SchemaVersion("3".into()));
        let many: Vec<_> = (0..=MAX_ENTRIES).map(|n| entry(&n.to_string())).collect();
        assert_eq!(
            parse(json!({"manifests": many}), None).unwrap_err(),
            Error::TooManyEntries
        );
        let large = Bytes::from(vec![b' '; MAX_SIZE as usize + 1]);
        assert_eq!(
            Manifest::parse(large, None, Algorithm::Sha256).unwrap_err(),
            Error::TooLarge
        );
    }

    #[test]
    fn a_document_that_is_no_image_is_refused_whatever_it_is_served_as() {
        for (served, lacks) in [
            (OCI_MANIFEST, "config"),
            (DOCKER_MANIFEST, "config"),
            (OCI_INDEX, "manifests"),
        ] {
            let refused = parse(json!({"a": "b"}), Some(served)).unwrap_err();
            assert_eq!(
                refused,
                Error::NotOfItsType {
                    media_type: served.into(),
                    lacks
                }
            );
        }
        assert!(
            parse(json!({"manifests": null}), Some(OCI_INDEX))
                .unwrap()
                .children
                .is_empty(),
            "as Go writes none"
        );
    }

    #[test]
    fn a_document_that_is_two_things_is_none() {
        let both = json!({"manifests": [entry("m")], "config": entry("c"), "layers": [entry("l")]});
        for served in [
            None,
            Some(OCI_INDEX),
            Some(OCI_MANIFEST),
            Some(DOCKER_MANIFEST),
        ] {
            assert!(
                matches!(parse(both.clone(), served), Err(Error::TwoInOne { .. })),
                "{served:?}"
            );
        }
        let signed = json!({"config": entry("c"), "layers": [entry("l")], "fsLayers": []});
        assert!(matches!(
            parse(signed, Some(OCI_MANIFEST)),
            Err(Error::TwoInOne { .. })
        ));
        let nothing =
            json!({"config": entry("c"), "layers": [entry("l")], "manifests": null, "blobs": null});
        assert_eq!(
            parse(nothing, Some(OCI_MANIFEST)).unwrap().blobs.len(),
            2,
            "a null is nothing"
        );
    }

    #[test]
    fn a_field_that_differs_in_case_only_is_refused() {
        let image =
            || json!({"mediaType": OCI_MANIFEST, "config": entry("c"), "layers": [entry("l")]});
        for field in [
            "Layers",
            "LAYERS",
            "layerſ",
            "mediatype",
            "Manifests",
            "SchemaVersion",
            "fslayers",
        ] {
            let mut document = image();
            document[field] = json!(null);
            assert!(
                matches!(parse(document, None), Err(Error::AmbiguousField(..))),
                "{field}"
            );
        }
        for (place, field) in [
            ("/layers/0", "Digest"),
            ("/config", "SIZE"),
            ("/layers/0", "MediaType"),
        ] {
            let mut document = image();
            document.pointer_mut(place).unwrap()[field] = json!("x");
            assert!(
                matches!(parse(document, None), Err(Error::AmbiguousField(..))),
                "{place} {field}"
            );
        }
        let mut document = image();
        document["annotations"] = json!({"Layers": "x", "Digest": "y"});
        document["layers"][0]["annotations"] = json!({"Size": "1"});
        document["Created"] = json!("a name of nobody's");
        assert!(parse(document, None).is_ok(), "what people write is theirs");
    }

    #[test]
    fn deep_nesting_is_refused_not_followed() {
        let deep = format!("{}{}", r#"{"x":"#.repeat(100_000), "}".repeat(100_000));
        assert!(matches!(
            Manifest::parse(deep.into_bytes().into(), None, Algorithm::Sha256),
            Err(Error::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Manifest::parse(bytes.into(), Some(OCI_INDEX), Algorithm::Sha256);
        }

        #[test]
        fn no_spelling_of_a_known_field_but_the_right_one_passes(
            field in proptest::sample::select(KNOWN_FIELDS.to_vec()),
            upper in proptest::collection::vec(any::<bool>(), 16),
        ) {
            let letters = field.chars().zip(upper).map(|(letter, up)| {
                if up { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() }
            });
            let spelt: String = letters.collect();
            prop_assert_eq!(looks_like(&spelt).is_some(), spelt != field);
        }
    }
}
