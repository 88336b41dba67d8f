// The page: which view is shown, what the daemon says now, and the token.

import { Trouble, hasToken, keepToken, known, readNews, readReadiness } from "./api.js";
import { decisionsView } from "./decisions.js";
import { element, renewMoments, replace, said, told } from "./element.js";
import { overviewView } from "./overview.js";
import { tagView } from "./tag.js";
import { tagsView } from "./tags.js";

/// Time between two questions, and the longest after failures.
const CALM = 3000;
const LONGEST = 60_000;

const VIEWS = new Map([
  ["tags", tagsView],
  ["tag", tagView],
  ["decisions", decisionsView],
]);

const main = document.getElementById("main");
const health = document.getElementById("health");
const caller = document.getElementById("caller");
let view = null;
/// Whether the view shows what is known.
let isShown = false;
let trouble = null;
let delay = CALM;
let timer = null;
/// The number of the newest question; an answer to an older one counts no more.
let question = 0;

/// Shows the view that the address names.
async function open() {
  if (!known.status) return;
  const [page, query] = location.hash.replace(/^#\/?/, "").split("?");
  for (const tab of document.querySelectorAll("nav a")) {
    const isHere = tab.dataset.page === page || (page === "tag" && tab.dataset.page === "tags");
    if (isHere) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  const make = VIEWS.get(page) ?? overviewView;
  view = make(new URLSearchParams(query), { refresh, renew });
  replace(main, view.root);
  window.scrollTo(0, 0);
  await refresh();
}

/// Has the view that is shown read anew.
async function refresh() {
  if (!view || !known.status) return;
  const shown = view;
  isShown = false;
  try {
    await shown.update();
    isShown = shown === view;
    trouble = null;
  } catch (error) {
    if (shown === view) tell(error);
  }
  showBanner();
}

/// Asks what the daemon says now, and has the view read anew with that: an act changes both.
async function renew() {
  isShown = false;
  await watch();
}

/// Asks for the status again and again while the page can be seen: every few seconds, less often
/// after failures, and not while a token is asked for.
async function watch() {
  clearTimeout(timer);
  if (document.hidden || isAsking()) return;
  question += 1;
  const asked = question;
  try {
    const news = await readNews();
    if (asked === question) await take(news);
  } catch (error) {
    if (asked === question) fail(error);
  } finally {
    if (asked === question) {
      showBanner();
      timer = setTimeout(watch, delay);
    }
  }
}

/// Shows what is new, and again what could not be shown before.
async function take(news) {
  Object.assign(known, news);
  if (news.status) isShown = false;
  trouble = null;
  renewMoments();
  if (!isShown) {
    showHead();
    await (view ? refresh() : open());
  }
  delay = isShown ? CALM : longer();
}

function fail(error) {
  delay = longer();
  tell(error);
}

function longer() {
  return Math.min(delay * 2, LONGEST);
}

function showHead() {
  const { status } = known;
  const [state, text] = stateOf(status);
  showHealth(state, text, `blobferry ${status.version}, config ${status.config.hash}`);
  caller.hidden = false;
  replace(caller, said(known.caller.actor));
  caller.title = `may ${known.caller.rights.join(", ")}; click to change the token`;
  document.title = state === "good" ? "blobferry" : `blobferry: ${text}`;
}

function showHealth(state, text, title) {
  health.className = `pill ${state}`;
  health.textContent = text;
  health.title = title;
}

function stateOf(status) {
  if (status.state_trouble) return ["bad", "nothing is promoted"];
  if (status.draining) return ["warn", "stopping"];
  if (!status.ready) return ["warn", "starting"];
  if (status.registries.some((one) => one.up === false)) return ["bad", "registry trouble"];
  return ["good", "running"];
}

/// Keeps what went wrong for the banner; asks for a token where one would help.
function tell(error) {
  if (!(error instanceof Trouble)) console.error(error);
  if (error.wantsToken) {
    const isFirst = error.code === "unauthorized" && !hasToken();
    const usual = "It is one of `daemon.tokens`, or the secret of `daemon.secret_file`.";
    keepToken(null);
    askForToken(isFirst ? usual : error.message);
    return;
  }
  trouble = error.message;
  if (error.status === 0) {
    showHealth("bad", "no answer", "");
    trouble += " What is shown here is what it said last.";
  }
}

/// What went wrong last; else what the daemon says is wrong with itself.
function showBanner() {
  const { state_trouble, config } = known.status ?? {};
  const refused =
    config?.refused &&
    `The newest config was refused, the one before is in force: ${config.refused}`;
  const text = trouble ?? state_trouble ?? refused ?? "";
  const banner = document.getElementById("trouble");
  if (banner.textContent !== text) banner.textContent = text;
  banner.hidden = !text;
}

/// Whether the form for the token is shown.
function isAsking() {
  return document.getElementById("token") !== null;
}

/// The form for the token, in place of the view. Without one the page shows whether the daemon is
/// ready, which needs none.
function askForToken(why) {
  view = null;
  trouble = null;
  question += 1;
  const input = element("input", {
    id: "token",
    type: "password",
    autocomplete: "off",
    pattern: "[!-~]*",
    spellcheck: "false",
  });
  const submit = async (event) => {
    event.preventDefault();
    keepToken(input.value.trim());
    replace(main, element("p", { class: "empty" }, "Asking the daemon…"));
    await watch();
  };
  const form = element(
    "form",
    { class: "card token", onsubmit: submit },
    element("h1", {}, "This daemon asks for a token"),
    element("p", {}, told(why)),
    element("label", { for: "token" }, "Token"),
    input,
    element(
      "p",
      { class: "hint" },
      "It stays in this tab until the tab is closed, and is sent in a header alone.",
    ),
    element("button", { type: "submit", class: "strong" }, "Use this token"),
  );
  replace(main, form);
  caller.hidden = true;
  showBanner();
  input.focus();
  readReadiness().then(
    () => showHealth("good", "running", ""),
    (error) => showHealth("warn", "not ready", error.message),
  );
}

/// Shows the view of the new address at once, and asks whether it is still so.
async function move() {
  delay = CALM;
  await open();
  await watch();
}

caller.addEventListener("click", () => {
  keepToken(null);
  askForToken("Another token; or none, to read what is open without one.");
});
window.addEventListener("hashchange", move);
document.addEventListener("visibilitychange", watch);
watch();
