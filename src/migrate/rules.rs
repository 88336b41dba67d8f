//! Tag rules: expressions, ranges and globs of other tools as ours.

use super::remark::{Remark, VERSIONS};
use super::route::Tags;
use crate::oci::Tag;
use crate::route::rules::TagRule;

/// Which tags a route takes, and what there is to say of it.
pub(super) type Selected = (Tags, Vec<Remark>);

/// What a range of another tool comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ranged {
    pub(super) include: String,
    pub(super) exclude: Vec<String>,
}

/// A literal tag.
pub(super) fn literal(text: &str) -> Result<String, String> {
    let tag: Result<Tag, _> = text.parse();
    tag.map(|tag| tag.to_string())
        .map_err(|_| "is no tag".into())
}

/// An expression that need not match the whole tag.
pub(super) fn loose(expression: &str) -> Result<String, String> {
    match expression {
        ".*" | ".+" => Ok("*".into()),
        _ => checked(format!("/{expression}/")),
    }
}

/// An expression that must match the whole tag, written as the old tool completes it.
pub(super) fn whole(expression: &str) -> Result<String, String> {
    match expression.trim_start_matches('^').trim_end_matches('$') {
        ".*" | ".+" => Ok("*".into()),
        _ => {
            let start = if expression.starts_with('^') { "" } else { "^" };
            let end = if expression.ends_with('$') { "" } else { "$" };
            checked(format!("/{start}{expression}{end}/"))
        }
    }
}

/// The rule, where it is one of ours; a plain `${` is escaped.
fn checked(rule: String) -> Result<String, String> {
    let parsed: Result<TagRule, _> = rule.parse();
    match parsed {
        Ok(_) => Ok(rule.replace("${", "$${")),
        Err(_) => {
            Err("is no expression that is known here (no look-around, no back references)".into())
        }
    }
}

/// A range: comparators joined by spaces or commas, alternatives by `||`; `!1.2.3` and `!=1.2.3`
/// leave a version out, `1.2 - 1.4` is from one to the other.
pub(super) fn range(text: &str) -> Result<Ranged, String> {
    let mut ranged = Ranged::default();
    let mut alternatives = Vec::new();
    for alternative in text.split("||") {
        let words = joined(alternative);
        if words.is_empty() {
            return Err("is empty".into());
        }
        let (without, with): (Vec<String>, Vec<String>) =
            words.into_iter().partition(|word| word.starts_with('!'));
        for word in without {
            let version = word.trim_start_matches(['!', '=']);
            ranged.exclude.push(checked(format!("semver:={version}"))?);
        }
        alternatives.push(match with.is_empty() {
            true => "*".to_owned(),
            false => with.join(" "),
        });
    }
    if alternatives.len() > 1 && !ranged.exclude.is_empty() {
        return Err("leaves a version out of one of several alternatives".into());
    }
    let rule = format!("semver:{}", alternatives.join(" || "));
    let parsed: Result<TagRule, _> = rule.parse();
    parsed.map_err(|_| "is no range that is known here")?;
    ranged.include = rule;
    Ok(ranged)
}

/// As [`range`], for tools that fill a bound up with zeros: `<=1.2` is `<=1.2.0`, and `~1` is `~1.0.0`.
pub(super) fn zero_filled_range(text: &str) -> Result<Ranged, String> {
    let words: Vec<String> = text.split([' ', ',', '\t']).map(zero_filled).collect();
    range(&words.join(" "))
}

fn zero_filled(word: &str) -> String {
    let (numbers, suffix) = word.split_at(word.find('-').unwrap_or(word.len()));
    if !numbers.ends_with(|character: char| character.is_ascii_digit()) {
        return word.to_owned();
    }
    let missing = 2_usize.saturating_sub(numbers.matches('.').count());
    format!("{numbers}{}{suffix}", ".0".repeat(missing))
}

/// Comparators, each in one word, in the spelling that is known here.
fn joined(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut operator = String::new();
    let mut is_end_of_span = false;
    for word in text.split([' ', ',', '\t']).filter(|word| !word.is_empty()) {
        if word == "-" {
            if let Some(start) = words.last_mut() {
                *start = format!(">={start}");
            }
            is_end_of_span = true;
            continue;
        }
        let version = word.trim_start_matches(['<', '>', '=', '^', '~', '!']);
        operator.push_str(&word[..word.len() - version.len()]);
        if version.is_empty() {
            continue;
        }
        if std::mem::take(&mut is_end_of_span) {
            operator = "<=".into();
        }
        let spelled = match operator.as_str() {
            "=>" => ">=",
            "=<" => "<=",
            "~>" => "~",
            "==" => "=",
            other => other,
        };
        words.push(format!("{spelled}{}", version.trim_start_matches('v')));
        operator.clear();
    }
    // An operator without its version is no range.
    words.extend(Some(operator).filter(|operator| !operator.is_empty()));
    words
}

/// A glob with `*`, `?`, `[a-z]` and `{a,b}`.
pub(super) fn glob(text: &str) -> Result<String, String> {
    if !text.contains(['[', '{', '\\']) {
        let parsed: Result<TagRule, _> = text.parse();
        return match parsed {
            Ok(_) if !text.starts_with('/') && !text.starts_with("semver:") => Ok(text.to_owned()),
            _ => Err("can match no tag".into()),
        };
    }
    let mut expression = String::from("/^");
    let mut is_class = false;
    for character in text.chars() {
        match character {
            '*' => expression.push_str(".*"),
            '?' => expression.push('.'),
            '[' => {
                is_class = true;
                expression.push('[');
            }
            ']' => {
                is_class = false;
                expression.push(']');
            }
            '!' | '^' if is_class && expression.ends_with('[') => expression.push('^'),
            '-' if is_class => expression.push('-'),
            '{' => expression.push_str("(?:"),
            '}' => expression.push(')'),
            ',' => expression.push('|'),
            other => expression.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    checked(expression + "$/")
}

/// A rule for the tags that do not start with a text.
pub(super) fn not_before(prefix: &str) -> Result<String, String> {
    let mut alternatives = Vec::new();
    let mut before = String::new();
    for character in prefix.chars() {
        let this = regex::escape(character.encode_utf8(&mut [0; 4]));
        let class = if character == '-' {
            r"\-".to_owned()
        } else {
            this.clone()
        };
        alternatives.push(format!("{before}([^{class}]|$)"));
        before.push_str(&this);
    }
    checked(format!("/^({})/", alternatives.join("|")))
}

/// What stands in front of the one star of `v*`; empty for `*`.
pub(super) fn prefix_of(glob: &str) -> Option<&str> {
    glob.strip_suffix('*')
        .filter(|prefix| !prefix.contains(['*', '?', '[', '{', '\\']))
}

/// A pattern with its wildcards as captures.
pub(super) fn captured(pattern: &str) -> String {
    let mut text = String::new();
    for (number, part) in pattern.replace("**", "*").split('*').enumerate() {
        if number > 0 {
            text.push_str(&format!("{{{number}}}"));
        }
        text.push_str(part);
    }
    text
}

/// An expression for names of repositories as a pattern.
pub(super) fn repositories(expression: &str) -> Result<String, String> {
    let body = expression.trim_start_matches('^').trim_end_matches('$');
    let pattern = body
        .replace("[^/]+", "\u{0}")
        .replace("[^/]*", "\u{0}")
        .replace(".*", "\u{1}")
        .replace(".+", "\u{1}")
        .replace("\\.", ".")
        .replace("\\-", "-");
    let is_name =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "/._-\u{0}\u{1}".contains(c);
    if !pattern.chars().all(is_name) || (body.contains('.') && has_bare_dot(body)) {
        return Err("write the expression for repositories as a pattern: * within one part of a path, ** across".into());
    }
    Ok(pattern.replace('\u{0}', "*").replace('\u{1}', "**"))
}

/// Whether a dot stands for any character.
fn has_bare_dot(expression: &str) -> bool {
    let plain = expression
        .replace("\\.", "")
        .replace(".*", "")
        .replace(".+", "");
    plain.contains('.')
}

/// The remark on versions.
pub(super) fn versions(line: u64) -> Remark {
    Remark::new(line, VERSIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(rule: &str, tag: &str) -> bool {
        let rule: TagRule = rule.parse().unwrap();
        rule.matches(&tag.parse().unwrap())
    }

    #[test]
    fn ranges_of_several_dialects_are_one() {
        let table = [
            (">= 1.2, < 3", "semver:>=1.2 <3"),
            (">=v1.2.3", "semver:>=1.2.3"),
            ("1.2 - 1.4.5", "semver:>=1.2 <=1.4.5"),
            ("^1 || ~> 2.1", "semver:^1 || ~2.1"),
            ("=>1.0.0", "semver:>=1.0.0"),
            ("1.x", "semver:1.x"),
            ("*", "semver:*"),
        ];
        for (text, expected) in table {
            assert_eq!(range(text).unwrap().include, expected, "{text}");
        }
        let ranged = range(">=1.0.0 !1.3.2 !=1.3.4").unwrap();
        assert_eq!(ranged.include, "semver:>=1.0.0");
        assert_eq!(ranged.exclude, ["semver:=1.3.2", "semver:=1.3.4"]);
        for bad in ["", ">=one", "!1.0.0 || 2.0.0", ">="] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bound_with_fewer_numbers_ends_in_zeros_where_the_old_tool_says_so() {
        let table = [
            ("<=1.2", "semver:<=1.2.0", "1.2.5"),
            (">1, <=v1.2", "semver:>1.0.0 <=1.2.0", "1.2.5"),
            ("=1.2", "semver:=1.2.0", "1.2.5"),
            ("1.2", "semver:1.2.0", "1.2.5"),
            ("^0", "semver:^0.0.0", "0.3.0"),
            ("~1", "semver:~1.0.0", "1.3.0"),
            (">=1.2-rc.1", "semver:>=1.2.0-rc.1", "1.2.0-alpha"),
            (">= 1", "semver:>=1.0.0", "0.9.0"),
        ];
        for (text, expected, other) in table {
            let rule = zero_filled_range(text).unwrap().include;
            assert_eq!(rule, expected, "{text}");
            assert!(!takes(&rule, other), "{text}");
        }
        assert!(zero_filled_range("1.2.3.4").is_err());
    }

    #[test]
    fn expressions_match_as_the_old_tool_completes_them() {
        assert_eq!(whole(r"v\d+").unwrap(), r"/^v\d+$/");
        assert_eq!(whole(r"^v\d+$").unwrap(), r"/^v\d+$/");
        assert_eq!(whole(".*").unwrap(), "*");
        assert_eq!(loose("-rc").unwrap(), "/-rc/");
        assert!(whole("(?!x)y").is_err());
        assert_eq!(loose("a${2}").unwrap(), "/a$${2}/");
    }

    #[test]
    fn globs_keep_what_they_match() {
        assert_eq!(glob("v*").unwrap(), "v*");
        let rule = glob("v[0-9].{1,22}*").unwrap();
        assert!(takes(&rule, "v3.22-alpine") && !takes(&rule, "v3.3") && !takes(&rule, "vx.1"));
        for negated in ["[!a]b", "[^a]b"] {
            let rule = glob(negated).unwrap();
            assert!(takes(&rule, "cb") && !takes(&rule, "ab"), "{negated}");
        }
        assert!(glob("a b").is_err() && glob("/x").is_err());
    }

    #[test]
    fn what_does_not_start_with_a_text_is_a_rule() {
        let rule = not_before("v1.").unwrap();
        for (tag, expected) in [
            ("v1.2", false),
            ("v1", true),
            ("v2.1", true),
            ("latest", true),
        ] {
            assert_eq!(takes(&rule, tag), expected, "{tag}");
        }
        assert_eq!(prefix_of("v*"), Some("v"));
        assert_eq!(prefix_of("*-x*"), None);
    }
}
