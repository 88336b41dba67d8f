//! ECR's data plane when processes are killed, connections break and addresses run out: two
//! accounts, each with a fake ECR behind a proxy.

use serde_json::json;

use crate::ecr::{OTHER, keys, with_identity};
use crate::support::ecr::HOME;
use crate::support::*;

mod cut;
mod kill;
mod mounts;
mod reads;

const MIB: u64 = 1024 * 1024;
/// What the fake keeps of a broken body comes in whole parts of this length.
const PART: u64 = 2 * MIB;

/// Staging and production in two accounts, watched from both sides. Control planes are asked past
/// the proxies.
struct Accounts {
    staging: Ecr,
    production: Ecr,
    source: Proxy,
    target: Proxy,
    ferry: Ferry,
}

impl Accounts {
    async fn new() -> Accounts {
        let (staging, production) = (Ecr::start(HOME).await, Ecr::start(OTHER).await);
        staging.create("app");
        production.create("app");
        production.ways(|ways| ways.parts = Some(PART));
        let (source, target) = (
            Proxy::before(&staging.url()).await,
            Proxy::before(&production.url()).await,
        );
        let config = Config::new()
            .registry_with("staging", &source.url(), keys(&staging, HOME))
            .registry_with("production", &target.url(), keys(&production, OTHER))
            .route("app", json!({}));
        let ferry = with_identity(Ferry::new(&config), &staging);
        Accounts {
            staging,
            production,
            source,
            target,
            ferry,
        }
    }

    async fn push(&self, tag: &str, image: &Image) {
        self.staging.client().push("app", tag, image).await;
    }

    fn there(&self) -> Client {
        self.production.client()
    }

    fn reset(&self) {
        self.source.reset();
        self.target.reset();
    }

    fn sent(&self) -> u64 {
        self.target.bytes(&[Kind::UploadPatch, Kind::UploadPut]).0
    }

    fn read(&self) -> u64 {
        self.source.bytes(&[Kind::BlobGet]).1
    }
}
