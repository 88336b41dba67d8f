//! The words of the image and distribution specifications as types: no I/O, no async, no clock.

pub mod descriptor;
pub mod digest;
pub mod manifest;
pub mod media_type;
pub mod platform;
pub mod reference;

pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, Hasher};
pub use manifest::Manifest;
pub use media_type::{Kind, MediaType};
pub use platform::Platform;
pub use reference::{Host, Reference, RepositoryName, Tag, Target};
