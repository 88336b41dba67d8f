//! What the commands of a pipeline promote: pull, tag and push with an engine, or a copy with
//! skopeo, crane, regctl or imagetools.

use super::address::{self, Address};
use super::kind::ENGINES;
use super::outline::Outline;
use super::pair;
use super::remark::Remark;
use super::route::{Route, Tags};
use super::shell::{self, Command, Word};
use super::tree::Wrong;
use crate::config::yaml::Node;

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

/// What a command behind a condition has, and a route has not.
const CONDITION: &str = "stands behind a condition, or in a function: the route promotes whether it holds or not; \
     leave the route out where that is too much";

/// What the engine of the script has seen so far.
#[derive(Default)]
struct Engine {
    pulled: Vec<Address>,
    tagged: Vec<Tagged>,
}

/// A name of an image that was pulled.
#[derive(Clone)]
struct Tagged {
    /// What was pulled; `None` for an image that was not.
    from: Option<Address>,
    to: Address,
    is_conditional: bool,
    /// A condition says which of several images has the name.
    is_open: bool,
}

/// Reads the commands of a text, which may be a YAML document.
pub(super) fn read(
    text: &str,
    document: Option<&Node>,
    outline: &mut Outline,
) -> Result<(), Wrong> {
    let mut engine = Engine::default();
    let mut has_ended = false;
    for command in shell::commands(text, document)? {
        let is_exit = command.words.first().is_some_and(|word| word.is("exit"));
        has_ended |= is_exit && !command.is_conditional;
        match has_ended {
            true => left_behind(&command, outline),
            false => step(&command, &mut engine, outline),
        }
    }
    Ok(())
}

/// What a command does. A number says how many words stand before its arguments.
#[derive(Debug, PartialEq, Eq)]
enum Act<'a> {
    Login,
    /// A text that another program gets.
    Text,
    TokenOfEcr,
    PutImage,
    /// Pulls, tags, pushes or builds with an engine.
    Engine(&'a str, usize),
    Imagetools(usize),
    Copy(usize),
    SkopeoSync,
    SettingsOfRegctl,
    Other,
}

impl<'a> Act<'a> {
    fn of(command: &'a Command) -> Act<'a> {
        let mut names = command
            .words
            .iter()
            .map(|word| word.known().unwrap_or_default());
        let program = names.next().and_then(|path| path.rsplit('/').next());
        let names: Vec<&str> = names
            .filter(|name| !name.starts_with('-'))
            .take(2)
            .collect();
        match (program.unwrap_or_default(), &names[..]) {
            ("<<", _) => Act::Text,
            ("aws", ["ecr" | "ecr-public", "put-image"]) => Act::PutImage,
            ("aws", ["ecr" | "ecr-public", ..]) => Act::TokenOfEcr,
            ("skopeo", ["copy", ..]) => Act::Copy(2),
            ("skopeo", ["sync", ..]) => Act::SkopeoSync,
            ("crane" | "gcrane", ["cp" | "copy", ..]) => Act::Copy(2),
            ("regctl", ["image", "cp" | "copy"]) => Act::Copy(3),
            ("regctl", ["registry", ..]) => Act::SettingsOfRegctl,
            (program, names) if ENGINES.contains(&program) => Act::of_engine(names),
            _ => Act::Other,
        }
    }

    fn of_engine(names: &[&'a str]) -> Act<'a> {
        match names {
            ["login", ..] => Act::Login,
            ["buildx", "imagetools"] => Act::Imagetools(3),
            ["image" | "manifest", act] => Act::Engine(act, 3),
            [act, ..] => Act::Engine(act, 2),
            [] => Act::Other,
        }
    }

    /// Whether something is in another registry afterwards.
    fn copies(&self) -> bool {
        matches!(
            self,
            Act::Engine("push", _) | Act::Imagetools(_) | Act::Copy(_)
        )
    }
}

/// Nothing runs behind an `exit`.
fn left_behind(command: &Command, outline: &mut Outline) {
    if Act::of(command).copies() {
        outline.refuse(
            command.line,
            "a copy",
            "stands behind `exit`, and never runs",
        );
    }
}

fn step(command: &Command, engine: &mut Engine, outline: &mut Outline) {
    let line = command.line;
    match Act::of(command) {
        Act::Login => outline.remark(
            line,
            "a login: the Docker config and its helpers are asked, and AWS credentials for ECR; no secret is written here",
        ),
        Act::Text => outline.refuse(
            line,
            "commands in a text behind <<",
            "another program gets them: give its file to `blobferry migrate` where they are run",
        ),
        Act::TokenOfEcr => outline.remark(
            line,
            "a token of ECR: it is fetched and renewed unasked, with the AWS credentials of the machine",
        ),
        Act::PutImage => outline.refuse(
            line,
            "aws ecr put-image",
            "gives an image a second tag in its own repository: `blobferry copy SRC DST` does so once",
        ),
        Act::Engine(act, skip) => engine.act(act, command, skip, outline),
        Act::Imagetools(skip) => images(command, outline, skip, imagetools),
        Act::Copy(skip) => images(command, outline, skip, first_to_second),
        Act::SkopeoSync => outline.refuse(
            line,
            "skopeo sync",
            "give its YAML file to `blobferry migrate`, with --to for the destination",
        ),
        Act::SettingsOfRegctl => outline.remark(
            line,
            "settings of regctl: say them of the registry below `registries`",
        ),
        Act::Other => {}
    }
}

impl Engine {
    fn act(&mut self, act: &str, command: &Command, skip: usize, outline: &mut Outline) {
        let line = command.line;
        if ["build", "buildx", "load", "import", "commit"].contains(&act) {
            // Whatever has a name from here on was not pulled.
            for name in tags_of(command) {
                self.forget(name.known().and_then(|name| address::parse(name).ok()));
            }
            if act != "build" && act != "buildx" {
                self.forget(None);
            }
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
            ("pull", [image, ..]) => {
                self.tagged.retain(|tagged| !is_image(&tagged.to, image));
                self.pulled.push(image.clone());
            }
            ("tag", [from, to]) => self.tag(from, to, command.is_conditional),
            ("push", [image, ..]) => self.push(image, has_all, command, outline),
            _ => {}
        }
    }

    /// An image of this name, or of any, is another one now.
    fn forget(&mut self, image: Option<Address>) {
        let is_meant = |known: &Address| image.as_ref().is_none_or(|image| is_image(known, image));
        self.pulled.retain(|pulled| !is_meant(pulled));
        for tagged in &mut self.tagged {
            if is_meant(&tagged.to) {
                tagged.from = None;
            }
        }
    }

    /// The name goes over to the image of `from`.
    fn tag(&mut self, from: &Address, to: &Address, is_conditional: bool) {
        let named = self.tagged.iter().find(|tagged| is_image(&tagged.to, from));
        let mut new = match named {
            Some(named) => named.clone(),
            None => Tagged {
                from: self.pulled(from),
                to: to.clone(),
                is_conditional: false,
                is_open: false,
            },
        };
        new.to = to.clone();
        new.is_conditional |= is_conditional;
        let old = self
            .tagged
            .iter()
            .position(|tagged| is_image(&tagged.to, to));
        if let Some(old) = old.map(|at| self.tagged.remove(at)) {
            new.is_open |= is_conditional && old.from != new.from;
        }
        self.tagged.push(new);
    }

    /// The reference itself, where it was pulled.
    fn pulled(&self, image: &Address) -> Option<Address> {
        let is_known = self.pulled.iter().any(|pulled| is_image(pulled, image));
        is_known.then(|| image.clone())
    }

    /// What is pushed is promoted from where it was pulled.
    fn push(&mut self, image: &Address, has_all: bool, command: &Command, outline: &mut Outline) {
        let line = command.line;
        let tagged: Vec<Tagged> = self
            .tagged
            .iter()
            .filter(|tagged| is_repository(&tagged.to, image))
            .filter(|tagged| has_all || tag(&tagged.to) == tag(image))
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
        for tagged in tagged {
            let is_conditional = command.is_conditional || tagged.is_conditional;
            match promoted(tagged, has_all, line, outline) {
                Ok(mut route) => {
                    if is_conditional {
                        route.remarks.push(Remark::new(line, CONDITION));
                    }
                    outline.add(route);
                }
                Err(reason) => outline.refuse(line, &what, reason),
            }
        }
    }
}

fn promoted(
    tagged: Tagged,
    has_all: bool,
    line: u64,
    outline: &mut Outline,
) -> Result<Route, String> {
    if tagged.is_open {
        return Err(
            "a condition says which image has this name: write the route that is meant".into(),
        );
    }
    let from = tagged.from.ok_or(
        "the image is not one that was pulled here: push it to staging, and let a route promote it from there",
    )?;
    match has_all && from.tag.is_none() {
        true => Ok(whole(&from, &tagged.to, line, outline)),
        false => pair::route(&from, &tagged.to, line, outline),
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

/// Whether both name the same image.
fn is_image(one: &Address, other: &Address) -> bool {
    is_repository(one, other) && tag(one) == tag(other) && one.digest == other.digest
}

fn tag(address: &Address) -> &str {
    address.tag.as_deref().unwrap_or("latest")
}

/// The values of `-t` and `--tag`.
fn tags_of(command: &Command) -> impl Iterator<Item = Word> {
    let words = &command.words;
    let behind = words.iter().skip(1).map(Some).chain([None]);
    words.iter().zip(behind).filter_map(|(option, value)| {
        let joined = option.known().and_then(|text| text.strip_prefix("--tag="));
        match joined {
            Some(value) => Some(Word::Known(value.to_owned())),
            None if option.is("-t") || option.is("--tag") => value.cloned(),
            None => None,
        }
    })
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
            Word::Unknown(what) | Word::Assignment { unknown: what, .. } => {
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
    let has = |option: &str| command.words.iter().any(|word| word.is(option));
    if has("--dry-run") {
        outline.refuse(line, what, "--dry-run: it copies nothing");
        return;
    }
    if has("--all-tags") || (what.starts_with("crane") && has("-a")) {
        outline.refuse(
            line,
            what,
            "copies all tags: write a route from the one repository to the other with `include: [\"*\"]`",
        );
        return;
    }
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
                if command.is_conditional {
                    route.remarks.push(Remark::new(line, CONDITION));
                }
                if has("--platform") || has("--override-arch") {
                    route
                        .remarks
                        .push(pair::platform_remark(line, "--platform"));
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
    let named: Vec<Word> = tags_of(command).collect();
    let targets: Vec<&Word> = named.iter().collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_is_known_by_its_act() {
        let table = [
            ("docker login a.example", Act::Login),
            ("/usr/bin/podman push a.example/b", Act::Engine("push", 2)),
            (
                "nerdctl image tag a.example/b c.example/d",
                Act::Engine("tag", 3),
            ),
            ("docker buildx imagetools create a", Act::Imagetools(3)),
            ("skopeo --debug copy a b", Act::Copy(2)),
            ("gcrane cp a b", Act::Copy(2)),
            ("regctl image cp a b", Act::Copy(3)),
            ("regctl image digest a", Act::Other),
            ("aws ecr put-image --x", Act::PutImage),
            ("aws ecr get-login-password", Act::TokenOfEcr),
            ("docker", Act::Other),
            ("make push", Act::Other),
        ];
        for (text, expected) in table {
            let commands = shell::commands(text, None).unwrap();
            assert_eq!(Act::of(&commands[0]), expected, "{text}");
        }
    }
}
