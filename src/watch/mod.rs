//! Finds out where something differs: poll · ping · signal → [`Event`] → [`queue`] → [`look`] → jobs.

pub mod board;
mod claims;
pub mod discover;
pub mod event;
mod handle;
mod inquiry;
pub mod look;
pub mod metrics;
mod pass;
mod polls;
pub mod queue;
pub mod resting;
pub mod route;
pub mod rules;
mod run;
pub mod signal;
mod standing;
mod world;

pub use board::Board;
pub use event::{Event, Reply, Scope, Wish};
pub use handle::{Busy, Handle, Run, Ticket, run_id};
pub use metrics::Metrics;
pub use pass::pass;
pub use run::Watch;
pub use world::{Rhythm, Settings, Side, World};
