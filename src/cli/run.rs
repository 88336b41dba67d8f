//! `run`: the daemon.

use super::{Arguments, Failure, environment};
use crate::config::Config;
use crate::daemon;
use tokio_util::sync::CancellationToken;

pub(super) async fn run(arguments: &Arguments) -> Result<u8, Failure> {
    let path = arguments.config_path();
    let state = arguments.state.clone();
    daemon::run(
        move || {
            let mut config = Config::load(&path, &environment)?;
            config.daemon.state = state.clone().unwrap_or(config.daemon.state);
            Ok(config)
        },
        None,
        CancellationToken::new(),
    )
    .await
    .map_err(|error| Failure::new(error.exit_code(), error))?;
    Ok(0)
}
