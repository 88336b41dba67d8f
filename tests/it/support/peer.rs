//! Programs of other projects, installed by `benches/peers`.

use std::path::Path;

use tokio::process::Command;

use super::registry::installed;

/// Runs one in a folder of its own, where it may keep what it remembers. `how` installs it.
pub async fn run(folder: &Path, program: &str, how: &str, arguments: &[&str]) {
    let how = format!("{how} (installs it into target/tools/bin)");
    let output = Command::new(installed(&[program], &how))
        .args(arguments)
        .env_clear()
        .env("HOME", folder)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .current_dir(folder)
        .output()
        .await
        .expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}
