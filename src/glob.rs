//! Globs for identities and claims: `*` stands for any characters but `/`, `**` for any.

use std::fmt;
use std::str::FromStr;

use regex::Regex;

/// Longest glob, in bytes.
const LONGEST: usize = 1000;

/// A glob. It matches a text as a whole.
#[derive(Clone)]
pub struct Glob {
    text: String,
    regex: Regex,
}

impl Glob {
    /// Whether a text matches.
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// The glob as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// A glob of more than 1,000 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is too long")]
pub struct TooLong;

impl FromStr for Glob {
    type Err = TooLong;

    fn from_str(text: &str) -> Result<Glob, TooLong> {
        if text.len() > LONGEST {
            return Err(TooLong);
        }
        let escaped = regex::escape(text)
            .replace(r"\*\*", ".*")
            .replace(r"\*", "[^/]*");
        let regex = Regex::new(&format!(r"\A(?s:{escaped})\z")).map_err(|_| TooLong)?;
        let text = text.to_owned();
        Ok(Glob { text, regex })
    }
}

impl PartialEq for Glob {
    fn eq(&self, other: &Glob) -> bool {
        self.text == other.text
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asterisk_ends_at_a_slash_and_two_do_not() {
        let release = "https://github.com/acme/*/.github/workflows/release.yml@refs/tags/**";
        let glob: Glob = release.parse().unwrap();
        let of = |repository: &str, file: &str, reference: &str| {
            format!("https://github.com/{repository}/.github/workflows/{file}@{reference}")
        };
        for (identity, expected) in [
            (of("acme/app", "release.yml", "refs/tags/v1"), true),
            (of("acme/app", "release.yml", "refs/tags/a/b"), true),
            (of("acme/app/x", "release.yml", "refs/tags/v1"), false),
            (of("evil/acme/app", "release.yml", "refs/tags/v1"), false),
            (of("acme/app", "releaseXyml", "refs/tags/v1"), false),
            (of("acme/app", "release.yml", "refs/heads/v1"), false),
            (
                format!("x{}", of("acme/app", "release.yml", "refs/tags/v1")),
                false,
            ),
        ] {
            assert_eq!(glob.matches(&identity), expected, "{identity}");
        }
        let literal: Glob = "ci@acme.example".parse().unwrap();
        assert!(literal.matches("ci@acme.example"));
    }

    #[test]
    fn a_long_glob_is_refused() {
        assert!("a".repeat(1000).parse::<Glob>().is_ok());
        assert_eq!("*".repeat(1001).parse::<Glob>(), Err(TooLong));
    }
}
