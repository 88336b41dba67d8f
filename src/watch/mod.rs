//! Finds out where something differs: poll · ping · signal → [`Event`] → queue → look → jobs.

pub mod board;
pub mod event;
mod handle;
pub mod route;
pub mod rules;

pub use board::Board;
pub use event::{Event, Reply, Scope, Wish};
pub use handle::{Busy, Handle, Run, Ticket};
