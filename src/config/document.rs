//! The file's top level.

use std::collections::BTreeMap;
use std::path::Path;

use super::keys::{Keys as _, keys};
use super::section::Item;
use super::{Config, daemon, queues, receivers, registries, routes, sets};
use crate::oci::Digest;

keys! {
    /// blobferry's config file.
    #[schemars(title = "blobferry")]
    #[schemars(extend("patternProperties" = {"^x-": {"description": "Room for YAML anchors; not read."}}))]
    Document, DocumentKeys {
        /// The daemon's own settings.
        daemon: Option<daemon::DaemonSection>,
        /// Where images live, by a name of your own.
        registries: BTreeMap<String, registries::RegistrySection> =
            "name those that the routes read and write",
        /// Which registries may notify us of pushes, by a name of your own: `POST /v1/events/NAME`.
        receivers: Option<BTreeMap<String, receivers::Receiver>>,
        /// SQS queues of ECR's push events, by a name of your own.
        queues: Option<BTreeMap<String, queues::Queue>>,
        /// Routes with images that move together, whole, by a name of your own.
        sets: Option<BTreeMap<String, sets::SetSection>>,
        /// What a route says where it does not say it itself.
        defaults: Option<routes::Defaults>,
        /// What goes where. The first route with a `from` that matches takes a source repository.
        #[schemars(length(min = 1))]
        routes: Vec<routes::RouteSection> = "say what goes where",
    }
}

/// `None` after a complaint.
pub(super) fn read(root: &Item<'_>, path: &Path, text: &str) -> Option<Config> {
    let mut section = root.section()?;
    let keys = DocumentKeys::take(&mut section);
    section.finish(|key| key.starts_with("x-"));
    let daemon = daemon::read(keys.daemon, root);
    let registries = keys.registries.map(registries::read);
    let receivers = registries
        .as_ref()
        .and_then(|registries| receivers::read(keys.receivers, registries));
    let queues = registries
        .as_ref()
        .and_then(|registries| queues::read(keys.queues, registries));
    let names = registries
        .as_ref()
        .map(registries::Read::origins)
        .unwrap_or_default();
    let unscanned = registries
        .as_ref()
        .map(registries::Read::without_scanner)
        .unwrap_or_default();
    let routes = routes::read(keys.routes, keys.defaults, &names, &unscanned);
    let sets = sets::read(keys.sets, &routes);
    let hash = Digest::sha256(text.as_bytes()).encoded()[..12].to_owned();
    Some(Config {
        path: path.to_owned(),
        hash,
        daemon: daemon?,
        receivers: receivers?,
        queues: queues?,
        registries: registries?.registries,
        routes,
        sets,
        missing: Vec::new(),
        exposed: Vec::new(),
    })
}
