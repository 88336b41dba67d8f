//! The demo: two registries on loopback ports inside this process, a sample image that changes
//! every few seconds, and the daemon between them, as it would run anywhere else.
//!
//! What happens is told as [`DemoEvent`]s. At the end production is compared with staging and
//! hashed again; nothing is left behind.

pub mod image;
pub mod registry;
pub mod store;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, anyhow};
use http::Method;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::admin::client;
use crate::config::Config;
use crate::daemon;
use crate::job::{Outcome, Settled, tag_of};
use crate::ledger::{Content, Row};
use crate::oci::{Digest, RepositoryName, Tag};
use image::Sample;
use registry::Registry;

/// The repository in the staging registry.
pub const STAGING: &str = "staging-demo-app";
/// The repository in the production registry.
pub const PRODUCTION: &str = "prod-demo-app";

/// Most bytes that each registry holds.
const CAPACITY: u64 = 256 << 20;
/// Tags that each registry keeps: a demo may run for days.
const KEPT: usize = 100;
/// Time between two pushes.
const PUSH: Duration = Duration::from_secs(5);
/// Time between two readings of the ledger.
const GLANCE: Duration = Duration::from_millis(200);
/// Longest answer of the daemon.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait at the end for what was pushed to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// The addresses and paths of the demonstration.
#[derive(Clone, Debug)]
pub struct Place {
    /// `host:port` of the staging registry.
    pub staging: String,
    /// `host:port` of the production registry.
    pub production: String,
    /// `host:port` of the daemon's HTTP server.
    pub daemon: String,
    /// The config file.
    pub config: PathBuf,
}

/// What happens in the demo.
#[derive(Clone, Debug)]
pub enum DemoEvent {
    /// Everything runs.
    Ready(Place),
    /// An image went to staging.
    Pushed {
        /// Its tag.
        tag: Tag,
        /// Its digest.
        digest: Digest,
        /// Its size, all platforms and what refers to it included.
        bytes: usize,
    },
    /// A job of the daemon has settled.
    Settled {
        /// The job.
        job: Box<Settled>,
        /// The time from the push to staging to the tag in production.
        lag: Option<Duration>,
    },
    /// No more images; the last ones are on their way.
    Stopping,
    /// The end.
    Ended(Summary),
}

/// What a demo came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Images pushed to staging.
    pub pushed: u64,
    /// Promotions.
    pub promoted: u64,
    /// Blob bytes sent to production.
    pub bytes_sent: u64,
    /// Blob bytes that did not have to be.
    pub bytes_spared: u64,
    /// Tags that name the same digest on both sides.
    pub equal: u64,
    /// Documents and blobs that were hashed again in production.
    pub hashed: u64,
    /// Tags that an early end left for the next pass.
    pub on_their_way: u64,
    /// What should not be.
    pub wrong: Vec<String>,
}

impl Summary {
    /// Whether production is what it should be, and there is something there.
    pub fn is_right(&self) -> bool {
        self.wrong.is_empty() && self.pushed > 0
    }
}

/// Runs the demo for `length`, or until `stop` is cancelled.
///
/// # Errors
/// The demo did not start, or the daemon ended before its time.
pub async fn run(
    length: Option<Duration>,
    environment: &dyn Fn(&str) -> Option<String>,
    stop: CancellationToken,
    mut tell: impl FnMut(DemoEvent),
) -> anyhow::Result<Summary> {
    let folder = Folder::create().context("cannot create a folder for the demo")?;
    let staging = Registry::start(CAPACITY)
        .await
        .context("the staging registry does not start")?;
    let production = Registry::start(CAPACITY)
        .await
        .context("the production registry does not start")?;
    let path = folder.0.join("blobferry.yaml");
    fs::write(&path, config(&folder.0, &staging, &production))
        .context("cannot write the config file")?;
    let (ready, listening) = oneshot::channel();
    let daemon_stop = CancellationToken::new();
    let mut daemon = pin!(daemon::run(
        || Config::load(&path, environment),
        Some(ready),
        daemon_stop.clone()
    ));
    let mut stage = Stage::new(&staging, &production, folder.0.join("state"));
    // The daemon finds the repository at its first look.
    let mut first = Vec::new();
    stage.push(&mut |event| first.push(event));
    let stage = async {
        let address = listening
            .await
            .ok()
            .flatten()
            .ok_or_else(|| anyhow!("the daemon does not listen"))?;
        let staging_host = staging.host();
        let production_host = production.host();
        let place = Place {
            staging: staging_host,
            production: production_host,
            daemon: address.to_string(),
            config: path.clone(),
        };
        tell(DemoEvent::Ready(place));
        first.into_iter().for_each(&mut tell);
        stage.play(length, &stop, &mut tell).await;
        let summary = stage.summary(stop.is_cancelled());
        tell(DemoEvent::Ended(summary.clone()));
        anyhow::Ok(summary)
    };
    let mut stage = pin!(stage);
    tokio::select! {
        biased;
        summary = &mut stage => {
            daemon_stop.cancel();
            // It drains; its last output is awaited no longer than this.
            let _ = tokio::time::timeout(DEADLINE, daemon).await;
            summary
        }
        ended = &mut daemon => match ended {
            // A signal is for the daemon as well as for us: it has drained, what arrived is
            // compared.
            Ok(()) if stop.is_cancelled() => stage.await,
            Ok(()) => Err(anyhow!("the daemon has stopped")),
            Err(error) => Err(anyhow::Error::new(error).context("the daemon")),
        },
    }
}

fn config(folder: &Path, staging: &Registry, production: &Registry) -> String {
    format!(
        "daemon:\n  listen: 127.0.0.1:0\n  state: \"{}\"\n  poll: 2s\n\
         registries:\n  staging: {{url: \"{}\", auth: anonymous}}\n  production: {{url: \"{}\", auth: anonymous}}\n\
         routes:\n  - name: demo-app\n    from: staging/{STAGING}\n    to: production/{PRODUCTION}\n    \
         tags: {{include: [latest, \"v*\"], moving: [latest]}}\n",
        folder.join("state").display(),
        staging.url(),
        production.url(),
    )
}

/// A folder of our own that goes away with the demo.
struct Folder(PathBuf);

impl Folder {
    fn create() -> std::io::Result<Folder> {
        let now = crate::clock::now().as_nanosecond();
        let path =
            std::env::temp_dir().join(format!("blobferry-demo-{}-{now:x}", std::process::id()));
        // Fails when the folder is not empty.
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed lies in the system's folder for such things.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Between the two registries: pushes to one, watches the other.
struct Stage<'a> {
    staging: &'a Registry,
    production: &'a Registry,
    from: RepositoryName,
    to: RepositoryName,
    latest: Tag,
    socket: PathBuf,
    sample: Sample,
    seen: u64,
    summary: Summary,
}

/// A page of the ledger.
#[derive(Deserialize)]
struct Promotions {
    promotions: Vec<Row>,
}

impl<'a> Stage<'a> {
    fn new(staging: &'a Registry, production: &'a Registry, state: PathBuf) -> Stage<'a> {
        let seed = Digest::sha256(staging.url().as_bytes());
        Stage {
            staging,
            production,
            from: STAGING.parse().expect("the name is valid"),
            to: PRODUCTION.parse().expect("the name is valid"),
            latest: "latest".parse().expect("the tag is valid"),
            socket: state.join("control.sock"),
            sample: Sample::new(u64::from_str_radix(&seed.short(), 16).unwrap_or_default()),
            seen: 0,
            summary: Summary::default(),
        }
    }

    /// Pushes further images and watches until it is time to stop, then waits for the last ones.
    async fn play(
        &mut self,
        length: Option<Duration>,
        stop: &CancellationToken,
        tell: &mut impl FnMut(DemoEvent),
    ) {
        let end = length.map(|length| Instant::now() + length);
        let mut push = tokio::time::interval_at(Instant::now() + PUSH, PUSH);
        let mut glance = tokio::time::interval(GLANCE);
        push.set_missed_tick_behavior(MissedTickBehavior::Delay);
        glance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = until(end) => break,
                _ = push.tick() => self.push(tell),
                _ = glance.tick() => self.watch(tell).await,
            }
        }
        tell(DemoEvent::Stopping);
        let patience = Instant::now() + PATIENCE;
        while !self.arrived() && !stop.is_cancelled() && Instant::now() < patience {
            glance.tick().await;
            self.watch(tell).await;
        }
        self.watch(tell).await;
    }

    /// A new image, under a tag of its own and as the latest.
    fn push(&mut self, tell: &mut impl FnMut(DemoEvent)) {
        let round = self.summary.pushed + 1;
        let Ok(tag) = format!("v{round}").parse::<Tag>() else {
            return;
        };
        let image = self.sample.image(round);
        for registry in [(self.staging, &self.from), (self.production, &self.to)] {
            registry.0.store().keep_newest(registry.1, KEPT);
        }
        match image.push(
            self.staging.store(),
            &self.from,
            &[tag.clone(), self.latest.clone()],
        ) {
            Ok(()) => {
                self.summary.pushed = round;
                tell(DemoEvent::Pushed {
                    tag,
                    digest: image.digest(),
                    bytes: image.size(),
                });
            }
            Err(refusal) => self
                .summary
                .wrong
                .push(format!("staging refused {tag}: {refusal}")),
        }
    }

    /// Tells what has come into the ledger.
    async fn watch(&mut self, tell: &mut impl FnMut(DemoEvent)) {
        let path = format!("/v1/promotions?after={}&limit=100", self.seen);
        // A daemon that is about to end does not answer any more: the comparison at the end will
        // tell.
        let Ok((_, body)) =
            client::request(&self.socket, Method::GET, &path, None, Some(DEADLINE)).await
        else {
            return;
        };
        let Ok(page) = serde_json::from_value::<Promotions>(body) else {
            return;
        };
        for row in page.promotions {
            self.seen = self.seen.max(row.id);
            let Content::Outcome(job) = row.content else {
                continue;
            };
            self.summary.bytes_sent += job.bytes_sent;
            self.summary.bytes_spared += job.bytes_spared;
            if job.result == Outcome::UpToDate {
                continue;
            }
            self.summary.promoted += u64::from(job.result == Outcome::Promoted);
            let lag = self.lag(&job);
            tell(DemoEvent::Settled { job, lag });
        }
    }

    fn lag(&self, job: &Settled) -> Option<Duration> {
        let tag: Tag = tag_of(&job.destination)?.parse().ok()?;
        let pushed = self.staging.store().tagged(&self.from, &tag)?;
        let arrived = self.production.store().tagged(&self.to, &tag)?;
        let same = job.result == Outcome::Promoted
            && job.digest == Some(pushed.digest)
            && pushed.digest == arrived.digest;
        same.then(|| arrived.at.saturating_duration_since(pushed.at))
    }

    /// What production is for a tag of staging.
    fn compare(&self, tag: &Tag) -> Comparison {
        let staged = self.staging.store().tagged(&self.from, tag);
        let Some(named) = self.production.store().tagged(&self.to, tag) else {
            return Comparison::Behind;
        };
        match staged {
            Some(staged) if staged.digest == named.digest => Comparison::Equal,
            _ if self.is_staged(named.digest) => Comparison::Behind,
            _ => Comparison::Foreign,
        }
    }

    fn is_staged(&self, digest: Digest) -> bool {
        let store = self.staging.store();
        let tags = self.tags();
        let mut staged = tags.iter().filter_map(|tag| store.tagged(&self.from, tag));
        staged.any(|manifest| manifest.digest == digest)
    }

    fn tags(&self) -> Vec<Tag> {
        self.staging.store().tags(&self.from).unwrap_or_default()
    }

    fn arrived(&self) -> bool {
        self.tags()
            .iter()
            .all(|tag| self.compare(tag) == Comparison::Equal)
    }

    /// Compares both sides, and hashes production again. What a pass that was `cut_short` did not
    /// bring yet is no fault.
    fn summary(&mut self, cut_short: bool) -> Summary {
        for tag in self.tags() {
            match (
                self.compare(&tag),
                self.production.store().verify(&self.to, &tag),
            ) {
                (Comparison::Behind, _) if cut_short => self.summary.on_their_way += 1,
                (Comparison::Equal, Ok(documents)) => {
                    self.summary.equal += 1;
                    self.summary.hashed += documents as u64;
                }
                (Comparison::Equal, Err(wrong)) => {
                    self.summary.wrong.push(format!("production: {wrong}"))
                }
                _ => self
                    .summary
                    .wrong
                    .push(format!("production does not have {tag} as staging has it")),
            }
        }
        self.summary.clone()
    }
}

/// What production is for a tag of staging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    /// It names the same digest.
    Equal,
    /// It has nothing yet, or an image from before.
    Behind,
    /// It has something that never was in staging.
    Foreign,
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both registries, without the daemon between them.
    async fn pair() -> (Registry, Registry) {
        (
            Registry::start(CAPACITY).await.unwrap(),
            Registry::start(CAPACITY).await.unwrap(),
        )
    }

    #[tokio::test]
    async fn a_tag_that_did_not_arrive_makes_the_demo_wrong() {
        let (staging, production) = pair().await;
        let mut stage = Stage::new(&staging, &production, "/nonexistent".into());
        stage.push(&mut |_| {});
        assert!(!stage.arrived());
        let image = stage.sample.image(1);
        image
            .push(production.store(), &stage.to, &["v1".parse().unwrap()])
            .unwrap();
        let summary = stage.summary(false);
        assert_eq!((summary.equal, summary.hashed), (1, 11));
        assert_eq!(
            summary.wrong,
            ["production does not have latest as staging has it"]
        );
        assert!(!summary.is_right());
        assert_eq!(stage.compare(&stage.latest), Comparison::Behind);
        stage.summary = Summary {
            pushed: 1,
            ..Summary::default()
        };
        assert!(
            stage.summary(true).is_right(),
            "who ends it early leaves the rest for later"
        );
        stage
            .sample
            .image(9)
            .push(
                production.store(),
                &stage.to,
                std::slice::from_ref(&stage.latest),
            )
            .unwrap();
        assert_eq!(stage.compare(&stage.latest), Comparison::Foreign);
    }

    #[tokio::test]
    async fn a_demo_without_an_end_stays_small() {
        let (staging, production) = pair().await;
        let mut stage = Stage::new(&staging, &production, "/nonexistent".into());
        for _ in 0..KEPT + 20 {
            stage.push(&mut |_| {});
        }
        assert!(staging.store().tags(&stage.from).unwrap().len() <= KEPT + 2);
        assert!(staging.store().used() < CAPACITY / 4);
        assert_eq!(stage.summary.wrong, Vec::<String>::new());
    }

    #[tokio::test]
    async fn the_folder_goes_away_and_is_nobody_elses() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::create().unwrap();
        let path = folder.0.clone();
        fs::write(path.join("file"), "x").unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o700
        );
        drop(folder);
        assert!(!path.exists());
    }
}
