//! Folders of OCI image layouts are registries too: there and back without a changed byte, readable
//! by others.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;

use crate::support::*;

fn images() -> Vec<(&'static str, Image)> {
    let children = [Image::oci(1, &[4000, 20]), Image::oci(2, &[30_000])];
    vec![
        ("v1", Image::oci(3, &[100_000, 0])),
        ("v2", Image::index(&children)),
        ("v3", Image::empty_config(4)),
    ]
}

#[tokio::test]
async fn from_layout_to_registry_to_layout_nothing_changes() {
    let registry = Registry::distribution3();
    let ferry = Ferry::bare();
    let (here, there) = (ferry.path("here"), ferry.path("there"));
    let images = images();
    let tags: Vec<(&str, &Image)> = images.iter().map(|(tag, image)| (*tag, image)).collect();
    layout::write(&here.join("team/app"), &tags);

    let out = Config::new()
        .registry("staging", &format!("layout:{}", here.display()))
        .registry("production", &registry.url());
    ferry.write_config(&out.route("team/app", json!({})));
    let run = ferry.sync(&[]).await.expect(0);
    assert_eq!(run.total("promoted"), 3);
    for (tag, image) in &images {
        registry.client().assert_holds("team/app", tag, image).await;
    }

    let back = Config::new()
        .registry("staging", &registry.url())
        .registry("production", &format!("layout:{}", there.display()));
    ferry.write_config(&back.route("team/app", json!({})));
    ferry.sync(&[]).await.expect(0);
    let third = Registry::distribution2();
    for (tag, image) in &images {
        layout::assert_holds(&there.join("team/app"), tag, image);
        let from = format!("oci:{}:{tag}", there.join("team/app").display());
        // skopeo reads what we wrote; it refuses images without a config of its own kind.
        if *tag != "v3" {
            skopeo::copy(&from, &format!("docker://{}/app:{tag}", third.address())).await;
            third.client().assert_holds("app", tag, image).await;
        }
    }
    assert_eq!(ferry.sync(&[]).await.expect(0).total("up_to_date"), 3);
}

#[tokio::test]
async fn what_registries_refuse_travels_between_layouts() {
    let ferry = Ferry::bare();
    let artifact = Image::artifact(1, 5000);
    layout::write(
        &ferry.path("here/app"),
        &[("v1", &artifact), ("cache", &Image::cache(2, &[300, 400]))],
    );
    let config = Config::new()
        .registry(
            "staging",
            &format!("layout:{}", ferry.path("here").display()),
        )
        .registry(
            "production",
            &format!("layout:{}", ferry.path("there").display()),
        );
    ferry.write_config(&config.route("app", json!({})));
    ferry.sync(&[]).await.expect(0);
    layout::assert_holds(&ferry.path("there/app"), "v1", &artifact);
    layout::assert_holds(
        &ferry.path("there/app"),
        "cache",
        &Image::cache(2, &[300, 400]),
    );
}

#[tokio::test]
async fn a_corrupt_blob_on_disk_goes_nowhere() {
    let registry = Registry::distribution2();
    let ferry = Ferry::bare();
    let image = Image::oci(1, &[5000]);
    let app = ferry.path("here/app");
    layout::write(&app, &[("v1", &image)]);
    let layer = &image.blobs[1].digest;
    std::fs::write(app.join("blobs/sha256").join(&layer[7..]), vec![7; 5000]).unwrap();
    let config = Config::new().registry(
        "staging",
        &format!("layout:{}", ferry.path("here").display()),
    );
    ferry.write_config(
        &config
            .registry("production", &registry.url())
            .route("app", json!({})),
    );
    let run = ferry.sync(&[]).await.expect(1);
    assert_eq!(run.job("v1")["error"]["class"], "corrupt");
    registry.client().assert_lacks("app", "v1", &[layer]).await;
}

#[tokio::test]
async fn a_manifest_that_is_missing_or_short_at_the_destination_is_not_up_to_date() {
    let registry = Registry::distribution2();
    let ferry = Ferry::bare();
    let image = Image::oci(1, &[5000]);
    registry.client().push("app", "v1", &image).await;
    let config = Config::new().registry("staging", &registry.url());
    ferry.write_config(
        &config
            .registry(
                "production",
                &format!("layout:{}", ferry.path("there").display()),
            )
            .route("app", json!({})),
    );
    ferry.sync(&[]).await.expect(0);
    let manifest = ferry
        .path("there/app/blobs/sha256")
        .join(&image.digest()[7..]);
    let whole = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, &whole[..10]).unwrap();
    let short = ferry.sync(&[]).await.expect(1);
    assert!(
        short.job("v1")["error"]["text"]
            .as_str()
            .unwrap()
            .contains("is 10 bytes long"),
        "{}",
        short.stdout
    );
    std::fs::remove_file(&manifest).unwrap();
    let missing = ferry.sync(&[]).await.expect(1);
    assert!(
        missing.job("v1")["error"]["text"]
            .as_str()
            .unwrap()
            .contains("is not among the blobs"),
        "{}",
        missing.stdout
    );
    std::fs::write(&manifest, whole).unwrap();
    assert_eq!(ferry.sync(&[]).await.expect(0).total("up_to_date"), 1);
}

/// Tools that read a layout look for referrers under the fallback tag: no endpoint lists them
/// there.
#[tokio::test]
async fn a_layout_lists_referrers_under_the_tag_that_other_tools_read() {
    let staging = Scripted::start();
    let ferry = Ferry::bare();
    let image = Image::oci(1, &[1000]);
    let signatures: Vec<Image> = (10..12)
        .map(|seed| Image::referrer(seed, &image, "application/vnd.example.signature"))
        .collect();
    staging.push("app", "v1", &image);
    let config = Config::new().registry("staging", &staging.url());
    let folder = ferry.path("there/app");
    ferry.write_config(
        &config
            .registry(
                "production",
                &format!("layout:{}", ferry.path("there").display()),
            )
            .route("app", json!({})),
    );
    let tag = image.digest().replace(':', "-");
    for (number, signature) in signatures.iter().enumerate() {
        staging.push_untagged("app", signature);
        ferry.sync(&[]).await.expect(0);
        let list = layout::document(
            &folder,
            &layout::digest(&folder, &tag).expect("there is a list"),
        );
        let entries = list["manifests"].as_array().unwrap();
        assert_eq!(
            (entries.len(), &list["mediaType"]),
            (number + 1, &json!(image::OCI_INDEX))
        );
        let entry = &entries[number];
        assert_eq!(
            (&entry["digest"], &entry["artifactType"]),
            (
                &json!(signature.digest()),
                &json!("application/vnd.example.signature")
            )
        );
        assert_eq!(entry["size"], json!(signature.root().bytes.len()));
    }
    let before = std::fs::read(folder.join("index.json")).unwrap();
    ferry.sync(&[]).await.expect(0);
    assert_eq!(
        std::fs::read(folder.join("index.json")).unwrap(),
        before,
        "nothing is written again"
    );

    let production = Scripted::with(scripted::Settings {
        referrers: false,
        ..scripted::Settings::default()
    });
    let back = Config::new().registry(
        "staging",
        &format!("layout:{}", ferry.path("there").display()),
    );
    ferry.write_config(
        &back
            .registry("production", &production.url())
            .route("app", json!({})),
    );
    ferry.sync(&[]).await.expect(0);
    assert_eq!(
        production.tagged("app", &tag),
        layout::digest(&folder, &tag),
        "the list is the same on its way back"
    );
}

#[tokio::test]
async fn copy_reads_and_writes_one_layout() {
    let registry = Registry::distribution2();
    let ferry = Ferry::bare();
    let image = Image::index(&[Image::oci(1, &[500]), Image::oci(2, &[600])]);
    registry.client().push("app", "v1", &image).await;
    let folder = ferry.path("disk");
    let place = format!("layout:{}:kept", folder.display());
    ferry
        .run(&["copy", &format!("{}/app:v1", registry.address()), &place])
        .await
        .expect(0);
    layout::assert_holds(&folder, "kept", &image);
    ferry
        .run(&["copy", &place, &format!("{}/other:v1", registry.address())])
        .await
        .expect(0);
    registry.client().assert_holds("other", "v1", &image).await;
}

/// Every folder and file below, with its mode.
fn modes(folder: &Path) -> Vec<(String, bool, u32)> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut modes = Vec::new();
    for entry in entries.map(|entry| entry.unwrap()) {
        let (path, metadata) = (entry.path(), entry.metadata().unwrap());
        let mode = metadata.permissions().mode() & 0o7777;
        modes.push((path.display().to_string(), metadata.is_dir(), mode));
        if metadata.is_dir() {
            modes.extend(self::modes(&path));
        }
    }
    modes
}

/// Layouts are read by others, under another group or user: the umask says by which.
#[tokio::test]
async fn files_and_folders_of_a_layout_respect_the_umask() {
    let registry = Registry::distribution2();
    let image = Image::index(&[Image::oci(1, &[4000, 20]), Image::oci(2, &[100_000])]);
    registry.client().push("app", "v1", &image).await;
    for (umask, of_files, of_folders) in [
        ("0027", 0o640, 0o750),
        ("0022", 0o644, 0o755),
        ("0077", 0o600, 0o700),
    ] {
        let line = format!("umask {umask}; exec \"$@\"");
        let words = ["sh", "-c", &line, "sh"].map(str::to_owned);
        let ferry = Ferry::bare().within(words.into());
        let there = ferry.path("there");
        let config = Config::new()
            .registry("staging", &registry.url())
            .registry("production", &format!("layout:{}", there.display()));
        ferry.write_config(&config.route("app", json!({})));
        ferry.sync(&[]).await.expect(0);
        layout::assert_holds(&there.join("app"), "v1", &image);
        let modes = modes(&there);
        assert!(modes.len() > 6, "{modes:#?}");
        for (path, is_folder, mode) in modes {
            let expected = if is_folder { of_folders } else { of_files };
            assert_eq!(
                format!("{mode:o}"),
                format!("{expected:o}"),
                "{umask}: {path}"
            );
        }
    }
}

/// `history` knew a layout by no name that the output of a pass shows.
#[tokio::test]
async fn history_knows_a_layout_by_its_address() {
    let ferry = Ferry::bare();
    layout::write(&ferry.path("here/app"), &[("v1", &Image::oci(1, &[100]))]);
    let url = |folder: &str| format!("layout:{}", ferry.path(folder).display());
    let config = Config::new()
        .registry("staging", &url("here"))
        .registry("production", &url("there"));
    ferry.write_config(&config.route("app", json!({})));
    ferry.sync(&[]).await.expect(0);
    for side in ["here", "there"] {
        for end in [":v1", ""] {
            let named = format!("{}/app{end}", url(side));
            let history = ferry.run(&["history", &named]).await.expect(0);
            assert!(
                history.stdout.contains("promoted"),
                "{named}: {}",
                history.stdout
            );
        }
    }
    let other = format!("{}/ap", url("there"));
    ferry.run(&["history", &other]).await.expect(5);
}

/// An operator mistyped a layout's folder; the check made it and said that all was well.
#[tokio::test]
async fn a_check_makes_no_layout_and_says_that_there_is_none() {
    let ferry = Ferry::bare();
    layout::write(&ferry.path("here/app"), &[("v1", &Image::oci(1, &[100]))]);
    let url = |folder: &str| format!("layout:{}", ferry.path(folder).display());
    let config = Config::new()
        .registry("staging", &url("here"))
        .registry("production", &url("nodisk"));
    ferry.write_config(&config.route("app", json!({})));
    let checked = ferry.run(&["check", "--online"]).await.expect(0);
    let absent = "nodisk/app: this layout does not exist yet; the first promotion creates it";
    let line = checked.stdout.lines().find(|line| line.ends_with(absent));
    let is_warning = line.is_some_and(|line| line.starts_with("! ") || line.starts_with("warn "));
    assert!(is_warning, "{}", checked.stdout);
    assert!(!ferry.path("nodisk").exists());
    ferry.sync(&[]).await.expect(0);
    let checked = ferry.run(&["check", "--online"]).await.expect(0);
    let opened = "nodisk/app: an upload can be opened and cancelled";
    assert!(checked.stdout.contains(opened), "{}", checked.stdout);
}
