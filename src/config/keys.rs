//! The keys of a mapping, each written once: what the JSON schema says of it, and the field that
//! holds its value when a file is read.

use super::section::{Item, Section};

/// The values that a file gives to the keys of a mapping.
pub(super) trait Keys<'a>: Sized {
    /// Takes them. A key that must be there and is not gets a complaint.
    fn take(section: &mut Section<'a>) -> Self;
}

impl<'a> Item<'a> {
    /// The values of a mapping that has these keys and no others.
    pub(super) fn keys<K: Keys<'a>>(&self) -> Option<K> {
        let mut section = self.section()?;
        let keys = K::take(&mut section);
        section.finish(|_| false);
        Some(keys)
    }
}

/// Declares the keys of a mapping: `keys! { Schema, Keys { … } }`.
///
/// `Schema` is never filled: it gives the JSON schema, so each key has the shape that a file may
/// give it, and its documentation. `Keys` holds what a file says. A key with `= "what it is for"`
/// must be there; the text completes the complaint. `..group: Schema, Keys` adds the keys of a group
/// that several mappings share.
macro_rules! keys {
    (
        $(#[$about:meta])*
        $schema:ident, $keys:ident {
            $( $(#[$about_key:meta])* $key:ident: $shape:ty $(= $purpose:expr)?, )*
            $( ..$group:ident: $group_schema:ident, $group_keys:ident, )*
        }
    ) => {
        #[derive(schemars::JsonSchema)]
        #[schemars(deny_unknown_fields)]
        $(#[$about])*
        #[expect(dead_code, reason = "never filled: only its schema is used")]
        pub(super) struct $schema {
            $( $(#[$about_key])* $key: $shape, )*
            $( #[schemars(flatten)] $group: $group_schema, )*
        }

        #[derive(Clone, Default)]
        pub(super) struct $keys<'a> {
            $( pub(super) $key: Option<$crate::config::section::Item<'a>>, )*
            $( pub(super) $group: $group_keys<'a>, )*
        }

        impl<'a> $crate::config::keys::Keys<'a> for $keys<'a> {
            fn take(section: &mut $crate::config::section::Section<'a>) -> $keys<'a> {
                $keys {
                    $( $key: $crate::config::keys::take!(section, $key $(, $purpose)?), )*
                    $( $group: $group_keys::take(section), )*
                }
            }
        }
    };
}

/// The value of one key.
macro_rules! take {
    ($section:ident, $key:ident) => {
        $section.item(stringify!($key))
    };
    ($section:ident, $key:ident, $purpose:expr) => {
        $section.required(stringify!($key), $purpose)
    };
}

/// The JSON schema of a type that a file writes as one of several words.
macro_rules! word_schema {
    ($type:ty, $name:literal, $words:expr) => {
        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "enum": $words })
            }
        }
    };
}

pub(super) use {keys, take, word_schema};
