//! The control plane's half of ECR against moto, an independent program: the fake cannot drift
//! into our own beliefs.
//!
//! moto has no data plane: a real registry with the password that moto hands out stands beside it.

use serde_json::{Value, json};

use crate::support::ecr::HOME;
use crate::support::moto::Moto;
use crate::support::*;

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
    let ferry = Ferry::bare()
        .with_aws_identity(&moto)
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
    let run = Ferry::new(&config(&moto, &registry, json!({})))
        .with_aws_identity(&moto)
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
    Ferry::new(&config(&moto, &registry, template))
        .with_aws_identity(&moto)
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
