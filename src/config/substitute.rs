//! Variables of the environment in values: `${VAR}`, `${VAR:-default}`, `${VAR:?message}`; `$${` is
//! a plain `${`.
//!
//! Only values that the config uses are substituted, never comments or keys, and what a variable
//! brings in is not looked at again. A `$` without a brace is itself, so regular expressions may
//! end in one.

use std::borrow::Cow;

use super::Env;
use crate::fault::clip;

/// Deepest nesting of defaults in defaults.
const DEEPEST: usize = 8;

/// Longest result, in bytes.
const LONGEST: usize = 64 * 1024;

/// The text with its variables filled in.
///
/// # Errors
/// Why one of them cannot be.
pub(super) fn substitute<'a>(text: &'a str, env: &Env<'_>) -> Result<Cow<'a, str>, String> {
    if !text.contains("${") {
        return Ok(Cow::Borrowed(text));
    }
    let mut filled = String::with_capacity(text.len());
    fill(text, env, DEEPEST, &mut filled)?;
    Ok(Cow::Owned(filled))
}

fn fill(text: &str, env: &Env<'_>, depth: usize, filled: &mut String) -> Result<(), String> {
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            filled.push_str(&rest[..at - 1]);
            filled.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        filled.push_str(&rest[..at]);
        let body = &rest[at + 2..];
        let end = closing_brace(body).ok_or("a ${ without its } (a plain ${ is written $${)")?;
        expand(&body[..end], env, depth, filled)?;
        rest = &body[end + 1..];
    }
    filled.push_str(rest);
    if filled.len() > LONGEST {
        Err(format!(
            "longer than {LONGEST} bytes with its variables filled in"
        ))
    } else {
        Ok(())
    }
}

fn closing_brace(body: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in body.bytes().enumerate() {
        match byte {
            b'{' if at > 0 && body.as_bytes()[at - 1] == b'$' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn expand(body: &str, env: &Env<'_>, depth: usize, filled: &mut String) -> Result<(), String> {
    let length = body
        .bytes()
        .take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        .count();
    let (name, operator) = body.split_at(length);
    if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
        return Err("a ${ without the name of a variable (a plain ${ is written $${)".into());
    }
    let value = env(name);
    if operator.is_empty() {
        filled.push_str(&value.ok_or_else(|| {
            format!("{name} is not set in the environment (a default is written ${{{name}:-…}})")
        })?);
        return Ok(());
    }
    let value = value.filter(|value| !value.is_empty());
    if let Some(default) = operator.strip_prefix(":-") {
        match value {
            Some(value) => filled.push_str(&value),
            None if depth == 0 => return Err("defaults are nested too deeply".into()),
            None => fill(default, env, depth - 1, filled)?,
        }
    } else if let Some(message) = operator.strip_prefix(":?") {
        filled.push_str(&value.ok_or_else(|| {
            format!(
                "{name} is not set in the environment: {}",
                clip(message, 200)
            )
        })?);
    } else {
        return Err(format!(
            "${{{name}…}} is none of ${{{name}}}, ${{{name}:-default}}, ${{{name}:?message}}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "A" => Some("one".into()),
            "EMPTY" => Some(String::new()),
            "TRAP" => Some("${A}".into()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_filled_in() {
        let table = [
            ("plain", "plain"),
            ("${A}", "one"),
            ("x-${A}-${A}/y", "x-one-one/y"),
            ("${B:-two}", "two"),
            ("${EMPTY:-two}", "two"),
            ("${EMPTY}", ""),
            ("${B:-}", ""),
            ("${B:-${A}/x}", "one/x"),
            ("${A:-${B}}", "one"),
            ("${A:?why}", "one"),
            ("${TRAP}", "${A}"),
            ("$${A}", "${A}"),
            ("/^v[0-9]+$/", "/^v[0-9]+$/"),
            ("$A $", "$A $"),
            ("$$", "$$"),
        ];
        for (text, expected) in table {
            assert_eq!(substitute(text, &env).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_filled_in_says_why() {
        let table = [
            (
                "${B}",
                "B is not set in the environment (a default is written ${B:-…})",
            ),
            ("${B:?set it}", "B is not set in the environment: set it"),
            (
                "${EMPTY:?set it}",
                "EMPTY is not set in the environment: set it",
            ),
            ("${A", "a ${ without its } (a plain ${ is written $${)"),
            (
                "${}",
                "a ${ without the name of a variable (a plain ${ is written $${)",
            ),
            (
                "${1A}",
                "a ${ without the name of a variable (a plain ${ is written $${)",
            ),
            (
                "${A+x}",
                "${A…} is none of ${A}, ${A:-default}, ${A:?message}",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(substitute(text, &env), Err(expected.into()), "{text}");
        }
        let deep = "${B:-".repeat(10_000) + &"}".repeat(10_000);
        assert!(substitute(&deep, &env).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "[${}AB:?ü-]{0,30}") {
            let _ = substitute(&text, &env);
        }
    }
}
