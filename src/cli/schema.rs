//! `schema`: the JSON schema of the config file.

use super::Lines;
use crate::config;

pub(super) fn run(lines: &mut Lines) -> u8 {
    lines.json(&config::schema());
    0
}
