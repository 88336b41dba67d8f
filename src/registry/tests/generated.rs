//! The client against peers that answer anything: generated statuses, headers and bodies, judged by
//! plain rules written here.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::strategy::Union;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::*;
use crate::endpoint::{Destination as _, Put, Source as _};
use crate::oci::Tag;

const CODES_OF_CONTENT: [&str; 4] = [
    "NAME_UNKNOWN",
    "MANIFEST_UNKNOWN",
    "MANIFEST_INVALID",
    "DIGEST_INVALID",
];
const OTHER_CODES: [&str; 4] = ["UNSUPPORTED", "UNKNOWN", "DENIED", "TOOMANYREQUESTS"];

/// What the peer says next.
#[derive(Clone, Debug)]
struct Answered {
    status: u16,
    media_type: Option<&'static str>,
    /// `Docker-Content-Digest`: of the body, of something else, or not one.
    claim: Claim,
    link: Option<&'static str>,
    body: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    None,
    True,
    False,
    Garbage,
}

impl Answered {
    fn response(&self) -> Response<Answer> {
        let claim = match self.claim {
            Claim::None => None,
            Claim::True => Some(Digest::sha256(&self.body).to_string()),
            Claim::False => Some(Digest::sha256(b"something else").to_string()),
            Claim::Garbage => Some("sha256:not-a-digest".into()),
        };
        let mut headers = Vec::new();
        headers.extend(self.media_type.map(|value| ("content-type", value)));
        headers.extend(self.link.map(|value| ("link", value)));
        headers.extend(
            claim
                .as_deref()
                .map(|value| ("docker-content-digest", value)),
        );
        answer(self.status, &headers, self.body.clone())
    }

    fn document(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether it says of a PUT that it was done.
    fn is_done(&self) -> bool {
        [200, 201, 204].contains(&self.status)
    }
}

fn entry(content: &str) -> Value {
    json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::sha256(content.as_bytes()), "size": content.len()})
}

/// Documents: right ones, and right ones with something else in them.
fn documents() -> impl Strategy<Value = Value> {
    let fields = [
        "config",
        "layers",
        "manifests",
        "blobs",
        "mediaType",
        "schemaVersion",
        "Layers",
        "fsLayers",
        "subject",
        "tags",
        "x",
    ];
    let values = vec![
        json!(null),
        json!([]),
        json!([entry("a"), entry("b")]),
        entry("c"),
        json!("v1"),
        json!(["v1", "not a tag", "v2"]),
        json!(2),
        json!(1),
        json!(media_type::OCI_MANIFEST),
        json!(media_type::OCI_INDEX),
        json!([{"digest": "blake3:00", "size": 1}]),
        json!([{"digest": "sha256:x", "size": -1}]),
    ];
    let image = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": entry("c"), "layers": [entry("l")]});
    let index =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry("m")]});
    let bases = vec![
        image,
        index,
        json!({"tags": ["v1", "v2"]}),
        json!({"a": "b"}),
        json!({}),
    ];
    let changes = proptest::collection::vec(
        (
            prop::sample::select(fields.to_vec()),
            prop::sample::select(values),
        ),
        0..3,
    );
    (prop::sample::select(bases), changes).prop_map(|(mut document, changes)| {
        for (field, value) in changes {
            document[field] = value;
        }
        document
    })
}

fn errors() -> impl Strategy<Value = Value> {
    let codes = [&CODES_OF_CONTENT[..], &OTHER_CODES[..]].concat();
    prop::sample::select(codes)
        .prop_map(|code| json!({"errors": [{"code": code, "message": "no"}]}))
}

fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let text = |value: Value| value.to_string().into_bytes();
    Union::new_weighted(vec![
        (8, documents().prop_map(text).boxed()),
        (3, errors().prop_map(text).boxed()),
        (1, Just(Vec::new()).boxed()),
        (1, Just(b"<!doctype html><html></html>".to_vec()).boxed()),
        (1, Just(b"404 page not found".to_vec()).boxed()),
        (1, proptest::collection::vec(any::<u8>(), 0..64).boxed()),
    ])
}

fn any_answer() -> impl Strategy<Value = Answered> {
    let refused = vec![
        201, 202, 204, 206, 400, 403, 404, 404, 405, 410, 412, 416, 500, 501, 503,
    ];
    let statuses = prop_oneof![Just(200), prop::sample::select(refused)];
    let types = vec![
        None,
        None,
        None,
        Some(media_type::OCI_MANIFEST),
        Some(media_type::OCI_INDEX),
        Some(media_type::DOCKER_MANIFEST),
        Some("application/json"),
        Some("text/html"),
    ];
    let claims = vec![
        Claim::None,
        Claim::None,
        Claim::None,
        Claim::True,
        Claim::True,
        Claim::False,
        Claim::Garbage,
    ];
    let links = vec![
        None,
        None,
        Some("</v2/app/next?page=2>; rel=\"next\""),
        Some("<https://elsewhere.example/v2/app>; rel=\"next\""),
        Some("<::::>; rel=\"next\""),
    ];
    let any_of = (
        statuses,
        prop::sample::select(types),
        prop::sample::select(claims),
        prop::sample::select(links),
        bodies(),
    );
    any_of.prop_map(|(status, media_type, claim, link, body)| Answered {
        status,
        media_type,
        claim,
        link,
        body,
    })
}

/// Runs `check` against a peer that says each generated thing, with a client that has not talked to
/// it before.
fn against<T: std::fmt::Debug>(
    cases: impl Strategy<Value = T>,
    check: impl AsyncFn(&Repository, &dyn Fn(Answered), T) -> Result<(), TestCaseError>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let next = Arc::new(Mutex::new(None::<Answered>));
    let say = next.clone();
    let shown = next.clone();
    let server = runtime.block_on(Server::start(move |_| {
        shown
            .lock()
            .unwrap()
            .clone()
            .expect("an answer is set")
            .response()
    }));
    let mut runner = TestRunner::new(Config {
        cases: 1000,
        failure_persistence: None,
        ..Config::default()
    });
    let run = runner.run(&cases, |case| {
        let repository = server.repository();
        let say = |any_answer| *say.lock().unwrap() = Some(any_answer);
        runtime.block_on(check(&repository, &say, case))
    });
    run.unwrap();
}

/// An image has a config and no list of manifests, an index such a list and nothing else; neither
/// has a field in another case.
fn may_be_carried(document: &Value) -> bool {
    let has = |field: &str| !document[field].is_null();
    let is_image = has("config") && !has("manifests");
    let is_index = document.get("manifests").is_some() && !has("config") && !has("layers");
    (is_image || is_index) && document.get("Layers").is_none() && !has("fsLayers")
}

#[test]
fn a_manifest_that_is_read_is_an_image_with_the_digest_that_was_asked_for() {
    let mut read = BTreeSet::new();
    let noted = Mutex::new(&mut read);
    against(
        (any_answer(), any::<bool>()),
        async |repository, say, (any_answer, by_digest)| {
            say(any_answer.clone());
            let target: Target = if by_digest {
                Digest::sha256(&any_answer.body).into()
            } else {
                "v1".parse::<Tag>().unwrap().into()
            };
            match repository.manifest(&target).await {
                Ok(Some(manifest)) => {
                    prop_assert_eq!(any_answer.status, 200);
                    prop_assert_eq!(&manifest.bytes[..], &any_answer.body[..]);
                    prop_assert_eq!(manifest.digest, Digest::sha256(&any_answer.body));
                    prop_assert!(
                        matches!(any_answer.claim, Claim::None | Claim::True),
                        "{:?}",
                        any_answer.claim
                    );
                    prop_assert!(
                        may_be_carried(&any_answer.document()),
                        "{}",
                        any_answer.document()
                    );
                    noted.lock().unwrap().insert(manifest.children.is_empty());
                }
                Ok(None) => prop_assert_eq!(any_answer.status, 404, "only 404 means absent"),
                Err(_) => {}
            }
            Ok(())
        },
    );
    assert_eq!(
        read.len(),
        2,
        "images and indexes were among what was generated"
    );
}

#[test]
fn a_manifest_of_another_digest_is_never_read() {
    against(any_answer(), async |repository, say, any_answer| {
        say(any_answer.clone());
        let other = Digest::sha256(b"what was asked for");
        prop_assert!(!matches!(
            repository.manifest(&other.into()).await,
            Ok(Some(_))
        ));
        Ok(())
    });
}

#[test]
fn a_list_of_tags_is_one_only_when_the_registry_says_so() {
    against(any_answer(), async |repository, say, any_answer| {
        say(any_answer.clone());
        match repository.tags(None).await {
            Ok(Some(page)) => {
                prop_assert!(any_answer.is_success());
                let listed = any_answer.document()["tags"].as_array().map_or(0, Vec::len);
                prop_assert_eq!(page.entries.len() + page.invalid, listed);
                prop_assert!(
                    page.next
                        .is_none_or(|next| next.0.starts_with("http://127.0.0.1:")),
                    "a page of another host"
                );
            }
            Ok(None) => prop_assert_eq!(any_answer.status, 404),
            Err(_) => {}
        }
        Ok(())
    });
}

#[test]
fn whether_there_is_an_endpoint_is_learnt_from_answers_about_it() {
    against(
        proptest::collection::vec(any_answer(), 1..5),
        async |repository, say, answers| {
            let mut has_listed = false;
            let mut may_be_missing = false;
            for any_answer in answers {
                say(any_answer.clone());
                let listed = repository
                    .referrers(&Digest::sha256(b"subject"), None)
                    .await;
                let codes = String::from_utf8_lossy(&any_answer.body).into_owned();
                let is_of_content = CODES_OF_CONTENT.iter().any(|code| codes.contains(code));
                match &listed {
                    Ok(Some(page)) => {
                        prop_assert!(any_answer.is_success());
                        prop_assert!(page.entries.len() <= crate::oci::manifest::MAX_ENTRIES);
                        has_listed = true;
                    }
                    Ok(None) if !may_be_missing || has_listed => {
                        prop_assert!(
                            matches!(any_answer.status, 400 | 404 | 405 | 501),
                            "{} is no answer about a list",
                            any_answer.status
                        );
                        may_be_missing |= !is_of_content
                            && !has_listed
                            && (any_answer.status > 404 || !any_answer.body.is_empty());
                    }
                    Ok(None) | Err(_) => {}
                }
                match repository.lists_referrers() {
                    Some(true) => prop_assert!(has_listed, "nothing was listed"),
                    Some(false) => prop_assert!(
                        may_be_missing && !has_listed,
                        "no answer spoke of the endpoint"
                    ),
                    None => prop_assert!(!has_listed),
                }
            }
            Ok(())
        },
    );
}

#[test]
fn a_manifest_is_written_only_by_an_answer_that_says_so() {
    let document =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry("m")]});
    let manifest = crate::oci::Manifest::parse(
        document.to_string().into(),
        None,
        crate::oci::Algorithm::Sha256,
    )
    .expect("an index");
    against(any_answer(), async |repository, say, any_answer| {
        say(any_answer.clone());
        match repository
            .put_manifest(&manifest.digest.into(), &manifest)
            .await
        {
            Ok(Put::Accepted { .. }) => {
                prop_assert!(
                    any_answer.is_done()
                        && matches!(any_answer.claim, Claim::None | Claim::True | Claim::False)
                )
            }
            Ok(Put::Missing(missing)) => {
                prop_assert!(!any_answer.is_success() && !missing.contains(&manifest.digest))
            }
            Ok(Put::Immutable) => prop_assert!(false, "a digest is never immutable"),
            Err(fault) => prop_assert!(
                !any_answer.is_done() || any_answer.claim != Claim::None,
                "{fault}"
            ),
        }
        Ok(())
    });
}
