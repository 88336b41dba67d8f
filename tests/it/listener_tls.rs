//! TLS of the daemon's own listener.

use std::path::Path;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use crate::support::*;

/// A certificate for this machine and its key, in PEM.
fn pair() -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["127.0.0.1".into()]).expect("an address is a name");
    let certificate = params.self_signed(&key).expect("a certificate");
    (certificate.pem(), key.serialize_pem())
}

/// Puts a file in place at once, as certificate agents do.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).expect("a file in the scratch directory");
    std::fs::rename(&beside, path).expect("a file is renamed");
}

/// A client that trusts this certificate alone.
fn client(certificate: &str) -> reqwest::Client {
    let certificate = reqwest::Certificate::from_pem(certificate.as_bytes()).expect("PEM");
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([certificate])
        .timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(0)
        .build()
        .expect("a client")
}

fn secured(staging: &Scripted, production: &Scripted, ferry: &Ferry) -> Config {
    let tls = json!({"cert_file": ferry.path("cert.pem"), "key_file": ferry.path("key.pem")});
    Config::pair(&staging.url(), &production.url()).daemon("tls", tls)
}

#[tokio::test]
async fn the_listener_speaks_tls_and_follows_its_files() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
    let (first, second) = (pair(), pair());
    replace(&ferry.path("cert.pem"), &first.0);
    replace(&ferry.path("key.pem"), &first.1);
    ferry.write_config(&secured(&staging, &production, &ferry));
    let daemon = ferry.start_tls(&client(&first.0)).await;
    let url = format!("{}/healthz", daemon.url());
    let answers = async |certificate: &str| {
        let answer = client(certificate).get(&url).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    };
    assert!(answers(&first.0).await);
    assert!(!answers(&second.0).await, "another certificate is not ours");
    let plain = reqwest::Client::builder().no_proxy().build();
    let plain = plain.expect("a client").get(url.replace("https:", "http:"));
    assert!(plain.send().await.is_err(), "no plain HTTP");
    // The control socket stays as it is.
    ferry.run(&["status"]).await.expect(0);

    // The new key is not there yet: the pair does not fit.
    replace(&ferry.path("cert.pem"), &second.0);
    eventually("the broken pair is told", async || {
        let log = daemon.log();
        log.contains("the old one stays in force").then_some(())
    })
    .await;
    assert!(answers(&first.0).await, "the old pair is in force");
    replace(&ferry.path("key.pem"), &second.1);
    eventually("the new pair is in force", async || {
        answers(&second.0).await.then_some(())
    })
    .await;
    assert!(!answers(&first.0).await);
    let log = daemon.log();
    assert_eq!(
        log.matches("the old one stays in force").count(),
        1,
        "{log}"
    );
}

#[tokio::test]
async fn a_silent_handshake_holds_up_nothing() {
    let (staging, production) = (Scripted::start(), Scripted::start());
    let ferry = Ferry::new(&Config::pair(&staging.url(), &production.url()));
    let own = pair();
    ferry.file("cert.pem", &own.0);
    ferry.file("key.pem", &own.1);
    ferry.write_config(&secured(&staging, &production, &ferry));
    let daemon = ferry.start_tls(&client(&own.0)).await;
    let address = daemon.url().trim_start_matches("https://").to_owned();
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(
            tokio::net::TcpStream::connect(&address)
                .await
                .expect("a connection"),
        );
    }
    let answer = client(&own.0)
        .get(format!("https://{address}/healthz"))
        .send()
        .await
        .expect("an answer");
    let body: Value = serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
    assert_eq!(body, json!({"status": "alive"}));
}
