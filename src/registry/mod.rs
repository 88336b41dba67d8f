//! The OCI distribution client.

pub mod auth;
