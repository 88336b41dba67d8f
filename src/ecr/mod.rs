//! Amazon ECR beyond the distribution protocol: which hosts are ECR, and the tokens that its control plane hands out.
//!
//! The SDK's own retries are off: retrying belongs to `transfer`. Nothing here reads the environment by itself; the SDK's
//! default credential chain does, as its users expect.

pub mod host;
pub mod login;

pub use host::EcrHost;
pub use login::{Login, Settings, Token};
