//! What the bench says: on stdout and, where that is asked for, in a file of markdown.

use std::path::PathBuf;

use crate::machine;
use crate::registry::Program;
use crate::scratch::Scratch;
use crate::tools::Tool;

/// A report that grows. The file is complete after each addition, so that a bench that is cut short
/// loses nothing.
pub struct Report {
    file: Option<PathBuf>,
    text: String,
}

impl Report {
    /// An empty one.
    pub fn new(file: Option<PathBuf>) -> Report {
        Report {
            file,
            text: String::new(),
        }
    }

    /// Adds a paragraph.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn say(&mut self, paragraph: &str) -> Result<(), String> {
        println!("{paragraph}\n");
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(paragraph.trim_end());
        self.text.push('\n');
        let Some(file) = &self.file else {
            return Ok(());
        };
        std::fs::write(file, &self.text)
            .map_err(|error| format!("cannot write {}: {error}", file.display()))
    }
}

/// Date, machine, versions and how it was measured.
pub fn heading(
    tools: &[Tool],
    program: &Program,
    scratch: &Scratch,
    runs: usize,
    quick: bool,
) -> String {
    let date = blobferry::clock::now().strftime("%-d %B %Y").to_string();
    let tools: Vec<String> = tools
        .iter()
        .map(|tool| format!("{} {}", tool.name, tool.version()))
        .collect();
    let rustc = machine::version("rustc".as_ref(), "--version");
    let own = crate::scratch::Place::at(std::env::temp_dir());
    let sizes = if quick {
        "Small sizes, to see that everything works: their figures mean little. "
    } else {
        ""
    };
    format!(
        "# {date}\n\n{}; load average {} at the start. Registries: {} {} on all sides, on the same machine, their files on {}; the tools' own files on {own}. \
         Tools: {}; Rust {rustc}. The peers do 8 things at once where they have a knob for it.\n\n\
         {sizes}{runs} {} of each tool, in turn; every tag's digest is compared after each pass. Times are medians (least–most), memory is the highest peak.",
        machine::description(),
        machine::load(),
        program.name,
        program.version(),
        scratch.preferred(),
        tools.join(", "),
        if runs == 1 { "run" } else { "runs" },
    )
}
