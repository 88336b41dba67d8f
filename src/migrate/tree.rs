//! Mappings and lists of a YAML document, each with its line. Null counts as absent.

use std::collections::BTreeMap;
use std::fmt;

use super::address;
use super::remark::Remark;
use crate::config::Position;
use crate::config::yaml::{self, Entry, Node, Value};
use crate::fault::clip;

/// Why a file cannot be translated. Never holds a value of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Where; `None` for the file as a whole.
    pub at: Option<Position>,
    /// What is wrong, and the way out.
    pub text: String,
}

impl Wrong {
    pub(super) fn whole(text: impl Into<String>) -> Wrong {
        Wrong {
            at: None,
            text: text.into(),
        }
    }

    pub(super) fn at(position: Position, text: impl Into<String>) -> Wrong {
        Wrong {
            at: Some(position),
            text: text.into(),
        }
    }
}

impl std::error::Error for Wrong {}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Position { line, column }) = self.at {
            write!(f, "{line}:{column}: ")?;
        }
        f.write_str(&self.text)
    }
}

/// Reads one document.
pub(super) fn parse(text: &str) -> Result<Node, Wrong> {
    yaml::parse(text)
        .map_err(|(at, reason)| Wrong::at(at, format!("is not YAML that can be read: {reason}")))
}

/// Refuses a key that is written twice: other tools take the first value, the last or neither.
pub(super) fn check_keys(node: &Node) -> Result<(), Wrong> {
    match &node.value {
        Value::Map(entries) => check_entries(entries),
        Value::List(nodes) => nodes.iter().try_for_each(check_keys),
        Value::Text(_) | Value::Null => Ok(()),
    }
}

fn check_entries(entries: &[Entry]) -> Result<(), Wrong> {
    let mut places = BTreeMap::new();
    for entry in entries {
        if let Some(Position { line, column }) = places.insert(&entry.key, entry.at) {
            let key = clip(&address::safe(&entry.key), 100);
            let text = format!("`{key}` is written twice; the first is at {line}:{column}");
            return Err(Wrong::at(entry.at, text));
        }
        check_keys(&entry.node)?;
    }
    Ok(())
}

/// A mapping. Of a key that is written twice the last value counts, until [`check_keys`] refuses it.
pub(super) struct Map<'a> {
    pub(super) at: Position,
    /// In the order of the file.
    keys: Vec<&'a str>,
    values: BTreeMap<&'a str, (Position, &'a Node)>,
}

impl<'a> Map<'a> {
    /// The node as a mapping.
    pub(super) fn of(node: &'a Node, what: &str) -> Result<Map<'a>, Wrong> {
        let Value::Map(entries) = &node.value else {
            return Err(expected(node, what, "a mapping"));
        };
        let mut map = Map {
            at: node.at,
            keys: Vec::new(),
            values: BTreeMap::new(),
        };
        for entry in entries {
            let value = (entry.at, &entry.node);
            if map.values.insert(&entry.key, value).is_none() {
                map.keys.push(&entry.key);
            }
        }
        Ok(map)
    }

    /// The line on which it starts.
    pub(super) fn line(&self) -> u64 {
        self.at.line
    }

    /// The line of a key, else the mapping's.
    pub(super) fn line_of(&self, key: &str) -> u64 {
        self.values.get(key).map_or(self.at, |(at, _)| *at).line
    }

    /// Keys with their values, in the order of the file.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Node)> {
        self.keys.iter().map(|key| (*key, self.values[*key].1))
    }

    /// Whether the key is there with a value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Node> {
        let (_, node) = self.values.get(key)?;
        (!matches!(node.value, Value::Null)).then_some(*node)
    }

    /// A remark for each key that is in `without`, with its reason, or that is not `known`.
    pub(super) fn unmatched(&self, known: &[&str], without: &[(&str, &str)]) -> Vec<Remark> {
        let mut remarks = Vec::new();
        for (key, _) in self.entries() {
            if known.contains(&key) || key.starts_with("x-") || !self.has(key) {
                continue;
            }
            let reason = without.iter().find(|(name, _)| *name == key);
            let text = match reason {
                Some((_, reason)) => format!("{key}: {reason}"),
                None if is_key(key) => format!("{}: is not known and left out", clip(key, 60)),
                None => "a key that is no word is not known and left out".to_owned(),
            };
            remarks.push(Remark::new(self.line_of(key), text));
        }
        remarks
    }

    /// One value.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, Wrong> {
        self.get(key).map(|node| text(node, key)).transpose()
    }

    /// One value that must be there and not be empty.
    pub(super) fn needed(&self, key: &str) -> Result<&'a str, Wrong> {
        let found = self.text(key)?.map(str::trim);
        found
            .filter(|text| !text.is_empty())
            .ok_or_else(|| Wrong::at(self.at, format!("has no `{key}`")))
    }

    /// `true` or `false`.
    pub(super) fn truth(&self, key: &str) -> Result<Option<bool>, Wrong> {
        let Some(node) = self.get(key) else {
            return Ok(None);
        };
        match text(node, key)? {
            "true" | "True" | "TRUE" | "yes" | "on" => Ok(Some(true)),
            "false" | "False" | "FALSE" | "no" | "off" => Ok(Some(false)),
            _ => Err(Wrong::at(node.at, format!("`{key}` is not true or false"))),
        }
    }

    /// A number that is not negative.
    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, Wrong> {
        let Some(node) = self.get(key) else {
            return Ok(None);
        };
        let number = text(node, key)?.parse();
        number
            .map(Some)
            .map_err(|_| Wrong::at(node.at, format!("`{key}` is not a number")))
    }

    /// A list, or one value as a list of one.
    pub(super) fn list(&self, key: &str) -> Vec<&'a Node> {
        match self.get(key) {
            None => Vec::new(),
            Some(node) => items(node),
        }
    }

    /// A list of single values, or one.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<&'a str>, Wrong> {
        let nodes = self.list(key);
        nodes.into_iter().map(|node| text(node, key)).collect()
    }

    /// A list of mappings.
    pub(super) fn maps(&self, key: &str) -> Result<Vec<Map<'a>>, Wrong> {
        let Some(node) = self.get(key) else {
            return Ok(Vec::new());
        };
        let Value::List(nodes) = &node.value else {
            return Err(expected(node, key, "a list"));
        };
        nodes.iter().map(|node| Map::of(node, key)).collect()
    }

    /// A mapping.
    pub(super) fn map(&self, key: &str) -> Result<Option<Map<'a>>, Wrong> {
        self.get(key).map(|node| Map::of(node, key)).transpose()
    }
}

fn is_key(text: &str) -> bool {
    text.chars()
        .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// A list, or one value as a list of one.
pub(super) fn items(node: &Node) -> Vec<&Node> {
    match &node.value {
        Value::List(nodes) => nodes.iter().collect(),
        _ => vec![node],
    }
}

/// One value.
pub(super) fn text<'a>(node: &'a Node, what: &str) -> Result<&'a str, Wrong> {
    match &node.value {
        Value::Text(text) => Ok(text),
        Value::Null => Ok(""),
        _ => Err(expected(node, what, "one value")),
    }
}

fn expected(node: &Node, what: &str, kind: &str) -> Wrong {
    let found = match node.value {
        Value::Null => "nothing",
        Value::Text(_) => "one value",
        Value::List(_) => "a list",
        Value::Map(_) => "a mapping",
    };
    Wrong::at(
        node.at,
        format!(
            "`{}`: expected {kind}, found {found}",
            clip(&address::safe(what), 100)
        ),
    )
}
