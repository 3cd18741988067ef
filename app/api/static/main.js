// Entry point: the URL hash selects the view, and one poller updates the view.

import { ApiError, get, useKey } from "./api.js";
import { loadBoard, showBoard, showFirstEvent, startBoard } from "./board.js";
import { setServiceTime } from "./clock.js";
import { byId } from "./dom.js";
import { addressQuery, offerRules, takeFilters } from "./filters.js";
import { count } from "./format.js";
import { startHistory, updateHistory } from "./history.js";
import { startInterventions, updateInterventions } from "./interventions.js";
import { showModel } from "./model.js";
import { keepSample, showOverview, startOverview } from "./overview.js";
import { Poller } from "./poller.js";
import { showQuality, startQuality } from "./quality.js";
import { currentRoute, sessionHash } from "./route.js";
import { openSession, refreshSession, startSession } from "./session.js";
import { showFailure, showHalted, showWorking } from "./status.js";

let route = currentRoute();
let modelShown = null;
let paused = false;
let scrolled = false;

const poller = new Poller(poll, (error, waitMs) => {
  if (!(error instanceof ApiError)) console.error(error);
  showFailure(error, waitMs);
});

/** Request everything that the view shows. If one request fails, the page still shows the other responses. */
async function poll() {
  const view = route.session === null ? [updateBoard(), updateInterventions(), updateHistory()] : [refreshSession()];
  const results = await Promise.allSettled([loadStats(), ...view]);
  const failure = results.find((result) => result.status === "rejected");
  if (failure) throw failure.reason;
  showWorking(overload(results[0].value));
  scrollOnce();
}

/** Scroll to the section in the URL after the first poll, because the parts above then have their final height. */
function scrollOnce() {
  if (!scrolled && route.session === null && route.section !== "overview") byId(route.section).scrollIntoView();
  scrolled = true;
}

async function loadStats() {
  const figures = await get("stats");
  setServiceTime(figures.as_of);
  keepSample(figures);
  if (route.session === null) {
    showOverview(figures);
    showQuality(figures.trust);
  }
  if (figures.model !== modelShown) {
    const model = await get("model");
    showModel(model);
    showFirstEvent(model.access !== "open");
    modelShown = model.fingerprint;
  }
  return figures;
}

async function updateBoard() {
  const board = await loadBoard();
  if (board) showBoard(board);
}

function overload({ queue }) {
  if (!queue.overloaded) return null;
  return `${count(queue.length)} events are queued; the capacity is ${count(queue.capacity)}. `
    + "A full queue rejects events with status 503.";
}

/** Show the view of the URL hash. With `byUser`, move the focus to the view, as loading a page does. */
function navigate(byUser) {
  const before = route;
  route = currentRoute();
  byId("overview").hidden = route.session !== null;
  byId("session").hidden = route.session === null;
  if (route.session !== null) openSession(route.session);
  else takeFilters(route.query);
  linkFilters();
  document.title = route.session === null ? "Live board · willbuy" : `Session ${route.session} · willbuy`;
  for (const link of document.querySelectorAll(".top nav a")) {
    const here = route.session === null && link.hash.split("?")[0] === (route.section === "overview" ? "#/" : `#/${route.section}`);
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (byUser) moveFocus(before);
  poller.pollNow();
}

/** Give the links to the overview the current filters. */
function linkFilters() {
  for (const link of document.querySelectorAll(".top nav a, .brand, #back")) {
    link.setAttribute("href", link.hash.split("?")[0] + addressQuery());
  }
}

/** Put the filters into the address, so that a reload, the back button and a copied link keep them. */
function keepFilters() {
  if (route.session === null) history.replaceState(null, "", location.hash.split("?")[0].replace(/^$/, "#/") + addressQuery());
  linkFilters();
  poller.pollNow();
}

function moveFocus(before) {
  if (route.session !== null) {
    scrollTo(0, 0);
    byId("session-title").focus();
    return;
  }
  // After a session's view, the focus returns to the row of the session.
  const link = before.session === null ? null
    : document.querySelector(`#rows a[href="${CSS.escape(sessionHash(before.session))}"]`);
  if (link && route.section === "overview") {
    link.focus();
    return;
  }
  byId(`${route.section}-title`).focus();
  if (route.section !== "overview") byId(route.section).scrollIntoView();
}

/** Pause or resume polling. While paused, the page sends requests only for a view that the user opens. */
function togglePause() {
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

startBoard(keepFilters);
startOverview();
startInterventions(offerRules);
startHistory(() => poller.pollNow());
startQuality();
startSession();
byId("pause").addEventListener("click", togglePause);
byId("retry").addEventListener("click", () => poller.pollNow());
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  poller.pollNow();
});
byId("skip").addEventListener("click", (event) => {
  // The URL hash is the route, so the link must not change the hash.
  event.preventDefault();
  byId("main").focus();
});
document.addEventListener("visibilitychange", followVisibility);
addEventListener("hashchange", () => navigate(true));
navigate(false);
if (document.hidden) followVisibility();
