// What several views show of a tag.

import { known } from "./api.js";
import { digest, element, link, told, words } from "./element.js";

/// The destination as a link to its story.
export function tagLink(tag) {
  const at = tag.destination.lastIndexOf(":");
  const parameters = {
    repository: tag.destination.slice(0, at),
    tag: tag.destination.slice(at + 1),
  };
  return link("tag", parameters, element("bdi", { class: "tag" }, targetOf(tag.destination)));
}

/// `REGISTRY/REPOSITORY:TAG` with the registry's name in the config, which cannot be misread.
export function targetOf(destination) {
  const registry = registryOf(destination);
  return registry ? `${registry.name}/${repositoryOf(destination)}` : destination;
}

/// What stands behind the registry.
export function repositoryOf(destination) {
  const registry = registryOf(destination);
  const at = registry ? homeOf(registry).length : destination.indexOf("/");
  return destination.slice(at + 1);
}

/// The registry of the config; of folders in each other the inner one.
function registryOf(destination) {
  return known.status.registries
    .filter((one) => destination.startsWith(`${homeOf(one)}/`))
    .reduce((best, one) => (best && homeOf(best).length > homeOf(one).length ? best : one), null);
}

/// The host and port, or `layout:` with the folder.
function homeOf(registry) {
  return registry.url.replace(/^https?:\/\//, "").replace(/\/$/, "");
}

/// What both sides name.
export function sides(tag) {
  return element(
    "p",
    { class: "sides" },
    "staging ",
    digest(tag.digest),
    " · production ",
    lastKnown(tag.production),
  );
}

/// What production named at the last look; some looks end before they ask it.
export function lastKnown(production) {
  return production ? digest(production) : element("span", { class: "none" }, "not known");
}

/// Why it came to this.
export function reasonsOf(tag) {
  const texts = [...tag.reasons, ...(tag.error ? [tag.error.text] : [])];
  return texts.length
    ? element(
        "ul",
        { class: "reasons" },
        texts.map((text) => element("li", {}, told(text))),
      )
    : null;
}

/// A gate's verdict with its reason; the evidence unfolds.
export function gate(judged) {
  const evidence = judged.evidence && JSON.stringify(judged.evidence, null, 2);
  return element(
    "li",
    {},
    element(
      "div",
      { class: "line" },
      element("strong", {}, words(judged.gate)),
      element(
        "span",
        { class: `pill ${{ pass: "good", wait: "warn", refuse: "bad" }[judged.verdict]}` },
        judged.verdict,
      ),
      told(judged.reason ?? ""),
    ),
    evidence &&
      evidence !== "{}" &&
      element(
        "details",
        { "data-key": `evidence ${judged.gate}` },
        element("summary", {}, "Evidence"),
        element("pre", { tabindex: 0 }, evidence),
      ),
  );
}
