//! `daemon.tokens` and `daemon.secret_file`: bearer tokens of the HTTP API, and their rights.

use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};

use super::section::{Item, Section};
use super::units::is_made_of;
use crate::decision::{NamePattern, Principal, Right, Rights, Token};
use crate::fault::clip;

/// Characters of a token's or a user's name at most.
const LONGEST_NAME: usize = 64;
/// Names that stand for something else in the ledger.
const RESERVED: [&str; 2] = ["daemon", "secret"];

/// The token of `secret_file`: it may look.
pub(super) fn of_secret_file(secret: SecretString) -> Token {
    Token {
        name: "secret".into(),
        secret,
        principal: Principal::new("secret", Rights::look()),
    }
}

/// `None` after a complaint.
pub(super) fn read(item: &Item<'_>) -> Option<Vec<Token>> {
    let keys = item.section()?;
    let mut tokens: Vec<Token> = Vec::new();
    let mut is_right = true;
    for (name, item) in keys.entries() {
        if !is_name(name) || RESERVED.contains(&name) {
            keys.wrong_key(
                name,
                "is no name for a token (1 to 64 letters, digits and . _ -; not secret or daemon)",
            );
            is_right = false;
        }
        match token(name, &item) {
            Some(token) => {
                let is_same =
                    |other: &&Token| other.secret.expose_secret() == token.secret.expose_secret();
                if let Some(other) = tokens.iter().find(is_same) {
                    item.wrong(format!("has the same secret as {}", other.name));
                    is_right = false;
                }
                tokens.push(token);
            }
            None => is_right = false,
        }
    }
    is_right.then_some(tokens)
}

fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len()) && is_made_of(name, "._-")
}

fn token(name: &str, item: &Item<'_>) -> Option<Token> {
    let mut keys = item.section()?;
    let secret = keys
        .required("file", "name the file that holds the token")
        .and_then(|item| item.secret());
    let rights = keys
        .required("may", &format!("say what it may: {}", words()))
        .and_then(|item| rights(&item));
    let routes = keys.item("routes");
    let routes = routes.map_or(Some(None), |item| routes_of(&item).map(Some));
    let user = keys.item("user");
    let user = user.map_or(Some(None), |item| item.parse(user_name).map(Some));
    Section::finish(keys, |_| false);
    let principal = Principal {
        name: user?.unwrap_or_else(|| name.into()),
        rights: rights?,
        routes: routes?,
    };
    Some(Token {
        name: name.into(),
        secret: secret?,
        principal,
    })
}

fn words() -> String {
    let names = Right::ALL.map(Right::name);
    format!(
        "{}, or decide for hold, approve, deny, accept and rollback",
        names.join(", ")
    )
}

fn rights(item: &Item<'_>) -> Option<Rights> {
    let mut texts = Vec::new();
    for word in item.items() {
        texts.push(word.word()?);
    }
    Rights::of_words(texts.iter().map(String::as_str))
        .map_err(|word| {
            let word = clip(&word, 100);
            item.wrong(format!("\"{word}\" is no right (there are {})", words()));
        })
        .ok()
}

fn routes_of(item: &Item<'_>) -> Option<Arc<[NamePattern]>> {
    let mut patterns = Vec::new();
    for word in item.items() {
        patterns.push(NamePattern::new(&word.word()?));
    }
    Some(patterns.into())
}

/// The principal of a user of this machine or of the directory: `user:alice`.
fn user_name(text: &str) -> Result<Arc<str>, String> {
    if text.is_empty()
        || text.len() > LONGEST_NAME
        || !text
            .chars()
            .all(|c| !c.is_control() && !c.is_whitespace() && c != ':')
    {
        return Err("is no name of a user (1 to 64 characters without spaces and colons)".into());
    }
    Ok(format!("user:{text}").into())
}
