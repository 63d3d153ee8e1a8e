// One row, large: the slider, the pictures beside each other, and everything that is known of it.

const dialog = $("detail");
let shownPosition = 0;

function openDetail(position) {
  fillDetail(position);
  if (!dialog.open) dialog.showModal();
  dialog.querySelector(".well").focus();
}

function fillDetail(position) {
  shownPosition = Math.max(0, Math.min(view.length - 1, position));
  showRow(view[shownPosition], `${number.format(shownPosition + 1)} of ${number.format(view.length)}`);
}

function showRow(row, where) {
  const id = rows.row_id[row];
  const well = compare(row, false);
  well.tabIndex = 0;
  const pictures = el("div", { class: "beside" }, hasBefore ? beside(names.before, beforePicture(row, false), rows.before_link[row]) : null, rows.failed[row] ? null : beside(names.after, afterPicture(row, false), rows.after_link[row]));
  rows.others[row].forEach((index, i) => pictures.append(beside(`picture ${i + 1}`, picture(index, `picture ${i + 1}`, "missing", false), null)));
  review.shown.strip.forEach((name, i) => { if (rows.strip[row][i] !== null) pictures.append(beside(label(name), picture(rows.strip[row][i], label(name), "missing", false), null)); });
  rows.references[row].forEach((index, i) => pictures.append(beside(`reference ${i + 1}`, picture(index, `reference ${i + 1}`, "missing", false), null)));
  const facts = el("dl", { class: "facts" });
  for (const [name, values] of Object.entries(rows.values)) {
    const value = values[row];
    if (value !== null && value !== undefined && value !== "") facts.append(el("dt", {}, label(name)), el("dd", {}, el("bdi", {}, typeof value === "number" ? plainNumber(value) : String(value))));
  }
  const curve = curveOf(row, 320, 150);
  dialog.replaceChildren(
    el("header", {}, el("h2", { id: "detail-title" }, el("bdi", {}, id)), el("span", { class: "muted" }, where),
      el("button", { type: "button", class: "quiet", "aria-label": "Previous row", onclick: () => stepDetail(-1) }, "‹"),
      el("button", { type: "button", class: "quiet", "aria-label": "Next row", onclick: () => stepDetail(1) }, "›"),
      el("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: () => dialog.close() }, "Close")),
    el("div", { class: "detail-body" }, el("div", { class: "large" }, well, review.shown.text.length ? el("p", { class: "words" }, el("bdi", {}, wordsOf(row))) : null), el("div", { class: "known" }, pictures, curve, facts)),
  );
}

const plainNumber = (value) => (Number.isInteger(value) ? String(value) : figure(value));
const label = (name) => (scores.find((s) => s.column === name) || { label: name.replaceAll("_", " ") }).label;

function beside(name, image, link) {
  const caption = link ? el("a", { href: link, target: "_blank", rel: "noopener" }, `${name} file`) : name;
  return el("figure", {}, image, el("figcaption", {}, caption));
}

function stepDetail(by) {
  const to = shownPosition + by;
  if (to < 0 || to >= view.length) return;
  const focused = document.activeElement ? document.activeElement.getAttribute("aria-label") : null;
  fillDetail(to);
  const again = [...dialog.querySelectorAll("header button")].find((b) => b.getAttribute("aria-label") === focused);
  (again || dialog.querySelector(".well")).focus();
}

dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // the backdrop
});
dialog.addEventListener("close", () => {
  if (!$("pictures").hidden) focusCard(shownPosition);
});
