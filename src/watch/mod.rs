//! The watch: turns triggers into looks: poll · ping · notification · signal → [`Event`] →
//! [`queue`] → [`look`](crate::look).

pub mod event;
mod handle;
pub mod notification;
mod pass;
mod pending;
mod polls;
pub mod queue;
pub mod queue_consumer;
pub mod receiver;
pub mod resting;
mod route_health;
mod run;
pub mod signal;

pub use event::{Event, Reply, Scope};
pub use handle::{Busy, Handle, Run, Ticket, run_id};
pub use pass::pass;
pub use run::Watch;
