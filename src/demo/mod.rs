//! Two loopback registries and a sample image.
