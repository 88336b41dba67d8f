//! The tools of these tests keep their word: a test that trusts a broken proxy proves nothing.

use std::time::Duration;

use crate::support::*;

#[tokio::test]
async fn what_the_client_pushes_is_what_registries_hold() {
    for program in Program::ALL {
        let registry = program.setup().delete().start();
        let client = registry.client();
        let image = Image::index(&[Image::oci(1, &[5000, 0]), Image::docker(2, &[70_000])]);
        client.push("app", "v1", &image).await;
        client.assert_holds("app", "v1", &image).await;
        assert_eq!(
            skopeo::raw_digest(&format!("{}/app:v1", registry.address())).await,
            image.digest()
        );
        client.push("app", "v2", &Image::empty_config(3)).await;
        assert_eq!(client.tags("app").await, ["v1", "v2"]);
        client.delete("app", image.digest()).await;
        client.assert_lacks("app", "v1", &[]).await;
        assert_eq!(client.tags("absent").await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn odd_images_find_a_registry_that_takes_them() {
    let registry = Program::Distribution3.setup().lenient().start();
    let client = registry.client();
    let foreign = Image::of_layers(
        5,
        vec![
            Blob::layer(1, 10),
            Blob::foreign(2, 10, "http://127.0.0.1:9/layer"),
        ],
    );
    for (tag, image) in [
        ("foreign", foreign),
        ("cache", Image::cache(6, &[100, 200])),
        (
            "sha512",
            Image::of_layers(7, vec![Blob::layer(3, 999).with_sha512()]),
        ),
        (
            "duplicate",
            Image::of_layers(8, vec![Blob::layer(4, 10), Blob::layer(4, 10)]),
        ),
        (
            "nested",
            Image::index(&[Image::index(&[Image::oci(9, &[1])]), Image::oci(10, &[1])]),
        ),
    ] {
        client.push("odd", tag, &image).await;
        client.assert_holds("odd", tag, &image).await;
    }
    let subject = Image::oci(11, &[10]);
    client.push("odd", "subject", &subject).await;
    client
        .push_untagged(
            "odd",
            &Image::referrer(12, &subject, "application/vnd.example.signature"),
        )
        .await;
}

#[tokio::test]
async fn locked_registries_open_to_the_right_key_only() {
    let basic = Program::Distribution2
        .setup()
        .basic("ann", "secret")
        .start();
    let image = Image::oci(1, &[10]);
    basic
        .client()
        .with_basic("ann", "secret")
        .push("app", "v1", &image)
        .await;
    assert_eq!(
        reqwest::get(format!("{}/v2/", basic.url()))
            .await
            .unwrap()
            .status(),
        401
    );
    for program in Program::ALL {
        let server = TokenServer::start("ann", "secret").await;
        let registry = program.setup().token(&server).start();
        let client = registry.client().with_bearer(&server.mint(&["app"]));
        client.push("app", "v1", &image).await;
        client.assert_holds("app", "v1", &image).await;
        let refused = reqwest::get(format!("{}/v2/app/tags/list", registry.url()))
            .await
            .unwrap();
        assert_eq!(refused.status(), 401);
        assert!(
            refused.headers()["www-authenticate"]
                .to_str()
                .unwrap()
                .contains(&server.realm())
        );
    }
}

#[tokio::test]
async fn the_proxy_counts_and_changes_nothing_by_itself() {
    let registry = Registry::distribution3();
    let proxy = Proxy::before(&registry.url()).await;
    let client = Client::new(&proxy.url());
    let image = Image::oci(1, &[100_000, 20]);
    client.push("app", "v1", &image).await;
    client.assert_holds("app", "v1", &image).await;
    let total: u64 = image.blobs.iter().map(|blob| blob.bytes.len() as u64).sum();
    assert_eq!(proxy.count(Kind::UploadPost), 3);
    assert_eq!(proxy.bytes(&[Kind::UploadPatch]), (total, 0));
    assert_eq!(proxy.bytes(&[Kind::BlobGet]), (0, total));
    assert!(
        proxy
            .log()
            .iter()
            .all(|entry| entry.status.is_some() && !entry.authorization)
    );
}

#[tokio::test]
async fn a_cut_request_leaves_exactly_what_passed_in_the_registry() {
    let registry = Registry::distribution3();
    let proxy = Proxy::before(&registry.url()).await;
    for (turn, cut) in [Cut::Fin, Cut::Reset].into_iter().enumerate() {
        proxy.reset();
        proxy.once(Kind::UploadPatch, Act::CutRequest(3_000_000, cut));
        let http = reqwest::Client::new();
        let opened = http
            .post(format!("{}/v2/app/blobs/uploads/", proxy.url()))
            .send()
            .await
            .unwrap();
        let location = opened.headers()["location"].to_str().unwrap().to_owned();
        assert!(location.starts_with(&proxy.url()), "{location}");
        http.patch(&location)
            .body(Blob::layer(turn as u64, 5_000_000).bytes)
            .send()
            .await
            .expect_err("a cut is an error");
        eventually(
            "the registry has taken in exactly what passed",
            async || {
                let status = http.get(&location).send().await.unwrap();
                status
                    .headers()
                    .get("range")
                    .filter(|range| *range == "0-2999999")
                    .map(drop)
            },
        )
        .await;
    }
}

#[tokio::test]
async fn the_proxy_breaks_what_it_is_told_and_nothing_else() {
    let registry = Registry::distribution2();
    let proxy = Proxy::before(&registry.url()).await;
    let blob = Blob::layer(7, 100_000);
    registry.client().push_blob("app", &blob).await;
    let url = format!("{}/v2/app/blobs/{}", proxy.url(), blob.digest);
    let body = async || reqwest::get(&url).await.unwrap().bytes().await;

    proxy.once(Kind::BlobGet, Act::CutAnswer(50_000, Cut::Fin));
    body().await.expect_err("a cut answer is an error");
    proxy.once(Kind::BlobGet, Act::FlipByte(70_000));
    let flipped = body().await.unwrap();
    assert!(flipped.len() == blob.bytes.len() && flipped != blob.bytes);
    proxy.once(Kind::BlobGet, Act::Truncate(10));
    assert_eq!(body().await.unwrap(), blob.bytes[..10]);
    proxy.once(Kind::BlobGet, Act::Extend(5));
    assert_eq!(body().await.unwrap().len(), blob.bytes.len() + 5);
    proxy.rule(
        Rule::on(&[Kind::BlobGet])
            .from(1)
            .times(1)
            .act(Reply::status(503).header("retry-after", "7")),
    );
    assert_eq!(body().await.unwrap(), blob.bytes);
    let refused = reqwest::get(&url).await.unwrap();
    assert_eq!(
        (
            refused.status().as_u16(),
            refused.headers()["retry-after"].to_str().unwrap()
        ),
        (503, "7")
    );
    proxy.once(
        Kind::BlobGet,
        Act::Header("docker-content-digest", Some("sha256:lie".into())),
    );
    assert_eq!(
        reqwest::get(&url).await.unwrap().headers()["docker-content-digest"],
        "sha256:lie"
    );
    proxy.once(Kind::BlobGet, Act::CutRequest(0, Cut::Reset));
    reqwest::get(&url).await.expect_err("no answer is an error");
    assert_eq!(body().await.unwrap(), blob.bytes);
}

#[tokio::test]
async fn a_gate_holds_until_it_opens() {
    let registry = Registry::distribution2();
    let proxy = Proxy::before(&registry.url()).await;
    let blob = Blob::layer(7, 3_000_000);
    registry.client().push_blob("app", &blob).await;
    let gate = Gate::closed();
    proxy.once(Kind::BlobGet, Act::HoldAnswer(1_000_000, gate.clone()));
    let url = format!("{}/v2/app/blobs/{}", proxy.url(), blob.digest);
    let reading =
        tokio::spawn(async move { reqwest::get(url).await.unwrap().bytes().await.unwrap() });
    gate.arrived(1).await;
    assert_eq!(proxy.bytes(&[Kind::BlobGet]).1, 1_000_000);
    assert!(!reading.is_finished());
    gate.open();
    assert_eq!(reading.await.unwrap(), blob.bytes);

    let gate = Gate::closed();
    proxy.once(Kind::UploadPatch, Act::HoldRequest(500_000, gate.clone()));
    proxy.once(Kind::UploadPut, Act::Delay(Duration::from_millis(10)));
    let through = Client::new(&proxy.url());
    let writing =
        tokio::spawn(async move { through.push_blob("other", &Blob::layer(8, 2_000_000)).await });
    gate.arrived(1).await;
    assert_eq!(proxy.bytes(&[Kind::UploadPatch]).0, 500_000);
    gate.open();
    proxy.seen(Kind::UploadPut, 1).await;
    writing.await.unwrap();
    assert!(
        registry
            .client()
            .has_blob("other", &Blob::layer(8, 2_000_000).digest)
            .await
    );
}

#[tokio::test]
async fn limits_redirects_and_endless_pages_look_real() {
    let other = Proxy::alone().await;
    let proxy = Proxy::before("http://127.0.0.1:9").await;
    proxy.rule(
        Rule::on(&[Kind::Tags])
            .act(Act::RateLimit {
                most: 2,
                window: Duration::from_secs(600),
                retry_after: 3,
            })
            .act(Act::EndlessTags),
    );
    proxy.always(
        Kind::BlobGet,
        Reply::redirect(&format!("{}/blob", other.url())),
    );
    other.always(Kind::Other, Reply::status(200).body("text/plain", "bytes"));
    let tags = format!("{}/v2/app/tags/list", proxy.url());
    let page = reqwest::get(&tags).await.unwrap();
    assert_eq!(
        page.headers()["link"],
        "</v2/app/tags/list?page=1>; rel=\"next\""
    );
    reqwest::get(&tags)
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
    assert_eq!(reqwest::get(&tags).await.unwrap().status(), 429);
    let blob = reqwest::get(format!("{}/v2/app/blobs/sha256:0", proxy.url()))
        .await
        .unwrap();
    assert_eq!(blob.text().await.unwrap(), "bytes");
}

#[tokio::test]
async fn layouts_written_here_are_layouts_to_others() {
    let (registry, scratch) = (Registry::distribution2(), tempfile::tempdir().unwrap());
    let (image, folder) = (
        Image::index(&[Image::oci(1, &[500]), Image::oci(2, &[0, 70])]),
        scratch.path().join("app"),
    );
    layout::write(&folder, &[("v1", &image)]);
    layout::assert_holds(&folder, "v1", &image);
    skopeo::copy(
        &format!("oci:{}:v1", folder.display()),
        &format!("docker://{}/app:v1", registry.address()),
    )
    .await;
    registry.client().assert_holds("app", "v1", &image).await;
}

#[tokio::test]
async fn tags_copied_on_disk_are_tags() {
    for program in Program::ALL {
        let registry = program.start();
        registry
            .client()
            .push("app", "t0", &Image::oci(1, &[10]))
            .await;
        registry.copy_tag("app", "t0", (1..2500).map(|number| format!("t{number}")));
        assert_eq!(registry.client().tags("app").await.len(), 2500);
        assert_eq!(
            registry.client().digest("app", "t2499").await,
            registry.client().digest("app", "t0").await
        );
    }
}

#[tokio::test]
async fn the_linter_reads_and_prometheus_runs() {
    let good = "# HELP a_total Some.\n# TYPE a_total counter\na_total 1\n";
    assert_eq!(prometheus::lint(good).await, "");
    assert_ne!(prometheus::lint("# TYPE a counter\na 1\n").await, "");
    let target = Proxy::alone().await;
    target.always(
        Kind::Other,
        Reply::status(200).body("text/plain; version=0.0.4", good),
    );
    let prometheus = prometheus::Prometheus::scraping(&target.address()).await;
    prometheus.target_up().await;
    assert_eq!(
        eventually("the value is scraped", async || prometheus
            .query("sum(a_total)")
            .await)
        .await,
        1.0
    );
}

#[tokio::test]
async fn the_proxy_speaks_tls_with_a_certificate_to_trust() {
    let registry = Registry::distribution2();
    let proxy = Proxy::tls_before(&registry.url()).await;
    let root = reqwest::Certificate::from_pem(proxy.certificate().as_bytes()).unwrap();
    let http = reqwest::Client::builder()
        .tls_certs_only([root])
        .build()
        .unwrap();
    assert_eq!(
        http.get(format!("{}/v2/", proxy.url()))
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    let opened = http
        .post(format!("{}/v2/app/blobs/uploads/", proxy.url()))
        .send()
        .await
        .unwrap();
    assert!(
        opened.headers()["location"]
            .to_str()
            .unwrap()
            .starts_with(&proxy.url())
    );
    reqwest::get(format!("{}/v2/", proxy.url()))
        .await
        .expect_err("an unknown certificate is no certificate");
}
