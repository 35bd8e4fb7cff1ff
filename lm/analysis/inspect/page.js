"use strict";
// The page: its views, the place and the channel that are chosen, the text that is typed, and the start.

const views = {
  surprise: surpriseView,
  writing: writingView,
  memory: memoryView,
  channel: channelView,
  meaning: meaningView,
  sources: sourcesView,
  beside: besideView,
};
const state = {
  view: "surprise",
  place: 0,
  pinned: false,
  layer: 0,
  channel: 0,
  gates: true,
  whole: false,
  all: false,
  first: 0,
};
let reader; // of the first model
let other = null; // of the second model

/** Whether all models run here, so that the text can change. */
const isLive = () => [reader, other].every((each) => !each || each.engine);
/** Characters that are read at most. */
const most = () => Math.min(reader.most, other?.most ?? Infinity);
/** The views that this page has. */
const possible = (name) => ({ surprise: true, beside: other !== null, writing: isLive() })[name] ?? study;

/** Draw the view that is chosen, for the text that was read. */
function refresh() {
  const view = views[state.view];
  for (const tab of $("tabs").children) {
    const chosen = tab.dataset.view === state.view;
    tab.ariaSelected = String(chosen);
    tab.tabIndex = chosen ? 0 : -1;
  }
  $("tabs").scrollLeft = $(`tab-${state.view}`).offsetLeft - $("tabs").clientWidth / 3; // on a phone: all do not fit
  $("view").setAttribute("aria-labelledby", `tab-${state.view}`);
  for (const part of document.querySelectorAll("[data-views]"))
    part.hidden = !part.dataset.views.split(" ").includes(state.view);
  $("sentence").textContent = view.sentence;
  if (study) {
    $("layer").value = state.layer;
    $("channel-name").value = nameOf(state.channel);
    $("whole").checked = state.whole;
    $("gates").querySelector(`[value=${state.gates ? "z" : "h"}]`).checked = true;
  }
  $("write-again").hidden = !(writer.history.length || (writer.start && writer.start < reader.n));
  markWritten(writer.start || Infinity);
  view.draw();
  detail();
  keepAddress();
}

/** What the view says about the place that is chosen. */
function detail() {
  const char = reader.chars[state.place];
  const bits = state.place > 0 && state.place < reader.n ? `, ${reader.bits[state.place].toFixed(2)} bits` : "";
  $("place").replaceChildren(
    el("span", { className: "char" }, visible(char)),
    ` ${state.place < reader.n ? `character ${state.place + 1} of ${reader.n}` : "after the end"}${bits}`,
    ...(state.pinned
      ? [el("button", { type: "button", className: "unpin", onclick: () => place(state.place, false) }, "unpin")]
      : []),
  );
  markPlace(state.place);
  $("detail").replaceChildren(...views[state.view].at(state.place));
}

/** Choose a place. What the pointer passes over does not move one that is pinned. */
function place(at, pinned) {
  Object.assign(state, { place: at, pinned });
  detail();
}

/** Choose a channel. */
function select(channel) {
  Object.assign(state, { channel, layer: layerOf(channel) });
  refresh();
}

/** Show and read another text, at most as much of it as the page takes. */
async function setText(all) {
  const chars = all.slice(0, most());
  Object.assign(writer, { start: 0, pieces: null, running: false });
  $("cut").textContent = "Reading \u2026";
  const read = await Promise.all([reader.read(chars), other?.read(chars) ?? true]);
  if (!read.every(Boolean)) return false;
  const cut = `Only the first ${chars.length.toLocaleString("en")} of ${count(all.length, "character")} are read.`;
  $("cut").textContent = all.length > chars.length ? cut : "";
  showText(chars, (char) => reader.knows(char));
  if (document.activeElement !== $("typed")) $("typed").value = chars.join("");
  $("given").hidden = chars.join("") === data.text;
  state.place = Math.min(state.place, chars.length);
  return true;
}

function keepAddress() {
  const values = { view: state.view, ...(state.pinned ? { place: state.place } : {}) };
  if (study)
    Object.assign(values, { channel: nameOf(state.channel), map: state.gates ? "z" : "h", whole: Number(state.whole) });
  try {
    history.replaceState(null, "", `#${new URLSearchParams(values)}`);
  } catch {
    // a page that may not change its address is shown all the same
  }
}

/** Start where the address says: #view=channel&channel=3.167&place=120. */
function readAddress() {
  const values = new URLSearchParams(location.hash.slice(1));
  const view = values.get("view");
  if (view in views && possible(view)) state.view = view;
  const first = [...reader.bits.subarray(0, Math.min(reader.n, 300))];
  state.place = clamp(Number(values.get("place") ?? first.indexOf(Math.max(...first))) || 0, 0, reader.n);
  state.pinned = values.has("place");
  if (!study) return;
  const [layer, channel] = (values.get("channel") ?? "").split(".").map((part) => Number(part) - 1);
  const known = channel >= 0 && channel < study.hidden[layer];
  state.channel = known ? study.starts[layer] + channel : (study.clearest[0]?.[1] ?? 0);
  state.layer = layerOf(state.channel);
  state.gates = values.get("map") !== "h";
  state.whole = values.get("whole") === "1";
}

function connectTabs() {
  const names = Object.keys(views).filter(possible);
  const open = (name) => {
    state.view = name;
    refresh();
  };
  $("tabs").replaceChildren(
    ...names.map((name) =>
      el(
        "button",
        {
          type: "button",
          id: `tab-${name}`,
          role: "tab",
          "data-view": name,
          "aria-controls": "view",
          onclick: () => open(name),
        },
        views[name].title,
      ),
    ),
  );
  on("tabs", "keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    open(names[(names.indexOf(state.view) + by + names.length) % names.length]);
    $(`tab-${state.view}`).focus();
  });
}

function connectLayers() {
  $("layer").replaceChildren(...study.hidden.map((_, layer) => el("option", { value: layer }, `layer ${layer + 1}`)));
  on("layer", "change", () => select(ordered(Number($("layer").value))[0]));
  on("whole", "change", () => {
    state.whole = $("whole").checked;
    refresh();
  });
}

function connectTyping() {
  let waiting;
  on("typed", "input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(async () => (await setText([...$("typed").value])) && refresh(), 100);
  });
  on("given", "click", async () => {
    if (await setText([...data.text])) refresh();
  });
}

async function makeReader(model) {
  return model.block ? new Reader(await Engine.create(model.block)) : new FixedReader(model);
}

async function start() {
  try {
    [reader, other = null] = await Promise.all(data.models.map(makeReader));
  } catch (error) {
    $("problem").textContent = error.message;
    $("problem").hidden = false;
    $("view").hidden = true;
    return;
  }
  $("name").textContent = data.models[0].name;
  document.title = `Inside ${data.models[0].name}`;
  $("subtitle").textContent = data.models
    .map((model) => (data.models.length > 1 ? `${model.name}: ` : "") + model.about)
    .join("; ");
  $("about").textContent =
    (reader.engine ? `Weights in this page: ${data.weights}. ` : "") +
    (study ? `Channels were measured over ${study.extent}; the untrained model has the same architecture.` : "");
  $("warnings").replaceChildren(...data.notes.map((note) => el("li", {}, note)));
  $("warnings").hidden = !data.notes.length;
  $("typing").hidden = !isLive();
  await setText([...data.text]);
  readAddress();
  connectTabs();
  connectText((at, pinned) => (pinned || !state.pinned) && place(at, pinned && !(state.pinned && at === state.place)));
  if (isLive()) [connectTyping, connectWriting].forEach((connect) => connect());
  if (study) [connectLayers, connectChannels, connectMemory].forEach((connect) => connect());
  connectTheme(refresh);
  addEventListener("resize", () => refresh());
  refresh();
  performance.mark("drawn");
}

start();
