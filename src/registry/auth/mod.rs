//! Authorization at one registry, and the only owner of credentials.
//!
//! A request asks [`Authorizer::header`] what to send, and [`Authorizer::answer`] once when it was
//! refused. Credentials go to the registry itself and to token servers that `realm` accepts, over
//! https, or over http where that stays on this machine or the config says `insecure`. Once the
//! registry has named its token server, tokens are fetched ahead of every request, one at a time
//! for each set of scopes, and renewed before they end.
//!
//! A refused user password is not sent again for a while (see `login_backoff`); requests get the
//! remembered refusal meanwhile. An unproven password is sent by one request at a time. A token
//! server that refuses it with scopes is asked once without any: if it accepts it then, only those
//! scopes are refused.
//!
//! | known so far | credentials | sent ahead | after a 401 |
//! |---|---|---|---|
//! | nothing | ECR, bearer | the credentials | as the challenge says |
//! | nothing | any other | nothing | as the challenge says; without one, as `GET /v2/` says |
//! | Basic | any | user name and password | helper, file or AWS asked again; the same as before: final |
//! | Bearer | any | a token for the scopes | a new token; if that is refused within a minute: final |

mod cache;
mod challenge;
mod credentials;
pub mod docker;
mod helper;
mod login;
mod login_backoff;
mod realm;
mod scope;
#[cfg(test)]
mod tests;
mod token;

use std::fmt;
use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use tokio::time::Instant;
use url::Url;

pub use self::credentials::{Credentials, IssuedPassword, PasswordSource};
pub use self::scope::Scopes;

use self::cache::{Cache, Slot, TokenServer};
use self::challenge::Challenge;
use self::login::Login;
use self::login_backoff::LoginBackoff;
use self::token::{Answer, Token};
use super::redirect::AddressGuard;
use crate::byte_threads;
use crate::byte_threads::on_deciding_thread;
use crate::fault::{Class, Fault};
use crate::random;
use crate::registry::secrets::Secrets;

/// How long a token must have been good before its refusal is taken for its end and not for a final
/// no.
const SECOND_TRY: Duration = Duration::from_secs(60);
/// How long a token that the registry takes directly is used before its source is looked at again.
const DIRECT_LIFE: Duration = Duration::from_secs(300);

/// How to authorize at one registry.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The registry's name in the config.
    pub registry: String,
    /// Scheme, host and port of the registry.
    pub origin: Url,
    /// What to show.
    pub credentials: Credentials,
    /// Hosts (`host` or `host:port`) of token servers beyond the registry's own domain.
    pub token_realms: Vec<String>,
    /// Credentials may travel over plain http beyond this machine.
    pub insecure: bool,
    /// How long a whole token request may take; 15 seconds suit.
    pub deadline: Duration,
}

impl Settings {
    /// The usual settings: no foreign token server, nothing insecure, 15 seconds.
    pub fn new(registry: impl Into<String>, origin: Url, credentials: Credentials) -> Settings {
        let registry = registry.into();
        let deadline = Duration::from_secs(15);
        Settings {
            registry,
            origin,
            credentials,
            token_realms: Vec::new(),
            insecure: false,
            deadline,
        }
    }
}

/// The authorization of one registry. Cheap to clone; clones share what is known.
#[derive(Clone)]
pub struct Authorizer(Arc<Inner>);

struct Inner {
    settings: Settings,
    host: String,
    http: reqwest::Client,
    /// Judges where token servers are.
    guard: Option<Arc<AddressGuard>>,
    /// What was sent to the registry and its token servers.
    secrets: Secrets,
    hashing: RandomState,
    state: Mutex<AuthState>,
    /// Held while an unproven password is tried. Contains the last failure that did not concern the
    /// password.
    trial: tokio::sync::Mutex<Option<(Instant, Fault)>>,
}

#[derive(Default)]
struct AuthState {
    scheme: Option<Scheme>,
    cache: Cache,
    backoff: LoginBackoff,
    user: Option<String>,
}

#[derive(Clone)]
enum Scheme {
    Basic,
    Bearer(TokenServer),
}

impl Authorizer {
    /// The authorizer of one registry. `http` must not follow redirects.
    pub fn new(settings: Settings, http: reqwest::Client) -> Authorizer {
        Authorizer::with(settings, http, None)
    }

    /// The same; `guard` judges the addresses of token servers.
    pub(super) fn guarded(
        settings: Settings,
        http: reqwest::Client,
        guard: Arc<AddressGuard>,
    ) -> Authorizer {
        Authorizer::with(settings, http, Some(guard))
    }

    fn with(
        settings: Settings,
        http: reqwest::Client,
        guard: Option<Arc<AddressGuard>>,
    ) -> Authorizer {
        let host = settings.origin.host_str().unwrap_or_default();
        let host = settings
            .origin
            .port()
            .map_or(host.to_owned(), |port| format!("{host}:{port}"));
        let hashing = random::unpredictable();
        let trial = tokio::sync::Mutex::new(None);
        Authorizer(Arc::new(Inner {
            settings,
            host,
            http,
            guard,
            secrets: Secrets::default(),
            hashing,
            state: Mutex::default(),
            trial,
        }))
    }

    /// What to send with a request that needs `scopes`. `None`: nothing; either nothing is known
    /// yet, or there is nothing to show.
    ///
    /// # Errors
    /// `Auth` when the credentials cannot be had, are refused or must not be sent; `Retryable` when
    /// the token server is away.
    pub async fn header(&self, scopes: &Scopes) -> Result<Option<HeaderValue>, Fault> {
        if byte_threads::current() > 0 {
            return self.header_by_deciding_thread(scopes).await;
        }
        match self.0.scheme(scopes) {
            Some(Scheme::Bearer(server)) => self.0.token(scopes, &server, None).await,
            Some(Scheme::Basic) => self.0.direct(scopes).await,
            None if self.0.settings.credentials.are_preemptive() => self.0.direct(scopes).await,
            None => Ok(None),
        }
    }

    fn header_by_deciding_thread(
        &self,
        scopes: &Scopes,
    ) -> BoxFuture<'static, Result<Option<HeaderValue>, Fault>> {
        let authorizer = self.clone();
        let scopes = scopes.clone();
        on_deciding_thread(async move { authorizer.header(&scopes).await }).boxed()
    }

    /// What to send instead of `rejected` after a 401, or after a 403 that says that a token has
    /// expired; `challenges` are the headers of that answer. `None`: nothing better can be had, the
    /// refusal stands. The request is sent once more at most.
    ///
    /// # Errors
    /// As [`Authorizer::header`]; `Auth` too when the registry names a token server that it must
    /// not name.
    pub async fn answer(
        &self,
        scopes: &Scopes,
        challenges: &HeaderMap,
        rejected: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Fault> {
        if byte_threads::current() > 0 {
            let answer = self.answer_by_deciding_thread(scopes, challenges, rejected);
            return answer.await;
        }
        match self.0.learn_scheme(scopes, challenges, rejected).await? {
            Some(Scheme::Bearer(server)) => self.0.token(scopes, &server, rejected).await,
            Some(Scheme::Basic) => self.0.direct_again(scopes, rejected).await,
            None => Ok(None),
        }
    }

    fn answer_by_deciding_thread(
        &self,
        scopes: &Scopes,
        challenges: &HeaderMap,
        rejected: Option<&HeaderValue>,
    ) -> BoxFuture<'static, Result<Option<HeaderValue>, Fault>> {
        let authorizer = self.clone();
        let scopes = scopes.clone();
        let challenges = challenges.clone();
        let rejected = rejected.cloned();
        let answer = async move {
            let answer = authorizer.answer(&scopes, &challenges, rejected.as_ref());
            answer.await
        };
        on_deciding_thread(answer).boxed()
    }

    /// What was sent to the registry and its token servers.
    pub(super) fn secrets(&self) -> &Secrets {
        &self.0.secrets
    }

    /// When the credential or token in use that ends soonest does.
    pub fn expiry(&self) -> Option<Timestamp> {
        let tokens = self.0.state().cache.expiry();
        let issued = match &self.0.settings.credentials {
            Credentials::Issued(source) => source.expiry(),
            _ => None,
        };
        tokens.into_iter().chain(issued).min()
    }

    /// The principal at the registry, if known: a user name, an ARN, or "anonymous".
    pub fn user(&self) -> Option<String> {
        match &self.0.settings.credentials {
            Credentials::Issued(source) if source.identity().is_some() => {
                source.identity().map(str::to_owned)
            }
            Credentials::Anonymous => Some("anonymous".to_owned()),
            Credentials::Basic { username, .. } => Some(username.clone()),
            _ => self.0.state().user.clone(),
        }
    }
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Authorizer")
            .field(&self.0.settings.registry)
            .finish()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, AuthState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The scheme for `scopes`: what the registry said for them, else what it said last.
    fn scheme(&self, scopes: &Scopes) -> Option<Scheme> {
        let state = self.state();
        match state.cache.known(scopes) {
            Some(slot) if slot.in_doubt => None,
            Some(Slot {
                challenge: Some((server, _)),
                ..
            }) => Some(Scheme::Bearer(server.clone())),
            _ => state.scheme.clone(),
        }
    }

    /// Takes in the challenge of an answer; one without a challenge leaves what was known, or is
    /// made up for by asking `/v2/`.
    async fn learn_scheme(
        &self,
        scopes: &Scopes,
        headers: &HeaderMap,
        rejected: Option<&HeaderValue>,
    ) -> Result<Option<Scheme>, Fault> {
        let challenge = match (challenge::best(headers), self.scheme(scopes)) {
            (Some(challenge), _) => challenge,
            (None, Some(scheme)) => return Ok(Some(scheme)),
            // What was sent unasked is a scheme too.
            (None, None) if rejected.is_some() && self.settings.credentials.are_preemptive() => {
                return Ok(Some(Scheme::Basic));
            }
            (None, None) => match challenge::best(&self.ping(None).await?.1) {
                Some(challenge) => challenge,
                None => return Ok(None),
            },
        };
        let (scheme, named) = match challenge {
            Challenge::Basic => (Scheme::Basic, None),
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let settings = &self.settings;
                let realm = realm::accept(
                    &realm,
                    &settings.registry,
                    &settings.origin,
                    &settings.token_realms,
                )
                .map_err(|fault| self.secrets.scrub_quoting_fault(fault))?;
                let server = TokenServer { realm, service };
                let wanted = scopes.with_demanded(&scope).into();
                (Scheme::Bearer(server.clone()), Some((server, wanted)))
            }
        };
        let mut state = self.state();
        state.cache.slot(scopes).set_challenge(named);
        state.scheme = Some(scheme.clone());
        Ok(Some(scheme))
    }

    /// What to show for `scopes`, if it may be shown over this connection at all.
    async fn login(&self, scopes: &Scopes) -> Result<Login, Fault> {
        let login = self
            .settings
            .credentials
            .login(&self.host, scopes.repository())
            .await;
        self.allowed(login)
    }

    async fn login_after(&self, refused: &Login, scopes: &Scopes) -> Result<Login, Fault> {
        let login = self
            .settings
            .credentials
            .login_after(refused, &self.host, scopes.repository())
            .await;
        self.allowed(login)
    }

    fn allowed(&self, login: Result<Login, Fault>) -> Result<Login, Fault> {
        let login = login.map_err(|fault| {
            fault.while_doing(format_args!("credentials of {}", self.settings.registry))
        })?;
        if !login.is_anonymous() {
            self.check_plain(&self.settings.origin, "the registry")?;
        }
        login
            .parts()
            .iter()
            .for_each(|secret| self.secrets.sent(secret));
        self.state().user = Some(login.user());
        Ok(login)
    }

    fn check_plain(&self, url: &Url, what: &str) -> Result<(), Fault> {
        let local = url
            .host()
            .is_some_and(|host| realm::is_loopback(&host.to_owned()));
        if url.scheme() == "https" || local || self.settings.insecure {
            return Ok(());
        }
        let registry = &self.settings.registry;
        let origin = url.origin().ascii_serialization();
        let text = format!(
            "credentials of {registry} are not sent over plain http: {what} is {origin}; use https, or set insecure: true"
        );
        Err(Fault::new(Class::Auth, text))
    }

    /// The header that shows our credentials to the registry itself.
    async fn direct(&self, scopes: &Scopes) -> Result<Option<HeaderValue>, Fault> {
        let login = self.login(scopes).await?;
        let Some(header) = login.direct()? else {
            return Ok(None);
        };
        self.prove_login(&login, scopes, &header).await?;
        Ok(Some(header))
    }

    async fn direct_again(
        &self,
        scopes: &Scopes,
        rejected: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Fault> {
        let mut login = self.login(scopes).await?;
        if rejected.is_some() && login.direct()?.as_ref() == rejected {
            login = self.login_after(&login, scopes).await?;
        }
        let Some(header) = login.direct()? else {
            return Ok(None);
        };
        if Some(&header) != rejected {
            self.prove_login(&login, scopes, &header).await?;
            return Ok(Some(header));
        }
        // A password that was good may be so no more; a good one that lacks a right here stays good
        // elsewhere.
        self.state().backoff.doubt(login.fingerprint(&self.hashing));
        self.prove_login(&login, scopes, &header)
            .await
            .map(|()| None)
    }

    /// Sends an unproven password once before concurrent requests may send it.
    async fn prove_login(
        &self,
        login: &Login,
        scopes: &Scopes,
        header: &HeaderValue,
    ) -> Result<(), Fault> {
        if !self.settings.credentials.can_be_locked() {
            return Ok(());
        }
        let Some(trial) = self.trial(login).await? else {
            return Ok(());
        };
        self.state()
            .backoff
            .check(login.fingerprint(&self.hashing), scopes)?;
        trial.end(self.verify_login(login, scopes, header).await)
    }

    /// Sends a login to the version check. Only a 401 that challenges for a password rejects it.
    async fn verify_login(
        &self,
        login: &Login,
        scopes: &Scopes,
        header: &HeaderValue,
    ) -> Result<(), Fault> {
        let (status, headers) = self.ping(Some(header)).await?;
        let fingerprint = login.fingerprint(&self.hashing);
        let backoff = &mut self.state().backoff;
        if status != StatusCode::UNAUTHORIZED
            || matches!(challenge::best(&headers), Some(Challenge::Bearer { .. }))
        {
            backoff.accept(fingerprint, scopes);
            return Ok(());
        }
        let text = format!(
            "registry {} ({}) refuses the credentials of {}",
            self.settings.registry,
            self.host,
            login.user()
        );
        Err(backoff.refuse(fingerprint, None, &text))
    }

    /// The exclusive right to try an unproven login; `None` when the login needs no trial. Callers
    /// that waited for an inconclusive trial get its failure instead of trying again.
    async fn trial(&self, login: &Login) -> Result<Option<Trial<'_>>, Fault> {
        let fingerprint = login.fingerprint(&self.hashing);
        if login.is_anonymous() || self.state().backoff.is_proven(fingerprint) {
            return Ok(None);
        }
        let arrived = Instant::now();
        let trial = tokio::time::timeout(self.settings.deadline * 3, self.trial.lock())
            .await
            .map_err(|_| {
                Fault::retryable(format!(
                    "the credentials of {} are still being tried",
                    self.settings.registry
                ))
            })?;
        match trial.as_ref().filter(|(when, _)| *when >= arrived) {
            _ if self.state().backoff.is_proven(fingerprint) => Ok(None),
            Some((_, fault)) => Err(fault.duplicate()),
            None => Ok(Some(Trial(trial))),
        }
    }

    /// `GET /v2/`: the version check, which says how to authorize and whether we may come in.
    async fn ping(&self, header: Option<&HeaderValue>) -> Result<(StatusCode, HeaderMap), Fault> {
        let mut url = self.settings.origin.clone();
        url.set_path("/v2/");
        let mut request = self.http.get(url);
        if let Some(header) = header {
            request = request.header(AUTHORIZATION, header);
        }
        let registry = &self.settings.registry;
        let seconds = self.settings.deadline.as_secs_f32();
        let response = tokio::time::timeout(self.settings.deadline, request.send())
            .await
            .map_err(|_| {
                Fault::retryable(format!(
                    "registry {registry} did not answer GET /v2/ within {seconds} s"
                ))
            })?
            .map_err(|error| {
                Fault::retryable(format!("registry {registry} cannot be reached"))
                    .because(error.without_url())
            })?;
        Ok((response.status(), response.headers().clone()))
    }
}

/// The exclusive right to try an unproven login.
struct Trial<'a>(tokio::sync::MutexGuard<'a, Option<(Instant, Fault)>>);

impl Trial<'_> {
    /// Ends the trial. A retryable failure is left for the waiting callers.
    fn end<T>(mut self, result: Result<T, Fault>) -> Result<T, Fault> {
        if let Err(fault) = &result
            && fault.class().is_retryable()
        {
            *self.0 = Some((Instant::now(), fault.duplicate()));
        }
        result
    }
}

/// Tokens.
impl Inner {
    /// A token for `scopes` that is not `rejected`.
    async fn token(
        self: &Arc<Self>,
        scopes: &Scopes,
        server: &TokenServer,
        rejected: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Fault> {
        let (held, renewal) = {
            let mut state = self.state();
            let slot = state.cache.slot(scopes);
            if let Some(token) = slot
                .usable()
                .filter(|token| Some(&token.header) != rejected)
            {
                return Ok(Some(token.header.clone()));
            }
            (slot.token.clone(), Arc::clone(&slot.renewal))
        };
        let refused = held.filter(|token| Some(&token.header) == rejected);
        if refused
            .as_ref()
            .is_some_and(|token| token.second_try && token.age() < SECOND_TRY)
        {
            return Ok(None);
        }
        let inner = Arc::clone(self);
        let second_try = refused.is_some();
        let wanted = scopes.clone();
        let server = server.clone();
        let fetched = renewal
            .join(|| async move { inner.fetch(&wanted, &server, second_try).await })
            .await;
        match fetched {
            Ok(token) => Ok(Some(token.header.clone()).filter(|header| Some(header) != rejected)),
            Err(fault) => self.survivor(scopes, rejected, fault).map(Some),
        }
    }

    /// A token that has not ended outlives a failure to renew it, unless the registry has refused
    /// it. Without one the registry is asked for its challenge again before the next request: it
    /// may have moved its token server.
    fn survivor(
        &self,
        scopes: &Scopes,
        rejected: Option<&HeaderValue>,
        fault: Fault,
    ) -> Result<HeaderValue, Fault> {
        let mut state = self.state();
        let slot = state.cache.slot(scopes);
        match slot
            .survivor()
            .filter(|token| Some(&token.header) != rejected)
        {
            Some(token) => {
                let registry = &self.settings.registry;
                let error = fault.chain();
                tracing::debug!(
                    %registry,
                    %scopes,
                    %error,
                    "a token cannot be renewed; it is used until it ends"
                );
                Ok(token.header.clone())
            }
            None => {
                slot.in_doubt = true;
                Err(fault)
            }
        }
    }

    async fn fetch(
        &self,
        scopes: &Scopes,
        server: &TokenServer,
        second_try: bool,
    ) -> Result<Arc<Token>, Fault> {
        let mut login = self.login(scopes).await?;
        let mut granted = self.ask(scopes, server, &login).await?;
        if let Answer::Refused(_) = granted {
            // A helper's answer or a file may be older than the password.
            let other = self.login_after(&login, scopes).await?;
            if other.fingerprint(&self.hashing) != login.fingerprint(&self.hashing) {
                login = other;
                granted = self.ask(scopes, server, &login).await?;
            }
        }
        match granted {
            Answer::Granted(token, life) => {
                self.secrets.sent(token.expose_secret());
                let token = Arc::new(Token::new(login::bearer(&token)?, life, second_try));
                self.state().cache.slot(scopes).keep(&token);
                Ok(token)
            }
            Answer::Refused(text) | Answer::Denied(text) => Err(Fault::new(Class::Auth, text)),
        }
    }

    /// Asks the token server, unless it has refused the login of late.
    async fn ask(
        &self,
        scopes: &Scopes,
        server: &TokenServer,
        login: &Login,
    ) -> Result<Answer, Fault> {
        if let Login::Bearer(token) = login {
            return Ok(Answer::Granted(token.clone(), DIRECT_LIFE));
        }
        if !login.is_anonymous() {
            self.check_plain(&server.realm, "its token server")?;
        }
        match self.trial(login).await? {
            Some(trial) => trial.end(self.request(scopes, server, login).await),
            None => self.request(scopes, server, login).await,
        }
    }

    async fn request(
        &self,
        scopes: &Scopes,
        server: &TokenServer,
        login: &Login,
    ) -> Result<Answer, Fault> {
        let fingerprint = login.fingerprint(&self.hashing);
        let (wanted, is_doubted) = {
            let mut state = self.state();
            state.backoff.check(fingerprint, scopes)?;
            let challenge = state
                .cache
                .known(scopes)
                .and_then(|slot| slot.challenge.as_ref());
            let wanted: Arc<[String]> = challenge.map_or_else(
                || scopes.with_demanded("").into(),
                |(_, wanted)| Arc::clone(wanted),
            );
            (wanted, state.backoff.is_refused(fingerprint))
        };
        let mut answer = match is_doubted {
            true => self.ask_for(&[], server, login).await?,
            false => self.ask_for(&wanted, server, login).await?,
        };
        if is_doubted && matches!(answer, Answer::Granted(..)) {
            self.state().backoff.accept(fingerprint, &Scopes::none());
            answer = self.ask_for(&wanted, server, login).await?;
        } else if let Answer::Refused(text) = &answer
            && !is_doubted
            && !wanted.is_empty()
            && self.is_accepted(server, login).await
        {
            answer = Answer::Denied(text.clone());
        }
        let backoff = &mut self.state().backoff;
        Ok(match answer {
            Answer::Granted(..) => {
                backoff.accept(fingerprint, scopes);
                answer
            }
            Answer::Refused(text) => {
                Answer::Refused(backoff.refuse(fingerprint, None, &text).to_string())
            }
            Answer::Denied(text) => {
                Answer::Denied(backoff.refuse(fingerprint, Some(scopes), &text).to_string())
            }
        })
    }

    /// Whether the token server accepts the login where no scope is asked for, as `docker login`
    /// asks. Azure's answers 401, not 403, to a login that lacks a right to the scope.
    async fn is_accepted(&self, server: &TokenServer, login: &Login) -> bool {
        let answer = self.ask_for(&[], server, login).await;
        let is_accepted = matches!(answer, Ok(Answer::Granted(..)));
        if is_accepted {
            let fingerprint = login.fingerprint(&self.hashing);
            let backoff = &mut self.state().backoff;
            backoff.accept(fingerprint, &Scopes::none());
        }
        is_accepted
    }

    /// One request to the token server.
    async fn ask_for(
        &self,
        wanted: &[String],
        server: &TokenServer,
        login: &Login,
    ) -> Result<Answer, Fault> {
        let registry = self.settings.registry.as_str();
        let realm = &server.realm;
        let service = server.service.as_deref();
        if let Some(guard) = &self.guard {
            guard
                .admit(realm)
                .await
                .map_err(|refused| token::inside(registry, realm, &refused))?;
        }
        let request = token::Request {
            registry,
            realm,
            service,
            scopes: wanted,
            login,
            secrets: &self.secrets,
        };
        request.send(&self.http, self.settings.deadline).await
    }
}
