//! What the commands of a pipeline promote: pull, tag and push with an engine, or a copy with
//! skopeo, crane, regctl or imagetools.

use super::address::{self, Address};
use super::outline::{Outline, Route, Tags};
use super::pair;
use super::shell::{self, Command, Word};
use super::tree::Wrong;

/// Options that take a value as the next word.
const WITH_VALUE: [&str; 34] = [
    "--src-creds",
    "--dest-creds",
    "--creds",
    "--src-username",
    "--src-password",
    "--dest-username",
    "--dest-password",
    "--src-cert-dir",
    "--dest-cert-dir",
    "--src-authfile",
    "--dest-authfile",
    "--authfile",
    "--src-registry-token",
    "--dest-registry-token",
    "--format",
    "-f",
    "--multi-arch",
    "--retry-times",
    "--platform",
    "-t",
    "--tag",
    "--file",
    "--digestfile",
    "--sign-by",
    "--policy",
    "--override-arch",
    "--override-os",
    "--builder",
    "-u",
    "-p",
    "--username",
    "--password",
    "--verbosity",
    "-j",
];

/// What the engine of the script has seen so far.
#[derive(Default)]
struct Engine {
    pulled: Vec<Address>,
    /// From, to.
    tagged: Vec<(Address, Address)>,
    built: Vec<Address>,
}

/// Reads the commands.
pub(super) fn read(text: &str, outline: &mut Outline) -> Result<(), Wrong> {
    let mut engine = Engine::default();
    for command in shell::commands(text)? {
        step(&command, &mut engine, outline);
    }
    Ok(())
}

fn step(command: &Command, engine: &mut Engine, outline: &mut Outline) {
    let line = command.line;
    let mut names = command
        .words
        .iter()
        .map(|word| word.known().unwrap_or_default());
    let program = names
        .next()
        .unwrap_or_default()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let names: Vec<&str> = names
        .filter(|name| !name.starts_with('-'))
        .take(2)
        .collect();
    match (&*program, &names[..]) {
        ("docker" | "podman" | "nerdctl", ["login", ..]) => outline.remark(
            line,
            "a login: the Docker config and its helpers are asked, and AWS credentials for ECR; no secret is written here",
        ),
        ("aws", ["ecr" | "ecr-public", ..]) => {
            outline.remark(line, "a token of ECR: it is fetched and renewed unasked, with the AWS credentials of the machine");
        }
        ("docker" | "podman" | "nerdctl", ["image" | "manifest", act]) => engine.act(act, command, 3, outline),
        ("docker" | "podman" | "nerdctl", ["buildx", "imagetools"]) => {
            images(command, outline, 3, imagetools);
        }
        ("docker" | "podman" | "nerdctl", [act, ..]) => engine.act(act, command, 2, outline),
        ("skopeo", ["copy", ..]) => images(command, outline, 2, first_to_second),
        ("skopeo", ["sync", ..]) => outline.refuse(
            line,
            "skopeo sync",
            "give its YAML file to `blobferry migrate`, with --to for the destination",
        ),
        ("crane" | "gcrane", ["cp" | "copy", ..]) => images(command, outline, 2, first_to_second),
        ("regctl", ["image", "copy" | "cp"]) => images(command, outline, 3, first_to_second),
        ("regctl", ["registry", ..]) => {
            outline.remark(line, "settings of regctl: say them of the registry below `registries`");
        }
        _ => {}
    }
}

impl Engine {
    fn act(&mut self, act: &str, command: &Command, skip: usize, outline: &mut Outline) {
        let line = command.line;
        if act == "build" || act == "buildx" {
            self.built
                .extend(tags_of(command).filter_map(|word| address::parse(word.known()?).ok()));
            return;
        }
        if !["pull", "tag", "push"].contains(&act) {
            return;
        }
        let has_all = command
            .words
            .iter()
            .any(|word| word.is("-a") || word.is("--all-tags"));
        let arguments = plain(&command.words, skip);
        let addresses = match addresses(&arguments) {
            Ok(addresses) => addresses,
            Err(reason) => {
                outline.refuse(line, format!("docker {act}"), reason);
                return;
            }
        };
        match (act, &addresses[..]) {
            ("pull", [image, ..]) => self.pulled.push(image.clone()),
            ("tag", [from, to]) => self.tagged.push((from.clone(), to.clone())),
            ("push", [image, ..]) => self.push(image, has_all, line, outline),
            _ => {}
        }
    }

    /// What is pushed is promoted from where it was pulled.
    fn push(&mut self, image: &Address, has_all: bool, line: u64, outline: &mut Outline) {
        let is_same = |to: &Address| is_repository(to, image) && (has_all || tag(to) == tag(image));
        let tagged: Vec<(Address, Address)> = self
            .tagged
            .iter()
            .filter(|(_, to)| is_same(to))
            .cloned()
            .collect();
        let what = format!("docker push {}/{}", image.host, image.repository);
        if tagged.is_empty() {
            outline.refuse(
                line,
                what,
                "the image was not tagged from one that was pulled: there is nothing to promote",
            );
            return;
        }
        for (from, to) in tagged {
            let is_local = self.built.iter().any(|built| is_repository(built, &from))
                || (from.host == address::HUB
                    && !self
                        .pulled
                        .iter()
                        .any(|pulled| is_repository(pulled, &from)));
            if is_local {
                outline.refuse(
                    line,
                    &what,
                    "the image is built here: push it to staging, and let a route promote it from there",
                );
                continue;
            }
            let route = match has_all && from.tag.is_none() {
                true => Ok(whole(&from, &to, line, outline)),
                false => pair::route(&from, &to, line, outline),
            };
            match route {
                Ok(route) => outline.add(route),
                Err(reason) => outline.refuse(line, &what, reason),
            }
        }
    }
}

/// Every tag of a repository.
fn whole(from: &Address, to: &Address, line: u64, outline: &mut Outline) -> Route {
    Route {
        line,
        from: pair::place(from, outline),
        to: vec![pair::place(to, outline)],
        tags: Tags::all(),
        remarks: Vec::new(),
    }
}

fn is_repository(one: &Address, other: &Address) -> bool {
    one.host == other.host && one.repository == other.repository
}

fn tag(address: &Address) -> &str {
    address.tag.as_deref().unwrap_or("latest")
}

/// The values of `-t` and `--tag`.
fn tags_of(command: &Command) -> impl Iterator<Item = &Word> {
    let pairs = command.words.iter().zip(command.words.iter().skip(1));
    pairs
        .filter(|(option, _)| option.is("-t") || option.is("--tag"))
        .map(|(_, value)| value)
}

/// The words that are no options, without the first ones.
fn plain(words: &[Word], skip: usize) -> Vec<&Word> {
    let mut plain = Vec::new();
    let mut is_value = false;
    for word in words {
        let text = word.known().unwrap_or_default();
        if std::mem::take(&mut is_value) {
            continue;
        }
        if text.starts_with('-') && text.len() > 1 {
            is_value = WITH_VALUE.contains(&text);
            continue;
        }
        if text.starts_with(['>', '<']) || text.starts_with("2>") {
            break;
        }
        plain.push(word);
    }
    plain.split_off(skip.min(plain.len()))
}

fn addresses(words: &[&Word]) -> Result<Vec<Address>, String> {
    let mut addresses = Vec::new();
    for word in words {
        match word {
            Word::Known(text) if is_docker(text) => {
                addresses
                    .push(address::parse(text).map_err(|reason| format!("a reference {reason}"))?);
            }
            Word::Known(_) => {
                return Err("names no registry: only docker:// references are promoted".into());
            }
            Word::Unknown(what) => {
                let what = what.rsplit('\u{0}').next().unwrap_or_default();
                return Err(format!(
                    "depends on {what}, which this file does not say: write the two repositories and a rule for \
                     their tags into a route, or let the pipeline call `blobferry promote SRC DST`"
                ));
            }
        }
    }
    Ok(addresses)
}

/// Whether a reference is one of a registry.
fn is_docker(text: &str) -> bool {
    const ELSEWHERE: [&str; 7] = [
        "oci:",
        "dir:",
        "oci-archive:",
        "docker-archive:",
        "docker-daemon:",
        "containers-storage:",
        "ocidir:",
    ];
    let is_elsewhere = ELSEWHERE
        .iter()
        .any(|transport| text.starts_with(transport));
    !is_elsewhere && (!text.contains("://") || text.starts_with("docker://"))
}

/// From where to where.
type Pairs = Result<Vec<(Address, Address)>, String>;

/// A copy with a program of its own.
fn images(
    command: &Command,
    outline: &mut Outline,
    skip: usize,
    pairs: impl Fn(&Command, &[&Word]) -> Pairs,
) {
    let line = command.line;
    let arguments = plain(&command.words, skip);
    let what: Vec<&str> = command
        .words
        .iter()
        .filter_map(Word::known)
        .take(2)
        .collect();
    let what = what.join(" ");
    let pairs = match pairs(command, &arguments) {
        Ok(pairs) => pairs,
        Err(reason) => {
            outline.refuse(line, what, reason);
            return;
        }
    };
    for (from, to) in pairs {
        match pair::route(&from, &to, line, outline) {
            Ok(mut route) => {
                if command
                    .words
                    .iter()
                    .any(|word| word.is("--platform") || word.is("--override-arch"))
                {
                    route.remarks.push(pair::one_platform(line, "--platform"));
                }
                outline.add(route);
            }
            Err(reason) => outline.refuse(line, &what, reason),
        }
    }
}

fn first_to_second(_: &Command, arguments: &[&Word]) -> Pairs {
    match &addresses(arguments)?[..] {
        [from, to] => Ok(vec![(from.clone(), to.clone())]),
        _ => Err("does not name a source and a destination".into()),
    }
}

fn imagetools(command: &Command, arguments: &[&Word]) -> Pairs {
    let arguments: Vec<&Word> = arguments
        .iter()
        .copied()
        .filter(|word| !word.is("create"))
        .collect();
    let sources = addresses(&arguments)?;
    let targets: Vec<&Word> = tags_of(command).collect();
    let [from] = &sources[..] else {
        return Err(
            "makes an index of several images: build it in staging, and let a route promote it"
                .into(),
        );
    };
    let pairs = addresses(&targets)?
        .into_iter()
        .map(|to| (from.clone(), to));
    Ok(pairs.collect())
}
