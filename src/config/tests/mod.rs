//! The file through the door that users take: text in, settings or problems out.

mod wrong;

use std::fs;
use std::time::Duration;

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use secrecy::ExposeSecret as _;
use serde_json::Value;

use super::*;
use crate::admin::Proof;
use crate::byte_threads;
use crate::job::{Drift, Existing};
use crate::oci::Digest;
use crate::registry::auth::Credentials;
use crate::transfer::bandwidth::{Plan, Window};
use crate::week::{DAY, Days, Hours};

const REST: &str = "registries:\n  s: {url: https://s.example}\n  p: {url: https://p.example}\nroutes:\n\
    \x20 - {from: s/app, to: p/app, tags: {include: latest}}\n";

fn registry_file(keys: &str) -> String {
    format!(
        "registries:\n  p: {{url: https://p.example}}\n  s:\n    {keys}routes:\n  - {{from: s/app, to: p/app, tags: {{include: latest}}}}\n"
    )
}

/// A folder of secrets, good and bad.
fn secrets() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let long = "x".repeat(65 * 1024);
    let files: &[(&str, &str)] = &[
        ("empty", ""),
        ("newline", "\n"),
        ("lines", "hunter2\nhunter3\n"),
        ("three", "hunter2\nhunter3\nhunter4\n"),
        ("long", &long),
        ("password", "hunter2\n"),
        ("secret", "open sesame\r\n"),
        (
            "cert.pem",
            "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
        ),
        (
            "key.pem",
            "-----BEGIN PRIVATE KEY-----\nBB==\n-----END PRIVATE KEY-----",
        ),
    ];
    files
        .iter()
        .for_each(|(name, content)| fs::write(folder.path().join(name), content).unwrap());
    folder
}

fn parse_with(text: &str, secrets: &Path) -> Result<Config, Error> {
    let env = |name: &str| match name {
        "SECRETS" => Some(secrets.display().to_string()),
        "STATE_DIRECTORY" => Some("/state".into()),
        _ => None,
    };
    Config::parse(text, Path::new("/nowhere/b.yaml"), &env)
}

fn parse(text: &str) -> Config {
    parse_with(text, secrets().path()).unwrap_or_else(|error| panic!("{error}"))
}

/// What is wrong, without the name of the file and of the folder of secrets.
fn complaints(text: &str) -> String {
    let secrets = secrets();
    let error = parse_with(text, secrets.path())
        .expect_err(text)
        .to_string();
    assert!(error.starts_with("/nowhere/b.yaml:"), "{error}");
    assert!(
        !error.contains("hunter2"),
        "a secret in a complaint: {error}"
    );
    error
        .replace("/nowhere/b.yaml:", "")
        .replace(&secrets.path().display().to_string(), "SECRETS")
}

#[test]
fn what_is_not_said_has_the_documented_default() {
    let config = parse(REST);
    let Daemon {
        listen,
        state,
        poll,
        verify,
        grace,
        threads,
        retention,
        audit_file,
        tokens,
        notify,
        tls,
    } = config.daemon;
    assert_eq!(notify, []);
    assert_eq!(audit_file, None);
    assert!(tls.is_none());
    assert_eq!(threads, byte_threads::usual());
    assert_eq!(retention, Duration::from_secs(8760 * 3600));
    assert_eq!(listen, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(state, Path::new("/state"));
    assert_eq!(
        (poll, verify),
        (Some(Duration::from_secs(60)), Duration::from_secs(3600))
    );
    assert_eq!((grace, tokens.is_empty()), (Duration::from_secs(30), true));
    assert_eq!(
        config.hash,
        &Digest::sha256(REST.as_bytes()).encoded()[..12]
    );
    let route = &config.routes[0];
    assert_eq!(
        (&*route.name, route.existing, route.drift),
        ("app", Existing::Keep, Drift::Keep)
    );
    assert!(route.selection.is_moving(&"latest".parse().unwrap()));
    assert!(!route.selection.is_moving(&"v1".parse().unwrap()));
    let registry = &config.registries["s"];
    assert_eq!(registry.limits, Limits::default());
    let RegistryKind::Remote(settings) = &registry.kind else {
        panic!("{registry:?}")
    };
    assert_eq!(
        (
            settings.name.as_str(),
            settings.url.as_str(),
            settings.insecure
        ),
        ("s", "https://s.example/", false)
    );
    assert!(matches!(settings.credentials, Credentials::DockerConfig(_)));
}

#[test]
fn everything_said_arrives() {
    let config = parse(
        "daemon: {listen: \"off\", state: here, poll: off, verify: 2h, grace: 1m 5s, threads: 3, retention: 48h, secret_file: '${SECRETS}/secret'}\n\
         registries:\n\
         \x20 s:\n\
         \x20   url: http://s.example:5000\n\
         \x20   username: ${USER:-me}\n\
         \x20   password_file: ${SECRETS}/password\n\
         \x20   insecure: true\n\
         \x20   ca_file: ${SECRETS}/cert.pem\n\
         \x20   client_cert_file: ${SECRETS}/cert.pem\n\
         \x20   client_key_file: ${SECRETS}/key.pem\n\
         \x20   token_realms: [Login.Example, other.example:8443]\n\
         \x20   kind: harbor\n\
         \x20   concurrency: 12\n\
         \x20   requests_per_second: 0.5\n\
         \x20   bandwidth: 2MiB\n\
         \x20 d: {url: 'layout:images', concurrency: 1}\n\
         routes:\n\
         \x20 - {name: all, from: 's/**', to: 'd/{1}', existing: adopt, drift: restore,\n\
         \x20    tags: {include: [1.10, 2.0], exclude: '*-x', newest: 3, moving: []}}\n",
    );
    let daemon = &config.daemon;
    assert_eq!((daemon.listen, daemon.poll), (None, None));
    assert_eq!(
        (daemon.state.as_path(), daemon.grace),
        (Path::new("/nowhere/here"), Duration::from_secs(65))
    );
    assert_eq!(daemon.threads.get(), 3);
    assert_eq!(daemon.retention, Duration::from_secs(48 * 3600));
    let opened = Proof::Secret("open sesame".to_owned().into());
    assert!(daemon.tokens[0].proof.is_same(&opened));
    let RegistryKind::Remote(settings) = &config.registries["s"].kind else {
        panic!("{config:?}")
    };
    let Credentials::Basic { username, password } = &settings.credentials else {
        panic!("not basic")
    };
    assert_eq!(
        (username.as_str(), password.expose_secret()),
        ("me", "hunter2")
    );
    assert!(settings.insecure);
    assert_eq!(
        settings.token_realms,
        ["login.example", "other.example:8443"]
    );
    assert_eq!(settings.kind.map(|kind| kind.name()), Some("harbor"));
    let identity =
        str::from_utf8(settings.tls.identity_pem.as_ref().unwrap().expose_secret()).unwrap();
    assert!(
        identity.contains("END CERTIFICATE-----\n\n-----BEGIN PRIVATE KEY"),
        "{identity}"
    );
    assert!(settings.tls.ca_pem.is_some());
    let limits = &config.registries["s"].limits;
    assert_eq!(
        (
            limits.concurrency.map(|n| n.get()),
            limits.requests_per_second
        ),
        (Some(12), Some(0.5))
    );
    assert_eq!(limits.bandwidth, Some(Plan::constant(2 << 20)));
    let RegistryKind::Layout(path) = &config.registries["d"].kind else {
        panic!("{config:?}")
    };
    assert_eq!(path, Path::new("/nowhere/images"));
    let route = &config.routes[0];
    assert_eq!(
        (&*route.name, route.existing, route.drift),
        ("all", Existing::Adopt, Drift::Restore)
    );
    let allows = |tag: &str| route.selection.allows(&tag.parse().unwrap());
    assert!(
        allows("1.10") && allows("2.0") && !allows("1.1") && !allows("2"),
        "a tag is a text, whatever YAML thinks"
    );
    assert!(route.selection.moving.is_empty() && route.selection.newest.is_some());
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_queue_has_the_region_of_its_url_unless_it_says_otherwise() {
    let file = format!(
        "queues:\n  near: {{sqs: https://sqs.eu-west-1.amazonaws.com/123456789012/a, registry: s, aws_profile: build}}\n  \
         far: {{sqs: http://127.0.0.1:5000/123456789012/b, registry: p, region: us-east-1, role_arn: 'arn:aws:iam::1:role/r', external_id: x}}\n{REST}"
    );
    let config = parse(&file);
    let [near, far] = &config.queues[..] else {
        panic!("{:?}", config.queues)
    };
    assert_eq!((&*near.name, &*near.notifier.registry), ("near", "s"));
    assert_eq!(near.queue.region(), Some("eu-west-1"));
    assert_eq!(near.queue.identity.profile.as_deref(), Some("build"));
    assert_eq!((&*far.name, &*far.notifier.registry), ("far", "p"));
    assert_eq!(far.queue.region(), Some("us-east-1"));
    assert_eq!(far.queue.identity.external_id.as_deref(), Some("x"));
    assert_eq!(far.queue.address.account(), Some("123456789012"));
}

#[test]
fn auth_is_found_from_host_and_companions() {
    let table = [
        (
            "url: https://123456789012.dkr.ecr.eu-west-1.amazonaws.com\n",
            "ecr",
        ),
        (
            "url: https://123456789012.dkr.ecr.eu-west-1.amazonaws.com\n    auth: docker-config\n",
            "docker-config",
        ),
        ("url: https://public.ecr.aws\n", "docker-config"),
        ("url: https://s.example\n", "docker-config"),
        ("url: https://s.example\n    auth: anonymous\n", "anonymous"),
        (
            "url: https://s.example\n    token_file: ${SECRETS}/password\n",
            "bearer",
        ),
        (
            "url: https://s.example\n    username: me\n    password_file: ${SECRETS}/password\n",
            "basic",
        ),
        (
            "url: http://127.0.0.1:5000\n    username: me\n    password_file: ${SECRETS}/password\n",
            "basic",
        ),
        ("url: http://s.example\n", "docker-config"),
        (
            "url: http://localhost:4510\n    auth: ecr\n    region: eu-west-1\n    ecr_endpoint: http://localhost:4566\n",
            "ecr",
        ),
    ];
    for (keys, expected) in table {
        let config = parse(&registry_file(keys));
        let RegistryKind::Remote(settings) = &config.registries["s"].kind else {
            panic!("{keys}")
        };
        let found = match settings.credentials {
            Credentials::Anonymous => "anonymous",
            Credentials::Basic { .. } => "basic",
            Credentials::Bearer(_) => "bearer",
            Credentials::DockerConfig(_) => "docker-config",
            Credentials::Issued(_) => "ecr",
        };
        assert_eq!(found, expected, "{keys}");
    }
}

#[test]
fn defaults_fill_in_key_by_key_and_anchors_work() {
    let config = parse(
        "x-rules: &rules {include: [\"v*\"], newest: 4}\n\
         x-unused: ${NOT_SET}  # nor is ${THIS}\n\
         registries: {s: {url: https://s.example}, p: {url: https://p.example}}\n\
         defaults: {tags: {include: latest, exclude: \"*-rc\", moving: edge}, drift: restore, existing: adopt}\n\
         routes:\n\
         \x20 - {from: s/a, to: p/a}\n\
         \x20 - {from: s/b, to: p/b, drift: keep, tags: {exclude: []}}\n\
         \x20 - {from: s/c, to: p/c, tags: *rules}\n\
         \x20 - {from: s/d, to: p/d, tags: {<<: *rules, newest: 9}}\n",
    );
    let rules = |number: usize| {
        let route: &Route = &config.routes[number];
        let texts = |rules: &[crate::route::rules::TagRule]| {
            rules
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let selection = &route.selection;
        let newest = selection.newest.map_or(0, |newest| newest.get());
        let include = texts(&selection.include);
        let exclude = texts(&selection.exclude);
        let moving = texts(&selection.moving);
        (
            format!("{include}|{exclude}|{moving}|{newest}"),
            route.drift,
            route.existing,
        )
    };
    assert_eq!(
        rules(0),
        ("latest|*-rc|edge|0".into(), Drift::Restore, Existing::Adopt)
    );
    assert_eq!(
        rules(1),
        ("latest||edge|0".into(), Drift::Keep, Existing::Adopt)
    );
    assert_eq!(
        rules(2),
        ("v*|*-rc|edge|4".into(), Drift::Restore, Existing::Adopt)
    );
    assert_eq!(
        rules(3),
        ("v*|*-rc|edge|9".into(), Drift::Restore, Existing::Adopt)
    );
}

/// A place like `/etc/blobferry`: an example and the files that it names.
fn load_example(path: &Path) -> Config {
    let folder = secrets();
    let place = folder.path();
    fs::create_dir(place.join("tls")).unwrap();
    for (from, to) in [
        ("cert.pem", "tls/corp-ca.pem"),
        ("cert.pem", "tls/ferry.pem"),
        ("key.pem", "ferry.key"),
    ] {
        fs::copy(place.join(from), place.join(to)).unwrap();
    }
    for password in ["public-token", "production-password", "old-password"] {
        fs::copy(place.join("password"), place.join(password)).unwrap();
    }
    for token in ["ci-token", "oncall-token"] {
        fs::write(place.join(token), format!("a long secret of {token}\n")).unwrap();
    }
    let copy = place.join(path.file_name().unwrap());
    fs::copy(path, &copy).unwrap();
    let env = |name: &str| match name {
        "CREDENTIALS_DIRECTORY" => Some(place.display().to_string()),
        "STATE_DIRECTORY" => Some("/state".into()),
        _ => None,
    };
    Config::load(&copy, &env).unwrap_or_else(|error| panic!("{error}"))
}

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let yaml = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "yaml")
    };
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(yaml)
        .collect();
    paths.sort();
    paths
}

#[test]
fn the_examples_are_right() {
    let names: Vec<String> = examples()
        .iter()
        .map(|path| path.file_stem().unwrap().display().to_string())
        .collect();
    for expected in [
        "blobferry",
        "ecr-two-accounts",
        "fan-out",
        "guarded",
        "layout-airgap",
        "private-ca-and-mtls",
        "scan-then-promote",
        "wildcards",
    ] {
        assert!(names.iter().any(|name| name == expected), "{expected}");
    }
    for path in examples() {
        let config = load_example(&path);
        let routes = crate::route::Routes::new(config.routes.clone());
        assert!(!routes.0.is_empty(), "{}", path.display());
        if path.ends_with("wildcards.yaml") {
            let route = |name: &str| {
                routes
                    .of("staging", &name.parse().unwrap())
                    .map(|route| route.name.to_string())
            };
            assert_eq!(route("shop/web").as_deref(), Some("web"));
            assert_eq!(route("shop/cart/api").as_deref(), Some("shop/**"));
            assert_eq!(route("teams/red/api").as_deref(), Some("by-service"));
            assert_eq!(route("other"), None);
        }
    }
}

fn properties<'a>(schema: &'a Value, definition: &str) -> Vec<&'a str> {
    let object = if definition == "Document" {
        schema
    } else {
        &schema["$defs"][definition]
    };
    object["properties"]
        .as_object()
        .unwrap_or_else(|| panic!("{definition}"))
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn the_schema_names_the_very_keys_that_are_read() {
    let schema = schema();
    type Place = (&'static str, fn(&str) -> String);
    let places: [Place; 12] = [
        ("Document", |key| format!("{key}\n")),
        ("DaemonSection", |key| format!("daemon: {{{key}}}\n")),
        ("RegistrySection", |key| {
            format!("registries: {{s: {{{key}}}}}\n")
        }),
        ("Receiver", |key| {
            format!("registries: {{s: {{url: s.example}}}}\nreceivers: {{r: {{{key}}}}}\n")
        }),
        ("ServerTls", |key| format!("daemon: {{tls: {{{key}}}}}\n")),
        ("Oidc", |key| {
            format!(
                "registries: {{s: {{url: s.example}}}}\nreceivers: {{r: {{oidc: {{{key}}}}}}}\n"
            )
        }),
        ("WindowOfRate", |key| {
            format!("registries: {{s: {{bandwidth: [{{{key}}}]}}}}\n")
        }),
        ("Queue", |key| {
            format!("registries: {{s: {{url: https://s.example}}}}\nqueues: {{q: {{{key}}}}}\n")
        }),
        ("SetSection", |key| format!("sets: {{s: {{{key}}}}}\n")),
        ("Defaults", |key| format!("defaults: {{{key}}}\n")),
        ("RouteSection", |key| format!("routes: [{{{key}}}]\n")),
        ("Tags", |key| format!("defaults: {{tags: {{{key}}}}}\n")),
    ];
    for (definition, file) in places {
        let complaint = complaints(&file("qqqqqqqqqqqqqqqq: 1"));
        let (_, known) = complaint.split_once("known here: ").unwrap();
        let mut known: Vec<&str> = known.lines().next().unwrap().split(", ").collect();
        if definition == "Defaults" {
            known.retain(|key| !["name", "from", "to"].contains(key));
        }
        let mut named = properties(&schema, definition);
        known.sort_unstable();
        named.sort_unstable();
        assert_eq!(named, known, "{definition}");
    }
}

/// Whether the schema knows every key of a document; types are left to the editors.
fn unknown_keys(node: &yaml::Node, shape: &Value, schema: &Value) -> Vec<String> {
    let shapes = alternatives(shape, schema);
    match &node.value {
        yaml::Value::List(items) => {
            let items_of = shapes.iter().find_map(|shape| shape.get("items"));
            let shape = items_of.unwrap_or(&Value::Null);
            items
                .iter()
                .flat_map(|item| unknown_keys(item, shape, schema))
                .collect()
        }
        yaml::Value::Map(entries) => entries
            .iter()
            .filter(|entry| !entry.key.starts_with("x-"))
            .flat_map(|entry| {
                let property = shapes.iter().find_map(|shape| property(shape, &entry.key));
                property.map_or_else(
                    || vec![entry.key.clone()],
                    |property| unknown_keys(&entry.node, property, schema),
                )
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn property<'a>(shape: &'a Value, key: &str) -> Option<&'a Value> {
    let others = &shape["additionalProperties"];
    shape["properties"]
        .get(key)
        .or_else(|| others.is_object().then_some(others))
}

/// The shapes that a value may have: follows `$ref` and `anyOf`.
fn alternatives<'a>(shape: &'a Value, schema: &'a Value) -> Vec<&'a Value> {
    let definition = shape["$ref"]
        .as_str()
        .and_then(|name| name.strip_prefix("#/$defs/"));
    if let Some(name) = definition {
        return alternatives(&schema["$defs"][name], schema);
    }
    match shape["anyOf"].as_array() {
        Some(shapes) => shapes
            .iter()
            .flat_map(|shape| alternatives(shape, schema))
            .collect(),
        None => vec![shape],
    }
}

#[test]
fn the_schema_knows_every_key_of_the_examples() {
    let schema = schema();
    for path in examples() {
        let document = yaml::parse(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(
            unknown_keys(&document, &schema, &schema),
            [""; 0],
            "{}",
            path.display()
        );
    }
    let stray = yaml::parse("daemon: {stray: 1}\nregistries: {s: {bandwidth: [{rat: 1}]}}\nroutes: [{tags: {odd: 1}}]\n").unwrap();
    assert_eq!(
        unknown_keys(&stray, &schema, &schema),
        ["stray", "rat", "odd"],
        "the check itself sees strays"
    );
}

proptest! {
    #[test]
    fn a_file_with_a_typing_error_is_read_or_refused(
        example in prop::sample::select(examples()),
        at in 0..100usize,
        length in 0..30usize,
        typed in "[\\[\\]{}:,#&*!|>'\"%@`$a \n\t-]{0,6}",
    ) {
        let text: Vec<char> = fs::read_to_string(&example).unwrap().chars().collect();
        let from = text.len() * at / 100;
        let to = (from + length).min(text.len());
        let damaged: String = text[..from].iter().copied().chain(typed.chars()).chain(text[to..].iter().copied()).collect();
        let _ = Config::parse(&damaged, &example, &|_| None);
    }
}

#[test]
fn a_chain_of_routes_is_right() {
    let config = parse(
        "registries: {d: {url: \"https://d.example\"}, s: {url: \"https://s.example\"}, p: {url: \"https://p.example\"}}\n\
         routes:\n  - {name: first, from: d/**, to: \"s/{1}\", tags: {include: x}}\n  \
         - {name: second, from: s/**, to: \"p/{1}\", tags: {include: x}}\n",
    );
    assert_eq!(config.routes.len(), 2);
}

#[test]
fn a_receiver_is_read_with_its_registry() {
    let text = "registries:\n  e: {url: \"https://123456789012.dkr.ecr.eu-west-1.amazonaws.com\"}\n  \
                s: {url: \"https://s.example\"}\nreceivers:\n  pushes: {kind: ecr, registry: e, secret_file: \"${SECRETS}/lines\", limit: 7}\n  \
                jfrog: {kind: artifactory, registry: s, unauthenticated: true, rewrite: {local: docker, bare: \"\"}}\n\
                routes:\n  - {from: s/app, to: e/app, tags: {include: latest}}\n";
    let config = parse(text);
    let [pushes, jfrog] = &config.receivers[..] else {
        panic!("two receivers")
    };
    assert_eq!(
        (&*pushes.name, pushes.kind.name(), pushes.limit),
        ("pushes", "ecr", 7)
    );
    let notifier = &pushes.notifier;
    assert_eq!(notifier.account.as_deref(), Some("123456789012"));
    assert_eq!(notifier.region.as_deref(), Some("eu-west-1"));
    assert_eq!((jfrog.limit, &*jfrog.notifier.registry), (2000, "s"));
    let renamed = jfrog.notifier.rewritten("local/team/app".parse().unwrap());
    assert_eq!(renamed.as_str(), "docker/team/app");
}

#[test]
fn bandwidth_may_follow_the_week() {
    let config = parse(
        "registries:\n\
         \x20 s:\n\
         \x20   url: https://s.example\n\
         \x20   bandwidth:\n\
         \x20   - {days: [mon-thu, sun], from: 22:00, to: 06:00, rate: 1MiB}\n\
         \x20   - {days: sat, from: '08:00', to: '24:00', rate: off}\n\
         \x20   - {rate: 5}\n\
         \x20 p: {url: https://p.example}\n\
         routes:\n\
         \x20 - {from: s/app, to: p/app, tags: {include: latest}}\n",
    );
    let days = |stretches: &[(Weekday, Weekday)]| {
        stretches
            .iter()
            .fold(Days::NONE, |days, (first, last)| days.and(*first, *last))
    };
    let windows = [
        Window {
            hours: Hours {
                days: days(&[
                    (Weekday::Monday, Weekday::Thursday),
                    (Weekday::Sunday, Weekday::Sunday),
                ]),
                from: 22 * 60,
                to: 6 * 60,
            },
            rate: Some(1 << 20),
        },
        Window {
            hours: Hours {
                days: days(&[(Weekday::Saturday, Weekday::Saturday)]),
                from: 8 * 60,
                to: DAY,
            },
            rate: None,
        },
        Window::always(Some(5)),
    ];
    assert_eq!(
        config.registries["s"].limits.bandwidth,
        Some(Plan::new(windows, TimeZone::system()))
    );
}
