"use strict";
// The plots, and the target line over the large one. Names are escaped: plotly reads markup in them.

const QUIET = { mode: "lines", hoverinfo: "skip", showlegend: false };
const CONFIG = { displayModeBar: false, responsive: true };

/** The curves of a line's runs for one column; training's are smoothed. */
function curvesOf(line, name) {
  const part = name.startsWith("val/") ? "val" : "train";
  const amount = part === "train" && name !== "lr" ? state.smooth : 0;
  return line.members
    .map((run) => points(run[part], state.x, name, state.logX))
    .filter((curve) => curve.x.length)
    .map(({ x, y }) => ({ x, y: smooth(y, amount) }));
}

/** What plotly draws for a line: a curve; for several seeds their mean, their band, and each of them thin. */
function tracesOf(line, name, faint = false) {
  const curves = curvesOf(line, name);
  const shared = curves.length > 1 ? band(curves) : null;
  if (!shared || shared.x.length < 2) return curves.map((curve) => mainTrace(line, name, curve, faint));
  // noisy training curves only where others have ended, validation's as a whole
  const from = name.startsWith("val/") ? -Infinity : shared.x.at(-1);
  const seeds = curves.map(({ x, y }) => ({
    x: x.slice(lowerBound(x, from)),
    y: y.slice(lowerBound(x, from)),
    line: { color: faded(colour(line.look), 0.35), width: 0.8 },
    ...QUIET,
  }));
  const area = {
    x: [...shared.x, ...shared.x.toReversed()],
    y: [...shared.high, ...shared.low.toReversed()],
    fill: "toself",
    fillcolor: faded(colour(line.look), 0.16),
    line: { width: 0 },
    ...QUIET,
  };
  return [...seeds, area, mainTrace(line, name, shared, faint)];
}

/** A curve; `faint` behind others. Few validations have markers. */
function mainTrace(line, name, { x, y }, faint) {
  const color = colour(line.look);
  return {
    x,
    y,
    name: escaped(line.label),
    mode: name.startsWith("val/") && x.length < 60 ? "lines+markers" : "lines",
    opacity: faint ? 0.4 : 1,
    showlegend: !faint,
    hovertemplate: faint ? "%{y:.4f} training" : `%{y:${columnFormat(name)}}`,
    line: { color, width: faint ? 1.2 : 2, dash: dashes(line.look, 2) || "solid" },
    marker: { symbol: line.look.symbol, size: 6, color },
  };
}

const columnFormat = (name) => (name.includes("loss") || name === "val/bpc" ? ".4f" : name === "lr" ? ".3g" : ".4s");

function layout(yTitle, extra = {}) {
  const axis = {
    gridcolor: css("--grid"),
    linecolor: css("--line"),
    zeroline: false,
    tickfont: { color: css("--faint"), size: 12 },
    title: { standoff: 8, font: { color: css("--faint"), size: 13 } },
  };
  return {
    margin: MARGIN,
    showlegend: false,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, color: css("--ink"), size: 13 },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    hoverlabel: {
      namelength: -1,
      bgcolor: css("--card"),
      bordercolor: css("--line"),
      font: { color: css("--ink"), size: 13 },
    },
    xaxis: {
      ...axis,
      type: state.logX ? "log" : "linear",
      title: { ...axis.title, text: AXES[state.x] },
      hoverformat: state.x === "step" ? ",d" : ".4s",
      unifiedhovertitle: { text: `%{x} ${AXES[state.x]}` },
      spikecolor: css("--faint"),
      spikethickness: 1,
      spikedash: "solid",
      nticks: 8,
      tickformat: "~s",
    },
    yaxis: { ...axis, type: "linear", title: { ...axis.title, text: yTitle }, exponentformat: "SI", nticks: 10 },
    ...extra,
  };
}

/** Data and layout of the large plot, for the screen and for a file. */
function figure() {
  const shown = shownLines();
  const both = state.y === "both";
  const traces = (both ? ["train/loss", "val/loss"] : [state.y]).flatMap((name) =>
    shown.flatMap((line) => tracesOf(line, name, both && name === "train/loss")),
  );
  const base = layout(curveTitle(state.y));
  if (state.logY) Object.assign(base.yaxis, { type: "log", tickformat: ".3~g" });
  // validations are far apart: their values show from half the way on
  Object.assign(base, shown.length > 8 ? { hovermode: "closest" } : { hovermode: "x unified", hoverdistance: 100 });
  if (state.range)
    for (const axis of ["x", "y"])
      Object.assign(base[`${axis}axis`], { range: [...state.range[axis]], autorange: false });
  return { traces, layout: base };
}

function drawCurves() {
  const plot = $("curves");
  const { traces, layout } = figure();
  $("empty").hidden = traces.length > 0;
  const none = [...runs.values()].some(seen) ? `No ${curveTitle(state.y)} yet.` : "All runs are switched off.";
  $("empty").textContent = runs.size === 0 ? "No run yet." : none;
  plot.ariaLabel =
    `${curveTitle(state.y)} over ${AXES[state.x]}, ${shownLines().length} curves; ` +
    "arrow keys move, plus and minus zoom, 0 shows all";
  return Plotly.react(plot, traces, layout, CONFIG).then(placeHandle);
}

function drawSmall() {
  for (const [id, name] of Object.entries({ speed: "chars_per_second", norm: "grad_norm", rate: "lr" })) {
    const traces = shownLines().flatMap((line) => tracesOf(line, name));
    for (const trace of traces) trace.line.width = Math.min(trace.line.width, 1.5);
    const base = layout("", { dragmode: false, hovermode: "closest", margin: { ...MARGIN, l: 46, t: 8, b: 40 } });
    for (const axis of [base.xaxis, base.yaxis]) Object.assign(axis, { fixedrange: true, nticks: 5 });
    base.yaxis.rangemode = "tozero";
    Plotly.react($(id), traces, base, CONFIG);
  }
}

/** The loss of each run against each option that differs within a mixer, coloured by mixer. */
function drawParameters() {
  const mixers = [...new Set([...runs.values()].map((run) => run.mixer))];
  const look = (mixer) => {
    const place = mixers.indexOf(mixer);
    return { colour: place, dash: [], symbol: data.looks.symbols[place % data.looks.symbols.length] };
  };
  const names = mixers.length > 1 ? mixers : [];
  const all = data.order.map((id) => runs.get(id));
  $("parameters-section").hidden = !data.parameters.length;
  $("parameters-legend").replaceChildren(...names.map((mixer) => el("span", {}, swatch(look(mixer)), mixer)));
  const keys = data.parameters.map(({ key }) => key);
  if ($("parameters").dataset.keys !== keys.join())
    $("parameters").replaceChildren(
      ...keys.map((key) => el("figure", {}, el("figcaption", {}, key), el("div", { className: "small" }))),
    );
  $("parameters").dataset.keys = keys.join();
  data.parameters.forEach(({ values, log, ticks }, i) => {
    const traces = mixers.flatMap((mixer) =>
      [true, false].map((done) => pointsOf(all, values, look(mixer), (run) => run.mixer === mixer && ended(run) === done)),
    );
    const base = layout("", { dragmode: false, hovermode: "closest", margin: { ...MARGIN, l: 46, t: 8, b: 40 } });
    Object.assign(base.xaxis, { title: {}, fixedrange: true, type: axisType(values, log), hoverformat: ".4g" });
    Object.assign(base.xaxis, { tickformat: ".3~g", nticks: 5, ...(log && { dtick: "D2" }) });
    if (ticks.length) Object.assign(base.xaxis, { tickvals: ticks, ticktext: ticks.map(String) });
    Object.assign(base.yaxis, { fixedrange: true, nticks: 5, ...lossRange(all) });
    Plotly.react($("parameters").children[i].lastChild, traces, base, CONFIG);
  });
}

const ended = (run) => !data.unfinished.includes(run.status);
const axisType = (values, log) => (typeof values[0] === "string" ? "category" : log ? "log" : "linear");

/** Marks of some runs; open if they have not ended well. */
function pointsOf(all, values, look, chosen) {
  const kept = [...all.keys()].filter((i) => chosen(all[i]) && seen(all[i]));
  const done = kept.length && ended(all[kept[0]]);
  return {
    x: kept.map((i) => (typeof values[i] === "string" ? escaped(values[i]) : values[i])),
    y: kept.map((i) => all[i][metric()]),
    text: kept.map((i) => escaped(all[i].name)),
    mode: "markers",
    hovertemplate: "%{x}: %{y:.4f}<extra>%{text}</extra>",
    marker: { symbol: look.symbol + (done ? "" : "-open"), size: 7, opacity: done ? 0.85 : 0.6, color: colour(look) },
  };
}

/** From the lowest loss to the highest of the runs that have ended well. */
function lossRange(all) {
  const losses = (some) => some.filter(seen).map((run) => run[metric()]).filter(Number.isFinite);
  const [low, high] = [Math.min(...losses(all)), Math.max(...losses(all.filter(ended)))];
  const margin = 0.08 * (high - low);
  return margin > 0 && Number.isFinite(margin) ? { range: [low - margin, high + margin], autorange: false } : {};
}

/** The range that the plot shows, in the axes' own units. */
const currentRange = () => ({ x: [...$("curves").layout.xaxis.range], y: [...$("curves").layout.yaxis.range] });

function zoom(factor, moveX = 0, moveY = 0) {
  const range = currentRange();
  for (const [axis, move] of [
    ["x", moveX],
    ["y", moveY],
  ]) {
    const [a, b] = range[axis];
    const half = ((b - a) / 2) * factor;
    const middle = (a + b) / 2 + move * (b - a);
    range[axis] = [middle - half, middle + half];
  }
  state.range = range;
  drawCurves();
}

const toAxis = (loss) => {
  const value = state.y === "val/bpc" ? loss / Math.LN2 : state.y === "val/perplexity" ? Math.exp(loss) : loss;
  return state.logY ? Math.log10(value) : value;
};
const fromAxis = (place) => {
  const value = state.logY ? 10 ** place : place;
  return state.y === "val/bpc" ? value * Math.LN2 : state.y === "val/perplexity" ? Math.log(value) : value;
};

function placeHandle() {
  const handle = $("handle");
  const aim = target();
  const plot = $("curves");
  const range = plot.layout?.yaxis?.range;
  const share = aim === null || !range ? NaN : (range[1] - toAxis(aim)) / (range[1] - range[0]);
  handle.hidden = !(share >= 0 && share <= 1) || $("empty").hidden === false;
  $("target-line").hidden = handle.hidden;
  if (handle.hidden) return;
  handle.style.top = $("target-line").style.top = `${MARGIN.t + share * (plot.clientHeight - MARGIN.t - MARGIN.b)}px`;
  handle.firstElementChild.textContent = Number(aim.toFixed(4));
  handle.setAttribute("aria-valuenow", aim.toFixed(4));
  handle.setAttribute("aria-valuemin", fromAxis(range[0]).toFixed(4));
  handle.setAttribute("aria-valuemax", fromAxis(range[1]).toFixed(4));
}

function setTarget(value) {
  state.target = value > 0 && Number.isFinite(value) ? Number(value.toFixed(4)) : null;
  placeHandle();
  drawArrivals();
}

function dragHandle(event) {
  const plot = $("curves");
  const box = plot.getBoundingClientRect();
  const [low, high] = plot.layout.yaxis.range;
  const share = (event.clientY - box.top - MARGIN.t) / (box.height - MARGIN.t - MARGIN.b);
  setTarget(Number(fromAxis(high - Math.min(1, Math.max(0, share)) * (high - low)).toFixed(3)));
}
