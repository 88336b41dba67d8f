//! A body of the receiver's own: JSON in which `{field}` inside a text becomes the field, escaped.

use super::message::{Field, Message, sample};

/// Longest template, in bytes.
const LONGEST: usize = 16 * 1024;

/// A template that is JSON whatever the fields hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(Field),
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &str) -> Result<Template, String> {
        if text.len() > LONGEST {
            return Err(format!("is longer than {LONGEST} bytes"));
        }
        let template = Template {
            pieces: pieces(text)?,
        };
        let body = template.body(&sample());
        let is_json = serde_json::from_slice::<serde_json::Value>(&body).is_ok();
        if is_json {
            Ok(template)
        } else {
            Err(
                "is not JSON with {field} inside of texts (example: {\"text\": \"{summary}\"})"
                    .into(),
            )
        }
    }

    /// The body for a message.
    pub fn body(&self, message: &Message) -> Vec<u8> {
        let mut body = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => body.push_str(text),
                Piece::Field(field) => body.push_str(&escaped(message.field(*field))),
            }
        }
        body.into_bytes()
    }
}

/// The inside of a JSON text.
fn escaped(text: String) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let name: &str = rest[at + 1..].split('}').next().unwrap_or_default();
        let is_name = !name.is_empty()
            && rest[at + 1 + name.len()..].starts_with('}')
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if !is_name {
            plain.push_str(&rest[..=at]);
            rest = &rest[at + 1..];
            continue;
        }
        let field = Field::named(name)
            .ok_or_else(|| format!("has {{{name}}}, which is none of {}", names()))?;
        plain.push_str(&rest[..at]);
        pieces.push(Piece::Text(std::mem::take(&mut plain)));
        pieces.push(Piece::Field(field));
        rest = &rest[at + name.len() + 2..];
    }
    plain.push_str(rest);
    pieces.push(Piece::Text(plain));
    Ok(pieces)
}

fn names() -> String {
    Field::ALL.map(Field::name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_are_escaped_and_braces_stay() {
        let template =
            Template::parse(r#"{"text": "{event} {destination}", "a": {"b": []}}"#).unwrap();
        let body = template.body(&sample());
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["text"], format!("conflict {}", sample().destination));
        assert!(body["a"]["b"].is_array());
    }

    #[test]
    fn a_template_that_could_break_is_refused() {
        for (text, words) in [
            ("{event}", "is not JSON"),
            (r#"{"text": {summary}}"#, "is not JSON"),
            (r#"{"text": "{sumary}"}"#, "{sumary}, which is none of"),
            ("plain", "is not JSON"),
            ("", "is not JSON"),
            (&"x".repeat(20_000), "is longer than"),
        ] {
            let error = Template::parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn whatever_a_field_holds_the_body_is_json(text in ".{0,40}") {
            let template = Template::parse(r#"{"text": "{route} {summary}", "to": "{reason}"}"#).unwrap();
            let message = Message { route: text.clone(), reason: Some(text.clone()), ..sample() };
            let body: serde_json::Value = serde_json::from_slice(&template.body(&message)).unwrap();
            prop_assert_eq!(body["to"].as_str(), Some(&*text));
        }
    }
}
