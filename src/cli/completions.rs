//! `completions`: scripts for shells, and what they ask for.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::candidates::candidates;
use super::{Arguments, Lines};

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry completions bash > /usr/share/bash-completion/completions/blobferry
  blobferry completions zsh > ~/.zfunc/_blobferry

Those of bash, fish and zsh also complete routes and tags, which they ask the
daemon for, or the ledger where none runs: `--line 'blobferry why prod-demo'`.")]
pub(super) struct Completions {
    /// Which shell
    #[arg(required_unless_present = "line")]
    shell: Option<Shell>,
    /// Print the routes or tags that the last word of this command line can become
    #[arg(long, value_name = "TEXT", conflicts_with = "shell")]
    line: Option<String>,
}

/// bash ends a word at a colon where `COMP_WORDBREAKS` has one: what stands before it stays.
const BASH: &str = r#"
_blobferry_known() {
    local line=${COMP_LINE:0:COMP_POINT} word
    word=${line##*[[:space:]]}
    mapfile -t COMPREPLY < <("$1" completions --line "$line" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 0 ]]; then
        _blobferry "$@"
    elif [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*:}"}"}")
    fi
}
complete -F _blobferry_known -o bashdefault -o default blobferry
"#;

const FISH: &str = "
complete -c blobferry -a '(blobferry completions --line (commandline -cp | string collect) 2>/dev/null)'
";

/// The first lines of the function that zsh calls.
const ZSH: &str = r#"_blobferry() {
    local -a known
    known=(${(f)"$($words[1] completions --line "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)"})
    if (( $#known )); then
        compadd -a known
        return
    fi
"#;

impl Completions {
    pub(super) async fn run(&self, arguments: &Arguments, lines: &mut Lines) -> u8 {
        if let Some(line) = &self.line {
            let found = candidates(line, arguments).await;
            found.iter().for_each(|candidate| lines.line(candidate));
        }
        if let Some(shell) = self.shell {
            lines.write(script(shell).as_bytes());
        }
        0
    }
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "blobferry", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    match shell {
        Shell::Bash => script + BASH,
        Shell::Fish => script + FISH,
        Shell::Zsh => script.replacen("_blobferry() {\n", ZSH, 1),
        _ => script,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_ask_for_what_is_known() {
        for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
            assert!(script(shell).contains(" completions --line "), "{shell}");
        }
        assert!(!script(Shell::PowerShell).contains(" completions --line \""));
    }
}
