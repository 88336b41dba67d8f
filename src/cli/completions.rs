//! `completions`: scripts for shells.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Arguments, Lines};

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry completions bash > /usr/share/bash-completion/completions/blobferry
  blobferry completions zsh > ~/.zfunc/_blobferry")]
pub(super) struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self, lines: &mut Lines) -> u8 {
        let mut script = Vec::new();
        clap_complete::generate(
            self.shell,
            &mut Arguments::command(),
            "blobferry",
            &mut script,
        );
        lines.write(&script);
        0
    }
}
