//! What every destination promises, one suite for all: registries, layout, memory.
//!
//! A backend brings a function that gives it a repository by name; all repositories of one run
//! belong to one registry and are empty at first. What a backend declares in its abilities is held
//! against it, what it does not declare is not asked for.

use std::collections::BTreeSet;
use std::sync::Arc;

use blobferry::endpoint::{
    Begin, BlobBody, Cursor, Destination, Mount, Offset, Presence, Put, Resume, Sent, Tally,
    UploadStyle,
};
use blobferry::oci::media_type::{OCI_INDEX, OCI_MANIFEST};
use blobferry::oci::{Algorithm, Descriptor, Digest, Manifest, Tag, Target};
use bytes::Bytes;
use futures::future::join_all;
use serde_json::json;

use crate::support::{Program, memory};

mod sample;

use sample::*;

/// Holds every promise against one backend.
pub async fn contract<D: Destination>(make: impl AsyncFn(&str) -> D) {
    absent_is_a_value(&make("contract/absent").await).await;
    blobs_read_back_from_every_offset(&make("contract/whole").await).await;
    empty_and_sha512_blobs_are_blobs(&make("contract/kinds").await).await;
    a_blob_belongs_to_its_repository(&make("contract/own").await, &make("contract/other").await)
        .await;
    a_blob_that_is_there_may_come_again(&make("contract/again").await).await;
    chunks_add_up(&make("contract/chunks").await).await;
    a_misplaced_chunk_tells_the_true_offset(&make("contract/misplaced").await).await;
    a_cut_upload_goes_on(&make("contract/cut").await).await;
    wrong_bytes_never_become_a_blob(&make("contract/wrong").await).await;
    a_cancelled_session_is_gone(&make("contract/cancel").await).await;
    a_mount_needs_no_bytes(
        &make("contract/from").await,
        &make("contract/to").await,
        &make("contract/empty").await,
    )
    .await;
    manifests_come_back_byte_for_byte(&make("contract/manifests").await).await;
    a_manifest_waits_for_its_content(&make("contract/missing").await).await;
    a_tag_moves_in_one_step(&make("contract/moves").await).await;
    the_listing_shows_every_tag(&make("contract/tags").await).await;
    referrers_are_listed_where_lists_are_kept(&make("contract/referrers").await).await;
    every_request_is_counted(&make("contract/counted").await).await;
}

async fn absent_is_a_value<D: Destination>(repository: &D) {
    let nothing = Digest::sha256(b"nothing");
    let tag = Target::Tag(tag("v1"));
    if let Some(page) = repository.tags(None).await.unwrap() {
        assert!(page.entries.is_empty());
    }
    for target in [tag, nothing.into()] {
        assert_eq!(repository.resolve(&target).await.unwrap(), None, "{target}");
        assert!(
            repository.manifest(&target).await.unwrap().is_none(),
            "{target}"
        );
    }
    if let Some(page) = repository.referrers(&nothing, None).await.unwrap() {
        assert!(page.entries.is_empty());
    }
    assert_eq!(
        repository.has_blob(&nothing).await.unwrap(),
        Presence::Absent
    );
    assert!(
        repository
            .read_blob(&layer(nothing, 7), 0)
            .await
            .unwrap()
            .is_none()
    );
}

async fn blobs_read_back_from_every_offset<D: Destination>(repository: &D) {
    let bytes = content("whole", 700_001);
    let blob = upload(repository, &bytes).await;
    assert!(is_present(repository, &blob).await);
    for offset in [0, 1, 350_000, 700_000] {
        let body = repository.read_blob(&blob, offset).await.unwrap().unwrap();
        assert_eq!(
            http_body::Body::size_hint(&body).exact(),
            Some(blob.size - offset),
            "from {offset}"
        );
        assert!(
            collect(body).await.unwrap() == bytes[offset as usize..],
            "from {offset}"
        );
    }
    let longer = Descriptor {
        size: blob.size + 1,
        ..blob
    };
    let read = match repository.read_blob(&longer, 0).await {
        Ok(body) => collect(body.expect("it is there")).await.map(|_| ()),
        Err(fault) => Err(fault),
    };
    assert_eq!(
        read.unwrap_err().class(),
        blobferry::fault::Class::Corrupt,
        "another length than promised is corrupt"
    );
}

async fn empty_and_sha512_blobs_are_blobs<D: Destination>(repository: &D) {
    let empty = upload(repository, &Bytes::new()).await;
    assert!(is_present(repository, &empty).await);
    assert_eq!(read(repository, &empty).await.unwrap(), Bytes::new());

    let bytes = content("sha512", 5000);
    let blob = layer(Digest::of(Algorithm::Sha512, &bytes), 5000);
    let mut session = begin(repository, &blob.digest).await;
    finish(repository, &mut session, &blob.digest, 0, &bytes).await;
    assert!(is_present(repository, &blob).await);
    assert_eq!(read(repository, &blob).await.unwrap(), bytes);
}

async fn a_blob_belongs_to_its_repository<D: Destination>(own: &D, other: &D) {
    let blob = upload(own, &content("own", 100)).await;
    upload(other, &content("something else", 100)).await;
    assert_eq!(
        other.has_blob(&blob.digest).await.unwrap(),
        Presence::Absent
    );
    assert!(other.read_blob(&blob, 0).await.unwrap().is_none());
    // Docker's registry 2.8 answers 500 to this, which is "unknown" and not "absent".
    assert!(
        !matches!(own.manifest(&blob.digest.into()).await, Ok(Some(_))),
        "a blob is no manifest"
    );
}

async fn a_blob_that_is_there_may_come_again<D: Destination>(repository: &D) {
    let bytes = content("again", 3000);
    let digest = Digest::sha256(&bytes);
    let (mut one, mut two) = (
        begin(repository, &digest).await,
        begin(repository, &digest).await,
    );
    finish(repository, &mut one, &digest, 0, &bytes).await;
    finish(repository, &mut two, &digest, 0, &bytes).await;
    assert_eq!(read(repository, &layer(digest, 3000)).await.unwrap(), bytes);
}

async fn chunks_add_up<D: Destination>(repository: &D) {
    let mut session = begin(repository, &Digest::sha256(b"chunks")).await;
    let chunk = CHUNK;
    let bytes = content("chunks", 2 * chunk + 7);
    let blob = layer(Digest::sha256(&bytes), bytes.len() as u64);
    for number in 0..2 {
        let part = bytes.slice(number * chunk..(number + 1) * chunk);
        let at = (number * chunk) as u64;
        let sent = repository
            .send_chunk(&mut session, at, chunk as u64, BlobBody::full(part))
            .await
            .unwrap();
        let Sent::Accepted { reported } = sent else {
            panic!("chunk {number}: {sent:?}")
        };
        let held = at + chunk as u64;
        assert!(
            reported.is_none_or(|reported| reported == held),
            "chunk {number}: {reported:?}"
        );
        if repository.abilities().resume == Resume::Status {
            assert_eq!(
                repository.upload_offset(&mut session).await.unwrap(),
                Offset::At(held)
            );
        }
    }
    assert_eq!(
        repository.has_blob(&blob.digest).await.unwrap(),
        Presence::Absent,
        "not before it is finished"
    );
    if last_travels_in_put(repository) {
        finish(
            repository,
            &mut session,
            &blob.digest,
            2 * chunk as u64,
            &bytes.slice(2 * chunk..),
        )
        .await;
    } else {
        let last = BlobBody::full(bytes.slice(2 * chunk..));
        let sent = repository
            .send_chunk(&mut session, 2 * chunk as u64, 7, last)
            .await
            .unwrap();
        assert!(matches!(sent, Sent::Accepted { .. }), "{sent:?}");
        finish(
            repository,
            &mut session,
            &blob.digest,
            blob.size,
            &Bytes::new(),
        )
        .await;
    }
    assert_eq!(read(repository, &blob).await.unwrap(), bytes);
}

async fn a_misplaced_chunk_tells_the_true_offset<D: Destination>(repository: &D) {
    if repository.abilities().resume != Resume::Status {
        return;
    }
    let mut session = begin(repository, &Digest::sha256(b"misplaced")).await;
    let chunk = CHUNK;
    let bytes = content("misplaced", 2 * chunk);
    let part = |from: usize| BlobBody::full(bytes.slice(from..from + chunk));
    for (offset, held) in [(chunk, 0), (0, 0), (0, chunk)] {
        let sent = repository
            .send_chunk(&mut session, offset as u64, chunk as u64, part(offset))
            .await
            .unwrap();
        match sent {
            Sent::Accepted { .. } => assert_eq!(offset, held),
            Sent::Misplaced(told) => {
                assert_ne!(offset, held);
                assert!(
                    told == Offset::At(held as u64) || told == Offset::Unknown,
                    "{told:?}"
                );
                assert_eq!(
                    repository.upload_offset(&mut session).await.unwrap(),
                    Offset::At(held as u64)
                );
            }
            Sent::Gone | Sent::Early => panic!("a misplaced chunk must not end the session"),
        }
    }
    finish(
        repository,
        &mut session,
        &Digest::sha256(&bytes),
        chunk as u64,
        &bytes.slice(chunk..),
    )
    .await;
}

async fn a_cut_upload_goes_on<D: Destination>(repository: &D) {
    if repository.abilities().resume != Resume::Status {
        return;
    }
    let bytes = content("cut", 3_000_000);
    let digest = Digest::sha256(&bytes);
    let mut session = begin(repository, &digest).await;
    let cut = BlobBody::new(Cut {
        part: Some(bytes.slice(..2_000_000)),
        promised: 3_000_000,
    });
    assert!(
        repository
            .finish_upload(&mut session, &digest, 0, 3_000_000, cut)
            .await
            .is_err()
    );
    assert_eq!(
        repository.has_blob(&digest).await.unwrap(),
        Presence::Absent
    );
    // Bytes of the broken request may still arrive at a server: each refusal tells where it is now.
    let mut at = true_offset(repository, &mut session).await;
    for _ in 0..20 {
        assert!(at <= 2_000_000);
        let rest = BlobBody::full(bytes.slice(at as usize..));
        match repository
            .finish_upload(&mut session, &digest, at, 3_000_000 - at, rest)
            .await
            .unwrap()
        {
            Sent::Accepted { .. } => break,
            Sent::Misplaced(_) => at = true_offset(repository, &mut session).await,
            Sent::Gone | Sent::Early => panic!("a cut must not end the session"),
        }
    }
    assert!(read(repository, &layer(digest, 3_000_000)).await.unwrap() == bytes);
}

async fn wrong_bytes_never_become_a_blob<D: Destination>(repository: &D) {
    let promised = Digest::sha256(b"promised");
    let mut session = begin(repository, &promised).await;
    let chunk = CHUNK;
    let bytes = content("wrong", chunk);
    repository
        .send_chunk(&mut session, 0, chunk as u64, BlobBody::full(bytes.clone()))
        .await
        .unwrap();
    let finished = repository
        .finish_upload(
            &mut session,
            &promised,
            chunk as u64,
            0,
            BlobBody::full(Bytes::new()),
        )
        .await;
    assert!(
        !matches!(finished, Ok(Sent::Accepted { .. })),
        "{finished:?}"
    );
    assert_absent(repository, &layer(promised, chunk as u64)).await;

    for length in [2999, 3001] {
        let bytes = content("length", 3000);
        let digest = Digest::sha256(&bytes);
        let mut session = begin(repository, &digest).await;
        let finished = repository
            .finish_upload(&mut session, &digest, 0, length, BlobBody::full(bytes))
            .await;
        assert!(
            !matches!(finished, Ok(Sent::Accepted { .. })),
            "{length} instead of 3000 bytes: {finished:?}"
        );
        assert_absent(repository, &layer(digest, 3000)).await;
    }
}

async fn a_cancelled_session_is_gone<D: Destination>(repository: &D) {
    let digest = Digest::sha256(b"cancel");
    let mut session = begin(repository, &digest).await;
    repository.cancel_upload(session.clone()).await.unwrap();
    if repository.abilities().resume == Resume::Status {
        assert_eq!(
            repository.upload_offset(&mut session).await.unwrap(),
            Offset::Gone
        );
    }
    let body = BlobBody::full(Bytes::from_static(b"cancel"));
    let sent = repository
        .finish_upload(&mut session, &digest, 0, 6, body)
        .await;
    assert!(
        !matches!(sent, Ok(Sent::Accepted { .. } | Sent::Misplaced(_))),
        "{sent:?}"
    );
    assert_absent(repository, &layer(digest, 6)).await;
}

async fn a_mount_needs_no_bytes<D: Destination>(from: &D, to: &D, empty: &D) {
    let bytes = content("mount", 4000);
    let blob = upload(from, &bytes).await;
    // Some registries mount only what a manifest refers to.
    let image = image(from, &blob, "mount").await;
    put(from, tag("v1"), &image).await;

    let begun = to
        .begin_upload(&blob.digest, Some(empty.repository()))
        .await
        .unwrap();
    let Begin::Session(session) = begun else {
        panic!("mounted from a repository that does not hold it")
    };
    assert_absent(to, &blob).await;
    to.cancel_upload(session).await.unwrap();

    match to
        .begin_upload(&blob.digest, Some(from.repository()))
        .await
        .unwrap()
    {
        Begin::Mounted => assert_eq!(read(to, &blob).await.unwrap(), bytes),
        Begin::Session(mut session) => {
            assert_eq!(to.abilities().mount, Mount::Off, "a held blob is mounted");
            finish(to, &mut session, &blob.digest, 0, &bytes).await;
        }
    }
    if to.abilities().mount_asks {
        let begun = to
            .begin_upload(&blob.digest, Some(to.repository()))
            .await
            .unwrap();
        assert!(
            matches!(begun, Begin::Mounted),
            "a mount from itself asks whether it is there"
        );
        let begun = to
            .begin_upload(&Digest::sha256(b"not there"), Some(to.repository()))
            .await
            .unwrap();
        assert!(matches!(begun, Begin::Session(_)));
    }
}

async fn manifests_come_back_byte_for_byte<D: Destination>(repository: &D) {
    let blob = upload(repository, &content("manifests", 1000)).await;
    let image = image(repository, &blob, "as it was written").await;
    put(repository, image.digest, &image).await;
    let child =
        json!({"mediaType": image.media_type, "digest": image.digest, "size": image.bytes.len()});
    // Unusual spacing and unknown fields: nothing of it may be written anew.
    let text = format!(
        "{{ \"x\":null, \"schemaVersion\" : 2,\n\"mediaType\":\"{OCI_INDEX}\",\"manifests\":[{child}] }}\n"
    );
    let index = Manifest::parse(text.into(), None, Algorithm::Sha256).unwrap();
    put(repository, tag("v1"), &index).await;
    put(repository, tag("v1"), &index).await;

    for (target, expected) in [
        (image.digest.into(), &image),
        (index.digest.into(), &index),
        (Target::Tag(tag("v1")), &index),
    ] {
        let read = repository.manifest(&target).await.unwrap().unwrap();
        assert_eq!(read.bytes, expected.bytes, "{target}");
        assert_eq!(
            (read.digest, &read.media_type),
            (expected.digest, &expected.media_type),
            "{target}"
        );
        let resolved = repository.resolve(&target).await.unwrap().unwrap();
        assert!(
            resolved
                .digest
                .is_none_or(|digest| digest == expected.digest),
            "{target}"
        );
        assert!(
            resolved
                .size
                .is_none_or(|size| size == expected.bytes.len() as u64),
            "{target}"
        );
        assert_eq!(resolved.media_type, expected.media_type, "{target}");
    }
    let other = Digest::sha256(b"other");
    let put = repository.put_manifest(&other.into(), &image).await;
    assert!(
        !matches!(put, Ok(Put::Accepted { .. })),
        "under another digest: {put:?}"
    );
    assert_eq!(repository.resolve(&other.into()).await.unwrap(), None);
}

async fn a_manifest_waits_for_its_content<D: Destination>(repository: &D) {
    let blob = upload(repository, &content("missing", 1000)).await;
    let lacking = image(
        repository,
        &layer(Digest::sha256(b"lacking"), 7),
        "lacks a layer",
    )
    .await;
    let put_lacking = repository
        .put_manifest(&tag("v1").into(), &lacking)
        .await
        .unwrap();
    assert_missing(&put_lacking, &Digest::sha256(b"lacking"));

    let child = image(repository, &blob, "child").await;
    let index = index_of(&[&child]);
    assert_missing(
        &repository
            .put_manifest(&tag("v1").into(), &index)
            .await
            .unwrap(),
        &child.digest,
    );
    assert_eq!(
        repository.resolve(&tag("v1").into()).await.unwrap(),
        None,
        "no tag without its content"
    );

    put(repository, child.digest, &child).await;
    put(repository, tag("v1"), &index).await;
    assert_eq!(
        repository
            .manifest(&tag("v1").into())
            .await
            .unwrap()
            .unwrap()
            .digest,
        index.digest
    );
}

async fn a_tag_moves_in_one_step<D: Destination>(repository: &D) {
    const ROUNDS: usize = 20;
    let blob = upload(repository, &content("moves", 1000)).await;
    let images = [
        image(repository, &blob, "one").await,
        image(repository, &blob, "two").await,
    ];
    put(repository, tag("latest"), &images[0]).await;
    let moving = async {
        for round in 0..ROUNDS {
            put(repository, tag("latest"), &images[(round + 1) % 2]).await;
        }
    };
    let looking = async {
        for _ in 0..ROUNDS {
            match repository.manifest(&tag("latest").into()).await {
                Ok(seen) => {
                    let seen = seen.expect("the tag is there at every moment");
                    assert!(images.iter().any(|image| image.bytes == seen.bytes));
                }
                // Docker's registry 2.8 answers 500 while it moves a tag.
                Err(fault) => assert!(fault.class().is_retryable(), "{fault:?}"),
            }
        }
    };
    futures::join!(moving, looking);
    let last = &images[ROUNDS % 2];
    assert_eq!(
        repository
            .manifest(&tag("latest").into())
            .await
            .unwrap()
            .unwrap()
            .digest,
        last.digest
    );
    for image in &images {
        assert!(
            repository
                .manifest(&image.digest.into())
                .await
                .unwrap()
                .is_some(),
            "both stay under their digests"
        );
    }
}

async fn the_listing_shows_every_tag<D: Destination>(repository: &D) {
    let blob = upload(repository, &content("tags", 1000)).await;
    let image = image(repository, &blob, "tags").await;
    put(repository, image.digest, &image).await;
    let names: BTreeSet<Tag> = (0..12).map(|number| tag(&format!("v{number}"))).collect();
    join_all(
        names
            .iter()
            .map(|name| put(repository, name.clone(), &image)),
    )
    .await;

    let (mut listed, mut cursor) = (Vec::new(), None);
    loop {
        let page = repository.tags(cursor.as_ref()).await.unwrap().unwrap();
        assert_eq!(page.invalid, 0);
        assert!(
            page.entries
                .iter()
                .all(|entry| entry.digest.is_none_or(|digest| digest == image.digest))
        );
        listed.extend(page.entries.into_iter().map(|entry| entry.name));
        match page.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    assert_eq!(listed.len(), names.len(), "each once: {listed:?}");
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), names);
    assert!(
        repository
            .tags(Some(&Cursor("http://[".into())))
            .await
            .is_err(),
        "a cursor of nobody is refused"
    );
}

async fn referrers_are_listed_where_lists_are_kept<D: Destination>(repository: &D) {
    let blob = upload(repository, &content("referrers", 1000)).await;
    let subject = image(repository, &blob, "subject").await;
    let mut signature = document(repository, &blob, "signature").await;
    signature["subject"] =
        json!({"mediaType": OCI_MANIFEST, "digest": subject.digest, "size": subject.bytes.len()});
    let signature = parse(&signature);

    let put_signature = repository
        .put_manifest(&signature.digest.into(), &signature)
        .await
        .unwrap();
    let Put::Accepted { subject: listed } = put_signature else {
        panic!("a subject may come later: {put_signature:?}")
    };
    put(repository, tag("v1"), &subject).await;
    match repository.referrers(&subject.digest, None).await.unwrap() {
        None => assert!(!listed),
        Some(page) => {
            let found: Vec<Digest> = page.entries.iter().map(|entry| entry.digest).collect();
            assert_eq!(found, [signature.digest]);
            assert_eq!(page.entries[0].size, signature.bytes.len() as u64);
            assert!(
                repository
                    .referrers(&signature.digest, None)
                    .await
                    .unwrap()
                    .unwrap()
                    .entries
                    .is_empty()
            );
        }
    }
}

async fn every_request_is_counted<D: Destination>(repository: &D) {
    let tally = Arc::new(Tally::default());
    let counted = repository.counted(&tally);
    let mut before = 0;
    let mut more = |what: &str| {
        assert!(tally.requests() > before, "{what} is not counted");
        before = tally.requests();
    };
    let blob = upload(&counted, &content("counted", 100)).await;
    more("an upload");
    counted.has_blob(&blob.digest).await.unwrap();
    more("the question for a blob");
    read(&counted.clone(), &blob).await.unwrap();
    more("a read through a clone");
    let image = image(&counted, &blob, "counted").await;
    put(&counted, tag("v1"), &image).await;
    more("a manifest");
    counted.resolve(&tag("v1").into()).await.unwrap();
    more("a tag");
    counted.tags(None).await.unwrap();
    more("a listing");
    let so_far = tally.requests();
    repository.tags(None).await.unwrap();
    assert_eq!(
        tally.requests(),
        so_far,
        "only what goes through the counted handle"
    );
}

#[tokio::test]
async fn layout_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let root = blobferry::layout::Root::new("layouts", folder.path());
    contract(async |name: &str| root.repository(name.parse().unwrap())).await;
}

#[tokio::test]
async fn one_layout_keeps_what_a_single_repository_can() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        blobferry::layout::Root::single("one", &folder.path().join(name))
            .repository("app".parse().unwrap())
    };
    chunks_add_up(&at("chunks")).await;
    manifests_come_back_byte_for_byte(&at("manifests")).await;
    referrers_are_listed_where_lists_are_kept(&at("referrers")).await;
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    let registry = memory::Registry::new("memory");
    contract(async |name: &str| registry.repository(name)).await;
}

#[tokio::test]
async fn memory_keeps_the_contract_at_its_oddest() {
    let registry = memory::Registry::new("odd");
    registry.set(|settings| {
        settings.abilities.upload = UploadStyle::Stream;
        settings.abilities.resume = Resume::Never;
        settings.abilities.mount = Mount::Off;
        settings.abilities.mount_asks = false;
        settings.referrers = false;
        settings.claims_digests = false;
        settings.tells_offset = false;
        settings.page = 5;
    });
    contract(async |name: &str| registry.repository(name)).await;
    registry.set(|settings| settings.abilities.mount = Mount::Committed);
    a_mount_needs_no_bytes(
        &registry.repository("committed/from"),
        &registry.repository("committed/to"),
        &registry.repository("committed/empty"),
    )
    .await;
}

/// The client as the engine sees it, against a real registry.
fn client(url: &str, kind: Option<&str>) -> blobferry::registry::Registry {
    let settings = blobferry::registry::Settings {
        name: "real".into(),
        url: url.parse().unwrap(),
        credentials: blobferry::registry::auth::Credentials::Anonymous,
        kind: kind.map(|kind| kind.parse().unwrap()),
        tls: Default::default(),
        token_realms: Vec::new(),
        insecure: false,
        deadlines: Default::default(),
    };
    let metrics = blobferry::registry::Metrics::new(&prometheus::Registry::new()).unwrap();
    blobferry::registry::Registry::new(settings, &metrics).unwrap()
}

#[tokio::test]
async fn distribution_2_keeps_the_contract() {
    let server = Program::Distribution2.setup().delete().start();
    let registry = client(&server.url(), Some("distribution2"));
    contract(async |name: &str| registry.repository(name.parse().unwrap())).await;
}

#[tokio::test]
async fn distribution_3_keeps_the_contract() {
    let server = Program::Distribution3.setup().delete().start();
    let registry = client(&server.url(), Some("distribution3"));
    contract(async |name: &str| registry.repository(name.parse().unwrap())).await;
}

#[tokio::test]
async fn a_registry_of_no_known_kind_keeps_the_contract() {
    let server = Program::Distribution3.setup().delete().start();
    let registry = client(&server.url(), None);
    contract(async |name: &str| registry.repository(name.parse().unwrap())).await;
}
