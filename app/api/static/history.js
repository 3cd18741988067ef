// History: conversion, predicted against actual, and volume by the hour, of the last day or week.

import { get } from "./api.js";
import { conversionLines, hourlyVolume } from "./charts.js";
import { byId, setText, table } from "./dom.js";
import { count, counted, dateAndTime, duration, money, percent } from "./format.js";

// The service reads the counts at most every 15 seconds.
const EVERY_MS = 15000;

let askedAt = -Infinity;
let shown = null;
let conversion = null;
let volume = null;

/** Create the charts. Call once; `onChange` is called when the user chooses another period. */
export function startHistory(onChange) {
  conversion = conversionLines(byId("conversion-chart"));
  volume = hourlyVolume(byId("volume-chart"));
  byId("history-hours").addEventListener("input", () => {
    askedAt = -Infinity;
    onChange();
  });
}

/**
 * Request the history, unless the last response is recent, and show it.
 * @throws {ApiError}
 */
export async function updateHistory() {
  if (performance.now() - askedAt < EVERY_MS) return;
  askedAt = performance.now();
  const hours = byId("history-hours").value;
  try {
    const history = await get(`history?hours=${hours}`);
    if (hours === byId("history-hours").value) show(history);
  } catch (error) {
    askedAt = -Infinity;
    throw error;
  }
}

function show({ hours, pending_s: pending }) {
  const text = JSON.stringify(hours);
  if (text === shown) return;
  shown = text;
  byId("history-parts").hidden = byId("history-details").hidden = hours.length === 0;
  setText(byId("history-summary"), summary(hours));
  setText(byId("history-note"), hours.length
    ? `By the hour in which sessions began. They count ${duration(pending)} after that, because buyers end first. Predicted: after the first event.`
    : "");
  if (!hours.length) return;
  const seconds = hours.map((hour) => Date.parse(hour.start) / 1000);
  const column = (name) => hours.map((hour) => hour[name]);
  conversion.show([seconds, column("conversion"), column("predicted")], `Conversion by the hour. ${summary(hours)}`);
  volume.show([
    seconds,
    hours.map((hour) => (hour.complete ? hour.sessions : null)),
    hours.map((hour) => (hour.complete ? null : hour.sessions)),
  ], `Sessions by the hour, from ${dateAndTime(hours[0].start)}. The table below lists every value.`);
  byId("history-table").replaceChildren(table(
    [{ title: "Hour" }, ...["Sessions", "Events", "Purchases", "Conversion", "Predicted", "Revenue"].map((title) => ({ title, number: true }))],
    hours.map((hour) => [
      dateAndTime(hour.start), count(hour.sessions), count(hour.events), count(hour.purchases),
      percent(hour.conversion), percent(hour.predicted), money(hour.revenue),
    ]), "History by the hour"));
}

/** One sentence over the hours that count. */
function summary(hours) {
  const counting = hours.filter((hour) => hour.complete && hour.sessions);
  const pending = hours.reduce((sum, hour) => sum + (hour.complete ? 0 : hour.sessions), 0);
  const later = pending ? ` ${counted(pending, "ended session")} not yet counted.` : "";
  if (!counting.length) return `Not yet known.${later}`;
  const sum = (of) => counting.reduce((total, hour) => total + of(hour), 0);
  const sessions = sum((hour) => hour.sessions);
  const known = counting.filter((hour) => hour.predicted !== null);
  const expected = known.reduce((total, hour) => total + hour.predicted * hour.sessions, 0) / known.reduce((total, hour) => total + hour.sessions, 0);
  const revenue = new Map();
  for (const { currency, value } of counting.flatMap((hour) => hour.revenue)) revenue.set(currency, (revenue.get(currency) ?? 0) + value);
  const worth = revenue.size ? `, worth ${money([...revenue].map(([currency, value]) => ({ currency, value })))}` : "";
  return `${counted(sum((hour) => hour.purchases), "purchase")}${worth}, of ${counted(sessions, "session")}: `
    + `${percent(sum((hour) => hour.purchases) / sessions)} bought, ${percent(expected)} predicted.${later}`;
}
