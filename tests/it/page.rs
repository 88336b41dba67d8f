//! The page at `GET /`, in a real browser: it shows what happens, orders what the token may, and
//! gives nothing to pages of other sites.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::decisions::Scene;
use crate::support::browser::Browser;
use crate::support::*;

/// The Tab key, Enter and Escape of WebDriver.
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
const ESCAPE: &str = "\u{e00c}";

/// A daemon with a token of alice that may decide, and one of a build that may look.
async fn scene(gates: Value) -> (Scene, Daemon) {
    let scene = Scene::new();
    let file = |name: &str| scene.ferry.file(name, &format!("token-of-{name}\n"));
    let tokens = json!({
        "alice": {"file": file("alice"), "may": "decide"},
        "build": {"file": file("build"), "may": "look"},
    });
    let config = Config::new()
        .registry("staging", &scene.staging.url())
        .registry("production", &scene.production.url())
        .route(
            "app",
            json!({"gates": gates, "tags": {"include": ["*"], "moving": ["latest"]}}),
        )
        .daemon("tokens", tokens);
    scene.ferry.write_config(&config);
    let daemon = scene.ferry.start_ready().await;
    (scene, daemon)
}

/// A browser at the daemon's page, with the token of `name`.
async fn browser_of(daemon: &Daemon, name: &str) -> Browser {
    let browser = Browser::start().await;
    browser.open(daemon.url()).await;
    browser.run("window.violations = []; addEventListener('securitypolicyviolation', (event) => violations.push(event.violatedDirective))").await;
    browser.shows("This daemon asks for a token").await;
    browser
        .type_into("#token", &format!("token-of-{name}{ENTER}"))
        .await;
    browser.until("document.querySelector('.tiles a')").await;
    browser
}

/// Asserts that nothing was refused by the policy and that the console has no error but the 401s
/// before the token.
async fn assert_clean(browser: &Browser) {
    assert_eq!(browser.run("return window.violations").await, json!([]));
    let lines = browser.console().await;
    let is_expected = |line: &&Value| {
        let text = line["message"].as_str().unwrap_or_default();
        text.contains("401 (Unauthorized)") || line["level"] == "INFO"
    };
    let wrong: Vec<&Value> = lines.iter().filter(|line| !is_expected(line)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Fills the reason in, orders the act of the open dialog, and closes it after the answer.
async fn order(browser: &Browser, reason: &str, answer: &str) {
    browser.type_into("dialog[open] #act-reason", reason).await;
    browser.click("dialog[open] button[type=submit]").await;
    let answer = json!(answer);
    browser
        .until(&format!(
            "document.querySelector('dialog .done')?.innerText.includes({answer})"
        ))
        .await;
    browser.click("dialog[open] button[type=button]").await;
    browser
        .until("!document.querySelector('dialog[open]')")
        .await;
}

/// The row of the ledger about a decision of this kind.
async fn decision(scene: &Scene, kind: &str) -> Value {
    let history = scene.run(&["history", "--json"]).await;
    let rows: Vec<Value> = history
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let found = rows.iter().rev().find(|row| row["kind"] == kind);
    found
        .unwrap_or_else(|| panic!("no {kind} in {rows:#?}"))
        .clone()
}

#[tokio::test]
async fn the_page_comes_with_headers_that_keep_everything_else_out() {
    let scene = Scene::new();
    let daemon = scene.ferry.start().await;
    let page = daemon.get("/").await;
    assert_eq!(page.status(), StatusCode::OK);
    let html = page.text().await.expect("a page");
    let parts: Vec<&str> = html
        .split('"')
        .filter(|text| text.starts_with("/page/"))
        .collect();
    assert!(parts.len() >= 3, "{parts:?}");
    assert!(!html.contains("http"), "the page names no other server");
    for path in [&["/"], &*parts].concat() {
        let answer = daemon.get(path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let headers = answer.headers();
        let policy = headers["content-security-policy"].to_str().expect("text");
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(
                policy.split("; ").any(|one| one == rule),
                "{rule}: {policy}"
            );
        }
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["referrer-policy"], "no-referrer", "{path}");
        assert_eq!(headers["x-frame-options"], "DENY", "{path}");
        assert_eq!(headers["cross-origin-resource-policy"], "same-origin");
        assert!(
            headers
                .keys()
                .all(|name| !name.as_str().starts_with("access-control-"))
        );
    }
    assert_eq!(
        daemon.get("/page/none.js").await.status(),
        StatusCode::NOT_FOUND
    );
    let posted = daemon.request("/").send().await.expect("an answer");
    assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn the_status_comes_once_until_it_changes() {
    let scene = Scene::new();
    let daemon = scene.ferry.start_ready().await;
    let url = format!("{}/v1/status", daemon.url());
    let ask = async |tag: &str| {
        let request = reqwest::Client::new().request(Method::GET, &url);
        let request = request.header("if-none-match", tag);
        request.send().await.expect("the daemon answers")
    };
    let first = ask("\"none\"").await;
    let tag = first.headers()["etag"].to_str().expect("text").to_owned();
    let status: Value = serde_json::from_str(&first.text().await.expect("a body")).expect("JSON");
    let again = ask(&tag).await;
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(again.text().await.expect("a body"), "");
    scene.run(&["hold"]).await.expect(0);
    let held = ask(&tag).await;
    assert_eq!(held.status(), StatusCode::OK);
    let held: Value = serde_json::from_str(&held.text().await.expect("a body")).expect("JSON");
    let added = held["rows_added"].as_u64().expect("a number");
    assert_eq!(
        Some(added),
        status["rows_added"].as_u64().map(|rows| rows + 1)
    );
}

#[tokio::test]
async fn promotions_appear_without_a_reload_and_the_list_is_searched_by_the_server() {
    let (scene, daemon) = scene(json!({})).await;
    let browser = browser_of(&daemon, "build").await;
    browser.shows("Nothing waits for a person").await;
    scene.staging.push("app", "v1", &Image::oci(1, &[1000]));
    scene.staging.push("app", "latest", &Image::oci(2, &[1000]));
    scene.run(&["sync"]).await.expect(0);
    browser.shows("LAST PROMOTIONS").await;
    browser.shows("app:v1").await;
    browser
        .until("document.querySelector('.tiles .number').textContent === '2'")
        .await;
    // A token that may only look is offered nothing else.
    browser.click("nav a[href='#/tags']").await;
    browser
        .until("document.querySelectorAll('tbody tr').length === 2")
        .await;
    browser.type_into("#text", "LATEST").await;
    browser
        .until("document.querySelectorAll('tbody tr').length === 1")
        .await;
    browser.click("tbody a").await;
    browser.shows("WHAT HAPPENED").await;
    browser.shows("The tag may move to another digest").await;
    assert_eq!(
        browser
            .run("return document.querySelectorAll('.buttons').length")
            .await,
        0
    );
    let address = browser.run("return location.href + document.cookie").await;
    assert!(
        !address.as_str().expect("text").contains("token-of"),
        "{address}"
    );
    assert_clean(&browser).await;
}

#[tokio::test]
async fn a_waiting_tag_is_approved_with_its_digest_and_evidence_in_sight() {
    let (scene, daemon) = scene(json!({"approval": {"people": 1}})).await;
    let image = Image::oci(1, &[1000]);
    scene.staging.push("app", "v1", &image);
    scene.run(&["sync"]).await.expect(0);
    assert_eq!(scene.there("v1"), None);
    let browser = browser_of(&daemon, "alice").await;
    browser.shows("approval: approved by 0 of 1").await;
    browser.click("[data-key^='approve ']").await;
    browser.shows(image.digest()).await;
    browser.shows("approved by 0 of 1").await;
    order(&browser, "CHG-17", "may go to").await;
    scene.named("v1", &image).await;
    browser.shows("Nothing waits for a person").await;
    let row = decision(&scene, "approve").await;
    assert_eq!(row["actor"], "alice");
    assert_eq!(row["reason"], "CHG-17");
    assert_eq!(row["digest"], image.digest());
    assert_clean(&browser).await;
}

#[tokio::test]
async fn a_tag_is_rolled_back_held_and_released() {
    let (scene, daemon) = scene(json!({})).await;
    let (first, second) = (Image::oci(1, &[1000]), Image::oci(2, &[1000]));
    for image in [&first, &second] {
        scene.staging.push("app", "latest", image);
        scene.run(&["sync"]).await.expect(0);
    }
    let browser = browser_of(&daemon, "alice").await;
    browser.click(".rows a[href^='#/tag?']").await;
    browser.click("[data-key^='rollback ']").await;
    // Without a reason nothing is sent.
    browser.click("dialog[open] button[type=submit]").await;
    let is_missing = "document.querySelector('#act-reason').validity.valueMissing";
    browser.until(is_missing).await;
    order(&browser, "INC-4", "and stays there").await;
    scene.named("latest", &first).await;
    browser.shows("DECISIONS THAT COVER IT").await;
    browser.shows("INC-4").await;

    browser.click("[data-key^='hold ']").await;
    order(&browser, "CHG-18", "is written any more").await;
    let held = decision(&scene, "hold").await;
    let target = held["target"].as_str().expect("a target");
    assert_eq!(target, "production/app:latest");
    browser.click("nav a[href='#/decisions']").await;
    browser.shows("CHG-18").await;
    for decision in scene.in_force().await {
        browser
            .click(&format!("[data-key='release {}']", decision["id"]))
            .await;
        order(&browser, "over", "Ended decision").await;
    }
    assert_eq!(scene.in_force().await, Vec::<Value>::new());
    browser
        .until("!document.querySelector('[data-key^=release]')")
        .await;
    assert_clean(&browser).await;
}

#[tokio::test]
async fn hostile_text_stays_text() {
    let (scene, daemon) = scene(json!({})).await;
    let hostile =
        "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";
    let hold = ["hold", "--reason", hostile, "--actor", hostile];
    scene.run(&hold).await.expect(0);
    scene.staging.push("app", "v1", &Image::oci(1, &[1000]));
    scene.run(&["sync"]).await.expect(0);
    let browser = browser_of(&daemon, "alice").await;
    browser.shows(hostile).await;
    browser.open(&format!("{}/#/decisions", daemon.url())).await;
    browser.shows(hostile).await;
    // An address may be made by others, too.
    let tag = "#/tag?repository=%3Cimg+src%3Dx%3E&tag=%3Cb%3E";
    browser.open(&format!("{}/{tag}", daemon.url())).await;
    browser
        .until("document.querySelector('h1').textContent === '<img src=x>:<b>'")
        .await;
    browser
        .until("!document.getElementById('trouble').hidden")
        .await;
    let made = "return [document.title.includes('owned'), document.querySelectorAll('main img, main script, main b').length]";
    assert_eq!(browser.run(made).await, json!([false, 0]));
    assert_eq!(browser.run("return window.violations").await, json!([]));
}

#[tokio::test]
async fn a_wrong_token_is_asked_for_again_and_a_stopped_daemon_is_said() {
    let (_scene, daemon) = scene(json!({})).await;
    let browser = Browser::start().await;
    browser.open(daemon.url()).await;
    browser.type_into("#token", &format!("wrong{ENTER}")).await;
    browser.shows("this is neither the secret").await;
    let kept = "return sessionStorage.length";
    assert_eq!(browser.run(kept).await, 0, "a wrong token is not kept");
    browser
        .type_into("#token", &format!("token-of-build{ENTER}"))
        .await;
    browser.until("document.querySelector('.tiles a')").await;
    daemon.killed().await;
    browser.shows("The daemon does not answer").await;
    browser.shows("no answer").await;
}

#[tokio::test]
async fn the_keyboard_is_enough() {
    let (scene, daemon) = scene(json!({"approval": {"people": 1}})).await;
    let image = Image::oci(1, &[1000]);
    scene.staging.push("app", "v1", &image);
    scene.run(&["sync"]).await.expect(0);
    let browser = browser_of(&daemon, "alice").await;
    let is_there = "return document.activeElement.dataset.key?.startsWith('approve ') ?? false";
    let mut steps = 0;
    while browser.run(is_there).await != json!(true) {
        steps += 1;
        assert!(steps < 40, "the button is not reached");
        browser.press(TAB).await;
    }
    browser.press(ENTER).await;
    browser
        .until("document.activeElement.id === 'act-reason'")
        .await;
    browser.press(ESCAPE).await;
    browser
        .until("!document.querySelector('dialog[open]')")
        .await;
    eventually("the focus is back", async || {
        (browser.run(is_there).await == json!(true)).then_some(())
    })
    .await;
    browser.press(ENTER).await;
    browser.press(&format!("yes{ENTER}")).await;
    browser.shows("may go to").await;
    scene.named("v1", &image).await;
}

#[tokio::test]
async fn a_page_of_another_site_gets_nothing() {
    let (scene, daemon) = scene(json!({})).await;
    let browser = Browser::start().await;
    // A document of another origin on this machine.
    browser.open(&format!("{}/v2/", scene.staging.url())).await;
    let url = json!(daemon.url());
    for (path, options) in [
        ("/v1/status", json!({})),
        (
            "/v1/status",
            json!({"headers": {"authorization": "Bearer token-of-alice"}}),
        ),
        ("/v1/status", json!({"mode": "no-cors"})),
        ("/", json!({})),
        ("/page/page.js", json!({"mode": "no-cors"})),
        (
            "/v1/decisions",
            json!({"method": "POST", "mode": "no-cors", "body": "{\"kind\": \"hold\"}"}),
        ),
    ] {
        let script = format!(
            "return fetch({url} + {}, {options}).then((answer) => 'got ' + answer.type, () => 'nothing')",
            json!(path)
        );
        assert_eq!(browser.run(&script).await, "nothing", "{path} {options}");
    }
    assert_eq!(scene.in_force().await, Vec::<Value>::new());
    // A link opens it as a page of its own.
    browser.run(&format!("location.href = {url}")).await;
    browser.shows("This daemon asks for a token").await;
}

/// The pictures of `docs/page.md` are made here: `target/page/*.png`.
#[tokio::test]
async fn it_fits_wide_and_narrow_windows_in_light_and_dark() {
    let scene = Scene::new();
    let file = |name: &str| scene.ferry.file(name, &format!("token-of-{name}\n"));
    let tokens = json!({"alice": {"file": file("alice"), "may": "decide"}});
    let approval = json!({"gates": {"approval": {"people": 1}}});
    let config = Config::new()
        .registry("staging", &scene.staging.url())
        .registry("production", &scene.production.url())
        .route(
            "shop-api",
            json!({"tags": {"include": ["*"], "moving": ["latest"]}}),
        )
        .route("payments", approval)
        .daemon("tokens", tokens);
    scene.ferry.write_config(&config);
    let daemon = scene.ferry.start_ready().await;
    for (seed, repository, tag) in [
        (1, "shop-api", "v1.3.0"),
        (2, "shop-api", "v1.4.0"),
        (2, "shop-api", "latest"),
        (3, "payments", "v2.8.1"),
    ] {
        scene
            .staging
            .push(repository, tag, &Image::oci(seed, &[1000]));
    }
    scene
        .production
        .push("shop-api", "v1.3.0", &Image::oci(9, &[1000]));
    scene.run(&["sync"]).await.expect(0);
    let hold = [
        "hold",
        "route:shop-api",
        "--until",
        "36h",
        "--reason",
        "freeze, CHG-17",
    ];
    scene.run(&hold).await.expect(0);
    let browser = browser_of(&daemon, "alice").await;
    browser.shows("approved by 0 of 1").await;
    browser.shows("CHG-17").await;
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/target/page");
    std::fs::create_dir_all(folder).expect("a folder below target");
    let views = [
        ("", "Overview", ".tiles a"),
        ("tags", "Tags", "tbody tr"),
        ("decisions", "Decisions", "ol.story li"),
    ];
    for (name, width, height, scheme) in [
        ("light", 1280, 900, "light"),
        ("dark", 1280, 900, "dark"),
        ("narrow", 360, 800, "light"),
    ] {
        browser.look_at(width, height, scheme).await;
        for (view, title, content) in views {
            browser.run(&format!("location.hash = '#/{view}'")).await;
            browser
                .until(&format!(
                    "document.querySelector('h1')?.textContent === '{title}'
                        && document.querySelector('{content}')"
                ))
                .await;
            let is_wider = format!("return document.documentElement.scrollWidth > {width}");
            assert_eq!(browser.run(&is_wider).await, false, "{name} {view}");
            let path = format!("{folder}/{name}{view}.png");
            std::fs::write(path, browser.picture().await).expect("a picture below target");
        }
    }
    assert_clean(&browser).await;
}
