//! The control plane: JSON 1.1, the actions that the program may use; and STS.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Request, header};
use serde_json::{Value, json};

use super::{HOME, Kept, REGION, Refused, Shared, Ways, bytes, reply, scans};

impl Shared {
    pub(super) async fn control(&self, action: &str, request: Request<Body>) -> Response {
        let principal = principal(request.headers());
        let asked: Value =
            serde_json::from_slice(&bytes(request.into_body()).await).unwrap_or_default();
        let named = asked["repositoryName"]
            .as_str()
            .or(asked["repositoryNames"][0].as_str())
            .unwrap_or_default()
            .to_owned();
        let refuse = |status: u16, code: &str, message: &str| {
            reply(
                status,
                "application/x-amz-json-1.1",
                json!({"__type": code, "message": message}).to_string(),
            )
        };
        if let Some(code) = self.state().ways.refuses {
            let text = match code {
                "ExpiredTokenException" => "The security token included in the request is expired",
                "InvalidSignatureException" => "Credential should be scoped to a valid region. ",
                _ => "The security token included in the request is invalid.",
            };
            return refuse(400, code, text);
        }
        let tags_it = action == "CreateRepository" && asked["tags"].is_array();
        let needed = [Some(action), tags_it.then_some("TagResource")];
        match needed
            .into_iter()
            .flatten()
            .try_for_each(|action| self.admit(action, &principal, &named))
        {
            Ok(()) => {}
            Err(Refused::Throttled) => return refuse(400, "ThrottlingException", "Rate exceeded"),
            Err(Refused::Denied(text)) => return refuse(400, "AccessDeniedException", &text),
        }
        if let Some((refused, code)) = self.state().ways.refuses_action
            && refused == action
        {
            return refuse(400, code, "as it says");
        }
        let held = self.state().ways.holds.clone();
        if let Some((_, gate)) = held.filter(|(held, _)| *held == action) {
            gate.pass().await;
            return refuse(500, "ServerException", "it was held");
        }
        let account = asked["registryId"].as_str().unwrap_or(&self.account);
        let missing = || {
            format!(
                "The repository with name '{named}' does not exist in the registry with id '{account}'"
            )
        };
        if account != self.account {
            return refuse(400, "RepositoryNotFoundException", &missing());
        }
        match self.act(action, &principal, &named, &asked).await {
            Ok(Some(answer)) => reply(200, "application/x-amz-json-1.1", answer.to_string()),
            Ok(None) => refuse(400, "RepositoryNotFoundException", &missing()),
            Err(code) => refuse(400, code, "as it says"),
        }
    }

    async fn act(
        &self,
        action: &str,
        principal: &str,
        named: &str,
        asked: &Value,
    ) -> Result<Option<Value>, &'static str> {
        if action == "BatchCheckLayerAvailability" {
            return Ok(Some(self.layers(named, asked).await));
        }
        let mut state = self.state();
        Ok(Some(match action {
            "GetAuthorizationToken" => {
                let password = format!("password-{}-for-{principal}", state.issued.len());
                let token = STANDARD.encode(format!("AWS:{password}"));
                state.issued.insert(password, (principal.into(), 0));
                let expires = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .expect("after 1970")
                    .as_secs()
                    + 43_200;
                json!({"authorizationData": [{"authorizationToken": token, "expiresAt": expires, "proxyEndpoint": format!("https://{}.dkr.ecr.{REGION}.amazonaws.com", self.account)}]})
            }
            "GetAccountSetting" => {
                json!({"name": "BLOB_MOUNTING", "value": if state.ways.mounting { "ENABLED" } else { "DISABLED" }})
            }
            "DescribeImages" => match state.repositories.get(named) {
                None => return Ok(None),
                Some(kept) if asked["imageIds"].is_array() => {
                    let tag = asked["imageIds"][0]["imageTag"]
                        .as_str()
                        .expect("images are asked for by tag");
                    json!({"imageDetails": [{"imageDigest": kept.tags.get(tag).ok_or("ImageNotFoundException")?, "imageTags": [tag]}]})
                }
                Some(kept) => self.images(named, kept, asked, &state.ways),
            },
            "DescribeImageScanFindings" => match state.repositories.get(named) {
                None => return Ok(None),
                Some(kept) => scans::page(kept, asked, state.ways.page)?,
            },
            "DescribeRepositories" if named.is_empty() => {
                let all: Vec<Value> = state
                    .repositories
                    .iter()
                    .map(|(name, kept)| self.described(name, kept))
                    .collect();
                json!({"repositories": all})
            }
            "CreateRepository" => {
                if state.repositories.contains_key(named) {
                    return Err("RepositoryAlreadyExistsException");
                }
                state.repositories.insert(
                    named.into(),
                    Kept {
                        settings: asked.clone(),
                        ..Kept::default()
                    },
                );
                json!({"repository": self.described(named, &state.repositories[named])})
            }
            _ => {
                let Some(kept) = state.repositories.get_mut(named) else {
                    return Ok(None);
                };
                match action {
                    "DescribeRepositories" => {
                        json!({"repositories": [self.described(named, kept)]})
                    }
                    "GetLifecyclePolicy" => {
                        json!({"lifecyclePolicyText": kept.lifecycle.clone().ok_or("LifecyclePolicyNotFoundException")?})
                    }
                    "GetRepositoryPolicy" => {
                        json!({"policyText": kept.policy.clone().ok_or("RepositoryPolicyNotFoundException")?})
                    }
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
        for key in [
            "imageTagMutability",
            "imageTagMutabilityExclusionFilters",
            "imageScanningConfiguration",
            "encryptionConfiguration",
        ] {
            if !kept.settings[key].is_null() {
                described[key] = kept.settings[key].clone();
            }
        }
        described
    }

    /// One page, newest digests in no order at all.
    fn images(&self, name: &str, kept: &Kept, asked: &Value, ways: &Ways) -> Value {
        let mut tags: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tag, digest) in ways.stale.get(name).unwrap_or(&kept.tags) {
            tags.entry(digest).or_default().push(tag);
        }
        if asked["filter"]["tagStatus"] == "ANY" {
            for digest in kept.images.keys() {
                tags.entry(digest).or_default();
            }
        }
        let from: usize = asked["nextToken"]
            .as_str()
            .map_or(0, |token| token.parse().expect("our own token"));
        let most = asked["maxResults"].as_u64().unwrap_or(100).min(1000) as usize;
        let most = if ways.page > 0 { ways.page } else { most };
        let detail = |(digest, tags): (&&str, &Vec<&str>)| {
            let status = if kept.archived.contains(*digest) {
                "ARCHIVED"
            } else {
                "ACTIVE"
            };
            let subject = kept.referrers.get(*digest).map(|(subject, _)| subject);
            json!({"registryId": self.account, "repositoryName": name, "imageDigest": digest, "imageTags": tags,
                "imagePushedAt": kept.images.get(*digest), "imageStatus": status, "subjectManifestDigest": subject})
        };
        let mut page: Vec<Value> = tags
            .iter()
            .rev()
            .skip(from)
            .take(most)
            .map(detail)
            .collect();
        let next = (from + page.len() < tags.len()).then(|| (from + page.len()).to_string());
        if let Some((tag, digest)) = ways
            .shows_again
            .as_ref()
            .filter(|(tag, _)| next.is_none() && kept.tags.contains_key(tag))
        {
            page.push(detail((&digest.as_str(), &vec![tag])));
        }
        match next {
            Some(next) => json!({"imageDetails": page, "nextToken": next}),
            None => json!({"imageDetails": page}),
        }
    }

    async fn layers(&self, repository: &str, asked: &Value) -> Value {
        let mut layers = Vec::new();
        let digests = asked["layerDigests"].as_array().expect("a list of digests");
        assert!(
            digests.len() <= 100,
            "BatchCheckLayerAvailability takes a hundred digests"
        );
        for digest in digests {
            let url = format!(
                "{}/v2/{repository}/blobs/{}",
                self.upstream,
                digest.as_str().expect("a digest")
            );
            let answer = self
                .http
                .head(url)
                .send()
                .await
                .expect("the registry answers");
            let size = answer
                .headers()
                .get(header::CONTENT_LENGTH)
                .and_then(|size| size.to_str().ok()?.parse::<u64>().ok());
            layers.push(match answer.status().is_success() {
                true => json!({"layerDigest": digest, "layerAvailability": "AVAILABLE", "layerSize": size}),
                false => json!({"layerDigest": digest, "layerAvailability": "UNAVAILABLE"}),
            });
        }
        json!({"layers": layers, "failures": []})
    }
}

/// The access key of a role's session says whose it is.
fn principal(headers: &HeaderMap) -> String {
    let text = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let key = text
        .split("Credential=")
        .nth(1)
        .and_then(|rest| rest.split('/').next())
        .unwrap_or_default();
    match key
        .strip_prefix("ASIA")
        .and_then(|hex| hex::decode(hex).ok())
    {
        Some(arn) => String::from_utf8(arn).expect("the ARN of a role"),
        None => format!("arn:aws:iam::{HOME}:user/builder"),
    }
}

pub(super) async fn sts(shared: &Shared, request: Request<Body>) -> Response {
    let caller = principal(request.headers());
    let form: BTreeMap<String, String> =
        url::form_urlencoded::parse(&bytes(request.into_body()).await)
            .into_owned()
            .collect();
    let account = |arn: &str| arn.split(':').nth(4).unwrap_or_default().to_owned();
    let body = match form.get("Action").map(String::as_str) {
        Some("GetCallerIdentity") => format!(
            "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult><Arn>{caller}</Arn><UserId>U</UserId><Account>{}</Account></GetCallerIdentityResult></GetCallerIdentityResponse>",
            account(&caller)
        ),
        Some("AssumeRole")
            if form["RoleArn"].contains("closed") && !shared.state().ways.opens_roles =>
        {
            let body = format!(
                "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>User: {caller} is not authorized to perform: sts:AssumeRole on resource: {}</Message></Error></ErrorResponse>",
                form["RoleArn"]
            );
            return reply(403, "text/xml", body);
        }
        Some("AssumeRole") => {
            let role = form["RoleArn"]
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .to_owned();
            let arn = format!(
                "arn:aws:sts::{}:assumed-role/{role}/{}",
                account(&form["RoleArn"]),
                form["RoleSessionName"]
            );
            let key = format!("ASIA{}", hex::encode(&arn));
            format!(
                "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><AssumedRoleUser><AssumedRoleId>A:s</AssumedRoleId><Arn>{arn}</Arn></AssumedRoleUser><Credentials><AccessKeyId>{key}</AccessKeyId><SecretAccessKey>secret-of-the-role</SecretAccessKey><SessionToken>token-of-the-session</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
            )
        }
        other => panic!("STS was asked for {other:?}"),
    };
    reply(200, "text/xml", body)
}
