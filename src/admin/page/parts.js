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
  const host = (one) => one.url.slice(one.url.indexOf("://") + 3).replace(/\/$/, "");
  const registry = known.status.registries.find((one) => destination.startsWith(`${host(one)}/`));
  return registry ? registry.name + destination.slice(host(registry).length) : destination;
}

/// What both sides name.
export function sides(tag) {
  return element(
    "p",
    { class: "sides" },
    "staging ",
    digest(tag.digest),
    " · production ",
    digest(tag.production),
  );
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
