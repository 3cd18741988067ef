// Sparkline of a row, in SVG: with uPlot, a board of 200 rows would need 200 canvases.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 96;
const HEIGHT = 24;
const MARGIN = 3;

/** Return an empty sparkline, hidden from screen readers, because the row has the probability as text. */
export function sparkline() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("class", "spark");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(SVG, "polyline"), document.createElementNS(SVG, "circle"));
  return svg;
}

/**
 * Draw `values` from left to right on a scale from 0 to `max`, with a dot at the last value.
 *
 * The scale is a square root. Most sessions stay below a few percent, and a linear scale would draw them as flat lines.
 */
export function drawSparkline(svg, values, max) {
  const [line, dot] = svg.children;
  svg.toggleAttribute("hidden", values.length === 0);
  if (!values.length) return;
  const step = (WIDTH - 2 * MARGIN) / Math.max(1, values.length - 1);
  const points = values.map((value, at) => [
    (values.length === 1 ? WIDTH - MARGIN : MARGIN + at * step).toFixed(1),
    (HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * Math.sqrt(Math.min(1, value / max))).toFixed(1),
  ]);
  const [x, y] = points[points.length - 1];
  line.setAttribute("points", points.map((point) => point.join(",")).join(" "));
  dot.setAttribute("cx", x);
  dot.setAttribute("cy", y);
  dot.setAttribute("r", "2.5");
}
