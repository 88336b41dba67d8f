//! An ECR of our own making: control plane (JSON 1.1), STS, and a data plane with ECR's ways in
//! front of a real registry.
//!
//! One [`Ecr`] is one account's registry in one region. Who calls is told from the signature's
//! access key; passwords name the caller they were given to, so that every act on either plane is
//! logged with its principal. Ways are switched by [`Ways`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Body;
use axum::response::Response;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

mod control;
mod data;
mod parts;
mod scans;

pub use self::scans::Scanned;
use super::image::{OCI_MANIFEST, sha256};
use super::{Client, Gate, Registry};

/// The account whose user runs the program, unless it assumes a role.
pub const HOME: &str = "123456789012";
const REGION: &str = "eu-west-1";
/// The tests' own password: always good, never logged, never throttled.
const TESTS: &str = "the-tests-themselves";

/// How this ECR behaves.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    /// Actions that nobody may use.
    pub denied: BTreeSet<&'static str>,
    /// Only these principals are let in, when there are any: parts of their ARNs.
    pub admitted: Vec<String>,
    /// BLOB_MOUNTING.
    pub mounting: bool,
    /// Requests that are answered with 429 or ThrottlingException before the next one is served,
    /// for each action anew.
    pub storm: usize,
    /// Passwords end after so many requests of the data plane.
    pub uses: Option<usize>,
    /// The credentials are refused with this code.
    pub refuses: Option<&'static str>,
    /// This action is refused with this code, for good.
    pub refuses_action: Option<(&'static str, &'static str)>,
    /// Bodies of uploads are cut after so many bytes, once for each.
    pub cut: Option<u64>,
    /// Repositories come to be when they are pushed to.
    pub create_on_push: bool,
    /// Refusals of one action after which its storm is over.
    pub calm_after: Option<usize>,
    /// Only these actions meet the storm, when there are any.
    pub storm_on: BTreeSet<&'static str>,
    /// What denials end with: whose policy it is that allows nothing.
    pub because: &'static str,
    /// The data plane answers whoever shows a password with this status and body.
    pub bars: Option<(u16, &'static str)>,
    /// This blob goes, with all that names it, when it is read for the first time: a lifecycle
    /// policy at work.
    pub vanishes: Option<String>,
    /// Entries of a page of DescribeImages, whatever is asked for; 0: as many as are asked for.
    pub page: usize,
    /// A tag moved while it was listed: it shows at the end once more, with this digest.
    pub shows_again: Option<(String, String)>,
    /// DescribeImages of these repositories shows the tags of then.
    pub stale: BTreeMap<String, BTreeMap<String, String>>,
    /// Bodies of uploads are kept in whole parts of so many bytes: what a broken one has left over
    /// is lost.
    pub parts: Option<u64>,
    /// Blobs are read from this host (`http://host:port`), each time by a signed address of its
    /// own.
    pub storage: Option<String>,
    /// Manifests that are asked for by tag come converted, those asked for by digest never.
    pub converts: bool,
    /// The referrers of a manifest are listed.
    pub lists_referrers: bool,
    /// Only the first password ends by its `uses`.
    pub ends_once: bool,
    /// Roles called `closed` may be assumed after all.
    pub opens_roles: bool,
    /// Calls of this action of the control plane wait at the gate, and are never acted on.
    pub holds: Option<(&'static str, Gate)>,
    /// This manifest waits at the gate when it is asked for by its digest.
    pub holds_manifest: Option<(String, Gate)>,
}

/// One act on either plane.
#[derive(Clone, Debug)]
pub struct Act {
    pub action: String,
    pub principal: String,
    pub repository: String,
    pub at: Instant,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    settings: Value,
    policy: Option<String>,
    lifecycle: Option<String>,
    tags: BTreeMap<String, String>,
    images: BTreeMap<String, f64>,
    archived: BTreeSet<String>,
    /// The subjects and sizes of referrers.
    referrers: BTreeMap<String, (String, usize)>,
    /// Manifests that only exist here.
    invented: BTreeMap<String, String>,
    /// Blobs that committed manifests refer to.
    committed: BTreeSet<String>,
    /// The scans of images, by their digests.
    scans: BTreeMap<String, Scanned>,
}

#[derive(Default)]
struct State {
    ways: Ways,
    repositories: BTreeMap<String, Kept>,
    log: Vec<Act>,
    stormed: BTreeMap<String, (usize, usize)>,
    issued: BTreeMap<String, (String, usize)>,
    sessions: BTreeMap<String, Session>,
    /// Digests that a lifecycle policy has taken.
    vanished: BTreeSet<String>,
    signed: usize,
}

#[derive(Clone, Default)]
struct Session {
    upstream: String,
    cut: bool,
}

struct Shared {
    account: String,
    address: String,
    upstream: String,
    http: reqwest::Client,
    state: Mutex<State>,
}

/// A running ECR.
pub struct Ecr {
    registry: Registry,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Ecr {
    pub async fn start(account: &str) -> Ecr {
        let registry = Registry::distribution3();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a loopback port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address")
            .to_string();
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client");
        let upstream = registry.url();
        let shared = Arc::new(Shared {
            account: account.into(),
            address,
            upstream,
            http,
            state: Mutex::default(),
        });
        let serving = shared.clone();
        let app = axum::Router::new()
            .fallback(move |request: Request<Body>| serve(serving.clone(), request));
        let server = tokio::spawn(async move {
            axum::serve(listener, app)
                .await
                .expect("serving ends with the test")
        });
        Ecr {
            registry,
            shared,
            server,
        }
    }

    /// `127.0.0.1:port`: data plane, control plane and STS alike.
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.shared.address)
    }

    /// The registry behind.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A client of the data plane that is not watched.
    pub fn client(&self) -> Client {
        Client::new(&self.url()).with_basic("AWS", TESTS)
    }

    pub fn ways(&self, change: impl FnOnce(&mut Ways)) {
        change(&mut self.shared.state().ways);
    }

    pub fn create(&self, repository: &str) -> &Ecr {
        self.create_with(repository, json!({"imageTagMutability": "MUTABLE"}))
    }

    pub fn create_with(&self, repository: &str, settings: Value) -> &Ecr {
        self.shared.state().repositories.insert(
            repository.into(),
            Kept {
                settings,
                ..Kept::default()
            },
        );
        self
    }

    /// Tags of images without blobs in the registry behind: enough for looks that find nothing to
    /// do.
    pub fn invent_tags(&self, repository: &str, tags: impl Iterator<Item = String>) {
        let mut state = self.shared.state();
        let kept = state
            .repositories
            .get_mut(repository)
            .expect("the repository was created");
        for tag in tags {
            let empty = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2});
            let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": empty, "layers": [empty], "annotations": {"tag": tag}});
            let manifest = manifest.to_string();
            let digest = sha256(manifest.as_bytes());
            kept.invented.insert(digest.clone(), manifest);
            kept.images.insert(digest.clone(), 1_760_000_000.0);
            kept.tags.insert(tag, digest);
        }
    }

    /// From now on DescribeImages shows the repository's tags as they are now.
    pub fn freeze_list(&self, repository: &str) {
        let mut state = self.shared.state();
        let tags = state
            .repositories
            .get(repository)
            .map(|kept| kept.tags.clone())
            .unwrap_or_default();
        state.ways.stale.insert(repository.into(), tags);
    }

    pub fn archive(&self, repository: &str, digest: &str) {
        let mut state = self.shared.state();
        state
            .repositories
            .get_mut(repository)
            .expect("the repository was created")
            .archived
            .insert(digest.into());
    }

    pub fn restore(&self, repository: &str, digest: &str) {
        let mut state = self.shared.state();
        state
            .repositories
            .get_mut(repository)
            .expect("the repository was created")
            .archived
            .remove(digest);
    }

    /// Says when an image was pushed.
    pub fn pushed_at(&self, repository: &str, digest: &str, second: i64) {
        let mut state = self.shared.state();
        let kept = state
            .repositories
            .get_mut(repository)
            .expect("the repository was created");
        kept.images.insert(digest.into(), second as f64);
    }

    /// How a repository is set up now; `None`: it does not exist.
    pub fn settings(&self, repository: &str) -> Option<Value> {
        let state = self.shared.state();
        let kept = state.repositories.get(repository)?;
        let mut settings = kept.settings.clone();
        settings["policy"] = kept.policy.clone().into();
        settings["lifecycle"] = kept.lifecycle.clone().into();
        Some(settings)
    }

    pub fn set_policies(&self, repository: &str, policy: &str, lifecycle: &str) {
        let mut state = self.shared.state();
        let kept = state
            .repositories
            .get_mut(repository)
            .expect("the repository was created");
        (kept.policy, kept.lifecycle) = (Some(policy.into()), Some(lifecycle.into()));
    }

    pub fn log(&self) -> Vec<Act> {
        self.shared.state().log.clone()
    }

    pub fn forget_log(&self) {
        self.shared.state().log.clear();
    }

    pub fn count(&self, action: &str) -> usize {
        self.log().iter().filter(|act| act.action == action).count()
    }

    pub fn actions(&self) -> BTreeSet<String> {
        self.log().into_iter().map(|act| act.action).collect()
    }

    /// What was used, and on which repositories.
    pub fn used(&self) -> BTreeSet<(String, String)> {
        self.log()
            .into_iter()
            .filter(|act| act.action != "no action")
            .map(|act| (act.action, act.repository))
            .collect()
    }

    pub fn principals(&self) -> BTreeSet<String> {
        self.log().into_iter().map(|act| act.principal).collect()
    }

    /// The most acts of one kind within one second.
    pub fn most_in_a_second(&self, action: &str) -> usize {
        let times: Vec<Instant> = self
            .log()
            .into_iter()
            .filter(|act| act.action == action)
            .map(|act| act.at)
            .collect();
        let within = |start: &Instant| {
            times
                .iter()
                .filter(|at| **at >= *start && at.duration_since(*start).as_millis() < 1000)
                .count()
        };
        times.iter().map(within).max().unwrap_or(0)
    }
}

impl Drop for Ecr {
    fn drop(&mut self) {
        self.server.abort();
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("--- the ECR of {} saw:", self.shared.account);
            for act in log.iter().rev().take(60).rev() {
                eprintln!("{} {} by {}", act.action, act.repository, act.principal);
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Logs an act and says whether it may go on: `Err` is what ECR answers.
    fn admit(&self, action: &str, principal: &str, repository: &str) -> Result<(), Refused> {
        if principal == TESTS {
            return Ok(());
        }
        let mut state = self.state();
        let act = Act {
            action: action.into(),
            principal: principal.into(),
            repository: repository.into(),
            at: Instant::now(),
        };
        state.log.push(act);
        let (storm, calm_after) = (
            state.ways.storm,
            state.ways.calm_after.unwrap_or(usize::MAX),
        );
        let meets_it = state.ways.storm_on.is_empty() || state.ways.storm_on.contains(action);
        let (in_a_row, in_all) = state.stormed.entry(action.into()).or_default();
        if *in_a_row < storm && *in_all < calm_after && meets_it {
            *in_a_row += 1;
            *in_all += 1;
            return Err(Refused::Throttled);
        }
        *in_a_row = 0;
        match self.denial(&state, action, principal, repository) {
            Some(text) => Err(Refused::Denied(text)),
            None => Ok(()),
        }
    }

    /// What IAM says when it does not allow this.
    fn denial(
        &self,
        state: &State,
        action: &str,
        principal: &str,
        repository: &str,
    ) -> Option<String> {
        let outside = !state.ways.admitted.is_empty()
            && !state
                .ways
                .admitted
                .iter()
                .any(|part| principal.contains(part.as_str()));
        if !outside && !state.ways.denied.contains(action) {
            return None;
        }
        let resource = match action {
            "GetAuthorizationToken" | "GetAccountSetting" => "*".to_owned(),
            _ => format!(
                "arn:aws:ecr:{REGION}:{}:repository/{repository}",
                self.account
            ),
        };
        let because = state.ways.because.replace("{action}", action);
        Some(format!(
            "User: {principal} is not authorized to perform: ecr:{action} on resource: {resource}{because}"
        ))
    }
}

enum Refused {
    Throttled,
    Denied(String),
}

async fn serve(shared: Arc<Shared>, request: Request<Body>) -> Response {
    let target = request
        .headers()
        .get("x-amz-target")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    match target {
        Some(target) => {
            shared
                .control(target.rsplit('.').next().unwrap_or_default(), request)
                .await
        }
        None if request.uri().path() == "/" => control::sts(&shared, request).await,
        // A task of its own: what a client that is gone had sent still arrives.
        None => tokio::spawn(async move { shared.data(request).await })
            .await
            .expect("the data plane answers"),
    }
}

fn reply(status: u16, media_type: &str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        media_type.parse().expect("a media type"),
    );
    response
}

fn error(status: u16, code: &str, message: &str) -> Response {
    reply(
        status,
        "application/json",
        json!({"errors": [{"code": code, "message": message}]}).to_string(),
    )
}

async fn bytes(body: Body) -> bytes::Bytes {
    body.collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default()
}
