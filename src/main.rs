//! The program: arguments, runtime, exit code. Everything else is in the library.

// The futures of commands nest deeper than the usual limit of the compiler.
#![recursion_limit = "256"]

use std::process::ExitCode;
use std::time::Duration;

use blobferry::{cli, telemetry};
use tracing::Level;

/// How long a stderr that is not read may hold up the end.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How long work on blocking threads may take to end after the command has ended.
const LINGER: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let code = match cli::parse(std::env::args_os()) {
        Ok(arguments) => run(arguments),
        Err(code) => code,
    };
    telemetry::flush(LAST_LINES);
    ExitCode::from(code)
}

fn run(arguments: cli::Arguments) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, format_args!("the runtime does not start: {error}")),
    };
    let code = match runtime.block_on(cli::run(arguments)) {
        Ok(code) => code,
        Err(failure) => fail(failure.code, format_args!("{failure}")),
    };
    runtime.shutdown_timeout(LINGER);
    code
}

fn fail(code: u8, text: std::fmt::Arguments<'_>) -> u8 {
    telemetry::say(Level::ERROR, &format!("blobferry: {text}"));
    code
}
