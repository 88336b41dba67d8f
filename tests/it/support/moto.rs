//! moto, an independent program that plays AWS.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::image::Image;
use super::registry::installed;
use super::{Ferry, eventually, free_port};

/// A running moto.
pub struct Moto {
    child: Child,
    pub url: String,
    http: reqwest::Client,
}

impl Moto {
    pub async fn start() -> Moto {
        let program = installed(
            &["moto_server", "../python/bin/moto_server"],
            "pip install 'moto[server,ecr,sqs]' into target/tools/python",
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

    /// One call of ECR's control plane.
    pub async fn call(&self, action: &str, body: Value) -> Value {
        let target = format!("AmazonEC2ContainerRegistry_V20150921.{action}");
        self.post("ecr", &target, body).await
    }

    /// One call of SQS.
    pub async fn sqs(&self, action: &str, body: Value) -> Value {
        self.post("sqs", &format!("AmazonSQS.{action}"), body).await
    }

    /// One call of EventBridge.
    pub async fn events(&self, action: &str, body: Value) -> Value {
        self.post("events", &format!("AWSEvents.{action}"), body)
            .await
    }

    /// Creates a stack of CloudFormation, which moto finishes at once.
    pub async fn create_stack(&self, name: &str, template: &str) {
        let form = [
            ("Action", "CreateStack"),
            ("Version", "2010-05-15"),
            ("StackName", name),
            ("TemplateBody", template),
        ];
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        let request = self
            .signed("cloudformation")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        let answer = request.send().await.expect("moto answers");
        let status = answer.status();
        let text = answer.text().await.expect("an answer's body");
        assert!(status.is_success(), "{name}: {status} {text}");
    }

    /// Signed for the look of it: moto finds its service there.
    fn signed(&self, service: &str) -> reqwest::RequestBuilder {
        let signed = format!(
            "AWS4-HMAC-SHA256 Credential=AKID/20261121/eu-west-1/{service}/aws4_request, SignedHeaders=host, Signature=0"
        );
        self.http.post(&self.url).header("authorization", signed)
    }

    async fn post(&self, service: &str, target: &str, body: Value) -> Value {
        let request = self
            .signed(service)
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", target)
            .body(body.to_string());
        let answer = request.send().await.expect("moto answers");
        let status = answer.status();
        let text = answer.text().await.expect("an answer's body");
        assert!(status.is_success(), "{target}: {status} {text}");
        if text.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&text).expect("JSON")
    }

    /// Tells moto of an image that the registry holds: it stores a digest that it is given.
    pub async fn know(&self, repository: &str, tag: &str, image: &Image) {
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

impl Ferry {
    /// Credentials that moto takes.
    pub fn with_aws_identity(self, moto: &Moto) -> Ferry {
        self.with_env("AWS_ACCESS_KEY_ID", "AKIDBUILDER")
            .with_env("AWS_SECRET_ACCESS_KEY", "secret-of-the-builder")
            .with_env("AWS_REGION", "eu-west-1")
            .with_env("AWS_ENDPOINT_URL_STS", &moto.url)
            .with_env("AWS_EC2_METADATA_DISABLED", "true")
    }
}
