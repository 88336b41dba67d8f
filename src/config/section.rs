//! Reading mappings key by key: every problem has a position, and a key that no reader takes is
//! unknown.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use secrecy::SecretString;

use super::Env;
use super::problem::{Problems, hint};
use super::substitute::substitute;
use super::yaml::{Entry, Node, Position, Value};
use crate::fault::clip;

/// Longest file that a `*_file` key may name, in bytes.
const LONGEST_FILE: u64 = 64 * 1024;

/// The bit of a file's mode by which all users may read it.
const OTHERS_READ: u32 = 0o004;

/// What reading needs besides the document.
pub(super) struct Reader<'a> {
    pub(super) problems: &'a Problems,
    pub(super) env: &'a Env<'a>,
    /// Where relative paths start: the config file's folder.
    pub(super) folder: &'a Path,
}

/// A value under its key.
#[derive(Clone)]
pub(super) struct Item<'a> {
    reader: &'a Reader<'a>,
    /// `routes[0].tags`
    key: String,
    node: &'a Node,
}

impl<'a> Item<'a> {
    /// The whole document.
    pub(super) fn root(reader: &'a Reader<'a>, node: &'a Node) -> Item<'a> {
        Item {
            reader,
            key: String::new(),
            node,
        }
    }

    /// The value's key, from the root of the document.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// What reading needs.
    pub(super) fn reader(&self) -> &'a Reader<'a> {
        self.reader
    }

    /// Complains about the value.
    pub(super) fn wrong(&self, text: impl Into<String>) {
        self.reader.problems.add(self.node.at, &self.key, text);
    }

    /// Tells that something which the value names is not there.
    pub(super) fn not_there(&self, text: String) {
        self.reader
            .problems
            .add_missing(self.node.at, &self.key, text);
    }

    /// Complains about a key below the value that should be there.
    pub(super) fn missing(&self, key: &str, text: impl Into<String>) {
        let key = if self.key.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.key)
        };
        self.reader.problems.add(self.node.at, &key, text);
    }

    /// The text of a scalar, variables filled in.
    pub(super) fn text(&self) -> Option<String> {
        match &self.node.value {
            Value::Text(text) => match substitute(text, self.reader.env) {
                Ok(text) => return Some(text.into_owned()),
                Err(reason) => self.wrong(reason),
            },
            Value::Null => self.wrong("expected a value, found nothing"),
            Value::List(_) => self.wrong("expected one value, found a list"),
            Value::Map(_) => self.wrong("expected one value, found a mapping"),
        }
        None
    }

    /// A scalar that `parse` understands.
    pub(super) fn parse<T, E: Display>(
        &self,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text()?;
        parse(&text)
            .map_err(|error| self.wrong(error.to_string()))
            .ok()
    }

    /// A scalar that is not empty.
    pub(super) fn word(&self) -> Option<String> {
        self.parse(|text| {
            if text.trim().is_empty() {
                Err("is empty")
            } else {
                Ok(text.trim().to_owned())
            }
        })
    }

    /// Whether it is this very word.
    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(&self.node.value, Value::Text(text) if text.trim() == word)
    }

    /// `true` or `false`.
    pub(super) fn truth(&self) -> Option<bool> {
        self.one_of([("true", true), ("false", false)])
    }

    /// One of several words.
    pub(super) fn one_of<T>(
        &self,
        choices: impl IntoIterator<Item = (&'static str, T)>,
    ) -> Option<T> {
        let text = self.text()?;
        let mut words = Vec::new();
        for (word, value) in choices {
            if word == text {
                return Some(value);
            }
            words.push(word);
        }
        let near = hint(&text, words.iter().copied());
        self.wrong(format!(
            "\"{}\" is none of {}{near}",
            clip(&text, 100),
            words.join(", ")
        ));
        None
    }

    /// A list, or one value as a list of one.
    pub(super) fn items(&self) -> Vec<Item<'a>> {
        match &self.node.value {
            Value::List(nodes) => nodes
                .iter()
                .enumerate()
                .map(|(number, node)| self.element(number, node))
                .collect(),
            _ => vec![self.clone()],
        }
    }

    /// Whether it is a list.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// A list, and nothing else.
    pub(super) fn list(&self) -> Option<Vec<Item<'a>>> {
        match &self.node.value {
            Value::List(_) => Some(self.items()),
            _ => {
                self.wrong(format!("expected a list, found {}", kind(self.node)));
                None
            }
        }
    }

    fn element(&self, number: usize, node: &'a Node) -> Item<'a> {
        Item {
            reader: self.reader,
            key: format!("{}[{number}]", self.key),
            node,
        }
    }

    /// A mapping.
    pub(super) fn section(&self) -> Option<Section<'a>> {
        let Value::Map(entries) = &self.node.value else {
            let is_empty_file = self.key.is_empty() && matches!(self.node.value, Value::Null);
            self.wrong(if is_empty_file {
                "the file is empty; it needs `registries` and `routes`".into()
            } else {
                format!("expected a mapping, found {}", kind(self.node))
            });
            return None;
        };
        let mut seen: HashMap<&str, &Entry> = HashMap::new();
        let section = Section {
            item: self.clone(),
            entries,
            known: Vec::new(),
        };
        for entry in entries {
            if let Some(first) = seen.insert(&entry.key, entry) {
                let Position { line, column } = first.at;
                section.complain(
                    entry,
                    format!("is written twice; the first is at {line}:{column}"),
                );
            }
        }
        Some(section)
    }

    /// A path; a relative one starts at the config file's folder.
    pub(super) fn path(&self) -> Option<PathBuf> {
        Some(self.reader.folder.join(self.word()?))
    }

    /// The content of the file that the value names, not empty.
    pub(super) fn file(&self) -> Option<Vec<u8>> {
        let path = self.path()?;
        let mut content = Vec::new();
        let read = open_regular(&path)
            .and_then(|file| file.take(LONGEST_FILE + 1).read_to_end(&mut content));
        let shown = path.display();
        match read {
            Err(error) => self.wrong(format!("cannot read {shown}: {error}")),
            Ok(0) => self.wrong(format!("{shown} is empty")),
            Ok(length) if length as u64 > LONGEST_FILE => {
                self.wrong(format!("{shown} is longer than {LONGEST_FILE} bytes"))
            }
            Ok(_) => return Some(content),
        }
        None
    }

    /// The secret in the file that the value names, without the line's end.
    pub(super) fn secret(&self) -> Option<SecretString> {
        let content = String::from_utf8(self.file()?);
        let secret = content
            .as_deref()
            .map(|text| text.strip_suffix('\n').unwrap_or(text))
            .map(|text| text.strip_suffix('\r').unwrap_or(text));
        match secret {
            Err(_) => self.wrong("the file holds no text"),
            Ok("") => self.wrong("the file holds nothing but the end of a line"),
            Ok(text) if text.contains(|character: char| character.is_control()) => {
                self.wrong("the file holds more than one line, or control characters");
            }
            Ok(text) => {
                self.note_exposed();
                return Some(SecretString::from(text.to_owned()));
            }
        }
        None
    }

    /// Notes the file that the value names where every user of this machine can read it.
    pub(super) fn note_exposed(&self) {
        let Some(path) = self.path() else { return };
        let mode = path.metadata().map(|facts| facts.mode());
        if mode.is_ok_and(|mode| mode & OTHERS_READ != 0) {
            let shown = path.display();
            let text = format!("every user of this machine can read it: chmod 600 {shown}");
            let problems = self.reader.problems;
            problems.add_exposed(self.node.at, &self.key, text);
        }
    }
}

/// Opens a file that is one: a pipe would be waited for, and a device may have no end.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    match file.metadata()?.file_type() {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        kind if kind.is_fifo() => Err(io::Error::other("it is a pipe, not a regular file")),
        _ => Err(io::Error::other(
            "it is a device or a socket, not a regular file",
        )),
    }
}

fn kind(node: &Node) -> &'static str {
    match node.value {
        Value::Null => "nothing",
        Value::Text(_) => "one value",
        Value::List(_) => "a list",
        Value::Map(_) => "a mapping",
    }
}

/// A mapping that is read key by key.
pub(super) struct Section<'a> {
    item: Item<'a>,
    entries: &'a [Entry],
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// The value of a key. A key without a value counts as absent.
    pub(super) fn item(&mut self, key: &'static str) -> Option<Item<'a>> {
        self.known.push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        (!matches!(entry.node.value, Value::Null)).then(|| self.value(entry))
    }

    /// The value of a key that must be there.
    pub(super) fn required(&mut self, key: &'static str, what: &str) -> Option<Item<'a>> {
        let item = self.item(key);
        if item.is_none() {
            match self.entries.iter().find(|entry| entry.key == key) {
                Some(entry) => self.complain(entry, format!("has no value: {what}")),
                None => self.item.missing(key, format!("is missing: {what}")),
            }
        }
        item
    }

    /// The keys and values of a mapping with keys of the user's own.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, Item<'a>)> {
        self.entries
            .iter()
            .map(|entry| (entry.key.as_str(), self.value(entry)))
    }

    /// Complains about a key of [`Section::entries`], at the key.
    pub(super) fn wrong_key(&self, key: &str, text: &str) {
        if let Some(entry) = self.entries.iter().find(|entry| entry.key == key) {
            self.complain(entry, text);
        }
    }

    /// Reports every key that no reader has taken, except keys that `own` accepts as the user's
    /// own.
    pub(super) fn finish(self, own: impl Fn(&str) -> bool) {
        for entry in self.entries {
            let key = entry.key.as_str();
            if self.known.contains(&key) || own(key) {
                continue;
            }
            let mut near = hint(key, self.known.iter().copied());
            if near.is_empty() {
                near = format!("; known here: {}", self.known.join(", "));
            }
            self.complain(entry, format!("unknown key{near}"));
        }
    }

    fn value(&self, entry: &'a Entry) -> Item<'a> {
        Item {
            reader: self.item.reader,
            key: self.key_of(entry),
            node: &entry.node,
        }
    }

    fn complain(&self, entry: &Entry, text: impl Into<String>) {
        self.item
            .reader
            .problems
            .add(entry.at, &self.key_of(entry), text);
    }

    fn key_of(&self, entry: &Entry) -> String {
        let key = clip(&entry.key, 100);
        if self.item.key.is_empty() {
            key
        } else {
            format!("{}.{key}", self.item.key)
        }
    }
}

/// `Some(None)` for an absent key, `None` after a complaint.
pub(super) fn optional<'a, T>(
    item: &Option<Item<'a>>,
    read: impl FnOnce(&Item<'a>) -> Option<T>,
) -> Option<Option<T>> {
    match item {
        Some(item) => read(item).map(Some),
        None => Some(None),
    }
}

/// Most entries of one list of a gate.
const MOST: usize = 100;

/// The entries of a list that is neither empty nor long.
pub(super) fn entries<'a>(item: &Item<'a>) -> Option<Vec<Item<'a>>> {
    let items = item.items();
    if items.is_empty() || items.len() > MOST {
        item.wrong(format!("has {} entries: give 1 to {MOST}", items.len()));
        return None;
    }
    Some(items)
}
