//! The file's shape for editors: JSON schema, with what each key means.
//!
//! Only shapes are told here. What depends on other keys is checked when a file is read.
#![expect(
    dead_code,
    reason = "these types are never filled: only their schema is used"
)]

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::job::{Drift, Existing};
use crate::registry::profile::Kind;
use crate::watch::receiver;

/// The JSON schema of the config file.
pub fn schema() -> serde_json::Value {
    SchemaGenerator::default()
        .into_root_schema_for::<File>()
        .to_value()
}

/// blobferry's config file.
#[derive(JsonSchema)]
#[schemars(title = "blobferry", deny_unknown_fields)]
#[schemars(extend("patternProperties" = {"^x-": {"description": "Room for YAML anchors; not read."}}))]
struct File {
    /// The daemon's own settings.
    daemon: Option<Daemon>,
    /// Where images live, by a name of your own.
    registries: BTreeMap<String, Registry>,
    /// Which registries may notify us of pushes, by a name of your own: `POST /v1/events/NAME`.
    receivers: Option<BTreeMap<String, Receiver>>,
    /// SQS queues of ECR's push events, by a name of your own.
    queues: Option<BTreeMap<String, Queue>>,
    /// What a route says where it does not say it itself.
    defaults: Option<Defaults>,
    /// What goes where. The first route whose `from` matches a source repository has it.
    #[schemars(length(min = 1))]
    routes: Vec<Route>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Daemon {
    /// Address and port of metrics, health, status and triggers, or `off`. Default: 127.0.0.1:9464.
    listen: Option<String>,
    /// Folder of index.db, ledger.db and control.sock. Default: $STATE_DIRECTORY, else
    /// /var/lib/blobferry for root, else the user's XDG state folder.
    state: Option<String>,
    /// How often each route is looked at without being asked, or `off`. Default: 60s.
    poll: Option<String>,
    /// How often production itself is asked instead of the index. Default: 1h.
    verify: Option<String>,
    /// Time for running transfers to reach a checkpoint at shutdown. Default: 30s.
    grace: Option<String>,
    /// How long the ledger keeps the texts of rows that are no promotions. Default: 8760h.
    retention: Option<String>,
    /// File to which each row of the ledger is written as a line of JSON. Default: none.
    audit_file: Option<String>,
    /// File with a bearer token of the HTTP API that may look. Short for a token "secret".
    secret_file: Option<String>,
    /// Bearer tokens of the HTTP API, by names of your own: the name is the actor in the ledger.
    tokens: Option<BTreeMap<String, Token>>,
    /// TLS of the TCP listener. Its files are read again when they change.
    tls: Option<ServerTls>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Token {
    /// File with the token.
    file: String,
    /// What it may; looking is always among it.
    may: OneOrManyRights,
    /// Routes that its decisions may be about; `*` stands for any characters. Default: all, and
    /// what is about no route.
    routes: Option<OneOrMany>,
    /// The user of this machine that owns the token: the ledger counts both as one person.
    user: Option<String>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
enum OneOrManyRights {
    One(Right),
    Many(Vec<Right>),
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Right {
    Look,
    Hold,
    Approve,
    Deny,
    Accept,
    Rollback,
    Override,
    /// Hold, approve, deny, accept and rollback.
    Decide,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct ServerTls {
    /// File with the certificate and its chain, in PEM.
    cert_file: String,
    /// File with its private key, in PEM.
    key_file: String,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Registry {
    /// `https://host[:port]`, `http://host[:port]`, or `layout:/path` for a folder of OCI image
    /// layouts.
    url: String,
    /// The identity there. Default: basic or bearer when their keys are given; ecr for the hosts of
    /// private ECR registries; else the Docker config and its credential helpers, else anonymous.
    auth: Option<Auth>,
    /// For `auth: basic`.
    username: Option<String>,
    /// File with the password, for `auth: basic`.
    password_file: Option<String>,
    /// File with the token, for `auth: bearer`.
    token_file: Option<String>,
    /// File with the certificates of authorities to trust besides the system's, in PEM.
    ca_file: Option<String>,
    /// File with our certificate for mutual TLS, in PEM.
    client_cert_file: Option<String>,
    /// File with its private key, in PEM.
    client_key_file: Option<String>,
    /// Hosts besides the registry's own domain to which credentials may go for a token.
    token_realms: Option<Vec<String>>,
    /// Whether credentials may travel over plain http beyond this machine. Default: false.
    insecure: Option<bool>,
    /// Overrides the recognised kind of registry.
    // A field with `schema_with` counts as required, `Option` or not, unless it has a default.
    #[schemars(
        schema_with = "kinds",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    kind: Option<String>,
    /// Requests at once, 1 to 256.
    concurrency: Option<Number>,
    /// Requests in a second, on average.
    requests_per_second: Option<Number>,
    /// Bytes in a second: `50MiB`; or windows, of which the first that holds counts. Default: no
    /// limit.
    bandwidth: Option<Bandwidth>,
    /// AWS region, where the host does not tell it.
    region: Option<String>,
    /// Role to assume.
    role_arn: Option<String>,
    /// External ID for assuming the role.
    external_id: Option<String>,
    /// Names the role's session in the audit trail, 2 to 64 characters. Default: blobferry, with
    /// the id of a CodeBuild build.
    role_session_name: Option<String>,
    /// Profile of the AWS config.
    aws_profile: Option<String>,
    /// AWS account of the registry, where the host does not tell it.
    account: Option<Number>,
    /// The ARN that we must turn out to be.
    identity: Option<String>,
    /// Address of ECR's control plane, for emulators and private endpoints.
    ecr_endpoint: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Receiver {
    /// What sends.
    #[schemars(schema_with = "receiver_kinds")]
    kind: String,
    /// The registry that notifications are about.
    registry: String,
    /// File with the secret of the sender; with two lines, both are valid.
    secret_file: Option<String>,
    /// Instead of a secret: tokens of an identity provider in `Authorization`.
    oidc: Option<Oidc>,
    /// Whether every client that reaches the listener may send. Default: false.
    unauthenticated: Option<bool>,
    /// Replaces the first part of a repository's name: `{docker-local: docker}`.
    rewrite: Option<BTreeMap<String, String>>,
    /// Notifications in a second, 1 to 100000. Default: 2000.
    limit: Option<Number>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Queue {
    /// The URL of the queue: `https://sqs.REGION.amazonaws.com/ACCOUNT/NAME`.
    sqs: String,
    /// The registry that its events are about.
    registry: String,
    /// Role to assume.
    role_arn: Option<String>,
    /// External ID for assuming the role.
    external_id: Option<String>,
    /// Names the role's session in the audit trail, 2 to 64 characters. Default: blobferry, with
    /// the id of a CodeBuild build.
    role_session_name: Option<String>,
    /// Profile of the AWS config.
    aws_profile: Option<String>,
    /// AWS region, where the URL does not tell it.
    region: Option<String>,
    /// Address of SQS, for emulators and private endpoints. Default: the host of the URL.
    endpoint: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Oidc {
    /// The URL of the identity provider, as its tokens name it.
    issuer: String,
    /// What the tokens are for.
    audience: String,
    /// Claims that a token must have; `*` stands for any characters but `/`, `**` for any.
    claims: BTreeMap<String, String>,
}

/// One rate, or rates by day and time.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Bandwidth {
    Always(Number),
    Windows(#[schemars(length(min = 1, max = 50))] Vec<Window>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Window {
    /// The days on which it begins: `sat`, `mon-fri`, or a list of such. Default: all.
    days: Option<OneOrMany>,
    /// When it begins, by the clock of this machine's time zone: `08:00`. Default: the whole day.
    #[schemars(regex(pattern = "^[0-9]{2}:[0-9]{2}$"))]
    from: Option<String>,
    /// When it is over; before `from`: on the next day.
    #[schemars(regex(pattern = "^[0-9]{2}:[0-9]{2}$"))]
    to: Option<String>,
    /// Bytes in a second: `50MiB`, or `off` for no limit.
    rate: Number,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Auth {
    Ecr,
    DockerConfig,
    Basic,
    Bearer,
    Anonymous,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Defaults {
    /// Which tags.
    tags: Option<Tags>,
    /// What happens to a production tag with another digest that we never wrote. Default: keep.
    existing: Option<Existing>,
    /// What happens to a production tag that we wrote and a person changed. Default: keep.
    drift: Option<Drift>,
    /// What happens when a destination repository is missing (ECR). Default: never.
    create: Option<Create>,
    /// How repositories are set up that `create: template` makes.
    template: Option<Template>,
    /// What must be so before a tag moves. Those of defaults and of a route merge gate by gate.
    gates: Option<Gates>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Route {
    /// Label in metrics, logs and history; unique. Default: `from` without the registry's name.
    name: Option<String>,
    /// Registry, slash, source repository. `*` captures within one path part, `**` across parts.
    from: String,
    /// Registry, slash, destination repository, or a list of such. `{1}` is the first capture.
    to: OneOrMany,
    /// Which tags.
    tags: Option<Tags>,
    /// What happens to a production tag with another digest that we never wrote. Default: keep.
    existing: Option<Existing>,
    /// What happens to a production tag that we wrote and a person changed. Default: keep.
    drift: Option<Drift>,
    /// What happens when a destination repository is missing (ECR). Default: never.
    create: Option<Create>,
    /// How repositories are set up that `create: template` makes.
    template: Option<Template>,
    /// What must be so before a tag moves. Those of defaults and of a route merge gate by gate.
    gates: Option<Gates>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Create {
    Never,
    Template,
    Clone,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Template {
    /// Whether tags never move. Default: true.
    immutable: Option<bool>,
    /// At most five wildcards for tags that are exempt from that.
    except: Option<OneOrMany>,
    /// Whether images are scanned when they are pushed. Default: false.
    scan_on_push: Option<bool>,
    /// Whether KMS encrypts, with the account's key. Default: false, AES-256.
    kms: Option<bool>,
    /// The KMS key that encrypts.
    kms_key: Option<String>,
    /// File with the lifecycle policy, JSON.
    lifecycle_policy_file: Option<String>,
    /// File with the repository policy, JSON.
    policy_file: Option<String>,
    /// Tags of the repository as an AWS resource.
    resource_tags: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Tags {
    /// A tag passes when one of these matches: a tag, a glob, `semver:>=1.2 <3`, or `/regular
    /// expression/`. Required, here or in defaults.
    include: Option<OneOrMany>,
    /// A tag that one of these matches does not pass: always wins.
    exclude: Option<OneOrMany>,
    /// Of the tags that parse as versions, the highest so many.
    newest: Option<Number>,
    /// Tags that may name another digest later. Default: latest.
    moving: Option<OneOrMany>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Gates {
    /// Artifact types that must be attached to the image.
    referrers: Option<OneOrMany>,
    /// How long ago staging must have been first seen to name the digest: `24h`.
    min_age: Option<String>,
    /// When tags move.
    window: Option<OrOff<OpenWindow>>,
    /// How many principals must agree with `approve`.
    approval: Option<OrOff<PeopleWhoAgree>>,
    /// Signers. One signature by any of them is enough.
    signature: Option<OrOff<Signatures>>,
    /// Statements that must be attached to the image and verify.
    attestation: Option<OrOff<Attestations>>,
    /// A program that judges: exit code 0 pass, 75 wait, any other refuse.
    command: Option<OrOff<Program>>,
    /// A service that judges: 200 with `{"verdict":"pass|wait|refuse","reason":"…"}`.
    http: Option<OrOff<Service>>,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Signatures {
    One(Signature),
    Many(Vec<Signature>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Signature {
    /// A signer of cosign: `key_file`, or `issuer` and `identity`.
    cosign: Signer,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Signer {
    /// File with the public key, PEM.
    key_file: Option<String>,
    /// The issuer of the identity, exactly.
    issuer: Option<String>,
    /// The identity in the certificate. `*` stands for a part of a path, `**` for several.
    identity: Option<String>,
    /// What certificates are verified by: `sigstore`, `github`, or a trusted-root file. Default:
    /// sigstore.
    root: Option<String>,
    /// What must be signed. Default: image.
    on: Option<Signed>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Signed {
    Image,
    Platforms,
}

#[derive(JsonSchema)]
#[schemars(untagged)]
enum Attestations {
    One(Attestation),
    Many(Vec<Attestation>),
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Attestation {
    /// The type of its predicate, exactly.
    predicate: String,
    /// File with the public key of its signer, PEM.
    key_file: Option<String>,
    /// The issuer of its signer's identity, exactly.
    issuer: Option<String>,
    /// Its signer's identity, as in `signature`.
    identity: Option<String>,
    /// As in `signature`.
    root: Option<String>,
    /// What the statement must be about. Default: image.
    on: Option<Signed>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Program {
    /// The program and its arguments. The question comes on its standard input, as JSON.
    run: OneOrMany,
    /// How long it may take, at most 5m. Default: 60s.
    timeout: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Service {
    /// Where the question is posted, as JSON.
    url: String,
    /// File with the bearer token that is sent along.
    token_file: Option<String>,
    /// How long it may take, at most 5m. Default: 10s.
    timeout: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct OpenWindow {
    /// The time zone of days and times: `Europe/Zurich`. Default: this machine's.
    zone: Option<String>,
    /// Hours in which tags move: `mon-fri 09:00-16:00`, or a list of such. Default: always.
    open: Option<OneOrMany>,
    /// Days on which none moves: `2026-12-24`, `2026-12-15/2027-01-05`, or a list of such.
    closed: Option<OneOrMany>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct PeopleWhoAgree {
    /// How many different established principals, without the pusher.
    #[schemars(range(min = 1, max = 20))]
    people: u32,
}

/// A gate, or `off` for none.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum OrOff<T> {
    Gate(T),
    Off(Off),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
enum Off {
    Off,
}

/// One, or a list.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum OneOrMany {
    One(Word),
    Many(Vec<Word>),
}

/// A text; YAML takes `1.10` for a number, which is read as it is written.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Word {
    Text(String),
    Number(f64),
}

/// A number, or a text with a unit or a `${VARIABLE}`.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Number {
    Number(f64),
    Text(String),
}

fn receiver_kinds(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": receiver::Kind::ALL.map(receiver::Kind::name) })
}

fn kinds(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "enum": Kind::ALL.map(Kind::name) })
}
