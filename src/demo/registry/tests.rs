//! The embedded registry, through its port.

use reqwest::Client;

use super::*;
use crate::demo::image::Sample;

const CAPACITY: u64 = 16 << 20;

struct Door {
    registry: Registry,
    client: Client,
}

impl Door {
    async fn open() -> Door {
        Door {
            registry: Registry::start(CAPACITY).await.unwrap(),
            client: Client::new(),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> reqwest::Response {
        let mut request = self
            .client
            .request(method, self.registry.url() + path)
            .body(body.to_vec());
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    async fn begin(&self, repository: &str) -> String {
        let response = self
            .send(
                Method::POST,
                &format!("/v2/{repository}/blobs/uploads/"),
                &[],
                b"",
            )
            .await;
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        field(&response, "location")
    }

    async fn upload(&self, repository: &str, content: &[u8]) -> Digest {
        let location = self.begin(repository).await;
        let digest = Digest::sha256(content);
        let response = self
            .send(
                Method::PUT,
                &format!("{location}?digest={digest}"),
                &[],
                content,
            )
            .await;
        assert_eq!(response.status(), StatusCode::CREATED);
        digest
    }
}

fn field(response: &reqwest::Response, name: &str) -> String {
    response.headers()[name].to_str().unwrap().to_owned()
}

async fn code(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    (
        status,
        body["errors"][0]["code"].as_str().unwrap().to_owned(),
    )
}

#[tokio::test]
async fn an_uploaded_blob_comes_back_whole_and_in_ranges() {
    let door = Door::open().await;
    assert_eq!(
        door.send(Method::GET, "/v2/", &[], b"").await.status(),
        StatusCode::OK
    );
    let digest = door.upload("team/app", b"0123456789").await;
    let path = format!("/v2/team/app/blobs/{digest}");
    let head = door.send(Method::HEAD, &path, &[], b"").await;
    assert_eq!(
        (head.status(), field(&head, "content-length")),
        (StatusCode::OK, "10".into())
    );
    assert_eq!(
        door.send(Method::GET, &path, &[], b"")
            .await
            .bytes()
            .await
            .unwrap(),
        "0123456789"
    );
    for (range, content_range, content) in [
        ("bytes=4-", "bytes 4-9/10", "456789"),
        ("bytes=2-3", "bytes 2-3/10", "23"),
        ("bytes=-2", "bytes 8-9/10", "89"),
    ] {
        let part = door
            .send(Method::GET, &path, &[("range", range)], b"")
            .await;
        assert_eq!(
            (part.status(), field(&part, "content-range").as_str()),
            (StatusCode::PARTIAL_CONTENT, content_range)
        );
        assert_eq!(part.bytes().await.unwrap(), content);
    }
    let outside = door
        .send(Method::GET, &path, &[("range", "bytes=10-")], b"")
        .await;
    assert_eq!(
        (outside.status().as_u16(), field(&outside, "content-range")),
        (416, "bytes */10".into())
    );
    assert_eq!(
        code(
            door.send(Method::GET, &format!("/v2/other/blobs/{digest}"), &[], b"")
                .await
        )
        .await
        .1,
        "BLOB_UNKNOWN"
    );
}

#[tokio::test]
async fn a_chunked_upload_tells_its_true_end() {
    let door = Door::open().await;
    let location = door.begin("app").await;
    let first = door
        .send(
            Method::PATCH,
            &location,
            &[("content-range", "0-3")],
            b"0123",
        )
        .await;
    assert_eq!(
        (first.status(), field(&first, "range").as_str()),
        (StatusCode::ACCEPTED, "0-3")
    );
    let misplaced = door
        .send(
            Method::PATCH,
            &location,
            &[("content-range", "2-5")],
            b"2345",
        )
        .await;
    assert_eq!(
        (
            misplaced.status().as_u16(),
            field(&misplaced, "range").as_str()
        ),
        (416, "0-3")
    );
    let state = door.send(Method::GET, &location, &[], b"").await;
    assert_eq!(
        (state.status(), field(&state, "range").as_str()),
        (StatusCode::NO_CONTENT, "0-3")
    );
    let digest = Digest::sha256(b"01234567");
    let closing = format!("{location}?digest={digest}");
    let closed = door
        .send(Method::PUT, &closing, &[("content-range", "4-7")], b"4567")
        .await;
    assert_eq!(
        (closed.status(), field(&closed, "docker-content-digest")),
        (StatusCode::CREATED, digest.to_string())
    );
    assert_eq!(
        code(door.send(Method::GET, &location, &[], b"").await).await,
        (404, "BLOB_UPLOAD_UNKNOWN".into())
    );
}

#[tokio::test]
async fn content_that_is_not_what_its_digest_says_is_refused() {
    let door = Door::open().await;
    let location = door.begin("app").await;
    let wrong = Digest::sha256(b"other");
    let refused = door
        .send(
            Method::PUT,
            &format!("{location}?digest={wrong}"),
            &[],
            b"content",
        )
        .await;
    assert_eq!(code(refused).await, (400, "DIGEST_INVALID".into()));
    assert_eq!(
        door.send(Method::HEAD, &format!("/v2/app/blobs/{wrong}"), &[], b"")
            .await
            .status(),
        StatusCode::NOT_FOUND
    );
    let cancelled = door.begin("app").await;
    assert_eq!(
        door.send(Method::DELETE, &cancelled, &[], b"")
            .await
            .status(),
        StatusCode::NO_CONTENT
    );
    assert_eq!(door.registry.store().used(), 0);
}

#[tokio::test]
async fn a_mount_is_made_or_becomes_a_session() {
    let door = Door::open().await;
    let digest = door.upload("one", b"shared").await;
    for (to, from) in [("two", "one"), ("one", "one")] {
        let mounted = door
            .send(
                Method::POST,
                &format!("/v2/{to}/blobs/uploads/?mount={digest}&from={from}"),
                &[],
                b"",
            )
            .await;
        assert_eq!(mounted.status(), StatusCode::CREATED);
        assert_eq!(
            door.send(Method::HEAD, &format!("/v2/{to}/blobs/{digest}"), &[], b"")
                .await
                .status(),
            StatusCode::OK
        );
    }
    let session = door
        .send(
            Method::POST,
            &format!("/v2/three/blobs/uploads/?mount={digest}&from=nowhere"),
            &[],
            b"",
        )
        .await;
    assert_eq!(session.status(), StatusCode::ACCEPTED);
    assert!(session.headers().contains_key("location"));
    assert_eq!(
        door.send(Method::HEAD, &format!("/v2/three/blobs/{digest}"), &[], b"")
            .await
            .status(),
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn manifests_enter_after_their_content_and_are_found_by_tag_digest_and_subject() {
    let door = Door::open().await;
    let image = Sample::new(1).image(1);
    let path = |reference: &dyn std::fmt::Display| format!("/v2/app/manifests/{reference}");
    let early = door
        .send(
            Method::PUT,
            &path(&"v1"),
            &[("content-type", OCI_INDEX)],
            &image.index,
        )
        .await;
    assert_eq!(code(early).await, (400, "MANIFEST_BLOB_UNKNOWN".into()));
    for blob in &image.blobs {
        door.upload("app", blob).await;
    }
    for manifest in &image.manifests {
        let put = door
            .send(Method::PUT, &path(&Digest::sha256(manifest)), &[], manifest)
            .await;
        assert_eq!(put.status(), StatusCode::CREATED);
    }
    let wrong = door
        .send(Method::PUT, &path(&Digest::sha256(b"x")), &[], &image.index)
        .await;
    assert_eq!(code(wrong).await, (400, "DIGEST_INVALID".into()));
    let put = door
        .send(
            Method::PUT,
            &path(&"v1"),
            &[("content-type", OCI_INDEX)],
            &image.index,
        )
        .await;
    assert_eq!(
        (put.status(), field(&put, "docker-content-digest")),
        (StatusCode::CREATED, image.digest().to_string())
    );
    for reference in ["v1".to_owned(), image.digest().to_string()] {
        let got = door.send(Method::GET, &path(&reference), &[], b"").await;
        assert_eq!(field(&got, "content-type"), OCI_INDEX);
        assert_eq!(got.bytes().await.unwrap(), image.index);
    }
    let etag = format!("\"{}\"", image.digest());
    let same = door
        .send(Method::GET, &path(&"v1"), &[("if-none-match", &etag)], b"")
        .await;
    assert_eq!(same.status(), StatusCode::NOT_MODIFIED);
    let referrer = door
        .send(
            Method::PUT,
            &path(&Digest::sha256(&image.referrer)),
            &[],
            &image.referrer,
        )
        .await;
    assert_eq!(field(&referrer, "oci-subject"), image.digest().to_string());
    for (query, count) in [
        ("", 1),
        ("?artifactType=application/spdx%2Bjson", 1),
        ("?artifactType=other", 0),
    ] {
        let list = door
            .send(
                Method::GET,
                &format!("/v2/app/referrers/{}{query}", image.digest()),
                &[],
                b"",
            )
            .await;
        assert_eq!(
            list.headers().contains_key("oci-filters-applied"),
            !query.is_empty()
        );
        let list: Value = serde_json::from_slice(&list.bytes().await.unwrap()).unwrap();
        assert_eq!(
            list["manifests"].as_array().unwrap().len(),
            count,
            "{query}"
        );
    }
    assert_eq!(
        code(door.send(Method::GET, &path(&"v2"), &[], b"").await).await,
        (404, "MANIFEST_UNKNOWN".into())
    );
}

#[tokio::test]
async fn lists_come_in_pages_that_lead_to_each_other() {
    let door = Door::open().await;
    assert_eq!(
        code(door.send(Method::GET, "/v2/app/tags/list", &[], b"").await).await,
        (404, "NAME_UNKNOWN".into())
    );
    let tags: Vec<Tag> = (0..7)
        .map(|number| format!("v{number}").parse().unwrap())
        .collect();
    Sample::new(1)
        .image(1)
        .push(door.registry.store(), &"app".parse().unwrap(), &tags)
        .unwrap();
    let mut seen = Vec::new();
    let mut next = Some("/v2/app/tags/list?n=3".to_owned());
    while let Some(path) = next {
        let response = door.send(Method::GET, &path, &[], b"").await;
        next = response.headers().get("link").map(|link| {
            link.to_str()
                .unwrap()
                .split(['<', '>'])
                .nth(1)
                .unwrap()
                .to_owned()
        });
        let list: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        seen.push(list["tags"].as_array().unwrap().len());
    }
    assert_eq!(seen, [3, 3, 1]);
    let catalog = door
        .send(Method::GET, "/v2/_catalog", &[], b"")
        .await
        .bytes()
        .await
        .unwrap();
    assert_eq!(
        serde_json::from_slice::<Value>(&catalog).unwrap(),
        json!({"repositories": ["app"]})
    );
}

#[tokio::test]
async fn what_is_no_endpoint_is_said_so() {
    let door = Door::open().await;
    for (method, path, expected) in [
        (Method::GET, "/", (404, "UNSUPPORTED")),
        (Method::GET, "/v2/app", (404, "UNSUPPORTED")),
        (Method::GET, "/v2/UPPER/tags/list", (400, "NAME_INVALID")),
        (
            Method::GET,
            "/v2/app/blobs/sha256:zz",
            (400, "DIGEST_INVALID"),
        ),
        (Method::DELETE, "/v2/app/manifests/v1", (405, "UNSUPPORTED")),
        (
            Method::PUT,
            "/v2/app/blobs/uploads/7f?digest=sha256:zz",
            (400, "DIGEST_INVALID"),
        ),
        (
            Method::PATCH,
            "/v2/app/blobs/uploads/none",
            (404, "BLOB_UPLOAD_UNKNOWN"),
        ),
    ] {
        let (status, word) = code(door.send(method, path, &[], b"").await).await;
        assert_eq!((status, word.as_str()), expected, "{path}");
    }
}
