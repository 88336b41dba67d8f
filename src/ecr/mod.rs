//! Amazon ECR: which hosts it owns, the tokens its registries accept, and its control plane.
//!
//! [`Login`] fetches tokens and names the caller; [`Registry`] and [`Repository`] put the control
//! plane in front of the distribution client wherever that saves requests or knows more. An error
//! names the action, the region and the way out, never a secret.

mod control;
mod create;
mod handle;
pub mod host;
mod login;
mod repository;
mod scan;
mod shared;
mod unfinished;

pub use create::{Creation, Template};
pub use handle::RepositoryHandle;
pub use host::EcrHost;
pub use login::{Login, Settings, Token};
pub use repository::{Registry, Repository};
pub use unfinished::Unfinished;
