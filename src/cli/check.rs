//! `check`: the config is right, which repository falls to which route, and whether the registries
//! and queues let us in.

use std::path::Path;

use clap::Args;

use super::lines::Lines;
use super::output::{Style, clean, plural};
use super::{Arguments, Failure};
use crate::clock;
use crate::commands::{self, Check as Finding};
use crate::config::Config;
use crate::fault::Class;
use crate::job::{Drift, Existing, GateKind};
use crate::route::rules::{Selection, TagRule};
use crate::route::{Route, Routes};

/// Check the config, and with --online whether the registries let us read and write
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry check -c new.yaml   before putting it in place
  blobferry check --online      opens and cancels an upload in each destination

Ends with 0 when all is right, 2 when the config is not, 3 when a registry does
not accept us, 1 when anything else fails.")]
pub(super) struct Check {
    /// Ask every registry for our identity and our rights to read and write, and every queue for the
    /// right to read it; see whether receivers of notifications are reachable from here
    #[arg(long)]
    online: bool,
    /// Try in this throw-away repository, REGISTRY/REPOSITORY, what the registry does where nothing
    /// is documented
    #[arg(long, value_name = "REPOSITORY", requires = "online")]
    probe_repository: Option<String>,
}

impl Check {
    pub(super) async fn run(
        &self,
        arguments: &Arguments,
        lines: &mut Lines,
    ) -> Result<u8, Failure> {
        let config = arguments.config()?;
        let style = Style::of(&std::io::stdout());
        let routes = Routes::new(config.routes.clone());
        for route in &routes.0 {
            lines.line(describe(route, &routes, style));
        }
        for warning in routes.0.iter().flat_map(warnings) {
            lines.line(shown(&warning, style));
        }
        for exposed in &config.exposed {
            let finding = Finding::warning(clean(&exposed.key), &exposed.text);
            lines.line(shown(&finding, style));
        }
        if !config.missing.is_empty() {
            let missing = crate::config::Error {
                problems: config.missing,
                more: 0,
            };
            return Err(Failure::new(2, missing));
        }
        if let Some(folder) = absent_folder(&config) {
            let text = format!(
                "the folder {} does not exist; the daemon makes it at its start, if its user may",
                folder.display()
            );
            let finding = Finding::warning("daemon.audit_file".into(), &text);
            lines.line(shown(&finding, style));
        }
        describe_queues_and_sets(&config, lines);
        let routes = plural(routes.0.len() as u64, "route");
        let registries =
            plural(config.registries.len() as u64, "registry").replace("registrys", "registries");
        lines.line(format!(
            "{}: the config is right ({routes}, {registries})",
            arguments.config_path().display()
        ));
        if !self.online {
            return Ok(0);
        }
        let findings = self.findings(&config).await;
        for finding in &findings {
            lines.line(shown(finding, style));
        }
        Ok(exit_code(&findings))
    }

    /// What the registries and queues answer.
    async fn findings(&self, config: &Config) -> Vec<Finding> {
        let mut findings = commands::check_online(config).await;
        findings.extend(commands::check_receivers(config).await);
        if let Some(place) = &self.probe_repository {
            findings.extend(commands::probe(config, place).await);
        }
        findings
    }
}

fn warnings(route: &Route) -> impl Iterator<Item = Finding> {
    let mut texts = route.selection.idle_rules();
    texts.extend(route.gates.warnings());
    texts.extend(scan_warnings(route));
    texts.extend(unsigned(route));
    let name = format!("route {}", route.name);
    texts
        .into_iter()
        .map(move |text| Finding::warning(name.clone(), &text))
}

fn describe_queues_and_sets(config: &Config, lines: &mut Lines) {
    for queue in &config.queues {
        let text = format!(
            "queue {}\n  events of {} from {}\n",
            clean(&queue.name),
            clean(&queue.notifier.registry),
            clean(&queue.queue.address.to_string())
        );
        lines.line(text);
    }
    for set in &config.sets {
        let routes = clean(&set.routes.join(", "));
        let name = clean(&set.name);
        lines.line(format!("set {name}\n  {routes} move together\n"));
    }
}

/// What a route loses that promotes one manifest of a signed index.
fn unsigned(route: &Route) -> Option<String> {
    let only = route.platform.as_ref()?;
    let mut gates = route.gates.all();
    let is_judged =
        gates.any(|gates| gates.has(GateKind::Signature) || gates.has(GateKind::Attestation));
    is_judged.then(|| {
        format!(
            "platform: signatures and attestations of an index pass its gates and stay in staging: production names the manifest for {} and holds none, unless they are attached to that manifest",
            only.platform()
        )
    })
}

/// What the gate `scan` lets pass that may not be meant.
fn scan_warnings(route: &Route) -> Vec<String> {
    let scans = route.gates.all().filter_map(|gates| gates.scan.as_ref());
    scans.flat_map(|scan| scan.warnings(clock::now())).collect()
}

/// The folder of the audit file, if it is not there.
fn absent_folder(config: &Config) -> Option<&Path> {
    let folder = config.daemon.audit_file.as_deref()?.parent()?;
    (!folder.exists()).then_some(folder)
}

/// A route as a paragraph.
fn describe(route: &Route, routes: &Routes, style: Style) -> String {
    let to: Vec<String> = route.to.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "{}\n  {} {} {}",
        clean(&route.name),
        route.from,
        style.arrow(),
        to.join(", ")
    );
    text.push_str(&format!("\n  takes {}", falls_to(route, routes)));
    text.push_str(&format!("\n  tags {}", tags(&route.selection)));
    let existing = match route.existing {
        Existing::Keep => "a production tag that the ledger does not know stays",
        Existing::Adopt => "a production tag that the ledger does not know is adopted",
    };
    let drift = match route.drift {
        Drift::Keep => "one that was changed there stays changed",
        Drift::Restore => "one that was changed there is restored",
    };
    text.push_str(&format!("\n  {existing}, {drift}"));
    if let Some(only) = &route.platform {
        text.push_str(&format!(
            "\n  promotes the manifest for {} alone",
            only.platform()
        ));
    }
    if route.observes() {
        text.push_str("\n  observes: writes nothing there, and reports what differs");
    }
    if let Some(backup) = &route.backup {
        let name = backup.to_string();
        text.push_str(&format!(
            "\n  before a moving tag moves, {} gets what it named",
            clean(&name)
        ));
    }
    let gates: Vec<&str> = route.gates.kinds().iter().map(|gate| gate.name()).collect();
    if !gates.is_empty() {
        text.push_str(&format!("\n  gates {}", gates.join(", ")));
    }
    text.push('\n');
    text
}

/// Which repositories the route has: the first route that matches wins.
fn falls_to(route: &Route, routes: &Routes) -> String {
    let before: Vec<String> = routes
        .0
        .iter()
        .take_while(|other| other.name != route.name)
        .filter(|other| other.from.registry() == route.from.registry())
        .map(|other| clean(&other.name))
        .collect();
    match route.from.literal() {
        Some(name) => match routes.of(route.from.registry(), &name) {
            Some(first) if first.name != route.name => {
                format!(
                    "nothing: {name} falls to the route {}, which stands before it",
                    clean(&first.name)
                )
            }
            _ => format!("the repository {name}"),
        },
        None if !before.is_empty() => {
            format!(
                "every repository that matches and does not fall to {}",
                before.join(", ")
            )
        }
        None => "every repository that matches".into(),
    }
}

fn tags(selection: &Selection) -> String {
    let mut text = list(&selection.include);
    if !selection.exclude.is_empty() {
        text.push_str(&format!("; not {}", list(&selection.exclude)));
    }
    if let Some(newest) = selection.newest {
        text.push_str(&format!("; of versions the newest {newest}"));
    }
    match selection.moving.is_empty() {
        true => text.push_str("; all fixed"),
        false => text.push_str(&format!("; moving: {}", list(&selection.moving))),
    }
    if !selection.forward_only.is_empty() {
        let rules = list(&selection.forward_only);
        text.push_str(&format!("; only forward: {rules}"));
    }
    if selection.at_least > 0 {
        text.push_str(&format!("; at least {}", selection.at_least));
    }
    text
}

fn list(rules: &[TagRule]) -> String {
    let rules: Vec<String> = rules.iter().map(|rule| clean(rule.as_str())).collect();
    rules.join(", ")
}

fn shown(finding: &Finding, style: Style) -> String {
    let (mark, color) = match (finding.ok, style.unicode) {
        _ if finding.warns => (if style.unicode { "!" } else { "warn" }, 33),
        (true, true) => ("✓", 32),
        (true, false) => ("ok  ", 32),
        (false, true) => ("✗", 31),
        (false, false) => ("FAIL", 31),
    };
    format!(
        "{} {}: {}",
        style.escape(color, mark),
        clean(&finding.name),
        clean(&finding.text)
    )
}

fn exit_code(findings: &[Finding]) -> u8 {
    let mut failed = findings.iter().filter(|finding| !finding.ok).peekable();
    if failed.peek().is_none() {
        0
    } else if failed.any(|finding| finding.class == Some(Class::Auth)) {
        3
    } else {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{Create, Pattern, Template};

    fn route(name: &str, from: &str, to: &str) -> Route {
        let from = Pattern::parse(from).unwrap();
        let to = vec![Template::parse(to, &from).unwrap()];
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let selection = Selection {
            include: rules(&["latest", "v*"]),
            exclude: rules(&["*-rc*"]),
            newest: 10.try_into().ok(),
            moving: rules(&["latest"]),
            ..Selection::default()
        };
        Route {
            name: name.into(),
            from,
            to,
            selection,
            existing: Existing::Keep,
            drift: Drift::Restore,
            backup: None,
            mode: Default::default(),
            platform: None,
            create: Create::Never,
            gates: Default::default(),
        }
    }

    #[test]
    fn a_route_tells_what_falls_to_it_and_under_which_rules() {
        let routes = Routes::new(vec![
            route("all", "staging/team/*", "production/{1}"),
            route("web", "staging/team/web", "production/web"),
            route("rest", "staging/**", "production/rest/{1}"),
            route("own", "staging/own", "production/own"),
        ]);
        assert_eq!(
            describe(&routes.0[0], &routes, Style::default()),
            "all\n  staging/team/* -> production/{1}\n  takes every repository that matches\n  \
             tags latest, v*; not *-rc*; of versions the newest 10; moving: latest\n  \
             a production tag that the ledger does not know stays, one that was changed there is restored\n"
        );
        assert_eq!(
            falls_to(&routes.0[1], &routes),
            "nothing: team/web falls to the route all, which stands before it"
        );
        assert_eq!(
            falls_to(&routes.0[2], &routes),
            "every repository that matches and does not fall to all, web"
        );
        assert!(
            falls_to(&routes.0[3], &routes).starts_with("nothing: own falls to the route rest")
        );
        let alone = Routes::new(vec![routes.0[3].clone()]);
        assert_eq!(falls_to(&alone.0[0], &alone), "the repository own");
    }

    #[test]
    fn authentication_outranks_other_findings() {
        let finding = |ok, class| Finding {
            name: "staging".into(),
            ok,
            text: "reads".into(),
            class,
            warns: false,
        };
        assert_eq!(exit_code(&[finding(true, None)]), 0);
        assert_eq!(
            exit_code(&[finding(true, None), finding(false, Some(Class::Rejected))]),
            1
        );
        assert_eq!(
            exit_code(&[finding(false, None), finding(false, Some(Class::Auth))]),
            3
        );
        assert_eq!(
            shown(
                &finding(false, None),
                Style {
                    unicode: true,
                    color: false
                }
            ),
            "✗ staging: reads"
        );
        assert_eq!(
            shown(&finding(true, None), Style::default()),
            "ok   staging: reads"
        );
    }
}
