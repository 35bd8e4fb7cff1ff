"use strict";
// The text: one element for each character, coloured by the views, with a place that pointer and keys move.

const shown = { chars: [], spans: [], totals: [], lines: [] }; // lines: the place where each begins

/** Show a text anew. */
function showText(chars, knows) {
  Object.assign(shown, { chars: [], spans: [], totals: [], lines: [] });
  $("text").replaceChildren();
  appendText(chars, knows);
}

/** Add characters at the end of the text. */
function appendText(chars, knows) {
  for (const char of chars) {
    const place = shown.chars.length;
    if (place === 0 || shown.chars[place - 1] === "\n") startLine(place);
    const span = el("span", { "data-place": place });
    span.textContent = char === "\n" ? "\u21b5" : /[\t\p{C}]/u.test(char) ? visible(char) : char;
    if (char === "\n") span.classList.add("newline");
    if (!knows(char)) span.classList.add("unknown");
    shown.spans.push(span);
    shown.chars.push(char);
    $("text").lastChild.firstChild.append(span);
  }
}

function startLine(place) {
  const total = el("span", { className: "total" });
  shown.lines.push(place);
  shown.totals.push(total);
  $("text").append(el("div", { className: "line" }, el("span", { className: "chars" }), total));
}

/** Colour the text: `value(place)` from -1 to 1 is the colour, `mark(place)` the lines that say the same without it. */
function paint(value, mark) {
  shown.spans.forEach((span, place) => {
    const colour = tint(value(place));
    if (span.style.backgroundColor !== colour) span.style.backgroundColor = colour;
    const lines = marks(mark(place));
    if (span.dataset.lines !== lines) span.dataset.lines = lines;
  });
}

/** Show the sum of `value` over each line beside it, or nothing. */
function showTotals(value, digits = 0) {
  shown.totals.forEach((total, line) => {
    const end = shown.lines[line + 1] ?? shown.chars.length;
    let sum = 0;
    for (let place = shown.lines[line]; value && place < end; place++) sum += value(place);
    total.textContent = value ? (digits ? signed(sum, digits) : sum.toFixed(0)) : "";
  });
}

/** Mark the place that is chosen. */
function markPlace(place) {
  for (const span of [...$("text").getElementsByClassName("here")]) span.classList.remove("here");
  shown.spans[place]?.classList.add("here");
}

/** Mark the characters from a place on as written by the model. */
function markWritten(from) {
  shown.spans.forEach((span, place) => span.classList.toggle("written", place >= from));
  for (const span of [...$("text").getElementsByClassName("first-written")]) span.classList.remove("first-written");
  shown.spans[from]?.classList.add("first-written");
}

/** The text around a place, with the place marked: [before, character, after], one line. */
function around(chars, place, before = 28, after = 12) {
  const line = (part) => part.join("").replaceAll("\n", "\u21b5");
  const rest = chars.slice(place + 1, place + 1 + after);
  return [line(chars.slice(Math.max(0, place - before), place)), visible(chars[place]), line(rest)];
}

/** An element that shows the text around a place. */
function quote(chars, place, ...sizes) {
  const [before, char, after] = around(chars, place, ...sizes);
  return el("span", { className: "quote" }, before, el("mark", {}, char), after);
}

/** Call `move(place, pinned)` as pointer and keys choose a place; the text's end is a place too. */
function connectText(move) {
  const place = (event) => event.target.closest?.("[data-place]")?.dataset.place;
  on("text", "pointerover", (event) => {
    if (event.pointerType === "mouse" && place(event)) move(Number(place(event)), false);
  });
  on("text", "click", (event) => {
    if (place(event)) move(Number(place(event)), true);
  });
  on("text", "keydown", (event) => {
    const to = keyMove(event.key, state.place);
    if (to === null) return;
    event.preventDefault();
    move(clamp(to, 0, shown.chars.length), true);
    shown.spans[state.place]?.scrollIntoView({ block: "nearest" });
  });
}

/** Where a key moves a place to; null for other keys. */
function keyMove(pressed, place) {
  const line = shown.lines.findLastIndex((start) => start <= place);
  const column = place - shown.lines[line];
  const vertical = (next) => Math.min(shown.lines[next] + column, (shown.lines[next + 1] ?? shown.chars.length) - 1);
  const moves = {
    ArrowLeft: () => place - 1,
    ArrowRight: () => place + 1,
    ArrowUp: () => (line > 0 ? vertical(line - 1) : 0),
    ArrowDown: () => (line + 1 < shown.lines.length ? vertical(line + 1) : shown.chars.length),
    Home: () => 0,
    End: () => shown.chars.length,
  };
  return shown.chars.length && moves[pressed] ? moves[pressed]() : null;
}
