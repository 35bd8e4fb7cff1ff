"use strict";
// The data, what is chosen to be shown of it, and what follows from the target.

const AXES = { step: "steps", chars: "characters", train_seconds: "seconds of training", flops: "FLOPs" };
const LOSSES = ["val/loss", "val/loss_streaming"];
const TEXTS = ["mixer", "status"]; // columns of the results that are no numbers
const MARGIN = { l: 62, r: 12, t: 12, b: 46 };
const MOST_SAMPLES = 12;

const curveTitle = (name) => $("y").querySelector(`[value="${name}"]`).dataset.title;
const data = JSON.parse($("data").textContent);
const runs = new Map(); // id -> run with its columns decoded
const state = {
  x: "step",
  y: data.metric,
  chosen: false, // whether the user chose y
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
  const { dashes, symbols } = data.looks;
  const line = (label, members, colour, dash) => ({
    label,
    members,
    look: { colour, dash: dashes[dash % dashes.length], symbol: symbols[colour % symbols.length] },
    mixer: members[0].mixer,
    status: [...new Set(members.map((run) => run.status))].join(", "),
    row: Object.fromEntries(data.measures.map(([key]) => [key, stat(members.map((run) => run[key]))])),
  });
  return data.groups.flatMap((group, i) => {
    const members = group.runs.map((id) => runs.get(id));
    const several = members.length > 1;
    if (state.grouped) return [line(group.label + (several ? ` \u00d7${members.length}` : ""), members, i, i)];
    return members.map((run, j) => line(run.name, [run], i, several ? j : i));
  });
}

const seen = (run) => !state.hidden.has(run.id);
const shownLines = () =>
  lines()
    .map((line) => ({ ...line, members: line.members.filter(seen) }))
    .filter((line) => line.members.length);
const metric = () => (LOSSES.includes(state.y) ? state.y : data.metric);

/** The worst run's best loss, rounded up to four decimals, unless a target was given. */
function target() {
  if (state.target !== null) return state.target;
  const best = (run) => run.val[metric()].reduce((a, b) => (b < a ? b : a), Infinity); // a NaN is never less
  const validated = [...runs.values()].filter((run) => seen(run) && Number.isFinite(best(run)));
  const sound = validated.filter((run) => !data.unfinished.includes(run.status));
  if (!validated.length) return null;
  return Math.ceil(Math.max(...(sound.length ? sound : validated).map(best)) * 1e4 - 1e-2) / 1e4;
}

/** Where a run first validated at or below the target: {step, chars, ...}, or null. */
function reach(run, aim) {
  const losses = run.val[metric()];
  const row = losses.findIndex((loss) => loss <= aim + 1e-6); // float32 rounds: a millionth is allowed for that
  return row < 0 ? null : Object.fromEntries(Object.keys(AXES).map((axis) => [axis, run.val[axis][row]]));
}

/** The time-to-target table, a row per line, soonest first: as lm.compare.table.arrivals, for what is shown. */
function arrivals() {
  const aim = target();
  if (aim === null) return [];
  const rows = shownLines().map((line) => {
    const places = line.members.map((run) => reach(run, aim)).filter(Boolean);
    const at = Object.fromEntries(Object.keys(AXES).map((axis) => [axis, stat(places.map((p) => p[axis]))]));
    return { line, reached: places.length, at, faster: {} };
  });
  for (const axis of Object.keys(AXES)) {
    const slowest = Math.max(...rows.map((row) => row.at[axis].mean ?? 0));
    for (const row of rows) row.faster[axis] = row.at[axis].mean > 0 ? slowest / row.at[axis].mean : NaN;
  }
  return rows.sort((a, b) => (a.at.step.mean ?? Infinity) - (b.at.step.mean ?? Infinity));
}
