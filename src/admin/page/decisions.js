// Decisions: those in force with their release, those that ever were, and a form for a hold.

import { actButton } from "./act.js";
import { known, ledgerState, may, read } from "./api.js";
import { badge, digest, element, moment, replace, said } from "./element.js";

const SHOWN = 100;

/// The view.
export function decisionsView(_parameters, { renew }) {
  const inForce = element("section");
  const past = element("section");
  const root = element("div", {}, element("h1", {}, "Decisions"), inForce, past);
  let read_at = null;

  async function update() {
    const { status } = known;
    replace(
      inForce,
      element("h2", {}, "In force"),
      decisionList(status.decisions, renew),
      ...orders(renew),
    );
    const now = ledgerState();
    if (now === read_at) return;
    const rows = (await read("/v1/decisions")).decisions.slice(0, SHOWN);
    replace(
      past,
      element("h2", {}, "All that were ordered"),
      rows.length
        ? element(
            "ol",
            { class: "plain story" },
            rows.map((row) => element("li", {}, ...ordered(row))),
          )
        : element("p", { class: "empty" }, "None so far."),
    );
    read_at = now;
  }

  return { root, update };
}

function orders(renew) {
  const may_hold = known.caller.rights.includes("hold");
  const may_deny = may("deny");
  if (!may_hold && !may_deny) return [];
  return [
    element(
      "p",
      { class: "buttons" },
      may_hold &&
        actButton("hold", { target: known.caller.routes ? "route:" : "", isFree: true }, renew),
      may_deny && actButton("deny", { isFree: true }, renew),
    ),
  ];
}

/// Decisions in force, each with its release where the caller may.
export function decisionList(decisions, renew) {
  if (!decisions.length) return element("p", { class: "empty" }, "None.");
  return element(
    "ul",
    { class: "plain story" },
    decisions.map((one) =>
      element(
        "li",
        {},
        ...ordered(one),
        // The right that ends a decision is that of ordering it.
        known.caller.rights.includes(one.kind) &&
          element("p", { class: "buttons" }, actButton("release", { decision: one }, renew)),
      ),
    ),
  );
}

/// A decision: what, about what, by whom, why, until when.
function ordered(row) {
  const isRefused = row.kind === "refused_decision";
  return [
    element(
      "div",
      { class: "line" },
      badge(isRefused ? "refused" : row.kind),
      element("bdi", { class: "tag" }, row.target || "everything"),
      element("span", { class: "aside" }, `decision ${row.id} · `, moment(row.at)),
    ),
    element(
      "p",
      { class: "sides" },
      "by ",
      said(row.actor),
      row.claimed_actor && [" (", said(row.claimed_actor), ")"],
      row.reason && [": ", said(row.reason)],
      row.digest && [" · ", digest(row.digest)],
      row.until && [" · ends ", moment(row.until)],
      row.despite?.length > 0 && ` · despite ${row.despite.join(", ")}`,
      row.ends?.length > 0 && ` · ends decision ${row.ends.join(", ")}`,
      isRefused && [` · ${row.decision}: `, said(row.text)],
    ),
  ];
}
