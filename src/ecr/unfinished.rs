//! The record of repositories that were created and are not set up yet.

use futures::future::BoxFuture;

use crate::endpoint::RepositoryId;

/// Remembers, across restarts, which repositories were created and are not set up yet.
pub trait Unfinished: Send + Sync {
    /// The repository is about to be created.
    fn note<'a>(&'a self, repository: &'a RepositoryId) -> BoxFuture<'a, ()>;

    /// Whether it was noted and not cleared since.
    fn is_noted<'a>(&'a self, repository: &'a RepositoryId) -> BoxFuture<'a, bool>;

    /// It is set up, or not ours.
    fn clear<'a>(&'a self, repository: &'a RepositoryId) -> BoxFuture<'a, ()>;
}
