//! The config file of a test, built piece by piece.

use serde_json::{Map, Value, json};

/// Numbers of threads that move bytes: none beside the deciding one, the fewest, as many as a large
/// machine has.
pub const THREADS: [usize; 3] = [1, 2, 8];

/// A config file. It is written as JSON, which is YAML too; [`Config::text`] takes any other text
/// as it is.
#[derive(Clone, Debug)]
pub struct Config {
    body: Value,
    text: Option<String>,
}

impl Config {
    /// No registries, no routes, no polls: nothing happens unasked.
    pub fn new() -> Config {
        Config {
            body: json!({"daemon": {"poll": "off", "grace": "10s"}, "registries": {}, "routes": []}),
            text: None,
        }
    }

    /// The usual pair: everything tagged in staging's `app` goes to production's `app`; every tag
    /// is fixed but `latest`.
    pub fn pair(staging: &str, production: &str) -> Config {
        Config::new()
            .registry("staging", staging)
            .registry("production", production)
            .route("app", json!({}))
    }

    /// Exactly this text.
    pub fn text(text: &str) -> Config {
        Config {
            text: Some(text.into()),
            ..Config::new()
        }
    }

    pub fn registry(self, name: &str, url: &str) -> Config {
        self.registry_with(name, url, json!({}))
    }

    /// A registry with more keys than its URL.
    pub fn registry_with(mut self, name: &str, url: &str, more: Value) -> Config {
        self.body["registries"][name] = merged(json!({"url": url}), more);
        self
    }

    /// A route between repositories of the same name, for all tags; `more` adds keys or replaces
    /// them.
    pub fn route(self, repository: &str, more: Value) -> Config {
        let usual = json!({"name": repository, "from": format!("staging/{repository}"), "to": format!("production/{repository}"),
            "tags": {"include": ["*"]}});
        self.raw_route(merged(usual, more))
    }

    pub fn raw_route(mut self, route: Value) -> Config {
        self.body["routes"]
            .as_array_mut()
            .expect("routes are a list")
            .push(route);
        self
    }

    /// A receiver of notifications about staging.
    pub fn receiver(mut self, name: &str, more: Value) -> Config {
        self.body["receivers"][name] = merged(json!({"registry": "staging"}), more);
        self
    }

    /// A queue of push events about staging.
    pub fn queue(self, name: &str, url: &str) -> Config {
        self.queue_with(name, url, json!({}))
    }

    /// A queue with more keys than its URL.
    pub fn queue_with(mut self, name: &str, url: &str, more: Value) -> Config {
        let usual = json!({"sqs": url, "registry": "staging", "region": "eu-west-1"});
        self.body["queues"][name] = merged(usual, more);
        self
    }

    /// Routes that move together.
    pub fn set(mut self, name: &str, routes: &[&str]) -> Config {
        self.body["sets"][name] = json!({"routes": routes});
        self
    }

    /// Sets a key of `daemon`.
    pub fn daemon(mut self, key: &str, value: Value) -> Config {
        self.body["daemon"][key] = value;
        self
    }

    /// Sets how many threads move the bytes.
    pub fn threads(self, threads: usize) -> Config {
        self.daemon("threads", json!(threads))
    }

    /// The text of this config alone.
    pub fn text_of(&self) -> String {
        serde_json::to_string_pretty(&self.body).expect("JSON of strings")
    }

    pub(super) fn write(&self, listen: &str, state: &str) -> String {
        if let Some(text) = &self.text {
            return text.clone();
        }
        let places = json!({"listen": listen, "state": state});
        let mut body = self.body.clone();
        body["daemon"] = merged(places, body["daemon"].take());
        serde_json::to_string_pretty(&body).expect("JSON of strings")
    }
}

fn merged(base: Value, more: Value) -> Value {
    let (Value::Object(mut base), Value::Object(more)) = (base, more) else {
        panic!("two objects")
    };
    base.extend::<Map<String, Value>>(more);
    Value::Object(base)
}
