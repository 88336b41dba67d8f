//! `index.json`: which manifests a layout offers, and under which names. Image specification,
//! `image-layout.md`.
//!
//! Other tools write this file too, so only the fields that we use are parsed. Every other field
//! and entry is written back unchanged.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::endpoint::{Page, Tag as Listed};
use crate::oci::media_type::OCI_INDEX;
use crate::oci::{Descriptor, Digest, MediaType, Tag, digest};

/// Largest index that is read or written, in bytes: about 30 000 tags.
pub(super) const MAX_SIZE: u64 = 8 * 1024 * 1024;

/// The annotation that names an entry: a tag, or a whole reference by the habit of some tools.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The document.
#[derive(Debug)]
pub(super) struct IndexJson {
    fields: BTreeMap<String, Box<RawValue>>,
    entries: Vec<Entry>,
}

/// What a tag stands for.
#[derive(Debug, PartialEq)]
pub(super) enum Named {
    /// One manifest.
    One(Descriptor),
    /// Several manifests of different digests.
    Several,
    /// A digest that cannot be verified.
    Unreadable(String),
}

#[derive(Debug)]
struct Entry {
    raw: Box<RawValue>,
    name: Option<String>,
    /// `Err`: the digest cannot be verified.
    descriptor: Result<Descriptor, digest::ParseError>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    media_type: Option<String>,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: Option<Annotations>,
}

#[derive(Deserialize)]
struct Annotations {
    #[serde(default, rename = "org.opencontainers.image.ref.name")]
    name: Option<String>,
}

impl IndexJson {
    /// An index that lists nothing.
    pub fn empty() -> IndexJson {
        let fields = [("schemaVersion", json!(2)), ("mediaType", json!(OCI_INDEX))];
        let fields = fields.map(|(name, value)| {
            let value = serde_json::value::to_raw_value(&value);
            (name.into(), value.expect("a JSON value can be written"))
        });
        IndexJson {
            fields: fields.into(),
            entries: Vec::new(),
        }
    }

    /// Reads an index.
    ///
    /// # Errors
    /// When it is not JSON, or an entry is not a descriptor.
    pub fn parse(bytes: &[u8]) -> Result<IndexJson, serde_json::Error> {
        let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(bytes)?;
        let listed: Option<Vec<Box<RawValue>>> = match fields.remove("manifests") {
            Some(manifests) => serde_json::from_str(manifests.get())?,
            None => None,
        };
        let entries = listed
            .unwrap_or_default()
            .into_iter()
            .map(Entry::parse)
            .collect::<Result<_, _>>()?;
        Ok(IndexJson { fields, entries })
    }

    /// The document as it is written.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut fields: BTreeMap<&str, &RawValue> = self
            .fields
            .iter()
            .map(|(name, value)| (name.as_str(), &**value))
            .collect();
        let entries: Vec<&RawValue> = self.entries.iter().map(|entry| &*entry.raw).collect();
        let entries = serde_json::value::to_raw_value(&entries).expect("raw JSON can be written");
        fields.insert("manifests", &entries);
        serde_json::to_vec(&fields).expect("raw JSON can be written")
    }

    /// Every listed manifest with a verifiable digest, named or not.
    pub fn descriptors(&self) -> impl Iterator<Item = &Descriptor> {
        self.entries
            .iter()
            .filter_map(|entry| entry.descriptor.as_ref().ok())
    }

    /// The entry of a digest.
    pub fn listed(&self, digest: &Digest) -> Option<&Descriptor> {
        self.descriptors()
            .find(|descriptor| descriptor.digest == *digest)
    }

    /// The tags, sorted. A tag that does not stand for one digest is listed without.
    pub fn tags(&self) -> Page<Listed> {
        let (mut tags, mut invalid) = (BTreeMap::<Tag, Vec<&Entry>>::new(), 0);
        for entry in &self.entries {
            match (&entry.name, entry.tag()) {
                (_, Some(tag)) => tags.entry(tag).or_default().push(entry),
                (Some(_), None) => invalid += 1,
                (None, None) => {}
            }
        }
        let entries = tags.into_iter().map(|(name, entries)| {
            let digest = match choose(&name, &entries) {
                Some(Named::One(descriptor)) => Some(descriptor.digest),
                _ => None,
            };
            Listed {
                name,
                digest,
                pushed: None,
            }
        });
        Page {
            entries: entries.collect(),
            invalid,
            next: None,
        }
    }

    /// What a tag stands for. `None`: it is not there.
    pub fn named(&self, tag: &Tag) -> Option<Named> {
        let entries: Vec<&Entry> = self
            .entries
            .iter()
            .filter(|entry| entry.tag().as_ref() == Some(tag))
            .collect();
        choose(tag, &entries)
    }

    /// Points `tag` at a manifest; entries that named another one lose the name, and stay where
    /// `keep` says so of their digest. `false`: nothing changed.
    pub fn name(
        &mut self,
        tag: &Tag,
        descriptor: &Descriptor,
        mut keep: impl FnMut(&Digest) -> bool,
    ) -> bool {
        let mut named = self.entries.iter().filter(|entry| entry.is_named(tag));
        if let (Some(entry), None) = (named.next(), named.next())
            && entry.descriptor.as_ref() == Ok(descriptor)
        {
            return false;
        }
        let (old, mut entries): (Vec<_>, Vec<_>) = std::mem::take(&mut self.entries)
            .into_iter()
            .partition(|entry| entry.is_named(tag));
        let kept = old
            .into_iter()
            .filter(|entry| entry.descriptor.as_ref().is_ok_and(|old| keep(&old.digest)));
        entries.extend(kept.map(Entry::without_name));
        entries.push(Entry::new(descriptor, Some(tag)));
        self.entries = entries;
        true
    }

    /// Lists a manifest without a name. `false`: it is listed already.
    pub fn list(&mut self, descriptor: &Descriptor) -> bool {
        if self.listed(&descriptor.digest).is_some() {
            return false;
        }
        self.entries.push(Entry::new(descriptor, None));
        true
    }
}

/// A bare tag takes precedence over whole references that end in it, which other tools write.
fn choose(tag: &Tag, entries: &[&Entry]) -> Option<Named> {
    let bare: Vec<&Entry> = entries
        .iter()
        .filter(|entry| entry.is_named(tag))
        .copied()
        .collect();
    let candidates = if bare.is_empty() { entries } else { &bare };
    let (first, others) = candidates.split_first()?;
    let descriptor = match &first.descriptor {
        Ok(descriptor) => descriptor,
        Err(error) => return Some(Named::Unreadable(error.to_string())),
    };
    Some(
        if others.iter().all(|entry| {
            entry
                .descriptor
                .as_ref()
                .is_ok_and(|other| other.digest == descriptor.digest)
        }) {
            Named::One(descriptor.clone())
        } else {
            Named::Several
        },
    )
}

impl Entry {
    fn is_named(&self, tag: &Tag) -> bool {
        self.name.as_deref() == Some(tag.as_str())
    }

    fn parse(raw: Box<RawValue>) -> Result<Entry, serde_json::Error> {
        let shape: Shape = serde_json::from_str(raw.get())?;
        let media_type = MediaType::new(shape.media_type.as_deref().unwrap_or_default());
        let descriptor = shape
            .digest
            .parse()
            .map(|digest| Descriptor::new(media_type, digest, shape.size));
        let name = shape
            .annotations
            .and_then(|annotations| annotations.name)
            .filter(|name| !name.is_empty());
        Ok(Entry {
            raw,
            name,
            descriptor,
        })
    }

    fn new(descriptor: &Descriptor, tag: Option<&Tag>) -> Entry {
        let mut value = json!({
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
        });
        if let Some(tag) = tag {
            value["annotations"] = json!({ REF_NAME: tag });
        }
        let raw = serde_json::value::to_raw_value(&value).expect("a JSON value can be written");
        Entry {
            raw,
            name: tag.map(Tag::to_string),
            descriptor: Ok(descriptor.clone()),
        }
    }

    fn without_name(mut self) -> Entry {
        let mut fields: Map<String, Value> =
            serde_json::from_str(self.raw.get()).expect("the entry was read as an object");
        if let Some(Value::Object(annotations)) = fields.get_mut("annotations") {
            annotations.remove(REF_NAME);
            if annotations.is_empty() {
                fields.remove("annotations");
            }
        }
        self.raw = serde_json::value::to_raw_value(&fields).expect("a JSON value can be written");
        self.name = None;
        self
    }

    /// The name itself, or what follows the last colon of a whole reference.
    fn tag(&self) -> Option<Tag> {
        let name = self.name.as_deref()?;
        if let Ok(tag) = name.parse() {
            return Some(tag);
        }
        let (rest, tag) = name.rsplit_once(':')?;
        let is_reference = !rest.is_empty() && !rest.contains('@');
        is_reference.then(|| tag.parse().ok())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::media_type::OCI_MANIFEST;
    use proptest::prelude::*;

    fn descriptor(content: &str) -> Descriptor {
        Descriptor::new(
            MediaType::new(OCI_MANIFEST),
            Digest::sha256(content.as_bytes()),
            content.len() as u64,
        )
    }

    fn entry(content: &str, name: Option<&str>) -> Value {
        let mut value = serde_json::to_value(descriptor(content)).unwrap();
        if let Some(name) = name {
            value["annotations"] = json!({ REF_NAME: name });
        }
        value
    }

    fn index(entries: Vec<Value>) -> IndexJson {
        IndexJson::parse(
            json!({"schemaVersion": 2, "manifests": entries})
                .to_string()
                .as_bytes(),
        )
        .unwrap()
    }

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    #[test]
    fn tags_are_read_as_tools_write_them() {
        let table = [
            ("v1", Some("v1")),
            ("host.example/team/app:v1", Some("v1")),
            ("host.example:5000/app:v1", Some("v1")),
            ("app:latest", Some("latest")),
            ("host.example:5000/app", None),
            ("host.example/app", None),
            (":v1", None),
            (
                "app@sha256:0000000000000000000000000000000000000000000000000000000000000000",
                None,
            ),
            ("../v1", None),
        ];
        for (name, expected) in table {
            let page = index(vec![entry("a", Some(name)), entry("b", None)]).tags();
            let names: Vec<&str> = page
                .entries
                .iter()
                .map(|entry| entry.name.as_str())
                .collect();
            assert_eq!(names, Vec::from_iter(expected), "{name}");
            assert_eq!(page.invalid, usize::from(expected.is_none()), "{name}");
        }
    }

    #[test]
    fn a_tag_that_means_two_things_means_none() {
        let index = index(vec![
            entry("a", Some("one.example/x:v1")),
            entry("b", Some("two.example/y:v1")),
            entry("a", Some("v2")),
            entry("b", Some("two.example/y:v2")),
            entry("a", Some("v3")),
            entry("a", Some("v3")),
            json!({"digest": "blake3:00", "size": 1, "annotations": {REF_NAME: "v4"}}),
        ]);
        assert_eq!(index.named(&tag("v1")), Some(Named::Several));
        assert_eq!(
            index.named(&tag("v2")),
            Some(Named::One(descriptor("a"))),
            "the bare tag is the tag"
        );
        assert_eq!(index.named(&tag("v3")), Some(Named::One(descriptor("a"))));
        assert!(matches!(
            index.named(&tag("v4")),
            Some(Named::Unreadable(_))
        ));
        assert_eq!(index.named(&tag("v5")), None);
        let digests: Vec<bool> = index
            .tags()
            .entries
            .iter()
            .map(|listed| listed.digest.is_some())
            .collect();
        assert_eq!(digests, [false, true, true, false]);
    }

    #[test]
    fn what_is_not_ours_is_written_back_as_it_was() {
        let theirs = r#"{"digest":"sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae","size":3,"x":[1.10]}"#;
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{theirs}],"annotations":{{"k":"v"}},"n":1.50}}"#
        );
        let mut index = IndexJson::parse(text.as_bytes()).unwrap();
        assert!(index.name(&tag("v1"), &descriptor("a"), |_| false));
        let written = String::from_utf8(index.to_bytes()).unwrap();
        assert!(
            written.contains(theirs)
                && written.contains(r#""n":1.50"#)
                && written.contains(r#"{"k":"v"}"#),
            "{written}"
        );
    }

    #[test]
    fn a_moved_tag_leaves_one_entry_and_what_must_stay() {
        let mut index = index(vec![
            entry("a", Some("v1")),
            entry("b", Some("v2")),
            entry("c", Some("other.example/x:v1")),
        ]);
        assert!(
            !index.name(&tag("v1"), &descriptor("a"), |_| false),
            "the same again is no change"
        );
        assert!(index.name(&tag("v1"), &descriptor("d"), |_| false));
        assert_eq!(index.named(&tag("v1")), Some(Named::One(descriptor("d"))));
        assert_eq!(index.listed(&Digest::sha256(b"a")), None);
        assert!(index.name(&tag("v2"), &descriptor("d"), |old| *old
            == Digest::sha256(b"b")));
        let read_back = IndexJson::parse(&index.to_bytes()).unwrap();
        assert_eq!(
            read_back.named(&tag("v2")),
            Some(Named::One(descriptor("d")))
        );
        assert!(
            read_back.listed(&Digest::sha256(b"b")).is_some(),
            "kept without a name"
        );
        assert_eq!(read_back.tags().entries.len(), 2);
        assert!(
            !String::from_utf8(index.to_bytes())
                .unwrap()
                .contains(r#""annotations":{}"#)
        );
    }

    #[test]
    fn a_manifest_is_listed_once() {
        let mut index = IndexJson::empty();
        assert!(index.list(&descriptor("a")));
        assert!(!index.list(&descriptor("a")));
        assert!(index.name(&tag("v1"), &descriptor("a"), |_| false));
        assert_eq!(
            IndexJson::parse(&index.to_bytes())
                .unwrap()
                .descriptors()
                .count(),
            2
        );
    }

    #[test]
    fn an_index_without_a_list_is_empty_and_another_shape_is_an_error() {
        for empty in ["{}", r#"{"manifests":null}"#, r#"{"manifests":[]}"#] {
            assert_eq!(
                IndexJson::parse(empty.as_bytes())
                    .unwrap()
                    .descriptors()
                    .count(),
                0,
                "{empty}"
            );
        }
        for bad in [
            "",
            "[]",
            r#"{"manifests":{}}"#,
            r#"{"manifests":[1]}"#,
            r#"{"manifests":[{"digest":"sha256:x"}]}"#,
        ] {
            assert!(IndexJson::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(name in "\\PC{0,60}", bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = IndexJson::parse(&bytes);
            let _ = index(vec![entry("a", Some(&name))]).tags();
        }
    }
}
