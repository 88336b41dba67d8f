//! Tags that did not change cost what they must.

use serde_json::json;

use crate::support::*;

#[tokio::test]
async fn a_poll_asks_once_for_each_tag_and_trusts_the_index_for_production() {
    const TAGS: usize = 30;
    let stage = Stage::build(Program::Distribution3, |config| {
        config.daemon("poll", json!("1s")).route("app", json!({}))
    })
    .await;
    let image = Image::oci(1, &[1000]);
    for number in 0..TAGS {
        stage
            .push()
            .push("app", &format!("v{number}"), &image)
            .await;
    }
    let daemon = stage.ferry.start_ready().await;
    stage.reset();
    stage.source.seen(Kind::Tags, 4).await;
    let polls = stage.source.count(Kind::Tags);
    drop(daemon);
    let (heads, reads) = (
        stage.source.count(Kind::ManifestHead),
        stage.source.count(Kind::ManifestGet),
    );
    assert!(
        heads <= polls * TAGS && heads >= TAGS,
        "{heads} requests for {polls} polls of {TAGS} tags"
    );
    assert_eq!(reads, 0, "what did not change is not read");
    assert_eq!(
        stage.source.log().len(),
        heads + stage.source.count(Kind::Tags) + stage.source.count(Kind::Ping)
    );
    let asked = stage.target.of(&[]).len()
        - stage.target.count(Kind::Tags)
        - stage.target.count(Kind::Ping);
    assert_eq!(
        asked,
        0,
        "production is only listed: {:#?}",
        stage.target.log()
    );
}
