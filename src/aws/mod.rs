//! Amazon's API: credentials, region and endpoints of a client, and what a failed call means.
//!
//! [`Access::load`] is the one place that asks the credential chain; [`refusal`] is the one place
//! that reads what AWS says. The SDK's own retries are off: the caller retries.

mod refusal;

use std::time::Duration;

use aws_config::SdkConfig;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_ecr::config::SharedCredentialsProvider;

pub use refusal::{Refusal, is_unknown_caller, refusal};

/// The time for one call, without the credential chain's own.
pub const CALL: Duration = Duration::from_secs(15);

/// The credentials to use; without any of these the default chain finds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The profile of the shared AWS configuration.
    pub profile: Option<String>,
    /// A role to assume with the credentials found.
    pub role_arn: Option<String>,
    /// The external id that the role's trust policy asks for.
    pub external_id: Option<String>,
    /// Names the role's session in the audit trail; default: `blobferry`.
    pub session_name: Option<String>,
}

/// How to reach one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The credentials.
    pub identity: Identity,
    /// The region; default: the SDK's.
    pub region: Option<String>,
    /// Only FIPS endpoints.
    pub fips: bool,
    /// Endpoints that are reachable over IPv6, too.
    pub dual_stack: bool,
}

impl Access {
    /// The SDK's configuration. The credentials themselves are asked for by the first call.
    pub async fn load(&self) -> SdkConfig {
        let base = self.base().await;
        match &self.identity.role_arn {
            Some(role) => {
                let provider = SharedCredentialsProvider::new(self.assumed(role, &base).await);
                base.into_builder().credentials_provider(provider).build()
            }
            None => base,
        }
    }

    async fn base(&self) -> SdkConfig {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(5))
            .operation_timeout(CALL)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts);
        if let Some(region) = &self.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(profile) = &self.identity.profile {
            loader = loader.profile_name(profile);
        }
        if self.fips {
            loader = loader.use_fips(true);
        }
        if self.dual_stack {
            loader = loader.use_dual_stack(true);
        }
        let base = loader.load().await;
        match &self.identity.profile {
            Some(profile) => of_profile(profile, base),
            None => base,
        }
    }

    async fn assumed(&self, role: &str, base: &SdkConfig) -> AssumeRoleProvider {
        let session_name = self.identity.session_name.as_deref().unwrap_or("blobferry");
        let mut provider = AssumeRoleProvider::builder(role)
            .session_name(session_name)
            .configure(base);
        if let Some(id) = &self.identity.external_id {
            provider = provider.external_id(id);
        }
        provider.build().await
    }
}

/// The configuration with the credentials of `profile` and no others: the default chain would let
/// the environment's go first.
fn of_profile(profile: &str, base: SdkConfig) -> SdkConfig {
    let config = ProviderConfig::without_region()
        .with_region(base.region().cloned())
        .with_use_fips(base.use_fips())
        .with_use_dual_stack(base.use_dual_stack())
        .with_behavior_version(Some(BehaviorVersion::v2026_01_12()))
        .with_retry_config(RetryConfig::disabled());
    let provider = ProfileFileCredentialsProvider::builder()
        .profile_name(profile)
        .configure(&config)
        .build();
    base.into_builder()
        .credentials_provider(SharedCredentialsProvider::new(provider))
        .build()
}
