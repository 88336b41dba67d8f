//! The command lines of a script or a buildspec: words with their variables filled in, loops over
//! words unrolled. Nothing is executed.

mod pipeline;
mod split;

use std::collections::BTreeMap;

use super::kind;
use super::tree::{Map, Wrong};
use crate::config::yaml::Node;
use split::{Joint, Part, Piece};

/// Most commands, loops unrolled.
const MOST_COMMANDS: usize = 20_000;

/// Most words and bytes of words, loops unrolled.
const MOST_WORK: usize = 8 * 1024 * 1024;

/// The longest value of a word.
const LONGEST_WORD: usize = 4096;

/// Most loops within each other.
const DEEPEST_LOOP: usize = 16;

/// A word of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Known(String),
    /// What its value depends on: a variable, or the output of a command.
    Unknown(String),
    /// `NAME=…`: the name is known, the value is not.
    Assignment {
        name: String,
        unknown: String,
    },
}

impl Word {
    pub(super) fn known(&self) -> Option<&str> {
        match self {
            Word::Known(text) => Some(text),
            Word::Unknown(_) | Word::Assignment { .. } => None,
        }
    }

    /// The name, perhaps with a plus behind it, and the value.
    fn assignment(&self) -> Option<(&str, Word)> {
        match self {
            Word::Known(text) => {
                let (name, value) = split::assignment(text)?;
                Some((name, Word::Known(value.to_owned())))
            }
            Word::Unknown(_) => None,
            Word::Assignment { name, unknown } => Some((name, Word::Unknown(unknown.clone()))),
        }
    }

    fn length(&self) -> usize {
        match self {
            Word::Known(text) | Word::Unknown(text) => text.len(),
            Word::Assignment { name, unknown } => name.len() + unknown.len(),
        }
    }

    pub(super) fn is(&self, text: &str) -> bool {
        self.known() == Some(text)
    }
}

/// A command with the line on which it stands.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub(super) line: u64,
    pub(super) words: Vec<Word>,
    /// Whether it may never run: behind a condition, or in a function.
    pub(super) is_conditional: bool,
}

/// All commands of a buildspec, of a workflow, or of lines of a shell.
pub(super) fn commands(text: &str, document: Option<&Node>) -> Result<Vec<Command>, Wrong> {
    let mut shell = Shell::default();
    let root = document.and_then(|node| Map::of(node, "the file").ok());
    let pipeline = root.filter(|root| root.has("phases") || root.has("jobs"));
    match (&pipeline, document) {
        (Some(root), Some(node)) => shell.pipeline(root, node)?,
        _ => shell.parts = split::parts(text, 1),
    }
    let parts = std::mem::take(&mut shell.parts);
    shell.run(&parts)?;
    Ok(shell.commands)
}

/// A part of the grammar that is begun: the word that ends it, and whether its commands may not run.
struct Open {
    end: &'static str,
    is_conditional: bool,
}

#[derive(Default)]
struct Shell {
    variables: BTreeMap<String, Word>,
    parts: Vec<Part>,
    commands: Vec<Command>,
    open: Vec<Open>,
    /// `NAME()` stands before a `{`.
    is_function: bool,
    /// A command before in the same list may fail in the ordinary course.
    may_fail: bool,
    /// Another file set variables.
    has_sourced: bool,
    loops: usize,
    work: usize,
}

impl Shell {
    /// Counts what loops multiply.
    fn charge(&mut self, cost: usize) -> Result<(), Wrong> {
        self.work = self.work.saturating_add(cost).saturating_add(1);
        match self.work > MOST_WORK {
            true => Err(Wrong::whole(
                "comes to more than 8 MiB of commands, loops counted each time",
            )),
            false => Ok(()),
        }
    }

    /// Fills variables in, in the order of the commands.
    fn run(&mut self, parts: &[Part]) -> Result<(), Wrong> {
        let mut at = 0;
        while let Some(part) = parts.get(at) {
            at += 1;
            if self.assigned(part)? {
                continue;
            }
            let mut words = self.words(&part.words)?;
            words.drain(..self.lead_in(&words));
            if words.first().is_some_and(|word| word.is("for")) {
                let body = &parts[at..];
                let length = length_of_loop(body);
                self.charge(length)?;
                self.repeat(&words, &body[..length])?;
                // Its `done`.
                at += length + 1;
                continue;
            }
            let is_conditional = self.is_conditional(part.joint);
            self.declare(&mut words, is_conditional)?;
            self.go_on(part.joint, &words);
            if self.commands.len() >= MOST_COMMANDS {
                return Err(Wrong::whole(format!(
                    "has more than {MOST_COMMANDS} commands, loops counted each time"
                )));
            }
            if !words.is_empty() {
                self.commands.push(Command {
                    line: part.line,
                    words,
                    is_conditional,
                });
            }
        }
        Ok(())
    }

    /// Whether a command behind this joint may not run.
    fn is_conditional(&self, joint: Joint) -> bool {
        let is_behind_another = match joint {
            Joint::Next => false,
            Joint::And | Joint::Pipe => self.may_fail,
            Joint::Or => true,
        };
        is_behind_another || self.open.iter().any(|open| open.is_conditional)
    }

    /// What the command means to those behind it.
    fn go_on(&mut self, joint: Joint, words: &[Word]) {
        const SURE: [&str; 11] = [
            "aws", "cd", "echo", "set", "printf", "mkdir", "true", ":", "sleep", "date", "cat",
        ];
        let mut sure = SURE.iter().chain(&kind::ENGINES).chain(&kind::COPIERS);
        let is_sure = words
            .first()
            .is_none_or(|word| sure.any(|program| word.is(program)));
        self.may_fail = match joint {
            Joint::Next => !is_sure,
            Joint::And | Joint::Pipe => self.may_fail || !is_sure,
            Joint::Or => true,
        };
    }

    /// How many words stand before the command; what they begin and end is kept.
    fn lead_in(&mut self, words: &[Word]) -> usize {
        let mut at = 0;
        while let Some(word) = words.get(at).and_then(Word::known) {
            let is_in_case = self.open.last().is_some_and(|open| open.end == "esac");
            at += 1;
            match word {
                "if" => self.begin("fi", true),
                "while" | "until" | "select" => self.begin("done", true),
                "case" => {
                    self.begin("esac", true);
                    let end = words[at..].iter().position(ends_pattern);
                    at = end.map_or(words.len(), |end| at + end + 1);
                }
                "{" => {
                    let is_function = std::mem::take(&mut self.is_function);
                    self.begin("}", is_function);
                }
                "fi" | "done" | "esac" | "}" => self.end(word),
                "function" => {
                    self.is_function = true;
                    at += 1;
                }
                "do" | "then" | "else" | "elif" | "!" | "(" | "sudo" | "time" | "exec" => {}
                name if name.ends_with("()") => self.is_function = true,
                pattern if is_in_case && pattern.ends_with(')') => {}
                _ => return at - 1,
            }
        }
        at.min(words.len())
    }

    fn begin(&mut self, end: &'static str, is_conditional: bool) {
        self.open.push(Open {
            end,
            is_conditional,
        });
    }

    fn end(&mut self, word: &str) {
        if self.open.last().is_some_and(|open| open.end == word) {
            self.open.pop();
        }
    }

    /// `for NAME in WORDS`: the body for each word.
    fn repeat(&mut self, head: &[Word], body: &[Part]) -> Result<(), Wrong> {
        if self.loops >= DEEPEST_LOOP {
            return Err(Wrong::whole(format!(
                "has more than {DEEPEST_LOOP} loops within each other"
            )));
        }
        self.loops += 1;
        let name = head
            .get(1)
            .and_then(Word::known)
            .unwrap_or_default()
            .to_owned();
        for value in head.iter().skip(3) {
            let values = match value {
                Word::Known(text) => text
                    .split_whitespace()
                    .map(|word| Word::Known(word.to_owned()))
                    .collect(),
                unknown => vec![unknown.clone()],
            };
            // How often the body runs for what is not known is not known either.
            self.begin("", value.known().is_none());
            for value in values {
                self.charge(name.len())?;
                self.variables.insert(name.clone(), value);
                self.run(body)?;
            }
            self.end("");
        }
        if self.is_conditional(Joint::Next) {
            self.forget(&name);
        }
        self.loops -= 1;
        Ok(())
    }

    /// From here on nothing is known of a variable.
    fn forget(&mut self, name: &str) {
        let unknown = Word::Unknown(format!("${name}, which is not set in one way"));
        self.variables.insert(name.to_owned(), unknown);
    }

    /// A command of nothing but assignments: each sees those before it.
    fn assigned(&mut self, part: &Part) -> Result<bool, Wrong> {
        if !part.words.iter().all(|word| is_assignment(word)) {
            return Ok(false);
        }
        let is_conditional = self.is_conditional(part.joint) || part.joint == Joint::Pipe;
        for pieces in &part.words {
            let word = self.word(pieces);
            self.charge(pieces.len() + word.length())?;
            self.assign(&word, is_conditional);
        }
        self.go_on(part.joint, &[]);
        Ok(true)
    }

    /// `NAME=VALUE` and `NAME+=VALUE`; another word sets nothing.
    fn assign(&mut self, word: &Word, is_conditional: bool) {
        let Some((name, value)) = word.assignment() else {
            return;
        };
        let plain = name.trim_end_matches('+');
        let is_list = value.known().is_some_and(|value| value.starts_with('('));
        if is_conditional || plain != name || is_list {
            self.forget(plain);
        } else {
            self.variables.insert(plain.to_owned(), value);
        }
    }

    /// Commands that set variables. Assignments in front of another command are its own alone.
    fn declare(&mut self, words: &mut Vec<Word>, is_conditional: bool) -> Result<(), Wrong> {
        let first = words
            .first()
            .and_then(Word::known)
            .unwrap_or_default()
            .to_owned();
        match first.as_str() {
            "export" | "declare" | "local" | "readonly" | "typeset" => {
                for word in &words[1..] {
                    self.assign(word, is_conditional);
                }
                words.clear();
            }
            "read" | "unset" | "mapfile" | "readarray" | "getopts" => {
                for name in words[1..].iter().filter_map(Word::known) {
                    self.forget(name);
                }
            }
            "." | "source" | "eval" => {
                self.charge(self.variables.len())?;
                self.has_sourced = true;
                let names: Vec<String> = self.variables.keys().cloned().collect();
                names.iter().for_each(|name| self.forget(name));
            }
            _ => {
                let command = words.iter().position(|word| word.assignment().is_none());
                let own = command.unwrap_or(words.len());
                let is_all = own == words.len();
                for word in words.drain(..own) {
                    let is_list = word.known().is_some_and(|text| text.contains("=("));
                    if is_all || is_list {
                        self.assign(&word, is_conditional);
                    }
                }
            }
        }
        Ok(())
    }

    fn words(&mut self, words: &[Vec<Piece>]) -> Result<Vec<Word>, Wrong> {
        let mut filled = Vec::new();
        for pieces in words {
            let word = self.word(pieces);
            self.charge(pieces.len() + word.length())?;
            filled.push(word);
        }
        Ok(filled)
    }

    fn word(&self, pieces: &[Piece]) -> Word {
        let mut text = String::new();
        let mut unknown = None;
        for piece in pieces {
            if text.len() > LONGEST_WORD {
                unknown = Some("a value of more than 4096 bytes".to_owned());
                break;
            }
            match piece {
                Piece::Text(known) => text.push_str(known),
                Piece::Command => {
                    unknown.get_or_insert_with(|| {
                        "the output of a command or an expression".to_owned()
                    });
                }
                Piece::Variable { name, default } => match (self.variables.get(name), default) {
                    (Some(Word::Known(value)), _) => text.push_str(value),
                    (Some(Word::Unknown(what) | Word::Assignment { unknown: what, .. }), _) => {
                        unknown.get_or_insert_with(|| what.clone());
                    }
                    (None, Some(default)) if !self.has_sourced => text.push_str(default),
                    (None, _) => {
                        unknown.get_or_insert_with(|| format!("${name}"));
                    }
                },
            }
        }
        match (unknown, split::assignment(&text)) {
            (None, _) => Word::Known(text),
            (Some(unknown), Some((name, _))) => Word::Assignment {
                name: name.to_owned(),
                unknown,
            },
            (Some(what), None) => Word::Unknown(what),
        }
    }
}

fn is_assignment(word: &[Piece]) -> bool {
    match word.first() {
        Some(Piece::Text(text)) => split::assignment(text).is_some(),
        _ => false,
    }
}

/// Whether a pattern of `case` ends with this word.
fn ends_pattern(word: &Word) -> bool {
    word.known().is_some_and(|text| text.ends_with(')'))
}

/// How many parts a loop's body has, up to its `done`.
fn length_of_loop(parts: &[Part]) -> usize {
    let mut depth = 0;
    for (position, part) in parts.iter().enumerate() {
        let first = part.words.iter().find_map(|pieces| match &pieces[..] {
            [Piece::Text(text)] if text != "do" => Some(text.as_str()),
            _ => None,
        });
        match first {
            Some("for" | "while" | "until" | "select") => depth += 1,
            Some("done") if depth == 0 => return position,
            Some("done") => depth -= 1,
            _ => {}
        }
    }
    parts.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::tree;

    fn of_text(text: &str) -> Result<Vec<Command>, Wrong> {
        commands(text, tree::parse(text).ok().as_ref())
    }

    fn shown(text: &str) -> Vec<String> {
        let commands = of_text(text).unwrap();
        let word = |word: &Word| match word {
            Word::Known(text) => text.clone(),
            Word::Unknown(what) | Word::Assignment { unknown: what, .. } => format!("<{what}>"),
        };
        let line = |command: &Command| {
            let words: Vec<String> = command.words.iter().map(word).collect();
            format!("{}: {}", command.line, words.join(" "))
        };
        commands.iter().map(line).collect()
    }

    #[test]
    fn variables_quotes_and_lines_are_those_of_a_shell() {
        let script = "#!/bin/sh\nREG=quay.io\nexport A='x y' B=\"$REG/app\"\ndocker pull \"$B:${TAG:-v1}\" # no\n\
                      docker tag $B:v1 \\\n  prod/$NAME && docker push `date`\nV=$(git describe)\ndocker push a:$V\n";
        assert_eq!(
            shown(script),
            [
                "4: docker pull quay.io/app:v1",
                "5: docker tag quay.io/app:v1 <$NAME>",
                "5: docker push <the output of a command or an expression>",
                "8: docker push <the output of a command or an expression>",
            ]
        );
    }

    #[test]
    fn loops_over_words_are_unrolled() {
        let script = "for i in a b; do docker pull r.x/$i; for t in 1 2; do docker push r.x/$i:$t; done; done\necho end";
        assert_eq!(shown(script).len(), 7, "{:?}", shown(script));
        assert_eq!(shown(script)[0], "1: docker pull r.x/a");
        assert_eq!(shown(script)[5], "1: docker push r.x/b:2");
    }

    #[test]
    fn variables_that_are_not_set_in_one_way_are_not_known() {
        let table = [
            "T=v1; T+=-rc1",
            "if x; then T=v9; else T=dev; fi",
            "T=v1; [ -n \"$X\" ] && T=stage",
            "T=v1; x || T=y",
            "T=v1; read T",
            "T=v1; . ./env.sh",
            "T=v1; f() { T=func; }",
            "T=v1; case $X in a) T=b ;; esac",
            "T=v1; while read T; do :; done < list",
            "for T in $LIST; do :; done",
            "T=(a b)",
            "T=v1 make",
        ];
        for script in table {
            let shown = shown(&format!("{script}\ndocker push r.x/a:$T"));
            let last = shown.last().unwrap();
            assert!(last.contains("docker push <$"), "{script}: {last}");
        }
        let known = shown("A=1 B=$A; declare -r C=$B; readonly D=$C\ndocker push a:$D");
        assert_eq!(known, ["2: docker push a:1"]);
        let sourced = shown(". ./x\ndocker push a:${T:-v1}");
        assert_eq!(sourced[1], "2: docker push <$T>");
    }

    #[test]
    fn what_may_not_run_is_told() {
        let table = [
            ("if x; then docker push a; fi", true),
            ("if x; then :; fi; docker push a", false),
            ("x || docker push a", true),
            ("false && docker push a", true),
            ("false &&\ndocker push a", true),
            ("cd x 2>&1 && docker push a", false),
            ("docker pull a && docker push a", false),
            ("f() { docker push a; }", true),
            ("f()\n{\ndocker push a\n}", true),
            ("f() { x; }; docker push a", false),
            ("case $X in p) docker push a ;; esac", true),
            (
                "for i in 1; do while x; do y; done; docker push a; done",
                false,
            ),
        ];
        for (script, expected) in table {
            let commands = of_text(script).unwrap();
            let push = commands
                .iter()
                .find(|command| command.words[0].is("docker"));
            let last = commands
                .iter()
                .rfind(|command| command.words[0].is("docker"));
            assert!(push.is_some(), "{script}");
            assert_eq!(last.unwrap().is_conditional, expected, "{script}");
        }
    }

    #[test]
    fn text_for_another_program_is_no_command() {
        for begin in [
            "cat <<EOF",
            "cat << EOF",
            "cat <<-'EOF' > x",
            "ssh h <<\"EOF\"",
        ] {
            let script = format!("{begin}\n docker push a\nEOF\ndocker push b");
            let shown = shown(&script);
            assert_eq!(shown[1..], ["1: <<", "4: docker push b"], "{begin}");
        }
    }

    #[test]
    fn no_script_takes_more_than_its_length() {
        let doubled = format!("A=xxxxxxxxxxxxxxxx\n{}", "A=$A$A\n".repeat(1000));
        let shown = shown(&format!("{doubled}docker push $A"));
        assert_eq!(
            shown,
            ["1002: docker push <a value of more than 4096 bytes>"]
        );
        let words = "x ".repeat(300);
        let bombs = [
            "for a in x; do ".repeat(20_000),
            format!(
                "for a in {words}; do for b in {words}; do for c in {words}; do A=$a; done; done; done"
            ),
            format!(
                "for a in {words}; do for b in {words}; do for c in {words}; do done; done; done"
            ),
            format!("for a in {words}; do for b in {words}; do echo {words}; done; done"),
        ];
        for bomb in bombs {
            assert!(of_text(&bomb).is_err());
        }
        let long = format!("{} docker push a", "do ".repeat(200_000));
        assert_eq!(of_text(&long).unwrap().len(), 1);
    }

    #[test]
    fn loops_in_loops_have_a_bound() {
        let words = "x ".repeat(200);
        let bomb = format!(
            "for a in {words}; do for b in {words}; do for c in {words}; do docker push $a; done; done; done"
        );
        assert!(of_text(&bomb).is_err());
    }
}
