//! Configs of other tools as ours.
//!
//! [`migrate`] reads what another tool was told and writes a config that takes the same tags of the
//! same repositories to the same destinations. The result passes `check`. What has no counterpart
//! is a comment in it, with the reason and the way out, and a [`Remark`] for the terminal. Secrets
//! of the old file are in neither.
//!
//! | file | what is there |
//! |---|---|
//! | `kind` | the formats, and which of them a text has |
//! | `outline` | what all formats come to |
//! | `registry`, `route`, `remark` | its registries, its routes with their places and rules, and the comments |
//! | `settle` | what `check` refuses leaves the routes and becomes a comment |
//! | `writer` | the outline as YAML |
//! | `tree` | mappings and lists of a YAML document, each with its line |
//! | `address` | references to images, as Docker reads them |
//! | `pair` | one image to one image |
//! | `rules` | tag rules: expressions, ranges and globs of other tools |
//! | `regsync`, `ocync`, `skopeo`, `dregsy`, `image_syncer`, `sinker`, `script` | a format each |
//! | `shell` | the command lines of a script or a buildspec |

mod address;
mod dregsy;
mod image_syncer;
mod kind;
mod ocync;
mod outline;
mod pair;
mod registry;
mod regsync;
mod remark;
mod route;
mod rules;
mod script;
mod settle;
mod shell;
mod sinker;
mod skopeo;
mod tree;
mod writer;

pub use kind::Kind;
pub use remark::Remark;
pub use tree::Wrong;

use crate::config::yaml::Node;
use outline::Outline;

/// Longest file that is read, in bytes.
pub const LONGEST: u64 = 1024 * 1024;

/// What the command line says beside the file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// The format; otherwise it is recognised.
    pub kind: Option<Kind>,
    /// The destination of formats that do not name it: `host` or `host/path`.
    pub to: Option<&'a str>,
    /// Whether the destination keeps the source's host and path: `--scoped` of skopeo.
    pub scoped: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Migrated {
    /// The format.
    pub kind: Kind,
    /// The config; empty without routes.
    pub config: String,
    /// How many routes it has.
    pub routes: usize,
    /// What has no counterpart, in the order of the old file.
    pub remarks: Vec<Remark>,
}

/// Translates the content of a file.
///
/// # Errors
/// [`Wrong`], where the text is too long, of no known format, or not well-formed.
pub fn migrate(text: &str, options: Options<'_>) -> Result<Migrated, Wrong> {
    if text.len() as u64 > LONGEST {
        return Err(Wrong::whole("is longer than 1 MiB"));
    }
    let document = tree::parse(text);
    let kind = match options.kind {
        Some(kind) => kind,
        None => kind::recognise(text, &document)?,
    };
    let mut outline = read(kind, text, document, options)?;
    outline.arrange();
    let config = settle::settle(&mut outline, kind);
    let mut remarks = outline.all_remarks();
    remarks.sort_by_key(|remark| remark.line);
    remarks.dedup();
    Ok(Migrated {
        kind,
        config,
        routes: outline.routes.len(),
        remarks,
    })
}

fn read(
    kind: Kind,
    text: &str,
    document: Result<Node, Wrong>,
    options: Options<'_>,
) -> Result<Outline, Wrong> {
    let mut outline = Outline {
        has_variables: matches!(kind, Kind::Regsync | Kind::Ocync),
        ..Outline::default()
    };
    if kind == Kind::Script {
        script::read(text, document.ok().as_ref(), &mut outline)?;
        return Ok(outline);
    }
    let root = document?;
    tree::check_keys(&root)?;
    let root = tree::Map::of(&root, "the file")?;
    match kind {
        Kind::Regsync => regsync::read(&root, &mut outline)?,
        Kind::Ocync => ocync::read(&root, &mut outline)?,
        Kind::Skopeo => skopeo::read(&root, options, &mut outline)?,
        Kind::Dregsy => dregsy::read(&root, &mut outline)?,
        Kind::ImageSyncer => image_syncer::read(&root, options, &mut outline)?,
        Kind::Sinker => sinker::read(&root, &mut outline)?,
        Kind::Script => {}
    }
    Ok(outline)
}
