"use strict";
// Tables, legend, samples and files. Text from run folders is only ever set as text.

/** An SVG element with attributes and children. */
function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const SHAPES = {
  circle: "M14 2a4 4 0 1 0 .01 0z",
  square: "M10.5 2.5h7v7h-7z",
  diamond: "M14 1l5 5-5 5-5-5z",
  "triangle-up": "M14 1.5l4.5 8h-9z",
  "triangle-down": "M14 10.5l4.5-8h-9z",
  cross: "M12.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
  x: "M10 3.5L11.5 2 14 4.5 16.5 2 18 3.5 15.5 6 18 8.5 16.5 10 14 7.5 11.5 10 10 8.5 12.5 6z",
  star: "M14 .8l1.5 3.4 3.8.4-2.8 2.5.8 3.7L14 8.9l-3.3 1.9.8-3.7-2.8-2.5 3.8-.4z",
};

/** A short piece of the line as it is drawn, with its marker. */
function swatch(look) {
  const line = {
    d: "M1 6H27",
    stroke: colour(look),
    "stroke-width": 2,
    "stroke-dasharray": dashes(look, 1),
    fill: "none",
  };
  const marker = { d: SHAPES[look.symbol], fill: colour(look) };
  return svg(
    "svg",
    { class: "look", width: 28, height: 12, "aria-hidden": true },
    svg("path", line),
    svg("path", marker),
  );
}

const colour = (look) => {
  const all = dark() ? data.looks.dark : data.looks.light;
  return all[look.colour % all.length];
};
const dashes = (look, width) => look.dash.map((length) => `${length * width}px`).join();
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const escaped = (text) => text.slice(0, 60).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const faded = (hex, alpha) =>
  hex +
  Math.round(alpha * 255)
    .toString(16)
    .padStart(2, "0");

/** Fill a table with a head and rows of cells; without rows, with a remark. */
function fill(id, head, rows, remark) {
  const body = rows.length ? rows : [[el("td", { className: "faint" }, remark)]];
  $(id).replaceChildren(
    el("thead", {}, el("tr", {}, ...head)),
    el("tbody", {}, ...body.map((cells) => el("tr", {}, ...cells))),
  );
}

const column = (title, props = {}) => el("th", { scope: "col", ...props }, title);
const textCell = (text) => el("td", { className: "left" }, text);
const heading = (line) => el("th", { scope: "row", title: line.label }, swatch(line.look), line.label);
const deviation = (spread, format) =>
  spread === null ? "" : el("span", { className: "pm" }, ` \u00b1${format(spread)}`);

function drawArrivals() {
  const rows = arrivals();
  const aim = target();
  const axes = Object.keys(AXES);
  const nice = aim === null ? "" : String(Number(aim.toFixed(4)));
  if (document.activeElement !== $("target")) $("target").value = nice;
  $("target-name").textContent = aim === null ? "a target loss" : `${curveTitle(metric())} ${nice}`;
  const none = () => [el("td", { colSpan: axes.length, className: "left faint" }, "not reached")];
  fill(
    "arrivals",
    [column("run"), ...axes.map((axis) => column(AXES[axis]))],
    rows.map((row) => [heading(row.line), ...(row.reached ? axes.map((axis) => arrivalCell(row, axis)) : none())]),
    "No validation yet.",
  );
  drawHeadline(rows, nice);
}

function arrivalCell(row, axis) {
  const { mean, spread } = row.at[axis];
  const faster = row.faster[axis]; // NaN where the mean is 0
  const bar = el("span", { className: "bar" });
  bar.style.width = `${100 / faster || 0}%`;
  bar.style.setProperty("--bar", colour(row.line.look));
  const of = row.line.members.length;
  return el(
    "td",
    {},
    short(mean),
    deviation(spread, short),
    axis === "step" && row.reached < of ? el("span", { className: "pm" }, ` (${row.reached} of ${of})`) : "",
    el("span", { className: "times" }, faster ? `${faster.toFixed(2)}\u00d7` : ""),
    bar,
  );
}

/** The sentence of lm.compare.table.headline, for what is shown. */
function drawHeadline(rows, aim) {
  const there = rows.filter((row) => row.reached && row.reached === row.line.members.length);
  if (there.length < 2 || !data.comparable) return $("headline").replaceChildren();
  const [first, last] = [there[0], there.at(-1)];
  const [steps, seconds] = ["step", "train_seconds"].map((axis) => first.faster[axis] / last.faster[axis]);
  const strong = (text) => el("strong", {}, text);
  const times = (value) => `${Number(value.toPrecision(2))} times`;
  const fewer = steps >= 1.05 ? [strong(`${times(steps)} fewer steps`), " than "] : ["as many steps as "];
  let less = ["."];
  if (seconds >= 1.05) less = [", and in ", strong(`${times(seconds)} less`), " training time."];
  else if (seconds <= 0.95) less = [", but takes ", strong(times(1 / seconds)), " its training time."];
  const sentence = [strong(first.line.label), ` reaches ${aim} in `, ...fewer, strong(last.line.label), ...less];
  $("headline").replaceChildren(...sentence);
}

function sortedLines() {
  const { key, up } = state.sort;
  const value = (line) => (key in line.row ? line.row[key].mean : line[key]);
  return lines().sort((a, b) => {
    const [p, q] = [value(a), value(b)];
    if (p === null || q === null) return (p === null) - (q === null); // what has no number comes last either way
    return (up ? 1 : -1) * (typeof p === "string" ? p.localeCompare(q, "en", { numeric: true }) : p - q);
  });
}

function drawResults() {
  const all = sortedLines();
  const measures = data.measures.filter(([key]) => all.some((line) => line.row[key].mean !== null));
  const least = Math.min(...all.map((line) => line.row["val/loss"].mean ?? Infinity));
  const head = ([key, title]) => {
    const order = state.sort.key !== key ? {} : { "aria-sort": state.sort.up ? "ascending" : "descending" };
    const props = { className: TEXTS.includes(key) ? "left" : "", ...order };
    return column(el("button", { type: "button", "data-sort": key }, title), props);
  };
  const cell = (line, [key, , exact, spread]) => {
    const { mean, spread: over } = line.row[key];
    const format = exact ? fixed : short;
    const win = key === "val/loss" && mean === least;
    return el("td", { className: win ? "win" : "" }, format(mean), spread ? deviation(over, format) : "");
  };
  const focus = document.activeElement?.dataset?.sort;
  fill(
    "results",
    [["label", "run"], ...measures, ...TEXTS.map((key) => [key, key])].map(head),
    all.map((line) => [
      heading(line),
      ...measures.map((measure) => cell(line, measure)),
      ...TEXTS.map((key) => textCell(line[key])),
    ]),
    "No run yet.",
  );
  if (focus) $("results").querySelector(`[data-sort="${focus}"]`)?.focus();
}

function drawDifferences() {
  const shown = shownLines();
  const index = new Map(data.order.map((id, i) => [id, i]));
  const value = (values, line) => [...new Set(line.members.map((run) => values[index.get(run.id)]))].join(", ");
  const rows = data.differences
    .map(([key, values]) => [key, ...shown.map((line) => value(values, line))])
    .filter(([, ...values]) => new Set(values).size > 1);
  const head = [column("option"), ...shown.map(({ label }) => column(label, { className: "left", title: label }))];
  fill(
    "differences",
    rows.length ? head : [],
    rows.map(([key, ...values]) => [el("th", { scope: "row" }, key), ...values.map(textCell)]),
    "The runs that are shown have the same options.",
  );
}

function drawLegend() {
  const focus = document.activeElement?.dataset?.line;
  const chips = lines().map(({ label, look, members }, i) => {
    const props = { "data-line": i, "aria-pressed": String(members.some(seen)) };
    return el(
      "button",
      { type: "button", className: "chip", title: label, ...props },
      swatch(look),
      el("span", {}, label),
    );
  });
  $("legend").replaceChildren(...chips);
  if (focus !== undefined) $("legend").children[focus]?.focus();
}

function toggleLine(index) {
  const { members } = lines()[index];
  const on = members.some(seen);
  for (const run of members) state.hidden[on ? "add" : "delete"](run.id);
  drawAll();
}

function drawSamples() {
  const shown = shownLines().filter((line) => line.members.some((run) => run.samples.length));
  const all = shown.flatMap((line) => line.members.flatMap((run) => run.samples.map(([step]) => step)));
  const steps = [...new Set(all)].sort((a, b) => a - b);
  $("samples-section").hidden = steps.length === 0;
  if (!steps.length) return;
  const at = steps.findLastIndex((step) => step <= state.sampleStep);
  const index = Math.max(0, at);
  const slider = $("sample-step");
  Object.assign(slider, { max: steps.length - 1, value: index, steps });
  slider.setAttribute("aria-valuetext", `step ${steps[index]}`);
  $("sample-value").textContent = steps[index].toLocaleString("en");
  const cards = shown.slice(0, MOST_SAMPLES).map((line) => sampleOf(line, steps[index]));
  const content = JSON.stringify([dark(), cards.map(({ run, text, note }) => [run.id, text, note])]);
  // what has not changed stays as it is, scrolled or selected
  if (content !== $("samples").content) $("samples").replaceChildren(...cards.map(sampleCard));
  $("samples").content = content;
  const more = shown.length - MOST_SAMPLES;
  $("samples-more").textContent = more > 0 ? `and ${more} more: switch runs off above to see them` : "";
}

/** The newest sample at a step of the first of a line's runs that has any, and the loss there. */
function sampleOf(line, step) {
  const run = line.members.find((member) => member.samples.length);
  const [at, text] = run.samples.findLast(([when]) => when <= step) ?? [null, ""];
  if (at === null) return { run, text, note: "not yet", look: line.look };
  const loss = run.val["val/loss"][run.val.step.findLastIndex((when) => when <= at)];
  const note = [at === step ? "" : `step ${short(at)}`, Number.isFinite(loss) ? `loss ${loss.toFixed(3)}` : ""];
  return { run, text: text.replace(/^\n+/, ""), note: note.filter(Boolean).join(", "), look: line.look };
}

/** A link to the page of the inside of a run or, where there is none yet, the command that makes it; a name that a
 * shell might take for more than a name is left to the reader. */
function lookInside(run) {
  if (run.inside) return el("a", { href: run.inside }, "look inside");
  const name = /^[\w./][\w./-]*$/.test(run.id) ? run.id : "RUN";
  return el("span", {}, "look inside: ", el("code", {}, `char-lm inspect ${name} --html ${name}/inside.html`));
}

function sampleCard({ run, text, note, look }) {
  return el(
    "article",
    { className: "sample" },
    el("h3", {}, swatch(look), el("span", { title: run.name }, run.name), el("span", { className: "faint" }, note)),
    el("pre", { tabIndex: 0, "aria-label": `sample of ${run.name}` }, text),
    el("p", { className: "inspect faint" }, lookInside(run)),
  );
}

function save(name, type, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The results, and where the target was reached. */
function asCsv() {
  const axes = Object.keys(AXES);
  const keys = data.measures.map(([key]) => key);
  const found = arrivals();
  const head = [
    "run",
    ...keys.flatMap((key) => [key, `${key} spread`]),
    ...TEXTS,
    ...axes.map((axis) => `target ${axis}`),
  ];
  const rows = sortedLines().map((line) => [
    line.label,
    ...keys.flatMap((key) => [line.row[key].mean, line.row[key].spread]),
    ...TEXTS.map((key) => line[key]),
    ...axes.map((axis) => found.find((row) => row.line.label === line.label)?.at[axis].mean),
  ]);
  return [head, ...rows].map((row) => row.map(csvCell).join(",")).join("\n") + "\n";
}

function csvCell(value) {
  if (typeof value !== "string") return Number.isFinite(value) ? String(value) : "";
  const safe = /^[=+\-@\t]/.test(value) ? `'${value}` : value; // a spreadsheet would take it for a formula
  return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function savePlot(format) {
  const { traces, layout } = figure();
  const aim = target();
  Object.assign(layout, {
    showlegend: true,
    legend: { orientation: "h", y: -0.16 },
    paper_bgcolor: css("--card"),
    margin: { ...MARGIN, r: 24, b: 80 },
  });
  if (aim !== null) {
    const y = state.logY ? 10 ** toAxis(aim) : toAxis(aim); // a shape's place is a value, not a logarithm
    const line = { dash: "dot", width: 1.2, color: css("--faint") };
    layout.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line }];
  }
  const size = { width: 1100, height: 620, scale: 2 };
  return Plotly.downloadImage({ data: traces, layout }, { format, filename: "curves", ...size });
}
