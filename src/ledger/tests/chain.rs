//! The chain of rows: what was recorded stays as it was, or the change shows.

use rusqlite::params;

use super::*;
use crate::ledger::Verified;

/// A ledger as version 1 of the schema left it: a drift, a promotion, and a failure that has lost
/// its texts.
fn first_version(folder: &Path) {
    let db = Connection::open(folder.join("ledger.db")).unwrap();
    db.execute_batch(schema::SCHEMA.migrations[0]).unwrap();
    db.pragma_update(None, "application_id", schema::SCHEMA.application)
        .unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    db.execute(
        "INSERT INTO jobs VALUES (1, 'app', 'staging-app', 'latest', 'https://prod.example', 'prod-app', 'latest')",
        [],
    )
    .unwrap();
    let drift = Settled {
        previous_digest: Some(digest(3)),
        ..settled(Outcome::Drift, 2)
    };
    let expired = Settled {
        expired: true,
        ..settled(Outcome::Failed, 2)
    };
    for settled in [settled(Outcome::Promoted, 1), expired, drift] {
        db.execute(
            "INSERT INTO outcomes (job, at, run_id, host, config_hash, version, settled) VALUES (1, 1700000000000, 'r', 'h', 'c', '0.1.0', ?1)",
            [serde_json::to_string(&settled).unwrap()],
        )
        .unwrap();
    }
    let [origin, repository, tag] = ["https://prod.example", "prod-app", "v1"];
    db.execute(
        "INSERT INTO written (origin, repository, tag, digest, at) VALUES (?1, ?2, ?3, ?4, 1700000000000)",
        params![origin, repository, tag, digest(1).to_string()],
    )
    .unwrap();
}

#[tokio::test]
async fn a_ledger_of_the_first_version_keeps_what_it_knows_and_is_chained() {
    let folder = tempfile::tempdir().unwrap();
    first_version(folder.path());
    let read = Ledger::open_to_read(folder.path()).unwrap().unwrap();
    assert!(matches!(
        read.verify().await.unwrap(),
        Verified::Whole { rows: 3, .. }
    ));
    let ledger = Ledger::open(folder.path()).unwrap();
    let known = ledger.written(&place("prod-app", "v1")).await.unwrap();
    assert_eq!(
        (known.digest, known.agreed, known.reported),
        (Some(digest(1)), false, None)
    );
    let reported = ledger.written(&place("prod-app", "latest")).await.unwrap();
    assert_eq!(reported.reported, Some(digest(3)));
    let listed = ledger.tags(TagsQuery {
        limit: 10,
        routes: vec!["app".into()],
        results: vec![Outcome::Drift],
        ..TagsQuery::default()
    });
    assert_eq!(listed.await.unwrap()[0].id, 3, "the newest row is known");
    let all = Query {
        limit: 10,
        ..Query::default()
    };
    assert_eq!(ids(&ledger, all).await, [1, 2, 3]);
    let key = key("app", "v2");
    ledger
        .record(&key, &settled(Outcome::Promoted, 4), facts(), None)
        .await
        .unwrap();
    let Verified::Whole {
        rows,
        last,
        ledger: identity,
    } = ledger.verify().await.unwrap()
    else {
        panic!("the chain is whole");
    };
    assert_eq!((rows, last, identity.len()), (4, 4, 16));
}

/// A ledger with five rows and no handle on it.
async fn five(folder: &Path) {
    let ledger = Ledger::open(folder).unwrap();
    for n in 1..=4 {
        let key = key("app", &format!("v{n}"));
        let result = if n == 2 {
            Outcome::Failed
        } else {
            Outcome::Promoted
        };
        let reasons = vec!["why".to_owned()];
        let settled = Settled {
            reasons,
            ..settled(result, n)
        };
        ledger.record(&key, &settled, facts(), None).await.unwrap();
    }
    let reload = Reload {
        warnings: Vec::new(),
        accepted: false,
        error: Some("line 3: unknown key".into()),
        actor: Actor::daemon(),
        expired: false,
    };
    ledger.reloaded(reload, facts()).await.unwrap();
    ledger.close().await;
}

#[tokio::test]
async fn whatever_is_changed_in_a_row_shows() {
    let table = [
        ("UPDATE rows SET at = at + 1 WHERE id = 2", 2),
        ("UPDATE rows SET host = 'other' WHERE id = 1", 1),
        ("UPDATE rows SET kind = 'reload' WHERE id = 4", 4),
        (
            "UPDATE rows SET content = replace(content, '\"app\"', '\"web\"') WHERE id = 3",
            3,
        ),
        // A promotion that is made to look as if it had lost its texts.
        (
            "UPDATE rows SET content = json_set(content, '$.reasons', json('[]'), '$.expired', json('true')) WHERE id = 3",
            3,
        ),
        (
            "UPDATE rows SET content = json_set(content, '$.digest', 'x', '$.expired', json('true')) WHERE id = 2",
            2,
        ),
        ("UPDATE rows SET kept = whole WHERE id = 2", 2),
        ("UPDATE jobs SET source = 'other' WHERE id = 2", 2),
        ("UPDATE rows SET job = 1 WHERE id = 3", 3),
        ("DELETE FROM rows WHERE id = 1", 2),
        ("DELETE FROM rows WHERE id IN (2, 3)", 4),
        ("DELETE FROM rows WHERE id = 5", 5),
        ("UPDATE identity SET id = 'another'", 1),
    ];
    for (change, first) in table {
        let folder = tempfile::tempdir().unwrap();
        five(folder.path()).await;
        Connection::open(folder.path().join("ledger.db"))
            .unwrap()
            .execute_batch(&format!("PRAGMA foreign_keys = OFF; {change}"))
            .unwrap();
        let ledger = Ledger::open_to_read(folder.path()).unwrap().unwrap();
        let verified = ledger.verify().await.unwrap();
        assert!(
            matches!(verified, Verified::Broken { row, .. } if row == first),
            "{change}: {verified:?}"
        );
    }
}

#[tokio::test]
async fn a_row_never_takes_the_place_of_one_that_was_removed() {
    let folder = tempfile::tempdir().unwrap();
    five(folder.path()).await;
    Connection::open(folder.path().join("ledger.db"))
        .unwrap()
        .execute("DELETE FROM rows WHERE id = 5", [])
        .unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    ledger
        .record(
            &key("app", "v9"),
            &settled(Outcome::Promoted, 9),
            facts(),
            None,
        )
        .await
        .unwrap();
    let verified = ledger.verify().await.unwrap();
    assert!(
        matches!(verified, Verified::Broken { row: 6, .. }),
        "{verified:?}"
    );
}

/// A later step of the schema gave every row new hashes: what had been changed passed as recorded.
#[tokio::test]
async fn rows_that_are_chained_keep_their_hashes() {
    let ledger = Ledger::in_memory();
    for tag in ["v1", "v2"] {
        let key = key("app", tag);
        let settled = settled(Outcome::Promoted, 4);
        ledger.record(&key, &settled, facts(), None).await.unwrap();
    }
    let seal_changed = |db: &Connection| {
        db.execute("UPDATE rows SET content = '{}' WHERE id = 1", [])?;
        crate::ledger::chain::seal(db)
    };
    ledger.store.write(seal_changed).await.unwrap();
    let verified = ledger.verify().await.unwrap();
    assert!(
        matches!(verified, Verified::Broken { row: 1, .. }),
        "{verified:?}"
    );
}
