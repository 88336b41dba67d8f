//! Tokens for private ECR registries, from `GetAuthorizationToken`. One call serves all concurrent
//! callers, ahead of expiry; a token that expires at once is requested at most every 60 seconds.
//!
//! A token is good for every registry that the caller may use in its region, for 12 hours. The
//! password may be of any length.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_ecr::config::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ecr::types::AuthorizationData;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::host::{self, EcrHost};
use crate::aws::{Access, Identity, Refusal, is_unknown_caller, refusal};
use crate::clock;
use crate::fault::{Class, Fault};
use crate::registry::auth::{Credentials, IssuedPassword, PasswordSource};
use crate::single_flight::SingleFlight;

/// The whole call, credentials included: the chain may ask a metadata service, a process and STS
/// first.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a token with a past `expiresAt` is used, and the least time between two replacements of
/// refused tokens.
const LEAST_LIFE: Duration = Duration::from_secs(60);
/// How long a good token outlives a failed attempt to replace it before the next attempt.
const PAUSE: Duration = Duration::from_secs(30);
/// The longest life of a token. It bounds the error of a wrong clock.
const MOST_LIFE: Duration = Duration::from_secs(12 * 3600);

/// The key of the config for another endpoint, for advice.
const ENDPOINT: &str = "ecr_endpoint";

/// How to reach the control plane, all of it optional.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The region; default: the one in the host's name, else the SDK's.
    pub region: Option<String>,
    /// A role to assume with the credentials found.
    pub role_arn: Option<String>,
    /// The external id that the role's trust policy asks for.
    pub external_id: Option<String>,
    /// Names the role's session in the audit trail; default: `blobferry`.
    pub session_name: Option<String>,
    /// The profile of the shared AWS configuration.
    pub profile: Option<String>,
    /// The account that owns the registry; default: the one in the host's name.
    pub account: Option<String>,
    /// The caller's ARN, for messages and records.
    pub identity: Option<String>,
    /// The control plane's URL, for emulators and private endpoints.
    pub endpoint: Option<String>,
    /// Only a guess makes the registry ECR: an emulator's control plane is set, and the registry is
    /// at such an address too. The token is not sent before the registry asks for a password.
    pub is_assumed: bool,
}

/// What ECR accepts as user name and password until `expires`.
#[derive(Clone, Debug)]
pub struct Token {
    /// Always `AWS` on ECR itself.
    pub username: String,
    /// The password.
    pub password: SecretString,
    /// When ECR says that it ends; may be past on emulators.
    pub expires: Timestamp,
}

/// The login to one ECR registry. Cheap to clone; clones share the client and the token.
#[derive(Clone)]
pub struct Login(Arc<Inner>, Arc<LoginTarget>);

/// The registry that a login is for.
struct LoginTarget {
    host: String,
    recognised: Option<EcrHost>,
    account: Option<String>,
    identity: Option<String>,
}

struct Inner {
    settings: Settings,
    host: String,
    recognised: Option<EcrHost>,
    client: OnceCell<Client>,
    held: Mutex<Option<Held>>,
    /// When a token was last replaced because it was refused.
    replaced: Mutex<Option<Instant>>,
    flight: SingleFlight<Token>,
}

struct Client {
    ecr: aws_sdk_ecr::Client,
    sts: aws_sdk_sts::Client,
    region: String,
    credentials: Option<SharedCredentialsProvider>,
}

impl Client {
    /// The id of the access key, which is no secret: what AWS does not know has no other name.
    async fn key_id(&self) -> Option<String> {
        let credentials = self.credentials.as_ref()?.provide_credentials();
        let credentials = tokio::time::timeout(DEADLINE / 6, credentials)
            .await
            .ok()?
            .ok()?;
        Some(credentials.access_key_id().to_owned())
    }
}

struct Held {
    token: Token,
    received: Instant,
    life: Duration,
    renew_at: Instant,
}

impl Login {
    /// The ECR login behind `credentials`, if they come from one.
    pub fn of(credentials: &Credentials) -> Option<&Login> {
        match credentials {
            Credentials::Issued(source) => (&**source as &dyn Any).downcast_ref(),
            _ => None,
        }
    }

    /// A login for the registry at `host` (`host` or `host:port`). Nothing is asked or read before
    /// the first token is wanted.
    pub fn new(settings: Settings, host: &str) -> Login {
        let place = LoginTarget::of(&settings, host);
        let recognised = place.recognised.clone();
        let inner = Inner {
            settings,
            host: host.to_owned(),
            recognised,
            client: OnceCell::new(),
            held: Mutex::new(None),
            replaced: Mutex::new(None),
            flight: SingleFlight::new(),
        };
        Login(Arc::new(inner), Arc::new(place))
    }

    /// A login for another registry that shares this one's token: same identity, region and
    /// endpoint. `None` when any of them differs.
    pub fn sharing_token(&self, settings: &Settings, host: &str) -> Option<Login> {
        let place = LoginTarget::of(settings, host);
        let who = |settings: &Settings, recognised: &Option<EcrHost>| {
            let Settings {
                region,
                role_arn,
                external_id,
                session_name,
                profile,
                endpoint,
                ..
            } = settings.clone();
            let fips = recognised.as_ref().is_some_and(|host| host.fips);
            let dual_stack = recognised.as_ref().is_some_and(|host| host.dual_stack);
            let region = region.or_else(|| recognised.as_ref().map(|host| host.region.clone()));
            (
                region,
                role_arn,
                external_id,
                session_name,
                profile,
                endpoint,
                fips,
                dual_stack,
            )
        };
        let private =
            !self.is_public() && !place.recognised.as_ref().is_some_and(|host| host.public);
        let same = private
            && who(&self.0.settings, &self.0.recognised) == who(settings, &place.recognised);
        same.then(|| Login(Arc::clone(&self.0), Arc::new(place)))
    }

    /// The token, asked for when none is held or the one held nears its end; one that still lasts
    /// survives a failure to replace it.
    ///
    /// # Errors
    /// `Auth` when AWS knows no credentials or refuses them, naming action and region; `Retryable`
    /// when it throttles or cannot be reached.
    pub async fn token(&self) -> Result<Token, Fault> {
        if let Some(token) = self
            .0
            .held()
            .as_ref()
            .filter(|held| Instant::now() < held.renew_at)
        {
            return Ok(token.token.clone());
        }
        let asked = self.ask().await;
        match asked {
            Err(fault) => self.0.still_valid().ok_or(fault),
            fresh => fresh,
        }
    }

    /// Another token than the one that was refused, asked for at once; but only once a minute: a
    /// refusal that a new token does not cure is final.
    pub async fn renewed(&self, refused: &SecretString) -> Result<Token, Fault> {
        if let Some(token) = self.0.reusable(refused) {
            return Ok(token);
        }
        // Callers that are refused meanwhile join this call.
        let fresh = self.ask().await?;
        *self
            .0
            .replaced
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(fresh)
    }

    /// When the held token ends.
    pub fn expiry(&self) -> Option<Timestamp> {
        self.0.held().as_ref().map(|held| held.token.expires)
    }

    /// The principal from the settings: the caller's or the role's ARN.
    pub fn identity(&self) -> Option<&str> {
        self.1
            .identity
            .as_deref()
            .or(self.0.settings.role_arn.as_deref())
    }

    /// The principal that the caller must be, if the settings require one.
    pub fn required_identity(&self) -> Option<&str> {
        self.1.identity.as_deref()
    }

    /// The account that owns the registry.
    pub fn account(&self) -> Option<&str> {
        let named = self
            .1
            .recognised
            .as_ref()
            .and_then(|host| host.account.as_deref());
        self.1.account.as_deref().or(named)
    }

    /// The region: the one in the settings, else the one in the host's name.
    pub fn region(&self) -> Option<&str> {
        let named = self.1.recognised.as_ref().map(|host| host.region.as_str());
        self.0.settings.region.as_deref().or(named)
    }

    /// The role that is assumed for it.
    pub fn role(&self) -> Option<&str> {
        self.0.settings.role_arn.as_deref()
    }

    /// The account that only the settings name: the host does not tell whether it is right.
    pub(super) fn presumed_account(&self) -> Option<&str> {
        self.1
            .account
            .as_deref()
            .filter(|_| self.1.recognised.is_none())
    }

    /// Whether only a guess makes the registry ECR: see [`Settings::is_assumed`].
    pub fn is_assumed(&self) -> bool {
        self.0.settings.is_assumed
    }

    /// Whether this is the public registry, which has another control plane.
    pub fn is_public(&self) -> bool {
        self.1.recognised.as_ref().is_some_and(|host| host.public)
    }

    /// The host that it is for.
    pub fn host(&self) -> &str {
        &self.1.host
    }

    /// The client of the control plane and its region.
    pub(super) async fn plane(&self) -> Result<(aws_sdk_ecr::Client, String), Fault> {
        let client = self.0.client.get_or_try_init(|| self.0.connect()).await?;
        Ok((client.ecr.clone(), client.region.clone()))
    }

    /// The ARN and the account of the caller, as AWS sees it.
    pub(super) async fn caller(&self) -> Result<(String, String), Fault> {
        let client = self.0.client.get_or_try_init(|| self.0.connect()).await?;
        let answer = client.sts.get_caller_identity().send().await;
        let answer = answer.map_err(|error| {
            refusal(
                "sts:GetCallerIdentity",
                &error,
                &client.region,
                self.host(),
                ENDPOINT,
            )
            .fault
        })?;
        match (answer.arn, answer.account) {
            (Some(arn), Some(account)) => Ok((arn, account)),
            _ => Err(Fault::new(
                Class::Auth,
                format!("sts:GetCallerIdentity for {} names no caller", self.host()),
            )),
        }
    }

    /// What a failed call of the control plane means; `about` is what was acted on.
    pub(super) async fn refusal<E, R>(
        &self,
        action: &str,
        error: &SdkError<E, R>,
        about: &str,
    ) -> Refusal
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        R: fmt::Debug + Send + Sync + 'static,
    {
        self.0.refusal(action, error, about).await
    }

    async fn ask(&self) -> Result<Token, Fault> {
        let inner = Arc::clone(&self.0);
        self.0
            .flight
            .join(|| async move { inner.ask().await })
            .await
    }
}

impl PasswordSource for Login {
    fn password(&self) -> BoxFuture<'_, Result<IssuedPassword, Fault>> {
        async { self.token().await.map(IssuedPassword::from) }.boxed()
    }

    fn renewed<'a>(
        &'a self,
        refused: &'a SecretString,
    ) -> BoxFuture<'a, Result<IssuedPassword, Fault>> {
        async { self.renewed(refused).await.map(IssuedPassword::from) }.boxed()
    }

    fn expiry(&self) -> Option<Timestamp> {
        self.expiry()
    }

    fn identity(&self) -> Option<&str> {
        self.identity()
    }

    fn is_preemptive(&self) -> bool {
        !self.is_assumed()
    }
}

impl From<Token> for IssuedPassword {
    fn from(token: Token) -> IssuedPassword {
        IssuedPassword {
            username: token.username,
            password: token.password,
        }
    }
}

impl From<Login> for Credentials {
    fn from(login: Login) -> Credentials {
        Credentials::Issued(Arc::new(login))
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ecr::Login")
            .field("host", &self.1.host)
            .field("settings", &self.0.settings)
            .finish_non_exhaustive()
    }
}

impl LoginTarget {
    fn of(settings: &Settings, host: &str) -> LoginTarget {
        let Settings {
            account, identity, ..
        } = settings.clone();
        LoginTarget {
            host: host.to_owned(),
            recognised: host::recognise(host),
            account,
            identity,
        }
    }
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The held token when it still lasts; the next attempt to replace it waits a little.
    fn still_valid(&self) -> Option<Token> {
        let mut held = self.held();
        let held = held
            .as_mut()
            .filter(|held| held.received.elapsed() < held.life)?;
        held.renew_at = Instant::now() + PAUSE;
        Some(held.token.clone())
    }

    /// The held token, if it is another one than `refused`, or if one was replaced for that reason
    /// a moment ago.
    fn reusable(&self, refused: &SecretString) -> Option<Token> {
        use secrecy::ExposeSecret as _;
        let held = self.held();
        let held = held.as_ref()?;
        let same = held.token.password.expose_secret() == refused.expose_secret();
        let replaced = *self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        (!same || replaced.is_some_and(|at| at.elapsed() < LEAST_LIFE)).then(|| held.token.clone())
    }

    async fn ask(&self) -> Result<Token, Fault> {
        if self.recognised.as_ref().is_some_and(|host| host.public) {
            let text = format!(
                "{} does not take tokens of private ECR: use auth: docker-config or anonymous",
                self.host
            );
            return Err(Fault::new(Class::Auth, text));
        }
        let token = tokio::time::timeout(DEADLINE, self.call())
            .await
            .map_err(|_| {
                Fault::retryable(format!(
                    "AWS gave no ECR token for {} within {} s",
                    self.host,
                    DEADLINE.as_secs()
                ))
            })??;
        *self.held() = Some(Held::new(token.clone()));
        Ok(token)
    }

    async fn call(&self) -> Result<Token, Fault> {
        let client = self.client.get_or_try_init(|| self.connect()).await?;
        let answer = client.ecr.get_authorization_token().send().await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                return Err(self
                    .refusal("ecr:GetAuthorizationToken", &error, &self.host)
                    .await
                    .fault);
            }
        };
        answer
            .authorization_data()
            .first()
            .and_then(read)
            .ok_or_else(|| {
                let text = format!(
                    "ecr:GetAuthorizationToken in {} for {} answered without a usable token",
                    client.region, self.host
                );
                Fault::new(Class::Auth, text)
            })
    }

    /// What a failed call means. Where AWS does not name the principal, the role or the access key
    /// is added.
    async fn refusal<E, R>(&self, action: &str, error: &SdkError<E, R>, about: &str) -> Refusal
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        R: fmt::Debug + Send + Sync + 'static,
    {
        let client = self.client.get();
        let code = error.as_service_error().and_then(|service| service.code());
        let who = match (&self.settings.role_arn, client) {
            _ if !code.is_some_and(is_unknown_caller) => None,
            (Some(role), _) => Some(role.clone()),
            (None, Some(client)) => client.key_id().await.map(|key| format!("access key {key}")),
            (None, None) => None,
        };
        let who = who.map(|who| format!(" as {who}")).unwrap_or_default();
        refusal(
            action,
            error,
            client.map_or("no region", |client| &client.region),
            &format!("{about}{who}"),
            ENDPOINT,
        )
    }

    async fn connect(&self) -> Result<Client, Fault> {
        let base = self.access().load().await;
        let region = base.region().cloned().ok_or_else(|| {
            let text = format!("no AWS region is known for {}: set region", self.host);
            Fault::new(Class::Auth, text)
        })?;
        let mut config = aws_sdk_ecr::config::Builder::from(&base);
        if let Some(endpoint) = &self.settings.endpoint {
            config = config.endpoint_url(endpoint);
        }
        let sts = aws_sdk_sts::Client::new(&base);
        let credentials = base.credentials_provider();
        Ok(Client {
            ecr: aws_sdk_ecr::Client::from_conf(config.build()),
            sts,
            region: region.to_string(),
            credentials,
        })
    }

    fn access(&self) -> Access {
        let Settings {
            region,
            role_arn,
            external_id,
            session_name,
            profile,
            ..
        } = self.settings.clone();
        let recognised = self.recognised.as_ref();
        Access {
            identity: Identity {
                profile,
                role_arn,
                external_id,
                session_name,
            },
            region: region.or_else(|| recognised.map(|host| host.region.clone())),
            fips: recognised.is_some_and(|host| host.fips),
            dual_stack: recognised.is_some_and(|host| host.dual_stack),
        }
    }
}

impl Held {
    /// Counts from now on: the instant that ECR names is only compared with our clock once.
    fn new(token: Token) -> Held {
        let received = Instant::now();
        let left =
            Duration::try_from(token.expires.duration_since(clock::now())).unwrap_or_default();
        let life = left.clamp(LEAST_LIFE, MOST_LIFE);
        let early = if life > LEAST_LIFE {
            life / 10
        } else {
            Duration::ZERO
        };
        Held {
            token,
            received,
            life,
            renew_at: received + life - early,
        }
    }
}

fn read(data: &AuthorizationData) -> Option<Token> {
    let plain =
        String::from_utf8(STANDARD.decode(data.authorization_token()?.trim()).ok()?).ok()?;
    let (username, password) = plain.split_once(':')?;
    let expires = data
        .expires_at()
        .and_then(|at| Timestamp::from_second(at.secs()).ok());
    // Without a date the token is taken for one that does not last.
    let expires = expires.unwrap_or_else(clock::now);
    let usable = !username.is_empty() && !password.is_empty();
    usable.then(|| Token {
        username: username.to_owned(),
        password: password.into(),
        expires,
    })
}

#[cfg(test)]
mod tests;
