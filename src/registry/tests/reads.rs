//! Reading blobs: redirects, ranges, lengths, breaks.

use super::*;

#[tokio::test]
async fn credentials_stay_behind_when_a_read_is_redirected() {
    let storage =
        Server::start(|_| answer(206, &[("content-range", "bytes 4-9/10")], &BLOB[4..])).await;
    let target = storage.url("/bucket/blob?signature=abc%2Fdef");
    let server = Server::start(move |asked| match asked.has(header::AUTHORIZATION) {
        true => answer(307, &[("location", &target)], ""),
        false => answer(401, &[("www-authenticate", "Basic realm=\"registry\"")], ""),
    })
    .await;
    let body = server.known().read_blob(&blob(), 4).await.unwrap().unwrap();
    assert_eq!(read_all(body).await.unwrap(), &BLOB[4..]);
    let asked = &storage.asked()[0];
    assert_eq!(asked.line, "GET /bucket/blob?signature=abc%2Fdef");
    assert!(!asked.has(header::AUTHORIZATION));
    assert_eq!(
        asked.headers[header::RANGE],
        "bytes=4-9",
        "the range goes along"
    );
    assert_eq!(asked.headers[header::ACCEPT_ENCODING], "identity");
}

#[tokio::test]
async fn a_signed_address_that_ran_out_is_asked_for_anew() {
    let storage = Server::start(|_| {
        answer(
            403,
            &[],
            "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
        )
    })
    .await;
    let target = storage.url("/blob?signature=secret");
    let server = Server::start(move |_| answer(307, &[("location", &target)], "")).await;
    let fault = server.repository().read_blob(&blob(), 0).await.unwrap_err();
    assert!(fault.class().is_retryable(), "{fault:?}");
    assert!(!fault.chain().contains("secret"), "{fault:?}");
}

#[tokio::test]
async fn a_head_that_storage_refuses_is_settled_by_a_read() {
    let storage = Server::start(|asked| match asked.line.starts_with("HEAD") {
        true => answer(403, &[], ""),
        false => answer(206, &[("content-range", "bytes 0-0/10")], "0"),
    })
    .await;
    let target = storage.url("/blob");
    let server = Server::start(move |_| answer(307, &[("location", &target)], "")).await;
    let presence = server.repository().has_blob(&digest()).await.unwrap();
    assert_eq!(presence, Presence::Present { size: Some(10) });
    assert_eq!(storage.asked()[1].headers[header::RANGE], "bytes=0-0");
}

#[tokio::test]
async fn only_the_range_that_was_asked_for_is_taken() {
    type Row = (
        &'static str,
        &'static str,
        &'static [u8],
        Option<&'static [u8]>,
    );
    let table: [Row; 6] = [
        ("206", "bytes 4-9/10", &BLOB[4..], Some(&BLOB[4..])),
        ("206", "bytes 3-9/10", &BLOB[3..], None),
        ("206", "bytes 4-8/10", &BLOB[4..9], None),
        ("206", "bytes 4-9/11", &BLOB[4..], None),
        ("206", "", &BLOB[4..], None),
        ("200", "", BLOB, Some(&BLOB[4..])),
    ];
    for (status, range, bytes, expected) in table {
        let server = Server::start(move |_| {
            let headers: &[(&str, &str)] = if range.is_empty() {
                &[]
            } else {
                &[("content-range", range)]
            };
            answer(status.parse().unwrap(), headers, bytes)
        })
        .await;
        match (server.repository().read_blob(&blob(), 4).await, expected) {
            (Ok(Some(body)), Some(expected)) => {
                assert_eq!(read_all(body).await.unwrap(), expected, "{status} {range}")
            }
            (Err(fault), None) => assert_eq!(fault.class(), Class::Corrupt, "{status} {range}"),
            (other, _) => panic!("{status} {range}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn blobs_of_another_length_or_coding_are_refused() {
    let table: [(&str, &'static [u8]); 3] = [
        ("identity", &BLOB[1..]),
        ("identity", b"0123456789a"),
        ("gzip", BLOB),
    ];
    for (coding, bytes) in table {
        let server =
            Server::start(move |_| answer(200, &[("content-encoding", coding)], bytes)).await;
        assert_eq!(
            server
                .repository()
                .read_blob(&blob(), 0)
                .await
                .unwrap_err()
                .class(),
            Class::Corrupt
        );
    }
}

#[tokio::test]
async fn a_blob_without_a_length_is_counted_as_it_comes() {
    let chunked = |bytes: &'static [u8]| {
        Server::start(move |_| {
            let pieces = bytes
                .chunks(3)
                .map(|piece| Ok::<_, std::io::Error>(Bytes::from_static(piece)));
            answer(
                200,
                &[],
                Answer::from_stream(futures::stream::iter(pieces.collect::<Vec<_>>())),
            )
        })
    };
    let table: [(&'static [u8], Class); 2] = [
        (&BLOB[..9], Class::RETRYABLE),
        (b"0123456789a", Class::Corrupt),
    ];
    for (bytes, class) in table {
        let server = chunked(bytes).await;
        let body = server
            .repository()
            .read_blob(&blob(), 0)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read_all(body).await.unwrap_err().class(), class);
    }
    let server = chunked(BLOB).await;
    let body = server
        .repository()
        .read_blob(&blob(), 0)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(read_all(body).await.unwrap(), BLOB);
}

#[tokio::test]
async fn a_blob_that_breaks_off_or_stalls_is_worth_another_try() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123";
    let cut = Server::by_hand(move |mut connection| async move {
        let _request = connection.read(&mut [0; 4096]).await;
        connection.write_all(head.as_bytes()).await.unwrap();
    })
    .await;
    let body = cut
        .repository()
        .read_blob(&blob(), 0)
        .await
        .unwrap()
        .unwrap();
    let fault = read_all(body).await.unwrap_err();
    assert!(
        fault.class().is_retryable() && fault.to_string().contains("with 6 bytes to come"),
        "{fault:?}"
    );

    let stalled = Server::by_hand(move |mut connection| async move {
        let _request = connection.read(&mut [0; 4096]).await;
        connection.write_all(head.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
    })
    .await;
    let deadlines = Deadlines {
        idle: Duration::from_millis(50),
        ..Deadlines::default()
    };
    let registry = stalled.registry(Kind::Generic, auth::Credentials::Anonymous, deadlines);
    let body = registry
        .repository("app".parse().unwrap())
        .read_blob(&blob(), 0)
        .await
        .unwrap()
        .unwrap();
    let fault = read_all(body).await.unwrap_err();
    assert!(
        fault.class().is_retryable() && fault.to_string().contains("sends nothing"),
        "{fault:?}"
    );
}
