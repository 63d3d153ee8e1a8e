// Before and after on top of each other with a divider, moved by pointer or arrow keys; a picture without one before; a layout drawn over it.

const hasBefore = review.shown.before !== null;
const names = review.shown.labels; // what before and after are called here

function picture(index, alt, missing, lazy = true) {
  if (index === null || index === undefined) return el("div", { class: "missing", role: "img", "aria-label": `${alt}: ${missing || "none"}` }, missing || "no picture");
  const image = el("img", { alt, width: rows.thumbs.width[index], height: rows.thumbs.height[index], decoding: "async", draggable: "false" });
  if (lazy) image.loading = "lazy";
  image.src = thumbSrc(index);
  return image;
}

const beforePicture = (row, lazy) => picture(rows.before[row], `${names.before}, ${rows.row_id[row]}`, rows.before_missing[row], lazy);
const afterPicture = (row, lazy) => picture(rows.after[row], `${names.after}, ${rows.row_id[row]}`, rows.after_missing[row], lazy);

/** The well of a card: a slider where both pictures show one frame, else the two side by side, else what there is. */
function compare(row, lazy) {
  const id = rows.row_id[row];
  if (rows.failed[row]) return failedWell(row, lazy);
  if (!hasBefore) {
    return el("div", { class: "well single", role: "group", tabindex: "-1", "aria-label": id }, afterPicture(row, lazy), layoutOf(row));
  }
  if (!sameFrame(row)) {
    return el("div", { class: "well pair", role: "group", tabindex: "-1", "aria-label": `${id}, ${names.before} and ${names.after}` }, beforePicture(row, lazy), afterPicture(row, lazy));
  }
  const well = el("div", { class: "well slider", role: "slider", tabindex: "-1", "aria-label": `${id}: share of ${names.before}`, "aria-valuemin": 0, "aria-valuemax": 100, "aria-orientation": "horizontal" });
  const after = afterPicture(row, lazy), before = beforePicture(row, lazy);
  before.classList.add("over");
  well.append(after, before, el("span", { class: "divider", "aria-hidden": "true" }), el("span", { class: "tag left", "aria-hidden": "true" }, names.before), el("span", { class: "tag right", "aria-hidden": "true" }, names.after), layoutOf(row) ?? "");
  moveTo(well, 50);
  well.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    well.setPointerCapture(event.pointerId);
    follow(well, event);
  });
  well.addEventListener("pointermove", (event) => {
    if (well.hasPointerCapture(event.pointerId)) follow(well, event);
  });
  well.addEventListener("keydown", (event) => {
    const at = Number(well.getAttribute("aria-valuenow"));
    const step = event.shiftKey ? 20 : 5;
    const to = { ArrowLeft: at - step, ArrowRight: at + step, Home: 0, End: 100 }[event.key];
    if (to === undefined) return;
    moveTo(well, to);
    event.preventDefault();
  });
  return well;
}

function failedWell(row, lazy) {
  const type = (valuesOf("error_type") || [])[row] || "failed";
  const error = (valuesOf("error") || [])[row] || "";
  return el("div", { class: "well failed", role: "group", tabindex: "-1", "aria-label": `${rows.row_id[row]} failed: ${type}` },
    hasBefore ? beforePicture(row, lazy) : null, el("div", { class: "failure" }, el("strong", {}, type), el("span", {}, error)));
}

function follow(well, event) {
  const frame = well.getBoundingClientRect();
  moveTo(well, (100 * (event.clientX - frame.left)) / frame.width);
}

function moveTo(well, percent) {
  const at = Math.max(0, Math.min(100, Math.round(percent)));
  well.style.setProperty("--at", `${at}%`);
  well.setAttribute("aria-valuenow", at);
  well.setAttribute("aria-valuetext", `${at} % ${names.before}, ${100 - at} % ${names.after}`);
}

/** Thumbnails of the references, at most `most` of them, and how many more there are. */
function references(row, most) {
  const all = rows.references[row];
  const strip = el("div", { class: "references", "aria-label": count(all.length, "reference") });
  for (const index of all.slice(0, most)) strip.append(picture(index, "reference", "missing"));
  if (all.length > most) strip.append(el("span", { class: "muted" }, `+${all.length - most}`));
  return strip;
}

/** How a row came about: its strip of pictures, each with its name, and its curve. */
function stages(row) {
  const box = el("div", { class: "stages" });
  review.shown.strip.forEach((name, i) => {
    const index = rows.strip[row][i];
    if (index !== null) box.append(el("figure", {}, picture(index, label(name), "missing"), el("figcaption", {}, label(name))));
  });
  const curve = curveOf(row, 72, 68);
  if (curve !== null) box.append(el("figure", { class: "wide" }, curve));
  return box;
}

/** The row's scores as `label value`, the first one in front. */
function scoreLine(row) {
  const line = el("span", { class: "scores" });
  for (const score of scores.filter((s) => !s.change)) {
    const value = (valuesOf(score.column) || [])[row];
    if (value !== null && value !== undefined) line.append(el("span", { title: score.label }, scoreFigure(value)));
  }
  return line;
}

/** Each subject's box over the picture, with its phrase; null where the row has no layout. Drawn in the picture's own frame, as it is fitted. */
function layoutOf(row) {
  const layout = rows.layout[row], index = rows.after[row];
  if (!layout || index === null) return null;
  const side = 100, height = (side * rows.thumbs.height[index]) / rows.thumbs.width[index];
  const words = layout.map(([phrase]) => phrase).join(", ");
  const drawing = svg("svg", { viewBox: `0 0 ${side} ${height}`, class: "layout", role: "img", "aria-label": `layout: ${words}` });
  layout.forEach(([phrase, x0, y0, x1, y1], i) => {
    const box = { x: side * x0, y: height * y0, width: side * (x1 - x0), height: height * (y1 - y0) };
    drawing.append(svg("rect", { ...box, class: `box-${i % 4}` }), svg("text", { x: box.x + 1.5, y: box.y + 6, class: `box-${i % 4}` }, phrase));
  });
  return drawing;
}

/** The words that a row was made from, as the page's kind shows them. */
function wordsOf(row) {
  const parts = review.shown.text.map((column) => (valuesOf(column) || [])[row]).filter((text) => text !== null && text !== undefined && text !== "");
  return parts.join(" → ");
}

/** Whose row it is, beside its id; empty where that says the same. */
function groupOf(row) {
  const group = rows.group[row];
  return el("span", { class: "muted group" }, group === null || group === rows.row_id[row] ? "" : el("bdi", {}, group));
}
