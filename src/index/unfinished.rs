//! Repositories that we created and that still lack what belongs to them: a policy, a lifecycle.
//!
//! Noted before the repository is created and cleared when it is set up, so that a process that was
//! killed in between, or was refused the second step, leaves word for the next one. Losing the note
//! leaves a repository as it was created.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use rusqlite::OptionalExtension as _;

use super::{Index, known_number, now, number};
use crate::ecr;
use crate::endpoint::RepositoryId;

impl ecr::Unfinished for Index {
    /// Waited for: the repository is created right after it.
    fn note<'a>(&'a self, repository: &'a RepositoryId) -> BoxFuture<'a, ()> {
        let repository = repository.clone();
        async move {
            let noted = self.store.write(move |db| {
                let repository = number(db, &repository)?;
                db.prepare_cached(
                    "INSERT OR IGNORE INTO unfinished (repository, since) VALUES (?1, ?2)",
                )?
                .execute([repository, now()])
                .map(drop)
            });
            self.health.note_write(noted.await);
        }
        .boxed()
    }

    fn is_noted<'a>(&'a self, repository: &'a RepositoryId) -> BoxFuture<'a, bool> {
        self.read_in(repository, |db, repository| {
            let since: Option<i64> = db
                .prepare_cached("SELECT since FROM unfinished WHERE repository = ?1")?
                .query_row([repository], |row| row.get(0))
                .optional()?;
            Ok(since.is_some())
        })
        .boxed()
    }

    fn clear<'a>(&'a self, repository: &'a RepositoryId) -> BoxFuture<'a, ()> {
        let repository = repository.clone();
        async move {
            let cleared = self.store.write(move |db| {
                let Some(repository) = known_number(db, &repository)? else {
                    return Ok(());
                };
                db.prepare_cached("DELETE FROM unfinished WHERE repository = ?1")?
                    .execute([repository])
                    .map(drop)
            });
            self.health.note_write(cleared.await);
        }
        .boxed()
    }
}
