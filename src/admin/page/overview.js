// The overview: counts, what needs a person, what moves, what was promoted, routes and registries.

import { known, ledgerState, read } from "./api.js";
import {
  badge,
  bytes,
  count,
  digest,
  element,
  link,
  moment,
  replace,
  said,
  words,
} from "./element.js";
import { decisionList } from "./decisions.js";
import { reasonsOf, sides, tagLink } from "./parts.js";
import { nextSteps } from "./steps.js";

/// What keeps a tag from production, the most urgent first.
const TROUBLE = "conflict,drift,existing,refused,failed";
const WAITING = "waiting,held";
const SHOWN = 20;

/// The view. `renew` has it read anew.
export function overviewView(_parameters, { renew }) {
  const place = (name) => element("section", { class: name });
  const tiles = place("tiles");
  const decided = place("decided");
  const needs = place("needs");
  const moving = place("moving");
  const promoted = place("promoted");
  const rest = place("rest");
  const root = element(
    "div",
    {},
    element("h1", { class: "unseen" }, "Overview"),
    tiles,
    decided,
    moving,
    needs,
    promoted,
    rest,
  );
  let read_at = null;
  const lists = {};

  async function update() {
    const { status } = known;
    replace(tiles, ...counts(status.routes));
    replace(moving, ...movingNow(status));
    replace(decided, ...inForce(status.decisions, renew));
    replace(rest, ...routesAndRegistries(status));
    const rows = ledgerState();
    if (rows !== read_at) {
      const list = (result, limit) =>
        read("/v1/tags", { result, limit }).then((answer) => answer.tags);
      [lists.trouble, lists.waiting, lists.promoted] = await Promise.all([
        list(TROUBLE, SHOWN),
        list(WAITING, SHOWN),
        list("promoted", 8),
      ]);
    }
    replace(needs, ...blocked(lists, renew));
    replace(promoted, ...lastPromoted(lists.promoted));
    read_at = rows;
  }

  return { root, update };
}

function counts(routes) {
  const sum = (...results) =>
    routes.reduce(
      (total, route) => total + results.reduce((part, result) => part + route.tags[result], 0),
      0,
    );
  const tile = (name, results, tone) => {
    const number = sum(...results);
    return link(
      "tags",
      { result: results.join(",") },
      element("span", { class: "number" }, number.toLocaleString("en")),
      element("span", { class: `pill ${number ? tone : ""}` }, name),
    );
  };
  return [
    tile("in production", ["promoted", "up_to_date"], "good"),
    tile("waiting", ["waiting"], "warn"),
    tile("held", ["held"], "warn"),
    tile("conflict or drift", ["conflict", "drift", "existing"], "bad"),
    tile("refused or failed", ["refused", "failed"], "bad"),
  ];
}

function blocked(lists, renew) {
  const cards = [...lists.trouble, ...lists.waiting];
  if (!cards.length) {
    return [
      element(
        "p",
        { class: "calm" },
        "Nothing waits for a person: every tag is in production or on its way.",
      ),
    ];
  }
  const isMore = lists.trouble.length === SHOWN || lists.waiting.length === SHOWN;
  return [
    element("h2", {}, "Not in production, and why"),
    element(
      "ul",
      { class: "cards" },
      cards.map((tag) => element("li", { class: "card" }, blockedTag(tag, renew))),
    ),
    isMore && element("p", {}, link("tags", { result: `${TROUBLE},${WAITING}` }, "All of them")),
  ];
}

/// A tag that is not in production: why, and the way out.
function blockedTag(tag, renew) {
  return [
    element(
      "div",
      { class: "line" },
      badge(tag.result),
      tagLink(tag),
      element("span", { class: "aside" }, moment(tag.at)),
    ),
    reasonsOf(tag),
    sides(tag),
    nextSteps(tag, renew),
  ];
}

function movingNow(status) {
  if (!status.jobs.length && !status.blobs.length) return [];
  const bar = (blob) =>
    element(
      "li",
      {},
      element(
        "span",
        { class: "line" },
        said(blob.label),
        element(
          "span",
          { class: "aside" },
          blob.closing
            ? "sent; the registry checks it"
            : `${bytes(blob.sent)} of ${bytes(blob.size)}`,
        ),
      ),
      element("progress", {
        max: Math.max(blob.size, 1),
        value: blob.sent,
        "aria-label": blob.label,
      }),
    );
  const job = (one) =>
    element(
      "li",
      { class: "line" },
      tagLink(one),
      element("span", { class: "aside" }, "since ", moment(one.since)),
    );
  return [
    element("h2", {}, "Moving now"),
    element("ul", { class: "plain" }, status.jobs.slice(0, SHOWN).map(job)),
    status.jobs.length > SHOWN &&
      element("p", {}, `and ${count(status.jobs.length - SHOWN, "more tag")}`),
    element("ul", { class: "plain bars" }, status.blobs.slice(0, SHOWN).map(bar)),
  ];
}

function lastPromoted(tags) {
  if (!tags.length) return [];
  const row = (tag) =>
    element(
      "li",
      { class: "line" },
      tagLink(tag),
      digest(tag.digest),
      element("span", { class: "aside" }, moment(tag.since ?? tag.at)),
    );
  return [
    element("h2", {}, "Last promotions"),
    element("ul", { class: "plain rows" }, tags.map(row)),
    element("p", {}, link("tags", { result: "promoted,up_to_date" }, "Everything in production")),
  ];
}

function routesAndRegistries(status) {
  return [
    element("h2", {}, "Routes"),
    element("ul", { class: "cards" }, status.routes.slice(0, 200).map(routeCard)),
    status.routes.length > 200 &&
      element(
        "p",
        {},
        `and ${count(status.routes.length - 200, "more route")}: see blobferry status`,
      ),
    element("h2", {}, "Registries"),
    element("ul", { class: "plain rows" }, status.registries.map(registryRow)),
  ];
}

function routeCard(route) {
  const numbers = Object.entries(route.tags).filter(([, number]) => number > 0);
  return element(
    "li",
    { class: "card" },
    element(
      "div",
      { class: "line" },
      link("tags", { route: route.name }, said(route.name)),
      upPill(route.up, "fine", "not looked at yet"),
    ),
    element(
      "p",
      { class: "sides" },
      said(route.from),
      " → ",
      route.to.map((to, at) => [at > 0 && ", ", said(to)]),
    ),
    element(
      "p",
      { class: "hint" },
      numbers.map(([name, number], at) => [
        at > 0 && " · ",
        `${number} ${words(name)}`,
      ]),
    ),
    element(
      "p",
      { class: "hint" },
      "looked at ",
      moment(route.last_look),
      ", again ",
      moment(route.next_look),
    ),
    route.trouble.length > 0 &&
      element(
        "ul",
        { class: "reasons" },
        route.trouble.map((one) => element("li", {}, said(one.text))),
      ),
  );
}

/// Whether something is up; nothing is known of it yet where that is neither true nor false.
function upPill(up, fine, unknown) {
  if (up === false) return element("span", { class: "pill bad" }, "trouble");
  return element("span", { class: `pill ${up ? "good" : ""}` }, up ? fine : unknown);
}

function registryRow(registry) {
  return element(
    "li",
    { class: "line" },
    said(registry.name),
    element("span", { class: "hint" }, said(registry.url)),
    upPill(registry.up, "accepts us", "not asked yet"),
    registry.trouble && element("span", { class: "reasons" }, said(registry.trouble)),
  );
}

function inForce(decisions, renew) {
  if (!decisions.length) return [];
  return [element("h2", {}, "Decisions in force"), decisionList(decisions, renew)];
}
