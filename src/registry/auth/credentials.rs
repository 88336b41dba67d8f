//! Where the credentials of a registry come from, and the login that they give for a repository.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use secrecy::SecretString;

use super::docker;
use super::login::Login;
use crate::fault::Fault;

/// Issues passwords that expire, such as the control plane of a cloud registry.
pub trait PasswordSource: Any + fmt::Debug + Send + Sync {
    /// The current password, requested when none is held or the held one is about to expire.
    fn password(&self) -> BoxFuture<'_, Result<IssuedPassword, Fault>>;

    /// Another password than `refused`, which the registry rejected.
    fn renewed<'a>(
        &'a self,
        refused: &'a SecretString,
    ) -> BoxFuture<'a, Result<IssuedPassword, Fault>>;

    /// When the held password expires.
    fn expiry(&self) -> Option<Timestamp>;

    /// The principal that the passwords are for, where it is known.
    fn identity(&self) -> Option<&str>;

    /// Whether the password is sent before the registry asks for one.
    fn is_preemptive(&self) -> bool;
}

/// A user name and a password that a [`PasswordSource`] issued.
#[derive(Clone, Debug)]
pub struct IssuedPassword {
    /// The user name.
    pub username: String,
    /// The password.
    pub password: SecretString,
}

/// Where the credentials of a registry come from.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// No credentials: public content only.
    Anonymous,
    /// A user name and a password.
    Basic {
        /// The user name.
        username: String,
        /// The password.
        password: SecretString,
    },
    /// A token that the registry itself takes, sent with each request.
    Bearer(SecretString),
    /// The Docker configuration, read again when it changes, and the credential helpers that it
    /// names.
    DockerConfig(docker::Store),
    /// Passwords that a control plane issues (Amazon ECR).
    Issued(Arc<dyn PasswordSource>),
}

impl Credentials {
    /// What to show at `host` (`host` or `host:port`) for `repository`.
    pub(super) async fn login(&self, host: &str, repository: Option<&str>) -> Result<Login, Fault> {
        match self {
            Credentials::Anonymous => Ok(Login::Anonymous),
            Credentials::Basic { username, password } => Ok(Login::Basic {
                username: username.clone(),
                password: password.clone(),
            }),
            Credentials::Bearer(token) => Ok(Login::Bearer(token.clone())),
            Credentials::DockerConfig(store) => store.login(host, repository).await,
            Credentials::Issued(source) => source.password().await.map(Login::from),
        }
    }

    /// The same after `refused` was refused: read, run or asked for again where that may bring
    /// another.
    pub(super) async fn login_after(
        &self,
        refused: &Login,
        host: &str,
        repository: Option<&str>,
    ) -> Result<Login, Fault> {
        match (self, refused) {
            (Credentials::DockerConfig(store), _) => store.login_afresh(host, repository).await,
            (Credentials::Issued(source), Login::Basic { password, .. }) => {
                source.renewed(password).await.map(Login::from)
            }
            _ => self.login(host, repository).await,
        }
    }

    /// Whether they are sent without waiting for a challenge.
    pub(super) fn are_preemptive(&self) -> bool {
        match self {
            Credentials::Bearer(_) => true,
            Credentials::Issued(source) => source.is_preemptive(),
            _ => false,
        }
    }

    /// Whether a person's password is behind them, which a registry may lock after too many wrong
    /// tries.
    pub(super) fn can_be_locked(&self) -> bool {
        matches!(
            self,
            Credentials::Basic { .. } | Credentials::DockerConfig(_)
        )
    }
}

impl From<IssuedPassword> for Login {
    fn from(issued: IssuedPassword) -> Login {
        Login::Basic {
            username: issued.username,
            password: issued.password,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_never_printed() {
        let secret = SecretString::from("hush-hush");
        let basic = Credentials::Basic {
            username: "joe".to_owned(),
            password: secret.clone(),
        };
        assert!(!format!("{basic:?} {:?}", Credentials::Bearer(secret)).contains("hush"));
    }
}
