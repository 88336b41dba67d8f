//! `blobferry schema` describes the config file: what is shown and installed validates, what the
//! program refuses for its shape does not.
//!
//! An operator gave the schema to an editor, and every config was marked: `kind` was required.

use std::fmt::Display;

use regex::Regex;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::docs::{blobferry, blocks, files_in, pages, read};

fn schema() -> Value {
    let nowhere = TempDir::new().expect("a scratch directory");
    serde_json::from_slice(&blobferry(&["schema"], nowhere.path()).stdout).expect("a JSON schema")
}

/// As editors read it: YAML 1.2, in which `off` is a text.
fn yaml(text: &str) -> Value {
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options)
        .unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What a value violates. A keyword that this validator lacks is a panic, never a pass.
struct Validator<'s> {
    root: &'s Value,
    problems: Vec<String>,
}

/// The violations of `value` against the whole schema.
fn problems(root: &Value, value: &Value) -> Vec<String> {
    let mut validator = Validator {
        root,
        problems: Vec::new(),
    };
    validator.validate(root, value, "");
    validator.problems
}

impl Validator<'_> {
    fn validate(&mut self, schema: &Value, value: &Value, at: &str) {
        let keywords = schema.as_object().expect("a schema is an object");
        for (keyword, expected) in keywords {
            self.keyword(schema, (keyword, expected), value, at);
        }
    }

    fn keyword(&mut self, schema: &Value, rule: (&str, &Value), value: &Value, at: &str) {
        let (keyword, expected) = rule;
        match keyword {
            "$defs" | "$schema" | "description" | "format" | "title" => {}
            // Every object of this schema says what else it may have, so this stands for all three.
            "additionalProperties" => self.members(schema, value, at),
            "properties" | "patternProperties" => {
                let others = &schema["additionalProperties"];
                assert!(!others.is_null(), "{at}: any member would do");
            }
            "$ref" => {
                let pointer = expected.as_str().and_then(|text| text.strip_prefix('#'));
                let target = self.root.pointer(pointer.expect("a reference"));
                self.validate(target.expect("a definition"), value, at);
            }
            "anyOf" | "oneOf" => {
                let fitting = list(expected).iter().filter(|one| self.fits(one, value));
                let count = fitting.count();
                let is_right = count == 1 || (keyword == "anyOf" && count > 1);
                self.require(is_right, at, format_args!("{count} of {keyword} fit"));
            }
            "const" => self.require(expected == value, at, format_args!("is not {expected}")),
            "enum" => self.require(list(expected).contains(value), at, "is no choice"),
            "type" => {
                let is_right = match expected {
                    Value::Array(types) => types.iter().any(|one| is(value, one)),
                    one => is(value, one),
                };
                self.require(is_right, at, format_args!("is not of type {expected}"));
            }
            "pattern" => {
                let pattern = Regex::new(expected.as_str().expect("a pattern"));
                let pattern = pattern.expect("a regular expression");
                let is_right = value.as_str().is_none_or(|text| pattern.is_match(text));
                self.require(is_right, at, format_args!("does not match {expected}"));
            }
            "minItems" | "maxItems" => {
                let bound = expected.as_u64().expect("a number");
                let length = value.as_array().map_or(bound, |items| items.len() as u64);
                let is_right = length == bound || (length > bound) == (keyword == "minItems");
                self.require(is_right, at, format_args!("{keyword} {bound}"));
            }
            "minimum" | "maximum" => {
                let bound = expected.as_f64().expect("a number");
                let is_right = value.as_f64().is_none_or(|number| match keyword {
                    "minimum" => number >= bound,
                    _ => number <= bound,
                });
                self.require(is_right, at, format_args!("{keyword} {bound}"));
            }
            "items" => {
                for (position, item) in value.as_array().into_iter().flatten().enumerate() {
                    self.validate(expected, item, &format!("{at}/{position}"));
                }
            }
            "required" => {
                for key in list(expected).iter().filter_map(Value::as_str) {
                    let is_right = value.as_object().is_none_or(|keys| keys.contains_key(key));
                    self.require(is_right, at, format_args!("lacks {key}"));
                }
            }
            other => panic!("{at}: the validator does not know {other}"),
        }
    }

    fn members(&mut self, schema: &Value, value: &Value, at: &str) {
        for (key, member) in value.as_object().into_iter().flatten() {
            let at = format!("{at}/{key}");
            if let Some(property) = schema["properties"].get(key) {
                self.validate(property, member, &at);
                continue;
            }
            let is_free = key.starts_with("x-") && schema["patternProperties"]["^x-"].is_object();
            match &schema["additionalProperties"] {
                _ if is_free => {}
                Value::Bool(false) => self.require(false, &at, "is unknown"),
                Value::Object(_) => self.validate(&schema["additionalProperties"], member, &at),
                other => panic!("{at}: {other}: any member would do"),
            }
        }
    }

    fn fits(&self, schema: &Value, value: &Value) -> bool {
        let mut validator = Validator {
            root: self.root,
            problems: Vec::new(),
        };
        validator.validate(schema, value, "");
        validator.problems.is_empty()
    }

    fn require(&mut self, is_right: bool, at: &str, problem: impl Display) {
        if !is_right {
            self.problems.push(format!("{at} {problem}"));
        }
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn is(value: &Value, kind: &Value) -> bool {
    match kind.as_str().expect("the name of a type") {
        "array" => value.is_array(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "object" => value.is_object(),
        "string" => value.is_string(),
        other => panic!("the validator does not know the type {other}"),
    }
}

#[test]
fn every_config_that_is_shown_or_installed_fits_the_schema() {
    let schema = schema();
    let mut configs: Vec<(String, String)> = files_in("config", ".yaml")
        .into_iter()
        .map(|path| (path.display().to_string(), read(&path)))
        .collect();
    for page in pages() {
        let shown = blocks(&page.text).into_iter();
        let shown = shown.filter(|block| block.info == "yaml config");
        configs.extend(shown.map(|block| (page.path.display().to_string(), block.text)));
    }
    assert!(configs.len() >= 10, "{}", configs.len());
    for (name, config) in configs {
        assert_eq!(
            problems(&schema, &yaml(&config)),
            Vec::<String>::new(),
            "{name}"
        );
    }
}

#[test]
fn what_the_program_refuses_for_its_shape_does_not_fit_the_schema() {
    let schema = schema();
    let config = |key: &str| {
        format!(
            "registries: {{one: {{url: \"https://one.example\"{key}}}}}\nroutes: [{{from: one/a, to: one/b}}]\n"
        )
    };
    assert_eq!(
        problems(&schema, &yaml(&config(", kind: zot"))),
        Vec::<String>::new()
    );
    for (key, problem) in [
        (", kind: zott", "/registries/one/kind is no choice"),
        (", urls: x", "/registries/one/urls is unknown"),
        (
            ", insecure: perhaps",
            "/registries/one/insecure is not of type [\"boolean\",\"null\"]",
        ),
        (
            ", bandwidth: [{days: sun}]",
            "/registries/one/bandwidth 0 of anyOf fit",
        ),
    ] {
        assert_eq!(problems(&schema, &yaml(&config(key))), [problem]);
    }
    let empty = problems(&schema, &json!({}));
    assert_eq!(empty, [" lacks registries", " lacks routes"]);
    let no_url = json!({"registries": {"one": {}}, "routes": [{"from": "one/a", "to": "one/b"}]});
    assert_eq!(problems(&schema, &no_url), ["/registries/one lacks url"]);
}
