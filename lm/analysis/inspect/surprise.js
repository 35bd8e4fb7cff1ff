"use strict";
// Surprise, of one model and of two; what was expected, and texts that fork from there.

const BITS = [2, 4, 8]; // limits of the lines under a character
const BITS_KEY = [
  [3 / 9, 1, "2 to 4 bits"],
  [6 / 9, 2, "4 to 8"],
  [1, 3, "8 or more"],
];
const DIFFERENCE = [1, 2, 4];
const SPEECH = /(?:^|\n\n)([^\n:]{1,40}):\n/g; // as lm.analysis.text.SPEECH
const perCharacter = (bits, n) => (n > 0 ? bits / n : 0).toFixed(2);

const surpriseView = {
  title: "Surprise",
  get sentence() {
    const forks = isLive() ? " Click it to stay there, and choose another: the text then goes on with that." : "";
    return `The darker a character, the less the model expected it. Point at one to see what it expected.${forks}`;
  },
  draw() {
    const { bits, n } = reader;
    paint(
      (place) => bits[place] / 9,
      (place) => level(bits[place], BITS),
    );
    showTotals((place) => bits[place]);
    key([[0, 0, "below 2 bits"], ...BITS_KEY], "on the right: bits of the line");
    const total = bits.subarray(0, n).reduce((a, b) => a + b, 0);
    const unknown = reader.chars.filter((char) => !reader.knows(char)).length;
    $("summary").textContent =
      `${count(n, "character")}, ${count(Math.round(total), "bit")}: ${perCharacter(total, n - 1)} bits a character` +
      (unknown ? `; ${count(unknown, "character")} the model has never seen (dashed)` : "");
    drawSpeakers();
  },
  at(place) {
    return [expectations(reader, place, true)];
  },
};

/** Bits of each speaker, in the order in which they appear. */
function drawSpeakers() {
  const speakers = new Map();
  const text = reader.chars.map((char) => (char.length > 1 ? "?" : char)).join(""); // a place for each character
  const heads = [...text.matchAll(SPEECH)];
  heads.forEach((head, i) => {
    const [start, end] = [head.index + head[0].length, heads[i + 1]?.index ?? text.length];
    const sum = speakers.get(head[1]) ?? { n: 0, bits: 0 };
    for (let place = start; place < end; place++) sum.bits += reader.bits[place];
    sum.n += end - start;
    speakers.set(head[1], sum);
  });
  const most = Math.max(...[...speakers.values()].map((sum) => sum.bits / sum.n));
  const rows = [...speakers].map(([name, { n, bits }]) => [
    el("th", { scope: "row" }, name),
    el("td", {}, n.toLocaleString("en")),
    el("td", {}, Math.round(bits).toLocaleString("en")),
    el("td", {}, perCharacter(bits, n), bar(bits / n / most)),
  ]);
  table("speakers", ["speaker", "characters", "bits", "bits a character"], rows);
  $("speakers-title").hidden = !rows.length;
}

/** A horizontal bar of a share of the whole width. */
function bar(share) {
  const node = el("span", { className: "bar" });
  node.style.width = `${clamp(100 * share, 0, 100)}%`;
  return node;
}

/** Fill a table; without rows it is hidden. */
function table(id, heads, rows) {
  $(id).hidden = !rows.length;
  $(id).replaceChildren(
    el("thead", {}, el("tr", {}, ...heads.map((title) => el("th", { scope: "col" }, title)))),
    el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells))),
  );
}

/** What a model expected at a place, as a list of buttons that fork the text; what came is marked. */
function expectations(from, place, forks) {
  const char = from.chars[place];
  const likely = from.expected(place);
  const rare = likely.length && place < from.n && from.knows(char) && !likely.some((one) => one.char === char);
  const items = [...likely, ...(rare ? [{ char, share: 2 ** -from.bits[place] }] : [])].map(
    ({ char: other, share }) => {
      const came = other === char && from.knows(char);
      const name = el("span", { className: "char" }, visible(other));
      const parts = [
        name,
        el("span", { className: "meter" }, bar(share)),
        el("span", { className: "number" }, percent(share)),
      ];
      const props = {
        className: came ? "came" : "",
        ariaLabel: `${visible(other)} ${percent(share)}${came ? ", which came" : ""}`,
      };
      const choosable = forks && isLive() && !came && from.knows(other);
      return el(
        "li",
        {},
        choosable
          ? el("button", { type: "button", ...props, onclick: () => fork(place, other) }, ...parts)
          : el("div", props, ...parts),
      );
    },
  );
  if (!items.length) return el("p", { className: "faint" }, place ? "" : "Nothing predicts the first character.");
  return el("ol", { className: "expected" }, ...items);
}

const besideView = {
  title: "Two models",
  get sentence() {
    const [first, second] = data.models.map((model) => model.name);
    return `Orange and underlined: ${first} was more surprised than ${second}; blue and overlined: ${second} was.`;
  },
  draw() {
    const difference = (place) => reader.bits[place] - other.bits[place];
    paint(
      (place) => difference(place) / 5,
      (place) => level(difference(place), DIFFERENCE),
    );
    showTotals(difference, 1);
    key(
      [
        [0, 0, "within 1 bit"],
        [0.3, 1, "1 bit more"],
        [0.6, 2, "2 bits"],
        [1, 3, "4 bits"],
        [-0.3, -1, "1 bit less"],
      ],
      "on the right: the difference over the line",
    );
    const totals = [reader, other].map(({ bits, n }) => bits.subarray(0, n).reduce((a, b) => a + b, 0));
    const each = data.models.map(
      (model, i) => `${model.name} ${perCharacter(totals[i], reader.n - 1)} bits a character`,
    );
    $("summary").textContent = `${each.join(", ")}; difference ${signed(totals[0] - totals[1], 1)} bits in all`;
  },
  at(place) {
    return [reader, other].map((from, i) =>
      el("div", {}, el("h3", {}, data.models[i].name, bitsOf(from, place)), expectations(from, place)),
    );
  },
};

const bitsOf = (from, place) =>
  el("span", { className: "faint" }, place > 0 && place < from.n ? `${from.bits[place].toFixed(2)} bits` : "");
