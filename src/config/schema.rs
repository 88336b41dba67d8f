//! The file's shape for editors: JSON schema, with what each key means.
//!
//! What depends on other keys is checked when a file is read.

use schemars::SchemaGenerator;

use super::document::Document;

/// The JSON schema of the config file.
pub fn schema() -> serde_json::Value {
    SchemaGenerator::default()
        .into_root_schema_for::<Document>()
        .to_value()
}
