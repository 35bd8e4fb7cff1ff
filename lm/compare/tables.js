"use strict";
// Tables, legend, samples and files. Text from run folders is only ever set as text.

/** An element with properties, `aria-` and `data-` attributes, and children; strings become text, never markup. */
function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key.includes("-") || key === "role" || key === "scope") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children);
  return node;
}

/** A short piece of the line as it is drawn, with its marker. */
function swatch(look) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const dash = { solid: "", dash: "6 3", dot: "1.5 2.5", dashdot: "6 2.5 1.5 2.5", longdash: "9 3" }[look.dash];
  const shape = {
    circle: "M14 2a4 4 0 1 0 .01 0z",
    square: "M10.5 2.5h7v7h-7z",
    diamond: "M14 1l5 5-5 5-5-5z",
    "triangle-up": "M14 1.5l4.5 8h-9z",
    "triangle-down": "M14 10.5l4.5-8h-9z",
    cross: "M12.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    x: "M10 3.5L11.5 2 14 4.5 16.5 2 18 3.5 15.5 6 18 8.5 16.5 10 14 7.5 11.5 10 10 8.5 12.5 6z",
    star: "M14 .8l1.5 3.4 3.8.4-2.8 2.5.8 3.7L14 8.9l-3.3 1.9.8-3.7-2.8-2.5 3.8-.4z",
  }[look.symbol];
  for (const [tag, attributes] of [
    ["path", { d: "M1 6H27", stroke: colour(look), "stroke-width": 2, "stroke-dasharray": dash, fill: "none" }],
    ["path", { d: shape, fill: colour(look) }],
  ]) {
    const part = document.createElementNS(svg.namespaceURI, tag);
    for (const [key, value] of Object.entries(attributes)) part.setAttribute(key, value);
    svg.append(part);
  }
  for (const [key, value] of Object.entries({ class: "look", width: 28, height: 12, "aria-hidden": true }))
    svg.setAttribute(key, value);
  return svg;
}

const dark = () => document.documentElement.dataset.theme === "dark";
const colour = (look) => {
  const all = dark() ? data.looks.dark : data.looks.light;
  return all[look.colour % all.length];
};
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const escaped = (text) => text.slice(0, 60).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function faded(hex, alpha) {
  const [r, g, b] = [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

function heading(line) {
  return el("th", { scope: "row", title: line.label }, swatch(line.look), line.label);
}

function drawArrivals() {
  const rows = arrivals();
  const aim = target();
  const axes = Object.keys(AXES);
  const nice = aim === null ? "" : String(Number(aim.toFixed(4)));
  if (document.activeElement !== $("target")) $("target").value = nice;
  $("target-name").textContent = aim === null ? "a target loss" : `${CURVES[metric()]} ${nice}`;
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, "run"),
    ...axes.map((axis) => el("th", { scope: "col" }, AXES[axis])),
  );
  const body = rows.map((row) => {
    const tr = el("tr", {}, heading(row.line));
    if (!row.reached) tr.append(el("td", { colSpan: axes.length, className: "left faint" }, "not reached"));
    else for (const axis of axes) tr.append(arrivalCell(row, axis));
    return tr;
  });
  const none = el("tr", {}, el("td", { className: "faint" }, "No validation yet."));
  $("arrivals").replaceChildren(el("thead", {}, head), el("tbody", {}, ...(body.length ? body : [none])));
  drawHeadline(rows, nice);
}

function arrivalCell(row, axis) {
  const { mean, spread } = row.at[axis];
  const bar = el("span", { className: "bar" });
  bar.style.width = `${100 * row.cost[axis]}%`;
  bar.style.setProperty("--bar", colour(row.line.look));
  const of = row.line.members.length;
  return el(
    "td",
    {},
    short(mean),
    deviation(spread, short),
    axis === "step" && row.reached < of ? el("span", { className: "pm" }, ` (${row.reached} of ${of})`) : "",
    el(
      "span",
      { className: "times" },
      Number.isFinite(row.faster[axis]) ? `${row.faster[axis].toFixed(2)}\u00d7` : "",
    ),
    bar,
  );
}

const deviation = (spread, format) =>
  spread === null ? "" : el("span", { className: "pm" }, ` \u00b1${format(spread)}`);

/** The answer in one sentence, as the terminal has it; nothing where there is no question. */
function drawHeadline(rows, aim) {
  const there = rows.filter((row) => row.reached && row.reached === row.line.members.length);
  if (there.length < 2) return $("headline").replaceChildren();
  const first = there[0];
  const last = there.at(-1);
  const [steps, seconds] = ["step", "train_seconds"].map((axis) => first.faster[axis] / last.faster[axis]);
  const strong = (text) => el("strong", {}, text);
  const times = (value) => `${Number(value.toPrecision(2))} times`;
  const fewer = steps >= 1.05 ? [strong(`${times(steps)} fewer steps`), " than "] : ["as many steps as "];
  let less = ["."];
  if (seconds >= 1.05) less = [", and in ", strong(`${times(seconds)} less`), " training time."];
  else if (seconds <= 0.95) less = [", but takes ", strong(times(1 / seconds)), " its training time."];
  $("headline").replaceChildren(
    strong(first.line.label), ` reaches ${aim} in `, ...fewer, strong(last.line.label), ...less,
  );
}

function sortedLines() {
  const { key, up } = state.sort;
  const value = (line) =>
    key === "label" || key === "mixer" || key === "status" ? String(line[key]) : line.row[key].mean;
  return lines().sort((a, b) => {
    const [p, q] = [value(a), value(b)];
    if (p === null || q === null) return (p === null) - (q === null); // what has no number comes last either way
    return (up ? 1 : -1) * (typeof p === "string" ? p.localeCompare(q, "en", { numeric: true }) : p - q);
  });
}

function drawResults() {
  const all = sortedLines();
  const has = (line, key) => key === "mixer" || key === "status" || line.row[key].mean !== null;
  const results = RESULTS.filter(([key]) => all.some((line) => has(line, key)));
  const columns = [["label", "run"], ...results];
  const head = columns.map(([key, title]) => {
    const th = el(
      "th",
      { scope: "col", className: key === "mixer" || key === "status" ? "left" : "" },
      el("button", { type: "button", "data-sort": key }, title),
    );
    if (state.sort.key === key) th.setAttribute("aria-sort", state.sort.up ? "ascending" : "descending");
    return th;
  });
  const least = Math.min(...all.map((line) => line.row["val/loss"].mean ?? Infinity));
  const body = all.map((line) =>
    el(
      "tr",
      {},
      heading(line),
      ...results.map(([key]) => {
        if (key === "mixer" || key === "status") return el("td", { className: "left" }, line[key]);
        const { mean, spread } = line.row[key];
        const format = key.startsWith("val/") || key === "bits_per_char" ? fixed : short;
        const cell = el("td", { className: key === "val/loss" && mean === least ? "win" : "" }, format(mean));
        if (key !== "parameters" && key !== "memory_mb") cell.append(deviation(spread, format));
        return cell;
      }),
    ),
  );
  const focus = document.activeElement?.dataset?.sort;
  $("results").replaceChildren(el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body));
  if (focus) $("results").querySelector(`[data-sort="${focus}"]`).focus();
}

function drawDifferences() {
  const shown = shownLines();
  const index = new Map(data.order.map((id, i) => [id, i]));
  const rows = data.differences
    .map(([key, values]) => [
      key,
      shown.map((line) => [...new Set(line.members.map((run) => values[index.get(run.id)]))].join(", ")),
    ])
    .filter(([, values]) => new Set(values).size > 1);
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, "option"),
    ...shown.map((line) => el("th", { scope: "col", className: "left", title: line.label }, line.label)),
  );
  const body = rows.map(([key, values]) =>
    el("tr", {}, el("th", { scope: "row" }, key), ...values.map((value) => el("td", { className: "left" }, value))),
  );
  const none = el("tr", {}, el("td", { className: "faint" }, "The runs that are shown have the same options."));
  $("differences").replaceChildren(
    ...(body.length ? [el("thead", {}, head), el("tbody", {}, ...body)] : [el("tbody", {}, none)]),
  );
}

function drawLegend() {
  const focus = document.activeElement?.dataset?.line;
  $("legend").replaceChildren(
    ...lines().map((line, i) =>
      el(
        "button",
        {
          type: "button",
          className: "chip",
          title: line.label,
          "data-line": i,
          "aria-pressed": String(line.members.some(seen)),
        },
        swatch(line.look),
        el("span", {}, line.label),
      ),
    ),
  );
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
  const steps = [
    ...new Set(shown.flatMap((line) => line.members.flatMap((run) => run.samples.map(([step]) => step)))),
  ].sort((a, b) => a - b);
  $("samples-section").hidden = steps.length === 0;
  if (!steps.length) return;
  const index = Math.max(
      0,
      steps.findLastIndex((step) => step <= state.sampleStep),
    ),
    slider = $("sample-step");
  slider.max = steps.length - 1;
  slider.value = index;
  slider.steps = steps;
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

/** The newest sample at a step of the first of a line's runs that wrote any, and where it stood. */
function sampleOf(line, step) {
  const run = line.members.find((member) => member.samples.length);
  const [at, text] = run.samples.findLast(([when]) => when <= step) ?? [null, ""];
  if (at === null) return { run, text, note: "not yet", look: line.look };
  const row = run.val.step.findLastIndex((when) => when <= at);
  const loss = row < 0 ? NaN : run.val["val/loss"][row];
  const note = [at === step ? "" : `step ${short(at)}`, Number.isFinite(loss) ? `loss ${loss.toFixed(3)}` : ""];
  return { run, text: text.replace(/^\n+/, ""), note: note.filter(Boolean).join(", "), look: line.look };
}

function sampleCard({ run, text, note, look }) {
  return el(
    "article",
    { className: "sample" },
    el("h3", {}, swatch(look), el("span", { title: run.name }, run.name), el("span", { className: "faint" }, note)),
    el("pre", { tabIndex: 0, "aria-label": `sample of ${run.name}` }, text),
  );
}

function save(name, type, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function asCsv() {
  const axes = Object.keys(AXES);
  const keys = RESULTS.map(([key]) => key);
  const found = arrivals();
  const text = (key) => key === "mixer" || key === "status";
  const head = [
    "run",
    ...keys.flatMap((key) => (text(key) ? [key] : [key, `${key} spread`])),
    ...axes.map((axis) => `target ${axis}`),
  ];
  const rows = sortedLines().map((line) => {
    const arrival = found.find((row) => row.line.label === line.label);
    return [
      line.label,
      ...keys.flatMap((key) => (text(key) ? [line[key]] : [line.row[key].mean, line.row[key].spread])),
      ...axes.map((axis) => arrival?.at[axis].mean),
    ];
  });
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
    const y = state.y === "val/bpc" || state.y === "val/perplexity" ? toAxis(aim) : aim;
    layout.shapes = [
      {
        type: "line",
        xref: "paper",
        x0: 0,
        x1: 1,
        y0: y,
        y1: y,
        line: { dash: "dot", width: 1.2, color: css("--faint") },
      },
    ];
  }
  return Plotly.downloadImage(
    { data: traces, layout },
    { format, width: 1100, height: 620, scale: 2, filename: "curves" },
  );
}
