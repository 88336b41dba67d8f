//! The clock is set: rows grow a year older in no time.

use std::time::Duration;

use jiff::SignedDuration;
use tokio::sync::watch;

use super::*;
use crate::clock;
use crate::job::Remarks;

const YEAR: SignedDuration = SignedDuration::from_hours(8760);

fn with_texts(result: Outcome, n: u8) -> Settled {
    let remarks = Remarks {
        reason: Some("because of joe@example".parse().unwrap()),
        claimed_actor: Some("joe".parse().unwrap()),
    };
    Settled {
        reasons: vec!["a reason".into()],
        error: Some(Trouble {
            class: crate::job::TroubleClass::Auth,
            text: "a text of a registry".into(),
        }),
        actor: Actor::named("user:alice").saying(remarks),
        ..settled(result, n)
    }
}

async fn record(ledger: &Ledger, tag: &str, settled: &Settled) {
    let is_new = ledger
        .record(&key("app", tag), settled, facts(), None)
        .await;
    assert!(is_new.unwrap());
}

fn all() -> Query {
    Query {
        limit: 1000,
        ..Query::default()
    }
}

async fn rows(ledger: &Ledger) -> Vec<Row> {
    ledger.page(all()).await.unwrap()
}

/// Changes what is stored, as nothing in the program does.
async fn write(ledger: &Ledger, sql: &str) {
    let sql = sql.to_owned();
    let act = move |db: &rusqlite::Connection| db.execute_batch(&sql);
    ledger.store.write(act).await.unwrap();
}

fn is_cut(row: &Row) -> bool {
    row.settled().is_some_and(|settled| settled.expired)
}

fn simulate() {
    clock::simulate("2026-01-01T00:00:00Z".parse().unwrap());
}

#[tokio::test(start_paused = true)]
async fn old_rows_lose_their_texts_and_keep_what_happened() {
    simulate();
    let ledger = Ledger::in_memory();
    record(&ledger, "v1", &with_texts(Outcome::Failed, 1)).await;
    record(&ledger, "v2", &with_texts(Outcome::Promoted, 2)).await;
    clock::step(YEAR);
    record(&ledger, "v3", &with_texts(Outcome::Conflict, 3)).await;
    let before = rows(&ledger).await;
    clock::step(SignedDuration::from_secs(1));
    let limit = clock::now() - YEAR;
    assert_eq!(ledger.drop_texts_before(limit).await.unwrap(), Step::End);

    let after = rows(&ledger).await;
    let json = |row: &Row| serde_json::to_value(row).unwrap();
    let mut expected = json(&before[0]);
    expected["reason"] = serde_json::Value::Null;
    expected["reasons"] = serde_json::json!([]);
    expected["error"]["text"] = "".into();
    expected["expired"] = true.into();
    expected.as_object_mut().unwrap().remove("claimed_actor");
    assert_eq!(
        json(&after[0]),
        expected,
        "number, time, result, digests and class stay"
    );
    assert_eq!(
        json(&after[1]),
        json(&before[1]),
        "a promotion is never cut"
    );
    assert_eq!(
        json(&after[2]),
        json(&before[2]),
        "a young row keeps its texts"
    );

    // What goes on as before is no news because its texts are gone; another digest is.
    let again = |settled: Settled| {
        let ledger = ledger.clone();
        async move {
            ledger
                .record(&key("app", "v1"), &settled, facts(), None)
                .await
                .unwrap()
        }
    };
    assert!(!again(with_texts(Outcome::Failed, 1)).await);
    assert!(again(with_texts(Outcome::Failed, 9)).await);
    let verified = ledger.verify().await.unwrap();
    assert!(
        matches!(verified, Verified::Whole { rows: 4, .. }),
        "{verified:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_step_reads_a_bounded_number_of_rows_and_the_next_goes_on_from_there() {
    simulate();
    let ledger = Ledger::in_memory();
    for n in 0..1100 {
        record(&ledger, &format!("v{n}"), &with_texts(Outcome::Failed, 1)).await;
    }
    clock::step(YEAR + SignedDuration::from_secs(1));
    let limit = clock::now() - YEAR;
    let cut = async || rows(&ledger).await.iter().filter(|row| is_cut(row)).count();
    for (step, texts) in [(Step::More, 500), (Step::More, 1000), (Step::End, 1100)] {
        assert_eq!(ledger.drop_texts_before(limit).await.unwrap(), step);
        assert_eq!(cut().await, texts.min(1000), "of the first thousand");
    }
    assert_eq!(ledger.drop_texts_before(limit).await.unwrap(), Step::End);
}

/// A row that a damaged disk or a later version left unreadable stopped the task for ever.
#[tokio::test(start_paused = true)]
async fn a_row_that_cannot_be_read_stops_no_other() {
    simulate();
    let ledger = Ledger::in_memory();
    for tag in ["v1", "v2", "v3"] {
        record(&ledger, tag, &with_texts(Outcome::Failed, 1)).await;
    }
    write(&ledger, "UPDATE rows SET content = '{' WHERE id = 2").await;
    clock::step(YEAR + SignedDuration::from_secs(1));
    let limit = clock::now() - YEAR;
    assert_eq!(ledger.drop_texts_before(limit).await.unwrap(), Step::End);
    let after = Query { after: 2, ..all() };
    let rows = ledger.page(after).await.unwrap();
    assert!(is_cut(&rows[0]));
}

/// A clock that once ran ahead left rows dated years later: everything after them kept its texts.
#[tokio::test(start_paused = true)]
async fn a_row_from_the_future_is_as_old_as_the_next() {
    simulate();
    let ledger = Ledger::in_memory();
    for number in 0..600 {
        record(
            &ledger,
            &format!("v{number}"),
            &with_texts(Outcome::Failed, 1),
        )
        .await;
    }
    let ahead = "UPDATE rows SET at = at + 1000 * 86400000 WHERE id BETWEEN 10 AND 550";
    write(&ledger, ahead).await;
    let cut = async || rows(&ledger).await.iter().filter(|row| is_cut(row)).count();
    clock::step(YEAR + SignedDuration::from_secs(1));
    let limit = clock::now() - YEAR;
    assert_eq!(ledger.drop_texts_before(limit).await.unwrap(), Step::More);
    assert_eq!(ledger.drop_texts_before(limit).await.unwrap(), Step::End);
    assert_eq!(cut().await, 600);

    record(&ledger, "w1", &with_texts(Outcome::Failed, 1)).await;
    write(&ledger, "UPDATE rows SET at = at + 86400000 WHERE id = 601").await;
    assert_eq!(ledger.drop_texts_before(limit).await.unwrap(), Step::End);
    assert_eq!(cut().await, 600, "no older row follows: it may be young");
}

/// Each start read the whole ledger again.
#[tokio::test(start_paused = true)]
async fn the_next_process_goes_on_where_the_last_one_ended() {
    simulate();
    let folder = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(folder.path()).unwrap();
    for tag in ["v1", "v2"] {
        record(&ledger, tag, &with_texts(Outcome::Failed, 1)).await;
    }
    clock::step(YEAR + SignedDuration::from_secs(1));
    let limit = clock::now() - YEAR;
    assert_eq!(ledger.drop_texts_before(limit).await.unwrap(), Step::End);
    ledger.close().await;

    let ledger = Ledger::open(folder.path()).unwrap();
    let written = with_texts(Outcome::Failed, 1);
    let json = serde_json::to_string(&written).unwrap();
    let restored = format!("UPDATE rows SET content = '{json}' WHERE id = 1");
    write(&ledger, &restored).await;
    assert_eq!(ledger.drop_texts_before(limit).await.unwrap(), Step::End);
    assert!(!is_cut(&rows(&ledger).await[0]), "it was not read");
    ledger.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_task_goes_by_the_retention_that_is_in_force() {
    simulate();
    let ledger = Ledger::in_memory();
    record(&ledger, "v1", &with_texts(Outcome::Failed, 1)).await;
    let (retention, in_force) = watch::channel(YEAR.unsigned_abs());
    let task = tokio::spawn(ledger.clone().drop_old_texts(in_force));
    let is_cut = async || is_cut(&rows(&ledger).await[0]);
    let round = Duration::from_secs(3700);

    clock::step(SignedDuration::from_hours(8000));
    tokio::time::sleep(round).await;
    assert!(!is_cut().await, "younger than a year");
    retention.send_replace(Duration::from_secs(24 * 3600));
    tokio::time::sleep(round).await;
    assert!(is_cut().await, "older than a day");
    task.abort();
}
