// Distributions whose bars filter the sheet, and the rate over time.

const histograms = [];

/** Bars of one column. Grey: all rows of the job; in front: the rows in view. A click keeps a bar's rows, a second one lets go. */
function histogram(column, title, dist) {
  if (!dist.rows) return null;
  const most = Math.max(...dist.counts), bars = [];
  const box = el("div", { class: "bars", role: "group", "aria-label": `${title}: how many rows by value` });
  dist.counts.forEach((n, i) => {
    const low = dist.edges[i], open = dist.open_end && i === dist.counts.length - 1, high = open ? null : dist.edges[i + 1];
    const text = `${figure(low)} ${open ? "and more" : `to ${figure(high)}`}: ${count(n, "row")}`;
    const bar = el("button", { type: "button", class: "bar", title: text, "aria-label": text, "aria-pressed": "false", tabindex: i === 0 ? "0" : "-1" }, el("span", { class: "all" }), el("span", { class: "some" }));
    bar.firstChild.style.height = `${n ? Math.max(2, (100 * n) / most) : 0}%`;
    bar.addEventListener("click", () => {
      const now = filters.ranges.get(column);
      if (now && now.low === low && now.high === high) {
        filters.ranges.delete(column);
        refresh();
      } else setRange(column, low, high);
    });
    bar.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: bars.length - 1 }[event.key];
      if (to === undefined || !bars[to]) return;
      bar.tabIndex = -1;
      bars[to].tabIndex = 0;
      bars[to].focus();
      event.preventDefault();
    });
    bars.push(bar);
    box.append(bar);
  });
  histograms.push({ column, dist, most, bars });
  const note = dist.missing ? el("p", { class: "muted small" }, `${count(dist.missing, "row")} without`) : null;
  return el("figure", { class: "histogram" },
    el("figcaption", {}, el("span", {}, title), el("span", { class: "muted" }, `median ${figure(dist.median)}`)), box,
    el("div", { class: "axis muted", "aria-hidden": "true" }, el("span", {}, figure(dist.edges[0])), el("span", {}, figure(dist.edges[dist.edges.length - 1]) + (dist.open_end ? "+" : ""))), note);
}

listeners.push(() => {
  for (const { column, dist, most, bars } of histograms) {
    const values = valuesOf(column) || [], tally = new Array(bars.length).fill(0);
    const first = dist.edges[0], width = (dist.edges[bars.length] - first) / bars.length;
    for (const row of view) {
      const value = values[row];
      if (value !== null && value !== undefined) tally[Math.max(0, Math.min(bars.length - 1, Math.floor((value - first) / width + 1e-6)))]++;
    }
    const range = filters.ranges.get(column);
    bars.forEach((bar, i) => {
      bar.lastChild.style.height = `${tally[i] ? Math.max(2, (100 * tally[i]) / most) : 0}%`;
      bar.setAttribute("aria-pressed", String(Boolean(range && range.low === dist.edges[i])));
    });
  }
});

/** Rows a second over running time; a dashed line where a further driver took over. */
function rateChart(timing) {
  const width = 720, height = 200, left = 44, bottom = 24, top = 12;
  const end = Math.max(timing.wall_s, 1e-9), most = Math.max(...timing.series.map((p) => p[1]), 1e-9);
  const x = (t) => left + ((width - left - 8) * t) / end, y = (r) => height - bottom - ((height - bottom - top) * r) / most;
  const points = timing.series.map(([t, r]) => `${x(t).toFixed(1)},${y(r).toFixed(1)}`);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "rate", role: "img", "aria-label": `Rate over ${duration(end)}, at most ${figure(most)} rows a second` });
  for (const share of [0, 0.5, 1]) {
    chart.append(svg("line", { x1: left, x2: width - 8, y1: y(most * share), y2: y(most * share), class: "grid" }));
    chart.append(svg("text", { x: left - 8, y: y(most * share) + 4, "text-anchor": "end" }, figure(most * share)));
  }
  for (const start of timing.starts) chart.append(svg("line", { x1: x(start), x2: x(start), y1: top, y2: height - bottom, class: "start" }));
  chart.append(svg("polyline", { points: points.join(" "), class: "curve" }));
  if (points.length === 1) chart.append(svg("circle", { cx: points[0].split(",")[0], cy: points[0].split(",")[1], r: 3, class: "dot" }));
  for (const share of [0, 0.5, 1]) chart.append(svg("text", { x: x(end * share), y: height - 6, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" }, duration(end * share)));
  return chart;
}

/** A row's curve, such as the error while it was tuned, from its first to its last step; null where it has none. */
function curveOf(row, width, height) {
  const curve = rows.curve[row];
  if (curve === null) return null;
  const [steps, values] = curve, low = Math.min(...values), high = Math.max(...values), last = steps.length - 1;
  const x = (step) => 3 + ((width - 6) * (step - steps[0])) / (steps[last] - steps[0] || 1);
  const y = (value) => 14 + ((height - 28) * (high - value)) / (high - low || 1);
  const points = steps.map((step, i) => `${x(step).toFixed(1)},${y(values[i]).toFixed(1)}`).join(" ");
  const text = `${scoreFigure(values[0])} at step ${steps[0]}, ${scoreFigure(values[last])} at step ${steps[last]}`;
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "curve-of-row", role: "img", "aria-label": text },
    svg("polyline", { points }), svg("circle", { cx: x(steps[last]), cy: y(values[last]), r: 2 }),
    svg("text", { x: 3, y: 9 }, scoreFigure(values[0])), svg("text", { x: width - 3, y: height - 3, "text-anchor": "end" }, `${scoreFigure(values[last])} · ${steps[last]}`));
}
