"use strict";
// Pure functions on arrays and numbers.

/** The float32 numbers that Python packed as base64. */
function decode(text) {
  return new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}

/** The points of a run's curve that can be drawn: {x, y}, arrays. */
function points(columns, axis, name, logX) {
  const xs = columns[axis];
  const ys = columns[name];
  const kept = [...ys.keys()].filter((i) => Number.isFinite(ys[i]) && Number.isFinite(xs[i]) && !(logX && xs[i] <= 0));
  return { x: kept.map((i) => xs[i]), y: kept.map((i) => ys[i]) };
}

/** Exponential moving average with bias correction, as in Adam. */
function smooth(values, amount) {
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

/** The value of a curve at x within its range, on the straight line between two points. */
function interpolate(curve, x) {
  const i = lowerBound(curve.x, x);
  if (curve.x[i] === x) return curve.y[i];
  const share = (x - curve.x[i - 1]) / (curve.x[i] - curve.x[i - 1]);
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

/** Mean and sample standard deviation of the finite numbers; null where there is none. */
function stat(values) {
  const kept = values.filter(Number.isFinite);
  const n = kept.length;
  if (!n) return { mean: null, spread: null };
  const mean = kept.reduce((a, b) => a + b) / n;
  const spread = n > 1 ? Math.sqrt(kept.reduce((sum, v) => sum + (v - mean) ** 2, 0) / (n - 1)) : null;
  return { mean, spread };
}

/** A number as lm.report.format.short writes it: 1.57, 3,250, 12.3M. */
function short(value) {
  if (!Number.isFinite(value)) return "\u2013";
  const size = Math.abs(value);
  if (size < 1e5 && (size >= 100 || Number.isInteger(value))) return Math.round(value).toLocaleString("en");
  const rounded = Number(value.toPrecision(3));
  if (size < 1e5) return String(rounded);
  const [unit, name] = data.units.find(([unit]) => Math.abs(rounded) >= unit);
  return rounded >= 1e18 ? value.toPrecision(3) : `${rounded / unit}${name}`;
}

const fixed = (value) => (Number.isFinite(value) ? value.toFixed(4) : "\u2013");
