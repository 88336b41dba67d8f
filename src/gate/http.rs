//! `http`: a service that judges. The question is posted to it, and it answers 200 with
//! `{"verdict":"pass|wait|refuse","reason":"…"}`. Any other answer waits, and so does none.
//!
//! Redirects are not followed: the token goes to the address of the config alone.

use std::fmt;
use std::sync::OnceLock;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use reqwest::{Client, StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::body;
use crate::fault::clip;
use crate::gate::question::LONGEST_REASON;
use crate::job::gates::Http;
use crate::job::{GateKind, Judgement, Verdict};
use crate::service;

/// Largest answer, in bytes.
const MOST: usize = 64 * 1024;

/// Asks the services of such gates.
pub trait Service: fmt::Debug + Send + Sync {
    /// What the service of a gate says to a question.
    fn ask<'a>(&'a self, http: &'a Http, question: Vec<u8>) -> BoxFuture<'a, Reply>;
}

/// Asks over the network. Each client is built when it is first needed.
#[derive(Debug, Default)]
pub struct Asker {
    /// Services of this machine are reached without a proxy.
    here: OnceLock<Option<Client>>,
    elsewhere: OnceLock<Option<Client>>,
}

/// What a service came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A verdict.
    Verdict {
        /// The verdict.
        verdict: Verdict,
        /// Why.
        reason: String,
    },
    /// Nothing that could be understood.
    Unusable(String),
}

/// An object, and nothing that could be taken for one.
#[derive(Deserialize)]
#[serde(try_from = "Map<String, Value>")]
struct Answer {
    verdict: Verdict,
    reason: String,
}

impl TryFrom<Map<String, Value>> for Answer {
    type Error = &'static str;

    fn try_from(answer: Map<String, Value>) -> Result<Answer, &'static str> {
        let word = answer.get("verdict").and_then(Value::as_str);
        let verdict = Verdict::ALL
            .into_iter()
            .find(|verdict| Some(verdict.name()) == word)
            .ok_or("no verdict")?;
        let reason = match answer.get("reason") {
            None => "",
            Some(reason) => reason.as_str().ok_or("a reason that is no text")?,
        };
        Ok(Answer {
            verdict,
            reason: reason.to_owned(),
        })
    }
}

impl Service for Asker {
    fn ask<'a>(&'a self, http: &'a Http, question: Vec<u8>) -> BoxFuture<'a, Reply> {
        self.asked(http, question).boxed()
    }
}

impl Asker {
    async fn asked(&self, http: &Http, question: Vec<u8>) -> Reply {
        let host = http.url.host_str().unwrap_or_default();
        let client = match service::is_here(host) {
            true => &self.here,
            false => &self.elsewhere,
        };
        let client = client.get_or_init(|| service::client(host).build().ok());
        let Some(client) = client else {
            return Reply::Unusable("no TLS: the system has no certificates".into());
        };
        match timeout(http.timeout, answered(client, http, question)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => {
                let text = service::without_address(&error);
                Reply::Unusable(clip(&text, LONGEST_REASON))
            }
            Err(_) => {
                let seconds = http.timeout.as_secs_f32();
                Reply::Unusable(format!("it did not answer within {seconds} s"))
            }
        }
    }
}

async fn answered(client: &Client, http: &Http, question: Vec<u8>) -> reqwest::Result<Reply> {
    let mut request = client
        .post(http.url.clone())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .body(question);
    if let Some(token) = &http.token {
        request = request.bearer_auth(token.expose());
    }
    let mut response = request.send().await?;
    let status = response.status();
    if status != StatusCode::OK {
        let text = format!("it answered {} instead of 200", status.as_u16());
        return Ok(Reply::Unusable(text));
    }
    Ok(match body::read(&mut response, MOST).await? {
        Some(body) => read(&body),
        None => Reply::Unusable(format!("its answer is longer than {} KiB", MOST / 1024)),
    })
}

fn read(body: &[u8]) -> Reply {
    match serde_json::from_slice(body) {
        Ok(Answer { verdict, reason }) => Reply::Verdict {
            verdict,
            reason: clip(reason.trim(), LONGEST_REASON),
        },
        Err(_) => Reply::Unusable("its answer is no verdict".into()),
    }
}

/// The verdict of a service.
pub fn judge(http: &Http, reply: Reply) -> Judgement {
    let host = http.url.host_str().unwrap_or_default();
    let (verdict, reason, evidence) = match reply {
        Reply::Verdict { verdict, reason } if reason.is_empty() => {
            let reason = format!("{host} says {}", verdict.name());
            (verdict, reason, json!({"host": host}))
        }
        Reply::Verdict { verdict, reason } => (verdict, reason, json!({"host": host})),
        Reply::Unusable(text) => (Verdict::Wait, format!("{host}: {text}"), Value::Null),
    };
    Judgement::answered(GateKind::Http, verdict, reason, evidence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_three_words_are_verdicts() {
        for (body, expected) in [
            (r#"{"verdict":"pass"}"#, Some(Verdict::Pass)),
            (
                r#"{"verdict":"wait","reason":"x","more":1}"#,
                Some(Verdict::Wait),
            ),
            (
                r#"{"verdict":"refuse","reason":"no"}"#,
                Some(Verdict::Refuse),
            ),
            (r#"{"verdict":"PASS"}"#, None),
            (r#"{"verdict":true}"#, None),
            (r#"{"verdict":{"pass":null}}"#, None),
            (r#"["pass","x"]"#, None),
            (r#"{"verdict":"pass","reason":7}"#, None),
            (r#"{"reason":"pass"}"#, None),
            ("pass", None),
            ("", None),
        ] {
            let found = match read(body.as_bytes()) {
                Reply::Verdict { verdict, .. } => Some(verdict),
                Reply::Unusable(_) => None,
            };
            assert_eq!(found, expected, "{body}");
        }
    }
}
