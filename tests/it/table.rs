//! What happens to a tag, cell by cell, against real registries: as the program remembers, after
//! its index is lost, and after its ledger is lost. Losing the index changes nothing; losing the
//! ledger makes it more careful, never less.

use serde_json::json;

use crate::support::*;
use Step::*;

/// Three images that have nothing in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    A,
    B,
    C,
}

use Which::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Staging's tag names this image.
    Staged(Which),
    /// Staging holds this image under another tag.
    Kept(Which),
    /// Somebody pushes this image into production.
    Pushed(Which),
    /// A pass of the program.
    Sync,
    /// A pass of the program that reports what is in the way.
    Reported,
    /// Staging's tag is deleted.
    Vanish,
}

/// A result, and what production names then.
type Expected = (&'static str, Option<Which>);

struct Cell {
    tag: &'static str,
    rule: (&'static str, &'static str),
    steps: &'static [Step],
    then: Expected,
    /// Where the ledger matters and is lost.
    forgotten: Option<Expected>,
}

const FIXED: &str = "v1";
const MOVING: &str = "latest";
const PLAIN: (&str, &str) = ("drift", "keep");
const RESTORE: (&str, &str) = ("drift", "restore");
const ADOPT: (&str, &str) = ("existing", "adopt");

const fn cell(
    tag: &'static str,
    rule: (&'static str, &'static str),
    steps: &'static [Step],
    then: Expected,
) -> Cell {
    Cell {
        tag,
        rule,
        steps,
        then,
        forgotten: None,
    }
}

const fn remembered(
    tag: &'static str,
    rule: (&'static str, &'static str),
    steps: &'static [Step],
    then: Expected,
    forgotten: Expected,
) -> Cell {
    Cell {
        tag,
        rule,
        steps,
        then,
        forgotten: Some(forgotten),
    }
}

const TABLE: &[Cell] = &[
    // P absent
    cell(FIXED, PLAIN, &[Staged(A)], ("promoted", Some(A))),
    cell(MOVING, PLAIN, &[Staged(A)], ("promoted", Some(A))),
    // P = S
    cell(
        FIXED,
        PLAIN,
        &[Staged(A), Pushed(A)],
        ("up_to_date", Some(A)),
    ),
    cell(
        MOVING,
        PLAIN,
        &[Staged(A), Pushed(A)],
        ("up_to_date", Some(A)),
    ),
    cell(FIXED, PLAIN, &[Staged(A), Sync], ("up_to_date", Some(A))),
    cell(
        MOVING,
        PLAIN,
        &[Staged(A), Sync, Staged(B), Pushed(B)],
        ("up_to_date", Some(B)),
    ),
    // P ≠ S, P = L
    remembered(
        FIXED,
        PLAIN,
        &[Staged(A), Sync, Staged(B)],
        ("conflict", Some(A)),
        ("existing", Some(A)),
    ),
    remembered(
        MOVING,
        PLAIN,
        &[Staged(A), Sync, Staged(B)],
        ("promoted", Some(B)),
        ("existing", Some(A)),
    ),
    remembered(
        MOVING,
        PLAIN,
        &[Staged(A), Sync, Staged(B), Sync, Staged(A)],
        ("promoted", Some(A)),
        ("existing", Some(B)),
    ),
    // the same, L agreed: both sides were equal, and nobody is known to have written it by our hand
    remembered(
        FIXED,
        PLAIN,
        &[Staged(A), Pushed(A), Sync, Staged(B)],
        ("conflict", Some(A)),
        ("existing", Some(A)),
    ),
    remembered(
        MOVING,
        PLAIN,
        &[Staged(A), Pushed(A), Sync, Staged(B)],
        ("promoted", Some(B)),
        ("existing", Some(A)),
    ),
    // a person put there what staging came to name, after what we wrote
    remembered(
        MOVING,
        PLAIN,
        &[Staged(A), Sync, Staged(B), Pushed(B), Sync, Staged(C)],
        ("promoted", Some(C)),
        ("existing", Some(B)),
    ),
    // P ≠ S, P ≠ L, L known
    remembered(
        FIXED,
        PLAIN,
        &[Staged(A), Sync, Pushed(C)],
        ("drift", Some(C)),
        ("existing", Some(C)),
    ),
    remembered(
        FIXED,
        PLAIN,
        &[Staged(A), Sync, Pushed(C), Staged(B)],
        ("drift", Some(C)),
        ("existing", Some(C)),
    ),
    remembered(
        MOVING,
        PLAIN,
        &[Staged(A), Sync, Pushed(C)],
        ("drift", Some(C)),
        ("existing", Some(C)),
    ),
    remembered(
        MOVING,
        PLAIN,
        &[Staged(A), Sync, Pushed(C), Staged(B)],
        ("drift", Some(C)),
        ("existing", Some(C)),
    ),
    remembered(
        FIXED,
        PLAIN,
        &[Staged(A), Pushed(A), Sync, Pushed(C)],
        ("drift", Some(C)),
        ("existing", Some(C)),
    ),
    remembered(
        MOVING,
        PLAIN,
        &[Staged(A), Pushed(A), Sync, Pushed(C)],
        ("drift", Some(C)),
        ("existing", Some(C)),
    ),
    // state lost: what a person did stays, also where staging holds that image under another tag
    remembered(
        MOVING,
        PLAIN,
        &[Staged(A), Kept(C), Sync, Pushed(C), Reported],
        ("drift", Some(C)),
        ("existing", Some(C)),
    ),
    // staging came to what was reported as drift, and nobody decided
    remembered(
        MOVING,
        PLAIN,
        &[
            Staged(A),
            Sync,
            Pushed(C),
            Reported,
            Staged(C),
            Sync,
            Staged(B),
        ],
        ("drift", Some(C)),
        ("existing", Some(C)),
    ),
    // a person went back to what was written: the drift is over
    remembered(
        MOVING,
        PLAIN,
        &[
            Staged(A),
            Sync,
            Pushed(C),
            Reported,
            Pushed(A),
            Sync,
            Staged(B),
        ],
        ("promoted", Some(B)),
        ("existing", Some(A)),
    ),
    remembered(
        FIXED,
        RESTORE,
        &[Staged(A), Sync, Pushed(C)],
        ("conflict", Some(C)),
        ("existing", Some(C)),
    ),
    remembered(
        MOVING,
        RESTORE,
        &[Staged(A), Sync, Pushed(C)],
        ("promoted", Some(A)),
        ("existing", Some(C)),
    ),
    remembered(
        MOVING,
        RESTORE,
        &[Staged(A), Sync, Pushed(C), Staged(B)],
        ("promoted", Some(B)),
        ("existing", Some(C)),
    ),
    // P ≠ S, L unknown
    cell(FIXED, PLAIN, &[Staged(A), Pushed(C)], ("existing", Some(C))),
    cell(FIXED, ADOPT, &[Staged(A), Pushed(C)], ("conflict", Some(C))),
    cell(
        FIXED,
        PLAIN,
        &[Staged(A), Kept(C), Pushed(C)],
        ("existing", Some(C)),
    ),
    cell(
        MOVING,
        PLAIN,
        &[Staged(A), Pushed(C)],
        ("existing", Some(C)),
    ),
    cell(
        MOVING,
        PLAIN,
        &[Staged(A), Kept(C), Pushed(C)],
        ("existing", Some(C)),
    ),
    cell(
        MOVING,
        ADOPT,
        &[Staged(A), Pushed(C)],
        ("promoted", Some(A)),
    ),
    // staging came to what was reported as existing, and nobody decided
    cell(
        MOVING,
        PLAIN,
        &[Staged(A), Pushed(C), Sync, Staged(C), Sync, Staged(B)],
        ("existing", Some(C)),
    ),
    // seen, but never written by us nor agreed on, is not L
    cell(
        FIXED,
        PLAIN,
        &[Staged(A), Pushed(C), Sync],
        ("existing", Some(C)),
    ),
    // S gone
    cell(
        FIXED,
        PLAIN,
        &[Staged(A), Kept(B), Sync, Vanish],
        ("", Some(A)),
    ),
    cell(
        MOVING,
        PLAIN,
        &[Staged(A), Kept(B), Sync, Vanish],
        ("", Some(A)),
    ),
];

/// What the program loses before its last pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Nothing,
    Index,
    Ledger,
}

#[tokio::test]
async fn the_table_holds_with_distribution_2() {
    the_table_holds(Program::Distribution2).await;
}

#[tokio::test]
async fn the_table_holds_with_distribution_3() {
    the_table_holds(Program::Distribution3).await;
}

async fn the_table_holds(program: Program) {
    let (staging, production) = (
        program.setup().delete().start(),
        program.setup().delete().start(),
    );
    for (number, cell) in TABLE.iter().enumerate() {
        for loss in [Loss::Nothing, Loss::Index, Loss::Ledger] {
            if loss == Loss::Nothing || cell.steps.contains(&Sync) {
                let repository = format!("cell-{number}-{}", format!("{loss:?}").to_lowercase());
                eprintln!(
                    "{repository}: {} {:?} {:?}",
                    cell.tag, cell.rule, cell.steps
                );
                cell.play(&staging, &production, &repository, loss).await;
            }
        }
    }
}

impl Cell {
    async fn play(&self, staging: &Registry, production: &Registry, repository: &str, loss: Loss) {
        let rule = json!({self.rule.0: self.rule.1, "tags": {"include": [FIXED, MOVING]}});
        let config = Config::new()
            .registry("staging", &staging.url())
            .registry("production", &production.url());
        let ferry = Ferry::new(&config.route(repository, rule));
        for step in self.steps {
            self.take(*step, staging, production, repository, &ferry)
                .await;
        }
        match loss {
            Loss::Nothing => {}
            Loss::Index => ferry.delete_index(),
            // The index knows the ledger that is gone: everything is held until a person says that
            // this is right.
            Loss::Ledger => {
                ferry.delete_ledger();
                let held = ferry.sync(&[]).await;
                assert_eq!(held.total("promoted"), 0, "{}", held.said());
                ferry.run(&["release"]).await.expect(0);
            }
        }
        let before = production.client().digest(repository, self.tag).await;
        let expected = self
            .forgotten
            .filter(|_| loss == Loss::Ledger)
            .unwrap_or(self.then);
        let run = ferry.sync(&["--all"]).await;
        self.judge(&run, expected, before);
        let names = production.client().digest(repository, self.tag).await;
        assert_eq!(
            names,
            expected.1.map(|which| image(which).digest().to_owned()),
            "what production names"
        );
        // A second look at the same facts comes to the same, and never moves anything again.
        let again = ferry.sync(&[]).await;
        assert_eq!(again.code, run.code, "{}", again.said());
        assert_eq!(again.total("promoted"), 0);
    }

    async fn take(
        &self,
        step: Step,
        staging: &Registry,
        production: &Registry,
        repository: &str,
        ferry: &Ferry,
    ) {
        match step {
            Staged(which) => {
                staging
                    .client()
                    .push(repository, self.tag, &image(which))
                    .await
            }
            Kept(which) => {
                staging
                    .client()
                    .push(repository, "kept", &image(which))
                    .await
            }
            Pushed(which) => {
                production
                    .client()
                    .push(repository, self.tag, &image(which))
                    .await
            }
            Sync => drop(ferry.sync(&[]).await.expect(0)),
            Reported => drop(ferry.sync(&[]).await.expect(4)),
            Vanish => {
                let named = staging
                    .client()
                    .digest(repository, self.tag)
                    .await
                    .expect("the tag is there before it vanishes");
                staging.client().delete(repository, &named).await;
            }
        }
    }

    fn judge(&self, run: &Run, (result, _): Expected, before: Option<String>) {
        let code = if ["conflict", "drift"].contains(&result) {
            4
        } else {
            0
        };
        assert_eq!(run.code, code, "{}", run.said());
        assert_eq!(run.report()["exit_code"], code);
        if result.is_empty() {
            assert_eq!(run.total("only_in_destination"), 1);
            assert_eq!(run.report()["jobs"], json!([]));
            return;
        }
        let job = run.job(self.tag);
        assert_eq!(job["result"], result, "{job:#}");
        assert_eq!(run.total(result), 1, "{}", run.stdout);
        let staged = self.steps.iter().rev().find_map(|step| {
            if let Staged(which) = step {
                Some(*which)
            } else {
                None
            }
        });
        assert_eq!(
            job["digest"],
            image(staged.expect("every cell stages something")).digest(),
            "{job:#}"
        );
        assert_eq!(job["error"], json!(null), "{job:#}");
        if ["promoted", "conflict", "drift"].contains(&result) {
            assert_eq!(job["previous_digest"], json!(before), "{job:#}");
        }
        if ["conflict", "drift"].contains(&result) {
            assert_ne!(
                job["reasons"],
                json!([]),
                "a person must learn why: {job:#}"
            );
            assert_eq!(
                job["bytes_sent"], 0,
                "nothing is carried for a tag that will not be named"
            );
        }
    }
}

fn image(which: Which) -> Image {
    Image::oci(which as u64 + 1, &[500, 60])
}

#[tokio::test]
async fn a_digest_in_conflict_is_refused_under_moving_tags_too() {
    let scene = Stage::new(Program::Distribution3).await;
    let (old, new) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    scene.push().push("app", "v1", &old).await;
    scene.push().push("app", "latest", &old).await;
    scene.sync().await.expect(0);
    scene.push().push("app", "v1", &new).await;
    scene.push().push("app", "latest", &new).await;
    let run = scene.sync().await.expect(4);
    assert_eq!(run.job("v1")["result"], "conflict");
    assert_eq!(run.job("latest")["result"], "refused");
    // Asked about alone, the moving tag is held to the same.
    let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(run.job("latest")["result"], "refused");
    for tag in ["v1", "latest"] {
        assert_eq!(
            scene.there().digest("app", tag).await.as_deref(),
            Some(old.digest()),
            "{tag} moved"
        );
    }
}

/// `latest` alone is asked for right after a push that also overwrote `v1`: no pass has seen that
/// conflict yet. When `v1` is put right, neither the rows of the ledger nor a new name of the route
/// stand in the way.
#[tokio::test]
async fn a_moving_tag_by_name_is_held_to_the_conflicts_of_now() {
    let scene = Stage::new(Program::Distribution3).await;
    let (old, new) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    for tag in ["v1", "v2", "latest"] {
        scene.push().push("app", tag, &old).await;
    }
    scene.sync().await.expect(0);
    scene.push().push("app", "v1", &new).await;
    scene.push().push("app", "latest", &new).await;
    let run = scene.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(run.job("latest")["result"], "refused");
    assert_eq!(
        scene.there().digest("app", "latest").await.as_deref(),
        Some(old.digest())
    );
    let run = scene.sync().await.expect(4);
    assert_eq!((run.total("conflict"), run.total("refused")), (1, 1));
    scene.push().push("app", "v1", &old).await;
    let renamed = json!({"name": "another", "from": "staging/app", "to": "production/app", "tags": {"include": ["*"]}});
    scene
        .ferry
        .write_config(&scene.config(|config| config.raw_route(renamed)));
    scene.ferry.sync(&["--tag", "latest"]).await.expect(0);
    scene.there().assert_holds("app", "latest", &new).await;
}

#[tokio::test]
async fn a_staging_tag_that_moves_meanwhile_is_not_named_from_old_facts() {
    let scene = Stage::new(Program::Distribution3).await;
    let (old, new) = (Image::oci(1, &[1000]), Image::oci(2, &[2000]));
    scene.push().push("app", "latest", &old).await;
    let gate = Gate::closed();
    scene.source.rule(
        Rule::on(&[Kind::BlobGet])
            .path(&old.blobs[1].digest)
            .times(1)
            .act(Act::Hold(gate.clone())),
    );
    let (run, ()) = tokio::join!(scene.sync(), async {
        gate.arrived(1).await;
        scene.push().push("app", "latest", &new).await;
        // Staging's answer lasts for ten seconds.
        tokio::time::sleep(std::time::Duration::from_millis(10_500)).await;
        gate.open();
    });
    assert!(
        scene
            .target
            .of(&[Kind::ManifestPut])
            .iter()
            .all(|put| !put.path.ends_with("/latest") || put.status == Some(201))
    );
    let named = scene.there().digest("app", "latest").await;
    assert_ne!(
        named.as_deref(),
        Some(old.digest()),
        "an image that staging no longer names was named: {}",
        run.said()
    );
    scene.sync().await.expect(0);
    scene.there().assert_holds("app", "latest", &new).await;
}
