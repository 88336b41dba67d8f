//! `gates` of a route and of `defaults`: read gate by gate, merged gate by gate.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use url::Url;

use super::Env;
use super::section::{Item, Section, optional};
use super::units;
use crate::fault::clip;
use crate::gate::sigstore;
use crate::glob::{Glob, TooLong};
use crate::job::gates::{
    Approval, Attestation, Command, Dates, GateKind, Gates, Http, Identity, Key, Override, Root,
    Signer, Subject, Token, Trusted, Window,
};
use crate::week::Hours;

/// Longest `min_age`.
const LONGEST_AGE: Duration = Duration::from_secs(366 * 24 * 3600);
/// Most principals of `approval`.
const MOST_PEOPLE: usize = 20;
/// Most entries of one list of a gate.
const MOST: usize = 100;

/// The gates as they are written: `None` where nothing is said, `Some(None)` for `off`.
#[derive(Clone, Default)]
pub(super) struct Written {
    referrers: Option<Option<Vec<String>>>,
    min_age: Option<Option<Duration>>,
    window: Option<Option<Window>>,
    approval: Option<Option<Approval>>,
    signature: Option<Option<Vec<Trusted>>>,
    attestation: Option<Option<Vec<Attestation>>>,
    command: Option<Option<Command>>,
    http: Option<Option<Http>>,
}

/// Reads `gates`.
pub(super) fn read(item: &Item<'_>) -> Written {
    let Some(mut keys) = item.section() else {
        return Written::default();
    };
    let written = Written {
        referrers: gate(&mut keys, "referrers", referrers),
        min_age: gate(&mut keys, "min_age", min_age),
        window: gate(&mut keys, "window", window),
        approval: gate(&mut keys, "approval", approval),
        signature: gate(&mut keys, "signature", signature),
        attestation: gate(&mut keys, "attestation", attestation),
        command: gate(&mut keys, "command", command),
        http: gate(&mut keys, "http", http),
    };
    keys.finish(|_| false);
    written
}

/// A gate of a route or of `defaults`; a mistake counts as nothing said.
fn gate<T>(
    keys: &mut Section<'_>,
    key: &'static str,
    read: impl FnOnce(&Item<'_>) -> Option<T>,
) -> Option<Option<T>> {
    let item = keys.item(key)?;
    if item.is_word("off") {
        return Some(None);
    }
    read(&item).map(Some)
}

/// The gates of a route: its own, else those of `defaults`, gate by gate.
pub(super) fn merged(own: Written, defaults: &Written) -> Arc<Gates> {
    let mut overrides = Vec::new();
    let referrers = pick(
        GateKind::Referrers,
        own.referrers,
        &defaults.referrers,
        &mut overrides,
    );
    let min_age = pick(
        GateKind::MinAge,
        own.min_age,
        &defaults.min_age,
        &mut overrides,
    );
    let window = pick(
        GateKind::Window,
        own.window,
        &defaults.window,
        &mut overrides,
    );
    let approval = pick(
        GateKind::Approval,
        own.approval,
        &defaults.approval,
        &mut overrides,
    );
    let command = pick(
        GateKind::Command,
        own.command,
        &defaults.command,
        &mut overrides,
    );
    let http = pick(GateKind::Http, own.http, &defaults.http, &mut overrides);
    let signature = pick(
        GateKind::Signature,
        own.signature,
        &defaults.signature,
        &mut overrides,
    );
    let attestation = pick(
        GateKind::Attestation,
        own.attestation,
        &defaults.attestation,
        &mut overrides,
    );
    Arc::new(Gates {
        signature: signature.unwrap_or_default(),
        attestation: attestation.unwrap_or_default(),
        command,
        http,
        referrers: referrers.unwrap_or_default(),
        min_age,
        window,
        approval,
        beside: None,
        overrides,
    })
}

fn pick<T: Clone>(
    gate: GateKind,
    own: Option<Option<T>>,
    default: &Option<Option<T>>,
    overrides: &mut Vec<Override>,
) -> Option<T> {
    let default = default.clone().flatten();
    let Some(own) = own else {
        return default;
    };
    if default.is_some() {
        let is_dropped = own.is_none();
        overrides.push(Override { gate, is_dropped });
    }
    own
}

fn referrers(item: &Item<'_>) -> Option<Vec<String>> {
    let types: Vec<Option<String>> = entries(item)?
        .iter()
        .map(|item| item.parse(artifact_type))
        .collect();
    types.into_iter().collect()
}

/// The entries of a list that is neither empty nor long.
fn entries<'a>(item: &Item<'a>) -> Option<Vec<Item<'a>>> {
    let items = item.items();
    if items.is_empty() || items.len() > MOST {
        item.wrong(format!("has {} entries: give 1 to {MOST}", items.len()));
        return None;
    }
    Some(items)
}

fn artifact_type(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_word = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'/')
    };
    let is_type = text.len() <= 255
        && text
            .split_once('/')
            .is_some_and(|(kind, rest)| is_word(kind) && is_word(rest));
    if is_type {
        return Ok(text.to_owned());
    }
    Err(format!(
        "\"{}\" is no artifact type (example: application/spdx+json)",
        clip(text, 100)
    ))
}

fn min_age(item: &Item<'_>) -> Option<Duration> {
    item.parse(|text| units::duration_within(text, Duration::from_secs(1), LONGEST_AGE))
}

fn window(item: &Item<'_>) -> Option<Window> {
    let mut keys = item.section()?;
    let zone = keys.item("zone").map(|item| item.parse(zone));
    let open = keys.item("open").map(|item| {
        let hours = entries(&item)?
            .into_iter()
            .map(|item| item.parse(str::parse));
        hours.collect::<Vec<Option<Hours>>>().into_iter().collect()
    });
    let closed = keys.item("closed").map(|item| {
        let dates = entries(&item)?.into_iter().map(|item| item.parse(dates));
        dates.collect::<Vec<Option<Dates>>>().into_iter().collect()
    });
    keys.finish(|_| false);
    if open.is_none() && closed.is_none() {
        item.wrong("says neither `open` nor `closed`: it would always be open");
        return None;
    }
    Some(Window {
        zone: zone.unwrap_or_else(|| Some(TimeZone::system()))?,
        open: open.unwrap_or_else(|| Some(Vec::new()))?,
        closed: closed.unwrap_or_else(|| Some(Vec::new()))?,
    })
}

fn approval(item: &Item<'_>) -> Option<Approval> {
    let mut keys = item.section()?;
    let people = keys.required("people", "how many different people must agree");
    keys.finish(|_| false);
    let people = people?.parse(|text| match text.parse::<usize>() {
        Ok(people) if (1..=MOST_PEOPLE).contains(&people) => Ok(people),
        _ => Err(format!("is a number from 1 to {MOST_PEOPLE}")),
    });
    Some(Approval { people: people? })
}

fn signature(item: &Item<'_>) -> Option<Vec<Trusted>> {
    let signers = entries(item)?.into_iter().map(|item| {
        let mut keys = item.section()?;
        let cosign = keys.required("cosign", "a key, or an issuer with an identity");
        keys.finish(|_| false);
        let item = cosign?;
        let mut keys = item.section()?;
        let trusted = trusted(&item, &mut keys);
        keys.finish(|_| false);
        trusted
    });
    let signers: Vec<Option<Trusted>> = signers.collect();
    signers.into_iter().collect()
}

fn attestation(item: &Item<'_>) -> Option<Vec<Attestation>> {
    let attestations = entries(item)?.into_iter().map(|item| {
        let mut keys = item.section()?;
        let predicate = keys
            .required("predicate", "the type of the statement's predicate")
            .and_then(|item| item.word());
        let trusted = trusted(&item, &mut keys);
        keys.finish(|_| false);
        Some(Attestation {
            predicate: predicate?,
            trusted: trusted?,
        })
    });
    let attestations: Vec<Option<Attestation>> = attestations.collect();
    attestations.into_iter().collect()
}

/// A signer: `key_file`, or `issuer` with `identity` and `root`.
fn trusted(item: &Item<'_>, keys: &mut Section<'_>) -> Option<Trusted> {
    let key = keys.item("key_file");
    let issuer = keys.item("issuer");
    let identity = keys.item("identity");
    let root_item = keys.item("root");
    let on = optional(&keys.item("on"), |item| {
        item.one_of([("image", Subject::Image), ("platforms", Subject::Platforms)])
    });
    let signer = match (&key, &issuer, &identity) {
        (Some(key), None, None) if root_item.is_none() => public_key(key).map(Signer::Key),
        (None, Some(issuer), Some(identity)) => {
            let issuer = issuer.word();
            let pattern = identity.parse(identity_glob);
            let root = optional(&root_item, root);
            issuer
                .zip(pattern)
                .zip(root)
                .map(|((issuer, pattern), root)| {
                    Signer::Identity(Identity {
                        issuer,
                        pattern,
                        root: root.unwrap_or(Root::Sigstore),
                    })
                })
        }
        _ => {
            item.wrong(
                "needs either `key_file`, or `issuer` and `identity` (with an optional `root`)",
            );
            None
        }
    };
    Some(Trusted {
        signer: signer?,
        on: on?.unwrap_or_default(),
    })
}

fn public_key(item: &Item<'_>) -> Option<Key> {
    let name = item.path()?.file_name()?.to_string_lossy().into_owned();
    let pem = file_text(item)?;
    match sigstore::check_key(&pem) {
        Ok(()) => Some(Key { name, pem }),
        Err(reason) => {
            item.wrong(format!(
                "the file holds no public key that can verify: {reason}"
            ));
            None
        }
    }
}

fn root(item: &Item<'_>) -> Option<Root> {
    let built_in = [("sigstore", Root::Sigstore), ("github", Root::Github)];
    if let Some((_, root)) = built_in.into_iter().find(|(word, _)| item.is_word(word)) {
        return Some(root);
    }
    let root = Root::File(file_text(item)?.into());
    match sigstore::check_root(&root) {
        Ok(()) => Some(root),
        Err(reason) => {
            item.wrong(format!(
                "the file holds no trusted root (`sigstore` and `github` are built in): {reason}"
            ));
            None
        }
    }
}

fn file_text(item: &Item<'_>) -> Option<String> {
    let text = String::from_utf8(item.file()?).ok();
    if text.is_none() {
        item.wrong("the file holds no text");
    }
    text
}

/// The variables that a command sees.
const ENVIRONMENT: [&str; 2] = ["PATH", "LANG"];

fn command(item: &Item<'_>) -> Option<Command> {
    let mut keys = item.section()?;
    let run = keys
        .required("run", "the program and its arguments, as a list")
        .and_then(|item| program(&item));
    let timeout = timeout(&mut keys, Duration::from_secs(60));
    keys.finish(|_| false);
    let env = item.reader().env;
    let environment = ENVIRONMENT
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), env(name)?)))
        .collect();
    Some(Command {
        run: run?,
        timeout: timeout?,
        environment,
    })
}

fn program(item: &Item<'_>) -> Option<Vec<String>> {
    let words: Vec<Option<String>> = entries(item)?.iter().map(Item::text).collect();
    let words: Vec<String> = words.into_iter().collect::<Option<_>>()?;
    let is_found = !words[0].is_empty() && (words[0].starts_with('/') || !words[0].contains('/'));
    if words.iter().any(|word| word.contains('\0')) || !is_found {
        item.wrong("names no program: give its whole path, or a name that is found in PATH");
        return None;
    }
    if let Some(trouble) = not_runnable(&words[0], item.reader().env) {
        item.not_there(trouble);
    }
    Some(words)
}

/// Why a program cannot be run, as far as this process sees it.
fn not_runnable(program: &str, env: &Env<'_>) -> Option<String> {
    let is_runnable = |facts: &Metadata| facts.is_file() && facts.mode() & 0o111 != 0;
    let shown = clip(program, 300);
    if program.starts_with('/') {
        return match fs::metadata(program) {
            Ok(facts) if is_runnable(&facts) => None,
            Ok(_) => Some(format!(
                "{shown} is not executable, so the gate waits: chmod +x {shown}"
            )),
            Err(error) => Some(format!(
                "the program {shown} cannot be read ({error}), so the gate waits: install it, or name another"
            )),
        };
    }
    let path = env("PATH")?;
    let mut places = std::env::split_paths(&path).map(|folder| folder.join(program));
    let is_found = places.any(|place| fs::metadata(place).is_ok_and(|facts| is_runnable(&facts)));
    (!is_found).then(|| {
        format!(
            "no program {shown} is in PATH ({}), so the gate waits: give its whole path",
            clip(&path, 300)
        )
    })
}

fn timeout(keys: &mut Section<'_>, usual: Duration) -> Option<Duration> {
    let Some(item) = keys.item("timeout") else {
        return Some(usual);
    };
    item.parse(|text| {
        units::duration_within(text, Duration::from_millis(100), Duration::from_secs(300))
    })
}

fn http(item: &Item<'_>) -> Option<Http> {
    let mut keys = item.section()?;
    let url = keys
        .required("url", "where the service is asked")
        .and_then(|item| item.parse(url));
    let token = optional(&keys.item("token_file"), |item| item.secret());
    let timeout = timeout(&mut keys, Duration::from_secs(10));
    keys.finish(|_| false);
    Some(Http {
        url: url?,
        token: token?.map(Token::new),
        timeout: timeout?,
    })
}

fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text.trim()).ok();
    let url = url.filter(|url| {
        let is_http = matches!(url.scheme(), "http" | "https");
        is_http && url.has_host() && url.username().is_empty() && url.password().is_none()
    });
    url.ok_or_else(|| {
        format!(
            "\"{}\" is no http or https address without a user (example: https://policy.example/gate)",
            clip(text, 100)
        )
    })
}

fn zone(text: &str) -> Result<TimeZone, String> {
    TimeZone::get(text.trim()).map_err(|_| {
        format!(
            "\"{}\" is no time zone that this system knows (example: Europe/Zurich)",
            clip(text, 100)
        )
    })
}

/// `2026-12-24`, or `2026-12-15/2027-01-05`: both days belong to it.
fn dates(text: &str) -> Result<Dates, String> {
    let (first, last) = text.split_once('/').unwrap_or((text, text));
    let day = |text: &str| {
        let text = text.trim();
        (text.len() == 10).then(|| text.parse::<Date>().ok())?
    };
    let dates = day(first)
        .zip(day(last))
        .filter(|(first, last)| first <= last);
    dates.map(|(first, last)| Dates { first, last }).ok_or_else(|| {
        format!(
            "\"{}\" is no day and no stretch of days (examples: 2026-12-24, 2026-12-15/2027-01-05)",
            clip(text, 100)
        )
    })
}

/// The glob of a signer's identity.
fn identity_glob(text: &str) -> Result<Glob, String> {
    let text = text.trim();
    if text.chars().all(|character| character == '*') {
        return Err("names no identity: every user of the issuer could sign".into());
    }
    text.parse().map_err(|error: TooLong| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asterisks_alone_name_no_identity() {
        for bad in ["", "*", " ** ", "***"] {
            assert!(identity_glob(bad).is_err(), "{bad}");
        }
        assert!(
            identity_glob(" ci@acme.example ").is_ok_and(|glob| glob.matches("ci@acme.example"))
        );
    }
}
