//! What the last word of a command line can become: routes and tags that the daemon knows, or
//! without one the ledger. A shell asks at each press of Tab: it waits a second at most, and where
//! nothing is known nothing is said.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, Command, CommandFactory as _};
use serde_json::Value;
use tokio::time::timeout;

use super::socket::Socket;
use super::typed_words::TypedWords;
use super::{Arguments, environment, load};
use crate::config::{RegistryKind, state_path};
use crate::endpoint::Origin;
use crate::ledger::{Ledger, TagsQuery};
use crate::oci::Reference;

/// How long a shell waits.
const DEADLINE: Duration = Duration::from_secs(1);
/// Tags that are looked through at most: those that changed last.
const MOST: u32 = 1000;

/// What the last word of a line can become, in order. None where nothing is known in time.
pub(super) async fn candidates(line: &str, arguments: &Arguments) -> BTreeSet<String> {
    let Some(line) = Line::read(line) else {
        return BTreeSet::new();
    };
    let known = timeout(DEADLINE, known(&line, arguments)).await;
    match known {
        Ok(Some(known)) => line.candidates(&known),
        Ok(None) | Err(_) => BTreeSet::new(),
    }
}

/// What a word names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A route.
    Route,
    /// A tag without its repository.
    Tag,
    /// `REPOSITORY:TAG` of a destination.
    Destination,
    /// The same of either side.
    EitherSide,
    /// A destination's, or `route:NAME`.
    Target,
}

/// A line as far as it is typed.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    kind: Kind,
    word: String,
    config: Option<PathBuf>,
    state: Option<PathBuf>,
}

impl Line {
    /// `None`: the last word is nothing that the daemon knows.
    fn read(text: &str) -> Option<Line> {
        let words = TypedWords::read(text);
        let mut root = Arguments::command();
        root.build();
        let mut typed = Typed::new(&root);
        for word in words.complete.iter().skip(1) {
            typed.take(word)?;
        }
        Some(Line {
            kind: typed.kind_of(&words.last)?,
            word: words.last,
            config: typed.config,
            state: typed.state,
        })
    }

    fn candidates(&self, known: &Known) -> BTreeSet<String> {
        let bare = self.beginning(self.words(known));
        if !bare.is_empty() || !self.is_reference() {
            return bare;
        }
        let references = self.references(known);
        self.beginning(references.flat_map(|reference| known.with_registry(&reference)))
    }

    /// Those that begin as the word does. What a shell would read as more than a word is left out.
    fn beginning(&self, words: impl Iterator<Item = String>) -> BTreeSet<String> {
        let is_plain = |c: char| c.is_alphanumeric() || "._:/@+-[]".contains(c);
        let words = words.filter(|word| word.starts_with(&self.word));
        words.filter(|word| word.chars().all(is_plain)).collect()
    }

    /// Candidates without a registry in front.
    fn words(&self, known: &Known) -> impl Iterator<Item = String> {
        let routes = known.routes.iter();
        let routes: Vec<String> = match self.kind {
            Kind::Route => routes.cloned().collect(),
            Kind::Target => routes.map(|name| format!("route:{name}")).collect(),
            Kind::Tag | Kind::Destination | Kind::EitherSide => Vec::new(),
        };
        let is_tag = self.kind == Kind::Tag;
        let tags = known.tags.iter().filter(move |_| is_tag);
        let tags = tags.filter_map(|tag| tag_of(&tag.source.parse().ok()?));
        let references = self
            .references(known)
            .filter_map(|reference| bare(&reference));
        routes.into_iter().chain(tags).chain(references)
    }

    /// The tags that may be meant.
    fn references(&self, known: &Known) -> impl Iterator<Item = Reference> {
        let are_meant = self.is_reference();
        let is_either = self.kind == Kind::EitherSide;
        let tags = known.tags.iter().filter(move |_| are_meant);
        let sides = tags.flat_map(move |tag| {
            let source = Some(&tag.source).filter(|_| is_either);
            [Some(&tag.destination), source].into_iter().flatten()
        });
        sides.filter_map(|side| side.parse().ok())
    }

    fn is_reference(&self) -> bool {
        matches!(
            self.kind,
            Kind::Destination | Kind::EitherSide | Kind::Target
        )
    }

    /// What the tags that are asked for have in `repository:tag`.
    fn text(&self, registries: &[Named]) -> Option<String> {
        if self.kind == Kind::Tag {
            return (!self.word.is_empty()).then(|| format!(":{}", self.word));
        }
        let mut spelled = registries
            .iter()
            .flat_map(|known| [&known.name, &known.host]);
        let text = match self.word.split_once('/') {
            Some((first, rest)) if spelled.any(|known| known == first) => rest,
            None if spelled.any(|known| known.starts_with(&self.word)) => "",
            Some(_) | None => &self.word,
        };
        (self.is_reference() && !text.is_empty()).then(|| text.to_owned())
    }
}

fn tag_of(reference: &Reference) -> Option<String> {
    reference.tag.as_ref().map(ToString::to_string)
}

/// `REPOSITORY:TAG`
fn bare(reference: &Reference) -> Option<String> {
    let tag = tag_of(reference)?;
    Some(format!("{}:{tag}", reference.repository))
}

/// The words before the last one.
struct Typed<'c> {
    command: &'c Command,
    /// The option that takes the next word as its value.
    option: Option<&'c Arg>,
    /// Arguments of the subcommand.
    arguments: usize,
    config: Option<PathBuf>,
    state: Option<PathBuf>,
}

impl<'c> Typed<'c> {
    fn new(root: &'c Command) -> Typed<'c> {
        Typed {
            command: root,
            option: None,
            arguments: 0,
            config: None,
            state: None,
        }
    }

    /// `None`: there is no such command.
    fn take(&mut self, word: &str) -> Option<()> {
        if let Some(option) = self.option.take() {
            self.note(option, word);
        } else if let Some(name) = word.strip_prefix("--") {
            self.take_long(name);
        } else if let Some(letters) = word.strip_prefix('-') {
            self.take_short(letters);
        } else if self.command.has_subcommands() {
            self.command = self.command.find_subcommand(word)?;
        } else {
            self.arguments += 1;
        }
        Some(())
    }

    fn take_long(&mut self, text: &str) {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let option = self.valued(|option| option.get_long().map(str::to_owned), name);
        match (option, value) {
            (Some(option), Some(value)) => self.note(option, value),
            (option, _) => self.option = option,
        }
    }

    /// `-q`, `-c FILE`, `-cFILE`, `-qc FILE`.
    fn take_short(&mut self, letters: &str) {
        for (at, letter) in letters.char_indices() {
            let letter = letter.to_string();
            let option = self.valued(|option| option.get_short().map(String::from), &letter);
            let Some(option) = option else { continue };
            match &letters[at + letter.len()..] {
                "" => self.option = Some(option),
                value => self.note(option, value),
            }
            return;
        }
    }

    /// The option of this name, where it has a value.
    fn valued(&self, name_of: impl Fn(&Arg) -> Option<String>, name: &str) -> Option<&'c Arg> {
        let mut options = self.command.get_arguments();
        options.find(|option| {
            option.get_action().takes_values() && name_of(option).as_deref() == Some(name)
        })
    }

    fn note(&mut self, option: &Arg, value: &str) {
        match option.get_id().as_str() {
            "config" => self.config = Some(path(value)),
            "state" => self.state = Some(path(value)),
            _ => {}
        }
    }

    fn kind_of(&self, word: &str) -> Option<Kind> {
        if let Some(option) = self.option {
            return (option.get_long() == Some("tag")).then_some(Kind::Tag);
        }
        if word.starts_with('-') {
            return None;
        }
        match (self.command.get_name(), self.arguments) {
            ("sync", _) => Some(Kind::Route),
            ("why" | "history", 0) => Some(Kind::EitherSide),
            ("approve" | "accept" | "rollback", 0) => Some(Kind::Destination),
            ("hold" | "release", 0) => Some(Kind::Target),
            _ => None,
        }
    }
}

/// A path as it is typed: the shell has not expanded it yet.
fn path(typed: &str) -> PathBuf {
    let home = environment("HOME");
    match (typed.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => typed.into(),
    }
}

/// What candidates are made of.
#[derive(Default)]
struct Known {
    routes: Vec<String>,
    registries: Vec<Named>,
    tags: Vec<Listed>,
}

/// A registry of the config.
struct Named {
    name: String,
    /// With its port.
    host: String,
}

/// A tag with both its sides, as references.
struct Listed {
    source: String,
    destination: String,
}

impl Known {
    /// How a tag may be written with its registry in front: by its name, or by its host.
    fn with_registry(&self, reference: &Reference) -> Vec<String> {
        let host = reference.host.to_string();
        let registries = self.registries.iter();
        let names = registries.filter(|registry| registry.host == host);
        let fronts = names.map(|registry| &registry.name).chain([&host]);
        let bare = bare(reference);
        let spelled = bare.iter().flat_map(|bare| {
            let fronts = fronts.clone();
            fronts.map(move |front| format!("{front}/{bare}"))
        });
        spelled.collect()
    }
}

async fn known(line: &Line, arguments: &Arguments) -> Option<Known> {
    let config = line
        .config
        .clone()
        .unwrap_or_else(|| arguments.config_path());
    let state = match (&line.state, &line.config) {
        (Some(folder), _) => folder.clone(),
        (None, None) => arguments.state_folder()?,
        (None, Some(config)) => {
            let state = state_path(config, &environment)?;
            // Where that file cannot be read, its daemon is not known: another one would answer.
            state.doubt.is_none().then_some(state.folder)?
        }
    };
    match by_daemon(line, &Socket::in_state(&state)).await {
        Some(known) => Some(known),
        None => by_ledger(line, &config, &state).await,
    }
}

/// What the daemon knows. `None`: it does not answer, or none runs.
async fn by_daemon(line: &Line, socket: &Socket) -> Option<Known> {
    let status = socket.read("/v1/status").await.ok()??;
    let routes = array(&status, "routes").filter_map(|route| text(route, "name"));
    let mut known = Known {
        routes: routes.collect(),
        registries: array(&status, "registries").filter_map(registry).collect(),
        tags: Vec::new(),
    };
    if line.kind == Kind::Route {
        return Some(known);
    }
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("limit", &MOST.to_string());
    if let Some(text) = line.text(&known.registries) {
        query.append_pair("text", &text);
    }
    let path = format!("/v1/tags?{}", query.finish());
    let tags = socket.read(&path).await.ok()??;
    known.tags.extend(array(&tags, "tags").filter_map(listed));
    Some(known)
}

fn registry(status: &Value) -> Option<Named> {
    let url = text(status, "url")?;
    Some(Named {
        name: text(status, "name")?,
        host: Origin::new(&url).host()?.to_owned(),
    })
}

fn listed(tag: &Value) -> Option<Listed> {
    Some(Listed {
        source: text(tag, "source")?,
        destination: text(tag, "destination")?,
    })
}

fn array<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    value[key].as_array().into_iter().flatten()
}

fn text(value: &Value, key: &str) -> Option<String> {
    value[key].as_str().map(str::to_owned)
}

/// What the config and the ledger know.
async fn by_ledger(line: &Line, config: &Path, state: &Path) -> Option<Known> {
    let config = load(config).ok()?;
    let routes = config.routes.iter().map(|route| route.name.to_string());
    let routes: Vec<String> = routes.collect();
    let remote = config.registries.values().filter_map(|registry| {
        let RegistryKind::Remote(settings) = &registry.kind else {
            return None;
        };
        let origin = Origin::new(&settings.url.origin().ascii_serialization());
        Some(Named {
            name: registry.name.clone(),
            host: origin.host()?.to_owned(),
        })
    });
    let mut known = Known {
        registries: remote.collect(),
        routes,
        tags: Vec::new(),
    };
    if line.kind == Kind::Route {
        return Some(known);
    }
    if let Some(ledger) = Ledger::open_to_read(state).ok()? {
        let query = TagsQuery {
            after: 0,
            limit: MOST,
            routes: known.routes.clone(),
            results: Vec::new(),
            text: line.text(&known.registries),
        };
        let tags = ledger.tags(query).await;
        ledger.close().await;
        known.tags.extend(tags.ok()?.into_iter().map(|tag| Listed {
            source: tag.settled.source,
            destination: tag.settled.destination,
        }));
    }
    Some(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(line: &str) -> Option<Kind> {
        Line::read(line).map(|line| line.kind)
    }

    #[test]
    fn a_line_tells_what_its_last_word_is() {
        for (line, expected) in [
            ("blobferry sync ", Some(Kind::Route)),
            ("blobferry sync one tw", Some(Kind::Route)),
            ("blobferry sync --tag ", Some(Kind::Tag)),
            ("blobferry sync --tag v1 ", Some(Kind::Route)),
            ("blobferry -q why app:v", Some(Kind::EitherSide)),
            ("blobferry why --json app:v", Some(Kind::EitherSide)),
            ("blobferry history app", Some(Kind::EitherSide)),
            ("blobferry rollback ", Some(Kind::Destination)),
            (
                "blobferry --log-format json approve a",
                Some(Kind::Destination),
            ),
            ("blobferry hold --until 2h route:", Some(Kind::Target)),
            ("blobferry", None),
            ("blobferry ", None),
            ("blobferry wh", None),
            ("blobferry why --js", None),
            ("blobferry why app:v1 ", None),
            ("blobferry hold --until ", None),
            ("blobferry nothing ", None),
            ("blobferry copy ", None),
            ("", None),
        ] {
            assert_eq!(kind(line), expected, "{line}");
        }
    }

    #[test]
    fn a_line_names_its_config_and_its_state() {
        let line = Line::read("blobferry -c a.yaml why --state=/b app:v").unwrap();
        assert_eq!(line.word, "app:v");
        assert_eq!(line.config, Some("a.yaml".into()));
        assert_eq!(line.state, Some("/b".into()));
        for text in ["-ca.yaml", "-qc a.yaml", "-c a.yaml", "-qca.yaml"] {
            let line = Line::read(&format!("blobferry {text} why app:v"));
            assert_eq!(line.unwrap().config, Some("a.yaml".into()), "{text}");
        }
        for text in ["-c \"my a.yaml\"", "-c my\\ a.yaml", "--config='my a.yaml'"] {
            let line = Line::read(&format!("blobferry {text} why app:v"));
            assert_eq!(line.unwrap().config, Some("my a.yaml".into()), "{text}");
        }
        let line = Line::read("blobferry -c ~/a.yaml why app:v").unwrap();
        let home = environment("HOME").unwrap();
        assert_eq!(line.config, Some(Path::new(&home).join("a.yaml")));
    }

    fn completed(line: &str) -> Vec<String> {
        let named = |name: &str, host: &str| Named {
            name: name.into(),
            host: host.into(),
        };
        let known = Known {
            routes: vec!["demo".into(), "shop".into(), "d;touch>x".into()],
            registries: vec![
                named("staging", "s.example"),
                named("prod", "p.example:5000"),
            ],
            tags: vec![Listed {
                source: "s.example/team/app:v1".into(),
                destination: "p.example:5000/prod-app:v1".into(),
            }],
        };
        let line = Line::read(line).unwrap();
        line.candidates(&known).into_iter().collect()
    }

    #[test]
    fn a_word_becomes_what_begins_with_it() {
        for (line, expected) in [
            ("blobferry sync d", vec!["demo"]),
            ("blobferry sync --tag ", vec!["v1"]),
            ("blobferry why ", vec!["prod-app:v1", "team/app:v1"]),
            ("blobferry why prod", vec!["prod-app:v1"]),
            ("blobferry why stag", vec!["staging/team/app:v1"]),
            ("blobferry hold p.", vec!["p.example:5000/prod-app:v1"]),
            ("blobferry why prod/", vec!["prod/prod-app:v1"]),
            ("blobferry why staging/", vec!["staging/team/app:v1"]),
            (
                "blobferry why p.example:5000/",
                vec!["p.example:5000/prod-app:v1"],
            ),
            ("blobferry rollback staging/", vec![]),
            ("blobferry rollback prod-app:v2", vec![]),
            ("blobferry hold route:", vec!["route:demo", "route:shop"]),
        ] {
            assert_eq!(completed(line), expected, "{line}");
        }
    }

    #[test]
    fn the_ledger_is_asked_for_what_follows_the_registry() {
        let registries = [Named {
            name: "prod".into(),
            host: "p.example:5000".into(),
        }];
        for (line, expected) in [
            ("blobferry why prod/app:v", Some("app:v")),
            ("blobferry why p.example:5000/app", Some("app")),
            ("blobferry why team/app", Some("team/app")),
            ("blobferry why prod/", None),
            ("blobferry why p", None),
            ("blobferry sync de", None),
            ("blobferry sync --tag v1", Some(":v1")),
            ("blobferry sync --tag ", None),
        ] {
            let line = Line::read(line).unwrap();
            assert_eq!(line.text(&registries).as_deref(), expected, "{line:?}");
        }
    }
}
