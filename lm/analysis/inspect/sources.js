"use strict";
// Where a state comes from: the exact shares that earlier positions of the layer have in it.

const SHARES = [0.01, 0.05, 0.2];
const NEGLIGIBLE = 1e-7; // what later gates have kept, below which earlier positions are left out

/**
 * The parts of h_t = sum over s <= t of z_s g(c_s) prod_{s < r <= t} (1 - z_r) in one channel, as shares of h_t:
 * (t + 1,). z_s g(c_s) = h_s - (1 - z_s) h_{s-1}. They sum to 1, as the first state is 0.
 */
function channelShares(z, h, hidden, channel, t) {
  const shares = new Float64Array(t + 1);
  const at = (s) => s * hidden + channel;
  let kept = 1;
  for (let s = t; s >= 0 && kept > NEGLIGIBLE; s--) {
    const put = h[at(s)] - (s ? (1 - z[at(s)]) * h[at(s - 1)] : 0);
    shares[s] = (put * kept) / h[at(t)];
    kept *= 1 - z[at(s)];
  }
  return shares;
}

/** The norm over all channels of the same parts, relative to the norm of h_t; these do not sum to 1. */
function layerShares(z, h, hidden, t) {
  const shares = new Float64Array(t + 1);
  const kept = new Float64Array(hidden).fill(1);
  let norm = 0;
  for (let c = 0; c < hidden; c++) norm += h[t * hidden + c] ** 2;
  for (let s = t, most = 1; s >= 0 && most > NEGLIGIBLE; s--) {
    let sum = 0;
    most = 0;
    for (let c = 0, i = s * hidden; c < hidden; c++, i++) {
      const put = h[i] - (s ? (1 - z[i]) * h[i - hidden] : 0);
      sum += (put * kept[c]) ** 2;
      kept[c] *= 1 - z[i];
      if (kept[c] > most) most = kept[c];
    }
    shares[s] = Math.sqrt(sum / norm);
  }
  return shares;
}

function sharesAt(t) {
  const layer = state.whole ? state.layer : layerOf(state.channel);
  const arrays = [reader.z[layer], reader.h[layer], study.hidden[layer]];
  return state.whole ? layerShares(...arrays, t) : channelShares(...arrays, state.channel - study.starts[layer], t);
}

const sourcesView = {
  title: "Where it comes from",
  sentence:
    "Point at a place: every earlier position is coloured by its exact share in the state there, which is what it " +
    "put in, z g(c), times what all later gates have kept of it. Above the first layer, a position already knows the " +
    "text before it.",
  draw() {
    showTotals(null);
    key([
      [0, 0, "below 1%"],
      [Math.sqrt(0.02), 1, "1 to 5%"],
      [Math.sqrt(0.1), 2, "5 to 20%"],
      [Math.sqrt(0.4), 3, "20% or more"],
    ]);
    $("summary").textContent = state.whole
      ? `Norm over the channels of layer ${state.layer + 1}, relative to that of its state; norms do not sum to 100%`
      : `Channel ${nameOf(state.channel)}, which remembers ${study.time[state.channel].toFixed(1)} characters`;
  },
  at(place) {
    if (place >= reader.n) {
      paint(
        () => 0,
        () => 0,
      );
      return [];
    }
    const shares = sharesAt(place);
    const share = (s) => shares[s] ?? 0;
    paint(
      (s) => Math.sign(share(s)) * Math.sqrt(Math.abs(share(s))),
      (s) => level(share(s), SHARES),
    );
    const order = [...shares.keys()].sort((a, b) => Math.abs(shares[b]) - Math.abs(shares[a])).slice(0, 12);
    const items = order
      .filter((s) => Math.abs(shares[s]) >= 0.0005)
      .map((s) =>
        el(
          "li",
          {},
          el(
            "div",
            {},
            quote(reader.chars, s, 9, 0),
            el("span", { className: "faint back" }, s === place ? "here" : `${place - s} back`),
            el("span", { className: "meter" }, bar(Math.abs(shares[s]))),
            el("span", { className: "number" }, percent(shares[s])),
          ),
        ),
      );
    return [el("ol", { className: "expected" }, ...items)];
  },
};
