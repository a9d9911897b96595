// The one door to the service: same-origin calls with the session's cookies, refreshed once when they have expired.

import { t } from "./i18n.js";

/** What the service (or the way to it) says went wrong. `title` is in the reader's language, `detail` in the service's words. */
export class Problem extends Error {
  constructor({ status = 0, title, detail = "", field = null, wait = null }) {
    super(title);
    this.status = status;
    this.title = title;
    this.detail = wait === null ? detail : `${detail} ${t("error_wait", { seconds: wait })}`.trim();
    this.field = field;
  }
}

/** The session is over: only signing in again helps. */
export class SessionEnded extends Problem {
  constructor() {
    super({ status: 401, title: t("error_401") });
  }
}

const TITLES = { 400: 400, 408: 400, 414: 413, 415: 400, 401: 401, 403: 403, 404: 404, 409: 409, 413: 413, 422: 400, 429: 429, 502: 502, 503: 503, 504: 502, 507: 503 };

/** A Problem from the problem+json object of a response or of a stream's `problem` event. */
export function problemOf(status, body, wait = null) {
  const said = body !== null && typeof body === "object" ? body : {};
  const detail = typeof said.detail === "string" ? said.detail : "";
  const field = typeof said.field === "string" ? said.field : null;
  return new Problem({ status, title: t(`error_${TITLES[status] ?? 500}`), detail, field, wait });
}

async function problemFrom(response) {
  const seconds = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  const body = await response.json().catch(() => null);
  return problemOf(response.status, body, Number.isInteger(seconds) && seconds > 0 ? seconds : null);
}

async function send(path, { method, body, signal }) {
  const headers = { accept: "application/json, text/event-stream" };
  if (body !== undefined) headers["content-type"] = "application/json";
  try {
    return await fetch(path, {
      method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin", redirect: "error", cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: t("error_network"), detail: t("error_network_text") });
  }
}

let refreshing = null;

// Calls that find the session expired at the same moment share one refresh: a rotated token must not be shown twice.
function refresh() {
  refreshing ??= send("/auth/refresh", { method: "POST" })
    .then(async (response) => {
      if (response.ok) return;
      if ([400, 401, 403].includes(response.status)) throw new SessionEnded();
      throw await problemFrom(response);
    })
    .finally(() => { refreshing = null; });
  return refreshing;
}

/**
 * Calls the service. Gives the successful Response; throws SessionEnded, Problem, or AbortError when `signal` fired.
 * `session: false` is for the calls that make a session: a 401 there is an answer, not an expiry.
 */
export async function call(path, { method = "GET", body, signal, session = true } = {}) {
  let response = await send(path, { method, body, signal });
  if (response.status === 401 && session) {
    await refresh();
    response = await send(path, { method, body, signal });
    if (response.status === 401) throw new SessionEnded();
  }
  if (!response.ok) throw await problemFrom(response);
  return response;
}

/** As `call`, and reads the JSON body (null where there is none). */
export async function callJson(path, options) {
  const response = await call(path, options);
  return response.status === 204 ? null : response.json().catch(() => null);
}
