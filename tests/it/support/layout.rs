//! OCI image layouts on disk, written and read without blobferry.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Image;

/// Writes a layout that holds these tags.
pub fn write(folder: &Path, tags: &[(&str, &Image)]) {
    fs::create_dir_all(folder).expect("a folder for the layout");
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .expect("the layout's mark");
    let mut manifests = Vec::new();
    for (tag, image) in tags {
        for blob in image.unique_blobs() {
            write_blob(folder, &blob.digest, &blob.bytes);
        }
        for document in &image.documents {
            write_blob(folder, &document.digest, &document.bytes);
        }
        let mut descriptor = image.root().descriptor();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        manifests.push(descriptor);
    }
    let index =
        json!({"schemaVersion": 2, "mediaType": super::image::OCI_INDEX, "manifests": manifests});
    fs::write(folder.join("index.json"), index.to_string()).expect("the layout's index");
}

/// The digest that a tag names in a layout.
pub fn digest(folder: &Path, tag: &str) -> Option<String> {
    let index: Value = serde_json::from_slice(&fs::read(folder.join("index.json")).ok()?)
        .expect("an index is JSON");
    let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
    Some(
        index["manifests"].as_array()?.iter().find(named)?["digest"]
            .as_str()?
            .into(),
    )
}

/// A document of a layout.
pub fn document(folder: &Path, digest: &str) -> Value {
    serde_json::from_slice(&read_blob(folder, digest)).expect("a document is JSON")
}

/// Asserts that the layout holds exactly this image under the tag, byte for byte.
pub fn assert_holds(folder: &Path, tag: &str, image: &Image) {
    assert_eq!(
        digest(folder, tag).as_deref(),
        Some(image.digest()),
        "{tag} in {}",
        folder.display()
    );
    for document in &image.documents {
        assert!(
            read_blob(folder, &document.digest) == document.bytes,
            "{} changed",
            document.digest
        );
    }
    for blob in image.unique_blobs() {
        assert!(
            read_blob(folder, &blob.digest) == blob.bytes,
            "{} changed",
            blob.digest
        );
    }
}

fn place(folder: &Path, digest: &str) -> PathBuf {
    let (algorithm, hex) = digest.split_once(':').expect("algorithm:hex");
    folder.join("blobs").join(algorithm).join(hex)
}

fn write_blob(folder: &Path, digest: &str, bytes: &[u8]) {
    let path = place(folder, digest);
    fs::create_dir_all(path.parent().expect("a blob is in a folder")).expect("a folder for blobs");
    fs::write(path, bytes).expect("a blob");
}

fn read_blob(folder: &Path, digest: &str) -> Vec<u8> {
    let path = place(folder, digest);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
