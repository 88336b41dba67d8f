//! The outline as YAML.

use std::collections::BTreeMap;

use super::kind::Kind;
use super::outline::Outline;
use super::registry::Registry;
use super::remark::Remark;
use super::route::Route;

/// The longest name of a route.
const LONGEST_NAME: usize = 128;

/// Writes everything. The routes stand in the order of the outline.
pub(super) fn write(outline: &Outline, kind: Kind) -> String {
    let mut text = head(kind);
    for remark in &outline.remarks {
        text.push_str(&comment("", remark));
    }
    if let Some(seconds) = outline.poll {
        text.push_str(&format!("\ndaemon:\n  poll: {seconds}s\n"));
    }
    text.push_str("\nregistries:\n");
    for position in outline.used() {
        text.push_str(&registry(&outline.registries[position]));
    }
    text.push_str("\nroutes:\n");
    let names = names(outline);
    for (route, name) in outline.routes.iter().zip(names) {
        text.push_str(&route_text(outline, route, name));
    }
    if !outline.refused.is_empty() {
        text.push_str("\n# Left out:\n");
    }
    for refused in &outline.refused {
        text.push_str(&format!(
            "# line {}: {}\n#   {}\n",
            refused.line, refused.what, refused.reason
        ));
    }
    text
}

fn head(kind: Kind) -> String {
    let origin = match kind {
        Kind::Script => "the commands of a pipeline".to_owned(),
        kind => format!("a file of {kind}"),
    };
    format!(
        "# Made by `blobferry migrate` from {origin}. Lines are those of the old file.\n\
         #\n\
         # A tag is fixed once it is in production, `latest` moves. To follow every tag as a mirror does:\n\
         # `moving: [\"*\"]` below `tags` of a route. What production holds already stays as it is: see\n\
         # `blobferry sync --dry-run --all` before the first start.\n"
    )
}

fn comment(indent: &str, remark: &Remark) -> String {
    format!("{indent}# line {}: {}\n", remark.line, remark.text)
}

fn registry(registry: &Registry) -> String {
    let scheme = if registry.is_plain { "http" } else { "https" };
    let mut text = format!("  {}:\n", quoted(&registry.name));
    for remark in &registry.remarks {
        text.push_str(&comment("    ", remark));
    }
    let url = format!("{scheme}://{}", registry.address);
    text.push_str(&format!("    url: {}\n", quoted(&url)));
    for (key, value) in &registry.keys {
        let is_number = value.parse::<u64>().is_ok();
        let value = if is_number {
            value.clone()
        } else {
            quoted(value)
        };
        text.push_str(&format!("    {key}: {value}\n"));
    }
    for (key, value) in &registry.later {
        text.push_str(&format!("    # {key}: {value}\n"));
    }
    text
}

fn route_text(outline: &Outline, route: &Route, name: Option<String>) -> String {
    let mut text = format!("  # line {}\n", route.line);
    for remark in &route.remarks {
        text.push_str(&comment("  ", remark));
    }
    let from = quoted(&outline.path(&route.from));
    match name {
        Some(name) => text.push_str(&format!("  - name: {}\n    from: {from}\n", quoted(&name))),
        None => text.push_str(&format!("  - from: {from}\n")),
    }
    let to: Vec<String> = route.to.iter().map(|place| outline.path(place)).collect();
    text.push_str(&match &to[..] {
        [one] => format!("    to: {}\n", quoted(one)),
        many => format!("    to: {}\n", list(many)),
    });
    text.push_str(&format!(
        "    tags:\n      include: {}\n",
        list(&route.tags.include)
    ));
    if !route.tags.exclude.is_empty() {
        text.push_str(&format!("      exclude: {}\n", list(&route.tags.exclude)));
    }
    if let Some(newest) = route.tags.newest {
        text.push_str(&format!("      newest: {newest}\n"));
    }
    if let Some(count) = route.tags.at_least {
        text.push_str(&format!("      at_least: {count}\n"));
    }
    text
}

/// Names for the routes that their repositories alone do not tell apart.
fn names(outline: &Outline) -> Vec<Option<String>> {
    let mut routes: BTreeMap<&str, usize> = BTreeMap::new();
    for route in &outline.routes {
        *routes.entry(&route.from.repository).or_default() += 1;
    }
    let names = outline.routes.iter().map(|route| {
        let is_shared = routes[route.from.repository.as_str()] > 1;
        short(is_shared.then(|| outline.path(&route.from)), route)
    });
    names.collect()
}

/// A name that is too long is the line of the route instead.
fn short(name: Option<String>, route: &Route) -> Option<String> {
    let shown = name.as_ref().unwrap_or(&route.from.repository);
    match shown.len() <= LONGEST_NAME {
        true => name,
        false => Some(format!("line-{}", route.line)),
    }
}

fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
    format!("[{}]", items.join(", "))
}

/// A plain scalar where YAML reads it as this text in every place, else one in quotes.
fn quoted(text: &str) -> String {
    let is_plain = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let is_word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
        .contains(&text.to_ascii_lowercase().as_str());
    if starts_well && !is_word && is_plain {
        return text.to_owned();
    }
    serde_json::Value::from(text).to_string()
}
