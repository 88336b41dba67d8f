// What can be done about a tag now: buttons for what the caller may order, and the command to copy.

import { actButton } from "./act.js";
import { may } from "./api.js";
import { copyable, element } from "./element.js";
import { targetOf } from "./parts.js";

/// Results in which production names something else than staging.
const DIFFERENT = ["conflict", "drift", "existing"];

/// The buttons and the command for a tag. `former`, its earlier digests, stands in its story alone,
/// and with it the acts that need a look at them first.
export function nextSteps(tag, renew) {
  const target = targetOf(tag.destination);
  const buttons = actsFor(tag).map((kind) => actButton(kind, { ...tag, target }, renew));
  const command = commandFor(tag, quoted(target));
  if (!buttons.length && !command) return null;
  return element("div", { class: "buttons" }, buttons, command);
}

function actsFor(tag) {
  const kinds = ["hold"];
  if (isToApprove(tag)) kinds.unshift("approve");
  if (tag.digest && DIFFERENT.includes(tag.result)) kinds.unshift("accept");
  if (tag.former?.length) kinds.push("rollback");
  if (tag.former && tag.digest) kinds.push("deny");
  // A denial is about content, so about every route.
  return kinds.filter((kind) => may(kind, kind === "deny" ? null : tag.route));
}

/// Whether an approval helps: a gate waits for it, or the caller may pass the gates that wait.
function isToApprove(tag) {
  const open = tag.gates.filter((gate) => gate.verdict !== "pass");
  const helps = (gate) => gate.gate === "approval" || may("override", tag.route);
  return tag.digest && tag.result !== "promoted" && open.some(helps);
}

/// The command that a person with the right runs.
function commandFor(tag, target) {
  const accept = ["If staging is right", `accept ${target} --reason '…'`];
  const waitsForPeople = tag.gates.some((one) => one.gate === "approval" && one.verdict !== "pass");
  const source = tag.source.slice(tag.source.lastIndexOf(":") + 1);
  const commands = {
    conflict: accept,
    drift: accept,
    existing: accept,
    waiting: waitsForPeople ? ["To agree", `approve ${target}`] : null,
    failed: ["To try again now", `sync ${quoted(tag.route)} --tag ${quoted(source)}`],
  };
  const [when, command] = commands[tag.result] ?? [];
  return (
    command &&
    element("span", { class: "hint" }, `${when}: `, copyable(`sudo blobferry ${command}`))
  );
}

function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
