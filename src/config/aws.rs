//! What registries and queues say about AWS: region, account, credentials.

use url::Url;

use super::keys::keys;
use super::problem::complaint;
use super::section::{Item, optional};
use super::units::is_made_of;
use crate::aws::Identity;

keys! {
    /// What chooses credentials of AWS.
    CredentialsSection, CredentialsKeys {
        /// Role to assume.
        role_arn: Option<String>,
        /// External ID for assuming the role.
        external_id: Option<String>,
        /// Names the role's session in the audit trail, 2 to 64 characters. Default: blobferry, with
        /// the id of a CodeBuild build.
        role_session_name: Option<String>,
        /// Profile of the AWS config.
        aws_profile: Option<String>,
    }
}

impl CredentialsKeys<'_> {
    /// `None` after a complaint. `itself` is what the keys belong to.
    pub(super) fn read(&self, itself: &Item<'_>) -> Option<Identity> {
        let of_a_role = [&self.external_id, &self.role_session_name];
        for item in of_a_role.into_iter().flatten() {
            if self.role_arn.is_none() {
                item.wrong("only means something with role_arn");
            }
        }
        let named = optional(&self.role_session_name, |item| item.parse(session_name));
        let role_arn = optional(&self.role_arn, |item| item.parse(arn));
        let external_id = optional(&self.external_id, Item::word);
        let profile = optional(&self.aws_profile, Item::word);
        Some(Identity {
            profile: profile?,
            role_arn: role_arn?,
            external_id: external_id?,
            session_name: named?.or_else(|| session_of_the_build(itself.reader().env)),
        })
    }
}

pub(super) fn region(text: &str) -> Result<String, String> {
    let valid = !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    valid
        .then(|| text.to_owned())
        .ok_or_else(|| complaint(text, "is not a region (example: eu-west-1)"))
}

/// The name of a role's session, as the audit trail shows it.
fn session_name(text: &str) -> Result<String, String> {
    let valid = (2..=64).contains(&text.len()) && is_made_of(text, "_+=,.@-");
    valid.then(|| text.to_owned()).ok_or_else(|| {
        complaint(
            text,
            "is not the name of a session (2 to 64 letters, digits and _ + = , . @ -)",
        )
    })
}

/// Inside a build the audit trail shows which one it was.
fn session_of_the_build(env: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let build = env("CODEBUILD_BUILD_ID")?;
    let name = format!("blobferry-{build}").replace(
        |c: char| !(c.is_ascii_alphanumeric() || "_+=,.@-".contains(c)),
        "-",
    );
    Some(name.chars().take(64).collect())
}

pub(super) fn arn(text: &str) -> Result<String, String> {
    let valid = text.starts_with("arn:")
        && text.split(':').count() >= 6
        && !text.contains(char::is_whitespace);
    valid.then(|| text.to_owned()).ok_or_else(|| {
        complaint(
            text,
            "is not an ARN (example: arn:aws:iam::123456789012:role/promoter)",
        )
    })
}

pub(super) fn account(text: &str) -> Result<String, String> {
    let valid = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    valid
        .then(|| text.to_owned())
        .ok_or_else(|| complaint(text, "is not an account (12 digits)"))
}

pub(super) fn endpoint(text: &str) -> Result<String, &'static str> {
    let url = Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let plain = url.filter(|url| {
        url.username().is_empty() && url.password().is_none() && url.query().is_none()
    });
    plain
        .map(|_| text.to_owned())
        .ok_or("is not https://host[:port] or http://host[:port]")
}
