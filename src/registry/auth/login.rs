//! The login for one repository: what is sent to the registry or to its token server.

use std::fmt;
use std::hash::{BuildHasher, Hash as _, Hasher as _, RandomState};

use http::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};

use crate::fault::{Class, Fault};
use crate::registry::secrets;

/// The user name that marks a password as an identity token.
pub(super) const TOKEN_USER: &str = "<token>";

/// What is shown for one repository.
#[derive(Clone)]
pub(super) enum Login {
    /// Nothing.
    Anonymous,
    /// A user name and a password.
    Basic {
        username: String,
        password: SecretString,
    },
    /// A refresh token for the token server; some servers take it as the password of `username`
    /// too.
    Identity {
        username: Option<String>,
        token: SecretString,
    },
    /// A token for the registry itself.
    Bearer(SecretString),
}

impl Login {
    /// A user name and a secret. The user name `<token>` marks the secret as an identity token:
    /// <https://docs.docker.com/reference/cli/docker/login/#credential-helper-protocol>.
    pub(super) fn from_pair(username: String, password: SecretString) -> Login {
        if username == TOKEN_USER {
            return Login::Identity {
                username: None,
                token: password,
            };
        }
        Login::Basic { username, password }
    }

    pub(super) fn is_anonymous(&self) -> bool {
        matches!(self, Login::Anonymous)
    }

    /// The user, for messages.
    pub(super) fn user(&self) -> String {
        match self {
            Login::Anonymous => "anonymous".to_owned(),
            Login::Basic { username, .. }
            | Login::Identity {
                username: Some(username),
                ..
            } => username.clone(),
            Login::Identity { username: None, .. } => "identity token".to_owned(),
            Login::Bearer(_) => "bearer token".to_owned(),
        }
    }

    /// The header that shows it to the registry itself, without a token server. `None`: there is no
    /// such header.
    pub(super) fn direct(&self) -> Result<Option<HeaderValue>, Fault> {
        match self {
            Login::Basic { username, password } => basic(username, password).map(Some),
            Login::Bearer(token) => bearer(token).map(Some),
            Login::Anonymous | Login::Identity { .. } => Ok(None),
        }
    }

    /// A number that tells one login from another without saying anything about either.
    pub(super) fn fingerprint(&self, hashing: &RandomState) -> u64 {
        let mut hasher = hashing.build_hasher();
        std::mem::discriminant(self).hash(&mut hasher);
        self.user().hash(&mut hasher);
        self.secret().hash(&mut hasher);
        hasher.finish()
    }

    /// What is sent of it and must not come back: the secret, and how a header writes it.
    pub(super) fn parts(&self) -> Vec<String> {
        let secret = self.secret().to_owned();
        match self {
            Login::Anonymous => Vec::new(),
            Login::Basic { username, .. }
            | Login::Identity {
                username: Some(username),
                ..
            } => {
                vec![secrets::basic(username, &secret), secret]
            }
            Login::Identity { username: None, .. } | Login::Bearer(_) => vec![secret],
        }
    }

    fn secret(&self) -> &str {
        match self {
            Login::Anonymous => "",
            Login::Basic {
                password: secret, ..
            }
            | Login::Identity { token: secret, .. }
            | Login::Bearer(secret) => secret.expose_secret(),
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.user())
    }
}

/// `Authorization: Basic` (RFC 7617).
pub(super) fn basic(username: &str, password: &SecretString) -> Result<HeaderValue, Fault> {
    if username.contains(':') {
        return Err(Fault::new(
            Class::Auth,
            format!("the user name \"{username}\" holds a colon, which no registry can read"),
        ));
    }
    sensitive(&format!(
        "Basic {}",
        secrets::basic(username, password.expose_secret())
    ))
}

/// `Authorization: Bearer` (RFC 6750).
pub(super) fn bearer(token: &SecretString) -> Result<HeaderValue, Fault> {
    sensitive(&format!("Bearer {}", token.expose_secret()))
}

fn sensitive(text: &str) -> Result<HeaderValue, Fault> {
    let mut header = HeaderValue::from_str(text).map_err(|_| {
        Fault::new(
            Class::Auth,
            "a token holds characters that no header can carry",
        )
    })?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_printed_holds_a_secret() {
        let secret = SecretString::from("hush-hush");
        let logins = [
            Login::Basic {
                username: "joe".to_owned(),
                password: secret.clone(),
            },
            Login::Identity {
                username: None,
                token: secret.clone(),
            },
            Login::Bearer(secret.clone()),
        ];
        for login in logins {
            let header = login.direct().unwrap();
            assert!(!format!("{login:?} {header:?}").contains("hush"));
            let echo = format!(
                "bad password hush-hush in {}",
                header
                    .as_ref()
                    .map_or("", |header| header.to_str().unwrap())
            );
            let sent = secrets::Secrets::default();
            login.parts().iter().for_each(|secret| sent.sent(secret));
            let scrubbed = sent.scrub(&echo);
            assert!(
                !scrubbed.contains("hush") && !scrubbed.contains("am9l"),
                "{scrubbed}"
            );
        }
    }

    #[test]
    fn another_password_is_another_login() {
        let hashing = crate::random::unpredictable();
        let of = |password: &str| {
            Login::Basic {
                username: "joe".to_owned(),
                password: password.into(),
            }
            .fingerprint(&hashing)
        };
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
        assert_ne!(Login::Bearer("a".into()).fingerprint(&hashing), of("a"));
    }

    #[test]
    fn headers_that_cannot_be_are_refused() {
        assert_eq!(basic("a:b", &"c".into()).unwrap_err().class(), Class::Auth);
        assert_eq!(bearer(&"a\nb".into()).unwrap_err().class(), Class::Auth);
    }
}
