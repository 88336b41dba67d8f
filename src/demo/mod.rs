//! Two loopback registries and a sample image.

pub mod image;
pub mod registry;
pub mod store;
