//! A repository as the control plane addresses it.

use std::sync::Arc;

use super::control::Control;
use super::shared::Shared;
use crate::endpoint::{RepositoryId, Tally};
use crate::oci::RepositoryName;

/// One repository of an ECR registry, without the distribution client. Cheap to clone.
#[derive(Clone)]
pub struct RepositoryHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) id: RepositoryId,
    pub(super) address: String,
    pub(super) tally: Option<Arc<Tally>>,
}

impl RepositoryHandle {
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn control(&self) -> &Control {
        &self.shared.control
    }

    pub(super) fn id(&self) -> &RepositoryId {
        &self.id
    }

    pub(super) fn name(&self) -> &RepositoryName {
        &self.id.repository
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn tally(&self) -> Option<&Tally> {
        self.tally.as_deref()
    }
}
