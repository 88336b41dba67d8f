//! `man`: the manual pages.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, CommandFactory};
use clap_mangen::Man as Page;

use super::lines::Lines;
use super::{Arguments, Failure};

/// Print the manual page, or write those of all commands
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry man | man -l -                   read it
  blobferry man --to /usr/share/man/man1     a page for each command")]
pub(super) struct Man {
    /// Write blobferry.1 and a page for each command into this folder
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(&self, lines: &mut Lines) -> Result<u8, Failure> {
        let written = match &self.to {
            None => print(lines),
            Some(folder) => write(folder),
        };
        written.map_err(|error| Failure::new(1, error))?;
        Ok(0)
    }
}

fn print(lines: &mut Lines) -> anyhow::Result<()> {
    let mut page = Vec::new();
    Page::new(command()).render(&mut page)?;
    lines.write(&page);
    Ok(())
}

fn write(folder: &Path) -> anyhow::Result<()> {
    let cannot_write = || format!("the manual pages cannot be written to {}", folder.display());
    std::fs::create_dir_all(folder).with_context(cannot_write)?;
    clap_mangen::generate_to(command(), folder).with_context(cannot_write)
}

fn command() -> clap::Command {
    Arguments::command()
}
