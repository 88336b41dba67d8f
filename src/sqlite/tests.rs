use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::*;

const ONE: Schema = Schema {
    name: "test",
    durable: true,
    application: 7,
    migrations: &["CREATE TABLE numbers (n INTEGER PRIMARY KEY, word TEXT NOT NULL) STRICT;"],
    fill: |_| Ok(()),
};
const TWO: Schema = Schema {
    migrations: &[
        ONE.migrations[0],
        "ALTER TABLE numbers ADD COLUMN note TEXT; UPDATE numbers SET note = 'from before';",
    ],
    fill: |db| {
        db.execute("UPDATE numbers SET word = upper(word)", [])
            .map(drop)
    },
    ..ONE
};

fn insert(n: i64) -> impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static {
    move |db| {
        db.prepare_cached("INSERT INTO numbers (n, word) VALUES (?1, 'x')")?
            .execute([n])
            .map(drop)
    }
}

fn count(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT count(*) FROM numbers", [], |row| row.get(0))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_read_sees_every_write_that_was_accepted_before_it() {
    let folder = tempfile::tempdir().unwrap();
    for store in [
        Store::open(&folder.path().join("db"), &ONE).unwrap(),
        Store::in_memory(&ONE),
    ] {
        for n in 0..1000 {
            store.queue(insert(n), |outcome| outcome.unwrap()).await;
            if n % 100 == 0 {
                assert_eq!(store.read(count).await.unwrap(), n + 1);
            }
        }
        assert_eq!(store.clone().read(count).await.unwrap(), 1000);
    }
}

#[tokio::test]
async fn writes_of_many_callers_share_a_group_and_fail_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("db"), &ONE).unwrap();
    let writes = (0..300).map(|n| store.write(insert(n / 2)));
    let outcomes = futures::future::join_all(writes).await;
    assert_eq!(
        outcomes.iter().filter(|outcome| outcome.is_ok()).count(),
        150,
        "each number goes in once"
    );
    assert_eq!(store.read(count).await.unwrap(), 150);
}

#[tokio::test]
async fn a_group_that_cannot_be_committed_leaves_nothing() {
    let store = Store::in_memory(&ONE);
    let ended = store.write(|db| {
        insert(1)(db)?;
        db.execute_batch("ROLLBACK; SELECT broken")
    });
    assert!(ended.await.is_err());
    store.write(insert(2)).await.unwrap();
    assert_eq!(store.read(count).await.unwrap(), 1);
}

#[tokio::test]
async fn close_commits_what_was_accepted_and_refuses_what_comes_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path, &ONE).unwrap();
    for n in 0..500 {
        store.queue(insert(n), |outcome| outcome.unwrap()).await;
    }
    let other = store.clone();
    store.close().await;
    assert!(
        !folder.path().join("db-wal").exists(),
        "the log is folded in"
    );
    assert!(other.write(insert(1000)).await.unwrap_err().is_closed());
    assert!(other.read(count).await.unwrap_err().is_closed());
    other.close().await;
    assert_eq!(
        Store::open(&path, &ONE).unwrap().read(count).await.unwrap(),
        500
    );
}

#[tokio::test]
async fn a_closed_database_in_memory_refuses() {
    let store = Store::in_memory(&ONE);
    store.clone().close().await;
    assert!(store.write(insert(1)).await.unwrap_err().is_closed());
    assert!(store.read(count).await.unwrap_err().is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_stands_still_over_a_database_in_memory() {
    let store = Store::in_memory(&ONE);
    let before = tokio::time::Instant::now();
    let work = async {
        store.write(insert(1)).await.unwrap();
        store.read(count).await.unwrap()
    };
    assert_eq!(
        tokio::time::timeout(std::time::Duration::from_secs(1), work).await,
        Ok(1)
    );
    assert_eq!(before.elapsed(), std::time::Duration::ZERO);
}

#[tokio::test]
async fn the_threads_end_with_the_last_handle_and_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path, &ONE).unwrap();
    for n in 0..500 {
        store.queue(insert(n), |outcome| outcome.unwrap()).await;
    }
    let Storage::Queues(queues) = &store.storage else {
        panic!("it is a file")
    };
    let ended = queues.ended();
    drop(store);
    ended.await;
    assert_eq!(
        Store::open(&path, &ONE).unwrap().read(count).await.unwrap(),
        500
    );
}

/// Each group takes a second, and every third group of writes is synced.
struct Slow;

impl Behaviour for Slow {
    fn group(&self) -> usize {
        2
    }

    fn delay(&self, _lane: QueueKind, _number: u64) -> Duration {
        Duration::from_secs(1)
    }

    fn is_synced(&self, number: u64) -> bool {
        number % 3 == 2
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_of_a_slow_disk_sees_every_write_that_was_accepted_before_it() {
    let (store, served) = Store::on_disk(&Disk::new(Slow), &ONE);
    let served = tokio::spawn(served);
    for n in 0..9 {
        store.queue(insert(n), |outcome| outcome.unwrap()).await;
    }
    let began = Instant::now();
    assert_eq!(store.read(count).await.unwrap(), 9);
    assert_eq!(
        began.elapsed(),
        Duration::from_secs(5 + 1),
        "five groups of writes and one of reads"
    );
    store.close().await;
    assert!(store.read(count).await.unwrap_err().is_closed());
    served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_killed_process_loses_what_was_queued_and_keeps_what_was_committed() {
    let disk = Disk::new(Slow);
    let (store, served) = Store::on_disk(&disk, &ONE);
    let served = tokio::spawn(served);
    store.write(insert(0)).await.unwrap();
    store
        .queue(insert(1), |_| panic!("nothing settles it"))
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    served.abort();
    assert!(served.await.unwrap_err().is_cancelled());
    assert!(store.write(insert(2)).await.unwrap_err().is_closed());
    assert!(store.read(count).await.unwrap_err().is_closed());
    let (store, served) = Store::on_disk(&disk, &ONE);
    tokio::spawn(served);
    assert_eq!(store.read(count).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_goes_back_to_the_last_sync_unless_the_schema_is_durable() {
    for (durable, kept) in [(false, 3), (true, 5)] {
        let disk = Disk::new(Slow);
        let schema = Schema { durable, ..ONE };
        let (store, served) = Store::on_disk(&disk, &schema);
        let served = tokio::spawn(served);
        for n in 0..5 {
            store.write(insert(n)).await.unwrap();
        }
        served.abort();
        assert!(served.await.unwrap_err().is_cancelled());
        disk.cut_power();
        let (store, served) = Store::on_disk(&disk, &schema);
        tokio::spawn(served);
        assert_eq!(store.read(count).await.unwrap(), kept, "durable: {durable}");
        store.write(insert(9)).await.unwrap();
        assert_eq!(store.read(count).await.unwrap(), kept + 1);
    }
}

#[tokio::test]
async fn an_older_database_is_brought_forward() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    let store = Store::open(&path, &ONE).unwrap();
    store.write(insert(1)).await.unwrap();
    store.close().await;
    let store = Store::open(&path, &TWO).unwrap();
    let note = store.read(|db| {
        db.query_row("SELECT note || word FROM numbers WHERE n = 1", [], |row| {
            row.get::<_, String>(0)
        })
    });
    assert_eq!(note.await.unwrap(), "from beforeX");
    store.close().await;
    let error = Store::open(&path, &ONE).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::Newer {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_migration_that_fails_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("db");
    const BROKEN: Schema = Schema {
        migrations: &[ONE.migrations[0], "CREATE TABLE more (n); SELECT broken;"],
        ..ONE
    };
    drop(file::open(&path, &ONE).unwrap());
    assert!(matches!(
        Store::open(&path, &BROKEN),
        Err(OpenError::Unavailable { .. })
    ));
    let (db, _) = file::open(&path, &ONE).unwrap();
    assert_eq!(count(&db).unwrap(), 0);
}

#[tokio::test]
async fn every_file_is_private_even_when_it_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/db");
    fs::create_dir(folder.path().join("new")).unwrap();
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let store = Store::open(&path, &ONE).unwrap();
    store.write(insert(1)).await.unwrap();
    for name in ["db", "db-wal", "db-shm"] {
        assert_eq!(mode(&folder.path().join("new").join(name)), 0o600, "{name}");
    }
}

#[test]
fn what_is_no_database_of_ours_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let damaged = |path: &Path| matches!(Store::open(path, &ONE), Err(OpenError::Damaged { .. }));
    let text = folder.path().join("text");
    fs::write(
        &text,
        "no database, but long enough to be looked at as one".repeat(100),
    )
    .unwrap();
    assert!(damaged(&text));

    let foreign = folder.path().join("foreign");
    Connection::open(&foreign)
        .unwrap()
        .execute_batch("CREATE TABLE theirs (n); PRAGMA user_version = 1")
        .unwrap();
    assert!(damaged(&foreign));

    let torn = folder.path().join("torn");
    let (db, _) = file::open(&torn, &ONE).unwrap();
    for n in 0..1000 {
        db.execute(
            "INSERT INTO numbers (n, word) VALUES (?1, hex(randomblob(100)))",
            [n],
        )
        .unwrap();
    }
    drop(db);
    let mut bytes = fs::read(&torn).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0xa5);
    fs::write(&torn, bytes).unwrap();
    assert!(damaged(&torn));

    let unreachable = folder.path().join("text/db");
    assert!(matches!(
        Store::open(&unreachable, &ONE),
        Err(OpenError::Unavailable { .. })
    ));
}

#[test]
fn what_is_set_aside_takes_its_log_along_and_replaces_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (name, text) in [
        ("db", "new"),
        ("db-wal", "log"),
        ("db.aside", "old"),
        ("db.aside-shm", "old"),
    ] {
        fs::write(path(name), text).unwrap();
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    assert_eq!(set_aside(&path("db")).unwrap(), path("db.aside"));
    assert_eq!(fs::read_to_string(path("db.aside")).unwrap(), "new");
    assert_eq!(mode(&path("db.aside")) | mode(&path("db.aside-wal")), 0o600);
    assert!(!path("db").exists() && !path("db-wal").exists() && !path("db.aside-shm").exists());
}

#[test]
fn a_database_behind_a_planted_link_is_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let victim = tempfile::tempdir().unwrap();
    let target = victim.path().join("victim.db");
    for planted in ["db", "db-wal"] {
        let path = folder.path().join("db");
        std::os::unix::fs::symlink(&target, folder.path().join(planted)).unwrap();
        assert!(
            matches!(Store::open(&path, &ONE), Err(OpenError::Unavailable { .. })),
            "{planted}"
        );
        assert!(!target.exists(), "{planted}");
        fs::write(&target, [0; 100]).unwrap();
        assert!(
            planted != "db" || Store::open_to_read(&path, &ONE).is_err(),
            "{planted}"
        );
        fs::remove_file(&target).unwrap();
        fs::remove_file(folder.path().join(planted)).unwrap();
    }
}
