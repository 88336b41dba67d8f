//! Hostile registries and neighbours: no hit inside, no secret in any text, no starved probe.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::AUTHORIZATION;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::support::authority::Authority;
use crate::support::scripted::{Answer, Scripted, Settings};
use crate::support::*;

const IN_THE_NAMESPACE: &str = "BLOBFERRY_TEST_NAMESPACE";

/// Names of the namespace. Registries are at the public address; everything else is inside.
const HOSTS: &str = "\
127.0.0.1 localhost
198.51.100.10 registry.test
198.51.100.10 mixed.test
127.0.0.1 mixed.test
198.51.100.10 mixed-metadata.test
169.254.169.254 mixed-metadata.test
127.0.0.1 auth.registry.test
127.0.0.1 loopback.inside
10.66.0.5 private.inside
169.254.169.254 metadata.inside
";

/// A network and a hosts file of its own: made by the kernel for one process, and gone with it.
const SETUP: &str = "\
set -e
ip link set lo up
for address in 198.51.100.10 10.66.0.5 169.254.169.254 168.63.129.16; do ip address add $address/32 dev lo; done
ip -6 address add fd00:ec2::254/128 dev lo
mount --bind \"$1\" /etc/hosts
shift
exec \"$@\"
";

fn in_a_namespace(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, HOSTS).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]);
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let program = std::env::current_exe().unwrap();
    command
        .args(["sh", "-c", SETUP, "sh"])
        .arg(&hosts)
        .arg(program);
    command
        .args([
            &format!("guard::{test}"),
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(IN_THE_NAMESPACE, "yes");
    let output = command.output().expect("unshare is installed");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "in a namespace of its own: {said}");
    assert!(said.contains("1 passed"), "the test ran there: {said}");
}

/// Addresses inside, each with what counts connections and answers whoever asks.
struct Inside(Arc<Mutex<BTreeMap<SocketAddr, Vec<String>>>>);

impl Inside {
    const PORT: u16 = 8080;
    const ADDRESSES: [&str; 5] = [
        "127.0.0.1",
        "10.66.0.5",
        "169.254.169.254",
        "168.63.129.16",
        "fd00:ec2::254",
    ];

    async fn start() -> Inside {
        Inside::behind(None).await
    }

    /// Each connection counts, also one that ends before TLS is spoken.
    async fn behind(tls: Option<TlsAcceptor>) -> Inside {
        let hits: Arc<Mutex<BTreeMap<SocketAddr, Vec<String>>>> = Arc::default();
        for address in Inside::ADDRESSES {
            let address = SocketAddr::new(address.parse().unwrap(), Inside::PORT);
            let listener = TcpListener::bind(address)
                .await
                .expect("an address of the namespace");
            let (hits, tls) = (hits.clone(), tls.clone());
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let line = match &tls {
                        None => first_line(stream).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => first_line(stream).await,
                            Err(error) => format!("no TLS: {error}"),
                        },
                    };
                    hits.lock().unwrap().entry(address).or_default().push(line);
                }
            });
        }
        Inside(hits)
    }

    fn hits(&self) -> BTreeMap<SocketAddr, Vec<String>> {
        self.0.lock().unwrap().clone()
    }

    /// One host alone was hit, by a request for `/own`.
    fn assert_only_own(&self) {
        let hits = self.hits();
        let is_own = |line: &String| line.starts_with("GET /own");
        assert!(hits.values().flatten().any(is_own), "{hits:?}");
        assert_eq!(hits.len(), 1, "{hits:?}");
    }
}

/// Reads a request, answers with nothing, and returns the request's first line.
async fn first_line(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let mut head = vec![0; 2000];
    let length = stream.read(&mut head).await.unwrap_or(0);
    let _ = stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .await;
    String::from_utf8_lossy(&head[..length])
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Hosts inside: literal, by name, by the registry's own name at another port.
const HOSTS_INSIDE: [&str; 12] = [
    "127.0.0.1",
    "localhost",
    "loopback.inside",
    "10.66.0.5",
    "private.inside",
    "169.254.169.254",
    "metadata.inside",
    "168.63.129.16",
    "[fd00:ec2::254]",
    "[::ffff:127.0.0.1]",
    "mixed.test",
    "mixed-metadata.test",
];

/// Where a hostile registry tries to send us.
fn targets(scheme: &str) -> impl Iterator<Item = String> {
    HOSTS_INSIDE
        .iter()
        .map(move |host| format!("{scheme}://{host}:{}/steal", Inside::PORT))
}

#[test]
fn no_answer_of_a_registry_leads_inside() {
    in_a_namespace("within::no_answer_leads_inside");
}

#[test]
fn no_answer_of_a_registry_leads_inside_over_https() {
    in_a_namespace("within::no_answer_leads_inside_over_https");
}

#[test]
fn no_answer_leads_inside_through_a_proxy() {
    in_a_namespace("within::no_answer_leads_inside_through_a_proxy");
}

mod within {
    use super::*;

    fn is_in_the_namespace() {
        assert!(
            std::env::var_os(IN_THE_NAMESPACE).is_some(),
            "only in a namespace of its own"
        );
    }

    fn redirects(registry: &Scripted, kinds: &'static [Kind], to: &str) {
        let to = to.to_owned();
        registry.calm();
        registry.on(move |asked| match kinds.contains(&asked.kind) {
            true => Answer::Reply(Reply::redirect(&to)),
            false => Answer::Pass,
        });
    }

    #[tokio::test]
    #[ignore = "runs in a namespace of its own"]
    async fn no_answer_leads_inside() {
        is_in_the_namespace();
        let inside = Inside::start().await;
        let hostile = Scripted::at("198.51.100.10:80", Settings::default());
        let honest = Scripted::start();
        let image = Image::oci(1, &[3000]);
        hostile.push("app", "v1", &image);
        honest.push("app", "v1", &image);

        for registry in [
            "http://registry.test",
            "http://mixed.test",
            "http://mixed-metadata.test",
        ] {
            let reading = Ferry::new(&Config::pair(registry, &honest.url()));
            let writing = Ferry::new(&Config::pair(&honest.url(), registry));
            for target in targets("http") {
                for kinds in [
                    &[Kind::BlobGet][..],
                    &[Kind::ManifestHead, Kind::ManifestGet],
                    &[Kind::Tags],
                ] {
                    redirects(&hostile, kinds, &target);
                    honest.untag("app", "v1");
                    honest.remove("app", &image.blobs[1].digest);
                    let run = reading.sync(&[]).await;
                    assert_ne!(run.code, 0, "{registry} {kinds:?} {target}");
                    honest.push("app", "v1", &image);
                }
                let location = target.clone();
                hostile.calm();
                hostile.untag("app", "v1");
                hostile.remove("app", &image.blobs[1].digest);
                hostile.on(move |asked| match asked.kind {
                    Kind::UploadPost => {
                        Answer::Reply(Reply::status(202).header("location", &location))
                    }
                    _ => Answer::Pass,
                });
                assert_ne!(writing.sync(&[]).await.code, 0, "{registry} PUT {target}");
                hostile.push("app", "v1", &image);
            }
        }

        // A token server of the registry's own domain that is inside by its address.
        let realm = format!(
            "Bearer realm=\"http://auth.registry.test:{}/token\",service=\"s\"",
            Inside::PORT
        );
        hostile.calm();
        hostile.on(move |_| Answer::Reply(Reply::status(401).header("www-authenticate", &realm)));
        let ferry = Ferry::new(&Config::new());
        let password = ferry.file("password", "hunter2");
        let more = json!({"username": "joe", "password_file": password, "insecure": true});
        let config = Config::new()
            .registry_with("staging", "http://registry.test", more)
            .registry("production", &honest.url());
        ferry.write_config(&config.route("app", json!({})));
        let run = ferry.sync(&[]).await.expect(3);
        assert!(
            run.stdout.contains("inside this network") && run.stdout.contains("token_realms"),
            "{}",
            run.stdout
        );

        assert_eq!(inside.hits(), BTreeMap::new());
        assert!(!hostile.log().is_empty(), "the registry itself was asked");

        // A registry on this machine may send us to another port of it: what counts hits does
        // count.
        let local = Scripted::start();
        local.push("app", "v2", &image);
        redirects(
            &local,
            &[Kind::BlobGet],
            &format!("http://127.0.0.1:{}/own", Inside::PORT),
        );
        honest.remove("app", &image.blobs[1].digest);
        Ferry::new(&Config::pair(&local.url(), &honest.url()))
            .sync(&[])
            .await;
        inside.assert_only_own();
    }

    /// Hosts inside that hold a certificate of an authority that is trusted are inside all the
    /// same.
    #[tokio::test]
    #[ignore = "runs in a namespace of its own"]
    async fn no_answer_leads_inside_over_https() {
        is_in_the_namespace();
        let authority = Authority::new();
        let inside_names: Vec<&str> = HOSTS_INSIDE
            .iter()
            .map(|host| host.trim_matches(['[', ']']))
            .collect();
        let inside = Inside::behind(Some(authority.server(&inside_names))).await;
        let names = ["registry.test", "mixed.test", "mixed-metadata.test"];
        let hostile = Scripted::tls_at("198.51.100.10:443", authority.server(&names));
        let honest = Scripted::start();
        let image = Image::oci(1, &[3000]);
        hostile.push("app", "v1", &image);
        honest.push("app", "v1", &image);
        let pair = |from: (&str, &str), to: (&str, &str)| {
            let ferry = Ferry::new(&Config::new());
            let trust = json!({"ca_file": ferry.file("ca.pem", &authority.pem())});
            let keys = |url: &str| match url.starts_with("https:") {
                true => trust.clone(),
                false => json!({}),
            };
            let config = Config::new()
                .registry_with(from.0, from.1, keys(from.1))
                .registry_with(to.0, to.1, keys(to.1));
            ferry.write_config(&config.route("app", json!({})));
            ferry
        };
        for name in names {
            let url = format!("https://{name}");
            let reading = pair(("staging", &url), ("production", &honest.url()));
            let writing = pair(("staging", &honest.url()), ("production", &url));
            for target in targets("https") {
                redirects(&hostile, &[Kind::BlobGet], &target);
                honest.untag("app", "v1");
                honest.remove("app", &image.blobs[1].digest);
                assert_ne!(reading.sync(&[]).await.code, 0, "{url} GET {target}");
                honest.push("app", "v1", &image);

                let location = target.clone();
                hostile.calm();
                hostile.untag("app", "v1");
                hostile.remove("app", &image.blobs[1].digest);
                hostile.on(move |asked| match asked.kind {
                    Kind::UploadPost => {
                        Answer::Reply(Reply::status(202).header("location", &location))
                    }
                    _ => Answer::Pass,
                });
                assert_ne!(writing.sync(&[]).await.code, 0, "{url} PUT {target}");
                hostile.push("app", "v1", &image);
            }
        }
        assert_eq!(inside.hits(), BTreeMap::new());
        assert!(hostile.count(Kind::BlobGet) > 0 && hostile.count(Kind::UploadPost) > 0);

        // A registry on this machine may send us there, and the certificate is believed: what
        // counts hits does count.
        let local = Scripted::tls_at("127.0.0.1:8443", authority.server(&["127.0.0.1"]));
        local.push("app", "v2", &image);
        let own = format!("https://127.0.0.1:{}/own", Inside::PORT);
        redirects(&local, &[Kind::BlobGet], &own);
        honest.remove("app", &image.blobs[1].digest);
        pair(
            ("staging", "https://127.0.0.1:8443"),
            ("production", &honest.url()),
        )
        .sync(&[])
        .await;
        inside.assert_only_own();
    }

    #[tokio::test]
    #[ignore = "runs in a namespace of its own"]
    async fn no_answer_leads_inside_through_a_proxy() {
        is_in_the_namespace();
        let inside = Inside::start().await;
        // It answers for every host that is asked for through it.
        let proxy = Scripted::at("198.51.100.10:3128", Settings::default());
        let honest = Scripted::start();
        let image = Image::oci(1, &[3000]);
        proxy.push("app", "v1", &image);
        let ferry = Ferry::new(&Config::pair("http://registry.test", &honest.url()))
            .with_env("http_proxy", "http://198.51.100.10:3128");
        for target in targets("http") {
            redirects(&proxy, &[Kind::BlobGet], &target);
            assert_ne!(ferry.sync(&[]).await.code, 0, "{target}");
        }
        assert!(
            proxy.count(Kind::BlobGet) > 0,
            "the registry was read through the proxy"
        );
        assert!(
            proxy.log().iter().all(|record| record.path != "/steal"),
            "{:#?}",
            proxy.log()
        );
        assert_eq!(inside.hits(), BTreeMap::new());
        // Without a redirect the same way carries the image.
        proxy.calm();
        ferry.sync(&[]).await.expect(0);
    }
}

/// What `authorization` says in every way that a debug page or a broken proxy repeats it.
fn echo_of(authorization: &str) -> Vec<String> {
    let (_, value) = authorization.split_once(' ').expect("a scheme and a value");
    let mut all = vec![
        authorization.to_owned(),
        value.to_owned(),
        STANDARD.encode(authorization),
    ];
    if let Some(decoded) = STANDARD
        .decode(value)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
    {
        let (_, password) = decoded.split_once(':').expect("a user and a password");
        let percent: String = password
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        all.extend([
            decoded.clone(),
            password.to_owned(),
            STANDARD.encode(password),
            percent,
        ]);
        all.push(url::form_urlencoded::byte_serialize(password.as_bytes()).collect());
    }
    all
}

/// Nothing of a secret in what a run printed and left on disk.
#[track_caller]
fn assert_no_secret(what: &str, text: &[u8], secrets: &[String]) {
    let text = String::from_utf8_lossy(text);
    for secret in secrets {
        let found = text.find(secret.as_str());
        assert!(
            found.is_none(),
            "{what} holds {secret}: …{}",
            &text[found.unwrap_or(0).saturating_sub(200)..found.unwrap_or(0)]
        );
    }
}

fn files_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file());
    files
        .map(|path| (path.display().to_string(), std::fs::read(&path).unwrap()))
        .collect()
}

/// A registry that repeated request headers in its errors got passwords into logs and the ledger.
#[tokio::test]
async fn credentials_that_a_registry_repeats_are_nowhere() {
    const PASSWORD: &str = "p/a+s s:w\"örd";
    let secrets: Vec<String> = {
        let header = format!("Basic {}", STANDARD.encode(format!("joe:{PASSWORD}")));
        echo_of(&header)
            .into_iter()
            .chain([serde_json::to_string(PASSWORD)
                .unwrap()
                .trim_matches('"')
                .to_owned()])
            .collect()
    };
    let image = Image::oci(1, &[3000]);
    let honest = Scripted::start();
    for (status, kind) in [
        (400, Kind::BlobGet),
        (403, Kind::BlobGet),
        (401, Kind::ManifestGet),
        (400, Kind::Tags),
        (500, Kind::ManifestHead),
        (404, Kind::Tags),
    ] {
        for form in ["json", "text", "html", "headers"] {
            let hostile = Scripted::start();
            hostile.push("app", "v1", &image);
            hostile.on(move |asked| {
                let Some(sent) = asked.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
                    return Answer::Reply(Reply::status(401).header("www-authenticate", "Basic realm=\"r\""));
                };
                if asked.kind != kind {
                    return Answer::Pass;
                }
                let echo = echo_of(sent).join(" | ");
                let code = echo_of(sent).pop().unwrap_or_default();
                Answer::Reply(match form {
                    "json" => Reply::status(status).body(
                        "application/json",
                        json!({"errors": [{"code": code, "message": format!("bad header {echo}"), "detail": {"headers": echo}}]})
                            .to_string(),
                    ),
                    "text" => Reply::status(status).body("text/plain", format!("bad request: {echo}")),
                    "html" => Reply::status(status).body("text/html", format!("<html><title>{echo}</title></html>")),
                    _ => Reply::status(if status == 401 { 401 } else { 307 })
                        .header(
                            "www-authenticate",
                            &format!("Bearer realm=\"https://{}.evil.test/\"", echo_of(sent)[1].replace('=', "")),
                        )
                        .header("location", &format!("http://169.254.169.254/{0}?token={0}", echo_of(sent)[1])),
                })
            });
            let ferry = Ferry::new(&Config::new());
            let password = ferry.file("password", PASSWORD);
            let more = json!({"username": "joe", "password_file": password});
            let config = Config::new()
                .registry_with("staging", &hostile.url(), more)
                .registry("production", &honest.url());
            ferry.write_config(&config.route("app", json!({})));
            let run = ferry.run(&["sync", "--json", "-vvv"]).await;
            let what = format!("{status} {kind:?} {form}");
            assert_no_secret(&format!("{what} stdout"), run.stdout.as_bytes(), &secrets);
            assert_no_secret(&format!("{what} stderr"), run.stderr.as_bytes(), &secrets);
            for (name, bytes) in files_of(&ferry.path("state")) {
                assert_no_secret(&format!("{what} {name}"), &bytes, &secrets);
            }
        }
    }
}

async fn text(daemon: &Daemon, path: &str) -> String {
    daemon.get(path).await.text().await.unwrap()
}

#[tokio::test]
async fn a_daemon_shows_no_credential_that_a_registry_repeats() {
    const PASSWORD: &str = "hunter2-hunter2";
    let header = format!("Basic {}", STANDARD.encode(format!("joe:{PASSWORD}")));
    let secrets = echo_of(&header);
    let hostile = Scripted::start();
    hostile.push("app", "v1", &Image::oci(1, &[3000]));
    hostile.on(|asked| {
        match asked
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
        {
            None => {
                Answer::Reply(Reply::status(401).header("www-authenticate", "Basic realm=\"r\""))
            }
            Some(sent) if asked.kind == Kind::BlobGet => Answer::Reply(Reply::status(400).body(
                "text/plain",
                format!("you sent {}", echo_of(sent).join(" ")),
            )),
            Some(_) => Answer::Pass,
        }
    });
    let ferry = Ferry::new(&Config::new());
    let password = ferry.file("password", PASSWORD);
    let config = Config::new()
        .registry_with(
            "staging",
            &hostile.url(),
            json!({"username": "joe", "password_file": password}),
        )
        .registry("production", &Scripted::start().url())
        .route("app", json!({}));
    ferry.write_config(&config);
    let daemon = ferry.start_ready().await;
    hostile.seen(Kind::BlobGet, 1).await;
    let status = text(&daemon, "/v1/status").await;
    let history = text(&daemon, "/v1/promotions").await;
    assert!(
        history.contains("you sent Basic [hidden]"),
        "the refusal is told: {history}"
    );
    assert_no_secret("status", status.as_bytes(), &secrets);
    assert_no_secret("history", history.as_bytes(), &secrets);
    assert_no_secret(
        "metrics",
        text(&daemon, "/metrics").await.as_bytes(),
        &secrets,
    );
    assert_no_secret("log", daemon.log().as_bytes(), &secrets);
    for (name, bytes) in files_of(&ferry.path("state")) {
        assert_no_secret(&name, &bytes, &secrets);
    }
}

/// `DOCKER_REG=user:pw@host` printed the password.
#[tokio::test]
async fn arguments_and_variables_are_not_repeated_with_passwords() {
    let ferry = Ferry::bare()
        .with_env("DOCKER_REG", "joe:hunter2@registry.test")
        .with_env("STAGING_IMAGE_NAME", "app")
        .with_env("PROD_IMAGE_NAME", "app");
    let commands: [&[&str]; 9] = [
        &["promote"],
        &["promote", "joe:hunter2@registry.test/app:v1"],
        &["promote", "joe:hunter2@registry.test/app:v1", "b.test/app"],
        &[
            "promote",
            "https://joe:hunter2@registry.test/app",
            "b.test/app",
            "--all-tags",
        ],
        &["copy", "ftp://joe:hunter2@registry.test/app", "b.test/app"],
        &[
            "copy",
            "a.test/app:v1",
            "b.test/app",
            "--expect",
            "joe:hunter2@registry.test",
        ],
        &["copy", "--what=joe:hunter2@registry.test", "\u{1b}[2Jx"],
        &["joe:hunter2@registry.test\u{1b}[31m\u{7}"],
        &["sync", "joe:hunter2@registry.test\u{1b}[31m"],
    ];
    for arguments in commands {
        let run = ferry.run(arguments).await.expect(2);
        let said = format!("{}{}", run.stdout, run.stderr);
        assert!(!said.contains("hunter2"), "{arguments:?}: {said}");
        assert!(
            !said.contains(['\u{1b}', '\u{7}']),
            "{arguments:?}: {said:?}"
        );
    }
}

/// One peer that opened 128 connections and said nothing kept the probe from its answer.
#[tokio::test]
async fn half_open_connections_of_one_peer_do_not_starve_the_probe() {
    let ferry = Ferry::new(&Config::pair(
        &Scripted::start().url(),
        &Scripted::start().url(),
    ));
    let daemon = ferry.start_ready().await;
    let address = daemon.url().trim_start_matches("http://").to_owned();
    let mut silent = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        if number % 2 == 0 {
            // Some begin a head and never end it.
            let _ = stream
                .write_all(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nx-")
                .await;
        }
        silent.push(stream);
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        let answer = tokio::time::timeout(Duration::from_secs(5), text(&daemon, path)).await;
        assert!(
            answer.is_ok_and(|text| !text.is_empty()),
            "{path} is starved"
        );
    }
}
