// Elements. Text of others becomes text nodes and attributes here; nothing is ever read as markup.

import { queryOf } from "./api.js";

/// An element with attributes and children; children are elements, texts or lists of them.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...nodes(children));
  return made;
}

/// Lists of lists as one, without what is left out.
function nodes(children) {
  return children.flat(Infinity).filter((child) => child != null && child !== false);
}

/// A text of a registry or a person, which does not change the direction of what stands around it.
export function said(text) {
  return element("bdi", { class: "said" }, text);
}

/// What a text of the daemon may hold: code, digests and times.
const PARTS = /(`[^`]+`|sha(?:256|512):[0-9a-f]{64,128}|\d{4}-\d\d-\d\dT[\d:.]+Z)/;
const DATE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/// A text of the daemon: digests are short, times are those of the reader.
export function told(text) {
  const children = text.split(PARTS).map((part, at) => (at % 2 ? toldPart(part) : part));
  return element("bdi", { class: "said" }, children);
}

function toldPart(part) {
  if (part.startsWith("`")) return element("code", {}, part.slice(1, -1));
  if (part.startsWith("sha")) return digest(part);
  const date = new Date(part);
  return isNaN(date) ? part : element("span", { title: part }, DATE.format(date));
}

/// Puts other children into a place, unless they are the same: a click or a selection under way is
/// not lost. The focus and what was unfolded stay.
export function replace(place, ...children) {
  const next = place.cloneNode(false);
  next.append(...nodes(children));
  if (next.isEqualNode(place)) return;
  const key = document.activeElement?.dataset?.key;
  const hasFocus = key && place.contains(document.activeElement);
  const open = [...place.querySelectorAll("details[open]")].map((one) => one.dataset.key);
  place.replaceChildren(...next.childNodes);
  for (const details of place.querySelectorAll("details")) {
    details.open = open.includes(details.dataset.key);
  }
  if (hasFocus) place.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/// A link within the page.
export function link(page, parameters, ...children) {
  return element(
    "a",
    { href: address(page, parameters), "data-key": address(page, parameters) },
    ...children,
  );
}

/// The address of a page; parameters without a value are left out.
export function address(page, parameters = {}) {
  return `#/${page}${queryOf(parameters)}`;
}

/// A digest, short; all of it where the pointer rests.
export function digest(text) {
  if (!text) return element("span", { class: "none" }, "nothing");
  const [algorithm, encoded] = text.split(":");
  return element("code", { title: text }, `${algorithm}:${encoded.slice(0, 12)}`);
}

/// The name of a result, with its colour.
export function badge(result) {
  return element("span", { class: `badge ${result}` }, words(result));
}

/// `up_to_date` as people write it.
export function words(name) {
  return name.replaceAll("_", " ");
}

/// A text to copy, with its button.
export function copyable(text) {
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  };
  // Without TLS browsers give no clipboard; the text can be marked by hand then.
  const button = element(
    "button",
    { type: "button", class: "quiet", onclick: copy, "data-key": `copy ${text}` },
    "Copy",
  );
  button.hidden = !navigator.clipboard;
  return element("span", { class: "copyable" }, element("code", { tabindex: 0 }, text), button);
}

/// A moment, as how long ago it is or how far away.
export function moment(at) {
  if (!at) return element("span", { class: "none" }, "never");
  const date = new Date(at);
  return element("time", { datetime: at, title: date.toLocaleString() }, distance(date));
}

/// Has the moments on the page keep up with the clock.
export function renewMoments() {
  for (const time of document.querySelectorAll("time")) {
    const now = distance(new Date(time.dateTime));
    if (time.textContent !== now) time.textContent = now;
  }
}

const UNITS = [
  ["day", 86400],
  ["hour", 3600],
  ["minute", 60],
  ["second", 1],
];
const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

function distance(date) {
  const seconds = Math.round((date - Date.now()) / 1000);
  if (Math.abs(seconds) < 5) return "now";
  const [unit, length] = UNITS.find(([, length]) => Math.abs(seconds) >= length);
  return RELATIVE.format(Math.round(seconds / length), unit);
}

/// A number of bytes as people read it.
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (count >= 1000 && power < units.length - 1) [count, power] = [count / 1000, power + 1];
  return `${power ? count.toFixed(1) : count} ${units[power]}`;
}

/// How many of something: `3 tags`.
export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}
