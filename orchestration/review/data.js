// The page's data and which rows are in view. Text from manifests is only ever set as text (el, textContent).

const review = JSON.parse(document.getElementById("data").textContent);
const rows = review.rows;
const total = rows.row_id.length;
const searched = rows.row_id.map((id, row) => [id, ...review.shown.text.map((column) => (rows.values[column] || [])[row] ?? "")].join("\n").toLowerCase());
const scores = review.scores;
const $ = (id) => document.getElementById(id);

/** An element with properties and children; strings become text. */
function el(tag, properties, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";
function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const count = (n, one, many) => `${number.format(n)} ${n === 1 ? one : many || one + "s"}`;

/** A number to three figures, or a dash for null. */
function figure(x) {
  if (x === null || x === undefined) return "–";
  if (Math.abs(x) >= 1000) return number.format(x);
  return String(Number(x.toPrecision(3)));
}

/** A score: decimals of one length, so that a column of them can be compared at a glance. */
const scoreFigure = (x) => (Math.abs(x) < 10 ? x.toFixed(3) : figure(x));

function duration(seconds) {
  if (seconds < 59.5) return `${figure(seconds)} s`;
  const whole = Math.round(seconds), minutes = Math.round(seconds / 60);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Folder-relative picture of a thumbnail's number. */
function thumbSrc(index) {
  const key = rows.thumbs.key[index];
  return `thumbs/${key.slice(0, 2)}/${key}.jpg`;
}

/** Whether before and after show the same frame, so that one can be laid over the other. */
function sameFrame(row) {
  const before = rows.before[row], after = rows.after[row];
  if (before === null || after === null) return false;
  const shape = (i) => rows.thumbs.width[i] / rows.thumbs.height[i];
  return Math.abs(shape(before) / shape(after) - 1) < 0.03;
}

function valuesOf(column) {
  return rows.values[column] || null;
}

const filters = { text: "", status: "all", group: "", errorType: null, ranges: new Map() };
const orders = [{ key: "plan", label: "as planned", column: null, sign: 1 }];
for (const score of scores) {
  const low = { key: `${score.column}+`, label: `${score.label}, lowest first`, column: score.column, sign: 1 };
  const high = { key: `${score.column}-`, label: `${score.label}, highest first`, column: score.column, sign: -1 };
  orders.push(...(score.higher_is_better ? [low, high] : [high, low]));
}
orders.push({ key: "model_ms-", label: "slowest first", column: "model_ms", sign: -1 });
orders.push({ key: "id", label: "row id", column: null, sign: 1 });
let order = orders[0];

/** Numbers of the rows that pass the filters, in the chosen order. */
function selected() {
  const text = filters.text.trim().toLowerCase();
  const ranges = [...filters.ranges].map(([column, span]) => [valuesOf(column) || [], span]);
  const types = valuesOf("error_type");
  const found = [];
  for (let row = 0; row < total; row++) {
    if (filters.status !== "all" && rows.failed[row] !== (filters.status === "failed" ? 1 : 0)) continue;
    if (filters.group && rows.group[row] !== filters.group) continue;
    if (filters.errorType !== null && (types === null || (types[row] ?? "unknown") !== filters.errorType || !rows.failed[row])) continue;
    if (text && !searched[row].includes(text)) continue;
    let inside = true;
    for (const [values, span] of ranges) {
      const value = values[row];
      if (value === null || value === undefined || (span.low !== null && value < span.low) || (span.high !== null && value >= span.high)) {
        inside = false;
        break;
      }
    }
    if (inside) found.push(row);
  }
  return sorted(found);
}

function sorted(found) {
  if (order.key === "plan") return found;
  if (order.key === "id") return found.sort((a, b) => (rows.row_id[a] < rows.row_id[b] ? -1 : 1));
  const values = valuesOf(order.column) || [];
  const known = (row) => values[row] !== null && values[row] !== undefined;
  return found.sort((a, b) => known(b) - known(a) || (known(a) ? order.sign * (values[a] - values[b]) : 0) || a - b);
}

let view = [];
const listeners = [];

/** Filter anew and tell every part of the page. */
function refresh() {
  view = selected();
  for (const listener of listeners) listener();
}

function setRange(column, low, high) {
  filters.ranges.set(column, { low, high });
  refresh();
}

function clearFilters() {
  Object.assign(filters, { text: "", status: "all", group: "", errorType: null });
  filters.ranges.clear();
  refresh();
}
