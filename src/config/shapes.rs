//! Shapes that values of several keys have. They are never filled: only their schema is used.
#![expect(dead_code, reason = "never filled: only their schema is used")]

use schemars::JsonSchema;

/// A gate, or `off` for none.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub(super) enum OrOff<T> {
    Gate(T),
    Off(Off),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "kebab-case")]
pub(super) enum Off {
    Off,
}

/// One, or a list.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub(super) enum OneOrMany<T = Word> {
    One(T),
    Many(Vec<T>),
}

/// A text; YAML takes `1.10` for a number, which is read as it is written.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub(super) enum Word {
    Text(String),
    Number(f64),
}

/// A number, or a text with a unit or a `${VARIABLE}`.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub(super) enum Number {
    Number(f64),
    Text(String),
}
