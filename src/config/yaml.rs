//! A YAML document as a tree with the position of every key and value.
//!
//! Scalars stay as written: `1.10` is the text `1.10` until a reader parses it as a number.
//! Repeated keys are kept, so that the problem can name their position. Aliases and merge keys are
//! followed, within bounds.

use std::fmt;

use crate::fault::clip;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, MessageFormatter, Spanned};

/// Most keys and values of a document, aliases not counted.
const MOST_NODES: usize = 50_000;

/// Most keys and values that aliases may add.
const MOST_REPLAYED: usize = 50_000;

/// Deepest nesting.
const DEEPEST: usize = 32;

/// A place in the text; lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: u64,
    /// The column.
    pub column: u64,
}

impl Position {
    const START: Position = Position { line: 1, column: 1 };

    fn of(location: Location) -> Position {
        if location == Location::UNKNOWN {
            return Position::START;
        }
        Position {
            line: location.line().max(1),
            column: location.column().max(1),
        }
    }
}

/// A value and its place.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) value: Value,
}

#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) at: Position,
    pub(crate) key: String,
    pub(crate) node: Node,
}

/// Reads one document.
///
/// # Errors
/// Where the text is not YAML, or too much of it, and why.
pub(crate) fn parse(text: &str) -> Result<Node, (Position, String)> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_nodes: MOST_NODES, max_depth: DEEPEST },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MOST_REPLAYED },
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options) {
        Ok(root) => Ok(node(root, text)),
        Err(error) => {
            let message = serde_saphyr::UserMessageFormatter
                .format_message(error.without_snippet())
                .into_owned();
            Err((
                error.location().map_or(Position::START, Position::of),
                clip(&message, 300),
            ))
        }
    }
}

/// A value as the parser gives it; what looks like a bool or a number is read from the source text
/// afterwards.
enum Raw {
    Null,
    Plain,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

fn node(raw: Spanned<Raw>, source: &str) -> Node {
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Plain => Value::Text(slice(raw.defined, source).to_owned()),
        Raw::Text(text) => Value::Text(text),
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(item, source)).collect()),
        Raw::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| entry(key, value, source))
                .collect(),
        ),
    };
    Node {
        at: Position::of(raw.defined),
        value,
    }
}

fn entry(key: Spanned<String>, value: Spanned<Raw>, source: &str) -> Entry {
    Entry {
        at: Position::of(key.defined),
        key: key.value,
        node: node(value, source),
    }
}

fn slice(location: Location, source: &str) -> &str {
    let span = location.span();
    let range = span
        .byte_offset()
        .zip(span.byte_len())
        .and_then(|(offset, length)| {
            let offset = usize::try_from(offset).ok()?;
            let length = usize::try_from(length).ok()?;
            source.get(offset..offset.checked_add(length)?)
        });
    range.unwrap_or_default().trim()
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Plain)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(node: &Node) -> String {
        let Position { line, column } = node.at;
        match &node.value {
            Value::Null => format!("~@{line}:{column}"),
            Value::Text(text) => format!("{text:?}@{line}:{column}"),
            Value::List(items) => {
                format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" "))
            }
            Value::Map(entries) => {
                let entries = entries.iter().map(|entry| {
                    format!(
                        "{}@{}:{}={}",
                        entry.key,
                        entry.at.line,
                        entry.at.column,
                        show(&entry.node)
                    )
                });
                format!("{{{}}}", entries.collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn scalars_stay_as_written_and_know_their_place() {
        let table = [
            (
                "a: 1.10\nb: \"x y\"\n",
                r#"{a@1:1="1.10"@1:4 b@2:1="x y"@2:4}"#,
            ),
            (
                "a: 0123\nb: off\nc: true\nd: 1e999\ne: .inf\n",
                r#"{a@1:1="0123"@1:4 b@2:1="off"@2:4 c@3:1="true"@3:4 d@4:1="1e999"@4:4 e@5:1=".inf"@5:4}"#,
            ),
            (
                "ü: [ä, 2, -3] # no\n",
                r#"{ü@1:1=["ä"@1:5 "2"@1:8 "-3"@1:11]}"#,
            ),
            (
                "a: &x {b: 7}\nc: *x\n",
                r#"{a@1:1={b@1:8="7"@1:11} c@2:1={b@1:8="7"@1:11}}"#,
            ),
            (
                "a: &x {b: 7}\nc:\n  <<: *x\n  d: 8\n",
                r#"{a@1:1={b@1:8="7"@1:11} c@2:1={d@4:3="8"@4:6 b@1:8="7"@1:11}}"#,
            ),
            ("a: 1\na: 2\n", r#"{a@1:1="1"@1:4 a@2:1="2"@2:4}"#),
            ("1: ''\n", r#"{1@1:1=""@1:4}"#),
        ];
        for (text, expected) in table {
            assert_eq!(show(&parse(text).unwrap()), expected, "{text}");
        }
        assert!(matches!(parse("").unwrap().value, Value::Null));
        assert!(matches!(
            parse("# only a comment\n").unwrap().value,
            Value::Null
        ));
    }

    #[test]
    fn what_is_not_yaml_is_placed() {
        for bad in [
            "a: [1\n",
            "a: b: c\n",
            "a: *nobody\n",
            "a: !thing 1\n",
            "a: 1\n---\nb: 2\n",
            "\"a\n",
        ] {
            let (at, message) = parse(bad).unwrap_err();
            assert!(
                at.line >= 1 && !message.is_empty() && !message.contains('\n'),
                "{bad}: {at:?} {message}"
            );
        }
    }

    #[test]
    fn a_bomb_of_aliases_does_not_go_off() {
        let mut text = String::from("x-0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]\n");
        for level in 1..12 {
            let alias = format!("*a{}", level - 1);
            text.push_str(&format!(
                "x-{level}: &a{level} [{}]\n",
                vec![alias; 8].join(", ")
            ));
        }
        assert!(parse(&text).is_err());
        assert!(parse(&("[".repeat(100) + &"]".repeat(100))).is_err());
    }
}
