//! From one config, the old tool and blobferry fill an empty registry each: both choose the same tags. Tags that no
//! range takes here are named, and never is one chosen that the old tool leaves out.

use crate::support::*;

/// Tags at the edges of what rules take.
const TAGS: [&str; 25] = [
    "latest",
    "edge",
    "1",
    "1.2",
    "1.3",
    "0.0.0",
    "0.0.5",
    "0.3.0",
    "1.2.0",
    "1.2.3",
    "1.3.0",
    "2.0.0",
    "2.1.0",
    "v1.2.3",
    "v1.3.0",
    "v1.3.0-rc.1",
    "1.3.0-rc1",
    "1.13.2-alpine",
    "2.0.0-beta",
    "1.2.3.4",
    "3.0.0_1",
    "20240115",
    "2024.01.15",
    "sha-0a1b2c3",
    "RELEASE-7",
];

/// A repository, the rules for its tags, and the tags that the old tool alone takes.
type Row = (&'static str, &'static str, &'static [&'static str]);

/// A source, and an empty registry for either program.
struct Trial {
    source: Registry,
    old: Registry,
    new: Registry,
    ferry: Ferry,
}

impl Trial {
    /// The source has all tags in each repository.
    async fn of(rows: &[Row]) -> Trial {
        let source = Program::Distribution3.start();
        let image = Image::oci(1, &[100]);
        let push = source.client();
        for (repository, _, _) in rows {
            for tag in TAGS {
                push.push(repository, tag, &image).await;
            }
        }
        Trial {
            source,
            old: Program::Distribution3.start(),
            new: Program::Distribution3.start(),
            ferry: Ferry::bare(),
        }
    }

    /// `migrate` of the file, and one pass with what it prints.
    async fn sync(&self, arguments: &[&str]) {
        let migrate = [&["migrate"][..], arguments].concat();
        let run = self.ferry.run(&migrate).await.expect(0);
        let config = self.ferry.file("new.yaml", &run.stdout);
        let state = self.ferry.path("state").display().to_string();
        let sync = ["sync", "-c", &config, "--state", &state];
        self.ferry.run(&sync).await.expect(0);
    }

    async fn assert_same_tags(&self, rows: &[Row]) {
        for (repository, rules, of_old_alone) in rows {
            let mut of_old = self.old.client().tags(repository).await;
            assert!(!of_old.is_empty(), "{repository}: {rules}");
            for tag in *of_old_alone {
                assert!(
                    of_old.iter().any(|known| known == tag),
                    "{repository}: {tag}"
                );
            }
            of_old.retain(|tag| !of_old_alone.contains(&tag.as_str()));
            let of_new = self.new.client().tags(repository).await;
            assert_eq!(of_old, of_new, "{repository}: {rules}");
        }
    }
}

#[tokio::test]
async fn skopeo_and_blobferry_choose_the_same_tags() {
    let rows: [Row; 6] = [
        ("all", "images: []", &[]),
        (
            "listed",
            "images: [latest, '1.2', 1.2.0, '20240115', RELEASE-7, 3.0.0_1]",
            &[],
        ),
        (
            "either",
            r"images-by-tag-regex: ^1\.13\.[12]-alpine$|edge",
            &[],
        ),
        ("part", "images-by-tag-regex: rc", &[]),
        ("whole", r"images-by-tag-regex: ^v?\d+\.\d+\.\d+$", &[]),
        ("letters", "images-by-tag-regex: (?i)^release", &[]),
    ];
    let trial = Trial::of(&rows).await;
    let mut text = format!("{}:\n  tls-verify: false\n", trial.source.address());
    for key in ["images", "images-by-tag-regex"] {
        text.push_str(&format!("  {key}:\n"));
        for (repository, rules, _) in &rows {
            let own = rules.strip_prefix(&format!("{key}: "));
            text.extend(own.map(|own| format!("    {repository}: {own}\n")));
        }
    }
    let file = trial.ferry.file("sync.yml", &text);
    skopeo::sync(&file, trial.old.address(), &[]).await;
    trial.sync(&["--to", trial.new.address(), &file]).await;
    trial.assert_same_tags(&rows).await;
}

/// A range of regsync takes versions of any length with any suffix; here a version is MAJOR.MINOR.PATCH.
const OF_REGSYNC: [Row; 17] = [
    ("all", "", &[]),
    ("allowed", r"tags: {allow: ['v?1\.[0-9.]+', 'sha-.*']}", &[]),
    ("alternatives", "tags: {allow: ['1.2|edge']}", &[]),
    ("anchored", "tags: {allow: ['^v.*', '.*alpine$']}", &[]),
    ("letters", r"tags: {allow: ['(?i)release-\d']}", &[]),
    ("denied", "tags: {deny: ['.*-.*', latest]}", &[]),
    ("both", r"tags: {allow: ['1\..*'], deny: ['.*\.0']}", &[]),
    (
        "sets",
        "tagSets: [{allow: ['v.*']}, {semverRange: ['2.0.0']}]",
        &[],
    ),
    (
        "range",
        "tags: {semverRange: ['>=1.2.0 <2.0.0']}",
        &[
            "1.13.2-alpine",
            "1.2",
            "1.2.3.4",
            "1.3",
            "1.3.0-rc1",
            "2.0.0-beta",
            "v1.3.0-rc.1",
        ],
    ),
    (
        "pre-releases",
        "tags: {semverRange: ['>=1.3.0-0 <2.0.0']}",
        &["1.3", "2.0.0-beta"],
    ),
    ("below", "tags: {semverRange: ['<=1.2']}", &["1", "1.2"]),
    (
        "above",
        "tags: {semverRange: ['>1.2 <2']}",
        &[
            "1.13.2-alpine",
            "1.2.3.4",
            "1.3",
            "1.3.0-rc1",
            "2.0.0-beta",
            "v1.3.0-rc.1",
        ],
    ),
    ("exact", "tags: {semverRange: ['1.3', '=2']}", &["1.3"]),
    ("caret", "tags: {semverRange: [^0]}", &[]),
    ("tilde", "tags: {semverRange: ['~1']}", &["1"]),
    (
        "denied-range",
        r"tags: {semverRange: ['~2.0', '^2.1'], deny: ['.*\.1\..*']}",
        &[],
    ),
    ("group/app", "tags: {allow: ['1.*']}", &[]),
];

/// Needs regsync: `benches/peers`, then `cargo test --test it -- --ignored chosen`.
#[tokio::test]
#[ignore = "needs regsync"]
async fn regsync_and_blobferry_choose_the_same_tags() {
    let trial = Trial::of(&OF_REGSYNC).await;
    let source = trial.source.address();
    let config = |target: &str| {
        let hosts =
            [source, target].map(|host| format!("- {{registry: '{host}', tls: disabled}}\n"));
        let mut text = format!("version: 1\ncreds:\n{}sync:\n", hosts.concat());
        for (repository, rules, _) in &OF_REGSYNC {
            text.push_str(&match repository.strip_prefix("group/") {
                None => format!(
                    "- source: {source}/{repository}\n  target: {target}/{repository}\n  type: repository\n  {rules}\n"
                ),
                Some(_) => format!(
                    "- source: {source}\n  target: {target}\n  type: registry\n  repos: {{allow: ['group/.*']}}\n  {rules}\n"
                ),
            });
        }
        text
    };
    let file = trial.ferry.file("old.yml", &config(trial.old.address()));
    let folder = tempfile::tempdir().expect("a scratch directory");
    peer::run(
        folder.path(),
        "regsync",
        "benches/peers",
        &["once", "-c", &file],
    )
    .await;
    let file = trial
        .ferry
        .file("regsync.yml", &config(trial.new.address()));
    trial.sync(&[&file]).await;
    trial.assert_same_tags(&OF_REGSYNC).await;
}
