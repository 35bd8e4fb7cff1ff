"use strict";
// Channels by characters: gates and states of a layer, and how long its channels remember.

const COLUMN = 11; // width of a character, in pixels
const LABELS = 20; // height of the line of characters above the channels
const CHANNELS = 480; // height of all rows
const LONGEST = 40; // channels that are shown at first
const EDGES = [0.25, 0.35, 0.5, 0.71, 1, 1.4, 2, 2.8, 4, 5.7, 8, 11.3, 16, 22.6, 32, 45, 64, Infinity]; // characters

const memoryView = {
  title: "Memory",
  sentence:
    "A column for each character, a row for each channel of the layer, the longest memory on top. The gate z is " +
    "the share of a channel that the character overwrites; the state h is what the channel holds then.",
  draw() {
    paint(
      () => 0,
      () => 0,
    );
    showTotals(null);
    key([]);
    $("summary").textContent = "";
    drawTimes();
  },
  at(place) {
    drawMemory();
    if (place >= reader.n) return [];
    const { channel } = state;
    const name = `channel ${nameOf(channel)}, which remembers ${study.time[channel].toFixed(1)} characters`;
    const numbers = `z ${gate(channel, place).toFixed(3)}, h ${signed(standard(channel, place))} deviations`;
    return [el("p", {}, `${name}: ${numbers}`)];
  },
};

/** The channels of the map: those of the longest memory, or all of the layer. */
const rows = () => ordered(state.layer).slice(0, state.all ? Infinity : LONGEST);

/** The first of the characters that fit, so that the place is among them. */
function firstColumn(columns) {
  const room = Math.max(0, reader.n - columns);
  const { first } = state;
  if (state.place < first || state.place >= first + columns) state.first = state.place - Math.floor(columns / 2);
  state.first = clamp(state.first, 0, room);
  return state.first;
}

function drawMemory() {
  const { context, width } = prepare($("map"), LABELS + CHANNELS);
  const columns = Math.max(1, Math.min(reader.n, Math.floor(width / COLUMN)));
  const first = firstColumn(columns);
  const channels = rows();
  const value = state.gates
    ? (row, column) => gate(channels[row], first + column)
    : (row, column) => standard(channels[row], first + column) / 3;
  if (reader.n) drawMatrix(context, channels.length, columns, value, 0, LABELS, columns * COLUMN, CHANNELS);
  drawLabels(context, first, columns);
  const style = getComputedStyle(document.documentElement);
  context.strokeStyle = style.getPropertyValue("--ink");
  if (state.place < reader.n) context.strokeRect((state.place - first) * COLUMN, LABELS, COLUMN, CHANNELS);
  const row = channels.indexOf(state.channel);
  if (row >= 0)
    context.strokeRect(
      0,
      LABELS + (row * CHANNELS) / channels.length - 1,
      columns * COLUMN,
      Math.max(3, CHANNELS / channels.length),
    );
  $("map").ariaLabel = `layer ${state.layer + 1}, characters ${first + 1} to ${first + columns} of ${reader.n}`;
}

function drawLabels(context, first, columns) {
  const style = getComputedStyle(document.documentElement);
  context.font = "13px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
  context.textAlign = "center";
  for (let column = 0; column < columns; column++) {
    const char = visible(reader.chars[first + column] ?? " ");
    context.fillStyle = style.getPropertyValue(
      first + column === state.place ? "--accent" : /\s/.test(reader.chars[first + column]) ? "--faint" : "--ink",
    );
    context.fillText([...char].length > 1 ? "?" : char, (column + 0.5) * COLUMN, LABELS - 6);
  }
}

/** The channel and the character under a pointer. */
function underPointer(event) {
  const box = $("map").getBoundingClientRect();
  const channels = rows();
  const row = Math.floor(((event.clientY - box.top - LABELS) / CHANNELS) * channels.length);
  const at = state.first + Math.floor((event.clientX - box.left) / COLUMN);
  return { channel: channels[clamp(row, 0, channels.length - 1)], at: clamp(at, 0, Math.max(0, reader.n - 1)) };
}

/** A histogram of time constants for each layer, and its figures in words. */
function drawTimes() {
  const figures = study.hidden.map((hidden, layer) => {
    const times = ordered(layer).map((channel) => study.time[channel]);
    const bins = EDGES.slice(0, -1).map(
      (edge, i) => times.filter((t) => (t >= edge || i === 0) && t < EDGES[i + 1]).length,
    );
    const most = Math.max(...bins);
    const bars = bins.map((n, i) => {
      const node = el("i", { title: `${count(n, "channel")}: ${edgeText(i)} characters` });
      node.style.height = `${(100 * Math.sqrt(n)) / Math.sqrt(most)}%`; // roots, so that single channels are seen
      return node;
    });
    const words = `median ${times[hidden >> 1].toFixed(1)}, longest ${times[0].toFixed(1)} characters`;
    const props = { className: "histogram", role: "img", "aria-label": `layer ${layer + 1}: ${words}` };
    return el(
      "figure",
      {},
      el("figcaption", {}, `layer ${layer + 1}: ${words}`),
      el("div", props, ...bars),
      timeAxis(),
    );
  });
  $("times").replaceChildren(...figures);
}

const edgeText = (i) => (EDGES[i + 1] === Infinity ? `${EDGES[i]} or more` : `${EDGES[i]} to ${EDGES[i + 1]}`);
const timeAxis = () =>
  el(
    "div",
    { className: "time-axis", "aria-hidden": "true" },
    ...["\u00bd", "1", "2", "4", "8", "16", "32", "64"].map((t) => el("span", {}, t)),
  );

function connectMemory() {
  on("map", "pointermove", (event) => {
    if (event.pointerType !== "mouse" || state.pinned) return;
    const { channel, at } = underPointer(event);
    state.channel = channel;
    place(at, false);
  });
  on("map", "click", (event) => {
    const { channel, at } = underPointer(event);
    place(at, true);
    select(channel);
  });
  on("map", "keydown", (event) => {
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -20, PageDown: 20 };
    if (event.key in moves) place(clamp(state.place + moves[event.key], 0, reader.n - 1), true);
    else if (event.key === "ArrowUp") step(-1);
    else if (event.key === "ArrowDown") step(1);
    else return;
    event.preventDefault();
  });
  on("all", "change", () => {
    state.all = $("all").checked;
    refresh();
  });
  on("gates", "change", (event) => {
    state.gates = event.target.value === "z";
    refresh();
  });
}
