// The list of tags: chosen by route, result and text on the server, a page at a time.

import { known, ledgerState, read } from "./api.js";
import { address, badge, element, moment, replace, words } from "./element.js";
import { lastKnown, reasonsOf, tagLink } from "./parts.js";

const PAGE = 50;
/// Tags of one answer at most.
const MOST = 1000;
/// How long a typed text rests before it is asked for.
const TYPED = 300;

const CHOICES = [
  ["", "all"],
  ["promoted,up_to_date", "in production"],
  ["waiting", "waiting"],
  ["held", "held"],
  ["conflict,drift,existing", "conflict or drift"],
  ["refused,failed", "refused or failed"],
  ["conflict,drift,existing,refused,failed,waiting,held", "not in production"],
  ["gone", "gone from staging"],
];

/// The view of these parameters: `route`, `result`, `text`.
export function tagsView(parameters, { refresh }) {
  const asked = {
    route: parameters.get("route"),
    result: parameters.get("result"),
    text: parameters.get("text"),
  };
  const body = element("tbody");
  const more = element("p", { class: "more" });
  const { form, showRoutes } = filters(asked, choose);
  const names = ["Tag", "Result", "Production", "Since", "Why"];
  const heads = names.map((name) => element("th", { scope: "col" }, name));
  const table = element("table", {}, element("thead", {}, element("tr", {}, heads)), body);
  const root = element("div", {}, element("h1", {}, "Tags"), form, table, more);
  let wanted = PAGE;
  let shown = null;

  /// Asks for other tags; the address says which.
  function choose(change) {
    if (!root.isConnected) return;
    Object.assign(asked, change);
    history.replaceState(null, "", address("tags", asked));
    wanted = PAGE;
    refresh();
  }

  /// What the list is of.
  function choice() {
    return JSON.stringify([ledgerState(), asked, wanted]);
  }

  function showMore() {
    wanted += PAGE;
    refresh();
  }

  async function update() {
    const { status } = known;
    showRoutes(status.routes.map((route) => route.name));
    const now = choice();
    if (now === shown) return;
    const [tags, isMore] = await load(asked, wanted);
    // Another choice may have been made meanwhile.
    if (now !== choice()) return;
    replace(body, tags.map(row));
    table.hidden = !tags.length;
    const button = { type: "button", "data-key": "more", onclick: showMore };
    replace(
      more,
      !tags.length && "No tag is like that.",
      isMore && element("button", button, "Show more"),
    );
    shown = now;
  }

  return { root, update };
}

/// So many tags from the start, and whether there are more.
async function load(asked, wanted) {
  let tags = [];
  let limit;
  let last;
  do {
    limit = Math.min(wanted - tags.length, MOST);
    last = (await read("/v1/tags", { ...asked, limit, after: tags.at(-1)?.id })).tags;
    tags = tags.concat(last);
  } while (last.length === limit && tags.length < wanted);
  return [tags, last.length === limit];
}

function row(tag) {
  const cell = (label, ...children) => element("td", { "data-label": label }, ...children);
  return element(
    "tr",
    {},
    cell("Tag", tagLink(tag)),
    cell("Result", badge(tag.result)),
    cell("Production", lastKnown(tag.production)),
    cell("Since", tag.since ? moment(tag.since) : element("span", { class: "none" }, "–")),
    cell("Why", reasonsOf(tag)),
  );
}

/// The form of the filters, which tells `choose` what changes.
function filters(asked, choose) {
  const route = element("select", { id: "route", onchange: () => choose({ route: route.value }) });
  const result = element(
    "select",
    { id: "result", onchange: () => choose({ result: result.value }) },
    CHOICES.map(([value, label]) => element("option", { value }, label)),
  );
  const chosen = asked.result ?? "";
  if (CHOICES.every(([value]) => value !== chosen)) {
    result.append(element("option", { value: chosen }, words(chosen)));
  }
  result.value = chosen;
  let timer;
  const typed = () => {
    clearTimeout(timer);
    timer = setTimeout(() => choose({ text: text.value.trim() }), TYPED);
  };
  const text = element("input", {
    id: "text",
    type: "search",
    value: asked.text ?? "",
    maxlength: 100,
    oninput: typed,
  });
  const field = (input, label) =>
    element("div", {}, element("label", { for: input.id }, label), input);
  const form = element(
    "form",
    { class: "filters", onsubmit: (event) => event.preventDefault() },
    field(route, "Route"),
    field(result, "Result"),
    field(text, "Repository or tag"),
  );
  const showRoutes = (names) => {
    const option = (value, label) => element("option", { value }, label);
    const options = names.map((name) => option(name, name));
    replace(route, option("", "all"), options);
    if (route.value !== (asked.route ?? "")) route.value = asked.route ?? "";
  };
  return { form, showRoutes };
}
