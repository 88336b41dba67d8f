// Acts: the buttons for what the caller may order, the dialog that asks for the rest, and the answer.

import { decide, may } from "./api.js";
import { digest, element, link, replace, said, told, words } from "./element.js";
import { gate } from "./parts.js";

/// What each act is called and does. `reason`: whether one must be given.
const ACTS = {
  approve: { name: "Approve", text: "You agree that the tag goes to this digest." },
  accept: {
    name: "Accept",
    reason: true,
    text: "Staging is right: its digest is written once over the one in production.",
  },
  hold: {
    name: "Hold",
    text: "No tag that this covers is written any more. Images are carried meanwhile.",
  },
  rollback: {
    name: "Roll back",
    reason: true,
    text: "The tag goes back to an earlier digest and stays there until staging names another one.",
  },
  deny: {
    name: "Deny",
    reason: true,
    text: "This content is never carried or written again. What production names already stays.",
  },
  release: { name: "Release", text: "The decision ends." },
};

/// A button that opens the dialog of an act.
export function actButton(kind, subject, renew) {
  const about = subject.decision?.id ?? subject.target ?? "";
  const name = subject.isFree ? `New: ${ACTS[kind].name.toLowerCase()}` : ACTS[kind].name;
  const key = `${kind} ${about}`;
  const attributes = {
    type: "button",
    class: kind === "deny" ? "danger" : null,
    "data-key": key,
    // The same button about another row is another one.
    "data-row": subject.id ?? subject.last?.id,
    onclick: () => openAct(kind, subject, key, renew),
  };
  return element("button", attributes, name);
}

/// The dialog: what is ordered and about what, what the server must be told, and its answer. The
/// focus goes back to the button, which may be another one of that key by then.
function openAct(kind, subject, key, renew) {
  const dialog = document.getElementById("act");
  const closing = (name, look) =>
    element("button", { type: "button", class: look, onclick: () => dialog.close() }, name);
  const look = kind === "deny" ? "danger" : "strong";
  const order = element("button", { type: "submit", class: look }, ACTS[kind].name);
  const answer = element("p", { class: "answer", role: "alert" });
  const title = element("h2", { id: "act-title" }, ACTS[kind].name, " ", tagName(subject.target));

  async function submit(event) {
    event.preventDefault();
    order.disabled = true;
    replace(answer, "Asking the daemon…");
    try {
      const row = await decide(body(kind, subject, new FormData(form)));
      const close = closing("Close", "strong");
      replace(form, title, ...answered(kind, row), element("p", { class: "buttons" }, close));
      close.focus();
      document.getElementById("said").textContent = `${ACTS[kind].name}: decision ${row.id}.`;
      renew();
    } catch (error) {
      replace(answer, told(error.message));
      order.disabled = false;
    }
  }

  const form = element(
    "form",
    { onsubmit: submit },
    title,
    element("p", {}, ACTS[kind].text),
    facts(kind, subject),
    fieldsOf(kind, subject),
    answer,
    element("p", { class: "buttons" }, order, closing("Cancel", "quiet")),
  );
  dialog.replaceChildren(form);
  dialog.onclose = () => document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
  dialog.showModal();
  form.querySelector("input, select").focus();
}

function tagName(target) {
  return target ? element("bdi", { class: "tag" }, target) : null;
}

/// What the person decides on: both digests and the evidence of gates.
function facts(kind, subject) {
  if (kind === "release") return releaseFacts(subject.decision);
  if (!["approve", "accept"].includes(kind)) return null;
  return [
    element(
      "dl",
      {},
      element("dt", {}, "Staging names"),
      element("dd", {}, element("code", { class: "whole" }, subject.digest)),
      element("dt", {}, "Production names"),
      element("dd", {}, element("code", { class: "whole" }, subject.production ?? "not known")),
    ),
    subject.gates.length > 0 && element("ul", { class: "plain gates" }, subject.gates.map(gate)),
  ];
}

function releaseFacts(decision) {
  return [
    element(
      "p",
      {},
      `Decision ${decision.id}: ${decision.kind} `,
      element("bdi", { class: "tag" }, decision.target || "everything"),
      " by ",
      said(decision.actor),
      decision.reason && [": ", said(decision.reason)],
    ),
  ];
}

function fieldsOf(kind, subject) {
  const fields = [];
  if (subject.isFree && kind === "hold") {
    fields.push(
      field(
        "target",
        "What",
        "empty: everything; else route:NAME, REGISTRY/REPOSITORY or REGISTRY/REPOSITORY:TAG",
        { value: subject.target, maxlength: 600 },
      ),
    );
  }
  if (kind === "deny") {
    fields.push(
      field("target", "Digest of a manifest, config or layer", "", {
        value: subject.digest ?? "",
        required: true,
        pattern: "sha(256|512):[0-9a-f]+",
        maxlength: 140,
      }),
    );
  }
  if (kind === "rollback") {
    fields.push(
      choice("to", "Back to", [
        ["", "what it named before"],
        ...subject.former.map((one) => [one, one]),
      ]),
    );
  }
  if (["hold", "deny"].includes(kind)) {
    fields.push(
      choice("until", "Ends by itself", [
        ["", "no: until it is released"],
        ["1h", "in 1 hour"],
        ["4h", "in 4 hours"],
        ["12h", "in 12 hours"],
        ["24h", "in 1 day"],
        ["72h", "in 3 days"],
        ["168h", "in 1 week"],
      ]),
    );
  }
  if (kind === "approve" && may("override", subject.route))
    fields.push(...overrides(subject.gates));
  fields.push(
    field("reason", "Reason", ACTS[kind].reason ? "" : "may be left out", {
      required: Boolean(ACTS[kind].reason),
      maxlength: 500,
    }),
  );
  return fields;
}

/// The gates that do not pass and that the caller may pass nevertheless.
function overrides(gates) {
  const open = gates.filter((one) => one.verdict !== "pass" && one.gate !== "approval");
  const box = (one) =>
    element(
      "label",
      { class: "box" },
      element("input", { type: "checkbox", name: "despite", value: one.gate }),
      `despite ${words(one.gate)}`,
    );
  return open.length
    ? [
        element(
          "fieldset",
          {},
          element("legend", {}, "Pass gates that are not met (needs a reason)"),
          open.map(box),
        ),
      ]
    : [];
}

function field(name, label, hint, attributes) {
  const id = `act-${name}`;
  return element(
    "div",
    { class: "field" },
    element("label", { for: id }, label, hint && element("span", { class: "hint" }, ` ${hint}`)),
    element("input", { id, name, type: "text", autocomplete: "off", ...attributes }),
  );
}

function choice(name, label, options) {
  const id = `act-${name}`;
  return element(
    "div",
    { class: "field" },
    element("label", { for: id }, label),
    element(
      "select",
      { id, name },
      options.map(([value, text]) => element("option", { value }, text)),
    ),
  );
}

/// The request: what the form says, and the digests that were shown.
function body(kind, subject, form) {
  const given = (name) => form.get(name)?.trim() || undefined;
  const order = { kind, reason: given("reason"), until: given("until"), to: given("to") };
  if (kind === "release") return { ...order, id: subject.decision.id };
  order.target = form.has("target") ? given("target") : subject.target;
  if (["approve", "accept"].includes(kind)) {
    order.digest = subject.digest;
    order.replaces = subject.production ?? undefined;
  }
  const despite = form.getAll("despite");
  return despite.length ? { ...order, despite } : order;
}

/// The answer in plain words.
function answered(kind, row) {
  const target = element("bdi", { class: "tag" }, row.target || "everything");
  const done = {
    approve: () => [
      target,
      " may go to ",
      digest(row.digest),
      ". It moves as soon as nothing else keeps it.",
    ],
    accept: () => [digest(row.digest), " is being written to ", target, "."],
    hold: () => ["No tag of ", target, " is written any more."],
    rollback: () => [target, " names ", digest(row.digest), " and stays there."],
    deny: () => [target, " is never carried or written again."],
    release: () => [`Ended decision ${row.ends.join(", ")}.`],
  };
  const list = (text, items) =>
    items?.length > 0 && [
      element("p", {}, text),
      element(
        "ul",
        {},
        items.map((one) => element("li", {}, said(one))),
      ),
    ];
  return [
    element("p", { class: "done" }, done[kind]()),
    list("Their writes were sent before, so these may still move:", row.on_their_way),
    list("Sent before, without an answer yet, so these may still arrive:", row.carried),
    list("For now these keep it from moving:", row.held_by),
    element(
      "p",
      { class: "hint" },
      "It is decision ",
      link("decisions", {}, String(row.id)),
      row.until && ` and ends ${new Date(row.until).toLocaleString()}`,
      ".",
    ),
  ];
}
