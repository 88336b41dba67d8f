//! `run`: the daemon.

use super::{Arguments, Failure, environment};
use crate::config::Config;
use crate::daemon;
use tokio_util::sync::CancellationToken;

pub(super) async fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let path = arguments.config.clone();
    let load = move || Config::load(&path, &environment);
    daemon::run(load, None, CancellationToken::new()).await.map_err(|error| Failure::new(error.exit_code(), error))?;
    Ok(0)
}
