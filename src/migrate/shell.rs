//! The command lines of a script or a buildspec: words with their variables filled in, loops over
//! words unrolled. Nothing is executed.

use std::collections::BTreeMap;

use super::tree::{self, Map, Wrong};
use crate::config::yaml::{Node, Value};

/// Most commands, loops unrolled.
const MOST_COMMANDS: usize = 20_000;

/// A word of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Known(String),
    /// What its value depends on: a variable, or the output of a command.
    Unknown(String),
}

impl Word {
    pub(super) fn known(&self) -> Option<&str> {
        match self {
            Word::Known(text) => Some(text),
            Word::Unknown(_) => None,
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
}

/// All commands of a buildspec, or of lines of a shell.
pub(super) fn commands(text: &str) -> Result<Vec<Command>, Wrong> {
    let mut shell = Shell::default();
    match buildspec(text) {
        Some(root) => {
            let root = Map::of(&root, "the file")?;
            if let Some(env) = root.map("env")?
                && let Some(variables) = env.map("variables")?
            {
                for (name, node) in variables.entries() {
                    let value = tree::text(node, name)?;
                    let value = Word::Known(value.to_owned());
                    shell.variables.insert(name.to_owned(), value);
                }
            }
            if let Some(phases) = root.map("phases")? {
                for (name, node) in phases.entries() {
                    let phase = Map::of(node, name)?;
                    for key in ["commands", "finally"] {
                        shell.read_nodes(&phase.list(key));
                    }
                }
            }
        }
        None => shell.read(text, 1),
    }
    let parts = std::mem::take(&mut shell.parts);
    shell.run(&parts)?;
    Ok(shell.commands)
}

fn buildspec(text: &str) -> Option<Node> {
    let root = tree::parse(text).ok()?;
    let is_buildspec = Map::of(&root, "the file").is_ok_and(|map| map.has("phases"));
    is_buildspec.then_some(root)
}

/// A word before its variables are filled in.
#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Variable {
        name: String,
        default: Option<String>,
    },
    Command,
}

#[derive(Clone, Debug)]
struct Part {
    line: u64,
    words: Vec<Vec<Piece>>,
}

#[derive(Default)]
struct Shell {
    variables: BTreeMap<String, Word>,
    parts: Vec<Part>,
    commands: Vec<Command>,
}

impl Shell {
    fn read_nodes(&mut self, nodes: &[&Node]) {
        for node in nodes {
            if let Value::Text(text) = &node.value {
                self.read(text, node.at.line);
            }
        }
    }

    /// Splits lines into commands.
    fn read(&mut self, text: &str, first: u64) {
        let mut pending = String::new();
        let mut start = first;
        for (number, line) in text.lines().enumerate() {
            let here = first.saturating_add(number as u64);
            if pending.is_empty() {
                start = here;
            }
            let line = line.trim();
            let line = line.strip_prefix("- ").unwrap_or(line);
            let line = line.strip_prefix("run: ").unwrap_or(line);
            match line.strip_suffix('\\') {
                Some(begun) => pending.push_str(&format!("{begun} ")),
                None => {
                    pending.push_str(line);
                    self.parts
                        .extend(split(&std::mem::take(&mut pending), start));
                }
            }
        }
        self.parts.extend(split(&pending, start));
    }

    /// Fills variables in, in the order of the commands.
    fn run(&mut self, parts: &[Part]) -> Result<(), Wrong> {
        let mut at = 0;
        while let Some(part) = parts.get(at) {
            at += 1;
            let mut words = self.words(&part.words);
            while words.first().is_some_and(is_lead_in) {
                words.remove(0);
            }
            if words.first().is_some_and(|word| word.is("for")) {
                let body = &parts[at..];
                let length = length_of_loop(body);
                self.repeat(&words, &body[..length])?;
                at += length;
                continue;
            }
            self.assign(&mut words);
            if self.commands.len() >= MOST_COMMANDS {
                return Err(Wrong::whole(format!(
                    "has more than {MOST_COMMANDS} commands, loops counted each time"
                )));
            }
            if !words.is_empty() {
                let line = part.line;
                self.commands.push(Command { line, words });
            }
        }
        Ok(())
    }

    /// `for NAME in WORDS`: the body for each word.
    fn repeat(&mut self, head: &[Word], body: &[Part]) -> Result<(), Wrong> {
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
            for value in values {
                self.variables.insert(name.clone(), value);
                self.run(body)?;
            }
        }
        Ok(())
    }

    /// `NAME=VALUE` in front of a command, alone, or behind `export`.
    fn assign(&mut self, words: &mut Vec<Word>) {
        if words
            .first()
            .is_some_and(|word| word.is("export") || word.is("declare") || word.is("local"))
        {
            words.remove(0);
        }
        while let Some(first) = words.first() {
            let (text, value) = match first {
                Word::Known(text) => (text.clone(), None),
                Word::Unknown(text) => match text.split_once('\u{0}') {
                    Some((assigned, what)) => {
                        (assigned.to_owned(), Some(Word::Unknown(what.to_owned())))
                    }
                    None => return,
                },
            };
            let Some((name, known)) = text.split_once('=').filter(|(name, _)| is_name(name)) else {
                return;
            };
            let value = value.unwrap_or_else(|| Word::Known(known.to_owned()));
            self.variables.insert(name.to_owned(), value);
            words.remove(0);
        }
    }

    fn words(&self, words: &[Vec<Piece>]) -> Vec<Word> {
        words.iter().map(|pieces| self.word(pieces)).collect()
    }

    fn word(&self, pieces: &[Piece]) -> Word {
        let mut text = String::new();
        let mut unknown = None;
        for piece in pieces {
            match piece {
                Piece::Text(known) => text.push_str(known),
                Piece::Command => {
                    unknown.get_or_insert_with(|| {
                        "the output of a command or an expression".to_owned()
                    });
                }
                Piece::Variable { name, default } => match (self.variables.get(name), default) {
                    (Some(Word::Known(value)), _) => text.push_str(value),
                    (Some(Word::Unknown(what)), _) => {
                        unknown.get_or_insert_with(|| what.clone());
                    }
                    (None, Some(default)) => text.push_str(default),
                    (None, None) => {
                        unknown.get_or_insert_with(|| format!("${name}"));
                    }
                },
            }
        }
        match unknown {
            None => Word::Known(text),
            // An assignment keeps its name, so that the variable is known to be unknown.
            Some(what) if is_assignment(&text) => Word::Unknown(format!("{text}\u{0}{what}")),
            Some(what) => Word::Unknown(what),
        }
    }
}

/// Words of the grammar that stand before a command, or alone.
fn is_lead_in(word: &Word) -> bool {
    const LEAD_INS: [&str; 13] = [
        "do", "done", "then", "else", "fi", "if", "while", "!", "{", "(", "sudo", "time", "exec",
    ];
    word.known().is_some_and(|text| LEAD_INS.contains(&text))
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
            Some("for") => depth += 1,
            Some("done") if depth == 0 => return position,
            Some("done") => depth -= 1,
            _ => {}
        }
    }
    parts.len()
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn is_assignment(text: &str) -> bool {
    text.split_once('=').is_some_and(|(name, _)| is_name(name))
}

/// Splits a line at `&&`, `||`, `|`, `;`, and into words.
fn split(line: &str, number: u64) -> Vec<Part> {
    let mut splitter = Splitter {
        rest: line.chars().collect(),
        at: 0,
        number,
        parts: Vec::new(),
        words: Vec::new(),
        word: None,
    };
    splitter.run();
    splitter.parts
}

struct Splitter {
    rest: Vec<char>,
    at: usize,
    number: u64,
    parts: Vec<Part>,
    words: Vec<Vec<Piece>>,
    word: Option<Vec<Piece>>,
}

impl Splitter {
    fn run(&mut self) {
        while let Some(character) = self.next() {
            match character {
                '\'' => self.quoted(),
                '"' => self.double_quoted(),
                '\\' => {
                    let escaped = self.next().unwrap_or('\\');
                    self.push(escaped);
                }
                '$' => self.dollar(),
                '`' => {
                    self.skip_to('`');
                    self.piece(Piece::Command);
                }
                '#' if self.word.is_none() => break,
                ' ' | '\t' => self.end_word(),
                ';' | '&' | '|' | '\n' => self.end_part(),
                other => self.push(other),
            }
        }
        self.end_part();
    }

    fn next(&mut self) -> Option<char> {
        let character = self.rest.get(self.at).copied()?;
        self.at += 1;
        Some(character)
    }

    fn push(&mut self, character: char) {
        let word = self.word.get_or_insert_default();
        match word.last_mut() {
            Some(Piece::Text(text)) => text.push(character),
            _ => word.push(Piece::Text(character.to_string())),
        }
    }

    fn piece(&mut self, piece: Piece) {
        self.word.get_or_insert_default().push(piece);
    }

    fn quoted(&mut self) {
        self.word.get_or_insert_default();
        while let Some(character) = self.next().filter(|character| *character != '\'') {
            self.push(character);
        }
    }

    fn double_quoted(&mut self) {
        self.word.get_or_insert_default();
        while let Some(character) = self.next().filter(|character| *character != '"') {
            match character {
                '$' => self.dollar(),
                '`' => {
                    self.skip_to('`');
                    self.piece(Piece::Command);
                }
                '\\' => {
                    let escaped = self.next().unwrap_or('\\');
                    self.push(escaped);
                }
                other => self.push(other),
            }
        }
    }

    fn skip_to(&mut self, end: char) {
        while self.next().is_some_and(|character| character != end) {}
    }

    /// `$NAME`, `${NAME}`, `${NAME:-default}`, `$(command)`.
    fn dollar(&mut self) {
        match self.rest.get(self.at) {
            Some('(') => {
                self.skip_group();
                self.piece(Piece::Command);
            }
            Some('{') => {
                self.at += 1;
                let start = self.at;
                self.skip_to('}');
                let end = self.at.saturating_sub(1).max(start);
                let body: String = self.rest[start..end].iter().collect();
                self.piece(braced(&body));
            }
            Some(first) if first.is_ascii_alphabetic() || *first == '_' => {
                let mut name = String::new();
                while let Some(character) = self.rest.get(self.at) {
                    if !character.is_ascii_alphanumeric() && *character != '_' {
                        break;
                    }
                    name.push(*character);
                    self.at += 1;
                }
                self.piece(Piece::Variable {
                    name,
                    default: None,
                });
            }
            _ => self.push('$'),
        }
    }

    fn skip_group(&mut self) {
        let mut depth = 0;
        while let Some(character) = self.next() {
            match character {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return;
            }
        }
    }

    fn end_word(&mut self) {
        self.words.extend(self.word.take());
    }

    fn end_part(&mut self) {
        self.end_word();
        let words = std::mem::take(&mut self.words);
        if !words.is_empty() {
            let line = self.number;
            self.parts.push(Part { line, words });
        }
    }
}

fn braced(body: &str) -> Piece {
    let end = body
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(body.len());
    let (name, operator) = body.split_at(end);
    if !is_name(name) {
        return Piece::Command;
    }
    match (
        operator,
        operator.strip_prefix(":-").or(operator.strip_prefix('-')),
    ) {
        ("", _) => Piece::Variable {
            name: name.to_owned(),
            default: None,
        },
        (_, Some(default)) if !default.contains('$') => Piece::Variable {
            name: name.to_owned(),
            default: Some(default.to_owned()),
        },
        _ => Piece::Command,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        let commands = commands(text).unwrap();
        let word = |word: &Word| match word {
            Word::Known(text) => text.clone(),
            Word::Unknown(what) => format!("<{what}>"),
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
    fn loops_in_loops_have_a_bound() {
        let words = "x ".repeat(200);
        let bomb = format!(
            "for a in {words}; do for b in {words}; do for c in {words}; do docker push $a; done; done; done"
        );
        assert!(commands(&bomb).is_err());
    }
}
