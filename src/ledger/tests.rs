use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::endpoint::Origin;
use crate::fault::Class;
use crate::job::{Actor, BlobCounts, Cause, Trouble};

fn digest(n: u8) -> Digest {
    Digest::sha256(&[n])
}

fn place(repository: &str, tag: &str) -> Place {
    let origin = Origin::new("https://prod.example");
    Place { origin, repository: repository.parse().unwrap(), tag: tag.parse().unwrap() }
}

fn key(app: &str, tag: &str) -> Key {
    let source = format!("staging-{app}").parse().unwrap();
    Key { route: app.into(), source, tag: tag.parse().unwrap(), destination: place(&format!("prod-{app}"), tag) }
}

fn settled(result: Outcome, n: u8) -> Settled {
    Settled {
        route: "app".into(),
        source: "staging.example/staging-app:v1".into(),
        destination: "prod.example/prod-app:v1".into(),
        digest: Some(digest(n)),
        previous_digest: None,
        cause: Cause::Poll,
        actor: Actor::daemon(),
        result,
        reasons: Vec::new(),
        error: None,
        blobs: BlobCounts::default(),
        referrers: Default::default(),
        bytes_sent: 5,
        bytes_spared: 7,
        requests: 3,
        duration_seconds: 0.25,
        unguarded: false,
    }
}

fn facts() -> Facts {
    Facts { run_id: "run-1".into(), config_hash: "abc".into(), version: "0.1.0".into(), host: "builder".into() }
}

async fn ids(ledger: &Ledger, query: Query) -> Vec<u64> {
    ledger.page(query).await.unwrap().into_iter().map(|row| row.id).collect()
}

#[test]
fn what_is_ours_is_what_was_written_or_may_have_been() {
    let written = |digest, intended: &[Digest]| Written { digest, intended: intended.to_vec() };
    let table = [
        (written(None, &[]), false, [false, false, false]),
        (written(Some(digest(1)), &[]), true, [true, false, false]),
        (written(None, &[digest(2)]), true, [false, true, false]),
        (written(Some(digest(1)), &[digest(2), digest(3)]), true, [true, true, true]),
    ];
    for (written, known, ours) in table {
        assert_eq!(written.known(), known, "{written:?}");
        assert_eq!([1, 2, 3].map(|n| written.is_ours(&digest(n))), ours, "{written:?}");
    }
}

#[tokio::test]
async fn an_intent_outlives_a_crash_until_the_tag_is_known_to_have_moved() {
    let folder = tempfile::tempdir().unwrap();
    let (key, place) = (key("app", "latest"), place("prod-app", "latest"));
    let reopened = || Ledger::open(folder.path()).unwrap();

    let ledger = reopened();
    assert_eq!(ledger.written(&place).await.unwrap(), Written::default());
    ledger.intend(&place, &digest(1)).await.unwrap();
    drop(ledger);
    let ledger = reopened();
    assert_eq!(ledger.written(&place).await.unwrap(), Written { digest: None, intended: vec![digest(1)] });

    ledger.intend(&place, &digest(2)).await.unwrap();
    let failed = settled(Outcome::Failed, 2);
    ledger.record(&key, &failed, facts(), None).await.unwrap();
    drop(ledger);
    let ledger = reopened();
    assert_eq!(ledger.written(&place).await.unwrap().intended, [digest(1), digest(2)], "either may be there");

    ledger.record(&key, &settled(Outcome::Promoted, 2), facts(), Some(digest(2))).await.unwrap();
    drop(ledger);
    assert_eq!(reopened().written(&place).await.unwrap(), Written { digest: Some(digest(2)), intended: vec![] });
    let elsewhere = Place { tag: "v1".parse().unwrap(), ..place };
    assert!(!reopened().written(&elsewhere).await.unwrap().known());
}

#[tokio::test]
async fn intents_of_a_place_are_bounded() {
    let ledger = Ledger::in_memory();
    for n in 0..=100 {
        ledger.intend(&place("app", "latest"), &digest(n)).await.unwrap();
    }
    ledger.intend(&place("app", "v1"), &digest(0)).await.unwrap();
    let intended = ledger.written(&place("app", "latest")).await.unwrap().intended;
    assert_eq!((intended.len(), intended.last()), (32, Some(&digest(100))));
}

#[test]
fn only_a_change_is_news() {
    let with = |change: fn(&mut Settled)| {
        let mut failed = settled(Outcome::Failed, 1);
        failed.error = Some(Trouble { class: "auth".into(), text: "denied".into() });
        change(&mut failed);
        failed
    };
    let failed = with(|_| {});
    let table = [
        (None, settled(Outcome::UpToDate, 1), true),
        (None, settled(Outcome::Planned, 1), false),
        (Some(settled(Outcome::Promoted, 1)), settled(Outcome::Promoted, 1), true),
        (Some(settled(Outcome::Promoted, 1)), settled(Outcome::UpToDate, 1), false),
        (Some(settled(Outcome::Promoted, 1)), settled(Outcome::UpToDate, 2), true),
        (Some(settled(Outcome::Failed, 1)), settled(Outcome::UpToDate, 1), true),
        (Some(settled(Outcome::Failed, 1)), settled(Outcome::Planned, 1), false),
        (Some(failed.clone()), with(|_| {}), false),
        (Some(failed.clone()), with(|settled| settled.error.as_mut().unwrap().text = "denied again".into()), false),
        (Some(failed.clone()), with(|settled| (settled.requests, settled.cause) = (99, Cause::Ping)), false),
        (Some(failed.clone()), with(|settled| settled.error.as_mut().unwrap().class = "corrupt".into()), true),
        (Some(failed.clone()), with(|settled| settled.digest = None), true),
        (Some(failed.clone()), with(|settled| settled.previous_digest = settled.digest), true),
        (Some(failed.clone()), with(|settled| settled.reasons.push("because".into())), true),
        (Some(failed), with(|settled| settled.result = Outcome::Conflict), true),
    ];
    for (last, settled, news) in table {
        assert_eq!(is_news(last.as_ref(), &settled), news, "{last:?} then {settled:?}");
    }
}

#[tokio::test]
async fn a_row_is_added_for_a_change_and_reads_as_it_was_written() {
    let ledger = Ledger::in_memory();
    let key = key("app", "v1");
    assert!(ledger.last(&key).await.unwrap().is_none());
    assert!(ledger.record(&key, &settled(Outcome::Failed, 1), facts(), None).await.unwrap());
    assert!(!ledger.record(&key, &settled(Outcome::Failed, 1), facts(), None).await.unwrap());
    let other = Key { route: "other".into(), ..key.clone() };
    assert!(ledger.record(&other, &settled(Outcome::Failed, 1), facts(), None).await.unwrap(), "another route is another job");
    assert!(ledger.record(&key, &settled(Outcome::Promoted, 1), facts(), Some(digest(1))).await.unwrap());
    assert!(!ledger.record(&key, &settled(Outcome::UpToDate, 1), facts(), None).await.unwrap());

    let row = ledger.last(&key).await.unwrap().unwrap();
    let json = serde_json::to_value(&row).unwrap();
    assert_eq!((&json["id"], &json["result"], &json["host"]), (&3.into(), &"promoted".into(), &"builder".into()));
    let back: Row = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(back).unwrap(), json);
}

#[tokio::test]
async fn pages_follow_each_other_in_either_order_and_filter() {
    let ledger = Ledger::in_memory();
    for (app, tag) in [("one", "v1"), ("one", "v2"), ("two", "v1"), ("two", "latest"), ("one", "v1")] {
        assert!(ledger.record(&key(app, tag), &settled(Outcome::Promoted, 1), facts(), None).await.unwrap());
    }
    let text = |text: &str| Some(text.to_owned());
    let all = Query { limit: 1000, ..Query::default() };
    let table: [(Query, &[u64]); 10] = [
        (all.clone(), &[1, 2, 3, 4, 5]),
        (Query { limit: 2, ..all.clone() }, &[1, 2]),
        (Query { limit: 2, after: 2, ..all.clone() }, &[3, 4]),
        (Query { limit: 0, newest_first: true, ..all.clone() }, &[5]),
        (Query { limit: 2, after: 4, newest_first: true, ..all.clone() }, &[3, 2]),
        (Query { repository: text("staging-one"), ..all.clone() }, &[1, 2, 5]),
        (Query { repository: text("prod-two"), newest_first: true, ..all.clone() }, &[4, 3]),
        (Query { tag: text("v1"), ..all.clone() }, &[1, 3, 5]),
        (Query { repository: text("prod-one"), tag: text("v1"), after: 1, ..all.clone() }, &[5]),
        (Query { repository: text("' OR 1 = 1 --"), after: u64::MAX, ..all }, &[]),
    ];
    for (query, expected) in table {
        assert_eq!(ids(&ledger, query.clone()).await, expected, "{query:?}");
    }
}

#[tokio::test]
async fn what_was_recorded_survives_a_close_and_later_requests_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    ledger.record(&key("app", "v1"), &settled(Outcome::Promoted, 1), facts(), Some(digest(1))).await.unwrap();
    let other = ledger.clone();
    ledger.close().await;
    let fault = other.intend(&place("app", "v1"), &digest(1)).await.unwrap_err();
    assert_eq!(fault.class(), Class::RETRYABLE);
    assert!(fault.to_string().contains("ledger.db"), "{fault}");
    let ledger = Ledger::open(folder.path()).unwrap();
    assert_eq!(ids(&ledger, Query { limit: 10, ..Query::default() }).await, [1]);
    for name in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
        assert_eq!(fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_ledger_that_cannot_be_used_is_refused_and_left_alone() {
    let newer = |path: &Path| Connection::open(path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let damaged = |path: &Path| fs::write(path, "scribble".repeat(1000)).unwrap();
    for (spoil, said) in [(&newer as &dyn Fn(&Path), "newer version"), (&damaged, "is damaged")] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        Ledger::open(folder.path()).unwrap().close().await;
        spoil(&path);
        let before = fs::read(&path).unwrap();
        let text = Ledger::open(folder.path()).unwrap_err().to_string();
        let names_all =
            [said, &path.display().to_string(), "restore a copy", "move", "`existing`"].iter().all(|word| text.contains(word));
        assert!(names_all, "{text}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}
