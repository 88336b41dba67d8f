//! Uploads: early answers, stalls, failing sources, what registries say.

use super::*;

/// What came of it, or the class of the failure.
type Outcome = Result<Sent, Class>;
type Headers = &'static [(&'static str, &'static str)];

#[tokio::test]
async fn an_answer_that_comes_before_the_body_was_taken_counts() {
    // The server reads a little, answers that the session ends elsewhere, and takes nothing more.
    let server = Server::by_hand(|mut connection| async move {
        let _some = connection.read(&mut [0; 1024]).await;
        let head = "HTTP/1.1 416 Range Not Satisfiable\r\nrange: 0-99\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        connection.write_all(head.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    static PIECE: [u8; 65536] = [7; 65536];
    let length = 64 * PIECE.len() as u64;
    let body = slow_body((0..64).map(|_| Ok(PIECE.as_slice())).collect());
    let sent = server
        .repository()
        .send_chunk(&mut server.upload("/u"), 0, length, body)
        .await
        .unwrap();
    assert_eq!(sent, Sent::Misplaced(Offset::At(100)));
}

#[tokio::test]
async fn a_connection_that_closes_under_a_body_is_worth_another_try() {
    let server = Server::by_hand(|mut connection| async move {
        let _some = connection.read(&mut [0; 1024]).await;
    })
    .await;
    static PIECE: [u8; 65536] = [7; 65536];
    let body = slow_body((0..64).map(|_| Ok(PIECE.as_slice())).collect());
    let fault = server
        .repository()
        .send_chunk(&mut server.upload("/u?_state=secret"), 0, 64 * 65536, body)
        .await
        .unwrap_err();
    assert!(fault.class().is_retryable(), "{fault:?}");
    assert!(
        fault.to_string().contains("staging") && !fault.chain().contains("secret"),
        "{fault:?}"
    );
}

#[tokio::test]
async fn the_failure_of_the_source_comes_out_as_it_is() {
    let server = Server::start(|_| answer(201, &[], "")).await;
    for class in [
        Class::Corrupt,
        Class::NotFound,
        Class::Cancelled,
        Class::RETRYABLE,
    ] {
        let body = slow_body(vec![
            Ok(&BLOB[..4]),
            Err(Fault::new(class, "the source said no")),
        ]);
        let fault = server
            .repository()
            .finish_upload(&mut server.upload("/u"), &digest(), 0, 10, body)
            .await
            .unwrap_err();
        assert_eq!(
            (fault.class(), fault.to_string().as_str()),
            (class, "the source said no")
        );
    }
}

#[tokio::test]
async fn a_destination_that_takes_nothing_is_given_up() {
    let server = Server::by_hand(|mut connection| async move {
        let _some = connection.read(&mut [0; 1024]).await;
        std::future::pending::<()>().await;
    })
    .await;
    let deadlines = Deadlines {
        idle: Duration::from_millis(100),
        ..Deadlines::default()
    };
    let registry = server.registry(Kind::Generic, auth::Credentials::Anonymous, deadlines);
    static PIECE: [u8; 65536] = [7; 65536];
    let body = slow_body((0..1024).map(|_| Ok(PIECE.as_slice())).collect());
    let repository = registry.repository("app".parse().unwrap());
    let fault = repository
        .send_chunk(&mut server.upload("/u"), 0, 1024 * 65536, body)
        .await
        .unwrap_err();
    assert!(
        fault.class().is_retryable() && fault.to_string().contains("has taken nothing"),
        "{fault:?}"
    );
}

#[tokio::test]
async fn an_upload_goes_its_way() {
    let server = Server::start(|asked| match asked.line.split_once(' ').unwrap().0 {
        "POST" => answer(
            202,
            &[("location", "/u/1?_state=a%3D"), ("range", "0-0")],
            "",
        ),
        "PATCH" => answer(202, &[("location", "/u/2?_state=b"), ("range", "0-3")], ""),
        "GET" => answer(204, &[("location", "/u/3?_state=c"), ("range", "0-3")], ""),
        "PUT" => answer(201, &[("docker-content-digest", &digest().to_string())], ""),
        _ => answer(204, &[], ""),
    })
    .await;
    let repository = server.repository();
    let Begin::Session(mut upload) = repository.begin_upload(&digest(), None).await.unwrap() else {
        panic!("not mounted")
    };
    let first = repository
        .send_chunk(
            &mut upload,
            0,
            4,
            BlobBody::full(Bytes::from_static(&BLOB[..4])),
        )
        .await
        .unwrap();
    assert_eq!(first, Sent::Accepted { reported: Some(4) });
    assert_eq!(
        repository.upload_offset(&mut upload).await.unwrap(),
        Offset::At(4)
    );
    let rest = BlobBody::full(Bytes::from_static(&BLOB[4..]));
    let last = repository
        .finish_upload(&mut upload, &digest(), 4, 6, rest)
        .await
        .unwrap();
    assert_eq!(last, Sent::Accepted { reported: None });
    let asked = server.asked();
    assert_eq!(asked[1].line, "PATCH /u/1?_state=a%3D");
    assert_eq!(asked[1].headers[header::CONTENT_RANGE], "0-3");
    assert_eq!(asked[2].line, "GET /u/2?_state=b");
    assert_eq!(
        asked[3].line,
        format!("PUT /u/3?_state=c&digest={}", digest())
    );
    assert_eq!(asked[3].headers[header::CONTENT_RANGE], "4-9");
    assert_eq!(asked[3].headers[header::CONTENT_LENGTH], "6");

    let mut fresh = server.upload("/u/4");
    repository
        .finish_upload(&mut fresh, &digest(), 0, 10, BlobBody::full(BLOB.into()))
        .await
        .unwrap();
    let whole = server.asked().pop().unwrap();
    assert!(
        !whole.has(header::CONTENT_RANGE),
        "a whole blob is no chunk"
    );
    repository
        .finish_upload(&mut fresh, &digest(), 10, 0, BlobBody::full(Bytes::new()))
        .await
        .unwrap();
    assert_eq!(
        server.asked().pop().unwrap().headers[header::CONTENT_LENGTH],
        "0"
    );
}

#[tokio::test]
async fn what_registries_say_of_an_upload_becomes_a_value() {
    let words = |code: &str, message: &str| {
        format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#)
    };
    let ecr = words(
        "BLOB_UPLOAD_INVALID",
        "First byte of the layer part is 0 instead of 11304960",
    );
    let table: Vec<(u16, Headers, String, Outcome)> = vec![
        (
            201,
            &[("range", "0-3")],
            String::new(),
            Ok(Sent::Accepted { reported: Some(4) }),
        ),
        (
            204,
            &[],
            String::new(),
            Ok(Sent::Accepted { reported: None }),
        ),
        (
            416,
            &[("range", "0-99")],
            String::new(),
            Ok(Sent::Misplaced(Offset::At(100))),
        ),
        (
            416,
            &[("range", "0-0")],
            String::new(),
            Ok(Sent::Misplaced(Offset::Unknown)),
        ),
        (416, &[], ecr, Ok(Sent::Misplaced(Offset::At(11_304_960)))),
        (
            416,
            &[],
            words("X", "request body is too large"),
            Err(Class::Rejected),
        ),
        (404, &[], words("BLOB_UPLOAD_UNKNOWN", ""), Ok(Sent::Gone)),
        (404, &[], words("NAME_UNKNOWN", ""), Err(Class::NotFound)),
        (400, &[], words("BLOB_UPLOAD_INVALID", ""), Ok(Sent::Gone)),
        (413, &[], String::new(), Err(Class::Rejected)),
        (
            503,
            &[("retry-after", "7")],
            String::new(),
            Err(Class::Retryable {
                after: Some(Duration::from_secs(7)),
            }),
        ),
    ];
    for (status, headers, body, expected) in table {
        let told = body.clone();
        let server = Server::start(move |_| answer(status, headers, body.clone())).await;
        let piece = BlobBody::full(Bytes::from_static(&BLOB[..4]));
        let sent = server
            .repository()
            .send_chunk(&mut server.upload("/u"), 0, 4, piece)
            .await
            .map_err(|fault| fault.class());
        assert_eq!(sent, expected, "{status} {told}");
    }
}

#[tokio::test]
async fn what_registries_say_of_a_closed_upload_becomes_a_value() {
    let words = |code: &str, message: &str| {
        format!(r#"{{"errors":[{{"code":"{code}","message":"{message}"}}]}}"#)
    };
    let other = Digest::sha256(b"other").to_string();
    let table: Vec<(u16, Option<String>, String, Outcome)> = vec![
        (
            201,
            None,
            String::new(),
            Ok(Sent::Accepted { reported: None }),
        ),
        (201, Some(other), String::new(), Err(Class::Corrupt)),
        (
            201,
            Some(format!("sha512:{}", "0".repeat(128))),
            String::new(),
            Ok(Sent::Accepted { reported: None }),
        ),
        (202, None, String::new(), Err(Class::Rejected)),
        (400, None, words("DIGEST_INVALID", ""), Err(Class::Corrupt)),
        (
            400,
            None,
            words(
                "BLOB_UPLOAD_INVALID",
                "None of the provided layer digests match",
            ),
            Err(Class::Corrupt),
        ),
        (
            400,
            None,
            words("X", "LayerAlreadyExistsException"),
            Ok(Sent::Accepted { reported: None }),
        ),
        (404, None, String::new(), Ok(Sent::Gone)),
    ];
    for (status, claimed, body, expected) in table {
        let told = format!("{status} {claimed:?} {body}");
        let server = Server::start(move |_| {
            let claimed: Vec<(&str, &str)> = claimed
                .iter()
                .map(|claimed| ("docker-content-digest", claimed.as_str()))
                .collect();
            answer(status, &claimed, body.clone())
        })
        .await;
        let sent = server
            .repository()
            .finish_upload(
                &mut server.upload("/u"),
                &digest(),
                0,
                10,
                BlobBody::full(BLOB.into()),
            )
            .await;
        assert_eq!(sent.map_err(|fault| fault.class()), expected, "{told}");
    }
}

#[tokio::test]
async fn a_refused_mount_ends_in_a_session() {
    let server = Server::start(|asked| match asked.line.contains("mount=") {
        true => answer(403, &[], ""),
        false => answer(202, &[("location", "/u")], ""),
    })
    .await;
    let from = "team/other".parse().unwrap();
    assert!(matches!(
        server
            .repository()
            .begin_upload(&digest(), Some(&from))
            .await
            .unwrap(),
        Begin::Session(_)
    ));
    let mount = format!(
        "POST /v2/app/blobs/uploads/?mount=sha256%3A{}&from=team%2Fother",
        digest().encoded()
    );
    assert_eq!(
        server.lines(),
        [mount.as_str(), "POST /v2/app/blobs/uploads/"]
    );
    let server = Server::start(|_| answer(201, &[], "")).await;
    assert!(matches!(
        server
            .repository()
            .begin_upload(&digest(), Some(&from))
            .await
            .unwrap(),
        Begin::Mounted
    ));
    let server = Server::start(|_| answer(202, &[], "")).await;
    assert_eq!(
        server
            .repository()
            .begin_upload(&digest(), None)
            .await
            .unwrap_err()
            .class(),
        Class::Rejected
    );
}

#[tokio::test]
async fn a_session_elsewhere_gets_no_credentials() {
    let elsewhere = Server::start(|_| answer(201, &[], "")).await;
    let location = elsewhere.url("/u?signature=x");
    let server = Server::start(move |asked| match asked.has(header::AUTHORIZATION) {
        true => answer(202, &[("location", &location)], ""),
        false => answer(401, &[("www-authenticate", "Basic realm=\"registry\"")], ""),
    })
    .await;
    let repository = server.known();
    let Begin::Session(mut upload) = repository.begin_upload(&digest(), None).await.unwrap() else {
        panic!("not mounted")
    };
    repository
        .finish_upload(&mut upload, &digest(), 0, 10, BlobBody::full(BLOB.into()))
        .await
        .unwrap();
    assert!(!elsewhere.asked()[0].has(header::AUTHORIZATION));
    let mut stored = Upload {
        location: "http://169.254.169.254/u".into(),
    };
    assert_eq!(
        repository
            .upload_offset(&mut stored)
            .await
            .unwrap_err()
            .class(),
        Class::Rejected
    );
}
