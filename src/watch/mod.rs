//! Finds out where something differs.
