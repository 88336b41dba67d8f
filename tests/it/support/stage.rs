//! The usual stage: two real registries, a proxy before each, and the program between them.

use serde_json::{Value, json};

use super::{Client, Config, Ferry, Program, Proxy, Registry, Run};

/// Staging and production, watched from both sides. Tests push and read past the proxies.
pub struct Stage {
    pub staging: Registry,
    pub production: Registry,
    /// Before staging.
    pub source: Proxy,
    /// Before production.
    pub target: Proxy,
    pub ferry: Ferry,
}

impl Stage {
    /// Both registries of one kind, one route for the repository `app`.
    pub async fn new(program: Program) -> Stage {
        Stage::with_route(program, json!({})).await
    }

    /// The same, with more keys in the route.
    pub async fn with_route(program: Program, route: Value) -> Stage {
        Stage::build(program, |config| config.route("app", route)).await
    }

    /// Both registries of one kind, and a config of the test's own on top of them.
    pub async fn build(program: Program, config: impl FnOnce(Config) -> Config) -> Stage {
        Stage::between(
            program.setup().delete().start(),
            program.setup().delete().start(),
            config,
        )
        .await
    }

    /// Between these registries.
    pub async fn between(
        staging: Registry,
        production: Registry,
        config: impl FnOnce(Config) -> Config,
    ) -> Stage {
        let (source, target) = (
            Proxy::before(&staging.url()).await,
            Proxy::before(&production.url()).await,
        );
        let base = Config::new()
            .registry("staging", &source.url())
            .registry("production", &target.url());
        let ferry = Ferry::new(&config(base));
        Stage {
            staging,
            production,
            source,
            target,
            ferry,
        }
    }

    /// A client of staging, past the proxy.
    pub fn push(&self) -> Client {
        self.staging.client()
    }

    /// A client of production, past the proxy.
    pub fn there(&self) -> Client {
        self.production.client()
    }

    /// `sync --json`.
    pub async fn sync(&self) -> Run {
        self.ferry.sync(&[]).await
    }

    /// The config of this stage with other routes.
    pub fn config(&self, change: impl FnOnce(Config) -> Config) -> Config {
        change(
            Config::new()
                .registry("staging", &self.source.url())
                .registry("production", &self.target.url()),
        )
    }

    /// Forgets rules and requests of both proxies.
    pub fn reset(&self) {
        self.source.reset();
        self.target.reset();
    }
}
