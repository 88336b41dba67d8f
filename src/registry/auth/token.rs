//! One request to a token server, and what its answer means.
//!
//! GET with repeated `scope` for user names and anonymous access
//! (<https://distribution.github.io/distribution/spec/auth/token/>); the OAuth2 POST for identity
//! tokens, then GET if a user name is known. Redirects are not followed: they could send our
//! credentials to any host.

use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;
use url::Url;
use url::form_urlencoded::Serializer;

use super::login::{self, Login};
use crate::body;
use crate::clock;
use crate::fault::{Class, Fault, clip};
use crate::registry::error::{cause, named_wait};
use crate::registry::redirect::Refused;
use crate::registry::secrets::Secrets;

/// Largest answer, in bytes.
const MOST_BYTES: usize = 64 * 1024;
/// Lifetime of a token without `expires_in` (token specification).
const USUAL_LIFE: Duration = Duration::from_secs(60);
/// Whatever a server promises, tokens are asked for anew after a day.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// The longest wait that is taken from a server.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
const CLIENT: &str = "blobferry";

/// What a registry takes as authorization for a while.
#[derive(Clone, Debug)]
pub(super) struct Token {
    /// The header to send.
    pub(super) header: HeaderValue,
    received: Instant,
    life: Duration,
    /// When it ends, by our clock.
    pub(super) expires: Timestamp,
    /// It came in the place of one that the registry had refused.
    pub(super) second_try: bool,
}

impl Token {
    /// A token received just now.
    pub(super) fn new(header: HeaderValue, life: Duration, second_try: bool) -> Token {
        let life = life.min(LONGEST_LIFE);
        let expires = clock::now().checked_add(life).unwrap_or(Timestamp::MAX);
        Token {
            header,
            received: Instant::now(),
            life,
            expires,
            second_try,
        }
    }

    /// Whether it can be sent without a thought of its end.
    pub(super) fn is_fresh(&self) -> bool {
        let early = (self.life / 10)
            .max(Duration::from_secs(5))
            .min(self.life / 2);
        self.received.elapsed() < self.life - early
    }

    /// Whether it has not ended.
    pub(super) fn is_alive(&self) -> bool {
        self.received.elapsed() < self.life
    }

    /// How long ago it came.
    pub(super) fn age(&self) -> Duration {
        self.received.elapsed()
    }
}

/// What is asked of a token server.
pub(super) struct Request<'a> {
    /// The registry's name in the config.
    pub(super) registry: &'a str,
    /// Where to ask: checked before.
    pub(super) realm: &'a Url,
    /// How the registry is called there.
    pub(super) service: Option<&'a str>,
    /// What the token is to allow, the most important first.
    pub(super) scopes: &'a [String],
    /// The login that the token is for.
    pub(super) login: &'a Login,
    /// What must not come back in the answer's words.
    pub(super) secrets: &'a Secrets,
}

/// What a token server did.
#[derive(Debug)]
pub(super) enum Answer {
    /// It gave a token that lasts so long.
    Granted(SecretString, Duration),
    /// It does not accept the login at all.
    Refused(String),
    /// It does not give this login these scopes.
    Denied(String),
}

impl Request<'_> {
    /// Asks, in the form that suits the login.
    ///
    /// # Errors
    /// `Retryable` when the server is away, busy or silent for `deadline`; `Auth` and `Rejected`
    /// for answers that make no sense.
    pub(super) async fn send(
        &self,
        http: &reqwest::Client,
        deadline: Duration,
    ) -> Result<Answer, Fault> {
        tokio::time::timeout(deadline, self.ask(http))
            .await
            .map_err(|_| {
                Fault::retryable(format!(
                    "{} did not answer within {} s",
                    self.server(),
                    deadline.as_secs_f32()
                ))
            })?
    }

    async fn ask(&self, http: &reqwest::Client) -> Result<Answer, Fault> {
        match self.login {
            Login::Identity { username, token } => {
                let reply = self.exchange(self.oauth(http, token)).await?;
                let unknown_form = matches!(reply.status.as_u16(), 400 | 404 | 405);
                match username
                    .as_deref()
                    .filter(|_| unknown_form && !reply.says_invalid_grant())
                {
                    Some(username) => {
                        let reply = self
                            .exchange(self.plain(http, Some(login::basic(username, token)?)))
                            .await?;
                        self.judge(&reply)
                    }
                    None => self.judge(&reply),
                }
            }
            login => self.judge(&self.exchange(self.plain(http, login.direct()?)).await?),
        }
    }

    fn plain(
        &self,
        http: &reqwest::Client,
        authorization: Option<HeaderValue>,
    ) -> reqwest::RequestBuilder {
        let mut url = self.realm.clone();
        let scopes = self.scopes.iter().map(|scope| ("scope", scope.as_str()));
        let service = self.service.map(|service| ("service", service));
        url.query_pairs_mut()
            .extend_pairs(service)
            .extend_pairs(scopes)
            .append_pair("client_id", CLIENT);
        let request = http.get(url).header(ACCEPT, "application/json");
        match authorization {
            Some(authorization) => request.header(AUTHORIZATION, authorization),
            None => request,
        }
    }

    fn oauth(&self, http: &reqwest::Client, token: &SecretString) -> reqwest::RequestBuilder {
        let mut form = Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", token.expose_secret());
        form.append_pair("client_id", CLIENT)
            .extend_pairs(self.service.map(|service| ("service", service)));
        if !self.scopes.is_empty() {
            form.append_pair("scope", &self.scopes.join(" "));
        }
        let request = http
            .post(self.realm.clone())
            .header(ACCEPT, "application/json");
        request
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.finish())
    }

    async fn exchange(&self, request: reqwest::RequestBuilder) -> Result<Reply, Fault> {
        let mut response = request.send().await.map_err(|error| self.lost(error))?;
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let body = body::read(&mut response, MOST_BYTES)
            .await
            .map_err(|error| self.lost(error))?;
        let Some(body) = body else {
            let text = format!("{} answers more than 64 KiB", self.server());
            return Err(Fault::new(Class::Auth, text));
        };
        Ok(Reply {
            status,
            headers,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        })
    }

    fn judge(&self, reply: &Reply) -> Result<Answer, Fault> {
        let said = reply.said(self.secrets);
        let status = reply.status.as_u16();
        match status {
            200..=299 => self.grant(reply),
            401 if self.login.is_anonymous() => {
                let denial = self.denial("wants credentials", &said);
                Ok(Answer::Denied(format!(
                    "{denial}; set `username` and `password_file`, or log in with `docker login`"
                )))
            }
            401 => Ok(Answer::Refused(
                self.denial("refuses the credentials", &said),
            )),
            400 if reply.says_invalid_grant() => Ok(Answer::Refused(
                self.denial("refuses the identity token", &said),
            )),
            403 => Ok(Answer::Denied(self.denial("denies a token", &said))),
            300..=399 => {
                let to = reply.target(self.realm).unwrap_or_default();
                let to = self.secrets.scrub(&to);
                Err(Fault::new(
                    Class::Auth,
                    format!("{} redirects{to}, which is not followed", self.server()),
                ))
            }
            408 | 425 | 429 | 500..=599 => {
                let after = reply.wait();
                Err(Fault::new(
                    Class::Retryable { after },
                    format!("{} answers {status}{said}", self.server()),
                ))
            }
            _ => Err(Fault::rejected(format!(
                "{} answers {status}{said}",
                self.server()
            ))),
        }
    }

    fn lost(&self, error: reqwest::Error) -> Fault {
        match cause::<Refused>(&error) {
            Some(refused) => inside(self.registry, self.realm, refused),
            None => Fault::retryable(format!("{} cannot be reached", self.server()))
                .because(error.without_url()),
        }
    }

    fn unusable(&self, what: &str) -> Fault {
        Fault::new(Class::Auth, format!("{} {what}", self.server()))
    }

    fn grant(&self, reply: &Reply) -> Result<Answer, Fault> {
        let given: TokenResponse = TokenResponse::deserialize(&reply.body).map_err(|_| {
            self.unusable(&format!(
                "answers {} without a token{}",
                reply.status.as_u16(),
                reply.kind(self.secrets)
            ))
        })?;
        let token = [given.token, given.access_token]
            .into_iter()
            .flatten()
            .find(|token| !token.expose_secret().trim().is_empty())
            .ok_or_else(|| self.unusable("gives an empty token"))?;
        Ok(Answer::Granted(token, life(&given.expires_in)))
    }

    fn denial(&self, verdict: &str, said: &str) -> String {
        let scopes = if self.scopes.is_empty() {
            String::new()
        } else {
            format!(" for {}", clip(&self.scopes.join(" "), 300))
        };
        format!(
            "{} {verdict} of {}{scopes}{said}",
            self.server(),
            self.login.user()
        )
    }

    /// The server's name in messages: never its query.
    fn server(&self) -> String {
        server(self.registry, self.realm)
    }
}

fn server(registry: &str, realm: &Url) -> String {
    let origin = realm.origin().ascii_serialization();
    format!(
        "the token server of {registry}, {origin}{}",
        clip(realm.path(), 100)
    )
}

/// A token server is where it must not be.
pub(super) fn inside(registry: &str, realm: &Url, refused: &Refused) -> Fault {
    let host = realm.host_str().unwrap_or_default();
    let way_out = format!("if it is right, add \"{host}\" to token_realms of {registry}");
    Fault::new(
        Class::Auth,
        format!("{}: {refused}; {way_out}", server(registry, realm)),
    )
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<SecretString>,
    access_token: Option<SecretString>,
    #[serde(default)]
    expires_in: Value,
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Reply {
    /// The peer's own reason, as `": reason"`, fit for a message. Nothing else of a body is ever
    /// quoted.
    fn said(&self, secrets: &Secrets) -> String {
        let errors = self
            .body
            .get("errors")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let messages = errors
            .iter()
            .take(3)
            .filter_map(|error| error.get("message"));
        let others = ["details", "error_description", "message"]
            .iter()
            .filter_map(|name| self.body.get(name));
        let all: Vec<String> = messages
            .chain(others)
            .filter_map(Value::as_str)
            .filter(|text| !text.is_empty())
            .map(|text| clip(&secrets.scrub(text), 200))
            .collect();
        if all.is_empty() {
            String::new()
        } else {
            format!(": {}", all.join("; "))
        }
    }

    fn says_invalid_grant(&self) -> bool {
        let code = self.body.get("error").and_then(Value::as_str);
        matches!(
            code,
            Some("invalid_grant" | "unauthorized_client" | "invalid_client")
        )
    }

    /// What the body is, when it is not what it should be.
    fn kind(&self, secrets: &Secrets) -> String {
        let kind = self
            .headers
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok());
        kind.map_or(String::new(), |kind| {
            format!(" ({})", clip(&secrets.scrub(kind), 60))
        })
    }

    fn target(&self, realm: &Url) -> Option<String> {
        let location = self.headers.get(LOCATION)?.to_str().ok()?;
        let target = realm.join(location).ok()?;
        Some(format!(" to {}", target.origin().ascii_serialization()))
    }

    fn wait(&self) -> Option<Duration> {
        let text = self.headers.get(RETRY_AFTER)?.to_str().ok()?;
        Some(named_wait(text, clock::now())?.min(LONGEST_WAIT))
    }
}

/// Some servers write the number as text; nonsense counts as nothing said.
fn life(expires_in: &Value) -> Duration {
    let seconds = expires_in
        .as_f64()
        .or_else(|| expires_in.as_str()?.trim().parse().ok());
    let seconds = seconds.filter(|seconds| seconds.is_finite() && *seconds >= 1.0);
    seconds.map_or(USUAL_LIFE, |seconds| {
        Duration::from_secs_f64(seconds.min(LONGEST_LIFE.as_secs_f64()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(login: &Login, status: u16, body: &str) -> Result<Answer, Fault> {
        let realm = Url::parse("https://auth.example.com/token?secret=hush").unwrap();
        let scopes = ["repository:app:pull".to_owned()];
        let secrets = Secrets::default();
        login.parts().iter().for_each(|secret| secrets.sent(secret));
        let request = Request {
            registry: "staging",
            realm: &realm,
            service: None,
            scopes: &scopes,
            login,
            secrets: &secrets,
        };
        let status = StatusCode::from_u16(status).unwrap();
        request.judge(&Reply {
            status,
            headers: HeaderMap::new(),
            body: serde_json::from_str(body).unwrap_or(Value::Null),
        })
    }

    #[test]
    fn every_answer_has_its_meaning() {
        let login = Login::Basic {
            username: "joe".to_owned(),
            password: "hush".into(),
        };
        let rows = [
            (200, r#"{"token":"t"}"#, "granted t 60"),
            (
                200,
                r#"{"access_token":"t","expires_in":300}"#,
                "granted t 300",
            ),
            (
                200,
                r#"{"token":"","access_token":"t","expires_in":"90"}"#,
                "granted t 90",
            ),
            (
                201,
                r#"{"token":"t","access_token":"u","expires_in":0}"#,
                "granted t 60",
            ),
            (200, r#"{"token":"t","expires_in":-5}"#, "granted t 60"),
            (
                200,
                r#"{"token":"t","expires_in":1e300,"issued_at":"1999"}"#,
                "granted t 86400",
            ),
            (200, r#"{"token":"t","expires_in":null}"#, "granted t 60"),
            (200, r#"{"token":""}"#, "auth"),
            (200, r#"{"token":5}"#, "auth"),
            (200, "{}", "auth"),
            (200, "[]", "auth"),
            (200, "<html>log in</html>", "auth"),
            (
                401,
                r#"{"details":"incorrect username or password"}"#,
                "refused",
            ),
            (
                403,
                r#"{"errors":[{"code":"DENIED","message":"access forbidden"}]}"#,
                "denied",
            ),
            (400, r#"{"error":"invalid_grant"}"#, "refused"),
            (400, r#"{"errors":[{"message":"bad scope"}]}"#, "rejected"),
            (404, "", "rejected"),
            (302, "", "auth"),
            (429, "", "retryable"),
            (500, "<html>", "retryable"),
            (503, "", "retryable"),
        ];
        for (status, body, expected) in rows {
            let meaning = match judged(&login, status, body) {
                Ok(Answer::Granted(token, life)) => {
                    format!("granted {} {}", token.expose_secret(), life.as_secs())
                }
                Ok(Answer::Refused(text)) => text
                    .split_once("joe")
                    .map(|_| "refused".to_owned())
                    .expect("names the user"),
                Ok(Answer::Denied(text)) => text
                    .split_once("repository:app:pull")
                    .map(|_| "denied".to_owned())
                    .expect("names it"),
                Err(fault) => fault.class().name().to_owned(),
            };
            assert_eq!(meaning, expected, "{status} {body}");
        }
        let anonymous = judged(&Login::Anonymous, 401, "");
        assert!(
            matches!(anonymous, Ok(Answer::Denied(text)) if text.contains("wants credentials") && text.contains("docker login"))
        );
    }

    #[test]
    fn a_server_that_echoes_the_password_is_not_quoted_with_it() {
        let login = Login::Basic {
            username: "joe".to_owned(),
            password: "hush-hush".into(),
        };
        let body = r#"{"errors":[{"message":"hush-hush is wrong\n"},{"message":"Basic am9lOmh1c2gtaHVzaA=="}],"other":"x"}"#;
        for status in [401, 403, 404, 500] {
            let text = format!("{:?}", judged(&login, status, body));
            assert!(
                !text.contains("hush") && !text.contains("am9l") && text.contains("is wrong"),
                "{text}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_are_renewed_early_but_never_at_once() {
        let header = HeaderValue::from_static("Bearer x");
        for (life, fresh) in [(300, 270), (60, 54), (20, 15), (4, 2), (1, 0)] {
            let token = Token::new(header.clone(), Duration::from_secs(life), false);
            let mut seconds = 0;
            assert!(token.is_fresh());
            while token.is_fresh() {
                tokio::time::advance(Duration::from_secs(1)).await;
                seconds += 1;
            }
            assert!(
                seconds - 1 <= fresh && seconds >= fresh,
                "{life}: {seconds}"
            );
            assert_eq!(token.is_alive(), seconds < life);
        }
    }
}
