//! What AWS says when a call fails, in our words: the class, AWS's own sentence, and the way out.

use std::fmt;
use std::time::Duration;

use aws_sdk_ecr::error::{ErrorMetadata, ProvideErrorMetadata, SdkError};

use crate::fault::{Class, Fault, clip};

/// The least wait after AWS has throttled a call: it names none itself.
const THROTTLE: Duration = Duration::from_secs(1);
/// The codes for credentials that were good once.
const EXPIRED: [&str; 3] = ["ExpiredToken", "RequestExpired", "TokenRefreshRequired"];
/// The codes for credentials that AWS does not know.
const UNKNOWN: [&str; 5] = [
    "UnrecognizedClient",
    "InvalidClientTokenId",
    "InvalidSignature",
    "SignatureDoesNotMatch",
    "MissingAuthenticationToken",
];

/// A call that AWS refused, or that did not reach it.
#[derive(Debug)]
pub struct Refusal {
    /// The code that AWS gave; empty when there was no answer.
    pub code: String,
    /// What it means for the caller.
    pub fault: Fault,
}

/// What a failed call of `action` means. `about` is what was acted on; `endpoint` is the key of the
/// config that sets another endpoint.
pub fn refusal<E, R>(
    action: &str,
    error: &SdkError<E, R>,
    region: &str,
    about: &str,
    endpoint: &str,
) -> Refusal
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
    R: fmt::Debug + 'static,
{
    let service = error.as_service_error();
    let code = service
        .and_then(|service| service.code())
        .unwrap_or_default()
        .to_owned();
    let said = match service {
        Some(service) => sentence(service.meta()),
        None => chain(error),
    };
    let classified = match service {
        None if is_of_credentials(error) => {
            classify_credentials(&said).unwrap_or_else(|| classify(&said))
        }
        _ => classify(&said),
    };
    let (class, advice) = match classified {
        (class, "") if service.is_none() => (
            class,
            "; check the way to AWS: network, proxy, VPC endpoints, `{endpoint}`",
        ),
        classified => classified,
    };
    let advice = advice
        .replace("{action}", action)
        .replace("{endpoint}", endpoint);
    Refusal {
        code,
        fault: Fault::new(
            class,
            format!(
                "{action} in {region} for {about}: {}{advice}",
                clip(&said, 600)
            ),
        ),
    }
}

fn sentence(said: &ErrorMetadata) -> String {
    let reason = said.message().unwrap_or("no reason given").trim();
    format!(
        "{}: {}",
        said.code().unwrap_or("unknown error"),
        reason.strip_suffix('.').unwrap_or(reason)
    )
}

/// What the levels of an error say, each once, in one line; the SDK's outermost level only says
/// that something failed, and what a service said itself replaces the levels above it.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said = Vec::<String>::new();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(service) = error.downcast_ref::<ErrorMetadata>() {
            return sentence(service);
        }
        let level = error
            .to_string()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        if level != "other" && !said.iter().any(|said| said.contains(&level)) {
            said.push(level);
        }
        cause = error.source();
    }
    if said.is_empty() {
        error.to_string()
    } else {
        said.join(": ")
    }
}

/// Whether a call failed before it was sent, because a provider gave no credentials. The SDK hides
/// the provider's error behind errors of its transport, so the words of its outermost level tell.
fn is_of_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
    const WORDS: [&str; 5] = [
        "the credential provider was not enabled",
        "credentials provider timed out",
        "the credentials provider was not properly configured",
        "an error occurred while loading credentials",
        "unexpected credentials error",
    ];
    let mut cause = Some(error);
    while let Some(error) = cause {
        let level = error.to_string();
        if WORDS.iter().any(|words| level.starts_with(words)) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What it means that a provider gave no credentials, and what its owner does about it. `None`: a
/// provider that cannot be reached or is busy, which passes.
fn classify_credentials(said: &str) -> Option<(Class, &'static str)> {
    const PASSES: [&str; 17] = [
        "dispatch failure",
        "timed out",
        "timeout",
        "refused",
        "reset by peer",
        "dns error",
        "connect error",
        "idpcommunicationerror",
        "throttl",
        "toomanyrequests",
        "requestlimitexceeded",
        "slowdown",
        "serviceunavailable",
        "internalfailure",
        "internalserver",
        "status: 5",
        "503",
    ];
    let lower = said.to_lowercase();
    // A chain that found nothing names every provider that it tried.
    if lower.contains("no credentials found in chain")
        || PASSES.iter().any(|word| lower.contains(word))
    {
        return None;
    }
    let advice = if lower.contains("sts:assumerole ")
        || lower.ends_with("sts:assumerole")
        || lower.contains("accessdenied")
    {
        return None;
    } else if lower.contains("sso") {
        "; sign in again: `aws sso login`, with --profile where `aws_profile` names one"
    } else if lower.contains("login token") {
        "; sign in again: `aws login`, with --profile where `aws_profile` names one"
    } else if lower.contains("web identity")
        || lower.contains("webidentity")
        || lower.contains("identitytoken")
    {
        "; check the file in AWS_WEB_IDENTITY_TOKEN_FILE, and the trust policy of the role in AWS_ROLE_ARN"
    } else if lower.contains("credential process")
        || lower.contains("external process")
        || lower.contains("credential_process")
    {
        "; run the credential_process of the profile by hand: it must print credentials that are valid"
    } else if lower.contains("ecs provider")
        || lower.contains("container")
        || lower.contains("http provider")
    {
        "; check AWS_CONTAINER_CREDENTIALS_FULL_URI or _RELATIVE_URI, and the role of the task or pod"
    } else if lower.contains("was not enabled") {
        return None;
    } else {
        "; the AWS credentials cannot be loaded: check the profile, and the files that it or the environment names (such as \
         AWS_WEB_IDENTITY_TOKEN_FILE)"
    };
    Some((Class::Auth, advice))
}

/// Whether the code means that AWS does not recognise the caller.
pub fn is_unknown_caller(code: &str) -> bool {
    UNKNOWN
        .iter()
        .chain(&EXPIRED)
        .any(|known| code.contains(known))
}

fn holds_any(said: &str, words: &[&str]) -> bool {
    words.iter().any(|word| said.contains(word))
}

/// The SDK has no closed list of codes and hides the credential chain's failures behind its
/// transport's, so their words decide here.
fn classify(said: &str) -> (Class, &'static str) {
    const THROTTLED: [&str; 6] = [
        "Throttl",
        "TooManyRequests",
        "RequestLimitExceeded",
        "SlowDown",
        "ServiceUnavailable",
        "InternalFailure",
    ];
    const PROFILE: [&str; 3] = ["source profile", "profile file", "was not defined"];
    const NONE_FOUND: [&str; 2] = [
        "no credentials found in chain",
        "credential provider was not enabled",
    ];
    const DENIED: [&str; 4] = [
        "AccessDenied",
        "not authorized",
        "OptInRequired",
        "AuthFailure",
    ];
    const FOR_GOOD: [&str; 7] = [
        "KmsException",
        "LimitExceeded",
        "InvalidParameter",
        "InvalidTagParameter",
        "TooManyTags",
        "ValidationException",
        "TemplateNotFound",
    ];
    const ROLE: [&str; 1] = ["sts:AssumeRole"];
    const ELSEWHERE: [&str; 1] = ["Credential should be scoped"];
    match said {
        _ if holds_any(said, &THROTTLED) => (
            Class::Retryable {
                after: Some(THROTTLE),
            },
            "",
        ),
        _ if holds_any(said, &PROFILE) => (
            Class::Auth,
            "; check aws_profile and the shared AWS configuration",
        ),
        _ if holds_any(said, &NONE_FOUND) => (
            Class::Auth,
            "; give the process AWS credentials (instance or task role, environment, aws_profile), or set auth to something else",
        ),
        _ if holds_any(said, &EXPIRED) => (
            Class::Auth,
            "; the AWS credentials have expired: renew them",
        ),
        _ if holds_any(said, &ELSEWHERE) => (
            Class::Auth,
            "; the endpoint is one of another region: check `region` and `{endpoint}`",
        ),
        _ if holds_any(said, &UNKNOWN) => (
            Class::Auth,
            "; AWS does not accept the credentials: check the keys, the profile and this machine's clock",
        ),
        _ if holds_any(said, &ROLE) => (
            Class::Auth,
            "; let the role's trust policy name us (check `external_id`, too), and allow us sts:AssumeRole on it",
        ),
        _ if holds_any(said, &DENIED) => (
            Class::Auth,
            "; allow {action} there (`blobferry iam` prints what is needed)",
        ),
        // Another try is answered the same: a person changes the template, the key's policy or the
        // quota first.
        _ if holds_any(said, &FOR_GOOD) => (Class::Rejected, ""),
        _ => (Class::RETRYABLE, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_aws_have_their_classes() {
        let auth = [
            "UnrecognizedClientException: The security token included in the request is invalid.",
            "ExpiredTokenException: The security token included in the request is expired",
            "AccessDeniedException: no",
            "InvalidSignatureException: Signature expired",
            "the credential provider was not enabled: no credentials found in chain. Attempted: Environment",
            "an error occurred while loading credentials: AccessDenied: User is not authorized to perform: sts:AssumeRole",
            "the credential provider was not enabled: profile `nosuch` was not defined: could not find source profile nosuch",
        ];
        for said in auth {
            assert_eq!(classify(said).0, Class::Auth, "{said}");
            assert!(!classify(said).1.is_empty(), "{said}");
        }
        assert!(
            classify("ThrottlingException: Rate exceeded")
                .0
                .is_retryable()
        );
        assert!(
            classify("RequestLimitExceeded: Rate exceeded")
                .0
                .is_retryable()
        );
        for said in [
            "KmsException: the key is disabled",
            "LimitExceededException: too many repositories",
            "InvalidParameterException: the policy text is not valid JSON",
        ] {
            assert_eq!(classify(said).0, Class::Rejected, "{said}");
        }
        for said in [
            "ServerException: oops",
            "io error: connection refused",
            "timeout",
        ] {
            assert_eq!(classify(said).0, Class::RETRYABLE, "{said}");
        }
    }

    /// As the SDK's providers word them, innermost level last.
    #[test]
    fn what_keeps_a_provider_from_giving_credentials_is_told_from_an_outage() {
        for (said, way_out) in [
            (
                "an error occurred while loading credentials: the SSO token has expired and cannot be refreshed",
                "aws sso login",
            ),
            (
                "an error occurred while loading credentials: failed to read `/home/a/.aws/sso/cache/x.json`: No such file",
                "aws sso login",
            ),
            (
                "unexpected credentials error: cached Login token is expired",
                "aws login",
            ),
            (
                "an error occurred while loading credentials: InvalidIdentityToken: Token is expired",
                "AWS_WEB_IDENTITY_TOKEN_FILE",
            ),
            (
                "an error occurred while loading credentials: Error retrieving credentials: external process exited with code 1",
                "credential_process",
            ),
            (
                "the credentials provider was not properly configured: invalid full URI for ECS provider",
                "AWS_CONTAINER_CREDENTIALS",
            ),
            (
                "unexpected credentials error: something else",
                "cannot be loaded",
            ),
        ] {
            let (class, advice) = classify_credentials(said).unwrap_or_else(|| panic!("{said}"));
            assert_eq!(class, Class::Auth, "{said}");
            assert!(advice.contains(way_out), "{said}: {advice}");
        }
        for said in [
            "an error occurred while loading credentials: dispatch failure: io error: connection refused",
            "credentials provider timed out after 5 seconds",
            "an error occurred while loading credentials: IDPCommunicationError: the provider could not be reached",
        ] {
            assert!(
                classify_credentials(said).is_none() && classify(said).0.is_retryable(),
                "{said}"
            );
        }
    }
}
