use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use super::*;
use crate::clock;
use crate::endpoint::Origin;
use crate::job::TagId;
use crate::oci::{Digest, RepositoryName, Tag};

fn origin() -> Origin {
    Origin::new("https://prod.example")
}

fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

fn repository(text: &str) -> RepositoryId {
    RepositoryId {
        origin: origin(),
        repository: name(text),
    }
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn digest(n: u64) -> Digest {
    Digest::sha256(&n.to_le_bytes())
}

/// A hint is about to be rewritten with another time: the clock of hints has to tick in between.
async fn tick() {
    let before = now();
    while now() == before {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_blob_is_known_where_it_was_seen_and_nowhere_else() {
    let index = Index::in_memory();
    let app = repository("app");
    assert_eq!(index.blob(&app, &digest(1)).await, None);
    index
        .remember_blobs(&app, vec![(digest(1), 10), (digest(2), 20)], false)
        .await;
    assert_eq!(index.blob(&app, &digest(1)).await.unwrap().size, 10);
    assert_eq!(index.blob(&repository("other"), &digest(1)).await, None);
    let elsewhere = RepositoryId {
        origin: Origin::new("https://staging.example"),
        ..app.clone()
    };
    assert_eq!(index.blob(&elsewhere, &digest(1)).await, None);
    let known = index.blobs(&app, &[digest(1), digest(2), digest(3)]).await;
    assert_eq!((known.len(), known[&digest(2)].size), (2, 20));
    index.forget_blobs(&app, vec![digest(1), digest(3)]).await;
    assert_eq!(
        index
            .blobs(&app, &[digest(1), digest(2), digest(3)])
            .await
            .len(),
        1
    );
}

#[tokio::test]
async fn holders_come_newest_first_and_stay_committed() {
    let index = Index::in_memory();
    for (name, committed) in [
        ("one", true),
        ("two", false),
        ("three", false),
        ("one", false),
    ] {
        index
            .remember_blobs(&repository(name), vec![(digest(1), 10)], committed)
            .await;
        index.blob(&repository(name), &digest(1)).await.unwrap();
        tick().await;
    }
    index
        .remember_blobs(
            &RepositoryId {
                origin: Origin::new("https://staging.example"),
                repository: name("else"),
            },
            vec![(digest(1), 10)],
            true,
        )
        .await;
    let holder = |text, committed| BlobHolder {
        repository: name(text),
        committed,
    };
    assert_eq!(
        index.holders(&origin(), &digest(1), 2).await,
        [holder("one", true), holder("three", false)]
    );
    assert_eq!(index.holders(&origin(), &digest(1), 10).await.len(), 3);
    assert_eq!(index.holders(&origin(), &digest(2), 10).await, []);
}

#[tokio::test]
async fn manifests_tags_and_checks_are_remembered_and_forgotten() {
    let index = Index::in_memory();
    let app = repository("app");
    index.remember_manifests(&app, vec![digest(1)], true).await;
    index
        .remember_manifests(&app, vec![digest(1), digest(2)], false)
        .await;
    assert!(
        index.manifest(&app, &digest(1)).await.unwrap().complete,
        "it was complete before"
    );
    assert!(!index.manifest(&app, &digest(2)).await.unwrap().complete);
    index.forget_manifest(&app, &digest(1)).await;
    assert_eq!(index.manifest(&app, &digest(1)).await, None);

    let seen = clock::now();
    let hint = |number| {
        let digest = digest(number);
        Some(TagHint { digest, seen })
    };
    let tags = vec![
        (tag("v1"), hint(1)),
        (tag("v2"), hint(2)),
        (tag("v3"), hint(3)),
    ];
    index.remember_tags(&app, tags).await;
    index
        .remember_tags(&app, vec![(tag("v1"), hint(9)), (tag("v2"), None)])
        .await;
    let place = |name| TagId {
        origin: origin(),
        repository: app.repository.clone(),
        tag: tag(name),
    };
    assert_eq!(index.tag(&place("v1")).await.unwrap().digest, digest(9));
    assert_eq!(index.tag(&place("v2")).await, None);
    let earlier = TagHint {
        digest: digest(1),
        seen: seen - Duration::from_secs(60),
    };
    index
        .remember_tags(&app, vec![(tag("v1"), Some(earlier))])
        .await;
    let kept = index.tag(&place("v1")).await.unwrap();
    assert_eq!(kept.digest, digest(9), "it was seen later");
    let early = TagHint {
        digest: digest(4),
        seen: seen + Duration::from_secs(3600),
    };
    index
        .remember_tags(&app, vec![(tag("v1"), Some(early))])
        .await;
    assert_eq!(index.tag(&place("v1")).await, None, "its time is to come");
    index.remember_tags(&app, vec![(tag("v1"), hint(9))]).await;
    index.forget_tag(&place("v3")).await;
    assert_eq!(
        index.tags(&app).await.into_keys().collect::<Vec<_>>(),
        [tag("v1")]
    );

    assert_eq!(index.checked(&app, &digest(1)).await, None);
    index.mark_checked(&app, &digest(1)).await;
    assert!(
        index
            .checked(&app, &digest(1))
            .await
            .is_some_and(|at| at <= clock::now())
    );
}

#[tokio::test]
async fn a_hint_from_the_future_is_none() {
    let index = Index::in_memory();
    let app = repository("app");
    index
        .remember_blobs(&app, vec![(digest(1), 10)], false)
        .await;
    index
        .queue(|db| {
            db.execute("UPDATE blobs SET seen = seen + 3600000", [])
                .map(drop)
        })
        .await;
    assert_eq!(index.blob(&app, &digest(1)).await, None);
    index
        .remember_blobs(&app, vec![(digest(1), 10)], false)
        .await;
    assert!(index.blob(&app, &digest(1)).await.is_some());
}

#[tokio::test]
async fn an_upload_is_found_again_by_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let app = repository("app");
    let blob = digest(1);
    let index = Index::open(folder.path()).unwrap().index;
    index
        .open_upload(&app, &blob, 100, "https://prod.example/upload?secret=a")
        .await;
    index.checkpoint(&app, &blob, 40, vec![4]).await;
    index.checkpoint(&app, &blob, 8, vec![1]).await;
    index.checkpoint(&app, &digest(2), 8, vec![1]).await;
    index.finishing(&app, &blob).await;
    drop(index);

    let index = Index::open(folder.path()).unwrap().index;
    let upload = index.upload(&app, &blob).await.unwrap();
    assert_eq!((upload.size, upload.finishing), (100, true));
    assert_eq!(upload.location, "https://prod.example/upload?secret=a");
    let offsets: Vec<_> = upload
        .checkpoints
        .iter()
        .map(|checkpoint| (checkpoint.offset, &checkpoint.state[..]))
        .collect();
    assert_eq!(offsets, [(8, &[1][..]), (40, &[4][..])]);
    assert!(!format!("{upload:?}").contains("secret"));
    assert_eq!(
        index.upload(&app, &digest(2)).await,
        None,
        "a checkpoint opens nothing"
    );

    index.open_upload(&app, &blob, 100, "anew").await;
    let upload = index.upload(&app, &blob).await.unwrap();
    assert_eq!(
        (upload.finishing, upload.checkpoints.len()),
        (false, 0),
        "another session starts over"
    );
    index.close_upload(&app, &blob).await;
    assert_eq!(index.upload(&app, &blob).await, None);
}

#[tokio::test]
async fn the_old_is_forgotten_and_the_rest_counted() {
    let index = Index::in_memory();
    let app = repository("app");
    let hints = || (0..25_000).map(|n| (digest(n), n)).collect();
    index.remember_blobs(&app, hints(), false).await;
    index.remember_blobs(&app, hints(), true).await;
    index.remember_manifests(&app, vec![digest(1)], true).await;
    index
        .remember_tags(
            &app,
            vec![(
                tag("v1"),
                Some(TagHint {
                    digest: digest(1),
                    seen: clock::now(),
                }),
            )],
        )
        .await;
    index.mark_checked(&app, &digest(1)).await;
    index.open_upload(&app, &digest(2), 5, "here").await;
    let full = index.statistics().await;
    assert!(full.bytes > 25_000 * 33);
    assert_eq!(
        full,
        Statistics {
            blobs: 25_000,
            manifests: 1,
            tags: 1,
            uploads: 1,
            bytes: full.bytes
        }
    );

    index.prune(clock::now() - Duration::from_secs(3600)).await;
    assert_eq!(index.statistics().await, full, "nothing is old");
    let mut blobs = Vec::new();
    for _ in 0..3 {
        index.prune(clock::now() + Duration::from_secs(1)).await;
        blobs.push(index.statistics().await.blobs);
    }
    assert_eq!(
        blobs,
        [15_000, 10_000, 0],
        "the walk stood at 10000, went on to the end and came round"
    );
    assert_eq!(
        Statistics {
            bytes: 0,
            ..index.statistics().await
        },
        Statistics::default()
    );
    assert_eq!(index.checked(&app, &digest(1)).await, None);
}

#[tokio::test]
async fn what_cannot_be_used_is_set_aside() {
    let newer = |path: &Path| {
        Connection::open(path)
            .unwrap()
            .pragma_update(None, "user_version", 99)
            .unwrap()
    };
    let damaged = |path: &Path| fs::write(path, "scribble".repeat(1000)).unwrap();
    for (spoil, said) in [
        (&newer as &dyn Fn(&Path), "newer version"),
        (&damaged, "damaged"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.db");
        let opened = Index::open(folder.path()).unwrap();
        assert_eq!(opened.set_aside, None);
        opened.index.close().await;
        spoil(&path);

        let opened = Index::open(folder.path()).unwrap();
        let aside = opened.set_aside.unwrap();
        assert!(
            aside.reason.contains(said) && aside.reason.contains("index.db"),
            "{}",
            aside.reason
        );
        assert_eq!(
            fs::metadata(&aside.path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        opened
            .index
            .remember_blobs(&repository("app"), vec![(digest(1), 1)], false)
            .await;
        assert_eq!(opened.index.statistics().await.blobs, 1);
        for name in ["index.db", "index.db-wal", "index.db-shm"] {
            assert_eq!(
                fs::metadata(folder.path().join(name))
                    .unwrap()
                    .permissions()
                    .mode()
                    & 0o777,
                0o600,
                "{name}"
            );
        }
    }
}

#[tokio::test]
async fn a_database_that_fails_is_an_index_that_does_not_know() {
    let index = Index::in_memory();
    let app = repository("app");
    index
        .remember_blobs(&app, vec![(digest(1), 1)], false)
        .await;
    index
        .queue(|db| db.execute_batch("PRAGMA foreign_keys = OFF; DROP TABLE blobs"))
        .await;
    assert_eq!(index.errors(), 0);
    index
        .remember_blobs(&app, vec![(digest(1), 1)], false)
        .await;
    assert_eq!(index.blob(&app, &digest(1)).await, None);
    assert_eq!(index.errors(), 2);
    index.mark_checked(&app, &digest(1)).await;
    assert!(index.checked(&app, &digest(1)).await.is_some());
    let other = index.clone();
    index.close().await;
    assert_eq!(other.checked(&app, &digest(1)).await, None);
    assert_eq!(other.errors(), 2, "to be closed is no trouble");
}

#[tokio::test]
async fn fifty_thousand_hints_in_many_requests_are_all_there() {
    let folder = tempfile::tempdir().unwrap();
    let index = Index::open(folder.path()).unwrap().index;
    for batch in 0..2_500u64 {
        let blobs = (0..20).map(|n| (digest(batch * 20 + n), n)).collect();
        index
            .remember_blobs(&repository(&format!("app-{}", batch % 50)), blobs, true)
            .await;
    }
    assert_eq!(index.statistics().await.blobs, 50_000);
    index.close().await;
    let index = Index::open(folder.path()).unwrap().index;
    assert_eq!(index.statistics().await.blobs, 50_000);
    assert_eq!(
        index.holders(&origin(), &digest(49_999), 5).await[0].repository,
        name("app-49")
    );
}

#[tokio::test]
async fn a_repository_that_is_not_set_up_is_known_to_the_next_process() {
    use crate::ecr::Unfinished as _;
    let folder = tempfile::tempdir().unwrap();
    let made = repository("made");
    let other = repository("other");
    let index = Index::open(folder.path()).unwrap().index;
    assert!(!index.is_noted(&made).await);
    index.note(&made).await;
    index.note(&made).await;
    // Killed: nothing is closed.
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let next = Index::open(copy.path()).unwrap().index;
    assert!(next.is_noted(&made).await && !next.is_noted(&other).await);
    next.clear(&made).await;
    assert!(!next.is_noted(&made).await);
}
