//! The state of routes, destinations and jobs: a snapshot for the status page and the metrics.

pub mod board;
pub mod metrics;

pub use board::Board;
pub use metrics::Metrics;
