"use strict";
// What the page knows: the data, what is chosen to be seen of it, and what follows for the target.

const AXES = { step: "steps", chars: "characters", train_seconds: "seconds of training", flops: "FLOPs" };
const LOSSES = ["val/loss", "val/loss_streaming"];
const CURVES = {
  "val/loss": "validation loss",
  "val/loss_streaming": "validation loss, streaming",
  "train/loss": "training loss",
  both: "loss, training faint",
  "val/bpc": "bits per character",
  "val/perplexity": "perplexity",
  "val/accuracy": "accuracy",
};
const RESULTS = [
  ["val/loss", "val loss"],
  ["val/loss_streaming", "streaming"],
  ["val/accuracy", "accuracy"],
  ["bits_per_char", "bits/char"],
  ["best_step", "at step"],
  ["best_seconds", "after s"],
  ["chars_per_second", "chars/s"],
  ["parameters", "parameters"],
  ["memory_mb", "MB"],
  ["mixer", "mixer"],
  ["status", "status"],
];
const MARGIN = { l: 62, r: 12, t: 12, b: 46 };
const MOST_SAMPLES = 12;

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const runs = new Map(); // id -> run with its columns decoded
const state = {
  x: "step",
  y: data.metric,
  chosen: false, // whether y is somebody's choice
  logX: false,
  logY: false,
  grouped: true,
  smooth: 0.8,
  hidden: new Set(), // ids of runs
  target: data.target, // null: the worst run's best
  range: null, // {x: [a, b], y: [a, b]} in the axes' own units, or null for all
  sort: { key: "val/loss", up: true },
  sampleStep: Infinity,
};

function takeRuns(encoded) {
  for (const run of encoded) {
    for (const part of ["train", "val"]) {
      for (const [name, text] of Object.entries(run[part])) run[part][name] = decode(text);
    }
    runs.set(run.id, run);
  }
  for (const id of [...runs.keys()]) if (!data.order.includes(id)) runs.delete(id);
}

/** What the legend, the tables and the plots show one of: a group of seeds, or a run. */
function lines() {
  const looks = data.looks;
  const look = (colour, dash) => ({
    colour,
    dash: looks.dashes[dash % looks.dashes.length],
    symbol: looks.symbols[colour % looks.symbols.length],
  });
  return data.groups.flatMap((group, i) => {
    const members = group.runs.map((id) => runs.get(id)).filter(Boolean);
    if (state.grouped) {
      const label = group.label + (members.length > 1 ? ` \u00d7${members.length}` : "");
      return [{ ...group, label, members, look: look(i, i) }];
    }
    const first = members.length > 1 ? 0 : i;
    return members.map((run, j) => ({ ...run, label: run.name, members: [run], look: look(i, first + j) }));
  });
}

const seen = (run) => !state.hidden.has(run.id);
const shownLines = () =>
  lines()
    .map((line) => ({ ...line, members: line.members.filter(seen) }))
    .filter((line) => line.members.length);
const metric = () => (LOSSES.includes(state.y) ? state.y : data.metric);

/** The worst run's best, rounded up to four decimals, unless a target was given. */
function target() {
  if (state.target !== null) return state.target;
  const shown = [...runs.values()].filter(seen);
  const best = (run) => run.val[metric()].reduce((a, b) => (b < a ? b : a), Infinity); // a NaN is never less
  const sound = shown
    .filter((run) => !["diverged", "failed"].includes(run.status))
    .map(best)
    .filter(Number.isFinite);
  const all = sound.length ? sound : shown.map(best).filter(Number.isFinite);
  return all.length ? Math.ceil(Math.max(...all) * 1e4 - 1e-2) / 1e4 : null;
}

/** The time-to-target table: a row a line, soonest first. */
function arrivals() {
  const axes = Object.keys(AXES);
  const aim = target();
  if (aim === null) return [];
  // float32 has its own last digits: a millionth is allowed for them
  const rows = shownLines().map((line) => {
    const places = line.members.map((run) => reach(run.val, metric(), aim + 1e-6, axes)).filter(Boolean);
    return {
      line,
      reached: places.length,
      at: Object.fromEntries(axes.map((axis) => [axis, stat(places.map((p) => p[axis]))])),
      faster: {},
      cost: {},
    };
  });
  for (const axis of axes) {
    const slowest = Math.max(...rows.map((row) => row.at[axis].mean ?? 0));
    for (const row of rows) {
      const mean = row.at[axis].mean;
      row.faster[axis] = mean > 0 ? slowest / mean : NaN;
      row.cost[axis] = mean > 0 ? mean / slowest : 0;
    }
  }
  return rows.sort((a, b) => (a.at.step.mean ?? Infinity) - (b.at.step.mean ?? Infinity));
}
