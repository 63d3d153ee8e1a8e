// Puts the page together: headline, filters, tabs, keys, and dark or light.

const { job, counts, verdict, cost, timing } = review;

function headline() {
  document.body.dataset.tone = verdict.tone;
  $("job").append(el("bdi", {}, job.name), ` · ${job.kind}`, job.finished ? ` · finished ${job.finished.replace("T", " ").slice(0, 16)} UTC` : " · not finished");
  const figures = [["done", number.format(counts.ok)], ["failed", number.format(counts.failed)]];
  if (counts.reused) figures.push(["reused", number.format(counts.reused)]);
  for (const score of scores.filter((s) => !s.change)) {
    const d = score.distribution;
    if (d.rows) figures.push([score.label.toLowerCase(), figure(d.median), `median; 90 % between ${figure(d.p05)} and ${figure(d.p95)}`]);
  }
  if (timing.rows_per_s) figures.push(["rows a second", figure(timing.rows_per_s)]);
  if (timing.wall_s) figures.push(["running time", duration(timing.wall_s)]);
  if (cost.money !== null) figures.push(["cost", figure(cost.money)]);
  for (const [name, value, note] of figures) $("figures").append(el("div", {}, el("dt", {}, name), el("dd", {}, value), note ? el("p", { class: "muted small" }, note) : null));
  for (const note of verdict.notes) {
    $("notes").append(el("li", {}, note.filter ? el("button", { type: "button", class: "note", onclick: () => showNote(note.filter) }, note.text, el("span", { "aria-hidden": "true" }, " →")) : note.text));
  }
  if (!verdict.notes.length && total) $("notes").append(el("li", { class: "muted" }, scores.length ? "Nothing stands out. The worst scores are worth a look all the same." : "Nothing stands out."));
  const all = counts.ok + counts.failed + counts.reused;
  if (total < all) $("notes").append(el("li", { class: "muted" }, `This page shows ${number.format(total)} of ${number.format(all)} rows: failed ones, the lowest and highest scores, and a sample. Its numbers are those of all rows.`));
}

function showNote(filter) {
  Object.assign(filters, { text: "", status: "all", group: "", errorType: filter.error_type ?? null });
  filters.ranges.clear();
  if (filter.column) filters.ranges.set(filter.column, { low: filter.low ?? null, high: filter.high ?? null });
  showTab("pictures");
  refresh();
  $("pictures").scrollIntoView();
}

function controls() {
  const groups = [...new Set(rows.group)].filter((g) => g !== null);
  groups.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  $("group-field").hidden = groups.length < 2;
  if (review.shown.group) $("group-label").textContent = label(review.shown.group).replace(/ id$/, "").replace(/^./, (c) => c.toUpperCase());
  $("groups").append(...groups.map((group) => el("option", { value: group })));
  const usable = orders.filter((o) => o.column === null || valuesOf(o.column) !== null);
  $("order").append(...usable.map((o) => el("option", { value: o.key }, o.label)));
  $("search").addEventListener("input", () => { filters.text = $("search").value; refresh(); });
  $("group").addEventListener("input", () => {
    const value = $("group").value;
    if (value !== "" && !groups.includes(value)) return;
    filters.group = value;
    refresh();
  });
  $("order").addEventListener("change", () => { order = orders.find((o) => o.key === $("order").value); refresh(); });
  $("status").addEventListener("click", (event) => {
    const status = event.target.dataset.status;
    if (status) { filters.status = status; refresh(); }
  });
  $("view").addEventListener("click", (event) => {
    const kind = event.target.dataset.view;
    if (!kind || kind === viewKind) return;
    viewKind = kind;
    sheet.classList.toggle("pairs", kind === "pairs");
    for (const button of $("view").children) button.setAttribute("aria-pressed", String(button.dataset.view === kind));
    redraw();
  });
  $("view").hidden = !hasBefore;
  $("layout").hidden = !rows.layout.some((layout) => layout !== null);
  $("layout").addEventListener("click", () => {
    const on = document.body.classList.toggle("no-layout") === false;
    $("layout").setAttribute("aria-pressed", String(on));
  });
  if (hasWords) {
    $("search-label").textContent = "Words or row id";
    $("search").placeholder = "part of them";
  }
  $("clear").addEventListener("click", clearFilters);
  for (const score of scores) $("histograms").append(histogram(score.column, score.label, score.distribution) ?? "");
  $("histograms").append(histogram("model_ms", "Model time, ms", review.model_ms) ?? "");
  if (window.matchMedia("(max-width: 860px)").matches) $("rail").open = false;
}

listeners.push(() => {
  $("count").textContent = view.length === total ? count(total, "row") : `${number.format(view.length)} of ${count(total, "row")}`;
  for (const button of $("status").children) button.setAttribute("aria-pressed", String(button.dataset.status === filters.status));
  if (document.activeElement !== $("search")) $("search").value = filters.text;
  if (document.activeElement !== $("group")) $("group").value = filters.group;
  const chips = [];
  const chip = (text, drop) => chips.push(el("button", { type: "button", class: "chip", "aria-label": `Remove filter ${text}`, onclick: () => { drop(); refresh(); } }, text, el("span", { "aria-hidden": "true" }, " ×")));
  if (filters.errorType !== null) chip(filters.errorType, () => { filters.errorType = null; });
  for (const [column, { low, high }] of filters.ranges) {
    const span = low === null ? `below ${figure(high)}` : high === null ? `${figure(low)} and more` : `${figure(low)} to ${figure(high)}`;
    chip(`${label(column)} ${span}`, () => filters.ranges.delete(column));
  }
  $("chips").replaceChildren(...chips);
});

function extremes() {
  const box = $("extremes");
  let any = false;
  for (const score of scores) {
    const values = valuesOf(score.column);
    if (values === null) continue;
    const known = rows.row_id.map((_, row) => row).filter((row) => values[row] !== null && values[row] !== undefined && !rows.failed[row]);
    known.sort((a, b) => values[a] - values[b]);
    const most = Math.min(12, Math.ceil(known.length / 2));
    const low = known.slice(0, most), high = known.slice(known.length - most).reverse();
    const [worst, best] = score.higher_is_better ? [low, high] : [high, low];
    if (known.length) any = true;
    for (const [title, list] of [[`Worst by ${score.label.toLowerCase()}`, worst], [`Best by ${score.label.toLowerCase()}`, best]]) {
      if (list.length) box.append(el("h2", {}, title), el("div", { class: "strip" }, ...list.map((row) => smallCard(row))));
    }
  }
  if (!any) box.append(el("p", { class: "muted" }, "No row of this job has a score."));
}

function smallCard(row) {
  const well = compare(row);
  well.tabIndex = 0;
  const open = () => { filters.ranges.clear(); Object.assign(filters, { text: "", status: "all", group: "", errorType: null }); refresh(); openDetail(view.indexOf(row)); };
  return el("article", { class: "card small-card" }, well, references(row, 3), el("div", { class: "caption" }, el("button", { class: "row-id", type: "button", title: rows.row_id[row], onclick: open }, el("bdi", {}, rows.row_id[row])), el("div", { class: "line" }, groupOf(row), scoreLine(row))));
}

function failures() {
  const box = $("failures");
  if (counts.failed) $("tab-failures").append(el("span", { class: "muted" }, ` ${number.format(counts.failed)}`));
  if (!review.failures.length) box.append(el("p", { class: "muted" }, "No row failed."));
  for (const group of review.failures) {
    const texts = el("ul", { class: "errors" });
    for (const text of group.texts) {
      texts.append(el("li", {}, el("p", { class: "error" }, el("bdi", {}, text.example || "no text")), el("p", { class: "muted small" }, `${count(text.count, "row")}: `, el("bdi", {}, text.row_ids.join(", ")), text.count > text.row_ids.length ? " …" : "")));
    }
    box.append(el("section", { class: "failure-group" },
      el("h2", {}, el("span", { class: "bad" }, group.error_type), el("span", { class: "muted" }, ` ${count(group.count, "row")}${group.stage ? `, in stage ${group.stage}` : ""}`)),
      el("p", {}, group.what_to_do), texts,
      el("p", {}, el("button", { type: "button", class: "link", onclick: () => showNote({ error_type: group.error_type }) }, "Show these rows")), code(group.retry)));
  }
}

function times() {
  const box = $("time");
  if (!timing.series.length) box.append(el("p", { class: "muted" }, "No times were noted for this job."));
  else box.append(el("h2", {}, "Rows a second over running time"), rateChart(timing));
  const facts = [
    ["Running time", duration(timing.wall_s), timing.starts.length ? `${timing.starts.length + 1} drivers, idle time between them left out` : ""],
    ["First block committed after", timing.first_block_s ? duration(timing.first_block_s) : "–", ""],
    ["Rows a second", figure(timing.rows_per_s), ""],
    ["Seconds a thousand rows", figure(cost.seconds_per_1000), ""],
    ["Time in the model", duration(cost.model_s), cost.model_share === null ? "" : `${figure(100 * cost.model_share)} % of the replicas' time`],
    ["Replica hours", figure(cost.replica_hours), count(cost.replicas, "replica")],
    ["Cost", figure(cost.money), cost.money === null ? "set resources.price_per_hour in the job file to see it" : `${figure(cost.money_per_1000)} a thousand rows`],
  ];
  box.append(el("h2", {}, "What it took"), el("dl", { class: "facts wide" }, ...facts.flatMap(([name, value, note]) => [el("dt", {}, name), el("dd", {}, value, note ? el("span", { class: "muted" }, `  ${note}`) : null)])));
}

function run() {
  const box = $("run"), { run } = review;
  const list = (entries) => el("dl", { class: "facts wide" }, ...entries.flatMap(([name, value]) => [el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, el("bdi", {}, String(value)))]));
  box.append(el("h2", {}, "Commands"), el("dl", { class: "commands" }, ...run.commands.flatMap(([what, command]) => [el("dt", {}, what), el("dd", {}, code(command))])));
  box.append(el("h2", {}, "What decides the result"), list([["fingerprint", run.fingerprint], ...Object.entries(run.parts)]));
  box.append(el("h2", {}, "Drivers"), run.attempts.length ? el("ol", { class: "attempts" }, ...run.attempts.map((attempt) => el("li", {}, list(Object.entries(attempt))))) : el("p", { class: "muted" }, "None noted."));
  box.append(el("h2", {}, "Job file"), code(run.job_file), el("p", { class: "muted small" }, `Folder ${job.folder}; begun ${job.created ?? "–"}; this page written ${job.written}.`));
}

function code(text) {
  const button = el("button", { type: "button", class: "quiet copy" }, "Copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  });
  return el("div", { class: "code" }, el("pre", { tabindex: "0" }, text), navigator.clipboard ? button : null);
}

const tabs = [...document.querySelectorAll("[role=tab]")];
function showTab(name, focus = false) {
  for (const tab of tabs) {
    const on = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
    if (on && focus) tab.focus();
    $(tab.getAttribute("aria-controls")).hidden = !on;
  }
  if (name === "pictures") redraw();
}
tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => showTab(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    showTab(tabs[(to + tabs.length) % tabs.length].getAttribute("aria-controls"), true);
    event.preventDefault();
  });
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.closest("input, select, textarea");
  if (dialog.open) {
    const by = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (by) { stepDetail(by); event.preventDefault(); }
    return;
  }
  if (event.key === "Escape") {
    if (typing) typing.blur();
    if ($("pictures").hidden) showTab("pictures");
    else clearFilters();
    return;
  }
  if (typing || $("pictures").hidden) return;
  const onCard = event.target.closest(".card") !== null, onWell = event.target.closest(".well") !== null;
  if (event.key === "j") focusCard(onCard ? current + 1 : current);
  else if (event.key === "k") focusCard(current - 1);
  else if (event.key === "ArrowDown" && onCard) focusCard(current + layout.columns);
  else if (event.key === "ArrowUp" && onCard) focusCard(current - layout.columns);
  else if (event.key === "Enter" && onWell) openDetail(current);
  else if (event.key === "/") { $("rail").open = true; $("search").focus(); }
  else if (event.key === "f") { filters.status = filters.status === "failed" ? "all" : "failed"; refresh(); }
  else return;
  event.preventDefault();
});

const dark = window.matchMedia("(prefers-color-scheme: dark)");
function theme(chosen) {
  const now = chosen ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset.theme = now;
  $("theme").textContent = now === "dark" ? "Light" : "Dark";
}
function remembered(value) {
  try {
    if (value) localStorage.setItem("calotype-theme", value);
    return localStorage.getItem("calotype-theme");
  } catch {
    return null; // a browser that keeps nothing for local files
  }
}
$("theme").addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  remembered(next);
  theme(next);
});
dark.addEventListener("change", () => theme(remembered()));

theme(remembered());
headline();
controls();
extremes();
failures();
times();
run();
showTab("pictures");
refresh();
document.documentElement.dataset.ready = "true";
