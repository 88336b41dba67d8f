//! Killed at any point of an upload to ECR, the program goes on where ECR stands. ECR keeps whole
//! parts and tells its offset only by refusing a part in the wrong place: that is asked for until
//! two answers agree, the hasher goes on from the last checkpoint, and what is sent or read again
//! is what was under way.

use super::{Accounts, MIB, PART};
use crate::kill::{Dice, kept, killed_at};
use crate::support::*;

/// What a kill may cost in bytes sent or read again: the rest of a part, the way back to a
/// checkpoint, and what waits in sockets.
const BOUND: u64 = 32 * MIB;

impl Accounts {
    async fn finishes(&self, image: &Image) {
        self.reset();
        let daemon = self.ferry.start_ready().await;
        eventually("the tag is in production", async || {
            self.there().digest("app", "v1").await
        })
        .await;
        self.there().assert_holds("app", "v1", image).await;
        drop(daemon);
    }

    async fn kept(&self) -> u64 {
        kept(self.production.registry(), "app").await
    }
}

#[tokio::test]
async fn twenty_kills_cost_at_most_what_was_under_way() {
    let accounts = Accounts::new().await;
    let size = 192 * MIB;
    let image = Image::oci(1, &[size as usize]);
    let layer = image.blobs[1].clone();
    accounts.push("v1", &image).await;
    let mut dice = Dice(0xec12);
    let mut before = 0;
    for kill in 0..20 {
        accounts.reset();
        let (gate, after) = (Gate::closed(), 1 + dice.below(4 * MIB));
        accounts.target.rule(
            Rule::on(&[Kind::UploadPut])
                .path(&layer.digest)
                .act(Act::HoldRequest(after, gate.clone())),
        );
        killed_at(&accounts.ferry, &gate).await;
        let now = accounts.kept().await;
        let progress = now.saturating_sub(before);
        let (sent, read) = (accounts.sent(), accounts.read());
        assert!(
            now >= before && now.is_multiple_of(PART),
            "kill {kill}: {before} bytes were kept, now {now}"
        );
        assert!(
            sent <= progress + BOUND,
            "kill {kill} at {after}: {sent} bytes sent for {progress}"
        );
        assert!(
            read <= progress + BOUND,
            "kill {kill} at {after}: {read} bytes read for {progress}"
        );
        accounts
            .there()
            .assert_lacks("app", "v1", &[&layer.digest])
            .await;
        before = now;
    }
    assert!(before > 32 * MIB, "twenty runs got only to {before}");
    accounts.finishes(&image).await;
    assert!(
        accounts.sent() <= size - before + MIB,
        "{} bytes were sent for {}",
        accounts.sent(),
        size - before
    );
    assert_eq!(
        accounts.production.count("PutImage"),
        1,
        "the tag was written once"
    );
}

#[tokio::test]
async fn a_kill_before_the_answer_to_the_closing_request_costs_no_byte() {
    let accounts = Accounts::new().await;
    let image = Image::oci(1, &[12 * MIB as usize]);
    let layer = image.blobs[1].clone();
    accounts.push("v1", &image).await;
    let gate = Gate::closed();
    accounts
        .target
        .rule(Rule::on(&[Kind::ManifestPut]).act(Act::Hold(gate.clone())));
    accounts.target.rule(
        Rule::on(&[Kind::UploadPut])
            .path(&layer.digest)
            .act(Act::HoldAnswer(0, gate.clone())),
    );
    killed_at(&accounts.ferry, &gate).await;
    eventually("ECR has the layer", async || {
        accounts
            .there()
            .has_blob("app", &layer.digest)
            .await
            .then_some(())
    })
    .await;
    accounts.there().assert_lacks("app", "v1", &[]).await;
    accounts.finishes(&image).await;
    assert!(
        accounts.sent() < MIB && accounts.read() < MIB,
        "{} sent and {} read again",
        accounts.sent(),
        accounts.read()
    );
}

/// The bytes of a dead process come in before, between and after the questions of the next one, or
/// while it sends.
#[tokio::test]
async fn bytes_of_a_dead_process_that_still_arrive_spoil_nothing() {
    let size = 24 * MIB;
    for (seed, sign) in [
        (1, (Kind::UploadPatch, 1)),
        (2, (Kind::UploadPatch, 2)),
        (3, (Kind::UploadPut, 2)),
    ] {
        let accounts = Accounts::new().await;
        let image = Image::oci(seed, &[size as usize]);
        let layer = image.blobs[1].clone();
        accounts.push("v1", &image).await;
        let gate = Gate::closed();
        let held = Act::HoldRequest(7 * MIB, gate.clone());
        accounts.target.rule(
            Rule::on(&[Kind::UploadPut])
                .path(&layer.digest)
                .times(1)
                .act(held),
        );
        let mut dead = accounts.ferry.start().await;
        gate.arrived(1).await;
        dead.signal("KILL").await;
        dead.ended().await;
        // The new process sends the config, which the dead one may have brought already, and then
        // goes on with the layer.
        let (kind, count) = sign;
        let daemon = accounts.ferry.start().await;
        eventually("the new process is that far", async || {
            let seen = accounts.target.of(&[kind]);
            (seen
                .iter()
                .filter(|entry| kind == Kind::UploadPatch || entry.path.contains(&layer.digest))
                .count()
                >= count)
                .then_some(())
        })
        .await;
        gate.open();
        eventually("the tag is in production", async || {
            accounts.there().digest("app", "v1").await
        })
        .await;
        accounts.there().assert_holds("app", "v1", &image).await;
        assert!(
            accounts.sent() <= size + 32 * MIB,
            "{kind:?} {count}: {} bytes were sent",
            accounts.sent()
        );
        drop(daemon);
    }
}
