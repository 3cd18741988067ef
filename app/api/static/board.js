// The live board: one row per session in the service's order, with filters and sorting.

import { get } from "./api.js";
import { secondsSince } from "./clock.js";
import { saveCsv } from "./csv.js";
import { arrange, byId, element, isolated, setText } from "./dom.js";
import { clearFilters, serviceQuery, sortBy, wantedId, watchFilters, whyNothing } from "./filters.js";
import { NO_VALUE, count, counted, duration, money, outcomeLabel, percent } from "./format.js";
import { sessionHash } from "./route.js";
import { drawSparkline, sparkline } from "./sparkline.js";
import { announce } from "./status.js";

const RECENT = 16;
const MAX_FURTHER_PAGES = 3;

/** The rows by session id. */
let rows = new Map();
let shown = null;

/** Add listeners to the controls; they call `onChange` when the board has to be requested again. */
export function startBoard(onChange) {
  for (const button of document.querySelectorAll("[data-order]")) {
    button.addEventListener("click", () => {
      sortBy(button.dataset.order);
      announce(`Sorted by ${button.textContent.toLowerCase()}, highest first.`);
      onChange();
    });
  }
  watchFilters(() => {
    setText(byId("find-note"), "");
    onChange();
  });
  byId("clear-filters").addEventListener("click", () => {
    clearFilters();
    byId("id-prefix").focus();
    onChange();
  });
  byId("find").addEventListener("submit", (event) => {
    event.preventDefault();
    if (wantedId()) openWanted(wantedId());
  });
  byId("csv").addEventListener("click", () => saveCsv(shown.sessions));
}

/** Open the session of this id, or else the only one that the board shows for it. */
async function openWanted(id) {
  try {
    await get(`sessions/${encodeURIComponent(id)}`);
    location.hash = sessionHash(id);
  } catch (error) {
    const [only] = rows.keys();
    if (rows.size === 1 && only.startsWith(id)) location.hash = sessionHash(only);
    else if (error.kind === "missing") setText(byId("find-note"), "No session has exactly this id.");
    else setText(byId("find-note"), error.message);
  }
}

/** Show the command that sends a first event; `needsKey`: the service requires an API key. */
export function showFirstEvent(needsKey) {
  const example = '{"session_id": "s-1", "event_name": "view_item", "item_id": "SKU-1"}';
  setText(byId("first-event"), [
    `curl ${new URL("../v1/events", document.baseURI)}`,
    ...(needsKey ? ['-H "Authorization: Bearer $WILLBUY_API_KEY"'] : []),
    "-H 'Content-Type: application/json'",
    `-d '${example}'`,
  ].join(" \\\n  "));
  // Hidden until `GET v1/model` returns `access`: before, the element is empty and does not match its label.
  byId("first-event").parentElement.hidden = false;
}

/**
 * Request the sessions of the board. If few sessions match the filters, a page of the service may have too few rows;
 * then up to three further pages are requested.
 * @return {{board: object, partial: boolean}|null} `partial`: further sessions may match. Null: the user changed the
 *   order or the filters meanwhile.
 * @throws {ApiError}
 */
export async function loadBoard() {
  const path = boardPath();
  const first = await get(path);
  const limit = Number(byId("row-limit").value);
  const sessions = new Map(first.sessions.map((session) => [session.session_id, session]));
  let cursor = first.next_cursor;
  for (let page = 0; page < MAX_FURTHER_PAGES && cursor && sessions.size < limit; page += 1) {
    const further = await get(`${path}&cursor=${encodeURIComponent(cursor)}`);
    for (const session of further.sessions) sessions.set(session.session_id, session);
    cursor = further.next_cursor;
  }
  if (path !== boardPath()) return null;
  const partial = Boolean(cursor) && sessions.size < limit;
  if (sessions.size === first.sessions.length) return { board: first, partial };
  return { board: { ...first, sessions: [...sessions.values()].slice(0, limit) }, partial };
}

const boardPath = () => `sessions?${serviceQuery()}&recent=${RECENT}`;

/** Show what `loadBoard` returned. */
export function showBoard({ board, partial }) {
  // An unchanged response: only the times since the last event change.
  if (board !== shown) fill(board);
  shown = board;
  byId("board-partial").hidden = !partial;
  for (const row of rows.values()) row.tick();
}

function fill(board) {
  const max = Math.max(0.05, ...board.sessions.flatMap((session) => [session.probability ?? 0, ...recent(session)]));
  const next = new Map();
  for (const session of board.sessions) {
    const row = rows.get(session.session_id) ?? new Row(session.session_id);
    row.fill(session, max);
    next.set(session.session_id, row);
  }
  const body = byId("rows");
  const focused = document.activeElement?.closest?.("#rows > tr") ?? null;
  const at = focused ? [...body.children].indexOf(focused) : -1;
  const nodes = [...next.values()].map((row) => row.node);
  const remains = nodes.includes(focused);
  arrange(body, nodes, remains ? focused : null);
  // The focused session left the board. Focus its neighbour, because otherwise the focus returns to the top of the page.
  if (focused && !remains) (nodes[Math.min(at, nodes.length - 1)] ?? byId("board")).querySelector("a, button")?.focus();
  rows = next;
  describe(board);
}

const recent = (session) => session.recent_probabilities ?? [];

function describe({ sessions, live_sessions: live }) {
  const why = whyNothing();
  byId("empty").hidden = sessions.length > 0 || live > 0;
  byId("no-match").hidden = sessions.length > 0 || live === 0 || why === null;
  if (why !== null) setText(byId("no-match-title"), why);
  byId("csv").hidden = sessions.length === 0;
  document.querySelector("#board table").hidden = sessions.length === 0;
  const liveSessions = counted(live, "live session");
  const summary = live === sessions.length ? liveSessions : `${count(sessions.length)} of ${liveSessions}`;
  setText(byId("board-count"), sessions.length > live ? counted(sessions.length, "session") : summary);
}

/** The row of a session. An update reuses the row's elements, so that focus and selection remain. */
class Row {
  #link;
  #bar;
  #share;
  #spark = sparkline();
  #events;
  #cart;
  #atStake;
  #lastEvent;
  #lastItem;
  #seen;
  #outcome;
  #lastSeen = null;

  constructor(sessionId) {
    this.#link = element("a", { href: sessionHash(sessionId), title: sessionId }, isolated(sessionId));
    this.#bar = element("span", { class: "fill" });
    this.#share = element("span", { class: "share" });
    const cell = (kind, ...children) => element("td", { role: "cell", class: kind }, ...children);
    this.#events = cell("c-events");
    this.#cart = element("span", {});
    this.#atStake = element("span", { class: "at-stake", title: "At stake: cart value times probability" });
    this.#lastEvent = isolated("");
    this.#lastItem = isolated("", { class: "last-item" });
    this.#seen = cell("c-seen");
    this.#outcome = element("span", { class: "outcome" });
    this.node = element("tr", { role: "row" },
      element("th", { role: "rowheader", scope: "row", class: "c-session" }, this.#link),
      cell("c-probability", element("span", { class: "bar", "aria-hidden": "true" }, this.#bar), this.#share),
      cell("c-trend", this.#spark),
      this.#events,
      cell("c-cart", this.#cart, " ", this.#atStake),
      cell("c-last-event", this.#lastEvent, " ", this.#lastItem),
      this.#seen,
      cell("c-outcome", this.#outcome));
  }

  fill(session, max) {
    this.#bar.style.inlineSize = `${100 * (session.probability ?? 0)}%`;
    setText(this.#share, percent(session.probability));
    drawSparkline(this.#spark, recent(session), max);
    setText(this.#events, count(session.events));
    const { cart_value: cart, value_at_stake: atStake, currency } = session;
    setText(this.#cart, cart === undefined ? NO_VALUE : money([{ value: cart, currency }]));
    setText(this.#atStake, atStake === undefined ? "" : money([{ value: atStake }]));
    setText(this.#lastEvent, session.last_event ?? NO_VALUE);
    setText(this.#lastItem, session.last_item_id ?? "");
    this.#lastItem.title = session.last_item_id ?? "";
    setText(this.#outcome, outcomeLabel(session.outcome));
    this.#outcome.dataset.outcome = session.outcome;
    this.#lastSeen = session.last_seen;
  }

  tick() {
    const seconds = secondsSince(this.#lastSeen);
    setText(this.#seen, seconds === null ? NO_VALUE : `${duration(seconds)} ago`);
  }
}
