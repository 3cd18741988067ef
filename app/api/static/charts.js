// uPlot charts with the theme's colours, the width of their container, and a text alternative for screen readers.

import { dayOf, hourOf, timeOfDay } from "./format.js";

const { uPlot } = globalThis;
const dark = matchMedia("(prefers-color-scheme: dark)");
const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';

/** Return the current value of the theme's colour `name`. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** A uPlot chart that follows the width of its container and the theme. */
class Chart {
  #host;
  #options;
  #height;
  #plot = null;
  #data = null;
  #width = 0;

  /**
   * @param {HTMLElement} host the container; the chart has the same width.
   * @param {number} height_px
   * @param {() => object} options returns uPlot's options without the size; called again when the theme changes.
   */
  constructor(host, height_px, options) {
    this.#host = host;
    this.#height = height_px;
    this.#options = options;
    new ResizeObserver(() => this.#fit()).observe(host);
    dark.addEventListener("change", () => this.#rebuild());
  }

  /** Show `data` in uPlot's format; `description` is the text alternative. */
  show(data, description) {
    this.#data = data;
    this.#host.setAttribute("role", "img");
    this.#host.setAttribute("aria-label", description);
    if (this.#plot) this.#plot.setData(data);
    else this.#rebuild();
  }

  #fit() {
    const width = Math.floor(this.#host.clientWidth);
    if (!width || width === this.#width) return;
    if (this.#plot) {
      this.#width = width;
      this.#plot.setSize({ width, height: this.#height });
    } else {
      this.#rebuild();
    }
  }

  #rebuild() {
    this.#width = Math.floor(this.#host.clientWidth);
    // A hidden view has width 0. The ResizeObserver calls again when the view is shown.
    if (!this.#data || !this.#width) return;
    this.#plot?.destroy();
    this.#plot = new uPlot(
      { width: this.#width, height: this.#height, ...this.#options() }, this.#data, this.#host);
  }
}

const axis = (options = {}) => ({
  stroke: colour("muted"),
  font: FONT,
  grid: { stroke: colour("grid"), width: 1 },
  ticks: { stroke: colour("grid"), width: 1, size: 4 },
  ...options,
});

const asPercent = (_plot, splits) => splits.map((split) => `${Number((100 * split).toPrecision(6))}%`);
const fromZero = (_plot, _min, max) => [0, max > 0 ? max * 1.1 : 1];

/** Histogram with bins of equal width from 0 to 1: `show([midpoints, counts])`. */
export function histogram(host) {
  return new Chart(host, 170, () => ({
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { time: false, range: [0, 1] }, y: { range: (_plot, _min, max) => [0, Math.max(1, max * 1.05)] } },
    axes: [
      axis({ values: asPercent, grid: { show: false }, space: 40, size: 28 }),
      axis({ size: 44, space: 28, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6] }),
    ],
    series: [{}, {
      fill: colour("accent"),
      width: 0,
      points: { show: false },
      paths: uPlot.paths.bars({ size: [0.85, 100] }),
    }],
  }));
}

/** Lines over time: `show([seconds, ...values])`. A null value breaks a line. */
export function timeLines(host, names) {
  const colours = ["accent", "second", "third"];
  return new Chart(host, 150, () => ({
    legend: { show: names.length > 1, live: false },
    cursor: { show: false },
    scales: { x: { time: true }, y: { range: fromZero } },
    axes: [
      axis({ grid: { show: false }, space: 80, size: 28, values: (_plot, splits) => splits.map((split) => timeOfDay(1000 * split)) }),
      axis({ size: 44, space: 28 }),
    ],
    series: [
      {},
      ...names.map((label, at) => ({
        label,
        stroke: colour(colours[at]),
        width: 2,
        dash: at === 0 ? undefined : [6, 2 * at],
        fill: names.length === 1 ? colour("wash") : undefined,
        points: { show: (plot) => plot.data[0].length < 2 },
      })),
    ],
  }));
}

/** Hours as "14:00", and days in a longer span. */
const hourLabels = (plot, splits) => {
  const { min, max } = plot.scales.x;
  return splits.map((split) => (max - min > 2 * 86400 ? dayOf : hourOf)(1000 * split));
};
const hourAxis = () => axis({ grid: { show: false }, space: 70, size: 28, values: hourLabels });
// uPlot's own range of one point alone is years.
const hourRange = ({ data: [hours] }) => [hours[0] - 1800, Math.max(hours[hours.length - 1], hours[0] + 3600) + 1800];

/** Predicted and actual conversion: `show([seconds, actual, predicted])`. A null value breaks a line. */
export function conversionLines(host) {
  return new Chart(host, 190, () => ({
    legend: { show: true, live: false },
    cursor: { show: false },
    scales: { x: { time: true, range: hourRange }, y: { range: fromZero } },
    axes: [hourAxis(), axis({ values: asPercent, size: 48, space: 34 })],
    series: [
      {},
      ...["actual", "predicted"].map((label, at) => ({
        label,
        stroke: colour(at ? "second" : "accent"),
        width: 2,
        dash: at ? [6, 4] : undefined,
        points: { show: (plot) => plot.data[0].length <= 48, size: 6, fill: colour(at ? "second" : "accent") },
      })),
    ],
  }));
}

/** Sessions by the hour: `show([seconds, counted, not yet counted])`. */
export function hourlyVolume(host) {
  const bars = (name) => ({ fill: colour(name), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.8, 40] }) });
  return new Chart(host, 190, () => ({
    legend: { show: true, live: false },
    cursor: { show: false },
    scales: { x: { time: true, range: hourRange }, y: { range: (_plot, _min, max) => [0, Math.max(1, max * 1.05)] } },
    axes: [hourAxis(), axis({ size: 44, space: 28 })],
    series: [{}, { label: "counted", ...bars("accent") }, { label: "not yet counted", ...bars("muted") }],
  }));
}

/** Reliability diagram with the diagonal of perfect calibration: `show([predicted, observed])`, `predicted` ascending. */
export function reliability(host) {
  const upper = (plot) => Math.min(1, 1.08 * Math.max(0.01, ...plot.data[0], ...plot.data[1]));
  return new Chart(host, 260, () => ({
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { time: false, range: (plot) => [0, upper(plot)] }, y: { range: (plot) => [0, upper(plot)] } },
    axes: [
      axis({ values: asPercent, label: "predicted probability", labelFont: FONT, labelSize: 20, size: 30, space: 50 }),
      axis({ values: asPercent, label: "observed purchase rate", labelFont: FONT, labelSize: 20, size: 48, space: 34 }),
    ],
    series: [{}, {
      stroke: colour("accent"),
      width: 2,
      points: { show: true, size: 8, fill: colour("accent"), stroke: colour("surface") },
    }],
    hooks: { drawAxes: [diagonal] },
  }));
}

function diagonal(plot) {
  const { ctx } = plot;
  const { max } = plot.scales.x;
  ctx.save();
  ctx.strokeStyle = colour("muted");
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([6 * devicePixelRatio, 5 * devicePixelRatio]);
  ctx.beginPath();
  ctx.moveTo(plot.valToPos(0, "x", true), plot.valToPos(0, "y", true));
  ctx.lineTo(plot.valToPos(max, "x", true), plot.valToPos(max, "y", true));
  ctx.stroke();
  ctx.restore();
}

/**
 * A session's probabilities: `show([eventNumbers, probabilities])`. `onPoint` gets the index under the pointer, or null;
 * `label` returns the text above a point, drawn where there is room.
 */
export function probabilityTrend(host, onPoint, label) {
  return new Chart(host, 260, () => ({
    legend: { show: false },
    cursor: { drag: { x: false, y: false }, y: false },
    scales: {
      x: { time: false, range: (_plot, min, max) => (min === max ? [min - 1, max + 1] : [min, max]) },
      y: { range: (_plot, _min, max) => [0, Math.min(1, Math.max(0.05, max * 1.1))] },
    },
    axes: [
      axis({ grid: { show: false }, label: "event", labelFont: FONT, labelSize: 20, size: 30, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500], space: 30 }),
      axis({ values: asPercent, size: 48, space: 34 }),
    ],
    series: [{}, {
      stroke: colour("accent"),
      fill: colour("wash"),
      width: 2,
      points: { show: (plot) => plot.data[0].length <= 60, size: 7, fill: colour("accent"), stroke: colour("surface") },
    }],
    hooks: { setCursor: [(plot) => onPoint(plot.cursor.idx ?? null)], draw: [(plot) => drawLabels(plot, label)] },
  }));
}

const LABEL_WIDTH = 44;
const LABEL_HEIGHT = 24;

function drawLabels(plot, label) {
  const [numbers, values] = plot.data;
  if (numbers.length < 2 || plot.width / numbers.length < LABEL_WIDTH) return;
  const { ctx } = plot;
  ctx.save();
  ctx.fillStyle = colour("muted");
  ctx.font = FONT.replace("12px", `${12 * devicePixelRatio}px`);
  ctx.textAlign = "center";
  for (let at = 1; at < numbers.length; at += 1) {
    const point = plot.valToPos(values[at], "y", true);
    const isLow = point + LABEL_HEIGHT * devicePixelRatio > plot.bbox.top + plot.bbox.height;
    const y = point + (values[at] >= values[at - 1] || isLow ? -10 : 18) * devicePixelRatio;
    ctx.fillText(label(at), plot.valToPos(numbers[at], "x", true), y);
  }
  ctx.restore();
}
