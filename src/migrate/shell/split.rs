//! Lines as commands, and commands as words before their variables are filled in.

use crate::migrate::kind;

/// A word before its variables are filled in.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    Text(String),
    Variable {
        name: String,
        default: Option<String>,
    },
    Command,
}

#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) line: u64,
    pub(super) joint: Joint,
    pub(super) words: Vec<Vec<Piece>>,
}

/// What stands between a command and the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Joint {
    /// `;`, `&` or a new line.
    #[default]
    Next,
    And,
    Or,
    Pipe,
}

/// Splits lines into commands.
pub(super) fn parts(text: &str, first: u64) -> Vec<Part> {
    let mut all = Vec::new();
    let mut pending = String::new();
    let mut start = first;
    let mut lines = text.lines().zip(first..);
    while let Some((line, here)) = lines.next() {
        if pending.is_empty() {
            start = here;
        }
        let line = line.trim();
        let line = line.strip_prefix("- ").unwrap_or(line);
        let line = line.strip_prefix("run: ").unwrap_or(line);
        if let Some(begun) = line.strip_suffix('\\') {
            pending.push_str(&format!("{begun} "));
            continue;
        }
        pending.push_str(line);
        if !line.starts_with('#') && line.ends_with(['&', '|']) && !line.ends_with(" &") {
            pending.push(' ');
            continue;
        }
        let parts = split(&std::mem::take(&mut pending), start);
        let end = parts.iter().find_map(end_of_text);
        all.extend(parts);
        if let Some(end) = end {
            let held = lines.by_ref().take_while(|(line, _)| line.trim() != end);
            let has_commands = held.fold(false, |has, (line, _)| has | kind::has_commands(line));
            all.extend(has_commands.then(|| text_part(here)));
        }
    }
    all.extend(split(&pending, start));
    all
}

/// The line that ends the text below a command with `<<`.
fn end_of_text(part: &Part) -> Option<String> {
    let mut words = part.words.iter().map(|pieces| match &pieces[..] {
        [Piece::Text(text)] => text.as_str(),
        _ => "",
    });
    let (_, end) = words
        .by_ref()
        .filter(|word| !word.contains("<<<"))
        .find_map(|word| word.split_once("<<"))?;
    let end = match end.trim_start_matches('-') {
        "" => words.next().unwrap_or_default(),
        end => end,
    };
    Some(end.to_owned())
}

/// Stands for a text with commands that goes to another program.
fn text_part(line: u64) -> Part {
    Part {
        line,
        joint: Joint::Next,
        words: vec![vec![Piece::Text("<<".to_owned())]],
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The two sides of `NAME=VALUE` and of `NAME+=VALUE`, the plus with the name.
pub(super) fn assignment(text: &str) -> Option<(&str, &str)> {
    text.split_once('=')
        .filter(|(name, _)| is_name(name.trim_end_matches('+')))
}

/// Splits a line at `&&`, `||`, `|`, `;`, and into words.
fn split(line: &str, number: u64) -> Vec<Part> {
    let mut splitter = Splitter {
        rest: line.chars().collect(),
        at: 0,
        number,
        joint: Joint::Next,
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
    joint: Joint,
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
                '\\' => self.escaped(),
                '$' => self.dollar(),
                '`' => self.backquoted(),
                '#' if self.word.is_none() => break,
                ' ' | '\t' => self.end_word(),
                '&' if self.is_of_redirect() => self.push('&'),
                ';' | '\n' => self.end_part(Joint::Next),
                '&' => self.end_with('&', Joint::Next, Joint::And),
                '|' => self.end_with('|', Joint::Pipe, Joint::Or),
                other => self.push(other),
            }
        }
        self.end_part(Joint::Next);
    }

    /// `2>&1` and `&>file`.
    fn is_of_redirect(&self) -> bool {
        let before = self.at.checked_sub(2).and_then(|at| self.rest.get(at));
        before == Some(&'>') || self.rest.get(self.at) == Some(&'>')
    }

    /// One sign, or two of them, ends the command.
    fn end_with(&mut self, sign: char, one: Joint, two: Joint) {
        let is_double = self.rest.get(self.at) == Some(&sign);
        if is_double {
            self.at += 1;
        }
        self.end_part(if is_double { two } else { one });
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
                '`' => self.backquoted(),
                '\\' => self.escaped(),
                other => self.push(other),
            }
        }
    }

    fn escaped(&mut self) {
        let escaped = self.next().unwrap_or('\\');
        self.push(escaped);
    }

    fn backquoted(&mut self) {
        self.skip_to('`');
        self.piece(Piece::Command);
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

    /// Ends a command; `next` joins the one behind it.
    fn end_part(&mut self, next: Joint) {
        self.end_word();
        let words = std::mem::take(&mut self.words);
        if !words.is_empty() {
            self.parts.push(Part {
                line: self.number,
                joint: self.joint,
                words,
            });
        }
        self.joint = next;
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
