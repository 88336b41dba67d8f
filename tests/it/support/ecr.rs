//! An ECR of our own making: control plane (JSON 1.1), STS, and a data plane with ECR's ways in front of a real registry.
//!
//! One [`Ecr`] is one account's registry in one region. Who calls is told from the signature's access key; passwords name the
//! caller they were given to, so that every act on either plane is logged with its principal. Ways are switched by [`Ways`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::image::sha256;
use super::{Client, Registry};

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
    /// Requests that are answered with 429 or ThrottlingException before the next one is served, for each action anew.
    pub storm: usize,
    /// Passwords end after so many requests of the data plane.
    pub uses: Option<usize>,
    /// The credentials are refused with this code.
    pub refuses: Option<&'static str>,
    /// Bodies of uploads are cut after so many bytes, once for each.
    pub cut: Option<u64>,
    /// Repositories come to be when they are pushed to.
    pub create_on_push: bool,
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
    /// Blobs that committed manifests refer to.
    committed: BTreeSet<String>,
}

#[derive(Default)]
struct State {
    ways: Ways,
    repositories: BTreeMap<String, Kept>,
    log: Vec<Act>,
    stormed: BTreeMap<String, usize>,
    issued: BTreeMap<String, (String, usize)>,
    sessions: BTreeMap<String, Session>,
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
    _registry: Registry,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Ecr {
    pub async fn start(account: &str) -> Ecr {
        let registry = Registry::distribution3();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().expect("a client");
        let upstream = registry.url();
        let shared = Arc::new(Shared { account: account.into(), address, upstream, http, state: Mutex::default() });
        let serving = shared.clone();
        let app = axum::Router::new().fallback(move |request: Request<Body>| serve(serving.clone(), request));
        let server = tokio::spawn(async move { axum::serve(listener, app).await.expect("serving ends with the test") });
        Ecr { _registry: registry, shared, server }
    }

    /// `127.0.0.1:port`: data plane, control plane and STS alike.
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.shared.address)
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
        self.shared.state().repositories.insert(repository.into(), Kept { settings, ..Kept::default() });
        self
    }

    /// Tags that only the control plane knows: enough for looks that find nothing to do.
    pub fn invent_tags(&self, repository: &str, tags: impl Iterator<Item = String>) {
        let mut state = self.shared.state();
        let kept = state.repositories.get_mut(repository).expect("the repository was created");
        for tag in tags {
            let digest = sha256(tag.as_bytes());
            kept.images.insert(digest.clone(), 1_760_000_000.0);
            kept.tags.insert(tag, digest);
        }
    }

    pub fn archive(&self, repository: &str, digest: &str) {
        let mut state = self.shared.state();
        state.repositories.get_mut(repository).expect("the repository was created").archived.insert(digest.into());
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
        let kept = state.repositories.get_mut(repository).expect("the repository was created");
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

    pub fn principals(&self) -> BTreeSet<String> {
        self.log().into_iter().map(|act| act.principal).collect()
    }

    /// The most acts of one kind within one second.
    pub fn most_in_a_second(&self, action: &str) -> usize {
        let times: Vec<Instant> = self.log().into_iter().filter(|act| act.action == action).map(|act| act.at).collect();
        let within =
            |start: &Instant| times.iter().filter(|at| **at >= *start && at.duration_since(*start).as_millis() < 1000).count();
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
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Logs an act and says whether it may go on: `Err` is what ECR answers.
    fn admit(&self, action: &str, principal: &str, repository: &str) -> Result<(), Refused> {
        if principal == TESTS {
            return Ok(());
        }
        let mut state = self.state();
        let act = Act { action: action.into(), principal: principal.into(), repository: repository.into(), at: Instant::now() };
        state.log.push(act);
        let storm = state.ways.storm;
        let stormed = state.stormed.entry(action.into()).or_default();
        if *stormed < storm {
            *stormed += 1;
            return Err(Refused::Throttled);
        }
        *stormed = 0;
        let outside = !state.ways.admitted.is_empty() && !state.ways.admitted.iter().any(|part| principal.contains(part.as_str()));
        if outside || state.ways.denied.contains(action) {
            let resource = format!("arn:aws:ecr:{REGION}:{}:repository/{repository}", self.account);
            return Err(Refused::Denied(format!(
                "User: {principal} is not authorized to perform: ecr:{action} on resource: {resource}"
            )));
        }
        Ok(())
    }
}

enum Refused {
    Throttled,
    Denied(String),
}

async fn serve(shared: Arc<Shared>, request: Request<Body>) -> Response {
    let target = request.headers().get("x-amz-target").and_then(|value| value.to_str().ok()).map(str::to_owned);
    match target {
        Some(target) => shared.control(target.rsplit('.').next().unwrap_or_default(), request).await,
        None if request.uri().path() == "/" => sts(request).await,
        None => shared.data(request).await,
    }
}

fn reply(status: u16, media_type: &str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response.headers_mut().insert(header::CONTENT_TYPE, media_type.parse().expect("a media type"));
    response
}

fn error(status: u16, code: &str, message: &str) -> Response {
    reply(status, "application/json", json!({"errors": [{"code": code, "message": message}]}).to_string())
}

async fn bytes(body: Body) -> bytes::Bytes {
    body.collect().await.map(|body| body.to_bytes()).unwrap_or_default()
}

// ---- who calls

/// The access key of a role's session says whose it is.
fn principal(headers: &HeaderMap) -> String {
    let text = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key = text.split("Credential=").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    match key.strip_prefix("ASIA").and_then(|hex| hex::decode(hex).ok()) {
        Some(arn) => String::from_utf8(arn).expect("the ARN of a role"),
        None => format!("arn:aws:iam::{HOME}:user/builder"),
    }
}

async fn sts(request: Request<Body>) -> Response {
    let caller = principal(request.headers());
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(&bytes(request.into_body()).await).into_owned().collect();
    let account = |arn: &str| arn.split(':').nth(4).unwrap_or_default().to_owned();
    let body = match form.get("Action").map(String::as_str) {
        Some("GetCallerIdentity") => format!(
            "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult><Arn>{caller}</Arn><UserId>U</UserId><Account>{}</Account></GetCallerIdentityResult></GetCallerIdentityResponse>",
            account(&caller)
        ),
        Some("AssumeRole") if form["RoleArn"].contains("closed") => {
            let body = format!(
                "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User: {caller} is not authorized to perform: sts:AssumeRole on resource: {}</Message></Error></ErrorResponse>",
                form["RoleArn"]
            );
            return reply(403, "text/xml", body);
        }
        Some("AssumeRole") => {
            let role = form["RoleArn"].rsplit('/').next().unwrap_or_default().to_owned();
            let arn = format!("arn:aws:sts::{}:assumed-role/{role}/{}", account(&form["RoleArn"]), form["RoleSessionName"]);
            let key = format!("ASIA{}", hex::encode(&arn));
            format!(
                "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><AssumedRoleUser><AssumedRoleId>A:s</AssumedRoleId><Arn>{arn}</Arn></AssumedRoleUser><Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey><SessionToken>session</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
            )
        }
        other => panic!("STS was asked for {other:?}"),
    };
    reply(200, "text/xml", body)
}

// ---- control plane

impl Shared {
    async fn control(&self, action: &str, request: Request<Body>) -> Response {
        let principal = principal(request.headers());
        let asked: Value = serde_json::from_slice(&bytes(request.into_body()).await).unwrap_or_default();
        let named = asked["repositoryName"].as_str().or(asked["repositoryNames"][0].as_str()).unwrap_or_default().to_owned();
        let refuse = |status: u16, code: &str, message: &str| {
            reply(status, "application/x-amz-json-1.1", json!({"__type": code, "message": message}).to_string())
        };
        if let Some(code) = self.state().ways.refuses {
            return refuse(400, code, "The security token included in the request is not good.");
        }
        match self.admit(action, &principal, &named) {
            Ok(()) => {}
            Err(Refused::Throttled) => return refuse(400, "ThrottlingException", "Rate exceeded"),
            Err(Refused::Denied(text)) => return refuse(400, "AccessDeniedException", &text),
        }
        assert_eq!(asked["registryId"].as_str().unwrap_or(&self.account), self.account, "{action} is meant for another account");
        let missing = || format!("The repository with name '{named}' does not exist in the registry with id '{}'", self.account);
        match self.act(action, &principal, &named, &asked).await {
            Ok(Some(answer)) => reply(200, "application/x-amz-json-1.1", answer.to_string()),
            Ok(None) => refuse(400, "RepositoryNotFoundException", &missing()),
            Err(code) => refuse(400, code, "as it says"),
        }
    }

    async fn act(&self, action: &str, principal: &str, named: &str, asked: &Value) -> Result<Option<Value>, &'static str> {
        if action == "BatchCheckLayerAvailability" {
            return Ok(Some(self.layers(named, asked).await));
        }
        let mut state = self.state();
        Ok(Some(match action {
            "GetAuthorizationToken" => {
                let password = format!("{principal}#{}", state.issued.len());
                let token = STANDARD.encode(format!("AWS:{password}"));
                state.issued.insert(password, (principal.into(), 0));
                let expires =
                    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs() + 43_200;
                json!({"authorizationData": [{"authorizationToken": token, "expiresAt": expires, "proxyEndpoint": format!("https://{}.dkr.ecr.{REGION}.amazonaws.com", self.account)}]})
            }
            "GetAccountSetting" => {
                json!({"name": "BLOB_MOUNTING", "value": if state.ways.mounting { "ENABLED" } else { "DISABLED" }})
            }
            "DescribeImages" => match state.repositories.get(named) {
                None => return Ok(None),
                Some(kept) => self.images(named, kept, asked),
            },
            "DescribeRepositories" if named.is_empty() => {
                let all: Vec<Value> = state.repositories.iter().map(|(name, kept)| self.described(name, kept)).collect();
                json!({"repositories": all})
            }
            "CreateRepository" => {
                if state.repositories.contains_key(named) {
                    return Err("RepositoryAlreadyExistsException");
                }
                state.repositories.insert(named.into(), Kept { settings: asked.clone(), ..Kept::default() });
                json!({"repository": self.described(named, &state.repositories[named])})
            }
            _ => {
                let Some(kept) = state.repositories.get_mut(named) else { return Ok(None) };
                match action {
                    "DescribeRepositories" => json!({"repositories": [self.described(named, kept)]}),
                    "GetLifecyclePolicy" => {
                        json!({"lifecyclePolicyText": kept.lifecycle.clone().ok_or("LifecyclePolicyNotFoundException")?})
                    }
                    "GetRepositoryPolicy" => json!({"policyText": kept.policy.clone().ok_or("RepositoryPolicyNotFoundException")?}),
                    "PutLifecyclePolicy" => {
                        kept.lifecycle = asked["lifecyclePolicyText"].as_str().map(Into::into);
                        json!({})
                    }
                    "SetRepositoryPolicy" => {
                        kept.policy = asked["policyText"].as_str().map(Into::into);
                        json!({})
                    }
                    other => panic!("ECR was asked for {other}"),
                }
            }
        }))
    }

    fn described(&self, name: &str, kept: &Kept) -> Value {
        let mut described = json!({"registryId": self.account, "repositoryName": name, "repositoryArn": format!("arn:aws:ecr:{REGION}:{}:repository/{name}", self.account)});
        for key in
            ["imageTagMutability", "imageTagMutabilityExclusionFilters", "imageScanningConfiguration", "encryptionConfiguration"]
        {
            if !kept.settings[key].is_null() {
                described[key] = kept.settings[key].clone();
            }
        }
        described
    }

    /// One page, newest digests in no order at all.
    fn images(&self, name: &str, kept: &Kept, asked: &Value) -> Value {
        let mut tags: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tag, digest) in &kept.tags {
            tags.entry(digest).or_default().push(tag);
        }
        let from: usize = asked["nextToken"].as_str().map_or(0, |token| token.parse().expect("our own token"));
        let most = asked["maxResults"].as_u64().unwrap_or(100).min(1000) as usize;
        let detail = |(digest, tags): (&&str, &Vec<&str>)| {
            let status = if kept.archived.contains(*digest) { "ARCHIVED" } else { "ACTIVE" };
            json!({"registryId": self.account, "repositoryName": name, "imageDigest": digest, "imageTags": tags,
                "imagePushedAt": kept.images.get(*digest), "imageStatus": status})
        };
        let page: Vec<Value> = tags.iter().rev().skip(from).take(most).map(detail).collect();
        let next = (from + page.len() < tags.len()).then(|| (from + page.len()).to_string());
        match next {
            Some(next) => json!({"imageDetails": page, "nextToken": next}),
            None => json!({"imageDetails": page}),
        }
    }

    async fn layers(&self, repository: &str, asked: &Value) -> Value {
        let mut layers = Vec::new();
        let digests = asked["layerDigests"].as_array().expect("a list of digests");
        assert!(digests.len() <= 100, "BatchCheckLayerAvailability takes a hundred digests");
        for digest in digests {
            let url = format!("{}/v2/{repository}/blobs/{}", self.upstream, digest.as_str().expect("a digest"));
            let answer = self.http.head(url).send().await.expect("the registry answers");
            let size = answer.headers().get(header::CONTENT_LENGTH).and_then(|size| size.to_str().ok()?.parse::<u64>().ok());
            layers.push(match answer.status().is_success() {
                true => json!({"layerDigest": digest, "layerAvailability": "AVAILABLE", "layerSize": size}),
                false => json!({"layerDigest": digest, "layerAvailability": "UNAVAILABLE"}),
            });
        }
        json!({"layers": layers, "failures": []})
    }
}

// ---- data plane

/// The repository, and what of it is asked for.
fn parts(path: &str) -> Option<(String, &'static str, String)> {
    let rest = path.strip_prefix("/v2/")?;
    for (mark, what) in [
        ("/blobs/uploads/", "upload"),
        ("/blobs/", "blob"),
        ("/manifests/", "manifest"),
        ("/referrers/", "referrers"),
        ("/tags/list", "tags"),
    ] {
        if let Some((repository, reference)) = rest.split_once(mark) {
            return Some((repository.into(), what, reference.into()));
        }
    }
    None
}

fn action(method: &Method, what: &str, query: &str) -> &'static str {
    match (method.as_str(), what) {
        ("HEAD", "blob") => "BatchCheckLayerAvailability",
        ("GET", "blob") => "GetDownloadUrlForLayer",
        ("POST", "upload") if query.contains("mount=") => "InitiateLayerUpload",
        ("POST", "upload") => "InitiateLayerUpload",
        ("PATCH", "upload") => "UploadLayerPart",
        ("PUT", "upload") => "CompleteLayerUpload",
        ("GET" | "DELETE", "upload") => "no action",
        ("GET" | "HEAD", "manifest") => "BatchGetImage",
        ("PUT", "manifest") => "PutImage",
        ("GET", "tags") => "ListImages",
        ("GET", "referrers") => "ListImageReferrers",
        (method, what) => panic!("the data plane was asked to {method} {what}"),
    }
}

impl Shared {
    /// Who a password was given to.
    fn caller(&self, headers: &HeaderMap) -> Result<String, Response> {
        let denied = |message: &str| error(403, "DENIED", message);
        let unauthorized = || {
            let mut response = error(401, "UNAUTHORIZED", "not authorized");
            let challenge = format!("Basic realm=\"http://{}/\",service=\"ecr.amazonaws.com\"", self.address);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().expect("a challenge"));
            response
        };
        let text =
            headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|text| text.strip_prefix("Basic "));
        let decoded = text.and_then(|text| STANDARD.decode(text).ok()).and_then(|bytes| String::from_utf8(bytes).ok());
        let password = decoded.as_deref().and_then(|text| text.strip_prefix("AWS:")).ok_or_else(unauthorized)?;
        if password == TESTS {
            return Ok(TESTS.into());
        }
        let mut state = self.state();
        let most = state.ways.uses;
        let (principal, uses) = state.issued.get_mut(password).ok_or_else(unauthorized)?;
        *uses += 1;
        match most.is_some_and(|most| *uses > most) {
            true => Err(denied("Your authorization token has expired. Reauthenticate and try again.")),
            false => Ok(principal.clone()),
        }
    }

    async fn data(&self, request: Request<Body>) -> Response {
        let principal = match self.caller(request.headers()) {
            Ok(principal) => principal,
            Err(response) => return response,
        };
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        let Some((repository, what, reference)) = parts(&path) else { return reply(200, "application/json", "{}") };
        let action = action(request.method(), what, &query);
        match self.admit(action, &principal, &repository) {
            Ok(()) => {}
            Err(Refused::Throttled) => return error(429, "TOOMANYREQUESTS", "Rate exceeded"),
            Err(Refused::Denied(text)) => return error(403, "DENIED", &text),
        }
        if !self.is_there(&repository, request.method(), what) {
            let text = format!("The repository with name '{repository}' does not exist in the registry with id '{}'", self.account);
            return error(404, "NAME_UNKNOWN", &text);
        }
        match (request.method().as_str(), what) {
            ("POST", "upload") => self.open(&repository, &query, request).await,
            (_, "upload") => self.session(&repository, &reference, &query, request, principal == TESTS).await,
            ("PUT", "manifest") => self.put_manifest(&repository, &reference, request).await,
            _ => self.pass(request).await,
        }
    }

    fn is_there(&self, repository: &str, method: &Method, what: &str) -> bool {
        let mut state = self.state();
        let pushes = matches!((method.as_str(), what), ("POST", "upload") | ("PUT", "manifest"));
        if state.ways.create_on_push && pushes {
            state.repositories.entry(repository.into()).or_default();
        }
        state.repositories.contains_key(repository)
    }

    /// Sends a request on as it is.
    async fn pass(&self, request: Request<Body>) -> Response {
        let path = request.uri().path_and_query().expect("a path").to_string();
        self.forward(&format!("{}{path}", self.upstream), request).await
    }

    async fn forward(&self, url: &str, request: Request<Body>) -> Response {
        let (head, body) = request.into_parts();
        let mut headers = head.headers;
        headers.remove(header::AUTHORIZATION);
        headers.remove(header::HOST);
        let has_body = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
        let call = self.http.request(head.method, url).headers(headers);
        let call = if has_body { call.body(reqwest::Body::wrap_stream(body.into_data_stream())) } else { call };
        let Ok(answer) = call.send().await else { return error(503, "UNAVAILABLE", "the registry behind is away") };
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        response.headers_mut().remove(header::TRANSFER_ENCODING);
        // ECR was seen not to send it.
        response.headers_mut().remove("docker-content-digest");
        *response.body_mut() = Body::from_stream(answer.bytes_stream());
        response
    }

    /// A mount needs the account's setting and a committed manifest in the other repository.
    async fn open(&self, repository: &str, query: &str, request: Request<Body>) -> Response {
        let pairs: BTreeMap<String, String> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let mounts = {
            let state = self.state();
            let committed =
                |from: &str, digest: &str| state.repositories.get(from).is_some_and(|kept| kept.committed.contains(digest));
            state.ways.mounting && pairs.get("from").zip(pairs.get("mount")).is_some_and(|(from, digest)| committed(from, digest))
        };
        let url =
            format!("{}/v2/{repository}/blobs/uploads/{}", self.upstream, if mounts { format!("?{query}") } else { String::new() });
        let mut response = self.forward(&url, request).await;
        if response.status() == StatusCode::ACCEPTED {
            let upstream = self.absolute(response.headers());
            let id = sha256(upstream.as_bytes())[7..39].to_owned();
            self.state().sessions.insert(id.clone(), Session { upstream, cut: false });
            let location = format!("/v2/{repository}/blobs/uploads/{id}");
            response.headers_mut().insert(header::LOCATION, location.parse().expect("a location"));
            response.headers_mut().remove(header::RANGE);
        }
        response
    }

    fn absolute(&self, headers: &HeaderMap) -> String {
        let location = headers[header::LOCATION].to_str().expect("a location is text");
        url::Url::parse(&self.upstream).and_then(|base| base.join(location)).expect("a location is a URL").into()
    }

    /// A session: its status is 404, a chunk is answered with 201 and the end of the first one, a wrong start with 416.
    async fn session(&self, repository: &str, id: &str, query: &str, request: Request<Body>, own: bool) -> Response {
        let Some(session) = self.state().sessions.get(id).cloned() else {
            return error(404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
        };
        if request.method() == Method::GET {
            return error(404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
        }
        let status = self.http.get(&session.upstream).send().await.expect("the registry answers");
        if !status.status().is_success() {
            return error(404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
        }
        let range = status.headers().get(header::RANGE).and_then(|range| range.to_str().ok()).unwrap_or("0-0").to_owned();
        let last: u64 = range.rsplit('-').next().and_then(|last| last.parse().ok()).unwrap_or(0);
        let stored = if last == 0 { 0 } else { last + 1 };
        let upstream = self.absolute(status.headers());
        let content_range = request.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok()).map(str::to_owned);
        let start: u64 = content_range.as_deref().and_then(|range| range.split('-').next()?.parse().ok()).unwrap_or(0);
        let has_body = request.headers().get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
        if has_body && start != stored && !own {
            return error(416, "BLOB_UPLOAD_INVALID", &format!("First byte of the layer part is {start} instead of {stored}"));
        }
        let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let cut = self.state().ways.cut.filter(|most| !own && !session.cut && length.is_some_and(|length| length > *most));
        if let Some(most) = cut {
            return self.cut(id, &upstream, request, most, stored).await;
        }
        let patch = request.method() == Method::PATCH;
        let url = if query.is_empty() { upstream } else { format!("{upstream}&{query}") };
        let mut response = self.forward(&url, request).await;
        if response.status().is_success() && patch {
            let upstream = self.absolute(response.headers());
            self.state().sessions.insert(id.into(), Session { upstream, ..session });
            *response.status_mut() = StatusCode::CREATED;
            response.headers_mut().insert(header::RANGE, "0-5242879".parse().expect("a range"));
            let location = format!("/v2/{repository}/blobs/uploads/{id}");
            response.headers_mut().insert(header::LOCATION, location.parse().expect("a location"));
        }
        response
    }

    /// Keeps what has come of a body and breaks the connection.
    async fn cut(&self, id: &str, upstream: &str, request: Request<Body>, most: u64, stored: u64) -> Response {
        let mut body = request.into_body();
        let mut kept = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            kept.extend_from_slice(frame.data_ref().map(|data| &data[..]).unwrap_or_default());
            if kept.len() as u64 >= most {
                break;
            }
        }
        kept.truncate(most as usize);
        let end = stored + kept.len() as u64 - 1;
        let call = self
            .http
            .patch(upstream)
            .header(header::CONTENT_RANGE, format!("{stored}-{end}"))
            .header(header::CONTENT_LENGTH, kept.len());
        let answer = call.body(kept).send().await.expect("the registry answers");
        assert!(answer.status().is_success(), "the kept part was refused: {}", answer.status());
        let upstream = self.absolute(answer.headers());
        self.state().sessions.insert(id.into(), Session { upstream, cut: true });
        let broken = futures::stream::once(async { Err::<bytes::Bytes, _>(std::io::Error::other("cut")) });
        let mut response = Response::new(Body::from_stream(broken));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    }

    /// An immutable tag is refused, also when it would name what it names already.
    async fn put_manifest(&self, repository: &str, reference: &str, request: Request<Body>) -> Response {
        let (head, body) = request.into_parts();
        let document = bytes(body).await;
        let immutable = {
            let state = self.state();
            let kept = &state.repositories[repository];
            let rule = kept.settings["imageTagMutability"].as_str().unwrap_or("MUTABLE").to_owned();
            let exempt = kept.settings["imageTagMutabilityExclusionFilters"].as_array().into_iter().flatten().any(|filter| {
                let filter = filter["filter"].as_str().unwrap_or_default();
                reference.starts_with(filter.trim_end_matches('*'))
            });
            rule.starts_with("IMMUTABLE") && !exempt && kept.tags.contains_key(reference)
        };
        if immutable {
            let text = format!(
                "The image tag '{reference}' already exists in the '{repository}' repository and cannot be overwritten because the repository is immutable."
            );
            return error(400, "TAG_INVALID", &text);
        }
        let response = self.pass(Request::from_parts(head, Body::from(document.clone()))).await;
        if response.status().is_success() {
            self.commit(repository, reference, &document);
        }
        response
    }

    fn commit(&self, repository: &str, reference: &str, document: &[u8]) {
        let digest = sha256(document);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let body: Value = serde_json::from_slice(document).unwrap_or_default();
        let mut state = self.state();
        let kept = state.repositories.get_mut(repository).expect("it was there a moment ago");
        kept.images.insert(digest.clone(), now);
        if !reference.contains(':') {
            kept.tags.insert(reference.into(), digest);
        }
        let layers = body["layers"].as_array().into_iter().flatten().chain([&body["config"]]);
        kept.committed.extend(layers.filter_map(|layer| layer["digest"].as_str().map(str::to_owned)));
    }
}
