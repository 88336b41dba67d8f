//! One image to one image, as a route with one tag.

use super::address::Address;
use super::outline::Outline;
use super::remark::Remark;
use super::route::{Place, Route, Tags};

/// Why a digest becomes no route.
pub(super) const OF_DIGEST: &str =
    "names a digest, and a route names tags: `blobferry copy SRC@DIGEST DST:TAG` copies it once";

/// The route from one reference to another. Without a tag both are `latest`.
///
/// # Errors
/// Why no route does the same.
pub(super) fn route(
    source: &Address,
    target: &Address,
    line: u64,
    outline: &mut Outline,
) -> Result<Route, String> {
    if source.digest.is_some() || target.digest.is_some() {
        return Err(OF_DIGEST.into());
    }
    let tag = source.tag.as_deref().unwrap_or("latest");
    let wanted = target.tag.as_deref().unwrap_or("latest");
    let naming = renamed(tag, wanted)?;
    let to = Place {
        registry: outline.registry(&target.host),
        repository: format!("{}{naming}", target.repository),
    };
    Ok(Route {
        line,
        from: place(source, outline),
        to: vec![to],
        tags: Tags::of([tag.to_owned()]),
        remarks: Vec::new(),
    })
}

/// The repository of a reference.
pub(super) fn place(address: &Address, outline: &mut Outline) -> Place {
    Place {
        registry: outline.registry(&address.host),
        repository: address.repository.clone(),
    }
}

/// What follows the repository in `to`: nothing, or `:prod-{tag}`.
fn renamed(tag: &str, wanted: &str) -> Result<String, String> {
    if tag == wanted {
        return Ok(String::new());
    }
    match wanted.split_once(tag) {
        Some((before, behind)) => Ok(format!(":{before}{{tag}}{behind}")),
        None => Err(format!(
            "renames the tag {tag} to {wanted}: a route renames with one pattern around the old name \
             (`to: …:prod-{{tag}}`); `blobferry copy SRC DST` copies this one"
        )),
    }
}

/// What a route with a whole index says of a tool that is told a platform.
pub(super) fn platform_remark(line: u64, key: &str) -> Remark {
    Remark::new(
        line,
        format!(
            "{key}: the whole index travels, and tags that were cut down have another digest; `platform: …` on the \
             route promotes the manifest of one platform alone"
        ),
    )
}
