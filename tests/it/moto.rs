//! The control plane's half of ECR against moto, an independent program: the fake cannot drift
//! into our own beliefs.
//!
//! moto has no data plane: a real registry with the password that moto hands out stands beside it.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::ecr::HOME;
use crate::support::registry::installed;
use crate::support::*;

/// A running moto.
struct Moto {
    child: Child,
    url: String,
    http: reqwest::Client,
}

impl Moto {
    async fn start() -> Moto {
        let program = installed(
            &["moto_server", "../python/bin/moto_server"],
            "pip install 'moto[server,ecr]' into target/tools/python",
        );
        let port = free_port();
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto starts");
        let moto = Moto {
            child,
            url: format!("http://127.0.0.1:{port}"),
            http: reqwest::Client::builder()
                .no_proxy()
                .build()
                .expect("a client"),
        };
        eventually("moto answers", async || {
            moto.http
                .get(format!("{}/moto-api/data.json", moto.url))
                .send()
                .await
                .ok()
        })
        .await;
        moto
    }

    /// One call, signed for the look of it: moto finds its service there.
    async fn call(&self, action: &str, body: Value) -> Value {
        let signed = "AWS4-HMAC-SHA256 Credential=AKID/20261121/eu-west-1/ecr/aws4_request, SignedHeaders=host, Signature=0";
        let request = self
            .http
            .post(&self.url)
            .header("authorization", signed)
            .header("content-type", "application/x-amz-json-1.1");
        let request = request
            .header(
                "x-amz-target",
                format!("AmazonEC2ContainerRegistry_V20150921.{action}"),
            )
            .body(body.to_string());
        let answer = request.send().await.expect("moto answers");
        let status = answer.status();
        let text = answer.text().await.expect("an answer's body");
        assert!(status.is_success(), "{action}: {status} {text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Tells moto of an image that the registry holds: it stores a digest that it is given.
    async fn know(&self, repository: &str, tag: &str, image: &Image) {
        let root = image.documents.last().expect("an image has a manifest");
        let text = String::from_utf8(root.bytes.to_vec()).expect("a manifest is text");
        self.call(
            "PutImage",
            json!({"repositoryName": repository, "imageTag": tag, "imageManifest": text, "imageManifestMediaType": root.media_type, "imageDigest": root.digest}),
        )
        .await;
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn registry() -> Registry {
    Program::Distribution3
        .setup()
        .basic("AWS", &format!("{HOME}-auth-token"))
        .start()
}

fn client(registry: &Registry) -> Client {
    registry
        .client()
        .with_basic("AWS", &format!("{HOME}-auth-token"))
}

fn with_identity(ferry: Ferry, moto: &Moto) -> Ferry {
    ferry
        .with_env("AWS_ACCESS_KEY_ID", "AKIDBUILDER")
        .with_env("AWS_SECRET_ACCESS_KEY", "secret-of-the-builder")
        .with_env("AWS_REGION", "eu-west-1")
        .with_env("AWS_ENDPOINT_URL_STS", &moto.url)
        .with_env("AWS_EC2_METADATA_DISABLED", "true")
}

fn config(moto: &Moto, registry: &Registry, route: Value) -> Config {
    let keys = json!({"auth": "ecr", "kind": "ecr", "region": "eu-west-1", "account": HOME, "ecr_endpoint": moto.url});
    let config = Config::new()
        .registry_with("staging", &registry.url(), keys.clone())
        .registry_with("production", &registry.url(), keys);
    let mut usual = json!({"name": "app", "from": "staging/staging-demo-app", "to": "production/prod-demo-app", "tags": {"include": ["*"]}});
    usual
        .as_object_mut()
        .unwrap()
        .extend(route.as_object().unwrap().clone());
    config.raw_route(usual)
}

#[tokio::test]
async fn the_pipeline_step_runs_against_moto_and_a_real_registry() {
    let (moto, registry) = (Moto::start().await, registry());
    let image = Image::index(&[Image::oci(1, &[1000]), Image::oci(2, &[2000])]);
    client(&registry)
        .push("staging-demo-app", "latest", &image)
        .await;
    client(&registry)
        .push("staging-demo-app", "v1", &image)
        .await;
    for repository in ["staging-demo-app", "prod-demo-app"] {
        moto.call("CreateRepository", json!({"repositoryName": repository}))
            .await;
    }
    let ferry = with_identity(Ferry::bare(), &moto)
        .with_env("DOCKER_REG", registry.address())
        .with_env("AWS_ENDPOINT_URL_ECR", &moto.url)
        .with_env("STAGING_IMAGE_NAME", "staging-demo-app")
        .with_env("PROD_IMAGE_NAME", "prod-demo-app");
    ferry.run(&["promote"]).await.expect(0);
    client(&registry)
        .assert_holds("prod-demo-app", "latest", &image)
        .await;
    moto.know("staging-demo-app", "v1", &image).await;
    ferry.run(&["promote", "--all-tags"]).await.expect(0);
    client(&registry)
        .assert_holds("prod-demo-app", "v1", &image)
        .await;
}

#[tokio::test]
async fn what_moto_lists_is_what_is_promoted() {
    let (moto, registry) = (Moto::start().await, registry());
    let (old, new) = (Image::oci(1, &[100]), Image::oci(2, &[200]));
    for (repository, tag, image) in [
        ("staging-demo-app", "v1", &old),
        ("staging-demo-app", "v2", &new),
        ("prod-demo-app", "v1", &old),
    ] {
        client(&registry).push(repository, tag, image).await;
    }
    for repository in ["staging-demo-app", "prod-demo-app"] {
        moto.call("CreateRepository", json!({"repositoryName": repository}))
            .await;
        moto.know(repository, "v1", &old).await;
    }
    moto.know("staging-demo-app", "v2", &new).await;
    let run = with_identity(Ferry::new(&config(&moto, &registry, json!({}))), &moto)
        .sync(&[])
        .await
        .expect(0);
    assert_eq!((run.total("promoted"), run.total("up_to_date")), (1, 1));
    client(&registry)
        .assert_holds("prod-demo-app", "v2", &new)
        .await;
}

#[tokio::test]
async fn moto_takes_the_repositories_that_are_created() {
    let (moto, registry) = (Moto::start().await, registry());
    let image = Image::oci(1, &[100]);
    client(&registry)
        .push("staging-demo-app", "v1", &image)
        .await;
    moto.call(
        "CreateRepository",
        json!({"repositoryName": "staging-demo-app"}),
    )
    .await;
    moto.know("staging-demo-app", "v1", &image).await;
    let template = json!({"create": "template", "template": {"immutable": true, "except": ["latest"], "scan_on_push": true, "kms": true, "resource_tags": {"team": "demo"}}});
    with_identity(Ferry::new(&config(&moto, &registry, template)), &moto)
        .sync(&[])
        .await
        .expect(0);
    let described = moto
        .call(
            "DescribeRepositories",
            json!({"repositoryNames": ["prod-demo-app"]}),
        )
        .await;
    let made = &described["repositories"][0];
    assert_eq!(made["imageTagMutability"], "IMMUTABLE_WITH_EXCLUSION");
    assert_eq!(made["imageScanningConfiguration"]["scanOnPush"], true);
    assert_eq!(made["encryptionConfiguration"]["encryptionType"], "KMS");
}
