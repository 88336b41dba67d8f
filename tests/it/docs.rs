//! The pages tell the truth: configs parse, commands and their options exist, tables have every key
//! and every metric, error texts are those of the program, alert rules are sound, links lead
//! somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::prometheus::assert_read;

const METRICS: &str = include_str!("metrics.txt");

/// A page, by its path from the top of the repository.
pub(crate) struct Page {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A fenced block: what stands behind its fence, and its lines.
pub(crate) struct Block {
    pub(crate) info: String,
    pub(crate) text: String,
}

impl Block {
    fn language(&self) -> &str {
        self.info.split(' ').next().unwrap_or_default()
    }
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = top().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn files_in(folder: &str, ending: &str) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(top().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut paths: Vec<_> = entries
        .map(|entry| Path::new(folder).join(entry.expect("an entry").file_name()))
        .collect();
    paths.retain(|path| path.to_string_lossy().ends_with(ending));
    paths.sort();
    assert!(!paths.is_empty(), "{folder} has no {ending}");
    paths
}

pub(crate) fn pages() -> Vec<Page> {
    let mut paths = files_in("docs", ".md");
    let beside = [
        "README.md",
        "CHANGELOG.md",
        "packaging/README.md",
        "packaging/helm/blobferry/README.md",
    ];
    paths.extend(beside.map(PathBuf::from));
    paths
        .into_iter()
        .map(|path| Page {
            text: read(&path),
            path,
        })
        .collect()
}

pub(crate) fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(info), None) => {
                open = Some(Block {
                    info: info.trim().to_owned(),
                    text: String::new(),
                })
            }
            (None, Some(block)) => block.text.extend([line, "\n"]),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fence is not closed");
    blocks
}

/// The text without its fenced blocks.
fn prose(text: &str) -> String {
    let mut inside = false;
    let outside = text.lines().filter(|line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    outside.collect::<Vec<_>>().join("\n")
}

fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The cells of all rows of all tables, without those of rules between head and body.
pub(crate) fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text
        .lines()
        .filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
}

pub(crate) fn blobferry(arguments: &[&str], credentials: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blobferry"));
    command
        .args(arguments)
        .env_clear()
        .env("HOME", credentials)
        .env("CREDENTIALS_DIRECTORY", credentials);
    command.output().expect("the program starts")
}

/// Writes the files that a config names, beside it or among the credentials, and asks the program
/// about it.
fn checked(name: &str, config: &str) {
    let scratch = TempDir::with_prefix("blobferry-docs-").expect("a scratch directory");
    let folder = scratch.path();
    for line in config
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.starts_with('#'))
    {
        let of_token = || Some(("token", line.strip_prefix("file: ")?));
        let Some((key, value)) = line.split_once("_file: ").or_else(of_token) else {
            continue;
        };
        let value = value.split('#').next().unwrap_or_default().trim();
        let value = value
            .strip_prefix("${CREDENTIALS_DIRECTORY")
            .map_or(value, |rest| rest.split_once("}/").expect("a path").1);
        let content = match key {
            "ca" | "client_cert" => "-----BEGIN CERTIFICATE-----\n".to_owned(),
            "client_key" => "-----BEGIN PRIVATE KEY-----\n".to_owned(),
            // No two tokens are the same.
            _ => format!("hush {value}\n"),
        };
        let path = folder.join(value);
        std::fs::create_dir_all(path.parent().expect("a folder"))
            .expect("a folder in the scratch directory");
        std::fs::write(path, content).expect("a file in the scratch directory");
    }
    let path = folder.join("blobferry.yaml");
    // A program of the reader's own.
    let config = config.replace("/usr/local/bin/gate", "/bin/true");
    std::fs::write(&path, config).expect("a file in the scratch directory");
    let output = blobferry(
        &["check", "-c", path.to_str().expect("a plain path")],
        folder,
    );
    assert!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_first_two_commands_of_the_readme_are_there() {
    use std::os::unix::fs::PermissionsExt as _;
    let blocks = blocks(&read("README.md"));
    for (block, command) in blocks.iter().zip(["demo", "tests/run"]) {
        assert_eq!(block.text.trim().trim_start_matches("./"), command);
        let mode = std::fs::metadata(top().join(command))
            .expect("the command is there")
            .permissions()
            .mode();
        assert!(mode & 0o111 != 0, "{command} cannot be run");
    }
}

#[test]
fn every_config_that_is_shown_is_right() {
    let mut shown = 0;
    for page in pages() {
        for block in blocks(&page.text)
            .iter()
            .filter(|block| block.info == "yaml config")
        {
            checked(&page.path.display().to_string(), &block.text);
            shown += 1;
        }
    }
    assert!(shown >= 4, "{shown}");
}

#[test]
fn every_config_that_is_installed_is_right() {
    for path in files_in("config", ".yaml") {
        checked(&path.display().to_string(), &read(&path));
    }
}

/// What pages tell people to type: each `blobferry …`, up to where the shell goes on.
fn commands(page: &Page) -> BTreeSet<String> {
    let shell = ["sh", "console", "ini"];
    let blocks = blocks(&page.text);
    let lines = blocks
        .iter()
        .filter(|block| shell.contains(&block.language()))
        .flat_map(|block| block.text.lines());
    let prose = prose(&page.text);
    let typed = lines
        .filter(|line| !line.starts_with("blobferry 0."))
        .chain(code_spans(&prose));
    typed.flat_map(commands_in).collect()
}

fn commands_in(line: &str) -> Vec<String> {
    let line = line
        .trim_start_matches("$ ")
        .split(" #")
        .next()
        .unwrap_or_default();
    let parts = line.split(['|', ';', '&', '>', '(']).map(str::trim);
    let bare = parts.map(|part| {
        let words = part.split_whitespace();
        words
            .skip_while(|word| *word == "sudo" || (word.contains('=') && !word.starts_with('-')))
            .collect::<Vec<_>>()
    });
    bare.filter(|words| words.first() == Some(&"blobferry") && words.len() > 1)
        .map(|words| words.join(" "))
        .collect()
}

#[test]
fn every_command_that_is_shown_exists() {
    let nowhere = TempDir::new().expect("a scratch directory");
    let mut helps: BTreeMap<String, String> = BTreeMap::new();
    let mut seen = 0;
    for page in pages() {
        for command in commands(&page) {
            let mut words = command
                .split_whitespace()
                .skip(1)
                .filter(|word| *word != "…");
            let Some(verb) = words.next().filter(|word| !word.starts_with('-')) else {
                continue;
            };
            let help = helps.entry(verb.to_owned()).or_insert_with(|| {
                let output = blobferry(&[verb, "--help"], nowhere.path());
                assert!(
                    output.status.success(),
                    "{}: there is no `{command}`",
                    page.path.display()
                );
                String::from_utf8(output.stdout).expect("plain text")
            });
            let known: BTreeSet<&str> = help
                .split_whitespace()
                .map(|word| word.trim_end_matches([',', '.']))
                .collect();
            for option in words
                .filter_map(|word| word.trim_matches(['[', ']']).split('=').next())
                .filter(|word| word.starts_with('-'))
            {
                assert!(
                    known.contains(option),
                    "{}: `{command}`: there is no {option}",
                    page.path.display()
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn the_configuration_page_has_every_key_of_the_schema_and_no_other() {
    let nowhere = TempDir::new().expect("a scratch directory");
    let schema: Value = serde_json::from_slice(&blobferry(&["schema"], nowhere.path()).stdout)
        .expect("a JSON schema");
    let page = read("docs/configuration.md");
    let mut known = BTreeSet::new();
    let parts = schema["$defs"]
        .as_object()
        .expect("parts of the schema")
        .values()
        .chain([&schema]);
    for properties in parts.filter_map(|part| part["properties"].as_object()) {
        known.extend(properties.keys().map(String::as_str));
    }
    let spans: BTreeSet<&str> = code_spans(&page).collect();
    let missing: Vec<_> = known.iter().filter(|key| !spans.contains(*key)).collect();
    assert!(missing.is_empty(), "the page lacks {missing:?}");
    let mut in_keys = false;
    for row in rows(&page) {
        in_keys = if row[0] == "key" {
            true
        } else {
            in_keys && row[0] != "rule"
        };
        let key = row[0].trim_matches('`');
        assert!(
            !in_keys || key == "key" || known.contains(key),
            "the page has {key}, the program has not"
        );
    }
    let kinds = &schema["$defs"]["RegistrySection"]["properties"]["kind"];
    let kinds = kinds
        .get("enum")
        .or_else(|| kinds.pointer("/anyOf/0/enum"))
        .and_then(Value::as_array)
        .expect("the kinds");
    for kind in kinds.iter().filter_map(Value::as_str) {
        assert!(spans.contains(kind), "the page lacks the kind {kind}");
    }
}

#[test]
fn the_http_page_has_every_route_with_its_guard() {
    use blobferry::admin::{Guard, ROUTES};
    let page = read("docs/http.md");
    let written: BTreeSet<(&str, &str)> = rows(&page)
        .filter(|row| row[0].starts_with("`GET /") || row[0].starts_with("`POST /"))
        .map(|row| {
            (
                row[0].trim_matches('`'),
                row[2].split([' ', ',']).next().unwrap_or(""),
            )
        })
        .collect();
    let routes: Vec<(String, &str)> = ROUTES
        .iter()
        .map(|route| {
            let guard = match route.guard {
                Guard::Open | Guard::Page => "anyone",
                Guard::Look => "look",
                Guard::Decide => "decide",
                Guard::Receiver => "receiver:",
            };
            let path = route.path.replace("{id}", "ID").replace("{name}", "NAME");
            (format!("{} {path}", route.method), guard)
        })
        .collect();
    let expected: BTreeSet<(&str, &str)> = routes
        .iter()
        .map(|(request, guard)| (request.as_str(), *guard))
        .collect();
    assert_eq!(written, expected);
}

#[test]
fn the_metrics_page_has_every_metric_as_it_is() {
    let page = read("docs/metrics.md");
    let written: BTreeMap<&str, (&str, &str)> = rows(&page)
        .filter(|row| row[0].starts_with("`blobferry_"))
        .map(|row| {
            (
                row[0].trim_matches('`'),
                (row[1], if row[2] == "·" { "" } else { row[2] }),
            )
        })
        .collect();
    let lines = METRICS
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let agreed: BTreeMap<String, (&str, String)> = lines
        .map(|line| {
            let mut words = line.trim_start_matches("maybe ").split_whitespace();
            let (name, kind) = (words.next().expect("a name"), words.next().expect("a kind"));
            (
                format!("blobferry_{name}"),
                (kind, words.collect::<Vec<_>>().join(" ")),
            )
        })
        .collect();
    let agreed: BTreeMap<&str, (&str, &str)> = agreed
        .iter()
        .map(|(name, (kind, labels))| (name.as_str(), (*kind, labels.as_str())))
        .collect();
    assert_eq!(written, agreed);
}

#[test]
fn alert_rules_are_sound_and_speak_of_metrics_that_exist() {
    let output = Command::new("promtool")
        .args(["check", "rules", "docs/alerts.yml"])
        .current_dir(top())
        .output();
    let output = output.expect("promtool is installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let known: BTreeSet<&str> = METRICS
        .lines()
        .filter_map(|line| line.trim_start_matches("maybe ").split(' ').next())
        .collect();
    for page in [
        "docs/alerts.yml",
        "docs/metrics.md",
        "docs/troubleshooting.md",
        "README.md",
    ] {
        for rest in read(page).split("blobferry_").skip(1) {
            let name: String = rest
                .chars()
                .take_while(|letter| letter.is_ascii_lowercase() || *letter == '_')
                .collect();
            let bare = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .unwrap_or(&name);
            assert!(
                bare.is_empty() || known.contains(bare),
                "{page}: there is no metric blobferry_{name}"
            );
        }
    }
}

/// The names of the alerts in docs/alerts.yml.
fn alerts() -> Vec<String> {
    let rules = read("docs/alerts.yml");
    rules
        .lines()
        .filter_map(|line| Some(line.trim().strip_prefix("- alert: ")?.to_owned()))
        .collect()
}

#[test]
fn every_alert_fires_when_it_should_and_not_when_it_should_not() {
    let output = Command::new("promtool")
        .args(["test", "rules", "tests/it/alerts.test.yml"])
        .current_dir(top())
        .output();
    let output = output.expect("promtool is installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let tests = read("tests/it/alerts.test.yml");
    for alert in alerts() {
        let fires = tests.contains(&format!(
            "alertname: {alert}\n        exp_alerts:\n          - exp_labels"
        ));
        let stays_silent = tests.contains(&format!("alertname: {alert}, exp_alerts: []"));
        assert!(
            fires && stays_silent,
            "{alert}: fires {fires}, stays silent {stays_silent}"
        );
    }
}

#[test]
fn queries_can_be_copied_as_they_stand() {
    let page = read("docs/metrics.md");
    let queries: Vec<String> = blocks(&page)
        .into_iter()
        .filter(|block| block.info == "promql")
        .flat_map(|block| block.text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert!(queries.len() >= 7, "{queries:?}");
    assert_read(&queries);
}

#[test]
fn error_texts_are_those_of_the_program() {
    let mut program = String::new();
    let mut folders = vec![top().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)
            .expect("a folder of the program")
            .map(|entry| entry.expect("an entry").path())
        {
            match entry.is_dir() {
                true => folders.push(entry),
                false => program.push_str(&std::fs::read_to_string(&entry).expect("source text")),
            }
        }
    }
    let program: Vec<&str> = program
        .split("\\\n")
        .map(|part| part.trim_start_matches([' ', '\t']))
        .collect();
    let program = program.concat().replace("\\\"", "\"");
    let page = read("docs/troubleshooting.md");
    let parts = rows(&page)
        .filter(|row| row.len() == 3)
        .flat_map(|row| code_spans(row[0]))
        .flat_map(|text| text.split('…'));
    let unknown: Vec<&str> = parts
        .map(str::trim)
        .filter(|part| !program.contains(*part))
        .collect();
    assert!(
        unknown.is_empty(),
        "no message of the program has {unknown:?}"
    );
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let prose = prose(text);
    prose
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let folder = page.path.parent().expect("a folder");
        let prose = prose(&page.text);
        for link in prose
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
            .filter(|link| !link.contains("://"))
        {
            let (path, heading) = link
                .split_once('#')
                .map_or((link, None), |(path, heading)| (path, Some(heading)));
            let target = if path.is_empty() {
                page.path.clone()
            } else {
                folder.join(path)
            };
            if !top().join(&target).exists()
                || heading.is_some_and(|heading| !anchors(&read(&target)).contains(heading))
            {
                broken.push(format!("{}: {link}", page.path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "these lead nowhere: {broken:#?}");
}

/// The names of all tests below `folder`, with their modules:
/// `guard::no_answer_of_a_registry_leads_inside`.
fn tests_below(folder: &Path, module: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{error}"));
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        let stem = path.file_stem().expect("a name").to_string_lossy();
        let inner = match &*stem {
            "main" | "lib" | "mod" => module.to_owned(),
            stem => format!("{module}{stem}::"),
        };
        if path.is_dir() {
            names.extend(tests_below(&path, &inner));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(tests_in(&read(&path), &inner));
        }
    }
    names
}

/// The tests of a file. Those of an inner module, which is indented, have its name before theirs.
fn tests_in(text: &str, module: &str) -> Vec<String> {
    let mut inner = String::new();
    let mut is_marked = false;
    let mut names = Vec::new();
    for line in text.lines() {
        let code = line.trim_start();
        let is_indented = code.len() < line.len();
        if let Some(name) = line
            .strip_prefix("mod ")
            .and_then(|rest| rest.strip_suffix(" {"))
        {
            inner = format!("{name}::");
        } else if line == "}" {
            inner.clear();
        }
        is_marked |= code.starts_with("#[test]") || code.starts_with("#[tokio::test");
        let function = code.trim_start_matches("async ").strip_prefix("fn ");
        if let (true, Some(function)) = (is_marked, function) {
            is_marked = false;
            let name = function.split('(').next().unwrap_or_default();
            let place = if is_indented { &*inner } else { "" };
            names.push(format!("{module}{place}{name}"));
        }
    }
    names
}

#[test]
fn every_test_that_the_security_page_names_exists() {
    let mut tests = tests_below(&top().join("tests/it"), "");
    tests.extend(tests_below(&top().join("src"), ""));
    assert!(tests.len() > 500, "found {} only", tests.len());
    let page = read("docs/security.md");
    let threats: Vec<Vec<&str>> = rows(&page).skip(1).collect();
    assert!(threats.len() > 20, "{threats:#?}");
    for threat in threats {
        let [_, _, tested_by] = threat[..] else {
            panic!("not three cells: {threat:?}")
        };
        let named: Vec<&str> = code_spans(tested_by).collect();
        assert!(!named.is_empty(), "tested by nothing: {threat:?}");
        for name in named {
            let is_script = name.starts_with("tests/") && top().join(name).is_file();
            assert!(is_script || tests.contains(name), "there is no {name}");
        }
    }
}
