//! Layouts beside the tools that people already use on them, and beside other writers.

use std::path::Path;
use std::process::Command;

use blobferry::endpoint::{
    Begin, BlobBody, Destination as _, Offset, Presence, Put, Sent, Source as _,
};
use blobferry::fault::Class;
use blobferry::layout::{Repository, Root};
use blobferry::oci::media_type::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use blobferry::oci::{Algorithm, Descriptor, Digest, Manifest, MediaType, Tag, Target};
use bytes::Bytes;
use serde_json::{Value, json};

const NAME: &str = "org.opencontainers.image.ref.name";

#[tokio::test]
async fn skopeo_reads_what_we_write_and_we_read_what_skopeo_writes() {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new("layouts", folder.path());
    let ours = root.repository("team/app".parse().unwrap());
    let child = put_image(&ours, None, "image").await;
    let index = index_of(&[&child]);
    put(&ours, &tag("v1"), &index).await;

    let reference = format!("oci:{}:v1", folder.path().join("team/app").display());
    let shown = skopeo(&["inspect", "--raw", &reference]);
    assert_eq!(shown, index.bytes);

    let theirs = root.repository("team/copy".parse().unwrap());
    std::fs::create_dir_all(folder.path().join("team/copy")).unwrap();
    let copy = format!("oci:{}:v2", folder.path().join("team/copy").display());
    skopeo(&["copy", "--all", "--preserve-digests", &reference, &copy]);
    assert_eq!(tags(&theirs).await, [("v2".to_owned(), Some(index.digest))]);
    for manifest in [&index, &child] {
        assert_eq!(
            theirs
                .manifest(&manifest.digest.into())
                .await
                .unwrap()
                .unwrap()
                .bytes,
            manifest.bytes
        );
    }
    for blob in &child.blobs {
        assert_eq!(read(&theirs, blob).await, read(&ours, blob).await);
    }

    let more = put_image(&theirs, Some("v3"), "written beside skopeo's").await;
    let listed = [
        ("v2".to_owned(), Some(index.digest)),
        ("v3".to_owned(), Some(more.digest)),
    ];
    assert_eq!(tags(&theirs).await, listed);
    for (tag, bytes) in [("v2", &index.bytes), ("v3", &more.bytes)] {
        let reference = format!("oci:{}:{tag}", folder.path().join("team/copy").display());
        assert_eq!(skopeo(&["inspect", "--raw", &reference]), *bytes, "{tag}");
    }
    let beside_ours = format!("oci:{}:v9", folder.path().join("team/app").display());
    skopeo(&["copy", "--all", "--preserve-digests", &copy, &beside_ours]);
    assert_eq!(
        tags(&ours).await,
        [
            ("v1".to_owned(), Some(index.digest)),
            ("v9".to_owned(), Some(index.digest))
        ]
    );
    let found = root.repositories(None).await.unwrap().unwrap();
    assert_eq!(
        found
            .entries
            .iter()
            .map(|name| name.as_str())
            .collect::<Vec<_>>(),
        ["team/app", "team/copy"]
    );
}

#[tokio::test]
async fn a_mount_is_a_hard_link_and_single_layouts_have_no_neighbours() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir().unwrap();
    let root = Root::new("layouts", folder.path());
    let (from, to) = (
        root.repository("from".parse().unwrap()),
        root.repository("to".parse().unwrap()),
    );
    let blob = upload(&from, b"mounted").await;
    assert!(matches!(
        to.begin_upload(&blob.digest, Some(from.repository()))
            .await
            .unwrap(),
        Begin::Mounted
    ));
    let file = |repository: &str| {
        folder
            .path()
            .join(repository)
            .join("blobs/sha256")
            .join(blob.digest.encoded())
    };
    assert_eq!(
        std::fs::metadata(file("from")).unwrap().ino(),
        std::fs::metadata(file("to")).unwrap().ino()
    );
    assert_eq!(tags(&to).await, [], "a repository with a blob is a layout");

    let single =
        Root::single("one", &folder.path().join("single")).repository("to".parse().unwrap());
    assert_eq!(
        single.address(),
        format!(
            "layout:{}",
            folder
                .path()
                .canonicalize()
                .unwrap()
                .join("single")
                .display()
        )
    );
    assert!(matches!(
        single
            .begin_upload(&blob.digest, Some(from.repository()))
            .await
            .unwrap(),
        Begin::Session(_)
    ));
}

#[tokio::test]
async fn one_folder_is_one_origin() {
    let folder = tempfile::tempdir().unwrap();
    let alias = folder.path().join("alias");
    std::os::unix::fs::symlink(folder.path(), &alias).unwrap();
    let direct = Root::new("a", &folder.path().join("x/y"));
    assert_eq!(direct.origin(), Root::new("b", &alias.join("x/y")).origin());
    assert!(
        direct.origin().as_str().ends_with("/x/y"),
        "{}",
        direct.origin()
    );
    assert!(direct.repositories(None).await.unwrap().is_none());
}

#[tokio::test]
async fn an_upload_outlives_the_process_and_what_it_left_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let repository = || Root::new("layouts", folder.path()).repository("app".parse().unwrap());
    let digest = Digest::sha256(b"first second");
    let Begin::Session(mut session) = repository().begin_upload(&digest, None).await.unwrap()
    else {
        panic!()
    };
    let first = BlobBody::full(Bytes::from_static(b"first "));
    repository()
        .send_chunk(&mut session, 0, 6, first)
        .await
        .unwrap();

    assert_eq!(
        repository().upload_offset(&mut session).await.unwrap(),
        Offset::At(6)
    );
    std::fs::write(
        folder.path().join("app/.uploads").join(&session.location),
        "f\0\0\0\0\0",
    )
    .unwrap();
    let second = || BlobBody::full(Bytes::from_static(b"second"));
    let fault = repository()
        .finish_upload(&mut session, &digest, 6, 6, second())
        .await
        .unwrap_err();
    assert_eq!(
        fault.class(),
        Class::Corrupt,
        "a power cut can leave a length without its bytes"
    );
    assert_eq!(
        repository().has_blob(&digest).await.unwrap(),
        Presence::Absent
    );
    assert_eq!(
        repository().upload_offset(&mut session).await.unwrap(),
        Offset::Gone
    );
    let sent = repository()
        .finish_upload(&mut session, &digest, 6, 6, second())
        .await
        .unwrap();
    assert_eq!(sent, Sent::Gone);
}

#[tokio::test]
async fn writers_with_handles_of_their_own_lose_no_tag() {
    let folder = tempfile::tempdir().unwrap();
    let repository =
        |_: usize| Root::new("layouts", folder.path()).repository("app".parse().unwrap());
    let image = put_image(&repository(0), None, "image").await;
    let writes = (0..16).map(|number| {
        let (repository, image) = (repository(number), image.clone());
        async move { put(&repository, &tag(&format!("v{number}")), &image).await }
    });
    futures::future::join_all(writes).await;
    assert_eq!(tags(&repository(0)).await.len(), 16);
    let left = std::fs::read_dir(folder.path().join("app/.uploads"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "no temporary file stays");
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_nobody_gives_back_is_a_failure_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let repository = Root::new("layouts", folder.path()).repository("app".parse().unwrap());
    let image = put_image(&repository, None, "image").await;
    let lock = std::fs::File::create(folder.path().join("app/.lock")).unwrap();
    lock.lock().unwrap();
    let fault = repository
        .put_manifest(&tag("v1"), &image)
        .await
        .unwrap_err();
    assert!(
        fault.class().is_retryable() && fault.to_string().contains("lock"),
        "{fault}"
    );
    assert_eq!(repository.resolve(&tag("v1")).await.unwrap(), None);
    drop(lock);
    put(&repository, &tag("v1"), &image).await;
}

#[tokio::test]
async fn what_is_damaged_is_never_taken_for_absent() {
    let folder = tempfile::tempdir().unwrap();
    let repository = Root::new("layouts", folder.path()).repository("app".parse().unwrap());
    let image = put_image(&repository, Some("v1"), "image").await;
    let file = |digest: &Digest| {
        folder
            .path()
            .join("app/blobs/sha256")
            .join(digest.encoded())
    };

    let mut wrong = image.bytes.to_vec();
    *wrong.last_mut().unwrap() = b' ';
    std::fs::write(file(&image.digest), &wrong).unwrap();
    for target in [tag("v1"), image.digest.into()] {
        assert_eq!(
            repository.manifest(&target).await.unwrap_err().class(),
            Class::Corrupt,
            "{target}"
        );
    }
    std::fs::write(file(&image.digest), &wrong[1..]).unwrap();
    assert_eq!(
        repository.resolve(&tag("v1")).await.unwrap_err().class(),
        Class::Corrupt
    );
    std::fs::remove_file(file(&image.digest)).unwrap();
    assert_eq!(
        repository.resolve(&tag("v1")).await.unwrap_err().class(),
        Class::Corrupt
    );
    assert_eq!(
        repository.resolve(&image.digest.into()).await.unwrap(),
        None
    );

    put(&repository, &image.digest.into(), &image).await;
    assert_eq!(
        repository
            .manifest(&tag("v1"))
            .await
            .unwrap()
            .unwrap()
            .bytes,
        image.bytes,
        "put again, it is whole again"
    );

    let layer = image.blobs.last().unwrap();
    std::fs::write(file(&layer.digest), "short").unwrap();
    assert_eq!(
        repository.read_blob(layer, 0).await.unwrap_err().class(),
        Class::Corrupt
    );
    let put = repository.put_manifest(&tag("v2"), &image).await.unwrap();
    assert_eq!(
        put,
        Put::Missing(vec![layer.digest]),
        "a blob of another length is not there"
    );
    upload(&repository, b"layer of image").await;
    assert!(matches!(
        repository.put_manifest(&tag("v2"), &image).await.unwrap(),
        Put::Accepted { .. }
    ));
}

#[tokio::test]
async fn referrers_are_found_as_other_tools_keep_them() {
    let folder = tempfile::tempdir().unwrap();
    let repository = Root::new("layouts", folder.path()).repository("app".parse().unwrap());
    let subject = put_image(&repository, Some("v1"), "subject").await;
    let signature = |note: &str| {
        let signature = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": subject.blobs[0], "layers": [],
            "subject": subject.descriptor(), "annotations": {"note": note}});
        parse(&signature)
    };
    let (tagged, hidden) = (signature("tagged"), signature("under the fallback tag"));
    put(&repository, &tag("signature"), &tagged).await;
    // By digest and without a name in the index: other tools list it in the fallback tag's index
    // alone.
    std::fs::write(
        folder
            .path()
            .join("app/blobs/sha256")
            .join(hidden.digest.encoded()),
        &hidden.bytes,
    )
    .unwrap();
    put(
        &repository,
        &Tag::fallback(&subject.digest).into(),
        &index_of(&[&hidden, &tagged]),
    )
    .await;
    assert_eq!(
        referrers(&repository, &subject.digest).await,
        [tagged.digest, hidden.digest]
    );

    put(&repository, &tag("signature"), &subject).await;
    let mut after = referrers(&repository, &subject.digest).await;
    after.sort();
    let mut expected = [tagged.digest, hidden.digest];
    expected.sort();
    assert_eq!(
        after, expected,
        "a signature stays listed when its tag moves on"
    );
}

#[tokio::test]
async fn a_type_that_the_bytes_do_not_tell_is_kept_in_the_index() {
    let folder = tempfile::tempdir().unwrap();
    let repository = Root::new("layouts", folder.path()).repository("app".parse().unwrap());
    let layer = upload(&repository, b"layer").await;
    let text = json!({"schemaVersion": 2, "config": layer, "layers": [layer]}).to_string();
    let manifest = Manifest::parse(text.into(), Some(DOCKER_MANIFEST), Algorithm::Sha256).unwrap();
    put(&repository, &manifest.digest.into(), &manifest).await;
    let read = repository
        .manifest(&manifest.digest.into())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(read.media_type.as_str(), DOCKER_MANIFEST);
}

#[tokio::test]
async fn a_layout_is_read_without_being_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let app = folder.path().join("app");
    let root = Root::new("layouts", folder.path());
    let image = put_image(&root.repository("app".parse().unwrap()), None, "image").await;
    let entry = |name: &str| {
        let mut entry = serde_json::to_value(image.descriptor()).unwrap();
        entry["annotations"] = json!({ NAME: name });
        entry
    };
    let index = json!({"schemaVersion": 2, "manifests": [entry("host.example/team/app:v1"), entry("not a tag")]});
    std::fs::write(app.join("index.json"), index.to_string()).unwrap();
    std::fs::remove_dir_all(app.join(".uploads")).unwrap();
    let _ = std::fs::remove_file(app.join(".lock"));
    let before = names_in(&app);

    let repository = root.repository("app".parse().unwrap());
    let page = repository.tags(None).await.unwrap().unwrap();
    assert_eq!((page.entries.len(), page.invalid), (1, 1));
    assert_eq!(
        repository
            .manifest(&tag("v1"))
            .await
            .unwrap()
            .unwrap()
            .digest,
        image.digest
    );
    read(&repository, &image.blobs[0]).await;
    assert_eq!(names_in(&app), before);
}

fn names_in(folder: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    names
}

fn skopeo(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("skopeo")
        .arg("--insecure-policy")
        .args(arguments)
        .output()
        .expect("skopeo is installed");
    assert!(
        output.status.success(),
        "skopeo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn tag(name: &str) -> Target {
    Target::Tag(name.parse().unwrap())
}

fn parse(document: &Value) -> Manifest {
    Manifest::parse(document.to_string().into(), None, Algorithm::Sha256).unwrap()
}

fn index_of(children: &[&Manifest]) -> Manifest {
    let children: Vec<Value> = children
        .iter()
        .map(|child| {
            let mut entry = serde_json::to_value(child.descriptor()).unwrap();
            entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
            entry
        })
        .collect();
    parse(&json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}))
}

async fn upload(repository: &Repository, bytes: &[u8]) -> Descriptor {
    let digest = Digest::sha256(bytes);
    let size = bytes.len() as u64;
    let Begin::Session(mut session) = repository.begin_upload(&digest, None).await.unwrap() else {
        panic!("nothing to mount")
    };
    let body = BlobBody::full(Bytes::copy_from_slice(bytes));
    let sent = repository
        .finish_upload(&mut session, &digest, 0, size, body)
        .await
        .unwrap();
    assert_eq!(
        sent,
        Sent::Accepted {
            reported: Some(size)
        }
    );
    Descriptor::new(
        MediaType::new("application/vnd.oci.image.layer.v1.tar+gzip"),
        digest,
        size,
    )
}

async fn put_image(repository: &Repository, name: Option<&str>, note: &str) -> Manifest {
    let layer = upload(repository, format!("layer of {note}").as_bytes()).await;
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer.digest]}});
    let mut config = upload(repository, config.to_string().as_bytes()).await;
    config.media_type = MediaType::new("application/vnd.oci.image.config.v1+json");
    let image = parse(
        &json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}),
    );
    put(repository, &name.map_or(image.digest.into(), tag), &image).await;
    image
}

async fn put(repository: &Repository, target: &Target, manifest: &Manifest) {
    let subject = manifest.subject.is_some();
    assert_eq!(
        repository.put_manifest(target, manifest).await.unwrap(),
        Put::Accepted { subject }
    );
}

async fn read(repository: &Repository, blob: &Descriptor) -> Vec<u8> {
    let mut body = repository.read_blob(blob, 0).await.unwrap().unwrap();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        bytes.extend_from_slice(&frame.unwrap());
    }
    bytes
}

async fn tags(repository: &Repository) -> Vec<(String, Option<Digest>)> {
    let page = repository.tags(None).await.unwrap().unwrap();
    page.entries
        .into_iter()
        .map(|entry| (entry.name.to_string(), entry.digest))
        .collect()
}

async fn referrers(repository: &Repository, subject: &Digest) -> Vec<Digest> {
    let page = repository.referrers(subject, None).await.unwrap().unwrap();
    page.entries.into_iter().map(|entry| entry.digest).collect()
}
