"use strict";
// The page that types and reads: the prompt, the controls, and the text that the model writes, a part in each frame.

const READ = 2048; // characters of a prompt that are read between two frames
const BUSY = 24; // milliseconds of a frame in which the model writes
const SHOWN = 100_000; // characters of the text on the page; of a longer one the end
const BLOCK = 1000; // characters after which a new element begins at the next line: only the last one is laid out again

const state = {
  engine: null,
  options: {}, // of writeText, which reads them at each step
  writer: null, // the running continuation; null where the prompt is to be read first
  last: null, // its last step
  turn: 0, // counts what the user starts and ends, so that what waits for a frame knows that its turn is over
  running: false,
  written: 0,
  shown: 0,
};

const frame = () => new Promise((done) => requestAnimationFrame(done));
const number = (n) => n.toLocaleString("en");
const codePoint = (char) => `U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
const BREAKS = { n: "\n", t: "\t", "\\": "\\" };

/** Take the controls' values; false, and a message, if one is wrong. */
function takeOptions() {
  for (const input of document.querySelectorAll("#options input[type=number]")) {
    if (!input.value || !input.checkValidity()) return refuse(input, input.validationMessage || "a number is needed");
  }
  const seed = $("seed").value.trim();
  const known = /^\d{1,20}$/.test(seed) && BigInt(seed) < 2n ** 64n;
  $("seed").setAttribute("aria-invalid", String(!known));
  if (!known) return refuse($("seed"), "a whole number at least 0 and below 2^64 is needed");
  const stop = $("stop").value.replace(/\\([nt\\])/g, (_, letter) => BREAKS[letter]);
  const names = ["temperature", "top_k", "top_p", "min_p", "chars"];
  const numbers = Object.fromEntries(names.map((name) => [name, Number($(name).value)]));
  $("wrong").textContent = "";
  Object.assign(state.options, numbers, { seed: BigInt(seed), stops: stop ? [stop] : [] });
  return true;
}

function refuse(input, problem) {
  $("wrong").textContent = `${input.closest("label").textContent.trim()}: ${problem}`;
  return false;
}

const say = (text) => ($("status").textContent = text);

/** Append to the text, and keep its end in view if that was so before. */
function append(text) {
  const box = $("text");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  for (let rest = text; rest; ) {
    const block = lastBlock();
    const lineEnd = rest.indexOf("\n") + 1;
    const part = block.textContent.length > BLOCK && lineEnd ? rest.slice(0, lineEnd) : rest;
    block.append(part);
    rest = rest.slice(part.length);
  }
  state.shown += text.length;
  while (state.shown > SHOWN) dropFirst();
  if (atEnd) box.scrollTop = box.scrollHeight;
}

/** The element that the text goes on in: a new one where the last has a number of whole lines. */
function lastBlock() {
  const last = $("text").lastChild;
  if (last && !(last.textContent.length > BLOCK && last.textContent.endsWith("\n"))) return last;
  $("text").append(el("div"));
  return $("text").lastChild;
}

function dropFirst() {
  const block = $("text").firstChild;
  state.shown -= block.firstChild.textContent.length;
  block.firstChild.remove();
  if (!block.firstChild) block.remove();
}

function clearText() {
  $("text").replaceChildren();
  state.shown = 0;
  say("");
}

const isSeen = (char) => state.engine.ids.has(char);

/** Show the prompt, with the characters framed that the model has never seen. */
function showPrompt(text) {
  const block = lastBlock();
  const parts = [];
  for (const char of text.slice(-SHOWN)) {
    const seen = isSeen(char);
    if (parts.at(-1)?.seen !== seen) parts.push({ seen, chars: [] });
    parts.at(-1).chars.push(char);
  }
  for (const { seen, chars } of parts) {
    const look = seen ? { className: "given" } : { className: "given unseen", title: "never seen in training" };
    block.append(el("span", look, chars.join("")));
    state.shown += chars.length;
  }
}

function nameUnseen() {
  const unseen = [...new Set($("prompt").value)].filter((char) => !isSeen(char));
  const names = unseen.slice(0, 20).map((char) => (/[\p{C}\p{Z}]/u.test(char) ? codePoint(char) : char));
  const more = unseen.length > names.length ? ` and ${number(unseen.length - names.length)} more` : "";
  $("unseen").textContent = names.length ? `Never seen in training: ${names.join(" ")}${more}` : "";
}

/** Read the prompt. False if another turn has begun meanwhile. */
async function begin(turn) {
  const text = $("prompt").value;
  const ids = state.engine.encode(text);
  clearText();
  showPrompt(text);
  let position = ids.length ? null : state.engine.start();
  for (let first = 0; first < ids.length; first += READ) {
    position = state.engine.read(ids.slice(first, first + READ), position).position;
    say(`reading the prompt: ${number(Math.min(first + READ, ids.length))} of ${number(ids.length)} characters`);
    if (first + READ < ids.length) await frame();
    if (turn !== state.turn) return false;
  }
  Object.assign(state, { writer: writeText(state.engine, position, state.options), last: null, written: 0 });
  return true;
}

/** Let the next step follow the last one, where that was the end of a text. */
function goOn() {
  if (!state.last?.finish) return;
  append(state.last.held);
  Object.assign(state, { writer: writeText(state.engine, state.last.position, state.options), last: null });
}

/** Write while there is time and the text has not ended; returns how many characters. */
function writePart(most, until) {
  let text = "";
  let steps = 0;
  while (steps < most && performance.now() < until && !state.last?.finish) {
    state.last = state.writer.next().value;
    text += state.last.text;
    steps++;
  }
  state.written += steps;
  append(text);
  return steps;
}

async function run() {
  if (!takeOptions()) return;
  const turn = take(true);
  if (!state.writer && !(await begin(turn))) return;
  goOn();
  const start = performance.now();
  const before = state.written;
  let due = 0;
  for (let now = start; !state.last?.finish; ) {
    const then = now;
    now = await frame();
    if (turn !== state.turn) return;
    const speed = Number($("speed").value);
    due = speed === Infinity ? Infinity : Math.min(due + (speed * Math.max(0, now - then)) / 1000, speed);
    due -= writePart(Math.floor(due), performance.now() + BUSY);
    const seconds = (performance.now() - start) / 1000;
    say(describe() + (seconds > 0.5 ? `, ${number(Math.round((state.written - before) / seconds))} a second` : ""));
  }
  take(false);
}

function describe() {
  const ends = { length: ": as many as asked for", stop: ": the stop text comes next" };
  return `${number(state.written)} characters written${ends[state.last?.finish] ?? ""}`;
}

async function step() {
  if (!takeOptions()) return;
  const turn = take(false);
  if (!state.writer && !(await begin(turn))) return;
  goOn();
  writePart(1, Infinity);
  say(describe());
  take(false);
}

/** Forget the text: what is written next begins at the prompt. */
function reset() {
  Object.assign(state, { writer: null, last: null, written: 0 });
  take(false);
}

/** Take a turn, which ends what runs; returns its number. */
function take(running) {
  state.running = running;
  $("go").textContent = running ? "Pause" : state.writer ? "Go on" : "Write";
  return ++state.turn;
}

function connect() {
  on("go", "click", () => (state.running ? take(false) : run()));
  on("step", "click", step);
  on("again", "click", () => {
    reset();
    clearText();
  });
  on("prompt", "input", () => {
    nameUnseen();
    reset();
  });
  on("seed", "input", reset);
  on("options", "input", takeOptions);
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input, textarea");
    if (event.key === "Escape") take(false);
    else if (event.ctrlKey && event.key === "Enter") $("go").click();
    else if (event.ctrlKey && event.key === "ArrowRight" && !typing) $("step").click();
    else return;
    event.preventDefault();
  });
  for (const id of ["go", "step", "again"]) $(id).disabled = false;
}

async function open() {
  connectTheme();
  try {
    const data = JSON.parse($("data").textContent);
    $("subtitle").textContent = data.about;
    state.engine = await Engine.create(data.block);
    connect();
    nameUnseen(); // a browser may have kept the prompt of an earlier visit
  } catch (error) {
    $("problem").textContent =
      error instanceof SyntaxError ? "The data of this page is damaged. Get the page again." : error.message;
    $("problem").hidden = false;
  }
  performance.mark("ready");
}

open();
