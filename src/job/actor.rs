//! The principal behind a job, and what a caller says of itself.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Bytes of a remark at most.
const MOST_REMARK: usize = 1000;

/// The principal that caused a job. Only [`Actor::name`] is established; the rest is what the
/// caller said beside it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Actor {
    /// Established by blobferry itself: `user:alice`, `address:127.0.0.1`, `secret`, `daemon`.
    #[serde(rename = "actor")]
    pub name: Arc<str>,
    /// What the caller says.
    #[serde(flatten)]
    pub remarks: Arc<Remarks>,
}

/// What a caller says of itself and of its act. It is stored as said and counts for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Remarks {
    /// The reason of the act.
    #[serde(default)]
    pub reason: Option<Remark>,
    /// The name that the caller gives itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_actor: Option<Remark>,
}

impl Remarks {
    /// The reason as it follows an act: `: reason`, or nothing.
    pub fn said(&self) -> String {
        let said = |reason: &Remark| format!(": {reason}");
        self.reason.as_ref().map_or_else(String::new, said)
    }
}

/// A text of 1 to 1000 bytes on one line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Remark(Arc<str>);

impl Actor {
    /// A principal that said nothing.
    pub fn named(name: impl Into<Arc<str>>) -> Actor {
        Actor {
            name: name.into(),
            remarks: Arc::default(),
        }
    }

    /// The daemon itself.
    pub fn daemon() -> Actor {
        Actor::named("daemon")
    }

    /// The same principal with what it said.
    pub fn saying(self, remarks: Remarks) -> Actor {
        Actor {
            remarks: Arc::new(remarks),
            ..self
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no [`Remark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotARemark {
    /// It has no characters, or too many.
    #[error("has 1 to {MOST_REMARK} bytes")]
    Length,
    /// It holds control characters.
    #[error("is one line without control characters")]
    Control,
}

impl FromStr for Remark {
    type Err = NotARemark;

    fn from_str(text: &str) -> Result<Remark, NotARemark> {
        if text.trim().is_empty() || text.len() > MOST_REMARK {
            return Err(NotARemark::Length);
        }
        if text.chars().any(char::is_control) {
            return Err(NotARemark::Control);
        }
        Ok(Remark(text.into()))
    }
}

impl TryFrom<String> for Remark {
    type Error = NotARemark;

    fn try_from(text: String) -> Result<Remark, NotARemark> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_said_stands_beside_what_is_established() {
        let silent = serde_json::to_value(Actor::named("user:alice")).unwrap();
        assert_eq!(silent, json!({"actor": "user:alice", "reason": null}));
        let said = Actor::named("user:alice").saying(Remarks {
            reason: Some("CHG-17".parse().unwrap()),
            claimed_actor: Some("bob".parse().unwrap()),
        });
        let written = serde_json::to_value(&said).unwrap();
        let expected = json!({"actor": "user:alice", "reason": "CHG-17", "claimed_actor": "bob"});
        assert_eq!(written, expected);
        assert_eq!(serde_json::from_value::<Actor>(written).unwrap(), said);
        // Rows of earlier versions have the name alone.
        let old = serde_json::from_value::<Actor>(json!({"actor": "uid:7"})).unwrap();
        assert_eq!(old, Actor::named("uid:7"));
    }

    #[test]
    fn a_remark_is_one_line_of_bounded_length() {
        for (text, wrong) in [
            ("", NotARemark::Length),
            (" ", NotARemark::Length),
            (&*"x".repeat(1001), NotARemark::Length),
            ("a\nb", NotARemark::Control),
            ("a\u{1b}[2J", NotARemark::Control),
        ] {
            assert_eq!(text.parse::<Remark>(), Err(wrong), "{text:?}");
        }
        assert_eq!(
            "Zürich: ok".parse::<Remark>().unwrap().to_string(),
            "Zürich: ok"
        );
    }
}
