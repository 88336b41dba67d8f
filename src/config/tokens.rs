//! `daemon.tokens` and `daemon.secret_file`: bearer tokens of the HTTP API, and their rights.

use std::sync::Arc;

use secrecy::SecretString;

use super::keys::{keys, word_schema};
use super::receivers::{Oidc, oidc};
use super::section::{Item, optional};
use super::shapes::OneOrMany;
use super::units::is_made_of;
use crate::admin::{Proof, Token};
use crate::decision::{NamePattern, Right, Rights};
use crate::fault::clip;

/// Characters of a token's or a user's name at most.
const LONGEST_NAME: usize = 64;
/// Names that stand for something else in the ledger.
const RESERVED: [&str; 2] = ["daemon", "secret"];

keys! {
    TokenOfApi, TokenKeys {
        /// File with the token.
        file: Option<String>,
        /// Instead of a file: tokens of an identity provider, such as those of a CI job.
        oidc: Option<Oidc>,
        /// What it may; looking is always among it. `decide` stands for hold, approve, deny, accept
        /// and rollback.
        may: OneOrMany<RightWord> = &format!("say what it may: {}", words()),
        /// Routes that its decisions may be about; `*` stands for any characters. Default: all, and
        /// what is about no route.
        routes: Option<OneOrMany>,
        /// The user of this machine that owns the token: the ledger counts both as one.
        user: Option<String>,
    }
}

/// A right, or the word for several.
struct RightWord;

word_schema!(RightWord, "Right", {
    let names = Right::ALL.map(Right::name);
    names.into_iter().chain(["decide"]).collect::<Vec<&str>>()
});

/// The token of `secret_file`: it may look.
pub(super) fn of_secret_file(secret: SecretString) -> Token {
    Token {
        name: "secret".into(),
        proof: Proof::Secret(secret),
        user: None,
        rights: Rights::look(),
        routes: None,
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
                let mut others = tokens.iter();
                if let Some(other) = others.find(|other| other.proof.is_same(&token.proof)) {
                    item.wrong(same(&token.proof, &other.name));
                    is_right = false;
                }
                tokens.push(token);
            }
            None => is_right = false,
        }
    }
    is_right.then_some(tokens)
}

pub(super) fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len()) && is_made_of(name, "._-")
}

fn same(proof: &Proof, other: &str) -> String {
    match proof {
        Proof::Secret(_) => format!("has the same secret as {other}"),
        Proof::Oidc(_) => format!("has the same issuer, audience and claims as {other}"),
    }
}

fn token(name: &str, item: &Item<'_>) -> Option<Token> {
    let keys: TokenKeys<'_> = item.keys()?;
    let proof = proof(&keys, item);
    let rights = keys.may.as_ref().and_then(rights);
    let routes = optional(&keys.routes, routes_of);
    let user = optional(&keys.user, |item| item.parse(user_name));
    Some(Token {
        name: name.into(),
        proof: proof?,
        user: user?,
        rights: rights?,
        routes: routes?,
    })
}

/// Exactly one of `file` and `oidc`.
fn proof(keys: &TokenKeys<'_>, item: &Item<'_>) -> Option<Proof> {
    let secret = optional(&keys.file, Item::secret);
    let verifier = optional(&keys.oidc, oidc);
    match (secret?, verifier?) {
        (Some(secret), None) => Some(Proof::Secret(secret)),
        (None, Some(verifier)) => Some(Proof::Oidc(verifier)),
        (None, None) => {
            let text = "is missing: name the file that holds the token (or say oidc)";
            item.missing("file", text);
            None
        }
        (Some(_), Some(_)) => {
            let text = "is a second way: keep one of file and oidc";
            keys.oidc.as_ref()?.wrong(text);
            None
        }
    }
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
