// The page put together: the address says what is shown, one poller keeps it up to date.

import { ApiError, get, useKey } from "./api.js";
import { loadBoard, showBoard, showFirstEvent, startBoard } from "./board.js";
import { setServiceTime } from "./clock.js";
import { byId } from "./dom.js";
import { count } from "./format.js";
import { showModel } from "./model.js";
import { keepSample, showOverview, startOverview } from "./overview.js";
import { Poller } from "./poller.js";
import { currentRoute, sessionHash } from "./route.js";
import { openSession, refreshSession, startSession } from "./session.js";
import { showFailure, showHalted, showWorking } from "./status.js";
import { showTrust, startTrust } from "./quality.js";

let route = currentRoute();
let modelShown = null;
let paused = false;
let arrived = false;

const poller = new Poller(poll, (error, waitMs) => {
  if (!(error instanceof ApiError)) console.error(error);
  showFailure(error, waitMs);
});

/** Ask once for everything that is on the page. What worked is shown, whatever else failed. */
async function poll() {
  const results = await Promise.allSettled([stats(), route.session === null ? board() : refreshSession()]);
  const failure = results.find((result) => result.status === "rejected");
  if (failure) throw failure.reason;
  showWorking(overload(results[0].value));
  arrive();
}

/** Go to the section that the page was opened at, once everything above it has its size. */
function arrive() {
  if (!arrived && route.session === null && route.section !== "overview") byId(route.section).scrollIntoView();
  arrived = true;
}

async function stats() {
  const answer = await get("stats");
  setServiceTime(answer.as_of);
  keepSample(answer);
  if (route.session === null) {
    showOverview(answer);
    showTrust(answer.trust);
  }
  if (answer.model !== modelShown) {
    const model = await get("model");
    showModel(model);
    showFirstEvent(model.access !== "open");
    modelShown = model.fingerprint;
  }
  return answer;
}

async function board() {
  const answer = await loadBoard();
  if (answer) showBoard(answer);
}

function overload({ queue }) {
  if (!queue.overloaded) return null;
  return `${count(queue.length)} events wait, ${count(queue.capacity)} may; further ones are refused until there is room.`;
}

/** Show what the address says; `byUser` moves the focus there, as a new page would. */
function navigate(byUser) {
  const before = route;
  route = currentRoute();
  byId("overview").hidden = route.session !== null;
  byId("session").hidden = route.session === null;
  if (route.session !== null) openSession(route.session);
  document.title = route.session === null ? "Live board · willbuy" : `Session ${route.session} · willbuy`;
  for (const link of document.querySelectorAll(".top nav a")) {
    const here = route.session === null && link.hash === (route.section === "overview" ? "#/" : `#/${route.section}`);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (byUser) moveFocus(before);
  poller.poke();
}

function moveFocus(before) {
  if (route.session !== null) {
    scrollTo(0, 0);
    byId("session-title").focus();
    return;
  }
  // Back on the board, the keyboard goes on at the row that it left.
  const left = before.session === null ? null : document.querySelector(`#rows a[href="${CSS.escape(sessionHash(before.session))}"]`);
  if (left && route.section === "overview") left.focus();
  else byId(`${route.section}-title`).focus();
}

/** Paused, the page asks only for what the user opens. */
function pause() {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  if (paused) poller.halt("paused");
  else poller.release("paused");
  showHalted(paused ? "paused" : null);
}

function followVisibility() {
  if (document.hidden) poller.halt("hidden");
  else poller.release("hidden");
  showHalted(paused ? "paused" : document.hidden ? "hidden" : null);
}

startBoard(() => poller.poke());
startOverview();
startTrust();
startSession();
byId("pause").addEventListener("click", pause);
byId("retry").addEventListener("click", () => poller.poke());
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  poller.poke();
});
byId("skip").addEventListener("click", (event) => {
  // The address is the route, so the link must not become part of it.
  event.preventDefault();
  byId("main").focus();
});
document.addEventListener("visibilitychange", followVisibility);
addEventListener("hashchange", () => navigate(true));
navigate(false);
if (document.hidden) followVisibility();
