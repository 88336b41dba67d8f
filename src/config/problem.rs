//! What is wrong with a config file: all of it at once, each with its place.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use crate::fault::{clip, without_passwords};

pub use super::yaml::Position;

/// Most problems that are told at once.
const MOST_PROBLEMS: usize = 50;

/// The file cannot be used. Prints one line for each problem, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// At least one.
    pub problems: Vec<Problem>,
    /// How many more there were.
    pub more: usize,
}

impl Error {
    pub(super) fn whole(file: &Arc<str>, text: impl Into<String>) -> Error {
        Error {
            problems: vec![Problem {
                file: file.clone(),
                at: None,
                key: String::new(),
                text: text.into(),
            }],
            more: 0,
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.problems.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

/// One problem. Never holds the content of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named.
    pub file: Arc<str>,
    /// Where; `None` when it is the file as a whole.
    pub at: Option<Position>,
    /// The key: `routes[0].tags.include`; empty for the document.
    pub key: String,
    /// What is wrong, and the way out.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(Position { line, column }) = self.at {
            write!(f, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.text)
    }
}

/// Gathers problems while the file is read.
#[derive(Debug)]
pub(super) struct Problems {
    file: Arc<str>,
    found: RefCell<Vec<Problem>>,
    missing: RefCell<Vec<Problem>>,
    exposed: RefCell<Vec<Problem>>,
}

impl Problems {
    pub(super) fn new(file: Arc<str>) -> Problems {
        Problems {
            file,
            found: RefCell::default(),
            missing: RefCell::default(),
            exposed: RefCell::default(),
        }
    }

    pub(super) fn add(&self, at: Position, key: &str, text: impl Into<String>) {
        let problem = self.problem(at, key, text.into());
        self.found.borrow_mut().push(problem);
    }

    /// Something that the value names is not there. The file is right all the same.
    pub(super) fn add_missing(&self, at: Position, key: &str, text: String) {
        let problem = self.problem(at, key, text);
        self.missing.borrow_mut().push(problem);
    }

    /// A secret that other users can read. The file is right all the same.
    pub(super) fn add_exposed(&self, at: Position, key: &str, text: String) {
        let problem = self.problem(at, key, text);
        self.exposed.borrow_mut().push(problem);
    }

    fn problem(&self, at: Position, key: &str, text: String) -> Problem {
        Problem {
            file: self.file.clone(),
            at: Some(at),
            key: key.to_owned(),
            text: without_passwords(&text),
        }
    }

    /// What the values name and what is not there, in the order of the file.
    pub(super) fn missing(&self) -> Vec<Problem> {
        in_order(self.missing.take())
    }

    /// The secrets that other users can read, in the order of the file.
    pub(super) fn exposed(&self) -> Vec<Problem> {
        in_order(self.exposed.take())
    }

    /// What was found, or `value` when that is nothing.
    pub(super) fn settle<T>(self, value: Option<T>) -> Result<T, Error> {
        let mut problems = self.found.into_inner();
        match value {
            Some(value) if problems.is_empty() => Ok(value),
            _ if problems.is_empty() => Err(Error::whole(&self.file, "it cannot be read")),
            _ => {
                problems.sort_by_key(|problem| problem.at);
                problems.dedup();
                let more = problems.len().saturating_sub(MOST_PROBLEMS);
                problems.truncate(MOST_PROBLEMS);
                Err(Error { problems, more })
            }
        }
    }
}

/// The nearest of `known`: a word within a typing error or two, or one that goes on where `word`
/// ends.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word
        .chars()
        .take(64)
        .map(|character| character.to_ascii_lowercase())
        .collect();
    if word.len() < 3 {
        return None;
    }
    let most = (word.len() / 3).clamp(1, 3);
    known
        .into_iter()
        .filter_map(|candidate| {
            let letters: Vec<char> = candidate.chars().collect();
            let near = distance(&word, &letters);
            let longer =
                word.len() >= 4 && letters.len() > word.len() && letters.starts_with(&word);
            (near <= most || longer).then_some((near, candidate))
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, delete, replace or swap with their neighbour.
fn distance(left: &[char], right: &[char]) -> usize {
    let mut before = vec![0; right.len() + 1];
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let mut least = (last[j] + usize::from(a != b))
                .min(last[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && *a == right[j - 1] && left[i - 1] == *b {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[right.len()]
}

/// A complaint about a value that repeats the value: `"x" is not a duration`.
pub(super) fn complaint(text: &str, reason: &str) -> String {
    format!("\"{}\" {reason}", clip(text, 100))
}

/// `; did you mean "include"?`, or nothing.
pub(super) fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known)
        .map(|near| format!("; did you mean \"{near}\"?"))
        .unwrap_or_default()
}

fn in_order(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by_key(|problem| problem.at);
    problems.dedup();
    problems.truncate(MOST_PROBLEMS);
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_find_their_word() {
        let known = [
            "include",
            "exclude",
            "newest",
            "moving",
            "password_file",
            "url",
        ];
        let table = [
            ("includ", Some("include")),
            ("inculde", Some("include")),
            ("Exclude", Some("exclude")),
            ("password", Some("password_file")),
            ("ulr", Some("url")),
            ("banana", None),
            ("ur", None),
        ];
        for (word, expected) in table {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
    }
}
