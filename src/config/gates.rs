//! `gates` of a route and of `defaults`: read gate by gate, merged gate by gate.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use url::Url;

use super::Env;
use super::keys::keys;
use super::problem::complaint;
use super::scan;
use super::section::{Item, entries, optional};
use super::service::service_url;
use super::shapes::{OneOrMany, OrOff};
use super::signers::{SignerKeys, SignerSection, trusted};
use super::units;
use crate::fault::clip;
use crate::job::Scan;
use crate::job::gates::{
    Approval, Attestation, Command, Dates, GateKind, Gates, Http, Override, Token, Trusted, Window,
};
use crate::week::Hours;

/// Longest `min_age`.
const LONGEST_AGE: Duration = Duration::from_secs(366 * 24 * 3600);
/// Most principals of `approval`.
const MOST_PEOPLE: usize = 20;

keys! {
    GatesSection, GatesKeys {
        /// Artifact types that must be attached to the image.
        referrers: Option<OneOrMany>,
        /// How long ago staging must have been first seen to name the digest: `24h`.
        min_age: Option<String>,
        /// When tags move.
        window: Option<OrOff<OpenWindow>>,
        /// How many principals must agree with `approve`.
        approval: Option<OrOff<PeopleWhoAgree>>,
        /// Signers. One signature by any of them is enough.
        signature: Option<OrOff<OneOrMany<Signature>>>,
        /// Statements that must be attached to the image and verify.
        attestation: Option<OrOff<OneOrMany<Predicate>>>,
        /// What a scanner must not have found in the image.
        scan: Option<OrOff<scan::FindingsSection>>,
        /// A program that judges: exit code 0 pass, 75 wait, any other refuse.
        command: Option<OrOff<Program>>,
        /// A service that judges: 200 with `{"verdict":"pass|wait|refuse","reason":"…"}`.
        http: Option<OrOff<Service>>,
    }
}

keys! {
    OpenWindow, WindowKeys {
        /// The time zone of days and times: `Europe/Zurich`. Default: this machine's.
        zone: Option<String>,
        /// Hours in which tags move: `mon-fri 09:00-16:00`, or a list of such. Default: always.
        open: Option<OneOrMany>,
        /// Days on which none moves: `2026-12-24`, `2026-12-15/2027-01-05`, or a list of such.
        closed: Option<OneOrMany>,
    }
}

keys! {
    PeopleWhoAgree, ApprovalKeys {
        /// How many different established principals, without the pusher.
        #[schemars(range(min = 1, max = 20))]
        people: u32 = "how many different people must agree",
    }
}

keys! {
    Signature, SignatureKeys {
        /// A signer of cosign: `key_file`, or `issuer` and `identity`.
        cosign: SignerSection = "a key, or an issuer with an identity",
    }
}

keys! {
    Predicate, PredicateKeys {
        /// The type of its predicate, exactly.
        predicate: String = "the type of the statement's predicate",
        ..signer: SignerSection, SignerKeys,
    }
}

keys! {
    Program, ProgramKeys {
        /// The program and its arguments. The question comes on its standard input, as JSON.
        run: OneOrMany = "the program and its arguments, as a list",
        /// How long it may take, at most 5m. Default: 60s.
        timeout: Option<String>,
    }
}

keys! {
    Service, ServiceKeys {
        /// Where the question is posted, as JSON.
        url: String = "where the service is asked",
        /// File with the bearer token that is sent along.
        token_file: Option<String>,
        /// How long it may take, at most 5m. Default: 10s.
        timeout: Option<String>,
    }
}

/// The gates as they are written: `None` where nothing is said, `Some(None)` for `off`.
#[derive(Clone, Default)]
pub(super) struct Written {
    referrers: Option<Option<Vec<String>>>,
    min_age: Option<Option<Duration>>,
    window: Option<Option<Window>>,
    approval: Option<Option<Approval>>,
    signature: Option<Option<Vec<Trusted>>>,
    attestation: Option<Option<Vec<Attestation>>>,
    scan: Option<Option<Scan>>,
    command: Option<Option<Command>>,
    http: Option<Option<Http>>,
}

/// Reads `gates`.
pub(super) fn read(item: &Item<'_>) -> Written {
    let keys: GatesKeys<'_> = item.keys().unwrap_or_default();
    Written {
        referrers: gate(keys.referrers, referrers),
        min_age: gate(keys.min_age, min_age),
        window: gate(keys.window, window),
        approval: gate(keys.approval, approval),
        signature: gate(keys.signature, signature),
        attestation: gate(keys.attestation, attestation),
        scan: gate(keys.scan, scan::read),
        command: gate(keys.command, command),
        http: gate(keys.http, http),
    }
}

/// A gate of a route or of `defaults`; a mistake counts as nothing said.
fn gate<T>(item: Option<Item<'_>>, read: impl FnOnce(&Item<'_>) -> Option<T>) -> Option<Option<T>> {
    let item = item?;
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
    let scan = pick(GateKind::Scan, own.scan, &defaults.scan, &mut overrides);
    Arc::new(Gates {
        signature: signature.unwrap_or_default(),
        attestation: attestation.unwrap_or_default(),
        scan,
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

fn artifact_type(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_type = text.len() <= 255
        && text
            .split_once('/')
            .is_some_and(|(kind, rest)| is_word(kind) && is_word(rest));
    if is_type {
        return Ok(text.to_owned());
    }
    Err(complaint(
        text,
        "is no artifact type (example: application/spdx+json)",
    ))
}

fn is_word(part: &str) -> bool {
    let mut bytes = part.bytes();
    !part.is_empty() && bytes.all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

fn min_age(item: &Item<'_>) -> Option<Duration> {
    item.parse(|text| units::duration_within(text, Duration::from_secs(1), LONGEST_AGE))
}

fn window(item: &Item<'_>) -> Option<Window> {
    let keys: WindowKeys<'_> = item.keys()?;
    let zone = keys.zone.map(|item| item.parse(zone));
    let open = keys.open.map(|item| {
        let hours = entries(&item)?
            .into_iter()
            .map(|item| item.parse(str::parse));
        hours.collect::<Vec<Option<Hours>>>().into_iter().collect()
    });
    let closed = keys.closed.map(|item| {
        let dates = entries(&item)?.into_iter().map(|item| item.parse(dates));
        dates.collect::<Vec<Option<Dates>>>().into_iter().collect()
    });
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
    let keys: ApprovalKeys<'_> = item.keys()?;
    let people = keys.people?.parse(|text| match text.parse::<usize>() {
        Ok(people) if (1..=MOST_PEOPLE).contains(&people) => Ok(people),
        _ => Err(format!("is a number from 1 to {MOST_PEOPLE}")),
    });
    Some(Approval { people: people? })
}

fn signature(item: &Item<'_>) -> Option<Vec<Trusted>> {
    let signers = entries(item)?.into_iter().map(|item| {
        let keys: SignatureKeys<'_> = item.keys()?;
        let item = keys.cosign?;
        trusted(&item, &item.keys()?)
    });
    let signers: Vec<Option<Trusted>> = signers.collect();
    signers.into_iter().collect()
}

fn attestation(item: &Item<'_>) -> Option<Vec<Attestation>> {
    let attestations = entries(item)?.into_iter().map(|item| {
        let keys: PredicateKeys<'_> = item.keys()?;
        let predicate = keys.predicate.and_then(|item| item.word());
        let trusted = trusted(&item, &keys.signer);
        Some(Attestation {
            predicate: predicate?,
            trusted: trusted?,
        })
    });
    let attestations: Vec<Option<Attestation>> = attestations.collect();
    attestations.into_iter().collect()
}

/// The variables that a command sees.
const ENVIRONMENT: [&str; 2] = ["PATH", "LANG"];

fn command(item: &Item<'_>) -> Option<Command> {
    let keys: ProgramKeys<'_> = item.keys()?;
    let run = keys.run.and_then(|item| program(&item));
    let timeout = optional(&keys.timeout, timeout);
    let env = item.reader().env;
    let environment = ENVIRONMENT
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), env(name)?)))
        .collect();
    Some(Command {
        run: run?,
        timeout: timeout?.unwrap_or(Duration::from_secs(60)),
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

fn is_runnable(facts: &Metadata) -> bool {
    facts.is_file() && facts.mode() & 0o111 != 0
}

/// Why a program cannot be run, as far as this process sees it.
fn not_runnable(program: &str, env: &Env<'_>) -> Option<String> {
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

fn timeout(item: &Item<'_>) -> Option<Duration> {
    item.parse(|text| {
        units::duration_within(text, Duration::from_millis(100), Duration::from_secs(300))
    })
}

fn http(item: &Item<'_>) -> Option<Http> {
    let keys: ServiceKeys<'_> = item.keys()?;
    let url = keys.url.and_then(|item| item.parse(url));
    let token = optional(&keys.token_file, Item::secret);
    let timeout = optional(&keys.timeout, timeout);
    Some(Http {
        url: url?,
        token: token?.map(Token::new),
        timeout: timeout?.unwrap_or(Duration::from_secs(10)),
    })
}

fn url(text: &str) -> Result<Url, String> {
    service_url(text).map_err(|_| {
        complaint(
            text,
            "is no http or https address without a user (example: https://policy.example/gate)",
        )
    })
}

fn zone(text: &str) -> Result<TimeZone, String> {
    TimeZone::get(text.trim()).map_err(|_| {
        complaint(
            text,
            "is no time zone that this system knows (example: Europe/Zurich)",
        )
    })
}

fn day(text: &str) -> Option<Date> {
    let text = text.trim();
    (text.len() == 10).then(|| text.parse().ok())?
}

/// `2026-12-24`, or `2026-12-15/2027-01-05`: both days belong to it.
fn dates(text: &str) -> Result<Dates, String> {
    let (first, last) = text.split_once('/').unwrap_or((text, text));
    let dates = day(first)
        .zip(day(last))
        .filter(|(first, last)| first <= last);
    dates
        .map(|(first, last)| Dates { first, last })
        .ok_or_else(|| {
            complaint(
                text,
                "is no day and no stretch of days (examples: 2026-12-24, 2026-12-15/2027-01-05)",
            )
        })
}
