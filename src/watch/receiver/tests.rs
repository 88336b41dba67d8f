//! Bodies as the vendors' documentation describes them; each test names its source.

use http::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AwsOrigin, Delivery, Handshake, Kind, MAX_PUSHES, Malformed, Push};

const DIGEST: &str = "sha256:7f5b2640fe6fb4f46592dfd3410c4a79dac4f89e4782432e0378abcd1234abcd";

fn read_with(
    kind: Kind,
    headers: &[(&'static str, &str)],
    body: &Value,
) -> Result<Delivery, Malformed> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, HeaderValue::from_str(value).unwrap());
    }
    kind.read(&map, body.to_string().as_bytes())
}

fn read(kind: Kind, body: &Value) -> Result<Delivery, Malformed> {
    read_with(kind, &[], body)
}

fn pushes(delivery: Result<Delivery, Malformed>) -> Vec<Push> {
    match delivery {
        Ok(Delivery::Pushes(pushes)) => pushes,
        other => panic!("no pushes: {other:?}"),
    }
}

/// Repository, tags, time and pusher of a delivery's only push.
fn only(
    delivery: Result<Delivery, Malformed>,
) -> (String, Vec<String>, Option<String>, Option<String>) {
    let mut pushes = pushes(delivery);
    assert_eq!(pushes.len(), 1);
    let push = pushes.remove(0);
    let tags = push.tags.iter().map(ToString::to_string).collect();
    let pushed = push.pushed.map(|at| at.to_string());
    (push.repositories[0].to_string(), tags, pushed, push.pusher)
}

fn expected(
    repository: &str,
    tags: &[&str],
    pushed: Option<&str>,
    pusher: Option<&str>,
) -> (String, Vec<String>, Option<String>, Option<String>) {
    (
        repository.to_owned(),
        tags.iter().map(ToString::to_string).collect(),
        pushed.map(str::to_owned),
        pusher.map(str::to_owned),
    )
}

/// distribution, docs/content/about/notifications.md.
#[test]
fn distribution_tells_manifests_from_blobs_and_pulls() {
    let event = |action: &str, media_type: &str, tag: Option<&str>| {
        json!({
            "id": "320678d8-ca14-430f-8bb6-4ca139cd83f7",
            "timestamp": "2026-03-09T14:44:26.402973972Z",
            "action": action,
            "target": {
                "mediaType": media_type,
                "size": 708, "length": 708, "digest": DIGEST,
                "repository": "library/hello-world", "tag": tag,
                "url": "http://192.168.100.227:5000/v2/library/hello-world/manifests/x",
            },
            "request": {"host": "192.168.100.227:5000", "method": "PUT"},
            "actor": {"name": "test-actor"},
            "source": {"addr": "xtal.local:5000"},
        })
    };
    let manifest = "application/vnd.docker.distribution.manifest.v2+json";
    let index = "application/vnd.oci.image.index.v1+json";
    let body = json!({"events": [
        event("push", "application/octet-stream", None),
        event("pull", manifest, Some("latest")),
        event("push", manifest, Some("latest")),
        event("push", index, None),
    ]});
    let pushes = pushes(read(Kind::Distribution, &body));
    assert_eq!(pushes.len(), 2);
    assert_eq!(pushes[0].repositories[0].as_str(), "library/hello-world");
    assert_eq!(pushes[0].tags[0].as_str(), "latest");
    assert_eq!(pushes[0].pusher.as_deref(), Some("test-actor"));
    assert_eq!(
        pushes[0].pushed.unwrap().to_string(),
        "2026-03-09T14:44:26.402973972Z"
    );
    assert!(pushes[1].tags.is_empty());

    let blobs = json!({"events": [event("push", "application/octet-stream", None)]});
    assert!(matches!(
        read(Kind::Distribution, &blobs),
        Ok(Delivery::Ignored(_))
    ));
}

/// zot, pkg/extensions/events; the Go SDK's default is binary mode.
#[test]
fn zot_speaks_both_modes_of_cloud_events() {
    let data = json!({
        "name": "team/app", "reference": "v1", "digest": DIGEST,
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "manifest": "{}",
        "actor": {"name": "ci"},
    });
    let binary = [
        ("ce-id", "1"),
        ("ce-type", "zotregistry.image.updated"),
        ("ce-source", "zotregistry.dev"),
        ("ce-time", "2026-11-21T19:45:02Z"),
        ("ce-specversion", "1.0"),
    ];
    let wanted = expected(
        "team/app",
        &["v1"],
        Some("2026-11-21T19:45:02Z"),
        Some("ci"),
    );
    assert_eq!(only(read_with(Kind::Zot, &binary, &data)), wanted);

    let structured = [(
        "content-type",
        "application/cloudevents+json; charset=utf-8",
    )];
    let event = json!({
        "specversion": "1.0", "id": "1", "source": "zotregistry.dev",
        "type": "zotregistry.image.updated", "time": "2026-11-21T19:45:02Z", "data": data,
    });
    assert_eq!(only(read_with(Kind::Zot, &structured, &event)), wanted);
    assert_eq!(read(Kind::Zot, &event), Err(Malformed::NoCloudEvent));
}

#[test]
fn a_reference_that_is_a_digest_is_a_push_without_a_tag() {
    let headers = [("ce-type", "zotregistry.image.updated")];
    let data = json!({"name": "team/app", "reference": DIGEST});
    let (_, tags, _, _) = only(read_with(Kind::Zot, &headers, &data));
    assert!(tags.is_empty());
}

/// Harbor, configure-webhooks; the digest in place of the tag: goharbor/harbor#11713.
#[test]
fn harbor_sends_its_own_shape_or_cloud_events() {
    let data = json!({
        "resources": [
            {"digest": DIGEST, "tag": "v2", "resource_url": "hub.example/test/debian:v2"},
            {"digest": DIGEST, "tag": DIGEST, "resource_url": "hub.example/test/debian"},
        ],
        "repository": {
            "date_created": 1586922308, "name": "debian", "namespace": "test",
            "repo_full_name": "test/debian", "repo_type": "private",
        },
    });
    let own = json!({
        "type": "PUSH_ARTIFACT", "occur_at": 1586922308, "operator": "admin", "event_data": data,
    });
    let wanted = expected(
        "test/debian",
        &["v2"],
        Some("2020-04-15T03:45:08Z"),
        Some("admin"),
    );
    assert_eq!(only(read(Kind::Harbor, &own)), wanted);

    let structured = [("content-type", "application/cloudevents+json")];
    let event = json!({
        "specversion": "1.0", "id": "1", "source": "/projects/1/webhook/policies/15",
        "type": "harbor.artifact.pushed", "datacontenttype": "application/json",
        "time": "2020-04-15T03:45:08Z", "operator": "admin", "data": data,
    });
    assert_eq!(only(read_with(Kind::Harbor, &structured, &event)), wanted);

    let scanned = json!({"type": "SCANNING_COMPLETED", "event_data": data});
    assert!(matches!(
        read(Kind::Harbor, &scanned),
        Ok(Delivery::Ignored(_))
    ));
}

/// Quay, notifications: a list today, an object of image ids before.
#[test]
fn quay_names_updated_tags_as_a_list_or_an_object() {
    for tags in [
        json!(["latest", "v1"]),
        json!({"latest": "245bca", "v1": "245bcb"}),
    ] {
        let body = json!({
            "name": "repository", "repository": "mynamespace/repository", "namespace": "mynamespace",
            "docker_url": "quay.example/mynamespace/repository",
            "homepage": "https://quay.example/repository/mynamespace/repository",
            "updated_tags": tags,
        });
        let wanted = expected("mynamespace/repository", &["latest", "v1"], None, None);
        assert_eq!(only(read(Kind::Quay, &body)), wanted);
    }
    let test = json!({"repository": "mynamespace/repository"});
    assert!(matches!(read(Kind::Quay, &test), Ok(Delivery::Ignored(_))));
}

/// Docker Hub, webhooks.
#[test]
fn docker_hub_names_tag_pusher_and_time() {
    let body = json!({
        "callback_url": "https://registry.example/u/svendowideit/testhook/hook/1/",
        "push_data": {"pushed_at": 1417566161, "pusher": "trustedbuilder", "tag": "latest", "images": []},
        "repository": {"name": "testhook", "namespace": "svendowideit", "repo_name": "svendowideit/testhook"},
    });
    let wanted = expected(
        "svendowideit/testhook",
        &["latest"],
        Some("2014-12-03T00:22:41Z"),
        Some("trustedbuilder"),
    );
    assert_eq!(only(read(Kind::Dockerhub, &body)), wanted);
}

/// GitHub, webhook events `package` and `registry_package`; the old shape: google/go-github#2033.
#[test]
fn ghcr_takes_both_events_both_actions_and_the_old_shape() {
    let package = |version: Value| {
        json!({
            "name": "Hello-Docker", "package_type": "CONTAINER",
            "owner": {"login": "Codertocat"}, "package_version": version,
        })
    };
    let now = package(json!({
        "version": DIGEST, "package_url": "ghcr.example/codertocat/hello-docker:latest",
        "updated_at": "2026-11-21T19:45:02Z",
        "container_metadata": {"tag": {"name": "latest", "digest": DIGEST}},
    }));
    let wanted = expected(
        "codertocat/hello-docker",
        &["latest"],
        Some("2026-11-21T19:45:02Z"),
        Some("Codertocat"),
    );
    for (event, key) in [
        ("package", "package"),
        ("registry_package", "registry_package"),
    ] {
        for action in ["published", "updated"] {
            let body = json!({"action": action, key: now, "sender": {"login": "Codertocat"}});
            let headers = [("x-github-event", event)];
            assert_eq!(only(read_with(Kind::Ghcr, &headers, &body)), wanted);
        }
    }
    let headers = [("x-github-event", "package")];
    let old = json!({"action": "published", "package": package(json!({"version": "v1", "name": DIGEST}))});
    let (repository, tags, _, _) = only(read_with(Kind::Ghcr, &headers, &old));
    assert_eq!(
        (&*repository, tags),
        ("codertocat/hello-docker", vec!["v1".to_owned()])
    );

    let trailing = json!({"action": "published", "package": package(json!({
        "package_url": "ghcr.example/codertocat/hello-docker:",
        "container_metadata": {"tag": {"name": ""}},
    }))});
    let (repository, tags, _, _) = only(read_with(Kind::Ghcr, &headers, &trailing));
    assert_eq!((&*repository, tags.len()), ("codertocat/hello-docker", 0));

    let ping = [("x-github-event", "ping")];
    let answer = read_with(
        Kind::Ghcr,
        &ping,
        &json!({"zen": "Keep it logically awesome."}),
    );
    assert_eq!(answer, Ok(Delivery::Handshake(Handshake::Ping)));
    let npm = json!({"action": "published", "package": {"name": "x", "package_type": "npm"}});
    assert!(matches!(
        read_with(Kind::Ghcr, &headers, &npm),
        Ok(Delivery::Ignored(_))
    ));
    assert!(matches!(read(Kind::Ghcr, &npm), Ok(Delivery::Ignored(_))));
}

/// Gitea, routers and services for package webhooks; Forgejo sends its own header as well.
#[test]
fn gitea_and_forgejo_name_owner_and_version() {
    let body = json!({
        "action": "created",
        "package": {
            "type": "container", "name": "App", "version": "v1",
            "owner": {"login": "Team", "username": "Team"},
            "created_at": "2026-11-21T19:45:02Z",
        },
        "sender": {"login": "alice", "username": "alice"},
    });
    let wanted = expected(
        "team/app",
        &["v1"],
        Some("2026-11-21T19:45:02Z"),
        Some("alice"),
    );
    for name in ["x-gitea-event", "x-forgejo-event"] {
        assert_eq!(
            only(read_with(Kind::Gitea, &[(name, "package")], &body)),
            wanted
        );
    }
    let deleted = json!({"action": "deleted", "package": {"type": "container", "name": "app"}});
    let answer = read_with(Kind::Gitea, &[("x-gitea-event", "package")], &deleted);
    assert!(matches!(answer, Ok(Delivery::Ignored(_))));
}

/// Azure, container-registry-webhook-reference.
#[test]
fn acr_webhooks_push_and_ping() {
    let body = json!({
        "id": "cb8c3971-9adc-488b-xxxx-43cbb4974ff5", "timestamp": "2017-11-17T16:52:01.343145347Z",
        "action": "push",
        "target": {
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json", "size": 524,
            "digest": DIGEST, "length": 524, "repository": "hello-world", "tag": "v1",
        },
        "request": {"id": "3cbb6949", "host": "myregistry.example", "method": "PUT", "useragent": "docker/17.09.0-ce"},
    });
    let wanted = expected(
        "hello-world",
        &["v1"],
        Some("2017-11-17T16:52:01.343145347Z"),
        None,
    );
    assert_eq!(only(read(Kind::Acr, &body)), wanted);
    let ping = read(Kind::Acr, &json!({"action": "ping"}));
    assert_eq!(ping, Ok(Delivery::Handshake(Handshake::Ping)));
    let deleted = read(
        Kind::Acr,
        &json!({"action": "delete", "target": {"repository": "hello-world"}}),
    );
    assert!(matches!(deleted, Ok(Delivery::Ignored(_))));
}

/// Azure, event-schema-container-registry and webhook validation.
#[test]
fn event_grid_sends_its_schema_or_cloud_events_and_validates() {
    let data = json!({
        "id": "31c51664", "timestamp": "2026-04-25T21:41:58.2240265Z", "action": "push",
        "target": {"repository": "aci-helloworld", "tag": "v1", "digest": DIGEST},
    });
    let grid = json!([{
        "topic": "/subscriptions/x", "subject": "aci-helloworld:v1",
        "eventType": "Microsoft.ContainerRegistry.ImagePushed", "eventTime": "2026-04-25T21:41:58Z", "data": data,
    }]);
    let wanted = expected(
        "aci-helloworld",
        &["v1"],
        Some("2026-04-25T21:41:58.2240265Z"),
        None,
    );
    assert_eq!(only(read(Kind::Acr, &grid)), wanted);

    let structured = [("content-type", "application/cloudevents+json")];
    let event = json!({
        "specversion": "1.0", "type": "Microsoft.ContainerRegistry.ImagePushed",
        "subject": "aci-helloworld:v1", "time": "2026-04-25T21:41:58Z", "data": data,
    });
    assert_eq!(only(read_with(Kind::Acr, &structured, &event)), wanted);

    let validation = json!([{
        "eventType": "Microsoft.EventGrid.SubscriptionValidationEvent",
        "data": {"validationCode": "512d38b6-c7b8-40c8-89fe-f46f9e9622b6"},
    }]);
    let code = "512d38b6-c7b8-40c8-89fe-f46f9e9622b6".to_owned();
    assert_eq!(
        read(Kind::Acr, &validation),
        Ok(Delivery::Handshake(Handshake::Validation(code)))
    );
}

/// Google, Artifact Registry notifications and Pub/Sub payload unwrapping.
#[test]
fn gar_arrives_wrapped_or_unwrapped() {
    use base64::Engine as _;
    let data = json!({
        "action": "INSERT",
        "digest": format!("us-docker.example/project/repo/image@{DIGEST}"),
        "tag": "us-docker.example/project/repo/image:v1",
    });
    let encoded = base64::engine::general_purpose::STANDARD.encode(data.to_string());
    let wrapped = json!({
        "message": {"data": encoded, "messageId": "136969346945", "publishTime": "2026-11-21T19:45:02Z"},
        "subscription": "projects/p/subscriptions/s",
    });
    let wanted = expected(
        "project/repo/image",
        &["v1"],
        Some("2026-11-21T19:45:02Z"),
        None,
    );
    assert_eq!(only(read(Kind::Gar, &wrapped)), wanted);
    let headers = [("x-goog-pubsub-publish-time", "2026-11-21T19:45:02Z")];
    assert_eq!(only(read_with(Kind::Gar, &headers, &data)), wanted);

    let untagged =
        json!({"action": "INSERT", "digest": format!("us-docker.example/p/r/image@{DIGEST}")});
    let (repository, tags, _, _) = only(read(Kind::Gar, &untagged));
    assert_eq!((&*repository, tags.len()), ("p/r/image", 0));
    let deleted = json!({"action": "DELETE", "tag": "us-docker.example/p/r/image:v1"});
    assert!(matches!(
        read(Kind::Gar, &deleted),
        Ok(Delivery::Ignored(_))
    ));
    let broken = json!({"message": {"data": "%%%"}});
    assert_eq!(
        read(Kind::Gar, &broken),
        Err(Malformed::Base64("message.data"))
    );
}

/// JFrog, webhooks of the domain docker.
#[test]
fn artifactory_names_the_local_repository() {
    let body = json!({
        "domain": "docker", "event_type": "pushed",
        "data": {
            "repo_key": "docker-local", "event_type": "pushed", "path": "library/ubuntu/latest/list.manifest.json",
            "name": "list.manifest.json", "sha256": "35c4a2c15539c6c1e4e5fa4e554dac323ad0107d8eb5c582d6ff386b383b7dce",
            "size": 1206, "image_name": "library/ubuntu", "tag": "latest", "image_type": "docker",
        },
        "subscription_key": "test", "jpd_origin": "https://example.jfrog.example", "source": "jfrog/dummy",
    });
    let wanted = expected("docker-local/library/ubuntu", &["latest"], None, None);
    assert_eq!(only(read(Kind::Artifactory, &body)), wanted);
    let deleted = json!({"domain": "docker", "event_type": "deleted", "data": {}});
    assert!(matches!(
        read(Kind::Artifactory, &deleted),
        Ok(Delivery::Ignored(_))
    ));
}

/// Sonatype, working with webhooks.
#[test]
fn nexus_may_be_addressed_with_or_without_the_repository() {
    let body = json!({
        "timestamp": "2026-11-10T23:57:49.664+00:00", "nodeId": "52905B51", "initiator": "admin/127.0.0.1",
        "repositoryName": "docker-hosted", "action": "CREATED",
        "component": {
            "id": "08909bf0c86cf6c9600aade89e1c5e25", "componentId": "ZG9ja2Vy", "format": "docker",
            "group": null, "name": "team/app", "version": "v1",
        },
    });
    let pushes = pushes(read(Kind::Nexus, &body));
    let names: Vec<&str> = pushes[0]
        .repositories
        .iter()
        .map(|name| name.as_str())
        .collect();
    assert_eq!(names, ["team/app", "docker-hosted/team/app"]);
    assert_eq!(pushes[0].tags[0].as_str(), "v1");
    let maven = json!({"action": "CREATED", "repositoryName": "m", "component": {"format": "maven2", "name": "x"}});
    assert!(matches!(
        read(Kind::Nexus, &maven),
        Ok(Delivery::Ignored(_))
    ));
}

/// AWS, ECR events and EventBridge; the sample of the user guide.
#[test]
fn ecr_events_arrive_plain_in_an_envelope_or_transformed() {
    let event = json!({
        "version": "0", "id": "13cde686-328b-6117-af20-0e5566167482", "detail-type": "ECR Image Action",
        "source": "aws.ecr", "account": "123456789012", "time": "2019-11-16T01:54:34Z", "region": "us-west-2",
        "resources": [],
        "detail": {
            "result": "SUCCESS", "repository-name": "my-repository-name", "image-digest": DIGEST,
            "action-type": "PUSH", "image-tag": "latest",
        },
    });
    let envelope = json!({
        "Type": "Notification", "MessageId": "1", "TopicArn": "arn:aws:sns:us-west-2:123456789012:t",
        "Message": event.to_string(), "Timestamp": "2019-11-16T01:54:35Z",
    });
    for body in [&event, &envelope] {
        let pushes = pushes(read(Kind::Ecr, body));
        assert_eq!(pushes[0].repositories[0].as_str(), "my-repository-name");
        assert_eq!(pushes[0].tags[0].as_str(), "latest");
        assert_eq!(
            pushes[0].pushed,
            Some("2019-11-16T01:54:34Z".parse::<Timestamp>().unwrap())
        );
        let aws = AwsOrigin {
            account: "123456789012".into(),
            region: "us-west-2".into(),
        };
        assert_eq!(pushes[0].aws, Some(aws));
    }
    let transformed = json!({
        "specversion": "1.0", "type": "com.amazon.ecr.image.push",
        "source": "urn:aws:ecr:us-west-2:123456789012:repository/my-repository-name",
        "time": "2019-11-16T01:54:34Z",
        "data": {
            "repositoryName": "my-repository-name", "imageTag": "latest", "imageDigest": DIGEST,
            "registryId": "123456789012",
        },
    });
    let structured = [("content-type", "application/cloudevents+json")];
    let enclosed = json!({"Type": "Notification", "Message": transformed.to_string()});
    for found in [
        read_with(Kind::Ecr, &structured, &transformed),
        // A queue's message has no headers.
        read(Kind::Ecr, &transformed),
        read(Kind::Ecr, &enclosed),
    ] {
        let pushes = pushes(found);
        assert_eq!(pushes[0].tags[0].as_str(), "latest");
        assert_eq!(pushes[0].aws.as_ref().unwrap().region, "us-west-2");
    }
}

/// Whether the push of a referrer raises `ECR Referrer Action` is not documented: both readings
/// work.
#[test]
fn ecr_pushes_restored_images_referrers_and_scans_are_reasons_to_look() {
    let event = |kind: &str, detail: Value| {
        json!({
            "detail-type": kind, "account": "123456789012", "region": "us-west-2",
            "time": "2026-11-21T19:45:02Z", "detail": detail,
        })
    };
    let looks = [
        event(
            "ECR Image Action",
            json!({"result": "SUCCESS", "repository-name": "app", "action-type": "PUSH", "image-tag": ""}),
        ),
        event(
            "ECR Referrer Action",
            json!({"result": "SUCCESS", "repository-name": "app", "action-type": "PUSH"}),
        ),
        event(
            "ECR Image Action",
            json!({
                "repository-name": "app", "action-type": "UPDATE_STORAGE_CLASS", "target-storage-class": "STANDARD",
            }),
        ),
        event(
            "ECR Image Scan",
            json!({"scan-status": "COMPLETE", "repository-name": "app", "image-tags": []}),
        ),
        event(
            "Inspector2 Scan",
            json!({
                "scan-status": "INITIAL_SCAN_COMPLETE",
                "repository-name": "arn:aws:ecr:us-west-2:123456789012:repository/app",
            }),
        ),
    ];
    for body in &looks {
        let (repository, tags, _, _) = only(read(Kind::Ecr, body));
        assert_eq!((&*repository, tags.len()), ("app", 0), "{body}");
    }
    let quiet = [
        event(
            "ECR Image Action",
            json!({"result": "FAILURE", "repository-name": "app", "action-type": "PUSH"}),
        ),
        event(
            "ECR Image Action",
            json!({"result": "SUCCESS", "repository-name": "app", "action-type": "DELETE"}),
        ),
        event(
            "ECR Image Action",
            json!({
                "repository-name": "app", "action-type": "UPDATE_STORAGE_CLASS", "target-storage-class": "ARCHIVE",
            }),
        ),
        event(
            "ECR Replication Action",
            json!({"repository-name": "app", "action-type": "REPLICATE"}),
        ),
    ];
    for body in &quiet {
        assert!(
            matches!(read(Kind::Ecr, body), Ok(Delivery::Ignored(_))),
            "{body}"
        );
    }
}

#[test]
fn a_script_names_one_tag_or_several() {
    let one = json!({"repository": "team/app", "tag": "v1"});
    assert_eq!(
        only(read(Kind::Generic, &one)),
        expected("team/app", &["v1"], None, None)
    );
    let more = json!({
        "repository": "team/app", "tags": ["v1", "latest"],
        "pushed_at": "2026-11-21T19:45:02Z", "pusher": "alice\u{1b}[31m",
    });
    let wanted = expected(
        "team/app",
        &["v1", "latest"],
        Some("2026-11-21T19:45:02Z"),
        Some("alice[31m"),
    );
    assert_eq!(only(read(Kind::Generic, &more)), wanted);
    assert_eq!(
        read(Kind::Generic, &json!({"tag": "v1"})),
        Err(Malformed::Missing("repository"))
    );
}

#[test]
fn names_that_no_registry_can_have_are_refused() {
    for name in [
        "",
        "../secrets",
        "Team/App",
        "team//app",
        "team/app\n",
        "team app",
    ] {
        let body = json!({"repository": name, "tag": "v1"});
        assert_eq!(
            read(Kind::Generic, &body),
            Err(Malformed::Name("repository")),
            "{name:?}"
        );
    }
    for tag in [".hidden", "v1\r\nx", "a/b", "ü", &"t".repeat(129)] {
        let body = json!({"repository": "team/app", "tag": tag});
        assert_eq!(
            read(Kind::Generic, &body),
            Err(Malformed::Name("tag")),
            "{tag:?}"
        );
    }
}

#[test]
fn a_body_names_a_bounded_number_of_pushes() {
    let tags: Vec<String> = (0..=MAX_PUSHES).map(|n| format!("v{n}")).collect();
    let body = json!({"repository": "team/app", "tags": tags});
    assert_eq!(read(Kind::Generic, &body), Err(Malformed::TooMany));
    let event = json!({
        "action": "push",
        "target": {"mediaType": "application/vnd.oci.image.index.v1+json", "repository": "app", "tag": "v1"},
    });
    let body = json!({"events": vec![event; MAX_PUSHES + 1]});
    assert_eq!(read(Kind::Distribution, &body), Err(Malformed::TooMany));
}

#[test]
fn no_kind_panics_on_what_is_not_its_json() {
    let deep = "[".repeat(100_000);
    let bodies = [
        "",
        "{",
        "null",
        "[]",
        "{}",
        "7",
        "\"x\"",
        "{\"events\":7}",
        "\u{feff}{}",
        &deep,
    ];
    for kind in Kind::ALL {
        for body in bodies {
            let read = kind.read(&HeaderMap::new(), body.as_bytes());
            assert!(
                !matches!(read, Ok(Delivery::Pushes(_))),
                "{kind}: {body:.20}"
            );
        }
    }
}

#[test]
fn kinds_have_the_names_of_the_config() {
    for kind in Kind::ALL {
        assert_eq!(kind.name().parse(), Ok(kind));
    }
    assert!("ECR".parse::<Kind>().is_err());
}

mod secrets {
    use aws_lc_rs::hmac;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use http::{HeaderMap, HeaderValue};
    use jiff::{SignedDuration, Timestamp};

    use super::super::Kind;
    use super::super::secret::{FileError, Refused, Secrets, Unverified};

    const SECRET: &str = "correct horse battery staple";
    const BODY: &[u8] = br#"{"repository":"team/app","tag":"v1"}"#;

    fn now() -> Timestamp {
        "2026-11-21T19:45:02Z".parse().unwrap()
    }

    fn check(
        kind: Kind,
        headers: &[(&'static str, &str)],
        query: Option<&str>,
        body: &[u8],
    ) -> Result<(), Refused> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_str(value).unwrap());
        }
        let delivery = Unverified {
            headers: &map,
            query,
            body,
            arrived: now(),
        };
        Secrets::parse(SECRET).unwrap().check(kind, delivery)
    }

    fn sign(algorithm: hmac::Algorithm, secret: &[u8], message: &[u8]) -> Vec<u8> {
        hmac::sign(&hmac::Key::new(algorithm, secret), message)
            .as_ref()
            .to_vec()
    }

    fn sha256() -> String {
        hex::encode(sign(hmac::HMAC_SHA256, SECRET.as_bytes(), BODY))
    }

    /// Every header that a kind signs with, right.
    fn signatures() -> Vec<(Kind, &'static str, String)> {
        let sha1 = hex::encode(sign(
            hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            SECRET.as_bytes(),
            BODY,
        ));
        let prefixed = format!("sha256={}", sha256());
        vec![
            (Kind::Ghcr, "x-hub-signature-256", prefixed.clone()),
            (Kind::Gitea, "x-gitea-signature", sha256()),
            (Kind::Gitea, "x-forgejo-signature", sha256()),
            (Kind::Gitea, "x-hub-signature-256", prefixed.clone()),
            (Kind::Nexus, "x-nexus-webhook-signature", sha1),
            (Kind::Artifactory, "x-jfrog-event-auth", sha256()),
            (Kind::Generic, "x-signature", prefixed),
        ]
    }

    #[test]
    fn a_signature_holds_for_its_body_alone() {
        for (kind, name, signature) in signatures() {
            assert_eq!(
                check(kind, &[(name, &signature)], None, BODY),
                Ok(()),
                "{kind} {name}"
            );
            let other = check(kind, &[(name, &signature)], None, b"{}");
            assert_eq!(other, Err(Refused::Wrong), "{kind} {name}: another body");
            let truncated = &signature[..signature.len() - 2];
            let cut = check(kind, &[(name, truncated)], None, BODY);
            assert_eq!(cut, Err(Refused::Wrong), "{kind} {name}: cut");
            let empty = check(kind, &[(name, "sha256=")], None, BODY);
            assert_eq!(empty, Err(Refused::Wrong), "{kind} {name}: empty");
        }
    }

    #[test]
    fn a_kind_that_signs_takes_no_bare_secret() {
        let bearer = format!("Bearer {SECRET}");
        for kind in [Kind::Ghcr, Kind::Gitea, Kind::Nexus, Kind::Generic] {
            let shown = [("authorization", &*bearer), ("x-webhook-secret", SECRET)];
            assert_eq!(
                check(kind, &shown, Some("secret=x"), BODY),
                Err(Refused::Missing),
                "{kind}"
            );
        }
    }

    #[test]
    fn the_others_take_the_secret_from_a_header() {
        let basic = format!("Basic {}", STANDARD.encode(format!("anyone:{SECRET}")));
        let bearer = format!("bearer {SECRET}");
        for kind in [
            Kind::Distribution,
            Kind::Zot,
            Kind::Harbor,
            Kind::Quay,
            Kind::Dockerhub,
            Kind::Acr,
            Kind::Ecr,
        ] {
            for header in [
                ("authorization", SECRET),
                ("authorization", &*bearer),
                ("authorization", &*basic),
                ("x-webhook-secret", SECRET),
                ("x-jfrog-event-auth", SECRET),
            ] {
                assert_eq!(
                    check(kind, &[header], None, BODY),
                    Ok(()),
                    "{kind} {header:?}"
                );
            }
            let wrong = check(kind, &[("authorization", "Bearer other")], None, BODY);
            assert_eq!(wrong, Err(Refused::Wrong), "{kind}");
            assert_eq!(
                check(kind, &[], None, BODY),
                Err(Refused::Missing),
                "{kind}"
            );
        }
        assert_eq!(
            check(
                Kind::Artifactory,
                &[("x-jfrog-event-auth", SECRET)],
                None,
                BODY
            ),
            Ok(())
        );
    }

    #[test]
    fn only_senders_without_headers_may_put_it_into_the_url() {
        let query = Some("a=b&secret=correct+horse%20battery+staple");
        for kind in [Kind::Quay, Kind::Dockerhub, Kind::Acr, Kind::Ecr] {
            assert_eq!(check(kind, &[], query, BODY), Ok(()), "{kind}");
            assert_eq!(
                check(kind, &[], Some("secret="), BODY),
                Err(Refused::Wrong),
                "{kind}"
            );
        }
        for kind in [
            Kind::Distribution,
            Kind::Zot,
            Kind::Harbor,
            Kind::Generic,
            Kind::Ghcr,
            Kind::Artifactory,
        ] {
            assert_eq!(
                check(kind, &[], query, BODY),
                Err(Refused::Missing),
                "{kind}"
            );
        }
    }

    /// Standard Webhooks: the signature covers id and time, and old deliveries are refused.
    #[test]
    fn standard_webhooks_are_bound_to_their_time() {
        let key = b"0123456789abcdef01234567";
        let secrets = Secrets::parse(&format!("whsec_{}", STANDARD.encode(key))).unwrap();
        let check = |at: Timestamp, id: &str, signed_id: &str| {
            let message = [format!("{signed_id}.{}.", at.as_second()).as_bytes(), BODY].concat();
            let signature = STANDARD.encode(sign(hmac::HMAC_SHA256, key, &message));
            let mut headers = HeaderMap::new();
            headers.insert("webhook-id", HeaderValue::from_str(id).unwrap());
            headers.insert("webhook-timestamp", HeaderValue::from(at.as_second()));
            let value = format!("v1,AAAA v1,{signature}");
            headers.insert("webhook-signature", HeaderValue::from_str(&value).unwrap());
            let delivery = Unverified {
                headers: &headers,
                query: None,
                body: BODY,
                arrived: now(),
            };
            secrets.check(Kind::Generic, delivery)
        };
        assert_eq!(check(now(), "msg_1", "msg_1"), Ok(()));
        assert_eq!(check(now(), "msg_2", "msg_1"), Err(Refused::Wrong));
        let minutes = SignedDuration::from_mins;
        assert_eq!(check(now() - minutes(4), "msg_1", "msg_1"), Ok(()));
        assert_eq!(
            check(now() - minutes(6), "msg_1", "msg_1"),
            Err(Refused::Stale)
        );
        assert_eq!(
            check(now() + minutes(6), "msg_1", "msg_1"),
            Err(Refused::Stale)
        );
    }

    #[test]
    fn two_lines_of_the_file_are_valid_at_once() {
        let secrets = Secrets::parse("new\n\n  old  \n").unwrap();
        for (secret, expected) in [
            ("new", Ok(())),
            ("old", Ok(())),
            ("other", Err(Refused::Wrong)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("x-webhook-secret", HeaderValue::from_static(secret));
            let delivery = Unverified {
                headers: &headers,
                query: None,
                body: BODY,
                arrived: now(),
            };
            assert_eq!(secrets.check(Kind::Zot, delivery), expected, "{secret}");
        }
        assert!(matches!(Secrets::parse(" \n"), Err(FileError::Empty)));
        assert!(matches!(Secrets::parse("a\nb\nc"), Err(FileError::TooMany)));
        assert_eq!(format!("{secrets:?}"), "Secrets(2)");
    }
}
