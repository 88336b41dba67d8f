use proptest::prelude::*;
use semver::VersionReq;

use super::*;

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn rules(texts: &[&str]) -> Vec<TagRule> {
    texts
        .iter()
        .map(|text| {
            text.parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"))
        })
        .collect()
}

fn names(choice: &Choice) -> Vec<&str> {
    choice.chosen.iter().map(Tag::as_str).collect()
}

#[test]
fn a_rule_matches_what_it_says() {
    let table: &[(&str, &[&str], &[&str])] = &[
        ("latest", &["latest"], &["latest2", "Latest", "lates"]),
        ("v*", &["v", "v1", "v1.2-rc"], &["1", "av1"]),
        ("*-rc*", &["1-rc", "1-rc.2"], &["rc", "1-r.c"]),
        ("v?.?", &["v1.2"], &["v1.22", "v1x2", "v12"]),
        ("*", &["anything", "1.2.3"], &[]),
        (
            "/^rel-[0-9]+$/",
            &["rel-1", "rel-204"],
            &["rel-", "rel-1a", "xrel-1"],
        ),
        ("/rel/", &["rel", "a-rel-b"], &["re"]),
    ];
    for (rule, yes, no) in table {
        let rule: TagRule = rule.parse().unwrap();
        yes.iter()
            .for_each(|text| assert!(rule.matches(&tag(text)), "{rule} {text}"));
        no.iter()
            .for_each(|text| assert!(!rule.matches(&tag(text)), "{rule} {text}"));
    }
}

#[test]
fn ranges_follow_the_table() {
    let table: &[(&str, &[&str], &[&str])] = &[
        (
            ">=1.2 <3",
            &["1.2.0", "v2.9.9"],
            &["1.1.9", "3.0.0", "2.0.0-rc.1", "1.2", "latest", "v1.2.03"],
        ),
        (">=1.2,<3", &["1.2.0"], &["3.0.0"]),
        (">= 1.2, < 3", &["2.0.0"], &["3.0.0"]),
        (">=v1.2.3", &["1.2.3", "v1.2.4"], &["1.2.2"]),
        ("1.2", &["1.2.0", "1.2.9"], &["1.3.0", "1.1.0"]),
        ("1.2.3", &["1.2.3", "v1.2.3"], &["1.2.4"]),
        ("1.x", &["1.0.0", "1.9.0"], &["2.0.0"]),
        ("1.2.*", &["1.2.7"], &["1.3.0"]),
        ("*", &["0.0.1", "9.9.9"], &["1.0.0-rc.1"]),
        ("^1.2 || ^3", &["1.9.0", "3.1.0"], &["2.0.0", "1.1.0"]),
        ("~1.2.3", &["1.2.9"], &["1.3.0", "1.2.2"]),
        (">1.2", &["1.3.0"], &["1.2.9"]),
        ("<=1.2", &["1.2.9"], &["1.3.0"]),
        (
            ">=1.0.0-0",
            &["1.0.0-rc.1", "1.0.0", "1.5.0-beta"],
            &["0.9.9", "0.9.9-rc.1"],
        ),
        (
            ">=1.0.0-0 <2.0.0",
            &["1.9.0-rc.1"],
            &["2.0.0-rc.1", "2.0.0"],
        ),
        (
            ">=1.0.0-rc.2 <2",
            &["1.0.0-rc.2", "1.0.0-rc.10"],
            &["1.0.0-rc.1", "2.0.0-a"],
        ),
        ("=1.0.0-rc.1", &["v1.0.0-rc.1"], &["1.0.0", "1.0.0-rc.2"]),
    ];
    for (range, yes, no) in table {
        let rule: TagRule = format!("semver:{range}").parse().unwrap();
        yes.iter()
            .for_each(|text| assert!(rule.matches(&tag(text)), "{rule} {text}"));
        no.iter()
            .for_each(|text| assert!(!rule.matches(&tag(text)), "{rule} {text}"));
    }
}

#[test]
fn what_cannot_match_is_refused() {
    for bad in [
        "",
        "a b",
        "rel/1",
        ".*",
        "-*",
        "ü",
        "/abc",
        "/",
        "//",
        "/[/",
        "/(/",
        "/a{999}{999}{999}/",
    ] {
        assert!(bad.parse::<TagRule>().is_err(), "{bad}");
    }
    for bad in [
        "", " ", "one", ">=", ">=1.2 <", "1.2 - 3", "^1 ||", "1.2.3.4", "||",
    ] {
        assert!(format!("semver:{bad}").parse::<TagRule>().is_err(), "{bad}");
    }
}

#[test]
fn exclude_always_wins_and_newest_counts_versions_only() {
    let selection = Selection {
        include: rules(&["latest", "semver:>=1.0.0", "nightly-*"]),
        exclude: rules(&["*-debug", "v1.3.0"]),
        newest: NonZeroU32::new(2),
        moving: rules(&["latest", "nightly-*"]),
        ..Selection::default()
    };
    let signature = format!("sha256-{}.sig", "a".repeat(64));
    let tags: Vec<Tag> = [
        "v1.0.0",
        "latest",
        "v1.10.0",
        "v1.2.0",
        "v1.3.0",
        "nightly-1",
        "nightly-1-debug",
        "junk",
        &signature,
    ]
    .map(tag)
    .into();
    let choice = selection.choose(tags.iter());
    assert_eq!(names(&choice), ["latest", "v1.10.0", "v1.2.0", "nightly-1"]);
    assert_eq!(
        choice.excluded, 4,
        "v1.0.0, v1.3.0, nightly-1-debug, junk; the signature is not counted"
    );
    assert!(
        selection.allows(&tag("v1.0.0")),
        "newest is a matter of siblings"
    );
    assert!(!selection.allows(&tag("v1.3.0")));
    assert!(!selection.allows(&tag(&signature)));
    assert!(selection.is_moving(&tag("nightly-7")));
    assert!(!selection.is_moving(&tag("v1.2.0")));
}

#[test]
fn a_signature_never_passes_by_rule() {
    let selection = Selection {
        include: rules(&["*"]),
        ..Selection::default()
    };
    let fallback = tag(&format!("sha256-{}", "0".repeat(64)));
    assert_eq!(selection.choose([&fallback].into_iter()), Choice::default());
}

fn any_tag() -> impl Strategy<Value = Tag> {
    let texts = prop_oneof![
        (0..4u64, 0..4u64, 0..4u64).prop_map(|(a, b, c)| format!("{a}.{b}.{c}")),
        (0..4u64, 0..4u64, 0..3u64).prop_map(|(a, b, c)| format!("v{a}.{b}.0-rc.{c}")),
        "[a-c]{1,3}(-rc)?",
    ];
    texts.prop_map(|text| text.parse().unwrap())
}

proptest! {
    #[test]
    fn no_chosen_tag_is_excluded_and_nothing_gets_lost(tags in prop::collection::vec(any_tag(), 0..40), newest in 0..5u32) {
        let selection = Selection {
            include: rules(&["a*", "semver:>=1.0.0-0"]),
            exclude: rules(&["*-rc", "semver:2.x"]),
            newest: NonZeroU32::new(newest),
            ..Selection::default()
        };
        let tags: BTreeSet<Tag> = tags.into_iter().collect();
        let choice = selection.choose(tags.iter());
        prop_assert!(choice.chosen.iter().all(|tag| !selection.exclude.iter().any(|rule| rule.matches(tag))));
        prop_assert_eq!(choice.chosen.len() + choice.excluded, tags.len());
        if newest > 0 {
            prop_assert!(choice.chosen.iter().filter(|tag| version(tag).is_some()).count() <= newest as usize);
        }
    }

    #[test]
    fn the_order_of_a_listing_does_not_matter(
        (tags, shuffled) in prop::collection::btree_set(any_tag(), 0..30).prop_flat_map(|tags| {
            let tags: Vec<Tag> = tags.into_iter().collect();
            (Just(tags.clone()), Just(tags).prop_shuffle())
        }),
    ) {
        let selection = Selection { include: rules(&["*"]), newest: NonZeroU32::new(3), ..Selection::default() };
        let set = |choice: Choice| (choice.chosen.into_iter().collect::<BTreeSet<_>>(), choice.excluded);
        prop_assert_eq!(set(selection.choose(tags.iter())), set(selection.choose(shuffled.iter())));
    }

    #[test]
    fn releases_are_compared_as_the_semver_crate_does(
        operator in prop::sample::select(vec!["=", ">", ">=", "<", "<=", "~", "^"]),
        wanted in "[0-2](\\.[0-2](\\.[0-2])?)?",
        (major, minor, patch) in (0..4u64, 0..4u64, 0..4u64),
    ) {
        let text = format!("{operator}{wanted}");
        let range: Range = text.parse().unwrap();
        let version = Version::new(major, minor, patch);
        prop_assert_eq!(range.contains(&version), VersionReq::parse(&text).unwrap().matches(&version), "{} {}", text, version);
    }

    #[test]
    fn parsing_never_panics(text in "(semver:)?[/*?<>=^~|., v0-9a-z\\[\\](){}+-]{0,30}") {
        let _ = text.parse::<TagRule>();
    }
}

#[test]
fn rules_that_can_never_match_are_found_and_no_others() {
    let rules = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| text.parse().unwrap())
            .collect::<Vec<TagRule>>()
    };
    let selection = |include: &[&str], exclude: &[&str], moving: &[&str]| Selection {
        include: rules(include),
        exclude: rules(exclude),
        moving: rules(moving),
        ..Selection::default()
    };
    for range in [
        "semver:*",
        "semver:>=1.2 <3",
        "semver:1.x",
        "semver:^2.1 || ^3",
        "semver:<1",
        "semver:>1.2.3 <1.2.5",
        "semver:>=1.0.0-0 <1.0.0-5",
        "semver:0.0.x",
    ] {
        assert_eq!(
            selection(&[range], &[], &[]).idle_rules(),
            [""; 0],
            "{range}"
        );
    }
    for range in [
        "semver:>2 <1",
        "semver:>=1.2.3 <1.2.3",
        "semver:>3 <2 || >5 <5",
    ] {
        assert_eq!(
            selection(&[range], &[], &[]).idle_rules().len(),
            1,
            "{range}"
        );
    }
    let companion = format!("sha256-{}.sig", "0".repeat(64));
    for (rules, words) in [
        (
            selection(&["latest", "v*"], &["latest"], &["latest"]),
            "exclude has latest",
        ),
        (
            selection(&["v*"], &[], &["stable", "latest"]),
            "moving: stable",
        ),
        (selection(&["v*"], &["v1*"], &["v1"]), "moving: v1"),
        (
            selection(&["v*", &companion], &[], &[]),
            "travels with its image",
        ),
    ] {
        let idle = rules.idle_rules();
        assert!(idle.len() == 1 && idle[0].contains(words), "{idle:?}");
    }
    assert_eq!(
        selection(&["*"], &["*-rc*"], &["latest", "edge", "v1"]).idle_rules(),
        [""; 0]
    );
}
