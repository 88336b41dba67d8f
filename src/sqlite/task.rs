//! Tasks: what callers want done, run in groups that share a transaction.

use std::sync::Arc;

use rusqlite::Connection;

use super::Failure;

/// A task of any kind: first the act, then, when its fate is known, the answer.
pub(super) trait Work: Send {
    fn act(&mut self, connection: &Connection) -> rusqlite::Result<()>;
    fn settle(self: Box<Self>, outcome: Result<(), Failure>);
}

pub(super) struct Task<A, T, S> {
    act: Option<A>,
    value: Option<T>,
    settle: Option<S>,
}

impl<A, T, S> Task<A, T, S>
where
    A: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    T: Send + 'static,
    S: FnOnce(Result<T, Failure>) + Send + 'static,
{
    /// A task that runs `act` and tells `settle` what came of it.
    pub(super) fn boxed(act: A, settle: S) -> Box<dyn Work> {
        Box::new(Task {
            act: Some(act),
            value: None,
            settle: Some(settle),
        })
    }
}

impl<A, T, S> Work for Task<A, T, S>
where
    A: FnOnce(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
    S: FnOnce(Result<T, Failure>) + Send,
{
    fn act(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let act = self.act.take().expect("a task runs once");
        self.value = Some(act(connection)?);
        Ok(())
    }

    fn settle(mut self: Box<Self>, outcome: Result<(), Failure>) {
        let settle = self.settle.take().expect("a task settles once");
        settle(outcome.map(|()| {
            self.value
                .take()
                .expect("a task that went well has its value")
        }));
    }
}

/// Runs a group in one transaction and tells each task its fate. Returns why the disk did not take
/// it.
pub(super) fn settle(
    connection: &Connection,
    mut group: Vec<Box<dyn Work>>,
    begin: &str,
    file: &Arc<str>,
) -> Option<Failure> {
    let failure = |error: rusqlite::Error| Failure {
        file: file.clone(),
        text: describe(&error).into(),
        closed: false,
    };
    match together(connection, &mut group, begin) {
        Ok(outcomes) => {
            let errors = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
            let trouble = errors
                .filter(|error| is_of_the_disk(error))
                .map(|error| describe(error).into())
                .next_back();
            for (task, outcome) in group.into_iter().zip(outcomes) {
                task.settle(outcome.map_err(failure));
            }
            trouble.map(|text| Failure {
                file: file.clone(),
                text,
                closed: false,
            })
        }
        Err(error) => {
            let failure = failure(error);
            if !connection.is_autocommit() {
                let _ = run(connection, "ROLLBACK");
            }
            group
                .into_iter()
                .for_each(|task| task.settle(Err(failure.clone())));
            Some(failure)
        }
    }
}

/// Whether the error says that the disk takes or gives no data, and not that the request is wrong.
fn is_of_the_disk(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode;
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::ReadOnly
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
        )
    )
}

/// Runs a group in one transaction. `Ok` tells the fate of each; `Err` says that nothing of the
/// group remains.
fn together(
    connection: &Connection,
    group: &mut [Box<dyn Work>],
    begin: &str,
) -> rusqlite::Result<Vec<rusqlite::Result<()>>> {
    run(connection, begin)?;
    if let [only] = group {
        return Ok(vec![whole(connection, only.as_mut())?]);
    }
    let outcomes = group
        .iter_mut()
        .map(|task| alone(connection, task.as_mut()))
        .collect::<rusqlite::Result<_>>()?;
    run(connection, "COMMIT")?;
    Ok(outcomes)
}

/// Runs the only task of a transaction and ends that.
fn whole(connection: &Connection, task: &mut dyn Work) -> rusqlite::Result<rusqlite::Result<()>> {
    match task.act(connection) {
        Ok(()) => run(connection, "COMMIT").map(Ok),
        // A full disk, for one, has ended the transaction.
        Err(error) if connection.is_autocommit() => Err(error),
        Err(error) => run(connection, "ROLLBACK").map(|()| Err(error)),
    }
}

/// Runs one task so that its failure takes back nothing but itself.
fn alone(connection: &Connection, task: &mut dyn Work) -> rusqlite::Result<rusqlite::Result<()>> {
    run(connection, "SAVEPOINT task")?;
    let outcome = task.act(connection);
    if let Err(error) = outcome {
        // A full disk, for one, ends the whole transaction.
        if connection.is_autocommit() {
            return Err(error);
        }
        run(connection, "ROLLBACK TO task")?;
        run(connection, "RELEASE task")?;
        return Ok(Err(error));
    }
    run(connection, "RELEASE task")?;
    Ok(outcome)
}

fn run(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

/// What SQLite says, with the way out where there is one.
pub(super) fn describe(error: &rusqlite::Error) -> String {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk is full (free some space)".into(),
        Some(ErrorCode::ReadOnly) => {
            "it is not writable (see the mode of the file and of its disk)".into()
        }
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            format!("it is damaged: {error} (start again to have it checked)")
        }
        Some(ErrorCode::DatabaseBusy) => "another process keeps it locked".into(),
        _ => error.to_string(),
    }
}
