"use strict";
// What the page computes: pure functions on arrays, no document.

/** The float32 numbers that Python packed as base64. */
function decode(text) {
  return new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}

/** The points of a curve of one run that a plot can show: {x, y}, arrays. */
function points(columns, axis, name, logX) {
  const xs = columns[axis];
  const ys = columns[name];
  const x = [];
  const y = [];
  for (let i = 0; i < ys.length; i++) {
    if (Number.isFinite(ys[i]) && Number.isFinite(xs[i]) && !(logX && xs[i] <= 0)) {
      x.push(xs[i]);
      y.push(ys[i]);
    }
  }
  return { x, y };
}

/** Exponential moving average, with the start corrected as Adam does: the first value is not favoured. */
function smooth(values, amount) {
  if (!amount) return values;
  let sum = 0;
  let weight = 0;
  return values.map((value) => {
    sum = amount * sum + (1 - amount) * value;
    weight = amount * weight + (1 - amount);
    return sum / weight;
  });
}

/** The index of the first x that is at least `value`. */
function lowerBound(x, value) {
  let low = 0;
  let high = x.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The value of a curve at x, on the straight line between its points. */
function interpolate(curve, x) {
  const i = Math.min(curve.x.length - 1, Math.max(1, lowerBound(curve.x, x)));
  if (curve.x.length === 1 || curve.x[i] === x) return curve.y[Math.min(i, curve.y.length - 1)];
  const x0 = curve.x[i - 1];
  const x1 = curve.x[i];
  const share = x1 > x0 ? (x - x0) / (x1 - x0) : 1;
  return curve.y[i - 1] + share * (curve.y[i] - curve.y[i - 1]);
}

/** Mean, lowest and highest of several curves where all of them have values: {x, y, low, high}. */
function band(curves, most = 800) {
  const start = Math.max(...curves.map((c) => c.x[0]));
  const end = Math.min(...curves.map((c) => c.x.at(-1)));
  let x = [...new Set(curves.flatMap((c) => c.x))].filter((v) => v >= start && v <= end).sort((a, b) => a - b);
  if (x.length > most) {
    const every = (x.length - 1) / (most - 1);
    x = Array.from({ length: most }, (_, i) => x[Math.round(i * every)]);
  }
  const rows = x.map((v) => curves.map((curve) => interpolate(curve, v)));
  return {
    x,
    y: rows.map((row) => row.reduce((a, b) => a + b) / row.length),
    low: rows.map((row) => Math.min(...row)),
    high: rows.map((row) => Math.max(...row)),
  };
}

/**
 * The points needed to draw a curve as if all were drawn: the first, lowest, highest and last of each of `columns`
 * strips of the range that is seen, and a point on either side of it. Zooming in thins less.
 */
function thin(x, y, [from, to], columns, logX) {
  const place = logX ? Math.log10 : (v) => v;
  const first = Math.max(0, lowerBound(x, from) - 1);
  const end = Math.min(x.length, lowerBound(x, to) + 2);
  if (end - first <= 4 * columns) return { x: x.slice(first, end), y: y.slice(first, end) };
  const low = place(x[first]);
  const scale = columns / (place(x[end - 1]) - low || 1);
  const kept = [];
  for (let i = first; i < end;) {
    const strip = Math.floor((place(x[i]) - low) * scale);
    const start = i;
    let least = i;
    let most = i;
    for (; i < end && Math.floor((place(x[i]) - low) * scale) === strip; i++) {
      if (y[i] < y[least]) least = i;
      if (y[i] > y[most]) most = i;
    }
    kept.push(...[...new Set([start, least, most, i - 1])].sort((a, b) => a - b));
  }
  return { x: kept.map((i) => x[i]), y: kept.map((i) => y[i]) };
}

/** Where a run first validated at or below the target: {step, chars, ...}, or null. */
function reach(columns, metric, target, axes) {
  const row = columns[metric].findIndex((loss) => Number.isFinite(loss) && loss <= target);
  return row < 0 ? null : Object.fromEntries(axes.map((axis) => [axis, columns[axis][row]]));
}

/** Mean and sample standard deviation; null where there is none. */
function stat(values) {
  const kept = values.filter(Number.isFinite);
  const n = kept.length;
  if (!n) return { mean: null, spread: null };
  const mean = kept.reduce((a, b) => a + b) / n;
  const spread = n > 1 ? Math.sqrt(kept.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (n - 1)) : null;
  return { mean, spread };
}

/** A number in four significant digits or so, as the terminal shows it: 1.568, 3,250, 12.3M. */
function short(value) {
  if (!Number.isFinite(value)) return "\u2013";
  const size = Math.abs(value);
  if (size >= 1e15) return value.toPrecision(3);
  for (const [least, unit, name] of [
    [1e12, 1e12, "T"],
    [1e9, 1e9, "G"],
    [1e6, 1e6, "M"],
    [1e5, 1e3, "k"],
  ]) {
    if (size >= least) return `${Number((value / unit).toPrecision(3))}${name}`;
  }
  return size >= 100 || Number.isInteger(value)
    ? Math.round(value).toLocaleString("en")
    : String(Number(value.toPrecision(3)));
}

const fixed = (value) => (Number.isFinite(value) ? value.toFixed(4) : "\u2013");
