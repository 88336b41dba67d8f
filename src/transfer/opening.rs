//! How a blob's source is opened.

use std::pin::Pin;

use crate::endpoint::BlobBody;
use crate::fault::Fault;

/// Opens the source at an offset. Retries are the implementation's decision.
pub type Open = Box<dyn FnMut(u64) -> Opening + Send>;
/// A source that is being opened.
pub type Opening = Pin<Box<dyn Future<Output = Result<BlobBody, Fault>> + Send>>;
