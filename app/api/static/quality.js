// Model quality: predictions compared with the outcomes of ended sessions, and input drift since training.

import { reliability } from "./charts.js";
import { byId, element, isolated, setText, table } from "./dom.js";
import { count, counted, duration, measure, percent } from "./format.js";

// With fewer buyers, the figures are mostly noise.
const MIN_BUYERS = 5;
// With fewer buyers, the figures are uncertain.
const ENOUGH_BUYERS = 30;
// Usual thresholds of the population stability index.
const PSI_MODERATE = 0.1;
const PSI_LARGE = 0.25;
const MAX_FEATURES = 8;

let chart = null;
let shown;

/** Create the chart. Call once. */
export function startQuality() {
  chart = reliability(byId("reliability-chart"));
}

/** Show `trust` of `GET v1/stats`, the model quality; null if the service sends none. */
export function showQuality(quality) {
  const text = JSON.stringify(quality);
  if (text === shown) return;
  shown = text;
  byId("quality-parts").hidden = !quality || quality.sessions === 0;
  setText(byId("quality-summary"), summarize(quality));
  setText(byId("quality-basis"), quality
    ? `${counted(quality.sessions, "ended session")}, ${counted(quality.buyers, "buyer")}, last ${duration(quality.window_s)}; `
      + `${count(quality.pending)} not yet counted`
    : "");
  if (!quality || quality.sessions === 0) return;
  showReliability(quality);
  showPrefixes(quality);
  showDrift(quality.drift);
}

function summarize(quality) {
  if (!quality) return "The service sends no model quality: trust in GET /v1/stats is null.";
  const { sessions, buyers, overall } = quality;
  if (sessions === 0) {
    return `Not yet known. ${notYet(quality)} A purchase ends a session at once, other sessions end after the idle time; `
      + "so the sessions that end first are nearly all buyers.";
  }
  if (buyers < MIN_BUYERS) {
    return `Only ${counted(buyers, "buyer")} among ${counted(sessions, "ended session")}: `
      + "too few to judge the model. The figures below are mostly noise.";
  }
  const means = `Over all predictions, the mean predicted probability is ${percent(overall.mean_probability)}; `
    + `the observed purchase rate is ${percent(overall.base_rate)}.`;
  return buyers < ENOUGH_BUYERS
    ? `${means} The figures are based on only ${counted(buyers, "buyer")}, so they are uncertain.`
    : means;
}

/** Say when ended sessions count; `pending` and `pending_s` as in `GET v1/stats`. */
export function notYet({ pending, pending_s: wait }) {
  return `Sessions count from ${duration(wait)} after they began; ${counted(pending, "ended session")} began later.`;
}

function showReliability({ reliability: bins, predictions }) {
  const ascending = [...bins].sort((one, other) => one.mean_probability - other.mean_probability);
  const predicted = ascending.map((bin) => bin.mean_probability);
  const observed = ascending.map((bin) => bin.purchase_rate);
  const pairs = ascending.map((_bin, at) => `predicted ${percent(predicted[at])}, observed ${percent(observed[at])}`);
  chart.show([predicted, observed], `Reliability diagram. ${pairs.join("; ")}.`);
  setText(byId("reliability-note"),
    `${counted(predictions, "prediction")} in ${counted(bins.length, "bin")}. `
    + "On the dashed line, both shares are equal. Below the line, the predicted probability is too high.");
  const rows = ascending.map((bin, at) => [percent(predicted[at]), percent(observed[at]), count(bin.predictions)]);
  byId("reliability-table").replaceChildren(table(
    [{ title: "Predicted", number: true }, { title: "Observed", number: true }, { title: "Predictions", number: true }],
    rows, "Predicted and observed by bin"));
}

function showPrefixes({ by_prefix_length: groups, overall }) {
  const row = (name, group) => [
    name, count(group.sessions), count(group.buyers), percent(group.mean_probability), percent(group.base_rate),
    measure(group.auc), measure(group.log_loss), measure(group.calibration_error),
  ];
  const name = ({ from, to }) => {
    if (to === null) return `${from}+`;
    return from === to ? String(from) : `${from}–${to}`;
  };
  const numbers = ["Sessions", "Buyers", "Predicted", "Observed", "AUC", "Log loss", "Calibration error"];
  byId("prefix-table").replaceChildren(table(
    [{ title: "Events" }, ...numbers.map((title) => ({ title, number: true }))],
    [...groups.map((group) => row(name(group), group)), row("All", overall)],
    "Model quality by number of events"));
}

function showDrift(drift) {
  setText(byId("drift-summary"), summarizeDrift(drift));
  const rows = (drift?.features ?? []).slice(0, MAX_FEATURES)
    .map(({ name, psi }) => [isolated(name), measure(psi, 2), driftLevel(psi)]);
  byId("drift-table").replaceChildren(...(rows.length
    ? [table([{ title: "Input" }, { title: "PSI", number: true }, { title: "Drift" }], rows, "Inputs with the largest drift")]
    : []));
}

function summarizeDrift(drift) {
  if (!drift) return "Unknown: the artifact contains no summary of the training data.";
  const { sessions, max_psi: max, unseen_name_share: live, trained_unseen_name_share: trained } = drift;
  const names = live === null ? "" : ` Events with an unknown name: ${percent(live)}`
    + (trained === null ? "." : `, in training ${percent(trained)}.`);
  if (max === null) return `Unknown: ${counted(sessions, "session")} compared, which is too few.${names}`;
  const result = max < PSI_MODERATE ? "Every input has a small drift" : "Some inputs have a moderate or large drift";
  return `${result}, based on ${counted(sessions, "session")}.${names}`;
}

function driftLevel(psi) {
  if (psi === null) return element("span", {}, "unknown");
  const [level, label] = psi < PSI_MODERATE ? ["good", "small"] : psi < PSI_LARGE ? ["warn", "moderate"] : ["bad", "large"];
  return element("span", { class: "mark", "data-level": level }, label);
}
