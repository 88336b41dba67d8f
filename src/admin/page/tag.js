// A tag's story: what both sides name, why, gates with their evidence, decisions, and what happened.

import { known, ledgerState, read } from "./api.js";
import { badge, digest, element, link, moment, replace, said, words } from "./element.js";
import { decisionList } from "./decisions.js";
import { gate, reasonsOf, repositoryOf, targetOf } from "./parts.js";
import { nextSteps } from "./steps.js";

const ROWS = 50;

/// The view of these parameters: `repository`, `tag`.
export function tagView(parameters, { renew }) {
  const [repository, tag] = [parameters.get("repository") ?? "", parameters.get("tag") ?? ""];
  const now = element(
    "section",
    {},
    element("p", { class: "empty" }, "Both registries are asked…"),
  );
  const past = element("section");
  const root = element(
    "div",
    {},
    element("p", {}, link("tags", {}, "Tags")),
    element("h1", {}, element("bdi", { class: "tag" }, targetOf(`${repository}:${tag}`))),
    now,
    past,
  );
  let rows = [];
  let readAt = null;
  let newest = null;
  let views = [];

  /// The ledger is read where it has grown; both registries only where it has news about the tag.
  async function update() {
    const state = ledgerState();
    if (state !== readAt) {
      rows = await history(repository, tag);
      readAt = state;
    }
    const key = `${rows[0]?.id} ${known.status.decisions.map((one) => one.id)}`;
    if (key !== newest) {
      views = (await read("/v1/tags", { repository, tag })).tags;
      newest = key;
    }
    replace(
      now,
      views.map((view) => story(view, rows, again)),
    );
    replace(past, ...happened(rows));
  }

  async function again() {
    newest = readAt = null;
    await renew();
  }

  return { root, update };
}

async function history(repository, tag) {
  const parameters = { repository: repositoryOf(repository), tag, newest: true, limit: ROWS };
  return (await read("/v1/promotions", parameters)).promotions;
}

function story(view, rows, again) {
  const digests = rows
    // Another registry may have a repository of the same name.
    .filter((row) => row.result === "promoted" && row.destination === view.destination)
    .flatMap((row) => [row.digest, row.previous_digest]);
  const former = [...new Set(digests)].filter((one) => one && one !== view.production);
  const tag = { ...view, former };
  return element(
    "article",
    { class: "card" },
    element(
      "div",
      { class: "line" },
      badge(view.result ?? "not taken"),
      element("span", {}, "route ", link("tags", { route: view.route }, said(view.route))),
      element(
        "button",
        { type: "button", class: "quiet aside", "data-key": "again", onclick: again },
        "Ask again",
      ),
    ),
    element(
      "div",
      { class: "pair" },
      side("Staging", view.source, view.digest),
      side("Production", view.destination, view.production, view.known),
    ),
    reasonsOf(view),
    nextSteps(tag, again),
    view.gates.length > 0 && [
      element("h2", {}, "Gates"),
      element("ul", { class: "plain gates" }, view.gates.map(gate)),
    ],
    view.decisions.length > 0 && [
      element("h2", {}, "Decisions that cover it"),
      decisionList(view.decisions, again),
    ],
    element(
      "p",
      { class: "hint" },
      view.moving
        ? "The tag may move to another digest. "
        : "The tag is fixed: it may not move by itself. ",
      view.next_look && ["Looked at again ", moment(view.next_look), "."],
    ),
  );
}

function side(name, reference, named, record) {
  const isKnown = record?.digest && record.digest === named;
  return element(
    "div",
    {},
    element("h2", {}, name),
    element("p", {}, element("bdi", { class: "tag" }, reference)),
    element("p", {}, element("code", { class: "whole" }, named ?? "names nothing")),
    isKnown &&
      element("p", { class: "hint" }, record.agreed ? "agreed on " : "written ", moment(record.at)),
    record?.reported &&
      element("p", { class: "hint" }, "reported and not decided on: ", digest(record.reported)),
  );
}

function happened(rows) {
  if (!rows.length) return [];
  return [
    element("h2", {}, "What happened"),
    element(
      "ol",
      { class: "plain story" },
      rows.map((row) => element("li", {}, ...event(row))),
    ),
    rows.length === ROWS &&
      element(
        "p",
        { class: "hint" },
        "Older rows are in ",
        element("code", {}, "blobferry history"),
        ".",
      ),
  ];
}

/// A row of the ledger.
function event(row) {
  const by = [" by ", said(row.actor ?? "daemon"), row.reason && [": ", said(row.reason)]];
  const head = (name) =>
    element(
      "div",
      { class: "line" },
      badge(name),
      element("span", { class: "hint" }, row.cause && `${words(row.cause)}`, by),
      element("span", { class: "aside" }, moment(row.at)),
    );
  if (row.kind === "outcome") {
    const change = row.result === "promoted" && row.previous_digest;
    return [
      head(row.result),
      element(
        "p",
        { class: "sides" },
        change && [digest(row.previous_digest), " → "],
        digest(row.digest),
      ),
      reasonsOf(row),
    ];
  }
  if (row.kind === "refused_decision") {
    return [
      head("refused"),
      element(
        "p",
        {},
        `${row.decision} of `,
        said(row.target || "everything"),
        ": ",
        said(row.text),
      ),
    ];
  }
  const ends = row.ends?.length > 0 && ` ends decision ${row.ends.join(", ")}`;
  return [
    head(row.kind),
    element(
      "p",
      { class: "sides" },
      said(row.target || "everything"),
      row.digest && [" ", digest(row.digest)],
      ends,
    ),
  ];
}
