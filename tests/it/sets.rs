//! Sets: the images of one application move together, whole, or not at all.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::support::rules::{Gate, Reply, Rule};
use crate::support::scripted::{Answer, Asked};
use crate::support::*;

const MEMBERS: [&str; 3] = ["api", "web", "worker"];

/// The image of a member in a version.
fn image(member: &str, version: u64) -> Image {
    let position = MEMBERS.iter().position(|name| *name == member);
    let position = position.expect("a member") as u64;
    Image::oci(100 * version + position, &[1000])
}

fn shop_of(config: Config) -> Config {
    let config = MEMBERS
        .iter()
        .fold(config, |config, member| config.route(member, json!({})));
    config.set("shop", &MEMBERS)
}

/// The job of a route in a report.
fn job_of(run: &Run, route: &str) -> Value {
    let report = run.report();
    let jobs = report["jobs"].as_array().expect("a report has jobs");
    let of_route = jobs.iter().find(|job| job["route"] == route);
    of_route
        .unwrap_or_else(|| panic!("no job of {route} in {report:#}"))
        .clone()
}

fn reason(job: &Value) -> &str {
    job["reasons"][0].as_str().unwrap_or_default()
}

/// A shop between two registries that are told what to do.
struct Shop {
    staging: Scripted,
    production: Scripted,
    ferry: Ferry,
}

impl Shop {
    fn new() -> Shop {
        Shop::with(shop_of)
    }

    fn with(config: impl FnOnce(Config) -> Config) -> Shop {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let base = Config::new()
            .registry("staging", &staging.url())
            .registry("production", &production.url());
        let ferry = Ferry::new(&config(base));
        Shop {
            staging,
            production,
            ferry,
        }
    }

    fn push(&self, member: &str, tag: &str, version: u64) {
        self.staging.push(member, tag, &image(member, version));
    }

    fn push_all(&self, tag: &str, version: u64) {
        MEMBERS.iter().for_each(|one| self.push(one, tag, version));
    }

    /// Pushes a version of all members, and `latest` of it.
    fn push_release(&self, version: u64) {
        self.push_all(&format!("v{version}"), version);
        self.push_all("latest", version);
    }

    /// Production refuses to name this tag of a member.
    fn refuse(&self, member: &'static str, tag: &'static str) {
        self.production
            .on(move |asked| match is_put(asked, member, tag) {
                true => Answer::Reply(Reply::status(400)),
                false => Answer::Pass,
            });
    }

    /// The versions that production names under a tag.
    fn there(&self, tag: &str) -> [Option<u64>; 3] {
        MEMBERS.map(|member| {
            let digest = self.production.tagged(member, tag)?;
            let is_it = |version: &u64| image(member, *version).digest() == digest;
            Some((1..=9).find(is_it).expect("a version of the shop"))
        })
    }

    async fn until_there(&self, tag: &str, versions: [Option<u64>; 3]) {
        self.production
            .until(&format!("{tag} is {versions:?}"), |_| {
                self.there(tag) == versions
            })
            .await;
    }

    /// The tags that were written, in order.
    fn names_sent(&self) -> Vec<String> {
        let sent = self.production.of(Kind::ManifestPut);
        let paths = sent.iter().map(|put| put.path.clone());
        paths.filter(|path| !path.contains("sha256:")).collect()
    }

    fn forget(&self) {
        self.production.forget_requests();
    }

    async fn decisions(&self) -> Vec<Value> {
        let status = self.ferry.run(&["status", "--json"]).await.expect(0);
        let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
        status["decisions"].as_array().expect("a list").clone()
    }
}

fn path(member: &str, tag: &str) -> String {
    format!("/v2/{member}/manifests/{tag}")
}

fn is_put(asked: &Asked, member: &str, tag: &str) -> bool {
    asked.kind == Kind::ManifestPut && asked.path == path(member, tag)
}

/// Against real registries: two members are there, then the third.
#[tokio::test]
async fn the_three_images_of_the_shop_are_named_together() {
    let stage = Stage::build(Program::Distribution3, shop_of).await;
    let daemon = stage.ferry.start_ready().await;
    for member in ["api", "web"] {
        stage.push().push(member, "v1", &image(member, 1)).await;
    }
    // The repository of the third does not exist yet.
    let run = stage.ferry.sync(&[]).await.expect(5);
    for member in ["api", "web"] {
        let job = job_of(&run, member);
        assert_eq!(job["result"], "waiting", "{job:#}");
        assert_eq!(reason(&job), "set shop lacks worker:v1");
        assert_eq!(stage.there().digest(member, "v1").await, None);
        for blob in image(member, 1).unique_blobs() {
            let is_there = stage.there().has_blob(member, &blob.digest).await;
            assert!(is_there, "it is carried meanwhile");
        }
    }
    // Asked for by name it ends with 4, and `why` says the same.
    stage.ferry.sync(&["api", "--tag", "v1"]).await.expect(4);
    let why = stage.ferry.run(&["why", "production/api:v1"]).await;
    assert!(why.stdout.contains("lacks worker:v1"), "{}", why.said());

    // The last one wakes the others: only its own repository is looked at.
    stage.push().push("worker", "v1", &image("worker", 1)).await;
    let (status, report) = daemon.ping(json!({"route": "worker", "wait": true})).await;
    assert_eq!(status, 200, "{report:#}");
    daemon.says("a set was named").await;
    for member in MEMBERS {
        let image = image(member, 1);
        stage.there().assert_holds(member, "v1", &image).await;
    }
    let puts = stage.target.of(&[Kind::ManifestPut]);
    let named: Vec<String> = puts
        .iter()
        .map(|put| put.path.clone())
        .filter(|path| path.ends_with("/v1"))
        .collect();
    assert_eq!(named, MEMBERS.map(|member| path(member, "v1")));
    let labels = [("set", "shop")];
    let count = daemon.metric("blobferry_set_naming_seconds_count", &labels);
    assert_eq!(count.await, Some(1.0));
    assert_eq!(
        daemon.metric("blobferry_sets_torn", &labels).await,
        Some(0.0)
    );
}

/// Against real registries: the third is refused, so the first two go back.
#[tokio::test]
async fn a_moving_tag_of_a_torn_set_goes_back_and_stays() {
    let stage = Stage::build(Program::Distribution2, shop_of).await;
    let daemon = stage.ferry.start_ready().await;
    let there = async |tag: &str| {
        let mut versions = Vec::new();
        for member in MEMBERS {
            let digest = stage.there().digest(member, tag).await;
            let is_it = |version: &u64| Some(image(member, *version).digest()) == digest.as_deref();
            versions.push((1..=3).find(is_it));
        }
        versions
    };
    for version in 1..=2 {
        for member in MEMBERS {
            let image = image(member, version);
            let tag = format!("v{version}");
            stage.push().push(member, &tag, &image).await;
            if version == 1 {
                stage.push().push(member, "latest", &image).await;
            }
        }
    }
    stage.ferry.sync(&[]).await.expect(0);
    eventually("latest is v1", async || {
        (there("latest").await == [Some(1); 3]).then_some(())
    })
    .await;

    let refused = Rule::on(&[Kind::ManifestPut]).path("/worker/manifests/latest");
    stage.target.rule(refused.act(Reply::status(400)));
    for member in MEMBERS {
        let image = image(member, 2);
        stage.push().push(member, "latest", &image).await;
    }
    stage.ferry.sync(&[]).await;
    daemon.says("a set is torn").await;
    eventually("latest is v1 again", async || {
        (there("latest").await == [Some(1); 3]).then_some(())
    })
    .await;
    assert_eq!(there("v2").await, [Some(2); 3], "fixed tags went before");
    let labels = [("set", "shop")];
    eventually("the metric tells", async || {
        let torn = daemon.metric("blobferry_sets_torn", &labels).await;
        (torn == Some(1.0)).then_some(())
    })
    .await;
    let history = stage.ferry.run(&["history"]).await.expect(0);
    assert!(history.stdout.contains("torn"), "{}", history.stdout);

    // It does not flap, whatever is asked, and not after a restart either.
    let moves = || {
        let puts = stage.target.of(&[Kind::ManifestPut]);
        puts.iter()
            .filter(|put| put.path.ends_with("/latest"))
            .count()
    };
    let before = moves();
    for _ in 0..2 {
        let run = stage.ferry.sync(&["--tag", "latest"]).await.expect(4);
        assert_eq!(run.total("held"), 3, "{}", run.stdout);
    }
    daemon.killed().await;
    let daemon = stage.ferry.start_ready().await;
    let run = stage.ferry.sync(&["--tag", "latest"]).await.expect(4);
    assert_eq!(run.total("held"), 3, "{}", run.stdout);
    assert!(reason(&job_of(&run, "api")).contains("set:shop:latest is held by daemon"));
    assert_eq!(moves(), before);

    stage.target.reset();
    let release = ["release", "set:shop:latest"];
    stage.ferry.run(&release).await.expect(0);
    eventually("latest is v2", async || {
        (there("latest").await == [Some(2); 3]).then_some(())
    })
    .await;
    eventually("the metric tells", async || {
        let torn = daemon.metric("blobferry_sets_torn", &labels).await;
        (torn == Some(0.0)).then_some(())
    })
    .await;
    stage.ferry.run(&["history", "--verify"]).await.expect(0);
}

/// Without a daemon no later look would take the tags back.
#[tokio::test]
async fn a_pass_takes_back_what_it_has_torn() {
    let shop = Shop::new();
    shop.push_release(1);
    shop.ferry.sync(&[]).await.expect(0);
    shop.refuse("worker", "latest");
    shop.push_release(2);
    let run = shop.ferry.sync(&[]).await.expect(1);
    assert_eq!(shop.there("latest"), [Some(1); 3]);
    let report = run.report();
    let jobs = report["jobs"].as_array().expect("jobs").iter();
    let back: Vec<&Value> = jobs
        .filter(|job| reason(job).contains("back to what the tag named before"))
        .map(|job| &job["destination"])
        .collect();
    assert_eq!(back.len(), 2, "{report:#}");
    assert_eq!(run.total("held"), 3, "{}", run.stdout);
}

/// A permanent refusal is not retried for nothing, and it is told.
#[tokio::test]
async fn a_refused_way_back_is_told_and_rests() {
    let shop = Shop::with(|config| shop_of(config).daemon("poll", json!("1s")));
    let daemon = shop.ferry.start_ready().await;
    shop.push_release(1);
    shop.until_there("latest", [Some(1); 3]).await;
    shop.production.on(|asked| {
        // The third PUT of the tag is the way back.
        let is_back = is_put(asked, "api", "latest") && asked.nth_here >= 3;
        match is_back || is_put(asked, "worker", "latest") {
            true => Answer::Reply(Reply::status(400)),
            false => Answer::Pass,
        }
    });
    shop.push_release(2);
    daemon.says("a set is torn").await;
    shop.until_there("latest", [Some(2), Some(1), Some(1)])
        .await;
    let said = eventually("the refusal is told", async || {
        let why = shop.ferry.run(&["why", "production/api:latest"]).await;
        why.stdout
            .contains("still to go back to")
            .then_some(why.stdout)
    })
    .await;
    assert!(said.contains("refused before"), "{said}");
    shop.forget();
    let rows = async || {
        let history = ["history", "production/api:latest"];
        let history = shop.ferry.run(&history).await.expect(0);
        history.stdout.lines().count()
    };
    let before = rows().await;
    shop.staging.seen(Kind::Tags, 9).await;
    assert_eq!(shop.names_sent(), Vec::<String>::new());
    assert_eq!(rows().await, before);
}

/// The plan of a release is whole: its moving tags go with the fixed tags that it plans.
#[tokio::test]
async fn a_dry_run_of_a_release_plans_its_moving_tags() {
    let shop = Shop::new();
    shop.push_release(1);
    let plan = shop.ferry.sync(&["--dry-run"]).await.expect(0);
    assert_eq!(plan.total("planned"), 6, "{}", plan.stdout);
    // A fixed tag that one member lacks is planned for none.
    shop.push("api", "v2", 2);
    shop.push("api", "latest", 2);
    let plan = shop.ferry.sync(&["--dry-run"]).await.expect(0);
    assert_eq!(plan.total("planned"), 3, "{}", plan.stdout);
    assert_eq!(plan.total("waiting"), 4, "{}", plan.stdout);
}

#[tokio::test]
async fn a_new_digest_ends_the_hold_of_a_torn_set() {
    let shop = Shop::new();
    let daemon = shop.ferry.start_ready().await;
    shop.push_release(1);
    shop.ferry.sync(&[]).await.expect(0);
    shop.until_there("latest", [Some(1); 3]).await;
    shop.refuse("web", "latest");
    shop.push_release(2);
    shop.ferry.sync(&[]).await;
    daemon.says("a set is torn").await;
    shop.until_there("latest", [Some(1); 3]).await;
    assert_eq!(shop.decisions().await.len(), 1);
    shop.production.calm();
    shop.push_release(3);
    shop.ferry.sync(&[]).await;
    shop.until_there("latest", [Some(3); 3]).await;
    assert_eq!(shop.decisions().await, Vec::<Value>::new());
}

/// What the set took back counts as never named.
#[tokio::test]
async fn a_rollback_after_a_torn_set_goes_further_back() {
    let shop = Shop::new();
    let daemon = shop.ferry.start_ready().await;
    for version in 1..=2 {
        shop.push_release(version);
        shop.ferry.sync(&[]).await;
        shop.until_there("latest", [Some(version); 3]).await;
    }
    shop.refuse("worker", "latest");
    shop.push_release(3);
    shop.ferry.sync(&[]).await;
    daemon.says("a set is torn").await;
    shop.until_there("latest", [Some(2); 3]).await;
    let back = ["rollback", "production/api:latest", "--reason", "INC-9"];
    shop.ferry.run(&back).await.expect(0);
    assert_eq!(shop.there("latest"), [Some(1), Some(2), Some(2)]);
}

#[tokio::test]
async fn a_fixed_tag_of_a_torn_set_stays_and_is_reported() {
    let shop = Shop::new();
    let daemon = shop.ferry.start_ready().await;
    shop.refuse("worker", "v1");
    shop.push_all("v1", 1);
    shop.ferry.sync(&[]).await.expect(1);
    daemon.says("a set is torn").await;
    assert_eq!(shop.there("v1"), [Some(1), Some(1), None]);
    let held = shop.decisions().await;
    let [held] = &held[..] else {
        panic!("one decision: {held:#?}");
    };
    assert_eq!(held["target"], "set:shop:v1");
    let said = held["reason"].as_str().unwrap();
    assert!(
        said.contains("api:v1, web:v1 named, worker:v1 not"),
        "{said}"
    );
    let run = shop.ferry.sync(&["--tag", "v1"]).await.expect(4);
    assert_eq!(job_of(&run, "worker")["result"], "held");
    shop.production.calm();
    shop.ferry.run(&["release", "set:shop:v1"]).await.expect(0);
    shop.until_there("v1", [Some(1); 3]).await;
}

/// The first is refused: nothing was named, so nothing is torn.
#[tokio::test]
async fn a_set_of_which_nothing_was_named_is_not_torn() {
    let shop = Shop::new();
    let _daemon = shop.ferry.start_ready().await;
    shop.refuse("api", "v1");
    shop.push_all("v1", 1);
    let run = shop.ferry.sync(&[]).await.expect(1);
    assert_eq!(job_of(&run, "api")["result"], "failed");
    assert_eq!(job_of(&run, "web")["result"], "waiting");
    assert_eq!(shop.there("v1"), [None; 3]);
    assert_eq!(shop.decisions().await, Vec::<Value>::new());
    shop.production.calm();
    shop.ferry.sync(&[]).await;
    shop.until_there("v1", [Some(1); 3]).await;
}

#[tokio::test]
async fn a_moving_tag_waits_until_all_members_name_one_version() {
    let shop = Shop::new();
    let daemon = shop.ferry.start_ready().await;
    shop.push_release(1);
    shop.ferry.sync(&[]).await.expect(0);
    shop.until_there("latest", [Some(1); 3]).await;
    shop.push_all("v2", 2);
    shop.push("api", "latest", 2);
    let run = shop.ferry.sync(&[]).await.expect(0);
    shop.until_there("v2", [Some(2); 3]).await;
    let job = job_of(
        &shop.ferry.sync(&["--tag", "latest"]).await.expect(4),
        "api",
    );
    assert_eq!(
        reason(&job),
        "set shop has no fixed tag in common: api:latest names v2; web:latest names v1; worker:latest names v1",
        "{}",
        run.stdout
    );
    for (member, is_last) in [("worker", false), ("web", true)] {
        shop.push(member, "latest", 2);
        let ping = json!({"route": member, "tag": "latest", "wait": true});
        let (status, report) = daemon.ping(ping).await;
        assert_eq!(status == 200, is_last, "{report:#}");
        if !is_last {
            assert_eq!(shop.there("latest"), [Some(1); 3]);
        }
    }
    shop.until_there("latest", [Some(2); 3]).await;
}

#[tokio::test]
async fn a_hold_of_a_set_holds_all_of_it() {
    let shop = Shop::with(|config| shop_of(config).route("tool", json!({})));
    let _daemon = shop.ferry.start_ready().await;
    let unknown = shop.ferry.run(&["hold", "set:other"]).await.expect(5);
    assert!(unknown.stderr.contains("no set"), "{}", unknown.stderr);
    let hold = ["hold", "set:shop", "--reason", "CHG-1"];
    shop.ferry.run(&hold).await.expect(0);
    shop.push_all("v1", 1);
    shop.staging.push("tool", "v1", &image("api", 1));
    let run = shop.ferry.sync(&[]).await.expect(0);
    assert_eq!((run.total("held"), run.total("promoted")), (3, 1));
    assert_eq!(shop.there("v1"), [None; 3]);
    shop.ferry.run(&["release", "set:shop"]).await.expect(0);
    shop.until_there("v1", [Some(1); 3]).await;

    // One tag of it, by its name at staging.
    shop.ferry.run(&["hold", "set:shop:v2"]).await.expect(0);
    shop.push_all("v2", 2);
    shop.push_all("v3", 3);
    shop.ferry.sync(&[]).await.expect(0);
    shop.until_there("v3", [Some(3); 3]).await;
    assert_eq!(shop.there("v2"), [None; 3]);
}

/// A decision between two members: the rest is not named, and the set is torn.
#[tokio::test]
async fn a_hold_between_two_members_tears_the_set() {
    let shop = Shop::new();
    let daemon = shop.ferry.start_ready().await;
    let gate = Gate::closed();
    let there = gate.clone();
    shop.production
        .on(move |asked| match is_put(asked, "api", "v1") {
            true => Answer::Hold(there.clone()),
            false => Answer::Pass,
        });
    shop.push_all("v1", 1);
    let syncing = shop.ferry.sync(&[]);
    let holding = async {
        gate.arrived(1).await;
        let held = shop.ferry.run(&["hold", "production/web"]).await.expect(0);
        gate.open();
        held
    };
    let (_, _) = tokio::join!(syncing, holding);
    daemon.says("a set is torn").await;
    assert_eq!(shop.there("v1"), [Some(1), None, None]);
    let targets: Vec<Value> = shop
        .decisions()
        .await
        .iter()
        .map(|one| one["target"].clone())
        .collect();
    assert_eq!(targets, ["production/web", "set:shop:v1"]);
}

/// Production shows for a moment what was there before our own write. The next look goes on.
#[tokio::test]
async fn a_read_that_lags_after_our_own_write_tears_no_set() {
    let shop = Shop::new();
    let _daemon = shop.ferry.start_ready().await;
    shop.push_release(1);
    shop.ferry.sync(&[]).await.expect(0);
    shop.until_there("latest", [Some(1); 3]).await;
    let gate = Gate::closed();
    let there = gate.clone();
    shop.production
        .on(move |asked| match is_put(asked, "worker", "latest") {
            true => Answer::Hold(there.clone()),
            false => Answer::Pass,
        });
    shop.push_release(2);
    let syncing = shop.ferry.sync(&[]);
    let lagging = async {
        gate.arrived(1).await;
        let [old, new] = [1, 2].map(|version| image("api", version));
        shop.production.tag("api", "latest", old.digest());
        for _ in 0..2 {
            let seen = shop.ferry.sync(&["api", "--tag", "latest"]).await;
            assert_eq!(job_of(&seen, "api")["result"], "drift");
        }
        shop.production.tag("api", "latest", new.digest());
        gate.open();
    };
    let (_, ()) = tokio::join!(syncing, lagging);
    assert_eq!(shop.decisions().await, Vec::<Value>::new());
    shop.ferry.sync(&["--tag", "latest"]).await;
    shop.until_there("latest", [Some(2); 3]).await;
    assert_eq!(shop.decisions().await, Vec::<Value>::new());
}

/// Killed after the first tag: the next process goes on.
#[tokio::test]
async fn a_naming_that_a_kill_interrupts_goes_on_after_the_restart() {
    for is_refused_later in [false, true] {
        let shop = Shop::new();
        let daemon = shop.ferry.start_ready().await;
        let gate = Gate::closed();
        let there = gate.clone();
        shop.production
            .on(move |asked| match is_put(asked, "web", "v1") {
                true => Answer::Hold(there.clone()),
                false => Answer::Pass,
            });
        shop.push_all("v1", 1);
        let (status, _) = daemon.ping(json!({})).await;
        assert_eq!(status, 202);
        gate.arrived(1).await;
        assert_eq!(shop.there("v1"), [Some(1), None, None]);
        daemon.killed().await;
        shop.production.calm();
        if is_refused_later {
            shop.refuse("worker", "v1");
        }
        shop.forget();
        let daemon = shop.ferry.start().await;
        gate.open();
        if is_refused_later {
            daemon.says("a set is torn").await;
            assert_eq!(shop.there("v1")[2], None);
        } else {
            shop.until_there("v1", [Some(1); 3]).await;
            assert!(!shop.names_sent().contains(&path("api", "v1")));
        }
    }
}

#[tokio::test]
async fn a_gate_that_keeps_one_member_back_keeps_the_set_back() {
    let shop = Shop::with(|config| {
        let gates = json!({"gates": {"approval": {"people": 1}}});
        let config = config
            .route("api", json!({}))
            .route("web", json!({}))
            .route("worker", gates);
        config.set("shop", &MEMBERS)
    });
    let _daemon = shop.ferry.start_ready().await;
    shop.push_all("v1", 1);
    shop.ferry.sync(&[]).await.expect(0);
    let run = shop.ferry.sync(&["api", "--tag", "v1"]).await.expect(4);
    assert_eq!(
        reason(&job_of(&run, "api")),
        "set shop waits for worker:v1 (waiting)"
    );
    assert_eq!(shop.there("v1"), [None; 3]);
    let approve = ["approve", "production/worker:v1"];
    shop.ferry.run(&approve).await.expect(0);
    shop.until_there("v1", [Some(1); 3]).await;
}

#[tokio::test]
async fn a_member_whose_rules_leave_a_tag_out_is_not_waited_for() {
    let shop = Shop::with(|config| {
        let few = json!({"tags": {"include": ["v*"]}});
        let config = config
            .route("api", json!({}))
            .route("web", json!({}))
            .route("worker", few);
        config.set("shop", &MEMBERS)
    });
    let _daemon = shop.ferry.start_ready().await;
    for member in ["api", "web"] {
        shop.push(member, "beta", 1);
    }
    // The repository of the third does not exist yet.
    shop.ferry.sync(&[]).await.expect(5);
    shop.until_there("beta", [Some(1), Some(1), None]).await;
}

#[tokio::test]
async fn one_pass_without_a_daemon_names_a_whole_set() {
    let shop = Shop::new();
    shop.push_all("v1", 1);
    let plan = shop.ferry.sync(&["--dry-run"]).await.expect(0);
    assert_eq!(plan.total("planned"), 3, "{}", plan.stdout);
    assert_eq!(shop.names_sent(), Vec::<String>::new());
    let run = shop.ferry.sync(&[]).await.expect(0);
    assert_eq!(run.total("promoted"), 3, "{}", run.stdout);
    assert_eq!(shop.there("v1"), [Some(1); 3]);

    for member in ["api", "web"] {
        shop.push(member, "v2", 2);
    }
    let plan = shop.ferry.sync(&["--dry-run"]).await.expect(0);
    assert_eq!(reason(&job_of(&plan, "api")), "set shop lacks worker:v2");
    let run = shop.ferry.sync(&[]).await.expect(0);
    assert_eq!(run.total("waiting"), 2, "{}", run.stdout);
    // A single image of the set, by the step of a pipeline.
    let from = format!("{}/api:v2", shop.staging.host());
    let to = format!("{}/api:v2", shop.production.host());
    let promote = shop.ferry.run(&["promote", &from, &to]).await.expect(4);
    assert!(promote.said().contains("lacks"), "{}", promote.said());
    assert_eq!(shop.there("v2"), [None; 3]);
    shop.push("worker", "v2", 2);
    let run = shop.ferry.sync(&[]).await.expect(0);
    assert_eq!(run.total("promoted"), 3, "{}", run.stdout);
}

/// A registry that is away for a while: the naming goes on when it is back.
#[tokio::test]
async fn a_failure_that_may_pass_does_not_tear_a_set() {
    let shop = Shop::new();
    let _daemon = shop.ferry.start_ready().await;
    let failures = AtomicUsize::new(0);
    shop.production.on(move |asked| {
        let is_meant = is_put(asked, "web", "v1");
        match is_meant && failures.fetch_add(1, Ordering::Relaxed) < 2 {
            true => Answer::Reply(Reply::status(503)),
            false => Answer::Pass,
        }
    });
    shop.push_all("v1", 1);
    shop.ferry.sync(&[]).await;
    shop.until_there("v1", [Some(1); 3]).await;
    assert_eq!(shop.decisions().await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_wrong_set_is_an_error_of_the_config() {
    let shop = Shop::with(|config| shop_of(config).set("more", &["api", "nobody"]));
    let check = shop.ferry.run(&["check"]).await.expect(2);
    for said in ["route api is in the set", "there is no route \"nobody\""] {
        assert!(check.said().contains(said), "{said}: {}", check.said());
    }
}
