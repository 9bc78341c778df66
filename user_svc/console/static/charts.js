// The charts of the last 15 minutes, drawn by uPlot (window.uPlot). A row each five seconds; the oldest falls out.

import { $, count, duration, element, rate } from "./dom.js";

const ROWS = 180;
const SPAN_S = 900;
const HEIGHT = 190;
const DURATIONS = [0.1, 0.5, 1, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400, 172800, 604800];
const STATES = ["closed", "half open", "open"]; // as the samples number them

const CHARTS = [
  {
    title: "Registrations and sends, a second",
    series: [
      ["accepted_per_second", "registrations", "--one", []],
      ["sent_per_second", "sends", "--two", [6, 4]],
    ],
    say: (n) => `${rate(n)}/s`,
  },
  { title: "Queue, in mails", series: [["queue_size", "depth", "--one", []]], say: (n) => count(n) },
  { title: "Oldest mail in the queue", series: [["oldest_age_seconds", "age", "--one", []]], say: duration },
  {
    title: "Verdicts, a second",
    note: "path: no mail would have got through · message: that mail alone · other: throttled, not known",
    series: [
      ["sent", "sent", "--two", []],
      ["path", "path", "--three", [6, 4]],
      ["message", "message", "--four", [2, 3]],
      ["other", "other", "--five", [9, 3, 2, 3]],
    ],
    say: (n) => `${rate(n)}/s`,
  },
];

const KEYS = CHARTS.flatMap((chart) => chart.series.map(([key]) => key));
let columns = null; // {at, breaker, <key>: []}
let drawn = [];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** All columns anew, as GET /overview/samples has them. */
export function showSamples(samples) {
  columns = { at: [...samples.at], breaker: [...samples.breaker] };
  for (const key of KEYS) columns[key] = [...(samples[key] ?? samples.verdicts_per_second?.[key] ?? samples.at.map(() => null))];
  redraw();
}

/** One row more. */
export function addSample(row) {
  columns ??= Object.fromEntries(["at", "breaker", ...KEYS].map((key) => [key, []]));
  if (columns.at.length && row.at <= columns.at.at(-1)) return; // it came with the columns already
  columns.at.push(row.at);
  columns.breaker.push(row.breaker ?? null);
  for (const key of KEYS) columns[key].push(row[key] ?? row.verdicts_per_second?.[key] ?? null);
  if (columns.at.length > ROWS) for (const column of Object.values(columns)) column.shift();
  redraw();
}

const dataOf = (chart) => [columns.at, ...chart.series.map(([key]) => columns[key]), columns.breaker];

function redraw() {
  if (!columns || !columns.at.length) return;
  $("no-samples").hidden = true;
  if (!drawn.length) drawn = CHARTS.map(make);
  for (const { chart, plot, latest } of drawn) {
    plot.setData(dataOf(chart));
    latest.textContent = chart.series.map(([key, name]) => `${name} ${words(chart, columns[key].at(-1))}`).join(", ");
  }
}

const words = (chart, n) => (n === null || n === undefined ? "–" : chart.say(n));

/** Behind the lines: where the breaker was open (hatched) or half open (dotted). */
function band(u) {
  const { left, top, width, height } = u.bbox;
  const [at, states] = [u.data[0], u.data.at(-1)];
  u.ctx.save();
  u.ctx.beginPath();
  u.ctx.rect(left, top, width, height);
  u.ctx.clip();
  for (let first = 0; first < at.length; ) {
    let last = first;
    while (last + 1 < at.length && states[last + 1] === states[first]) last += 1;
    if (states[first] === 1 || states[first] === 2) {
      const from = u.valToPos(at[first] - 2.5, "x", true);
      fill(u, from, u.valToPos(at[last] + 2.5, "x", true) - from, states[first] === 2);
    }
    first = last + 1;
  }
  u.ctx.restore();
}

function fill(u, x, width, open) {
  const { top, height } = u.bbox;
  const step = (open ? 8 : 6) * devicePixelRatio;
  u.ctx.save();
  u.ctx.beginPath();
  u.ctx.rect(x, top, width, height);
  u.ctx.clip();
  u.ctx.globalAlpha = 0.14;
  u.ctx.fillStyle = colour(open ? "--bad" : "--warn");
  u.ctx.fillRect(x, top, width, height);
  u.ctx.globalAlpha = 0.45;
  u.ctx.strokeStyle = u.ctx.fillStyle;
  u.ctx.lineWidth = devicePixelRatio;
  u.ctx.beginPath();
  if (open) {
    for (let at = x - height; at < x + width; at += step) {
      u.ctx.moveTo(at, top + height);
      u.ctx.lineTo(at + height, top);
    }
    u.ctx.stroke();
  } else {
    for (let dx = x + step / 2; dx < x + width; dx += step) {
      for (let dy = top + step / 2; dy < top + height; dy += step) u.ctx.fillRect(dx, dy, devicePixelRatio * 1.5, devicePixelRatio * 1.5);
    }
  }
  u.ctx.restore();
}

const plain = (n) => Number(n.toFixed(2)).toLocaleString("en");
const clock = (s) => new Date(s * 1000).toLocaleTimeString("en-GB");

function axis(more) {
  const line = { stroke: colour("--line"), width: 1 };
  return { stroke: colour("--quiet"), grid: line, ticks: { ...line, size: 4 }, font: "12px system-ui, sans-serif", ...more };
}

function make(chart) {
  const latest = element("span", { className: "quiet" });
  const place = element("div");
  const figure = element("figure", {}, element("figcaption", { text: `${chart.title} ` }, latest), place);
  if (chart.note) figure.append(element("p", { className: "note quiet", text: chart.note }));
  $("chart-area").append(figure);
  const timed = chart.say === duration;
  const value = (_, n) => words(chart, n);
  const plot = new uPlot(
    {
      width: place.clientWidth || 300,
      height: HEIGHT,
      cursor: { sync: { key: "all" }, drag: { x: false, y: false } },
      scales: { x: { time: true, range: (_, __, last) => [last - SPAN_S, last] }, y: { range: (_, __, high) => [0, Math.max(high ?? 0, 1) * 1.08] }, state: { range: [0, 2] } },
      axes: [
        axis({ values: (_, splits) => splits.map((s) => clock(s).slice(0, 5)), space: 60, size: 28 }),
        axis({ size: 76, space: 34, values: (_, splits) => splits.map(timed ? duration : plain), ...(timed && { incrs: DURATIONS }) }),
      ],
      series: [
        { label: "time", value: (_, s) => (s === null || s === undefined ? "–" : clock(s)) },
        ...chart.series.map(([, label, name, dash]) => ({ label, dash, stroke: () => colour(name), width: 2, points: { show: false }, value })),
        { label: "breaker", scale: "state", paths: () => null, points: { show: false }, value: (_, n) => STATES[n] ?? "–" },
      ],
      hooks: { drawClear: [band] },
    },
    dataOf(chart),
    place,
  );
  new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height: HEIGHT })).observe(place);
  return { chart, plot, latest };
}

// Other colours: the axes keep theirs, so the charts are made anew.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const { plot } of drawn) plot.destroy();
  drawn = [];
  $("chart-area").replaceChildren();
  redraw();
});
