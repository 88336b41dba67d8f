//! ECR's troubles in the running daemon: what is wrong is told once when it begins and once when it
//! ends, the registry counts as down meanwhile, and the other routes go on.

use serde_json::{Value, json};

use crate::ecr::{keys, merged, with_identity};
use crate::ecr_trouble::assert_discreet;
use crate::support::ecr::{HOME, Ways};
use crate::support::*;

/// A daemon with two routes: `app` on an ECR, `well` on a registry of another kind.
struct Pair {
    ecr: Ecr,
    /// Stands before the control plane.
    plane: Proxy,
    well: Registry,
    ferry: Ferry,
    pushed: u8,
}

impl Pair {
    async fn new(daemon: impl FnOnce(Config) -> Config) -> Pair {
        Pair::with(json!({}), daemon).await
    }

    /// The same, with more keys of the ECR.
    async fn with(more: Value, daemon: impl FnOnce(Config) -> Config) -> Pair {
        let (ecr, well) = (Ecr::start(HOME).await, Registry::distribution3());
        ecr.create("staging-demo-app").create("prod-demo-app");
        ecr.ways(|ways| ways.mounting = true);
        Client::new(&well.url())
            .push("staging", "v0", &Image::oci(99, &[500]))
            .await;
        let plane = Proxy::before(&ecr.url()).await;
        let on_ecr = merged(keys(&ecr, HOME), json!({"ecr_endpoint": plane.url()}));
        let on_ecr = merged(on_ecr, more);
        let route = |name: &str, from: &str, to: &str| json!({"name": name, "from": from, "to": to, "tags": {"include": ["*"]}});
        let config = Config::new()
            .registry_with("ecr", &ecr.url(), on_ecr)
            .registry("plain", &well.url())
            .raw_route(route("app", "ecr/staging-demo-app", "ecr/prod-demo-app"))
            .raw_route(route("well", "plain/staging", "plain/production"));
        let ferry = with_identity(Ferry::new(&daemon(config)), &ecr);
        Pair {
            ecr,
            plane,
            well,
            ferry,
            pushed: 0,
        }
    }

    fn fresh(&mut self) -> (String, Image) {
        self.pushed += 1;
        (
            format!("v{}", self.pushed),
            Image::oci(self.pushed.into(), &[500]),
        )
    }

    async fn push(&mut self) -> (String, Image) {
        let (tag, image) = self.fresh();
        self.ecr
            .client()
            .push("staging-demo-app", &tag, &image)
            .await;
        (tag, image)
    }

    async fn assert_promoted(&self, tag: &str, image: &Image) {
        self.ecr
            .client()
            .assert_holds("prod-demo-app", tag, image)
            .await;
    }

    /// The other route takes what is pushed to it.
    async fn goes_well(&mut self, daemon: &Daemon) {
        let (tag, image) = self.fresh();
        let client = Client::new(&self.well.url());
        client.push("staging", &tag, &image).await;
        assert_eq!(look(daemon, "well").await, 0);
        client.assert_holds("production", &tag, &image).await;
    }
}

/// A look at one route; the exit code that it amounts to.
async fn look(daemon: &Daemon, route: &str) -> u64 {
    let (_, report) = daemon.ping(json!({"wait": true, "route": route})).await;
    report["exit_code"]
        .as_u64()
        .unwrap_or_else(|| panic!("no report: {report:#}"))
}

async fn is_up(daemon: &Daemon, registry: &str) -> bool {
    daemon
        .metric("blobferry_registry_up", &[("registry", registry)])
        .await
        .expect("the registry is watched")
        == 1.0
}

/// What `status` says of the registry.
async fn trouble(ferry: &Ferry, registry: &str) -> String {
    let status: Value =
        serde_json::from_str(&ferry.run(&["status", "--json"]).await.expect(0).stdout)
            .expect("a status in JSON");
    let found = status["registries"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["name"] == registry);
    found.expect("the registry is shown")["trouble"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// The lines from `since` on that are neither the start nor of the healthy route.
fn lines(daemon: &Daemon, since: usize) -> Vec<String> {
    let log = daemon.log();
    let told = |line: &&str| {
        line.contains(" route=app ") || line.contains(" WARN ") || line.contains(" ERROR ")
    };
    log.lines()
        .skip(since)
        .filter(told)
        .map(str::to_owned)
        .collect()
}

/// One trouble: how it comes, what it says, and what is said when it has gone.
struct Trouble {
    comes: fn(&mut Ways),
    code: u64,
    says: &'static [&'static str],
    ends: &'static str,
}

const BUILDER: &str = "arn:aws:iam::123456789012:user/builder";
const PRODUCTION: &str = "arn:aws:ecr:eu-west-1:123456789012:repository/prod-demo-app";
const STAGING: &str = "arn:aws:ecr:eu-west-1:123456789012:repository/staging-demo-app";

#[tokio::test]
async fn trouble_is_told_once_and_the_other_routes_go_on() {
    let troubles = [
        Trouble {
            comes: |ways| ways.refuses = Some("ExpiredTokenException"),
            code: 3,
            says: &[
                "ecr:DescribeImages in eu-west-1 for ecr (staging-demo-app) as access key AKIDBUILDER",
                "Expired",
                "renew them",
            ],
            ends: "looking works again",
        },
        Trouble {
            comes: |ways| ways.refuses = Some("UnrecognizedClientException"),
            code: 3,
            says: &[
                "ecr:DescribeImages in eu-west-1",
                "does not accept the credentials",
            ],
            ends: "looking works again",
        },
        Trouble {
            comes: |ways| {
                ways.denied = [
                    "InitiateLayerUpload",
                    "UploadLayerPart",
                    "CompleteLayerUpload",
                    "PutImage",
                ]
                .into()
            },
            code: 3,
            says: &[BUILDER, "ecr:InitiateLayerUpload", PRODUCTION],
            ends: " promoted ",
        },
        Trouble {
            comes: |ways| ways.denied = ["PutImage"].into(),
            code: 3,
            says: &[BUILDER, "ecr:PutImage", PRODUCTION],
            ends: " promoted ",
        },
        Trouble {
            comes: |ways| ways.bars = Some((401, "Not Authorized\n")),
            code: 3,
            says: &[
                BUILDER,
                "ecr:BatchGetImage",
                STAGING,
                "no other region",
                "401",
            ],
            ends: " promoted ",
        },
    ];
    let mut pair = Pair::new(|config| config.daemon("poll", json!("1s"))).await;
    let daemon = pair.ferry.start_ready().await;
    for Trouble {
        comes,
        code,
        says,
        ends,
    } in troubles
    {
        assert!(is_up(&daemon, "ecr").await && trouble(&pair.ferry, "ecr").await.is_empty());
        let since = daemon.log().lines().count();
        pair.ecr.ways(comes);
        let (tag, image) = pair.push().await;
        for _ in 0..4 {
            assert_eq!(look(&daemon, "app").await, code);
            assert!(!is_up(&daemon, "ecr").await && is_up(&daemon, "plain").await);
        }
        pair.goes_well(&daemon).await;
        daemon.says(says[0]).await;
        let said = lines(&daemon, since);
        assert!(
            said.len() == 1 && says.iter().all(|words| said[0].contains(words)),
            "not one line with {says:?}:\n{said:#?}"
        );
        let shown = trouble(&pair.ferry, "ecr").await;
        assert!(
            says.iter().all(|words| shown.contains(words)),
            "{says:?}: {shown}"
        );

        pair.ecr.ways(|ways| {
            *ways = Ways {
                mounting: true,
                ..Ways::default()
            }
        });
        assert_eq!(look(&daemon, "app").await, 0);
        pair.assert_promoted(&tag, &image).await;
        eventually("the end is told", async || {
            lines(&daemon, since)
                .iter()
                .any(|line| line.contains(ends))
                .then_some(())
        })
        .await;
        assert!(is_up(&daemon, "ecr").await && trouble(&pair.ferry, "ecr").await.is_empty());
        let warnings = lines(&daemon, since)
            .iter()
            .filter(|line| !line.contains(" INFO "))
            .count();
        assert_eq!(warnings, 1, "{:#?}", lines(&daemon, since));
    }
    assert_discreet(&daemon.log());
}

#[tokio::test]
async fn a_token_endpoint_that_is_down_at_the_start_is_told_once_and_waited_for() {
    let mut pair = Pair::new(|config| config.daemon("poll", json!("1s"))).await;
    pair.plane
        .always(Kind::Other, Act::CutRequest(0, Cut::Reset));
    let (tag, image) = pair.push().await;
    let daemon = pair.ferry.start().await;
    pair.goes_well(&daemon).await;
    daemon.ready().await;
    assert!(!is_up(&daemon, "ecr").await && is_up(&daemon, "plain").await);
    let said = lines(&daemon, 0);
    assert!(
        said.len() == 1 && said[0].contains("ecr:") && said[0].contains("check the way to AWS"),
        "{said:#?}"
    );
    assert!(
        trouble(&pair.ferry, "ecr")
            .await
            .contains("check the way to AWS")
    );

    pair.plane.reset();
    assert_eq!(look(&daemon, "app").await, 0);
    pair.assert_promoted(&tag, &image).await;
    assert!(is_up(&daemon, "ecr").await);
    eventually("the end is told", async || {
        lines(&daemon, 0)
            .iter()
            .any(|line| line.contains("looking works again"))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_role_that_cannot_be_assumed_is_told_once_and_taken_when_it_can() {
    let role = json!({"role_arn": format!("arn:aws:iam::{HOME}:role/closed")});
    let mut pair = Pair::with(role, |config| config.daemon("poll", json!("1s"))).await;
    let (tag, image) = pair.push().await;
    let daemon = pair.ferry.start_ready().await;
    for _ in 0..3 {
        assert_eq!(look(&daemon, "app").await, 3);
    }
    pair.goes_well(&daemon).await;
    let said = lines(&daemon, 0);
    let words = [BUILDER, "sts:AssumeRole", "role/closed", "trust policy"];
    assert!(
        said.len() == 1 && words.iter().all(|words| said[0].contains(words)),
        "{said:#?}"
    );
    assert!(
        !is_up(&daemon, "ecr").await
            && trouble(&pair.ferry, "ecr").await.contains("sts:AssumeRole")
    );

    pair.ecr.ways(|ways| ways.opens_roles = true);
    assert_eq!(look(&daemon, "app").await, 0);
    pair.assert_promoted(&tag, &image).await;
    assert!(is_up(&daemon, "ecr").await);
    assert_discreet(&daemon.log());
}

/// Both planes throttle; whoever waits there is no trouble, and holds up nobody else.
#[tokio::test]
async fn a_registry_that_throttles_is_waited_for_without_a_word() {
    let mut pair = Pair::new(|config| config.daemon("poll", json!("1s"))).await;
    let (tag, image) = pair.push().await;
    pair.ecr.ways(|ways| ways.storm = usize::MAX);
    let daemon = pair.ferry.start().await;
    eventually("both sides were throttled", async || {
        (pair.ecr.count("DescribeImages") > 2).then_some(())
    })
    .await;
    pair.goes_well(&daemon).await;
    pair.ecr.ways(|ways| ways.storm = 1);
    eventually("it is promoted all the same", async || {
        (pair
            .ecr
            .client()
            .digest("prod-demo-app", &tag)
            .await
            .as_deref()
            == Some(image.digest()))
        .then_some(())
    })
    .await;
    assert!(pair.ecr.log().iter().any(|act| act.action == "PutImage"));
    let said = lines(&daemon, 0)
        .into_iter()
        .filter(|line| !line.contains(" INFO "))
        .collect::<Vec<_>>();
    assert!(said.is_empty(), "{said:#?}");
    let waited = daemon
        .metric(
            "blobferry_rate_limited_seconds_total",
            &[("registry", "ecr")],
        )
        .await;
    assert!(waited.is_some_and(|seconds| seconds > 0.0), "{waited:?}");
}

/// The time from push to production is told for what was pushed while the daemon ran: what lay
/// there before says nothing of its speed.
#[tokio::test]
async fn the_way_from_push_to_production_is_timed_for_pushes_that_we_saw() {
    let mut pair = Pair::new(|config| config).await;
    let (_, before) = pair.push().await;
    pair.ecr.pushed_at(
        "staging-demo-app",
        before.digest(),
        blobferry::clock::now().as_second() - 3600,
    );
    let daemon = pair.ferry.start_ready().await;
    let timed = async |part: &str| {
        let name = format!("blobferry_push_to_production_seconds_{part}");
        daemon
            .metric(&name, &[("route", "app")])
            .await
            .expect("the route is timed")
    };
    assert_eq!(look(&daemon, "app").await, 0);
    assert_eq!(
        daemon
            .metric("blobferry_promotions_total", &[("route", "app")])
            .await,
        Some(1.0)
    );
    assert_eq!(timed("count").await, 0.0, "it was pushed before we ran");

    let start = tokio::time::Instant::now();
    let (tag, image) = pair.push().await;
    assert_eq!(look(&daemon, "app").await, 0);
    pair.assert_promoted(&tag, &image).await;
    let took = start.elapsed().as_secs_f64();
    assert_eq!(timed("count").await, 1.0);
    assert!(
        timed("sum").await > 0.0 && timed("sum").await <= took,
        "{} of {took} seconds",
        timed("sum").await
    );
    pair.goes_well(&daemon).await;
    let elsewhere = daemon
        .metric(
            "blobferry_push_to_production_seconds_count",
            &[("route", "well")],
        )
        .await;
    assert_eq!(
        elsewhere,
        Some(0.0),
        "a registry that does not tell when is not timed"
    );
}
