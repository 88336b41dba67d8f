//! `migrate`: what comes out of the configs of other tools passes `check`, holds no secret, and takes
//! the tags that the other tool took.

mod chosen;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support::*;

const KINDS: [&str; 7] = [
    "dregsy",
    "image-syncer",
    "ocync",
    "regsync",
    "script",
    "sinker",
    "skopeo",
];

/// What stands in the old files and in no output.
const SECRETS: [&str; 9] = [
    "correct-horse-battery",
    "eyJ1c2VybmFtZSI6",
    "hunter2hunter2",
    "pa55phrase",
    "swordfish",
    "teamsecret",
    "this is a secret",
    "tok-secret-31337",
    "robot$mirror",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/migrate")
}

/// The old files, by name.
fn samples() -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder()).expect("the folder of samples");
    let mut samples: Vec<(String, PathBuf)> = entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "in"))
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy();
            (name.into_owned(), path)
        })
        .collect();
    samples.sort();
    samples
}

/// The kind that a sample's name starts with.
fn kind_of(sample: &str) -> &'static str {
    let starts = |kind: &&&str| sample.starts_with(&format!("{kind}-"));
    KINDS
        .iter()
        .find(starts)
        .unwrap_or_else(|| panic!("{sample} is named after no kind"))
}

fn ferry() -> Ferry {
    Ferry::bare()
        .with_env("AWS_ACCOUNT_ID", "123456789012")
        .with_env("CI_REGISTRY", "registry.ci.example")
}

#[tokio::test]
async fn each_format_becomes_a_config_that_check_takes() {
    let ferry = ferry();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, path) in samples() {
        let kind = kind_of(&name);
        *seen.entry(kind).or_default() += 1;
        let file = path.display().to_string();
        let run = ferry.run(&["migrate", &file]).await.expect(0);
        assert!(
            run.stderr.contains(&format!("read as {kind}: ")),
            "{}",
            run.said()
        );
        let golden = std::fs::read_to_string(path.with_extension("yaml")).unwrap_or_default();
        assert_eq!(run.stdout, golden, "{name}");
        for secret in SECRETS {
            assert!(!run.stdout.contains(secret), "{name}: {secret}");
            assert!(!run.stderr.contains(secret), "{name}: {secret}");
        }
        let config = ferry.file("migrated.yaml", &run.stdout);
        ferry.run(&["check", "-c", &config]).await.expect(0);
    }
    for kind in KINDS {
        assert!(seen[kind] >= 3, "{kind} has too few samples");
    }
}

/// Every comment on a line of the old file is told on stderr too, with the file and the line.
#[tokio::test]
async fn what_has_no_counterpart_is_summed_up() {
    let file = folder().join("ocync-hub.in").display().to_string();
    let run = ferry().run(&["migrate", &file]).await.expect(0);
    let comments: Vec<&str> = run
        .stdout
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("# line ")?.split_once(": "))
        .map(|(_, text)| text)
        .collect();
    assert!(comments.len() > 5, "{comments:?}");
    for comment in comments {
        assert!(run.stderr.contains(comment), "{comment}\n{}", run.stderr);
    }
    assert!(run.stderr.contains(&format!("{file}:25: immutable_tags")));
    assert!(run.stderr.contains(&format!("{file}:31: left out: ")));
}

#[tokio::test]
async fn the_destination_of_skopeo_is_said_on_the_command_line() {
    let ferry = ferry();
    let file = folder().join("skopeo-many.in").display().to_string();
    let to = ["migrate", "--to", "registry.example/mirror", &file];
    let run = ferry.run(&to).await.expect(0);
    assert!(
        run.stdout.contains("to: registry.example/mirror/app"),
        "{}",
        run.stdout
    );
    let scoped = [&to[..], &["--scoped"]].concat();
    let run = ferry.run(&scoped).await.expect(0);
    assert!(
        run.stdout
            .contains("to: registry.example/mirror/ghcr.io/acme/other/app"),
        "{}",
        run.stdout
    );
    assert!(!run.stdout.contains("Left out"), "{}", run.stdout);
}

#[tokio::test]
async fn a_file_of_no_known_shape_is_refused_in_words() {
    let ferry = ferry();
    let deep = format!("sync: {}{}", "[".repeat(2000), "]".repeat(2000));
    let mut bomb = String::from("x-0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 8].join(", ");
        bomb.push_str(&format!("x-{level}: &a{level} [{aliases}]\n"));
    }
    let long = format!("sync: [] # {}", "x".repeat(10 * 1024 * 1024));
    let many = "- docker push a.example/b\n".repeat(3);
    let table: [(&str, &str, &str); 18] = [
        ("empty", "", "is none of the formats"),
        ("text", "hello\n", "is none of the formats"),
        (
            "ours",
            "registries: {a: {url: x}}\nroutes: []\n",
            "is a config of blobferry already",
        ),
        (
            "two",
            "sync: []\ntasks: []\n",
            "could be more than one format; name the one that it is: --from regsync|dregsy",
        ),
        ("deep", &deep, "is not YAML that can be read"),
        ("bomb", &bomb, "is not YAML that can be read"),
        ("long", &long, "is longer than 1 MiB"),
        (
            "broken",
            "sync:\n  - a: [1\n",
            "is not YAML that can be read",
        ),
        (
            "list",
            "version: 1\nsync: one\n",
            "2:7: `sync`: expected a list, found one value",
        ),
        (
            "source",
            "sync:\n  - target: a.example/b\n",
            "2:5: has no `source`",
        ),
        (
            "type",
            "sync:\n  - {source: a.example/b, target: c.example/d, type: disk}\n",
            "2:5: `type` is none of",
        ),
        (
            "tags",
            "sync:\n  - {source: a.example/b, target: c.example/d, tags: [x]}\n",
            "`tags`: expected a mapping, found a list",
        ),
        (
            "number",
            "tasks:\n  - {interval: soon, source: {registry: a.example}, target: {registry: b.example}}\n",
            "`interval` is not a number",
        ),
        (
            "twice",
            "sync: []\nversion: 1\nsync:\n  - {source: a.example/b, target: c.example/d}\n",
            "3:1: `sync` is written twice; the first is at 1:1",
        ),
        (
            "images",
            "a.example:\n  images:\n    b: [v1]\n    b: [v2]\n",
            "4:5: `b` is written twice; the first is at 3:5",
        ),
        (
            "buildspec",
            "phases:\n  build: {commands: [docker pull a.example/b]}\n  build: {commands: []}\n",
            "3:3: `build` is written twice; the first is at 2:3",
        ),
        (
            "nothing",
            "version: 1\nsync: []\n",
            "nothing in it can be a route",
        ),
        ("pushes", &many, "nothing in it can be a route"),
    ];
    for (name, text, words) in table {
        let file = ferry.file(name, text);
        let run = ferry.run(&["migrate", &file]).await.expect(2);
        assert!(run.stderr.contains(words), "{name}: {}", run.stderr);
        assert!(run.stderr.contains(&file), "{name}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{name}");
    }
    let file = ferry.path("binary");
    std::fs::write(&file, b"\xff\xfe\x00").unwrap();
    let file = file.display().to_string();
    let run = ferry.run(&["migrate", &file]).await.expect(2);
    assert!(run.stderr.contains("is not UTF-8 text"), "{}", run.stderr);
    let run = ferry.run(&["migrate", "/nowhere/at/all"]).await.expect(2);
    assert!(
        run.stderr.contains("cannot read /nowhere/at/all"),
        "{}",
        run.stderr
    );
}

#[tokio::test]
async fn unknown_keys_are_told_by_name_and_passwords_never() {
    let ferry = ferry();
    let text = "sync:\n  - source: joe:sesame1@a.example/b:v1\n    target: c.example/d:v1\n    type: image\n  \
                - {source: 'a.example/b:v1', target: 'c.example/d:v1', type: image, colour: sesame2}\n";
    let file = ferry.file("regsync.yml", text);
    let run = ferry.run(&["migrate", &file]).await.expect(0);
    assert!(
        run.stderr.contains(":5: colour: is not known and left out"),
        "{}",
        run.stderr
    );
    for secret in ["sesame1", "sesame2"] {
        assert!(!run.said().contains(secret), "{}", run.said());
    }
}

/// Logins in places where they are none of the format's.
#[tokio::test]
async fn a_login_in_an_address_is_never_printed() {
    let ferry = ferry();
    let of_regsync = |entry: &str| {
        format!("sync:\n- {{source: {entry}, target: b.example/b, type: repository}}\n")
    };
    let table = [
        of_regsync("'https://joe:ses(ame1@a.example/b'"),
        of_regsync("'https://joe:sesame1 x@a.example/b'"),
        of_regsync("'https://joe:1/sesame1@a.example/b'"),
        of_regsync("sesame1@a.example/b"),
        of_regsync("'a.example/b:v1?token=sesame1'"),
        "creds:\n- {registry: a.example, hostname: 'joe:sesame1@a.example'}\n".to_owned()
            + &of_regsync("a.example/b"),
        "'joe:sesame1@a.example': {images: {b: [v1]}}\n".to_owned(),
        "'https://joe:sesame1@a.example': {images: {b: [v1]}}\n".to_owned(),
        "target: {host: 'joe:sesame1@a.example'}\nsources: [{repository: b/c, tag: v1}]\n"
            .to_owned(),
        "skopeo copy docker://a.example/b:v1 'docker://joe:ses(ame1@a.example/b:v1'\n".to_owned(),
    ];
    for text in table {
        let file = ferry.file("old", &text);
        let run = ferry.run(&["migrate", &file]).await.expect(2);
        assert!(!run.said().contains("ame1"), "{text}{}", run.said());
        assert!(run.stderr.contains(": left out: "), "{text}{}", run.said());
        assert_eq!(run.stdout, "", "{text}");
    }
    let file = ferry.file("old", "a.example: {images: {b: [v1]}}\n");
    let to = ["migrate", "--to", "joe:sesame1@b.example", &file];
    let run = ferry.run(&to).await.expect(2);
    assert!(!run.said().contains("sesame1"), "{}", run.said());
}

/// What the old tool does not promote, or only beside other tags.
#[tokio::test]
async fn what_would_promote_more_is_left_out() {
    let ferry = ferry();
    let ocync = |tags: &str| {
        format!(
            "registries: {{s: {{url: s.example}}, d: {{url: d.example}}}}\n\
             mappings: [{{from: a, source: s, targets: [d]{tags}}}]\n"
        )
    };
    let dregsy = |entry: &str| {
        format!(
            "tasks:\n- source: {{registry: s.example/p}}\n  target: {{registry: d.example}}\n  mappings: [{entry}]\n"
        )
    };
    let digest = format!("sha256:{}", "a".repeat(64));
    let table = [
        (ocync(", tags: {glob: '*', sort: semver, latest: 5}"), "counts all tags"),
        (ocync(", tags: {glob: '${G:-v*}'}"), "a rule with a variable"),
        (ocync(", tags: {glob: '*', exclude: ['${G:-*-dev}']}"), "a rule with a variable"),
        (ocync(""), "has no `tags`"),
        (dregsy("{from: a, tags: ['regex: .*-alpine', 'keep: latest 5']}"), "counts all tags"),
        (dregsy("{from: 'regex: a/.*'}"), "below a registry with a path"),
        (dregsy("{from: 'a${HOME}'}"), "does not fill in"),
        ("'a.example/b:${X:-*}': 'c.example/d:${X:-*}'\n".to_owned(), "a tag is no tag"),
        (
            format!("target: {{host: d.example}}\nsources: [{{repository: a/b, tag: v1, digest: '{digest}'}}]\n"),
            "names a digest",
        ),
        ("docker tag s.example/a:v1 d.example/a:v1; docker push d.example/a:v1\n".to_owned(), "not one that was pulled"),
        (
            "docker pull s.example/a:v1; docker build --tag=s.example/a:v1 .\n\
             docker tag s.example/a:v1 d.example/a:v1; docker push d.example/a:v1\n"
                .to_owned(),
            "not one that was pulled",
        ),
        (
            "docker pull s.example/a; docker pull s.example/b; docker tag s.example/a d.example/x\n\
             if y; then docker tag s.example/b d.example/x; fi; docker push d.example/x\n"
                .to_owned(),
            "a condition says which image",
        ),
        ("exit 0\ncrane cp s.example/a:v1 d.example/a:v1\n".to_owned(), "stands behind `exit`"),
        ("cat <<X\ncrane cp s.example/a:v1 d.example/a:v1\nX\n".to_owned(), "another program gets them"),
        ("skopeo copy --dry-run docker://s.example/a:v1 docker://d.example/a:v1\n".to_owned(), "it copies nothing"),
        ("crane cp -a s.example/a d.example/a\n".to_owned(), "copies all tags"),
    ];
    for (text, words) in table {
        let file = ferry.file("old", &text);
        let run = ferry.run(&["migrate", &file]).await.expect(2);
        assert!(run.stderr.contains(words), "{text}{}", run.stderr);
        assert_eq!(run.stdout, "", "{text}");
    }
}

/// image-syncer has logins and images in two files; neither is lost.
#[tokio::test]
async fn logins_and_images_in_two_files_become_one() {
    let ferry = ferry();
    let auth = "d.example:\n  username: joe\n  password: sesame1\n  insecure: true\n";
    ferry.file("auth.yaml", auth);
    ferry.file("images.yaml", "s.example/a:v1: d.example/a\n");
    let auth = ferry.path("auth.yaml").display().to_string();
    let images = ferry.path("images.yaml").display().to_string();
    let run = ferry.run(&["migrate", &auth]).await.expect(2);
    assert_eq!(run.stdout, "");
    let words = "has logins and no images: put the content of auth.yaml below `auth:`";
    assert!(run.stderr.contains(words), "{}", run.stderr);
    let both = format!(
        "{{ echo auth:; sed 's/^/  /' {auth}; echo images:; sed 's/^/  /' {images}; }} > {images}.both"
    );
    assert_eq!(ferry.shell(&both).await, 0);
    let run = ferry
        .run(&["migrate", &format!("{images}.both")])
        .await
        .expect(0);
    for words in [
        "url: \"http://d.example\"\n",
        "    # username: NAME\n    # password_file: ",
        "from: s.example/a\n",
    ] {
        assert!(run.stdout.contains(words), "{words}{}", run.stdout);
    }
    assert!(!run.said().contains("sesame1"), "{}", run.said());
}

/// A token is a bearer credential only where the old tool sends it as one.
#[tokio::test]
async fn a_token_is_what_it_was() {
    let ferry = ferry();
    let ocync = |keys: &str| {
        format!(
            "registries:\n  s: {{url: s.example}}\n  d: {{url: d.example, {keys}}}\n\
             mappings: [{{from: a, source: s, targets: [d], tags: {{glob: '*'}}}}]\n"
        )
    };
    let bearer = "    # auth: bearer\n    # token_file: ";
    let basic = "    # username: NAME\n    # password_file: ";
    let is_bearer = "auth_type: static_token is `auth: bearer`: no secret";
    let alone = "token: counts with `auth_type: static_token` alone";
    let no_key = "credentials.token: is left out, ocync has no such key";
    let table = [
        ("auth_type: static_token, token: sesame1", bearer, is_bearer),
        ("auth_type: token, token: sesame1", bearer, is_bearer),
        ("auth_type: static_token", bearer, is_bearer),
        (
            "auth_type: static_token, credentials: {token: sesame1}",
            bearer,
            no_key,
        ),
        (
            "auth_type: static_token, token: sesame1, credentials: {username: joe, password: sesame1}",
            bearer,
            "credentials: do not count",
        ),
        (
            "auth_type: basic, credentials: {username: joe, password: sesame1}",
            basic,
            "credentials: no secret",
        ),
        (
            "auth_type: basic, credentials: {username: joe, token: sesame1}",
            basic,
            no_key,
        ),
        (
            "auth_type: docker_config, token: sesame1",
            "    auth: docker-config\n",
            alone,
        ),
        (
            "token: sesame1",
            "    url: \"https://d.example\"\n\n",
            alone,
        ),
        (
            "credentials: {token: sesame1}",
            "    url: \"https://d.example\"\n\n",
            no_key,
        ),
    ];
    for (keys, lines, words) in table {
        let file = ferry.file("ocync.yaml", &ocync(keys));
        let run = ferry.run(&["migrate", &file]).await.expect(0);
        assert!(run.stdout.contains(lines), "{keys}: {}", run.stdout);
        assert!(run.stderr.contains(words), "{keys}: {}", run.stderr);
        assert!(!run.said().contains("sesame1"), "{}", run.said());
        let has_both =
            run.stdout.contains("password_file: ") && run.stdout.contains("token_file: ");
        assert!(!has_both, "{keys}: {}", run.stdout);
    }
    let regsync = "creds: [{registry: d.example, token: sesame1}]\n\
                   sync: [{source: s.example/a, target: d.example/a, type: repository}]\n";
    let file = ferry.file("regsync.yaml", regsync);
    let run = ferry.run(&["migrate", &file]).await.expect(0);
    assert!(
        run.stderr.contains("name it as `identitytoken`"),
        "{}",
        run.stderr
    );
    assert!(!run.stdout.contains("token_file"), "{}", run.stdout);
    assert!(!run.said().contains("sesame1"), "{}", run.said());
}

/// In dregsy each side of a task has its own login, here a registry has one.
#[tokio::test]
async fn a_login_beside_none_is_kept_and_told() {
    let ferry = ferry();
    let side = |auth: &str| {
        format!(
            "- source: {{registry: s.example, auth: {auth}}}\n  target: {{registry: d.example}}\n  \
             mappings: [{{from: {auth}/a}}]\n"
        )
    };
    for (first, second) in [("none", "c2VzYW1lMQ"), ("c2VzYW1lMQ", "none")] {
        let text =
            format!("tasks:\n{}{}", side(first), side(second)).replace("c2VzYW1lMQ/a", "b/a");
        let file = ferry.file("dregsy.yaml", &text);
        let run = ferry.run(&["migrate", &file]).await.expect(0);
        assert!(!run.stdout.contains("auth: anonymous\n"), "{}", run.stdout);
        assert!(
            run.stdout.contains("    # password_file: "),
            "{}",
            run.stdout
        );
        let words = ":5: auth: none beside a login for the same registry";
        assert!(run.stderr.contains(words), "{}", run.stderr);
        assert!(!run.said().contains("c2VzYW1lMQ"), "{}", run.said());
    }
    let text = format!("tasks:\n{}", side("none"));
    let file = ferry.file("dregsy.yaml", &text);
    let run = ferry.run(&["migrate", &file]).await.expect(0);
    assert!(
        run.stdout.contains("    auth: anonymous\n"),
        "{}",
        run.stdout
    );
}

/// Of two wildcards that match one repository the first alone has it.
#[tokio::test]
async fn wildcards_within_each_other_are_told() {
    let ferry = ferry();
    let text = |tags: &str| {
        format!(
            "tasks:\n- source: {{registry: s.example}}\n  target: {{registry: d.example}}\n  mappings:\n  \
             - {{from: 'regex:a/b/.*', tags: [{tags}]}}\n  - {{from: 'regex:a/.*'}}\n  \
             - {{from: 'regex:c/.*'}}\n"
        )
    };
    let table = [
        (
            "'regex: .*'",
            "add its destination to `to` if both are meant",
        ),
        ("'regex: v.*'", "its rules for tags are others"),
    ];
    for (tags, advice) in table {
        let file = ferry.file("dregsy.yaml", &text(tags));
        let run = ferry.run(&["migrate", &file]).await.expect(0);
        let words = ":5: line 6 matches repositories of this route too: here the first route alone has them";
        assert!(run.stderr.contains(words), "{}", run.stderr);
        assert!(run.stderr.contains(advice), "{}", run.stderr);
        assert_eq!(run.stderr.matches(" matches ").count(), 1, "{}", run.stderr);
    }
}

/// The old files of the page, each with what comes out of it.
#[tokio::test]
async fn the_page_shows_what_is_printed() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/coming-from.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let blocks = crate::docs::blocks(&page);
    let ferry = ferry();
    let mut seen = Vec::new();
    for pair in blocks.windows(2) {
        let kind = pair[0].info.strip_prefix("yaml ").unwrap_or_default();
        if !KINDS.contains(&kind) {
            continue;
        }
        let file = ferry.file("old", &pair[0].text);
        let to = ["--to", "registry.production.example"];
        let run = ferry
            .run(&["migrate", "--from", kind, to[0], to[1], &file])
            .await
            .expect(0);
        assert_eq!(pair[1].info, "yaml config", "{kind}");
        assert_eq!(pair[1].text, run.stdout, "{kind}");
        seen.push(kind.to_owned());
    }
    assert_eq!(seen, ["regsync", "skopeo"]);
}

/// One value too many costs its own route, not all of them.
#[tokio::test]
async fn large_and_odd_files_keep_what_can_be_kept() {
    let ferry = ferry();
    let images = |count: usize, name: &str| -> String {
        let lines = (0..count).map(|number| {
            format!(
                "    a{number}/{}: [v1]\n",
                name.replace('N', &number.to_string())
            )
        });
        format!("q.example:\n  images:\n{}", lines.collect::<String>())
    };
    let long = ["abcdefghij"; 12].join("/");
    let table = [
        (images(2001, "bN"), "2000 routes, "),
        (images(300, "same"), "1 route, "),
        (format!("sync: [{{source: s.example/{long}, target: d.example/q, type: repository, interval: 800h}}]\n"), "1 route, "),
        (
            "sync: [{source: '{{env \"SRC\"}}/a', target: '{{env \"DST\"}}/a', type: repository}]\n".to_owned(),
            "1 route, ",
        ),
    ];
    for (text, words) in table {
        let file = ferry.file("old", &text);
        let run = ferry.run(&["migrate", &file]).await.expect(0);
        assert!(run.stderr.contains(words), "{}", run.stderr);
    }
}

/// A script is one whatever program copies, and nothing of it runs behind an `exit`.
#[tokio::test]
async fn each_engine_and_each_program_that_copies_makes_a_script() {
    let ferry = ferry();
    let of_engine = |engine: &str| {
        format!(
            "{engine} pull s.example/a:v1\n{engine} tag s.example/a:v1 d.example/a:v1\n\
             {engine} push d.example/a:v1\n"
        )
    };
    let table = [
        of_engine("docker"),
        of_engine("podman"),
        of_engine("nerdctl"),
        "gcrane cp s.example/a:v1 d.example/a:v1\n".to_owned(),
        "regctl image cp s.example/a:v1 d.example/a:v1\n".to_owned(),
    ];
    for text in table {
        let file = ferry.file("old", &text);
        let run = ferry.run(&["migrate", &file]).await.expect(0);
        assert!(run.stdout.contains("to: d.example/a\n"), "{}", run.said());
        let file = ferry.file("old", &format!("exit 0\n{text}"));
        let run = ferry.run(&["migrate", &file]).await.expect(2);
        let words = "left out: a copy: stands behind `exit`";
        assert!(run.stderr.contains(words), "{}", run.said());
    }
}

#[tokio::test]
async fn stdin_is_read_and_the_format_can_be_said() {
    let ferry = ferry();
    let line =
        "echo 'a.example/b:v1: c.example/d' | blobferry migrate - | grep -q 'from: a.example/b'";
    assert_eq!(ferry.shell(line).await, 0);
    let line = "printf 'a.example/b: c.example/d\\n' | blobferry migrate --from sinker -";
    assert_eq!(ferry.shell(line).await, 2);
}
