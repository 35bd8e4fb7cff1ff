"use strict";
// The channels of the model: their memory, one of them on the text, and what they stand for.

const [ONE, NONE] = [32767, -32768]; // what stands for a correlation of 1, and for none

/** Figures that Python measured over held-out text; channels of all layers side by side. */
function decodeStudy(study) {
  if (!study) return null;
  const numbers = Object.fromEntries(
    ["time", "mean", "deviation"].map((name) => [name, unpack(Float32Array, study[name])]),
  );
  const correlations = (base64) => Float32Array.from(unpack(Int16Array, base64), (r) => (r === NONE ? NaN : r / ONE));
  const places = Object.fromEntries(["highest", "lowest"].map((name) => [name, unpack(Int32Array, study[name])]));
  const all = {
    ...study,
    ...numbers,
    ...places,
    r: correlations(study.correlation),
    control: correlations(study.control),
  };
  all.starts = study.hidden.map((_, l) => study.hidden.slice(0, l).reduce((a, b) => a + b, 0));
  all.count = numbers.time.length;
  all.chars = [...study.text];
  all.limits = study.features.map((_, f) => largest(all.control.subarray(f * all.count, (f + 1) * all.count)));
  return all;
}

const largest = (values) => values.reduce((most, r) => (Math.abs(r) > most ? Math.abs(r) : most), 0); // NaN never is
const study = decodeStudy(data.study);
const layerOf = (channel) => study.starts.findLastIndex((start) => start <= channel);
const nameOf = (channel) => `${layerOf(channel) + 1}.${channel - study.starts[layerOf(channel)] + 1}`;
const correlation = (values, feature, channel) => values[feature * study.count + channel];

/** Channels of a layer, the longest memory first. */
function ordered(layer) {
  const channels = Array.from({ length: study.hidden[layer] }, (_, i) => study.starts[layer] + i);
  return channels.sort((a, b) => study.time[b] - study.time[a]);
}

/** A state in standard deviations from its mean over the held-out text. */
function standard(channel, place) {
  const layer = layerOf(channel);
  const h = reader.h[layer][place * study.hidden[layer] + channel - study.starts[layer]];
  return (h - study.mean[channel]) / (study.deviation[channel] || 1);
}

function gate(channel, place) {
  const layer = layerOf(channel);
  return reader.z[layer][place * study.hidden[layer] + channel - study.starts[layer]];
}

/** Features in the order of their correlation with a channel: [{name, r, control}]. */
function followed(channel, most = 5) {
  return study.features
    .map((name, f) => ({ name, r: correlation(study.r, f, channel), control: study.limits[f] }))
    .filter(({ r }) => Number.isFinite(r))
    .sort((a, b) => Math.abs(b.r) - Math.abs(a.r))
    .slice(0, most);
}

const DEVIATIONS = [1, 2, 3];

const channelView = {
  title: "A channel",
  sentence:
    "The text coloured by the state of one channel: orange and underlined where it is higher than usual, " +
    "blue and overlined where it is lower.",
  draw() {
    const { channel } = state;
    paint(
      (place) => standard(channel, place) / 3,
      (place) => level(standard(channel, place), DEVIATIONS),
    );
    showTotals(null);
    key([
      [-2 / 3, -2, "2 deviations lower"],
      [-1 / 3, -1, "1 lower"],
      [0, 0, "usual"],
      [1 / 3, 1, "1 higher"],
      [2 / 3, 2, "2 higher"],
    ]);
    const layer = layerOf(channel);
    const rank = ordered(layer).indexOf(channel) + 1;
    $("summary").textContent =
      `Channel ${nameOf(channel)} remembers ${study.time[channel].toFixed(1)} characters (time constant): ` +
      `number ${rank} of ${study.hidden[layer]} in layer ${layer + 1}`;
    drawFollowed(channel);
    drawExtremes(channel);
  },
  at(place) {
    if (place >= reader.n) return [];
    const { channel } = state;
    const facts = [
      ["gate z", `${gate(channel, place).toFixed(3)}, the share that this character overwrote`],
      ["state h", `${signed(standard(channel, place))} deviations from its mean`],
    ];
    return [
      el("dl", { className: "facts" }, ...facts.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)])),
    ];
  },
};

function drawFollowed(channel) {
  const rows = followed(channel).map(({ name, r, control }) => [
    el("th", { scope: "row" }, name),
    el("td", {}, signed(r), bar(Math.abs(r))),
    el("td", { className: "faint" }, control.toFixed(2), bar(control)),
  ]);
  table("followed", ["follows", "correlation", "untrained"], rows);
}

function drawExtremes(channel) {
  for (const end of ["highest", "lowest"]) {
    const places = [0, 1, 2].map((k) => study[end][k * study.count + channel]).filter((place) => place >= 0);
    const passage = (place) =>
      isLive()
        ? el("button", { type: "button", onclick: () => showPassage(place) }, quote(study.chars, place))
        : quote(study.chars, place);
    $(end).replaceChildren(...places.map((place) => el("li", {}, passage(place))));
  }
}

/** Show a passage of the held-out text that ends some lines after a place, with the place chosen. */
async function showPassage(at) {
  const start = Math.max(0, at - 600);
  await setText(study.chars.slice(start, at + 200));
  place(at - start, true);
  refresh();
  shown.spans[at - start]?.scrollIntoView({ block: "center" });
}

const meaningView = {
  title: "What channels stand for",
  get sentence() {
    return (
      `The state of every channel was compared with named features of ${study.extent}. ` +
      "These channels follow a feature most clearly, that is, more closely than any channel of an untrained model. " +
      "Choose one to see it on the text."
    );
  },
  draw() {
    channelView.draw();
    const rows = study.clearest.map(([feature, channel]) => {
      const r = correlation(study.r, feature, channel);
      const choice = el("button", { type: "button", onclick: () => select(channel) }, nameOf(channel));
      const row = [
        el("td", { className: "left" }, choice),
        el("th", { scope: "row" }, study.features[feature]),
        el("td", {}, signed(r), bar(Math.abs(r))),
        el("td", { className: "faint" }, study.limits[feature].toFixed(2), bar(study.limits[feature])),
      ];
      if (channel === state.channel) choice.ariaCurrent = "true";
      return row;
    });
    table("clearest", ["channel", "follows", "correlation", "untrained"], rows);
    drawCorrelations();
  },
  at: (place) => channelView.at(place),
};

const ROW = 13; // height of a feature, in pixels
/** Features that are not constant in the held-out text. */
const varied = study ? study.features.map((_, f) => f).filter((f) => study.limits[f] > 0) : [];
const labelWidth = (width) => (width > 640 ? 210 : 0);

/** All channels of a layer by all features, trained above untrained. */
function drawCorrelations() {
  const channels = ordered(state.layer);
  for (const [id, values] of [
    ["correlations", study.r],
    ["control", study.control],
  ]) {
    const { context, width, height } = prepare($(id), ROW * varied.length);
    const left = labelWidth(width);
    const value = (row, column) => 1.2 * correlation(values, varied[row], channels[column]);
    drawMatrix(context, varied.length, channels.length, value, left, 0, width - left, height);
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    context.font = "11.5px system-ui, sans-serif";
    if (left) varied.forEach((f, row) => context.fillText(study.features[f], 0, ROW * (row + 1) - 3));
  }
}

/** What a place on a map of correlations is: "column in the line, channel 3.244: +0.98". */
function correlationAt(event, values) {
  const box = event.target.getBoundingClientRect();
  const channels = ordered(state.layer);
  const left = labelWidth(box.width);
  const column = Math.floor(((event.clientX - box.left - left) / (box.width - left)) * channels.length);
  const channel = channels[clamp(column, 0, channels.length - 1)];
  const feature = varied[clamp(Math.floor((event.clientY - box.top) / ROW), 0, varied.length - 1)];
  const r = correlation(values, feature, channel);
  return {
    channel,
    text: `${study.features[feature]}, channel ${nameOf(channel)}: ${Number.isFinite(r) ? signed(r) : "constant"}`,
  };
}

function connectChannels() {
  on("channel-next", "click", () => step(1));
  on("channel-previous", "click", () => step(-1));
  on("channel-name", "change", () => {
    const [layer, channel] = $("channel-name")
      .value.split(".")
      .map((part) => Number(part) - 1);
    if (study.hidden[layer] > channel && channel >= 0) select(study.starts[layer] + channel);
    else $("channel-name").value = nameOf(state.channel);
  });
  for (const [id, values] of [
    ["correlations", study.r],
    ["control", study.control],
  ]) {
    on(id, "pointermove", (event) => ($("correlation-at").textContent = correlationAt(event, values).text));
    if (values === study.r) on(id, "click", (event) => select(correlationAt(event, values).channel));
  }
}

/** The channel before or after in the order of the layer's time constants. */
function step(by) {
  const channels = ordered(layerOf(state.channel));
  select(channels[clamp(channels.indexOf(state.channel) + by, 0, channels.length - 1)]);
}
