// Whether the model can be believed: what it said beside what came of it, and how far inputs have moved since training.

import { reliability } from "./charts.js";
import { byId, element, isolated, setText, table } from "./dom.js";
import { count, counted, duration, measure, percent } from "./format.js";

// Fewer buyers than that, and every figure here would be a guess.
const FEW_BUYERS = 30;
const LEAST_BUYERS = 5;
// The usual reading of a population stability index.
const PSI_MOVED = 0.1;
const PSI_FAR = 0.25;
const MOST_FEATURES = 8;

let chart = null;
let shown;

/** Make the chart's place ready. */
export function startTrust() {
  chart = reliability(byId("reliability-chart"));
}

/** Show `trust` of `GET v1/stats`; null where the service keeps none. */
export function showTrust(trust) {
  const text = JSON.stringify(trust);
  if (text === shown) return;
  shown = text;
  byId("trust-parts").hidden = !trust || trust.sessions === 0;
  setText(byId("trust-words"), trustWords(trust));
  setText(byId("trust-basis"), trust
    ? `${counted(trust.sessions, "ended session")}, ${counted(trust.buyers, "buyer")}, last ${duration(trust.window_s)}`
    : "");
  if (!trust || trust.sessions === 0) return;
  showReliability(trust);
  showPrefixes(trust);
  showDrift(trust.drift);
}

function trustWords(trust) {
  if (!trust) return "This service keeps no figures of what became of its sessions.";
  if (trust.sessions === 0) {
    return "No session has ended yet. What the model said is held against what happened as soon as sessions end: "
      + "with a purchase, or when they have been idle for long enough.";
  }
  if (trust.buyers < LEAST_BUYERS) {
    return `Only ${counted(trust.buyers, "buyer")} among ${counted(trust.sessions, "ended session")}: `
      + "too few to judge the model. These figures say next to nothing yet.";
  }
  const { mean_probability: said, base_rate: happened } = trust.overall;
  const words = `Averaged over all predictions the model said ${percent(said)}; ${percent(happened)} of them were followed by a purchase.`;
  return trust.buyers < FEW_BUYERS
    ? `${words} That rests on ${counted(trust.buyers, "buyer")} only, so take it as a first impression.`
    : words;
}

function showReliability({ reliability: bins, predictions }) {
  const ascending = [...bins].sort((one, other) => one.mean_probability - other.mean_probability);
  const said = ascending.map((bin) => bin.mean_probability);
  const happened = ascending.map((bin) => bin.purchase_rate);
  const pairs = ascending.map((bin) => `said ${percent(bin.mean_probability)}, bought ${percent(bin.purchase_rate)}`);
  chart.show([said, happened], `Reliability diagram. ${pairs.join("; ")}.`);
  setText(byId("reliability-note"),
    `${counted(predictions, "prediction")} in ${counted(bins.length, "group")}. On the dashed line the model is right on average; `
    + "below it, it promises too much.");
  const rows = ascending.map((bin) => [percent(bin.mean_probability), percent(bin.purchase_rate), count(bin.predictions)]);
  byId("reliability-table").replaceChildren(table(
    [{ title: "Said", number: true }, { title: "Bought", number: true }, { title: "Predictions", number: true }],
    rows, "Reliability by group of predictions"));
}

function showPrefixes({ by_prefix_length: groups, overall }) {
  const row = (name, group) => [name, count(group.sessions), count(group.buyers), percent(group.mean_probability), percent(group.base_rate),
    measure(group.auc), measure(group.log_loss), measure(group.calibration_error)];
  const name = ({ from, to }) => {
    if (to === null) return `${from}+`;
    return from === to ? String(from) : `${from}–${to}`;
  };
  const numbers = ["Sessions", "Buyers", "Said", "Bought", "AUC", "Log loss", "Calibration error"];
  byId("prefix-table").replaceChildren(table(
    [{ title: "Events" }, ...numbers.map((title) => ({ title, number: true }))],
    [...groups.map((group) => row(name(group), group)), row("All", overall)],
    "Quality by number of events seen"));
}

function showDrift(drift) {
  setText(byId("drift-words"), driftWords(drift));
  const rows = (drift?.features ?? []).slice(0, MOST_FEATURES).map(({ name, psi }) => [isolated(name), measure(psi, 2), verdict(psi)]);
  byId("drift-table").replaceChildren(...(rows.length
    ? [table([{ title: "Input" }, { title: "PSI", number: true }, { title: "Reading" }], rows, "Inputs that moved most")]
    : []));
}

function driftWords(drift) {
  if (!drift) return "Not known: the model brings no summary of the data that it was trained on.";
  const { sessions, max_psi: most, unseen_name_share: unseen, trained_unseen_name_share: before } = drift;
  const names = unseen === null ? "" : ` Event names that training never saw: ${percent(unseen)}`
    + (before === null ? "." : `, ${percent(before)} in training.`);
  if (most === null) return `Not known yet: ${counted(sessions, "session")} looked at, which is too few.${names}`;
  const moved = most < PSI_MOVED ? "Inputs look as they did in training" : "Some inputs differ from training";
  return `${moved}, judging by ${counted(sessions, "session")}.${names}`;
}

function verdict(psi) {
  if (psi === null) return element("span", {}, "not known");
  const [level, word] = psi < PSI_MOVED ? ["good", "steady"] : psi < PSI_FAR ? ["warn", "moved"] : ["bad", "far off"];
  return element("span", { class: "mark", "data-level": level }, word);
}
