//! A row of the ledger as a message.

use jiff::Timestamp;
use serde::Serialize;

use crate::decision::{Decision, Kind};
use crate::fault::clip;
use crate::job::{Actor, Outcome, Settled};
use crate::ledger::{Content, Row};

/// Most characters of a text.
const LONGEST: usize = 1000;
/// Most reasons.
const MOST_REASONS: usize = 20;

/// What can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A tag was named in production.
    Promoted,
    /// A fixed tag of production names another digest.
    Conflict,
    /// A tag of production was changed by other means.
    Drift,
    /// A rule refuses a tag.
    Refused,
    /// A decision holds a tag.
    Held,
    /// Only a part of a set was named.
    Torn,
    /// A gate was passed by decision although it is not met.
    Override,
}

impl Event {
    /// All of them.
    pub const ALL: [Event; 7] = [
        Event::Promoted,
        Event::Conflict,
        Event::Drift,
        Event::Refused,
        Event::Held,
        Event::Torn,
        Event::Override,
    ];

    /// As configs and messages name it.
    pub const fn name(self) -> &'static str {
        match self {
            Event::Promoted => "promoted",
            Event::Conflict => "conflict",
            Event::Drift => "drift",
            Event::Refused => "refused",
            Event::Held => "held",
            Event::Torn => "torn",
            Event::Override => "override",
        }
    }

    /// What a row tells; `None`: nothing.
    pub fn of(row: &Row) -> Option<Event> {
        match &row.content {
            Content::Outcome(settled) => Event::of_outcome(settled.result),
            Content::Decision(Kind::Hold, hold) if hold.torn.is_some() => Some(Event::Torn),
            Content::Decision(Kind::Approve, approval) if !approval.despite.is_empty() => {
                Some(Event::Override)
            }
            _ => None,
        }
    }

    fn of_outcome(outcome: Outcome) -> Option<Event> {
        match outcome {
            Outcome::Promoted => Some(Event::Promoted),
            Outcome::Conflict => Some(Event::Conflict),
            Outcome::Drift => Some(Event::Drift),
            Outcome::Refused => Some(Event::Refused),
            Outcome::Held => Some(Event::Held),
            _ => None,
        }
    }
}

/// A message: the fields of its JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Of this shape: 1.
    pub schema: u32,
    /// The number of the row: the same row is the same message.
    pub id: u64,
    /// What happened.
    pub event: &'static str,
    /// When it was recorded.
    pub time: Timestamp,
    /// The route; empty for decisions and copies.
    pub route: String,
    /// `host/repository:tag` of the source; empty for decisions.
    pub source: String,
    /// `host/repository:tag` of the destination, or the target of a decision.
    pub destination: String,
    /// What staging named.
    pub digest: Option<String>,
    /// What production named before.
    pub previous_digest: Option<String>,
    /// Why.
    pub reasons: Vec<String>,
    /// The principal.
    pub actor: String,
    /// What the principal said.
    pub reason: Option<String>,
}

impl Message {
    /// The message of a row that is this event.
    pub fn of(row: &Row, event: Event) -> Message {
        let mut message = Message {
            schema: 1,
            id: row.id,
            event: event.name(),
            time: row.at,
            route: String::new(),
            source: String::new(),
            destination: String::new(),
            digest: None,
            previous_digest: None,
            reasons: Vec::new(),
            actor: String::new(),
            reason: None,
        };
        match &row.content {
            Content::Outcome(settled) => message.add_outcome(settled),
            Content::Decision(_, decision) => message.add_decision(decision),
            Content::Reload(_) | Content::RefusedDecision(_) => {}
        }
        message.bound();
        message
    }

    fn add_outcome(&mut self, settled: &Settled) {
        self.route = settled.route.clone();
        self.source = settled.source.clone();
        self.destination = settled.destination.clone();
        self.digest = settled.digest.map(|digest| digest.to_string());
        self.previous_digest = settled.previous_digest.map(|digest| digest.to_string());
        self.reasons = settled.reasons.clone();
        self.add_actor(&settled.actor);
    }

    fn add_decision(&mut self, decision: &Decision) {
        self.destination = decision.shown_target().to_owned();
        self.digest = decision.digest.map(|digest| digest.to_string());
        self.previous_digest = decision.replaces.map(|digest| digest.to_string());
        if !decision.despite.is_empty() {
            let gates: Vec<&str> = decision.despite.iter().map(|gate| gate.name()).collect();
            self.reasons = vec![format!("despite {}", gates.join(", "))];
        }
        self.add_actor(&decision.actor);
    }

    fn add_actor(&mut self, actor: &Actor) {
        self.actor = actor.name.to_string();
        self.reason = actor.remarks.reason.as_ref().map(ToString::to_string);
    }

    /// What registries and people said has a bound.
    fn bound(&mut self) {
        self.reasons.truncate(MOST_REASONS);
        let texts = [
            &mut self.route,
            &mut self.source,
            &mut self.destination,
            &mut self.actor,
        ];
        for text in texts
            .into_iter()
            .chain(&mut self.reasons)
            .chain(&mut self.reason)
        {
            *text = clip(text, LONGEST);
        }
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        let mut text = format!("{} {}", self.event, self.destination);
        let reasons = self.reasons.iter().chain(&self.reason);
        let reasons: Vec<&str> = reasons.map(String::as_str).collect();
        if !reasons.is_empty() {
            text.push_str(&format!(": {}", reasons.join("; ")));
        }
        text
    }

    /// The text of a field.
    pub fn field(&self, field: Field) -> String {
        let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
        match field {
            Field::Id => self.id.to_string(),
            Field::Event => self.event.to_owned(),
            Field::Time => self.time.to_string(),
            Field::Route => self.route.clone(),
            Field::Source => self.source.clone(),
            Field::Destination => self.destination.clone(),
            Field::Digest => or_empty(&self.digest),
            Field::PreviousDigest => or_empty(&self.previous_digest),
            Field::Reasons => self.reasons.join("; "),
            Field::Actor => self.actor.clone(),
            Field::Reason => or_empty(&self.reason),
            Field::Summary => self.summary(),
        }
    }

    /// The body where there is no template.
    pub fn json(&self) -> Vec<u8> {
        // Texts, numbers and lists of texts: always JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// What a template may use of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// [`Message::id`].
    Id,
    /// [`Message::event`].
    Event,
    /// [`Message::time`].
    Time,
    /// [`Message::route`].
    Route,
    /// [`Message::source`].
    Source,
    /// [`Message::destination`].
    Destination,
    /// [`Message::digest`].
    Digest,
    /// [`Message::previous_digest`].
    PreviousDigest,
    /// [`Message::reasons`].
    Reasons,
    /// [`Message::actor`].
    Actor,
    /// [`Message::reason`].
    Reason,
    /// [`Message::summary`].
    Summary,
}

impl Field {
    /// All of them.
    pub const ALL: [Field; 12] = [
        Field::Id,
        Field::Event,
        Field::Time,
        Field::Route,
        Field::Source,
        Field::Destination,
        Field::Digest,
        Field::PreviousDigest,
        Field::Reasons,
        Field::Actor,
        Field::Reason,
        Field::Summary,
    ];

    /// As templates name it.
    pub const fn name(self) -> &'static str {
        match self {
            Field::Id => "id",
            Field::Event => "event",
            Field::Time => "time",
            Field::Route => "route",
            Field::Source => "source",
            Field::Destination => "destination",
            Field::Digest => "digest",
            Field::PreviousDigest => "previous_digest",
            Field::Reasons => "reasons",
            Field::Actor => "actor",
            Field::Reason => "reason",
            Field::Summary => "summary",
        }
    }

    /// The field of a name.
    pub fn named(name: &str) -> Option<Field> {
        Field::ALL.into_iter().find(|field| field.name() == name)
    }
}

/// A message with texts that need every escape.
pub(super) fn sample() -> Message {
    let hard = "\"\\\n\u{1}ü".to_owned();
    Message {
        schema: 1,
        id: 1,
        event: Event::Conflict.name(),
        time: Timestamp::UNIX_EPOCH,
        route: hard.clone(),
        source: hard.clone(),
        destination: hard.clone(),
        digest: None,
        previous_digest: Some(hard.clone()),
        reasons: vec![hard.clone()],
        actor: hard.clone(),
        reason: Some(hard),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_name_the_fields_of_the_json_and_the_summary() {
        let json = serde_json::to_value(sample()).unwrap();
        let mut names: Vec<&str> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        names.retain(|name| *name != "schema");
        names.push("summary");
        for name in &names {
            let field = Field::named(name).unwrap_or_else(|| panic!("{name} has no field"));
            assert_eq!(field.name(), *name);
        }
        assert_eq!(names.len(), Field::ALL.len());
        assert_eq!(Field::named("password"), None);
    }

    #[test]
    fn long_texts_are_cut() {
        let mut message = sample();
        message.reasons = vec!["x".repeat(5000); 50];
        message.bound();
        assert_eq!(message.reasons.len(), MOST_REASONS);
        assert!(message.json().len() < 30_000);
    }
}
