//! Credentials that go to the registry itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[tokio::test]
async fn a_password_is_proven_before_many_requests_carry_it() {
    let registry = Server::start(|_, seen| {
        if seen.authorization == Some(basic_joe()) {
            json(200, "{}")
        } else {
            json(401, "")
        }
    })
    .await;
    let authorizer = Authorizer::new(settings(registry.url.as_str(), joe()), client());
    let scopes = pull("a");
    let basic = challenge("Basic realm=\"r\"");
    for answer in
        futures::future::join_all((0..10).map(|_| authorizer.answer(&scopes, &basic, None))).await
    {
        assert_eq!(text(answer.unwrap()), basic_joe());
    }
    assert_eq!(
        text(authorizer.header(&pull("b")).await.unwrap()),
        basic_joe()
    );
    assert_eq!(
        (registry.count(), registry.seen()[0].path.as_str()),
        (1, "/v2/")
    );
    let header = authorizer.header(&scopes).await.unwrap();
    assert!(
        authorizer
            .answer(&scopes, &basic, header.as_ref())
            .await
            .unwrap()
            .is_none(),
        "a right that is missing is final"
    );
    assert_eq!(
        text(authorizer.header(&pull("b")).await.unwrap()),
        basic_joe(),
        "and no word on the password"
    );
}

#[tokio::test]
async fn a_wrong_password_is_shown_to_the_registry_once() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let registry = Server::start(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        json(401, "")
    })
    .await;
    let authorizer = Authorizer::new(settings(registry.url.as_str(), joe()), client());
    let basic = challenge("Basic realm=\"r\"");
    for number in 0..5 {
        let fault = authorizer
            .answer(&pull(&format!("r{number}")), &basic, None)
            .await
            .unwrap_err();
        assert!(
            fault.class() == Class::Auth && fault.to_string().contains("joe"),
            "{fault}"
        );
    }
    assert_eq!(
        authorizer.header(&pull("x")).await.unwrap_err().class(),
        Class::Auth
    );
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_password_that_was_good_and_is_no_more_is_found_out_once() {
    let registry = Server::start(|count, _| json(if count == 1 { 200 } else { 401 }, "")).await;
    let authorizer = Authorizer::new(settings(registry.url.as_str(), joe()), client());
    let scopes = pull("a");
    let basic = challenge("Basic realm=\"r\"");
    let header = authorizer.answer(&scopes, &basic, None).await.unwrap();
    for answer in futures::future::join_all(
        (0..10).map(|_| authorizer.answer(&scopes, &basic, header.as_ref())),
    )
    .await
    {
        assert_eq!(answer.unwrap_err().class(), Class::Auth);
    }
    assert_eq!(
        authorizer.header(&pull("b")).await.unwrap_err().class(),
        Class::Auth
    );
    assert_eq!(registry.count(), 2);
}

#[tokio::test]
async fn a_registrys_own_token_is_sent_unasked() {
    let authorizer = authorizer(Credentials::Bearer("hush".into()));
    let header = authorizer.header(&pull("a")).await.unwrap();
    assert_eq!(text(header.clone()), "Bearer hush");
    assert!(
        authorizer
            .answer(&pull("a"), &HeaderMap::new(), header.as_ref())
            .await
            .unwrap()
            .is_none()
    );
    let server = Server::of_tokens(300).await;
    assert!(
        authorizer
            .answer(&pull("a"), &bearer_challenge(&server.url), header.as_ref())
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(server.count(), 0, "and is not exchanged for another");
}

#[tokio::test]
async fn nobody_at_a_registry_that_wants_a_password_is_a_final_no() {
    let authorizer = authorizer(Credentials::Anonymous);
    assert!(
        authorizer
            .answer(&pull("a"), &challenge("Basic realm=\"r\""), None)
            .await
            .unwrap()
            .is_none()
    );
    assert!(authorizer.header(&pull("a")).await.unwrap().is_none());
    assert_eq!(authorizer.user().as_deref(), Some("anonymous"));
}
