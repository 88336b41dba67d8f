//! Decisions, one command each: what a person holds or denies is not named, and not by any way.

mod accept;
mod approve;
mod clock;
mod moves;
mod pushers;
pub mod rights;
mod rollback;
mod why;

use blobferry::state::StateLock;
use serde_json::{Value, json};

use crate::support::daemon::end_of;
use crate::support::rules::Gate;
use crate::support::scripted::{Answer, Record};
use crate::support::*;

/// Two registries and the program between them, which looks only when it is asked.
pub struct Scene {
    pub staging: Scripted,
    pub production: Scripted,
    pub ferry: Ferry,
}

impl Scene {
    pub fn new() -> Scene {
        Scene::with(|config| config)
    }

    pub fn with(change: impl FnOnce(Config) -> Config) -> Scene {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let config = change(Config::pair(&staging.url(), &production.url()));
        let ferry = Ferry::new(&config);
        Scene {
            staging,
            production,
            ferry,
        }
    }

    pub fn there(&self, tag: &str) -> Option<String> {
        self.production.tagged("app", tag)
    }

    /// Waits until production names an image.
    pub async fn named(&self, tag: &str, image: &Image) {
        let digest = image.digest();
        self.production
            .until(tag, |_| self.there(tag).as_deref() == Some(digest))
            .await;
    }

    /// The manifests that were written under a tag.
    fn names_sent(&self) -> usize {
        let sent = self.production.of(Kind::ManifestPut);
        sent.iter()
            .filter(|put| !put.path.contains("sha256:"))
            .count()
    }

    pub async fn run(&self, arguments: &[&str]) -> Run {
        self.ferry.run(arguments).await
    }

    pub async fn in_force(&self) -> Vec<Value> {
        let status = self.run(&["status", "--json"]).await.expect(0);
        let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
        status["decisions"].as_array().expect("a list").clone()
    }
}

pub fn reasons(job: &Value) -> String {
    let reasons = job["reasons"].as_array().expect("a job has reasons");
    let texts = reasons
        .iter()
        .map(|reason| reason.as_str().expect("a text"));
    texts.collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn a_hold_of_everything_keeps_all_names_and_no_content() {
    let scene = Scene::new();
    let daemon = scene.ferry.start_ready().await;
    let held = scene.run(&["hold", "--reason", "CHG-17"]).await.expect(0);
    assert!(
        held.stdout.starts_with("decision 1: hold everything"),
        "{}",
        held.stdout
    );
    let image = Image::oci(1, &[1000]);
    scene.staging.push("app", "v1", &image);
    let run = scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    let job = run.job("v1");
    assert_eq!(job["result"], "held");
    let why = reasons(&job);
    assert!(
        why.contains("everything is held by user:") && why.contains("CHG-17 (decision 1)"),
        "{why}"
    );
    // A pass in which it was not named ends well.
    assert_eq!(scene.ferry.sync(&[]).await.expect(0).total("held"), 1);
    assert_eq!((scene.names_sent(), scene.there("v1")), (0, None));
    for blob in image.unique_blobs() {
        assert!(
            scene.production.holds("app", &blob.digest),
            "it is carried meanwhile"
        );
    }
    assert_eq!(
        daemon
            .metric("blobferry_decisions_in_force", &[("kind", "hold")])
            .await,
        Some(1.0)
    );
    let labels = [("route", "app"), ("state", "held")];
    assert_eq!(daemon.metric("blobferry_tags", &labels).await, Some(1.0));

    // It holds after a restart, and shows.
    daemon.killed().await;
    let _daemon = scene.ferry.start_ready().await;
    scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    let status = scene.run(&["status"]).await.expect(0);
    assert!(status.stdout.contains("CHG-17"), "{}", status.stdout);

    // The release wakes the look, although nothing polls.
    let released = scene.run(&["release"]).await.expect(0);
    assert!(released.stdout.contains("ends 1"), "{}", released.stdout);
    scene.named("v1", &image).await;
    assert_eq!(scene.in_force().await, Vec::<Value>::new());
    let history = scene.run(&["history"]).await.expect(0);
    for said in ["hold", "CHG-17", "held", "release", "ends decision 1"] {
        assert!(history.stdout.contains(said), "{said}: {}", history.stdout);
    }
    scene.run(&["history", "--verify"]).await.expect(0);
}

/// The daemon was frozen after the command had connected: the command hung without a word.
#[tokio::test]
async fn a_decision_gives_up_on_a_frozen_daemon_and_says_how_to_look() {
    let scene = Scene::new();
    let daemon = scene.ferry.start_ready().await;
    daemon.signal("STOP").await;
    let approve = ["approve", "production/app:v1"];
    let (held, approved) = tokio::join!(scene.run(&["hold"]), scene.run(&approve));
    for run in [held.expect(1), approved.expect(1)] {
        for said in [
            "may have been recorded",
            "`blobferry status`",
            "`blobferry history`",
        ] {
            assert!(run.stderr.contains(said), "{said}: {}", run.stderr);
        }
    }
    daemon.signal("CONT").await;
    scene.run(&["hold"]).await.expect(0);
    assert!(!scene.in_force().await.is_empty());
}

#[tokio::test]
async fn a_hold_with_an_end_wakes_what_it_held() {
    let scene = Scene::new();
    let daemon = scene.ferry.start_ready().await;
    scene.run(&["hold", "--until", "6s"]).await.expect(0);
    let image = Image::oci(1, &[1000]);
    scene.staging.push("app", "v1", &image);
    scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(scene.there("v1"), None);
    scene.named("v1", &image).await;
    assert_eq!(
        daemon
            .metric("blobferry_decisions_in_force", &[("kind", "hold")])
            .await,
        Some(0.0)
    );
    let gone = scene.run(&["status", "--json"]).await.expect(0);
    assert!(gone.stdout.contains("\"decisions\": []"), "{}", gone.stdout);
}

/// Each poll ran the whole job of each held tag again.
#[tokio::test]
async fn a_held_tag_costs_a_poll_its_comparison_and_no_job() {
    let scene = Scene::with(|config| config.daemon("poll", json!("1s")));
    scene.run(&["hold"]).await.expect(0);
    let image = Image::oci(1, &[1000]);
    scene.staging.push("app", "v1", &image);
    let daemon = scene.ferry.start_ready().await;
    let looks = async || {
        let labels = [("cause", "poll")];
        let count = daemon.metric("blobferry_looks_total", &labels).await;
        count.unwrap_or_default()
    };
    let polled = async |times: f64| {
        let before = looks().await;
        eventually("polls have looked", async || {
            (looks().await >= before + times).then_some(())
        })
        .await;
    };
    polled(1.0).await;
    scene.staging.forget_requests();
    scene.production.forget_requests();
    polled(3.0).await;
    let is_comparison = |record: &Record| matches!(record.kind, Kind::Tags | Kind::ManifestHead);
    for log in [scene.staging.log(), scene.production.log()] {
        let more: Vec<_> = log.iter().filter(|record| !is_comparison(record)).collect();
        assert!(more.is_empty(), "{more:?}");
    }
    let held = [("state", "held")];
    assert_eq!(daemon.metric("blobferry_tags", &held).await, Some(1.0));
    // What staging names now is carried, and held like the digest before.
    let other = Image::oci(2, &[1000]);
    scene.staging.push("app", "v1", &other);
    scene
        .production
        .until("the other image is carried", |_| {
            let blobs = other.unique_blobs();
            blobs
                .iter()
                .all(|blob| scene.production.holds("app", &blob.digest))
        })
        .await;
    assert_eq!(scene.there("v1"), None);
    scene.run(&["release"]).await.expect(0);
    scene.named("v1", &other).await;
}

#[tokio::test]
async fn a_hold_covers_its_target_and_no_more() {
    let scene = Scene::new();
    let _daemon = scene.ferry.start_ready().await;
    scene.run(&["hold", "production/app:v1"]).await.expect(0);
    for seed in 1..=2 {
        let tag = format!("v{seed}");
        scene.staging.push("app", &tag, &Image::oci(seed, &[100]));
    }
    let run = scene.ferry.sync(&[]).await.expect(0);
    // The look that the hold wakes may have found v2 first.
    assert_eq!(run.total("held"), 1);
    assert!(scene.there("v2").is_some() && scene.there("v1").is_none());
    // Another hold of the same tag is another decision; a release with the target ends both.
    scene.run(&["hold", "production/app:v1"]).await.expect(0);
    scene.run(&["hold", "route:app"]).await.expect(0);
    let released = scene.run(&["release", "production/app:v1"]).await.expect(0);
    let released = released.stdout;
    assert!(
        released.contains("ends ") && released.contains(", "),
        "{released}"
    );
    scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    let left = scene.in_force().await;
    assert_eq!(left.len(), 1);
    scene
        .run(&["release", &left[0]["id"].to_string()])
        .await
        .expect(0);
    scene.ferry.sync(&["--tag", "v1"]).await.expect(0);
}

#[tokio::test]
async fn this_digest_never_again_by_a_base_layer_too() {
    let scene = Scene::new();
    let daemon = scene.ferry.start_ready().await;
    let base = Blob::layer(7, 5000);
    let bad = Image::of_layers(1, vec![base.clone(), Blob::layer(8, 100)]);
    let index = Image::index(&[Image::oci(3, &[100]), bad.clone()]);
    let good = Image::oci(2, &[100]);
    let deny = ["deny", &base.digest, "--reason", "CVE-2026-1"];
    scene.run(&deny).await.expect(0);
    scene.staging.push("app", "v1", &bad);
    scene.staging.push("app", "v2", &index);
    scene.staging.push("app", "v3", &good);
    let run = scene.ferry.sync(&[]).await.expect(4);
    // The look that the denial wakes may have found v3 first.
    assert_eq!(run.total("refused"), 2);
    let why = reasons(&run.job("v2"));
    assert!(
        why.contains(&format!("{} is denied by", base.digest)) && why.contains("CVE-2026-1"),
        "{why}"
    );
    let held = |digest: &str| scene.production.holds("app", digest);
    assert!(!held(&base.digest) && !held(bad.digest()) && !held(index.digest()));
    assert_eq!(scene.there("v3").as_deref(), Some(good.digest()));
    let labels = [("route", "app"), ("state", "refused")];
    assert_eq!(daemon.metric("blobferry_tags", &labels).await, Some(2.0));

    // Not by `copy` either, under a tag that the route would take.
    let (from, to) = (
        format!("{}/app:v1", scene.staging.host()),
        format!("{}/app:v9", scene.production.host()),
    );
    let copy = scene.run(&["copy", &from, &to, "--json"]).await.expect(4);
    assert_eq!(copy.job("v1")["result"], "refused");
    assert_eq!(scene.there("v9"), None);

    scene.run(&["release", &base.digest]).await.expect(0);
    scene.named("v1", &bad).await;
    scene.named("v2", &index).await;
}

#[tokio::test]
async fn a_dry_run_knows_a_denied_layer() {
    let scene = Scene::new();
    let base = Blob::layer(7, 5000);
    let bad = Image::of_layers(1, vec![base.clone()]);
    let index = Image::index(&[Image::oci(3, &[100]), bad.clone()]);
    let deny = ["deny", &base.digest, "--reason", "CVE-2026-1"];
    scene.run(&deny).await.expect(0);
    scene.staging.push("app", "v1", &bad);
    scene.staging.push("app", "v2", &index);
    scene.staging.push("app", "v3", &Image::oci(2, &[100]));
    let run = scene.ferry.sync(&["--dry-run"]).await.expect(4);
    assert_eq!((run.total("refused"), run.total("planned")), (2, 1));
    for tag in ["v1", "v2"] {
        let why = reasons(&run.job(tag));
        assert!(why.contains("CVE-2026-1"), "{why}");
    }
    assert_eq!(scene.there("v3"), None);
}

/// Production names one digest that is denied.
pub async fn one_denied_is_told(daemon: &Daemon) {
    eventually("it is counted", async || {
        let counted = daemon.metric("blobferry_denied_in_production", &[]).await;
        (counted == Some(1.0)).then_some(())
    })
    .await;
    daemon.says("production names a denied digest").await;
}

#[tokio::test]
async fn a_denied_digest_that_production_names_is_counted_and_stays() {
    let scene = Scene::new();
    let image = Image::oci(1, &[100]);
    scene.staging.push("app", "v1", &image);
    scene.staging.push("app", "v2", &Image::oci(2, &[100]));
    let daemon = scene.ferry.start_ready().await;
    let deny = ["deny", image.digest(), "--reason", "withdrawn"];
    scene.run(&deny).await.expect(0);
    one_denied_is_told(&daemon).await;
    scene.ferry.sync(&[]).await.expect(0);
    assert_eq!(scene.there("v1").as_deref(), Some(image.digest()));
    // Once it is gone it does not come back.
    scene.production.untag("app", "v1");
    let run = scene.ferry.sync(&[]).await.expect(4);
    assert_eq!(run.job("v1")["result"], "refused");
    assert_eq!(scene.there("v1"), None);
}

#[tokio::test]
async fn a_decision_waits_for_names_that_were_sent_before_it() {
    let scene = Scene::new();
    let gate = Gate::closed();
    let at_gate = gate.clone();
    scene.production.on(move |asked| match asked.kind {
        Kind::ManifestPut => Answer::Hold(at_gate.clone()),
        _ => Answer::Pass,
    });
    let daemon = scene.ferry.start_ready().await;
    let image = Image::oci(1, &[100]);
    scene.staging.push("app", "v1", &image);
    daemon.ping(json!({})).await;
    scene.production.seen(Kind::ManifestPut, 1).await;
    let mut hold = scene.ferry.spawn_command(&["hold"]);
    // The hold is recorded and in force, and the command still waits for the answer.
    eventually("the hold is in force", async || {
        (scene.in_force().await.len() == 1).then_some(())
    })
    .await;
    assert!(
        hold.try_wait().expect("asking for a child").is_none(),
        "a name is on its way"
    );
    gate.open();
    assert_eq!(end_of(&mut hold).await, 0);
    assert_eq!(scene.there("v1").as_deref(), Some(image.digest()));
    scene.staging.push("app", "v2", &Image::oci(2, &[100]));
    scene.ferry.sync(&["--tag", "v2"]).await.expect(4);
    assert_eq!(scene.there("v2"), None);
}

/// An image of many layers is on its way when it is denied: what was sent gets its answer, and
/// nothing more is sent.
#[tokio::test]
async fn a_denial_ends_the_carrying_of_what_it_denies() {
    let scene = Scene::new();
    let gate = Gate::closed();
    let at_gate = gate.clone();
    scene.production.on(move |asked| match asked.kind {
        Kind::UploadPut => Answer::Hold(at_gate.clone()),
        _ => Answer::Pass,
    });
    let daemon = scene.ferry.start_ready().await;
    let image = Image::oci(1, &[100; 40]);
    scene.staging.push("app", "v1", &image);
    daemon.ping(json!({})).await;
    scene.production.seen(Kind::UploadPut, 1).await;
    let deny = ["deny", image.digest(), "--reason", "CVE"];
    let mut deny = scene.ferry.spawn_command(&deny);
    eventually("the denial is in force", async || {
        (scene.in_force().await.len() == 1).then_some(())
    })
    .await;
    let waits = deny.try_wait().expect("asking for a child").is_none();
    assert!(waits, "content is on its way");
    let opened = scene.production.count(Kind::UploadPost);
    assert!(opened < 41, "most layers wait for their turn: {opened}");
    gate.open();
    assert_eq!(end_of(&mut deny).await, 0);
    let refused = scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    let job = refused.job("v1");
    assert_eq!(job["result"], "refused");
    assert!(reasons(&job).contains("CVE"), "{job:#}");
    assert_eq!(scene.production.count(Kind::UploadPost), opened);
    assert_eq!(scene.production.count(Kind::ManifestPut), 0);

    // After a release nothing of that is remembered.
    scene.run(&["release", image.digest()]).await.expect(0);
    scene.named("v1", &image).await;
}

/// A load balancer answers for production with 504: the write may arrive later.
#[tokio::test]
async fn a_hold_names_the_tags_whose_answers_were_lost() {
    let scene = Scene::new();
    scene
        .production
        .on(|asked| match (asked.kind, asked.reference()) {
            (Kind::ManifestPut, "v1") => Answer::Reply(Reply::status(504)),
            _ => Answer::Pass,
        });
    let daemon = scene.ferry.start_ready().await;
    let image = Image::oci(1, &[100]);
    scene.staging.push("app", "v1", &image);
    daemon.ping(json!({})).await;
    let lost = |log: &[Record]| {
        log.iter()
            .any(|one| one.path.ends_with("/v1") && one.status == Some(504))
    };
    scene.production.until("the answer is lost", lost).await;
    let may_move = async |arguments: &[&str]| {
        let run = scene.run(arguments).await.expect(0);
        run.stdout.contains("/app:v1 was sent before")
    };
    assert!(may_move(&["hold"]).await, "everything");
    assert!(may_move(&["hold", "route:app"]).await, "its route");
    assert!(!may_move(&["hold", "app:v2"]).await, "another tag");

    // Without a daemon the ledger knows it.
    daemon.killed().await;
    assert!(may_move(&["hold", "app:v1"]).await);
    for target in [
        &["release"][..],
        &["release", "route:app"],
        &["release", "app:v1"],
    ] {
        scene.run(target).await.expect(0);
    }
    scene.production.calm();
    let _daemon = scene.ferry.start_ready().await;
    scene.named("v1", &image).await;
    let named = ["sync", "--tag", "v1"];
    scene.run(&named).await.expect(0);
    assert!(!may_move(&["hold"]).await, "it has arrived");
}

/// A route gets another name: the hold that names it covers nothing any more, and that is said.
#[tokio::test]
async fn a_reload_says_which_decisions_cover_nothing() {
    let scene = Scene::new();
    let daemon = scene.ferry.start_ready().await;
    scene.run(&["hold", "route:app"]).await.expect(0);
    let renamed = json!({"name": "shop", "from": "staging/app", "to": "production/app", "tags": {"include": ["*"]}});
    let config = Config::new()
        .registry("staging", &scene.staging.url())
        .registry("production", &scene.production.url())
        .raw_route(renamed);
    scene.ferry.write_config(&config);
    daemon.signal("HUP").await;
    let said = "decision 1 (hold) covers nothing: the config has no route \"app\"";
    daemon.says("a decision in force covers nothing").await;
    eventually("the row of the reload", async || {
        let history = scene.run(&["history", "--json"]).await;
        let rows = history
            .stdout
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.into_iter()
            .find(|row| row["warnings"] == json!([said]))
    })
    .await;
}

#[tokio::test]
async fn a_name_that_waits_for_its_turn_is_stopped_by_a_hold() {
    let scene = Scene::new();
    // Production asks for time at the first attempt to name: the second one finds the hold.
    let told = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = told.clone();
    scene.production.on(move |asked| match asked.kind {
        Kind::ManifestPut => {
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            Answer::Reply(Reply::status(429).header("retry-after", "2"))
        }
        _ => Answer::Pass,
    });
    let daemon = scene.ferry.start_ready().await;
    scene.staging.push("app", "v1", &Image::oci(1, &[100]));
    daemon.ping(json!({})).await;
    scene.production.seen(Kind::ManifestPut, 1).await;
    scene.run(&["hold", "route:app"]).await.expect(0);
    let sent = told.load(std::sync::atomic::Ordering::SeqCst);
    scene.production.calm();
    let run = scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(run.job("v1")["result"], "held");
    assert_eq!(scene.production.count(Kind::ManifestPut), sent);
    assert_eq!(scene.there("v1"), None);
}

#[tokio::test]
async fn what_travels_with_an_image_waits_with_it() {
    let scene = Scene::new();
    let image = Image::oci(1, &[100]);
    let signature = format!("{}.sig", image.digest().replace(':', "-"));
    let _daemon = scene.ferry.start_ready().await;
    scene.run(&["hold", "app:v1"]).await.expect(0);
    scene.staging.push("app", "v1", &image);
    scene.staging.push("app", &signature, &Image::oci(2, &[10]));
    let sbom = Image::referrer(3, &image, "application/spdx+json");
    scene.staging.push_untagged("app", &sbom);
    scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!((scene.there("v1"), scene.there(&signature)), (None, None));
    assert!(!scene.production.holds("app", sbom.digest()));

    // A signature that comes later waits while the tag that it belongs to is held.
    scene.run(&["release", "app:v1"]).await.expect(0);
    scene.named("v1", &image).await;
    scene.ferry.sync(&["--tag", "v1"]).await.expect(0);
    scene.run(&["hold", "app:v1"]).await.expect(0);
    let before = scene.there(&signature);
    scene.staging.push("app", &signature, &Image::oci(4, &[10]));
    scene.ferry.sync(&["--tag", "v1"]).await.expect(0);
    assert_eq!(scene.there(&signature), before);
    scene.run(&["release", "app:v1"]).await.expect(0);
    scene.ferry.sync(&["--tag", "v1"]).await.expect(0);
    assert_ne!(scene.there(&signature), before);
}

#[tokio::test]
async fn without_a_daemon_decisions_are_in_the_ledger_all_the_same() {
    let scene = Scene::new();
    let image = Image::oci(1, &[100]);
    scene.staging.push("app", "v1", &image);
    scene.run(&["hold", "production/app"]).await.expect(0);
    let run = scene.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(run.job("v1")["result"], "held");
    let planned = scene.ferry.sync(&["--dry-run"]).await.expect(0);
    assert_eq!(planned.job("v1")["result"], "held");
    scene.run(&["release", "production/other"]).await.expect(5);
    scene.run(&["release", "production/app"]).await.expect(0);
    scene.ferry.sync(&[]).await.expect(0);
    assert_eq!(scene.there("v1").as_deref(), Some(image.digest()));
    scene.run(&["history", "--verify"]).await.expect(0);
}

/// `release app` did not find `hold production/app`.
#[tokio::test]
async fn a_release_finds_its_target_by_what_it_means() {
    let scene = Scene::new();
    let image = Image::oci(1, &[100]);
    scene.staging.push("app", "v1", &image);
    scene.run(&["hold", "production/app"]).await.expect(0);
    let wrong = scene.run(&["release", "app:v1"]).await.expect(5);
    let near = "in force there: hold production/app (decision 1)";
    assert!(wrong.stderr.contains(near), "{}", wrong.stderr);
    scene.run(&["release", "app"]).await.expect(0);
    let _daemon = scene.ferry.start_ready().await;
    scene.named("v1", &image).await;
    scene.run(&["hold", "app"]).await.expect(0);
    let wrong = scene.run(&["release", "app:v1"]).await.expect(5);
    assert!(
        wrong.stderr.contains("in force there: hold app"),
        "{}",
        wrong.stderr
    );
    let released = ["release", "production/app"];
    let released = scene.run(&released).await.expect(0);
    assert!(released.stdout.contains("ends "), "{}", released.stdout);
    assert_eq!(scene.in_force().await, Vec::<Value>::new());
}

/// A slip of the pen was recorded, and held nothing.
#[tokio::test]
async fn without_a_daemon_a_target_must_be_in_the_config_too() {
    let scene = Scene::new();
    let hold = async |target: &str, code: i32| {
        let run = scene.run(&["hold", target]).await;
        run.expect(code)
    };
    let typo = hold("route:typo", 5).await;
    assert!(typo.stderr.contains("no route \"typo\""), "{}", typo.stderr);
    hold("payments/**", 5).await;
    let first = hold("route:app", 0).await;
    let folder = scene.ferry.path("state").display().to_string();
    assert!(
        first
            .stdout
            .contains(&format!("no daemon has used {folder} so far")),
        "{}",
        first.stdout
    );
    let second = hold("app:v1", 0).await;
    assert!(
        second
            .stdout
            .contains(&format!("no daemon runs on {folder}")),
        "{}",
        second.stdout
    );
    // In trouble a broken config must not stand in the way.
    let state = scene.ferry.path("state").display().to_string();
    scene.ferry.write_config(&Config::text(&format!(
        "daemon: {{state: {state}}}\nroutes: x\n"
    )));
    let blind = hold("route:typo", 0).await;
    assert!(
        blind.stderr.contains("taken as it is written"),
        "{}",
        blind.stderr
    );
}

#[tokio::test]
async fn what_cannot_be_decided_is_said_with_its_exit_code() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let scene = Scene::with(|config| {
        let twice = json!({"name": "twice", "from": "staging/twice", "to": "production/production/app", "tags": {"include": ["*"]}});
        config.raw_route(twice)
    });
    let _daemon = scene.ferry.start_ready().await;
    let table: [(&[&str], i32, &str); 11] = [
        (&["hold", "production/app"], 2, "ambiguous"),
        (&["hold", "production/production/app"], 0, ""),
        (&["hold", "payments/**"], 5, "no route leads"),
        (&["hold", "route:nope"], 5, "no route \"nope\""),
        (
            &["hold", "app:v1", "--until", "2020-01-01T00:00:00Z"],
            2,
            "in the past",
        ),
        (
            &["hold", "app:v1", "--until", "monday"],
            2,
            "neither a time",
        ),
        (&["hold", "App"], 2, "is no target"),
        (&["deny", &digest], 2, "needs a reason"),
        (&["deny", "app:v1", "--reason", "x"], 2, ""),
        (&["release"], 5, "no decision about everything"),
        (&["release", "99"], 5, "no decision 99"),
    ];
    for (arguments, code, said) in table {
        let run = scene.run(arguments).await.expect(code);
        assert!(run.stderr.contains(said), "{arguments:?}: {}", run.stderr);
    }
    assert_eq!(scene.in_force().await.len(), 1);
}

#[tokio::test]
async fn a_decision_about_something_else_costs_no_request() {
    let mut counts = Vec::new();
    for held in [None, Some("route:other")] {
        let scene = Scene::with(|config| config.route("other", json!({})));
        let _daemon = scene.ferry.start_ready().await;
        if let Some(target) = held {
            scene.run(&["hold", target]).await.expect(0);
        }
        scene.staging.push("other", "v9", &Image::oci(2, &[100]));
        scene.staging.push("app", "v0", &Image::oci(3, &[100]));
        let looked = scene.ferry.sync(&[]).await.expect(0);
        assert_eq!(looked.total("held"), u64::from(held.is_some()));
        scene.staging.push("app", "v1", &Image::oci(1, &[100, 200]));
        scene.staging.forget_requests();
        scene.production.forget_requests();
        scene.ferry.sync(&["--tag", "v1"]).await.expect(0);
        counts.push((scene.staging.log().len(), scene.production.log().len()));
    }
    assert_eq!(counts[0], counts[1]);
}

/// A restart is when an emergency is answered: a decision failed, with the advice to stop the
/// daemon.
#[tokio::test]
async fn a_decision_waits_for_a_daemon_that_starts() {
    let scene = Scene::new();
    let lock = StateLock::acquire(&scene.ferry.path("state")).expect("the folder is free");
    let said = scene.ferry.path("said");
    let stderr = std::fs::File::create(&said).expect("a file");
    let arguments = ["hold", "--reason", "INC-4"];
    let mut hold = scene.ferry.spawn_saying_to(&arguments, stderr.into());
    eventually("it waits for the process", async || {
        let said = std::fs::read_to_string(&said).ok()?;
        said.contains("waits for it").then_some(())
    })
    .await;
    drop(lock);
    let _daemon = scene.ferry.start_ready().await;
    assert_eq!(end_of(&mut hold).await, 0);
    assert_eq!(scene.in_force().await[0]["reason"], "INC-4");
}

#[tokio::test]
async fn a_decision_beside_a_process_that_never_answers_fails_without_bad_advice() {
    let scene = Scene::new();
    let _lock = StateLock::acquire(&scene.ferry.path("state")).expect("the folder is free");
    for command in [&["hold"][..], &["accept", "app:v1", "--reason", "x"]] {
        let run = scene.run(command).await.expect(1);
        let names = format!("process {} holds the state folder", std::process::id());
        assert!(run.stderr.contains(&names), "{}", run.stderr);
        for advice in ["stop that process", "a folder of its own", "--state"] {
            assert!(!run.stderr.contains(advice), "{}", run.stderr);
        }
    }
}
