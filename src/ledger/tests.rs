use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::decision::{Decision, Kind, Target};
use crate::endpoint::Origin;
use crate::fault::Class;
use crate::job::{Actor, Cause, Trouble};

mod chain;
mod current;
mod retention;

fn digest(n: u8) -> Digest {
    Digest::sha256(&[n])
}

fn place(repository: &str, tag: &str) -> TagId {
    let origin = Origin::new("https://prod.example");
    TagId {
        origin,
        repository: repository.parse().unwrap(),
        tag: tag.parse().unwrap(),
    }
}

fn key(app: &str, tag: &str) -> Key {
    let source = format!("staging-{app}").parse().unwrap();
    Key {
        route: app.into(),
        source,
        tag: tag.parse().unwrap(),
        destination: place(&format!("prod-{app}"), tag),
    }
}

fn candidate(place: &TagId, digest: &Digest) -> Candidate {
    Candidate {
        is_clock_off: false,
        routes: Arc::from(["app".into()]),
        registry: "production".into(),
        place: place.clone(),
        set: None,
        beside: None,
        digest: *digest,
        index: None,
        rollback: None,
        accepted: None,
        contents: None,
    }
}

fn settled(result: Outcome, n: u8) -> Settled {
    Settled {
        source: "staging.example/staging-app:v1".into(),
        destination: "prod.example/prod-app:v1".into(),
        digest: Some(digest(n)),
        bytes_sent: 5,
        bytes_spared: 7,
        requests: 3,
        duration_seconds: 0.25,
        ..Settled::sample(result)
    }
}

fn facts() -> RunFacts {
    RunFacts {
        run_id: "run-1".into(),
        config_hash: "abc".into(),
        version: "0.1.0".into(),
        host: "builder".into(),
    }
}

async fn ids(ledger: &Ledger, query: Query) -> Vec<u64> {
    ledger
        .page(query)
        .await
        .unwrap()
        .into_iter()
        .map(|row| row.id)
        .collect()
}

#[test]
fn what_is_ours_is_what_was_written_or_may_have_been() {
    let written = |digest, intended: &[Digest]| TagRecord {
        digest,
        intended: intended.to_vec(),
        ..TagRecord::default()
    };
    let table = [
        (written(None, &[]), false, [false, false, false]),
        (written(Some(digest(1)), &[]), true, [true, false, false]),
        (written(None, &[digest(2)]), true, [false, true, false]),
        (
            written(Some(digest(1)), &[digest(2), digest(3)]),
            true,
            [true, true, true],
        ),
    ];
    for (written, known, ours) in table {
        assert_eq!(written.is_known(Some(&digest(4))), known, "{written:?}");
        assert_eq!(
            [1, 2, 3].map(|n| written.is_ours(&digest(n))),
            ours,
            "{written:?}"
        );
    }
}

#[tokio::test]
async fn an_intent_outlives_a_crash_until_the_tag_is_known_to_have_moved() {
    let folder = tempfile::tempdir().unwrap();
    let key = key("app", "latest");
    let place = place("prod-app", "latest");
    let reopened = || Ledger::open(folder.path()).unwrap();

    let ledger = reopened();
    assert_eq!(ledger.written(&place).await.unwrap(), TagRecord::default());
    ledger
        .intend(candidate(&place, &digest(1)), None)
        .await
        .unwrap();
    drop(ledger);
    let ledger = reopened();
    assert_eq!(
        ledger.written(&place).await.unwrap(),
        TagRecord {
            intended: vec![digest(1)],
            ..TagRecord::default()
        }
    );

    ledger
        .intend(candidate(&place, &digest(2)), None)
        .await
        .unwrap();
    let failed = settled(Outcome::Failed, 2);
    ledger.record(&key, &failed, facts(), None).await.unwrap();
    drop(ledger);
    let ledger = reopened();
    assert_eq!(
        ledger.written(&place).await.unwrap().intended,
        [digest(1), digest(2)],
        "either may be there"
    );

    ledger
        .record(
            &key,
            &settled(Outcome::Promoted, 2),
            facts(),
            Some(digest(2)),
        )
        .await
        .unwrap();
    drop(ledger);
    let written = reopened().written(&place).await.unwrap();
    assert_eq!(
        (written.digest, written.agreed, written.intended),
        (Some(digest(2)), false, vec![])
    );
    let elsewhere = TagId {
        tag: "v1".parse().unwrap(),
        ..place
    };
    assert!(!reopened().written(&elsewhere).await.unwrap().is_known(None));
}

#[tokio::test]
async fn intents_of_a_place_are_bounded() {
    let ledger = Ledger::in_memory();
    for n in 0..=100 {
        ledger
            .intend(candidate(&place("app", "latest"), &digest(n)), None)
            .await
            .unwrap();
    }
    ledger
        .intend(candidate(&place("app", "v1"), &digest(0)), None)
        .await
        .unwrap();
    let intended = ledger
        .written(&place("app", "latest"))
        .await
        .unwrap()
        .intended;
    assert_eq!((intended.len(), intended.last()), (32, Some(&digest(100))));
}

#[test]
fn equality_teaches_the_ledger_only_what_it_does_not_know() {
    let known = |digest, intended: &[Digest], reported| TagRecord {
        digest,
        intended: intended.to_vec(),
        reported,
        ..TagRecord::default()
    };
    let old = digest(1);
    let equal = digest(2);
    let table = [
        (
            "nothing is known",
            known(None, &[], None),
            EqualityUpdate::Agreed,
        ),
        (
            "it is known",
            known(Some(equal), &[], None),
            EqualityUpdate::None,
        ),
        (
            "another is known",
            known(Some(old), &[], None),
            EqualityUpdate::Agreed,
        ),
        (
            "it was intended",
            known(Some(old), &[equal], None),
            EqualityUpdate::Written,
        ),
        (
            "it was intended, then another",
            known(None, &[equal, old], None),
            EqualityUpdate::Written,
        ),
        (
            "an older intent is over",
            known(Some(equal), &[old], None),
            EqualityUpdate::Agreed,
        ),
        (
            "an intent over it may still arrive",
            TagRecord {
                replaced: Some(equal),
                ..known(Some(equal), &[old], None)
            },
            EqualityUpdate::None,
        ),
        (
            "it was reported as drift",
            known(Some(old), &[], Some(equal)),
            EqualityUpdate::None,
        ),
        (
            "it was reported as existing",
            known(None, &[], Some(equal)),
            EqualityUpdate::None,
        ),
        (
            "another was reported, and is gone",
            known(Some(equal), &[], Some(old)),
            EqualityUpdate::Agreed,
        ),
        (
            "another was reported, and is gone",
            known(Some(old), &[], Some(digest(3))),
            EqualityUpdate::Agreed,
        ),
    ];
    for (name, known, expected) in table {
        assert_eq!(known.on_equality(&equal), expected, "{name}");
    }
}

fn agreement(tag: &str, digest: Digest, known: TagRecord) -> Agreement {
    Agreement {
        tag: tag.parse().unwrap(),
        digest,
        known,
    }
}

#[tokio::test]
async fn agreement_is_recorded_only_if_the_ledger_is_as_the_look_read_it() {
    let ledger = Ledger::in_memory();
    let places = ["v1", "v2", "v3"].map(|tag| place("prod-app", tag));
    let TagId {
        origin, repository, ..
    } = places[0].clone();
    ledger.found(&places[1], &digest(7)).await.unwrap();
    let known = ledger.written_in(&origin, &repository).await.unwrap();
    let of = |tag: &str| {
        known
            .get(&tag.parse::<Tag>().unwrap())
            .cloned()
            .unwrap_or_default()
    };
    // A job writes while the look goes on.
    ledger
        .intend(candidate(&places[2], &digest(9)), None)
        .await
        .unwrap();
    let agreements = ["v1", "v2", "v3"].map(|tag| agreement(tag, digest(1), of(tag)));
    ledger
        .agree(&origin, &repository, agreements.into())
        .await
        .unwrap();
    let after = ledger.written_in(&origin, &repository).await.unwrap();
    let after = |tag: &str| {
        after
            .get(&tag.parse::<Tag>().unwrap())
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(
        (after("v1").digest, after("v1").agreed),
        (Some(digest(1)), true)
    );
    assert_eq!(
        (after("v2").digest, after("v2").agreed),
        (Some(digest(1)), true),
        "the sides agree on another digest now"
    );
    assert_eq!(
        (after("v3").digest, after("v3").intended),
        (None, vec![digest(9)]),
        "its intent came meanwhile"
    );
    assert!(
        ledger
            .page(Query {
                limit: 10,
                ..Query::default()
            })
            .await
            .unwrap()
            .is_empty(),
        "agreement is no outcome"
    );
    for tag in ["v1", "v2", "v3"] {
        assert_eq!(
            after(tag),
            ledger.written(&place("prod-app", tag)).await.unwrap(),
            "one tag is read as all are"
        );
    }
}

/// The answer to the write of 2 was lost, and a person went back to 1: 2 must not count as intended
/// any more.
#[tokio::test]
async fn an_intent_that_arrived_or_was_overtaken_counts_no_more() {
    let ledger = Ledger::in_memory();
    let place = place("prod-app", "latest");
    ledger.found(&place, &digest(1)).await.unwrap();
    for n in [2, 3, 4] {
        ledger
            .intend(candidate(&place, &digest(n)), None)
            .await
            .unwrap();
    }
    ledger.found(&place, &digest(3)).await.unwrap();
    let known = ledger.written(&place).await.unwrap();
    assert_eq!(
        (known.digest, known.intended.clone()),
        (Some(digest(3)), vec![digest(4)]),
        "the newer one may still arrive"
    );
    assert!(!known.is_ours(&digest(1)) && !known.is_ours(&digest(2)));
    let agreements = vec![agreement("latest", digest(3), known)];
    ledger
        .agree(&place.origin, &place.repository, agreements)
        .await
        .unwrap();
    assert_eq!(
        ledger.written(&place).await.unwrap().intended,
        [],
        "both sides name what was written"
    );
}

#[tokio::test]
async fn what_was_reported_as_drift_or_existing_stays_so_until_something_is_written() {
    for result in [Outcome::Drift, Outcome::Existing] {
        let ledger = Ledger::in_memory();
        let key = key("app", "latest");
        let mut reported = settled(result, 2);
        reported.previous_digest = Some(digest(3));
        ledger.record(&key, &reported, facts(), None).await.unwrap();
        let known = ledger.written(&key.destination).await.unwrap();
        assert_eq!(
            known.on_equality(&digest(3)),
            EqualityUpdate::None,
            "staging came to it, and nobody decided"
        );
        assert_eq!(
            known.on_equality(&digest(2)),
            EqualityUpdate::Agreed,
            "production went where staging is"
        );
        ledger
            .record(&key, &settled(Outcome::UpToDate, 3), facts(), None)
            .await
            .unwrap();
        assert_eq!(
            ledger.written(&key.destination).await.unwrap().reported,
            Some(digest(3)),
            "a row settles nothing"
        );
        ledger.found(&key.destination, &digest(2)).await.unwrap();
        assert_eq!(
            ledger.written(&key.destination).await.unwrap().reported,
            None
        );
    }
}

/// 100,000 fixed tags that were equal when they were first seen.
#[tokio::test]
async fn agreement_on_many_tags_stays_small() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    let origin = Origin::new("https://123456789012.dkr.ecr.eu-central-1.amazonaws.com");
    let repository: RepositoryName = "platform/payments/prod-demo-app".parse().unwrap();
    for batch in 0..100 {
        let tag = |n: u32| format!("v1.{batch}.{n}");
        let agreements = (0..1000).map(|n| {
            agreement(
                &tag(n),
                Digest::sha256(tag(n).as_bytes()),
                TagRecord::default(),
            )
        });
        ledger
            .agree(&origin, &repository, agreements.collect())
            .await
            .unwrap();
    }
    assert_eq!(
        ledger.written_in(&origin, &repository).await.unwrap().len(),
        100_000
    );
    ledger.close().await;
    let size = fs::metadata(folder.path().join("ledger.db")).unwrap().len();
    assert!(size <= 25_000_000, "{size} bytes");
}

#[test]
fn only_a_change_is_news() {
    let with = |change: fn(&mut Settled)| {
        let mut failed = settled(Outcome::Failed, 1);
        failed.error = Some(Trouble {
            class: crate::job::TroubleClass::Auth,
            text: "denied".into(),
        });
        change(&mut failed);
        failed
    };
    let failed = with(|_| {});
    let table = [
        (None, settled(Outcome::UpToDate, 1), true),
        (None, settled(Outcome::Planned, 1), false),
        (
            Some(settled(Outcome::Promoted, 1)),
            settled(Outcome::Promoted, 1),
            true,
        ),
        (
            Some(settled(Outcome::Promoted, 1)),
            settled(Outcome::UpToDate, 1),
            false,
        ),
        (
            Some(settled(Outcome::Promoted, 1)),
            settled(Outcome::UpToDate, 2),
            true,
        ),
        (
            Some(settled(Outcome::Failed, 1)),
            settled(Outcome::UpToDate, 1),
            true,
        ),
        (
            Some(settled(Outcome::Failed, 1)),
            settled(Outcome::Planned, 1),
            false,
        ),
        (Some(failed.clone()), with(|_| {}), false),
        (
            Some(failed.clone()),
            with(|settled| settled.error.as_mut().unwrap().text = "denied again".into()),
            false,
        ),
        (
            Some(failed.clone()),
            with(|settled| (settled.requests, settled.cause) = (99, Cause::Ping)),
            false,
        ),
        (
            Some(failed.clone()),
            with(|settled| {
                settled.error.as_mut().unwrap().class = crate::job::TroubleClass::Corrupt
            }),
            true,
        ),
        (
            Some(failed.clone()),
            with(|settled| settled.digest = None),
            true,
        ),
        (
            Some(failed.clone()),
            with(|settled| settled.previous_digest = settled.digest),
            true,
        ),
        (
            Some(failed.clone()),
            with(|settled| settled.reasons.push("because".into())),
            true,
        ),
        (
            Some(failed),
            with(|settled| settled.result = Outcome::Conflict),
            true,
        ),
    ];
    for (last, settled, news) in table {
        assert_eq!(
            is_news(last.as_ref(), &settled),
            news,
            "{last:?} then {settled:?}"
        );
    }
}

#[tokio::test]
async fn a_row_is_added_for_a_change_and_reads_as_it_was_written() {
    let ledger = Ledger::in_memory();
    let key = key("app", "v1");
    assert!(ledger.last(&key).await.unwrap().is_none());
    assert!(
        ledger
            .record(&key, &settled(Outcome::Failed, 1), facts(), None)
            .await
            .unwrap()
    );
    assert!(
        !ledger
            .record(&key, &settled(Outcome::Failed, 1), facts(), None)
            .await
            .unwrap()
    );
    let other = Key {
        route: "other".into(),
        ..key.clone()
    };
    assert!(
        ledger
            .record(&other, &settled(Outcome::Failed, 1), facts(), None)
            .await
            .unwrap(),
        "another route is another job"
    );
    assert!(
        ledger
            .record(
                &key,
                &settled(Outcome::Promoted, 1),
                facts(),
                Some(digest(1))
            )
            .await
            .unwrap()
    );
    assert!(
        !ledger
            .record(&key, &settled(Outcome::UpToDate, 1), facts(), None)
            .await
            .unwrap()
    );

    let row = ledger.last(&key).await.unwrap().unwrap();
    let json = serde_json::to_value(&row).unwrap();
    assert_eq!(
        (&json["id"], &json["result"], &json["host"]),
        (&3.into(), &"promoted".into(), &"builder".into())
    );
    let back: Row = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(back).unwrap(), json);
}

#[tokio::test]
async fn pages_follow_each_other_in_either_order_and_filter() {
    let ledger = Ledger::in_memory();
    for (app, tag) in [
        ("one", "v1"),
        ("one", "v2"),
        ("two", "v1"),
        ("two", "latest"),
        ("one", "v1"),
    ] {
        assert!(
            ledger
                .record(
                    &key(app, tag),
                    &settled(Outcome::Promoted, 1),
                    facts(),
                    None
                )
                .await
                .unwrap()
        );
    }
    let text = |text: &str| Some(text.to_owned());
    let all = Query {
        limit: 1000,
        ..Query::default()
    };
    let table: [(Query, &[u64]); 10] = [
        (all.clone(), &[1, 2, 3, 4, 5]),
        (
            Query {
                limit: 2,
                ..all.clone()
            },
            &[1, 2],
        ),
        (
            Query {
                limit: 2,
                after: 2,
                ..all.clone()
            },
            &[3, 4],
        ),
        (
            Query {
                limit: 0,
                newest_first: true,
                ..all.clone()
            },
            &[5],
        ),
        (
            Query {
                limit: 2,
                after: 4,
                newest_first: true,
                ..all.clone()
            },
            &[3, 2],
        ),
        (
            Query {
                repository: text("staging-one"),
                ..all.clone()
            },
            &[1, 2, 5],
        ),
        (
            Query {
                repository: text("prod-two"),
                newest_first: true,
                ..all.clone()
            },
            &[4, 3],
        ),
        (
            Query {
                tag: text("v1"),
                ..all.clone()
            },
            &[1, 3, 5],
        ),
        (
            Query {
                repository: text("prod-one"),
                tag: text("v1"),
                after: 1,
                ..all.clone()
            },
            &[5],
        ),
        (
            Query {
                repository: text("' OR 1 = 1 --"),
                after: u64::MAX,
                ..all
            },
            &[],
        ),
    ];
    for (query, expected) in table {
        assert_eq!(ids(&ledger, query.clone()).await, expected, "{query:?}");
    }
}

#[tokio::test]
async fn what_was_recorded_survives_a_close_and_later_requests_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    ledger
        .record(
            &key("app", "v1"),
            &settled(Outcome::Promoted, 1),
            facts(),
            Some(digest(1)),
        )
        .await
        .unwrap();
    let other = ledger.clone();
    ledger.close().await;
    let fault = other
        .intend(candidate(&place("app", "v1"), &digest(1)), None)
        .await
        .unwrap_err();
    assert_eq!(fault.class(), Class::RETRYABLE);
    assert!(fault.to_string().contains("ledger.db"), "{fault}");
    let ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(
        ids(
            &ledger,
            Query {
                limit: 10,
                ..Query::default()
            }
        )
        .await,
        [1]
    );
    for name in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
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

#[tokio::test]
async fn a_ledger_that_cannot_be_used_is_refused_and_left_alone() {
    let newer = |path: &Path| {
        Connection::open(path)
            .unwrap()
            .pragma_update(None, "user_version", 99)
            .unwrap()
    };
    let damaged = |path: &Path| fs::write(path, "scribble".repeat(1000)).unwrap();
    for (spoil, said) in [
        (&newer as &dyn Fn(&Path), "newer version"),
        (&damaged, "is damaged"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        Ledger::open(folder.path()).unwrap().close().await;
        spoil(&path);
        let before = fs::read(&path).unwrap();
        let text = Ledger::open(folder.path()).unwrap_err().to_string();
        let names_all = [
            said,
            &path.display().to_string(),
            "restore a copy",
            "move",
            "`existing`",
        ]
        .iter()
        .all(|word| text.contains(word));
        assert!(names_all, "{text}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}

#[test]
fn an_intent_alone_makes_nothing_known_while_production_names_what_it_named_before() {
    let record = |digest, replaced| TagRecord {
        digest,
        intended: vec![Digest::sha256(b"ours")],
        replaced,
        ..TagRecord::default()
    };
    let table = [
        ("nothing has moved", record(None, Some(digest(1))), false),
        ("it named another", record(None, Some(digest(2))), true),
        ("it named nothing", record(None, None), true),
        (
            "a write is known",
            record(Some(digest(3)), Some(digest(1))),
            true,
        ),
    ];
    for (name, record, known) in table {
        assert_eq!(record.is_known(Some(&digest(1))), known, "{name}");
    }
}

/// A denial waits for the content that was sent before it, and names what gets no answer.
#[tokio::test(start_paused = true)]
async fn a_denial_names_the_content_that_is_on_its_way() {
    let ledger = Ledger::in_memory();
    let image = Arc::new(HashSet::from([digest(1), digest(2)]));
    let carrying = ledger.begin_carry(digest(2), Some(image));
    let deny = async |n| {
        let decision = Decision::about(&Target::Digest(digest(n)), Actor::daemon());
        let recorded = ledger.decide(Kind::Deny, decision, facts()).await;
        recorded.unwrap().carried
    };
    assert_eq!(deny(3).await, [], "it is no part of that image");
    assert_eq!(deny(1).await, [digest(2)]);
    drop(carrying);
    assert_eq!(deny(2).await, []);
}

#[tokio::test]
async fn intents_over_one_digest_remember_it() {
    let ledger = Ledger::in_memory();
    let place = place("app", "latest");
    let read = async || {
        let alone = ledger.written(&place).await.unwrap();
        let all = ledger.written_in(&place.origin, &place.repository);
        assert_eq!(all.await.unwrap()[&place.tag], alone);
        alone.replaced
    };
    let table = [
        (2, Some(1), Some(1), "announced over 1"),
        (2, Some(1), Some(1), "again"),
        (3, Some(1), Some(1), "another over the same"),
        (2, Some(4), None, "it may have arrived over 1, or over 4"),
    ];
    for (intended, replaces, expected, name) in table {
        let replaces = replaces.map(digest);
        ledger
            .intend(candidate(&place, &digest(intended)), replaces)
            .await
            .unwrap();
        assert_eq!(read().await, expected.map(digest), "{name}");
    }
}

/// It is recorded with the intent: a process that ends directly after its request has no row.
#[tokio::test]
async fn of_which_index_a_manifest_is_a_part_is_known_before_it_is_named() {
    let ledger = Ledger::in_memory();
    let (named, other) = (place("app", "latest"), place("other", "latest"));
    for index in [8, 9, 9] {
        let candidate = Candidate {
            index: Some(digest(index)),
            ..candidate(&named, &digest(1))
        };
        ledger.intend(candidate, None).await.unwrap();
    }
    let mut indexes = ledger.indexes_of(&named, &digest(1)).await.unwrap();
    indexes.sort();
    let mut expected = vec![digest(8), digest(9)];
    expected.sort();
    assert_eq!(indexes, expected);
    for (place, digest) in [(&named, digest(2)), (&other, digest(1))] {
        assert_eq!(ledger.indexes_of(place, &digest).await.unwrap(), []);
    }
    // Production names the part from the row on.
    let deny = Decision::about(&Target::Digest(digest(9)), Actor::daemon());
    ledger.decide(Kind::Deny, deny, facts()).await.unwrap();
    assert_eq!(ledger.denied_in_production().await.unwrap(), []);
    ledger.found(&named, &digest(1)).await.unwrap();
    let denied = ledger.denied_in_production().await.unwrap();
    let places: Vec<&TagId> = denied.iter().map(|tag| &tag.place).collect();
    assert_eq!(places, [&named]);
}
