"use strict";
// Writing on from the end of the text, and texts that fork.

const FORKED = 200; // characters that a fork goes on for
const FRAME = 12; // milliseconds of writing before the page is drawn
/** What `writeText` yields, its options, where its text starts and ends, and the texts before each fork. */
const writer = { pieces: null, options: {}, start: 0, end: 0, running: false, history: [] };

const writingView = {
  title: "Writing",
  sentence:
    "The model writes on from the end of the text: each character is drawn from what it expects next, which " +
    "temperature and limits narrow or flatten. The same seed writes the same text.",
  draw() {
    const written = (place) => writer.start > 0 && place >= writer.start;
    paint(
      (place) => (written(place) ? reader.bits[place] / 9 : 0),
      (place) => (written(place) ? level(reader.bits[place], BITS) : 0),
    );
    showTotals(null);
    key([[0, 0, "given"], ...BITS_KEY]);
    const n = writer.start ? reader.n - writer.start : 0;
    $("summary").textContent = n ? `${count(n, "character")} written` : "";
  },
  at(place) {
    return [expectations(reader, place, true)];
  },
};

/** The settings, which `writeText` reads at each step. */
function readSettings() {
  const value = (name) => Number($(`write-${name}`).value) || 0;
  const stop = $("write-stop").value.replaceAll("\\n", "\n");
  Object.assign(writer.options, {
    temperature: Math.max(0, value("temperature")),
    top_k: Math.max(0, Math.floor(value("top_k"))),
    top_p: clamp(value("top_p"), 0, 1) || 1,
    min_p: clamp(value("min_p"), 0, 1),
    stops: stop ? [stop] : [],
  });
}

/** A seed as a number of 64 bits; 0 for what is none. */
function readSeed() {
  const text = $("write-seed").value.trim();
  return /^\d+$/.test(text) ? BigInt.asUintN(64, BigInt(text)) : 0n;
}

/** Begin to write at the end of the text, unless that goes on. An empty text stands for the start of a line. */
async function begin() {
  if (writer.pieces && writer.end === reader.n) return;
  if (!reader.n) await setText([reader.engine.decode(reader.engine.header.start)]);
  readSettings();
  writer.options.seed = readSeed();
  writer.start = reader.n;
  writer.pieces = writeText(reader.engine, { ...reader.position, drawn: 0 }, writer.options);
}

/** Show and read what comes next. Returns whether there may be more. */
function writeOne() {
  const { value } = writer.pieces.next();
  const chars = [...value.text];
  for (const char of chars) reader.extend([char]);
  appendText(chars, (char) => reader.knows(char));
  writer.end = reader.n;
  if (value.finish) writer.pieces = null;
  return writer.pieces !== null;
}

/** Write so many characters, unless the stop text comes first or it is halted; the page stays usable meanwhile. */
async function write(chars) {
  if (writer.running || reader.busy) return;
  await begin();
  writer.running = true;
  $("write-halt").hidden = false;
  const end = Math.min(most(), reader.n + chars);
  while (writer.running && reader.n < end) {
    const until = performance.now() + FRAME;
    while (writer.running && reader.n < end && performance.now() < until) writer.running = writeOne();
    markWritten(writer.start);
    $("text").scrollTop = $("text").scrollHeight;
    await new Promise((done) => requestAnimationFrame(done));
  }
  writer.running = false;
  $("write-halt").hidden = true;
  $("cut").textContent = reader.n >= most() ? `The page reads at most ${count(most(), "character")}.` : "";
  await other?.read([...reader.chars]);
  place(reader.n, true);
  refresh();
}

/** Put another character at a place, and let the text go on with it. */
async function fork(at, char) {
  if (writer.running || reader.busy) return;
  const old = [...reader.chars];
  await setText([...old.slice(0, at), char]);
  writer.history.push(old);
  await write(FORKED);
  writer.start = at;
  markWritten(at);
  place(at, true);
  refresh();
}

/** Back to the text before the last fork, or without what was written. */
async function undo() {
  writer.running = false;
  const old = writer.history.pop() ?? reader.chars.slice(0, writer.start || reader.n);
  if (await setText(old)) refresh();
}

function connectWriting() {
  on("write-go", "click", () => write(Number($("write-chars").value) || 1));
  on("write-step", "click", () => write(1));
  on("write-halt", "click", () => (writer.running = false));
  on("write-again", "click", undo);
  on("settings", "input", readSettings);
  on("write-seed", "input", () => (writer.pieces = null)); // another seed begins to write anew, at the end of the text
}
