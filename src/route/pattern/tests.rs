use super::*;
use proptest::prelude::*;

fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn patterns_capture_what_their_wildcards_stand_for() {
    let table: &[(&str, &str, Option<&[&str]>)] = &[
        ("staging/app", "app", Some(&[])),
        ("staging/app", "app2", None),
        ("staging/staging-*", "staging-demo", Some(&["demo"])),
        ("staging/staging-*", "staging-demo/x", None),
        ("staging/*", "a", Some(&["a"])),
        ("staging/*", "a/b", None),
        ("staging/**", "a/b/c", Some(&["a/b/c"])),
        ("staging/team/**", "team", None),
        ("staging/team/**", "team/a/b", Some(&["a/b"])),
        ("staging/*/app-*", "team/app-web", Some(&["team", "web"])),
        ("staging/**/release/*", "a/b/release/c", Some(&["a/b", "c"])),
        (
            "staging/**/release/*",
            "a/release/release/c",
            Some(&["a/release", "c"]),
        ),
        ("staging/*-*", "a-b-c", Some(&["a-b", "c"])),
        ("staging/a.b*", "axbc", None),
    ];
    for (from, repository, expected) in table {
        let found = pattern(from).captures(&name(repository));
        assert_eq!(
            found,
            expected.map(|captures| captures.iter().map(ToString::to_string).collect()),
            "{from} {repository}"
        );
    }
}

#[test]
fn prefixes_are_what_a_catalog_can_be_filtered_by() {
    for (from, prefix) in [
        ("s/app", "app"),
        ("s/team/app-*", "team/app-"),
        ("s/**", ""),
        ("s/a/*/b", "a/"),
    ] {
        assert_eq!(pattern(from).prefix(), prefix, "{from}");
    }
    assert_eq!(pattern("s/app").literal(), Some(name("app")));
    assert!(!pattern("s/*").is_literal());
    assert_eq!(pattern("s/team/*").to_string(), "s/team/*");
}

#[test]
fn patterns_that_match_nothing_are_refused() {
    for bad in [
        "", "app", "s/", "/app", "s/App", "s/a//b", "s/***", "s/a-", "s/-*", "s/a:1", "s/{1}",
        "s/a/",
    ] {
        assert!(Pattern::parse(bad).is_err(), "{bad}");
    }
    assert!(matches!(
        Pattern::parse(&format!("s/{}", "*/".repeat(17) + "a")),
        Err(ParseError::TooMany(_))
    ));
}

#[test]
fn templates_are_filled_with_captures() {
    let table: &[(&str, &str, &str, &str)] = &[
        ("s/staging-*", "p/prod-{1}", "staging-web", "prod-web"),
        ("s/**/app-*", "p/{2}/{1}", "a/b/app-x", "x/a/b"),
        ("s/*", "p/{1}/{1}", "web", "web/web"),
        ("s/app", "p/prod-app", "app", "prod-app"),
    ];
    for (from, to, source, destination) in table {
        let from = pattern(from);
        let captures = from.captures(&name(source)).unwrap();
        assert_eq!(
            Template::parse(to, &from).unwrap().fill(&captures),
            Ok(name(destination)),
            "{to}"
        );
    }
    let from = pattern("s/*-x");
    let template = Template::parse("p/b{1}", &from).unwrap();
    assert!(
        template.fill(&["-".to_owned()]).is_err(),
        "a filling that makes no name is told, not sent"
    );
}

#[test]
fn templates_that_cannot_be_filled_are_refused() {
    let from = pattern("s/*");
    assert_eq!(
        Template::parse("p/{2}", &from),
        Err(ParseError::Capture {
            wanted: 2,
            there: 1
        })
    );
    assert_eq!(
        Template::parse("p/{0}", &from),
        Err(ParseError::Capture {
            wanted: 0,
            there: 1
        })
    );
    for bad in [
        "p/{", "p/}", "p/{1", "p/1}", "p/{}", "p/{a}", "p/{+1}", "p/{1}}", "p/{{1}}", "p/*",
        "p/A{1}", "p/{1}/", "p",
    ] {
        assert!(Template::parse(bad, &from).is_err(), "{bad}");
    }
    assert_eq!(
        Template::parse("p/{1}", &pattern("s/a"))
            .unwrap_err()
            .to_string(),
        "there is no capture {1}: `from` has no wildcard"
    );
}

#[test]
fn circles_are_seen() {
    let table = [
        ("r/**", "r/mirror/{1}", "r/**", true),
        ("r/*", "r/prod-{1}", "r/*", true),
        ("r/app", "r/app", "r/app", true),
        ("r/dev-*", "r/{1}", "r/web", true),
        ("r/dev-*", "r/prod-{1}", "r/web", false),
        ("r/dev-*", "r/prod-{1}", "r/dev-*", false),
        ("r/*-dev", "r/{1}", "r/*-dev", false),
        ("r/dev/**", "r/{1}", "r/*/*", true),
        ("r/dev/**", "r/prod/{1}", "r/dev/**", false),
    ];
    for (from, to, reader, expected) in table {
        let from = pattern(from);
        let template = Template::parse(to, &from).unwrap();
        assert_eq!(
            template.may_feed(&pattern(reader)),
            expected,
            "{from} → {to}, read by {reader}"
        );
    }
}

proptest! {
    #[test]
    fn what_is_captured_makes_the_name_again(
        text in "[a-c]{1,2}(/[a-c]{1,2}){0,3}",
        from in "(\\*|\\*\\*|[a-c])(/(\\*|\\*\\*|[a-c])){0,3}",
    ) {
        let pattern = Pattern::parse(&format!("s/{from}")).unwrap();
        let name: RepositoryName = text.parse().unwrap();
        if let Some(captures) = pattern.captures(&name) {
            let mut number = 0;
            let to = from.replace("**", "*").split('*').map(str::to_owned).reduce(|made, next| {
                number += 1;
                format!("{made}{{{number}}}{next}")
            }).unwrap();
            prop_assert_eq!(Template::parse(&format!("p/{to}"), &pattern).unwrap().fill(&captures), Ok(name.clone()));
            prop_assert!(name.as_str().starts_with(pattern.prefix()));
        }
    }

    #[test]
    fn parsing_never_panics(from in "[a-z*/{}1-]{0,20}", to in "[a-z*/{}0-9]{0,20}") {
        if let Ok(from) = Pattern::parse(&from) {
            let _ = Template::parse(&to, &from);
        }
    }
}
