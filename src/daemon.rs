//! Builds every part, runs them, drains them.
