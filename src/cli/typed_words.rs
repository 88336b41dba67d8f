//! The words of a command line that is being typed, as a shell takes quotes and backslashes away.

use std::iter::Peekable;
use std::str::Chars;

/// A line as far as it is typed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TypedWords {
    /// The words that are complete.
    pub(super) complete: Vec<String>,
    /// The word that is typed, perhaps an empty one.
    pub(super) last: String,
}

impl TypedWords {
    pub(super) fn read(line: &str) -> TypedWords {
        let mut words = TypedWords::default();
        let mut has_word = false;
        let mut rest = line.chars().peekable();
        while let Some(character) = rest.next() {
            if character.is_whitespace() {
                if std::mem::take(&mut has_word) {
                    words.complete.push(std::mem::take(&mut words.last));
                }
                continue;
            }
            has_word = true;
            match character {
                '\'' => words.last.extend(rest.by_ref().take_while(|c| *c != '\'')),
                '"' => words.take_quoted(&mut rest),
                '\\' => words.last.extend(rest.next()),
                other => words.last.push(other),
            }
        }
        words
    }

    /// Between double quotes a backslash stands for itself in front of most characters.
    fn take_quoted(&mut self, rest: &mut Peekable<Chars<'_>>) {
        while let Some(character) = rest.next().filter(|c| *c != '"') {
            let escaped = rest.next_if(|next| character == '\\' && "\"\\$`".contains(*next));
            self.last.push(escaped.unwrap_or(character));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_a_shell() {
        let table: [(&str, &[&str], &str); 12] = [
            ("", &[], ""),
            ("a b", &["a"], "b"),
            ("a  b ", &["a", "b"], ""),
            (
                r#"a -c "my config.yaml" b"#,
                &["a", "-c", "my config.yaml"],
                "b",
            ),
            (
                "a -c 'my config.yaml' b",
                &["a", "-c", "my config.yaml"],
                "b",
            ),
            (
                r"a -c my\ config.yaml b",
                &["a", "-c", "my config.yaml"],
                "b",
            ),
            (r#"a --config="my file" "#, &["a", "--config=my file"], ""),
            (r#"a "" b"#, &["a", ""], "b"),
            (r#"a "b c"#, &["a"], "b c"),
            (r#"a "\"\x" b"#, &["a", r#""\x"#], "b"),
            (r"a '\' b", &["a", r"\"], "b"),
            (r"a b\", &["a"], "b"),
        ];
        for (line, complete, last) in table {
            let words = TypedWords::read(line);
            assert_eq!(words.complete, complete, "{line}");
            assert_eq!(words.last, last, "{line}");
        }
    }
}
