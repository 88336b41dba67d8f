//! The ledger tells whether it is as it was recorded.

use crate::support::*;

#[tokio::test]
async fn a_changed_row_is_named_and_ends_with_1() {
    let stage = Stage::new(Program::Distribution2).await;
    stage
        .push()
        .push("app", "v1", &Image::oci(1, &[1000]))
        .await;
    let missing = stage.ferry.run(&["history", "--verify"]).await.expect(5);
    assert!(
        missing.stderr.contains("there is no ledger"),
        "{}",
        missing.stderr
    );
    stage.sync().await.expect(0);
    let daemon = stage.ferry.start_ready().await;
    let good = stage.ferry.run(&["history", "--verify"]).await.expect(0);
    assert!(
        good.stdout.starts_with("1 row, all as recorded"),
        "{}",
        good.stdout
    );

    // Readings of the config are rows, whether they were accepted or not.
    daemon.signal("HUP").await;
    stage.ferry.write_config(&Config::text("routes: nonsense"));
    let said = eventually("both readings are in the ledger", async || {
        daemon.signal("HUP").await;
        let history = stage
            .ferry
            .run(&[
                "history",
                "--state",
                &stage.ferry.path("state").display().to_string(),
            ])
            .await;
        let is_there = ["config read", "config refused"]
            .iter()
            .all(|said| history.stdout.contains(said));
        is_there.then_some(history.stdout)
    })
    .await;
    assert!(said.contains("routes"), "{said}");
    let state = stage.ferry.path("state").display().to_string();
    stage
        .ferry
        .run(&["history", "--verify", "--state", &state])
        .await
        .expect(0);
    drop(daemon);

    let ledger = rusqlite::Connection::open(stage.ferry.path("state").join("ledger.db"))
        .expect("the ledger opens");
    ledger
        .execute(
            "UPDATE rows SET content = replace(content, 'promoted', 'conflict') WHERE id = 1",
            [],
        )
        .expect("the row is there");
    drop(ledger);
    let bad = stage
        .ferry
        .run(&["history", "--verify", "--state", &state])
        .await
        .expect(1);
    assert!(
        bad.stderr.contains("row 1 is not as it was recorded"),
        "{}",
        bad.stderr
    );
}
