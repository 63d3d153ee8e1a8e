// The contact sheet: only the cards near the window are in the document, at places known beforehand, so 10,000 rows scroll like ten.

const sheet = $("sheet");
const GAP = 20; // px, also the heights below; page.css has the same
const CAPTION = 58;
const STRIP = 44;
const WORDS = 40; // two lines of the words that a picture was made from
const STAGES = 96;
const hasWords = review.shown.text.length > 0;
const hasReferences = review.shown.references !== null && rows.references.some((all) => all.length > 0);
const hasStages = rows.strip.some((all) => all.some((index) => index !== null)) || rows.curve.some((curve) => curve !== null);
const cards = new Map(); // position in view -> card
let viewKind = "slider";
let layout = { columns: 1, width: 0, height: 0 };
let current = 0;

function measure() {
  const width = sheet.clientWidth;
  const least = width < 600 ? (viewKind === "slider" ? 150 : 300) : viewKind === "slider" ? 208 : 340;
  const columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
  const cardWidth = (width - GAP * (columns - 1)) / columns;
  const media = viewKind === "slider" ? cardWidth : (cardWidth - 2) / 2;
  layout = { columns, width: cardWidth, height: Math.round(media + CAPTION + (hasReferences ? STRIP : 0) + (hasStages ? STAGES : 0) + (hasWords ? WORDS : 0)) };
  sheet.style.setProperty("--card", `${cardWidth}px`);
  sheet.style.setProperty("--media", `${media}px`);
  sheet.style.height = `${Math.max(0, Math.ceil(view.length / columns) * (layout.height + GAP) - GAP)}px`;
}

function place(position) {
  const line = Math.floor(position / layout.columns);
  return { x: (position % layout.columns) * (layout.width + GAP), y: line * (layout.height + GAP) };
}

function card(position) {
  const row = view[position], id = rows.row_id[row];
  const node = el("article", { class: rows.failed[row] ? "card is-failed" : "card", role: "listitem", "aria-posinset": position + 1, "aria-setsize": view.length });
  const well = compare(row);
  const open = el("button", { class: "row-id", type: "button", tabindex: "-1", title: id, "aria-label": `Open ${id}` }, el("bdi", {}, id));
  open.addEventListener("click", () => openDetail(position));
  well.addEventListener("dblclick", () => openDetail(position));
  well.addEventListener("focus", () => setCurrent(position));
  node.append(well);
  if (hasReferences) node.append(references(row, Math.max(1, Math.floor((layout.width - 24) / 44))));
  if (hasStages) node.append(stages(row));
  if (hasWords) node.append(el("p", { class: "words small", title: wordsOf(row) }, el("bdi", {}, wordsOf(row))));
  node.append(el("div", { class: "caption" }, open, el("div", { class: "line" }, groupOf(row), rows.failed[row] ? el("span", { class: "bad" }, "failed") : scoreLine(row))));
  return node;
}

/** Put the cards near the window into the document and take the others out; the one with the focus stays. */
function draw() {
  if (sheet.offsetParent === null) return;
  const top = -sheet.getBoundingClientRect().top, step = layout.height + GAP, over = Math.max(step, window.innerHeight / 2);
  const first = Math.max(0, Math.floor((top - over) / step)) * layout.columns;
  const last = Math.min(view.length, Math.ceil((top + window.innerHeight + over) / step) * layout.columns);
  for (const [position, node] of cards) {
    if ((position < first || position >= last) && !node.contains(document.activeElement)) {
      node.remove();
      cards.delete(position);
    }
  }
  for (let position = first; position < last; position++) ensure(position);
}

function ensure(position) {
  let node = cards.get(position);
  if (node === undefined) {
    node = card(position);
    const { x, y } = place(position);
    node.style.transform = `translate(${x}px, ${y}px)`;
    const next = [...cards.keys()].filter((p) => p > position).sort((a, b) => a - b)[0];
    sheet.insertBefore(node, next === undefined ? null : cards.get(next)); // reading order is view order
    cards.set(position, node);
    tabbable(node, position === current);
  }
  return node;
}

function tabbable(node, yes) {
  for (const part of node.querySelectorAll(".well, .row-id")) part.tabIndex = yes ? 0 : -1;
}

function setCurrent(position) {
  const old = cards.get(current);
  if (old) tabbable(old, false);
  current = position;
  const now = cards.get(position);
  if (now) tabbable(now, true);
}

/** Give the focus to a row's card, scrolled into view below the toolbar. */
function focusCard(position) {
  if (!view.length) return;
  const to = Math.max(0, Math.min(view.length - 1, position));
  setCurrent(to);
  const { y } = place(to);
  const top = sheet.getBoundingClientRect().top + y, head = 64;
  if (top < head) window.scrollBy(0, top - head);
  else if (top + layout.height > window.innerHeight - 12) window.scrollBy(0, Math.min(top - head, top + layout.height - window.innerHeight + 12));
  draw();
  const node = ensure(to);
  tabbable(node, true);
  node.querySelector(".well").focus({ preventScroll: true });
}

function redraw() {
  for (const node of cards.values()) node.remove();
  cards.clear();
  measure();
  draw();
}

listeners.push(() => {
  current = 0;
  $("nothing").hidden = view.length > 0;
  sheet.hidden = view.length === 0;
  const top = $("pictures").getBoundingClientRect().top;
  if (top < 0) window.scrollBy(0, top); // a shorter sheet must not leave the window past its end
  redraw();
});

let waiting = false;
function soon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}
window.addEventListener("scroll", soon, { passive: true });
new ResizeObserver(() => {
  if (sheet.offsetParent !== null && sheet.clientWidth !== Math.round(layout.columns * (layout.width + GAP) - GAP)) redraw();
}).observe(sheet);
