// The API of the daemon. The token stays in this tab's session and travels in a header alone.

const KEY = "blobferry.token";

/// The newest that the daemon said of itself, with the `ETag` of that, and of the caller.
export const known = { status: null, etag: null, caller: null };

/// An answer that is none: what the daemon said, or that it said nothing.
export class Trouble extends Error {
  constructor(status, code, text) {
    super(text);
    this.status = status;
    this.code = code;
  }

  /// Whether a token would help.
  get wantsToken() {
    const codes = ["unauthorized", "unknown_host", "no_secret", "forwarded"];
    return codes.includes(this.code);
  }
}

/// Keeps a token for this tab; null forgets it.
export function keepToken(token) {
  if (token) sessionStorage.setItem(KEY, token);
  else sessionStorage.removeItem(KEY);
  Object.assign(known, { status: null, etag: null, caller: null });
}

/// Whether a token is kept.
export function hasToken() {
  return sessionStorage.getItem(KEY) !== null;
}

/// What changes whenever the ledger has a new row, of this process or of another.
export function ledgerState() {
  return `${known.status.started} ${known.status.rows_added}`;
}

/// Parameters as the query of an address; those without a value are left out.
export function queryOf(parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value);
  const query = new URLSearchParams(given).toString();
  return query && `?${query}`;
}

/// Reads `path` with these parameters.
export async function read(path, parameters = {}) {
  return (await send(path + queryOf(parameters), {})).body;
}

/// Orders a decision; returns its row. A rollback may have to carry an image first.
export async function decide(body) {
  const headers = { "content-type": "application/json" };
  const options = { method: "POST", headers, body: JSON.stringify(body) };
  return (await send("/v1/decisions", options, 600_000)).body;
}

/// Reads what of `known` is missing or has changed: an answer without news has no body.
export async function readNews() {
  const { etag, caller } = known;
  const news = caller ? {} : { caller: await read("/v1/caller") };
  const answer = await send("/v1/status", { headers: etag ? { "if-none-match": etag } : {} });
  return answer.status === 304 ? news : { ...news, status: answer.body, etag: answer.etag };
}

/// Asks whether the daemon is ready; where it is not, the trouble says why.
export async function readReadiness() {
  await send("/readyz", {});
}

/// Whether the caller has a right, about this route; without one, about everything.
export function may(right, route) {
  const caller = known.caller;
  if (!caller?.rights.includes(right)) return false;
  return !caller.routes || (route && caller.routes.some((pattern) => fits(pattern, route)));
}

function fits(pattern, name) {
  const parts = pattern.split("*").map((part) => part.replace(/[^\w]/g, "\\$&"));
  return new RegExp(`^${parts.join(".*")}$`, "s").test(name);
}

/// Sends a request; returns the status, the `ETag` and the body of a success.
async function send(path, options, timeout = 60_000) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem(KEY);
  if (token) headers.authorization = `Bearer ${token}`;
  const signal = AbortSignal.timeout(timeout);
  const settings = { ...options, headers, signal, cache: "no-store", redirect: "error" };
  let answer;
  let body;
  try {
    answer = await fetch(path, settings);
    body = answer.status === 304 ? null : await answer.json();
  } catch {
    throw new Trouble(0, "silent", "The daemon does not answer.");
  }
  if (answer.ok || answer.status === 304) {
    return { status: answer.status, etag: answer.headers.get("etag"), body };
  }
  const text = body.error?.text ?? `The daemon answered ${answer.status}.`;
  throw new Trouble(answer.status, body.error?.code, text);
}
