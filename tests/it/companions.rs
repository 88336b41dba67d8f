//! Tags that travel with an image, through the program: one that stays as it is is reported, and
//! what came later is told.

use serde_json::json;

use crate::support::scripted::Answer;
use crate::support::*;

/// An image under `v1` with cosign's signature beside it.
struct Signed {
    staging: Scripted,
    production: Scripted,
    image: Image,
    tag: String,
}

impl Signed {
    fn new() -> Signed {
        let (staging, production) = (Scripted::start(), Scripted::start());
        let image = Image::oci(1, &[100]);
        staging.push("app", "v1", &image);
        let tag = format!("{}.sig", image.digest().replace(':', "-"));
        Signed {
            staging,
            production,
            image,
            tag,
        }
    }

    fn sign(&self, seed: u64) -> Image {
        let signature = Image::oci(seed, &[10]);
        self.staging.push("app", &self.tag, &signature);
        signature
    }

    fn config(&self) -> Config {
        Config::pair(&self.staging.url(), &self.production.url())
    }

    fn signature_there(&self) -> Option<String> {
        self.production.tagged("app", &self.tag)
    }
}

#[tokio::test]
async fn a_signature_that_a_person_replaced_stays_and_is_reported_as_drift() {
    let signed = Signed::new();
    signed.sign(10);
    let ferry = Ferry::new(&signed.config().daemon("poll", json!("1s")));
    ferry.sync(&[]).await.expect(0);
    let theirs = Image::oci(11, &[11]);
    signed.production.push("app", &signed.tag, &theirs);
    signed.sign(12);
    for _ in 0..2 {
        let run = ferry.sync(&[]).await.expect(4);
        assert_eq!((run.total("drift"), run.total("up_to_date")), (1, 1));
        let job = run.job(&signed.tag);
        assert_eq!(job["result"], "drift", "{job:#}");
        assert!(
            job["reasons"]
                .to_string()
                .contains("the production tag was changed"),
            "{job:#}"
        );
    }
    let shown = ferry.run(&["sync"]).await.expect(4);
    assert!(shown.stdout.contains(&signed.tag), "{}", shown.stdout);
    assert_eq!(signed.signature_there().as_deref(), Some(theirs.digest()));

    // Polls that have no reason to ask about the image report it all the same.
    let mut daemon = ferry.start_ready().await;
    let polled = signed.staging.count(Kind::Tags);
    signed.staging.seen(Kind::Tags, polled + 3).await;
    let drift = [("route", "app"), ("state", "drift")];
    assert_eq!(daemon.metric("blobferry_tags", &drift).await, Some(1.0));

    // Staging comes to the same signature: nothing stays behind.
    signed.staging.push("app", &signed.tag, &theirs);
    let (status, report) = daemon.ping(json!({"wait": true, "tag": "v1"})).await;
    assert_eq!((status, &report["totals"]["drift"]), (200, &json!(0)));
    let polled = signed.staging.count(Kind::Tags);
    signed.staging.seen(Kind::Tags, polled + 3).await;
    assert_eq!(daemon.metric("blobferry_tags", &drift).await, Some(0.0));
    daemon.signal("TERM").await;
    assert_eq!(daemon.ended().await, 0);
}

#[tokio::test]
async fn a_signature_that_was_there_before_is_existing_and_no_failure() {
    let signed = Signed::new();
    signed.sign(10);
    let theirs = Image::oci(11, &[11]);
    signed.production.push("app", &signed.tag, &theirs);
    let run = Ferry::new(&signed.config()).sync(&[]).await.expect(0);
    assert_eq!((run.total("promoted"), run.total("existing")), (1, 1));
    assert_eq!(run.job(&signed.tag)["result"], "existing");
    assert_eq!(signed.signature_there().as_deref(), Some(theirs.digest()));
}

#[tokio::test]
async fn a_signature_that_the_registry_keeps_immutable_is_a_conflict_under_every_command() {
    let signed = Signed::new();
    let first = signed.sign(10);
    let ferry = Ferry::new(&signed.config());
    ferry.sync(&[]).await.expect(0);
    signed.sign(12);
    let tag = signed.tag.clone();
    signed.production.on(move |asked| match asked.kind {
        Kind::ManifestPut if asked.reference() == tag => {
            let body = r#"{"errors":[{"code":"TAG_INVALID","message":"the tag is immutable"}]}"#;
            Answer::Reply(Reply::status(400).body("application/json", body))
        }
        _ => Answer::Pass,
    });
    let run = ferry.sync(&[]).await.expect(4);
    assert_eq!((run.total("conflict"), run.total("up_to_date")), (1, 1));
    let job = run.job(&signed.tag);
    assert!(
        job["reasons"].to_string().contains("exempt sha256-*"),
        "{job:#}"
    );

    let source = format!("http://{}/app:v1", signed.staging.host());
    let target = format!("http://{}/app:v1", signed.production.host());
    for command in ["copy", "promote"] {
        let run = ferry
            .run(&[command, &source, &target, "--json"])
            .await
            .expect(4);
        assert_eq!(run.job(&signed.tag)["result"], "conflict", "{command}");
    }
    assert_eq!(signed.signature_there().as_deref(), Some(first.digest()));
    assert_eq!(
        signed.production.tagged("app", "v1").as_deref(),
        Some(signed.image.digest())
    );
}

/// Every page of the source's list was read for one tag.
#[tokio::test]
async fn copy_of_one_tag_among_many_reads_a_few_pages_and_takes_its_signature_along() {
    let signed = Signed::new();
    let signature = signed.sign(10);
    let staging = &signed.staging;
    staging.set(|settings| settings.page = 100);
    for number in 0..3000 {
        staging.tag("app", &format!("w{number}"), signed.image.digest());
    }
    let ferry = Ferry::bare();
    let source = format!("http://{}/app:v1", staging.host());
    let target = format!("http://{}/app:v1", signed.production.host());
    ferry.run(&["copy", &source, &target]).await.expect(0);
    let pages = staging.count(Kind::Tags);
    assert!(pages <= 11, "{pages} pages");
    assert_eq!(
        signed.signature_there().as_deref(),
        Some(signature.digest())
    );
}

#[tokio::test]
async fn a_signature_that_comes_later_is_told_by_sync() {
    let signed = Signed::new();
    let ferry = Ferry::new(&signed.config());
    ferry.sync(&[]).await.expect(0);
    let late = signed.sign(10);
    let run = ferry.run(&["sync"]).await.expect(0);
    assert!(
        run.stdout.contains(":v1") && run.stdout.contains("1 referrer carried later"),
        "{}",
        run.stdout
    );
    assert_eq!(signed.signature_there().as_deref(), Some(late.digest()));
    let run = ferry.run(&["sync"]).await.expect(0);
    assert!(!run.stdout.contains(":v1"), "no news: {}", run.stdout);

    signed.sign(12);
    let job = ferry.sync(&[]).await.expect(0).job("v1");
    assert_eq!(
        (&job["result"], &job["referrers"]["copied"]),
        (&json!("up_to_date"), &json!(1)),
        "{job:#}"
    );
}

/// They replaced it, and named the lost digest nowhere.
#[tokio::test]
async fn copy_and_promote_of_an_image_leave_productions_own_signature() {
    for command in ["copy", "promote", "promote --all-tags", "copy -c"] {
        let signed = Signed::new();
        let theirs = signed.sign(10);
        let own = Image::oci(11, &[11]);
        signed.production.push("app", "v1", &signed.image);
        signed.production.push("app", &signed.tag, &own);
        let tag = if command.ends_with("--all-tags") {
            ""
        } else {
            ":v1"
        };
        let source = format!("http://{}/app{tag}", signed.staging.host());
        let target = format!("http://{}/app{tag}", signed.production.host());
        let ferry = match command {
            "copy -c" => Ferry::new(&signed.config()),
            _ => Ferry::bare(),
        };
        let words: Vec<&str> = command.split(' ').filter(|word| *word != "-c").collect();
        let arguments = [&words[..], &[&source, &target, "--json"]].concat();
        let run = ferry.run(&arguments).await.expect(0);
        assert_eq!(
            signed.signature_there().as_deref(),
            Some(own.digest()),
            "{command}"
        );
        let job = run.job(&signed.tag);
        assert_eq!(job["result"], "existing", "{command}: {job:#}");
        assert!(
            job["reasons"]
                .to_string()
                .contains(&format!("--replace {}", own.digest())),
            "{command}: {job:#}"
        );

        // The way that the reason names.
        let source = format!("http://{}/app:{}", signed.staging.host(), signed.tag);
        let target = format!("http://{}/app:{}", signed.production.host(), signed.tag);
        let replace = ["copy", &source, &target, "--replace", own.digest()];
        Ferry::bare().run(&replace).await.expect(0);
        assert_eq!(
            signed.signature_there().as_deref(),
            Some(theirs.digest()),
            "{command}"
        );
    }
}

/// It was left behind without a word.
#[tokio::test]
async fn a_signature_that_staging_lists_and_does_not_have_is_told() {
    for is_tag in [true, false] {
        for is_late in [false, true] {
            let signed = Signed::new();
            let ferry = Ferry::new(&signed.config());
            if is_late {
                ferry.sync(&[]).await.expect(0);
            }
            let signature = match is_tag {
                true => signed.sign(10),
                false => {
                    let signature =
                        Image::referrer(10, &signed.image, "application/vnd.example.signature");
                    signed.staging.push_untagged("app", &signature);
                    signature
                }
            };
            let gone = [signed.tag.clone(), signature.digest().to_owned()];
            signed.staging.on(move |asked| match asked.kind {
                Kind::ManifestHead | Kind::ManifestGet
                    if gone.iter().any(|gone| gone == asked.reference()) =>
                {
                    Answer::Reply(Reply::status(404))
                }
                _ => Answer::Pass,
            });
            let run = ferry.sync(&[]).await.expect(0);
            let job = run.job("v1");
            assert!(
                job["reasons"].to_string().contains("does not have it"),
                "tag {is_tag}, late {is_late}: {job:#}"
            );
            assert!(
                run.stderr.contains("does not have it"),
                "tag {is_tag}, late {is_late}: {}",
                run.stderr
            );
        }
    }
}
